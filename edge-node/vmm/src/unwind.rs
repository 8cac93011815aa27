//! Who called whom when a program crashed.
//!
//! Three ways back from a function to its caller, tried in this order: the program's call frame information
//! (`.eh_frame`, which C, Rust and Zig have; taken apart by gimli), the chain of frame pointers (which Go
//! has), and the next word on the stack that looks like a return address (musl's own functions have neither
//! of the others). All of it is read out of the guest's memory, by its own addresses, and is an allegation: the walk is
//! bounded, goes only up the stack, and stops at whatever makes no sense.

use gimli::{
    BaseAddresses, CfaRule, EhFrame, EhFrameHdr, EndianSlice, LittleEndian, Pointer, Register,
    RegisterRule, UnwindContext, UnwindSection as _, X86_64,
};
use holm_hostcall::Registers;
use serde::{Deserialize, Serialize};

use crate::VmmError;
use crate::layout::View;

/// Most functions that are told of.
const MAX_FRAMES: usize = 24;
/// Most bytes of call frame information that are read where there is an index of it, and of the index.
const MAX_TABLE_BYTES: u64 = 4 << 20;
/// The same where it has to be searched from the start.
const MAX_SEARCHED_BYTES: u64 = 256 << 10;
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

type Bytes<'a> = EndianSlice<'a, LittleEndian>;

/// Where a program's call frame information is, as address and bytes, as far as its ELF file tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FrameTables {
    /// `.eh_frame_hdr`, an index by address. gcc makes none for static programs.
    pub(crate) index: Option<(u64, u64)>,
    /// `.eh_frame`
    pub(crate) entries: Option<(u64, u64)>,
}

/// A program's call frame information.
struct Tables {
    index: Option<Vec<u8>>,
    entries: Vec<u8>,
    bases: BaseAddresses,
}

impl Tables {
    fn read(view: View<'_>, places: FrameTables) -> Result<Option<Self>, VmmError> {
        let bases = BaseAddresses::default();
        if let Some((addr, bytes)) = places.index {
            let index = read(view, addr, bytes.min(MAX_TABLE_BYTES))?;
            let bases = bases.set_eh_frame_hdr(addr);
            let parsed = EhFrameHdr::new(&index, LittleEndian).parse(&bases, 8);
            let Ok(Pointer::Direct(entries)) = parsed.map(|header| header.eh_frame_ptr()) else {
                return Ok(None);
            };
            return Ok(Some(Tables {
                entries: read(view, entries, MAX_TABLE_BYTES)?,
                index: Some(index),
                bases: bases.set_eh_frame(entries),
            }));
        }
        let Some((addr, bytes)) = places
            .entries
            .filter(|(_, bytes)| *bytes <= MAX_SEARCHED_BYTES)
        else {
            return Ok(None);
        };
        Ok(Some(Tables {
            entries: read(view, addr, bytes)?,
            index: None,
            bases: bases.set_eh_frame(addr),
        }))
    }

    /// The caller of the function that is at `looked_up`.
    fn caller(&self, view: View<'_>, frame: &Frame, looked_up: u64) -> Option<Frame> {
        let (bases, at) = (&self.bases, EhFrame::<Bytes<'_>>::cie_from_offset);
        let frames = EhFrame::new(&self.entries, LittleEndian);
        let entry = match &self.index {
            Some(index) => {
                let index = EhFrameHdr::new(index, LittleEndian).parse(bases, 8).ok()?;
                index
                    .table()?
                    .fde_for_address(&frames, bases, looked_up, at)
            }
            None => frames.fde_for_address(bases, looked_up, at),
        };
        let mut context = UnwindContext::new();
        let entry = entry.ok()?;
        let row = entry
            .unwind_info_for_address(&frames, bases, &mut context, looked_up)
            .ok()?;
        let cfa = match row.cfa() {
            CfaRule::RegisterAndOffset { register, offset } => {
                frame.register(*register)?.checked_add_signed(*offset)?
            }
            CfaRule::Expression(_) => return None,
        };
        let saved = |rule: Option<RegisterRule<usize>>, same: Option<u64>| match rule {
            None | Some(RegisterRule::Undefined | RegisterRule::SameValue) => same,
            Some(RegisterRule::Offset(offset)) => word(view, cfa.checked_add_signed(offset)?),
            Some(_) => None,
        };
        let mut kept = frame.kept;
        for (value, number) in kept.iter_mut().zip(NUMBERS) {
            *value = saved(row.register(number), Some(*value))?;
        }
        // Undefined there: nobody called this one.
        let rip = saved(row.register(X86_64::RA), None)?;
        Some(Frame {
            rip,
            rsp: cfa,
            kept,
        })
    }
}

/// The places of the functions that were active, the innermost first, as addresses within them. The first
/// is where the program was; the others are where each called the one before.
pub(crate) fn backtrace(
    view: View<'_>,
    registers: &Registers,
    tables: FrameTables,
) -> Result<Vec<u64>, VmmError> {
    let tables = Tables::read(view, tables)?;
    let mut frame = Frame::of(registers);
    let mut places = vec![frame.rip];
    while places.len() < MAX_FRAMES {
        // A return address may be the next function's first byte.
        let looked_up = frame.rip - u64::from(places.len() > 1 && frame.rip > 0);
        let by_table = tables
            .as_ref()
            .and_then(|tables| tables.caller(view, &frame, looked_up));
        let called = |next: &Frame| next.rsp > frame.rsp && follows_a_call(view, next.rip);
        let next = by_table
            .filter(called)
            .or_else(|| by_frame_pointer(view, &frame).filter(called))
            .or_else(|| by_search(view, &frame));
        let Some(next) = next else {
            break;
        };
        places.push(next.rip - 1);
        frame = next;
    }
    Ok(places)
}

/// The next word on the stack that is the address behind a call.
fn by_search(view: View<'_>, frame: &Frame) -> Option<Frame> {
    let words = (0..MAX_SEARCHED_WORDS).map_while(|n| frame.rsp.checked_add(8 * n));
    let mut found = words.map_while(|at| Some((at, word(view, at)?)));
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
    let there = code.contains(&addr) && matches!(view.read(addr - LONGEST, &mut before), Ok(true));
    let indirect = |at: usize| before[at] == 0xFF && before[at + 1] >> 3 & 7 == 2;
    there && (before[2] == 0xE8 || [0, 1, 3, 4, 5].into_iter().any(indirect))
}

fn by_frame_pointer(view: View<'_>, frame: &Frame) -> Option<Frame> {
    let base = frame.kept[RBP];
    if base < frame.rsp || !base.is_multiple_of(8) {
        return None;
    }
    let mut kept = frame.kept;
    kept[RBP] = word(view, base)?;
    Some(Frame {
        rip: word(view, base.checked_add(8)?)?,
        rsp: base.checked_add(16)?,
        kept,
    })
}

fn word(view: View<'_>, addr: u64) -> Option<u64> {
    let mut bytes = [0; 8];
    view.read(addr, &mut bytes)
        .ok()?
        .then(|| u64::from_le_bytes(bytes))
}

/// As much of a range as the guest may read, from its start.
fn read(view: View<'_>, addr: u64, bytes: u64) -> Result<Vec<u8>, VmmError> {
    const PIECE: usize = 64 << 10;
    let mut read = Vec::new();
    while (read.len() as u64) < bytes {
        let at = addr.saturating_add(read.len() as u64);
        // Up to the next boundary, so that only whole pieces are ever missing.
        let piece = PIECE - (at % PIECE as u64) as usize;
        let mut piece = vec![0; piece.min((bytes - read.len() as u64) as usize)];
        if !view.read(at, &mut piece)? {
            break;
        }
        read.append(&mut piece);
    }
    Ok(read)
}
