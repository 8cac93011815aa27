//! Crash reports, for the author of the function.

use std::fmt;

use holm_hostcall::{
    CALLS_ADDR, HOSTCALL_VECTOR, LOG_ADDR, LogHeader, PAGE_BYTES, PROGRAM_ADDR, Registers,
    STUB_STACK_ADDR, USER_START, abort_reason,
};
use kvm_bindings::kvm_regs;

use crate::cpu::{FRAME_BYTES, GATE_FRAME_ADDR, InterruptFrame};
use crate::layout::{Layout, View};
use crate::machine::Machine;
use crate::memory::GuestMemory;
use crate::symbols::Symbols;
use crate::{Place, VmmError, unwind};

/// What happened to a program that will not answer. `Display` gives the report for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CrashReport {
    /// In a sentence, naming what the program did.
    pub what: String,
    /// The CPU's exception vector, if it was one.
    pub vector: Option<u8>,
    /// The address that could not be accessed, for a page fault.
    pub address: Option<u64>,
    /// Where the program was.
    pub instruction: Option<u64>,
    /// The program's function that holds that place, as `name+0x12`.
    pub symbol: Option<String>,
    /// The general registers, for an exception.
    pub registers: Option<String>,
    /// The functions that had called it, the innermost first, as `name+0x12` or an address.
    pub callers: Vec<String>,
}

impl fmt::Display for CrashReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        if let Some(vector) = self.vector {
            write!(f, " (vector {vector})")?;
        }
        if let Some(instruction) = self.instruction {
            write!(f, ", at instruction {instruction:#x}")?;
        }
        if let Some(symbol) = &self.symbol {
            write!(f, " in {symbol}")?;
        }
        if let Some(registers) = &self.registers {
            write!(f, "\n{registers}")?;
        }
        for same in self.callers.chunk_by(PartialEq::eq) {
            write!(f, "\n  called by {}", same[0])?;
            if same.len() > 1 {
                write!(f, ", {} times", same.len())?;
            }
        }
        Ok(())
    }
}

impl CrashReport {
    /// A crash that is told in a sentence.
    pub(crate) fn of(what: impl Into<String>) -> Box<Self> {
        Box::new(CrashReport {
            what: what.into(),
            vector: None,
            address: None,
            instruction: None,
            symbol: None,
            registers: None,
            callers: Vec::new(),
        })
    }
}

/// An exception, and the registers that the program had.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    /// The signal, if it was none that an exception leads to.
    pub(crate) signal: Option<u64>,
    pub(crate) vector: u8,
    pub(crate) error_code: u64,
    /// The address that could not be accessed, for a page fault.
    pub(crate) address: u64,
    pub(crate) registers: Registers,
}

/// The registers that the library OS has laid down at `addr`; zeroes if it has not.
pub(crate) fn read_registers(view: View<'_>, addr: u64) -> Result<Registers, VmmError> {
    let mut bytes = [0; size_of::<Registers>()];
    if !view.read(addr, &mut bytes)? {
        return Ok(Registers::default());
    }
    let words = bytes.as_chunks().0;
    let word = |at: usize| u64::from_le_bytes(words[at]);
    Ok(Registers {
        rdi: word(0),
        rsi: word(1),
        rdx: word(2),
        r10: word(3),
        r8: word(4),
        r9: word(5),
        r15: word(6),
        r14: word(7),
        r13: word(8),
        r12: word(9),
        rbp: word(10),
        rbx: word(11),
        r11: word(12),
        rcx: word(13),
        rax: word(14),
        rip: word(15),
        cs: word(16),
        rflags: word(17),
        rsp: word(18),
        ss: word(19),
    })
}

/// An exception that the program did not handle, as the library OS tells it.
pub(crate) fn of_fault(
    fault: &Fault,
    view: View<'_>,
    symbols: &Symbols,
) -> Result<Box<CrashReport>, VmmError> {
    let address = (fault.signal.is_none() && fault.vector == 14).then_some(fault.address);
    let what = match (address, fault.signal) {
        (_, Some(signal)) => ended_by(signal),
        (Some(address), _) => page_fault(address, fault.error_code, &fault.registers, view.layout),
        (None, _) => exception(fault.vector, &fault.registers, view),
    };
    Ok(Box::new(CrashReport {
        what: what + &refused_memory(view.memory)?,
        vector: fault.signal.is_none().then_some(fault.vector),
        address,
        instruction: Some(fault.registers.rip),
        symbol: place(fault.registers.rip, symbols),
        registers: Some(registers(&fault.registers)),
        callers: callers(&fault.registers, view, symbols),
    }))
}

/// What happened to a program that had these registers then.
pub(crate) fn with_place(
    report: CrashReport,
    had: &Registers,
    view: View<'_>,
    symbols: &Symbols,
) -> Box<CrashReport> {
    Box::new(CrashReport {
        instruction: Some(had.rip),
        symbol: place(had.rip, symbols),
        registers: Some(registers(had)),
        callers: callers(had, view, symbols),
        ..report
    })
}

/// An exception with which the guest has just left for good: the library OS's own, or one that a program
/// brings about which jumps there.
pub(crate) fn of_exception(
    machine: &Machine,
    view: View<'_>,
    symbols: &Symbols,
) -> Result<Box<CrashReport>, VmmError> {
    let regs = machine.regs()?;
    let stack = STUB_STACK_ADDR..=STUB_STACK_ADDR + PAGE_BYTES - FRAME_BYTES - 16;
    if !stack.contains(&regs.rsp) {
        return Ok(CrashReport::of(
            "the guest's CPL 0 stub was entered in an unknown way",
        ));
    }
    // The stub has left the vector and an error code below what the CPU pushed.
    let vector = view.memory.read_u64(regs.rsp)? as u8;
    let frame = InterruptFrame::read(view.memory, regs.rsp + 16)?;
    let fault = Fault {
        signal: None,
        vector,
        error_code: view.memory.read_u64(regs.rsp + 8)?,
        address: if vector == 14 {
            machine.sregs()?.cr2
        } else {
            0
        },
        registers: registers_in(&regs, &frame),
    };
    of_fault(&fault, view, symbols)
}

/// Where a guest is that was stopped from outside.
pub(crate) fn place_of(machine: &Machine, symbols: &Symbols) -> Place {
    let Ok(regs) = machine.regs() else {
        return Place::default();
    };
    Place(Some(match regs.rip {
        0..USER_START => "waiting for the host".into(),
        rip => match place(rip, symbols) {
            Some(symbol) => format!("at instruction {rip:#x} in {symbol}"),
            None => format!("at instruction {rip:#x}"),
        },
    }))
}

/// A breakpoint of the program's own, which comes out where hostcalls do.
pub(crate) fn of_breakpoint(
    machine: &Machine,
    view: View<'_>,
    symbols: &Symbols,
) -> Result<Box<CrashReport>, VmmError> {
    let frame = InterruptFrame::read(machine.memory()?, GATE_FRAME_ADDR)?;
    let had = registers_in(&machine.regs()?, &frame);
    Ok(Box::new(CrashReport {
        what: "the program executed a breakpoint (int3)".into(),
        vector: Some(HOSTCALL_VECTOR),
        address: None,
        instruction: Some(frame.rip),
        symbol: place(frame.rip, symbols),
        registers: Some(registers(&had)),
        callers: callers(&had, view, symbols),
    }))
}

/// The functions that had called the one which the program was in.
fn callers(registers: &Registers, view: View<'_>, symbols: &Symbols) -> Vec<String> {
    let active = unwind::backtrace(view, registers, symbols.frames());
    let active = active.get(1..).unwrap_or_default();
    let places: Vec<u64> = active.iter().map(|one| one.place).collect();
    let told = symbols.names(&places).into_iter().zip(active);
    told.map(|(name, active)| {
        let name = name.unwrap_or_else(|| format!("{:#x}", active.place));
        let how = match active.interrupted {
            true => ", which a signal had interrupted",
            false => "",
        };
        name + how
    })
    .collect()
}

fn place(instruction: u64, symbols: &Symbols) -> Option<String> {
    match instruction {
        CALLS_ADDR..PROGRAM_ADDR => Some("Holm's library OS, serving the program".into()),
        _ => symbols.holding(instruction),
    }
}

/// Error code of a page fault: Intel SDM volume 3, 4.7.
fn page_fault(address: u64, error_code: u64, frame: &Registers, layout: &Layout) -> String {
    const WRITE: u64 = 1 << 1;
    const FETCH: u64 = 1 << 4;
    let stack_end = layout.program_end();
    let stack_start = stack_end - layout.stack_bytes();
    let near_stack = |addr: u64| (stack_start - (1 << 20)..stack_start).contains(&addr);
    let verb = match () {
        _ if error_code & FETCH != 0 => "execute",
        _ if error_code & WRITE != 0 => "write",
        _ => "read",
    };
    match address {
        0..PAGE_BYTES => {
            format!("the program tried to {verb} through a null pointer (address {address:#x})")
        }
        _ if near_stack(address) && near_stack(frame.rsp) => {
            format!("the program overflowed its stack (address {address:#x})")
        }
        _ if error_code & FETCH != 0
            && (layout.program_start..layout.program_end()).contains(&address) =>
        {
            format!(
                "the program tried to execute data (address {address:#x}); code is never writable and \
             data never executable"
            )
        }
        _ => format!("the program tried to {verb} memory that it may not (address {address:#x})"),
    }
}

fn exception(vector: u8, frame: &Registers, view: View<'_>) -> String {
    match vector {
        0 => "the program divided by zero".into(),
        1 => "the program took a debug exception".into(),
        HOSTCALL_VECTOR => "the program executed a breakpoint (int3)".into(),
        4 => "the program took an overflow exception".into(),
        6 => format!(
            "the program executed an instruction that does not exist or is not allowed{}",
            instruction_bytes(frame, view)
        ),
        8 => "the guest took a double fault".into(),
        13 => format!(
            "the program executed a privileged instruction or used an address that no pointer can \
             have (general protection fault){}",
            instruction_bytes(frame, view)
        ),
        16 | 19 => "the program took a floating-point exception".into(),
        17 => "the program made an access that is not aligned".into(),
        vector => format!("the program took exception {vector}"),
    }
}

fn instruction_bytes(frame: &Registers, view: View<'_>) -> String {
    let mut bytes = [0; 8];
    match view.read(frame.rip, &mut bytes) {
        Ok(true) => format!(": {}", bytes.map(|byte| format!("{byte:02x}")).join(" ")),
        _ => String::new(),
    }
}

/// The registers at an interrupt, after which only those that it saved have changed.
fn registers_in(regs: &kvm_regs, frame: &InterruptFrame) -> Registers {
    Registers {
        rdi: regs.rdi,
        rsi: regs.rsi,
        rdx: regs.rdx,
        r10: regs.r10,
        r8: regs.r8,
        r9: regs.r9,
        r15: regs.r15,
        r14: regs.r14,
        r13: regs.r13,
        r12: regs.r12,
        rbp: regs.rbp,
        rbx: regs.rbx,
        r11: regs.r11,
        rcx: regs.rcx,
        rax: regs.rax,
        rip: frame.rip,
        rflags: frame.rflags,
        rsp: frame.rsp,
        ..Registers::default()
    }
}

fn registers(regs: &Registers) -> String {
    let general = [
        ("rax", regs.rax),
        ("rbx", regs.rbx),
        ("rcx", regs.rcx),
        ("rdx", regs.rdx),
        ("rsi", regs.rsi),
        ("rdi", regs.rdi),
        ("rbp", regs.rbp),
        ("rsp", regs.rsp),
        ("r8 ", regs.r8),
        ("r9 ", regs.r9),
        ("r10", regs.r10),
        ("r11", regs.r11),
        ("r12", regs.r12),
        ("r13", regs.r13),
        ("r14", regs.r14),
        ("r15", regs.r15),
        ("rip", regs.rip),
        ("flags", regs.rflags),
    ];
    let line = |part: &[(&str, u64)]| {
        part.iter()
            .map(|(name, value)| format!("{name} {value:016x}"))
            .collect::<Vec<_>>()
            .join("  ")
    };
    general.chunks(4).map(line).collect::<Vec<_>>().join("\n")
}

/// If the program was refused memory before: says so, since a program that dies of it dies later.
pub(crate) fn refused_memory(memory: &GuestMemory) -> Result<String, VmmError> {
    let field = |offset: usize| memory.read_u64(LOG_ADDR + offset as u64);
    let refusals = field(std::mem::offset_of!(LogHeader, memory_refusals))?;
    let bytes = field(std::mem::offset_of!(LogHeader, refused_bytes))?;
    Ok(match refusals {
        0 => String::new(),
        _ => format!(
            "; it had been refused {bytes} bytes because the memory limit was reached: raise \
             [limits] memory or use less"
        ),
    })
}

/// What the library OS says when it gives up.
pub(crate) fn of_abort(reason: u64, detail: u64, text: &str) -> Box<CrashReport> {
    let text = if text.is_empty() {
        "it does not say why"
    } else {
        text
    };
    CrashReport::of(match reason {
        abort_reason::KERNEL_PANIC => format!(
            "Holm's library OS gave up, for a fault of its own or because the program damaged it: {text}"
        ),
        abort_reason::MALFORMED_RESPONSE => format!("the program's response is malformed: {text}"),
        abort_reason::SIGNAL => format!("{}: {text}", ended_by(detail)),
        abort_reason::DEADLOCK | abort_reason::NO_RESPONSE | abort_reason::OUT_OF_MEMORY => {
            text.to_owned()
        }
        _ => format!("the program gave up for an unknown reason ({reason}): {text}"),
    })
}

fn ended_by(signal: u64) -> String {
    match signal_name(signal) {
        Some(name) => format!("the program was ended by {name}"),
        None => format!("the program was ended by signal {signal}"),
    }
}

fn signal_name(signal: u64) -> Option<&'static str> {
    Some(match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        5 => "SIGTRAP",
        7 => "SIGBUS",
        10 => "SIGUSR1",
        12 => "SIGUSR2",
        14 => "SIGALRM",
        6 => "SIGABRT (abort)",
        8 => "SIGFPE",
        9 => "SIGKILL",
        11 => "SIGSEGV",
        13 => "SIGPIPE",
        15 => "SIGTERM",
        _ => return None,
    })
}
