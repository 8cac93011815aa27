//! How versions come, stay and go.

use super::*;
use crate::deploy::testing::{configuration, key, signed, statement};
use holm_model::artifact::PublisherKey;
use holm_model::configuration::{ConfigurationStatement, SignedConfiguration};
use holm_model::control::{Desired, DesiredConfiguration, DesiredFunction};

fn hello() -> FunctionName {
    "acme/hello".parse().unwrap()
}

fn publisher() -> PublisherKey {
    PublisherKey(key().verifying_key().to_bytes())
}

fn desired(generation: u64, version: &SignedVersion, previous: Option<&SignedVersion>) -> Desired {
    let function = DesiredFunction {
        function: hello(),
        publisher_keys: vec![publisher()],
        version: version.clone(),
        previous: previous.cloned(),
    };
    Desired {
        generation,
        draining: Default::default(),
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
        why: Fault::of_function("it crashed"),
    });
}

/// The same through a fault of the node's: after which pause it is begun again.
fn fail_here(core: &mut Reconciler, attempt: u64) -> Duration {
    let why = Fault::ours("no space left on device");
    let actions = core.on(Event::Failed { attempt, why });
    let [Action::Wait { after, .. }] = actions[..] else {
        panic!("{actions:?}")
    };
    after
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
            release: v1.id()
        }]
    );
    let actions = core.on(Event::Prepared { attempt });
    assert_eq!(
        actions,
        [Action::Probe {
            attempt,
            release: v1.id()
        }]
    );
    assert!(core.routed().is_empty());
    assert_eq!(core.observed().versions[0].state, VersionState::Preparing);
    let actions = core.on(Event::Probed { attempt });
    assert_eq!(actions, [Action::Keep { release: v1.id() }]);
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
            release: v2.id(),
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
            draining: Default::default(),
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
            release: v2.id(),
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
    // Nor can one come after which there would be no other.
    assert_eq!(core.want(desired(u64::MAX, &v2, None)), None);
    assert!(core.want(desired(6, &v2, None)).is_some());
}

#[test]
fn the_late_end_of_an_attempt_given_up_is_ignored() {
    let v1 = signed("v1", 1);
    let mut core = Reconciler::default();
    let first = attempt(&core.want(desired(1, &v1, None)).unwrap());
    core.want(Desired {
        generation: 2,
        functions: vec![],
        draining: Default::default(),
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
        record: None,
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

#[test]
fn what_fails_through_the_nodes_fault_is_begun_again_until_it_works() {
    let v1 = signed("v1", 1);
    let mut core = Reconciler::default();
    let attempt = attempt(&core.want(desired(1, &v1, None)).unwrap());
    let mut pauses = Vec::new();
    for tries in 1..=12 {
        // At any stage.
        let events = [Event::Obtained { attempt }, Event::Prepared { attempt }];
        for event in events.into_iter().take(tries as usize % 3) {
            core.on(event);
        }
        pauses.push(fail_here(&mut core, attempt));
        assert!(core.is_settled(), "nobody waits for it");
        // The state is the same while it is under way again.
        for again in [false, true] {
            let observed = core.observed();
            match &observed.versions[0].state {
                VersionState::Preparing => assert!(tries <= QUIET_TRIES),
                VersionState::Failed { reason } => {
                    assert!(
                        tries > QUIET_TRIES && reason.contains("no space left"),
                        "{reason}"
                    );
                }
                VersionState::Ready => panic!(),
            }
            if !again {
                let release = v1.id();
                let actions = core.on(Event::Waited { attempt });
                assert_eq!(actions, [Action::ObtainAgain { attempt, release }]);
            }
        }
    }
    assert!(pauses.is_sorted());
    assert_eq!(
        (pauses[0], pauses[1], pauses[11]),
        (MIN_AGAIN, 2 * MIN_AGAIN, MAX_AGAIN)
    );
    bring_up(&mut core, attempt);
    assert_eq!(core.observed().versions[0].state, VersionState::Ready);
}

#[test]
fn what_waits_to_be_begun_again_is_given_up_when_it_is_not_desired_any_more() {
    let v1 = signed("v1", 1);
    let mut core = Reconciler::default();
    let attempt = attempt(&core.want(desired(1, &v1, None)).unwrap());
    fail_here(&mut core, attempt);
    // The same again changes nothing.
    assert_eq!(core.want(desired(1, &v1, None)), Some(vec![]));
    let nothing = Desired {
        generation: 2,
        functions: vec![],
        draining: Default::default(),
    };
    let actions = core.want(nothing).unwrap();
    assert!(matches!(actions[..], [Action::Drop { .. }]), "{actions:?}");
    assert_eq!(core.on(Event::Waited { attempt }), []);
}

/// The same with configurations of the version and of the previous one.
fn configured(
    desired: Desired,
    version: Option<&Configuration>,
    previous: Option<&Configuration>,
) -> Configured {
    Configured {
        desired,
        configurations: vec![DesiredConfiguration {
            function: hello(),
            version: version.cloned(),
            previous: previous.cloned(),
        }],
    }
}

fn release_of(version: &SignedVersion, configuration: &Configuration) -> ReleaseId {
    let release = Release {
        version: version.id(),
        configuration: Some(configuration.signed.id()),
    };
    release.id()
}

#[test]
fn another_configuration_of_a_version_is_prepared_and_switched_to_like_another_version() {
    let (v1, c1, c2) = (
        signed("v1", 1),
        configuration(1, "one"),
        configuration(2, "two"),
    );
    let mut core = Reconciler::default();
    let plain = attempt(&core.want(desired(1, &v1, None)).unwrap());
    bring_up(&mut core, plain);
    let wanted = configured(desired(2, &v1, Some(&v1)), Some(&c1), None);
    let actions = core.want(wanted).unwrap();
    let [
        Action::Obtain {
            attempt: first,
            release: verified,
        },
    ] = &actions[..]
    else {
        panic!("{actions:?}")
    };
    let env = verified.env();
    assert_eq!(
        (env["PASSWORD"].as_str(), env["GREETING"].as_str()),
        ("one", "hello 1")
    );
    assert_eq!(
        core.routed().get(&hello()),
        Some(&v1.id()),
        "until it is ready"
    );
    bring_up(&mut core, *first);
    assert_eq!(core.routed().get(&hello()), Some(&release_of(&v1, &c1)));
    let seen: Vec<_> = core
        .observed()
        .versions
        .into_iter()
        .map(|seen| seen.version)
        .collect();
    assert_eq!(seen, [release_of(&v1, &c1), v1.id()]);

    let wanted = configured(desired(3, &v1, Some(&v1)), Some(&c2), Some(&c1));
    let actions = core.want(wanted).unwrap();
    let second = attempt(&actions);
    let dropped = actions
        .iter()
        .find(|action| matches!(action, Action::Drop { .. }));
    let without_artifact = Action::Drop {
        release: v1.id(),
        artifact: None,
    };
    assert_eq!(
        dropped,
        Some(&without_artifact),
        "the others have the same artifact"
    );
    fail(&mut core, second);
    assert_eq!(core.routed().get(&hello()), Some(&release_of(&v1, &c1)));
}

#[test]
fn a_configuration_that_is_forged_foreign_or_has_another_secret_is_refused() {
    let (v1, c1) = (signed("v1", 1), configuration(1, "one"));
    let mut forged = c1.clone();
    forged.signed.statement = String::from_utf8(forged.signed.statement)
        .unwrap()
        .replace("hello 1", "hello 2")
        .into_bytes();
    let stranger = ed25519_dalek::SigningKey::from_bytes(&[8; 32]);
    let mut statement: ConfigurationStatement =
        serde_json::from_slice(&c1.signed.statement).unwrap();
    let mut strangers = c1.clone();
    strangers.signed = SignedConfiguration::sign(&statement, &stranger);
    let mut foreign = c1.clone();
    statement.function = "acme/other".parse().unwrap();
    foreign.signed = SignedConfiguration::sign(&statement, &key());
    let mut swapped = c1.clone();
    swapped.secrets = configuration(1, "two").secrets;
    let mut missing = c1.clone();
    missing.secrets.clear();
    for (bad, why) in [
        (forged, "signature"),
        (strangers, "has not registered"),
        (foreign, "acme/other"),
        (swapped, "PASSWORD"),
        (missing, "PASSWORD"),
    ] {
        let mut core = Reconciler::default();
        let plain = attempt(&core.want(desired(1, &v1, None)).unwrap());
        bring_up(&mut core, plain);
        let actions = core.want(configured(desired(2, &v1, Some(&v1)), Some(&bad), None));
        assert!(actions.unwrap().is_empty(), "{why}");
        assert_eq!(core.routed().get(&hello()), Some(&v1.id()), "{why}");
        let state = &core.observed().versions[0].state;
        let VersionState::Failed { reason } = state else {
            panic!("{why}: {state:?}")
        };
        assert!(reason.contains(why) && !reason.contains("two"), "{reason}");
    }
}
