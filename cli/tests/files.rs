//! Functions with files: what `holm build` and `holm run` take, and what they refuse.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::fs;
use std::os::unix::fs::symlink;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use common::{Background, Ran, holm, holm_in, project};
use holm_test_support::{busybox, busybox_site, guest, require_kvm, write};

const MANIFEST: &str = "schema = 1\n[function]\nname = \"site\"\n";
const BUILD: &str = "[build]\ncommand = \"cc -static -o x main.c\"\noutput = \"x\"\n";
const PROGRAM: &str = "int main(void) { return 0; }\n";

/// A project whose `[files]` has these lines.
fn site(lines: &str) -> tempfile::TempDir {
    project(&[
        ("holm.toml", &format!("{MANIFEST}{BUILD}[files]\n{lines}")),
        ("main.c", PROGRAM),
        ("public/index.html", "<p>hello</p>\n"),
        ("public/css/style.css", "p { color: green }\n"),
        ("public/.well-known/text", "hidden\n"),
    ])
}

fn build(dir: &tempfile::TempDir) -> Ran {
    holm_in(dir.path(), ["--json", "build"])
}

#[test]
fn the_same_project_gives_the_same_artifact_wherever_and_whenever_it_is_built() {
    let one = site("\"/www\" = \"public\"");
    let report = build(&one).exits(0).json();
    // /, /www, css, .well-known, and three files.
    assert_eq!(report["files"], 7, "{report}");
    assert!(report["artifact_bytes"].as_u64() > report["bytes"].as_u64());
    let other = site("\"/www\" = \"public\"");
    fs::copy(one.path().join("x"), other.path().join("x")).unwrap();
    let manifest = fs::read_to_string(other.path().join("holm.toml")).unwrap();
    write(
        &other.path().join("holm.toml"),
        &manifest.replace("cc -static -o x main.c", "true"),
    );
    let again = build(&other).exits(0).json();
    assert_eq!(again["digest"], report["digest"]);
    write(&other.path().join("public/index.html"), "<p>other</p>\n");
    let changed = build(&other).exits(0).json();
    assert_ne!(changed["digest"], report["digest"]);
    let text = holm_in(other.path(), ["build"]).exits(0).stdout;
    assert!(text.contains("with 7 files and directories"), "{text}");
}

#[test]
fn files_that_cannot_be_taken_are_refused_with_the_line_of_the_manifest() {
    let refused = |lines: &str, parts: &[&str]| {
        let dir = site(lines);
        holm_in(dir.path(), ["build"]).exits(2).complains_of(parts);
    };
    refused(
        "\"/www\" = \"absent\"",
        &["[files] \"/www\" = \"absent\"", "No such file"],
    );
    refused("\"/tmp/www\" = \"public\"", &["line 8", "the guest's own"]);
    refused("\"/www\" = \"/etc\"", &["line 8", "relative to holm.toml"]);
    refused("\"/www\" = \"../x\"", &["line 8", "without `..`"]);
    refused(
        "\"/www\" = \"public\"\n\"/www/more\" = \"public\"",
        &["line 9", "another line"],
    );
    refused(
        "\"/\" = \"public/css\"\n\"/etc/motd\" = \"main.c\"",
        &["another line"],
    );
    refused("\"/etc\" = \"main.c\"", &["`/etc`"]);
}

#[test]
fn links_that_lead_out_of_what_is_taken_are_refused() {
    let dir = site("\"/www\" = \"public\"");
    symlink("css/style.css", dir.path().join("public/newest.css")).unwrap();
    symlink("../index.html", dir.path().join("public/css/home")).unwrap();
    assert_eq!(build(&dir).exits(0).json()["files"], 9);
    for (name, to) in [("out", "../main.c"), ("passwords", "/etc/passwd")] {
        let link = dir.path().join("public").join(name);
        symlink(to, &link).unwrap();
        holm_in(dir.path(), ["build"]).exits(2).complains_of(&[
            name,
            "symbolic link out of it",
            to,
        ]);
        fs::remove_file(link).unwrap();
    }
    let dir = site("\"/www\" = \"elsewhere\"");
    symlink("/etc", dir.path().join("elsewhere")).unwrap();
    holm_in(dir.path(), ["build"])
        .exits(2)
        .complains_of(&["leads out of the project, to /etc"]);
    let dir = site("\"/www\" = \"public\"");
    let pipe = dir.path().join("public/pipe");
    assert!(
        std::process::Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .unwrap()
            .success()
    );
    holm_in(dir.path(), ["build"])
        .exits(2)
        .complains_of(&["public/pipe is neither a file nor a directory"]);
}

#[test]
fn options_for_files_and_inetd_that_make_no_sense_are_wrong_usage() {
    let program = guest("state");
    let run = |options: &[&str]| holm(["run", program.to_str().unwrap()].iter().chain(options));
    for (options, part) in [
        (&["--files", "/www"][..], "/PATH/IN/THE/GUEST=PATH"),
        (&["--files", "www=/etc"], "absolute path of the guest"),
        (&["--files", "/proc/x=/etc"], "the guest's own"),
        (&["--files", "/www=/does/not/exist"], "cannot be read"),
        (
            &["--inetd", "--isolation", "instance"],
            "do not go together",
        ),
    ] {
        run(options).exits(2).complains_of(&[part]);
    }
}

fn body(report: &serde_json::Value) -> String {
    let bytes = BASE64.decode(report["body"].as_str().unwrap()).unwrap();
    String::from_utf8(bytes).unwrap()
}

#[test]
fn kvm_a_program_gets_its_arguments_and_its_files() {
    if !require_kvm() {
        return;
    }
    let program = guest("env_and_args");
    let program = program.to_str().unwrap();
    let report = holm(["run", program, "--json", "--", "-v", "two words"])
        .exits(0)
        .json();
    assert!(body(&report).contains("env_and_args"), "{}", body(&report));
    assert!(
        body(&report).contains("-v") && body(&report).contains("two words"),
        "{}",
        body(&report)
    );
    let dir = site("");
    let files = format!("/www={}", dir.path().join("public").display());
    let program = guest("brought_files");
    let options = [
        "--json",
        "--files",
        &files,
        "--path",
        "/file?/www/css/style.css",
    ];
    let report = holm(["run", program.to_str().unwrap()].iter().chain(&options))
        .exits(0)
        .json();
    assert_eq!(body(&report), "p { color: green }\n");
}

#[test]
fn kvm_busybox_httpd_serves_a_directory() {
    if !require_kvm() {
        return;
    }
    let busybox = busybox();
    let dir = site("");
    let files = format!("/www={}", dir.path().join("public").display());
    let run = |path: &str| {
        let options = [
            "--json",
            "--inetd",
            "--files",
            &files,
            "--requests",
            "3",
            "--path",
            path,
        ];
        let arguments = ["--", "httpd", "-i", "-h", "/www"];
        let report = holm(
            ["run", busybox.to_str().unwrap()]
                .iter()
                .chain(&options)
                .chain(&arguments),
        )
        .exits(0)
        .json();
        (report["status"].as_u64().unwrap(), body(&report))
    };
    assert_eq!(run("/"), (200, "<p>hello</p>\n".into()));
    assert_eq!(run("/.well-known/text"), (200, "hidden\n".into()));
    assert_eq!(run("/absent").0, 404);
}

#[test]
fn kvm_dev_serves_files_and_follows_their_edits() {
    if !require_kvm() {
        return;
    }
    let manifest = busybox_site("");
    let dir = project(&[("holm.toml", &manifest), ("public/index.html", "one\n")]);
    let path = dir.path().to_str().unwrap();
    let dev = Background::start(["dev", "--json", "--listen", "127.0.0.1:0", "--dir", path]);
    let url = dev.event("listening")["url"].as_str().unwrap().to_owned();
    let get = || common::get(&url, "/");
    dev.event("serving");
    assert_eq!(get(), (200, "one\n".into()));
    write(&dir.path().join("public/index.html"), "two\n");
    dev.event("serving");
    assert_eq!(get(), (200, "two\n".into()));
}
