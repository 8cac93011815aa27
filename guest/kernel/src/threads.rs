//! Threads on the guest's one vCPU.
//!
//! Each thread has a kernel stack of its own, on which its system call runs. A call that cannot go on
//! waits in a loop of "try; wait for a change": [`wait`] switches to another thread, and comes back
//! when something has changed or its time is up. Only when every thread waits does the vCPU leave the
//! guest, in [`Server::wait`](crate::sockets::Server::wait).
//!
//! ```text
//!  Running ──wait──▶ Waiting(change seen) ──any change, or deadline──▶ Ready ──its turn──▶ Running
//!     └──futex────▶ Sleeping(word) ──woken, or deadline──────────────────▶ Ready
//! ```
//! A thread goes on until it waits or yields, or the host sends it here for another one's turn.

mod clone;
mod futex;
mod pointer;

use core::arch::{asm, global_asm};

use holm_hostcall::{PAGE_BYTES, Registers, abort_reason};

use crate::errno::{Errno, SysResult};
use crate::{fault, files, host, signals, state, time, timers, user};
pub use clone::{clone, clone_with};
pub use futex::{futex, robust_list, robust_list_of};
pub use pointer::architecture;

/// Most threads at a time.
pub const MAX_THREADS: usize = 256;
/// Kernel stack of a thread, and behind it the wide registers that a switch saves.
const STACK_BYTES: u64 = 8 * PAGE_BYTES;
const WIDE_BYTES: u64 = PAGE_BYTES;
/// The wide part of the extended state: AVX and AVX-512. x87 and SSE are saved at the entry.
const WIDE_STATE: u64 = 0b1110_0100;
/// Ids are below this, as /proc/sys/kernel/pid_max says: they come again, from the first one that is not low, when
/// they have all been had.
const END_OF_IDS: u32 = 32_768;
const FIRST_REPEATED_ID: u32 = 300;

const _: () = assert!((END_OF_IDS - FIRST_REPEATED_ID) as usize > MAX_THREADS);

/// What a thread is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doing {
    /// No thread.
    Free,
    /// On the vCPU, or could be.
    Ready,
    /// Waits for a change after this one, at most until the deadline.
    Waiting { seen: u64, deadline: u64 },
    /// Waits to be woken by a futex call on this word, at most until the deadline.
    Sleeping { word: u64, bits: u32, deadline: u64 },
    /// Has ended, but its stack is still in use.
    Ended,
}

#[derive(Clone, Copy, Debug)]
struct Thread {
    doing: Doing,
    id: u32,
    /// The kernel stack's pointer while another thread runs.
    stack_pointer: u64,
    /// Where its system calls start; the wide registers are saved behind it.
    stack_top: u64,
    /// Mapping that holds the stack; zero for the first thread's, which is part of the image.
    mapping: u64,
    fs_base: u64,
    gs_base: u64,
    /// Cleared and woken when the thread ends.
    clear_at_end: u64,
    /// By a futex call, and not by its deadline.
    woken: bool,
    /// Its place in the order of those who sleep.
    slept_at: u64,
    /// It sleeps for a lock with an owner, which is handed over to it.
    wants_lock: bool,
    /// The list of locks to be given up for it when it ends.
    robust: u64,
    /// Its system call would go on if there were a request.
    awaits_request: bool,
}

const FREE: Thread = Thread {
    doing: Doing::Free,
    id: 0,
    stack_pointer: 0,
    stack_top: 0,
    mapping: 0,
    fs_base: 0,
    gs_base: 0,
    clear_at_end: 0,
    woken: false,
    slept_at: 0,
    wants_lock: false,
    robust: 0,
    awaits_request: false,
};

/// All threads.
pub struct Threads {
    all: [Thread; MAX_THREADS],
    current: usize,
    count: usize,
    /// No thread at this place or behind it.
    end: usize,
    /// Where a new thread goes to the program: behind the image's system-call entry.
    start_address: u64,
    next_id: u32,
    /// Counts those who went to sleep.
    sleeps: u64,
    /// Counts what a waiting thread could be waiting for.
    changes: u64,
    /// A thread that has ended, whose stack is given back by the next one that runs.
    ended: Option<usize>,
}

// The entry for system calls takes its stack from here.
#[unsafe(no_mangle)]
#[used]
static mut HOLM_ENTRY_STACK: u64 = 0;

// Changes from one kernel stack to another: saves what a function must keep, stores the stack pointer
// and goes on where the other stack was left. A new thread's stack is made to look as if it had been
// left just before the image's `thread_start`, which goes to the program with 0 in rax.
global_asm!(
    r#"
    .text
    .global switch_stacks
switch_stacks:
    push rbp
    push rbx
    push r12
    push r13
    push r14
    push r15
    mov [rdi], rsp
    mov rsp, rsi
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbx
    pop rbp
    ret
    "#
);

unsafe extern "C" {
    fn switch_stacks(from: *mut u64, to: u64);
}

impl Threads {
    /// The first thread, which has not started yet.
    pub const fn new() -> Self {
        let mut all = [FREE; MAX_THREADS];
        all[0] = Thread {
            doing: Doing::Ready,
            id: 1,
            ..FREE
        };
        Threads {
            all,
            current: 0,
            count: 1,
            end: 1,
            start_address: 0,
            next_id: 2,
            sleeps: 0,
            changes: 0,
            ended: None,
        }
    }

    /// Gives the first thread the image's stack, and later ones the place where they start.
    pub fn start(&mut self, stack_top: u64, start_address: u64) {
        self.all[0].stack_top = stack_top;
        self.start_address = start_address;
        set_entry_stack(stack_top);
    }

    /// The running thread's id.
    pub fn id(&self) -> u32 {
        self.all[self.current].id
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The running thread's place.
    pub fn current(&self) -> usize {
        self.current
    }

    /// The place of the thread with this id.
    pub fn index_of(&self, id: u32) -> Option<usize> {
        self.all[..self.end].iter().position(|thread| {
            !matches!(thread.doing, Doing::Free | Doing::Ended) && thread.id == id
        })
    }

    /// An id that no thread has.
    fn new_id(&mut self) -> u32 {
        loop {
            let id = self.next_id;
            self.next_id = match id + 1 {
                END_OF_IDS => FIRST_REPEATED_ID,
                next => next,
            };
            if self.index_of(id).is_none() {
                return id;
            }
        }
    }

    /// The ids of all threads.
    pub fn ids(&self) -> impl Iterator<Item = u32> {
        let all = self.all[..self.end].iter();
        all.filter(|thread| !matches!(thread.doing, Doing::Free | Doing::Ended))
            .map(|thread| thread.id)
    }

    /// Something that a thread may wait for has changed.
    pub fn changed(&mut self) {
        self.changes = self.changes.wrapping_add(1);
    }

    /// The running thread makes a system call.
    pub fn begin_call(&mut self) {
        self.all[self.current].awaits_request = false;
    }

    /// The running thread's system call would go on if there were a request.
    pub fn await_request(&mut self) {
        self.all[self.current].awaits_request = true;
    }

    /// Whether a thread waits for a request.
    pub fn awaits_request(&self) -> bool {
        let waits = |thread: &Thread| {
            thread.awaits_request && matches!(thread.doing, Doing::Waiting { .. })
        };
        self.all[..self.end].iter().any(waits)
    }

    /// `set_tid_address`
    pub fn clear_at_end(&mut self, word: u64) -> u64 {
        self.all[self.current].clear_at_end = word;
        u64::from(self.id())
    }

    /// The next thread that can go on, after the running one in turn; the running one comes last.
    fn next(&mut self, now: u64) -> Option<usize> {
        for step in 1..=self.end {
            let at = (self.current + step) % self.end;
            let can = match self.all[at].doing {
                Doing::Free | Doing::Ended => false,
                Doing::Ready => true,
                Doing::Waiting { seen, deadline } => seen != self.changes || deadline <= now,
                Doing::Sleeping { deadline, .. } => deadline <= now,
            };
            if can {
                return Some(at);
            }
        }
        None
    }

    /// The earliest deadline of a thread.
    fn first_deadline(&self) -> Option<u64> {
        let deadline = |thread: &Thread| match thread.doing {
            Doing::Waiting { deadline, .. } | Doing::Sleeping { deadline, .. } => deadline,
            Doing::Free | Doing::Ready | Doing::Ended => u64::MAX,
        };
        self.all[..self.end]
            .iter()
            .map(deadline)
            .min()
            .filter(|deadline| *deadline != u64::MAX)
    }

    /// The thread that has slept longest on `word`, of those that `which` holds for.
    fn first_sleeper(&self, word: u64, which: impl Fn(&Thread, u32) -> bool) -> Option<usize> {
        let sleeps = |thread: &Thread| match thread.doing {
            Doing::Sleeping { word: at, bits, .. } => at == word && which(thread, bits),
            _ => false,
        };
        let all = self.all[..self.end].iter().enumerate();
        all.filter(|(_, thread)| sleeps(thread))
            .min_by_key(|(_, thread)| thread.slept_at)
            .map(|(place, _)| place)
    }

    /// The next place in the order of those who sleep.
    fn next_sleep(&mut self) -> u64 {
        self.sleeps += 1;
        self.sleeps
    }

    fn wake_at(&mut self, place: usize) {
        self.all[place].doing = Doing::Ready;
        self.all[place].woken = true;
    }

    /// Makes up to `most` sleepers on `word` ready, in the order in which they came; gives their number.
    fn wake(&mut self, word: u64, most: u64, mask: u32) -> u64 {
        let mut woken = 0;
        while woken < most
            && let Some(place) = self.first_sleeper(word, |_, bits| bits & mask != 0)
        {
            self.wake_at(place);
            woken += 1;
        }
        woken
    }

    /// Moves up to `most` sleepers from one word to another; gives their number.
    fn requeue(&mut self, from: u64, to: u64, most: u64) -> u64 {
        let mut moved = 0;
        while moved < most.min(MAX_THREADS as u64)
            && let Some(place) = self.first_sleeper(from, |_, _| true)
        {
            let last = self.next_sleep();
            let thread = &mut self.all[place];
            thread.slept_at = last;
            if let Doing::Sleeping { word, .. } = &mut thread.doing {
                *word = to;
            }
            moved += 1;
        }
        moved
    }

    /// Gives back the stack of a thread that has ended.
    fn bury(&mut self) {
        if let Some(ended) = self.ended.take() {
            let mapping = self.all[ended].mapping;
            self.all[ended] = FREE;
            while self.all[self.end - 1].doing == Doing::Free {
                self.end -= 1;
            }
            if mapping != 0 {
                state::memory().give(mapping, STACK_BYTES + WIDE_BYTES);
            }
        }
    }
}

impl Default for Threads {
    fn default() -> Self {
        Threads::new()
    }
}

fn set_entry_stack(top: u64) {
    // SAFETY: one vCPU, and the entry reads it only when the program runs.
    unsafe { (&raw mut HOLM_ENTRY_STACK).write_volatile(top) };
}

/// The running thread cannot go on before something changes, or before `deadline` (monotonic
/// nanoseconds). Comes back then, or earlier; the caller tries again. `true`: a signal is there, for
/// which the call has to end.
pub fn wait(deadline: Option<u64>) -> bool {
    let threads = state::threads();
    let current = threads.current;
    if state::signals().interrupts(current) {
        return true;
    }
    let seen = threads.changes;
    threads.all[threads.current].doing = Doing::Waiting {
        seen,
        deadline: deadline.unwrap_or(u64::MAX),
    };
    give_way();
    state::signals().interrupts(current)
}

/// Wakes every thread that a signal is there for.
pub fn interrupt_any() {
    let threads = state::threads();
    threads.changed();
    for (place, thread) in threads.all[..threads.end].iter_mut().enumerate() {
        let waits = matches!(thread.doing, Doing::Waiting { .. } | Doing::Sleeping { .. });
        if waits && state::signals().interrupts(place) {
            thread.doing = Doing::Ready;
        }
    }
}

/// Calls `attempt` until it gives something else than EAGAIN, waiting in between unless
/// `nonblocking`.
pub fn blocking(nonblocking: bool, attempt: impl FnMut() -> SysResult) -> SysResult {
    blocking_until(nonblocking, None, attempt)
}

/// The same, but at most until `deadline` (monotonic nanoseconds): then EAGAIN.
pub fn blocking_until(
    nonblocking: bool,
    deadline: Option<u64>,
    mut attempt: impl FnMut() -> SysResult,
) -> SysResult {
    let late = || deadline.is_some_and(|deadline| time::monotonic_ns() >= deadline);
    loop {
        match attempt() {
            Err(Errno::EAGAIN) if !nonblocking && !late() => {
                if wait(deadline) {
                    // As on Linux: what has a time limit of its own is not made again.
                    return Err(match deadline {
                        None => Errno::RESTART,
                        Some(_) => Errno::EINTR,
                    });
                }
            }
            result => return result,
        }
    }
}

/// Waits until the monotonic clock reads `until`; EINTR if a signal comes before.
pub fn sleep_until(until: u64) -> Result<(), Errno> {
    while time::monotonic_ns() < until {
        let threads = state::threads();
        let current = threads.current;
        if state::signals().interrupts(current) {
            return Err(Errno::EINTR);
        }
        // Nobody wakes the word 0: programs have no memory there.
        threads.all[threads.current].doing = Doing::Sleeping {
            word: 0,
            bits: 0,
            deadline: until,
        };
        give_way();
    }
    Ok(())
}

/// The host has interrupted the running thread: the others have their turn.
pub fn preempt() {
    give_way();
}

/// The same, if the host wanted to while the library OS was at work.
pub fn preempt_if_missed() {
    // SAFETY: the page is mapped at its fixed address; the host writes there while the vCPU is out of
    // the guest, hence volatile.
    unsafe {
        let missed = &raw mut (*host::fault_page()).tick_missed;
        if missed.read_volatile() != 0 {
            missed.write_volatile(0);
            preempt();
        }
    }
}

/// Tells the host whether there is anything to interrupt a running thread for.
pub fn want_ticks() {
    let wanted = state::threads().count > 1 || state::signal_timers().is_armed();
    // SAFETY: as above.
    unsafe { (&raw mut (*host::fault_page()).wants_ticks).write_volatile(u64::from(wanted)) };
}

/// `sched_yield`
pub fn yield_now() -> SysResult {
    give_way();
    Ok(0)
}

/// Goes on with the next thread that can, and comes back when it is this one's turn. Where none can,
/// leaves the guest until something changes or the first deadline.
#[inline(never)]
fn give_way() {
    loop {
        signals::timers::ring();
        timers::ring();
        let threads = state::threads();
        let others = state::signal_timers()
            .first()
            .into_iter()
            .chain(timers::first());
        let deadline = threads.first_deadline().into_iter().chain(others).min();
        // The usual case needs no clock: one thread, which waits without a deadline.
        let now = if deadline.is_some() {
            time::monotonic_ns()
        } else {
            0
        };
        if let Some(next) = threads.next(now) {
            threads.all[next].doing = Doing::Ready;
            if next != threads.current {
                switch_to(next);
            }
            return;
        }
        state::server().wait(deadline);
    }
}

fn switch_to(next: usize) {
    let threads = state::threads();
    let before = threads.current;
    save_wide(threads.all[before].stack_top);
    threads.all[before].fs_base = host::fs_base();
    threads.all[before].gs_base = host::gs_base();
    threads.current = next;
    let there = threads.all[next];
    host::set_fs_base(there.fs_base);
    host::set_gs_base(there.gs_base);
    set_entry_stack(there.stack_top);
    restore_wide(there.stack_top);
    let from = &raw mut threads.all[before].stack_pointer;
    // SAFETY: the other stack was left by this function, or laid out by `start_thread`, and its thread
    // is not running. Everything that this thread keeps is on its own stack.
    unsafe { switch_stacks(from, there.stack_pointer) };
    state::threads().bury();
}

/// Saves the wide registers behind a stack. Where the CPU has none, XSAVE saves nothing.
fn save_wide(area: u64) {
    // SAFETY: a page behind each thread's kernel stack is kept for this; it is aligned. CR4.OSXSAVE is
    // set by the host.
    unsafe {
        asm!("xsave64 [{area}]", area = in(reg) area, in("eax") WIDE_STATE as u32, in("edx") 0,
             options(nostack));
    }
}

fn restore_wide(area: u64) {
    // SAFETY: `save_wide` wrote the area, or it is all zero, which is the initial state. Kernel code
    // keeps nothing in wide registers.
    unsafe {
        asm!("xrstor64 [{area}]", area = in(reg) area, in("eax") WIDE_STATE as u32, in("edx") 0,
             options(nostack));
    }
}

/// `exit`: the end of one thread, and with the last one of the program.
pub fn exit(status: u64) -> ! {
    let threads = state::threads();
    if threads.count == 1 {
        end(status);
    }
    threads.bury();
    futex::give_up_locks();
    let threads = state::threads();
    let current = threads.current;
    let word = threads.all[current].clear_at_end;
    if word != 0 && user::write(word, 0u32).is_ok() {
        threads.wake(word, 1, u32::MAX);
    }
    threads.count -= 1;
    want_ticks();
    // Not free yet: this runs on its stack.
    threads.all[current].doing = Doing::Ended;
    threads.ended = Some(current);
    give_way();
    host::exit(status & 0xff)
}

/// `exit_group`: the end of the program.
pub fn end(status: u64) -> ! {
    if status & 0xff != 0 {
        files::open::tell_not_found();
    }
    state::server().end();
    host::exit(status & 0xff)
}

/// Where the running thread's registers lie, of a program that does not go on.
pub fn last_registers() -> u64 {
    let threads = state::threads();
    let addr = threads.all[threads.current].stack_top - size_of::<Registers>() as u64;
    let registers = core::ptr::with_exposed_provenance_mut::<Registers>(addr as usize);
    // SAFETY: both entries lay them down there, at the top of the running thread's kernel stack. Whoever serves it
    // holds a reference to them, but does not come to use that again.
    unsafe { (*registers).rip = fault::own_place((*registers).rip) };
    addr
}

/// Every thread waits for what can never come.
pub fn wait_for_ever() -> ! {
    const WAITS: &str = "the program waits for something that can never come";
    let port = host::boot().port;
    let listens = state::sockets().serving_port(port as u16).is_some();
    match listens {
        true => host::abort_with(
            abort_reason::DEADLOCK,
            last_registers(),
            format_args!("{WAITS}"),
        ),
        false => host::abort_with(
            abort_reason::DEADLOCK,
            last_registers(),
            format_args!("{WAITS}, and does not listen on $PORT ({port})"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::boxed::Box;

    #[test]
    fn ids_come_again_when_all_were_had_and_never_one_that_a_thread_has() {
        let mut threads = Box::new(Threads::new());
        threads.next_id = END_OF_IDS - 1;
        threads.all[1] = Thread {
            doing: Doing::Ready,
            id: FIRST_REPEATED_ID,
            ..FREE
        };
        threads.end = 2;
        let ids = [(); 3].map(|()| threads.new_id());
        assert_eq!(
            ids,
            [END_OF_IDS - 1, FIRST_REPEATED_ID + 1, FIRST_REPEATED_ID + 2]
        );
    }
}
