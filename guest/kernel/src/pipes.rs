//! Pipes, and the byte queues under them, under FIFOs and under sockets, by which a program talks to itself.

use holm_hostcall::PAGE_BYTES;

use crate::buffers::{Place, Source};
use crate::errno::{Errno, SysResult};
use crate::files::{O_WRONLY, Object, descriptors};
use crate::memory::guest;
use crate::sockets::table::State;
use crate::{state, threads, user};

/// Most bytes that the queue of a pipe holds.
const PIPE_BYTES: u64 = 64 << 10;
/// A write to a pipe of at most so many bytes is made whole (PIPE_BUF); room for fewer counts as none.
const PIPE_UNIT_BYTES: u64 = 4096;
/// Most bytes that each queue of a stream socket holds.
pub const STREAM_BYTES: u64 = 256 << 10;
/// Most queues at a time: one for a pipe, two for a connection.
pub const MAX_QUEUES: usize = 192;
/// No queue: the end of a pipe that cannot read, or cannot write.
pub const NONE: u8 = u8::MAX;

/// A queue between two ends. Its bytes lie in a piece of program memory, which doubles when it is full.
#[derive(Clone, Copy)]
pub struct Queue {
    memory: u64,
    capacity: u64,
    /// Most bytes that it may hold.
    limit: u64,
    /// A write of at most so many bytes is made whole; 0 where none is.
    unit: u64,
    /// There was no memory for more room when it was last needed, and nothing was taken out since.
    is_short: bool,
    start: u64,
    used: u64,
    /// Bytes that were taken out since it is there.
    taken: u64,
    /// Who reads from it: one end, or as many as there are of a FIFO.
    readers: Ends,
    /// Who writes to it.
    writers: Ends,
    /// The file of /tmp by which it is found, if it is a FIFO's.
    file: Option<u16>,
    /// The reader wants nothing more.
    is_deaf: bool,
}

/// The ends of a queue on one of its sides.
#[derive(Clone, Copy)]
struct Ends {
    /// How many there are.
    now: u16,
    /// How many there ever were; it only has to change with each.
    ever: u32,
}

impl Ends {
    const NONE: Ends = Ends { now: 0, ever: 0 };

    fn add(&mut self) {
        self.now += 1;
        self.ever = self.ever.wrapping_add(1);
    }

    fn remove(&mut self) {
        self.now = self.now.saturating_sub(1);
    }
}

impl Queue {
    /// Unused.
    pub const fn new() -> Self {
        Queue {
            memory: 0,
            capacity: 0,
            limit: 0,
            unit: 0,
            is_short: false,
            start: 0,
            used: 0,
            taken: 0,
            readers: Ends::NONE,
            writers: Ends::NONE,
            file: None,
            is_deaf: false,
        }
    }

    fn is_free(&self) -> bool {
        self.readers.now == 0 && self.writers.now == 0
    }

    /// Bytes in it.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// Where its next byte is in all that goes through it, and where the next one written will be.
    pub fn places(&self) -> (u64, u64) {
        (self.taken, self.taken + self.used)
    }

    /// How much more it may hold, as far as is known.
    pub fn free_bytes(&self) -> u64 {
        let most = match self.is_short {
            true => self.capacity.min(self.limit),
            false => self.limit,
        };
        most.saturating_sub(self.used)
    }

    /// Whether the other end takes nothing any more.
    pub fn is_refused(&self) -> bool {
        self.readers.now == 0 || self.is_deaf
    }

    /// Whether a write would not wait.
    pub fn is_writable(&self) -> bool {
        self.free_bytes() >= self.unit.max(1) || self.is_refused()
    }

    /// Whether the other end writes nothing any more.
    pub fn is_ended(&self) -> bool {
        self.writers.now == 0
    }

    /// Readers there are, and ever were.
    pub fn readers(&self) -> (u16, u32) {
        (self.readers.now, self.readers.ever)
    }

    /// The same of writers.
    pub fn writers(&self) -> (u16, u32) {
        (self.writers.now, self.writers.ever)
    }

    /// Calls `each` with the up to two parts that `count` bytes from the place `from` on consist of.
    fn parts(&self, from: u64, count: u64, mut each: impl FnMut(&mut [u8])) -> Result<(), Errno> {
        if count == 0 {
            return Ok(());
        }
        let from = from % self.capacity;
        let first = count.min(self.capacity - from);
        let part =
            |at: u64, bytes: u64| user::slice_mut(self.memory + at, bytes).map_err(|_| Errno::EIO);
        each(part(from, first)?);
        each(part(0, count - first)?);
        Ok(())
    }

    /// Copies what is behind the next `skip` bytes, without taking it.
    pub fn look(&self, skip: u64, to: &mut [u8]) -> Result<u64, Errno> {
        let count = self.used.saturating_sub(skip).min(to.len() as u64);
        let mut done = 0;
        self.parts(self.start + skip, count, |part| {
            to[done..done + part.len()].copy_from_slice(part);
            done += part.len();
        })?;
        Ok(count)
    }

    fn skip(&mut self, count: u64) {
        self.is_short = false;
        self.used -= count;
        self.taken += count;
        self.start = match self.used {
            0 => 0,
            _ => (self.start + count) % self.capacity,
        };
    }

    /// Makes room for `wanted` bytes more, or for as many as there can be; gives for how many there is.
    pub fn reserve(&mut self, wanted: u64) -> Result<u64, Errno> {
        self.is_short = false;
        while self.capacity - self.used < wanted && self.capacity < self.limit && !self.is_short {
            self.is_short = !self.grow();
        }
        if self.capacity == 0 && wanted > 0 {
            return Err(Errno::ENOMEM);
        }
        Ok(self.capacity.min(self.limit).saturating_sub(self.used))
    }

    /// Puts as much of it at the end as there is room for.
    pub fn put(&mut self, from: &[u8]) -> Result<u64, Errno> {
        let count = self.reserve(from.len() as u64)?.min(from.len() as u64);
        let mut done = 0;
        self.parts(self.start + self.used, count, |part| {
            part.copy_from_slice(&from[done..done + part.len()]);
            done += part.len();
        })?;
        self.used += count;
        Ok(count)
    }

    /// Makes room for twice as much, if there is memory.
    fn grow(&mut self) -> bool {
        let bytes = (self.capacity * 2).clamp(PAGE_BYTES, self.limit);
        let Ok(memory) = state::memory().take(bytes, &mut guest()) else {
            return false;
        };
        let moved = match user::slice_mut(memory, self.used) {
            Ok(there) => self.look(0, there),
            Err(_) => Err(Errno::EIO),
        };
        self.give_back();
        (self.memory, self.capacity, self.start) = (memory, bytes, 0);
        // What cannot be read any more is gone.
        self.used = moved.unwrap_or(0);
        true
    }

    fn give_back(&mut self) {
        if self.capacity > 0 {
            state::memory().give(self.memory, self.capacity);
        }
        (self.memory, self.capacity) = (0, 0);
    }
}

impl Default for Queue {
    fn default() -> Self {
        Queue::new()
    }
}

/// The queue with this number.
pub fn queue(number: u8) -> Option<&'static mut Queue> {
    state::queues().get_mut(usize::from(number))
}

/// A new queue that holds at most `limit` bytes, with one end on either side.
pub fn new_queue(limit: u64) -> Result<u8, Errno> {
    let number = new_endless(limit)?;
    let queue = &mut state::queues()[usize::from(number)];
    queue.readers.add();
    queue.writers.add();
    Ok(number)
}

/// The same without an end, which it has to have before another is made.
fn new_endless(limit: u64) -> Result<u8, Errno> {
    let queues = state::queues();
    let free = queues
        .iter()
        .position(Queue::is_free)
        .ok_or(Errno::EMFILE)?;
    queues[free] = Queue {
        limit,
        ..Queue::new()
    };
    Ok(free as u8)
}

/// The queue of a FIFO, while somebody has an end of it.
pub fn of_fifo(file: u16) -> Option<u8> {
    let mut queues = state::queues().iter();
    let is_it = |queue: &Queue| queue.file == Some(file);
    queues.position(is_it).map(|number| number as u8)
}

/// The file by which an end with these two queues, either of which may be `NONE`, is found: if it is a FIFO's.
pub fn file_of(from: u8, to: u8) -> Option<u16> {
    queue(from.min(to)).and_then(|queue| queue.file)
}

/// One more end of a FIFO, which reads, writes, or does both; gives its queue.
pub fn join(file: u16, reads: bool, writes: bool) -> Result<u8, Errno> {
    let number = match of_fifo(file) {
        Some(number) => number,
        None => new_endless(PIPE_BYTES)?,
    };
    let queue = &mut state::queues()[usize::from(number)];
    (queue.unit, queue.file) = (PIPE_UNIT_BYTES, Some(file));
    if reads {
        queue.readers.add();
    }
    if writes {
        queue.writers.add();
    }
    edge(|from, to| from == number || to == number);
    Ok(number)
}

/// `pipe` and `pipe2`
pub fn pipe(to: u64, flags: u64) -> SysResult {
    // O_CLOEXEC, O_NONBLOCK; O_DIRECT's packets are not there.
    const KNOWN: u64 = 0o2_004_000;
    if flags as u32 as u64 & !KNOWN != 0 {
        return Err(Errno::EINVAL);
    }
    user::slice_mut(to, 8)?;
    let queue = new_queue(PIPE_BYTES)?;
    state::queues()[usize::from(queue)].unit = PIPE_UNIT_BYTES;
    let (from, into) = (
        Object::Stream {
            from: queue,
            to: NONE,
        },
        Object::Stream {
            from: NONE,
            to: queue,
        },
    );
    let opened = state::files().open(from, flags);
    let first = opened.inspect_err(|_| close(queue, queue))?;
    let opened = state::files().open(into, flags | O_WRONLY);
    let second = opened.inspect_err(|_| {
        close(NONE, queue);
        // It was opened just now.
        let _ = descriptors::close(first);
    })?;
    user::write(to, [first as u32, second as u32])?;
    Ok(0)
}

/// F_GETPIPE_SZ: how much a pipe holds.
pub fn size(number: u8) -> SysResult {
    queue(number).map(|queue| queue.limit).ok_or(Errno::EBADF)
}

/// F_SETPIPE_SZ: in whole pages, a power of two of them.
pub fn set_size(number: u8, wanted: u64) -> SysResult {
    const MOST: u64 = 1 << 20;
    let at = queue(number).ok_or(Errno::EBADF)?;
    let size = u64::from(wanted as u32).max(PAGE_BYTES).next_power_of_two();
    match size {
        size if size > 1 << 31 => Err(Errno::EINVAL),
        size if size > MOST => Err(Errno::EPERM),
        size if size < at.used => Err(Errno::EBUSY),
        size => {
            at.limit = size;
            // Who waits for room may have some.
            edge(|_, to| to == number);
            Ok(size)
        }
    }
}

/// Reads from a queue; EAGAIN where nothing is there yet, which is looked at before the place.
pub fn read(from: u8, to: Place<'_>) -> SysResult {
    let count = peek(from, 0, to)?;
    if count > 0 {
        taken(from, count);
    }
    Ok(count)
}

/// Looks at what is behind the next `skip` bytes of a queue; EAGAIN where nothing is there yet.
pub fn peek(from: u8, skip: u64, to: Place<'_>) -> SysResult {
    let at = queue(from).ok_or(Errno::EBADF)?;
    let there = at.used.saturating_sub(skip);
    match there == 0 || to.is_empty() {
        true => end_of(at, to.is_empty() || skip > 0),
        false => at.look(skip, to.limit(there).writable()?),
    }
}

/// Throws up to `most` bytes away; EAGAIN where nothing is there yet.
pub fn discard(from: u8, most: u64) -> SysResult {
    let at = queue(from).ok_or(Errno::EBADF)?;
    let count = at.used.min(most);
    if count == 0 {
        return end_of(at, most == 0);
    }
    taken(from, count);
    Ok(count)
}

fn end_of(queue: &Queue, wants_nothing: bool) -> SysResult {
    match queue.is_ended() || queue.is_deaf || wants_nothing {
        true => Ok(0),
        false => Err(Errno::EAGAIN),
    }
}

/// So many bytes were read, and are gone; fewer, if others have read some of them since they were looked at.
pub fn taken(from: u8, count: u64) {
    if let Some(at) = queue(from) {
        let was_full = !at.is_writable();
        at.skip(count.min(at.used));
        match was_full {
            true => edge(|_, to| to == from),
            // Who waits with more than fits still has to try again.
            false => state::threads().changed(),
        }
    }
}

/// Writes to the queue of a pipe, whose end the caller holds: all of it, unless `nonblocking`.
pub fn write(to: u8, from: Source<'_>, nonblocking: bool) -> SysResult {
    let total = from.total()?;
    let mut done = 0;
    let result = threads::blocking(nonblocking, || {
        let queue = queue(to).ok_or(Errno::EPIPE)?;
        let is_whole = total <= queue.unit && !queue.is_refused();
        if is_whole && queue.reserve(total)? < total {
            return Err(Errno::EAGAIN);
        }
        while done < total {
            match from.for_each_from(done, |bytes| put(to, bytes))? {
                // Another thread has made it shorter.
                0 => break,
                put => done += put,
            }
        }
        Ok(done)
    });
    match result {
        Err(_) if done > 0 => Ok(done),
        result => result,
    }
}

/// Puts into a queue what it has room for: EAGAIN for none, EPIPE if nobody reads it.
pub fn put(to: u8, bytes: &[u8]) -> SysResult {
    let queue = queue(to).ok_or(Errno::EPIPE)?;
    if queue.is_refused() {
        return Err(Errno::EPIPE);
    }
    match queue.put(bytes)? {
        0 if !bytes.is_empty() => Err(Errno::EAGAIN),
        count => {
            has_come(to);
            Ok(count)
        }
    }
}

/// There is something new in a queue.
pub fn has_come(to: u8) {
    edge(|from, _| from == to);
}

/// Marks an edge on every end that `which` holds for, by the queues that it reads from and writes to.
fn edge(which: impl Fn(u8, u8) -> bool) {
    state::files().edge(|object| match object {
        Object::Stream { from, to } => which(from, to),
        Object::Socket(number) => match state::sockets().get(number).state {
            State::Stream { from, to } => which(from, to),
            State::Datagrams(mailbox) => which(mailbox.inbox, NONE),
            _ => false,
        },
        _ => false,
    });
}

/// The reader of a queue takes nothing any more; it is there still, for what has come.
pub fn refuse(from: u8) {
    if let Some(queue) = queue(from) {
        queue.is_deaf = true;
    }
    edge(|reads, writes| reads == from || writes == from);
}

/// One that read from `from` and wrote to `to` does so no more; either may be `NONE`.
pub fn close(from: u8, to: u8) {
    if let Some(queue) = queue(from) {
        queue.readers.remove();
        if queue.readers.now == 0 {
            state::rights().lose(from);
        }
    }
    if let Some(queue) = queue(to) {
        queue.writers.remove();
    }
    for number in [from, to] {
        if let Some(queue) = queue(number)
            && queue.is_free()
        {
            queue.give_back();
            *queue = Queue::new();
        }
    }
    edge(|reads, writes| (reads != NONE && reads == to) || (writes != NONE && writes == from));
}
