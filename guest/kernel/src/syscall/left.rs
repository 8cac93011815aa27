//! Waits that say what is left of their time.

use crate::errno::{Errno, SysResult};
use crate::{time, user};

/// A C `struct timeval` in nanoseconds; `None` for a null pointer.
pub(super) fn time_value(addr: u64) -> Result<Option<u64>, Errno> {
    if addr == 0 {
        return Ok(None);
    }
    let [seconds, us] = user::read::<[u64; 2]>(addr)?;
    if seconds > i64::MAX as u64 || us > i64::MAX as u64 {
        return Err(Errno::EINVAL);
    }
    Ok(Some(
        seconds
            .saturating_mul(1_000_000_000)
            .saturating_add(us.saturating_mul(1000)),
    ))
}

/// A wait that says afterwards, in the place of its timeout, what is left of it.
pub(super) struct Left {
    place: u64,
    /// Nanoseconds; `None` for ever.
    pub(super) given: Option<u64>,
    until: u64,
    /// Nanoseconds of the unit of its second half.
    unit_ns: u64,
}

impl Left {
    pub(super) fn of(place: u64, given: Option<u64>, unit_ns: u64) -> Self {
        Left {
            place,
            given,
            until: time::monotonic_ns().saturating_add(given.unwrap_or(0)),
            unit_ns,
        }
    }

    pub(super) fn told(&self, result: SysResult) -> SysResult {
        const SECOND: u64 = 1_000_000_000;
        if self.given.is_some_and(|given| given > 0) {
            let left = self.until.saturating_sub(time::monotonic_ns());
            // As on Linux it is no mistake if it cannot be written.
            let _ = user::write(self.place, [left / SECOND, left % SECOND / self.unit_ns]);
        }
        result
    }
}
