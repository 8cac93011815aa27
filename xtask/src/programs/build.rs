//! Building the programs, below `target/guest-programs`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use holm_test_support::Guest;

/// Where a program comes from.
#[derive(Clone, Copy)]
pub(crate) enum Source {
    /// A binary of `tests/programs/rust`.
    Rust(&'static str),
    /// `tests/programs/go`
    Go,
    /// `tests/programs/zig`
    Zig,
    /// `tests/programs/c/NAME.c` with glibc, and what it is linked with.
    C(&'static str, &'static [&'static str]),
    /// `tests/guests/NAME.c` with this libc.
    Guest(&'static str, &'static str),
    /// The machine's busybox.
    Busybox,
}

const TARGET: &str = "x86_64-unknown-linux-gnu";
const STATIC: &str =
    "target.x86_64-unknown-linux-gnu.rustflags=[\"-C\", \"target-feature=+crt-static\"]";
/// The version whose standard library the program is written for.
const ZIG: &str = "ziglang==0.13.0";

/// Where all of them are.
pub(crate) fn directory(workspace: &Path) -> Result<PathBuf> {
    let out = workspace.join("target/guest-programs");
    fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
    Ok(out.canonicalize()?)
}

/// Builds a program; gives where it is.
pub(crate) fn build(workspace: &Path, source: &Source) -> Result<PathBuf> {
    let out = directory(workspace)?;
    let sources = workspace.join("tests/programs").canonicalize()?;
    match *source {
        Source::Rust(name) => {
            run(
                Command::new("cargo")
                    .current_dir(workspace)
                    .env_remove("RUSTFLAGS")
                    .env_remove("CARGO_ENCODED_RUSTFLAGS")
                    .args([
                        "build",
                        "--quiet",
                        "--release",
                        "--locked",
                        "--package",
                        "holm-test-programs",
                    ])
                    .args([
                        "--bin",
                        name,
                        "--target",
                        TARGET,
                        "--config",
                        STATIC,
                        "--target-dir",
                    ])
                    .arg(&out),
                "a Rust toolchain",
            )?;
            Ok(out.join(TARGET).join("release").join(name))
        }
        Source::Go => {
            let program = out.join("go");
            run(
                Command::new("go")
                    .current_dir(sources.join("go"))
                    .env("CGO_ENABLED", "0")
                    .args(["build", "-o"])
                    .arg(&program)
                    .arg("."),
                "Debian's golang-go",
            )?;
            Ok(program)
        }
        Source::Zig => {
            let python = zig(&out)?;
            let program = out.join("zig");
            run(
                Command::new(python)
                    .current_dir(&out)
                    .args(["-m", "ziglang", "build-exe", "-O", "ReleaseSafe", "-target"])
                    .args(["x86_64-linux-musl", "--name", "zig"])
                    .arg(sources.join("zig/server.zig")),
                "PyPI's ziglang",
            )?;
            Ok(program)
        }
        Source::C(name, libraries) => {
            let program = out.join(name);
            run(
                Command::new("cc")
                    .args(["-O2", "-w", "-static", "-o"])
                    .arg(&program)
                    .arg(sources.join("c").join(name).with_extension("c"))
                    .args(libraries),
                "Debian's gcc, libsqlite3-dev and liblua5.4-dev",
            )?;
            Ok(program)
        }
        Source::Busybox => super::site::busybox(),
        Source::Guest("glibc", name) => Ok(Guest::Glibc(name.into()).build_into(&out)),
        Source::Guest("musl", name) => Ok(Guest::Musl(name.into()).build_into(&out)),
        Source::Guest(libc, _) => bail!("there is no libc {libc}"),
    }
}

/// A Python with the Zig compiler in it, of our own so that nothing is installed.
fn zig(out: &Path) -> Result<PathBuf> {
    let python = out.join("zig-compiler/bin/python");
    if !python.exists() {
        let folder = out.join("zig-compiler");
        run(
            Command::new("python3").args(["-m", "venv"]).arg(&folder),
            "Debian's python3-venv",
        )?;
        run(
            Command::new(folder.join("bin/pip")).args(["install", "--quiet", ZIG]),
            "PyPI",
        )?;
    }
    Ok(python)
}

fn run(command: &mut Command, needs: &str) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .with_context(|| format!("cannot start `{program}`; it needs {needs}"))?;
    // The linker warns of what static programs cannot do; that is not our matter here.
    ensure!(
        output.status.success(),
        "`{program}` failed; it needs {needs}:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
