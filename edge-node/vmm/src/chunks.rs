//! Which parts of an instance's memory are backed by large pages.
//!
//! A first touch costs a fault of KVM's, on PVM some 20 µs, and one of the host's; where the host has a large page,
//! one of its faults gives 512 pages, and KVM maps eight at a time. But a large page is cleared whole when it is
//! touched, and again by each reset. So they are for where a snapshot has nothing but zeroes, and there the first
//! request that touches a chunk decides for all instances:
//!
//! ```text
//!                            ┌──little was used of it, or the reset keeps the memory──▶ [small]
//!  [fresh] ──untouched──▶ [untried]
//!     │                      └──much was used, and each reset would map it anew───────▶ [large]
//!     └──touched by the first request of all: as above, by what it wrote──────────────▲
//! ```
//! Fresh chunks are backed by small pages, untried ones by large pages. A reset that keeps the memory keeps it mapped,
//! so that the next request takes no fault at all. An instance that is kept is never reset: all of its chunks are
//! untried from the start.

use std::ops::Range;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::VmmError;
use crate::memory::GuestMemory;
use crate::pagemap::Written;

const PAGE_BYTES: u64 = holm_hostcall::PAGE_BYTES;
/// What a large page holds.
const CHUNK_BYTES: u64 = 2 << 20;
/// Most ranges that are backed by large pages: each may be a mapping of its own, of which a process has so many.
const MAX_RANGES: usize = 32;
/// Of a chunk of which fewer pages were used, small ones are cheaper.
const WORTH_PAGES: u64 = 8;

const SMALL: u8 = 0;
const FRESH: u8 = 1;
const UNTRIED: u8 = 2;
const LARGE: u8 = 3;

/// The state of each chunk of a snapshot's instances.
#[derive(Debug)]
pub(crate) struct Chunks(Vec<AtomicU8>);

impl Chunks {
    /// Fresh, or untried if the instance is to be `kept`, are those that lie in program memory and in none of
    /// `parts`, which hold something.
    pub(crate) fn new(
        program: Range<u64>,
        parts: impl Iterator<Item = (u64, u64)>,
        kept: bool,
    ) -> Self {
        let zero = if kept { UNTRIED } else { FRESH };
        let end = program.end / CHUNK_BYTES;
        let first = program.start.div_ceil(CHUNK_BYTES);
        let mut states: Vec<_> = (0..end)
            .map(|chunk| if chunk < first { SMALL } else { zero })
            .collect();
        for (start, end) in parts {
            let chunks = start / CHUNK_BYTES..end.div_ceil(CHUNK_BYTES);
            for chunk in chunks {
                if let Some(state) = states.get_mut(chunk as usize) {
                    *state = SMALL;
                }
            }
        }
        Chunks(states.into_iter().map(AtomicU8::new).collect())
    }

    /// The states, a digit each, for [`Chunks::take`].
    pub(crate) fn as_text(&self) -> String {
        let states = self.0.iter();
        states
            .map(|state| char::from(b'0' + state.load(Ordering::Relaxed)))
            .collect()
    }

    /// Takes states over that were found with the same snapshot, if they can be right.
    pub(crate) fn take(&self, text: &str) {
        let states = text.bytes().map(|digit| digit.wrapping_sub(b'0'));
        let is_own = |(state, own): (u8, &AtomicU8)| {
            // What holds something stays small.
            state <= LARGE && (state == SMALL || own.load(Ordering::Relaxed) != SMALL)
        };
        if text.len() == self.0.len() && states.clone().zip(&self.0).all(is_own) {
            for (state, own) in states.zip(&self.0) {
                own.store(state, Ordering::Relaxed);
            }
        }
    }

    fn state(&self, chunk: u64) -> u8 {
        let state = self.0.get(chunk as usize);
        state.map_or(SMALL, |state| state.load(Ordering::Relaxed))
    }

    /// The ranges that are to be backed by large pages.
    pub(crate) fn large(&self) -> Vec<(u64, u64)> {
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for chunk in 0..self.0.len() as u64 {
            let (start, end) = (chunk * CHUNK_BYTES, (chunk + 1) * CHUNK_BYTES);
            let full = ranges.len() == MAX_RANGES;
            match ranges.last_mut() {
                _ if matches!(self.state(chunk), SMALL | FRESH) => {}
                Some(last) if last.1 == start => last.1 = end,
                _ if full => break,
                _ => ranges.push((start, end)),
            }
        }
        ranges
    }

    /// Whether a request that has written this is the first to touch some chunk.
    pub(crate) fn are_new_in(&self, written: &[Written]) -> bool {
        let mut chunks = written.iter().flat_map(chunks_of);
        chunks.any(|chunk| matches!(self.state(chunk), FRESH | UNTRIED))
    }

    /// Decides on the chunks that a request was the first to touch, by what it has left there. Gives what it has
    /// written, but for what is backed by large pages from now on. `anew`: whether a reset maps the memory anew if
    /// there were so many pages written.
    pub(crate) fn decide(
        &self,
        memory: &GuestMemory,
        written: &[Written],
        anew: impl Fn(u64) -> bool,
    ) -> Result<Vec<Written>, VmmError> {
        let mut used = Vec::new();
        for run in written {
            for page in (run.start..run.end).step_by(PAGE_BYTES as usize) {
                // Of a large page all is there.
                let tells = self.state(page / CHUNK_BYTES) != UNTRIED;
                if tells || !memory.is_zero(page, PAGE_BYTES)? {
                    used.push(page);
                }
            }
        }
        let anew = anew(used.len() as u64);
        for chunk in written.iter().flat_map(chunks_of) {
            if matches!(self.state(chunk), FRESH | UNTRIED) {
                let first = used.partition_point(|page| page / CHUNK_BYTES < chunk);
                let end = used.partition_point(|page| page / CHUNK_BYTES <= chunk);
                let much = (end - first) as u64 >= WORTH_PAGES;
                let state = if anew && much { LARGE } else { SMALL };
                self.0[chunk as usize].store(state, Ordering::Relaxed);
            }
        }
        for state in &self.0 {
            // One that another request has just decided on stays as it is.
            let _ = state.compare_exchange(FRESH, UNTRIED, Ordering::Relaxed, Ordering::Relaxed);
        }
        used.retain(|page| self.state(page / CHUNK_BYTES) != LARGE);
        Ok(crate::pagemap::runs(used.into_iter()))
    }
}

fn chunks_of(run: &Written) -> Range<u64> {
    run.start / CHUNK_BYTES..run.end.div_ceil(CHUNK_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{Sharing, anonymous_file};

    const C: u64 = CHUNK_BYTES;

    fn run(start: u64, end: u64) -> Written {
        Written { start, end }
    }

    fn memory() -> GuestMemory {
        let file = anonymous_file(10 * C).unwrap();
        GuestMemory::map(&file, 0, 10 * C, Sharing::CopyOnWrite).unwrap()
    }

    fn fill(memory: &GuestMemory, from: u64, pages: u64) {
        for page in 0..pages {
            memory.write(from + page * PAGE_BYTES + 7, b"x").unwrap();
        }
    }

    #[test]
    fn the_first_request_that_touches_a_large_page_decides_whether_it_stays_one() {
        let parts = [(3 * C + 5, 3 * C + 6)];
        let chunks = Chunks::new(C / 2..9 * C, parts.into_iter(), true);
        assert_eq!(chunks.large(), [(C, 3 * C), (4 * C, 9 * C)]);
        assert!(!chunks.are_new_in(&[run(0, C), run(3 * C, 4 * C), run(20 * C, 21 * C)]));

        // As a large page shows it: all of the chunk is there, and little was used.
        let memory = memory();
        fill(&memory, C + 5 * PAGE_BYTES, 2);
        fill(&memory, 4 * C, WORTH_PAGES);
        let written = [run(0, PAGE_BYTES), run(C, 2 * C), run(4 * C, 5 * C)];
        assert!(chunks.are_new_in(&written));
        let small = [
            run(0, PAGE_BYTES),
            run(C + 5 * PAGE_BYTES, C + 7 * PAGE_BYTES),
        ];
        let kept = chunks.decide(&memory, &written, |pages| {
            assert_eq!(pages, 3 + WORTH_PAGES);
            true
        });
        assert_eq!(kept.unwrap(), small);
        assert_eq!(chunks.large(), [(2 * C, 3 * C), (4 * C, 9 * C)]);
        assert!(!chunks.are_new_in(&written));

        // A reset that keeps the memory keeps small pages.
        fill(&memory, 7 * C, 512);
        let written = [run(7 * C, 8 * C)];
        let kept = chunks.decide(&memory, &written, |_| false).unwrap();
        assert_eq!(kept, written);
        let large = [(2 * C, 3 * C), (4 * C, 7 * C), (8 * C, 9 * C)];
        assert_eq!(chunks.large(), large);
    }

    #[test]
    fn what_the_first_request_of_all_has_written_is_known_by_the_page_and_the_rest_is_tried() {
        let chunks = Chunks::new(0..6 * C, [(0, C)].into_iter(), false);
        assert!(chunks.large().is_empty());
        // Zeroes that were written count as well.
        let written = [
            run(C, C + 3 * PAGE_BYTES),
            run(2 * C, 2 * C + WORTH_PAGES * PAGE_BYTES),
        ];
        assert!(chunks.are_new_in(&written));
        let kept = chunks.decide(&memory(), &written, |_| true).unwrap();
        assert_eq!(kept, written[..1]);
        assert_eq!(chunks.large(), [(2 * C, 6 * C)]);
    }
}
