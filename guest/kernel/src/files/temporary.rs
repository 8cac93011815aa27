//! What the program writes: files in its own memory, each known by its whole paths. They are in /tmp, /dev/shm and `/`,
//! and in directories that are made there.
//!
//! Names and files are two tables, as a file may have several names (hard links). One that has lost all of
//! them lives on while it is open or mapped. All of it lies in program memory, and so the memory limit is the limit
//! of them: the tables, the paths, and each content in one piece, which doubles when it is full. A shared mapping
//! shows the piece itself, and follows where it goes.

use holm_hostcall::PAGE_BYTES;

use super::paths::{MAX_PATH_BYTES, below};
use super::piece::{KeptPath, Piece, Table};
use super::seals;
use crate::errno::Errno;
use crate::memory::{MAX_FILES, guest};
use crate::{identity, state, time};

/// Most files, directories and links, and most names of them.
const MAX_NODES: usize = 1 << 15;
/// The directories that are there from the start.
const ROOTS: [&[u8]; 3] = [b"/", b"/tmp", SHARED_MEMORY];
/// Files in it have no names elsewhere.
pub const SHARED_MEMORY: &[u8] = b"/dev/shm";

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
    /// It was made without a name and may have one.
    pub may_be_named: bool,
    /// Names that lead to it.
    names: u16,
    /// What may not be done to it any more.
    pub seals: u8,
    /// Descriptors' objects that stand for it.
    open: u16,
    /// Its place among those that are mapped, while a mapping shows its content.
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
    may_be_named: false,
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
    /// Of the path: most others differ in it.
    hash: u32,
    node: u16,
}

const NO_NAME: Name = Name {
    path: KeptPath::NONE,
    hash: 0,
    node: 0,
};

/// FNV-1a
fn hash(path: &[u8]) -> u32 {
    let mix = |hash: u32, byte: &u8| (hash ^ u32::from(*byte)).wrapping_mul(16_777_619);
    path.iter().fold(2_166_136_261, mix)
}

/// Whether a path is one of the directories that cannot be removed.
pub fn is_root(path: &[u8]) -> bool {
    ROOTS.contains(&path)
}

/// Everything that was written.
pub struct Temporary {
    nodes: Table<Node>,
    names: Table<Name>,
    /// No unused node before this place, and no unused name before the other.
    free_node: usize,
    free_name: usize,
    /// The nodes of which a mapping shows the content.
    mapped: [Option<u16>; MAX_FILES],
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

    /// Makes a part of the content zero, as far as there is one.
    pub fn clear(&mut self, from: u64, to: u64) -> Result<(), Errno> {
        if self.seals & seals::NO_WRITE != 0 {
            return Err(Errno::EPERM);
        }
        let to = to.min(self.size);
        if let Some(part) = self.data.bytes(to).get_mut(from as usize..) {
            part.fill(0);
        }
        self.modified_ns = time::realtime_ns();
        Ok(())
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
        let before = self.data;
        let spare = before.size().min(state::memory().free_bytes() / 2);
        let wanted = size.max(before.size() + spare);
        // Where the memory before it is free, the old piece and the new one need not be there together.
        if self.data.grow_down(wanted - before.size()) {
            let whole = self.data.bytes(self.data.size());
            let from = (before.start() - self.data.start()) as usize;
            let bytes = self.size as usize;
            whole.copy_within(from..from + bytes, 0);
            whole[from.max(bytes)..from + bytes].fill(0);
            self.tell_mappings();
            return Ok(());
        }
        // Only whole pages can be mapped.
        let mut bigger = match self.mapped {
            Some(_) => Piece::pages(wanted)?,
            None => Piece::take(wanted)?,
        };
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

    /// Whether a mapping shows the content that is writable, or could be made so.
    pub fn is_written_by_mappings(&self) -> bool {
        let is_writable = |place| state::memory().is_file_writable(place);
        self.mapped.is_some_and(is_writable)
    }

    /// What shows the content follows it.
    fn tell_mappings(&self) {
        if let Some(place) = self.mapped {
            state::memory().set_file(place, self.data.start(), self.size, &mut guest());
        }
    }
}

impl Temporary {
    /// Empty.
    pub const fn new() -> Self {
        Temporary {
            nodes: Table::new(),
            names: Table::new(),
            free_node: 0,
            free_name: 0,
            mapped: [None; MAX_FILES],
        }
    }

    /// The node of an open file.
    pub fn node(&mut self, number: u16) -> &mut Node {
        &mut self.nodes.all_mut()[usize::from(number)]
    }

    /// All names: the path, and the number and kind of what is there.
    pub fn all(&self) -> impl Iterator<Item = (&'static [u8], u16, Kind)> {
        self.names().map(|name| {
            let kind = self.nodes.all()[usize::from(name.node)].kind;
            (name.path.as_bytes(), name.node, kind)
        })
    }

    /// The same from a place on, with the place of each: a name keeps it.
    pub fn all_from(&self, place: usize) -> impl Iterator<Item = (usize, &'static [u8], Kind)> {
        let all = self.names.all().iter().enumerate().skip(place);
        all.filter(|(_, name)| !name.path.is_none())
            .map(|(place, name)| {
                let kind = self.nodes.all()[usize::from(name.node)].kind;
                (place, name.path.as_bytes(), kind)
            })
    }

    fn names(&self) -> impl Iterator<Item = &Name> {
        let names = self.names.all().iter();
        names.filter(|name| !name.path.is_none())
    }

    fn name_at(&self, path: &[u8]) -> Option<usize> {
        let hash = hash(path);
        let is_it = |name: &Name| name.hash == hash && name.path.as_bytes() == path;
        let mut names = self.names.all().iter();
        names.position(is_it).filter(|_| !path.is_empty())
    }

    /// A path that leads to a node, if there is one.
    pub fn path_of(&self, number: u16) -> Option<&'static [u8]> {
        let mut names = self.names();
        let found = names.find(|name| name.node == number);
        found.map(|name| name.path.as_bytes())
    }

    /// The node at a path.
    pub fn find(&self, path: &[u8]) -> Option<u16> {
        self.name_at(path).map(|place| self.names.all()[place].node)
    }

    /// Whether a directory is there that can be written to.
    pub fn is_directory(&self, path: &[u8]) -> bool {
        is_root(path)
            || self
                .find(path)
                .is_some_and(|number| self.nodes.all()[usize::from(number)].kind == Kind::Directory)
    }

    /// Makes a node at a path; its directory is there and it is not.
    pub fn make(&mut self, path: &[u8], kind: Kind, mode: u32) -> Result<u16, Errno> {
        let number = self.make_nameless(kind, mode)?;
        self.link(number, path).inspect_err(|_| self.free(number))?;
        Ok(number)
    }

    /// Makes a node that no path leads to. It is gone when it is closed.
    pub fn make_nameless(&mut self, kind: Kind, mode: u32) -> Result<u16, Errno> {
        let later = &self.nodes.all()[self.free_node..];
        let unused = later.iter().position(|node| !node.used);
        let place = match unused {
            Some(place) => self.free_node + place,
            None if self.nodes.all().len() == MAX_NODES => return Err(Errno::ENOSPC),
            None => {
                self.nodes.add(UNUSED)?;
                self.nodes.all().len() - 1
            }
        };
        self.free_node = place + 1;
        self.nodes.all_mut()[place] = Node {
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
        let later = &self.names.all()[self.free_name..];
        let unused = later.iter().position(|name| name.path.is_none());
        let mut kept = KeptPath::NONE;
        kept.set(path)?;
        let name = Name {
            path: kept,
            hash: hash(path),
            node: number,
        };
        match unused {
            Some(place) => {
                self.free_name += place + 1;
                self.names.all_mut()[self.free_name - 1] = name;
            }
            None if self.names.all().len() == MAX_NODES => {
                kept.give();
                return Err(Errno::ENOSPC);
            }
            None => {
                self.names.add(name).inspect_err(|_| kept.give())?;
                self.free_name = self.names.all().len();
            }
        }
        let node = self.node(number);
        node.names += 1;
        node.may_be_named = false;
        Ok(())
    }

    /// Takes a name away; the node goes with its last name and its last descriptor.
    pub fn unlink(&mut self, path: &[u8]) {
        if let Some(place) = self.name_at(path) {
            self.free_name = self.free_name.min(place);
            let name = &mut self.names.all_mut()[place];
            let number = name.node;
            name.path.give();
            *name = NO_NAME;
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
        let names = self.names.all_mut().iter_mut();
        for name in names.filter(|name| !name.path.is_none()) {
            let path = name.path.as_bytes();
            if path == from {
                name.path.set(to)?;
                name.hash = hash(to);
            } else if let Some(rest) = below(path, from) {
                let mut moved = [0; MAX_PATH_BYTES];
                let bytes = to.len() + 1 + rest.len();
                let room = moved.get_mut(..bytes).ok_or(Errno::ENAMETOOLONG)?;
                room[..to.len()].copy_from_slice(to);
                room[to.len()] = b'/';
                room[to.len() + 1..].copy_from_slice(rest);
                name.path.set(&moved[..bytes])?;
                name.hash = hash(&moved[..bytes]);
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

    /// A mapping is to show the content. Gives the node's place among those that are mapped.
    pub fn map(&mut self, number: u16) -> Result<u16, Errno> {
        if let Some(place) = self.node(number).mapped {
            return Ok(place);
        }
        let free = self.mapped.iter().position(Option::is_none);
        let place = free.ok_or(Errno::ENOMEM)?;
        let node = self.node(number);
        if !node.data.is_pages() && node.size > 0 {
            let mut pages = Piece::pages(node.size).map_err(|_| Errno::ENOMEM)?;
            pages.bytes(node.size).copy_from_slice(node.content());
            core::mem::swap(&mut node.data, &mut pages);
            pages.give();
        }
        node.mapped = Some(place as u16);
        node.tell_mappings();
        self.mapped[place] = Some(number);
        Ok(place as u16)
    }

    /// Something that a mapping showed is not there any more: a file of which that was the last is let go.
    pub fn unmapped(&mut self) {
        for place in 0..MAX_FILES {
            if let Some(number) = self.mapped[place]
                && !state::memory().is_file_mapped(place as u16)
            {
                self.mapped[place] = None;
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
        self.free_node = self.free_node.min(usize::from(number));
    }
}

impl Default for Temporary {
    fn default() -> Self {
        Temporary::new()
    }
}
