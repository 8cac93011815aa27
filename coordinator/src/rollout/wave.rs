//! Waves: which nodes move together, and what a wave's gate has seen.

use holm_model::ids::Name;
use holm_model::limits::MAX_WAVES;
use serde::{Deserialize, Serialize};

use super::sight::Fleet;

/// How a rollout goes about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Policy {
    /// Share of the nodes that have the new version after each wave; rising, ends with 100.
    pub(crate) waves_percent: Vec<u8>,
    /// How long a wave is watched.
    pub(crate) bake_ms: u64,
    /// Failed invocations that the gate lets pass, in parts per million.
    pub(crate) max_error_ppm: u32,
    /// How long a connected node may take until it serves the version.
    pub(crate) prepare_timeout_ms: u64,
    /// How long a node may be away before the rollout goes on without it.
    pub(crate) absent_grace_ms: u64,
    /// Invocations that a gate has to see before its wave passes.
    #[serde(default)]
    pub(crate) min_requests: u64,
    /// In an emergency: no wave is watched, and neither errors nor crashes turn back. A version that a node cannot have
    /// still does.
    #[serde(default)]
    pub(crate) skips_gates: bool,
}

/// Invocations of the new version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tally {
    /// All that say something of the version.
    pub(crate) invocations: u64,
    /// Of those: crash, timeout, status 500 and above.
    pub(crate) errors: u64,
    /// Of those: crashes.
    pub(crate) crashes: u64,
}

impl Tally {
    /// Adds another one.
    pub(crate) fn add(&mut self, other: Tally) {
        self.invocations = self.invocations.saturating_add(other.invocations);
        self.errors = self.errors.saturating_add(other.errors);
        self.crashes = self.crashes.saturating_add(other.crashes);
    }

    /// Failed ones in parts per million.
    pub(super) fn error_ppm(&self) -> u128 {
        u128::from(self.errors) * 1_000_000 / u128::from(self.invocations.max(1))
    }
}

/// How far a wave is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum WaveState {
    /// Not begun.
    Waiting,
    /// Its nodes are told to move and prepare the version.
    Moving,
    /// They serve it and are watched.
    Baking,
    /// Over its gate.
    Passed,
    /// Stopped at its gate.
    Failed,
    /// None of its nodes could be reached.
    Skipped,
}

impl WaveState {
    /// Its name in the API.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            WaveState::Waiting => "waiting",
            WaveState::Moving => "moving",
            WaveState::Baking => "baking",
            WaveState::Passed => "passed",
            WaveState::Failed => "failed",
            WaveState::Skipped => "skipped",
        }
    }
}

/// Nodes that move together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Wave {
    pub(crate) nodes: Vec<Name>,
    pub(crate) state: WaveState,
    /// When it entered `Moving` or `Baking`.
    pub(crate) since_ms: u64,
    /// Generation of the desired state that moved it.
    pub(crate) generation: u64,
    /// What the gate has seen.
    pub(crate) tally: Tally,
}

/// Waves over the connected nodes by name, each at least one node more than the last. Nodes that
/// are away join the last wave: the first wave is to be a test, and nobody tests on them.
pub(super) fn plan_waves(fleet: &Fleet, percent: &[u8], now_ms: u64) -> Vec<Wave> {
    let (present, absent): (Vec<_>, Vec<_>) =
        fleet.iter().partition(|(_, sight)| sight.connected());
    let total = present.len();
    let mut waves = Vec::new();
    let mut done = 0;
    for (index, share) in percent.iter().enumerate() {
        let last = index + 1 == percent.len();
        let upto = match last {
            true => total,
            false => (total * usize::from(*share) / 100).max(done + 1).min(total),
        };
        if upto > done {
            waves.push(Wave {
                nodes: present[done..upto]
                    .iter()
                    .map(|(name, _)| (*name).clone())
                    .collect(),
                state: WaveState::Waiting,
                since_ms: now_ms,
                generation: 0,
                tally: Tally::default(),
            });
        }
        done = upto;
    }
    if let Some(last) = waves.last_mut() {
        last.nodes
            .extend(absent.into_iter().map(|(name, _)| name.clone()));
    }
    waves
}

/// Whether `percent` is a list of waves: rising, from 1, ending with 100.
pub(crate) fn are_waves(percent: &[u8]) -> bool {
    percent.last() == Some(&100)
        && percent.len() <= MAX_WAVES
        && percent.first().is_some_and(|first| *first > 0)
        && percent.windows(2).all(|pair| pair[0] < pair[1])
}
