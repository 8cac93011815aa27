//! The system calls that take a path.
//!
//! Three places hold files: /tmp (writable, in memory), the artifact (read only) and the built-in entries,
//! looked up in this order.

use core::ops::Range;

use holm_hostcall::tree;

use super::artifact;
use super::builtin::{self, Entry};
use super::paths::{MAX_PATH_BYTES, Path, below};
use super::temporary::{self, Kind};
use super::{O_ACCESS, Object, Open};
use crate::errno::{Errno, SysResult};
use crate::stat::{self, Status};
use crate::{state, time, user};

/// The working directory in place of a directory's descriptor.
pub const AT_FDCWD: u64 = -100i32 as u64;
const AT_SYMLINK_NOFOLLOW: u64 = 0x100;
/// `unlinkat` is to remove a directory.
pub const AT_REMOVEDIR: u64 = 0x200;
const AT_EMPTY_PATH: u64 = 0x1000;
const O_CREAT: u64 = 0o100;
const O_PATH: u64 = 0o10_000_000;
const O_EXCL: u64 = 0o200;
const O_TRUNC: u64 = 0o1000;
const O_DIRECTORY: u64 = 0o200_000;
const O_NOFOLLOW: u64 = 0o400_000;
const O_TMPFILE: u64 = 0o20_000_000 | O_DIRECTORY;
/// Most links that a path may lead through.
const MAX_LINKS: usize = 40;
/// What /proc/self/exe leads to: the program is not a file here.
const PROGRAM: &[u8] = b"/function";

/// What is at a path.
#[derive(Clone, Copy)]
enum Found {
    Directory,
    /// In /tmp, and no directory.
    Node(u16),
    /// A file of the artifact's.
    Brought(u32),
    /// Number of a built-in entry.
    Entry(usize),
    /// A link, and where it leads; not one of /tmp.
    Link(&'static [u8]),
    /// Another name of an open descriptor.
    Descriptor(u64),
}

/// Whether a link at the end of a path is followed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Follow {
    /// It stands for what it leads to.
    Always,
    /// Only if a slash comes behind it.
    BeforeSlash,
    /// It is about the name itself, which is made, moved or removed.
    Never,
}

impl Follow {
    fn unless(stays: bool) -> Self {
        match stays {
            true => Follow::BeforeSlash,
            false => Follow::Always,
        }
    }
}

/// The absolute path that a call means; links on the way are followed.
fn resolve(directory: u64, path: u64, follow: Follow) -> Result<Path, Errno> {
    resolve_text(directory, user::path(path)?, follow)
}

/// The same, of a path that is not where the program's pointer points.
fn resolve_text(directory: u64, text: &[u8], follow: Follow) -> Result<Path, Errno> {
    if text.is_empty() {
        return Err(Errno::ENOENT);
    }
    let base = match directory as u32 {
        _ if text.first() == Some(&b'/') => Path::ROOT,
        at if at == AT_FDCWD as u32 => *state::working_directory(),
        _ => directory_of(directory)?,
    };
    walk(base, text, follow)
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
    let Some(number) = state::temporary().find(path) else {
        return artifact::link_at(path);
    };
    let node = state::temporary().node(number);
    (node.kind == Kind::Link).then(|| node.content())
}

fn directory_of(descriptor: u64) -> Result<Path, Errno> {
    match state::files().get(descriptor)?.object {
        Object::Directory(number) => Ok(state::open_directories()[usize::from(number)].1),
        _ => Err(Errno::ENOTDIR),
    }
}

fn find(path: &Path) -> Result<Found, Errno> {
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
    if bytes == b"/proc/self/exe" {
        return Ok(Found::Link(PROGRAM));
    }
    if let Some(number) = below(bytes, b"/proc/self/fd") {
        let number = core::str::from_utf8(number)
            .ok()
            .and_then(|text| text.parse().ok());
        let number = number.ok_or(Errno::ENOENT)?;
        state::files().get(number).map_err(|_| Errno::ENOENT)?;
        return Ok(Found::Descriptor(number));
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

fn is_directory(path: &[u8]) -> bool {
    state::temporary().is_directory(path)
        || artifact::is_directory(path)
        || builtin::is_directory(path)
}

/// Whether a path is that of /tmp, or of something in it.
fn is_in_tmp(path: &Path) -> bool {
    let bytes = path.as_bytes();
    bytes == temporary::ROOT || below(bytes, temporary::ROOT).is_some()
}

/// Why nothing is at a path.
fn missing(path: &Path) -> Errno {
    let parent = path.parent();
    let is_file = state::temporary().find(parent).is_some()
        || artifact::find(parent).is_some()
        || builtin::find(parent).is_some();
    match is_file && !is_directory(parent) {
        true => Errno::ENOTDIR,
        false => Errno::ENOENT,
    }
}

/// Where a new file may be: in a directory of /tmp.
fn room_for(path: &Path) -> Result<(), Errno> {
    let is_there = is_directory(path.parent());
    match below(path.as_bytes(), temporary::ROOT) {
        _ if !is_there => Err(missing(path)),
        None => Err(Errno::EROFS),
        Some(_) => Ok(()),
    }
}

/// `open` and `openat`
pub fn open(directory: u64, path: u64, flags: u64, mode: u64) -> SysResult {
    let flags = match flags & O_PATH {
        0 => u64::from(flags as u32),
        // Nothing else is heeded.
        _ => flags & (O_PATH | O_DIRECTORY | O_NOFOLLOW),
    };
    if flags & O_TMPFILE == O_TMPFILE {
        return Err(Errno::EOPNOTSUPP);
    }
    if flags & (O_CREAT | O_DIRECTORY) == O_CREAT | O_DIRECTORY {
        return Err(Errno::EINVAL);
    }
    let new = flags & (O_CREAT | O_EXCL) == O_CREAT | O_EXCL;
    // A directory is not made by this, whatever the name leads to.
    let makes_directory = flags & O_CREAT != 0 && user::path(path)?.ends_with(b"/");
    let follow = match new || makes_directory {
        true => Follow::Never,
        false => Follow::unless(flags & O_NOFOLLOW != 0),
    };
    let path = resolve(directory, path, follow)?;
    if flags & O_CREAT != 0 && path.is_directory && !path.is_dots {
        return Err(match is_directory(path.parent()) {
            true => Errno::EISDIR,
            false => missing(&path),
        });
    }
    let writes = flags & O_ACCESS != 0 || flags & O_TRUNC != 0;
    match find(&path) {
        Ok(_) if new => Err(Errno::EEXIST),
        Ok(Found::Directory) if writes || flags & O_CREAT != 0 => Err(Errno::EISDIR),
        Ok(Found::Directory) => open_directory(path, flags),
        Ok(_) if flags & O_DIRECTORY != 0 => Err(Errno::ENOTDIR),
        Ok(Found::Brought(_)) if writes || flags & O_TRUNC != 0 => Err(Errno::EROFS),
        Ok(Found::Brought(number)) => state::files().open(Object::Brought(number), flags),
        Ok(Found::Node(number)) if flags & O_PATH != 0 => open_node(number, flags),
        Ok(Found::Link(PROGRAM)) => Err(Errno::ENOENT),
        Ok(Found::Link(_)) => Err(Errno::ELOOP),
        Ok(Found::Descriptor(number)) => state::files().duplicate(number, 0),
        Ok(Found::Entry(entry)) => match builtin::ENTRIES[entry].1 {
            Entry::Device(object) => state::files().open(object, flags),
            _ if writes => Err(Errno::EACCES),
            _ => state::files().open(Object::Made(entry as u8), flags),
        },
        Ok(Found::Node(number)) => {
            match state::temporary().node(number).kind {
                Kind::Link => return Err(Errno::ELOOP),
                Kind::Socket => return Err(Errno::ENXIO),
                Kind::File | Kind::Directory => {}
            }
            if flags & O_TRUNC != 0 {
                state::temporary().node(number).resize(0)?;
            }
            open_node(number, flags)
        }
        Err(Errno::ENOENT) if flags & O_CREAT != 0 => {
            room_for(&path)?;
            if path.is_directory {
                return Err(Errno::EISDIR);
            }
            let mode = mode as u32 & 0o7777 & !*state::file_mask();
            let number = state::temporary().make(path.as_bytes(), Kind::File, mode)?;
            open_node(number, flags)
        }
        Err(error) => Err(error),
    }
}

/// Makes the file by which a local socket is found; one object stands for it then.
pub fn make_socket(text: &[u8]) -> Result<u16, Errno> {
    let path = resolve_text(AT_FDCWD, text, Follow::Never)?;
    match find(&path) {
        Ok(_) => return Err(Errno::EADDRINUSE),
        Err(Errno::ENOENT) => room_for(&path)?,
        Err(error) => return Err(error),
    }
    let mode = 0o777 & !*state::file_mask();
    let number = state::temporary().make(path.as_bytes(), Kind::Socket, mode)?;
    state::temporary().opened(number);
    Ok(number)
}

/// The file of a local socket.
pub fn find_socket(text: &[u8]) -> Result<u16, Errno> {
    match find(&resolve_text(AT_FDCWD, text, Follow::Always)?)? {
        Found::Node(number) if state::temporary().node(number).kind == Kind::Socket => Ok(number),
        _ => Err(Errno::ECONNREFUSED),
    }
}

fn open_node(number: u16, flags: u64) -> SysResult {
    let descriptor = state::files().open(Object::File(number), flags)?;
    state::temporary().opened(number);
    Ok(descriptor)
}

fn open_directory(path: Path, flags: u64) -> SysResult {
    let directories = state::open_directories();
    let free = directories.iter().position(|(used, _)| !used);
    let free = free.ok_or(Errno::EMFILE)?;
    let descriptor = state::files().open(Object::Directory(free as u8), flags)?;
    directories[free] = (true, path);
    Ok(descriptor)
}

/// `memfd_create`: a file of /tmp that never had a path.
pub fn open_memory(name: u64, flags: u64) -> SysResult {
    const MAX_NAME_BYTES: u64 = 249;
    // MFD_CLOEXEC, MFD_ALLOW_SEALING, MFD_NOEXEC_SEAL, MFD_EXEC
    const KNOWN: u64 = 0x1 | 0x2 | 0x8 | 0x10;
    const O_RDWR: u64 = 2;
    if flags as u32 as u64 & !KNOWN != 0
        || user::text(name, MAX_NAME_BYTES + 1)?.len() as u64 > MAX_NAME_BYTES
    {
        return Err(Errno::EINVAL);
    }
    let number = state::temporary().make(b"", Kind::File, 0o777)?;
    let descriptor = open_node(number, O_RDWR);
    if descriptor.is_err() {
        state::temporary().remove(number);
    }
    descriptor
}

/// What `stat` says of a file of /tmp.
pub(super) fn status_of_node(number: u16) -> Status {
    let node = state::temporary().node(number);
    Status {
        kind: kind_of(node.kind),
        mode: node.mode,
        size: node.size,
        // Beside those of the built-in entries.
        number: 10_000 + u64::from(number),
        modified_ns: node.modified_ns,
        is_removed: node.is_removed(),
    }
}

fn kind_of(kind: Kind) -> stat::Kind {
    match kind {
        Kind::File => stat::Kind::File,
        Kind::Directory => stat::Kind::Directory,
        Kind::Link => stat::Kind::Link,
        Kind::Socket => stat::Kind::Socket,
    }
}

fn status(path: &Path) -> Result<Status, Errno> {
    Ok(match find(path)? {
        Found::Directory => status_of_directory(path.as_bytes()),
        Found::Node(number) => status_of_node(number),
        Found::Brought(number) => match artifact::entry(number) {
            Some(entry) => artifact::status(number, &entry),
            None => return Err(Errno::ENOENT),
        },
        Found::Entry(entry) => match builtin::ENTRIES[entry].1 {
            Entry::Device(object) => super::status_of(object),
            _ => made_status(entry as u8),
        },
        Found::Link(to) => match artifact::find(path.as_bytes()) {
            Some((number, entry)) => artifact::status(number, &entry),
            None => Status {
                size: to.len() as u64,
                ..Status::of(stat::Kind::Link)
            },
        },
        Found::Descriptor(number) => super::status(number)?,
    })
}

/// What `stat` says of a built-in file; as in Linux's /proc it has no size.
pub(super) fn made_status(entry: u8) -> Status {
    Status {
        number: 100 + u64::from(entry),
        ..Status::of(stat::Kind::File)
    }
}

/// What `stat` says of a directory.
pub(super) fn status_of_directory(path: &[u8]) -> Status {
    if let Some(number) = state::temporary().find(path) {
        return status_of_node(number);
    }
    match artifact::find(path) {
        Some((number, entry)) => artifact::status(number, &entry),
        None => directory_status(path),
    }
}

/// What `stat` says of a directory that is nothing but its path.
fn directory_status(path: &[u8]) -> Status {
    // FNV-1a
    let number = path.iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    });
    Status {
        number: number | 1 << 62,
        mode: if path == temporary::ROOT {
            0o1777
        } else {
            0o555
        },
        ..Status::of(stat::Kind::Directory)
    }
}

/// For `stat` and its kin: with AT_EMPTY_PATH and an empty path it is about the descriptor.
pub fn status_at(directory: u64, path: u64, flags: u64) -> Result<Status, Errno> {
    // AT_NO_AUTOMOUNT, and how fresh statx wants it
    const ELSE: u64 = 0x800 | 0x6000;
    if flags as u32 as u64 & !(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH | ELSE) != 0 {
        return Err(Errno::EINVAL);
    }
    let empty = flags & AT_EMPTY_PATH != 0 && (path == 0 || user::path(path)?.is_empty());
    if empty && directory as u32 == AT_FDCWD as u32 {
        return status(state::working_directory());
    }
    if empty {
        return super::status(directory);
    }
    status(&resolve(
        directory,
        path,
        Follow::unless(flags & AT_SYMLINK_NOFOLLOW != 0),
    )?)
}

/// `statfs`
pub fn file_system(path: u64, to: u64) -> SysResult {
    let path = resolve(AT_FDCWD, path, Follow::Always)?;
    find(&path)?;
    tell_file_system(is_in_tmp(&path), to)
}

/// `fstatfs`
pub fn file_system_of(descriptor: u64, to: u64) -> SysResult {
    let in_tmp = match state::files().get(descriptor)?.object {
        Object::Directory(number) => is_in_tmp(&state::open_directories()[usize::from(number)].1),
        Object::Brought(_) => false,
        _ => true,
    };
    tell_file_system(in_tmp, to)
}

/// /tmp, or what is read only.
fn tell_file_system(in_tmp: bool, to: u64) -> SysResult {
    match in_tmp {
        true => {
            let memory = state::memory();
            stat::file_system(memory.total_bytes(), memory.free_bytes(), false, to)
        }
        false => stat::file_system(artifact::tree().map_or(0, |tree| tree.bytes()), 0, true, to),
    }
}

/// `lstat`
pub fn link_status(path: u64) -> Result<Status, Errno> {
    status_at(AT_FDCWD, path, AT_SYMLINK_NOFOLLOW)
}

/// `access` and its kin: everything can be read, /tmp and devices can be written.
pub fn access(directory: u64, path: u64, mode: u64) -> SysResult {
    const X_OK: u64 = 1;
    const W_OK: u64 = 2;
    if mode as u32 > 7 {
        return Err(Errno::EINVAL);
    }
    let path = resolve(directory, path, Follow::Always)?;
    let status = status(&path)?;
    let in_tmp = is_in_tmp(&path) || path.as_bytes() == temporary::ROOT;
    let writable = in_tmp || status.kind == stat::Kind::Device;
    let executable = status.kind == stat::Kind::Directory || status.mode & 0o111 != 0;
    match mode {
        mode if mode & W_OK != 0 && !writable => Err(Errno::EROFS),
        mode if mode & X_OK != 0 && !executable => Err(Errno::EACCES),
        _ => Ok(0),
    }
}

/// `readlink` and `readlinkat`
pub fn read_link(directory: u64, path: u64, to: u64, bytes: u64) -> SysResult {
    if bytes as u32 as i32 <= 0 {
        return Err(Errno::EINVAL);
    }
    let target = match find(&resolve(directory, path, Follow::BeforeSlash)?)? {
        Found::Link(target) => target,
        Found::Node(number) if state::temporary().node(number).kind == Kind::Link => {
            state::temporary().node(number).content()
        }
        Found::Descriptor(_) => b"anon_inode:[holm]",
        _ => return Err(Errno::EINVAL),
    };
    let bytes = u64::from(bytes as u32).min(target.len() as u64);
    user::slice_mut(to, bytes)?.copy_from_slice(&target[..bytes as usize]);
    Ok(bytes)
}

/// The path of a call that makes something new.
fn new_path(directory: u64, path: u64) -> Result<Path, Errno> {
    let path = resolve(directory, path, Follow::Never)?;
    // A file with a slash behind its name is there too.
    let is_there = state::temporary().find(path.as_bytes()).is_some();
    if is_there || find(&path).is_ok() {
        return Err(Errno::EEXIST);
    }
    room_for(&path)?;
    Ok(path)
}

/// `mkdir` and `mkdirat`
pub fn make_directory(directory: u64, path: u64, mode: u64) -> SysResult {
    let path = new_path(directory, path)?;
    let mode = mode as u32 & 0o1777 & !*state::file_mask();
    state::temporary().make(path.as_bytes(), Kind::Directory, mode)?;
    Ok(0)
}

/// `symlink` and `symlinkat`
pub fn make_link(target: u64, directory: u64, path: u64) -> SysResult {
    let target = user::path(target)?;
    if target.is_empty() {
        return Err(Errno::ENOENT);
    }
    let path = new_path(directory, path)?;
    if path.is_directory {
        return Err(Errno::ENOENT);
    }
    let number = state::temporary().make(path.as_bytes(), Kind::Link, 0o777)?;
    state::temporary().node(number).write(0, target)?;
    Ok(0)
}

/// `unlink`, `rmdir` and `unlinkat`
pub fn remove(directory: u64, path: u64, flags: u64) -> SysResult {
    let path = resolve(directory, path, Follow::Never)?;
    if flags as u32 as u64 & !AT_REMOVEDIR != 0 {
        return Err(Errno::EINVAL);
    }
    let wants_directory = flags & AT_REMOVEDIR != 0;
    if path.is_dots || path.as_bytes() == b"/" {
        return Err(match (wants_directory, path.as_bytes()) {
            (false, _) => Errno::EISDIR,
            (true, b"/") => Errno::EBUSY,
            (true, _) if path.is_up => Errno::ENOTEMPTY,
            (true, _) => Errno::EINVAL,
        });
    }
    if is_directory(path.parent()) && !is_in_tmp(&path) {
        return Err(Errno::EROFS);
    }
    let is_directory = matches!(find(&path)?, Found::Directory);
    match (is_directory, wants_directory) {
        (true, false) => return Err(Errno::EISDIR),
        (false, true) => return Err(Errno::ENOTDIR),
        _ if path.as_bytes() == temporary::ROOT => return Err(Errno::EBUSY),
        (true, true) if state::temporary().has_children(path.as_bytes()) => {
            return Err(Errno::ENOTEMPTY);
        }
        _ => {}
    }
    let number = state::temporary().find(path.as_bytes());
    state::temporary().remove(number.ok_or(Errno::EROFS)?);
    if is_directory {
        has_moved(&path, None);
    }
    Ok(0)
}

/// Open directories and the working directory are known by their paths: one that has moved, or is gone, has
/// another one.
fn has_moved(from: &Path, to: Option<&Path>) {
    let open = state::open_directories()
        .iter_mut()
        .filter(|(used, _)| *used)
        .map(|(_, path)| path);
    for at in open.chain([state::working_directory()]) {
        let rest = below(at.as_bytes(), from.as_bytes());
        if rest.is_none() && at.as_bytes() != from.as_bytes() {
            continue;
        }
        let moved = match (to, rest) {
            (Some(to), Some(rest)) => to.join(rest).ok(),
            (Some(to), None) => Some(*to),
            (None, _) => None,
        };
        *at = moved.unwrap_or(Path::GONE);
    }
}

/// `rename`, `renameat` and `renameat2`
pub fn rename(from_at: u64, from: u64, to_at: u64, to: u64, flags: u64) -> SysResult {
    const NOREPLACE: u64 = 1;
    if flags & !NOREPLACE != 0 {
        return Err(Errno::EINVAL);
    }
    let from = resolve(from_at, from, Follow::Never)?;
    let to = resolve(to_at, to, Follow::Never)?;
    if from.is_dots || to.is_dots {
        let taken = !from.is_dots && flags & NOREPLACE != 0;
        return Err(if taken { Errno::EEXIST } else { Errno::EBUSY });
    }
    if is_in_tmp(&from) != is_in_tmp(&to) {
        return Err(Errno::EXDEV);
    }
    let source = find(&from);
    let target = find(&to).is_ok() || state::temporary().find(to.as_bytes()).is_some();
    if source.is_err() && flags & NOREPLACE != 0 && target {
        let is_there = state::temporary().find(from.as_bytes()).is_some();
        return Err(if is_there {
            Errno::EEXIST
        } else {
            missing(&from)
        });
    }
    let moves_directory = matches!(source?, Found::Directory);
    let is_taken = flags & NOREPLACE != 0 && state::temporary().find(to.as_bytes()).is_some();
    if !moves_directory && to.is_directory && !is_taken {
        return Err(Errno::ENOTDIR);
    }
    if flags & NOREPLACE == 0 && below(from.as_bytes(), to.as_bytes()).is_some() {
        return Err(Errno::ENOTEMPTY);
    }
    if state::temporary().find(from.as_bytes()).is_none() {
        return Err(Errno::EROFS);
    }
    room_for(&to)?;
    if below(to.as_bytes(), from.as_bytes()).is_some() {
        return Err(if is_taken {
            Errno::EEXIST
        } else {
            Errno::EINVAL
        });
    }
    match (find(&to), moves_directory) {
        (Ok(_), _) if flags & NOREPLACE != 0 => return Err(Errno::EEXIST),
        _ if from.as_bytes() == to.as_bytes() => return Ok(0),
        (Ok(Found::Directory), false) => return Err(Errno::EISDIR),
        (Ok(Found::Directory), true) if state::temporary().has_children(to.as_bytes()) => {
            return Err(Errno::ENOTEMPTY);
        }
        (Ok(Found::Node(_)), true) => return Err(Errno::ENOTDIR),
        (Ok(_), _) => {
            if let Some(number) = state::temporary().find(to.as_bytes()) {
                state::temporary().remove(number);
                has_moved(&to, None);
            }
        }
        (Err(Errno::ENOENT), false) if to.is_directory => return Err(Errno::ENOTDIR),
        (Err(Errno::ENOENT), _) => {}
        (Err(Errno::ENOTDIR), _)
            if flags & NOREPLACE != 0 && state::temporary().find(to.as_bytes()).is_some() =>
        {
            return Err(Errno::EEXIST);
        }
        (Err(error), _) => return Err(error),
    }
    state::temporary().rename(from.as_bytes(), to.as_bytes())?;
    if moves_directory {
        has_moved(&from, Some(&to));
    }
    Ok(0)
}

/// `truncate`
pub fn truncate(path: u64, size: u64) -> SysResult {
    if size > i64::MAX as u64 {
        return Err(Errno::EINVAL);
    }
    match find(&resolve(AT_FDCWD, path, Follow::Always)?)? {
        Found::Node(number) => state::temporary().node(number).resize(size).map(|()| 0),
        Found::Directory => Err(Errno::EISDIR),
        _ => Err(Errno::EROFS),
    }
}

/// `chmod`, `chown`, `utimensat` and their kin: the mode is remembered; nothing is ever heeded.
pub fn set_attributes(directory: u64, path: u64, mode: Option<u64>) -> SysResult {
    let path = resolve(directory, path, Follow::Always)?;
    let found = find(&path)?;
    let Some(number) = state::temporary().find(path.as_bytes()) else {
        return match found {
            Found::Directory if path.as_bytes() == temporary::ROOT => Ok(0),
            _ => Err(Errno::EROFS),
        };
    };
    if let Some(mode) = mode {
        state::temporary().node(number).mode = mode as u32 & 0o7777;
    }
    Ok(0)
}

/// `utimensat`: the time of the last change is remembered. Without a path it is about the descriptor.
pub fn set_times(directory: u64, path: u64, times: u64, flags: u64) -> SysResult {
    const NOW: u64 = 0x3fff_ffff;
    const OMIT: u64 = 0x3fff_fffe;
    // Told only when the file is known to be there.
    let mut wrong = false;
    let modified = match times {
        0 => Some(time::realtime_ns()),
        times => {
            let [_, accessed_ns] = user::read::<[u64; 2]>(times)?;
            let [modified, modified_ns] = user::read::<[u64; 2]>(times.wrapping_add(16))?;
            wrong = [accessed_ns, modified_ns]
                .iter()
                .any(|ns| *ns >= 1_000_000_000 && !matches!(*ns, NOW | OMIT));
            if accessed_ns == OMIT && modified_ns == OMIT {
                return Ok(0);
            }
            match modified_ns {
                NOW => Some(time::realtime_ns()),
                OMIT => None,
                ns => Some(modified.saturating_mul(1_000_000_000).saturating_add(ns)),
            }
        }
    };
    if flags as u32 as u64 & !(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH) != 0 {
        return Err(Errno::EINVAL);
    }
    let number = if path == 0 {
        if directory as u32 == AT_FDCWD as u32 {
            return Err(Errno::EFAULT);
        }
        match state::files().get(directory)?.object {
            Object::File(number) => Some(number),
            Object::Made(_) => return Err(Errno::EROFS),
            _ => None,
        }
    } else {
        let path = resolve(
            directory,
            path,
            Follow::unless(flags & AT_SYMLINK_NOFOLLOW != 0),
        )?;
        find(&path)?;
        let number = state::temporary().find(path.as_bytes());
        if number.is_none() && path.as_bytes() != temporary::ROOT {
            return Err(Errno::EROFS);
        }
        number
    };
    if wrong {
        return Err(Errno::EINVAL);
    }
    if let (Some(number), Some(modified)) = (number, modified) {
        state::temporary().node(number).modified_ns = modified;
    }
    Ok(0)
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

/// `getdents64`. The position in a directory counts its names.
pub(super) fn list(open: &mut Open, number: u8, to: u64, bytes: u64) -> SysResult {
    let directory = state::open_directories()[usize::from(number)].1;
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
        listing.enter(&temporary::ROOT[1..], stat::Kind::Directory)?;
    }
    for (_, node) in state::temporary().all() {
        if let Some(name) = below(node.path(), path)
            && !name.contains(&b'/')
        {
            listing.enter(name, kind_of(node.kind))?;
        }
    }
    open.position += listing.entered();
    match listing.used {
        0 if listing.full => Err(Errno::EINVAL),
        used => Ok(used),
    }
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
