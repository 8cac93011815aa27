//! How the process is scheduled: alone on one CPU, and what is set is remembered.

use super::{PROCESS_ID, is_here};
use crate::errno::{Errno, SysResult};
use crate::{state, user};

/// What `ioprio_get` says: none was set.
pub const IO_PRIORITY: u64 = 4;

/// `getpriority`: 20 less the niceness.
pub fn priority(which: u64, who: u64) -> SysResult {
    is_one_to_nice(which, who)?;
    Ok((20 - state::process().nice) as u64)
}

/// `setpriority`: remembered. There is nobody to be nice to.
pub fn set_priority(which: u64, who: u64, nice: u64) -> SysResult {
    is_one_to_nice(which, who)?;
    state::process().nice = (nice as u32 as i32).clamp(-20, 19);
    Ok(0)
}

fn is_one_to_nice(which: u64, who: u64) -> Result<(), Errno> {
    const PROCESS: u64 = 0;
    const GROUP: u64 = 1;
    const USER: u64 = 2;
    match which {
        PROCESS => is_here(who),
        GROUP if who <= PROCESS_ID => Ok(()),
        USER if who == 0 => Ok(()),
        GROUP | USER => Err(Errno::ESRCH),
        _ => Err(Errno::EINVAL),
    }
}

/// `sched_get_priority_max` and, if not `most`, `sched_get_priority_min`.
pub fn priority_range(policy: u64, most: bool) -> SysResult {
    match (policy as u32, most) {
        // SCHED_FIFO, SCHED_RR
        (1 | 2, true) => Ok(99),
        (1 | 2, false) => Ok(1),
        // SCHED_OTHER, BATCH, IDLE, DEADLINE
        (0 | 3 | 5 | 6, _) => Ok(0),
        _ => Err(Errno::EINVAL),
    }
}

/// `sched_getscheduler`: SCHED_OTHER.
pub fn scheduler(id: u64) -> SysResult {
    is_scheduled(id)?;
    Ok(0)
}

/// `sched_getparam`: no priority.
pub fn scheduling(id: u64, to: u64) -> SysResult {
    if to == 0 {
        return Err(Errno::EINVAL);
    }
    is_scheduled(id)?;
    user::write(to, 0u32)?;
    Ok(0)
}

/// `sched_setscheduler` and, without a policy, `sched_setparam`: the usual one is taken.
pub fn set_scheduling(id: u64, policy: u64, from: u64) -> SysResult {
    // SCHED_OTHER, BATCH and IDLE have no priorities.
    if from == 0 || !matches!(policy as u32, 0 | 3 | 5) {
        return Err(if from == 0 {
            Errno::EINVAL
        } else {
            Errno::EPERM
        });
    }
    is_scheduled(id)?;
    match user::read::<u32>(from)? {
        0 => Ok(0),
        _ => Err(Errno::EINVAL),
    }
}

/// `sched_getaffinity`: one CPU.
pub fn affinity(id: u64, bytes: u64, to: u64) -> SysResult {
    let bytes = u64::from(bytes as u32);
    if bytes < 8 || !bytes.is_multiple_of(8) {
        return Err(Errno::EINVAL);
    }
    is_here(id)?;
    user::write(to, 1u64)?;
    Ok(8)
}

/// `sched_setaffinity`: the one CPU has to be among them.
pub fn set_affinity(id: u64, bytes: u64, from: u64) -> SysResult {
    let mask = match bytes as u32 {
        0 => 0,
        _ => u64::from(user::read::<u8>(from)?),
    };
    is_here(id)?;
    match mask & 1 {
        0 => Err(Errno::EINVAL),
        _ => Ok(0),
    }
}

/// `sched_rr_get_interval`: the turn of a thread.
pub fn interval(id: u64, to: u64) -> SysResult {
    const TURN_NS: u64 = 5_000_000;
    is_scheduled(id)?;
    user::write(to, [0, TURN_NS])?;
    Ok(0)
}

/// `sched_getattr`: the usual policy, and the niceness.
pub fn scheduling_attributes(id: u64, to: u64, bytes: u64, flags: u64) -> SysResult {
    const KNOWN_BYTES: u64 = 48;
    let bytes = u64::from(bytes as u32);
    if to == 0 || flags as u32 != 0 || !(KNOWN_BYTES..=4096).contains(&bytes) {
        return Err(Errno::EINVAL);
    }
    is_scheduled(id)?;
    let room = user::slice_mut(to, bytes)?;
    room.fill(0);
    room[..4].copy_from_slice(&(KNOWN_BYTES as u32).to_le_bytes());
    room[16..20].copy_from_slice(&state::process().nice.to_le_bytes());
    Ok(0)
}

/// `getcpu`: the first of the first node.
pub fn cpu(cpu: u64, node: u64) -> SysResult {
    for to in [cpu, node].into_iter().filter(|to| *to != 0) {
        user::write(to, 0u32)?;
    }
    Ok(0)
}

/// The same where a negative number is a mistake instead of nobody.
fn is_scheduled(id: u64) -> Result<(), Errno> {
    match (id as i32) < 0 {
        true => Err(Errno::EINVAL),
        false => is_here(id),
    }
}

/// `ioprio_get` and `ioprio_set`, of which nothing comes.
pub fn check_io_priority(which: u64, who: u64) -> Result<(), Errno> {
    const PROCESS: u64 = 1;
    match which {
        PROCESS => is_here(who),
        2 | 3 => Ok(()),
        _ => Err(Errno::EINVAL),
    }
}

/// `get_mempolicy`: the usual one, on the one node.
pub fn memory_policy(mode_to: u64, mask_to: u64, most: u64) -> SysResult {
    if mode_to != 0 {
        user::write(mode_to, 0u32)?;
    }
    if mask_to != 0 {
        if most < 1 {
            return Err(Errno::EINVAL);
        }
        user::slice_mut(mask_to, most.div_ceil(64).min(64) * 8)?.fill(0);
    }
    Ok(0)
}
