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
//! the host's only crate with `unsafe`. Nothing that a guest does panics, blocks or grows the host:
//! what it says is copied once, the copy is checked, and every amount has a bound.

mod boot;
mod chunks;
mod cpu;
mod cpuid;
mod crash;
pub mod floor;
mod hostcall;
mod hypervisor;
mod image;
mod layout;
mod log;
mod machine;
mod memory;
mod outbound;
mod pagemap;
mod request;
mod restore;
mod rewrite;
mod runner;
pub mod sample;
mod slot;
mod snapshot;
mod symbols;
mod thread;
mod timer;
mod unwind;

/// The bits by which an [`Outbound`] and a guest name events.
pub use holm_hostcall::socket_events;

pub use boot::{GuestConfig, PrepareError, Prepared, machine_image, prepare};
pub use crash::CrashReport;
pub use hypervisor::{Hypervisor, KvmKind};
pub use image::KERNEL_IMAGE;
pub use outbound::{Outbound, Resolution};
pub use request::{Failure, Limits, Place, Request, RequestPlace, Response, Rest, RunStats, Step};
pub use restore::{Choice, Cost, Strategy};
pub use slot::Slot;
pub use snapshot::{Snapshot, SnapshotError, Told};
pub use thread::{Urgency, set_urgency};

/// The host cannot do its part. Never the function's fault.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    /// This machine's KVM cannot be used.
    #[error("{problem}; {remedy}")]
    NoKvm {
        /// What is wrong.
        problem: String,
        /// What the operator can do about it.
        remedy: String,
    },
    /// A call to KVM failed.
    #[error("KVM refused to {operation}: {error}")]
    Kvm {
        /// What was tried.
        operation: &'static str,
        /// What the kernel said.
        error: kvm_ioctls::Error,
    },
    /// The host's memory cannot be had or mapped.
    #[error("{operation}: {error}")]
    Memory {
        /// What was tried.
        operation: &'static str,
        /// What the kernel said.
        error: std::io::Error,
    },
    /// A snapshot cannot be written or read.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// A request whose head cannot be handed to a guest.
    #[error("the request's head is too large for a guest: {0} bytes at most")]
    RequestTooLarge(usize),
    /// A slot was used in a way that its state does not allow: a fault in Holm.
    #[error("fault in Holm: {0}")]
    Misuse(&'static str),
}

impl VmmError {
    fn kvm(operation: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |error| VmmError::Kvm { operation, error }
    }

    fn memory(operation: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |error| VmmError::Memory { operation, error }
    }
}
