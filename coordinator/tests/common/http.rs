//! A client of the HTTP API that shows what is on the wire: one request, one connection.

use std::net::SocketAddr;
use std::time::Duration;

use holm_model::api::Problem;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

#[derive(Clone)]
pub struct Client {
    pub address: SocketAddr,
    pub token: Option<String>,
}

pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Client {
    pub async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[]).await
    }

    pub async fn post(&self, path: &str, body: &serde_json::Value) -> Answer {
        self.send("POST", path, &serde_json::to_vec(body).unwrap())
            .await
    }

    pub async fn put(&self, path: &str, body: &[u8]) -> Answer {
        self.send("PUT", path, body).await
    }

    pub async fn send(&self, method: &str, path: &str, body: &[u8]) -> Answer {
        let mut stream = self.begin(method, path, body.len()).await;
        // A server that refuses early may close before it has read everything.
        let _ = stream.write_all(body).await;
        Answer::read(stream).await
    }

    /// A request whose body is announced and never sent.
    pub async fn announce(&self, method: &str, path: &str, bytes: usize) -> Answer {
        Answer::read(self.begin(method, path, bytes).await).await
    }

    /// Sends the head of a request alone.
    pub async fn begin(&self, method: &str, path: &str, bytes: usize) -> TcpStream {
        let token = self.token.as_ref();
        let authorization = token
            .map(|token| format!("authorization: Bearer {token}\r\n"))
            .unwrap_or_default();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: coordinator\r\nconnection: close\r\n\
             {authorization}content-length: {bytes}\r\n\r\n"
        );
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        stream
    }
}

impl Answer {
    async fn read(mut stream: TcpStream) -> Self {
        let mut bytes = Vec::new();
        let reading = stream.read_to_end(&mut bytes);
        let _ = timeout(Duration::from_secs(30), reading).await.unwrap();
        let split = bytes
            .windows(4)
            .position(|four| four == b"\r\n\r\n")
            .unwrap();
        let head = String::from_utf8(bytes[..split].to_vec())
            .unwrap()
            .to_lowercase();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Answer {
            status,
            head,
            body: bytes[split + 4..].to_vec(),
        }
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body, of an answer with this status.
    pub fn expect<T: DeserializeOwned>(&self, status: u16) -> T {
        assert_eq!(self.status, status, "{}", self.text());
        serde_json::from_slice(&self.body).unwrap()
    }

    /// The problem, of an answer with this status.
    pub fn problem(&self, status: u16) -> Problem {
        let problem: Problem = self.expect(status);
        assert!(
            self.head.contains("content-type: application/problem+json"),
            "{}",
            self.head
        );
        assert_eq!(problem.status, status);
        assert!(!problem.title.is_empty() && !problem.detail.is_empty());
        problem
    }
}
