//! `[files]`: which files and directories of the project the artifact brings, and where the guest finds
//! them.

use std::collections::BTreeMap;

use holm_hostcall::tree;

use super::{ManifestError, cut};
use crate::limits::{MAX_FILES_BYTES, MAX_FILES_LINES, MAX_MANIFEST_TEXT_BYTES};

/// Checks the table by itself; whether the files are there, only the command can tell.
pub(super) fn check(files: &BTreeMap<String, String>) -> Result<(), ManifestError> {
    let total: usize = files.iter().map(|(to, from)| to.len() + from.len()).sum();
    super::require(
        files.len() <= MAX_FILES_LINES && total <= MAX_FILES_BYTES,
        "files",
        format!("{} lines, {total} bytes", files.len()),
        || {
            format!(
                "at most {MAX_FILES_LINES} lines with paths of {MAX_FILES_BYTES} bytes together"
            )
        },
    )?;
    for (to, from) in files {
        let wrong = |value: String, allowed: String| ManifestError::Value {
            line: None,
            key: format!("files.{to}"),
            value,
            allowed,
        };
        check_guest_path(to).map_err(|allowed| wrong(format!("\"{}\"", cut(from)), allowed))?;
        let other = files
            .keys()
            .find(|other| *other != to && is_below(to, other));
        if let Some(other) = other {
            let allowed = format!(
                "at a path that does not lie in `{}` of another line",
                cut(other)
            );
            return Err(wrong(format!("\"{}\"", cut(from)), allowed));
        }
        if !is_in_project(from) {
            let allowed = "the path of a file or directory in the project, relative to holm.toml and \
                           without `..`";
            return Err(wrong(format!("\"{}\"", cut(from)), allowed.to_owned()));
        }
    }
    Ok(())
}

/// Checks a path at which a guest is to find files; the error says what would be allowed.
pub fn check_guest_path(path: &str) -> Result<(), String> {
    if !tree::is_plain(path.as_bytes()) {
        return Err(
            "at an absolute path of the guest without `.`, `..` and double slashes, such as \
                    \"/www\""
                .into(),
        );
    }
    if tree::is_reserved(path.as_bytes()) {
        return Err("at another path: /dev, /proc, /sys and /tmp are the guest's own".into());
    }
    Ok(())
}

/// Whether `path` lies in `directory`.
fn is_below(path: &str, directory: &str) -> bool {
    let rest = path.strip_prefix(directory);
    directory == "/" || rest.is_some_and(|rest| rest.starts_with('/'))
}

fn is_in_project(path: &str) -> bool {
    !path.is_empty()
        && path.len() <= MAX_MANIFEST_TEXT_BYTES
        && !path.starts_with('/')
        && !path.contains('\0')
        && path.split('/').all(|name| name != "..")
}
