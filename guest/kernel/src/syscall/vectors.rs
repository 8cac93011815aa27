//! The calls that read and write the parts of an `iovec` array.

use super::told;
use crate::buffers::{MAX_PARTS, Source, Target, check_parts};
use crate::errno::{Errno, SysResult};
use crate::files::{Object, read_write, status};

/// `preadv2` and `pwritev2`: the older calls with flags, of which none makes a difference; place -1 is where the
/// last one ended.
pub(super) fn positioned_vector(
    descriptor: u64,
    array: u64,
    count: u64,
    at: u64,
    flags: u64,
    writes: bool,
) -> SysResult {
    // HIPRI, DSYNC, SYNC, NOWAIT, APPEND
    const KNOWN: u64 = 0x1f;
    const NOWAIT: u64 = 0x8;
    const APPEND: u64 = 0x10;
    const LAST: u64 = u64::MAX;
    if at != LAST {
        read_write::position(at)?;
    }
    let held = match writes {
        true => read_write::writable(descriptor)?,
        false => read_write::readable(descriptor)?,
    };
    if check_vectors(array, count)? == 0 {
        return Ok(0);
    }
    // Not to wait is more than a file of /tmp's promises, as on Linux.
    let is_file = matches!(held.open().object, Object::File(_));
    if flags as u32 as u64 & !KNOWN != 0 || flags & NOWAIT != 0 && is_file {
        return Err(Errno::EOPNOTSUPP);
    }
    let (from, to) = (
        Source::Parts { array, count },
        Target::Parts { array, count },
    );
    match (at, writes) {
        (at, true) if flags & APPEND != 0 => {
            let end = status::of_descriptor(descriptor)?.size;
            let written = read_write::write_from_at(&held, end, from)?;
            if at == LAST {
                read_write::seek(descriptor, end + written, 0)?;
            }
            Ok(written)
        }
        (LAST, false) => read_write::read_into(&held, to),
        (LAST, true) => told(descriptor, 0, || read_write::write_from(&held, from)),
        (at, false) => read_write::read_into_at(&held, at, to),
        (at, true) => read_write::write_from_at(&held, at, from),
    }
}

pub(super) fn read_vector(descriptor: u64, array: u64, count: u64) -> SysResult {
    let held = read_write::readable(descriptor)?;
    check_vectors(array, count)?;
    read_write::read_into(&held, Target::Parts { array, count })
}

pub(super) fn write_vector(descriptor: u64, array: u64, count: u64) -> SysResult {
    let held = read_write::writable(descriptor)?;
    match check_vectors(array, count)? {
        0 => Ok(0),
        _ => read_write::write_from(&held, Source::Parts { array, count }),
    }
}

pub(super) fn read_vector_at(descriptor: u64, array: u64, count: u64, at: u64) -> SysResult {
    read_write::position(at)?;
    let held = read_write::readable(descriptor)?;
    check_vectors(array, count)?;
    read_write::read_into_at(&held, at, Target::Parts { array, count })
}

pub(super) fn write_vector_at(descriptor: u64, array: u64, count: u64, at: u64) -> SysResult {
    read_write::position(at)?;
    let held = read_write::writable(descriptor)?;
    check_vectors(array, count)?;
    read_write::write_from_at(&held, at, Source::Parts { array, count })
}

/// Gives the bytes of all of them.
fn check_vectors(array: u64, count: u64) -> SysResult {
    match count {
        ..=MAX_PARTS => check_parts(array, count),
        _ => Err(Errno::EINVAL),
    }
}
