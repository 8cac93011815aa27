//! More than a node takes, and callers who do not wait for it.

use std::time::Duration;

use holm_model::usage::Outcome;
use holm_node::{NodeConfig, limits};
use holm_test_support::{guest, require_kvm};
use hyper::{Method, Request};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::common::http::{self, Client, get, problem, request, send, text};
use crate::common::program::{Broken, Version};
use crate::common::shutdown;
use crate::{outcomes, serving, serving_with};

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
            .all(|row| row.status == 499)
    );
    // And the slots are all there for others.
    let mut client = Client::connect(node.addr()).await;
    for _ in 0..20 {
        assert_eq!(text(&client.get("/acme/hello/count").await.unwrap()), "1");
    }
    shutdown(node).await;
}

/// A figure of the node's metrics.
async fn metric(to: std::net::SocketAddr, name: &str) -> u64 {
    let metrics = get(to, "/.holm/metrics").await;
    let mut lines = text(&metrics).lines();
    let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn kvm_what_takes_more_than_a_reset_is_not_done_by_the_thread_that_serves_connections() {
    if !require_kvm() {
        return;
    }
    let one_thread = |config: &mut NodeConfig| (config.threads, config.slots) = (1, 4);
    let (_coordinator, _dir, node) = serving_with(&Version::new("v1", 1), one_thread).await;
    let to = node.addr();
    assert_eq!(metric(to, "holm_slots_renewed").await, 0);
    // Callers that go away, most of them from a request that has begun.
    for _ in 0..100 {
        let mut client = Client::connect(to).await;
        let gone = client.get("/acme/hello/doze");
        let waited = tokio::time::timeout(Duration::from_millis(50), gone).await;
        assert!(waited.is_err(), "it is not answered that soon");
        drop(client);
        assert_eq!(text(&get(to, "/acme/hello/count").await), "1");
        if metric(to, "holm_slots_renewed").await >= 5 {
            break;
        }
    }
    let before = metric(to, "holm_slots_renewed").await;
    assert!(before >= 5, "{before}");
    // A guest that changes what its page tables hang on.
    for _ in 0..10 {
        assert_eq!(text(&get(to, "/acme/hello/map").await), "mapped 1");
    }
    for _ in 0..8 {
        assert_eq!(text(&get(to, "/acme/hello/count").await), "1");
    }
    // The first of a version may be put back otherwise.
    let renewed = metric(to, "holm_slots_renewed").await - before;
    assert!(renewed >= 8, "{renewed}");
    shutdown(node).await;
}

/// Sends the beginning of a body of unknown length to `/body`, which reads all of it.
async fn begin_body(to: std::net::SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(to).await.unwrap();
    let head = "POST /acme/hello/body HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(b"3\r\nabc\r\n").await.unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn kvm_a_caller_that_is_slow_with_its_body_gives_its_place_to_others() {
    if !require_kvm() {
        return;
    }
    let program = std::fs::read(guest("several_requests")).unwrap();
    let version = Version::of(program, |statement| {
        statement.manifest.rollout.probe_path = "/gone".into();
        statement.manifest.limits.memory_bytes = 64 << 20;
        statement.manifest.limits.deadline_ms = 20_000;
    });
    let one_slot = |config: &mut NodeConfig| (config.threads, config.slots) = (1, 1);
    let (coordinator, _dir, node) = serving_with(&version, one_slot).await;
    let to = node.addr();

    // As long as nobody else wants it, it may take its time.
    let mut slow = begin_body(to).await;
    tokio::time::sleep(2 * limits::BODY_PATIENCE).await;
    slow.write_all(b"0\r\n\r\n").await.unwrap();
    let mut answer = [0; 12];
    slow.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");

    for trickles in [false, true] {
        let mut slow = begin_body(to).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        let (mut from, mut into) = slow.split();
        let trickle = async {
            // It breaks when the node has had enough.
            while trickles && into.write_all(b"1\r\nx\r\n").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            std::future::pending::<()>().await
        };
        let refused = async {
            let mut answer = Vec::new();
            let end = from.read_to_end(&mut answer).await;
            (String::from_utf8(answer).unwrap(), end)
        };
        let began = std::time::Instant::now();
        let (served, (refusal, _)) = tokio::select! {
            both = async { tokio::join!(get(to, "/acme/hello/gone"), refused) } => both,
            () = trickle => unreachable!(),
        };
        assert_eq!(text(&served), "0\n");
        assert!(
            began.elapsed() < Duration::from_secs(15),
            "{:?}",
            began.elapsed()
        );
        assert!(refusal.starts_with("HTTP/1.1 408"), "{refusal}");
        assert!(refusal.contains("connection: close"), "{refusal}");
    }
    let counted = outcomes(&coordinator, 5).await;
    let cancelled = counted.iter().filter(|one| **one == Outcome::Cancelled);
    assert_eq!(cancelled.count(), 2, "{counted:?}");
    shutdown(node).await;
}
