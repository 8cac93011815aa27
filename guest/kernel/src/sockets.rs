//! Stream sockets: between two ends within the guest; from the host, whose request reads as a connection
//! to the listener on `$PORT`; and out of the guest, to what the manifest names. Beside them the
//! datagrams by which programs resolve names.
//!
//! ```text
//!  [fresh] ──listen──▶ [listening] ──accept──▶ [request], or a [stream] that waited there
//!     ├──connect──▶ [stream], whose other end waits at the listener
//!     └──connect to elsewhere──▶ [outbound]
//! ```
//! What each file below is for stands at its top.

pub mod address;
pub mod dns;
pub mod options;
pub mod outbound;
pub mod request;
pub mod rights;
pub mod table;
pub mod transfer;

use crate::errno::{Errno, SysResult};
use crate::files::{Object, Open, descriptors, open};
use crate::{host, pipes, state, threads, user};
use address::{AF_INET, AF_INET6, AF_UNIX, Address, Ip, Name};
pub use request::Server;
use table::{Socket, State};

const SOCK_STREAM: u64 = 1;
const SOCK_DGRAM: u64 = 2;
const SOCK_NONBLOCK: u64 = 0o4000;
const KIND_MASK: u64 = 0xf;
/// Most connections that wait at a listener.
const MAX_BACKLOG: u64 = 64;
/// The port of a caller, as the program sees it; one that comes while others are there has a higher one.
const PEER_PORT: u16 = 40_001;

/// The number of the socket that a descriptor stands for.
fn number_of(descriptor: u64) -> Result<u16, Errno> {
    match state::files().get(descriptor)?.object {
        Object::Socket(number) => Ok(number),
        _ => Err(Errno::ENOTSOCK),
    }
}

/// The same, with what is common to all objects.
fn open_of(descriptor: u64) -> Result<(u16, Open), Errno> {
    Ok((number_of(descriptor)?, state::files().get(descriptor)?))
}

/// Marks an edge on every socket that `which` holds for.
fn mark(which: impl Fn(&Socket) -> bool) {
    state::files().edge(|object| match object {
        Object::Socket(number) => which(state::sockets().get(number)),
        _ => false,
    });
}

/// A descriptor for a new socket.
fn open(socket: Socket, flags: u64) -> SysResult {
    let number = state::sockets().add(socket)?;
    let opened = state::files().open(Object::Socket(number), flags & SOCK_NONBLOCK);
    if opened.is_err() {
        state::sockets().remove(number);
    }
    opened
}

/// The socket of the connection that a program has from the start, as under inetd.
pub fn expected(id: u32) -> Result<u16, Errno> {
    let address = |port| Address::Inet(Ip::LOOPBACK_V4, port);
    state::sockets().add(Socket {
        state: State::Request(id),
        local: address(host::boot().port as u16),
        peer: address(PEER_PORT),
        ..Socket::new(AF_INET)
    })
}

/// `socket`
pub fn socket(domain: u64, kind: u64, protocol: u64) -> SysResult {
    const TCP: u64 = 6;
    const UDP: u64 = 17;
    let domain = domain as u32 as u16;
    match (domain, kind & KIND_MASK, protocol) {
        (AF_INET | AF_INET6, SOCK_STREAM, 0 | TCP) | (AF_UNIX, SOCK_STREAM, 0) => {
            open(Socket::new(domain), kind)
        }
        (AF_INET | AF_INET6, SOCK_DGRAM, 0 | UDP) => open_datagrams(domain, kind),
        (AF_INET | AF_INET6 | AF_UNIX, SOCK_STREAM, _) => Err(Errno::EPROTONOSUPPORT),
        (AF_INET | AF_INET6 | AF_UNIX, ..) => Err(Errno::EACCES),
        _ => Err(Errno::EAFNOSUPPORT),
    }
}

fn open_datagrams(domain: u16, kind: u64) -> SysResult {
    let socket = outbound::datagrams(domain)?;
    open(socket, kind).inspect_err(|_| {
        if let State::Datagrams { queries } = socket.state {
            pipes::close(queries, queries);
        }
    })
}

/// `socketpair`
pub fn pair(domain: u64, kind: u64, protocol: u64, to: u64) -> SysResult {
    // SOCK_CLOEXEC, SOCK_NONBLOCK
    const FLAGS: u64 = 0o2_004_000;
    if kind as u32 as u64 & !(FLAGS | KIND_MASK) != 0 {
        return Err(Errno::EINVAL);
    }
    match domain as u32 as u16 {
        AF_UNIX if protocol as u32 > u32::from(AF_UNIX) => return Err(Errno::EPROTONOSUPPORT),
        AF_UNIX => {}
        AF_INET | AF_INET6 => return Err(Errno::EOPNOTSUPP),
        _ => return Err(Errno::EAFNOSUPPORT),
    }
    user::slice_mut(to, 8)?;
    let (there, back) = new_queues()?;
    let end = |from, to| Socket {
        state: State::Stream { from, to },
        peer: Address::Unix(Name::NONE),
        ..Socket::new(AF_UNIX)
    };
    let first = match open(end(back, there), kind) {
        Ok(first) => first,
        Err(error) => {
            pipes::close(back, there);
            pipes::close(there, back);
            return Err(error);
        }
    };
    let second = match open(end(there, back), kind) {
        Ok(second) => second,
        Err(error) => {
            pipes::close(there, back);
            descriptors::close(first)?;
            return Err(error);
        }
    };
    user::write(to, [first as u32, second as u32])?;
    Ok(0)
}

fn new_queues() -> Result<(u8, u8), Errno> {
    let there = pipes::new_queue(pipes::STREAM_BYTES)?;
    match pipes::new_queue(pipes::STREAM_BYTES) {
        Ok(back) => Ok((there, back)),
        Err(error) => {
            pipes::close(there, there);
            Err(error)
        }
    }
}

/// `bind`
pub fn bind(descriptor: u64, address: u64, bytes: u64) -> SysResult {
    let number = number_of(descriptor)?;
    let address = Address::read(address, bytes)?;
    let socket = *state::sockets().get(number);
    let is_datagrams = matches!(socket.state, State::Datagrams { .. });
    if !(socket.state == State::Fresh || is_datagrams) || socket.is_bound() {
        return Err(Errno::EINVAL);
    }
    let (local, file) = match (address, socket.domain) {
        (Address::Inet(ip, port), AF_INET | AF_INET6) => (bind_ip(&socket, ip, port)?, None),
        (Address::Unix(name), AF_UNIX) => bind_name(name)?,
        _ => return Err(Errno::EAFNOSUPPORT),
    };
    let socket = state::sockets().get(number);
    (socket.local, socket.file) = (local, file);
    Ok(0)
}

fn bind_ip(socket: &Socket, ip: Ip, port: u16) -> Result<Address, Errno> {
    if socket.domain == AF_INET && ip.as_v4().is_none() {
        return Err(Errno::EAFNOSUPPORT);
    }
    if !ip.is_any() && !ip.is_own() {
        return Err(Errno::EADDRNOTAVAIL);
    }
    let port = match port {
        0 => state::sockets().free_port()?,
        port => port,
    };
    match state::sockets().is_taken(socket, ip, port) {
        true => Err(Errno::EADDRINUSE),
        false => Ok(Address::Inet(ip, port)),
    }
}

fn bind_name(name: Name) -> Result<(Address, Option<u16>), Errno> {
    if name.is_path() {
        let file = open::make_socket(name.as_bytes())?;
        return Ok((Address::Unix(name), Some(file)));
    }
    let has = |name: Name| {
        let mut all = state::sockets().all();
        all.any(|(_, other)| other.state != State::Free && other.local == Address::Unix(name))
    };
    if name != Name::NONE {
        return match has(name) {
            true => Err(Errno::EADDRINUSE),
            false => Ok((Address::Unix(name), None)),
        };
    }
    // Linux gives a name of five hexadecimal digits to one that asks for any.
    let digit = |n: u32, place: u32| b"0123456789abcdef"[(n >> (4 * place) & 15) as usize];
    (1..0x1000u32)
        .map(|n| Name::new(&[0, b'0', b'0', digit(n, 2), digit(n, 1), digit(n, 0)]))
        .find(|name| !has(*name))
        .map(|name| (Address::Unix(name), None))
        .ok_or(Errno::EADDRINUSE)
}

/// `listen`
pub fn listen(descriptor: u64, backlog: u64) -> SysResult {
    let number = number_of(descriptor)?;
    let socket = *state::sockets().get(number);
    let backlog = (u64::from(backlog as u32).min(MAX_BACKLOG) as u16).max(1);
    match socket.state {
        State::Listening { .. } => {}
        State::Fresh => match socket.local {
            Address::Unix(Name::NONE) => return Err(Errno::EINVAL),
            Address::Inet(ip, 0) => {
                let port = state::sockets().free_port()?;
                state::sockets().get(number).local = Address::Inet(ip, port);
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
    let (number, opened) = open_of(descriptor)?;
    let listener = *state::sockets().get(number);
    if !matches!(listener.state, State::Listening { .. }) {
        return Err(Errno::EINVAL);
    }
    let deadline = transfer::deadline(listener.options.receive_ns);
    threads::blocking_until(opened.nonblocking, deadline, || match is_awaited(number) {
        true => Ok(0),
        false => Err(Errno::EAGAIN),
    })?;
    let (accepted, peer) = match state::sockets().first_waiting(number) {
        Some(waiting) => {
            let socket = state::sockets().get(waiting);
            let opened = state::files().open(Object::Socket(waiting), flags & SOCK_NONBLOCK)?;
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
    peer.write(listener.domain, address, bytes)?;
    Ok(accepted)
}

/// Whether something waits to be accepted.
fn is_awaited(listener: u16) -> bool {
    if state::sockets().first_waiting(listener).is_some() {
        return true;
    }
    let socket = *state::sockets().get(listener);
    if !serves(&socket) {
        return false;
    }
    state::threads().await_request();
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

/// `connect`: to a listener within the guest.
pub fn connect(descriptor: u64, address: u64, bytes: u64) -> SysResult {
    let (number, opened) = open_of(descriptor)?;
    let socket = *state::sockets().get(number);
    let to = Address::read(address, bytes)?;
    match (socket.state, to) {
        (State::Fresh, Address::Unspecified) => return Ok(0),
        (State::Fresh, _) => {}
        (State::Datagrams { .. }, to) => return connect_datagrams(number, to),
        (State::Outbound(outbound), _) => return outbound::connect_again(number, outbound),
        _ => return Err(Errno::EISCONN),
    }
    let (to, file) = match (to, socket.domain) {
        (Address::Inet(ip, _), AF_INET) if ip.as_v4().is_none() => return Err(Errno::EAFNOSUPPORT),
        (Address::Inet(ip, port), AF_INET | AF_INET6) => {
            let ip = match ip {
                Ip::ANY_V4 => Ip::LOOPBACK_V4,
                Ip::ANY_V6 => Ip::LOOPBACK_V6,
                ip => ip,
            };
            if !ip.is_own() {
                let deadline = transfer::deadline(socket.options.send_ns);
                return outbound::connect(number, ip, port, opened.nonblocking, deadline);
            }
            (Address::Inet(ip, port), None)
        }
        (Address::Unix(name), AF_UNIX) => {
            let file = match name.is_path() {
                true => Some(open::find_socket(name.as_bytes())?),
                false => None,
            };
            (Address::Unix(name), file)
        }
        _ => return Err(Errno::EAFNOSUPPORT),
    };
    let deadline = transfer::deadline(socket.options.send_ns);
    threads::blocking_until(opened.nonblocking, deadline, || {
        let listener = state::sockets().listener(&to, file);
        join(number, listener.ok_or(Errno::ECONNREFUSED)?, &to)
    })
}

/// Datagrams have one place to go to.
fn connect_datagrams(number: u16, to: Address) -> SysResult {
    let socket = state::sockets().get(number);
    match to {
        to if outbound::is_name_server(&to) => socket.peer = to,
        Address::Unspecified => socket.peer = Address::Unspecified,
        _ => return Err(Errno::EACCES),
    }
    Ok(0)
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
    let local = match (state::sockets().get(number).local, *to) {
        (Address::Inet(own, port), Address::Inet(ip, _)) => {
            let own = match ip {
                _ if !own.is_any() => own,
                Ip::LOOPBACK_V6 => ip,
                _ => Ip::LOOPBACK_V4,
            };
            let port = match port {
                0 => state::sockets().free_port()?,
                port => port,
            };
            Address::Inet(own, port)
        }
        (local, _) => local,
    };
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
        options: at.options,
        ..Socket::new(at.domain)
    };
    if let Err(error) = state::sockets().add(accepted) {
        pipes::close(there, back);
        pipes::close(back, there);
        return Err(error);
    }
    let socket = state::sockets().get(number);
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

/// `getsockname` and, with `peer`, `getpeername`
pub fn name(descriptor: u64, address: u64, bytes: u64, peer: bool) -> SysResult {
    let socket = *state::sockets().get(number_of(descriptor)?);
    let connected = match socket.state {
        State::Stream { .. } | State::Request(_) => true,
        State::Outbound(outbound) => !outbound.connecting,
        State::Datagrams { .. } => socket.peer != Address::Unspecified,
        _ => false,
    };
    let shown = match peer {
        true if !connected => return Err(Errno::ENOTCONN),
        true => socket.peer,
        false => socket.local,
    };
    shown.write(socket.domain, address, bytes)?;
    Ok(0)
}

/// `shutdown`
pub fn shutdown(descriptor: u64, how: u64) -> SysResult {
    const READ: u64 = 0;
    const WRITE: u64 = 1;
    const BOTH: u64 = 2;
    let number = number_of(descriptor)?;
    let how = u64::from(how as u32);
    if how > BOTH {
        return Err(Errno::EINVAL);
    }
    let socket = state::sockets().get(number);
    let state = socket.state;
    let connected = matches!(
        state,
        State::Stream { .. } | State::Request(_) | State::Outbound(_)
    );
    if !connected && socket.domain != AF_UNIX {
        return Err(Errno::ENOTCONN);
    }
    let stops_writing = how != READ && !socket.write_shut;
    socket.read_shut |= how != WRITE;
    socket.write_shut |= how != READ;
    if let (State::Stream { from, .. }, true) = (state, stops_writing) {
        socket.state = State::Stream {
            from,
            to: pipes::NONE,
        };
    }
    let is_local = socket.domain == AF_UNIX;
    match state {
        // The end of the sending half ends a response that goes on until the close.
        State::Request(id) if stops_writing => state::server().close(id),
        State::Outbound(outbound) if stops_writing => outbound::shut(outbound.handle),
        State::Stream { from, to } => {
            if stops_writing {
                pipes::close(pipes::NONE, to);
            }
            if how != WRITE && is_local {
                // On TCP the other end is not told.
                pipes::refuse(from);
            }
        }
        _ => {}
    }
    state::files().edge(|object| object == Object::Socket(number));
    Ok(0)
}

/// The last descriptor was closed.
pub fn close(number: u16) {
    // Those that wait at a listener go with it.
    if matches!(state::sockets().get(number).state, State::Listening { .. }) {
        while let Some(waiting) = state::sockets().first_waiting(number) {
            let socket = state::sockets().remove(waiting);
            if let State::Stream { from, to } = socket.state {
                pipes::close(from, to);
            }
        }
    }
    let socket = state::sockets().remove(number);
    match socket.state {
        State::Request(id) => state::server().close(id),
        State::Stream { from, to } => pipes::close(from, to),
        State::Outbound(outbound) => outbound::close(outbound.handle),
        State::Datagrams { queries } => pipes::close(queries, queries),
        _ => {}
    }
    if let Some(file) = socket.file {
        state::temporary().closed(file);
    }
}

/// Bytes that a read of a socket would find.
pub fn readable_bytes(number: u16) -> u64 {
    match state::sockets().get(number).state {
        State::Request(id) => state::server().readable_bytes(id),
        State::Stream { from, .. } => pipes::queue(from).map_or(0, |queue| queue.used()),
        // The first datagram: glibc makes room for so much.
        State::Datagrams { queries } => outbound::answer(queries, &mut [], true).unwrap_or(0),
        _ => 0,
    }
}

/// What a socket is ready for, as poll says it.
pub fn ready(number: u16) -> u32 {
    use crate::poll::{POLLERR, POLLHUP, POLLIN, POLLOUT, POLLRDHUP};
    let socket = *state::sockets().get(number);
    let when = |holds: bool, events: u32| if holds { events } else { 0 };
    match socket.state {
        State::Listening { .. } => when(is_awaited(number), POLLIN),
        State::Request(id) => {
            let server = state::server();
            if server.is_expected(id) {
                return POLLOUT;
            }
            let ended = socket.read_shut || server.is_ended(id);
            when(ended || server.is_readable(id), POLLIN)
                | POLLOUT
                | when(ended, POLLRDHUP)
                | when(ended && socket.write_shut, POLLHUP)
        }
        State::Stream { from, to } => {
            let (input, output) = (pipes::queue(from), pipes::queue(to));
            let (readable, mut ended) =
                input.map_or((false, true), |queue| (queue.used() > 0, queue.is_ended()));
            ended |= socket.read_shut;
            let is_local = socket.domain == AF_UNIX;
            let (writable, refused) = output.map_or((true, true), |queue| {
                (queue.is_writable(), is_local && queue.is_refused())
            });
            when(readable || ended, POLLIN)
                | when(writable, POLLOUT)
                | when(ended, POLLRDHUP)
                | when(ended && refused, POLLHUP)
        }
        State::Outbound(outbound) => {
            let is = |half: u8| outbound.ready & half != 0;
            let ended = is(outbound::ENDED) || socket.read_shut;
            when(is(outbound::READ) || ended, POLLIN)
                | when(is(outbound::WRITE), POLLOUT)
                | when(ended, POLLRDHUP)
                | when(ended && socket.write_shut, POLLHUP)
                | when(is(outbound::FAILED), POLLERR)
        }
        State::Datagrams { queries } => {
            let answered = outbound::answer(queries, &mut [], true).is_ok();
            when(answered, POLLIN) | POLLOUT
        }
        State::Fresh => POLLOUT | POLLHUP,
        State::Free => 0,
    }
}
