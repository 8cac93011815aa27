//! `holm deploy`: build, sign, hand over, roll out, and watch until the fleet has it.
//!
//! A deploy of what the fleet already runs does nothing, so that it can stand in a script. The
//! publisher's key never leaves this machine: what is sent is a statement and a signature over it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ed25519_dalek::SigningKey;
use indicatif::ProgressStyle;
use serde::Serialize;

use holm_model::api::{
    FunctionView, MissingChunks, PublishRequest, RolloutState, RolloutView, VersionView,
};
use holm_model::artifact::{SignedVersion, Statement};
use holm_model::bundle::Bundle;
use holm_model::chunks::{Index, frame_head};
use holm_model::ids::{Digest, FunctionName, Name};
use holm_model::manifest::Manifest;

use crate::exit::{Exit, Failure};
use crate::local::{build, files, project};
use crate::output::Output;
use crate::remote::client::{Client, function_path};
use crate::remote::key::KeyFile;
use crate::remote::rollout::{Pace, Place, Started, describe, places, start, status, waits, watch};
use crate::remote::settings::Connection;
use crate::remote::table::bytes;
use crate::remote::versions::set_tag;
use crate::remote::when::now_ms;

/// How often an upload goes on that was cut.
const UPLOAD_TRIES: u32 = 6;
/// The first pause before that; each is longer by as much.
const UPLOAD_RETRY: Duration = Duration::from_millis(500);

/// Options of `holm deploy`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The project's directory; it is built first.
    #[arg(
        long,
        value_name = "DIR",
        default_value = ".",
        conflicts_with = "program"
    )]
    dir: PathBuf,
    /// A static program to deploy as it is, instead of a project.
    #[arg(long, value_name = "FILE", requires = "manifest")]
    program: Option<PathBuf>,
    /// The manifest that goes with --program.
    #[arg(long, value_name = "FILE", requires = "program")]
    manifest: Option<PathBuf>,
    #[command(flatten)]
    about: About,
    /// Have a tag name the version as soon as it is published; may be given several times.
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    #[command(flatten)]
    pace: Pace,
    /// Do not wait for the rollout's end.
    #[arg(long)]
    no_wait: bool,
    /// Deploy although nothing has changed.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    key: KeyFile,
    #[command(flatten)]
    connection: Connection,
}

/// What `holm deploy --json` prints.
#[derive(Debug, Serialize)]
struct Report {
    function: FunctionName,
    version: VersionView,
    /// Whether there was anything to deploy.
    changed: bool,
    /// Bytes of its artifact's chunks that were sent; the rest was there.
    sent_bytes: u64,
    rollout: Option<RolloutView>,
    /// Where the function can be reached.
    urls: Vec<Place>,
}

/// Whose a version is, and what is said of it.
#[derive(Debug, clap::Args)]
pub(crate) struct About {
    /// Whose function it is [default: `tenant` in the manifest].
    #[arg(long, value_name = "TENANT")]
    pub(crate) tenant: Option<Name>,
    /// What to call the version [default: v and its counter].
    #[arg(long, value_name = "LABEL")]
    pub(crate) label: Option<String>,
    /// What is new, for people.
    #[arg(long, short, value_name = "TEXT", default_value = "")]
    message: String,
    /// Who makes it, for people [default: the name of the user].
    #[arg(long, env = "HOLM_AUTHOR", value_name = "TEXT")]
    author: Option<String>,
}

impl About {
    /// A release of this, with what is said of it.
    pub(crate) fn release(
        &self,
        mut manifest: Manifest,
        artifact: Arc<[u8]>,
        force: bool,
    ) -> Release {
        if let Some(tenant) = &self.tenant {
            manifest.function.tenant = Some(tenant.clone());
        }
        Release {
            manifest,
            artifact,
            label: self.label.clone(),
            message: self.message.clone(),
            author: self.author.clone().unwrap_or_else(user),
            force,
        }
    }
}

/// What there is to publish.
#[derive(Clone, Debug)]
pub(crate) struct Release {
    /// What the function is allowed; names the tenant.
    pub(crate) manifest: Manifest,
    /// The program, with its files if it brings any.
    pub(crate) artifact: Arc<[u8]>,
    /// What to call the version; `v` and its counter if `None`.
    pub(crate) label: Option<String>,
    /// What is new, for people.
    pub(crate) message: String,
    /// Who makes it, for people.
    pub(crate) author: String,
    /// Publish although nothing has changed.
    pub(crate) force: bool,
}

impl Release {
    /// Whose function it is of.
    pub(crate) fn function(&self) -> Result<FunctionName, Failure> {
        let function = &self.manifest.function;
        let tenant = function.tenant.clone().ok_or_else(|| {
            Failure::usage("nobody said whose function this is")
                .hint("give --tenant TENANT, or put `tenant = \"…\"` under [function] in holm.toml")
        })?;
        Ok(FunctionName {
            tenant,
            function: function.name.clone(),
        })
    }

    /// What is signed of it.
    pub(crate) fn statement(&self, function: FunctionName, counter: u64) -> Statement {
        let label = self.label.clone();
        Statement {
            function,
            counter,
            artifact: Digest::of(&self.artifact),
            artifact_bytes: self.artifact.len() as u64,
            manifest: self.manifest.clone(),
            label: label.unwrap_or_else(|| format!("v{counter}")),
            message: self.message.clone(),
            author: self.author.clone(),
            created_ms: now_ms(),
        }
    }
}

/// A counter above that of every version that the coordinator knows.
pub(crate) fn next_counter(known: Option<&FunctionView>) -> u64 {
    let versions = known.iter().flat_map(|known| &known.versions);
    let highest = versions.map(|version| version.counter).max();
    highest.unwrap_or_default().saturating_add(1)
}

/// What came of publishing.
#[derive(Clone, Debug)]
pub(crate) enum Published {
    /// There is a new version; so many bytes of its artifact were sent.
    New(VersionView, u64),
    /// The fleet is on a version that does the same.
    Unchanged(VersionView),
}

/// Does it.
pub(crate) async fn run(args: Args, output: Output) -> Result<(), Failure> {
    let client = args.connection.client()?;
    let (manifest, artifact) = match (&args.program, &args.manifest) {
        (Some(program), Some(manifest)) => read(program, manifest)?,
        _ => {
            let built = build::build(&args.dir, output)?;
            output.note(format!("built {}", build::describe(&built)));
            (built.manifest, built.artifact)
        }
    };
    let release = args.about.release(manifest, artifact, args.force);
    let function = release.function()?;
    let key = args.key.load_or_create(output)?;
    let published = publish(&client, &key, release, output).await?;
    let (Published::New(version, _) | Published::Unchanged(version)) = &published;
    for tag in &args.tags {
        set_tag(&client, version, tag).await?;
    }
    let (version, sent_bytes) = match published {
        Published::New(version, sent_bytes) => (version, sent_bytes),
        Published::Unchanged(version) => {
            let urls = places(&client, &function).await?;
            let label = version.label.clone();
            let human = format!("nothing changed: the fleet is on {label}\n{}", list(&urls));
            let report = Report {
                function,
                version,
                changed: false,
                sent_bytes: 0,
                rollout: None,
                urls,
            };
            return output.result(&report, || human);
        }
    };
    let rollout = match start(&client, &function, Some(version.version), None, &args.pace).await? {
        Started::Now(rollout) => *rollout,
        Started::Queued(queued) => return output.result(&queued, || waits(&queued)),
    };
    let rollout = match args.no_wait {
        true => rollout,
        false => watch(&client, rollout, output).await?,
    };
    let urls = places(&client, &function).await?;
    let good = match rollout.state {
        RolloutState::Completed => true,
        RolloutState::Running => args.no_wait,
        RolloutState::RollingBack | RolloutState::RolledBack | RolloutState::Superseded => false,
    };
    let human = match good {
        true => format!("{function} {}\n{}", rollout.label(), list(&urls)),
        false => describe(&rollout),
    };
    let exit = status(&rollout);
    let report = Report {
        function,
        version,
        changed: true,
        sent_bytes,
        rollout: Some(rollout),
        urls,
    };
    output.result(&report, || human.clone())?;
    match good {
        true => Ok(()),
        false => Err(Failure::reported(exit, human)),
    }
}

/// What the user is called here; nothing if nobody says.
pub(crate) fn user() -> String {
    let named = ["USER", "LOGNAME"]
        .into_iter()
        .find_map(|name| std::env::var(name).ok());
    named.unwrap_or_default()
}

/// Signs and hands over a new version, unless the fleet is on one that does the same.
pub(crate) async fn publish(
    client: &Client,
    key: &SigningKey,
    release: Release,
    output: Output,
) -> Result<Published, Failure> {
    let function = release.function()?;
    let known: Option<FunctionView> = client.find(&function_path(&function)).await?;
    let counter = next_counter(known.as_ref());
    let statement = release.statement(function, counter);
    let current = known.and_then(|known| known.current);
    if let Some(current) = current.filter(|c| c.content == statement.content() && !release.force) {
        return Ok(Published::Unchanged(current));
    }
    let signed = SignedVersion::sign(&statement, key);
    let (version, sent) = hand_over(client, &statement, &signed, &release.artifact, output).await?;
    Ok(Published::New(version, sent))
}

/// Hands over a version that is signed, and its artifact. Returns how many bytes of that had to be sent.
pub(crate) async fn hand_over(
    client: &Client,
    statement: &Statement,
    signed: &SignedVersion,
    artifact: &[u8],
    output: Output,
) -> Result<(VersionView, u64), Failure> {
    let mut sent = upload(client, statement, artifact, output).await?;
    let request = PublishRequest::from_signed(signed);
    let path = format!("{}/versions", function_path(&statement.function));
    let mut answer: Result<VersionView, Failure> = client.post(&path, &request).await;
    // The artifact was there, of a version that was removed just now.
    if answer.is_err()
        && !client
            .has_artifact(&statement.artifact)
            .await
            .unwrap_or(true)
    {
        sent += upload(client, statement, artifact, output).await?;
        answer = client.post(&path, &request).await;
    }
    let version = answer.map_err(|failure: Failure| match (failure.exit, &failure.hint) {
        (Exit::Refused, None) if failure.message.contains("has not registered") => {
            failure.hint(format!(
                "if the tenant is new or does not trust your key: `holm tenants create {}`",
                statement.function.tenant
            ))
        }
        _ => failure,
    })?;
    Ok((version, sent))
}

/// Hands over what the coordinator lacks of the artifact. What came before a cut is not sent again. Returns the
/// bytes of the chunks that were sent.
async fn upload(
    client: &Client,
    statement: &Statement,
    artifact: &[u8],
    output: Output,
) -> Result<u64, Failure> {
    let digest = &statement.artifact;
    if client.has_artifact(digest).await? {
        return Ok(0);
    }
    let index = Index::of(artifact);
    let (mut sent, mut tries) = (0, 0);
    loop {
        let failure = match client.put_index(digest, &index).await {
            Ok(None) => break,
            Ok(Some(lacks)) => match send(client, digest, artifact, &index, &lacks, output).await {
                Ok(bytes) => {
                    sent += bytes;
                    // They are asked about once more, and may have been removed between the two.
                    tries += 1;
                    if tries < UPLOAD_TRIES {
                        continue;
                    }
                    Failure::other(format!(
                        "the coordinator at {} goes on asking for chunks that it was sent",
                        client.url()
                    ))
                    .hint("its log may say why; its operator is to look into it")
                }
                Err(failure) => failure,
            },
            Err(failure) => failure,
        };
        tries += 1;
        if failure.exit != Exit::Unreachable || tries >= UPLOAD_TRIES {
            return Err(failure);
        }
        output.note(format!(
            "the upload was cut ({}); going on with it",
            failure.message
        ));
        tokio::time::sleep(UPLOAD_RETRY * tries).await;
    }
    let (part, whole) = (bytes(sent), bytes(statement.artifact_bytes));
    output.note(match sent >= statement.artifact_bytes {
        true => format!("sent {whole}"),
        false => format!("sent {part} of {whole}, the rest was there"),
    });
    Ok(sent)
}

/// Sends the chunks that the coordinator lacks; returns their bytes.
async fn send(
    client: &Client,
    digest: &Digest,
    artifact: &[u8],
    index: &Index,
    lacks: &MissingChunks,
    output: Output,
) -> Result<u64, Failure> {
    let placed: Vec<_> = index.placed().collect();
    let (mut frames, mut sent) = (Vec::new(), 0);
    for place in &lacks.missing {
        let Some((at, chunk)) = placed.get(*place as usize) else {
            return Err(Failure::other(format!(
                "the coordinator at {} asks for chunk {place} of an artifact that has {}",
                client.url(),
                placed.len()
            ))
            .hint("is it of the same version as this command?"));
        };
        let at = usize::try_from(*at).expect("it is a place in memory");
        let chunk = &artifact[at..at + chunk.bytes as usize];
        frames.extend_from_slice(&frame_head(chunk));
        frames.extend_from_slice(chunk);
        sent += chunk.len() as u64;
    }
    let bar = output.bar(frames.len() as u64, "uploading");
    if let Ok(style) = ProgressStyle::with_template("{msg} [{bar:30}] {bytes}/{total_bytes}") {
        bar.set_style(style.progress_chars("=> "));
    }
    let result = client.put_chunks(digest, frames.into(), bar.clone()).await;
    bar.finish_and_clear();
    result.map(|()| sent)
}

fn read(program: &Path, manifest: &Path) -> Result<(Manifest, Arc<[u8]>), Failure> {
    let path = manifest.display();
    let text = crate::remote::settings::read_small(manifest)
        .map_err(|error| Failure::usage(format!("{path} cannot be read: {error}")))?;
    let dir = manifest.parent().unwrap_or(Path::new(""));
    let manifest =
        Manifest::from_toml(&text).map_err(|error| Failure::usage(format!("{path}: {error}")))?;
    let program = project::read_program(program)?;
    project::check_room(&program, manifest.limits.memory_bytes)
        .map_err(|error| Failure::usage(error).hint("raise `memory` in [limits]"))?;
    let files = files::of_project(dir, &manifest)?;
    let artifact = Bundle { program, files }.to_bytes();
    Ok((manifest, artifact.map_err(Failure::usage)?))
}

fn list(places: &[Place]) -> String {
    let lines: Vec<String> = places
        .iter()
        .map(|place| format!("  {} ({})", place.url, place.node))
        .collect();
    match lines.is_empty() {
        true => "  no node takes requests for it yet".to_owned(),
        false => lines.join("\n"),
    }
}
