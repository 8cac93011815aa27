//! Versions and their signatures.
//!
//! A *version* is an immutable pair of artifact digest and manifest. Its publisher writes both into a
//! [`Statement`], encodes that once as JSON and signs exactly those bytes. The bytes travel verbatim
//! and are never encoded again; their SHA-256 is the [`VersionId`].

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
    /// Milliseconds since 1970 UTC.
    pub created_ms: u64,
}

/// The public half of a publisher's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PublisherKey(pub [u8; 32]);

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
    #[error("the artifact's digest is {found}, but the signed statement says {signed}; it was altered or mixed up on the way, deploy again from the source")]
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
        SignedVersion { statement, key: PublisherKey(key.verifying_key().to_bytes()), signature }
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
        key.verify_strict(&self.statement, &signature).map_err(|_| VersionError::BadSignature)?;
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
            return Err(VersionError::UnknownKey(statement.function.tenant.to_string()));
        }
        Ok(VerifiedVersion { id: self.id(), statement })
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
            return Err(VersionError::WrongSize { signed: self.artifact_bytes, found });
        }
        let found = Digest::of(artifact);
        if found != self.artifact {
            return Err(VersionError::WrongDigest { signed: self.artifact, found });
        }
        Ok(())
    }
}
