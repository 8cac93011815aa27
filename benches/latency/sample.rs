//! Samples of one subject, by rounds, and the figures made of them.

use std::time::Duration;

use serde::Serialize;

/// All samples of one subject.
#[derive(Debug, Default)]
pub(crate) struct Samples {
    nanos: Vec<u64>,
    /// Where each round begins in `nanos`.
    rounds: Vec<usize>,
}

/// Of all samples of a subject.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Figures {
    pub(crate) median_us: f64,
    /// With fewer than 100 samples, the largest.
    pub(crate) p99_us: f64,
    pub(crate) n: usize,
}

impl Samples {
    pub(crate) fn begin_round(&mut self) {
        self.rounds.push(self.nanos.len());
    }

    pub(crate) fn add(&mut self, sample: Duration) {
        self.nanos
            .push(u64::try_from(sample.as_nanos()).unwrap_or(u64::MAX));
    }

    pub(crate) fn figures(&self) -> Figures {
        let mut sorted = self.nanos.clone();
        sorted.sort_unstable();
        Figures {
            median_us: quantile(&sorted, 0.5) / 1e3,
            p99_us: quantile(&sorted, 0.99) / 1e3,
            n: sorted.len(),
        }
    }

    /// The median of each round, in nanoseconds.
    pub(crate) fn round_medians(&self) -> Vec<f64> {
        let ends = self
            .rounds
            .iter()
            .skip(1)
            .copied()
            .chain([self.nanos.len()]);
        self.rounds
            .iter()
            .zip(ends)
            .map(|(&from, to)| {
                let mut round = self.nanos[from..to].to_vec();
                round.sort_unstable();
                quantile(&round, 0.5)
            })
            .collect()
    }

    /// The median over the rounds of this subject's median by the floor's.
    pub(crate) fn ratio_to(&self, floor: &[f64]) -> f64 {
        let mut ratios: Vec<f64> = self
            .round_medians()
            .iter()
            .zip(floor)
            .map(|(median, floor)| median / floor)
            .collect();
        ratios.sort_unstable_by(f64::total_cmp);
        match ratios.len() {
            0 => f64::NAN,
            rounds => ratios[rounds / 2],
        }
    }
}

/// The sample at `share` of a sorted list, by nearest rank; NaN of none.
fn quantile(sorted: &[u64], share: f64) -> f64 {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    match sorted.get(rank.max(1) - 1) {
        Some(&nanos) => nanos as f64,
        None => f64::NAN,
    }
}
