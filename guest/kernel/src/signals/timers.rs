//! Timers that send signals: `setitimer`, `alarm` and `timer_create`.
//!
//! ```text
//!  armed ──due──▶ sent ──the program takes the signal──▶ armed again, or over
//! ```
//! As on Linux one that was sent is not sent again before it was taken; what it missed meanwhile it says then.
//! Those that go by the CPU's time ring on ticks and calls only: while the guest waits that time stands still.

use super::queue::Origin;
use super::{SIGALRM, SIGPROF, SIGVTALRM, check};
use crate::errno::{Errno, SysResult};
use crate::{state, threads, time, user};

/// Most timers of `timer_create`.
const MAX_TIMERS: usize = 32;
const SECOND: u64 = 1_000_000_000;
/// `SI_TIMER`
pub(super) const SI_TIMER: i32 = -2;

/// What a timer goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Clock {
    Monotonic,
    /// A restore may set it.
    Wall,
    /// Of the CPU: it stands still while the guest waits.
    Cpu,
}

impl Clock {
    fn now(self) -> u64 {
        match self {
            Clock::Monotonic => time::monotonic_ns(),
            Clock::Wall => time::realtime_ns(),
            Clock::Cpu => time::used_ns(),
        }
    }
}

/// When something is due by a clock.
#[derive(Clone, Copy, Debug)]
struct Alarm {
    clock: Clock,
    /// In nanoseconds; 0 for never.
    due: u64,
    /// After how long again; 0 for once.
    every: u64,
}

impl Alarm {
    const fn by(clock: Clock) -> Self {
        Alarm {
            clock,
            due: 0,
            every: 0,
        }
    }

    /// Nanoseconds until it is due, at least one if it is to be due.
    fn left(&self, now: u64) -> u64 {
        match self.due {
            0 => 0,
            due => due.saturating_sub(now).max(1),
        }
    }

    /// Goes on to the next time after `now` that it is due; gives how many it passes over.
    fn go_on(&mut self, now: u64) -> u64 {
        if self.every == 0 {
            self.due = 0;
            return 0;
        }
        let missed = now.saturating_sub(self.due) / self.every;
        self.due = self
            .due
            .saturating_add(self.every.saturating_mul(missed.saturating_add(1)));
        missed
    }

    /// When it is due in monotonic nanoseconds, if the guest may wait for that.
    fn monotonic(&self) -> Option<u64> {
        match (self.due, self.clock) {
            (0, _) | (_, Clock::Cpu) => None,
            (due, Clock::Monotonic) => Some(due),
            (due, Clock::Wall) => {
                Some(time::monotonic_ns().saturating_add(due.saturating_sub(time::realtime_ns())))
            }
        }
    }
}

/// A timer of `timer_create`.
#[derive(Clone, Copy, Debug)]
struct Timer {
    used: bool,
    id: u32,
    alarm: Alarm,
    /// The signal, or 0 for none.
    signal: u32,
    /// The id of the thread that it is for, or 0 for any.
    thread: u32,
    value: u64,
    /// The signal was sent and not taken.
    sent: bool,
    /// How often it was due beside, when it was taken.
    missed: u64,
}

const UNUSED: Timer = Timer {
    used: false,
    id: 0,
    alarm: Alarm::by(Clock::Monotonic),
    signal: 0,
    thread: 0,
    value: 0,
    sent: false,
    missed: 0,
};

/// All of them.
pub struct Timers {
    /// ITIMER_REAL, ITIMER_VIRTUAL and ITIMER_PROF.
    intervals: [Alarm; 3],
    timers: [Timer; MAX_TIMERS],
    next_id: u32,
    /// Whether anything is armed.
    armed: bool,
}

const REAL: usize = 0;
const SIGNAL_OF: [u32; 3] = [SIGALRM, SIGVTALRM, SIGPROF];

impl Timers {
    /// None armed.
    pub const fn new() -> Self {
        Timers {
            intervals: [
                Alarm::by(Clock::Monotonic),
                Alarm::by(Clock::Cpu),
                Alarm::by(Clock::Cpu),
            ],
            timers: [UNUSED; MAX_TIMERS],
            next_id: 0,
            armed: false,
        }
    }

    /// Whether any is armed, for which a program that runs has to be interrupted.
    pub fn is_armed(&self) -> bool {
        self.armed
    }

    fn alarms(&self) -> impl Iterator<Item = &Alarm> {
        let timers = self.timers.iter().filter(|timer| timer.used && !timer.sent);
        self.intervals
            .iter()
            .chain(timers.map(|timer| &timer.alarm))
    }

    /// When the first is due for which the guest may wait.
    pub fn first(&self) -> Option<u64> {
        match self.armed {
            true => self.alarms().filter_map(Alarm::monotonic).min(),
            false => None,
        }
    }

    /// Whether one is due.
    fn is_due(&self) -> bool {
        self.armed
            && self
                .alarms()
                .any(|alarm| alarm.due != 0 && alarm.due <= alarm.clock.now())
    }

    /// The time that is left of an alarm begins so much later.
    pub fn postpone(&mut self, ns: u64) {
        let alarm = &mut self.intervals[REAL];
        if alarm.due != 0 {
            alarm.due = alarm.due.saturating_add(ns);
        }
    }

    fn timer(&mut self, id: u64) -> Result<&mut Timer, Errno> {
        let is_it = |timer: &&mut Timer| timer.used && timer.id == id as u32;
        self.timers.iter_mut().find(is_it).ok_or(Errno::EINVAL)
    }
}

impl Default for Timers {
    fn default() -> Self {
        Timers::new()
    }
}

/// Sends the signals that are due, and wakes the threads that this concerns.
pub fn ring() {
    if !state::signal_timers().is_due() {
        return;
    }
    for (place, signal) in SIGNAL_OF.into_iter().enumerate() {
        let alarm = &mut state::signal_timers().intervals[place];
        let now = alarm.clock.now();
        if alarm.due != 0 && alarm.due <= now {
            alarm.go_on(now);
            super::send(signal, None, Origin::of_kernel());
        }
    }
    for place in 0..MAX_TIMERS {
        let timer = state::signal_timers().timers[place];
        let is_due = timer.used && !timer.sent && timer.alarm.due != 0;
        if is_due && timer.alarm.due <= timer.alarm.clock.now() {
            send(place, &timer);
        }
    }
    note_armed();
    threads::interrupt_any();
}

fn send(place: usize, timer: &Timer) {
    let thread = match timer.thread {
        0 => Ok(None),
        id => state::threads().index_of(id).ok_or(()).map(Some),
    };
    let origin = Origin {
        errno: 0,
        code: SI_TIMER,
        words: [u64::from(timer.id), timer.value, 0, 0],
    };
    let is_kept = match thread {
        Ok(thread) if timer.signal != 0 => super::send(timer.signal, thread, origin),
        // It tells nobody, or one that is gone.
        _ => false,
    };
    let timer = &mut state::signal_timers().timers[place];
    timer.sent = is_kept;
    if !is_kept {
        timer.alarm.go_on(timer.alarm.clock.now());
    }
}

/// The signal of a timer is taken: says how often it was due beside.
pub(super) fn taken(origin: &mut Origin) {
    let now_armed = {
        let Ok(timer) = state::signal_timers().timer(origin.words[0] & 0xffff_ffff) else {
            return;
        };
        timer.sent = false;
        timer.missed = timer.alarm.go_on(timer.alarm.clock.now());
        let missed = timer.missed.min(i32::MAX as u64);
        origin.words[0] = u64::from(timer.id) | missed << 32;
        timer.alarm.due != 0
    };
    if now_armed {
        note_armed();
    }
}

fn note_armed() {
    let timers = state::signal_timers();
    let armed = timers.alarms().any(|alarm| alarm.due != 0);
    timers.armed = armed;
    threads::want_ticks();
}

/// `setitimer` and, without a new value, `getitimer`
pub fn set_interval(which: u64, new: u64, old: u64) -> SysResult {
    const MICROSECOND: u64 = 1000;
    let place = which as u32 as usize;
    if place >= SIGNAL_OF.len() {
        return Err(Errno::EINVAL);
    }
    let wanted = match new {
        0 => None,
        new => {
            let [every_s, every_us] = user::read::<[u64; 2]>(new)?;
            let [first_s, first_us] = user::read::<[u64; 2]>(new.wrapping_add(16))?;
            let wrong = |seconds: u64, us: u64| us >= 1_000_000 || seconds > i64::MAX as u64;
            if wrong(every_s, every_us) || wrong(first_s, first_us) {
                return Err(Errno::EINVAL);
            }
            let ns = |s: u64, us: u64| s.saturating_mul(SECOND).saturating_add(us * MICROSECOND);
            Some((ns(first_s, first_us), ns(every_s, every_us)))
        }
    };
    let alarm = &mut state::signal_timers().intervals[place];
    let now = alarm.clock.now();
    let before = [alarm.every, alarm.left(now).next_multiple_of(MICROSECOND)];
    if let Some((first, every)) = wanted {
        alarm.every = if first == 0 && place == REAL {
            0
        } else {
            every
        };
        alarm.due = match first {
            0 => 0,
            first => now.saturating_add(first),
        };
        note_armed();
    }
    if old != 0 {
        let [every, left] = before;
        let split = |ns: u64| [ns / SECOND, ns % SECOND / MICROSECOND];
        user::write(old, split(every))?;
        user::write(old.wrapping_add(16), split(left))?;
    }
    Ok(0)
}

/// `alarm`: seconds that were left of the one before.
pub fn alarm(seconds: u64) -> SysResult {
    let alarm = &mut state::signal_timers().intervals[REAL];
    let now = alarm.clock.now();
    let left = alarm.left(now);
    alarm.every = 0;
    alarm.due = match u64::from(seconds as u32) {
        0 => 0,
        seconds => now.saturating_add(seconds.saturating_mul(SECOND)),
    };
    note_armed();
    // As on Linux: to the nearest second, but never none where there is some.
    Ok(match left {
        0 => 0,
        left => ((left + SECOND / 2) / SECOND).max(1),
    })
}

fn clock_of(clock: u64) -> Result<Clock, Errno> {
    match clock as u32 as i32 {
        // CLOCK_REALTIME, CLOCK_TAI
        0 | 11 => Ok(Clock::Wall),
        // CLOCK_MONOTONIC, CLOCK_BOOTTIME
        1 | 7 => Ok(Clock::Monotonic),
        // CLOCK_PROCESS_CPUTIME_ID, CLOCK_THREAD_CPUTIME_ID, and those of a process or thread.
        2 | 3 => Ok(Clock::Cpu),
        number @ ..0 if time::is_cpu_clock(number) => Ok(Clock::Cpu),
        // The clocks that only ever show something.
        4..=6 => Err(Errno::EOPNOTSUPP),
        _ => Err(Errno::EINVAL),
    }
}

/// `timer_create`
pub fn create(clock: u64, event: u64, id_to: u64) -> SysResult {
    const SIGEV_SIGNAL: u32 = 0;
    const SIGEV_NONE: u32 = 1;
    const SIGEV_THREAD: u32 = 2;
    const SIGEV_THREAD_ID: u32 = 4;
    const EVENT_BYTES: u64 = 64;
    let given = match event {
        0 => None,
        event => {
            user::slice(event, EVENT_BYTES)?;
            let value = user::read::<u64>(event)?;
            let [signal, notify] = user::read::<[u32; 2]>(event.wrapping_add(8))?;
            let thread = user::read::<u32>(event.wrapping_add(16))?;
            Some((value, signal, notify, thread))
        }
    };
    let clock = clock_of(clock)?;
    let (value, signal, thread) = match given {
        None => (u64::from(state::signal_timers().next_id), SIGALRM, 0),
        Some((value, _, SIGEV_NONE, _)) => (value, 0, 0),
        Some((value, signal, SIGEV_SIGNAL | SIGEV_THREAD, _)) => (value, check(signal.into())?, 0),
        Some((value, signal, SIGEV_THREAD_ID, thread)) => {
            let there = state::threads().index_of(thread);
            there.ok_or(Errno::EINVAL)?;
            (value, check(signal.into())?, thread)
        }
        Some(_) => return Err(Errno::EINVAL),
    };
    let timers = state::signal_timers();
    let free = timers.timers.iter().position(|timer| !timer.used);
    let free = free.ok_or(Errno::EAGAIN)?;
    let id = timers.next_id;
    user::write(id_to, id)?;
    timers.next_id = (id + 1) & i32::MAX as u32;
    timers.timers[free] = Timer {
        used: true,
        id,
        alarm: Alarm::by(clock),
        signal,
        thread,
        value,
        ..UNUSED
    };
    Ok(0)
}

/// `timer_settime`
pub fn set(id: u64, flags: u64, new: u64, old: u64) -> SysResult {
    const TIMER_ABSTIME: u64 = 1;
    if new == 0 {
        return Err(Errno::EINVAL);
    }
    user::slice(new, 32)?;
    let every = time::timespec(new)?.unwrap_or(0);
    let first = time::timespec(new.wrapping_add(16))?.unwrap_or(0);
    let timer = state::signal_timers().timer(id)?;
    let before = setting(timer);
    let now = timer.alarm.clock.now();
    // One that is switched off has no interval either.
    timer.alarm.every = if first == 0 { 0 } else { every };
    timer.alarm.due = match first {
        0 => 0,
        first if flags & TIMER_ABSTIME != 0 => first,
        first => now.saturating_add(first),
    };
    (timer.sent, timer.missed) = (false, 0);
    let id = timer.id;
    super::forget(|origin| origin.code == SI_TIMER && origin.words[0] as u32 == id);
    note_armed();
    if old != 0 {
        user::write(old, before)?;
    }
    ring();
    Ok(0)
}

/// The interval, and what is left.
fn setting(timer: &Timer) -> [u64; 4] {
    let now = timer.alarm.clock.now();
    let mut alarm = timer.alarm;
    if alarm.due != 0 && alarm.due <= now {
        alarm.go_on(now);
    }
    let (every, left) = (alarm.every, alarm.left(now));
    [every / SECOND, every % SECOND, left / SECOND, left % SECOND]
}

/// `timer_gettime`
pub fn get(id: u64, to: u64) -> SysResult {
    let setting = setting(state::signal_timers().timer(id)?);
    user::write(to, setting)?;
    Ok(0)
}

/// `timer_getoverrun`
pub fn missed(id: u64) -> SysResult {
    let timer = state::signal_timers().timer(id)?;
    Ok(timer.missed.min(i32::MAX as u64))
}

/// `timer_delete`
pub fn delete(id: u64) -> SysResult {
    let timer = state::signal_timers().timer(id)?;
    let id = timer.id;
    *timer = UNUSED;
    super::forget(|origin| origin.code == SI_TIMER && origin.words[0] as u32 == id);
    note_armed();
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_late_says_how_often_it_was_due() {
        let mut alarm = Alarm {
            due: 100,
            every: 10,
            ..Alarm::by(Clock::Monotonic)
        };
        assert_eq!((alarm.go_on(100), alarm.due), (0, 110));
        assert_eq!((alarm.go_on(145), alarm.due), (3, 150));
        alarm.every = 0;
        assert_eq!((alarm.go_on(500), alarm.due), (0, 0));
        let mut wild = Alarm {
            due: 1,
            every: u64::MAX,
            ..Alarm::by(Clock::Monotonic)
        };
        wild.go_on(u64::MAX);
        assert_eq!(wild.due, u64::MAX);
    }

    #[test]
    fn one_that_is_due_at_this_moment_is_armed_still() {
        let alarm = Alarm {
            due: 100,
            ..Alarm::by(Clock::Monotonic)
        };
        assert_eq!(
            (alarm.left(99), alarm.left(100), alarm.left(500)),
            (1, 1, 1)
        );
        assert_eq!(Alarm::by(Clock::Cpu).left(5), 0);
    }
}
