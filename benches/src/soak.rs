//! `cargo xtask soak`: mixed load with crashes and timeouts, over which a node may not grow, and of which each
//! request is answered and accounted for.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Serialize;
use tokio::task::JoinSet;

use crate::client::{Connection, Target, runtime};
use crate::memory::Own;
use crate::neighbours::{GUESTS, MANIFEST, function_name};
use crate::sample::median;
use crate::stand::{HELLO, Stand};

const NODE: &str = "a";
/// A C server that does as it should.
const ORDINARY: &str = "state";
/// Connections for each function.
const CALLERS: usize = 2;
/// Share of the time after which what is there counts.
const SETTLED: f64 = 0.3;
/// Looks at the node, over the whole time.
const LOOKS: u32 = 100;
/// How much more of its own memory a node may have at the end than when it had settled: the allocator's and the
/// database's whims, and nothing that goes on.
const MEMORY_SLACK_BYTES: f64 = (4 << 20) as f64;
/// How long the ledger may take to have the last records.
const LEDGER_PATIENCE: Duration = Duration::from_secs(30);

/// What one function's callers saw.
#[derive(Clone, Debug, Serialize)]
struct Seen {
    function: String,
    answered: u64,
    /// Turned away for want of room: not executed.
    turned_away: u64,
    /// Executions in the ledger, the probe not counted.
    in_ledger: u64,
}

/// A look at the node.
#[derive(Clone, Copy, Debug, Serialize)]
struct Look {
    private_bytes: u64,
    descriptors: usize,
    machines: usize,
    threads: usize,
}

impl Look {
    fn at(process: u32) -> Result<Self> {
        let directory = format!("/proc/{process}/fd");
        let entries =
            fs::read_dir(&directory).with_context(|| format!("cannot read {directory}"))?;
        let (mut descriptors, mut machines) = (0, 0);
        for entry in entries.flatten() {
            descriptors += 1;
            // One that was closed meanwhile leads nowhere.
            let leads = fs::read_link(entry.path()).unwrap_or_default();
            machines += usize::from(leads.to_string_lossy().contains("kvm-vm"));
        }
        Ok(Look {
            private_bytes: Own::of(process)?.private,
            descriptors,
            machines,
            threads: fs::read_dir(format!("/proc/{process}/task"))?.count(),
        })
    }
}

/// The result.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Soak {
    seconds: u64,
    functions: Vec<Seen>,
    /// When it had settled, and at the end: medians of several looks.
    settled: Look,
    end: Look,
    /// Everything that is not as it should be.
    problems: Vec<String>,
}

impl Soak {
    /// An error that names all problems, if there are any.
    pub(crate) fn verdict(&self) -> Result<()> {
        match self.problems.is_empty() {
            true => Ok(()),
            false => bail!("{}", self.problems.join("\n")),
        }
    }

    /// As text.
    pub(crate) fn print(&self) {
        println!("{} s of mixed load", self.seconds);
        for seen in &self.functions {
            println!(
                "{:<20} {:>9} answered, {:>6} turned away, {:>9} in the ledger",
                seen.function, seen.answered, seen.turned_away, seen.in_ledger
            );
        }
        for (when, look) in [("settled", self.settled), ("at the end", self.end)] {
            println!(
                "{when:<11} {:>8} KiB of its own, {:>4} descriptors, {:>4} machines, {:>4} threads",
                look.private_bytes / 1024,
                look.descriptors,
                look.machines,
                look.threads
            );
        }
        self.problems
            .iter()
            .for_each(|problem| println!("problem: {problem}"));
    }
}

/// Loads a node of its own for `time`.
pub(crate) fn run(time: Duration) -> Result<Soak> {
    let stand = Stand::with_nodes(&[NODE])?;
    let mut callers: Vec<(String, &'static [u16])> = vec![(HELLO.to_owned(), &[200])];
    stand.deploy(ORDINARY, &holm_test_support::guest(ORDINARY), "");
    callers.push((ORDINARY.to_owned(), &[200]));
    for (guest, statuses) in GUESTS {
        let name = function_name(guest);
        stand.deploy(&name, &holm_test_support::guest(guest), MANIFEST);
        callers.push((name, statuses));
    }

    let stop = Arc::new(AtomicBool::new(false));
    let (functions, looks) = runtime()?.block_on(async {
        let mut load = JoinSet::new();
        for (index, (name, statuses)) in callers.iter().enumerate() {
            for _ in 0..CALLERS {
                let target = stand.target(NODE, name, "/")?;
                load.spawn(call(index, target, statuses, stop.clone()));
            }
        }
        let mut looks = Vec::new();
        let began = Instant::now();
        while began.elapsed() < time {
            tokio::time::sleep(time / LOOKS).await;
            looks.push(Look::at(stand.pid(NODE))?);
        }
        stop.store(true, Ordering::Relaxed);
        let mut functions: Vec<_> = callers.iter().map(|(name, _)| Seen::none(name)).collect();
        while let Some(ended) = load.join_next().await {
            let (index, answered, turned_away) = ended.context("a caller was lost")??;
            functions[index].answered += answered;
            functions[index].turned_away += turned_away;
        }
        Ok::<_, anyhow::Error>((functions, looks))
    })?;
    let mut soak = Soak {
        seconds: time.as_secs(),
        functions,
        settled: Look::middle(looks_from(&looks, SETTLED)),
        end: Look::middle(looks_from(&looks, 1.0 - SETTLED / 2.0)),
        problems: Vec::new(),
    };
    soak.compare();
    soak.account(&stand)?;
    Ok(soak)
}

/// The looks from this share of the time on, for half of [`SETTLED`].
fn looks_from(looks: &[Look], share: f64) -> &[Look] {
    let at = |share: f64| ((looks.len() as f64 * share) as usize).min(looks.len());
    &looks[at(share)..at(share + SETTLED / 2.0)]
}

async fn call(
    index: usize,
    target: Target,
    statuses: &'static [u16],
    stop: Arc<AtomicBool>,
) -> Result<(usize, u64, u64)> {
    let mut connection = Connection::open(&target).await?;
    let (mut answered, mut turned_away) = (0, 0);
    while !stop.load(Ordering::Relaxed) {
        match connection.get().await?.0.as_u16() {
            503 => turned_away += 1,
            got => {
                ensure!(
                    statuses.contains(&got),
                    "{} answered {got}, not {statuses:?}",
                    target.path
                );
                answered += 1;
            }
        }
    }
    Ok((index, answered, turned_away))
}

impl Seen {
    fn none(function: &str) -> Self {
        Seen {
            function: function.to_owned(),
            answered: 0,
            turned_away: 0,
            in_ledger: 0,
        }
    }
}

impl Look {
    /// Of each figure the middle one.
    fn middle(looks: &[Look]) -> Look {
        let of = |figure: fn(&Look) -> f64| median(looks.iter().map(figure).collect()) as u64;
        Look {
            private_bytes: of(|look| look.private_bytes as f64),
            descriptors: of(|look| look.descriptors as f64) as usize,
            machines: of(|look| look.machines as f64) as usize,
            threads: of(|look| look.threads as f64) as usize,
        }
    }
}

impl Soak {
    /// Whether the node grew.
    fn compare(&mut self) {
        let (from, to) = (self.settled, self.end);
        let grown = to.private_bytes as f64 - from.private_bytes as f64;
        if grown > MEMORY_SLACK_BYTES {
            self.problems.push(format!(
                "the node's own memory grew by {:.0} KiB",
                grown / 1024.0
            ));
        }
        // A machine that is being replaced has its descriptors twice.
        for (what, from, to) in [
            ("descriptors", from.descriptors, to.descriptors),
            ("machines", from.machines, to.machines),
            ("threads", from.threads, to.threads),
        ] {
            if to > from + from / 10 + 4 {
                self.problems
                    .push(format!("from {from} {what} it went to {to}"));
            }
        }
    }

    /// Whether the ledger has every execution once.
    fn account(&mut self, stand: &Stand) -> Result<()> {
        let fleet = stand.fleet();
        let deadline = Instant::now() + LEDGER_PATIENCE;
        loop {
            for seen in &mut self.functions {
                let executions = fleet.usage(&seen.function)["executions"].as_u64();
                seen.in_ledger = executions.unwrap_or_default();
            }
            let all = self
                .functions
                .iter()
                .all(|seen| seen.in_ledger >= seen.answered);
            if all || Instant::now() > deadline {
                break;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        for seen in &self.functions {
            if seen.in_ledger != seen.answered {
                self.problems.push(format!(
                    "{} answered {} requests and the ledger has {}",
                    seen.function, seen.answered, seen.in_ledger
                ));
            }
        }
        let audit = fleet.holm(&["usage", "audit"]).ok();
        if audit["whole"] != true {
            self.problems
                .push(format!("the ledger is not whole: {audit}"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kvm_a_node_under_crashes_and_timeouts_answers_and_accounts_for_every_request() {
        if !holm_test_support::require_kvm() {
            return;
        }
        let soak = run(Duration::from_secs(5)).unwrap();
        soak.verdict().unwrap();
        assert!(
            soak.functions.iter().all(|seen| seen.answered > 10),
            "{soak:?}"
        );
    }

    #[test]
    fn growth_is_told() {
        let look = |private_bytes, descriptors| Look {
            private_bytes,
            descriptors,
            machines: 16,
            threads: 8,
        };
        let mut soak = Soak {
            seconds: 1,
            functions: Vec::new(),
            settled: look(20 << 20, 100),
            end: look(23 << 20, 105),
            problems: Vec::new(),
        };
        soak.compare();
        soak.verdict().unwrap();
        soak.end = look(30 << 20, 200);
        soak.compare();
        let error = soak.verdict().unwrap_err().to_string();
        assert!(
            error.contains("10240 KiB") && error.contains("200"),
            "{error}"
        );
    }
}
