//! Callers who mean harm, and what they leave behind: nothing.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use holm_model::manifest::Isolation;
use holm_model::usage::Outcome;
use holm_test_support::{guest, random_below, require_kvm};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::{Method, Request};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::common::http::{Client, get, text};
use crate::common::program::Version;
use crate::common::{shutdown, until};
use crate::{outcomes, serving};

/// Sends bytes, and reads until the node ends the connection or is silent for long.
async fn exchange(to: SocketAddr, pieces: &[&str]) -> String {
    let mut stream = TcpStream::connect(to).await.unwrap();
    for (nth, piece) in pieces.iter().enumerate() {
        if nth > 0 {
            tokio::time::sleep(Duration::from_millis(150)).await;
        }
        // It may have been refused already.
        let _ = stream.write_all(piece.as_bytes()).await;
    }
    let mut answer = Vec::new();
    let silent = Duration::from_secs(2);
    while let Ok(Ok(1..)) = tokio::time::timeout(silent, stream.read_buf(&mut answer)).await {}
    String::from_utf8_lossy(&answer).into_owned()
}

const POST: &str = "POST /acme/hello/echo HTTP/1.1\r\nhost: x\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn kvm_framing_that_can_be_read_in_two_ways_is_refused_or_ends_the_connection() {
    if !require_kvm() {
        return;
    }
    let (_coordinator, _dir, node) = serving(&Version::new("v1", 1)).await;
    let refused = [
        "content-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
        "content-length: 3, 4\r\n\r\nabcd",
        "content-length: +3\r\n\r\nabc",
        "content-length: -1\r\n\r\nabc",
        "content-length: 0x3\r\n\r\nabc",
        "content-length: 99999999999999999999\r\n\r\nabc",
        "content-length : 3\r\n\r\nabc",
        "transfer-encoding: gzip\r\n\r\nabc",
        "transfer-encoding: chunked, gzip\r\n\r\nabc",
        "transfer-encoding: chunked\r\n\r\nx\r\nabc\r\n0\r\n\r\n",
        "transfer-encoding: chunked\r\n\r\n-1\r\nabc\r\n0\r\n\r\n",
        "transfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\nabc",
        "transfer-encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n",
        "x: a\r\n folded\r\ncontent-length: 0\r\n\r\n",
        "x: a\0b\r\ncontent-length: 0\r\n\r\n",
    ];
    for head in refused {
        let answer = exchange(node.addr(), &[&format!("{POST}{head}")]).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{head:?}: {answer}");
    }
    // Both: the chunks count, and what follows is not taken for a request.
    for head in [
        "content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
        "transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n",
    ] {
        let smuggled = "GET /acme/hello/ HTTP/1.1\r\nhost: x\r\n\r\n";
        let asked = format!("{POST}{head}0\r\n\r\n{smuggled}");
        let answer = exchange(node.addr(), &[&asked]).await;
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
        assert!(answer.contains("connection: close"), "{answer}");
    }
    // The one that led to the function is what it is told.
    let absolute = "GET http://a.example/acme/hello/head HTTP/1.1\r\nhost: b.example\r\n\r\n";
    let answer = exchange(node.addr(), &[absolute]).await;
    assert!(answer.contains("Host: a.example"), "{answer}");
    assert!(!answer.contains("b.example"), "{answer}");
    shutdown(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kvm_a_body_that_breaks_while_the_function_reads_it_is_its_callers_fault() {
    if !require_kvm() {
        return;
    }
    let version = Version::of(
        std::fs::read(guest("several_requests")).unwrap(),
        |statement| {
            statement.manifest.limits.memory_bytes = 64 << 20;
            statement.manifest.rollout.probe_path = "/ok".into();
        },
    );
    let (coordinator, _dir, node) = serving(&version).await;
    let head = "POST /acme/hello/body HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n";
    let answer = exchange(node.addr(), &[head, "3\r\nabc\r\n", "zzz\r\n"]).await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    // One that goes in the middle has nothing to hear.
    drop(exchange(node.addr(), &[head, "3\r\nabc\r\n"]).await);
    assert_eq!(outcomes(&coordinator, 2).await, [Outcome::Cancelled; 2]);
    shutdown(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kvm_requests_in_one_go_are_answered_in_their_order_and_who_expects_is_told_to_go_on() {
    if !require_kvm() {
        return;
    }
    let (_coordinator, _dir, node) = serving(&Version::new("v1", 1)).await;
    let asked: String = ["one", "two", "three"]
        .iter()
        .map(|body| format!("{POST}content-length: {}\r\n\r\n{body}", body.len()))
        .collect();
    let answers = exchange(node.addr(), &[&asked]).await;
    let at =
        ["\r\n\r\none", "\r\n\r\ntwo", "\r\n\r\nthree"].map(|body| answers.find(body).unwrap());
    assert!(at.is_sorted(), "{answers}");
    let head = format!("{POST}content-length: 3\r\nexpect: 100-continue\r\n\r\n");
    let answer = exchange(node.addr(), &[&head, "abc"]).await;
    let (first, rest) = answer.split_once("\r\n\r\n").unwrap();
    assert!(first.starts_with("HTTP/1.1 100 "), "{answer}");
    assert!(
        rest.starts_with("HTTP/1.1 200 ") && rest.ends_with("abc"),
        "{answer}"
    );
    // Not before a refusal.
    let head = format!("{POST}content-length: 2000000\r\nexpect: 100-continue\r\n\r\n");
    let answer = exchange(node.addr(), &[&head]).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    shutdown(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kvm_a_caller_that_goes_does_not_cost_a_kept_instance_its_state() {
    if !require_kvm() {
        return;
    }
    let mut version = Version::instance("v1", 1);
    version = Version::of(version.artifact, |statement| {
        statement.manifest.scale.isolation = Isolation::Instance;
        statement.manifest.limits.cpu_ms = 400;
    });
    let (coordinator, _dir, node) = serving(&version).await;
    let mut config = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    let stream = TokioIo::new(TcpStream::connect(node.addr()).await.unwrap());
    let (caller, connection) = config.handshake(stream).await.unwrap();
    config.max_concurrent_streams(100);
    tokio::spawn(connection);
    let ask = async |path: &str, patience: u64| {
        let request = Request::get(format!("http://{}/acme/hello{path}", node.addr()));
        let request = request.body(Full::<Bytes>::default()).unwrap();
        let answer = caller.clone().send_request(request);
        let answer = tokio::time::timeout(Duration::from_millis(patience), answer).await;
        let body = answer.ok()?.unwrap().into_body().collect().await.unwrap();
        Some(String::from_utf8(body.to_bytes().to_vec()).unwrap())
    };
    let rest = || tokio::time::sleep(Duration::from_millis(100));
    assert_eq!(ask("/count", 5000).await.as_deref(), Some("1"));
    rest().await;
    // What it does when its caller has gone takes longer than an instance may take to its next wait.
    assert_eq!(ask("/doze", 50).await, None);
    tokio::time::sleep(Duration::from_millis(600)).await;
    let two = ask("/count", 5000).await;
    assert_eq!(two.as_deref(), Some("2"));
    rest().await;
    // But no more than the request might have.
    assert_eq!(ask("/loop", 50).await, None);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(ask("/count", 5000).await.as_deref(), Some("1"));
    outcomes(&coordinator, 5).await;
    let gone: Vec<_> = {
        let state = coordinator.state();
        let gone = state
            .ledger
            .iter()
            .filter(|row| row.outcome == Outcome::Cancelled);
        gone.map(|row| (row.run_ns, row.cpu_ns)).collect()
    };
    // And all of it is on record.
    assert_eq!(gone.len(), 2, "{gone:?}");
    assert!(gone[0].0 >= 250_000_000, "{gone:?}");
    assert!(
        (250_000_000..1_000_000_000).contains(&gone[1].1),
        "{gone:?}"
    );
    shutdown(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kvm_who_wants_a_websocket_is_told_that_there_is_none() {
    if !require_kvm() {
        return;
    }
    let (_coordinator, _dir, node) = serving(&Version::instance("v1", 1)).await;
    let asked = |upgrade: &str| {
        format!(
            "GET /acme/hello/ HTTP/1.1\r\nhost: x\r\nconnection: upgrade, close\r\nupgrade: {upgrade}\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
    };
    let answer = exchange(node.addr(), &[&asked("websocket")]).await;
    assert!(answer.starts_with("HTTP/1.1 501 "), "{answer}");
    assert!(answer.contains("/problems/no-websocket"), "{answer}");
    // Others it can do without.
    let answer = exchange(node.addr(), &[&asked("h2c")]).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    shutdown(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kvm_a_storm_of_callers_leaves_nothing_behind() {
    if !require_kvm() {
        return;
    }
    for isolation in [Isolation::Request, Isolation::Instance] {
        let version = Version::of(
            std::fs::read(guest("several_requests")).unwrap(),
            |statement| {
                statement.manifest.scale.isolation = isolation;
                statement.manifest.limits.memory_bytes = 64 << 20;
                statement.manifest.limits.deadline_ms = 700;
                statement.manifest.limits.cpu_ms = 300;
                statement.manifest.rollout.probe_path = "/ok".into();
            },
        );
        let (coordinator, _dir, node) = serving(&version).await;
        let seed: u64 = std::process::id().into();
        println!("seed {seed}, {isolation:?}");
        let to = node.addr();
        let before = descriptors();
        let callers = (0..6).map(|nth| tokio::spawn(storm(to, seed.wrapping_mul(31) + nth)));
        let mut answered = BTreeSet::new();
        for caller in callers.collect::<Vec<_>>() {
            for id in caller.await.unwrap() {
                assert!(answered.insert(id), "two answers have one id");
            }
        }
        until("every answer is in the ledger", || {
            let state = coordinator.state();
            let ids: Vec<_> = state
                .ledger
                .iter()
                .map(|row| row.request.to_string())
                .collect();
            let known: BTreeSet<_> = ids.iter().cloned().collect();
            assert_eq!(ids.len(), known.len(), "one request is on record twice");
            answered.is_subset(&known)
        })
        .await;
        let mut client = Client::connect(to).await;
        let healthy = async {
            loop {
                let health = client.get("/.holm/health").await.unwrap();
                if text(&health).contains("\"free\":8") {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let all = tokio::time::timeout(Duration::from_secs(20), healthy).await;
        assert!(all.is_ok(), "not all slots came back");
        let last = get(to, "/acme/hello/ok").await;
        assert_eq!(last.status(), 200, "{}", text(&last));
        drop(client);
        until("connections and machines are closed again", || {
            descriptors() <= before + 8
        })
        .await;
        shutdown(node).await;
    }
}

fn descriptors() -> usize {
    std::fs::read_dir(Path::new("/proc/self/fd"))
        .unwrap()
        .count()
}

/// Many streams of one connection after the other, most of which are reset at some time. Gives the ids of the
/// answers that came.
async fn storm(to: SocketAddr, seed: u64) -> Vec<String> {
    let mut next = random_below(seed);
    let paths = [
        "/ok",
        "/ok",
        "/ok",
        "/wait",
        "/release",
        "/meet",
        "/until_gone",
        "/writes_until_gone",
        "/loop",
        "/malformed",
        "/unanswered",
        "/parts",
        "/body",
    ];
    let mut answered = Vec::new();
    for _ in 0..4 {
        let stream = TokioIo::new(TcpStream::connect(to).await.unwrap());
        let (caller, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), stream)
                .await
                .unwrap();
        let connection = tokio::spawn(connection);
        let mut asked = tokio::task::JoinSet::new();
        for _ in 0..40 {
            let path = paths[next(paths.len() as u64) as usize];
            let patience = Duration::from_micros(next(60_000));
            let method = [Method::GET, Method::POST, Method::HEAD][next(3) as usize].clone();
            let request = Request::builder()
                .method(method)
                .uri(format!("http://{to}/acme/hello{path}"))
                .body(Full::new(Bytes::from(vec![1; next(3000) as usize])))
                .unwrap();
            let mut caller = caller.clone();
            asked.spawn(async move {
                let answer = async {
                    let answer = caller.send_request(request).await.ok()?;
                    let id = answer
                        .headers()
                        .get("x-request-id")?
                        .to_str()
                        .ok()?
                        .to_owned();
                    answer.into_body().collect().await.ok()?;
                    Some(id)
                };
                tokio::time::timeout(patience, answer).await.ok().flatten()
            });
            if next(4) == 0 {
                tokio::time::sleep(Duration::from_millis(next(5))).await;
            }
        }
        if next(2) == 0 {
            // All of it at once.
            connection.abort();
        }
        answered.extend(asked.join_all().await.into_iter().flatten());
        connection.abort();
    }
    answered
}
