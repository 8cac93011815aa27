//! From a pending signal to its handler: on the way back to the program, or at once for an exception of its own.

use holm_hostcall::{Call, FIRST_SIGNAL, FaultPage, Registers, abort_reason};

use super::frame::{self, Cause};
use super::handlers::stack_of;
use super::queue::Origin;
use super::{
    NON_CANONICAL_FROM, SI_KERNEL, SIG_DFL, SIG_IGN, SIGBUS, SIGFPE, SIGILL, SIGSEGV, SIGTRAP, bit,
    take_of, timers,
};
use crate::errno::{Errno, to_rax};
use crate::{fault, host, state};

const SA_ONSTACK: u64 = 0x0800_0000;
const SA_RESTART: u64 = 0x1000_0000;

/// On the way back to the program: runs the handlers of what is pending, by laying frames on its stack.
/// `called` is the number of the system call that is over, if it is one.
pub fn deliver(registers: &mut Registers, called: Option<u64>) {
    timers::ring();
    let thread = state::threads().current();
    let always = registers.rax == in_rax(Errno::RESTART_ALWAYS);
    let mut restart = called.filter(|_| always || registers.rax == in_rax(Errno::RESTART));
    while let deliverable = state::signals().deliverable(thread)
        && deliverable != 0
    {
        let (signal, origin) = take_of(deliverable, thread);
        let action = state::signals().actions[signal as usize - 1];
        match action.handler {
            _ if state::signals().is_ignored(signal) => continue,
            SIG_DFL => {
                registers.rip = fault::own_place(registers.rip);
                terminate(signal, registers)
            }
            _ => {}
        }
        if let Some(number) = restart.take() {
            // Before the first handler's frame is laid: what it goes back to.
            match always || action.flags & SA_RESTART != 0 {
                true => call_again(registers, number),
                false => registers.rax = in_rax(Errno::EINTR),
            }
        }
        let cause = Cause {
            signal,
            origin,
            fault: None,
        };
        run_handler(registers, thread, &cause);
    }
    if let Some(number) = restart {
        call_again(registers, number);
    }
    let of = &mut state::signals().threads[thread];
    if let Some(before) = of.before.take() {
        of.blocked = before;
    }
}

fn in_rax(error: Errno) -> u64 {
    to_rax(Err(error))
}

/// Goes back to the `syscall` instruction.
fn call_again(registers: &mut Registers, number: u64) {
    const SYSCALL_BYTES: u64 = 2;
    registers.rax = number;
    registers.rip = registers.rip.wrapping_sub(SYSCALL_BYTES);
}

fn run_handler(registers: &mut Registers, thread: usize, cause: &Cause) {
    // Where nothing can be executed there is no stub of a call either.
    if !cause.fault.is_some_and(|fault| fault::is_fetch(&fault)) {
        registers.rip = fault::own_place(registers.rip);
    }
    let (action, before) = state::signals().enter(cause.signal, thread);
    let of = state::signals().threads[thread];
    let alternate =
        action.flags & SA_ONSTACK != 0 && of.stack_bytes != 0 && !of.is_on_stack(registers.rsp);
    let top = match alternate {
        true => of.stack + of.stack_bytes,
        // Below the red zone.
        false => registers.rsp.wrapping_sub(128),
    };
    let laid = frame::lay(
        registers,
        cause,
        top,
        action.restorer,
        before,
        stack_of(&of, registers.rsp),
    );
    match laid {
        Ok(()) if action.handler < NON_CANONICAL_FROM => registers.rip = action.handler,
        _ => give_up(cause),
    }
}

/// A handler that has no stack to run on, or is nowhere.
fn give_up(cause: &Cause) -> ! {
    host::abort_with(
        abort_reason::SIGNAL,
        u64::from(SIGSEGV),
        format_args!(
            "there is no handler of signal {} where the program says, or no stack for it",
            cause.signal
        ),
    )
}

/// The end of the program, with a report of its registers.
fn terminate(signal: u32, registers: &Registers) -> ! {
    let registers = core::ptr::from_ref(registers).addr() as u64;
    let vector = FIRST_SIGNAL + u64::from(signal);
    host::call(Call::FAULT, 0, [vector, 0, 0, registers]);
    host::halt()
}

/// What a floating-point exception is to a handler: the first that Linux looks for, of bits as the control and
/// status words have them (Intel SDM volume 1, 8.5 and 11.5).
fn float_code(exceptions: u16) -> i32 {
    const INVALID: u16 = 1;
    const DENORMAL: u16 = 1 << 1;
    const ZERO: u16 = 1 << 2;
    const OVERFLOW: u16 = 1 << 3;
    const UNDERFLOW: u16 = 1 << 4;
    match exceptions {
        bits if bits & INVALID != 0 => 7,
        bits if bits & ZERO != 0 => 3,
        bits if bits & OVERFLOW != 0 => 4,
        bits if bits & (UNDERFLOW | DENORMAL) != 0 => 5,
        _ => 6,
    }
}

/// An exception of the program's: runs its handler. `false` if there is none that may run.
pub fn force(registers: &mut Registers, fault: &FaultPage) -> bool {
    const SEGV_MAPERR: i32 = 1;
    const SEGV_ACCERR: i32 = 2;
    const BUS_ADRERR: i32 = 2;
    const PRESENT: u64 = 1;
    let (signal, code) = match fault.vector {
        0 => (SIGFPE, 1),
        1 => (SIGTRAP, 2),
        3 => (SIGTRAP, SI_KERNEL),
        6 => (SIGILL, 2),
        14 if fault::is_behind_end(fault) => (SIGBUS, BUS_ADRERR),
        14 if fault.error_code & PRESENT != 0 => (SIGSEGV, SEGV_ACCERR),
        14 if state::memory().is_mapped(fault.cr2) => (SIGSEGV, SEGV_ACCERR),
        14 => (SIGSEGV, SEGV_MAPERR),
        16 => (SIGFPE, float_code(host::x87_exceptions())),
        19 => (SIGFPE, float_code(host::sse_exceptions())),
        17 => (SIGBUS, 1),
        _ => (SIGSEGV, SI_KERNEL),
    };
    let thread = state::threads().current();
    let signals = state::signals();
    let handler = signals.actions[signal as usize - 1].handler;
    let blocked = signals.threads[thread].blocked & bit(signal) != 0;
    if blocked || matches!(handler, SIG_DFL | SIG_IGN) {
        return false;
    }
    let addr = match fault.vector {
        14 => fault.cr2,
        // A breakpoint is about no address: the program is behind it.
        3 | 13 => 0,
        _ => registers.rip,
    };
    let cause = Cause {
        signal,
        origin: Origin::of_fault(code, addr),
        fault: Some(*fault),
    };
    run_handler(registers, thread, &cause);
    true
}
