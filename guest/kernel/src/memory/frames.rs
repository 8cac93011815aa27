//! Frames: the pieces of program memory that back the sparse space.

use super::arena::Arena;
use super::machine::Machine;

/// Bytes of a frame: what one fault backs. All pages of the sparse space that lie in one aligned
/// stretch of this size are in the same frame, in order.
pub(super) const FRAME_BYTES: u64 = 64 << 10;
/// Frames of the largest program memory, and one for its start, which need not be aligned.
const MAX_FRAMES: usize = (4 << 30) / FRAME_BYTES as usize + 1;
const WORDS: usize = MAX_FRAMES.div_ceil(64);
/// How much is taken from the arena at a time, if there is as much.
const PORTION_BYTES: u64 = 16 * FRAME_BYTES;

/// Which parts of program memory are frames, which of those are free, and which of those are zero.
pub(super) struct Frames {
    base: u64,
    all: [u64; WORDS],
    free: [u64; WORDS],
    zero: [u64; WORDS],
    free_count: u64,
    /// No frame below this one is free.
    lowest: usize,
}

impl Frames {
    /// None.
    pub(super) const fn new() -> Self {
        Frames {
            base: 0,
            all: [0; WORDS],
            free: [0; WORDS],
            zero: [0; WORDS],
            free_count: 0,
            lowest: 0,
        }
    }

    /// For program memory that begins at `start`.
    pub(super) fn start(&mut self, start: u64) {
        self.base = start & !(FRAME_BYTES - 1);
    }

    /// Bytes in free frames.
    pub(super) fn free_bytes(&self) -> u64 {
        self.free_count * FRAME_BYTES
    }

    fn index(&self, frame: u64) -> usize {
        ((frame - self.base) / FRAME_BYTES) as usize
    }

    fn is_free(&self, index: usize) -> bool {
        self.free
            .get(index / 64)
            .is_some_and(|word| word >> (index % 64) & 1 != 0)
    }

    /// The frame that an address lies in, if it lies in one.
    pub(super) fn of(&self, addr: u64) -> Option<u64> {
        let frame = addr & !(FRAME_BYTES - 1);
        let index = (frame.checked_sub(self.base)? / FRAME_BYTES) as usize;
        let is_one = self.all.get(index / 64)? >> (index % 64) & 1 != 0;
        is_one.then_some(frame)
    }

    /// Frees a frame. `zero`: all of it is zero.
    pub(super) fn give(&mut self, frame: u64, zero: bool) {
        let index = self.index(frame);
        let bit = 1 << (index % 64);
        self.all[index / 64] |= bit;
        self.free[index / 64] |= bit;
        self.zero[index / 64] &= !bit;
        if zero {
            self.zero[index / 64] |= bit;
        }
        self.free_count += 1;
        self.lowest = self.lowest.min(index);
    }

    /// Up to `most` frames in a row, zeroed: the first one's address and their number. `None` if there
    /// is not even one.
    pub(super) fn take(
        &mut self,
        most: u64,
        arena: &mut Arena,
        machine: &mut impl Machine,
    ) -> Option<(u64, u64)> {
        if self.free_count == 0 {
            let (start, bytes, zero) = arena.take_frames(PORTION_BYTES)?;
            for frame in (start..start + bytes).step_by(FRAME_BYTES as usize) {
                self.give(frame, zero);
            }
        }
        let word = (self.lowest / 64..WORDS).find(|word| self.free[*word] != 0)?;
        let first = word * 64 + self.free[word].trailing_zeros() as usize;
        self.lowest = first;
        let mut count = 0;
        while count < most && self.is_free(first + count as usize) {
            let index = first + count as usize;
            let bit = 1 << (index % 64);
            self.free[index / 64] &= !bit;
            if self.zero[index / 64] & bit == 0 {
                machine.zero(self.base + index as u64 * FRAME_BYTES, FRAME_BYTES);
            }
            count += 1;
        }
        self.free_count -= count;
        Some((self.base + first as u64 * FRAME_BYTES, count))
    }
}

impl Default for Frames {
    fn default() -> Self {
        Frames::new()
    }
}
