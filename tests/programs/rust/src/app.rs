//! The axum application that both tokio programs serve.

use std::convert::Infallible;
use std::error::Error;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Request};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use futures_util::StreamExt as _;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

/// Serves for ever.
pub async fn serve() {
    let listener = tokio::net::TcpListener::bind(("0.0.0.0", crate::port()))
        .await
        .expect("the port is free");
    let app = Router::new()
        .route("/", get(async || "hello from axum\n"))
        .route("/tasks/{count}", get(tasks))
        .route("/timers", get(timers))
        .route("/stream/{count}", get(stream))
        .route("/echo", post(async |body: Bytes| body))
        .route("/count", post(count))
        .route("/panic", get(panics))
        .route("/upstream", post(upstream));
    axum::serve(listener, app)
        .await
        .expect("serving never ends");
}

/// Tasks that send to each other.
async fn tasks(Path(count): Path<u64>) -> String {
    let (sender, mut receiver) = mpsc::channel(4);
    for number in 0..count {
        let sender = sender.clone();
        tokio::spawn(async move {
            tokio::task::yield_now().await;
            sender.send(number).await.expect("the receiver waits");
        });
    }
    drop(sender);
    let mut sum = 0;
    while let Some(number) = receiver.recv().await {
        sum += number;
    }
    format!("{sum}\n")
}

async fn timers() -> String {
    let start = Instant::now();
    let mut interval = tokio::time::interval(Duration::from_millis(2));
    for _ in 0..4 {
        interval.tick().await;
    }
    let late = tokio::time::timeout(Duration::from_millis(3), std::future::pending::<()>()).await;
    let took = start.elapsed();
    let in_time = took >= Duration::from_millis(9) && took < Duration::from_secs(2);
    format!("{} {in_time}\n", late.is_err())
}

/// A response that comes in parts.
async fn stream(Path(count): Path<usize>) -> Body {
    let parts = futures_util::stream::unfold(0, move |number| async move {
        tokio::task::yield_now().await;
        let part = Ok::<_, Infallible>(Bytes::from(format!("part {number}\n")));
        (number < count).then_some((part, number + 1))
    });
    Body::from_stream(parts)
}

/// A request that comes in parts.
async fn count(request: Request) -> String {
    let mut parts = request.into_body().into_data_stream();
    let (mut bytes, mut sum) = (0, 0u64);
    while let Some(Ok(part)) = parts.next().await {
        bytes += part.len();
        sum = part
            .iter()
            .fold(sum, |sum, byte| sum.wrapping_add(u64::from(*byte)));
    }
    format!("{bytes} {sum}\n")
}

/// A task that panics is caught by the runtime.
async fn panics() -> String {
    let task = tokio::spawn(async { panic!("on purpose") });
    format!(
        "panicked: {}\n",
        task.await.is_err_and(|error| error.is_panic())
    )
}

/// Hands a request on to what $UPSTREAM names, body and answer in parts as they come.
async fn upstream(request: Request) -> Response {
    match hand_on(request).await {
        Ok(response) => response,
        Err(error) => format!("{error}\n").into_response(),
    }
}

async fn hand_on(request: Request) -> Result<Response, Box<dyn Error + Send + Sync>> {
    let stream = TcpStream::connect(std::env::var("UPSTREAM")?).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let parts = request.into_body().into_data_stream();
    let handed_on = Request::post("/handed-on/parts")
        .header("host", "upstream")
        .body(Body::from_stream(parts))?;
    Ok(sender.send_request(handed_on).await?.map(Body::new))
}
