//! timerfd: timers that are read like files.

use crate::buffers::Place;
use crate::errno::{Errno, SysResult};
use crate::files::{O_RDWR, Object};
use crate::{state, time, user};

/// Most timers.
pub const MAX_TIMERS: usize = 32;

const CLOCK_REALTIME: u64 = 0;
const CLOCK_MONOTONIC: u64 = 1;
const CLOCK_BOOTTIME: u64 = 7;
const TFD_TIMER_ABSTIME: u64 = 1;

/// A timer.
#[derive(Clone, Copy, Debug)]
pub struct Timer {
    used: bool,
    /// It goes by the wall clock, which a restore may set.
    by_wall_clock: bool,
    /// When it is due, by its clock in nanoseconds; 0 for never.
    due: u64,
    /// After how long again; 0 for once.
    every: u64,
    /// Times it was due since the last read.
    expirations: u64,
}

impl Timer {
    /// Unused.
    pub const fn new() -> Self {
        Timer {
            used: false,
            by_wall_clock: false,
            due: 0,
            every: 0,
            expirations: 0,
        }
    }

    fn now(&self) -> u64 {
        match self.by_wall_clock {
            true => time::realtime_ns(),
            false => time::monotonic_ns(),
        }
    }

    /// Whether somebody is to be told when it is due: not again before it was read, as on Linux.
    fn is_awaited(&self) -> bool {
        self.due != 0 && self.expirations == 0
    }

    /// Counts what is due at `now`; whether anything was.
    fn count(&mut self, now: u64) -> bool {
        if self.due == 0 || self.due > now {
            return false;
        }
        let more = (now - self.due).checked_div(self.every).unwrap_or(0);
        self.expirations = self.expirations.saturating_add(1).saturating_add(more);
        self.due = match self.every {
            0 => 0,
            every => self.due.saturating_add(every.saturating_mul(more + 1)),
        };
        true
    }

    /// What is left, and the interval.
    fn setting(&self) -> [u64; 4] {
        let left = match self.due {
            0 => 0,
            // One that is due at this moment is armed still.
            due => due.saturating_sub(self.now()).max(1),
        };
        let [every, every_ns] = split(self.every);
        let [left, left_ns] = split(left);
        [every, every_ns, left, left_ns]
    }
}

impl Default for Timer {
    fn default() -> Self {
        Timer::new()
    }
}

fn split(ns: u64) -> [u64; 2] {
    [ns / 1_000_000_000, ns % 1_000_000_000]
}

/// `timerfd_create`
pub fn create(clock: u64, flags: u64) -> SysResult {
    const KNOWN_FLAGS: u64 = 0o2_004_000;
    if !matches!(clock, CLOCK_REALTIME | CLOCK_MONOTONIC | CLOCK_BOOTTIME)
        || flags & !KNOWN_FLAGS != 0
    {
        return Err(Errno::EINVAL);
    }
    let timers = state::timers();
    let free = timers.iter().position(|timer| !timer.used);
    let free = free.ok_or(Errno::EMFILE)?;
    let descriptor = state::files().open(Object::Timer(free as u8), flags | O_RDWR)?;
    timers[free] = Timer {
        used: true,
        by_wall_clock: clock == CLOCK_REALTIME,
        ..Timer::new()
    };
    Ok(descriptor)
}

fn number_of(descriptor: u64) -> Result<u8, Errno> {
    match state::files().get(descriptor)?.object {
        Object::Timer(number) => Ok(number),
        _ => Err(Errno::EINVAL),
    }
}

fn timer(number: u8) -> &'static mut Timer {
    &mut state::timers()[usize::from(number) % MAX_TIMERS]
}

/// `timerfd_settime`
pub fn set(descriptor: u64, flags: u64, new: u64, old: u64) -> SysResult {
    const KNOWN_FLAGS: u64 = 3;
    user::slice(new, 32)?;
    if flags as u32 as u64 & !KNOWN_FLAGS != 0 {
        return Err(Errno::EINVAL);
    }
    let every = time::timespec(new)?.ok_or(Errno::EFAULT)?;
    let value = time::timespec(new.wrapping_add(16))?.unwrap_or(0);
    let number = number_of(descriptor)?;
    let timer = timer(number);
    timer.count(timer.now());
    if old != 0 {
        user::write(old, timer.setting())?;
    }
    timer.expirations = 0;
    timer.every = every;
    timer.due = match value {
        0 => 0,
        value if flags & TFD_TIMER_ABSTIME != 0 => value,
        value => timer.now().saturating_add(value),
    };
    // Whoever waits has another deadline now.
    state::threads().changed();
    ring();
    Ok(0)
}

/// `timerfd_gettime`
pub fn get(descriptor: u64, to: u64) -> SysResult {
    let number = number_of(descriptor)?;
    let timer = timer(number);
    timer.count(timer.now());
    user::write(to, timer.setting())?;
    Ok(0)
}

/// How often it was due; EAGAIN for not at all.
pub fn read(number: u8, to: Place<'_>) -> SysResult {
    if to.len() < 8 {
        return Err(Errno::EINVAL);
    }
    let timer = timer(number);
    timer.count(timer.now());
    match core::mem::take(&mut timer.expirations) {
        0 => Err(Errno::EAGAIN),
        count => {
            to.limit(8).whole()?.copy_from_slice(&count.to_le_bytes());
            Ok(8)
        }
    }
}

/// Whether a read would not wait.
pub fn is_readable(number: u8) -> bool {
    timer(number).expirations > 0
}

/// The last descriptor was closed.
pub fn close(number: u8) {
    *timer(number) = Timer::new();
}

/// Counts every timer that is due, and tells who watches it.
#[inline(never)]
pub fn ring() {
    for number in 0..MAX_TIMERS as u8 {
        let timer = timer(number);
        if timer.is_awaited() && timer.count(timer.now()) {
            state::files().edge(|object| object == Object::Timer(number));
        }
    }
}

/// When the first timer is due, in monotonic nanoseconds.
pub fn first() -> Option<u64> {
    let awaited = state::timers().iter().filter(|timer| timer.is_awaited());
    awaited
        .map(|timer| match timer.by_wall_clock {
            false => timer.due,
            true => time::monotonic_ns().saturating_add(timer.due.saturating_sub(timer.now())),
        })
        .min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timer_that_nobody_reads_counts_every_time_it_was_due() {
        let mut timer = Timer {
            used: true,
            due: 100,
            every: 10,
            ..Timer::new()
        };
        assert!(!timer.count(99));
        assert!(timer.count(100));
        assert_eq!((timer.expirations, timer.due), (1, 110));
        assert!(timer.count(139));
        assert_eq!((timer.expirations, timer.due), (4, 140));

        let mut once = Timer {
            used: true,
            due: 5,
            ..Timer::new()
        };
        assert!(once.count(1 << 60));
        assert_eq!((once.expirations, once.due), (1, 0));

        let mut wild = Timer {
            used: true,
            due: 1,
            every: u64::MAX,
            ..Timer::new()
        };
        assert!(wild.count(u64::MAX));
        assert_eq!(wild.due, u64::MAX);
    }
}
