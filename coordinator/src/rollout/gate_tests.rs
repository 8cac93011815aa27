//! The gate alone: what it says of a few cases, and how often it is wrong or late over thousands of simulated rollouts.
//!
//! The figures are printed: `cargo test --workspace --lib figures -- --nocapture`.

use super::*;

const SEED: u64 = 20_261_130;

fn tally(invocations: u64, errors: u64) -> Tally {
    Tally {
        invocations,
        errors,
        ..Tally::default()
    }
}

fn times(counts: &[(u64, u64)]) -> RunTimes {
    let bucketed = counts.iter().map(|(us, count)| (bucket(us * 1000), *count));
    bucketed.collect()
}

fn on_nodes(nodes: &[(Tally, Tally)]) -> BTreeMap<Name, OnNode> {
    let node = |(index, (old, new)): (usize, &(Tally, Tally))| {
        let on_node = OnNode {
            old: (old.invocations > 0).then(|| Halves::of(old, SEED)),
            new: new.clone(),
        };
        (format!("n{index}").parse().unwrap(), on_node)
    };
    nodes.iter().enumerate().map(node).collect()
}

fn outcome(nodes: &[(Tally, Tally)], subject: Subject, gates: &Gates) -> Outcome {
    let findings = judge(&on_nodes(nodes), nodes.len(), 10_000, gates, true);
    let of = findings.iter().find(|finding| finding.subject == subject);
    of.unwrap().outcome
}

#[test]
fn failures_are_held_against_the_same_nodes_old_version() {
    let says = |nodes: &[_]| outcome(nodes, Subject::Failures, &Gates::default());
    let clean = tally(1000, 1);
    for (new, expected) in [
        (tally(0, 0), Outcome::Pass),
        (tally(5, 0), Outcome::Pass),
        (tally(3, 1), Outcome::Inconclusive),
        (tally(4, 4), Outcome::Fail),
        (tally(40, 8), Outcome::Fail),
        (tally(300, 2), Outcome::Pass),
    ] {
        assert_eq!(says(&[(clean.clone(), new.clone())]), expected, "{new:?}");
    }
    // The old one failed as often there.
    assert_eq!(says(&[(tally(1000, 200), tally(40, 8))]), Outcome::Pass);
    // It failed on another node, which excuses nothing.
    let nodes = [(tally(1000, 200), tally(40, 8)), (clean, tally(40, 8))];
    assert_eq!(says(&nodes), Outcome::Fail);
}

#[test]
fn without_an_old_version_failures_are_held_against_the_manifests_rate_alone() {
    let seen = on_nodes(&[(tally(0, 0), tally(40, 8))]);
    let first = judge(&seen, 1, 10_000, &Gates::default(), false);
    assert_eq!(first[0].outcome, Outcome::Fail);
    assert!(
        first
            .iter()
            .all(|finding| finding.subject != Subject::RunTimes)
    );
    // An old one of which nothing was seen may have been as bad.
    let unseen = judge(&seen, 1, 10_000, &Gates::default(), true);
    assert_eq!(unseen[0].outcome, Outcome::Inconclusive);
}

#[test]
fn one_bad_node_does_not_hide_among_many_good_ones_nor_behind_a_lying_one() {
    let mut nodes = vec![(tally(1000, 3), tally(200, 0)); 20];
    nodes[7].1 = tally(60, 30);
    nodes[3].1 = tally(u64::MAX / 4, 0);
    let says = outcome(&nodes, Subject::Failures, &Gates::default());
    assert_eq!(says, Outcome::Fail);
}

#[test]
fn one_crash_is_enough_unless_the_old_version_crashed_there_or_a_rate_is_allowed() {
    let crashing = |invocations, crashes| Tally {
        crashes,
        ..tally(invocations, crashes)
    };
    let says = |old: Tally, ppm| {
        let gates = Gates {
            max_crash_ppm: ppm,
            ..Gates::default()
        };
        outcome(&[(old, crashing(1000, 1))], Subject::Crashes, &gates)
    };
    assert_eq!(says(crashing(1000, 0), 0), Outcome::Fail);
    assert_eq!(says(crashing(1000, 3), 0), Outcome::Pass);
    assert_eq!(says(crashing(1000, 0), 10_000), Outcome::Pass);
}

#[test]
fn a_slower_version_is_told_from_a_slower_node() {
    let with = |run_times: RunTimes| Tally {
        run_times,
        ..tally(100, 0)
    };
    let usual = [(20_000, 60), (25_000, 30), (40_000, 10)];
    let slowly = |by: u64| with(times(&usual.map(|(us, count)| (us * by / 100, count))));
    let says =
        |old: Tally, new: Tally| outcome(&[(old, new)], Subject::RunTimes, &Gates::default());
    assert_eq!(says(slowly(100), slowly(100)), Outcome::Pass);
    assert_eq!(says(slowly(100), slowly(130)), Outcome::Pass);
    assert_eq!(says(slowly(100), slowly(250)), Outcome::Fail);
    assert_eq!(says(slowly(1000), slowly(1000)), Outcome::Pass);
    // Twice as slow, but by less than anybody would notice.
    assert_eq!(says(slowly(1), slowly(2)), Outcome::Pass);
    assert_eq!(
        says(tally(100, 0), slowly(900)),
        Outcome::Pass,
        "nothing to compare with"
    );
    let off = Gates {
        slower_percent: None,
        ..Gates::default()
    };
    let seen = on_nodes(&[(slowly(100), slowly(900))]);
    let findings = judge(&seen, 1, 10_000, &off, true);
    assert!(
        findings
            .iter()
            .all(|finding| finding.subject != Subject::RunTimes)
    );
}

#[test]
fn a_record_is_halved_the_same_way_again_and_nothing_of_it_is_lost() {
    let record = Tally {
        invocations: 1001,
        errors: 33,
        crashes: 4,
        run_times: times(&[(50, 400), (90, 301), (4000, 12)]),
    };
    let halves = Halves::of(&record, 7);
    assert_eq!(halves, Halves::of(&record, 7));
    assert_ne!(halves, Halves::of(&record, 8));
    let mut both = halves.learnt.clone();
    both.add(&halves.compared);
    assert_eq!(both, record);
    assert_eq!(
        halves.learnt.run_times.total(),
        record.run_times.total() / 2
    );
}

#[test]
fn whatever_a_node_says_is_worked_off_in_bounds() {
    let lie = Tally {
        invocations: 3,
        errors: u64::MAX,
        crashes: u64::MAX,
        run_times: (0..=u8::MAX).map(|bucket| (bucket, u64::MAX)).collect(),
    };
    for (old, new) in [(lie.clone(), lie.clone()), (tally(u64::MAX, 1), lie)] {
        let seen = on_nodes(&[(old, new)]);
        let findings = judge(&seen, 1, 10_000, &Gates::default(), true);
        assert_eq!(findings.len(), 3);
    }
}

// ---- How often it is wrong, and how late ----

impl Random {
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn count(&mut self, trials: u64, chance: f64) -> u64 {
        (0..trials).filter(|_| self.unit() < chance).count() as u64
    }

    /// A run time in microseconds: log-normal around `median`.
    fn run_time(&mut self, median: f64, sigma: f64) -> u64 {
        let (radius, angle) = (self.unit().max(1e-12), self.unit());
        let normal = (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos();
        (median * (sigma * normal).exp()) as u64
    }
}

/// A rollout onto so many nodes, each with so many invocations of the old version.
#[derive(Clone, Copy)]
struct Case {
    nodes: u64,
    before: u64,
    old: f64,
    new: f64,
    /// Allowed, in percent.
    slower: u32,
}

/// Invocations of the new version until the gate turned back, in each of `runs` rollouts in which it would have.
fn alarms(
    runs: u64,
    most: u64,
    case: Case,
    subject: Subject,
    one: impl Fn(&mut Random, &mut Tally, f64),
) -> Vec<u64> {
    let gates = Gates {
        slower_percent: Some(case.slower),
        ..Gates::default()
    };
    let mut random = Random(SEED);
    let mut found = Vec::new();
    for _ in 0..runs {
        let mut seen = BTreeMap::new();
        for index in 0..case.nodes {
            let mut old = Tally::default();
            for _ in 0..case.before {
                one(&mut random, &mut old, case.old);
            }
            let on_node = OnNode {
                old: Some(Halves::of(&old, random.next())),
                new: Tally::default(),
            };
            seen.insert(format!("n{index}").parse().unwrap(), on_node);
        }
        for invocation in 0..most {
            let name: Name = format!("n{}", invocation % case.nodes).parse().unwrap();
            one(&mut random, &mut seen.get_mut(&name).unwrap().new, case.new);
            let findings = judge(&seen, seen.len(), 10_000, &gates, true);
            let finding = findings.iter().find(|finding| finding.subject == subject);
            if finding.unwrap().outcome == Outcome::Fail {
                found.push(invocation + 1);
                break;
            }
        }
    }
    found.sort_unstable();
    found
}

fn invoke(random: &mut Random, tally: &mut Tally, rate: f64) {
    tally.invocations += 1;
    tally.errors += random.count(1, rate);
}

/// In units of the old median of 100 ms; half of the invocations are within a fifth of it.
fn invoke_for(random: &mut Random, tally: &mut Tally, median: f64) {
    tally.invocations += 1;
    let us = random.run_time(100_000.0 * median, 0.3);
    tally.run_times.add(bucket(us * 1000), 1);
}

fn show(what: &str, found: &[u64], runs: u64) {
    let at = |part: usize| found.get((found.len() * part / 10).min(found.len().saturating_sub(1)));
    println!(
        "{what}: turned back {} of {runs}, after {:?} invocations in the middle, {:?} in 9 of 10",
        found.len(),
        at(5).unwrap_or(&0),
        at(9).unwrap_or(&0)
    );
}

#[test]
fn figures_of_false_alarms() {
    println!("seed {SEED}");
    for (nodes, before, rate) in [(1, 60, 0.01), (3, 300, 0.01), (3, 60, 0.05), (8, 300, 0.03)] {
        let case = Case {
            nodes,
            before,
            old: rate,
            new: rate,
            slower: 50,
        };
        let found = alarms(500, 200, case, Subject::Failures, invoke);
        show(
            &format!("{nodes} nodes, {before} before, {rate} → {rate} failures"),
            &found,
            500,
        );
        // 1 % of all rollouts, a third of it for this subject; five standard deviations above it.
        assert!(found.len() <= 8, "{} false alarms of 500", found.len());
    }
    for (nodes, before) in [(1, 60), (3, 300)] {
        let case = Case {
            nodes,
            before,
            old: 1.0,
            new: 1.0,
            slower: 10,
        };
        let found = alarms(300, 200, case, Subject::RunTimes, invoke_for);
        show(
            &format!("{nodes} nodes, {before} before, as fast as before"),
            &found,
            300,
        );
        assert!(found.len() <= 6, "{} false alarms of 300", found.len());
    }
}

#[test]
fn figures_of_bad_versions() {
    println!("seed {SEED}");
    for (nodes, before, old, new, most) in [
        (1, 300, 0.01, 0.2, 300),
        (3, 300, 0.01, 0.2, 300),
        (3, 60, 0.01, 1.0, 20),
        (3, 300, 0.01, 0.05, 1500),
        (8, 300, 0.01, 0.2, 300),
    ] {
        let case = Case {
            nodes,
            before,
            old,
            new,
            slower: 50,
        };
        let runs = if most > 1000 { 60 } else { 200 };
        let found = alarms(runs, most, case, Subject::Failures, invoke);
        show(
            &format!("{nodes} nodes, {before} before, {old} → {new} failures"),
            &found,
            runs,
        );
        if new >= 0.2 {
            assert!(
                found.len() as u64 * 100 >= runs * 95,
                "only {} of {runs}",
                found.len()
            );
        }
    }
    for (nodes, before, slower, allowed) in [
        (1, 300, 1.5, 10),
        (3, 300, 1.5, 10),
        (3, 300, 2.0, 50),
        (3, 300, 3.0, 50),
    ] {
        let case = Case {
            nodes,
            before,
            old: 1.0,
            new: slower,
            slower: allowed,
        };
        let found = alarms(100, 300, case, Subject::RunTimes, invoke_for);
        show(
            &format!("{nodes} nodes, {before} before, {slower} times as slow, {allowed} % allowed"),
            &found,
            100,
        );
        assert!(found.len() >= 90, "only {} of 100", found.len());
    }
}

#[test]
fn whatever_is_counted_the_evidence_is_a_number_and_what_is_not_allowed_at_all_is_too_much() {
    use super::super::evidence::{Allowed, Compared, Count, evidence};
    let count = |bad, trials| Count { trials, bad };
    let nothing_allowed = Allowed {
        floor_ppm: 0,
        of_old_percent: None,
        trusted: 0,
    };
    let first = Compared {
        new: count(100, 100),
        ..Compared::default()
    };
    assert_eq!(evidence(&[first], &nothing_allowed), f64::INFINITY);
    let good = Compared {
        new: count(0, 100),
        ..Compared::default()
    };
    assert!(evidence(&[good], &nothing_allowed) < 0.0);
    assert_eq!(evidence(&[first, good], &nothing_allowed), f64::INFINITY);
    // More went badly than there was: a node that lies.
    let counts = [count(0, 0), count(9, 3), count(u64::MAX, 5), count(1, 100)];
    for (floor_ppm, of_old_percent) in [(0, None), (0, Some(100)), (10_000, Some(300))] {
        let allowed = Allowed {
            floor_ppm,
            of_old_percent,
            trusted: 50,
        };
        for old in counts {
            for new in counts {
                let node = Compared {
                    learnt: old,
                    old,
                    new,
                };
                let found = evidence(&[node, good], &allowed);
                assert!(!found.is_nan(), "{node:?} {allowed:?}");
            }
        }
    }
}
