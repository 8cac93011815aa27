//! `holm init`: the projects it makes build, and it overwrites nothing.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::fs;
use std::process::Command;

use common::{holm, holm_in};

#[test]
fn a_new_c_project_builds_into_a_program_that_holm_takes() {
    let dir = tempfile::tempdir().unwrap();
    holm_in(dir.path(), ["init", "greeter", "--lang", "c"]).exits(0);
    let project = dir.path().join("greeter");
    let built = holm_in(&project, ["build", "--json"]).exits(0).json();
    assert_eq!(built["function"], "greeter");
    assert_eq!(built["path"], "./main");
    assert!(
        built["digest"].as_str().unwrap().starts_with("sha256:"),
        "{built}"
    );
    assert!(built["bytes"].as_u64().unwrap() > 4096, "{built}");
}

#[test]
fn a_new_rust_project_builds_with_the_sdk() {
    let dir = tempfile::tempdir().unwrap();
    let project = dir.path().join("anywhere");
    let made = holm([
        "init",
        "greeter",
        "--json",
        "--dir",
        project.to_str().unwrap(),
    ])
    .exits(0);
    assert!(
        made.json()["sdk"].as_str().unwrap().ends_with("guest/sdk"),
        "{made:?}"
    );
    let built = holm(["build", "--json", "--dir", project.to_str().unwrap()])
        .exits(0)
        .json();
    assert!(
        built["path"]
            .as_str()
            .unwrap()
            .ends_with("/release/greeter"),
        "{built}"
    );
    assert!(
        built["kind"].as_str().unwrap().starts_with("static"),
        "{built}"
    );
}

/// The project that is made where the SDK is not at hand.
#[test]
fn the_plain_rust_template_compiles() {
    let dir = tempfile::tempdir().unwrap();
    let source = include_str!("../templates/rust-plain/main.rs.template");
    let path = dir.path().join("main.rs");
    fs::write(&path, source.replace("{{name}}", "plain")).unwrap();
    let status = Command::new("rustc")
        .args([
            "--edition",
            "2024",
            "-D",
            "warnings",
            "--emit",
            "metadata",
            "--out-dir",
        ])
        .args([dir.path(), &path])
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
fn without_a_name_the_function_is_called_like_the_directory() {
    let dir = tempfile::tempdir().unwrap();
    let project = dir.path().join("here-it-is");
    fs::create_dir(&project).unwrap();
    let made = holm_in(&project, ["init", "--lang", "c", "--json"])
        .exits(0)
        .json();
    assert_eq!(made["function"], "here-it-is");
    assert!(
        fs::read_to_string(project.join("holm.toml"))
            .unwrap()
            .contains("\"here-it-is\"")
    );
    let other = dir.path().join("Not A Name");
    fs::create_dir(&other).unwrap();
    holm_in(&other, ["init", "--lang", "c"])
        .exits(2)
        .complains_of(&["Not A Name", "holm init NAME"]);
}

#[test]
fn nothing_is_overwritten() {
    let dir = common::project(&[("main.c", "mine")]);
    let ran = holm_in(dir.path(), ["init", "greeter", "--lang", "c", "--dir", "."]).exits(2);
    ran.complains_of(&["main.c already", "--dir"]);
    assert_eq!(
        fs::read_to_string(dir.path().join("main.c")).unwrap(),
        "mine"
    );
    assert!(
        !dir.path().join("holm.toml").exists(),
        "nothing else is written either"
    );
}

#[test]
fn a_bad_name_and_a_wrong_sdk_path_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    holm_in(dir.path(), ["init", "Bad_Name"])
        .exits(2)
        .complains_of(&["Bad_Name", "a-z"]);
    holm_in(dir.path(), ["init", "good", "--sdk-path", "/"])
        .exits(2)
        .complains_of(&["not Holm's"]);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}
