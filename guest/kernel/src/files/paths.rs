//! Paths: made absolute and plain, without `.`, `..` and double slashes, so that a file is known by its
//! whole path.

use crate::errno::Errno;

/// Longest path.
pub const MAX_PATH_BYTES: usize = 1024;
/// Longest name in it.
const MAX_NAME_BYTES: usize = 255;

/// An absolute path: `/`, or `/a/b` without an end slash.
#[derive(Clone, Copy)]
pub struct Path {
    bytes: [u8; MAX_PATH_BYTES],
    used: usize,
    /// It was written with a slash at its end, so it has to be a directory.
    pub is_directory: bool,
    /// Its last name was `.` or `..`, by which nothing can be made or removed.
    pub is_dots: bool,
    /// It was `..`.
    pub is_up: bool,
}

impl Path {
    /// `/`
    pub const ROOT: Path = Path {
        bytes: [b'/'; MAX_PATH_BYTES],
        used: 1,
        is_directory: true,
        is_dots: false,
        is_up: false,
    };

    /// Of a directory that was removed while it was open: nothing is there, and can be.
    pub const GONE: Path = Path {
        bytes: {
            let mut bytes = [0; MAX_PATH_BYTES];
            bytes[0] = b'/';
            bytes
        },
        used: 2,
        is_directory: true,
        is_dots: false,
        is_up: false,
    };

    /// An absolute path as `as_bytes` gave it.
    pub fn of_directory(bytes: &[u8]) -> Path {
        let mut path = Path::GONE;
        if let Some(room) = path.bytes.get_mut(..bytes.len()) {
            room.copy_from_slice(bytes);
            path.used = bytes.len();
        }
        path
    }

    /// What it is, if it is or lies in `from`, when that has become `to` or is gone.
    pub fn moved(&self, from: &Path, to: Option<&Path>) -> Option<Path> {
        let rest = below(self.as_bytes(), from.as_bytes());
        if rest.is_none() && self.as_bytes() != from.as_bytes() {
            return None;
        }
        let moved = match (to, rest) {
            (Some(to), Some(rest)) => to.join(rest).ok(),
            (to, _) => to.copied(),
        };
        Some(moved.unwrap_or(Path::GONE))
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.used]
    }

    /// `from` followed from here, if it is not absolute.
    pub fn join(&self, from: &[u8]) -> Result<Path, Errno> {
        if from.is_empty() {
            return Err(Errno::ENOENT);
        }
        let mut path = if from[0] == b'/' { Path::ROOT } else { *self };
        for name in from.split(|byte| *byte == b'/') {
            path.push(name)?;
        }
        path.is_directory = matches!(from, [.., b'/'] | [.., b'/', b'.'] | b"." | b"..");
        path.is_dots = false;
        Ok(path)
    }

    /// Goes on by one name.
    pub fn push(&mut self, name: &[u8]) -> Result<(), Errno> {
        match name {
            b"" | b"." => {}
            b".." => {
                let parent = self.parent().len();
                self.used = parent;
            }
            name => {
                if name.len() > MAX_NAME_BYTES {
                    return Err(Errno::ENAMETOOLONG);
                }
                let slash = usize::from(self.used > 1);
                let end = self.used + slash + name.len();
                let room = self.bytes.get_mut(self.used..end);
                let room = room.ok_or(Errno::ENAMETOOLONG)?;
                room[..slash].fill(b'/');
                room[slash..].copy_from_slice(name);
                self.used = end;
            }
        }
        Ok(())
    }

    /// The directory that it is in; that of `/` is itself.
    pub fn parent(&self) -> &[u8] {
        parent(self.as_bytes())
    }
}

/// The directory that a plain path is in; that of `/` is itself.
pub fn parent(path: &[u8]) -> &[u8] {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(0) | None => b"/",
        Some(slash) => &path[..slash],
    }
}

/// The part of `path` below `directory`, if it lies there: `b/c` of `/a/b/c` in `/a`.
pub fn below<'a>(path: &'a [u8], directory: &[u8]) -> Option<&'a [u8]> {
    let rest = match directory {
        b"/" => path.strip_prefix(b"/"),
        directory => path.strip_prefix(directory)?.strip_prefix(b"/"),
    };
    rest.filter(|rest| !rest.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_write_a_path_gives_the_same() {
        let here = Path::ROOT.join(b"tmp/a").unwrap();
        for (from, to) in [
            (&b"b"[..], &b"/tmp/a/b"[..]),
            (b"./b/", b"/tmp/a/b"),
            (b"../a//b", b"/tmp/a/b"),
            (b"/x/../tmp/a/./b", b"/tmp/a/b"),
            (b"../../../..", b"/"),
            (b"/", b"/"),
            (b".", b"/tmp/a"),
        ] {
            assert_eq!(here.join(from).unwrap().as_bytes(), to);
        }
        assert!(here.join(b"b/").unwrap().is_directory && !here.join(b"b").unwrap().is_directory);
        assert_eq!(here.join(b"b").unwrap().parent(), b"/tmp/a");
        assert!(here.join(b"").is_err() && here.join(&[b'x'; 256]).is_err());
        assert!(here.join(&b"abc/".repeat(300)).is_err());
        assert_eq!(below(b"/tmp/a/b", b"/tmp"), Some(&b"a/b"[..]));
        assert_eq!(below(b"/tmpa", b"/tmp"), None);
        assert_eq!(below(b"/", b"/"), None);
    }
}
