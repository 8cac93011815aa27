//! /tmp and /dev/shm: files in the program's own memory, each known by its whole paths.
//!
//! Names and files are two tables, as a file may have several names (hard links). One that has lost all of
//! them lives on while it is open or mapped. Contents lie in one piece of program memory each, which doubles
//! when it is full; the memory limit is the limit of /tmp. A shared mapping shows the piece itself, and follows
//! where it goes.

use holm_hostcall::PAGE_BYTES;

use super::paths::{MAX_PATH_BYTES, below};
use super::piece::{KeptPath, Piece};
use super::seals;
use crate::errno::Errno;
use crate::memory::{MAX_FILES, guest};
use crate::{identity, state, time};

/// Most files, directories and links.
const MAX_NODES: usize = MAX_FILES;
/// Most names of them.
const MAX_NAMES: usize = 512;
/// Where writable files are; a file has all its names in one of them.
const ROOTS: [&[u8]; 2] = [b"/tmp", b"/dev/shm"];

/// What a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link; its content is where it leads.
    Link,
    /// The name of a local socket.
    Socket,
    /// A pipe that is found by its name.
    Fifo,
}

/// A file, directory or symbolic link. The content is a piece of program memory.
#[derive(Clone, Copy)]
pub struct Node {
    /// What it is.
    pub kind: Kind,
    used: bool,
    /// Permission bits; nothing heeds them.
    pub mode: u32,
    /// Bytes of the content.
    pub size: u64,
    /// Whose it is.
    pub user: u32,
    /// Of which group.
    pub group: u32,
    /// When it was changed, in nanoseconds since 1970 UTC.
    pub modified_ns: u64,
    /// When it was read, as far as somebody has said so.
    pub accessed_ns: u64,
    /// Names that lead to it.
    names: u16,
    /// What may not be done to it any more.
    pub seals: u8,
    /// Descriptors' objects that stand for it.
    open: u16,
    /// Its number, while a mapping shows its content.
    mapped: Option<u16>,
    data: Piece,
}

const UNUSED: Node = Node {
    kind: Kind::File,
    used: false,
    mode: 0,
    size: 0,
    user: 0,
    group: 0,
    modified_ns: 0,
    accessed_ns: 0,
    names: 0,
    seals: 0,
    open: 0,
    mapped: None,
    data: Piece::NOTHING,
};

/// A path, and the node that it leads to.
#[derive(Clone, Copy)]
struct Name {
    path: KeptPath,
    node: u16,
}

const NO_NAME: Name = Name {
    path: KeptPath::NONE,
    node: 0,
};

/// The one of the two directories that a path is, or lies in.
pub fn root_of(path: &[u8]) -> Option<&'static [u8]> {
    let holds = |root: &&[u8]| path == *root || below(path, root).is_some();
    ROOTS.into_iter().find(holds)
}

/// Whether a path is one of the two directories.
pub fn is_root(path: &[u8]) -> bool {
    ROOTS.contains(&path)
}

/// Everything in /tmp and /dev/shm.
pub struct Temporary {
    nodes: [Node; MAX_NODES],
    names: [Name; MAX_NAMES],
    /// No name at this place or behind it.
    end: usize,
}

impl Node {
    /// The content.
    pub fn content(&self) -> &'static [u8] {
        self.data.bytes(self.size)
    }

    /// Names that lead to it: none, if it is there only for those who have it open.
    pub fn names(&self) -> u32 {
        u32::from(self.names)
    }

    /// Writes at `at`, as much as its seals allow; what lies between the end and there is zero.
    pub fn write(&mut self, at: u64, from: &[u8]) -> Result<u64, Errno> {
        if from.is_empty() {
            return Ok(0);
        }
        let from = seals::writable(self, at, from)?;
        let end = at.checked_add(from.len() as u64).ok_or(Errno::EFBIG)?;
        if end > self.size {
            self.resize(end)?;
        }
        let to = self.data.bytes(end);
        let to = to.get_mut(at as usize..end as usize).ok_or(Errno::EIO)?;
        to.copy_from_slice(from);
        self.modified_ns = time::realtime_ns();
        Ok(from.len() as u64)
    }

    /// Makes the content longer, with zeroes, or shorter.
    pub fn resize(&mut self, size: u64) -> Result<(), Errno> {
        let before = self.size;
        seals::check_size(self, size)?;
        if size > self.data.size() {
            self.move_to_bigger(size)?;
        }
        // What is grown into is zero, also where a mapping has written behind the end.
        let page_end = before.next_multiple_of(PAGE_BYTES);
        let (from, to) = match size < before {
            true => (size, before),
            false => (before, page_end.min(size)),
        };
        if let Some(gone) = self.data.bytes(to).get_mut(from as usize..) {
            gone.fill(0);
        }
        self.size = size;
        self.tell_mappings();
        if size == 0 {
            self.data.give();
        }
        self.modified_ns = time::realtime_ns();
        Ok(())
    }

    fn move_to_bigger(&mut self, size: u64) -> Result<(), Errno> {
        let wanted = size.max((self.data.size() * 2).min(state::memory().free_bytes() / 2));
        let mut bigger = Piece::take(wanted)?;
        let from = self.content();
        match bigger.bytes(self.size).len() == from.len() {
            true => bigger.bytes(self.size).copy_from_slice(from),
            false => {
                bigger.give();
                return Err(Errno::EIO);
            }
        }
        let mut old = core::mem::replace(&mut self.data, bigger);
        self.tell_mappings();
        old.give();
        Ok(())
    }

    /// What shows the content follows it.
    fn tell_mappings(&self) {
        if let Some(number) = self.mapped {
            state::memory().set_file(number, self.data.start(), self.size, &mut guest());
        }
    }
}

impl Temporary {
    /// Empty.
    pub const fn new() -> Self {
        Temporary {
            nodes: [UNUSED; MAX_NODES],
            names: [NO_NAME; MAX_NAMES],
            end: 0,
        }
    }

    /// The node of an open file.
    pub fn node(&mut self, number: u16) -> &mut Node {
        &mut self.nodes[usize::from(number) % MAX_NODES]
    }

    /// All names: the path, and the number and kind of what is there.
    pub fn all(&self) -> impl Iterator<Item = (&'static [u8], u16, Kind)> {
        self.names().map(|name| {
            let kind = self.nodes[usize::from(name.node)].kind;
            (name.path.as_bytes(), name.node, kind)
        })
    }

    fn names(&self) -> impl Iterator<Item = &Name> {
        let names = self.names[..self.end].iter();
        names.filter(|name| !name.path.is_none())
    }

    fn name_at(&self, path: &[u8]) -> Option<usize> {
        self.names[..self.end]
            .iter()
            .position(|name| name.path.len() == path.len() && name.path.as_bytes() == path)
            .filter(|_| !path.is_empty())
    }

    /// A path that leads to a node, if there is one.
    pub fn path_of(&self, number: u16) -> Option<&'static [u8]> {
        let mut names = self.names();
        let found = names.find(|name| name.node == number);
        found.map(|name| name.path.as_bytes())
    }

    /// The node at a path.
    pub fn find(&self, path: &[u8]) -> Option<u16> {
        self.name_at(path).map(|place| self.names[place].node)
    }

    /// Whether a directory is there: one of the two, or one that was made.
    pub fn is_directory(&self, path: &[u8]) -> bool {
        is_root(path)
            || self
                .find(path)
                .is_some_and(|number| self.nodes[usize::from(number)].kind == Kind::Directory)
    }

    /// Makes a node at a path; its directory is there and it is not.
    pub fn make(&mut self, path: &[u8], kind: Kind, mode: u32) -> Result<u16, Errno> {
        let number = self.make_nameless(kind, mode)?;
        self.link(number, path).inspect_err(|_| self.free(number))?;
        Ok(number)
    }

    /// Makes a node that no path leads to. It is gone when it is closed.
    pub fn make_nameless(&mut self, kind: Kind, mode: u32) -> Result<u16, Errno> {
        let place = self.nodes.iter().position(|node| !node.used);
        let place = place.ok_or(Errno::ENOSPC)?;
        self.nodes[place] = Node {
            kind,
            used: true,
            mode,
            seals: seals::SEAL,
            user: identity::user().effective,
            group: identity::group().effective,
            modified_ns: time::realtime_ns(),
            accessed_ns: time::realtime_ns(),
            ..UNUSED
        };
        Ok(place as u16)
    }

    /// Gives a node a name, or one more; nothing is there yet.
    pub fn link(&mut self, number: u16, path: &[u8]) -> Result<(), Errno> {
        let place = self.names.iter().position(|name| name.path.is_none());
        let place = place.ok_or(Errno::ENOSPC)?;
        self.names[place].node = number;
        self.names[place]
            .path
            .set(path)
            .inspect_err(|_| self.names[place].path.give())?;
        self.end = self.end.max(place + 1);
        self.node(number).names += 1;
        Ok(())
    }

    /// Takes a name away; the node goes with its last name and its last descriptor.
    pub fn unlink(&mut self, path: &[u8]) {
        if let Some(place) = self.name_at(path) {
            self.names[place].path.give();
            let number = self.names[place].node;
            self.node(number).names -= 1;
            self.free_if_unused(number);
        }
    }

    /// Whether anything lies in a directory.
    pub fn has_children(&self, path: &[u8]) -> bool {
        self.all().any(|(name, ..)| below(name, path).is_some())
    }

    /// Whether what is at a path, and all that lies in it, can have another path.
    pub fn can_rename(&self, from: &[u8], to: &[u8]) -> Result<(), Errno> {
        let mut rests = self.all().filter_map(|(path, ..)| below(path, from));
        match rests.any(|rest| to.len() + 1 + rest.len() > MAX_PATH_BYTES) {
            true => Err(Errno::ENAMETOOLONG),
            false => Ok(()),
        }
    }

    /// Gives what is at a path, and all that lies in it, another path, which they can have.
    pub fn rename(&mut self, from: &[u8], to: &[u8]) -> Result<(), Errno> {
        for name in self.names[..self.end].iter_mut() {
            let path = name.path.as_bytes();
            if path == from {
                name.path.set(to)?;
            } else if let Some(rest) = below(path, from) {
                let mut moved = [0; MAX_PATH_BYTES];
                let bytes = to.len() + 1 + rest.len();
                let room = moved.get_mut(..bytes).ok_or(Errno::ENAMETOOLONG)?;
                room[..to.len()].copy_from_slice(to);
                room[to.len()] = b'/';
                room[to.len() + 1..].copy_from_slice(rest);
                name.path.set(&moved[..bytes])?;
            }
        }
        Ok(())
    }

    /// An object stands for the node.
    pub fn opened(&mut self, number: u16) {
        self.node(number).open += 1;
    }

    /// One less does.
    pub fn closed(&mut self, number: u16) {
        let node = self.node(number);
        node.open = node.open.saturating_sub(1);
        self.free_if_unused(number);
    }

    /// A mapping is to show the content.
    pub fn map(&mut self, number: u16) {
        let node = self.node(number);
        if node.mapped.is_none() {
            node.mapped = Some(number);
            node.tell_mappings();
        }
    }

    /// Something that a mapping showed is not there any more: a file of which that was the last is let go.
    pub fn unmapped(&mut self) {
        for number in 0..MAX_NODES as u16 {
            if self.node(number).mapped.is_some() && !state::memory().is_file_mapped(number) {
                self.node(number).mapped = None;
                self.free_if_unused(number);
            }
        }
    }

    /// Frees a node that neither a name nor a descriptor nor a mapping leads to.
    pub fn free_if_unused(&mut self, number: u16) {
        let node = self.node(number);
        if node.open == 0 && node.names == 0 && node.mapped.is_none() {
            self.free(number);
        }
    }

    fn free(&mut self, number: u16) {
        let node = self.node(number);
        node.data.give();
        *node = UNUSED;
    }
}

impl Default for Temporary {
    fn default() -> Self {
        Temporary::new()
    }
}
