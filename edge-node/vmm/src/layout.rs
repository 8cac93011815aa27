//! Where everything lies in a guest's memory, and the tables that the CPU reads there.
//!
//! The map is in `holm_hostcall`. Page tables come after program memory: first all the leaf tables of the
//! identity mapping in order, so that the entry of page `n` is at `tables + 8 * n`, then their
//! directories, then the pointers to directories for all addresses in order, then the directories and the
//! tables of the sparse space, all of them empty. Accessed and dirty bits are set from the start, so that
//! running a guest changes no page table by itself.

use holm_hostcall::{
    BOOT_ADDR, CALL_ADDR, CPUID_ADDR, CpuidTable, DIRECTORY_REACH_BYTES, HOSTCALL_VECTOR, IDT_ADDR,
    KERNEL_END, LOG_ADDR, LOG_CAPACITY_BYTES, LOW_DATA_ADDR, LOWER_HALF_BYTES, LogHeader,
    OperationBounds, PAGE_BYTES, POINTERS_REACH_BYTES, SPARSE_END, SPARSE_START, STUB_ADDR,
    STUB_BOUNDS_ADDR, STUB_CR3_ADDR, STUB_ENTRY_BYTES, STUB_HOSTCALL_ADDR, STUB_SCRATCH_ADDR,
    STUB_STACK_ADDR, TABLE_REACH_BYTES, TABLES_ADDR, TABLES_ALIAS, TSS_OFFSET,
    page_operation as operation, selector,
};
use holm_model::limits::{MAX_ARTIFACT_BYTES, MAX_MEMORY_BYTES};
use holm_model::program::END_ADDR;

use crate::VmmError;
use crate::memory::GuestMemory;

const PRESENT: u64 = 1;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const NO_EXECUTE: u64 = 1 << 63;

const ENTRIES: u64 = 512;
const ENTRY_BYTES: u64 = 8;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Bytes that AT_RANDOM leads to.
pub(crate) const RANDOM_BYTES: u64 = 16;
/// What of program memory may lie alone in the reach of a sparse table: one for each frame of the library OS's.
const BYTES_FOR_A_TABLE: u64 = 64 << 10;
/// Sparse tables beside those.
const SPARE_TABLES: u64 = 512;
/// Sparse tables to a sparse directory, and directories beside those.
const TABLES_FOR_A_DIRECTORY: u64 = 4;
const SPARE_DIRECTORIES: u64 = 64;
/// The tables of pointers, and in bytes.
const POINTERS: u64 = LOWER_HALF_BYTES / POINTERS_REACH_BYTES;

const _: () = {
    // Twice what tables and directories of the largest guest take.
    const TABLES_BYTES: u64 = 2 * (MAX_MEMORY_BYTES / BYTES_FOR_A_TABLE * 5 / 4) * PAGE_BYTES;
    assert!(TABLES_BYTES <= DIRECTORY_REACH_BYTES);
    assert!(END_ADDR + MAX_MEMORY_BYTES + TABLES_BYTES + MAX_ARTIFACT_BYTES <= TABLES_ALIAS);
};

/// What may be done with a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Not mapped.
    None,
    /// The stub's data: read and write at CPL 0 alone.
    Supervisor,
    /// The stub's code: execute at CPL 0 alone.
    SupervisorCode,
    /// Read at CPL 3.
    Read,
    /// Read and write at CPL 3.
    Write,
    /// Read and execute at CPL 3.
    Execute,
}

impl Access {
    fn bits(self) -> u64 {
        match self {
            Access::None => NO_EXECUTE,
            Access::Supervisor => PRESENT | WRITE | ACCESSED | DIRTY | NO_EXECUTE,
            Access::SupervisorCode => PRESENT | ACCESSED,
            Access::Read => PRESENT | USER | ACCESSED | NO_EXECUTE,
            Access::Write => PRESENT | WRITE | USER | ACCESSED | DIRTY | NO_EXECUTE,
            Access::Execute => PRESENT | USER | ACCESSED,
        }
    }
}

/// A stretch of pages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Range {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) access: Access,
}

/// The sizes that follow from a memory limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Where program memory begins: a page.
    pub(crate) program_start: u64,
    /// Bytes of program memory, whole pages.
    pub(crate) program_bytes: u64,
    /// Where the page tables begin: a whole leaf table further than anything else, because their
    /// directory entries are for the supervisor alone.
    pub(crate) tables: u64,
    leaf_tables: u64,
    directories: u64,
    /// The artifact's files, whole pages; none are 0 bytes.
    pub(crate) files_bytes: u64,
}

impl Layout {
    /// `program_start` is a page. `files_bytes` is the size of the artifact's file tree.
    pub(crate) fn new(program_start: u64, memory_bytes: u64, files_bytes: u64) -> Self {
        let program_bytes = memory_bytes.next_multiple_of(PAGE_BYTES);
        let tables = (program_start + program_bytes).next_multiple_of(TABLE_REACH_BYTES);
        let reach = TABLE_REACH_BYTES;
        let mut layout = Layout {
            program_start,
            program_bytes,
            tables,
            leaf_tables: 0,
            directories: 0,
            files_bytes: files_bytes.next_multiple_of(PAGE_BYTES),
        };
        // The tables map themselves too, so their number depends on itself.
        loop {
            let end = layout.total_bytes();
            let (leaves, dirs) = (end.div_ceil(reach), end.div_ceil(reach * ENTRIES));
            if (leaves, dirs) == (layout.leaf_tables, layout.directories) {
                return layout;
            }
            (layout.leaf_tables, layout.directories) = (leaves, dirs);
        }
    }

    /// Bytes of the whole guest.
    pub(crate) fn total_bytes(&self) -> u64 {
        self.files() + self.files_bytes
    }

    /// The tables above the leaf tables, from and up to: what leads to those.
    pub(crate) fn upper_tables(&self) -> (u64, u64) {
        (self.leaves().1, self.sparse_tables())
    }

    /// The leaf tables of the identity mapping, from and up to.
    pub(crate) fn leaves(&self) -> (u64, u64) {
        (self.tables, self.tables + self.leaf_tables * PAGE_BYTES)
    }

    /// The leaf tables of the sparse space, from and up to.
    pub(crate) fn sparse_leaves(&self) -> (u64, u64) {
        (self.sparse_tables(), self.tables_end())
    }

    /// All page tables, from and up to.
    pub(crate) fn all_tables(&self) -> (u64, u64) {
        (self.tables, self.tables_end())
    }

    /// The first leaf table of the identity mapping: of what lies below program memory.
    pub(crate) fn first_leaf(&self) -> (u64, u64) {
        (self.tables, self.tables + PAGE_BYTES)
    }

    /// For CR3.
    pub(crate) fn pml4(&self) -> u64 {
        self.tables + (self.leaf_tables + self.directories) * PAGE_BYTES
    }

    /// The directory of the page tables' alias.
    fn alias(&self) -> u64 {
        self.pml4() + PAGE_BYTES
    }

    /// The tables of pointers to directories, for all addresses in order: the first ones are of the identity
    /// mapping, the others of the sparse space.
    pub(crate) fn pointers(&self) -> u64 {
        self.alias() + PAGE_BYTES
    }

    /// The directories for the sparse space.
    pub(crate) fn sparse_directories(&self) -> u64 {
        self.pointers() + POINTERS * PAGE_BYTES
    }

    /// The leaf tables for the sparse space.
    pub(crate) fn sparse_tables(&self) -> u64 {
        let directories = self.sparse_table_count() / TABLES_FOR_A_DIRECTORY + SPARE_DIRECTORIES;
        self.sparse_directories() + directories * PAGE_BYTES
    }

    /// Number of those.
    pub(crate) fn sparse_table_count(&self) -> u64 {
        self.program_bytes / BYTES_FOR_A_TABLE + SPARE_TABLES
    }

    fn tables_end(&self) -> u64 {
        self.sparse_tables() + self.sparse_table_count() * PAGE_BYTES
    }

    /// The artifact's file tree.
    pub(crate) fn files(&self) -> u64 {
        self.tables_end().next_multiple_of(TABLE_REACH_BYTES)
    }

    /// First address after program memory.
    pub(crate) fn program_end(&self) -> u64 {
        self.program_start + self.program_bytes
    }

    /// Where the program finds its 16 random bytes (AT_RANDOM): at the very top of its stack.
    pub(crate) fn random_bytes(&self) -> u64 {
        self.program_end() - RANDOM_BYTES
    }

    /// Bytes of the program's stack, at the end of program memory.
    pub(crate) fn stack_bytes(&self) -> u64 {
        const MOST: u64 = 8 << 20;
        (self.program_bytes / 8)
            .clamp(16 * PAGE_BYTES, MOST)
            .next_multiple_of(PAGE_BYTES)
    }

    /// Writes page tables that map `ranges` (in rising order) and the fixed pages, and nothing else.
    pub(crate) fn write_page_tables(
        &self,
        memory: &GuestMemory,
        kernel: &[Range],
        program: &[Range],
    ) -> Result<(), VmmError> {
        let fixed = |start: u64, pages: u64, access| Range {
            start,
            end: start + pages * PAGE_BYTES,
            access,
        };
        let cpuid_bytes = size_of::<CpuidTable>() as u64;
        let log_bytes = size_of::<LogHeader>() as u64 + LOG_CAPACITY_BYTES;
        let mut ranges = vec![
            fixed(TABLES_ADDR, 1, Access::Supervisor),
            fixed(IDT_ADDR, 1, Access::Supervisor),
            fixed(STUB_STACK_ADDR, 1, Access::Supervisor),
            fixed(STUB_SCRATCH_ADDR, 1, Access::Supervisor),
            fixed(STUB_ADDR, 1, Access::SupervisorCode),
            fixed(BOOT_ADDR, 1, Access::Read),
            fixed(CALL_ADDR, 1, Access::Write),
            fixed(CPUID_ADDR, cpuid_bytes.div_ceil(PAGE_BYTES), Access::Read),
            fixed(LOG_ADDR, log_bytes.div_ceil(PAGE_BYTES), Access::Write),
        ];
        ranges.extend_from_slice(kernel);
        ranges.push(Range {
            start: self.program_start,
            end: self.program_end(),
            access: Access::Write,
        });
        ranges.extend_from_slice(program);
        // For the supervisor by their directory entries, for the user to read by those of the alias.
        ranges.push(Range {
            start: self.tables,
            end: self.tables_end(),
            access: Access::Write,
        });
        ranges.push(Range {
            start: self.files(),
            end: self.total_bytes(),
            access: Access::Read,
        });

        let entries = self.leaf_tables * ENTRIES;
        let mut leaves = vec![0u8; (entries * ENTRY_BYTES) as usize];
        for range in ranges {
            for page in range.start / PAGE_BYTES..range.end.div_ceil(PAGE_BYTES) {
                let entry = (page * PAGE_BYTES) | range.access.bits();
                let at = (page * ENTRY_BYTES) as usize;
                leaves[at..at + 8].copy_from_slice(&entry.to_le_bytes());
            }
        }
        memory.write(self.tables, &leaves)?;

        // Directories allow everything, but for the page tables' own: elsewhere the leaves decide.
        const ALL: u64 = PRESENT | WRITE | USER | ACCESSED;
        const SUPERVISOR: u64 = PRESENT | WRITE | ACCESSED;
        const READ: u64 = PRESENT | USER | ACCESSED;
        let write = |table: u64, index: u64, to: u64, bits: u64| {
            memory.write(table + index * ENTRY_BYTES, &(to | bits).to_le_bytes())
        };
        let directories = self.tables + self.leaf_tables * PAGE_BYTES;
        let tables = self.tables / TABLE_REACH_BYTES..self.files() / TABLE_REACH_BYTES;
        for leaf in 0..self.leaf_tables {
            let own = tables.contains(&leaf);
            let to = self.tables + leaf * PAGE_BYTES;
            write(directories, leaf, to, if own { SUPERVISOR } else { ALL })?;
            if own {
                write(self.alias(), leaf - tables.start, to, READ)?;
            }
        }
        for directory in 0..self.directories {
            let to = directories + directory * PAGE_BYTES;
            write(self.pointers(), directory, to, ALL)?;
        }
        let alias = TABLES_ALIAS / DIRECTORY_REACH_BYTES;
        write(self.pointers(), alias, self.alias(), READ)?;
        for pointers in 0..POINTERS {
            let to = self.pointers() + pointers * PAGE_BYTES;
            write(self.pml4(), pointers, to, ALL)?;
        }
        Ok(())
    }

    /// Writes GDT, TSS, IDT and the stub's scratch page.
    pub(crate) fn write_cpu_tables(&self, memory: &GuestMemory) -> Result<(), VmmError> {
        const TSS_BYTES: u64 = 104;
        let tss = TABLES_ADDR + TSS_OFFSET;
        // Intel SDM volume 3, 3.4.5: base and limit are ignored in 64-bit mode.
        let mut descriptors = [0u64; 10];
        descriptors[usize::from(selector::KERNEL_CODE / 8)] = 0x00AF_9B00_0000_FFFF;
        descriptors[usize::from(selector::KERNEL_DATA / 8)] = 0x00CF_9300_0000_FFFF;
        descriptors[usize::from(selector::USER_DATA / 8)] = 0x00CF_F300_0000_FFFF;
        descriptors[usize::from(selector::USER_CODE / 8)] = 0x00AF_FB00_0000_FFFF;
        let at = usize::from(selector::TSS / 8);
        descriptors[at] =
            (TSS_BYTES - 1) | (tss & 0xFF_FFFF) << 16 | 0x8B << 40 | (tss >> 24 & 0xFF) << 56;
        descriptors[at + 1] = tss >> 32;
        for (index, descriptor) in descriptors.iter().enumerate() {
            memory.write(TABLES_ADDR + index as u64 * 8, &descriptor.to_le_bytes())?;
        }
        // TSS: only IST1, and an I/O bitmap beyond its end, so that no port is open to CPL 3.
        let mut segment = [0u8; TSS_BYTES as usize];
        let stack = (STUB_STACK_ADDR + PAGE_BYTES).to_le_bytes();
        segment[36..44].copy_from_slice(&stack);
        segment[102..104].copy_from_slice(&(TSS_BYTES as u16).to_le_bytes());
        memory.write(tss, &segment)?;

        for vector in 0..32 {
            write_gate(memory, vector, STUB_ADDR + vector * STUB_ENTRY_BYTES, false)?;
        }
        write_gate(memory, u64::from(HOSTCALL_VECTOR), STUB_HOSTCALL_ADDR, true)?;

        let bounds = self.operation_bounds().map(|one| {
            let [[first, end], [from, to]] = [one.slots, one.sources];
            [first, end, from, to, one.source_mask, one.bits, 0, 0].map(u64::to_le_bytes)
        });
        memory.write(STUB_BOUNDS_ADDR, bounds.as_flattened().as_flattened())?;
        memory.write(STUB_CR3_ADDR, &self.pml4().to_le_bytes())
    }

    /// What the stub's page gate allows: to change the protection of what is there, and to have the sparse
    /// space lead to pages of program memory, by pointers, directories and tables that nothing else is in.
    fn operation_bounds(&self) -> [OperationBounds; operation::COUNT as usize] {
        const LINK: u64 = PRESENT | WRITE | USER | ACCESSED;
        const ANYTHING: [u64; 2] = [0, u64::MAX];
        let program = [self.program_start, self.program_end()]
            .map(|addr| self.tables + addr / PAGE_BYTES * ENTRY_BYTES);
        let pointers = self.pointers() + SPARSE_START / DIRECTORY_REACH_BYTES * ENTRY_BYTES;
        let (directories, tables) = (self.sparse_directories(), self.sparse_tables());
        let end = self.tables_end();
        let of = |slots, sources, source_mask, bits| OperationBounds {
            slots,
            sources,
            source_mask,
            bits,
            ..OperationBounds::default()
        };
        let mut bounds = [OperationBounds::default(); operation::COUNT as usize];
        for (number, access) in [
            (operation::CLOSE, Access::None),
            (operation::READ, Access::Read),
            (operation::WRITE, Access::Write),
            (operation::EXECUTE, Access::Execute),
        ] {
            bounds[number as usize] = of(program, ANYTHING, 0, access.bits());
            bounds[(number + operation::SPARSE) as usize] =
                of([tables, end], ANYTHING, 0, access.bits());
        }
        bounds[operation::UNMAP as usize] = of([pointers, end], ANYTHING, 0, 0);
        bounds[operation::MAP as usize] = of([tables, end], program, ENTRY_BYTES - 1, 0);
        let page = PAGE_BYTES - 1;
        bounds[operation::LINK_DIRECTORY as usize] =
            of([pointers, directories], [directories, tables], page, LINK);
        bounds[operation::LINK_TABLE as usize] =
            of([directories, tables], [tables, end], page, LINK);
        bounds
    }
}

impl Layout {
    /// Clears the accessed bits in leaf tables that nothing has been translated from yet. From then on KVM or the CPU
    /// sets those of what is touched (Intel SDM volume 3, 4.8).
    pub(crate) fn forget_accesses(
        &self,
        memory: &GuestMemory,
        tables: impl Iterator<Item = u64>,
    ) -> Result<(), VmmError> {
        let mut table = [0; PAGE_BYTES as usize];
        for at in tables {
            memory.read(at, &mut table)?;
            for entry in table.chunks_exact_mut(ENTRY_BYTES as usize) {
                entry[0] &= !(ACCESSED as u8);
            }
            memory.write(at, &table)?;
        }
        Ok(())
    }

    /// The pages that entries for CPL 3 with that bit lead to, in rising order.
    pub(crate) fn accessed(
        &self,
        memory: &GuestMemory,
        tables: impl Iterator<Item = u64>,
    ) -> Result<Vec<u64>, VmmError> {
        const WANTED: u64 = PRESENT | USER | ACCESSED;
        let mut table = [0; PAGE_BYTES as usize];
        let mut found = Vec::new();
        for at in tables {
            memory.read(at, &mut table)?;
            for entry in table.as_chunks().0 {
                let entry = u64::from_le_bytes(*entry);
                if entry & WANTED == WANTED {
                    found.push(entry & ADDRESS);
                }
            }
        }
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }
}

/// A 64-bit interrupt gate onto IST1 (Intel SDM volume 3, 6.14.1).
fn write_gate(memory: &GuestMemory, vector: u64, to: u64, for_user: bool) -> Result<(), VmmError> {
    const INTERRUPT_GATE: u64 = 0x8E;
    const IST: u64 = 1;
    let kind = INTERRUPT_GATE | if for_user { 3 << 5 } else { 0 };
    let low = (to & 0xFFFF)
        | u64::from(selector::KERNEL_CODE) << 16
        | IST << 32
        | kind << 40
        | (to >> 16 & 0xFFFF) << 48;
    memory.write(IDT_ADDR + vector * 16, &low.to_le_bytes())?;
    memory.write(IDT_ADDR + vector * 16 + 8, &(to >> 32).to_le_bytes())
}

impl Layout {
    /// Where the page at a virtual address is, if the guest itself may read it (or write to it): the host
    /// accesses nothing else on its behalf, so that code stays what it is. What the page tables say is
    /// believed only within the bounds that the stub keeps to.
    pub(crate) fn translate(
        &self,
        memory: &GuestMemory,
        addr: u64,
        write: bool,
    ) -> Result<Option<u64>, VmmError> {
        let wanted = PRESENT | USER | if write { WRITE } else { 0 };
        let offset = addr % PAGE_BYTES;
        let in_program = |page: u64| {
            (self.program_start..self.program_end())
                .contains(&page)
                .then_some(page + offset)
        };
        if (LOW_DATA_ADDR..KERNEL_END).contains(&addr)
            || (self.program_start..self.program_end()).contains(&addr)
        {
            let entry = memory.read_u64(self.tables + addr / PAGE_BYTES * ENTRY_BYTES)?;
            return Ok((entry & wanted == wanted).then_some(addr));
        }
        // The artifact's files: what the host itself put there, which nobody can change.
        if (self.files()..self.total_bytes()).contains(&addr) {
            return Ok((!write).then_some(addr));
        }
        if !(SPARSE_START..SPARSE_END).contains(&addr) {
            return Ok(None);
        }
        // Where an entry leads, if it leads to one of the tables from `first` up to `end`.
        let lead = |slot: u64, first: u64, end: u64| -> Result<Option<u64>, VmmError> {
            let to = memory.read_u64(slot)? & ADDRESS;
            Ok((first..end).contains(&to).then_some(to))
        };
        let (directories, tables) = (self.sparse_directories(), self.sparse_tables());
        let slot = self.pointers() + addr / DIRECTORY_REACH_BYTES * ENTRY_BYTES;
        let Some(directory) = lead(slot, directories, tables)? else {
            return Ok(None);
        };
        let slot = directory + addr % DIRECTORY_REACH_BYTES / TABLE_REACH_BYTES * ENTRY_BYTES;
        let Some(table) = lead(slot, tables, self.tables_end())? else {
            return Ok(None);
        };
        let slot = table + addr % TABLE_REACH_BYTES / PAGE_BYTES * ENTRY_BYTES;
        let entry = memory.read_u64(slot)?;
        Ok(match entry & wanted == wanted {
            true => in_program(entry & ADDRESS),
            false => None,
        })
    }
}

/// A guest's memory by the addresses that the guest uses.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    pub(crate) memory: &'a GuestMemory,
    pub(crate) layout: &'a Layout,
}

impl View<'_> {
    /// Calls `each` for the parts of a range that lie in one page: guest-physical address, and the part's
    /// place in the range. `false`, with some parts perhaps done, if the guest may not access all of it.
    fn for_each_part(
        &self,
        addr: u64,
        bytes: usize,
        write: bool,
        mut each: impl FnMut(u64, std::ops::Range<usize>) -> Result<(), VmmError>,
    ) -> Result<bool, VmmError> {
        let mut done = 0;
        while done < bytes {
            let Some(at) = addr.checked_add(done as u64) else {
                return Ok(false);
            };
            let part = ((PAGE_BYTES - at % PAGE_BYTES) as usize).min(bytes - done);
            let Some(physical) = self.layout.translate(self.memory, at, write)? else {
                return Ok(false);
            };
            each(physical, done..done + part)?;
            done += part;
        }
        Ok(true)
    }

    /// Copies what the guest may read, once; `false` if it may not read all of it.
    pub(crate) fn read(&self, addr: u64, to: &mut [u8]) -> Result<bool, VmmError> {
        self.for_each_part(addr, to.len(), false, |at, part| {
            self.memory.read(at, &mut to[part])
        })
    }

    /// Writes where the guest may write; `false`, perhaps with a part written, if it may not everywhere.
    pub(crate) fn write(&self, addr: u64, from: &[u8]) -> Result<bool, VmmError> {
        self.for_each_part(addr, from.len(), true, |at, part| {
            self.memory.write(at, &from[part])
        })
    }

    /// Whether the guest may write to the whole range.
    pub(crate) fn is_writable(&self, addr: u64, bytes: u64) -> Result<bool, VmmError> {
        // No range that is longer than memory can be.
        let bytes = bytes.min(self.memory.bytes()) as usize;
        self.for_each_part(addr, bytes, true, |_, _| Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_reach_to_their_own_end_for_every_size() {
        for memory_bytes in [1 << 20, 64 << 20, 1 << 30, (1 << 30) - 4096, 4 << 30] {
            let layout = Layout::new(0x40_0000, memory_bytes, memory_bytes % 7 * 5000);
            let reach = layout.leaf_tables * ENTRIES * PAGE_BYTES;
            assert!(layout.total_bytes() <= reach, "{memory_bytes}");
            assert!(
                layout.directories * ENTRIES >= layout.leaf_tables,
                "{memory_bytes}"
            );
            assert!(layout.stack_bytes() < memory_bytes, "{memory_bytes}");
        }
    }

    #[test]
    fn only_the_guests_own_pages_are_found_for_it() {
        use crate::memory::{Sharing, anonymous_file};
        let layout = Layout::new(0x40_0000, 1 << 20, 1);
        let bytes = layout.total_bytes();
        let memory =
            GuestMemory::map(&anonymous_file(bytes).unwrap(), 0, bytes, Sharing::Shared).unwrap();
        let code = Range {
            start: layout.program_start,
            end: layout.program_start + PAGE_BYTES,
            access: Access::Execute,
        };
        layout.write_page_tables(&memory, &[], &[code]).unwrap();
        let view = View {
            memory: &memory,
            layout: &layout,
        };
        let (start, end) = (layout.program_start, layout.program_end());
        let mut byte = [0];
        assert!(view.read(start, &mut byte).unwrap() && !view.write(start, &byte).unwrap());
        assert!(
            view.write(start + PAGE_BYTES, &byte).unwrap() && view.write(end - 1, &byte).unwrap()
        );
        let files = layout.files();
        assert!(view.read(files, &mut byte).unwrap() && !view.write(files, &byte).unwrap());
        for addr in [
            0,
            files - 1,
            files + PAGE_BYTES,
            holm_hostcall::STUB_STACK_ADDR,
            holm_hostcall::KERNEL_ADDR,
            end,
            layout.tables,
            SPARSE_START,
            SPARSE_END - 1,
            TABLES_ALIAS,
            u64::MAX,
        ] {
            assert!(!view.read(addr, &mut byte).unwrap(), "{addr:#x}");
        }
        assert!(!view.read(end - 1, &mut [0; 2]).unwrap());
        // A table that leads out of program memory, which the stub would never write.
        let (table, slot) = (layout.sparse_tables(), layout.sparse_directories());
        let pointer = layout.pointers() + SPARSE_START / DIRECTORY_REACH_BYTES * ENTRY_BYTES;
        memory.write(pointer, &(slot | 0x27).to_le_bytes()).unwrap();
        memory.write(slot, &(table | 0x27).to_le_bytes()).unwrap();
        for (page, found) in [(start, true), (layout.tables, false), (0x1000, false)] {
            memory.write(table, &(page | 0x67).to_le_bytes()).unwrap();
            assert_eq!(
                view.read(SPARSE_START, &mut byte).unwrap(),
                found,
                "{page:#x}"
            );
        }
        // One level taken for another.
        memory
            .write(pointer, &(table | 0x27).to_le_bytes())
            .unwrap();
        assert!(!view.read(SPARSE_START, &mut byte).unwrap());
        memory.write(pointer, &(slot | 0x27).to_le_bytes()).unwrap();
        memory.write(slot, &(start | 0x27).to_le_bytes()).unwrap();
        assert!(!view.read(SPARSE_START, &mut byte).unwrap());
    }
}
