//! Who called whom when a program crashed.
//!
//! Three ways back from a function to its caller, tried in this order: the program's call frame information
//! (`.eh_frame`, which C, Rust and Zig have; taken apart by gimli), the chain of frame pointers (which Go
//! has), and the next word on the stack that looks like a return address (musl's own functions have neither
//! of the others). All of it is read out of the guest's memory, by its own addresses, and is an allegation: the walk is
//! bounded, goes only up the stack, and stops at whatever makes no sense.

use gimli::{
    BaseAddresses, CfaRule, EhFrame, EhFrameOffset, EndianSlice, FrameDescriptionEntry,
    LittleEndian, Register, RegisterRule, UnwindContext, UnwindSection as _, X86_64,
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
/// Longest entry of call frame information that is evaluated. Work on an entry goes with its length.
const MAX_ENTRY_BYTES: usize = 4 << 10;
/// Longest augmentation string of an entry, which gcc and LLVM leave at `zPLRS`.
const MAX_AUGMENTATION_BYTES: usize = 8;
/// Most bytes of entries that are evaluated for a backtrace. That is tens of times what programs have, and
/// milliseconds. A clock would make for another report on a busy or a slow machine.
const MAX_EVALUATED_BYTES: usize = 32 << 10;
/// Bytes of the length before an entry of call frame information.
const LENGTH_BYTES: usize = 4;
/// Bytes of a row of `.eh_frame_hdr`.
const ROW_BYTES: usize = 8;
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

/// How the entry for an address is found.
enum Lookup {
    /// `.eh_frame_hdr`: its address, and rows of a function's start and its entry, both relative to that.
    Index { addr: u64, rows: Vec<u8> },
    /// Start and end of functions, and where in the section their entries are.
    List(Vec<(u64, u64, usize)>),
}

/// A program's call frame information.
///
/// What is simple is taken apart here, with checked arithmetic, and gimli sees only single entries of
/// bounded size: its own search in an index overflows on hostile ones, and has no bound.
struct Tables {
    lookup: Lookup,
    entries: Vec<u8>,
    entries_addr: u64,
    bases: BaseAddresses,
}

impl Tables {
    fn read(view: View<'_>, places: FrameTables) -> Result<Option<Self>, VmmError> {
        if let Some((addr, bytes)) = places.index {
            let index = read(view, addr, bytes.min(MAX_TABLE_BYTES))?;
            if let Some((lookup, entries)) = parse_index(addr, index) {
                let bytes = read(view, entries, MAX_TABLE_BYTES)?;
                return Ok(Some(Tables::new(lookup, entries, bytes)));
            }
        }
        let searched = |(_, bytes): &(u64, u64)| *bytes <= MAX_SEARCHED_BYTES;
        let Some((addr, bytes)) = places.entries.filter(searched) else {
            return Ok(None);
        };
        Ok(Some(Tables::listed(addr, read(view, addr, bytes)?)))
    }

    fn new(lookup: Lookup, entries_addr: u64, entries: Vec<u8>) -> Self {
        Tables {
            lookup,
            entries,
            entries_addr,
            bases: BaseAddresses::default().set_eh_frame(entries_addr),
        }
    }

    /// With a list of the entries that there are.
    fn listed(addr: u64, entries: Vec<u8>) -> Self {
        let mut tables = Tables::new(Lookup::List(Vec::new()), addr, entries);
        let mut list = Vec::new();
        let mut at = 0;
        // An empty one is the end.
        while let Some(content) = content(&tables.entries, at).filter(|one| !one.is_empty()) {
            if let Some(entry) = tables.entry(at) {
                list.push((entry.initial_address(), entry.end_address(), at));
            }
            at += content.len() + LENGTH_BYTES;
        }
        tables.lookup = Lookup::List(list);
        tables
    }

    /// The entry for a function that is at `at` in the section, if it and the common one that it names are
    /// of sizes that compilers write.
    fn entry(&self, at: usize) -> Option<FrameDescriptionEntry<Bytes<'_>>> {
        let own = content(&self.entries, at)?;
        // How far before this very field the common one is. That has a zero here.
        let back = usize::try_from(u32_at(own, 0)?).ok()?;
        let common = content(&self.entries, (at + LENGTH_BYTES).checked_sub(back)?)?;
        let (id, version_and_augmentation) = common.split_first_chunk::<4>()?;
        let mut augmentation = version_and_augmentation.iter().skip(1);
        let bounded = own.len().max(common.len()) <= MAX_ENTRY_BYTES
            && augmentation
                .by_ref()
                .take(MAX_AUGMENTATION_BYTES + 1)
                .any(|byte| *byte == 0);
        if back == 0 || *id != [0; 4] || !bounded {
            return None;
        }
        EhFrame::new(&self.entries, LittleEndian)
            .fde_from_offset(
                &self.bases,
                EhFrameOffset(at),
                EhFrame::<Bytes<'_>>::cie_from_offset,
            )
            .ok()
    }

    /// The entry for the function that holds an address.
    fn entry_for(&self, addr: u64) -> Option<FrameDescriptionEntry<Bytes<'_>>> {
        let at = match &self.lookup {
            Lookup::Index { addr: base, rows } => {
                let (rows, _) = rows.as_chunks::<ROW_BYTES>();
                // Relative to the index, around the end of the address space if need be.
                let pointer = |row: &[u8], at| {
                    let offset = u32_at(row, at)?.cast_signed();
                    Some(base.wrapping_add_signed(offset.into()))
                };
                let before = |row: &[u8; ROW_BYTES]| pointer(row, 0).is_some_and(|it| it <= addr);
                let row = rows.get(rows.partition_point(before).checked_sub(1)?)?;
                let offset = pointer(row, 4)?.checked_sub(self.entries_addr)?;
                usize::try_from(offset).ok()?
            }
            Lookup::List(list) => {
                let mut list = list.iter();
                let holds = |(start, end, _): &&(u64, u64, usize)| (*start..*end).contains(&addr);
                list.find(holds)?.2
            }
        };
        self.entry(at).filter(|entry| entry.contains(addr))
    }

    /// The caller of the function that is at `looked_up`, with `word` to read the stack. `budget` is in
    /// bytes of entries.
    fn caller(
        &self,
        frame: &Frame,
        looked_up: u64,
        budget: &mut usize,
        word: impl Fn(u64) -> Option<u64>,
    ) -> Option<Frame> {
        let frames = EhFrame::new(&self.entries, LittleEndian);
        let entry = self.entry_for(looked_up)?;
        *budget = budget.checked_sub(entry.entry_len() + entry.cie().entry_len())?;
        let mut context = UnwindContext::new();
        let row = entry
            .unwind_info_for_address(&frames, &self.bases, &mut context, looked_up)
            .ok()?;
        let cfa = match row.cfa() {
            CfaRule::RegisterAndOffset { register, offset } => {
                frame.register(*register)?.checked_add_signed(*offset)?
            }
            CfaRule::Expression(_) => return None,
        };
        let saved = |rule: Option<RegisterRule<usize>>, same: Option<u64>| match rule {
            None | Some(RegisterRule::Undefined | RegisterRule::SameValue) => same,
            Some(RegisterRule::Offset(offset)) => word(cfa.checked_add_signed(offset)?),
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
    let mut budget = MAX_EVALUATED_BYTES;
    let mut frame = Frame::of(registers);
    let mut places = vec![frame.rip];
    while places.len() < MAX_FRAMES {
        // A return address may be the next function's first byte.
        let looked_up = frame.rip - u64::from(places.len() > 1 && frame.rip > 0);
        let by_table = tables
            .as_ref()
            .and_then(|tables| tables.caller(&frame, looked_up, &mut budget, |at| word(view, at)));
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

/// The rows of an `.eh_frame_hdr` at `addr`, and the address of the `.eh_frame` that it is for, if it is one
/// like those that GNU ld, gold, lld and mold make (Linux Standard Base, 10.6.2): version 1, then a pointer
/// relative to its place, then an unsigned number of rows, sorted, all in four bytes.
fn parse_index(addr: u64, mut index: Vec<u8>) -> Option<(Lookup, u64)> {
    const POINTER_AT: usize = 4;
    const COUNT_AT: usize = 8;
    const ROWS_AT: usize = 12;
    if !index.starts_with(&[1, 0x1B, 0x03, 0x3B]) || index.len() < ROWS_AT {
        return None;
    }
    let pointer = u32_at(&index, POINTER_AT)?.cast_signed();
    let entries = addr.checked_add(POINTER_AT as u64)?;
    let entries = entries.checked_add_signed(pointer.into())?;
    let count = usize::try_from(u32_at(&index, COUNT_AT)?).ok()?;
    let mut rows = index.split_off(ROWS_AT);
    // Fewer may have been read than there are.
    rows.truncate(count.saturating_mul(ROW_BYTES));
    Some((Lookup::Index { addr, rows }, entries))
}

/// What follows the length of the entry at `at`, if all of it is there. Nothing has the 64-bit format.
fn content(entries: &[u8], at: usize) -> Option<&[u8]> {
    let bytes = usize::try_from(u32_at(entries, at)?).ok()?;
    let start = at.checked_add(LENGTH_BYTES)?;
    entries.get(start..start.checked_add(bytes)?)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_le_bytes(*bytes))
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

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    const INDEX_ADDR: u64 = 0x40_0000;
    const ENTRIES_ADDR: u64 = 0x40_1000;
    /// A function that is described by the tables below.
    const FUNCTION: u64 = 0x40_8000;
    const FUNCTION_BYTES: u32 = 0x100;
    const CALLER: u64 = 0x40_9000;

    fn entry(mut content: Vec<u8>) -> Vec<u8> {
        content.resize(content.len().next_multiple_of(4), 0);
        [&(content.len() as u32).to_le_bytes()[..], &content].concat()
    }

    /// A common entry: the caller's stack pointer is rsp + 8 there, and the return address lies below it.
    fn common(augmentation: &[u8]) -> Vec<u8> {
        let head = [&[0, 0, 0, 0, 1], augmentation, &[0]].concat();
        entry([&head[..], &[1, 0x78, 16, 1, 0x1B, 0x0C, 7, 8, 0x90, 1]].concat())
    }

    /// The entry of [`FUNCTION`] that is at `at` and refers to a common one at the start.
    fn function(at: usize, instructions: &[u8]) -> Vec<u8> {
        let back = at as u32 + 4;
        let start = FUNCTION.wrapping_sub(ENTRIES_ADDR + at as u64 + 8) as u32;
        let head = [back, start, FUNCTION_BYTES].map(u32::to_le_bytes).concat();
        entry([&head[..], &[0], instructions].concat())
    }

    fn entries(augmentation: &[u8], instructions: &[u8]) -> Vec<u8> {
        let common = common(augmentation);
        let function = function(common.len(), instructions);
        [common, function, vec![0; 4]].concat()
    }

    fn index(count: u32, entry_at: i32) -> Vec<u8> {
        let pointer = (ENTRIES_ADDR - INDEX_ADDR - 4) as u32;
        let start = (FUNCTION - INDEX_ADDR) as u32;
        let entry = ((ENTRIES_ADDR - INDEX_ADDR) as i32).wrapping_add(entry_at);
        let words = [pointer, count, start, entry.cast_unsigned()];
        [
            &[1, 0x1B, 0x03, 0x3B][..],
            &words.map(u32::to_le_bytes).concat(),
        ]
        .concat()
    }

    fn frame() -> Frame {
        Frame {
            rip: FUNCTION + 0x10,
            rsp: 0x7000,
            kept: [0; KEPT],
        }
    }

    fn caller(tables: &Tables) -> Option<Frame> {
        let stack = |at| (at == 0x7000).then_some(CALLER);
        tables.caller(&frame(), frame().rip, &mut { MAX_EVALUATED_BYTES }, stack)
    }

    fn indexed(index: Vec<u8>, entries: Vec<u8>) -> Option<Frame> {
        let (lookup, addr) = parse_index(INDEX_ADDR, index)?;
        caller(&Tables::new(lookup, addr, entries))
    }

    fn listed(entries: Vec<u8>) -> Option<Frame> {
        caller(&Tables::listed(ENTRIES_ADDR, entries))
    }

    #[test]
    fn a_caller_is_found_with_an_index_and_without() {
        let entries = entries(b"zR", &[]);
        let at = common(b"zR").len() as i32;
        for found in [indexed(index(1, at), entries.clone()), listed(entries)] {
            let found = found.unwrap();
            assert_eq!((found.rip, found.rsp), (CALLER, 0x7008));
        }
    }

    #[test]
    fn the_functions_of_this_very_test_have_entries() {
        use object::{Object as _, ObjectSection as _};
        let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let file = object::File::parse(&*program).unwrap();
        let section = |name| {
            let section = file.section_by_name(name)?;
            Some((section.address(), section.data().unwrap().to_vec()))
        };
        let (addr, entries) = section(".eh_frame").unwrap();
        let listed = Tables::listed(addr, entries.clone());
        let Lookup::List(list) = &listed.lookup else {
            panic!("there is no list");
        };
        assert!(list.len() > 1000);
        // A static one may have no index.
        let Some((index_addr, index)) = section(".eh_frame_hdr") else {
            return;
        };
        let (lookup, of) = parse_index(index_addr, index).unwrap();
        assert_eq!(of, addr);
        let indexed = Tables::new(lookup, addr, entries);
        for (start, end, at) in list {
            let found = indexed.entry_for(end - 1).unwrap();
            assert_eq!((found.initial_address(), found.offset()), (*start, *at));
        }
    }

    #[test]
    fn an_index_that_lies_leads_nowhere() {
        let entries = || entries(b"zR", &[]);
        let at = common(b"zR").len() as i32;
        // More rows than there are: those that there are hold.
        assert!(indexed(index(u32::MAX, at), entries()).is_some());
        // Rows none, entries before, within, behind and far outside the section.
        assert!(indexed(index(0, at), entries()).is_none());
        for at in [
            -1,
            -0x1000,
            0,
            1,
            at - 1,
            at + 1,
            0x1000,
            i32::MIN,
            i32::MAX,
        ] {
            assert!(indexed(index(1, at), entries()).is_none(), "{at}");
        }
        for cut in 0..index(1, at).len() {
            assert!(indexed(index(1, at)[..cut].to_vec(), entries()).is_none());
        }
        for place in 0..4 {
            let mut index = index(1, at);
            index[place] ^= 1;
            assert!(indexed(index, entries()).is_none(), "{place}");
        }
        assert!(parse_index(u64::MAX - 2, index(1, at)).is_none());
    }

    #[test]
    fn entries_of_absurd_sizes_are_refused() {
        assert!(listed(entries(b"zR", &[0; 4000])).is_some());
        assert!(listed(entries(b"zR", &[0; 5000])).is_none());
        assert!(listed(entries(b"zRSSSSSS", &[])).is_some());
        assert!(listed(entries(b"zRSSSSSSS", &[])).is_none());
    }

    #[test]
    fn hostile_entries_take_no_time() {
        let started = Instant::now();
        // A common entry with an augmentation string of most of the section, for thousands of functions.
        let mut entries = common(&[&b"zR"[..], &[b'S'; 128 << 10]].concat());
        while (entries.len() as u64) < MAX_SEARCHED_BYTES {
            entries.append(&mut function(entries.len(), &[]));
        }
        assert!(listed(entries).is_none());
        // Millions of rows, and as many as an entry may have, for each of thousands of functions.
        let rows = [0x0A, 0x40, 0x0B].repeat(1_000_000);
        assert!(listed(self::entries(b"zR", &rows)).is_none());
        let mut entries = common(b"zR");
        while (entries.len() as u64) < MAX_TABLE_BYTES {
            entries.append(&mut function(entries.len(), &rows[..4080]));
        }
        let backtrace = |entries| {
            let tables = Tables::listed(ENTRIES_ADDR, entries);
            let mut budget = MAX_EVALUATED_BYTES;
            let found = (0..MAX_FRAMES).filter_map(|_| {
                tables.caller(&frame(), frame().rip, &mut budget, |_| Some(CALLER))
            });
            // As many as the budget allows, each being nearly as long as it may be.
            let found = found.count();
            assert!((1..=MAX_EVALUATED_BYTES / 3000).contains(&found), "{found}");
        };
        backtrace(entries);
        // A rule for as many registers as gimli has room for, and the most copies of them in one row.
        let rules = (17..127).flat_map(|register| [0x07, register]);
        let copies = [0x0A, 0x0B].repeat(1900);
        let heavy: Vec<u8> = rules.chain(copies).collect();
        backtrace(self::entries(b"zR", &heavy));
        println!("took {:?}", started.elapsed());
        // Without the bounds, it was many seconds.
        assert!(started.elapsed() < Duration::from_secs(1));
    }

    #[test]
    fn no_change_of_the_tables_makes_for_a_panic() {
        let mut seed = [0; 8];
        getrandom::fill(&mut seed).unwrap();
        let mut random = u64::from_le_bytes(seed) | 1;
        println!("seed {random:#x}");
        let mut below = |bound: usize| {
            // Xorshift (Marsaglia 2003).
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            (random >> 16) as usize % bound
        };
        let instructions = [0x0A, 0x42, 0x0E, 16, 0x86, 2, 0x0B, 0x0F, 2, 0x77, 8, 0xC6];
        for _ in 0..30_000 {
            let mut entries = entries(b"zR", &instructions);
            let mut index = index(1, common(b"zR").len() as i32);
            for _ in 0..=below(4) {
                let at = below(entries.len());
                entries[at] = [0, 1, 0x7F, 0x80, 0xFF, below(256) as u8][below(6)];
                // The magic of the index is left alone most of the time, to get beyond it.
                let at = 4 * usize::from(below(8) > 0) + below(index.len() - 4);
                index[at] = [0, 1, 0x7F, 0x80, 0xFF, below(256) as u8][below(6)];
            }
            indexed(index, entries.clone());
            listed(entries);
        }
    }
}
