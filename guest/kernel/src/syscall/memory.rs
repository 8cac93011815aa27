//! Calls about memory beside those that change it.

use holm_hostcall::PAGE_BYTES;

use crate::errno::{Errno, SysResult};
use crate::memory::guest;
use crate::{state, user};

/// `mincore`
pub(super) fn resident(start: u64, bytes: u64, to: u64) -> SysResult {
    let pages = state::memory().mapped_pages(start, bytes);
    if pages != Err(Errno::EINVAL) {
        user::range(start, bytes).map_err(|_| Errno::ENOMEM)?;
        user::range(to, bytes.div_ceil(PAGE_BYTES))?;
    }
    let room = user::slice_mut(to, pages?)?;
    for (page, room) in (0..).zip(room) {
        let addr = start + page * PAGE_BYTES;
        *room = u8::from(state::memory().is_resident(addr, &guest()));
    }
    Ok(0)
}

/// `mlockall`: nothing is ever written to a disk.
pub(super) fn lock_all(flags: u64) -> SysResult {
    const CURRENT: u64 = 1;
    const FUTURE: u64 = 2;
    const ONFAULT: u64 = 4;
    match flags as u32 as u64 {
        flags if flags & !(CURRENT | FUTURE | ONFAULT) != 0 => Err(Errno::EINVAL),
        0 | ONFAULT => Err(Errno::EINVAL),
        _ => Ok(0),
    }
}
