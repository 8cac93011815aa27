//! What goes into an invocation and what comes out of it.

use std::fmt;
use std::time::{Duration, Instant};

use holm_hostcall::MAX_REQUESTS;

use crate::{CrashReport, VmmError};

/// One request for a guest. Header names in lower case.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The method: `GET`.
    pub method: &'a str,
    /// Path and query.
    pub target: &'a str,
    /// Names in lower case, and values.
    pub headers: &'a [(&'a [u8], &'a [u8])],
    /// The whole body.
    pub body: &'a [u8],
}

/// Bounds of one invocation.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// When it is stopped.
    pub deadline: Instant,
    /// Most CPU time of the thread that runs the vCPU.
    pub cpu: Duration,
    /// Largest body of the response.
    pub response_body_bytes: u64,
    /// Parts of the response are taken before it is complete, by [`crate::Slot::take_parts`].
    pub streams: bool,
}

/// A request's place among those of its instance, from its begin to its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestPlace(u8);

impl RequestPlace {
    /// Where the only request of an instance is.
    pub const FIRST: RequestPlace = RequestPlace(0);

    /// The place that a guest names; `None` if there is none such.
    pub(crate) fn new(place: u64) -> Option<Self> {
        let exists = place < MAX_REQUESTS as u64;
        exists.then_some(RequestPlace(place as u8))
    }

    pub(crate) fn index(self) -> usize {
        usize::from(self.0)
    }

    pub(crate) fn bit(self) -> u64 {
        1 << self.0
    }
}

/// What the guest answered. Status, names and values have been checked: they are valid HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The place of the request that it answers.
    pub place: RequestPlace,
    /// 200 to 999.
    pub status: u16,
    /// Names in lower case, and values.
    pub headers: Vec<(String, Vec<u8>)>,
    /// The body, or what has not been taken of it.
    pub body: Vec<u8>,
    /// The head was taken already, with a part of the body.
    pub continues: bool,
}

/// Why `run` came back.
#[derive(Debug)]
pub enum Step {
    /// A response is complete. When no other request is open, `reset` (or `again`) the slot, after the
    /// response has left.
    Answered(Response),
    /// A request will not be answered; others are open, and may be. After a limit was reached, the instance
    /// should get no new ones: it may go on with what was to be stopped.
    Dropped(RequestPlace, Failure),
    /// The quantum is over, or there is a part of a response to be taken; call `run` again, from any thread.
    Yielded,
    /// The guest sleeps; call `run` again at this time, or when what [`crate::Slot::wake`] gives can be
    /// read. [`crate::Slot::wait`] waits for both.
    Parked(Instant),
    /// No request that is open will be answered. Drop the slot.
    Failed(Failure),
}

/// How far a guest came that has nobody to answer, on its way to its next wait for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// It waits for one.
    Waiting,
    /// The quantum is over; call `go_on` again, from any thread.
    Yielded,
    /// As in [`Step::Parked`].
    Parked(Instant),
}

/// Why a guest did not answer. Every one but `Host` is the function's own fault.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The program crashed, ended, or broke a rule.
    #[error("{0}")]
    Crash(Box<CrashReport>),
    /// It took too long.
    #[error("the function did not answer before its deadline{0}")]
    Deadline(Place),
    /// It computed too long.
    #[error("the function used up its CPU limit before it answered{0}")]
    CpuLimit(Place),
    /// What it answered cannot be passed on.
    #[error("the function's response cannot be passed on: {0}")]
    BadResponse(String),
    /// The host could not do its part.
    #[error("{0}")]
    Host(#[from] VmmError),
}

/// Where a program was when it was stopped, if that is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place(pub(crate) Option<String>);

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(place) => write!(f, "; it was {place}"),
            None => Ok(()),
        }
    }
}

/// What one invocation took; of what several had together, each took the same part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RunStats {
    /// Times the vCPU left the guest for the host.
    pub exits: u32,
    /// CPU time of the threads that ran the vCPU, while they ran it.
    pub cpu: Duration,
    /// Wall time in `run`.
    pub wall: Duration,
    /// Bytes that it sent over connections of its own.
    pub egress_bytes: u64,
    /// Bytes that it received over them.
    pub ingress_bytes: u64,
}

impl RunStats {
    /// What was added since `before`.
    pub fn since(&self, before: &RunStats) -> RunStats {
        RunStats {
            exits: self.exits.saturating_sub(before.exits),
            cpu: self.cpu.saturating_sub(before.cpu),
            wall: self.wall.saturating_sub(before.wall),
            egress_bytes: self.egress_bytes.saturating_sub(before.egress_bytes),
            ingress_bytes: self.ingress_bytes.saturating_sub(before.ingress_bytes),
        }
    }

    /// The part of the `nth` of so many; the parts' sum is the whole. The wall time is everybody's.
    pub(crate) fn part(&self, nth: usize, of: usize) -> RunStats {
        let (nth, of) = (nth as u64, of.max(1) as u64);
        let part = |whole: u64| whole / of + u64::from(nth < whole % of);
        RunStats {
            exits: u32::try_from(part(self.exits.into())).unwrap_or(u32::MAX),
            cpu: Duration::from_nanos(part(self.cpu.as_nanos() as u64)),
            wall: self.wall,
            egress_bytes: part(self.egress_bytes),
            ingress_bytes: part(self.ingress_bytes),
        }
    }

    /// Adds what `other` took.
    pub fn add(&mut self, other: &RunStats) {
        self.exits = self.exits.saturating_add(other.exits);
        self.cpu = self.cpu.saturating_add(other.cpu);
        self.wall = self.wall.saturating_add(other.wall);
        self.egress_bytes = self.egress_bytes.saturating_add(other.egress_bytes);
        self.ingress_bytes = self.ingress_bytes.saturating_add(other.ingress_bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_make_up_the_whole() {
        let whole = RunStats {
            exits: 7,
            cpu: Duration::from_nanos(1_000_003),
            wall: Duration::from_nanos(5),
            egress_bytes: 2,
            ingress_bytes: 0,
        };
        let mut sum = RunStats::default();
        (0..4).for_each(|nth| sum.add(&whole.part(nth, 4)));
        assert_eq!(sum.wall, whole.wall * 4);
        sum.wall = whole.wall;
        assert_eq!(sum, whole);
    }
}
