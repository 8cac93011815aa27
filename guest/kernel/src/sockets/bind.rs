//! `bind`: the addresses that sockets have of their own.

use super::address::{AF_INET, AF_INET6, AF_NETLINK, AF_UNIX, Address, Ip, Name};
use super::table::{Socket, State};
use super::{netlink, number_of};
use crate::errno::{Errno, SysResult};
use crate::files::open;
use crate::state;

/// `bind`
pub fn bind(descriptor: u64, address: u64, bytes: u64) -> SysResult {
    let number = number_of(descriptor)?;
    let given = Address::look(address, bytes)?;
    let socket = *state::sockets().get(number);
    let address = match socket.domain {
        AF_UNIX | AF_NETLINK => Address::decode(given)?,
        domain => Address::decode_ip(domain, given)?,
    };
    let (local, file) = match (address, socket.domain) {
        (Address::Netlink(port), AF_NETLINK) => return netlink::bind(number, port).map(|()| 0),
        (_, AF_NETLINK) => return Err(Errno::EINVAL),
        (Address::Inet(ip, port), AF_INET | AF_INET6) => (bind_ip(&socket, ip, port)?, None),
        // An older way to write any address of version 4.
        (Address::Unspecified, AF_INET) => (bind_ip(&socket, Ip::ANY_V4, 0)?, None),
        (Address::Unix(Name::NONE), AF_UNIX) if socket.is_bound() => return Ok(0),
        (Address::Unix(name), AF_UNIX) => bind_name(name, &socket)?,
        (_, AF_UNIX) => return Err(Errno::EINVAL),
        _ => return Err(Errno::EAFNOSUPPORT),
    };
    let socket = state::sockets().get(number);
    (socket.local, socket.file) = (local, file);
    socket.lost_port = false;
    match local {
        Address::Unix(_) => tell_others(number),
        Address::Inet(ip, _) if !ip.is_any() && ip.as_v4().is_none() => {
            socket.options.set_v6_only();
        }
        _ => {}
    }
    Ok(0)
}

/// Those that a local socket is connected to know it by its name.
fn tell_others(number: u16) {
    let socket = *state::sockets().get(number);
    for (place, other) in state::sockets().all_mut() {
        let is_connected = match other.state {
            State::Datagrams(mailbox) => mailbox.to == Some(number),
            _ => socket.other == Some(place),
        };
        if is_connected {
            other.peer = socket.local;
        }
    }
}

/// Whether the socket has no address yet and can have one.
fn may_bind(socket: &Socket) -> Result<(), Errno> {
    let is_new = matches!(socket.state, State::Fresh | State::Datagrams(_));
    let is_local_stream = socket.domain == AF_UNIX && matches!(socket.state, State::Stream { .. });
    match (is_new || is_local_stream) && (!socket.is_bound() || socket.lost_port) {
        true => Ok(()),
        false => Err(Errno::EINVAL),
    }
}

fn bind_ip(socket: &Socket, ip: Ip, port: u16) -> Result<Address, Errno> {
    if socket.domain == AF_INET && ip.as_v4().is_none() {
        return Err(Errno::EAFNOSUPPORT);
    }
    if !ip.is_any() && !ip.is_own() {
        return Err(Errno::EADDRNOTAVAIL);
    }
    may_bind(socket)?;
    let port = match port {
        0 => state::sockets().free_port()?,
        port => port,
    };
    match state::sockets().is_taken(socket, ip, port) {
        true => Err(Errno::EADDRINUSE),
        false => Ok(Address::Inet(ip, port)),
    }
}

/// Gives a socket of IP that has no port one; gives its address.
pub fn bind_to_any(number: u16) -> Result<Address, Errno> {
    let socket = *state::sockets().get(number);
    if let Address::Inet(ip, port) = socket.local
        && (port == 0 || socket.lost_port)
    {
        let port = state::sockets().free_port()?;
        let socket = state::sockets().get(number);
        socket.local = Address::Inet(ip, port);
        socket.lost_port = false;
    }
    Ok(state::sockets().get(number).local)
}

/// The same, and an address that belongs to the way to another of the guest's own.
pub fn bind_towards(number: u16, to: &Address) -> Result<(), Errno> {
    bind_to_any(number)?;
    let socket = state::sockets().get(number);
    if let (Address::Inet(own, port), Address::Inet(ip, _)) = (socket.local, *to)
        && own.is_any()
    {
        let own = match ip {
            Ip::LOOPBACK_V6 => ip,
            _ => Ip::LOOPBACK_V4,
        };
        socket.local = Address::Inet(own, port);
    }
    Ok(())
}

fn bind_name(name: Name, socket: &Socket) -> Result<(Address, Option<u16>), Errno> {
    if name.is_path() {
        let path = open::place_for_socket(name.as_bytes())?;
        may_bind(socket)?;
        let file = open::make_socket(&path)?;
        return Ok((Address::Unix(name), Some(file)));
    }
    may_bind(socket)?;
    let has = |name: Name| {
        let mut all = state::sockets().all();
        all.any(|(_, other)| {
            other.state != State::Free
                && other.kind == socket.kind
                && other.local == Address::Unix(name)
        })
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
