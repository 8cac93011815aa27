//! Program memory itself: one stretch of guest memory, identity mapped from the start.
//!
//! ```text
//! start  segments │ brk →        ← mappings and frames (top down) │ guard │ stack │ end
//! ```
//! Every page is mapped before the program starts, because a page fault that the guest serves costs
//! more than one that KVM serves. The host gives each page once, zeroed, when it is first touched; a
//! page that was in use before is zeroed when it is given out again. Nothing here can exceed the
//! manifest's memory limit, which is the size of the stretch.

use holm_hostcall::{BootPage, PAGE_BYTES, STACK_GUARD_BYTES};

use super::frames::FRAME_BYTES;
use super::machine::{Machine, Protection};
use super::page_up;
use super::sparse::is_writable;
use crate::errno::Errno;

/// Most separate mappings a program may have.
const MAX_MAPPINGS: usize = 1024;

/// Whose a part of program memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Program,
    /// Frames for the sparse space.
    Frames,
    /// What the library OS keeps there. As with frames the program knows nothing of it.
    Library,
}

#[derive(Clone, Copy, Debug)]
struct Mapping {
    start: u64,
    end: u64,
    protection: Protection,
    owner: Owner,
}

impl Mapping {
    fn is_programs(&self) -> bool {
        self.owner == Owner::Program
    }

    /// Whether nothing lies between it and a next one, and they are alike.
    fn goes_on_in(&self, next: &Mapping) -> bool {
        self.end == next.start && self.owner == next.owner && self.protection == next.protection
    }
}

/// The bookkeeping of program memory.
pub(super) struct Arena {
    start: u64,
    end: u64,
    /// Page table entries: that of address 0 would be here.
    entries: u64,
    brk_start: u64,
    brk: u64,
    /// Highest `brk` there was: below it pages may not be zero.
    brk_high: u64,
    /// End of the room for mappings: the stack's guard begins here.
    top: u64,
    /// Lowest address a mapping ever had: from there on pages may not be zero.
    mapped_low: u64,
    mappings: [Mapping; MAX_MAPPINGS],
    count: usize,
}

const NO_MAPPING: Mapping = Mapping {
    start: 0,
    end: 0,
    protection: Protection::Write,
    owner: Owner::Program,
};

impl Arena {
    /// Before the start.
    pub(super) const fn new() -> Self {
        Arena {
            start: 0,
            end: 0,
            entries: 0,
            brk_start: 0,
            brk: 0,
            brk_high: 0,
            top: 0,
            mapped_low: 0,
            mappings: [NO_MAPPING; MAX_MAPPINGS],
            count: 0,
        }
    }

    /// Takes over what the host laid out.
    pub(super) fn start(&mut self, boot: &BootPage) {
        self.start = boot.program_start;
        self.end = boot.program_start + boot.memory_bytes;
        self.entries = boot.tables;
        self.brk_start = boot.brk_start;
        self.brk = boot.brk_start;
        self.brk_high = boot.brk_start;
        self.top = boot.stack_start.saturating_sub(STACK_GUARD_BYTES);
        self.mapped_low = self.top;
    }

    /// Whether the range lies in program memory.
    pub(super) fn contains(&self, addr: u64, bytes: u64) -> bool {
        addr >= self.start && addr.checked_add(bytes).is_some_and(|end| end <= self.end)
    }

    /// The page table slot of a page of program memory.
    pub(super) fn slot(&self, addr: u64) -> u64 {
        self.entries + addr / PAGE_BYTES * 8
    }

    /// Bytes of program memory.
    pub(super) fn total_bytes(&self) -> u64 {
        self.end - self.start
    }

    /// Bytes that neither `brk` nor a mapping nor a frame uses.
    pub(super) fn free_bytes(&self) -> u64 {
        let mapped: u64 = self
            .all()
            .iter()
            .map(|mapping| mapping.end - mapping.start)
            .sum();
        (self.top - self.brk).saturating_sub(mapped)
    }

    fn all(&self) -> &[Mapping] {
        &self.mappings[..self.count]
    }

    /// Calls `each` with the heap and every mapping of the program's.
    pub(super) fn for_each_mapping(&self, each: &mut impl FnMut(u64, u64, Protection)) {
        each(self.brk_start, self.brk, Protection::Write);
        for mapping in self.all().iter().filter(|one| one.is_programs()) {
            each(mapping.start, mapping.end, mapping.protection);
        }
    }

    fn lowest(&self) -> u64 {
        self.all().first().map_or(self.top, |mapping| mapping.start)
    }

    /// `brk`: the new end, or the old one where it cannot move there.
    pub(super) fn brk(&mut self, to: u64, machine: &mut impl Machine) -> u64 {
        if to < self.brk_start {
            return self.brk;
        }
        let Some(limit) = page_up(to) else {
            return self.brk;
        };
        if limit > self.lowest() {
            machine.refused(to - self.brk);
            return self.brk;
        }
        if to > self.brk {
            self.zero_used(self.brk, to, machine);
        }
        self.open(limit, self.brk_end(), machine);
        self.brk = to;
        self.brk_high = self.brk_high.max(limit);
        to
    }

    /// The first page behind the heap.
    pub(super) fn brk_end(&self) -> u64 {
        page_up(self.brk).unwrap_or(self.top)
    }

    /// Makes the pages of a range read/write that are not.
    fn open(&self, start: u64, end: u64, machine: &mut impl Machine) {
        for page in (start..end).step_by(PAGE_BYTES as usize) {
            if !is_writable(machine.entry(self.slot(page))) {
                self.set_protection(page, page + PAGE_BYTES, Protection::Write, machine);
            }
        }
    }

    /// Zeroes what may not be zero of a range that is given out.
    fn zero_used(&self, start: u64, end: u64, machine: &mut impl Machine) {
        let below = end.min(self.brk_high);
        if start < below {
            machine.zero(start, below - start);
        }
        let from = start.max(self.mapped_low).max(below);
        if from < end {
            machine.zero(from, end - from);
        }
    }

    /// A writable mapping of `bytes` bytes anywhere; `None` if there is no room.
    pub(super) fn map(&mut self, bytes: u64, machine: &mut impl Machine) -> Option<u64> {
        let start = self.gap(bytes, PAGE_BYTES)?;
        self.insert(start, start + bytes, Owner::Program, machine)
            .ok()?;
        Some(start)
    }

    /// The same for the library OS, to whom it belongs until it gives it back.
    pub(super) fn take(&mut self, bytes: u64, machine: &mut impl Machine) -> Option<u64> {
        let start = self.hidden_gap(bytes, PAGE_BYTES)?;
        self.insert(start, start + bytes, Owner::Library, machine)
            .ok()?;
        Some(start)
    }

    /// The library OS gives back what it has taken, or a part of it. Where no more mappings are possible, what is in
    /// the middle of one stays.
    pub(super) fn give(&mut self, start: u64, end: u64) {
        let Ok(range) = self.cut(start, end, Owner::Library) else {
            return;
        };
        let is_librarys = |one: &Mapping| one.owner == Owner::Library;
        if self.mappings[range.clone()].iter().all(is_librarys) {
            self.mappings
                .copy_within(range.end..self.count, range.start);
            self.count -= range.len();
        }
    }

    /// Gives the library OS as many bytes more right below what it has at `start`, if they are free.
    pub(super) fn take_below(
        &mut self,
        start: u64,
        bytes: u64,
        machine: &mut impl Machine,
    ) -> bool {
        let at = self.all().partition_point(|mapping| mapping.end <= start);
        // What is right below may be the library OS's too, and one with it.
        if self
            .all()
            .get(at)
            .is_none_or(|mapping| mapping.start != start)
        {
            return false;
        }
        let floor = match at.checked_sub(1) {
            Some(below) => self.mappings[below].end,
            None => self.brk_end(),
        };
        let Some(low) = start.checked_sub(bytes).filter(|low| *low >= floor) else {
            return false;
        };
        self.insert(low, start, Owner::Library, machine).is_ok()
    }

    /// A writable mapping at `start`, in place of what is there.
    pub(super) fn map_at(
        &mut self,
        start: u64,
        end: u64,
        keep: bool,
        machine: &mut impl Machine,
    ) -> Result<(), Errno> {
        if start < self.brk_end() || end > self.top {
            return Err(Errno::ENOMEM);
        }
        let overlaps = |mapping: &Mapping| mapping.start < end && start < mapping.end;
        let mut there = self.all().iter().filter(|one| overlaps(one));
        if there.clone().any(|mapping| !mapping.is_programs()) {
            return Err(Errno::ENOMEM);
        }
        if keep && there.next().is_some() {
            return Err(Errno::EEXIST);
        }
        self.unmap(start, end, machine)?;
        self.insert(start, end, Owner::Program, machine)
    }

    /// Frames for the sparse space, about `bytes` bytes of them: address, bytes, and whether they are
    /// zero. `None` if there is no room for one.
    pub(super) fn take_frames(&mut self, bytes: u64) -> Option<(u64, u64, bool)> {
        let found = |bytes| Some((self.hidden_gap(bytes, FRAME_BYTES)?, bytes));
        let (start, bytes) = found(bytes).or_else(|| found(FRAME_BYTES))?;
        if self.count == MAX_MAPPINGS {
            return None;
        }
        let end = start + bytes;
        let zero = start >= self.brk_high && end <= self.mapped_low;
        self.mapped_low = self.mapped_low.min(start);
        let at = self.all().partition_point(|mapping| mapping.start < start);
        match self.mappings.get_mut(at) {
            // The usual case: right below the last ones.
            Some(next) if at < self.count && next.owner == Owner::Frames && next.start == end => {
                next.start = start;
            }
            _ => self.put(
                at,
                Mapping {
                    start,
                    end,
                    protection: Protection::Write,
                    owner: Owner::Frames,
                },
            ),
        }
        Some((start, bytes, zero))
    }

    /// Highest gap of `bytes` bytes at a multiple of `align`.
    fn gap(&self, bytes: u64, align: u64) -> Option<u64> {
        self.gap_below(bytes, align, |_| true)
    }

    /// The same for what the program does not know of: not right below something of the program's, where it may
    /// have given something up to have it again, unless there is nothing else.
    fn hidden_gap(&self, bytes: u64, align: u64) -> Option<u64> {
        let hidden = |above: Option<&Mapping>| above.is_some_and(|one| !one.is_programs());
        self.gap_below(bytes, align, hidden)
            .or_else(|| self.gap(bytes, align))
    }

    /// Highest gap right below a mapping that `is_good` holds for, or below all of them.
    fn gap_below(
        &self,
        bytes: u64,
        align: u64,
        is_good: impl Fn(Option<&Mapping>) -> bool,
    ) -> Option<u64> {
        let fits = |floor: u64, ceiling: u64| {
            let start = ceiling.checked_sub(bytes)? & !(align - 1);
            (start >= floor).then_some(start)
        };
        let (mut above, mut ceiling) = (None, self.top);
        for mapping in self.all().iter().rev() {
            if is_good(above)
                && let Some(start) = fits(mapping.end, ceiling)
            {
                return Some(start);
            }
            (above, ceiling) = (Some(mapping), mapping.start);
        }
        fits(page_up(self.brk)?, ceiling)
    }

    fn insert(
        &mut self,
        start: u64,
        end: u64,
        owner: Owner,
        machine: &mut impl Machine,
    ) -> Result<(), Errno> {
        let new = Mapping {
            start,
            end,
            owner,
            ..NO_MAPPING
        };
        // What is alike and has nothing between it is one, as on Linux.
        let at = self.all().partition_point(|mapping| mapping.start < start);
        let below = at > 0 && self.mappings[at - 1].goes_on_in(&new);
        let above = at < self.count && new.goes_on_in(&self.mappings[at]);
        if !below && !above && self.count == MAX_MAPPINGS {
            return Err(Errno::ENOMEM);
        }
        self.zero_used(start, end, machine);
        self.mapped_low = self.mapped_low.min(start);
        match (below, above) {
            (false, false) => self.put(at, new),
            (true, false) => self.mappings[at - 1].end = end,
            (false, true) => self.mappings[at].start = start,
            (true, true) => {
                self.mappings[at - 1].end = self.mappings[at].end;
                self.mappings.copy_within(at + 1..self.count, at);
                self.count -= 1;
            }
        }
        Ok(())
    }

    fn put(&mut self, at: usize, mapping: Mapping) {
        self.mappings.copy_within(at..self.count, at + 1);
        self.mappings[at] = mapping;
        self.count += 1;
    }

    /// Cuts an owner's mappings at both ends of a range; gives those that lie in it, with what is others' among them.
    fn cut(
        &mut self,
        start: u64,
        end: u64,
        owner: Owner,
    ) -> Result<core::ops::Range<usize>, Errno> {
        for edge in [start, end] {
            let at = self.all().partition_point(|mapping| mapping.end <= edge);
            let Some(mapping) = self.all().get(at).copied() else {
                continue;
            };
            if mapping.start < edge && mapping.owner == owner {
                if self.count == MAX_MAPPINGS {
                    return Err(Errno::ENOMEM);
                }
                self.put(at, mapping);
                self.mappings[at].end = edge;
                self.mappings[at + 1].start = edge;
            }
        }
        let first = self.all().partition_point(|mapping| mapping.end <= start);
        let last = self.all().partition_point(|mapping| mapping.start < end);
        Ok(first..last)
    }

    /// `munmap`
    pub(super) fn unmap(
        &mut self,
        start: u64,
        end: u64,
        machine: &mut impl Machine,
    ) -> Result<(), Errno> {
        let range = self.cut(start, end, Owner::Program)?;
        let mut kept = range.start;
        for at in range.clone() {
            let mapping = self.mappings[at];
            if !mapping.is_programs() {
                self.mappings[kept] = mapping;
                kept += 1;
                continue;
            }
            // Free memory is always read/write, so that it can be zeroed when it is given out.
            if mapping.protection != Protection::Write {
                self.set_protection(mapping.start, mapping.end, Protection::Write, machine);
            }
        }
        self.mappings.copy_within(range.end..self.count, kept);
        self.count -= range.end - kept;
        Ok(())
    }

    fn set_protection(
        &self,
        start: u64,
        end: u64,
        protection: Protection,
        machine: &mut impl Machine,
    ) -> bool {
        machine.protect(self.slot(start), (end - start) / PAGE_BYTES, protection)
    }

    /// Whether there is memory everywhere in a range: segments, `brk`, the stack, or mappings.
    pub(super) fn is_mapped(&self, start: u64, end: u64) -> bool {
        self.mapped_until(start, end) >= end
    }

    /// Up to where, and at most to `end`, there is memory from `start` on.
    pub(super) fn mapped_until(&self, start: u64, end: u64) -> u64 {
        let end = end.min(self.end);
        let mut at = start;
        let floor = self.brk_end();
        if at < floor {
            at = floor.min(end);
        }
        for mapping in self.all().iter().filter(|one| one.is_programs()) {
            if mapping.start <= at && at < mapping.end {
                at = mapping.end.min(end);
            }
        }
        match at >= self.top {
            true => end,
            false => at,
        }
    }

    /// `mprotect`
    pub(super) fn protect(
        &mut self,
        start: u64,
        end: u64,
        protection: Protection,
        machine: &mut impl Machine,
    ) -> Result<(), Errno> {
        if !self.contains(start, end - start) || !self.is_mapped(start, end) {
            return Err(Errno::ENOMEM);
        }
        let is_so_already = self.all().iter().any(|mapping| {
            mapping.protection == protection && mapping.start <= start && end <= mapping.end
        });
        if is_so_already {
            return Ok(());
        }
        let range = self.cut(start, end, Owner::Program)?;
        if !self.set_protection(start, end, protection, machine) {
            return Err(Errno::EACCES);
        }
        for mapping in &mut self.mappings[range] {
            mapping.protection = protection;
        }
        Ok(())
    }

    /// Makes the mapping that holds a range longer, from `end` to `grown`, if there is room behind it.
    pub(super) fn grow(
        &mut self,
        start: u64,
        end: u64,
        grown: u64,
        machine: &mut impl Machine,
    ) -> bool {
        let at = self.all().partition_point(|mapping| mapping.end <= start);
        let ceiling = self.all().get(at + 1).map_or(self.top, |next| next.start);
        let mapping = self.mappings[at];
        let can = mapping.end == end && grown <= ceiling;
        if can {
            self.zero_used(end, grown, machine);
            self.mappings[at].end = grown;
        }
        can && (mapping.protection == Protection::Write
            || self.set_protection(end, grown, mapping.protection, machine))
    }

    /// Whether one mapping of the program's holds the whole range, and its protection.
    pub(super) fn holds(&self, start: u64, end: u64) -> Option<Protection> {
        let at = self.all().partition_point(|mapping| mapping.end <= start);
        let mapping = self.all().get(at)?;
        let holds = mapping.is_programs() && mapping.start <= start && end <= mapping.end;
        holds.then_some(mapping.protection)
    }

    /// MADV_DONTNEED: makes what the program has mapped of a range zero.
    pub(super) fn forget(&mut self, start: u64, end: u64, machine: &mut impl Machine) {
        let inside = |one: &&Mapping| one.start < end && start < one.end && one.is_programs();
        for mapping in self.all().iter().filter(inside) {
            let (from, to) = (mapping.start.max(start), mapping.end.min(end));
            let closed = mapping.protection != Protection::Write;
            if closed {
                self.set_protection(from, to, Protection::Write, machine);
            }
            machine.zero(from, to - from);
            if closed {
                self.set_protection(from, to, mapping.protection, machine);
            }
        }
    }
}

impl Default for Arena {
    fn default() -> Self {
        Arena::new()
    }
}
