//! Waves: which nodes move together, and what a wave's gate has seen.

use std::collections::BTreeSet;

use holm_model::ids::Name;
use holm_model::manifest::gates::Gates;
use holm_model::manifest::{Amount, WaveRule};
use holm_model::run_times::RunTimes;
use serde::{Deserialize, Serialize};

use super::sight::{Fleet, Sight};

/// How a rollout goes about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Policy {
    /// Which nodes have the new version after each wave. They were percentages alone once.
    #[serde(alias = "waves_percent")]
    pub(crate) waves: Vec<WaveRule>,
    /// How long a wave is watched.
    pub(crate) bake_ms: u64,
    /// Failed invocations that the gate lets pass, in parts per million.
    pub(crate) max_error_ppm: u32,
    /// How long a connected node may take until it serves the version, when it has its artifact.
    pub(crate) prepare_timeout_ms: u64,
    /// Of the artifact, which each node of a wave may have to fetch first.
    #[serde(default)]
    pub(crate) artifact_bytes: u64,
    /// How long a node may be away before the rollout goes on without it.
    pub(crate) absent_grace_ms: u64,
    /// Invocations that a gate has to see before its wave passes.
    #[serde(default)]
    pub(crate) min_requests: u64,
    /// How many of a wave's nodes must serve the version for it to pass. None: one that can be reached.
    #[serde(default)]
    pub(crate) quorum: Option<Amount>,
    /// How much worse than the old version the new one may be.
    #[serde(default)]
    pub(crate) gates: Gates,
    /// In an emergency: no wave is watched, and neither errors nor crashes turn back. A version that a node cannot have
    /// still does.
    #[serde(default)]
    pub(crate) skips_gates: bool,
    /// Back to what ran before: nothing that is seen turns this round, because what it would go back to is worse.
    #[serde(default)]
    pub(crate) goes_back: bool,
}

/// Invocations of a version.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tally {
    /// All that say something of the version.
    pub(crate) invocations: u64,
    /// Of those: crash, timeout, status 500 and above.
    pub(crate) errors: u64,
    /// Of those: crashes.
    pub(crate) crashes: u64,
    /// How long those ran that were answered.
    #[serde(default)]
    pub(crate) run_times: RunTimes,
}

impl Tally {
    /// Adds another one.
    pub(crate) fn add(&mut self, other: &Tally) {
        self.invocations = self.invocations.saturating_add(other.invocations);
        self.errors = self.errors.saturating_add(other.errors);
        self.crashes = self.crashes.saturating_add(other.crashes);
        self.run_times.add_all(&other.run_times);
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
    /// As the manifest or whoever started it has it.
    #[serde(default)]
    pub(crate) rule: Option<WaveRule>,
    /// How many of the nodes must serve the version for it to pass.
    #[serde(default)]
    pub(crate) quorum: Option<usize>,
}

/// Which nodes move when.
#[derive(Debug, Default)]
pub(crate) struct Waves {
    pub(crate) waves: Vec<Wave>,
    /// Rules that concern no node at all. Nobody tests on nodes that are not there, so this is nothing to begin with.
    pub(crate) empty: Vec<WaveRule>,
}

/// Makes waves of rules: each has at least one node more than those before it, as far as there are any left; one that
/// has none left goes. Connected nodes come first, by name. Nodes that are away are in a wave that takes all of a
/// ring, or else in the last: the first wave is to be a test, and nobody tests on them.
pub(super) fn plan_waves(fleet: &Fleet, policy: &Policy, now_ms: u64) -> Waves {
    let mut plan = Waves::default();
    let mut taken = BTreeSet::new();
    for rule in &policy.waves {
        let concerned = |(_, sight): &(&Name, &Sight)| rule.concerns(&sight.region, &sight.labels);
        let (present, absent): (Vec<_>, Vec<_>) = fleet
            .iter()
            .filter(concerned)
            .partition(|(_, sight)| sight.connected());
        if present.is_empty() && absent.is_empty() {
            plan.empty.push(rule.clone());
            continue;
        }
        // A ring of which nobody is there is waited for, or seen to be skipped; it is not passed over.
        let with_absent =
            rule.nodes == Amount::Percent(100) || present.is_empty() && rule.is_ring();
        let candidates = present.iter().chain(absent.iter().filter(|_| with_absent));
        let candidates: Vec<&Name> = candidates.map(|(name, _)| *name).collect();
        let done = candidates.iter().filter(|name| taken.contains(**name));
        let done = done.count();
        let more = rule
            .nodes
            .at_most(candidates.len())
            .saturating_sub(done)
            .max(1);
        let nodes: Vec<Name> = candidates
            .into_iter()
            .filter(|name| !taken.contains(*name))
            .take(more)
            .cloned()
            .collect();
        if nodes.is_empty() {
            continue;
        }
        taken.extend(nodes.iter().cloned());
        let quorum = rule.quorum.or(policy.quorum);
        plan.waves.push(Wave {
            quorum: quorum.map(|quorum| quorum.at_least(nodes.len())),
            nodes,
            state: WaveState::Waiting,
            since_ms: now_ms,
            generation: 0,
            tally: Tally::default(),
            rule: Some(rule.clone()),
        });
    }
    plan
}

impl Wave {
    /// How long it is watched.
    pub(crate) fn bake_ms(&self, policy: &Policy) -> u64 {
        let own = self.rule.as_ref().and_then(|rule| rule.bake_ms);
        own.unwrap_or(policy.bake_ms)
    }

    /// How long a node that is away is waited for.
    pub(crate) fn skip_after_ms(&self, policy: &Policy) -> u64 {
        let own = self.rule.as_ref().and_then(|rule| rule.skip_after_ms);
        own.unwrap_or(policy.absent_grace_ms)
    }
}
