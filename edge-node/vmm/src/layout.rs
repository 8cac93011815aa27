//! Where everything lies in a guest's memory, and the tables that the CPU reads there.
//!
//! The map is in `holm_hostcall`. Page tables come last: first all the leaf tables in order, so that
//! the entry of page `n` is at `tables + 8 * n`, then the directories. Accessed and dirty bits are set
//! from the start, so that running a guest changes no page table.

use holm_hostcall::{
    BOOT_ADDR, CALL_ADDR, HOSTCALL_VECTOR, IDT_ADDR, KERNEL_ADDR, KERNEL_END, LOG_ADDR,
    LOG_CAPACITY_BYTES, LogHeader, PAGE_BYTES, STUB_ADDR, STUB_ENTRY_BYTES, STUB_HOSTCALL_ADDR,
    STUB_SCRATCH_ADDR, STUB_STACK_ADDR, TABLES_ADDR, TSS_OFFSET, selector,
};

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
            // NX stays set, so that the stub's protection gate knows the page for data.
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
    /// Where the page tables begin: the end of program memory.
    pub(crate) tables: u64,
    leaf_tables: u64,
    directories: u64,
}

impl Layout {
    /// `program_start` is a page.
    pub(crate) fn new(program_start: u64, memory_bytes: u64) -> Self {
        let program_bytes = memory_bytes.next_multiple_of(PAGE_BYTES);
        let tables = program_start + program_bytes;
        let reach = ENTRIES * PAGE_BYTES;
        let (mut leaf_tables, mut directories) = (0, 0);
        // The tables map themselves too, so their number depends on itself.
        loop {
            let end = tables + (leaf_tables + directories + 2) * PAGE_BYTES;
            let (leaves, dirs) = (end.div_ceil(reach), end.div_ceil(reach * ENTRIES));
            if (leaves, dirs) == (leaf_tables, directories) {
                return Layout {
                    program_start,
                    program_bytes,
                    tables,
                    leaf_tables,
                    directories,
                };
            }
            (leaf_tables, directories) = (leaves, dirs);
        }
    }

    /// Bytes of the whole guest.
    pub(crate) fn total_bytes(&self) -> u64 {
        self.pml4() + PAGE_BYTES
    }

    /// For CR3.
    pub(crate) fn pml4(&self) -> u64 {
        self.tables + (self.leaf_tables + self.directories + 1) * PAGE_BYTES
    }

    /// Address of the page table entry of program memory's first page.
    pub(crate) fn program_entries(&self) -> u64 {
        self.tables + self.program_start / PAGE_BYTES * ENTRY_BYTES
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
        let log_bytes = size_of::<LogHeader>() as u64 + LOG_CAPACITY_BYTES;
        let mut ranges = vec![
            fixed(TABLES_ADDR, 1, Access::Supervisor),
            fixed(IDT_ADDR, 1, Access::Supervisor),
            fixed(STUB_STACK_ADDR, 1, Access::Supervisor),
            fixed(STUB_SCRATCH_ADDR, 1, Access::Supervisor),
            fixed(STUB_ADDR, 1, Access::SupervisorCode),
            fixed(BOOT_ADDR, 1, Access::Read),
            fixed(CALL_ADDR, 1, Access::Write),
            fixed(LOG_ADDR, log_bytes.div_ceil(PAGE_BYTES), Access::Write),
        ];
        ranges.extend_from_slice(kernel);
        ranges.push(Range {
            start: self.program_start,
            end: self.tables,
            access: Access::Write,
        });
        ranges.extend_from_slice(program);
        ranges.push(Range {
            start: self.tables,
            end: self.total_bytes(),
            access: Access::Supervisor,
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

        // Directories allow everything: the leaves decide.
        let table = |at: u64| (at | PRESENT | WRITE | USER | ACCESSED).to_le_bytes();
        let directories = self.tables + self.leaf_tables * PAGE_BYTES;
        for leaf in 0..self.leaf_tables {
            let entry = table(self.tables + leaf * PAGE_BYTES);
            memory.write(directories + leaf * ENTRY_BYTES, &entry)?;
        }
        let pointers = directories + self.directories * PAGE_BYTES;
        for directory in 0..self.directories {
            let entry = table(directories + directory * PAGE_BYTES);
            memory.write(pointers + directory * ENTRY_BYTES, &entry)?;
        }
        memory.write(self.pml4(), &table(pointers))
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

        let pages = self.program_bytes / PAGE_BYTES;
        memory.write(STUB_SCRATCH_ADDR, &pages.to_le_bytes())?;
        memory.write(STUB_SCRATCH_ADDR + 8, &self.program_entries().to_le_bytes())?;
        memory.write(STUB_SCRATCH_ADDR + 16, &self.program_start.to_le_bytes())?;
        // For the PVH entry, which has no host to set CR3.
        memory.write(STUB_SCRATCH_ADDR + 24, &self.pml4().to_le_bytes())
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
    /// Whether the guest itself could write to every page of a range: the host writes nowhere else on
    /// its behalf, so that code stays what it is. Page tables are written by host and stub alone.
    pub(crate) fn is_writable(
        &self,
        memory: &GuestMemory,
        start: u64,
        end: u64,
    ) -> Result<bool, VmmError> {
        let wanted = PRESENT | WRITE | USER;
        for page in start / PAGE_BYTES..end.div_ceil(PAGE_BYTES) {
            if memory.read_u64(self.tables + page * ENTRY_BYTES)? & wanted != wanted {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether a guest may give a range as a buffer: it lies in the library OS or in program memory.
    pub(crate) fn is_buffer(&self, start: u64, end: u64) -> bool {
        (start >= KERNEL_ADDR && end <= KERNEL_END)
            || (start >= self.program_start && end <= self.tables)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_reach_to_their_own_end_for_every_size() {
        for memory_bytes in [1 << 20, 64 << 20, 1 << 30, (1 << 30) - 4096, 4 << 30] {
            let layout = Layout::new(0x40_0000, memory_bytes);
            let reach = layout.leaf_tables * ENTRIES * PAGE_BYTES;
            assert!(layout.total_bytes() <= reach, "{memory_bytes}");
            assert!(
                layout.directories * ENTRIES >= layout.leaf_tables,
                "{memory_bytes}"
            );
            assert!(layout.stack_bytes() < memory_bytes, "{memory_bytes}");
        }
    }
}
