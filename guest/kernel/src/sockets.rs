//! Sockets: connections and datagrams within the guest; connections from the host, whose request reads as one
//! to the listener on `$PORT`; and connections out of the guest, to what the manifest names.
//!
//! ```text
//!  [fresh] ──listen──▶ [listening] ──accept──▶ [request], or a [stream] that waited there
//!     ├──connect──▶ [stream], whose other end waits at the listener
//!     └──connect to elsewhere──▶ [outbound]
//!  [datagrams], from the start; those of netlink go to the library OS and back
//! ```
//! What each file below is for stands at its top.

pub mod address;
pub mod bind;
pub mod connect;
pub mod datagrams;
pub mod dns;
pub mod interfaces;
pub mod messages;
pub mod netlink;
pub mod options;
pub mod outbound;
pub mod ready;
pub mod request;
pub mod rights;
pub mod table;
pub mod transfer;

use crate::errno::{Errno, SysResult};
use crate::files::held::Held;
use crate::files::{O_CLOEXEC, O_NONBLOCK, O_RDWR, Object, Open, descriptors};
use crate::{host, pipes, state, user};
use address::{AF_INET, AF_INET6, AF_NETLINK, AF_UNIX, Address, Ip, Name};
pub use request::Server;
use table::{Connecting, Mailbox, SOCK_DGRAM, SOCK_SEQPACKET, SOCK_STREAM, Socket, State};

const SOCK_RAW: u8 = 3;
const KIND_MASK: u64 = 0xf;

/// The number of the socket that a descriptor stands for. A call that may wait asks `hold` for it.
fn number_of(descriptor: u64) -> Result<u16, Errno> {
    number_in(state::files().get(descriptor)?)
}

fn number_in(open: Open) -> Result<u16, Errno> {
    match open.object {
        _ if open.is_name() => Err(Errno::EBADF),
        Object::Socket(number) => Ok(number),
        _ => Err(Errno::ENOTSOCK),
    }
}

/// The same, with what keeps the number that socket's although the descriptor may be closed.
fn hold(descriptor: u64) -> Result<(u16, Held), Errno> {
    let held = Held::of(descriptor)?;
    Ok((number_in(held.open())?, held))
}

/// Whether what is sent at once by a socket is received at once.
pub fn keeps_borders(descriptor: u64) -> bool {
    number_of(descriptor).is_ok_and(|number| state::sockets().get(number).keeps_borders())
}

/// Marks an edge on every socket that `which` holds for.
fn mark(which: impl Fn(&Socket) -> bool) {
    state::files().edge(|object| match object {
        Object::Socket(number) => which(state::sockets().get(number)),
        _ => false,
    });
}

/// A descriptor for a new socket; one that cannot have one is closed.
fn open(socket: Socket, flags: u64) -> SysResult {
    let flags = O_RDWR | flags & (O_NONBLOCK | O_CLOEXEC);
    let number = match state::sockets().add(socket) {
        Ok(number) => number,
        Err(error) => {
            close_socket(&socket);
            return Err(error);
        }
    };
    let opened = state::files().open(Object::Socket(number), flags);
    if opened.is_err() {
        close(number);
    }
    opened
}

/// The socket of the connection that a program has from the start, as under inetd.
pub fn expected(id: u32) -> Result<u16, Errno> {
    let address = |port| Address::Inet(Ip::LOOPBACK_V4, port);
    state::sockets().add(Socket {
        state: State::Request(id),
        local: address(host::boot().port as u16),
        peer: address(connect::PEER_PORT),
        ..Socket::new(AF_INET)
    })
}

/// The kind and the flags of `socket` and `socketpair`, of which Linux looks at the flags first.
fn kind_of(kind: u64) -> Result<u8, Errno> {
    match kind as u32 as u64 & !(O_CLOEXEC | O_NONBLOCK | KIND_MASK) {
        0 => Ok((kind & KIND_MASK) as u8),
        _ => Err(Errno::EINVAL),
    }
}

/// Whether there is such a family, kind and protocol; gives what the kind is served as.
fn check(domain: u16, kind: u8, protocol: u32) -> Result<u8, Errno> {
    const MOST: u8 = 10;
    const FAMILIES: u16 = 46;
    const MAX_PROTOCOL: u32 = 262;
    const TCP: u32 = 6;
    const UDP: u32 = 17;
    const ICMP: u32 = 1;
    const ICMP_V6: u32 = 58;
    if kind > MOST && domain < FAMILIES {
        return Err(Errno::EINVAL);
    }
    match (domain, kind) {
        (AF_UNIX, _) if protocol > u32::from(AF_UNIX) => Err(Errno::EPROTONOSUPPORT),
        (AF_UNIX, SOCK_STREAM | SOCK_DGRAM | SOCK_SEQPACKET) => Ok(kind),
        (AF_UNIX, SOCK_RAW) => Ok(SOCK_DGRAM),
        (AF_INET | AF_INET6, _) if protocol >= MAX_PROTOCOL => Err(Errno::EINVAL),
        (AF_INET | AF_INET6, SOCK_STREAM) if matches!(protocol, 0 | TCP) => Ok(kind),
        (AF_INET | AF_INET6, SOCK_DGRAM) if matches!(protocol, 0 | UDP) => Ok(kind),
        (AF_INET, SOCK_DGRAM) if protocol == ICMP => Err(Errno::EACCES),
        (AF_INET6, SOCK_DGRAM) if protocol == ICMP_V6 => Err(Errno::EACCES),
        (AF_INET | AF_INET6, SOCK_RAW) if protocol != 0 => Err(Errno::EPERM),
        (AF_INET | AF_INET6, SOCK_STREAM | SOCK_DGRAM | SOCK_RAW) => Err(Errno::EPROTONOSUPPORT),
        // Of its protocols NETLINK_ROUTE.
        (AF_NETLINK, SOCK_RAW | SOCK_DGRAM) if protocol == 0 => Ok(SOCK_DGRAM),
        (AF_NETLINK, SOCK_RAW | SOCK_DGRAM) => Err(Errno::EPROTONOSUPPORT),
        (AF_UNIX | AF_INET | AF_INET6 | AF_NETLINK, _) => Err(Errno::ESOCKTNOSUPPORT),
        _ => Err(Errno::EAFNOSUPPORT),
    }
}

/// `socket`
pub fn socket(domain: u64, kind: u64, protocol: u64) -> SysResult {
    let (flags, kind) = (kind, kind_of(kind)?);
    let domain = family(domain)?;
    let kind = check(domain, kind, protocol as u32)?;
    let socket = match kind {
        SOCK_DGRAM => datagrams::new(domain)?,
        kind => Socket {
            kind,
            ..Socket::new(domain)
        },
    };
    open(socket, flags)
}

fn family(domain: u64) -> Result<u16, Errno> {
    u16::try_from(domain as u32).map_err(|_| Errno::EAFNOSUPPORT)
}

/// `socketpair`
pub fn pair(domain: u64, kind: u64, protocol: u64, to: u64) -> SysResult {
    let (flags, domain) = (kind, domain as u32);
    let kind = kind_of(kind)?;
    user::slice_mut(to, 8)?;
    let domain = family(domain.into())?;
    let kind = check(domain, kind, protocol as u32)?;
    if domain != AF_UNIX {
        return Err(Errno::EOPNOTSUPP);
    }
    let (first, second) = match kind {
        SOCK_DGRAM => pair_of_datagrams(flags)?,
        kind => pair_of_streams(kind, flags)?,
    };
    user::write(to, [first as u32, second as u32])?;
    Ok(0)
}

/// Two descriptors, or none.
fn open_two(first: Socket, second: Socket, flags: u64) -> Result<(u64, u64), Errno> {
    let first = match open(first, flags) {
        Ok(first) => first,
        Err(error) => {
            close_socket(&second);
            return Err(error);
        }
    };
    match open(second, flags) {
        Ok(second) => Ok((first, second)),
        Err(error) => {
            descriptors::close(first)?;
            Err(error)
        }
    }
}

fn pair_of_streams(kind: u8, flags: u64) -> Result<(u64, u64), Errno> {
    let (there, back) = new_queues()?;
    let end = |from, to| Socket {
        state: State::Stream { from, to },
        kind,
        peer: Address::Unix(Name::NONE),
        ..Socket::new(AF_UNIX)
    };
    let both = open_two(end(back, there), end(there, back), flags)?;
    let (one, other) = (number_of(both.0)?, number_of(both.1)?);
    state::sockets().get(one).other = Some(other);
    state::sockets().get(other).other = Some(one);
    Ok(both)
}

fn pair_of_datagrams(flags: u64) -> Result<(u64, u64), Errno> {
    let first = datagrams::new(AF_UNIX)?;
    let second = datagrams::new(AF_UNIX).inspect_err(|_| close_socket(&first))?;
    let both = open_two(first, second, flags)?;
    let (one, other) = (number_of(both.0)?, number_of(both.1)?);
    for (own, to) in [(one, other), (other, one)] {
        let socket = state::sockets().get(own);
        socket.peer = Address::Unix(Name::NONE);
        if let State::Datagrams(mailbox) = &mut socket.state {
            mailbox.to = Some(to);
        }
    }
    Ok(both)
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

/// `getsockname` and, with `peer`, `getpeername`
pub fn name(descriptor: u64, address: u64, bytes: u64, peer: bool) -> SysResult {
    let socket = *state::sockets().get(number_of(descriptor)?);
    let shown = match (peer, socket.state) {
        (false, _) => socket.local,
        (true, State::Stream { .. }) if socket.reset => return Err(Errno::ENOTCONN),
        (true, State::Stream { .. } | State::Request(_)) => socket.peer,
        (true, State::Outbound(outbound)) if !outbound.connecting => socket.peer,
        (true, State::Datagrams(_)) if matches!(socket.peer, Address::Inet(_, 0)) => {
            return Err(Errno::ENOTCONN);
        }
        (true, State::Datagrams(_)) if socket.is_connected() => socket.peer,
        (true, _) => return Err(Errno::ENOTCONN),
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
    socket.connecting = match (socket.connecting, state) {
        (Connecting::Untold | Connecting::Broken, State::Fresh) => Connecting::Broken,
        _ => Connecting::No,
    };
    let is_local = socket.domain == AF_UNIX;
    if matches!(state, State::Listening { .. }) && !is_local {
        if how != WRITE {
            socket.state = State::Fresh;
            socket.lose_port();
            connect::close_waiting(number);
            state::files().edge(|object| object == Object::Socket(number));
        }
        return Ok(0);
    }
    let connected = match state {
        State::Stream { .. } => !socket.reset,
        State::Request(_) | State::Outbound(_) => true,
        State::Datagrams(_) => socket.is_connected(),
        _ => false,
    };
    let stops_writing = how != READ && !socket.write_shut;
    socket.read_shut |= how != WRITE;
    socket.write_shut |= how != READ;
    if let (State::Stream { from, .. }, true) = (state, stops_writing) {
        socket.state = State::Stream {
            from,
            to: pipes::NONE,
        };
    }
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
    match connected || is_local {
        true => Ok(0),
        false => Err(Errno::ENOTCONN),
    }
}

/// The last descriptor was closed.
pub fn close(number: u16) {
    let socket = *state::sockets().get(number);
    match socket.state {
        State::Listening { .. } => connect::close_waiting(number),
        State::Stream { from, .. } => {
            // What it has not read is lost, of which the other end is told.
            let unread = match socket.keeps_borders() {
                true => datagrams::all_bytes(from) > 0,
                false => pipes::queue(from).is_some_and(|queue| queue.used() > 0),
            };
            if let Some(other) = socket.other {
                let other = state::sockets().get(other);
                other.other = None;
                if unread || socket.domain != AF_UNIX && socket.options.breaks_off() {
                    other.break_off(Errno::ECONNRESET);
                }
            }
        }
        _ => {}
    }
    state::sockets().remove(number);
    if let State::Datagrams(_) = socket.state {
        datagrams::forget(number);
    }
    close_socket(&socket);
    if let Some(file) = socket.file {
        state::temporary().closed(file);
    }
}

/// Gives up what a socket has that is in no table any more.
fn close_socket(socket: &Socket) {
    match socket.state {
        State::Request(id) => state::server().close(id),
        State::Stream { from, to } => pipes::close(from, to),
        State::Outbound(outbound) => outbound::close(outbound.handle),
        State::Datagrams(Mailbox { inbox, queries, .. }) => {
            pipes::close(inbox, inbox);
            if queries != pipes::NONE {
                pipes::close(queries, queries);
            }
        }
        _ => {}
    }
}
