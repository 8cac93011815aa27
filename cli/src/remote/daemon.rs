//! The two daemons: `holm coordinator` and `holm node`.
//!
//! Each says one line on stdout when it is ready, with the addresses that it really has; a
//! supervisor reads that with `--json`. Logs go to stderr. SIGINT and SIGTERM end them in an orderly
//! way; nothing that matters is lost if they are killed instead.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read as _};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Subcommand;
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{Signal, SignalKind, signal};

use holm_coordinator::{StartError, StoreError};
use holm_model::ids::Name;
use holm_model::join::JoinToken;
use holm_model::manifest::network::{Host, Place};
use holm_model::manifest::units::parse_bytes;
use holm_model::place::Coordinates;
use holm_node::outbound::Outside;
use holm_tls::server::TlsFiles;

use crate::exit::{Exit, Failure};
use crate::output::{Output, logging};
use crate::remote::settings::{DEFAULT_HTTP, state_directory};
use crate::remote::tokens::days;

/// The file in a coordinator's state directory that holds its admin token.
pub(crate) const ADMIN_TOKEN_FILE: &str = "admin-token";

/// Where `holm coordinator` finds its database's URL if it is not on the command line.
pub(crate) const DATABASE_VARIABLE: &str = "HOLM_DATABASE";

/// Longest join token read from stdin.
const MAX_TOKEN_BYTES: u64 = 16 << 10;

/// Options of `holm coordinator`.
#[derive(Debug, clap::Args)]
pub(crate) struct CoordinatorArgs {
    /// Where the coordinator keeps everything [default: ~/.local/state/holm/coordinator].
    #[arg(long, env = "HOLM_STATE_DIR", value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// The PostgreSQL database to use instead of SQLite: postgres://USER@HOST:PORT/DATABASE. The command line is
    /// no place for its password; PGPASSWORD, ~/.pgpass and HOLM_DATABASE are.
    #[arg(
        long,
        env = DATABASE_VARIABLE,
        hide_env_values = true,
        value_name = "URL"
    )]
    database: Option<String>,
    /// Where artifacts are, if not in the state directory: s3://BUCKET/PREFIX of an S3-compatible store. Its endpoint
    /// and credentials are taken from the environment, as AWS SDKs name them: AWS_ENDPOINT_URL, AWS_REGION,
    /// AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY.
    #[arg(long, env = "HOLM_ARTIFACTS", value_name = "URL")]
    artifacts: Option<holm_coordinator::S3Place>,
    /// The file with the key that the database's secrets are encrypted with; the same for all coordinators on one
    /// database [default: secrets.key in the state directory, made at the first start].
    #[arg(long, env = "HOLM_SECRETS_KEY", value_name = "FILE")]
    secrets_key: Option<PathBuf>,
    /// Where people and CI reach it.
    #[arg(long, value_name = "ADDR", default_value = DEFAULT_HTTP)]
    http: SocketAddr,
    /// The certificate that people and CI are shown (PEM), followed by those between it and a root that they know. It
    /// is read again when it changes. Without it the API speaks plain HTTP.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The certificate's private key (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Where nodes reach it (UDP).
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7701")]
    quic: SocketAddr,
    /// The host and port that join tokens give to nodes [default: the address of --quic].
    #[arg(long, value_name = "HOST:PORT")]
    public_quic: Option<String>,
    /// How long a node's certificate is good. Nodes have it renewed when a third of that is left; one that is away
    /// for longer than that has to join again.
    #[arg(long, value_name = "TIME", default_value = "30d", value_parser = certificate_life)]
    node_certificates: Duration,
    /// How long records of usage are kept after they were entered, as 90d; or `forever`. Sums by minute, hour and day,
    /// and bills, which are made of them, are kept for ever in any case. Give all coordinators of a fleet the same.
    #[arg(long, env = "HOLM_KEEP_RECORDS", value_name = "TIME", default_value = "400d", value_parser = kept_for)]
    keep_records: Kept,
    /// Removes old records of usage although this machine's clock is far ahead of when they were last looked for, which
    /// a coordinator otherwise refuses. Say it once, after you have looked at the clock.
    #[arg(long)]
    trust_clock: bool,
    #[command(flatten)]
    supervision: Supervision,
    #[command(subcommand)]
    action: Option<CoordinatorAction>,
}

/// What is done with a coordinator's database while it does not run.
#[derive(Debug, Subcommand)]
enum CoordinatorAction {
    /// Write the whole database to a new file, to import it elsewhere.
    Export {
        /// Where to.
        file: PathBuf,
        /// Also while other coordinators are at work on the database: what they do from then on is not in it.
        #[arg(long)]
        running: bool,
    },
    /// Take an exported file into an empty database.
    Import {
        /// From `holm coordinator export`.
        file: PathBuf,
    },
    /// Make a new admin token for this state directory; the one before is void.
    RenewToken {
        /// Void the admin tokens of all other coordinators too, as may have come with an import.
        #[arg(long)]
        all: bool,
    },
    /// Encrypt the secrets of functions with a new key, which takes the place of the one before in its file.
    RenewSecretsKey,
}

/// `holm node …`.
#[derive(Debug, clap::Args)]
pub(crate) struct NodeArgs {
    #[command(subcommand)]
    action: NodeAction,
}

#[derive(Debug, Subcommand)]
enum NodeAction {
    /// Make this machine a node of a fleet, with a one-time token.
    Join(JoinArgs),
    /// Run the node that has joined.
    Run(Box<RunArgs>),
}

#[derive(Debug, clap::Args)]
struct JoinArgs {
    /// From `holm nodes token`; `-` reads it from stdin.
    token: String,
    /// What the node is to be called.
    #[arg(long, value_name = "NAME")]
    name: Name,
    /// Where the node is to keep its state [default: ~/.local/state/holm/node].
    #[arg(long, env = "HOLM_STATE_DIR", value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
struct RunArgs {
    /// Where the node keeps its state [default: ~/.local/state/holm/node].
    #[arg(long, env = "HOLM_STATE_DIR", value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Where it takes requests.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7780")]
    listen: SocketAddr,
    /// Where callers reach it [default: http://, or https://, and the address of --listen].
    #[arg(long, value_name = "URL")]
    public_url: Option<String>,
    /// Its region, for example eu-central.
    #[arg(long, value_name = "REGION")]
    region: String,
    /// Where it stands: latitude,longitude in degrees, for example 50.11,8.68.
    #[arg(long, value_name = "LAT,LON", allow_hyphen_values = true)]
    coordinates: Coordinates,
    /// The domain under which functions have host names FUNCTION.TENANT.DOMAIN.
    #[arg(long, value_name = "DOMAIN")]
    domain: Option<String>,
    /// The certificate that callers are shown (PEM), followed by those between it and a root that they know. It
    /// is read again when it changes. Without it the node speaks plain HTTP.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The certificate's private key (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Lets functions whose manifests name it reach an address of the node's own, which they may not otherwise:
    /// of its interfaces, of its link, of the cloud's metadata. ADDRESS:PORT or NETWORK/PREFIX:PORT; may be
    /// given several times.
    #[arg(long = "open-to-functions", value_name = "PLACE", value_parser = address)]
    open_to_functions: Vec<Place>,
    /// Host and UDP port of the coordinator [default: the one it joined].
    #[arg(long, value_name = "HOST:PORT")]
    dial: Option<String>,
    /// Virtual machines to keep ready [default: 2 to 16 for each thread, by the node's memory].
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    slots: usize,
    /// How large the journal may get that holds usage until the coordinator has it, as 20GiB. Beyond that the node takes
    /// no request until some of it is uploaded; a record takes some 200 bytes [default: half of the disk].
    #[arg(long, env = "HOLM_JOURNAL_LIMIT", value_name = "SIZE", value_parser = parse_bytes)]
    journal_limit: Option<u64>,
    /// Threads that take requests [default: one for each core].
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    threads: usize,
    #[command(flatten)]
    supervision: Supervision,
}

/// How a daemon logs, and how it is told to end beside signals.
#[derive(Debug, clap::Args)]
struct Supervision {
    /// How to write the log, which goes to stderr; HOLM_LOG says how much of it, for example
    /// `debug` or `holm_node=debug`.
    #[arg(long, env = "HOLM_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    /// End when stdin is closed, so that no daemon outlives whoever started it.
    #[arg(long, hide = true)]
    until_stdin_closes: bool,
}

/// How a daemon logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum LogFormat {
    /// A line for people.
    Text,
    /// A JSON object a line.
    Json,
}

/// What a coordinator says when it is ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CoordinatorReady {
    /// Where people and CI reach it.
    pub(crate) url: String,
    /// Where nodes reach it.
    pub(crate) quic: SocketAddr,
    /// The file that holds the admin token.
    pub(crate) token_file: PathBuf,
}

/// What a node says when it is ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NodeReady {
    /// Its name.
    pub(crate) node: Name,
    /// Where it takes requests.
    pub(crate) listen: SocketAddr,
    /// Where callers reach it.
    pub(crate) url: String,
}

fn certificate_life(text: &str) -> Result<Duration, String> {
    let life = Duration::from_millis(days(text)?);
    let (least, most) = holm_coordinator::NODE_CERTIFICATE_LIFE;
    match (least..=most).contains(&life) {
        true => Ok(life),
        false => Err(format!(
            "a certificate lives {} to {} seconds",
            least.as_secs(),
            most.as_secs()
        )),
    }
}

/// Both or none: each requires the other.
fn tls_files(cert: Option<PathBuf>, key: Option<PathBuf>) -> Option<TlsFiles> {
    let (cert, key) = cert.zip(key)?;
    Some(TlsFiles { cert, key })
}

/// How long something is kept; for ever if none.
#[derive(Clone, Copy, Debug)]
struct Kept(Option<Duration>);

fn kept_for(text: &str) -> Result<Kept, String> {
    if text == "forever" || text == "0" {
        return Ok(Kept(None));
    }
    let time = Duration::from_millis(days(text)?);
    match time >= holm_coordinator::LEAST_KEEP_RECORDS {
        true => Ok(Kept(Some(time))),
        false => Err("records are kept for at least a second, or `forever`".to_owned()),
    }
}

/// `holm coordinator`.
pub(crate) async fn coordinator(args: CoordinatorArgs, output: Output) -> Result<(), Failure> {
    let _log = logging("info", args.supervision.log_format == LogFormat::Json);
    let state_dir = match args.state_dir {
        Some(state_dir) => state_dir,
        None => state_directory("coordinator")?,
    };
    // Before anything else, so that a signal during the start ends it in an orderly way as well.
    let end = End::new(&args.supervision)?;
    let mut config = holm_coordinator::Config::new(state_dir, args.quic, args.http);
    config.public_quic_address = args.public_quic;
    config.tls = tls_files(args.tls_cert, args.tls_key);
    config.node_certificate_life = args.node_certificates;
    config.keep_records = args.keep_records.0;
    config.trust_clock = args.trust_clock;
    config.artifacts = args.artifacts;
    config.secrets_key = args.secrets_key;
    config.database = args.database.map(holm_coordinator::DatabaseUrl::from);
    if let Some(action) = args.action {
        return act(action, &config, output).await;
    }
    let mut running = holm_coordinator::start(config)
        .await
        .map_err(|error| coordinator_failure("the coordinator cannot start", &error))?;
    let ready = CoordinatorReady {
        url: running.url.clone(),
        quic: running.quic_addr,
        token_file: running.admin_token_path.clone(),
    };
    output.result(&ready, || {
        format!(
            "coordinator at {}, nodes at {} (UDP), admin token in {}",
            ready.url,
            ready.quic,
            ready.token_file.display()
        )
    })?;
    let broken = tokio::select! {
        broken = running.wait() => Some(broken),
        () = end.wait() => None,
    };
    running.shutdown().await;
    match broken {
        None => Ok(()),
        Some(what) => Err(Failure::other(format!(
            "the coordinator ended by itself: {what}"
        ))),
    }
}

/// `holm coordinator export`, `import`, `renew-token` and `renew-secrets-key`.
async fn act(
    action: CoordinatorAction,
    config: &holm_coordinator::Config,
    output: Output,
) -> Result<(), Failure> {
    match action {
        CoordinatorAction::Export { file, running } => {
            let rows = export(&file, running, config).await?;
            moved("exported", rows, &file, output)
        }
        CoordinatorAction::Import { file } => {
            let open = File::open(&file).map_err(|error| unusable(&file, &error))?;
            let rows = holm_coordinator::import(config, &mut BufReader::new(open)).await;
            let rows = rows.map_err(|error| coordinator_failure("nothing was imported", &error))?;
            moved("imported", rows, &file, output)
        }
        CoordinatorAction::RenewToken { all } => renew_token(config, all, output).await,
        CoordinatorAction::RenewSecretsKey => renew_secrets_key(config, output).await,
    }
}

async fn export(
    path: &Path,
    running: bool,
    config: &holm_coordinator::Config,
) -> Result<u64, Failure> {
    // Nobody else is to read what the fleet was used for.
    let mut options = File::options();
    let file = options.write(true).create_new(true).mode(0o600).open(path);
    let mut out = BufWriter::new(file.map_err(|error| unusable(path, &error))?);
    let rows = holm_coordinator::export(config, running, &mut out).await;
    let rows = rows
        .map_err(|error| coordinator_failure("nothing was exported", &error))
        .and_then(|rows| match out.get_ref().sync_all() {
            Ok(()) => Ok(rows),
            Err(error) => Err(unusable(path, &error)),
        });
    if rows.is_err() {
        // It was made here a moment ago. If it cannot be removed it is no export either: its last line is missing.
        let _ = std::fs::remove_file(path);
    }
    rows
}

fn unusable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::usage(format!("{} cannot be used: {error}", path.display()))
}

fn moved(done: &str, rows: u64, path: &Path, output: Output) -> Result<(), Failure> {
    let told = serde_json::json!({ "rows": rows, "file": path });
    output.result(&told, || format!("{rows} rows were {done}"))
}

/// `holm coordinator renew-token`.
async fn renew_token(
    config: &holm_coordinator::Config,
    all: bool,
    output: Output,
) -> Result<(), Failure> {
    let (path, voided) = holm_coordinator::renew_admin_token(config, all)
        .await
        .map_err(|error| coordinator_failure("the admin token is as it was", &error))?;
    let told = serde_json::json!({ "token_file": path, "voided": voided });
    output.result(&told, || {
        let path = path.display();
        format!("a new admin token is in {path}; {voided} before it are void")
    })
}

/// `holm coordinator renew-secrets-key`.
async fn renew_secrets_key(
    config: &holm_coordinator::Config,
    output: Output,
) -> Result<(), Failure> {
    let (count, path) = holm_coordinator::renew_secrets_key(config)
        .await
        .map_err(|error| {
            let failure = coordinator_failure("the key for secrets may not be renewed", &error);
            failure.hint("keep the file with the key and the one beside it that ends in `.next`, and start the coordinator: it takes the one that the database wants")
        })?;
    let told = serde_json::json!({ "key_file": path, "secrets": count });
    output.result(&told, || {
        let path = path.display();
        format!(
            "{count} secrets are encrypted with a new key, in {path}; copy it to the other coordinators on the same \
             database, if there are any"
        )
    })
}

fn coordinator_failure(what: &str, error: &StartError) -> Failure {
    let exit = match error {
        StartError::Store(StoreError::Url(_)) | StartError::Certificate(_) => Exit::Usage,
        StartError::Store(error) if error.is_unreachable() => Exit::Unreachable,
        _ => Exit::Failure,
    };
    Failure::new(exit, format!("{what}: {error}"))
}

/// `holm node`.
pub(crate) async fn node(args: NodeArgs, output: Output) -> Result<(), Failure> {
    match args.action {
        NodeAction::Join(args) => join(args, output).await,
        NodeAction::Run(args) => run_node(*args, output).await,
    }
}

async fn join(args: JoinArgs, output: Output) -> Result<(), Failure> {
    let state_dir = node_directory(args.state_dir)?;
    let token = match args.token.as_str() {
        "-" => std::io::read_to_string(std::io::stdin().lock().take(MAX_TOKEN_BYTES))
            .map_err(|error| Failure::usage(format!("the token cannot be read: {error}")))?,
        token => token.to_owned(),
    };
    let token: JoinToken = token.parse().map_err(Failure::usage)?;
    let config = holm_node::JoinConfig {
        state_dir: state_dir.clone(),
        token,
        name: args.name.clone(),
    };
    holm_node::join(config).await.map_err(|error| {
        let exit = match error {
            holm_node::JoinError::Refused(_) => Exit::Refused,
            holm_node::JoinError::Dial(_) | holm_node::JoinError::Silent(_) => Exit::Unreachable,
            _ => Exit::Failure,
        };
        Failure::new(exit, format!("{} has not joined: {error}", args.name))
    })?;
    let told = serde_json::json!({ "node": args.name, "state_dir": state_dir });
    output.result(&told, || {
        format!(
            "{} has joined; run it with `holm node run --region … --coordinates …`",
            args.name
        )
    })
}

async fn run_node(args: RunArgs, output: Output) -> Result<(), Failure> {
    let _log = logging("info", args.supervision.log_format == LogFormat::Json);
    let state_dir = node_directory(args.state_dir)?;
    let end = End::new(&args.supervision)?;
    let mut config =
        holm_node::NodeConfig::new(state_dir, args.listen, args.region, args.coordinates);
    config.public_url = args.public_url;
    config.domain = args.domain;
    config.coordinator = args.dial;
    config.tls = tls_files(args.tls_cert, args.tls_key);
    config.outside = Outside::new(args.open_to_functions);
    config.slots = args.slots;
    config.journal_limit_bytes = args.journal_limit;
    config.threads = args.threads;
    let node = blocking(move || holm_node::start(config))
        .await?
        .map_err(|error| {
            let exit = match error {
                holm_node::RunError::Kvm(_) => Exit::NoKvm,
                holm_node::RunError::Identity(_) | holm_node::RunError::Certificate(_) => {
                    Exit::Usage
                }
                _ => Exit::Failure,
            };
            Failure::new(exit, format!("the node cannot start: {error}"))
        })?;
    let ready = NodeReady {
        node: node.name().clone(),
        listen: node.addr(),
        url: node.url().to_owned(),
    };
    output.result(&ready, || {
        format!("node {} takes requests at {}", ready.node, ready.url)
    })?;
    end.wait().await;
    blocking(move || node.shutdown()).await
}

/// A place that is an address or a network: names are resolved before they are compared.
fn address(text: &str) -> Result<Place, String> {
    let place: Place = text.parse().map_err(|error| format!("{error}"))?;
    match place.host {
        Host::Network { .. } => Ok(place),
        Host::Name(_) | Host::Below(_) => Err("not an address and a port".into()),
    }
}

/// Does what blocks on a thread that may.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Failure::other(format!("a part of the node failed: {error}")))
}

fn node_directory(given: Option<PathBuf>) -> Result<PathBuf, Failure> {
    match given {
        Some(state_dir) => Ok(state_dir),
        None => state_directory("node"),
    }
}

/// What ends a daemon in an orderly way.
struct End {
    interrupt: Signal,
    terminate: Signal,
    stdin: bool,
}

impl End {
    fn new(supervision: &Supervision) -> Result<Self, Failure> {
        let listen = |kind| {
            signal(kind)
                .map_err(|error| Failure::other(format!("signals cannot be listened for: {error}")))
        };
        Ok(End {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            stdin: supervision.until_stdin_closes,
        })
    }

    /// Returns when it is time to end.
    async fn wait(mut self) {
        let closed = async {
            match self.stdin {
                true => stdin_closed().await,
                false => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => tracing::info!("interrupted; ending"),
            _ = self.terminate.recv() => tracing::info!("told to end"),
            () = closed => tracing::info!("stdin was closed; ending"),
        }
    }
}

/// Returns when stdin has ended. On a thread of its own: the runtime's own stdin would keep the
/// process from ending while a read is under way.
async fn stdin_closed() {
    let (closed, wait) = tokio::sync::oneshot::channel();
    let watch = move || {
        // An error means that nothing more will come, which is an end as well.
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        // Nobody waits any more if the daemon ends for another reason.
        let _ = closed.send(());
    };
    match std::thread::Builder::new()
        .name("stdin".into())
        .spawn(watch)
    {
        Ok(_) => {
            // The thread always sends before it ends.
            let _ = wait.await;
        }
        Err(error) => {
            tracing::warn!(%error, "stdin cannot be watched");
            std::future::pending::<()>().await;
        }
    }
}
