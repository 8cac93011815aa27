//! The same random system calls on the host's Linux and in a guest, answer by answer.
//!
//! `tests/guests/conformance.c` makes the calls; each area of them leaves out, at the top of its file,
//! what is different on purpose. What differs beyond that and the table here fails the test, which
//! prints the seed, the area and the first line that differs.
//!
//! A usual run has always the same few seeds, so that a change is to blame for what it finds.
//! `HOLM_CONFORMANCE_SEEDS` says how many new ones to try instead, and `HOLM_CONFORMANCE_SEED` which one
//! alone; `HOLM_CONFORMANCE_AREA` leaves out the other areas.

mod common;

use std::path::Path;
use std::process::Command;

use common::Function;
use holm_test_support::{is_slow, musl_guest, require_kvm, seeds};

const AREAS: [&str; 8] = [
    "memory", "files", "waits", "signals", "times", "futexes", "process", "sockets",
];
/// Calls for one seed of one area.
const STEPS: u64 = 200;
/// Seeds in a usual run.
const SEEDS: u64 = 24;
/// Lines that are shown before one that differs.
const SHOWN_BEFORE: usize = 5;

/// Calls whose answer is another one on purpose: how the line goes on after its number, what Linux
/// answers, what the guest answers, and why.
const DELIBERATE: [(&str, &str, &str, &str); 13] = [
    ("readv(", "= EINVAL", "= EBADF", COUNT_FIRST),
    ("preadv(", "= EINVAL", "= EBADF", COUNT_FIRST),
    ("writev(", "= EINVAL", "= EBADF", COUNT_FIRST),
    ("pwritev(", "= EINVAL", "= EBADF", COUNT_FIRST),
    ("write(", "= EINVAL", "= EFAULT", BUFFER_FIRST),
    ("write(", "= EPIPE", "= EFAULT", BUFFER_FIRST),
    ("sendto(", "= ENOTCONN", "= EPIPE", RECEIVER_FIRST),
    ("sendmsg(", "= ENOTCONN", "= EPIPE", RECEIVER_FIRST),
    ("sendmsg(", "= ENOTCONN", "= EFAULT", RECEIVER_FIRST),
    ("writev(", "= ENOTCONN", "= EPIPE", RECEIVER_FIRST),
    ("writev(", "= ENOTCONN", "= EFAULT", RECEIVER_FIRST),
    ("xattr ", "= EOPNOTSUPP", "= ENODATA", NO_ATTRIBUTES),
    ("xattr ", "= EOPNOTSUPP", "= 0", NO_ATTRIBUTES),
];
const RECEIVER_FIRST: &str =
    "older kernels look whether a datagram has a receiver before they look at the rest";
const NO_ATTRIBUTES: &str = "not every /tmp could have extended attributes";
const COUNT_FIRST: &str =
    "older kernels look at the number of buffers before they look at the descriptor's mode";
const BUFFER_FIRST: &str =
    "a buffer is checked before it is known whether there is anything for it";

fn is_deliberate(host: &str, guest: &str) -> bool {
    let call = |line: &str| line.split_once(' ').map(|(_, call)| call.to_owned());
    DELIBERATE.iter().any(|(start, linux, ours, _)| {
        let says = |line: &str, what: &str| {
            call(line).is_some_and(|call| call.starts_with(start)) && line.contains(what)
        };
        says(host, linux) && says(guest, ours)
    })
}

/// What the program says when it is a process of the host.
fn on_the_host(program: &Path, area: &str, seed: u64) -> String {
    let output = Command::new(program)
        .args([area, &seed.to_string(), &STEPS.to_string()])
        .output()
        .unwrap_or_else(|error| panic!("cannot start {}: {error}", program.display()));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{area} with seed {seed} on the host: {}; {}\n{text}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

/// The first difference, told so that it can be looked into.
fn difference(host: &str, guest: &str) -> Option<String> {
    let (host, guest): (Vec<&str>, Vec<&str>) = (host.lines().collect(), guest.lines().collect());
    let end = "(nothing more)";
    for at in 0..host.len().max(guest.len()) {
        let here = host.get(at).copied().unwrap_or(end);
        let there = guest.get(at).copied().unwrap_or(end);
        if here != there && !is_deliberate(here, there) {
            let before = host[at.saturating_sub(SHOWN_BEFORE).min(host.len())..at.min(host.len())]
                .join("\n        ");
            return Some(format!("        {before}\n  host: {here}\n guest: {there}"));
        }
    }
    None
}

/// Whether a mount namespace can be had, in which the host's side has a /tmp of its own.
fn is_root() -> bool {
    // SAFETY: it has no preconditions and touches no memory.
    unsafe { libc::geteuid() == 0 }
}

#[test]
fn kvm_random_system_calls_are_answered_as_on_linux() {
    if !require_kvm() {
        return;
    }
    if !is_root() {
        println!("skipped: the host's side of this needs root, for a /tmp of its own");
        return;
    }
    let Some(program) = musl_guest("conformance") else {
        return;
    };
    // An emulated machine does a few only.
    let seeds = seeds("HOLM_CONFORMANCE_SEED", if is_slow() { 3 } else { SEEDS });
    let only = std::env::var("HOLM_CONFORMANCE_AREA").ok();
    let mut guest = Function::new(&program);
    let mut found = Vec::new();
    for seed in seeds {
        for area in AREAS {
            if only.as_ref().is_some_and(|only| only != area) {
                continue;
            }
            let host = on_the_host(&program, area, seed);
            let outcome = guest.fresh("GET", &format!("/{area}/{seed}/{STEPS}"), b"");
            let difference = match outcome.result {
                Ok(response) => difference(&host, &String::from_utf8_lossy(&response.body)),
                Err(failure) => Some(format!(" guest: {failure}\n{}", outcome.log)),
            };
            if let Some(difference) = difference {
                found.push(format!("{area} with seed {seed}:\n{difference}"));
            }
        }
    }
    assert!(
        found.is_empty(),
        "{} differences; HOLM_CONFORMANCE_SEED=N tries one seed again\n{}",
        found.len(),
        found.join("\n")
    );
}
