//! Reconcile: from desired and observed state to what is to be done. No I/O, no clock.
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
use holm_model::control::{Desired, Observed, ObservedVersion, VersionState};
use holm_model::ids::{Digest, FunctionName, VersionId};
use holm_model::limits::MAX_OTHER_NODES;

use crate::limits::{
    MAX_AGAIN, MAX_FUNCTIONS, MAX_REASON_BYTES, MAX_REASONS_BYTES, MIN_AGAIN, QUIET_TRIES,
};

/// Something for the executor to do. `attempt` comes back in the event, so that the late end of
/// something given up long ago is not taken for the end of its successor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Have the artifact on disk, verified.
    Obtain {
        attempt: u64,
        version: Box<VerifiedVersion>,
    },
    /// The same for one of which that has been said before.
    ObtainAgain { attempt: u64, version: VersionId },
    /// Say so when `after` is over.
    Wait {
        attempt: u64,
        version: VersionId,
        after: Duration,
    },
    /// Have a snapshot of it.
    Prepare { attempt: u64, version: VersionId },
    /// Send it one request.
    Probe { attempt: u64, version: VersionId },
    /// It took the probe: keep its snapshot on disk.
    Keep { version: VersionId },
    /// Give up what is under way, and remove its snapshot and, if no other version has the same,
    /// its artifact.
    Drop {
        version: VersionId,
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

/// The reconciler's state.
#[derive(Debug, Default)]
pub(crate) struct Reconciler {
    desired: Option<Desired>,
    held: BTreeMap<VersionId, Held>,
    refused: BTreeMap<(FunctionName, VersionId), String>,
    routed: BTreeMap<FunctionName, VersionId>,
    attempts: u64,
}

impl Reconciler {
    /// A new desired state; `None` if it is older than the one at hand and therefore ignored.
    pub(crate) fn want(&mut self, mut desired: Desired) -> Option<Vec<Action>> {
        if self
            .desired
            .as_ref()
            .is_some_and(|at_hand| desired.generation < at_hand.generation)
        {
            return None;
        }
        desired.functions.truncate(MAX_FUNCTIONS);
        desired.draining.others.truncate(MAX_OTHER_NODES);
        let mut seen = BTreeSet::new();
        desired
            .functions
            .retain(|function| seen.insert(function.function.clone()));

        let mut actions = Vec::new();
        self.refused.clear();
        for function in &desired.functions {
            for signed in std::iter::once(&function.version).chain(&function.previous) {
                match check(signed, &function.function, &function.publisher_keys) {
                    Ok(verified) => actions.extend(self.begin(verified)),
                    Err(reason) => {
                        self.refused
                            .insert((function.function.clone(), signed.id()), reason);
                    }
                }
            }
        }
        self.desired = Some(desired);
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
        let Some((version, held)) = found else {
            return Vec::new();
        };
        let version = *version;
        let (stage, action) = match (&held.stage, event) {
            (Stage::Obtaining, Event::Obtained { .. }) => {
                (Stage::Preparing, Some(Action::Prepare { attempt, version }))
            }
            (Stage::Preparing, Event::Prepared { .. }) => {
                (Stage::Probing, Some(Action::Probe { attempt, version }))
            }
            (Stage::Probing, Event::Probed { .. }) => {
                held.tries = 0;
                (Stage::Ready, Some(Action::Keep { version }))
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
                            version,
                            after,
                        };
                        (Stage::Waiting, Some(wait))
                    }
                }
            }
            (Stage::Waiting, Event::Waited { .. }) => {
                let again = Action::ObtainAgain { attempt, version };
                (Stage::Obtaining, Some(again))
            }
            _ => return Vec::new(),
        };
        held.stage = stage;
        self.route();
        action.into_iter().chain(self.sweep()).collect()
    }

    /// Where each function's requests go. Functions that are not in it have no version to serve them.
    pub(crate) fn routed(&self) -> &BTreeMap<FunctionName, VersionId> {
        &self.routed
    }

    /// The desired state at hand.
    pub(crate) fn desired(&self) -> Option<&Desired> {
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

    /// Whether the version is one that this node is to have.
    pub(crate) fn holds(&self, version: VersionId) -> bool {
        self.held.contains_key(&version)
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
        for function in &desired.functions {
            let routed = self.routed.get(&function.function);
            for signed in std::iter::once(&function.version).chain(&function.previous) {
                let version = signed.id();
                let refused = self.refused.get(&(function.function.clone(), version));
                let state = match (refused, self.held.get(&version)) {
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
                    function: function.function.clone(),
                    version,
                    state,
                    routed: routed == Some(&version),
                    record: None,
                });
            }
        }
        shorten(&mut versions);
        Observed {
            generation: desired.generation,
            versions,
        }
    }

    fn begin(&mut self, version: VerifiedVersion) -> Option<Action> {
        if self.held.contains_key(&version.id) {
            return None;
        }
        self.attempts += 1;
        let attempt = self.attempts;
        let held = Held {
            function: version.statement.function.clone(),
            artifact: version.statement.artifact,
            attempt,
            stage: Stage::Obtaining,
            tries: 0,
            trouble: String::new(),
        };
        self.held.insert(version.id, held);
        Some(Action::Obtain {
            attempt,
            version: Box::new(version),
        })
    }

    fn route(&mut self) {
        let Some(desired) = &self.desired else { return };
        let mut routed = BTreeMap::new();
        for function in &desired.functions {
            let ready = |version: &VersionId| {
                !self
                    .refused
                    .contains_key(&(function.function.clone(), *version))
                    && self
                        .held
                        .get(version)
                        .is_some_and(|held| held.stage == Stage::Ready)
            };
            let wanted = [
                Some(function.version.id()),
                function.previous.as_ref().map(|v| v.id()),
            ];
            let stays = self.routed.get(&function.function).copied();
            let to = wanted.into_iter().flatten().chain(stays).find(ready);
            if let Some(to) = to {
                routed.insert(function.function.clone(), to);
            }
        }
        self.routed = routed;
    }

    /// Drops what is neither desired nor takes requests.
    fn sweep(&mut self) -> Vec<Action> {
        let Some(desired) = &self.desired else {
            return Vec::new();
        };
        let mut keep: BTreeSet<VersionId> = self.routed.values().copied().collect();
        for function in &desired.functions {
            let signed = std::iter::once(&function.version).chain(&function.previous);
            let refused = |version: &VersionId| {
                self.refused
                    .contains_key(&(function.function.clone(), *version))
            };
            keep.extend(
                signed
                    .map(SignedVersion::id)
                    .filter(|version| !refused(version)),
            );
        }
        let gone: Vec<VersionId> = self
            .held
            .keys()
            .filter(|version| !keep.contains(*version))
            .copied()
            .collect();
        let mut actions = Vec::new();
        for version in gone {
            let Some(held) = self.held.remove(&version) else {
                continue;
            };
            tracing::info!(function = %held.function, version = %version.short(), "the version goes");
            let shared = self
                .held
                .values()
                .any(|other| other.artifact == held.artifact);
            actions.push(Action::Drop {
                version,
                artifact: (!shared).then_some(held.artifact),
            });
        }
        actions
    }
}

fn check(
    signed: &SignedVersion,
    function: &FunctionName,
    keys: &[PublisherKey],
) -> Result<VerifiedVersion, String> {
    let verified = signed
        .verify(keys)
        .map_err(|error| cut(error.to_string()))?;
    match verified.statement.function == *function {
        true => Ok(verified),
        false => Err(format!(
            "the coordinator asks for it as {function}, but its publisher signed it as {}; the \
             operator of the coordinator must look into it",
            verified.statement.function
        )),
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
