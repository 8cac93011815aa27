//! File descriptors and what they stand for: the standard streams, files and directories, devices,
//! sockets, and what programs wait with. Paths are looked up in `files/calls.rs`.

pub mod artifact;
pub mod builtin;
pub mod calls;
pub mod paths;
pub mod temporary;

use holm_hostcall::abort_reason;

use crate::errno::{Errno, SysResult};
use crate::memory::guest;
use crate::poll::Epoll;
use crate::sockets::transfer;
use crate::stat::{Kind, Status};
use crate::{host, log, pipes, sockets, state, threads, timers, user};

/// Most open descriptors.
pub const MAX_DESCRIPTORS: usize = 1024;
/// Most open objects; several descriptors may share one.
const MAX_OBJECTS: usize = 512;
/// Most open directories.
pub const MAX_DIRECTORIES: usize = 16;

const O_NONBLOCK: u64 = 0o4000;
const O_CLOEXEC: u64 = 0o2_000_000;
const O_APPEND: u64 = 0o2000;
/// The part of the flags that says whether a file is read or written.
const O_ACCESS: u64 = 3;
const O_WRONLY: u64 = 1;
const O_RDWR: u64 = 2;
/// Nothing but the name of a file: neither read nor written.
const O_PATH: u64 = 0o10_000_000;

/// What a descriptor stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Object {
    /// Nothing.
    Free,
    /// Always at its end.
    Stdin,
    /// stdout and stderr: the invocation's log.
    Log,
    /// /dev/null
    Null,
    /// /dev/zero
    Zero,
    /// /dev/random and /dev/urandom
    Random,
    /// A file of /tmp: its number there.
    File(u16),
    /// A file that the artifact brought: its number there.
    Brought(u32),
    /// A directory: its number among the open ones.
    Directory(u8),
    /// A built-in file: its number among those.
    Made(u8),
    /// A socket: its number among those.
    Socket(u16),
    /// A timerfd: its number among those.
    Timer(u8),
    /// An epoll instance.
    Epoll(u8),
    /// An end of a pipe: the queue it reads from, or writes to.
    Stream {
        /// Or `pipes::NONE`.
        from: u8,
        /// Or `pipes::NONE`.
        to: u8,
    },
    /// An eventfd: its counter, and whether it is a semaphore.
    Event(u64, bool),
}

/// An object with what is common to all.
#[derive(Clone, Copy, Debug)]
pub struct Open {
    /// What it is.
    pub object: Object,
    /// Descriptors that stand for it.
    references: u16,
    /// O_NONBLOCK.
    pub nonblocking: bool,
    /// Counts the moments at which it became ready for something new (edges, for epoll).
    pub edges: u32,
    /// O_APPEND, O_PATH and the access mode.
    flags: u32,
    /// Where the next read or write of a file begins.
    pub position: u64,
}

impl Open {
    /// Whether it is nothing but the name of a file (O_PATH).
    fn is_name(&self) -> bool {
        u64::from(self.flags) & O_PATH != 0
    }

    /// The access mode: O_RDONLY, O_WRONLY, O_RDWR, or 3 for neither.
    fn access(&self) -> u64 {
        u64::from(self.flags) & O_ACCESS
    }
}

const CLOSED: Open = Open {
    object: Object::Free,
    references: 0,
    nonblocking: false,
    edges: 0,
    flags: 0,
    position: 0,
};
const UNUSED: u16 = u16::MAX;

/// The tables.
pub struct Files {
    /// Object of each descriptor, or `UNUSED`.
    descriptors: [u16; MAX_DESCRIPTORS],
    objects: [Open; MAX_OBJECTS],
}

impl Files {
    /// Before the start.
    pub const fn new() -> Self {
        Files {
            descriptors: [UNUSED; MAX_DESCRIPTORS],
            objects: [CLOSED; MAX_OBJECTS],
        }
    }

    /// Opens the standard streams; stdin and stdout are the socket `connection` if there is one already.
    pub fn start(&mut self, connection: Option<u16>) {
        // The tables are empty: there is room for three.
        let _ = match connection {
            Some(number) => self
                .open(Object::Socket(number), O_RDWR)
                .and_then(|stdin| self.duplicate(stdin, 0)),
            None => self
                .open(Object::Stdin, 0)
                .and_then(|_| self.open(Object::Log, O_WRONLY)),
        };
        let _ = self.open(Object::Log, O_WRONLY);
    }

    /// A new descriptor for a new object, with O_NONBLOCK from `flags`.
    pub fn open(&mut self, object: Object, flags: u64) -> SysResult {
        let descriptor = self.lowest_free(0)?;
        let at = self
            .objects
            .iter()
            .position(|open| open.object == Object::Free)
            .ok_or(Errno::EMFILE)?;
        let nonblocking = flags & O_NONBLOCK != 0;
        self.objects[at] = Open {
            object,
            references: 1,
            nonblocking,
            edges: 1,
            flags: (flags & (O_ACCESS | O_APPEND | O_PATH)) as u32,
            position: 0,
        };
        self.descriptors[descriptor] = at as u16;
        Ok(descriptor as u64)
    }

    fn lowest_free(&self, from: usize) -> Result<usize, Errno> {
        let free = |at: &usize| self.descriptors[*at] == UNUSED;
        (from..MAX_DESCRIPTORS).find(free).ok_or(Errno::EMFILE)
    }

    /// Index of the object that `descriptor` stands for.
    pub fn index(&self, descriptor: u64) -> Result<u16, Errno> {
        // Only the low 32 bits are the descriptor: callers leave the rest as they like.
        match self.descriptors.get(descriptor as u32 as usize) {
            Some(index) if *index != UNUSED => Ok(*index),
            _ => Err(Errno::EBADF),
        }
    }

    /// What `descriptor` stands for.
    pub fn get(&self, descriptor: u64) -> Result<Open, Errno> {
        Ok(self.objects[usize::from(self.index(descriptor)?)])
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self, descriptor: u64) -> Result<&mut Open, Errno> {
        let index = self.index(descriptor)?;
        Ok(&mut self.objects[usize::from(index)])
    }

    /// The object at `index`.
    pub fn object(&self, index: u16) -> Open {
        self.objects[usize::from(index)]
    }

    /// Marks an edge on every object that `which` holds for.
    pub fn edge(&mut self, which: impl Fn(Object) -> bool) {
        for open in self.objects.iter_mut().filter(|open| which(open.object)) {
            open.edges = open.edges.wrapping_add(1);
        }
        state::threads().changed();
    }

    /// `dup` and F_DUPFD: the lowest free descriptor from `from` on.
    fn duplicate(&mut self, descriptor: u64, from: u64) -> SysResult {
        let index = self.index(descriptor)?;
        let new = self.lowest_free(usize::try_from(from).map_err(|_| Errno::EINVAL)?)?;
        self.place(index, new)
    }

    fn place(&mut self, index: u16, new: usize) -> SysResult {
        self.descriptors[new] = index;
        self.objects[usize::from(index)].references += 1;
        Ok(new as u64)
    }

    /// Frees a descriptor; gives the object if that was its last one.
    fn release(&mut self, descriptor: u64) -> Result<Option<(u16, Object)>, Errno> {
        let index = self.index(descriptor)?;
        self.descriptors[descriptor as u32 as usize] = UNUSED;
        let open = &mut self.objects[usize::from(index)];
        open.references -= 1;
        if open.references > 0 {
            return Ok(None);
        }
        let object = open.object;
        *open = CLOSED;
        Ok(Some((index, object)))
    }
}

impl Default for Files {
    fn default() -> Self {
        Files::new()
    }
}

/// `close`
pub fn close(descriptor: u64) -> SysResult {
    if let Some((index, object)) = state::files().release(descriptor)? {
        for epoll in state::epolls() {
            epoll.forget(index);
        }
        match object {
            Object::Socket(number) => sockets::close(number),
            Object::Timer(number) => timers::close(number),
            Object::Stream { from, to } => pipes::close(from, to),
            Object::Epoll(number) => state::epolls()[usize::from(number)] = Epoll::new(),
            Object::File(number) => state::temporary().closed(number),
            Object::Directory(number) => {
                state::open_directories()[usize::from(number)].0 = false;
            }
            _ => {}
        }
    }
    Ok(0)
}

/// `close_range`
pub fn close_range(first: u64, last: u64) -> SysResult {
    for descriptor in first..=last.min(MAX_DESCRIPTORS as u64 - 1) {
        // One that is not open is as good as closed.
        let _ = close(descriptor);
    }
    Ok(0)
}

/// `dup`
pub fn duplicate(descriptor: u64) -> SysResult {
    state::files().duplicate(descriptor, 0)
}

/// `dup2` and `dup3`
pub fn duplicate_to(descriptor: u64, to: u64) -> SysResult {
    let index = state::files().index(descriptor)?;
    let to = u64::from(to as u32);
    if to as usize >= MAX_DESCRIPTORS {
        return Err(Errno::EBADF);
    }
    if to != u64::from(descriptor as u32) {
        // Not open before is as good.
        let _ = close(to);
        state::files().place(index, to as usize)?;
    }
    Ok(to)
}

/// `dup3`: to another one, with flags that are known.
pub fn duplicate_to_other(descriptor: u64, to: u64, flags: u64) -> SysResult {
    if flags as u32 as u64 & !O_CLOEXEC != 0 || descriptor as u32 == to as u32 {
        return Err(Errno::EINVAL);
    }
    duplicate_to(descriptor, to)
}

/// `epoll_create1`
pub fn open_epoll(flags: u64) -> SysResult {
    if flags as u32 as u64 & !O_CLOEXEC != 0 {
        return Err(Errno::EINVAL);
    }
    let epolls = state::epolls();
    let free = epolls
        .iter()
        .position(|epoll| !epoll.used)
        .ok_or(Errno::EMFILE)?;
    let descriptor = state::files().open(Object::Epoll(free as u8), 0)?;
    epolls[free].used = true;
    Ok(descriptor)
}

/// `eventfd2`
pub fn open_event(initial: u64, flags: u64) -> SysResult {
    const EFD_SEMAPHORE: u64 = 1;
    if flags as u32 as u64 & !(EFD_SEMAPHORE | O_CLOEXEC | O_NONBLOCK) != 0 {
        return Err(Errno::EINVAL);
    }
    let event = Object::Event(u64::from(initial as u32), flags & EFD_SEMAPHORE != 0);
    state::files().open(event, flags & O_NONBLOCK | O_RDWR)
}

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
        Object::Made(_) | Object::Directory(_) => Err(Errno::EBADF),
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
        return transfer::receive(number, to, 0, open.nonblocking);
    }
    threads::blocking(open.nonblocking, || try_read(descriptor, to))
}

/// EAGAIN where a read would wait.
#[inline(never)]
fn try_read(descriptor: u64, to: &mut [u8]) -> SysResult {
    let open = state::files().get(descriptor)?;
    match open.object {
        Object::File(_) | Object::Brought(_) | Object::Made(_) => {
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
        Object::Socket(number) => transfer::receive(number, to, 0, true),
        Object::Timer(number) => timers::read(number, to),
        Object::Stream { from, .. } => pipes::read(from, to, false),
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
        Object::Brought(_) | Object::Made(_) | Object::Directory(_) => return Err(Errno::EBADF),
        Object::Log => log::write(bytes),
        Object::Null | Object::Zero | Object::Random => {}
        Object::Socket(number) => return transfer::send(number, bytes, 0, open.nonblocking),
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
        Object::Timer(_) | Object::Epoll(_) | Object::Free => return Err(Errno::EINVAL),
    }
    Ok(bytes.len() as u64)
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
        Object::File(number) => Ok(state::temporary().node(number).read(at, to)),
        Object::Brought(number) => {
            let content = artifact::content_of(number);
            let from = content
                .get(at.min(content.len() as u64) as usize..)
                .unwrap_or_default();
            let bytes = from.len().min(to.len());
            to[..bytes].copy_from_slice(&from[..bytes]);
            Ok(bytes as u64)
        }
        Object::Made(number) => {
            let content = state::content();
            content.used = 0;
            if let builtin::Entry::Made(make) = builtin::ENTRIES[usize::from(number)].1 {
                // What does not fit is cut.
                let _ = make(content);
            }
            let made = &content.bytes[..content.used];
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
        Object::File(number) if u64::from(open.flags) & O_APPEND != 0 => {
            let node = state::temporary().node(number);
            node.write(node.size, bytes)
        }
        Object::File(number) => state::temporary().node(number).write(at, bytes),
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
        Object::Made(_) | Object::Directory(_) => 0,
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

/// The file of /tmp that a descriptor is open for writing; `otherwise` if it is not open for that.
fn file_to_write(descriptor: u64, otherwise: Errno) -> Result<u16, Errno> {
    let open = state::files().get(descriptor)?;
    match open.object {
        _ if open.is_name() => Err(Errno::EBADF),
        Object::File(number) if matches!(open.access(), O_WRONLY | O_RDWR) => Ok(number),
        _ => Err(otherwise),
    }
}

/// `ftruncate`
pub fn truncate(descriptor: u64, size: u64) -> SysResult {
    if size > i64::MAX as u64 {
        return Err(Errno::EINVAL);
    }
    state::temporary()
        .node(file_to_write(descriptor, Errno::EINVAL)?)
        .resize(size)?;
    Ok(0)
}

/// `fallocate`: only the plain form, and the one that keeps the size.
pub fn allocate(descriptor: u64, mode: u64, offset: u64, bytes: u64) -> SysResult {
    const KEEP_SIZE: u64 = 1;
    const KNOWN: u64 = 0x7f;
    if state::files().get(descriptor)?.is_name() {
        return Err(Errno::EBADF);
    }
    if offset > i64::MAX as u64 || bytes > i64::MAX as u64 || bytes == 0 {
        return Err(Errno::EINVAL);
    }
    if mode as u32 as u64 & !KNOWN != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    let number = file_to_write(descriptor, Errno::EBADF)?;
    let end = offset + bytes;
    if end > i64::MAX as u64 {
        return Err(Errno::EFBIG);
    }
    match mode as u32 as u64 {
        KEEP_SIZE => Ok(0),
        0 => {
            let node = state::temporary().node(number);
            if end > node.size {
                node.resize(end)?;
            }
            Ok(0)
        }
        _ => Err(Errno::EOPNOTSUPP),
    }
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

/// `flock`: one process, which never meets a lock of another's.
pub fn lock(descriptor: u64, operation: u64) -> SysResult {
    const WITHOUT_WAITING: u64 = 4;
    const SHARED: u64 = 1;
    const EXCLUSIVE: u64 = 2;
    const UNLOCK: u64 = 8;
    let operation = operation as u32 as u64 & !WITHOUT_WAITING;
    if !matches!(operation, SHARED | EXCLUSIVE | UNLOCK) {
        return Err(Errno::EINVAL);
    }
    let open = state::files().get(descriptor)?;
    match open.is_name() || (open.access() == O_ACCESS && operation != UNLOCK) {
        true => Err(Errno::EBADF),
        false => Ok(0),
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

/// `fchmod` and `fchown`
pub fn set_attributes(descriptor: u64, mode: Option<u64>) -> SysResult {
    let open = state::files().get(descriptor)?;
    match (open.object, mode) {
        _ if open.is_name() => return Err(Errno::EBADF),
        (Object::File(number), Some(mode)) => {
            state::temporary().node(number).mode = mode as u32 & 0o7777;
        }
        (Object::Brought(_) | Object::Made(_), _) => return Err(Errno::EROFS),
        _ => {}
    }
    Ok(0)
}

/// `getdents64`
pub fn list(descriptor: u64, to: u64, bytes: u64) -> SysResult {
    let open = state::files().get_mut(descriptor)?;
    match open.object {
        _ if open.is_name() => Err(Errno::EBADF),
        Object::Directory(number) => calls::list(open, number, to, bytes),
        _ => Err(Errno::ENOTDIR),
    }
}

/// `mmap` of a file: a copy. What is written to it stays with the program.
pub fn map(hint: u64, bytes: u64, prot: u64, flags: u64, descriptor: u64, at: u64) -> SysResult {
    const PROT_READ_WRITE: u64 = 3;
    const PROT_WRITE: u64 = 2;
    const MAP_SHARED: u64 = 1;
    const MAP_TYPE: u64 = 15;
    const MAP_ANONYMOUS: u64 = 0x20;
    match state::files().get(descriptor)?.object {
        Object::File(_) | Object::Brought(_) | Object::Made(_) => {}
        _ => return Err(Errno::ENODEV),
    }
    if flags & MAP_TYPE == MAP_SHARED && prot & PROT_WRITE != 0 {
        // Nobody would see what is written.
        return Err(Errno::ENODEV);
    }
    if !at.is_multiple_of(holm_hostcall::PAGE_BYTES) {
        return Err(Errno::EINVAL);
    }
    let memory = state::memory;
    let start = memory().map(
        hint,
        bytes,
        PROT_READ_WRITE,
        flags | MAP_ANONYMOUS,
        &mut guest(),
    )?;
    let copied = copy_in(descriptor, at, start, bytes);
    let done = copied.and_then(|()| match prot {
        PROT_READ_WRITE => Ok(0),
        prot => memory().protect(start, bytes, prot, &mut guest()),
    });
    if let Err(error) = done {
        memory().unmap(start, bytes, &mut guest())?;
        return Err(error);
    }
    Ok(start)
}

fn copy_in(descriptor: u64, at: u64, start: u64, bytes: u64) -> Result<(), Errno> {
    let mut done = 0;
    while done < bytes {
        let to = user::buffer_mut(start + done, bytes - done)?;
        match read_at(descriptor, at + done, to)? {
            0 => break,
            read => done += read,
        }
    }
    Ok(())
}

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
    let mut buffer = [0u8; 4096];
    let mut done = 0;
    while done < bytes {
        let part = (bytes - done).min(buffer.len() as u64) as usize;
        let part = &mut buffer[..part];
        let read = match from_at {
            0 => try_read(from, part)?,
            place => read_at(from, user::read::<u64>(place)? + done, part)?,
        } as usize;
        if read == 0 {
            break;
        }
        done += match to_at {
            0 => write(to, &part[..read])?,
            place => write_at(to, user::read::<u64>(place)? + done, &part[..read])?,
        };
    }
    for place in [from_at, to_at].into_iter().filter(|place| *place != 0) {
        user::write(place, user::read::<u64>(place)? + done)?;
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
    let done = match to_at {
        _ if part.is_empty() => 0,
        0 => write(to, part)?,
        place => write_at(to, user::read::<u64>(place)?, part)?,
    };
    match from_at {
        0 => state::files().get_mut(from)?.position = start + done,
        place => user::write(place, start + done)?,
    }
    if to_at != 0 {
        user::write(to_at, user::read::<u64>(to_at)? + done)?;
    }
    Ok(done)
}

/// `fcntl`
pub fn control(descriptor: u64, command: u64, argument: u64) -> SysResult {
    const F_DUPFD: u64 = 0;
    const F_GETFD: u64 = 1;
    const F_SETFD: u64 = 2;
    const F_GETFL: u64 = 3;
    const F_SETFL: u64 = 4;
    const F_DUPFD_CLOEXEC: u64 = 1030;
    const F_GETLK: u64 = 5;
    const F_SETLKW: u64 = 7;
    const F_OFD_GETLK: u64 = 36;
    const F_OFD_SETLKW: u64 = 38;
    const F_UNLCK: i32 = 2;
    let files = state::files();
    let open = files.get_mut(descriptor)?;
    match command {
        _ if open.is_name()
            && !matches!(
                command,
                F_DUPFD | F_DUPFD_CLOEXEC | F_GETFD | F_SETFD | F_GETFL
            ) =>
        {
            Err(Errno::EBADF)
        }
        F_DUPFD | F_DUPFD_CLOEXEC if argument as u32 as usize >= MAX_DESCRIPTORS => {
            Err(Errno::EINVAL)
        }
        F_DUPFD | F_DUPFD_CLOEXEC => files.duplicate(descriptor, argument),
        // Nothing is ever executed, so close-on-exec needs no memory.
        F_GETFD | F_SETFD => Ok(0),
        F_GETFL => {
            let nonblocking = if open.nonblocking { O_NONBLOCK } else { 0 };
            Ok(u64::from(open.flags) | nonblocking)
        }
        F_SETFL => {
            open.nonblocking = argument & O_NONBLOCK != 0;
            open.flags = open.flags & O_ACCESS as u32 | (argument & O_APPEND) as u32;
            Ok(0)
        }
        // One process: it never meets a lock of another's.
        F_GETLK | F_OFD_GETLK => {
            let kind = user::read::<i32>(argument)? & !0xffff | F_UNLCK;
            user::write(argument, kind)?;
            Ok(0)
        }
        F_GETLK..=F_SETLKW | F_OFD_GETLK..=F_OFD_SETLKW => Ok(0),
        _ => Err(Errno::EINVAL),
    }
}

/// `ioctl`
pub fn ioctl(descriptor: u64, request: u64, argument: u64) -> SysResult {
    const FIONREAD: u64 = 0x541B;
    const FIONBIO: u64 = 0x5421;
    const FIONCLEX: u64 = 0x5450;
    const FIOCLEX: u64 = 0x5451;
    let open = state::files().get_mut(descriptor)?;
    match (request, open.object) {
        // As with F_SETFD: nothing is ever executed.
        (FIOCLEX | FIONCLEX, _) => Ok(0),
        (FIONBIO, _) => {
            open.nonblocking = user::read::<i32>(argument)? != 0;
            Ok(0)
        }
        (FIONREAD, Object::Socket(number)) => {
            let bytes = sockets::readable_bytes(number);
            user::write(argument, bytes.min(i32::MAX as u64) as i32)?;
            Ok(0)
        }
        (FIONREAD, Object::Stream { from, .. }) => {
            let bytes = pipes::queue(from).map_or(0, |queue| queue.used());
            user::write(argument, bytes as i32)?;
            Ok(0)
        }
        _ => Err(Errno::ENOTTY),
    }
}

/// What `fstat` says of a descriptor.
pub fn status(descriptor: u64) -> Result<Status, Errno> {
    Ok(status_of(state::files().get(descriptor)?.object))
}

fn status_of(object: Object) -> Status {
    Status::of(match object {
        Object::File(number) => return calls::status_of_node(number),
        Object::Brought(number) => match artifact::entry(number) {
            Some(entry) => return artifact::status(number, &entry),
            None => Kind::File,
        },
        Object::Made(entry) => return calls::made_status(entry),
        Object::Directory(number) => {
            let path = state::open_directories()[usize::from(number)].1;
            return calls::status_of_directory(path.as_bytes());
        }
        Object::Stdin | Object::Log | Object::Stream { .. } => Kind::Pipe,
        Object::Null | Object::Zero | Object::Random => Kind::Device,
        Object::Socket(_) => Kind::Socket,
        Object::Timer(_) | Object::Epoll(_) | Object::Event(..) | Object::Free => Kind::Anonymous,
    })
}

/// Every thread waits for what can never come.
pub fn wait_for_ever() -> ! {
    host::abort_with(
        abort_reason::DEADLOCK,
        0,
        format_args!("the program waits for something that can never come"),
    )
}
