//! How much speaks against a new version: the sequential test of a wave's gate. Pure arithmetic.
//!
//! Each node is compared with itself: what happened to the new version's invocations there with what happened to the
//! old version's. The hypothesis to be refuted is that on every node the new version's rate is allowed: no more than a
//! floor, or than the node's own old rate times a factor. The evidence against it is an *e-value*: whatever the true
//! rates are, as long as they are allowed, the chance that it ever reaches `x` is at most `1/x`, however often one looks
//! and whenever one stops. So a gate that fails at 100 turns back a good version once in a hundred waves at most.
//!
//! It is a likelihood ratio (universal inference: Wasserman, Ramdas and Balakrishnan, "Universal inference", PNAS
//! 2020). Below the line stands the best that any allowed rates could say of what was seen, the old version's included:
//! that is what makes up for not knowing the old rate. Above it stands a bet made beforehand: a few rates for the new
//! version, and for the old one what the first half of its invocations showed, of which only the second half is held
//! against anything.
//!
//! Nodes are put together as products, because a version that is bad is mostly bad everywhere; half of the stake is
//! on each node alone, so that one bad node cannot hide among good ones, nor a lying one hide the others.

/// Of `trials`, so many ended badly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) trials: u64,
    pub(crate) bad: u64,
}

/// One node: the old version's invocations, by halves taken at random, and the new one's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Compared {
    /// From which is learnt what to expect.
    pub(crate) learnt: Count,
    /// Which is compared.
    pub(crate) old: Count,
    pub(crate) new: Count,
}

impl Compared {
    /// Whatever a node says, no more went badly than there was.
    fn possible(&self) -> Compared {
        let possible = |count: Count| Count {
            bad: count.bad.min(count.trials),
            ..count
        };
        Compared {
            learnt: possible(self.learnt),
            old: possible(self.old),
            new: possible(self.new),
        }
    }
}

/// What a new version is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Allowed {
    /// A rate that is allowed whatever the old version's was.
    pub(crate) floor_ppm: u32,
    /// How much of the old version's rate is allowed, in percent; at least 100. None: there is no old version.
    pub(crate) of_old_percent: Option<u32>,
    /// Invocations that the old version counts as having done well before it was seen. A node where it was seen little is
    /// so not without any expectation.
    pub(crate) trusted: u64,
}

/// Rates of the new version on which is bet, in parts per million.
const BETS_PPM: [u32; 13] = [
    1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 350_000, 500_000, 650_000,
    800_000, 970_000,
];

/// The natural logarithm of the evidence that the new version is worse than allowed.
pub(crate) fn evidence(nodes: &[Compared], allowed: &Allowed) -> f64 {
    let nodes: Vec<Compared> = nodes
        .iter()
        .filter(|node| node.new.trials > 0)
        .map(Compared::possible)
        .collect();
    if nodes.is_empty() {
        return 0.0;
    }
    let bets = BETS_PPM.map(|ppm| f64::from(ppm) / 1e6);
    let odds: Vec<[f64; BETS_PPM.len()]> = nodes
        .iter()
        .map(|node| {
            let rest = rest(node, allowed);
            bets.map(|rate| likelihood(node.new, rate) + rest)
        })
        .collect();
    let mut together = [0.0; BETS_PPM.len()];
    for of_node in &odds {
        for (sum, one) in together.iter_mut().zip(of_node) {
            *sum += one;
        }
    }
    mean(&[mean(&together), mean(odds.as_flattened())])
}

/// The part of a node's logarithm that is the same for all bets: how well what was learnt tells the old version's second
/// half, less the best that allowed rates say of both.
fn rest(node: &Compared, allowed: &Allowed) -> f64 {
    let Some(percent) = allowed.of_old_percent else {
        return -below_floor(node.new, allowed);
    };
    let old = Count {
        trials: node.old.trials.saturating_add(allowed.trusted),
        ..node.old
    };
    let learnt = Count {
        trials: node.learnt.trials.saturating_add(allowed.trusted),
        ..node.learnt
    };
    // Whoever has seen nothing bad yet does not put everything on that.
    let careful = (number(learnt.bad) + 0.5) / (number(learnt.trials) + 1.0);
    let bet = mean(&[likelihood(old, rate(learnt)), likelihood(old, careful)]);
    let floor = likelihood(old, rate(old)) + below_floor(node.new, allowed);
    let factor = f64::from(percent.max(100)) / 100.0;
    bet - floor.max(below_factor(old, node.new, factor))
}

/// The best logarithm of a rate up to the floor.
fn below_floor(new: Count, allowed: &Allowed) -> f64 {
    likelihood(new, rate(new).min(f64::from(allowed.floor_ppm) / 1e6))
}

/// The best logarithm of two rates of which the new one is at most `factor` times the old one.
fn below_factor(old: Count, new: Count, factor: f64) -> f64 {
    let within = (factor * rate(old)).min(1.0) >= rate(new);
    let (old_rate, new_rate) = match within {
        true => (rate(old), rate(new)),
        false => {
            // On the border, new = factor · old: the derivative of the logarithm is zero, a quadratic equation.
            let bad = number(old.bad) + number(new.bad);
            let (good_old, good_new) = (number(old.trials - old.bad), number(new.trials - new.bad));
            let a = factor * (bad + good_old + good_new);
            let b = bad * (1.0 + factor) + good_old + factor * good_new;
            let root = (b * b - 4.0 * a * bad).max(0.0).sqrt();
            // The smaller root, in the form that does not subtract two large numbers.
            let old_rate = match b + root > 0.0 {
                true => (2.0 * bad / (b + root)).clamp(0.0, 1.0 / factor),
                false => 0.0,
            };
            (old_rate, (factor * old_rate).min(1.0))
        }
    };
    likelihood(old, old_rate) + likelihood(new, new_rate)
}

fn rate(count: Count) -> f64 {
    match count.trials {
        0 => 0.0,
        trials => number(count.bad.min(trials)) / number(trials),
    }
}

/// The logarithm of the chance of just this sequence of outcomes.
fn likelihood(count: Count, rate: f64) -> f64 {
    let bad = count.bad.min(count.trials);
    let part = |count: u64, chance: f64| match count {
        0 => 0.0,
        count => number(count) * chance.ln(),
    };
    part(bad, rate) + part(count.trials - bad, 1.0 - rate)
}

/// Counts are far below 2^53.
fn number(count: u64) -> f64 {
    count as f64
}

/// The logarithm of the mean of what `logarithms` are of.
fn mean(logarithms: &[f64]) -> f64 {
    let most = logarithms.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    // What was held to be impossible has happened, or nothing at all: a difference of such would be no number.
    if most.is_infinite() {
        return most;
    }
    let sum: f64 = logarithms.iter().map(|one| (one - most).exp()).sum();
    most + (sum / number(logarithms.len() as u64)).ln()
}
