//! Reconcile: from desired and observed state to what is to be done. No I/O, no clock.
//!
//! ```text
//!           want()                Obtained            Prepared           Probed
//!  (new) ───────────▶ [obtaining] ─────▶ [preparing] ─────▶ [probing] ─────▶ [ready]
//!    │ bad signature       │ Failed           │ Failed          │ Failed
//!    └─────────────────────┴───────▶ [failed] ◀────────────────┴─
//! ```
//! A function's requests go to its `version` once that is ready; until then, and if it fails, to
//! `previous` if that is ready; failing both, they stay where they are. So a version that takes
//! requests is kept until another can take over, even when desired state has forgotten it. Everything
//! else that is not desired goes. The same code serves a change, a retry, a restart and a rejoin.

use std::collections::{BTreeMap, BTreeSet};

use holm_model::artifact::{PublisherKey, SignedVersion, VerifiedVersion};
use holm_model::control::{Desired, Observed, ObservedVersion, VersionState};
use holm_model::ids::{Digest, FunctionName, VersionId};

use crate::limits::{MAX_FUNCTIONS, MAX_REASON_BYTES, MAX_REASONS_BYTES};

/// Something for the executor to do. `attempt` comes back in the event, so that the late end of
/// something given up long ago is not taken for the end of its successor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Have the artifact on disk, verified.
    Obtain {
        attempt: u64,
        version: Box<VerifiedVersion>,
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
    Obtained { attempt: u64 },
    Prepared { attempt: u64 },
    Probed { attempt: u64 },
    Failed { attempt: u64, reason: String },
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Stage {
    Obtaining,
    Preparing,
    Probing,
    Ready,
    Failed(String),
}

#[derive(Clone, Debug)]
struct Held {
    function: FunctionName,
    artifact: Digest,
    attempt: u64,
    stage: Stage,
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
            | Event::Failed { attempt, .. } => *attempt,
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
                (Stage::Ready, Some(Action::Keep { version }))
            }
            (
                Stage::Obtaining | Stage::Preparing | Stage::Probing,
                Event::Failed { reason, .. },
            ) => (Stage::Failed(cut(reason)), None),
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
                        _ => VersionState::Preparing,
                    },
                    (None, None) => VersionState::Preparing,
                };
                versions.push(ObservedVersion {
                    function: function.function.clone(),
                    version,
                    state,
                    routed: routed == Some(&version),
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
mod tests {
    use super::*;
    use crate::deploy::testing::{key, signed, statement};
    use holm_model::artifact::PublisherKey;
    use holm_model::control::DesiredFunction;

    fn hello() -> FunctionName {
        "acme/hello".parse().unwrap()
    }

    fn publisher() -> PublisherKey {
        PublisherKey(key().verifying_key().to_bytes())
    }

    fn desired(
        generation: u64,
        version: &SignedVersion,
        previous: Option<&SignedVersion>,
    ) -> Desired {
        let function = DesiredFunction {
            function: hello(),
            publisher_keys: vec![publisher()],
            version: version.clone(),
            previous: previous.cloned(),
        };
        Desired {
            generation,
            functions: vec![function],
        }
    }

    /// The attempt of the only action that begins something.
    fn attempt(actions: &[Action]) -> u64 {
        let attempts: Vec<u64> = actions
            .iter()
            .filter_map(|action| match action {
                Action::Obtain { attempt, .. } => Some(*attempt),
                _ => None,
            })
            .collect();
        assert_eq!(attempts.len(), 1, "{actions:?}");
        attempts[0]
    }

    fn bring_up(core: &mut Reconciler, attempt: u64) -> Vec<Action> {
        core.on(Event::Obtained { attempt });
        core.on(Event::Prepared { attempt });
        core.on(Event::Probed { attempt })
    }

    fn fail(core: &mut Reconciler, attempt: u64) {
        core.on(Event::Failed {
            attempt,
            reason: "it crashed".into(),
        });
    }

    #[test]
    fn a_version_takes_requests_only_after_its_probe() {
        let v1 = signed("v1", 1);
        let mut core = Reconciler::default();
        let attempt = attempt(&core.want(desired(1, &v1, None)).unwrap());
        assert!(core.routed().is_empty());
        let actions = core.on(Event::Obtained { attempt });
        assert_eq!(
            actions,
            [Action::Prepare {
                attempt,
                version: v1.id()
            }]
        );
        let actions = core.on(Event::Prepared { attempt });
        assert_eq!(
            actions,
            [Action::Probe {
                attempt,
                version: v1.id()
            }]
        );
        assert!(core.routed().is_empty());
        assert_eq!(core.observed().versions[0].state, VersionState::Preparing);
        let actions = core.on(Event::Probed { attempt });
        assert_eq!(actions, [Action::Keep { version: v1.id() }]);
        assert_eq!(core.routed().get(&hello()), Some(&v1.id()));
        let observed = core.observed();
        assert!(observed.versions[0].routed && observed.versions[0].state == VersionState::Ready);
    }

    #[test]
    fn requests_stay_with_the_previous_version_until_the_new_one_is_ready() {
        let (v1, v2) = (signed("v1", 1), signed("v2", 2));
        let mut core = Reconciler::default();
        let first = attempt(&core.want(desired(1, &v1, None)).unwrap());
        bring_up(&mut core, first);
        let second = attempt(&core.want(desired(2, &v2, Some(&v1))).unwrap());
        assert_eq!(core.routed().get(&hello()), Some(&v1.id()));
        bring_up(&mut core, second);
        assert_eq!(core.routed().get(&hello()), Some(&v2.id()));
        assert!(core.holds(v1.id()), "the previous version stays prepared");
    }

    #[test]
    fn a_failed_version_leaves_requests_where_they_are_and_says_why() {
        let (v1, v2) = (signed("v1", 1), signed("v2", 2));
        let mut core = Reconciler::default();
        let first = attempt(&core.want(desired(1, &v1, None)).unwrap());
        bring_up(&mut core, first);
        let second = attempt(&core.want(desired(2, &v2, Some(&v1))).unwrap());
        core.on(Event::Obtained { attempt: second });
        fail(&mut core, second);
        assert_eq!(core.routed().get(&hello()), Some(&v1.id()));
        let observed = core.observed();
        let reason = VersionState::Failed {
            reason: "it crashed".into(),
        };
        assert_eq!(
            (&observed.versions[0].state, observed.versions[0].routed),
            (&reason, false)
        );
        assert!(observed.versions[1].routed);
    }

    #[test]
    fn going_back_needs_no_new_preparation() {
        let (v1, v2) = (signed("v1", 1), signed("v2", 2));
        let mut core = Reconciler::default();
        let first = attempt(&core.want(desired(1, &v1, None)).unwrap());
        bring_up(&mut core, first);
        let second = attempt(&core.want(desired(2, &v2, Some(&v1))).unwrap());
        bring_up(&mut core, second);
        let actions = core.want(desired(3, &v1, None)).unwrap();
        assert_eq!(core.routed().get(&hello()), Some(&v1.id()));
        // The two versions have artifacts of their own.
        let artifact = Some(statement("v2", 2).artifact);
        assert_eq!(
            actions,
            [Action::Drop {
                version: v2.id(),
                artifact
            }]
        );
    }

    #[test]
    fn a_version_in_service_stays_until_another_can_take_over() {
        let (v1, v2, v3) = (signed("v1", 1), signed("v2", 2), signed("v3", 3));
        let mut core = Reconciler::default();
        let first = attempt(&core.want(desired(1, &v1, None)).unwrap());
        bring_up(&mut core, first);
        let second = attempt(&core.want(desired(2, &v2, Some(&v1))).unwrap());
        // Before version 2 is ready, version 3 comes and version 1 is not mentioned any more.
        let third = attempt(&core.want(desired(3, &v3, Some(&v2))).unwrap());
        assert_eq!(core.routed().get(&hello()), Some(&v1.id()));
        bring_up(&mut core, second);
        assert_eq!(core.routed().get(&hello()), Some(&v2.id()));
        assert!(!core.holds(v1.id()));
        bring_up(&mut core, third);
        assert_eq!(core.routed().get(&hello()), Some(&v3.id()));
    }

    #[test]
    fn a_function_that_is_not_desired_any_more_goes_at_once() {
        let v1 = signed("v1", 1);
        let mut core = Reconciler::default();
        let first = attempt(&core.want(desired(1, &v1, None)).unwrap());
        bring_up(&mut core, first);
        let actions = core
            .want(Desired {
                generation: 2,
                functions: vec![],
            })
            .unwrap();
        assert!(matches!(
            actions[..],
            [Action::Drop {
                artifact: Some(_),
                ..
            }]
        ));
        assert!(core.routed().is_empty() && core.artifacts().is_empty());
    }

    #[test]
    fn an_artifact_that_another_version_shares_is_kept() {
        let v1 = signed("v1", 1);
        let mut same = statement("v2", 2);
        same.artifact = statement("v1", 1).artifact;
        let v2 = SignedVersion::sign(&same, &key());
        let mut core = Reconciler::default();
        let first = attempt(&core.want(desired(1, &v1, None)).unwrap());
        bring_up(&mut core, first);
        let second = attempt(&core.want(desired(2, &v2, Some(&v1))).unwrap());
        bring_up(&mut core, second);
        let actions = core.want(desired(3, &v1, None)).unwrap();
        assert_eq!(
            actions,
            [Action::Drop {
                version: v2.id(),
                artifact: None
            }]
        );
    }

    #[test]
    fn an_older_desired_state_is_ignored_and_the_same_changes_nothing() {
        let (v1, v2) = (signed("v1", 1), signed("v2", 2));
        let mut core = Reconciler::default();
        core.want(desired(5, &v1, None)).unwrap();
        assert_eq!(core.want(desired(4, &v2, None)), None);
        assert_eq!(core.want(desired(5, &v1, None)), Some(vec![]));
    }

    #[test]
    fn the_late_end_of_an_attempt_given_up_is_ignored() {
        let v1 = signed("v1", 1);
        let mut core = Reconciler::default();
        let first = attempt(&core.want(desired(1, &v1, None)).unwrap());
        core.want(Desired {
            generation: 2,
            functions: vec![],
        })
        .unwrap();
        let again = attempt(&core.want(desired(3, &v1, None)).unwrap());
        assert_ne!(first, again);
        assert_eq!(core.on(Event::Obtained { attempt: first }), []);
        fail(&mut core, first);
        assert_eq!(core.observed().versions[0].state, VersionState::Preparing);
    }

    #[test]
    fn an_altered_version_is_refused_and_names_the_publisher() {
        let mut altered = signed("v1", 1);
        altered.statement[20] ^= 1;
        let mut core = Reconciler::default();
        assert_eq!(core.want(desired(1, &altered, None)), Some(vec![]));
        let observed = core.observed();
        let VersionState::Failed { reason } = &observed.versions[0].state else {
            panic!()
        };
        assert!(reason.contains("signature"), "{reason}");
    }

    #[test]
    fn a_version_signed_for_another_function_is_refused() {
        let v1 = signed("v1", 1);
        let mut wanted = desired(1, &v1, None);
        wanted.functions[0].function = "acme/other".parse().unwrap();
        let mut core = Reconciler::default();
        assert_eq!(core.want(wanted), Some(vec![]));
        let observed = core.observed();
        let VersionState::Failed { reason } = &observed.versions[0].state else {
            panic!()
        };
        assert!(
            reason.contains("acme/other") && reason.contains("acme/hello"),
            "{reason}"
        );
    }

    #[test]
    fn a_version_whose_key_was_withdrawn_stops() {
        let v1 = signed("v1", 1);
        let mut core = Reconciler::default();
        let first = attempt(&core.want(desired(1, &v1, None)).unwrap());
        bring_up(&mut core, first);
        let mut withdrawn = desired(2, &v1, None);
        withdrawn.functions[0].publisher_keys.clear();
        let actions = core.want(withdrawn).unwrap();
        assert!(matches!(actions[..], [Action::Drop { .. }]));
        assert!(core.routed().is_empty());
        // And comes back with the key.
        assert!(matches!(
            core.want(desired(3, &v1, None)).unwrap()[..],
            [Action::Obtain { .. }]
        ));
    }

    #[test]
    fn however_many_versions_fail_the_coordinator_can_be_told() {
        let observed = |n: usize| ObservedVersion {
            function: format!("acme/hello-{n}").parse().unwrap(),
            version: Digest::of(&n.to_le_bytes()),
            state: VersionState::Failed {
                reason: "x".repeat(MAX_REASON_BYTES),
            },
            routed: false,
        };
        let mut versions: Vec<_> = (0..2 * MAX_FUNCTIONS).map(observed).collect();
        shorten(&mut versions);
        let message = holm_model::control::NodeMessage::Observed(Observed {
            generation: 1,
            versions,
        });
        holm_model::codec::encode(&message).unwrap();
    }

    #[test]
    fn a_reason_of_any_length_is_cut_to_its_bound() {
        let cut = cut("ä".repeat(MAX_REASON_BYTES));
        assert!(cut.len() <= MAX_REASON_BYTES + '…'.len_utf8());
    }
}
