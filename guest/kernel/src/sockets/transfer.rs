//! What goes through a socket: bytes in and out, of whichever kind it is.

use super::address::{AF_INET6, AF_NETLINK, AF_UNIX, Address};
use super::rights::{self, Outgoing};
use super::table::{SOCK_SEQPACKET, SOCK_STREAM, Socket, State};
use super::{bind, datagrams, hold, outbound, request};
use crate::buffers::{Place, Source, Target};
use crate::errno::{Errno, SysResult};
use crate::{pipes, state, threads, time, user};

pub(super) const MSG_PEEK: u64 = 2;
pub(super) const MSG_TRUNC: u64 = 0x20;
pub(super) const MSG_DONTWAIT: u64 = 0x40;
pub(super) const MSG_WAITALL: u64 = 0x100;
const MSG_OOB: u64 = 1;
const MSG_ERRQUEUE: u64 = 0x2000;

/// When a wait of `ns` nanoseconds is over; `None` for 0, which is for ever.
pub fn deadline(ns: u64) -> Option<u64> {
    (ns != 0).then(|| time::monotonic_ns().saturating_add(ns))
}

/// What was received.
#[derive(Clone, Copy, Debug)]
pub struct Received {
    /// What the call gives.
    pub bytes: u64,
    /// What it takes of its queue, or would, if it was only looked at.
    pub in_queue: u64,
    /// MSG_TRUNC, if a message was cut.
    pub flags: u32,
    /// Who sent it, where each message may be another's.
    pub sender: Option<Address>,
}

/// Receives; descriptors that come with it stay until they are asked for. With MSG_TRUNC a stream of TCP throws
/// so many bytes away instead.
pub fn receive(
    number: u16,
    mut to: Target<'_>,
    flags: u64,
    nonblocking: bool,
) -> Result<Received, Errno> {
    let socket = *state::sockets().get(number);
    let nonblocking = nonblocking || flags & MSG_DONTWAIT != 0;
    if flags & MSG_OOB != 0 {
        return Err(match socket.state {
            State::Stream { .. } | State::Request(_) | State::Outbound(_) => Errno::EINVAL,
            _ => Errno::EOPNOTSUPP,
        });
    }
    if flags & MSG_ERRQUEUE != 0 && socket.domain != AF_UNIX {
        return Err(Errno::EAGAIN);
    }
    match socket.state {
        State::Datagrams(_) => receive_message(number, to, flags, nonblocking),
        State::Stream { .. } if socket.kind == SOCK_SEQPACKET => {
            receive_message(number, to, flags, nonblocking)
        }
        State::Fresh | State::Listening { .. } if socket.kind == SOCK_SEQPACKET => {
            Err(Errno::ENOTCONN)
        }
        _ => receive_bytes(number, &mut to, flags, nonblocking),
    }
}

fn receive_bytes(
    number: u16,
    to: &mut Target<'_>,
    flags: u64,
    nonblocking: bool,
) -> Result<Received, Errno> {
    let wanted = to.total()?;
    let peeks = flags & MSG_PEEK != 0;
    let all = flags & MSG_WAITALL != 0 && !peeks;
    let deadline = deadline(state::sockets().get(number).options.receive_ns);
    let (mut done, mut found) = (0, 0);
    let result = threads::blocking_until(nonblocking, deadline, || {
        if wanted == 0 {
            // Nothing, but not before there is something.
            found = receive_some(number, Place::Own(&mut [0]), 0, MSG_PEEK)?;
            return Ok(0);
        }
        loop {
            let read = to.for_each_from(done, |place, before| {
                receive_some(number, place, before, flags)
            });
            let read = match read {
                // Whether there is anything for a place that there is not comes first.
                Err(Errno::EFAULT) => {
                    let there = receive_some(number, Place::Own(&mut [0]), 0, MSG_PEEK)?;
                    return if there > 0 {
                        Err(Errno::EFAULT)
                    } else {
                        Ok(done)
                    };
                }
                read => read?,
            };
            done += read;
            if !all || read == 0 || done >= wanted {
                return Ok(done);
            }
        }
    });
    let bytes = match result {
        Err(_) if done > 0 => done,
        result => result?,
    };
    let socket = *state::sockets().get(number);
    Ok(Received {
        bytes,
        in_queue: bytes,
        flags: 0,
        sender: match socket.state {
            State::Stream { .. } if bytes + found > 0 => Some(socket.peer),
            _ => None,
        },
    })
}

/// Receives what is there of a stream, of which the same call has had `before` bytes; with MSG_PEEK it looks at what is
/// behind them.
fn receive_some(number: u16, place: Place<'_>, before: u64, flags: u64) -> SysResult {
    let socket = *state::sockets().get(number);
    let peeks = flags & MSG_PEEK != 0;
    let skip = if peeks { before } else { 0 };
    match socket.state {
        State::Request(_) if socket.read_shut => Ok(0),
        State::Request(id) if peeks => state::server().peek(id, skip, place.writable()?),
        State::Request(id) => state::server().read(id, place.writable()?),
        State::Stream { from, .. } => {
            // Then the buffer is not looked at, and need not be there.
            let discards = flags & MSG_TRUNC != 0 && socket.domain != AF_UNIX;
            let room = rights::room(from, skip, place.len());
            let read = match (peeks, place) {
                (true, place) => pipes::peek(from, skip, place.limit(room)),
                (false, place) if discards => pipes::discard(from, place.len()),
                (false, place) => pipes::read(from, place.limit(room)),
            };
            ended(number, &socket, before, read)
        }
        State::Outbound(_) if socket.read_shut => Ok(0),
        // The host looks at what is next, and at nothing behind it.
        State::Outbound(_) if skip > 0 => Ok(0),
        State::Outbound(at) => outbound::receive(number, at.handle, place.writable()?, peeks),
        State::Fresh if socket.error != 0 => Err(told(number)),
        State::Fresh | State::Listening { .. } if socket.domain == AF_UNIX => Err(Errno::EINVAL),
        State::Fresh if socket.read_shut => Ok(0),
        State::Fresh | State::Listening { .. } => Err(Errno::ENOTCONN),
        State::Datagrams(_) | State::Free => Err(Errno::EBADF),
    }
}

/// The error that is to be told, when there is one.
fn told(number: u16) -> Errno {
    let error = state::sockets().take_error(number);
    error.unwrap_or(Errno::EIO)
}

/// What a read of a stream gives at its end, or where the other end has broken it off: of which the next call is told
/// if this one has had `before` bytes.
fn ended(number: u16, socket: &Socket, before: u64, read: SysResult) -> SysResult {
    match read {
        Ok(0) | Err(Errno::EAGAIN) if socket.error != 0 && before > 0 => Ok(0),
        Ok(0) | Err(Errno::EAGAIN) if socket.error != 0 => Err(told(number)),
        Err(Errno::EAGAIN) if socket.read_shut || socket.reset => Ok(0),
        read => read,
    }
}

/// Receives one message; what does not fit is lost.
fn receive_message(
    number: u16,
    mut to: Target<'_>,
    flags: u64,
    nonblocking: bool,
) -> Result<Received, Errno> {
    let room = to.total()?;
    let peeks = flags & MSG_PEEK != 0;
    let socket = *state::sockets().get(number);
    let deadline = deadline(socket.options.receive_ns);
    let mut message = None;
    threads::blocking_until(nonblocking, deadline, || {
        if let Some(error) = state::sockets().take_error(number) {
            return Err(error);
        }
        let socket = *state::sockets().get(number);
        let taken = match socket.state {
            State::Datagrams(mailbox) => datagrams::receive(number, mailbox, &mut to, peeks),
            State::Stream { from, .. } => datagrams::take(from, socket.domain, &mut to, peeks),
            _ => Err(Errno::ENOTCONN),
        };
        let is_over = match socket.state {
            State::Stream { from, .. } => {
                socket.read_shut || pipes::queue(from).is_none_or(|queue| queue.is_ended())
            }
            // Who may not wait is not told of an end.
            _ => socket.read_shut && !nonblocking,
        };
        match taken {
            Ok(taken) => message = Some(taken),
            Err(Errno::EAGAIN) if is_over => {}
            Err(error) => return Err(error),
        }
        Ok(0)
    })?;
    let Some(message) = message else {
        return Ok(Received {
            bytes: 0,
            in_queue: 0,
            flags: 0,
            sender: None,
        });
    };
    let is_cut = message.bytes > room;
    Ok(Received {
        bytes: match flags & MSG_TRUNC {
            0 => message.bytes.min(room),
            _ => message.bytes,
        },
        in_queue: message.in_queue,
        flags: if is_cut { MSG_TRUNC as u32 } else { 0 },
        sender: Some(message.sender),
    })
}

/// `read` and its kin: descriptors that come with it are let go.
pub fn read(number: u16, to: Target<'_>, nonblocking: bool) -> SysResult {
    if to.total()? == 0 {
        return Ok(0);
    }
    receive_alone(number, to, 0, nonblocking).map(|received| received.bytes)
}

fn receive_alone(
    number: u16,
    to: Target<'_>,
    flags: u64,
    nonblocking: bool,
) -> Result<Received, Errno> {
    let received = receive(number, to, flags, nonblocking)?;
    if let (0, Some(queue)) = (flags & MSG_PEEK, state::sockets().get(number).reads()) {
        rights::drop_received(queue);
    }
    Ok(received)
}

/// Sends it, all unless `nonblocking`, with the descriptors that are to travel along; a message to where it is
/// said.
pub fn send(
    number: u16,
    from: Source<'_>,
    flags: u64,
    nonblocking: bool,
    to: Option<Address>,
    rights: &Outgoing,
) -> SysResult {
    let nonblocking = nonblocking || flags & MSG_DONTWAIT != 0;
    let socket = *state::sockets().get(number);
    if flags & MSG_OOB != 0 && socket.kind != SOCK_STREAM {
        return Err(Errno::EOPNOTSUPP);
    }
    if let State::Datagrams(_) = socket.state {
        return datagrams::send(number, from, nonblocking, to, rights);
    }
    may_have_address(&socket, to)?;
    if let State::Stream { to, .. } = socket.state
        && socket.domain == AF_UNIX
        && socket.kind == SOCK_STREAM
        && (socket.write_shut || pipes::queue(to).is_none_or(|queue| queue.is_refused()))
    {
        return Err(Errno::EPIPE);
    }
    let deadline = deadline(socket.options.send_ns);
    match socket.state {
        State::Stream { .. } if socket.kind == SOCK_SEQPACKET => {
            send_packet(number, from, nonblocking, deadline, rights)
        }
        State::Fresh | State::Listening { .. } if socket.kind == SOCK_SEQPACKET => {
            Err(Errno::ENOTCONN)
        }
        State::Request(id) => {
            request::await_it(id)?;
            send_bytes(number, from, nonblocking, deadline, rights)
        }
        _ => send_bytes(number, from, nonblocking, deadline, rights),
    }
}

fn send_packet(
    number: u16,
    from: Source<'_>,
    nonblocking: bool,
    deadline: Option<u64>,
    rights: &Outgoing,
) -> SysResult {
    const MOST: u64 = 212_960;
    if from.total()? > MOST {
        return Err(Errno::EMSGSIZE);
    }
    threads::blocking_until(nonblocking, deadline, || {
        if let Some(error) = state::sockets().take_error(number) {
            return Err(error);
        }
        let socket = *state::sockets().get(number);
        let State::Stream { to, .. } = socket.state else {
            return Err(Errno::ENOTCONN);
        };
        if socket.write_shut || pipes::queue(to).is_none_or(|queue| queue.is_refused()) {
            return Err(Errno::EPIPE);
        }
        from.check()?;
        datagrams::put(to, from, &socket.local, rights)
    })
}

/// Sends all of it, unless `nonblocking`. The descriptors travel with the first of it.
fn send_bytes(
    number: u16,
    from: Source<'_>,
    nonblocking: bool,
    deadline: Option<u64>,
    rights: &Outgoing,
) -> SysResult {
    let total = from.total()?;
    let mut done = 0;
    let result = threads::blocking_until(nonblocking, deadline, || {
        if total == 0 {
            return send_some(number, &[]);
        }
        while done < total {
            let send = || from.for_each_from(done, |bytes| send_some(number, bytes));
            let sent = match state::sockets().get(number).state {
                State::Stream { to, .. } if done == 0 => rights.send_with(to, send),
                _ => send(),
            };
            match sent {
                // Whether it could be sent at all comes first.
                Err(Errno::EFAULT) => return send_some(number, &[]).and(Err(Errno::EFAULT)),
                // Another thread has made it shorter.
                Ok(0) => break,
                sent => done += sent?,
            }
        }
        Ok(done)
    });
    match result {
        Err(_) if done > 0 => Ok(done),
        result => result,
    }
}

/// Sends as much as there is room for; EAGAIN for nothing.
fn send_some(number: u16, bytes: &[u8]) -> SysResult {
    let socket = *state::sockets().get(number);
    let is_local = socket.domain == AF_UNIX;
    if !is_local && socket.error != 0 {
        return Err(told(number));
    }
    match socket.state {
        State::Fresh | State::Listening { .. } if is_local => Err(Errno::ENOTCONN),
        _ if socket.write_shut => Err(Errno::EPIPE),
        State::Request(id) => {
            state::server().write(id, bytes)?;
            Ok(bytes.len() as u64)
        }
        State::Stream { .. } if socket.reset => Err(Errno::EPIPE),
        State::Stream { .. } if bytes.is_empty() => Ok(0),
        State::Stream { to, .. } => match pipes::put(to, bytes) {
            // That TCP says so takes a way there and back.
            Err(Errno::EPIPE) if !is_local => {
                let socket = state::sockets().get(number);
                socket.break_off(Errno::EPIPE);
                let state = socket.state;
                super::mark(|other| other.state == state);
                Ok(bytes.len() as u64)
            }
            put => put,
        },
        State::Outbound(at) => outbound::send(number, at.handle, bytes),
        State::Fresh | State::Listening { .. } => Err(Errno::EPIPE),
        State::Datagrams(_) | State::Free => Err(Errno::EBADF),
    }
}

/// The receiver that a call names, as far as the socket has use for one.
pub(super) fn receiver(number: u16, given: Option<&[u8]>) -> Result<Option<Address>, Errno> {
    let socket = *state::sockets().get(number);
    if let (State::Datagrams(_), true) = (socket.state, socket.domain != AF_UNIX) {
        // Whether it comes to anything or not.
        bind::bind_to_any(number)?;
    }
    let Some(given) = given else {
        return Ok(None);
    };
    match (socket.domain, socket.state) {
        (AF_UNIX, _) if socket.kind == SOCK_SEQPACKET => Ok(None),
        (AF_UNIX | AF_NETLINK, State::Datagrams(_)) => Address::decode(given).map(Some),
        (AF_UNIX, _) => Ok(Some(Address::Unspecified)),
        (AF_INET6, State::Datagrams(_)) if given.len() >= 2 => match Address::decode(given)? {
            Address::Unix(_) | Address::Netlink(_) => Err(Errno::EINVAL),
            address => Ok(Some(address)),
        },
        (domain, State::Datagrams(_)) => Address::decode_ip(domain, given).map(Some),
        _ => Ok(None),
    }
}

/// A connection goes to its other end alone; those of IP and of packets take no notice of an address.
fn may_have_address(socket: &Socket, to: Option<Address>) -> Result<(), Errno> {
    match (socket.domain, socket.state) {
        (AF_UNIX, _) if to.is_none() => Ok(()),
        (AF_UNIX, State::Stream { .. }) => Err(Errno::EISCONN),
        (AF_UNIX, _) => Err(Errno::EOPNOTSUPP),
        _ => Ok(()),
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
    user::range(bytes, count)?;
    let (number, held) = hold(descriptor)?;
    let given = match address {
        0 => None,
        address => Some(Address::look(address, address_bytes)?),
    };
    let to = receiver(number, given)?;
    let from = Source::piece(bytes, count);
    let nonblocking = held.open().nonblocking;
    send(number, from, flags, nonblocking, to, &rights::NONE)
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
    user::range(bytes, count)?;
    let (number, held) = hold(descriptor)?;
    let to = Target::piece(bytes, count);
    let received = receive_alone(number, to, flags, held.open().nonblocking)?;
    if address != 0 {
        put_sender(number, &received, address, address_bytes)?;
    }
    Ok(received.bytes)
}

/// The sender's address: a connection says it only where it is a name of its own.
pub(super) fn put_sender(
    number: u16,
    received: &Received,
    address: u64,
    bytes: u64,
) -> Result<(), Errno> {
    let socket = *state::sockets().get(number);
    match received.sender {
        Some(Address::Unix(name)) if name.as_bytes().is_empty() => user::write(bytes, 0u32),
        Some(Address::Inet(..)) if !matches!(socket.state, State::Datagrams(_)) => {
            user::write(bytes, 0u32)
        }
        None | Some(Address::Unspecified) => user::write(bytes, 0u32),
        Some(sender) => sender.write(socket.domain, address, bytes),
    }
}
