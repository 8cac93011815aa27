//! Which strategy a version's instances are restored by: what the node has measured of each.
//!
//! The version takes the same request under each strategy in turn, in a slot that held another program, and then
//! again after a reset. Two things are timed: the load with the first request, and a reset with a request after it.
//! What the instances keep to themselves counts too. Times are of the thread's own use of its core, so that others on
//! the machine do not decide. Away from any request, and bounded in time and memory.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{PAGE_BYTES, Strategy};
use crate::pagemap::{self, Written};
use crate::runner::thread_cpu;
use crate::{Failure, Hypervisor, Slot, Snapshot, sample};

/// Rounds, if there is time for all of them.
const ROUNDS: usize = 7;
/// After so long no new round begins.
const MEASURE_TIME: Duration = Duration::from_millis(250);
/// Who takes longer than this for a request does not gain by any of it.
const LONG_RUN: Duration = Duration::from_millis(50);
/// Of how many requests one finds a slot that did not hold the version.
const REQUESTS_PER_LOAD: u64 = 16;
/// Snapshots that hold more than this are not copied for each instance, whatever it would save.
const MAX_COPY_BYTES: u64 = 16 << 20;
/// What an instance may keep to itself for a strategy that is faster, beside four times what it needs anyway.
const PRIVATE_BYTES: u64 = 128 << 10;
const PRIVATE_FACTOR: u64 = 4;
/// Another strategy than the usual one has to take less than these hundredths of its time.
const WORTH_PERCENT: u64 = 90;
/// Most runs of pages that are kept with a snapshot.
const MAX_KEPT_RUNS: usize = 512;

/// What a strategy was found to cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cost {
    /// Which.
    pub strategy: Strategy,
    /// A load into a slot that held another version, and the first request: median.
    pub first_ns: u64,
    /// A reset and a request after it: median.
    pub again_ns: u64,
    /// Memory that an instance has for itself after that.
    pub private_bytes: u64,
}

impl Cost {
    /// Of a request on average, where the instances are reset.
    fn of_request(&self, kept: bool) -> u64 {
        match kept {
            // Nothing is ever reset then, and most requests find everything in place.
            true => self.first_ns,
            false => (self.first_ns + (REQUESTS_PER_LOAD - 1) * self.again_ns) / REQUESTS_PER_LOAD,
        }
    }
}

/// The strategy of a version, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The one that is used.
    pub strategy: Strategy,
    /// What was measured of each that came into question.
    pub costs: Vec<Cost>,
    /// The kind of KVM and the kernel with which that was.
    machine: String,
    /// Whether that was in this process.
    is_new: bool,
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, cost) in self.costs.iter().enumerate() {
            write!(
                f,
                "{}{} {} + {} µs, {} KiB",
                if index > 0 { "; " } else { "" },
                cost.strategy.as_str(),
                cost.first_ns / 1000,
                cost.again_ns / 1000,
                cost.private_bytes / 1024,
            )?;
        }
        if self.costs.is_empty() {
            write!(f, "not measured: its requests take so long that it does not matter")?;
        }
        Ok(())
    }
}

/// What of it is kept with the snapshot on disk.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Stored {
    machine: String,
    strategy: Strategy,
    costs: Vec<Cost>,
    written: Vec<Written>,
    touched: Vec<Written>,
}

impl Choice {
    /// Measures and chooses, unless that was done, here or before the snapshot was written on a machine like this.
    /// `send` sends a request to an instance that waits and takes its answer; nothing that it does may be seen from
    /// outside. Gives what the version failed of, if it did; nothing is chosen then.
    pub fn measure(
        hypervisor: &Hypervisor,
        snapshot: &Arc<Snapshot>,
        mut send: impl FnMut(&mut Slot) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        if snapshot.choice.get().is_some() {
            return Ok(());
        }
        let began = Instant::now();
        let mut slot = Slot::new(hypervisor)?;
        let took = record(&mut slot, snapshot, &mut send)?;
        if took > LONG_RUN {
            let choice = Choice {
                strategy: Strategy::WorkingSet,
                costs: Vec::new(),
                machine: machine(hypervisor),
                is_new: true,
            };
            let _ = snapshot.choice.set(choice);
            return Ok(());
        }
        let other = sample::snapshot(hypervisor, snapshot.memory_bytes())?;
        // The usual one first: what is found out at the very first reset is to be right for it.
        let mut candidates = vec![Strategy::WorkingSet, Strategy::CopyOnWrite];
        if snapshot.own_bytes() <= MAX_COPY_BYTES {
            candidates.push(Strategy::FullCopy);
        }
        let mut times = vec![(Vec::new(), Vec::new(), 0); candidates.len()];
        for round in 0..ROUNDS {
            for (strategy, (first, again, private)) in candidates.iter().zip(&mut times) {
                if round > 0 && began.elapsed() > MEASURE_TIME {
                    break;
                }
                // What slots hold on this machine will mostly be there by the same strategy.
                slot.load_by(&other, *strategy)?;
                sample::send(&mut slot)?;
                slot.reset()?;
                let at = thread_cpu();
                slot.load_by(snapshot, *strategy)?;
                send(&mut slot)?;
                first.push(nanos(at));
                slot.reset()?;
                send(&mut slot)?;
                let at = thread_cpu();
                slot.reset()?;
                send(&mut slot)?;
                again.push(nanos(at));
                slot.reset()?;
                *private = slot.private_bytes()?;
            }
        }
        let costs = candidates.into_iter().zip(times);
        let costs = costs.map(|(strategy, (first, again, private_bytes))| Cost {
            strategy,
            first_ns: median(first),
            again_ns: median(again),
            private_bytes,
        });
        let costs: Vec<Cost> = costs.collect();
        let choice = Choice {
            strategy: choose(&costs, snapshot.kept),
            costs,
            machine: machine(hypervisor),
            is_new: true,
        };
        // If two measure at a time, the first has it.
        let _ = snapshot.choice.set(choice);
        Ok(())
    }

    pub(crate) fn is_new(&self) -> bool {
        self.is_new
    }

    pub(crate) fn stored(&self, snapshot: &Snapshot) -> Stored {
        let of = |set: Option<&Vec<Written>>| {
            let runs = set.map_or(&[][..], Vec::as_slice);
            runs[..runs.len().min(MAX_KEPT_RUNS)].to_vec()
        };
        Stored {
            machine: self.machine.clone(),
            strategy: self.strategy,
            costs: self.costs.clone(),
            written: of(snapshot.sets.written.get()),
            touched: of(snapshot.sets.touched.get()),
        }
    }
}

impl Stored {
    /// Gives it back to the snapshot, if it was found on a machine like this and can be right.
    pub(crate) fn give(self, hypervisor: &Hypervisor, snapshot: &Snapshot) {
        let end = snapshot.layout.program_end();
        let runs = || self.written.iter().chain(&self.touched);
        let is_page = |addr: u64| addr.is_multiple_of(PAGE_BYTES);
        let fits = |run: &Written| {
            run.start < run.end && run.end <= end && is_page(run.start) && is_page(run.end)
        };
        if self.machine != machine(hypervisor) || !runs().all(fits) {
            return;
        }
        // The snapshot is new; nothing is there yet.
        let _ = snapshot.sets.written.set(self.written.clone());
        let _ = snapshot.sets.touched.set(self.touched.clone());
        let _ = snapshot.choice.set(self.into_choice());
    }

    pub(crate) fn into_choice(self) -> Choice {
        Choice {
            strategy: self.strategy,
            costs: self.costs,
            machine: self.machine,
            is_new: false,
        }
    }
}

/// Lets an instance take a request and records what it touches. Gives how long that took.
fn record(
    slot: &mut Slot,
    snapshot: &Arc<Snapshot>,
    send: &mut impl FnMut(&mut Slot) -> Result<(), Failure>,
) -> Result<Duration, Failure> {
    slot.load_by(snapshot, Strategy::CopyOnWrite)?;
    let memory = slot.memory()?;
    snapshot.layout.forget_accesses(memory, snapshot.leaf_tables())?;
    let at = thread_cpu();
    send(slot)?;
    let took = thread_cpu().saturating_sub(at);
    let memory = slot.memory()?;
    let touched = snapshot.layout.accessed(memory, snapshot.leaf_tables())?;
    let touched = pagemap::runs(touched.into_iter());
    snapshot.sets.touched.get_or_init(|| touched);
    // No reset: it would find all tables written, and take that for the program's doing.
    Ok(took)
}

/// The cheapest that is worth it and has not too much memory for itself.
fn choose(costs: &[Cost], kept: bool) -> Strategy {
    let usual = costs.iter().find(|one| one.strategy == Strategy::WorkingSet);
    let least = costs.iter().map(|one| one.private_bytes).min().unwrap_or(0);
    let room = PRIVATE_BYTES.max(least.saturating_mul(PRIVATE_FACTOR));
    let cheapest = costs
        .iter()
        .filter(|one| one.private_bytes <= room)
        .min_by_key(|one| one.of_request(kept));
    match (cheapest, usual) {
        (Some(cheapest), Some(usual))
            if cheapest.of_request(kept) * 100 < usual.of_request(kept) * WORTH_PERCENT
                || usual.private_bytes > room =>
        {
            cheapest.strategy
        }
        _ => Strategy::WorkingSet,
    }
}

/// The kind of KVM and the kernel.
fn machine(hypervisor: &Hypervisor) -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{} {}", hypervisor.kind().as_str(), release.trim())
}

fn nanos(since: Duration) -> u64 {
    u64::try_from(thread_cpu().saturating_sub(since).as_nanos()).unwrap_or(u64::MAX)
}

fn median(mut times: Vec<u64>) -> u64 {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or(u64::MAX)
}
