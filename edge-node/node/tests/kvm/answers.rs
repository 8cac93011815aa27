//! What callers get, and what of it is on record.

use std::time::{Duration, Instant};

use holm_model::usage::Outcome;
use holm_test_support::require_kvm;
use hyper::Method;

use crate::common::http::{self, Client, get, request, send, text};
use crate::common::program::Version;
use crate::common::{config, join, shutdown};
use crate::{outcomes, serving, serving_with};

#[tokio::test(flavor = "multi_thread")]
async fn kvm_a_deployed_function_answers_by_path_and_by_host() {
    if !require_kvm() {
        return;
    }
    let (_coordinator, _dir, node) = serving_with(&Version::new("v1", 1), |config| {
        config.domain = Some("fn.example.org".into());
    })
    .await;

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
