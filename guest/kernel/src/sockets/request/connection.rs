//! One request being served: what of it the program has yet to read, and what became of the answer so far.

use core::fmt::Write as _;

use holm_hostcall::Call;
use holm_hostcall::message::{BODY_UNKNOWN, Malformed, Request, SliceSink};
use holm_hostcall::{abort_reason, respond_flags};

use super::place_of;
use crate::errno::Errno;
use crate::host::{self, Text};
use crate::http::{Output, Reply, write_request};
use crate::memory::guest;
use crate::state;

/// The encoded request, with the start of its body.
const MESSAGE_BYTES: usize = 96 << 10;
/// A read of so many bytes gets the body straight from the host.
const DIRECT_BYTES: usize = 32 << 10;
/// The request's head as text: it takes a hundred bytes more than encoded, of which there are at most 64 KiB.
const TEXT_BYTES: usize = 66 << 10;
/// Room for the line with a chunk's size before the chunk, and for the line end after it.
const CHUNK_LINE_BYTES: usize = 16;
const LINE_END: &[u8] = b"\r\n";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// No request.
    Idle,
    /// The program has a connection whose request has yet to come.
    Expected,
    /// A request that the program has not accepted yet.
    Pending,
    /// Accepted and not answered in full.
    Open,
    /// Answered, or its caller has gone; the program may still hold the connection.
    Answered,
    /// The program closed the connection without answering; it may be about to end.
    Unanswered,
}

/// One request being served, with its buffers.
pub(super) struct Connection {
    pub(super) phase: Phase,
    pub(super) id: u32,
    /// The caller went before the answer was complete.
    pub(super) gone: bool,
    message: [u8; MESSAGE_BYTES],
    text: [u8; TEXT_BYTES],
    text_end: usize,
    text_at: usize,
    /// What is left of the body's start, within `message`.
    body_at: usize,
    body_end: usize,
    /// Bytes of the body that the host still has, or [`BODY_UNKNOWN`] before the end of one in chunks.
    body_left: u64,
    /// Somebody wants more of the body than has come.
    pub(super) starved: bool,
    /// The program was told how much is here (FIONREAD), and no more has come since.
    pub(super) counted: bool,
    pub(super) reply: Reply,
}

impl Connection {
    pub(super) const fn new() -> Self {
        Connection {
            phase: Phase::Idle,
            id: 0,
            gone: false,
            message: [0; MESSAGE_BYTES],
            text: [0; TEXT_BYTES],
            text_end: 0,
            text_at: 0,
            body_at: 0,
            body_end: 0,
            body_left: 0,
            starved: false,
            counted: false,
            reply: Reply::new(),
        }
    }

    /// Makes one in memory that is all zero, without a copy on the stack, for which it is too large.
    pub(super) fn map() -> Option<*mut Connection> {
        let bytes = size_of::<Connection>() as u64;
        let at = state::memory().take(bytes, &mut guest()).ok()?;
        let connection = core::ptr::with_exposed_provenance_mut::<Connection>(at as usize);
        // SAFETY: mapped just now, in whole pages, for nobody else. The buffers of bytes are zero; every
        // other field is written here.
        unsafe {
            (&raw mut (*connection).phase).write(Phase::Idle);
            (&raw mut (*connection).id).write(0);
            (&raw mut (*connection).gone).write(false);
            (&raw mut (*connection).text_end).write(0);
            (&raw mut (*connection).text_at).write(0);
            (&raw mut (*connection).body_at).write(0);
            (&raw mut (*connection).body_end).write(0);
            (&raw mut (*connection).body_left).write(0);
            (&raw mut (*connection).starved).write(false);
            (&raw mut (*connection).counted).write(false);
            Reply::clear_at(&raw mut (*connection).reply);
        }
        Some(connection)
    }

    pub(super) fn is_free(&self) -> bool {
        matches!(self.phase, Phase::Idle | Phase::Answered)
    }

    pub(super) fn is_over(&self) -> bool {
        self.is_free() || self.phase == Phase::Unanswered
    }

    /// Where the host writes a request, and how long that may be: room is left for a line end behind it.
    pub(super) fn room(&mut self) -> (u64, u64) {
        let room = &mut self.message[..MESSAGE_BYTES - LINE_END.len()];
        (room.as_mut_ptr() as u64, room.len() as u64)
    }

    /// Takes in a request that was written into the message buffer.
    pub(super) fn begin(&mut self, bytes: usize) {
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
        (self.text_at, self.text_end) = (0, sink.used());
        (self.body_at, self.body_end) = (bytes - inline, bytes);
        self.gone = false;
        (self.starved, self.counted) = (false, false);
        self.body_left = match request.body_bytes {
            BODY_UNKNOWN => BODY_UNKNOWN,
            whole => whole - inline as u64,
        };
        if self.body_left == BODY_UNKNOWN && inline > 0 {
            // The size goes behind the head; for the line end the wait has left room.
            let line = chunk_line(inline);
            let room = &mut self.text[self.text_end..][..line.used];
            room.copy_from_slice(&line.bytes[..line.used]);
            self.text_end += line.used;
            self.message[bytes..][..LINE_END.len()].copy_from_slice(LINE_END);
            self.body_end += LINE_END.len();
        }
        self.reply.start(head_only);
    }

    /// What is here of what the program has not read.
    fn here(&self) -> usize {
        self.text_end - self.text_at + self.body_end - self.body_at
    }

    /// Takes what is here.
    fn take(&mut self, to: &mut [u8]) -> usize {
        let done = take(&self.text[..self.text_end], &mut self.text_at, to);
        let body = &self.message[..self.body_end];
        done + take(body, &mut self.body_at, &mut to[done..])
    }

    /// Copies what is behind the next `skip` bytes of what is here, without taking it.
    pub(super) fn look(&mut self, mut skip: u64, to: &mut [u8]) -> usize {
        let (text_at, body_at) = (self.text_at, self.body_at);
        for (at, end) in [
            (&mut self.text_at, self.text_end),
            (&mut self.body_at, self.body_end),
        ] {
            let passed = skip.min((end - *at) as u64);
            *at += passed as usize;
            skip -= passed;
        }
        let done = self.take(to);
        (self.text_at, self.body_at) = (text_at, body_at);
        done
    }

    /// Gets more of the body, if nothing is here. Gives how much is, and whether it has come just now while the program
    /// may wait for it.
    pub(super) fn readable_bytes(&mut self) -> (u64, bool) {
        let mut awaited = false;
        if self.here() == 0 && self.body_left > 0 {
            awaited = core::mem::take(&mut self.starved);
            self.refill();
        }
        let here = self.here() as u64;
        (here, awaited && here > 0)
    }

    /// Reads what is here, and what the host has if that is too little. Gives how much it was, and whether there is more
    /// than the program was told, which looks as if it had come just now.
    pub(super) fn read(&mut self, to: &mut [u8]) -> (usize, bool) {
        let mut done = self.take(to);
        let rest = &mut to[done..];
        if self.body_left == 0 {
            return (done, false);
        }
        let asks = !rest.is_empty();
        match rest.len() {
            0 => {}
            DIRECT_BYTES.. if self.body_left != BODY_UNKNOWN => {
                done += self.receive(rest.as_mut_ptr(), rest.len());
            }
            _ => {
                self.refill();
                done += self.take(rest);
            }
        }
        // Who knows how much there was (FIONREAD), or got less than asked for, need not read once more to know that
        // nothing is there, and may wait for an edge. If the host has more already, the wait ends at once.
        let is_empty = self.here() == 0;
        self.starved |= is_empty && self.body_left != 0;
        (
            done,
            !is_empty && asks && core::mem::take(&mut self.counted),
        )
    }

    /// Gets more of the body from the host.
    fn receive(&mut self, to: *mut u8, room: usize) -> usize {
        let args = [to as u64, room as u64, 0, 0];
        let result = host::call_about(place_of(self.id), Call::REQUEST_BODY, 0, args);
        if result == -i64::from(Errno::EAGAIN.0) {
            self.starved = true;
            return 0;
        }
        let bytes = (result.max(0) as u64).min(room as u64).min(self.body_left);
        self.body_left = match (bytes, self.body_left) {
            // The caller went away in the middle of it, or it is the last chunk.
            (0, _) => 0,
            (_, BODY_UNKNOWN) => BODY_UNKNOWN,
            (bytes, left) => left - bytes,
        };
        self.starved = bytes < room as u64 && self.body_left != 0;
        bytes as usize
    }

    /// Gets more of the body into the message buffer, which has been read to its end: one exit for
    /// many short reads.
    fn refill(&mut self) {
        let in_chunks = self.body_left == BODY_UNKNOWN;
        let start = if in_chunks { CHUNK_LINE_BYTES } else { 0 };
        let end = MESSAGE_BYTES - if in_chunks { LINE_END.len() } else { 0 };
        let to = self.message[start..end].as_mut_ptr();
        let bytes = self.receive(to, end - start);
        (self.body_at, self.body_end) = (start, start + bytes);
        if !in_chunks || bytes == 0 && self.body_left != 0 {
            return;
        }
        // The last chunk has no bytes, and a line end behind it all the same.
        let line = chunk_line(bytes);
        self.body_at -= line.used;
        self.message[self.body_at..start].copy_from_slice(&line.bytes[..line.used]);
        self.message[self.body_end..][..LINE_END.len()].copy_from_slice(LINE_END);
        self.body_end += LINE_END.len();
    }
}

/// The line before a chunk of so many bytes.
fn chunk_line(bytes: usize) -> Text<CHUNK_LINE_BYTES> {
    let mut line = Text::new();
    // At most five digits and two characters.
    let _ = write!(line, "{bytes:x}\r\n");
    line
}

fn take(from: &[u8], at: &mut usize, to: &mut [u8]) -> usize {
    let bytes = (from.len() - *at).min(to.len());
    to[..bytes].copy_from_slice(&from[*at..*at + bytes]);
    *at += bytes;
    bytes
}

/// The host as the place where the response to the request at a place goes.
pub(super) struct Host(pub(super) u8);

impl Output for Host {
    fn respond(&mut self, head: &[u8], body: &[u8], end: bool) {
        let args = [
            head.as_ptr() as u64,
            head.len() as u64,
            body.as_ptr() as u64,
            body.len() as u64,
        ];
        host::call_about(self.0, Call::RESPOND, flags(end), args);
    }

    fn body(&mut self, body: &[u8], end: bool) {
        let args = [body.as_ptr() as u64, body.len() as u64, 0, 0];
        host::call_about(self.0, Call::RESPONSE_BODY, flags(end), args);
    }
}

fn flags(end: bool) -> u32 {
    if end { respond_flags::END } else { 0 }
}

fn give_up(error: Malformed) -> ! {
    host::abort_with(abort_reason::MALFORMED_RESPONSE, 0, format_args!("{error}"))
}
