//! Directories: what is in one, and which one the program works in.

use core::fmt::Write as _;

use super::lookup::{AT_FDCWD, Follow, Found, directory_of, find, is_directory, resolve};
use super::paths::{Path, below};
use super::piece::KeptPath;
use super::status::kind_of;
use super::{MAX_OBJECTS, Object, artifact, builtin};
use crate::errno::{Errno, SysResult};
use crate::host::Text;
use crate::{stat, state, user};

/// The position behind all names.
const END: u64 = i64::MAX as u64;
/// Where the names of one origin begin: what the artifact brings, what is built in, what was written, and numbers.
const BROUGHT: u64 = 1 << 33;
const BUILT_IN: u64 = 2 << 33;
const WRITTEN: u64 = 3 << 33;
const NUMBERS: u64 = 4 << 33;

/// The open directories: the path of each, since a directory may be nothing but its path.
pub struct OpenDirectories {
    paths: [KeptPath; MAX_OBJECTS],
}

impl OpenDirectories {
    /// None.
    pub const fn new() -> Self {
        OpenDirectories {
            paths: [KeptPath::NONE; MAX_OBJECTS],
        }
    }

    /// One more; gives its number.
    pub(super) fn add(&mut self, path: &Path) -> Result<u16, Errno> {
        let free = self.paths.iter().position(KeptPath::is_none);
        let free = free.ok_or(Errno::EMFILE)?;
        let kept = self.paths[free].set(path.as_bytes());
        kept.map_err(|_| Errno::ENOMEM)?;
        Ok(free as u16)
    }

    /// It was closed. Its memory stays for the next.
    pub(super) fn remove(&mut self, number: u16) {
        self.paths[usize::from(number)].clear();
    }

    /// Where it is.
    pub(super) fn path(&self, number: u16) -> Path {
        Path::of_directory(self.paths[usize::from(number)].as_bytes())
    }

    /// Directories and the working directory are known by their paths: one that has moved, or is gone, has
    /// another one.
    pub(super) fn moved(&mut self, from: &Path, to: Option<&Path>) {
        for kept in self.paths.iter_mut().filter(|kept| !kept.is_none()) {
            if let Some(new) = Path::of_directory(kept.as_bytes()).moved(from, to) {
                // There is room: it has a path already.
                let _ = kept.set(new.as_bytes());
            }
        }
        let working = state::working_directory();
        *working = working.moved(from, to).unwrap_or(*working);
    }
}

impl Default for OpenDirectories {
    fn default() -> Self {
        OpenDirectories::new()
    }
}

/// Where an open directory is.
pub fn path_of(number: u16) -> Path {
    state::open_directories().path(number)
}

/// `chdir`
pub fn change_directory(path: u64) -> SysResult {
    let path = resolve(AT_FDCWD, path, Follow::Always)?;
    match find(&path)? {
        Found::Directory => {
            *state::working_directory() = path;
            Ok(0)
        }
        _ => Err(Errno::ENOTDIR),
    }
}

/// `fchdir`
pub fn change_directory_to(descriptor: u64) -> SysResult {
    *state::working_directory() = directory_of(descriptor)?;
    Ok(0)
}

/// `getcwd`
pub fn working_directory(to: u64, bytes: u64) -> SysResult {
    let path = state::working_directory().as_bytes();
    let needed = path.len() as u64 + 1;
    if bytes < needed {
        return Err(Errno::ERANGE);
    }
    let room = user::slice_mut(to, needed)?;
    room[..path.len()].copy_from_slice(path);
    room[path.len()] = 0;
    Ok(needed)
}

/// `getdents64`
pub fn list(descriptor: u64, to: u64, bytes: u64) -> SysResult {
    let open = state::files().get(descriptor)?;
    match open.object {
        _ if open.is_name() => Err(Errno::EBADF),
        // What is new since the end was reached is not listed before it is begun anew.
        Object::Directory(_) if open.position == END => Ok(0),
        Object::Directory(number) => {
            let (used, position) = list_names(open.position, number, to, bytes)?;
            if let Ok(open) = state::files().get_mut(descriptor) {
                open.position = position;
            }
            Ok(used)
        }
        _ => Err(Errno::ENOTDIR),
    }
}

/// The position in a directory is that of a name: its place among those of its origin, behind the number of that.
/// So whoever removes what was listed finds all the rest.
fn list_names(position: u64, number: u16, to: u64, bytes: u64) -> Result<(u64, u64), Errno> {
    let directory = state::open_directories().path(number);
    let path = directory.as_bytes();
    if !is_directory(path) {
        // It was removed while it was open.
        return Err(Errno::ENOENT);
    }
    let mut listing = Listing {
        to,
        room: bytes,
        used: 0,
        position,
        full: false,
    };
    listing.enter(0, b".", stat::Kind::Directory)?;
    listing.enter(1, b"..", stat::Kind::Directory)?;
    let brought = artifact::find(path).map(|(_, entry)| entry);
    if let (Some(entry), Some(tree)) = (brought, artifact::tree()) {
        let children = tree.children(&entry);
        let passed = listing.position.saturating_sub(BROUGHT);
        let first = passed.clamp(children.start.into(), children.end.into()) as u32;
        for number in first..children.end {
            if let Some(entry) = tree.entry(number).filter(|_| !listing.full) {
                listing.enter(
                    BROUGHT + u64::from(number),
                    entry.name(),
                    artifact::kind(&entry),
                )?;
            }
        }
    }
    let mut last = &b""[..];
    for (place, name) in (BUILT_IN..).zip(builtin::names(path)) {
        // What the artifact has, hides what is built in.
        let hidden = brought.is_some()
            && (directory.join(name)).is_ok_and(|path| artifact::find(path.as_bytes()).is_some());
        if name != last && !hidden {
            last = name;
            let kind = match directory.join(name).and_then(|path| find(&path)) {
                Ok(Found::Directory) => stat::Kind::Directory,
                Ok(Found::Link(_)) => stat::Kind::Link,
                _ => stat::Kind::File,
            };
            listing.enter(place, name, kind)?;
        }
    }
    if path == b"/" {
        listing.enter(WRITTEN - 1, b"tmp", stat::Kind::Directory)?;
    }
    let passed = listing.position.saturating_sub(WRITTEN) as usize;
    for (place, name, kind) in state::temporary().all_from(passed) {
        if listing.full {
            break;
        }
        if let Some(name) = below(name, path)
            && !name.contains(&b'/')
        {
            listing.enter(WRITTEN + place as u64, name, kind_of(kind))?;
        }
    }
    list_numbers(path, &mut listing)?;
    match listing.used {
        0 if listing.full => Err(Errno::EINVAL),
        used if listing.full => Ok((used, listing.position)),
        used => Ok((used, END)),
    }
}

/// Directories of numbers: descriptors and threads.
fn list_numbers(path: &[u8], listing: &mut Listing) -> Result<(), Errno> {
    let (is_threads, kind) = match path {
        b"/proc/1/fd" => (false, stat::Kind::Link),
        b"/proc/1/fdinfo" => (false, stat::Kind::File),
        b"/proc/1/task" => (true, stat::Kind::Directory),
        _ => return Ok(()),
    };
    let mut least = listing.position.saturating_sub(NUMBERS);
    // Threads are in no order.
    let next = |least: u64| match is_threads {
        true => {
            let ids = state::threads().ids().map(u64::from);
            ids.filter(|id| *id >= least).min()
        }
        false => state::files().numbers().find(|number| *number >= least),
    };
    while let Some(number) = next(least).filter(|_| !listing.full) {
        let mut text = Text::<20> {
            bytes: [0; 20],
            used: 0,
        };
        // It has at most 20 digits.
        let _ = write!(text, "{number}");
        listing.enter(NUMBERS + number, &text.bytes[..text.used], kind)?;
        least = number + 1;
    }
    Ok(())
}

/// A buffer of `struct linux_dirent64` that is being filled.
struct Listing {
    to: u64,
    room: u64,
    used: u64,
    /// Names before it were listed.
    position: u64,
    full: bool,
}

impl Listing {
    fn enter(&mut self, place: u64, name: &[u8], kind: stat::Kind) -> Result<(), Errno> {
        const HEAD_BYTES: usize = 19;
        let record = (HEAD_BYTES + name.len() + 1).next_multiple_of(8) as u64;
        if self.full || place < self.position {
            return Ok(());
        }
        if self.used + record > self.room {
            self.full = true;
            return Ok(());
        }
        self.position = place + 1;
        let room = user::slice_mut(self.to.wrapping_add(self.used), record)?;
        room.fill(0);
        room[..8].copy_from_slice(&(place + 1).to_le_bytes());
        room[8..16].copy_from_slice(&self.position.to_le_bytes());
        room[16..18].copy_from_slice(&(record as u16).to_le_bytes());
        room[18] = match kind {
            stat::Kind::Directory => 4,
            stat::Kind::Link => 10,
            stat::Kind::Pipe => 1,
            stat::Kind::Socket => 12,
            _ => 8,
        };
        room[HEAD_BYTES..HEAD_BYTES + name.len()].copy_from_slice(name);
        self.used += record;
        Ok(())
    }
}
