//! The host's side of the hostcalls: one invocation's exchange with its guest.
//!
//! Everything the guest says is an allegation. The call page is copied once and only the copy is
//! used; every address is looked up as the guest itself would; every length has a bound before anything is
//! allocated; a call that makes no sense is the guest's crash, with the reason.

use std::time::{Duration, Instant};

use holm_hostcall::message::{self, Sink};
use holm_hostcall::{CALL_ADDR, Call, CallPage, FIRST_SIGNAL, park_flags, respond_flags};
use holm_model::limits::{MAX_HEAD_BYTES, MAX_HEADERS};

use crate::crash::{self, CrashReport};
use crate::layout::View;
use crate::memory::GuestMemory;
use crate::outbound::{self, Outbound};
use crate::{Failure, Limits, Request, Response, RunStats, VmmError};

/// Longest text of an abort.
const MAX_ABORT_BYTES: u64 = 1024;
/// Offset of the result within the call page.
const RESULT: u64 = std::mem::offset_of!(CallPage, result) as u64;

pub(crate) const NOT_WRITABLE: &str = "its buffer is not memory that the guest may write";
pub(crate) const NOT_READABLE: &str = "its buffer is not the guest's memory";

/// What a hostcall leads to.
pub(crate) enum Action {
    /// The guest goes on.
    Continue,
    /// It waits for a request, in this buffer.
    Wait(Buffer),
    /// The response is complete.
    Answered(Response),
    /// It goes on at this moment of the host's monotonic clock, in nanoseconds, or when one of these
    /// events of its connections is there.
    Park(u64, u64),
    /// It took an exception, or a signal that nobody handles: vector, error code, address, and where its
    /// registers are.
    Fault {
        signal: Option<u64>,
        vector: u8,
        error_code: u64,
        address: u64,
        registers: u64,
    },
    /// It will not answer.
    Fail(Failure),
}

/// A range of guest memory, by the guest's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Buffer {
    pub(crate) addr: u64,
    pub(crate) bytes: u64,
}

/// The state of one invocation's exchange.
#[derive(Debug, Default)]
pub(crate) struct Exchange {
    /// A request was handed over and is not answered in full.
    open: bool,
    /// The guest has answered a request.
    answered: bool,
    /// What the guest has not read of the request's body.
    body: Vec<u8>,
    body_at: usize,
    response: Option<Response>,
    response_body_limit: u64,
    /// For encoding requests, kept to be used again.
    scratch: Vec<u8>,
}

struct VecSink<'a>(&'a mut Vec<u8>);

impl Sink for VecSink<'_> {
    fn put(&mut self, bytes: &[u8]) -> bool {
        let fits = self.0.len() + bytes.len() <= MAX_HEAD_BYTES;
        if fits {
            self.0.extend_from_slice(bytes);
        }
        fits
    }
}

impl Exchange {
    /// Writes a request into the buffer that the guest waits with, and the wait's result.
    pub(crate) fn begin(
        &mut self,
        view: View<'_>,
        buffer: Buffer,
        request: &Request<'_>,
        limits: &Limits,
    ) -> Result<(), VmmError> {
        self.scratch.clear();
        let fits = request.headers.len() <= MAX_HEADERS
            && message::encode_request(
                &mut VecSink(&mut self.scratch),
                request.method.as_bytes(),
                request.target.as_bytes(),
                request.headers.iter().copied(),
                request.body.len() as u64,
            );
        let room = buffer.bytes.checked_sub(self.scratch.len() as u64);
        let (true, Some(room)) = (fits, room) else {
            return Err(VmmError::RequestTooLarge(
                MAX_HEAD_BYTES.min(buffer.bytes as usize),
            ));
        };
        let inline = room.min(request.body.len() as u64) as usize;
        let total = self.scratch.len() + inline;
        let body_addr = buffer.addr + self.scratch.len() as u64;
        if !view.write(buffer.addr, &self.scratch)?
            || !view.write(body_addr, &request.body[..inline])?
        {
            // Checked when the guest gave it, and nothing has run since.
            return Err(VmmError::Misuse(
                "the buffer that a guest waits with is gone",
            ));
        }
        set_result(view.memory, total as i64)?;
        self.open = true;
        self.body.clear();
        self.body.extend_from_slice(&request.body[inline..]);
        self.body_at = 0;
        self.response = None;
        self.response_body_limit = limits.response_body_bytes;
        Ok(())
    }

    /// Serves the call that the guest has just made.
    pub(crate) fn serve(
        &mut self,
        view: View<'_>,
        outbound: Option<&mut dyn Outbound>,
        stats: &mut RunStats,
    ) -> Result<Action, VmmError> {
        let call = read_call(view.memory)?;
        let [a, b, c, d] = call.args;
        let buffer = |addr, bytes| Buffer { addr, bytes };
        Ok(match Call(call.number) {
            Call::WAIT_REQUEST if self.open => Action::Fail(Failure::Crash(CrashReport::of(
                "the program waits for another request without having answered this one",
            ))),
            Call::WAIT_REQUEST if view.is_writable(a, b)? => Action::Wait(buffer(a, b)),
            Call::WAIT_REQUEST => bad_call("wait for a request", NOT_WRITABLE),
            Call::REQUEST_BODY => self.request_body(view, buffer(a, b.min(self.body_left())))?,
            Call::RESPOND if !self.open => bad_call("respond", "there is no request"),
            Call::RESPOND => self.respond(view, buffer(a, b), buffer(c, d), call.flags)?,
            Call::RESPONSE_BODY => self.response_body(view, buffer(a, b), call.flags)?,
            // The log is read at every exit.
            Call::LOG_FLUSH => Action::Continue,
            Call::EXIT => {
                let when = match (self.open, self.answered) {
                    (true, _) => "before it answered",
                    (false, true) => "after it had answered",
                    (false, false) => "before it was ready",
                };
                Action::Fail(Failure::Crash(CrashReport::of(format!(
                    "the program exited with status {} {when}",
                    a & 0xFF
                ))))
            }
            Call::ABORT => {
                let mut text = vec![0; c.min(MAX_ABORT_BYTES) as usize];
                if !view.read(b, &mut text)? {
                    text.clear();
                }
                let text = String::from_utf8_lossy(&text);
                let printable: String = text.chars().filter(|one| !one.is_control()).collect();
                Action::Fail(Failure::Crash(crash::of_abort(a, d, &printable)))
            }
            Call::PARK => {
                set_result(view.memory, 0)?;
                let events = match call.flags & park_flags::SOCKETS {
                    0 => 0,
                    _ => b,
                };
                Action::Park(a, events)
            }
            Call::FAULT => Action::Fault {
                signal: a.checked_sub(FIRST_SIGNAL),
                vector: a as u8,
                error_code: b,
                address: c,
                registers: d,
            },
            Call::RESOLVE
            | Call::CONNECT
            | Call::SEND
            | Call::RECEIVE
            | Call::SHUT
            | Call::SOCKET_ERROR => match outbound::serve(&call, view, outbound, stats)? {
                Ok(result) => {
                    set_result(view.memory, result)?;
                    Action::Continue
                }
                Err(fault) => fault,
            },
            Call(number) => Action::Fail(Failure::Crash(CrashReport::of(format!(
                "the program made hostcall {number}, which does not exist"
            )))),
        })
    }

    fn body_left(&self) -> u64 {
        (self.body.len() - self.body_at) as u64
    }

    fn request_body(&mut self, view: View<'_>, buffer: Buffer) -> Result<Action, VmmError> {
        let end = self.body_at + buffer.bytes as usize;
        if !view.write(buffer.addr, &self.body[self.body_at..end])? {
            return Ok(bad_call("read the request's body", NOT_WRITABLE));
        }
        self.body_at = end;
        set_result(view.memory, buffer.bytes as i64)?;
        Ok(Action::Continue)
    }

    fn respond(
        &mut self,
        view: View<'_>,
        head: Buffer,
        body: Buffer,
        flags: u32,
    ) -> Result<Action, VmmError> {
        if self.response.is_some() {
            return Ok(bad_call("respond", "it has begun to respond already"));
        }
        if head.bytes > MAX_HEAD_BYTES as u64 {
            return Ok(bad_response(format!(
                "its head is longer than {MAX_HEAD_BYTES} bytes"
            )));
        }
        let mut bytes = vec![0; head.bytes as usize];
        if !view.read(head.addr, &mut bytes)? {
            return Ok(bad_call("respond", NOT_READABLE));
        }
        match response_head(&bytes) {
            Ok(response) => self.response = Some(response),
            Err(problem) => return Ok(bad_response(problem)),
        }
        self.response_body(view, body, flags)
    }

    fn response_body(
        &mut self,
        view: View<'_>,
        body: Buffer,
        flags: u32,
    ) -> Result<Action, VmmError> {
        let Some(response) = &mut self.response else {
            return Ok(bad_call("respond", "a body came without a head"));
        };
        let before = response.body.len();
        if body.bytes > self.response_body_limit.saturating_sub(before as u64) {
            return Ok(bad_response(format!(
                "its body is larger than the {} bytes that [limits] response_body allows",
                self.response_body_limit
            )));
        }
        response.body.resize(before + body.bytes as usize, 0);
        if !view.read(body.addr, &mut response.body[before..])? {
            return Ok(bad_call("respond", NOT_READABLE));
        }
        set_result(view.memory, body.bytes as i64)?;
        if flags & respond_flags::END == 0 {
            return Ok(Action::Continue);
        }
        self.open = false;
        Ok(self
            .response
            .take()
            .map_or(Action::Continue, Action::Answered))
    }
}

fn read_call(memory: &GuestMemory) -> Result<CallPage, VmmError> {
    let mut bytes = [0; size_of::<CallPage>()];
    memory.read(CALL_ADDR, &mut bytes)?;
    let word = |at: usize| {
        bytes[at..at + 8]
            .iter()
            .rev()
            .fold(0u64, |word, byte| word << 8 | u64::from(*byte))
    };
    Ok(CallPage {
        number: word(0) as u32,
        flags: (word(0) >> 32) as u32,
        args: [word(8), word(16), word(24), word(32)],
        result: 0,
        tsc: word(48),
    })
}

pub(crate) fn set_result(memory: &GuestMemory, result: i64) -> Result<(), VmmError> {
    memory.write(CALL_ADDR + RESULT, &result.to_le_bytes())
}

pub(crate) fn bad_call(what: &str, why: &str) -> Action {
    Action::Fail(Failure::Crash(CrashReport::of(format!(
        "the program made a bad hostcall, to {what}: {why}"
    ))))
}

fn bad_response(problem: impl Into<String>) -> Action {
    Action::Fail(Failure::BadResponse(problem.into()))
}

/// Decodes and checks the head of a response: what comes out is valid HTTP.
fn response_head(bytes: &[u8]) -> Result<Response, String> {
    let head = message::Response::decode(bytes).map_err(|error| error.to_string())?;
    if head.status < 200 {
        return Err(format!(
            "its status is {}; a final one is 200 or more",
            head.status
        ));
    }
    if head.headers.len() > MAX_HEADERS {
        return Err(format!("it has more than {MAX_HEADERS} headers"));
    }
    let mut headers = Vec::with_capacity(head.headers.len());
    for (name, value) in head.headers.iter() {
        headers.push((header_name(name)?, header_value(value)?));
    }
    Ok(Response {
        status: head.status,
        headers,
        body: Vec::new(),
    })
}

/// RFC 9110, 5.6.2: a name is a token; in lower case here.
fn header_name(name: &[u8]) -> Result<String, String> {
    let token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    match std::str::from_utf8(name) {
        Ok(text) if !text.is_empty() && name.iter().all(token) => Ok(text.to_ascii_lowercase()),
        _ => Err(format!(
            "`{}` is not a header name",
            String::from_utf8_lossy(name).escape_debug()
        )),
    }
}

/// RFC 9110, 5.5: visible characters, spaces and tabs.
fn header_value(value: &[u8]) -> Result<Vec<u8>, String> {
    match value
        .iter()
        .all(|byte| *byte == b'\t' || (*byte >= 0x20 && *byte != 0x7F))
    {
        true => Ok(value.trim_ascii().to_vec()),
        false => Err("a header's value holds a control character".into()),
    }
}

/// The instant at which the host's monotonic clock reads `monotonic_ns`.
pub(crate) fn instant_of(monotonic_ns: u64, now_ns: u64) -> Instant {
    Instant::now() + Duration::from_nanos(monotonic_ns.saturating_sub(now_ns).min(1 << 60))
}

#[cfg(test)]
mod tests {
    use super::*;
    use holm_hostcall::message::{SliceSink, encode_response};

    fn head(headers: &[(&[u8], &[u8])]) -> Result<Response, String> {
        let mut bytes = [0; 4096];
        let mut sink = SliceSink::new(&mut bytes);
        assert!(encode_response(&mut sink, 200, headers.iter().copied()));
        let used = sink.used();
        response_head(&bytes[..used])
    }

    #[test]
    fn only_valid_http_passes() {
        assert_eq!(
            head(&[(b"X-A", b" b ")]).unwrap().headers,
            [("x-a".into(), b"b".to_vec())]
        );
        for (name, value) in [
            (&b"a b"[..], &b""[..]),
            (b"a\r\n", b""),
            (b"a", b"b\r\nc: d"),
            (b"a", b"\0"),
            ("ä".as_bytes(), b""),
        ] {
            assert!(head(&[(name, value)]).is_err(), "{name:?}: {value:?}");
        }
    }
}
