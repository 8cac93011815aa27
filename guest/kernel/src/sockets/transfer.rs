//! What goes through a socket: send and receive in all their forms.

use super::address::{AF_UNIX, Address, Ip};
use super::rights::{self, Outgoing};
use super::table::State;
use super::{dns, number_of, open_of, outbound, request};
use crate::errno::{Errno, SysResult};
use crate::{pipes, state, threads, time, user};

const MSG_PEEK: u64 = 2;
const MSG_TRUNC: u64 = 0x20;
const MSG_DONTWAIT: u64 = 0x40;
const MSG_WAITALL: u64 = 0x100;
const MSG_WAITFORONE: u64 = 0x1_0000;
/// Bytes of a `struct mmsghdr`, and where its length is.
const MULTIPLE_BYTES: u64 = 64;
const MULTIPLE_LENGTH: u64 = 56;
/// Most messages of one call.
const MAX_MESSAGES: u64 = 1024;

/// When a wait of `ns` nanoseconds is over; `None` for 0, which is for ever.
pub fn deadline(ns: u64) -> Option<u64> {
    (ns != 0).then(|| time::monotonic_ns().saturating_add(ns))
}

/// Receives into `to`. With MSG_TRUNC a stream of TCP throws so many bytes away instead.
pub fn receive(number: u16, to: &mut [u8], flags: u64, nonblocking: bool) -> SysResult {
    let received = receive_bytes(number, to, flags, nonblocking);
    if let State::Stream { from, .. } = state::sockets().get(number).state {
        rights::drop_received(from);
    }
    received
}

/// The same, where descriptors that come with the bytes stay until they are asked for.
fn receive_bytes(number: u16, to: &mut [u8], flags: u64, nonblocking: bool) -> SysResult {
    let discards = flags & MSG_TRUNC != 0 && state::sockets().get(number).domain != AF_UNIX;
    let wanted = to.len() as u64;
    receive_into(number, wanted, flags, nonblocking, |done| {
        let rest = &mut to[done as usize..];
        let socket = *state::sockets().get(number);
        let peek = flags & MSG_PEEK != 0;
        match socket.state {
            State::Request(_) if socket.read_shut => Ok(0),
            State::Request(id) if peek => state::server().peek(id, rest),
            State::Request(id) => state::server().read(id, rest),
            State::Stream { from, .. } => {
                let room = rights::room(from, rest.len());
                let read = match discards && !peek {
                    true => pipes::discard(from, rest.len() as u64),
                    false => pipes::read(from, &mut rest[..room], peek),
                };
                match read {
                    Err(Errno::EAGAIN) if socket.read_shut => Ok(0),
                    read => read,
                }
            }
            State::Outbound(_) if socket.read_shut => Ok(0),
            State::Outbound(at) => outbound::receive(number, at.handle, rest, peek),
            // What does not fit is cut off.
            State::Datagrams { queries } => {
                let room = rest.len() as u64;
                outbound::answer(queries, rest, peek).map(|bytes| match flags & MSG_TRUNC {
                    0 => bytes.min(room),
                    _ => bytes,
                })
            }
            State::Fresh | State::Listening { .. } if socket.domain == AF_UNIX => {
                Err(Errno::EINVAL)
            }
            State::Fresh | State::Listening { .. } => Err(Errno::ENOTCONN),
            State::Free => Err(Errno::EBADF),
        }
    })
}

/// Calls `attempt`, with what was done before, until there is something, or with MSG_WAITALL everything.
fn receive_into(
    number: u16,
    wanted: u64,
    flags: u64,
    nonblocking: bool,
    mut attempt: impl FnMut(u64) -> SysResult,
) -> SysResult {
    let all = flags & MSG_WAITALL != 0 && flags & MSG_PEEK == 0;
    let nonblocking = nonblocking || flags & MSG_DONTWAIT != 0;
    let deadline = deadline(state::sockets().get(number).options.receive_ns);
    let mut done = 0;
    let result = threads::blocking_until(nonblocking, deadline, || {
        loop {
            let read = attempt(done)?;
            done += read;
            if !all || read == 0 || done >= wanted {
                return Ok(done);
            }
        }
    });
    match result {
        Err(_) if done > 0 => Ok(done),
        result => result,
    }
}

/// Sends `bytes`: all of them, unless `nonblocking`.
pub fn send(number: u16, bytes: &[u8], flags: u64, nonblocking: bool) -> SysResult {
    let nonblocking = nonblocking || flags & MSG_DONTWAIT != 0;
    let socket = *state::sockets().get(number);
    match socket.state {
        _ if socket.write_shut => Err(Errno::EPIPE),
        State::Request(id) => request::write(id, bytes),
        State::Stream { to, .. } => {
            let deadline = deadline(socket.options.send_ns);
            pipes::write(to, bytes, nonblocking, deadline)
        }
        State::Outbound(at) => {
            let deadline = deadline(socket.options.send_ns);
            send_out(number, at.handle, bytes, nonblocking, deadline)
        }
        State::Datagrams { .. } if socket.peer == Address::Unspecified => Err(Errno::EDESTADDRREQ),
        State::Datagrams { queries } => outbound::ask(queries, bytes),
        State::Fresh | State::Listening { .. } if socket.domain == AF_UNIX => Err(Errno::ENOTCONN),
        State::Fresh | State::Listening { .. } => Err(Errno::EPIPE),
        State::Free => Err(Errno::EBADF),
    }
}

/// Sends all of it out of the guest, unless `nonblocking`.
fn send_out(
    number: u16,
    handle: u64,
    bytes: &[u8],
    nonblocking: bool,
    deadline: Option<u64>,
) -> SysResult {
    let mut done = 0;
    let result = threads::blocking_until(nonblocking, deadline, || {
        loop {
            done += outbound::send(number, handle, &bytes[done..])? as usize;
            if done >= bytes.len() {
                return Ok(done as u64);
            }
        }
    });
    match result {
        Err(_) if done > 0 => Ok(done as u64),
        result => result,
    }
}

/// The queue of queries that a message goes to, if it is a datagram with an address.
fn addressed(number: u16, address: u64, bytes: u64) -> Result<Option<u8>, Errno> {
    match state::sockets().get(number).state {
        State::Datagrams { queries } if address != 0 => {
            match outbound::is_name_server(&Address::read(address, bytes)?) {
                true => Ok(Some(queries)),
                false => Err(Errno::EACCES),
            }
        }
        _ => {
            refuse_address(number, address)?;
            Ok(None)
        }
    }
}

/// `sendto`
pub fn send_to(
    descriptor: u64,
    bytes: u64,
    count: u64,
    flags: u64,
    address: u64,
    address_bytes: u64,
) -> SysResult {
    let (number, opened) = open_of(descriptor)?;
    if let Some(queries) = addressed(number, address, address_bytes)? {
        return outbound::ask(queries, user::slice(bytes, count)?);
    }
    send(
        number,
        user::buffer(bytes, count)?,
        flags,
        opened.nonblocking,
    )
}

/// A local stream goes to its other end alone; TCP takes no notice of an address.
fn refuse_address(number: u16, address: u64) -> Result<(), Errno> {
    let socket = state::sockets().get(number);
    match (socket.domain, socket.state) {
        (AF_UNIX, State::Stream { .. }) if address != 0 => Err(Errno::EISCONN),
        (AF_UNIX, _) if address != 0 => Err(Errno::EOPNOTSUPP),
        _ => Ok(()),
    }
}

/// `recvfrom`
pub fn receive_from(
    descriptor: u64,
    bytes: u64,
    count: u64,
    flags: u64,
    address: u64,
    address_bytes: u64,
) -> SysResult {
    let (number, opened) = open_of(descriptor)?;
    let socket = *state::sockets().get(number);
    let discards = flags & (MSG_TRUNC | MSG_PEEK) == MSG_TRUNC && socket.domain != AF_UNIX;
    let received = match socket.state {
        // The buffer is not looked at, and need not be there.
        State::Stream { from, .. } if discards => {
            receive_into(number, count, flags, opened.nonblocking, |done| {
                pipes::discard(from, count - done)
            })?
        }
        _ => receive(
            number,
            user::buffer_mut(bytes, count)?,
            flags,
            opened.nonblocking,
        )?,
    };
    if address != 0 && address_bytes != 0 {
        put_sender(number, address, address_bytes)?;
    }
    Ok(received)
}

/// The sender's address: a stream says it only where it is a name of its own.
fn put_sender(number: u16, address: u64, bytes: u64) -> Result<(), Errno> {
    let socket = *state::sockets().get(number);
    match socket.peer {
        _ if matches!(socket.state, State::Datagrams { .. }) => {
            let server = Address::Inet(Ip::v4(dns::SERVER), dns::PORT);
            server.write(socket.domain, address, bytes)
        }
        Address::Unix(name) if !name.as_bytes().is_empty() => {
            socket.peer.write(socket.domain, address, bytes)
        }
        _ => user::write(bytes, 0u32),
    }
}

/// Calls `each` for the parts of a message, with the bytes that were done before, until one is cut short.
fn parts(header: u64, each: impl FnMut(u64, u64, u64) -> SysResult) -> SysResult {
    const MAX_PARTS: u64 = 1024;
    let [array, count] = user::read::<[u64; 2]>(header.wrapping_add(16))?;
    if count > MAX_PARTS {
        return Err(Errno::EMSGSIZE);
    }
    user::for_each_part(array, count, each)
}

/// `sendmsg`
pub fn send_message(descriptor: u64, header: u64, flags: u64) -> SysResult {
    let (number, opened) = open_of(descriptor)?;
    let [address, address_bytes] = user::read::<[u64; 2]>(header)?;
    let queries = match (
        addressed(number, address, address_bytes)?,
        state::sockets().get(number).state,
    ) {
        (None, State::Datagrams { queries }) if state::sockets().get(number).is_connected() => {
            Some(queries)
        }
        (queries, _) => queries,
    };
    if let Some(queries) = queries {
        return ask_parts(queries, header);
    }
    let socket = *state::sockets().get(number);
    let send_parts = || {
        parts(header, |start, bytes, _| {
            let part = user::slice(start, bytes)?;
            send(number, part, flags, opened.nonblocking)
        })
    };
    if socket.domain != AF_UNIX {
        return send_parts();
    }
    let [control, control_bytes] = user::read::<[u64; 2]>(header.wrapping_add(32))?;
    let outgoing = Outgoing::read(control, control_bytes)?;
    match socket.state {
        State::Stream { to, .. } if !outgoing.is_empty() => {
            let nonblocking = opened.nonblocking || flags & MSG_DONTWAIT != 0;
            let deadline = deadline(socket.options.send_ns);
            // They have the place of the message's first byte, which must not wait for room then.
            threads::blocking_until(nonblocking, deadline, || {
                match pipes::queue(to).is_none_or(|queue| queue.is_writable()) {
                    true => Ok(0),
                    false => Err(Errno::EAGAIN),
                }
            })?;
            outgoing.send_with(to, total_bytes(header)?, send_parts)
        }
        _ => send_parts(),
    }
}

/// How many bytes the parts of a message have.
fn total_bytes(header: u64) -> SysResult {
    parts(header, |_, bytes, _| Ok(bytes))
}

/// A query in parts is one query.
fn ask_parts(queries: u8, header: u64) -> SysResult {
    let (mut query, mut used) = ([0; dns::MAX_QUERY_BYTES], 0);
    parts(header, |start, bytes, _| {
        let part = user::slice(start, bytes)?;
        let room = query.get_mut(used..used + part.len());
        room.ok_or(Errno::EMSGSIZE)?.copy_from_slice(part);
        used += part.len();
        Ok(bytes)
    })?;
    outbound::ask(queries, &query[..used])
}

/// `recvmsg`
pub fn receive_message(descriptor: u64, header: u64, flags: u64) -> SysResult {
    const MSG_CMSG_CLOEXEC: u32 = 0x4000_0000;
    let (number, opened) = open_of(descriptor)?;
    let all = flags & MSG_WAITALL != 0;
    let received = parts(header, |start, bytes, done| {
        if done > 0 && flags & MSG_PEEK != 0 {
            // It would look at the same again.
            return Ok(0);
        }
        // Only the first part may wait: what is there is to be given.
        let nonblocking = opened.nonblocking || (done > 0 && !all);
        receive_bytes(number, user::slice_mut(start, bytes)?, flags, nonblocking)
    })?;
    let address = user::read::<u64>(header)?;
    match address {
        0 => user::write(header.wrapping_add(8), 0u32)?,
        address => put_sender(number, address, header.wrapping_add(8))?,
    }
    let [control, room] = user::read::<[u64; 2]>(header.wrapping_add(32))?;
    let peeked = if flags & MSG_PEEK != 0 { received } else { 0 };
    let (used, told) = match state::sockets().get(number).state {
        State::Stream { from, .. } => rights::receive(from, peeked, control, room)?,
        _ => (0, 0),
    };
    user::write(header.wrapping_add(40), used)?;
    user::write(
        header.wrapping_add(48),
        told | flags as u32 & MSG_CMSG_CLOEXEC,
    )?;
    Ok(received)
}

/// Calls `each` for the messages of an array, and notes the length of each.
fn messages(array: u64, count: u64, mut each: impl FnMut(u64, u64) -> SysResult) -> SysResult {
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
pub fn send_messages(descriptor: u64, array: u64, count: u64, flags: u64) -> SysResult {
    number_of(descriptor)?;
    messages(array, count, |header, _| {
        send_message(descriptor, header, flags)
    })
}

/// `recvmmsg`; `timeout` is when no further message is waited for.
pub fn receive_messages(
    descriptor: u64,
    array: u64,
    count: u64,
    flags: u64,
    timeout: u64,
) -> SysResult {
    number_of(descriptor)?;
    let until = time::timespec(timeout)?.map(|ns| time::monotonic_ns().saturating_add(ns));
    let mut ended = false;
    messages(array, count, |header, at| {
        let late = until.is_some_and(|until| time::monotonic_ns() >= until);
        if at > 0 && (late || ended) {
            return Err(Errno::EAGAIN);
        }
        let more = match flags & MSG_WAITFORONE != 0 && at > 0 {
            true => MSG_DONTWAIT,
            false => 0,
        };
        let received = receive_message(descriptor, header, flags & !MSG_WAITFORONE | more)?;
        // The end of a stream is there for ever.
        ended = received == 0;
        Ok(received)
    })
}
