//! Which strategy a version's instances are restored by: what the node has measured of each.
//!
//! The version takes the same request under each strategy in turn, in a slot that held another program, and then
//! again after a reset. Two things are timed: the load with the first request, and a reset with a request after it.
//! What the instances keep to themselves counts too. Times are of the thread's own use of its core, so that others on
//! the machine do not decide. Away from any request, and bounded in time and memory.
//!
//! Slots are for all versions, and what a load costs depends on how the slot was filled before. So there is a usual
//! strategy on a machine, which the built-in sample tells, and a version has another only if that is better even after
//! one of the usual.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{PAGE_BYTES, Strategy};
use crate::image::Image;
use crate::pagemap::{self, Written};
use crate::runner::thread_cpu;
use crate::{Failure, Hypervisor, Slot, Snapshot, sample};

/// Rounds, if there is time for all of them.
const ROUNDS: usize = 7;
/// After so long no new round begins.
const MEASURE_TIME: Duration = Duration::from_millis(200);
/// Who takes longer than this for a request does not gain by any of it.
const LONG_RUN: Duration = Duration::from_millis(50);
/// Of how many requests one is taken to find a slot that did not hold the version. Where they are many, slots hold it,
/// and what a load costs does not matter; so this is for versions that are asked for now and then.
const REQUESTS_PER_LOAD: u64 = 4;
/// Snapshots that hold more than this are not copied for each instance, whatever it would save.
const MAX_COPY_BYTES: u64 = 16 << 20;
/// Another strategy than the usual one has to take less than these hundredths of its time.
const WORTH_PERCENT: u64 = 95;
/// Most runs of pages that are kept with a snapshot.
const MAX_KEPT_RUNS: usize = 256;
/// What instances of all slots may keep to themselves for being faster: this part of the machine's memory.
const MEMORY_SHARE: u64 = 32;

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
    /// Of a request on average. Instances that are `kept` are never reset, and find everything in place.
    fn of_request(&self, kept: bool) -> u64 {
        let again = if kept { 0 } else { self.again_ns };
        self.first_ns
            .saturating_add(again.saturating_mul(REQUESTS_PER_LOAD - 1))
            / REQUESTS_PER_LOAD
    }
}

/// What was measured of a version, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Measured {
    costs: Vec<Cost>,
    /// The kind of KVM and the kernel.
    machine: String,
    /// What was chosen when it was stored; none if that was not yet.
    stored: Option<Strategy>,
}

/// The strategy of a version, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The one that is used.
    pub strategy: Strategy,
    /// What was measured of each that came into question; nothing of a version that takes so long for a request that
    /// it does not matter.
    pub costs: Vec<Cost>,
}

impl fmt::Display for Choice {
    /// For each strategy the first request and one after a reset, in microseconds, and an instance's own memory.
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
        match self.costs.is_empty() {
            true => f.write_str("its requests take so long that it does not matter"),
            false => Ok(()),
        }
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
    chunks: String,
}

impl Choice {
    /// What an instance may keep to itself on a node with so many slots.
    pub fn room(slots: usize) -> u64 {
        memory_bytes() / MEMORY_SHARE / (slots.max(1) as u64)
    }

    /// Chooses, and measures for that, unless it was measured before the snapshot was written on a machine like this.
    /// `room`: bytes that an instance may keep to itself for being faster. `send` sends a request to an instance that
    /// waits and takes its answer; nothing that it does may be seen from outside. The error is what the version
    /// failed of; nothing is chosen then. What is chosen once stays.
    pub fn make<'a>(
        hypervisor: &Hypervisor,
        snapshot: &'a Arc<Snapshot>,
        room: u64,
        send: impl FnMut(&mut Slot) -> Result<(), Failure>,
    ) -> Result<&'a Choice, Failure> {
        if let Some(choice) = snapshot.choice.get() {
            return Ok(choice);
        }
        let measured = match snapshot.measured.get() {
            Some(measured) => measured,
            None => {
                let usual = usual(hypervisor, room)?;
                let costs = measure(hypervisor, snapshot, Some(usual), send)?;
                snapshot.measured.get_or_init(|| Measured {
                    costs,
                    machine: machine(hypervisor),
                    stored: None,
                })
            }
        };
        let strategy = match measured.stored(room) {
            Some(strategy) => strategy,
            None => {
                let usual = usual(hypervisor, room)?;
                choose(&measured.costs, usual, snapshot.kept, room)
            }
        };
        Ok(snapshot.choice.get_or_init(|| Choice {
            strategy,
            costs: measured.costs.clone(),
        }))
    }
}

/// The strategy of most versions on this machine. What is copied whole at each reset is none.
fn usual(hypervisor: &Hypervisor, room: u64) -> Result<Strategy, Failure> {
    let costs = match hypervisor.inner.sample_costs.get() {
        Some(costs) => costs,
        None => {
            let sample = sample::snapshot(hypervisor, sample::MEMORY_BYTES)?;
            let mut costs = measure(hypervisor, &sample, None, sample::send)?;
            costs.retain(|cost| cost.strategy != Strategy::FullCopy);
            hypervisor.inner.sample_costs.get_or_init(|| costs)
        }
    };
    Ok(choose(costs, Strategy::WorkingSet, false, room))
}

/// What the strategies cost that come into question, in slots where another program was by the strategy `before`, or
/// by the same one.
fn measure(
    hypervisor: &Hypervisor,
    snapshot: &Arc<Snapshot>,
    before: Option<Strategy>,
    mut send: impl FnMut(&mut Slot) -> Result<(), Failure>,
) -> Result<Vec<Cost>, Failure> {
    let began = Instant::now();
    if record(hypervisor, snapshot, &mut send)? > LONG_RUN {
        return Ok(Vec::new());
    }
    let other = sample::snapshot(hypervisor, snapshot.memory_bytes())?;
    // The usual one first: what is found out at the very first reset is to be right for it.
    let mut candidates = vec![Strategy::WorkingSet, Strategy::CopyOnWrite];
    if snapshot.own_bytes() <= MAX_COPY_BYTES {
        candidates.extend([Strategy::FullCopy, Strategy::OwnFile]);
    }
    let mut trials = Vec::new();
    for strategy in candidates {
        trials.push(Trial {
            strategy,
            before: before.unwrap_or(strategy),
            slot: Slot::new(hypervisor)?,
            first: Vec::new(),
            again: Vec::new(),
        });
    }
    // The very first time of each is another matter: the host's caches, and slots that have never run.
    for round in 0..=ROUNDS {
        if round > 1 && began.elapsed() > MEASURE_TIME {
            break;
        }
        for trial in &mut trials {
            trial.take(snapshot, &other, round > 0, &mut send)?;
        }
    }
    let costs = trials.into_iter().map(Trial::cost);
    costs.collect()
}

/// A strategy that is tried, in a slot of its own.
struct Trial {
    strategy: Strategy,
    before: Strategy,
    slot: Slot,
    first: Vec<u64>,
    again: Vec<u64>,
}

impl Trial {
    fn take(
        &mut self,
        snapshot: &Arc<Snapshot>,
        other: &Arc<Snapshot>,
        counts: bool,
        send: &mut impl FnMut(&mut Slot) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let slot = &mut self.slot;
        slot.load_by(other, self.before)?;
        sample::send(slot)?;
        slot.reset()?;

        let start = thread_cpu();
        slot.load_by(snapshot, self.strategy)?;
        send(slot)?;
        let first = since(start);
        slot.reset()?;
        send(slot)?;
        let start = thread_cpu();
        slot.reset()?;
        send(slot)?;
        let again = since(start);
        slot.reset()?;
        if counts {
            self.first.push(first);
            self.again.push(again);
        }
        Ok(())
    }

    fn cost(mut self) -> Result<Cost, Failure> {
        Ok(Cost {
            strategy: self.strategy,
            first_ns: median(self.first),
            again_ns: median(self.again),
            private_bytes: self.slot.private_bytes()?,
        })
    }
}

/// Lets an instance take a request and records what it touches. Gives how long that took.
fn record(
    hypervisor: &Hypervisor,
    snapshot: &Arc<Snapshot>,
    send: &mut impl FnMut(&mut Slot) -> Result<(), Failure>,
) -> Result<Duration, Failure> {
    let mut slot = Slot::new(hypervisor)?;
    slot.load_by(snapshot, Strategy::CopyOnWrite)?;
    let layout = snapshot.layout;
    layout.forget_accesses(slot.memory()?, snapshot.leaf_tables())?;
    let start = thread_cpu();
    send(&mut slot)?;
    let took = thread_cpu().saturating_sub(start);
    let touched = layout.accessed(slot.memory()?, snapshot.leaf_tables())?;
    let touched = pagemap::runs(touched.into_iter());
    snapshot.sets.touch(hypervisor.kind(), snapshot, touched);
    // No reset: it would find all tables written, and take that for the program's doing.
    Ok(took)
}

/// The cheapest that has room for what it keeps to itself, if it is worth more than the usual one, or that has none.
fn choose(costs: &[Cost], usual: Strategy, kept: bool, room: u64) -> Strategy {
    let of = |cost: &Cost| cost.of_request(kept);
    let fits = |cost: &&Cost| cost.strategy == Strategy::WorkingSet || cost.private_bytes <= room;
    let in_question = || costs.iter().filter(fits);
    let Some(cheapest) = in_question().min_by_key(|one| of(one)) else {
        return Strategy::WorkingSet;
    };
    let worth = |usual: &Cost| {
        u128::from(of(cheapest)) * 100 < u128::from(of(usual)) * u128::from(WORTH_PERCENT)
    };
    match in_question().find(|one| one.strategy == usual) {
        Some(usual) if !worth(usual) => usual.strategy,
        _ => cheapest.strategy,
    }
}

impl Stored {
    /// What is to be kept of a snapshot's choice, once there is one.
    pub(crate) fn of(snapshot: &Snapshot) -> Option<Self> {
        let runs = |set: Option<&Vec<Written>>| {
            let runs = set.map_or(&[][..], Vec::as_slice);
            runs[..runs.len().min(MAX_KEPT_RUNS)].to_vec()
        };
        let measured = snapshot.measured.get()?;
        Some(Stored {
            machine: measured.machine.clone(),
            strategy: snapshot.choice.get()?.strategy,
            costs: measured.costs.clone(),
            written: runs(snapshot.sets.written.get()),
            touched: runs(snapshot.sets.touched()),
            chunks: snapshot.chunks.as_text(),
        })
    }

    /// Gives it back to a snapshot that was just read, if it was found on a machine like this and can be right.
    pub(crate) fn give(self, hypervisor: &Hypervisor, snapshot: &Snapshot) {
        let end = snapshot.layout.total_bytes();
        let is_page = |addr: u64| addr.is_multiple_of(PAGE_BYTES);
        let fits = |run: &Written| {
            run.start < run.end && run.end <= end && is_page(run.start) && is_page(run.end)
        };
        let fixed = Image::get().fixed();
        let may_be_written = |run: &Written| run.end <= fixed.start || run.start >= fixed.end;
        let good = self.touched.iter().all(fits)
            && self
                .written
                .iter()
                .all(|run| fits(run) && may_be_written(run));
        if !good || self.machine != machine(hypervisor) {
            return;
        }
        snapshot.chunks.take(&self.chunks);
        // Nothing is there yet. What was not known is still to be found out.
        if !self.written.is_empty() {
            snapshot.sets.written.get_or_init(|| self.written);
        }
        if !self.touched.is_empty() {
            let sets = &snapshot.sets;
            sets.touch(hypervisor.kind(), snapshot, self.touched);
        }
        snapshot.measured.get_or_init(|| Measured {
            costs: self.costs,
            machine: self.machine,
            stored: Some(self.strategy),
        });
    }

    /// What it says, without a snapshot.
    pub(crate) fn into_choice(self) -> Choice {
        Choice {
            strategy: self.strategy,
            costs: self.costs,
        }
    }
}

impl Measured {
    /// What was chosen when it was stored, if that still has room.
    fn stored(&self, room: u64) -> Option<Strategy> {
        let strategy = self.stored?;
        let fits = |cost: &Cost| cost.strategy != strategy || cost.private_bytes <= room;
        (strategy == Strategy::WorkingSet || self.costs.iter().all(fits)).then_some(strategy)
    }

    /// Whether the file does not have what was chosen.
    pub(crate) fn is_new(&self, choice: &Choice) -> bool {
        self.stored != Some(choice.strategy)
    }
}

/// The kind of KVM and the kernel.
fn machine(hypervisor: &Hypervisor) -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{} {}", hypervisor.kind().as_str(), release.trim())
}

/// Memory of the machine, or of the process's control group if that is less; as little as there can be if neither
/// can be told.
fn memory_bytes() -> u64 {
    let total = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = total.lines().find_map(|line| {
        let kibibytes = line.strip_prefix("MemTotal:")?.split_whitespace().next()?;
        kibibytes.parse::<u64>().ok()
    });
    let limit = std::fs::read_to_string("/sys/fs/cgroup/memory.max").unwrap_or_default();
    let total = total.unwrap_or_default().saturating_mul(1024);
    total.min(limit.trim().parse().unwrap_or(u64::MAX))
}

fn since(start: Duration) -> u64 {
    u64::try_from(thread_cpu().saturating_sub(start).as_nanos()).unwrap_or(u64::MAX)
}

fn median(mut times: Vec<u64>) -> u64 {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cheapest_is_chosen_that_has_room_and_is_worth_it() {
        let cost = |strategy, first_us: u64, again_us: u64, private_kib: u64| Cost {
            strategy,
            first_ns: first_us * 1000,
            again_ns: again_us * 1000,
            private_bytes: private_kib << 10,
        };
        let costs = [
            cost(Strategy::WorkingSet, 1000, 100, 50),
            cost(Strategy::CopyOnWrite, 1200, 1100, 0),
            cost(Strategy::FullCopy, 400, 300, 2000),
            cost(Strategy::OwnFile, 600, 100, 2050),
        ];
        let usual = Strategy::WorkingSet;
        assert_eq!(choose(&costs, usual, false, 4 << 20), Strategy::OwnFile);
        assert_eq!(choose(&costs, usual, true, 4 << 20), Strategy::FullCopy);
        assert_eq!(choose(&costs, usual, true, 2000 << 10), Strategy::FullCopy);
        assert_eq!(choose(&costs, usual, false, 2000 << 10), usual);
        assert_eq!(choose(&costs, Strategy::OwnFile, false, 0), usual);
        assert_eq!(choose(&[], Strategy::OwnFile, false, u64::MAX), usual);
        // As on hardware, where a fault costs next to nothing.
        let alike = [
            cost(Strategy::WorkingSet, 100, 10, 50),
            cost(Strategy::OwnFile, 98, 10, 2050),
        ];
        for usual in [Strategy::WorkingSet, Strategy::OwnFile] {
            assert_eq!(choose(&alike, usual, false, 4 << 20), usual);
        }
    }

    #[test]
    fn what_instances_keep_to_themselves_is_a_part_of_the_machine_whatever_their_number() {
        assert!(Choice::room(16) >= 16 * Choice::room(256) && Choice::room(1000) > 0);
        assert_eq!(Choice::room(0), Choice::room(1));
    }
}
