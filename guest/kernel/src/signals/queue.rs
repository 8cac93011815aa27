//! What a signal carries, and the queue of signals that carry something.

use super::{SI_KERNEL, SI_TKILL, check, is_process};
use crate::errno::{Errno, SysResult};
use crate::process::PROCESS_ID;
use crate::{state, user};

/// Most signals that are queued.
const MAX_SENT: usize = 128;
const SI_USER: i32 = 0;
/// `SI_QUEUE`
pub(super) const SI_QUEUE: i32 = -1;

/// How a signal came about, as `struct siginfo` tells it: what is common to all, and four words that mean
/// something else for each kind.
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    pub errno: u32,
    pub code: i32,
    pub words: [u64; 4],
}

impl Origin {
    /// Of an exception, which is about an address.
    pub const fn of_fault(code: i32, addr: u64) -> Self {
        Origin {
            errno: 0,
            code,
            words: [addr, 0, 0, 0],
        }
    }

    /// Of a signal that nobody in particular sent.
    pub const fn of_kernel() -> Self {
        Origin::of_fault(SI_KERNEL, 0)
    }

    /// Of a signal that was sent without more ado, by the one process, which is no user in particular.
    pub fn usual(to_thread: bool) -> Self {
        Origin {
            errno: 0,
            code: if to_thread { SI_TKILL } else { SI_USER },
            words: [PROCESS_ID, 0, 0, 0],
        }
    }
}

/// A signal in the queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    pub(super) signal: u32,
    /// The place of the thread that it is for, or any.
    pub(super) thread: Option<usize>,
    pub(super) origin: Origin,
}

/// Signals in the order in which they were sent.
pub(super) struct Queue {
    all: [Sent; MAX_SENT],
    count: usize,
}

impl Queue {
    /// Empty.
    pub(super) const fn new() -> Self {
        const NONE: Sent = Sent {
            signal: 0,
            thread: None,
            origin: Origin::of_fault(0, 0),
        };
        Queue {
            all: [NONE; MAX_SENT],
            count: 0,
        }
    }

    /// Puts one at the end; EAGAIN if it is full.
    pub(super) fn push(&mut self, sent: Sent) -> Result<(), Errno> {
        let free = self.all.get_mut(self.count);
        *free.ok_or(Errno::EAGAIN)? = sent;
        self.count += 1;
        Ok(())
    }

    /// Takes the first of a signal out, and says whether it was the last.
    pub(super) fn take(&mut self, signal: u32, thread: Option<usize>) -> (Option<Origin>, bool) {
        let is_it = |one: &Sent| one.signal == signal && one.thread == thread;
        let mut found = None;
        self.forget(|one| {
            let is_first = found.is_none() && is_it(one);
            if is_first {
                found = Some(one.origin);
            }
            is_first
        });
        (found, !self.has(signal, thread))
    }

    /// Whether there is one.
    pub(super) fn has(&self, signal: u32, thread: Option<usize>) -> bool {
        let is_it = |one: &Sent| one.signal == signal && one.thread == thread;
        self.all[..self.count].iter().any(is_it)
    }

    /// Takes those out that `which` holds for; it is asked once for each, in order.
    pub(super) fn forget(&mut self, mut which: impl FnMut(&Sent) -> bool) {
        let mut kept = 0;
        for place in 0..self.count {
            if !which(&self.all[place]) {
                self.all[kept] = self.all[place];
                kept += 1;
            }
        }
        self.count = kept;
    }
}

/// Reads what a program wants to be told with a signal.
fn read(info: u64) -> Result<Origin, Errno> {
    const KNOWN_BYTES: u64 = 48;
    const BYTES: u64 = 128;
    const SI_ASYNCNL: i32 = -60;
    let given = user::slice(info, BYTES)?;
    let [_, errno] = user::read::<[u32; 2]>(info)?;
    let code = user::read::<i32>(info.wrapping_add(8))?;
    let words = user::read::<[u64; 4]>(info.wrapping_add(16))?;
    // As on Linux: kinds that it does not know are told only as far as it tells any.
    let is_known = matches!(code, -7..=15 | SI_KERNEL | SI_ASYNCNL);
    if !is_known && given[KNOWN_BYTES as usize..].iter().any(|byte| *byte != 0) {
        return Err(Errno::E2BIG);
    }
    Ok(Origin { errno, code, words })
}

/// What only the kernel says, a program may say to itself alone.
fn may_say(origin: &Origin, target: u64) -> Result<(), Errno> {
    let is_own = target as u32 == state::threads().id();
    match (origin.code >= 0 || origin.code == SI_TKILL) && !is_own {
        true => Err(Errno::EPERM),
        false => Ok(()),
    }
}

fn send(signal: u64, thread: Option<usize>, origin: Origin) -> SysResult {
    if signal as u32 != 0 {
        let signal = check(signal)?;
        state::signals().post(signal, thread, Some(origin))?;
        super::tell(signal);
    }
    Ok(0)
}

/// `rt_sigqueueinfo`
pub fn send_with_info(target: u64, signal: u64, info: u64) -> SysResult {
    let origin = read(info)?;
    may_say(&origin, target)?;
    match is_process(target) {
        true => send(signal, None, origin),
        false => Err(Errno::ESRCH),
    }
}

/// `rt_tgsigqueueinfo`
pub fn send_with_info_to(process: u64, target: u64, signal: u64, info: u64) -> SysResult {
    let origin = read(info)?;
    if (process as u32 as i32) <= 0 || (target as u32 as i32) <= 0 {
        return Err(Errno::EINVAL);
    }
    may_say(&origin, target)?;
    let thread = state::threads().index_of(target as u32);
    match thread.filter(|_| u64::from(process as u32) == PROCESS_ID) {
        Some(thread) => send(signal, Some(thread), origin),
        None => Err(Errno::ESRCH),
    }
}
