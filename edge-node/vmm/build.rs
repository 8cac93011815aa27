//! Builds the guest kernel, freestanding, with its own linker script and profile, so that no step
//! of its own is needed. The image is embedded in the VMM.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    let here = PathBuf::from(env::var("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(env::var("OUT_DIR").expect("cargo sets it"));
    let root = here
        .join("../..")
        .canonicalize()
        .expect("the workspace is there");
    for source in [
        "guest/kernel/src",
        "guest/kernel/Cargo.toml",
        "guest/kernel/kernel.ld",
        "proto/hostcall/src",
        "Cargo.lock",
    ] {
        println!("cargo::rerun-if-changed={}", root.join(source).display());
    }

    let image = build_kernel(&root, &out);
    println!("cargo::rustc-env=HOLM_KERNEL_IMAGE={}", image.display());
}

/// Runs a cargo of its own in a target directory of its own, so that it waits for no lock.
fn build_kernel(root: &Path, out: &Path) -> PathBuf {
    const TARGET: &str = "x86_64-unknown-linux-gnu";
    let script = root.join("guest/kernel/kernel.ld");
    let flags = [
        "-Crelocation-model=static".to_owned(),
        "-Clink-arg=-nostartfiles".to_owned(),
        "-Clink-arg=-nostdlib".to_owned(),
        "-Clink-arg=-static".to_owned(),
        "-Clink-arg=-no-pie".to_owned(),
        "-Clink-arg=-Wl,--build-id=none".to_owned(),
        format!("-Clink-arg=-T{}", script.display()),
        // The same image wherever the sources lie: snapshots carry its digest.
        format!("--remap-path-prefix={}=holm", root.display()),
    ];
    let target_dir = out.join("guest");
    let mut cargo = Command::new(env::var("CARGO").expect("cargo sets it"));
    cargo
        .current_dir(root)
        .args([
            "build",
            "--locked",
            "--package",
            "holm-kernel",
            "--bin",
            "holm-kernel",
        ])
        .args([
            "--features",
            "freestanding",
            "--profile",
            "guest",
            "--target",
            TARGET,
        ])
        .arg("--target-dir")
        .arg(&target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
    // What the outer cargo set for its own build says nothing about this one.
    for (name, _) in env::vars() {
        let outer = name == "RUSTFLAGS"
            || name == "RUSTC_WORKSPACE_WRAPPER"
            || name == "RUSTC_WRAPPER"
            || name == "CLIPPY_ARGS"
            || name.starts_with("CARGO_FEATURE_")
            || name.starts_with("CARGO_CFG_")
            || name.starts_with("CARGO_PROFILE_")
            || name.starts_with("CARGO_BUILD_");
        if outer {
            cargo.env_remove(name);
        }
    }
    let status = cargo.status().expect("cargo can be run");
    assert!(
        status.success(),
        "the guest kernel does not build; see above"
    );
    target_dir.join(TARGET).join("guest/holm-kernel")
}
