//! Names: made, moved and removed among what the program has written; and where links lead.

use super::builtin;
use super::lookup::{
    AT_FDCWD, Follow, Found, find, is_directory, is_writable, missing, resolve, room_for, root_of,
};
use super::paths::{Path, below};
use super::status::AT_EMPTY_PATH;
use super::temporary::{self, Kind};
use super::watch;
use crate::errno::{Errno, SysResult};
use crate::{state, user};

/// `unlinkat` is to remove a directory.
pub const AT_REMOVEDIR: u64 = 0x200;

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
        Found::Descriptor(number) => {
            let content = state::content();
            content.begin(0);
            builtin::own::describe(content, number);
            &content.bytes[..content.used]
        }
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
    watch::tell(path.as_bytes(), watch::CREATE | watch::DIRECTORY);
    Ok(0)
}

/// `mknod` and `mknodat`: a file, a FIFO, or a name as local sockets have it; no devices.
pub fn make_node(directory: u64, path: u64, mode: u64) -> SysResult {
    const KIND: u32 = 0o170_000;
    let mode = mode as u32;
    let kind = match mode & KIND {
        0 | 0o100_000 => Some(Kind::File),
        0o010_000 => Some(Kind::Fifo),
        0o140_000 => Some(Kind::Socket),
        0o020_000 | 0o060_000 => None,
        _ => return Err(Errno::EINVAL),
    };
    let path = new_path(directory, path)?;
    match kind {
        _ if path.is_directory => Err(Errno::ENOENT),
        None => Err(Errno::EPERM),
        Some(kind) => {
            let mode = mode & 0o7777 & !*state::file_mask();
            state::temporary().make(path.as_bytes(), kind, mode)?;
            watch::tell(path.as_bytes(), watch::CREATE);
            Ok(0)
        }
    }
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
    let written = state::temporary().node(number).write(0, target);
    if written.is_err() {
        state::temporary().unlink(path.as_bytes());
    }
    watch::tell(path.as_bytes(), watch::CREATE);
    written.map(|_| 0)
}

/// `link` and `linkat`: one more name of a file that the program has written.
pub fn link(from_at: u64, from: u64, to_at: u64, to: u64, flags: u64) -> SysResult {
    const AT_SYMLINK_FOLLOW: u64 = 0x400;
    if flags as u32 as u64 & !(AT_SYMLINK_FOLLOW | AT_EMPTY_PATH) != 0 {
        return Err(Errno::EINVAL);
    }
    // With AT_EMPTY_PATH it may be the descriptor of a file.
    let (number, root) = match flags & AT_EMPTY_PATH != 0 && user::path(from)?.is_empty() {
        true => (node_of(from_at)?, None),
        false => {
            let follow = Follow::unless(flags & AT_SYMLINK_FOLLOW == 0);
            let path = resolve(from_at, from, follow)?;
            match find(&path)? {
                // By its entry in /proc, a file that has no name may be given one.
                Found::Descriptor(descriptor) if flags & AT_SYMLINK_FOLLOW != 0 => {
                    (node_of(descriptor)?, None)
                }
                Found::Node(number) => (Some(number), Some(root_of(&path))),
                Found::Directory => (None, Some(root_of(&path))),
                _ => (None, Some(None)),
            }
        }
    };
    let path = new_path(to_at, to)?;
    match number {
        _ if path.is_directory => Err(Errno::ENOENT),
        _ if root.is_some_and(|root| root != root_of(&path)) => Err(Errno::EXDEV),
        // A directory, which has one name.
        None => Err(Errno::EPERM),
        // It has lost its last name.
        Some(number)
            if state::temporary().node(number).names() == 0
                && !state::temporary().node(number).may_be_named =>
        {
            Err(Errno::ENOENT)
        }
        Some(number) => {
            state::temporary().link(number, path.as_bytes())?;
            watch::tell_node_itself(number, watch::ATTRIBUTES);
            watch::tell(path.as_bytes(), watch::CREATE);
            Ok(0)
        }
    }
}

/// The written file that a descriptor stands for, if it is one.
fn node_of(descriptor: u64) -> Result<Option<u16>, Errno> {
    match descriptor as u32 {
        at if at == AT_FDCWD as u32 => Ok(None),
        _ => Ok(state::files().get(descriptor)?.object.node()),
    }
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
    if is_directory(path.parent()) && !is_writable(&path) {
        return Err(Errno::EROFS);
    }
    let is_directory = matches!(find(&path)?, Found::Directory);
    match (is_directory, wants_directory) {
        (true, false) => return Err(Errno::EISDIR),
        (false, true) => return Err(Errno::ENOTDIR),
        _ if temporary::is_root(path.as_bytes()) => return Err(Errno::EBUSY),
        (true, true) if state::temporary().has_children(path.as_bytes()) => {
            return Err(Errno::ENOTEMPTY);
        }
        _ => {}
    }
    let Some(number) = state::temporary().find(path.as_bytes()) else {
        return Err(Errno::EROFS);
    };
    let is_last = state::temporary().node(number).names() == 1;
    state::temporary().unlink(path.as_bytes());
    watch::tell_removed(path.as_bytes(), number, is_directory, is_last);
    if is_directory {
        state::open_directories().moved(&path, None);
    }
    Ok(0)
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
    if root_of(&from) != root_of(&to) {
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
    // All or nothing: before what is at the new path goes.
    let fits = state::temporary().can_rename(from.as_bytes(), to.as_bytes());
    match (find(&to), moves_directory) {
        (Ok(_), _) if flags & NOREPLACE != 0 => return Err(Errno::EEXIST),
        // The same name, or another one of the same file.
        _ if flags & NOREPLACE == 0
            && state::temporary().find(from.as_bytes())
                == state::temporary().find(to.as_bytes()) =>
        {
            return Ok(0);
        }
        (Ok(Found::Directory), false) => return Err(Errno::EISDIR),
        (Ok(Found::Directory), true) if state::temporary().has_children(to.as_bytes()) => {
            return Err(Errno::ENOTEMPTY);
        }
        (Ok(Found::Node(_)), true) => return Err(Errno::ENOTDIR),
        (Ok(_), _) => {
            fits?;
            state::temporary().unlink(to.as_bytes());
            state::open_directories().moved(&to, None);
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
    fits?;
    state::temporary().rename(from.as_bytes(), to.as_bytes())?;
    watch::tell_renamed(&from, &to, moves_directory);
    if moves_directory {
        state::open_directories().moved(&from, Some(&to));
    }
    Ok(0)
}
