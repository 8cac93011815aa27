//! Locks of files: `flock`, and the ranges of open file descriptions (F_OFD_SETLK). Each belongs to one opening of a
//! file, so two openings of the one process may meet. The process's own locks (F_SETLK) meet none but those of
//! another process, and there is no other: they are granted, and nothing is kept of them.

use super::held::Held;
use super::{O_ACCESS, O_RDWR, O_WRONLY, Object};
use crate::errno::{Errno, SysResult};
use crate::{state, threads, user};

/// Most locks; a range that lies in another takes three places.
const MAX_LOCKS: usize = 64;
/// The end of a range that goes on for ever.
const END: u64 = i64::MAX as u64;

/// One lock that is held.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Lock {
    /// The file.
    file: Object,
    /// The opening that holds it: an index of the table of objects.
    owner: u16,
    /// By `flock`, which knows nothing of the ranges, nor they of it.
    is_whole: bool,
    is_exclusive: bool,
    /// The first and the last byte.
    first: u64,
    last: u64,
}

impl Lock {
    fn is_beside(&self, other: &Lock) -> bool {
        (self.file, self.owner, self.is_whole) == (other.file, other.owner, other.is_whole)
    }

    fn overlaps(&self, other: &Lock) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// Whether one has to wait for the other.
    fn meets(&self, other: &Lock) -> bool {
        (self.file, self.is_whole) == (other.file, other.is_whole)
            && self.owner != other.owner
            && (self.is_exclusive || other.is_exclusive)
            && self.overlaps(other)
    }
}

/// The locks that are held.
pub struct Locks {
    all: [Option<Lock>; MAX_LOCKS],
    /// How many there are: mostly none, and nothing is looked for.
    count: usize,
}

impl Locks {
    /// None.
    pub const fn new() -> Self {
        Locks {
            all: [None; MAX_LOCKS],
            count: 0,
        }
    }

    fn find(&self, which: impl Fn(&Lock) -> bool) -> Option<Lock> {
        self.all.iter().flatten().copied().find(which)
    }

    fn add(&mut self, lock: Lock) -> Result<(), Errno> {
        let free = self.all.iter_mut().find(|place| place.is_none());
        *free.ok_or(Errno::ENOLCK)? = Some(lock);
        self.count += 1;
        Ok(())
    }

    /// Takes away what `which` holds for; whether there was any.
    fn remove(&mut self, which: impl Fn(&Lock) -> bool) -> bool {
        let before = self.count;
        for place in &mut self.all {
            if place.as_ref().is_some_and(&which) {
                *place = None;
                self.count -= 1;
            }
        }
        self.count < before
    }

    /// Takes a range out of the owner's own locks, and joins it with those that it touches if it is `kept`.
    fn replace(&mut self, mut new: Lock, kept: bool) -> Result<(), Errno> {
        // Of each lock that the range overlaps, what is left before it and behind it.
        let (mut more, mut fewer) = (usize::from(kept), 0);
        for old in self.all.iter().flatten() {
            if old.is_beside(&new) && old.overlaps(&new) {
                fewer += 1;
                more += usize::from(old.first < new.first) + usize::from(old.last > new.last);
            }
        }
        if self.count + more > MAX_LOCKS + fewer {
            return Err(Errno::ENOLCK);
        }
        for at in 0..MAX_LOCKS {
            let Some(old) = self.all[at].filter(|old| old.is_beside(&new)) else {
                continue;
            };
            let is_same = kept && old.is_exclusive == new.is_exclusive;
            let touches =
                old.first <= new.last.saturating_add(1) && new.first <= old.last.saturating_add(1);
            if !(old.overlaps(&new) || is_same && touches) {
                continue;
            }
            self.all[at] = None;
            self.count -= 1;
            if is_same {
                (new.first, new.last) = (new.first.min(old.first), new.last.max(old.last));
                continue;
            }
            if old.first < new.first {
                let last = new.first - 1;
                self.add(Lock { last, ..old })?;
            }
            if old.last > new.last {
                let first = new.last + 1;
                self.add(Lock { first, ..old })?;
            }
        }
        if kept { self.add(new) } else { Ok(()) }
    }
}

impl Default for Locks {
    fn default() -> Self {
        Locks::new()
    }
}

/// An opening is gone, and its locks with it.
pub fn forget(owner: u16) {
    let locks = state::locks();
    if locks.count > 0 && locks.remove(|lock| lock.owner == owner) {
        state::threads().changed();
    }
}

/// Only of what has bytes of its own is there anything to be kept.
fn is_lockable(object: Object) -> bool {
    matches!(object, Object::File(_) | Object::Brought(_))
}

/// `flock`
pub fn lock_whole(descriptor: u64, operation: u64) -> SysResult {
    const WITHOUT_WAITING: u64 = 4;
    const SHARED: u64 = 1;
    const EXCLUSIVE: u64 = 2;
    const UNLOCK: u64 = 8;
    let nonblocking = operation & WITHOUT_WAITING != 0;
    let operation = operation as u32 as u64 & !WITHOUT_WAITING;
    if !matches!(operation, SHARED | EXCLUSIVE | UNLOCK) {
        return Err(Errno::EINVAL);
    }
    let held = Held::of(descriptor)?;
    let open = held.open();
    if open.is_name() || (open.access() == O_ACCESS && operation != UNLOCK) {
        return Err(Errno::EBADF);
    }
    if !is_lockable(open.object) {
        return Ok(0);
    }
    let lock = Lock {
        file: open.object,
        owner: held.index(),
        is_whole: true,
        is_exclusive: operation == EXCLUSIVE,
        first: 0,
        last: END,
    };
    let own = state::locks().find(|other| other.is_beside(&lock));
    if own == Some(lock) && operation != UNLOCK {
        return Ok(0);
    }
    // As on Linux the old one is gone, whether there is a new one or not.
    if state::locks().remove(|other| other.is_beside(&lock)) {
        state::threads().changed();
    }
    if operation == UNLOCK {
        return Ok(0);
    }
    threads::blocking(nonblocking, || {
        match state::locks().find(|other| other.meets(&lock)) {
            Some(_) => Err(Errno::EAGAIN),
            None => state::locks().add(lock).map(|()| 0),
        }
    })
}

/// What is done by `fcntl` with a range.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// It is asked who would be in the way.
    Get,
    /// It is locked or unlocked.
    Set,
    /// The same, and waited for.
    SetWaiting,
}

/// A `struct flock`.
struct Range {
    kind: i16,
    first: u64,
    last: u64,
    process: i32,
}

const F_RDLCK: i16 = 0;
const F_WRLCK: i16 = 1;
const F_UNLCK: i16 = 2;

impl Range {
    fn read(at: u64, held: &Held) -> Result<Range, Errno> {
        let [kinds, start, bytes, process] = user::read::<[u64; 4]>(at)?;
        let [kind, whence] = [kinds as i16, (kinds >> 16) as i16];
        let base = match whence {
            0 => 0,
            1 => held.open().position,
            2 => super::status::of_object(held.open().object).size,
            _ => return Err(Errno::EINVAL),
        };
        let start = (base as i64)
            .checked_add(start as i64)
            .ok_or(Errno::EOVERFLOW)?;
        let (first, last) = match bytes as i64 {
            0 => (start, i64::MAX),
            bytes @ 1.. => (start, start.checked_add(bytes - 1).ok_or(Errno::EOVERFLOW)?),
            bytes => (start.checked_add(bytes).ok_or(Errno::EINVAL)?, start - 1),
        };
        let first = u64::try_from(first).map_err(|_| Errno::EINVAL)?;
        if !matches!(kind, F_RDLCK | F_WRLCK | F_UNLCK) {
            return Err(Errno::EINVAL);
        }
        Ok(Range {
            kind,
            first,
            last: last as u64,
            process: process as i32,
        })
    }
}

/// `fcntl` with a `struct flock`, of the process or (`is_own`) of the opening.
pub fn lock_range(descriptor: u64, operation: Operation, is_own: bool, at: u64) -> SysResult {
    let held = Held::of(descriptor)?;
    let open = held.open();
    let range = Range::read(at, &held)?;
    let may = match range.kind {
        F_RDLCK => open.access() != O_WRONLY,
        F_WRLCK => matches!(open.access(), O_WRONLY | O_RDWR),
        _ => true,
    };
    if !may && operation != Operation::Get {
        return Err(Errno::EBADF);
    }
    if is_own && range.process != 0 || operation == Operation::Get && range.kind == F_UNLCK {
        return Err(Errno::EINVAL);
    }
    let lock = Lock {
        file: open.object,
        // Nobody's, for the process: it meets those of all openings.
        owner: if is_own { held.index() } else { u16::MAX },
        is_whole: false,
        is_exclusive: range.kind == F_WRLCK,
        first: range.first,
        last: range.last,
    };
    let nonblocking = operation != Operation::SetWaiting;
    let in_the_way = || match range.kind {
        F_UNLCK => None,
        _ => state::locks().find(|other| other.meets(&lock)),
    };
    if operation == Operation::Get {
        return tell(at, in_the_way());
    }
    threads::blocking(nonblocking, || match in_the_way() {
        Some(_) => Err(Errno::EAGAIN),
        None if is_own && is_lockable(open.object) => {
            let done = state::locks().replace(lock, range.kind != F_UNLCK);
            state::threads().changed();
            done.map(|()| 0)
        }
        None => Ok(0),
    })
}

/// Says which lock is in the way, or that none is.
fn tell(at: u64, lock: Option<Lock>) -> SysResult {
    let [kinds, ..] = user::read::<[u64; 4]>(at)?;
    let Some(lock) = lock else {
        user::write(at, kinds & !0xffff | F_UNLCK as u64)?;
        return Ok(0);
    };
    let kind = if lock.is_exclusive { F_WRLCK } else { F_RDLCK };
    let bytes = match lock.last {
        END => 0,
        last => last - lock.first + 1,
    };
    // The kind, and whence: from the start. It is no process's.
    user::write(at, kinds & !0xffff_ffff | kind as u64)?;
    user::write(at.wrapping_add(8), [lock.first, bytes])?;
    user::write(at.wrapping_add(24), -1i32)?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u64, last: u64, is_exclusive: bool) -> Lock {
        Lock {
            file: Object::File(1),
            owner: 3,
            is_whole: false,
            is_exclusive,
            first,
            last,
        }
    }

    fn held(locks: &Locks) -> Vec<(u64, u64, bool)> {
        let mut held: Vec<_> = locks.all.iter().flatten().collect();
        held.sort_by_key(|lock| lock.first);
        assert_eq!(held.len(), locks.count);
        let told = |lock: &&Lock| (lock.first, lock.last, lock.is_exclusive);
        held.iter().map(told).collect()
    }

    #[test]
    fn ranges_of_one_owner_are_joined_divided_and_taken_away() {
        let mut locks = Locks::new();
        locks.replace(range(10, 19, false), true).unwrap();
        locks.replace(range(20, 29, false), true).unwrap();
        assert_eq!(held(&locks), [(10, 29, false)]);
        locks.replace(range(15, 17, true), true).unwrap();
        assert_eq!(
            held(&locks),
            [(10, 14, false), (15, 17, true), (18, 29, false)]
        );
        locks.replace(range(16, 20, false), false).unwrap();
        assert_eq!(
            held(&locks),
            [(10, 14, false), (15, 15, true), (21, 29, false)]
        );
        locks.replace(range(0, END, true), true).unwrap();
        assert_eq!(held(&locks), [(0, END, true)]);
        locks.replace(range(0, END, true), false).unwrap();
        assert_eq!(held(&locks), []);
    }

    #[test]
    fn only_those_of_another_owner_are_in_the_way() {
        let mut locks = Locks::new();
        locks.replace(range(10, 19, false), true).unwrap();
        let other = |first, last, is_exclusive| Lock {
            owner: 4,
            ..range(first, last, is_exclusive)
        };
        let meets = |lock: Lock| locks.find(|held| held.meets(&lock)).is_some();
        assert!(meets(other(19, 30, true)) && !meets(other(20, 30, true)));
        assert!(!meets(other(10, 19, false)) && !meets(range(10, 19, true)));
    }
}
