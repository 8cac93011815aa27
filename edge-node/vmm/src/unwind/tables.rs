//! A program's call frame information: `.eh_frame`, and the index of it in `.eh_frame_hdr` (Linux Standard Base,
//! 10.6; DWARF 5, 6.4).
//!
//! Only what an address needs is read, so that a crash costs little however large a program is. What is simple is
//! taken apart here, with checked arithmetic, and gimli sees only single entries of bounded size: its own search in
//! an index overflows on hostile ones, and has no bound.

use gimli::{
    BaseAddresses, CfaRule, EhFrame, EhFrameOffset, EndianSlice, FrameDescriptionEntry,
    LittleEndian, RegisterRule, UnwindContext, UnwindSection as _, X86_64,
};

use super::{Frame, FrameTables, NUMBERS, Source};

/// Most bytes of call frame information that are searched where there is no index of it.
const MAX_SEARCHED_BYTES: u64 = 256 << 10;
/// Longest entry of call frame information that is evaluated. Work on an entry goes with its length.
const MAX_ENTRY_BYTES: usize = 4 << 10;
/// Longest augmentation string of an entry, which gcc and LLVM leave at `zPLRS`.
const MAX_AUGMENTATION_BYTES: usize = 8;
/// Most bytes of entries that are evaluated for a backtrace. That is tens of times what programs have, and
/// milliseconds. A clock would make for another report on a busy or a slow machine.
pub(super) const MAX_EVALUATED_BYTES: usize = 32 << 10;
/// Bytes of the length before an entry of call frame information.
const LENGTH_BYTES: usize = 4;
/// Bytes of a row of `.eh_frame_hdr`.
const ROW_BYTES: u64 = 8;

type Bytes<'a> = EndianSlice<'a, LittleEndian>;

/// How the entry for an address is found.
pub(super) enum Tables {
    /// By the index at this address, of so many rows: a function's start and its entry, both relative to the index.
    Index { addr: u64, rows: u64 },
    /// By a list of all functions that have entries.
    List(Vec<Function>),
}

/// What an entry is for.
pub(super) struct Function {
    start: u64,
    bytes: u32,
    /// The entry's address.
    entry: u64,
}

impl Tables {
    pub(super) fn find(source: &impl Source, places: FrameTables) -> Option<Self> {
        let indexed = places
            .index
            .and_then(|(addr, bytes)| Self::indexed(source, addr, bytes));
        indexed.or_else(|| {
            let searched = |(_, bytes): &(u64, u64)| *bytes <= MAX_SEARCHED_BYTES;
            let (addr, bytes) = places.entries.filter(searched)?;
            Some(Self::listed(addr, &start_of(source, addr, bytes)))
        })
    }

    /// With the index of so many bytes at `addr`, if it is one like those that GNU ld, gold, lld and mold make:
    /// version 1, then a pointer relative to its place, then an unsigned number of rows, sorted, all in four bytes.
    fn indexed(source: &impl Source, addr: u64, bytes: u64) -> Option<Self> {
        const HEAD_BYTES: u64 = 12;
        const COUNT_AT: usize = 8;
        let mut head = [0; HEAD_BYTES as usize];
        let room = bytes.checked_sub(HEAD_BYTES)? / ROW_BYTES;
        if !source.read(addr, &mut head) || !head.starts_with(&[1, 0x1B, 0x03, 0x3B]) {
            return None;
        }
        // It may count more rows than there are.
        let rows = u64::from(u32_at(&head, COUNT_AT)?).min(room);
        Some(Tables::Index { addr, rows })
    }

    /// Of the section with these bytes at `addr`. Functions' starts are taken to be relative to their place, as
    /// compilers write them; where they are not, the entry will not fit what it was found for.
    fn listed(addr: u64, section: &[u8]) -> Self {
        const START_AT: usize = 4;
        const BYTES_AT: usize = 8;
        let mut list = Vec::new();
        let mut at = 0;
        // An empty one is the end. Nothing has the 64-bit format.
        while let Some(content) = content(section, at).filter(|one| !one.is_empty()) {
            let entry = addr.wrapping_add(at as u64);
            let place = entry.wrapping_add((LENGTH_BYTES + START_AT) as u64);
            let id = u32_at(content, 0);
            let start = u32_at(content, START_AT).map(u32::cast_signed);
            if let (Some(1..), Some(start), Some(bytes)) = (id, start, u32_at(content, BYTES_AT)) {
                list.push(Function {
                    start: place.wrapping_add_signed(start.into()),
                    bytes,
                    entry,
                });
            }
            at += content.len() + LENGTH_BYTES;
        }
        Tables::List(list)
    }

    /// The address of the entry for the function that holds `addr`, if there is one.
    fn entry_for(&self, source: &impl Source, addr: u64) -> Option<u64> {
        match self {
            Tables::Index { addr: index, rows } => {
                let row = |row: u64| {
                    let at = index.checked_add(12)?.checked_add(row * ROW_BYTES)?;
                    let word = source.word(at)?;
                    // Relative to the index, around the end of the address space if need be.
                    let pointer =
                        |half: u64| index.wrapping_add_signed((half as u32).cast_signed().into());
                    Some((pointer(word), pointer(word >> 32)))
                };
                let (mut from, mut to) = (0, *rows);
                while from < to {
                    let middle = from.midpoint(to);
                    match row(middle) {
                        Some((start, _)) if start <= addr => from = middle + 1,
                        _ => to = middle,
                    }
                }
                Some(row(from.checked_sub(1)?)?.1)
            }
            Tables::List(list) => {
                let holds = |one: &&Function| {
                    let offset = addr.checked_sub(one.start);
                    offset.is_some_and(|offset| offset < one.bytes.into())
                };
                Some(list.iter().find(holds)?.entry)
            }
        }
    }

    /// The caller of the function that is at `looked_up`. `budget` is in bytes of entries.
    pub(super) fn caller(
        &self,
        source: &impl Source,
        frame: &Frame,
        looked_up: u64,
        budget: &mut usize,
    ) -> Option<Frame> {
        let entry = Entry::read(source, self.entry_for(source, looked_up)?)?;
        *budget = budget.checked_sub(entry.bytes.len())?;
        let parsed = entry.parse().filter(|one| one.contains(looked_up))?;
        let section = EhFrame::new(&entry.bytes, LittleEndian);
        let mut context = UnwindContext::new();
        let row = parsed
            .unwind_info_for_address(&section, &entry.bases, &mut context, looked_up)
            .ok()?;
        let cfa = match row.cfa() {
            CfaRule::RegisterAndOffset { register, offset } => {
                frame.register(*register)?.checked_add_signed(*offset)?
            }
            CfaRule::Expression(_) => return None,
        };
        let saved = |rule: Option<RegisterRule<usize>>, same: Option<u64>| match rule {
            None | Some(RegisterRule::Undefined | RegisterRule::SameValue) => same,
            Some(RegisterRule::Offset(offset)) => source.word(cfa.checked_add_signed(offset)?),
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

/// A function's entry as a section of its own, in which there is nothing else but the common entry that it
/// refers to.
struct Entry {
    bytes: Vec<u8>,
    /// Where the function's own one is, behind the common one.
    at: usize,
    bases: BaseAddresses,
}

impl Entry {
    /// The one at `addr`, if it and the common one are of sizes that compilers write.
    fn read(source: &impl Source, addr: u64) -> Option<Self> {
        let mut own = read_entry(source, addr)?;
        // How far before this very field the common one is. That has a zero here.
        let place = addr.checked_add(LENGTH_BYTES as u64)?;
        let back = u64::from(u32_at(&own, LENGTH_BYTES)?);
        let mut bytes = read_entry(source, place.checked_sub(back)?)?;
        let (id, version_and_augmentation) = bytes[LENGTH_BYTES..].split_first_chunk::<4>()?;
        let mut augmentation = version_and_augmentation.iter().skip(1);
        let bounded = augmentation
            .by_ref()
            .take(MAX_AUGMENTATION_BYTES + 1)
            .any(|byte| *byte == 0);
        if back == 0 || *id != [0; 4] || !bounded {
            return None;
        }
        let at = bytes.len();
        let back = u32::try_from(at + LENGTH_BYTES).ok()?;
        own[LENGTH_BYTES..][..4].copy_from_slice(&back.to_le_bytes());
        bytes.append(&mut own);
        // The function's start is relative to its place; nothing else that is looked at is.
        let start = addr.wrapping_sub(at as u64);
        Some(Entry {
            bytes,
            at,
            bases: BaseAddresses::default().set_eh_frame(start),
        })
    }

    fn parse(&self) -> Option<FrameDescriptionEntry<Bytes<'_>>> {
        EhFrame::new(&self.bytes, LittleEndian)
            .fde_from_offset(
                &self.bases,
                EhFrameOffset(self.at),
                EhFrame::<Bytes<'_>>::cie_from_offset,
            )
            .ok()
    }
}

/// An entry with the length before it.
fn read_entry(source: &impl Source, addr: u64) -> Option<Vec<u8>> {
    let mut length = [0; LENGTH_BYTES];
    if !source.read(addr, &mut length) {
        return None;
    }
    let bytes = usize::try_from(u32::from_le_bytes(length)).ok()?;
    if bytes > MAX_ENTRY_BYTES {
        return None;
    }
    let mut entry = vec![0; LENGTH_BYTES + bytes];
    // Once, so that the length is the one that was looked at.
    entry[..LENGTH_BYTES].copy_from_slice(&length);
    source
        .read(
            addr.checked_add(LENGTH_BYTES as u64)?,
            &mut entry[LENGTH_BYTES..],
        )
        .then_some(entry)
}

/// What follows the length of the entry at `at`, if all of it is there.
fn content(section: &[u8], at: usize) -> Option<&[u8]> {
    let bytes = usize::try_from(u32_at(section, at)?).ok()?;
    let start = at.checked_add(LENGTH_BYTES)?;
    section.get(start..start.checked_add(bytes)?)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_le_bytes(*bytes))
}

/// As much of a range as can be read, from its start, in whole pieces.
fn start_of(source: &impl Source, addr: u64, bytes: u64) -> Vec<u8> {
    const PIECE: u64 = 4 << 10;
    let mut read = Vec::new();
    while (read.len() as u64) < bytes {
        let Some(at) = addr.checked_add(read.len() as u64) else {
            break;
        };
        // Up to the next boundary, so that only whole pieces are ever missing.
        let piece = (PIECE - at % PIECE).min(bytes - read.len() as u64);
        let mut piece = vec![0; piece as usize];
        if !source.read(at, &mut piece) {
            break;
        }
        read.append(&mut piece);
    }
    read
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Pieces of memory and their addresses.
    struct Memory<'a>(Vec<(u64, &'a [u8])>);

    impl Source for Memory<'_> {
        fn read(&self, addr: u64, to: &mut [u8]) -> bool {
            let piece = self.0.iter().find_map(|(start, bytes)| {
                let at = usize::try_from(addr.checked_sub(*start)?).ok()?;
                bytes.get(at..)?.get(..to.len())
            });
            piece.is_some_and(|piece| {
                to.copy_from_slice(piece);
                true
            })
        }
    }

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
            rsp: STACK_ADDR,
            kept: [0; super::super::KEPT],
        }
    }

    const STACK_ADDR: u64 = 0x7000;

    fn caller(memory: Memory<'_>, places: FrameTables) -> Option<Frame> {
        let mut memory = memory;
        let stack = CALLER.to_le_bytes();
        memory.0.push((STACK_ADDR, &stack));
        let tables = Tables::find(&memory, places)?;
        tables.caller(&memory, &frame(), frame().rip, &mut { MAX_EVALUATED_BYTES })
    }

    fn indexed(index: Vec<u8>, entries: Vec<u8>) -> Option<Frame> {
        let places = FrameTables {
            index: Some((INDEX_ADDR, index.len() as u64)),
            entries: None,
        };
        caller(
            Memory(vec![(INDEX_ADDR, &index), (ENTRIES_ADDR, &entries)]),
            places,
        )
    }

    fn listed(entries: Vec<u8>) -> Option<Frame> {
        let places = FrameTables {
            index: None,
            entries: Some((ENTRIES_ADDR, entries.len() as u64)),
        };
        caller(Memory(vec![(ENTRIES_ADDR, &entries)]), places)
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
        let Tables::List(list) = Tables::listed(addr, &entries) else {
            panic!("there is no list");
        };
        assert!(list.len() > 1000);
        // A static one may have no index.
        let index = section(".eh_frame_hdr");
        let mut memory = Memory(vec![(addr, &entries)]);
        memory
            .0
            .extend(index.iter().map(|(at, bytes)| (*at, &bytes[..])));
        let indexed = index
            .as_ref()
            .map(|(at, bytes)| Tables::indexed(&memory, *at, bytes.len() as u64).unwrap());
        for function in list {
            let last = function.start + u64::from(function.bytes) - 1;
            let entry = Entry::read(&memory, function.entry).unwrap();
            let parsed = entry.parse().unwrap();
            assert_eq!(parsed.initial_address(), function.start);
            assert!(parsed.contains(last));
            if let Some(indexed) = &indexed {
                assert_eq!(indexed.entry_for(&memory, last), Some(function.entry));
            }
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
        let index = index(1, at);
        let memory = Memory(vec![(u64::MAX - 40, &index)]);
        let tables = Tables::indexed(&memory, u64::MAX - 40, u64::MAX).unwrap();
        let mut budget = MAX_EVALUATED_BYTES;
        assert!(
            tables
                .caller(&memory, &frame(), frame().rip, &mut budget)
                .is_none()
        );
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
        let started = crate::runner::thread_cpu();
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
        while (entries.len() as u64) < MAX_SEARCHED_BYTES {
            entries.append(&mut function(entries.len(), &rows[..4080]));
        }
        let backtrace = |entries: Vec<u8>| {
            let stack = CALLER.to_le_bytes();
            let memory = Memory(vec![(ENTRIES_ADDR, &entries), (STACK_ADDR, &stack)]);
            let tables = Tables::listed(ENTRIES_ADDR, &entries);
            let mut budget = MAX_EVALUATED_BYTES;
            let found = (0..super::super::MAX_FRAMES)
                .filter_map(|_| tables.caller(&memory, &frame(), frame().rip, &mut budget));
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
        let took = crate::runner::thread_cpu() - started;
        println!("took {took:?}");
        // Without the bounds, it was many seconds.
        assert!(took < Duration::from_secs(1));
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
