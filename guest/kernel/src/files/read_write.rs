//! Reading and writing what a descriptor stands for.

use super::held::Held;
use super::{O_ACCESS, O_APPEND, O_RDWR, O_WRONLY, Object, artifact, builtin, watch};
use crate::buffers::{Place, Source, Target};
use crate::errno::{Errno, SysResult};
use crate::signals::descriptor;
use crate::sockets::rights;
use crate::sockets::transfer;
use crate::{log, pipes, process, state, threads, timers, user};

/// The object of a call that reads, if there is one that can be read. That is looked at before the buffer.
pub fn readable(descriptor: u64) -> Result<Held, Errno> {
    let held = Held::of(descriptor)?;
    let open = held.open();
    match open.object {
        _ if open.is_name() => Err(Errno::EBADF),
        Object::File(_) | Object::Made(_) if !matches!(open.access(), 0 | O_RDWR) => {
            Err(Errno::EBADF)
        }
        Object::Stream { from, .. } if from == pipes::NONE => Err(Errno::EBADF),
        Object::Epoll(_) => Err(Errno::EINVAL),
        _ => Ok(held),
    }
}

/// The same for a call that writes.
pub fn writable(descriptor: u64) -> Result<Held, Errno> {
    let held = Held::of(descriptor)?;
    let open = held.open();
    match open.object {
        _ if open.is_name() => Err(Errno::EBADF),
        Object::File(_) if !matches!(open.access(), O_WRONLY | O_RDWR) => Err(Errno::EBADF),
        Object::Made(_) | Object::Info(_) | Object::Directory(_) => Err(Errno::EBADF),
        Object::Stream { to, .. } if to == pipes::NONE => Err(Errno::EBADF),
        Object::Epoll(_) => Err(Errno::EINVAL),
        _ => Ok(held),
    }
}

/// Whether a call may read what is no directory: the buffer is looked at after this.
fn is_no_directory(held: &Held) -> Result<(), Errno> {
    match held.open().object {
        Object::Directory(_) => Err(Errno::EISDIR),
        _ => Ok(()),
    }
}

/// A place in a file: none is before its start.
pub fn position(at: u64) -> Result<(), Errno> {
    i64::try_from(at).map(|_| ()).map_err(|_| Errno::EINVAL)
}

/// `read`
pub fn read(descriptor: u64, to: u64, bytes: u64) -> SysResult {
    let held = readable(descriptor)?;
    user::range(to, bytes)?;
    is_no_directory(&held)?;
    read_into(&held, Target::piece(to, bytes))
}

/// Reads where the last one ended, and waits where there is nothing yet.
pub fn read_into(held: &Held, mut to: Target<'_>) -> SysResult {
    let open = held.open();
    if let Object::Socket(number) = open.object {
        return transfer::read(number, to, open.nonblocking);
    }
    threads::blocking(open.nonblocking, || {
        if let Object::Stream { from, .. } = open.object {
            // As on Linux nothing is taken out of a pipe for a place of which a part is not there.
            to.check(pipes::queue(from).map_or(0, |queue| queue.used()))?;
        }
        to.for_each_from(0, |place, _| try_read(held, place))
    })
}

/// EAGAIN where a read would wait.
#[inline(never)]
pub(super) fn try_read(held: &Held, to: Place<'_>) -> SysResult {
    let open = held.open_mut();
    match open.object {
        Object::File(_)
        | Object::Brought(_)
        | Object::Made(_)
        | Object::Info(_)
        | Object::Name(_) => {
            let read = read_at(held, open.position, to)?;
            held.open_mut().position += read;
            Ok(read)
        }
        Object::Directory(_) => Err(Errno::EISDIR),
        Object::Stdin | Object::Null => Ok(0),
        Object::Zero | Object::Full => {
            let to = to.writable()?;
            to.fill(0);
            Ok(to.len() as u64)
        }
        Object::Random => {
            let to = to.writable()?;
            state::random().fill(to);
            Ok(to.len() as u64)
        }
        Object::Socket(number) => transfer::read(number, Target::Own(to.writable()?), true),
        Object::Timer(number) => timers::read(number, to),
        Object::Signals(set) => descriptor::read(set, to),
        Object::Watcher(number) => watch::read(number, to),
        Object::Stream { from, .. } => pipes::read(from, to),
        Object::Event(count, semaphore) => {
            if to.len() < 8 {
                return Err(Errno::EINVAL);
            }
            if count == 0 {
                return Err(Errno::EAGAIN);
            }
            let taken = if semaphore { 1 } else { count };
            to.limit(8).whole()?.copy_from_slice(&taken.to_le_bytes());
            open.object = Object::Event(count - taken, semaphore);
            // Who waits to add to it may now.
            state::threads().changed();
            Ok(8)
        }
        Object::Log => Err(Errno::EBADF),
        Object::Epoll(_) | Object::Free => Err(Errno::EINVAL),
    }
}

/// `write`
pub fn write(descriptor: u64, from: u64, bytes: u64) -> SysResult {
    let held = writable(descriptor)?;
    user::range(from, bytes)?;
    write_from(&held, Source::piece(from, bytes))
}

/// Writes where the last one ended, all of it unless the object does not wait for room.
pub fn write_from(held: &Held, from: Source<'_>) -> SysResult {
    let open = held.open();
    match open.object {
        Object::Socket(number) => {
            transfer::send(number, from, 0, open.nonblocking, None, &rights::NONE)
        }
        Object::Stream { to, .. } => pipes::write(to, from, open.nonblocking),
        Object::Event(..) => from.for_each(|bytes| {
            let value = u64::from_le_bytes(*bytes.first_chunk().ok_or(Errno::EINVAL)?);
            threads::blocking(open.nonblocking, || add(held, value))
        }),
        _ => from.for_each(|bytes| try_write(held, bytes)),
    }
}

/// EAGAIN where a write would wait.
pub(super) fn try_write(held: &Held, bytes: &[u8]) -> SysResult {
    let open = held.open();
    match open.object {
        Object::Socket(number) => {
            return transfer::send(number, Source::Own(bytes), 0, true, None, &rights::NONE);
        }
        Object::Event(..) => {
            let value = bytes.first_chunk().ok_or(Errno::EINVAL)?;
            return add(held, u64::from_le_bytes(*value));
        }
        Object::File(_) if bytes.is_empty() => return Ok(0),
        Object::File(number) => {
            let at = match u64::from(open.flags) & O_APPEND {
                0 => open.position,
                _ => state::temporary().node(number).size,
            };
            let written = write_at(held, at, bytes)?;
            held.open_mut().position = at + written;
            return Ok(written);
        }
        Object::Name(thread) => {
            let place = state::threads().index_of(thread).ok_or(Errno::ESRCH)?;
            process::set_name(place, bytes);
        }
        Object::Log => log::write(bytes),
        Object::Null | Object::Zero | Object::Random => {}
        Object::Full => return Err(Errno::ENOSPC),
        Object::Brought(_)
        | Object::Made(_)
        | Object::Info(_)
        | Object::Directory(_)
        | Object::Stdin
        | Object::Watcher(_) => return Err(Errno::EBADF),
        _ => return Err(Errno::EINVAL),
    }
    Ok(bytes.len() as u64)
}

/// Adds to an eventfd: EAGAIN where the sum is too large.
fn add(held: &Held, value: u64) -> SysResult {
    let open = held.open_mut();
    let Object::Event(count, semaphore) = open.object else {
        return Err(Errno::EINVAL);
    };
    if value == u64::MAX {
        return Err(Errno::EINVAL);
    }
    let sum = count.checked_add(value).filter(|sum| *sum < u64::MAX);
    open.object = Object::Event(sum.ok_or(Errno::EAGAIN)?, semaphore);
    open.edges = open.edges.wrapping_add(1);
    state::threads().changed();
    Ok(8)
}

/// `pread64`
pub fn read_placed(descriptor: u64, to: u64, bytes: u64, at: u64) -> SysResult {
    position(at)?;
    let held = readable(descriptor)?;
    user::range(to, bytes)?;
    is_no_directory(&held)?;
    read_into_at(&held, at, Target::piece(to, bytes))
}

/// `pwrite64`
pub fn write_placed(descriptor: u64, from: u64, bytes: u64, at: u64) -> SysResult {
    position(at)?;
    let held = writable(descriptor)?;
    user::range(from, bytes)?;
    write_from_at(&held, at, Source::piece(from, bytes))
}

/// Reads from a place on.
pub fn read_into_at(held: &Held, at: u64, mut to: Target<'_>) -> SysResult {
    to.for_each_from(0, |place, done| {
        read_at(held, at.saturating_add(done), place)
    })
}

/// Writes from a place on.
pub fn write_from_at(held: &Held, at: u64, from: Source<'_>) -> SysResult {
    let mut done = 0;
    from.for_each(|bytes| {
        let written = write_at(held, at.saturating_add(done), bytes)?;
        done += written;
        Ok(written)
    })
}

/// Reads from a place on, without a wait.
pub(super) fn read_at(held: &Held, at: u64, to: Place<'_>) -> SysResult {
    let open = held.open();
    if u64::from(open.flags) & O_ACCESS == O_WRONLY {
        return Err(Errno::EBADF);
    }
    if at > i64::MAX as u64 {
        return Err(Errno::EINVAL);
    }
    match open.object {
        Object::File(number) => {
            let wants_some = !to.is_empty();
            let read = copy_out(state::temporary().node(number).content(), at, to)?;
            if wants_some {
                watch::tell_node(number, watch::ACCESS);
            }
            Ok(read)
        }
        Object::Brought(number) => copy_out(artifact::content_of(number), at, to),
        Object::Made(_) | Object::Info(_) | Object::Name(_) => {
            // The place first: what was made is there until something else is.
            let to = Place::Own(to.writable()?);
            copy_out(made(open.object, at), 0, to)
        }
        Object::Directory(_) => Err(Errno::EISDIR),
        Object::Null | Object::Full | Object::Zero | Object::Random => try_read(held, to),
        _ => Err(Errno::ESPIPE),
    }
}

/// Copies what lies at a place of a content.
fn copy_out(content: &[u8], at: u64, to: Place<'_>) -> SysResult {
    let from = content
        .get(at.min(content.len() as u64) as usize..)
        .unwrap_or_default();
    let to = to.limit(from.len() as u64).writable()?;
    to.copy_from_slice(&from[..to.len()]);
    Ok(to.len() as u64)
}

/// The content of a file that is made when it is read, from a place on; no more than is made at once.
fn made(object: Object, at: u64) -> &'static [u8] {
    let content = state::content();
    content.begin(at);
    match object {
        Object::Made(number) => match builtin::ENTRIES[usize::from(number)].1 {
            builtin::Entry::Text(text) => {
                let text = text.as_bytes();
                return &text[at.min(text.len() as u64) as usize..];
            }
            // What does not fit is cut.
            builtin::Entry::Made(make) => drop(make(content)),
            _ => {}
        },
        Object::Info(descriptor) => builtin::own::descriptor(content, descriptor.into()),
        Object::Name(thread) => {
            if let Some(place) = state::threads().index_of(thread) {
                builtin::own::name(content, place);
            }
        }
        _ => {}
    }
    &content.bytes[..content.used]
}

/// Writes at a place, without a wait.
pub(super) fn write_at(held: &Held, at: u64, bytes: &[u8]) -> SysResult {
    let open = held.open();
    if u64::from(open.flags) & O_ACCESS == 0 {
        return Err(Errno::EBADF);
    }
    if at > i64::MAX as u64 {
        return Err(Errno::EINVAL);
    }
    match open.object {
        // As on Linux: who appends does so wherever the call says.
        Object::File(number) => {
            let node = state::temporary().node(number);
            let at = match u64::from(open.flags) & O_APPEND {
                0 => at,
                _ => node.size,
            };
            let written = node.write(at, bytes)?;
            if written > 0 {
                watch::tell_node(number, watch::MODIFY);
            }
            Ok(written)
        }
        Object::Null | Object::Zero | Object::Random => Ok(bytes.len() as u64),
        Object::Full => Err(Errno::ENOSPC),
        _ => Err(Errno::ESPIPE),
    }
}

/// `lseek`
pub fn seek(descriptor: u64, offset: u64, whence: u64) -> SysResult {
    const SET: u64 = 0;
    const CURRENT: u64 = 1;
    const END: u64 = 2;
    const DATA: u64 = 3;
    const HOLE: u64 = 4;
    let open = state::files().get_mut(descriptor)?;
    let size = match open.object {
        _ if open.is_name() => return Err(Errno::EBADF),
        Object::File(number) => state::temporary().node(number).size,
        Object::Brought(number) => artifact::content_of(number).len() as u64,
        Object::Made(_) | Object::Info(_) | Object::Name(_) | Object::Directory(_) => 0,
        Object::Null | Object::Full | Object::Zero | Object::Random => return Ok(0),
        _ => return Err(Errno::ESPIPE),
    };
    let from = match whence {
        SET => 0,
        CURRENT => open.position,
        END if matches!(open.object, Object::Directory(_)) => return Err(Errno::EINVAL),
        END => size,
        DATA | HOLE if matches!(open.object, Object::Directory(_)) => return Err(Errno::EINVAL),
        DATA | HOLE if offset >= size => return Err(Errno::ENXIO),
        DATA => 0,
        HOLE => return Ok(size),
        _ => return Err(Errno::EINVAL),
    };
    let to = (from as i64)
        .checked_add(offset as i64)
        .ok_or(Errno::EOVERFLOW)?;
    open.position = u64::try_from(to).map_err(|_| Errno::EINVAL)?;
    Ok(open.position)
}

/// `fadvise64`: nothing to be had by it.
pub fn advise(descriptor: u64, advice: u64) -> SysResult {
    const MOST: u32 = 5;
    let open = state::files().get(descriptor)?;
    match open.object {
        _ if open.is_name() => Err(Errno::EBADF),
        Object::Stream { .. } | Object::Stdin | Object::Log => Err(Errno::ESPIPE),
        _ if advice as u32 > MOST => Err(Errno::EINVAL),
        _ => Ok(0),
    }
}

/// `readahead`: it is all there.
pub fn read_ahead(descriptor: u64) -> SysResult {
    match readable(descriptor)?.open().object {
        Object::File(_) | Object::Brought(_) | Object::Made(_) => Ok(0),
        _ => Err(Errno::EINVAL),
    }
}

/// `sync_file_range`
pub fn synchronise_range(descriptor: u64, at: u64, bytes: u64, flags: u64) -> SysResult {
    const KNOWN: u64 = 7;
    let open = state::files().get(descriptor)?;
    if flags as u32 as u64 & !KNOWN != 0
        || (at as i64) < 0
        || (at.wrapping_add(bytes) as i64) < at as i64
    {
        return Err(Errno::EINVAL);
    }
    match open.object {
        _ if open.is_name() => Err(Errno::EBADF),
        Object::File(_) | Object::Brought(_) | Object::Directory(_) => Ok(0),
        _ => Err(Errno::ESPIPE),
    }
}

/// `fsync` and its kin: memory is as durable as it gets.
pub fn synchronise(descriptor: u64) -> SysResult {
    let open = state::files().get(descriptor)?;
    match open.object {
        _ if open.is_name() => Err(Errno::EBADF),
        Object::File(_) | Object::Brought(_) | Object::Made(_) | Object::Directory(_) => Ok(0),
        _ => Err(Errno::EINVAL),
    }
}
