//! Stream sockets: a listener fed by the host, and the connection that carries a request.
//!
//! ```text
//!   [idle] ──accept/poll waits: WAIT_REQUEST──▶ [pending] ──accept──▶ [open] ──▶ [answered]
//!      ▲                                                                             │
//!      └──────────────── the program waits for the next request ─────────────────────┘
//! ```
//! There is one request at a time. The first wait is the snapshot point, so under isolation by
//! request a guest only ever goes once from left to right.
//!
//! A program that is run as under inetd has the connection from the start, before there is a request:
//! ```text
//!   [expected] ──first use of the connection waits: WAIT_REQUEST──▶ [open] ──▶ [answered]
//! ```

use holm_hostcall::message::{Malformed, Request, SliceSink};
use holm_hostcall::{Call, WAIT_ENDED, abort_reason, respond_flags};

use crate::errno::{Errno, SysResult};
use crate::files::{self, Object, wait_for_ever};
use crate::http::{Output, Reply, write_request};
use crate::{host, log, pipes, ready, signals, state, threads, time, user};

/// The encoded request, with the start of its body.
const MESSAGE_BYTES: usize = 128 << 10;
/// A read of so many bytes gets the body straight from the host.
const DIRECT_BYTES: usize = 32 << 10;
/// The request's head as text: it takes a hundred bytes more than encoded, of which there are at most 64 KiB.
const TEXT_BYTES: usize = 66 << 10;

const AF_UNIX: u64 = 1;
const AF_INET: u64 = 2;
const AF_INET6: u64 = 10;
const SOCK_STREAM: u64 = 1;
const SOCK_NONBLOCK: u64 = 0o4000;
const MSG_PEEK: u64 = 2;
const MSG_DONTWAIT: u64 = 0x40;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// No request.
    Idle,
    /// The program has a connection whose request has yet to come.
    Expected,
    /// A request that the program has not accepted yet.
    Pending,
    /// Accepted and not answered in full.
    Open,
    /// Answered; the program may still hold the connection.
    Answered,
    /// The program closed the connection without answering; it may be about to end.
    Unanswered,
}

/// The request being served.
pub struct Server {
    phase: Phase,
    /// Number of the current connection.
    id: u32,
    /// The program has asked for the request that is expected.
    asked: bool,
    message: [u8; MESSAGE_BYTES],
    text: [u8; TEXT_BYTES],
    text_end: usize,
    text_at: usize,
    /// What is left of the body's start, within `message`.
    body_at: usize,
    body_end: usize,
    /// Bytes of the body that the host still has.
    body_left: u64,
    reply: Reply,
    port_named: bool,
    /// The program was told to end: what it still waits for goes on although there is no request.
    ending: bool,
}

/// The host as the place where responses go.
struct Host;

impl Output for Host {
    fn respond(&mut self, head: &[u8], body: &[u8], end: bool) {
        let args = [
            head.as_ptr() as u64,
            head.len() as u64,
            body.as_ptr() as u64,
            body.len() as u64,
        ];
        host::call(Call::RESPOND, flags(end), args);
    }

    fn body(&mut self, body: &[u8], end: bool) {
        let args = [body.as_ptr() as u64, body.len() as u64, 0, 0];
        host::call(Call::RESPONSE_BODY, flags(end), args);
    }
}

fn flags(end: bool) -> u32 {
    if end { respond_flags::END } else { 0 }
}

fn give_up(error: Malformed) -> ! {
    host::abort_with(abort_reason::MALFORMED_RESPONSE, 0, format_args!("{error}"))
}

impl Server {
    /// No request yet.
    pub const fn new() -> Self {
        Server {
            phase: Phase::Idle,
            id: 0,
            asked: false,
            message: [0; MESSAGE_BYTES],
            text: [0; TEXT_BYTES],
            text_end: 0,
            text_at: 0,
            body_at: 0,
            body_end: 0,
            body_left: 0,
            reply: Reply::new(),
            port_named: false,
            ending: false,
        }
    }

    /// The program has its one connection before its request; gives the connection's id.
    pub fn expect(&mut self) -> u32 {
        self.phase = Phase::Expected;
        self.id
    }

    /// Whether the request of connection `id` has yet to come. It may come from then on: this is asked where
    /// the program uses its connection.
    pub fn is_expected(&mut self, id: u32) -> bool {
        let expected = id == self.id && self.phase == Phase::Expected;
        self.asked |= expected;
        expected
    }

    /// Whether a request waits to be accepted.
    pub fn is_pending(&self) -> bool {
        self.phase == Phase::Pending
    }

    /// No thread can go on. Leaves the guest until a request is there, if the program is ready for one,
    /// however long that is: between requests nothing runs. Else until `deadline` (monotonic
    /// nanoseconds).
    pub fn wait(&mut self, deadline: Option<u64>) {
        let port = host::boot().port as u16;
        let listener = state::files().listener(port);
        let idle = matches!(self.phase, Phase::Idle | Phase::Answered);
        if self.phase == Phase::Unanswered {
            host::abort_with(
                abort_reason::NO_RESPONSE,
                0,
                format_args!("the program closed the connection without answering"),
            );
        }
        if self.phase == Phase::Expected && self.asked {
            let before = time::monotonic_ns();
            self.wait_for_request();
            // inetd starts a program when its caller is there: what it set its alarm for began then.
            let waited = time::monotonic_ns().saturating_sub(before);
            state::signals().postpone_alarm(waited);
            return;
        }
        match (listener, deadline) {
            (Some(listening), deadline) if idle && !(self.ending && deadline.is_some()) => {
                if listening != port && !self.port_named {
                    self.port_named = true;
                    log::note(format_args!(
                        "the program listens on port {listening} instead of $PORT ({port}); it gets \
                         the requests all the same"
                    ));
                }
                self.wait_for_request();
            }
            (_, Some(deadline)) => time::park_until(deadline),
            (_, None) => wait_for_ever(),
        }
    }

    fn wait_for_request(&mut self) {
        let buffer = self.message.as_mut_ptr() as u64;
        let bytes = ready::wait_for_request(buffer, MESSAGE_BYTES as u64);
        if bytes == WAIT_ENDED {
            self.ending = true;
            signals::post(signals::SIGTERM);
            return;
        }
        let bytes = usize::try_from(bytes).unwrap_or(0);
        let request = match Request::decode(&self.message[..bytes.min(MESSAGE_BYTES)]) {
            Ok(request) => request,
            Err(error) => give_up(error),
        };
        let mut sink = SliceSink::new(&mut self.text);
        if !write_request(&request, &mut sink) {
            give_up(Malformed("the request's head is too long for this guest"));
        }
        let head_only = request.method == b"HEAD";
        let inline = request.body.len();
        self.body_left = request.body_bytes - inline as u64;
        self.text_end = sink.used();
        self.text_at = 0;
        self.body_at = bytes - inline;
        self.body_end = bytes;
        self.reply.start(head_only);
        if self.phase == Phase::Expected {
            self.phase = Phase::Open;
            let id = self.id;
            state::files().edge(|object| object == Object::Connection(id));
        } else {
            self.phase = Phase::Pending;
            state::files().edge(|object| matches!(object, Object::Listener(_)));
        }
    }

    fn accept(&mut self) -> u32 {
        self.id = self.id.wrapping_add(1);
        self.phase = Phase::Open;
        self.id
    }

    fn is_open(&self, id: u32) -> bool {
        id == self.id && self.phase == Phase::Open
    }

    /// Bytes that a read of connection `id` would find.
    pub fn readable_bytes(&self, id: u32) -> u64 {
        match self.is_open(id) {
            true => {
                let here = self.text_end - self.text_at + self.body_end - self.body_at;
                here as u64 + self.body_left
            }
            false => 0,
        }
    }

    /// Whether a read of connection `id` would not wait: there is something, or it is at its end.
    pub fn is_readable(&self, id: u32) -> bool {
        match self.is_open(id) {
            true => self.readable_bytes(id) > 0,
            false => self.phase != Phase::Expected || id != self.id,
        }
    }

    /// Reads from connection `id`; EAGAIN where there is nothing more.
    pub fn read(&mut self, id: u32, to: &mut [u8]) -> SysResult {
        if self.is_expected(id) {
            return Err(Errno::EAGAIN);
        }
        if !self.is_open(id) || to.is_empty() {
            return Ok(0);
        }
        let mut done = take(&self.text[..self.text_end], &mut self.text_at, to);
        done += take(
            &self.message[..self.body_end],
            &mut self.body_at,
            &mut to[done..],
        );
        let rest = &mut to[done..];
        if self.body_left > 0 && rest.len() >= DIRECT_BYTES {
            done += self.request_body(rest.as_mut_ptr(), rest.len());
        } else if self.body_left > 0 && !rest.is_empty() {
            self.refill();
            done += take(&self.message[..self.body_end], &mut self.body_at, rest);
        }
        match done {
            // The caller has said everything and waits for the answer.
            0 => Err(Errno::EAGAIN),
            done => Ok(done as u64),
        }
    }

    /// Gets more of the body from the host.
    fn request_body(&mut self, to: *mut u8, room: usize) -> usize {
        let bytes = host::call(Call::REQUEST_BODY, 0, [to as u64, room as u64, 0, 0]).max(0) as u64;
        let bytes = bytes.min(room as u64).min(self.body_left);
        self.body_left -= bytes;
        bytes as usize
    }

    /// Gets more of the body into the message buffer, which has been read to its end: one exit for
    /// many short reads.
    fn refill(&mut self) {
        let room = self.message.len();
        let to = self.message.as_mut_ptr();
        (self.body_at, self.body_end) = (0, self.request_body(to, room));
    }

    fn peek(&mut self, id: u32, to: &mut [u8]) -> SysResult {
        if self.is_expected(id) {
            return Err(Errno::EAGAIN);
        }
        if !self.is_open(id) {
            return Ok(0);
        }
        if self.text_at == self.text_end && self.body_at == self.body_end && self.body_left > 0 {
            self.refill();
        }
        let (mut text_at, mut body_at) = (self.text_at, self.body_at);
        let done = take(&self.text[..self.text_end], &mut text_at, to);
        let done = done
            + take(
                &self.message[..self.body_end],
                &mut body_at,
                &mut to[done..],
            );
        if done == 0 {
            Err(Errno::EAGAIN)
        } else {
            Ok(done as u64)
        }
    }

    /// The program wrote to connection `id`. What follows a complete response is dropped.
    pub fn write(&mut self, id: u32, bytes: &[u8]) {
        if self.is_open(id) {
            if let Err(error) = self.reply.write(bytes, &mut Host) {
                give_up(error);
            }
            self.note_answer();
        }
    }

    /// The program closed connection `id`, or its sending half.
    pub fn close(&mut self, id: u32) {
        let expected = self.is_expected(id);
        if !self.is_open(id) && !expected {
            return;
        }
        if expected || self.reply.is_untouched() {
            // A program that panics closes its connections before it says with what status it ends.
            self.phase = Phase::Unanswered;
            return;
        }
        if let Err(error) = self.reply.close(&mut Host) {
            give_up(error);
        }
        self.note_answer();
    }

    /// The program ends, which closes its connections and so completes a response that goes on until
    /// then.
    pub fn end(&mut self) {
        if self.phase == Phase::Open && self.reply.ends_at_close() {
            self.close(self.id);
        }
    }

    /// After a complete answer the connection reads as closed by the caller.
    fn note_answer(&mut self) {
        if self.reply.is_done() {
            self.phase = Phase::Answered;
            let id = self.id;
            state::files().edge(|object| object == Object::Connection(id));
        }
    }
}

impl Default for Server {
    fn default() -> Self {
        Server::new()
    }
}

fn take(from: &[u8], at: &mut usize, to: &mut [u8]) -> usize {
    let bytes = (from.len() - *at).min(to.len());
    to[..bytes].copy_from_slice(&from[*at..*at + bytes]);
    *at += bytes;
    bytes
}

/// Writes to connection `id`; one that the program has had from the start waits for its request first.
pub fn write(id: u32, bytes: &[u8]) -> Result<(), Errno> {
    threads::blocking(false, || match state::server().is_expected(id) {
        true => Err(Errno::EAGAIN),
        false => Ok(0),
    })?;
    state::server().write(id, bytes);
    Ok(())
}

/// `socket`
pub fn socket(domain: u64, kind: u64) -> SysResult {
    match (domain, kind & 0xff) {
        (AF_INET | AF_INET6, SOCK_STREAM) => state::files().open(Object::Socket(0), kind),
        (AF_INET | AF_INET6 | AF_UNIX, _) => Err(Errno::EACCES),
        _ => Err(Errno::EAFNOSUPPORT),
    }
}

/// `bind`: only the port matters.
pub fn bind(descriptor: u64, address: u64, bytes: u64) -> SysResult {
    let address = user::slice(address, bytes.min(128))?;
    let port = match address {
        [2 | 10, 0, high, low, ..] => u16::from_be_bytes([*high, *low]),
        _ => return Err(Errno::EAFNOSUPPORT),
    };
    let open = state::files().get_mut(descriptor)?;
    match open.object {
        Object::Socket(0) => {
            open.object = Object::Socket(if port == 0 { 40_000 } else { port });
            Ok(0)
        }
        Object::Socket(_) | Object::Listener(_) | Object::Connection(_) => Err(Errno::EINVAL),
        _ => Err(Errno::ENOTSOCK),
    }
}

/// `listen`
pub fn listen(descriptor: u64) -> SysResult {
    let open = state::files().get_mut(descriptor)?;
    match open.object {
        Object::Socket(port) => {
            open.object = Object::Listener(if port == 0 { 40_000 } else { port });
            Ok(0)
        }
        Object::Listener(_) => Ok(0),
        Object::Connection(_) => Err(Errno::EINVAL),
        _ => Err(Errno::ENOTSOCK),
    }
}

/// `accept` and `accept4`
pub fn accept(descriptor: u64, address: u64, bytes: u64, flags: u64) -> SysResult {
    let open = state::files().get(descriptor)?;
    let Object::Listener(port) = open.object else {
        return Err(match open.object {
            Object::Socket(_) | Object::Connection(_) => Errno::EINVAL,
            _ => Errno::ENOTSOCK,
        });
    };
    threads::blocking(open.nonblocking, || {
        // Requests come in on one listener alone.
        let serving = state::files().listener(host::boot().port as u16) == Some(port);
        if serving && state::server().is_pending() {
            Ok(0)
        } else {
            Err(Errno::EAGAIN)
        }
    })?;
    let id = state::server().accept();
    let descriptor = state::files().open(Object::Connection(id), flags & SOCK_NONBLOCK)?;
    put_address(address, bytes, LOOPBACK, PEER_PORT)?;
    Ok(descriptor)
}

/// `connect`: nothing outside can be reached.
pub fn connect(descriptor: u64) -> SysResult {
    match state::files().get(descriptor)?.object {
        Object::Socket(_) | Object::Listener(_) | Object::Connection(_) => {
            log::note(format_args!(
                "connect refused (EACCES): the manifest allows this function no outbound connection"
            ));
            Err(Errno::EACCES)
        }
        _ => Err(Errno::ENOTSOCK),
    }
}

const ANY: [u8; 4] = [0, 0, 0, 0];
const LOOPBACK: [u8; 4] = [127, 0, 0, 1];
/// The caller's port, as the program sees it.
const PEER_PORT: u16 = 40_001;

/// Writes an address as a `struct sockaddr_in`.
fn put_address(address: u64, bytes: u64, ip: [u8; 4], port: u16) -> Result<(), Errno> {
    if address == 0 || bytes == 0 {
        return Ok(());
    }
    let [high, low] = port.to_be_bytes();
    let [a, b, c, d] = ip;
    let encoded: [u8; 16] = [2, 0, high, low, a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0];
    let room = user::read::<u32>(bytes)?.min(16);
    user::slice_mut(address, u64::from(room))?.copy_from_slice(&encoded[..room as usize]);
    user::write(bytes, 16u32)
}

/// `getsockname` and, with `peer`, `getpeername`
pub fn name(descriptor: u64, address: u64, bytes: u64, peer: bool) -> SysResult {
    let (ip, port) = match (state::files().get(descriptor)?.object, peer) {
        (Object::Connection(_), true) => (LOOPBACK, PEER_PORT),
        (Object::Connection(_), false) => (LOOPBACK, host::boot().port as u16),
        (Object::Socket(port) | Object::Listener(port), false) => (ANY, port),
        (Object::Socket(_) | Object::Listener(_), true) => return Err(Errno::ENOTCONN),
        _ => return Err(Errno::ENOTSOCK),
    };
    put_address(address, bytes, ip, port)?;
    Ok(0)
}

/// `getsockopt`: the values of a socket in good order.
pub fn get_option(descriptor: u64, level: u64, option: u64, value: u64, bytes: u64) -> SysResult {
    const SOL_SOCKET: u64 = 1;
    is_socket(descriptor)?;
    let answer: i32 = match (level, option) {
        // SO_TYPE
        (SOL_SOCKET, 3) => 1,
        // SO_SNDBUF, SO_RCVBUF
        (SOL_SOCKET, 7 | 8) => 1 << 16,
        // SO_ACCEPTCONN
        (SOL_SOCKET, 30) => i32::from(matches!(
            state::files().get(descriptor)?.object,
            Object::Listener(_)
        )),
        _ => 0,
    };
    if user::read::<u32>(bytes)? < 4 {
        return Err(Errno::EINVAL);
    }
    user::write(value, answer)?;
    user::write(bytes, 4u32)?;
    Ok(0)
}

/// `setsockopt`: nothing that a program can set changes a stream in memory.
pub fn set_option(descriptor: u64) -> SysResult {
    is_socket(descriptor)?;
    Ok(0)
}

fn is_socket(descriptor: u64) -> Result<(), Errno> {
    match state::files().get(descriptor)?.object {
        Object::Socket(_) | Object::Listener(_) | Object::Connection(_) | Object::Stream { .. } => {
            Ok(())
        }
        _ => Err(Errno::ENOTSOCK),
    }
}

/// `shutdown`: the end of the sending half ends a response that goes on until the close.
pub fn shutdown(descriptor: u64, how: u64) -> SysResult {
    match state::files().get(descriptor)?.object {
        Object::Connection(id) => {
            if how != 0 {
                state::server().close(id);
            }
            Ok(0)
        }
        Object::Socket(_) | Object::Listener(_) => Err(Errno::ENOTCONN),
        _ => Err(Errno::ENOTSOCK),
    }
}

/// `recvfrom` and each part of `recvmsg`
pub fn receive(descriptor: u64, to: &mut [u8], flags: u64) -> SysResult {
    let nonblocking = state::files().get(descriptor)?.nonblocking || flags & MSG_DONTWAIT != 0;
    threads::blocking(nonblocking, || {
        match state::files().get(descriptor)?.object {
            Object::Connection(id) if flags & MSG_PEEK != 0 => state::server().peek(id, to),
            Object::Connection(id) => state::server().read(id, to),
            Object::Stream { from, .. } => pipes::read(from, to),
            Object::Socket(_) | Object::Listener(_) => Err(Errno::ENOTCONN),
            _ => Err(Errno::ENOTSOCK),
        }
    })
}

/// `sendto` and each part of `sendmsg`
pub fn send(descriptor: u64, bytes: &[u8]) -> SysResult {
    is_socket(descriptor)?;
    files::write(descriptor, bytes)
}
