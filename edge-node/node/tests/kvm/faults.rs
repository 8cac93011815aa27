//! What functions do wrong is theirs, and told.

use std::time::{Duration, Instant};

use holm_model::usage::Outcome;
use holm_test_support::require_kvm;

use crate::common::coordinator::Coordinator;
use crate::common::http::{get, problem, text};
use crate::common::program::{Broken, Version, desired};
use crate::common::{node, shutdown, until};
use crate::{outcomes, routed, serving};

#[tokio::test(flavor = "multi_thread")]
async fn kvm_every_fault_of_a_function_is_answered_as_its_own_and_others_are_served() {
    if !require_kvm() {
        return;
    }
    let v1 = Version::with("v1", 1, Broken::No, |statement| {
        statement.manifest.limits.deadline_ms = 1000;
    });
    let (coordinator, _dir, node) = serving(&v1).await;
    let faults = [
        ("crash", 502, "http_response_incomplete", Outcome::Crash),
        ("exit", 502, "http_response_incomplete", Outcome::Crash),
        ("garbage", 502, "", Outcome::Crash),
        ("large", 502, "http_protocol_error", Outcome::Crash),
        ("loop", 504, "http_response_timeout", Outcome::Timeout),
    ];
    for (path, status, error, _) in faults {
        let answer = get(node.addr(), &format!("/acme/hello/{path}")).await;
        let problem = problem(&answer);
        assert_eq!(answer.status(), status, "{path}: {}", problem.detail);
        assert!(problem.detail.contains("acme/hello"), "{}", problem.detail);
        let blamed = answer.headers()["proxy-status"].to_str().unwrap();
        assert!(
            blamed.starts_with("\"n1\"; error=") && blamed.contains(error),
            "{path}: {blamed}"
        );
        assert_eq!(text(&get(node.addr(), "/acme/hello/").await), "v1");
    }
    assert_eq!(get(node.addr(), "/acme/hello/error").await.status(), 500);
    let mut counted = outcomes(&coordinator, 11).await;
    counted.sort_unstable();
    let mut expected = vec![Outcome::Answered; 5];
    expected.extend(faults.map(|(.., outcome)| outcome));
    expected.push(Outcome::FunctionError);
    expected.sort_unstable();
    assert_eq!(counted, expected);
    shutdown(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kvm_a_function_that_loops_does_not_starve_the_others() {
    if !require_kvm() {
        return;
    }
    let looping = Version::new("looping", 1);
    let other = Version::with("other", 1, Broken::No, |statement| {
        statement.function = "acme/other".parse().unwrap();
    });
    let coordinator = Coordinator::start().await;
    let dir = tempfile::tempdir().unwrap();
    let node = node(&coordinator, dir.path()).await;
    coordinator.add_artifact(&looping);
    coordinator.add_artifact(&other);
    let mut wanted = desired(1, &looping, None);
    wanted.functions.extend(desired(1, &other, None).functions);
    coordinator.want(wanted);
    routed(&coordinator, &looping).await;
    routed(&coordinator, &other).await;

    let address = node.addr();
    let mut loops = tokio::task::JoinSet::new();
    for _ in 0..16 {
        loops.spawn(async move { get(address, "/acme/hello/loop").await.status() });
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    let began = Instant::now();
    for _ in 0..10 {
        assert_eq!(text(&get(address, "/acme/other/").await), "other");
    }
    assert!(
        began.elapsed() < Duration::from_millis(1500),
        "took {:?}",
        began.elapsed()
    );
    assert!(loops.join_all().await.iter().all(|status| *status == 504));
    shutdown(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kvm_the_coordinator_hears_how_invocations_went() {
    if !require_kvm() {
        return;
    }
    let v1 = Version::new("v1", 1);
    let (coordinator, _dir, node) = serving(&v1).await;
    for path in ["", "", "error", "crash"] {
        get(node.addr(), &format!("/acme/hello/{path}")).await;
    }
    let counted = || {
        let state = coordinator.state();
        let mut sums = std::collections::BTreeMap::new();
        for version in state.reports.iter().flat_map(|report| &report.versions) {
            assert_eq!(version.version, v1.signed.id());
            for (outcome, count) in &version.outcomes {
                *sums.entry(*outcome).or_insert(0) += count;
            }
        }
        sums
    };
    let expected = [
        (Outcome::Answered, 2),
        (Outcome::FunctionError, 1),
        (Outcome::Crash, 1),
    ];
    until("all four are reported", || counted() == expected.into()).await;
    until("all slots are free again", || {
        coordinator
            .state()
            .reports
            .last()
            .is_some_and(|report| report.free_slots == 8)
    })
    .await;
    until("why one crashed is told, with its request", || {
        let state = coordinator.state();
        let told = state
            .logs
            .iter()
            .filter(|entry| entry.failed)
            .collect::<Vec<_>>();
        let of = |request| {
            state
                .ledger
                .iter()
                .any(|row| row.request == request && row.outcome == Outcome::Crash)
        };
        told.len() == 1 && told[0].text.contains("called by") && of(told[0].request)
    })
    .await;
    let hello = coordinator.state().hello.clone().unwrap();
    assert_eq!(hello.ingress_url, format!("http://{}", node.addr()));
    let of_the_ledger = coordinator.state().ledger[0].boot_epoch;
    assert_eq!(
        (hello.region.as_str(), hello.boot_epoch),
        ("test", of_the_ledger)
    );
    shutdown(node).await;
}
