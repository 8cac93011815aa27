//! Who called whom when a program crashed.
//!
//! Three ways back from a function to its caller, tried in this order: the program's call frame information
//! (`tables.rs`; C, Rust and Zig have it), the chain of frame pointers (which Go has), and the next word on the
//! stack that looks like a return address (musl's own functions have neither of the others). A signal's handler
//! has no caller; behind it comes what the signal has interrupted. All of it is read out of the guest's memory, by
//! its own addresses, and is an allegation: the walk is bounded, goes only up a stack but for signals, and stops at
//! whatever makes no sense.

mod tables;

use gimli::{Register, X86_64};
use holm_hostcall::{Registers, selector};
use serde::{Deserialize, Serialize};

use crate::layout::View;
use tables::Tables;

/// Most functions that are told of.
const MAX_FRAMES: usize = 24;
/// Most words of a stack that are searched for a return address.
const MAX_SEARCHED_WORDS: u64 = 64;
/// Registers that a function keeps for its caller, beside the stack pointer.
const KEPT: usize = 6;
/// Their numbers in DWARF, in the order in which [`Frame`] has them.
const NUMBERS: [Register; KEPT] = [
    X86_64::RBX,
    X86_64::RBP,
    X86_64::R12,
    X86_64::R13,
    X86_64::R14,
    X86_64::R15,
];
const RBP: usize = 1;

/// Where a program's call frame information is, as address and bytes, as far as its ELF file tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FrameTables {
    /// `.eh_frame_hdr`, an index by address. gcc makes none for static programs.
    pub(crate) index: Option<(u64, u64)>,
    /// `.eh_frame`
    pub(crate) entries: Option<(u64, u64)>,
}

/// A function that was active.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Active {
    /// Where it was, as an address within it: in a call of the one before, but for the first.
    pub(crate) place: u64,
    /// A signal has interrupted it there, and the one before is the signal's handler.
    pub(crate) interrupted: bool,
}

/// The memory that frames and tables are read from.
trait Source {
    /// Reads all of `to`, or tells that it cannot.
    fn read(&self, addr: u64, to: &mut [u8]) -> bool;

    fn word(&self, addr: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        self.read(addr, &mut bytes)
            .then(|| u64::from_le_bytes(bytes))
    }
}

impl Source for View<'_> {
    fn read(&self, addr: u64, to: &mut [u8]) -> bool {
        // A report goes without what the host cannot read.
        matches!(View::read(self, addr, to), Ok(true))
    }
}

/// Where a function is, and what its caller's registers can be found from.
#[derive(Clone, Copy)]
struct Frame {
    rip: u64,
    rsp: u64,
    kept: [u64; KEPT],
}

impl Frame {
    fn of(registers: &Registers) -> Self {
        Frame {
            rip: registers.rip,
            rsp: registers.rsp,
            kept: [
                registers.rbx,
                registers.rbp,
                registers.r12,
                registers.r13,
                registers.r14,
                registers.r15,
            ],
        }
    }

    fn register(&self, register: Register) -> Option<u64> {
        if register == X86_64::RSP {
            return Some(self.rsp);
        }
        let place = NUMBERS.iter().position(|number| *number == register)?;
        Some(self.kept[place])
    }
}

/// The functions that were active, the innermost first.
pub(crate) fn backtrace(view: View<'_>, registers: &Registers, tables: FrameTables) -> Vec<Active> {
    let tables = Tables::find(&view, tables);
    let mut budget = tables::MAX_EVALUATED_BYTES;
    let mut frame = Frame::of(registers);
    let mut active = vec![Active {
        place: frame.rip,
        interrupted: false,
    }];
    // A return address may be the next function's first byte.
    let mut looked_up = frame.rip;
    while active.len() < MAX_FRAMES {
        let by_table = tables
            .as_ref()
            .and_then(|tables| tables.caller(&view, &frame, looked_up, &mut budget));
        let candidates = [by_table, by_frame_pointer(&view, &frame)];
        let mut candidates = candidates.iter().flatten().copied();
        let called = |next: &Frame| next.rsp > frame.rsp && follows_a_call(view, next.rip);
        let caller = candidates.clone().find(called);
        // Behind a handler's return address, which is no caller's.
        let interrupted = match caller {
            None => candidates.find_map(|restorer| interrupted(&view, restorer.rsp)),
            Some(_) => None,
        };
        let next = caller.or(interrupted).or_else(|| by_search(view, &frame));
        let Some(next) = next else {
            break;
        };
        looked_up = next.rip - u64::from(interrupted.is_none() && next.rip > 0);
        active.push(Active {
            place: looked_up,
            interrupted: interrupted.is_some(),
        });
        frame = next;
    }
    active
}

/// What a signal has interrupted, if the `struct ucontext` that a handler finds behind its return address is at
/// `context` (arch/x86/include/uapi/asm/sigcontext.h).
fn interrupted(source: &impl Source, context: u64) -> Option<Frame> {
    const LINK_AT: u64 = 8;
    const RSP_AT: u64 = 160;
    const RIP_AT: u64 = 168;
    const SELECTORS_AT: u64 = 184;
    /// Where each of [`NUMBERS`] is.
    const KEPT_AT: [u64; KEPT] = [128, 120, 72, 80, 88, 96];
    let at = |offset| source.word(context.checked_add(offset)?);
    let is_one = at(LINK_AT)? == 0 && at(SELECTORS_AT)? as u16 == selector::USER_CODE;
    if !is_one {
        return None;
    }
    let mut kept = [0; KEPT];
    for (value, offset) in kept.iter_mut().zip(KEPT_AT) {
        *value = at(offset)?;
    }
    Some(Frame {
        rip: at(RIP_AT)?,
        rsp: at(RSP_AT)?,
        kept,
    })
}

/// The next word on the stack that is the address behind a call.
fn by_search(view: View<'_>, frame: &Frame) -> Option<Frame> {
    let words = (0..MAX_SEARCHED_WORDS).map_while(|n| frame.rsp.checked_add(8 * n));
    let mut found = words.map_while(|at| Some((at, view.word(at)?)));
    let (at, rip) = found.find(|(_, word)| follows_a_call(view, *word))?;
    Some(Frame {
        rip,
        rsp: at.checked_add(8)?,
        kept: frame.kept,
    })
}

/// Whether the instruction before an address of the program may be a call (Intel SDM volume 2, CALL): E8 and
/// four bytes, or FF with a ModRM byte of /2 and up to five more.
fn follows_a_call(view: View<'_>, addr: u64) -> bool {
    const LONGEST: u64 = 7;
    let mut before = [0; LONGEST as usize];
    let code = view.layout.program_start + LONGEST..view.layout.program_end();
    let there = code.contains(&addr) && Source::read(&view, addr - LONGEST, &mut before);
    let indirect = |at: usize| before[at] == 0xFF && before[at + 1] >> 3 & 7 == 2;
    there && (before[2] == 0xE8 || [0, 1, 3, 4, 5].into_iter().any(indirect))
}

fn by_frame_pointer(source: &impl Source, frame: &Frame) -> Option<Frame> {
    let base = frame.kept[RBP];
    if base < frame.rsp || !base.is_multiple_of(8) {
        return None;
    }
    let mut kept = frame.kept;
    kept[RBP] = source.word(base)?;
    Some(Frame {
        rip: source.word(base.checked_add(8)?)?,
        rsp: base.checked_add(16)?,
        kept,
    })
}
