//! Copies from one descriptor to another.

use super::read_write::{position, read_at, readable, try_read, writable, write, write_at};
use super::{O_ACCESS, O_APPEND, O_WRONLY, Object, Open, artifact};
use crate::errno::{Errno, SysResult};
use crate::{state, user};

/// Where a copy begins, if that is said.
fn place_of(place: u64) -> Result<(), Errno> {
    match place {
        0 => Ok(()),
        place => position(user::read::<u64>(place)?),
    }
}

/// `sendfile`
pub fn send_file(to: u64, from: u64, from_at: u64, bytes: u64) -> SysResult {
    let is_placed = from_at == 0 || user::read::<u64>(from_at).is_ok();
    if !is_placed {
        return Err(Errno::EFAULT);
    }
    readable(from)?;
    place_of(from_at)?;
    let source = state::files().get(from)?.object;
    if from_at != 0 && matches!(source, Object::Stream { .. } | Object::Event(..)) {
        return Err(Errno::ESPIPE);
    }
    writable(to)?;
    if bytes == 0 {
        return Ok(0);
    }
    let appends = u64::from(state::files().get(to)?.flags) & O_APPEND != 0;
    if appends || matches!(source, Object::Directory(_)) {
        return Err(Errno::EINVAL);
    }
    copy(from, from_at, to, 0, bytes)
}

/// `copy_file_range`
pub fn copy_range(from: u64, from_at: u64, to: u64, to_at: u64, bytes: u64) -> SysResult {
    let (source, target) = (state::files().get(from)?, state::files().get(to)?);
    if source.is_name() || target.is_name() {
        return Err(Errno::EBADF);
    }
    for open in [source, target] {
        match open.object {
            Object::File(_) | Object::Brought(_) | Object::Made(_) => {}
            Object::Directory(_) => return Err(Errno::EISDIR),
            _ => return Err(Errno::EINVAL),
        }
    }
    readable(from)?;
    writable(to)?;
    if u64::from(target.flags) & O_APPEND != 0 {
        return Err(Errno::EBADF);
    }
    let begin = |open: Open, place| match place {
        0 => Ok(open.position),
        place => user::read::<u64>(place),
    };
    place_of(from_at)?;
    place_of(to_at)?;
    let (first, second) = (begin(source, from_at)?, begin(target, to_at)?);
    let bytes = match source.object {
        Object::File(number) => {
            bytes.min(state::temporary().node(number).size.saturating_sub(first))
        }
        Object::Brought(number) => {
            bytes.min((artifact::content_of(number).len() as u64).saturating_sub(first))
        }
        _ => bytes,
    };
    if source.object == target.object && bytes > first.abs_diff(second) {
        return Err(Errno::EINVAL);
    }
    copy(from, from_at, to, to_at, bytes)
}

/// From one descriptor to another, by way of a short buffer.
fn copy(from: u64, from_at: u64, to: u64, to_at: u64, bytes: u64) -> SysResult {
    if let Object::Brought(number) = state::files().get(from)?.object {
        return copy_brought(from, number, from_at, to, to_at, bytes);
    }
    // What is written may be mapped where the places are said.
    let begins = |place| match place {
        0 => Ok(0),
        place => user::read::<u64>(place),
    };
    let (first, second) = (begins(from_at)?, begins(to_at)?);
    let mut buffer = [0u8; 4096];
    let mut done = 0;
    while done < bytes {
        let part = (bytes - done).min(buffer.len() as u64) as usize;
        let part = &mut buffer[..part];
        let read = match from_at {
            0 => try_read(from, part)?,
            _ => read_at(from, first.saturating_add(done), part)?,
        } as usize;
        if read == 0 {
            break;
        }
        done += match to_at {
            0 => write(to, &part[..read])?,
            _ => write_at(to, second.saturating_add(done), &part[..read])?,
        };
    }
    for (place, at) in [(from_at, first), (to_at, second)] {
        if place != 0 {
            user::write(place, at.saturating_add(done))?;
        }
    }
    Ok(done)
}

/// The same from a file of the artifact's, which lies in memory and cannot change: at once.
fn copy_brought(
    from: u64,
    number: u32,
    from_at: u64,
    to: u64,
    to_at: u64,
    bytes: u64,
) -> SysResult {
    let open = state::files().get(from)?;
    if u64::from(open.flags) & O_ACCESS == O_WRONLY {
        return Err(Errno::EBADF);
    }
    let start = match from_at {
        0 => open.position,
        place => user::read::<u64>(place)?,
    };
    if start > i64::MAX as u64 {
        return Err(Errno::EINVAL);
    }
    let content = artifact::content_of(number);
    let rest = content
        .get(start.min(content.len() as u64) as usize..)
        .unwrap_or_default();
    let part = &rest[..bytes.min(rest.len() as u64) as usize];
    let second = match to_at {
        0 => 0,
        place => user::read::<u64>(place)?,
    };
    let done = match to_at {
        _ if part.is_empty() => 0,
        0 => write(to, part)?,
        _ => write_at(to, second, part)?,
    };
    match from_at {
        0 => state::files().get_mut(from)?.position = start + done,
        place => user::write(place, start + done)?,
    }
    if to_at != 0 {
        user::write(to_at, second.saturating_add(done))?;
    }
    Ok(done)
}
