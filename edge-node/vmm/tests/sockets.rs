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
fn kvm_what_a_thread_waits_with_may_be_taken_away_by_another() {
    if !require_kvm() {
        return;
    }
    each_libc("races", |path| {
        let mut guest = Function::new(path);
        assert_eq!(guest.get("/splice"), "4096 4096, spliced 1, then 4 4\n");
        assert_eq!(guest.get("/rights"), "1 1: 8 this one, closed 0 0\n");
        assert_eq!(guest.get("/message"), "1, then 4 4\n");
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
