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
}

impl Path {
    /// `/`
    pub const ROOT: Path = Path {
        bytes: [b'/'; MAX_PATH_BYTES],
        used: 1,
        is_directory: true,
    };

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

/// Most bytes of a path that has yet to be gone.
const MAX_WAY_BYTES: usize = 4096;

/// A path that is being gone, name by name. What a link leads to is put before the rest of it.
pub struct Way {
    bytes: [u8; MAX_WAY_BYTES],
    /// What is left is at the end.
    start: usize,
}

/// A name on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    start: usize,
    end: usize,
    /// No other name follows.
    pub is_last: bool,
    /// A slash follows.
    pub has_slash: bool,
}

impl Way {
    /// The whole of `text`.
    pub fn new(text: &[u8]) -> Result<Way, Errno> {
        let mut way = Way {
            bytes: [0; MAX_WAY_BYTES],
            start: MAX_WAY_BYTES,
        };
        way.put_before(text)?;
        Ok(way)
    }

    /// Puts `text`, which ends where the rest begins, before it.
    pub fn put_before(&mut self, text: &[u8]) -> Result<(), Errno> {
        let start = self.start.checked_sub(text.len());
        let start = start.ok_or(Errno::ENAMETOOLONG)?;
        self.bytes[start..self.start].copy_from_slice(text);
        self.start = start;
        Ok(())
    }

    /// The next name.
    pub fn step(&mut self) -> Option<Step> {
        let is_slash = |byte: &u8| *byte == b'/';
        let rest = &self.bytes[self.start..];
        let start = self.start + rest.iter().position(|byte| !is_slash(byte))?;
        let rest = &self.bytes[start..];
        let end = start + rest.iter().position(is_slash).unwrap_or(rest.len());
        // The slash stays, so that what a link leads to can be put before it.
        self.start = end;
        let rest = &self.bytes[end..];
        Some(Step {
            start,
            end,
            is_last: rest.iter().all(is_slash),
            has_slash: !rest.is_empty(),
        })
    }

    /// The bytes of a name, until something is put before the rest.
    pub fn name(&self, step: Step) -> &[u8] {
        &self.bytes[step.start..step.end]
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
    fn a_way_is_gone_name_by_name_and_a_link_comes_before_the_rest() {
        let mut way = Way::new(b"//a/link//b/").unwrap();
        let step = way.step().unwrap();
        assert_eq!((way.name(step), step.is_last), (&b"a"[..], false));
        let step = way.step().unwrap();
        assert_eq!((way.name(step), step.is_last), (&b"link"[..], false));
        way.put_before(b"x/y").unwrap();
        for (name, last, slash) in [(b"x", false, true), (b"y", false, true), (b"b", true, true)] {
            let step = way.step().unwrap();
            assert_eq!(way.name(step), name);
            assert_eq!((step.is_last, step.has_slash), (last, slash));
        }
        assert_eq!(way.step(), None);
        assert!(Way::new(&[b'x'; 4097]).is_err() && way.put_before(&[b'x'; 4096]).is_err());
        let step = Way::new(b"end").unwrap().step().unwrap();
        assert!(step.is_last && !step.has_slash);
    }

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
