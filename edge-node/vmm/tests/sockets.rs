//! What programs can count on when they talk to themselves: sockets within the guest, timers and waits. What a
//! guest tells is what the same program tells on the host.

mod common;

use common::{Function, each_libc, tells_the_same};
use holm_test_support::require_kvm;

#[test]
fn kvm_a_program_connects_to_itself_as_on_linux() {
    if !require_kvm() {
        return;
    }
    tells_the_same(
        "loopback",
        &[
            (
                "/names",
                "v4 accepted by dual peer: family 10, 28 bytes, ::ffff:127.0.0.1",
            ),
            ("/refused", "connect where none is any more: ECONNREFUSED"),
            ("/halves", "write to the shut half: EPIPE"),
            ("/flags", "sendmmsg: 3"),
            ("/options", "no delay: 0, 4 bytes, 1"),
            ("/times", "receive in vain: EAGAIN"),
            ("/edges", "its end came: 1"),
            ("/threads", "5000000"),
            ("/broken_off", "read: ECONNRESET\nwrite: EPIPE"),
        ],
    );
}

#[test]
fn kvm_local_sockets_have_names_as_on_linux() {
    if !require_kvm() {
        return;
    }
    tells_the_same(
        "local_sockets",
        &[
            ("/path", "a socket: 1"),
            (
                "/abstract",
                "client peer: family 1, 12 bytes, \"holm-test\"",
            ),
            ("/pair", "write: EPIPE"),
        ],
    );
}

#[test]
fn kvm_messages_keep_their_borders_as_on_linux() {
    if !require_kvm() {
        return;
    }
    tells_the_same(
        "message_borders",
        &[
            ("/pairs", "cut: 5"),
            ("/names", "a stream there: -1 1"),
            ("/udp", "told: ECONNREFUSED"),
        ],
    );
}

#[test]
fn kvm_programs_find_the_loopback_interface_as_on_linux() {
    if !require_kvm() {
        return;
    }
    tells_the_same(
        "interfaces",
        &[
            ("/names", "index of lo: 1"),
            ("/v4", "address 127.0.0.1 mask 255.0.0.0"),
            ("/controls", "flags of none: ENODEV"),
            ("/messages", "index 1, hardware 772, flags 49"),
            ("/agreement", "some: 1, different: 0\n"),
        ],
    );
    // A host may be without version 6.
    each_libc("interfaces", |path| {
        let told = Function::new(path).get("/v6");
        assert!(told.contains("address ::1 mask ffff:ffff:"), "{told}");
        let told = Function::new(path).get("/too_long");
        assert_eq!(told, "sent: EMSGSIZE\nanswered: EAGAIN\n");
    });
}

#[test]
fn kvm_what_a_thread_waits_with_may_be_taken_away_by_another() {
    if !require_kvm() {
        return;
    }
    each_libc("races", |path| {
        let mut guest = Function::new(path);
        assert_eq!(
            guest.get("/splice"),
            "4096 4096, then 4: spliced 4, received 4, left -1\n"
        );
        assert_eq!(guest.get("/rights"), "1 1: 8 this one, closed 0 0\n");
        assert_eq!(guest.get("/message"), "1, then 4 4\n");
    });
}

#[test]
fn kvm_a_call_that_waits_says_efault_when_its_memory_is_unmapped_as_on_linux() {
    if !require_kvm() {
        return;
    }
    tells_the_same(
        "unmapped_waits",
        &[
            ("/read", "read of a pipe: EFAULT"),
            ("/write", "write to a socket: EFAULT"),
            ("/wait", "epoll_wait: EFAULT"),
        ],
    );
}

#[test]
fn kvm_a_call_that_waits_goes_on_with_what_was_closed_meanwhile_as_on_linux() {
    if !require_kvm() {
        return;
    }
    tells_the_same(
        "closed_waits",
        &[
            ("/read", "epoll_wait: 1\ngot event 77"),
            ("/write", "a message to who is gone: ECONNREFUSED"),
            ("/whole", "no room for a whole one: EAGAIN"),
        ],
    );
}

#[test]
fn kvm_epoll_instances_watch_one_another_as_far_as_on_linux() {
    if !require_kvm() {
        return;
    }
    each_libc("nested_epolls", |path| {
        let mut guest = Function::new(path);
        // What Linux says since 6.17; older ones allow longer rows from the start.
        let (ok, last) = ("ok\n", "ELOOP\n");
        let from = |end: &str| format!("from the {end}: ");
        let mut expected = String::new();
        for end in [from("end"), from("start")] {
            expected += &[ok, ok, ok, ok, last]
                .map(|outcome| end.clone() + outcome)
                .concat();
        }
        expected += "a loop: ELOOP\nitself: EINVAL\nwatched at the end: ok\nbefore: 0\nthen: 1 1\n";
        assert_eq!(guest.get("/row"), expected);
        // Some hundred millions of ways.
        assert_eq!(guest.get("/ways"), "0 0, watched 0, then 1, ELOOP\n");
    });
}

#[test]
fn kvm_a_queue_that_found_no_memory_grows_when_there_is_some_again() {
    if !require_kvm() {
        return;
    }
    each_libc("short_queues", |path| {
        assert_eq!(
            Function::new(path).get("/"),
            "little 1, ready 0, drained 1, as much again 1, then all 1\n"
        );
    });
}

#[test]
fn kvm_timers_are_read_and_waited_for_as_on_linux() {
    if !require_kvm() {
        return;
    }
    tells_the_same(
        "timers",
        &[
            ("/once", "due: 1"),
            ("/again", "five took five: 1"),
            ("/edges", "due again: 1"),
            ("/refused", "too small: EINVAL"),
        ],
    );
}

#[test]
fn kvm_waits_say_what_is_left_of_their_time_as_on_linux() {
    if !require_kvm() {
        return;
    }
    tells_the_same(
        "waits_with_rest",
        &[("/rest", "left: 99, 1"), ("/epoll", "ready: 1\n7")],
    );
}

#[test]
fn kvm_a_server_asks_itself_and_another_listener_of_its_own() {
    if !require_kvm() {
        return;
    }
    each_libc("calls_itself", |path| {
        let mut guest = Function::new(path);
        for _ in 0..2 {
            assert_eq!(guest.get("/ok"), "ok\n");
            let text = guest.get("/twice");
            assert!(
                text.starts_with("HTTP/1.1 200 OK") && text.ends_with("from within\n"),
                "{text}"
            );
            assert_eq!(guest.get("/helper"), "hello from the helper, 5\n");
        }
    });
}
