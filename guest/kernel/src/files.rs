//! File descriptors and what they stand for. There are no files in this guest: only the standard
//! streams, a few devices, sockets and what programs wait with. Everything else is ENOENT.

use holm_hostcall::abort_reason;

use crate::errno::{Errno, SysResult};
use crate::poll::Epoll;
use crate::stat::Kind;
use crate::{host, log, pipes, state, threads, user};

/// Most open descriptors.
pub const MAX_DESCRIPTORS: usize = 256;
/// Most open objects; several descriptors may share one.
const MAX_OBJECTS: usize = 256;

const O_NONBLOCK: u64 = 0o4000;

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
    /// A stream socket that is neither listening nor connected; the port it was bound to, or 0.
    Socket(u16),
    /// A listening socket and its port.
    Listener(u16),
    /// The connection that carries a request; ids count up.
    Connection(u32),
    /// An epoll instance.
    Epoll(u8),
    /// An end of a pipe or of a socket pair: the queues it reads from and writes to.
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
}

const CLOSED: Open = Open {
    object: Object::Free,
    references: 0,
    nonblocking: false,
    edges: 0,
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

    /// Opens the standard streams.
    pub fn start(&mut self) {
        for object in [Object::Stdin, Object::Log, Object::Log] {
            // The tables are empty: there is room for three.
            let _ = self.open(object, 0);
        }
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

    /// The listener that requests go to: the one on `port`, else any.
    pub fn listener(&self, port: u16) -> Option<u16> {
        let any = |open: &&Open| matches!(open.object, Object::Listener(_));
        let wanted = self
            .objects
            .iter()
            .find(|open| open.object == Object::Listener(port));
        match wanted.or_else(|| self.objects.iter().find(any))?.object {
            Object::Listener(port) => Some(port),
            _ => None,
        }
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
            Object::Connection(id) => state::server().close(id),
            Object::Stream { from, to } => pipes::close(from, to),
            Object::Epoll(number) => state::epolls()[usize::from(number)] = Epoll::new(),
            _ => {}
        }
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

/// `epoll_create1`
pub fn open_epoll() -> SysResult {
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
    let event = Object::Event(u64::from(initial as u32), flags & EFD_SEMAPHORE != 0);
    state::files().open(event, flags)
}

/// What is at a path: the devices, and nothing else.
fn at(path: u64) -> Result<Object, Errno> {
    match user::path(path)? {
        b"/dev/null" => Ok(Object::Null),
        b"/dev/zero" => Ok(Object::Zero),
        b"/dev/random" | b"/dev/urandom" => Ok(Object::Random),
        b"/dev/stdin" => Ok(Object::Stdin),
        b"/dev/stdout" | b"/dev/stderr" => Ok(Object::Log),
        _ => Err(Errno::ENOENT),
    }
}

/// `open` and `openat`
pub fn open(path: u64, flags: u64) -> SysResult {
    const O_CREAT: u64 = 0o100;
    match at(path) {
        Ok(object) => state::files().open(object, flags),
        Err(Errno::ENOENT) if flags & O_CREAT != 0 => Err(Errno::EROFS),
        Err(error) => Err(error),
    }
}

/// `access` and its kin
pub fn access(path: u64) -> SysResult {
    at(path).map(|_| 0)
}

/// What `stat` says a path is.
pub fn kind_at(path: u64) -> Result<Kind, Errno> {
    Ok(kind_of(at(path)?))
}

/// `read`
pub fn read(descriptor: u64, to: &mut [u8]) -> SysResult {
    let nonblocking = state::files().get(descriptor)?.nonblocking;
    threads::blocking(nonblocking, || try_read(descriptor, to))
}

/// EAGAIN where a read would wait.
fn try_read(descriptor: u64, to: &mut [u8]) -> SysResult {
    match state::files().get(descriptor)?.object {
        Object::Stdin | Object::Null => Ok(0),
        Object::Zero => {
            to.fill(0);
            Ok(to.len() as u64)
        }
        Object::Random => {
            state::random().fill(to);
            Ok(to.len() as u64)
        }
        Object::Connection(id) => state::server().read(id, to),
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
        Object::Socket(_) | Object::Listener(_) => Err(Errno::ENOTCONN),
        Object::Log => Err(Errno::EBADF),
        Object::Epoll(_) | Object::Free => Err(Errno::EINVAL),
    }
}

/// `write`
pub fn write(descriptor: u64, bytes: &[u8]) -> SysResult {
    let open = state::files().get(descriptor)?;
    match open.object {
        Object::Log => log::write(bytes),
        Object::Null | Object::Zero | Object::Random => {}
        Object::Connection(id) => state::server().write(id, bytes),
        Object::Stream { to, .. } => return pipes::write(to, bytes, open.nonblocking),
        Object::Event(count, semaphore) => {
            let value = u64::from_le_bytes(*bytes.first_chunk::<8>().ok_or(Errno::EINVAL)?);
            let sum = count.checked_add(value).filter(|sum| *sum < u64::MAX);
            let open = state::files().get_mut(descriptor)?;
            open.object = Object::Event(sum.ok_or(Errno::EAGAIN)?, semaphore);
            open.edges = open.edges.wrapping_add(1);
            state::threads().changed();
            return Ok(8);
        }
        Object::Socket(_) | Object::Listener(_) => return Err(Errno::ENOTCONN),
        Object::Stdin => return Err(Errno::EBADF),
        Object::Epoll(_) | Object::Free => return Err(Errno::EINVAL),
    }
    Ok(bytes.len() as u64)
}

/// `fcntl`
pub fn control(descriptor: u64, command: u64, argument: u64) -> SysResult {
    const F_DUPFD: u64 = 0;
    const F_GETFD: u64 = 1;
    const F_SETFD: u64 = 2;
    const F_GETFL: u64 = 3;
    const F_SETFL: u64 = 4;
    const F_DUPFD_CLOEXEC: u64 = 1030;
    const O_RDWR: u64 = 2;
    let files = state::files();
    let open = files.get_mut(descriptor)?;
    match command {
        F_DUPFD | F_DUPFD_CLOEXEC => files.duplicate(descriptor, argument),
        // Nothing is ever executed, so close-on-exec needs no memory.
        F_GETFD | F_SETFD => Ok(0),
        F_GETFL => Ok(O_RDWR | if open.nonblocking { O_NONBLOCK } else { 0 }),
        F_SETFL => {
            open.nonblocking = argument & O_NONBLOCK != 0;
            Ok(0)
        }
        _ => Err(Errno::EINVAL),
    }
}

/// `ioctl`
pub fn ioctl(descriptor: u64, request: u64, argument: u64) -> SysResult {
    const FIONREAD: u64 = 0x541B;
    const FIONBIO: u64 = 0x5421;
    let open = state::files().get_mut(descriptor)?;
    match (request, open.object) {
        (FIONBIO, _) => {
            open.nonblocking = user::read::<i32>(argument)? != 0;
            Ok(0)
        }
        (FIONREAD, Object::Connection(id)) => {
            user::write(
                argument,
                state::server().readable_bytes(id).min(i32::MAX as u64) as i32,
            )?;
            Ok(0)
        }
        _ => Err(Errno::ENOTTY),
    }
}

/// What `fstat` says a descriptor is.
pub fn kind(descriptor: u64) -> Result<Kind, Errno> {
    Ok(kind_of(state::files().get(descriptor)?.object))
}

fn kind_of(object: Object) -> Kind {
    match object {
        Object::Stdin | Object::Log | Object::Stream { .. } => Kind::Pipe,
        Object::Null | Object::Zero | Object::Random => Kind::Device,
        Object::Socket(_) | Object::Listener(_) | Object::Connection(_) => Kind::Socket,
        Object::Epoll(_) | Object::Event(..) | Object::Free => Kind::Anonymous,
    }
}

/// Every thread waits for what can never come.
pub fn wait_for_ever() -> ! {
    host::abort_with(
        abort_reason::DEADLOCK,
        0,
        format_args!("the program waits for something that can never come"),
    )
}
