//! `holm build`: what it makes, and what it refuses with which text.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use common::{holm_in, project};

const MANIFEST: &str = "schema = 1\n[function]\nname = \"f\"\n";
const PROGRAM: &str = "int main(void) { return 0; }\n";

fn manifest(rest: &str) -> String {
    format!("{MANIFEST}{rest}")
}

#[test]
fn a_dynamic_program_is_refused_with_its_libraries_and_the_way_to_build_a_static_one() {
    let dir = project(&[
        ("holm.toml", MANIFEST),
        ("main.c", PROGRAM),
        ("Makefile", "f: main.c\n\tcc -o f main.c\n"),
    ]);
    holm_in(dir.path(), ["build"]).exits(2).complains_of(&[
        "linked dynamically",
        "libc.so.6",
        "cc -static",
        "crt-static",
        "CGO_ENABLED=0",
    ]);
}

#[test]
fn a_build_command_is_run_and_its_output_taken() {
    let rest =
        "[build]\ncommand = \"mkdir -p out && cc -static -o out/x main.c\"\noutput = \"out/x\"";
    let dir = project(&[("holm.toml", &manifest(rest)), ("main.c", PROGRAM)]);
    let ran = holm_in(dir.path(), ["build"]).exits(0);
    assert!(ran.stdout.starts_with("./out/x\n"), "{ran:?}");
    assert!(ran.stdout.contains("sha256:"), "{ran:?}");
}

#[test]
fn a_build_that_fails_says_so_with_the_builders_last_words() {
    let rest = "[build]\ncommand = \"echo the reason >&2; exit 7\"\noutput = \"x\"";
    let dir = project(&[("holm.toml", &manifest(rest))]);
    holm_in(dir.path(), ["build"])
        .exits(1)
        .complains_of(&["the reason", "the build failed"]);
    let error = holm_in(dir.path(), ["build", "--json"])
        .exits(1)
        .json_error();
    assert_eq!(error["kind"], "failure");
    assert_eq!(error["hint"], "the reason");
}

#[test]
fn a_build_that_makes_nothing_is_told_apart_from_one_that_fails() {
    let rest = "[build]\ncommand = \"true\"\noutput = \"x\"";
    let dir = project(&[("holm.toml", &manifest(rest))]);
    holm_in(dir.path(), ["build"])
        .exits(2)
        .complains_of(&["did not make ./x", "[build]"]);
    let dir = project(&[("holm.toml", &manifest("[build]\ncommand = \"true\""))]);
    holm_in(dir.path(), ["build"])
        .exits(2)
        .complains_of(&["output = \"PATH\""]);
}

#[test]
fn a_result_that_is_not_a_program_is_refused() {
    let rest = "[build]\ncommand = \"printf '#!/bin/sh\\n' > x\"\noutput = \"x\"";
    let dir = project(&[("holm.toml", &manifest(rest))]);
    holm_in(dir.path(), ["build"])
        .exits(2)
        .complains_of(&["not an ELF file but a script"]);
}

#[test]
fn a_program_that_does_not_fit_its_memory_limit_is_refused() {
    let rest = "[limits]\nmemory = \"3MiB\"\n[build]\ncommand = \"cc -static -o x main.c\"\noutput = \"x\"";
    let large = "static char room[64 << 20];\nint main(void) { return room[1]; }\n";
    let dir = project(&[("holm.toml", &manifest(rest)), ("main.c", large)]);
    holm_in(dir.path(), ["build"])
        .exits(2)
        .complains_of(&["its limit is 3MiB", "[limits]"]);
}

#[test]
fn a_directory_without_a_project_is_refused_with_what_to_do() {
    let dir = project(&[]);
    holm_in(dir.path(), ["build"])
        .exits(2)
        .complains_of(&["no holm.toml", "holm init"]);
    let dir = project(&[("holm.toml", MANIFEST)]);
    holm_in(dir.path(), ["build"])
        .exits(2)
        .complains_of(&["no Cargo.toml", "[build]"]);
    let dir = project(&[("holm.toml", MANIFEST), ("go.mod", "module f\n")]);
    holm_in(dir.path(), ["build"])
        .exits(2)
        .complains_of(&["CGO_ENABLED=0 go build"]);
}

#[test]
fn a_bad_manifest_is_refused_with_its_line_and_as_json_where_asked() {
    let dir = project(&[("holm.toml", &manifest("[limits]\nmemroy = \"1MiB\""))]);
    holm_in(dir.path(), ["build"]).exits(2).complains_of(&[
        "holm.toml: line 5",
        "`limits.memroy`",
        "did you mean `memory`?",
    ]);
    let ran = holm_in(dir.path(), ["--json", "build"]).exits(2);
    assert_eq!(ran.stdout, "");
    assert_eq!(ran.json_error()["kind"], "usage");
}
