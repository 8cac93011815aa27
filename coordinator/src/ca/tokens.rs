//! Tokens: the administrator's, and those with which machines join.
//!
//! The database holds digests only. A join token is good once, until it expires, and for one name
//! if it was made so; each refusal says which of these it was.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use holm_model::control::JoinRequest;
use holm_model::ids::{Digest, Name};
use holm_model::join::JoinToken;
use rustls_pki_types::CertificateDer;

use super::{Authority, CaError, files, write_secret};
use crate::clock::Clock;
use crate::limits::{DEFAULT_JOIN_TTL_SECONDS, MAX_JOIN_TTL_SECONDS};
use crate::store::{JoinOutcome, Store, StoreError};

const ADMIN_PREFIX: &str = "holm-admin-1.";

/// The administrator's token cannot be made or kept.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Its file.
    #[error("the administrator's token: {0}")]
    File(#[from] CaError),
    /// Its digest.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a machine may not join, or a token cannot be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JoinError {
    #[error("the join token is not known here; get a new one with `holm nodes token`")]
    UnknownToken,
    #[error(
        "the join token was used already, by node `{by}`; a token is good once, get a new one \
         with `holm nodes token`"
    )]
    UsedToken { by: String },
    #[error("the join token has expired; get a new one with `holm nodes token`")]
    ExpiredToken,
    #[error("the join token is good for a node called `{prescribed}` only, not for `{asked}`")]
    OtherName { prescribed: Name, asked: Name },
    #[error(
        "there is a node called `{0}` already; choose another name, or if this machine replaces \
         it, get a token made for that name"
    )]
    NameTaken(Name),
    #[error("the fleet is full: the coordinator takes no more nodes")]
    FleetFull,
    #[error("a join token may live 1 to {MAX_JOIN_TTL_SECONDS} seconds, not {0}")]
    BadTtl(u64),
    #[error(transparent)]
    Authority(#[from] CaError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The door through which machines join.
#[derive(Clone)]
pub(crate) struct Joins {
    pub(crate) authority: Authority,
    pub(crate) store: Store,
    pub(crate) clock: Clock,
    /// Host and port that tokens tell nodes to dial.
    pub(crate) address: String,
}

impl Joins {
    /// A new token, and when it expires in milliseconds since 1970 UTC.
    pub(crate) async fn token(
        &self,
        ttl_seconds: Option<u64>,
        node: Option<&Name>,
    ) -> Result<(JoinToken, u64), JoinError> {
        let ttl = ttl_seconds.unwrap_or(DEFAULT_JOIN_TTL_SECONDS);
        if !(1..=MAX_JOIN_TTL_SECONDS).contains(&ttl) {
            return Err(JoinError::BadTtl(ttl));
        }
        let secret = random::<32>();
        let now_ms = self.clock.now_ms();
        let expires_ms = now_ms.saturating_add(ttl * 1000);
        self.store
            .add_join_token(Digest::of(&secret), node, now_ms, expires_ms)
            .await?;
        let ca = self.authority.fingerprint();
        Ok((
            JoinToken {
                address: self.address.clone(),
                ca,
                secret: secret.to_vec(),
            },
            expires_ms,
        ))
    }

    /// Lets a machine in: its certificate, after the token has been used up.
    pub(crate) async fn join(
        &self,
        request: &JoinRequest,
    ) -> Result<CertificateDer<'static>, JoinError> {
        // Before the token is touched, so that a bad request does not cost it.
        let certificate = self.authority.sign_node(&request.node, &request.csr_der)?;
        let (token, node) = (Digest::of(&request.secret), &request.node);
        let digest = Digest::of(&certificate);
        match self
            .store
            .join(token, node, digest, self.clock.now_ms())
            .await?
        {
            JoinOutcome::Joined => Ok(certificate),
            JoinOutcome::UnknownToken => Err(JoinError::UnknownToken),
            JoinOutcome::UsedToken { by } => Err(JoinError::UsedToken { by }),
            JoinOutcome::ExpiredToken => Err(JoinError::ExpiredToken),
            JoinOutcome::OtherName { prescribed } => Err(JoinError::OtherName {
                prescribed,
                asked: node.clone(),
            }),
            JoinOutcome::NameTaken => Err(JoinError::NameTaken(node.clone())),
            JoinOutcome::FleetFull => Err(JoinError::FleetFull),
        }
    }
}

/// Sees to it that the file at `path` holds a valid administrator's token. A lost or altered file
/// is replaced, and the token before it, of the same `label`, is void.
pub(crate) async fn ensure_admin_token(
    path: &Path,
    label: &str,
    store: &Store,
    clock: &Clock,
) -> Result<(), TokenError> {
    if let Some(token) = files::read(path)? {
        let token = token.trim_ascii();
        if !token.is_empty() && store.knows_api_token(Digest::of(token)).await? {
            return Ok(());
        }
    }
    let token = format!("{ADMIN_PREFIX}{}", URL_SAFE_NO_PAD.encode(random::<32>()));
    write_secret(path, format!("{token}\n").as_bytes())?;
    store
        .set_api_token(label, Digest::of(token.as_bytes()), clock.now_ms())
        .await?;
    Ok(())
}

/// Bytes from the system's random generator.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the kernel's random generator does not fail once seeded");
    bytes
}
