//! Metering: one usage record for every admitted request, on disk before its answer leaves.
//!
//! ```text
//!  ingress thread ──append──▶ spill segment (shared memory, survives kill -9) [spill]
//!        │ channel
//!        ▼
//!  journal thread ──group commit, fsync──▶ SQLite: sequence assigned here     [journal]
//!        │ batches in order, each chained to the one before
//!        ▼
//!  upload ──signed──▶ coordinator's ledger; deleted here once it has them     [upload, sign]
//! ```
//! Why two steps: a commit with fsync takes milliseconds, a copy into the page cache less than a
//! microsecond, and the page cache outlives the process. So an answered request is in the spill
//! before the caller sees the answer, and whatever SQLite had not yet committed when the process was
//! killed is replayed at the next start. Only a loss of power can take what was not committed: some 20 ms and the commit itself.
//!
//! Sequences are assigned in the commit, so that they have no gaps however many threads write.

pub(crate) mod journal;
pub(crate) mod sign;
pub(crate) mod spill;
pub(crate) mod upload;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::Instant;

use holm_model::limits::{MAX_RECORD_BYTES, MAX_RECORD_NS};
use holm_model::usage::UsageRecord;

use crate::budget::gauge::Ticket;
use crate::limits::JOURNAL_ROOM;
use journal::{Entry, Message, Progress};
pub(crate) use spill::SpillError;
use spill::SpillWriter;

/// One thread's way into the journal.
#[derive(Debug)]
pub(crate) struct Meter {
    spill: SpillWriter,
    journal: SyncSender<Message>,
    progress: Arc<Progress>,
}

impl Meter {
    pub(crate) fn new(
        spill: SpillWriter,
        journal: SyncSender<Message>,
        progress: Arc<Progress>,
    ) -> Self {
        Meter {
            spill,
            journal,
            progress,
        }
    }

    /// Whether a new request may be taken: the journal keeps up and has room, and the spill can be written.
    pub(crate) fn has_room(&mut self) -> bool {
        !self.progress.closed.load(Ordering::Relaxed)
            && self.progress.queued.load(Ordering::Relaxed) < JOURNAL_ROOM
            && self.spill.is_sound(Instant::now())
    }

    /// Makes the record outlive this process; `boot_epoch` and `sequence` are filled in on the way.
    /// If this fails the answer must not be sent.
    /// What was reserved for it is let go of when it is committed.
    pub(crate) fn record(
        &mut self,
        mut record: UsageRecord,
        ticket: Option<Ticket>,
    ) -> Result<(), SpillError> {
        record.boot_epoch = self.spill.epoch();
        record.sequence = 0;
        // A machine that was suspended may have waited for longer than any ledger takes.
        for ns in [
            &mut record.queue_ns,
            &mut record.restore_ns,
            &mut record.run_ns,
            &mut record.cpu_ns,
        ] {
            *ns = (*ns).min(MAX_RECORD_NS);
        }
        for bytes in [
            &mut record.request_bytes,
            &mut record.response_bytes,
            &mut record.egress_bytes,
            &mut record.ingress_bytes,
        ] {
            *bytes = (*bytes).min(MAX_RECORD_BYTES);
        }
        let counter = self.spill.append(&record)?;
        self.progress.queued.fetch_add(1, Ordering::Relaxed);
        let entry = Message::Record(Entry {
            lane: self.spill.lane(),
            counter,
            record,
            _ticket: ticket,
        });
        match self.journal.try_send(entry) {
            Ok(()) => {}
            // Admission stops at half the queue and slots are few, so this is hardly ever reached;
            // when it is, waiting is right: the record must not be dropped.
            Err(TrySendError::Full(entry)) => {
                if self.journal.send(entry).is_err() {
                    tracing::warn!("the journal has stopped; the record will be replayed");
                }
            }
            Err(TrySendError::Disconnected(_)) => {
                tracing::warn!("the journal has stopped; the record will be replayed");
            }
        }
        Ok(())
    }
}
