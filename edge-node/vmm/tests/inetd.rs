//! Programs that are run as under inetd: their caller is at their standard input and output, and each
//! serves one request.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::{Function, boot, config, unpack};
use holm_model::bundle::{Collected, Files};
use holm_test_support::{busybox, guest, musl_guest, require_kvm};
use holm_vmm::GuestConfig;

/// A configuration for a program with these arguments.
fn inetd(args: &[&str]) -> GuestConfig {
    GuestConfig {
        args: args.iter().map(|text| (*text).to_owned()).collect(),
        inetd: true,
        shared: false,
        ..config(&[])
    }
}

fn each_libc(mut test: impl FnMut(&Path)) {
    test(&guest("inetd"));
    if let Some(path) = musl_guest("inetd") {
        test(&path);
    }
}

#[test]
fn kvm_a_program_for_inetd_answers_and_ends() {
    if !require_kvm() {
        return;
    }
    each_libc(|path| {
        let mut guest = Function::with(path, &inetd(&["inetd"]));
        for _ in 0..3 {
            assert_eq!(guest.get("/ok"), "ok\n");
        }
        assert_eq!(
            guest.get("/names"),
            "1 1\n",
            "a socket with names, and stderr is none"
        );
        let outcome = guest.fresh("GET", "/until_exit", b"");
        let response = outcome.result.unwrap();
        assert_eq!(response.body, b"until the exit\n");
        assert!(
            response
                .headers
                .contains(&("x-way".into(), b"here".to_vec()))
        );
        assert_eq!(outcome.log, "serving\n");
        assert_eq!(guest.get("/until_failure"), "all the same\n");
        assert_eq!(guest.get("/end"), "");
        for size in [0, 1, 100_000, 1_000_000] {
            let body: Vec<u8> = (0..size).map(|n: u32| (n % 251) as u8).collect();
            let outcome = guest.fresh("POST", "/echo", &body);
            assert!(outcome.result.unwrap().body == body, "{size} bytes");
        }
    });
}

#[test]
fn kvm_whatever_uses_the_connection_first_is_where_a_program_is_ready() {
    if !require_kvm() {
        return;
    }
    each_libc(|path| {
        let mut polls = Function::with(path, &inetd(&["inetd", "polls"]));
        std::thread::sleep(Duration::from_millis(700));
        for _ in 0..2 {
            assert_eq!(
                polls.get("/ok"),
                "ok\n",
                "its timeout of 500 ms began with the request"
            );
        }
        let mut sleeps = Function::with(path, &inetd(&["inetd", "sleeps"]));
        assert_eq!(sleeps.prepared.log, b"slept\n", "not yet ready");
        let outcome = sleeps.fresh("GET", "/ok", b"");
        assert_eq!(
            (outcome.result.unwrap().body, outcome.log),
            (b"ok\n".to_vec(), String::new())
        );
        let mut speaks = Function::with(path, &inetd(&["inetd", "speaks-first"]));
        for _ in 0..2 {
            assert_eq!(speaks.get("/"), "unasked\n");
        }
    });
}

#[test]
fn kvm_an_alarm_that_was_set_before_the_request_counts_from_the_request() {
    if !require_kvm() {
        return;
    }
    let mut guest = Function::with(&guest("inetd"), &inetd(&["inetd", "alarm"]));
    std::thread::sleep(Duration::from_millis(2600));
    for _ in 0..2 {
        assert_eq!(
            guest.get("/alarm"),
            "0 2 1\n",
            "rang, seconds left, time has passed"
        );
    }
}

#[test]
fn kvm_a_program_that_ends_without_an_answer_is_told_so() {
    if !require_kvm() {
        return;
    }
    each_libc(|path| {
        let mut guest = Function::with(path, &inetd(&["inetd"]));
        assert!(
            guest
                .failure("/silent")
                .contains("exited with status 0 before it answered")
        );
        assert!(
            guest
                .failure("/exit")
                .contains("exited with status 7 before it answered")
        );
        assert!(
            guest
                .failure("/half")
                .contains("exited with status 0 before it answered")
        );
        for (way, part) in [
            ("ends", "exited with status 3 before it was ready"),
            ("closes", "closed the connection without answering"),
        ] {
            let error = boot(path, &inetd(&["inetd", way])).unwrap_err();
            assert!(error.to_string().contains(part), "{way}: {error}");
        }
    });
}

#[test]
fn kvm_a_program_that_forks_is_told_of_inetd() {
    if !require_kvm() {
        return;
    }
    let mut guest = Function::with(&guest("inetd"), &inetd(&["inetd"]));
    let outcome = guest.fresh("GET", "/fork", b"");
    assert_eq!(outcome.result.unwrap().body, b"-1 38\n");
    assert!(
        outcome.log.contains("ENOSYS") && outcome.log.contains("`inetd = true`"),
        "{}",
        outcome.log
    );
}

/// A small site in /www of a guest.
fn site() -> Files {
    let mut tree = Collected::default();
    let long: Vec<u8> = (0..300_000).map(|n: u32| (n * 7 % 251) as u8).collect();
    let files: [(&str, &[u8]); 7] = [
        ("/www/index.html", b"<p>welcome</p>\n"),
        ("/www/style.css", b"p { color: green }\n"),
        ("/www/empty.txt", b""),
        ("/www/long.bin", &long),
        ("/www/docs/index.html", b"<p>docs</p>\n"),
        ("/www/docs/a page.txt", b"with a space\n"),
        ("/etc/httpd.conf", b"# nothing\n"),
    ];
    for (path, content) in files {
        tree.file(path.as_bytes(), false, content.to_vec()).unwrap();
    }
    tree.directory(b"/www/bare").unwrap();
    tree.link(b"/www/newest.css", b"style.css").unwrap();
    tree.finish().unwrap()
}

/// Status, headers but for Date in order, and body.
type Answer = (u16, Vec<(String, Vec<u8>)>, Vec<u8>);

/// What busybox answers when it is spawned as inetd spawns it, to the request as a guest sees it.
fn natively(root: &Path, method: &str, target: &str, headers: &[(&str, &str)]) -> Answer {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let mut caller = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (connection, _) = listener.accept().unwrap();
    let mut child = Command::new(busybox())
        .args(["httpd", "-i", "-h"])
        .arg(root)
        .stdin(OwnedFd::from(connection.try_clone().unwrap()))
        .stdout(OwnedFd::from(connection))
        .spawn()
        .unwrap();
    let mut request = format!("{method} {target} HTTP/1.1\r\nHost: guest.test\r\n");
    for (name, value) in headers {
        request += &format!("{name}: {value}\r\n");
    }
    request += "Connection: close\r\n\r\n";
    caller.write_all(request.as_bytes()).unwrap();
    let mut bytes = Vec::new();
    caller.read_to_end(&mut bytes).unwrap();
    assert!(child.wait().unwrap().success());
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n");
    let (head, body) = bytes.split_at(end.unwrap() + 4);
    let head = std::str::from_utf8(head).unwrap();
    let mut lines = head.trim_end().split("\r\n");
    let status = lines.next().unwrap().split(' ').nth(1).unwrap();
    let headers = lines.map(|line| {
        let (name, value) = line.split_once(':').unwrap();
        (name.to_ascii_lowercase(), value.trim().as_bytes().to_vec())
    });
    let headers = headers.filter(|(name, _)| name != "date").collect();
    (status.parse().unwrap(), headers, body.to_vec())
}

#[test]
fn kvm_busybox_httpd_serves_the_same_from_an_artifact_as_under_inetd() {
    if !require_kvm() {
        return;
    }
    let files = site();
    let folder = tempfile::tempdir().unwrap();
    unpack(&files, "/www", folder.path());
    let config = GuestConfig {
        files,
        ..inetd(&["busybox", "httpd", "-i", "-h", "/www"])
    };
    let mut guest = Function::with(&busybox(), &config);
    let mut etag = None;
    let none: &[(&str, &str)] = &[];
    let mut requests = vec![
        ("GET", "/", none),
        ("GET", "/index.html", none),
        ("HEAD", "/index.html", none),
        ("GET", "/style.css", none),
        ("GET", "/newest.css", none),
        ("GET", "/empty.txt", none),
        ("GET", "/long.bin", none),
        ("HEAD", "/long.bin", none),
        ("GET", "/docs", none),
        ("GET", "/docs/", none),
        ("GET", "/docs/a%20page.txt", none),
        ("GET", "/bare/", none),
        ("GET", "/missing", none),
        ("GET", "/docs/missing?query", none),
        ("GET", "/../etc/httpd.conf", none),
        ("PUT", "/index.html", none),
        ("GET", "/long.bin", &[("Range", "bytes=0-9")]),
        ("GET", "/long.bin", &[("Range", "bytes=1000-200999")]),
        ("GET", "/long.bin", &[("Range", "bytes=299990-")]),
        ("GET", "/long.bin", &[("Range", "bytes=400000-")]),
        ("GET", "/index.html", &[("Accept-Encoding", "gzip")]),
    ];
    for (method, target, headers) in requests.drain(..) {
        let native = natively(folder.path(), method, target, headers);
        let lower: Vec<(String, &str)> = headers
            .iter()
            .map(|(name, value)| (name.to_ascii_lowercase(), *value))
            .collect();
        let lower: Vec<(&str, &str)> = lower
            .iter()
            .map(|(name, value)| (name.as_str(), *value))
            .collect();
        let outcome = guest.send_with(method, target, &lower, b"");
        let response = match outcome.result {
            Ok(response) => response,
            Err(failure) => panic!("{method} {target}: {failure}\n{}", outcome.log),
        };
        guest.slot.reset().unwrap();
        let headers = response
            .headers
            .into_iter()
            .filter(|(name, _)| name != "date");
        let inside: Answer = (response.status, headers.collect(), response.body);
        assert_eq!(
            (inside.0, &inside.1),
            (native.0, &native.1),
            "{method} {target}"
        );
        // This busybox sends a body for HEAD too, which no caller may get.
        let body = if method == "HEAD" {
            &b""[..]
        } else {
            &native.2
        };
        assert!(inside.2 == body, "{method} {target}: another body");
        if target == "/index.html" && method == "GET" {
            etag = inside.1.into_iter().find(|(name, _)| name == "etag");
        }
    }
    if let Some((_, etag)) = etag {
        let etag = String::from_utf8(etag).unwrap();
        let headers = [("if-none-match", etag.as_str())];
        let outcome = guest.send_with("GET", "/index.html", &headers, b"");
        assert_eq!(outcome.result.unwrap().status, 304);
    }
}
