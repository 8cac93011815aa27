//! Futexes: words of the program's that threads sleep on, and what is built of them in the kernel:
//! locks with an owner, and lists of locks that outlive theirs.

use super::{Doing, give_way};
use crate::errno::{Errno, SysResult};
use crate::{state, time, user};

const CLOCK_REALTIME: u64 = 256;
const PRIVATE: u64 = 128;
/// The parts of a word that is a lock with an owner.
const WAITERS: u32 = 1 << 31;
const OWNER_DIED: u32 = 1 << 30;
const OWNER: u32 = OWNER_DIED - 1;
/// Most locks that are given up for a thread.
const MAX_ROBUST: usize = 2048;
const ROBUST_HEAD_BYTES: u64 = 24;

/// `futex`
pub fn futex(
    word: u64,
    operation: u64,
    value: u64,
    timeout: u64,
    second: u64,
    third: u64,
) -> SysResult {
    const WAIT: u64 = 0;
    const WAKE: u64 = 1;
    const REQUEUE: u64 = 3;
    const CMP_REQUEUE: u64 = 4;
    const WAKE_OP: u64 = 5;
    const LOCK_PI: u64 = 6;
    const UNLOCK_PI: u64 = 7;
    const TRYLOCK_PI: u64 = 8;
    const WAIT_BITSET: u64 = 9;
    const WAKE_BITSET: u64 = 10;
    const LOCK_PI2: u64 = 13;
    let on_realtime = operation & CLOCK_REALTIME != 0;
    let operation = operation as u32 as u64 & !(PRIVATE | CLOCK_REALTIME);
    if on_realtime && !matches!(operation, WAIT_BITSET | LOCK_PI2) {
        return Err(Errno::ENOSYS);
    }
    let deadline = match operation {
        WAIT | LOCK_PI | WAIT_BITSET | LOCK_PI2 => match time::timespec(timeout)? {
            None => u64::MAX,
            Some(time) if operation == WAIT => time::monotonic_ns().saturating_add(time),
            Some(time) if on_realtime || operation == LOCK_PI => {
                time::monotonic_ns().saturating_add(time.saturating_sub(time::realtime_ns()))
            }
            Some(time) => time,
        },
        _ => u64::MAX,
    };
    let threads = state::threads();
    match operation {
        WAIT => wait(word, value as u32, u32::MAX, deadline, false),
        WAIT_BITSET => wait(word, value as u32, third as u32, deadline, false),
        WAKE => {
            is_word(word)?;
            Ok(threads.wake(word, value, u32::MAX))
        }
        WAKE_BITSET if third as u32 == 0 => Err(Errno::EINVAL),
        WAKE_BITSET => {
            is_word(word)?;
            Ok(threads.wake(word, value, third as u32))
        }
        REQUEUE | CMP_REQUEUE => {
            // The number to move is in the place of the timeout.
            if (value as u32 as i32) < 0 || (timeout as u32 as i32) < 0 {
                return Err(Errno::EINVAL);
            }
            is_word(word)?;
            is_word(second)?;
            if operation == CMP_REQUEUE && user::read::<u32>(word)? != third as u32 {
                return Err(Errno::EAGAIN);
            }
            let woken = threads.wake(word, value, u32::MAX);
            Ok(woken + threads.requeue(word, second, timeout))
        }
        WAKE_OP => {
            is_word(word)?;
            is_word(second)?;
            let wakes_second = change(second, third as u32)?;
            let woken = threads.wake(word, value, u32::MAX);
            Ok(woken
                + if wakes_second {
                    threads.wake(second, timeout, u32::MAX)
                } else {
                    0
                })
        }
        LOCK_PI | LOCK_PI2 => lock(word, true, deadline),
        TRYLOCK_PI => lock(word, false, deadline),
        UNLOCK_PI => unlock(word),
        _ => Err(Errno::ENOSYS),
    }
}

/// A futex is an aligned word that the program could have.
fn is_word(word: u64) -> Result<(), Errno> {
    match word.is_multiple_of(4) {
        true => user::range(word, 4),
        false => Err(Errno::EINVAL),
    }
}

/// Sleeps on a word while it is `value`, for a lock with an owner if `wants_lock`.
fn wait(word: u64, value: u32, bits: u32, deadline: u64, wants_lock: bool) -> SysResult {
    if bits == 0 {
        return Err(Errno::EINVAL);
    }
    is_word(word)?;
    loop {
        if user::read::<u32>(word)? != value {
            return Err(Errno::EAGAIN);
        }
        let threads = state::threads();
        let slept_at = threads.next_sleep();
        let current = threads.current;
        let sleeper = &mut threads.all[current];
        sleeper.slept_at = slept_at;
        sleeper.wants_lock = wants_lock;
        sleeper.woken = false;
        if !state::signals().interrupts(current) {
            sleeper.doing = Doing::Sleeping {
                word,
                bits,
                deadline,
            };
            give_way();
        }
        let woken = state::threads().all[current].woken;
        match state::signals().interrupts(current) {
            _ if woken => return Ok(0),
            true if wants_lock => return Err(Errno::RESTART_ALWAYS),
            true if deadline == u64::MAX => return Err(Errno::RESTART),
            true => return Err(Errno::EINTR),
            false if time::monotonic_ns() >= deadline => return Err(Errno::ETIMEDOUT),
            // A signal was for any thread, and another one has taken it.
            false => {}
        }
    }
}

/// The change that FUTEX_WAKE_OP makes to its second word, and whether its old value is such that the
/// sleepers there are woken too.
fn change(word: u64, encoded: u32) -> Result<bool, Errno> {
    const SHIFTED: u32 = 8;
    // Twelve bits each, with a sign.
    let operand = (encoded << 8) as i32 >> 20;
    let compared = (encoded << 20) as i32 >> 20;
    let operation = encoded >> 28;
    let operand = match operation & SHIFTED {
        0 => operand as u32,
        _ => 1u32.wrapping_shl(operand as u32),
    };
    let old = user::read::<u32>(word)?;
    let new = match operation & !SHIFTED {
        0 => operand,
        1 => old.wrapping_add(operand),
        2 => old | operand,
        3 => old & !operand,
        4 => old ^ operand,
        _ => return Err(Errno::ENOSYS),
    };
    user::write(word, new)?;
    let old = old as i32;
    match encoded >> 24 & 0xf {
        0 => Ok(old == compared),
        1 => Ok(old != compared),
        2 => Ok(old < compared),
        3 => Ok(old <= compared),
        4 => Ok(old > compared),
        5 => Ok(old >= compared),
        _ => Err(Errno::ENOSYS),
    }
}

/// Takes a lock with an owner, waiting for it if `waits`. Threads have no priorities here, so there is none
/// to inherit: those who wait get the lock in the order in which they came.
fn lock(word: u64, waits: bool, deadline: u64) -> SysResult {
    is_word(word)?;
    let own = state::threads().id();
    loop {
        let held = user::read::<u32>(word)?;
        match held & OWNER {
            0 => {
                user::write(word, own | held & OWNER_DIED | waiters(word))?;
                return Ok(0);
            }
            owner if owner == own => return Err(Errno::EDEADLK),
            owner if state::threads().index_of(owner).is_none() => return Err(Errno::ESRCH),
            _ if !waits => return Err(Errno::EAGAIN),
            _ => {}
        }
        // From now on the owner comes here to give it up.
        user::write(word, held | WAITERS)?;
        match wait(word, held | WAITERS, u32::MAX, deadline, true) {
            Ok(_) if user::read::<u32>(word)? & OWNER == own => return Ok(0),
            Ok(_) | Err(Errno::EAGAIN) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Who sleeps longest for the lock at a word.
fn next_owner(word: u64) -> Option<usize> {
    state::threads().first_sleeper(word, |thread, _| thread.wants_lock)
}

/// The bit of a lock's word that says whether somebody sleeps for it.
fn waiters(word: u64) -> u32 {
    next_owner(word).map_or(0, |_| WAITERS)
}

fn unlock(word: u64) -> SysResult {
    is_word(word)?;
    if user::read::<u32>(word)? & OWNER != state::threads().id() {
        return Err(Errno::EPERM);
    }
    match next_owner(word) {
        Some(next) => hand_over(word, next, 0)?,
        None => user::write(word, 0u32)?,
    }
    Ok(0)
}

/// Makes a sleeper the owner of the lock that it sleeps for.
fn hand_over(word: u64, next: usize, died: u32) -> Result<(), Errno> {
    let threads = state::threads();
    threads.wake_at(next);
    user::write(word, threads.all[next].id | died | waiters(word))
}

/// `set_robust_list`
pub fn robust_list(head: u64, bytes: u64) -> SysResult {
    if bytes != ROBUST_HEAD_BYTES {
        return Err(Errno::EINVAL);
    }
    let threads = state::threads();
    threads.all[threads.current].robust = head;
    Ok(0)
}

/// `get_robust_list`
pub fn robust_list_of(id: u64, head: u64, bytes: u64) -> SysResult {
    let threads = state::threads();
    let place = match id as u32 {
        0 => threads.current,
        id => threads.index_of(id).ok_or(Errno::ESRCH)?,
    };
    user::write(bytes, ROBUST_HEAD_BYTES)?;
    user::write(head, threads.all[place].robust)?;
    Ok(0)
}

/// The running thread ends: those who wait for its locks learn that their owner has died.
pub(super) fn give_up_locks() {
    give_up_list();
    // Locks with an owner in the kernel need not be in the list.
    for place in 0..state::threads().end {
        let thread = state::threads().all[place];
        if let (Doing::Sleeping { word, .. }, true) = (thread.doing, thread.wants_lock) {
            give_up(word);
        }
    }
}

/// The locks of the list that the running thread keeps. What is wrong with the list ends it.
fn give_up_list() {
    let threads = state::threads();
    let head = threads.all[threads.current].robust;
    if head == 0 {
        return;
    }
    let Ok([first, offset, pending]) = user::read::<[u64; 3]>(head) else {
        return;
    };
    let mut entry = first;
    for _ in 0..MAX_ROBUST {
        // The lowest bit tells a lock with an owner in the kernel; here they are alike.
        let at = entry & !1;
        if at == head {
            break;
        }
        let next = user::read::<u64>(at);
        if at != pending & !1 {
            give_up(at.wrapping_add(offset));
        }
        let Ok(next) = next else { return };
        entry = next;
    }
    if pending & !1 != 0 {
        give_up((pending & !1).wrapping_add(offset));
    }
}

fn give_up(word: u64) {
    let Ok(held) = user::read::<u32>(word) else {
        return;
    };
    if held & OWNER != state::threads().id() {
        return;
    }
    if let Some(next) = next_owner(word) {
        // A word that cannot be written any more is nobody's lock.
        let _ = hand_over(word, next, OWNER_DIED);
    } else if user::write(word, held & WAITERS | OWNER_DIED).is_ok() && held & WAITERS != 0 {
        state::threads().wake(word, 1, u32::MAX);
    }
}
