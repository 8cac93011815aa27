//! Pieces of program memory in which the library OS keeps what it cannot bound: contents, paths, and tables of
//! them.

use core::marker::PhantomData;

use holm_hostcall::PAGE_BYTES;

use crate::errno::Errno;
use crate::memory::guest;
use crate::{state, user};

/// Cells have a power of two of bytes, from the first of these to the second.
const MIN_CELL_BYTES: u64 = 32;
const MAX_CELL_BYTES: u64 = 2048;
const CELL_SIZES: usize = (MAX_CELL_BYTES / MIN_CELL_BYTES).ilog2() as usize + 1;

/// A piece of program memory: whole pages, a cell of one, or nothing.
#[derive(Clone, Copy)]
pub(super) struct Piece {
    start: u64,
    size: u64,
}

impl Piece {
    pub(super) const NOTHING: Piece = Piece { start: 0, size: 0 };

    /// At least `bytes` bytes, all zero.
    pub(super) fn take(bytes: u64) -> Result<Piece, Errno> {
        match bytes {
            1..=MAX_CELL_BYTES => state::cells().take(bytes),
            _ => Piece::pages(bytes),
        }
    }

    /// The same, from the start of a page on.
    pub(super) fn pages(bytes: u64) -> Result<Piece, Errno> {
        let size = bytes.next_multiple_of(PAGE_BYTES);
        match state::memory().take(size, &mut guest()) {
            Ok(start) => Ok(Piece { start, size }),
            Err(_) => Err(Errno::ENOSPC),
        }
    }

    /// Makes it longer without moving its end, so that it begins earlier; false if there is something.
    pub(super) fn grow_down(&mut self, bytes: u64) -> bool {
        let bytes = bytes.next_multiple_of(PAGE_BYTES);
        let can = self.is_pages() && state::memory().take_below(self.start, bytes, &mut guest());
        if can {
            self.start -= bytes;
            self.size += bytes;
        }
        can
    }

    /// Gives the memory back.
    pub(super) fn give(&mut self) {
        match self.size {
            0 => {}
            1..=MAX_CELL_BYTES => state::cells().give(*self),
            size => state::memory().give(self.start, size),
        }
        *self = Piece::NOTHING;
    }

    /// Whether it consists of whole pages.
    pub(super) fn is_pages(&self) -> bool {
        self.size > MAX_CELL_BYTES
    }

    /// Where it is.
    pub(super) fn start(&self) -> u64 {
        self.start
    }

    /// How much fits.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Its first bytes, at most `count`.
    pub(super) fn bytes(&self, count: u64) -> &'static mut [u8] {
        user::slice_mut(self.start, count.min(self.size)).unwrap_or(&mut [])
    }
}

/// Small pieces. A page has cells of one size; free ones of a size are a chain, in which each leads to the next.
pub struct Cells {
    /// The first of each chain, or 0.
    first: [u64; CELL_SIZES],
}

impl Cells {
    /// None.
    pub const fn new() -> Self {
        Cells {
            first: [0; CELL_SIZES],
        }
    }

    fn take(&mut self, bytes: u64) -> Result<Piece, Errno> {
        let size = bytes.next_power_of_two().max(MIN_CELL_BYTES);
        let chain = (size / MIN_CELL_BYTES).ilog2() as usize;
        if self.first[chain] == 0 {
            let page = Piece::pages(PAGE_BYTES)?;
            for cell in (0..PAGE_BYTES / size).rev() {
                self.put(chain, page.start + cell * size);
            }
        }
        let start = self.first[chain];
        self.first[chain] = user::read(start).map_err(|_| Errno::EIO)?;
        let piece = Piece { start, size };
        piece.bytes(size).fill(0);
        Ok(piece)
    }

    fn give(&mut self, piece: Piece) {
        self.put((piece.size / MIN_CELL_BYTES).ilog2() as usize, piece.start);
    }

    fn put(&mut self, chain: usize, cell: u64) {
        // What the library OS has taken can be written to.
        if user::write(cell, self.first[chain]).is_ok() {
            self.first[chain] = cell;
        }
    }
}

impl Default for Cells {
    fn default() -> Self {
        Cells::new()
    }
}

/// Values in a row, for which there is room twice as large when it is full.
pub(super) struct Table<T: Copy> {
    piece: Piece,
    count: usize,
    of: PhantomData<T>,
}

impl<T: Copy> Table<T> {
    pub(super) const fn new() -> Self {
        Table {
            piece: Piece::NOTHING,
            count: 0,
            of: PhantomData,
        }
    }

    /// All of them. They may be elsewhere after the next [`Table::add`].
    pub(super) fn all(&self) -> &[T] {
        let start = core::ptr::with_exposed_provenance::<T>(self.piece.start as usize);
        match self.count {
            0 => &[],
            // SAFETY: the pages are the library OS's until the table gives them back, which it does not while it is
            // borrowed; so many values were written there, from the start of a page on.
            count => unsafe { core::slice::from_raw_parts(start, count) },
        }
    }

    /// The same, to be changed.
    pub(super) fn all_mut(&mut self) -> &mut [T] {
        let start = core::ptr::with_exposed_provenance_mut::<T>(self.piece.start as usize);
        match self.count {
            0 => &mut [],
            // SAFETY: as in `all`.
            count => unsafe { core::slice::from_raw_parts_mut(start, count) },
        }
    }

    /// One more, behind all others.
    pub(super) fn add(&mut self, value: T) -> Result<(), Errno> {
        let bytes = ((self.count + 1) * size_of::<T>()) as u64;
        if bytes > self.piece.size() {
            let bigger = Piece::pages(bytes.max(2 * self.piece.size()))?;
            let used = (self.count * size_of::<T>()) as u64;
            bigger.bytes(used).copy_from_slice(self.piece.bytes(used));
            let mut old = core::mem::replace(&mut self.piece, bigger);
            old.give();
        }
        self.count += 1;
        if let Some(last) = self.all_mut().last_mut() {
            *last = value;
        }
        Ok(())
    }
}

/// A path in a piece; empty where there is none.
#[derive(Clone, Copy)]
pub(super) struct KeptPath {
    piece: Piece,
    used: u16,
}

impl KeptPath {
    pub(super) const NONE: KeptPath = KeptPath {
        piece: Piece::NOTHING,
        used: 0,
    };

    pub(super) fn is_none(&self) -> bool {
        self.used == 0
    }

    pub(super) fn as_bytes(&self) -> &'static [u8] {
        self.piece.bytes(u64::from(self.used))
    }

    /// Keeps another path, which is not empty. Without room for it, it stays what it was.
    pub(super) fn set(&mut self, path: &[u8]) -> Result<(), Errno> {
        let used = u16::try_from(path.len()).map_err(|_| Errno::ENAMETOOLONG)?;
        if self.piece.size() < path.len() as u64 {
            let bigger = Piece::take(path.len() as u64)?;
            self.piece.give();
            self.piece = bigger;
        }
        self.piece.bytes(path.len() as u64).copy_from_slice(path);
        self.used = used;
        Ok(())
    }

    /// Forgets it, but keeps the memory for another.
    pub(super) fn clear(&mut self) {
        self.used = 0;
    }

    /// Forgets it, and gives the memory back.
    pub(super) fn give(&mut self) {
        self.piece.give();
        self.clear();
    }
}
