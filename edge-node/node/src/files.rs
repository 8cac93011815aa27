//! Files that are whole or not there: written beside their place, synced, then renamed.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// A file of the node's state cannot be used. The operator is to look at the disk and permissions.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {}: {error}; check the disk and the permissions of the state directory", path.display())]
pub struct FileError {
    operation: &'static str,
    path: PathBuf,
    #[source]
    error: io::Error,
}

impl FileError {
    /// `operation` on `path` failed with `error`.
    pub(crate) fn new(operation: &'static str, path: &Path, error: io::Error) -> Self {
        FileError {
            operation,
            path: path.to_owned(),
            error,
        }
    }
}

/// Makes the directory and its parents.
pub(crate) fn make_dir(path: &Path) -> Result<(), FileError> {
    fs::create_dir_all(path).map_err(|error| FileError::new("make the directory", path, error))
}

/// The same for what nobody but the node's user may look into, also if it is there already.
pub(crate) fn make_private_dir(path: &Path) -> Result<(), FileError> {
    make_dir(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o700))
        .map_err(|error| FileError::new("change the mode of", path, error))
}

/// Writes `bytes` to `path` so that after a crash it holds either the old or the new bytes, with
/// `mode` as its permissions.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    let wrong = |error| FileError::new("write", path, error);
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let beside = path.with_file_name(name);
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(wrong(error)),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&beside)
        .map_err(wrong)?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .map_err(wrong)?;
    fs::rename(&beside, path).map_err(wrong)?;
    sync_parent(path)
}

/// Makes a rename or removal in the directory of `path` durable.
pub(crate) fn sync_parent(path: &Path) -> Result<(), FileError> {
    let parent = path.parent().unwrap_or(Path::new("."));
    File::open(parent)
        .and_then(|dir| dir.sync_all())
        .map_err(|error| FileError::new("sync the directory of", path, error))
}

/// The bytes of a file of at most `max_bytes`, or `None` if it is not there.
pub(crate) fn read_if_there(path: &Path, max_bytes: u64) -> Result<Option<Vec<u8>>, FileError> {
    let wrong = |error| FileError::new("read", path, error);
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(wrong(error)),
        Ok(about) if about.len() > max_bytes => Err(wrong(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!(
                "it has {} bytes, more than the {max_bytes} expected",
                about.len()
            ),
        ))),
        Ok(_) => fs::read(path).map(Some).map_err(wrong),
    }
}

/// Removes the file if it is there.
pub(crate) fn remove_if_there(path: &Path) -> Result<(), FileError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(FileError::new("remove", path, error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_written_twice_holds_the_second_bytes_and_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        write_atomically(&path, b"one", 0o600).unwrap();
        write_atomically(&path, b"two", 0o600).unwrap();
        assert_eq!(read_if_there(&path, 3).unwrap().unwrap(), b"two");
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_that_is_not_there_is_none_and_one_too_large_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        assert!(read_if_there(&path, 10).unwrap().is_none());
        remove_if_there(&path).unwrap();
        fs::write(&path, [0; 11]).unwrap();
        let error = read_if_there(&path, 10).unwrap_err().to_string();
        assert!(error.contains("11 bytes"), "{error}");
    }
}
