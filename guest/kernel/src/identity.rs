//! Whose the process is. It begins as root, and a server that lets go of that is told so afterwards; it
//! makes no other difference, since everything in the guest is the program's anyhow.

use crate::errno::{Errno, SysResult};
use crate::{state, user};

/// Most groups beside the first (`NGROUPS_MAX`).
const MAX_GROUPS: u64 = 65_536;
/// What leaves an identity as it is.
const UNCHANGED: u32 = u32::MAX;

/// The identities of a user or group.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// Who started it.
    pub real: u32,
    /// Whose rights it has.
    pub effective: u32,
    saved: u32,
}

/// The process's user.
pub fn user() -> &'static mut Identity {
    &mut state::process().user
}

/// The process's group.
pub fn group() -> &'static mut Identity {
    &mut state::process().group
}

fn is_root() -> bool {
    user().effective == 0
}

impl Identity {
    /// Root, as at the start.
    pub const fn root() -> Self {
        Identity {
            real: 0,
            effective: 0,
            saved: 0,
        }
    }

    fn has(&self, id: u32) -> bool {
        [self.real, self.effective, self.saved].contains(&id)
    }

    /// `getresuid` and `getresgid`
    pub fn get(&self, to: [u64; 3]) -> SysResult {
        for (to, id) in to.into_iter().zip([self.real, self.effective, self.saved]) {
            user::write(to, id)?;
        }
        Ok(0)
    }

    /// `setuid` and `setgid`: all of them for root, else the effective one.
    pub fn set(&mut self, id: u64) -> SysResult {
        let id = id as u32;
        match id {
            UNCHANGED => Err(Errno::EINVAL),
            id if is_root() => {
                *self = Identity {
                    real: id,
                    effective: id,
                    saved: id,
                };
                Ok(0)
            }
            id if id == self.real || id == self.saved => {
                self.effective = id;
                Ok(0)
            }
            _ => Err(Errno::EPERM),
        }
    }

    /// `setreuid` and `setregid`
    pub fn set_two(&mut self, real: u64, effective: u64) -> SysResult {
        let (real, effective) = (real as u32, effective as u32);
        let may_be_real = real == UNCHANGED || real == self.real || real == self.effective;
        if !is_root() && !(may_be_real && (effective == UNCHANGED || self.has(effective))) {
            return Err(Errno::EPERM);
        }
        let before = self.real;
        replace(&mut self.real, real);
        replace(&mut self.effective, effective);
        if real != UNCHANGED || effective != UNCHANGED && effective != before {
            self.saved = self.effective;
        }
        Ok(0)
    }

    /// `setresuid` and `setresgid`
    pub fn set_three(&mut self, real: u64, effective: u64, saved: u64) -> SysResult {
        let new = [real as u32, effective as u32, saved as u32];
        if !is_root() && new.iter().any(|id| *id != UNCHANGED && !self.has(*id)) {
            return Err(Errno::EPERM);
        }
        replace(&mut self.real, new[0]);
        replace(&mut self.effective, new[1]);
        replace(&mut self.saved, new[2]);
        Ok(0)
    }
}

fn replace(id: &mut u32, new: u32) {
    if new != UNCHANGED {
        *id = new;
    }
}

/// `setgroups`: root may, and no list of them is kept.
pub fn set_groups(count: u64, list: u64) -> SysResult {
    let count = u64::from(count as u32);
    match is_root() {
        false => Err(Errno::EPERM),
        true if count > MAX_GROUPS => Err(Errno::EINVAL),
        true => user::range(list, count * 4).map(|_| 0),
    }
}

/// `getgroups`: none beside the first.
pub fn groups(most: u64) -> SysResult {
    match (most as u32 as i32) < 0 {
        true => Err(Errno::EINVAL),
        false => Ok(0),
    }
}
