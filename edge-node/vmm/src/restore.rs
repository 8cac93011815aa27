//! How an instance's memory is filled from its snapshot, and how it is made pristine again.
//!
//! | strategy | filled by | reset by |
//! | --- | --- | --- |
//! | copy-on-write | mapping the snapshot | mapping it anew |
//! | working set | the same, and what requests use is there ahead | copying back what was written |
//! | full copy | copying all of it, into large pages where they are had | copying all of it, all translated anew |
//! | own file | copying all of it into a file of the slot's own, which is mapped; what requests use is there ahead | copying back what was written |
//!
//! Which is best differs from one KVM to another and from one program to the next, so the node measures
//! ([`Choice::make`]) and keeps the choice with the snapshot. Whatever the strategy, an instance is byte by byte
//! the snapshot after each of these.
//!
//! What is hard in it is not the memory but what KVM has derived from the guest's page tables. Under shadow paging it
//! does not see the host write to them. It forgets what it derived from a leaf table when the page that an entry
//! leads to is taken from the guest's memory, and from all tables when the memory slot is removed. So nothing here
//! changes a page table without one of the two, and the tables above the leaf tables never without the second.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

use crate::layout::Layout;
use crate::memory::GuestMemory;
use crate::pagemap::{self, Written};
use crate::{KvmKind, Snapshot, VmmError};

mod choice;

pub use choice::{Choice, Cost};
pub(crate) use choice::{Measured, Stored};

const PAGE_BYTES: u64 = holm_hostcall::PAGE_BYTES;
/// With a page that is touched KVM translates, under shadow paging, the others of eight, in rising order up to the first
/// that is not there to be written (`pte_prefetch` in arch/x86/kvm/mmu).
const PREFETCHED_PAGES: u64 = 8;
/// So many pages before one that is touched are put there for that alone. Each reset copies them back.
const MAX_LEAD_PAGES: u64 = 4;
/// And so many in all.
const MAX_NEAR_PAGES: usize = 64;
/// More written pages than these are not copied back one by one: the mapping is made anew, which
/// also gives their memory back.
pub(crate) const MAX_COPIED_PAGES: u64 = 8192;
/// Pages whose translations are the same, between others where they are not, are forgotten with them up to so many:
/// it takes two system calls for each run.
const MIN_GAP_PAGES: u64 = 8;
/// Parts of a slot's own file that are mapped, from which on they are mapped anew for the next version.
pub(crate) const MAX_PARTS: usize = 64;
/// Runs of them above which all are forgotten.
const MAX_RUNS: usize = 64;

/// How instances of a version are restored and reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// The snapshot is mapped, and mapped anew at each reset: the least memory.
    CopyOnWrite,
    /// The snapshot is mapped, what requests use is there ahead, and what they wrote is copied back into place.
    WorkingSet,
    /// The instance has a copy of all of the snapshot in memory of its own, in large pages where that is worth it.
    FullCopy,
    /// The slot has a copy of all of the snapshot in a file of its own, which the instance maps. What requests use is
    /// there ahead, what they only read included, so that KVM translates more of it at a time. What was written is
    /// copied back into place; the next version is copied into the same file, so that what lies where the last one
    /// had something stays translated.
    OwnFile,
}

/// What became of a reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reset {
    /// The memory is what it was.
    Done,
    /// It has to be filled anew, in its place if that is right for the page tables.
    Anew { in_place: bool },
}

/// What requests of a version use.
#[derive(Debug, Default)]
pub(crate) struct Sets {
    /// What the first that was reset had written: what most will write.
    pub(crate) written: OnceLock<Vec<Written>>,
    /// What the first touched at all, if that was recorded.
    touched: OnceLock<Vec<Written>>,
    /// What is to be there to be written although it is only read, under shadow paging.
    near: OnceLock<Vec<Written>>,
}

impl Strategy {
    /// All of them.
    #[cfg(test)]
    pub(crate) const ALL: [Strategy; 4] = [
        Strategy::CopyOnWrite,
        Strategy::WorkingSet,
        Strategy::FullCopy,
        Strategy::OwnFile,
    ];

    /// Its name, as in the form on disk.
    pub fn as_str(self) -> &'static str {
        match self {
            Strategy::CopyOnWrite => "copy-on-write",
            Strategy::WorkingSet => "working-set",
            Strategy::FullCopy => "full-copy",
            Strategy::OwnFile => "own-file",
        }
    }

    /// Fills memory in which there are zeroes.
    pub(crate) fn fill(
        self,
        snapshot: &Snapshot,
        memory: &mut GuestMemory,
    ) -> Result<(), VmmError> {
        for (start, end) in snapshot.chunks.large() {
            memory.prefer_large(start, end - start)?;
        }
        match self {
            Strategy::CopyOnWrite => snapshot.lay(memory),
            Strategy::WorkingSet => {
                snapshot.lay(memory)?;
                populate(memory, snapshot.sets.written.get())
            }
            Strategy::FullCopy => {
                for (start, end) in snapshot.large_parts() {
                    memory.prefer_large(start, end - start)?;
                }
                snapshot.copy_to(memory)
            }
            Strategy::OwnFile => {
                memory.lay_own_file(snapshot.parts())?;
                snapshot.copy_to(own_file(memory)?)?;
                snapshot.sets.populate_all(memory)
            }
        }
    }

    /// Fills memory in the place of what was there: anything, or a pristine instance that was `held` under this
    /// strategy. The tables above the leaf tables are the same.
    pub(crate) fn refill(
        self,
        snapshot: &Snapshot,
        memory: &mut GuestMemory,
        held: Option<&Snapshot>,
    ) -> Result<(), VmmError> {
        match (self, held) {
            (Strategy::FullCopy, Some(held)) => {
                retranslate(held, snapshot, memory)?;
                exchange(held, snapshot, memory)
            }
            (Strategy::OwnFile, Some(held)) if memory.own_parts() <= MAX_PARTS => {
                retranslate(held, snapshot, memory)?;
                // What is not the file's any more before there is more of it: that is written in both.
                let mut written = Vec::new();
                pagemap::written_pages(memory, &mut written)?;
                memory.lay_own_file(snapshot.parts())?;
                exchange(held, snapshot, own_file(memory)?)?;
                for run in written {
                    snapshot.put_back(memory, run.start, run.end)?;
                }
                snapshot.sets.populate_all(memory)
            }
            _ => {
                memory.clear()?;
                self.fill(snapshot, memory)
            }
        }
    }

    /// Makes the memory of an instance that has run what it was, if no more than `most` pages have to be copied for that.
    /// `written` is room for the pages in question.
    pub(crate) fn reset(
        self,
        snapshot: &Snapshot,
        memory: &GuestMemory,
        written: &mut Vec<Written>,
        most: u64,
    ) -> Result<Reset, VmmError> {
        pagemap::written_pages(memory, written)?;
        match self {
            Strategy::CopyOnWrite | Strategy::WorkingSet | Strategy::OwnFile => {
                self.put_back(snapshot, memory, written, most)
            }
            Strategy::FullCopy => copy_back(snapshot, memory, written),
        }
    }

    /// For memory that is mapped from a file: what was written is what is no longer the file's.
    fn put_back(
        self,
        snapshot: &Snapshot,
        memory: &GuestMemory,
        written: &[Written],
        most: u64,
    ) -> Result<Reset, VmmError> {
        let tables = Tables::of(&snapshot.layout, written);
        let anew = |pages| self == Strategy::CopyOnWrite || tables != Tables::Same || pages > most;
        let is_new = snapshot.chunks.are_new_in(written);
        let used = match is_new {
            true => snapshot.chunks.decide(memory, written, anew)?,
            false => Vec::new(),
        };
        snapshot.sets.written.get_or_init(|| {
            // Tables that are there ahead would pass for changed.
            let mut used = if is_new { used } else { written.to_vec() };
            used.retain(|run| run.end <= snapshot.layout.program_end());
            used
        });
        let pages = written.iter().map(|run| (run.end - run.start) / PAGE_BYTES);
        if is_new || anew(pages.sum()) {
            return Ok(tables.anew());
        }
        for run in written {
            snapshot.put_back(memory, run.start, run.end)?;
        }
        Ok(Reset::Done)
    }
}

/// For memory that is a copy: nothing tells what was written, so all that is there is put back, and all is translated
/// anew, since a page table that is what it was may have been another in between.
fn copy_back(
    snapshot: &Snapshot,
    memory: &GuestMemory,
    there: &[Written],
) -> Result<Reset, VmmError> {
    for (start, end) in [snapshot.layout.upper_tables(), snapshot.layout.first_leaf()] {
        for run in there {
            for page in pages(run.start.max(start), run.end.min(end)) {
                if !snapshot.is_pristine(memory, page)? {
                    return Ok(Tables::Upper.anew());
                }
            }
        }
    }
    for run in there {
        snapshot.put_back(memory, run.start, run.end)?;
    }
    memory.retranslate_all()?;
    Ok(Reset::Done)
}

/// Has KVM forget what it has derived from entries of the page tables of `held` that are others in `snapshot`. All else
/// stays translated.
fn retranslate(held: &Snapshot, snapshot: &Snapshot, memory: &GuestMemory) -> Result<(), VmmError> {
    match differing_entries(held, snapshot)? {
        Some(runs) => runs
            .into_iter()
            .try_for_each(|(start, end)| memory.retranslate(start, end)),
        None => memory.retranslate_all(),
    }
}

/// Makes a copy of `held` one of `snapshot`.
fn exchange(held: &Snapshot, snapshot: &Snapshot, memory: &GuestMemory) -> Result<(), VmmError> {
    for (start, end) in held.own_pages() {
        snapshot.put_back(memory, *start, *end)?;
    }
    for (start, end) in snapshot.own_pages_outside(held) {
        memory.copy_from(&snapshot.pristine, start, end - start)?;
    }
    Ok(())
}

fn own_file(memory: &GuestMemory) -> Result<&GuestMemory, VmmError> {
    memory
        .own_file()
        .ok_or(VmmError::Misuse("an instance without the file of its own"))
}

/// The pages whose entries in the leaf tables differ between two snapshots of the same layout, in runs; none if there
/// are too many, or if entries of the sparse space may differ, which lead anywhere.
fn differing_entries(
    one: &Snapshot,
    other: &Snapshot,
) -> Result<Option<Vec<(u64, u64)>>, VmmError> {
    const ENTRY: usize = size_of::<u64>();
    const REACH: u64 = PAGE_BYTES / ENTRY as u64 * PAGE_BYTES;
    let (sparse, end) = one.layout.sparse_leaves();
    if [one, other].iter().any(|each| each.has_own_in(sparse, end)) {
        return Ok(None);
    }
    let mut runs: Vec<(u64, u64)> = Vec::new();
    let (start, end) = one.layout.leaves();
    let (mut here, mut there) = ([0; PAGE_BYTES as usize], [0; PAGE_BYTES as usize]);
    for (table, first) in pages(start, end).zip((0u64..).step_by(REACH as usize)) {
        one.pristine.read(table, &mut here)?;
        other.pristine.read(table, &mut there)?;
        if here == there {
            continue;
        }
        let entries = here.chunks_exact(ENTRY).zip(there.chunks_exact(ENTRY));
        for (page, (here, there)) in (first..).step_by(PAGE_BYTES as usize).zip(entries) {
            if here == there {
                continue;
            }
            let full = runs.len() == MAX_RUNS;
            match runs.last_mut() {
                Some((_, end)) if page - *end <= MIN_GAP_PAGES * PAGE_BYTES => {
                    *end = page + PAGE_BYTES;
                }
                _ if full => return Ok(None),
                _ => runs.push((page, page + PAGE_BYTES)),
            }
        }
    }
    Ok(Some(runs))
}

/// Which page tables a guest has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tables {
    Same,
    /// Leaf tables, but for the first.
    Leaves,
    /// Those that lead to leaf tables, or the one from which what is fixed is translated, which is never forgotten
    /// in place.
    Upper,
}

impl Tables {
    fn of(layout: &Layout, written: &[Written]) -> Self {
        let mut found = Tables::Same;
        for run in written {
            let touches = |(start, end): (u64, u64)| run.start < end && run.end > start;
            if touches(layout.upper_tables()) || touches(layout.first_leaf()) {
                return Tables::Upper;
            }
            if touches(layout.all_tables()) {
                found = Tables::Leaves;
            }
        }
        found
    }

    fn anew(self) -> Reset {
        Reset::Anew {
            in_place: self != Tables::Upper,
        }
    }
}

impl Sets {
    /// What a first request was found to touch. What is known stays.
    pub(crate) fn touch(&self, kvm: KvmKind, snapshot: &Snapshot, touched: Vec<Written>) {
        if kvm == KvmKind::Pvm {
            self.near.get_or_init(|| near(snapshot, &touched));
        }
        self.touched.get_or_init(|| touched);
    }

    /// The same again, if that was recorded.
    pub(crate) fn touched(&self) -> Option<&Vec<Written>> {
        self.touched.get()
    }

    /// What makes the first request fastest, where memory is not spared.
    fn populate_all(&self, memory: &GuestMemory) -> Result<(), VmmError> {
        populate(memory, self.written.get())?;
        populate(memory, self.near.get())
    }
}

/// Gives memory pages of its own where the runs are, if they are known.
fn populate(memory: &GuestMemory, runs: Option<&Vec<Written>>) -> Result<(), VmmError> {
    let mut runs = runs.into_iter().flatten();
    runs.try_for_each(|run| memory.populate(run.start, run.end - run.start))
}

/// The pages of `touched` that hold something of the program's, and those before each that are in the way of its being
/// translated with another.
fn near(snapshot: &Snapshot, touched: &[Written]) -> Vec<Written> {
    const REACH: u64 = PREFETCHED_PAGES * PAGE_BYTES;
    let Layout { program_start, .. } = snapshot.layout;
    let program = program_start..snapshot.layout.program_end();
    let is_there = |page: &u64| {
        let mut parts = snapshot.parts().iter();
        program.contains(page) && parts.any(|(start, end)| (start..end).contains(&page))
    };
    let mut found = BTreeSet::new();
    for page in touched.iter().flat_map(|run| pages(run.start, run.end)) {
        let first = page / REACH * REACH;
        let lead = match (page - first) / PAGE_BYTES {
            0..=MAX_LEAD_PAGES => first,
            _ => page,
        };
        found.extend(pages(lead, page + PAGE_BYTES).filter(is_there));
        if found.len() >= MAX_NEAR_PAGES {
            break;
        }
    }
    pagemap::runs(found.into_iter())
}

fn pages(start: u64, end: u64) -> impl Iterator<Item = u64> {
    (start..end).step_by(PAGE_BYTES as usize)
}
