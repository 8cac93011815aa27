//! Tokens: the administrator's, those made for people and programs, and those with which machines join.
//!
//! The database holds digests and ids only. A join token is good once, until it expires, and for one name
//! if it was made so; each refusal says which of these it was.

use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use holm_model::api::{TokenRequest, TokenView};
use holm_model::control::JoinRequest;
use holm_model::ids::{Digest, Name};
use holm_model::join::JoinToken;
use holm_model::token::{ApiToken, Caveat, Grant, TokenId, TokenKey};
use rustls_pki_types::CertificateDer;

use super::{Authority, CaError, files, kept, write_secret};
use crate::clock::{Clock, millis};
use crate::limits::{
    DEFAULT_JOIN_TTL_SECONDS, MAX_API_TOKEN_TTL_SECONDS, MAX_API_TOKENS, MAX_JOIN_TTL_SECONDS,
    MIN_RENEWAL_PAUSE,
};
use crate::store::{
    Came, Deed, JoinOutcome, RenewOutcome, Store, StoreError, TokenOutcome, TokenRow,
};

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

/// Why a node's certificate is not renewed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RenewError {
    #[error(
        "the signing request is for another key than the certificate that was shown; a certificate is renewed for \
         the same key, for another one the node is to join again"
    )]
    OtherKey,
    #[error(
        "the node had its certificate renewed a moment ago; its clock may be wrong, else it is to try again later"
    )]
    TooSoon,
    #[error(
        "the certificate that was shown is not the node's any more: it was revoked, or a machine has joined in its \
         place; join again with a new token"
    )]
    NotItsOwn,
    #[error(transparent)]
    Authority(#[from] CaError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why an API token cannot be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiTokenError {
    #[error(
        "there is a valid token `{0}` already; choose another name, or revoke that one first, with \
         `holm tokens revoke {0}`"
    )]
    NameTaken(Name),
    #[error("there are {MAX_API_TOKENS} valid tokens, which is all that are allowed; revoke some")]
    TooMany,
    #[error("the token would allow nothing: it has no verb, or is for no tenant")]
    Nothing,
    #[error("a token may live 1 to {MAX_API_TOKEN_TTL_SECONDS} seconds, not {0}")]
    BadTtl(u64),
    #[error(transparent)]
    Caveats(#[from] holm_model::token::TokenError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A token that somebody wants made.
pub(crate) struct TokenWish<'a> {
    pub(crate) by: &'a str,
    /// What whoever makes it may do.
    pub(crate) within: &'a Grant,
    pub(crate) request: &'a TokenRequest,
}

/// API tokens. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Tokens {
    pub(crate) key: TokenKey,
    pub(crate) store: Store,
    pub(crate) clock: Clock,
}

impl Tokens {
    /// Whether the token was made here, or from one that was.
    pub(crate) fn made(&self, token: &ApiToken) -> bool {
        self.key.made(token)
    }

    /// A new token, to be shown once.
    pub(crate) async fn create(
        &self,
        wish: TokenWish<'_>,
    ) -> Result<(ApiToken, TokenRow), ApiTokenError> {
        let TokenRequest {
            name,
            verbs,
            tenants,
            ttl_seconds,
        } = wish.request;
        if verbs.is_empty() || tenants.as_ref().is_some_and(|tenants| tenants.is_empty()) {
            return Err(ApiTokenError::Nothing);
        }
        if let Some(ttl) = ttl_seconds.filter(|ttl| !(1..=MAX_API_TOKEN_TTL_SECONDS).contains(ttl))
        {
            return Err(ApiTokenError::BadTtl(ttl));
        }
        let now_ms = self.clock.now_ms();
        let asked = ttl_seconds.map(|ttl| now_ms + ttl * 1000);
        // It ends no later than the one by which it is made.
        let expires_ms = asked.into_iter().chain(wish.within.before_ms).min();
        let mut token = self.key.mint(TokenId(random()));
        token = token.weaken(&Caveat::Verbs(verbs.clone()))?;
        if let Some(tenants) = tenants {
            token = token.weaken(&Caveat::Tenants(tenants.clone()))?;
        }
        if let Some(expires_ms) = expires_ms {
            token = token.weaken(&Caveat::Before(expires_ms))?;
        }
        let row = TokenRow {
            id: token.id(),
            name: name.to_string(),
            caveats: token.caveats().join("\n"),
            created_ms: now_ms,
            created_by: wish.by.to_owned(),
            expires_ms,
            revoked_ms: None,
        };
        match self.store.add_token(&row).await? {
            TokenOutcome::Stored => Ok((token, row)),
            TokenOutcome::NameTaken => Err(ApiTokenError::NameTaken(name.clone())),
            TokenOutcome::TooMany => Err(ApiTokenError::TooMany),
        }
    }

    /// Voids the token of this name and all that was made from it; none if there is none. In place
    /// of an administrator's, its coordinator makes a new one at its next start.
    pub(crate) async fn revoke(&self, name: &str) -> Result<Option<TokenView>, StoreError> {
        let now_ms = self.clock.now_ms();
        if let Some(revoked) = self.store.revoke_token(name, now_ms).await? {
            return Ok(Some(view(&revoked)));
        }
        let admins = self.store.admin_tokens().await?.into_iter();
        let Some(mut admin) = admins.map(admin_view).find(|view| view.name == name) else {
            return Ok(None);
        };
        self.store.void_admin_tokens(Some(name)).await?;
        admin.revoked_ms = Some(now_ms);
        Ok(Some(admin))
    }

    /// Every token, the administrators' first.
    pub(crate) async fn list(&self) -> Result<Vec<TokenView>, StoreError> {
        let admins = self.store.admin_tokens().await?;
        let mut views: Vec<_> = admins.into_iter().map(admin_view).collect();
        views.extend(self.store.tokens().await?.iter().map(view));
        Ok(views)
    }
}

/// An administrator's token for people.
fn admin_view((digest, name, created_ms): (Digest, String, u64)) -> TokenView {
    TokenView {
        name,
        id: digest.short(),
        administrator: true,
        verbs: None,
        tenants: None,
        created_by: "the coordinator".into(),
        created_ms,
        expires_ms: None,
        revoked_ms: None,
    }
}

/// A token for people.
pub(crate) fn view(row: &TokenRow) -> TokenView {
    let mut grant = Grant::default();
    // What cannot be read allows nothing, and is not shown.
    for caveat in row.caveats.lines().filter_map(|caveat| caveat.parse().ok()) {
        grant.restrict(caveat);
    }
    TokenView {
        name: row.name.clone(),
        id: row.id.to_string(),
        administrator: false,
        verbs: grant.verbs,
        tenants: grant.tenants,
        created_by: row.created_by.clone(),
        created_ms: row.created_ms,
        expires_ms: row.expires_ms,
        revoked_ms: row.revoked_ms,
    }
}

/// The door through which machines join.
#[derive(Clone)]
pub(crate) struct Joins {
    pub(crate) authority: Authority,
    pub(crate) store: Store,
    pub(crate) clock: Clock,
    /// Host and port that tokens tell nodes to dial.
    pub(crate) address: String,
    /// How long a node's certificate is good.
    pub(crate) certificate_life: Duration,
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

    /// The node has its certificate, so what is left is to say so if the audit log cannot.
    async fn record(&self, node: &Name, action: &str) {
        let deed = Deed {
            actor_kind: "node",
            actor: node.to_string(),
            action: action.to_owned(),
            object: node.to_string(),
            ..Deed::default()
        };
        let came = Came::done("");
        let recorded = self.store.record(&deed, &came, self.clock.now_ms());
        if let Err(error) = recorded.await {
            tracing::error!(%node, %error, action, "what a node has done is not in the audit log");
        }
    }

    /// Lets a machine in: its certificate, after the token has been used up.
    pub(crate) async fn join(
        &self,
        request: &JoinRequest,
    ) -> Result<CertificateDer<'static>, JoinError> {
        // Before the token is touched, so that a bad request does not cost it.
        let life = self.certificate_life;
        let certificate = self
            .authority
            .sign_node(&request.node, &request.csr_der, life)?;
        let (token, node) = (Digest::of(&request.secret), &request.node);
        let unusable = || CaError::BadRequest("its key is in a form that cannot be kept".into());
        let own = kept(&certificate).ok_or_else(unusable)?;
        match self
            .store
            .join(token, node, own, self.clock.now_ms())
            .await?
        {
            JoinOutcome::Joined => {
                self.record(node, "node.join").await;
                Ok(certificate)
            }
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

    /// A new certificate for `node`, which has shown another one for the same key; both are good until they end.
    pub(crate) async fn renew(
        &self,
        node: &Name,
        shown: &CertificateDer<'_>,
        csr_der: &[u8],
    ) -> Result<CertificateDer<'static>, RenewError> {
        let life = self.certificate_life;
        let certificate = self.authority.sign_node(node, csr_der, life)?;
        let (Some(shown), Some(new)) = (kept(shown), kept(&certificate)) else {
            return Err(RenewError::NotItsOwn);
        };
        if shown.key != new.key {
            return Err(RenewError::OtherKey);
        }
        let now_ms = self.clock.now_ms();
        let pause = millis(MIN_RENEWAL_PAUSE.min(life / 16));
        let before_ms = now_ms.saturating_sub(pause);
        let renewed = self
            .store
            .renew(node, shown, new.until_ms, now_ms, before_ms);
        match renewed.await? {
            RenewOutcome::Renewed => {
                self.record(node, "node.renew").await;
                Ok(certificate)
            }
            RenewOutcome::TooSoon => Err(RenewError::TooSoon),
            RenewOutcome::NotItsOwn => Err(RenewError::NotItsOwn),
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
        if !token.is_empty() && store.admin_token(Digest::of(token)).await?.is_some() {
            return Ok(());
        }
    }
    new_admin_token(path, label, store, clock).await
}

/// Makes a new administrator's token and writes it to the file at `path`; the one before, of the same
/// `label`, is void.
pub(crate) async fn new_admin_token(
    path: &Path,
    label: &str,
    store: &Store,
    clock: &Clock,
) -> Result<(), TokenError> {
    let token = format!("{ADMIN_PREFIX}{}", URL_SAFE_NO_PAD.encode(random::<32>()));
    write_secret(path, format!("{token}\n").as_bytes())?;
    store
        .set_admin_token(label, Digest::of(token.as_bytes()), clock.now_ms())
        .await?;
    Ok(())
}

/// Bytes from the system's random generator.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the kernel's random generator does not fail once seeded");
    bytes
}
