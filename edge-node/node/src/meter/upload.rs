//! Uploading usage: batches in order, deleted here only when the coordinator has stored them.
//!
//! A batch whose acknowledgement was lost is sent again; the ledger knows each record by its key.

use holm_model::control::{BulkAnswer, BulkRequest};
use holm_model::limits::MAX_USAGE_BATCH;

use super::journal::{JournalError, JournalReader};
use crate::limits::{BULK_TIMEOUT, UPLOAD_PAUSE, UPLOAD_RETRY};
use crate::session::{Link, LinkError};

#[derive(Debug, thiserror::Error)]
enum UploadError {
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("the coordinator refuses the usage records: {0}")]
    Refused(String),
}

/// Uploads as long as it is polled.
pub(crate) async fn run(journal: JournalReader, link: Link) {
    loop {
        match upload_one(&journal, &link).await {
            Ok(0) => journal.changed().await,
            Ok(MAX_USAGE_BATCH) => {}
            Ok(_) => tokio::time::sleep(UPLOAD_PAUSE).await,
            Err(UploadError::Journal(JournalError::Stopped)) => return,
            Err(error) => {
                tracing::warn!(%error, "usage stays in the journal for now");
                tokio::time::sleep(UPLOAD_RETRY).await;
            }
        }
    }
}

/// Uploads until the journal is empty; for a node that stops.
pub(crate) async fn drain(journal: JournalReader, link: Link) {
    while link.is_up() {
        match upload_one(&journal, &link).await {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%error, "usage stays in the journal until the next start");
                return;
            }
        }
    }
}

/// Uploads one batch; how many records it had.
async fn upload_one(journal: &JournalReader, link: &Link) -> Result<usize, UploadError> {
    let records = journal.take(MAX_USAGE_BATCH).await?;
    let Some(last) = records.last() else {
        return Ok(0);
    };
    let (epoch, sequence, count) = (last.boot_epoch, last.sequence, records.len());
    let connection = link.up().await;
    let answer = tokio::time::timeout(BULK_TIMEOUT, async {
        let request = BulkRequest::Usage { records };
        let (answer, _) = crate::session::ask(&connection, &request).await?;
        Ok::<_, LinkError>(answer)
    });
    match answer.await.map_err(|_| LinkError::Silent)?? {
        BulkAnswer::UsageStored { new, known } => {
            tracing::debug!(new, known, "usage is in the ledger");
            journal.stored(epoch, sequence).await?;
            Ok(count)
        }
        BulkAnswer::Refused { reason } => Err(UploadError::Refused(reason)),
        BulkAnswer::Artifact { .. } => {
            Err(UploadError::Refused("it answered with an artifact".into()))
        }
    }
}
