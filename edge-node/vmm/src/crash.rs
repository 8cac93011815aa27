//! Crash reports, for the author of the function.

use std::fmt;

use holm_hostcall::{
    HOSTCALL_VECTOR, KERNEL_ADDR, LOG_ADDR, LogHeader, PAGE_BYTES, PROGRAM_ADDR, STUB_STACK_ADDR,
    USER_START, abort_reason,
};
use kvm_bindings::kvm_regs;

use crate::cpu::{FRAME_BYTES, GATE_FRAME_ADDR, InterruptFrame};
use crate::layout::Layout;
use crate::machine::Machine;
use crate::symbols::Symbols;
use crate::{Place, VmmError};

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
    /// The program's function nearest to that place, as `name+0x12`.
    pub symbol: Option<String>,
    /// The general registers, for an exception.
    pub registers: Option<String>,
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
        })
    }
}

/// The exception that the guest has just left with.
pub(crate) fn of_exception(
    machine: &Machine,
    layout: &Layout,
    symbols: &Symbols,
) -> Result<Box<CrashReport>, VmmError> {
    let regs = machine.regs()?;
    let memory = machine.memory()?;
    let stack = STUB_STACK_ADDR..STUB_STACK_ADDR + PAGE_BYTES - FRAME_BYTES;
    if !stack.contains(&regs.rsp) {
        return Ok(CrashReport::of(
            "the guest's CPL 0 stub was entered in an unknown way",
        ));
    }
    // The stub pushed the vector onto what the CPU pushed.
    let vector = memory.read_u64(regs.rsp)? as u8;
    let has_error_code = matches!(vector, 8 | 10..=14 | 17 | 21 | 29 | 30);
    let error_code = if has_error_code {
        memory.read_u64(regs.rsp + 8)?
    } else {
        0
    };
    let frame = InterruptFrame::read(memory, regs.rsp + if has_error_code { 16 } else { 8 })?;
    let fault_address = if vector == 14 {
        Some(machine.sregs()?.cr2)
    } else {
        None
    };
    let what = match fault_address {
        Some(address) => page_fault(address, error_code, &frame, layout),
        None => exception(vector, &frame, memory),
    };
    Ok(Box::new(CrashReport {
        what: what + &refused_memory(machine)?,
        vector: Some(vector),
        address: fault_address,
        instruction: Some(frame.rip),
        symbol: place(frame.rip, symbols),
        registers: Some(registers(&regs, &frame)),
    }))
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
    symbols: &Symbols,
) -> Result<Box<CrashReport>, VmmError> {
    let frame = InterruptFrame::read(machine.memory()?, GATE_FRAME_ADDR)?;
    Ok(Box::new(CrashReport {
        what: "the program executed a breakpoint (int3)".into(),
        vector: Some(HOSTCALL_VECTOR),
        address: None,
        instruction: Some(frame.rip),
        symbol: place(frame.rip, symbols),
        registers: Some(registers(&machine.regs()?, &frame)),
    }))
}

fn place(instruction: u64, symbols: &Symbols) -> Option<String> {
    match instruction {
        KERNEL_ADDR..PROGRAM_ADDR => Some("Holm's library OS, serving the program".into()),
        _ => symbols.nearest(instruction),
    }
}

/// Error code of a page fault: Intel SDM volume 3, 4.7.
fn page_fault(address: u64, error_code: u64, frame: &InterruptFrame, layout: &Layout) -> String {
    const WRITE: u64 = 1 << 1;
    const FETCH: u64 = 1 << 4;
    let stack_end = layout.tables;
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
            && (layout.program_start..layout.tables).contains(&address) =>
        {
            format!(
                "the program tried to execute data (address {address:#x}); code is never writable and \
             data never executable"
            )
        }
        _ => format!("the program tried to {verb} memory that it may not (address {address:#x})"),
    }
}

fn exception(vector: u8, frame: &InterruptFrame, memory: &crate::memory::GuestMemory) -> String {
    match vector {
        0 => "the program divided by zero".into(),
        1 => "the program took a debug exception".into(),
        4 => "the program took an overflow exception".into(),
        6 => format!(
            "the program executed an instruction that does not exist or is not allowed{}",
            instruction_bytes(frame, memory)
        ),
        8 => "the guest took a double fault".into(),
        13 => format!(
            "the program executed a privileged instruction or used an address that no pointer can \
             have (general protection fault){}",
            instruction_bytes(frame, memory)
        ),
        16 | 19 => "the program took a floating-point exception".into(),
        17 => "the program made an access that is not aligned".into(),
        vector => format!("the program took exception {vector}"),
    }
}

fn instruction_bytes(frame: &InterruptFrame, memory: &crate::memory::GuestMemory) -> String {
    let mut bytes = [0; 8];
    match memory.read(frame.rip, &mut bytes) {
        Ok(()) => format!(": {}", bytes.map(|byte| format!("{byte:02x}")).join(" ")),
        Err(_) => String::new(),
    }
}

fn registers(regs: &kvm_regs, frame: &InterruptFrame) -> String {
    let general = [
        ("rax", regs.rax),
        ("rbx", regs.rbx),
        ("rcx", regs.rcx),
        ("rdx", regs.rdx),
        ("rsi", regs.rsi),
        ("rdi", regs.rdi),
        ("rbp", regs.rbp),
        ("rsp", frame.rsp),
        ("r8 ", regs.r8),
        ("r9 ", regs.r9),
        ("r10", regs.r10),
        ("r11", regs.r11),
        ("r12", regs.r12),
        ("r13", regs.r13),
        ("r14", regs.r14),
        ("r15", regs.r15),
        ("rip", frame.rip),
        ("flags", frame.rflags),
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
pub(crate) fn refused_memory(machine: &Machine) -> Result<String, VmmError> {
    let memory = machine.memory()?;
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
        abort_reason::SIGNAL => match signal_name(detail) {
            Some(name) => format!("the program ended itself with {name}"),
            None => format!("the program ended itself with signal {detail}"),
        },
        abort_reason::DEADLOCK | abort_reason::NO_RESPONSE => text.to_owned(),
        _ => format!("the program gave up for an unknown reason ({reason}): {text}"),
    })
}

fn signal_name(signal: u64) -> Option<&'static str> {
    Some(match signal {
        4 => "SIGILL",
        6 => "SIGABRT (abort)",
        8 => "SIGFPE",
        9 => "SIGKILL",
        11 => "SIGSEGV",
        13 => "SIGPIPE",
        15 => "SIGTERM",
        _ => return None,
    })
}
