//! The gate: whether what was seen of a new version lets it go on.
//!
//! Three subjects, each against the same node's old version: failures, crashes, run times. For each, [`evidence`] says
//! how much speaks against the new version, and the gate's word follows:
//!
//! - *fail* when that is enough for the share of false alarms that the manifest allows, divided among the subjects. It
//!   is the share of all good rollouts, over all their waves and looks, that are turned back.
//! - *inconclusive* while something speaks against it but not enough, or it looks bad and the old version was seen too
//!   little to compare with.
//! - *pass* otherwise.
//!
//! Run times are compared by how many exceed a time that a quarter of the old version's exceeded there. Each node has a
//! time of its own, so that a slow machine is not taken for a slow version.

use std::collections::BTreeMap;

use holm_model::ids::Name;
use holm_model::manifest::gates::Gates;
use holm_model::run_times::{RunTimes, bucket, shortest_us};
use serde::{Deserialize, Serialize};

use super::evidence::{Allowed, Compared, Count, evidence};
use super::wave::Tally;

/// Invocations that an old version counts as having done well before it was seen.
const TRUSTED: u64 = 50;
/// Run times of the old version, in each half, below which a node says nothing about run times.
const MIN_RUN_TIMES: u64 = 10;
/// Most invocations of an old version that are looked at on one node.
const MAX_RECORD: u64 = 1 << 14;
/// This part of the old version's run times is above the time that the new version's are compared with.
const ABOVE: u64 = 4;

/// What happened on one node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OnNode {
    /// The old version's record when it went, once it was told.
    pub(crate) old: Option<Halves>,
    pub(crate) new: Tally,
}

/// A record in two halves taken at random: one to learn from, one to compare with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Halves {
    learnt: Tally,
    compared: Tally,
}

/// What a gate judges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    Failures,
    Crashes,
    RunTimes,
}

/// What it comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Pass,
    Fail,
    Inconclusive,
}

/// A gate's word on one subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) subject: Subject,
    pub(crate) outcome: Outcome,
    /// On all nodes together, for people; what counts is the comparison on each.
    pub(crate) old: Count,
    pub(crate) new: Count,
    /// How much speaks against the new version: so many to one.
    pub(crate) against: u64,
    /// How much is needed to turn back.
    pub(crate) needed: u64,
}

impl Outcome {
    /// Its name in the API.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Outcome::Pass => "pass",
            Outcome::Fail => "fail",
            Outcome::Inconclusive => "inconclusive",
        }
    }
}

impl Subject {
    /// Its name in the API.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Subject::Failures => "errors",
            Subject::Crashes => "crashes",
            Subject::RunTimes => "run times",
        }
    }
}

/// Judges what was seen on `nodes` nodes in all, of which `seen` has those with something to tell.
pub(crate) fn judge(
    seen: &BTreeMap<Name, OnNode>,
    nodes: usize,
    max_error_ppm: u32,
    gates: &Gates,
    has_old: bool,
) -> Vec<Finding> {
    let subjects = [Subject::Failures, Subject::Crashes, Subject::RunTimes];
    let asked = |subject: &Subject| {
        *subject != Subject::RunTimes || has_old && gates.slower_percent.is_some()
    };
    let subjects: Vec<Subject> = subjects.into_iter().filter(asked).collect();
    let alarms = f64::from(gates.false_alarm_ppm.max(1)) / 1e6 / subjects.len() as f64;
    let judge = |subject: &Subject| {
        let mut compared: Vec<Compared> = seen
            .values()
            .map(|on_node| compare(*subject, on_node, gates))
            .collect();
        let total = |count: fn(&Compared) -> [Count; 2]| {
            let mut sum = Count::default();
            for part in compared.iter().flat_map(count) {
                sum.trials = sum.trials.saturating_add(part.trials);
                sum.bad = sum.bad.saturating_add(part.bad);
            }
            sum
        };
        let new = total(|node| [node.new, Count::default()]);
        let old = total(|node| [node.learnt, node.old]);
        // Those of which nothing is known yet have their part of the stake.
        compared.resize(nodes.max(compared.len()), Compared::default());
        let rate = |floor_ppm| Allowed {
            floor_ppm,
            of_old_percent: has_old.then_some(100 + gates.worse_percent),
            trusted: TRUSTED,
        };
        let allowed = match subject {
            Subject::Failures => rate(max_error_ppm),
            Subject::Crashes => rate(gates.max_crash_ppm),
            Subject::RunTimes => Allowed {
                floor_ppm: 0,
                of_old_percent: Some(100),
                trusted: 0,
            },
        };
        let against = match subject {
            Subject::Crashes if crashed_anew(seen, gates) => f64::INFINITY,
            _ => evidence(&compared, &allowed),
        };
        let outcome = match against {
            against if against >= -alarms.ln() => Outcome::Fail,
            against if against > 0.0 || suspect(&compared, &allowed) => Outcome::Inconclusive,
            _ => Outcome::Pass,
        };
        // Conversions of floats saturate.
        Finding {
            subject: *subject,
            outcome,
            old,
            new,
            against: against.exp() as u64,
            needed: (1.0 / alarms).ceil() as u64,
        }
    };
    subjects.iter().map(judge).collect()
}

/// Whether it looks worse than allowed where the old version was seen too little to say so: more than the floor by the
/// odds, and more than the old version as far as that was seen.
fn suspect(nodes: &[Compared], allowed: &Allowed) -> bool {
    let Some(percent) = allowed.of_old_percent.filter(|_| allowed.trusted > 0) else {
        return false;
    };
    let looks_worse = |node: &&Compared| {
        let old = u128::from(node.learnt.bad) + u128::from(node.old.bad);
        let seen = u128::from(node.learnt.trials) + u128::from(node.old.trials);
        let (new, trials) = (u128::from(node.new.bad), u128::from(node.new.trials));
        // Products of three numbers of at most 64, 17 and 14 bits.
        new * seen.max(1) * 100 > old * trials * u128::from(percent)
    };
    let worse: Vec<Compared> = nodes.iter().filter(looks_worse).copied().collect();
    let alone = Allowed {
        of_old_percent: None,
        ..*allowed
    };
    evidence(&worse, &alone) > 0.0
}

/// Whether the new version crashed on a node where the old one never did, and no rate of crashes is allowed.
fn crashed_anew(seen: &BTreeMap<Name, OnNode>, gates: &Gates) -> bool {
    let crashed = |halves: &Halves| halves.learnt.crashes + halves.compared.crashes > 0;
    let anew =
        |on_node: &OnNode| on_node.new.crashes > 0 && !on_node.old.as_ref().is_some_and(crashed);
    gates.max_crash_ppm == 0 && seen.values().any(anew)
}

fn compare(subject: Subject, on_node: &OnNode, gates: &Gates) -> Compared {
    let nothing = Halves::default();
    let old = on_node.old.as_ref().unwrap_or(&nothing);
    let of = |count: fn(&Tally) -> Count| Compared {
        learnt: count(&old.learnt),
        old: count(&old.compared),
        new: count(&on_node.new),
    };
    match subject {
        Subject::Failures => of(|tally| Count {
            trials: tally.invocations,
            bad: tally.errors,
        }),
        Subject::Crashes => of(|tally| Count {
            trials: tally.invocations,
            bad: tally.crashes,
        }),
        Subject::RunTimes => run_times(old, &on_node.new.run_times, gates).unwrap_or_default(),
    }
}

/// How many exceed the time that a quarter of the old version's exceeded; nothing where too little is known.
fn run_times(old: &Halves, new: &RunTimes, gates: &Gates) -> Option<Compared> {
    let (learnt, compared) = (&old.learnt.run_times, &old.compared.run_times);
    if learnt.total() < MIN_RUN_TIMES || compared.total() < MIN_RUN_TIMES {
        return None;
    }
    let few = |bucket: &u8| learnt.from(*bucket) <= learnt.total() / ABOVE;
    let time = learnt
        .iter()
        .map(|(bucket, _)| bucket.saturating_add(1))
        .find(few)?;
    let time_us = shortest_us(time);
    let slower = time_us.saturating_mul(u64::from(100 + gates.slower_percent?)) / 100;
    let later = time_us.saturating_add(gates.slower_ms.saturating_mul(1000));
    let allowed_us = slower.max(later);
    // The first bucket that has nothing of what is allowed.
    let allowed = bucket(allowed_us.saturating_mul(1000).saturating_sub(1)).saturating_add(1);
    let count = |times: &RunTimes, from: u8| Count {
        trials: times.total(),
        bad: times.from(from),
    };
    Some(Compared {
        learnt: count(learnt, time),
        old: count(compared, time),
        new: count(new, allowed),
    })
}

impl Halves {
    /// Takes a record apart, always in the same way for the same `seed`.
    pub(crate) fn of(record: &Tally, seed: u64) -> Self {
        let record = &within(record, MAX_RECORD);
        let mut random = Random(seed);
        let mut learnt = Tally {
            invocations: record.invocations / 2,
            ..Tally::default()
        };
        let all = record.invocations;
        learnt.errors = random.half(all, record.errors);
        learnt.crashes = random.half(all, record.crashes);
        // Bucket by bucket, of those that are left for both halves.
        let (mut left, mut wanted) = (record.run_times.total(), record.run_times.total() / 2);
        for (bucket, count) in record.run_times.iter() {
            let taken = random.of(left, count, wanted);
            learnt.run_times.add(bucket, taken);
            left -= count.min(left);
            wanted -= taken;
        }
        let rest = record
            .run_times
            .iter()
            .map(|(bucket, count)| (bucket, count - learnt.run_times.at(bucket)));
        let compared = Tally {
            invocations: all - learnt.invocations,
            errors: record.errors - learnt.errors,
            crashes: record.crashes - learnt.crashes,
            run_times: rest.collect(),
        };
        Halves { learnt, compared }
    }
}

/// A record of at most `most` invocations: of more, and of what a node says that cannot be, proportionally fewer.
fn within(record: &Tally, most: u64) -> Tally {
    let times = record.run_times.total();
    let shift = (0..64).find(|shift| record.invocations.max(times) >> shift <= most);
    let shift = shift.unwrap_or(63);
    let invocations = record.invocations >> shift;
    Tally {
        invocations,
        errors: (record.errors >> shift).min(invocations),
        crashes: (record.crashes >> shift).min(invocations),
        run_times: record
            .run_times
            .iter()
            .map(|(bucket, count)| (bucket, count >> shift))
            .collect(),
    }
}

/// SplitMix64 (Steele, Lea and Flood, 2014): the same numbers everywhere, so that a coordinator that goes on where
/// another stopped sees the same halves.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// How many of `marked` are in a half of `all` things, taken at random.
    fn half(&mut self, all: u64, marked: u64) -> u64 {
        self.of(all, marked, all / 2)
    }

    /// How many of `marked` are among `taken` of `all` things, taken at random.
    fn of(&mut self, all: u64, marked: u64, taken: u64) -> u64 {
        let (mut left, mut wanted, mut found) = (all, taken, 0);
        for _ in 0..marked.min(all) {
            // Is this one among those that are still wanted of those that are left?
            if self.next() % left.max(1) < wanted {
                wanted -= 1;
                found += 1;
            }
            left -= 1;
        }
        found
    }
}

#[cfg(test)]
#[path = "gate_tests.rs"]
mod tests;
