//! Seals of memory files (`memfd_create`): what may not be done to one any more, so that who is given it can rely on
//! its content. Other files have the seal that allows no further ones.

use holm_hostcall::PAGE_BYTES;

use super::temporary::Node;
use super::{O_RDWR, O_WRONLY, Object, Open};
use crate::errno::{Errno, SysResult};
use crate::state;

/// No further seals.
pub(super) const SEAL: u8 = 0x1;
const SHRINK: u8 = 0x2;
const GROW: u8 = 0x4;
const WRITE: u8 = 0x8;
/// No writes but through mappings that there are already.
const FUTURE_WRITE: u8 = 0x10;
/// Whether it is executable stays as it is.
pub(super) const EXEC: u8 = 0x20;
const ALL: u64 = 0x3f;
/// Either of those with which nothing new may write.
pub(super) const NO_WRITE: u8 = WRITE | FUTURE_WRITE;
/// Permission to execute, whosever.
pub(super) const EXECUTABLE: u32 = 0o111;

/// The permissions and seals of a new memory file, by the flags that it is made with.
pub(super) fn of_memory(flags: u64) -> Result<(u32, u8), Errno> {
    const ALLOW_SEALING: u64 = 0x2;
    const NOEXEC_SEAL: u64 = 0x8;
    const MAY_EXECUTE: u64 = 0x10;
    match flags & (NOEXEC_SEAL | MAY_EXECUTE) {
        NOEXEC_SEAL => Ok((0o666, EXEC)),
        0 | MAY_EXECUTE if flags & ALLOW_SEALING != 0 => Ok((0o777, 0)),
        0 | MAY_EXECUTE => Ok((0o777, SEAL)),
        _ => Err(Errno::EINVAL),
    }
}

/// F_GET_SEALS
pub(super) fn get(open: &Open) -> SysResult {
    match open.object {
        Object::File(number) => Ok(state::temporary().node(number).seals.into()),
        _ => Err(Errno::EINVAL),
    }
}

/// F_ADD_SEALS
pub(super) fn add(open: &Open, seals: u64) -> SysResult {
    if !matches!(open.access(), O_WRONLY | O_RDWR) {
        return Err(Errno::EPERM);
    }
    let Object::File(number) = open.object else {
        return Err(Errno::EINVAL);
    };
    if seals as u32 as u64 & !ALL != 0 {
        return Err(Errno::EINVAL);
    }
    let node = state::temporary().node(number);
    let mut new = seals as u8;
    if node.seals & SEAL != 0 {
        return Err(Errno::EPERM);
    }
    if new & WRITE & !node.seals != 0 && node.is_written_by_mappings() {
        return Err(Errno::EBUSY);
    }
    if new & EXEC != 0 && node.mode & EXECUTABLE != 0 {
        // What is to stay executable is not to change either.
        new |= SHRINK | GROW | WRITE | FUTURE_WRITE;
    }
    node.seals |= new;
    Ok(0)
}

/// What of a write may be done. As on Linux one that would make the file longer is done up to the page in which it
/// would.
pub(super) fn writable<'a>(node: &Node, at: u64, from: &'a [u8]) -> Result<&'a [u8], Errno> {
    if node.seals & NO_WRITE != 0 {
        return Err(Errno::EPERM);
    }
    let end = at.saturating_add(from.len() as u64);
    if node.seals & GROW == 0 || end <= node.size {
        return Ok(from);
    }
    let last_page = node.size & !(PAGE_BYTES - 1);
    match last_page.saturating_sub(at) {
        0 => Err(Errno::EPERM),
        some => Ok(&from[..some as usize]),
    }
}

/// Whether it may have another size.
pub(super) fn check_size(node: &Node, size: u64) -> Result<(), Errno> {
    let forbidden = match size {
        size if size < node.size => SHRINK,
        size if size > node.size => GROW,
        _ => 0,
    };
    match node.seals & forbidden {
        0 => Ok(()),
        _ => Err(Errno::EPERM),
    }
}
