//! What goes into an invocation and what comes out of it.

use std::fmt;
use std::time::{Duration, Instant};

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
}

/// What the guest answered. Status, names and values have been checked: they are valid HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// 200 to 999.
    pub status: u16,
    /// Names in lower case, and values.
    pub headers: Vec<(String, Vec<u8>)>,
    /// The whole body.
    pub body: Vec<u8>,
}

/// Why `run` came back.
#[derive(Debug)]
pub enum Step {
    /// The response is complete. Then `reset` (or `again`) the slot, after the response has left.
    Answered(Response),
    /// The quantum is over; call `run` again, from any thread.
    Yielded,
    /// The guest sleeps; call `run` again at this time, or when what [`crate::Slot::wake`] gives can be
    /// read. [`crate::Slot::wait`] waits for both.
    Parked(Instant),
    /// It will not answer. Drop the slot.
    Failed(Failure),
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

/// What one invocation took.
#[derive(Clone, Copy, Debug, Default)]
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
