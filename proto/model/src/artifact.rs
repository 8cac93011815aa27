//! Versions and their signatures.
//!
//! A *version* is an immutable pair of artifact digest and manifest. Its publisher writes both into a
//! [`Statement`], encodes that once as JSON and signs exactly those bytes. The bytes travel verbatim
//! and are never encoded again; their SHA-256 is the [`VersionId`].

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};

use crate::ids::{Digest, FunctionName, VersionId};
use crate::limits::{MAX_ARTIFACT_BYTES, MAX_MANIFEST_BYTES};
use crate::manifest::Manifest;

/// What a publisher says of a version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Statement {
    /// The function it is a version of.
    pub function: FunctionName,
    /// Rises with every version of the function; a lower one is refused as a rollback.
    pub counter: u64,
    /// Digest of the program's bytes.
    pub artifact: Digest,
    /// Number of the program's bytes.
    pub artifact_bytes: u64,
    /// What the function is allowed.
    pub manifest: Manifest,
    /// Label for people, for example `v2`.
    pub label: String,
    /// For people.
    pub message: String,
    /// Who made it, as they say themselves; the signature is by whoever has the key.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub author: String,
    /// Milliseconds since 1970 UTC.
    pub created_ms: u64,
}

/// The public half of a publisher's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PublisherKey(pub [u8; 32]);

/// A text is not a publisher's key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is not a publisher's public key: 32 bytes in standard base64")]
pub struct PublisherKeyError;

impl FromStr for PublisherKey {
    type Err = PublisherKeyError;
    fn from_str(text: &str) -> Result<Self, PublisherKeyError> {
        let bytes = BASE64.decode(text).map_err(|_| PublisherKeyError)?;
        Ok(PublisherKey(
            bytes.try_into().map_err(|_| PublisherKeyError)?,
        ))
    }
}

impl fmt::Display for PublisherKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64.encode(self.0))
    }
}

/// A statement's exact bytes and the signature over them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedVersion {
    /// JSON of a [`Statement`], verbatim.
    pub statement: Vec<u8>,
    /// Who signed it.
    pub key: PublisherKey,
    /// 64 bytes of Ed25519 over `statement`.
    pub signature: Vec<u8>,
}

/// A statement whose signature by a trusted key has been verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedVersion {
    /// Digest of the signed bytes.
    pub id: VersionId,
    /// What was signed.
    pub statement: Statement,
}

/// Why a version or an artifact is refused. Every case is the publisher's or the carrier's fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VersionError {
    /// The statement's bytes cannot be read.
    #[error("the publisher's statement cannot be read: {0}")]
    Unreadable(String),
    /// Signed with a key that the tenant did not register.
    #[error(
        "the version is signed with a key that tenant `{0}` has not registered; deploy with the \
         tenant's own publisher key, or register this one"
    )]
    UnknownKey(String),
    /// The signature does not belong to these bytes.
    #[error(
        "the signature does not match the statement: it was altered on the way or signed with \
         another key; deploy again from the source"
    )]
    BadSignature,
    /// The artifact is not the one that was signed.
    #[error(
        "the artifact's digest is {found}, but the signed statement says {signed}; it was altered or mixed up on the way, deploy again from the source"
    )]
    WrongDigest {
        /// In the statement.
        signed: Digest,
        /// Of the bytes at hand.
        found: Digest,
    },
    /// The artifact has another length than was signed.
    #[error("the artifact has {found} bytes, but the signed statement says {signed}")]
    WrongSize {
        /// In the statement.
        signed: u64,
        /// Of the bytes at hand.
        found: u64,
    },
}

impl SignedVersion {
    /// Encodes and signs `statement`.
    pub fn sign(statement: &Statement, key: &SigningKey) -> Self {
        let statement = serde_json::to_vec(statement)
            .expect("a statement has no map with keys that are not text");
        let signature = key.sign(&statement).to_bytes().to_vec();
        SignedVersion {
            statement,
            key: PublisherKey(key.verifying_key().to_bytes()),
            signature,
        }
    }

    /// The version's id.
    pub fn id(&self) -> VersionId {
        Digest::of(&self.statement)
    }

    /// Checks the signature against the tenant's `trusted` keys, then reads the statement.
    pub fn verify(&self, trusted: &[PublisherKey]) -> Result<VerifiedVersion, VersionError> {
        if self.statement.len() as u64 > 2 * MAX_MANIFEST_BYTES {
            return Err(VersionError::Unreadable("it is too large".into()));
        }
        let key = VerifyingKey::from_bytes(&self.key.0).map_err(|_| VersionError::BadSignature)?;
        let signature =
            Signature::from_slice(&self.signature).map_err(|_| VersionError::BadSignature)?;
        key.verify_strict(&self.statement, &signature)
            .map_err(|_| VersionError::BadSignature)?;
        let statement: Statement = serde_json::from_slice(&self.statement)
            .map_err(|error| VersionError::Unreadable(error.to_string()))?;
        statement
            .manifest
            .check()
            .map_err(|error| VersionError::Unreadable(error.to_string()))?;
        if statement.artifact_bytes > MAX_ARTIFACT_BYTES {
            return Err(VersionError::Unreadable(format!(
                "its artifact has {} bytes, more than the {MAX_ARTIFACT_BYTES} allowed",
                statement.artifact_bytes
            )));
        }
        if !trusted.contains(&self.key) {
            return Err(VersionError::UnknownKey(
                statement.function.tenant.to_string(),
            ));
        }
        Ok(VerifiedVersion {
            id: self.id(),
            statement,
        })
    }
}

impl Statement {
    /// A digest of what the version does: function, artifact and manifest, but not its counter,
    /// label, message or time. A publisher compares it to see whether there is anything to deploy.
    pub fn content(&self) -> Digest {
        let content = serde_json::to_vec(&(&self.function, &self.artifact, &self.manifest))
            .expect("a statement has no map with keys that are not text");
        Digest::of(&content)
    }

    /// Checks that `artifact` is the one that was signed.
    pub fn check_artifact(&self, artifact: &[u8]) -> Result<(), VersionError> {
        let found = artifact.len() as u64;
        if found != self.artifact_bytes {
            return Err(VersionError::WrongSize {
                signed: self.artifact_bytes,
                found,
            });
        }
        let found = Digest::of(artifact);
        if found != self.artifact {
            return Err(VersionError::WrongDigest {
                signed: self.artifact,
                found,
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROGRAM: &[u8] = b"the program";

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_bytes(&[seed; 32])
    }

    fn statement() -> Statement {
        Statement {
            function: "acme/hello".parse().unwrap(),
            counter: 1,
            artifact: Digest::of(PROGRAM),
            artifact_bytes: PROGRAM.len() as u64,
            manifest: Manifest::from_toml("schema = 1\n[function]\nname = \"hello\"").unwrap(),
            label: "v1".into(),
            message: String::new(),
            author: String::new(),
            created_ms: 1_700_000_000_000,
        }
    }

    fn public(key: &SigningKey) -> PublisherKey {
        PublisherKey(key.verifying_key().to_bytes())
    }

    #[test]
    fn a_signed_statement_verifies_and_its_id_is_the_digest_of_its_bytes() {
        let signed = SignedVersion::sign(&statement(), &key(1));
        let verified = signed.verify(&[public(&key(2)), public(&key(1))]).unwrap();
        assert_eq!(verified.statement, statement());
        assert_eq!(verified.id, Digest::of(&signed.statement));
    }

    #[test]
    fn every_altered_byte_of_a_statement_is_noticed() {
        let good = SignedVersion::sign(&statement(), &key(1));
        for index in 0..good.statement.len() {
            let mut bad = good.clone();
            bad.statement[index] ^= 1;
            assert_eq!(
                bad.verify(&[public(&key(1))]),
                Err(VersionError::BadSignature),
                "{index}"
            );
        }
    }

    #[test]
    fn a_signature_of_another_key_or_length_is_refused() {
        let trusted = [public(&key(1))];
        let mut signed = SignedVersion::sign(&statement(), &key(2));
        signed.key = trusted[0];
        assert_eq!(signed.verify(&trusted), Err(VersionError::BadSignature));
        let mut signed = SignedVersion::sign(&statement(), &key(1));
        signed.signature.pop();
        assert_eq!(signed.verify(&trusted), Err(VersionError::BadSignature));
        signed.signature.clear();
        assert_eq!(signed.verify(&trusted), Err(VersionError::BadSignature));
    }

    #[test]
    fn a_key_that_the_tenant_has_not_registered_is_refused_by_the_tenants_name() {
        let signed = SignedVersion::sign(&statement(), &key(2));
        let error = signed.verify(&[public(&key(1))]).unwrap_err();
        assert_eq!(error, VersionError::UnknownKey("acme".into()));
        assert!(error.to_string().contains("`acme`"), "{error}");
    }

    #[test]
    fn a_signed_manifest_is_checked_like_one_from_a_file() {
        let mut statement = statement();
        statement.manifest.limits.memory_bytes = u64::MAX;
        let signed = SignedVersion::sign(&statement, &key(1));
        let error = signed.verify(&[public(&key(1))]).unwrap_err().to_string();
        assert!(error.contains("limits.memory"), "{error}");
    }

    #[test]
    fn a_signed_statement_of_absurd_size_is_refused() {
        let mut long = statement();
        long.message = "x".repeat(200_000);
        let error = SignedVersion::sign(&long, &key(1))
            .verify(&[public(&key(1))])
            .unwrap_err();
        assert!(matches!(error, VersionError::Unreadable(_)), "{error}");
        let mut large = statement();
        large.artifact_bytes = MAX_ARTIFACT_BYTES + 1;
        let error = SignedVersion::sign(&large, &key(1))
            .verify(&[public(&key(1))])
            .unwrap_err();
        assert!(matches!(error, VersionError::Unreadable(_)), "{error}");
    }

    #[test]
    fn an_artifact_that_is_not_the_signed_one_is_refused() {
        assert_eq!(statement().check_artifact(PROGRAM), Ok(()));
        let other = statement().check_artifact(b"the Program").unwrap_err();
        assert!(matches!(other, VersionError::WrongDigest { .. }), "{other}");
        assert!(
            other
                .to_string()
                .contains(&Digest::of(b"the Program").to_string()),
            "{other}"
        );
        let short = statement().check_artifact(b"the").unwrap_err();
        assert_eq!(
            short,
            VersionError::WrongSize {
                signed: 11,
                found: 3
            }
        );
    }

    #[test]
    fn a_publisher_key_comes_back_from_its_text() {
        let public = public(&key(3));
        assert_eq!(public.to_string().parse(), Ok(public));
        for bad in ["", "AAAA", "not base64!"] {
            assert_eq!(bad.parse::<PublisherKey>(), Err(PublisherKeyError), "{bad}");
        }
    }
}
