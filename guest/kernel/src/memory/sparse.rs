//! The sparse space: addresses far above program memory, which cost nothing until they are touched.
//!
//! A reservation is an entry in a list. The first touch of a page is a fault that the stub hands to
//! the library OS, which backs the aligned [`FRAME_BYTES`] around it with a frame of program memory:
//! the entries of the frame's own pages are copied into the sparse page tables. A page is in one of
//! three states, as its entry tells:
//!
//! ```text
//!   0: never touched, or given up ──fault──▶ backed, accessible ◀──protect──▶ backed, closed (not present)
//!       ▲──────────────────────unmap, MADV_DONTNEED────┴─────────────────────────────┘
//! ```
//! All entries of one aligned stretch lead into the same frame, and the frame is free again when the
//! last of them is zero.

use holm_hostcall::{
    PAGE_BYTES, TABLE_REACH_BYTES, WINDOW_BYTES, WINDOW_DIRECTORIES_BYTES, WINDOWS,
};

use super::arena::Arena;
use super::frames::{FRAME_BYTES, Frames};
use super::machine::{Machine, Protection};
use crate::errno::Errno;

/// Most separate mappings.
const MAX_REGIONS: usize = 4096;
/// Most frames that a program which touches its memory in order is given at one fault.
const MAX_RUN: u64 = 32;
/// MADV_DONTNEED of no more than this zeroes what is backed instead of taking it away.
const MAX_ZEROED_BYTES: u64 = 4 * FRAME_BYTES;
/// How far a mapping in use is backed beyond what has been touched, before the snapshot.
const AHEAD_BYTES: u64 = 16 << 20;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const PRESENT: u64 = 1;
const GIB: u64 = 1 << 30;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Region {
    start: u64,
    end: u64,
    protection: Protection,
    /// Whether it counts as memory that the program was promised, once it may be written.
    promised: bool,
}

impl Region {
    /// Whether nothing lies between it and a next one, and they are alike.
    fn goes_on_in(&self, next: &Region) -> bool {
        self.end == next.start
            && self.protection == next.protection
            && self.promised == next.promised
    }
}

/// Why a page cannot be backed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The program has nothing there.
    Unmapped,
    /// It has, but may not do that.
    Protected,
    /// The memory limit is reached.
    NoMemory,
}

/// What backs the sparse space.
pub(super) struct Backing<'a> {
    /// Frames in hand.
    pub(super) frames: &'a mut Frames,
    /// Where more come from.
    pub(super) arena: &'a mut Arena,
}

/// The sparse space.
pub(super) struct Sparse {
    regions: [Region; MAX_REGIONS],
    count: usize,
    directories: u64,
    next_table: u64,
    tables_end: u64,
    /// For each GiB of each window whether it has a page table.
    touched: [[u64; 8]; WINDOWS.len()],
    /// Where the last fault's stretch ended, and how many frames it was given.
    run_end: u64,
    run: u64,
}

/// Whether an address lies in the sparse space.
pub(super) fn is_sparse(addr: u64) -> bool {
    window(addr).is_some()
}

fn window(addr: u64) -> Option<usize> {
    WINDOWS
        .iter()
        .position(|start| addr >= *start && addr - start < WINDOW_BYTES)
}

impl Sparse {
    /// Before the start.
    pub(super) const fn new() -> Self {
        const NONE: Region = Region {
            start: 0,
            end: 0,
            protection: Protection::None,
            promised: false,
        };
        Sparse {
            regions: [NONE; MAX_REGIONS],
            count: 0,
            directories: 0,
            next_table: 0,
            tables_end: 0,
            touched: [[0; 8]; WINDOWS.len()],
            run_end: 0,
            run: 0,
        }
    }

    /// Takes over the directories and tables that the host made.
    pub(super) fn start(&mut self, directories: u64, tables: u64, count: u64) {
        self.directories = directories;
        self.next_table = tables;
        self.tables_end = tables + count * PAGE_BYTES;
    }

    fn all(&self) -> &[Region] {
        &self.regions[..self.count]
    }

    /// Calls `each` with every mapping.
    pub(super) fn for_each_mapping(&self, each: &mut impl FnMut(u64, u64, Protection)) {
        for region in self.all() {
            each(region.start, region.end, region.protection);
        }
    }

    /// The region that holds `addr`, if any.
    fn at(&self, addr: u64) -> Option<Region> {
        let at = self.all().partition_point(|region| region.end <= addr);
        let region = self.all().get(at)?;
        (region.start <= addr).then_some(*region)
    }

    /// Bytes that the program was promised and may write, backed or not.
    pub(super) fn committed_bytes(&self) -> u64 {
        let writable = |region: &&Region| region.promised && region.protection == Protection::Write;
        let bytes = |region: &Region| region.end - region.start;
        self.all().iter().filter(writable).map(bytes).sum()
    }

    /// End of the mapped range that begins at `addr`, whatever its protection; `addr` if there is none.
    pub(super) fn mapped_until(&self, addr: u64) -> u64 {
        let mut end = addr;
        let from = self.all().partition_point(|region| region.end <= addr);
        for region in &self.all()[from..] {
            if region.start > end {
                break;
            }
            end = region.end;
        }
        end
    }

    /// Whether nothing is mapped in a range, which lies in one window.
    pub(super) fn is_free(&self, start: u64, bytes: u64) -> bool {
        let Some(end) = start.checked_add(bytes) else {
            return false;
        };
        let at = self.all().partition_point(|region| region.end <= start);
        window(start).is_some_and(|window| end - WINDOWS[window] <= WINDOW_BYTES)
            && self.all().get(at).is_none_or(|region| region.start >= end)
    }

    /// The lowest free range of `bytes` bytes in the window for mappings without a wish.
    pub(super) fn gap(&self, bytes: u64) -> Option<u64> {
        let window = WINDOWS[1];
        let mut start = window;
        for region in self.all().iter().filter(|region| region.end > window) {
            if region.start.saturating_sub(start) >= bytes {
                break;
            }
            // A frame of its own for each mapping, and with it a gap between most of them.
            start = (region.end + PAGE_BYTES).next_multiple_of(FRAME_BYTES);
        }
        let end = start.checked_add(bytes)?;
        (end < window + WINDOW_BYTES).then_some(start)
    }

    /// Enters a mapping; nothing is mapped there.
    pub(super) fn insert(
        &mut self,
        start: u64,
        end: u64,
        protection: Protection,
        promised: bool,
    ) -> Result<(), Errno> {
        let at = self.all().partition_point(|region| region.start < start);
        let new = Region {
            start,
            end,
            protection,
            promised,
        };
        if at > 0 && self.regions[at - 1].goes_on_in(&new) {
            self.regions[at - 1].end = end;
            self.join(at - 1);
            return Ok(());
        }
        if self.count == MAX_REGIONS {
            return Err(Errno::ENOMEM);
        }
        self.regions.copy_within(at..self.count, at + 1);
        self.regions[at] = new;
        self.count += 1;
        self.join(at);
        Ok(())
    }

    /// Makes a region one with the next, if nothing lies between them and they are alike.
    fn join(&mut self, at: usize) {
        if at + 1 < self.count && self.regions[at].goes_on_in(&self.regions[at + 1]) {
            self.regions[at].end = self.regions[at + 1].end;
            self.remove(at + 1);
        }
    }

    fn remove(&mut self, at: usize) {
        self.regions.copy_within(at + 1..self.count, at);
        self.count -= 1;
    }

    /// Cuts the regions at both ends of a range, so that none reaches over an end.
    fn cut(&mut self, start: u64, end: u64) -> Result<core::ops::Range<usize>, Errno> {
        for edge in [start, end] {
            let at = self.all().partition_point(|region| region.end <= edge);
            let Some(region) = self.all().get(at).copied() else {
                continue;
            };
            if region.start < edge {
                if self.count == MAX_REGIONS {
                    return Err(Errno::ENOMEM);
                }
                self.regions.copy_within(at..self.count, at + 1);
                self.count += 1;
                self.regions[at].end = edge;
                self.regions[at + 1].start = edge;
            }
        }
        let first = self.all().partition_point(|region| region.end <= start);
        let last = self.all().partition_point(|region| region.start < end);
        Ok(first..last)
    }

    /// `munmap`
    pub(super) fn unmap(
        &mut self,
        start: u64,
        end: u64,
        frames: &mut Frames,
        machine: &mut impl Machine,
    ) -> Result<(), Errno> {
        let range = self.cut(start, end)?;
        let some = !range.is_empty();
        self.regions.copy_within(range.end..self.count, range.start);
        self.count -= range.len();
        if some {
            self.drop_pages(start, end, frames, machine);
        }
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
        let range = self.cut(start, end)?;
        if self.regions[range.clone()]
            .iter()
            .any(|region| region.protection != protection)
        {
            self.for_each_table(start, end, machine, |machine, slot, count, _| {
                for_each_run(machine, slot, count, |machine, slot, count| {
                    machine.protect(slot, count, protection);
                });
            });
        }
        for region in &mut self.regions[range.clone()] {
            region.protection = protection;
        }
        for at in (range.start.saturating_sub(1)..range.end).rev() {
            self.join(at);
        }
        Ok(())
    }

    /// MADV_DONTNEED: what is read next is zero.
    pub(super) fn forget(
        &mut self,
        start: u64,
        end: u64,
        frames: &mut Frames,
        machine: &mut impl Machine,
    ) {
        let alike = self
            .at(start)
            .is_some_and(|region| region.end >= end && region.protection == Protection::Write);
        if alike && end - start <= MAX_ZEROED_BYTES {
            // Page tables that stay as they are make the next reset cheap.
            self.for_each_table(start, end, machine, |machine, slot, count, _| {
                for slot in slots(slot, count) {
                    let entry = machine.entry(slot);
                    if entry != 0 {
                        machine.zero(entry & ADDRESS, PAGE_BYTES);
                    }
                }
            });
        } else {
            self.drop_pages(start, end, frames, machine);
        }
    }

    /// Calls `each` for every page table that maps a part of a range: first slot, number of slots, and
    /// the address of the first.
    fn for_each_table<M: Machine>(
        &self,
        start: u64,
        end: u64,
        machine: &mut M,
        mut each: impl FnMut(&mut M, u64, u64, u64),
    ) {
        let mut at = start;
        while at < end {
            let Some(window) = window(at) else { return };
            let offset = at - WINDOWS[window];
            let gib = (offset / GIB) as usize;
            if self.touched[window][gib / 64] >> (gib % 64) & 1 == 0 {
                at = WINDOWS[window] + (offset / GIB + 1) * GIB;
                continue;
            }
            let next = (at / TABLE_REACH_BYTES + 1) * TABLE_REACH_BYTES;
            if let Some(slot) = self.slot(at, machine) {
                each(machine, slot, (next.min(end) - at) / PAGE_BYTES, at);
            }
            at = next;
        }
    }

    fn directory_slot(&self, addr: u64) -> Option<u64> {
        let window = window(addr)?;
        let entry = (addr - WINDOWS[window]) / TABLE_REACH_BYTES * 8;
        Some(self.directories + window as u64 * WINDOW_DIRECTORIES_BYTES + entry)
    }

    /// The slot of a page, if it has a page table.
    fn slot(&self, addr: u64, machine: &impl Machine) -> Option<u64> {
        let table = machine.entry(self.directory_slot(addr)?) & ADDRESS;
        (table != 0).then(|| table + addr % TABLE_REACH_BYTES / PAGE_BYTES * 8)
    }

    /// The entry of a page; 0 if it is not backed.
    pub(super) fn entry(&self, addr: u64, machine: &impl Machine) -> u64 {
        self.slot(addr, machine)
            .map_or(0, |slot| machine.entry(slot))
    }

    /// The slot of a page, whose table is made if there is none.
    fn slot_with_table(&mut self, addr: u64, machine: &mut impl Machine) -> Option<u64> {
        if let Some(slot) = self.slot(addr, machine) {
            return Some(slot);
        }
        let directory = self.directory_slot(addr)?;
        if self.next_table == self.tables_end || !machine.link(directory, self.next_table) {
            return None;
        }
        self.next_table += PAGE_BYTES;
        let window = window(addr)?;
        let gib = ((addr - WINDOWS[window]) / GIB) as usize;
        self.touched[window][gib / 64] |= 1 << (gib % 64);
        self.slot(addr, machine)
    }

    /// Takes the backing of a range away.
    fn drop_pages(
        &mut self,
        start: u64,
        end: u64,
        frames: &mut Frames,
        machine: &mut impl Machine,
    ) {
        self.for_each_table(start, end, machine, |machine, first, count, addr| {
            let mut backed = slots(first, count).filter(|slot| machine.entry(*slot) != 0);
            let Some(low) = backed.next() else { return };
            let high = backed.last().unwrap_or(low);
            // Before the entries are gone: which frames will be in use no more.
            let mut at = addr & !(FRAME_BYTES - 1);
            let stretch_end = addr + count * PAGE_BYTES;
            let table = first - (addr % TABLE_REACH_BYTES) / PAGE_BYTES * 8;
            while at < stretch_end {
                let stretch = table + at % TABLE_REACH_BYTES / PAGE_BYTES * 8;
                let (mut frame, mut kept) = (0, false);
                for slot in slots(stretch, FRAME_BYTES / PAGE_BYTES) {
                    let entry = machine.entry(slot);
                    if entry != 0 {
                        frame = entry & ADDRESS & !(FRAME_BYTES - 1);
                        kept |= slot < low || slot > high;
                    }
                }
                if frame != 0 && !kept {
                    frames.give(frame, false);
                }
                at += FRAME_BYTES;
            }
            machine.unmap(low, (high - low) / 8 + 1);
        });
    }

    /// Backs the page at `addr`, which the program wants to read or write, and what lies around it.
    pub(super) fn back(
        &mut self,
        addr: u64,
        write: bool,
        backing: &mut Backing<'_>,
        machine: &mut impl Machine,
    ) -> Result<(), Refusal> {
        let region = self.at(addr).ok_or(Refusal::Unmapped)?;
        match region.protection {
            Protection::None => return Err(Refusal::Protected),
            Protection::Read if write => return Err(Refusal::Protected),
            _ => {}
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
            .slot_with_table(start, machine)
            .ok_or(Refusal::NoMemory)?;
        let first = slot - (start - stretch) / PAGE_BYTES * 8;
        let in_use = slots(first, FRAME_BYTES / PAGE_BYTES)
            .map(|slot| machine.entry(slot))
            .find(|entry| *entry != 0);
        let table_end = (stretch / TABLE_REACH_BYTES + 1) * TABLE_REACH_BYTES;
        let limit = region.end.min(table_end);
        let frame = match in_use {
            Some(entry) => {
                let frame = entry & ADDRESS & !(FRAME_BYTES - 1);
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
        machine.map(slot, source, pages);
        if region.protection == Protection::Read {
            machine.protect(slot, pages, Protection::Read);
        }
        Ok(count)
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
                machine.map(slot, backing.arena.slot(page), 1);
                if region.protection == Protection::Read {
                    machine.protect(slot, 1, Protection::Read);
                }
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
        for at in 0..self.count {
            let region = self.regions[at];
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

    /// The first and the last stretch of a region that is backed.
    fn touched(&self, region: Region, machine: &mut impl Machine) -> Option<(u64, u64)> {
        let mut touched = None;
        self.for_each_table(
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
        let entry = self.entry(addr, machine);
        (entry != 0).then_some(entry & ADDRESS & !(PAGE_BYTES - 1))
    }

    /// Whether the mapping at `addr` counts as promised.
    pub(super) fn is_promised(&self, addr: u64) -> bool {
        self.at(addr).is_some_and(|region| region.promised)
    }

    /// The protection of the mapping at `addr`.
    pub(super) fn protection(&self, addr: u64) -> Option<Protection> {
        self.at(addr).map(|region| region.protection)
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

fn slots(first: u64, count: u64) -> impl Iterator<Item = u64> {
    (0..count).map(move |number| first + number * 8)
}

/// Calls `each` for the runs of entries that are not zero.
fn for_each_run<M: Machine>(
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

impl Default for Sparse {
    fn default() -> Self {
        Sparse::new()
    }
}
