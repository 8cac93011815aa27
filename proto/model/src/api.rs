//! The coordinator's HTTP API `/v1`, as JSON: what the command and other clients send and get.
//!
//! Every request carries `Authorization: Bearer TOKEN`. Every error is [`Problem`], as
//! `application/problem+json` (RFC 9457).
//!
//! | method and path | body | answer |
//! | --- | --- | --- |
//! | `GET /v1/health` (no token) | | 200 `Health` |
//! | `POST /v1/join-tokens` | `JoinTokenRequest` | 201 `JoinTokenAnswer` |
//! | `GET /v1/nodes` | | 200 `Vec<NodeView>` |
//! | `POST /v1/nodes/{node}/drain` | | 200 `NodeView` |
//! | `POST /v1/nodes/{node}/undrain` | | 200 `NodeView` |
//! | `PUT /v1/tenants/{tenant}` | `TenantRequest` | 200 `TenantView` |
//! | `HEAD /v1/artifacts/{digest}` | | 200 or 404 |
//! | `PUT /v1/artifacts/{digest}` | raw bytes | 201, or 200 if it was there |
//! | `POST /v1/functions/{tenant}/{function}/versions` | `PublishRequest` | 201 `VersionView` (200 if known) |
//! | `GET /v1/functions` | | 200 `Vec<FunctionView>` |
//! | `GET /v1/functions/{tenant}/{function}` | | 200 `FunctionView` |
//! | `POST /v1/functions/{tenant}/{function}/rollouts` | `RolloutRequest` | 201 `RolloutView` |
//! | `GET /v1/functions/{tenant}/{function}/rollouts/latest` | | 200 `RolloutView` |
//! | `GET /v1/rollouts/{id}` | | 200 `RolloutView` |
//! | `POST /v1/rollouts/{id}/abort` | | 200 `RolloutView` |
//! | `POST /v1/functions/{tenant}/{function}/rollback` | | 201 `RolloutView` |
//! | `GET /v1/route/{tenant}/{function}?from=LAT,LON&probe=NODE:RTT_US,…` | | 200 `RouteView` |
//! | `GET /v1/functions/{tenant}/{function}/logs?request=&after=&limit=` | | 200 `LogPage` |
//! | `GET /v1/usage?tenant=&function=&by=function` | | 200 `Vec<UsageView>` |
//! | `GET /v1/usage/audit` | | 200 `AuditView` |
//! | `GET /v1/usage/records?function=&after=&limit=` | | 200 `UsageRecordsPage` |

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};

use crate::artifact::SignedVersion;
use crate::ids::{Digest, FunctionName, Name, RequestId, VersionId};
use crate::place::Coordinates;
use crate::usage::UsageRecord;

/// An error, RFC 9457.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// `about:blank` or a stable name such as `/problems/token-used`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Short and the same for every such problem.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// This one: operation, object, who is to blame, what to do.
    pub detail: String,
}

/// The coordinator is up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Holm's version.
    pub software: String,
    /// Milliseconds since 1970 UTC.
    pub now_ms: u64,
}

/// Entries of a function's log, oldest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogPage {
    /// The entries.
    pub entries: Vec<LogView>,
    /// For `after`, to get what comes later.
    pub next: u64,
    /// Entries of any function that nodes had to drop since the coordinator's start.
    pub dropped: u64,
}

/// What a program wrote during one invocation, or why that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogView {
    /// Rises with every entry that reaches the coordinator.
    pub sequence: u64,
    /// Where it ran.
    pub node: Name,
    /// The version.
    pub version: VersionId,
    /// The invocation's request; [`RequestId::NONE`] if the instance had none, at its end.
    pub request: RequestId,
    /// Milliseconds since 1970 UTC by the node's clock.
    pub at_ms: u64,
    /// It is the reason of a failure, and not what the program wrote.
    pub failed: bool,
    /// The text.
    pub text: String,
}

/// Asks for a join token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinTokenRequest {
    /// How long it may be used; 600 seconds if left out.
    pub ttl_seconds: Option<u64>,
    /// The only node name it is good for.
    pub node: Option<Name>,
}

/// A join token, shown once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinTokenAnswer {
    /// Text of a [`crate::join::JoinToken`].
    pub token: String,
    /// Milliseconds since 1970 UTC.
    pub expires_ms: u64,
}

/// A node as the coordinator sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeView {
    /// Its name.
    pub name: Name,
    /// Its region.
    pub region: String,
    /// Where it is.
    pub coordinates: Coordinates,
    /// Where callers reach it.
    pub ingress_url: String,
    /// Whether its link is up.
    pub connected: bool,
    /// Whether an operator has said that it takes no requests.
    #[serde(default)]
    pub drained: bool,
    /// When it was last heard, milliseconds since 1970 UTC.
    pub last_seen_ms: u64,
    /// Round-trip time of the link in microseconds, while it is up.
    pub rtt_us: Option<u64>,
    /// The other coordinator that its link is up to, if it is not the one that was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coordinator: Option<String>,
    /// `pvm`, `svm`, `vmx` or `unknown`.
    pub kvm: String,
    /// What it has.
    pub versions: Vec<NodeVersionView>,
}

/// A version on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeVersionView {
    /// The function.
    pub function: FunctionName,
    /// The version.
    pub version: VersionId,
    /// Its label.
    pub label: String,
    /// `preparing`, `ready` or `failed`.
    pub state: String,
    /// Why it failed.
    pub reason: Option<String>,
    /// Whether it takes requests.
    pub routed: bool,
}

/// Makes a tenant, or adds publisher keys to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TenantRequest {
    /// Ed25519 public keys, base64.
    pub publisher_keys: Vec<String>,
}

/// A tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantView {
    /// Its name.
    pub name: Name,
    /// Ed25519 public keys, base64.
    pub publisher_keys: Vec<String>,
}

/// Publishes a version whose artifact has been put before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublishRequest {
    /// The statement's exact bytes, base64.
    pub statement: String,
    /// Ed25519 public key, base64.
    pub key: String,
    /// Ed25519 signature over the statement's bytes, base64.
    pub signature: String,
}

/// A version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionView {
    /// Its id.
    pub version: VersionId,
    /// The function.
    pub function: FunctionName,
    /// Its label.
    pub label: String,
    /// Its counter.
    pub counter: u64,
    /// For people.
    pub message: String,
    /// When it was made, milliseconds since 1970 UTC.
    pub created_ms: u64,
    /// [`crate::artifact::Statement::content`]: the same for two versions that do the same.
    pub content: Digest,
}

/// A function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionView {
    /// Its name.
    pub name: FunctionName,
    /// The version that the fleet is on, if a rollout has ended well.
    pub current: Option<VersionView>,
    /// Every version, newest first.
    pub versions: Vec<VersionView>,
}

/// Starts a rollout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RolloutRequest {
    /// What the fleet is to move to.
    pub version: VersionId,
    /// Instead of the manifest's waves: percentages, rising to 100.
    pub waves_percent: Option<Vec<u8>>,
    /// Instead of the manifest's bake time.
    pub bake_ms: Option<u64>,
}

/// Where a rollout is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RolloutState {
    /// Going on.
    Running,
    /// The whole fleet that could be reached is on the new version.
    Completed,
    /// A gate failed or it was aborted; nodes are going back.
    RollingBack,
    /// The nodes are back on the version before.
    RolledBack,
}

/// A rollout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutView {
    /// Its number.
    pub id: u64,
    /// The function.
    pub function: FunctionName,
    /// To.
    pub version: VersionView,
    /// From; none if it is the function's first.
    pub previous: Option<VersionView>,
    /// Where it is.
    pub state: RolloutState,
    /// Why it is there, for people: the gate that failed and on which node, who aborted.
    pub reason: String,
    /// The waves in order.
    pub waves: Vec<WaveView>,
    /// When it began, milliseconds since 1970 UTC.
    pub started_ms: u64,
    /// When it ended.
    pub ended_ms: Option<u64>,
}

/// A wave of a rollout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaveView {
    /// Its nodes.
    pub nodes: Vec<Name>,
    /// `waiting`, `moving`, `baking`, `passed`, `failed` or `skipped`.
    pub state: String,
    /// Invocations of the new version seen by the gate.
    pub invocations: u64,
    /// Of those, failed ones.
    pub errors: u64,
}

/// Which node a caller is to use.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RouteView {
    /// The nodes that can serve, best first, each with the reason for its place.
    pub candidates: Vec<RouteCandidate>,
    /// The nodes that cannot, each with the reason.
    pub excluded: Vec<RouteExcluded>,
}

/// A node that can serve.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RouteCandidate {
    /// The node.
    pub node: Name,
    /// Its region.
    pub region: String,
    /// Where to send the request: the URL of the function on that node, without a final slash.
    pub url: String,
    /// From the caller, if it said where it is.
    pub distance_km: Option<f64>,
    /// The caller's own measurement, if it sent one.
    pub rtt_us: Option<u64>,
    /// For people.
    pub why: String,
}

/// A node that cannot serve.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteExcluded {
    /// The node.
    pub node: Name,
    /// For people.
    pub why: String,
}

/// Usage of one function.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageView {
    /// `tenant/function`, or the node or version when grouped so.
    pub key: String,
    /// Executions, probes excluded.
    pub executions: u64,
    /// Of those: answered below 500.
    pub answered: u64,
    /// Answered with 500 or above.
    pub function_errors: u64,
    /// Crashed.
    pub crashes: u64,
    /// Out of time.
    pub timeouts: u64,
    /// Caller gone.
    pub cancelled: u64,
    /// Refused for lack of room.
    pub shed: u64,
    /// The platform's fault.
    pub platform_faults: u64,
    /// Started cold.
    pub cold: u64,
    /// Sum of run times.
    pub run_ns: u64,
    /// Sum of CPU times.
    pub cpu_ns: u64,
    /// Sum over executions of memory limit times run time, in byte-milliseconds, each rounded up.
    pub memory_byte_ms: u64,
    /// Sum of request bodies.
    pub request_bytes: u64,
    /// Sum of response bodies.
    pub response_bytes: u64,
    /// Sum of what functions sent over connections of their own.
    pub egress_bytes: u64,
    /// Sum of what they received over them.
    pub ingress_bytes: u64,
}

/// Whether the ledger is whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditView {
    /// One for each node and boot epoch.
    pub journals: Vec<AuditJournal>,
    /// Rows in the ledger, probes included.
    pub rows: u64,
    /// Rows that are probes.
    pub probes: u64,
    /// Rows that share a request id with another: one execution entered twice.
    pub duplicates: u64,
    /// Sequence numbers that are missing.
    pub missing: u64,
    /// Records that nodes sent again and the ledger already had; harmless.
    pub resent: u64,
    /// Neither duplicates nor missing.
    pub whole: bool,
}

/// One life of a node's journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditJournal {
    /// The node.
    pub node: Name,
    /// Which life.
    pub boot_epoch: u64,
    /// Lowest sequence number.
    pub first: u64,
    /// Highest sequence number.
    pub last: u64,
    /// Rows.
    pub rows: u64,
    /// Numbers from 1 to the highest that are not there: a journal counts from 1.
    pub missing: u64,
}

/// Rows of the ledger in the order in which they were entered, probes included.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageRecordsPage {
    /// At most the `limit` asked for, which is 1 to [`crate::limits::MAX_USAGE_BATCH`].
    pub records: Vec<LedgerRow>,
    /// The `after` of the next page; none when this page reached the ledger's end.
    pub next: Option<u64>,
}

/// A row of the ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerRow {
    /// Its number; rises, not always by one.
    pub row: u64,
    /// The node it came from.
    pub node: Name,
    /// The execution.
    pub record: UsageRecord,
}

/// A [`PublishRequest`] is not what it should be; the client is to blame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the published version cannot be read: `{field}` is not {expected}")]
pub struct PublishRequestError {
    /// Which field.
    pub field: &'static str,
    /// What it should have been.
    pub expected: &'static str,
}

/// Converts between the wire form and [`SignedVersion`].
impl PublishRequest {
    /// From a signed version.
    pub fn from_signed(signed: &SignedVersion) -> Self {
        PublishRequest {
            statement: BASE64.encode(&signed.statement),
            key: BASE64.encode(signed.key.0),
            signature: BASE64.encode(&signed.signature),
        }
    }

    /// To a signed version, whose signature is yet to be verified.
    pub fn to_signed(&self) -> Result<SignedVersion, PublishRequestError> {
        let wrong = |field, expected| move |_| PublishRequestError { field, expected };
        Ok(SignedVersion {
            statement: BASE64
                .decode(&self.statement)
                .map_err(wrong("statement", "standard base64"))?,
            key: self.key.parse().map_err(|_| PublishRequestError {
                field: "key",
                expected: "32 bytes in standard base64",
            })?,
            signature: BASE64
                .decode(&self.signature)
                .map_err(wrong("signature", "standard base64"))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::PublisherKey;

    fn signed() -> SignedVersion {
        SignedVersion {
            statement: b"{}".to_vec(),
            key: PublisherKey([7; 32]),
            signature: vec![9; 64],
        }
    }

    #[test]
    fn a_publish_request_carries_a_signed_version_unchanged() {
        let request = PublishRequest::from_signed(&signed());
        assert_eq!(request.to_signed(), Ok(signed()));
    }

    #[test]
    fn a_publish_request_with_a_broken_field_names_it() {
        let good = PublishRequest::from_signed(&signed());
        let mut cases = [good.clone(), good.clone(), good.clone(), good];
        cases[0].statement = "{}".into();
        cases[1].key = "AAAA".into();
        cases[2].key = "?".into();
        cases[3].signature = "a".into();
        let fields = cases.map(|case| case.to_signed().unwrap_err().field);
        assert_eq!(fields, ["statement", "key", "key", "signature"]);
    }
}
