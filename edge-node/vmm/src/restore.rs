//! How an instance's memory is filled from its snapshot, and how it is made pristine again.
//!
//! | strategy | filled by | reset by |
//! | --- | --- | --- |
//! | copy-on-write | mapping the snapshot | mapping it anew |
//! | working set | the same, and what requests use is there ahead | copying back what was written |
//! | full copy | copying all of it, into large pages where they are had | copying all of it |
//!
//! Which is best differs from one KVM to another and from one program to the next, so the node measures
//! ([`Choice::measure`]) and keeps the choice with the snapshot. Whatever the strategy, an instance is byte by byte
//! the snapshot after each of these.
//!
//! What is hard in it is not the memory but what KVM has derived from the guest's page tables. Under shadow paging it
//! does not see the host write to them. It forgets what it derived from a leaf table when the page that an entry
//! leads to is taken from the guest's memory, and from all tables when the memory slot is removed. So nothing here
//! changes a page table without one of the two, and the tables above the leaf tables never without the second.

use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

use crate::layout::Layout;
use crate::memory::GuestMemory;
use crate::pagemap::{self, Written};
use crate::{Snapshot, VmmError};

mod choice;

pub use choice::{Choice, Cost};
pub(crate) use choice::Stored;

const PAGE_BYTES: u64 = holm_hostcall::PAGE_BYTES;
/// More written pages than these are not copied back one by one: the mapping is made anew, which
/// also gives their memory back.
const MAX_COPIED_PAGES: u64 = 8192;
/// Pages whose translations are the same, between others where they are not, are forgotten with them up to so many:
/// it takes two system calls for each run.
const MIN_GAP_PAGES: u64 = 8;
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
    /// The instance has a copy of all of the snapshot in memory of its own, where all of it stays in place.
    FullCopy,
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
    pub(crate) touched: OnceLock<Vec<Written>>,
}

impl Strategy {
    /// All of them.
    pub const ALL: [Strategy; 3] = [
        Strategy::CopyOnWrite,
        Strategy::WorkingSet,
        Strategy::FullCopy,
    ];

    /// Its name, as in the form on disk.
    pub fn as_str(self) -> &'static str {
        match self {
            Strategy::CopyOnWrite => "copy-on-write",
            Strategy::WorkingSet => "working-set",
            Strategy::FullCopy => "full-copy",
        }
    }

    /// Fills memory in which there are zeroes.
    pub(crate) fn fill(self, snapshot: &Snapshot, memory: &GuestMemory) -> Result<(), VmmError> {
        for (start, end) in snapshot.chunks.large() {
            memory.prefer_large(start, end - start)?;
        }
        match self {
            Strategy::CopyOnWrite => snapshot.lay(memory),
            Strategy::WorkingSet => {
                snapshot.lay(memory)?;
                for run in snapshot.sets.ahead() {
                    memory.populate(run.start, run.end - run.start)?;
                }
                Ok(())
            }
            Strategy::FullCopy => {
                for (start, end) in snapshot.large_parts() {
                    memory.prefer_large(start, end - start)?;
                }
                for (start, end) in snapshot.own_pages() {
                    memory.copy_from(&snapshot.pristine, *start, end - start)?;
                }
                Ok(())
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
            (Strategy::FullCopy, Some(held)) => exchange(held, snapshot, memory),
            _ => {
                memory.clear()?;
                self.fill(snapshot, memory)
            }
        }
    }

    /// Makes the memory of an instance that has run what it was. `written` is room for the pages in question.
    pub(crate) fn reset(
        self,
        snapshot: &Snapshot,
        memory: &GuestMemory,
        written: &mut Vec<Written>,
    ) -> Result<Reset, VmmError> {
        pagemap::written_pages(memory, written)?;
        match self {
            Strategy::CopyOnWrite | Strategy::WorkingSet => self.put_back(snapshot, memory, written),
            Strategy::FullCopy => copy_back(snapshot, memory, written),
        }
    }

    /// For memory that is mapped from the snapshot: what was written is what is no longer the file's.
    fn put_back(
        self,
        snapshot: &Snapshot,
        memory: &GuestMemory,
        written: &[Written],
    ) -> Result<Reset, VmmError> {
        let tables = Tables::of(&snapshot.layout, written.iter().copied());
        let anew = |pages| {
            self == Strategy::CopyOnWrite || tables != Tables::Same || pages > MAX_COPIED_PAGES
        };
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

/// For memory that is a copy: nothing tells what was written, so all that is there is put back.
fn copy_back(
    snapshot: &Snapshot,
    memory: &GuestMemory,
    there: &[Written],
) -> Result<Reset, VmmError> {
    let (start, end) = snapshot.layout.all_tables();
    let mut changed = Vec::new();
    for run in there {
        for page in pages(run.start.max(start), run.end.min(end)) {
            if !snapshot.is_pristine(memory, page)? {
                changed.push(page);
            }
        }
    }
    let tables = Tables::of(&snapshot.layout, pagemap::runs(changed.into_iter()).into_iter());
    if tables == Tables::Upper {
        return Ok(tables.anew());
    }
    for run in there {
        snapshot.put_back(memory, run.start, run.end)?;
    }
    if tables == Tables::Leaves {
        memory.retranslate_all()?;
    }
    Ok(Reset::Done)
}

/// Makes a pristine copy of `held` one of `snapshot`. What lies in the same place under the same entry of the page
/// tables stays translated.
fn exchange(
    held: &Snapshot,
    snapshot: &Snapshot,
    memory: &GuestMemory,
) -> Result<(), VmmError> {
    match differing_entries(held, snapshot)? {
        Some(runs) => {
            for (start, end) in runs {
                memory.retranslate(start, end)?;
            }
        }
        None => memory.retranslate_all()?,
    }
    for (start, end) in held.own_pages() {
        snapshot.put_back(memory, *start, *end)?;
    }
    for (start, end) in snapshot.own_pages_outside(held) {
        memory.copy_from(&snapshot.pristine, start, end - start)?;
    }
    Ok(())
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
    fn of(layout: &Layout, written: impl Iterator<Item = Written>) -> Self {
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
    /// What an instance is given before its first request.
    fn ahead(&self) -> Vec<Written> {
        let mode: u32 = std::env::var("HX_AHEAD").ok().and_then(|v| v.parse().ok()).unwrap_or(0);
        let w = self.written.get().cloned().unwrap_or_default();
        let t = self.touched.get().cloned().unwrap_or_default();
        if mode == 0 { return w; }
        let fixed = crate::image::Image::get().fixed();
        let mut pages: Vec<u64> = Vec::new();
        for run in &w { pages.extend(self::pages(run.start, run.end)); }
        for run in &t { pages.extend(self::pages(run.start, run.end).filter(|p| !fixed.contains(p) && *p < 0x4000_0000)); }
        pages.sort_unstable(); pages.dedup();
        let mut more = Vec::new();
        for p in &pages {
            let first = match mode { 1 => *p, _ => p / 32768 * 32768 };
            let last = match mode { 3 => first + 32768, _ => p + 4096 };
            more.extend(self::pages(first, last).filter(|p| *p > 0 && !fixed.contains(p)));
        }
        more.sort_unstable(); more.dedup();
        pagemap::runs(more.into_iter())
    }
}

fn pages(start: u64, end: u64) -> impl Iterator<Item = u64> {
    (start..end).step_by(PAGE_BYTES as usize)
}
