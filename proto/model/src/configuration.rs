//! Configurations: what a function's program finds in its environment beside what its manifest says, apart from the
//! code and with numbers of their own.
//!
//! A *configuration* is immutable, like a version, and is signed as one is: its publisher writes a
//! [`ConfigurationStatement`], encodes that once as JSON and signs those bytes behind [`SIGNED_AS`]. The statement has
//! the values of plain entries, and of secret ones only a *commitment*, from which nothing can be learnt or guessed. So
//! whoever makes the next configuration need not know the secrets that stay, and whoever carries a value cannot change
//! it: a node compares.
//!
//! A [`Release`] is what runs: a version with a configuration, or without one.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};

use crate::artifact::PublisherKey;
use crate::ids::{Digest, FunctionName, IdError, VersionId};
use crate::limits::{
    MAX_CONFIGURATION_BYTES, MAX_CONFIGURATION_ENTRIES, MAX_CONFIGURATION_STATEMENT_BYTES,
};
use crate::manifest::check_variable;

/// What is signed begins with this, so that no signature is good for anything else.
pub const SIGNED_AS: &[u8] = b"holm configuration\n";

/// A configuration: the digest of the exact bytes of its statement.
pub type ConfigurationId = Digest;

/// What runs, as nodes and the coordinator name it to each other: see [`Release::id`].
pub type ReleaseId = Digest;

/// What a publisher says of a configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigurationStatement {
    /// The function it is for.
    pub function: FunctionName,
    /// From 1, rising by one; people write it `c1`.
    pub number: u64,
    /// Plain entries. They come before those of the manifest.
    pub env: BTreeMap<String, String>,
    /// Secret entries by name, each with the commitment to its [`Secret`].
    pub secrets: BTreeMap<String, Digest>,
    /// For people.
    pub message: String,
    /// Who made it, as they say themselves.
    pub author: String,
    /// Milliseconds since 1970 UTC.
    pub created_ms: u64,
}

/// A secret entry's value. Neither `Debug` nor anything else that is meant for people shows it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret {
    /// Random, and as secret as the value: without it a short value could be guessed from its commitment.
    salt: [u8; 32],
    value: String,
}

impl Secret {
    /// A value with a salt, which is to be 32 random bytes that nobody else has.
    pub fn new(salt: [u8; 32], value: String) -> Self {
        Secret { salt, value }
    }

    /// What the program is to find.
    pub fn value(&self) -> &str {
        &self.value
    }

    /// The salt, to be kept with the value.
    pub fn salt(&self) -> &[u8; 32] {
        &self.salt
    }

    /// What a statement says of it: SHA-256 over a constant, the salt and the value.
    pub fn commitment(&self) -> Digest {
        let mut bytes = b"holm secret\n".to_vec();
        bytes.extend_from_slice(&self.salt);
        bytes.extend_from_slice(self.value.as_bytes());
        Digest::of(&bytes)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(hidden)")
    }
}

/// Values of secret entries by name.
pub type Secrets = BTreeMap<String, Secret>;

/// A statement's exact bytes and the signature over them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedConfiguration {
    /// JSON of a [`ConfigurationStatement`], verbatim.
    pub statement: Vec<u8>,
    /// Who signed it.
    pub key: PublisherKey,
    /// 64 bytes of Ed25519 over [`SIGNED_AS`] and `statement`.
    pub signature: Vec<u8>,
}

/// A configuration with the values of its secrets, as a node gets it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configuration {
    /// What its publisher says of it.
    pub signed: SignedConfiguration,
    /// One for each that the statement names.
    pub secrets: Secrets,
}

/// A configuration whose signature, entries and secrets have been verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedConfiguration {
    /// Digest of the signed bytes.
    pub id: ConfigurationId,
    /// What was signed.
    pub statement: ConfigurationStatement,
    /// What it commits to.
    pub secrets: Secrets,
}

impl VerifiedConfiguration {
    /// All entries, by name.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &str)> {
        let plain = self.statement.env.iter();
        let plain = plain.map(|(name, value)| (name.as_str(), value.as_str()));
        let secret = self.secrets.iter();
        plain.chain(secret.map(|(name, secret)| (name.as_str(), secret.value())))
    }
}

/// Why a configuration is refused. Every case is its publisher's or its carrier's fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigurationError {
    /// The statement's bytes cannot be read.
    #[error("the publisher's statement of the configuration cannot be read: {0}")]
    Unreadable(String),
    /// Signed with a key that the tenant did not register.
    #[error(
        "the configuration is signed with a key that tenant `{0}` has not registered; sign it with the tenant's own \
         publisher key, or register this one"
    )]
    UnknownKey(String),
    /// The signature does not belong to these bytes.
    #[error(
        "the signature does not match the configuration: it was altered on the way or signed with another key; set \
         it again"
    )]
    BadSignature,
    /// An entry that cannot be.
    #[error("the entry `{name}` is not allowed; it must be {allowed}")]
    Entry {
        /// Its name, cut to a sane length.
        name: String,
        /// What would be.
        allowed: String,
    },
    /// More entries than [`MAX_CONFIGURATION_ENTRIES`].
    #[error(
        "a configuration of {0} entries has more than the {MAX_CONFIGURATION_ENTRIES} allowed; unset some"
    )]
    TooMany(usize),
    /// Longer than [`MAX_CONFIGURATION_BYTES`].
    #[error(
        "the configuration's names and values have {0} bytes together, more than the {MAX_CONFIGURATION_BYTES} \
         allowed; put large data into the function's [files], or where it can fetch it"
    )]
    TooLarge(usize),
    /// A secret's value is not the one that was committed to.
    #[error(
        "the value of the secret `{0}` is not the one that the configuration was signed for: it was altered on the way"
    )]
    OtherSecret(String),
    /// A secret's value did not come along.
    #[error("the value of the secret `{0}` is missing")]
    NoSecret(String),
}

impl SignedConfiguration {
    /// Encodes and signs `statement`.
    pub fn sign(statement: &ConfigurationStatement, key: &SigningKey) -> Self {
        let statement = serde_json::to_vec(statement)
            .expect("a statement has no map with keys that are not text");
        let signature = key.sign(&signed_bytes(&statement)).to_bytes().to_vec();
        SignedConfiguration {
            statement,
            key: PublisherKey(key.verifying_key().to_bytes()),
            signature,
        }
    }

    /// The configuration's id.
    pub fn id(&self) -> ConfigurationId {
        Digest::of(&self.statement)
    }

    /// Checks the signature against the tenant's `trusted` keys, then reads the statement and checks its entries.
    pub fn verify(
        &self,
        trusted: &[PublisherKey],
    ) -> Result<ConfigurationStatement, ConfigurationError> {
        use ConfigurationError::{BadSignature, Unreadable};
        if self.statement.len() > MAX_CONFIGURATION_STATEMENT_BYTES {
            return Err(Unreadable("it is too large".into()));
        }
        let key = VerifyingKey::from_bytes(&self.key.0).map_err(|_| BadSignature)?;
        let signature = Signature::from_slice(&self.signature).map_err(|_| BadSignature)?;
        key.verify_strict(&signed_bytes(&self.statement), &signature)
            .map_err(|_| BadSignature)?;
        let statement: ConfigurationStatement = serde_json::from_slice(&self.statement)
            // Of what is there nothing is told: it may be a secret in the wrong place.
            .map_err(|error| {
                Unreadable(format!("line {}, column {}", error.line(), error.column()))
            })?;
        if !trusted.contains(&self.key) {
            let tenant = statement.function.tenant.to_string();
            return Err(ConfigurationError::UnknownKey(tenant));
        }
        statement.check()?;
        Ok(statement)
    }
}

impl Configuration {
    /// Checks all of it: signature, entries, and that each secret is the one that was signed for.
    pub fn verify(
        &self,
        trusted: &[PublisherKey],
    ) -> Result<VerifiedConfiguration, ConfigurationError> {
        let statement = self.signed.verify(trusted)?;
        statement.check_secrets(&self.secrets)?;
        Ok(VerifiedConfiguration {
            id: self.signed.id(),
            statement,
            secrets: self.secrets.clone(),
        })
    }
}

impl ConfigurationStatement {
    /// Checks what can be checked without the secrets' values.
    pub fn check(&self) -> Result<(), ConfigurationError> {
        let entries = self.env.len() + self.secrets.len();
        if entries > MAX_CONFIGURATION_ENTRIES {
            return Err(ConfigurationError::TooMany(entries));
        }
        if self.number == 0 || i64::try_from(self.number).is_err() {
            let why = format!("its number is {}, not 1 to 2^63", self.number);
            return Err(ConfigurationError::Unreadable(why));
        }
        for (name, value) in &self.env {
            check_entry(name, value)?;
        }
        for name in self.secrets.keys() {
            check_entry(name, "")?;
            if self.env.contains_key(name) {
                return Err(refused(name, "either plain or secret, not both"));
            }
        }
        self.check_bytes(&Secrets::new())
    }

    /// Checks that `secrets` are those that the statement commits to, all of them and no others.
    pub fn check_secrets(&self, secrets: &Secrets) -> Result<(), ConfigurationError> {
        for (name, commitment) in &self.secrets {
            match secrets.get(name) {
                None => return Err(ConfigurationError::NoSecret(name.clone())),
                Some(secret) if secret.commitment() != *commitment => {
                    return Err(ConfigurationError::OtherSecret(name.clone()));
                }
                Some(secret) => check_entry(name, secret.value())?,
            }
        }
        if let Some(name) = secrets
            .keys()
            .find(|name| !self.secrets.contains_key(*name))
        {
            return Err(ConfigurationError::OtherSecret(cut(name)));
        }
        self.check_bytes(secrets)
    }

    fn check_bytes(&self, secrets: &Secrets) -> Result<(), ConfigurationError> {
        let plain = self
            .env
            .iter()
            .map(|(name, value)| name.len() + value.len());
        let names = self.secrets.keys().map(String::len);
        let values = secrets.values().map(|secret| secret.value().len());
        let bytes = plain.chain(names).chain(values).sum();
        match bytes {
            0..=MAX_CONFIGURATION_BYTES => Ok(()),
            _ => Err(ConfigurationError::TooLarge(bytes)),
        }
    }
}

/// Checks one entry of a configuration.
pub fn check_entry(name: &str, value: &str) -> Result<(), ConfigurationError> {
    let good = |(place, byte): (usize, u8)| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'_' => true,
        b'0'..=b'9' => place > 0,
        _ => false,
    };
    if name.is_empty() || name.len() > 255 || !name.bytes().enumerate().all(good) {
        let allowed = "named with 1 to 255 letters, digits and `_`, and no digit first";
        return Err(refused(name, allowed));
    }
    check_variable(name, value).map_err(|allowed| refused(name, &allowed))
}

fn refused(name: &str, allowed: &str) -> ConfigurationError {
    ConfigurationError::Entry {
        name: cut(name),
        allowed: allowed.to_owned(),
    }
}

/// As much of a name as an error message can carry.
fn cut(name: &str) -> String {
    name.chars().take(80).collect()
}

fn signed_bytes(statement: &[u8]) -> Vec<u8> {
    [SIGNED_AS, statement].concat()
}

/// A version with a configuration, or without one: what a node prepares, probes and serves.
///
/// Written as the version's id, and behind a `+` the configuration's if there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Release {
    /// The code.
    pub version: VersionId,
    /// What its environment is made of beside the manifest.
    pub configuration: Option<ConfigurationId>,
}

impl Release {
    /// Its name between nodes and coordinator, wherever one reports of what the other asked for. Without a
    /// configuration it is the version's.
    pub fn id(&self) -> ReleaseId {
        match self.configuration {
            None => self.version,
            Some(configuration) => {
                let parts = [&b"holm release\n"[..], &self.version.0, &configuration.0];
                Digest::of(&parts.concat())
            }
        }
    }
}

impl From<VersionId> for Release {
    fn from(version: VersionId) -> Self {
        Release {
            version,
            configuration: None,
        }
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.version)?;
        match self.configuration {
            Some(configuration) => write!(f, "+{configuration}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Release {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let (version, configuration) = match text.split_once('+') {
            None => (text, None),
            Some((version, configuration)) => (version, Some(configuration.parse()?)),
        };
        Ok(Release {
            version: version.parse()?,
            configuration,
        })
    }
}

impl TryFrom<String> for Release {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}

impl From<Release> for String {
    fn from(release: Release) -> String {
        release.to_string()
    }
}

/// What people read of a release: the version's label, and behind a `+` the configuration's number.
pub fn release_label(label: &str, configuration: Option<u64>) -> String {
    match configuration {
        None => label.to_owned(),
        Some(number) => format!("{label}+c{number}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_bytes(&[seed; 32])
    }

    fn public(key: &SigningKey) -> PublisherKey {
        PublisherKey(key.verifying_key().to_bytes())
    }

    fn secret() -> Secret {
        Secret::new([5; 32], "hunter2".into())
    }

    fn statement() -> ConfigurationStatement {
        ConfigurationStatement {
            function: "acme/hello".parse().unwrap(),
            number: 1,
            env: BTreeMap::from([("GREETING".into(), "hello".into())]),
            secrets: BTreeMap::from([("PASSWORD".into(), secret().commitment())]),
            message: String::new(),
            author: String::new(),
            created_ms: 1_700_000_000_000,
        }
    }

    fn configuration() -> Configuration {
        Configuration {
            signed: SignedConfiguration::sign(&statement(), &key(1)),
            secrets: Secrets::from([("PASSWORD".into(), secret())]),
        }
    }

    #[test]
    fn a_signed_configuration_verifies_with_its_secrets() {
        let verified = configuration().verify(&[public(&key(1))]).unwrap();
        assert_eq!(verified.statement, statement());
        let entries: Vec<_> = verified.entries().collect();
        assert_eq!(entries, [("GREETING", "hello"), ("PASSWORD", "hunter2")]);
    }

    #[test]
    fn every_altered_byte_of_a_statement_is_noticed() {
        let trusted = [public(&key(1))];
        let good = SignedConfiguration::sign(&statement(), &key(1));
        for index in 0..good.statement.len() {
            let mut bad = good.clone();
            bad.statement[index] ^= 1;
            assert_eq!(
                bad.verify(&trusted),
                Err(ConfigurationError::BadSignature),
                "{index}"
            );
        }
    }

    #[test]
    fn a_key_that_is_not_trusted_or_another_ones_signature_is_refused() {
        let trusted = [public(&key(1))];
        let mut signed = SignedConfiguration::sign(&statement(), &key(2));
        let unknown = ConfigurationError::UnknownKey("acme".into());
        assert_eq!(signed.verify(&trusted), Err(unknown));
        signed.key = trusted[0];
        assert_eq!(
            signed.verify(&trusted),
            Err(ConfigurationError::BadSignature)
        );
    }

    #[test]
    fn a_signature_over_the_bare_statement_is_none_over_a_configuration() {
        let mut signed = SignedConfiguration::sign(&statement(), &key(1));
        signed.signature = key(1).sign(&signed.statement).to_bytes().to_vec();
        let refused = signed.verify(&[public(&key(1))]);
        assert_eq!(refused, Err(ConfigurationError::BadSignature));
    }

    #[test]
    fn a_secret_that_was_changed_left_out_or_added_on_the_way_is_noticed() {
        let trusted = [public(&key(1))];
        let mut changed = configuration();
        let other = Secret::new([5; 32], "hunter3".into());
        changed.secrets.insert("PASSWORD".into(), other.clone());
        let expected = ConfigurationError::OtherSecret("PASSWORD".into());
        assert_eq!(changed.verify(&trusted), Err(expected));
        let mut left_out = configuration();
        left_out.secrets.clear();
        let expected = ConfigurationError::NoSecret("PASSWORD".into());
        assert_eq!(left_out.verify(&trusted), Err(expected));
        let mut added = configuration();
        added.secrets.insert("LD_PRELOAD".into(), other);
        let expected = ConfigurationError::OtherSecret("LD_PRELOAD".into());
        assert_eq!(added.verify(&trusted), Err(expected));
    }

    #[test]
    fn a_secret_is_not_shown_and_its_commitment_depends_on_the_salt() {
        let shown = format!("{:?} {:?}", secret(), configuration());
        assert!(!shown.contains("hunter2"), "{shown}");
        let salted = Secret::new([6; 32], "hunter2".into());
        assert_ne!(secret().commitment(), salted.commitment());
    }

    #[test]
    fn names_that_holm_sets_or_that_a_shell_could_not_have_are_refused() {
        for name in [
            "PORT",
            "HOLM_X",
            "",
            "1A",
            "A-B",
            "A B",
            "A=B",
            "Ä",
            &"A".repeat(256),
        ] {
            assert!(check_entry(name, "x").is_err(), "{name}");
        }
        for name in ["A", "_", "a1", "DATABASE_URL", &"A".repeat(255)] {
            assert_eq!(check_entry(name, "x"), Ok(()), "{name}");
        }
        assert!(check_entry("A", "nul\0").is_err());
    }

    #[test]
    fn a_configuration_has_bounds() {
        let mut many = statement();
        many.env = (0..MAX_CONFIGURATION_ENTRIES)
            .map(|n| (format!("A{n}"), String::new()))
            .collect();
        let entries = MAX_CONFIGURATION_ENTRIES + 1;
        assert_eq!(many.check(), Err(ConfigurationError::TooMany(entries)));
        let mut large = statement();
        large
            .env
            .insert("A".into(), "x".repeat(MAX_CONFIGURATION_BYTES));
        assert!(matches!(
            large.check(),
            Err(ConfigurationError::TooLarge(_))
        ));
        // The largest secret that there can be makes it too large only when its value is at hand.
        let mut secret = statement();
        let value = Secret::new([1; 32], "x".repeat(MAX_CONFIGURATION_BYTES));
        secret.secrets = BTreeMap::from([("A".into(), value.commitment())]);
        assert_eq!(secret.check(), Ok(()));
        let too_large = secret.check_secrets(&Secrets::from([("A".into(), value)]));
        assert!(matches!(too_large, Err(ConfigurationError::TooLarge(_))));
        let mut both = statement();
        both.env.insert("PASSWORD".into(), "plain".into());
        assert!(matches!(
            both.check(),
            Err(ConfigurationError::Entry { .. })
        ));
    }

    #[test]
    fn a_release_without_a_configuration_is_named_as_its_version() {
        let version = Digest::of(b"version");
        let plain = Release::from(version);
        assert_eq!(plain.id(), version);
        let configured = Release {
            version,
            configuration: Some(Digest::of(b"configuration")),
        };
        assert_ne!(configured.id(), version);
        for release in [plain, configured] {
            assert_eq!(release.to_string().parse(), Ok(release));
        }
    }
}
