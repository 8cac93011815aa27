//! The journal: usage records in SQLite, in one order, until the coordinator has them.
//!
//! One thread owns the database. It gathers what the lanes send for some 20 milliseconds, gives each
//! record the next sequence of the epoch and commits them together, synced. It refuses nothing: a
//! failed commit (a full disk) is tried again until it works, and meanwhile the node takes no new
//! requests (see [`super::Meter::has_room`]). Batches are handed over and deleted all the same, which
//! makes room. A node that stops gives up; the spill has what was not committed.
//!
//! What the uploader takes is a *batch*, a link of the node's chain (see [`holm_model::chain`]). Where it ends is
//! on disk before anybody gets it, so that it is the same batch, of the same hash, however often it is taken, and
//! after a kill too. Batches are sealed when they are taken and not in each commit: a node with little to do
//! commits single records, and a batch, with its signature, is to be worth its bytes in the ledger.

mod room;
mod store;
mod unsent;
mod worker;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use holm_model::budget::Month;
use holm_model::chain::Place;
use holm_model::codec::FrameError;
use holm_model::ids::{Digest, Name};
use holm_model::usage::UsageRecord;
use tokio::sync::{Notify, oneshot};

use crate::budget::gauge::{ByTenant, Gauge, Ticket};
use crate::files::{self, FileError};
use crate::limits::{COMMIT_GATHER, JOURNAL_QUEUE};
use crate::worker::schedule;
use holm_vmm::Urgency;
use room::{Reserve, half_of_disk};
use store::{SCHEMA_VERSION, Store, fresh_epoch};
use unsent::Unsent;
use worker::Worker;

/// The journal cannot be used. The node or its operator is to blame, never a caller.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// SQLite says no.
    #[error("the usage journal {path} cannot be used: {error}; check the disk")]
    Database {
        /// Where it is.
        path: String,
        /// What SQLite says.
        #[source]
        error: rusqlite::Error,
    },
    /// Written by another Holm.
    #[error(
        "the usage journal {path} has schema {found}, this Holm knows {SCHEMA_VERSION}; run the Holm that wrote it until its records are uploaded"
    )]
    Schema {
        /// Where it is.
        path: String,
        /// Its schema's number.
        found: i64,
    },
    /// A record of an earlier schema cannot be read.
    #[error("a usage record in the journal cannot be read: {0}; restore the journal")]
    Record(#[from] FrameError),
    /// What is in it is not what was put in.
    #[error(
        "usage record {epoch}/{sequence} in the journal {path} {what}: the file was altered or is damaged, and nothing from there on is uploaded; restore it, or put it aside, and join again"
    )]
    Altered {
        /// Where it is.
        path: String,
        /// The record's boot epoch.
        epoch: u64,
        /// Its sequence.
        sequence: u64,
        /// What happened to it.
        what: &'static str,
    },
    /// A spill segment cannot be read or removed.
    #[error(transparent)]
    File(#[from] FileError),
    /// The thread has ended.
    #[error("the usage journal has stopped")]
    Stopped,
    /// No thread for it.
    #[error("the usage journal's thread cannot be started: {0}")]
    Thread(std::io::Error),
}

impl JournalError {
    /// Whether room on the disk may be what is lacking.
    fn is_full(&self) -> bool {
        use rusqlite::ErrorCode::{CannotOpen, DiskFull, SystemIoFailure};
        let JournalError::Database { error, .. } = self else {
            return false;
        };
        // A file of SQLite's own that finds no room is another failure of the system to it.
        let lacking = [DiskFull, SystemIoFailure, CannotOpen];
        error
            .sqlite_error_code()
            .is_some_and(|code| lacking.contains(&code))
    }
}

/// A record on its way into the journal.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) lane: u32,
    pub(crate) counter: u64,
    pub(crate) record: UsageRecord,
    /// What was reserved for it: let go of with the entry, when it is committed.
    pub(crate) _ticket: Option<Ticket>,
}

/// A link of the node's chain: consecutive records of one boot epoch, and their hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Batch {
    pub(crate) place: Place,
    pub(crate) hash: Digest,
    pub(crate) records: Vec<UsageRecord>,
}

/// What the journal's thread is asked to do.
#[derive(Debug)]
pub(crate) enum Message {
    Record(Entry),
    /// The batch that was taken last, or a new one of at most so many records.
    Take(usize, oneshot::Sender<Result<Option<Batch>, JournalError>>),
    /// The batch of this hash is in the ledger.
    Stored(Digest, oneshot::Sender<Result<(), JournalError>>),
    /// Keeps these gauges from now on, and no others.
    Gauge(Vec<Arc<Gauge>>, oneshot::Sender<Result<(), JournalError>>),
    /// What it has counted of a gauge's budget and the ledger has.
    Uploaded(Arc<Gauge>, oneshot::Sender<Result<u64, JournalError>>),
    Stop,
}

/// How far the journal is, for the lanes.
#[derive(Debug)]
pub(crate) struct Progress {
    /// Records sent and not yet committed.
    pub(crate) queued: AtomicUsize,
    /// The journal cannot be written, or has reached its limit: no new request is to be taken.
    pub(crate) closed: AtomicBool,
    committed: Vec<AtomicU64>,
}

impl Progress {
    pub(crate) fn new(lanes: u32) -> Self {
        Progress {
            queued: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            committed: (0..lanes).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// The highest counter of the lane that is committed.
    pub(crate) fn committed(&self, lane: u32) -> u64 {
        self.committed
            .get(lane as usize)
            .map_or(0, |counter| counter.load(Ordering::Acquire))
    }

    pub(crate) fn set_committed(&self, lane: u32, counter: u64) {
        if let Some(committed) = self.committed.get(lane as usize) {
            committed.store(counter, Ordering::Release);
        }
    }
}

/// The journal's thread and the ways to it.
#[derive(Debug)]
pub(crate) struct Journal {
    pub(crate) epoch: u64,
    pub(crate) spill_dir: PathBuf,
    pub(crate) sender: SyncSender<Message>,
    pub(crate) progress: Arc<Progress>,
    pub(crate) changed: Arc<Notify>,
    /// Months that begin before, milliseconds since 1970, were not counted from their beginning on.
    pub(crate) counted_from_ms: u64,
    thread: JoinHandle<()>,
}

impl Journal {
    /// Opens or makes the journal in `dir`, replays what an earlier life left in the spill, begins
    /// a new epoch and starts the thread. `lanes` is the number of threads that will meter. While it takes more than
    /// `limit_bytes`, or half of its disk, no request is to be taken.
    pub(crate) fn start(
        dir: &Path,
        node: &Name,
        lanes: u32,
        limit_bytes: Option<u64>,
    ) -> Result<Self, JournalError> {
        let spill_dir = dir.join("spill");
        files::make_dir(&spill_dir)?;
        let mut reserve = Reserve::open(dir);
        let begin = |replays: bool| {
            let mut store = Store::open(&dir.join("journal.sqlite"), node)?;
            if replays {
                store.replay(&spill_dir)?;
            }
            store.begin_epoch(fresh_epoch())?;
            let counted_from_ms = store.forget_used(now_ms())?;
            Ok::<_, JournalError>((store, counted_from_ms))
        };
        let (begun, unreplayed) = match begin(true) {
            // Little is needed to begin, so that what is there can be uploaded; the rest is replayed after that.
            Err(error) if error.is_full() => {
                tracing::error!(%error, "the journal has no room for what an earlier life left");
                reserve.give_up();
                (begin(false)?, true)
            }
            begun => (begun?, false),
        };
        let (store, counted_from_ms) = begun;
        let epoch = store.epoch();
        let progress = Arc::new(Progress::new(lanes));
        let changed = Arc::new(Notify::new());
        let (sender, receiver) = sync_channel(JOURNAL_QUEUE);
        let mut worker = Worker {
            store,
            reserve,
            spill_dir: spill_dir.clone(),
            limit_bytes: limit_bytes.unwrap_or_else(|| half_of_disk(dir)),
            progress: progress.clone(),
            changed: changed.clone(),
            gauges: ByTenant::default(),
            unsent: Unsent::default(),
            month: Month::of(now_ms()),
            entries: Vec::new(),
            unreplayed,
            retry_at: None,
            over_limit: false,
        };
        worker.prepare();
        let thread = std::thread::Builder::new()
            .name("holm-journal".into())
            .spawn(move || {
                // Nobody waits for it, and it shares the cores with those for whom somebody does.
                schedule(Urgency::Patient);
                worker.work(&receiver)
            })
            .map_err(JournalError::Thread)?;
        Ok(Journal {
            epoch,
            spill_dir,
            sender,
            progress,
            changed,
            counted_from_ms,
            thread,
        })
    }

    /// A handle for the uploader.
    pub(crate) fn reader(&self) -> JournalReader {
        JournalReader {
            sender: self.sender.clone(),
            changed: self.changed.clone(),
        }
    }

    /// [`JournalReader::gauge`] for a thread that may block.
    pub(crate) fn gauge(&self, gauges: Vec<Arc<Gauge>>) -> Result<(), JournalError> {
        let (reply, mut answer) = oneshot::channel();
        let sent = self.sender.send(Message::Gauge(gauges, reply));
        sent.map_err(|_| JournalError::Stopped)?;
        loop {
            // Not `blocking_recv`, which a runtime's thread may not call.
            match answer.try_recv() {
                Ok(done) => return done,
                Err(oneshot::error::TryRecvError::Empty) => std::thread::sleep(COMMIT_GATHER),
                Err(oneshot::error::TryRecvError::Closed) => return Err(JournalError::Stopped),
            }
        }
    }

    /// Commits what was sent, if that can be done, and ends the thread.
    pub(crate) fn stop(self) {
        // If the thread is gone there is nothing to stop, and the spill has what it left.
        let _ = self.sender.send(Message::Stop);
        if self.thread.join().is_err() {
            tracing::error!("the journal's thread died; the spill will be replayed at next start");
        }
    }
}

/// The uploader's view of the journal.
#[derive(Clone, Debug)]
pub(crate) struct JournalReader {
    sender: SyncSender<Message>,
    changed: Arc<Notify>,
}

impl JournalReader {
    /// Waits until something was committed since the last such wait.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// The batch that comes next in the ledger: the one taken before if it is not known to be there, or a new one of
    /// the oldest records, at most `max`.
    pub(crate) async fn take(&self, max: usize) -> Result<Option<Batch>, JournalError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Message::Take(max, reply)).await?;
        answer.await.map_err(|_| JournalError::Stopped)?
    }

    /// Deletes the batch of this hash, which was taken last: the ledger has it.
    pub(crate) async fn stored(&self, hash: Digest) -> Result<(), JournalError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Message::Stored(hash, reply)).await?;
        answer.await.map_err(|_| JournalError::Stopped)?
    }

    /// Sets these gauges to what was spent, and keeps them at it from then on, and no others.
    pub(crate) async fn gauge(&self, gauges: Vec<Arc<Gauge>>) -> Result<(), JournalError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Message::Gauge(gauges, reply)).await?;
        answer.await.map_err(|_| JournalError::Stopped)?
    }

    /// What was counted of a gauge's budget and is in the ledger, or a little less.
    pub(crate) async fn uploaded(&self, gauge: Arc<Gauge>) -> Result<u64, JournalError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Message::Uploaded(gauge, reply)).await?;
        answer.await.map_err(|_| JournalError::Stopped)?
    }

    async fn ask(&self, mut message: Message) -> Result<(), JournalError> {
        use std::sync::mpsc::TrySendError;
        loop {
            message = match self.sender.try_send(message) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Disconnected(_)) => return Err(JournalError::Stopped),
                Err(TrySendError::Full(message)) => message,
            };
            tokio::time::sleep(COMMIT_GATHER).await;
        }
    }
}

/// Milliseconds since 1970 UTC.
fn now_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
pub(crate) mod tests;
