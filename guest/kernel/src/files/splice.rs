//! `splice`, `tee` and `vmsplice`: from and to pipes without a buffer of the program's. Here it is a copy.

use super::read_write::{position, read_at, readable, try_read, writable, write_at};
use super::{O_APPEND, Object, Open};
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

/// The queue of a pipe that is read from, or written to.
fn reads(open: &Open) -> Option<u8> {
    match open.object {
        Object::Stream { from, .. } if from != pipes::NONE => Some(from),
        _ => None,
    }
}

fn writes(open: &Open) -> Option<u8> {
    match open.object {
        Object::Stream { to, .. } if to != pipes::NONE => Some(to),
        _ => None,
    }
}

/// Whether there is room in a pipe: EAGAIN for none, EPIPE if nobody reads it.
fn room(to: u8) -> SysResult {
    let queue = pipes::queue(to).ok_or(Errno::EPIPE)?;
    match (queue.is_refused(), queue.free_bytes()) {
        (true, _) => Err(Errno::EPIPE),
        (_, 0) => Err(Errno::EAGAIN),
        (_, free) => Ok(free),
    }
}

/// `splice`
pub fn splice(from: u64, from_at: u64, to: u64, to_at: u64, bytes: u64, flags: u64) -> SysResult {
    if bytes == 0 {
        return Ok(0);
    }
    let nonblocking = checked(flags)?;
    let (source, target) = (state::files().get(from)?, state::files().get(to)?);
    let is_pipe = |open: &Open| matches!(open.object, Object::Stream { .. });
    if from_at != 0 && is_pipe(&source) || to_at != 0 && is_pipe(&target) {
        return Err(Errno::ESPIPE);
    }
    for place in [from_at, to_at].into_iter().filter(|place| *place != 0) {
        user::read::<u64>(place)?;
    }
    let (input, output) = (reads(&source), writes(&target));
    readable(from)?;
    writable(to)?;
    match (input, output) {
        (None, None) => Err(Errno::EINVAL),
        (Some(input), Some(output)) if input == output => Err(Errno::EINVAL),
        (Some(input), Some(output)) => {
            let waits = !nonblocking && !source.nonblocking && !target.nonblocking;
            threads::blocking(!waits, || between(input, output, bytes, true))
        }
        (Some(input), None) => {
            if u64::from(target.flags) & O_APPEND != 0 {
                return Err(Errno::EINVAL);
            }
            threads::blocking(nonblocking, || out_of(input, to, to_at, bytes))
        }
        (None, Some(output)) => threads::blocking(nonblocking || source.nonblocking, || {
            into(from, from_at, output, bytes)
        }),
    }
}

/// `tee`
pub fn tee(from: u64, to: u64, bytes: u64, flags: u64) -> SysResult {
    let nonblocking = checked(flags)?;
    if bytes == 0 {
        return Ok(0);
    }
    let (source, target) = (state::files().get(from)?, state::files().get(to)?);
    readable(from)?;
    writable(to)?;
    match (reads(&source), writes(&target)) {
        (Some(input), Some(output)) if input != output => {
            let waits = !nonblocking && !source.nonblocking && !target.nonblocking;
            threads::blocking(!waits, || between(input, output, bytes, false))
        }
        _ => Err(Errno::EINVAL),
    }
}

/// From one pipe to another, where it is taken, or stays as well.
fn between(input: u8, output: u8, bytes: u64, takes: bool) -> SysResult {
    pipes::peek(input, 0, &mut [0])?;
    if let Err(Errno::EPIPE) = room(output) {
        return Err(Errno::EPIPE);
    }
    let mut part = [0; PART_BYTES];
    let mut done = 0;
    while done < bytes {
        let skip = if takes { 0 } else { done };
        let most = (bytes - done).min(PART_BYTES as u64);
        let there = pipes::peek(input, skip, &mut part[..most as usize]);
        let there = match (there, done) {
            (Ok(0), _) | (Err(_), 1..) => break,
            (there, _) => there?,
        };
        let fits = match (room(output), done) {
            (Err(_), 1..) => break,
            (free, _) => free?.min(there),
        };
        let put = pipes::write(output, &part[..fits as usize], true, None)?;
        if takes {
            pipes::taken(input, put);
        }
        done += put;
    }
    Ok(done)
}

/// From a pipe to what is none.
fn out_of(input: u8, to: u64, to_at: u64, bytes: u64) -> SysResult {
    let mut part = [0; PART_BYTES];
    let mut done = 0;
    while done < bytes {
        let most = (bytes - done).min(PART_BYTES as u64) as usize;
        let there = match (pipes::peek(input, 0, &mut part[..most]), done) {
            (Ok(0), _) | (Err(_), 1..) => break,
            (there, _) => there?,
        };
        let part = &part[..there as usize];
        // What is written may be mapped where its place is said.
        let at = match to_at {
            0 => 0,
            place => user::read::<u64>(place)?,
        };
        let put = match to_at {
            0 => super::read_write::write(to, part),
            _ => write_at(to, at, part),
        };
        let put = match (put, done) {
            (Err(_), 1..) => break,
            (put, _) => put?,
        };
        pipes::taken(input, put);
        done += put;
        if to_at != 0 {
            user::write(to_at, at.saturating_add(put))?;
        }
    }
    Ok(done)
}

/// From what is no pipe into one: what it has at once.
fn into(from: u64, from_at: u64, output: u8, bytes: u64) -> SysResult {
    let mut part = [0; PART_BYTES];
    let mut done = 0;
    while done < bytes {
        let fits = match (room(output), done) {
            (Err(_), 1..) => break,
            (free, _) => free?.min(bytes - done).min(PART_BYTES as u64),
        };
        let part = &mut part[..fits as usize];
        let got = match from_at {
            0 => try_read(from, part),
            place => user::read::<u64>(place).and_then(|at| {
                position(at)?;
                read_at(from, at, part)
            }),
        };
        let got = match (got, done) {
            (Ok(0), _) | (Err(_), 1..) => break,
            (got, _) => got?,
        };
        pipes::write(output, &part[..got as usize], true, None)?;
        done += got;
        if from_at != 0 {
            user::write(from_at, user::read::<u64>(from_at)? + got)?;
        }
    }
    Ok(done)
}

/// `vmsplice`: the program's memory is copied into the pipe, or out of it.
pub fn from_memory(descriptor: u64, array: u64, count: u64, flags: u64) -> SysResult {
    let nonblocking = checked(flags)?;
    let open = state::files().get(descriptor)?;
    let nonblocking = nonblocking || open.nonblocking;
    match (writes(&open), reads(&open)) {
        (Some(to), _) => user::for_each_part(array, count, |start, bytes, done| {
            let part = user::slice(start, bytes)?;
            pipes::write(to, part, nonblocking || done > 0, None)
        }),
        (_, Some(from)) => user::for_each_part(array, count, |start, bytes, done| {
            let part = user::slice_mut(start, bytes)?;
            threads::blocking(nonblocking || done > 0, || pipes::read(from, part))
        }),
        _ => Err(Errno::EBADF),
    }
}
