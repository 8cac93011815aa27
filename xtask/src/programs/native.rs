//! The same program on the host, over the loopback interface.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::Answer;
use super::build::{self, Source};
use super::http::{Client, PATIENCE};
use super::site::Site;
use super::subjects::Subject;
use super::upstream::Upstream;

/// A program that serves on a port of its own; ended when this is dropped.
pub(crate) struct Server {
    child: Child,
    pub(crate) client: Client,
    /// From its start until it took its first connection.
    pub(crate) ready: Duration,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// Starts a program; `set_up` gives it what it needs beside the port.
    pub(crate) fn start(program: &Path, set_up: impl FnOnce(&mut Command, u16)) -> Result<Self> {
        // The port is free once more when the listener is dropped; the system gives it out late again.
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let mut command = Command::new(program);
        set_up(&mut command, address.port());
        let start = Instant::now();
        let child = command
            .env("PORT", address.port().to_string())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let mut server = Server {
            child,
            client: Client::new(address, String::new()),
            ready: Duration::ZERO,
        };
        wait_for(address, start)
            .with_context(|| format!("{} does not serve", program.display()))?;
        server.ready = start.elapsed();
        Ok(server)
    }
}

fn wait_for(address: SocketAddr, start: Instant) -> Result<()> {
    while TcpStream::connect(address).is_err() {
        if start.elapsed() > PATIENCE {
            bail!("nobody listens at {address}");
        }
        thread::sleep(Duration::from_micros(50));
    }
    Ok(())
}

/// A program that was built and has answered everything on the host.
pub(crate) struct OnHost {
    pub(crate) program: PathBuf,
    /// It still runs.
    pub(crate) server: Server,
    /// In the order of what was asked.
    pub(crate) answers: Vec<Answer>,
}

impl OnHost {
    /// Builds and asks it.
    pub(crate) fn of(workspace: &Path, subject: &Subject, upstream: &Upstream) -> Result<Self> {
        let program = build::build(workspace, &subject.source)
            .with_context(|| format!("cannot build {}", subject.name))?;
        let site = match subject.source {
            Source::Busybox => Some(Site::make(&build::directory(workspace)?)?),
            _ => None,
        };
        let mut server = Server::start(&program, |command, port| {
            command.env("UPSTREAM", upstream.address().to_string());
            if let Some(site) = &site {
                command.args(site.on_host(port));
            }
        })?;
        let answers = subject.asks.iter().map(|ask| server.client.ask(ask));
        let answers = answers
            .collect::<Result<_>>()
            .with_context(|| format!("{} on the host", subject.name))?;
        Ok(OnHost {
            program,
            server,
            answers,
        })
    }
}
