//! The request's connection: what the host hands over reads as a stream, and what the program writes to
//! it becomes the response.
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

use super::table::State;
use super::{mark, outbound};
use crate::errno::{Errno, SysResult};
use crate::files::wait_for_ever;
use crate::http::{Output, Reply, write_request};
use crate::{host, log, ready, signals, state, threads, time};

/// The encoded request, with the start of its body.
const MESSAGE_BYTES: usize = 96 << 10;
/// A read of so many bytes gets the body straight from the host.
const DIRECT_BYTES: usize = 32 << 10;
/// The request's head as text: it takes a hundred bytes more than encoded, of which there are at most 64 KiB.
const TEXT_BYTES: usize = 66 << 10;

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
        let listener = state::sockets().serving_port(port);
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
            (_, deadline) if outbound::park(deadline) => {}
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
            mark(|socket| socket.state == State::Request(id));
        } else {
            self.phase = Phase::Pending;
            mark(|socket| matches!(socket.state, State::Listening { .. }));
        }
    }

    /// Gives the waiting request a connection, and its id.
    pub fn accept(&mut self) -> u32 {
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

    /// The same, without taking it.
    pub fn peek(&mut self, id: u32, to: &mut [u8]) -> SysResult {
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
            mark(|socket| socket.state == State::Request(id));
        }
    }
}

impl Default for Server {
    fn default() -> Self {
        Server::new()
    }
}

/// Writes to connection `id`; one that the program has had from the start waits for its request first.
pub fn write(id: u32, bytes: &[u8]) -> SysResult {
    threads::blocking(false, || match state::server().is_expected(id) {
        true => Err(Errno::EAGAIN),
        false => Ok(0),
    })?;
    state::server().write(id, bytes);
    Ok(bytes.len() as u64)
}

fn take(from: &[u8], at: &mut usize, to: &mut [u8]) -> usize {
    let bytes = (from.len() - *at).min(to.len());
    to[..bytes].copy_from_slice(&from[*at..*at + bytes]);
    *at += bytes;
    bytes
}
