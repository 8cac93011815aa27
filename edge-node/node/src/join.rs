//! Joining a fleet: a one-time token becomes a certificate for the node's own key.
//!
//! The coordinator is trusted by the digest of its CA in the token, the node by the token's secret.
//! The key is made here and never leaves; what is sent is a signing request.

use std::path::PathBuf;
use std::time::Duration;

use holm_model::control::{JoinAnswer, JoinRequest};
use holm_model::ids::{Digest, Name};
use holm_model::join::JoinToken;
use holm_model::protocol::Purpose;

use crate::files::FileError;
use crate::identity::{self, Identity, IdentityError};
use crate::limits::LINK_TIMEOUT;
use crate::tls::{self, TlsError};
use crate::wire::{self, DialError, WireError};

/// What joining needs.
#[derive(Clone, Debug)]
pub struct JoinConfig {
    /// Where the node will keep its state.
    pub state_dir: PathBuf,
    /// From `holm nodes token`.
    pub token: JoinToken,
    /// What the node is to be called.
    pub name: Name,
}

/// The node has not joined.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The directory belongs to a node already.
    #[error(
        "{0} belongs to a node that has joined already; use another directory; or, to join anew with the usage that is not uploaded yet, remove `node.json` in it and nothing else"
    )]
    AlreadyJoined(String),
    /// The coordinator cannot be reached or is not the token's.
    #[error("{0}; check that the coordinator runs and that the token is from it")]
    Dial(#[from] DialError),
    /// Nobody answered in time.
    #[error(
        "the coordinator at {0} did not answer in time; check that it runs and that UDP gets through"
    )]
    Silent(String),
    /// The link broke, or the answer cannot be read.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The coordinator said no.
    #[error("the coordinator refuses this node: {0}")]
    Refused(String),
    /// The answer does not fit the token or the key; nothing is stored.
    #[error(
        "the coordinator's answer cannot be trusted: {0}; the operator of the coordinator must look into it"
    )]
    BadAnswer(String),
    /// No key could be made.
    #[error("no key could be made: {0}")]
    Key(String),
    /// The identity could not be stored.
    #[error(transparent)]
    File(#[from] FileError),
    /// What was stored cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The TLS library refuses the material.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Joins the coordinator that `config.token` names and stores the node's identity.
pub async fn join(config: JoinConfig) -> Result<(), JoinError> {
    let JoinConfig {
        state_dir,
        token,
        name,
    } = config;
    if Identity::is_there(&state_dir) {
        return Err(JoinError::AlreadyJoined(state_dir.display().to_string()));
    }
    let key_error = |error: rcgen::Error| JoinError::Key(error.to_string());
    let key = rcgen::KeyPair::generate().map_err(key_error)?;
    let csr_der = identity::signing_request(&name, &key).map_err(key_error)?;
    let request = JoinRequest {
        secret: token.secret.clone(),
        node: name.clone(),
        csr_der,
    };

    let tls = tls::pinned(token.ca, Purpose::Join)?;
    let answer = tokio::time::timeout(LINK_TIMEOUT, ask(&token.address, &tls, &request))
        .await
        .map_err(|_| JoinError::Silent(token.address.clone()))??;
    let (certificate, ca) = match answer {
        JoinAnswer::Joined {
            certificate_der,
            ca_der,
        } => (certificate_der, ca_der),
        JoinAnswer::Refused { reason } => return Err(JoinError::Refused(reason)),
    };
    if Digest::of(&ca) != token.ca {
        return Err(JoinError::BadAnswer("its CA is not the token's".into()));
    }
    let identity = Identity {
        name: name.clone(),
        coordinator: token.address.clone(),
        key: rustls_pki_types::PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        certificate: certificate.clone().into(),
        ca: ca.clone().into(),
    };
    tls::check_pair(&identity)
        .map_err(|_| JoinError::BadAnswer("its certificate is not for this node's key".into()))?;
    Identity::save(
        &state_dir,
        &name,
        &token.address,
        &key.serialize_pem(),
        &certificate,
        &ca,
    )?;
    Ok(())
}

async fn ask(
    address: &str,
    tls: &quinn::ClientConfig,
    request: &JoinRequest,
) -> Result<JoinAnswer, JoinError> {
    let (endpoint, connection) = wire::dial(address, tls).await?;
    let lost = |error: quinn::ConnectionError| WireError::Stream(error.to_string());
    let (mut to, mut from) = connection.open_bi().await.map_err(lost)?;
    let version = wire::agreed(&connection, Purpose::Join);
    wire::send(&mut to, request, version).await?;
    // The stream was opened here and is finished once; it cannot be closed yet.
    let _ = to.finish();
    let answer = wire::receive(&mut from, version)
        .await?
        .ok_or(WireError::CutShort)?;
    connection.close(0u32.into(), b"joined");
    // Lets the close reach the coordinator; if it does not, its idle timeout does the same.
    let _ = tokio::time::timeout(Duration::from_millis(500), endpoint.wait_idle()).await;
    Ok(answer)
}
