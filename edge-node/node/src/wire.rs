//! Frames of [`holm_model::codec`] on QUIC streams.
//!
//! A length is checked before anything is allocated for it. Reading a frame is not safe to cancel in
//! its middle: whoever stops waiting for one gives up the stream.

use std::net::SocketAddr;

use holm_model::codec::{self, FrameError};
use holm_model::protocol::{Message, Purpose, Version};
use quinn::crypto::rustls::HandshakeData;
use quinn::{Connection, RecvStream, SendStream};

/// A message did not get through.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// It cannot be encoded or decoded.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The peer closed, stopped or lost the stream.
    #[error("the stream to the coordinator broke: {0}")]
    Stream(String),
    /// The stream ended within a frame.
    #[error("the coordinator's frame is cut short")]
    CutShort,
}

/// The protocol version that TLS has agreed on.
pub(crate) fn agreed(connection: &Connection, purpose: Purpose) -> Version {
    let data = connection.handshake_data();
    let data = data.and_then(|data| data.downcast::<HandshakeData>().ok());
    let name = data.and_then(|data| data.protocol);
    // Only names that were offered can have been agreed on.
    name.and_then(|name| purpose.agreed(&name))
        .unwrap_or(Version::NOW)
}

/// Sends one frame.
pub(crate) async fn send<T: Message>(
    to: &mut SendStream,
    message: &T,
    version: Version,
) -> Result<(), WireError> {
    let frame = codec::encode_for(message, version)?;
    to.write_all(&frame)
        .await
        .map_err(|error| WireError::Stream(error.to_string()))
}

/// Receives one frame, or `None` when the stream has ended before it.
pub(crate) async fn receive<T: Message>(
    from: &mut RecvStream,
    version: Version,
) -> Result<Option<T>, WireError> {
    let mut length = [0; 4];
    match from.read_exact(&mut length).await {
        Ok(()) => {}
        Err(quinn::ReadExactError::FinishedEarly(0)) => return Ok(None),
        Err(error) => return Err(broken(error)),
    }
    let mut following = vec![0; codec::following_bytes(length)?];
    from.read_exact(&mut following).await.map_err(broken)?;
    Ok(Some(codec::decode_for(&following, version)?))
}

fn broken(error: quinn::ReadExactError) -> WireError {
    match error {
        quinn::ReadExactError::FinishedEarly(_) => WireError::CutShort,
        quinn::ReadExactError::ReadError(error) => WireError::Stream(error.to_string()),
    }
}

/// No connection to the coordinator.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// Its name has no address.
    #[error(
        "the coordinator's address `{address}` cannot be resolved: {why}; check it and the name service"
    )]
    Resolve {
        /// As configured.
        address: String,
        /// What the resolver says.
        why: String,
    },
    /// It does not answer, or it or this node is not trusted.
    #[error("no link to the coordinator at {address}: {why}")]
    Connect {
        /// Where.
        address: SocketAddr,
        /// What went wrong.
        why: String,
    },
    /// No UDP socket.
    #[error("cannot open a UDP socket: {0}")]
    Socket(std::io::Error),
}

/// A QUIC connection to `address`, tried at each of its addresses in turn.
pub(crate) async fn dial(
    address: &str,
    config: &quinn::ClientConfig,
) -> Result<(quinn::Endpoint, quinn::Connection), DialError> {
    let unresolved = |why: String| DialError::Resolve {
        address: address.to_owned(),
        why,
    };
    let found = tokio::net::lookup_host(address).await;
    let found = found.map_err(|error| unresolved(error.to_string()))?;
    let mut last = unresolved("it has no address".into());
    for to in found {
        let any: SocketAddr = match to {
            SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
            SocketAddr::V6(_) => ([0u16; 8], 0).into(),
        };
        let endpoint = quinn::Endpoint::client(any).map_err(DialError::Socket)?;
        let name = holm_model::control::COORDINATOR_TLS_NAME;
        let refused = |why: String| DialError::Connect { address: to, why };
        let connecting = match endpoint.connect_with(config.clone(), to, name) {
            Ok(connecting) => connecting,
            Err(error) => {
                last = refused(error.to_string());
                continue;
            }
        };
        match connecting.await {
            Ok(connection) => return Ok((endpoint, connection)),
            Err(error) => last = refused(error.to_string()),
        }
    }
    Err(last)
}
