//! Snapshots: memory and vCPU state of a program that waits for its first request.
//!
//! The memory is a sparse anonymous file: as it was after a boot, or as it was copied from disk. Instances
//! map it copy-on-write, so all of them share its pages. `snapshot/file.rs` has the form on disk, and
//! `snapshot/pages.rs` which pages there are.

use std::fs::File;
use std::mem::offset_of;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use holm_hostcall::{BOOT_ADDR, BootPage, PAGE_BYTES, TABLES_ALIAS, boot_flags};
use sha2::{Digest as _, Sha256};

use crate::chunks::Chunks;
use crate::cpu::CpuState;
use crate::hostcall::{Buffer, Offer};
use crate::image::Image;
use crate::layout::Layout;
use crate::memory::{self, GuestMemory, Sharing};
use crate::restore::{Choice, Measured, Sets, Strategy};
use crate::symbols::Symbols;
use crate::{Hypervisor, RequestPlace, VmmError};

mod file;
mod pages;

pub use file::{SnapshotError, Told};
pub(crate) use pages::MAX_PARTS as MAX_SNAPSHOT_PARTS;
use pages::{Pages, for_each_page, hash_page};

/// Memory and vCPU state of a program that is ready for its first request.
#[derive(Debug)]
pub struct Snapshot {
    /// Never the same twice in a process.
    pub(crate) id: u64,
    pub(crate) layout: Layout,
    pub(crate) state: CpuState,
    /// The buffer that the program waits with.
    pub(crate) wait: Buffer,
    /// What the guest's monotonic clock read when it was taken, in nanoseconds.
    pub(crate) since_ns: u64,
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

/// Where a guest finds the base of its monotonic clock. In a snapshot, whose instances are given one each, it is the
/// moment at which that was taken.
const SINCE_ADDR: u64 = BOOT_ADDR + offset_of!(BootPage, monotonic_ns) as u64;

/// Keeps the moment at which a snapshot is taken, in nanoseconds of the guest's monotonic clock.
pub(crate) fn write_since(memory: &GuestMemory, since_ns: u64) -> Result<(), VmmError> {
    memory.write(SINCE_ADDR, &since_ns.to_le_bytes())
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
        let mut since = [0; 8];
        pristine.read(SINCE_ADDR, &mut since)?;
        let kept = u32::from_le_bytes(flags) & boot_flags::SHARED != 0;
        let parts = stored.own.parts(&Image::get().fixed());
        let chunks = Chunks::new(program, parts.iter().copied(), kept);
        let snapshot = Snapshot {
            id,
            name,
            layout,
            state,
            wait,
            since_ns: u64::from_le_bytes(since),
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
        let runs = self.sets.touched().into_iter().flatten();
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
            .map_err(file::failed("read", Path::new("in memory")))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "these are tests")]

    use std::time::{Duration, Instant};

    use holm_model::bundle::Files;
    use holm_model::program::Program;
    use holm_test_support::{guest, patience, require_kvm};

    use super::*;
    use crate::{GuestConfig, Limits, Request, Slot, Step, prepare};

    fn get(slot: &mut Slot, target: &str) -> String {
        let request = Request {
            method: "GET",
            target,
            headers: &[],
            body: b"",
        };
        let long = patience(Duration::from_secs(20));
        let limits = Limits {
            deadline: Instant::now() + long,
            cpu: long,
            response_body_bytes: 1 << 10,
            streams: false,
        };
        slot.begin(&request, limits).unwrap();
        loop {
            match slot.run(Duration::from_millis(50)) {
                Step::Answered(response) => return String::from_utf8(response.body).unwrap(),
                Step::Yielded => {}
                Step::Parked(until) => slot.wait(until),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn kvm_a_snapshot_from_before_a_restart_of_the_host_goes_on_in_its_own_time() {
        const HOUR_S: f64 = 3600.0;
        if !require_kvm() {
            return;
        }
        let hypervisor = Hypervisor::open().unwrap();
        let config = GuestConfig {
            name: "tests/goes_on_in_time".into(),
            memory_bytes: 24 << 20,
            env: Vec::new(),
            args: Vec::new(),
            files: Files::default(),
            inetd: false,
            shared: false,
            port: 8080,
        };
        let program = Program::parse(&std::fs::read(guest("goes_on_in_time")).unwrap()).unwrap();
        let long = patience(Duration::from_secs(10));
        let mut made = prepare(&hypervisor, &program, &config, long)
            .unwrap()
            .snapshot;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("snapshot");
        made.save(&path).unwrap();
        let read = Snapshot::load(&hypervisor, &path).unwrap();
        assert!(read.since_ns > 0 && read.since_ns == made.since_ns);

        // As if the host's clock had been an hour ahead of what it is now.
        Arc::get_mut(&mut made).unwrap().since_ns += HOUR_S as u64 * 1_000_000_000;
        let mut slot = Slot::new(&hypervisor).unwrap();
        slot.load(&made).unwrap();
        let began = Instant::now();
        let told = get(&mut slot, "/");
        let took = began.elapsed();
        let numbers: Vec<f64> = told.split(' ').map(|n| n.trim().parse().unwrap()).collect();
        let [since_start, slept] = numbers[..] else {
            panic!("{told}");
        };
        assert!((HOUR_S..HOUR_S + 60.0).contains(&since_start), "{told}");
        assert!((0.05..20.0).contains(&slept), "{told}");
        assert!(took >= Duration::from_millis(50) && took < long, "{took:?}");
    }
}
