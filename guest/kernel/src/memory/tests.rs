//! The bookkeeping against a machine that is a few maps: whatever a program asks for, new memory is zero,
//! and no frame is in two places.

use std::boxed::Box;
use std::collections::{HashMap, HashSet};
use std::vec::Vec;

use holm_hostcall::{
    BootPage, DIRECTORY_REACH_BYTES, PAGE_BYTES, PROGRAM_ADDR, SPARSE_START, TABLE_REACH_BYTES,
};

use super::*;

/// Anonymous, and the program's own, as nearly every mapping is.
const MAP_ANONYMOUS: u64 = super::MAP_ANONYMOUS | super::MAP_PRIVATE;

const MEMORY_BYTES: u64 = 8 << 20;
const STACK_BYTES: u64 = 128 << 10;
const TABLES: u64 = 64 << 20;
const POINTERS: u64 = 128 << 20;
const DIRECTORIES: u64 = 192 << 20;
const SPARSE_TABLES: u64 = DIRECTORIES + 16 * PAGE_BYTES;
const SPARSE_TABLE_COUNT: u64 = 64;
/// Present, writable, for the user, and for data.
const USABLE: u64 = 0x8000_0000_0000_0067;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Program memory as pages that are zero or not, and page tables.
struct Pages {
    dirty: HashSet<u64>,
    entries: HashMap<u64, u64>,
}

impl Pages {
    /// Where a page of the program's is; none if it may not be touched.
    fn find(&self, addr: u64) -> Option<u64> {
        let entry = match is_sparse(addr) {
            true => {
                let directory = self.entry(POINTERS + addr / DIRECTORY_REACH_BYTES * 8) & ADDRESS;
                let at = addr % DIRECTORY_REACH_BYTES / TABLE_REACH_BYTES;
                let table = self.entry(directory + at * 8) & ADDRESS;
                self.entry(table + addr % TABLE_REACH_BYTES / PAGE_BYTES * 8)
            }
            false => self.entry(TABLES + addr / PAGE_BYTES * 8),
        };
        sparse::is_writable(entry).then_some(entry & ADDRESS)
    }
}

impl Machine for Pages {
    fn zero(&mut self, start: u64, bytes: u64) {
        for page in (start / PAGE_BYTES * PAGE_BYTES..start + bytes).step_by(PAGE_BYTES as usize) {
            assert_eq!(self.find(page), Some(page), "program memory is writable");
            self.dirty.remove(&page);
        }
    }

    fn is_zero(&self, page: u64) -> bool {
        !self.dirty.contains(&page)
    }

    fn copy(&mut self, from: u64, to: u64, _bytes: u64) {
        if self.dirty.contains(&from) {
            self.dirty.insert(to);
        }
    }

    fn refused(&mut self, _bytes: u64) {}

    fn entry(&self, slot: u64) -> u64 {
        self.entries.get(&slot).copied().unwrap_or(0)
    }

    fn protect(&mut self, slot: u64, count: u64, protection: Protection) -> bool {
        for slot in (0..count).map(|number| slot + number * 8) {
            let entry = self.entry(slot);
            assert!(entry & ADDRESS != 0, "the stub refuses what leads nowhere");
            let bits = [1 << 63, 1 << 63 | 0x25, 1 << 63 | 0x67, 0x25][protection as usize];
            self.entries.insert(slot, entry & ADDRESS | bits);
        }
        true
    }

    fn protect_sparse(&mut self, slot: u64, count: u64, protection: Protection) -> bool {
        assert!(slot >= SPARSE_TABLES);
        self.protect(slot, count, protection)
    }

    fn map(&mut self, slot: u64, source: u64, count: u64) -> bool {
        for number in 0..count {
            assert_eq!(self.entry(slot + number * 8), 0, "nothing was there");
            let entry = self.entry(source + number * 8);
            self.entries.insert(slot + number * 8, entry);
        }
        true
    }

    fn unmap(&mut self, slot: u64, count: u64) -> bool {
        for number in 0..count {
            self.entries.remove(&(slot + number * 8));
        }
        true
    }

    fn link_directory(&mut self, slot: u64, directory: u64) -> bool {
        let first = POINTERS + SPARSE_START / DIRECTORY_REACH_BYTES * 8;
        assert!((first..DIRECTORIES).contains(&slot));
        assert!((DIRECTORIES..SPARSE_TABLES).contains(&directory));
        self.link(slot, directory)
    }

    fn link_table(&mut self, slot: u64, table: u64) -> bool {
        assert!((DIRECTORIES..SPARSE_TABLES).contains(&slot));
        assert!(table >= SPARSE_TABLES);
        self.link(slot, table)
    }
}

impl Pages {
    fn link(&mut self, slot: u64, to: u64) -> bool {
        let mut all = (to..to + PAGE_BYTES).step_by(8);
        assert!(
            all.all(|slot| self.entry(slot) == 0),
            "what is linked is empty"
        );
        assert_eq!(self.entry(slot), 0, "nothing is lost");
        self.entries.insert(slot, to | 0x27);
        true
    }
}

fn start() -> (Box<Memory>, Pages) {
    let end = PROGRAM_ADDR + MEMORY_BYTES;
    let mut memory = Box::new(Memory::new());
    memory.start(&BootPage {
        memory_bytes: MEMORY_BYTES,
        program_start: PROGRAM_ADDR,
        brk_start: PROGRAM_ADDR + 16 * PAGE_BYTES,
        stack_start: end - STACK_BYTES,
        tables: TABLES,
        sparse_pointers: POINTERS,
        sparse_directories: DIRECTORIES,
        sparse_tables: SPARSE_TABLES,
        sparse_table_count: SPARSE_TABLE_COUNT,
        ..boot()
    });
    let pages = (PROGRAM_ADDR..end).step_by(PAGE_BYTES as usize);
    let machine = Pages {
        dirty: HashSet::new(),
        entries: pages
            .map(|page| (TABLES + page / PAGE_BYTES * 8, page | USABLE))
            .collect(),
    };
    (memory, machine)
}

fn boot() -> BootPage {
    BootPage {
        abi_version: 0,
        flags: 0,
        generation: 0,
        seed: [0; 32],
        realtime_ns: 0,
        monotonic_ns: 0,
        tsc_at: 0,
        ns_per_tick_q32: 0,
        memory_bytes: 0,
        brk_start: 0,
        entry: 0,
        stack_pointer: 0,
        stack_start: 0,
        port: 0,
        reserved: 0,
        program_start: 0,
        tables: 0,
        sparse_pointers: 0,
        sparse_directories: 0,
        sparse_tables: 0,
        sparse_table_count: 0,
        files_start: 0,
        files_bytes: 0,
    }
}

/// A program: what it has mapped, and which of its pages it has written to.
#[derive(Default)]
struct Model {
    mapped: HashMap<u64, Protection>,
    written: HashSet<u64>,
    /// Those of which it executes something, until it writes to them again.
    executed: HashSet<u64>,
}

fn page_range(start: u64, bytes: u64) -> impl Iterator<Item = u64> + Clone {
    (start..start + bytes.next_multiple_of(PAGE_BYTES)).step_by(PAGE_BYTES as usize)
}

#[test]
fn whatever_a_program_asks_for_new_memory_is_zero_and_written_memory_is_kept() {
    for seed in 0..150u64 {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut random = move |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        };
        let (mut memory, mut machine) = start();
        let mut model = Model::default();
        for _ in 0..150 {
            let known: Vec<u64> = {
                let mut known: Vec<u64> = model.mapped.keys().copied().collect();
                known.sort_unstable();
                known
            };
            let some = |random: &mut dyn FnMut(u64) -> u64| match known.len() as u64 {
                0 => SPARSE_START,
                many => known[random(many) as usize],
            };
            let bytes = (1 + random(90)) * PAGE_BYTES;
            match random(9) {
                0..=2 => {
                    let prot = [0, 1, 3, 3, 3, 5, 7][random(7) as usize];
                    let fixed = random(4) == 0 && !known.is_empty();
                    let hint = if fixed { some(&mut random) } else { 0 };
                    if fixed && !is_sparse(hint) {
                        continue;
                    }
                    let flags = MAP_ANONYMOUS | if fixed { MAP_FIXED } else { 0 };
                    let size = if random(8) == 0 { 5 << 20 } else { bytes };
                    let Ok(at) = memory.map(hint, size, prot, flags, &mut machine) else {
                        continue;
                    };
                    for page in page_range(at, size) {
                        let before = model.mapped.insert(page, protection(prot).0);
                        assert!(before.is_none() || fixed, "seed {seed}: {page:#x} twice");
                        model.written.remove(&page);
                        model.executed.remove(&page);
                    }
                }
                3 => {
                    let start = some(&mut random);
                    let all_mapped =
                        page_range(start, bytes).all(|page| model.mapped.contains_key(&page));
                    if !all_mapped || memory.unmap(start, bytes, &mut machine).is_err() {
                        continue;
                    }
                    for page in page_range(start, bytes) {
                        model.mapped.remove(&page);
                        model.written.remove(&page);
                        model.executed.remove(&page);
                    }
                }
                4 => {
                    let start = some(&mut random);
                    let prot = [0, 1, 3, 5, 7][random(5) as usize];
                    let all_mapped =
                        page_range(start, bytes).all(|page| model.mapped.contains_key(&page));
                    let answer = memory.protect(start, bytes, prot, &mut machine);
                    let done = answer.is_ok();
                    // Beyond the mappings is the stack, which can be protected too.
                    assert!(all_mapped || !done || !is_sparse(start), "seed {seed}");
                    // What lies before a hole is changed all the same.
                    let mut whole = true;
                    let changed = page_range(start, bytes).filter(|page| {
                        whole &= model.mapped.contains_key(page);
                        done || (answer == Err(Errno::ENOMEM) && whole)
                    });
                    for page in changed.collect::<Vec<_>>() {
                        if let Some(known) = model.mapped.get_mut(&page) {
                            *known = protection(prot).0;
                            model.executed.remove(&page);
                        }
                    }
                }
                5 => {
                    let start = some(&mut random);
                    let all = page_range(start, bytes)
                        .all(|page| model.mapped.get(&page) == Some(&Protection::Write));
                    if all {
                        memory
                            .advise(start, bytes, advice::DONTNEED, &mut machine)
                            .unwrap();
                        for page in page_range(start, bytes) {
                            model.written.remove(&page);
                            model.executed.remove(&page);
                        }
                    }
                }
                6 => {
                    // What takes turns is executed, and stays so.
                    let start = some(&mut random);
                    for page in page_range(start, bytes) {
                        if model.mapped.contains_key(&page)
                            && memory.takes_turns(page)
                            && memory.back(page, Touch::Fetch, &mut machine).is_ok()
                        {
                            assert_eq!(model.mapped[&page], Protection::Write, "seed {seed}");
                            assert!(machine.find(page).is_none(), "seed {seed}: not executable");
                            model.executed.insert(page);
                        }
                    }
                }
                _ => {
                    // Touches memory, in order.
                    let start = some(&mut random);
                    for page in page_range(start, bytes) {
                        let Some(protection) = model.mapped.get(&page) else {
                            break;
                        };
                        if machine.find(page).is_none() {
                            match memory.back(page, Touch::Write, &mut machine) {
                                Ok(()) => assert_eq!(*protection, Protection::Write),
                                Err(Refusal::NoMemory) => break,
                                Err(Refusal::Protected) => {
                                    assert_ne!(*protection, Protection::Write);
                                    break;
                                }
                                Err(Refusal::Unmapped | Refusal::BehindEnd) => {
                                    panic!("seed {seed}: {page:#x} is lost")
                                }
                            }
                        }
                        model.executed.remove(&page);
                        let place = machine.find(page).expect("backed");
                        machine.dirty.insert(place);
                        model.written.insert(page);
                    }
                }
            }
            check(&model, &machine, seed);
        }
    }
}

/// What must hold between two calls.
fn check(model: &Model, machine: &Pages, seed: u64) {
    let mut places = HashSet::new();
    for (page, protection) in &model.mapped {
        let Some(place) = machine.find(*page) else {
            let lost = *protection == Protection::Write
                && model.written.contains(page)
                && !model.executed.contains(page);
            assert!(!lost, "seed {seed}: {page:#x} was written to and is gone");
            continue;
        };
        assert_eq!(*protection, Protection::Write, "seed {seed}: {page:#x}");
        assert!(
            places.insert(place),
            "seed {seed}: {place:#x} is in two places"
        );
        assert_eq!(
            machine.dirty.contains(&place),
            model.written.contains(page),
            "seed {seed}: {page:#x}"
        );
    }
}

#[test]
fn what_the_library_os_takes_is_zero_and_is_nobody_elses_until_it_is_given_back() {
    for seed in 0..150u64 {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut random = move |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        };
        let (mut memory, mut machine) = start();
        let free = memory.free_bytes();
        // Where each piece is, how long, and whether it is the program's.
        let mut pieces: Vec<(u64, u64, bool)> = Vec::new();
        for _ in 0..400 {
            let bytes = (1 + random(6)) * PAGE_BYTES;
            let chosen = (!pieces.is_empty()).then(|| random(pieces.len() as u64) as usize);
            let new = match (random(4), chosen) {
                (0, _) => memory
                    .take(bytes, &mut machine)
                    .ok()
                    .map(|start| (start, false)),
                (1, _) => {
                    let mapped = memory.map(0, bytes, 3, MAP_ANONYMOUS, &mut machine);
                    mapped.ok().map(|start| (start, true))
                }
                (2, Some(at)) => {
                    let (start, _, is_programs) = pieces[at];
                    let grows = !is_programs && memory.take_below(start, bytes, &mut machine);
                    grows.then(|| (start - bytes, false))
                }
                (_, Some(at)) => {
                    let (start, bytes, is_programs) = pieces.swap_remove(at);
                    match is_programs {
                        true => drop(memory.unmap(start, bytes, &mut machine).unwrap()),
                        false => memory.give(start, bytes),
                    }
                    None
                }
                _ => None,
            };
            let Some((start, is_programs)) = new else {
                continue;
            };
            for page in page_range(start, bytes) {
                let holds = |one: &(u64, u64, bool)| one.0 <= page && page < one.0 + one.1;
                assert!(
                    !pieces.iter().any(holds),
                    "seed {seed}: {page:#x} is in two pieces"
                );
                assert!(
                    machine.dirty.insert(page),
                    "seed {seed}: {page:#x} is not zero"
                );
            }
            pieces.push((start, bytes, is_programs));
            let used: u64 = pieces.iter().map(|piece| piece.1).sum();
            assert_eq!(memory.free_bytes(), free - used, "seed {seed}");
        }
    }
}

#[test]
fn reservations_cost_no_memory_and_what_was_used_comes_back() {
    let (mut memory, mut machine) = start();
    let free = memory.free_bytes();
    let reserved = memory
        .map(0, 100 << 30, 0, MAP_ANONYMOUS, &mut machine)
        .unwrap();
    let open = memory
        .map(
            reserved,
            64 << 20,
            PROT_READ | PROT_WRITE,
            MAP_ANONYMOUS | MAP_FIXED,
            &mut machine,
        )
        .unwrap();
    assert_eq!((open, memory.free_bytes()), (reserved, free));
    for page in page_range(open, 1 << 20) {
        if machine.find(page).is_none() {
            memory.back(page, Touch::Write, &mut machine).unwrap();
        }
    }
    let used = free - memory.free_bytes();
    assert!(((1 << 20)..=(3 << 20)).contains(&used), "{used}");
    memory.unmap(reserved, 100 << 30, &mut machine).unwrap();
    assert_eq!(memory.free_bytes(), free);
    let far = memory.map(0xc0_0000_0000, 64 << 20, 0, MAP_ANONYMOUS, &mut machine);
    assert_eq!(far, Ok(0xc0_0000_0000), "the Go runtime's wish");
}

#[test]
fn what_is_only_reserved_is_no_promise_even_where_it_may_be_written() {
    const WRITABLE: u64 = PROT_READ | PROT_WRITE;
    let (mut memory, mut machine) = start();
    let mut map =
        |bytes, flags| memory.map(0, bytes, WRITABLE, MAP_ANONYMOUS | flags, &mut machine);
    assert!(map(1 << 30, MAP_PRIVATE | MAP_NORESERVE).is_ok());
    assert!(
        map(64 << 10, MAP_PRIVATE).is_ok(),
        "an allocator's arena takes nothing away"
    );
    let promised = (0..100).take_while(|_| map(32 << 20, MAP_PRIVATE).is_ok());
    assert!(promised.count() < 100, "what is promised counts");
}

#[test]
fn a_program_that_touches_its_memory_in_order_takes_few_faults() {
    let (mut memory, mut machine) = start();
    let start = memory
        .map(0, 6 << 20, 3, MAP_ANONYMOUS, &mut machine)
        .unwrap();
    let mut faults = 0;
    for page in page_range(start, 6 << 20) {
        if machine.find(page).is_none() {
            memory.back(page, Touch::Write, &mut machine).unwrap();
            faults += 1;
        }
    }
    assert!(
        faults <= 16,
        "{faults} faults for {} pages",
        (6 << 20) / PAGE_BYTES
    );
    assert_eq!(
        memory.back(start + (6 << 20), Touch::Write, &mut machine),
        Err(Refusal::Unmapped)
    );
}

#[test]
fn a_reservation_may_have_nearly_all_addresses_and_tables_come_back_when_there_are_no_others() {
    let (mut memory, mut machine) = start();
    let free = memory.free_bytes();
    let bytes = 127 << 40;
    let start = memory
        .map(0, bytes, 0, MAP_ANONYMOUS, &mut machine)
        .unwrap();
    assert_eq!(
        (memory.free_bytes(), machine.entries.len() as u64),
        (free, MEMORY_BYTES / PAGE_BYTES)
    );
    assert_eq!(
        memory.map(0, 2 << 40, 0, MAP_ANONYMOUS, &mut machine),
        Err(Errno::ENOMEM)
    );
    // More places, far from each other, than there are tables and directories.
    for number in 0..SPARSE_TABLE_COUNT * 4 {
        let at = start + number * (300 << 30);
        memory
            .protect(at, PAGE_BYTES, PROT_READ | PROT_WRITE, &mut machine)
            .unwrap();
        memory.back(at, Touch::Write, &mut machine).unwrap();
        assert!(machine.find(at).is_some());
        memory
            .map(at, PAGE_BYTES, 0, MAP_ANONYMOUS | MAP_FIXED, &mut machine)
            .unwrap();
        assert!(machine.find(at).is_none());
    }
    // What reaches far beyond all addresses is told so.
    for advice in 0..26 {
        assert!(memory.advise(start, 1 << 50, advice, &mut machine).is_err());
    }
    memory.unmap(start, bytes, &mut machine).unwrap();
    assert_eq!(memory.free_bytes(), free);
}

/// A file of `pages` pages, whose content is a mapping in program memory.
fn file(memory: &mut Memory, machine: &mut Pages, pages: u64) -> u64 {
    let start = memory.take(pages * PAGE_BYTES, machine).unwrap();
    memory.set_file(7, start, pages * PAGE_BYTES - 100, machine);
    start
}

fn share(page: u32, may_write: bool) -> Share {
    Share {
        file: 7,
        may_write,
        page,
    }
}

#[test]
fn mappings_of_a_file_show_its_pages_wherever_they_are() {
    let (mut memory, mut machine) = start();
    let content = file(&mut memory, &mut machine, 8);
    let bytes = 16 * PAGE_BYTES;
    let first = memory
        .map_file(0, bytes, 3, MAP_SHARED, share(0, true), &mut machine)
        .unwrap();
    let second = memory
        .map_file(0, bytes, 1, MAP_SHARED, share(2, false), &mut machine)
        .unwrap();
    for page in 0..8 {
        let at = first + page * PAGE_BYTES;
        if machine.find(at).is_none() {
            memory.back(at, Touch::Write, &mut machine).unwrap();
        }
        assert_eq!(machine.find(at), Some(content + page * PAGE_BYTES));
    }
    assert_eq!(
        memory.back(first + 8 * PAGE_BYTES, Touch::Write, &mut machine),
        Err(Refusal::BehindEnd)
    );
    assert_eq!(
        memory.back(second, Touch::Write, &mut machine),
        Err(Refusal::Protected)
    );
    memory.back(second, Touch::Read, &mut machine).unwrap();
    assert_eq!(
        memory.sparse.page(second, &machine),
        Some(content + 2 * PAGE_BYTES)
    );
    assert_eq!(
        memory.protect(second, PAGE_BYTES, 3, &mut machine),
        Err(Errno::EACCES)
    );
    // The file grows and moves, and then is cut.
    let content = file(&mut memory, &mut machine, 12);
    assert_eq!(machine.find(first), Some(content));
    assert_eq!(
        memory.sparse.page(second, &machine),
        Some(content + 2 * PAGE_BYTES)
    );
    memory
        .back(first + 11 * PAGE_BYTES, Touch::Write, &mut machine)
        .unwrap();
    memory.set_file(7, content, PAGE_BYTES, &mut machine);
    assert_eq!(machine.find(first), Some(content));
    assert_eq!(memory.sparse.page(second, &machine), None);
    assert_eq!(
        memory.back(second, Touch::Read, &mut machine),
        Err(Refusal::BehindEnd)
    );
    // Nothing of the file is a frame, or is lost with a mapping.
    let free = memory.free_bytes();
    memory
        .advise(first, bytes, advice::DONTNEED, &mut machine)
        .unwrap();
    memory.unmap(first, bytes, &mut machine).unwrap();
    assert!(memory.has_lost_file() && !memory.has_lost_file() && memory.is_file_mapped(7));
    memory.unmap(second, bytes, &mut machine).unwrap();
    assert!(!memory.is_file_mapped(7));
    assert_eq!(memory.free_bytes(), free);
}

#[test]
fn a_file_in_the_middle_of_other_memory_leaves_the_frames_around_it_alone() {
    let (mut memory, mut machine) = start();
    let content = file(&mut memory, &mut machine, 2);
    let start = memory
        .map(
            0,
            64 * PAGE_BYTES,
            3,
            MAP_ANONYMOUS | MAP_NORESERVE,
            &mut machine,
        )
        .unwrap();
    let free = memory.free_bytes();
    memory.back(start, Touch::Write, &mut machine).unwrap();
    let frame = machine.find(start).unwrap();
    let at = start + 3 * PAGE_BYTES;
    memory
        .map_file(
            at,
            2 * PAGE_BYTES,
            3,
            MAP_SHARED | MAP_FIXED,
            share(0, true),
            &mut machine,
        )
        .unwrap();
    memory.back(at, Touch::Write, &mut machine).unwrap();
    assert_eq!(machine.find(at), Some(content));
    // What is left of the stretch goes on in its frame, and the frame is free with it.
    memory
        .advise(start, PAGE_BYTES, advice::DONTNEED, &mut machine)
        .unwrap();
    assert_eq!(machine.find(start), Some(frame));
    memory.unmap(start, 3 * PAGE_BYTES, &mut machine).unwrap();
    memory
        .unmap(at + 2 * PAGE_BYTES, 59 * PAGE_BYTES, &mut machine)
        .unwrap();
    assert_eq!(memory.free_bytes(), free);
    assert_eq!(machine.find(at), Some(content));
}

#[test]
fn what_moves_takes_its_frames_along() {
    const FLAGS: u64 = MAP_ANONYMOUS | MAP_NORESERVE;
    for (bytes, to, from_page) in [
        (32 << 20, None, 0),
        (32 << 20, None, 3),
        (32 << 20, Some(SPARSE_START + (1 << 40)), 0),
        (32 << 20, Some(SPARSE_START + (1 << 40) + 5 * PAGE_BYTES), 0),
        (40 * PAGE_BYTES, None, 3),
        (2 * PAGE_BYTES, None, 3),
    ] {
        let (mut memory, mut machine) = start();
        let all = memory.map(0, 64 << 20, 3, FLAGS, &mut machine).unwrap();
        let start = all + from_page * PAGE_BYTES;
        let touched: Vec<u64> = page_range(all, 64 << 20)
            .step_by(217)
            .chain([start])
            .collect();
        for page in &touched {
            if machine.find(*page).is_none() {
                memory.back(*page, Touch::Write, &mut machine).unwrap();
            }
            let place = machine.find(*page).unwrap();
            machine.dirty.insert(place);
        }
        let free = memory.free_bytes();
        let flags = if to.is_some() { 3 } else { 1 };
        let to = to.unwrap_or(0);
        let moved = memory
            .remap(start, bytes, 2 * bytes, flags, to, &mut machine)
            .unwrap();
        assert!(moved == to || to == 0 && moved != start);
        for page in &touched {
            let is_moved = (start..start + bytes).contains(page);
            let now = if is_moved {
                moved + (page - start)
            } else {
                *page
            };
            let place = machine.find(now).expect("it is there");
            assert!(machine.dirty.contains(&place), "{now:#x}");
            assert!(!is_moved || machine.find(*page).is_none());
        }
        assert!(
            memory.free_bytes() + (128 << 10) >= free,
            "nothing is there twice"
        );
        memory.unmap(moved, 2 * bytes, &mut machine).unwrap();
        memory.unmap(all, 64 << 20, &mut machine).unwrap();
        assert_eq!(memory.frames.free_bytes() % 65536, 0);
        assert!(
            machine
                .entries
                .keys()
                .all(|slot| *slot < SPARSE_TABLES || machine.entry(*slot) == 0)
        );
    }
}

#[test]
fn what_has_moved_when_page_tables_run_out_is_in_one_place_alone() {
    let (mut memory, mut machine) = start();
    let free = memory.free_bytes();
    let bytes = SPARSE_TABLE_COUNT * TABLE_REACH_BYTES;
    let flags = MAP_ANONYMOUS | MAP_NORESERVE;
    let all = memory.map(0, bytes, 3, flags, &mut machine).unwrap();
    // All tables but one are in use, and what is to move goes half into that and half into another one.
    for page in page_range(all, bytes - TABLE_REACH_BYTES).step_by(512) {
        memory.back(page, Touch::Write, &mut machine).unwrap();
    }
    let half = TABLE_REACH_BYTES / 2;
    memory.back(all + half, Touch::Write, &mut machine).unwrap();
    let second = machine.find(all + half);
    let to = SPARSE_START + (1 << 40) + half;
    assert_eq!(
        memory.remap(
            all,
            TABLE_REACH_BYTES,
            TABLE_REACH_BYTES,
            3,
            to,
            &mut machine
        ),
        Err(Errno::ENOMEM)
    );
    assert_eq!(machine.find(all), None);
    assert_eq!(machine.find(to), None);
    assert_eq!(machine.find(all + half), second);
    memory.unmap(all, bytes, &mut machine).unwrap();
    assert_eq!(memory.free_bytes(), free);
}
