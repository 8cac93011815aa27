//! `holm run`: exit statuses, what it prints, and what it refuses.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::fs;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use common::{Ran, holm};
use holm_test_support::{function, guest, require_kvm};
use serde_json::Value;

fn run(program: &Path, options: &[&str]) -> Ran {
    let program = program.to_str().unwrap();
    holm(["run", program].iter().chain(options))
}

fn body(report: &Value) -> Vec<u8> {
    BASE64.decode(report["body"].as_str().unwrap()).unwrap()
}

#[test]
fn a_file_that_is_no_program_is_wrong_usage() {
    let dir = common::project(&[("script", "#!/bin/sh\necho hello\n"), ("empty", "")]);
    run(&dir.path().join("script"), &[])
        .exits(2)
        .complains_of(&["not an ELF file but a script"]);
    run(&dir.path().join("empty"), &[])
        .exits(2)
        .complains_of(&["empty"]);
    run(&dir.path().join("absent"), &[])
        .exits(2)
        .complains_of(&["absent cannot be read"]);
    run(dir.path(), &[])
        .exits(2)
        .complains_of(&["cannot be read"]);
    let error = run(&dir.path().join("script"), &["--json"])
        .exits(2)
        .json_error();
    assert_eq!(error["kind"], "usage");
}

#[test]
fn options_that_make_no_sense_are_wrong_usage() {
    for (options, part) in [
        (["--timeout", "10"], "10s"),
        (["--timeout", "0s"], "1ms to 15m"),
        (["--memory", "64"], "64MiB"),
        (["--memory", "1KiB"], "1MiB to 4GiB"),
        (["--requests", "0"], "--requests"),
        (["--requests", "-1"], "--requests"),
        (["--header", "x"], "Name: value"),
        (["--header", "a b: c"], "not the name of a header"),
        (["--isolation", "none"], "request"),
        (["--env", "A"], "NAME=value"),
        (["--env", "PORT=1"], "set by Holm"),
        (["--path", "x"], "begins with /"),
        (["--method", "G T"], "GET or POST"),
        (["--frobnicate", "1"], "--frobnicate"),
    ] {
        run(Path::new("program"), &options)
            .exits(2)
            .complains_of(&[part]);
        let error = run(Path::new("program"), &[&options[..], &["--json"]].concat()).exits(2);
        assert_eq!(error.json_error()["kind"], "usage", "{options:?}");
    }
}

#[test]
fn kvm_the_last_response_is_printed_as_json_with_figures() {
    if !require_kvm() {
        return;
    }
    let options = ["--json", "--requests", "5", "--env", "HELLO_VERSION=v9"];
    let report = run(&function("hello"), &options).exits(0).json();
    assert_eq!(report["status"], 200);
    assert_eq!(body(&report), b"hello from v9\n");
    assert!(
        report["headers"]["content-type"]
            .as_str()
            .unwrap()
            .starts_with("text/plain")
    );
    assert!(report["ready_us"].as_u64().unwrap() > 0, "{report}");
    assert_eq!(report["invoke_us"]["n"], 5);
    let (p50, p99) = (&report["invoke_us"]["p50"], &report["invoke_us"]["p99"]);
    assert!(
        p50.as_u64().unwrap() > 0 && p50.as_u64() <= p99.as_u64(),
        "{report}"
    );
    assert!(
        report["exits_per_request"].as_f64().unwrap() >= 1.0,
        "{report}"
    );
    assert_eq!(report["log"], "");
}

#[test]
fn kvm_an_unmodified_c_server_answers_as_text() {
    if !require_kvm() {
        return;
    }
    let ran = run(&function("hello-c"), &[]).exits(0);
    assert!(ran.stdout.starts_with("HTTP 200\n"), "{ran:?}");
    assert!(ran.stdout.ends_with("\n\nhello from v1\n"), "{ran:?}");
}

#[test]
fn kvm_a_status_of_404_is_an_answer() {
    if !require_kvm() {
        return;
    }
    let report = run(&function("hello-c"), &["--json", "--path", "/nowhere"])
        .exits(0)
        .json();
    assert_eq!(report["status"], 404);
}

#[test]
fn kvm_a_body_of_any_bytes_reaches_the_program_and_comes_back() {
    if !require_kvm() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let bytes: Vec<u8> = (0..200_000u32).map(|n| (n * 7 % 256) as u8).collect();
    let file = dir.path().join("body");
    fs::write(&file, &bytes).unwrap();
    for name in ["hello", "hello-c"] {
        let options = ["--json", "--method", "POST", "--path", "/echo", "--body"];
        let options = [&options[..], &[file.to_str().unwrap()]].concat();
        let report = run(&function(name), &options).exits(0).json();
        assert_eq!(report["status"], 200, "{name}");
        assert!(body(&report) == bytes, "{name}: the body came back changed");
    }
}

#[test]
fn kvm_state_is_forgotten_between_requests_unless_the_instance_is_kept() {
    if !require_kvm() {
        return;
    }
    let states = |name: &str, isolation: &str| -> Vec<Vec<u8>> {
        let options = [
            "--json",
            "--each",
            "--requests",
            "3",
            "--path",
            "/state",
            "--isolation",
        ];
        let ran = run(&function(name), &[&options[..], &[isolation]].concat()).exits(0);
        ran.json_lines().iter().map(body).collect()
    };
    for name in ["hello", "hello-c"] {
        assert_eq!(states(name, "request"), [b"1\n", b"1\n", b"1\n"], "{name}");
        assert_eq!(states(name, "instance"), [b"1\n", b"2\n", b"3\n"], "{name}");
    }
}

#[test]
fn kvm_each_prints_an_object_for_every_response() {
    if !require_kvm() {
        return;
    }
    let ran = run(&function("hello"), &["--json", "--each", "--requests", "4"]).exits(0);
    let lines = ran.json_lines();
    assert_eq!(lines.len(), 4);
    for line in lines {
        assert_eq!(
            (&line["status"], &line["invoke_us"]["n"]),
            (&200.into(), &1.into())
        );
        assert_eq!(body(&line), b"hello from v1\n");
    }
}

#[test]
fn kvm_clones_of_one_snapshot_do_not_share_randomness() {
    if !require_kvm() {
        return;
    }
    let options = ["--json", "--each", "--requests", "8", "--path", "/random"];
    for name in ["hello", "hello-c"] {
        let ran = run(&function(name), &options).exits(0);
        let mut seen: Vec<Vec<u8>> = ran.json_lines().iter().map(body).collect();
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), 8, "{name}: a random value came twice");
    }
}

#[test]
fn kvm_a_crash_ends_with_3_a_report_and_the_last_log_lines() {
    if !require_kvm() {
        return;
    }
    let ran = run(
        &function("hello-c"),
        &["--env", "HELLO_CRASH=1", "--requests", "3"],
    )
    .exits(3);
    assert_eq!(ran.stdout, "");
    ran.complains_of(&[
        "the program failed on request 1 of 3",
        "ends in a write to address 0",
    ]);
    let error = run(&function("hello-c"), &["--env", "HELLO_CRASH=1", "--json"]).exits(3);
    assert_eq!(error.json_error()["kind"], "program");
}

#[test]
fn kvm_a_program_that_is_too_slow_ends_with_3_and_names_the_deadline() {
    if !require_kvm() {
        return;
    }
    let begun = std::time::Instant::now();
    let options = ["--path", "/sleep?ms=60000", "--timeout", "2s"];
    run(&function("hello"), &options)
        .exits(3)
        .complains_of(&["deadline"]);
    assert!(begun.elapsed().as_secs() < 30, "the deadline was not kept");
}

#[test]
fn kvm_a_program_that_is_no_server_ends_with_3() {
    if !require_kvm() {
        return;
    }
    let dir = common::project(&[
        (
            "holm.toml",
            "schema = 1\n[function]\nname = \"x\"\n[build]\noutput = \"x\"\n",
        ),
        (
            "main.c",
            "#include <stdio.h>\nint main(void) { puts(\"done already\"); return 5; }\n",
        ),
        ("Makefile", "x: main.c\n\tcc -static -o x main.c\n"),
    ]);
    common::holm_in(dir.path(), ["build"]).exits(0);
    let ran = run(&dir.path().join("x"), &[]).exits(3);
    ran.complains_of(&["before it waited for a request", "done already"]);
    // What it lacks may be far above its last lines.
    run(&guest("lacks_calls"), &[]).exits(3).complains_of(&[
        "before it waited for a request",
        "exited with status 3",
        "the last line",
        "system calls that it made and that are not supported: clone, execve, number 461",
    ]);
    run(&guest("needs_io_uring"), &[])
        .exits(3)
        .complains_of(&["and Holm too: io_uring_setup"]);
}
