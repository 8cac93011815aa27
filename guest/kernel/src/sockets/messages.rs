//! `sendmsg`, `recvmsg` and those that do it several times: messages in parts, with addresses and control data.

use super::address::{AF_UNIX, Address};
use super::hold;
use super::rights::{self, Outgoing};
use super::transfer::{self, MSG_DONTWAIT, MSG_PEEK};
use crate::buffers::{MAX_PARTS, Source, Target, check_parts};
use crate::errno::{Errno, SysResult};
use crate::{state, time, user};

const MSG_WAITFORONE: u64 = 0x1_0000;
const MSG_CMSG_CLOEXEC: u32 = 0x4000_0000;
/// Bytes of a `struct mmsghdr`, and where its length is.
const MULTIPLE_BYTES: u64 = 64;
const MULTIPLE_LENGTH: u64 = 56;
/// Most messages of one call.
const MAX_MESSAGES: u64 = 1024;

/// A `struct msghdr`.
struct Header {
    address: u64,
    address_bytes: u32,
    array: u64,
    count: u64,
    control: u64,
    control_bytes: u64,
}

impl Header {
    fn read(at: u64) -> Result<Header, Errno> {
        let [address, address_bytes] = user::read::<[u64; 2]>(at)?;
        let [array, count] = user::read::<[u64; 2]>(at.wrapping_add(16))?;
        let [control, control_bytes, _] = user::read::<[u64; 3]>(at.wrapping_add(32))?;
        let header = Header {
            address,
            address_bytes: address_bytes as u32,
            array,
            count,
            control,
            control_bytes,
        };
        if (header.address_bytes as i32) < 0 && header.address != 0 {
            return Err(Errno::EINVAL);
        }
        if header.count > MAX_PARTS {
            return Err(Errno::EMSGSIZE);
        }
        check_parts(header.array, header.count)?;
        Ok(header)
    }

    fn source(&self) -> Source<'static> {
        Source::Parts {
            array: self.array,
            count: self.count,
        }
    }

    fn target(&self) -> Target<'static> {
        Target::Parts {
            array: self.array,
            count: self.count,
        }
    }
}

/// `sendmsg`
pub fn send(descriptor: u64, header: u64, flags: u64) -> SysResult {
    let (number, held) = hold(descriptor)?;
    send_by(number, held.open().nonblocking, header, flags)
}

fn send_by(number: u16, nonblocking: bool, header: u64, flags: u64) -> SysResult {
    let header = Header::read(header)?;
    let given = match (header.address, header.address_bytes) {
        (0, _) | (_, 0) => None,
        // What is longer than any is cut.
        (address, bytes) => Some(Address::look(address, bytes.min(128).into())?),
    };
    let to = transfer::receiver(number, given)?;
    let rights = match state::sockets().get(number).domain {
        AF_UNIX => Outgoing::read(header.control, header.control_bytes)?,
        _ => Outgoing::none(),
    };
    transfer::send(number, header.source(), flags, nonblocking, to, &rights)
}

/// `recvmsg`
pub fn receive(descriptor: u64, at: u64, flags: u64) -> SysResult {
    let (number, held) = hold(descriptor)?;
    receive_by(number, held.open().nonblocking, at, flags)
}

fn receive_by(number: u16, nonblocking: bool, at: u64, flags: u64) -> SysResult {
    let header = Header::read(at)?;
    let received = transfer::receive(number, header.target(), flags, nonblocking)?;
    if header.address != 0 {
        transfer::put_sender(number, &received, header.address, at.wrapping_add(8))?;
    }
    let peeked = if flags & MSG_PEEK != 0 {
        received.in_queue
    } else {
        0
    };
    let closed_on_exec = flags as u32 & MSG_CMSG_CLOEXEC != 0;
    let queue = state::sockets().get(number).reads();
    let (used, told) = match queue {
        Some(queue) => rights::receive(
            queue,
            peeked,
            header.control,
            header.control_bytes,
            closed_on_exec,
        )?,
        None => (0, 0),
    };
    user::write(
        at.wrapping_add(48),
        told | received.flags | flags as u32 & MSG_CMSG_CLOEXEC,
    )?;
    user::write(at.wrapping_add(40), used)?;
    Ok(received.bytes)
}

/// Calls `each` for the messages of an array, and notes the length of each.
fn for_each(array: u64, count: u64, mut each: impl FnMut(u64, u64) -> SysResult) -> SysResult {
    let count = u64::from(count as u32).min(MAX_MESSAGES);
    for at in 0..count {
        let header = array.wrapping_add(at * MULTIPLE_BYTES);
        match each(header, at) {
            Ok(done) => user::write(header.wrapping_add(MULTIPLE_LENGTH), done as u32)?,
            Err(error) if at == 0 => return Err(error),
            Err(_) => return Ok(at),
        }
    }
    Ok(count)
}

/// `sendmmsg`
pub fn send_several(descriptor: u64, array: u64, count: u64, flags: u64) -> SysResult {
    let (number, held) = hold(descriptor)?;
    let nonblocking = held.open().nonblocking;
    for_each(array, count, |header, _| {
        send_by(number, nonblocking, header, flags)
    })
}

/// `recvmmsg`; `timeout` is when no further message is waited for.
pub fn receive_several(
    descriptor: u64,
    array: u64,
    count: u64,
    flags: u64,
    timeout: u64,
) -> SysResult {
    let until = time::timespec(timeout)?.map(|ns| time::monotonic_ns().saturating_add(ns));
    let (number, held) = hold(descriptor)?;
    let nonblocking = held.open().nonblocking;
    let keeps_borders = state::sockets().get(number).keeps_borders();
    let mut ended = false;
    for_each(array, count, |header, at| {
        let late = until.is_some_and(|until| time::monotonic_ns() >= until);
        if at > 0 && (late || ended) {
            return Err(Errno::EAGAIN);
        }
        let more = match flags & MSG_WAITFORONE != 0 && at > 0 {
            true => MSG_DONTWAIT,
            false => 0,
        };
        let received = receive_by(number, nonblocking, header, flags & !MSG_WAITFORONE | more)?;
        // The end of a stream is there for ever.
        ended = received == 0 && !keeps_borders;
        Ok(received)
    })
}
