//! Directories: what is in one, and which one the program works in.

use core::fmt::Write as _;
use core::ops::Range;

use super::lookup::{AT_FDCWD, Follow, Found, directory_of, find, is_directory, resolve};
use super::paths::{Path, below};
use super::piece::KeptPath;
use super::status::kind_of;
use super::{MAX_OBJECTS, Object, Open, artifact, builtin};
use crate::errno::{Errno, SysResult};
use crate::host::Text;
use crate::{stat, state, user};

/// The position behind all names.
const END: u64 = i64::MAX as u64;

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
            let (used, position) = list_names(&open, number, to, bytes)?;
            if let Ok(open) = state::files().get_mut(descriptor) {
                open.position = position;
            }
            Ok(used)
        }
        _ => Err(Errno::ENOTDIR),
    }
}

/// The position in a directory counts its names. Gives the bytes used, and the new position.
fn list_names(open: &Open, number: u16, to: u64, bytes: u64) -> Result<(u64, u64), Errno> {
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
        skip: open.position,
        place: 0,
        full: false,
    };
    listing.enter(b".", stat::Kind::Directory)?;
    listing.enter(b"..", stat::Kind::Directory)?;
    let brought = artifact::find(path).map(|(_, entry)| entry);
    if let (Some(entry), Some(tree)) = (brought, artifact::tree()) {
        for number in listing.pass(tree.children(&entry)) {
            if let Some(entry) = tree.entry(number).filter(|_| !listing.full) {
                listing.enter(entry.name(), artifact::kind(&entry))?;
            }
        }
    }
    let mut last = &b""[..];
    for name in builtin::names(path) {
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
            listing.enter(name, kind)?;
        }
    }
    if path == b"/" {
        listing.enter(b"tmp", stat::Kind::Directory)?;
    }
    for (name, _, kind) in state::temporary().all() {
        if let Some(name) = below(name, path)
            && !name.contains(&b'/')
        {
            listing.enter(name, kind_of(kind))?;
        }
    }
    list_numbers(path, &mut listing)?;
    match listing.used {
        0 if listing.full => Err(Errno::EINVAL),
        used if listing.full => Ok((used, open.position + listing.entered())),
        used => Ok((used, END)),
    }
}

/// Directories of numbers: descriptors and threads.
fn list_numbers(path: &[u8], listing: &mut Listing) -> Result<(), Errno> {
    let mut enter = |number: u64, kind| {
        let mut text = Text::<20> {
            bytes: [0; 20],
            used: 0,
        };
        // It has at most 20 digits.
        let _ = write!(text, "{number}");
        listing.enter(&text.bytes[..text.used], kind)
    };
    match path {
        b"/proc/1/fd" => {
            for number in state::files().numbers() {
                enter(number, stat::Kind::Link)?;
            }
        }
        b"/proc/1/fdinfo" => {
            for number in state::files().numbers() {
                enter(number, stat::Kind::File)?;
            }
        }
        b"/proc/1/task" => {
            for id in state::threads().ids() {
                enter(id.into(), stat::Kind::Directory)?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// A buffer of `struct linux_dirent64` that is being filled.
struct Listing {
    to: u64,
    room: u64,
    used: u64,
    /// So many names were listed before.
    skip: u64,
    /// Names so far, those included.
    place: u64,
    full: bool,
}

impl Listing {
    fn enter(&mut self, name: &[u8], kind: stat::Kind) -> Result<(), Errno> {
        const HEAD_BYTES: usize = 19;
        let record = (HEAD_BYTES + name.len() + 1).next_multiple_of(8) as u64;
        if self.full || self.place < self.skip {
            self.place += u64::from(!self.full);
            return Ok(());
        }
        if self.used + record > self.room {
            self.full = true;
            return Ok(());
        }
        self.place += 1;
        let room = user::slice_mut(self.to.wrapping_add(self.used), record)?;
        room.fill(0);
        room[..8].copy_from_slice(&(self.place + 1).to_le_bytes());
        room[8..16].copy_from_slice(&self.place.to_le_bytes());
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

    /// Passes over the numbers, one for each name, that were listed before; gives the rest.
    fn pass(&mut self, numbers: Range<u32>) -> Range<u32> {
        let before = self.skip.saturating_sub(self.place);
        let before = before.min(u64::from(numbers.end - numbers.start));
        self.place += before;
        numbers.start + before as u32..numbers.end
    }

    /// Names that this call has listed.
    fn entered(&self) -> u64 {
        self.place.saturating_sub(self.skip)
    }
}
