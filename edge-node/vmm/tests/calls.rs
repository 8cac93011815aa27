//! Single system calls and what belongs together with them: what a guest tells is what the same program tells on
//! the host.

mod common;

use common::{Function, config, each_libc, tells_the_same};
use holm_test_support::{guest, require_kvm};

#[test]
fn kvm_close_on_exec_is_kept_as_on_linux() {
    if !require_kvm() {
        return;
    }
    tells_the_same("close_on_exec", &[("/", "third copy: 1")]);
}

#[test]
fn kvm_a_breakpoint_is_a_signal_as_on_linux() {
    if !require_kvm() {
        return;
    }
    tells_the_same("breakpoint", &[("/", "handled: 5 code 128")]);
}

#[test]
fn kvm_signals_are_read_like_files_as_on_linux() {
    if !require_kvm() {
        return;
    }
    tells_the_same(
        "signal_descriptor",
        &[
            ("/read", "value 77"),
            ("/poll", "in epoll: 1"),
            ("/thread", "from a thread: 12"),
        ],
    );
}

#[test]
fn kvm_timers_send_signals_as_on_linux() {
    if !require_kvm() {
        return;
    }
    tells_the_same(
        "signal_timers",
        &[
            ("/signal", "value 42"),
            ("/missed", "missed some: 1"),
            ("/thread", "to the thread: 1"),
            ("/none", "over: 1"),
            ("/cpu", "rang while it ran: 1"),
            ("/refused", "settime: EINVAL"),
        ],
    );
}

#[test]
fn kvm_proc_tells_of_the_program_as_on_linux() {
    if !require_kvm() {
        return;
    }
    tells_the_same(
        "proc_self",
        &[
            ("/descriptors", "anon_inode:[eventpoll]"),
            ("/threads", "the other one"),
            ("/process", "stat 52"),
            (
                "/mappings",
                "stacks: 1, this one: 1, many: 1\nattributes: 0\non it: 1",
            ),
        ],
    );
}

#[test]
fn kvm_who_watches_files_is_told_as_on_linux() {
    if !require_kvm() {
        return;
    }
    tells_the_same("watches", &[("/", "renamed: [1 0x40 a cookie \"a\"]")]);
}

#[test]
fn kvm_fifos_are_pipes_with_a_name_as_on_linux() {
    if !require_kvm() {
        return;
    }
    tells_the_same(
        "fifos",
        &[
            ("/without_waits", "they have gone: 1 0x10"),
            ("/with_waits", "read: 13 \"from a thread\""),
            ("/names", "another name: 0\nnames: 2\n"),
        ],
    );
}

#[test]
fn kvm_memory_files_are_sealed_as_on_linux() {
    if !require_kvm() {
        return;
    }
    tells_the_same(
        "seals",
        &[
            ("/adding", "seals: 7"),
            ("/sizes", "from a page before: 4086"),
            ("/writing", "through the mapping: m"),
        ],
    );
    each_libc("seals", |path| {
        // What Linux says since 6.3; older ones do not know of it.
        let expected = "fstat: 0\nmode 666\nseals: 32\nchmod: EPERM\nchmod: 0\nboth: EINVAL\nexecutable: 0\nseals: 62\n";
        assert_eq!(Function::new(path).get("/executable"), expected);
    });
}

#[test]
fn kvm_a_file_is_mapped_in_place_of_memory_as_on_linux() {
    if !require_kvm() {
        return;
    }
    tells_the_same(
        "fixed_files",
        &[
            ("/private", "around: gg"),
            ("/private/reserved", "left: ac"),
            ("/shared/reserved", "in the mapping: F"),
            ("/ring/reserved", "und aro"),
        ],
    );
    // Program memory shows itself.
    let shared = Function::new(&guest("fixed_files")).get("/shared");
    assert!(shared.starts_with("mmap: ENOMEM\n"), "{shared}");
}

#[test]
fn kvm_a_directory_is_listed_whole_while_its_files_are_removed() {
    if !require_kvm() {
        return;
    }
    tells_the_same(
        "removed_while_listed",
        &[("/removes", "removed: 200\nrmdir: 0")],
    );
    // Not every file system of Linux keeps this.
    each_libc("removed_while_listed", |path| {
        let told = Function::new(path).get("/seeks");
        assert!(told.contains("the same: 1\nfew were left: 1"), "{told}");
    });
}

#[test]
fn kvm_events_have_all_the_names_that_linux_has_for_them() {
    if !require_kvm() {
        return;
    }
    tells_the_same(
        "normal_events",
        &[
            ("/sockets", "TCP, with something: 1 0x145"),
            ("/others", "a pipe: 1 0x41"),
        ],
    );
}

#[test]
fn kvm_what_is_always_ready_starves_nothing_else_in_an_epoll_instance() {
    if !require_kvm() {
        return;
    }
    tells_the_same("watched_in_turn", &[("/", "10 10 10 10 10 \n")]);
}

#[test]
fn kvm_the_full_device_has_no_room_as_on_linux() {
    if !require_kvm() {
        return;
    }
    tells_the_same("full_device", &[("/", "write: ENOSPC")]);
}

#[test]
fn kvm_a_program_is_ready_when_it_looks_for_requests_on_its_port() {
    if !require_kvm() {
        return;
    }
    for (way, steps) in [
        ("metrics", "1\n"),
        ("rests", "2\n"),
        ("looks", "3\n"),
        ("elsewhere", "4\n"),
    ] {
        let config = config(&[("WAY", way)]);
        let mut function = Function::with(&guest("listens_late"), &config);
        assert_eq!(function.get("/"), steps, "{way}");
    }
}

#[test]
fn kvm_a_private_mapping_of_which_is_given_up_what_was_written_shows_the_file() {
    if !require_kvm() {
        return;
    }
    tells_the_same(
        "file_copies",
        &[
            ("/", "all anew: abcd, behind the end: 0"),
            ("/", "its own: bc"),
        ],
    );
}

#[test]
fn kvm_ways_to_meet_congestion_and_new_numbers_are_named_as_on_linux() {
    if !require_kvm() {
        return;
    }
    tells_the_same(
        "congestion",
        &[("/", "unknown: ENOENT"), ("/", "36 bytes, version 4")],
    );
}
