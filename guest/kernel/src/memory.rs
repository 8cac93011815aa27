//! The program's memory, as its system calls see it.
//!
//! ```text
//! program memory (arena)                            the sparse space
//! segments │ brk → … ← mappings, frames │ stack     reservations, large and closed mappings, shared files
//! mapped from the start, no faults                  backed with frames, or a file's content, when touched
//! ```
//! What a program asks for in amounts that it will use lies in program memory itself and costs nothing.
//! Reservations, and what is so large that it may never be used, get addresses in the sparse space. There is
//! one process, so a shared mapping of a file is nothing but the pages in which the file's content lies.

mod advice;
mod arena;
mod files;
mod frames;
mod machine;
mod ranges;
mod regions;
mod remap;
mod sparse;
mod tables;
#[cfg(test)]
mod tests;
mod turns;

use holm_hostcall::{BootPage, PAGE_BYTES, SPARSE_END, TABLE_REACH_BYTES, boot_flags};

use crate::errno::{Errno, SysResult};
use arena::Arena;
pub use files::MAX_FILES;
use files::MappedFiles;
use frames::{FRAME_BYTES, Frames};
pub use machine::{Guest, Machine, Protection, Touch, guest};
use ranges::Ranges;
use regions::Region;
pub use regions::Share;
pub use sparse::Refusal;
use sparse::{Backing, Sparse};
use tables::is_sparse;

const PROT_READ: u64 = 1;
const PROT_WRITE: u64 = 2;
const PROT_EXEC: u64 = 4;
const MAP_SHARED: u64 = 1;
const MAP_PRIVATE: u64 = 2;
const MAP_TYPE: u64 = 15;
const MAP_FIXED: u64 = 0x10;
const MAP_ANONYMOUS: u64 = 0x20;
/// Below 2 GiB.
const MAP_32BIT: u64 = 0x40;
const MAP_LOCKED: u64 = 0x2000;
const MAP_NORESERVE: u64 = 0x4000;
const MAP_POPULATE: u64 = 0x8000;
const MAP_HUGETLB: u64 = 0x4_0000;
const MAP_FIXED_NOREPLACE: u64 = 0x10_0000;

/// Larger mappings are not given program memory before they touch it.
const MAX_EAGER_BYTES: u64 = 4 << 20;
/// A writable mapping below this is refused if there is not as much memory; runtimes ask for larger
/// ones than they will use.
const MAX_CERTAIN_BYTES: u64 = 16 << 20;
/// No writable mapping may be larger than program memory, or than this.
const MAX_COMMIT_BYTES: u64 = 64 << 20;
/// A program may be promised so many times its memory, and a constant, before it has to touch it.
const MAX_PROMISES: u64 = 4;
const PROMISED_BESIDE_BYTES: u64 = 256 << 20;
/// Most ranges that are zeroed at a restore, and most bytes of them.
const MAX_WIPED: usize = 16;
const MAX_WIPED_BYTES: u64 = 1 << 20;
/// Most ranges that are to be written and executed.
const MAX_IN_TURNS: usize = 128;
/// A buffer that is not backed is backed for so much of a system call's sake.
const MAX_BACKED_BYTES: u64 = 64 << 10;

/// The bookkeeping of the program's memory.
pub struct Memory {
    arena: Arena,
    frames: Frames,
    sparse: Sparse,
    files: MappedFiles,
    /// Whether something of a file was mapped that is not there any more.
    lost_file: bool,
    /// What a child of a fork would find zeroed (MADV_WIPEONFORK). A restore is a fork of that kind: the one
    /// snapshot goes on as many instances. User-space generators, such as that of BoringSSL and AWS-LC, mark a
    /// page in this way to learn that they have to be seeded anew.
    wiped: Ranges<MAX_WIPED>,
    /// What the program wants to write and to execute.
    in_turns: Ranges<MAX_IN_TURNS>,
    /// Something was taken to be shorter than it is, because no more of it was backed.
    cut: bool,
}

fn page_up(bytes: u64) -> Option<u64> {
    bytes
        .checked_add(PAGE_BYTES - 1)
        .map(|bytes| bytes & !(PAGE_BYTES - 1))
}

/// A range of whole pages: its start must be one.
fn pages(start: u64, bytes: u64) -> Result<(u64, u64), Errno> {
    if !start.is_multiple_of(PAGE_BYTES) {
        return Err(Errno::EINVAL);
    }
    let bytes = page_up(bytes).ok_or(Errno::ENOMEM)?;
    let end = start.checked_add(bytes).ok_or(Errno::ENOMEM)?;
    Ok((start, end))
}

impl Memory {
    /// Before the start.
    pub const fn new() -> Self {
        Memory {
            arena: Arena::new(),
            frames: Frames::new(),
            sparse: Sparse::new(),
            files: MappedFiles::new(),
            lost_file: false,
            wiped: Ranges::new(MAX_WIPED_BYTES),
            in_turns: Ranges::new(u64::MAX),
            cut: false,
        }
    }

    /// Takes over what the host laid out.
    pub fn start(&mut self, boot: &BootPage) {
        self.arena.start(boot);
        self.frames.start(boot.program_start);
        self.sparse.start(boot);
        if boot.flags & boot_flags::EXECUTABLE_STACK != 0 {
            // There is room: it is the first.
            let _ = self
                .in_turns
                .add(boot.stack_start, boot.program_start + boot.memory_bytes);
        }
    }

    /// Bytes of program memory.
    pub fn total_bytes(&self) -> u64 {
        self.arena.total_bytes()
    }

    /// Bytes that nothing uses.
    pub fn free_bytes(&self) -> u64 {
        self.arena.free_bytes() + self.frames.free_bytes()
    }

    /// `brk`: the new end, or the old one where it cannot move there.
    pub fn brk(&mut self, to: u64, machine: &mut impl Machine) -> u64 {
        let before = self.arena.brk_end();
        let now = self.arena.brk(to, machine);
        if self.arena.brk_end() < before {
            // Nothing of it takes turns any more; what cannot be forgotten is forgotten with what is mapped there.
            let _ = self.in_turns.remove(self.arena.brk_end(), before);
        }
        now
    }

    /// `mmap` of anonymous memory.
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
        if !matches!(flags & MAP_TYPE, MAP_SHARED | MAP_PRIVATE) {
            return Err(Errno::EINVAL);
        }
        let bytes = page_up(bytes)
            .filter(|bytes| *bytes > 0)
            .ok_or(if bytes == 0 {
                Errno::EINVAL
            } else {
                Errno::ENOMEM
            })?;
        let (protection, in_turns) = protection(prot);
        if flags & MAP_HUGETLB != 0 {
            // None are set aside, as on most machines.
            return Err(Errno::ENOMEM);
        }
        if protection == Protection::Write && !self.may_promise(bytes, flags) {
            machine.refused(bytes);
            return Err(Errno::ENOMEM);
        }
        let start = self.place(hint, bytes, protection, flags, machine)?;
        if in_turns && self.in_turns.add(start, start + bytes).is_err() {
            self.unmap(start, bytes, machine)?;
            return Err(Errno::ENOMEM);
        }
        if flags & (MAP_POPULATE | MAP_LOCKED) != 0 {
            self.populate_if_may(start, start + bytes, machine);
        }
        Ok(start)
    }

    fn place(
        &mut self,
        hint: u64,
        bytes: u64,
        protection: Protection,
        flags: u64,
        machine: &mut impl Machine,
    ) -> SysResult {
        if flags & (MAP_FIXED | MAP_FIXED_NOREPLACE) != 0 {
            return self.map_fixed(hint, bytes, protection, flags, None, machine);
        }
        let low = flags & MAP_32BIT != 0;
        let certain = protection == Protection::Write && flags & MAP_NORESERVE == 0;
        let eager = certain && bytes <= MAX_EAGER_BYTES.min(self.free_bytes() / 8);
        if (low || eager && !self.is_wish(hint, bytes))
            && let Some(start) = self.arena.map(bytes, machine)
        {
            if protection != Protection::Write {
                self.arena
                    .protect(start, start + bytes, protection, machine)?;
            }
            return Ok(start);
        }
        if low {
            return Err(Errno::ENOMEM);
        }
        let promised = flags & MAP_NORESERVE == 0;
        self.map_sparse(hint, bytes, protection, promised, None)
    }

    /// `mmap` of a file so that its content is shared: `bytes` bytes of it, from a page of it on, which need
    /// not be there yet.
    pub fn map_file(
        &mut self,
        hint: u64,
        bytes: u64,
        prot: u64,
        flags: u64,
        share: Share,
        machine: &mut impl Machine,
    ) -> SysResult {
        let bytes = page_up(bytes).ok_or(Errno::ENOMEM)?;
        let (protection, in_turns) = protection(prot);
        let start = match flags & (MAP_FIXED | MAP_FIXED_NOREPLACE) {
            0 => self.map_sparse(hint, bytes, protection, false, Some(share))?,
            _ => self.map_fixed(hint, bytes, protection, flags, Some(share), machine)?,
        };
        match in_turns {
            true => self.in_turns.add(start, start + bytes).map(|()| start),
            false => Ok(start),
        }
    }

    /// Whether a hint says where something can be.
    fn is_wish(&self, hint: u64, bytes: u64) -> bool {
        let wish = hint & !(PAGE_BYTES - 1);
        is_sparse(wish) && self.sparse.regions.is_free(wish, bytes)
    }

    fn map_sparse(
        &mut self,
        hint: u64,
        bytes: u64,
        protection: Protection,
        promised: bool,
        share: Option<Share>,
    ) -> SysResult {
        let start = match self.is_wish(hint, bytes) {
            true => hint & !(PAGE_BYTES - 1),
            false => self.gap(bytes)?,
        };
        self.sparse.regions.insert(Region {
            start,
            end: start + bytes,
            protection,
            promised,
            share,
        })?;
        Ok(start)
    }

    /// A free range of the sparse space: with frames and page tables of its own, as far as it is worth that.
    fn gap(&self, bytes: u64) -> SysResult {
        let align = match bytes >= TABLE_REACH_BYTES {
            true => TABLE_REACH_BYTES,
            false => FRAME_BYTES,
        };
        let gap = self.sparse.regions.gap(bytes, align);
        gap.or_else(|| self.sparse.regions.gap(bytes, PAGE_BYTES))
            .ok_or(Errno::ENOMEM)
    }

    /// Whether the program may be given so much writable memory, which it need not have touched. What it
    /// says is only reserved is neither asked about nor counted.
    fn may_promise(&self, bytes: u64, flags: u64) -> bool {
        let total = self.total_bytes();
        if flags & MAP_NORESERVE != 0 {
            return true;
        }
        let promised = self.sparse.committed_bytes().saturating_add(bytes);
        (bytes >= MAX_CERTAIN_BYTES || bytes <= self.free_bytes())
            && bytes <= total.max(MAX_COMMIT_BYTES)
            && promised <= total * MAX_PROMISES + PROMISED_BESIDE_BYTES
    }

    fn map_fixed(
        &mut self,
        start: u64,
        bytes: u64,
        protection: Protection,
        flags: u64,
        share: Option<Share>,
        machine: &mut impl Machine,
    ) -> SysResult {
        let keep = flags & MAP_FIXED_NOREPLACE != 0;
        let (start, end) = pages(start, bytes)?;
        if !keep {
            self.wiped.remove(start, end)?;
            self.end_turns(start, end, machine)?;
        }
        // Program memory shows itself, and nothing of a file.
        if !is_sparse(start) && share.is_some() {
            return Err(Errno::ENOMEM);
        }
        if !is_sparse(start) {
            self.arena.map_at(start, end, keep, machine)?;
            if protection != Protection::Write {
                self.arena.protect(start, end, protection, machine)?;
            }
            return Ok(start);
        }
        if !is_sparse(end - 1) {
            return Err(Errno::ENOMEM);
        }
        if keep && !self.sparse.regions.is_free(start, bytes) {
            return Err(Errno::EEXIST);
        }
        self.unmap_sparse(start, end, machine)?;
        self.sparse.regions.insert(Region {
            start,
            end,
            protection,
            promised: flags & MAP_NORESERVE == 0,
            share,
        })?;
        Ok(start)
    }

    fn unmap_sparse(
        &mut self,
        start: u64,
        end: u64,
        machine: &mut impl Machine,
    ) -> Result<(), Errno> {
        let shows_file = {
            let mut parts = self.sparse.regions.parts(start, end);
            parts.any(|part| part.share.is_some())
        };
        self.sparse.unmap(start, end, &mut self.frames, machine)?;
        self.lost_file |= shows_file;
        Ok(())
    }

    /// The content of a file that is mapped, or will be, has so many bytes and lies at `start` now.
    pub fn set_file(&mut self, file: u16, start: u64, bytes: u64, machine: &mut impl Machine) {
        self.files.set(file, start, bytes);
        self.sparse.follow(file, &self.arena, &self.files, machine);
    }

    /// Whether something of a file was mapped, before the last call of this, that is not there any more.
    pub fn has_lost_file(&mut self) -> bool {
        core::mem::take(&mut self.lost_file)
    }

    /// Whether anything of a file is mapped.
    pub fn is_file_mapped(&self, file: u16) -> bool {
        let mut regions = self.sparse.regions.all().iter();
        regions.any(|region| region.share.is_some_and(|share| share.file == file))
    }

    /// Whether anything of a file is mapped that is writable, or could be made so.
    pub fn is_file_writable(&self, file: u16) -> bool {
        let mut shares = self.sparse.regions.all().iter().filter_map(|one| one.share);
        shares.any(|share| share.file == file && share.may_write)
    }

    /// Memory for the library OS itself, from the program's: in program memory, so that it can be used
    /// without a fault.
    pub fn take(&mut self, bytes: u64, machine: &mut impl Machine) -> SysResult {
        let bytes = page_up(bytes).ok_or(Errno::ENOMEM)?;
        self.arena.take(bytes, machine).ok_or(Errno::ENOMEM)
    }

    /// The library OS gives it back.
    pub fn give(&mut self, start: u64, bytes: u64) {
        self.arena
            .give(start, start + bytes.next_multiple_of(PAGE_BYTES));
    }

    /// As many bytes more right below what the library OS has at `start`; false if they are not free.
    pub fn take_below(&mut self, start: u64, bytes: u64, machine: &mut impl Machine) -> bool {
        self.arena.take_below(start, bytes, machine)
    }

    /// `munmap`
    pub fn unmap(&mut self, start: u64, bytes: u64, machine: &mut impl Machine) -> SysResult {
        let (start, end) = pages(start, bytes).map_err(|_| Errno::EINVAL)?;
        if start == end {
            return Err(Errno::EINVAL);
        }
        self.wiped.remove(start, end)?;
        self.end_turns(start, end, machine)?;
        if is_sparse(start) {
            self.unmap_sparse(start, end.min(SPARSE_END), machine)?;
        } else {
            self.arena.unmap(start, end, machine)?;
        }
        Ok(0)
    }

    /// `mprotect`
    pub fn protect(
        &mut self,
        start: u64,
        bytes: u64,
        prot: u64,
        machine: &mut impl Machine,
    ) -> SysResult {
        let (start, end) = pages(start, bytes)?;
        let (protection, in_turns) = protection(prot);
        if start == end {
            return Ok(0);
        }
        // As on Linux: what lies before a hole is changed all the same.
        let mapped = self.mapped_until(start, end);
        self.end_turns(start, mapped, machine)?;
        if mapped > start && is_sparse(start) {
            self.sparse.protect(start, mapped, protection, machine)?;
        } else if mapped > start {
            self.arena.protect(start, mapped, protection, machine)?;
        }
        if in_turns && mapped > start {
            self.in_turns.add(start, mapped)?;
        }
        match mapped < end {
            true => Err(Errno::ENOMEM),
            false => Ok(0),
        }
    }

    /// What the program may do at an address, as `mprotect` is told it.
    pub fn protection_at(&self, addr: u64) -> u64 {
        let found = match is_sparse(addr) {
            true => self.sparse.regions.at(addr).map(|region| region.protection),
            false => self.arena.holds(addr, addr + 1),
        };
        match found.unwrap_or(Protection::Write) {
            Protection::None => 0,
            Protection::Read => 1,
            Protection::Write => 3,
            Protection::Execute => 5,
        }
    }

    /// Up to where, and at most to `end`, the program has something from `start` on.
    fn mapped_until(&self, start: u64, end: u64) -> u64 {
        match is_sparse(start) {
            true => self.sparse.regions.mapped_until(start).min(end),
            false if self.arena.contains(start, 1) => self.arena.mapped_until(start, end),
            false => start,
        }
    }

    /// Whether the program has something everywhere in a range of whole pages.
    fn is_mapped_range(&self, start: u64, end: u64) -> bool {
        match is_sparse(start) {
            true => self.sparse.regions.mapped_until(start) >= end,
            false => self.arena.contains(start, end - start) && self.arena.is_mapped(start, end),
        }
    }

    /// The ranges that are to be zeroed when the snapshot goes on as another instance.
    pub fn wiped(&self) -> impl Iterator<Item = (u64, u64)> + use<> {
        self.wiped.get()
    }

    /// Backs the page at `addr` for what the program wants to do there.
    pub fn back(
        &mut self,
        addr: u64,
        touch: Touch,
        machine: &mut impl Machine,
    ) -> Result<(), Refusal> {
        if self.takes_turns(addr) {
            return self.turn(addr, touch, machine);
        }
        self.back_sparse(addr, touch, machine)
    }

    fn back_sparse(
        &mut self,
        addr: u64,
        touch: Touch,
        machine: &mut impl Machine,
    ) -> Result<(), Refusal> {
        if !is_sparse(addr) {
            return Err(Refusal::Protected);
        }
        let mut backing = Backing {
            frames: &mut self.frames,
            arena: &mut self.arena,
            files: &self.files,
        };
        self.sparse.back(addr, touch, &mut backing, machine)
    }

    /// The same, whatever the program may do with it.
    fn back_anyhow(&mut self, addr: u64, machine: &mut impl Machine) -> Result<(), Refusal> {
        let region = self.sparse.regions.at(addr).ok_or(Refusal::Unmapped)?;
        let mut backing = Backing {
            frames: &mut self.frames,
            arena: &mut self.arena,
            files: &self.files,
        };
        self.sparse.back_page(addr, region, &mut backing, machine)
    }

    /// Backs, before the snapshot is taken, what the first requests will probably touch.
    pub fn back_ahead(&mut self, machine: &mut impl Machine) {
        let most = self.free_bytes() / 2;
        let mut backing = Backing {
            frames: &mut self.frames,
            arena: &mut self.arena,
            files: &self.files,
        };
        self.sparse.back_ahead(most, &mut backing, machine);
    }

    /// Calls `each` with every mapping: start, end, protection.
    pub fn for_each_mapping(&self, mut each: impl FnMut(u64, u64, Protection)) {
        self.arena.for_each_mapping(&mut each);
        for region in self.sparse.regions.all() {
            each(region.start, region.end, region.protection);
        }
    }

    /// Whether the program has something at `addr`, accessible or not.
    pub fn is_mapped(&self, addr: u64) -> bool {
        self.arena.contains(addr, 1) || self.sparse.regions.at(addr).is_some()
    }

    /// Whether the program may touch a file at `addr` so, which ends before.
    pub fn is_behind_end(&self, addr: u64, touch: Touch) -> bool {
        let Some(region) = self.sparse.regions.at(addr) else {
            return false;
        };
        let is_behind = |shown: Share| u64::from(shown.page) >= self.files.pages(shown.file);
        region.protection.allows(touch) && region.share_at(addr).is_some_and(is_behind)
    }

    /// Whether the page at `addr` can be read, or written, without a fault.
    fn is_accessible(&self, addr: u64, write: bool, machine: &impl Machine) -> bool {
        let entry = match is_sparse(addr) {
            true => self.sparse.tables.entry(addr, machine),
            false if self.arena.contains(addr, 1) => machine.entry(self.arena.slot(addr)),
            false => 0,
        };
        match write {
            true => sparse::is_writable(entry),
            false => sparse::is_readable(entry),
        }
    }

    /// Whether [`access`](Self::access) has given less than there is since this was asked.
    pub fn take_cut(&mut self) -> bool {
        core::mem::take(&mut self.cut)
    }

    /// Makes a range of the program's usable by the library OS; gives how much of it is, from its start
    /// on. All of it where it is backed already or `whole`; else what can be had without much ado. An
    /// error if nothing of it is.
    pub fn access(
        &mut self,
        addr: u64,
        bytes: u64,
        write: bool,
        whole: bool,
        machine: &mut impl Machine,
    ) -> Result<u64, Refusal> {
        let end = addr.checked_add(bytes).ok_or(Refusal::Unmapped)?;
        let mut at = addr;
        while at < end {
            if !self.is_accessible(at, write, machine) {
                let enough = at - addr >= MAX_BACKED_BYTES && !whole;
                let touch = if write { Touch::Write } else { Touch::Read };
                let backed = match enough {
                    true => Err(Refusal::NoMemory),
                    false => self.back(at, touch, machine),
                };
                match backed {
                    Ok(()) => {}
                    Err(_) if at > addr && !whole => {
                        self.cut |= enough;
                        return Ok(at - addr);
                    }
                    Err(refusal) => return Err(refusal),
                }
            }
            at = (at / PAGE_BYTES + 1) * PAGE_BYTES;
        }
        Ok(bytes)
    }
}

impl Default for Memory {
    fn default() -> Self {
        Memory::new()
    }
}

/// The page tables' word for `prot`, and whether the program wants to execute what it can write to as well.
fn protection(prot: u64) -> (Protection, bool) {
    match prot & (PROT_READ | PROT_WRITE | PROT_EXEC) {
        0 => (Protection::None, false),
        PROT_READ => (Protection::Read, false),
        prot if prot & PROT_WRITE != 0 => (Protection::Write, prot & PROT_EXEC != 0),
        _ => (Protection::Execute, false),
    }
}
