//! Building guests: the C compiler for test guests, cargo and make for sample functions.
//!
//! A program is made beside its place and renamed into it, so that tests of several processes may
//! build the same one at the same time.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::SystemTime;

/// The target that functions are built for.
const TARGET: &str = "x86_64-unknown-linux-gnu";

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn sources() -> PathBuf {
    workspace().join("tests/guests")
}

/// Cargo's target directory of this workspace.
pub(crate) fn target_dir() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(directory) => workspace().join(directory),
        None => workspace().join("target"),
    }
}

/// Names of all test guests, in order.
pub(crate) fn names() -> Vec<String> {
    let directory = sources();
    let entries = fs::read_dir(&directory)
        .unwrap_or_else(|error| panic!("cannot list {}: {error}", directory.display()));
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter_map(|file| Some(file.strip_suffix(".c")?.to_owned()))
        .collect();
    names.sort();
    names
}

/// `musl-gcc`, where it is installed.
pub(crate) fn musl_compiler() -> Option<&'static str> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .any(|dir| dir.join("musl-gcc").is_file())
        .then_some("musl-gcc")
}

/// Compiles the test guest `name` to `output`.
pub(crate) fn compile(name: &str, compiler: &str, output: &Path) {
    let source = sources().join(format!("{name}.c"));
    assert!(
        source.is_file(),
        "there is no test guest {}",
        source.display()
    );
    // Headers of a guest that is more than one file lie in a folder of its name.
    let headers: Vec<PathBuf> = fs::read_dir(sources().join(name))
        .map(|entries| {
            entries
                .filter_map(|entry| Some(entry.ok()?.path()))
                .collect()
        })
        .unwrap_or_default();
    let shared = ["guest.h", "gates.h", "threads.h"].map(|header| sources().join(header));
    let inputs: Vec<&Path> = [source.as_path()]
        .into_iter()
        .chain(shared.iter().map(PathBuf::as_path))
        .chain(headers.iter().map(PathBuf::as_path))
        .collect();
    if is_newer(output, &inputs) {
        return;
    }
    let made = beside(output);
    run(Command::new(compiler)
        .args([
            "-std=gnu11",
            "-static",
            "-O1",
            "-g",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-o",
        ])
        .arg(&made)
        .arg(&source));
    put(&made, output);
}

/// Builds the sample function `name` to `output`, with what its own build needs below `directory`.
pub(crate) fn function(name: &str, directory: &Path, output: &Path) {
    let source = workspace().join("guest/functions").join(name);
    let made = beside(output);
    if source.join("Cargo.toml").is_file() {
        // A target directory of its own: the tests' cargo may hold the lock of the usual one.
        let target_dir = directory.join("cargo");
        run(Command::new(env!("CARGO"))
            .current_dir(&source)
            .env("RUSTFLAGS", "-C target-feature=+crt-static")
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .args([
                "build",
                "--quiet",
                "--locked",
                "--release",
                "--target",
                TARGET,
            ])
            .arg("--target-dir")
            .arg(&target_dir));
        let built = target_dir.join(TARGET).join("release").join(name);
        copy(&built, &made);
    } else {
        run(Command::new("make")
            .arg("--silent")
            .arg("-C")
            .arg(&source)
            .arg(argument("OUT=", &made)));
    }
    put(&made, output);
}

fn argument(name: &str, value: &Path) -> std::ffi::OsString {
    let mut argument = std::ffi::OsString::from(name);
    argument.push(value);
    argument
}

/// Whether `output` was made after the last change of all `inputs`.
fn is_newer(output: &Path, inputs: &[&Path]) -> bool {
    let changed = |path: &Path| -> Option<SystemTime> { fs::metadata(path).ok()?.modified().ok() };
    let Some(made) = changed(output) else {
        return false;
    };
    inputs
        .iter()
        .all(|input| changed(input).is_none_or(|input| input < made))
}

/// A name beside `output` that no other process or thread uses.
fn beside(output: &Path) -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let directory = output.parent().expect("an output is in a directory");
    fs::create_dir_all(directory)
        .unwrap_or_else(|error| panic!("cannot make {}: {error}", directory.display()));
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = output
        .file_name()
        .unwrap_or(OsStr::new("guest"))
        .to_string_lossy();
    directory.join(format!(".{name}.{}.{count}", std::process::id()))
}

fn copy(from: &Path, to: &Path) {
    fs::copy(from, to).unwrap_or_else(|error| panic!("cannot copy {}: {error}", from.display()));
}

fn put(made: &Path, output: &Path) {
    fs::rename(made, output)
        .unwrap_or_else(|error| panic!("cannot make {}: {error}", output.display()));
}

fn run(command: &mut Command) {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().unwrap_or_else(|error| {
        panic!("cannot start `{program}`, which builds test guests: {error}")
    });
    assert!(
        output.status.success(),
        "`{program}` could not build a test guest:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
