//! Serving outside Holm: a plain HTTP/1.1 server on `0.0.0.0:$PORT`, a thread per connection.
//!
//! It is for running and testing a function like any other program, and for platforms that start
//! programs with `$PORT`. It does no TLS and no HTTP/2: put a proxy before it.

mod http;

use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::{Request, Response};

/// Without `PORT`.
const DEFAULT_PORT: u16 = 8080;
/// Connections served at a time; those above wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 256;
/// Longest silence of a peer, in the middle of a request as well as between two.
const PEER_TIMEOUT: Duration = Duration::from_secs(30);
/// Between two looks at a listener that has failed or a server that is full.
const RETRY_AFTER: Duration = Duration::from_millis(10);

/// Listens on `$PORT` and answers requests until the process ends.
pub(crate) fn serve(answer: &(dyn Fn(Request<'_>) -> Response + Sync)) -> io::Result<()> {
    let port = port()?;
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).map_err(|error| {
        let text = format!("cannot listen on port {port}: {error}; set PORT to a free one");
        io::Error::new(error.kind(), text)
    })?;
    listen(&listener, answer)
}

fn port() -> io::Result<u16> {
    match std::env::var("PORT") {
        Err(_) => Ok(DEFAULT_PORT),
        Ok(text) => text.parse().map_err(|_| {
            let text = format!("PORT is `{text}`; it must be a number from 0 to 65535");
            io::Error::new(io::ErrorKind::InvalidInput, text)
        }),
    }
}

fn listen(
    listener: &TcpListener,
    answer: &(dyn Fn(Request<'_>) -> Response + Sync),
) -> io::Result<()> {
    let open = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        loop {
            if open.load(Ordering::Relaxed) >= MAX_CONNECTIONS {
                std::thread::sleep(RETRY_AFTER);
                continue;
            }
            let stream = match listener.accept() {
                Ok((stream, _)) => stream,
                // The peer is gone already, or this process is out of descriptors: neither is a
                // reason to end.
                Err(_) => {
                    std::thread::sleep(RETRY_AFTER);
                    continue;
                }
            };
            open.fetch_add(1, Ordering::Relaxed);
            let one = || {
                connection(stream, answer);
                open.fetch_sub(1, Ordering::Relaxed);
            };
            // Without a thread the connection is dropped, and its caller sees it closed.
            if std::thread::Builder::new()
                .spawn_scoped(scope, one)
                .is_err()
            {
                open.fetch_sub(1, Ordering::Relaxed);
            }
        }
    })
}

/// Serves one connection to its end. What goes wrong is between this peer and its connection, so
/// it ends here.
fn connection(stream: TcpStream, answer: &dyn Fn(Request<'_>) -> Response) {
    let prepared = stream
        .set_nodelay(true)
        .and_then(|()| stream.set_read_timeout(Some(PEER_TIMEOUT)))
        .and_then(|()| stream.set_write_timeout(Some(PEER_TIMEOUT)));
    if prepared.is_ok() {
        let _ = http::serve(&stream, &stream, answer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};

    #[test]
    fn a_caller_over_tcp_gets_the_handlers_answer() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        // The server has no way to stop; it ends with the test process.
        std::thread::spawn(move || {
            listen(&listener, &|request| {
                Response::text(request.path().to_owned())
            })
        });
        let mut stream = TcpStream::connect(address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        stream
            .write_all(b"GET /there HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.ends_with("\r\n\r\n/there"), "{answer}");
    }
}
