//! /tmp: files in the program's own memory, each known by its whole path.
//!
//! A file that is removed while it is open lives on, without a path, until it is closed. Contents lie in
//! one piece of program memory each, which doubles when it is full; the memory limit is the limit of /tmp.

use holm_hostcall::PAGE_BYTES;

use super::paths::{MAX_PATH_BYTES, below};
use crate::errno::Errno;
use crate::memory::guest;
use crate::{state, time, user};

/// Most files, directories and links.
const MAX_NODES: usize = 512;
/// Where writable files are.
pub const ROOT: &[u8] = b"/tmp";

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
}

/// A file, directory or link. Path and content are pieces of program memory.
#[derive(Clone, Copy)]
pub struct Node {
    /// What it is.
    pub kind: Kind,
    used: bool,
    /// Permission bits; nothing heeds them.
    pub mode: u32,
    /// Bytes of the content.
    pub size: u64,
    /// Nanoseconds since 1970 UTC.
    pub modified_ns: u64,
    /// Descriptors' objects that stand for it.
    open: u16,
    path: Piece,
    path_bytes: u16,
    data: Piece,
}

/// A piece of program memory: whole pages, or nothing.
#[derive(Clone, Copy)]
struct Piece {
    start: u64,
    bytes: u64,
}

const NOTHING: Piece = Piece { start: 0, bytes: 0 };

impl Piece {
    fn take(bytes: u64) -> Result<Piece, Errno> {
        let bytes = bytes.next_multiple_of(PAGE_BYTES);
        match state::memory().map_anonymous(bytes, &mut guest()) {
            Ok(start) => Ok(Piece { start, bytes }),
            Err(_) => Err(Errno::ENOSPC),
        }
    }

    fn give(&mut self) {
        if self.bytes > 0 {
            // It was mapped whole, so it can be unmapped whole.
            let _ = state::memory().unmap(self.start, self.bytes, &mut guest());
        }
        *self = NOTHING;
    }

    fn bytes(&self, count: u64) -> &'static mut [u8] {
        // A program may have unmapped what it does not know of; then its files are gone, and no more.
        user::slice_mut(self.start, count.min(self.bytes)).unwrap_or(&mut [])
    }
}

const UNUSED: Node = Node {
    kind: Kind::File,
    used: false,
    mode: 0,
    size: 0,
    modified_ns: 0,
    open: 0,
    path: NOTHING,
    path_bytes: 0,
    data: NOTHING,
};

/// Everything in /tmp.
pub struct Temporary {
    nodes: [Node; MAX_NODES],
    /// No node at this place or behind it.
    end: usize,
}

impl Node {
    /// Its path; empty if it has been removed.
    pub fn path(&self) -> &'static [u8] {
        self.path.bytes(u64::from(self.path_bytes))
    }

    fn set_path(&mut self, path: &[u8]) -> Result<(), Errno> {
        if self.path.bytes == 0 {
            self.path = Piece::take(MAX_PATH_BYTES as u64)?;
        }
        let room = self.path.bytes(MAX_PATH_BYTES as u64);
        room.get_mut(..path.len())
            .ok_or(Errno::ENAMETOOLONG)?
            .copy_from_slice(path);
        self.path_bytes = path.len() as u16;
        Ok(())
    }

    /// The content.
    pub fn content(&self) -> &'static [u8] {
        self.data.bytes(self.size)
    }

    /// Whether it is there only for those who have it open.
    pub fn is_removed(&self) -> bool {
        self.path_bytes == 0
    }

    /// Reads from `at` on.
    pub fn read(&self, at: u64, to: &mut [u8]) -> u64 {
        let content = self.content();
        let from = content
            .get(at.min(content.len() as u64) as usize..)
            .unwrap_or_default();
        let bytes = from.len().min(to.len());
        to[..bytes].copy_from_slice(&from[..bytes]);
        bytes as u64
    }

    /// Writes at `at`; what lies between the end and there is zero.
    pub fn write(&mut self, at: u64, from: &[u8]) -> Result<u64, Errno> {
        if from.is_empty() {
            return Ok(0);
        }
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
        if size > self.data.bytes {
            let wanted = size.max((self.data.bytes * 2).min(state::memory().free_bytes() / 2));
            let mut bigger = Piece::take(wanted)?;
            let from = self.content();
            match bigger.bytes(self.size).len() == from.len() {
                true => bigger.bytes(self.size).copy_from_slice(from),
                false => {
                    bigger.give();
                    return Err(Errno::EIO);
                }
            }
            self.data.give();
            self.data = bigger;
        } else if size < self.size {
            // What is grown into again is zero.
            if let Some(gone) = self.data.bytes(self.size).get_mut(size as usize..) {
                gone.fill(0);
            }
        }
        if size == 0 {
            self.data.give();
        }
        self.size = size;
        self.modified_ns = time::realtime_ns();
        Ok(())
    }

    fn free(&mut self) {
        self.data.give();
        self.path.give();
        *self = UNUSED;
    }
}

impl Temporary {
    /// Empty.
    pub const fn new() -> Self {
        Temporary {
            nodes: [UNUSED; MAX_NODES],
            end: 0,
        }
    }

    /// The node of an open file.
    pub fn node(&mut self, number: u16) -> &mut Node {
        &mut self.nodes[usize::from(number) % MAX_NODES]
    }

    /// All nodes that have a path, with their numbers.
    pub fn all(&self) -> impl Iterator<Item = (u16, &Node)> {
        let nodes = self.nodes[..self.end].iter().enumerate();
        nodes
            .filter(|(_, node)| node.used && node.path_bytes > 0)
            .map(|(number, node)| (number as u16, node))
    }

    /// The node at a path.
    pub fn find(&self, path: &[u8]) -> Option<u16> {
        self.all()
            .find(|(_, node)| usize::from(node.path_bytes) == path.len() && node.path() == path)
            .map(|(number, _)| number)
    }

    /// Whether a directory is there: /tmp itself, or one that was made.
    pub fn is_directory(&self, path: &[u8]) -> bool {
        path == ROOT
            || self
                .find(path)
                .is_some_and(|number| self.nodes[usize::from(number)].kind == Kind::Directory)
    }

    /// Makes a node; its directory is there and it is not.
    pub fn make(&mut self, path: &[u8], kind: Kind, mode: u32) -> Result<u16, Errno> {
        let place = self.nodes.iter().position(|node| !node.used);
        let place = place.ok_or(Errno::ENOSPC)?;
        self.nodes[place] = Node {
            kind,
            used: true,
            mode,
            modified_ns: time::realtime_ns(),
            ..UNUSED
        };
        if let Err(error) = self.nodes[place].set_path(path) {
            self.nodes[place].free();
            return Err(error);
        }
        self.end = self.end.max(place + 1);
        Ok(place as u16)
    }

    /// Takes the path away; the content goes with the last descriptor.
    pub fn remove(&mut self, number: u16) {
        let node = self.node(number);
        node.path.give();
        node.path_bytes = 0;
        if node.open == 0 {
            node.free();
        }
    }

    /// Whether anything lies in a directory.
    pub fn has_children(&self, path: &[u8]) -> bool {
        self.all()
            .any(|(_, node)| below(node.path(), path).is_some())
    }

    /// Gives a node, and all that lies in it, another path.
    pub fn rename(&mut self, from: &[u8], to: &[u8]) -> Result<(), Errno> {
        for place in 0..self.end {
            let node = &mut self.nodes[place];
            if !node.used || node.path_bytes == 0 {
                continue;
            }
            let path = node.path();
            if path == from {
                node.set_path(to)?;
            } else if let Some(rest) = below(path, from) {
                let mut moved = [0; MAX_PATH_BYTES];
                let bytes = to.len() + 1 + rest.len();
                let room = moved.get_mut(..bytes).ok_or(Errno::ENAMETOOLONG)?;
                room[..to.len()].copy_from_slice(to);
                room[to.len()] = b'/';
                room[to.len() + 1..].copy_from_slice(rest);
                node.set_path(&moved[..bytes])?;
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
        if node.open == 0 && node.path_bytes == 0 {
            node.free();
        }
    }
}

impl Default for Temporary {
    fn default() -> Self {
        Temporary::new()
    }
}
