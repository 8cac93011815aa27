//! Seeded fault runs of real processes. Callers know of each request whether it was answered; meanwhile node and
//! coordinator are killed, the link between them is cut or makes a mess of what it carries, batches are sent again, the
//! node's disk is full, and clocks jump. Afterwards the ledger has each answered request once, each other one at most
//! once, nothing that nobody sent, and a chain that is whole.
//!
//! `HOLM_FLEET_SEED` runs one seed, `HOLM_FLEET_SEEDS` so many new ones. Many more seeds, without processes, are run
//! beside the node's journal, see `HOLM_METER_SEEDS` there.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod callers;
mod ledger;
mod plan;
mod world;

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use holm_test_support::{function, is_slow, patience, random_below, require_kvm, seeds, skipped};
use holm_tests::get;
use serde_json::Value;

use callers::{Callers, Known, Requests};
use ledger::{Rows, Tally};
use plan::{Means, Plan};
use world::{NODE, World};

/// Runs at a time, each with processes of its own: they mostly wait.
const AT_A_TIME: usize = 4;
/// Seeds that are tried with the same processes and ledger, one after another.
const WITH_THE_SAME: usize = 7;
/// How long everything may take to be well again.
const RECOVERY: Duration = Duration::from_secs(60);

#[test]
fn kvm_after_any_faults_the_ledger_has_every_sent_request_that_was_answered_once_and_no_other_twice()
 {
    if !require_kvm() {
        return;
    }
    let (means, missing) = world::means();
    for why in &missing {
        skipped(why);
    }
    function("hello");
    let seeds: Vec<u64> = seeds("HOLM_FLEET_SEED", if is_slow() { 2 } else { 50 }).collect();
    let groups: VecDeque<Vec<u64>> = seeds.chunks(WITH_THE_SAME).map(<[u64]>::to_vec).collect();
    let (groups, failed) = (Mutex::new(groups), AtomicBool::new(false));
    let seen = Seen::default();
    let failures: Vec<String> = std::thread::scope(|scope| {
        let work = || loop {
            let group = groups.lock().unwrap().pop_front();
            let Some(group) = group.filter(|_| !failed.load(Ordering::Relaxed)) else {
                return Ok(());
            };
            run(&group, means, &seen).inspect_err(|_| failed.store(true, Ordering::Relaxed))?;
        };
        let at_a_time = if is_slow() { 1 } else { AT_A_TIME };
        let threads: Vec<_> = (0..at_a_time).map(|_| scope.spawn(work)).collect();
        let ended = threads.into_iter().map(|thread| thread.join().unwrap());
        ended.filter_map(Result::err).collect()
    });
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
    println!("{seen:?}");
    // So many seeds have seen everything, or it does not happen.
    if seeds.len() >= 50 {
        seen.everything(means);
    }
}

#[test]
fn kvm_a_node_whose_disk_is_full_turns_requests_away_before_one_of_them_is_lost() {
    if !require_kvm() {
        return;
    }
    let (means, missing) = world::means();
    if !means.disks {
        return skipped(&missing.join("; "));
    }
    let mut world = World::start(means, 1);
    let (requests, mut rows) = (Requests::default(), Rows::default());
    let address = world.fleet.address(NODE);
    world.fill_disk(true);
    // What is in memory for the records is used up first.
    let until = Instant::now() + patience(RECOVERY);
    let turned_away = || requests.send(&address, None).is_unmetered();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !turned_away() {
                    assert!(Instant::now() < until, "it takes whatever comes");
                }
            });
        }
    });
    // With no room for what it finds, it may start or not.
    world.fleet.kill_node(NODE);
    world.fleet.begin_node(NODE);
    std::thread::sleep(patience(Duration::from_secs(2)));
    world.fill_disk(false);
    let callers = Callers::start(&address, &requests, 1);
    let settled = settle(&mut world, callers, &requests, &mut rows, &Value::Null);
    let (_, tally) = settled.unwrap();
    println!("{tally}");
    assert!(tally.turned_away >= 4, "{tally}");
}

/// What happened, in all seeds.
#[derive(Debug, Default)]
struct Seen {
    resent: AtomicU64,
    doubled: AtomicU64,
    overtaken: AtomicU64,
    lost: AtomicU64,
    held: AtomicU64,
    not_started: AtomicU64,
    journal_full: AtomicU64,
    clocks_apart: AtomicU64,
    unanswered_entered: AtomicU64,
    refused: AtomicU64,
}

impl Seen {
    fn add(&self, world: &World, rows: &Rows, audit: &Value, tally: &Tally) {
        let counts = &world.relay.counts;
        for (of, by) in [
            (&self.resent, audit["resent"].as_u64().unwrap_or(0)),
            (&self.doubled, counts.doubled.load(Ordering::Relaxed)),
            (&self.overtaken, counts.overtaken.load(Ordering::Relaxed)),
            (&self.held, counts.held.load(Ordering::Relaxed)),
            (&self.not_started, world.not_started),
            (
                &self.journal_full,
                world.times_logged(NODE, "usage records cannot be added to the journal"),
            ),
            (&self.lost, counts.lost.load(Ordering::Relaxed)),
            (&self.clocks_apart, rows.at_another_time()),
            (&self.unanswered_entered, tally.unanswered_entered),
            (&self.refused, tally.refused),
        ] {
            of.fetch_add(by, Ordering::Relaxed);
        }
    }

    fn everything(&self, means: Means) {
        let saw = |what: &str, count: &AtomicU64| {
            assert!(count.load(Ordering::Relaxed) > 0, "no {what}: {self:?}");
        };
        saw("record was sent again", &self.resent);
        saw("datagram came twice", &self.doubled);
        saw("datagram overtook another", &self.overtaken);
        saw("datagram was lost", &self.lost);
        saw("datagram was held back", &self.held);
        saw(
            "request was carried out without an answer",
            &self.unanswered_entered,
        );
        saw("request was refused", &self.refused);
        if means.disks {
            saw("commit failed for a full disk", &self.journal_full);
        }
        if means.clocks {
            saw("record shows another time", &self.clocks_apart);
        }
    }
}

/// Tries some seeds, one after another, with the same processes.
fn run(seeds: &[u64], means: Means, seen: &Seen) -> Result<(), String> {
    let mut world = World::start(means, seeds[0]);
    let (requests, mut rows) = (Requests::default(), Rows::default());
    let (mut audit, mut before) = (Value::Null, Tally::default());
    for seed in seeds {
        let mut random = random_below(*seed);
        let plan = Plan::new(world.means(), &mut random);
        println!("seed {seed}: {plan}");
        let began = Instant::now();
        let tried = attempt(&mut world, &plan, *seed, &requests, &mut rows, &audit);
        let (found, tally) = tried.map_err(|why| {
            let (node, coordinator) = (world.fleet.log(NODE), world.fleet.log("coordinator"));
            format!(
                "seed {seed}, with the same processes as those before it of {seeds:?}: {plan}\n{why}\nthe node's log ends with\n{}\nthe \
                 coordinator's with\n{}",
                end_of(&node),
                end_of(&coordinator)
            )
        })?;
        let seconds = began.elapsed().as_secs_f64();
        println!("seed {seed}, {seconds:.1} s: {}", tally.since(&before));
        (audit, before) = (found, tally);
    }
    seen.add(&world, &rows, &audit, &before);
    Ok(())
}

/// One seed: faults under load, and then the reckoning.
fn attempt(
    world: &mut World,
    plan: &Plan,
    seed: u64,
    requests: &Requests,
    rows: &mut Rows,
    audited: &Value,
) -> Result<(Value, Tally), String> {
    let callers = Callers::start(&world.fleet.address(NODE), requests, seed);
    world.suffer(plan);
    settle(world, callers, requests, rows, audited)
}

/// When nothing is wrong any more: waits until callers are served and the ledger has all that it is to have. Gives the
/// audit, and what became of all requests so far.
fn settle(
    world: &mut World,
    callers: Callers,
    requests: &Requests,
    rows: &mut Rows,
    audited: &Value,
) -> Result<(Value, Tally), String> {
    let address = world.fleet.address(NODE);
    let until = Instant::now() + patience(RECOVERY);
    let answered = requests.known().len();
    let recovered = loop {
        world.mend()?;
        let known = requests.known();
        let since = known[answered..].iter();
        let answers = since.filter(|known| matches!(known, Known::Answered(_)));
        if answers.count() > 2 && get(world.fleet.http(), "/").is_some() {
            break Ok(());
        }
        if Instant::now() > until {
            break Err(format!("they do not serve again: {:?}", known.last()));
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    callers.stop();
    recovered?;
    // What was cut off is over by now, so what comes before this one's row is all that comes.
    let last = requests.send(&address, None);
    if !matches!(last, Known::Answered(_)) {
        return Err(format!("the last request was not answered: {last:?}"));
    }
    let known = requests.known();
    loop {
        rows.read_on(&world.fleet);
        let (count, complete) = (rows.all.len(), rows.have(&known));
        let reckoned = match complete {
            true => reckon(world, rows, &known, audited),
            false => Err("the ledger lacks what was answered".to_owned()),
        };
        if reckoned.is_ok() {
            return reckoned;
        }
        rows.read_on(&world.fleet);
        // It is as it stays, unless more came while it was looked at.
        let stays = complete && rows.all.len() == count;
        if stays || Instant::now() > until {
            rows.compare(&known)?;
            return reckoned;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn reckon(
    world: &World,
    rows: &Rows,
    known: &[Known],
    audited: &Value,
) -> Result<(Value, Tally), String> {
    let tally = rows.compare(known)?;
    rows.sums(&world.fleet)?;
    let audit = rows.audit(&world.fleet, audited)?;
    Ok((audit, tally))
}

/// The last lines of a log.
fn end_of(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}
