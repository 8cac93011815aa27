//! A function's project on disk: its directory, its manifest, and reading files with a bound.

use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};

use holm_model::limits::{MAX_ARTIFACT_BYTES, MAX_MANIFEST_BYTES};
use holm_model::manifest::Manifest;
use holm_model::manifest::units::format_bytes;
use holm_model::program::Program;

use crate::exit::Failure;

/// The manifest's file name.
pub(crate) const MANIFEST_FILE: &str = "holm.toml";

/// A directory with a manifest in it.
#[derive(Clone, Debug)]
pub(crate) struct Project {
    /// Where it is.
    pub(crate) dir: PathBuf,
    /// What its `holm.toml` says.
    pub(crate) manifest: Manifest,
}

impl Project {
    /// Reads the project in `dir`.
    pub(crate) fn open(dir: &Path) -> Result<Project, Failure> {
        let path = dir.join(MANIFEST_FILE);
        let bytes =
            read_bounded(&path, MAX_MANIFEST_BYTES).map_err(|error| match error.kind() {
                ErrorKind::NotFound => Failure::usage(format!(
                    "there is no {MANIFEST_FILE} in {}; go to a function's directory, name it with \
                 --dir, or start one with `holm init`",
                    dir.display()
                )),
                _ => Failure::usage(format!("{} cannot be read: {error}", path.display())),
            })?;
        let text = String::from_utf8(bytes)
            .map_err(|_| Failure::usage(format!("{} is not UTF-8 text", path.display())))?;
        let manifest = Manifest::from_toml(&text)
            .map_err(|error| Failure::usage(format!("{}: {error}", path.display())))?;
        Ok(Project {
            dir: dir.to_owned(),
            manifest,
        })
    }
}

/// Reads and checks the program at `path`.
pub(crate) fn read_program(path: &Path) -> Result<Program, Failure> {
    let bytes = read_bounded(path, MAX_ARTIFACT_BYTES)
        .map_err(|error| Failure::usage(format!("{} cannot be read: {error}", path.display())))?;
    Program::parse(&bytes).map_err(|error| Failure::usage(format!("{}: {error}", path.display())))
}

/// Checks that the program's segments have room under a memory limit.
pub(crate) fn check_room(program: &Program, memory_bytes: u64) -> Result<(), String> {
    let least = program.least_memory_bytes();
    match least <= memory_bytes {
        true => Ok(()),
        false => Err(format!(
            "the program takes {} of memory before it starts, but its limit is {}; give it more",
            format_bytes(least),
            format_bytes(memory_bytes)
        )),
    }
}

/// The bytes of a file, unless it is longer than `most`.
pub(crate) fn read_bounded(path: &Path, most: u64) -> std::io::Result<Vec<u8>> {
    let file = File::open(path)?;
    if file.metadata()?.is_dir() {
        return Err(ErrorKind::IsADirectory.into());
    }
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > most {
        true => Err(std::io::Error::new(
            ErrorKind::FileTooLarge,
            format!("it is larger than the {} allowed", format_bytes(most)),
        )),
        false => Ok(bytes),
    }
}
