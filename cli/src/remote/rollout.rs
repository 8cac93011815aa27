//! `holm rollout` and `holm rollback`: moving the fleet between versions, and
//! watching it move.
//!
//! The coordinator does the moving. Whoever watches may go away at any time; the rollout goes on.

use std::str::FromStr;
use std::time::{Duration, Instant};

use clap::Subcommand;
use indicatif::ProgressBar;
use serde::{Deserialize, Serialize};

use holm_model::api::{
    FunctionView, NodeView, PromoteRequest, QueuedView, RollbackRequest, RolloutPlanView,
    RolloutRequest, RolloutState, RolloutView, RolloutsView, VersionView, WhenRunning,
};
use holm_model::ids::{FunctionName, IdError, Name, VersionId};
use holm_model::manifest::WaveRule;
use holm_model::manifest::units::{format_millis, parse_millis};

use crate::exit::{Exit, Failure};
use crate::output::Output;
use crate::remote::client::{Client, function_path};
use crate::remote::configuration::Number;
use crate::remote::settings::Connection;
use crate::remote::table::table;

/// Pause between two looks at a running rollout.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How long the coordinator may be unreachable before the watcher gives up.
const PATIENCE: Duration = Duration::from_secs(30);

/// `holm rollout …`.
#[derive(Debug, clap::Args)]
pub(crate) struct RolloutArgs {
    #[command(subcommand)]
    action: Action,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Start moving the fleet to a version.
    Start {
        /// The function, as tenant/function.
        function: FunctionName,
        /// Tag, label or id of the version [default: the newest, or with --config the one that the fleet is on].
        #[arg(long, value_name = "TAG|LABEL|ID")]
        version: Option<String>,
        /// The configuration that goes with it, for example c3 [default: the one that the fleet is on].
        #[arg(long, value_name = "CONFIG")]
        config: Option<Number>,
        #[command(flatten)]
        pace: Pace,
        /// Do not wait for its end.
        #[arg(long)]
        no_wait: bool,
        /// Tell which nodes would move when, and begin nothing.
        #[arg(long)]
        dry_run: bool,
    },
    /// Tell which nodes would move when.
    Plan {
        /// The function, as tenant/function.
        function: FunctionName,
        /// Tag, label or id of the version [default: the newest, or with --config the one that the fleet is on].
        #[arg(long, value_name = "TAG|LABEL|ID")]
        version: Option<String>,
        /// The configuration that goes with it, for example c3 [default: the one that the fleet is on].
        #[arg(long, value_name = "CONFIG")]
        config: Option<Number>,
        #[command(flatten)]
        pace: Pace,
    },
    /// Tell where a rollout is.
    Status {
        /// A rollout's number, or tenant/function for its latest.
        rollout: RolloutRef,
    },
    /// List the newest rollouts of a function, and what waits for its turn.
    List {
        /// The function, as tenant/function.
        function: FunctionName,
    },
    /// Give up the rollout of a function that waits for its turn.
    Unqueue {
        /// The function, as tenant/function.
        function: FunctionName,
    },
    /// Watch a rollout until it ends or pauses; with --json, a line for every change. Ends with 0 if it completed, 7 if
    /// it went back or was superseded, 8 if it is paused.
    Watch {
        /// A rollout's number, or tenant/function for its latest.
        rollout: RolloutRef,
    },
    /// Let no further wave begin or pass; gates that fail still take the nodes back.
    Pause {
        /// A rollout's number, or tenant/function for its latest.
        rollout: RolloutRef,
    },
    /// Go on after a pause; a wave that is watched is watched for its bake time again.
    Resume {
        /// A rollout's number, or tenant/function for its latest.
        rollout: RolloutRef,
        /// Do not wait for its end.
        #[arg(long)]
        no_wait: bool,
    },
    /// Take the wave that is watched for passed, and go on.
    Promote {
        /// A rollout's number, or tenant/function for its latest.
        rollout: RolloutRef,
        /// Ask no gate any more: wave follows wave as soon as nodes serve the version.
        #[arg(long)]
        all: bool,
        /// Do not wait for its end.
        #[arg(long)]
        no_wait: bool,
    },
    /// Stop a rollout and take the nodes back to the version before.
    Abort {
        /// A rollout's number, or tenant/function for its latest.
        rollout: RolloutRef,
        /// Do not wait for its end.
        #[arg(long)]
        no_wait: bool,
    },
}

/// How fast a rollout goes, where the manifest's word is not taken.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Pace {
    /// Share of the nodes on the new version after each wave, in percent, for example 34,67,100.
    #[arg(long, value_delimiter = ',', value_name = "PERCENT,…",
          value_parser = clap::value_parser!(u8).range(1..=100))]
    pub(crate) waves: Option<Vec<u8>>,
    /// A wave, once for each: words with commas between them, such as `ring=canary,bake=10m`, `region=eu,nodes=2`,
    /// `region=eu,nodes=50%,quorum=80%,skip_after=30s`; the last is 100%.
    #[arg(long = "wave", value_name = "WAVE", conflicts_with = "waves")]
    pub(crate) rules: Vec<WaveRule>,
    /// How long each wave is watched before the next, for example 30s.
    #[arg(long, value_name = "TIME", value_parser = parse_millis)]
    pub(crate) bake: Option<u64>,
    /// How many requests each wave's gate has to see; with fewer it waits, and then pauses.
    #[arg(long, value_name = "N")]
    pub(crate) min_requests: Option<u64>,
    /// In an emergency: ask no gate. Wave follows wave as soon as nodes serve the version; it is told with the rollout.
    #[arg(long)]
    pub(crate) emergency: bool,
    /// Take the place of a rollout of the function that is going on, in one step.
    #[arg(long)]
    pub(crate) supersede: bool,
    /// If a rollout of the function is going on, begin when that has ended, in place of what may wait for it already.
    #[arg(long, conflicts_with = "supersede")]
    pub(crate) queue: bool,
}

/// What became of a rollout that was to start.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum Started {
    Now(Box<RolloutView>),
    Queued(Box<QueuedView>),
}

impl Pace {
    fn request(&self, version: Option<VersionId>, configuration: Option<u64>) -> RolloutRequest {
        let percent = |waves: &Vec<u8>| waves.iter().copied().map(WaveRule::percent).collect();
        let rules = (!self.rules.is_empty()).then(|| self.rules.clone());
        RolloutRequest {
            version,
            configuration,
            waves: rules.or(self.waves.as_ref().map(percent)),
            bake_ms: self.bake,
            min_requests: self.min_requests,
            emergency: self.emergency,
            when_running: match (self.supersede, self.queue) {
                (true, _) => WhenRunning::Supersede,
                (false, true) => WhenRunning::Queue,
                (false, false) => WhenRunning::Refuse,
            },
        }
    }
}

/// Options of `holm rollback`.
#[derive(Debug, clap::Args)]
pub(crate) struct RollbackArgs {
    /// The function, as tenant/function.
    function: FunctionName,
    /// Tag, label or id of a version that is still kept; it comes with the configuration that it had last [default:
    /// version and configuration as they were before].
    #[arg(long, value_name = "TAG|LABEL|ID")]
    to: Option<String>,
    /// The configuration, for example c3; without --to, the version stays.
    #[arg(long, value_name = "CONFIG")]
    config: Option<Number>,
    /// Take the place of a rollout that is going on, in one step.
    #[arg(long)]
    supersede: bool,
    /// Do not wait for its end.
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    connection: Connection,
}

/// Names a rollout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RolloutRef {
    /// By its number.
    Id(u64),
    /// The latest of a function.
    Latest(FunctionName),
}

impl FromStr for RolloutRef {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        match text.parse() {
            Ok(id) => Ok(RolloutRef::Id(id)),
            Err(_) => text.parse().map(RolloutRef::Latest),
        }
    }
}

impl RolloutRef {
    async fn get(&self, client: &Client) -> Result<RolloutView, Failure> {
        match self {
            RolloutRef::Id(id) => client.get(&format!("/v1/rollouts/{id}")).await,
            RolloutRef::Latest(function) => {
                client
                    .get(&format!("{}/rollouts/latest", function_path(function)))
                    .await
            }
        }
    }
}

/// `holm rollout`.
pub(crate) async fn run(args: RolloutArgs, output: Output) -> Result<(), Failure> {
    let client = args.connection.client()?;
    match args.action {
        Action::Start {
            function,
            version,
            config,
            pace,
            no_wait,
            dry_run,
        } => {
            let version = chosen(&client, &function, version.as_deref(), config).await?;
            let config = config.map(|Number(number)| number);
            if dry_run {
                return plan(&client, &function, version, config, &pace, output).await;
            }
            match start(&client, &function, version, config, &pace).await? {
                Started::Now(rollout) => {
                    end(&client, *rollout, no_wait, RolloutState::Completed, output).await
                }
                Started::Queued(queued) => output.result(&queued, || waits(&queued)),
            }
        }
        Action::Plan {
            function,
            version,
            config,
            pace,
        } => {
            let version = chosen(&client, &function, version.as_deref(), config).await?;
            let config = config.map(|Number(number)| number);
            plan(&client, &function, version, config, &pace, output).await
        }
        Action::Status { rollout } => {
            let rollout = rollout.get(&client).await?;
            output.result(&rollout, || describe(&rollout))
        }
        Action::List { function } => {
            let path = format!("{}/rollouts", function_path(&function));
            let view: RolloutsView = client.get(&path).await?;
            output.result(&view, || list(&view))
        }
        Action::Unqueue { function } => {
            let path = format!("{}/rollouts/queued", function_path(&function));
            client.delete(&path).await?;
            let given_up = serde_json::json!({ "function": function, "queued": null });
            output.result(&given_up, || {
                format!("no rollout of {function} waits any more")
            })
        }
        Action::Watch { rollout } => {
            let rollout = rollout.get(&client).await?;
            if output.json {
                return follow(&client, rollout, output).await;
            }
            end(&client, rollout, false, RolloutState::Completed, output).await
        }
        Action::Pause { rollout } => {
            let id = rollout.get(&client).await?.id;
            let path = format!("/v1/rollouts/{id}/pause");
            let rollout: RolloutView = client.post_empty(&path).await?;
            output.result(&rollout, || describe(&rollout))
        }
        Action::Resume { rollout, no_wait } => {
            let id = rollout.get(&client).await?.id;
            let path = format!("/v1/rollouts/{id}/resume");
            let rollout = client.post_empty(&path).await?;
            end(&client, rollout, no_wait, RolloutState::Completed, output).await
        }
        Action::Promote {
            rollout,
            all,
            no_wait,
        } => {
            let seen = rollout.get(&client).await?;
            let wave = seen.waves.iter().position(|wave| wave.state == "baking");
            let path = format!("/v1/rollouts/{}/promote", seen.id);
            let rollout = client.post(&path, &PromoteRequest { wave, all }).await?;
            end(&client, rollout, no_wait, RolloutState::Completed, output).await
        }
        Action::Abort { rollout, no_wait } => {
            let id = rollout.get(&client).await?.id;
            let rollout = client
                .post_empty(&format!("/v1/rollouts/{id}/abort"))
                .await?;
            end(&client, rollout, no_wait, RolloutState::RolledBack, output).await
        }
    }
}

/// `holm rollback`.
pub(crate) async fn rollback(args: RollbackArgs, output: Output) -> Result<(), Failure> {
    let client = args.connection.client()?;
    let path = format!("{}/rollback", function_path(&args.function));
    let version = match &args.to {
        None => None,
        Some(wanted) => {
            let view: FunctionView = client.get(&function_path(&args.function)).await?;
            Some(pick(&view, Some(wanted))?.version)
        }
    };
    let request = RollbackRequest {
        version,
        configuration: args.config.map(|Number(number)| number),
        supersede: args.supersede,
    };
    let rollout = client.post(&path, &request).await?;
    end(
        &client,
        rollout,
        args.no_wait,
        RolloutState::Completed,
        output,
    )
    .await
}

/// The version that is to be rolled out; none is the one that the fleet is on, with another configuration.
async fn chosen(
    client: &Client,
    function: &FunctionName,
    version: Option<&str>,
    config: Option<Number>,
) -> Result<Option<VersionId>, Failure> {
    if version.is_none() && config.is_some() {
        return Ok(None);
    }
    let view: FunctionView = client.get(&function_path(function)).await?;
    Ok(Some(pick(&view, version)?.version))
}

/// Starts moving the fleet to a version, a configuration, or both; what is left out stays as it is.
pub(crate) async fn start(
    client: &Client,
    function: &FunctionName,
    version: Option<VersionId>,
    configuration: Option<u64>,
    pace: &Pace,
) -> Result<Started, Failure> {
    client
        .post(
            &format!("{}/rollouts", function_path(function)),
            &pace.request(version, configuration),
        )
        .await
}

/// Tells which nodes would move when.
async fn plan(
    client: &Client,
    function: &FunctionName,
    version: Option<VersionId>,
    configuration: Option<u64>,
    pace: &Pace,
    output: Output,
) -> Result<(), Failure> {
    let path = format!("{}/rollouts/plan", function_path(function));
    let plan: RolloutPlanView = client
        .post(&path, &pace.request(version, configuration))
        .await?;
    output.result(&plan, || foretell(&plan))
}

/// A plan, for people.
fn foretell(plan: &RolloutPlanView) -> String {
    let previous = plan.previous_label().unwrap_or("nothing".to_owned());
    let mut lines = vec![format!("{}: {previous} → {}", plan.function, plan.label())];
    if let Some(running) = plan.running {
        lines.push(format!("rollout {running} is in the way"));
    }
    if plan.emergency {
        lines.push("its gates are skipped".to_owned());
    }
    for rule in &plan.empty {
        lines.push(format!("no node is in the wave {rule}"));
    }
    let rows: Vec<[String; 6]> = plan
        .waves
        .iter()
        .enumerate()
        .map(|(place, wave)| {
            let node = |name: &Name| match wave.absent.contains(name) {
                true => format!("{name} (away)"),
                false => name.to_string(),
            };
            [
                (place + 1).to_string(),
                wave.rule.clone(),
                format_millis(wave.bake_ms),
                wave.quorum
                    .map_or("any".to_owned(), |quorum| quorum.to_string()),
                format_millis(wave.skip_after_ms),
                wave.nodes.iter().map(node).collect::<Vec<_>>().join(", "),
            ]
        })
        .collect();
    lines.push(match rows.is_empty() {
        true => "no node is there yet".to_owned(),
        false => table(
            ["WAVE", "RULE", "BAKE", "QUORUM", "SKIP AFTER", "NODES"],
            &rows,
        ),
    });
    lines.join("\n")
}

/// A rollout that waits for its turn, for people.
pub(crate) fn waits(queued: &QueuedView) -> String {
    let behind = queued
        .behind
        .map(|id| format!(" when rollout {id} has ended"));
    format!(
        "{}: the rollout to {} begins{}",
        queued.function,
        queued.label(),
        behind.unwrap_or_default()
    )
}

/// Rollouts of a function, for people.
fn list(view: &RolloutsView) -> String {
    let rows: Vec<[String; 4]> = view
        .rollouts
        .iter()
        .map(|rollout| {
            [
                rollout.id.to_string(),
                rollout.label(),
                state(rollout).to_owned(),
                rollout.reason.clone(),
            ]
        })
        .collect();
    let mut lines = vec![table(["ROLLOUT", "VERSION", "STATE", "WHY"], &rows)];
    lines.extend(view.queued.as_ref().map(waits));
    lines.join("\n")
}

/// A line of JSON for every change of a rollout, until it ends or pauses.
async fn follow(client: &Client, rollout: RolloutView, output: Output) -> Result<(), Failure> {
    let mut seen = rollout;
    output.result(&seen, String::new)?;
    let mut last_answer = Instant::now();
    while !has_ended(seen.state) && !seen.paused {
        tokio::time::sleep(LOOK_EVERY).await;
        match client
            .get::<RolloutView>(&format!("/v1/rollouts/{}", seen.id))
            .await
        {
            Ok(now) => {
                last_answer = Instant::now();
                if now != seen {
                    output.result(&now, String::new)?;
                    seen = now;
                }
            }
            Err(failure)
                if failure.exit == Exit::Unreachable && last_answer.elapsed() < PATIENCE => {}
            Err(failure) => return Err(failure),
        }
    }
    match seen.state {
        RolloutState::Completed => Ok(()),
        _ => Err(Failure::reported(status(&seen), describe(&seen))),
    }
}

/// With what a command ends that wanted another end of the rollout.
pub(crate) fn status(rollout: &RolloutView) -> Exit {
    match rollout.state {
        RolloutState::RolledBack | RolloutState::RollingBack | RolloutState::Superseded => {
            Exit::RolledBack
        }
        RolloutState::Running if rollout.paused => Exit::Paused,
        RolloutState::Running | RolloutState::Completed => Exit::Failure,
    }
}

/// Watches unless told not to, prints, and fails if the rollout ended otherwise than `wanted`.
async fn end(
    client: &Client,
    rollout: RolloutView,
    no_wait: bool,
    wanted: RolloutState,
    output: Output,
) -> Result<(), Failure> {
    let rollout = match no_wait {
        true => rollout,
        false => watch(client, rollout, output).await?,
    };
    output.result(&rollout, || describe(&rollout))?;
    let good = rollout.state == wanted || (no_wait && rollout.ended_ms.is_none());
    match good {
        true => Ok(()),
        false => Err(Failure::reported(status(&rollout), describe(&rollout))),
    }
}

/// Looks at a rollout until it has ended or is paused, and tells of every change on the way.
pub(crate) async fn watch(
    client: &Client,
    rollout: RolloutView,
    output: Output,
) -> Result<RolloutView, Failure> {
    let bar = output.bar(
        rollout.waves.len().max(1) as u64,
        &format!("rollout {}", rollout.id),
    );
    for line in news(None, &rollout) {
        say(output, &bar, &line);
    }
    let mut seen = rollout;
    let mut last_answer = Instant::now();
    while !has_ended(seen.state) && !seen.paused {
        bar.set_position(
            seen.waves
                .iter()
                .filter(|wave| wave.state == "passed")
                .count() as u64,
        );
        tokio::time::sleep(LOOK_EVERY).await;
        let now: RolloutView = match client.get(&format!("/v1/rollouts/{}", seen.id)).await {
            Ok(now) => now,
            Err(failure)
                if failure.exit == Exit::Unreachable && last_answer.elapsed() < PATIENCE =>
            {
                continue;
            }
            Err(failure) => {
                bar.finish_and_clear();
                return Err(failure.hint(format!(
                    "rollout {} goes on without this command; see `holm rollout status {}`",
                    seen.id, seen.id
                )));
            }
        };
        last_answer = Instant::now();
        for line in news(Some(&seen), &now) {
            say(output, &bar, &line);
        }
        // Waves are planned when the rollout really begins.
        bar.set_length(now.waves.len().max(1) as u64);
        seen = now;
    }
    bar.finish_and_clear();
    Ok(seen)
}

/// Prints a line above a bar that may be there.
pub(crate) fn say(output: Output, bar: &ProgressBar, line: &str) {
    match bar.is_hidden() {
        true => output.note(line),
        false => bar.println(line),
    }
}

/// Whether nothing more will happen.
pub(crate) fn has_ended(state: RolloutState) -> bool {
    matches!(
        state,
        RolloutState::Completed | RolloutState::RolledBack | RolloutState::Superseded
    )
}

/// What is new between two looks at a rollout, a line each.
fn news(before: Option<&RolloutView>, now: &RolloutView) -> Vec<String> {
    let mut lines = Vec::new();
    if before.is_none() {
        let from = now.previous_label().map(|label| format!(" from {label}"));
        lines.push(format!(
            "rollout {}: {}{} to {}",
            now.id,
            now.function,
            from.unwrap_or_default(),
            now.label()
        ));
    }
    for (place, wave) in now.waves.iter().enumerate() {
        let state_before = before
            .and_then(|before| before.waves.get(place))
            .map(|w| &w.state);
        if state_before == Some(&wave.state) || wave.state == "waiting" {
            continue;
        }
        let nodes: Vec<&str> = wave.nodes.iter().map(Name::as_str).collect();
        let seen = match wave.state.as_str() {
            "passed" | "failed" => {
                format!(", {} requests, {} errors", wave.invocations, wave.errors)
            }
            _ => String::new(),
        };
        lines.push(format!(
            "  wave {} of {} ({}): {}{seen}",
            place + 1,
            now.waves.len(),
            nodes.join(", "),
            wave.state
        ));
    }
    let of = |rollout: &RolloutView| (rollout.state, rollout.paused);
    if before.map(of) != Some(of(now)) && (now.state != RolloutState::Running || now.paused) {
        lines.push(headline(now));
    }
    lines
}

/// Its state in a word or two.
fn state(rollout: &RolloutView) -> &'static str {
    match rollout.state {
        RolloutState::Running if rollout.paused => "paused",
        RolloutState::Running => "running",
        RolloutState::Completed => "completed",
        RolloutState::RollingBack => "rolling back",
        RolloutState::RolledBack => "rolled back",
        RolloutState::Superseded => "superseded",
    }
}

/// Its state and the reason, in one line.
fn headline(rollout: &RolloutView) -> String {
    let state = state(rollout);
    match rollout.reason.as_str() {
        "" => format!("rollout {}: {state}", rollout.id),
        reason => format!("rollout {}: {state}: {reason}", rollout.id),
    }
}

/// All of a rollout, for people.
pub(crate) fn describe(rollout: &RolloutView) -> String {
    let mut lines = vec![headline(rollout)];
    let previous = rollout.previous_label().unwrap_or("nothing".to_owned());
    lines.push(format!(
        "{}: {previous} → {}",
        rollout.function,
        rollout.label()
    ));
    if rollout.emergency {
        lines.push("its gates are skipped".to_owned());
    }
    lines.extend(rollout.queued.as_ref().map(waits));
    let rows: Vec<[String; 6]> = rollout
        .waves
        .iter()
        .enumerate()
        .map(|(place, wave)| {
            let nodes: Vec<&str> = wave.nodes.iter().map(Name::as_str).collect();
            [
                (place + 1).to_string(),
                wave.rule.clone(),
                wave.state.clone(),
                wave.invocations.to_string(),
                wave.errors.to_string(),
                nodes.join(", "),
            ]
        })
        .collect();
    lines.push(table(
        ["WAVE", "RULE", "STATE", "REQUESTS", "ERRORS", "NODES"],
        &rows,
    ));
    let rows: Vec<[String; 5]> = rollout
        .gates
        .iter()
        .filter(|gate| gate.new > 0)
        .map(|gate| {
            [
                gate.subject.clone(),
                gate.outcome.clone(),
                format!("{} of {}", gate.new_bad, gate.new),
                format!("{} of {}", gate.old_bad, gate.old),
                format!("{} of {}", gate.against, gate.needed),
            ]
        })
        .collect();
    if !rows.is_empty() {
        lines.push(table(["GATE", "SAYS", "NEW", "OLD", "AGAINST"], &rows));
    }
    lines.join("\n")
}

/// The version that `wanted` names: a tag, a label, an id, or its first digits; the newest if it is `None`.
pub(crate) fn pick<'a>(
    function: &'a FunctionView,
    wanted: Option<&str>,
) -> Result<&'a VersionView, Failure> {
    let none = |what: String| {
        let labels: Vec<&str> = function.versions.iter().map(|v| v.label.as_str()).collect();
        Failure::new(Exit::Refused, what).hint(format!(
            "{} has {}; see `holm versions {}`",
            function.name,
            if labels.is_empty() {
                "no versions".to_owned()
            } else {
                labels.join(", ")
            },
            function.name
        ))
    };
    let Some(wanted) = wanted else {
        return function
            .versions
            .iter()
            .max_by_key(|version| version.counter)
            .ok_or_else(|| none("there is no version to roll out".to_owned()));
    };
    let digits = wanted.strip_prefix("sha256:").unwrap_or(wanted);
    let by_id =
        |version: &&VersionView| digits.len() >= 6 && version.version.hex().starts_with(digits);
    let by_tag = |version: &&VersionView| version.tags.iter().any(|tag| tag == wanted);
    let by_label = |version: &&VersionView| version.label == wanted;
    let all = || function.versions.iter();
    let ways: [Vec<&VersionView>; 3] = [
        all().filter(by_tag).collect(),
        all().filter(by_label).collect(),
        all().filter(by_id).collect(),
    ];
    let found = ways.into_iter().find(|found| !found.is_empty());
    let found = found.unwrap_or_default();
    match found[..] {
        [one] => Ok(one),
        [] => Err(none(format!("there is no version `{wanted}`"))),
        _ => Err(none(format!(
            "`{wanted}` means several versions; give the id"
        ))),
    }
}

/// Where the function can be reached: one URL for each node that takes requests for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Place {
    /// The node.
    pub(crate) node: Name,
    /// Its region.
    pub(crate) region: String,
    /// The function on it.
    pub(crate) url: String,
    /// The version that answers there.
    pub(crate) version: VersionId,
}

/// Asks the coordinator where `function` can be reached.
pub(crate) async fn places(
    client: &Client,
    function: &FunctionName,
) -> Result<Vec<Place>, Failure> {
    let nodes: Vec<NodeView> = client.get("/v1/nodes").await?;
    let place = |node: NodeView| {
        let routed = node
            .versions
            .iter()
            .find(|v| v.routed && v.function == *function)?;
        Some(Place {
            url: format!("{}/{function}/", node.ingress_url.trim_end_matches('/')),
            version: routed.version,
            node: node.name,
            region: node.region,
        })
    };
    Ok(nodes.into_iter().filter_map(place).collect())
}

#[cfg(test)]
mod tests {
    use holm_model::api::WaveView;
    use holm_model::ids::Digest;

    use super::*;

    fn version(label: &str, counter: u64) -> VersionView {
        VersionView {
            version: Digest::of(format!("{label}{counter}").as_bytes()),
            function: "t/f".parse().unwrap(),
            label: label.into(),
            counter,
            message: String::new(),
            author: String::new(),
            tags: Vec::new(),
            removed: false,
            created_ms: 0,
            content: Digest::of(label.as_bytes()),
        }
    }

    fn function() -> FunctionView {
        FunctionView {
            name: "t/f".parse().unwrap(),
            current: None,
            configuration: None,
            versions: vec![version("v3", 3), version("v2", 2), version("v2", 1)],
        }
    }

    #[test]
    fn a_version_is_picked_by_label_or_id_and_the_newest_by_default() {
        let function = function();
        assert_eq!(pick(&function, None).unwrap().counter, 3);
        assert_eq!(pick(&function, Some("v3")).unwrap().counter, 3);
        let id = function.versions[2].version;
        assert_eq!(pick(&function, Some(&id.to_string())).unwrap().counter, 1);
        assert_eq!(pick(&function, Some(&id.hex()[..8])).unwrap().counter, 1);
    }

    #[test]
    fn a_tag_comes_before_a_label_of_the_same_text() {
        let mut function = function();
        function.versions[2].tags = vec!["v3".into(), "v2".into()];
        for tag in ["v3", "v2"] {
            assert_eq!(pick(&function, Some(tag)).unwrap().counter, 1);
        }
    }

    #[test]
    fn a_label_that_means_two_versions_or_none_is_refused() {
        for (wanted, what) in [("v2", "several"), ("v9", "no version"), ("", "no version")] {
            let failure = pick(&function(), Some(wanted)).unwrap_err();
            assert!(failure.message.contains(what), "{wanted}: {failure}");
        }
    }

    #[test]
    fn a_rollout_is_named_by_number_or_function() {
        assert_eq!("7".parse(), Ok(RolloutRef::Id(7)));
        assert_eq!(
            "t/f".parse(),
            Ok(RolloutRef::Latest("t/f".parse().unwrap()))
        );
        assert!("t".parse::<RolloutRef>().is_err());
    }

    #[test]
    fn only_what_changed_is_news() {
        let wave = |state: &str| WaveView {
            nodes: vec!["a".parse().unwrap()],
            state: state.into(),
            invocations: 5,
            errors: 1,
            ..WaveView::default()
        };
        let mut before = RolloutView {
            id: 1,
            function: "t/f".parse().unwrap(),
            version: version("v2", 2),
            configuration: Some(2),
            previous: Some(version("v1", 1)),
            previous_configuration: None,
            state: RolloutState::Running,
            reason: String::new(),
            paused: false,
            emergency: false,
            waves: vec![wave("moving"), wave("waiting")],
            gates: Vec::new(),
            queued: None,
            started_ms: 0,
            ended_ms: None,
        };
        assert_eq!(news(None, &before).len(), 2);
        assert_eq!(news(None, &before)[0], "rollout 1: t/f from v1 to v2+c2");
        assert!(news(Some(&before), &before).is_empty());
        let mut now = before.clone();
        now.waves[0].state = "failed".into();
        now.state = RolloutState::RollingBack;
        now.reason = "crashed on a".into();
        assert_eq!(
            news(Some(&before), &now),
            [
                "  wave 1 of 2 (a): failed, 5 requests, 1 errors",
                "rollout 1: rolling back: crashed on a"
            ]
        );
        before = now.clone();
        before.state = RolloutState::RolledBack;
        assert_eq!(
            news(Some(&now), &before),
            ["rollout 1: rolled back: crashed on a"]
        );
    }
}
