//! Getting an artifact from the coordinator: resumed where it broke off, used only when its digest is
//! the signed one.

use std::path::Path;

use holm_model::artifact::{Statement, VersionError};
use holm_model::control::{BulkAnswer, BulkRequest};
use tokio::fs::{File, OpenOptions};
use tokio::io::AsyncWriteExt as _;

use super::store::DeployStore;
use crate::files::{self, FileError};
use crate::limits::{BULK_TIMEOUT, FETCH_RETRY, MAX_FETCH_ATTEMPTS};
use crate::session::{self, Link, LinkError};

#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("the coordinator does not deliver the artifact: {0}")]
    Refused(String),
    #[error(transparent)]
    Version(#[from] VersionError),
}

impl FetchError {
    /// Whether another attempt may fare better however often it is made.
    fn is_passing(&self) -> bool {
        matches!(self, FetchError::Link(_))
    }
}

/// Has the artifact of `statement` on disk, verified. Waits for the link as long as it takes; of
/// anything else several attempts are made.
pub(crate) async fn obtain(
    store: &DeployStore,
    statement: &Statement,
    link: &Link,
) -> Result<(), FetchError> {
    if verified(store, statement).await? {
        return Ok(());
    }
    let mut attempts = 0;
    loop {
        let error = match fetch(store, statement, link).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        if !error.is_passing() {
            attempts += 1;
        }
        if attempts >= MAX_FETCH_ATTEMPTS {
            return Err(error);
        }
        tracing::warn!(function = %statement.function, artifact = %statement.artifact.short(), %error, "the artifact is not here yet");
        tokio::time::sleep(FETCH_RETRY).await;
    }
}

async fn verified(store: &DeployStore, statement: &Statement) -> Result<bool, FetchError> {
    let (store, statement) = (store.clone(), statement.clone());
    let check = move || {
        store
            .verified_artifact(&statement)
            .map(|bytes| bytes.is_some())
    };
    Ok(blocking(check).await?)
}

/// One attempt: what is missing of the `.part` file, then the check of the whole.
async fn fetch(store: &DeployStore, statement: &Statement, link: &Link) -> Result<(), FetchError> {
    let digest = statement.artifact;
    let path = store.part(digest);
    let wrong = |error| FileError::new("write", &path, error);
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .await
        .map_err(wrong)?;
    let mut offset = file.metadata().await.map_err(wrong)?.len();
    if offset > statement.artifact_bytes {
        file.set_len(0).await.map_err(wrong)?;
        offset = 0;
    }
    if offset < statement.artifact_bytes {
        let left = statement.artifact_bytes - offset;
        let request = BulkRequest::FetchArtifact { digest, offset };
        receive(&request, left, &mut file, &path, link).await?;
    }
    file.sync_all().await.map_err(wrong)?;
    drop(file);

    let (store, statement) = (store.clone(), statement.clone());
    blocking(move || {
        let path = store.part(statement.artifact);
        let bytes = files::read_if_there(&path, statement.artifact_bytes)?.unwrap_or_default();
        if let Err(error) = statement.check_artifact(&bytes) {
            // Nothing of it can be trusted, so the next attempt begins at its start.
            files::remove_if_there(&path)?;
            return Err(error.into());
        }
        Ok(store.complete(statement.artifact)?)
    })
    .await
}

async fn receive(
    request: &BulkRequest,
    left: u64,
    file: &mut File,
    path: &Path,
    link: &Link,
) -> Result<(), FetchError> {
    let connection = link.up().await;
    let asked = tokio::time::timeout(BULK_TIMEOUT, session::ask(&connection, request));
    let (answer, mut from) = asked.await.map_err(|_| LinkError::Silent)??;
    match answer {
        BulkAnswer::Artifact { bytes } if bytes == left => {}
        BulkAnswer::Artifact { bytes } => {
            return Err(FetchError::Refused(format!(
                "it has {bytes} more bytes where the signed statement leaves {left}"
            )));
        }
        BulkAnswer::Refused { reason } => return Err(FetchError::Refused(reason)),
        BulkAnswer::UsageStored { .. } | BulkAnswer::Renewed { .. } | BulkAnswer::Leases(_) => {
            return Err(LinkError::Protocol("it answers another question").into());
        }
    }
    let mut left = left;
    while left > 0 {
        let lost = |error: quinn::ReadError| {
            LinkError::Wire(crate::wire::WireError::Stream(error.to_string()))
        };
        let chunk = tokio::time::timeout(BULK_TIMEOUT, from.read_chunk(256 << 10, true));
        let chunk = chunk.await.map_err(|_| LinkError::Silent)?.map_err(lost)?;
        let Some(chunk) = chunk else {
            return Err(LinkError::Wire(crate::wire::WireError::CutShort).into());
        };
        let bytes = &chunk.bytes;
        let Some(after) = left.checked_sub(bytes.len() as u64) else {
            return Err(FetchError::Refused(
                "it sends more than it announced".into(),
            ));
        };
        file.write_all(bytes)
            .await
            .map_err(|error| FileError::new("write", path, error))?;
        left = after;
    }
    file.flush()
        .await
        .map_err(|error| FileError::new("write", path, error))?;
    Ok(())
}

/// Runs `work` where blocking does no harm.
async fn blocking<T: Send + 'static, E: Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, E> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is shutting down and this task with it.
            Err(_) => std::future::pending().await,
        },
    }
}
