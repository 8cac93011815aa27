//! What system calls and page faults cost a program, on the host and in a guest, by its own clock.

use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::build::{self, Source};
use super::guest::Guest;
use super::native::Server;
use super::subjects::{Ask, get};
use super::upstream::Upstream;

const ASK: Ask = get("/");

/// A cost on both sides.
#[derive(Debug, Serialize)]
pub(crate) struct Cost {
    what: String,
    host_ns: u64,
    guest_ns: u64,
}

/// Measures all of them.
pub(crate) fn measure(workspace: &Path) -> Result<Vec<Cost>> {
    let source = Source::Guest("glibc", "costs");
    let program = build::build(workspace, &source)?;
    let there = Server::start(&program, |_, _| ())?.client.ask(&ASK)?;
    let here = Guest::boot(&program, &source, &Upstream::start()?)?.fresh(&ASK)?;
    let (there, here) = (lines(&there.1)?, lines(&here.1)?);
    let both = there.into_iter().zip(here);
    Ok(both
        .map(|((what, host_ns), (_, guest_ns))| Cost {
            what,
            host_ns,
            guest_ns,
        })
        .collect())
}

fn lines(answer: &[u8]) -> Result<Vec<(String, u64)>> {
    let text = str::from_utf8(answer).context("costs are not text")?;
    text.lines()
        .map(|line| {
            let (what, ns) = line.split_once('\t').context("no tab in a line of costs")?;
            Ok((what.to_owned(), ns.parse()?))
        })
        .collect()
}

/// As a table for people.
pub(crate) fn print_table(costs: &[Cost]) {
    println!("\n| what | host ns | guest ns |\n| --- | ---: | ---: |");
    for Cost {
        what,
        host_ns,
        guest_ns,
    } in costs
    {
        println!("| {what} | {host_ns} | {guest_ns} |");
    }
}
