//! What a program sets for its handlers: what is to be done about each signal, and the stacks they run on.

use super::{ABSOLUTE, Action, MASK_BYTES, OfThread, bit, check, own};
use crate::errno::{Errno, SysResult};
use crate::{state, user};

const SS_ONSTACK: u32 = 1;
const SS_DISABLE: u32 = 2;
const MIN_STACK_BYTES: u64 = 2048;

/// `rt_sigaction`
pub fn action(signal: u64, new: u64, old: u64, mask_bytes: u64) -> SysResult {
    if mask_bytes != MASK_BYTES {
        return Err(Errno::EINVAL);
    }
    let signal = check(signal)?;
    let place = signal as usize - 1;
    let before = state::signals().actions[place];
    if new != 0 {
        if bit(signal) & ABSOLUTE != 0 {
            return Err(Errno::EINVAL);
        }
        let [handler, flags] = user::read::<[u64; 2]>(new)?;
        let [restorer, mask] = user::read::<[u64; 2]>(new.wrapping_add(16))?;
        let signals = state::signals();
        signals.actions[place] = Action {
            handler,
            flags,
            restorer,
            mask: mask & !ABSOLUTE,
        };
        if signals.is_ignored(signal) {
            signals.pending &= !bit(signal);
            signals.sent.forget(|one| one.signal == signal);
            for thread in &mut signals.threads {
                thread.pending &= !bit(signal);
            }
        }
    }
    if old != 0 {
        user::write(old, [before.handler, before.flags])?;
        user::write(old.wrapping_add(16), [before.restorer, before.mask])?;
    }
    Ok(0)
}

/// A thread's alternate stack as `stack_t` has it: address, flags, bytes.
pub(super) fn stack_of(of: &OfThread, rsp: u64) -> (u64, u32, u64) {
    let flags = match of.stack_bytes {
        0 => SS_DISABLE,
        _ if of.is_on_stack(rsp) => SS_ONSTACK,
        _ => 0,
    };
    (of.stack, flags, of.stack_bytes)
}

/// `sigaltstack`
pub fn stack(new: u64, old: u64, rsp: u64) -> SysResult {
    let before = stack_of(own(), rsp);
    if new != 0 {
        let [start, flags, bytes] = user::read::<[u64; 3]>(new)?;
        if before.1 & SS_ONSTACK != 0 {
            return Err(Errno::EPERM);
        }
        set_stack(start, flags as u32, bytes)?;
    }
    if old != 0 {
        user::write(old, [before.0, u64::from(before.1), before.2])?;
    }
    Ok(0)
}

pub(super) fn set_stack(start: u64, flags: u32, bytes: u64) -> Result<(), Errno> {
    let of = own();
    if flags == SS_DISABLE {
        (of.stack, of.stack_bytes) = (0, 0);
        return Ok(());
    }
    if flags & !SS_ONSTACK != 0 || start.checked_add(bytes).is_none() {
        return Err(Errno::EINVAL);
    }
    if bytes < MIN_STACK_BYTES {
        return Err(Errno::ENOMEM);
    }
    (of.stack, of.stack_bytes) = (start, bytes);
    Ok(())
}
