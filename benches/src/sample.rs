//! Samples of one subject, by rounds, and the figures made of them.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// All samples of one subject.
#[derive(Debug, Default)]
pub(crate) struct Samples {
    nanos: Vec<u64>,
    /// Where each round begins in `nanos`.
    rounds: Vec<usize>,
}

/// Of all samples of a subject, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Figures {
    pub(crate) p50: f64,
    /// With fewer than 100 samples, the largest.
    pub(crate) p99: f64,
    pub(crate) n: usize,
    /// Median over the rounds of: median of the round by the floor's median of the round.
    pub(crate) p50_floors: f64,
    /// The 99th percentile by the floor's median.
    pub(crate) p99_floors: f64,
}

impl Samples {
    pub(crate) fn begin_round(&mut self) {
        self.rounds.push(self.nanos.len());
    }

    pub(crate) fn add(&mut self, sample: Duration) {
        self.nanos
            .push(u64::try_from(sample.as_nanos()).unwrap_or(u64::MAX));
    }

    /// The figures, with ratios to `floor`, which was measured in the same rounds.
    pub(crate) fn figures(&self, floor: &Samples) -> Figures {
        let sorted = self.sorted();
        let p99 = quantile(&sorted, 0.99);
        Figures {
            p50: rounded(quantile(&sorted, 0.5) / 1e3),
            p99: rounded(p99 / 1e3),
            n: sorted.len(),
            p50_floors: rounded(self.ratio_to(floor)),
            p99_floors: rounded(p99 / quantile(&floor.sorted(), 0.5)),
        }
    }

    /// The median over the rounds of this subject's median by the other's.
    pub(crate) fn ratio_to(&self, other: &Samples) -> f64 {
        let medians = self.round_medians();
        let ratios = medians.iter().zip(other.round_medians());
        median(ratios.map(|(ours, theirs)| ours / theirs).collect())
    }

    /// Nanoseconds at `share` of all samples.
    pub(crate) fn quantile(&self, share: f64) -> f64 {
        quantile(&self.sorted(), share)
    }

    fn sorted(&self) -> Vec<u64> {
        let mut sorted = self.nanos.clone();
        sorted.sort_unstable();
        sorted
    }

    /// The median of each round, in nanoseconds.
    fn round_medians(&self) -> Vec<f64> {
        let ends = self.rounds.iter().skip(1).copied();
        let rounds = self.rounds.iter().zip(ends.chain([self.nanos.len()]));
        rounds
            .map(|(&from, to)| {
                let mut round = self.nanos[from..to].to_vec();
                round.sort_unstable();
                quantile(&round, 0.5)
            })
            .collect()
    }
}

/// The middle one; NaN of none.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Two digits behind the point: more would be noise.
pub(crate) fn rounded(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

/// The sample at `share` of a sorted list, by nearest rank; NaN of none.
fn quantile(sorted: &[u64], share: f64) -> f64 {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    match sorted.get(rank.max(1) - 1) {
        Some(&nanos) => nanos as f64,
        None => f64::NAN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(rounds: &[&[u64]]) -> Samples {
        let mut samples = Samples::default();
        for round in rounds {
            samples.begin_round();
            round
                .iter()
                .for_each(|micros| samples.add(Duration::from_micros(*micros)));
        }
        samples
    }

    #[test]
    fn a_ratio_is_taken_within_its_round_so_that_a_slow_minute_does_not_count() {
        let floor = samples(&[&[10, 10, 10], &[30, 30, 30], &[10, 11, 12]]);
        let other = samples(&[&[20, 20, 20], &[60, 60, 60], &[22, 22, 22]]);
        let figures = other.figures(&floor);
        assert_eq!((figures.p50_floors, figures.n), (2.0, 9));
        assert_eq!((figures.p50, figures.p99), (22.0, 60.0));
    }

    #[test]
    fn a_percentile_is_a_sample_that_was_taken() {
        let many = samples(&[&(1..=200).collect::<Vec<_>>()]);
        assert_eq!(
            (many.quantile(0.5), many.quantile(0.99)),
            (100e3, 198e3),
            "of 200"
        );
        assert!(samples(&[]).quantile(0.5).is_nan());
    }
}
