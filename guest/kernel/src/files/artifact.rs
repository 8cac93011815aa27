//! The files that the artifact brought: read only, and shared by all instances, since nothing of them is
//! ever copied before a program asks for it.

use holm_hostcall::tree::{Entry, Kind, Tree};

use crate::stat::{self, Status};
use crate::{host, state};

/// The tree, if the artifact has one.
pub fn tree() -> Option<&'static Tree<'static>> {
    state::artifact().as_ref()
}

/// Takes over what the host put into memory.
pub fn start() {
    let boot = host::boot();
    if boot.files_bytes == 0 {
        return;
    }
    let start = core::ptr::with_exposed_provenance::<u8>(boot.files_start as usize);
    // SAFETY: the host mapped so many bytes there to be read, and nothing can write to them.
    let bytes = unsafe { core::slice::from_raw_parts(start, boot.files_bytes as usize) };
    // The host checked the tree before it put it there: one that cannot be read is none.
    *state::artifact() = Tree::open(bytes).ok();
}

/// The number and the entry at a path.
pub fn find(path: &[u8]) -> Option<(u32, Entry<'static>)> {
    let number = tree()?.find(path)?;
    Some((number, tree()?.entry(number)?))
}

/// The entry of a number.
pub fn entry(number: u32) -> Option<Entry<'static>> {
    tree()?.entry(number)
}

/// Whether a directory is at the path.
pub fn is_directory(path: &[u8]) -> bool {
    find(path).is_some_and(|(_, entry)| entry.kind == Kind::Directory)
}

/// A file's content, or where a link leads.
pub fn content(entry: &Entry<'_>) -> &'static [u8] {
    tree().map_or(&[], |tree| tree.content(entry))
}

/// The content of a file by its number.
pub fn content_of(number: u32) -> &'static [u8] {
    entry(number).map_or(&[], |entry| content(&entry))
}

/// Where the link at a path leads, if it is one.
pub fn link_at(path: &[u8]) -> Option<&'static [u8]> {
    if !tree()?.has_links() {
        return None;
    }
    let (_, entry) = find(path)?;
    (entry.kind == Kind::Link).then(|| content(&entry))
}

/// What `stat` says of an entry.
pub fn status(number: u32, entry: &Entry<'_>) -> Status {
    let (kind, mode) = match entry.kind {
        Kind::File if entry.executable => (stat::Kind::File, 0o555),
        Kind::File => (stat::Kind::File, 0o444),
        Kind::Directory => (stat::Kind::Directory, 0o555),
        Kind::Link => (stat::Kind::Link, 0o777),
    };
    Status {
        kind,
        mode,
        size: content(entry).len() as u64,
        // Beside those of the built-in entries and of /tmp.
        number: (1 << 32) + u64::from(number),
        user: 0,
        group: 0,
        accessed_ns: u64::from(entry.modified_s) * 1_000_000_000,
        modified_ns: u64::from(entry.modified_s) * 1_000_000_000,
        names: 1,
    }
}

/// The kind of an entry, for a listing.
pub fn kind(entry: &Entry<'_>) -> stat::Kind {
    match entry.kind {
        Kind::File => stat::Kind::File,
        Kind::Directory => stat::Kind::Directory,
        Kind::Link => stat::Kind::Link,
    }
}
