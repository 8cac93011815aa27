//! Whether a project's sources have changed, by looking at their times and sizes.
//!
//! Looking works on every file system, unlike notifications, and a project is small. What builders
//! write (`target`, object files, the program itself) is left out, as are hidden files.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// More files than a function has.
const MAX_FILES: usize = 20_000;
const MAX_DEPTH: usize = 16;
const MADE_DIRECTORIES: [&str; 2] = ["target", "node_modules"];
const MADE_EXTENSIONS: [&str; 5] = ["o", "a", "d", "so", "tmp"];

/// Time and size of every source file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Sources(BTreeMap<PathBuf, (Option<SystemTime>, u64)>);

impl Sources {
    /// Looks at the files below `dir`.
    pub(super) fn look(dir: &Path) -> Sources {
        let mut sources = Sources::default();
        sources.add(dir, MAX_DEPTH);
        sources
    }

    fn add(&mut self, dir: &Path, depth: usize) {
        // A directory that has just gone is a change like any other.
        let Ok(entries) = fs::read_dir(dir) else {
            return;
        };
        for entry in entries.flatten() {
            let path = entry.path();
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let Ok(kind) = entry.file_type() else {
                continue;
            };
            if name.starts_with('.') || self.0.len() >= MAX_FILES {
                continue;
            }
            if kind.is_dir() {
                if depth > 0 && !MADE_DIRECTORIES.contains(&name.as_ref()) {
                    self.add(&path, depth - 1);
                }
                continue;
            }
            let made = path
                .extension()
                .is_some_and(|extension| MADE_EXTENSIONS.iter().any(|made| extension == *made));
            if made {
                continue;
            }
            if let Ok(metadata) = entry.metadata() {
                self.0
                    .insert(path, (metadata.modified().ok(), metadata.len()));
            }
        }
    }

    /// Whether anything but the `program` has changed, come or gone since `before`.
    pub(super) fn changed_since(&self, before: &Sources, program: Option<&Path>) -> bool {
        let came = |path: &PathBuf| !before.0.contains_key(path) && program != Some(path);
        self.edited_since(before, program) || self.0.keys().any(came)
    }

    /// The same without new files: a build makes some.
    pub(super) fn edited_since(&self, before: &Sources, program: Option<&Path>) -> bool {
        before
            .0
            .iter()
            .any(|(path, stamp)| self.0.get(path) != Some(stamp) && program != Some(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn project() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("src")).unwrap();
        fs::create_dir_all(dir.path().join("target/release")).unwrap();
        fs::create_dir_all(dir.path().join(".git")).unwrap();
        for file in [
            "src/main.rs",
            "target/release/x",
            ".git/index",
            "main",
            "main.o",
        ] {
            fs::write(dir.path().join(file), "1").unwrap();
        }
        dir
    }

    #[test]
    fn an_edit_of_a_source_is_seen() {
        let dir = project();
        let before = Sources::look(dir.path());
        assert!(!Sources::look(dir.path()).changed_since(&before, None));
        fs::write(dir.path().join("src/main.rs"), "22").unwrap();
        let after = Sources::look(dir.path());
        assert!(after.changed_since(&before, None) && after.edited_since(&before, None));
    }

    #[test]
    fn what_a_build_makes_is_not_seen_as_an_edit() {
        let dir = project();
        let program = dir.path().join("./main");
        let before = Sources::look(dir.path());
        for file in ["target/release/x", ".git/index", "main", "main.o"] {
            fs::write(dir.path().join(file), "longer than before").unwrap();
        }
        assert!(!Sources::look(dir.path()).changed_since(&before, Some(&program)));
        assert!(Sources::look(dir.path()).changed_since(&before, None));
        fs::write(dir.path().join("Cargo.lock"), "new").unwrap();
        let after = Sources::look(dir.path());
        assert!(after.changed_since(&before, Some(&program)));
        assert!(!after.edited_since(&before, Some(&program)));
    }

    #[test]
    fn a_source_that_goes_is_an_edit() {
        let dir = project();
        let before = Sources::look(dir.path());
        fs::remove_file(dir.path().join("src/main.rs")).unwrap();
        assert!(Sources::look(dir.path()).edited_since(&before, None));
    }
}
