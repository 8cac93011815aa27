//! The journal: usage records in SQLite, in one order, until the coordinator has them.
//!
//! One thread owns the database. It gathers what the lanes send for a few milliseconds, gives each
//! record the next sequence of the epoch and commits them together, synced. It refuses nothing: a
//! failed commit (a full disk) is tried again until it works, and meanwhile the node takes no new
//! requests (see [`super::Meter::has_room`]).
//!
//! ```text
//! epochs   epoch, next_sequence     one per start of the node, see [`fresh_epoch`]
//! spilled  epoch, lane, upto        how far each lane's spill is in `records`
//! records  epoch, sequence, record  not yet in the coordinator's ledger
//! ```

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Instant, SystemTime};

use holm_model::codec::{self, FrameError};
use holm_model::usage::UsageRecord;
use rusqlite::{Connection, OptionalExtension as _, Transaction, params};
use tokio::sync::{Notify, oneshot};

use super::spill;
use crate::files::{self, FileError};
use crate::limits::{COMMIT_GATHER, COMMIT_RETRY, JOURNAL_QUEUE, MAX_COMMIT_RECORDS};

/// Also to be raised when the encoding of a record in [`holm_model::codec`] changes.
const SCHEMA_VERSION: i64 = 2;
const SCHEMA: &str = "
    CREATE TABLE epochs (epoch INTEGER PRIMARY KEY, next_sequence INTEGER NOT NULL);
    CREATE TABLE spilled (
        epoch INTEGER NOT NULL, lane INTEGER NOT NULL, upto INTEGER NOT NULL,
        PRIMARY KEY (epoch, lane)
    ) WITHOUT ROWID;
    CREATE TABLE records (
        epoch INTEGER NOT NULL, sequence INTEGER NOT NULL, record BLOB NOT NULL,
        PRIMARY KEY (epoch, sequence)
    ) WITHOUT ROWID;
    PRAGMA user_version = 2;
";

const EPOCH_RANDOM_BITS: u32 = 20;
const MAX_EPOCH_SECONDS: u64 = (1 << (53 - EPOCH_RANDOM_BITS)) - 1;

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
    /// A record in it cannot be read or written.
    #[error("a usage record cannot be encoded or decoded: {0}")]
    Record(#[from] FrameError),
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

/// A record on its way into the journal.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) lane: u32,
    pub(crate) counter: u64,
    pub(crate) record: UsageRecord,
}

/// What the journal's thread is asked to do.
#[derive(Debug)]
pub(crate) enum Message {
    Record(Entry),
    /// The oldest records, at most so many.
    Take(
        usize,
        oneshot::Sender<Result<Vec<UsageRecord>, JournalError>>,
    ),
    /// Everything up to this (epoch, sequence) is in the ledger.
    Stored(u64, u64, oneshot::Sender<Result<(), JournalError>>),
    Stop,
}

/// How far the journal is, for the lanes.
#[derive(Debug)]
pub(crate) struct Progress {
    /// Records sent and not yet committed.
    pub(crate) queued: AtomicUsize,
    committed: Vec<AtomicU64>,
}

impl Progress {
    pub(crate) fn new(lanes: u32) -> Self {
        Progress {
            queued: AtomicUsize::new(0),
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
    thread: JoinHandle<()>,
}

impl Journal {
    /// Opens or makes the journal in `dir`, replays what an earlier life left in the spill, begins
    /// a new epoch and starts the thread. `lanes` is the number of threads that will meter.
    pub(crate) fn start(dir: &Path, lanes: u32) -> Result<Self, JournalError> {
        let spill_dir = dir.join("spill");
        files::make_dir(&spill_dir)?;
        let mut store = Store::open(&dir.join("journal.sqlite"))?;
        store.replay(&spill_dir)?;
        store.begin_epoch(fresh_epoch())?;
        let epoch = store.epoch;
        let progress = Arc::new(Progress::new(lanes));
        let changed = Arc::new(Notify::new());
        let (sender, receiver) = sync_channel(JOURNAL_QUEUE);
        let worker = Worker {
            store,
            progress: progress.clone(),
            changed: changed.clone(),
        };
        let thread = std::thread::Builder::new()
            .name("holm-journal".into())
            .spawn(move || worker.work(&receiver))
            .map_err(JournalError::Thread)?;
        Ok(Journal {
            epoch,
            spill_dir,
            sender,
            progress,
            changed,
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

    /// Commits what was sent and ends the thread.
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

    /// The oldest records that are not in the ledger, at most `max`.
    pub(crate) async fn take(&self, max: usize) -> Result<Vec<UsageRecord>, JournalError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Message::Take(max, reply)).await?;
        answer.await.map_err(|_| JournalError::Stopped)?
    }

    /// Deletes everything up to (`epoch`, `sequence`): the ledger has it.
    pub(crate) async fn stored(&self, epoch: u64, sequence: u64) -> Result<(), JournalError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Message::Stored(epoch, sequence, reply)).await?;
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

struct Worker {
    store: Store,
    progress: Arc<Progress>,
    changed: Arc<Notify>,
}

impl Worker {
    fn work(mut self, receiver: &Receiver<Message>) {
        let mut entries = Vec::new();
        loop {
            let Ok(first) = receiver.recv() else { return };
            let mut next = Some(first);
            let gather_until = Instant::now() + COMMIT_GATHER;
            let mut after = None;
            while let Some(message) = next.take() {
                match message {
                    Message::Record(entry) => entries.push(entry),
                    other => {
                        after = Some(other);
                        break;
                    }
                }
                if entries.len() < MAX_COMMIT_RECORDS {
                    next = gather(receiver, gather_until);
                }
            }
            self.commit(&mut entries);
            match after {
                // The asker may have gone away in the meantime; then nobody wants the answer.
                Some(Message::Take(max, reply)) => drop(reply.send(self.store.take(max))),
                Some(Message::Stored(epoch, sequence, reply)) => {
                    drop(reply.send(self.store.delete_upto(epoch, sequence)));
                }
                Some(Message::Stop) => return,
                Some(Message::Record(_)) | None => {}
            }
        }
    }

    /// Commits the entries however long it takes.
    fn commit(&mut self, entries: &mut Vec<Entry>) {
        if entries.is_empty() {
            return;
        }
        let mut failed = false;
        while let Err(error) = self.store.insert(entries) {
            if !failed {
                tracing::error!(%error, "usage records wait for the journal; trying on");
            }
            failed = true;
            std::thread::sleep(COMMIT_RETRY);
        }
        if failed {
            tracing::info!("the usage journal works again");
        }
        for entry in entries.iter() {
            self.progress.set_committed(entry.lane, entry.counter);
        }
        self.progress
            .queued
            .fetch_sub(entries.len(), Ordering::Relaxed);
        entries.clear();
        self.changed.notify_one();
    }
}

fn gather(receiver: &Receiver<Message>, until: Instant) -> Option<Message> {
    match receiver.try_recv() {
        Ok(message) => return Some(message),
        Err(TryRecvError::Disconnected) => return None,
        Err(TryRecvError::Empty) => {}
    }
    // Sleeping through the gathering time spares the request path a wake-up for every record.
    std::thread::sleep(until.saturating_duration_since(Instant::now()));
    receiver.try_recv().ok()
}

/// The database.
struct Store {
    path: PathBuf,
    database: Connection,
    epoch: u64,
}

impl Store {
    fn open(path: &Path) -> Result<Self, JournalError> {
        let wrong = |error| JournalError::Database {
            path: path.display().to_string(),
            error,
        };
        let database = Connection::open(path).map_err(wrong)?;
        database
            .pragma_update(None, "journal_mode", "wal")
            .map_err(wrong)?;
        database
            .pragma_update(None, "synchronous", "full")
            .map_err(wrong)?;
        let version = database
            .query_row("PRAGMA user_version", [], |row| row.get::<_, i64>(0))
            .map_err(wrong)?;
        match version {
            0 => {
                let script = format!("BEGIN IMMEDIATE; {SCHEMA} COMMIT;");
                database.execute_batch(&script).map_err(wrong)?;
            }
            SCHEMA_VERSION => {}
            found => {
                return Err(JournalError::Schema {
                    path: path.display().to_string(),
                    found,
                });
            }
        }
        Ok(Store {
            path: path.to_owned(),
            database,
            epoch: 0,
        })
    }

    fn wrong(&self, error: rusqlite::Error) -> JournalError {
        JournalError::Database {
            path: self.path.display().to_string(),
            error,
        }
    }

    /// Brings over what an earlier life had spilled and not committed, then removes the segments.
    fn replay(&mut self, spill_dir: &Path) -> Result<(), JournalError> {
        let found = spill::leftovers(spill_dir)?;
        let mut entries: Vec<(u64, Entry)> = Vec::new();
        for leftover in &found {
            entries.extend(leftover.records.iter().map(|(counter, record)| {
                let entry = Entry {
                    lane: leftover.lane,
                    counter: *counter,
                    record: record.clone(),
                };
                (leftover.epoch, entry)
            }));
        }
        entries.sort_by_key(|(epoch, entry)| (*epoch, entry.lane, entry.counter));
        let replayed = self.insert_new(&entries).map_err(|error| match error {
            InsertError::Database(error) => self.wrong(error),
            InsertError::Record(error) => error.into(),
        })?;
        if replayed > 0 {
            tracing::info!(
                replayed,
                "usage records of an earlier life were brought into the journal"
            );
        }
        for leftover in &found {
            spill::remove(&leftover.path)?;
        }
        files::sync_parent(&spill_dir.join("x"))?;
        // Only now: without a segment, what it had cannot be added again.
        self.database
            .execute("DELETE FROM spilled", [])
            .map_err(|error| self.wrong(error))?;
        Ok(())
    }

    /// `fresh`, or the one after the last if that is later.
    fn begin_epoch(&mut self, fresh: u64) -> Result<(), JournalError> {
        let begin = |database: &mut Connection| {
            let transaction = database.transaction()?;
            let last: i64 =
                transaction.query_row("SELECT coalesce(max(epoch), 0) FROM epochs", [], |row| {
                    row.get(0)
                })?;
            // Old epochs are of use only while records of theirs are still here.
            transaction.execute(
                "DELETE FROM epochs WHERE epoch NOT IN (SELECT epoch FROM records)",
                [],
            )?;
            let epoch = (last + 1).max(fresh as i64);
            transaction.execute(
                "INSERT INTO epochs (epoch, next_sequence) VALUES (?1, 1)",
                [epoch],
            )?;
            transaction.commit()?;
            Ok(epoch as u64)
        };
        self.epoch = begin(&mut self.database).map_err(|error| self.wrong(error))?;
        Ok(())
    }

    /// One synced transaction for all of them.
    fn insert(&mut self, entries: &[Entry]) -> Result<(), JournalError> {
        let insert = |database: &mut Connection, epoch: u64| -> Result<(), InsertError> {
            let transaction = database.transaction()?;
            for entry in entries {
                insert_record(&transaction, epoch, entry)?;
            }
            transaction.commit()?;
            Ok(())
        };
        insert(&mut self.database, self.epoch).map_err(|error| match error {
            InsertError::Database(error) => self.wrong(error),
            InsertError::Record(error) => error.into(),
        })
    }

    /// Inserts those of the sorted `entries` that are not in yet; how many those were.
    fn insert_new(&mut self, entries: &[(u64, Entry)]) -> Result<usize, InsertError> {
        let transaction = self.database.transaction()?;
        let mut replayed = 0;
        for (epoch, entry) in entries {
            let upto: Option<i64> = transaction
                .prepare_cached("SELECT upto FROM spilled WHERE epoch = ?1 AND lane = ?2")?
                .query_row(params![*epoch as i64, entry.lane], |row| row.get(0))
                .optional()?;
            if entry.counter > upto.unwrap_or(0) as u64 {
                insert_record(&transaction, *epoch, entry)?;
                replayed += 1;
            }
        }
        transaction.commit()?;
        Ok(replayed)
    }

    fn take(&mut self, max: usize) -> Result<Vec<UsageRecord>, JournalError> {
        let take = |database: &Connection| -> Result<Vec<Vec<u8>>, rusqlite::Error> {
            database
                .prepare_cached("SELECT record FROM records ORDER BY epoch, sequence LIMIT ?1")?
                .query_map([max as i64], |row| row.get(0))?
                .collect()
        };
        let rows = take(&self.database).map_err(|error| self.wrong(error))?;
        rows.iter().map(|row| Ok(decode(row)?)).collect()
    }

    fn delete_upto(&mut self, epoch: u64, sequence: u64) -> Result<(), JournalError> {
        self.database
            .execute(
                "DELETE FROM records WHERE epoch < ?1 OR (epoch = ?1 AND sequence <= ?2)",
                params![epoch as i64, sequence as i64],
            )
            .map_err(|error| self.wrong(error))?;
        Ok(())
    }
}

/// An epoch that no other start of a node of this name has had, even one that had another state directory or an older
/// copy of this one: the ledger knows a record by node, epoch and sequence, and refuses another one under a known
/// key. The second says so, and random bits where the clock does not. Below 2^53, up to which JSON's readers agree
/// on integers, for 200 years.
fn fresh_epoch() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = now.unwrap_or_default();
    let mut random = [0; 4];
    if getrandom::fill(&mut random).is_err() {
        random = now.subsec_nanos().to_le_bytes();
    }
    let random = u64::from(u32::from_le_bytes(random)) % (1 << EPOCH_RANDOM_BITS);
    let seconds = now.as_secs().min(MAX_EPOCH_SECONDS);
    (seconds << EPOCH_RANDOM_BITS) + random
}

#[derive(Debug)]
enum InsertError {
    Database(rusqlite::Error),
    Record(FrameError),
}

impl From<rusqlite::Error> for InsertError {
    fn from(error: rusqlite::Error) -> Self {
        InsertError::Database(error)
    }
}

fn insert_record(
    transaction: &Transaction<'_>,
    epoch: u64,
    entry: &Entry,
) -> Result<(), InsertError> {
    let sequence: i64 = transaction
        .prepare_cached(
            "INSERT INTO epochs (epoch, next_sequence) VALUES (?1, 2)
             ON CONFLICT (epoch) DO UPDATE SET next_sequence = next_sequence + 1
             RETURNING next_sequence - 1",
        )?
        .query_row([epoch as i64], |row| row.get(0))?;
    let record = UsageRecord {
        boot_epoch: epoch,
        sequence: sequence as u64,
        ..entry.record.clone()
    };
    let encoded = codec::encode(&record).map_err(InsertError::Record)?;
    transaction
        .prepare_cached("INSERT INTO records (epoch, sequence, record) VALUES (?1, ?2, ?3)")?
        .execute(params![epoch as i64, sequence, encoded])?;
    transaction
        .prepare_cached(
            "INSERT INTO spilled (epoch, lane, upto) VALUES (?1, ?2, ?3)
             ON CONFLICT (epoch, lane) DO UPDATE SET upto = excluded.upto",
        )?
        .execute(params![epoch as i64, entry.lane, entry.counter as i64])?;
    Ok(())
}

fn decode(row: &[u8]) -> Result<UsageRecord, FrameError> {
    let cut = || FrameError::Malformed("a row of the journal is cut short".into());
    let (length, following) = row.split_first_chunk::<4>().ok_or_else(cut)?;
    if codec::following_bytes(*length)? != following.len() {
        return Err(cut());
    }
    codec::decode(following)
}

#[cfg(test)]
pub(crate) mod tests;
