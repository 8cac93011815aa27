//! From a path to what is there.
//!
//! Three places hold files: what the program has written itself, the artifact (read only) and the built-in entries,
//! looked up in this order. What is in one hides nothing in another.

use holm_hostcall::tree;

use super::builtin::{self, Entry};
use super::paths::{MAX_PATH_BYTES, Path, below, parent};
use super::temporary::{self, Kind, SHARED_MEMORY};
use super::{Object, artifact};
use crate::errno::Errno;
use crate::{state, user};

/// The working directory in place of a directory's descriptor.
pub const AT_FDCWD: u64 = -100i32 as u64;
/// Most links that a path may lead through.
const MAX_LINKS: usize = 40;
/// What /proc/self/exe leads to. The program is a file there if the artifact brings it as one: most never look, and
/// in every snapshot it would be there twice.
pub(super) const PROGRAM: &[u8] = b"/function";

/// What is at a path.
#[derive(Clone, Copy)]
pub(super) enum Found {
    Directory,
    /// What the program has written, and no directory.
    Node(u16),
    /// A file of the artifact's.
    Brought(u32),
    /// Number of a built-in entry.
    Entry(usize),
    /// A link, and where it leads; not one that the program has made.
    Link(&'static [u8]),
    /// Another name of an open descriptor.
    Descriptor(u64),
    /// What there is to tell of one.
    Info(u64),
    /// The name of a thread, by its id.
    Name(u32),
}

/// Whether a link at the end of a path is followed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Follow {
    /// It stands for what it leads to.
    Always,
    /// Only if a slash comes behind it.
    BeforeSlash,
    /// It is about the name itself, which is made, moved or removed.
    Never,
}

impl Follow {
    pub(super) fn unless(stays: bool) -> Self {
        match stays {
            true => Follow::BeforeSlash,
            false => Follow::Always,
        }
    }
}

/// The absolute path that a call means; links on the way are followed.
pub(super) fn resolve(directory: u64, path: u64, follow: Follow) -> Result<Path, Errno> {
    resolve_text(directory, user::path(path)?, follow)
}

/// The same, of a path that is not where the program's pointer points.
pub(super) fn resolve_text(directory: u64, text: &[u8], follow: Follow) -> Result<Path, Errno> {
    if text.is_empty() {
        return Err(Errno::ENOENT);
    }
    let base = match directory as u32 {
        _ if text.first() == Some(&b'/') => Path::ROOT,
        at if at == AT_FDCWD as u32 => *state::working_directory(),
        _ => directory_of(directory)?,
    };
    match thread_named(text) {
        // What leads through a thread's own directory is the process's, but for this.
        Some(_) => Path::ROOT.join(text),
        None => walk(base, text, follow),
    }
}

/// The number at the end of a path in a directory of numbers.
fn number_in(path: &[u8], directory: &[u8]) -> Option<u64> {
    let number = core::str::from_utf8(below(path, directory)?).ok()?;
    number.parse().ok()
}

/// The thread whose name is at a path.
fn thread_named(path: &[u8]) -> Option<u32> {
    let thread = match path.strip_suffix(b"/comm")? {
        b"/proc/self" | b"/proc/1" => 1,
        b"/proc/thread-self" => u64::from(state::threads().id()),
        directory => number_in(directory, b"/proc/self/task")
            .or_else(|| number_in(directory, b"/proc/1/task"))?,
    };
    let thread = u32::try_from(thread).ok()?;
    state::threads().index_of(thread).map(|_| thread)
}

/// Goes from `here` along `text`, name by name, as links and `..` want it.
fn walk(mut here: Path, text: &[u8], follow: Follow) -> Result<Path, Errno> {
    // What is still to be gone, at the end of a buffer that links grow into from its end.
    let mut rest = [0; 2 * MAX_PATH_BYTES];
    let mut from = put_before(&mut rest, 2 * MAX_PATH_BYTES, text)?;
    let mut links = 0;
    (here.is_directory, here.is_dots) = (true, false);
    loop {
        let slashes = rest[from..]
            .iter()
            .take_while(|byte| **byte == b'/')
            .count();
        from += slashes;
        if from == rest.len() {
            return Ok(here);
        }
        let bytes = rest[from..]
            .iter()
            .take_while(|byte| **byte != b'/')
            .count();
        if !is_directory(here.as_bytes()) {
            return Err(match find(&here) {
                Ok(_) => Errno::ENOTDIR,
                Err(error) => error,
            });
        }
        let name = &rest[from..from + bytes];
        let behind = &rest[from + bytes..];
        let is_last = behind.iter().all(|byte| *byte == b'/');
        let stays = match follow {
            Follow::Always => false,
            Follow::BeforeSlash => behind.is_empty(),
            Follow::Never => true,
        };
        let before = here;
        here.push(name)?;
        here.is_dots = matches!(name, b"." | b"..");
        here.is_up = name == b"..";
        here.is_directory = here.is_dots || !behind.is_empty();
        from += bytes;
        if here.is_dots || (is_last && stays) {
            continue;
        }
        if let Some(target) = link_at(here.as_bytes()) {
            // A thread's directory is the process's, but without the threads: who goes down all of them comes to an end.
            let next = behind.iter().position(|byte| *byte != b'/');
            let next = next.map_or(&behind[..0], |next| &behind[next..]);
            if number_in(here.as_bytes(), b"/proc/1/task").is_some()
                && (next == b"task" || next.starts_with(b"task/"))
            {
                return Err(Errno::ENOENT);
            }
            links += 1;
            if links > MAX_LINKS {
                return Err(Errno::ELOOP);
            }
            from = put_before(&mut rest, from, target)?;
            here = if target.first() == Some(&b'/') {
                Path::ROOT
            } else {
                before
            };
        }
    }
}

/// Puts `text` into `rest` so that it ends at `end`, and gives where it begins.
fn put_before(rest: &mut [u8], end: usize, text: &[u8]) -> Result<usize, Errno> {
    let start = end.checked_sub(text.len()).ok_or(Errno::ENAMETOOLONG)?;
    rest[start..end].copy_from_slice(text);
    Ok(start)
}

/// Where the link at a path leads, if there is one.
fn link_at(path: &[u8]) -> Option<&'static [u8]> {
    if let Some(Entry::Link(to)) = builtin::find(path).map(|entry| builtin::ENTRIES[entry].1) {
        return Some(to.as_bytes());
    }
    if path.starts_with(b"/proc/1/")
        && let Some(to) = own_link(path)
    {
        return Some(to);
    }
    let Some(number) = state::temporary().find(path) else {
        return artifact::link_at(path);
    };
    let node = state::temporary().node(number);
    (node.kind == Kind::Link).then(|| node.content())
}

pub(super) fn directory_of(descriptor: u64) -> Result<Path, Errno> {
    match state::files().get(descriptor)?.object {
        Object::Directory(number) => Ok(state::open_directories().path(number)),
        _ => Err(Errno::ENOTDIR),
    }
}

pub(super) fn find(path: &Path) -> Result<Found, Errno> {
    let bytes = path.as_bytes();
    if let Some(number) = state::temporary().find(bytes) {
        let is_directory = state::temporary().node(number).kind == Kind::Directory;
        return match path.is_directory && !is_directory {
            true => Err(Errno::ENOTDIR),
            false if is_directory => Ok(Found::Directory),
            false => Ok(Found::Node(number)),
        };
    }
    if let Some((number, entry)) = artifact::find(bytes) {
        return match entry.kind {
            tree::Kind::Directory => Ok(Found::Directory),
            _ if path.is_directory => Err(Errno::ENOTDIR),
            tree::Kind::File => Ok(Found::Brought(number)),
            tree::Kind::Link => Ok(Found::Link(artifact::content(&entry))),
        };
    }
    if is_directory(bytes) {
        return Ok(Found::Directory);
    }
    if bytes == b"/proc/1/exe" {
        return Ok(Found::Link(PROGRAM));
    }
    // The name of a thread is asked for by whatever path leads to it.
    if bytes.starts_with(b"/proc/")
        && let Some(found) = find_own(bytes)
    {
        return Ok(found);
    }
    match builtin::find(bytes) {
        Some(_) if path.is_directory => Err(Errno::ENOTDIR),
        Some(entry) => match builtin::ENTRIES[entry].1 {
            Entry::Link(to) => Ok(Found::Link(to.as_bytes())),
            _ => Ok(Found::Entry(entry)),
        },
        None => Err(missing(path)),
    }
}

/// What is in /proc/self by a number.
fn find_own(path: &[u8]) -> Option<Found> {
    let is_open = |number: &u64| state::files().get(*number).is_ok();
    let descriptor = number_in(path, b"/proc/1/fd").filter(is_open);
    let info = number_in(path, b"/proc/1/fdinfo").filter(is_open);
    descriptor
        .map(Found::Descriptor)
        .or(info.map(Found::Info))
        .or(thread_named(path).map(Found::Name))
        .or_else(|| own_link(path).map(Found::Link))
}

/// Where a link in /proc/self leads.
fn own_link(path: &[u8]) -> Option<&'static [u8]> {
    if path == b"/proc/1/exe" && artifact::find(PROGRAM).is_some() {
        return Some(PROGRAM);
    }
    if path == b"/proc/1/cwd" {
        return Some(state::working_directory().as_bytes());
    }
    let thread = u32::try_from(number_in(path, b"/proc/1/task")?).ok()?;
    let is_there = state::threads().index_of(thread).is_some();
    is_there.then_some(b"/proc/1")
}

pub(super) fn is_directory(path: &[u8]) -> bool {
    state::temporary().is_directory(path)
        || artifact::is_directory(path)
        || builtin::is_directory(path)
}

/// Whether a path is that of something that can be written, or would be if it were there.
pub(super) fn is_writable(path: &Path) -> bool {
    root_of(path).is_some()
}

/// In which of the two writable file systems such a path is.
pub(super) fn root_of(path: &Path) -> Option<&'static [u8]> {
    let mut at = path.as_bytes();
    while !temporary::is_root(at) && state::temporary().find(at).is_none() {
        if artifact::find(at).is_some() || builtin::find(at).is_some() || builtin::is_directory(at)
        {
            return None;
        }
        at = parent(at);
    }
    let in_shared = below(at, SHARED_MEMORY).is_some() || at == SHARED_MEMORY;
    Some(if in_shared { SHARED_MEMORY } else { b"/" })
}

/// Why nothing is at a path.
pub(super) fn missing(path: &Path) -> Errno {
    let parent = path.parent();
    let is_file = state::temporary().find(parent).is_some()
        || artifact::find(parent).is_some()
        || builtin::find(parent).is_some();
    match is_file && !is_directory(parent) {
        true => Errno::ENOTDIR,
        false => Errno::ENOENT,
    }
}

/// Where a new file may be: in a directory that can be written to.
pub(super) fn room_for(path: &Path) -> Result<(), Errno> {
    if !is_directory(path.parent()) {
        return Err(missing(path));
    }
    match is_writable(path) && !temporary::is_root(path.as_bytes()) {
        true => Ok(()),
        false => Err(Errno::EROFS),
    }
}
