//! inotify: what happens to files that the program writes is read from a descriptor. Files of the artifact can be
//! watched too, and nothing ever happens to them.
//!
//! A file is watched by its path, as it is known by it everywhere here. Of a file with several names, who watches
//! the first is told.

use super::lookup::{AT_FDCWD, Follow, Found, find, resolve};
use super::paths::{Path, parent};
use super::piece::KeptPath;
use super::temporary::Kind;
use super::{O_CLOEXEC, O_NONBLOCK, Object};
use crate::buffers::Place;
use crate::errno::{Errno, SysResult};
use crate::{pipes, state};

/// Most descriptors for this.
const MAX_WATCHERS: usize = 4;
/// Most that all of them watch.
const MAX_WATCHES: usize = 64;
/// Most bytes of events that one holds.
const EVENTS_BYTES: u64 = 64 << 10;
const HEAD_BYTES: usize = 16;
const MAX_EVENT_BYTES: usize = HEAD_BYTES + 256;

/// It was read.
pub const ACCESS: u32 = 0x1;
/// It was written to.
pub const MODIFY: u32 = 0x2;
/// Its permissions, owner, times or number of names were changed.
pub const ATTRIBUTES: u32 = 0x4;
const CLOSE_WRITE: u32 = 0x8;
const CLOSE_NOWRITE: u32 = 0x10;
/// It was opened.
pub const OPEN: u32 = 0x20;
const MOVED_FROM: u32 = 0x40;
const MOVED_TO: u32 = 0x80;
/// It was made.
pub const CREATE: u32 = 0x100;
/// It was removed.
pub const DELETE: u32 = 0x200;
const DELETE_SELF: u32 = 0x400;
const MOVE_SELF: u32 = 0x800;
const ALL: u32 = 0xfff;
const OVERFLOW: u32 = 0x4000;
const IGNORED: u32 = 0x8000;
/// It is a directory.
pub const DIRECTORY: u32 = 0x4000_0000;
const ONLY_DIRECTORY: u32 = 0x100_0000;
const DONT_FOLLOW: u32 = 0x200_0000;
const MASK_CREATE: u32 = 0x1000_0000;
const MASK_ADD: u32 = 0x2000_0000;
const ONE_SHOT: u32 = 0x8000_0000;

#[derive(Clone, Copy)]
struct Watch {
    /// 0 for none.
    id: i32,
    watcher: u8,
    mask: u32,
    path: KeptPath,
}

#[derive(Clone, Copy)]
struct Watcher {
    used: bool,
    /// The queue of events that were not read.
    events: u8,
    next_id: i32,
    /// Bytes of the last event, which is not told twice in a row.
    last: u64,
}

/// All of it.
pub struct Watches {
    watchers: [Watcher; MAX_WATCHERS],
    watches: [Watch; MAX_WATCHES],
    /// How many there are.
    count: usize,
    cookie: u32,
}

impl Watches {
    /// None.
    pub const fn new() -> Self {
        const UNUSED: Watcher = Watcher {
            used: false,
            events: 0,
            next_id: 0,
            last: 0,
        };
        const NONE: Watch = Watch {
            id: 0,
            watcher: 0,
            mask: 0,
            path: KeptPath::NONE,
        };
        Watches {
            watchers: [UNUSED; MAX_WATCHERS],
            watches: [NONE; MAX_WATCHES],
            count: 0,
            cookie: 0,
        }
    }

    fn remove(&mut self, place: usize) {
        let watch = &mut self.watches[place];
        watch.path.give();
        watch.id = 0;
        self.count -= 1;
    }

    fn place_of(&self, which: impl Fn(&Watch) -> bool) -> Option<usize> {
        self.watches
            .iter()
            .position(|watch| watch.id != 0 && which(watch))
    }
}

impl Default for Watches {
    fn default() -> Self {
        Watches::new()
    }
}

/// `inotify_init` and `inotify_init1`
pub fn open(flags: u64) -> SysResult {
    if flags as u32 as u64 & !(O_NONBLOCK | O_CLOEXEC) != 0 {
        return Err(Errno::EINVAL);
    }
    let watchers = &mut state::watches().watchers;
    let free = watchers.iter().position(|watcher| !watcher.used);
    let free = free.ok_or(Errno::EMFILE)?;
    let events = pipes::new_queue(EVENTS_BYTES)?;
    let opened = state::files().open(Object::Watcher(free as u8), flags);
    if opened.is_err() {
        pipes::close(events, events);
        return opened;
    }
    watchers[free] = Watcher {
        used: true,
        events,
        next_id: 1,
        last: 0,
    };
    opened
}

fn number_of(descriptor: u64) -> Result<u8, Errno> {
    match state::files().get(descriptor)?.object {
        Object::Watcher(number) => Ok(number),
        _ => Err(Errno::EINVAL),
    }
}

/// `inotify_add_watch`
pub fn add(descriptor: u64, path: u64, mask: u64) -> SysResult {
    let mask = mask as u32;
    if mask & ALL == 0 || mask & (MASK_ADD | MASK_CREATE) == MASK_ADD | MASK_CREATE {
        return Err(Errno::EINVAL);
    }
    let watcher = number_of(descriptor)?;
    let path = resolve(AT_FDCWD, path, Follow::unless(mask & DONT_FOLLOW != 0))?;
    let found = find(&path)?;
    if mask & ONLY_DIRECTORY != 0 && !matches!(found, Found::Directory) {
        return Err(Errno::ENOTDIR);
    }
    let watches = state::watches();
    let is_it =
        |watch: &Watch| watch.watcher == watcher && watch.path.as_bytes() == path.as_bytes();
    let kept = mask & (ALL | ONE_SHOT);
    if let Some(place) = watches.place_of(is_it) {
        let watch = &mut watches.watches[place];
        match mask {
            mask if mask & MASK_CREATE != 0 => return Err(Errno::EEXIST),
            mask if mask & MASK_ADD != 0 => watch.mask |= kept,
            _ => watch.mask = kept,
        }
        return Ok(watch.id as u64);
    }
    let free = watches.watches.iter().position(|watch| watch.id == 0);
    let free = free.ok_or(Errno::ENOSPC)?;
    let id = watches.watchers[usize::from(watcher)].next_id;
    // As on Linux no number is used again.
    let next_id = id.checked_add(1).ok_or(Errno::ENOSPC)?;
    let watch = &mut watches.watches[free];
    watch.path.set(path.as_bytes())?;
    (watch.id, watch.watcher, watch.mask) = (id, watcher, kept);
    watches.watchers[usize::from(watcher)].next_id = next_id;
    watches.count += 1;
    Ok(id as u64)
}

/// `inotify_rm_watch`
pub fn remove(descriptor: u64, id: u64) -> SysResult {
    let watcher = number_of(descriptor)?;
    let watches = state::watches();
    let is_it = |watch: &Watch| watch.watcher == watcher && watch.id == id as u32 as i32;
    let place = watches.place_of(is_it).ok_or(Errno::EINVAL)?;
    watches.remove(place);
    put(watcher, id as u32 as i32, IGNORED, 0, &[]);
    Ok(0)
}

/// The last descriptor was closed.
pub fn close(watcher: u8) {
    let watches = state::watches();
    while let Some(place) = watches.place_of(|watch| watch.watcher == watcher) {
        watches.remove(place);
    }
    let at = &mut watches.watchers[usize::from(watcher) % MAX_WATCHERS];
    at.used = false;
    let events = at.events;
    pipes::close(events, events);
}

/// Bytes of events to be read.
pub fn readable_bytes(watcher: u8) -> u64 {
    let events = state::watches().watchers[usize::from(watcher) % MAX_WATCHERS].events;
    pipes::queue(events).map_or(0, |queue| queue.used())
}

/// Takes as many whole events as fit; EAGAIN where there is none.
pub fn read(watcher: u8, to: Place<'_>) -> SysResult {
    let events = state::watches().watchers[usize::from(watcher) % MAX_WATCHERS].events;
    let first = next_bytes(events)?.ok_or(Errno::EAGAIN)?;
    if first as u64 > to.len() {
        return Err(Errno::EINVAL);
    }
    let to = to.writable()?;
    let mut done = 0;
    while let Some(bytes) = next_bytes(events)?
        && let Some(room) = to.get_mut(done..done + bytes)
    {
        done += pipes::read(events, Place::Own(room))? as usize;
    }
    match done {
        0 => Err(Errno::EFAULT),
        done => Ok(done as u64),
    }
}

/// The length of the next event in a queue.
fn next_bytes(events: u8) -> Result<Option<usize>, Errno> {
    let mut head = [0; HEAD_BYTES];
    let queue = pipes::queue(events).ok_or(Errno::EBADF)?;
    let known = queue.look(0, &mut head)?;
    Ok(head_of(known, head)?
        .map(|[.., a, b, c, d]| HEAD_BYTES + u32::from_le_bytes([a, b, c, d]) as usize))
}

fn head_of(known: u64, head: [u8; HEAD_BYTES]) -> Result<Option<[u8; HEAD_BYTES]>, Errno> {
    match known as usize {
        0 => Ok(None),
        HEAD_BYTES => Ok(Some(head)),
        // The program has unmapped what it does not know of.
        _ => Err(Errno::EIO),
    }
}

/// Puts an event into the queue, unless it is the same as the last there.
fn put(watcher: u8, id: i32, mask: u32, cookie: u32, name: &[u8]) {
    let at = &mut state::watches().watchers[usize::from(watcher) % MAX_WATCHERS];
    let Some(queue) = pipes::queue(at.events) else {
        return;
    };
    let mut event = [0; MAX_EVENT_BYTES];
    // A name ends with a zero byte, and takes a multiple of the head's length.
    let room = match name.len() {
        0 => 0,
        bytes => (bytes + 1).next_multiple_of(HEAD_BYTES).min(256),
    };
    for (word, place) in [id as u32, mask, cookie, room as u32]
        .into_iter()
        .zip(event.chunks_exact_mut(4))
    {
        place.copy_from_slice(&word.to_le_bytes());
    }
    let kept = name.len().min(255);
    event[HEAD_BYTES..HEAD_BYTES + kept].copy_from_slice(&name[..kept]);
    let event = &event[..HEAD_BYTES + room];
    let mut last = [0; MAX_EVENT_BYTES];
    let last = &mut last[..(at.last as usize).min(MAX_EVENT_BYTES)];
    let is_same = at.last > 0
        && queue.used() >= at.last
        && queue.look(queue.used() - at.last, last) == Ok(at.last)
        && last == event;
    if is_same {
        return;
    }
    let whole = event.len() as u64;
    // Where one more would not fit, the last one says that some are missing.
    let fits = queue.free_bytes() >= whole + HEAD_BYTES as u64;
    if fits {
        // There is room; without memory for it the event is lost.
        at.last = if queue.put(event) == Ok(whole) {
            whole
        } else {
            0
        };
    } else if mask != OVERFLOW {
        return put(watcher, -1, OVERFLOW, 0, &[]);
    } else {
        at.last = queue.put(event).unwrap_or(0);
    }
    state::files().edge(|object| object == Object::Watcher(watcher));
}

/// Tells who watches a path, or the directory that it is in.
pub fn tell(path: &[u8], mask: u32) {
    tell_move(path, mask, 0);
}

fn tell_move(path: &[u8], mask: u32, cookie: u32) {
    if state::watches().count == 0 {
        return;
    }
    let directory = parent(path);
    for place in 0..MAX_WATCHES {
        let watch = state::watches().watches[place];
        if watch.id == 0 || watch.mask & mask & ALL == 0 {
            continue;
        }
        let watched = watch.path.as_bytes();
        // What is made, moved or removed is so in its directory.
        let is_of_directory = mask & (CREATE | DELETE | MOVED_FROM | MOVED_TO) != 0;
        if watched == directory && path != b"/" && mask & (DELETE_SELF | MOVE_SELF) == 0 {
            let name = path.get(directory.len()..).unwrap_or_default();
            let name = name.strip_prefix(b"/").unwrap_or(name);
            put(watch.watcher, watch.id, mask, cookie, name);
        } else if watched == path && !is_of_directory {
            put(watch.watcher, watch.id, mask, cookie, &[]);
        } else {
            continue;
        }
        if watch.mask & ONE_SHOT != 0 {
            end(place);
        }
    }
}

/// A watch is over.
fn end(place: usize) {
    let watch = state::watches().watches[place];
    state::watches().remove(place);
    put(watch.watcher, watch.id, IGNORED, 0, &[]);
}

/// Tells what happens to a file that is open, by its number.
pub fn tell_node(number: u16, mask: u32) {
    if state::watches().count > 0
        && let Some(path) = state::temporary().path_of(number)
    {
        tell(path, mask);
    }
}

/// Tells that the permissions, owner or times of a file or directory were changed.
pub fn tell_attributes(number: u16) {
    let is_directory = state::temporary().node(number).kind == Kind::Directory;
    let kind = if is_directory { DIRECTORY } else { 0 };
    tell_node(number, ATTRIBUTES | kind);
}

/// Tells who watches the very file alone.
pub fn tell_node_itself(number: u16, mask: u32) {
    if state::watches().count > 0
        && let Some(path) = state::temporary().path_of(number)
    {
        tell_itself(path, mask);
    }
}

/// Tells that a file was closed, which had been open for writing or not.
pub fn tell_closed(number: u16, was_written: bool) {
    tell_node(
        number,
        if was_written {
            CLOSE_WRITE
        } else {
            CLOSE_NOWRITE
        },
    );
}

/// A name of a file was removed; the file is gone with its last.
pub fn tell_removed(path: &[u8], number: u16, is_directory: bool, is_gone: bool) {
    if state::watches().count == 0 {
        return;
    }
    let kind = if is_directory { DIRECTORY } else { 0 };
    match (is_directory, is_gone) {
        (true, _) => {}
        (false, true) => tell_itself(path, ATTRIBUTES),
        // Who watches it by another name.
        (false, false) => tell_node_itself(number, ATTRIBUTES),
    }
    if is_gone {
        tell_itself(path, DELETE_SELF);
        while let Some(place) = state::watches().place_of(|watch| watch.path.as_bytes() == path) {
            end(place);
        }
    }
    tell(path, DELETE | kind);
}

/// Tells who watches the very path alone.
fn tell_itself(path: &[u8], mask: u32) {
    for place in 0..MAX_WATCHES {
        let watch = state::watches().watches[place];
        if watch.id != 0 && watch.mask & mask != 0 && watch.path.as_bytes() == path {
            put(watch.watcher, watch.id, mask, 0, &[]);
        }
    }
}

/// Something has another name; who watches it watches it there.
pub fn tell_renamed(from: &Path, to: &Path, is_directory: bool) {
    if state::watches().count == 0 {
        return;
    }
    let kind = if is_directory { DIRECTORY } else { 0 };
    let watches = state::watches();
    watches.cookie = watches.cookie.wrapping_add(1).max(1);
    let cookie = watches.cookie;
    tell_move(from.as_bytes(), MOVED_FROM | kind, cookie);
    tell_move(to.as_bytes(), MOVED_TO | kind, cookie);
    tell_itself(from.as_bytes(), MOVE_SELF);
    for watch in &mut state::watches().watches {
        if watch.id != 0
            && let Some(new) = Path::of_directory(watch.path.as_bytes()).moved(from, Some(to))
        {
            // There is room: it has a path already.
            let _ = watch.path.set(new.as_bytes());
        }
    }
}
