//! Debian's kernel: downloaded as a package and unpacked, not installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use holm_tests::debian::{checked, unpack};

/// Modules that make /dev/kvm, in the order in which they are loaded.
const MODULES: [&str; 4] = ["irqbypass", "ccp", "kvm", "kvm-amd"];

/// A kernel and the modules it needs.
pub(crate) struct Kernel {
    /// Its image, as QEMU takes it.
    pub(crate) image: PathBuf,
    /// Uncompressed modules, in the order in which they are loaded.
    pub(crate) modules: Vec<PathBuf>,
}

/// The kernel that Debian's `linux-image-amd64` stands for, from a run before or from the registry.
pub(crate) fn fetch(root: &Path) -> Result<Kernel> {
    let package = package()?;
    let unpacked = root.join(&package);
    unpack(&[&package], &unpacked)?;
    let image = find(&unpacked.join("boot"), &|name| name.starts_with("vmlinuz-"))
        .with_context(|| format!("{package} holds no kernel image"))?;
    let modules = MODULES
        .iter()
        .map(|module| find_module(&unpacked, module))
        .collect::<Result<Vec<_>>>()
        .with_context(|| format!("{package} is not as expected"))?;
    Ok(Kernel { image, modules })
}

/// The package that holds the kernel: `linux-image-amd64` itself is empty and depends on it.
fn package() -> Result<String> {
    let output = Command::new("apt-cache")
        .args([
            "depends",
            "--no-recommends",
            "--no-suggests",
            "linux-image-amd64",
        ])
        .output()
        .context("cannot start apt-cache")?;
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with("linux-image-"))
        .map(str::to_owned)
        .context("apt knows no linux-image-amd64; run `apt-get update` first")
}

/// A module's file, uncompressed.
fn find_module(tree: &Path, module: &str) -> Result<PathBuf> {
    let plain = format!("{module}.ko");
    if let Some(path) = find(tree, &|name| name == plain) {
        return Ok(path);
    }
    let compressed = format!("{module}.ko.xz");
    let path = find(tree, &|name| name == compressed)
        .with_context(|| format!("there is no module {module}"))?;
    checked(
        Command::new("xz")
            .args(["--decompress", "--keep"])
            .arg(&path),
        "install xz-utils",
    )?;
    Ok(path.with_extension(""))
}

/// The first file below `directory` whose name is `wanted`.
fn find(directory: &Path, wanted: &dyn Fn(&str) -> bool) -> Option<PathBuf> {
    let mut directories = vec![directory.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).ok()?.flatten() {
            let path = entry.path();
            let kind = entry.file_type().ok()?;
            if kind.is_dir() {
                directories.push(path);
            } else if kind.is_file() && entry.file_name().to_str().is_some_and(wanted) {
                return Some(path);
            }
        }
    }
    None
}
