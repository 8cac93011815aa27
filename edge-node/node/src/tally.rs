//! Counts of how invocations went, for the coordinator's gates. Not for billing: that is `meter`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use holm_model::control::{Report, VersionReport};
use holm_model::ids::{FunctionName, VersionId};
use holm_model::usage::Outcome;

/// Counters of one version since the last report.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    outcomes: [AtomicU64; Outcome::ALL.len()],
    run_ns: AtomicU64,
}

impl Counts {
    /// One invocation ended like this.
    pub(crate) fn add(&self, outcome: Outcome, run_ns: u64) {
        let at = Outcome::ALL.iter().position(|o| *o == outcome);
        let at = at.expect("every outcome is in Outcome::ALL");
        self.outcomes[at].fetch_add(1, Ordering::Relaxed);
        self.run_ns.fetch_add(run_ns, Ordering::Relaxed);
    }

    fn take(&self) -> (Vec<(Outcome, u64)>, u64) {
        let outcomes = Outcome::ALL
            .into_iter()
            .zip(&self.outcomes)
            .map(|(outcome, count)| (outcome, count.swap(0, Ordering::Relaxed)))
            .filter(|(_, count)| *count > 0)
            .collect();
        (outcomes, self.run_ns.swap(0, Ordering::Relaxed))
    }
}

/// The counters of all versions, and the free slots of all ingress threads.
#[derive(Debug)]
pub(crate) struct Tally {
    versions: Mutex<BTreeMap<(FunctionName, VersionId), Arc<Counts>>>,
    free_slots: Vec<AtomicU32>,
    stopping: AtomicBool,
}

impl Tally {
    pub(crate) fn new(lanes: usize) -> Self {
        Tally {
            versions: Mutex::default(),
            free_slots: (0..lanes).map(|_| AtomicU32::new(0)).collect(),
            stopping: AtomicBool::new(false),
        }
    }

    fn versions(&self) -> MutexGuard<'_, BTreeMap<(FunctionName, VersionId), Arc<Counts>>> {
        // Counters are whole after every operation, so a panic elsewhere leaves nothing half done.
        self.versions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The counters of a version, which stay as long as somebody has them.
    pub(crate) fn counts(&self, function: &FunctionName, version: VersionId) -> Arc<Counts> {
        self.versions()
            .entry((function.clone(), version))
            .or_default()
            .clone()
    }

    /// The node takes no new requests from now on.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    pub(crate) fn set_free_slots(&self, lane: usize, free: usize) {
        if let Some(slots) = self.free_slots.get(lane) {
            slots.store(u32::try_from(free).unwrap_or(u32::MAX), Ordering::Relaxed);
        }
    }

    /// Free slots of all threads.
    pub(crate) fn free_slots(&self) -> u32 {
        self.free_slots.iter().fold(0, |sum, free| {
            sum.saturating_add(free.load(Ordering::Relaxed))
        })
    }

    /// What happened since the last report; the counters begin anew.
    pub(crate) fn report(&self) -> Report {
        let mut versions = Vec::new();
        self.versions().retain(|(function, version), counts| {
            let (outcomes, run_ns) = counts.take();
            let held = Arc::strong_count(counts) > 1;
            if !outcomes.is_empty() {
                let (function, version) = (function.clone(), *version);
                versions.push(VersionReport {
                    function,
                    version,
                    outcomes,
                    run_ns,
                });
                return true;
            }
            held
        });
        Report {
            versions,
            free_slots: self.free_slots(),
            stopping: self.stopping.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holm_model::ids::Digest;

    #[test]
    fn a_report_has_what_happened_since_the_last_one() {
        let tally = Tally::new(2);
        let function: FunctionName = "acme/hello".parse().unwrap();
        let counts = tally.counts(&function, Digest::of(b"v1"));
        counts.add(Outcome::Answered, 10);
        counts.add(Outcome::Crash, 5);
        counts.add(Outcome::Answered, 10);
        tally.set_free_slots(0, 3);
        tally.set_free_slots(1, 4);
        let report = tally.report();
        assert_eq!(report.free_slots, 7);
        assert_eq!(
            report.versions[0].outcomes,
            [(Outcome::Answered, 2), (Outcome::Crash, 1)]
        );
        assert_eq!(report.versions[0].run_ns, 25);
        assert_eq!(tally.report().versions, []);
    }

    #[test]
    fn the_last_counts_of_a_dropped_version_are_still_reported() {
        let tally = Tally::new(0);
        let function: FunctionName = "acme/hello".parse().unwrap();
        let counts = tally.counts(&function, Digest::of(b"v1"));
        counts.add(Outcome::Shed, 0);
        drop(counts);
        assert_eq!(tally.report().versions.len(), 1);
        assert_eq!(tally.report().versions.len(), 0);
        assert!(tally.versions().is_empty());
    }
}
