//! How much of everything the process may have.

use super::is_here;
use crate::errno::{Errno, SysResult};
use crate::{files, host, state, user};

/// Most limits that there are numbers for (`RLIM_NLIMITS`).
pub(super) const LIMITS: usize = 16;
const UNLIMITED: u64 = u64::MAX;

/// `getrlimit`: what the program set, or what holds.
pub fn limit(resource: u64) -> Result<[u64; 2], Errno> {
    const STACK: u64 = 3;
    const OPEN_FILES: u64 = 7;
    const ADDRESS_SPACE: u64 = 9;
    let place = resource as u32 as usize;
    let set = state::process().limits.get(place).ok_or(Errno::EINVAL)?;
    let holds = match u64::from(resource as u32) {
        STACK => thread_stack_bytes(),
        OPEN_FILES => files::MAX_DESCRIPTORS as u64,
        ADDRESS_SPACE => state::memory().total_bytes(),
        _ => UNLIMITED,
    };
    Ok(set.unwrap_or([holds, holds]))
}

/// `prlimit64`, `getrlimit` and `setrlimit`. What is set is remembered; what holds is the function's
/// configuration, and no call raises that.
pub fn limits(id: u64, resource: u64, new: u64, old: u64) -> SysResult {
    const OPEN_FILES: u64 = 7;
    let place = resource as u32 as usize;
    if place >= LIMITS {
        return Err(Errno::EINVAL);
    }
    let set = match new {
        0 => None,
        new => Some(user::read::<[u64; 2]>(new)?),
    };
    is_here(id)?;
    let before = limit(resource)?;
    if let Some([soft, hard]) = set {
        if soft > hard {
            return Err(Errno::EINVAL);
        }
        if u64::from(resource as u32) == OPEN_FILES && hard > files::MAX_DESCRIPTORS as u64 {
            return Err(Errno::EPERM);
        }
        state::process().limits[place] = Some([soft, hard]);
    }
    if old != 0 {
        user::write(old, before)?;
    }
    Ok(0)
}

/// The limit that libcs take as the size of a thread's stack: that of the first one, which is 8 MiB as on Linux where
/// there is memory for it. What a thread does not touch of its stack costs nothing.
fn thread_stack_bytes() -> u64 {
    host::boot().stack_bytes()
}
