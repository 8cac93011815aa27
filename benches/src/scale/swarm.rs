//! Nodes that speak the real protocol: they join, dial, fetch, report and come back, and run nothing.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use holm_model::chunks::Index;
use holm_model::codec;
use holm_model::control::{
    ALPN, BulkAnswer, BulkRequest, COORDINATOR_TLS_NAME, CoordinatorMessage, Desired, Hello,
    JOIN_ALPN, JoinAnswer, JoinRequest, NodeMessage, Observed, ObservedVersion, REPORT_SECONDS,
    Report, VersionState,
};
use holm_model::ids::{Digest, Name, VersionId};
use holm_model::join::JoinToken;
use holm_model::protocol::Message;
use holm_node::limits::{LINK_IDLE, LINK_KEEP_ALIVE, LINK_TIMEOUT, MAX_RECONNECT, MIN_RECONNECT};
use holm_tests::Fleet;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connection, Endpoint, RecvStream, SendStream};
use rcgen::{CertificateParams, KeyPair};
use rustls::RootCertStore;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio::task::JoinSet;

use crate::client::post;

/// How many join at a time.
const JOINING: usize = 16;

/// All nodes, and how far they are.
pub(crate) struct Swarm {
    http: SocketAddr,
    token: String,
    quic: SocketAddr,
    ca: CertificateDer<'static>,
    state: Arc<State>,
    tasks: JoinSet<()>,
}

#[derive(Default)]
struct State {
    /// Nodes that have a link and their desired state.
    linked: AtomicUsize,
    /// Links that were lost after that.
    lost: AtomicUsize,
    /// How many route a version, by version.
    routed: Mutex<BTreeMap<VersionId, usize>>,
    /// The one that was routed for the first time last.
    newest: Mutex<Option<VersionId>>,
}

/// What a node needs to dial.
#[derive(Clone)]
struct Identity {
    name: Name,
    config: ClientConfig,
}

impl Swarm {
    /// No nodes yet.
    pub(crate) fn new(fleet: &Fleet) -> Result<Self> {
        let read = |file: &str| {
            std::fs::read(fleet.path(&format!("coordinator/{file}")))
                .with_context(|| format!("cannot read the coordinator's {file}"))
        };
        Ok(Swarm {
            http: fleet.http().parse()?,
            token: String::from_utf8(read("admin-token")?)?.trim().to_owned(),
            quic: fleet.quic().parse()?,
            ca: read("ca.der")?.into(),
            state: Arc::default(),
            tasks: JoinSet::new(),
        })
    }

    /// How many have a link and their desired state.
    pub(crate) fn linked(&self) -> usize {
        self.state.linked.load(Ordering::Relaxed)
    }

    /// How many links were lost so far.
    pub(crate) fn lost(&self) -> usize {
        self.state.lost.load(Ordering::Relaxed)
    }

    /// How many route the version that was the last to come.
    pub(crate) fn have_newest(&self) -> usize {
        let newest = *lock(&self.state.newest);
        let routed = lock(&self.state.routed);
        newest
            .and_then(|newest| routed.get(&newest).copied())
            .unwrap_or(0)
    }

    /// Has more nodes join until there are so many, and live from then on.
    pub(crate) async fn grow(&mut self, nodes: usize) -> Result<()> {
        let first = self.tasks.len();
        let mut joining = JoinSet::new();
        let mut names = (first..nodes).map(|number| format!("swarm-{number}"));
        loop {
            while joining.len() < JOINING
                && let Some(name) = names.next()
            {
                let (http, token, ca) = (self.http, self.token.clone(), self.ca.clone());
                joining.spawn(async move { join(http, &token, ca, name.parse()?).await });
            }
            let Some(joined) = joining.join_next().await else {
                return Ok(());
            };
            let (identity, quic, state) = (joined??, self.quic, self.state.clone());
            self.tasks.spawn(live(identity, quic, state));
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A token from the API, then a certificate for it.
async fn join(
    http: SocketAddr,
    admin: &str,
    ca: CertificateDer<'static>,
    name: Name,
) -> Result<Identity> {
    let answer = post(http, "/v1/join-tokens", admin, "{}").await?;
    let token = answer["token"].as_str().context("no token in the answer")?;
    let token: JoinToken = token.parse()?;
    let key = KeyPair::generate()?;
    let csr = CertificateParams::new(vec![name.to_string()])?.serialize_request(&key)?;
    let request = JoinRequest {
        secret: token.secret,
        node: name.clone(),
        csr_der: csr.der().to_vec(),
    };
    let config = config(&ca, JOIN_ALPN, None)?;
    let (_endpoint, connection) = dial(&config, token.address.parse()?).await?;
    let (mut to, mut from) = connection.open_bi().await?;
    write(&mut to, &request).await?;
    to.finish()?;
    let certificate = match read(&mut from).await? {
        JoinAnswer::Joined {
            certificate_der, ..
        } => certificate_der.into(),
        JoinAnswer::Refused { reason } => bail!("{name} may not join: {reason}"),
    };
    let config = self::config(&ca, ALPN, Some((certificate, &key)))?;
    Ok(Identity { name, config })
}

/// The coordinator is known by its CA; a node shows its certificate.
fn config(
    ca: &CertificateDer<'static>,
    alpn: &[u8],
    own: Option<(CertificateDer<'static>, &KeyPair)>,
) -> Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(ca.clone())?;
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots);
    let mut tls = match own {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let key = PrivatePkcs8KeyDer::from(key.serialize_der());
            builder.with_client_auth_cert(vec![certificate], key.into())?
        }
    };
    tls.alpn_protocols = vec![alpn.to_vec()];
    let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    let mut transport = quinn::TransportConfig::default();
    transport.keep_alive_interval(Some(LINK_KEEP_ALIVE));
    transport.max_idle_timeout(Some(LINK_IDLE.try_into()?));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

async fn dial(config: &ClientConfig, to: SocketAddr) -> Result<(Endpoint, Connection)> {
    let endpoint = Endpoint::client(([127, 0, 0, 1], 0).into())?;
    let connecting = endpoint.connect_with(config.clone(), to, COORDINATOR_TLS_NAME)?;
    let connection = tokio::time::timeout(LINK_TIMEOUT, connecting).await??;
    Ok((endpoint, connection))
}

/// Keeps the link up, with a node's own pauses between attempts.
async fn live(identity: Identity, quic: SocketAddr, state: Arc<State>) {
    let mut had = BTreeMap::new();
    let mut pause = MIN_RECONNECT;
    loop {
        let mut linked = false;
        // However it ended, it is made again.
        let _ = once(&identity, quic, &state, &mut had, &mut linked).await;
        if linked {
            state.linked.fetch_sub(1, Ordering::Relaxed);
            state.lost.fetch_add(1, Ordering::Relaxed);
            pause = MIN_RECONNECT;
        }
        let mut random = [0];
        let _ = getrandom::fill(&mut random);
        let jittered = pause / 2 + pause / 2 * u32::from(random[0]) / 255;
        tokio::time::sleep(jittered.max(MIN_RECONNECT)).await;
        pause = (pause * 2).min(MAX_RECONNECT);
    }
}

/// One link, from dialling to its loss.
async fn once(
    identity: &Identity,
    quic: SocketAddr,
    state: &State,
    had: &mut BTreeMap<VersionId, ObservedVersion>,
    linked: &mut bool,
) -> Result<std::convert::Infallible> {
    let (_endpoint, connection) = dial(&identity.config, quic).await?;
    let (mut to, mut from) = connection.open_bi().await?;
    write(&mut to, &NodeMessage::Hello(hello()?)).await?;
    match read(&mut from).await? {
        CoordinatorMessage::Welcome { node, .. } => ensure!(node == identity.name, "not my name"),
        other => bail!("{other:?} is no welcome"),
    }
    // Reading a frame cannot be given up in its middle, so it has a task of its own.
    let (message, mut messages) = tokio::sync::mpsc::channel(1);
    let mut reading = JoinSet::new();
    reading.spawn(async move {
        while let Ok(read) = read::<CoordinatorMessage>(&mut from).await
            && message.send(read).await.is_ok()
        {}
    });
    let mut report = tokio::time::interval(Duration::from_secs(REPORT_SECONDS));
    loop {
        let message = tokio::select! {
            said = messages.recv() => match said.context("the link has ended")? {
                CoordinatorMessage::Desired(desired) => {
                    let observed = follow(&connection, desired, state, had).await?;
                    if !*linked {
                        *linked = true;
                        state.linked.fetch_add(1, Ordering::Relaxed);
                    }
                    NodeMessage::Observed(observed)
                }
                other => bail!("{other:?} is not to be said now"),
            },
            _ = report.tick() => NodeMessage::Report(Report {
                free_slots: 8,
                ..Report::default()
            }),
        };
        write(&mut to, &message).await?;
    }
}

/// Does what is desired: fetches and verifies what it has not had, and says that it is ready.
async fn follow(
    connection: &Connection,
    desired: Desired,
    state: &State,
    had: &mut BTreeMap<VersionId, ObservedVersion>,
) -> Result<Observed> {
    for wanted in &desired.functions {
        let verified = wanted.version.verify(&wanted.publisher_keys)?;
        if had.contains_key(&verified.id) {
            continue;
        }
        fetch(connection, verified.statement.artifact).await?;
        *lock(&state.newest) = Some(verified.id);
        *lock(&state.routed).entry(verified.id).or_default() += 1;
        had.insert(
            verified.id,
            ObservedVersion {
                function: wanted.function.clone(),
                version: verified.id,
                state: VersionState::Ready,
                routed: true,
                record: None,
            },
        );
    }
    let current = |version: &ObservedVersion| {
        let mut functions = desired.functions.iter();
        functions.any(|wanted| wanted.version.id() == version.version)
    };
    Ok(Observed {
        generation: desired.generation,
        versions: had
            .values()
            .filter(|version| current(version))
            .cloned()
            .collect(),
    })
}

/// The whole artifact, chunk by chunk, as a node that has none of them gets it.
async fn fetch(connection: &Connection, digest: Digest) -> Result<()> {
    let index = ask(connection, &BulkRequest::FetchIndex { digest }).await?;
    let index = Index::parse(&index)?;
    let places = (0..u32::try_from(index.chunks().len())?).collect();
    let artifact = ask(connection, &BulkRequest::FetchChunks { digest, places }).await?;
    ensure!(Digest::of(&artifact) == digest, "another artifact");
    Ok(())
}

async fn ask(connection: &Connection, request: &BulkRequest) -> Result<Vec<u8>> {
    let (mut to, mut from) = connection.open_bi().await?;
    write(&mut to, request).await?;
    to.finish()?;
    match read(&mut from).await? {
        BulkAnswer::Bytes { bytes } => Ok(from.read_to_end(usize::try_from(bytes)?).await?),
        other => bail!("{other:?} in place of bytes"),
    }
}

fn hello() -> Result<Hello> {
    Ok(Hello {
        coordinates: "50.11,8.68".parse()?,
        region: "test".into(),
        ingress_url: "http://127.0.0.1:1".into(),
        boot_epoch: 1,
        kvm: "unknown".into(),
        software: env!("CARGO_PKG_VERSION").into(),
    })
}

async fn write<T: Message>(to: &mut SendStream, message: &T) -> Result<()> {
    Ok(to.write_all(&codec::encode(message)?).await?)
}

async fn read<T: Message>(from: &mut RecvStream) -> Result<T> {
    let mut length = [0; 4];
    from.read_exact(&mut length).await?;
    let mut following = vec![0; codec::following_bytes(length)?];
    from.read_exact(&mut following).await?;
    Ok(codec::decode(&following)?)
}
