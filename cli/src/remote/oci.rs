//! `holm push` and `holm pull`: versions to and from OCI image layouts and registries, so that what signs, scans and copies OCI
//! artifacts can do so with functions.
//!
//! A push signs as a deploy does, and needs the coordinator only for the version's counter or for a version that
//! is there already. A pull hands the version over as it was signed; `holm rollout start` then brings it to the
//! fleet.

use std::path::Path;

use serde::Serialize;

use holm_model::api::{FunctionView, PublishRequest, VersionView};
use holm_model::artifact::SignedVersion;
use holm_model::ids::{Digest, FunctionName, VersionId};

use crate::exit::{Exit, Failure};
use crate::local::build;
use crate::oci::{Package, Reference};
use crate::output::Output;
use crate::remote::client::{Client, function_path};
use crate::remote::deploy::{About, hand_over, next_counter};
use crate::remote::key::KeyFile;
use crate::remote::rollout::pick;
use crate::remote::settings::Connection;
use crate::remote::table::bytes;

/// Options of `holm push`.
#[derive(Debug, clap::Args)]
pub(crate) struct PushArgs {
    /// A project's directory, which is built and signed; or TENANT/FUNCTION[@VERSION], a version that the
    /// coordinator has, by tag, label or id.
    source: String,
    /// Where to: oci:PATH[:TAG], an OCI image layout, made if it is not there [default tag: the version's label]; or
    /// docker://HOST/REPOSITORY:TAG, a registry.
    #[arg(value_name = "REFERENCE")]
    destination: Reference,
    /// The version's counter, above that of every version published before; the coordinator is not asked then.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    counter: Option<u64>,
    #[command(flatten)]
    about: About,
    #[command(flatten)]
    key: KeyFile,
    #[command(flatten)]
    connection: Connection,
}

/// Options of `holm pull`.
#[derive(Debug, clap::Args)]
pub(crate) struct PullArgs {
    /// Where from: oci:PATH[:TAG], an OCI image layout; or docker://HOST/REPOSITORY:TAG, a registry.
    #[arg(value_name = "REFERENCE")]
    source: Reference,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Serialize)]
struct Pushed {
    function: FunctionName,
    version: VersionId,
    label: String,
    artifact: Digest,
    /// Of the image manifest.
    manifest: Digest,
    /// Where it is, with its tag.
    place: String,
}

#[derive(Serialize)]
struct Pulled {
    version: VersionView,
    artifact: Digest,
    sent_bytes: u64,
}

/// `holm push`.
pub(crate) async fn push(args: PushArgs, output: Output) -> Result<(), Failure> {
    let package = match Path::new(&args.source).is_dir() {
        true => of_project(&args, output).await?,
        false => of_version(&args).await?,
    };
    let (manifest, place) = args.destination.put(&package).await?;
    let pushed = Pushed {
        function: package.statement.function.clone(),
        version: package.signed.id(),
        label: package.statement.label.clone(),
        artifact: package.statement.artifact,
        manifest,
        place: place.to_string(),
    };
    output.result(&pushed, || {
        format!(
            "{} {} ({}) is in {place}\n  manifest {manifest}\n  artifact {}",
            pushed.function,
            pushed.label,
            bytes(package.statement.artifact_bytes),
            pushed.artifact
        )
    })
}

/// `holm pull`.
pub(crate) async fn pull(args: PullArgs, output: Output) -> Result<(), Failure> {
    let Package {
        signed,
        statement,
        artifact,
    } = args.source.get().await?;
    let client = args.connection.client()?;
    let (version, sent_bytes) = hand_over(&client, &statement, &signed, &artifact, output).await?;
    let pulled = Pulled {
        version,
        artifact: statement.artifact,
        sent_bytes,
    };
    let VersionView {
        function, label, ..
    } = &pulled.version;
    output.result(&pulled, || {
        format!("{function} {label} is published; `holm rollout start {function} --version {label}` brings it to the fleet")
    })
}

/// Builds and signs, as `holm deploy` does.
async fn of_project(args: &PushArgs, output: Output) -> Result<Package, Failure> {
    let built = build::build(Path::new(&args.source), output)?;
    output.note(format!("built {}", build::describe(&built)));
    let release = args.about.release(built.manifest, built.artifact, true);
    let function = release.function()?;
    let counter = match args.counter {
        Some(counter) => counter,
        None => {
            let client = args.connection.client()?;
            let known: Option<FunctionView> = client.find(&function_path(&function)).await?;
            next_counter(known.as_ref())
        }
    };
    let statement = release.statement(function, counter);
    let key = args.key.load_or_create(output)?;
    let signed = SignedVersion::sign(&statement, &key);
    Package::new(signed, release.artifact.to_vec()).map_err(Failure::other)
}

/// Gets a version from the coordinator.
async fn of_version(args: &PushArgs) -> Result<Package, Failure> {
    let source = &args.source;
    let (function, version) = match source.split_once('@') {
        Some((function, version)) => (function, Some(version)),
        None => (&source[..], None),
    };
    let function: FunctionName = function.parse().map_err(|_| {
        Failure::usage(format!(
            "`{source}` is neither a directory nor a version of a function"
        ))
        .hint("give a project's directory, or TENANT/FUNCTION@VERSION")
    })?;
    if args.counter.is_some() || args.about.label.is_some() || args.about.tenant.is_some() {
        let what = "a version that is published has its counter, label and tenant already";
        return Err(Failure::usage(what).hint("leave --counter, --label and --tenant out"));
    }
    let client = args.connection.client()?;
    let known: FunctionView = client.get(&function_path(&function)).await?;
    let version = pick(&known, version)?.version;
    let path = format!("{}/versions/{version}", function_path(&function));
    let request: PublishRequest = client.get(&path).await?;
    let broken = |error: &dyn std::fmt::Display| {
        let url = client.url();
        Failure::new(
            Exit::Failure,
            format!("what {url} has of {function} {version} cannot be used: {error}"),
        )
        .hint("its operator is to look into it")
    };
    let signed = request.to_signed().map_err(|error| broken(&error))?;
    let verified = signed
        .verify(&[signed.key])
        .map_err(|error| broken(&error))?;
    let artifact = artifact(&client, &path, verified.statement.artifact_bytes).await?;
    Package::new(signed, artifact).map_err(|error| broken(&error))
}

/// All of a version's artifact, piece by piece: a cut costs no more than one.
async fn artifact(client: &Client, version: &str, length: u64) -> Result<Vec<u8>, Failure> {
    let mut artifact = Vec::new();
    let mut tries = 0;
    while (artifact.len() as u64) < length {
        let path = format!("{version}/artifact?from={}", artifact.len());
        match client.get_bytes(&path).await {
            Ok(piece) if piece.is_empty() => break,
            Ok(piece) => {
                artifact.extend_from_slice(&piece);
                tries = 0;
            }
            Err(failure) if failure.exit == Exit::Unreachable && tries < 5 => tries += 1,
            Err(failure) => return Err(failure),
        }
    }
    Ok(artifact)
}
