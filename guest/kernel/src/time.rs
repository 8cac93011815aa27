//! Clocks, from the time-stamp counter and the base that the host set at the last restore.

use crate::errno::{Errno, SysResult};
use crate::{host, state, threads, user};

/// Nanoseconds since the base, and the two bases.
fn since_base() -> (u64, u64, u64) {
    let boot = host::boot();
    let ticks = host::tsc().saturating_sub(boot.tsc_at);
    let elapsed = (u128::from(ticks) * u128::from(boot.ns_per_tick_q32)) >> 32;
    (elapsed as u64, boot.realtime_ns, boot.monotonic_ns)
}

/// Nanoseconds since 1970 UTC.
pub fn realtime_ns() -> u64 {
    let (elapsed, realtime, _) = since_base();
    realtime.wrapping_add(elapsed)
}

/// Nanoseconds of a clock that never goes back.
pub fn monotonic_ns() -> u64 {
    let (elapsed, _, monotonic) = since_base();
    monotonic.wrapping_add(elapsed)
}

/// What the program has used of the CPU: the time that did not pass in waits. The guest does not know when its
/// vCPU was away otherwise.
pub fn used_ns() -> u64 {
    let cpu = state::cpu_time();
    let (elapsed, ..) = since_base();
    cpu.before + elapsed.saturating_sub(cpu.waited)
}

/// What of the time is the program's.
pub struct CpuTime {
    /// Used before the last restore.
    before: u64,
    /// Passed in waits since then.
    waited: u64,
}

impl CpuTime {
    /// Nothing yet.
    pub const fn new() -> Self {
        CpuTime {
            before: 0,
            waited: 0,
        }
    }
}

impl Default for CpuTime {
    fn default() -> Self {
        CpuTime::new()
    }
}

/// Leaves the guest by `leave` to wait, which is no time of the program's.
pub fn away(leave: impl FnOnce() -> i64) -> i64 {
    let (generation, used, left_at) = (host::generation(), used_ns(), since_base().0);
    let result = leave();
    let cpu = state::cpu_time();
    match host::generation() == generation {
        true => cpu.waited += since_base().0.saturating_sub(left_at),
        // The clocks count from the restore on.
        false => {
            *cpu = CpuTime {
                before: used,
                waited: 0,
            };
        }
    }
    result
}

/// Whether a clock's number is that of the time which this process or one of its threads has used, as
/// `pthread_getcpuclockid` makes it.
pub fn is_cpu_clock(number: i32) -> bool {
    const SCHED: i32 = 2;
    let id = !(number >> 3);
    let is_here = id == 0 || state::threads().index_of(id as u32).is_some();
    number < 0 && number & 3 <= SCHED && is_here
}

/// A C `struct timespec` as nanoseconds; `None` for a null pointer.
pub fn timespec(addr: u64) -> Result<Option<u64>, Errno> {
    if addr == 0 {
        return Ok(None);
    }
    let [seconds, nanoseconds] = user::read::<[u64; 2]>(addr)?;
    if nanoseconds >= 1_000_000_000 || seconds > i64::MAX as u64 {
        return Err(Errno::EINVAL);
    }
    Ok(Some(
        seconds
            .saturating_mul(1_000_000_000)
            .saturating_add(nanoseconds),
    ))
}

fn read_clock(clock: u64) -> Result<u64, Errno> {
    match clock as u32 {
        // CLOCK_REALTIME, CLOCK_REALTIME_COARSE, CLOCK_TAI
        0 | 5 | 11 => Ok(realtime_ns()),
        // CLOCK_MONOTONIC, MONOTONIC_RAW, MONOTONIC_COARSE, BOOTTIME
        1 | 4 | 6 | 7 => Ok(monotonic_ns()),
        // CLOCK_PROCESS_CPUTIME_ID, CLOCK_THREAD_CPUTIME_ID
        2 | 3 => Ok(used_ns()),
        number if is_cpu_clock(number as i32) => Ok(used_ns()),
        _ => Err(Errno::EINVAL),
    }
}

/// `clock_gettime`
pub fn clock_gettime(clock: u64, to: u64) -> SysResult {
    let ns = read_clock(clock)?;
    user::write(to, [ns / 1_000_000_000, ns % 1_000_000_000])?;
    Ok(0)
}

/// `clock_getres`
pub fn clock_getres(clock: u64, to: u64) -> SysResult {
    read_clock(clock)?;
    if to != 0 {
        user::write(to, [0u64, 1])?;
    }
    Ok(0)
}

/// `gettimeofday`; the time zone is UTC.
pub fn gettimeofday(to: u64, zone: u64) -> SysResult {
    if to != 0 {
        let us = realtime_ns() / 1000;
        user::write(to, [us / 1_000_000, us % 1_000_000])?;
    }
    if zone != 0 {
        user::write(zone, [0u32, 0])?;
    }
    Ok(0)
}

/// `time`
pub fn time(to: u64) -> SysResult {
    let seconds = realtime_ns() / 1_000_000_000;
    if to != 0 {
        user::write(to, seconds)?;
    }
    Ok(seconds)
}

/// `nanosleep` and `clock_nanosleep`; `absolute` is TIMER_ABSTIME. What is left after a signal goes to
/// `rest`.
pub fn sleep(clock: u64, absolute: bool, addr: u64, rest: u64) -> SysResult {
    match clock as u32 {
        // CLOCK_REALTIME, MONOTONIC, PROCESS_CPUTIME_ID, BOOTTIME, TAI
        0..=2 | 7 | 11 => {}
        // Those that only ever show something.
        4..=6 => return Err(Errno::EOPNOTSUPP),
        _ => return Err(Errno::EINVAL),
    }
    let time = timespec(addr)?.ok_or(Errno::EFAULT)?;
    let until = match absolute {
        true => monotonic_ns().saturating_add(time.saturating_sub(read_clock(clock)?)),
        false => monotonic_ns().saturating_add(time),
    };
    let result = threads::sleep_until(until);
    if result.is_err() && !absolute && rest != 0 {
        let left = until.saturating_sub(monotonic_ns());
        user::write(rest, [left / 1_000_000_000, left % 1_000_000_000])?;
    }
    result.map(|()| 0)
}

/// Leaves the vCPU until the monotonic clock reads `until`.
pub fn park_until(until: u64) {
    while monotonic_ns() < until {
        host::park(until, 0);
    }
}

/// What a program calls by way of the vDSO: the calls of the same names without the system call. A bad
/// pointer is EFAULT here as it is there.
pub mod vdso {
    use crate::errno::to_rax;
    use crate::user;

    /// `clock_gettime`
    pub extern "C" fn clock_gettime(clock: u64, to: u64) -> u64 {
        // An `int` comes in the lower half of a register; what is above is anything.
        to_rax(super::clock_gettime(u64::from(clock as u32), to))
    }

    /// `clock_getres`
    pub extern "C" fn clock_getres(clock: u64, to: u64) -> u64 {
        to_rax(super::clock_getres(u64::from(clock as u32), to))
    }

    /// `gettimeofday`
    pub extern "C" fn gettimeofday(to: u64, zone: u64) -> u64 {
        to_rax(super::gettimeofday(to, zone))
    }

    /// `time`
    pub extern "C" fn time(to: u64) -> u64 {
        to_rax(super::time(to))
    }

    /// `getcpu`: there is one.
    pub extern "C" fn getcpu(cpu: u64, node: u64) -> u64 {
        for to in [cpu, node] {
            if to != 0 && user::write(to, 0u32).is_err() {
                return to_rax(Err(crate::errno::Errno::EFAULT));
            }
        }
        0
    }
}
