//! As much of HTTP/1.1 as the comparison speaks: one message after the other over one connection.

use std::io::{BufRead, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use holm_test_support::patience;

use super::subjects::Ask;
use super::{Answer, median};

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// Requests that are timed, after as many that are not.
const TIMED: usize = 200;

/// A client that keeps its connection for as long as the server does.
pub(crate) struct Client {
    address: SocketAddr,
    /// What comes before each path.
    prefix: String,
    connection: Option<BufReader<TcpStream>>,
}

impl Client {
    pub(crate) fn new(address: SocketAddr, prefix: String) -> Self {
        Client {
            address,
            prefix,
            connection: None,
        }
    }

    fn connection(&mut self) -> Result<BufReader<TcpStream>> {
        if let Some(connection) = self.connection.take() {
            return Ok(connection);
        }
        let stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(patience(PATIENCE)))?;
        stream.set_nodelay(true)?;
        Ok(BufReader::new(stream))
    }

    /// Closes the connection that is kept, if there is one.
    pub(crate) fn hang_up(&mut self) {
        self.connection = None;
    }

    /// One request.
    pub(crate) fn ask(&mut self, ask: &Ask) -> Result<Answer> {
        let body = ask.body();
        let mut connection = self.connection()?;
        let length = match body.len() {
            0 => String::new(),
            bytes => format!("Content-Length: {bytes}\r\n"),
        };
        let request = [self.head(ask, &length).as_bytes(), &body].concat();
        // A server may answer before it has read everything.
        let mut writer = connection.get_ref().try_clone()?;
        let sent = thread::spawn(move || writer.write_all(&request));
        let answer = self
            .receive(&mut connection)
            .with_context(|| format!("{} at {}", ask.path, self.address))?;
        let _ = sent.join();
        if answer.kept {
            self.connection = Some(connection);
        }
        Ok((answer.status()?, answer.body))
    }

    /// The median time of a request without a body.
    pub(crate) fn time(&mut self, ask: &Ask) -> Result<Duration> {
        let head = self.head(ask, "");
        let mut samples = Vec::with_capacity(2 * TIMED);
        for _ in 0..2 * TIMED {
            let mut connection = self.connection()?;
            let start = Instant::now();
            connection.get_mut().write_all(head.as_bytes())?;
            let answer = self.receive(&mut connection)?;
            samples.push(start.elapsed());
            // A failure may take no time at all.
            let status = answer.status()?;
            ensure!(status < 400, "{} at {}: {status}", ask.path, self.address);
            if answer.kept {
                self.connection = Some(connection);
            }
        }
        Ok(median(samples.split_off(TIMED)))
    }

    fn head(&self, ask: &Ask, more: &str) -> String {
        let Ask { method, path, .. } = ask;
        let prefix = &self.prefix;
        format!("{method} {prefix}{path} HTTP/1.1\r\nHost: localhost\r\n{more}\r\n")
    }

    fn receive(&self, connection: &mut BufReader<TcpStream>) -> Result<Message> {
        Message::read(connection, true)?.context("the server closed the connection unanswered")
    }
}

/// A request or a response.
pub(crate) struct Message {
    /// Its first line.
    pub(crate) first: String,
    pub(crate) body: Vec<u8>,
    /// Whether another may follow.
    pub(crate) kept: bool,
}

impl Message {
    /// Reads one; none at the connection's end. Only a response may end with its connection.
    pub(crate) fn read(from: &mut impl BufRead, is_response: bool) -> Result<Option<Message>> {
        let mut first = String::new();
        if from.read_line(&mut first)? == 0 {
            return Ok(None);
        }
        let (mut length, mut chunked, mut kept) = (None, false, true);
        let mut line = String::new();
        loop {
            line.clear();
            from.read_line(&mut line)?;
            let header = line.trim().to_ascii_lowercase();
            match header.split_once(':') {
                None => break,
                Some(("content-length", value)) => length = Some(value.trim().parse::<usize>()?),
                Some(("transfer-encoding", _)) => chunked = true,
                Some(("connection", value)) => kept = value.trim() != "close",
                Some(_) => {}
            }
        }
        let mut body = Vec::new();
        match length {
            _ if chunked => loop {
                line.clear();
                from.read_line(&mut line)?;
                let bytes = usize::from_str_radix(line.trim(), 16)?;
                let before = body.len();
                body.resize(before + bytes, 0);
                from.read_exact(&mut body[before..])?;
                line.clear();
                from.read_line(&mut line)?;
                if bytes == 0 {
                    break;
                }
            },
            Some(bytes) => {
                body.resize(bytes, 0);
                from.read_exact(&mut body)?;
            }
            None if is_response => {
                kept = false;
                from.read_to_end(&mut body)?;
            }
            None => {}
        }
        Ok(Some(Message { first, body, kept }))
    }

    /// The status of a response.
    fn status(&self) -> Result<u16> {
        let status = self.first.split(' ').nth(1);
        status
            .and_then(|status| status.parse().ok())
            .with_context(|| format!("not an HTTP response: {:?}", self.first))
    }
}
