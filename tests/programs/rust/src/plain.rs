//! A small HTTP/1.1 server of the standard library alone: GET, kept-alive connections.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};

/// Serves for ever, one connection after the other; `handle` gives the body for a path.
pub fn serve(handle: impl Fn(&str) -> String) {
    let listener = TcpListener::bind(("0.0.0.0", crate::port())).expect("the port is free");
    for connection in listener.incoming().flatten() {
        // A caller that goes away is no reason to stop.
        let _ = answer(&connection, &handle);
    }
}

fn answer(connection: &TcpStream, handle: &impl Fn(&str) -> String) -> std::io::Result<()> {
    let mut reader = BufReader::new(connection);
    loop {
        let mut first = String::new();
        if reader.read_line(&mut first)? == 0 {
            return Ok(());
        }
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? <= 2 {
                break;
            }
        }
        let body = handle(first.split(' ').nth(1).unwrap_or("/"));
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        (&*connection).write_all([head.as_bytes(), body.as_bytes()].concat().as_slice())?;
    }
}
