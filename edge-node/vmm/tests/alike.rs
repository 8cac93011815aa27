//! What programs can count on beyond sockets: threads, their locks, signals, descriptors. What a guest
//! tells is what the same program tells on the host.

mod common;

use common::{Function, tells_the_same};
use holm_test_support::{guest, patience, require_kvm};
use std::time::Duration;

#[test]
fn kvm_descriptors_travel_through_local_sockets_and_none_is_lost() {
    if !require_kvm() {
        return;
    }
    tells_the_same(
        "descriptors",
        &[
            ("/exhausted", "pipes and pairs: 20"),
            ("/directories", "open at once: 200, good: 1"),
            ("/rights", "\"abcd\", 1 descriptors, 24 of control, flags 0"),
            ("/leaks", "good: 1, as before: 1"),
        ],
    );
}

#[test]
fn kvm_locks_are_handed_over_and_outlive_their_owners_as_on_linux() {
    if !require_kvm() {
        return;
    }
    tells_the_same(
        "mutexes",
        &[
            ("/contended", "counted: 3200, broken: 0"),
            ("/contended/inheriting", "counted: 3200, broken: 0"),
            ("/contended/robust", "counted: 3200, broken: 0"),
            ("/contended/inheriting/robust", "counted: 3200, broken: 0"),
            ("/dead", "learned of it: 1, got it: 7, broken: 0"),
            ("/dead/inheriting", "try: EOWNERDEAD"),
            ("/errors", "again: EDEADLK"),
            ("/errors/inheriting", "again: EDEADLK"),
            ("/interrupted", "timed: ETIMEDOUT"),
            ("/interrupted/inheriting", "rung: 1"),
            ("/words", "1/1 2/1 3/1 4/1 5/1 6/1 7/1"),
        ],
    );
}

#[test]
fn kvm_a_signal_that_one_thread_takes_ends_no_other_ones_sleep() {
    if !require_kvm() {
        return;
    }
    tells_the_same(
        "mutexes",
        &[(
            "/sleepers",
            "caught: 10, lasted no longer: 0\nwoken: 8, otherwise: 0",
        )],
    );
}

#[test]
fn kvm_locks_of_files_meet_between_openings_as_on_linux() {
    if !require_kvm() {
        return;
    }
    tells_the_same(
        "locks",
        &[
            ("/whole", "the other, exclusive: EAGAIN"),
            ("/ranges", "in the way: write 10 5 -1"),
            ("/waits", "has it: 1"),
            ("/process", "in the way of its own: none"),
        ],
    );
}

#[test]
fn kvm_there_may_be_as_many_files_and_mappings_as_there_is_memory_for() {
    if !require_kvm() {
        return;
    }
    tells_the_same(
        "many",
        &[
            ("/files", "made up to 3000 again, 3000 right"),
            ("/grows", "400 right"),
            ("/mappings", "2000 mappings, 2000 right"),
            ("/shared", "600 right\n300 left"),
            ("/nameless", "read by its name: 7"),
        ],
    );
}

#[test]
fn kvm_threads_are_started_by_clone3_as_on_linux() {
    if !require_kvm() {
        return;
    }
    tells_the_same("mutexes", &[("/clone3", "longer: 1\nstarted: 1")]);
}

#[test]
fn kvm_what_another_thread_asks_an_epoll_instance_for_wakes_the_one_that_waits() {
    if !require_kvm() {
        return;
    }
    tells_the_same(
        "watch_changes",
        &[("/", "changed: 1, of its own: 1\nonce: 0")],
    );
}

#[test]
fn kvm_epoll_instances_watch_as_much_as_a_program_has() {
    if !require_kvm() {
        return;
    }
    tells_the_same(
        "watch_changes",
        &[("/many", "added: 640, found: 320\nthen: 99 19\nat last: 0")],
    );
}

#[test]
fn kvm_signals_carry_values_and_are_queued_as_on_linux() {
    if !require_kvm() {
        return;
    }
    tells_the_same(
        "queued_signals",
        &[("/", "rt0/-1/11 rt0/-1/12 rt0/-1/13 rt1/-1/1")],
    );
}

#[test]
fn kvm_shared_mappings_of_files_are_the_files_as_on_linux() {
    if !require_kvm() {
        return;
    }
    tells_the_same(
        "shared_files",
        &[
            ("/both_ways/named", "has: \"wRITTEN\""),
            ("/both_ways/unnamed", "and writable: \"wRITTEN\""),
            ("/both_ways/memory", "the other: \"WRITTEN\""),
            ("/both_ways/shm", "and writable: \"wRITTEN\""),
            ("/sizes/unnamed", "behind: SIGBUS 2 there"),
            ("/sizes/memory", "wrong pages: 0"),
            ("/ring/memory", "wrong: 0, "),
            ("/ring/shm", "moved: F "),
            ("/threads/shm", "count: 20000"),
            ("/errors/named", "to write, of a reader: EACCES"),
        ],
    );
    let mut guest = Function::new(&guest("shared_files"));
    let failure = guest.failure("/dies");
    assert!(failure.contains("SIGBUS"), "{failure}");
}

#[test]
fn kvm_reservations_may_be_as_large_as_on_linux_and_cost_nothing() {
    if !require_kvm() {
        return;
    }
    tells_the_same(
        "reservations",
        &[
            ("/1", "reserved: 1 TiB\nwrong: 0"),
            ("/16", "reserved: 16 TiB\nwrong: 0"),
            ("/100", "reserved: 100 TiB\nwrong: 0"),
            ("/wishes", "colours wrong: 0"),
        ],
    );
    let mut guest = Function::new(&guest("reservations"));
    let written = |guest: &mut Function, target: &str| {
        let answer = guest.send("GET", target, b"").result.unwrap();
        let bytes = guest.slot.private_bytes().unwrap();
        guest.slot.reset().unwrap();
        (String::from_utf8(answer.body).unwrap(), bytes)
    };
    let (_, usual) = written(&mut guest, "/cost/1");
    let (ns, bytes) = written(&mut guest, "/cost/16384");
    let ns: u64 = ns.trim().parse().unwrap();
    println!(
        "16 TiB reserved, given up and unmapped: {ns} ns, {bytes} bytes written beside {usual}"
    );
    // No page table among them, so that the reset is the usual one.
    assert!(bytes <= usual + 4096, "{bytes} against {usual}");
    assert!(
        ns < patience(Duration::from_millis(1)).as_nanos() as u64,
        "{ns} ns"
    );
}

#[test]
fn kvm_memory_is_moved_advised_and_locked_as_on_linux() {
    if !require_kvm() {
        return;
    }
    tells_the_same(
        "memory_calls",
        &[
            ("/moved/small", "wrong around it: 0"),
            ("/moved/large", "larger: fine, lost: 0, new: 0"),
            ("/moved/reserved", "there: 1, lost: 0"),
            ("/stays", "lost: 0, empty: 1 1\napart: 0"),
            ("/twice", "two"),
            ("/advised", "populated: 32"),
            ("/locked", "mlock: 0"),
            ("/guarded", "guard: 2, there: 1"),
            ("/executable", "mprotect: 0"),
        ],
    );
}

#[test]
fn kvm_a_file_is_opened_and_changed_again_by_its_descriptor_as_on_linux() {
    if !require_kvm() {
        return;
    }
    tells_the_same(
        "opened_again",
        &[
            ("/file", "from its start: 6 \"hello\n\""),
            ("/nameless", "from its start: 6 \"hello\n\""),
            ("/directory", "names: 1"),
            ("/mode", "mode 600"),
            ("/holes", "ab....ghijkl, 12 bytes"),
        ],
    );
    let zeroes = Function::new(&guest("opened_again")).get("/zeroes");
    for line in [
        "ab....g...kl, 12 bytes",
        "cleared behind the end: 0\n12 bytes",
        "cleared and grown: 0\n110 bytes",
    ] {
        assert!(zeroes.contains(line), "{zeroes}");
    }
}

#[test]
fn kvm_handlers_are_told_which_floating_point_exception_it_was() {
    if !require_kvm() {
        return;
    }
    // "3 7 4 5 6", but for emulated machines that have no such exceptions.
    tells_the_same("float_signals", &[("/sse", " "), ("/x87", " ")]);
}
