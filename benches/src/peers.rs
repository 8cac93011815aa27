//! `cargo xtask peers`: other systems with the same hello, asked by the same caller in the same rounds.
//!
//! Where a peer cannot be had or does not run here, the table goes without it and says why.

mod containers;
mod install;

use std::fs;
use std::io::IsTerminal as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};
use tokio::runtime::Runtime;

use crate::client::{Target, runtime, storm};
use crate::cores::Cores;
use crate::latency::CONNECTIONS;
use crate::memory::Own;
use crate::report::Goal;
use crate::sample::{Samples, median, rounded};
use crate::server::{self, Server};
use crate::stand::{HELLO, Stand};
use crate::subjects::{self, Subject};

const NODE: &str = "a";
/// Requests over one connection in each round.
const PER_ROUND: u32 = 200;
const STORM: Duration = Duration::from_millis(700);

/// One system's figures; ratios are to Holm's of the same rounds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Peer {
    name: String,
    /// What a request finds of the one before it.
    state: String,
    p50_us: f64,
    p99_us: f64,
    p50_ratio: f64,
    p99_ratio: f64,
    n: usize,
    rps: f64,
    rps_ratio: f64,
    /// From the start of the process to its first answer.
    start_ms: f64,
    private_mib: f64,
}

/// A whole run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Peers {
    cores: usize,
    rounds: u32,
    /// Holm first.
    peers: Vec<Peer>,
    /// From start to end of a container with a static hello.
    container_us: Option<f64>,
    /// Why some are not there.
    missing: Vec<String>,
}

/// One that is being measured.
struct Running {
    name: &'static str,
    state: &'static str,
    target: Target,
    pid: u32,
    start: Duration,
    /// Ends with this; Holm's node ends with its stand.
    _server: Option<Server>,
    one: Samples,
    rates: Vec<f64>,
}

impl Running {
    fn of(name: &'static str, state: &'static str, server: Server) -> Self {
        Running {
            name,
            state,
            target: server.target.clone(),
            pid: server.pid(),
            start: server.ready,
            _server: Some(server),
            one: Samples::default(),
            rates: Vec::new(),
        }
    }
}

/// Installs what is missing below `target/peers`, starts all, and measures in `rounds` rounds.
pub(crate) fn run(rounds: u32) -> Result<Peers> {
    let cores = Cores::given()?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/peers");
    fs::create_dir_all(&root).with_context(|| format!("cannot make {}", root.display()))?;
    let root = root.canonicalize()?;
    let mut missing = Vec::new();
    // Before the servers, so that it goes after them.
    let scratch = tempfile::tempdir().context("cannot make a directory")?;

    let stand = Stand::with_nodes(&[NODE])?;
    stand.await_snapshot(NODE)?;
    let holm = Running {
        name: "Holm",
        state: "fresh machine",
        target: stand.target(NODE, HELLO, "/")?,
        start: stand.restart(NODE)?,
        pid: stand.pid(NODE),
        _server: None,
        one: Samples::default(),
        rates: Vec::new(),
    };
    let mut all = vec![holm];
    type Start = fn(&Path, &Path, usize) -> Result<Server>;
    let others: [(&str, &str, Start); 4] = [
        ("wasmtime serve", "fresh instance", wasmtime),
        ("workerd", "kept", workerd),
        ("nginx", "none", nginx),
        ("hyper", "none", |_, _, cores| server::hyper(cores)),
    ];
    for (name, state, start) in others {
        match start(&root, scratch.path(), cores.count()) {
            Ok(server) => all.push(Running::of(name, state, server)),
            Err(error) => missing.push(format!("{name}: {error:#}")),
        }
    }
    measure(&mut all, &cores, rounds)?;
    let container_us = match containers::time(&root, scratch.path()) {
        Ok(samples) => Some(rounded(samples.quantile(0.5) / 1e3)),
        Err(error) => {
            missing.push(format!("crun: {error:#}"));
            None
        }
    };
    Ok(Peers {
        cores: cores.count(),
        rounds,
        peers: figures(&all)?,
        container_us,
        missing,
    })
}

fn measure(all: &mut [Running], cores: &Cores, rounds: u32) -> Result<()> {
    let processes: Vec<u32> = all.iter().map(|one| one.pid).collect();
    let runtime = runtime()?;
    let targets: Vec<_> = all.iter().map(|one| one.target.clone()).collect();
    let mut subjects = connect(&runtime, &targets)?;
    let progress = std::io::stderr().is_terminal();
    for round in 0..rounds {
        if progress {
            eprint!("\rround {} of {rounds}", round + 1);
        }
        cores.use_one(&processes)?;
        for (subject, running) in subjects.iter_mut().zip(all.iter_mut()) {
            running.one.begin_round();
            if round == 0 {
                subject.take(subject.warm_up, &mut Samples::default())?;
            }
            subject.take(PER_ROUND, &mut running.one)?;
        }
        cores.use_all(&processes)?;
        for running in all.iter_mut() {
            let mut unread = Samples::default();
            let rate = storm(&runtime, &running.target, CONNECTIONS, STORM, &mut unread)?;
            running.rates.push(rate);
        }
    }
    if progress {
        eprintln!();
    }
    Ok(())
}

fn connect<'a>(runtime: &'a Runtime, targets: &[Target]) -> Result<Vec<Subject<'a>>> {
    let connect = |target| subjects::over_http("hello", runtime, target);
    targets.iter().map(connect).collect()
}

fn figures(all: &[Running]) -> Result<Vec<Peer>> {
    let holm = &all[0];
    let figures = |running: &Running| {
        let (p50, p99) = (running.one.quantile(0.5), running.one.quantile(0.99));
        let rates = running.rates.iter().zip(&holm.rates);
        let one = running.one.figures(&holm.one);
        Ok(Peer {
            name: running.name.to_owned(),
            state: running.state.to_owned(),
            p50_us: rounded(p50 / 1e3),
            p99_us: rounded(p99 / 1e3),
            p50_ratio: one.p50_floors,
            p99_ratio: rounded(p99 / holm.one.quantile(0.99)),
            n: one.n,
            rps: median(running.rates.clone()).round(),
            rps_ratio: rounded(median(rates.map(|(one, holm)| one / holm).collect())),
            start_ms: rounded(running.start.as_secs_f64() * 1e3),
            private_mib: rounded(Own::of(running.pid)?.private as f64 / f64::from(1 << 20)),
        })
    };
    all.iter().map(figures).collect()
}

impl Peers {
    /// As a table for people.
    pub(crate) fn table(&self) -> String {
        let mut table = String::from(
            "| system | what is kept | p50 | p99 | × Holm p50 | × Holm p99 | requests/s | × Holm | start | own memory |\n\
             | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n",
        );
        for peer in &self.peers {
            table += &format!(
                "| {} | {} | {:.0} µs | {:.0} µs | {:.2} | {:.2} | {:.0} | {:.2} | {:.0} ms | {:.0} MiB |\n",
                peer.name,
                peer.state,
                peer.p50_us,
                peer.p99_us,
                peer.p50_ratio,
                peer.p99_ratio,
                peer.rps,
                peer.rps_ratio,
                peer.start_ms,
                peer.private_mib
            );
        }
        if let Some(container) = self.container_us {
            table += &format!(
                "\nA container (crun) with a static hello, from start to end: {:.1} ms.\n",
                container / 1e3
            );
        }
        for missing in &self.missing {
            table += &format!("\nNot here: {missing}\n");
        }
        table
    }

    /// What Holm is to reach beside them.
    pub(crate) fn goals(&self) -> Vec<Goal> {
        let named = |name: &str| self.peers.iter().find(|peer| peer.name == name);
        let Some(holm) = named("Holm") else {
            return Vec::new();
        };
        let mut goals = Vec::new();
        if let Some(wasmtime) = named("wasmtime serve") {
            goals.extend([
                Goal::at_least(
                    "requests/s >= 1.5 x wasmtime serve",
                    holm.rps,
                    1.5 * wasmtime.rps,
                ),
                Goal::at_most("p50 <= wasmtime serve", holm.p50_us, wasmtime.p50_us),
                Goal::at_most("p99 <= wasmtime serve", holm.p99_us, wasmtime.p99_us),
            ]);
        }
        if let Some(workerd) = named("workerd") {
            goals.extend([
                Goal::at_least("requests/s >= workerd", holm.rps, workerd.rps),
                Goal::at_most("p50 <= workerd", holm.p50_us, workerd.p50_us),
                Goal::at_most("p99 <= workerd", holm.p99_us, workerd.p99_us),
            ]);
        }
        goals
    }
}

/// Fresh instances of a component that was compiled before.
fn wasmtime(root: &Path, scratch: &Path, _: usize) -> Result<Server> {
    let program = install::wasmtime(root)?;
    let (source, compiled) = (peer_file("hello.wat"), scratch.join("hello.cwasm"));
    let status = Command::new(&program)
        .arg("compile")
        .arg(&source)
        .arg("-o")
        .arg(&compiled)
        .status()
        .context("cannot start wasmtime")?;
    ensure!(status.success(), "wasmtime does not compile {source}");
    Server::start(|address| {
        let mut command = Command::new(program);
        command
            .args([
                "serve",
                "--allow-precompiled",
                "--addr",
                &address.to_string(),
            ])
            .arg(compiled);
        command
    })
}

fn workerd(root: &Path, scratch: &Path, _: usize) -> Result<Server> {
    let program = install::workerd(root)?;
    Server::start(|address| {
        let config = fill("workerd.capnp", &[("ADDRESS", address.to_string())]);
        let path = put(scratch, "workerd.capnp", config);
        let mut command = Command::new(program);
        command.arg("serve").arg(path);
        command
    })
}

fn nginx(root: &Path, scratch: &Path, cores: usize) -> Result<Server> {
    let debian = install::debian(root)?;
    Server::start(|address| {
        let words = [
            ("ADDRESS", address.to_string()),
            ("CORES", cores.to_string()),
        ];
        let path = put(scratch, "nginx.conf", fill("nginx.conf", &words));
        let mut command = debian.command("usr/sbin/nginx");
        command.arg("-p").arg(scratch).arg("-c").arg(path);
        command
    })
}

/// A file of `benches/peers`.
fn peer_file(name: &str) -> String {
    format!("{}/peers/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// The text of such a file with words of it replaced. What cannot be read, the server will complain about.
fn fill(name: &str, words: &[(&str, String)]) -> String {
    let text = fs::read_to_string(peer_file(name)).unwrap_or_default();
    words
        .iter()
        .fold(text, |text, (word, value)| text.replace(word, value))
}

fn put(directory: &Path, name: &str, text: String) -> std::path::PathBuf {
    let path = directory.join(name);
    // The server says so if it is not there.
    let _ = fs::write(&path, text);
    path
}
