//! Waiting for descriptors: poll, select and epoll, with the one rule of when to leave the guest.

use crate::errno::{Errno, SysResult};
use crate::files::held::Held;
use crate::files::watch;
use crate::files::{MAX_DESCRIPTORS, Object, Open};
use crate::signals::descriptor;
use crate::{pipes, sockets, state, threads, time, timers, user};

/// There is something to read.
pub const POLLIN: u32 = 0x001;
/// There is room to write.
pub const POLLOUT: u32 = 0x004;
/// Both halves are shut.
pub const POLLHUP: u32 = 0x010;
/// It failed.
pub const POLLERR: u32 = 0x008;
const POLLNVAL: u32 = 0x020;
/// There is room for what is urgent.
pub const POLLWRBAND: u32 = 0x200;
/// The other end writes nothing any more.
pub const POLLRDHUP: u32 = 0x2000;
const EPOLLONESHOT: u32 = 1 << 30;
const EPOLLET: u32 = 1 << 31;
/// Events that are reported whether asked for or not: POLLERR and POLLHUP.
const ALWAYS: u32 = 0x018;
/// Most epoll instances: each is a bit of a word.
const MAX_EPOLLS: usize = 32;
/// Most descriptors that they watch, all together.
const MAX_WATCHED: usize = 768;
/// Most steps from an epoll instance to one that it watches, itself or through others, as on Linux.
const MAX_NESTS: usize = 4;

/// The epoll instances that have something to report, one bit each, once they were asked for.
struct Reporting(Option<u32>);

impl Reporting {
    /// Whether one has.
    fn has(&mut self, epoll: u8) -> bool {
        *self.0.get_or_insert_with(reporting) >> epoll & 1 != 0
    }
}

/// Asks all instances. One may wait for another: each round finds those that wait for what the rounds before have
/// found, so that nobody is asked once for every way that leads there.
fn reporting() -> u32 {
    let mut found = 0;
    loop {
        let before = found;
        for watched in state::epolls().all() {
            let is_known = found >> watched.epoll & 1 != 0;
            if !is_known && watched.found(&mut Reporting(Some(found))).is_some() {
                found |= 1 << watched.epoll;
            }
        }
        if found == before {
            return found;
        }
    }
}

/// What an object is ready for, by each of the names that Linux has for it.
fn ready(open: Open, reporting: &mut Reporting) -> u32 {
    // From POLLIN to POLLRDNORM, and from POLLOUT to POLLWRNORM.
    const NORMAL_BITS: u32 = 6;
    let found = base_of(open, reporting);
    match open.object {
        Object::Event(..) | Object::Timer(_) | Object::Signals(_) => found,
        _ => found | (found & (POLLIN | POLLOUT)) << NORMAL_BITS,
    }
}

fn base_of(open: Open, reporting: &mut Reporting) -> u32 {
    let when = |holds: bool, events: u32| if holds { events } else { 0 };
    match open.object {
        Object::Stream { from, to } => {
            let (input, output) = (pipes::queue(from), pipes::queue(to));
            // Where no writer has come yet, none has gone.
            let (readable, ended) = input.map_or((false, false), |queue| {
                let (now, ever) = queue.writers();
                (
                    queue.used() > 0,
                    now == 0 && open.position != u64::from(ever),
                )
            });
            let (writable, refused) = output.map_or((false, false), |queue| {
                (queue.is_writable(), queue.is_refused())
            });
            when(readable, POLLIN)
                | when(ended, POLLHUP)
                | when(writable, POLLOUT)
                | when(refused, POLLERR)
        }
        Object::Socket(number) => sockets::ready::ready(number),
        Object::Timer(number) => when(timers::is_readable(number), POLLIN),
        Object::Watcher(number) => when(watch::readable_bytes(number) > 0, POLLIN),
        Object::Signals(set) => when(descriptor::is_readable(set), POLLIN),
        Object::Event(count, _) => when(count > 0, POLLIN) | when(count < u64::MAX - 1, POLLOUT),
        Object::Log => POLLOUT,
        Object::Stdin
        | Object::Null
        | Object::Full
        | Object::Zero
        | Object::Random
        | Object::File(_)
        | Object::Brought(_)
        | Object::Made(_)
        | Object::Info(_)
        | Object::Name(_)
        | Object::Directory(_) => POLLIN | POLLOUT,
        Object::Epoll(number) => when(reporting.has(number), POLLIN),
        Object::Free => 0,
    }
}

/// Calls `scan` until it finds something, leaving the guest in between; `timeout` in nanoseconds,
/// `None` for ever.
fn wait_until(timeout: Option<u64>, mut scan: impl FnMut() -> SysResult) -> SysResult {
    let deadline = timeout.map(|timeout| time::monotonic_ns().saturating_add(timeout));
    loop {
        timers::ring();
        let mut asked = sockets::outbound::refresh_if_due();
        loop {
            let found = scan()?;
            if found > 0 || timeout == Some(0) {
                return Ok(found);
            }
            // Who is to wait knows the latest.
            if asked || !sockets::outbound::refresh() {
                break;
            }
            asked = true;
        }
        if deadline.is_some_and(|deadline| time::monotonic_ns() >= deadline) {
            return Ok(0);
        }
        if threads::wait(deadline) {
            return Err(Errno::EINTR);
        }
    }
}

/// Milliseconds as C's poll and epoll give them: negative is for ever.
pub fn timeout_ms(timeout: u64) -> Option<u64> {
    u64::try_from(timeout as u32 as i32)
        .ok()
        .map(|ms| ms * 1_000_000)
}

/// `poll` and `ppoll`
pub fn poll(array: u64, count: u64, timeout: Option<u64>) -> SysResult {
    if count > MAX_DESCRIPTORS as u64 {
        return Err(Errno::EINVAL);
    }
    wait_until(timeout, || {
        let (mut found, mut reporting) = (0, Reporting(None));
        for at in 0..count {
            let entry = array.wrapping_add(at * 8);
            let descriptor = user::read::<i32>(entry)?;
            let wanted = u32::from(user::read::<u16>(entry.wrapping_add(4))?);
            let events = match state::files().get(descriptor as u64) {
                _ if descriptor < 0 => 0,
                Ok(open) => ready(open, &mut reporting) & (wanted | ALWAYS),
                Err(_) => POLLNVAL,
            };
            user::write(entry.wrapping_add(6), events as u16)?;
            found += u64::from(events != 0);
        }
        Ok(found)
    })
}

/// `select` and `pselect6`: sets of up to 1024 descriptors.
pub fn select(count: u64, read: u64, write: u64, except: u64, timeout: Option<u64>) -> SysResult {
    type Set = [u64; 16];
    let count = count as u32 as i32;
    let count = u64::try_from(count).map_err(|_| Errno::EINVAL)?;
    let count = count.min(MAX_DESCRIPTORS as u64);
    let words = count.div_ceil(64);
    let load = |addr: u64| -> Result<Set, Errno> {
        let mut set = [0; 16];
        for word in 0..if addr == 0 { 0 } else { words } {
            set[word as usize] = user::read(addr.wrapping_add(word * 8))?;
        }
        Ok(set)
    };
    let (wanted_read, wanted_write, wanted_except) = (load(read)?, load(write)?, load(except)?);
    let (mut can_read, mut can_write): (Set, Set) = ([0; 16], [0; 16]);
    let mut has_waited = false;
    let found = wait_until(timeout, || {
        let (mut found, mut reporting) = (0, Reporting(None));
        for descriptor in 0..count {
            let (word, bit) = ((descriptor / 64) as usize, 1 << (descriptor % 64));
            let asked = (wanted_read[word] | wanted_write[word] | wanted_except[word]) & bit != 0;
            if !asked {
                continue;
            }
            let events = match state::files().get(descriptor) {
                Ok(open) => ready(open, &mut reporting),
                // One that was closed during the wait would not wait.
                Err(_) if has_waited => POLLIN | POLLOUT,
                Err(error) => return Err(error),
            };
            if wanted_read[word] & bit != 0 && events & (POLLIN | ALWAYS) != 0 {
                can_read[word] |= bit;
                found += 1;
            }
            if wanted_write[word] & bit != 0 && events & (POLLOUT | POLLERR) != 0 {
                can_write[word] |= bit;
                found += 1;
            }
        }
        has_waited = true;
        Ok(found)
    })?;
    // Not before it is over: a call that a signal ends leaves the sets as they were.
    for (addr, set) in [(read, can_read), (write, can_write), (except, [0; 16])] {
        for word in 0..if addr == 0 { 0 } else { words } {
            user::write(addr.wrapping_add(word * 8), set[word as usize])?;
        }
    }
    Ok(found)
}

#[derive(Clone, Copy)]
struct Watched {
    /// The instance that watches it.
    epoll: u8,
    /// Index of the object; `u16::MAX` when the entry is unused.
    object: u16,
    descriptor: u32,
    events: u32,
    data: u64,
    /// The object's edges when it was last reported, for EPOLLET.
    reported: Option<u32>,
}

impl Watched {
    /// The epoll instance that it is, if it is one.
    fn inner(&self) -> Option<u8> {
        match state::files().object(self.object).object {
            Object::Epoll(number) => Some(number),
            _ => None,
        }
    }

    /// What is to be reported of it now, and the edges that this is about.
    fn found(&self, reporting: &mut Reporting) -> Option<(u32, u32)> {
        let open = state::files().object(self.object);
        let now = ready(open, reporting) & (self.events | ALWAYS);
        // One-shot, and shot.
        let silent = self.events & !(EPOLLONESHOT | EPOLLET) == 0;
        // Instances in instances have no edges of their own.
        let has_edges = self.events & EPOLLET != 0 && !matches!(open.object, Object::Epoll(_));
        // Looking at what there is of a body may bring more of it, which is an edge.
        let edges = state::files().object(self.object).edges;
        let old_edge = has_edges && self.reported == Some(edges);
        (now != 0 && !silent && !old_edge).then_some((now, edges))
    }
}

/// The instances that those of a set watch.
fn watched_by(set: u32) -> u32 {
    let watches = |watched: &&Watched| set >> watched.epoll & 1 != 0;
    let found = state::epolls().all().filter(watches);
    let found = found.filter_map(Watched::inner);
    found.fold(0, |found, inner| found | 1 << inner)
}

/// The instances that watch one of a set.
fn watchers_of(set: u32) -> u32 {
    let watches = |watched: &&Watched| watched.inner().is_some_and(|inner| set >> inner & 1 != 0);
    let found = state::epolls().all().filter(watches);
    found.fold(0, |found, watched| found | 1 << watched.epoll)
}

/// What can be reached from an instance, and the most steps that this takes; no further than is allowed.
fn reach(from: u8, step: impl Fn(u32) -> u32) -> (u32, usize) {
    let (mut reached, mut last, mut steps) = (0, 1 << from, 0);
    while steps <= MAX_NESTS {
        last = step(last);
        if last == 0 {
            break;
        }
        reached |= last;
        steps += 1;
    }
    (reached, steps)
}

/// Whether an instance may not watch another: they would wait for each other, or too many in a row.
fn is_loop(epoll: u8, inner: u8) -> bool {
    let (below, steps_down) = reach(inner, watched_by);
    let (_, steps_up) = reach(epoll, watchers_of);
    below >> epoll & 1 != 0 || steps_up + 1 + steps_down > MAX_NESTS
}

const UNWATCHED: Watched = Watched {
    epoll: 0,
    object: u16::MAX,
    descriptor: 0,
    events: 0,
    data: 0,
    reported: None,
};

/// The epoll instances.
pub struct Epolls {
    /// Whether a descriptor stands for it.
    used: [bool; MAX_EPOLLS],
    watched: [Watched; MAX_WATCHED],
    /// Nothing is watched at this place or behind it.
    end: usize,
    /// Where the next look of each instance begins: behind what was reported last, where that was as much as there
    /// was room for.
    next: [u16; MAX_EPOLLS],
}

impl Epolls {
    /// None.
    pub const fn new() -> Self {
        Epolls {
            used: [false; MAX_EPOLLS],
            watched: [UNWATCHED; MAX_WATCHED],
            end: 0,
            next: [0; MAX_EPOLLS],
        }
    }

    /// A new one, if there is room for it.
    pub fn make(&mut self) -> Option<u8> {
        let free = self.used.iter().position(|used| !used)?;
        self.used[free] = true;
        Some(free as u8)
    }

    /// One that no descriptor stands for any more.
    pub fn close(&mut self, epoll: u8) {
        self.used[usize::from(epoll)] = false;
        self.remove(|watched| watched.epoll == epoll);
    }

    /// The object is gone.
    pub fn forget(&mut self, object: u16) {
        self.remove(|watched| watched.object == object);
    }

    fn remove(&mut self, which: impl Fn(&Watched) -> bool) {
        for watched in self.watched[..self.end].iter_mut().filter(|it| which(it)) {
            *watched = UNWATCHED;
        }
        let is_used = |watched: &Watched| watched.object != u16::MAX;
        let last = self.watched[..self.end].iter().rposition(is_used);
        self.end = last.map_or(0, |last| last + 1);
    }

    fn add(&mut self, watched: Watched) -> Result<(), Errno> {
        let is_free = |watched: &Watched| watched.object == u16::MAX;
        let free = self.watched.iter().position(is_free).ok_or(Errno::ENOMEM)?;
        self.watched[free] = watched;
        self.end = self.end.max(free + 1);
        Ok(())
    }

    /// All that is watched.
    fn all(&self) -> impl Iterator<Item = &Watched> {
        let all = self.watched[..self.end].iter();
        all.filter(|it| it.object != u16::MAX)
    }

    /// The places of what one of them watches, from where its next look begins.
    fn turn(&self, epoll: u8) -> impl Iterator<Item = usize> + use<> {
        let (end, next) = (self.end, usize::from(self.next[usize::from(epoll)]));
        (next..end).chain(0..next.min(end))
    }

    /// What one of them watches, to be changed.
    fn of_mut(&mut self, epoll: u8) -> impl Iterator<Item = &mut Watched> {
        let all = self.watched[..self.end].iter_mut();
        all.filter(move |it| it.epoll == epoll && it.object != u16::MAX)
    }
}

impl Default for Epolls {
    fn default() -> Self {
        Epolls::new()
    }
}

/// `epoll_ctl`
pub fn epoll_control(epoll: u64, operation: u64, descriptor: u64, event: u64) -> SysResult {
    const ADD: u64 = 1;
    const DELETE: u64 = 2;
    const MODIFY: u64 = 3;
    let operation = operation as u32 as u64;
    if operation != DELETE {
        user::slice(event, 12)?;
    }
    let own = state::files().index(epoll)?;
    let object = state::files().index(descriptor)?;
    if matches!(
        state::files().object(object).object,
        Object::File(_)
            | Object::Brought(_)
            | Object::Made(_)
            | Object::Directory(_)
            | Object::Null
            | Object::Full
            | Object::Zero
    ) {
        // As on Linux: a file is always ready.
        return Err(Errno::EPERM);
    }
    let Object::Epoll(number) = state::files().object(own).object else {
        return Err(Errno::EINVAL);
    };
    if own == object {
        return Err(Errno::EINVAL);
    }
    if operation == ADD
        && let Object::Epoll(inner) = state::files().object(object).object
        && is_loop(number, inner)
    {
        return Err(Errno::ELOOP);
    }
    let known =
        |watched: &Watched| watched.object == object && watched.descriptor == descriptor as u32;
    let wanted = |event| -> Result<Watched, Errno> {
        Ok(Watched {
            epoll: number,
            object,
            descriptor: descriptor as u32,
            events: user::read::<u32>(event)? | ALWAYS,
            data: user::read::<u64>(event.wrapping_add(4))?,
            reported: None,
        })
    };
    let epolls = state::epolls();
    let watched = epolls.of_mut(number).find(|watched| known(watched));
    match (operation, watched) {
        (ADD, Some(_)) => return Err(Errno::EEXIST),
        (ADD, None) => epolls.add(wanted(event)?)?,
        (MODIFY, Some(watched)) => *watched = wanted(event)?,
        (DELETE, Some(_)) => epolls.remove(|it| it.epoll == number && known(it)),
        (MODIFY | DELETE, None) => return Err(Errno::ENOENT),
        _ => return Err(Errno::EINVAL),
    }
    // What is ready may be news to a thread that waits in this instance.
    state::threads().changed();
    Ok(0)
}

/// `epoll_wait` and `epoll_pwait`
pub fn epoll_wait(epoll: u64, events: u64, most: u64, timeout: Option<u64>) -> SysResult {
    let most = most as u32 as i32;
    let held = Held::of(epoll)?;
    if most <= 0 {
        return Err(Errno::EINVAL);
    }
    let Object::Epoll(number) = held.open().object else {
        return Err(Errno::EINVAL);
    };
    wait_until(timeout, || {
        let mut found = 0u64;
        // The epoll table alone is borrowed further down, so the other parts are free to be asked.
        let is_nested = watched_by(1 << number) != 0;
        let mut reporting = Reporting(Some(if is_nested { reporting() } else { 0 }));
        for place in state::epolls().turn(number) {
            if found >= most as u64 {
                // Who is always ready keeps nobody else from being reported.
                state::epolls().next[usize::from(number)] = place as u16;
                break;
            }
            let watched = &mut state::epolls().watched[place];
            if watched.epoll != number || watched.object == u16::MAX {
                continue;
            }
            let Some((now, edges)) = watched.found(&mut reporting) else {
                continue;
            };
            // struct epoll_event is packed on x86-64: 12 bytes. Nothing is taken to be reported that
            // cannot be.
            let entry = events.wrapping_add(found * 12);
            if let Err(error) = user::slice_mut(entry, 12) {
                return if found > 0 { Ok(found) } else { Err(error) };
            }
            watched.reported = Some(edges);
            if watched.events & EPOLLONESHOT != 0 {
                watched.events &= EPOLLONESHOT | EPOLLET;
            }
            user::write(entry, now)?;
            user::write(entry.wrapping_add(4), watched.data)?;
            found += 1;
        }
        Ok(found)
    })
}
