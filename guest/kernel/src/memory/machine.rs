//! What memory operations do to the machine, behind a trait, so that the bookkeeping is tested
//! without one.

use holm_hostcall::{PAGE_BYTES, TABLES_ALIAS, page_operation as operation};

use crate::{host, log};

/// What the page tables let user mode do, as the stub's page gate counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// Nothing.
    None = operation::CLOSE as isize,
    /// Read.
    Read = operation::READ as isize,
    /// Read and write.
    Write = operation::WRITE as isize,
    /// Read and execute.
    Execute = operation::EXECUTE as isize,
}

/// What the program wants to do with a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Touch {
    /// Read it.
    Read,
    /// Write to it.
    Write,
    /// Execute it.
    Fetch,
}

impl Protection {
    /// Whether it allows that.
    pub(super) fn allows(self, touch: Touch) -> bool {
        match self {
            Protection::None => false,
            Protection::Read => touch == Touch::Read,
            Protection::Write => touch != Touch::Fetch,
            Protection::Execute => touch != Touch::Write,
        }
    }
}

/// Effects on the machine. Slots are page table entries, by address.
pub trait Machine {
    /// Makes bytes of program memory zero; they are mapped read/write.
    fn zero(&mut self, start: u64, bytes: u64);
    /// Whether a page of program memory is zero.
    fn is_zero(&self, page: u64) -> bool;
    /// Copies between two mapped ranges that do not overlap.
    fn copy(&mut self, from: u64, to: u64, bytes: u64);
    /// Notes that the program asked for so much in vain.
    fn refused(&mut self, bytes: u64);
    /// The entry in a slot, or in a slot of a directory.
    fn entry(&self, slot: u64) -> u64;
    /// Changes the protection of `count` pages of program memory; `false` if the stub refuses.
    fn protect(&mut self, slot: u64, count: u64, protection: Protection) -> bool;
    /// The same for pages of the sparse space, all of which are backed.
    fn protect_sparse(&mut self, slot: u64, count: u64, protection: Protection) -> bool;
    /// Makes `count` entries of the sparse tables, which are zero, what the ones at `source` are.
    fn map(&mut self, slot: u64, source: u64, count: u64) -> bool;
    /// Makes `count` entries of the sparse tables zero, or one of a directory or a pointer.
    fn unmap(&mut self, slot: u64, count: u64) -> bool;
    /// Enters a directory into the pointers.
    fn link_directory(&mut self, slot: u64, directory: u64) -> bool;
    /// Enters a table into a directory.
    fn link_table(&mut self, slot: u64, table: u64) -> bool;
}

/// The guest itself.
#[derive(Debug)]
pub struct Guest {
    /// The first page table.
    tables: u64,
}

/// The guest itself.
pub fn guest() -> Guest {
    Guest {
        tables: host::tables(),
    }
}

impl Machine for Guest {
    fn zero(&mut self, start: u64, bytes: u64) {
        let start = core::ptr::with_exposed_provenance_mut::<u8>(start as usize);
        // SAFETY: `Memory` calls this for pages of program memory that belong to no one, or that the
        // program gives up.
        unsafe { start.write_bytes(0, bytes as usize) };
    }

    fn is_zero(&self, page: u64) -> bool {
        const WORDS: usize = PAGE_BYTES as usize / size_of::<u64>();
        let page = core::ptr::with_exposed_provenance::<[u64; WORDS]>(page as usize);
        // SAFETY: `Memory` asks for whole pages of program memory that back something, and nothing writes to them
        // meanwhile.
        unsafe { &*page }.iter().all(|word| *word == 0)
    }

    fn copy(&mut self, from: u64, to: u64, bytes: u64) {
        let from = core::ptr::with_exposed_provenance::<u8>(from as usize);
        let to = core::ptr::with_exposed_provenance_mut::<u8>(to as usize);
        // SAFETY: both ranges are mappings of the program, and do not overlap.
        unsafe { to.copy_from_nonoverlapping(from, bytes as usize) };
    }

    fn refused(&mut self, bytes: u64) {
        log::memory_refused(bytes);
    }

    fn entry(&self, slot: u64) -> u64 {
        let alias = TABLES_ALIAS + (slot - self.tables);
        // SAFETY: all page tables can be read there; `Memory` asks for slots in them. Volatile, because
        // the stub changes them.
        unsafe { core::ptr::with_exposed_provenance::<u64>(alias as usize).read_volatile() }
    }

    fn protect(&mut self, slot: u64, count: u64, protection: Protection) -> bool {
        host::change_pages(slot, 0, protection as u64, count)
    }

    fn protect_sparse(&mut self, slot: u64, count: u64, protection: Protection) -> bool {
        host::change_pages(slot, 0, operation::SPARSE + protection as u64, count)
    }

    fn map(&mut self, slot: u64, source: u64, count: u64) -> bool {
        host::change_pages(slot, source, operation::MAP, count)
    }

    fn unmap(&mut self, slot: u64, count: u64) -> bool {
        host::change_pages(slot, 0, operation::UNMAP, count)
    }

    fn link_directory(&mut self, slot: u64, directory: u64) -> bool {
        host::change_pages(slot, directory, operation::LINK_DIRECTORY, 1)
    }

    fn link_table(&mut self, slot: u64, table: u64) -> bool {
        host::change_pages(slot, table, operation::LINK_TABLE, 1)
    }
}
