//! Counts of how invocations went, for the coordinator's gates. Not for billing: that is `meter`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use holm_model::configuration::ReleaseId;
use holm_model::control::{Observed, Record, Report, VersionReport, VersionState};
use holm_model::ids::FunctionName;
use holm_model::limits::MAX_TOLD_RUN_TIMES;
use holm_model::run_times::{self, RunTimes};
use holm_model::usage::Outcome;

/// From so many invocations on, what is remembered of a version is halved, so that it tells of the latest.
const MAX_REMEMBERED: u64 = 1 << 14;

/// Counters of one version since the last report.
#[derive(Debug)]
pub(crate) struct Counts {
    outcomes: [AtomicU64; Outcome::ALL.len()],
    run_ns: AtomicU64,
    run_times: [AtomicU32; run_times::BUCKETS],
    /// What was reported before. Not touched by requests.
    before: Mutex<Taken>,
}

/// What counters had.
#[derive(Clone, Debug, Default)]
struct Taken {
    outcomes: [u64; Outcome::ALL.len()],
    run_times: RunTimes,
}

impl Default for Counts {
    fn default() -> Self {
        Counts {
            outcomes: Default::default(),
            run_ns: AtomicU64::new(0),
            run_times: std::array::from_fn(|_| AtomicU32::new(0)),
            before: Mutex::default(),
        }
    }
}

impl Counts {
    /// One invocation ended like this; `warm` says that its slot was filled before it came.
    pub(crate) fn add(&self, outcome: Outcome, run_ns: u64, warm: bool) {
        let at = Outcome::ALL.iter().position(|o| *o == outcome);
        let at = at.expect("every outcome is in Outcome::ALL");
        self.outcomes[at].fetch_add(1, Ordering::Relaxed);
        self.run_ns.fetch_add(run_ns, Ordering::Relaxed);
        if warm && outcome == Outcome::Answered {
            let bucket = usize::from(run_times::bucket(run_ns));
            self.run_times[bucket].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What was counted since the last time, which is remembered, and the sum of run times.
    fn take(&self) -> (Taken, u64) {
        let mut taken = Taken::default();
        for (sum, count) in taken.outcomes.iter_mut().zip(&self.outcomes) {
            *sum = count.swap(0, Ordering::Relaxed);
        }
        for (bucket, count) in (0..=u8::MAX).zip(&self.run_times) {
            // Most are never touched.
            if count.load(Ordering::Relaxed) > 0 {
                let count = count.swap(0, Ordering::Relaxed);
                taken.run_times.add(bucket, u64::from(count));
            }
        }
        self.before().add(&taken);
        (taken, self.run_ns.swap(0, Ordering::Relaxed))
    }

    /// How its invocations went so far, those that are not reported yet included; nothing if there were none.
    fn record(&self) -> Option<Record> {
        let mut sum = self.before().clone();
        for (sum, count) in sum.outcomes.iter_mut().zip(&self.outcomes) {
            *sum = sum.saturating_add(count.load(Ordering::Relaxed));
        }
        for (bucket, count) in (0..=u8::MAX).zip(&self.run_times) {
            sum.run_times
                .add(bucket, u64::from(count.load(Ordering::Relaxed)));
        }
        let outcomes = sum.outcomes();
        (!outcomes.is_empty()).then_some(Record {
            outcomes,
            run_times: sum.run_times,
        })
    }

    fn before(&self) -> MutexGuard<'_, Taken> {
        // Numbers are whole after every operation.
        self.before.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    fn add(&mut self, other: &Taken) {
        for (sum, count) in self.outcomes.iter_mut().zip(other.outcomes) {
            *sum = sum.saturating_add(count);
        }
        self.run_times.add_all(&other.run_times);
        while self.outcomes.iter().sum::<u64>() > MAX_REMEMBERED {
            self.outcomes.iter_mut().for_each(|count| *count /= 2);
            self.run_times = self
                .run_times
                .iter()
                .map(|(b, count)| (b, count / 2))
                .collect();
        }
    }

    fn outcomes(&self) -> Vec<(Outcome, u64)> {
        let counted = Outcome::ALL.into_iter().zip(self.outcomes);
        counted.filter(|(_, count)| *count > 0).collect()
    }
}

/// The counters of all versions, and the free slots of all ingress threads.
#[derive(Debug)]
pub(crate) struct Tally {
    versions: Mutex<BTreeMap<(FunctionName, ReleaseId), Arc<Counts>>>,
    free_slots: Vec<AtomicU32>,
    /// Slots that the janitor was given to make fresh.
    renewed: AtomicU64,
    /// Memory is short.
    short: AtomicBool,
    stopping: AtomicBool,
    /// Messages of the coordinator that were not known, in all and as reported.
    refused: AtomicU64,
    refused_told: AtomicU64,
}

impl Tally {
    pub(crate) fn new(lanes: usize) -> Self {
        Tally {
            versions: Mutex::default(),
            free_slots: (0..lanes).map(|_| AtomicU32::new(0)).collect(),
            renewed: AtomicU64::new(0),
            short: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            refused: AtomicU64::new(0),
            refused_told: AtomicU64::new(0),
        }
    }

    fn versions(&self) -> MutexGuard<'_, BTreeMap<(FunctionName, ReleaseId), Arc<Counts>>> {
        // Counters are whole after every operation, so a panic elsewhere leaves nothing half done.
        self.versions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The counters of a release, which stay as long as somebody has them.
    pub(crate) fn counts(&self, function: &FunctionName, release: ReleaseId) -> Arc<Counts> {
        self.versions()
            .entry((function.clone(), release))
            .or_default()
            .clone()
    }

    /// Another message of the coordinator's was of a kind that is not known here. How many were in all.
    pub(crate) fn refuse(&self) -> u64 {
        self.refused.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// How many there were.
    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
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

    /// Says whether memory is short; tells whether it was.
    pub(crate) fn set_memory_short(&self, short: bool) -> bool {
        self.short.swap(short, Ordering::Relaxed)
    }

    /// Whether it is.
    pub(crate) fn is_memory_short(&self) -> bool {
        self.short.load(Ordering::Relaxed)
    }

    /// One more slot is made fresh away from the request path.
    pub(crate) fn renewed(&self) {
        self.renewed.fetch_add(1, Ordering::Relaxed);
    }

    /// How many were.
    pub(crate) fn all_renewed(&self) -> u64 {
        self.renewed.load(Ordering::Relaxed)
    }

    /// Free slots of all threads.
    pub(crate) fn free_slots(&self) -> u32 {
        self.free_slots.iter().fold(0, |sum, free| {
            sum.saturating_add(free.load(Ordering::Relaxed))
        })
    }

    /// Adds to what is told of versions how those went that are ready and have no requests now.
    pub(crate) fn remember(&self, observed: &mut Observed) {
        let versions = self.versions();
        let mut room = MAX_TOLD_RUN_TIMES;
        for told in &mut observed.versions {
            if told.routed || told.state != VersionState::Ready {
                continue;
            }
            let counts = versions.get(&(told.function.clone(), told.version));
            told.record = counts.and_then(|counts| counts.record()).filter(|record| {
                let left = room.checked_sub(record.run_times.iter().count());
                room = left.unwrap_or(room);
                left.is_some()
            });
        }
    }

    /// What happened since the last report; the counters begin anew.
    pub(crate) fn report(&self) -> Report {
        let mut versions = Vec::new();
        self.versions().retain(|(function, version), counts| {
            let (taken, run_ns) = counts.take();
            let outcomes = taken.outcomes();
            let held = Arc::strong_count(counts) > 1;
            if !outcomes.is_empty() {
                let (function, version) = (function.clone(), *version);
                versions.push(VersionReport {
                    function,
                    version,
                    outcomes,
                    run_ns,
                    run_times: taken.run_times,
                });
                return true;
            }
            held
        });
        let refused = self.refused();
        let told = self.refused_told.swap(refused, Ordering::Relaxed);
        Report {
            versions,
            free_slots: self.free_slots(),
            stopping: self.stopping.load(Ordering::Relaxed),
            refused: refused.saturating_sub(told),
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
        counts.add(Outcome::Answered, 10, true);
        counts.add(Outcome::Crash, 5, true);
        counts.add(Outcome::Answered, 10, false);
        tally.set_free_slots(0, 3);
        tally.set_free_slots(1, 4);
        assert_eq!((tally.refuse(), tally.refuse()), (1, 2));
        let report = tally.report();
        assert_eq!((report.free_slots, report.refused), (7, 2));
        assert_eq!((tally.report().refused, tally.refused()), (0, 2));
        assert_eq!(
            report.versions[0].outcomes,
            [(Outcome::Answered, 2), (Outcome::Crash, 1)]
        );
        assert_eq!(report.versions[0].run_ns, 25);
        let warm: Vec<_> = report.versions[0].run_times.iter().collect();
        assert_eq!(warm, [(0, 1)], "crashes and cold starts are left out");
        assert_eq!(tally.report().versions, []);
    }

    #[test]
    fn what_a_version_did_is_told_when_its_requests_go_elsewhere() {
        let tally = Tally::new(0);
        let function: FunctionName = "acme/hello".parse().unwrap();
        let old = Digest::of(b"v1");
        let counts = tally.counts(&function, old);
        for _ in 0..MAX_REMEMBERED {
            counts.add(Outcome::Answered, 50_000, true);
        }
        tally.report();
        counts.add(Outcome::FunctionError, 50_000, true);
        let told = |routed| {
            let mut observed = Observed {
                generation: 1,
                versions: vec![holm_model::control::ObservedVersion {
                    function: function.clone(),
                    version: old,
                    state: VersionState::Ready,
                    routed,
                    record: None,
                }],
            };
            tally.remember(&mut observed);
            observed.versions.remove(0).record
        };
        assert_eq!(told(true), None);
        let record = told(false).unwrap();
        assert_eq!(
            record.outcomes,
            [
                (Outcome::Answered, MAX_REMEMBERED),
                (Outcome::FunctionError, 1)
            ]
        );
        assert_eq!(record.run_times.total(), MAX_REMEMBERED);
        // What is remembered does not grow for ever.
        tally.report();
        let answered = told(false).unwrap().outcomes[0].1;
        assert_eq!(answered, MAX_REMEMBERED / 2);
    }

    #[test]
    fn the_last_counts_of_a_dropped_version_are_still_reported() {
        let tally = Tally::new(0);
        let function: FunctionName = "acme/hello".parse().unwrap();
        let counts = tally.counts(&function, Digest::of(b"v1"));
        counts.add(Outcome::Shed, 0, false);
        drop(counts);
        assert_eq!(tally.report().versions.len(), 1);
        assert_eq!(tally.report().versions.len(), 0);
        assert!(tally.versions().is_empty());
    }
}
