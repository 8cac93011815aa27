//! `cargo xtask soak`: mixed load with crashes, timeouts, exhausted memory, callers that leave, large bodies, kept
//! instances and deploys, over which a node may not grow, and of which each request is answered and accounted for.

use std::fs;
use std::io::ErrorKind;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use hyper::Method;
use hyper::body::Bytes;
use serde::Serialize;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::client::{Connection, GREETING, Target, runtime};
use crate::memory::Own;
use crate::neighbours::{GUESTS, MANIFEST, function_name};
use crate::sample::median;
use crate::stand::{HELLO, Stand};

const NODE: &str = "a";
/// Connections for each function.
const CALLERS: usize = 2;
/// Share of the time after which what is there counts.
const SETTLED: f64 = 0.3;
/// Looks at the node, over the whole time, and deploys.
const LOOKS: u32 = 100;
const DEPLOYS: usize = 20;
/// How long those stay that leave: until their answer has begun, or so long, whether their request runs or not.
const STAYS: [Option<Duration>; 4] = [
    None,
    Some(Duration::from_millis(10)),
    None,
    Some(Duration::from_millis(100)),
];
/// How much more of its own memory a node may have at the end than when it had settled: the allocator's and the
/// database's whims, and nothing that goes on.
const MEMORY_SLACK_BYTES: f64 = (4 << 20) as f64;
/// The same for a run of less than [`SETTLING_SECONDS`], which has not settled when that is looked at: it grows by
/// some 5 MiB, one of 45 s by 0.1 MiB.
const SHORT_MEMORY_SLACK_BYTES: f64 = (8 << 20) as f64;
const SETTLING_SECONDS: u64 = 30;
/// Longest wait for the beginning of an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the ledger may take to have the last records.
const LEDGER_PATIENCE: Duration = Duration::from_secs(30);

/// What one function's callers saw.
#[derive(Clone, Debug, Serialize)]
struct Seen {
    function: String,
    answered: u64,
    /// Left by their callers while they ran.
    left: u64,
    /// The same, and they may not have run: of a caller that has gone a node need not read what it sent.
    left_early: u64,
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
    /// Versions that were replaced meanwhile.
    deploys: usize,
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
        let deploys = self.deploys;
        println!("{} s of mixed load, {deploys} deploys", self.seconds);
        for seen in &self.functions {
            println!(
                "{:<24} {:>9} answered, {:>6} left, {:>6} left early, {:>6} turned away, {:>9} in the ledger",
                seen.function,
                seen.answered,
                seen.left,
                seen.left_early,
                seen.turned_away,
                seen.in_ledger
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

/// One function and what its callers do.
#[derive(Clone, Copy, Debug)]
struct Load {
    function: &'static str,
    path: &'static str,
    how: How,
    /// What its callers may get.
    statuses: &'static [u16],
}

/// What a caller does, again and again.
#[derive(Clone, Copy, Debug)]
enum How {
    /// Asks, and gets this if it is answered.
    Ask(Option<&'static [u8]>),
    /// Sends so many bytes, which it gets back.
    Echo(usize),
    /// Asks and goes away before it has an answer.
    Leave,
}

const ANSWERED: &[u16] = &[200];
/// A large body; more than a node gathers before the function has it.
const LARGE_BYTES: usize = 3 << 20;
const LARGE: &str =
    "[limits]\nmemory = \"64MiB\"\nrequest_body = \"4MiB\"\nresponse_body = \"4MiB\"\n";
const KEPT: &str = "[scale]\nisolation = \"instance\"\n";
const LEFT: &str = "[limits]\nmemory = \"16MiB\"\ndeadline = \"5s\"\n";
/// The function that is deployed anew again and again.
const REPLACED: &str = "state";
const LEFT_FUNCTION: &str = "left";

/// Those beside [`GUESTS`].
const LOADS: [Load; 5] = [
    Load {
        function: HELLO,
        path: "/",
        how: How::Ask(Some(GREETING)),
        statuses: ANSWERED,
    },
    Load {
        function: REPLACED,
        path: "/",
        // Each request finds the memory as the first one did.
        how: How::Ask(Some(b"1 1 1\n")),
        statuses: ANSWERED,
    },
    Load {
        function: "kept",
        path: "/",
        how: How::Ask(None),
        statuses: ANSWERED,
    },
    Load {
        function: "large-body",
        path: "/echo",
        how: How::Echo(LARGE_BYTES),
        statuses: ANSWERED,
    },
    Load {
        function: LEFT_FUNCTION,
        // It begins to answer, and waits then.
        path: "/parts",
        how: How::Leave,
        statuses: ANSWERED,
    },
];

/// Loads a node of its own for `time`.
pub(crate) fn run(time: Duration) -> Result<Soak> {
    let stand = Stand::with_nodes(&[NODE])?;
    let guest = holm_test_support::guest;
    replace(&stand, 0);
    stand.deploy("kept", &guest("state"), KEPT);
    stand.deploy("large-body", &guest("large_body"), LARGE);
    stand.deploy(LEFT_FUNCTION, &guest("several_requests"), LEFT);
    let mut loads: Vec<(String, Load)> = LOADS
        .iter()
        .map(|load| (load.function.to_owned(), *load))
        .collect();
    for (name, statuses) in GUESTS {
        let function = function_name(name);
        stand.deploy(&function, &guest(name), MANIFEST);
        let load = Load {
            function: name,
            path: "/",
            how: How::Ask(None),
            statuses,
        };
        loads.push((function, load));
    }
    let mut callers = Vec::new();
    for (index, (function, load)) in loads.iter().enumerate() {
        let target = stand.target(NODE, function, load.path)?;
        callers.extend((0..CALLERS).map(|_| (index, target.clone(), *load)));
    }

    let stop = Arc::new(AtomicBool::new(false));
    let load = {
        let stop = stop.clone();
        std::thread::spawn(move || call_all(callers, &stop))
    };
    let (mut looks, mut deploys) = (Vec::new(), 0);
    let began = Instant::now();
    // One that has ended has failed.
    while began.elapsed() < time && !load.is_finished() {
        std::thread::sleep(time / LOOKS);
        looks.push(Look::at(stand.pid(NODE))?);
        if looks.len().is_multiple_of(LOOKS as usize / DEPLOYS) {
            deploys += 1;
            replace(&stand, deploys);
        }
    }
    stop.store(true, Ordering::Relaxed);
    let load = load
        .join()
        .map_err(|_| anyhow!("the callers' thread panicked"))?;
    let mut functions: Vec<_> = loads.iter().map(|(name, _)| Seen::none(name)).collect();
    for (index, seen) in load? {
        functions[index].add(seen);
    }
    let mut soak = Soak {
        seconds: time.as_secs(),
        deploys,
        functions,
        settled: Look::middle(looks_from(&looks, SETTLED)),
        end: Look::middle(looks_from(&looks, 1.0 - SETTLED / 2.0)),
        problems: Vec::new(),
    };
    soak.compare();
    soak.account(&stand)?;
    Ok(soak)
}

/// Deploys the `n`th version of [`REPLACED`].
fn replace(stand: &Stand, n: usize) {
    let manifest = format!("[env]\nVERSION = \"{n}\"\n");
    stand.deploy(REPLACED, &holm_test_support::guest("state"), &manifest);
}

/// The looks from this share of the time on, for half of [`SETTLED`].
fn looks_from(looks: &[Look], share: f64) -> &[Look] {
    let at = |share: f64| ((looks.len() as f64 * share) as usize).min(looks.len());
    &looks[at(share)..at(share + SETTLED / 2.0)]
}

type Caller = (usize, Target, Load);

fn call_all(callers: Vec<Caller>, stop: &Arc<AtomicBool>) -> Result<Vec<(usize, Counts)>> {
    runtime()?.block_on(async {
        let mut calls = JoinSet::new();
        for (index, target, load) in callers {
            let stop = stop.clone();
            calls.spawn(async move { Ok((index, call(&target, load, &stop).await?)) });
        }
        let mut counts = Vec::new();
        while let Some(ended) = calls.join_next().await {
            let ended: Result<_> = ended.context("a caller was lost")?;
            counts.push(ended?);
        }
        Ok(counts)
    })
}

/// What one caller saw.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    answered: u64,
    left: u64,
    left_early: u64,
    turned_away: u64,
}

async fn call(target: &Target, load: Load, stop: &AtomicBool) -> Result<Counts> {
    let (method, sent, expected) = match load.how {
        How::Leave => return leave(target, stop).await,
        How::Echo(bytes) => {
            let bytes: Vec<u8> = (0..bytes).map(|at| (at % 251) as u8).collect();
            let sent = Bytes::from(bytes);
            (Method::POST, sent.clone(), Some(sent))
        }
        How::Ask(expected) => {
            let expected = expected.map(Bytes::copy_from_slice);
            (Method::GET, Bytes::new(), expected)
        }
    };
    let mut connection = Connection::open(target).await?;
    let mut counts = Counts::default();
    while !stop.load(Ordering::Relaxed) {
        let (status, body) = connection.send(method.clone(), sent.clone()).await?;
        let status = status.as_u16();
        if status == 503 {
            counts.turned_away += 1;
            continue;
        }
        let path = &target.path;
        ensure!(
            load.statuses.contains(&status),
            "{path} answered {status}, not {:?}",
            load.statuses
        );
        ensure!(
            status != 200 || expected.as_ref().is_none_or(|expected| body == expected),
            "{path} answered {} bytes that are not what it should: {:?}",
            body.len(),
            String::from_utf8_lossy(&body[..body.len().min(64)])
        );
        counts.answered += 1;
    }
    Ok(counts)
}

/// Asks again and again and goes away before it is answered. What was written to the connection the node gets, for it
/// is there before the end.
async fn leave(target: &Target, stop: &AtomicBool) -> Result<Counts> {
    let mut counts = Counts::default();
    let request = format!("GET {} HTTP/1.1\r\nhost: localhost\r\n\r\n", target.path);
    let mut stays = STAYS.iter().cycle();
    while !stop.load(Ordering::Relaxed) {
        let mut stream = TcpStream::connect(target.address).await?;
        stream.write_all(request.as_bytes()).await?;
        if let Some(stay) = stays.next().copied().flatten() {
            tokio::time::sleep(stay).await;
        } else {
            let begun = tokio::time::timeout(PATIENCE, stream.readable());
            begun
                .await
                .with_context(|| format!("{} says nothing", target.path))??;
        }
        let mut answer = [0; 256];
        match stream.try_read(&mut answer) {
            Ok(bytes) if answer[..bytes].starts_with(b"HTTP/1.1 503 ") => counts.turned_away += 1,
            Ok(bytes) => {
                let answer = String::from_utf8_lossy(&answer[..bytes]);
                ensure!(
                    answer.starts_with("HTTP/1.1 200 "),
                    "{}: {answer}",
                    target.path
                );
                counts.left += 1;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => counts.left_early += 1,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(counts)
}

impl Seen {
    fn none(function: &str) -> Self {
        Seen {
            function: function.to_owned(),
            answered: 0,
            left: 0,
            left_early: 0,
            turned_away: 0,
            in_ledger: 0,
        }
    }

    fn add(&mut self, counts: Counts) {
        self.answered += counts.answered;
        self.left += counts.left;
        self.left_early += counts.left_early;
        self.turned_away += counts.turned_away;
    }

    /// What the ledger is to have, at least and at most.
    fn executed(&self) -> RangeInclusive<u64> {
        let least = self.answered + self.left;
        least..=least + self.left_early
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
        let slack = match self.seconds < SETTLING_SECONDS {
            true => SHORT_MEMORY_SLACK_BYTES,
            false => MEMORY_SLACK_BYTES,
        };
        if grown > slack {
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
                .all(|seen| seen.in_ledger >= *seen.executed().end());
            if all || Instant::now() > deadline {
                break;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        for seen in &self.functions {
            if !seen.executed().contains(&seen.in_ledger) {
                self.problems.push(format!(
                    "{} answered {} requests and was left by {}, {} of them early, and the ledger has {}",
                    seen.function,
                    seen.answered,
                    seen.left + seen.left_early,
                    seen.left_early,
                    seen.in_ledger
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
        // A few, on a machine that has other things to do.
        assert!(
            soak.functions
                .iter()
                .all(|seen| seen.answered + seen.left > 2),
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
            deploys: 0,
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
