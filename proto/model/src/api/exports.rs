//! Exports of usage.

use serde::{Deserialize, Serialize};

use crate::ids::{Digest, Name};
use crate::price::Units;
use crate::usage::UsageRecord;

/// Where an export goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExportKind {
    /// Signed batches of CloudEvents, by HTTPS.
    Webhook,
    /// Parquet files in the artifact store.
    Parquet,
}

impl ExportKind {
    /// Its name in databases and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            ExportKind::Webhook => "webhook",
            ExportKind::Parquet => "parquet",
        }
    }

    /// The kind called `text`.
    pub fn from_name(text: &str) -> Option<ExportKind> {
        [ExportKind::Webhook, ExportKind::Parquet]
            .into_iter()
            .find(|kind| kind.as_str() == text)
    }
}

/// A new export of a tenant's records of usage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewExport {
    /// Where to.
    pub kind: ExportKind,
    /// Of a webhook: where, `https://`.
    #[serde(default)]
    pub url: Option<String>,
    /// Of a webhook: by what batches are signed, `whsec_` and base64.
    #[serde(default)]
    pub secret: Option<String>,
    /// Of a webhook: certificates in PEM of authorities that are trusted beside the system's.
    #[serde(default)]
    pub ca: Option<String>,
    /// Of a webhook: whether its address may be one that is not public. Needs a token for all tenants.
    #[serde(default)]
    pub private: bool,
    /// Of a webhook: also send what the ledger has already. Files have it in any case.
    #[serde(default)]
    pub from_start: bool,
}

/// An export of usage, and how far it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportView {
    /// Its number.
    pub id: u64,
    /// Whose records.
    pub tenant: Name,
    /// Where to.
    pub kind: ExportKind,
    /// Of a webhook.
    pub url: String,
    /// Whether its address may be one that is not public.
    pub private: bool,
    /// When it was made, milliseconds since 1970 UTC.
    pub created_ms: u64,
    /// Up to which row of the ledger records are out.
    pub row: u64,
    /// Records that are out.
    pub sent: u64,
    /// When the last of them were taken.
    pub sent_ms: Option<u64>,
    /// Records that wait.
    pub behind: u64,
    /// There may be more of them.
    pub behind_at_least: bool,
    /// When the oldest of them was accepted, by its node's clock.
    pub oldest_ms: Option<u64>,
    /// How often it failed since the last success.
    pub failures: u64,
    /// Since when.
    pub failing_since_ms: Option<u64>,
    /// Why, for people.
    pub error: Option<String>,
    /// Records that were no longer kept before they were out: they are in the sums alone.
    pub lost: u64,
    /// When that last happened.
    pub lost_ms: Option<u64>,
}

/// A file that an export has written, which does not change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportFile {
    /// Its name in the artifact store: `usage/tenant=…/date=…/part-….parquet`.
    pub name: String,
    /// The beginning of the day (UTC) on which its records were accepted, milliseconds since 1970.
    pub day_ms: u64,
    /// How many.
    pub rows: u64,
    /// How long the file is.
    pub bytes: u64,
    /// Its SHA-256.
    pub digest: Digest,
    /// When it was written.
    pub written_ms: u64,
}

/// The `data` of an event: a record, and what is billed of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordEvent {
    /// The node it came from.
    pub node: Name,
    /// The record.
    #[serde(flatten)]
    pub record: UsageRecord,
    /// Memory limit times run time.
    pub memory_kib_ms: u64,
    /// What is billed; nothing of a probe.
    pub billed: Units,
}
