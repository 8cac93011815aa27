//! The files that an artifact brings.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::path::Path;
use std::process::Command;

use common::{Function, config, unpack};
use holm_model::bundle::{Collected, Files};
use holm_test_support::{guest, musl_guest, require_kvm};
use holm_vmm::GuestConfig;

/// A configuration with files.
fn with_files(files: &Files) -> GuestConfig {
    GuestConfig {
        files: files.clone(),
        ..config(&[])
    }
}

fn bytes(count: usize) -> Vec<u8> {
    (0..count).map(|n| (n * 7 % 251) as u8).collect()
}

/// Files, directories and links of every kind, in /tree of a guest.
fn sample() -> Files {
    let mut tree = Collected::default();
    let file =
        |path: &str, executable, content: &[u8]| (path.to_owned(), executable, content.to_vec());
    let mut files = vec![
        file("index.html", false, b"<p>hello</p>\n"),
        file("empty.txt", false, b""),
        file("run", true, b"#!/bin/true\n"),
        file("large.bin", false, &bytes(50_000)),
        file("page.bin", false, &bytes(4096)),
        file("sub/deep.txt", false, b"0123456789"),
        file("sub-beside", false, b"not in sub"),
    ];
    files
        .extend((0..40).map(|n| file(&format!("many/file-{n}"), false, format!("{n}").as_bytes())));
    for (path, executable, content) in files {
        let path = format!("/tree/{path}");
        tree.file(path.as_bytes(), executable, content).unwrap();
    }
    tree.directory(b"/tree/sub/empty").unwrap();
    for (path, to) in [
        ("link", "index.html"),
        ("to-sub", "sub"),
        ("to-empty", "sub/empty"),
        ("dangling", "nothing/here"),
        ("loop", "loop"),
        ("through", "sub/back"),
        ("sub/back", "../to-sub"),
    ] {
        tree.link(format!("/tree/{path}").as_bytes(), to.as_bytes())
            .unwrap();
    }
    tree.finish().unwrap()
}

fn each_libc(mut test: impl FnMut(&Path)) {
    test(&guest("brought_files"));
    if let Some(path) = musl_guest("brought_files") {
        test(&path);
    }
}

#[test]
fn kvm_a_program_finds_the_same_as_in_a_directory_of_this_machine() {
    if !require_kvm() {
        return;
    }
    let files = sample();
    let folder = tempfile::tempdir().unwrap();
    unpack(&files, "/tree", folder.path());
    each_libc(|path| {
        let native = Command::new(path)
            .arg("--report")
            .arg(folder.path())
            .output()
            .unwrap();
        assert!(native.status.success(), "{native:?}");
        let native = String::from_utf8(native.stdout).unwrap();
        let mut guest = Function::with(path, &with_files(&files));
        for _ in 0..2 {
            let inside = guest.get("/report");
            for (here, there) in native.lines().zip(inside.lines()) {
                assert_eq!(there, here, "in a guest, and on this machine");
            }
            assert_eq!(inside.lines().count(), native.lines().count());
        }
        assert!(native.lines().count() > 80, "{native}");
    });
}

#[test]
fn kvm_what_an_artifact_brings_can_only_be_read() {
    if !require_kvm() {
        return;
    }
    each_libc(|path| {
        let mut guest = Function::with(path, &with_files(&sample()));
        assert_eq!(guest.get("/writes"), "fine\n");
    });
}

#[test]
fn kvm_a_file_is_sent_whole_whatever_its_size() {
    if !require_kvm() {
        return;
    }
    let mut tree = Collected::default();
    let sizes = [0, 1, 4095, 4096, 4097, 65_535, 65_536, 65_537, 1_000_000];
    for size in sizes {
        let path = format!("/files/{size}");
        tree.file(path.as_bytes(), false, bytes(size)).unwrap();
    }
    let mut guest = Function::with(
        &guest("brought_files"),
        &with_files(&tree.finish().unwrap()),
    );
    for size in sizes {
        let target = format!("/file?/files/{size}");
        let outcome = guest.fresh("GET", &target, b"");
        assert!(outcome.result.unwrap().body == bytes(size), "{size} bytes");
    }
}

#[test]
fn kvm_a_program_that_is_brought_as_a_file_finds_itself() {
    if !require_kvm() {
        return;
    }
    let path = guest("brought_files");
    let own = std::fs::read(&path).unwrap();
    let mut tree = Collected::default();
    tree.file(b"/function", true, own.clone()).unwrap();
    let mut function = Function::with(&path, &with_files(&tree.finish().unwrap()));
    assert_eq!(
        function.get("/size?/proc/self/exe"),
        format!("{}\n", own.len())
    );
    let outcome = function.fresh("GET", "/file?/proc/self/exe", b"");
    assert!(outcome.result.unwrap().body == own);
    let told = Function::new(&path).get("/file?/proc/self/exe");
    assert_eq!(told, "No such file or directory\n");
}

#[test]
fn kvm_files_in_etc_take_the_place_of_those_that_are_built_in() {
    if !require_kvm() {
        return;
    }
    let mut tree = Collected::default();
    tree.file(b"/etc/hosts", false, b"10.0.0.1 brought\n".to_vec())
        .unwrap();
    tree.file(b"/etc/motd", false, b"good day\n".to_vec())
        .unwrap();
    let mut guest = Function::with(
        &guest("brought_files"),
        &with_files(&tree.finish().unwrap()),
    );
    assert_eq!(guest.get("/size?/etc/hosts"), "17\n");
    assert_eq!(guest.get("/file?/etc/motd"), "good day\n");
    let listed = guest.get("/list?/etc");
    let mut names: Vec<&str> = listed.lines().collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), listed.lines().count(), "{listed}");
    for name in [".", "..", "hosts", "motd", "passwd", "nsswitch.conf"] {
        assert!(names.contains(&name), "{name} in {listed}");
    }
    let root = guest.get("/list?/");
    for name in ["dev", "etc", "proc", "sys", "tmp"] {
        assert_eq!(root.lines().filter(|one| *one == name).count(), 1, "{root}");
    }
}

#[test]
fn kvm_five_thousand_files_cost_a_request_nothing_that_it_does_not_read() {
    if !require_kvm() {
        return;
    }
    // Private bytes after a request that reads one file, with so many others beside it.
    let cost = |count: usize| {
        let mut tree = Collected::default();
        for number in 0..count {
            let path = format!("/www/{}/{number}.txt", number % 50);
            let content = format!("this is file {number}\n").repeat(200);
            tree.file(path.as_bytes(), false, content.into_bytes())
                .unwrap();
        }
        let files = tree.finish().unwrap();
        let mut guest = Function::with(&guest("brought_files"), &with_files(&files));
        let mut sizes = Vec::new();
        for number in [0, count / 2, count - 1] {
            let target = format!("/file?/www/{}/{number}.txt", number % 50);
            let response = guest.send("GET", &target, b"").result.unwrap();
            assert!(
                response
                    .body
                    .starts_with(format!("this is file {number}\n").as_bytes())
            );
            sizes.push(guest.slot.private_bytes().unwrap());
            guest.slot.reset().unwrap();
        }
        (files.bytes().len() as u64, sizes)
    };
    let (_, few) = cost(5);
    let (bytes, many) = cost(5000);
    assert!(bytes > 20_000_000, "{bytes}");
    for (few, many) in few.iter().zip(&many) {
        assert!(
            many <= &(few + 16 * 4096),
            "private bytes with 5 files: {few}, with 5000: {many}"
        );
        assert!(*many < 1 << 20, "{many}");
    }
}
