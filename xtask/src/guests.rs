//! Building every program that tests give to a guest.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use holm_test_support::Guest;

/// Builds all guests below `directory`, in the places where `holm-test-support` looks for them.
pub(crate) fn build_all(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    // `make` and `cargo` are run in other directories.
    let directory = directory
        .canonicalize()
        .with_context(|| format!("cannot find {}", directory.display()))?;
    let guests = Guest::all();
    for guest in &guests {
        guest.build_into(&directory);
    }
    println!("{} guests are in {}", guests.len(), directory.display());
    Ok(())
}
