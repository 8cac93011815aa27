//! What programs can count on when they talk to themselves: sockets within the guest, timers and waits. What a
//! guest tells is what the same program tells on the host.

mod common;

use std::path::Path;
use std::process::Command;

use common::Function;
use holm_test_support::{guest, musl_guest, require_kvm};

/// Both libcs.
fn each_libc(name: &str, mut test: impl FnMut(&Path)) {
    test(&guest(name));
    if let Some(path) = musl_guest(name) {
        test(&path);
    }
}

/// What the program tells on the host.
fn native(path: &Path, way: &str) -> String {
    let output = Command::new(path)
        .arg(way)
        .output()
        .expect("the program runs on the host");
    assert!(output.status.success(), "{way} on the host: {output:?}");
    let text = String::from_utf8(output.stdout).expect("guests tell text");
    let (_, body) = text
        .split_once("\r\n\r\n")
        .expect("guests answer with HTTP");
    body.to_owned()
}

/// Every way tells in a guest what it tells on the host, and this much.
fn tells_the_same(name: &str, ways: &[(&str, &str)]) {
    each_libc(name, |path| {
        let mut guest = Function::new(path);
        for (way, expected) in ways {
            let (there, here) = (native(path, way), guest.get(way));
            assert!(there.contains(expected), "{way} on the host: {there}");
            let pairs = there.lines().zip(here.lines());
            for (there, here) in pairs {
                assert_eq!(here, there, "{name} {way}: guest, then host");
            }
            assert_eq!(here, there, "{name} {way}: guest, then host");
        }
    });
}

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
