//! The planner alone: one behaviour each, then whole fleets under random events.

use std::collections::{BTreeMap, BTreeSet};

use holm_model::ids::Digest;
use holm_model::manifest::WaveRule;
use holm_model::manifest::gates::Gates;
use proptest::prelude::*;

use super::*;
use crate::rollout::sight::Seen;
use crate::rollout::wave::plan_waves as planned;

const OLD: Digest = Digest([1; 32]);
const NEW: Digest = Digest([2; 32]);

fn percent(waves: &[u8]) -> Vec<WaveRule> {
    waves.iter().copied().map(WaveRule::percent).collect()
}

/// Waves as people write them.
fn rules(waves: &[&str]) -> Vec<WaveRule> {
    waves.iter().map(|wave| wave.parse().unwrap()).collect()
}

/// The waves of a fleet by rules.
fn plan_waves(fleet: &Fleet, waves: Vec<WaveRule>) -> Vec<Wave> {
    let policy = Policy { waves, ..policy() };
    planned(fleet, &policy, 0).waves
}

fn policy() -> Policy {
    Policy {
        waves: percent(&[34, 100]),
        quorum: None,
        gates: Gates::default(),
        bake_ms: 1000,
        max_error_ppm: 10_000,
        prepare_timeout_ms: 60_000,
        artifact_bytes: 0,
        absent_grace_ms: 5_000,
        min_requests: 0,
        skips_gates: false,
        goes_back: false,
    }
}

fn name(index: usize) -> Name {
    format!("n{index}").parse().unwrap()
}

fn at(now_ms: u64, next_generation: u64) -> Moment {
    Moment {
        now_ms,
        next_generation,
    }
}

/// A connected node that serves `version` and has worked on `generation`.
fn serving(version: Digest, generation: u64) -> Sight {
    let seen = Seen {
        state: VersionState::Ready,
        routed: true,
        record: None,
    };
    Sight {
        region: String::new(),
        labels: BTreeMap::new(),
        presence: Presence::Connected { since_ms: 0 },
        generation,
        versions: BTreeMap::from([(version, seen)]),
    }
}

fn failing(version: Digest, generation: u64) -> Sight {
    let state = VersionState::Failed {
        reason: "probe answered 500".into(),
    };
    Sight {
        region: String::new(),
        labels: BTreeMap::new(),
        presence: Presence::Connected { since_ms: 0 },
        generation,
        versions: BTreeMap::from([
            (
                version,
                Seen {
                    state,
                    routed: false,
                    record: None,
                },
            ),
            (
                OLD,
                Seen {
                    state: VersionState::Ready,
                    routed: true,
                    record: None,
                },
            ),
        ]),
    }
}

fn fleet(nodes: impl IntoIterator<Item = Sight>) -> Fleet {
    nodes
        .into_iter()
        .enumerate()
        .map(|(index, sight)| (name(index), sight))
        .collect()
}

fn wave_sizes(rollout: &Rollout) -> Vec<usize> {
    rollout.waves.iter().map(|wave| wave.nodes.len()).collect()
}

#[test]
fn the_way_back_goes_on_without_nodes_that_fail_or_are_late_and_names_them() {
    let policy = Policy {
        waves: percent(&[100]),
        bake_ms: 0,
        goes_back: true,
        ..policy()
    };
    let mut rollout = Rollout::begin(NEW.into(), Some(OLD.into()), policy, 0);
    let before = fleet((0..4).map(|_| serving(OLD, 1)));
    rollout.tick(&before, at(0, 2));
    let mut everyone = fleet([
        serving(NEW, 2),
        failing(NEW, 2),
        serving(OLD, 2),
        serving(NEW, 2),
    ]);
    rollout.tick(&everyone, at(1, 3));
    assert_eq!(rollout.state, RolloutState::Running, "{}", rollout.reason);
    rollout.tick(&everyone, at(60_001, 3));
    assert_eq!(rollout.state, RolloutState::Completed);
    assert!(rollout.reason.contains("n1, n2"), "{}", rollout.reason);

    // While no node has it, it has not ended, nor does it go round.
    rollout = Rollout::begin(NEW.into(), Some(OLD.into()), rollout.policy, 0);
    rollout.tick(&before, at(0, 2));
    for sight in everyone.values_mut() {
        *sight = failing(NEW, 2);
    }
    rollout.tick(&everyone, at(500_000, 3));
    assert_eq!(rollout.state, RolloutState::Running);
    assert!(
        rollout.reason.contains("waiting for them"),
        "{}",
        rollout.reason
    );
}

#[test]
fn who_has_much_to_fetch_with_many_others_has_more_time() {
    let policy = Policy {
        waves: percent(&[100]),
        artifact_bytes: 3 << 20,
        ..policy()
    };
    let mut rollout = Rollout::begin(NEW.into(), Some(OLD.into()), policy, 0);
    let before = fleet((0..1000).map(|_| serving(OLD, 1)));
    rollout.tick(&before, at(0, 2));
    // 3000 MiB at 4096 bytes a millisecond are 768 s, and 60 s more.
    rollout.tick(&before, at(828_000, 3));
    assert_eq!(rollout.state, RolloutState::Running, "{}", rollout.reason);
    rollout.tick(&before, at(828_001, 3));
    assert_eq!(rollout.state, RolloutState::RollingBack);
    assert!(
        rollout.reason.contains("within 828 s"),
        "{}",
        rollout.reason
    );
}

#[test]
fn waves_grow_by_at_least_one_node_and_end_with_all() {
    for (nodes, percent, sizes) in [
        (1, vec![10, 50, 100], vec![1]),
        (2, vec![10, 50, 100], vec![1, 1]),
        (3, vec![10, 50, 100], vec![1, 1, 1]),
        (3, vec![34, 100], vec![1, 2]),
        (10, vec![10, 50, 100], vec![1, 4, 5]),
        (10, vec![100], vec![10]),
    ] {
        let everyone = fleet((0..nodes).map(|_| serving(OLD, 1)));
        let waves = plan_waves(&everyone, super::tests::percent(&percent));
        let found: Vec<_> = waves.iter().map(|wave| wave.nodes.len()).collect();
        assert_eq!(found, sizes, "{nodes} nodes in {percent:?}");
    }
}

#[test]
fn nodes_that_are_away_wait_for_the_last_wave() {
    let mut everyone = fleet((0..4).map(|_| serving(OLD, 1)));
    everyone.get_mut(&name(0)).unwrap().presence = Presence::Absent { since_ms: 0 };
    let waves = plan_waves(&everyone, percent(&[34, 100]));
    assert_eq!(waves[0].nodes, [name(1)]);
    assert_eq!(waves[1].nodes, [name(2), name(3), name(0)]);
}

#[test]
fn a_rollout_without_nodes_waits_and_says_so() {
    let mut rollout = Rollout::begin(NEW.into(), None, policy(), 0);
    assert_eq!(rollout.tick(&Fleet::new(), at(1_000_000, 2)), []);
    assert_eq!(rollout.state, RolloutState::Running);
    assert!(
        rollout
            .reason
            .contains("none that the manifest's placement allows has joined")
    );
}

#[test]
fn a_wave_moves_bakes_and_passes_before_the_next_one_moves() {
    let mut rollout = Rollout::begin(NEW.into(), Some(OLD.into()), policy(), 0);
    let before = fleet((0..3).map(|_| serving(OLD, 1)));
    assert_eq!(rollout.tick(&before, at(0, 2)), [Action::Publish]);
    assert_eq!(wave_sizes(&rollout), [1, 2]);
    assert_eq!(rollout.moved(), BTreeSet::from([&name(0)]));

    let first = fleet([serving(NEW, 2), serving(OLD, 2), serving(OLD, 2)]);
    assert_eq!(rollout.tick(&first, at(100, 3)), []);
    assert_eq!(rollout.waves[0].state, WaveState::Baking);
    assert_eq!(rollout.tick(&first, at(1099, 3)), []);
    assert_eq!(rollout.moved().len(), 1);
    assert_eq!(rollout.tick(&first, at(1100, 3)), [Action::Publish]);
    assert_eq!(rollout.waves[0].state, WaveState::Passed);
    assert_eq!(rollout.moved().len(), 3);

    let second = fleet([serving(NEW, 3), serving(NEW, 3), serving(NEW, 3)]);
    assert_eq!(rollout.tick(&second, at(1200, 4)), []);
    assert_eq!(
        rollout.tick(&second, at(2200, 4)),
        [Action::Adopt, Action::Publish]
    );
    assert_eq!(rollout.state, RolloutState::Completed);
    assert_eq!(rollout.ended_ms, Some(2200));
}

#[test]
fn a_version_that_fails_on_a_node_is_taken_back_everywhere() {
    let mut rollout = Rollout::begin(NEW.into(), Some(OLD.into()), policy(), 0);
    rollout.tick(&fleet((0..3).map(|_| serving(OLD, 1))), at(0, 2));
    let broken = fleet([failing(NEW, 2), serving(OLD, 2), serving(OLD, 2)]);
    assert_eq!(rollout.tick(&broken, at(50, 3)), [Action::Publish]);
    assert_eq!(rollout.state, RolloutState::RollingBack);
    assert_eq!(rollout.waves[0].state, WaveState::Failed);
    assert!(
        rollout
            .reason
            .contains("failed on node n0: probe answered 500")
    );
    assert!(rollout.moved().is_empty());

    let back = fleet((0..3).map(|_| serving(OLD, 3)));
    rollout.tick(&back, at(60, 4));
    assert_eq!(rollout.state, RolloutState::RolledBack);
}

#[test]
fn what_a_node_said_before_it_was_moved_does_not_count() {
    let mut rollout = Rollout::begin(NEW.into(), Some(OLD.into()), policy(), 0);
    let stale = fleet((0..3).map(|_| failing(NEW, 1)));
    rollout.tick(&stale, at(0, 2));
    rollout.tick(&stale, at(10, 3));
    assert_eq!(rollout.state, RolloutState::Running);
    assert_eq!(rollout.waves[0].state, WaveState::Moving);
}

#[test]
fn a_node_that_does_not_get_ready_in_time_fails_the_wave() {
    let mut rollout = Rollout::begin(NEW.into(), Some(OLD.into()), policy(), 0);
    let idle = fleet((0..3).map(|_| serving(OLD, 2)));
    rollout.tick(&idle, at(0, 2));
    rollout.tick(&idle, at(60_000, 3));
    assert_eq!(rollout.state, RolloutState::Running);
    rollout.tick(&idle, at(60_001, 3));
    assert_ne!(rollout.state, RolloutState::Running);
    assert!(
        rollout
            .reason
            .contains("n0 did not serve the new version within 60 s")
    );
}

/// A rollout whose first wave is baking at 0 ms.
fn baking() -> (Rollout, Fleet) {
    let mut rollout = Rollout::begin(NEW.into(), Some(OLD.into()), policy(), 0);
    rollout.tick(&fleet((0..3).map(|_| serving(OLD, 1))), at(0, 2));
    let first = fleet([serving(NEW, 2), serving(OLD, 2), serving(OLD, 2)]);
    rollout.tick(&first, at(0, 3));
    assert_eq!(rollout.waves[0].state, WaveState::Baking);
    (rollout, first)
}

#[test]
fn one_crash_fails_the_gate_at_once() {
    let (mut rollout, first) = baking();
    rollout.note(
        &name(0),
        &Tally {
            invocations: 10_000,
            errors: 1,
            crashes: 1,
            ..Tally::default()
        },
    );
    rollout.tick(&first, at(1, 3));
    assert_eq!(rollout.state, RolloutState::RollingBack);
    assert!(
        rollout
            .reason
            .contains("crashed 1 times in 10000 invocations")
    );
}

/// A record of an old version.
fn record(invocations: u64, errors: u64) -> Tally {
    Tally {
        invocations,
        errors,
        ..Tally::default()
    }
}

#[test]
fn errors_are_judged_against_the_old_version_on_the_same_node() {
    for (old, new, state) in [
        (record(1000, 2), record(30, 0), WaveState::Passed),
        (record(1000, 2), record(8, 8), WaveState::Failed),
        (record(1000, 300), record(30, 10), WaveState::Passed),
        (record(1000, 2), record(3, 1), WaveState::Baking),
        (record(0, 0), record(3, 1), WaveState::Baking),
    ] {
        let (mut rollout, mut first) = baking();
        let seen = Seen {
            state: VersionState::Ready,
            routed: false,
            record: Some(old.clone()),
        };
        first.get_mut(&name(0)).unwrap().versions.insert(OLD, seen);
        rollout.tick(&first, at(1, 3));
        rollout.note(&name(0), &new);
        rollout.tick(&first, at(1000, 3));
        assert_eq!(rollout.waves[0].state, state, "{old:?} {new:?}");
        if state == WaveState::Baking {
            assert!(
                rollout.reason.contains("inconclusive, 1 of 3"),
                "{}",
                rollout.reason
            );
            rollout.tick(&first, at(61_000, 3));
            assert!(rollout.paused.is_some());
            assert_eq!(rollout.state, RolloutState::Running);
        }
    }
}

#[test]
fn many_errors_fail_the_gate_before_the_bake_time_is_over() {
    let (mut rollout, first) = baking();
    rollout.note(
        &name(0),
        &Tally {
            invocations: 100,
            errors: 50,
            crashes: 0,
            ..Tally::default()
        },
    );
    rollout.tick(&first, at(1, 3));
    assert_eq!(rollout.state, RolloutState::RollingBack);
}

#[test]
fn a_node_that_stays_away_is_skipped_but_never_all_of_them() {
    let mut rollout = Rollout::begin(NEW.into(), Some(OLD.into()), policy(), 0);
    rollout.tick(&fleet([serving(OLD, 1), serving(OLD, 1)]), at(0, 2));
    let mut away = fleet([serving(OLD, 1), serving(OLD, 1)]);
    for sight in away.values_mut() {
        sight.presence = Presence::Absent { since_ms: 10 };
    }
    rollout.tick(&away, at(5_000, 3));
    assert_eq!(rollout.waves[0].state, WaveState::Moving);
    rollout.tick(&away, at(5_011, 3));
    assert_eq!(rollout.waves[0].state, WaveState::Skipped);
    for now in (10_000..2_000_000).step_by(10_000) {
        rollout.tick(&away, at(now, 4));
        assert_eq!(rollout.state, RolloutState::Running);
    }
    assert!(rollout.reason.contains("waiting for a node"));

    // One comes back: quorum. The other is named.
    away.insert(name(1), serving(NEW, 4));
    rollout.tick(&away, at(2_000_000, 5));
    rollout.tick(&away, at(2_001_000, 5));
    assert_eq!(rollout.state, RolloutState::Completed);
    assert!(
        rollout.reason.contains("n0 will move when they can"),
        "{}",
        rollout.reason
    );
}

#[test]
fn while_it_is_paused_no_wave_begins_or_passes_and_a_gate_that_fails_still_goes_back() {
    let (mut rollout, fleet) = baking();
    rollout.pause();
    // Far over its bake time.
    assert_eq!(rollout.tick(&fleet, at(1_000_000, 3)), []);
    assert_eq!(rollout.waves[0].state, WaveState::Baking);
    assert!(
        rollout.reason.contains("paused by the operator"),
        "{}",
        rollout.reason
    );
    let mut failing = rollout.clone();
    failing.note(
        &name(0),
        &Tally {
            invocations: 1,
            errors: 1,
            crashes: 1,
            ..Tally::default()
        },
    );
    assert_eq!(failing.tick(&fleet, at(1_000_001, 3)), [Action::Publish]);
    assert_eq!(
        (failing.state, &failing.paused),
        (RolloutState::RollingBack, &None)
    );
    // It is watched for a bake time again.
    rollout.unpause(1_000_000);
    assert_eq!(rollout.tick(&fleet, at(1_000_999, 3)), []);
    assert_eq!(rollout.waves[0].state, WaveState::Baking);
    assert_eq!(rollout.tick(&fleet, at(1_001_000, 3)), [Action::Publish]);
    assert_eq!(rollout.waves[1].state, WaveState::Moving);
}

#[test]
fn a_pause_before_its_first_wave_or_its_end_holds_it_there() {
    let everyone = fleet((0..3).map(|_| serving(OLD, 1)));
    let mut rollout = Rollout::begin(NEW.into(), Some(OLD.into()), policy(), 0);
    rollout.pause();
    assert_eq!(rollout.tick(&everyone, at(0, 2)), []);
    assert!(rollout.moved().is_empty());
    rollout.unpause(1);
    assert_eq!(rollout.tick(&everyone, at(1, 2)), [Action::Publish]);
    for wave in &mut rollout.waves {
        wave.state = WaveState::Passed;
    }
    rollout.pause();
    assert_eq!(rollout.tick(&everyone, at(2, 3)), []);
    assert_eq!(rollout.state, RolloutState::Running);
    rollout.unpause(3);
    assert_eq!(
        rollout.tick(&everyone, at(3, 3)),
        [Action::Adopt, Action::Publish]
    );
    assert_eq!(rollout.state, RolloutState::Completed);
}

#[test]
fn a_gate_that_sees_too_little_waits_longer_then_pauses_and_never_goes_back() {
    let (mut rollout, fleet) = baking();
    rollout.policy.min_requests = 5;
    let seen = |invocations| Tally {
        invocations,
        ..Tally::default()
    };
    rollout.note(&name(0), &seen(3));
    for now in [1000, 30_000, 59_999] {
        assert_eq!(rollout.tick(&fleet, at(now, 3)), []);
        assert!(
            rollout.reason.contains("inconclusive, 3 of the 5"),
            "{}",
            rollout.reason
        );
    }
    let mut enough = rollout.clone();
    enough.note(&name(0), &seen(2));
    assert_eq!(enough.tick(&fleet, at(59_999, 3)), [Action::Publish]);
    assert_eq!(enough.waves[0].state, WaveState::Passed);

    assert_eq!(rollout.tick(&fleet, at(61_000, 3)), []);
    assert!(
        rollout.reason.contains("seen too little"),
        "{}",
        rollout.reason
    );
    assert_eq!(
        (rollout.state, rollout.waves[0].state),
        (RolloutState::Running, WaveState::Baking)
    );
    assert_eq!(rollout.tick(&fleet, at(10_000_000, 3)), []);
    let mut promoted = rollout.clone();
    assert!(!promoted.promote(Some(1), false), "the first is watched");
    assert!(promoted.promote(Some(0), false));
    assert_eq!(promoted.tick(&fleet, at(10_000_001, 3)), [Action::Publish]);
    assert_eq!(promoted.waves[1].state, WaveState::Moving);
    assert!(!promoted.policy.skips_gates);
}

#[test]
fn in_an_emergency_no_gate_is_asked_but_a_node_that_cannot_have_it_still_goes_back() {
    let mut rollout = Rollout::begin(NEW.into(), Some(OLD.into()), policy(), 0);
    assert!(rollout.promote(None, true));
    rollout.tick(&fleet((0..3).map(|_| serving(OLD, 1))), at(0, 2));
    rollout.note(
        &name(0),
        &Tally {
            invocations: 9,
            errors: 9,
            crashes: 9,
            ..Tally::default()
        },
    );
    let all = fleet((0..3).map(|_| serving(NEW, 2)));
    assert_eq!(
        rollout.tick(&all, at(1, 2)),
        [Action::Publish, Action::Adopt]
    );
    assert_eq!(rollout.state, RolloutState::Completed);

    let mut rollout = Rollout::begin(NEW.into(), Some(OLD.into()), policy(), 0);
    assert!(rollout.promote(None, true));
    rollout.tick(&fleet((0..3).map(|_| serving(OLD, 1))), at(0, 2));
    rollout.tick(
        &fleet([failing(NEW, 2), serving(OLD, 1), serving(OLD, 1)]),
        at(1, 3),
    );
    assert_eq!(rollout.state, RolloutState::RollingBack);
}

#[test]
fn abort_goes_back_and_abort_after_the_end_does_nothing() {
    let (mut rollout, _) = baking();
    assert_eq!(rollout.abort(at(5, 3)), [Action::Publish]);
    assert_eq!(rollout.state, RolloutState::RollingBack);
    assert_eq!(rollout.abort(at(6, 4)), []);
    rollout.tick(&fleet((0..3).map(|_| serving(OLD, 3))), at(7, 4));
    assert_eq!(rollout.state, RolloutState::RolledBack);
    assert_eq!(rollout.reason, "aborted by the operator");
}

#[test]
fn time_without_a_coordinator_counts_for_nothing() {
    let (mut rollout, first) = baking();
    rollout.resume(1_000_000);
    rollout.tick(&first, at(1_000_500, 3));
    assert_eq!(rollout.waves[0].state, WaveState::Baking);
}

/// Four nodes: n0 and n1 in eu, n2 and n3 in us; n0 and n2 are canaries.
fn rings() -> Fleet {
    let mut everyone = fleet((0..4).map(|_| serving(OLD, 1)));
    for (index, sight) in everyone.values_mut().enumerate() {
        place(sight, index);
    }
    everyone
}

fn place(sight: &mut Sight, index: usize) {
    sight.region = if index % 4 < 2 { "eu" } else { "us" }.to_owned();
    if index.is_multiple_of(2) {
        sight.labels.insert("ring".to_owned(), "canary".to_owned());
    }
}

#[test]
fn a_ring_is_a_wave_and_those_that_follow_take_what_is_left() {
    for (waves, nodes) in [
        (
            &["ring=canary", "region=eu", "100%"][..],
            vec![vec![0, 2], vec![1], vec![3]],
        ),
        (
            &["region=us,nodes=1", "region=us,nodes=100%", "100%"],
            vec![vec![2], vec![3], vec![0, 1]],
        ),
        (&["3", "100%"], vec![vec![0, 1, 2], vec![3]]),
        (
            &["ring=canary,region=us", "50%", "100%"],
            vec![vec![2], vec![0], vec![1, 3]],
        ),
        // All of it is in a wave before.
        (
            &["region=eu", "region=eu,ring=canary", "100%"],
            vec![vec![0, 1], vec![2, 3]],
        ),
    ] {
        let found = plan_waves(&rings(), rules(waves));
        let found: Vec<Vec<Name>> = found.into_iter().map(|wave| wave.nodes).collect();
        let nodes: Vec<Vec<Name>> = nodes
            .iter()
            .map(|wave| wave.iter().map(|index| name(*index)).collect())
            .collect();
        assert_eq!(found, nodes, "{waves:?}");
    }
}

#[test]
fn a_node_that_is_away_is_in_the_wave_of_its_whole_ring() {
    let mut everyone = rings();
    everyone.get_mut(&name(0)).unwrap().presence = Presence::Absent { since_ms: 0 };
    let waves = plan_waves(
        &everyone,
        rules(&["ring=canary,quorum=100%", "50%", "100%"]),
    );
    assert_eq!(waves[0].nodes, [name(2), name(0)]);
    assert_eq!(waves[0].quorum, Some(2));
    assert_eq!(waves[1].nodes, [name(1)]);
}

#[test]
fn a_ring_without_any_node_is_waited_for_and_not_left_out() {
    let waves = rules(&["ring=beta", "100%"]);
    let mut rollout = Rollout::begin(
        NEW.into(),
        Some(OLD.into()),
        Policy { waves, ..policy() },
        0,
    );
    assert_eq!(rollout.tick(&rings(), at(1_000_000, 2)), []);
    assert!(rollout.reason.contains("`ring=beta`"), "{}", rollout.reason);
    let mut labelled = rings();
    let labels = &mut labelled.get_mut(&name(3)).unwrap().labels;
    labels.insert("ring".to_owned(), "beta".to_owned());
    let mut found = rollout.clone();
    assert_eq!(found.tick(&labelled, at(1_000_001, 2)), [Action::Publish]);
    assert_eq!(found.moved(), BTreeSet::from([&name(3)]));
    assert!(rollout.promote(None, true));
    assert_eq!(rollout.tick(&rings(), at(1_000_001, 2)), [Action::Publish]);
    assert_eq!(rollout.moved().len(), 4);
}

#[test]
fn a_wave_is_watched_and_its_nodes_are_waited_for_as_long_as_it_says() {
    let waves = rules(&["region=eu,bake=10s,skip_after=1s", "100%"]);
    let mut rollout = Rollout::begin(
        NEW.into(),
        Some(OLD.into()),
        Policy { waves, ..policy() },
        0,
    );
    rollout.tick(&rings(), at(0, 2));
    let mut first = rings();
    first.insert(name(0), serving(NEW, 2));
    first.get_mut(&name(1)).unwrap().presence = Presence::Absent { since_ms: 0 };
    rollout.tick(&first, at(1000, 3));
    assert_eq!(rollout.waves[0].state, WaveState::Moving);
    rollout.tick(&first, at(1001, 3));
    assert_eq!(rollout.waves[0].state, WaveState::Baking);
    rollout.tick(&first, at(11_000, 3));
    assert_eq!(rollout.waves[0].state, WaveState::Baking);
    rollout.tick(&first, at(11_001, 3));
    assert_eq!(rollout.waves[0].state, WaveState::Passed);
}

/// A rollout of two waves of two nodes each; in the first, which needs both, one is away for good.
fn short_of_quorum() -> (Rollout, Fleet) {
    let waves = rules(&["region=eu,quorum=2", "100%"]);
    let mut rollout = Rollout::begin(
        NEW.into(),
        Some(OLD.into()),
        Policy { waves, ..policy() },
        0,
    );
    rollout.tick(&rings(), at(0, 2));
    let mut first = rings();
    first.insert(name(0), serving(NEW, 2));
    first.get_mut(&name(1)).unwrap().presence = Presence::Absent { since_ms: 0 };
    assert_eq!(rollout.tick(&first, at(5_001, 3)), []);
    (rollout, first)
}

#[test]
fn without_its_quorum_a_wave_waits_and_goes_on_by_itself_when_the_nodes_are_back() {
    let (mut rollout, mut first) = short_of_quorum();
    assert_eq!(rollout.paused.as_deref(), Some(QUORUM_MISSED));
    assert!(
        rollout
            .reason
            .contains("1 of its 2 nodes serve the new version, and its quorum is 2"),
        "{}",
        rollout.reason
    );
    for now in (10_000..10_000_000).step_by(100_000) {
        assert_eq!(rollout.tick(&first, at(now, 3)), []);
        assert_eq!(rollout.state, RolloutState::Running);
    }
    first.insert(name(1), serving(NEW, 2));
    rollout.tick(&first, at(10_000_000, 3));
    assert_eq!(
        (rollout.waves[0].state, &rollout.paused),
        (WaveState::Baking, &None)
    );
    assert_eq!(rollout.tick(&first, at(10_001_000, 3)), [Action::Publish]);
}

#[test]
fn a_node_that_comes_back_to_a_wave_without_its_quorum_gets_its_time() {
    let (mut rollout, mut first) = short_of_quorum();
    rollout.tick(&first, at(10_000_000, 3));
    // It is there again, and has not said anything yet.
    let back = first.get_mut(&name(1)).unwrap();
    back.presence = Presence::Connected {
        since_ms: 10_000_001,
    };
    back.generation = 0;
    assert_eq!(rollout.tick(&first, at(10_000_002, 3)), []);
    assert_eq!(rollout.state, RolloutState::Running);
    assert_eq!(rollout.waves[0].state, WaveState::Moving);
    first.insert(name(1), serving(NEW, 2));
    rollout.tick(&first, at(10_000_100, 3));
    assert_eq!(rollout.waves[0].state, WaveState::Baking);
}

#[test]
fn an_operators_pause_outlasts_one_for_want_of_a_quorum() {
    let (mut rollout, mut first) = short_of_quorum();
    rollout.pause();
    first.insert(name(1), serving(NEW, 2));
    rollout.tick(&first, at(6_000, 3));
    assert_eq!(rollout.paused.as_deref(), Some("paused by the operator"));
}

#[test]
fn a_wave_without_its_quorum_can_be_promoted() {
    let (mut rollout, first) = short_of_quorum();
    assert!(rollout.promote(None, false));
    rollout.tick(&first, at(5_002, 3));
    assert_eq!(rollout.waves[0].state, WaveState::Baking);
    assert_eq!(rollout.tick(&first, at(6_002, 3)), [Action::Publish]);
    assert_eq!(rollout.waves[1].state, WaveState::Moving);
}

#[test]
fn a_wave_does_not_pass_while_fewer_than_its_quorum_serve_it() {
    let (mut rollout, mut first) = short_of_quorum();
    first.insert(name(1), serving(NEW, 2));
    rollout.tick(&first, at(6_000, 3));
    first.get_mut(&name(1)).unwrap().presence = Presence::Absent { since_ms: 6_500 };
    assert_eq!(rollout.tick(&first, at(30_000, 3)), []);
    assert!(
        rollout.reason.contains("its quorum is 2"),
        "{}",
        rollout.reason
    );
    assert_eq!(rollout.tick(&first, at(66_000, 3)), []);
    assert!(
        rollout.reason.contains("have gone away"),
        "{}",
        rollout.reason
    );
    assert_eq!(rollout.state, RolloutState::Running);
}

#[test]
fn a_slow_node_is_missed_and_no_failure_where_the_others_suffice() {
    let waves = rules(&["region=eu,quorum=50%", "100%"]);
    let mut rollout = Rollout::begin(
        NEW.into(),
        Some(OLD.into()),
        Policy { waves, ..policy() },
        0,
    );
    rollout.tick(&rings(), at(0, 2));
    let mut first = rings();
    first.insert(name(0), serving(NEW, 2));
    first.insert(name(1), serving(OLD, 2));
    rollout.tick(&first, at(60_000, 3));
    assert_eq!(rollout.waves[0].state, WaveState::Moving);
    rollout.tick(&first, at(60_001, 3));
    assert_eq!(rollout.waves[0].state, WaveState::Baking);
}

#[test]
fn a_rollout_that_was_stored_before_waves_had_rules_goes_on() {
    let (rollout, first) = baking();
    let mut old = serde_json::to_value(&rollout).unwrap();
    let policy = old["policy"].as_object_mut().unwrap();
    policy.remove("quorum");
    let waves = policy.remove("waves").unwrap();
    assert_eq!(waves, serde_json::json!([34, 100]));
    policy.insert("waves_percent".to_owned(), waves);
    for wave in old["waves"].as_array_mut().unwrap() {
        wave.as_object_mut().unwrap().remove("rule");
        wave.as_object_mut().unwrap().remove("quorum");
    }
    let mut old: Rollout = serde_json::from_value(old).unwrap();
    assert_eq!(old.policy, rollout.policy);
    assert_eq!(old.tick(&first, at(1000, 3)), [Action::Publish]);
}

// ---- Whole fleets under random events ----

/// What a simulated node does with the new version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Temper {
    Good,
    Fails,
    NeverReady,
}

/// One random event.
#[derive(Clone, Copy, Debug)]
enum Happens {
    /// A node works on the newest desired state.
    Apply(usize),
    /// A node loses or finds its link.
    Link(usize),
    /// Time goes on.
    Pass(u16),
    /// Invocations of the new version on a node; every hundredth seed has a crash in it.
    Traffic {
        node: usize,
        errors: u8,
        crash: bool,
    },
    /// A node says what cannot be.
    Lie(usize),
    /// The coordinator's clock is set back.
    Skew(u16),
    /// The coordinator is killed and started again.
    Restart,
    /// The operator aborts.
    Abort,
    /// The operator pauses it, resumes it, or promotes it, past all gates or one.
    Pause,
    Resume,
    Promote(bool),
}

fn happens(nodes: usize) -> impl Strategy<Value = Happens> {
    prop_oneof![
        8 => (0..nodes).prop_map(Happens::Apply),
        3 => (0..nodes).prop_map(Happens::Link),
        6 => (1u16..5000).prop_map(Happens::Pass),
        2 => (0..nodes, 0u8..2, prop::bool::weighted(0.01))
            .prop_map(|(node, errors, crash)| Happens::Traffic { node, errors, crash }),
        1 => (0..nodes, prop::bool::weighted(0.02))
            .prop_map(|(node, lies)| if lies { Happens::Lie(node) } else { Happens::Pass(1) }),
        1 => (1u16..3000).prop_map(Happens::Skew),
        1 => Just(Happens::Restart),
        1 => prop::bool::weighted(0.02)
            .prop_map(|abort| if abort { Happens::Abort } else { Happens::Pass(1) }),
        1 => Just(Happens::Pause),
        1 => Just(Happens::Resume),
        1 => prop::bool::weighted(0.1).prop_map(Happens::Promote),
    ]
}

/// A coordinator and its nodes, without any I/O.
struct World {
    rollout: Rollout,
    /// As stored: what a restart comes back with.
    stored: Vec<u8>,
    generation: u64,
    current: Option<Digest>,
    now_ms: u64,
    tempers: Vec<Temper>,
    nodes: Vec<Simulated>,
    /// Waves that began before the one before them was over.
    violations: Vec<String>,
}

#[derive(Clone)]
struct Simulated {
    linked: bool,
    since_ms: u64,
    generation: u64,
    /// The coordinator forgets what a node said when the link or the coordinator goes.
    heard: bool,
    versions: BTreeMap<Digest, Seen>,
}

impl World {
    fn new(first: bool, tempers: Vec<Temper>, bake_ms: u64) -> Self {
        let previous = (!first).then_some(OLD);
        // Which waves follows from the bake time, which is as random as anything.
        let waves = match bake_ms % 3 {
            0 => percent(&[10, 50, 100]),
            1 => rules(&[
                "ring=canary,bake=1s",
                "region=eu,nodes=1,skip_after=1s",
                "region=eu",
                "100%",
            ]),
            _ => rules(&[
                "ring=canary,quorum=100%",
                "region=eu,quorum=50%",
                "50%,bake=0ms",
                "100%,quorum=1",
            ]),
        };
        let policy = Policy {
            bake_ms,
            min_requests: bake_ms % 2 * 150,
            waves,
            ..policy()
        };
        let rollout = Rollout::begin(NEW.into(), previous.map(Release::from), policy, 0);
        let versions = previous
            .map(|old| {
                (
                    old,
                    Seen {
                        state: VersionState::Ready,
                        routed: true,
                        record: None,
                    },
                )
            })
            .into_iter()
            .collect();
        let node = Simulated {
            linked: true,
            since_ms: 0,
            generation: 1,
            heard: true,
            versions,
        };
        World {
            stored: serde_json::to_vec(&rollout).unwrap(),
            rollout,
            generation: 1,
            current: previous,
            now_ms: 0,
            nodes: vec![node; tempers.len()],
            tempers,
            violations: Vec::new(),
        }
    }

    fn sights(&self) -> Fleet {
        let sight = |node: &Simulated| Sight {
            region: String::new(),
            labels: BTreeMap::new(),
            presence: match node.linked {
                true => Presence::Connected {
                    since_ms: node.since_ms,
                },
                false => Presence::Absent {
                    since_ms: node.since_ms,
                },
            },
            generation: if node.heard { node.generation } else { 0 },
            versions: if node.heard {
                node.versions.clone()
            } else {
                BTreeMap::new()
            },
        };
        let mut seen = fleet(self.nodes.iter().map(sight));
        for (index, sight) in seen.values_mut().enumerate() {
            place(sight, index);
        }
        seen
    }

    /// As the executor does it: store, then act.
    fn commit(&mut self, rollout: Rollout, actions: &[Action]) {
        if actions.contains(&Action::Publish) {
            self.generation += 1;
        }
        if actions.contains(&Action::Adopt) {
            self.current = Some(NEW);
        }
        self.stored = serde_json::to_vec(&rollout).unwrap();
        self.rollout = rollout;
    }

    fn tick(&mut self) {
        let moment = at(self.now_ms, self.generation + 1);
        let mut next = self.rollout.clone();
        let begun = |rollout: &Rollout| rollout.begun().count();
        let paused = next.paused.is_some();
        let fails = |finding: &Finding| finding.outcome == Outcome::Fail;
        let condemned = next.state == RolloutState::Running
            && !next.policy.skips_gates
            && next.findings().iter().any(fails);
        let actions = next.tick(&self.sights(), moment);
        if paused && (begun(&next) > begun(&self.rollout) || next.state == RolloutState::Completed)
        {
            self.violations
                .push("it went on while it was paused".to_owned());
        }
        if condemned && next.state == RolloutState::Running {
            self.violations
                .push("it went on although a gate had failed".to_owned());
        }
        self.commit(next, &actions);
        let mut open = false;
        for wave in &self.rollout.waves {
            let running = self.rollout.state == RolloutState::Running;
            if open && wave.state != WaveState::Waiting && running {
                let told = format!("a wave began before the one before it was over: {wave:?}");
                self.violations.push(told);
            }
            open |= !matches!(wave.state, WaveState::Passed | WaveState::Skipped);
        }
    }

    /// The node reconciles: prepares, and switches only to what is ready.
    fn apply(&mut self, index: usize) {
        let moved = self.rollout.moved().contains(&name(index));
        let wanted = if moved { Some(NEW) } else { self.current };
        let fallback = if moved { self.current } else { None };
        let temper = self.tempers[index];
        let node = &mut self.nodes[index];
        if !node.linked {
            return;
        }
        let state = |version: Digest| match (version == NEW, temper) {
            (true, Temper::Fails) => VersionState::Failed {
                reason: "crashed".into(),
            },
            (true, Temper::NeverReady) => VersionState::Preparing,
            _ => VersionState::Ready,
        };
        let mut versions = BTreeMap::new();
        for version in fallback.into_iter().chain(wanted) {
            versions.insert(
                version,
                Seen {
                    state: state(version),
                    routed: false,
                    record: None,
                },
            );
        }
        let ready = |version: &Digest| state(*version) == VersionState::Ready;
        let routed = wanted.filter(ready).or(fallback.filter(ready));
        for (version, seen) in &mut versions {
            seen.routed = Some(*version) == routed;
            if *version == OLD && !seen.routed {
                seen.record = Some(Tally {
                    run_times: [(80, 300)].into_iter().collect(),
                    ..record(300, 2)
                });
            }
        }
        node.versions = versions;
        node.generation = self.generation;
        node.heard = true;
    }

    fn happen(&mut self, event: Happens) {
        match event {
            Happens::Apply(index) => self.apply(index),
            Happens::Link(index) => {
                let node = &mut self.nodes[index];
                node.linked = !node.linked;
                node.since_ms = self.now_ms;
                node.heard = false;
            }
            Happens::Pass(ms) => self.now_ms += u64::from(ms),
            Happens::Traffic {
                node,
                errors,
                crash,
            } => self.rollout.note(
                &name(node),
                &Tally {
                    invocations: 100,
                    errors: u64::from(errors),
                    crashes: u64::from(crash),
                    run_times: [(80, 100)].into_iter().collect(),
                },
            ),
            Happens::Lie(node) => self.rollout.note(
                &name(node),
                &Tally {
                    invocations: 1,
                    errors: u64::MAX,
                    crashes: u64::MAX,
                    run_times: (0..=u8::MAX).map(|bucket| (bucket, u64::MAX)).collect(),
                },
            ),
            Happens::Skew(ms) => self.now_ms = self.now_ms.saturating_sub(u64::from(ms)),
            Happens::Restart => {
                self.rollout = serde_json::from_slice(&self.stored).unwrap();
                self.rollout.resume(self.now_ms);
                for node in &mut self.nodes {
                    node.heard = false;
                    node.since_ms = self.now_ms;
                }
            }
            Happens::Abort => {
                let mut next = self.rollout.clone();
                let actions = next.abort(at(self.now_ms, self.generation + 1));
                self.commit(next, &actions);
            }
            Happens::Pause | Happens::Resume | Happens::Promote(_) => {
                let mut next = self.rollout.clone();
                match event {
                    Happens::Pause => next.pause(),
                    Happens::Promote(all) => {
                        next.promote(None, all);
                    }
                    _ => next.unpause(self.now_ms),
                }
                self.commit(next, &[]);
            }
        }
        self.tick();
    }

    /// Every node comes back and works, enough time passes for every timeout, and somebody looks after pauses.
    fn settle(&mut self) {
        for node in &mut self.nodes {
            node.linked = true;
            node.since_ms = self.now_ms;
        }
        for _ in 0..2_000 {
            for index in 0..self.nodes.len() {
                self.apply(index);
            }
            self.now_ms += 500;
            self.tick();
            if self.rollout.paused.is_some() {
                self.happen(Happens::Promote(false));
            }
            if self.rollout.ended() {
                break;
            }
        }
        for index in 0..self.nodes.len() {
            self.apply(index);
        }
    }

    /// The version a node routes to.
    fn routed(&self, index: usize) -> Option<Digest> {
        let versions = &self.nodes[index].versions;
        versions
            .iter()
            .find(|(_, seen)| seen.routed)
            .map(|(version, _)| *version)
    }
}

fn tempers() -> impl Strategy<Value = Vec<Temper>> {
    let temper = prop_oneof![
        12 => Just(Temper::Good),
        1 => Just(Temper::Fails),
        1 => Just(Temper::NeverReady),
    ];
    prop::collection::vec(temper, 1..8)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

    /// Whatever happens in whatever order, a rollout ends, and then the whole fleet agrees.
    #[test]
    fn every_rollout_ends_and_leaves_one_version_on_the_whole_fleet(
        first in any::<bool>(),
        bake_ms in 0u64..3000,
        (tempers, events) in tempers().prop_flat_map(|tempers| {
            let nodes = tempers.len();
            (Just(tempers), prop::collection::vec(happens(nodes), 0..120))
        }),
    ) {
        let mut world = World::new(first, tempers.clone(), bake_ms);
        for event in events {
            world.happen(event);
        }
        world.settle();
        prop_assert!(world.violations.is_empty(), "{:?}", world.violations);
        prop_assert!(world.rollout.ended(), "{:?}", world.rollout);
        prop_assert!(world.rollout.ended_ms.is_some());
        let expected = match world.rollout.state {
            RolloutState::Completed => Some(NEW),
            _ => (!first).then_some(OLD),
        };
        prop_assert_eq!(world.current, expected);
        for (index, temper) in tempers.iter().enumerate() {
            // A node that was away during the rollout may be one that cannot run the version: it
            // keeps what it had, which is its own report's business, not the rollout's.
            if *temper == Temper::Good || world.rollout.state == RolloutState::RolledBack {
                prop_assert_eq!(world.routed(index), expected, "node {}", index);
            }
        }
    }

    /// With healthy nodes, no errors and nobody aborting, a rollout never turns back.
    #[test]
    fn a_good_version_on_a_flapping_fleet_completes(
        nodes in 1usize..8,
        events in prop::collection::vec(happens(8), 0..120),
    ) {
        let mut world = World::new(false, vec![Temper::Good; nodes], 200);
        for event in events {
            let event = match event {
                Happens::Apply(index) => Happens::Apply(index % nodes),
                Happens::Link(index) => Happens::Link(index % nodes),
                Happens::Traffic { node, .. } => Happens::Traffic {
                    node: node % nodes,
                    errors: 0,
                    crash: false,
                },
                Happens::Lie(_) => Happens::Pass(1),
                // Short enough that no node that is connected runs out of its minute.
                Happens::Pass(ms) => Happens::Pass(ms % 400),
                Happens::Abort => Happens::Pass(1),
                other => other,
            };
            world.happen(event);
        }
        world.settle();
        prop_assert_eq!(world.rollout.state, RolloutState::Completed, "{}", world.rollout.reason);
        for index in 0..nodes {
            prop_assert_eq!(world.routed(index), Some(NEW));
        }
    }
}
