//! What a program says of its memory, and asks about it: `madvise`, `msync`, `mincore`, `mlock`.

use holm_hostcall::PAGE_BYTES;

use super::machine::{Machine, Protection};
use super::sparse::Refusal;
use super::tables::is_sparse;
use super::{Memory, page_up, pages};
use crate::errno::{Errno, SysResult};

pub(super) const DONTNEED: u64 = 4;
const FREE: u64 = 8;
const REMOVE: u64 = 9;
const WIPEONFORK: u64 = 18;
const KEEPONFORK: u64 = 19;
const POPULATE_READ: u64 = 22;
const POPULATE_WRITE: u64 = 23;
const DONTNEED_LOCKED: u64 = 24;

impl Memory {
    /// `madvise`: what has an effect that a program can see. Most has none, as there is nothing to swap to,
    /// no child to inherit and nobody to dump for; about large pages the host decides (ARCHITECTURE.md).
    pub fn advise(
        &mut self,
        start: u64,
        bytes: u64,
        advice: u64,
        machine: &mut impl Machine,
    ) -> SysResult {
        let advice = u64::from(advice as u32);
        if !matches!(advice, 0..=4 | 8..=25) {
            return Err(Errno::EINVAL);
        }
        let (start, end) = pages(start, bytes).map_err(|_| Errno::EINVAL)?;
        if start >= end {
            return Ok(0);
        }
        match advice {
            DONTNEED | DONTNEED_LOCKED => {
                self.make_writable(start, end, machine);
                self.forget(start, end, machine);
            }
            FREE if self.shows_file(start, end) => return Err(Errno::EINVAL),
            FREE => self.free(start, end, machine),
            REMOVE => self.remove_content(start, end, machine)?,
            WIPEONFORK if self.shows_file(start, end) => return Err(Errno::EINVAL),
            WIPEONFORK => {
                self.wiped.add(start, end)?;
                // So that no restore has to.
                let _ = self.access(start, end - start, true, false, machine);
            }
            KEEPONFORK => self.wiped.remove(start, end)?,
            POPULATE_READ | POPULATE_WRITE => {
                return self
                    .populate(start, end, advice == POPULATE_WRITE, machine)
                    .map(|()| 0);
            }
            _ => {}
        }
        // As on Linux: what is there was advised all the same.
        match self.is_mapped_range(start, end) {
            true => Ok(0),
            false => Err(Errno::ENOMEM),
        }
    }

    /// What is read next is zero, or what the file has.
    pub(super) fn forget(&mut self, start: u64, end: u64, machine: &mut impl Machine) {
        match is_sparse(start) {
            true => self.sparse.forget(start, end, &mut self.frames, machine),
            false => self.arena.forget(start, end, machine),
        }
    }

    /// MADV_FREE: memory that is needed elsewhere is taken; else what is written there stays, and so may the rest.
    /// In program memory nothing is gained by it.
    fn free(&mut self, start: u64, end: u64, machine: &mut impl Machine) {
        if is_sparse(start) {
            self.sparse.give_back(start, end, &mut self.frames, machine);
        }
    }

    fn shows_file(&self, start: u64, end: u64) -> bool {
        let mut parts = self.sparse.regions.parts(start, end);
        parts.any(|part| part.share.is_some())
    }

    /// MADV_REMOVE: what is shown of a file becomes zero in the file.
    fn remove_content(
        &mut self,
        start: u64,
        end: u64,
        machine: &mut impl Machine,
    ) -> Result<(), Errno> {
        for part in self.sparse.regions.parts(start, end) {
            let share = part.share.ok_or(Errno::EINVAL)?;
            if !share.may_write {
                return Err(Errno::EACCES);
            }
            let (page, count) = (u64::from(share.page), (part.end - part.start) / PAGE_BYTES);
            let there = self.files.pages(share.file).saturating_sub(page).min(count);
            if there > 0 {
                machine.zero(self.files.page(share.file, page), there * PAGE_BYTES);
            }
        }
        match is_sparse(start) {
            true => Ok(()),
            false => Err(Errno::EINVAL),
        }
    }

    /// MADV_POPULATE_READ and MADV_POPULATE_WRITE: backs all of a range.
    fn populate(
        &mut self,
        start: u64,
        end: u64,
        write: bool,
        machine: &mut impl Machine,
    ) -> Result<(), Errno> {
        // As on Linux: what lies before a hole is there all the same.
        let mapped = self.mapped_until(start, end);
        match self.access(start, mapped - start, write, true, machine) {
            Ok(_) if mapped < end => Err(Errno::ENOMEM),
            Ok(_) => Ok(()),
            Err(Refusal::Protected) => Err(Errno::EINVAL),
            Err(Refusal::BehindEnd) => Err(Errno::EFAULT),
            Err(Refusal::Unmapped | Refusal::NoMemory) => Err(Errno::ENOMEM),
        }
    }

    /// The same as far as the program may use it and there is memory.
    pub(super) fn populate_if_may(&mut self, start: u64, end: u64, machine: &mut impl Machine) {
        let mut at = start;
        loop {
            let next = self.sparse.regions.parts(at, end).next();
            let Some(region) = next else { return };
            let from = region.start;
            at = region.end;
            let write = region.protection == Protection::Write;
            let _ = self.access(from, at - from, write, true, machine);
        }
    }

    /// `msync`: there is nothing behind memory that would have to be told.
    pub fn synchronise(&self, start: u64, bytes: u64, flags: u64) -> SysResult {
        const ASYNC: u64 = 1;
        const INVALIDATE: u64 = 2;
        const SYNC: u64 = 4;
        if flags & !(ASYNC | INVALIDATE | SYNC) != 0 || flags & (ASYNC | SYNC) == ASYNC | SYNC {
            return Err(Errno::EINVAL);
        }
        self.mapped_pages(start, bytes)?;
        Ok(0)
    }

    /// `mlock` and `mlock2`: what is there now stays, so it only has to be there, unless it is enough that it
    /// stays once it is.
    pub fn lock(
        &mut self,
        start: u64,
        bytes: u64,
        flags: u64,
        machine: &mut impl Machine,
    ) -> SysResult {
        const ONFAULT: u64 = 1;
        if flags as u32 as u64 & !ONFAULT != 0 {
            return Err(Errno::EINVAL);
        }
        let (start, end) = covering(start, bytes)?;
        if start == end {
            return Ok(0);
        }
        if !self.is_mapped_range(start, end) {
            return Err(Errno::ENOMEM);
        }
        if flags & ONFAULT == 0 {
            self.populate_if_may(start, end, machine);
        }
        Ok(0)
    }

    /// `munlock`
    pub fn unlock(&self, start: u64, bytes: u64) -> SysResult {
        let (start, end) = covering(start, bytes)?;
        match start == end || self.is_mapped_range(start, end) {
            true => Ok(0),
            false => Err(Errno::ENOMEM),
        }
    }

    /// How many pages a range has, all of which are mapped.
    pub fn mapped_pages(&self, start: u64, bytes: u64) -> SysResult {
        let (start, end) = match start.is_multiple_of(PAGE_BYTES) {
            true => pages(start, bytes)?,
            false => return Err(Errno::EINVAL),
        };
        match start == end || self.is_mapped_range(start, end) {
            true => Ok((end - start) / PAGE_BYTES),
            false => Err(Errno::ENOMEM),
        }
    }

    /// `mincore`: whether a page is in memory. Of program memory all of it is taken to be.
    pub fn is_resident(&self, addr: u64, machine: &impl Machine) -> bool {
        let of_file = |region: super::Region| region.share_at(addr);
        match self.sparse.regions.at(addr).map(of_file) {
            None => true,
            Some(Some(share)) => u64::from(share.page) < self.files.pages(share.file),
            Some(None) => self.sparse.page(addr, machine).is_some(),
        }
    }
}

/// The whole pages that a range touches.
fn covering(start: u64, bytes: u64) -> Result<(u64, u64), Errno> {
    let first = start & !(PAGE_BYTES - 1);
    let bytes = bytes
        .checked_add(start - first)
        .and_then(page_up)
        .ok_or(Errno::EINVAL)?;
    let end = first.checked_add(bytes).ok_or(Errno::EINVAL)?;
    Ok((first, end))
}
