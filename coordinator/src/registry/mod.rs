//! The registry: tenants, their keys, and the versions that they have published.
//!
//! A version gets in only if a key of its tenant has signed it, its counter is above that of the
//! function's newest version, its artifact is here with the signed digest and length, and the
//! artifact is a program, or one with files, that a guest can be given. What is in never changes.

mod artifacts;
#[cfg(test)]
mod artifacts_tests;
mod configurations;
mod objects;
mod recent;

use std::collections::BTreeSet;
use std::sync::Arc;

use holm_model::api::VersionView;
use holm_model::artifact::{PublisherKey, SignedVersion, Statement, VersionError};
use holm_model::bundle::{Bundle, BundleError};
use holm_model::chunks::Index;
use holm_model::ids::{Digest, FunctionName, Name, VersionId};
use tokio::sync::Semaphore;

pub use artifacts::ArtifactError;
pub(crate) use artifacts::{Artifacts, Assembled, Incoming, Whole, runs};
pub(crate) use configurations::{Configurations, ConfigureError};
pub(crate) use objects::Objects;
pub use objects::{S3Place, S3PlaceError};

use crate::clock::Clock;
use crate::limits::{
    MAX_AUTHOR_CHARS, MAX_LABEL_CHARS, MAX_MESSAGE_CHARS, MAX_TAG_CHARS, MAX_TAGS,
};
use crate::store::{NewVersion, PublishOutcome, Store, StoreError, TagOutcome};

/// Why a version does not get in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RegistryError {
    #[error(
        "there is no tenant `{0}`; make it and register its publisher key, with \
         `holm tenants create {0}`"
    )]
    UnknownTenant(Name),
    #[error(
        "the version is signed with a key of tenant `{0}` that was revoked; sign it with one that is \
         valid, `holm tenants show {0}` shows them"
    )]
    KeyRevoked(Name),
    #[error("the version is not accepted: {0}")]
    Refused(#[from] VersionError),
    #[error(
        "the signed statement is about function `{signed}`, but was sent to `{addressed}`; send \
         it to the function that it names"
    )]
    OtherFunction {
        signed: FunctionName,
        addressed: FunctionName,
    },
    #[error("the signed statement cannot be used: {0}; correct it and sign it again")]
    BadStatement(String),
    #[error(
        "the artifact {0} is not here; put it first, with `PUT /v1/artifacts/{0}`, then publish \
         the version"
    )]
    ArtifactMissing(Digest),
    #[error(
        "the version {0} was removed because nobody needed it; deploy it again, as a new version"
    )]
    Removed(VersionId),
    #[error(
        "`{0}` is not a tag: 1 to {MAX_TAG_CHARS} letters, digits, `.`, `_` and `-`, beginning with a \
         letter or digit"
    )]
    BadTag(String),
    #[error("function `{function}` has no version {version}")]
    UnknownVersion {
        function: FunctionName,
        version: VersionId,
    },
    #[error("function `{0}` would have more than the {MAX_TAGS} tags allowed; remove some")]
    TooManyTags(FunctionName),
    #[error("the artifact is not a program that Holm can run: {0}")]
    BadProgram(#[from] BundleError),
    #[error(
        "the version's counter is {counter}, but the newest version of `{function}` has {highest}; \
         an older version cannot be published again, sign this one with a counter above {highest}"
    )]
    CounterTooLow {
        function: FunctionName,
        counter: u64,
        highest: u64,
    },
    #[error(transparent)]
    Artifact(ArtifactError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The registry. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Registry {
    store: Store,
    artifacts: Artifacts,
    clock: Clock,
    /// A check reads a whole artifact into memory: one at a time.
    checks: Arc<Semaphore>,
}

impl Registry {
    pub(crate) fn new(store: Store, artifacts: Artifacts, clock: Clock) -> Self {
        Registry {
            store,
            artifacts,
            clock,
            checks: Arc::new(Semaphore::new(1)),
        }
    }

    /// The artifacts.
    pub(crate) fn artifacts(&self) -> &Artifacts {
        &self.artifacts
    }

    /// Publishes a version of `function`; whether it is new. The same version may be published
    /// again and again.
    pub(crate) async fn publish(
        &self,
        function: &FunctionName,
        signed: &SignedVersion,
    ) -> Result<(VersionView, bool), RegistryError> {
        let keys = self
            .store
            .tenant_keys(&function.tenant)
            .await?
            .ok_or_else(|| RegistryError::UnknownTenant(function.tenant.clone()))?;
        let now_ms = self.clock.now_ms();
        if keys.iter().any(|row| row.refuses(&signed.key, now_ms)) {
            return Err(RegistryError::KeyRevoked(function.tenant.clone()));
        }
        let keys: Vec<PublisherKey> = keys.iter().map(|row| row.key).collect();
        let version = signed.verify(&keys)?;
        let statement = version.statement;
        if statement.function != *function {
            return Err(RegistryError::OtherFunction {
                signed: statement.function,
                addressed: function.clone(),
            });
        }
        check_statement(&statement)?;
        match self.store.version_view(version.id).await? {
            Some(known) if known.removed => return Err(RegistryError::Removed(version.id)),
            Some(known) => return Ok((known, false)),
            None => {}
        }
        self.check_artifact(&statement).await?;
        let new = NewVersion {
            id: version.id,
            signed,
            statement: &statement,
        };
        let artifact = statement.artifact;
        let now_ms = self.clock.now_ms();
        let stored = match self.store.publish(new, now_ms).await? {
            PublishOutcome::Stored => true,
            PublishOutcome::Known => false,
            PublishOutcome::KeyRevoked => {
                return Err(RegistryError::KeyRevoked(function.tenant.clone()));
            }
            PublishOutcome::Removed => return Err(RegistryError::Removed(version.id)),
            PublishOutcome::ArtifactGone => return Err(RegistryError::ArtifactMissing(artifact)),
            PublishOutcome::CounterTooLow { highest } => {
                return Err(RegistryError::CounterTooLow {
                    function: function.clone(),
                    counter: statement.counter,
                    highest,
                });
            }
        };
        let view = VersionView {
            content: statement.content(),
            version: version.id,
            function: statement.function,
            label: statement.label,
            counter: statement.counter,
            message: statement.message,
            author: statement.author,
            tags: Vec::new(),
            removed: false,
            created_ms: statement.created_ms,
        };
        Ok((view, stored))
    }

    /// Has `tag` name a version, and no other one of the function.
    pub(crate) async fn set_tag(
        &self,
        function: &FunctionName,
        tag: &str,
        version: VersionId,
    ) -> Result<VersionView, RegistryError> {
        let part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let good = (1..=MAX_TAG_CHARS).contains(&tag.len())
            && tag.starts_with(|c: char| c.is_ascii_alphanumeric())
            && tag.chars().all(part);
        if !good {
            return Err(RegistryError::BadTag(tag.chars().take(80).collect()));
        }
        let unknown = || RegistryError::UnknownVersion {
            function: function.clone(),
            version,
        };
        let now_ms = self.clock.now_ms();
        match self.store.set_tag(function, tag, version, now_ms).await? {
            TagOutcome::Set => self.store.version_view(version).await?.ok_or_else(unknown),
            TagOutcome::UnknownVersion => Err(unknown()),
            TagOutcome::TooMany => Err(RegistryError::TooManyTags(function.clone())),
        }
    }

    /// Removes those of `artifacts` that no version names any more; returns which, and their bytes.
    pub(crate) async fn remove_unnamed(
        &self,
        artifacts: &BTreeSet<Digest>,
    ) -> Result<(Vec<Digest>, u64), ArtifactError> {
        let (mut removed, mut bytes) = (Vec::new(), 0);
        for artifact in artifacts {
            let size = self.artifacts.bytes(*artifact).await?;
            if self.artifacts.remove(*artifact).await? {
                removed.push(*artifact);
                bytes += size;
            }
        }
        self.artifacts.tidy().await?;
        Ok((removed, bytes))
    }

    /// Has the artifact be made of these chunks, if they are here.
    pub(crate) async fn assemble(
        &self,
        digest: Digest,
        index: &Index,
    ) -> Result<Assembled, ArtifactError> {
        self.artifacts.assemble(digest, index, &self.checks).await
    }

    /// The artifact is the signed one, and a program.
    async fn check_artifact(&self, statement: &Statement) -> Result<(), RegistryError> {
        let _turn = self
            .checks
            .acquire()
            .await
            .expect("the semaphore is never closed");
        let bytes = match self.artifacts.read(statement.artifact).await {
            Ok(bytes) => bytes,
            Err(ArtifactError::Missing(digest)) => {
                return Err(RegistryError::ArtifactMissing(digest));
            }
            Err(error) => return Err(RegistryError::Artifact(error)),
        };
        let statement = statement.clone();
        // Hashing and parsing up to 256 MiB is no work for a thread that serves others.
        let check = move || -> Result<(), RegistryError> {
            statement.check_artifact(&bytes)?;
            Bundle::parse(&bytes)?;
            Ok(())
        };
        match tokio::task::spawn_blocking(check).await {
            Ok(result) => result,
            Err(panic) => Err(RegistryError::BadStatement(format!(
                "checking it failed: {panic}"
            ))),
        }
    }
}

/// What the signature does not vouch for: that a signed statement makes sense here.
fn check_statement(statement: &Statement) -> Result<(), RegistryError> {
    let bad = |why: String| Err(RegistryError::BadStatement(why));
    let FunctionName { tenant, function } = &statement.function;
    let manifest = &statement.manifest.function;
    if manifest.name != *function || manifest.tenant.as_ref().is_some_and(|own| own != tenant) {
        let own = manifest.tenant.as_ref().unwrap_or(tenant);
        return bad(format!(
            "its manifest is that of `{own}/{}`, not of `{tenant}/{function}`",
            manifest.name
        ));
    }
    if statement.label.is_empty() || !printable(&statement.label, MAX_LABEL_CHARS) {
        return bad(format!(
            "its label is not 1 to {MAX_LABEL_CHARS} printable characters"
        ));
    }
    if !printable(&statement.author, MAX_AUTHOR_CHARS) {
        return bad(format!(
            "its author is not up to {MAX_AUTHOR_CHARS} printable characters"
        ));
    }
    if !printable(&statement.message, MAX_MESSAGE_CHARS) {
        return bad(format!(
            "its message is not up to {MAX_MESSAGE_CHARS} printable characters"
        ));
    }
    if statement.counter == 0 || i64::try_from(statement.counter).is_err() {
        return bad(format!(
            "its counter is {}, not 1 to 2^63",
            statement.counter
        ));
    }
    Ok(())
}

/// Whether people can be shown a text of at most so many characters.
fn printable(text: &str, most: usize) -> bool {
    text.chars().count() <= most && !text.chars().any(|c| c.is_control() && c != '\n')
}
