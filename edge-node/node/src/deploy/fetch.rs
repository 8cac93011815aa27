//! Getting an artifact from the coordinator: only the chunks that are nowhere here, resumed where it broke off,
//! used only when its digest is the signed one.

use std::collections::VecDeque;
use std::sync::Arc;

use holm_model::artifact::{Statement, VersionError};
use holm_model::chunks::{Index, MAX_INDEX_BYTES};
use holm_model::control::{BulkAnswer, BulkRequest};
use holm_model::ids::Digest;
use quinn::RecvStream;

use super::part::{Part, Wanted};
use super::store::DeployStore;
use crate::files::{self, FileError};
use crate::limits::{BULK_TIMEOUT, FETCH_PIECE_BYTES, FETCH_RETRY, MAX_FETCH_ATTEMPTS};
use crate::session::{self, Link, LinkError};

#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("the coordinator does not deliver the artifact: {0}")]
    Refused(String),
    #[error(
        "the coordinator sent other bytes than its index says for chunk {0}; it is asked again"
    )]
    WrongChunk(Digest),
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

/// One attempt: the index, then the chunks that are nowhere here, then the check of the whole.
async fn fetch(store: &DeployStore, statement: &Statement, link: &Link) -> Result<(), FetchError> {
    let digest = statement.artifact;
    let index = Arc::new(index(store, statement, link).await?);
    let (own, known) = (store.clone(), index.clone());
    let (part, wanted) = blocking(move || Part::open(&own, digest, &known)).await?;
    let part = Arc::new(part);
    let asked: u64 = wanted.iter().map(|wanted| wanted.bytes()).sum();
    if !wanted.is_empty() {
        let received = receive(digest, wanted, &part, link).await;
        if let Err(error) = received {
            if !error.is_passing() {
                // The coordinator may have the artifact in other chunks by now.
                files::remove_if_there(&store.index(digest))?;
            }
            return Err(error);
        }
    }
    let (store, statement) = (store.clone(), statement.clone());
    blocking(move || {
        part.sync()?;
        let path = store.part(digest);
        let bytes = files::read_if_there(&path, statement.artifact_bytes)?.unwrap_or_default();
        if let Err(error) = statement.check_artifact(&bytes) {
            // Each chunk is what the index says, so the index is wrong. Nothing of it can be trusted.
            files::remove_if_there(&path)?;
            files::remove_if_there(&store.index(digest))?;
            return Err(error.into());
        }
        store.complete(digest)?;
        let (function, bytes) = (&statement.function, statement.artifact_bytes);
        tracing::info!(%function, artifact = %digest.short(), bytes, fetched = asked, "the artifact is here");
        Ok(())
    })
    .await
}

/// The artifact's index: from disk if an attempt before this one got it.
async fn index(
    store: &DeployStore,
    statement: &Statement,
    link: &Link,
) -> Result<Index, FetchError> {
    let digest = statement.artifact;
    let (own, bytes) = (store.clone(), statement.artifact_bytes);
    let fits = move |index: &Index| index.bytes() == bytes;
    if let Some(index) = blocking(move || own.read_index(digest)).await?.filter(fits) {
        return Ok(index);
    }
    let (length, mut from) = ask(&BulkRequest::FetchIndex { digest }, link).await?;
    if length > MAX_INDEX_BYTES as u64 {
        let refused = format!("its index of chunks has {length} bytes, more than any can have");
        return Err(FetchError::Refused(refused));
    }
    let mut read = Vec::new();
    while (read.len() as u64) < length {
        let left = usize::try_from(length).unwrap_or(usize::MAX) - read.len();
        read.extend_from_slice(&next(&mut from, left).await?);
    }
    let index = Index::parse(&read).map_err(|error| FetchError::Refused(error.to_string()))?;
    if !fits(&index) {
        return Err(FetchError::Refused(format!(
            "its chunks have {} bytes where the signed statement has {}",
            index.bytes(),
            statement.artifact_bytes
        )));
    }
    let own = store.clone();
    blocking(move || files::write_atomically(&own.index(digest), &read, 0o600)).await?;
    Ok(index)
}

/// Has the coordinator send the chunks that are wanted. What came before a cut is not asked for again.
async fn receive(
    digest: Digest,
    wanted: Vec<Wanted>,
    part: &Arc<Part>,
    link: &Link,
) -> Result<(), FetchError> {
    let places = wanted.iter().map(|wanted| wanted.place).collect();
    let (mut left, mut from) = ask(&BulkRequest::FetchChunks { digest, places }, link).await?;
    let expected: u64 = wanted.iter().map(Wanted::bytes).sum();
    if left != expected {
        let refused = format!("it has {left} bytes for chunks of {expected} bytes");
        return Err(FetchError::Refused(refused));
    }
    let mut wanted = VecDeque::from(wanted);
    let mut read = Vec::new();
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(usize::MAX);
        // A cut leaves at most one piece to be asked for again.
        let piece = next(&mut from, most.min(FETCH_PIECE_BYTES)).await;
        let ended = piece.is_err();
        if let Ok(piece) = &piece {
            left -= piece.len() as u64;
            read.extend_from_slice(piece);
        }
        if ended || left == 0 || read.len() >= FETCH_PIECE_BYTES {
            let part = part.clone();
            (wanted, read) = blocking(move || part.take(wanted, read)).await?;
        }
        piece?;
    }
    Ok(())
}

/// Asks for something of which the bytes follow; how many.
async fn ask(request: &BulkRequest, link: &Link) -> Result<(u64, RecvStream), FetchError> {
    let connection = link.up().await;
    let asked = tokio::time::timeout(BULK_TIMEOUT, session::ask(&connection, request));
    let (answer, from) = asked.await.map_err(|_| LinkError::Silent)??;
    match answer {
        BulkAnswer::Bytes { bytes } => Ok((bytes, from)),
        BulkAnswer::Refused { reason } => Err(FetchError::Refused(reason)),
        BulkAnswer::UsageStored { .. } | BulkAnswer::Renewed { .. } | BulkAnswer::Leases(_) => {
            Err(LinkError::Protocol("it answers another question").into())
        }
    }
}

/// The next bytes, at most `most`.
async fn next(from: &mut RecvStream, most: usize) -> Result<Vec<u8>, LinkError> {
    let lost = |error: quinn::ReadError| {
        LinkError::Wire(crate::wire::WireError::Stream(error.to_string()))
    };
    let chunk = tokio::time::timeout(BULK_TIMEOUT, from.read_chunk(most, true));
    let chunk = chunk.await.map_err(|_| LinkError::Silent)?.map_err(lost)?;
    match chunk {
        Some(chunk) => Ok(chunk.bytes.to_vec()),
        None => Err(LinkError::Wire(crate::wire::WireError::CutShort)),
    }
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
