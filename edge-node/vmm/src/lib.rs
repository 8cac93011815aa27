//! The virtual machine monitor: boot a program, snapshot it when it is ready, restore it into a
//! slot, run one request through it, reset it.
//!
//! ```text
//!  Program ──prepare()──▶ Snapshot ──save()/load()──▶ a file
//!                            │
//!  Slot::new() ─▶ [empty] ──load(snapshot)──▶ [ready] ──begin(request)──▶ [running] ◀─┐
//!                    ▲                         ▲  ▲                          │ run()  │ Yielded,
//!                    │ load(another)           │  └─ again(): state kept     ├────────┘ Parked
//!                    └─────────────────────────┤                             ▼
//!                                              └───────── reset() ── [answered]
//!                                                                    [failed] ──▶ drop it
//! ```
//! One thread uses a slot at a time; it may move between threads between two calls of `run`. This is
//! the host's only crate with `unsafe`. Nothing that a guest does panics, blocks or grows the host.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use holm_model::program::Program;

#[derive(Debug, thiserror::Error)]
pub enum VmmError { #[error("{0}")] Todo(String) }

/// Which machinery is behind /dev/kvm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvmKind { Pvm, Svm, Vmx, Unknown }
impl KvmKind { pub fn as_str(self) -> &'static str { todo!() } }

/// /dev/kvm, opened and checked.
#[derive(Clone, Debug)]
pub struct Hypervisor {}
impl Hypervisor {
    /// The error tells what is wrong with this machine's KVM and what to do about it.
    pub fn open() -> Result<Self, VmmError> { todo!() }
    pub fn kind(&self) -> KvmKind { todo!() }
}

/// What a guest is given beside its program.
#[derive(Clone, Debug)]
pub struct GuestConfig {
    /// `tenant/function` or a file name: argv[0] and for messages.
    pub name: String,
    pub memory_bytes: u64,
    pub env: Vec<(String, String)>,
    /// `$PORT`; 8080 unless there is a reason.
    pub port: u16,
}

/// A program that was booted and reached its first wait for a request.
#[derive(Debug)]
pub struct Prepared {
    pub snapshot: Arc<Snapshot>,
    /// From the vCPU's start to ready.
    pub ready: Duration,
    /// What the program wrote until then.
    pub log: Vec<u8>,
}

#[derive(Debug, thiserror::Error)]
#[error("{failure}")]
pub struct PrepareError { pub failure: Failure, pub log: Vec<u8> }

/// Boots `program` and snapshots it at ready. Blocks for at most `deadline`.
pub fn prepare(hypervisor: &Hypervisor, program: &Program, config: &GuestConfig, deadline: Duration) -> Result<Prepared, PrepareError> { todo!() }

/// Memory and vCPU state of a program that is ready for its first request.
#[derive(Debug)]
pub struct Snapshot {}
impl Snapshot {
    /// Writes it to `path`, atomically and synced.
    pub fn save(&self, path: &Path) -> Result<(), VmmError> { todo!() }
    /// Reads it and verifies its checksum and that it fits this CPU, kernel image and ABI.
    pub fn load(hypervisor: &Hypervisor, path: &Path) -> Result<Arc<Self>, VmmError> { todo!() }
    pub fn memory_bytes(&self) -> u64 { todo!() }
}

/// One request for a guest. Header names in lower case.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    pub method: &'a str,
    /// Path and query.
    pub target: &'a str,
    pub headers: &'a [(&'a [u8], &'a [u8])],
    pub body: &'a [u8],
}

/// Bounds of one invocation.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub deadline: Instant,
    pub cpu: Duration,
    pub response_body_bytes: u64,
}

/// What the guest answered. Status, names and values are checked: they are valid HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, Vec<u8>)>,
    pub body: Vec<u8>,
}

/// Why `run` came back.
#[derive(Debug)]
pub enum Step {
    /// The response is complete. Then `reset` (or `again`) the slot, after the response has left.
    Answered(Response),
    /// The quantum is over; call `run` again, from any thread.
    Yielded,
    /// The guest sleeps; call `run` again at this time.
    Parked(Instant),
    /// It will not answer. Drop the slot.
    Failed(Failure),
}

/// Why a guest did not answer; every one is the function's fault except `Host`.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("{0}")]
    Crash(CrashReport),
    #[error("the deadline was reached")] // say which in the message
    Deadline,
    #[error("the CPU limit was reached")]
    CpuLimit,
    #[error("{0}")]
    BadResponse(String),
    #[error("{0}")]
    Host(VmmError),
}

/// A crash, for the function's author. Display gives the whole report.
#[derive(Clone, Debug)]
pub struct CrashReport { pub what: String, pub symbol: Option<String> }
impl std::fmt::Display for CrashReport { fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { f.write_str(&self.what) } }

/// What one invocation took.
#[derive(Clone, Copy, Debug, Default)]
pub struct RunStats { pub exits: u32, pub cpu: Duration, pub wall: Duration }

/// A VM shell. Costs about 1 ms to make and up to 12 ms to drop: never on a request's path.
#[derive(Debug)]
pub struct Slot {}
impl Slot {
    pub fn new(hypervisor: &Hypervisor) -> Result<Self, VmmError> { todo!() }
    /// The snapshot it holds, pristine or not.
    pub fn holds(&self) -> Option<&Arc<Snapshot>> { todo!() }
    /// Makes the slot a pristine instance of `snapshot`, whatever it held before.
    pub fn load(&mut self, snapshot: &Arc<Snapshot>) -> Result<(), VmmError> { todo!() }
    /// Hands a request to a pristine (or `again`) instance. Err if head is too large to encode.
    pub fn begin(&mut self, request: &Request<'_>, limits: Limits) -> Result<(), VmmError> { todo!() }
    /// Runs the vCPU on this thread for at most `quantum`.
    pub fn run(&mut self, quantum: Duration) -> Step { todo!() }
    /// What the invocation has taken so far.
    pub fn stats(&self) -> RunStats { todo!() }
    /// What the program wrote since the last call; at most 64 KiB, the rest is dropped and said so.
    pub fn take_log(&mut self) -> Vec<u8> { todo!() }
    /// Back to the pristine snapshot. On error drop the slot.
    pub fn reset(&mut self) -> Result<(), VmmError> { todo!() }
    /// isolation = "instance": lets the guest go on, after an answer, to its next wait for a request.
    pub fn again(&mut self, deadline: Instant) -> Result<(), Failure> { todo!() }
}
