//! What a thread blocks, and waits for.

use super::{ABSOLUTE, MASK_BYTES, frame, own, take_of};
use crate::errno::{Errno, SysResult};
use crate::{state, threads, time, user};

/// `rt_sigprocmask`
pub fn mask(how: u64, set: u64, old: u64, mask_bytes: u64) -> SysResult {
    const BLOCK: u64 = 0;
    const UNBLOCK: u64 = 1;
    const SET: u64 = 2;
    if mask_bytes != MASK_BYTES {
        return Err(Errno::EINVAL);
    }
    let before = own().blocked;
    if set != 0 {
        let set = user::read::<u64>(set)?;
        let after = match how as u32 as u64 {
            BLOCK => before | set,
            UNBLOCK => before & !set,
            SET => set,
            _ => return Err(Errno::EINVAL),
        };
        own().blocked = after & !ABSOLUTE;
    }
    if old != 0 {
        user::write(old, before)?;
    }
    Ok(0)
}

/// Whether a mask, if there is one, has the size that masks have.
pub fn check_mask(set: u64, bytes: u64) -> Result<(), Errno> {
    match set == 0 || bytes == MASK_BYTES {
        true => Ok(()),
        false => Err(Errno::EINVAL),
    }
}

/// Runs a call with another mask, as ppoll and its kin do; a null pointer leaves it.
pub fn masked(set: u64, bytes: u64, call: impl FnOnce() -> SysResult) -> SysResult {
    if set == 0 {
        return call();
    }
    check_mask(set, bytes)?;
    let set = user::read::<u64>(set)? & !ABSOLUTE;
    let of = own();
    of.before = Some(of.blocked);
    of.blocked = set;
    let result = call();
    if result != Err(Errno::EINTR) {
        // Else the handler runs first, under this mask.
        let of = own();
        of.blocked = of.before.take().unwrap_or(of.blocked);
    }
    result
}

/// `rt_sigsuspend` and, without a mask, `pause`
pub fn suspend(set: u64, bytes: u64) -> SysResult {
    masked(set, bytes, || {
        loop {
            if threads::wait(None) {
                return Err(Errno::EINTR);
            }
        }
    })
}

/// `rt_sigpending`
pub fn pending(to: u64, mask_bytes: u64) -> SysResult {
    if mask_bytes > MASK_BYTES {
        return Err(Errno::EINVAL);
    }
    let of = own();
    let pending = (of.pending | state::signals().pending) & of.blocked;
    user::slice_mut(to, mask_bytes)?.copy_from_slice(&pending.to_le_bytes()[..mask_bytes as usize]);
    Ok(0)
}

/// `rt_sigtimedwait`
pub fn wait_for(set: u64, info: u64, timeout: u64, mask_bytes: u64) -> SysResult {
    if mask_bytes != MASK_BYTES {
        return Err(Errno::EINVAL);
    }
    let set = user::read::<u64>(set)? & !ABSOLUTE;
    let deadline = time::timespec(timeout)?.map(|time| time::monotonic_ns().saturating_add(time));
    loop {
        let thread = state::threads().current();
        let signals = state::signals();
        let found = (signals.threads[thread].pending | signals.pending) & set;
        if found != 0 {
            let (signal, origin) = take_of(found, thread);
            if info != 0 {
                frame::write_info(info, signal, &origin)?;
            }
            return Ok(u64::from(signal));
        }
        if deadline.is_some_and(|deadline| deadline <= time::monotonic_ns()) {
            return Err(Errno::EAGAIN);
        }
        if threads::wait(deadline) {
            return Err(Errno::EINTR);
        }
    }
}
