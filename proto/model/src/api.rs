//! The coordinator's HTTP API `/v1`, as JSON: what the command and other clients send and get.
//!
//! Every request carries `Authorization: Bearer TOKEN`. Every error is [`Problem`], as
//! `application/problem+json` (RFC 9457); what the token does not allow is one with status 403, which
//! names the verb or the tenant that it lacks.
//!
//! | method and path | body | answer |
//! | --- | --- | --- |
//! | `GET /v1/health` (no token) | | 200 `Health` |
//! | `GET /v1/token` | | 200 `OwnToken` |
//! | `GET /v1/tokens` | | 200 `Vec<TokenView>` |
//! | `POST /v1/tokens` | `TokenRequest` | 201 `TokenAnswer` |
//! | `POST /v1/tokens/{token}/revoke` | | 200 `TokenView` |
//! | `GET /v1/audit?since=&after=&limit=` | | 200 `AuditPage` |
//! | `GET /v1/audit/check?head=` | | 200 `AuditCheck` |
//! | `POST /v1/join-tokens` | `JoinTokenRequest` | 201 `JoinTokenAnswer` |
//! | `GET /v1/nodes` | | 200 `Vec<NodeView>` |
//! | `POST /v1/nodes/{node}/drain` | | 200 `NodeView` |
//! | `POST /v1/nodes/{node}/undrain` | | 200 `NodeView` |
//! | `POST /v1/nodes/{node}/cordon` | | 200 `NodeView` |
//! | `POST /v1/nodes/{node}/uncordon` | | 200 `NodeView` |
//! | `PUT /v1/nodes/{node}/labels` | `LabelsRequest` | 200 `NodeView` |
//! | `POST /v1/nodes/{node}/revoke` | | 204 |
//! | `GET /v1/tenants/{tenant}` | | 200 `TenantView` |
//! | `POST /v1/tenants/{tenant}/keys/revoke` | `RevokeKeyRequest` | 200 `TenantView` |
//! | `PUT /v1/tenants/{tenant}` | `TenantRequest` | 200 `TenantView` |
//! | `HEAD /v1/artifacts/{digest}` | | 200 or 404 |
//! | `PUT /v1/artifacts/{digest}` | raw bytes | 201, or 200 if it was there |
//! | `PUT /v1/artifacts/{digest}/index` | an index of [`crate::chunks`] | 201, or 200 if it was there; 202 `MissingChunks` |
//! | `PUT /v1/artifacts/{digest}/chunks` | frames of [`crate::chunks`] | 204 |
//! | `POST /v1/functions/{tenant}/{function}/versions` | `PublishRequest` | 201 `VersionView` (200 if known) |
//! | `GET /v1/functions/{tenant}/{function}/versions/{version}` | | 200 `PublishRequest` |
//! | `GET /v1/functions/{tenant}/{function}/versions/{version}/artifact?from=` | | 200 raw bytes, some MiB at most; none at the end |
//! | `POST /v1/functions/{tenant}/{function}/configurations` | `ConfigurationRequest` | 201 `ConfigurationView`, 409 |
//! | `GET /v1/functions/{tenant}/{function}/configurations` | | 200 `Vec<ConfigurationView>`, the newest first |
//! | `GET /v1/functions/{tenant}/{function}/configurations/{number}` | | 200 `ConfigurationRequest`, without secrets |
//! | `PUT /v1/functions/{tenant}/{function}/tags/{tag}` | `TagRequest` | 200 `VersionView` |
//! | `DELETE /v1/functions/{tenant}/{function}/tags/{tag}` | | 204 |
//! | `POST /v1/prune` | `PruneRequest` | 200 `PruneView` |
//! | `GET /v1/functions` | | 200 `Vec<FunctionView>` |
//! | `GET /v1/functions/{tenant}/{function}` | | 200 `FunctionView` |
//! | `POST /v1/functions/{tenant}/{function}/rollouts` | `RolloutRequest` | 201 `RolloutView`, 202 `QueuedView`, 409 |
//! | `GET /v1/functions/{tenant}/{function}/rollouts` | | 200 `RolloutsView` |
//! | `DELETE /v1/functions/{tenant}/{function}/rollouts/queued` | | 204, 404 |
//! | `POST /v1/functions/{tenant}/{function}/rollouts/plan` | `RolloutRequest` | 200 `RolloutPlanView` |
//! | `GET /v1/functions/{tenant}/{function}/rollouts/latest` | | 200 `RolloutView` |
//! | `GET /v1/rollouts/{id}` | | 200 `RolloutView` |
//! | `POST /v1/rollouts/{id}/abort`, `/pause`, `/resume` | | 200 `RolloutView`, 409 |
//! | `POST /v1/rollouts/{id}/promote` | `PromoteRequest` | 200 `RolloutView`, 409 |
//! | `POST /v1/functions/{tenant}/{function}/rollback` | `RollbackRequest` or nothing | 201 `RolloutView` |
//! | `GET /v1/route/{tenant}/{function}?from=LAT,LON&probe=NODE:RTT_US,…` | | 200 `RouteView` |
//! | `GET /v1/functions/{tenant}/{function}/logs?request=&after=&limit=` | | 200 `LogPage` |
//! | `GET /v1/usage?tenant=&function=&by=function&since=&until=` | | 200 `Vec<UsageView>` |
//! | `GET /v1/usage/bill?tenant=&since=&until=` | | 200 `SignedBill` |
//! | `GET /v1/usage/audit` | | 200 `AuditView` |
//! | `GET /v1/usage/records?tenant=&function=&since=&until=&after=&limit=` | | 200 `UsageRecordsPage` |
//! | `GET /v1/requests/{request}` | | 200 `Vec<ExplainedRecord>` |
//! | `GET /v1/prices` | | 200 `PricesView` |
//! | `POST /v1/prices/{plan}` | `NewPrices` | 201 `PricePlan`, 409 |
//! | `PUT /v1/tenants/{tenant}/prices` | `NewAssignment` | 200 `PlanAssignment`, 404, 409 |
//! | `GET /v1/budgets?tenant=` | | 200 `Vec<BudgetView>` |
//! | `GET /v1/budgets/alerts?after=&limit=` | | 200 `Vec<BudgetAlert>` |
//! | `GET /v1/tenants/{tenant}/budget` | | 200 `BudgetView`, 404 |
//! | `PUT /v1/tenants/{tenant}/budget` | `NewBudget` | 200 `BudgetView`, 404, 409 |
//! | `DELETE /v1/tenants/{tenant}/budget` | | 204, 404 |
//! | the same three of `/v1/functions/{tenant}/{function}/budget` | | |
//! | `GET /v1/exports?tenant=` | | 200 `Vec<ExportView>` |
//! | `POST /v1/tenants/{tenant}/exports` | `NewExport` | 201 `ExportView`, 404, 409, 422 |
//! | `DELETE /v1/tenants/{tenant}/exports/{export}` | | 204, 404 |
//! | `GET /v1/tenants/{tenant}/exports/files?after=` | | 200 `Vec<ExportFile>`, by their names |
//! | `GET /v1/tenants/{tenant}/exports/file?name=` | | 200 raw bytes, 404 |

mod exports;

use std::collections::{BTreeMap, BTreeSet};

pub use exports::{ExportFile, ExportKind, ExportView, NewExport, RecordEvent};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};

use crate::artifact::SignedVersion;
use crate::budget::Cap;
use crate::configuration::{ConfigurationId, Secrets, SignedConfiguration, release_label};
use crate::ids::{Digest, FunctionName, Name, RequestId, VersionId};
use crate::manifest::WaveRule;
use crate::place::Coordinates;
use crate::price::{Amount, Cost, Currency, PlanAssignment, PricePlan, Prices, Units};
use crate::token::Verb;
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

/// Asks for an API token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    /// What to call it; no other valid token is called so.
    pub name: Name,
    /// What it may do.
    pub verbs: BTreeSet<Verb>,
    /// For whom; for all, and for what is nobody's, if left out.
    pub tenants: Option<BTreeSet<Name>>,
    /// How long it is good; until it is revoked if left out.
    pub ttl_seconds: Option<u64>,
}

/// An API token, shown once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenAnswer {
    /// Text of a [`crate::token::ApiToken`].
    pub token: String,
    /// What is known of it.
    pub view: TokenView,
}

/// What is known of a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenView {
    /// What it is called.
    pub name: String,
    /// Its id, which the tokens made from it have too.
    pub id: String,
    /// Whether it is an administrator's, which a coordinator keeps in its state directory.
    pub administrator: bool,
    /// What it may do; everything if none.
    pub verbs: Option<BTreeSet<Verb>>,
    /// For whom; for all if none.
    pub tenants: Option<BTreeSet<Name>>,
    /// Who made it.
    pub created_by: String,
    /// When, milliseconds since 1970 UTC.
    pub created_ms: u64,
    /// Until when it is good.
    pub expires_ms: Option<u64>,
    /// Since when it is void, with all that was made from it.
    pub revoked_ms: Option<u64>,
}

/// What the token that was shown is, and allows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnToken {
    /// What it, or the one it was made from, is called.
    pub name: String,
    /// What it may do; everything if none.
    pub verbs: Option<BTreeSet<Verb>>,
    /// For whom; for all if none.
    pub tenants: Option<BTreeSet<Name>>,
    /// Until when it is good, milliseconds since 1970 UTC.
    pub expires_ms: Option<u64>,
}

/// Entries of the audit log, oldest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditPage {
    /// The entries.
    pub entries: Vec<AuditEntry>,
    /// The `after` of the next page; none when this page reached the log's end.
    pub next: Option<u64>,
}

/// One entry of the audit log. What is asked for over the API has two: one before it is done, with
/// the outcome `begun`, and one that tells what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditEntry {
    /// From 1, without gaps.
    pub row: u64,
    /// When, milliseconds since 1970 UTC by the coordinator's clock.
    pub at_ms: u64,
    /// `token`, `node`, `coordinator`, or `operator` for who works on the coordinator's machine.
    pub actor_kind: String,
    /// The name of it.
    pub actor: String,
    /// The token's id.
    pub actor_id: String,
    /// What was done, for example `rollout.start`.
    pub action: String,
    /// To what.
    pub object: String,
    /// `begun`, `done`, `refused` or `failed`.
    pub outcome: String,
    /// For people.
    pub detail: String,
    /// The entry with which it began.
    pub begun: Option<u64>,
    /// SHA-256 over the hash of the entry before and everything above.
    pub hash: Digest,
}

/// Whether the audit log is as it was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditCheck {
    /// Entries.
    pub entries: u64,
    /// The hash of the newest one. Whoever keeps it elsewhere can tell later that what was there then is there still.
    pub head: Option<Digest>,
    /// The first entry that is not as it was written, or where one is missing.
    pub broken_at: Option<u64>,
    /// The entry with the hash that was asked for, if any was and it is there.
    pub found: Option<u64>,
    /// None is broken.
    pub whole: bool,
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
    /// Whether an operator has said that nothing new comes to it.
    #[serde(default)]
    pub cordoned: bool,
    /// Its labels, by key.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Whether it has joined and was never connected, so that it has not said where it is.
    #[serde(default)]
    pub never_connected: bool,
    /// When it was last heard, milliseconds since 1970 UTC.
    pub last_seen_ms: u64,
    /// When the last certificate ends that it was given, milliseconds since 1970 UTC. It has that renewed by itself.
    #[serde(default)]
    pub certificate_until_ms: Option<u64>,
    /// Round-trip time of the link in microseconds, while it is up.
    pub rtt_us: Option<u64>,
    /// The other coordinator that its link is up to, if it is not the one that was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coordinator: Option<String>,
    /// `pvm`, `svm`, `vmx` or `unknown`.
    pub kvm: String,
    /// Messages on its link that the node or the coordinator did not know, because the other one is newer.
    #[serde(default)]
    pub refused_messages: u64,
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
    /// The number of the configuration that it has there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configuration: Option<u64>,
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
    /// Ed25519 public keys that may sign its versions, base64.
    pub publisher_keys: Vec<String>,
    /// Those that may not any more, or only for a while yet.
    #[serde(default)]
    pub revoked_keys: Vec<RevokedKeyView>,
}

/// A publisher's key that was revoked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokedKeyView {
    /// Ed25519 public key, base64.
    pub key: String,
    /// From when on nothing new that it signs gets in, milliseconds since 1970 UTC.
    pub from_ms: u64,
}

/// Revokes a publisher's key: nothing new that it signs gets in, what runs keeps running.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RevokeKeyRequest {
    /// Ed25519 public key, base64.
    pub key: String,
    /// How long it is still good; not at all if left out.
    pub after_seconds: Option<u64>,
}

/// Sets labels of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LabelsRequest {
    /// By key; what has no value is taken off. Labels that are not here stay.
    pub labels: BTreeMap<String, Option<String>>,
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

/// What has to be sent before an artifact can be put together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissingChunks {
    /// Places of chunks in the index, from 0, in their order; of equal chunks the first.
    pub missing: Vec<u32>,
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
    /// Who made it, as they say themselves.
    #[serde(default)]
    pub author: String,
    /// The tags that name it.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Whether it was removed, so that only this is known of it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub removed: bool,
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
    /// The number of the configuration that the fleet is on, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configuration: Option<u64>,
    /// Every version, newest first.
    pub versions: Vec<VersionView>,
}

/// A signed configuration, as it is published and as it is told. `Debug` shows no secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigurationRequest {
    /// The exact bytes of a [`crate::configuration::ConfigurationStatement`], base64.
    pub statement: String,
    /// Ed25519 public key, base64.
    pub key: String,
    /// Ed25519 signature over [`crate::configuration::SIGNED_AS`] and the statement's bytes, base64.
    pub signature: String,
    /// Secrets that the configuration before does not have. Never told.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: Secrets,
}

/// What everybody who may look may know of a configuration: no values.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigurationView {
    /// The function.
    pub function: FunctionName,
    /// From 1; people write it `c1`.
    pub number: u64,
    /// Its id.
    pub configuration: ConfigurationId,
    /// Names of its plain entries.
    pub env: Vec<String>,
    /// Names of its secrets, each with the number of the configuration that brought its value.
    pub secrets: BTreeMap<String, u64>,
    /// For people.
    pub message: String,
    /// Who made it, as they say themselves.
    pub author: String,
    /// When it was made, milliseconds since 1970 UTC.
    pub created_ms: u64,
    /// Whether the fleet is on it.
    pub current: bool,
}

/// Has a tag name a version, and no other one of the function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TagRequest {
    /// Which.
    pub version: VersionId,
}

/// Removes versions that nobody may need.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PruneRequest {
    /// Of this function; of all if left out.
    pub function: Option<FunctionName>,
    /// As many of the newest of each function stay in any case; at least 1.
    pub keep: u64,
    /// Only tell what would be removed.
    pub dry_run: bool,
}

/// What became of versions, or would.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PruneView {
    /// Whether nothing was done.
    pub dry_run: bool,
    /// Those that go.
    pub removed: Vec<VersionView>,
    /// Those that stay.
    pub kept: Vec<KeptView>,
    /// Artifacts that go with them, because no version that stays has the same.
    pub artifacts: Vec<Digest>,
    /// Their bytes.
    pub artifact_bytes: u64,
}

/// A version that stays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptView {
    /// Which.
    pub version: VersionView,
    /// Each reason, for people.
    pub why: Vec<String>,
}

/// Starts a rollout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RolloutRequest {
    /// What the fleet is to move to; the version that it is on then if left out.
    #[serde(default)]
    pub version: Option<VersionId>,
    /// The number of the configuration that goes with it. If left out, the one that the fleet is on then, and the
    /// newest where there is no version yet.
    #[serde(default)]
    pub configuration: Option<u64>,
    /// Instead of the manifest's waves, written as there.
    #[serde(default, alias = "waves_percent")]
    pub waves: Option<Vec<WaveRule>>,
    /// Instead of the manifest's bake time.
    #[serde(default)]
    pub bake_ms: Option<u64>,
    /// Instead of the manifest's invocations that a gate has to see.
    #[serde(default)]
    pub min_requests: Option<u64>,
    /// No gate is asked: waves follow each other as soon as their nodes serve the version.
    #[serde(default)]
    pub emergency: bool,
    /// What is to happen if a rollout of the function is going on.
    #[serde(default)]
    pub when_running: WhenRunning,
}

/// What a rollout does that finds another one of its function.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhenRunning {
    /// It does not begin.
    #[default]
    Refuse,
    /// It takes its place, in one step. What waits for its turn is given up too.
    Supersede,
    /// It begins when the other has ended, in place of one that may wait for that already.
    Queue,
}

/// Goes back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RollbackRequest {
    /// To this version, which is to be there still, with the configuration that it had last.
    #[serde(default)]
    pub version: Option<VersionId>,
    /// With the configuration of this number, and if no version is given the current one. Without both, to what was
    /// before.
    #[serde(default)]
    pub configuration: Option<u64>,
    /// In place of a rollout that is going on.
    #[serde(default)]
    pub supersede: bool,
}

/// A rollout that waits for another one to end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueuedView {
    /// The function.
    pub function: FunctionName,
    /// What it is to be moved to; the version that it is on then if there is none.
    pub version: Option<VersionView>,
    /// The number of the configuration that is to go with it; the one that it is on then if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configuration: Option<u64>,
    /// The rollout that it waits for; none if it is about to begin.
    pub behind: Option<u64>,
    /// When it was asked for, milliseconds since 1970 UTC.
    pub asked_ms: u64,
}

/// Rollouts of a function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutsView {
    /// The newest first, at most 50.
    pub rollouts: Vec<RolloutView>,
    /// What begins when the newest has ended.
    pub queued: Option<QueuedView>,
}

/// What a rollout would do if it began now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutPlanView {
    /// The function.
    pub function: FunctionName,
    /// To.
    pub version: VersionView,
    /// From; none if it would be the function's first.
    pub previous: Option<VersionView>,
    /// The configuration's number, and that of the one before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configuration: Option<u64>,
    /// See there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_configuration: Option<u64>,
    /// The waves in order. Those whose nodes are all in earlier ones are left out.
    pub waves: Vec<PlannedWave>,
    /// Waves, as written, that concern no node: a rollout with them does not begin.
    pub empty: Vec<String>,
    /// The rollout that is in the way.
    pub running: Option<u64>,
    /// Whether its gates would be skipped.
    pub emergency: bool,
    /// Invocations that each gate would have to see.
    pub min_requests: u64,
}

/// A wave of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedWave {
    /// As written.
    pub rule: String,
    /// Its nodes.
    pub nodes: Vec<Name>,
    /// Those of them that are away now.
    pub absent: Vec<Name>,
    /// How long it is watched.
    pub bake_ms: u64,
    /// How many of its nodes must serve the version for it to pass; none: one that can be reached.
    pub quorum: Option<u64>,
    /// How long a node that is away is waited for.
    pub skip_after_ms: u64,
}

/// Takes the wave that is watched for passed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PromoteRequest {
    /// Which wave is seen to be watched, counted from 0: another one is not promoted. None: whichever it is.
    #[serde(default)]
    pub wave: Option<usize>,
    /// And all to come.
    #[serde(default)]
    pub all: bool,
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
    /// Another rollout has taken its place.
    Superseded,
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
    /// The configuration's number, and that of the one before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configuration: Option<u64>,
    /// See there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_configuration: Option<u64>,
    /// Where it is.
    pub state: RolloutState,
    /// Why it is there, for people: the gate that failed and on which node, who aborted.
    pub reason: String,
    /// Whether it is paused, by the operator or because a gate has seen too little.
    pub paused: bool,
    /// Whether its gates are skipped.
    pub emergency: bool,
    /// The waves in order.
    pub waves: Vec<WaveView>,
    /// What its gates say of all that was seen so far; nothing if they are skipped.
    #[serde(default)]
    pub gates: Vec<GateView>,
    /// What begins when it has ended.
    #[serde(default)]
    pub queued: Option<QueuedView>,
    /// When it began, milliseconds since 1970 UTC.
    pub started_ms: u64,
    /// When it ended.
    pub ended_ms: Option<u64>,
}

/// What a gate says of one subject.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GateView {
    /// `errors`, `crashes` or `run times`.
    pub subject: String,
    /// `pass`, `fail` or `inconclusive`.
    pub outcome: String,
    /// Invocations of the new version that were seen.
    pub new: u64,
    /// Those of them that failed, crashed or ran longer than allowed.
    pub new_bad: u64,
    /// Invocations of the old version on the same nodes, before.
    pub old: u64,
    /// Those of them that failed, crashed or ran longer than most.
    pub old_bad: u64,
    /// How much speaks against the new version: so many to one.
    pub against: u64,
    /// How much turns the rollout back.
    pub needed: u64,
}

/// A wave of a rollout.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaveView {
    /// As the manifest or the command has it.
    #[serde(default)]
    pub rule: String,
    /// How long it is watched.
    #[serde(default)]
    pub bake_ms: u64,
    /// How many of its nodes must serve the version for it to pass; none: one that can be reached.
    #[serde(default)]
    pub quorum: Option<u64>,
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

/// Sums of usage, probes excluded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageView {
    /// What was added up by: `tenant/function`, a tenant, a version, a node, or the beginning of a time, RFC 3339.
    pub key: String,
    /// Executions.
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
    /// Sum over executions of memory limit times run time, in KiB-milliseconds, each rounded up.
    pub memory_kib_ms: u64,
    /// Sum of request bodies.
    pub request_bytes: u64,
    /// Sum of response bodies.
    pub response_bytes: u64,
    /// Sum of what functions sent over connections of their own.
    pub egress_bytes: u64,
    /// Sum of what they received over them.
    pub ingress_bytes: u64,
    /// What is billed of all this.
    pub billed: Units,
}

/// What a tenant's usage of a time costs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bill {
    /// Raised when the meaning of a field changes; 1.
    pub holm_bill: u64,
    /// The tenant.
    pub tenant: Name,
    /// From when on executions count that a node accepted, milliseconds since 1970 UTC; the beginning of an hour.
    pub from_ms: u64,
    /// Until when, exclusive.
    pub to_ms: u64,
    /// When the bill was made.
    pub issued_ms: u64,
    /// The number of the last row of the ledger that is in it. A record that a node uploads later is in a bill that
    /// is made later.
    pub last_row: u64,
    /// One for each function and time of the same prices, in that order.
    pub lines: Vec<BillLine>,
    /// Sums of the lines, one for each currency.
    pub totals: Vec<BillTotal>,
}

/// A function's usage while prices stayed the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BillLine {
    /// The function, without its tenant.
    pub function: Name,
    /// From when on.
    pub from_ms: u64,
    /// Until when, exclusive.
    pub to_ms: u64,
    /// Executions, those that cost nothing included.
    pub executions: u64,
    /// What is billed of them.
    pub billed: Units,
    /// The plan by which; none if there was no price.
    pub plan: Option<PricePlan>,
    /// What it costs; none if there was no price.
    pub cost: Option<Cost>,
}

/// What the lines of a currency cost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BillTotal {
    /// The currency.
    pub currency: Currency,
    /// The sum of the lines.
    pub total: Amount,
}

/// A bill as the coordinator signed it. Who has the CA's certificate, or its digest, needs nobody to verify it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedBill {
    /// The JSON of a [`Bill`], of which every byte is signed.
    pub bill: String,
    /// ECDSA with P-256 and SHA-256 over [`BILL_CONTEXT`] and `bill`, in ASN.1's DER, in base64.
    pub signature: String,
    /// The certificate of the fleet's CA, whose key signed, in DER, in base64.
    pub authority: String,
}

/// What is signed before a bill, so that its signature is good for nothing else.
pub const BILL_CONTEXT: &[u8] = b"holm bill 1\0";

/// One row of the ledger and what it costs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainedRecord {
    /// The row.
    #[serde(flatten)]
    pub row: LedgerRow,
    /// The version's label.
    pub label: String,
    /// What is billed of it.
    pub billed: Units,
    /// The plan by which; none if there was no price.
    pub plan: Option<PricePlan>,
    /// What it costs by itself. A bill rounds sums, not records.
    pub cost: Option<Cost>,
}

/// All prices there are and were.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PricesView {
    /// Every version of every plan, by name and version.
    pub plans: Vec<PricePlan>,
    /// Which tenant has which; a tenant without one has [`crate::price::DEFAULT_PLAN`].
    pub assignments: Vec<PlanAssignment>,
}

/// A budget to be set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewBudget {
    /// For a calendar month (UTC), in the currency of the tenant's price plan.
    pub amount: Amount,
    /// What happens at its end.
    #[serde(default)]
    pub cap: Cap,
    /// At which percents of it there are alerts.
    #[serde(default = "NewBudget::default_alerts")]
    pub alerts: Vec<u32>,
}

impl NewBudget {
    /// The thresholds of a budget that does not say.
    pub fn default_alerts() -> Vec<u32> {
        vec![50, 80, 100]
    }
}

/// A budget, and how it stands in this month.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BudgetView {
    /// Whose.
    pub tenant: Name,
    /// Of which function; of all of the tenant's if none.
    pub function: Option<Name>,
    /// For a month.
    pub amount: Amount,
    /// Of all amounts here.
    pub currency: Currency,
    /// What happens at its end.
    pub cap: Cap,
    /// Percents.
    pub alerts: Vec<u32>,
    /// The month's beginning, milliseconds since 1970 UTC.
    pub month_from_ms: u64,
    /// Its end, exclusive.
    pub month_to_ms: u64,
    /// What the ledger has of the month, rounded up.
    pub spent: Amount,
    /// What nodes have leased and not spent, as far as they have said.
    pub leased: Amount,
    /// What can be leased.
    pub free: Amount,
    /// Of a hard cap, how far it may be exceeded.
    pub overshoot: Option<Overshoot>,
    /// Thresholds that were crossed in the month.
    pub crossed: Vec<BudgetAlert>,
    /// Since when a node wanted more and no node had any, in the month.
    pub exhausted_ms: Option<u64>,
    /// Nodes that had something of it in the month; empty for a token that is not for all tenants.
    pub nodes: Vec<BudgetLine>,
    /// When it was first set.
    pub created_ms: u64,
    /// When it was last set.
    pub changed_ms: u64,
}

/// How far a hard cap may be exceeded at most.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overshoot {
    /// By all together: the month's executions cost at most the budget and this.
    pub most: Amount,
    /// What is spent or leased beyond the budget already: it was set, or lowered, when that was so.
    pub beyond: Amount,
    /// What requests under way on all nodes at once may cost beyond what was reserved for them: of each, what it
    /// takes to be over once its deadline is.
    pub in_flight: Amount,
    /// Nodes that have not said that they keep to the budget as it is now: what they run is not bounded by it until
    /// they have.
    pub unconfirmed: Vec<Name>,
}

/// A threshold of a budget that was crossed: each once in a month.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BudgetAlert {
    /// Its number; rises.
    pub row: u64,
    /// Whose budget.
    pub tenant: Name,
    /// Of which function; of all of the tenant's if none.
    pub function: Option<Name>,
    /// The month's beginning, milliseconds since 1970 UTC.
    pub month_from_ms: u64,
    /// Of the budget.
    pub percent: u32,
    /// What the ledger had then.
    pub spent: Amount,
    /// What the budget was then.
    pub amount: Amount,
    /// When, milliseconds since 1970 UTC by the coordinator's clock.
    pub crossed_ms: u64,
}

/// What one node has of a budget in a month.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BudgetLine {
    /// Which.
    pub node: Name,
    /// What it may spend in the month, in all.
    pub limit: Amount,
    /// What it says that it has spent.
    pub reported: Amount,
    /// What the ledger has of it.
    pub ledger: Amount,
    /// The most that one request reserves there.
    pub reserves: Amount,
    /// How often it was given more.
    pub leases: u64,
    /// When it last asked, milliseconds since 1970 UTC; never if it has only spent.
    pub asked_ms: Option<u64>,
}

/// New prices for a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewPrices {
    /// In which currency; that of the versions before, if there are any.
    pub currency: Currency,
    /// The prices.
    pub prices: Prices,
    /// From when on, the beginning of an hour. None: as soon as can be.
    #[serde(default)]
    pub from_ms: Option<u64>,
}

/// A plan for a tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewAssignment {
    /// Which.
    pub plan: Name,
    /// From when on, the beginning of an hour. None: as soon as can be.
    #[serde(default)]
    pub from_ms: Option<u64>,
}

/// Whether the ledger is whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditView {
    /// One for each node and boot epoch.
    pub journals: Vec<AuditJournal>,
    /// One for each node.
    pub nodes: Vec<AuditNode>,
    /// All nodes together.
    pub total: AuditNode,
    /// Rows in the ledger, probes included.
    pub rows: u64,
    /// Rows that were there and are no longer kept; signed checkpoints say what was in them.
    #[serde(default)]
    pub dropped: u64,
    /// Of `rows` and `dropped`: those that are probes.
    pub probes: u64,
    /// Batches whose hash, signature and link were verified.
    pub batches: u64,
    /// Rows from before usage was chained, which nothing vouches for.
    pub unchained: u64,
    /// Rows that share a request id with another: one execution entered twice.
    pub duplicates: u64,
    /// Sequence numbers that are missing.
    pub missing: u64,
    /// Records that nodes sent again and the ledger already had; harmless.
    pub resent: u64,
    /// What is not as it was signed.
    pub problems: Vec<AuditProblem>,
    /// Problems beyond those listed.
    pub problems_left_out: u64,
    /// What is no fault and yet to be known, for people.
    pub notices: Vec<String>,
    /// No problems, neither duplicates nor missing, and every admitted request has its outcome.
    pub whole: bool,
}

/// One life of a node's journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditJournal {
    /// The node.
    pub node: Name,
    /// Which life.
    pub boot_epoch: u64,
    /// Lowest sequence number that was ever there.
    pub first: u64,
    /// Highest sequence number.
    pub last: u64,
    /// Rows.
    pub rows: u64,
    /// Rows up to `checkpoint` that are no longer kept.
    #[serde(default)]
    pub dropped: u64,
    /// Sequence number up to which a signed checkpoint stands for the rows and batches, which are no longer kept: what
    /// comes behind it was checked. 0 if there is none.
    #[serde(default)]
    pub checkpoint: u64,
    /// Numbers from 1 to the highest that are not there: a journal counts from 1.
    pub missing: u64,
    /// Rows that are in no batch, from before usage was chained.
    pub unchained: u64,
    /// Batches, those that are no longer kept included.
    pub batches: u64,
    /// Hash of the last of them.
    pub head: Option<Digest>,
}

/// What became of a node's requests. `admitted` is the sum of the others, probes included, if nothing is missing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditNode {
    /// The node; none for all together.
    pub node: Option<Name>,
    /// Numbers that its journals gave, up to the highest that it signed or that is in the ledger.
    pub admitted: u64,
    /// Answered below 500.
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
    /// Of all these: probes of the node's own.
    pub probes: u64,
    /// Whether it adds up.
    pub balanced: bool,
    /// Boot epoch of the newest batch of its chain.
    pub head_boot_epoch: u64,
    /// Its last sequence.
    pub head_sequence: u64,
    /// Its hash, which stands for all before it; keep it to find a chain cut off later.
    pub head: Option<Digest>,
}

/// Records that are not as the node signed them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditProblem {
    /// What was done to them.
    pub fault: AuditFault,
    /// Whose they are.
    pub node: Name,
    /// Of which life.
    pub boot_epoch: u64,
    /// The first of them.
    pub first: u64,
    /// The last of them.
    pub last: u64,
    /// For people.
    pub why: String,
}

/// What was done to records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuditFault {
    /// A row differs from the record that was signed.
    Changed,
    /// A row that was signed is not there.
    Removed,
    /// A row is in no batch.
    PutIn,
    /// A row has the request of another.
    Replayed,
    /// A batch's own entry was changed.
    Batch,
    /// A batch is not signed by its node.
    Signature,
    /// A batch does not follow the one before.
    Gap,
    /// Sums of usage are not those of the rows.
    Sums,
    /// What is said of records that are no longer kept is not as the coordinator signed it.
    Checkpoint,
}

impl AuditFault {
    /// In one word, for people.
    pub fn as_str(self) -> &'static str {
        match self {
            AuditFault::Changed => "changed",
            AuditFault::Removed => "removed",
            AuditFault::PutIn => "put in",
            AuditFault::Replayed => "replayed",
            AuditFault::Batch => "batch changed",
            AuditFault::Signature => "not signed",
            AuditFault::Gap => "gap",
            AuditFault::Sums => "sums",
            AuditFault::Checkpoint => "checkpoint changed",
        }
    }
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

impl RolloutView {
    /// What people call what it is to.
    pub fn label(&self) -> String {
        release_label(&self.version.label, self.configuration)
    }

    /// What people call what it is from.
    pub fn previous_label(&self) -> Option<String> {
        let previous = self.previous.as_ref()?;
        Some(release_label(&previous.label, self.previous_configuration))
    }
}

impl RolloutPlanView {
    /// What people call what it would be to.
    pub fn label(&self) -> String {
        release_label(&self.version.label, self.configuration)
    }

    /// What people call what it would be from.
    pub fn previous_label(&self) -> Option<String> {
        let previous = self.previous.as_ref()?;
        Some(release_label(&previous.label, self.previous_configuration))
    }
}

impl QueuedView {
    /// What people call what it is to.
    pub fn label(&self) -> String {
        match (&self.version, self.configuration) {
            (Some(version), number) => release_label(&version.label, number),
            (None, Some(number)) => format!("c{number}"),
            (None, None) => "what is current".to_owned(),
        }
    }
}

/// Converts between the wire form and [`SignedConfiguration`].
impl ConfigurationRequest {
    /// From a signed configuration, with the secrets that are new in it.
    pub fn from_signed(signed: &SignedConfiguration, secrets: Secrets) -> Self {
        ConfigurationRequest {
            statement: BASE64.encode(&signed.statement),
            key: signed.key.to_string(),
            signature: BASE64.encode(&signed.signature),
            secrets,
        }
    }

    /// To a signed configuration, whose signature is yet to be verified.
    pub fn to_signed(&self) -> Result<SignedConfiguration, PublishRequestError> {
        let wrong = |field, expected| move |_| PublishRequestError { field, expected };
        let statement = BASE64.decode(&self.statement);
        let signature = BASE64.decode(&self.signature);
        Ok(SignedConfiguration {
            statement: statement.map_err(wrong("statement", "standard base64"))?,
            key: self.key.parse().map_err(|_| PublishRequestError {
                field: "key",
                expected: "32 bytes in standard base64",
            })?,
            signature: signature.map_err(wrong("signature", "standard base64"))?,
        })
    }
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
