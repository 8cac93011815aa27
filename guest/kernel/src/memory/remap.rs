//! `mremap`: mappings that shrink, grow and move.
//!
//! What moves within the sparse space moves as entries of page tables, however much it is; a frame that other
//! memory is in as well stays, and so does what lies in program memory, which shows itself: of those the content
//! is copied.

use holm_hostcall::{PAGE_BYTES, SPARSE_END, TABLE_REACH_BYTES};

use super::frames::FRAME_BYTES;
use super::machine::{Machine, Protection};
use super::regions::{Region, Share};
use super::tables::{ADDRESS, is_sparse, slots};
use super::{
    MAP_ANONYMOUS, MAP_NORESERVE, MAP_PRIVATE, Memory, PROT_EXEC, PROT_READ, PROT_WRITE, page_up,
    pages, sparse,
};
use crate::errno::{Errno, SysResult};

const MAYMOVE: u64 = 1;
const FIXED: u64 = 2;
const DONTUNMAP: u64 = 4;

/// What is to move, all of which is alike.
#[derive(Clone, Copy)]
struct Held {
    start: u64,
    end: u64,
    protection: Protection,
    promised: bool,
    share: Option<Share>,
}

impl Held {
    fn bytes(&self) -> u64 {
        self.end - self.start
    }
}

impl Memory {
    /// `mremap`
    pub fn remap(
        &mut self,
        start: u64,
        old_bytes: u64,
        new_bytes: u64,
        flags: u64,
        to: u64,
        machine: &mut impl Machine,
    ) -> SysResult {
        let (may_move, is_fixed) = (flags & MAYMOVE != 0, flags & FIXED != 0);
        let stays = flags & DONTUNMAP != 0;
        if flags & !(MAYMOVE | FIXED | DONTUNMAP) != 0
            || (is_fixed || stays) && !may_move
            || stays && old_bytes != new_bytes
        {
            return Err(Errno::EINVAL);
        }
        let (start, mut end) = pages(start, old_bytes).map_err(|_| Errno::EINVAL)?;
        let new_bytes = page_up(new_bytes)
            .filter(|bytes| *bytes > 0)
            .ok_or(Errno::EINVAL)?;
        // As on Linux: only its first page has to be there.
        if !self.is_mapped_range(start, start.saturating_add(PAGE_BYTES)) {
            return Err(Errno::EFAULT);
        }
        if is_fixed || stays {
            let to_end = to.checked_add(new_bytes).filter(|end| *end <= SPARSE_END);
            let to_end = to_end.ok_or(Errno::EINVAL)?;
            if !to.is_multiple_of(PAGE_BYTES) || (to < end && start < to_end) {
                return Err(Errno::EINVAL);
            }
        }
        if new_bytes < end - start {
            self.unmap(start + new_bytes, end - start - new_bytes, machine)?;
            end = start + new_bytes;
        }
        if new_bytes == end - start && !is_fixed && !stays {
            return Ok(start);
        }
        let held = self.held(start, end)?;
        if start == end && held.share.is_none() {
            // Another view of the same memory, which only what is shared has.
            return Err(Errno::EINVAL);
        }
        if let Some(share) = held.share {
            let last = u64::from(share.page) + new_bytes / PAGE_BYTES;
            u32::try_from(last).map_err(|_| Errno::EINVAL)?;
        }
        let more = if stays {
            new_bytes
        } else {
            new_bytes - held.bytes()
        };
        let own = held.share.is_none() && held.protection == Protection::Write;
        let flags = if held.promised { 0 } else { MAP_NORESERVE };
        if own && !self.may_promise(more, flags) {
            machine.refused(more);
            return Err(Errno::ENOMEM);
        }
        if !is_fixed && !stays && start != end && self.grow(&held, new_bytes, machine)? {
            return Ok(start);
        }
        if !may_move {
            return Err(Errno::ENOMEM);
        }
        let marked = start != end && self.wiped.covers(start, end);
        let in_turns = start != end && self.in_turns.covers(start, end);
        self.make_writable(start, end, machine);
        let to = is_fixed.then_some(to);
        let moved = match held.share {
            Some(_) => self.show_elsewhere(&held, new_bytes, to, machine)?,
            None if is_sparse(start) && to.is_none_or(is_sparse) => {
                self.move_sparse(&held, new_bytes, to, machine)?
            }
            None => self.copy_elsewhere(&held, new_bytes, to, machine)?,
        };
        match stays {
            _ if start == end => {}
            true => self.forget(start, end, machine),
            false => {
                self.unmap(start, end - start, machine)?;
            }
        }
        if marked {
            // Where there is no room for the mark, the mapping has moved all the same.
            let _ = self.wiped.add(moved, moved + new_bytes);
        }
        if in_turns {
            self.in_turns.add(moved, moved + new_bytes)?;
        }
        Ok(moved)
    }

    /// What a range is, if it is of one mapping.
    fn held(&self, start: u64, end: u64) -> Result<Held, Errno> {
        let found = match self.sparse.regions.at(start) {
            Some(region) if region.end >= end => Some(Held {
                start,
                end,
                protection: region.protection,
                promised: region.promised,
                share: region.share_at(start),
            }),
            Some(_) => None,
            None => self.arena.holds(start, end).map(|protection| Held {
                start,
                end,
                protection,
                promised: true,
                share: None,
            }),
        };
        found.ok_or(Errno::EFAULT)
    }

    /// Makes it longer where it is; `false` if there is no room behind it.
    fn grow(
        &mut self,
        held: &Held,
        new_bytes: u64,
        machine: &mut impl Machine,
    ) -> Result<bool, Errno> {
        let (start, end) = (held.start, held.end);
        let grown = start.checked_add(new_bytes).ok_or(Errno::ENOMEM)?;
        let marked = self.wiped.covers(start, end);
        let done = match self.sparse.regions.at(start) {
            Some(region) if self.sparse.regions.is_free(end, grown - end) => {
                self.sparse.regions.insert(Region {
                    start: end,
                    end: grown,
                    share: region.share_at(end),
                    ..region
                })?;
                true
            }
            Some(_) => false,
            None => self.arena.grow(start, end, grown, machine),
        };
        if done && marked {
            let _ = self.wiped.add(end, grown);
        }
        if done && self.in_turns.covers(start, end) {
            self.in_turns.add(end, grown)?;
        }
        Ok(done)
    }

    /// What is shown of a file is found again at its new place.
    fn show_elsewhere(
        &mut self,
        held: &Held,
        new_bytes: u64,
        to: Option<u64>,
        machine: &mut impl Machine,
    ) -> SysResult {
        match to {
            Some(to) => self.map_fixed(to, new_bytes, held.protection, 0, held.share, machine),
            None => self.map_sparse(0, new_bytes, held.protection, false, held.share),
        }
    }

    fn move_sparse(
        &mut self,
        held: &Held,
        new_bytes: u64,
        to: Option<u64>,
        machine: &mut impl Machine,
    ) -> SysResult {
        let flags = if held.promised { 0 } else { MAP_NORESERVE };
        let to = match to {
            Some(to) => to,
            // In frames, and if it is large in page tables, as it is in them now.
            None => {
                let align = match held.bytes() >= TABLE_REACH_BYTES {
                    true => TABLE_REACH_BYTES,
                    false => FRAME_BYTES,
                };
                let bytes = new_bytes.checked_add(align).ok_or(Errno::ENOMEM)?;
                let gap = self.sparse.regions.gap(bytes, align);
                gap.ok_or(Errno::ENOMEM)? + held.start % align
            }
        };
        self.map_fixed(to, new_bytes, held.protection, flags, None, machine)?;
        // The stretches at both ends may be of frames in which others are.
        let middle = held.start.next_multiple_of(FRAME_BYTES).min(held.end);
        let tail = (held.end & !(FRAME_BYTES - 1)).max(middle);
        for (start, end) in [(held.start, middle), (middle, tail), (tail, held.end)] {
            let target = to + (start - held.start);
            let alike = target.wrapping_sub(start).is_multiple_of(FRAME_BYTES);
            let alone =
                |start, bytes| bytes % FRAME_BYTES == 0 || self.has_stretch(start, bytes, machine);
            let moves = alike && alone(start, end - start) && alone(target, end - start);
            let moved = match moves {
                true => self.move_entries(start, end, target, held.protection, machine),
                false => self.copy_over(start, end, target, machine),
            };
            if moved.is_err() {
                // What has moved is lost with it, as memory is at its end.
                self.unmap(to, new_bytes, machine)?;
                return Err(Errno::ENOMEM);
            }
        }
        Ok(to)
    }

    /// Whether a frame that a range within one stretch is in has nothing else in it.
    fn has_stretch(&self, start: u64, bytes: u64, machine: &impl Machine) -> bool {
        let stretch = start & !(FRAME_BYTES - 1);
        let Some(first) = self.sparse.tables.slot(stretch, machine) else {
            return true;
        };
        let mut entries = slots(first, FRAME_BYTES / PAGE_BYTES).zip(0..);
        entries.all(|(slot, number)| {
            let addr = stretch + number * PAGE_BYTES;
            let is_own = (start..start + bytes).contains(&addr);
            is_own || self.frames.of(machine.entry(slot) & ADDRESS).is_none()
        })
    }

    /// Moves what a range is backed with; nothing is where it goes.
    fn move_entries(
        &mut self,
        start: u64,
        end: u64,
        to: u64,
        protection: Protection,
        machine: &mut impl Machine,
    ) -> Result<(), Errno> {
        let mut next = start;
        while let Some((slot, count, at)) = self.sparse.tables.next(next, end, machine) {
            next = at + count * PAGE_BYTES;
            let mut number = 0;
            while number < count {
                let page = machine.entry(slot + number * 8) & ADDRESS;
                if page == 0 {
                    number += 1;
                    continue;
                }
                let target = to + (at + number * PAGE_BYTES - start);
                let room = (TABLE_REACH_BYTES - target % TABLE_REACH_BYTES) / PAGE_BYTES;
                let in_row = (number..count.min(number + room)).take_while(|at| {
                    let expected = page + (at - number) * PAGE_BYTES;
                    machine.entry(slot + at * 8) & ADDRESS == expected
                });
                let run = in_row.count() as u64;
                let tables = &mut self.sparse.tables;
                let Some(to_slot) = tables.slot_with_table(target, machine) else {
                    // What has moved is not here any more: its frames go with the place where it is.
                    machine.unmap(slot, number);
                    return Err(Errno::ENOMEM);
                };
                let source = self.arena.slot(page);
                sparse::map(machine, to_slot, source, run, protection);
                number += run;
            }
            machine.unmap(slot, count);
        }
        Ok(())
    }

    /// Copies what a range holds, and gives up what it was backed with as soon as that is done, so that little is
    /// there twice.
    fn copy_over(
        &mut self,
        start: u64,
        end: u64,
        to: u64,
        machine: &mut impl Machine,
    ) -> Result<(), Errno> {
        let mut next = start;
        while let Some((slot, count, at)) = self.sparse.tables.next(next, end, machine) {
            next = at + count * PAGE_BYTES;
            for number in 0..count {
                let page = machine.entry(slot + number * 8) & ADDRESS;
                if page != 0 && !machine.is_zero(page) {
                    let target = self.own_page(to + (at - start) + number * PAGE_BYTES, machine)?;
                    machine.copy(page, target, PAGE_BYTES);
                }
            }
            self.sparse.drop_pages(at, next, &mut self.frames, machine);
        }
        Ok(())
    }

    fn copy_elsewhere(
        &mut self,
        held: &Held,
        new_bytes: u64,
        to: Option<u64>,
        machine: &mut impl Machine,
    ) -> SysResult {
        const WRITABLE: u64 = PROT_READ | PROT_WRITE;
        let (start, bytes) = (held.start, held.bytes());
        let moved = match to {
            Some(to) => self.map_fixed(to, new_bytes, Protection::Write, 0, None, machine)?,
            None => self.map(0, new_bytes, WRITABLE, MAP_ANONYMOUS | MAP_PRIVATE, machine)?,
        };
        let is_closed = held.protection != Protection::Write;
        if is_closed {
            // So that it can be read here.
            self.protect(start, bytes, WRITABLE, machine)?;
        }
        let copied = self.copy(start, moved, bytes, machine);
        let prot = match held.protection {
            Protection::Write => WRITABLE,
            Protection::Read => PROT_READ,
            Protection::Execute => PROT_READ | PROT_EXEC,
            Protection::None => 0,
        };
        if is_closed {
            self.protect(start, bytes, prot, machine)?;
        }
        match copied {
            Ok(()) if is_closed => self.protect(moved, new_bytes, prot, machine).map(|_| moved),
            Ok(()) => Ok(moved),
            Err(error) => {
                self.unmap(moved, new_bytes, machine)?;
                Err(error)
            }
        }
    }

    /// Copies pages that hold something between two mappings.
    fn copy(
        &mut self,
        from: u64,
        to: u64,
        bytes: u64,
        machine: &mut impl Machine,
    ) -> Result<(), Errno> {
        for offset in (0..bytes).step_by(PAGE_BYTES as usize) {
            let source = match is_sparse(from) {
                true => self.sparse.page(from + offset, machine),
                false => Some(from + offset),
            };
            let Some(source) = source else { continue };
            let target = self.own_page(to + offset, machine)?;
            machine.copy(source, target, PAGE_BYTES);
        }
        Ok(())
    }

    /// Where in program memory a page is, which is backed for it, whatever the program may do with it.
    fn own_page(&mut self, addr: u64, machine: &mut impl Machine) -> SysResult {
        if !is_sparse(addr) {
            return Ok(addr);
        }
        if self.sparse.page(addr, machine).is_none() {
            self.back_anyhow(addr, machine).map_err(|_| Errno::ENOMEM)?;
        }
        self.sparse.page(addr, machine).ok_or(Errno::ENOMEM)
    }
}
