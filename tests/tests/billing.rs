//! What usage costs, from the request to a receipt that a tenant verifies alone.

use holm_test_support::{guest, require_kvm};
use holm_tests::{Fleet, eventually, get};

#[test]
fn kvm_a_tenant_is_billed_for_what_ran_and_can_verify_it_alone() {
    if !require_kvm() {
        return;
    }
    let fleet = Fleet::with_nodes(&["a"]);
    fleet.deploy("state", &guest("state"), "");
    let free = fleet.holm(&["usage", "bill", "--tenant", "test"]).ok();
    assert_eq!(free["totals"].as_array().map(Vec::len), Some(0), "{free}");

    // A cent a request, from this hour on, since there was no price before.
    let plan = fleet.price(&[]).ok();
    assert_eq!(
        (&plan["version"], &plan["prices"]["million_requests"]),
        (&1.into(), &"10000.00".into())
    );
    let mut ids = Vec::new();
    for _ in 0..7 {
        let answer = get(&fleet.address("a"), "/test/state/").unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
        ids.push(answer.header("x-request-id").unwrap().to_owned());
    }
    // Not the probe, which is not billed.
    eventually("the ledger to have every request", || {
        fleet.usage("state")["executions"] == 7
    });

    let explained = fleet.holm(&["explain", &ids[3]]).ok();
    let row = &explained[0];
    assert_eq!(row["cost"]["requests"], "0.01", "{explained}");
    assert_eq!(
        (&row["node"], &row["record"]["outcome"]),
        (&"a".into(), &"answered".into())
    );
    assert_eq!(row["billed"]["requests"], 1);
    let unknown = fleet.holm(&["explain", &"ab".repeat(16)]).error(5);
    assert!(unknown.contains("has no request"), "{unknown}");

    let receipt = fleet.path("receipt.json");
    // By the hour: what ran in the hour in which there was a price. Tests may run over its end.
    let bill = fleet
        .holm(&["usage", "bill", "--tenant", "test", "--receipt", &receipt])
        .ok();
    assert_eq!(bill["totals"][0]["total"], "0.07", "{bill}");
    let signed: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&receipt).unwrap()).unwrap();
    let log = fleet.log("coordinator");
    let authority = log
        .split("authority=")
        .nth(1)
        .and_then(|rest| rest.split_whitespace().next())
        .unwrap();
    let verified = fleet
        .holm(&["usage", "verify", &receipt, "--authority", authority])
        .ok();
    assert_eq!(verified, bill);
    let other = format!("sha256:{}", "00".repeat(32));
    let theirs = fleet
        .holm(&["usage", "verify", &receipt, "--authority", &other])
        .error(1);
    assert!(theirs.contains("of another fleet"), "{theirs}");
    let cheaper = signed["bill"].as_str().unwrap().replace("0.07", "0.01");
    let mut forged = signed;
    forged["bill"] = cheaper.into();
    std::fs::write(&receipt, forged.to_string()).unwrap();
    let forged = fleet
        .holm(&["usage", "verify", &receipt, "--authority", authority])
        .error(1);
    assert!(forged.contains("was changed, or is forged"), "{forged}");

    // New prices begin with the next hour.
    let past = fleet
        .holm(&[
            "prices",
            "set",
            "standard",
            "--currency",
            "EUR",
            "--from",
            "2020-01-01",
        ])
        .error(5);
    assert!(past.contains("keeps its price"), "{past}");
    let next = fleet
        .holm(&[
            "prices",
            "set",
            "standard",
            "--currency",
            "EUR",
            "--requests",
            "1",
        ])
        .ok();
    assert_eq!(next["version"], 2);
    fleet
        .holm(&["prices", "assign", "test", "nothing"])
        .error(5);
    fleet.holm(&["prices", "assign", "test", "standard"]).ok();
    let listed = fleet.holm(&["prices", "list"]).ok();
    assert_eq!(
        (
            listed["plans"].as_array().map(Vec::len),
            &listed["assignments"][0]["tenant"]
        ),
        (Some(2), &"test".into())
    );

    // Sums by time are the same executions.
    let by_hour = fleet.holm(&["usage", "--by", "hour", "--since", "2h"]).ok();
    let all: u64 = by_hour
        .as_array()
        .unwrap()
        .iter()
        .map(|hour| hour["executions"].as_u64().unwrap())
        .sum();
    assert_eq!(all, 7, "{by_hour}");
    assert_eq!(
        fleet
            .holm(&["usage", "--by", "tenant", "--until", "2h"])
            .ok(),
        serde_json::json!([])
    );
    for bad in [
        ["--since", "yesterday"],
        ["--by", "week"],
        ["--until", "-1h"],
    ] {
        let args = ["usage", bad[0], bad[1]];
        fleet.holm(&args).error(2);
    }
}
