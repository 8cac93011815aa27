//! The sparse space: addresses far above program memory, which cost nothing until they are touched.
//!
//! A reservation is an entry in a list. The first touch of a page is a fault that the stub hands to
//! the library OS. A page of the program's own is backed with the aligned [`FRAME_BYTES`] around it by a frame
//! of program memory: the entries of the frame's own pages are copied into the sparse page tables. One of a
//! file leads to the file's content itself. A page is in one of three states, as its entry tells:
//!
//! ```text
//!   0: never touched, or given up ──fault──▶ backed, accessible ◀──protect──▶ backed, closed (not present)
//!       ▲──────────────────────unmap, MADV_DONTNEED────┴─────────────────────────────┘
//! ```
//! All entries of one aligned stretch that lead into a frame lead into the same one, and the frame is free
//! again when the last of them is zero.

use holm_hostcall::{BootPage, PAGE_BYTES, TABLE_REACH_BYTES};

use super::arena::Arena;
use super::files::MappedFiles;
use super::frames::{FRAME_BYTES, Frames};
use super::machine::{Machine, Protection, Touch};
use super::regions::{Region, Regions};
use super::tables::{ADDRESS, Tables, for_each_run, slots};
use crate::errno::Errno;

/// Most frames that a program which touches its memory in order is given at one fault.
const MAX_RUN: u64 = 32;
/// Most pages of a file that are mapped at one fault.
const MAX_FILE_RUN: u64 = 256;
/// MADV_DONTNEED of no more than this zeroes what is backed instead of taking it away.
const MAX_ZEROED_BYTES: u64 = 4 * FRAME_BYTES;
/// How far a mapping in use is backed beyond what has been touched, before the snapshot.
const AHEAD_BYTES: u64 = 16 << 20;
const PRESENT: u64 = 1;

/// Why a page cannot be backed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The program has nothing there.
    Unmapped,
    /// It has, but may not do that.
    Protected,
    /// It has a file there, which ends before.
    BehindEnd,
    /// The memory limit is reached.
    NoMemory,
}

/// What backs the sparse space.
pub(super) struct Backing<'a> {
    /// Frames in hand.
    pub(super) frames: &'a mut Frames,
    /// Where more come from.
    pub(super) arena: &'a mut Arena,
    /// The files that are mapped.
    pub(super) files: &'a MappedFiles,
}

/// The sparse space.
pub(super) struct Sparse {
    pub(super) regions: Regions,
    pub(super) tables: Tables,
    /// Where the last fault's stretch ended, and how many frames it was given.
    run_end: u64,
    run: u64,
}

impl Sparse {
    /// Before the start.
    pub(super) const fn new() -> Self {
        Sparse {
            regions: Regions::new(),
            tables: Tables::new(),
            run_end: 0,
            run: 0,
        }
    }

    /// Takes over the page tables that the host made.
    pub(super) fn start(&mut self, boot: &BootPage) {
        self.tables.start(boot);
    }

    /// Bytes that the program was promised and may write, backed or not.
    pub(super) fn committed_bytes(&self) -> u64 {
        let committed = self.regions.all().iter().filter(|one| one.is_committed());
        committed.map(|region| region.end - region.start).sum()
    }

    /// `munmap`
    pub(super) fn unmap(
        &mut self,
        start: u64,
        end: u64,
        frames: &mut Frames,
        machine: &mut impl Machine,
    ) -> Result<(), Errno> {
        if self.regions.parts(start, end).next().is_none() {
            return Ok(());
        }
        self.regions.remove(start, end)?;
        self.drop_pages(start, end, frames, machine);
        Ok(())
    }

    /// `mprotect`; all of the range is mapped.
    pub(super) fn protect(
        &mut self,
        start: u64,
        end: u64,
        protection: Protection,
        machine: &mut impl Machine,
    ) -> Result<(), Errno> {
        let forbids = |part: Region| part.share.is_some_and(|share| !share.may_write);
        let is_so = |part: Region| part.protection == protection;
        if protection == Protection::Write && self.regions.parts(start, end).any(forbids) {
            return Err(Errno::EACCES);
        }
        if self.regions.parts(start, end).all(is_so) {
            return Ok(());
        }
        self.regions.protect(start, end, protection)?;
        self.protect_pages(start, end, protection, machine);
        Ok(())
    }

    /// The same for what is backed of a range, whatever the program may do with it.
    pub(super) fn protect_pages(
        &self,
        start: u64,
        end: u64,
        protection: Protection,
        machine: &mut impl Machine,
    ) {
        self.tables
            .for_each(start, end, machine, |machine, slot, count, _| {
                for_each_run(machine, slot, count, |machine, slot, count| {
                    machine.protect_sparse(slot, count, protection);
                });
            });
    }

    /// MADV_DONTNEED: what is read next is zero, or what the file has.
    pub(super) fn forget(
        &mut self,
        start: u64,
        end: u64,
        frames: &mut Frames,
        machine: &mut impl Machine,
    ) {
        for part in self.regions.parts(start, end) {
            if part.share.is_some() {
                continue;
            }
            if part.end - part.start > MAX_ZEROED_BYTES || part.protection != Protection::Write {
                self.drop_pages(part.start, part.end, frames, machine);
                continue;
            }
            // Page tables that stay as they are make the next reset cheap.
            self.tables
                .for_each(part.start, part.end, machine, |machine, slot, count, _| {
                    for slot in slots(slot, count) {
                        let entry = machine.entry(slot);
                        if entry != 0 {
                            machine.zero(entry & ADDRESS, PAGE_BYTES);
                        }
                    }
                });
        }
    }

    /// MADV_FREE: what is read next is zero, or still there.
    pub(super) fn give_back(
        &mut self,
        start: u64,
        end: u64,
        frames: &mut Frames,
        machine: &mut impl Machine,
    ) {
        for part in self.regions.parts(start, end) {
            if part.end - part.start > MAX_ZEROED_BYTES {
                self.drop_pages(part.start, part.end, frames, machine);
            }
        }
    }

    /// Takes the backing of a range away.
    pub(super) fn drop_pages(
        &self,
        start: u64,
        end: u64,
        frames: &mut Frames,
        machine: &mut impl Machine,
    ) {
        self.tables
            .for_each(start, end, machine, |machine, first, count, addr| {
                let mut backed = slots(first, count).filter(|slot| machine.entry(*slot) != 0);
                let Some(low) = backed.next() else { return };
                let high = backed.last().unwrap_or(low);
                // Before the entries are gone: which frames will be in use no more.
                let mut at = addr & !(FRAME_BYTES - 1);
                let stretch_end = addr + count * PAGE_BYTES;
                let table = first - (addr % TABLE_REACH_BYTES) / PAGE_BYTES * 8;
                while at < stretch_end {
                    let stretch = table + at % TABLE_REACH_BYTES / PAGE_BYTES * 8;
                    let (mut frame, mut kept) = (None, false);
                    for slot in slots(stretch, FRAME_BYTES / PAGE_BYTES) {
                        if let Some(found) = frames.of(machine.entry(slot) & ADDRESS) {
                            frame = Some(found);
                            kept |= slot < low || slot > high;
                        }
                    }
                    if let Some(frame) = frame.filter(|_| !kept) {
                        frames.give(frame, false);
                    }
                    at += FRAME_BYTES;
                }
                machine.unmap(low, (high - low) / 8 + 1);
            });
    }

    /// A file's content lies elsewhere now, or the file is shorter: what is mapped of it follows.
    pub(super) fn follow(
        &self,
        file: u16,
        arena: &Arena,
        files: &MappedFiles,
        machine: &mut impl Machine,
    ) {
        let of_file = |region: &&Region| region.share.is_some_and(|share| share.file == file);
        for region in self.regions.all().iter().filter(of_file) {
            self.tables.for_each(
                region.start,
                region.end,
                machine,
                |machine, slot, count, at| {
                    for_each_run(machine, slot, count, |machine, first, count| {
                        machine.unmap(first, count);
                        let page = region.page_at(at).unwrap_or(0) + (first - slot) / 8;
                        let left = files.pages(file).saturating_sub(page).min(count);
                        if left > 0 {
                            let to = files.page(file, page);
                            map(machine, first, arena.slot(to), left, region.protection);
                        }
                    });
                },
            );
        }
    }

    /// Backs the page at `addr`, which the program wants to touch, and what lies around it.
    pub(super) fn back(
        &mut self,
        addr: u64,
        touch: Touch,
        backing: &mut Backing<'_>,
        machine: &mut impl Machine,
    ) -> Result<(), Refusal> {
        let region = self.regions.at(addr).ok_or(Refusal::Unmapped)?;
        match region.protection.allows(touch) {
            true => self.back_page(addr, region, backing, machine),
            false => Err(Refusal::Protected),
        }
    }

    /// The same, whatever the program may do with it.
    pub(super) fn back_page(
        &mut self,
        addr: u64,
        region: Region,
        backing: &mut Backing<'_>,
        machine: &mut impl Machine,
    ) -> Result<(), Refusal> {
        if region.share.is_some() {
            return self.back_file(addr, region, backing, machine);
        }
        let stretch = addr & !(FRAME_BYTES - 1);
        let want = match stretch == self.run_end {
            true => (self.run * 2).min(MAX_RUN),
            false => 1,
        };
        let got = self.back_stretches(stretch, want, region, backing, machine)?;
        self.run_end = stretch + got * FRAME_BYTES;
        self.run = got;
        Ok(())
    }

    /// Backs the part of `region` in the stretch at `stretch`, and as far as that is easy in the next
    /// ones, up to `want` in all; gives their number.
    fn back_stretches(
        &mut self,
        stretch: u64,
        want: u64,
        region: Region,
        backing: &mut Backing<'_>,
        machine: &mut impl Machine,
    ) -> Result<u64, Refusal> {
        let start = stretch.max(region.start);
        let slot = self
            .tables
            .slot_with_table(start, machine)
            .ok_or(Refusal::NoMemory)?;
        let first = slot - (start - stretch) / PAGE_BYTES * 8;
        let in_use = slots(first, FRAME_BYTES / PAGE_BYTES)
            .find_map(|slot| backing.frames.of(machine.entry(slot) & ADDRESS));
        let table_end = (stretch / TABLE_REACH_BYTES + 1) * TABLE_REACH_BYTES;
        let limit = region.end.min(table_end);
        let frame = match in_use {
            Some(frame) => {
                let end = limit.min(stretch + FRAME_BYTES);
                self.fill(
                    slot,
                    start,
                    end,
                    frame + (start - stretch),
                    region,
                    backing,
                    machine,
                );
                return Ok(1);
            }
            None => {
                // Only stretches of which nothing is backed, up to the table's or the region's end.
                let most = (limit - stretch).div_ceil(FRAME_BYTES).min(want);
                let is_bare = |number: &u64| {
                    let stretch = first + number * (FRAME_BYTES / PAGE_BYTES) * 8;
                    slots(stretch, FRAME_BYTES / PAGE_BYTES).all(|slot| machine.entry(slot) == 0)
                };
                let bare = (1..most).take_while(is_bare).count() as u64 + 1;
                backing.frames.take(bare, backing.arena, machine)
            }
        };
        let (frame, count) = frame.ok_or(Refusal::NoMemory)?;
        let end = limit.min(stretch + count * FRAME_BYTES);
        let pages = (end - start) / PAGE_BYTES;
        let source = backing.arena.slot(frame + (start - stretch));
        map(machine, slot, source, pages, region.protection);
        Ok(count)
    }

    /// Backs the page at `addr`, which shows one of a file, and those after it as far as that is easy.
    fn back_file(
        &mut self,
        addr: u64,
        region: Region,
        backing: &Backing<'_>,
        machine: &mut impl Machine,
    ) -> Result<(), Refusal> {
        let Some((file, page)) = region.share.zip(region.page_at(addr)) else {
            return Err(Refusal::Unmapped);
        };
        let left = backing.files.pages(file.file).saturating_sub(page);
        if left == 0 {
            return Err(Refusal::BehindEnd);
        }
        let slot = self
            .tables
            .slot_with_table(addr, machine)
            .ok_or(Refusal::NoMemory)?;
        let addr = addr & !(PAGE_BYTES - 1);
        let table_end = (addr / TABLE_REACH_BYTES + 1) * TABLE_REACH_BYTES;
        let most = ((region.end.min(table_end) - addr) / PAGE_BYTES)
            .min(left)
            .min(MAX_FILE_RUN);
        let bare = slots(slot, most).take_while(|slot| machine.entry(*slot) == 0);
        let count = bare.count() as u64;
        let source = backing.arena.slot(backing.files.page(file.file, page));
        map(machine, slot, source, count, region.protection);
        Ok(())
    }

    /// Backs what is not backed of a range within one stretch that has a frame: from `page` of it on.
    #[expect(clippy::too_many_arguments, reason = "a part of the function above")]
    fn fill(
        &mut self,
        slot: u64,
        start: u64,
        end: u64,
        page: u64,
        region: Region,
        backing: &mut Backing<'_>,
        machine: &mut impl Machine,
    ) {
        for number in 0..(end - start) / PAGE_BYTES {
            let slot = slot + number * 8;
            if machine.entry(slot) == 0 {
                let page = page + number * PAGE_BYTES;
                machine.zero(page, PAGE_BYTES);
                map(
                    machine,
                    slot,
                    backing.arena.slot(page),
                    1,
                    region.protection,
                );
            }
        }
    }

    /// Backs writable mappings around what has been touched of them, so that a request rarely has to: a
    /// page table that a request changes makes its reset dear. Uses at most `most` bytes.
    pub(super) fn back_ahead(
        &mut self,
        mut most: u64,
        backing: &mut Backing<'_>,
        machine: &mut impl Machine,
    ) {
        let mut next = 0;
        while let Some(region) = self.regions.next(next) {
            next = region.end;
            if region.share.is_some() {
                self.back_file_ahead(region, backing, machine);
                continue;
            }
            if region.protection != Protection::Write {
                continue;
            }
            let Some((low, high)) = self.touched(region, machine) else {
                continue;
            };
            // Heaps fill up from below, stacks from above.
            let up = (
                high + FRAME_BYTES,
                region
                    .end
                    .min(high + FRAME_BYTES + AHEAD_BYTES.min(most / 2)),
            );
            let down = (low.saturating_sub(FRAME_BYTES).max(region.start), low);
            for (mut next, end) in [down, up] {
                while next < end && most >= FRAME_BYTES {
                    let want = (end - next).div_ceil(FRAME_BYTES);
                    let stretch = next & !(FRAME_BYTES - 1);
                    let Ok(got) = self.back_stretches(stretch, want, region, backing, machine)
                    else {
                        return;
                    };
                    next = stretch + got * FRAME_BYTES;
                    most = most.saturating_sub(got * FRAME_BYTES);
                }
            }
        }
    }

    /// The same for all that a region shows of a file.
    fn back_file_ahead(
        &mut self,
        region: Region,
        backing: &Backing<'_>,
        machine: &mut impl Machine,
    ) {
        let mut at = region.start;
        while at < region.end && region.protection != Protection::None {
            let is_backed = self.tables.entry(at, machine) != 0;
            if !is_backed && self.back_file(at, region, backing, machine).is_err() {
                return;
            }
            at += PAGE_BYTES;
        }
    }

    /// The first and the last stretch of a region that is backed.
    fn touched(&self, region: Region, machine: &mut impl Machine) -> Option<(u64, u64)> {
        let mut touched = None;
        self.tables.for_each(
            region.start,
            region.end,
            machine,
            |machine, slot, count, addr| {
                for number in (0..count).filter(|n| machine.entry(slot + n * 8) != 0) {
                    let stretch = (addr + number * PAGE_BYTES) & !(FRAME_BYTES - 1);
                    touched = Some((touched.map_or(stretch, |(low, _)| low), stretch));
                }
            },
        );
        touched
    }

    /// Where in program memory the page at `addr` is, if it is backed.
    pub(super) fn page(&self, addr: u64, machine: &impl Machine) -> Option<u64> {
        let entry = self.tables.entry(addr, machine);
        (entry != 0).then_some(entry & ADDRESS)
    }
}

/// Maps pages of program memory into slots in which nothing is.
pub(super) fn map(
    machine: &mut impl Machine,
    slot: u64,
    source: u64,
    count: u64,
    protection: Protection,
) {
    machine.map(slot, source, count);
    if protection != Protection::Write {
        machine.protect_sparse(slot, count, protection);
    }
}

/// Whether an entry lets user mode read its page.
pub(super) fn is_readable(entry: u64) -> bool {
    const USER: u64 = 1 << 2;
    entry & (PRESENT | USER) == PRESENT | USER
}

/// Whether an entry lets user mode write to its page.
pub(super) fn is_writable(entry: u64) -> bool {
    const WRITE: u64 = 1 << 1;
    is_readable(entry) && entry & WRITE != 0
}

impl Default for Sparse {
    fn default() -> Self {
        Sparse::new()
    }
}
