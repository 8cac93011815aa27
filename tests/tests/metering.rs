//! Seeded fault runs of a whole fleet: node and coordinator are killed at any moment, under load. In the end the ledger
//! has every answered request once, and whoever audits it finds each as the node signed it.
//!
//! `HOLM_FLEET_SEED` runs one seed, `HOLM_FLEET_SEEDS` so many new ones. Many more seeds, without processes, are run
//! beside the node's journal, see `HOLM_METER_SEEDS` there.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use holm_test_support::{guest, is_slow, random_below, require_kvm, seeds};
use holm_tests::{Fleet, eventually, get};

const CALLERS: usize = 2;

#[test]
fn kvm_after_any_kills_the_ledger_has_every_answered_request_once_and_each_as_it_was_signed() {
    if !require_kvm() {
        return;
    }
    for seed in seeds("HOLM_FLEET_SEED", if is_slow() { 1 } else { 2 }) {
        run(seed);
    }
}

fn run(seed: u64) {
    println!("seed {seed}");
    let mut random = random_below(seed);
    let mut fleet = Fleet::with_nodes(&["a"]);
    fleet.deploy("state", &guest("state"), "");
    let address = fleet.address("a");
    let sent = Arc::new(AtomicU64::new(0));
    let over = Arc::new(AtomicBool::new(false));
    let answered = Arc::new(Mutex::new(BTreeMap::new()));
    let callers: Vec<_> = (0..CALLERS)
        .map(|_| {
            let (address, sent, over) = (address.clone(), sent.clone(), over.clone());
            let answered = answered.clone();
            std::thread::spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    sent.fetch_add(1, Ordering::Relaxed);
                    let answer = get(&address, "/test/state/");
                    match answer.as_ref().filter(|answer| answer.status == 200) {
                        Some(answer) => {
                            let id = answer.header("x-request-id").unwrap().trim().to_owned();
                            answered.lock().unwrap().insert(id, 0);
                        }
                        // It is down at the moment.
                        None => std::thread::sleep(Duration::from_millis(5)),
                    }
                }
            })
        })
        .collect();
    for _ in 0..4 {
        std::thread::sleep(Duration::from_millis(50 + random(600)));
        let (node, coordinator) = [(true, false), (false, true), (true, true)][random(3) as usize];
        if node {
            fleet.kill_node("a");
        }
        if coordinator {
            fleet.kill_coordinator();
        }
        std::thread::sleep(Duration::from_millis(random(300)));
        if coordinator {
            fleet.start_coordinator();
        }
        if node {
            fleet.start_node("a");
        }
    }
    eventually("the node to answer again", || {
        get(&address, "/test/state/").is_some_and(|answer| answer.status == 200)
    });
    over.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.join().unwrap();
    }
    let count = answered.lock().unwrap().len() as u64;
    assert!(count > 0, "seed {seed}: nobody was answered");
    // What is in the journal is uploaded until nothing more comes.
    let mut before = 0;
    eventually("the ledger to have every answered request", || {
        let rows = fleet.holm(&["usage", "audit"]).ok()["rows"]
            .as_u64()
            .unwrap();
        let settled = rows == before && fleet.usage("state")["executions"].as_u64() >= Some(count);
        before = rows;
        settled
    });
    let audit = fleet.holm(&["usage", "audit"]).ok();
    assert_eq!(audit["whole"], true, "seed {seed}: {audit}");
    assert_eq!(audit["unchained"], 0, "seed {seed}: {audit}");
    assert!(audit["batches"].as_u64() > Some(0), "seed {seed}: {audit}");

    fleet.kill_coordinator();
    let (state, file) = (fleet.path("coordinator"), fleet.path("export.jsonl"));
    fleet
        .holm(&["coordinator", "--state-dir", &state, "export", &file])
        .ok();
    let export = std::fs::read_to_string(&file).unwrap();
    let mut answered = answered.lock().unwrap();
    let mut rows = 0;
    for line in export.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        if line[0] == "usage" {
            rows += 1;
            // A request that was cut off is in the ledger with an id that no caller knows.
            let id = line[5].as_str().unwrap().trim_start_matches('x');
            if let Some(count) = answered.get_mut(id) {
                *count += 1;
            }
        }
    }
    let wrong: Vec<_> = answered.iter().filter(|(_, count)| **count != 1).collect();
    assert!(wrong.is_empty(), "seed {seed}: {wrong:?} of {rows} rows");
    // Beside callers' requests there is a probe for each start of the node, and one of ours.
    assert!(
        rows <= sent.load(Ordering::Relaxed) + 8,
        "seed {seed}: {rows} rows"
    );
    println!(
        "seed {seed}: {count} of {} answered, {rows} rows",
        sent.load(Ordering::Relaxed)
    );
}
