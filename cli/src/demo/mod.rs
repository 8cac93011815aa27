//! `holm demo`: a coordinator and three nodes at work on this machine.
//!
//! What is shown is what users do: nodes join with one-time tokens, functions are deployed and
//! called from three places, a new version is rolled out under load, a bad one is stopped and
//! rolled back, a node is killed and comes back, and the ledger is compared with what callers saw,
//! request by request. The processes are real ([`fleet`]), so are the callers ([`load`]); nothing
//! is claimed that was not checked. It ends well only if all of it went well.

mod fleet;
mod ledger;
mod load;
mod samples;
mod summary;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ed25519_dalek::SigningKey;

use holm_model::api::{NodeView, RolloutState, RolloutView, VersionView};
use holm_model::ids::{FunctionName, Name};
use holm_model::place::Coordinates;

use crate::demo::fleet::{Fleet, SITES, tails};
use crate::demo::load::{Load, Location, Plan, Tally};
use crate::demo::samples::{Samples, release};
use crate::demo::summary::{NodeSummary, Summary};
use crate::exit::{Exit, Failure};
use crate::output::Output;
use crate::remote::deploy::{Published, Release, publish};
use crate::remote::edge::{Call, Nearest};
use crate::remote::fleet::create_tenant;
use crate::remote::invoke::ask_route;
use crate::remote::key::KeyFile;
use crate::remote::rollout::{Pace, Started, start, waits, watch};
use crate::remote::table::{table, time};
use crate::remote::usage::{UsageQuery, audit, usage};
use crate::remote::{Threads, runtime};

/// Whose functions they are.
const TENANT: &str = "demo";
/// Where callers are, and which of [`SITES`] is nearest to each.
const CALLERS: [(&str, &str, usize); 3] = [
    ("Berlin", "52.52,13.40", 0),
    ("New York", "40.71,-74.01", 1),
    ("Jakarta", "-6.21,106.85", 2),
];
/// The node that is killed: Berlin's nearest.
const VICTIM: usize = 0;
/// Percentages of the nodes after each wave.
const WAVES: [u8; 3] = [34, 67, 100];
/// How long each wave is watched.
const BAKE_MS: u64 = 1000;
/// How long a part of the demonstration may take that waits for the fleet.
const PATIENCE: Duration = Duration::from_secs(30);

/// Options of `holm demo`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "With --json, one object on stdout. Its times are in microseconds, each as \
                        p50, p99 and n: `cold_start_us` and `fresh_invoke_us` are the nodes' own, \
                        from the ledger (restore and run, without queueing), of executions whose \
                        snapshot had to be loaded into a slot first, and of those in a slot that \
                        was reset after the one before; `caller_us` is what callers measured, from \
                        the request's first byte to the answer's last. Requests sent while a node \
                        is killed ask to sleep and are in none of them."
)]
pub(crate) struct Args {
    /// Requests to send in the step that only sends requests.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    requests: u64,
    /// Keep the processes' files and logs, and say where they are.
    #[arg(long)]
    keep: bool,
    /// Where the sample functions' sources are [default: guest/functions of the source tree].
    #[arg(long, value_name = "DIR")]
    functions: Option<PathBuf>,
}

/// Runs the demonstration.
pub(crate) fn execute(args: Args, output: Output) -> Result<(), Failure> {
    holm_vmm::Hypervisor::open().map_err(|error| {
        Failure::new(Exit::NoKvm, error).hint("`holm doctor` says what to do about it")
    })?;
    output.note("building the sample functions");
    let samples = Samples::build(args.functions.as_deref(), output)?;
    let directory = tempfile::Builder::new()
        .prefix("holm-demo-")
        .tempdir()
        .map_err(|error| {
            Failure::other(format!("there is no room for temporary files: {error}"))
        })?;
    let runtime = runtime(Threads::Client)?;
    let result = runtime.block_on(async {
        // Whichever comes first; the processes are killed when the other one is dropped.
        tokio::select! {
            result = demonstrate(&args, &samples, directory.path(), output) => {
                result.map_err(Ending::Failed)
            }
            () = interrupted() => Err(Ending::Interrupted),
        }
    });
    let result = result.map_err(|ending| match ending {
        Ending::Interrupted => Failure::other("interrupted; all processes were ended"),
        Ending::Failed(failure) if failure.reported => failure,
        Ending::Failed(failure) => with_logs(failure, directory.path()),
    });
    if args.keep {
        let kept = directory.keep();
        output.note(format!("files and logs are in {}", kept.display()));
    }
    result
}

/// How a demonstration ends that does not end well.
enum Ending {
    Failed(Failure),
    Interrupted,
}

/// Adds the ends of all logs to what there is to say.
fn with_logs(failure: Failure, directory: &Path) -> Failure {
    let logs = tails(directory);
    // What failed to start has brought the end of its own log along.
    let hint = failure
        .hint
        .clone()
        .filter(|hint| !logs.contains(hint.as_str()));
    failure.hint(
        [hint, Some(logs)]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .join("\n"),
    )
}

async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let terminated = async {
        match signal(SignalKind::terminate()) {
            Ok(mut terminate) => terminate.recv().await,
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminated => {}
    }
}

/// The whole demonstration.
async fn demonstrate(
    args: &Args,
    samples: &Samples,
    directory: &Path,
    output: Output,
) -> Result<(), Failure> {
    let began = Instant::now();
    let mut demo = Demo::start(samples, directory, output).await?;
    demo.deploy_first().await?;
    demo.invoke_from_everywhere().await?;
    demo.send_many(args.requests).await?;
    let v2 = demo.roll_out_good().await?;
    let v3 = demo.roll_out_bad().await?;
    demo.kill_and_restart().await?;
    let summary = demo.reckon(&v2, &v3, began).await?;
    demo.fleet.stop().await?;
    output.result(&summary, || summary.describe())?;
    match summary.ok {
        true => Ok(()),
        false => Err(Failure::reported(
            Exit::Failure,
            summary.problems.join("; "),
        )),
    }
}

/// A demonstration under way.
struct Demo<'a> {
    fleet: Fleet,
    output: Output,
    samples: &'a Samples,
    tenant: Name,
    key_file: KeyFile,
    key: SigningKey,
    rust: FunctionName,
    c: FunctionName,
    locations: Vec<Location>,
    /// Everything that callers saw.
    tally: Tally,
    /// Answers from before the node was killed: those that latencies are taken from. Afterwards
    /// callers ask the functions to sleep.
    plain: usize,
    /// What did not go as it should, where going on makes sense.
    problems: Vec<String>,
    step: u32,
}

impl<'a> Demo<'a> {
    /// Starts the processes and makes the tenant.
    async fn start(
        samples: &'a Samples,
        directory: &Path,
        output: Output,
    ) -> Result<Self, Failure> {
        output.note("1. one coordinator and three nodes, joined with one-time tokens");
        let fleet = Fleet::start(directory).await?;
        let tenant: Name = TENANT.parse().map_err(Failure::other)?;
        let key_file = KeyFile {
            path: Some(directory.join("publisher.pem")),
        };
        let key = key_file.load_or_create(Output {
            json: output.json,
            quiet: true,
        })?;
        let function =
            |built: &crate::local::build::Built| release(built, &tenant, "v1", false).function();
        let location = |(name, from, _): (&'static str, &str, usize)| {
            from.parse::<Coordinates>()
                .map(|from| Location { name, from })
                .map_err(Failure::other)
        };
        let demo = Demo {
            rust: function(&samples.rust)?,
            c: function(&samples.c)?,
            locations: CALLERS
                .into_iter()
                .map(location)
                .collect::<Result<_, _>>()?,
            fleet,
            output,
            samples,
            tenant,
            key_file,
            key,
            tally: Tally::default(),
            plain: 0,
            problems: Vec::new(),
            step: 1,
        };
        demo.until("every node to be connected", |nodes| {
            nodes.len() == SITES.len() && nodes.iter().all(|node| node.connected)
        })
        .await?;
        for node in &demo.fleet.nodes {
            output.note(format!(
                "   {} at {}, {}",
                node.ready.node, node.site.coordinates, node.ready.url
            ));
        }
        Ok(demo)
    }

    fn headline(&mut self, text: &str) {
        self.step += 1;
        self.output.note(format!("{}. {text}", self.step));
    }

    /// Notes what did not go as it should.
    fn check(&mut self, good: bool, problem: impl FnOnce() -> String) {
        if !good {
            let problem = problem();
            self.output.warn(&problem);
            self.problems.push(problem);
        }
    }

    /// Waits until the coordinator's view of the nodes is `good`.
    async fn until(&self, what: &str, good: impl Fn(&[NodeView]) -> bool) -> Result<(), Failure> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let nodes: Vec<NodeView> = self.fleet.api.get("/v1/nodes").await?;
            if good(&nodes) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(Failure::other(format!(
                    "waited {} s for {what}, in vain",
                    PATIENCE.as_secs()
                )));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn publish(&self, release: Release) -> Result<VersionView, Failure> {
        match publish(&self.fleet.api, &self.key, release, self.output).await? {
            Published::New(version, _) => Ok(version),
            Published::Unchanged(version) => Err(Failure::other(format!(
                "{} is deployed already, although nobody did that",
                version.label
            ))),
        }
    }

    async fn deploy(
        &self,
        function: &FunctionName,
        release: Release,
        waves: &[u8],
        bake_ms: u64,
    ) -> Result<RolloutView, Failure> {
        let version = self.publish(release).await?;
        let pace = Pace {
            waves: Some(waves.to_vec()),
            bake: Some(bake_ms),
            ..Pace::default()
        };
        match start(
            &self.fleet.api,
            function,
            Some(version.version),
            None,
            &pace,
        )
        .await?
        {
            Started::Now(rollout) => watch(&self.fleet.api, *rollout, self.output).await,
            Started::Queued(queued) => Err(Failure::other(waits(&queued))),
        }
    }

    /// Both functions, everywhere at once: there is no traffic yet that could be hurt.
    async fn deploy_first(&mut self) -> Result<(), Failure> {
        self.headline("two functions: one in Rust with the SDK, one an unmodified C HTTP server");
        create_tenant(&self.fleet.api, &self.tenant, &self.key_file, self.output).await?;
        for (function, built) in [
            (self.rust.clone(), &self.samples.rust),
            (self.c.clone(), &self.samples.c),
        ] {
            let first = release(built, &self.tenant, "v1", false);
            let rollout = self.deploy(&function, first, &[100], 0).await?;
            if rollout.state != RolloutState::Completed {
                return Err(Failure::other(format!(
                    "{function} could not be deployed: {}",
                    rollout.reason
                )));
            }
        }
        Ok(())
    }

    /// One request to each function from each place, and why it went where it went.
    async fn invoke_from_everywhere(&mut self) -> Result<(), Failure> {
        self.headline("each function called from three places; the nearest node answers");
        let mut rows = Vec::new();
        for (place, location) in self.locations.clone().into_iter().enumerate() {
            for function in [self.rust.clone(), self.c.clone()] {
                let route = ask_route(&self.fleet.api, &function, Some(location.from), &[]).await?;
                let nearest = SITES[CALLERS[place].2].region;
                let first = route.candidates.first().map(|first| first.node.to_string());
                self.check(first.as_deref() == Some(nearest), || {
                    format!("{} was sent to {first:?}, not to {nearest}", location.name)
                });
                let mut nearest = Nearest::new(route.candidates, self.fleet.api.trust())?;
                let call = Call::get("/", Duration::from_secs(10));
                let outcome = nearest.call(&call).await;
                let before = self.tally.failed;
                load::judge(
                    &mut self.tally,
                    place,
                    &(function.clone(), vec!["v1".to_owned()]),
                    outcome.answer.as_ref(),
                    &outcome.attempts,
                );
                let told = self.tally.told.last().cloned().unwrap_or_default();
                let failed = self.tally.failed > before;
                self.check(!failed, || {
                    format!("{function} from {}: {told}", location.name)
                });
                if let (Some(answer), Some(last)) = (outcome.answer, outcome.attempts.last()) {
                    rows.push([
                        format!("   {}", location.name),
                        function.to_string(),
                        last.node.to_string(),
                        time(answer.took),
                        last.why.clone(),
                    ]);
                }
            }
        }
        self.output.note(table(
            ["   FROM", "FUNCTION", "ANSWERED BY", "TOOK", "WHY"],
            &rows,
        ));
        Ok(())
    }

    /// Callers of both functions.
    fn plan(&self, rust: &[&str], c: &[&str]) -> Plan {
        let owned = |versions: &[&str]| versions.iter().map(|&v| v.to_owned()).collect();
        Plan {
            functions: vec![(self.rust.clone(), owned(rust)), (self.c.clone(), owned(c))],
            paths: vec!["/".into()],
            callers_per_location: 2,
            pause: Duration::from_millis(15),
            count: None,
        }
    }

    fn load(&self, plan: Plan) -> Load {
        Load::start(&self.fleet.api, &self.locations, plan)
    }

    /// Ends the callers and adds up; none of their requests may have failed.
    async fn end(&mut self, load: Load, during: &str) -> Result<Tally, Failure> {
        let tally = load.finish().await?;
        let (failed, told) = (tally.failed, tally.told.join("; "));
        self.check(failed == 0, || {
            format!("{failed} requests failed during {during}: {told}")
        });
        self.tally.add(tally.clone());
        Ok(tally)
    }

    /// Requests, as fast as the callers can.
    async fn send_many(&mut self, requests: u64) -> Result<(), Failure> {
        self.headline(&format!("{requests} requests"));
        let mut plan = self.plan(&["v1"], &["v1"]);
        plan.pause = Duration::ZERO;
        plan.count = Some(requests);
        let bar = self.output.bar(requests, "requests");
        let began = Instant::now();
        let load = self.load(plan);
        while !load
            .until(Duration::from_millis(100), |tally| tally.sent >= requests)
            .await
        {
            bar.set_position(load.look(|tally| tally.sent));
            if load.is_over() {
                break;
            }
        }
        bar.finish_and_clear();
        let took = began.elapsed();
        let tally = self.end(load, "the plain requests").await?;
        let sent = tally.sent;
        self.check(sent == requests, || {
            format!("{sent} requests were sent, not {requests}")
        });
        self.output.note(format!(
            "   {} right answers in {}, {:.0} a second",
            tally.seen.len(),
            time(took),
            tally.seen.len() as f64 / took.as_secs_f64().max(1e-9)
        ));
        Ok(())
    }

    /// Version 2, in waves, while callers go on.
    async fn roll_out_good(&mut self) -> Result<RolloutView, Failure> {
        self.headline("version 2, in waves, with traffic going on");
        let load = self.load(self.plan(&["v1", "v2"], &["v1"]));
        let next = release(&self.samples.rust, &self.tenant, "v2", false);
        let rollout = self
            .deploy(&self.rust.clone(), next, &WAVES, BAKE_MS)
            .await?;
        let ended = Instant::now();
        self.check(rollout.state == RolloutState::Completed, || {
            format!("version 2 did not reach the fleet: {}", rollout.reason)
        });
        load.until(PATIENCE, |tally| {
            (0..CALLERS.len()).all(|place| {
                tally
                    .seen
                    .iter()
                    .any(|s| s.location == place && s.version == "v2" && s.at > ended)
            })
        })
        .await;
        let tally = self.end(load, "the rollout of version 2").await?;
        for (place, (name, ..)) in CALLERS.iter().enumerate() {
            let got = tally
                .seen
                .iter()
                .any(|s| s.location == place && s.version == "v2");
            self.check(got, || format!("{name} never got version 2"));
        }
        self.tell_versions(&tally);
        Ok(rollout)
    }

    /// Version 3, which the gate must stop before any caller meets it.
    async fn roll_out_bad(&mut self) -> Result<RolloutView, Failure> {
        self.headline("version 3, which crashes on its first request, with traffic going on");
        let load = self.load(self.plan(&["v2"], &["v1"]));
        let bad = release(&self.samples.rust, &self.tenant, "v3", true);
        let rollout = self
            .deploy(&self.rust.clone(), bad, &WAVES, BAKE_MS)
            .await?;
        self.check(rollout.state == RolloutState::RolledBack, || {
            format!("version 3 was not stopped, it is {:?}", rollout.state)
        });
        let tally = self.end(load, "the rollout of version 3").await?;
        self.tell_versions(&tally);
        self.output.note(format!(
            "   stopped and rolled back; {} requests meanwhile, {} failed",
            tally.sent, tally.failed
        ));
        Ok(rollout)
    }

    fn tell_versions(&self, tally: &Tally) {
        let mut versions: BTreeMap<(&FunctionName, &str), u64> = BTreeMap::new();
        for seen in &tally.seen {
            *versions.entry((&seen.function, &seen.version)).or_default() += 1;
        }
        let told: Vec<String> = versions
            .iter()
            .map(|((function, version), count)| format!("{count} by {function} {version}"))
            .collect();
        self.output
            .note(format!("   answered meanwhile: {}", told.join(", ")));
    }

    /// One node is killed under load; the next-nearest answers; it comes back and catches up.
    async fn kill_and_restart(&mut self) -> Result<(), Failure> {
        let victim: Name = SITES[VICTIM].region.parse().map_err(Failure::other)?;
        self.headline(&format!("{victim} is killed under load (SIGKILL)"));
        let location = self.locations[VICTIM].clone();
        let route = ask_route(&self.fleet.api, &self.rust, Some(location.from), &[]).await?;
        let next = route
            .candidates
            .get(1)
            .map(|candidate| candidate.node.clone());
        let next = next.ok_or_else(|| Failure::other("there is no next-nearest node"))?;

        self.plain = self.tally.seen.len();
        let mut plan = self.plan(&["v2"], &["v1"]);
        // Some requests take a while, so that some are under way at the moment of the kill.
        plan.paths = vec!["/".into(), "/sleep?ms=20".into()];
        plan.pause = Duration::from_millis(2);
        let load = self.load(plan);
        let from_there = move |tally: &Tally, node: &Name, since: Instant| {
            tally
                .seen
                .iter()
                .filter(|s| s.location == VICTIM && s.at > since && s.node == *node)
                .count()
        };
        let began = Instant::now();
        let warm = load
            .until(PATIENCE, |t| from_there(t, &victim, began) >= 20)
            .await;
        self.check(warm, || {
            format!("{victim} did not answer {} before", location.name)
        });

        self.fleet.kill(VICTIM).await?;
        let killed = Instant::now();
        let moved = load
            .until(PATIENCE, |t| from_there(t, &next, killed) >= 20)
            .await;
        self.check(moved, || format!("{next} did not answer for {victim}"));
        let failed_over = load.look(|tally| {
            let first = tally
                .seen
                .iter()
                .filter(|s| s.location == VICTIM && s.at > killed && s.node == next)
                .min_by_key(|s| s.at);
            first.map(|first| first.at - killed)
        });
        self.output.note(format!(
            "   {next}, the next-nearest to {}, answers instead, {} after the kill",
            location.name,
            failed_over.map_or("never".into(), time)
        ));

        self.headline(&format!("{victim} is started again and catches up"));
        let restarted = Instant::now();
        self.fleet.restart(VICTIM).await?;
        let (rust, c) = (self.rust.clone(), self.c.clone());
        let name = victim.clone();
        self.until("the killed node to catch up", move |nodes| {
            nodes
                .iter()
                .filter(|node| node.name == name && node.connected)
                .any(|node| {
                    [(&rust, "v2"), (&c, "v1")]
                        .into_iter()
                        .all(|(function, label)| {
                            node.versions
                                .iter()
                                .any(|v| v.function == *function && v.label == label && v.routed)
                        })
                })
        })
        .await?;
        let caught_up = restarted.elapsed();
        let since = Instant::now();
        let back = load
            .until(PATIENCE, |t| from_there(t, &victim, since) >= 20)
            .await;
        self.check(back, || {
            format!("{victim} did not answer {} again", location.name)
        });
        self.output.note(format!(
            "   back after {}, and answers again",
            time(caught_up)
        ));

        let tally = self.end(load, "the kill").await?;
        self.output.note(format!(
            "   {} requests meanwhile, {} cut off and answered elsewhere, {} failed",
            tally.sent, tally.cut, tally.failed
        ));
        Ok(())
    }

    /// Compares what callers saw with the ledger.
    async fn reckon(
        &mut self,
        v2: &RolloutView,
        v3: &RolloutView,
        began: Instant,
    ) -> Result<Summary, Failure> {
        self.headline("what it cost: every answer against the ledger");
        let answered = self.tally.answered();
        let rows = ledger::settled(&self.fleet.api, &self.tenant, &answered).await?;
        let reckoning = ledger::reckon(&answered, &rows);
        let audit = audit(&self.fleet.api).await?;
        let query = UsageQuery {
            tenant: Some(self.tenant.clone()),
            ..UsageQuery::default()
        };
        let usage = usage(&self.fleet.api, &query).await?;

        self.check(reckoning.lost == 0, || {
            format!("{} answers are not in the ledger", reckoning.lost)
        });
        self.check(reckoning.duplicates == 0 && audit.duplicates == 0, || {
            format!(
                "{} executions are in the ledger twice",
                reckoning.duplicates
            )
        });
        self.check(audit.whole, || {
            "the ledger's own audit says it is not whole".to_owned()
        });
        let cut = self.tally.cut;
        self.check(reckoning.unseen <= cut, || {
            format!(
                "{} executions are in the ledger whose answer nobody saw, but only {cut} requests \
                 were cut off",
                reckoning.unseen
            )
        });
        let (sent, right) = (self.tally.sent, self.tally.seen.len() as u64);
        self.check(sent == right, || {
            format!("{} of {sent} requests failed", sent - right)
        });

        let plain = &self.tally.seen[..self.plain];
        let times = ledger::times(plain.iter().map(|seen| seen.request), &rows);
        let caller_us = plain
            .iter()
            .map(|seen| u64::try_from(seen.took.as_micros()).unwrap_or(u64::MAX));
        let nodes = SITES.iter().enumerate().map(|(index, site)| NodeSummary {
            node: site.region.to_owned(),
            region: site.region.to_owned(),
            answered: self
                .tally
                .seen
                .iter()
                .filter(|seen| seen.node.as_str() == site.region)
                .count() as u64,
            killed: index == VICTIM,
        });
        Ok(Summary {
            ok: self.problems.is_empty(),
            problems: self.problems.clone(),
            requests_sent: sent,
            responses_ok: right,
            failed_user_requests: self.tally.failed,
            failed_over: self
                .tally
                .seen
                .iter()
                .filter(|seen| seen.failed_over)
                .count() as u64,
            ledger_executions: reckoning.executions,
            executed_but_cut: reckoning.unseen,
            duplicates: reckoning.duplicates.max(audit.duplicates),
            lost: reckoning.lost,
            rollout_v2: v2.state,
            rollout_v3: v3.state,
            rollout_v3_reason: v3.reason.clone(),
            nodes: nodes.collect(),
            cold_start_us: times.cold_start,
            fresh_invoke_us: times.fresh_invocation,
            caller_us: ledger::percentiles(caller_us.collect()),
            usage,
            audit,
            took_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        })
    }
}
