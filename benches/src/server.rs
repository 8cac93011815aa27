//! Servers as processes: started on a free port of the loopback interface, and ended with their owner.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustix::process::{Pid, Signal, kill_process};
use tokio::net::TcpSocket;

use crate::client::{Connection, GREETING, Target, runtime};

/// How long a server may take from its start to its first answer, and from SIGTERM to its end.
const START: Duration = Duration::from_secs(20);
const END: Duration = Duration::from_secs(2);
/// Between two attempts to get a first answer.
const LOOK: Duration = Duration::from_micros(200);
const BACKLOG: u32 = 1024;

/// A server that runs.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    pub(crate) target: Target,
    /// From its start to its first answer.
    pub(crate) ready: Duration,
}

impl Server {
    /// Starts what `command` makes of an address, and waits until it greets.
    pub(crate) fn start(command: impl FnOnce(SocketAddr) -> Command) -> Result<Self> {
        let address = free_address()?;
        let mut command = command(address);
        let started = Instant::now();
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {:?}", command.get_program()))?;
        let target = Target::new(address, "/");
        let mut server = Server {
            child,
            target,
            ready: Duration::ZERO,
        };
        let runtime = runtime()?;
        while started.elapsed() < START {
            let greeted = runtime.block_on(async {
                let mut connection = Connection::open(&server.target).await?;
                connection.greet().await
            });
            if greeted.is_ok() {
                server.ready = started.elapsed();
                return Ok(server);
            }
            if let Some(status) = server.child.try_wait()? {
                bail!("{:?} ended at its start: {status}", command.get_program());
            }
            thread::sleep(LOOK);
        }
        bail!("{:?} did not greet within {START:?}", command.get_program())
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // SIGTERM first: one with children of its own ends them. Signals fail only if it has ended already.
        let pid = Pid::from_child(&self.child);
        let _ = kill_process(pid, Signal::TERM);
        let deadline = Instant::now() + END;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An address of the loopback interface with a port that nobody has.
fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("there is no free port")?;
    Ok(listener.local_addr()?)
}

/// A bare hyper server in a process of its own.
pub(crate) fn hyper(threads: usize) -> Result<Server> {
    let own = std::env::current_exe().context("cannot tell where this program is")?;
    Server::start(|address| {
        let mut command = Command::new(own);
        command.args(["serve", &address.to_string(), &threads.to_string()]);
        command
    })
}

/// What that process does: each thread has a socket of its own, as on a node. Never returns but with an error.
pub(crate) fn serve(address: SocketAddr, threads: usize) -> Result<()> {
    let threads: Vec<_> = (0..threads.max(1))
        .map(|_| thread::spawn(move || serve_alone(address)))
        .collect();
    for thread in threads {
        match thread.join() {
            Ok(ended) => ended?,
            Err(_) => bail!("a thread of the server died"),
        }
    }
    Ok(())
}

fn serve_alone(address: SocketAddr) -> Result<()> {
    runtime()?.block_on(async {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseport(true)?;
        socket.bind(address)?;
        let listener = socket.listen(BACKLOG)?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let connection =
                http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(greet));
            // How a connection ends is its caller's matter.
            tokio::spawn(async { drop(connection.await) });
        }
    })
}

async fn greet(_: Request<Incoming>) -> Result<Response<Full<Bytes>>, hyper::Error> {
    Ok(Response::new(Full::new(Bytes::from_static(GREETING))))
}
