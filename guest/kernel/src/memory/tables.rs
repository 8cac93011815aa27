//! The page tables of the sparse space: for each address a pointer to a directory, in which a table, in which
//! the page's entry. Directories and tables come from two stores that the host made, and are linked when
//! something below them is touched.

use holm_hostcall::{
    BootPage, DIRECTORY_REACH_BYTES, LOWER_HALF_BYTES, PAGE_BYTES, POINTERS_REACH_BYTES,
    SPARSE_END, SPARSE_START, TABLE_REACH_BYTES,
};

use super::machine::Machine;

pub(super) const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const ENTRIES: u64 = 512;
/// Tables of pointers.
const POINTERS: usize = (LOWER_HALF_BYTES / POINTERS_REACH_BYTES) as usize;
/// Most that are taken back from where they are not needed any more at a time.
const MAX_RECLAIMED: usize = 64;

/// Whether an address lies in the sparse space.
pub(super) fn is_sparse(addr: u64) -> bool {
    (SPARSE_START..SPARSE_END).contains(&addr)
}

/// Slots in a row.
pub(super) fn slots(first: u64, count: u64) -> impl Iterator<Item = u64> {
    (0..count).map(move |number| first + number * 8)
}

/// Calls `each` for the runs of entries that are not zero.
pub(super) fn for_each_run<M: Machine>(
    machine: &mut M,
    first: u64,
    count: u64,
    mut each: impl FnMut(&mut M, u64, u64),
) {
    let mut run = None;
    for slot in slots(first, count) {
        let backed = machine.entry(slot) != 0;
        match (backed, run) {
            (true, None) => run = Some(slot),
            (false, Some(start)) => {
                each(machine, start, (slot - start) / 8);
                run = None;
            }
            _ => {}
        }
    }
    if let Some(start) = run {
        each(machine, start, first / 8 + count - start / 8);
    }
}

/// Directories or tables that are linked nowhere.
struct Store {
    /// Never used from here on.
    next: u64,
    end: u64,
    reclaimed: [u64; MAX_RECLAIMED],
    count: usize,
}

impl Store {
    const fn new() -> Self {
        Store {
            next: 0,
            end: 0,
            reclaimed: [0; MAX_RECLAIMED],
            count: 0,
        }
    }

    fn is_empty(&self) -> bool {
        self.count == 0 && self.next == self.end
    }

    fn is_full(&self) -> bool {
        self.count == MAX_RECLAIMED
    }

    /// One that is all zero.
    fn take(&mut self) -> Option<u64> {
        if self.count > 0 {
            self.count -= 1;
            return Some(self.reclaimed[self.count]);
        }
        let next = (self.next < self.end).then_some(self.next)?;
        self.next += PAGE_BYTES;
        Some(next)
    }

    fn give(&mut self, one: u64) {
        self.reclaimed[self.count] = one;
        self.count += 1;
    }
}

/// The page tables of the sparse space.
pub(super) struct Tables {
    pointers: u64,
    directories: Store,
    tables: Store,
    /// How many directories each table of pointers leads to.
    linked: [u16; POINTERS],
}

impl Tables {
    /// Before the start.
    pub(super) const fn new() -> Self {
        Tables {
            pointers: 0,
            directories: Store::new(),
            tables: Store::new(),
            linked: [0; POINTERS],
        }
    }

    /// Takes over what the host made.
    pub(super) fn start(&mut self, boot: &BootPage) {
        self.pointers = boot.sparse_pointers;
        self.directories.next = boot.sparse_directories;
        self.directories.end = boot.sparse_tables;
        self.tables.next = boot.sparse_tables;
        self.tables.end = boot.sparse_tables + boot.sparse_table_count * PAGE_BYTES;
    }

    fn pointer_slot(&self, addr: u64) -> u64 {
        self.pointers + addr / DIRECTORY_REACH_BYTES * 8
    }

    /// The slot of an address in the directory that a pointer leads to, if it leads to one.
    fn directory_slot(&self, addr: u64, machine: &impl Machine) -> Option<u64> {
        let directory = lead(self.pointer_slot(addr), machine)?;
        Some(directory + addr % DIRECTORY_REACH_BYTES / TABLE_REACH_BYTES * 8)
    }

    /// The slot of a page, if it has a page table.
    pub(super) fn slot(&self, addr: u64, machine: &impl Machine) -> Option<u64> {
        let table = lead(self.directory_slot(addr, machine)?, machine)?;
        Some(table + addr % TABLE_REACH_BYTES / PAGE_BYTES * 8)
    }

    /// The entry of a page; 0 if it is not backed.
    pub(super) fn entry(&self, addr: u64, machine: &impl Machine) -> u64 {
        self.slot(addr, machine)
            .map_or(0, |slot| machine.entry(slot))
    }

    /// The slot of a page, whose table is made if there is none.
    pub(super) fn slot_with_table(&mut self, addr: u64, machine: &mut impl Machine) -> Option<u64> {
        if let Some(slot) = self.slot(addr, machine) {
            return Some(slot);
        }
        if self.directories.is_empty() || self.tables.is_empty() {
            self.reclaim(machine);
        }
        if self.directory_slot(addr, machine).is_none() {
            let directory = self.directories.take()?;
            if !machine.link_directory(self.pointer_slot(addr), directory) {
                return None;
            }
            self.linked[(addr / POINTERS_REACH_BYTES) as usize] += 1;
        }
        let slot = self.directory_slot(addr, machine)?;
        let table = self.tables.take()?;
        if !machine.link_table(slot, table) {
            return None;
        }
        self.slot(addr, machine)
    }

    /// The first page table that maps a part of a range: first slot, number of slots, and the address of the
    /// first.
    pub(super) fn next(
        &self,
        start: u64,
        end: u64,
        machine: &impl Machine,
    ) -> Option<(u64, u64, u64)> {
        let mut at = start;
        while at < end {
            let behind = |bytes| (at / bytes + 1) * bytes;
            if self.linked[(at / POINTERS_REACH_BYTES) as usize] == 0 {
                at = behind(POINTERS_REACH_BYTES);
                continue;
            }
            let Some(slot) = self.directory_slot(at, machine) else {
                at = behind(DIRECTORY_REACH_BYTES);
                continue;
            };
            let next = behind(TABLE_REACH_BYTES);
            if let Some(table) = lead(slot, machine) {
                let first = table + at % TABLE_REACH_BYTES / PAGE_BYTES * 8;
                return Some((first, (next.min(end) - at) / PAGE_BYTES, at));
            }
            at = next;
        }
        None
    }

    /// Calls `each` for all of those.
    pub(super) fn for_each<M: Machine>(
        &self,
        start: u64,
        end: u64,
        machine: &mut M,
        mut each: impl FnMut(&mut M, u64, u64, u64),
    ) {
        let mut next = start;
        while let Some((slot, count, at)) = self.next(next, end, machine) {
            next = at + count * PAGE_BYTES;
            each(machine, slot, count, at);
        }
    }

    /// Takes tables and directories back in which nothing is any more. This looks at all of them, so it is
    /// only for when there are no others.
    fn reclaim(&mut self, machine: &mut impl Machine) {
        for number in 0..POINTERS {
            if self.linked[number] == 0 {
                continue;
            }
            let start = number as u64 * POINTERS_REACH_BYTES;
            let first = self.pointer_slot(start.max(SPARSE_START));
            let end = self.pointer_slot(start + POINTERS_REACH_BYTES);
            for pointer in slots(first, (end - first) / 8) {
                let Some(directory) = lead(pointer, machine) else {
                    continue;
                };
                let mut in_use = false;
                for slot in slots(directory, ENTRIES) {
                    let Some(table) = lead(slot, machine) else {
                        continue;
                    };
                    let is_bare = slots(table, ENTRIES).all(|slot| machine.entry(slot) == 0);
                    match is_bare && !self.tables.is_full() && machine.unmap(slot, 1) {
                        true => self.tables.give(table),
                        false => in_use = true,
                    }
                }
                if !in_use && !self.directories.is_full() && machine.unmap(pointer, 1) {
                    self.directories.give(directory);
                    self.linked[number] -= 1;
                }
            }
        }
    }
}

/// Where the entry in a slot of pointers or of a directory leads.
fn lead(slot: u64, machine: &impl Machine) -> Option<u64> {
    let to = machine.entry(slot) & ADDRESS;
    (to != 0).then_some(to)
}
