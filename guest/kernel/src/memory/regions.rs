//! What the program has in the sparse space: a list of ranges, by address.

use holm_hostcall::{PAGE_BYTES, SPARSE_END, SPARSE_START};

use super::machine::Protection;
use crate::errno::Errno;

/// Most separate mappings.
const MAX_REGIONS: usize = 4096;

/// What a region shows of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// The file, by its number in /tmp.
    pub file: u16,
    /// Whether it may be made writable.
    pub may_write: bool,
    /// The page of the file that is at the region's start.
    pub page: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Region {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) protection: Protection,
    /// Whether it counts as memory that the program was promised, once it may be written.
    pub(super) promised: bool,
    /// None for memory of its own.
    pub(super) share: Option<Share>,
}

impl Region {
    /// What it shows from an address within on, or right behind.
    pub(super) fn share_at(&self, addr: u64) -> Option<Share> {
        self.share.map(|share| Share {
            page: share.page + ((addr - self.start) / PAGE_BYTES) as u32,
            ..share
        })
    }

    /// The page of the file that an address within shows.
    pub(super) fn page_at(&self, addr: u64) -> Option<u64> {
        self.share_at(addr).map(|share| u64::from(share.page))
    }

    /// Whether nothing lies between it and a next one, and they are alike.
    fn goes_on_in(&self, next: &Region) -> bool {
        self.end == next.start
            && self.protection == next.protection
            && self.promised == next.promised
            && self.share_at(self.end) == next.share
    }

    fn cut_before(&mut self, addr: u64) {
        self.share = self.share_at(addr);
        self.start = addr;
    }

    /// Whether the program was promised memory for it.
    pub(super) fn is_committed(&self) -> bool {
        self.promised && self.share.is_none() && self.protection == Protection::Write
    }
}

/// The list.
pub(super) struct Regions {
    regions: [Region; MAX_REGIONS],
    count: usize,
}

impl Regions {
    /// None.
    pub(super) const fn new() -> Self {
        const NONE: Region = Region {
            start: 0,
            end: 0,
            protection: Protection::None,
            promised: false,
            share: None,
        };
        Regions {
            regions: [NONE; MAX_REGIONS],
            count: 0,
        }
    }

    /// All of them, in order.
    pub(super) fn all(&self) -> &[Region] {
        &self.regions[..self.count]
    }

    /// The region that holds `addr`, if any.
    pub(super) fn at(&self, addr: u64) -> Option<Region> {
        let region = self.next(addr)?;
        (region.start <= addr).then_some(region)
    }

    /// The region that holds `addr`, or else the next one.
    pub(super) fn next(&self, addr: u64) -> Option<Region> {
        let at = self.all().partition_point(|region| region.end <= addr);
        self.all().get(at).copied()
    }

    /// The parts of regions that lie in a range, in order; what is done with them may change the list.
    pub(super) fn parts(&self, start: u64, end: u64) -> impl Iterator<Item = Region> + '_ {
        let from = self.all().partition_point(|region| region.end <= start);
        let within = self.all()[from..]
            .iter()
            .take_while(move |region| region.start < end && start < end);
        within.map(move |region| {
            let mut part = *region;
            if part.start < start {
                part.cut_before(start);
            }
            part.end = part.end.min(end);
            part
        })
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

    /// Whether nothing is mapped in a range, and all of it lies in the sparse space.
    pub(super) fn is_free(&self, start: u64, bytes: u64) -> bool {
        let Some(end) = start.checked_add(bytes) else {
            return false;
        };
        let is_sparse = start >= SPARSE_START && end <= SPARSE_END;
        is_sparse && self.next(start).is_none_or(|region| region.start >= end)
    }

    /// The highest free range of `bytes` bytes that begins at a multiple of `align`, with a page around it
    /// that stays free, so that no two mappings grow into each other unnoticed.
    pub(super) fn gap(&self, bytes: u64, align: u64) -> Option<u64> {
        let fits = |floor: u64, ceiling: u64| {
            let start = ceiling.checked_sub(bytes)? & !(align - 1);
            (start >= floor).then_some(start)
        };
        let mut ceiling = SPARSE_END - PAGE_BYTES;
        for region in self.all().iter().rev() {
            if let Some(start) = fits(region.end + PAGE_BYTES, ceiling) {
                return Some(start);
            }
            ceiling = region.start - PAGE_BYTES;
        }
        fits(SPARSE_START, ceiling)
    }

    /// Enters a region; nothing is mapped there.
    pub(super) fn insert(&mut self, new: Region) -> Result<(), Errno> {
        let at = self
            .all()
            .partition_point(|region| region.start < new.start);
        if at > 0 && self.regions[at - 1].goes_on_in(&new) {
            self.regions[at - 1].end = new.end;
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
            self.regions.copy_within(at + 2..self.count, at + 1);
            self.count -= 1;
        }
    }

    /// Cuts the regions at both ends of a range, so that none reaches over an end; gives those within.
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
                self.regions[at + 1].cut_before(edge);
            }
        }
        let first = self.all().partition_point(|region| region.end <= start);
        let last = self.all().partition_point(|region| region.start < end);
        Ok(first..last)
    }

    /// Takes a range away. ENOMEM if there is no room for what is left of a region in two.
    pub(super) fn remove(&mut self, start: u64, end: u64) -> Result<(), Errno> {
        let range = self.cut(start, end)?;
        self.regions.copy_within(range.end..self.count, range.start);
        self.count -= range.len();
        Ok(())
    }

    /// Gives all regions in a range another protection.
    pub(super) fn protect(
        &mut self,
        start: u64,
        end: u64,
        protection: Protection,
    ) -> Result<(), Errno> {
        let range = self.cut(start, end)?;
        for region in &mut self.regions[range.clone()] {
            region.protection = protection;
        }
        for at in (range.start.saturating_sub(1)..range.end).rev() {
            self.join(at);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: u64 = PAGE_BYTES;

    fn region(pages: core::ops::Range<u64>, page: Option<u32>) -> Region {
        Region {
            start: SPARSE_START + pages.start * P,
            end: SPARSE_START + pages.end * P,
            protection: Protection::Write,
            promised: true,
            share: page.map(|page| Share {
                file: 1,
                may_write: true,
                page,
            }),
        }
    }

    fn list() -> std::boxed::Box<Regions> {
        std::boxed::Box::new(Regions::new())
    }

    #[test]
    fn parts_of_a_file_become_one_region_only_where_they_go_on_in_each_other() {
        let mut regions = list();
        regions.insert(region(0..2, Some(5))).unwrap();
        regions.insert(region(2..4, Some(7))).unwrap();
        regions.insert(region(4..6, Some(7))).unwrap();
        regions.insert(region(6..8, None)).unwrap();
        assert_eq!(
            regions.all(),
            [
                region(0..4, Some(5)),
                region(4..6, Some(7)),
                region(6..8, None)
            ]
        );
        regions
            .remove(SPARSE_START + P, SPARSE_START + 3 * P)
            .unwrap();
        assert_eq!(
            regions.all()[..2],
            [region(0..1, Some(5)), region(3..4, Some(8))]
        );
        let parts: std::vec::Vec<_> = regions
            .parts(SPARSE_START + 5 * P, SPARSE_START + 7 * P)
            .collect();
        assert_eq!(parts, [region(5..6, Some(8)), region(6..7, None)]);
    }

    #[test]
    fn the_highest_gap_is_taken_and_the_whole_space_is_one() {
        let mut regions = list();
        let all = SPARSE_END - SPARSE_START;
        assert!(
            regions.gap(all, P).is_none(),
            "a page stays free at the end"
        );
        assert_eq!(regions.gap(all - P, P), Some(SPARSE_START));
        let first = regions.gap(8 * P, P).unwrap();
        assert_eq!(first, SPARSE_END - 9 * P);
        let number = (first - SPARSE_START) / P;
        regions.insert(region(number..number + 8, None)).unwrap();
        assert_eq!(regions.gap(P, P), Some(first - 2 * P));
        assert!(regions.is_free(first - P, P) && !regions.is_free(first - P, 2 * P));
        assert!(!regions.is_free(SPARSE_END, P) && !regions.is_free(SPARSE_START - P, P));
    }
}
