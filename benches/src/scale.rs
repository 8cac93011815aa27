//! `cargo xtask scale`: one coordinator and many nodes that speak the real protocol and run nothing.
//!
//! The coordinator is a process of its own, so that its memory and CPU are its alone; all nodes are in this one.
//! What is measured is what a coordinator costs for each idle node, how long a rollout takes beside what its waves
//! and its bytes take anyhow, and how long until all are back when the coordinator was killed.

mod bare;
mod swarm;

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use holm_tests::Fleet;
use serde::Serialize;
use tokio::runtime::Runtime;

use crate::memory::Own;
use crate::report::Goal;
use crate::sample::rounded;
use crate::stand::HELLO;

pub(crate) use bare::serve;
use swarm::Swarm;

/// What the rolled out artifact has, program and files.
const ARTIFACT_BYTES: usize = 1 << 20;
/// How long all nodes may take to have something.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long it is looked what idle nodes cost.
const IDLE: Duration = Duration::from_secs(10);
/// What the one wave of the rollout takes by its rules.
const BAKE: Duration = Duration::from_millis(100);

/// What one number of nodes cost.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Figures {
    nodes: usize,
    /// The coordinator's own memory above what it had without nodes, for each.
    idle_bytes_per_node: f64,
    /// The coordinator's own memory after the rollout, in all.
    after_rollout_bytes: u64,
    /// Its CPU time in each second, for each.
    idle_cpu_us_per_node: f64,
    /// From `holm deploy` until all nodes have the version and the coordinator knows.
    rollout_s: f64,
    /// Of these, what the wave takes by its rules.
    rollout_wave_s: f64,
    /// What the bytes take with a bare QUIC server in the coordinator's place.
    rollout_bytes_s: f64,
    /// CPU time of the coordinator and of the nodes in the rollout; nodes verify and hash what they get.
    rollout_cpu_s: Cpu,
    /// CPU time of the bare server and of its clients.
    bytes_cpu_s: Cpu,
    /// Links that were lost in the rollout, and so made anew.
    rollout_lost_links: usize,
    /// From the start of a coordinator that was killed until all have a link and their desired state.
    storm_s: f64,
}

/// CPU time, in seconds, of the two sides, which share the machine's cores.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Cpu {
    server: f64,
    clients: f64,
}

/// The result: few nodes first, then many.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Scale {
    artifact_bytes: usize,
    sizes: Vec<Figures>,
}

/// Measures with these numbers of nodes, one after the other.
pub(crate) fn run(mut sizes: Vec<usize>) -> Result<Scale> {
    sizes.sort_unstable();
    raise_open_files();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot make a runtime")?;
    let mut results = Vec::new();
    for nodes in sizes {
        results.push(measure(&runtime, nodes)?);
    }
    Ok(Scale {
        artifact_bytes: ARTIFACT_BYTES,
        sizes: results,
    })
}

/// With a fleet of its own: what a coordinator has once used it does not give back.
fn measure(runtime: &Runtime, nodes: usize) -> Result<Figures> {
    let mut fleet = Fleet::without_nodes();
    let mut swarm = Swarm::new(&fleet)?;
    // One is there already, so that what the first one costs is not counted for each.
    runtime.block_on(swarm.grow(1))?;
    await_all("a link", || swarm.linked() == 1)?;
    let one = Own::of(fleet.coordinator_pid())?.private;
    eprintln!("{nodes} nodes join");
    runtime.block_on(swarm.grow(nodes))?;
    await_all("a link", || swarm.linked() == nodes)?;

    std::thread::sleep(Duration::from_secs(2));
    let before = cpu(fleet.coordinator_pid())?;
    std::thread::sleep(IDLE);
    let pid = fleet.coordinator_pid();
    let cpu = (cpu(pid)? - before).as_secs_f64() / IDLE.as_secs_f64();
    let idle = Own::of(pid)?.private.saturating_sub(one);

    eprintln!("{nodes} nodes get a version");
    let (program, manifest) = version(&fleet)?;
    let clock = CpuClock::start(pid)?;
    let lost = swarm.lost();
    let started = Instant::now();
    fleet.deploy(HELLO, &program, &manifest);
    await_all("the version", || swarm.have_newest() == nodes)?;
    let rollout = started.elapsed();
    let rollout_cpu_s = clock.stop()?;
    let rollout_lost_links = swarm.lost() - lost;
    let after = Own::of(pid)?.private;
    let (bytes, bytes_cpu_s) = runtime.block_on(bare::transfer(nodes, ARTIFACT_BYTES))?;

    eprintln!("{nodes} nodes come back");
    fleet.kill_coordinator();
    await_all("the end of its link", || swarm.linked() == 0)?;
    let started = Instant::now();
    fleet.start_coordinator();
    await_all("a link", || swarm.linked() == nodes)?;
    let storm = started.elapsed();
    Ok(Figures {
        nodes,
        idle_bytes_per_node: rounded(idle as f64 / (nodes - 1).max(1) as f64),
        after_rollout_bytes: after,
        idle_cpu_us_per_node: rounded(cpu * 1e6 / nodes as f64),
        rollout_s: rounded(rollout.as_secs_f64()),
        rollout_wave_s: BAKE.as_secs_f64(),
        rollout_bytes_s: rounded(bytes.as_secs_f64()),
        rollout_cpu_s,
        bytes_cpu_s,
        rollout_lost_links,
        storm_s: rounded(storm.as_secs_f64()),
    })
}

/// A program with a file of random bytes, so that no chunk of it was there before.
fn version(fleet: &Fleet) -> Result<(std::path::PathBuf, String)> {
    let program = holm_test_support::function(HELLO);
    let length = fs::metadata(&program)?.len();
    let length = ARTIFACT_BYTES.saturating_sub(usize::try_from(length)?);
    let mut below = holm_test_support::random_below(1);
    let bytes: Vec<u8> = (0..length).map(|_| below(256) as u8).collect();
    fs::write(fleet.path("bytes"), bytes).context("cannot write the version's file")?;
    let manifest = "probe = \"/\"\n[limits]\nmemory = \"16MiB\"\n[files]\n\"/bytes\" = \"bytes\"\n";
    Ok((program, manifest.to_owned()))
}

fn await_all(what: &str, reached: impl Fn() -> bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !reached() {
        ensure!(
            Instant::now() < deadline,
            "not all nodes had {what} in {PATIENCE:?}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Tells what CPU time a server and this process, which has all of its clients, use.
pub(crate) struct CpuClock {
    server: u32,
    before: [Duration; 2],
}

impl CpuClock {
    pub(crate) fn start(server: u32) -> Result<Self> {
        let before = [cpu(server)?, cpu(std::process::id())?];
        Ok(CpuClock { server, before })
    }

    pub(crate) fn stop(self) -> Result<Cpu> {
        let [server, clients] = self.before;
        let since = |now: Duration, before: Duration| rounded((now - before).as_secs_f64());
        Ok(Cpu {
            server: since(cpu(self.server)?, server),
            clients: since(cpu(std::process::id())?, clients),
        })
    }
}

/// CPU time that a process has used.
fn cpu(process: u32) -> Result<Duration> {
    let path = format!("/proc/{process}/stat");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    // The name, in parentheses, may have spaces.
    let after = text.rsplit(')').next().unwrap_or_default();
    let ticks = |field: usize| {
        let text = after.split_whitespace().nth(field);
        text.and_then(|text| text.parse::<u64>().ok())
    };
    let ticks = ticks(11).zip(ticks(12)).map(|(user, system)| user + system);
    // Linux shows them in hundredths of a second on every machine that Holm runs on.
    Ok(Duration::from_millis(
        ticks.context("no CPU time in /proc")? * 10,
    ))
}

/// Each node has a socket.
fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        eprintln!("the limit of open files stays as it is: {error}");
    }
}

impl Cpu {
    fn text(self) -> String {
        format!("{:.2} / {:.2}", self.server, self.clients)
    }
}

impl Scale {
    /// As text.
    pub(crate) fn table(&self) -> String {
        let mut lines = vec![format!(
            "{:>6} {:>15} {:>16} {:>10} {:>10} {:>8} {:>8} {:>19} {:>19} {:>6} {:>8}",
            "nodes",
            "idle KiB/node",
            "idle CPU us/s",
            "then MiB",
            "rollout s",
            "wave s",
            "bytes s",
            "CPU s coord/nodes",
            "bytes server/client",
            "lost",
            "storm s"
        )];
        for one in &self.sizes {
            lines.push(format!(
                "{:>6} {:>15.1} {:>16.1} {:>10.1} {:>10.2} {:>8.2} {:>8.2} {:>19} {:>19} {:>6} {:>8.2}",
                one.nodes,
                one.idle_bytes_per_node / 1024.0,
                one.idle_cpu_us_per_node,
                one.after_rollout_bytes as f64 / f64::from(1 << 20),
                one.rollout_s,
                one.rollout_wave_s,
                one.rollout_bytes_s,
                one.rollout_cpu_s.text(),
                one.bytes_cpu_s.text(),
                one.rollout_lost_links,
                one.storm_s
            ));
        }
        lines.join("\n")
    }

    /// What is to hold for the most nodes.
    pub(crate) fn goals(&self) -> Vec<Goal> {
        let Some(most) = self.sizes.last() else {
            return Vec::new();
        };
        let mut goals = vec![
            Goal::at_most(
                "idle node <= 64 KiB of the coordinator",
                most.idle_bytes_per_node,
                65536.0,
            ),
            Goal::at_most(
                "rollout <= wave + 2 x bytes",
                most.rollout_s,
                most.rollout_wave_s + 2.0 * most.rollout_bytes_s,
            ),
            Goal::at_most("storm <= 10 s", most.storm_s, 10.0),
        ];
        if let [few, .., most] = &self.sizes[..] {
            let growth = most.nodes as f64 / few.nodes as f64;
            goals.push(Goal::at_most(
                "rollout grows no faster than the nodes",
                most.rollout_s,
                growth * few.rollout_s,
            ));
        }
        goals
    }
}
