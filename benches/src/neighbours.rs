//! A tenant beside others that misbehave, and how soon one that does not end is ended.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::client::{Connection, Target};
use crate::sample::{Figures, Samples};
use crate::stand::{HELLO, Stand};

/// Between two requests of the tenant that behaves, and how long each measurement takes.
const EVERY: Duration = Duration::from_millis(5);
const FOR: Duration = Duration::from_secs(10);
/// Callers of the one that does not.
const CALLERS: usize = 4;
/// The deadline of what loops, as in [`MANIFEST`].
pub(crate) const DEADLINE: Duration = Duration::from_millis(100);
pub(crate) const MANIFEST: &str =
    "[limits]\nmemory = \"16MiB\"\ndeadline = \"100ms\"\nresponse_body = \"1MiB\"\n";
/// How often a runaway is measured.
const RUNAWAYS: u32 = 200;

/// A test guest that misbehaves, and what its callers may get for it. What takes too long gets its 504 even if
/// it would have crashed later.
pub(crate) type Guest = (&'static str, &'static [u16]);
const LOOPS: Guest = ("loops", &[504]);
const MEMORY: Guest = ("exhausts_memory", &[502, 504]);
const CRASHES: Guest = ("dereferences_null", &[502, 504]);
pub(crate) const GUESTS: [Guest; 3] = [LOOPS, MEMORY, CRASHES];

/// The figures.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Neighbours {
    pub(crate) alone_us: Figures,
    pub(crate) beside_loops_us: Figures,
    pub(crate) beside_memory_us: Figures,
    pub(crate) beside_crashes_us: Figures,
    /// What a runaway takes over its deadline.
    pub(crate) runaway_us: Figures,
}

impl Neighbours {
    /// Each with its name.
    pub(crate) fn named(&self) -> [(&'static str, Figures); 5] {
        [
            ("alone", self.alone_us),
            ("beside_loops", self.beside_loops_us),
            ("beside_memory", self.beside_memory_us),
            ("beside_crashes", self.beside_crashes_us),
            ("runaway", self.runaway_us),
        ]
    }
}

/// A guest's name as a function, of another tenant than [`HELLO`].
pub(crate) fn function_name(guest: &str) -> String {
    format!("other/{}", guest.replace('_', "-"))
}

/// Deploys those that misbehave and measures beside each.
pub(crate) fn measure(
    stand: &Stand,
    node: &str,
    runtime: &Runtime,
    floor: &Samples,
) -> Result<Neighbours> {
    let mut targets = Vec::new();
    for (guest, statuses) in GUESTS {
        let name = function_name(guest);
        stand.deploy(&name, &holm_test_support::guest(guest), MANIFEST);
        targets.push((stand.target(node, &name, "/")?, statuses));
    }
    let hello = stand.target(node, HELLO, "/")?;
    let alone = paced(runtime, &hello, None).context("alone")?;
    let mut beside = Vec::new();
    for (target, statuses) in &targets {
        let samples = paced(runtime, &hello, Some((target, statuses)));
        beside.push(samples.with_context(|| format!("beside {}", target.path))?);
    }
    let runaway = runaway(runtime, targets[0].0.address, &targets[0].0.path)?;
    Ok(Neighbours {
        alone_us: alone.figures(floor),
        beside_loops_us: beside[0].figures(floor),
        beside_memory_us: beside[1].figures(floor),
        beside_crashes_us: beside[2].figures(floor),
        runaway_us: runaway.figures(floor),
    })
}

/// Asks for the greeting at a fixed rate. Each time counts from when the request was due, so that waiting for
/// the one before it is part of it.
fn paced(
    runtime: &Runtime,
    hello: &Target,
    bad: Option<(&Target, &'static [u16])>,
) -> Result<Samples> {
    runtime.block_on(async {
        let mut connection = Connection::open(hello).await?;
        connection.greet().await?;
        let mut callers: JoinSet<Result<()>> = JoinSet::new();
        if let Some((target, statuses)) = bad {
            (0..CALLERS).for_each(|_| drop(callers.spawn(misbehave(target.clone(), statuses))));
        }
        let mut samples = Samples::default();
        samples.begin_round();
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let end = Instant::now() + FOR;
        while Instant::now() < end {
            let due = ticks.tick().await.into_std();
            connection.greet().await?;
            samples.add(due.elapsed());
        }
        // None ends by itself but with an error.
        if let Some(ended) = callers.try_join_next() {
            ended.context("a caller of the other tenant was lost")??;
        }
        Ok(samples)
    })
}

async fn misbehave(target: Target, statuses: &'static [u16]) -> Result<()> {
    let mut connection = Connection::open(&target).await?;
    loop {
        let answered = connection.get().await?.0.as_u16();
        // Over its share of the node it is turned away; that is its own affair.
        ensure!(
            statuses.contains(&answered) || answered == 503,
            "{} answered {answered}",
            target.path
        );
    }
}

/// How long after its deadline the caller of a function that loops has its answer.
fn runaway(runtime: &Runtime, address: SocketAddr, path: &str) -> Result<Samples> {
    runtime.block_on(async {
        let mut connection = Connection::open(&Target::new(address, path)).await?;
        let mut samples = Samples::default();
        samples.begin_round();
        for _ in 0..RUNAWAYS {
            let started = Instant::now();
            let (status, _) = connection.get().await?;
            let took = started.elapsed();
            ensure!(status == 504, "a function that loops answered {status}");
            samples.add(took.saturating_sub(DEADLINE));
        }
        Ok(samples)
    })
}
