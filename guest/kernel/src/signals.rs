//! Signals, as language runtimes need them: handlers, masks, alternate stacks.
//!
//! ```text
//!  kill, tgkill, timers ──▶ pending ──▶ deliver: on the way back to the program ──▶ handler
//!  exception ──▶ force ──────────────────────────────────────────────────────────▶   │
//!                                        rt_sigreturn: the registers of before ◀─────┘
//! ```
//! A signal with a handler wakes the thread it is for; its blocked call gives EINTR, or is made again.
//! Here is what is pending for whom; what each file in the folder is for stands at its top.

mod deliver;
pub mod descriptor;
mod frame;
mod handlers;
mod kill;
mod mask;
mod queue;
pub mod timers;

use crate::errno::Errno;
use crate::files::Object;
use crate::process::PROCESS_ID;
use crate::threads::MAX_THREADS;
use crate::{state, threads};
pub use deliver::{deliver, force};
pub use frame::{Cause, go_back};
pub use handlers::{action, stack};
pub use kill::{kill, kill_thread, kill_thread_of};
pub use mask::{check_mask, mask, masked, pending, suspend, wait_for};
use queue::{Origin, Queue, Sent};
pub use queue::{send_with_info, send_with_info_to};

const SIGILL: u32 = 4;
const SIGTRAP: u32 = 5;
/// A file ends before what was touched of it; and misaligned accesses.
pub const SIGBUS: u32 = 7;
const SIGFPE: u32 = 8;
const SIGKILL: u32 = 9;
const SIGSEGV: u32 = 11;
/// A write to what nobody reads.
pub const SIGPIPE: u32 = 13;
const SIGALRM: u32 = 14;
const SIGVTALRM: u32 = 26;
const SIGPROF: u32 = 27;
/// The end of an instance that was kept.
pub const SIGTERM: u32 = 15;
const SIGSTOP: u32 = 19;
/// SIGCHLD, SIGCONT, SIGURG, SIGWINCH: without a handler nothing happens.
const IGNORED: u64 = bit(17) | bit(18) | bit(23) | bit(28);
/// SIGKILL and SIGSTOP: neither blocked nor handled.
const ABSOLUTE: u64 = bit(SIGKILL) | bit(SIGSTOP);
const SIGNALS: u32 = 64;
/// Those from here on are queued.
const FIRST_REAL_TIME: u32 = 32;

const SIG_DFL: u64 = 0;
const SIG_IGN: u64 = 1;
const SA_NODEFER: u64 = 0x4000_0000;
const SA_RESETHAND: u64 = 0x8000_0000;

const SI_KERNEL: i32 = 0x80;
const SI_TKILL: i32 = -6;

const MASK_BYTES: u64 = 8;
/// Most that one timer has sent and nobody taken.
const MAX_FORGOTTEN: usize = 4;
const NON_CANONICAL_FROM: u64 = 1 << 47;

const fn bit(signal: u32) -> u64 {
    1 << (signal - 1)
}

/// The kernel's `struct sigaction`.
#[derive(Clone, Copy)]
struct Action {
    handler: u64,
    flags: u64,
    restorer: u64,
    mask: u64,
}

const DEFAULT: Action = Action {
    handler: SIG_DFL,
    flags: 0,
    restorer: 0,
    mask: 0,
};

/// What each thread has of its own.
#[derive(Clone, Copy)]
struct OfThread {
    blocked: u64,
    pending: u64,
    /// The mask to go back to when a call that had another one is over.
    before: Option<u64>,
    stack: u64,
    stack_bytes: u64,
}

const NEW: OfThread = OfThread {
    blocked: 0,
    pending: 0,
    before: None,
    stack: 0,
    stack_bytes: 0,
};

impl OfThread {
    /// Whether an address lies on the alternate stack.
    fn is_on_stack(&self, addr: u64) -> bool {
        addr > self.stack && addr - self.stack <= self.stack_bytes
    }
}

/// All of it.
pub struct Signals {
    actions: [Action; SIGNALS as usize],
    threads: [OfThread; MAX_THREADS],
    /// For any thread.
    pending: u64,
    /// What is known of pending ones beyond that they are.
    sent: Queue,
}

impl Signals {
    /// No handlers, nothing blocked.
    pub const fn new() -> Self {
        Signals {
            actions: [DEFAULT; SIGNALS as usize],
            threads: [NEW; MAX_THREADS],
            pending: 0,
            sent: Queue::new(),
        }
    }

    /// A thread begins with its parent's mask.
    pub fn inherit(&mut self, parent: usize, child: usize) {
        self.sent.forget(|one| one.thread == Some(child));
        self.threads[child] = OfThread {
            blocked: self.threads[parent].blocked,
            ..NEW
        };
    }

    /// What is pending for the first thread and for any, what the first one blocks, and what is ignored and
    /// handled.
    pub fn masks(&self) -> [u64; 5] {
        let which = |holds: fn(u64) -> bool| {
            let actions = self.actions.iter().zip(1..);
            let found = actions.filter(|(action, _)| holds(action.handler));
            found.fold(0, |set, (_, signal)| set | bit(signal))
        };
        [
            self.threads[0].pending,
            self.pending,
            self.threads[0].blocked,
            which(|handler| handler == SIG_IGN),
            which(|handler| !matches!(handler, SIG_DFL | SIG_IGN)),
        ]
    }

    fn is_ignored(&self, signal: u32) -> bool {
        let handler = self.actions[signal as usize - 1].handler;
        handler == SIG_IGN || (handler == SIG_DFL && bit(signal) & IGNORED != 0)
    }

    /// What could be delivered to a thread now.
    fn deliverable(&self, thread: usize) -> u64 {
        let of = &self.threads[thread];
        (of.pending | self.pending) & !of.blocked
    }

    /// Whether something waits that a blocked call of this thread has to end for.
    pub fn interrupts(&self, thread: usize) -> bool {
        self.deliverable(thread) != 0
    }

    /// Makes a signal pending for one thread, or for any. One that is ignored is gone at once; of the
    /// older ones each is pending once, of the real-time signals as often as it is sent. EAGAIN if that is
    /// too often for what is told with it.
    fn post(
        &mut self,
        signal: u32,
        thread: Option<usize>,
        told: Option<Origin>,
    ) -> Result<(), Errno> {
        // As on Linux: what is blocked may be waited for.
        let blocked = self.threads[thread.unwrap_or(0)].blocked & bit(signal) != 0;
        if self.is_ignored(signal) && !blocked {
            return Ok(());
        }
        let pending = match thread {
            Some(thread) => &mut self.threads[thread].pending,
            None => &mut self.pending,
        };
        let is_real_time = signal >= FIRST_REAL_TIME;
        if *pending & bit(signal) != 0 && !is_real_time {
            return Ok(());
        }
        if told.is_some() || is_real_time {
            let kept = self.sent.push(Sent {
                signal,
                thread,
                origin: told.unwrap_or(Origin::usual(thread.is_some())),
            });
            if kept.is_err() && told.is_some() && is_real_time {
                return kept;
            }
        }
        *pending |= bit(signal);
        Ok(())
    }

    /// Takes the lowest deliverable signal of a thread: its number, and how it came about.
    #[cfg(test)]
    fn take(&mut self, thread: usize) -> Option<(u32, Origin)> {
        match self.deliverable(thread) {
            0 => None,
            deliverable => Some(self.take_of(deliverable, thread)),
        }
    }

    /// Takes the lowest of `signals`, one of which is pending: those of the thread come first, as on
    /// Linux.
    fn take_of(&mut self, signals: u64, thread: usize) -> (u32, Origin) {
        let own = self.threads[thread].pending & signals;
        let (pending, found, thread) = match own {
            0 => (&mut self.pending, signals, None),
            own => (&mut self.threads[thread].pending, own, Some(thread)),
        };
        let signal = (*pending & found).trailing_zeros() + 1;
        let (origin, is_last) = self.sent.take(signal, thread);
        if is_last {
            *pending &= !bit(signal);
        }
        let origin = origin.unwrap_or(Origin::usual(thread.is_some()));
        (signal, origin)
    }

    /// Notes what a handler's run changes: masks, and the action itself. Gives the action, and the mask
    /// to go back to.
    fn enter(&mut self, signal: u32, thread: usize) -> (Action, u64) {
        let action = self.actions[signal as usize - 1];
        if action.flags & SA_RESETHAND != 0 {
            self.actions[signal as usize - 1].handler = SIG_DFL;
        }
        let of = &mut self.threads[thread];
        let before = of.before.take().unwrap_or(of.blocked);
        let own = if action.flags & SA_NODEFER == 0 {
            bit(signal)
        } else {
            0
        };
        of.blocked = (of.blocked | action.mask | own) & !ABSOLUTE;
        (action, before)
    }
}

impl Default for Signals {
    fn default() -> Self {
        Signals::new()
    }
}

/// Makes a signal pending that carries something, and tells who waits for it. `false` if it is ignored, and gone.
fn send(signal: u32, thread: Option<usize>, origin: Origin) -> bool {
    // Where there is no room for what it carries, it is sent without.
    let _ = state::signals().post(signal, thread, Some(origin));
    tell(signal);
    let signals = state::signals();
    let pending = match thread {
        Some(thread) => signals.threads[thread].pending,
        None => signals.pending,
    };
    pending & bit(signal) != 0
}

/// Wakes the threads that a new signal is for, and tells who watches a signalfd.
fn tell(signal: u32) {
    threads::interrupt_any();
    state::files().edge(|object| matches!(object, Object::Signals(set) if set & bit(signal) != 0));
}

/// Takes the lowest of `signals`, one of which is pending.
fn take_of(signals: u64, thread: usize) -> (u32, Origin) {
    let (signal, mut origin) = state::signals().take_of(signals, thread);
    if origin.code == timers::SI_TIMER {
        timers::taken(&mut origin);
    }
    (signal, origin)
}

/// Takes back what was sent, of which `which` holds.
fn forget(which: impl Fn(&Origin) -> bool) {
    let signals = state::signals();
    let mut gone: [(u32, Option<usize>); MAX_FORGOTTEN] = [(0, None); MAX_FORGOTTEN];
    let mut count = 0;
    signals.sent.forget(|one| {
        let is_it = which(&one.origin) && count < MAX_FORGOTTEN;
        if is_it {
            gone[count] = (one.signal, one.thread);
            count += 1;
        }
        is_it
    });
    for (signal, thread) in &gone[..count] {
        if signals.sent.has(*signal, *thread) {
            continue;
        }
        let pending = match thread {
            Some(thread) => &mut signals.threads[*thread].pending,
            None => &mut signals.pending,
        };
        *pending &= !bit(*signal);
    }
}

/// A signal of the running thread's own doing.
pub fn raise(signal: u32) {
    let thread = state::threads().current();
    send(signal, Some(thread), Origin::usual(false));
}

fn check(signal: u64) -> Result<u32, Errno> {
    match signal as u32 {
        signal @ 1..=SIGNALS => Ok(signal),
        _ => Err(Errno::EINVAL),
    }
}

/// Whether a number is the one process's, or one of its threads', which Linux takes too.
fn is_process(target: u64) -> bool {
    u64::from(target as u32) == PROCESS_ID || state::threads().index_of(target as u32).is_some()
}

/// A signal for the process.
pub fn post(signal: u32) {
    // It carries nothing that there might be no room for.
    let _ = state::signals().post(signal, None, None);
    tell(signal);
}

fn own() -> &'static mut OfThread {
    &mut state::signals().threads[state::threads().current()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::boxed::Box;

    fn with_handler(signal: u32, flags: u64, mask: u64) -> Box<Signals> {
        let mut signals = Box::new(Signals::new());
        signals.actions[signal as usize - 1] = Action {
            handler: 0x1000,
            flags,
            restorer: 0x2000,
            mask,
        };
        signals
    }

    #[test]
    fn a_blocked_signal_waits_until_it_is_unblocked() {
        let mut signals = with_handler(10, 0, 0);
        signals.threads[3].blocked = bit(10);
        signals.post(10, Some(3), None).unwrap();
        assert!(!signals.interrupts(3) && signals.take(3).is_none());
        signals.threads[3].blocked = 0;
        let (signal, origin) = signals.take(3).unwrap();
        assert_eq!((signal, origin.code), (10, SI_TKILL));
        assert!(signals.take(3).is_none());
    }

    #[test]
    fn a_signal_for_any_thread_is_delivered_once() {
        let mut signals = with_handler(12, 0, 0);
        signals.threads[0].blocked = bit(12);
        signals.post(12, None, None).unwrap();
        assert!(signals.take(0).is_none());
        assert_eq!(signals.take(1).map(|(signal, _)| signal), Some(12));
        assert!(signals.take(2).is_none());
    }

    #[test]
    fn real_time_signals_are_queued_with_their_values_and_others_are_not() {
        let told = |value| {
            Some(Origin {
                errno: 0,
                code: -1,
                words: [1, value, 0, 0],
            })
        };
        for (signal, values) in [(10, vec![1]), (40, vec![1, 2, 3])] {
            let mut signals = with_handler(signal, 0, 0);
            for value in 1..4 {
                signals.post(signal, None, told(value)).unwrap();
            }
            let taken = core::iter::from_fn(|| signals.take(0)).map(|(_, origin)| origin.words[1]);
            assert_eq!(taken.collect::<Vec<_>>(), values, "signal {signal}");
        }
        let mut signals = with_handler(40, 0, 0);
        let posted = (0..1000).take_while(|value| signals.post(40, Some(0), told(*value)).is_ok());
        let count = posted.count();
        assert!(count > 30 && count < 1000, "{count} of them");
    }

    #[test]
    fn what_is_ignored_is_gone_at_once() {
        let mut signals = with_handler(10, 0, 0);
        signals.post(23, None, None).unwrap();
        assert!(!signals.interrupts(0), "SIGURG by default");
        signals.actions[9].handler = SIG_IGN;
        signals.post(10, Some(0), None).unwrap();
        assert!(!signals.interrupts(0));
    }

    #[test]
    fn a_handler_runs_under_its_mask_and_never_blocks_sigkill() {
        let mut signals = with_handler(10, 0, bit(12) | bit(SIGKILL));
        let (_, before) = signals.enter(10, 0);
        assert_eq!(before, 0);
        assert_eq!(signals.threads[0].blocked, bit(10) | bit(12));
        let mut signals = with_handler(10, SA_NODEFER | SA_RESETHAND, 0);
        signals.threads[0].before = Some(bit(1));
        assert_eq!(signals.enter(10, 0).1, bit(1), "the mask before the call");
        assert_eq!(signals.threads[0].blocked, 0);
        assert_eq!(signals.actions[9].handler, SIG_DFL);
    }
}
