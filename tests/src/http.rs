//! One HTTP request over one connection, as plain as it can be: no client stands between a test and
//! what a node sends.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use holm_test_support::patience;

/// What came back.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The head in lower case.
    pub head: String,
    /// The body.
    pub body: String,
}

impl Answer {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

/// What became of a request.
#[derive(Clone, Debug)]
pub enum Fate {
    /// Nobody took the connection, so nothing was sent.
    Refused,
    /// The connection broke after that, or no whole answer came over it in time.
    BrokenOff,
    /// A whole answer came.
    Answered(Answer),
}

/// Asks a node for `path`; `None` if it does not answer.
pub fn get(address: &str, path: &str) -> Option<Answer> {
    match ask(address, &format!("GET {path}"), "", &[]) {
        Fate::Answered(answer) => Some(answer),
        Fate::Refused | Fate::BrokenOff => None,
    }
}

/// Sends one request over a connection of its own: `line` is method and path, `headers` are whole lines.
pub fn ask(address: &str, line: &str, headers: &str, body: &[u8]) -> Fate {
    let Some(mut stream) = send(address, line, headers, body) else {
        return Fate::Refused;
    };
    let mut bytes = Vec::new();
    if stream.read_to_end(&mut bytes).is_err() {
        return Fate::BrokenOff;
    }
    read(&bytes).map_or(Fate::BrokenOff, Fate::Answered)
}

/// Sends it and does not wait for an answer; `None` if nobody took the connection. If it could not be sent in full,
/// who reads from the connection sees that.
pub fn send(address: &str, line: &str, headers: &str, body: &[u8]) -> Option<TcpStream> {
    let mut stream = TcpStream::connect(address).ok()?;
    let length = match body.len() {
        0 => String::new(),
        bytes => format!("content-length: {bytes}\r\n"),
    };
    let head =
        format!("{line} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n{headers}{length}\r\n");
    let patience = patience(Duration::from_secs(20));
    let sent = stream
        .set_read_timeout(Some(patience))
        .and_then(|()| stream.write_all(&[head.as_bytes(), body].concat()));
    if sent.is_err() {
        // It fails only if the other side has closed it already.
        let _ = stream.shutdown(Shutdown::Both);
    }
    Some(stream)
}

/// An answer, if it is whole.
fn read(bytes: &[u8]) -> Option<Answer> {
    let text = String::from_utf8_lossy(bytes);
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let answer = Answer {
        status,
        head: head.to_lowercase(),
        body: body.to_owned(),
    };
    let length = answer.header("content-length");
    let length: Option<usize> = length.and_then(|length| length.trim().parse().ok());
    let got = bytes.len() - head.len() - 4;
    length.is_none_or(|length| length <= got).then_some(answer)
}
