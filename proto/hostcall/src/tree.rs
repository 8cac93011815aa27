//! The files that an artifact brings, as they lie in a guest's memory.
//!
//! ```text
//! 0    magic "HOLMTREE" | version u32 | entries u32 | bytes of all u64 | bytes of the texts u64
//!      | where the contents begin u64 | links u32 | 0 …
//! 64   the entries, 32 bytes each:
//!        path: where in the texts u32, bytes u16 | kind u8 | flags u8
//!        start u64 | bytes u64 | modified u32 | 0 u32
//! …    the texts: for each entry its path, and for a link where it leads
//! …    from a page on: the contents
//! ```
//! All integers are little-endian. The entries are in the order of directory and name, the root first, so
//! that a path is found by halving and what is in a directory stands in a row. *start* and *bytes* are
//! those of a file's content, of the text of a link, and for a directory the first entry in it and their
//! number. A content of a page or more begins with a page; a smaller one never lies in two. Nothing has to
//! be built from a tree before it is used, and looking for one file touches no page of another.
//!
//! The host checks a tree whole ([`Tree::check`]), since its maker is not to be trusted. The guest, whose
//! own tree it is, looks at the head alone ([`Tree::open`]), and what it reads then is still checked as far
//! as its own safety goes: no tree makes a reader panic or leave the bytes it was given.

mod encode;

use core::cmp::Ordering;
use core::fmt;

use crate::PAGE_BYTES;
pub use encode::{Source, encode};

/// Most files, directories and links of a tree.
pub const MAX_ENTRIES: usize = 1 << 16;
/// Longest path, and longest text of a link.
pub const MAX_PATH_BYTES: usize = 1023;
/// Longest name in a path.
pub const MAX_NAME_BYTES: usize = 255;
/// Directories that are the guest's own: no tree holds anything there.
pub const RESERVED: [&str; 4] = ["/dev", "/proc", "/sys", "/tmp"];

const MAGIC: &[u8; 8] = b"HOLMTREE";
const VERSION: u32 = 1;
const HEAD_BYTES: usize = 64;
/// Bytes of the head that say anything; the rest is zero.
const HEAD_END: usize = 44;
const ENTRY_BYTES: usize = 32;
/// The same of an entry.
const ENTRY_END: usize = 28;
const EXECUTABLE: u8 = 1;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A file.
    File = 1,
    /// A directory.
    Directory = 2,
    /// A symbolic link.
    Link = 3,
}

/// One file, directory or link of a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Its whole path.
    pub path: &'a [u8],
    /// What it is.
    pub kind: Kind,
    /// Whether a file may be executed.
    pub executable: bool,
    /// Seconds since 1970 UTC.
    pub modified_s: u32,
    start: u64,
    bytes: u64,
}

/// Why bytes are not a tree. Whoever made them is to blame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TreeError {
    /// Not a tree, or not one of this version.
    NotOne,
    /// A number in it leads outside, or its parts do not lie where they must.
    Damaged,
    /// More than [`MAX_ENTRIES`].
    TooMany,
    /// A path that is not absolute and plain, or too long.
    BadPath,
    /// Two entries of one path, or not in their order.
    Disordered,
    /// What an entry lies in is not a directory of the tree.
    NoDirectory,
    /// A path in one of [`RESERVED`], or `/etc` that is not a directory.
    Reserved,
    /// A link whose text is empty, too long or not a path.
    BadLink,
}

impl fmt::Display for TreeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TreeError::NotOne => "it does not begin as a file tree of this version of Holm does",
            TreeError::Damaged => "its parts do not lie where they must",
            TreeError::TooMany => "it has more than 65536 files, directories and links",
            TreeError::BadPath => {
                "it has a path that is not absolute and plain, or that is longer than 1023 bytes or \
                 has a name longer than 255"
            }
            TreeError::Disordered => "its entries are not in order",
            TreeError::NoDirectory => "it has a file that lies in no directory",
            TreeError::Reserved => {
                "it has something in /dev, /proc, /sys or /tmp, which are the guest's own, or an \
                 /etc that is not a directory"
            }
            TreeError::BadLink => "it has a link whose text is empty, too long or not a path",
        })
    }
}

impl core::error::Error for TreeError {}

/// The directory of a plain path and its name there. The root stands before everything.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        _ if path == b"/" => (b"", b"/"),
        Some(0) => (b"/", path.get(1..).unwrap_or_default()),
        Some(slash) => (
            path.get(..slash).unwrap_or_default(),
            path.get(slash + 1..).unwrap_or_default(),
        ),
        None => (b"", path),
    }
}

/// The order of the entries.
pub fn order(first: &[u8], second: &[u8]) -> Ordering {
    split(first).cmp(&split(second))
}

/// Whether a path is absolute and plain, and short enough.
pub fn is_plain(path: &[u8]) -> bool {
    let good = |name: &[u8]| {
        !name.is_empty()
            && name.len() <= MAX_NAME_BYTES
            && name != b"."
            && name != b".."
            && !name.contains(&0)
    };
    match path.split_first() {
        Some((b'/', [])) => true,
        Some((b'/', names)) => {
            path.len() <= MAX_PATH_BYTES && names.split(|byte| *byte == b'/').all(good)
        }
        _ => false,
    }
}

/// Whether a path is in a directory that is the guest's own.
pub fn is_reserved(path: &[u8]) -> bool {
    RESERVED.iter().any(|own| {
        let rest = path.strip_prefix(own.as_bytes());
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
    })
}

/// Where the contents lie: in turn, each in as few pages as it can.
struct Placing(u64);

impl Placing {
    /// The place of the next content; `None` if there is no such number.
    fn next(&mut self, bytes: u64) -> Option<u64> {
        let left = PAGE_BYTES - self.0 % PAGE_BYTES;
        if bytes > left {
            self.0 = self.0.checked_next_multiple_of(PAGE_BYTES)?;
        }
        let start = self.0;
        self.0 = self.0.checked_add(bytes)?;
        Some(start)
    }
}

fn is_good_target(text: &[u8]) -> bool {
    !text.is_empty() && text.len() <= MAX_PATH_BYTES && !text.contains(&0)
}

/// What the rules say of one entry: by itself, and after the one before it.
fn check_entry(before: Option<&[u8]>, path: &[u8], kind: Kind) -> Result<(), TreeError> {
    if !is_plain(path) {
        return Err(TreeError::BadPath);
    }
    if is_reserved(path) || (path == b"/etc" && kind != Kind::Directory) {
        return Err(TreeError::Reserved);
    }
    match before {
        None if path == b"/" && kind == Kind::Directory => Ok(()),
        None => Err(TreeError::NoDirectory),
        Some(before) if order(before, path) == Ordering::Less => Ok(()),
        Some(_) => Err(TreeError::Disordered),
    }
}

/// A tree in memory.
#[derive(Clone, Copy, Debug)]
pub struct Tree<'a> {
    bytes: &'a [u8],
    count: u32,
    texts: u64,
    contents_at: u64,
    links: u32,
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..)?.first_chunk::<8>()?;
    Some(u64::from_le_bytes(*bytes))
}

fn half(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk::<4>()?;
    Some(u32::from_le_bytes(*bytes))
}

impl<'a> Tree<'a> {
    /// Looks at the head alone. `bytes` may be longer than the tree, by less than a page.
    pub fn open(bytes: &'a [u8]) -> Result<Self, TreeError> {
        if !bytes.starts_with(MAGIC) || half(bytes, 8) != Some(VERSION) {
            return Err(TreeError::NotOne);
        }
        let read = || {
            let total = usize::try_from(word(bytes, 16)?).ok()?;
            Some(Tree {
                bytes: bytes.get(..total)?,
                count: half(bytes, 12)?,
                texts: word(bytes, 24)?,
                contents_at: word(bytes, 32)?,
                links: half(bytes, 40)?,
            })
        };
        let tree = read().ok_or(TreeError::Damaged)?;
        let excess = bytes.len() - tree.bytes.len();
        match (tree.count as usize, excess as u64) {
            (MAX_ENTRIES.., _) if tree.count as usize > MAX_ENTRIES => Err(TreeError::TooMany),
            (0, _) | (_, PAGE_BYTES..) => Err(TreeError::Damaged),
            _ => Ok(tree),
        }
    }

    /// Reads all of it, and gives a tree that keeps every rule of this module: exactly what [`encode`] would
    /// write for what is in it. `bytes` are the tree and nothing else.
    pub fn check(bytes: &'a [u8]) -> Result<Self, TreeError> {
        let tree = Tree::open(bytes)?;
        let texts_at = tree.texts_at();
        let contents_at = texts_at
            .checked_add(tree.texts)
            .and_then(|end| end.checked_next_multiple_of(PAGE_BYTES));
        if tree.bytes.len() != bytes.len() || contents_at != Some(tree.contents_at) {
            return Err(TreeError::Damaged);
        }
        tree.check_zero(HEAD_END as u64, HEAD_BYTES as u64)?;
        let mut placing = Placing(tree.contents_at);
        let mut text = 0u64;
        let mut links = 0;
        let mut before = None;
        // The root alone lies in nothing.
        let mut in_directories = 1u64;
        for index in 0..tree.count {
            let entry = tree.entry(index).ok_or(TreeError::Damaged)?;
            check_entry(before, entry.path, entry.kind)?;
            before = Some(entry.path);
            let at = tree.entry_at(index);
            let flags = bytes.get(at + 7).copied().unwrap_or_default();
            if half(bytes, at) != u32::try_from(text).ok()
                || flags & !EXECUTABLE != 0
                || (entry.executable && entry.kind != Kind::File)
            {
                return Err(TreeError::Damaged);
            }
            tree.check_zero((at + ENTRY_END) as u64, (at + ENTRY_BYTES) as u64)?;
            text += entry.path.len() as u64;
            let place = match entry.kind {
                Kind::File => {
                    let before = placing.0;
                    let place = placing.next(entry.bytes).ok_or(TreeError::Damaged)?;
                    tree.check_zero(before, place)?;
                    Some(place)
                }
                Kind::Link => {
                    if !is_good_target(tree.content(&entry)) {
                        return Err(TreeError::BadLink);
                    }
                    let place = texts_at + text;
                    text += entry.bytes;
                    links += 1;
                    Some(place)
                }
                Kind::Directory => {
                    let range = tree.children(&entry);
                    let inside = |index: u32| {
                        let child = tree.entry(index);
                        child.is_some_and(|child| split(child.path).0 == entry.path)
                    };
                    let whole = entry.bytes == u64::from(range.end - range.start)
                        && (entry.bytes > 0 || entry.start == 0);
                    if !whole || !range.clone().all(inside) {
                        return Err(TreeError::Damaged);
                    }
                    in_directories += entry.bytes;
                    Some(entry.start)
                }
            };
            if place != Some(entry.start) {
                return Err(TreeError::Damaged);
            }
        }
        // Nothing lies in two, so all that is beside it lies in one.
        if in_directories != u64::from(tree.count) {
            return Err(TreeError::NoDirectory);
        }
        tree.check_zero(texts_at + text, tree.contents_at)?;
        match text == tree.texts && links == tree.links && placing.0 == bytes.len() as u64 {
            true => Ok(tree),
            false => Err(TreeError::Damaged),
        }
    }

    /// What lies between the parts is zero.
    fn check_zero(&self, start: u64, end: u64) -> Result<(), TreeError> {
        let between = self.range(start, end.saturating_sub(start));
        match between.is_some_and(|bytes| bytes.iter().all(|byte| *byte == 0)) {
            true => Ok(()),
            false => Err(TreeError::Damaged),
        }
    }

    fn texts_at(&self) -> u64 {
        (HEAD_BYTES + self.count as usize * ENTRY_BYTES) as u64
    }

    fn entry_at(&self, index: u32) -> usize {
        HEAD_BYTES + index as usize * ENTRY_BYTES
    }

    /// Files, directories and links.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Whether there is any symbolic link.
    pub fn has_links(&self) -> bool {
        self.links > 0
    }

    /// Bytes of the whole tree.
    pub fn bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn range(&self, start: u64, bytes: u64) -> Option<&'a [u8]> {
        let start = usize::try_from(start).ok()?;
        let end = start.checked_add(usize::try_from(bytes).ok()?)?;
        self.bytes.get(start..end)
    }

    /// The entry of a number below [`Tree::count`].
    pub fn entry(&self, index: u32) -> Option<Entry<'a>> {
        if index >= self.count {
            return None;
        }
        let at = self.entry_at(index);
        let bytes = self.bytes.get(at..at + ENTRY_BYTES)?;
        let names = half(bytes, 4)?;
        let [.., kind, flags] = names.to_le_bytes();
        let path_at = self.texts_at() + u64::from(half(bytes, 0)?);
        Some(Entry {
            path: self.range(path_at, u64::from(names & 0xffff))?,
            kind: match kind {
                1 => Kind::File,
                2 => Kind::Directory,
                3 => Kind::Link,
                _ => return None,
            },
            executable: flags & EXECUTABLE != 0,
            start: word(bytes, 8)?,
            bytes: word(bytes, 16)?,
            modified_s: half(bytes, 24)?,
        })
    }

    /// The number of the entry at a plain path.
    pub fn find(&self, path: &[u8]) -> Option<u32> {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            match order(self.entry(middle)?.path, path) {
                Ordering::Less => low = middle + 1,
                Ordering::Equal => return Some(middle),
                Ordering::Greater => high = middle,
            }
        }
        None
    }

    /// A file's content, or where a link leads; nothing for a directory.
    pub fn content(&self, entry: &Entry<'_>) -> &'a [u8] {
        let content = match entry.kind {
            Kind::Directory => None,
            Kind::File | Kind::Link => self.range(entry.start, entry.bytes),
        };
        content.unwrap_or_default()
    }

    /// The numbers of the entries in a directory; none for anything else.
    pub fn children(&self, entry: &Entry<'_>) -> core::ops::Range<u32> {
        let limit = |number: u64| number.min(u64::from(self.count)) as u32;
        match entry.kind {
            Kind::Directory => limit(entry.start)..limit(entry.start.saturating_add(entry.bytes)),
            Kind::File | Kind::Link => 0..0,
        }
    }
}

impl Entry<'_> {
    /// The last part of its path.
    pub fn name(&self) -> &[u8] {
        split(self.path).1
    }
}

#[cfg(test)]
mod tests;
