//! The QUIC endpoint: lets nodes in by their certificate, and machines that join by their token.
//!
//! TLS checks that a client certificate, if there is one, is from the fleet's own CA. Who shows
//! none can speak the joining protocol only.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use holm_model::control::{JoinAnswer, JoinRequest};
use holm_model::protocol::{Purpose, Version};
use quinn::crypto::rustls::{HandshakeData, QuicServerConfig};
use quinn::{Connection, Endpoint, IdleTimeout, Incoming, SendStream, TransportConfig, VarInt};
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{Fleet, frames, link};
use crate::budget::Budgets;
use crate::ca::{Authority, CaError, Joins};
use crate::clock::Clock;
use crate::ledger::Ledger;
use crate::limits::{
    LINK_FAREWELL, LINK_IDLE, LINK_KEEP_ALIVE, LINK_OPENING, LINK_WINDOW_BYTES, MAX_BULK_STREAMS,
    MAX_CLOSE_BYTES, MAX_QUIC_CONNECTIONS,
};
use crate::logs::Logs;
use crate::registry::Registry;
use crate::rollout::{Rollouts, Target};
use crate::store::Store;

/// Codes with which connections are closed; the reason beside them is for people.
pub(super) mod close {
    pub(crate) const DONE: u32 = 0;
    pub(crate) const REFUSED: u32 = 1;
    pub(crate) const REPLACED: u32 = 2;
    pub(crate) const BREACH: u32 = 3;
}

/// The endpoint cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The certificate authority.
    #[error(transparent)]
    Authority(#[from] CaError),
    /// TLS does not take the configuration.
    #[error("TLS for the nodes' endpoint cannot be set up: {0}")]
    Tls(String),
    /// The address is not to be had.
    #[error(
        "listening for nodes on UDP {address} failed: {source}; choose another address or end \
         what holds it"
    )]
    Bind {
        /// Which.
        address: SocketAddr,
        /// The system's words.
        source: std::io::Error,
    },
}

/// What links need of the rest of the coordinator.
pub(crate) struct Services {
    pub(crate) store: Store,
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) joins: Arc<Joins>,
    pub(crate) ledger: Ledger,
    pub(crate) logs: Arc<Logs>,
    pub(crate) registry: Registry,
    pub(crate) rollouts: Arc<Rollouts>,
    pub(crate) budgets: Arc<Budgets>,
    pub(crate) target: watch::Receiver<Arc<Target>>,
    pub(crate) clock: Clock,
}

/// The QUIC endpoint.
pub(crate) struct Server {
    endpoint: Endpoint,
}

impl Server {
    /// Binds `address`.
    pub(crate) fn bind(address: SocketAddr, authority: &Authority) -> Result<Self, ServerError> {
        let config = config(authority)?;
        let endpoint = Endpoint::server(config, address)
            .map_err(|source| ServerError::Bind { address, source })?;
        Ok(Server { endpoint })
    }

    /// The bound address.
    pub(crate) fn address(&self) -> std::io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// The endpoint, to close it.
    pub(crate) fn endpoint(&self) -> Endpoint {
        self.endpoint.clone()
    }

    /// Serves until the endpoint is closed.
    pub(crate) async fn run(self, services: Arc<Services>) {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                incoming = self.endpoint.accept() => {
                    let Some(incoming) = incoming else { break };
                    if connections.len() >= MAX_QUIC_CONNECTIONS {
                        tracing::warn!(peer = %incoming.remote_address(), "too many connections");
                        incoming.refuse();
                        continue;
                    }
                    connections.spawn(serve(incoming, services.clone()));
                }
                Some(ended) = connections.join_next() => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "serving a connection panicked");
                    }
                }
            }
        }
        // Their connections are closed: they end by themselves.
        while connections.join_next().await.is_some() {}
    }
}

fn config(authority: &Authority) -> Result<quinn::ServerConfig, ServerError> {
    let tls = |error: &dyn std::fmt::Display| ServerError::Tls(error.to_string());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    roots
        .add(authority.certificate().clone())
        .map_err(|error| tls(&error))?;
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|error| tls(&error))?;
    let (chain, key) = authority.server_identity()?;
    let mut crypto = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| tls(&error))?
        .with_client_cert_verifier(clients)
        .with_single_cert(chain, key)
        .map_err(|error| tls(&error))?;
    crypto.alpn_protocols = [Purpose::Link.names(), Purpose::Join.names()].concat();
    let crypto = QuicServerConfig::try_from(crypto).map_err(|error| tls(&error))?;

    let mut transport = TransportConfig::default();
    let idle = IdleTimeout::try_from(LINK_IDLE).map_err(|error| tls(&error))?;
    transport
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(Some(LINK_KEEP_ALIVE))
        // The control stream and the bulk streams.
        .max_concurrent_bidi_streams(VarInt::from_u32(1 + MAX_BULK_STREAMS))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .receive_window(VarInt::from_u32(LINK_WINDOW_BYTES))
        .datagram_receive_buffer_size(None);
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

async fn serve(incoming: Incoming, services: Arc<Services>) {
    let peer = incoming.remote_address();
    let connection = match timeout(LINK_OPENING, async { incoming.await }).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            tracing::warn!(%peer, %error, "a handshake failed");
            return;
        }
        Err(_) => {
            tracing::warn!(%peer, "a handshake took too long");
            return;
        }
    };
    let protocol = connection
        .handshake_data()
        .and_then(|data| data.downcast::<HandshakeData>().ok())
        .and_then(|data| data.protocol);
    let protocol = protocol.unwrap_or_default();
    if let Some(version) = Purpose::Link.agreed(&protocol) {
        link::serve(connection, version, services).await;
    } else if let Some(version) = Purpose::Join.agreed(&protocol) {
        join(connection, version, &services.joins).await;
    } else {
        // TLS has agreed on a name that is served here; kept for the day there is another purpose.
        shut(&connection, close::REFUSED, "unknown protocol");
    }
}

/// One machine joins.
async fn join(connection: Connection, version: Version, joins: &Joins) {
    let peer = connection.remote_address();
    let exchange = async {
        let (mut send, mut recv) = connection.accept_bi().await.map_err(|e| e.to_string())?;
        let answer = match frames::expect::<JoinRequest>(&mut recv, version).await {
            Ok(request) => match joins.join(&request).await {
                Ok(certificate) => {
                    tracing::info!(%peer, node = %request.node, "a node has joined");
                    JoinAnswer::Joined {
                        certificate_der: certificate.to_vec(),
                        ca_der: joins.authority.certificate().to_vec(),
                    }
                }
                Err(error) => {
                    tracing::warn!(%peer, node = %request.node, %error, "a machine may not join");
                    JoinAnswer::Refused {
                        reason: error.to_string(),
                    }
                }
            },
            Err(error) => {
                tracing::warn!(%peer, %error, "a request to join cannot be read");
                JoinAnswer::Refused {
                    reason: format!("the request to join cannot be read: {error}"),
                }
            }
        };
        frames::write(&mut send, &answer, version)
            .await
            .map_err(|error| error.to_string())?;
        delivered(&mut send).await;
        Ok::<_, String>(match answer {
            JoinAnswer::Joined { .. } => (close::DONE, "joined".to_owned()),
            JoinAnswer::Refused { reason } => (close::REFUSED, reason),
        })
    };
    let limit = LINK_OPENING + Duration::from_secs(30) + LINK_FAREWELL;
    match timeout(limit, exchange).await {
        Ok(Ok((code, reason))) => shut(&connection, code, &reason),
        Ok(Err(error)) => tracing::warn!(%peer, %error, "a machine went away while joining"),
        Err(_) => shut(&connection, close::REFUSED, "joining took too long"),
    }
}

/// Ends the stream and gives the peer a moment to take what is on it.
pub(super) async fn delivered(send: &mut SendStream) {
    if send.finish().is_ok() {
        // Whether it was taken or not, the connection closes next.
        let _ = timeout(LINK_FAREWELL, send.stopped()).await;
    }
}

/// Closes a connection with a reason that fits its packet.
pub(super) fn shut(connection: &Connection, code: u32, reason: &str) {
    let reason = &reason[..reason.floor_char_boundary(MAX_CLOSE_BYTES)];
    connection.close(VarInt::from_u32(code), reason.as_bytes());
}
