//! What an invocation used. Integers with units, never floats.

use serde::{Deserialize, Serialize};

use crate::ids::{FunctionName, RequestId, VersionId};

/// How an invocation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The function answered, with a status below 500.
    Answered,
    /// The function answered with a status of 500 or more.
    FunctionError,
    /// The program crashed, broke a rule or ended without an answer.
    Crash,
    /// The deadline or the CPU limit was reached.
    Timeout,
    /// The caller went away.
    Cancelled,
    /// The node refused it for lack of room.
    Shed,
    /// The node failed; never billed.
    PlatformFault,
}

impl Outcome {
    /// All of them, in order.
    pub const ALL: [Outcome; 7] = [
        Outcome::Answered,
        Outcome::FunctionError,
        Outcome::Crash,
        Outcome::Timeout,
        Outcome::Cancelled,
        Outcome::Shed,
        Outcome::PlatformFault,
    ];

    /// Its name in databases and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Answered => "answered",
            Outcome::FunctionError => "function_error",
            Outcome::Crash => "crash",
            Outcome::Timeout => "timeout",
            Outcome::Cancelled => "cancelled",
            Outcome::Shed => "shed",
            Outcome::PlatformFault => "platform_fault",
        }
    }

    /// The outcome called `text`.
    pub fn from_name(text: &str) -> Option<Outcome> {
        Outcome::ALL
            .into_iter()
            .find(|outcome| outcome.as_str() == text)
    }

    /// Whether the new version is to blame, as a rollout's gate sees it.
    pub fn counts_as_error(self) -> bool {
        matches!(
            self,
            Outcome::FunctionError | Outcome::Crash | Outcome::Timeout
        )
    }
}

/// One invocation. Its key is (node, `boot_epoch`, `sequence`), and it is written once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageRecord {
    /// Which life of the node's journal: rises with every start of the node.
    pub boot_epoch: u64,
    /// Counts from 1 within the epoch, without gaps.
    pub sequence: u64,
    /// The request.
    pub request: RequestId,
    /// The function.
    pub function: FunctionName,
    /// The version that ran.
    pub version: VersionId,
    /// When the node accepted it, milliseconds since 1970 UTC by the node's clock.
    pub accepted_ms: u64,
    /// How it ended.
    pub outcome: Outcome,
    /// The status sent to the caller.
    pub status: u16,
    /// From acceptance to a slot.
    pub queue_ns: u64,
    /// Making the slot an instance of the version.
    pub restore_ns: u64,
    /// From when the function got the request to the end of the response, at most to the deadline; 0 if and only if the
    /// function never got it.
    pub run_ns: u64,
    /// CPU time of the thread that ran the vCPU, while it ran it.
    pub cpu_ns: u64,
    /// Memory limit of the version.
    pub memory_bytes: u64,
    /// Body of the request.
    pub request_bytes: u64,
    /// Body of the response.
    pub response_bytes: u64,
    /// Sent over connections that the function made.
    pub egress_bytes: u64,
    /// Received over them.
    pub ingress_bytes: u64,
    /// Whether the snapshot had to be restored into a slot that held none or another.
    pub cold: bool,
    /// Times the vCPU left the guest.
    pub exits: u32,
    /// A probe of the node's own, not a caller's request; never billed.
    pub probe: bool,
}
