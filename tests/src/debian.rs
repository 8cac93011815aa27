//! Debian packages, unpacked and not installed.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

/// Downloads packages and has them at `unpacked`, unless they are there from a run before: all of them or none.
pub fn unpack(packages: &[&str], unpacked: &Path) -> Result<()> {
    if unpacked.is_dir() {
        return Ok(());
    }
    eprintln!("downloading {}", packages.join(", "));
    let download = unpacked.with_added_extension("download");
    // What a run before left half done is made again.
    let _ = fs::remove_dir_all(&download);
    let (archives, tree) = (download.join("archives"), download.join("tree"));
    for directory in [&archives, &tree] {
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
    }
    checked(
        Command::new("apt-get")
            .current_dir(&archives)
            .args(["download", "--quiet"])
            .args(packages),
        "run `apt-get update` if its lists are old",
    )?;
    for archive in fs::read_dir(&archives)? {
        checked(
            Command::new("dpkg")
                .arg("-x")
                .arg(archive?.path())
                .arg(&tree),
            "the package is damaged",
        )?;
    }
    fs::rename(&tree, unpacked).with_context(|| format!("cannot make {}", unpacked.display()))?;
    fs::remove_dir_all(&download).with_context(|| format!("cannot remove {}", download.display()))
}

/// Runs a command to its end; the error names it and says what may help.
pub fn checked(command: &mut Command, help: &str) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .with_context(|| format!("cannot start {program}; {help}"))?;
    ensure!(
        output.status.success(),
        "{program} failed; {help}:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
