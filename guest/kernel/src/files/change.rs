//! Changes to files that are there: size, permissions, times.

use super::lookup::{AT_FDCWD, Follow, Found, find, resolve};
use super::status::{AT_EMPTY_PATH, AT_SYMLINK_NOFOLLOW};
use super::{O_RDWR, O_WRONLY, Object, temporary};
use crate::errno::{Errno, SysResult};
use crate::{state, time, user};

/// The file of /tmp that a descriptor is open for writing; `otherwise` if it is not open for that.
fn file_to_write(descriptor: u64, otherwise: Errno) -> Result<u16, Errno> {
    let open = state::files().get(descriptor)?;
    match open.object {
        _ if open.is_name() => Err(Errno::EBADF),
        Object::File(number) if matches!(open.access(), O_WRONLY | O_RDWR) => Ok(number),
        _ => Err(otherwise),
    }
}

/// `ftruncate`
pub fn truncate_open(descriptor: u64, size: u64) -> SysResult {
    if size > i64::MAX as u64 {
        return Err(Errno::EINVAL);
    }
    state::temporary()
        .node(file_to_write(descriptor, Errno::EINVAL)?)
        .resize(size)?;
    Ok(0)
}

/// `fallocate`: only the plain form, and the one that keeps the size.
pub fn allocate(descriptor: u64, mode: u64, offset: u64, bytes: u64) -> SysResult {
    const KEEP_SIZE: u64 = 1;
    const KNOWN: u64 = 0x7f;
    if state::files().get(descriptor)?.is_name() {
        return Err(Errno::EBADF);
    }
    if offset > i64::MAX as u64 || bytes > i64::MAX as u64 || bytes == 0 {
        return Err(Errno::EINVAL);
    }
    if mode as u32 as u64 & !KNOWN != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    let number = file_to_write(descriptor, Errno::EBADF)?;
    let end = offset + bytes;
    if end > i64::MAX as u64 {
        return Err(Errno::EFBIG);
    }
    match mode as u32 as u64 {
        KEEP_SIZE => Ok(0),
        0 => {
            let node = state::temporary().node(number);
            if end > node.size {
                node.resize(end)?;
            }
            Ok(0)
        }
        _ => Err(Errno::EOPNOTSUPP),
    }
}

/// `fchmod` and `fchown`
pub fn set_attributes_of(descriptor: u64, mode: Option<u64>) -> SysResult {
    let open = state::files().get(descriptor)?;
    match (open.object, mode) {
        _ if open.is_name() => return Err(Errno::EBADF),
        (Object::File(number), Some(mode)) => {
            state::temporary().node(number).mode = mode as u32 & 0o7777;
        }
        (Object::Brought(_) | Object::Made(_), _) => return Err(Errno::EROFS),
        _ => {}
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
            Found::Directory if temporary::is_root(path.as_bytes()) => Ok(0),
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
        if number.is_none() && !temporary::is_root(path.as_bytes()) {
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
