//! A node as a rollout sees it: whether it is there, and what it says of the function's versions.

use std::collections::BTreeMap;

use holm_model::configuration::ReleaseId;
use holm_model::control::VersionState;
use holm_model::ids::Name;

use super::wave::Tally;

/// Whether a node's link is up, and since when it is so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Presence {
    Connected { since_ms: u64 },
    Absent { since_ms: u64 },
}

/// A version as a node sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) state: VersionState,
    pub(crate) routed: bool,
    /// How it went while requests went to it, once they go elsewhere.
    pub(crate) record: Option<Tally>,
}

/// A node on which the function may run, as the coordinator sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sight {
    pub(crate) region: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) presence: Presence,
    /// Desired state that the node last worked on.
    pub(crate) generation: u64,
    /// The function's releases on it.
    pub(crate) versions: BTreeMap<ReleaseId, Seen>,
}

/// The nodes on which the new version may run.
pub(crate) type Fleet = BTreeMap<Name, Sight>;

impl Sight {
    /// Whether its link is up.
    pub(crate) fn connected(&self) -> bool {
        matches!(self.presence, Presence::Connected { .. })
    }

    /// Whether what it says is about `generation` or a later one.
    pub(super) fn knows(&self, generation: u64) -> bool {
        self.connected() && self.generation >= generation
    }

    /// Whether requests go to this release on it.
    pub(super) fn serves(&self, release: &ReleaseId) -> bool {
        let serving = |seen: &Seen| seen.state == VersionState::Ready && seen.routed;
        self.versions.get(release).is_some_and(serving)
    }
}
