//! The end of a node, orderly or not.

use std::collections::BTreeSet;
use std::time::Duration;

use holm_model::control::VersionState;
use holm_model::usage::Outcome;
use holm_test_support::require_kvm;

use crate::common::coordinator::Coordinator;
use crate::common::http::{Client, get, problem, text};
use crate::common::program::{Broken, Version, desired};
use crate::common::{config, join, shutdown, start, until};
use crate::{outcomes, routed, serving};

/// A node in a process of its own, for tests that kill it. Not a test: it runs until then.
#[test]
#[ignore = "run by another test as a process"]
fn node_process() {
    let Ok(dir) = std::env::var("HOLM_TEST_NODE_DIR") else {
        return;
    };
    holm_node::run(config(std::path::Path::new(&dir)), |node| {
        std::fs::write(format!("{dir}/address.new"), node.addr().to_string()).unwrap();
        std::fs::rename(format!("{dir}/address.new"), format!("{dir}/address")).unwrap();
    })
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn kvm_every_answered_request_is_in_the_ledger_once_after_a_kill() {
    if !require_kvm() {
        return;
    }
    let coordinator = Coordinator::start().await;
    let dir = tempfile::tempdir().unwrap();
    join(&coordinator, dir.path()).await;
    let v1 = Version::new("v1", 1);
    coordinator.add_artifact(&v1);
    coordinator.want(desired(1, &v1, None));
    let mut answered: Vec<String> = Vec::new();
    for life in 0..3 {
        coordinator.state().observed = Default::default();
        let _ = std::fs::remove_file(dir.path().join("address"));
        let mut process = tokio::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "ends::node_process", "--ignored", "--nocapture"])
            .env("HOLM_TEST_NODE_DIR", dir.path())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let address = dir.path().join("address");
        until("the node listens", || address.exists()).await;
        let to = std::fs::read_to_string(&address).unwrap().parse().unwrap();
        routed(&coordinator, &v1).await;
        let mut load = tokio::task::JoinSet::new();
        for _ in 0..4 {
            load.spawn(async move {
                let mut client = Client::connect(to).await;
                let mut ids = Vec::new();
                while let Ok(answer) = client.get("/acme/hello/").await {
                    assert_eq!(answer.status(), 200);
                    ids.push(
                        answer.headers()["x-request-id"]
                            .to_str()
                            .unwrap()
                            .to_owned(),
                    );
                }
                ids
            });
        }
        tokio::time::sleep(Duration::from_millis(300 + 170 * life)).await;
        process.start_kill().unwrap(); // SIGKILL
        process.wait().await.unwrap();
        answered.extend(load.join_all().await.into_iter().flatten());
    }
    assert!(
        answered.len() > 30,
        "only {} requests were answered",
        answered.len()
    );
    // One more life brings what the last one left.
    let node = start(config(dir.path())).await;
    let in_ledger = || -> BTreeSet<String> {
        coordinator
            .state()
            .ledger
            .iter()
            .map(|row| row.request.to_string())
            .collect()
    };
    until("every answered request is in the ledger", || {
        let ledger = in_ledger();
        answered.iter().all(|id| ledger.contains(id))
    })
    .await;
    shutdown(node).await;
    let state = coordinator.state();
    assert_eq!(
        in_ledger_count(&state.ledger),
        state.ledger.len(),
        "a request is there twice"
    );
    // Sequences of each life count from 1 without a gap.
    let epochs: BTreeSet<u64> = state.ledger.iter().map(|row| row.boot_epoch).collect();
    assert!(epochs.len() >= 3, "{epochs:?}");
    for epoch in epochs.into_iter().take(3) {
        let mut sequences: Vec<u64> = state
            .ledger
            .iter()
            .filter(|r| r.boot_epoch == epoch)
            .map(|r| r.sequence)
            .collect();
        sequences.sort_unstable();
        assert_eq!(sequences, (1..=sequences.len() as u64).collect::<Vec<_>>());
        assert!(sequences.len() > 1);
    }
}

fn in_ledger_count(ledger: &[holm_model::usage::UsageRecord]) -> usize {
    ledger
        .iter()
        .map(|row| row.request)
        .collect::<BTreeSet<_>>()
        .len()
}

#[tokio::test(flavor = "multi_thread")]
async fn kvm_a_stopping_node_answers_what_is_under_way_and_hands_in_its_records() {
    if !require_kvm() {
        return;
    }
    let (coordinator, _dir, node) = serving(&Version::new("v1", 1)).await;
    let address = node.addr();
    let under_way = tokio::spawn(async move { get(address, "/acme/hello/sleep").await });
    tokio::time::sleep(Duration::from_millis(10)).await;
    shutdown(node).await;
    assert_eq!(text(&under_way.await.unwrap()), "slept");
    let state = coordinator.state();
    assert_eq!(state.ledger.iter().filter(|row| !row.probe).count(), 1);
    assert!(matches!(
        state.observed.versions[0].state,
        VersionState::Ready
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn kvm_what_is_under_way_when_a_stopping_nodes_time_is_over_is_answered_so_and_on_record() {
    if !require_kvm() {
        return;
    }
    let v1 = Version::with("v1", 1, Broken::No, |statement| {
        statement.manifest.limits.deadline_ms = 60_000;
        statement.manifest.limits.cpu_ms = 60_000;
    });
    let (coordinator, _dir, node) = serving(&v1).await;
    let to = node.addr();
    let callers: Vec<_> = (0..3)
        .map(|_| {
            tokio::spawn(async move { Client::connect(to).await.get("/acme/hello/loop").await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(300)).await;
    shutdown(node).await;
    for caller in callers {
        let answer = caller.await.unwrap().unwrap();
        assert_eq!(answer.status(), 503);
        assert_eq!(answer.headers()["retry-after"], "1");
        assert_eq!(answer.headers()["connection"], "close");
        assert_eq!(problem(&answer).kind, "/problems/stopped");
    }
    assert_eq!(outcomes(&coordinator, 3).await, [Outcome::PlatformFault; 3]);
    let state = coordinator.state();
    let callers = state.ledger.iter().filter(|row| !row.probe);
    assert_eq!(callers.map(|row| row.status).collect::<Vec<_>>(), [503; 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn kvm_a_stopping_node_finishes_what_it_has_and_tells_others_to_go_elsewhere() {
    if !require_kvm() {
        return;
    }
    let v1 = Version::new("v1", 1);
    let (coordinator, _dir, node) = serving(&v1).await;
    let mut elsewhere = desired(2, &v1, None);
    elsewhere.draining.others = vec!["http://n2.example:8080/".into()];
    coordinator.want(elsewhere);
    until("the node knows", || {
        coordinator.state().observed.generation == 2
    })
    .await;
    let to = node.addr();
    let mut busy = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let mut client = Client::connect(to).await;
        busy.spawn(async move { client.get("/acme/hello/doze").await.unwrap().status() });
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    let stopped = tokio::spawn(shutdown(node));
    tokio::time::sleep(Duration::from_millis(50)).await;
    // Either thread may have nothing any more, and be gone.
    for _ in 0..6 {
        let Ok(stream) = tokio::net::TcpStream::connect(to).await else {
            continue;
        };
        let mut late = Client::over(stream).await;
        let Ok(answer) = late.get("/acme/hello/x?y").await else {
            continue;
        };
        assert_eq!(answer.status(), 503);
        assert_eq!(answer.headers()["retry-after"], "1");
        assert_eq!(answer.headers()["connection"], "close");
        let there = "http://n2.example:8080/acme/hello/x?y";
        assert_eq!(answer.headers()["x-holm-try"], there);
        assert_eq!(problem(&answer).kind, "/problems/draining");
    }
    assert_eq!(busy.join_all().await, [200; 4]);
    stopped.await.unwrap();
    assert_eq!(outcomes(&coordinator, 4).await, [Outcome::Answered; 4]);
}
