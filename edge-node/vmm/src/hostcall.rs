//! The host's side of the hostcalls: what an instance and its requests have to say to each other.
//!
//! Everything the guest says is an allegation. The call page is copied once and only the copy is
//! used; every address is looked up as the guest itself would; every length has a bound before anything is
//! allocated; a call that makes no sense is the guest's crash, with the reason.

use std::time::{Duration, Instant};

use holm_hostcall::message::{self, Sink};
use holm_hostcall::{CALL_ADDR, Call, CallPage, FIRST_SIGNAL, abort_reason, respond_flags};
use holm_model::limits::{MAX_HEAD_BYTES, MAX_HEADERS};

use crate::crash::{self, CrashReport};
use crate::layout::View;
use crate::memory::GuestMemory;
use crate::outbound::{self, Outbound};
use crate::{Failure, Limits, Request, RequestPlace, Response, RunStats, VmmError};

/// Longest text of an abort.
const MAX_ABORT_BYTES: u64 = 1024;
/// Offset of the result within the call page.
const RESULT: u64 = std::mem::offset_of!(CallPage, result) as u64;
/// As much of a response that goes on is passed on at once.
const PART_BYTES: usize = 256 << 10;

pub(crate) const NOT_WRITABLE: &str = "its buffer is not memory that the guest may write";
pub(crate) const NOT_READABLE: &str = "its buffer is not the guest's memory";

/// What a hostcall leads to.
pub(crate) enum Action {
    /// The guest goes on.
    Continue,
    /// It waits for something.
    Park(Parked),
    /// The response of a request is complete.
    Answered(RequestPlace),
    /// So much of a response is there that it should be passed on before the guest goes on.
    Part,
    /// One request of several will not be answered.
    Drop(RequestPlace, Failure),
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
    /// The same, and where the registers are that it had then.
    GiveUp(Box<CrashReport>, u64),
}

/// A range of guest memory, by the guest's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Buffer {
    pub(crate) addr: u64,
    pub(crate) bytes: u64,
}

/// Where a guest takes its next request: a buffer for it, and the place that it will have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Offer {
    pub(crate) buffer: Buffer,
    pub(crate) place: RequestPlace,
}

/// What a guest waits for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parked {
    /// A moment of the guest's monotonic clock, in nanoseconds.
    pub(crate) until_ns: u64,
    /// One of these events of its connections.
    pub(crate) events: u64,
    /// More of the bodies of the requests at these places.
    pub(crate) wanted: u64,
    /// A request.
    pub(crate) offer: Option<Offer>,
    /// Which has come: the call's result is written.
    pub(crate) begun: bool,
}

/// A request that was handed over and is not answered in full.
#[derive(Debug)]
struct Served {
    place: RequestPlace,
    limits: Limits,
    /// What the guest has not read of the request's body, and whether more may come.
    body: Vec<u8>,
    body_at: usize,
    body_ended: bool,
    /// What it has answered and nobody has taken yet.
    response: Option<Response>,
    /// Bytes of the response's body so far.
    response_bytes: u64,
    /// The guest has come to rest since it wrote of it.
    rested: bool,
    /// The response has no body, whatever its head says.
    head_only: bool,
}

/// The state of an instance's exchange with its requests.
#[derive(Debug, Default)]
pub(crate) struct Exchange {
    served: Vec<Served>,
    /// A bit for each place whose caller has gone, until the guest uses it again, and those that it was told of.
    gone: u64,
    told: u64,
    /// The guest has answered a request.
    answered: bool,
    /// What the request that is or was last at each place has taken.
    stats: Vec<RunStats>,
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

impl Served {
    /// While the guest is at work a small part can wait: it may become the whole.
    fn has_part(&self) -> bool {
        let response = self.response.as_ref().filter(|_| self.limits.streams);
        response.is_some_and(|response| {
            let large = response.body.len() >= PART_BYTES;
            large || self.rested && !(response.continues && response.body.is_empty())
        })
    }

    /// What the response's head says of its length is more than it may have.
    fn is_too_long(&self, response: &Response) -> bool {
        let lengths = response.headers.iter();
        let mut lengths = lengths.filter(|(name, _)| name == "content-length");
        !self.head_only
            && lengths.any(|(_, value)| {
                let text = std::str::from_utf8(value).unwrap_or_default();
                let length = text.parse::<u64>();
                length.is_ok_and(|length| length > self.limits.response_body_bytes)
            })
    }

    fn body_left(&self) -> usize {
        self.body.len() - self.body_at
    }
}

impl Exchange {
    /// Nothing is going on: the instance is a new one.
    pub(crate) fn clear(&mut self) {
        self.served.clear();
        (self.gone, self.told, self.answered) = (0, 0, false);
    }

    /// Whether no request is open.
    pub(crate) fn is_idle(&self) -> bool {
        self.served.is_empty()
    }

    /// Writes a request into the buffer that the guest waits with, and the wait's result. Of its body, `length`
    /// bytes in all or an unknown number, more may come later.
    pub(crate) fn begin(
        &mut self,
        view: View<'_>,
        Offer { buffer, place }: Offer,
        request: &Request<'_>,
        length: Option<u64>,
        limits: &Limits,
    ) -> Result<(), VmmError> {
        self.scratch.clear();
        let fits = request.headers.len() <= MAX_HEADERS
            && message::encode_request(
                &mut VecSink(&mut self.scratch),
                request.method.as_bytes(),
                request.target.as_bytes(),
                request.headers.iter().copied(),
                length.unwrap_or(message::BODY_UNKNOWN),
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
        self.served.push(Served {
            place,
            limits: *limits,
            body: request.body[inline..].to_vec(),
            body_at: 0,
            body_ended: length == Some(request.body.len() as u64),
            response: None,
            response_bytes: 0,
            rested: false,
            head_only: request.method == "HEAD",
        });
        let stats = self.stats.len().max(place.index() + 1);
        self.stats.resize(stats, RunStats::default());
        self.stats[place.index()] = RunStats::default();
        Ok(())
    }

    /// More of a request's body; with `end` the last of it.
    pub(crate) fn add_body(&mut self, place: RequestPlace, bytes: &[u8], end: bool) {
        if let Some(served) = self.find(place) {
            served.body.drain(..std::mem::take(&mut served.body_at));
            served.body.extend_from_slice(bytes);
            served.body_ended |= end;
        }
    }

    /// Bytes of a request's body that the guest has not read.
    pub(crate) fn body_left(&self, place: RequestPlace) -> usize {
        let served = self.served.iter().find(|served| served.place == place);
        served.map_or(0, Served::body_left)
    }

    /// What the request that is or was last at the place has taken.
    pub(crate) fn stats(&self, place: RequestPlace) -> RunStats {
        self.stats.get(place.index()).copied().unwrap_or_default()
    }

    /// Says what the requests that are open have taken together: each the same part.
    pub(crate) fn share(&mut self, taken: &RunStats) {
        for (nth, served) in self.served.iter().enumerate() {
            let part = taken.part(nth, self.served.len());
            if let Some(stats) = self.stats.get_mut(served.place.index()) {
                stats.add(&part);
            }
        }
    }

    /// The first deadline of an open request.
    pub(crate) fn first_deadline(&self) -> Option<(Instant, RequestPlace)> {
        let deadlines = self.served.iter();
        deadlines
            .map(|served| (served.limits.deadline, served.place))
            .min()
    }

    /// How much longer all can run together before one has used its CPU time up, and the first that will have.
    pub(crate) fn cpu_left(&self) -> Option<(Duration, RequestPlace)> {
        let left = self.served.iter().map(|served| {
            let used = self.stats(served.place).cpu;
            (served.limits.cpu.saturating_sub(used), served.place)
        });
        let together = u32::try_from(self.served.len()).unwrap_or(u32::MAX);
        left.min()
            .map(|(left, place)| (left.saturating_mul(together), place))
    }

    /// Whether requests are open beside the one at this place.
    pub(crate) fn serves_others(&self, place: RequestPlace) -> bool {
        self.served.iter().any(|served| served.place != place)
    }

    /// The caller has gone, or is told that there will be no answer.
    pub(crate) fn leave(&mut self, place: RequestPlace) {
        if self.find(place).is_some() {
            self.served.retain(|served| served.place != place);
            self.gone |= place.bit();
        }
    }

    /// The complete response, or what has not been taken of it.
    pub(crate) fn finish(&mut self, place: RequestPlace) -> Option<Response> {
        let at = self.served.iter().position(|one| one.place == place)?;
        self.answered = true;
        self.served.swap_remove(at).response
    }

    /// The parts of responses, where more is to come, that may be passed on already.
    pub(crate) fn take_parts(&mut self) -> Vec<Response> {
        let with_part = self.served.iter_mut().filter(|served| served.has_part());
        let taken = with_part.filter_map(|served| {
            let response = served.response.as_mut()?;
            served.rested = false;
            let rest = Response {
                place: served.place,
                status: response.status,
                headers: Vec::new(),
                body: Vec::new(),
                continues: true,
            };
            Some(std::mem::replace(response, rest))
        });
        taken.collect()
    }

    /// The guest has come to rest: what it has written of responses is not to wait any longer.
    pub(crate) fn rest(&mut self) {
        self.served
            .iter_mut()
            .for_each(|served| served.rested = true);
    }

    /// Whether there are such parts.
    pub(crate) fn has_part(&self) -> bool {
        self.served.iter().any(Served::has_part)
    }

    /// A bit for each place whose caller has gone, and whether the guest knows.
    pub(crate) fn gone(&self) -> (u64, bool) {
        (self.gone, self.gone & !self.told == 0)
    }

    /// It has been told.
    pub(crate) fn tell_gone(&mut self) {
        self.told = self.gone;
    }

    /// A bit for each place among `wanted` of whose body there is more, or its end.
    pub(crate) fn readable(&self, wanted: u64) -> u64 {
        let readable = self.served.iter().filter(|served| {
            wanted & served.place.bit() != 0 && (served.body_left() > 0 || served.body_ended)
        });
        readable.fold(0, |all, served| all | served.place.bit())
    }

    fn find(&mut self, place: RequestPlace) -> Option<&mut Served> {
        self.served.iter_mut().find(|served| served.place == place)
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
        let Some(place) = RequestPlace::new(call.request) else {
            return Ok(bad_call("name a request", "there are not so many places"));
        };
        Ok(match Call(call.number) {
            Call::WAIT_REQUEST => self.wait(view, &call, place)?,
            Call::REQUEST_BODY => self.request_body(view, place, buffer(a, b))?,
            Call::RESPOND | Call::RESPONSE_BODY if self.gone & place.bit() != 0 => {
                set_result(view.memory, -i64::from(libc::EPIPE))?;
                Action::Continue
            }
            Call::RESPOND => {
                let body = buffer(c, d);
                let action = self.respond(view, place, buffer(a, b), body, call.flags)?;
                self.blame(action, view, place)?
            }
            Call::RESPONSE_BODY => {
                let action = self.response_body(view, place, buffer(a, b), call.flags)?;
                self.blame(action, view, place)?
            }
            // The log is read at every exit.
            Call::LOG_FLUSH => Action::Continue,
            Call::EXIT => {
                let when = match (self.is_idle(), self.answered) {
                    (false, _) => "before it answered",
                    (true, true) => "after it had answered",
                    (true, false) => {
                        "before it was ready: it has to listen on $PORT, wait for a connection and go on"
                    }
                };
                Action::Fail(Failure::Crash(CrashReport::of(format!(
                    "the program exited with status {} {when}",
                    a & 0xFF
                ))))
            }
            Call::ABORT | Call::FAIL_REQUEST => {
                let mut text = vec![0; c.min(MAX_ABORT_BYTES) as usize];
                if !view.read(b, &mut text)? {
                    text.clear();
                }
                let text = String::from_utf8_lossy(&text);
                let printable: String = text.chars().filter(|one| !one.is_control()).collect();
                let report = crash::of_abort(a, d, &printable);
                let failure = || Failure::Crash(report.clone());
                let one_of_several =
                    call.number == Call::FAIL_REQUEST.0 && self.serves_others(place);
                match a {
                    _ if one_of_several && self.find(place).is_some() => {
                        Action::Drop(place, failure())
                    }
                    _ if one_of_several => Action::Continue,
                    abort_reason::DEADLOCK | abort_reason::OUT_OF_MEMORY => {
                        Action::GiveUp(report, d)
                    }
                    _ => Action::Fail(failure()),
                }
            }
            Call::PARK => Action::Park(Parked {
                until_ns: a,
                events: b,
                wanted: call.wanted,
                offer: None,
                begun: false,
            }),
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

    /// A response that cannot be passed on is no matter of other requests.
    fn blame(
        &self,
        action: Action,
        view: View<'_>,
        place: RequestPlace,
    ) -> Result<Action, VmmError> {
        match action {
            Action::Fail(failure @ Failure::BadResponse(_)) if self.serves_others(place) => {
                set_result(view.memory, -i64::from(libc::EPIPE))?;
                Ok(Action::Drop(place, failure))
            }
            action => Ok(action),
        }
    }

    fn wait(
        &mut self,
        view: View<'_>,
        call: &CallPage,
        place: RequestPlace,
    ) -> Result<Action, VmmError> {
        let [addr, bytes, until_ns, events] = call.args;
        if self.find(place).is_some() {
            return Ok(Action::Fail(Failure::Crash(CrashReport::of(
                "the program waits for another request without having answered this one",
            ))));
        }
        if !view.is_writable(addr, bytes)? {
            return Ok(bad_call("wait for a request", NOT_WRITABLE));
        }
        self.gone &= !place.bit();
        self.told &= !place.bit();
        Ok(Action::Park(Parked {
            until_ns,
            events,
            wanted: call.wanted,
            offer: Some(Offer {
                buffer: Buffer { addr, bytes },
                place,
            }),
            begun: false,
        }))
    }

    fn request_body(
        &mut self,
        view: View<'_>,
        place: RequestPlace,
        buffer: Buffer,
    ) -> Result<Action, VmmError> {
        let result = match self.find(place) {
            // It was answered, or its caller has gone: there is no more of it.
            None => 0,
            Some(served) if served.body_left() == 0 && !served.body_ended => {
                -i64::from(libc::EAGAIN)
            }
            Some(served) => {
                let bytes = buffer.bytes.min(served.body_left() as u64) as usize;
                let end = served.body_at + bytes;
                if !view.write(buffer.addr, &served.body[served.body_at..end])? {
                    return Ok(bad_call("read the request's body", NOT_WRITABLE));
                }
                served.body_at = end;
                bytes as i64
            }
        };
        set_result(view.memory, result)?;
        Ok(Action::Continue)
    }

    fn respond(
        &mut self,
        view: View<'_>,
        place: RequestPlace,
        head: Buffer,
        body: Buffer,
        flags: u32,
    ) -> Result<Action, VmmError> {
        let Some(served) = self.find(place) else {
            return Ok(bad_call("respond", "there is no request"));
        };
        if served.response.is_some() {
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
        match response_head(&bytes, place) {
            Ok(response) if served.is_too_long(&response) => {
                return Ok(too_long(served.limits.response_body_bytes));
            }
            Ok(response) => served.response = Some(response),
            Err(problem) => return Ok(bad_response(problem)),
        }
        self.response_body(view, place, body, flags)
    }

    fn response_body(
        &mut self,
        view: View<'_>,
        place: RequestPlace,
        body: Buffer,
        flags: u32,
    ) -> Result<Action, VmmError> {
        let Some(served) = self.find(place) else {
            return Ok(bad_call("respond", "there is no request"));
        };
        let Some(response) = &mut served.response else {
            return Ok(bad_call("respond", "a body came without a head"));
        };
        let most = served.limits.response_body_bytes;
        if body.bytes > most.saturating_sub(served.response_bytes) {
            return Ok(too_long(most));
        }
        let before = response.body.len();
        response.body.resize(before + body.bytes as usize, 0);
        if !view.read(body.addr, &mut response.body[before..])? {
            return Ok(bad_call("respond", NOT_READABLE));
        }
        served.response_bytes += body.bytes;
        set_result(view.memory, body.bytes as i64)?;
        Ok(match flags & respond_flags::END {
            0 if served.has_part() => Action::Part,
            0 => Action::Continue,
            _ => Action::Answered(place),
        })
    }
}

fn read_call(memory: &GuestMemory) -> Result<CallPage, VmmError> {
    let mut bytes = [0; size_of::<CallPage>()];
    memory.read(CALL_ADDR, &mut bytes)?;
    let words = bytes.as_chunks().0;
    let word = |at: usize| u64::from_le_bytes(words[at / 8]);
    Ok(CallPage {
        number: word(0) as u32,
        flags: (word(0) >> 32) as u32,
        args: [word(8), word(16), word(24), word(32)],
        request: word(40),
        wanted: word(48),
        result: 0,
        tsc: word(64),
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

fn too_long(most: u64) -> Action {
    bad_response(format!(
        "its body is larger than the {most} bytes that [limits] response_body allows"
    ))
}

fn bad_response(problem: impl Into<String>) -> Action {
    Action::Fail(Failure::BadResponse(problem.into()))
}

/// Decodes and checks the head of a response: what comes out is valid HTTP.
fn response_head(bytes: &[u8], place: RequestPlace) -> Result<Response, String> {
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
        place,
        status: head.status,
        headers,
        body: Vec::new(),
        continues: false,
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
        response_head(&bytes[..used], RequestPlace::FIRST)
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
