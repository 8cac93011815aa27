//! A small HTTP client.

use std::net::SocketAddr;

use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

pub type Answer = Response<Bytes>;

/// A connection of HTTP/1.1.
pub struct Client {
    sender: hyper::client::conn::http1::SendRequest<Full<Bytes>>,
}

impl Client {
    pub async fn connect(to: SocketAddr) -> Self {
        Client::over(TcpStream::connect(to).await.unwrap()).await
    }

    pub async fn over(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Self {
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .unwrap();
        tokio::spawn(connection);
        Client { sender }
    }

    pub async fn send(&mut self, request: Request<Full<Bytes>>) -> Result<Answer, hyper::Error> {
        self.sender.ready().await?;
        let (parts, body) = self.sender.send_request(request).await?.into_parts();
        Ok(Response::from_parts(
            parts,
            body.collect().await?.to_bytes(),
        ))
    }

    pub async fn get(&mut self, path: &str) -> Result<Answer, hyper::Error> {
        self.send(request(Method::GET, path, "")).await
    }
}

pub fn request(method: Method, path: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "test");
    request.body(Full::new(body.into())).unwrap()
}

pub async fn send(to: SocketAddr, request: Request<Full<Bytes>>) -> Answer {
    Client::connect(to).await.send(request).await.unwrap()
}

pub async fn get(to: SocketAddr, path: &str) -> Answer {
    send(to, request(Method::GET, path, "")).await
}

/// A connection of HTTP/2, with prior knowledge.
#[derive(Clone)]
pub struct Http2 {
    sender: hyper::client::conn::http2::SendRequest<Full<Bytes>>,
}

impl Http2 {
    pub async fn connect(to: SocketAddr) -> Self {
        Http2::over(TcpStream::connect(to).await.unwrap()).await
    }

    pub async fn over(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Self {
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .unwrap();
        tokio::spawn(connection);
        Http2 { sender }
    }

    pub async fn send(&mut self, request: Request<Full<Bytes>>) -> Answer {
        let answer = self.sender.send_request(request).await.unwrap();
        let (parts, body) = answer.into_parts();
        Response::from_parts(parts, body.collect().await.unwrap().to_bytes())
    }
}

/// `count` at a time on one connection of HTTP/2.
pub async fn get_http2(to: SocketAddr, path: &str, count: usize) -> Vec<Answer> {
    let client = Http2::connect(to).await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..count {
        let mut client = client.clone();
        let request = Request::get(format!("http://{to}{path}"));
        let request = request.body(Full::default()).unwrap();
        tasks.spawn(async move { client.send(request).await });
    }
    tasks.join_all().await
}

pub fn text(answer: &Answer) -> &str {
    std::str::from_utf8(answer.body()).unwrap()
}

pub fn problem(answer: &Answer) -> holm_model::api::Problem {
    assert_eq!(answer.headers()["content-type"], "application/problem+json");
    serde_json::from_slice(answer.body()).unwrap()
}
