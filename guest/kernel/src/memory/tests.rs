//! The bookkeeping against a machine that is a few maps: whatever a program asks for, new memory is zero,
//! and no frame is in two places.

use std::boxed::Box;
use std::collections::{HashMap, HashSet};
use std::vec::Vec;

use holm_hostcall::{
    BootPage, PAGE_BYTES, PROGRAM_ADDR, TABLE_REACH_BYTES, WINDOW_DIRECTORIES_BYTES, WINDOWS,
};

use super::*;

/// Anonymous, and the program's own, as nearly every mapping is.
const MAP_ANONYMOUS: u64 = super::MAP_ANONYMOUS | super::MAP_PRIVATE;

const MEMORY_BYTES: u64 = 8 << 20;
const STACK_BYTES: u64 = 128 << 10;
const TABLES: u64 = 64 << 20;
const DIRECTORIES: u64 = 128 << 20;
const SPARSE_TABLES: u64 = 256 << 20;
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
        let entry = match sparse::is_sparse(addr) {
            true => {
                let window = WINDOWS.iter().rposition(|start| *start <= addr)?;
                let directory = DIRECTORIES
                    + window as u64 * WINDOW_DIRECTORIES_BYTES
                    + (addr - WINDOWS[window]) / TABLE_REACH_BYTES * 8;
                let table = self.entry(directory) & ADDRESS;
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
            assert!(entry >> 63 != 0, "the stub refuses what leads nowhere");
            let bits = [0, 0x25, 0x67][protection as usize];
            self.entries.insert(slot, entry & ADDRESS | 1 << 63 | bits);
        }
        true
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

    fn link(&mut self, slot: u64, table: u64) -> bool {
        assert!((DIRECTORIES..SPARSE_TABLES).contains(&slot) && table >= SPARSE_TABLES);
        self.entries.insert(slot, table | 0x27);
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
                0 => WINDOWS[1],
                many => known[random(many) as usize],
            };
            let bytes = (1 + random(90)) * PAGE_BYTES;
            match random(8) {
                0..=2 => {
                    let prot = [0, PROT_READ, PROT_READ | PROT_WRITE, PROT_READ | PROT_WRITE]
                        [random(4) as usize];
                    let fixed = random(4) == 0 && !known.is_empty();
                    let hint = if fixed { some(&mut random) } else { 0 };
                    if fixed && !sparse::is_sparse(hint) {
                        continue;
                    }
                    let flags = MAP_ANONYMOUS | if fixed { MAP_FIXED } else { 0 };
                    let size = if random(8) == 0 { 5 << 20 } else { bytes };
                    let Ok(at) = memory.map(hint, size, prot, flags, &mut machine) else {
                        continue;
                    };
                    for page in page_range(at, size) {
                        let before = model.mapped.insert(page, protection(prot).unwrap());
                        assert!(before.is_none() || fixed, "seed {seed}: {page:#x} twice");
                        model.written.remove(&page);
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
                    }
                }
                4 => {
                    let start = some(&mut random);
                    let prot = [0, PROT_READ, PROT_READ | PROT_WRITE][random(3) as usize];
                    let all_mapped =
                        page_range(start, bytes).all(|page| model.mapped.contains_key(&page));
                    let answer = memory.protect(start, bytes, prot, &mut machine);
                    let done = answer.is_ok();
                    // Beyond the mappings is the stack, which can be protected too.
                    assert!(
                        all_mapped || !done || !sparse::is_sparse(start),
                        "seed {seed}"
                    );
                    // What lies before a hole is changed all the same.
                    let mut whole = true;
                    let changed = page_range(start, bytes).filter(|page| {
                        whole &= model.mapped.contains_key(page);
                        done || (answer == Err(Errno::ENOMEM) && whole)
                    });
                    for page in changed.collect::<Vec<_>>() {
                        if let Some(known) = model.mapped.get_mut(&page) {
                            *known = protection(prot).unwrap();
                        }
                    }
                }
                5 => {
                    let start = some(&mut random);
                    let all = page_range(start, bytes)
                        .all(|page| model.mapped.get(&page) == Some(&Protection::Write));
                    if all {
                        memory
                            .advise(start, bytes, MADV_DONTNEED, &mut machine)
                            .unwrap();
                        for page in page_range(start, bytes) {
                            model.written.remove(&page);
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
                            match memory.back(page, true, &mut machine) {
                                Ok(()) => assert_eq!(*protection, Protection::Write),
                                Err(Refusal::NoMemory) => break,
                                Err(Refusal::Protected) => {
                                    assert_ne!(*protection, Protection::Write);
                                    break;
                                }
                                Err(Refusal::Unmapped) => panic!("seed {seed}: {page:#x} is lost"),
                            }
                        }
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
            let lost = *protection == Protection::Write && model.written.contains(page);
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
            memory.back(page, true, &mut machine).unwrap();
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
            memory.back(page, true, &mut machine).unwrap();
            faults += 1;
        }
    }
    assert!(
        faults <= 16,
        "{faults} faults for {} pages",
        (6 << 20) / PAGE_BYTES
    );
    assert_eq!(
        memory.back(start + (6 << 20), true, &mut machine),
        Err(Refusal::Unmapped)
    );
}
