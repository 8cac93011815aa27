//! Descriptors that travel through local sockets (SCM_RIGHTS).
//!
//! A message with descriptors is bytes of a stream like others; which ones is noted here. Who receives the
//! first of them gets the descriptors too, and nothing of what comes behind the last in the same call.
//!
//! ```text
//! sendmsg ──▶ travelling: object held, place in the queue ──first byte received──▶ recvmsg: a descriptor
//!                     │                                                 └─────────▶ read: let go
//!                     └──the queue has no reader any more──▶ lost: let go
//! ```
//! A socket may travel through itself, so that nobody can ever receive it; `free_lost` finds such ones.

use crate::errno::{Errno, SysResult};
use crate::files::descriptors;
use crate::pipes::{self, MAX_QUEUES};
use crate::{state, user};

/// Most descriptors that travel at a time.
const MAX_TRAVELLING: usize = 512;
/// Most descriptors of one message, as on Linux.
const MAX_IN_MESSAGE: usize = 253;
/// Most bytes of a message's control data.
const MAX_CONTROL_BYTES: u64 = 20 << 10;
const SOL_SOCKET: u32 = 1;
const SCM_RIGHTS: u32 = 1;
const SCM_CREDENTIALS: u32 = 2;
const CREDENTIALS_BYTES: u64 = 12;
const HEADER_BYTES: u64 = 16;
const MSG_CTRUNC: u32 = 8;

/// An object that travels.
#[derive(Clone, Copy)]
struct Travelling {
    /// The queue that it travels through; `pipes::NONE` if it is lost.
    queue: u8,
    /// The bytes of its message, counted as the queue does.
    start: u64,
    end: u64,
    /// Index of the object, which is held.
    object: u16,
}

impl Travelling {
    fn is_in_message(&self, message: &Travelling) -> bool {
        self.queue == message.queue && self.start == message.start
    }
}

/// All that travel, in the order in which they were sent.
pub struct Rights {
    all: [Travelling; MAX_TRAVELLING],
    count: usize,
}

impl Rights {
    /// None.
    pub const fn new() -> Self {
        const NONE: Travelling = Travelling {
            queue: pipes::NONE,
            start: 0,
            end: 0,
            object: 0,
        };
        Rights {
            all: [NONE; MAX_TRAVELLING],
            count: 0,
        }
    }

    fn all(&self) -> &[Travelling] {
        &self.all[..self.count]
    }

    /// The next message of a queue that has descriptors, by the first of them.
    fn next(&self, queue: u8) -> Option<Travelling> {
        self.all().iter().find(|one| one.queue == queue).copied()
    }

    /// How many more may travel.
    fn free(&self) -> usize {
        MAX_TRAVELLING - self.count
    }

    /// One more travels, for which there is room.
    fn add(&mut self, one: Travelling) {
        self.all[self.count] = one;
        self.count += 1;
    }

    /// Takes the first out that `which` holds for; gives its object.
    fn take(&mut self, which: impl Fn(&Travelling) -> bool) -> Option<u16> {
        let at = self.all().iter().position(which)?;
        let object = self.all[at].object;
        self.all.copy_within(at + 1..self.count, at);
        self.count -= 1;
        Some(object)
    }

    /// Nobody will read the queue any more.
    pub fn lose(&mut self, queue: u8) {
        self.lose_where(|one| one.queue == queue);
    }

    fn lose_where(&mut self, which: impl Fn(&Travelling) -> bool) {
        for one in &mut self.all[..self.count] {
            if which(one) {
                one.queue = pipes::NONE;
            }
        }
    }

    /// Loses what travels through queues whose reader nobody can have any more.
    fn lose_unreachable(&mut self) {
        let mut reachable = [false; MAX_QUEUES];
        loop {
            let found = self.all().iter().find(|one| {
                !reachable[usize::from(one.queue)] && self.has_reader(one.queue, &reachable)
            });
            match found {
                Some(one) => reachable[usize::from(one.queue)] = true,
                None => break,
            }
        }
        self.lose_where(|one| !reachable[usize::from(one.queue)]);
    }

    /// Whether the socket that reads a queue has a descriptor, waits to be accepted, or travels through one
    /// of the `reachable` queues.
    fn has_reader(&self, queue: u8, reachable: &[bool; MAX_QUEUES]) -> bool {
        let reader = state::sockets()
            .all()
            .find(|(_, one)| one.reads() == Some(queue));
        let Some((number, _)) = reader else {
            return false;
        };
        let Some(object) = state::files().index_of_socket(number) else {
            return true;
        };
        let own = self.all().iter().filter(|one| one.object == object);
        let references = state::files().object(object).references as usize;
        references > own.clone().count()
            || own.into_iter().any(|one| reachable[usize::from(one.queue)])
    }
}

impl Default for Rights {
    fn default() -> Self {
        Rights::new()
    }
}

/// Lets go of what nobody can receive any more. That may be a socket, through which others travelled.
pub fn free_lost() {
    while state::rights().count > 0 {
        let mut found = false;
        while let Some(object) = state::rights().take(|one| one.queue == pipes::NONE) {
            found = true;
            descriptors::let_go(object);
        }
        if !found {
            state::rights().lose_unreachable();
            if state::rights().next(pipes::NONE).is_none() {
                return;
            }
        }
    }
}

/// Of what carries no descriptors.
pub static NONE: Outgoing = Outgoing::none();

/// The descriptors of a message that is to be sent, by the objects that they stand for: held from the start, since
/// other threads may close them while the message waits for room.
pub struct Outgoing {
    objects: [u16; MAX_IN_MESSAGE],
    count: usize,
}

impl Outgoing {
    /// Reads control data.
    pub fn read(control: u64, bytes: u64) -> Result<Outgoing, Errno> {
        let mut found = Outgoing::none();
        if bytes > MAX_CONTROL_BYTES {
            return Err(Errno::ENOBUFS);
        }
        let mut at = 0;
        while control != 0 && bytes.saturating_sub(at) >= HEADER_BYTES {
            let here = control.wrapping_add(at);
            let length = user::read::<u64>(here)?;
            let [level, kind] = user::read::<[u32; 2]>(here.wrapping_add(8))?;
            if length < HEADER_BYTES || length > bytes - at {
                return Err(Errno::EINVAL);
            }
            let content = length - HEADER_BYTES;
            match (level, kind) {
                (SOL_SOCKET, SCM_RIGHTS) => {
                    for place in 0..content / 4 {
                        let from = here.wrapping_add(HEADER_BYTES + place * 4);
                        found.add(user::read::<u32>(from)?)?;
                    }
                }
                // There is one process, and everybody knows it.
                (SOL_SOCKET, SCM_CREDENTIALS) if content == CREDENTIALS_BYTES => {}
                (SOL_SOCKET, _) => return Err(Errno::EINVAL),
                _ => {}
            }
            at += length.next_multiple_of(8);
        }
        Ok(found)
    }

    fn add(&mut self, descriptor: u32) -> Result<(), Errno> {
        let room = self.objects.get_mut(self.count).ok_or(Errno::EINVAL)?;
        *room = state::files().index(u64::from(descriptor))?;
        state::files().hold(*room);
        self.count += 1;
        Ok(())
    }

    /// None.
    pub const fn none() -> Self {
        Outgoing {
            objects: [0; MAX_IN_MESSAGE],
            count: 0,
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// They travel with what `write` writes to a queue at once, if that is anything.
    pub fn send_with(&self, queue: u8, write: impl FnOnce() -> SysResult) -> SysResult {
        if state::rights().free() < self.count {
            return Err(Errno::ETOOMANYREFS);
        }
        let start = pipes::queue(queue).map_or(0, |queue| queue.places().1);
        let written = write()?;
        for object in self.objects[..self.count].iter().filter(|_| written > 0) {
            state::files().hold(*object);
            state::rights().add(Travelling {
                queue,
                start,
                end: start.saturating_add(written),
                object: *object,
            });
        }
        Ok(written)
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        for object in &self.objects[..self.count] {
            descriptors::let_go(*object);
        }
        if !self.is_empty() {
            free_lost();
        }
    }
}

/// How much of `wanted` bytes may be received from a queue in one call,
/// behind the next `skip` bytes.
pub fn room(queue: u8, skip: u64, wanted: u64) -> u64 {
    let Some(next) = state::rights().next(queue) else {
        return wanted;
    };
    let taken = pipes::queue(queue).map_or(0, |queue| queue.places().0);
    wanted.min(next.end.saturating_sub(taken + skip))
}

/// The message with descriptors that was received from a queue by now, or will be when the next `peeked` bytes
/// are.
fn received(queue: u8, peeked: u64) -> Option<Travelling> {
    let next = state::rights().next(queue)?;
    let taken = pipes::queue(queue)?.places().0;
    (next.start < taken.saturating_add(peeked)).then_some(next)
}

fn drop_message(message: &Travelling) {
    while let Some(object) = state::rights().take(|one| one.is_in_message(message)) {
        descriptors::let_go(object);
    }
    free_lost();
}

/// Lets go of descriptors that have come in a way that has no place for them.
pub fn drop_received(queue: u8) {
    if let Some(message) = received(queue, 0) {
        drop_message(&message);
    }
}

/// Gives the program the descriptors that have come, in its room for control data; gives how much of that is
/// used, and the message's flags. With the bytes that are only `peeked` at, they stay.
pub fn receive(
    queue: u8,
    peeked: u64,
    control: u64,
    room: u64,
    closed_on_exec: bool,
) -> Result<(u64, u32), Errno> {
    let Some(message) = received(queue, peeked) else {
        return Ok((0, 0));
    };
    let most = match control {
        0 => 0,
        _ => room.saturating_sub(HEADER_BYTES) / 4,
    };
    let all = state::rights().all().iter();
    let wanted = all.clone().filter(|one| one.is_in_message(&message));
    let wanted_count = wanted.clone().count() as u64;
    let (mut given, mut lost) = (0, None);
    for one in wanted.take(most as usize) {
        // Without a free descriptor it is as good as without room.
        let Ok(descriptor) = state::files().install(one.object, closed_on_exec) else {
            break;
        };
        let place = control.wrapping_add(HEADER_BYTES + given * 4);
        if user::write(place, descriptor as u32).is_err() {
            lost = Some(descriptor);
            break;
        }
        given += 1;
    }
    if let Some(descriptor) = lost {
        descriptors::close(descriptor)?;
    }
    if peeked == 0 {
        drop_message(&message);
    }
    let flags = if given < wanted_count { MSG_CTRUNC } else { 0 };
    if given == 0 {
        return Ok((0, flags));
    }
    let length = HEADER_BYTES + given * 4;
    user::write(control, length)?;
    user::write(control.wrapping_add(8), [SOL_SOCKET, SCM_RIGHTS])?;
    Ok((length.next_multiple_of(8).min(room), flags))
}
