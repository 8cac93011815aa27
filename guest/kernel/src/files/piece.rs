//! Pieces of program memory in which the library OS keeps what it cannot bound: contents and paths.

use holm_hostcall::PAGE_BYTES;

use super::paths::MAX_PATH_BYTES;
use crate::errno::Errno;
use crate::memory::guest;
use crate::{state, user};

/// A piece of program memory: whole pages, or nothing.
#[derive(Clone, Copy)]
pub(super) struct Piece {
    start: u64,
    size: u64,
}

impl Piece {
    pub(super) const NOTHING: Piece = Piece { start: 0, size: 0 };

    /// At least `bytes` bytes, all zero.
    pub(super) fn take(bytes: u64) -> Result<Piece, Errno> {
        let size = bytes.next_multiple_of(PAGE_BYTES);
        match state::memory().take(size, &mut guest()) {
            Ok(start) => Ok(Piece { start, size }),
            Err(_) => Err(Errno::ENOSPC),
        }
    }

    /// Gives the memory back.
    pub(super) fn give(&mut self) {
        if self.size > 0 {
            state::memory().give(self.start);
        }
        *self = Piece::NOTHING;
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

    pub(super) fn len(&self) -> usize {
        usize::from(self.used)
    }

    pub(super) fn as_bytes(&self) -> &'static [u8] {
        self.piece.bytes(u64::from(self.used))
    }

    /// Keeps another path, which is not empty.
    pub(super) fn set(&mut self, path: &[u8]) -> Result<(), Errno> {
        if self.piece.size() == 0 {
            self.piece = Piece::take(MAX_PATH_BYTES as u64)?;
        }
        let room = self.piece.bytes(MAX_PATH_BYTES as u64);
        room.get_mut(..path.len())
            .ok_or(Errno::ENAMETOOLONG)?
            .copy_from_slice(path);
        self.used = path.len() as u16;
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
