//! Changes to the size of files that are there.

use super::lookup::{AT_FDCWD, Follow, Found, find, resolve};
use super::temporary::Kind;
use super::{O_RDWR, O_WRONLY, Object, watch};
use crate::errno::{Errno, SysResult};
use crate::state;

/// The written file that a descriptor is open for writing; `otherwise` if it is not open for that.
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
    let number = file_to_write(descriptor, Errno::EINVAL)?;
    state::temporary().node(number).resize(size)?;
    watch::tell_node(number, watch::MODIFY);
    Ok(0)
}

/// `fallocate`: what takes no part out of a file, nor puts one in.
pub fn allocate(descriptor: u64, mode: u64, offset: u64, bytes: u64) -> SysResult {
    const KEEP_SIZE: u64 = 1;
    const PUNCH_HOLE: u64 = 2;
    const ZERO_RANGE: u64 = 0x10;
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
    let mode = mode as u32 as u64;
    if mode == PUNCH_HOLE | KEEP_SIZE || mode & !KEEP_SIZE == ZERO_RANGE {
        let node = state::temporary().node(number);
        if mode == ZERO_RANGE && end > node.size {
            node.resize(end)?;
        }
        node.clear(offset, end)?;
        watch::tell_node(number, watch::MODIFY);
        return Ok(0);
    }
    match mode {
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

/// `truncate`
pub fn truncate(path: u64, size: u64) -> SysResult {
    if size > i64::MAX as u64 {
        return Err(Errno::EINVAL);
    }
    match find(&resolve(AT_FDCWD, path, Follow::Always)?)? {
        Found::Node(number) if state::temporary().node(number).kind != Kind::File => {
            Err(Errno::EINVAL)
        }
        Found::Node(number) => {
            state::temporary().node(number).resize(size)?;
            watch::tell_node(number, watch::MODIFY);
            Ok(0)
        }
        Found::Directory => Err(Errno::EISDIR),
        _ => Err(Errno::EROFS),
    }
}
