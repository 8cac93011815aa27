//! Starting the coordinator, and ending it.

use std::fs::{DirBuilder, File, Permissions, TryLockError};
use std::io::{self, BufRead, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use holm_model::ids::Digest;
use holm_tls::TlsFileError;
use holm_tls::server::{Certificates, Current, TlsFiles};
use quinn::{Endpoint, VarInt};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::api::{self, Api, BoundedListener};
use crate::budget::Budgets;
use crate::ca::{
    Authority, CaError, Joins, TokenError, Tokens, ensure_admin_token, new_admin_token, random,
};
use crate::clock::{Clock, millis};
use crate::exports::Exports;
use crate::ledger::Ledger;
use crate::limits::{LAST_SEEN_EVERY, SWEEP_EVERY};
use crate::logs::Logs;
use crate::nodes::{Fleet, Server, ServerError, Services};
use crate::peers::Peers;
use crate::registry::{ArtifactError, Artifacts, Configurations, Objects, Registry, S3Place};
use crate::retention::Retention;
use crate::rollout::{Rollouts, Timing};
use crate::store::{Came, DatabaseUrl, Deed, Store, StoreError, TransferError};
use crate::vault::{Vault, VaultError};

/// Time for requests under way to end.
const GRACE: Duration = Duration::from_secs(5);

/// The file with the administrator's token in the state directory.
const ADMIN_TOKEN: &str = "admin-token";

/// How to run a coordinator.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where it keeps everything but the database, if that is elsewhere; made if it is not there.
    pub state_dir: PathBuf,
    /// The PostgreSQL database that several coordinators share; SQLite in the state directory if
    /// none.
    pub database: Option<DatabaseUrl>,
    /// Where in an S3-compatible store artifacts are; in a directory of the state directory if none.
    pub artifacts: Option<S3Place>,
    /// The file with the key that secrets in the database are encrypted with; in the state directory if none.
    pub secrets_key: Option<PathBuf>,
    /// UDP address for nodes; port 0 takes any that is free.
    pub quic_listen: SocketAddr,
    /// TCP address of the HTTP API; port 0 takes any that is free.
    pub http_listen: SocketAddr,
    /// What the HTTP API speaks TLS with; plain HTTP if none.
    pub tls: Option<TlsFiles>,
    /// Host and UDP port that join tokens tell nodes to dial; the bound QUIC address if none.
    pub public_quic_address: Option<String>,
    /// How long a rollout waits for a connected node to serve a version.
    pub prepare_timeout: Duration,
    /// How long a rollout waits for a node that is away.
    pub absent_grace: Duration,
    /// How long a node's certificate is good, within [`crate::NODE_CERTIFICATE_LIFE`]. The node has it renewed when two thirds of that are over, so one that
    /// is away for no longer than the last third comes back by itself.
    pub node_certificate_life: Duration,
    /// How long records of usage are kept after they were entered, at least [`crate::LEAST_KEEP_RECORDS`]; for ever if
    /// none. Sums of them are kept for ever.
    pub keep_records: Option<Duration>,
    /// Records are removed by this machine's clock even if it is far ahead of when that was last done; to be said once.
    pub trust_clock: bool,
}

impl Config {
    /// A configuration with Holm's own times.
    pub fn new(state_dir: PathBuf, quic_listen: SocketAddr, http_listen: SocketAddr) -> Self {
        Config {
            state_dir,
            database: None,
            artifacts: None,
            secrets_key: None,
            quic_listen,
            http_listen,
            tls: None,
            public_quic_address: None,
            prepare_timeout: Duration::from_secs(60),
            absent_grace: Duration::from_secs(10),
            node_certificate_life: Duration::from_secs(30 * 86_400),
            keep_records: Some(Duration::from_secs(400 * 86_400)),
            trust_clock: false,
        }
    }
}

/// Why a coordinator cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The state directory is not usable.
    #[error("{operation} {path} failed: {source}; look at the state directory's owner and disk")]
    StateDir {
        /// What was to be done.
        operation: &'static str,
        /// With what.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// Another coordinator has it.
    #[error("another coordinator is running on the state directory {0}; end it first")]
    Locked(PathBuf),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An export or import.
    #[error(transparent)]
    Transfer(#[from] TransferError),
    /// The certificate authority.
    #[error(transparent)]
    Authority(#[from] CaError),
    /// The fleet has a certificate authority, and it is not here.
    #[error(
        "the coordinators on this database have a certificate authority, which the state directory {0} lacks; \
         copy `ca.key` and `ca.der` there from the state directory of one of them"
    )]
    NoAuthority(PathBuf),
    /// This is another fleet's.
    #[error(
        "the certificate authority in the state directory {0} is not that of the other coordinators on this \
         database; copy `ca.key` and `ca.der` from the state directory of one of them, or give another database"
    )]
    OtherAuthority(PathBuf),
    /// An export would miss what is done meanwhile.
    #[error(
        "coordinators are at work on the database ({0}): they would go on with what is there now; end them first, or \
         export what there is with --running"
    )]
    AtWork(String),
    /// The administrator's token.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The key for secrets.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// The artifact directory.
    #[error(transparent)]
    Artifacts(#[from] ArtifactError),
    /// The nodes' endpoint.
    #[error(transparent)]
    Nodes(#[from] ServerError),
    /// The certificate of the HTTP API or its key.
    #[error(transparent)]
    Certificate(#[from] TlsFileError),
    /// The HTTP API's address is not to be had.
    #[error(
        "listening for the HTTP API on {address} failed: {source}; choose another address or end \
         what holds it"
    )]
    Http {
        /// Which.
        address: SocketAddr,
        /// The system's words.
        source: io::Error,
    },
}

/// A coordinator that runs. Dropped, it ends at once, as if killed.
pub struct Running {
    /// Where the HTTP API listens.
    pub http_addr: SocketAddr,
    /// The same as a URL.
    pub url: String,
    /// Where nodes dial.
    pub quic_addr: SocketAddr,
    /// The file with the administrator's token.
    pub admin_token_path: PathBuf,
    tasks: JoinSet<&'static str>,
    endpoint: Endpoint,
    stop: watch::Sender<bool>,
    store: Store,
    peers: Option<Arc<Peers>>,
    // Declared last, so that it is let go of last.
    _lock: File,
}

/// Writes every row of the database to `out`, as they are at one moment. Returns how many. Refuses while other
/// coordinators are at work on it, unless `running`.
pub async fn export(
    config: &Config,
    running: bool,
    out: &mut (impl Write + Send),
) -> Result<u64, StartError> {
    let (store, _lock) = offline(config).await?;
    if !running {
        let at_work = store.at_work().await?;
        if !at_work.is_empty() {
            return Err(StartError::AtWork(at_work.join(", ")));
        }
    }
    record_offline(&store, "database.export", String::new()).await?;
    let rows = store.export(out).await?;
    store.close().await;
    Ok(rows)
}

/// Takes an export into an empty database. Returns how many rows it had.
pub async fn import(config: &Config, input: &mut (impl BufRead + Send)) -> Result<u64, StartError> {
    let (store, _lock) = offline(config).await?;
    let rows = store.import(input).await?;
    record_offline(&store, "database.import", format!("{rows} rows")).await?;
    store.close().await;
    Ok(rows)
}

/// Makes a new administrator's token for the state directory's coordinator, which must not be at work; the one
/// before is void, and with `all` so is every other administrator's, as may have come with an import. Returns
/// where the new one is, and how many were voided.
pub async fn renew_admin_token(config: &Config, all: bool) -> Result<(PathBuf, u64), StartError> {
    let dir = &config.state_dir;
    let (store, _lock) = offline(config).await?;
    let label = admin_label(dir, &store);
    let path = dir.join(ADMIN_TOKEN);
    let only = (!all).then_some(label.as_str());
    let mut voided = store.void_admin_tokens(only).await?;
    // The machine or the path may have been called otherwise when the one before was made.
    let before = std::fs::read(&path).unwrap_or_default();
    let before = store.admin_token(Digest::of(before.trim_ascii())).await?;
    if let Some(label) = before {
        voided += store.void_admin_tokens(Some(&label)).await?;
    }
    new_admin_token(&path, &label, &store, &Clock::start()).await?;
    let detail = format!("{voided} administrators' tokens voided, a new one made for `{label}`");
    record_offline(&store, "token.renew", detail).await?;
    store.close().await;
    Ok((path, voided))
}

/// Encrypts the database's secrets with a new key, which takes the place of the one before in its file. Returns how
/// many there are, and where the key is. Refuses while coordinators are at work on the database.
pub async fn renew_secrets_key(config: &Config) -> Result<(u64, PathBuf), StartError> {
    let (store, _lock) = offline(config).await?;
    let at_work = store.at_work().await?;
    if !at_work.is_empty() {
        return Err(StartError::AtWork(at_work.join(", ")));
    }
    let path = secrets_key(config);
    let count = Vault::renew(&path, &store).await?;
    record_offline(&store, "secrets.renew-key", format!("{count} secrets")).await?;
    store.close().await;
    Ok((count, path))
}

fn secrets_key(config: &Config) -> PathBuf {
    let default = || config.state_dir.join("secrets.key");
    config.secrets_key.clone().unwrap_or_else(default)
}

/// Who works on the coordinator's machine needs no token; the audit log has it all the same.
async fn record_offline(store: &Store, action: &str, detail: String) -> Result<(), StoreError> {
    let deed = Deed {
        actor_kind: "operator",
        actor: host(),
        action: action.to_owned(),
        ..Deed::default()
    };
    let now_ms = Clock::start().now_ms();
    store.record(&deed, &Came::done(detail), now_ms).await?;
    Ok(())
}

/// The database, with no coordinator at work in the state directory.
async fn offline(config: &Config) -> Result<(Store, File), StartError> {
    prepare_dir(&config.state_dir)?;
    let lock = lock(&config.state_dir)?;
    Ok((open_store(config).await?, lock))
}

async fn open_store(config: &Config) -> Result<Store, StoreError> {
    match &config.database {
        None => Store::open_sqlite(&config.state_dir.join("coordinator.db")).await,
        Some(url) => Store::open_postgres(url).await,
    }
}

async fn sweep(artifacts: &Artifacts) {
    match artifacts.sweep().await {
        Ok(0) => {}
        Ok(removed) => tracing::info!(removed, "removed artifacts that no version names"),
        Err(error) => tracing::warn!(%error, "unused artifacts could not be removed"),
    }
}

/// Starts a coordinator.
pub async fn start(config: Config) -> Result<Running, StartError> {
    let dir = &config.state_dir;
    prepare_dir(dir)?;
    let lock = lock(dir)?;
    let clock = Clock::start();
    let store = open_store(&config).await?;
    let authority = authority(dir, &store).await?;
    let admin_token_path = dir.join(ADMIN_TOKEN);
    let label = admin_label(dir, &store);
    ensure_admin_token(&admin_token_path, &label, &store, &clock).await?;
    let objects = match &config.artifacts {
        None => Objects::in_directory(dir.join("artifacts")).await?,
        Some(place) => Objects::in_s3(place)?,
    };
    let fleet = authority.fingerprint().hex();
    objects.claim(&fleet, store.has_packs().await?).await?;
    let artifacts = Artifacts::new(objects.clone(), store.clone(), clock);
    artifacts.take_in(&dir.join("artifacts")).await?;

    let fleet = Arc::new(Fleet::new(clock, store.is_shared()));
    let timing = Timing {
        prepare_timeout_ms: millis(config.prepare_timeout),
        absent_grace_ms: millis(config.absent_grace),
    };
    let vault = Arc::new(Vault::open(&secrets_key(&config), &store).await?);
    let configurations = Configurations::new(store.clone(), vault, clock);
    let rollouts = Rollouts::load(
        store.clone(),
        configurations.clone(),
        fleet.clone(),
        clock,
        timing,
    );
    let rollouts = Arc::new(rollouts.await?);
    let registry = Registry::new(store.clone(), artifacts, clock);
    let ledger = Ledger::new(store.clone(), authority.certificate().clone(), clock);
    let logs = Arc::new(Logs::new(clock.now_ms()));
    let budgets = Arc::new(Budgets::new(store.clone(), clock));
    store.recount_budgets(clock.now_ms()).await?;
    budgets.refresh().await?;

    let http = |source| StartError::Http {
        address: config.http_listen,
        source,
    };
    let (certificates, current) = match config.tls.clone() {
        None => (None, None),
        Some(files) => {
            let (certificates, current) = Certificates::open(files)?;
            (Some(certificates), Some(current))
        }
    };
    let listener = TcpListener::bind(config.http_listen).await.map_err(http)?;
    let http_addr = listener.local_addr().map_err(http)?;
    let scheme = if current.is_some() { "https" } else { "http" };
    let url = format!("{scheme}://{http_addr}");
    if current.is_none() && !http_addr.ip().is_loopback() {
        tracing::warn!(
            %http_addr,
            "the HTTP API speaks no TLS where others may listen in on tokens; give --tls-cert and --tls-key"
        );
    }
    let server = Server::bind(config.quic_listen, &authority)?;
    let quic_addr = server.address().map_err(|source| ServerError::Bind {
        address: config.quic_listen,
        source,
    })?;
    let endpoint = server.endpoint();

    let address = config
        .public_quic_address
        .clone()
        .unwrap_or_else(|| quic_addr.to_string());
    let fingerprint = authority.fingerprint();
    let tokens = Tokens {
        key: authority.token_key(),
        store: store.clone(),
        clock,
    };
    let joins = Arc::new(Joins {
        authority: authority.clone(),
        store: store.clone(),
        clock,
        address,
        certificate_life: config.node_certificate_life,
    });
    let services = Arc::new(Services {
        store: store.clone(),
        fleet: fleet.clone(),
        joins: joins.clone(),
        ledger: ledger.clone(),
        logs: logs.clone(),
        registry: registry.clone(),
        budgets: budgets.clone(),
        target: rollouts.target(),
        rollouts: rollouts.clone(),
        clock,
    });
    let artifacts = registry.artifacts().clone();
    let retention = Retention {
        store: store.clone(),
        authority: authority.clone(),
        rollouts: rollouts.clone(),
        clock,
        keep: config.keep_records,
        trust_clock: config.trust_clock,
    };
    let exports = Arc::new(Exports {
        store: store.clone(),
        authority: authority.clone(),
        rollouts: rollouts.clone(),
        objects: objects.clone(),
        clock,
    });
    let api = Arc::new(Api {
        store: store.clone(),
        registry,
        configurations,
        rollouts: rollouts.clone(),
        fleet: fleet.clone(),
        ledger,
        budgets: budgets.clone(),
        logs,
        joins: joins.clone(),
        authority,
        objects,
        tokens,
        clock,
        keep_records: config.keep_records,
        uploads: api::upload_turns(),
    });

    let (stop, stopped) = watch::channel(false);
    let mut tasks = JoinSet::new();
    let id = hex::encode(random::<8>());
    let peers = match store.is_shared() {
        true => {
            let peers = Arc::new(Peers {
                store: store.clone(),
                fleet: fleet.clone(),
                rollouts: rollouts.clone(),
                clock,
                id,
                address: url.clone(),
            });
            let seen = peers.join().await?;
            let others = peers.clone();
            let watch = async move { others.run(seen).await };
            tasks.spawn(until(stopped.clone(), "the other coordinators", watch));
            Some(peers)
        }
        false => {
            // The state directory is locked: whoever held the lease before is no longer there.
            if let Some(token) = store.take_lease(&id).await? {
                rollouts.lead(token).await?;
            }
            None
        }
    };
    tasks.spawn(serve_http(listener, current, api, stopped.clone()));
    if let Some(certificates) = certificates {
        let follow = certificates.follow();
        tasks.spawn(until(stopped.clone(), "the API's certificate", follow));
    }
    tasks.spawn(async move {
        server.run(services).await;
        "the nodes' endpoint"
    });
    tasks.spawn(until(stopped.clone(), "rollouts", async move {
        rollouts.run().await
    }));
    tasks.spawn(until(stopped.clone(), "budgets", async move {
        budgets.run().await;
    }));
    tasks.spawn(until(stopped.clone(), "exports", exports.run()));
    tasks.spawn(until(stopped.clone(), "retention", async move {
        retention.run().await;
    }));
    let seen_store = store.clone();
    tasks.spawn(until(stopped.clone(), "unused artifacts", async move {
        loop {
            sweep(&artifacts).await;
            tokio::time::sleep(SWEEP_EVERY).await;
        }
    }));
    tasks.spawn(until(stopped, "last seen", async move {
        keep_last_seen(&seen_store, &fleet).await;
    }));
    tracing::info!(%http_addr, %quic_addr, authority = %fingerprint, "the coordinator is up");
    Ok(Running {
        http_addr,
        url,
        quic_addr,
        admin_token_path,
        tasks,
        endpoint,
        stop,
        store,
        peers,
        _lock: lock,
    })
}

impl Running {
    /// Waits until the coordinator ends by itself, which it does only if a part of it breaks;
    /// returns which.
    pub async fn wait(&mut self) -> String {
        match self.tasks.join_next().await {
            Some(Ok(part)) => format!("{part} ended"),
            Some(Err(error)) => format!("a part of the coordinator failed: {error}"),
            None => "there is nothing left to wait for".into(),
        }
    }

    /// Ends the coordinator: requests under way finish, nodes are told, the database is closed.
    pub async fn shutdown(mut self) {
        self.stop.send_replace(true);
        self.endpoint.close(
            VarInt::from_u32(0),
            b"the coordinator is ending; dial again",
        );
        let finished = async { while self.tasks.join_next().await.is_some() {} };
        if timeout(GRACE, finished).await.is_err() {
            tracing::warn!("parts of the coordinator did not end in time and are cut off");
            self.tasks.shutdown().await;
        }
        let _ = timeout(Duration::from_secs(1), self.endpoint.wait_idle()).await;
        if let Some(peers) = &self.peers {
            peers.leave().await;
        }
        self.store.close().await;
        tracing::info!("the coordinator has ended");
    }
}

async fn serve_http(
    listener: TcpListener,
    tls: Option<Current>,
    api: Arc<Api>,
    mut stopped: watch::Receiver<bool>,
) -> &'static str {
    let stop = async move {
        // An error means that the sender is gone, which is a stop as well.
        let _ = stopped.wait_for(|stop| *stop).await;
    };
    let router = api::router(api);
    let serve =
        axum::serve(BoundedListener::new(listener, tls), router).with_graceful_shutdown(stop);
    if let Err(error) = serve.await {
        tracing::error!(%error, "the HTTP API failed");
    }
    "the HTTP API"
}

/// Does `work` until it is told to stop.
async fn until(
    mut stopped: watch::Receiver<bool>,
    name: &'static str,
    work: impl Future<Output = ()>,
) -> &'static str {
    tokio::select! {
        () = work => {}
        _ = stopped.wait_for(|stop| *stop) => {}
    }
    name
}

async fn keep_last_seen(store: &Store, fleet: &Fleet) {
    loop {
        tokio::time::sleep(LAST_SEEN_EVERY).await;
        let seen = fleet.last_seen();
        if let Err(error) = store.save_last_seen(&seen).await {
            tracing::error!(%error, "last seen is not stored");
        }
    }
}

/// The fleet's certificate authority, which coordinators that share a database must share too.
async fn authority(dir: &Path, store: &Store) -> Result<Authority, StartError> {
    if !store.is_shared() {
        return Ok(Authority::load_or_make(dir)?);
    }
    // Nothing is made in a directory that lacks what another one has.
    if !Authority::is_in(dir) && store.authority(None).await?.is_some() {
        return Err(StartError::NoAuthority(dir.to_owned()));
    }
    let own = Authority::load_or_make(dir)?;
    match store.authority(Some(own.fingerprint())).await? {
        Some(fleet) if fleet != own.fingerprint() => {
            Err(StartError::OtherAuthority(dir.to_owned()))
        }
        _ => Ok(own),
    }
}

/// What this state directory's administrator's token is called in the database: others that share
/// it have their own.
fn admin_label(dir: &Path, store: &Store) -> String {
    if !store.is_shared() {
        return "admin".to_owned();
    }
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    format!("admin {}:{}", host(), dir.display())
}

/// This machine's name.
fn host() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    host.trim().to_owned()
}

/// The state directory, for its owner alone.
fn prepare_dir(dir: &Path) -> Result<(), StartError> {
    let failed = |operation| {
        move |source| StartError::StateDir {
            operation,
            path: dir.to_owned(),
            source,
        }
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(failed("making"))?;
    std::fs::set_permissions(dir, Permissions::from_mode(0o700)).map_err(failed("securing"))
}

/// One coordinator for one state directory.
fn lock(dir: &Path) -> Result<File, StartError> {
    let path = dir.join("lock");
    let failed = |source| StartError::StateDir {
        operation: "locking",
        path: path.clone(),
        source,
    };
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StartError::Locked(dir.to_owned())),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}
