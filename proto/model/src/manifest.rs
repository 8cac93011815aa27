//! `holm.toml`: what a function is allowed, and how it is built, placed and rolled out.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::Name;

/// A manifest whose every value has been checked. Travels inside a version's statement as JSON, in
/// canonical units (bytes, milliseconds, parts per million).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of the manifest's schema: 1.
    pub schema: u32,
    /// `[function]`.
    pub function: Function,
    /// `[build]`; for the command only.
    #[serde(default)]
    pub build: Build,
    /// `[limits]`.
    pub limits: Limits,
    /// `[scale]`.
    pub scale: Scale,
    /// `[env]`: environment variables of the program.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// `[placement]`.
    #[serde(default)]
    pub placement: Placement,
    /// `[rollout]`.
    pub rollout: Rollout,
}

/// `[function]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Function {
    /// Whose it is; may be left out of the file and given to the command.
    pub tenant: Option<Name>,
    /// Its name within the tenant.
    pub name: Name,
    /// For people.
    #[serde(default)]
    pub description: String,
}

/// `[build]`: how `holm build` makes the program.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Build {
    /// A shell command; without it the project's kind is detected.
    pub command: Option<String>,
    /// Path of the program it makes, relative to the manifest.
    pub output: Option<String>,
}

/// `[limits]` of one invocation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Program memory of the guest.
    pub memory_bytes: u64,
    /// Wall time from acceptance to the last byte handed over; queueing and start included.
    pub deadline_ms: u64,
    /// CPU time of the vCPU.
    pub cpu_ms: u64,
    /// Largest request body.
    pub request_body_bytes: u64,
    /// Largest response body.
    pub response_body_bytes: u64,
    /// Most invocations at a time on one node.
    pub concurrency: u32,
}

/// How much state invocations share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// A pristine machine for every request.
    #[default]
    Request,
    /// A machine is kept between requests.
    Instance,
}

/// `[scale]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scale {
    /// `"request"` (default) or `"instance"`.
    #[serde(default)]
    pub isolation: Isolation,
    /// Slots to keep holding the snapshot on every node.
    #[serde(default)]
    pub min: u32,
}

/// `[placement]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Placement {
    /// Regions in which the function runs; empty means everywhere.
    #[serde(default)]
    pub regions: Vec<String>,
}

/// `[rollout]`: how a new version reaches the fleet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rollout {
    /// Share of the nodes, in percent, that have the new version after each wave; rising, ends
    /// with 100.
    pub waves_percent: Vec<u8>,
    /// How long a wave is watched before the next.
    pub bake_ms: u64,
    /// Path of the probe that a node sends to a new version before it takes traffic.
    pub probe_path: String,
    /// Failed invocations (crash, timeout, 5xx) of the new version that the gate lets pass, in
    /// parts per million.
    pub max_error_ppm: u32,
}

/// Placeholder.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ManifestError(pub String);

impl Manifest {
    /// Checks every value against its bounds.
    pub fn check(&self) -> Result<(), ManifestError> {
        todo!()
    }
}
