//! What is told of files: `stat` and its kin, `access`, `statfs`.

use super::builtin::{self, Entry};
use super::lookup::{AT_FDCWD, Follow, Found, find, is_writable, resolve};
use super::paths::Path;
use super::{Object, artifact, temporary};
use crate::errno::{Errno, SysResult};
use crate::stat::{self, Kind, Status};
use crate::{state, user};

/// It is about a link itself.
pub const AT_SYMLINK_NOFOLLOW: u64 = 0x100;
pub(super) const AT_EMPTY_PATH: u64 = 0x1000;

fn of_path(path: &Path) -> Result<Status, Errno> {
    Ok(match find(path)? {
        Found::Directory => of_directory(path.as_bytes()),
        Found::Node(number) => of_node(number),
        Found::Brought(number) => match artifact::entry(number) {
            Some(entry) => artifact::status(number, &entry),
            None => return Err(Errno::ENOENT),
        },
        Found::Entry(entry) => match builtin::ENTRIES[entry].1 {
            Entry::Device(object) => of_object(object),
            _ => of_made(entry as u8),
        },
        Found::Link(to) => match artifact::find(path.as_bytes()) {
            Some((number, entry)) => artifact::status(number, &entry),
            None => Status {
                size: to.len() as u64,
                ..Status::of(Kind::Link)
            },
        },
        Found::Descriptor(number) => of_descriptor(number)?,
        Found::Info(_) => Status::of(Kind::File),
        Found::Name(_) => Status {
            mode: 0o644,
            ..Status::of(Kind::File)
        },
    })
}

/// What `stat` says of a file that the program has written.
fn of_node(number: u16) -> Status {
    let node = state::temporary().node(number);
    Status {
        kind: kind_of(node.kind),
        mode: node.mode,
        size: node.size,
        // Beside those of the built-in entries.
        number: 10_000 + u64::from(number),
        user: node.user,
        group: node.group,
        accessed_ns: node.accessed_ns,
        modified_ns: node.modified_ns,
        names: node.names(),
    }
}

pub(super) fn kind_of(kind: temporary::Kind) -> Kind {
    match kind {
        temporary::Kind::File => Kind::File,
        temporary::Kind::Directory => Kind::Directory,
        temporary::Kind::Link => Kind::Link,
        temporary::Kind::Socket => Kind::Socket,
        temporary::Kind::Fifo => Kind::Pipe,
    }
}

/// What `stat` says of a built-in file; as in Linux's /proc it has no size.
fn of_made(entry: u8) -> Status {
    Status {
        number: 100 + u64::from(entry),
        ..Status::of(Kind::File)
    }
}

/// What `stat` says of a directory.
fn of_directory(path: &[u8]) -> Status {
    if let Some(number) = state::temporary().find(path) {
        return of_node(number);
    }
    match artifact::find(path) {
        Some((number, entry)) => artifact::status(number, &entry),
        None => of_plain_directory(path),
    }
}

/// What `stat` says of a directory that is nothing but its path.
fn of_plain_directory(path: &[u8]) -> Status {
    // FNV-1a
    let number = path.iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    });
    Status {
        number: number | 1 << 62,
        mode: match path {
            b"/" => 0o755,
            path if temporary::is_root(path) => 0o1777,
            _ => 0o555,
        },
        ..Status::of(Kind::Directory)
    }
}

/// For `stat` and its kin: with AT_EMPTY_PATH and an empty path it is about the descriptor.
pub fn at(directory: u64, path: u64, flags: u64) -> Result<Status, Errno> {
    // AT_NO_AUTOMOUNT, and how fresh statx wants it
    const ELSE: u64 = 0x800 | 0x6000;
    if flags as u32 as u64 & !(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH | ELSE) != 0 {
        return Err(Errno::EINVAL);
    }
    let empty = flags & AT_EMPTY_PATH != 0 && (path == 0 || user::path(path)?.is_empty());
    if empty && directory as u32 == AT_FDCWD as u32 {
        return of_path(state::working_directory());
    }
    if empty {
        return of_descriptor(directory);
    }
    of_path(&resolve(
        directory,
        path,
        Follow::unless(flags & AT_SYMLINK_NOFOLLOW != 0),
    )?)
}

/// What `statx` may not be asked.
pub fn check_statx(flags: u64, mask: u64) -> Result<(), Errno> {
    // AT_STATX_FORCE_SYNC with AT_STATX_DONT_SYNC
    const BOTH: u64 = 0x6000;
    const RESERVED: u64 = 0x8000_0000;
    match flags & BOTH == BOTH || mask & RESERVED != 0 {
        true => Err(Errno::EINVAL),
        false => Ok(()),
    }
}

/// `lstat`
pub fn of_link(path: u64) -> Result<Status, Errno> {
    at(AT_FDCWD, path, AT_SYMLINK_NOFOLLOW)
}

/// `access` and its kin: everything can be read, what the program has made and devices can be written.
pub fn access(directory: u64, path: u64, mode: u64) -> SysResult {
    const X_OK: u64 = 1;
    const W_OK: u64 = 2;
    if mode as u32 > 7 {
        return Err(Errno::EINVAL);
    }
    let path = resolve(directory, path, Follow::Always)?;
    let status = of_path(&path)?;
    let writable = is_writable(&path) || status.kind == Kind::Device;
    let executable = status.kind == Kind::Directory || status.mode & 0o111 != 0;
    match mode {
        mode if mode & W_OK != 0 && !writable => Err(Errno::EROFS),
        mode if mode & X_OK != 0 && !executable => Err(Errno::EACCES),
        _ => Ok(0),
    }
}

/// Extended attributes, of which no file has any and none takes one; `number` is the call's.
pub fn extended(number: u64, file: u64) -> SysResult {
    // For each way to say which file: set, get, list and remove come three times over.
    match number % 3 {
        // By descriptor: fsetxattr, fgetxattr, flistxattr, fremovexattr.
        1 => {
            of_descriptor(file)?;
        }
        // Of a link itself.
        0 => {
            of_link(file)?;
        }
        _ => {
            at(AT_FDCWD, file, 0)?;
        }
    }
    match number {
        188..=190 => Err(Errno::EOPNOTSUPP),
        194..=196 => Ok(0),
        _ => Err(Errno::ENODATA),
    }
}

/// `statfs`
pub fn file_system(path: u64, to: u64) -> SysResult {
    let path = resolve(AT_FDCWD, path, Follow::Always)?;
    find(&path)?;
    tell_file_system(is_writable(&path), to)
}

/// `fstatfs`
pub fn file_system_of(descriptor: u64, to: u64) -> SysResult {
    let in_tmp = match state::files().get(descriptor)?.object {
        Object::Directory(number) => is_writable(&state::open_directories().path(number)),
        Object::Brought(_) => false,
        _ => true,
    };
    tell_file_system(in_tmp, to)
}

/// What can be written, or what is read only.
fn tell_file_system(in_tmp: bool, to: u64) -> SysResult {
    match in_tmp {
        true => {
            let memory = state::memory();
            stat::file_system(memory.total_bytes(), memory.free_bytes(), false, to)
        }
        false => stat::file_system(artifact::tree().map_or(0, |tree| tree.bytes()), 0, true, to),
    }
}

/// What `fstat` says of a descriptor.
pub fn of_descriptor(descriptor: u64) -> Result<Status, Errno> {
    Ok(of_object(state::files().get(descriptor)?.object))
}

pub(super) fn of_object(object: Object) -> Status {
    if let Some(number) = object.node() {
        return of_node(number);
    }
    Status::of(match object {
        Object::Brought(number) => match artifact::entry(number) {
            Some(entry) => return artifact::status(number, &entry),
            None => Kind::File,
        },
        Object::Made(entry) => return of_made(entry),
        Object::File(_) | Object::Info(_) | Object::Name(_) => Kind::File,
        Object::Directory(number) => {
            let path = state::open_directories().path(number);
            return of_directory(path.as_bytes());
        }
        Object::Stream { .. } | Object::Stdin | Object::Log => Kind::Pipe,
        Object::Null | Object::Full | Object::Zero | Object::Random => Kind::Device,
        Object::Socket(_) => Kind::Socket,
        Object::Timer(_)
        | Object::Signals(_)
        | Object::Watcher(_)
        | Object::Epoll(_)
        | Object::Event(..)
        | Object::Free => Kind::Anonymous,
    })
}
