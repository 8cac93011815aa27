//! `holm dev`: serves a project, follows its sources, survives a broken build.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use common::{Background, get, holm, holm_in, project};
use holm_test_support::{require_kvm, write};

fn start(dir: &tempfile::TempDir) -> (Background, String) {
    let dir = dir.path().to_str().unwrap();
    let dev = Background::start(["dev", "--json", "--listen", "127.0.0.1:0", "--dir", dir]);
    let url = dev.event("listening")["url"].as_str().unwrap().to_owned();
    (dev, url)
}

fn c_project() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    holm(["init", "greeter", "--lang", "c", "--dir", path]).exits(0);
    dir
}

#[test]
fn a_directory_without_a_project_is_wrong_usage() {
    let dir = project(&[]);
    holm_in(dir.path(), ["dev"])
        .exits(2)
        .complains_of(&["no holm.toml", "holm init"]);
}

#[test]
fn kvm_dev_serves_the_function_and_follows_an_edit() {
    if !require_kvm() {
        return;
    }
    let dir = c_project();
    let (dev, url) = start(&dir);
    dev.event("serving");
    assert_eq!(get(&url, "/"), (200, "hello from greeter\n".into()));
    assert_eq!(get(&url, "/nowhere").0, 404);
    let request = dev.event("request");
    assert_eq!(
        (&request["path"], &request["status"]),
        (&"/".into(), &200.into())
    );

    let source = std::fs::read_to_string(dir.path().join("main.c")).unwrap();
    write(
        &dir.path().join("main.c"),
        &source.replace("%s from", "%s again from"),
    );
    dev.event("serving");
    assert_eq!(get(&url, "/"), (200, "hello again from greeter\n".into()));
    assert_eq!(dev.terminate(), Some(0));
}

#[test]
fn kvm_dev_keeps_the_last_good_version_when_a_build_fails() {
    if !require_kvm() {
        return;
    }
    let dir = c_project();
    let (dev, url) = start(&dir);
    dev.event("serving");
    write(&dir.path().join("main.c"), "this is not C\n");
    let failed = dev.event("failed");
    assert!(
        failed["message"]
            .as_str()
            .unwrap()
            .contains("the build failed"),
        "{failed}"
    );
    assert_eq!(get(&url, "/"), (200, "hello from greeter\n".into()));
    assert_eq!(dev.terminate(), Some(0));
}

#[test]
fn kvm_dev_answers_for_a_function_that_crashes_and_serves_on() {
    if !require_kvm() {
        return;
    }
    let dir = c_project();
    let source = std::fs::read_to_string(dir.path().join("main.c")).unwrap();
    let crash = "if (strcmp(path, \"/crash\") == 0)\n        *(volatile int *)0 = 1;\n    \
                 if (strcmp(path, \"/\") == 0) {";
    write(
        &dir.path().join("main.c"),
        &source.replacen("if (strcmp(path, \"/\") == 0) {", crash, 1),
    );
    let (dev, url) = start(&dir);
    dev.event("serving");
    let (status, text) = get(&url, "/crash");
    assert_eq!(status, 502, "{text}");
    assert!(text.contains("the function did not answer"), "{text}");
    assert_eq!(get(&url, "/").0, 200);
    assert_eq!(dev.terminate(), Some(0));
}
