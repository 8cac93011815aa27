//! Several requests at a time in a kept instance, and bodies that stream.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use holm_model::manifest::Isolation;
use holm_model::usage::Outcome;
use holm_test_support::{guest, require_kvm};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::common::program::Version;
use crate::common::shutdown;
use crate::{outcomes, serving};

type Body = BoxBody<Bytes, std::io::Error>;

/// A connection of HTTP/2, so that all requests come to one thread of the node.
#[derive(Clone)]
struct Caller {
    to: std::net::SocketAddr,
    sender: hyper::client::conn::http2::SendRequest<Body>,
}

impl Caller {
    async fn new(to: std::net::SocketAddr) -> Self {
        let stream = TokioIo::new(TcpStream::connect(to).await.unwrap());
        let executor = TokioExecutor::new();
        let (sender, connection) = hyper::client::conn::http2::handshake(executor, stream)
            .await
            .unwrap();
        tokio::spawn(connection);
        Caller { to, sender }
    }

    async fn send(&self, path: &str, body: Body) -> hyper::Result<Response<Incoming>> {
        let request = Request::post(format!("http://{}/acme/hello{path}", self.to));
        let request = request.body(body).unwrap();
        self.sender.clone().send_request(request).await
    }

    async fn get(&self, path: &str) -> String {
        let answer = self.send(path, empty()).await.unwrap();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        String::from_utf8(body.to_vec()).unwrap()
    }
}

fn empty() -> Body {
    Full::default().map_err(|never| match never {}).boxed()
}

/// A body whose parts are sent to a channel.
struct InParts(mpsc::Receiver<&'static [u8]>);

impl hyper::body::Body for InParts {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let part = self.0.poll_recv(cx);
        part.map(|part| part.map(|part| Ok(Frame::data(Bytes::from_static(part)))))
    }
}

fn in_parts() -> (mpsc::Sender<&'static [u8]>, Body) {
    let (sender, receiver) = mpsc::channel(8);
    (sender, BodyExt::boxed(InParts(receiver)))
}

/// A version that serves several at a time.
fn version(isolation: Isolation, deadline_ms: u64) -> Version {
    Version::of(
        std::fs::read(guest("several_requests")).unwrap(),
        |statement| {
            statement.manifest.scale.isolation = isolation;
            statement.manifest.limits.memory_bytes = 64 << 20;
            statement.manifest.limits.deadline_ms = deadline_ms;
            statement.manifest.limits.cpu_ms = 5000;
            statement.manifest.limits.request_body_bytes = 8 << 20;
            statement.manifest.rollout.probe_path = "/ok".into();
        },
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn kvm_requests_to_a_kept_instance_meet_in_it_and_each_is_on_record() {
    if !require_kvm() {
        return;
    }
    let (coordinator, _dir, node) = serving(&version(Isolation::Instance, 10_000)).await;
    let caller = Caller::new(node.addr()).await;
    // Each has come to rest before the next comes: then its instance is where that goes.
    let rest = || tokio::time::sleep(Duration::from_millis(300));
    let one = tokio::spawn({
        let caller = caller.clone();
        async move { caller.get("/meet").await }
    });
    rest().await;
    assert_eq!(caller.get("/meet").await, "2 met\n");
    assert_eq!(one.await.unwrap(), "2 met\n");
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..4 {
        rest().await;
        let caller = caller.clone();
        waiting.spawn(async move { caller.get("/wait").await });
    }
    rest().await;
    assert_eq!(caller.get("/release").await, "done\n");
    for answer in waiting.join_all().await {
        assert_eq!(answer, "released\n");
    }
    let outcomes = outcomes(&coordinator, 7).await;
    assert_eq!(outcomes, [Outcome::Answered; 7]);
    shutdown(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kvm_a_caller_that_goes_leaves_the_instance_to_the_others() {
    if !require_kvm() {
        return;
    }
    let (coordinator, _dir, node) = serving(&version(Isolation::Instance, 10_000)).await;
    let caller = Caller::new(node.addr()).await;
    let stays = tokio::spawn({
        let caller = caller.clone();
        async move { caller.get("/wait").await }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    for path in ["/until_gone", "/writes_until_gone"] {
        let goes = Caller::new(node.addr()).await;
        let gone = tokio::time::timeout(Duration::from_millis(200), goes.get(path));
        gone.await.unwrap_err();
    }
    // Those came by connections of their own, and so perhaps to another thread's instance.
    let goes = tokio::time::timeout(Duration::from_millis(200), caller.get("/until_gone"));
    goes.await.unwrap_err();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_ne!(caller.get("/gone").await, "0\n");
    // Nor does one whose answer is none do the others any harm.
    let malformed = caller.send("/malformed", empty()).await.unwrap();
    assert_eq!(malformed.status(), 502);
    assert_eq!(caller.get("/release").await, "done\n");
    assert_eq!(stays.await.unwrap(), "released\n");
    let mut outcomes = outcomes(&coordinator, 7).await;
    outcomes.sort_unstable();
    outcomes.dedup();
    assert_eq!(
        outcomes,
        [Outcome::Answered, Outcome::Crash, Outcome::Cancelled]
    );
    shutdown(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kvm_an_answer_comes_in_parts_as_it_is_written() {
    if !require_kvm() {
        return;
    }
    let (coordinator, _dir, node) = serving(&version(Isolation::Instance, 10_000)).await;
    let caller = Caller::new(node.addr()).await;
    let answer = caller.send("/parts", empty()).await.unwrap();
    assert_eq!(answer.status(), 200);
    let mut body = answer.into_body();
    let mut come = Vec::new();
    while come.len() < 8 {
        let frame = body.frame().await.unwrap().unwrap();
        come.extend_from_slice(&frame.into_data().unwrap());
    }
    assert_eq!(come, b"one two ");
    assert_eq!(caller.get("/release").await, "done\n");
    let rest = body.collect().await.unwrap().to_bytes();
    assert_eq!(rest, "three");
    assert_eq!(outcomes(&coordinator, 2).await, [Outcome::Answered; 2]);
    let bytes: Vec<_> = {
        let state = coordinator.state();
        let rows = state.ledger.iter().filter(|row| !row.probe);
        rows.map(|row| row.response_bytes).collect()
    };
    assert_eq!(bytes, [5, 13]);
    shutdown(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kvm_an_answer_that_breaks_off_is_cut_and_not_passed_for_whole() {
    if !require_kvm() {
        return;
    }
    // Alone in its machine, it waits for a release that cannot come, which is a deadlock.
    let v1 = version(Isolation::Request, 1000);
    let (coordinator, _dir, node) = serving(&v1).await;
    let caller = Caller::new(node.addr()).await;
    // The end may overtake the head, but is never a good one.
    if let Ok(answer) = caller.send("/parts", empty()).await {
        assert_eq!(answer.status(), 200);
        answer.into_body().collect().await.unwrap_err();
    }
    assert_eq!(outcomes(&coordinator, 1).await, [Outcome::Crash]);
    shutdown(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kvm_a_body_streams_in_and_what_comes_too_slowly_is_the_callers_fault() {
    if !require_kvm() {
        return;
    }
    static PART: [u8; 100_000] = [7; 100_000];
    for isolation in [Isolation::Request, Isolation::Instance] {
        let (coordinator, _dir, node) = serving(&version(isolation, 10_000)).await;
        let caller = Caller::new(node.addr()).await;
        // Long, and of unknown length.
        let (sender, body) = in_parts();
        let answer = tokio::spawn({
            let caller = caller.clone();
            async move { caller.send("/body", body).await }
        });
        for nth in 0..30 {
            sender.send(&PART).await.unwrap();
            if nth % 10 == 0 {
                tokio::time::sleep(Duration::from_millis(60)).await;
            }
        }
        drop(sender);
        let answer = answer.await.unwrap().unwrap();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, "3000000 bytes");
        // The same in one piece.
        let body = Full::from(vec![7; 3_000_000]).map_err(|never| match never {});
        let answer = caller.send("/body", body.boxed()).await.unwrap();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, "3000000 bytes");
        // Too long, as it turns out; and a caller that goes in the middle.
        let (sender, body) = in_parts();
        let answer = tokio::spawn({
            let caller = caller.clone();
            async move { caller.send("/body", body).await }
        });
        for _ in 0..90 {
            if sender.send(&PART).await.is_err() {
                break;
            }
        }
        assert_eq!(answer.await.unwrap().unwrap().status(), 413);
        let outcomes = outcomes(&coordinator, 3).await;
        assert_eq!(
            outcomes,
            [Outcome::Answered, Outcome::Answered, Outcome::Cancelled]
        );
        let bytes: Vec<_> = {
            let state = coordinator.state();
            let rows = state.ledger.iter().filter(|row| !row.probe);
            rows.map(|row| row.request_bytes).collect()
        };
        assert_eq!(bytes[..2], [3_000_000; 2]);
        shutdown(node).await;
    }
}
