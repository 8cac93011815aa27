//! Functions that misbehave, nodes that are killed: who is told what, and that nothing is lost.

use std::time::{Duration, Instant};

use holm_test_support::{guest, require_kvm};
use holm_tests::{Fleet, eventually, get};

const LIMITS: &str = "[limits]\nmemory = \"16MiB\"\ndeadline = \"1s\"\nresponse_body = \"1MiB\"\n";

/// Waits until the ledger has `executions` of `test/NAME`, and checks that it is whole.
fn settle(fleet: &Fleet, name: &str, executions: u64) {
    eventually("the ledger to have every execution", || {
        fleet.usage(name)["executions"] == executions
    });
    let audit = fleet.holm(&["usage", "audit"]).ok();
    assert_eq!(audit["whole"], true, "{audit}");
    assert_eq!(
        (&audit["missing"], &audit["duplicates"]),
        (&0.into(), &0.into())
    );
}

#[test]
fn kvm_a_function_that_loops_gets_504_and_others_keep_answering() {
    if !require_kvm() {
        return;
    }
    let fleet = Fleet::with_nodes(&["a"]);
    fleet.deploy("loops", &guest("loops"), LIMITS);
    fleet.deploy("other", &guest("state"), LIMITS);
    let address = fleet.address("a");

    let loops: Vec<_> = (0..3)
        .map(|_| {
            let address = address.clone();
            std::thread::spawn(move || {
                let started = Instant::now();
                (get(&address, "/test/loops/").unwrap(), started.elapsed())
            })
        })
        .collect();
    // Long enough for all of them to be at it.
    std::thread::sleep(Duration::from_millis(200));
    let mut meanwhile = 0;
    while !loops.iter().any(|thread| thread.is_finished()) {
        let answer = get(&address, "/test/other/").unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
        meanwhile += 1;
    }
    assert!(
        meanwhile >= 5,
        "only {meanwhile} answers while three requests looped"
    );
    for thread in loops {
        let (answer, took) = thread.join().unwrap();
        assert_eq!(answer.status, 504, "{answer:?}");
        assert!(answer.body.contains("test/loops") && answer.body.contains("deadline"));
        assert!(
            answer
                .header("proxy-status")
                .is_some_and(|s| s.contains("http_response_timeout"))
        );
        assert!(
            took >= Duration::from_secs(1),
            "before its deadline: {took:?}"
        );
    }
    // And itself, too, once it does not loop.
    assert_eq!(get(&address, "/test/loops/ok").unwrap().status, 200);

    settle(&fleet, "loops", 4);
    settle(&fleet, "other", meanwhile);
    assert_eq!(fleet.usage("loops")["timeouts"], 3);
}

#[test]
fn kvm_whatever_a_function_does_its_caller_gets_502_that_names_it_and_the_next_one_an_answer() {
    if !require_kvm() {
        return;
    }
    let fleet = Fleet::with_nodes(&["a"]);
    let address = fleet.address("a");
    let ways = [
        ("dereferences-null", "/"),
        ("executes-hlt", "/"),
        ("executes-stack", "/"),
        ("exhausts-memory", "/"),
        ("stack-overflow", "/"),
        ("writes-code", "/"),
        ("closes-unanswered", "/"),
        ("malformed-response", "/garbage"),
        ("oversized-response", "/body/16777216"),
        ("bad-hostcall", "/head_wild"),
    ];
    for (name, path) in ways {
        fleet.deploy(name, &guest(&name.replace('-', "_")), LIMITS);
        let answer = get(&address, &format!("/test/{name}{path}")).unwrap();
        assert_eq!(answer.status, 502, "{name}: {answer:?}");
        assert!(answer.body.contains(&format!("test/{name}")), "{answer:?}");
        assert_eq!(
            answer.header("content-type"),
            Some("application/problem+json"),
            "{name}"
        );
        assert!(
            answer.header("x-request-id").is_some(),
            "{name}: {answer:?}"
        );
        let next = get(&address, &format!("/test/{name}/ok")).unwrap();
        assert_eq!((next.status, next.body.as_str()), (200, "ok\n"), "{name}");
    }
    // The operator finds where it crashed.
    let log = fleet.log("a");
    assert!(
        log.contains("reads_through_null"),
        "the crash report names the symbol:\n{log}"
    );
    for (name, _) in ways {
        settle(&fleet, name, 2);
        let usage = fleet.usage(name);
        assert_eq!(
            (&usage["crashes"], &usage["answered"]),
            (&1.into(), &1.into()),
            "{usage}"
        );
    }
}

#[test]
fn kvm_the_command_says_that_a_function_crashed_and_ends_with_3() {
    if !require_kvm() {
        return;
    }
    let fleet = Fleet::with_nodes(&["a"]);
    fleet.deploy("bad", &guest("executes_hlt"), LIMITS);
    let good = fleet.holm(&["invoke", "test/bad", "--path", "/ok"]).ok();
    assert_eq!((&good["status"], &good["node"]), (&200.into(), &"a".into()));
    let bad = fleet.holm(&["invoke", "test/bad"]);
    assert_eq!(bad.status, 3, "{bad:?}");
    assert_eq!(bad.json()["status"], 502);
    let nowhere = fleet.holm(&["invoke", "test/nothing"]).error(5);
    assert!(nowhere.contains("test/nothing"), "{nowhere}");
}

#[test]
fn kvm_a_node_that_is_restarted_without_its_coordinator_keeps_serving_and_loses_nothing() {
    if !require_kvm() {
        return;
    }
    let mut fleet = Fleet::with_nodes(&["a"]);
    fleet.deploy("state", &guest("state"), LIMITS);
    let address = fleet.address("a");
    let ask = |count: u64| {
        for _ in 0..count {
            let answer = get(&address, "/test/state/").unwrap();
            assert_eq!(answer.status, 200, "{answer:?}");
        }
    };
    ask(5);
    fleet.kill_coordinator();
    ask(5);
    fleet.kill_node("a");
    assert!(
        get(&address, "/test/state/").is_none(),
        "nobody answers for a killed node"
    );
    fleet.start_node("a");
    eventually("the node to serve what it had", || {
        let answer = get(&address, "/test/state/").unwrap();
        assert!([200, 503].contains(&answer.status), "{answer:?}");
        answer.status == 200
    });
    ask(5);
    fleet.start_coordinator();
    eventually("the node to find its coordinator again", || {
        fleet.holm(&["nodes", "list"]).ok()[0]["connected"] == true
    });
    ask(5);
    settle(&fleet, "state", 5 + 5 + 1 + 5 + 5);
}

#[test]
fn kvm_the_next_nearest_node_answers_for_one_that_was_killed() {
    if !require_kvm() {
        return;
    }
    let mut fleet = Fleet::with_nodes(&["a", "b"]);
    fleet.deploy("state", &guest("state"), LIMITS);
    let first = fleet.holm(&["invoke", "test/state"]).ok();
    assert_eq!(
        first["node"], "a",
        "of two equally near, the first by name: {first}"
    );
    fleet.kill_node("a");
    let next = fleet.holm(&["invoke", "test/state"]).ok();
    assert_eq!((&next["status"], &next["node"]), (&200.into(), &"b".into()));
    assert_eq!(next["attempts"][0]["outcome"], "not_sent", "{next}");
}
