//! The files that an artifact brings, read from this machine: a project's `[files]`, or `--files`.
//!
//! A directory is taken whole, hidden files included. A symbolic link in it stays one and may lead anywhere
//! within the directory, but not out of it: what lies there would not come along.

use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use holm_model::bundle::{CollectError, Collected, Files};
use holm_model::limits::MAX_ARTIFACT_BYTES;
use holm_model::manifest::Manifest;

use crate::exit::Failure;
use crate::local::project;

/// The files that a manifest names, from the project in `dir`.
pub(crate) fn of_project(dir: &Path, manifest: &Manifest) -> Result<Files, Failure> {
    let mut taking = Taking::default();
    for (to, from) in &manifest.files {
        let path = dir.join(from);
        let line = format!("[files] \"{to}\" = \"{from}\"");
        let real = real_path(&line, &path)?;
        let project = real_path(
            &line,
            if dir.as_os_str().is_empty() {
                Path::new(".")
            } else {
                dir
            },
        )?;
        if !real.starts_with(&project) {
            return Err(Failure::usage(format!(
                "{line}: {} leads out of the project, to {}",
                path.display(),
                real.display()
            ))
            .hint("Take what lies in the project, or copy it there in [build]."));
        }
        taking.take(&line, &real, to)?;
    }
    taking.finish()
}

/// The files of `--files` options: paths in the guest, and on this machine.
pub(crate) fn of_options(options: &[(String, PathBuf)]) -> Result<Files, Failure> {
    let mut taking = Taking::default();
    for (to, from) in options {
        let line = format!("--files {to}={}", from.display());
        let real = real_path(&line, from)?;
        taking.take(&line, &real, to)?;
    }
    taking.finish()
}

fn real_path(line: &str, path: &Path) -> Result<PathBuf, Failure> {
    fs::canonicalize(path).map_err(|error| {
        Failure::usage(format!(
            "{line}: {} cannot be read: {error}",
            path.display()
        ))
    })
}

#[derive(Default)]
struct Taking {
    collected: Collected,
}

/// One line of `[files]`, or one option.
struct Line<'l> {
    /// For errors.
    text: &'l str,
    /// Its path in the guest.
    to: &'l [u8],
}

impl Line<'_> {
    fn wrong(&self, path: &Path, what: impl std::fmt::Display) -> Failure {
        Failure::usage(format!("{}: {} {what}", self.text, path.display()))
    }

    fn refused(&self) -> impl Fn(CollectError) -> Failure {
        move |error| Failure::usage(format!("{}: {error}", self.text))
    }

    /// Checks that a link at `at` in the guest stays within what this line takes.
    fn check_link(&self, path: &Path, at: &[u8], target: &[u8]) -> Result<(), Failure> {
        let inside = at.get(self.to.len()..).unwrap_or_default();
        let names = inside
            .split(|byte| *byte == b'/')
            .filter(|name| !name.is_empty());
        // Directories between this line's and the link.
        let mut depth = names.count().saturating_sub(1);
        let mut stays = !target.starts_with(b"/");
        for name in target.split(|byte| *byte == b'/') {
            match name {
                b"" | b"." => {}
                b".." if depth == 0 => stays = false,
                b".." => depth -= 1,
                _ => depth += 1,
            }
        }
        match stays {
            true => Ok(()),
            false => {
                let target = OsStr::from_bytes(target).to_string_lossy();
                let what = format!("is a symbolic link out of it, to {target}");
                Err(self.wrong(path, what).hint(
                    "Replace it with what it leads to, or with a relative link that stays within.",
                ))
            }
        }
    }
}

impl Taking {
    fn take(&mut self, text: &str, from: &Path, to: &str) -> Result<(), Failure> {
        let line = Line {
            text,
            to: if to == "/" { b"" } else { to.as_bytes() },
        };
        self.add(&line, from, to.as_bytes())
    }

    fn add(&mut self, line: &Line<'_>, from: &Path, to: &[u8]) -> Result<(), Failure> {
        let unreadable = |error| line.wrong(from, format_args!("cannot be read: {error}"));
        let metadata = fs::symlink_metadata(from).map_err(unreadable)?;
        if metadata.is_dir() {
            return self.add_directory(line, from, to);
        }
        if metadata.is_symlink() {
            let target = fs::read_link(from).map_err(unreadable)?;
            let target = target.as_os_str().as_bytes();
            line.check_link(from, to, target)?;
            return self.collected.link(to, target).map_err(line.refused());
        }
        if !metadata.is_file() {
            return Err(line.wrong(from, "is neither a file nor a directory"));
        }
        let content = project::read_bounded(from, MAX_ARTIFACT_BYTES).map_err(unreadable)?;
        let taken = self.collected.file(to, is_executable(&metadata), content);
        taken.map_err(line.refused())
    }

    fn add_directory(&mut self, line: &Line<'_>, from: &Path, to: &[u8]) -> Result<(), Failure> {
        let unreadable = |error| line.wrong(from, format_args!("cannot be read: {error}"));
        self.collected.directory(to).map_err(line.refused())?;
        let mut names = Vec::new();
        for entry in fs::read_dir(from).map_err(unreadable)? {
            names.push(entry.map_err(unreadable)?.file_name());
        }
        // So that of several faults it is always the same that is told.
        names.sort();
        for name in names {
            let mut path = to.to_vec();
            if path != b"/" {
                path.push(b'/');
            }
            path.extend_from_slice(name.as_bytes());
            self.add(line, &from.join(&name), &path)?;
        }
        Ok(())
    }

    fn finish(self) -> Result<Files, Failure> {
        self.collected.finish().map_err(Failure::usage)
    }
}

fn is_executable(metadata: &Metadata) -> bool {
    metadata.permissions().mode() & 0o111 != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_may_lead_anywhere_within_its_directory() {
        let line = Line {
            text: "line",
            to: b"/www",
        };
        let check = |at: &str, to: &str| {
            line.check_link(Path::new("x"), at.as_bytes(), to.as_bytes())
                .is_ok()
        };
        for (at, to) in [
            ("/www/a", "b"),
            ("/www/a", "./b/../c"),
            ("/www/a/b/c", "../../d"),
            ("/www/a/b", ".."),
            ("/www/a", "missing"),
        ] {
            assert!(check(at, to), "{at} -> {to}");
        }
        for (at, to) in [
            ("/www/a", "/etc/passwd"),
            ("/www/a", ".."),
            ("/www/a", "../www/b"),
            ("/www/a/b", "../../x"),
            ("/www/a", "b/../../x"),
        ] {
            assert!(!check(at, to), "{at} -> {to}");
        }
    }
}
