//! A bare QUIC server in the coordinator's place: how long the bytes of a rollout take by themselves.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use holm_node::limits::LINK_TIMEOUT;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, Endpoint, ServerConfig};
use rustls::RootCertStore;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio::task::JoinSet;

use super::{Cpu, CpuClock};

/// The name in its certificate.
const NAME: &str = "bare.test";

/// Has `connections` fetch so many bytes each at once, over links that are up already. What that took, and CPU time.
pub(super) async fn transfer(connections: usize, bytes: usize) -> Result<(Duration, Cpu)> {
    let server = Server::start(bytes)?;
    let config = server.config()?;
    let mut links = Vec::new();
    for _ in 0..connections {
        let endpoint = Endpoint::client(([127, 0, 0, 1], 0).into())?;
        let connecting = endpoint.connect_with(config.clone(), server.address, NAME)?;
        links.push((
            endpoint,
            tokio::time::timeout(LINK_TIMEOUT, connecting).await??,
        ));
    }
    let clock = CpuClock::start(server.child.id())?;
    let started = Instant::now();
    let mut fetches = JoinSet::new();
    for (endpoint, connection) in links {
        fetches.spawn(async move {
            let (mut to, mut from) = connection.open_bi().await?;
            to.write_all(b"?").await?;
            to.finish()?;
            let read = from.read_to_end(bytes).await?.len();
            ensure!(read == bytes, "{read} bytes of {bytes}");
            drop(endpoint);
            Ok(())
        });
    }
    while let Some(fetched) = fetches.join_next().await {
        fetched??;
    }
    Ok((started.elapsed(), clock.stop()?))
}

/// The server's process; ended when dropped.
struct Server {
    child: Child,
    address: SocketAddr,
    certificate: CertificateDer<'static>,
}

impl Server {
    fn start(bytes: usize) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["serve-quic", &bytes.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start a bare QUIC server")?;
        let mut line = String::new();
        let stdout = child.stdout.take().context("no output")?;
        BufReader::new(stdout).read_line(&mut line)?;
        let (address, certificate) = line.trim().split_once(' ').context("no address")?;
        Ok(Server {
            address: address.parse()?,
            certificate: hex::decode(certificate)?.into(),
            child,
        })
    }

    fn config(&self) -> Result<ClientConfig> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone())?;
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(ClientConfig::new(Arc::new(QuicClientConfig::try_from(
            tls,
        )?)))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Serves so many bytes on every stream that is opened, until its process is ended. Says its address and its
/// certificate first.
pub(crate) fn serve(bytes: usize) -> Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let key = rcgen::KeyPair::generate()?;
        let params = rcgen::CertificateParams::new(vec![NAME.to_owned()])?;
        let certificate = params.self_signed(&key)?.der().clone();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], key.into())?;
        let config = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
        let endpoint = Endpoint::server(config, ([127, 0, 0, 1], 0).into())?;
        println!("{} {}", endpoint.local_addr()?, hex::encode(&certificate));
        let content: Arc<[u8]> = vec![7; bytes].into();
        while let Some(incoming) = endpoint.accept().await {
            let content = content.clone();
            tokio::spawn(async move {
                let connection = incoming.await.ok()?;
                while let Ok((mut to, mut from)) = connection.accept_bi().await {
                    let content = content.clone();
                    tokio::spawn(async move {
                        from.read_to_end(1).await.ok()?;
                        to.write_all(&content).await.ok()?;
                        to.finish().ok()
                    });
                }
                Some(())
            });
        }
        Ok(())
    })
}
