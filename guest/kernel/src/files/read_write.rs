//! Reading and writing what a descriptor stands for.

use super::{O_ACCESS, O_APPEND, O_RDWR, O_WRONLY, Object, artifact, builtin, watch};
use crate::errno::{Errno, SysResult};
use crate::signals::descriptor;
use crate::sockets::buffers::{Source, Target};
use crate::sockets::rights;
use crate::sockets::transfer;
use crate::{log, pipes, process, state, threads, timers};

/// What is looked at before the buffer of a call that reads: that there is a descriptor, and that it
/// can be read.
pub fn readable(descriptor: u64) -> Result<(), Errno> {
    let open = state::files().get(descriptor)?;
    match open.object {
        _ if open.is_name() => Err(Errno::EBADF),
        Object::File(_) | Object::Made(_) if !matches!(open.access(), 0 | O_RDWR) => {
            Err(Errno::EBADF)
        }
        Object::Stream { from, .. } if from == pipes::NONE => Err(Errno::EBADF),
        Object::Epoll(_) => Err(Errno::EINVAL),
        _ => Ok(()),
    }
}

/// Whether a call may read what is no directory: the buffer is looked at after this.
pub fn is_no_directory(descriptor: u64) -> Result<(), Errno> {
    match state::files().get(descriptor)?.object {
        Object::Directory(_) => Err(Errno::EISDIR),
        _ => Ok(()),
    }
}

/// The same as `readable` for a call that writes.
pub fn writable(descriptor: u64) -> Result<(), Errno> {
    let open = state::files().get(descriptor)?;
    match open.object {
        _ if open.is_name() => Err(Errno::EBADF),
        Object::File(_) if !matches!(open.access(), O_WRONLY | O_RDWR) => Err(Errno::EBADF),
        Object::Made(_) | Object::Info(_) | Object::Directory(_) => Err(Errno::EBADF),
        Object::Stream { to, .. } if to == pipes::NONE => Err(Errno::EBADF),
        Object::Epoll(_) => Err(Errno::EINVAL),
        _ => Ok(()),
    }
}

/// A place in a file: none is before its start.
pub fn position(at: u64) -> Result<(), Errno> {
    i64::try_from(at).map(|_| ()).map_err(|_| Errno::EINVAL)
}

/// `read`
pub fn read(descriptor: u64, to: &mut [u8]) -> SysResult {
    let open = state::files().get(descriptor)?;
    if let Object::Socket(number) = open.object {
        return transfer::read(number, Target::Whole(to), open.nonblocking);
    }
    threads::blocking(open.nonblocking, || try_read(descriptor, to))
}

/// EAGAIN where a read would wait.
#[inline(never)]
pub(super) fn try_read(descriptor: u64, to: &mut [u8]) -> SysResult {
    let open = state::files().get(descriptor)?;
    match open.object {
        Object::File(_)
        | Object::Brought(_)
        | Object::Made(_)
        | Object::Info(_)
        | Object::Name(_) => {
            let read = read_at(descriptor, open.position, to)?;
            state::files().get_mut(descriptor)?.position += read;
            Ok(read)
        }
        Object::Directory(_) => Err(Errno::EISDIR),
        Object::Stdin | Object::Null => Ok(0),
        Object::Zero => {
            to.fill(0);
            Ok(to.len() as u64)
        }
        Object::Random => {
            state::random().fill(to);
            Ok(to.len() as u64)
        }
        Object::Socket(number) => transfer::read(number, Target::Whole(to), true),
        Object::Timer(number) => timers::read(number, to),
        Object::Signals(set) => descriptor::read(set, to),
        Object::Watcher(number) => watch::read(number, to),
        Object::Stream { from, .. } => pipes::read(from, to),
        Object::Event(count, semaphore) => {
            let to = to.first_chunk_mut::<8>().ok_or(Errno::EINVAL)?;
            if count == 0 {
                return Err(Errno::EAGAIN);
            }
            let taken = if semaphore { 1 } else { count };
            to.copy_from_slice(&taken.to_le_bytes());
            state::files().get_mut(descriptor)?.object = Object::Event(count - taken, semaphore);
            Ok(8)
        }
        Object::Log => Err(Errno::EBADF),
        Object::Epoll(_) | Object::Free => Err(Errno::EINVAL),
    }
}

/// `write`
pub fn write(descriptor: u64, bytes: &[u8]) -> SysResult {
    let open = state::files().get(descriptor)?;
    match open.object {
        Object::File(_) if bytes.is_empty() => return Ok(0),
        Object::File(number) => {
            let at = match u64::from(open.flags) & O_APPEND {
                0 => open.position,
                _ => state::temporary().node(number).size,
            };
            let written = write_at(descriptor, at, bytes)?;
            state::files().get_mut(descriptor)?.position = at + written;
            return Ok(written);
        }
        Object::Brought(_) | Object::Made(_) | Object::Info(_) | Object::Directory(_) => {
            return Err(Errno::EBADF);
        }
        Object::Name(thread) => {
            let place = state::threads().index_of(thread).ok_or(Errno::ESRCH)?;
            process::set_name(place, bytes);
        }
        Object::Log => log::write(bytes),
        Object::Null | Object::Zero | Object::Random => {}
        Object::Socket(number) => {
            return send(number, Source::Whole(bytes), open.nonblocking);
        }
        Object::Stream { to, .. } => return pipes::write(to, bytes, open.nonblocking, None),
        Object::Event(count, semaphore) => {
            let value = u64::from_le_bytes(*bytes.first_chunk::<8>().ok_or(Errno::EINVAL)?);
            if value == u64::MAX {
                return Err(Errno::EINVAL);
            }
            let sum = count.checked_add(value).filter(|sum| *sum < u64::MAX);
            let open = state::files().get_mut(descriptor)?;
            open.object = Object::Event(sum.ok_or(Errno::EAGAIN)?, semaphore);
            open.edges = open.edges.wrapping_add(1);
            state::threads().changed();
            return Ok(8);
        }
        Object::Stdin => return Err(Errno::EBADF),
        Object::Watcher(_) => return Err(Errno::EBADF),
        Object::Timer(_) | Object::Signals(_) | Object::Epoll(_) | Object::Free => {
            return Err(Errno::EINVAL);
        }
    }
    Ok(bytes.len() as u64)
}

/// A write to a socket.
fn send(number: u16, from: Source<'_>, nonblocking: bool) -> SysResult {
    transfer::send(number, from, 0, nonblocking, None, &rights::NONE)
}

/// `readv`, where one message goes to all parts of an array; `None` for what is no socket.
pub fn read_message(descriptor: u64, array: u64, count: u64) -> Result<Option<u64>, Errno> {
    let open = state::files().get(descriptor)?;
    match open.object {
        Object::Socket(number) => {
            let to = Target::Parts { array, count };
            transfer::read(number, to, open.nonblocking).map(Some)
        }
        _ => Ok(None),
    }
}

/// The same for `writev`.
pub fn write_message(descriptor: u64, array: u64, count: u64) -> Result<Option<u64>, Errno> {
    let open = state::files().get(descriptor)?;
    match open.object {
        Object::Socket(number) => {
            let from = Source::Parts { array, count };
            send(number, from, open.nonblocking).map(Some)
        }
        _ => Ok(None),
    }
}

/// `pread64` and its kin
pub fn read_at(descriptor: u64, at: u64, to: &mut [u8]) -> SysResult {
    let open = state::files().get(descriptor)?;
    if u64::from(open.flags) & O_ACCESS == O_WRONLY {
        return Err(Errno::EBADF);
    }
    if at > i64::MAX as u64 {
        return Err(Errno::EINVAL);
    }
    match open.object {
        Object::File(number) => {
            let read = state::temporary().node(number).read(at, to);
            if !to.is_empty() {
                watch::tell_node(number, watch::ACCESS);
            }
            Ok(read)
        }
        Object::Brought(number) => {
            let content = artifact::content_of(number);
            let from = content
                .get(at.min(content.len() as u64) as usize..)
                .unwrap_or_default();
            let bytes = from.len().min(to.len());
            to[..bytes].copy_from_slice(&from[..bytes]);
            Ok(bytes as u64)
        }
        Object::Made(_) | Object::Info(_) | Object::Name(_) => {
            let made = made(open.object);
            let from = made
                .get(at.min(made.len() as u64) as usize..)
                .unwrap_or_default();
            let bytes = from.len().min(to.len());
            to[..bytes].copy_from_slice(&from[..bytes]);
            Ok(bytes as u64)
        }
        Object::Directory(_) => Err(Errno::EISDIR),
        Object::Null | Object::Zero | Object::Random => try_read(descriptor, to),
        _ => Err(Errno::ESPIPE),
    }
}

/// The content of a file that is made when it is read.
fn made(object: Object) -> &'static [u8] {
    let content = state::content();
    content.used = 0;
    match object {
        Object::Made(number) => match builtin::ENTRIES[usize::from(number)].1 {
            builtin::Entry::Text(text) => return text.as_bytes(),
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

/// `pwrite64` and its kin
pub fn write_at(descriptor: u64, at: u64, bytes: &[u8]) -> SysResult {
    let open = state::files().get(descriptor)?;
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
        Object::Null | Object::Zero | Object::Random => return Ok(0),
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
    state::files().get(descriptor)?;
    readable(descriptor)?;
    match state::files().get(descriptor)?.object {
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
