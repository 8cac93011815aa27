//! A whole node with real machines, and a coordinator that plays its part. All of these need
//! /dev/kvm and a C compiler.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::time::{Duration, Instant};

use common::coordinator::Coordinator;
use common::http::{self, Client, get, problem, request, send, text};
use common::program::{Broken, Version, desired};
use common::{config, join, node, shutdown, start, until};
use holm_model::control::VersionState;
use holm_model::usage::Outcome;
use holm_node::Node;
use holm_test_support::{guest, require_kvm};
use hyper::{Method, Request};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// A node that serves `version`.
async fn serving(version: &Version) -> (Coordinator, TempDir, Node) {
    let coordinator = Coordinator::start().await;
    let dir = tempfile::tempdir().unwrap();
    let node = node(&coordinator, dir.path()).await;
    coordinator.add_artifact(version);
    coordinator.want(desired(1, version, None));
    routed(&coordinator, version).await;
    (coordinator, dir, node)
}

async fn routed(coordinator: &Coordinator, version: &Version) {
    let label = &version.statement.label;
    until(&format!("{label} takes requests"), || {
        if let Some(reason) = coordinator.failure(version) {
            panic!("{label} failed: {reason}");
        }
        coordinator.is_routed(version)
    })
    .await;
}

/// The outcomes in the ledger, probes left out, once there are `count`.
async fn outcomes(coordinator: &Coordinator, count: usize) -> Vec<Outcome> {
    let callers = || -> Vec<Outcome> {
        let state = coordinator.state();
        state
            .ledger
            .iter()
            .filter(|row| !row.probe)
            .map(|row| row.outcome)
            .collect()
    };
    until(&format!("{count} records are in the ledger"), || {
        callers().len() >= count
    })
    .await;
    callers()
}

#[tokio::test(flavor = "multi_thread")]
async fn kvm_a_deployed_function_answers_by_path_and_by_host() {
    if !require_kvm() {
        return;
    }
    let coordinator = Coordinator::start().await;
    let dir = tempfile::tempdir().unwrap();
    join(&coordinator, dir.path()).await;
    let mut config = config(dir.path());
    config.domain = Some("fn.example.org".into());
    let node = start(config).await;
    let v1 = Version::new("v1", 1);
    coordinator.add_artifact(&v1);
    coordinator.want(desired(1, &v1, None));
    routed(&coordinator, &v1).await;

    let answer = get(node.addr(), "/acme/hello/").await;
    assert_eq!((answer.status().as_u16(), text(&answer)), (200, "v1"));
    assert_eq!(answer.headers()["x-holm-node"], "n1");
    assert_eq!(answer.headers()["x-holm-version"], "v1");
    assert_eq!(answer.headers()["x-label"], "v1");
    assert_eq!(answer.headers()["x-request-id"].len(), 32);
    let timing = answer.headers()["server-timing"].to_str().unwrap();
    assert!(
        timing.starts_with("queue;dur=") && timing.contains("run;dur="),
        "{timing}"
    );

    let mut by_host = request(Method::GET, "/", "");
    by_host
        .headers_mut()
        .insert("host", "hello.acme.fn.example.org".parse().unwrap());
    assert_eq!(text(&send(node.addr(), by_host).await), "v1");

    assert_eq!(get(node.addr(), "/acme/other/").await.status(), 404);
    assert_eq!(get(node.addr(), "/nonsense").await.status(), 404);
    shutdown(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kvm_state_of_one_request_is_never_seen_by_the_next() {
    if !require_kvm() {
        return;
    }
    let (_coordinator, _dir, node) = serving(&Version::new("v1", 1)).await;
    let mut client = Client::connect(node.addr()).await;
    for _ in 0..50 {
        assert_eq!(text(&client.get("/acme/hello/count").await.unwrap()), "1");
    }
    shutdown(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kvm_an_instance_keeps_its_state_if_the_manifest_says_so() {
    if !require_kvm() {
        return;
    }
    let (_coordinator, _dir, node) = serving(&Version::instance("v1", 1)).await;
    let mut client = Client::connect(node.addr()).await;
    for n in 1..=20 {
        assert_eq!(
            text(&client.get("/acme/hello/count").await.unwrap()),
            n.to_string()
        );
        // The instance gets to its next wait after the answer.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // What crashes it is answered, and the next request gets a fresh one.
    assert_eq!(client.get("/acme/hello/crash").await.unwrap().status(), 502);
    assert_eq!(text(&client.get("/acme/hello/count").await.unwrap()), "1");
    shutdown(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kvm_bodies_heads_and_methods_pass_through_whole() {
    if !require_kvm() {
        return;
    }
    let (_coordinator, _dir, node) = serving(&Version::new("v1", 1)).await;
    for size in [0, 1, 5000, 300_000] {
        let body: Vec<u8> = (0..size).map(|n| (n % 251) as u8).collect();
        let echo = request(Method::POST, "/acme/hello/echo", body.clone());
        let answer = send(node.addr(), echo).await;
        assert_eq!(answer.status(), 200);
        assert!(*answer.body() == body, "{size} bytes");
    }
    let mut asked = request(Method::GET, "/acme/hello/head?a=b", "");
    let headers = asked.headers_mut();
    headers.insert(
        "traceparent",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
            .parse()
            .unwrap(),
    );
    headers.insert("te", "trailers".parse().unwrap());
    headers.insert("x-request-id", "forged".parse().unwrap());
    let answer = send(node.addr(), asked).await;
    let head = text(&answer).to_lowercase();
    assert!(head.starts_with("get /head?a=b http/1.1\r\n"), "{head}");
    assert!(head.contains("traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"));
    assert!(head.contains("x-forwarded-for: 127.0.0.1"));
    let id = answer.headers()["x-request-id"].to_str().unwrap();
    assert!(head.contains(&format!("x-request-id: {id}")));
    assert!(
        !head.contains("trailers") && !head.contains("forged"),
        "{head}"
    );

    let answer = send(node.addr(), request(Method::HEAD, "/acme/hello/", "")).await;
    assert_eq!((answer.status().as_u16(), answer.body().len()), (200, 0));
    assert_eq!(answer.headers()["content-length"], "2");
    shutdown(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kvm_http2_requests_on_one_connection_are_all_answered() {
    if !require_kvm() {
        return;
    }
    let (coordinator, _dir, node) = serving(&Version::new("v1", 1)).await;
    let answers = http::get_http2(node.addr(), "/acme/hello/count", 40).await;
    assert_eq!(answers.len(), 40);
    assert!(
        answers
            .iter()
            .all(|answer| answer.status() == 200 && text(answer) == "1")
    );
    assert_eq!(outcomes(&coordinator, 40).await, [Outcome::Answered; 40]);
    shutdown(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kvm_every_fault_of_a_function_is_answered_as_its_own_and_others_are_served() {
    if !require_kvm() {
        return;
    }
    let v1 = Version::with("v1", 1, Broken::No, |statement| {
        statement.manifest.limits.deadline_ms = 300;
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
async fn kvm_a_request_longer_than_its_first_quantum_is_answered() {
    if !require_kvm() {
        return;
    }
    let (coordinator, _dir, node) = serving(&Version::new("v1", 1)).await;
    assert_eq!(
        text(&get(node.addr(), "/acme/hello/compute").await),
        "computed"
    );
    let began = Instant::now();
    assert_eq!(text(&get(node.addr(), "/acme/hello/sleep").await), "slept");
    assert!(began.elapsed() >= Duration::from_millis(30));
    outcomes(&coordinator, 2).await;
    let mut rows = coordinator.state().ledger.clone();
    rows.retain(|row| !row.probe);

    // How much depends on who else wants the machine.
    assert!(
        rows[0].cpu_ns >= 1_000_000,
        "computing takes CPU time: {} ns",
        rows[0].cpu_ns
    );
    assert!(
        rows[1].run_ns >= 30_000_000,
        "sleeping takes wall time: {} ns",
        rows[1].run_ns
    );
    assert!(
        rows[1].cpu_ns < 10_000_000,
        "sleeping takes no CPU time: {} ns",
        rows[1].cpu_ns
    );
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
async fn kvm_limits_of_requests_are_kept() {
    if !require_kvm() {
        return;
    }
    let (_coordinator, _dir, node) = serving(&Version::new("v1", 1)).await;
    let large = request(Method::POST, "/acme/hello/echo", vec![0; (1 << 20) + 1]);
    let answer = send(node.addr(), large).await;
    assert_eq!(answer.status(), 413);
    assert!(problem(&answer).detail.contains("1048576"));
    let mut wide = request(Method::GET, "/acme/hello/", "");
    wide.headers_mut()
        .insert("x-wide", "x".repeat(70_000).parse().unwrap());
    assert_eq!(send(node.addr(), wide).await.status(), 431);
    let mut many = request(Method::GET, "/acme/hello/", "");
    for n in 0..127 {
        let name: hyper::header::HeaderName = format!("x-{n}").parse().unwrap();
        many.headers_mut().insert(name, "1".parse().unwrap());
    }
    assert_eq!(send(node.addr(), many).await.status(), 431);
    let mut two_hosts = request(Method::GET, "/acme/hello/", "");
    two_hosts
        .headers_mut()
        .append("host", "other".parse().unwrap());
    assert_eq!(send(node.addr(), two_hosts).await.status(), 400);
    assert_eq!(get(node.addr(), "/acme/hello/").await.status(), 200);
    shutdown(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kvm_a_refusal_arrives_however_much_of_the_body_is_still_to_come() {
    if !require_kvm() {
        return;
    }
    let (_coordinator, _dir, node) = serving(&Version::new("v1", 1)).await;
    let (address, body) = (node.addr(), vec![0; (1 << 20) + 1]);
    for (path, status) in [("/acme/hello/echo", "413"), ("/acme/other/", "404")] {
        for _ in 0..10 {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let head = format!(
                "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n",
                body.len()
            );
            stream.write_all(head.as_bytes()).await.unwrap();
            for piece in body.chunks(100_000) {
                stream.write_all(piece).await.unwrap();
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status} ")),
                "{answer}"
            );
            assert!(answer.contains("connection: close"), "{answer}");
        }
    }
    // In HTTP/2 the stream ends and the connection goes on.
    let mut client = http::Http2::connect(address).await;
    for _ in 0..10 {
        let large = Request::post(format!("http://{address}/acme/hello/echo"));
        let large = large.body(body.clone().into()).unwrap();
        let answer = client.send(large).await;
        assert_eq!(answer.status(), 413);
        assert!(!answer.headers().contains_key("connection"));
    }
    let small = Request::get(format!("http://{address}/acme/hello/"));
    let answer = client.send(small.body("".into()).unwrap()).await;
    assert_eq!(text(&answer), "v1");
    shutdown(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kvm_more_than_the_queue_takes_is_shed_with_a_time_to_come_back() {
    if !require_kvm() {
        return;
    }
    let v1 = Version::with("v1", 1, Broken::No, |statement| {
        statement.manifest.limits.concurrency = 1;
        statement.manifest.limits.deadline_ms = 1000;
    });
    let (coordinator, _dir, node) = serving(&v1).await;
    let answers = http::get_http2(node.addr(), "/acme/hello/loop", 200);
    let more = http::get_http2(node.addr(), "/acme/hello/loop", 200);
    let (mut answers, more) = tokio::join!(answers, more);
    answers.extend(more);
    let shed: Vec<_> = answers
        .iter()
        .filter(|answer| answer.status() == 503)
        .collect();
    // One ran, as many as the queue takes waited.
    assert!(
        shed.len() >= 400 - 1 - holm_node::limits::MAX_QUEUED_PER_VERSION - 1,
        "{}",
        shed.len()
    );
    assert!(
        shed.iter()
            .all(|answer| answer.headers()["retry-after"] == "1")
    );
    assert!(
        answers
            .iter()
            .all(|answer| matches!(answer.status().as_u16(), 503 | 504))
    );
    let outcomes = outcomes(&coordinator, 400).await;
    let timeouts = outcomes
        .iter()
        .filter(|outcome| **outcome == Outcome::Timeout)
        .count();
    // One ran for a second; some next in the queue had the last moments of their deadlines left.
    assert!((1..50).contains(&timeouts), "{timeouts} ran, one at a time");

    assert!(
        outcomes
            .iter()
            .all(|o| matches!(o, Outcome::Timeout | Outcome::Shed))
    );
    shutdown(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kvm_a_caller_that_goes_away_cancels_the_work() {
    if !require_kvm() {
        return;
    }
    let v1 = Version::with("v1", 1, Broken::No, |statement| {
        statement.manifest.limits.deadline_ms = 60_000;
        statement.manifest.limits.cpu_ms = 60_000;
    });
    let (coordinator, _dir, node) = serving(&v1).await;
    for path in ["/acme/hello/loop", "/acme/hello/sleep"] {
        let mut client = Client::connect(node.addr()).await;
        let waited = tokio::time::timeout(Duration::from_millis(15), client.get(path)).await;
        assert!(waited.is_err(), "{path} is not answered that soon");
        drop(client);
    }
    assert_eq!(outcomes(&coordinator, 2).await, [Outcome::Cancelled; 2]);
    assert!(
        coordinator
            .state()
            .ledger
            .iter()
            .filter(|row| !row.probe)
            .all(|row| row.status == 0)
    );
    // And the slots are all there for others.
    let mut client = Client::connect(node.addr()).await;
    for _ in 0..20 {
        assert_eq!(text(&client.get("/acme/hello/count").await.unwrap()), "1");
    }
    shutdown(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kvm_a_new_version_takes_over_without_a_failed_request() {
    if !require_kvm() {
        return;
    }
    let (v1, v2) = (Version::new("v1", 1), Version::new("v2", 2));
    let (coordinator, _dir, node) = serving(&v1).await;
    let address = node.addr();
    let load = tokio::spawn(async move {
        let mut client = Client::connect(address).await;
        let mut seen = Vec::new();
        while seen.last().is_none_or(|last: &String| last != "v2") {
            let answer = client.get("/acme/hello/").await.unwrap();
            assert_eq!(answer.status(), 200);
            seen.push(text(&answer).to_owned());
        }
        seen
    });
    coordinator.add_artifact(&v2);
    coordinator.want(desired(2, &v2, Some(&v1)));
    routed(&coordinator, &v2).await;
    assert_eq!(text(&get(address, "/acme/hello/").await), "v2");
    let seen = tokio::time::timeout(Duration::from_secs(10), load)
        .await
        .unwrap()
        .unwrap();
    assert!(seen.len() > 1 && seen[..seen.len() - 1].iter().all(|label| label == "v1"));
    // And back, without preparing anything.
    coordinator.want(desired(3, &v1, Some(&v2)));
    routed(&coordinator, &v1).await;
    assert_eq!(text(&get(address, "/acme/hello/").await), "v1");
    shutdown(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kvm_a_version_that_does_not_work_never_takes_a_request() {
    if !require_kvm() {
        return;
    }
    let v1 = Version::new("v1", 1);
    let (coordinator, _dir, node) = serving(&v1).await;
    let of_artifact = |counter, artifact: Vec<u8>| {
        let mut version = Version::new("v1", counter);
        version.artifact = artifact;
        version.statement.artifact = holm_model::ids::Digest::of(&version.artifact);
        version.statement.artifact_bytes = version.artifact.len() as u64;
        let key = common::program::key();
        version.signed = holm_model::artifact::SignedVersion::sign(&version.statement, &key);
        version
    };
    let broken = [
        (Version::broken("v2", 2, Broken::AtStart), "cannot start"),
        (
            Version::broken("v3", 3, Broken::AtFirstRequest),
            "at the probe GET /",
        ),
        (of_artifact(4, b"#!/bin/sh\n".to_vec()), "ELF"),
        (
            of_artifact(5, std::fs::read(guest("lacks_calls")).unwrap()),
            "the last line\n\nholm: system calls that it made and that are not supported: clone, \
             timer_create, number 461",
        ),
    ];
    for (n, (version, why)) in broken.iter().enumerate() {
        coordinator.add_artifact(version);
        coordinator.want(desired(n as u64 + 2, version, Some(&v1)));
        until("the version has failed", || {
            coordinator.failure(version).is_some()
        })
        .await;
        let reason = coordinator.failure(version).unwrap();
        assert!(reason.contains(why), "{reason}");
        assert_eq!(text(&get(node.addr(), "/acme/hello/").await), "v1");
    }
    let crashed = |row: &&holm_model::usage::UsageRecord| row.outcome == Outcome::Crash;
    until("the probe is on record", || {
        coordinator.state().ledger.iter().any(|r| crashed(&r))
    })
    .await;
    assert!(
        coordinator
            .state()
            .ledger
            .iter()
            .filter(crashed)
            .all(|row| row.probe)
    );
    shutdown(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kvm_a_broken_off_fetch_goes_on_where_it_stopped() {
    if !require_kvm() {
        return;
    }
    let coordinator = Coordinator::start().await;
    let dir = tempfile::tempdir().unwrap();
    let v1 = Version::new("v1", 1);
    coordinator.add_artifact(&v1);
    coordinator.state().break_off_after = Some(100_000);
    coordinator.want(desired(1, &v1, None));
    let node = node(&coordinator, dir.path()).await;
    routed(&coordinator, &v1).await;
    assert_eq!(coordinator.state().fetches, [0, 100_000]);
    shutdown(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kvm_an_artifact_altered_on_the_way_is_never_run() {
    if !require_kvm() {
        return;
    }
    let coordinator = Coordinator::start().await;
    let dir = tempfile::tempdir().unwrap();
    let mut v1 = Version::new("v1", 1);
    *v1.artifact.last_mut().unwrap() ^= 1;
    coordinator.add_artifact(&v1);
    coordinator.want(desired(1, &v1, None));
    let node = node(&coordinator, dir.path()).await;
    until("the version has failed", || {
        coordinator.failure(&v1).is_some()
    })
    .await;
    let reason = coordinator.failure(&v1).unwrap();
    assert!(reason.contains("digest"), "{reason}");
    assert_eq!(get(node.addr(), "/acme/hello/").await.status(), 503);
    assert_eq!(dir.path().join("artifacts").read_dir().unwrap().count(), 0);
    shutdown(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kvm_a_node_without_coordinator_serves_what_it_has_and_catches_up_later() {
    if !require_kvm() {
        return;
    }
    let (v1, v2) = (Version::new("v1", 1), Version::new("v2", 2));
    let (mut coordinator, dir, node) = serving(&v1).await;
    let snapshot = dir
        .path()
        .join("snapshots")
        .join(format!("{}.snap", v1.signed.id().hex()));
    until("the snapshot is on disk", || snapshot.exists()).await;
    coordinator.stop().await;
    assert_eq!(text(&get(node.addr(), "/acme/hello/").await), "v1");
    shutdown(node).await;

    // Restarted alone: from its own disk.
    let node = start(config(dir.path())).await;
    let mut answer = get(node.addr(), "/acme/hello/").await;
    let began = Instant::now();
    while answer.status() == 503 && began.elapsed() < Duration::from_secs(20) {
        tokio::time::sleep(Duration::from_millis(20)).await;
        answer = get(node.addr(), "/acme/hello/").await;
    }
    assert_eq!(text(&answer), "v1");

    coordinator.add_artifact(&v2);
    coordinator.want(desired(2, &v2, Some(&v1)));
    coordinator.restart().await;
    routed(&coordinator, &v2).await;
    assert_eq!(text(&get(node.addr(), "/acme/hello/").await), "v2");
    // Both requests that were answered while the coordinator was away are in its ledger now.
    outcomes(&coordinator, 3).await;
    let epochs: Vec<u64> = coordinator
        .state()
        .ledger
        .iter()
        .map(|row| row.boot_epoch)
        .collect();
    assert!(
        epochs.is_sorted() && epochs.contains(&1) && epochs.contains(&2),
        "{epochs:?}"
    );
    shutdown(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kvm_a_coordinator_that_talks_nonsense_is_left_and_dialled_again() {
    if !require_kvm() {
        return;
    }
    let v1 = Version::new("v1", 1);
    let (mut coordinator, _dir, node) = serving(&v1).await;
    let good = holm_model::control::CoordinatorMessage::Desired(desired(2, &v1, None));
    let good = holm_model::codec::encode(&good).unwrap();
    let mut another_version = good.clone();
    another_version[4] ^= 0xff;
    let cut_short = good[..good.len() - 1].to_vec();
    let oversized = u32::MAX.to_le_bytes().to_vec();
    let mut wrong_message = good.clone();
    wrong_message[6] = 99;
    for nonsense in [another_version, cut_short, oversized, wrong_message] {
        let sessions = coordinator.state().sessions;
        coordinator.state().nonsense = Some(nonsense);
        coordinator.stop().await;
        coordinator.restart().await;
        until("the node came, left and came again", || {
            coordinator.state().sessions >= sessions + 2
        })
        .await;
        assert_eq!(text(&get(node.addr(), "/acme/hello/").await), "v1");
    }
    outcomes(&coordinator, 4).await;
    shutdown(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kvm_a_damaged_snapshot_is_made_anew() {
    if !require_kvm() {
        return;
    }
    let v1 = Version::new("v1", 1);
    let (coordinator, dir, node) = serving(&v1).await;
    let snapshot = dir
        .path()
        .join("snapshots")
        .join(format!("{}.snap", v1.signed.id().hex()));
    until("the snapshot is on disk", || snapshot.exists()).await;
    shutdown(node).await;
    std::fs::write(&snapshot, b"nonsense").unwrap();
    coordinator.state().observed = Default::default();
    let node = start(config(dir.path())).await;
    routed(&coordinator, &v1).await;
    assert_eq!(text(&get(node.addr(), "/acme/hello/").await), "v1");
    shutdown(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kvm_a_version_that_is_not_wanted_any_more_leaves_nothing_behind() {
    if !require_kvm() {
        return;
    }
    let v1 = Version::new("v1", 1);
    let (coordinator, dir, node) = serving(&v1).await;
    let files = || {
        let count = |name| dir.path().join(name).read_dir().unwrap().count();
        (count("artifacts"), count("snapshots"))
    };
    until("the snapshot is on disk", || files() == (1, 1)).await;
    coordinator.want(holm_model::control::Desired {
        generation: 2,
        functions: vec![],
    });
    until("the files are gone", || files() == (0, 0)).await;
    assert_eq!(get(node.addr(), "/acme/hello/").await.status(), 404);
    shutdown(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kvm_a_lost_acknowledgement_does_not_double_a_record() {
    if !require_kvm() {
        return;
    }
    let (coordinator, _dir, node) = serving(&Version::new("v1", 1)).await;
    until("the probe is in the ledger", || {
        !coordinator.state().ledger.is_empty()
    })
    .await;
    coordinator.state().lose_acknowledgements = 2;
    for _ in 0..10 {
        assert_eq!(get(node.addr(), "/acme/hello/").await.status(), 200);
    }
    outcomes(&coordinator, 10).await;
    until("batches were sent twice", || {
        coordinator.state().duplicates > 0
    })
    .await;
    shutdown(node).await;
    let state = coordinator.state();
    let sequences: Vec<u64> = state.ledger.iter().map(|row| row.sequence).collect();
    assert_eq!(sequences, (1..=11).collect::<Vec<_>>());
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
    assert_eq!((hello.region.as_str(), hello.boot_epoch), ("test", 1));
    shutdown(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kvm_health_says_what_the_node_has() {
    if !require_kvm() {
        return;
    }
    let v1 = Version::new("v1", 1);
    let (_coordinator, _dir, node) = serving(&v1).await;
    let answer = get(node.addr(), "/.holm/health").await;
    let health: serde_json::Value = serde_json::from_slice(answer.body()).unwrap();
    assert_eq!(health["node"], "n1");
    assert_eq!(health["versions"][0]["function"], "acme/hello");
    assert_eq!(health["versions"][0]["state"], "ready");
    assert_eq!(health["versions"][0]["routed"], true);
    assert_eq!(health["slots"]["total"], 8);
    shutdown(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kvm_a_port_that_is_taken_is_refused() {
    if !require_kvm() {
        return;
    }
    let (coordinator, _dir, node) = serving(&Version::new("v1", 1)).await;
    coordinator.state().token_used = false;
    let other = tempfile::tempdir().unwrap();
    join(&coordinator, other.path()).await;
    let mut config = config(other.path());
    config.listen = node.addr();
    let error = holm_node::start(config).unwrap_err().to_string();
    assert!(error.contains("cannot listen"), "{error}");
    shutdown(node).await;
}

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
            .args(["--exact", "node_process", "--ignored", "--nocapture"])
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
    let in_ledger = || -> std::collections::BTreeSet<String> {
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
    for epoch in 1..=3 {
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
        .collect::<std::collections::BTreeSet<_>>()
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
