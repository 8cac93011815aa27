//! Snapshots: memory and vCPU state of a program that waits for its first request.
//!
//! The memory is a sparse file: an anonymous one after a boot, or a part of a file on disk. Instances
//! map it copy-on-write, so all of them share the page cache. On disk:
//!
//! ```text
//! 0        magic "HOLMSNAP" | version u32 | header bytes u32 | SHA-256
//! 48       header (JSON): what it fits, registers, where the program waits
//! 64 KiB   memory, sparse
//! …        names of the program's functions
//! ```
//! The checksum covers the header, every page that is not zero with its place, and the names. It is
//! verified when a file is loaded, never on a request's path.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::mem::offset_of;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use holm_hostcall::{ABI_VERSION, BOOT_ADDR, BootPage, PAGE_BYTES, TABLES_ALIAS, boot_flags};
use holm_model::limits::{MAX_ARTIFACT_BYTES, MAX_MEMORY_BYTES, MIN_MEMORY_BYTES};
use holm_model::program::{END_ADDR, LOWEST_ADDR};
use kvm_bindings::kvm_regs;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::chunks::Chunks;
use crate::cpu::{self, CpuState};
use crate::hostcall::{Buffer, Offer};
use crate::image::Image;
use crate::layout::Layout;
use crate::memory::{self, GuestMemory, Sharing};
use crate::restore::{Choice, Measured, Sets, Stored as StoredChoice, Strategy};
use crate::symbols::Symbols;
use crate::unwind::FrameTables;
use crate::{Hypervisor, RequestPlace, VmmError};

const MAGIC: &[u8; 8] = b"HOLMSNAP";
/// Version of the format on disk.
const VERSION: u32 = 7;
const HEADER_AT: u64 = 48;
const MEMORY_AT: u64 = 64 << 10;
/// Zeroes of no more than this between other pages are mapped with them: each part is a mapping of its own.
const MIN_GAP_BYTES: u64 = 64 << 10;
/// Most such parts. The mappings of a process are limited (vm.max_map_count), and what a program leaves in its
/// memory is the program's choice.
const MAX_PARTS: usize = 32;
/// Most bytes of function names in a file.
const MAX_SYMBOL_BYTES: u64 = 64 << 20;

/// A snapshot cannot be written or used.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The file system refused.
    #[error("the snapshot {path} cannot be {operation}: {error}")]
    Io {
        /// `written` or `read`.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
    /// The file is not a snapshot, or not the one that was written.
    #[error("the snapshot {path} is damaged: {problem}; it will have to be made again")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// It was made for something else.
    #[error("the snapshot {path} was made {problem}; it will have to be made again")]
    Unfit {
        /// The file.
        path: PathBuf,
        /// For what.
        problem: &'static str,
    },
}

/// Memory and vCPU state of a program that is ready for its first request.
#[derive(Debug)]
pub struct Snapshot {
    /// Never the same twice in a process.
    pub(crate) id: u64,
    pub(crate) layout: Layout,
    pub(crate) state: CpuState,
    /// The buffer that the program waits with.
    pub(crate) wait: Buffer,
    pub(crate) symbols: Symbols,
    /// Of which guest it is, as it was told.
    name: String,
    /// The pristine pages, read only.
    pub(crate) pristine: GuestMemory,
    /// What its requests use.
    pub(crate) sets: Sets,
    /// What that costs by one strategy and another, once that was measured, and which is chosen.
    pub(crate) measured: OnceLock<Measured>,
    pub(crate) choice: OnceLock<Choice>,
    /// Whether instances are kept from one request to the next.
    pub(crate) kept: bool,
    /// Which of its memory is backed by large pages.
    pub(crate) chunks: Chunks,
    /// What of it is mapped from the file; the rest is zero, or fixed.
    parts: Vec<(u64, u64)>,
    stored: Stored,
    cpu_digest: [u8; 32],
}

/// What a snapshot's file says of it.
#[derive(Clone, Debug)]
pub struct Told {
    /// Of which guest it is: `tenant/function` on a node.
    pub name: String,
    /// How its instances are restored and reset, if that was measured.
    pub choice: Option<Choice>,
}

/// Where the memory is: a part of a file.
#[derive(Debug)]
struct Stored {
    file: File,
    offset: u64,
    /// The pages that are not zero, without those that are fixed, which are the image's in every guest.
    own: Pages,
    /// Digest of the page tables above the leaf tables, and of the entries of what is fixed.
    upper_tables: [u8; 32],
}

/// What is found out of a memory, page by page.
#[derive(Default)]
struct Contents {
    own: Pages,
    upper_tables: Sha256,
}

impl Contents {
    fn of_file(self, file: File, offset: u64) -> Stored {
        Stored {
            file,
            offset,
            own: self.own,
            upper_tables: self.upper_tables.finalize().into(),
        }
    }

    fn add(&mut self, layout: &Layout, at: u64, page: &[u8]) {
        let fixed = Image::get().fixed();
        if !fixed.contains(&at) {
            self.own.push(at);
        }
        let (start, end) = layout.upper_tables();
        if (start..end).contains(&at) {
            hash_page(&mut self.upper_tables, at, page);
        }
        if at == layout.first_leaf().0 {
            let entry = |addr: u64| (addr / PAGE_BYTES * size_of::<u64>() as u64) as usize;
            hash_page(
                &mut self.upper_tables,
                at,
                &page[entry(fixed.start)..entry(fixed.end)],
            );
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    name: String,
    abi_version: u32,
    kernel_image: String,
    cpu: String,
    program_start: u64,
    memory_bytes: u64,
    files_bytes: u64,
    registers: [u64; 18],
    fs_base: u64,
    gs_base: u64,
    wait_addr: u64,
    wait_bytes: u64,
    /// The program's call frame information.
    frames: FrameTables,
    symbol_bytes: u64,
    restore: Option<StoredChoice>,
}

impl Snapshot {
    /// From the memory file and the state of a guest that waits.
    pub(crate) fn capture(
        hypervisor: &Hypervisor,
        name: &str,
        file: File,
        layout: Layout,
        state: CpuState,
        wait: Buffer,
        symbols: Symbols,
    ) -> Result<Arc<Self>, VmmError> {
        let mut contents = Contents::default();
        for_each_page(&file, 0, &layout, |at, page| {
            contents.add(&layout, at, page);
            Ok(())
        })
        .map_err(VmmError::memory("looking for what is zero in a snapshot"))?;
        let stored = contents.of_file(file, 0);
        let cpu_digest = hypervisor.inner.cpu_digest;
        let name = name.to_owned();
        Self::assemble(name, stored, layout, state, wait, symbols, cpu_digest)
    }

    fn assemble(
        name: String,
        stored: Stored,
        layout: Layout,
        state: CpuState,
        wait: Buffer,
        symbols: Symbols,
        cpu_digest: [u8; 32],
    ) -> Result<Arc<Self>, VmmError> {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        let bytes = layout.total_bytes();
        let pristine = GuestMemory::map(&stored.file, stored.offset, bytes, Sharing::ReadOnly)?;
        if !Image::get().is_in(&pristine)? {
            return Err(VmmError::Misuse(
                "a guest whose library OS is not the image's",
            ));
        }
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        let program = layout.program_start..layout.program_end();
        let mut flags = [0; 4];
        pristine.read(BOOT_ADDR + offset_of!(BootPage, flags) as u64, &mut flags)?;
        let kept = u32::from_le_bytes(flags) & boot_flags::SHARED != 0;
        let parts = stored.own.parts(&Image::get().fixed());
        let chunks = Chunks::new(program, parts.iter().copied(), kept);
        let snapshot = Snapshot {
            id,
            name,
            layout,
            state,
            wait,
            symbols,
            pristine,
            sets: Sets::default(),
            measured: OnceLock::new(),
            choice: OnceLock::new(),
            kept,
            parts,
            chunks,
            stored,
            cpu_digest,
        };
        Ok(Arc::new(snapshot))
    }

    /// How a new instance takes its first request.
    pub(crate) fn first_offer(&self) -> Offer {
        Offer {
            buffer: self.wait,
            place: RequestPlace::FIRST,
        }
    }

    /// Maps what it holds into an instance's memory, where there are zeroes now.
    pub(crate) fn lay(&self, memory: &GuestMemory) -> Result<(), VmmError> {
        let parts = self.parts.iter().copied();
        memory.lay(&self.stored.file, self.stored.offset, parts)
    }

    /// The parts of memory in which it holds something, and no more of them than a process has mappings for.
    pub(crate) fn parts(&self) -> &[(u64, u64)] {
        &self.parts
    }

    /// Copies what it holds into memory where there are zeroes now.
    pub(crate) fn copy_to(&self, memory: &GuestMemory) -> Result<(), VmmError> {
        for (start, end) in self.own_pages() {
            memory.copy_from(&self.pristine, *start, end - start)?;
        }
        Ok(())
    }

    /// What it holds, in whole pages from and up to, but for what is fixed.
    pub(crate) fn own_pages(&self) -> &[(u64, u64)] {
        &self.stored.own.0
    }

    /// How much that is.
    pub(crate) fn own_bytes(&self) -> u64 {
        self.own_pages()
            .iter()
            .map(|(start, end)| end - start)
            .sum()
    }

    /// The same without what the other holds as well.
    pub(crate) fn own_pages_outside(&self, other: &Snapshot) -> Vec<(u64, u64)> {
        let mut outside = Vec::new();
        for &(start, end) in self.own_pages() {
            let mut at = start;
            for (from, to) in other.stored.own.within(start, end) {
                outside.push((at, from));
                at = to;
            }
            outside.push((at, end));
        }
        outside.retain(|(start, end)| start < end);
        outside
    }

    /// Whether it holds something between two addresses.
    pub(crate) fn has_own_in(&self, start: u64, end: u64) -> bool {
        self.stored.own.within(start, end).next().is_some()
    }

    /// The large pages that it fills by half at least.
    pub(crate) fn large_parts(&self) -> impl Iterator<Item = (u64, u64)> {
        const LARGE: u64 = 2 << 20;
        let end = self.layout.program_end() / LARGE;
        // What is fixed is in the first, which is none therefore.
        let first = Image::get().fixed().end.div_ceil(LARGE);
        let pages = (first..end).map(|index| (index * LARGE, (index + 1) * LARGE));
        pages.filter(|(start, end)| {
            let held = self.stored.own.within(*start, *end);
            held.map(|(from, to)| to - from).sum::<u64>() >= LARGE / 2
        })
    }

    /// The leaf tables that hold something.
    pub(crate) fn leaf_tables(&self) -> impl Iterator<Item = u64> {
        let own = |(start, end)| self.stored.own.within(start, end);
        let runs = own(self.layout.leaves()).chain(own(self.layout.sparse_leaves()));
        runs.flat_map(|(start, end)| (start..end).step_by(PAGE_BYTES as usize))
    }

    /// Addresses at which its guest can touch, by reading, what its requests were found to touch.
    pub(crate) fn touched_addrs(&self) -> impl Iterator<Item = u64> {
        let (tables, end) = self.layout.all_tables();
        let runs = self.sets.touched.get().into_iter().flatten();
        let pages = runs.flat_map(|run| (run.start..run.end).step_by(PAGE_BYTES as usize));
        pages.map(move |page| match (tables..end).contains(&page) {
            true => TABLES_ALIAS + (page - tables),
            false => page,
        })
    }

    /// Whether a page of an instance's memory is what it is in the snapshot.
    pub(crate) fn is_pristine(&self, memory: &GuestMemory, page: u64) -> Result<bool, VmmError> {
        let (mut here, mut there) = ([0; PAGE_BYTES as usize], [0; PAGE_BYTES as usize]);
        memory.read(page, &mut here)?;
        self.pristine.read(page, &mut there)?;
        Ok(here == there)
    }

    /// Whether its leaf page tables lie where the other's do, and are reached by the same ones above them.
    pub(crate) fn has_tables_of(&self, other: &Snapshot) -> bool {
        self.layout == other.layout && self.stored.upper_tables == other.stored.upper_tables
    }

    /// Makes whole pages of an instance's memory what they were. What was zero is not read: that would only
    /// fill the caches.
    pub(crate) fn put_back(
        &self,
        memory: &GuestMemory,
        start: u64,
        end: u64,
    ) -> Result<(), VmmError> {
        let mut at = start;
        for (from, to) in self.stored.own.within(start, end) {
            memory.zero(at, from - at)?;
            memory.copy_from(&self.pristine, from, to - from)?;
            at = to;
        }
        memory.zero(at, end - at)
    }

    /// How its instances are restored and reset, unless that is measured and chosen.
    pub(crate) fn strategy(&self) -> Strategy {
        let choice = self.choice.get();
        choice.map_or(Strategy::WorkingSet, |choice| choice.strategy)
    }

    /// How its instances are restored and reset, and what that was found to cost here, once that is chosen.
    pub fn choice(&self) -> Option<&Choice> {
        self.choice.get()
    }

    /// Whether that is not in the file that it was read from.
    pub fn choice_is_new(&self) -> bool {
        let both = self.measured.get().zip(self.choice.get());
        both.is_some_and(|(measured, choice)| measured.is_new(choice))
    }

    /// Bytes of program memory of its guests.
    pub fn memory_bytes(&self) -> u64 {
        self.layout.program_bytes
    }

    /// Bytes of guest memory that are not zero, as far as the file system knows: what it takes on disk.
    pub fn resident_bytes(&self) -> Result<u64, SnapshotError> {
        let end = self.stored.offset + self.layout.total_bytes();
        memory::data_extents(&self.stored.file, self.stored.offset, end)
            .map(|extents| extents.iter().map(|(start, end)| end - start).sum())
            .map_err(failed("read", Path::new("in memory")))
    }

    /// Writes it to `path`, atomically and synced: there is the whole file or none.
    pub fn save(&self, path: &Path) -> Result<(), SnapshotError> {
        let error = failed("written", path);
        let temporary = path.with_extension(format!("tmp-{}-{}", std::process::id(), self.id));
        let result = self.write_to(&temporary).and_then(|()| {
            fs::rename(&temporary, path)?;
            let folder = path
                .parent()
                .filter(|folder| !folder.as_os_str().is_empty());
            File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
        });
        result.map_err(|problem| {
            // What is left of it is of no use; if it is not there, so much the better.
            let _ = fs::remove_file(&temporary);
            error(problem)
        })
    }

    fn write_to(&self, path: &Path) -> io::Result<()> {
        let symbols = self.symbols.as_text();
        let registers = &self.state.regs;
        let header = Header {
            name: self.name.clone(),
            abi_version: ABI_VERSION,
            kernel_image: hex::encode(Image::get().digest),
            cpu: hex::encode(self.cpu_digest),
            program_start: self.layout.program_start,
            memory_bytes: self.layout.program_bytes,
            files_bytes: self.layout.files_bytes,
            registers: register_words(registers),
            fs_base: self.state.fs_base,
            gs_base: self.state.gs_base,
            wait_addr: self.wait.addr,
            wait_bytes: self.wait.bytes,
            frames: self.symbols.frames(),
            symbol_bytes: symbols.len() as u64,
            restore: StoredChoice::of(self),
        };
        let header = serde_json::to_vec(&header).map_err(io::Error::other)?;
        if HEADER_AT + header.len() as u64 > MEMORY_AT {
            return Err(io::Error::other("the header is too long"));
        }
        let mut hash = Sha256::new();
        hash.update(&header);
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)?;
        file.set_len(MEMORY_AT + self.layout.total_bytes())?;
        for_each_page(
            &self.stored.file,
            self.stored.offset,
            &self.layout,
            |at, page| {
                hash_page(&mut hash, at, page);
                file.write_all_at(page, MEMORY_AT + at)
            },
        )?;
        hash.update(symbols.as_bytes());
        file.write_all_at(symbols.as_bytes(), MEMORY_AT + self.layout.total_bytes())?;
        let mut start = Vec::with_capacity(HEADER_AT as usize);
        start.extend_from_slice(MAGIC);
        start.extend_from_slice(&VERSION.to_le_bytes());
        start.extend_from_slice(&(header.len() as u32).to_le_bytes());
        start.extend_from_slice(&hash.finalize());
        start.write_all(&header)?;
        file.write_all_at(&start, 0)?;
        file.sync_all()
    }

    /// What a file says of its snapshot. Nothing is verified.
    pub fn told(path: &Path) -> Result<Told, VmmError> {
        let (_, _, header) = read_header(path)?;
        let header: Header =
            serde_json::from_slice(&header).map_err(|_| SnapshotError::Damaged {
                path: path.into(),
                problem: "its header cannot be read".into(),
            })?;
        Ok(Told {
            name: header.name,
            choice: header.restore.map(StoredChoice::into_choice),
        })
    }

    /// Reads it from `path`, verifies its checksum and that it fits this CPU, kernel image and ABI.
    pub fn load(hypervisor: &Hypervisor, path: &Path) -> Result<Arc<Self>, VmmError> {
        let io = failed("read", path);
        let damaged = |problem: &str| SnapshotError::Damaged {
            path: path.into(),
            problem: problem.into(),
        };
        let unfit = |problem| SnapshotError::Unfit {
            path: path.into(),
            problem,
        };

        let (file, start, header) = read_header(path)?;
        let mut hash = Sha256::new();
        hash.update(&header);
        // A damaged header may fail to be read, or say anything; the checksum tells it apart from one
        // that was written by something else, but can only be computed with the sizes in it.
        let header: Header =
            serde_json::from_slice(&header).map_err(|_| damaged("its header cannot be read"))?;
        let sizes_good = (MIN_MEMORY_BYTES..=MAX_MEMORY_BYTES).contains(&header.memory_bytes)
            && header.memory_bytes.is_multiple_of(PAGE_BYTES)
            && (LOWEST_ADDR..END_ADDR).contains(&header.program_start)
            && header.program_start.is_multiple_of(PAGE_BYTES)
            && header.files_bytes <= MAX_ARTIFACT_BYTES
            && header.files_bytes.is_multiple_of(PAGE_BYTES)
            && header.symbol_bytes <= MAX_SYMBOL_BYTES;
        if !sizes_good {
            return Err(damaged("its header holds impossible sizes").into());
        }
        let layout = Layout::new(
            header.program_start,
            header.memory_bytes,
            header.files_bytes,
        );
        let memory_end = MEMORY_AT + layout.total_bytes();
        if file.metadata().map_err(&io)?.len() != memory_end + header.symbol_bytes {
            return Err(damaged("it has another size than its header says").into());
        }
        let mut contents = Contents::default();
        for_each_page(&file, MEMORY_AT, &layout, |at, page| {
            hash_page(&mut hash, at, page);
            contents.add(&layout, at, page);
            Ok(())
        })
        .map_err(&io)?;
        let mut symbols = vec![0; header.symbol_bytes as usize];
        file.read_exact_at(&mut symbols, memory_end).map_err(&io)?;
        hash.update(&symbols);
        if hash.finalize()[..] != start[16..48] {
            return Err(damaged("its checksum does not match").into());
        }

        if header.abi_version != ABI_VERSION
            || header.kernel_image != hex::encode(Image::get().digest)
        {
            return Err(unfit("with another guest kernel").into());
        }
        if header.cpu != hex::encode(hypervisor.inner.cpu_digest) {
            return Err(unfit("on another kind of CPU or under another KVM").into());
        }
        // A buffer that lies nowhere is found out when the first request is to be written there.
        let wait = Buffer {
            addr: header.wait_addr,
            bytes: header.wait_bytes,
        };
        let state = CpuState {
            regs: registers_from(&header.registers),
            fs_base: header.fs_base,
            gs_base: header.gs_base,
        };
        let symbols = String::from_utf8_lossy(&symbols).into_owned();
        let symbols = Symbols::from_text(symbols, header.frames);
        let cpu_digest = hypervisor.inner.cpu_digest;
        let stored = contents.of_file(file, MEMORY_AT);
        let name = header.name;
        let snapshot = Self::assemble(name, stored, layout, state, wait, symbols, cpu_digest)?;
        if let Some(stored) = header.restore {
            stored.give(hypervisor, &snapshot);
        }
        Ok(snapshot)
    }
}

/// The file, its first bytes and the bytes of its header.
fn read_header(path: &Path) -> Result<(File, [u8; HEADER_AT as usize], Vec<u8>), SnapshotError> {
    let damaged = |problem: &str| SnapshotError::Damaged {
        path: path.into(),
        problem: problem.into(),
    };
    let file = File::open(path).map_err(failed("read", path))?;
    let mut start = [0; HEADER_AT as usize];
    file.read_exact_at(&mut start, 0)
        .map_err(|_| damaged("it is cut short"))?;
    if &start[..8] != MAGIC {
        return Err(damaged("it does not begin as one"));
    }
    let word =
        |at: usize| u32::from_le_bytes([start[at], start[at + 1], start[at + 2], start[at + 3]]);
    if word(8) != VERSION {
        return Err(SnapshotError::Unfit {
            path: path.into(),
            problem: "by another version of Holm",
        });
    }
    let header_bytes = u64::from(word(12));
    if header_bytes > MEMORY_AT - HEADER_AT {
        return Err(damaged("its header has an impossible size"));
    }
    let mut header = vec![0; header_bytes as usize];
    file.read_exact_at(&mut header, HEADER_AT)
        .map_err(|_| damaged("it is cut short"))?;
    Ok((file, start, header))
}

/// Pages in rising order, by where they begin and end in the guest.
#[derive(Debug, Default)]
struct Pages(Vec<(u64, u64)>);

impl Pages {
    /// Adds the page at an address behind all others.
    fn push(&mut self, at: u64) {
        match self.0.last_mut() {
            Some((_, end)) if *end == at => *end += PAGE_BYTES,
            _ => self.0.push((at, at + PAGE_BYTES)),
        }
    }

    /// They and what lies between them, in [`MAX_PARTS`] at most; nothing of `hole`, in which none of them is.
    fn parts(&self, hole: &Range<u64>) -> Vec<(u64, u64)> {
        let mut gap = MIN_GAP_BYTES;
        loop {
            let parts: Vec<_> = self.joined(gap, hole).take(MAX_PARTS + 1).collect();
            if parts.len() <= MAX_PARTS {
                return parts;
            }
            gap *= 2;
        }
    }

    /// The same with gaps of up to `gap` bytes.
    fn joined(&self, gap: u64, hole: &Range<u64>) -> impl Iterator<Item = (u64, u64)> {
        let mut runs = self.0.iter().copied().peekable();
        let same = move |end: u64, from: u64| {
            from - end <= gap && !(end <= hole.start && hole.end <= from)
        };
        std::iter::from_fn(move || {
            let (start, mut end) = runs.next()?;
            while let Some((_, next)) = runs.next_if(|(from, _)| same(end, *from)) {
                end = next;
            }
            Some((start, end))
        })
    }

    /// The parts of a range that are of them.
    fn within(&self, start: u64, end: u64) -> impl Iterator<Item = (u64, u64)> {
        let first = self.0.partition_point(|(_, end)| *end <= start);
        let runs = self.0[first..]
            .iter()
            .take_while(move |(from, _)| *from < end);
        runs.map(move |(from, to)| ((*from).max(start), (*to).min(end)))
    }
}

fn failed(operation: &'static str, path: &Path) -> impl Fn(io::Error) -> SnapshotError + use<> {
    let path = path.to_owned();
    move |error| SnapshotError::Io {
        operation,
        path: path.clone(),
        error,
    }
}

/// Calls `each` with every page of a guest that is not zero, and its guest address.
fn for_each_page(
    file: &File,
    offset: u64,
    layout: &Layout,
    mut each: impl FnMut(u64, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    const PAGE: usize = PAGE_BYTES as usize;
    const ZEROES: &[u8] = &[0; PAGE];
    let mut buffer = vec![0; 256 * PAGE];
    for (start, end) in memory::data_extents(file, offset, offset + layout.total_bytes())? {
        // File systems tell extents in their own blocks, which may be smaller than a page.
        let mut at = (start - offset) / PAGE_BYTES * PAGE_BYTES + offset;
        while at < end {
            let whole = (end.next_multiple_of(PAGE_BYTES) - at).min(buffer.len() as u64);
            let part = &mut buffer[..whole as usize];
            file.read_exact_at(part, at)?;
            for (index, page) in part.chunks_exact(PAGE).enumerate() {
                if page != ZEROES {
                    each(at - offset + index as u64 * PAGE_BYTES, page)?;
                }
            }
            at += whole;
        }
    }
    Ok(())
}

fn hash_page(hash: &mut Sha256, at: u64, page: &[u8]) {
    hash.update(at.to_le_bytes());
    hash.update(page);
}

fn register_words(regs: &kvm_regs) -> [u64; 18] {
    [
        regs.rax,
        regs.rbx,
        regs.rcx,
        regs.rdx,
        regs.rsi,
        regs.rdi,
        regs.rsp,
        regs.rbp,
        regs.r8,
        regs.r9,
        regs.r10,
        regs.r11,
        regs.r12,
        regs.r13,
        regs.r14,
        regs.r15,
        regs.rip,
        regs.rflags,
    ]
}

fn registers_from(words: &[u64; 18]) -> kvm_regs {
    let [
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rsp,
        rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip,
        rflags,
    ] = *words;
    kvm_regs {
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rsp,
        rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip,
        rflags: cpu::clean_rflags(rflags),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_told_apart_into_what_is_zero_and_what_is_not() {
        let mut pages = Pages::default();
        for page in [1, 2, 3, 7, 9] {
            pages.push(page * PAGE_BYTES);
        }
        let within = |start: u64, end: u64| -> Vec<(u64, u64)> {
            let parts = pages.within(start * PAGE_BYTES, end * PAGE_BYTES);
            parts
                .map(|(from, to)| (from / PAGE_BYTES, to / PAGE_BYTES))
                .collect()
        };
        assert_eq!(within(0, 10), [(1, 4), (7, 8), (9, 10)]);
        assert_eq!(within(2, 3), [(2, 3)]);
        assert_eq!(within(3, 8), [(3, 4), (7, 8)]);
        assert_eq!(within(4, 7), []);
        assert_eq!(within(10, 20), []);
    }

    #[test]
    fn however_a_programs_pages_lie_they_are_few_mappings() {
        for stride in [2, 17, 18, 64, 1000] {
            let mut pages = Pages::default();
            for page in (0..1 << 20).step_by(stride) {
                pages.push(page * PAGE_BYTES);
            }
            let parts = pages.parts(&(0..0));
            assert!((1..=MAX_PARTS).contains(&parts.len()), "{stride}");
            let held = |page: &(u64, u64)| {
                parts
                    .iter()
                    .any(|(start, end)| *start <= page.0 && page.1 <= *end)
            };
            assert!(pages.0.iter().all(held), "{stride}");
        }
    }
}
