//! Uploading usage: batches in order, deleted here only when the coordinator has stored them.
//!
//! A batch whose acknowledgement was lost is sent again, with the same hash; the ledger knows it by that.

use holm_model::control::{BulkAnswer, BulkRequest};
use holm_model::limits::MAX_USAGE_BATCH;
use holm_model::usage_batch::{PackedRecords, UsageBatch};

use tokio::sync::watch;

use super::journal::{Batch, JournalError, JournalReader};
use super::sign::{BatchSigner, SignError};
use crate::limits::{BULK_TIMEOUT, UPLOAD_PAUSE, UPLOAD_RETRY};
use crate::session::{Link, LinkError};

#[derive(Debug, thiserror::Error)]
enum UploadError {
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Sign(#[from] SignError),
    #[error("the coordinator refuses the usage records: {0}")]
    Refused(String),
}

/// Uploads until the node stops; then what is left, if that can be done at once.
pub(crate) async fn run(
    journal: JournalReader,
    signer: BatchSigner,
    link: Link,
    mut stopping: watch::Receiver<bool>,
) {
    loop {
        let stopped = *stopping.borrow_and_update();
        if stopped && !link.is_up() {
            return;
        }
        let uploaded = upload_one(&journal, &signer, &link, stopping.clone()).await;
        let pause = match uploaded {
            Err(UploadError::Journal(JournalError::Stopped)) => return,
            Err(error) => {
                tracing::warn!(%error, "usage stays in the journal for now");
                if stopped {
                    return;
                }
                Some(UPLOAD_RETRY)
            }
            Ok(0) if stopped => return,
            Ok(0) => None,
            Ok(MAX_USAGE_BATCH) => continue,
            Ok(_) => Some(UPLOAD_PAUSE),
        };
        let pause = async {
            match pause {
                Some(pause) => tokio::time::sleep(pause).await,
                None => journal.changed().await,
            }
        };
        if !stopped {
            tokio::select! {
                () = pause => {}
                // An error means that the node is gone without stopping; so is this task, soon.
                _ = stopping.wait_for(|stopping| *stopping) => {}
            }
        }
    }
}

/// Uploads one batch; how many records it had.
async fn upload_one(
    journal: &JournalReader,
    signer: &BatchSigner,
    link: &Link,
    mut stopping: watch::Receiver<bool>,
) -> Result<usize, UploadError> {
    let Some(batch) = journal.take(MAX_USAGE_BATCH).await? else {
        return Ok(0);
    };
    let (hash, count) = (batch.hash, batch.records.len());
    let request = BulkRequest::Usage(signed(&batch, signer)?);
    let connection = tokio::select! {
        biased;
        connection = link.up() => connection,
        _ = stopping.wait_for(|stopping| *stopping) => return Err(LinkError::Silent.into()),
    };
    let answer = tokio::time::timeout(BULK_TIMEOUT, async {
        let (answer, _) = crate::session::ask(&connection, &request).await?;
        Ok::<_, LinkError>(answer)
    });
    match answer.await.map_err(|_| LinkError::Silent)?? {
        BulkAnswer::UsageStored { new, known } => {
            tracing::debug!(new, known, "usage is in the ledger");
            journal.stored(hash).await?;
            Ok(count)
        }
        BulkAnswer::Refused { reason } => Err(UploadError::Refused(reason)),
        BulkAnswer::Bytes { .. } | BulkAnswer::Renewed { .. } | BulkAnswer::Leases(_) => {
            Err(LinkError::Protocol("it answers another question").into())
        }
    }
}

/// Signed with the key that the node has now, whichever it had when the batch was sealed: who gets it knows the hash.
fn signed(batch: &Batch, signer: &BatchSigner) -> Result<UsageBatch, SignError> {
    Ok(UsageBatch {
        boot_epoch: batch.place.boot_epoch,
        first: batch.place.first,
        previous: batch.place.previous,
        hash: batch.hash,
        signature: signer.sign(batch.hash)?,
        records: PackedRecords::pack(&batch.records),
    })
}
