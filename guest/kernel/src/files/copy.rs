//! Copies from one descriptor to another.

use super::held::Held;
use super::read_write::{position, read_at, readable, writable, write_at, write_from};
use super::{O_ACCESS, O_APPEND, O_WRONLY, Object, Open, artifact};
use crate::buffers::{Place, Source};
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
    let from = readable(from)?;
    place_of(from_at)?;
    let source = from.open().object;
    if from_at != 0 && matches!(source, Object::Stream { .. } | Object::Event(..)) {
        return Err(Errno::ESPIPE);
    }
    let to = writable(to)?;
    if bytes == 0 {
        return Ok(0);
    }
    let appends = u64::from(to.open().flags) & O_APPEND != 0;
    if appends || matches!(source, Object::Directory(_)) {
        return Err(Errno::EINVAL);
    }
    copy(&from, from_at, &to, 0, bytes)
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
    let (from, to) = (readable(from)?, writable(to)?);
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
    copy(&from, from_at, &to, to_at, bytes)
}

/// From one object to another, by way of a short buffer.
fn copy(from: &Held, from_at: u64, to: &Held, to_at: u64, bytes: u64) -> SysResult {
    if let Object::Brought(number) = from.open().object {
        return copy_brought(from, number, from_at, to, to_at, bytes);
    }
    // What is written may be mapped where the places are said.
    let begins = |held: &Held, place| match place {
        0 => Ok(held.open().position),
        place => user::read::<u64>(place),
    };
    let (first, second) = (begins(from, from_at)?, begins(to, to_at)?);
    let mut buffer = [0u8; 4096];
    let mut done = 0;
    while done < bytes {
        let most = (bytes - done).min(buffer.len() as u64) as usize;
        let part = Place::Own(&mut buffer[..most]);
        let read = match read_at(from, first.saturating_add(done), part) {
            // What has no places cannot be read again where the write falls short.
            Err(Errno::ESPIPE) => Err(Errno::EINVAL),
            read => read,
        };
        let put = read.and_then(|read| {
            let part = &buffer[..read as usize];
            match to_at {
                _ if part.is_empty() => Ok(0),
                0 => write_from(to, Source::Own(part)),
                _ => write_at(to, second.saturating_add(done), part),
            }
        });
        match put {
            Ok(0) => break,
            Ok(put) => done += put,
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        }
    }
    came_to(from, from_at, first.saturating_add(done))?;
    if to_at != 0 {
        user::write(to_at, second.saturating_add(done))?;
    }
    Ok(done)
}

/// Notes how far the copy came in what it was made from.
fn came_to(from: &Held, from_at: u64, end: u64) -> Result<(), Errno> {
    match from_at {
        0 => {
            from.open_mut().position = end;
            Ok(())
        }
        place => user::write(place, end),
    }
}

/// The same from a file of the artifact's, which lies in memory and cannot change: at once.
fn copy_brought(
    from: &Held,
    number: u32,
    from_at: u64,
    to: &Held,
    to_at: u64,
    bytes: u64,
) -> SysResult {
    let open = from.open();
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
        0 => write_from(to, Source::Own(part))?,
        _ => write_at(to, second, part)?,
    };
    came_to(from, from_at, start + done)?;
    if to_at != 0 {
        user::write(to_at, second.saturating_add(done))?;
    }
    Ok(done)
}
