//! `cargo xtask bench`, `peers`, `soak` and `scale`: the commands of the crate `benches`, with all they need built for
//! release.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

/// Builds, and runs a command of `holm-bench` to its end.
pub(crate) fn run(workspace: &Path, command: &str, arguments: &[String]) -> Result<()> {
    let built = Command::new("cargo")
        .current_dir(workspace)
        .args(["build", "--quiet", "--release", "--locked"])
        .args(["--package", "benches", "--package", "holm"])
        .status()
        .context("cannot start cargo")?;
    ensure!(built.success(), "the benchmarks cannot be built");
    let release = workspace.join("target/release");
    let program = release.join("holm-bench");
    let status = Command::new(&program)
        .arg(command)
        .args(arguments)
        .env("HOLM_BIN", release.join("holm"))
        .status()
        .with_context(|| format!("cannot start {}", program.display()))?;
    match status.success() {
        true => Ok(()),
        false => bail!("`holm-bench {command}` did not succeed"),
    }
}
