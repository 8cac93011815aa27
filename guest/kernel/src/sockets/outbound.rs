//! Connections out of the guest: the host has the sockets, and the library OS their handles.
//!
//! What a connection is ready for is asked of the host ([`refresh`]). An *edge* is told for what the
//! program has had to wait for since: each half of a connection is *awaited* after a call that gave less
//! than it could have, or after a look that found it not ready. The guest parks for what is awaited.

use holm_hostcall::{Call, receive_flags, shut_how, socket_events};

use super::address::{Address, Ip};
use super::table::{Outbound, Socket, State};
use super::{dns, mark};
use crate::buffers::Place;
use crate::errno::{Errno, SysResult};
use crate::{host, log, pipes, state, threads, time};

/// The guest's own addresses on connections out of it.
pub(super) const OWN_V4: Ip = Ip::v4([10, 0, 2, 15]);
pub(super) const OWN_V6: Ip = Ip([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 15]);
/// Most queries of names that one socket holds, in bytes.
const QUERIES_BYTES: u64 = 4096;

/// One half: it can be read.
pub const READ: u8 = 1;
/// One half: it can be written to.
pub const WRITE: u8 = 2;
/// The other end sends nothing any more.
pub const ENDED: u8 = 4;
/// It failed.
pub const FAILED: u8 = 8;

fn result(result: i64) -> SysResult {
    match result {
        done if done >= 0 => Ok(done as u64),
        errno => Err(Errno(errno.unsigned_abs().min(4095) as i32)),
    }
}

/// `connect` to an address out of the guest.
pub fn connect(
    number: u16,
    ip: Ip,
    port: u16,
    nonblocking: bool,
    deadline: Option<u64>,
) -> SysResult {
    if !*state::ready() {
        log::note(format_args!(
            "connect refused (EACCES): outbound connections are for requests, and the program is not \
             ready for its first one"
        ));
        return Err(Errno::EACCES);
    }
    let half = |from: usize| {
        let bytes = ip.0[from..from + 8].iter();
        bytes.fold(0u64, |word, byte| word << 8 | u64::from(*byte))
    };
    let called = host::call(Call::CONNECT, 0, [half(0), half(8), u64::from(port), 0]);
    let handle = result(called).inspect_err(|error| {
        if *error == Errno::EACCES {
            match ip.as_v4() {
                Some([a, b, c, d]) => log::note(format_args!(
                    "connect to {a}.{b}.{c}.{d}:{port} refused (EACCES): [network] allow in the \
                     manifest does not name it"
                )),
                None => log::note(format_args!(
                    "connect to an IPv6 address, port {port}, refused (EACCES): [network] allow in \
                     the manifest does not name it"
                )),
            }
        }
    })?;
    let own = match ip.as_v4() {
        Some(_) => OWN_V4,
        None => OWN_V6,
    };
    let own_port = state::sockets().free_port()?;
    let socket = state::sockets().get(number);
    socket.local = Address::Inet(own, own_port);
    socket.peer = Address::Inet(ip, port);
    socket.state = State::Outbound(Outbound {
        handle,
        connecting: true,
        ready: 0,
        awaited: READ | WRITE,
        counted: false,
    });
    if nonblocking {
        return Err(Errno::EINPROGRESS);
    }
    threads::blocking_until(false, deadline, || {
        refresh();
        finish(number)
    })
}

/// The outcome of a connect that is under way: EAGAIN for none yet.
fn finish(number: u16) -> SysResult {
    let socket = state::sockets().get(number);
    let State::Outbound(outbound) = &mut socket.state else {
        return Err(Errno::EBADF);
    };
    if outbound.ready & WRITE == 0 {
        return Err(Errno::EAGAIN);
    }
    match error_of(number) {
        0 => Ok(0),
        errno => Err(Errno(errno)),
    }
}

/// `connect` again: how the first one went.
pub fn connect_again(number: u16, outbound: Outbound) -> SysResult {
    if !outbound.connecting {
        return Err(Errno::EISCONN);
    }
    refresh();
    match finish(number) {
        Err(Errno::EAGAIN) => Err(Errno::EALREADY),
        done => done,
    }
}

/// SO_ERROR: the `errno` that a connection has, or 0. One that has been connected is told so.
pub fn error_of(number: u16) -> i32 {
    let State::Outbound(outbound) = state::sockets().get(number).state else {
        return 0;
    };
    let called = host::call(Call::SOCKET_ERROR, 0, [outbound.handle, 0, 0, 0]);
    let errno = called.unsigned_abs().min(4095) as i32;
    let socket = state::sockets().get(number);
    if outbound.connecting && errno != 0 {
        // It may be tried again.
        host::call(Call::SHUT, 0, [outbound.handle, shut_how::ALL, 0, 0]);
        *socket = Socket {
            options: socket.options,
            ..Socket::new(socket.domain)
        };
    } else if let State::Outbound(outbound) = &mut socket.state
        && outbound.ready & WRITE != 0
    {
        outbound.connecting = false;
    }
    errno
}

/// Receives; EAGAIN where nothing is there yet.
pub fn receive(number: u16, handle: u64, to: &mut [u8], peek: bool) -> SysResult {
    if to.is_empty() {
        return Ok(0);
    }
    let flags = if peek { receive_flags::PEEK } else { 0 };
    let args = [handle, to.as_mut_ptr() as u64, to.len() as u64, 0];
    let received = result(host::call(Call::RECEIVE, flags, args));
    // What is looked at alone stays, and is no news again.
    let is_whole = received.is_ok_and(|count| count == to.len() as u64 || peek && count > 0);
    if let State::Outbound(outbound) = &mut state::sockets().get(number).state {
        if !peek {
            // Whether there is more the host has to be asked.
            outbound.ready &= !READ;
        }
        let counted = !peek && core::mem::take(&mut outbound.counted);
        if !is_whole || counted {
            outbound.awaited |= READ;
        }
    }
    received
}

/// Bytes that a read would find, as far as they are looked at. Who knows that may read so many and wait for an edge.
pub fn readable_bytes(number: u16) -> u64 {
    refresh();
    let State::Outbound(outbound) = &mut state::sockets().get(number).state else {
        return 0;
    };
    if outbound.connecting || outbound.ready & FAILED != 0 {
        // To look would take the error, which a later call is to be told.
        return 0;
    }
    outbound.counted = true;
    let handle = outbound.handle;
    let there = receive(number, handle, &mut state::content().bytes, true);
    there.unwrap_or(0)
}

/// Sends some; EAGAIN where nothing fits.
pub fn send(number: u16, handle: u64, bytes: &[u8]) -> SysResult {
    let args = [handle, bytes.as_ptr() as u64, bytes.len() as u64, 0];
    let sent = result(host::call(Call::SEND, 0, args));
    if let State::Outbound(outbound) = &mut state::sockets().get(number).state {
        outbound.ready &= !WRITE;
        if !sent.is_ok_and(|count| count == bytes.len() as u64) {
            outbound.awaited |= WRITE;
        }
    }
    sent
}

/// Ends the sending half.
pub fn shut(handle: u64) {
    host::call(Call::SHUT, 0, [handle, shut_how::SENDING, 0, 0]);
}

/// Ends a connection.
pub fn close(handle: u64) {
    host::call(Call::SHUT, 0, [handle, shut_how::ALL, 0, 0]);
}

/// Asks the host what every connection is ready for, if it was not asked just now: a program that has other things to
/// do looks often, and to ask is an exit.
pub fn refresh_if_due() -> bool {
    const EVERY_NS: u64 = 500_000;
    let is_open = |socket: &Socket| matches!(socket.state, State::Outbound(_));
    if !state::sockets().all().any(|(_, socket)| is_open(socket)) {
        return false;
    }
    let due = state::outbound_asked_at().saturating_add(EVERY_NS);
    time::monotonic_ns() >= due && refresh()
}

/// Asks the host what every connection is ready for; `false` if there is none.
pub fn refresh() -> bool {
    let mut events = 0;
    for (_, socket) in state::sockets().all() {
        if let State::Outbound(outbound) = socket.state {
            events |= outbound.events(READ | WRITE | ENDED | FAILED);
        }
    }
    if events != 0 {
        take_in(host::park(0, events), true);
        *state::outbound_asked_at() = time::monotonic_ns();
    }
    events != 0
}

/// Takes in what the host says of the connections; `whole` if it was asked about everything.
fn take_in(there: u64, whole: bool) {
    let mut edges = 0u128;
    for (number, socket) in state::sockets().all_mut() {
        let State::Outbound(outbound) = &mut socket.state else {
            continue;
        };
        let now = outbound.halves(there);
        let news = now & outbound.awaited | now & !outbound.ready & (ENDED | FAILED);
        if news != 0 {
            edges |= 1 << number;
        }
        outbound.awaited &= !now;
        if whole {
            outbound.awaited |= !now & (READ | WRITE);
            outbound.ready = now;
        } else {
            outbound.ready |= now;
        }
    }
    if edges != 0 {
        state::files().edge(
            |object| matches!(object, crate::files::Object::Socket(at) if edges >> at & 1 != 0),
        );
    }
    if there & socket_events::RESOLVED != 0 {
        mark(|socket| matches!(socket.state, State::Datagrams(_)));
    }
}

/// The connections' events that the guest waits for; 0 if for none.
pub fn awaited() -> u64 {
    let mut events = 0;
    for (_, socket) in state::sockets().all() {
        events |= match socket.state {
            State::Outbound(outbound) => outbound.events(outbound.awaited),
            State::Datagrams(mailbox)
                if pipes::queue(mailbox.queries).is_some_and(|queue| queue.used() > 0) =>
            {
                socket_events::RESOLVED
            }
            _ => 0,
        };
    }
    events
}

/// Takes in which of the awaited events have come.
pub fn take_in_awaited(there: u64) {
    take_in(there, false);
}

impl Outbound {
    /// The word of events that stands for these halves.
    fn events(&self, halves: u8) -> u64 {
        let place = (self.handle & 0xff) as u32 % socket_events::MAX_CONNECTIONS as u32;
        let bit = |half: u8, first: u32| u64::from(halves & half != 0) << (first + place);
        bit(READ, socket_events::READABLE)
            | bit(WRITE, socket_events::WRITABLE)
            | bit(ENDED, socket_events::ENDED)
            | bit(FAILED, socket_events::FAILED)
    }

    /// What a word of events says of this connection.
    fn halves(&self, events: u64) -> u8 {
        [READ, WRITE, ENDED, FAILED]
            .into_iter()
            .filter(|half| self.events(*half) & events != 0)
            .fold(0, |all, half| all | half)
    }
}

/// A new queue for queries of names.
pub fn new_queries() -> Result<u8, Errno> {
    pipes::new_queue(QUERIES_BYTES)
}

/// Whether an address is the name server's: the one place that datagrams go to.
pub fn is_name_server(to: &Address) -> bool {
    *to == Address::Inet(Ip::v4(dns::SERVER), dns::PORT)
}

/// Sends a query.
pub fn ask(queries: u8, query: &[u8]) -> SysResult {
    if query.len() > dns::MAX_QUERY_BYTES {
        return Err(Errno::EMSGSIZE);
    }
    let mut framed = [0; 2 + dns::MAX_QUERY_BYTES];
    let framed = &mut framed[..2 + query.len()];
    framed[..2].copy_from_slice(&(query.len() as u16).to_le_bytes());
    framed[2..].copy_from_slice(query);
    let used = pipes::queue(queries).map_or(QUERIES_BYTES, |queue| queue.used());
    if QUERIES_BYTES - used.min(QUERIES_BYTES) < framed.len() as u64 {
        // Datagrams may be lost.
        return Ok(query.len() as u64);
    }
    pipes::put(queries, framed)?;
    mark(|socket| matches!(socket.state, State::Datagrams(mailbox) if mailbox.queries == queries));
    Ok(query.len() as u64)
}

/// The answer to the first query: EAGAIN where there is none or it is not known yet. Gives its length,
/// even if that is more than `to` holds.
pub fn answer(queries: u8, to: &mut [u8], peek: bool) -> SysResult {
    let mut framed = [0; 2 + dns::MAX_QUERY_BYTES];
    if pipes::queue(queries).is_none_or(|queue| queue.used() < 2) {
        return Err(Errno::EAGAIN);
    }
    pipes::peek(queries, 0, Place::Own(&mut framed))?;
    let bytes = usize::from(u16::from_le_bytes([framed[0], framed[1]]));
    let query = framed.get(2..2 + bytes).ok_or(Errno::EIO)?;
    let mut reply = [0; dns::MAX_QUERY_BYTES];
    let used = dns::serve(query, &mut reply)?;
    if !peek {
        pipes::discard(queries, 2 + bytes as u64)?;
    }
    let fits = used.min(to.len());
    to[..fits].copy_from_slice(&reply[..fits]);
    Ok(used as u64)
}
