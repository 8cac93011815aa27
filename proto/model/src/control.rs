//! The messages between a node and the coordinator, protocol version 6.
//!
//! The node dials (QUIC, mutual TLS) and opens one bidirectional *control stream*: which version both speak TLS has
//! agreed on, by ALPN ([`crate::protocol`]). It sends [`NodeMessage::Hello`] first and the coordinator answers
//! [`CoordinatorMessage::Welcome`] or [`CoordinatorMessage::Refuse`]. After that both sides send as they like. Every
//! message is one frame of [`crate::codec`].
//!
//! For *bulk*, the node opens a bidirectional stream for each [`BulkRequest`] (one frame). An
//! artifact's index and its chunks come back as one frame of [`BulkAnswer`] followed by the raw bytes;
//! a usage batch is answered by one frame alone, and so is a request for a new certificate.
//!
//! Joining uses its own ALPN, without a client certificate: one [`JoinRequest`], one [`JoinAnswer`] on one stream, then
//! the connection closes.
//!
//! Kinds of messages are added at the end of their enums. A kind that the other side does not know is refused: on a
//! bulk stream it says so, on the control stream it counts it; the link goes on.

pub mod before;

use serde::{Deserialize, Serialize};

use crate::artifact::{PublisherKey, SignedVersion};
use crate::budget::{BudgetList, LeaseAnswer, LeaseAsks};
use crate::configuration::{Configuration, ReleaseId};
use crate::ids::{Digest, FunctionName, Name, RequestId, VersionId};
use crate::place::Coordinates;
use crate::run_times::RunTimes;
use crate::usage::Outcome;
use crate::usage_batch::UsageBatch;

/// The version of these messages, in every frame's header. The one before is spoken too.
pub const PROTOCOL_VERSION: u16 = 6;
/// ALPN of a control link on which this version is spoken.
pub const ALPN: &[u8] = b"holm/6";
/// ALPN for joining by this version.
pub const JOIN_ALPN: &[u8] = b"holm-join/6";
/// The name in the coordinator's certificate that nodes check, whatever address they dial.
pub const COORDINATOR_TLS_NAME: &str = "coordinator.holm.internal";

/// From node to coordinator on the control stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeMessage {
    /// First of all.
    Hello(Hello),
    /// What the node has, in full, whenever it changes.
    Observed(Observed),
    /// How invocations went since the last such message; about once a second while there are any,
    /// and with all zero at least every [`crate::control::REPORT_SECONDS`] otherwise.
    Report(Report),
    /// What programs wrote and why they failed, about once a second while there is anything.
    Logs(LogBatch),
}

/// Longest time between two reports of a node.
pub const REPORT_SECONDS: u64 = 2;

/// Who a node is. Its name is in its certificate and not repeated here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Where it is.
    pub coordinates: Coordinates,
    /// Its region, for example `eu-central`.
    pub region: String,
    /// Where callers reach it, for example `http://127.0.0.1:8080`.
    pub ingress_url: String,
    /// Rises with every start of the node.
    pub boot_epoch: u64,
    /// `pvm`, `svm`, `vmx` or `unknown`.
    pub kvm: String,
    /// Holm's version.
    pub software: String,
}

/// What a node has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observed {
    /// The generation of desired state that the node last worked on.
    pub generation: u64,
    /// One for each version it was asked to have.
    pub versions: Vec<ObservedVersion>,
}

/// One release on a node: a version with its configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObservedVersion {
    /// The function.
    pub function: FunctionName,
    /// The release; the version itself where it has no configuration.
    pub version: ReleaseId,
    /// How far it is.
    pub state: VersionState,
    /// Whether requests for the function go to it.
    pub routed: bool,
    /// How its invocations went while they did, if it is ready, had any, and none go to it now; so that a newer version
    /// can be compared with it.
    #[serde(default)]
    pub record: Option<Record>,
}

/// How invocations of one version went on one node since it came there, or lately if there were many; probes excluded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Number of invocations by outcome.
    pub outcomes: Vec<(Outcome, u64)>,
    /// How long those ran that were answered and did not have to wait for a slot to be filled.
    pub run_times: RunTimes,
}

/// How far a version is on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VersionState {
    /// Being fetched, verified, booted, snapshotted or probed.
    Preparing,
    /// Probed, and able to take requests.
    Ready,
    /// It will not work here; tells why and who is to blame.
    Failed {
        /// For people, with the program's last log lines where there are any.
        reason: String,
    },
}

/// How invocations went since the last report.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// One for each version that had any.
    pub versions: Vec<VersionReport>,
    /// Free slots for new work.
    pub free_slots: u32,
    /// It takes no new requests, because it is about to stop.
    pub stopping: bool,
    /// Messages of the coordinator whose kind it does not know.
    pub refused: u64,
}

/// Invocations of one release since the last report; probes excluded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionReport {
    /// The function.
    pub function: FunctionName,
    /// The release; the version itself where it has no configuration.
    pub version: ReleaseId,
    /// Number of invocations by outcome.
    pub outcomes: Vec<(Outcome, u64)>,
    /// Sum of their run times.
    pub run_ns: u64,
    /// How long those ran that were answered and did not have to wait for a slot to be filled.
    pub run_times: RunTimes,
}

/// Entries of the log, oldest first; together at most [`crate::limits::MAX_LOG_BATCH_BYTES`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogBatch {
    /// The entries.
    pub entries: Vec<LogEntry>,
    /// Entries that were dropped since the last batch because there were too many.
    pub dropped: u64,
}

/// What a program wrote during one invocation, or why that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEntry {
    /// The function.
    pub function: FunctionName,
    /// The version.
    pub version: VersionId,
    /// The invocation's request; [`RequestId::NONE`] if the instance had none, at its end.
    pub request: RequestId,
    /// Milliseconds since 1970 UTC by the node's clock, when the entry was made.
    pub at_ms: u64,
    /// It is the reason of a failure, and not what the program wrote.
    pub failed: bool,
    /// At most [`crate::limits::MAX_LOG_ENTRY_BYTES`].
    pub text: String,
}

/// From coordinator to node on the control stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CoordinatorMessage {
    /// The answer to `Hello`.
    Welcome {
        /// The node's name as its certificate has it.
        node: Name,
        /// Milliseconds since 1970 UTC by the coordinator's clock.
        now_ms: u64,
    },
    /// The whole desired state, after `Welcome` and whenever it changes.
    Desired(Desired),
    /// The link closes after this; says why and what to do.
    Refuse {
        /// For people.
        reason: String,
    },
    /// All hard budgets of the fleet, before the desired state that they come with, and whenever they change. Not
    /// sent as long as there has been none.
    Budgets(BudgetList),
    /// In place of `Desired`, if a version in it has a configuration.
    Configured(Configured),
}

/// A whole desired state with the configurations that its versions have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configured {
    /// The versions.
    pub desired: Desired,
    /// Of functions that are in it, at most one each.
    pub configurations: Vec<DesiredConfiguration>,
}

/// What the versions of one function on a node are configured with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DesiredConfiguration {
    /// Which function.
    pub function: FunctionName,
    /// Of [`DesiredFunction::version`].
    pub version: Option<Configuration>,
    /// Of [`DesiredFunction::previous`].
    pub previous: Option<Configuration>,
}

impl From<Desired> for Configured {
    fn from(desired: Desired) -> Self {
        Configured {
            desired,
            configurations: Vec::new(),
        }
    }
}

/// Everything a node is to have. What is not in it is to go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Desired {
    /// Rises with every change; an older one than the node has seen is ignored.
    pub generation: u64,
    /// One for each function.
    pub functions: Vec<DesiredFunction>,
    /// Whether it is to take requests.
    pub draining: Draining,
}

/// Whether a node takes requests, and where its callers can go instead.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Draining {
    /// It finishes what it has and refuses what is new. It goes on preparing versions.
    pub drained: bool,
    /// Ingress URLs of others, the nearest first; at most [`crate::limits::MAX_OTHER_NODES`].
    pub others: Vec<String>,
}

/// One function on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DesiredFunction {
    /// Its name.
    pub function: FunctionName,
    /// Keys that may sign its versions.
    pub publisher_keys: Vec<PublisherKey>,
    /// The version that requests are to go to as soon as it is `Ready`. Until then, and if it
    /// fails, requests stay with `previous` if there is one.
    pub version: SignedVersion,
    /// The version to keep serving until then and to be able to go back to.
    pub previous: Option<SignedVersion>,
}

/// First frame of a bulk stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BulkRequest {
    /// The index of an artifact's chunks, as [`crate::chunks`] has it.
    FetchIndex {
        /// Of which artifact.
        digest: Digest,
    },
    /// The next batch of the node's usage, or one whose answer it did not get.
    Usage(UsageBatch),
    /// A new certificate in place of the one that was shown on this link, for the same key.
    Renew {
        /// Certificate signing request of that key (PKCS#10, DER).
        csr_der: Vec<u8>,
    },
    /// Chunks of an artifact, one after the other.
    FetchChunks {
        /// Of which artifact.
        digest: Digest,
        /// Their places in the index, from 0, rising.
        places: Vec<u32>,
    },
    /// What the node has of budgets, what it wants, and what it gives back.
    Lease(LeaseAsks),
}

/// Answer on a bulk stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BulkAnswer {
    /// This many raw bytes follow.
    Bytes {
        /// All of what was asked for.
        bytes: u64,
    },
    /// The batch is in the ledger, or was already.
    UsageStored {
        /// Records that were new.
        new: u64,
        /// Records that the ledger had already.
        known: u64,
    },
    /// Not possible; says why.
    Refused {
        /// For people.
        reason: String,
    },
    /// The certificate that was shown is good until this one is.
    Renewed {
        /// The node's certificate (DER).
        certificate_der: Vec<u8>,
    },
    /// What the node now has of each budget that it asked about, but for those that are not there any more.
    Leases(Vec<LeaseAnswer>),
}

/// A node asks to become part of the fleet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// From the join token.
    pub secret: Vec<u8>,
    /// The name it wants; the token may prescribe one.
    pub node: Name,
    /// Certificate signing request of the node's own key (PKCS#10, DER).
    pub csr_der: Vec<u8>,
}

/// The answer to a [`JoinRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum JoinAnswer {
    /// Welcome.
    Joined {
        /// The node's certificate (DER).
        certificate_der: Vec<u8>,
        /// The CA's certificate (DER).
        ca_der: Vec<u8>,
    },
    /// No: the token is used, expired or unknown, or the name is taken. Says which.
    Refused {
        /// For people.
        reason: String,
    },
}
