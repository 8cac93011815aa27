//! Which pages of a guest hold something.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

use holm_hostcall::PAGE_BYTES;
use sha2::{Digest as _, Sha256};

use crate::layout::Layout;
use crate::memory;

/// Zeroes of no more than this between other pages are mapped with them: each part is a mapping of its own.
const MIN_GAP_BYTES: u64 = 64 << 10;
/// Most such parts. The mappings of a process are limited (vm.max_map_count), and what a program leaves in its
/// memory is the program's choice.
pub(crate) const MAX_PARTS: usize = 32;

/// Pages in rising order, by where they begin and end in the guest.
#[derive(Debug, Default)]
pub(super) struct Pages(pub(super) Vec<(u64, u64)>);

impl Pages {
    /// Adds the page at an address behind all others.
    pub(super) fn push(&mut self, at: u64) {
        match self.0.last_mut() {
            Some((_, end)) if *end == at => *end += PAGE_BYTES,
            _ => self.0.push((at, at + PAGE_BYTES)),
        }
    }

    /// They and what lies between them, in [`MAX_PARTS`] at most; nothing of `hole`, in which none of them is.
    pub(super) fn parts(&self, hole: &Range<u64>) -> Vec<(u64, u64)> {
        let mut gap = MIN_GAP_BYTES;
        loop {
            let parts: Vec<_> = self.joined(gap, hole).take(MAX_PARTS + 1).collect();
            if parts.len() <= MAX_PARTS {
                return parts;
            }
            gap *= 2;
        }
    }

    /// The same with gaps of up to `gap` bytes.
    fn joined(&self, gap: u64, hole: &Range<u64>) -> impl Iterator<Item = (u64, u64)> {
        let mut runs = self.0.iter().copied().peekable();
        let same = move |end: u64, from: u64| {
            from - end <= gap && !(end <= hole.start && hole.end <= from)
        };
        std::iter::from_fn(move || {
            let (start, mut end) = runs.next()?;
            while let Some((_, next)) = runs.next_if(|(from, _)| same(end, *from)) {
                end = next;
            }
            Some((start, end))
        })
    }

    /// The parts of a range that are of them.
    pub(super) fn within(&self, start: u64, end: u64) -> impl Iterator<Item = (u64, u64)> {
        let first = self.0.partition_point(|(_, end)| *end <= start);
        let runs = self.0[first..]
            .iter()
            .take_while(move |(from, _)| *from < end);
        runs.map(move |(from, to)| ((*from).max(start), (*to).min(end)))
    }
}

/// Calls `each` with every page of a guest that is not zero, and its guest address.
pub(super) fn for_each_page(
    file: &File,
    offset: u64,
    layout: &Layout,
    mut each: impl FnMut(u64, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    const PAGE: usize = PAGE_BYTES as usize;
    const ZEROES: &[u8] = &[0; PAGE];
    let mut buffer = vec![0; 256 * PAGE];
    for (start, end) in memory::data_extents(file, offset, offset + layout.total_bytes())? {
        // File systems tell extents in their own blocks, which may be smaller than a page.
        let mut at = (start - offset) / PAGE_BYTES * PAGE_BYTES + offset;
        while at < end {
            let whole = (end.next_multiple_of(PAGE_BYTES) - at).min(buffer.len() as u64);
            let part = &mut buffer[..whole as usize];
            file.read_exact_at(part, at)?;
            for (index, page) in part.chunks_exact(PAGE).enumerate() {
                if page != ZEROES {
                    each(at - offset + index as u64 * PAGE_BYTES, page)?;
                }
            }
            at += whole;
        }
    }
    Ok(())
}

/// Adds a page and its address.
pub(super) fn hash_page(hash: &mut Sha256, at: u64, page: &[u8]) {
    hash.update(at.to_le_bytes());
    hash.update(page);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_told_apart_into_what_is_zero_and_what_is_not() {
        let mut pages = Pages::default();
        for page in [1, 2, 3, 7, 9] {
            pages.push(page * PAGE_BYTES);
        }
        let within = |start: u64, end: u64| -> Vec<(u64, u64)> {
            let parts = pages.within(start * PAGE_BYTES, end * PAGE_BYTES);
            parts
                .map(|(from, to)| (from / PAGE_BYTES, to / PAGE_BYTES))
                .collect()
        };
        assert_eq!(within(0, 10), [(1, 4), (7, 8), (9, 10)]);
        assert_eq!(within(2, 3), [(2, 3)]);
        assert_eq!(within(3, 8), [(3, 4), (7, 8)]);
        assert_eq!(within(4, 7), []);
        assert_eq!(within(10, 20), []);
    }

    #[test]
    fn however_a_programs_pages_lie_they_are_few_mappings() {
        for stride in [2, 17, 18, 64, 1000] {
            let mut pages = Pages::default();
            for page in (0..1 << 20).step_by(stride) {
                pages.push(page * PAGE_BYTES);
            }
            let parts = pages.parts(&(0..0));
            assert!((1..=MAX_PARTS).contains(&parts.len()), "{stride}");
            let held = |page: &(u64, u64)| {
                parts
                    .iter()
                    .any(|(start, end)| *start <= page.0 && page.1 <= *end)
            };
            assert!(pages.0.iter().all(held), "{stride}");
        }
    }
}
