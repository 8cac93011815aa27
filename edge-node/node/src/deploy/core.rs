//! Reconcile: from desired and observed state to what is to be done. No I/O, no clock.
//!
//! What it has are *releases*: versions, each with its configuration if it has one. The same version with another
//! configuration is another release, and is prepared, probed and switched to like another version.
//!
//! ```text
//!           want()                Obtained            Prepared           Probed
//!  (new) ───────────▶ [obtaining] ─────▶ [preparing] ─────▶ [probing] ─────▶ [ready]
//!    │ bad signature       │ Failed           │ Failed          │ Failed
//!    └─────────────────────┴───────▶ [failed] ◀────────────────┴─
//! ```
//! What failed through no fault of the function's is begun again after a pause, each time a longer one; when that
//! has been in vain several times the coordinator is told that it failed, and it goes on all the same.
//!
//! A function's requests go to its `version` once that is ready; until then, and if it fails, to
//! `previous` if that is ready; failing both, they stay where they are. So a version that takes
//! requests is kept until another can take over, even when desired state has forgotten it. Everything
//! else that is not desired goes. The same code serves a change, a retry, a restart and a rejoin.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use holm_model::artifact::{PublisherKey, SignedVersion, VerifiedVersion};
use holm_model::configuration::{
    Configuration, Release, ReleaseId, VerifiedConfiguration, release_label,
};
use holm_model::control::{Configured, Observed, ObservedVersion, VersionState};
use holm_model::ids::{Digest, FunctionName};
use holm_model::limits::MAX_OTHER_NODES;

use crate::limits::{
    LAST_GENERATION, MAX_AGAIN, MAX_FUNCTIONS, MAX_REASON_BYTES, MAX_REASONS_BYTES, MIN_AGAIN,
    QUIET_TRIES,
};

/// A release of which every signature has been verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VerifiedRelease {
    pub(crate) id: ReleaseId,
    pub(crate) version: VerifiedVersion,
    pub(crate) configuration: Option<VerifiedConfiguration>,
}

impl VerifiedRelease {
    /// What people call it.
    pub(crate) fn label(&self) -> String {
        release_label(&self.version.statement.label, self.number())
    }

    /// The number of its configuration, if it has one.
    pub(crate) fn number(&self) -> Option<u64> {
        let configured = self.configuration.as_ref();
        configured.map(|configured| configured.statement.number)
    }

    /// What its program finds in its environment: where both have a name, the configuration's value.
    pub(crate) fn env(&self) -> BTreeMap<String, String> {
        let mut env = self.version.statement.manifest.env.clone();
        let entries = self
            .configuration
            .iter()
            .flat_map(|configured| configured.entries());
        env.extend(entries.map(|(name, value)| (name.to_owned(), value.to_owned())));
        env
    }
}

/// Something for the executor to do. `attempt` comes back in the event, so that the late end of
/// something given up long ago is not taken for the end of its successor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Have the artifact on disk, verified.
    Obtain {
        attempt: u64,
        release: Box<VerifiedRelease>,
    },
    /// The same for one of which that has been said before.
    ObtainAgain { attempt: u64, release: ReleaseId },
    /// Say so when `after` is over.
    Wait {
        attempt: u64,
        release: ReleaseId,
        after: Duration,
    },
    /// Have a snapshot of it.
    Prepare { attempt: u64, release: ReleaseId },
    /// Send it one request.
    Probe { attempt: u64, release: ReleaseId },
    /// It took the probe: keep its snapshot on disk.
    Keep { release: ReleaseId },
    /// Give up what is under way, and remove its snapshot and, if no other version has the same,
    /// its artifact.
    Drop {
        release: ReleaseId,
        artifact: Option<Digest>,
    },
}

/// What has become of an action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Obtained {
        attempt: u64,
    },
    Prepared {
        attempt: u64,
    },
    Probed {
        attempt: u64,
    },
    Failed {
        attempt: u64,
        why: Fault,
    },
    /// The pause is over.
    Waited {
        attempt: u64,
    },
}

/// Why a version is not ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// For people.
    pub(crate) reason: String,
    /// The node, or the coordinator, is to blame, and another time it may work.
    pub(crate) is_ours: bool,
}

impl Fault {
    /// The function's.
    pub(crate) fn of_function(reason: impl ToString) -> Self {
        Fault {
            reason: reason.to_string(),
            is_ours: false,
        }
    }

    /// Not the function's.
    pub(crate) fn ours(reason: impl ToString) -> Self {
        Fault {
            reason: reason.to_string(),
            is_ours: true,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Stage {
    Obtaining,
    Preparing,
    Probing,
    Ready,
    Failed(String),
    /// To be begun again.
    Waiting,
}

#[derive(Clone, Debug)]
struct Held {
    function: FunctionName,
    artifact: Digest,
    attempt: u64,
    stage: Stage,
    /// How often it has failed through a fault of ours, and the last reason.
    tries: u32,
    trouble: String,
}

/// What the node is to have of one function.
#[derive(Debug)]
struct Wanted {
    function: FunctionName,
    release: ReleaseId,
    previous: Option<ReleaseId>,
}

impl Wanted {
    fn releases(&self) -> impl Iterator<Item = ReleaseId> + use<> {
        std::iter::once(self.release).chain(self.previous)
    }
}

/// The reconciler's state.
#[derive(Debug, Default)]
pub(crate) struct Reconciler {
    desired: Option<Configured>,
    /// The releases of that, function by function.
    wanted: Vec<Wanted>,
    held: BTreeMap<ReleaseId, Held>,
    refused: BTreeMap<(FunctionName, ReleaseId), String>,
    routed: BTreeMap<FunctionName, ReleaseId>,
    attempts: u64,
}

impl Reconciler {
    /// A new desired state; `None` if it is older than the one at hand, or of no generation that can be, and therefore ignored.
    pub(crate) fn want(&mut self, wanted: impl Into<Configured>) -> Option<Vec<Action>> {
        let Configured {
            mut desired,
            configurations,
        } = wanted.into();
        let at_hand = self.desired.as_ref();
        let at_hand = at_hand.map_or(0, |at_hand| at_hand.desired.generation);
        if !(at_hand..=LAST_GENERATION).contains(&desired.generation) {
            return None;
        }
        desired.functions.truncate(MAX_FUNCTIONS);
        desired.draining.others.truncate(MAX_OTHER_NODES);
        let mut seen = BTreeSet::new();
        desired
            .functions
            .retain(|function| seen.insert(function.function.clone()));

        let mut configured = BTreeMap::new();
        for configuration in configurations {
            if seen.contains(&configuration.function) {
                configured
                    .entry(configuration.function.clone())
                    .or_insert(configuration);
            }
        }

        let mut actions = Vec::new();
        self.refused.clear();
        self.wanted.clear();
        for function in &desired.functions {
            let own = configured.get(&function.function);
            let version = Alleged {
                version: &function.version,
                configuration: own.and_then(|own| own.version.as_ref()),
            };
            let previous = function.previous.as_ref().map(|previous| Alleged {
                version: previous,
                configuration: own.and_then(|own| own.previous.as_ref()),
            });
            self.wanted.push(Wanted {
                function: function.function.clone(),
                release: version.id(),
                previous: previous.as_ref().map(Alleged::id),
            });
            for alleged in std::iter::once(version).chain(previous) {
                match alleged.check(&function.function, &function.publisher_keys) {
                    Ok(verified) => actions.extend(self.begin(verified)),
                    Err(reason) => {
                        self.refused
                            .insert((function.function.clone(), alleged.id()), reason);
                    }
                }
            }
        }
        self.desired = Some(Configured {
            desired,
            configurations: configured.into_values().collect(),
        });
        self.route();
        actions.extend(self.sweep());
        Some(actions)
    }

    /// What has become of an action. Of an attempt that is not under way any more: nothing.
    pub(crate) fn on(&mut self, event: Event) -> Vec<Action> {
        let attempt = match &event {
            Event::Obtained { attempt }
            | Event::Prepared { attempt }
            | Event::Probed { attempt }
            | Event::Failed { attempt, .. }
            | Event::Waited { attempt } => *attempt,
        };
        let found = self
            .held
            .iter_mut()
            .find(|(_, held)| held.attempt == attempt);
        let Some((release, held)) = found else {
            return Vec::new();
        };
        let release = *release;
        let (stage, action) = match (&held.stage, event) {
            (Stage::Obtaining, Event::Obtained { .. }) => {
                (Stage::Preparing, Some(Action::Prepare { attempt, release }))
            }
            (Stage::Preparing, Event::Prepared { .. }) => {
                (Stage::Probing, Some(Action::Probe { attempt, release }))
            }
            (Stage::Probing, Event::Probed { .. }) => {
                held.tries = 0;
                (Stage::Ready, Some(Action::Keep { release }))
            }
            (Stage::Obtaining | Stage::Preparing | Stage::Probing, Event::Failed { why, .. }) => {
                match why.is_ours {
                    false => (Stage::Failed(cut(why.reason)), None),
                    true => {
                        let after = pause(held.tries);
                        held.tries = held.tries.saturating_add(1);
                        held.trouble = cut(why.reason);
                        let wait = Action::Wait {
                            attempt,
                            release,
                            after,
                        };
                        (Stage::Waiting, Some(wait))
                    }
                }
            }
            (Stage::Waiting, Event::Waited { .. }) => {
                let again = Action::ObtainAgain { attempt, release };
                (Stage::Obtaining, Some(again))
            }
            _ => return Vec::new(),
        };
        held.stage = stage;
        self.route();
        action.into_iter().chain(self.sweep()).collect()
    }

    /// Where each function's requests go. Functions that are not in it have no version to serve them.
    pub(crate) fn routed(&self) -> &BTreeMap<FunctionName, ReleaseId> {
        &self.routed
    }

    /// The desired state at hand.
    pub(crate) fn desired(&self) -> Option<&Configured> {
        self.desired.as_ref()
    }

    /// Whether nothing is under way.
    pub(crate) fn is_settled(&self) -> bool {
        let is_settled = |held: &Held| match held.stage {
            Stage::Ready | Stage::Failed(_) | Stage::Waiting => true,
            // It may fail again.
            Stage::Obtaining | Stage::Preparing | Stage::Probing => held.tries > 0,
        };
        self.held.values().all(is_settled)
    }

    /// Whether the release is one that this node is to have.
    pub(crate) fn holds(&self, release: ReleaseId) -> bool {
        self.held.contains_key(&release)
    }

    /// Digests of all artifacts that are to stay on disk.
    pub(crate) fn artifacts(&self) -> BTreeSet<Digest> {
        self.held.values().map(|held| held.artifact).collect()
    }

    /// What the coordinator is told.
    pub(crate) fn observed(&self) -> Observed {
        let Some(desired) = &self.desired else {
            return Observed::default();
        };
        let mut versions = Vec::new();
        for wanted in &self.wanted {
            let routed = self.routed.get(&wanted.function);
            for release in wanted.releases() {
                let refused = self.refused.get(&(wanted.function.clone(), release));
                let state = match (refused, self.held.get(&release)) {
                    (Some(reason), _) => VersionState::Failed {
                        reason: reason.clone(),
                    },
                    (None, Some(held)) => match &held.stage {
                        Stage::Ready => VersionState::Ready,
                        Stage::Failed(reason) => VersionState::Failed {
                            reason: reason.clone(),
                        },
                        _ if held.tries > QUIET_TRIES => VersionState::Failed {
                            reason: format!("{}; the node tries again", held.trouble),
                        },
                        _ => VersionState::Preparing,
                    },
                    (None, None) => VersionState::Preparing,
                };
                versions.push(ObservedVersion {
                    function: wanted.function.clone(),
                    version: release,
                    state,
                    routed: routed == Some(&release),
                    record: None,
                });
            }
        }
        shorten(&mut versions);
        Observed {
            generation: desired.desired.generation,
            versions,
        }
    }

    fn begin(&mut self, release: VerifiedRelease) -> Option<Action> {
        if self.held.contains_key(&release.id) {
            return None;
        }
        self.attempts += 1;
        let attempt = self.attempts;
        let held = Held {
            function: release.version.statement.function.clone(),
            artifact: release.version.statement.artifact,
            attempt,
            stage: Stage::Obtaining,
            tries: 0,
            trouble: String::new(),
        };
        self.held.insert(release.id, held);
        Some(Action::Obtain {
            attempt,
            release: Box::new(release),
        })
    }

    fn route(&mut self) {
        let mut routed = BTreeMap::new();
        for wanted in &self.wanted {
            let ready = |release: &ReleaseId| {
                !self
                    .refused
                    .contains_key(&(wanted.function.clone(), *release))
                    && self
                        .held
                        .get(release)
                        .is_some_and(|held| held.stage == Stage::Ready)
            };
            let stays = self.routed.get(&wanted.function).copied();
            let to = wanted.releases().chain(stays).find(ready);
            if let Some(to) = to {
                routed.insert(wanted.function.clone(), to);
            }
        }
        self.routed = routed;
    }

    /// Drops what is neither desired nor takes requests.
    fn sweep(&mut self) -> Vec<Action> {
        let mut keep: BTreeSet<ReleaseId> = self.routed.values().copied().collect();
        for wanted in &self.wanted {
            let refused = |release: &ReleaseId| {
                self.refused
                    .contains_key(&(wanted.function.clone(), *release))
            };
            keep.extend(wanted.releases().filter(|release| !refused(release)));
        }
        let gone: Vec<ReleaseId> = self
            .held
            .keys()
            .filter(|release| !keep.contains(*release))
            .copied()
            .collect();
        let mut actions = Vec::new();
        for release in gone {
            let Some(held) = self.held.remove(&release) else {
                continue;
            };
            tracing::info!(function = %held.function, release = %release.short(), "the release goes");
            let shared = self
                .held
                .values()
                .any(|other| other.artifact == held.artifact);
            actions.push(Action::Drop {
                release,
                artifact: (!shared).then_some(held.artifact),
            });
        }
        actions
    }
}

/// What the coordinator says that a release is.
#[derive(Clone, Copy, Debug)]
struct Alleged<'a> {
    version: &'a SignedVersion,
    configuration: Option<&'a Configuration>,
}

impl Alleged<'_> {
    fn id(&self) -> ReleaseId {
        let release = Release {
            version: self.version.id(),
            configuration: self
                .configuration
                .map(|configuration| configuration.signed.id()),
        };
        release.id()
    }

    /// Checks the signatures, and that all of it is for this function.
    fn check(
        &self,
        function: &FunctionName,
        keys: &[PublisherKey],
    ) -> Result<VerifiedRelease, String> {
        let version = self.version.verify(keys);
        let version = version.map_err(|error| cut(error.to_string()))?;
        let configuration = self
            .configuration
            .map(|configuration| configuration.verify(keys));
        let configuration = configuration.transpose();
        let configuration = configuration.map_err(|error| cut(error.to_string()))?;
        let own = configuration.as_ref().map(|own| &own.statement.function);
        for signed in std::iter::once(&version.statement.function).chain(own) {
            if signed != function {
                return Err(format!(
                    "the coordinator asks for it as {function}, but its publisher signed it as {signed}; the \
                     operator of the coordinator must look into it"
                ));
            }
        }
        Ok(VerifiedRelease {
            id: self.id(),
            version,
            configuration,
        })
    }
}

/// How long to wait before another attempt when so many were in vain before this one.
fn pause(tries: u32) -> Duration {
    let factor = 1u32.checked_shl(tries).unwrap_or(u32::MAX);
    MIN_AGAIN.saturating_mul(factor).min(MAX_AGAIN)
}

/// Keeps the reasons together within what a message can carry.
fn shorten(versions: &mut [ObservedVersion]) {
    let reasons = versions
        .iter_mut()
        .filter_map(|version| match &mut version.state {
            VersionState::Failed { reason } => Some(reason),
            _ => None,
        });
    let reasons: Vec<&mut String> = reasons.collect();
    let each = MAX_REASONS_BYTES / reasons.len().max(1);
    for reason in reasons {
        *reason = cut_to(std::mem::take(reason), each);
    }
}

fn cut(reason: String) -> String {
    cut_to(reason, MAX_REASON_BYTES)
}

fn cut_to(mut reason: String, max_bytes: usize) -> String {
    if reason.len() > max_bytes {
        let end = (0..=max_bytes)
            .rev()
            .find(|at| reason.is_char_boundary(*at));
        reason.truncate(end.unwrap_or(0));
        reason.push('…');
    }
    reason
}

#[cfg(test)]
mod tests;
