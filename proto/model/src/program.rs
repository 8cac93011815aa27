//! The program of a function: a static x86-64 ELF whose every segment has been checked.

/// A program that the guest can be given. Borrowing nothing, cheap to clone.
#[derive(Clone, Debug)]
pub struct Program {
    /// The ELF file.
    pub bytes: std::sync::Arc<[u8]>,
    /// Entry point, before relocation.
    pub entry: u64,
    /// A static PIE: to be loaded at a base of the host's choice.
    pub relocatable: bool,
    /// The segments to load, in rising order, not overlapping.
    pub segments: Vec<Segment>,
    /// Address of the program headers in memory (before relocation), for AT_PHDR.
    pub headers_addr: u64,
    /// Number of program headers, for AT_PHNUM.
    pub headers_count: u16,
}

/// A part of the file to be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where in memory, before relocation.
    pub addr: u64,
    /// Bytes in memory.
    pub memory_bytes: u64,
    /// Where in the file.
    pub file_offset: u64,
    /// Bytes from the file; the rest of memory is zero.
    pub file_bytes: u64,
    /// Writable.
    pub write: bool,
    /// Executable; never together with `write`.
    pub execute: bool,
}
