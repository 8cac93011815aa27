//! A coordinator for the node's tests: speaks the protocol, remembers what it was told, and fails in
//! the ways that a test asks for.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use holm_model::chain;
use holm_model::chunks::Index;
use holm_model::codec;
use holm_model::control::{
    BulkAnswer, BulkRequest, COORDINATOR_TLS_NAME, CoordinatorMessage, Desired, Hello, JoinAnswer,
    JoinRequest, LogEntry, NodeMessage, Observed, Report, VersionState,
};
use holm_model::ids::{Digest, Name, VersionId};
use holm_model::join::JoinToken;
use holm_model::protocol::{self, Message, Purpose};
use holm_model::usage::UsageRecord;
use holm_model::usage_batch::UsageBatch;
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{Connection, Endpoint, RecvStream, SendStream};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, IsCa, Issuer, KeyPair,
};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio::sync::watch;

use super::program::Version;

/// What it knows and how it is to behave.
#[derive(Default)]
pub struct State {
    pub hello: Option<Hello>,
    pub observed: Observed,
    pub reports: Vec<Report>,
    pub logs: Vec<LogEntry>,
    /// Rows in the ledger, by (epoch, sequence).
    pub ledger: Vec<UsageRecord>,
    /// The batches that they came in.
    pub batches: Vec<UsageBatch>,
    /// Whose they are.
    pub node: Option<Name>,
    pub duplicates: usize,
    pub artifacts: HashMap<Digest, Vec<u8>>,
    /// Places of the chunks of all fetches.
    pub fetches: Vec<Vec<u32>>,
    /// The next fetch of chunks breaks off after so many bytes.
    pub break_off_after: Option<usize>,
    /// Sent in place of an artifact's index.
    pub false_index: Option<Vec<u8>>,
    /// Usage batches are stored but so many acknowledgements get lost.
    pub lose_acknowledgements: usize,
    pub sessions: usize,
    /// Said in the next session in place of desired state, and then the stream ends.
    pub nonsense: Option<Vec<u8>>,
    pub token_used: bool,
    /// Said on a control stream that is up.
    pub unknown: Option<Vec<u8>>,
}

impl State {
    /// Enters a new batch, which is to be the next in the node's chain.
    fn enter(&mut self, batch: &UsageBatch, records: Vec<UsageRecord>) {
        let node = self.node.clone().unwrap();
        let place = batch.place().unwrap();
        let previous = match self.batches.last() {
            Some(last) if last.boot_epoch == batch.boot_epoch => last.hash,
            last => {
                let before = last.map_or(chain::NOTHING_BEFORE, |last| last.hash);
                chain::genesis(&node, batch.boot_epoch, before)
            }
        };
        assert_eq!(batch.previous, previous, "a batch that follows no other");
        let leaves: Vec<_> = records.iter().map(chain::leaf).collect();
        assert_eq!(chain::batch_hash(&node, &place, &leaves), batch.hash);
        assert!(!batch.signature.is_empty());
        self.batches.push(batch.clone());
        self.ledger.extend(records);
    }
}

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    ca: CertificateDer<'static>,
}

pub struct Coordinator {
    pub address: SocketAddr,
    pub state: Arc<Mutex<State>>,
    authority: Arc<Authority>,
    desired: watch::Sender<Desired>,
    endpoint: Endpoint,
    config: quinn::ServerConfig,
}

impl Coordinator {
    pub async fn start() -> Self {
        Coordinator::start_as(protocol::Version::NOW).await
    }

    /// One that is so old.
    pub async fn start_as(version: protocol::Version) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = params.self_signed(&key).unwrap().der().clone();
        let issuer = Issuer::new(params, key);
        let server_key = KeyPair::generate().unwrap();
        let server = CertificateParams::new(vec![COORDINATOR_TLS_NAME.to_owned()]).unwrap();
        let certificate = server
            .signed_by(&server_key, &issuer)
            .unwrap()
            .der()
            .clone();

        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(ca.clone()).unwrap();
        let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
            Arc::new(roots),
            provider.clone(),
        )
        .allow_unauthenticated()
        .build()
        .unwrap();
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(
                vec![certificate, ca.clone()],
                PrivatePkcs8KeyDer::from(server_key.serialize_der()).into(),
            )
            .unwrap();
        for purpose in [Purpose::Link, Purpose::Join] {
            let names = purpose.names().into_iter();
            let served = names.filter(|name| purpose.agreed(name) <= Some(version));
            tls.alpn_protocols.extend(served);
        }
        let config =
            quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).unwrap()));
        let endpoint = Endpoint::server(config.clone(), ([127, 0, 0, 1], 0).into()).unwrap();
        let coordinator = Coordinator {
            address: endpoint.local_addr().unwrap(),
            state: Arc::default(),
            authority: Arc::new(Authority { issuer, ca }),
            desired: watch::Sender::new(Desired::default()),
            endpoint,
            config,
        };
        coordinator.serve();
        coordinator
    }

    pub fn token(&self) -> JoinToken {
        JoinToken {
            address: self.address.to_string(),
            ca: Digest::of(&self.authority.ca),
            secret: b"secret".to_vec(),
        }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn add_artifact(&self, version: &Version) {
        let artifact = version.artifact.clone();
        self.state()
            .artifacts
            .insert(version.statement.artifact, artifact);
    }

    pub fn want(&self, desired: Desired) {
        self.desired.send_replace(desired);
    }

    /// The state of a version as the node last told it, and whether it takes requests.
    pub fn observed(&self, version: VersionId) -> Option<(VersionState, bool)> {
        let state = self.state();
        let found = state
            .observed
            .versions
            .iter()
            .find(|found| found.version == version)?;
        Some((found.state.clone(), found.routed))
    }

    pub fn is_routed(&self, version: &Version) -> bool {
        self.observed(version.signed.id()) == Some((VersionState::Ready, true))
    }

    pub fn failure(&self, version: &Version) -> Option<String> {
        match self.observed(version.signed.id())?.0 {
            VersionState::Failed { reason } => Some(reason),
            _ => None,
        }
    }

    /// Gone, as after a crash: nothing is said to the nodes.
    pub async fn stop(&mut self) {
        self.endpoint.close(0u32.into(), b"");
        self.endpoint.wait_idle().await;
        self.endpoint = Endpoint::server(self.config.clone(), ([127, 0, 0, 1], 0).into()).unwrap();
    }

    /// Back at the same address.
    pub async fn restart(&mut self) {
        loop {
            match Endpoint::server(self.config.clone(), self.address) {
                Ok(endpoint) => {
                    self.endpoint = endpoint;
                    break;
                }
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
            }
        }
        self.serve();
    }

    fn serve(&self) {
        let (endpoint, state) = (self.endpoint.clone(), self.state.clone());
        let (authority, desired) = (self.authority.clone(), self.desired.subscribe());
        tokio::spawn(async move {
            while let Some(incoming) = endpoint.accept().await {
                let Ok(connection) = incoming.await else {
                    continue;
                };
                let (state, authority, desired) =
                    (state.clone(), authority.clone(), desired.clone());
                tokio::spawn(async move {
                    let data = connection.handshake_data().unwrap();
                    let data = data
                        .downcast::<quinn::crypto::rustls::HandshakeData>()
                        .unwrap();
                    let name = data.protocol.unwrap();
                    if let Some(version) = Purpose::Join.agreed(&name) {
                        joining(&connection, version, &state, &authority).await;
                    } else if connection.peer_identity().is_some() {
                        let version = Purpose::Link.agreed(&name).unwrap();
                        session(&connection, version, &state, desired).await;
                    }
                });
            }
        });
    }
}

async fn joining(
    connection: &Connection,
    version: protocol::Version,
    state: &Mutex<State>,
    authority: &Authority,
) -> Option<()> {
    let (mut to, mut from) = connection.accept_bi().await.ok()?;
    let request: JoinRequest = receive(&mut from, version).await?;
    let refused = {
        let mut state = state.lock().unwrap();
        state.node = Some(request.node.clone());
        let used = std::mem::replace(&mut state.token_used, true);
        used || request.secret != b"secret"
    };
    let answer = if refused {
        JoinAnswer::Refused {
            reason: "the token has been used".into(),
        }
    } else {
        let csr = CertificateSigningRequestParams::from_der(&request.csr_der.into()).unwrap();
        let certificate = csr.signed_by(&authority.issuer).unwrap();
        JoinAnswer::Joined {
            certificate_der: certificate.der().to_vec(),
            ca_der: authority.ca.to_vec(),
        }
    };
    send(&mut to, &answer, version).await?;
    to.finish().ok()?;
    connection.closed().await;
    Some(())
}

async fn session(
    connection: &Connection,
    version: protocol::Version,
    state: &Arc<Mutex<State>>,
    mut desired: watch::Receiver<Desired>,
) -> Option<()> {
    let (mut to, mut from) = connection.accept_bi().await.ok()?;
    let NodeMessage::Hello(hello) = receive(&mut from, version).await? else {
        panic!("hello comes first")
    };
    {
        let mut state = state.lock().unwrap();
        state.hello = Some(hello);
        state.sessions += 1;
    }
    let welcome = CoordinatorMessage::Welcome {
        node: "n1".parse().unwrap(),
        now_ms: 0,
    };
    send(&mut to, &welcome, version).await?;
    let nonsense = state.lock().unwrap().nonsense.take();
    if let Some(nonsense) = nonsense {
        to.write_all(&nonsense).await.ok()?;
        to.finish().ok()?;
        connection.closed().await;
        return None;
    }
    let (told, unknown) = (state.clone(), state.clone());
    let listening = async move {
        loop {
            match receive(&mut from, version).await? {
                NodeMessage::Hello(_) => panic!("a second hello"),
                NodeMessage::Observed(observed) => told.lock().unwrap().observed = observed,
                NodeMessage::Report(report) => told.lock().unwrap().reports.push(report),
                NodeMessage::Logs(batch) => told.lock().unwrap().logs.extend(batch.entries),
            }
        }
    };
    let telling = async {
        loop {
            let unknown = unknown.lock().unwrap().unknown.take();
            if let Some(unknown) = unknown {
                to.write_all(&unknown).await.ok()?;
            }
            let state = desired.borrow_and_update().clone();
            if state.generation > 0 {
                send(&mut to, &CoordinatorMessage::Desired(state), version).await?;
            }
            desired.changed().await.ok()?;
        }
    };
    let bulk = async {
        while let Ok((to, from)) = connection.accept_bi().await {
            tokio::spawn(answer_bulk(to, from, version, state.clone()));
        }
        None
    };
    tokio::select! { end = listening => end, end = telling => end, end = bulk => end }
}

async fn answer_bulk(
    mut to: SendStream,
    mut from: RecvStream,
    version: protocol::Version,
    state: Arc<Mutex<State>>,
) -> Option<()> {
    match receive(&mut from, version).await? {
        BulkRequest::FetchIndex { digest } => {
            let index = {
                let state = state.lock().unwrap();
                let artifact = state.artifacts.get(&digest);
                let index = artifact.map(|artifact| Index::of(artifact).to_bytes());
                state.false_index.clone().or(index)
            };
            let Some(index) = index else {
                let reason = "no such artifact".to_owned();
                return send(&mut to, &BulkAnswer::Refused { reason }, version).await;
            };
            let bytes = index.len() as u64;
            send(&mut to, &BulkAnswer::Bytes { bytes }, version).await?;
            to.write_all(&index).await.ok()?;
            to.finish().ok()?;
        }
        BulkRequest::FetchChunks { digest, places } => {
            let (artifact, break_off) = {
                let mut state = state.lock().unwrap();
                state.fetches.push(places.clone());
                (
                    state.artifacts[&digest].clone(),
                    state.break_off_after.take(),
                )
            };
            let placed: Vec<_> = Index::of(&artifact).placed().collect();
            // Of a false index there may be places that the artifact has not.
            let chunk = |place: u32| {
                let (at, chunk) = *placed.get(place as usize)?;
                Some(&artifact[at as usize..][..chunk.bytes as usize])
            };
            let chunks = places.into_iter().filter_map(chunk);
            let chunks: Vec<u8> = chunks.flatten().copied().collect();
            let bytes = chunks.len() as u64;
            send(&mut to, &BulkAnswer::Bytes { bytes }, version).await?;
            let sent = break_off.unwrap_or(chunks.len());
            to.write_all(&chunks[..sent]).await.ok()?;
            to.finish().ok()?;
        }
        BulkRequest::Usage(batch) => {
            let (new, known, lost) = {
                let mut state = state.lock().unwrap();
                let records = batch.unpack().unwrap();
                let (mut new, mut known) = (0, 0);
                match state.batches.iter().any(|before| before.hash == batch.hash) {
                    true => known = records.len() as u64,
                    false => {
                        new = records.len() as u64;
                        state.enter(&batch, records);
                    }
                }
                state.duplicates += known as usize;
                let lost = state.lose_acknowledgements > 0;
                state.lose_acknowledgements = state.lose_acknowledgements.saturating_sub(1);
                (new, known, lost)
            };
            if lost {
                return None;
            }
            send(&mut to, &BulkAnswer::UsageStored { new, known }, version).await?;
            to.finish().ok()?;
        }
        BulkRequest::Renew { .. } => {
            let reason = "no certificates here".to_owned();
            send(&mut to, &BulkAnswer::Refused { reason }, version).await?;
        }
        // It has no budgets.
        BulkRequest::Lease(_) => return None,
    }
    let _ = to.stopped().await;
    Some(())
}

async fn receive<T: Message>(from: &mut RecvStream, version: protocol::Version) -> Option<T> {
    let mut length = [0; 4];
    from.read_exact(&mut length).await.ok()?;
    let mut following = vec![0; codec::following_bytes(length).unwrap()];
    from.read_exact(&mut following).await.ok()?;
    Some(codec::decode_for(&following, version).unwrap())
}

async fn send<T: Message>(
    to: &mut SendStream,
    message: &T,
    version: protocol::Version,
) -> Option<()> {
    to.write_all(&codec::encode_for(message, version).unwrap())
        .await
        .ok()
}
