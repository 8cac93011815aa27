//! Small files that must be whole or not there at all, and are for their owner alone.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use super::CaError;

/// The file's bytes, or none if it is not there.
pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>, CaError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(CaError::File {
            operation: "reading",
            path: path.into(),
            source,
        }),
    }
}

/// Writes `path` with mode 0600: to a file beside it, synced, then renamed.
pub(crate) fn write_secret(path: &Path, bytes: &[u8]) -> Result<(), CaError> {
    write(path, "new", bytes, |beside| std::fs::rename(beside, path))
}

/// The same, unless it is there: of several that make it at once the first has its way.
pub(crate) fn write_first_secret(path: &Path, bytes: &[u8]) -> Result<(), CaError> {
    let own = hex::encode(super::random::<8>());
    write(path, &own, bytes, |beside| {
        let linked = std::fs::hard_link(beside, path);
        // It has another name now, or is of no use.
        let _ = std::fs::remove_file(beside);
        match linked {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
            linked => linked,
        }
    })
}

/// Writes a file beside `path`, with another ending, and has it `put` in place.
fn write(
    path: &Path,
    ending: &str,
    bytes: &[u8],
    put: impl FnOnce(&Path) -> std::io::Result<()>,
) -> Result<(), CaError> {
    let beside = path.with_extension(ending);
    let write = || {
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        put(&beside)?;
        match path.parent() {
            Some(dir) => File::open(dir)?.sync_all(),
            None => Ok(()),
        }
    };
    write().map_err(|source| CaError::File {
        operation: "writing",
        path: path.into(),
        source,
    })
}
