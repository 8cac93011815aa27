//! Where the bytes of a call that sends come from, and those of one that receives go to: one piece, or the
//! parts of an `iovec` array.

use crate::errno::{Errno, SysResult};
use crate::user;

/// What is sent.
#[derive(Clone, Copy)]
pub enum Source<'a> {
    /// One piece.
    Whole(&'a [u8]),
    /// An `iovec` array of the program's.
    Parts {
        /// Where it is.
        array: u64,
        /// How many it has, which was checked.
        count: u64,
    },
}

/// Where to receive.
pub enum Target<'a> {
    /// One piece.
    Whole(&'a mut [u8]),
    /// An `iovec` array of the program's.
    Parts {
        /// Where it is.
        array: u64,
        /// How many it has, which was checked.
        count: u64,
    },
    /// So many bytes are thrown away.
    Nowhere(u64),
}

/// Bytes of all parts together.
fn total(array: u64, count: u64) -> SysResult {
    user::for_each_part(array, count, |_, bytes, _| Ok(bytes))
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
        match each(start.wrapping_add(skip), bytes - skip, done + now) {
            Ok(some) if some == bytes - skip => now += some,
            Ok(some) => return Ok(now + some),
            Err(error) if now == 0 => return Err(error),
            Err(_) => break,
        }
    }
    Ok(now)
}

impl Source<'_> {
    /// How much it is.
    pub fn total(&self) -> SysResult {
        match self {
            Source::Whole(bytes) => Ok(bytes.len() as u64),
            Source::Parts { array, count } => total(*array, *count),
        }
    }

    /// Whether all of it can be read.
    pub fn check(&self) -> Result<(), Errno> {
        let readable = self.for_each(|bytes| Ok(bytes.len() as u64))?;
        match readable == self.total()? {
            true => Ok(()),
            false => Err(Errno::EFAULT),
        }
    }

    /// Calls `each` for piece after piece, until one is cut short; gives how much was done.
    pub fn for_each(&self, mut each: impl FnMut(&[u8]) -> SysResult) -> SysResult {
        match *self {
            Source::Whole(bytes) => each(bytes),
            Source::Parts { array, count } => {
                user::for_each_part(array, count, |start, bytes, _| {
                    each(user::slice(start, bytes)?)
                })
            }
        }
    }
}

impl Target<'_> {
    /// How much there is room for.
    pub fn total(&self) -> SysResult {
        match self {
            Target::Whole(bytes) => Ok(bytes.len() as u64),
            Target::Parts { array, count } => total(*array, *count),
            Target::Nowhere(bytes) => Ok(*bytes),
        }
    }

    /// Calls `each` for piece after piece behind the first `done` bytes, with the bytes before it, until one is
    /// cut short; gives how much was done.
    pub fn for_each_from(
        &mut self,
        done: u64,
        mut each: impl FnMut(Place<'_>, u64) -> SysResult,
    ) -> SysResult {
        match self {
            Target::Whole(bytes) => {
                let rest = bytes.get_mut(done as usize..).unwrap_or_default();
                each(Place::Here(rest), done)
            }
            Target::Nowhere(bytes) => each(Place::Nowhere(*bytes - done), done),
            Target::Parts { array, count } => {
                for_each_from(*array, *count, done, |start, bytes, before| {
                    each(Place::Here(user::slice_mut(start, bytes)?), before)
                })
            }
        }
    }
}

/// A piece of a [`Target`].
pub enum Place<'a> {
    /// It goes here.
    Here(&'a mut [u8]),
    /// So many bytes are thrown away.
    Nowhere(u64),
}
