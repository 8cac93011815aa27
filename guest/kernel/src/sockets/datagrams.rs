//! Messages that keep their borders: datagrams of IP within the guest and of local sockets, and the packets of
//! local connections.
//!
//! Each lies in the queue of who reads it behind a head that says how long it is and who sent it. A socket for
//! datagrams has an inbox that anybody may write to; one that is gone refuses.

use super::address::{AF_INET, AF_INET6, AF_NETLINK, AF_UNIX, Address, Ip, Name};
use super::rights::Outgoing;
use super::table::{Mailbox, SOCK_DGRAM, Socket, State};
use super::{bind, dns, mark, netlink, outbound, transfer};
use crate::buffers::{Source, Target};
use crate::errno::{Errno, SysResult};
use crate::files::open;
use crate::{pipes, state, threads};

/// Most bytes that an inbox holds.
const INBOX_BYTES: u64 = 256 << 10;
/// Longest message of a local socket, and of one of IP version 4 and 6.
const MAX_LOCAL_BYTES: u64 = 212_960;
const MAX_V4_BYTES: u64 = 65_507;
const MAX_V6_BYTES: u64 = 65_527;

/// A message's head: its length, how long the sender's address is, and that.
const HEAD_BYTES: usize = 5;
const MAX_SENDER_BYTES: usize = 108;

/// A new socket for datagrams.
pub fn new(domain: u16) -> Result<Socket, Errno> {
    Ok(Socket {
        state: State::Datagrams(Mailbox {
            inbox: pipes::new_queue(INBOX_BYTES)?,
            queries: match domain {
                AF_UNIX | AF_NETLINK => pipes::NONE,
                _ => outbound::new_queries()?,
            },
            to: None,
        }),
        kind: SOCK_DGRAM,
        ..Socket::new(domain)
    })
}

/// A socket is gone: who is connected to it is refused.
pub fn forget(number: u16) {
    for (_, other) in state::sockets().all_mut() {
        if let State::Datagrams(at) = &mut other.state
            && at.to == Some(number)
        {
            at.to = Some(Mailbox::GONE);
        }
    }
}

/// `connect`: the one place that messages go to and come from.
pub fn connect(number: u16, mailbox: Mailbox, given: &[u8]) -> SysResult {
    if state::sockets().get(number).domain != AF_UNIX && !matches!(given, [] | [_] | [0, 0, ..]) {
        bind::bind_to_any(number)?;
    }
    let socket = *state::sockets().get(number);
    // Before it is known whether the address is whole.
    let is_v4 =
        matches!(given.first_chunk(), Some(family) if u16::from_le_bytes(*family) == AF_INET);
    if is_v4 && socket.domain == AF_INET6 && socket.options.v6_only() {
        return Err(Errno::EAFNOSUPPORT);
    }
    let (to, peer) = match (Address::decode(given), socket.domain) {
        (Ok(Address::Unspecified), _) => (None, Address::Unspecified),
        (Ok(Address::Unix(name)), AF_UNIX) if name != Name::NONE => {
            let (to, there) = find_local(&name)?;
            may_send(number, there)?;
            (Some(to), Address::Unix(name))
        }
        (Err(error), AF_UNIX) => return Err(error),
        (_, AF_UNIX) => return Err(Errno::EINVAL),
        (Ok(Address::Netlink(port)), AF_NETLINK) => {
            netlink::bind(number, 0)?;
            (None, Address::Netlink(port))
        }
        (_, AF_NETLINK) => return Err(Errno::EINVAL),
        (Ok(Address::Inet(ip, _)), AF_INET6)
            if ip.as_v4().is_some() && socket.options.v6_only() =>
        {
            return Err(Errno::EAFNOSUPPORT);
        }
        // One of version 6 takes addresses of version 4.
        (Ok(Address::Inet(ip, port)), AF_INET6) if ip.as_v4().is_some() => {
            (None, reachable(&socket, ip, port)?)
        }
        (_, domain) => match Address::decode_ip(domain, given)? {
            // It is bound to one of version 4.
            Address::Inet(..) if domain == AF_INET6 && socket.is_v4() => {
                return Err(Errno::EAFNOSUPPORT);
            }
            Address::Inet(ip, port) => (None, reachable(&socket, ip, port)?),
            _ => return Err(Errno::EAFNOSUPPORT),
        },
    };
    match peer {
        Address::Inet(..) => bind::bind_towards(number, &peer)?,
        _ if mailbox.to != to => disconnect(number, mailbox),
        _ => {}
    }
    let socket = state::sockets().get(number);
    socket.peer = peer;
    socket.state = State::Datagrams(Mailbox { to, ..mailbox });
    Ok(0)
}

/// The guest's own address on the way to another of its own.
fn own_address(to: Ip) -> Ip {
    match to {
        Ip::LOOPBACK_V6 => to,
        _ => Ip::LOOPBACK_V4,
    }
}

/// The local socket of a name, for datagrams.
fn find_local(name: &Name) -> Result<(u16, Mailbox), Errno> {
    let file = match name.is_path() {
        true => Some(open::find_socket(name.as_bytes())?),
        false => None,
    };
    let is_it = |socket: &Socket| match file {
        Some(_) => socket.file == file,
        None => {
            socket.kind == SOCK_DGRAM && socket.local == Address::Unix(*name) && *name != Name::NONE
        }
    };
    let mut all = state::sockets().all();
    let (number, found) = all
        .find(|(_, socket)| is_it(socket))
        .ok_or(Errno::ECONNREFUSED)?;
    match found.state {
        State::Datagrams(mailbox) => Ok((number, mailbox)),
        _ => Err(Errno::EPROTOTYPE),
    }
}

/// An address that a datagram of IP may go to: within the guest, or the name server.
fn reachable(socket: &Socket, ip: Ip, port: u16) -> Result<Address, Errno> {
    let ip = match ip {
        Ip::ANY_V4 => Ip::LOOPBACK_V4,
        Ip::ANY_V6 => Ip::LOOPBACK_V6,
        ip => ip,
    };
    match (ip.as_v4(), socket.domain) {
        (None, AF_INET) => Err(Errno::EAFNOSUPPORT),
        _ if ip.is_own() => Ok(Address::Inet(ip, port)),
        _ => Err(Errno::EACCES),
    }
}

/// Where a message goes.
enum Way {
    /// To the socket with this number, at this address of IP.
    Inbox(u16, Ip),
    /// To the name server, by this queue.
    Queries(u8),
    /// Nobody is there.
    Refused,
}

fn way(number: u16, mailbox: Mailbox, given: Option<Address>) -> Result<Way, Errno> {
    let socket = *state::sockets().get(number);
    if socket.domain == AF_UNIX {
        return match (given, mailbox.to) {
            (Some(Address::Unix(name)), _) => {
                find_local(&name).map(|(to, _)| Way::Inbox(to, Ip::ANY_V4))
            }
            (Some(_), _) => Err(Errno::EINVAL),
            (None, Some(Mailbox::GONE)) => {
                // It is told once.
                disconnect(number, mailbox);
                Ok(Way::Refused)
            }
            (None, Some(to)) => Ok(Way::Inbox(to, Ip::ANY_V4)),
            (None, None) => Err(Errno::ENOTCONN),
        };
    }
    let to = match given {
        Some(Address::Inet(_, 0)) => return Err(Errno::EINVAL),
        Some(Address::Inet(ip, _)) if socket.options.v6_only() && ip.as_v4().is_some() => {
            return Err(Errno::ENETUNREACH);
        }
        Some(Address::Inet(ip, port)) => reachable(&socket, ip, port)?,
        Some(Address::Unspecified) | None if socket.is_connected() => socket.peer,
        Some(Address::Unspecified) | None => return Err(Errno::EDESTADDRREQ),
        Some(Address::Unix(_) | Address::Netlink(_)) => return Err(Errno::EAFNOSUPPORT),
    };
    if outbound::is_name_server(&to) {
        return Ok(Way::Queries(mailbox.queries));
    }
    let from = bind::bind_to_any(number)?;
    Ok(match (receiver(&to, &from), to) {
        (Some(other), Address::Inet(ip, _)) => Way::Inbox(other, ip),
        _ => Way::Refused,
    })
}

/// A local socket is connected to another no more. As on Linux what has come and was not read is lost, and the other
/// is told so.
fn disconnect(number: u16, mailbox: Mailbox) {
    let unread = pipes::queue(mailbox.inbox).map_or(0, |queue| queue.used());
    if unread > 0 && mailbox.to.is_some() {
        pipes::taken(mailbox.inbox, unread);
        let to = mailbox.to.unwrap_or(Mailbox::GONE);
        let other = state::sockets().get(to);
        if let State::Datagrams(there) = other.state
            && to != Mailbox::GONE
            && there.to == Some(number)
        {
            other.error = Errno::ECONNRESET.0 as u8;
        }
    }
    let socket = state::sockets().get(number);
    socket.peer = Address::Unspecified;
    socket.state = State::Datagrams(Mailbox {
        to: None,
        ..mailbox
    });
}

/// The socket of IP that takes a datagram: rather one that is connected to the sender.
fn receiver(to: &Address, from: &Address) -> Option<u16> {
    let (Address::Inet(ip, port), Address::Inet(from_ip, from_port)) = (*to, *from) else {
        return None;
    };
    let from = match from_ip.is_any() {
        true => Address::Inet(own_address(ip), from_port),
        false => *from,
    };
    let takes = |socket: &Socket| {
        port != 0
            && matches!(socket.state, State::Datagrams(_))
            && matches!(socket.local, Address::Inet(_, own) if own == port)
            && socket.takes(ip)
            && (!socket.is_connected() || has_peer(socket, &from))
    };
    let all = state::sockets().all().filter(|(_, socket)| takes(socket));
    all.max_by_key(|(_, socket)| socket.is_connected())
        .map(|(number, _)| number)
}

/// Sends one message, to where it is said or else to where the socket is connected. Where it goes is looked up
/// again after each wait for room there, as the receiver may be gone by then.
pub fn send(
    number: u16,
    from: Source<'_>,
    nonblocking: bool,
    given: Option<Address>,
    rights: &Outgoing,
) -> SysResult {
    let socket = *state::sockets().get(number);
    if let (State::Datagrams(mailbox), Address::Netlink(_)) = (socket.state, socket.local) {
        return netlink::send(number, mailbox, from, given);
    }
    let is_local = socket.domain == AF_UNIX;
    match given {
        Some(Address::Unix(name)) if name != Name::NONE => {}
        None if is_local => {}
        Some(_) if is_local => return Err(Errno::EINVAL),
        _ => {}
    }
    if !is_local {
        bind::bind_to_any(number)?;
    }
    let bytes = from.total()?;
    let most = match socket.domain {
        AF_UNIX => MAX_LOCAL_BYTES,
        AF_INET => MAX_V4_BYTES,
        _ => MAX_V6_BYTES,
    };
    if bytes > most {
        return Err(Errno::EMSGSIZE);
    }
    let deadline = transfer::deadline(socket.options.send_ns);
    let sent = threads::blocking_until(nonblocking, deadline, || {
        send_now(number, from, given, rights)
    });
    match sent {
        // Datagrams of IP may be lost.
        Err(Errno::EAGAIN) if !is_local => Ok(bytes),
        sent => sent,
    }
}

/// The same if there is room: else EAGAIN.
fn send_now(number: u16, from: Source<'_>, given: Option<Address>, rights: &Outgoing) -> SysResult {
    let socket = *state::sockets().get(number);
    let State::Datagrams(mailbox) = socket.state else {
        return Err(Errno::EBADF);
    };
    let is_local = socket.domain == AF_UNIX;
    let is_ready = || match state::sockets().take_error(number) {
        Some(error) => Err(error),
        None if socket.write_shut => Err(Errno::EPIPE),
        None => from.check(),
    };
    // Where a local one goes is looked for last.
    let way = match is_local {
        true => is_ready().and_then(|()| way(number, mailbox, given))?,
        false => {
            let way = way(number, mailbox, given)?;
            is_ready()?;
            way
        }
    };
    match way {
        Way::Queries(queries) => ask(queries, from),
        Way::Refused if is_local => Err(Errno::ECONNREFUSED),
        Way::Refused => {
            // The other side says so afterwards, and it is told to who is connected there.
            if is_connected_to(&socket, given) {
                state::sockets().get(number).error = Errno::ECONNREFUSED.0 as u8;
                mark(|other| other.local == socket.local);
            }
            from.total()
        }
        Way::Inbox(other, ip) => {
            let mut own = *state::sockets().get(number);
            if let Address::Inet(any, port) = own.local
                && any.is_any()
            {
                own.local = Address::Inet(own_address(ip), port);
            }
            deliver(number, &own, other, from, rights)
        }
    }
}

/// Whether what is sent goes to where the socket is connected.
fn is_connected_to(socket: &Socket, given: Option<Address>) -> bool {
    let given = match given {
        None | Some(Address::Unspecified) => Ok(socket.peer),
        Some(Address::Inet(ip, port)) => reachable(socket, ip, port),
        Some(local) => Ok(local),
    };
    given.is_ok_and(|given| has_peer(socket, &given))
}

/// Whether the socket is connected to an address. One that is connected to port 0 is to all ports.
fn has_peer(socket: &Socket, address: &Address) -> bool {
    match (socket.peer, *address) {
        (Address::Inet(ip, 0), Address::Inet(other, _)) => ip == other,
        (peer, address) => socket.is_connected() && peer == address,
    }
}

fn deliver(
    number: u16,
    own: &Socket,
    other: u16,
    from: Source<'_>,
    rights: &Outgoing,
) -> SysResult {
    let there = *state::sockets().get(other);
    let State::Datagrams(mailbox) = there.state else {
        return Err(Errno::ECONNREFUSED);
    };
    if own.domain == AF_UNIX {
        may_send(number, mailbox)?;
        if there.read_shut {
            return Err(Errno::EPIPE);
        }
    }
    put(mailbox.inbox, from, &own.local, rights)
}

/// Who is connected takes nothing from others.
fn may_send(number: u16, there: Mailbox) -> Result<(), Errno> {
    match there.to.is_none_or(|to| to == number) {
        true => Ok(()),
        false => Err(Errno::EPERM),
    }
}

/// Puts a message into a queue, whole, which can be read, as the caller has checked; EAGAIN if there is no room for
/// it.
pub fn put(queue: u8, from: Source<'_>, sender: &Address, rights: &Outgoing) -> SysResult {
    let bytes = from.total()?;
    let mut head = [0; HEAD_BYTES + MAX_SENDER_BYTES];
    let head_bytes = HEAD_BYTES + encode_sender(sender, &mut head[HEAD_BYTES..]);
    head[..4].copy_from_slice(&(bytes as u32).to_le_bytes());
    head[4] = (head_bytes - HEAD_BYTES) as u8;
    let whole = head_bytes as u64 + bytes;
    let at = pipes::queue(queue).ok_or(Errno::EPIPE)?;
    if at.is_refused() {
        return Err(Errno::EPIPE);
    }
    if at.reserve(whole)? < whole {
        // Nobody makes room in a queue that is empty: there is no memory.
        return Err(match at.used() {
            0 => Errno::ENOBUFS,
            _ => Errno::EAGAIN,
        });
    }
    rights.send_with(queue, || {
        at.put(&head[..head_bytes])?;
        from.for_each(|part| at.put(part))?;
        Ok(whole)
    })?;
    pipes::has_come(queue);
    Ok(bytes)
}

fn encode_sender(sender: &Address, to: &mut [u8]) -> usize {
    match sender {
        // Of these the kernel alone sends.
        Address::Unspecified | Address::Netlink(_) => 0,
        Address::Inet(ip, port) => {
            to[..16].copy_from_slice(&ip.0);
            to[16..18].copy_from_slice(&port.to_le_bytes());
            18
        }
        Address::Unix(name) => {
            let name = name.as_bytes();
            to[..name.len()].copy_from_slice(name);
            name.len()
        }
    }
}

fn decode_sender(domain: u16, from: &[u8]) -> Address {
    match (domain, from.split_first_chunk::<16>()) {
        (AF_UNIX, _) => Address::Unix(Name::new(from)),
        (AF_NETLINK, _) => Address::Netlink(0),
        (_, Some((ip, [low, high]))) => Address::Inet(Ip(*ip), u16::from_le_bytes([*low, *high])),
        _ => Address::Unspecified,
    }
}

/// A message that was received.
#[derive(Clone, Copy, Debug)]
pub struct Message {
    /// Its whole length, even if less was received.
    pub bytes: u64,
    /// What it takes of its queue.
    pub in_queue: u64,
    /// Who sent it.
    pub sender: Address,
}

/// Receives the first message of a queue, or with `peek` only looks; what does not fit is lost. EAGAIN where
/// there is none.
pub fn take(queue: u8, domain: u16, to: &mut Target<'_>, peek: bool) -> Result<Message, Errno> {
    let at = pipes::queue(queue).ok_or(Errno::EBADF)?;
    let mut head = [0; HEAD_BYTES + MAX_SENDER_BYTES];
    let known = at.look(0, &mut head)? as usize;
    let [a, b, c, d, sender_bytes, ..] = head;
    if known < HEAD_BYTES {
        return Err(Errno::EAGAIN);
    }
    let bytes = u64::from(u32::from_le_bytes([a, b, c, d]));
    let head_bytes = HEAD_BYTES + usize::from(sender_bytes).min(MAX_SENDER_BYTES);
    let sender = decode_sender(domain, &head[HEAD_BYTES..head_bytes]);
    let wanted = bytes.min(to.total()?);
    let given = to.for_each_from(0, |place, done| {
        at.look(head_bytes as u64 + done, place.limit(bytes - done).whole()?)
    });
    let in_queue = head_bytes as u64 + bytes;
    if !peek {
        pipes::taken(queue, in_queue);
    }
    // As on Linux one that there is no place for is lost.
    if wanted > 0 && given? < wanted {
        return Err(Errno::EFAULT);
    }
    Ok(Message {
        bytes,
        in_queue,
        sender,
    })
}

/// The length of the first message of a queue.
pub fn first_bytes(queue: u8) -> Option<u64> {
    let mut length = [0; 4];
    let known = pipes::queue(queue)?.look(0, &mut length).ok()?;
    (known == 4).then(|| u64::from(u32::from_le_bytes(length)))
}

/// The bytes of all messages of a queue together.
pub fn all_bytes(queue: u8) -> u64 {
    let (mut at, mut total, mut head) = (0, 0, [0; HEAD_BYTES]);
    let Some(queue) = pipes::queue(queue) else {
        return 0;
    };
    while queue
        .look(at, &mut head)
        .is_ok_and(|known| known == HEAD_BYTES as u64)
    {
        let [a, b, c, d, sender_bytes] = head;
        let bytes = u64::from(u32::from_le_bytes([a, b, c, d]));
        total += bytes;
        at += HEAD_BYTES as u64 + u64::from(sender_bytes) + bytes;
    }
    total
}

/// Receives the next datagram, or an answer of the name server.
pub fn receive(
    number: u16,
    mailbox: Mailbox,
    to: &mut Target<'_>,
    peek: bool,
) -> Result<Message, Errno> {
    let domain = state::sockets().get(number).domain;
    match take(mailbox.inbox, domain, to, peek) {
        Err(Errno::EAGAIN) if mailbox.queries != pipes::NONE => {}
        taken => return taken,
    }
    let mut reply = [0; dns::MAX_QUERY_BYTES];
    let bytes = outbound::answer(mailbox.queries, &mut reply, peek)?;
    to.for_each_from(0, |place, done| {
        let left = &reply[done as usize..bytes as usize];
        let to = place.limit(left.len() as u64).whole()?;
        to.copy_from_slice(&left[..to.len()]);
        Ok(to.len() as u64)
    })?;
    Ok(Message {
        bytes,
        in_queue: 0,
        sender: Address::Inet(Ip::v4(dns::SERVER), dns::PORT),
    })
}

/// Asks the name server.
fn ask(queries: u8, from: Source<'_>) -> SysResult {
    let mut query = [0; dns::MAX_QUERY_BYTES];
    let used = from.copy_whole(&mut query)?;
    outbound::ask(queries, &query[..used])
}

/// Whether a message to where the socket is connected would not wait.
pub fn is_writable(socket: &Socket) -> bool {
    let State::Datagrams(Mailbox { to: Some(to), .. }) = socket.state else {
        return true;
    };
    match state::sockets().get(to).state {
        State::Datagrams(there) if to != Mailbox::GONE => {
            pipes::queue(there.inbox).is_none_or(|queue| queue.is_writable())
        }
        _ => true,
    }
}
