//! The same program on the host, over the loopback interface.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::{Ask, median};

const PATIENCE: Duration = Duration::from_secs(20);
const TIMED: usize = 200;

/// A program that serves on a port of its own; ended when this is dropped.
pub(crate) struct Server {
    child: Child,
    port: u16,
    connection: Option<BufReader<TcpStream>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// Starts a program; gives the time until it took its first connection.
    pub(crate) fn start(program: &Path) -> Result<(Self, Duration)> {
        Self::start_with(program, |_| Vec::new())
    }

    /// The same with arguments, which are told the port.
    pub(crate) fn start_with(
        program: &Path,
        arguments: impl Fn(u16) -> Vec<String>,
    ) -> Result<(Self, Duration)> {
        // The port is free once more when the listener is dropped; the system gives it out late again.
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
            .local_addr()?
            .port();
        let start = Instant::now();
        let child = Command::new(program)
            .args(arguments(port))
            .env("PORT", port.to_string())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let server = Server {
            child,
            port,
            connection: None,
        };
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            if start.elapsed() > PATIENCE {
                bail!("{} does not listen on port {port}", program.display());
            }
            thread::sleep(Duration::from_micros(50));
        }
        Ok((server, start.elapsed()))
    }

    /// One request, on the kept connection if there is one.
    pub(crate) fn ask(&mut self, ask: &Ask) -> Result<(u16, Vec<u8>)> {
        let body = ask.body();
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_nodelay(true)?;
                BufReader::new(stream)
            }
        };
        let length = match body.len() {
            0 => String::new(),
            bytes => format!("Content-Length: {bytes}\r\n"),
        };
        let head = format!(
            "{} {} HTTP/1.1\r\nHost: localhost\r\n{length}\r\n",
            ask.method, ask.path
        );
        let request = [head.as_bytes(), &body].concat();
        // A server may answer before it has read everything.
        let mut writer = connection.get_ref().try_clone()?;
        let sent = thread::spawn(move || writer.write_all(&request));
        let (status, body, kept) =
            read_response(&mut connection).with_context(|| format!("{} on the host", ask.path))?;
        let _ = sent.join();
        self.connection = kept.then_some(connection);
        Ok((status, body))
    }

    /// The median time of a request.
    pub(crate) fn time(&mut self, ask: &Ask) -> Result<Duration> {
        let head = format!(
            "{} {} HTTP/1.1\r\nHost: localhost\r\n\r\n",
            ask.method, ask.path
        );
        let mut samples = Vec::with_capacity(2 * TIMED);
        for _ in 0..2 * TIMED {
            let mut connection = match self.connection.take() {
                Some(connection) => connection,
                None => BufReader::new(TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?),
            };
            let start = Instant::now();
            connection.get_mut().write_all(head.as_bytes())?;
            let (_, _, kept) = read_response(&mut connection)?;
            samples.push(start.elapsed());
            self.connection = kept.then_some(connection);
        }
        Ok(median(samples.split_off(TIMED)))
    }
}

/// Status, body, and whether the connection is kept.
fn read_response(from: &mut BufReader<TcpStream>) -> Result<(u16, Vec<u8>, bool)> {
    let mut line = String::new();
    from.read_line(&mut line)?;
    let status = line
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .with_context(|| format!("not an HTTP response: {line:?}"))?;
    let (mut length, mut chunked, mut kept) = (None, false, true);
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
        None => {
            kept = false;
            from.read_to_end(&mut body)?;
        }
    }
    Ok((status, body, kept))
}
