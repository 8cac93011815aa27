//! The program of a function: a static x86-64 ELF whose every segment has been checked.
//!
//! Two kinds are taken: static executables at fixed addresses (`ET_EXEC`) and static PIEs (`ET_DYN`
//! without an interpreter or needed libraries). Everything else is refused here, before a guest or
//! even a node sees it, with a text that says what the file is and how to make it a program. The
//! bytes come from a tenant: nothing in them is believed before it is checked.

mod refusal;

use std::sync::Arc;

use object::elf;
use object::endian::LittleEndian;
use object::read::elf::{FileHeader as _, ProgramHeader as _};

use crate::limits::{MAX_ARTIFACT_BYTES, MAX_MEMORY_BYTES, MAX_PROGRAM_HEADERS};
pub use refusal::ProgramError;

type Header = elf::FileHeader64<LittleEndian>;
type ProgramHeader = elf::ProgramHeader64<LittleEndian>;

const E: LittleEndian = LittleEndian;
const PAGE_BYTES: u64 = holm_hostcall::PAGE_BYTES;
/// Lowest address of a program that is not relocatable.
pub const LOWEST_ADDR: u64 = holm_hostcall::PROGRAM_ADDR;
/// First address that no program may use.
pub const END_ADDR: u64 = LOWEST_ADDR + MAX_MEMORY_BYTES;

/// A program that the guest can be given. Borrowing nothing, cheap to clone.
#[derive(Clone, Debug)]
pub struct Program {
    /// The ELF file.
    pub bytes: Arc<[u8]>,
    /// Entry point, before relocation. It lies within an executable segment.
    pub entry: u64,
    /// A static PIE: to be loaded at a base of the host's choice, which is a multiple of
    /// [`Program::align`].
    pub relocatable: bool,
    /// The segments to load, in rising order, not overlapping. None is writable and executable, nor
    /// does a writable one share a page with an executable one. Ends are at most [`END_ADDR`] (for
    /// a relocatable program: within [`MAX_MEMORY_BYTES`] from 0).
    pub segments: Vec<Segment>,
    /// Whether its stack may be executed.
    pub executable_stack: bool,
    /// Largest alignment of a segment: a power of two, at least a page.
    pub align: u64,
    /// Address of the program headers in memory (before relocation), for `AT_PHDR`; 0 if no segment
    /// holds them.
    pub headers_addr: u64,
    /// Number of program headers, for `AT_PHNUM`.
    pub headers_count: u16,
}

/// A part of the file to be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where in memory, before relocation.
    pub addr: u64,
    /// Bytes in memory, never 0; `addr + memory_bytes` does not overflow.
    pub memory_bytes: u64,
    /// Where in the file; `file_offset + file_bytes` is within the file.
    pub file_offset: u64,
    /// Bytes from the file, at most `memory_bytes`; the rest of memory is zero.
    pub file_bytes: u64,
    /// Writable.
    pub write: bool,
    /// Executable; never together with `write`.
    pub execute: bool,
}

impl Segment {
    /// First address after it.
    pub fn end(&self) -> u64 {
        // Parsing refuses segments for which this would overflow.
        self.addr.saturating_add(self.memory_bytes)
    }

    fn first_page(&self) -> u64 {
        self.addr / PAGE_BYTES
    }

    fn last_page(&self) -> u64 {
        self.end().saturating_sub(1) / PAGE_BYTES
    }
}

impl Program {
    /// Reads `bytes` and checks that the guest can be given them.
    pub fn parse(bytes: &[u8]) -> Result<Program, ProgramError> {
        if bytes.len() as u64 > MAX_ARTIFACT_BYTES {
            return Err(ProgramError::TooLarge {
                bytes: bytes.len() as u64,
            });
        }
        let header = file_header(bytes)?;
        let count = usize::from(header.e_phnum.get(E));
        if count > MAX_PROGRAM_HEADERS {
            return Err(ProgramError::TooManyHeaders { count });
        }
        let relocatable = header.e_type.get(E) == elf::ET_DYN;
        let headers: &[ProgramHeader] = header
            .program_headers(E, bytes)
            .map_err(|_| ProgramError::Damaged("its program headers lie outside the file"))?;
        let mut segments = load_segments(headers, bytes.len() as u64)?;
        refuse_dynamic(headers, &segments, bytes)?;
        check_layout(&mut segments, relocatable)?;
        let entry = header.e_entry.get(E);
        let executable =
            |segment: &Segment| segment.execute && (segment.addr..segment.end()).contains(&entry);
        if !segments.iter().any(executable) {
            return Err(ProgramError::Entry { entry, relocatable });
        }
        Ok(Program {
            entry,
            relocatable,
            align: largest_align(headers)?,
            headers_addr: headers_addr(header.e_phoff.get(E), count, &segments),
            headers_count: header.e_phnum.get(E),
            segments,
            executable_stack: has_executable_stack(headers),
            bytes: bytes.into(),
        })
    }

    /// The part of the file that `segment` is loaded from.
    pub fn segment_bytes(&self, segment: &Segment) -> &[u8] {
        let range = usize::try_from(segment.file_offset).ok().and_then(|start| {
            let end = start.checked_add(usize::try_from(segment.file_bytes).ok()?)?;
            self.bytes.get(start..end)
        });
        // Parsing checked the range; a segment of another program has no bytes here.
        range.unwrap_or_default()
    }

    /// The least memory limit under which the program's segments have room, without a stack or
    /// heap.
    pub fn least_memory_bytes(&self) -> u64 {
        let end = self.segments.iter().map(Segment::end).max().unwrap_or(0);
        end.saturating_sub(self.start_page())
            .next_multiple_of(PAGE_BYTES)
    }

    /// The page of the lowest segment, before relocation: where program memory begins.
    pub fn start_page(&self) -> u64 {
        let start = self
            .segments
            .iter()
            .map(|segment| segment.addr)
            .min()
            .unwrap_or(0);
        start - start % PAGE_BYTES
    }
}

/// Checks what kind of file this is.
fn file_header(bytes: &[u8]) -> Result<&Header, ProgramError> {
    let Some(ident) = bytes
        .first_chunk::<16>()
        .filter(|ident| ident.starts_with(&elf::ELFMAG))
    else {
        return Err(ProgramError::NotElf {
            looks_like: refusal::looks_like(bytes),
        });
    };
    if ident[4] != elf::ELFCLASS64 {
        return Err(ProgramError::WrongClass);
    }
    if ident[5] != elf::ELFDATA2LSB {
        return Err(ProgramError::BigEndian);
    }
    let header = Header::parse(bytes)
        .map_err(|_| ProgramError::Damaged("its header is cut short or of an unknown version"))?;
    let machine = header.e_machine.get(E);
    if machine != elf::EM_X86_64 {
        return Err(ProgramError::WrongMachine {
            machine: refusal::machine(machine),
        });
    }
    match header.e_type.get(E) {
        elf::ET_EXEC | elf::ET_DYN => Ok(header),
        other => Err(ProgramError::WrongKind {
            kind: refusal::kind(other),
        }),
    }
}

/// The segments that are to be loaded, each checked alone.
fn load_segments(headers: &[ProgramHeader], file: u64) -> Result<Vec<Segment>, ProgramError> {
    let mut segments = Vec::new();
    for header in headers
        .iter()
        .filter(|header| header.p_type(E) == elf::PT_LOAD)
    {
        let flags = header.p_flags(E);
        let segment = Segment {
            addr: header.p_vaddr(E),
            memory_bytes: header.p_memsz(E),
            file_offset: header.p_offset(E),
            file_bytes: header.p_filesz(E),
            write: flags & elf::PF_W != 0,
            execute: flags & elf::PF_X != 0,
        };
        let addr = segment.addr;
        if segment.file_bytes > segment.memory_bytes {
            return Err(ProgramError::SmallerThanFile { addr });
        }
        if segment.memory_bytes == 0 {
            continue;
        }
        if segment.memory_bytes > MAX_MEMORY_BYTES {
            return Err(ProgramError::HugeSegment {
                addr,
                bytes: segment.memory_bytes,
            });
        }
        if addr.checked_add(segment.memory_bytes).is_none() {
            return Err(ProgramError::WrapsAround {
                addr,
                bytes: segment.memory_bytes,
            });
        }
        let file_end = segment.file_offset.checked_add(segment.file_bytes);
        if segment.file_bytes > 0 && file_end.is_none_or(|end| end > file) {
            return Err(ProgramError::OutsideFile { addr });
        }
        if segment.write && segment.execute {
            return Err(ProgramError::WritableCode { addr });
        }
        segments.push(segment);
    }
    match segments.is_empty() {
        true => Err(ProgramError::NothingToLoad),
        false => Ok(segments),
    }
}

/// Checks the segments against each other and the guest's address space, and sorts them.
fn check_layout(segments: &mut [Segment], relocatable: bool) -> Result<(), ProgramError> {
    segments.sort_by_key(|segment| segment.addr);
    for pair in segments.windows(2) {
        let [before, after] = pair else { continue };
        if before.end() > after.addr {
            return Err(ProgramError::Overlap {
                first: before.addr,
                second: after.addr,
            });
        }
    }
    // Segments are few, and one page may be shared by more than two.
    for (index, writable) in segments
        .iter()
        .enumerate()
        .filter(|(_, segment)| segment.write)
    {
        let shares = |other: &Segment| {
            other.execute
                && other.first_page() <= writable.last_page()
                && writable.first_page() <= other.last_page()
        };
        if segments
            .iter()
            .enumerate()
            .any(|(other, segment)| other != index && shares(segment))
        {
            return Err(ProgramError::WritableCode {
                addr: writable.addr,
            });
        }
    }
    let (lowest, end) = match relocatable {
        true => (0, MAX_MEMORY_BYTES),
        false => (LOWEST_ADDR, END_ADDR),
    };
    for segment in segments.iter() {
        if segment.addr < lowest || segment.end() > end {
            return Err(ProgramError::OutsideMemory {
                addr: segment.addr,
                end: segment.end(),
                lowest,
                limit: end,
            });
        }
    }
    Ok(())
}

/// Whether a program is built to execute what is on its stack, as functions within functions of C and Ada do.
fn has_executable_stack(headers: &[ProgramHeader]) -> bool {
    let mut stacks = headers
        .iter()
        .filter(|one| one.p_type(E) == elf::PT_GNU_STACK);
    stacks.any(|header| header.p_flags(E) & elf::PF_X != 0)
}

/// A program that needs a loader or libraries has none in the guest.
fn refuse_dynamic(
    headers: &[ProgramHeader],
    segments: &[Segment],
    bytes: &[u8],
) -> Result<(), ProgramError> {
    let of_type = |kind| headers.iter().find(|header| header.p_type(E) == kind);
    let needed = match of_type(elf::PT_DYNAMIC) {
        Some(dynamic) => needed_libraries(dynamic, segments, bytes)?,
        None => Needed::default(),
    };
    if of_type(elf::PT_INTERP).is_some() || needed.count > 0 {
        return Err(ProgramError::Dynamic {
            needed: needed.names,
        });
    }
    Ok(())
}

/// Libraries that a program asks for: their number and the names that could be read.
#[derive(Default)]
struct Needed {
    count: usize,
    names: Vec<String>,
}

/// Reads `DT_NEEDED` entries; the names are for the error text only.
fn needed_libraries(
    dynamic: &ProgramHeader,
    segments: &[Segment],
    bytes: &[u8],
) -> Result<Needed, ProgramError> {
    /// More names than a person wants to read.
    const MAX_NAMES: usize = 16;
    /// More of one than a person wants to read.
    const MAX_NAME_BYTES: usize = 128;

    let entries: &[elf::Dyn64<LittleEndian>] = dynamic
        .dynamic(E, bytes)
        .map_err(|_| ProgramError::Damaged("its dynamic section lies outside the file"))?
        .unwrap_or_default();
    let end = entries
        .iter()
        .position(|entry| entry.d_tag.get(E) == u64::from(elf::DT_NULL));
    let entries = entries
        .get(..end.unwrap_or(entries.len()))
        .unwrap_or_default();
    let value = |tag: u32| {
        let entry = entries
            .iter()
            .find(|entry| entry.d_tag.get(E) == u64::from(tag));
        entry.map(|entry| entry.d_val.get(E))
    };
    let strings = value(elf::DT_STRTAB).and_then(|addr| bytes_at(addr, segments, bytes));
    let name = |offset: u64| {
        let rest = strings?.get(usize::try_from(offset).ok()?..)?;
        let name = rest.split(|byte| *byte == 0).next()?;
        let name = name.get(..MAX_NAME_BYTES).unwrap_or(name);
        Some(String::from_utf8_lossy(name).into_owned())
    };
    let needed = || {
        entries
            .iter()
            .filter(|e| e.d_tag.get(E) == u64::from(elf::DT_NEEDED))
    };
    Ok(Needed {
        count: needed().count(),
        names: needed()
            .take(MAX_NAMES)
            .filter_map(|entry| name(entry.d_val.get(E)))
            .collect(),
    })
}

/// The file's bytes from the one that is loaded at `addr` on.
fn bytes_at<'b>(addr: u64, segments: &[Segment], bytes: &'b [u8]) -> Option<&'b [u8]> {
    let segment = segments
        .iter()
        .find(|segment| addr >= segment.addr && addr - segment.addr < segment.file_bytes)?;
    let start = segment.file_offset.checked_add(addr - segment.addr)?;
    bytes.get(usize::try_from(start).ok()?..)
}

/// Where the program headers are in memory, as Linux derives it for `AT_PHDR`.
fn headers_addr(offset: u64, count: usize, segments: &[Segment]) -> u64 {
    let bytes = (count * size_of::<ProgramHeader>()) as u64;
    let holds = |segment: &&Segment| {
        let within = offset.checked_sub(segment.file_offset);
        within
            .and_then(|within| within.checked_add(bytes))
            .is_some_and(|end| end <= segment.file_bytes)
    };
    let segment = segments.iter().find(holds);
    segment.map_or(0, |segment| segment.addr + (offset - segment.file_offset))
}

fn largest_align(headers: &[ProgramHeader]) -> Result<u64, ProgramError> {
    let loads = headers
        .iter()
        .filter(|header| header.p_type(E) == elf::PT_LOAD);
    let mut largest = PAGE_BYTES;
    for header in loads {
        let align = header.p_align(E).max(1);
        // Linkers go up to 2 MiB; more would leave a hole of that size in the guest's memory.
        if !align.is_power_of_two() || align > 1 << 30 {
            return Err(ProgramError::Damaged(
                "a segment's alignment is not a power of two up to 1 GiB",
            ));
        }
        largest = largest.max(align);
    }
    Ok(largest)
}

#[cfg(test)]
mod tests;
