//! Whether a reset is complete: an instance whose program has written over all that it can reach is compared,
//! after its reset, byte by byte and register by register with one that is fresh from the snapshot.
//!
//! A usual run has always the same few seeds; `HOLM_RESET_SEEDS` says how many new ones to try instead, and
//! `HOLM_RESET_SEED` which one alone.
#![allow(clippy::unwrap_used, reason = "these are tests")]

use holm_model::bundle::Files;
use holm_model::program::Program;
use holm_test_support::{Guest, patience, require_kvm};

use super::*;
use crate::{GuestConfig, prepare};

/// Seeds of a usual run.
const SEEDS: u64 = 12;
/// MSRs that go on by themselves: the TSC, the two counters of the clock, the TSC's deadline, and two clocks of
/// Hyper-V.
const MOVING_MSRS: [u32; 6] = [0x10, 0xE7, 0xE8, 0x6E0, 0x4000_0010, 0x4000_0020];

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| {
        text.parse()
            .unwrap_or_else(|_| panic!("{variable} is not a number: {text}"))
    })
}

fn request(target: &str) -> Request<'_> {
    Request {
        method: "GET",
        target,
        headers: &[],
        body: b"",
    }
}

fn limits() -> Limits {
    let long = patience(Duration::from_secs(20));
    Limits {
        deadline: Instant::now() + long,
        cpu: long,
        response_body_bytes: 1 << 20,
        streams: false,
    }
}

/// Sends the instance in the slot a request and returns what it answered.
fn send(slot: &mut Slot, target: &str) -> Response {
    slot.begin(&request(target), limits()).unwrap();
    loop {
        match slot.run(Duration::from_millis(50)) {
            Step::Answered(response) => return response,
            Step::Yielded => {}
            Step::Parked(until) => slot.wait(until),
            Step::Failed(failure) | Step::Dropped(_, failure) => {
                panic!(
                    "{target}: {failure}\n{}",
                    String::from_utf8_lossy(&slot.take_log())
                )
            }
        }
    }
}

/// The first guest address at which two instances differ.
fn memory_difference(one: &Slot, other: &Slot) -> Option<u64> {
    const PART: u64 = 1 << 20;
    let total = one.vm.layout.total_bytes();
    let (mut here, mut there) = (vec![0; PART as usize], vec![0; PART as usize]);
    (0..total).step_by(PART as usize).find_map(|at| {
        let bytes = (total - at).min(PART) as usize;
        for (slot, to) in [(one, &mut here), (other, &mut there)] {
            let memory = slot.vm.machine.memory().unwrap();
            memory.read(at, &mut to[..bytes]).unwrap();
        }
        let differs = |index: &usize| here[*index] != there[*index];
        match here[..bytes] == there[..bytes] {
            true => None,
            false => (0..bytes).find(differs).map(|index| at + index as u64),
        }
    })
}

#[test]
fn kvm_a_reset_instance_is_a_fresh_one_byte_by_byte_and_register_by_register() {
    if !require_kvm() {
        return;
    }
    let slow = patience(Duration::from_secs(1)) > Duration::from_secs(1);
    let alone = number("HOLM_RESET_SEED").map(|seed| seed..seed + 1);
    let new = number("HOLM_RESET_SEEDS").map(|count| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let from = now.as_secs() % 1_000_000 * 1000;
        from..from + count
    });
    let usual = 1..1 + if slow { 4 } else { SEEDS };
    let seeds = alone.or(new).unwrap_or(usual);
    println!("seeds {} to {}", seeds.start, seeds.end - 1);

    let hypervisor = Hypervisor::open().unwrap();
    let path = Guest::Glibc("overwrites_everything".into()).path();
    let program = Program::parse(&std::fs::read(path).unwrap()).unwrap();
    let config = GuestConfig {
        name: "tests/overwrites_everything".into(),
        memory_bytes: 24 << 20,
        env: Vec::new(),
        args: Vec::new(),
        files: Files::default(),
        inetd: false,
        shared: false,
        port: 8080,
    };
    let ready = patience(Duration::from_secs(5));
    let snapshot = prepare(&hypervisor, &program, &config, ready)
        .unwrap()
        .snapshot;
    let all = hypervisor.inner.kvm.get_msr_index_list().unwrap();
    let msrs: Vec<u32> = all.as_slice().to_vec();
    let msrs: Vec<u32> = msrs
        .into_iter()
        .filter(|index| !MOVING_MSRS.contains(index))
        .collect();
    let mut used = Slot::new(&hypervisor).unwrap();
    used.load(&snapshot).unwrap();

    for seed in seeds {
        let mut fresh = Slot::new(&hypervisor).unwrap();
        fresh.load(&snapshot).unwrap();
        let target = format!("/{seed}");
        let answer = send(&mut used, &target);
        assert_eq!(answer.body, b"written\n", "seed {seed}");
        let written = used.private_bytes().unwrap();
        assert!(
            memory_difference(&used, &fresh).is_some() && written > 64 << 10,
            "seed {seed}: it wrote {written} bytes"
        );
        used.reset().unwrap();
        if let Some(addr) = memory_difference(&used, &fresh) {
            panic!(
                "seed {seed}: after a reset the memory at {addr:#x} is not what it is in a fresh instance"
            );
        }
        let states = [&mut used, &mut fresh].map(|slot| {
            slot.begin(&request("/"), limits()).unwrap();
            slot.vm.machine.everything(&msrs).unwrap()
        });
        for (here, there) in states[0].iter().zip(&states[1]) {
            assert_eq!(here, there, "seed {seed}: after a reset and fresh");
        }
        assert_eq!(states[0].len(), states[1].len());
        // That request is not made.
        used.abandon(RequestPlace::FIRST);
        used.load(&snapshot).unwrap();
    }
}
