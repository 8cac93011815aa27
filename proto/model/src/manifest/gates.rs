//! `[rollout.gates]`: how much worse than the version before a new one may be.

use serde::{Deserialize, Serialize};

use super::{ManifestError, require};
use crate::limits::{MAX_ERROR_PPM, MAX_SLOWER_MS, MAX_WORSE_PERCENT, MIN_FALSE_ALARM_PPM};

/// Each bound is against the same node's version before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gates {
    /// `worse_by`: by how much of the old version's rate the new one may fail or crash more, in percent.
    pub worse_percent: u32,
    /// `max_crash_rate`: crashes that are allowed whatever the old version did, in parts per million. 0: not one, where
    /// the old version never crashed.
    pub max_crash_ppm: u32,
    /// `slower_by`: by how much longer an invocation may run, in percent; run times are not looked at without it.
    pub slower_percent: Option<u32>,
    /// `slower_at_least`: what takes less than so much longer does not count as slower, in milliseconds.
    pub slower_ms: u64,
    /// `false_alarms`: the share of good rollouts that may be turned back, in parts per million.
    pub false_alarm_ppm: u32,
}

impl Default for Gates {
    fn default() -> Self {
        Gates {
            worse_percent: 50,
            max_crash_ppm: 0,
            slower_percent: Some(50),
            slower_ms: 5,
            false_alarm_ppm: 10_000,
        }
    }
}

impl Gates {
    /// Whether it is as if nobody had said anything.
    pub fn is_default(&self) -> bool {
        *self == Gates::default()
    }

    pub(super) fn check(&self) -> Result<(), ManifestError> {
        let percent = |key: &str, percent: u32| {
            require(
                percent <= MAX_WORSE_PERCENT,
                key,
                format!("{percent}%"),
                || format!("0% to {MAX_WORSE_PERCENT}%"),
            )
        };
        percent("rollout.gates.worse_by", self.worse_percent)?;
        percent("rollout.gates.slower_by", self.slower_percent.unwrap_or(0))?;
        let ppm = |key: &str, ppm: u32, least: u32| {
            let fits = (least..=MAX_ERROR_PPM).contains(&ppm);
            require(fits, key, format!("{ppm}ppm"), || {
                format!("{least}ppm to 100%")
            })
        };
        ppm("rollout.gates.max_crash_rate", self.max_crash_ppm, 0)?;
        ppm(
            "rollout.gates.false_alarms",
            self.false_alarm_ppm,
            MIN_FALSE_ALARM_PPM,
        )?;
        let ms = self.slower_ms;
        require(
            ms <= MAX_SLOWER_MS,
            "rollout.gates.slower_at_least",
            format!("{ms}ms"),
            || format!("0ms to {MAX_SLOWER_MS}ms"),
        )
    }
}
