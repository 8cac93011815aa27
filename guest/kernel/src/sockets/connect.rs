//! Connections within the guest: listeners, who connects to them, and what they accept; requests of the host
//! among it.

use super::address::{AF_UNIX, Address, Ip, Name};
use super::table::{Connecting, Socket, State};
use super::{bind, datagrams, hold, new_queues, number_of, open, outbound, transfer};
use crate::errno::{Errno, SysResult};
use crate::files::{O_CLOEXEC, O_NONBLOCK, O_RDWR, Object, descriptors, open as files};
use crate::{host, pipes, state, threads};

/// Most connections that wait at a listener.
const MAX_BACKLOG: u64 = 64;
/// The port of a caller, as the program sees it; one that comes while others are there has a higher one.
pub(super) const PEER_PORT: u16 = 40_001;

/// `listen`
pub fn listen(descriptor: u64, backlog: u64) -> SysResult {
    let number = number_of(descriptor)?;
    let socket = *state::sockets().get(number);
    let backlog = (u64::from(backlog as u32).min(MAX_BACKLOG) as u16).max(1);
    if socket.connecting != Connecting::No {
        return Err(Errno::EINVAL);
    }
    match socket.state {
        State::Listening { .. } => {}
        State::Fresh => match socket.local {
            Address::Unix(Name::NONE) => return Err(Errno::EINVAL),
            Address::Inet(_, 0) => {
                bind::bind_to_any(number)?;
            }
            Address::Inet(ip, port) => {
                // Two may be bound to an address with SO_REUSEADDR, but one alone listens.
                let listens = |other: &Socket| matches!(other.state, State::Listening { .. });
                let shared =
                    |other: &Socket| socket.options.reuse_port() && other.options.reuse_port();
                let mut all = state::sockets().all();
                if all.any(|(_, other)| {
                    listens(other) && other.local == Address::Inet(ip, port) && !shared(other)
                }) {
                    return Err(Errno::EADDRINUSE);
                }
            }
            _ => {}
        },
        State::Datagrams(_) => return Err(Errno::EOPNOTSUPP),
        _ => return Err(Errno::EINVAL),
    }
    state::sockets().get(number).state = State::Listening { backlog };
    Ok(0)
}

/// Whether the requests come to this listener.
fn serves(socket: &Socket) -> bool {
    let serving = state::sockets().serving_port(host::boot().port as u16);
    matches!(socket.local, Address::Inet(_, port) if serving == Some(port))
}

/// `accept` and `accept4`
pub fn accept(descriptor: u64, address: u64, bytes: u64, flags: u64) -> SysResult {
    state::files().get(descriptor)?;
    if flags as u32 as u64 & !(O_NONBLOCK | O_CLOEXEC) != 0 {
        return Err(Errno::EINVAL);
    }
    let (number, held) = hold(descriptor)?;
    let nonblocking = held.open().nonblocking;
    let listener = *state::sockets().get(number);
    let deadline = transfer::deadline(listener.options.receive_ns);
    threads::blocking_until(nonblocking, deadline, || {
        let socket = *state::sockets().get(number);
        match socket.state {
            State::Listening { .. } if !socket.read_shut || nonblocking => {}
            State::Datagrams(_) => return Err(Errno::EOPNOTSUPP),
            _ => return Err(Errno::EINVAL),
        }
        match is_awaited(number) {
            true => Ok(0),
            false => Err(Errno::EAGAIN),
        }
    })?;
    let (accepted, peer) = match state::sockets().first_waiting(number) {
        Some(waiting) => {
            let socket = state::sockets().get(waiting);
            let opened = state::files().open(Object::Socket(waiting), flags | O_RDWR)?;
            socket.waits_at = None;
            // Who waits for room at the listener has some.
            state::threads().changed();
            (opened, socket.peer)
        }
        None => {
            let request = Socket {
                // Set when the descriptor is there.
                state: State::Fresh,
                local: Address::Inet(caller_of(&listener), port_of(&listener)),
                options: listener.options,
                ..Socket::new(listener.domain)
            };
            let descriptor = open(request, flags)?;
            let number = number_of(descriptor)?;
            let (id, place) = state::server().accept();
            let peer = Address::Inet(caller_of(&listener), PEER_PORT + u16::from(place));
            let socket = state::sockets().get(number);
            (socket.state, socket.peer) = (State::Request(id), peer);
            (descriptor, peer)
        }
    };
    if address != 0
        && let Err(error) = peer.write(listener.domain, address, bytes)
    {
        descriptors::close(accepted)?;
        return Err(error);
    }
    Ok(accepted)
}

/// Whether something waits to be accepted.
pub(super) fn is_awaited(listener: u16) -> bool {
    if state::sockets().first_waiting(listener).is_some() {
        return true;
    }
    let socket = *state::sockets().get(listener);
    if !serves(&socket) {
        return false;
    }
    state::threads().await_request();
    if matches!(socket.local, Address::Inet(_, port) if port == host::boot().port as u16) {
        state::server().seek();
    }
    state::server().is_pending()
}

/// The address from which a request comes, as a listener sees it.
fn caller_of(listener: &Socket) -> Ip {
    match listener.local {
        Address::Inet(Ip::LOOPBACK_V6, _) => Ip::LOOPBACK_V6,
        Address::Inet(Ip::ANY_V6, _) if listener.options.v6_only() => Ip::LOOPBACK_V6,
        _ => Ip::LOOPBACK_V4,
    }
}

fn port_of(listener: &Socket) -> u16 {
    match listener.local {
        Address::Inet(_, port) => port,
        _ => 0,
    }
}

/// The listener went: so do those that wait at it.
pub(super) fn close_waiting(listener: u16) {
    while let Some(waiting) = state::sockets().first_waiting(listener) {
        let socket = state::sockets().remove(waiting);
        break_off(&socket);
    }
}

/// `connect`
pub fn connect(descriptor: u64, address: u64, bytes: u64) -> SysResult {
    let (number, held) = hold(descriptor)?;
    let nonblocking = held.open().nonblocking;
    let socket = *state::sockets().get(number);
    let given = Address::look(address, bytes)?;
    match socket.state {
        State::Datagrams(mailbox) => {
            return datagrams::connect(number, mailbox, given);
        }
        State::Outbound(outbound) => return outbound::connect_again(number, outbound),
        _ if socket.domain == AF_UNIX => {
            return connect_local(number, Address::decode(given)?, nonblocking);
        }
        _ => {}
    }
    match given.first_chunk::<2>() {
        None => return Err(Errno::EINVAL),
        Some([0, 0]) => return disconnect(number),
        Some(_) => {}
    }
    match socket.connecting {
        Connecting::No => {}
        // How the first one went.
        Connecting::Untold => return finish(number),
        Connecting::Broken => return Err(Errno::EINVAL),
    }
    if socket.state != State::Fresh {
        return Err(Errno::EISCONN);
    }
    let Address::Inet(ip, port) = Address::decode_ip(socket.domain, given)? else {
        return Err(Errno::EAFNOSUPPORT);
    };
    let ip = match ip {
        Ip::ANY_V4 => Ip::LOOPBACK_V4,
        Ip::ANY_V6 => Ip::LOOPBACK_V6,
        ip => ip,
    };
    match ip.is_own() {
        true => connect_ip(number, &Address::Inet(ip, port), nonblocking),
        false => {
            let deadline = transfer::deadline(socket.options.send_ns);
            outbound::connect(number, ip, port, nonblocking, deadline)
        }
    }
}

/// How a connect that did not wait went; the next one is told something else.
fn finish(number: u16) -> SysResult {
    let socket = state::sockets().get(number);
    socket.connecting = Connecting::No;
    if socket.state != State::Fresh {
        return Ok(0);
    }
    (socket.read_shut, socket.write_shut) = (false, false);
    if let (Address::Inet(_, port), Address::Inet(own, _)) =
        (socket.local, Socket::new(socket.domain).local)
    {
        socket.local = Address::Inet(own, port);
    }
    let error = state::sockets().take_error(number);
    Err(error.unwrap_or(Errno::ECONNABORTED))
}

/// To a local listener.
fn connect_local(number: u16, to: Address, nonblocking: bool) -> SysResult {
    let socket = *state::sockets().get(number);
    let name = match to {
        Address::Unix(Name::NONE) => return Err(Errno::EINVAL),
        Address::Unix(name) => name,
        _ => return Err(Errno::EINVAL),
    };
    let deadline = transfer::deadline(socket.options.send_ns);
    threads::blocking_until(nonblocking, deadline, || {
        // While it waited another listener may have come to the name, and this socket to a connection.
        let file = match name.is_path() {
            true => Some(files::find_socket(name.as_bytes())?),
            false => None,
        };
        let listener = state::sockets().listener(&to, file, socket.kind);
        let listener = listener.ok_or_else(|| refusal(file, socket.kind))?;
        if state::sockets().get(listener).read_shut {
            return Err(Errno::ECONNREFUSED);
        }
        match state::sockets().get(number).state {
            State::Fresh => join(number, listener, &to),
            State::Stream { .. } => Err(Errno::EISCONN),
            _ => Err(Errno::EINVAL),
        }
    })
}

/// Why nobody listens at a file of a local socket.
fn refusal(file: Option<u16>, kind: u8) -> Errno {
    let bound = |socket: &Socket| file.is_some() && socket.file == file && socket.kind != kind;
    match state::sockets().all().any(|(_, socket)| bound(socket)) {
        true => Errno::EPROTOTYPE,
        false => Errno::ECONNREFUSED,
    }
}

/// To a listener of TCP. As on Linux one that must not wait is told later, though it is there at once.
fn connect_ip(number: u16, to: &Address, nonblocking: bool) -> SysResult {
    let deadline = transfer::deadline(state::sockets().get(number).options.send_ns);
    let before = state::sockets().get(number).local;
    bind::bind_towards(number, to)?;
    let joined = threads::blocking_until(nonblocking, deadline, || {
        let socket = *state::sockets().get(number);
        if socket.state != State::Fresh {
            return Err(Errno::EISCONN);
        }
        let listener = state::sockets().listener(to, None, socket.kind);
        join(number, listener.ok_or(Errno::ECONNREFUSED)?, to)
    });
    let socket = state::sockets().get(number);
    match joined {
        Err(Errno::ECONNREFUSED) if nonblocking => {
            socket.error = Errno::ECONNREFUSED.0 as u8;
            socket.connecting = Connecting::Untold;
            socket.lose_port();
            (socket.read_shut, socket.write_shut) = (true, true);
            state::files().edge(|object| object == Object::Socket(number));
            Err(Errno::EINPROGRESS)
        }
        Ok(_) if nonblocking => {
            socket.connecting = Connecting::Untold;
            Err(Errno::EINPROGRESS)
        }
        Ok(_) => Ok(0),
        Err(Errno::EISCONN) => Err(Errno::EISCONN),
        Err(error) => {
            socket.local = before;
            Err(error)
        }
    }
}

/// `connect` to no address: the connection is broken off, and there may be another.
fn disconnect(number: u16) -> SysResult {
    let socket = *state::sockets().get(number);
    if let State::Request(_) = socket.state {
        return Err(Errno::EISCONN);
    }
    match socket.state {
        State::Listening { .. } => close_waiting(number),
        State::Stream { .. } => break_off(&socket),
        _ => {}
    }
    let mut new = Socket {
        options: socket.options,
        ..Socket::new(socket.domain)
    };
    if let (Address::Inet(own, _), Address::Inet(_, port)) = (new.local, socket.local) {
        new.local = Address::Inet(own, port);
        new.lose_port();
    }
    *state::sockets().get(number) = new;
    Ok(0)
}

/// Ends a connection in such a way that the other end is told that it was not finished.
fn break_off(socket: &Socket) {
    if let Some(other) = socket.other {
        state::sockets().get(other).break_off(Errno::ECONNRESET);
    }
    if let State::Stream { from, to } = socket.state {
        pipes::close(from, to);
    }
}

/// Connects a socket to a listener, where the other end waits to be accepted; EAGAIN while too many do.
fn join(number: u16, listener: u16, to: &Address) -> SysResult {
    let at = *state::sockets().get(listener);
    let State::Listening { backlog } = at.state else {
        return Err(Errno::ECONNREFUSED);
    };
    if state::sockets().waiting(listener) >= usize::from(backlog) {
        return Err(Errno::EAGAIN);
    }
    let local = state::sockets().get(number).local;
    let (there, back) = new_queues()?;
    let order = state::sockets().next_order();
    let accepted = Socket {
        state: State::Stream {
            from: there,
            to: back,
        },
        local: match at.local {
            Address::Unix(name) => Address::Unix(name),
            _ => *to,
        },
        peer: local,
        waits_at: Some((listener, order)),
        other: Some(number),
        options: at.options,
        kind: at.kind,
        ..Socket::new(at.domain)
    };
    let other = state::sockets().add(accepted).inspect_err(|_| {
        pipes::close(there, back);
        pipes::close(back, there);
    })?;
    let socket = state::sockets().get(number);
    socket.other = Some(other);
    socket.state = State::Stream {
        from: back,
        to: there,
    };
    socket.local = local;
    socket.peer = accepted.local;
    state::files()
        .edge(|object| object == Object::Socket(listener) || object == Object::Socket(number));
    Ok(0)
}
