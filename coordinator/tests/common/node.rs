//! A node as the coordinator sees one: it joins, dials, says Hello, and follows desired state
//! without running anything. Whether a version becomes ready is up to the test.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use holm_model::codec;
use holm_model::configuration::{Release, ReleaseId};
use holm_model::control::{
    ALPN, BulkAnswer, BulkRequest, COORDINATOR_TLS_NAME, Configured, CoordinatorMessage, Desired,
    Hello, JoinAnswer, JoinRequest, LogBatch, LogEntry, NodeMessage, Observed, ObservedVersion,
    Record, Report, VersionReport, VersionState,
};
use holm_model::ids::{Digest, FunctionName, Name, VersionId};
use holm_model::join::JoinToken;
use holm_model::protocol::{Message, Purpose, Version};
use holm_model::run_times::RunTimes;
use holm_model::usage::Outcome;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connection, Endpoint, RecvStream, SendStream, VarInt};
use rcgen::{CertificateParams, KeyPair};
use rustls::RootCertStore;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

/// A node's place in the fleet: its key, its certificate, and the CA.
#[derive(Clone, Debug)]
pub struct Identity {
    pub name: Name,
    pub chain: Vec<CertificateDer<'static>>,
    pub key: Vec<u8>,
    pub ca: CertificateDer<'static>,
}

/// Joins with a token as it is pasted; the refusal's reason if it is refused.
pub async fn join(quic: SocketAddr, token: &str, name: &str) -> Result<Identity, String> {
    let token: JoinToken = token.parse().unwrap();
    join_with(quic, token.secret, name).await
}

pub async fn join_with(quic: SocketAddr, secret: Vec<u8>, name: &str) -> Result<Identity, String> {
    join_as(Version::NOW, quic, secret, name).await
}

/// One that is so old.
pub async fn join_as(
    version: Version,
    quic: SocketAddr,
    secret: Vec<u8>,
    name: &str,
) -> Result<Identity, String> {
    let key = KeyPair::generate().unwrap();
    let name: Name = name.parse().unwrap();
    let request = JoinRequest {
        secret,
        node: name.clone(),
        csr_der: signing_request(&key),
    };
    let connection = dial_offering(quic, offered_by(version, Purpose::Join), None).await;
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    write_for(&mut send, &request, version).await;
    let answer = read_for(&mut recv, version).await.unwrap();
    connection.close(VarInt::from_u32(0), b"");
    match answer {
        JoinAnswer::Joined {
            certificate_der,
            ca_der,
        } => {
            let ca = CertificateDer::from(ca_der);
            let chain = vec![CertificateDer::from(certificate_der)];
            Ok(Identity {
                name,
                chain,
                key: key.serialize_der(),
                ca,
            })
        }
        JoinAnswer::Refused { reason } => Err(reason),
    }
}

pub fn signing_request(key: &KeyPair) -> Vec<u8> {
    let params = CertificateParams::new(Vec::new()).unwrap();
    params.serialize_request(key).unwrap().der().to_vec()
}

/// A connection with this ALPN, showing the identity's certificate if there is one. Without one
/// the coordinator's certificate is not checked: the tests that do so are about the other side.
pub async fn dial(quic: SocketAddr, alpn: &[u8], identity: Option<&Identity>) -> Connection {
    dial_offering(quic, vec![alpn.to_vec()], identity).await
}

/// The same, offering several names, the newest first.
pub async fn dial_offering(
    quic: SocketAddr,
    names: Vec<Vec<u8>>,
    identity: Option<&Identity>,
) -> Connection {
    let mut endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    endpoint.set_default_client_config(client_config(names, identity));
    let connecting = endpoint.connect(quic, COORDINATOR_TLS_NAME).unwrap();
    timeout(super::PATIENCE, connecting).await.unwrap().unwrap()
}

fn client_config(names: Vec<Vec<u8>>, identity: Option<&Identity>) -> ClientConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap();
    let mut config = match identity {
        Some(identity) => {
            let mut roots = RootCertStore::empty();
            roots.add(identity.ca.clone()).unwrap();
            let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(identity.key.clone()));
            builder
                .with_root_certificates(roots)
                .with_client_auth_cert(identity.chain.clone(), key)
                .unwrap()
        }
        None => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anyone(provider)))
            .with_no_client_auth(),
    };
    config.alpn_protocols = names;
    let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(config).unwrap()));
    let mut transport = quinn::TransportConfig::default();
    transport.keep_alive_interval(Some(Duration::from_millis(500)));
    transport.max_idle_timeout(Some(Duration::from_secs(3).try_into().unwrap()));
    config.transport_config(Arc::new(transport));
    config
}

pub async fn write<T: Message>(send: &mut SendStream, message: &T) {
    write_for(send, message, Version::NOW).await;
}

pub async fn write_for<T: Message>(send: &mut SendStream, message: &T, version: Version) {
    send.write_all(&codec::encode_for(message, version).unwrap())
        .await
        .unwrap();
}

/// The next message; none if the stream or the connection ends instead.
pub async fn read<T: Message>(recv: &mut RecvStream) -> Option<T> {
    read_for(recv, Version::NOW).await
}

pub async fn read_for<T: Message>(recv: &mut RecvStream, version: Version) -> Option<T> {
    let mut length = [0; 4];
    let message = async {
        recv.read_exact(&mut length).await.ok()?;
        let mut following = vec![0; codec::following_bytes(length).unwrap()];
        recv.read_exact(&mut following).await.ok()?;
        Some(codec::decode_for(&following, version).unwrap())
    };
    timeout(super::PATIENCE, message)
        .await
        .expect("a message in time")
}

/// A node's control stream after `Welcome`.
pub struct Control {
    pub connection: Connection,
    pub send: SendStream,
    pub recv: RecvStream,
}

pub fn hello(index: u32) -> Hello {
    Hello {
        coordinates: format!("{},{}", 10 * index, 10 * index).parse().unwrap(),
        region: "eu".into(),
        ingress_url: format!("http://127.0.0.1:{}", 8000 + index),
        boot_epoch: 1,
        kvm: "pvm".into(),
        software: "0.1.0".into(),
    }
}

/// Dials and says Hello; the coordinator's Welcome is checked.
pub async fn connect(quic: SocketAddr, identity: &Identity, hello: Hello) -> Control {
    let connection = dial(quic, ALPN, Some(identity)).await;
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    write(&mut send, &NodeMessage::Hello(hello)).await;
    match read(&mut recv).await {
        Some(CoordinatorMessage::Welcome { node, .. }) => assert_eq!(node, identity.name),
        other => panic!("{other:?} is not Welcome"),
    }
    Control {
        connection,
        send,
        recv,
    }
}

/// One bulk exchange; the raw bytes behind the answer come with it.
pub async fn bulk(connection: &Connection, request: &BulkRequest) -> (BulkAnswer, Vec<u8>) {
    bulk_for(connection, request, Version::NOW).await
}

pub async fn bulk_for(
    connection: &Connection,
    request: &BulkRequest,
    version: Version,
) -> (BulkAnswer, Vec<u8>) {
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    write_for(&mut send, request, version).await;
    send.finish().unwrap();
    let answer = read_for(&mut recv, version).await.unwrap();
    (answer, recv.read_to_end(1 << 30).await.unwrap())
}

/// What a node offers that is so old.
pub fn offered_by(version: Version, purpose: Purpose) -> Vec<Vec<u8>> {
    let mut names = purpose.names();
    names.retain(|name| purpose.agreed(name) <= Some(version));
    names
}

/// What the test decides about a node, and what it did.
#[derive(Default)]
pub struct Behaviour {
    /// Versions that fail on it, with the reason.
    pub fails: BTreeMap<VersionId, String>,
    /// How every version went before its requests went elsewhere.
    pub record: Option<Record>,
    /// Versions that never get ready on it.
    pub stuck: BTreeSet<VersionId>,
    /// Every version that requests of the function ever went to, in order.
    pub routed: Vec<VersionId>,
    /// Generations of desired state in order of arrival.
    pub generations: Vec<u64>,
    /// The newest desired state.
    pub desired: Desired,
    /// A generation that it had from somebody else: what is older it ignores.
    pub ahead: u64,
    /// What it said last.
    pub versions: Vec<ObservedVersion>,
    /// What its releases are configured with, by the release.
    pub entries: BTreeMap<ReleaseId, BTreeMap<String, String>>,
}

/// A node that keeps its link up and follows desired state.
pub struct TestNode {
    pub identity: Identity,
    pub behaviour: Arc<Mutex<Behaviour>>,
    says: mpsc::UnboundedSender<NodeMessage>,
    task: JoinHandle<()>,
}

impl TestNode {
    /// Joins with a fresh token and stays connected.
    pub async fn start(coordinator: &super::Coordinator, name: &str, index: u32) -> Self {
        let token = coordinator.join_token().await;
        let identity = join(coordinator.quic, &token, name).await.unwrap();
        let node = TestNode::run(coordinator.quic, identity, hello(index));
        let connected = || async {
            let nodes = coordinator.nodes().await;
            nodes
                .iter()
                .any(|view| view.name.as_str() == name && view.connected)
        };
        super::until("a connected node", connected).await;
        node
    }

    pub fn run(quic: SocketAddr, identity: Identity, hello: Hello) -> Self {
        TestNode::run_with(vec![quic], identity, hello)
    }

    /// One that dials these addresses in turn, as behind one name.
    pub fn run_with(addresses: Vec<SocketAddr>, identity: Identity, hello: Hello) -> Self {
        TestNode::run_as(Version::NOW, addresses, identity, hello)
    }

    /// One that is so old.
    pub fn run_as(
        version: Version,
        addresses: Vec<SocketAddr>,
        identity: Identity,
        hello: Hello,
    ) -> Self {
        let behaviour = Arc::new(Mutex::new(Behaviour::default()));
        let (says, mut pending) = mpsc::unbounded_channel();
        let (own, shared) = (identity.clone(), behaviour.clone());
        let task = tokio::spawn(async move {
            for quic in addresses.into_iter().cycle() {
                live(quic, version, &own, hello.clone(), &shared, &mut pending).await;
                sleep(Duration::from_millis(50)).await;
            }
        });
        TestNode {
            identity,
            behaviour,
            says,
            task,
        }
    }

    /// Reports invocations.
    pub fn report(&self, function: &FunctionName, version: VersionId, outcomes: &[(Outcome, u64)]) {
        let (function, outcomes) = (function.clone(), outcomes.to_vec());
        let versions = vec![VersionReport {
            function,
            version,
            outcomes,
            run_ns: 1,
            run_times: RunTimes::default(),
        }];
        let report = Report {
            versions,
            free_slots: 1,
            stopping: false,
            refused: 0,
        };
        self.says.send(NodeMessage::Report(report)).unwrap();
    }

    /// Tells what a program wrote.
    pub fn log(&self, entry: LogEntry) {
        let batch = LogBatch {
            entries: vec![entry],
            dropped: 1,
        };
        self.says.send(NodeMessage::Logs(batch)).unwrap();
    }

    /// The version that requests go to now.
    pub fn routed(&self) -> Option<VersionId> {
        self.behaviour.lock().unwrap().routed.last().copied()
    }

    /// What the release is configured with that requests go to now.
    pub fn entries(&self) -> BTreeMap<String, String> {
        let behaviour = self.behaviour.lock().unwrap();
        let routed = behaviour.routed.last();
        let entries = routed.and_then(|routed| behaviour.entries.get(routed));
        entries.cloned().unwrap_or_default()
    }

    /// Ends it without a word.
    pub fn kill(&self) {
        self.task.abort();
    }
}

impl Drop for TestNode {
    fn drop(&mut self) {
        self.kill();
    }
}

/// One connection's life.
async fn live(
    quic: SocketAddr,
    version: Version,
    identity: &Identity,
    hello: Hello,
    behaviour: &Mutex<Behaviour>,
    to_say: &mut mpsc::UnboundedReceiver<NodeMessage>,
) -> Option<()> {
    let mut endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    endpoint.set_default_client_config(client_config(
        offered_by(version, Purpose::Link),
        Some(identity),
    ));
    let connection = endpoint
        .connect(quic, COORDINATOR_TLS_NAME)
        .unwrap()
        .await
        .ok()?;
    let (mut send, mut recv) = connection.open_bi().await.ok()?;
    send.write_all(&codec::encode_for(&NodeMessage::Hello(hello), version).unwrap())
        .await
        .ok()?;
    // Frames are read in a task of their own: reading one is not to be cancelled half-way.
    let (messages, mut incoming) = mpsc::channel(8);
    let reader = tokio::spawn(async move {
        while let Some(message) = read_any(&mut recv, version).await {
            if messages.send(message).await.is_err() {
                return;
            }
        }
    });
    loop {
        let message = tokio::select! {
            message = incoming.recv() => match message {
                Some(CoordinatorMessage::Desired(desired)) => {
                    NodeMessage::Observed(follow(desired.into(), behaviour))
                }
                Some(CoordinatorMessage::Configured(state)) => {
                    NodeMessage::Observed(follow(state, behaviour))
                }
                Some(_) => continue,
                None => break,
            },
            Some(message) = to_say.recv() => message,
        };
        if send
            .write_all(&codec::encode_for(&message, version).unwrap())
            .await
            .is_err()
        {
            break;
        }
    }
    reader.abort();
    Some(())
}

async fn read_any(recv: &mut RecvStream, version: Version) -> Option<CoordinatorMessage> {
    let mut length = [0; 4];
    recv.read_exact(&mut length).await.ok()?;
    let mut following = vec![0; codec::following_bytes(length).unwrap()];
    recv.read_exact(&mut following).await.ok()?;
    Some(codec::decode_for(&following, version).unwrap())
}

/// Reconciles: verifies, "prepares", and switches only to what is ready.
fn follow(state: Configured, behaviour: &Mutex<Behaviour>) -> Observed {
    let Configured {
        desired,
        configurations,
    } = state;
    let mut behaviour = behaviour.lock().unwrap();
    if desired.generation < behaviour.ahead {
        return Observed {
            generation: behaviour.ahead,
            versions: behaviour.versions.clone(),
        };
    }
    let mut versions = Vec::new();
    behaviour.entries.clear();
    for wanted in &desired.functions {
        let mut route = None;
        let mut own = configurations
            .iter()
            .filter(|own| own.function == wanted.function);
        let own = own.next();
        let previous = own.and_then(|own| own.previous.as_ref());
        let wants = [
            (wanted.previous.as_ref(), previous),
            (
                Some(&wanted.version),
                own.and_then(|own| own.version.as_ref()),
            ),
        ];
        for (signed, configuration) in wants {
            let Some(signed) = signed else { continue };
            let version = signed.verify(&wanted.publisher_keys).unwrap().id;
            let configured = configuration.map(|own| own.verify(&wanted.publisher_keys).unwrap());
            let release = Release {
                version,
                configuration: configured.as_ref().map(|configured| configured.id),
            };
            let version = release.id();
            if let Some(configured) = configured {
                let entries = configured.entries();
                let entries = entries.map(|(name, value)| (name.to_owned(), value.to_owned()));
                behaviour.entries.insert(version, entries.collect());
            }
            let state = match behaviour.fails.get(&version) {
                Some(reason) => VersionState::Failed {
                    reason: reason.clone(),
                },
                None if behaviour.stuck.contains(&version) => VersionState::Preparing,
                None => VersionState::Ready,
            };
            if state == VersionState::Ready {
                route = Some(version);
            }
            let function = wanted.function.clone();
            versions.push(ObservedVersion {
                function,
                version,
                state,
                routed: false,
                record: None,
            });
        }
        for seen in versions
            .iter_mut()
            .filter(|seen| seen.function == wanted.function)
        {
            seen.routed = Some(seen.version) == route;
            let ready = seen.state == VersionState::Ready && !seen.routed;
            seen.record = behaviour.record.clone().filter(|_| ready);
        }
        if let Some(version) = route.filter(|version| behaviour.routed.last() != Some(version)) {
            behaviour.routed.push(version);
        }
    }
    behaviour.generations.push(desired.generation);
    let generation = desired.generation;
    behaviour.desired = desired;
    behaviour.versions.clone_from(&versions);
    Observed {
        generation,
        versions,
    }
}

/// Trusts any certificate: for tests that have not joined yet.
#[derive(Debug)]
struct Anyone(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &rustls_pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls_pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        let schemes = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, schemes)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        let schemes = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, schemes)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// A digest that nothing has.
pub fn nothing() -> Digest {
    Digest([0xee; 32])
}
