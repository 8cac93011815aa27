//! Instances that are kept between requests.

use std::time::Duration;

use holm_model::ids::RequestId;
use holm_model::manifest::Isolation;
use holm_model::usage::Outcome;
use holm_test_support::{guest, require_kvm};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::common::http::{Client, text};
use crate::common::program::{Broken, Version, desired};
use crate::common::{shutdown, until};
use crate::{outcomes, routed, serving};

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
async fn kvm_what_an_instance_says_at_its_end_is_told() {
    if !require_kvm() {
        return;
    }
    let (v1, v2) = (Version::instance("v1", 1), Version::instance("v2", 2));
    let (coordinator, _dir, node) = serving(&v1).await;
    // One connection, and so one thread with its instance.
    let mut client = Client::connect(node.addr()).await;
    let told = |version: &Version| {
        let state = coordinator.state();
        state.logs.iter().any(|entry| {
            let of = (entry.version, entry.request, entry.failed);
            entry.text == "bye after 1 requests"
                && of == (version.signed.id(), RequestId::NONE, false)
        })
    };
    assert_eq!(
        text(&client.get("/acme/hello/until-told").await.unwrap()),
        "ok"
    );
    coordinator.add_artifact(&v2);
    coordinator.want(desired(2, &v2, Some(&v1)));
    routed(&coordinator, &v2).await;
    until("the instance of the old version has said its last", || {
        told(&v1)
    })
    .await;
    // And when the node stops.
    assert_eq!(
        text(&client.get("/acme/hello/until-told").await.unwrap()),
        "ok"
    );
    shutdown(node).await;
    until("the last instance has said its last", || told(&v2)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kvm_one_instance_on_a_node_is_one_whatever_thread_a_connection_comes_to() {
    if !require_kvm() {
        return;
    }
    let version = Version::with("v1", 1, Broken::No, |statement| {
        statement.manifest.scale.isolation = Isolation::Instance;
        statement.manifest.scale.max = Some(1);
    });
    let (coordinator, _dir, node) = serving(&version).await;
    let to = node.addr();
    let callers = (0..8).map(|_| {
        tokio::spawn(async move {
            let mut client = Client::connect(to).await;
            let mut counts = Vec::new();
            for _ in 0..5 {
                let answer = client.get("/acme/hello/count").await.unwrap();
                counts.push(text(&answer).parse::<u32>().unwrap());
            }
            counts
        })
    });
    let mut counts = Vec::new();
    for caller in callers.collect::<Vec<_>>() {
        counts.extend(caller.await.unwrap());
    }
    counts.sort_unstable();
    assert_eq!(counts, (1..=40).collect::<Vec<_>>());
    assert_eq!(outcomes(&coordinator, 40).await, [Outcome::Answered; 40]);
    shutdown(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kvm_bodies_and_ends_of_callers_go_from_thread_to_thread() {
    if !require_kvm() {
        return;
    }
    let version = Version::of(
        std::fs::read(guest("several_requests")).unwrap(),
        |statement| {
            statement.manifest.scale.isolation = Isolation::Instance;
            statement.manifest.scale.max = Some(1);
            statement.manifest.limits.memory_bytes = 64 << 20;
            statement.manifest.limits.deadline_ms = 20_000;
            statement.manifest.limits.cpu_ms = 10_000;
            statement.manifest.rollout.probe_path = "/ok".into();
        },
    );
    let (coordinator, _dir, node) = serving(&version).await;
    let mut client = Client::connect(node.addr()).await;
    // As many connections as it takes to come to both threads.
    let mut streaming = Vec::new();
    for _ in 0..6 {
        let mut stream = TcpStream::connect(node.addr()).await.unwrap();
        let head = "POST /acme/hello/parts HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut come = String::new();
        while !come.contains("two ") {
            let mut bytes = [0; 1024];
            let count = stream.read(&mut bytes).await.unwrap();
            assert!(count > 0, "{come}");
            come += std::str::from_utf8(&bytes[..count]).unwrap();
        }
        assert!(come.contains("one ") && !come.contains("three"), "{come}");
        streaming.push(stream);
    }
    let released = client.get("/acme/hello/release").await.unwrap();
    assert_eq!(text(&released), "done\n");
    for stream in &mut streaming {
        let mut rest = [0; 5 + 2 + 3];
        stream.read_exact(&mut rest).await.unwrap();
        let rest = String::from_utf8_lossy(&rest);
        assert!(rest.contains("three"), "{rest}");
    }
    for _ in 0..6 {
        let mut stream = TcpStream::connect(node.addr()).await.unwrap();
        let head = "GET /acme/hello/until_gone HTTP/1.1\r\nhost: x\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    until("the program has been told of all that went", || {
        let state = coordinator.state();
        let gone = |row: &&holm_model::usage::UsageRecord| row.outcome == Outcome::Cancelled;
        state.ledger.iter().filter(gone).count() == 6
    })
    .await;
    // Its threads may have their turns in any order.
    let mut told = String::new();
    for _ in 0..20 {
        told = text(&client.get("/acme/hello/gone").await.unwrap()).to_owned();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(told, "6\n");
    shutdown(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kvm_an_instance_that_nobody_needs_is_given_back_after_its_cooldown() {
    if !require_kvm() {
        return;
    }
    let version = Version::with("v1", 1, Broken::No, |statement| {
        statement.manifest.scale.isolation = Isolation::Instance;
        statement.manifest.scale.max = Some(1);
        statement.manifest.scale.cooldown_ms = Some(1000);
    });
    let (coordinator, _dir, node) = serving(&version).await;
    let mut client = Client::connect(node.addr()).await;
    for path in ["/acme/hello/count", "/acme/hello/until-told"] {
        client.get(path).await.unwrap();
    }
    assert_eq!(text(&client.get("/acme/hello/count").await.unwrap()), "3");
    until("the instance has been told to end", || {
        let state = coordinator.state();
        state
            .logs
            .iter()
            .any(|entry| entry.text == "bye after 3 requests")
    })
    .await;
    assert_eq!(text(&client.get("/acme/hello/count").await.unwrap()), "1");
    shutdown(node).await;
}
