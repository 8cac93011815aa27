//! Where the bytes of a call that sends or writes come from, and those of one that receives or reads go to.
//!
//! A call may wait, and other threads may unmap or protect the program's memory meanwhile. So the program's
//! places are kept as numbers here, and made slices of only by who has the bytes at hand and does not wait
//! before they are copied.

use crate::errno::{Errno, SysResult};
use crate::user;

/// Most bytes of one call, as on Linux.
const MAX_BYTES: u64 = 0x7fff_f000;

/// What is sent or written.
#[derive(Clone, Copy)]
pub enum Source<'a> {
    /// Bytes of the library OS's own.
    Own(&'a [u8]),
    /// One piece of the program's memory.
    Piece {
        /// Where it is.
        start: u64,
        /// How long it is.
        bytes: u64,
    },
    /// An `iovec` array of the program's.
    Parts {
        /// Where it is.
        array: u64,
        /// How many it has, which was checked.
        count: u64,
    },
}

/// Where to receive or read.
pub enum Target<'a> {
    /// Memory of the library OS's own.
    Own(&'a mut [u8]),
    /// One piece of the program's memory.
    Piece {
        /// Where it is.
        start: u64,
        /// How long it is.
        bytes: u64,
    },
    /// An `iovec` array of the program's.
    Parts {
        /// Where it is.
        array: u64,
        /// How many it has, which was checked.
        count: u64,
    },
}

/// Most parts of an `iovec` array.
pub const MAX_PARTS: u64 = 1024;

/// Looks at all parts of an array before the first is used, and at all sizes before the places; gives the bytes of
/// all of them. More than [`MAX_PARTS`] the caller refuses, each in its own words.
pub fn check_parts(array: u64, count: u64) -> SysResult {
    let part = |at: u64| user::read::<[u64; 2]>(array.wrapping_add(at * 16));
    let mut total = 0u64;
    for at in 0..count {
        let [_, bytes] = part(at)?;
        if bytes > i64::MAX as u64 {
            return Err(Errno::EINVAL);
        }
        total = total.saturating_add(bytes);
    }
    for at in 0..count {
        let [start, bytes] = part(at)?;
        user::range(start, bytes)?;
    }
    Ok(total)
}

/// Bytes of all parts together.
fn total(array: u64, count: u64) -> SysResult {
    for_each_from(array, count, 0, |_, bytes, _| Ok(bytes))
}

/// Calls `each` for what of the parts lies behind the first `done` bytes, with the bytes before it, until one is
/// cut short; gives how much was done.
fn for_each_from(
    array: u64,
    count: u64,
    done: u64,
    mut each: impl FnMut(u64, u64, u64) -> SysResult,
) -> SysResult {
    let (mut to_skip, mut now) = (done, 0);
    for at in 0..count {
        let [start, bytes] = user::read::<[u64; 2]>(array.wrapping_add(at * 16))?;
        let skip = to_skip.min(bytes);
        to_skip -= skip;
        if skip == bytes {
            continue;
        }
        // Parts that another thread changes may be of any length.
        match each(
            start.wrapping_add(skip),
            bytes - skip,
            done.saturating_add(now),
        ) {
            Ok(some) if some == bytes - skip => now = some.saturating_add(now),
            Ok(some) => return Ok(some.saturating_add(now)),
            Err(error) if now == 0 => return Err(error),
            Err(_) => break,
        }
    }
    Ok(now)
}

impl Source<'_> {
    /// One piece of the program's memory.
    pub fn piece(start: u64, bytes: u64) -> Source<'static> {
        Source::Piece {
            start,
            bytes: bytes.min(MAX_BYTES),
        }
    }

    /// How much it is.
    pub fn total(&self) -> SysResult {
        match *self {
            Source::Own(bytes) => Ok(bytes.len() as u64),
            Source::Piece { bytes, .. } => Ok(bytes),
            Source::Parts { array, count } => total(array, count),
        }
    }

    /// Whether all of it can be read, which it can then be without a break until there is a wait.
    pub fn check(&self) -> Result<(), Errno> {
        match *self {
            Source::Own(_) => Ok(()),
            Source::Piece { start, bytes } => user::slice(start, bytes).map(|_| ()),
            Source::Parts { array, count } => {
                let mut unread = Ok(());
                for_each_from(array, count, 0, |start, bytes, _| {
                    unread = user::slice(start, bytes).map(|_| ());
                    unread.map(|()| bytes)
                })?;
                unread
            }
        }
    }

    /// Copies a message, which is taken whole or not at all, to the start of `to`; gives how long it is. EMSGSIZE if
    /// there is no room for it.
    pub fn copy_whole(&self, to: &mut [u8]) -> Result<usize, Errno> {
        let room = usize::try_from(self.total()?).ok();
        let mut rest = room
            .and_then(|bytes| to.get_mut(..bytes))
            .ok_or(Errno::EMSGSIZE)?;
        self.check()?;
        let copied = self.for_each(|part| {
            let (place, behind) = core::mem::take(&mut rest)
                .split_at_mut_checked(part.len())
                .ok_or(Errno::EMSGSIZE)?;
            place.copy_from_slice(part);
            rest = behind;
            Ok(part.len() as u64)
        })?;
        Ok(copied as usize)
    }

    /// Calls `each` for piece after piece, until one is cut short; gives how much was done.
    pub fn for_each(&self, each: impl FnMut(&[u8]) -> SysResult) -> SysResult {
        self.for_each_from(0, each)
    }

    /// The same for what lies behind the first `done` bytes.
    pub fn for_each_from(&self, done: u64, mut each: impl FnMut(&[u8]) -> SysResult) -> SysResult {
        match *self {
            Source::Own(bytes) => each(bytes.get(done as usize..).unwrap_or_default()),
            Source::Piece { start, bytes } => {
                let rest = bytes.saturating_sub(done);
                each(user::buffer(start.wrapping_add(done), rest)?)
            }
            Source::Parts { array, count } => {
                for_each_from(array, count, done, |start, bytes, _| {
                    each(user::buffer(start, bytes)?)
                })
            }
        }
    }
}

impl Target<'_> {
    /// One piece of the program's memory.
    pub fn piece(start: u64, bytes: u64) -> Target<'static> {
        Target::Piece {
            start,
            bytes: bytes.min(MAX_BYTES),
        }
    }

    /// How much there is room for.
    pub fn total(&self) -> SysResult {
        match self {
            Target::Own(bytes) => Ok(bytes.len() as u64),
            Target::Piece { bytes, .. } => Ok(*bytes),
            Target::Parts { array, count } => total(*array, *count),
        }
    }

    /// Whether all of its first `most` bytes can be written, which they can then be until there is a wait.
    pub fn check(&mut self, most: u64) -> Result<(), Errno> {
        let mut unwritten = Ok(());
        self.for_each_from(0, |place, done| {
            let bytes = place.len();
            unwritten = place.limit(most.saturating_sub(done)).whole().map(|_| ());
            unwritten.map(|()| bytes)
        })
        .and(unwritten)
    }

    /// Calls `each` for piece after piece behind the first `done` bytes, with the bytes before it, until one is
    /// cut short; gives how much was done.
    pub fn for_each_from(
        &mut self,
        done: u64,
        mut each: impl FnMut(Place<'_>, u64) -> SysResult,
    ) -> SysResult {
        match self {
            Target::Own(bytes) => {
                let rest = bytes.get_mut(done as usize..).unwrap_or_default();
                each(Place::Own(rest), done)
            }
            Target::Piece { start, bytes } => {
                let (start, bytes) = (start.wrapping_add(done), bytes.saturating_sub(done));
                each(Place::Program { start, bytes }, done)
            }
            Target::Parts { array, count } => {
                for_each_from(*array, *count, done, |start, bytes, before| {
                    each(Place::Program { start, bytes }, before)
                })
            }
        }
    }
}

/// A piece of a [`Target`].
pub enum Place<'a> {
    /// Memory of the library OS's own.
    Own(&'a mut [u8]),
    /// The program's memory.
    Program {
        /// Where it is.
        start: u64,
        /// How long it is.
        bytes: u64,
    },
}

impl<'a> Place<'a> {
    /// How much there is room for.
    pub fn len(&self) -> u64 {
        match self {
            Place::Own(bytes) => bytes.len() as u64,
            Place::Program { bytes, .. } => *bytes,
        }
    }

    /// Whether there is room for nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// No more than its first `most` bytes.
    pub fn limit(self, most: u64) -> Self {
        match self {
            Place::Own(own) => {
                let most = most.min(own.len() as u64) as usize;
                Place::Own(&mut own[..most])
            }
            Place::Program { start, bytes } => Place::Program {
                start,
                bytes: bytes.min(most),
            },
        }
    }

    /// As much of it as can be written; EFAULT if that is nothing of something.
    pub fn writable(self) -> Result<&'a mut [u8], Errno> {
        match self {
            Place::Own(own) => Ok(own),
            Place::Program { start, bytes } => user::buffer_mut(start, bytes),
        }
    }

    /// All of it, or EFAULT.
    pub fn whole(self) -> Result<&'a mut [u8], Errno> {
        match self {
            Place::Program { start, bytes } => user::slice_mut(start, bytes),
            place => place.writable(),
        }
    }
}
