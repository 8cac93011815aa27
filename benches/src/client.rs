//! The one caller of all servers that are compared: HTTP/1.1 over connections that are opened once.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use crate::sample::Samples;

/// Longest wait for one answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// What every server is to answer.
pub(crate) const GREETING: &[u8] = b"hello from v1\n";

/// Whom to ask for what.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    pub(crate) path: String,
}

impl Target {
    pub(crate) fn new(address: SocketAddr, path: impl Into<String>) -> Self {
        Target {
            address,
            path: path.into(),
        }
    }
}

/// An open connection, and what is asked over it.
#[derive(Debug)]
pub(crate) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    target: Target,
}

impl Connection {
    pub(crate) async fn open(target: &Target) -> Result<Self> {
        let address = target.address;
        let stream = TcpStream::connect(address)
            .await
            .with_context(|| format!("cannot connect to {address}"))?;
        stream.set_nodelay(true)?;
        let (sender, driver) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(driver);
        Ok(Connection {
            sender,
            target: target.clone(),
        })
    }

    /// Sends `GET`; status and body.
    pub(crate) async fn get(&mut self) -> Result<(StatusCode, Bytes)> {
        self.send(Method::GET, Bytes::new()).await
    }

    /// Sends a request with a body; status and body.
    pub(crate) async fn send(
        &mut self,
        method: Method,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes)> {
        let request = Request::builder()
            .method(method)
            .uri(&self.target.path)
            .header("host", "localhost")
            .body(Full::new(body))?;
        let answer = async {
            self.sender.ready().await?;
            let answer = self.sender.send_request(request).await?;
            let status = answer.status();
            Ok::<_, hyper::Error>((status, answer.into_body().collect().await?.to_bytes()))
        };
        tokio::time::timeout(PATIENCE, answer)
            .await
            .with_context(|| format!("no answer from {:?} in {PATIENCE:?}", self.target))?
            .with_context(|| format!("no answer from {:?}", self.target))
    }

    /// The same where the answer has to be the greeting.
    pub(crate) async fn greet(&mut self) -> Result<Duration> {
        let started = Instant::now();
        let (status, body) = self.get().await?;
        let took = started.elapsed();
        ensure!(
            status == StatusCode::OK && body == GREETING,
            "{:?} answered {status} with {:?}",
            self.target,
            String::from_utf8_lossy(&body)
        );
        Ok(took)
    }
}

/// `POST` with a bearer token and a JSON body, over a connection of its own; the JSON of the answer.
pub(crate) async fn post(
    address: SocketAddr,
    path: &str,
    token: &str,
    body: &'static str,
) -> Result<serde_json::Value> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, driver) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(driver);
    let request = Request::post(path)
        .header("host", "localhost")
        .header("content-type", "application/json")
        .header("authorization", format!("Bearer {token}"))
        .body(Full::new(Bytes::from_static(body.as_bytes())))?;
    let answer = sender.send_request(request).await?;
    let status = answer.status();
    let body = answer.into_body().collect().await?.to_bytes();
    ensure!(status.is_success(), "{path} gave {status}");
    serde_json::from_slice(&body).with_context(|| format!("{path} gave no JSON"))
}

/// The caller's own thread.
pub(crate) fn runtime() -> Result<Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot make a runtime")
}

/// Asks over `connections` at once, each as soon as it has its answer, for `time`. Answers per second.
pub(crate) fn storm(
    runtime: &Runtime,
    target: &Target,
    connections: usize,
    time: Duration,
    samples: &mut Samples,
) -> Result<f64> {
    runtime.block_on(async {
        let mut open = Vec::new();
        for _ in 0..connections {
            let mut connection = Connection::open(target).await?;
            // Its server may give it a thread or an instance at its first request.
            connection.greet().await?;
            open.push(connection);
        }
        let started = Instant::now();
        let mut callers = JoinSet::new();
        for mut connection in open {
            callers.spawn(async move {
                let mut took = Vec::new();
                while started.elapsed() < time {
                    took.push(connection.greet().await?);
                }
                Ok::<_, anyhow::Error>(took)
            });
        }
        let mut answers = 0;
        while let Some(caller) = callers.join_next().await {
            let took = caller.context("a caller was lost")??;
            answers += took.len();
            took.into_iter().for_each(|one| samples.add(one));
        }
        Ok(answers as f64 / started.elapsed().as_secs_f64())
    })
}
