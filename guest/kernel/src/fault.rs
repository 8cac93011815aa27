//! Exceptions of the program, which the stub hands to the library OS, and preemptions by the host.
//!
//! A page of the sparse space that is only promised is backed, and the program goes on as if nothing had
//! been. Everything else is a signal, and where the program has no handler its end.

use holm_hostcall::rewritten_call::{AFTER, JUMP, RESTART, SITE, STUB_BYTES};
use holm_hostcall::{
    CALLS_ADDR, CALLS_END, Call, FIRST_SIGNAL, FaultPage, PAGE_BYTES, PREEMPTION_VECTOR, Registers,
};

use crate::memory::{Refusal, Touch, guest};
use crate::{host, signals, state, threads, user};

const INVALID_OPCODE: u64 = 6;
const PAGE_FAULT: u64 = 14;

/// Serves the fault that the fault page tells of; the program goes on with `frame`.
pub extern "C" fn handle(frame: &mut Registers) {
    // SAFETY: the page is mapped at its fixed address, and holds plain numbers. The stub or the host
    // wrote it just before, behind the compiler's back.
    let fault = unsafe { host::fault_page().read_volatile() };
    match fault.vector {
        PREEMPTION_VECTOR => threads::preempt(),
        PAGE_FAULT if is_backed(&fault) => {}
        INVALID_OPCODE if goes_on_elsewhere(frame) => {}
        _ if signals::force(frame, &fault) => {}
        _ => unhandled(frame, &fault),
    }
    signals::deliver(frame, None);
}

/// Whether the fault was the touch of a page that the program has, which it now has indeed.
fn is_backed(fault: &FaultPage) -> bool {
    let touch = touch_of(fault);
    let is_own = fault.rip / PAGE_BYTES == fault.cr2 / PAGE_BYTES;
    if touch == Touch::Write && is_own && state::memory().takes_turns(fault.cr2) {
        // Where it is, it cannot be executed any more once it can be written to.
        return false;
    }
    match state::memory().back(fault.cr2, touch, &mut guest()) {
        Ok(()) => true,
        Err(Refusal::NoMemory) => user::out_of_memory(),
        Err(Refusal::Unmapped | Refusal::Protected | Refusal::BehindEnd) => false,
    }
}

/// What a page fault says that the program wanted.
fn touch_of(fault: &FaultPage) -> Touch {
    const WRITE: u64 = 1 << 1;
    const FETCH: u64 = 1 << 4;
    match fault.error_code {
        code if code & FETCH != 0 => Touch::Fetch,
        code if code & WRITE != 0 => Touch::Write,
        _ => Touch::Read,
    }
}

/// Whether the fault is that the program went where there is nothing to execute.
pub fn is_fetch(fault: &FaultPage) -> bool {
    fault.vector == PAGE_FAULT && touch_of(fault) == Touch::Fetch
}

/// Where the program is, as it sees that itself: in the stub of a call (or CPUID) that is a jump now, the place of
/// the call, or if that is over of the instruction after it. It goes on from there as well.
pub fn own_place(rip: u64) -> u64 {
    const CALL_BYTES: u64 = 2;
    if !(CALLS_ADDR..CALLS_END).contains(&rip) {
        return rip;
    }
    let within = rip % STUB_BYTES as u64;
    let site = core::ptr::with_exposed_provenance::<u32>((rip - within + SITE) as usize);
    // SAFETY: a stub in which the program is lies in a page that is mapped, and is plain bytes. A program that
    // says by `rt_sigreturn` that it is in another one takes a fault here, which is its own crash.
    let site = u64::from(unsafe { site.read_volatile() });
    match within {
        AFTER => site + CALL_BYTES,
        RESTART => site,
        _ => rip,
    }
}

/// Whether the program has jumped to the instruction after a system call or CPUID that is a jump now: that
/// instruction is in the stub, and there it goes on.
fn goes_on_elsewhere(frame: &mut Registers) -> bool {
    const CALL_BYTES: u64 = 2;
    const JUMP_BYTES: u64 = 5;
    let jump = frame.rip.wrapping_sub(CALL_BYTES);
    let distance = user::read::<i32>(jump.wrapping_add(1));
    let (Ok(JUMP), Ok(distance)) = (user::read::<u8>(jump), distance) else {
        return false;
    };
    let stub = jump
        .wrapping_add(JUMP_BYTES)
        .wrapping_add_signed(i64::from(distance));
    let found = (CALLS_ADDR..CALLS_END).contains(&stub);
    if found {
        frame.rip = stub + AFTER;
    }
    found
}

/// Whether the program has touched a mapping of a file behind the file's end.
pub fn is_behind_end(fault: &FaultPage) -> bool {
    fault.vector == PAGE_FAULT && state::memory().is_behind_end(fault.cr2, touch_of(fault))
}

/// The end of the program, with a report of its registers.
fn unhandled(frame: &Registers, fault: &FaultPage) -> ! {
    let registers = core::ptr::from_ref(frame).addr() as u64;
    let vector = match is_behind_end(fault) {
        true => FIRST_SIGNAL + u64::from(signals::SIGBUS),
        false => fault.vector,
    };
    host::call(
        Call::FAULT,
        0,
        [vector, fault.error_code, fault.cr2, registers],
    );
    host::halt()
}
