//! Pipes and socket pairs: short byte queues in memory, by which a program talks to itself.

use crate::errno::{Errno, SysResult};
use crate::files::Object;
use crate::{state, threads, user};

/// Bytes that one queue holds.
const QUEUE_BYTES: usize = 4096;
/// Most queues at a time: one for a pipe, two for a socket pair.
pub const MAX_QUEUES: usize = 16;
/// No queue: the end of a pipe that cannot read, or cannot write.
pub const NONE: u8 = u8::MAX;

/// A queue between two ends.
#[derive(Clone, Copy)]
pub struct Queue {
    bytes: [u8; QUEUE_BYTES],
    start: usize,
    used: usize,
    has_reader: bool,
    has_writer: bool,
}

impl Queue {
    /// Unused.
    pub const fn new() -> Self {
        Queue {
            bytes: [0; QUEUE_BYTES],
            start: 0,
            used: 0,
            has_reader: false,
            has_writer: false,
        }
    }

    fn is_free(&self) -> bool {
        !self.has_reader && !self.has_writer
    }

    /// Whether a read would not wait.
    pub fn is_readable(&self) -> bool {
        self.used > 0 || !self.has_writer
    }

    /// Whether a write would not wait.
    pub fn is_writable(&self) -> bool {
        self.used < QUEUE_BYTES || !self.has_reader
    }

    /// Whether bytes are there to be read.
    pub fn has_bytes(&self) -> bool {
        self.used > 0
    }

    /// Whether nobody reads any more.
    pub fn is_unread(&self) -> bool {
        !self.has_reader
    }

    /// Whether the other end has gone.
    pub fn is_ended(&self) -> bool {
        !self.has_writer
    }

    fn take(&mut self, to: &mut [u8]) -> usize {
        let count = self.used.min(to.len());
        for byte in &mut to[..count] {
            *byte = self.bytes[self.start];
            self.start = (self.start + 1) % QUEUE_BYTES;
        }
        self.used -= count;
        count
    }

    fn put(&mut self, from: &[u8]) -> usize {
        let count = (QUEUE_BYTES - self.used).min(from.len());
        for byte in &from[..count] {
            self.bytes[(self.start + self.used) % QUEUE_BYTES] = *byte;
            self.used += 1;
        }
        count
    }
}

impl Default for Queue {
    fn default() -> Self {
        Queue::new()
    }
}

fn new_queue() -> Result<u8, Errno> {
    let queues = state::queues();
    let free = queues
        .iter()
        .position(Queue::is_free)
        .ok_or(Errno::EMFILE)?;
    queues[free] = Queue {
        has_reader: true,
        has_writer: true,
        ..Queue::new()
    };
    Ok(free as u8)
}

/// Opens both ends and tells the program their descriptors.
fn open_ends(ends: [Object; 2], flags: u64, to: u64) -> SysResult {
    let first = state::files().open(ends[0], flags)?;
    let second = state::files().open(ends[1], flags)?;
    user::write(to, [first as u32, second as u32])?;
    Ok(0)
}

/// `pipe` and `pipe2`
pub fn pipe(to: u64, flags: u64) -> SysResult {
    // O_CLOEXEC, O_NONBLOCK; O_DIRECT's packets are not there.
    const KNOWN: u64 = 0o2_004_000;
    if flags as u32 as u64 & !KNOWN != 0 {
        return Err(Errno::EINVAL);
    }
    user::slice_mut(to, 8)?;
    let queue = new_queue()?;
    let ends = [
        Object::Stream {
            from: queue,
            to: NONE,
        },
        Object::Stream {
            from: NONE,
            to: queue,
        },
    ];
    open_ends(ends, flags, to)
}

/// `socketpair`
pub fn socket_pair(family: u64, kind: u64, protocol: u64, to: u64) -> SysResult {
    const UNIX: u64 = 1;
    const INTERNET: [u64; 2] = [2, 10];
    // SOCK_CLOEXEC, SOCK_NONBLOCK
    const FLAGS: u64 = 0o2_004_000;
    if kind as u32 as u64 & !(FLAGS | 0xf) != 0 {
        return Err(Errno::EINVAL);
    }
    match u64::from(family as u32) {
        UNIX if protocol as u32 > UNIX as u32 => return Err(Errno::EPROTONOSUPPORT),
        UNIX => {}
        family if INTERNET.contains(&family) => return Err(Errno::EOPNOTSUPP),
        _ => return Err(Errno::EAFNOSUPPORT),
    }
    user::slice_mut(to, 8)?;
    let (there, back) = (new_queue()?, new_queue()?);
    let ends = [
        Object::Stream {
            from: back,
            to: there,
        },
        Object::Stream {
            from: there,
            to: back,
        },
    ];
    open_ends(ends, kind, to)
}

/// Reads from an end; EAGAIN where nothing is there yet.
pub fn read(from: u8, to: &mut [u8]) -> SysResult {
    let queue = state::queues()
        .get_mut(usize::from(from))
        .ok_or(Errno::EBADF)?;
    let count = queue.take(to);
    if count > 0 {
        state::files().edge(|object| matches!(object, Object::Stream { to, .. } if to == from));
        return Ok(count as u64);
    }
    if queue.is_ended() || to.is_empty() {
        Ok(0)
    } else {
        Err(Errno::EAGAIN)
    }
}

/// Writes to an end: all of it, unless `nonblocking`.
pub fn write(to: u8, bytes: &[u8], nonblocking: bool) -> SysResult {
    if bytes.is_empty() {
        return Ok(0);
    }
    let mut done = 0;
    threads::blocking(nonblocking, || {
        done += put(to, &bytes[done..])?;
        let enough = done == bytes.len() || (nonblocking && done > 0);
        if enough {
            Ok(done as u64)
        } else {
            Err(Errno::EAGAIN)
        }
    })
}

fn put(to: u8, bytes: &[u8]) -> Result<usize, Errno> {
    let queue = state::queues()
        .get_mut(usize::from(to))
        .ok_or(Errno::EBADF)?;
    if !queue.has_reader {
        return Err(Errno::EPIPE);
    }
    let count = queue.put(bytes);
    if count > 0 {
        state::files().edge(|object| matches!(object, Object::Stream { from, .. } if from == to));
    }
    Ok(count)
}

/// An end was closed for the last time.
pub fn close(from: u8, to: u8) {
    if let Some(queue) = state::queues().get_mut(usize::from(from)) {
        queue.has_reader = false;
    }
    if let Some(queue) = state::queues().get_mut(usize::from(to)) {
        queue.has_writer = false;
    }
    state::files().edge(|object| match object {
        Object::Stream {
            from: other_from,
            to: other_to,
        } => (other_from != NONE && other_from == to) || (other_to != NONE && other_to == from),
        _ => false,
    });
}
