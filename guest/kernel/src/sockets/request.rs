//! The requests' connections: what the host hands over reads as a stream, and what the program writes to
//! it becomes the response.
//!
//! ```text
//!   [idle] ──accept/poll waits: WAIT_REQUEST──▶ [pending] ──accept──▶ [open] ──▶ [answered]
//!      ▲                                                                             │
//!      └──────────────── the program waits for the next request ─────────────────────┘
//! ```
//! The first wait is the snapshot point, so under isolation by request a guest only ever goes once from left
//! to right, with one connection. An instance that is kept takes a further request while others are open,
//! each on a connection of its own, whenever all its threads wait and one of them for a request.
//!
//! A program that is run as under inetd has the connection from the start, before there is a request:
//! ```text
//!   [expected] ──first use of the connection waits: WAIT_REQUEST──▶ [open] ──▶ [answered]
//! ```

mod connection;

use holm_hostcall::message::Malformed;
use holm_hostcall::{Call, MAX_REQUESTS, WAIT_ENDED, abort_reason, boot_flags};

use super::table::State;
use super::{mark, outbound};
use crate::errno::{Errno, SysResult};
use crate::{host, log, ready, signals, state, threads, time};
use connection::{Connection, Host, Phase};

/// A connection's id is its place, and above these bits a number that is new for every request.
const PLACE_BITS: u32 = 6;

const _: () = assert!(MAX_REQUESTS == 1 << PLACE_BITS);

fn place_of(id: u32) -> u8 {
    (id % MAX_REQUESTS as u32) as u8
}

/// The requests being served.
pub struct Server {
    first: Connection,
    /// Where the others are, in memory of the program's; 0 for those that were never needed.
    others: [u64; MAX_REQUESTS - 1],
    /// Number of the last request.
    number: u32,
    /// The place of the request that waits to be accepted.
    pending: Option<u8>,
    /// The program has asked for the request that is expected.
    asked: bool,
    port_named: bool,
    /// The program has looked for a request on $PORT.
    sought: bool,
    /// When it first could have been taken for ready although it had not; 0 for not yet.
    waits_since: u64,
    /// The program was told to end: what it still waits for goes on although there is no request.
    ending: bool,
}

impl Server {
    /// No request yet.
    pub const fn new() -> Self {
        Server {
            first: Connection::new(),
            others: [0; MAX_REQUESTS - 1],
            number: 0,
            pending: None,
            asked: false,
            port_named: false,
            sought: false,
            waits_since: 0,
            ending: false,
        }
    }

    /// The connection at a place, if it was ever needed.
    fn at(&mut self, place: u8) -> Option<&mut Connection> {
        let Some(other) = usize::from(place).checked_sub(1) else {
            return Some(&mut self.first);
        };
        match self.others.get(other).copied() {
            None | Some(0) => None,
            Some(at) => {
                let there = core::ptr::with_exposed_provenance_mut::<Connection>(at as usize);
                // SAFETY: made by `Connection::map`, and only used by way of this function, which borrows
                // the server. A program that writes to what it does not know of harms itself alone.
                Some(unsafe { &mut *there })
            }
        }
    }

    /// The places that were ever needed.
    fn places(&self) -> impl Iterator<Item = u8> + use<> {
        let used = self.others.iter().take_while(|at| **at != 0).count();
        0..=used as u8
    }

    /// The connection `id`, while its request is being served.
    fn open(&mut self, id: u32) -> Option<&mut Connection> {
        self.at(place_of(id))
            .filter(|connection| connection.id == id && connection.phase == Phase::Open)
    }

    /// The program has its one connection before its request; gives the connection's id.
    pub fn expect(&mut self) -> u32 {
        self.first.phase = Phase::Expected;
        self.first.id
    }

    /// Whether the request of connection `id` has yet to come. It may come from then on: this is asked where
    /// the program uses its connection.
    pub fn is_expected(&mut self, id: u32) -> bool {
        let expected = id == self.first.id && self.first.phase == Phase::Expected;
        self.asked |= expected;
        expected
    }

    /// Whether a request waits to be accepted.
    pub fn is_pending(&self) -> bool {
        self.pending.is_some()
    }

    /// The program looks for a request on $PORT.
    pub fn seek(&mut self) {
        self.sought = true;
    }

    /// Whether the program is as ready as it gets: it has looked for a request, or nothing else is about to happen.
    /// Else the moment at which it is taken to be, however little it has done for it until then: it may look for
    /// requests in a way of its own, or on another port than it was told.
    fn is_ready(&mut self, deadline: Option<u64>, events: u64) -> Result<(), u64> {
        /// As long as programs take for other things before they turn to requests.
        const PATIENCE_NS: u64 = 3_000_000_000;
        const FAR_NS: u64 = 30_000_000_000;
        if self.sought || *state::ready() || deadline.is_none() && events == 0 {
            return Ok(());
        }
        let now = time::monotonic_ns();
        if self.waits_since == 0 {
            self.waits_since = now;
        }
        let until = self.waits_since.saturating_add(PATIENCE_NS);
        // Go looks after itself every minute.
        let is_far = deadline.is_none_or(|deadline| deadline > now.saturating_add(FAR_NS));
        match now >= until || is_far && events == 0 {
            true => Ok(()),
            false => Err(until),
        }
    }

    /// No thread can go on. Leaves the guest until something comes for one of them, or until `deadline`
    /// (monotonic nanoseconds). If the program is ready for a request and has none, that is all it waits
    /// for, however long it takes: between requests nothing runs.
    pub fn wait(&mut self, deadline: Option<u64>) {
        let served = self.places().filter(|place| {
            let connection = self.at(*place);
            connection.is_some_and(|connection| !connection.is_over())
        });
        let served = served.count();
        self.fail_unanswered(served > 0);
        if self.first.phase == Phase::Expected && self.asked {
            let before = time::monotonic_ns();
            self.wait_for_request(0, None, 0);
            // inetd starts a program when its caller is there: what it set its alarm for began then.
            let waited = time::monotonic_ns().saturating_sub(before);
            state::signal_timers().postpone(waited);
            return;
        }
        self.send_parts();
        let events = outbound::awaited();
        let shared = host::boot().flags & boot_flags::SHARED != 0;
        let takes = match served {
            0 => !(self.ending && deadline.is_some()),
            _ => shared && state::threads().awaits_request(),
        };
        let mut deadline = deadline;
        if takes
            && self.pending.is_none()
            && let Some(listening) = state::sockets().serving_port(host::boot().port as u16)
            && let Some(place) = match self.is_ready(deadline, events) {
                Ok(()) => self.free_place(),
                Err(until) => {
                    deadline = Some(deadline.map_or(until, |deadline| deadline.min(until)));
                    None
                }
            }
        {
            self.name_port(listening);
            match served {
                0 => self.wait_for_request(place, None, 0),
                _ => self.wait_for_request(place, Some(deadline.unwrap_or(u64::MAX)), events),
            }
        } else if deadline.is_some() || events != 0 || self.wanted() != 0 || shared && served > 0 {
            self.leave(0, Call::PARK, [deadline.unwrap_or(u64::MAX), events, 0, 0]);
        } else {
            threads::wait_for_ever()
        }
    }

    /// Nothing is kept back of responses that go on later.
    fn send_parts(&mut self) {
        for place in self.places() {
            let open = |connection: &&mut Connection| connection.phase == Phase::Open;
            if let Some(connection) = self.at(place).filter(open) {
                connection.reply.send_part(&mut Host(place));
            }
        }
    }

    /// Leaves the guest, and takes in what has come meanwhile.
    fn leave(&mut self, place: u8, call: Call, args: [u64; 4]) -> i64 {
        let wanted = self.wanted();
        let result = match call {
            Call::WAIT_REQUEST => ready::wait_for_request(place, args, wanted),
            call => host::leave(place, call, args, wanted),
        };
        let news = host::news();
        if args[3] != 0 || call == Call::PARK && args[1] != 0 {
            outbound::take_in_awaited(news.events);
        }
        for place in self.places() {
            let is_in = |places: u64| places >> place & 1 != 0;
            let Some(connection) = self.at(place).filter(|connection| !connection.is_over()) else {
                continue;
            };
            let gone = is_in(news.gone) && !connection.gone;
            let more = is_in(news.readable) && connection.starved;
            if !gone && !more {
                continue;
            }
            connection.starved = false;
            connection.gone |= gone;
            let id = connection.id;
            mark(|socket| socket.state == State::Request(id));
        }
        result
    }

    /// The places of the requests of whose bodies more is wanted.
    fn wanted(&mut self) -> u64 {
        let mut wanted = 0;
        for place in self.places() {
            let starved =
                |connection: &&mut Connection| connection.starved && !connection.is_over();
            wanted |= u64::from(self.at(place).filter(starved).is_some()) << place;
        }
        wanted
    }

    /// A program that closed a connection without answering has had time to say why.
    fn fail_unanswered(&mut self, others: bool) {
        for place in self.places() {
            let unanswered = |connection: &&mut Connection| connection.phase == Phase::Unanswered;
            let Some(connection) = self.at(place).filter(unanswered) else {
                continue;
            };
            let text = format_args!("the program closed the connection without answering");
            if !others && !connection.gone {
                host::abort_with(abort_reason::NO_RESPONSE, 0, text);
            }
            connection.phase = Phase::Answered;
            if !connection.gone {
                host::fail_request(place, abort_reason::NO_RESPONSE, text);
            }
        }
    }

    /// A place for another request; makes one if it has to and there is memory.
    fn free_place(&mut self) -> Option<u8> {
        for place in self.places() {
            if self.at(place).is_some_and(|one| one.is_free()) {
                return Some(place);
            }
        }
        let new = self.others.iter().position(|at| *at == 0)?;
        let connection = Connection::map()?;
        self.others[new] = connection.expose_provenance() as u64;
        u8::try_from(new + 1).ok()
    }

    fn name_port(&mut self, listening: u16) {
        let port = host::boot().port as u16;
        if listening != port && !self.port_named {
            self.port_named = true;
            log::note(format_args!(
                "the program listens on port {listening} instead of $PORT ({port}); it gets \
                 the requests all the same"
            ));
        }
    }

    /// Waits for a request at a place; while others are open, at most until `deadline`.
    fn wait_for_request(&mut self, place: u8, deadline: Option<u64>, events: u64) {
        let Some(connection) = self.at(place) else {
            return;
        };
        let (buffer, room) = connection.room();
        let args = [buffer, room, deadline.unwrap_or(u64::MAX), events];
        let bytes = self.leave(place, Call::WAIT_REQUEST, args);
        if bytes == WAIT_ENDED {
            self.ending = true;
            signals::post(signals::SIGTERM);
            return;
        }
        let bytes = usize::try_from(bytes).unwrap_or(0);
        let Some(connection) = self.at(place).filter(|_| bytes > 0) else {
            return;
        };
        connection.begin(bytes);
        if connection.phase == Phase::Expected {
            connection.phase = Phase::Open;
            let id = connection.id;
            mark(|socket| socket.state == State::Request(id));
        } else {
            connection.phase = Phase::Pending;
            self.pending = Some(place);
            mark(|socket| matches!(socket.state, State::Listening { .. }));
        }
    }

    /// Gives the waiting request a connection: its id, and its place among those that are open.
    pub fn accept(&mut self) -> (u32, u8) {
        let place = self.pending.take().unwrap_or(0);
        self.number = self.number.wrapping_add(1);
        let id = self.number << PLACE_BITS | u32::from(place);
        if let Some(connection) = self.at(place) {
            connection.id = id;
            connection.phase = Phase::Open;
        }
        (id, place)
    }

    /// Bytes that a read of connection `id` would find.
    pub fn readable_bytes(&mut self, id: u32) -> u64 {
        let Some(connection) = self.open(id) else {
            return 0;
        };
        let (bytes, is_new) = connection.readable_bytes();
        // It has come just now, of which who waits for an edge is to be told.
        if is_new {
            mark(|socket| socket.state == State::Request(id));
        }
        bytes
    }

    /// The same for a program that counts on it: who has read so many may wait for an edge.
    pub fn tell_readable_bytes(&mut self, id: u32) -> u64 {
        let bytes = self.readable_bytes(id);
        if let Some(connection) = self.open(id) {
            connection.counted = true;
        }
        bytes
    }

    /// Whether a read of connection `id` would not wait: there is something, or it is at its end.
    pub fn is_readable(&mut self, id: u32) -> bool {
        self.is_ended(id) || self.readable_bytes(id) > 0
    }

    /// Whether a read of connection `id` would find its end: the request is answered, or its caller gone.
    pub fn is_ended(&mut self, id: u32) -> bool {
        match self.open(id) {
            Some(connection) => connection.gone && self.readable_bytes(id) == 0,
            None => !(self.first.phase == Phase::Expected && id == self.first.id),
        }
    }

    /// Reads from connection `id`; EAGAIN where there is nothing more.
    pub fn read(&mut self, id: u32, to: &mut [u8]) -> SysResult {
        if self.is_expected(id) {
            return Err(Errno::EAGAIN);
        }
        let Some(connection) = self.open(id).filter(|_| !to.is_empty()) else {
            return Ok(0);
        };
        let (done, is_new) = connection.read(to);
        let gone = connection.gone;
        if is_new {
            mark(|socket| socket.state == State::Request(id));
        }
        match done {
            0 if gone => Ok(0),
            // The caller has said everything and waits for the answer, or has yet to say it.
            0 => Err(Errno::EAGAIN),
            done => Ok(done as u64),
        }
    }

    /// Looks at what is behind the next `skip` bytes, without taking it.
    pub fn peek(&mut self, id: u32, skip: u64, to: &mut [u8]) -> SysResult {
        if self.is_expected(id) {
            return Err(Errno::EAGAIN);
        }
        // What there is comes here first.
        let readable = self.readable_bytes(id);
        let Some(connection) = self.open(id) else {
            return Ok(0);
        };
        if readable == 0 && !connection.gone {
            return Err(Errno::EAGAIN);
        }
        let done = connection.look(skip, to);
        Ok(done as u64)
    }

    /// The program wrote to connection `id`. What follows a complete response is dropped.
    pub fn write(&mut self, id: u32, bytes: &[u8]) -> Result<(), Errno> {
        let Some(connection) = self.open(id) else {
            return Ok(());
        };
        if connection.gone {
            return Err(Errno::EPIPE);
        }
        let place = place_of(id);
        if let Err(error) = connection.reply.write(bytes, &mut Host(place)) {
            self.malformed(place, error);
        }
        self.note_answer(id);
        Ok(())
    }

    /// What the program wrote is no response: the end of it, unless it serves others.
    fn malformed(&mut self, place: u8, error: Malformed) {
        let reason = abort_reason::MALFORMED_RESPONSE;
        host::fail_request(place, reason, format_args!("{error}"));
        if let Some(connection) = self.at(place) {
            connection.reply.give_up();
        }
    }

    /// The program closed connection `id`, or its sending half.
    pub fn close(&mut self, id: u32) {
        if self.is_expected(id) {
            self.first.phase = Phase::Unanswered;
            return;
        }
        let Some(connection) = self.open(id) else {
            return;
        };
        if connection.gone {
            connection.phase = Phase::Answered;
            return;
        }
        if connection.reply.is_untouched() {
            // A program that panics closes its connections before it says with what status it ends.
            connection.phase = Phase::Unanswered;
            return;
        }
        let place = place_of(id);
        if let Err(error) = connection.reply.close(&mut Host(place)) {
            self.malformed(place, error);
        }
        self.note_answer(id);
    }

    /// The program ends, which closes its connections and so completes the responses that go on until
    /// then.
    pub fn end(&mut self) {
        for place in self.places() {
            let ends = |connection: &&mut Connection| {
                connection.phase == Phase::Open && connection.reply.ends_at_close()
            };
            if let Some(connection) = self.at(place).filter(ends) {
                let id = connection.id;
                self.close(id);
            }
        }
    }

    /// After a complete answer the connection reads as closed by the caller.
    fn note_answer(&mut self, id: u32) {
        if let Some(connection) = self.open(id).filter(|one| one.reply.is_done()) {
            connection.phase = Phase::Answered;
            mark(|socket| socket.state == State::Request(id));
        }
    }
}

impl Default for Server {
    fn default() -> Self {
        Server::new()
    }
}

/// A connection that the program has had from the start waits for its request before it is written to.
pub fn await_it(id: u32) -> Result<(), Errno> {
    threads::blocking(false, || match state::server().is_expected(id) {
        true => Err(Errno::EAGAIN),
        false => Ok(0),
    })
    .map(|_| ())
}
