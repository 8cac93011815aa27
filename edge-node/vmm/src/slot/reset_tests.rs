//! Whether a reset is complete: an instance whose program has written over all that it can reach is compared,
//! after its reset, byte by byte and register by register with one that is fresh from the snapshot.
//!
//! A usual run has always the same few seeds; `HOLM_RESET_SEEDS` says how many new ones to try instead, and
//! `HOLM_RESET_SEED` which one alone.
#![allow(clippy::unwrap_used, reason = "these are tests")]

use holm_model::bundle::Files;
use holm_model::program::Program;
use holm_test_support::{Guest, is_slow, patience, require_kvm, seeds};

use super::*;
use crate::{Choice, GuestConfig, prepare, sample};

/// Seeds of a usual run.
const SEEDS: u64 = 12;
/// MSRs that go on by themselves: the TSC, the two counters of the clock, the TSC's deadline, and two clocks of
/// Hyper-V.
const MOVING_MSRS: [u32; 6] = [0x10, 0xE7, 0xE8, 0x6E0, 0x4000_0010, 0x4000_0020];

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

/// A test guest that is ready.
fn snapshot(hypervisor: &Hypervisor, guest: &str, env: &[(&str, &str)]) -> Arc<Snapshot> {
    let path = Guest::Glibc(guest.into()).path();
    let program = Program::parse(&std::fs::read(path).unwrap()).unwrap();
    let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    let config = GuestConfig {
        name: format!("tests/{guest}"),
        memory_bytes: 24 << 20,
        env: env.iter().map(own).collect(),
        args: Vec::new(),
        files: Files::default(),
        inetd: false,
        shared: false,
        port: 8080,
    };
    let ready = patience(Duration::from_secs(5));
    let prepared = prepare(hypervisor, &program, &config, ready);
    prepared.unwrap_or_else(|error| panic!("{error}")).snapshot
}

#[test]
fn kvm_a_reset_instance_is_a_fresh_one_byte_by_byte_and_register_by_register() {
    if !require_kvm() {
        return;
    }
    let hypervisor = Hypervisor::open().unwrap();
    let snapshot = snapshot(&hypervisor, "overwrites_everything", &[]);
    for strategy in Strategy::ALL {
        is_reset_by(strategy, &hypervisor, &snapshot);
    }
    // And with what requests use there ahead, which is known from then on.
    measure_with(&hypervisor, &snapshot, "/1");
    is_reset_by(Strategy::OwnFile, &hypervisor, &snapshot);
}

fn measure_with(hypervisor: &Hypervisor, snapshot: &Arc<Snapshot>, target: &str) {
    let send = |slot: &mut Slot| {
        send(slot, target);
        Ok(())
    };
    Choice::make(hypervisor, snapshot, u64::MAX, send).unwrap();
}

fn is_reset_by(strategy: Strategy, hypervisor: &Hypervisor, snapshot: &Arc<Snapshot>) {
    let strategy_name = strategy.as_str();
    let seeds = seeds("HOLM_RESET_SEED", if is_slow() { 4 } else { SEEDS });
    let all = hypervisor.inner.kvm.get_msr_index_list().unwrap();
    let stays = |index: &&u32| !MOVING_MSRS.contains(index);
    let msrs: Vec<u32> = all.as_slice().iter().filter(stays).copied().collect();
    let mut used = Slot::new(hypervisor).unwrap();
    used.load_by(snapshot, strategy).unwrap();

    for seed in seeds {
        let mut fresh = Slot::new(hypervisor).unwrap();
        fresh.load_by(snapshot, Strategy::CopyOnWrite).unwrap();
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
                "{strategy_name}, seed {seed}: after a reset the memory at {addr:#x} is not what it is in a fresh \
                 instance"
            );
        }
        let states = [&mut used, &mut fresh].map(|slot| {
            slot.begin(&request("/"), limits()).unwrap();
            slot.vm.machine.everything(&msrs).unwrap()
        });
        for (here, there) in states[0].iter().zip(&states[1]) {
            assert_eq!(
                here, there,
                "{strategy_name}, seed {seed}: after a reset and fresh"
            );
        }
        assert_eq!(states[0].len(), states[1].len());
        // That request is not made.
        used.abandon(RequestPlace::FIRST);
        used.load_by(snapshot, strategy).unwrap();
    }
}

#[test]
fn kvm_in_the_place_of_one_version_another_finds_its_own_pages_and_no_others() {
    if !require_kvm() {
        return;
    }
    let hypervisor = Hypervisor::open().unwrap();
    let other = snapshot(&hypervisor, "overwrites_everything", &[]);
    // One whose tables above the leaf tables are the other's, so that it takes its place, and one where they are not.
    for (env, in_place) in [(&[][..], true), (&[("RESERVES", "1")], false)] {
        let snapshot = snapshot(&hypervisor, "protects_before_ready", env);
        assert_eq!(snapshot.has_tables_of(&other), in_place);
        takes_the_place(&hypervisor, &other, &snapshot);
        measure_with(&hypervisor, &snapshot, "/");
        takes_the_place(&hypervisor, &other, &snapshot);
    }
}

/// Lets a slot be an instance of the one and of the other in turn, with and without requests in between.
fn takes_the_place(hypervisor: &Hypervisor, other: &Arc<Snapshot>, snapshot: &Arc<Snapshot>) {
    let mut fresh = Slot::new(hypervisor).unwrap();
    fresh.load(snapshot).unwrap();
    let expected = send(&mut fresh, "/").body;
    let text = String::from_utf8_lossy(&expected);
    let kinds = |kind: char| text.chars().filter(|found| *found == kind).count();
    assert_eq!(
        ['w', 'r', '-', '?'].map(kinds),
        [128, 128, 128, 0],
        "{text}"
    );
    fresh.reset().unwrap();
    let mut used = Slot::new(hypervisor).unwrap();
    used.make_room(snapshot).unwrap();
    // Every strategy after every other, and twice in a row.
    for seed in 0..if is_slow() { 17 } else { 64 } {
        let [first, second] = [seed, seed / 4].map(|index| Strategy::ALL[index % 4]);
        used.load_by(other, first).unwrap();
        if seed % 4 != 3 {
            assert_eq!(send(&mut used, &format!("/{seed}")).body, b"written\n");
            used.reset().unwrap();
        }
        used.load_by(snapshot, second).unwrap();
        assert_eq!(
            memory_difference(&used, &fresh),
            None,
            "{seed}: {first:?}, {second:?}"
        );
        for _ in 0..2 {
            let found = send(&mut used, "/").body;
            let found = String::from_utf8_lossy(&found);
            assert_eq!(found, text, "{seed}: {first:?}, {second:?}");
            used.reset().unwrap();
            assert_eq!(memory_difference(&used, &fresh), None, "{seed}: {second:?}");
        }
    }
}

#[test]
fn kvm_a_choice_is_measured_once_and_stays_with_the_snapshot() {
    if !require_kvm() {
        return;
    }
    let hypervisor = Hypervisor::open().unwrap();
    let made = sample::snapshot(&hypervisor, sample::MEMORY_BYTES).unwrap();
    let mut sent = 0;
    let mut measure = |snapshot: &Arc<Snapshot>| {
        Choice::make(&hypervisor, snapshot, u64::MAX, |slot| {
            sent += 1;
            sample::send(slot)
        })
        .unwrap();
        std::mem::take(&mut sent)
    };
    assert!(made.choice().is_none() && measure(&made) > 0 && made.choice_is_new());
    assert_eq!(measure(&made), 0);
    let choice = made.choice().unwrap();
    // Emulated, a request takes so long that it is not worth it.
    if !is_slow() {
        let measured: Vec<_> = choice.costs.iter().map(|cost| cost.strategy).collect();
        assert!(
            Strategy::ALL.iter().all(|one| measured.contains(one)),
            "{measured:?}"
        );
        for cost in &choice.costs {
            assert!(cost.first_ns > 0 && cost.again_ns > 0, "{cost:?}");
        }
        let touched = made.sets.touched().unwrap();
        assert!(
            touched
                .iter()
                .any(|run| run.end <= made.layout.program_start)
        );
        assert!(
            touched
                .iter()
                .any(|run| run.start >= made.layout.program_start)
        );
    }

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("snapshot");
    made.save(&path).unwrap();
    let read = Snapshot::load(&hypervisor, &path).unwrap();
    assert_eq!(measure(&read), 0);
    assert_eq!(read.choice().unwrap(), choice);
    assert_eq!(read.strategy(), choice.strategy);
    assert_eq!(read.sets.written.get(), made.sets.written.get());
    assert_eq!(read.sets.touched(), made.sets.touched());
    assert!(!read.choice_is_new());
    assert_eq!(Snapshot::told(&path).unwrap().choice.as_ref(), Some(choice));

    // An instance that was loaded ahead is as pristine as any.
    let [mut fresh, mut ahead] = [(); 2].map(|()| Slot::new(&hypervisor).unwrap());
    fresh.load(&read).unwrap();
    ahead.load_ahead(&read).unwrap();
    assert_eq!(memory_difference(&fresh, &ahead), None);
    sample::send(&mut ahead).unwrap();
    ahead.reset().unwrap();
    assert_eq!(memory_difference(&fresh, &ahead), None);
}
