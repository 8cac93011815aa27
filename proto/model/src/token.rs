//! API tokens: who shows one may do what it allows, and whoever has one can make a weaker one.
//!
//! A token is an id, a list of *caveats*, each of which takes something away, and a chain of
//! HMAC-SHA256 over them (as in macaroons: Birgisson et al., NDSS 2014). The chain begins with a
//! secret that the coordinator derives from the id; each caveat's code is made with the code before
//! it as the key, and only the last one is in the token. So a caveat can be added by anybody and taken
//! off by nobody, and what revokes the id revokes all that was made from it.
//!
//! Written `holm-api-1.ID.CAVEATS.CODE`: hexadecimal digits, then twice base64url.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac as _};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use crate::ids::Name;
use crate::limits::{MAX_CAVEAT_BYTES, MAX_CAVEATS};

const PREFIX: &str = "holm-api-1.";

/// What a token may be allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verb {
    /// Look at functions, versions, rollouts, nodes and routes.
    Read,
    /// Read what functions wrote.
    Logs,
    /// Read usage and its records.
    Usage,
    /// Hand over artifacts, publish versions and tag them.
    Deploy,
    /// Start and abort rollouts, and roll back.
    Rollout,
    /// Let nodes join, take them out of service, and label them.
    Nodes,
    /// Everything: the other verbs, and tenants, keys, tokens and the audit log.
    Admin,
}

impl Verb {
    /// All of them.
    pub const ALL: [Verb; 7] = [
        Verb::Read,
        Verb::Logs,
        Verb::Usage,
        Verb::Deploy,
        Verb::Rollout,
        Verb::Nodes,
        Verb::Admin,
    ];

    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Verb::Read => "read",
            Verb::Logs => "logs",
            Verb::Usage => "usage",
            Verb::Deploy => "deploy",
            Verb::Rollout => "rollout",
            Verb::Nodes => "nodes",
            Verb::Admin => "admin",
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Verb {
    type Err = TokenError;
    fn from_str(text: &str) -> Result<Self, TokenError> {
        Verb::ALL
            .into_iter()
            .find(|verb| verb.as_str() == text)
            .ok_or_else(|| TokenError::Verb(text.chars().take(40).collect()))
    }
}

/// Why a text is no token, or a token cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// The text.
    #[error(
        "this is not an API token that can be made weaker (it begins with `{PREFIX}`); get one with `holm tokens create`"
    )]
    NotOne,
    /// A verb.
    #[error("`{0}` is not a verb of a token: read, logs, usage, deploy, rollout, nodes or admin")]
    Verb(String),
    /// A newer Holm may know it; who does not must not let it pass.
    #[error("the token has a caveat that is not known here: `{0}`")]
    Caveat(String),
    /// There are bounds.
    #[error(
        "the token would have more than the {MAX_CAVEATS} caveats of {MAX_CAVEAT_BYTES} bytes \
         allowed"
    )]
    TooMany,
}

/// Something that is taken away from a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caveat {
    /// Every verb but these.
    Verbs(BTreeSet<Verb>),
    /// Every tenant but these, and what is nobody's.
    Tenants(BTreeSet<Name>),
    /// Everything from this time on, milliseconds since 1970 UTC.
    Before(u64),
}

impl fmt::Display for Caveat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Caveat::Verbs(verbs) => write!(f, "verbs={}", list(verbs)),
            Caveat::Tenants(tenants) => write!(f, "tenants={}", list(tenants)),
            Caveat::Before(ms) => write!(f, "before={ms}"),
        }
    }
}

impl FromStr for Caveat {
    type Err = TokenError;
    fn from_str(text: &str) -> Result<Self, TokenError> {
        let unknown = || TokenError::Caveat(text.chars().take(80).collect());
        let (what, value) = text.split_once('=').ok_or_else(unknown)?;
        Ok(match what {
            "verbs" => Caveat::Verbs(parts(value).map_err(|()| unknown())?),
            "tenants" => Caveat::Tenants(parts(value).map_err(|()| unknown())?),
            "before" => Caveat::Before(value.parse().map_err(|_| unknown())?),
            _ => return Err(unknown()),
        })
    }
}

/// What a token allows: all that no caveat of it takes away.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    /// Every verb if none.
    pub verbs: Option<BTreeSet<Verb>>,
    /// Every tenant, and what is nobody's, if none.
    pub tenants: Option<BTreeSet<Name>>,
    /// For ever if none; milliseconds since 1970 UTC.
    pub before_ms: Option<u64>,
}

impl Grant {
    /// What is left of it.
    pub fn restrict(&mut self, caveat: Caveat) {
        match caveat {
            Caveat::Verbs(verbs) => {
                // Who may do everything is left with what is named.
                let left = |own: BTreeSet<Verb>| match (
                    own.contains(&Verb::Admin),
                    verbs.contains(&Verb::Admin),
                ) {
                    (true, _) => verbs.clone(),
                    (false, true) => own,
                    (false, false) => own.intersection(&verbs).copied().collect(),
                };
                self.verbs = Some(self.verbs.take().map_or(verbs.clone(), left));
            }
            Caveat::Tenants(tenants) => {
                let left = |own: BTreeSet<Name>| own.intersection(&tenants).cloned().collect();
                self.tenants = Some(self.tenants.take().map_or(tenants.clone(), left));
            }
            Caveat::Before(ms) => {
                self.before_ms = Some(self.before_ms.map_or(ms, |own| own.min(ms)));
            }
        }
    }

    /// Whether it has the verb.
    pub fn may(&self, verb: Verb) -> bool {
        let verbs = self.verbs.as_ref();
        verbs.is_none_or(|verbs| verbs.contains(&verb) || verbs.contains(&Verb::Admin))
    }

    /// Whether it reaches the tenant.
    pub fn reaches(&self, tenant: &Name) -> bool {
        let tenants = self.tenants.as_ref();
        tenants.is_none_or(|tenants| tenants.contains(tenant))
    }

    /// Whether it reaches all of them, and what is nobody's.
    pub fn reaches_all(&self) -> bool {
        self.tenants.is_none()
    }
}

/// For people.
impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.verbs {
            None => f.write_str("every verb")?,
            Some(verbs) if verbs.is_empty() => f.write_str("no verb")?,
            Some(verbs) => f.write_str(&list(verbs))?,
        }
        match &self.tenants {
            None => f.write_str(" for all tenants"),
            Some(tenants) if tenants.is_empty() => f.write_str(" for no tenant"),
            Some(tenants) => write!(f, " for {}", list(tenants)),
        }
    }
}

/// A token as it is shown. That its code is right only the coordinator can tell.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiToken {
    id: TokenId,
    /// As they are written, which is what the code is over.
    caveats: Vec<String>,
    code: [u8; 32],
}

/// Of a token and of all that is made from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TokenId(pub [u8; 16]);

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl ApiToken {
    /// Its id.
    pub fn id(&self) -> TokenId {
        self.id
    }

    /// Its caveats as they are written, the first ones the coordinator's.
    pub fn caveats(&self) -> &[String] {
        &self.caveats
    }

    /// What its caveats leave.
    pub fn grant(&self) -> Result<Grant, TokenError> {
        let mut grant = Grant::default();
        for caveat in &self.caveats {
            grant.restrict(caveat.parse()?);
        }
        Ok(grant)
    }

    /// The token with one thing more taken away.
    pub fn weaken(mut self, caveat: &Caveat) -> Result<Self, TokenError> {
        let caveat = caveat.to_string();
        if self.caveats.len() >= MAX_CAVEATS || caveat.len() > MAX_CAVEAT_BYTES {
            return Err(TokenError::TooMany);
        }
        self.code = code(&self.code, caveat.as_bytes());
        self.caveats.push(caveat);
        Ok(self)
    }
}

/// The coordinator's key, from which every token's secret follows.
#[derive(Clone)]
pub struct TokenKey([u8; 32]);

impl TokenKey {
    /// From a secret that serves for something else as well.
    pub fn derive(secret: &[u8]) -> Self {
        TokenKey(code(secret, b"holm api tokens 1"))
    }

    /// A token that allows everything.
    pub fn mint(&self, id: TokenId) -> ApiToken {
        ApiToken {
            id,
            caveats: Vec::new(),
            code: code(&self.0, &id.0),
        }
    }

    /// Whether the token was made from one of this key's, by adding caveats alone.
    pub fn made(&self, token: &ApiToken) -> bool {
        let (mut key, mut text) = (self.0, &token.id.0[..]);
        for caveat in &token.caveats {
            key = code(&key, text);
            text = caveat.as_bytes();
        }
        // In a time that does not depend on where the codes differ.
        keyed(&key)
            .chain_update(text)
            .verify_slice(&token.code)
            .is_ok()
    }
}

fn keyed(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("HMAC takes keys of any length")
}

fn code(key: &[u8], text: &[u8]) -> [u8; 32] {
    keyed(key).chain_update(text).finalize().into_bytes().into()
}

impl FromStr for ApiToken {
    type Err = TokenError;
    fn from_str(text: &str) -> Result<Self, TokenError> {
        let parts = text.trim().strip_prefix(PREFIX).ok_or(TokenError::NotOne)?;
        let mut parts = parts.split('.');
        let (Some(id), Some(caveats), Some(code), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(TokenError::NotOne);
        };
        let not_one = |_| TokenError::NotOne;
        let mut token = ApiToken {
            id: TokenId([0; 16]),
            caveats: Vec::new(),
            code: [0; 32],
        };
        hex::decode_to_slice(id, &mut token.id.0).map_err(|_| TokenError::NotOne)?;
        if caveats.len() > 2 * MAX_CAVEATS * MAX_CAVEAT_BYTES {
            return Err(TokenError::TooMany);
        }
        let caveats = URL_SAFE_NO_PAD.decode(caveats).map_err(not_one)?;
        let caveats = String::from_utf8(caveats).map_err(|_| TokenError::NotOne)?;
        token.caveats = caveats.lines().map(str::to_owned).collect();
        let long = |caveat: &String| caveat.len() > MAX_CAVEAT_BYTES;
        if token.caveats.len() > MAX_CAVEATS || token.caveats.iter().any(long) {
            return Err(TokenError::TooMany);
        }
        let code = URL_SAFE_NO_PAD.decode(code).map_err(not_one)?;
        token.code = code.try_into().map_err(|_| TokenError::NotOne)?;
        Ok(token)
    }
}

/// The whole secret.
impl fmt::Display for ApiToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let caveats = URL_SAFE_NO_PAD.encode(self.caveats.join("\n"));
        let code = URL_SAFE_NO_PAD.encode(self.code);
        write!(f, "{PREFIX}{}.{caveats}.{code}", self.id)
    }
}

impl fmt::Debug for ApiToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ApiToken({}, {:?})", self.id, self.caveats)
    }
}

fn list<T: fmt::Display>(items: &BTreeSet<T>) -> String {
    let items: Vec<String> = items.iter().map(T::to_string).collect();
    items.join(",")
}

/// What [`list`] wrote; nothing at all is no list.
fn parts<T: FromStr + Ord>(text: &str) -> Result<BTreeSet<T>, ()> {
    text.split(',')
        .map(|part| part.parse().map_err(|_| ()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> TokenKey {
        TokenKey::derive(b"a secret")
    }

    fn verbs(of: &[Verb]) -> Caveat {
        Caveat::Verbs(of.iter().copied().collect())
    }

    fn tenants(of: &[&str]) -> Caveat {
        Caveat::Tenants(of.iter().map(|name| name.parse().unwrap()).collect())
    }

    #[test]
    fn a_token_comes_back_as_written_and_is_known_by_its_key_alone() {
        let token = key().mint(TokenId([7; 16]));
        let token = token.weaken(&verbs(&[Verb::Read, Verb::Deploy])).unwrap();
        let token = token.weaken(&tenants(&["acme"])).unwrap();
        let token = token.weaken(&Caveat::Before(1000)).unwrap();
        let read: ApiToken = format!(" {token}\n").parse().unwrap();
        assert_eq!(read, token);
        assert!(key().made(&read));
        assert!(!TokenKey::derive(b"another").made(&read));
        assert_eq!(read.grant().unwrap().to_string(), "read,deploy for acme");
    }

    #[test]
    fn every_altered_byte_of_a_token_is_noticed() {
        let token = key().mint(TokenId([7; 16]));
        let token = token.weaken(&tenants(&["acme"])).unwrap();
        let text = token.weaken(&verbs(&[Verb::Read])).unwrap().to_string();
        for at in PREFIX.len()..text.len() {
            for other in ["a", "B", "7", "_"] {
                let mut altered = text.clone();
                altered.replace_range(at..=at, other);
                let Ok(token) = altered.parse::<ApiToken>() else {
                    continue;
                };
                assert!(altered == text || !key().made(&token), "{altered}");
            }
        }
    }

    #[test]
    fn a_caveat_can_be_added_and_neither_taken_off_nor_moved() {
        let root = key().mint(TokenId([1; 16]));
        let weak = root.weaken(&verbs(&[Verb::Read])).unwrap();
        let weak = weak.weaken(&tenants(&["acme"])).unwrap();
        assert!(key().made(&weak));
        let mut off = weak.clone();
        off.caveats.pop();
        let mut swapped = weak.clone();
        swapped.caveats.swap(0, 1);
        let mut none = weak.clone();
        none.caveats.clear();
        let mut joined = weak.clone();
        joined.caveats = vec![weak.caveats.concat()];
        for forged in [off, swapped, none, joined] {
            assert!(!key().made(&forged), "{forged:?}");
        }
    }

    #[test]
    fn a_weaker_token_never_has_more_than_the_one_it_was_made_from() {
        let mut grant = Grant::default();
        grant.restrict(verbs(&[Verb::Read, Verb::Usage]));
        grant.restrict(verbs(&[Verb::Usage, Verb::Deploy]));
        assert!(grant.may(Verb::Usage) && !grant.may(Verb::Read) && !grant.may(Verb::Deploy));
        grant.restrict(verbs(&[Verb::Admin]));
        assert!(grant.may(Verb::Usage) && !grant.may(Verb::Nodes));
        grant.restrict(tenants(&["acme", "beta"]));
        grant.restrict(tenants(&["beta", "gamma"]));
        let reaches = |name: &str| grant.reaches(&name.parse().unwrap());
        assert!(reaches("beta") && !reaches("acme") && !reaches("gamma"));
        assert!(!grant.reaches_all());
        grant.restrict(Caveat::Before(10));
        grant.restrict(Caveat::Before(20));
        assert_eq!(grant.before_ms, Some(10));

        let mut admin = Grant::default();
        admin.restrict(verbs(&[Verb::Admin]));
        assert!(Verb::ALL.into_iter().all(|verb| admin.may(verb)));
        admin.restrict(verbs(&[Verb::Deploy]));
        assert!(admin.may(Verb::Deploy) && !admin.may(Verb::Admin) && !admin.may(Verb::Read));
    }

    #[test]
    fn a_caveat_that_is_not_known_lets_nothing_pass() {
        let mut token = key().mint(TokenId([1; 16]));
        for caveat in [
            "verbs=",
            "verbs=fly",
            "tenants=",
            "before=x",
            "source=10.0.0.1",
            "",
        ] {
            token.caveats = vec![caveat.to_owned()];
            assert!(token.grant().is_err(), "{caveat}");
        }
    }

    #[test]
    fn tokens_have_bounds() {
        let mut token = key().mint(TokenId([1; 16]));
        for n in 0..MAX_CAVEATS as u64 {
            token = token.weaken(&Caveat::Before(n)).unwrap();
        }
        assert!(key().made(&token.to_string().parse().unwrap()));
        assert_eq!(token.weaken(&Caveat::Before(0)), Err(TokenError::TooMany));
        for bad in [
            "",
            "holm-admin-1.x",
            "holm-api-1.",
            "holm-api-1.00.x.y",
            "holm-api-1.a.b.c.d",
        ] {
            assert_eq!(bad.parse::<ApiToken>(), Err(TokenError::NotOne), "{bad}");
        }
    }
}
