//! Somebody changes the coordinator's database by hand: what `holm usage audit` says of it, in words and by its status.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use holm_test_support::{guest, require_kvm};
use holm_tests::{Fleet, eventually, get};
use rusqlite::Connection;
use serde_json::Value;

/// A row like that of sequence 2, with other values.
fn copied(changes: &str) -> String {
    format!(
        "CREATE TEMP TABLE copied AS SELECT * FROM usage WHERE sequence = 2;
         UPDATE copied SET \"row\" = (SELECT max(\"row\") + 1 FROM usage), {changes};
         INSERT INTO usage SELECT * FROM copied;"
    )
}

#[test]
fn kvm_an_audit_names_what_was_changed_by_hand_in_the_ledger_and_fails() {
    if !require_kvm() {
        return;
    }
    let mut fleet = Fleet::with_nodes(&["a"]);
    fleet.deploy("state", &guest("state"), "");
    let address = fleet.address("a");
    // More than one batch.
    for wave in 1..=3 {
        for _ in 0..3 {
            let answer = get(&address, "/test/state/").unwrap();
            assert_eq!(answer.status, 200, "{answer:?}");
        }
        eventually("the ledger to have them", || {
            fleet.usage("state")["executions"] == 3 * wave
        });
    }
    let whole = audit(&fleet);
    assert_eq!(
        (whole.status, whole.found["whole"].as_bool()),
        (0, Some(true)),
        "{whole:?}"
    );
    assert!(whole.words.ends_with("the ledger is whole\n"), "{whole:?}");
    assert!(whole.found["batches"].as_u64() >= Some(3), "{whole:?}");
    let epoch = whole.found["journals"][0]["boot_epoch"].to_string();
    let last = whole.found["journals"][0]["last"].as_u64().unwrap();
    fleet.kill_node("a");

    let replayed = copied(&format!("sequence = {}", last + 1));
    let put_in = copied(&format!(
        "sequence = {}, request = randomblob(16)",
        last + 1
    ));
    let middle = "(SELECT first FROM usage_batches ORDER BY first LIMIT 1 OFFSET 1)";
    let cases = [
        (
            "UPDATE usage SET cpu_ns = cpu_ns + 1 WHERE sequence = 2".to_owned(),
            "changed",
            format!("changed: {epoch}/2 to 2 of node a: the row is not the record that the node signed"),
        ),
        (
            "DELETE FROM usage WHERE sequence = 2".to_owned(),
            "removed",
            format!("removed: {epoch}/2 to 2 of node a: the node signed it, and its row is not there"),
        ),
        (
            put_in,
            "put_in",
            format!("put in: {epoch}/{0} to {0} of node a: the row is in no batch", last + 1),
        ),
        (
            replayed,
            "replayed",
            format!("replayed: {epoch}/{0} to {0} of node a: ", last + 1),
        ),
        (
            format!("UPDATE usage_batches SET signature = zeroblob(70) WHERE first = {middle}"),
            "signature",
            "not signed: ".to_owned(),
        ),
        (
            format!("UPDATE usage_batches SET hash = zeroblob(32) WHERE first = {middle}"),
            "batch",
            "batch changed: ".to_owned(),
        ),
        (
            format!(
                "CREATE TEMP TABLE gone AS SELECT first, last FROM usage_batches WHERE first = {middle};
                 DELETE FROM usage WHERE sequence BETWEEN (SELECT first FROM gone) AND (SELECT last FROM gone);
                 DELETE FROM usage_batches WHERE first = (SELECT first FROM gone);"
            ),
            "gap",
            "gap: ".to_owned(),
        ),
        (
            "UPDATE usage_sums SET request_bytes = request_bytes + 1".to_owned(),
            "sums",
            "sums: of node a: ".to_owned(),
        ),
    ];
    for (by_hand, fault, named) in cases {
        with_database_changed(&mut fleet, &by_hand, |fleet| {
            let audit = audit(fleet);
            assert_eq!(audit.status, 1, "{by_hand}: {audit:?}");
            assert!(
                audit.words.contains(&format!("\n{named}")),
                "{by_hand}: {named}: {audit:?}"
            );
            assert!(
                audit.words.ends_with("THE LEDGER IS NOT WHOLE\n"),
                "{by_hand}: {audit:?}"
            );
            assert_eq!(audit.found["whole"], false, "{by_hand}: {audit:?}");
            let problems = audit.found["problems"].as_array().unwrap();
            let listed = |of: &Value| of["fault"] == fault && of["node"] == "a";
            assert!(problems.iter().any(listed), "{by_hand}: {audit:?}");
        });
    }
    let healed = audit(&fleet);
    assert_eq!(
        (healed.status, &healed.found),
        (0, &whole.found),
        "{healed:?}"
    );
}

/// How an audit ends: what it tells people, and programs.
#[derive(Debug)]
struct Audit {
    status: i32,
    words: String,
    found: Value,
}

fn audit(fleet: &Fleet) -> Audit {
    let for_people = fleet.holm_for_people(&["usage", "audit"]);
    let for_programs = fleet.holm(&["usage", "audit"]);
    assert_eq!(for_people.status, for_programs.status, "{for_people:?}");
    Audit {
        status: for_people.status,
        words: for_people.stdout,
        found: serde_json::from_str(&for_programs.stdout).unwrap(),
    }
}

/// Does `look` while the database has been changed by these statements, and then makes it as it was.
fn with_database_changed(fleet: &mut Fleet, by_hand: &str, look: impl FnOnce(&Fleet)) {
    let database = fleet.path("coordinator/coordinator.db");
    let kept = fleet.path("kept.sqlite");
    fleet.kill_coordinator();
    let connection = Connection::open(&database).unwrap();
    connection.execute("VACUUM INTO ?1", [&kept]).unwrap();
    connection.execute_batch(by_hand).unwrap();
    drop(connection);
    fleet.start_coordinator();
    look(fleet);
    fleet.kill_coordinator();
    for beside in ["-wal", "-shm"] {
        // They are there if it was killed.
        let _ = std::fs::remove_file(format!("{database}{beside}"));
    }
    std::fs::rename(&kept, &database).unwrap();
    fleet.start_coordinator();
}
