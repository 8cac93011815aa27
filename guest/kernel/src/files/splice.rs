//! `splice`, `tee` and `vmsplice`: from and to pipes without a buffer of the program's. Here it is a copy.

use super::held::Held;
use super::read_write::{read_at, readable, try_read, try_write, writable, write_at};
use super::{O_APPEND, Object};
use crate::buffers::{Place, Source, Target};
use crate::errno::{Errno, SysResult};
use crate::{pipes, state, threads, user};

/// MOVE, NONBLOCK, MORE, GIFT
const KNOWN_FLAGS: u64 = 15;
const NONBLOCK: u64 = 2;
/// What is copied at a time.
const PART_BYTES: usize = 4096;

fn checked(flags: u64) -> Result<bool, Errno> {
    match flags as u32 as u64 & !KNOWN_FLAGS {
        0 => Ok(flags & NONBLOCK != 0),
        _ => Err(Errno::EINVAL),
    }
}

/// What is copied from or to: a pipe, or something else, there perhaps from a place on that the program keeps.
struct End {
    held: Held,
    /// Where the program keeps the place, or 0.
    place: u64,
}

impl End {
    /// The queue of a pipe that is read from.
    fn reads(&self) -> Option<u8> {
        match self.held.open().object {
            Object::Stream { from, .. } if from != pipes::NONE => Some(from),
            _ => None,
        }
    }

    /// The queue of a pipe that is written to.
    fn writes(&self) -> Option<u8> {
        match self.held.open().object {
            Object::Stream { to, .. } if to != pipes::NONE => Some(to),
            _ => None,
        }
    }

    fn is_nonblocking(&self) -> bool {
        self.held.open().nonblocking
    }

    /// Reads the next bytes, which stay in a pipe, there from behind the first `skip` bytes.
    fn read(&self, skip: u64, to: &mut [u8]) -> SysResult {
        let to = Place::Own(to);
        match (self.reads(), self.place) {
            (Some(queue), _) => pipes::peek(queue, skip, to),
            (None, 0) => try_read(&self.held, to),
            (None, place) => read_at(&self.held, user::read::<u64>(place)?, to),
        }
    }

    /// So much of what was read has gone where it is to.
    fn taken(&self, count: u64) -> Result<(), Errno> {
        if let Some(queue) = self.reads() {
            pipes::taken(queue, count);
        }
        self.advance(count)
    }

    /// How much of `wanted` can be written for certain: EAGAIN for nothing, EPIPE if nobody reads it.
    fn room(&self, wanted: u64) -> SysResult {
        let Some(to) = self.writes() else {
            return Ok(wanted);
        };
        let queue = pipes::queue(to).ok_or(Errno::EPIPE)?;
        if queue.is_refused() {
            return Err(Errno::EPIPE);
        }
        match queue.reserve(wanted)? {
            0 => Err(Errno::EAGAIN),
            room => Ok(room),
        }
    }

    fn write(&self, bytes: &[u8]) -> SysResult {
        let put = match (self.writes(), self.place) {
            (Some(queue), _) => pipes::put(queue, bytes),
            (None, 0) => try_write(&self.held, bytes),
            (None, place) => write_at(&self.held, user::read::<u64>(place)?, bytes),
        }?;
        self.advance(put)?;
        Ok(put)
    }

    /// The place that the program keeps is behind what was copied.
    fn advance(&self, count: u64) -> Result<(), Errno> {
        match self.place {
            0 => Ok(()),
            place => user::write(place, user::read::<u64>(place)?.saturating_add(count)),
        }
    }
}

/// `splice`
pub fn splice(from: u64, from_at: u64, to: u64, to_at: u64, bytes: u64, flags: u64) -> SysResult {
    if bytes == 0 {
        return Ok(0);
    }
    let nonblocking = checked(flags)?;
    for (descriptor, place) in [(from, from_at), (to, to_at)] {
        let open = state::files().get(descriptor)?;
        if place != 0 && matches!(open.object, Object::Stream { .. }) {
            return Err(Errno::ESPIPE);
        }
    }
    for place in [from_at, to_at].into_iter().filter(|place| *place != 0) {
        user::read::<u64>(place)?;
    }
    let from = End {
        held: readable(from)?,
        place: from_at,
    };
    let to = End {
        held: writable(to)?,
        place: to_at,
    };
    match (from.reads(), to.writes()) {
        (None, None) => Err(Errno::EINVAL),
        (Some(input), Some(output)) if input == output => Err(Errno::EINVAL),
        (Some(_), Some(_)) => between(&from, &to, bytes, nonblocking, true),
        (Some(_), None) => {
            if u64::from(to.held.open().flags) & O_APPEND != 0 {
                return Err(Errno::EINVAL);
            }
            // That nothing is in the pipe and that nothing can be written are waited for by different flags.
            threads::blocking(nonblocking, || from.read(0, &mut [0]))?;
            threads::blocking(to.is_nonblocking(), || copy(&from, &to, bytes, true))
        }
        (None, Some(_)) => threads::blocking(nonblocking || from.is_nonblocking(), || {
            copy(&from, &to, bytes, true)
        }),
    }
}

/// `tee`
pub fn tee(from: u64, to: u64, bytes: u64, flags: u64) -> SysResult {
    let nonblocking = checked(flags)?;
    if bytes == 0 {
        return Ok(0);
    }
    let end = |held| End { held, place: 0 };
    // Whether there are both of them comes first.
    for descriptor in [from, to] {
        state::files().get(descriptor)?;
    }
    let (from, to) = (end(readable(from)?), end(writable(to)?));
    match (from.reads(), to.writes()) {
        (Some(input), Some(output)) if input != output => {
            between(&from, &to, bytes, nonblocking, false)
        }
        _ => Err(Errno::EINVAL),
    }
}

/// From one pipe to another, where it is taken, or stays as well.
fn between(from: &End, to: &End, bytes: u64, nonblocking: bool, takes: bool) -> SysResult {
    let nonblocking = nonblocking || from.is_nonblocking() || to.is_nonblocking();
    threads::blocking(nonblocking, || {
        from.read(0, &mut [0])?;
        copy(from, to, bytes, takes)
    })
}

/// Copies what is there at once, as far as it fits.
fn copy(from: &End, to: &End, bytes: u64, takes: bool) -> SysResult {
    let mut part = [0; PART_BYTES];
    let mut done = 0;
    while done < bytes {
        let most = (bytes - done).min(PART_BYTES as u64) as usize;
        let skip = if takes { 0 } else { done };
        match copy_part(from, to, skip, &mut part[..most]) {
            Ok(0) => break,
            Ok(put) => {
                done += put;
                if takes {
                    from.taken(put)?;
                }
            }
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        }
    }
    Ok(done)
}

fn copy_part(from: &End, to: &End, skip: u64, part: &mut [u8]) -> SysResult {
    let fits = to.room(part.len() as u64)?.min(part.len() as u64);
    match from.read(skip, &mut part[..fits as usize])? {
        0 => Ok(0),
        there => to.write(&part[..there as usize]),
    }
}

/// `vmsplice`: the program's memory is copied into the pipe, or out of it.
pub fn from_memory(descriptor: u64, array: u64, count: u64, flags: u64) -> SysResult {
    let nonblocking = checked(flags)?;
    let end = End {
        held: Held::of(descriptor)?,
        place: 0,
    };
    let nonblocking = nonblocking || end.is_nonblocking();
    match (end.writes(), end.reads()) {
        (Some(to), _) => pipes::write(to, Source::Parts { array, count }, nonblocking),
        (_, Some(from)) => threads::blocking(nonblocking, || {
            let mut to = Target::Parts { array, count };
            to.for_each_from(0, |place, _| pipes::read(from, place))
        }),
        _ => Err(Errno::EBADF),
    }
}
