//! The rollout planner: which nodes are to have which version, decided without I/O.
//!
//! ```text
//!              every wave passed                 every connected node is back
//!   Running ───────────────────▶ Completed   ┌──────────────────────────────▶ RolledBack
//!      │                                     │
//!      └── a gate fails, or abort ──▶ RollingBack
//!
//!   (either way, another rollout may take its place: Superseded)
//!
//!   a wave:  Waiting ─▶ Moving ─▶ Baking ─▶ Passed
//!                          │         └────▶ Failed
//!                          ├──▶ Skipped (none of its nodes could be reached)
//!                          └──▶ Failed
//! ```
//!
//! While it is paused no wave begins or passes a gate and it does not complete; gates that fail still turn it back. It
//! pauses by itself when a gate has seen too little for too long: that is no reason to go on, nor to go back. What gates
//! say is decided in [`gate`].
//!
//! A [`Rollout`] is plain data: the executor stores it after every change and before acting on it,
//! so a restarted coordinator goes on from the stored one. What nodes say counts only if they say
//! it of the desired state that moved them (`generation`): an old failure of the same version is
//! not held against a new attempt.
//!
//! It refuses nothing and trusts nobody: a node that stays silent, flaps or lies costs its wave at
//! most [`PATIENCE`] preparation times and the time after which absent nodes are skipped, unless the
//! wave is to have a quorum.

use std::collections::{BTreeMap, BTreeSet};

use holm_model::api::RolloutState;
use holm_model::configuration::{Release, ReleaseId};
use holm_model::control::VersionState;
use holm_model::ids::{Digest, Name};
use holm_model::run_times::RunTimes;
use serde::{Deserialize, Serialize};

use super::gate::{self, Finding, Halves, OnNode, Outcome, Subject};
use super::sight::{Fleet, Presence, Sight};
use super::wave::{Policy, Tally, Wave, WaveState, plan_waves};
use crate::limits::{MAX_REASON_CHARS, cut};

/// A node that keeps coming and going is waited for at most this many preparation times.
const PATIENCE: u64 = 3;
/// A gate that has seen too few invocations waits this many bake times in all, and no less than [`MIN_INCONCLUSIVE_MS`].
const INCONCLUSIVE_BAKES: u64 = 4;
const MIN_INCONCLUSIVE_MS: u64 = 60_000;
/// The least that the nodes of a wave are taken to fetch together, in bytes a millisecond: what a coordinator gets
/// through a line of 32 Mbit/s.
const LEAST_RATE: u64 = 4096;
/// Why it is paused if a wave's nodes are not there. This pause ends by itself when they are.
const QUORUM_MISSED: &str = "paused, because too few nodes of a wave could be reached";

/// The way back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Retreat {
    since_ms: u64,
    generation: u64,
}

/// A rollout of one release of one function: a version with its configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Rollout {
    /// To. The name in JSON is of the time when there were versions alone.
    #[serde(rename = "version")]
    pub(crate) release: Release,
    /// From; none if it is the function's first.
    pub(crate) previous: Option<Release>,
    pub(crate) policy: Policy,
    pub(crate) state: RolloutState,
    /// Why it is there, for people.
    pub(crate) reason: String,
    /// Empty until a node is there to plan for.
    pub(crate) waves: Vec<Wave>,
    pub(crate) retreat: Option<Retreat>,
    /// What was seen on the nodes that have moved.
    #[serde(default)]
    pub(crate) seen: BTreeMap<Name, OnNode>,
    /// Why it is paused, if it is.
    #[serde(default)]
    pub(crate) paused: Option<String>,
    pub(crate) started_ms: u64,
    pub(crate) ended_ms: Option<u64>,
}

/// When a step is taken.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    pub(crate) now_ms: u64,
    /// The generation that desired state gets if this step publishes one.
    pub(crate) next_generation: u64,
}

/// What the executor has to do, after it has stored the rollout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Desired state has changed: store the next generation with it, then send it.
    Publish,
    /// The new version is the function's current one from now on.
    Adopt,
}

/// Whether another look is worth it.
enum Next {
    Again,
    Rest,
}

impl Rollout {
    /// A rollout that has not moved anything yet.
    pub(crate) fn begin(
        release: Release,
        previous: Option<Release>,
        policy: Policy,
        now_ms: u64,
    ) -> Self {
        Rollout {
            release,
            previous,
            policy,
            state: RolloutState::Running,
            reason: "about to begin".into(),
            waves: Vec::new(),
            retreat: None,
            seen: BTreeMap::new(),
            paused: None,
            started_ms: now_ms,
            ended_ms: None,
        }
    }

    /// Whether it has ended.
    pub(crate) fn ended(&self) -> bool {
        matches!(
            self.state,
            RolloutState::Completed | RolloutState::RolledBack | RolloutState::Superseded
        )
    }

    /// Another rollout, to the version called `label`, takes its place: its nodes have what they had, until that one
    /// moves them.
    pub(crate) fn supersede(&mut self, label: &str, now_ms: u64) {
        self.state = RolloutState::Superseded;
        self.reason = cut(
            &format!("superseded by a rollout to {label}"),
            MAX_REASON_CHARS,
        );
        self.paused = None;
        self.ended_ms = Some(now_ms);
    }

    /// The nodes that are to have the new version now, instead of the function's current one.
    pub(crate) fn moved(&self) -> BTreeSet<&Name> {
        match self.state {
            RolloutState::Running => self.begun().flat_map(|wave| &wave.nodes).collect(),
            _ => BTreeSet::new(),
        }
    }

    /// After a restart: time in which nobody watched counts for nothing.
    pub(crate) fn resume(&mut self, now_ms: u64) {
        for wave in &mut self.waves {
            if matches!(wave.state, WaveState::Moving | WaveState::Baking) {
                wave.since_ms = now_ms;
            }
        }
        if let Some(retreat) = &mut self.retreat {
            retreat.since_ms = now_ms;
        }
    }

    /// Counts invocations of the new version on a node, towards the wave that is being watched too.
    pub(crate) fn note(&mut self, node: &Name, tally: &Tally) {
        let moved = self.begun().any(|wave| wave.nodes.contains(node));
        if self.state != RolloutState::Running || !moved {
            return;
        }
        self.seen.entry(node.clone()).or_default().new.add(tally);
        let watched =
            |wave: &&mut Wave| matches!(wave.state, WaveState::Moving | WaveState::Baking);
        if let Some(wave) = self.waves.iter_mut().find(watched) {
            wave.tally.add(&Tally {
                run_times: RunTimes::default(),
                ..tally.clone()
            });
        }
    }

    /// What the gates say of all that was seen so far; nothing if nobody would hear them.
    pub(crate) fn findings(&self) -> Vec<Finding> {
        if self.policy.skips_gates || self.policy.goes_back {
            return Vec::new();
        }
        let nodes = self.waves.iter().map(|wave| wave.nodes.len()).sum();
        let Policy {
            max_error_ppm,
            gates,
            ..
        } = &self.policy;
        gate::judge(
            &self.seen,
            nodes,
            *max_error_ppm,
            gates,
            self.previous.is_some(),
        )
    }

    /// Takes down what nodes tell of the old version once requests do not go to it any more. The first word counts: what
    /// comes later may be of a node that has begun anew.
    fn remember(&mut self, fleet: &Fleet) {
        let Some(previous) = self.previous else {
            return;
        };
        let mut records = Vec::new();
        for (wave, name) in self
            .begun()
            .flat_map(|wave| wave.nodes.iter().map(move |name| (wave, name)))
        {
            let known = self.seen.get(name).is_some_and(|seen| seen.old.is_some());
            if let Some(sight) = fleet.get(name).filter(|_| !known)
                && self.serves(wave, Some(sight))
                && let Some(record) = sight
                    .versions
                    .get(&previous.id())
                    .and_then(|seen| seen.record.as_ref())
            {
                records.push((
                    name.clone(),
                    Halves::of(record, seed(&self.release.id(), name)),
                ));
            }
        }
        for (name, halves) in records {
            self.seen.entry(name).or_default().old = Some(halves);
        }
    }

    /// Stops it and sends the nodes back. Nothing happens if it is not running.
    pub(crate) fn abort(&mut self, at: Moment) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.state == RolloutState::Running {
            self.turn_back("aborted by the operator".into(), at, &mut actions);
        }
        actions
    }

    /// Lets no further wave begin or pass. Nothing happens if it is not running.
    pub(crate) fn pause(&mut self) {
        let by_itself = self.paused.as_deref() == Some(QUORUM_MISSED);
        if self.state == RolloutState::Running && (self.paused.is_none() || by_itself) {
            self.paused = Some("paused by the operator".into());
        }
    }

    /// Goes on after a pause; a wave that is watched is watched for a bake time again.
    pub(crate) fn unpause(&mut self, now_ms: u64) {
        if self.state == RolloutState::Running && self.paused.take().is_some() {
            self.reason = "resumed by the operator".into();
            for wave in &mut self.waves {
                if wave.state == WaveState::Baking {
                    wave.since_ms = now_ms;
                }
            }
        }
    }

    /// Takes the wave that is watched for passed, and goes on; with `all`, every wave to come, too: no gate is asked
    /// any more. `false`, and nothing happens, if it is not running, if the watched wave is not the one with the index
    /// `wave`, or if there is nothing to pass.
    pub(crate) fn promote(&mut self, wave: Option<usize>, all: bool) -> bool {
        let baking = |wave: &Wave| wave.state == WaveState::Baking;
        let watched = self.waves.iter().position(baking);
        let other = wave.is_some() && wave != watched;
        let nothing = watched.is_none() && self.paused.is_none() && !all;
        if self.state != RolloutState::Running || other || nothing {
            return false;
        }
        self.paused = None;
        self.policy.skips_gates |= all;
        self.reason = match all {
            true => "promoted by the operator past all gates".into(),
            false => "promoted by the operator past its gate".into(),
        };
        match watched {
            Some(wave) => self.waves[wave].state = WaveState::Passed,
            None => {
                let moving = |wave: &&mut Wave| wave.state == WaveState::Moving;
                if let Some(wave) = self.waves.iter_mut().find(moving) {
                    wave.quorum = None;
                }
            }
        }
        true
    }

    /// Looks at the fleet and goes on as far as it allows.
    pub(crate) fn tick(&mut self, fleet: &Fleet, at: Moment) -> Vec<Action> {
        let mut actions = Vec::new();
        // Every `Again` follows a transition of the diagram above, which has no cycle.
        loop {
            let next = match self.state {
                RolloutState::Running => self.run(fleet, at, &mut actions),
                RolloutState::RollingBack => self.retreat(fleet, at),
                RolloutState::Completed | RolloutState::RolledBack | RolloutState::Superseded => {
                    Next::Rest
                }
            };
            if let Next::Rest = next {
                return actions;
            }
        }
    }

    fn run(&mut self, fleet: &Fleet, at: Moment, actions: &mut Vec<Action>) -> Next {
        if self.waves.is_empty() {
            if !fleet.values().any(Sight::connected) {
                self.reason = match fleet.len() {
                    0 => "waiting for a node: none that the manifest's placement allows has joined"
                        .into(),
                    n => format!("waiting for a node: none of {n} is connected"),
                };
                return Next::Rest;
            }
            let plan = plan_waves(fleet, &self.policy, at.now_ms);
            if let Some(rule) = plan.empty.first().filter(|_| !self.policy.skips_gates) {
                self.reason = format!(
                    "waiting for a node: none that has joined is in the wave `{rule}`; `promote --all` goes on without"
                );
                return Next::Rest;
            }
            self.waves = plan.waves;
        }
        self.remember(fleet);
        let findings = self.findings();
        if let Some((wave, why)) = self.failure(fleet, &findings) {
            self.waves[wave].state = WaveState::Failed;
            self.turn_back(why, at, actions);
            return Next::Again;
        }
        let unfinished =
            |wave: &Wave| !matches!(wave.state, WaveState::Passed | WaveState::Skipped);
        let unfinished = self.waves.iter().position(unfinished);
        let held = unfinished.is_none_or(|index| self.waves[index].state == WaveState::Waiting);
        if held && let Some(why) = &self.paused {
            self.reason = format!("{why}; `resume` goes on, `abort` goes back");
            return Next::Rest;
        }
        let Some(index) = unfinished else {
            self.complete(fleet, at, actions);
            return Next::Rest;
        };
        match self.waves[index].state {
            WaveState::Waiting => {
                let wave = &mut self.waves[index];
                wave.state = WaveState::Moving;
                wave.since_ms = at.now_ms;
                wave.generation = at.next_generation;
                publish(actions);
                Next::Again
            }
            WaveState::Moving => self.moving(index, fleet, at, actions),
            _ => self.baking(index, fleet, &findings, at),
        }
    }

    fn moving(
        &mut self,
        index: usize,
        fleet: &Fleet,
        at: Moment,
        actions: &mut Vec<Action>,
    ) -> Next {
        let wave = &self.waves[index];
        let title = format!("wave {} of {}", index + 1, self.waves.len());
        let mut pending = Vec::new();
        let mut late = Vec::new();
        let mut serving = 0;
        for name in &wave.nodes {
            match self.progress(wave, fleet.get(name), at.now_ms) {
                Progress::Serving => serving += 1,
                Progress::Pending => pending.push(name.as_str()),
                Progress::Late => late.push(name.as_str()),
                Progress::Away => {}
            }
        }
        // Where a wave says how many suffice, those that are late are missed like those that are away.
        let suffices = wave.quorum.is_some_and(|quorum| serving >= quorum);
        let missed = (!late.is_empty()).then(|| {
            let (late, within) = (list(&late), self.timeout_ms(wave).div_ceil(1000));
            format!("{title}: {late} did not serve the new version within {within} s")
        });
        if let Some(why) = missed
            .clone()
            .filter(|_| !suffices && !self.policy.goes_back)
        {
            self.waves[index].state = WaveState::Failed;
            self.turn_back(why, at, actions);
            return Next::Again;
        }
        if !pending.is_empty() {
            self.reason = format!("{title}: waiting for {}", list(&pending));
            return Next::Rest;
        }
        if let Some(quorum) = wave.quorum {
            let title = format!("{title}: {serving} of its {} nodes", wave.nodes.len());
            if serving < quorum && self.policy.skips_gates {
                // Nobody is asked any more.
            } else if serving < quorum {
                self.paused.get_or_insert_with(|| QUORUM_MISSED.into());
                self.reason = format!(
                    "{title} serve the new version, and its quorum is {quorum}; it goes on when they do, `promote` goes on without them, `abort` goes back"
                );
                return Next::Rest;
            } else if self.paused.as_deref() == Some(QUORUM_MISSED) {
                self.paused = None;
            }
        }
        let last = index + 1 == self.waves.len();
        let passed = self
            .waves
            .iter()
            .any(|wave| wave.state == WaveState::Passed);
        // Nodes of a skipped wave that have come back count for the fleet, not for their wave.
        let elsewhere = || {
            self.begun().any(|wave| {
                wave.nodes
                    .iter()
                    .any(|name| self.serves(wave, fleet.get(name)))
            })
        };
        if serving > 0 || (last && !passed && elsewhere()) {
            let bake_ms = self.waves[index].bake_ms(&self.policy);
            self.reason = format!("{title}: watching for {bake_ms} ms");
            self.waves[index].state = WaveState::Baking;
            self.waves[index].since_ms = at.now_ms;
            return Next::Again;
        }
        if last && !passed {
            // Nobody has the version: completing would claim what is not so.
            match missed {
                None => {
                    self.reason = "waiting for a node: none that was to move is connected".into();
                    // Who comes back has its time.
                    self.waves[index].since_ms = at.now_ms;
                }
                Some(why) => {
                    self.reason = cut(&format!("{why}; waiting for them"), MAX_REASON_CHARS);
                }
            }
            return Next::Rest;
        }
        self.waves[index].state = WaveState::Skipped;
        Next::Again
    }

    fn baking(&mut self, index: usize, fleet: &Fleet, findings: &[Finding], at: Moment) -> Next {
        let wave = &self.waves[index];
        let (invocations, errors) = (wave.tally.invocations, wave.tally.errors);
        let bake_ms = wave.bake_ms(&self.policy);
        let over = at.now_ms >= wave.since_ms.saturating_add(bake_ms);
        if self.policy.skips_gates {
            self.waves[index].state = WaveState::Passed;
            return Next::Again;
        }
        let enough = invocations >= self.policy.min_requests;
        let unsure = findings
            .iter()
            .find(|finding| finding.outcome == Outcome::Inconclusive);
        if !over {
            return Next::Rest;
        }
        let title = format!("wave {} of {}", index + 1, self.waves.len());
        if let Some(why) = &self.paused {
            self.reason = format!(
                "{title}: {why}; `resume` watches it for a bake time more, `promote` takes it for passed, `abort` goes back"
            );
            return Next::Rest;
        }
        let serving = wave.nodes.iter();
        let serving = serving
            .filter(|name| self.serves(wave, fleet.get(*name)))
            .count();
        let missed = wave.quorum.filter(|quorum| serving < *quorum);
        if !enough || missed.is_some() || unsure.is_some() {
            let longest = bake_ms.saturating_mul(INCONCLUSIVE_BAKES);
            let until = self.waves[index]
                .since_ms
                .saturating_add(longest.max(MIN_INCONCLUSIVE_MS));
            if at.now_ms >= until {
                self.paused = Some(match (missed, unsure) {
                    (Some(_), _) => "paused, because nodes of the wave have gone away".into(),
                    (None, Some(finding)) => format!(
                        "paused, because a gate has seen too little to be sure: {}",
                        told(finding)
                    ),
                    (None, None) => "paused, because a gate has seen too little".into(),
                });
                return Next::Again;
            }
            self.reason = match (missed, unsure) {
                (Some(quorum), _) => format!(
                    "{title}: {serving} of its {} nodes serve the new version, and its quorum is {quorum}",
                    wave.nodes.len()
                ),
                (None, Some(finding)) => format!("{title}: inconclusive, {}", told(finding)),
                (None, None) => format!(
                    "{title}: inconclusive, {invocations} of the {} invocations that its gate is to see, {errors} of them failed",
                    self.policy.min_requests
                ),
            };
            return Next::Rest;
        }
        self.waves[index].state = WaveState::Passed;
        Next::Again
    }

    /// What stops the rollout whatever wave it is in: the version fails on a node that has moved,
    /// or crashes.
    fn failure(&self, fleet: &Fleet, findings: &[Finding]) -> Option<(usize, String)> {
        if self.policy.goes_back {
            return None;
        }
        let worse = findings
            .iter()
            .find(|finding| finding.outcome == Outcome::Fail);
        let watched = self
            .waves
            .iter()
            .rposition(|wave| wave.state != WaveState::Waiting);
        if let (Some(worse), Some(index)) = (worse, watched) {
            let title = format!("wave {} of {}", index + 1, self.waves.len());
            return Some((index, format!("{title}: {}", told(worse))));
        }
        for (index, wave) in self.waves.iter().enumerate() {
            if wave.state == WaveState::Waiting {
                continue;
            }
            let title = format!("wave {} of {}", index + 1, self.waves.len());
            for name in &wave.nodes {
                let reason = fleet.get(name).and_then(|sight| self.failed(wave, sight));
                if let Some(reason) = reason {
                    return Some((index, format!("{title}: failed on node {name}: {reason}")));
                }
            }
        }
        None
    }

    fn progress(&self, wave: &Wave, sight: Option<&Sight>, now_ms: u64) -> Progress {
        // Gone from where the function may run.
        let Some(sight) = sight else {
            return Progress::Away;
        };
        if self.serves(wave, Some(sight)) {
            return Progress::Serving;
        }
        let timeout = self.timeout_ms(wave);
        let skip_after = wave.skip_after_ms(&self.policy);
        let patience = timeout.saturating_mul(PATIENCE).saturating_add(skip_after);
        // While it waits for its quorum, whoever comes back gets its time.
        let impatient = self.paused.as_deref() != Some(QUORUM_MISSED)
            && now_ms > wave.since_ms.saturating_add(patience);
        match sight.presence {
            Presence::Connected { .. }
                if self.policy.goes_back && self.failed(wave, sight).is_some() =>
            {
                Progress::Late
            }
            Presence::Absent { since_ms } => {
                match impatient || now_ms > since_ms.saturating_add(skip_after) {
                    true => Progress::Away,
                    false => Progress::Pending,
                }
            }
            Presence::Connected { since_ms } => {
                match impatient || now_ms > wave.since_ms.max(since_ms).saturating_add(timeout) {
                    true => Progress::Late,
                    false => Progress::Pending,
                }
            }
        }
    }

    /// Why a node cannot have it, if it said so.
    fn failed<'a>(&self, wave: &Wave, sight: &'a Sight) -> Option<&'a str> {
        match &sight.versions.get(&self.release.id())?.state {
            VersionState::Failed { reason } if sight.knows(wave.generation) => Some(reason),
            _ => None,
        }
    }

    /// How long a connected node of the wave may take.
    fn timeout_ms(&self, wave: &Wave) -> u64 {
        let bytes = self
            .policy
            .artifact_bytes
            .saturating_mul(wave.nodes.len() as u64);
        let fetching = bytes / LEAST_RATE;
        self.policy.prepare_timeout_ms.saturating_add(fetching)
    }

    fn serves(&self, wave: &Wave, sight: Option<&Sight>) -> bool {
        sight.is_some_and(|sight| sight.knows(wave.generation) && sight.serves(&self.release.id()))
    }

    fn begun(&self) -> impl Iterator<Item = &Wave> {
        self.waves
            .iter()
            .filter(|wave| wave.state != WaveState::Waiting)
    }

    fn complete(&mut self, fleet: &Fleet, at: Moment, actions: &mut Vec<Action>) {
        let nodes = |wave: &'_ Wave| -> Vec<Name> {
            let missed = |name: &&Name| !self.serves(wave, fleet.get(*name));
            wave.nodes.iter().filter(missed).cloned().collect()
        };
        let skipped: Vec<Name> = self.waves.iter().flat_map(nodes).collect();
        let skipped: Vec<&str> = skipped.iter().map(Name::as_str).collect();
        self.state = RolloutState::Completed;
        let passed = match (self.policy.goes_back, self.policy.skips_gates) {
            (true, _) => "the fleet is back",
            (false, true) => "every wave moved; no gate was asked",
            (false, false) => "every wave passed its gate",
        };
        self.reason = match skipped.is_empty() {
            true => passed.into(),
            false => format!(
                "{passed}, as far as it could be reached; {} will move when they can",
                list(&skipped)
            ),
        };
        self.ended_ms = Some(at.now_ms);
        actions.push(Action::Adopt);
        publish(actions);
    }

    fn turn_back(&mut self, why: String, at: Moment, actions: &mut Vec<Action>) {
        self.reason = cut(&why, MAX_REASON_CHARS);
        self.state = RolloutState::RollingBack;
        self.paused = None;
        self.retreat = Some(Retreat {
            since_ms: at.now_ms,
            generation: at.next_generation,
        });
        publish(actions);
    }

    fn retreat(&mut self, fleet: &Fleet, at: Moment) -> Next {
        let retreat = *self.retreat.get_or_insert(Retreat {
            since_ms: at.now_ms,
            generation: at.next_generation,
        });
        let mut pending = Vec::new();
        let mut stuck = Vec::new();
        for name in self.begun().flat_map(|wave| &wave.nodes) {
            let Some(sight) = fleet.get(name).filter(|sight| sight.connected()) else {
                continue; // It gets the right version when it is back.
            };
            match self.back(sight, retreat.generation) {
                Some(true) => {}
                Some(false) => stuck.push(name.as_str()),
                None => pending.push(name.as_str()),
            }
        }
        let patience = retreat
            .since_ms
            .saturating_add(self.policy.prepare_timeout_ms);
        if !pending.is_empty() && at.now_ms <= patience {
            return Next::Rest;
        }
        stuck.extend(pending);
        if !stuck.is_empty() {
            let more = format!("; not confirmed to be back: {}", list(&stuck));
            self.reason = cut(&format!("{}{more}", self.reason), MAX_REASON_CHARS);
        }
        self.state = RolloutState::RolledBack;
        self.ended_ms = Some(at.now_ms);
        Next::Rest
    }

    /// Whether a node is back on the version before; none if it is on its way.
    fn back(&self, sight: &Sight, generation: u64) -> Option<bool> {
        if !sight.knows(generation) {
            return None;
        }
        match &self.previous {
            None => match sight.versions.get(&self.release.id()) {
                Some(seen) if seen.routed => None,
                _ => Some(true),
            },
            Some(previous) if sight.serves(&previous.id()) => Some(true),
            Some(previous) => match sight.versions.get(&previous.id()).map(|seen| &seen.state) {
                Some(VersionState::Failed { .. }) => Some(false),
                _ => None,
            },
        }
    }
}

/// How a node of a moving wave gets on.
enum Progress {
    Serving,
    Pending,
    Late,
    Away,
}

/// A finding for people.
fn told(finding: &Finding) -> String {
    let Finding {
        subject,
        old,
        new,
        against,
        needed,
        ..
    } = finding;
    let (bad, of) = (new.bad, new.trials);
    let what = match subject {
        Subject::Failures => format!("{bad} of {of} invocations of the new version failed"),
        Subject::Crashes => format!("the new version crashed {bad} times in {of} invocations"),
        Subject::RunTimes => format!("{bad} of {of} invocations of the new version ran too long"),
    };
    let before = match old.trials {
        0 => "the old one was not seen".to_owned(),
        trials => format!("of the old one on the same nodes {} of {trials}", old.bad),
    };
    match *against {
        // There is no rate to be weighed.
        u64::MAX => format!("{what}, {before}"),
        _ => format!("{what}, {before}; {against} to 1 against it, and {needed} to 1 turns back"),
    }
}

/// By which a node's record is taken apart: the same whenever it is done.
fn seed(release: &ReleaseId, node: &Name) -> u64 {
    let digest = Digest::of(&[&release.0[..], node.as_str().as_bytes()].concat());
    let first = digest.0.first_chunk().expect("a digest has 32 bytes");
    u64::from_le_bytes(*first)
}

fn publish(actions: &mut Vec<Action>) {
    if !actions.contains(&Action::Publish) {
        actions.push(Action::Publish);
    }
}

/// Names for people: a few, and how many more.
fn list(names: &[&str]) -> String {
    const SHOWN: usize = 8;
    match names.len() {
        0..=SHOWN => names.join(", "),
        n => format!("{} and {} more", names[..SHOWN].join(", "), n - SHOWN),
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
