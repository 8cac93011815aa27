//! Signals that a program sends to itself or to one of its threads.

use super::{check, is_process, post, tell};
use crate::errno::{Errno, SysResult};
use crate::state;

/// `kill`: the one process is 1.
pub fn kill(target: u64, signal: u64) -> SysResult {
    if !matches!(target as i32, -1..=0) && !is_process(target) {
        return Err(Errno::ESRCH);
    }
    if signal as u32 == 0 {
        return Ok(0);
    }
    post(check(signal)?);
    Ok(0)
}

/// `tgkill`
pub fn kill_thread_of(process: u64, target: u64, signal: u64) -> SysResult {
    match process as u32 as i32 {
        ..=0 => Err(Errno::EINVAL),
        1 => kill_thread(target, signal),
        _ if (target as u32 as i32) <= 0 => Err(Errno::EINVAL),
        _ => Err(Errno::ESRCH),
    }
}

/// `tkill`
pub fn kill_thread(target: u64, signal: u64) -> SysResult {
    if (target as u32 as i32) <= 0 {
        return Err(Errno::EINVAL);
    }
    let thread = state::threads()
        .index_of(target as u32)
        .ok_or(Errno::ESRCH)?;
    if signal as u32 == 0 {
        return Ok(0);
    }
    let signal = check(signal)?;
    state::signals().post(signal, Some(thread), None)?;
    tell(signal);
    Ok(0)
}
