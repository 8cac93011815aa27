//! File descriptors and the objects that they stand for: the standard streams, files and directories,
//! devices, sockets, and what programs wait with.
//!
//! The table is here; the calls that use it are in the folder, one idea in each file. Paths lead to three
//! places that hold files: /tmp (`temporary`), the artifact (`artifact`) and the entries made here
//! (`builtin`); `lookup` knows them all.

pub mod artifact;
pub mod attributes;
pub mod builtin;
pub mod change;
pub mod copy;
pub mod descriptors;
pub mod directory;
mod fifo;
pub mod held;
pub mod locks;
pub mod lookup;
pub mod map;
pub mod names;
pub mod open;
pub mod paths;
pub mod piece;
pub mod read_write;
mod seals;
pub mod splice;
pub mod status;
pub mod temporary;
pub mod watch;

use crate::errno::{Errno, SysResult};
use crate::{pipes, state};

/// Most open descriptors.
pub const MAX_DESCRIPTORS: usize = 1024;
/// Most open objects; several descriptors may share one.
const MAX_OBJECTS: usize = 512;
/// `O_NONBLOCK`
pub const O_NONBLOCK: u64 = 0o4000;
/// `O_CLOEXEC`
pub const O_CLOEXEC: u64 = 0o2_000_000;
const O_APPEND: u64 = 0o2000;
/// O_CREAT, O_EXCL, O_NOCTTY and O_TRUNC, which are about the opening alone.
const O_OPENING: u64 = 0o1700;
/// The part of the flags that says whether a file is read or written.
const O_ACCESS: u64 = 3;
/// `O_WRONLY`
pub const O_WRONLY: u64 = 1;
/// `O_RDWR`
pub const O_RDWR: u64 = 2;
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
    /// /dev/full
    Full,
    /// /dev/random and /dev/urandom
    Random,
    /// A file of /tmp: its number there.
    File(u16),
    /// A file that the artifact brought: its number there.
    Brought(u32),
    /// A directory: its number among the open ones.
    Directory(u16),
    /// A built-in file: its number among those.
    Made(u8),
    /// What /proc/self/fdinfo tells of a descriptor.
    Info(u16),
    /// The name of a thread: its id.
    Name(u32),
    /// A socket: its number among those.
    Socket(u16),
    /// A timerfd: its number among those.
    Timer(u8),
    /// An epoll instance.
    Epoll(u8),
    /// An end of a pipe or a FIFO: the queue it reads from, or writes to.
    Stream {
        /// Or `pipes::NONE`.
        from: u8,
        /// Or `pipes::NONE`.
        to: u8,
    },
    /// An inotify instance: its number among those.
    Watcher(u8),
    /// A signalfd: the signals that it is for.
    Signals(u64),
    /// An eventfd: its counter, and whether it is a semaphore.
    Event(u64, bool),
}

/// An object with what is common to all.
#[derive(Clone, Copy, Debug)]
pub struct Open {
    /// What it is.
    pub object: Object,
    /// Descriptors that stand for it, messages that one travels in, or is about to, and calls that are at work
    /// with it.
    pub references: u32,
    /// O_NONBLOCK.
    pub nonblocking: bool,
    /// Counts the moments at which it became ready for something new (edges, for epoll).
    pub edges: u32,
    /// The flags that it was opened with, but for those that are kept elsewhere or mean the opening alone.
    flags: u32,
    /// Where the next read or write of a file begins.
    pub position: u64,
}

impl Object {
    /// The file of /tmp that it is an opening of, if it is.
    pub fn node(self) -> Option<u16> {
        match self {
            Object::File(number) => Some(number),
            Object::Stream { from, to } => pipes::file_of(from, to),
            _ => None,
        }
    }
}

impl Open {
    /// Whether it is nothing but the name of a file (O_PATH).
    pub fn is_name(&self) -> bool {
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
    /// Which of them are FD_CLOEXEC, one bit each. Nothing is ever executed, but programs ask.
    closed_on_exec: [u64; MAX_DESCRIPTORS / 64],
    objects: [Open; MAX_OBJECTS],
}

impl Files {
    /// Before the start.
    pub const fn new() -> Self {
        Files {
            descriptors: [UNUSED; MAX_DESCRIPTORS],
            closed_on_exec: [0; MAX_DESCRIPTORS / 64],
            objects: [CLOSED; MAX_OBJECTS],
        }
    }

    /// Opens the standard streams; stdin and stdout are the socket `connection` if there is one already.
    pub fn start(&mut self, connection: Option<u16>) {
        // The tables are empty: there is room for three.
        let _ = match connection {
            Some(number) => self
                .open(Object::Socket(number), O_RDWR)
                .and_then(|stdin| self.duplicate(stdin, 0, false)),
            None => self
                .open(Object::Stdin, 0)
                .and_then(|_| self.open(Object::Log, O_WRONLY)),
        };
        let _ = self.open(Object::Log, O_WRONLY);
    }

    /// Marks an edge on what `descriptor` stands for, if it stands for something.
    pub fn edge_of(&mut self, descriptor: u64) {
        if let Ok(index) = self.index(descriptor) {
            let object = self.object(index).object;
            self.edge(|other| other == object);
        }
    }

    /// A new descriptor for a new object, with the flags of `open`.
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
            flags: (flags & !(O_OPENING | O_NONBLOCK | O_CLOEXEC)) as u32,
            position: 0,
        };
        self.descriptors[descriptor] = at as u16;
        self.set_closed_on_exec(descriptor, flags & O_CLOEXEC != 0);
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

    /// The flags of a descriptor that can be asked for, O_CLOEXEC among them.
    pub fn shown_flags(&self, descriptor: u64) -> u64 {
        let Ok(open) = self.get(descriptor) else {
            return 0;
        };
        let when = |holds: bool, flag: u64| if holds { flag } else { 0 };
        u64::from(open.flags)
            | when(open.nonblocking, O_NONBLOCK)
            | when(
                self.is_closed_on_exec(descriptor as u32 as usize),
                O_CLOEXEC,
            )
    }

    /// The open descriptors.
    pub fn numbers(&self) -> impl Iterator<Item = u64> {
        let open = |(_, index): &(u64, &u16)| **index != UNUSED;
        (0..)
            .zip(&self.descriptors)
            .filter(open)
            .map(|(number, _)| number)
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self, descriptor: u64) -> Result<&mut Open, Errno> {
        let index = self.index(descriptor)?;
        Ok(self.object_mut(index))
    }

    /// The object at `index`.
    pub fn object(&self, index: u16) -> Open {
        self.objects[usize::from(index)]
    }

    /// The same, to be changed.
    fn object_mut(&mut self, index: u16) -> &mut Open {
        &mut self.objects[usize::from(index)]
    }

    /// Marks an edge on every object that `which` holds for.
    pub fn edge(&mut self, which: impl Fn(Object) -> bool) {
        for open in self.objects.iter_mut().filter(|open| which(open.object)) {
            open.edges = open.edges.wrapping_add(1);
        }
        state::threads().changed();
    }

    /// `dup` and F_DUPFD: the lowest free descriptor from `from` on.
    fn duplicate(&mut self, descriptor: u64, from: u64, closed_on_exec: bool) -> SysResult {
        let index = self.index(descriptor)?;
        let new = self.lowest_free(usize::try_from(from).map_err(|_| Errno::EINVAL)?)?;
        self.place(index, new, closed_on_exec)
    }

    fn place(&mut self, index: u16, new: usize, closed_on_exec: bool) -> SysResult {
        self.descriptors[new] = index;
        self.set_closed_on_exec(new, closed_on_exec);
        self.hold(index);
        Ok(new as u64)
    }

    /// A new descriptor for an object that there is.
    pub fn install(&mut self, index: u16, closed_on_exec: bool) -> SysResult {
        let new = self.lowest_free(0)?;
        self.place(index, new, closed_on_exec)
    }

    /// FD_CLOEXEC of an open descriptor.
    fn is_closed_on_exec(&self, descriptor: usize) -> bool {
        self.closed_on_exec[descriptor / 64] >> (descriptor % 64) & 1 != 0
    }

    fn set_closed_on_exec(&mut self, descriptor: usize, on: bool) {
        let (word, bit) = (
            &mut self.closed_on_exec[descriptor / 64],
            1 << (descriptor % 64),
        );
        *word = if on { *word | bit } else { *word & !bit };
    }

    /// Frees a descriptor; gives the index of its object, which is still held for it.
    fn free(&mut self, descriptor: u64) -> Result<u16, Errno> {
        let index = self.index(descriptor)?;
        self.descriptors[descriptor as u32 as usize] = UNUSED;
        Ok(index)
    }

    /// Something more stands for an object.
    pub fn hold(&mut self, index: u16) {
        self.objects[usize::from(index)].references += 1;
    }

    /// Something less does; gives the object if that was the last.
    fn let_go(&mut self, index: u16) -> Option<Object> {
        let open = &mut self.objects[usize::from(index)];
        open.references -= 1;
        if open.references > 0 {
            return None;
        }
        Some(core::mem::replace(open, CLOSED).object)
    }

    /// The index of a socket's object, if it has been accepted.
    pub fn index_of_socket(&self, number: u16) -> Option<u16> {
        let is_it = |open: &Open| open.object == Object::Socket(number);
        self.objects.iter().position(is_it).map(|at| at as u16)
    }
}

impl Default for Files {
    fn default() -> Self {
        Files::new()
    }
}
