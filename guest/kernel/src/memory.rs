//! Program memory: one stretch of guest memory, identity mapped from the start.
//!
//! ```text
//! start  segments │ brk →        ← mappings (top down) │ guard │ stack │ end
//! ```
//! Every page is mapped before the program starts, because a page fault that the guest serves costs
//! more than one that KVM serves. The host gives each page once, zeroed, when it is first touched; a
//! page that was in use before is zeroed when it is given out again. Nothing here can exceed the
//! manifest's memory limit, which is the size of the stretch.

use holm_hostcall::{BootPage, PAGE_BYTES, STACK_GUARD_BYTES};

use crate::errno::{Errno, SysResult};
use crate::{host, log};

/// Most separate mappings a program may have.
const MAX_MAPPINGS: usize = 512;
/// Reservations up to this size are closed at once.
const MAX_CLOSED_BYTES: u64 = 64 * PAGE_BYTES;

const PROT_READ: u64 = 1;
const PROT_WRITE: u64 = 2;
const PROT_EXEC: u64 = 4;
const MAP_FIXED: u64 = 0x10;
const MAP_ANONYMOUS: u64 = 0x20;
const MAP_FIXED_NOREPLACE: u64 = 0x10_0000;
const MREMAP_MAYMOVE: u64 = 1;
const MADV_DONTNEED: u64 = 4;

/// What the page tables let user mode do, as the stub's protection gate counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// Nothing.
    None = 0,
    /// Read.
    Read = 1,
    /// Read and write.
    Write = 2,
}

#[derive(Clone, Copy, Debug)]
struct Mapping {
    start: u64,
    end: u64,
    protection: Protection,
    /// A large reservation (PROT_NONE) whose page table entries are still read/write: most of it is
    /// usually opened before it is used, as thread stacks are, and each entry costs microseconds.
    deferred: bool,
}

/// Effects of an operation on the machine, so that the bookkeeping is tested without one.
pub trait Machine {
    /// Makes the bytes zero; they are mapped read/write.
    fn zero(&mut self, start: u64, bytes: u64);
    /// Changes the protection of whole pages; `false` if the stub refuses.
    fn protect(&mut self, start: u64, bytes: u64, protection: Protection) -> bool;
    /// Copies between two ranges that do not overlap.
    fn copy(&mut self, from: u64, to: u64, bytes: u64);
    /// Notes that the program asked for so much in vain.
    fn refused(&mut self, bytes: u64);
}

/// The guest itself.
#[derive(Debug)]
pub struct Guest;

impl Machine for Guest {
    fn zero(&mut self, start: u64, bytes: u64) {
        let start = core::ptr::with_exposed_provenance_mut::<u8>(start as usize);
        // SAFETY: `Memory` calls this for pages of program memory that belong to no one.
        unsafe { start.write_bytes(0, bytes as usize) };
    }

    fn protect(&mut self, start: u64, bytes: u64, protection: Protection) -> bool {
        host::protect(start, bytes / PAGE_BYTES, protection as u64)
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
}

/// The bookkeeping of program memory.
pub struct Memory {
    start: u64,
    end: u64,
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
    deferred: false,
};

fn page_up(bytes: u64) -> Option<u64> {
    bytes
        .checked_add(PAGE_BYTES - 1)
        .map(|bytes| bytes & !(PAGE_BYTES - 1))
}

impl Memory {
    /// Before the start.
    pub const fn new() -> Self {
        Memory {
            start: 0,
            end: 0,
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
    pub fn start(&mut self, boot: &BootPage) {
        self.start = boot.program_start;
        self.end = boot.program_start + boot.memory_bytes;
        self.brk_start = boot.brk_start;
        self.brk = boot.brk_start;
        self.brk_high = boot.brk_start;
        self.top = boot.stack_start.saturating_sub(STACK_GUARD_BYTES);
        self.mapped_low = self.top;
    }

    /// Whether the range lies in program memory.
    pub fn contains(&self, addr: u64, bytes: u64) -> bool {
        addr >= self.start && addr.checked_add(bytes).is_some_and(|end| end <= self.end)
    }

    /// As many of `bytes` from `addr` on as there can be: a buffer's size may promise more.
    pub fn clamp(&self, addr: u64, bytes: u64) -> u64 {
        match (self.start..self.end).contains(&addr) {
            true => bytes.min(self.end - addr),
            false => bytes,
        }
    }

    /// Bytes of program memory.
    pub fn total_bytes(&self) -> u64 {
        self.end - self.start
    }

    /// Bytes that neither `brk` nor a mapping uses.
    pub fn free_bytes(&self) -> u64 {
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

    fn lowest(&self) -> u64 {
        self.all().first().map_or(self.top, |mapping| mapping.start)
    }

    /// `brk`: the new end, or the old one where it cannot move there.
    pub fn brk(&mut self, to: u64, machine: &mut impl Machine) -> u64 {
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
        self.brk = to;
        self.brk_high = self.brk_high.max(limit);
        to
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

    /// `mmap`
    pub fn map(
        &mut self,
        hint: u64,
        bytes: u64,
        prot: u64,
        flags: u64,
        machine: &mut impl Machine,
    ) -> SysResult {
        if flags & MAP_ANONYMOUS == 0 {
            return Err(Errno::ENODEV);
        }
        let bytes = page_up(bytes)
            .filter(|bytes| *bytes > 0)
            .ok_or(Errno::EINVAL)?;
        let protection = protection(prot)?;
        let fixed = flags & (MAP_FIXED | MAP_FIXED_NOREPLACE) != 0;
        let start = match fixed {
            true => self.room_at(hint, bytes, flags & MAP_FIXED_NOREPLACE != 0, machine)?,
            false => match self.gap(bytes) {
                Some(start) => start,
                None => {
                    machine.refused(bytes);
                    return Err(Errno::ENOMEM);
                }
            },
        };
        self.insert(start, start + bytes, protection, machine)?;
        Ok(start)
    }

    /// Memory for the library OS itself, from the program's.
    pub fn map_anonymous(&mut self, bytes: u64, machine: &mut impl Machine) -> SysResult {
        self.map(0, bytes, PROT_READ | PROT_WRITE, MAP_ANONYMOUS, machine)
    }

    /// Highest gap of `bytes` bytes.
    fn gap(&self, bytes: u64) -> Option<u64> {
        let mut ceiling = self.top;
        for mapping in self.all().iter().rev() {
            if ceiling - mapping.end >= bytes {
                return Some(ceiling - bytes);
            }
            ceiling = mapping.start;
        }
        let floor = page_up(self.brk)?;
        (ceiling.checked_sub(floor)? >= bytes).then(|| ceiling - bytes)
    }

    fn room_at(
        &mut self,
        start: u64,
        bytes: u64,
        keep: bool,
        machine: &mut impl Machine,
    ) -> Result<u64, Errno> {
        let end = start.checked_add(bytes).ok_or(Errno::ENOMEM)?;
        if !start.is_multiple_of(PAGE_BYTES) {
            return Err(Errno::EINVAL);
        }
        if start < page_up(self.brk).unwrap_or(self.top) || end > self.top {
            return Err(Errno::ENOMEM);
        }
        if keep
            && self
                .all()
                .iter()
                .any(|mapping| mapping.start < end && start < mapping.end)
        {
            return Err(Errno::EEXIST);
        }
        self.unmap(start, bytes, machine)?;
        Ok(start)
    }

    fn insert(
        &mut self,
        start: u64,
        end: u64,
        protection: Protection,
        machine: &mut impl Machine,
    ) -> Result<(), Errno> {
        if self.count == MAX_MAPPINGS {
            return Err(Errno::ENOMEM);
        }
        self.zero_used(start, end, machine);
        let deferred = protection == Protection::None && end - start > MAX_CLOSED_BYTES;
        let closed = protection != Protection::Write && !deferred;
        if closed && !machine.protect(start, end - start, protection) {
            return Err(Errno::EACCES);
        }
        self.mapped_low = self.mapped_low.min(start);
        let at = self.all().partition_point(|mapping| mapping.start < start);
        self.put(
            at,
            Mapping {
                start,
                end,
                protection,
                deferred,
            },
        );
        Ok(())
    }

    fn put(&mut self, at: usize, mapping: Mapping) {
        self.mappings.copy_within(at..self.count, at + 1);
        self.mappings[at] = mapping;
        self.count += 1;
    }

    /// `munmap`
    pub fn unmap(&mut self, start: u64, bytes: u64, machine: &mut impl Machine) -> SysResult {
        let bytes = page_up(bytes)
            .filter(|bytes| *bytes > 0)
            .ok_or(Errno::EINVAL)?;
        let end = start.checked_add(bytes).ok_or(Errno::EINVAL)?;
        if !start.is_multiple_of(PAGE_BYTES) {
            return Err(Errno::EINVAL);
        }
        let mut at = self.all().partition_point(|mapping| mapping.end <= start);
        while at < self.count && self.mappings[at].start < end {
            let mapping = self.mappings[at];
            let (cut_start, cut_end) = (mapping.start.max(start), mapping.end.min(end));
            if mapping.start < cut_start && cut_end < mapping.end && self.count == MAX_MAPPINGS {
                return Err(Errno::ENOMEM);
            }
            // Free memory is always read/write, so that it can be zeroed when it is given out.
            if mapping.protection != Protection::Write && !mapping.deferred {
                machine.protect(cut_start, cut_end - cut_start, Protection::Write);
            }
            self.mappings.copy_within(at + 1..self.count, at);
            self.count -= 1;
            if mapping.start < cut_start {
                self.put(
                    at,
                    Mapping {
                        end: cut_start,
                        ..mapping
                    },
                );
                at += 1;
            }
            if cut_end < mapping.end {
                self.put(
                    at,
                    Mapping {
                        start: cut_end,
                        ..mapping
                    },
                );
                at += 1;
            }
        }
        Ok(0)
    }

    /// Whether there is memory everywhere in a range: segments, `brk`, the stack, or mappings.
    fn is_mapped(&self, start: u64, end: u64) -> bool {
        let mut at = start;
        let floor = page_up(self.brk).unwrap_or(self.top);
        if at < floor {
            at = floor.min(end);
        }
        for mapping in self.all() {
            if mapping.start <= at && at < mapping.end {
                at = mapping.end.min(end);
            }
        }
        at >= end || at >= self.top
    }

    /// `mprotect`
    pub fn protect(
        &mut self,
        start: u64,
        bytes: u64,
        prot: u64,
        machine: &mut impl Machine,
    ) -> SysResult {
        let bytes = page_up(bytes).ok_or(Errno::ENOMEM)?;
        if !start.is_multiple_of(PAGE_BYTES) {
            return Err(Errno::EINVAL);
        }
        if !self.contains(start, bytes) {
            return Err(Errno::ENOMEM);
        }
        let protection = protection(prot)?;
        if bytes == 0 {
            return Ok(0);
        }
        if !self.is_mapped(start, start + bytes) {
            return Err(Errno::ENOMEM);
        }
        // Both ends may cut a mapping in two.
        if self.count + 2 > MAX_MAPPINGS {
            return Err(Errno::ENOMEM);
        }
        let end = start + bytes;
        // What is so already, or looks so to the CPU, needs no change of page tables.
        let so_already = |mapping: &Mapping| match mapping.deferred {
            true => protection == Protection::Write,
            false => protection == mapping.protection,
        };
        let is_so_already = self
            .all()
            .iter()
            .any(|mapping| so_already(mapping) && mapping.start <= start && end <= mapping.end);
        if !is_so_already && !machine.protect(start, bytes, protection) {
            return Err(Errno::EACCES);
        }
        self.note_protection(start, end, protection, machine);
        Ok(0)
    }

    /// Splits the mappings at both ends of a range and notes the range's protection.
    fn note_protection(
        &mut self,
        start: u64,
        end: u64,
        protection: Protection,
        machine: &mut impl Machine,
    ) {
        let mut at = self.all().partition_point(|mapping| mapping.end <= start);
        while at < self.count && self.mappings[at].start < end {
            let mapping = self.mappings[at];
            let (inner_start, inner_end) = (mapping.start.max(start), mapping.end.min(end));
            self.mappings[at] = Mapping {
                start: inner_start,
                end: inner_end,
                protection,
                deferred: false,
            };
            if mapping.start < inner_start {
                self.put(
                    at,
                    close_if_small(
                        Mapping {
                            end: inner_start,
                            ..mapping
                        },
                        machine,
                    ),
                );
                at += 1;
            }
            at += 1;
            if inner_end < mapping.end {
                self.put(
                    at,
                    close_if_small(
                        Mapping {
                            start: inner_end,
                            ..mapping
                        },
                        machine,
                    ),
                );
                at += 1;
            }
        }
    }

    /// `mremap`
    pub fn remap(
        &mut self,
        start: u64,
        old_bytes: u64,
        new_bytes: u64,
        flags: u64,
        machine: &mut impl Machine,
    ) -> SysResult {
        let old_bytes = page_up(old_bytes).ok_or(Errno::EINVAL)?;
        let new_bytes = page_up(new_bytes)
            .filter(|bytes| *bytes > 0)
            .ok_or(Errno::EINVAL)?;
        if old_bytes == 0 || flags & !MREMAP_MAYMOVE != 0 || !start.is_multiple_of(PAGE_BYTES) {
            return Err(Errno::EINVAL);
        }
        let end = start.checked_add(old_bytes).ok_or(Errno::EFAULT)?;
        let at = self.all().partition_point(|mapping| mapping.end <= start);
        let mapping = *self.all().get(at).ok_or(Errno::EFAULT)?;
        if start < mapping.start || end > mapping.end {
            return Err(Errno::EFAULT);
        }
        if new_bytes <= old_bytes {
            if new_bytes < old_bytes {
                self.unmap(start + new_bytes, old_bytes - new_bytes, machine)?;
            }
            return Ok(start);
        }
        let ceiling = self.all().get(at + 1).map_or(self.top, |next| next.start);
        let grown = start.checked_add(new_bytes).ok_or(Errno::ENOMEM)?;
        if end == mapping.end && grown <= ceiling {
            self.zero_used(end, grown, machine);
            if mapping.protection != Protection::Write
                && !machine.protect(end, grown - end, mapping.protection)
            {
                return Err(Errno::EACCES);
            }
            self.mappings[at].end = grown;
            return Ok(start);
        }
        if flags & MREMAP_MAYMOVE == 0 || mapping.protection != Protection::Write {
            return Err(Errno::ENOMEM);
        }
        let moved = self.map(0, new_bytes, PROT_READ | PROT_WRITE, MAP_ANONYMOUS, machine)?;
        machine.copy(start, moved, old_bytes);
        self.unmap(start, old_bytes, machine)?;
        Ok(moved)
    }

    /// `madvise`: only MADV_DONTNEED has an effect that a program can see.
    pub fn advise(
        &mut self,
        start: u64,
        bytes: u64,
        advice: u64,
        machine: &mut impl Machine,
    ) -> SysResult {
        let bytes = page_up(bytes).ok_or(Errno::EINVAL)?;
        if !start.is_multiple_of(PAGE_BYTES) {
            return Err(Errno::EINVAL);
        }
        if advice == MADV_DONTNEED {
            let end = start.checked_add(bytes).ok_or(Errno::ENOMEM)?;
            let writable = |mapping: &&Mapping| {
                mapping.start < end
                    && start < mapping.end
                    && mapping.protection == Protection::Write
            };
            for mapping in self.all().iter().filter(writable) {
                let (from, to) = (mapping.start.max(start), mapping.end.min(end));
                machine.zero(from, to - from);
            }
        }
        Ok(0)
    }
}

/// What is left of a reservation after a part was opened: a guard, which is to be one.
fn close_if_small(mapping: Mapping, machine: &mut impl Machine) -> Mapping {
    let bytes = mapping.end - mapping.start;
    let close = mapping.deferred && bytes <= MAX_CLOSED_BYTES;
    let closed = close && machine.protect(mapping.start, bytes, Protection::None);
    Mapping {
        deferred: mapping.deferred && !closed,
        ..mapping
    }
}

impl Default for Memory {
    fn default() -> Self {
        Memory::new()
    }
}

/// The page tables' word for `prot`. Memory that is executable cannot be had at run time.
fn protection(prot: u64) -> Result<Protection, Errno> {
    match prot & (PROT_READ | PROT_WRITE | PROT_EXEC) {
        0 => Ok(Protection::None),
        PROT_READ => Ok(Protection::Read),
        prot if prot & PROT_EXEC != 0 => Err(Errno::EACCES),
        _ => Ok(Protection::Write),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    use holm_hostcall::PROGRAM_ADDR;

    const MEMORY_BYTES: u64 = 4 << 20;
    const STACK_BYTES: u64 = 128 << 10;

    /// Program memory as pages that are zero or not, and may be used or not.
    struct Pages {
        zero: Vec<bool>,
        protection: Vec<Protection>,
    }

    impl Pages {
        fn range(start: u64, bytes: u64) -> core::ops::Range<usize> {
            let page = |addr: u64| ((addr - PROGRAM_ADDR) / PAGE_BYTES) as usize;
            page(start)..page(start + bytes + PAGE_BYTES - 1)
        }

        /// The program writes wherever it may.
        fn scribble(&mut self, start: u64, bytes: u64) {
            self.zero[Self::range(start, bytes)].fill(false);
        }
    }

    impl Machine for Pages {
        fn zero(&mut self, start: u64, bytes: u64) {
            let range = Self::range(start, bytes);
            assert!(
                self.protection[range.clone()]
                    .iter()
                    .all(|one| *one == Protection::Write)
            );
            self.zero[range].fill(true);
        }

        fn protect(&mut self, start: u64, bytes: u64, protection: Protection) -> bool {
            self.protection[Self::range(start, bytes)].fill(protection);
            true
        }

        fn copy(&mut self, _from: u64, to: u64, bytes: u64) {
            self.scribble(to, bytes);
        }

        fn refused(&mut self, _bytes: u64) {}
    }

    fn start() -> (std::boxed::Box<Memory>, Pages) {
        let pages = (MEMORY_BYTES / PAGE_BYTES) as usize;
        let mut memory = std::boxed::Box::new(Memory::new());
        memory.start = PROGRAM_ADDR;
        memory.end = PROGRAM_ADDR + MEMORY_BYTES;
        memory.brk_start = PROGRAM_ADDR + 16 * PAGE_BYTES;
        memory.brk = memory.brk_start;
        memory.brk_high = memory.brk_start;
        memory.top = memory.end - STACK_BYTES - STACK_GUARD_BYTES;
        memory.mapped_low = memory.top;
        let machine = Pages {
            zero: std::vec![true; pages],
            protection: std::vec![Protection::Write; pages],
        };
        (memory, machine)
    }

    /// What must hold between two calls.
    fn check(memory: &Memory, machine: &Pages, seed: u64) {
        let mut floor = memory.brk;
        let mut used = std::vec![false; machine.protection.len()];
        for mapping in memory.all() {
            assert!(
                floor <= mapping.start && mapping.start < mapping.end,
                "seed {seed}"
            );
            floor = mapping.end;
            let range = Pages::range(mapping.start, mapping.end - mapping.start);
            used[range.clone()].fill(true);
            let shown = if mapping.deferred {
                Protection::Write
            } else {
                mapping.protection
            };
            assert!(
                machine.protection[range].iter().all(|one| *one == shown),
                "seed {seed}"
            );
        }
        assert!(floor <= memory.top, "seed {seed}");
        let free = (0..used.len()).filter(|page| !used[*page]);
        for page in free {
            assert_eq!(
                machine.protection[page],
                Protection::Write,
                "seed {seed}: free page {page}"
            );
        }
    }

    #[test]
    fn whatever_a_program_asks_for_new_memory_is_zero_and_nothing_overlaps() {
        for seed in 0..300u64 {
            let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
            let mut random = |below: u64| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state % below
            };
            let (mut memory, mut machine) = start();
            let pages = MEMORY_BYTES / PAGE_BYTES;
            for _ in 0..120 {
                let start = PROGRAM_ADDR + random(pages) * PAGE_BYTES;
                let bytes = (1 + random(90)) * PAGE_BYTES - random(2) * 100;
                let room = (PROGRAM_ADDR + MEMORY_BYTES - start).min(bytes);
                match random(6) {
                    0 | 1 => {
                        let prot = [0, PROT_READ, PROT_READ | PROT_WRITE][random(3) as usize];
                        let flags = MAP_ANONYMOUS | if random(4) == 0 { MAP_FIXED } else { 0 };
                        if let Ok(at) = memory.map(start, bytes, prot, flags, &mut machine) {
                            let range = Pages::range(at, bytes);
                            assert!(machine.zero[range].iter().all(|zero| *zero), "seed {seed}");
                            machine.scribble(at, bytes);
                        }
                    }
                    2 => {
                        let _ = memory.unmap(start, room, &mut machine);
                    }
                    3 => {
                        // Only mappings: the rest of program memory has no protection to note.
                        let inside = memory
                            .all()
                            .iter()
                            .any(|one| one.start <= start && start + room <= one.end);
                        if inside {
                            let prot = [0, PROT_READ, PROT_READ | PROT_WRITE][random(3) as usize];
                            let _ = memory.protect(start, room, prot, &mut machine);
                        }
                    }
                    4 => {
                        let before = memory.brk;
                        let to = memory.brk_start + random(200) * 1000;
                        if memory.brk(to, &mut machine) == to && to > before {
                            let whole = before.next_multiple_of(PAGE_BYTES);
                            if whole < to {
                                let range = Pages::range(whole, to - whole);
                                assert!(
                                    machine.zero[range].iter().all(|zero| *zero),
                                    "seed {seed}"
                                );
                            }
                            machine.scribble(before, to - before);
                        }
                    }
                    _ => {
                        let _ = memory.advise(start, room, MADV_DONTNEED, &mut machine);
                    }
                }
                check(&memory, &machine, seed);
            }
        }
    }
}
