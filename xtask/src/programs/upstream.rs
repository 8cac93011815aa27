//! Where programs that connect to elsewhere connect to: an HTTP server in this process.
//!
//! On the host they are told its address. A guest is never let to the loopback interface, so it is told a
//! name, which resolves to an address of a network that is nobody's (RFC 5737), which is dialled here.

use std::io::{BufReader, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use anyhow::Result;
use holm_node::outbound::{Allowed, Means, Outside};

use super::http::Message;

/// What guests of this process call it.
const NAME: &str = "upstream.test";
/// What that resolves to.
const NOBODY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// The server. It serves for as long as the process lives.
pub(crate) struct Upstream {
    address: SocketAddr,
}

impl Upstream {
    /// On the loopback interface.
    pub(crate) fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                // A client that goes away is no reason to stop.
                thread::spawn(move || serve(&connection));
            }
        });
        Ok(Upstream { address })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Host and port for guests of this process.
    pub(crate) fn name(&self) -> String {
        format!("{NAME}:{}", self.address.port())
    }

    /// What guests of this process may reach: only this.
    pub(crate) fn allowed(&self) -> Result<Allowed> {
        let place = self.name().parse()?;
        let outside = Outside::with(Vec::new(), Arc::new(Loopback));
        Ok(Allowed::of(vec![place], &outside))
    }
}

#[derive(Debug)]
struct Loopback;

impl Means for Loopback {
    fn resolve(&self, name: &str) -> std::io::Result<Vec<IpAddr>> {
        match name == NAME {
            true => Ok(vec![NOBODY.into()]),
            false => Err(std::io::Error::other("there is no such name")),
        }
    }

    fn dial(&self, address: SocketAddr) -> SocketAddr {
        SocketAddr::new(Ipv4Addr::LOCALHOST.into(), address.port())
    }
}

/// Answers with what it was asked; in parts, if the path ends so.
fn serve(connection: &TcpStream) -> Result<()> {
    connection.set_nodelay(true)?;
    let mut reader = BufReader::new(connection);
    while let Some(request) = Message::read(&mut reader, false)? {
        let mut words = request.first.split(' ');
        let (method, path) = (
            words.next().unwrap_or_default(),
            words.next().unwrap_or_default(),
        );
        let sum: u64 = request.body.iter().map(|byte| u64::from(*byte)).sum();
        let text = format!("{method} {path} {} {sum}\n", request.body.len());
        let mut writer = connection;
        if path.ends_with("/parts") {
            writer.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
            for part in text.as_bytes().chunks(4) {
                writer.write_all(
                    &[format!("{:x}\r\n", part.len()).as_bytes(), part, b"\r\n"].concat(),
                )?;
            }
            writer.write_all(b"0\r\n\r\n")?;
        } else {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", text.len());
            writer.write_all(format!("{head}{text}").as_bytes())?;
        }
        if !request.kept {
            break;
        }
    }
    Ok(())
}
