//! Budgets that hold, with real processes: while all goes well, while nodes are cut off, and after they were killed.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use holm_test_support::{guest, random_below, require_kvm, seeds};
use holm_tests::{Answer, Fleet, eventually, get};
use serde_json::Value;

fn show(fleet: &Fleet, scope: &str) -> Value {
    fleet.holm(&["budgets", "show", scope]).ok()
}

/// Billionths.
fn nanos(amount: &Value) -> u64 {
    let (whole, part) = amount.as_str().unwrap().split_once('.').unwrap();
    format!("{whole}{part:0<9}").parse().unwrap()
}

fn ask(fleet: &Fleet, node: &str) -> Answer {
    get(&fleet.address(node), "/test/state/").unwrap()
}

/// Asks until so many refusals have come in a row; returns how many were answered.
fn drive(fleet: &Fleet, nodes: &[&str], refusals: usize) -> u64 {
    let (mut answered, mut refused) = (0, 0);
    for turn in 0.. {
        let answer = ask(fleet, nodes[turn % nodes.len()]);
        match answer.status {
            200 => (answered, refused) = (answered + 1, 0),
            429 => refused += 1,
            _ => panic!("{answer:?}"),
        }
        assert!(answered < 1000, "nothing holds");
        if refused == refusals {
            break;
        }
    }
    answered
}

fn confirmed(fleet: &Fleet, scope: &str) {
    eventually("every node to keep to the budget", || {
        show(fleet, scope)["overshoot"]["unconfirmed"] == serde_json::json!([])
    });
}

/// Asserts what the printed overshoot promises, by the ledger.
fn assert_held(fleet: &Fleet, scope: &str, answered: u64) {
    eventually("the ledger to have every answer", || {
        fleet.usage("state")["billed"]["requests"].as_u64() >= Some(answered)
    });
    let view = show(fleet, scope);
    let most = nanos(&view["amount"]) + nanos(&view["overshoot"]["most"]);
    assert!(nanos(&view["spent"]) <= most, "{view}");
    assert_eq!(nanos(&view["spent"]), answered * 10_000_000, "{view}");
}

#[test]
fn kvm_a_hard_cap_holds_and_says_so() {
    if !require_kvm() {
        return;
    }
    let mut fleet = Fleet::with_nodes(&["a"]);
    fleet.deploy("state", &guest("state"), "");
    let unpriced = fleet
        .holm(&["budgets", "set", "test/state", "--amount", "1"])
        .error(5);
    assert!(unpriced.contains("holm prices set"), "{unpriced}");
    fleet.price(&[]).ok();
    for bad in [
        ["budgets", "set", "nobody", "--amount", "1"],
        ["budgets", "set", "test/nothing", "--amount", "1"],
    ] {
        fleet.holm(&bad).error(5);
    }
    let set = [
        "budgets",
        "set",
        "test/state",
        "--amount",
        "0.07",
        "--alerts",
        "50,100",
    ];
    fleet.holm(&set).ok();
    confirmed(&fleet, "test/state");
    assert_eq!(drive(&fleet, &["a"], 4), 7);
    let refused = ask(&fleet, "a");
    assert_eq!(
        refused.header("content-type"),
        Some("application/problem+json")
    );
    assert!(
        refused.body.contains("/problems/budget-spent"),
        "{refused:?}"
    );
    let wait: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=31 * 86_400).contains(&wait));
    assert_held(&fleet, "test/state", 7);
    eventually("both alerts", || {
        show(&fleet, "test/state")["crossed"]
            .as_array()
            .map(Vec::len)
            == Some(2)
    });
    let audit = fleet.holm(&["audit", "log"]).ok().to_string();
    eventually("the alerts to be in the audit log", || {
        let audit = fleet.holm(&["audit", "log"]).ok().to_string();
        audit.matches("budget.alert").count() == 2
    });
    assert!(audit.contains("budget.set"), "{audit}");

    // What was spent is not given out again.
    fleet.kill_node("a");
    fleet.start_node("a");
    eventually("the function to be there again", || {
        ask(&fleet, "a").status != 503
    });
    assert_eq!(drive(&fleet, &["a"], 3), 0);
    let shed = fleet.usage("state");
    eventually("refusals to be on record as shed", || {
        fleet.usage("state")["shed"].as_u64() >= Some(3)
    });
    assert_eq!(shed["billed"]["requests"], 7, "{shed}");

    // More is there as soon as there is more.
    fleet
        .holm(&["budgets", "set", "test/state", "--amount", "0.09"])
        .ok();
    eventually("the function to be served again", || {
        ask(&fleet, "a").status == 200
    });
    assert_eq!(drive(&fleet, &["a"], 4), 1);
    fleet.holm(&["budgets", "remove", "test/state"]).ok();
    eventually("the function to be free again", || {
        ask(&fleet, "a").status == 200
    });
    fleet.holm(&["budgets", "show", "test/state"]).error(5);
}

#[test]
fn kvm_a_hard_cap_holds_while_nodes_are_cut_off_and_start_anew() {
    if !require_kvm() {
        return;
    }
    let mut fleet = Fleet::with_nodes(&["a", "b"]);
    fleet.deploy("state", &guest("state"), "[limits]\nconcurrency = 2\n");
    fleet.price(&[]).ok();
    fleet
        .holm(&["budgets", "set", "test", "--amount", "0.40"])
        .ok();
    confirmed(&fleet, "test");
    let mut answered = 0;
    for node in ["a", "b"] {
        assert_eq!(ask(&fleet, node).status, 200);
        answered += 1;
    }
    fleet.kill_coordinator();
    let alone = drive(&fleet, &["a", "b"], 6);
    assert!(alone > 0, "a node that is cut off goes on");
    assert!(answered + alone < 40, "but not beyond its slice");
    answered += alone;
    fleet.kill_node("b");
    fleet.start_node("b");
    eventually("the function to be there again", || {
        ask(&fleet, "b").status != 503
    });
    assert_eq!(drive(&fleet, &["b"], 3), 0, "it has spent its slice");
    fleet.start_coordinator();
    eventually("more budget to come", || {
        let served = ["a", "b"]
            .iter()
            .filter(|node| ask(&fleet, node).status == 200)
            .count();
        answered += served as u64;
        served == 2
    });
    // The last cent may be with either, or on its way.
    eventually("all of it to be spent", || {
        answered += drive(&fleet, &["a", "b"], 4);
        answered >= 40
    });
    assert_eq!(answered + drive(&fleet, &["a", "b"], 12), 40, "and no more");
    assert_held(&fleet, "test", answered);
}

/// Seeded: nodes and coordinator are killed at any moment, under load, until all of a budget is spent.
/// `HOLM_FLEET_SEED` runs one seed, `HOLM_FLEET_SEEDS` so many new ones.
#[test]
fn kvm_after_any_kills_no_more_is_spent_than_the_printed_overshoot_allows() {
    if !require_kvm() {
        return;
    }
    for seed in seeds("HOLM_FLEET_SEED", 1) {
        run(seed);
    }
}

fn run(seed: u64) {
    println!("seed {seed}");
    let mut random = random_below(seed);
    let mut fleet = Fleet::with_nodes(&["a", "b"]);
    fleet.deploy("state", &guest("state"), "[limits]\nconcurrency = 4\n");
    let more = ["--memory", "1", "--cpu", "1", "--egress", "0.09"];
    fleet.price(&more).ok();
    fleet
        .holm(&["budgets", "set", "test", "--amount", "6"])
        .ok();
    confirmed(&fleet, "test");
    let addresses = ["a", "b"].map(|node| fleet.address(node));
    let over = Arc::new(AtomicBool::new(false));
    let answered = Arc::new(AtomicU64::new(0));
    let callers: Vec<_> = (0..6)
        .map(|caller| {
            let address = addresses[caller % 2].clone();
            let (over, answered) = (over.clone(), answered.clone());
            std::thread::spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    match get(&address, "/test/state/") {
                        Some(answer) if answer.status == 200 => {
                            answered.fetch_add(1, Ordering::Relaxed);
                        }
                        // It is down, or has nothing to spend.
                        _ => std::thread::sleep(Duration::from_millis(10)),
                    }
                }
            })
        })
        .collect();
    for _ in 0..4 {
        std::thread::sleep(Duration::from_millis(50 + random(600)));
        let what = random(4);
        let node = ["a", "b"][random(2) as usize];
        if what != 0 {
            fleet.kill_node(node);
        }
        if what < 2 {
            fleet.kill_coordinator();
        }
        std::thread::sleep(Duration::from_millis(random(500)));
        if what != 0 {
            fleet.start_node(node);
        }
        if what < 2 {
            fleet.start_coordinator();
        }
    }
    eventually("the budget to be spent", || {
        let spent = |node: &&str| {
            get(&fleet.address(node), "/test/state/").is_some_and(|answer| answer.status == 429)
        };
        !show(&fleet, "test")["exhausted_ms"].is_null() && ["a", "b"].iter().all(spent)
    });
    over.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.join().unwrap();
    }
    let mut before = Value::Null;
    eventually("the ledger to have all of it", || {
        let usage = fleet.usage("state");
        let requests = usage["billed"]["requests"].as_u64();
        let settled = usage == before && requests >= Some(answered.load(Ordering::Relaxed));
        before = usage;
        settled
    });
    let audit = fleet.holm(&["usage", "audit"]).ok();
    assert_eq!(audit["whole"], true, "seed {seed}: {audit}");
    let view = show(&fleet, "test");
    let (amount, spent) = (nanos(&view["amount"]), nanos(&view["spent"]));
    let most = amount + nanos(&view["overshoot"]["most"]);
    println!(
        "seed {seed}: {} of {}, at most {most}",
        view["spent"], view["amount"]
    );
    assert!(spent <= most, "seed {seed}: {view}");
    // What is left over pays for no more than a request or two on each node.
    let need = nanos(&view["nodes"][0]["reserves"]);
    assert!(spent + 5 * need > amount, "seed {seed}: {view}");
    // By the bill as well, which is rounded otherwise.
    let bill = fleet.holm(&["usage", "bill", "--tenant", "test"]).ok();
    assert!(
        nanos(&bill["totals"][0]["total"]) <= most + 4,
        "seed {seed}: {bill}"
    );
}
