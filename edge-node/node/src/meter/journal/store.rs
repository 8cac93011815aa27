//! The journal's database.
//!
//! ```text
//! epochs   epoch, next_sequence  one per start of the node, see [`fresh_epoch`]
//! spilled  epoch, lane, upto     how far each lane's spill is in `commits`
//! commits  epoch, first, last, records, leaves, check
//!                                the records of one commit, until the ledger has them all
//! batch    epoch, first, last, previous, hash
//!                                the batch that was sealed last, until the ledger has it
//! used     hour, function, units what was billed of records accepted in the hour, whether the ledger has them or not:
//!                                budgets are counted by it
//! counted  from_ms               months that begin before were not counted from their beginning on
//! head     epoch, last, hash     the batch before that; `checked` is the check of the commit before the first
//! ```
//! A commit is one row however many records it has: what SQLite costs is by row, and the request path's thread
//! shares its core with this one. `leaves` are those of the chain; `check` is the SHA-256 of the check before and
//! the leaves. So what was changed here, taken out or put in is found before it is signed, and named. Who can write
//! here can read the node's key as well, so this finds damage and careless hands; the chain is what proves.

#[cfg(test)]
mod faults;
mod used;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use holm_model::chain::{self, NOTHING_BEFORE, Place};
use holm_model::codec::{self, FrameError};
use holm_model::ids::{Digest, Name};
use holm_model::usage::UsageRecord;
use rusqlite::{Connection, OptionalExtension as _, Row, Transaction, params};

use super::{Batch, Entry, JournalError};
use crate::files;
use crate::limits::{
    JOURNAL_KEPT_BYTES, JOURNAL_LOG_BYTES, JOURNAL_SHRINK_BYTES, JOURNAL_TIGHT_BYTES,
    MAX_COMMIT_RECORDS,
};
use crate::meter::spill;

/// Also to be raised when the encoding of a record in [`holm_model::chain`] changes.
pub(super) const SCHEMA_VERSION: i64 = 4;
/// Without `used`.
const UNCOUNTED_VERSION: i64 = 3;
/// One row for each record, in frames of [`holm_model::codec`].
const UNCHAINED_VERSION: i64 = 2;

const EPOCHS: &str = "
    CREATE TABLE epochs (epoch INTEGER PRIMARY KEY, next_sequence INTEGER NOT NULL);
    CREATE TABLE spilled (
        epoch INTEGER NOT NULL, lane INTEGER NOT NULL, upto INTEGER NOT NULL,
        PRIMARY KEY (epoch, lane)
    ) WITHOUT ROWID;
";
const CHAIN: &str = "
    CREATE TABLE commits (
        id INTEGER PRIMARY KEY, epoch INTEGER NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL,
        records BLOB NOT NULL, leaves BLOB NOT NULL, \"check\" BLOB NOT NULL,
        UNIQUE (epoch, first)
    );
    CREATE TABLE batch (
        id INTEGER PRIMARY KEY CHECK (id = 1), epoch INTEGER NOT NULL, first INTEGER NOT NULL,
        last INTEGER NOT NULL, previous BLOB NOT NULL, hash BLOB NOT NULL
    );
    CREATE TABLE head (
        id INTEGER PRIMARY KEY CHECK (id = 1), epoch INTEGER NOT NULL, last INTEGER NOT NULL,
        hash BLOB NOT NULL, checked BLOB NOT NULL
    );
    INSERT INTO head VALUES (1, 0, 0, zeroblob(32), zeroblob(32));
    PRAGMA user_version = 3;
";
const USED: &str = "
    CREATE TABLE used (
        hour_ms INTEGER NOT NULL, function TEXT NOT NULL, requests INTEGER NOT NULL,
        memory_kib_ms INTEGER NOT NULL, cpu_ns INTEGER NOT NULL, egress_bytes INTEGER NOT NULL,
        PRIMARY KEY (hour_ms, function)
    ) WITHOUT ROWID;
    CREATE TABLE counted (id INTEGER PRIMARY KEY CHECK (id = 1), from_ms INTEGER NOT NULL);
    PRAGMA user_version = 4;
";

const EPOCH_RANDOM_BITS: u32 = 20;
const MAX_EPOCH_SECONDS: u64 = (1 << (53 - EPOCH_RANDOM_BITS)) - 1;

const CHANGED: &str = "was changed";
const MISSING: &str = "is missing";
const PUT_IN: &str = "was changed, or put in later";
const AGAIN: &str = "has the place of another, which is there a second time";

/// The database, which one thread owns.
pub(super) struct Store {
    path: PathBuf,
    database: Connection,
    node: Name,
    epoch: u64,
    /// Of the newest commit, on which the next one's check stands.
    checked: Digest,
}

/// The batch before the one to be taken next; all zero before the first.
struct Head {
    epoch: u64,
    last: u64,
    hash: Digest,
    checked: Digest,
}

/// Records of one commit, as they are read back.
struct Commit {
    epoch: u64,
    first: u64,
    last: u64,
    records: Vec<u8>,
    leaves: Vec<u8>,
    check: Digest,
}

/// Of the database's file.
struct Pages {
    all: u64,
    free: u64,
    bytes: u64,
}

/// A record of the journal is not what was put in.
struct Altered {
    epoch: u64,
    sequence: u64,
    what: &'static str,
}

enum Failure {
    Database(rusqlite::Error),
    Record(FrameError),
    Altered(Altered),
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Failure::Database(error)
    }
}

impl From<Altered> for Failure {
    fn from(altered: Altered) -> Self {
        Failure::Altered(altered)
    }
}

impl Store {
    /// Opens or makes it; `node` is whose chain it is.
    pub(super) fn open(path: &Path, node: &Name) -> Result<Self, JournalError> {
        let wrong = |error| JournalError::Database {
            path: path.display().to_string(),
            error,
        };
        let database = Connection::open(path).map_err(wrong)?;
        // Before there is anything in it; one that is older is dealt with when it is small.
        database
            .pragma_update(None, "auto_vacuum", "incremental")
            .map_err(wrong)?;
        database
            .pragma_update(None, "journal_mode", "wal")
            .map_err(wrong)?;
        database
            .pragma_update(None, "synchronous", "full")
            .map_err(wrong)?;
        database
            .pragma_update(None, "journal_size_limit", JOURNAL_LOG_BYTES as i64)
            .map_err(wrong)?;
        let version = database
            .query_row("PRAGMA user_version", [], |row| row.get::<_, i64>(0))
            .map_err(wrong)?;
        let mut store = Store {
            path: path.to_owned(),
            database,
            node: node.clone(),
            epoch: 0,
            checked: NOTHING_BEFORE,
        };
        let made = match version {
            0 => {
                let script = format!("BEGIN IMMEDIATE; {EPOCHS} {CHAIN} {USED} COMMIT;");
                store.database.execute_batch(&script).map_err(Into::into)
            }
            UNCHAINED_VERSION => chain_rows(&mut store.database)
                .and_then(|()| used::begin(&mut store.database).map_err(Into::into)),
            UNCOUNTED_VERSION => used::begin(&mut store.database).map_err(Into::into),
            SCHEMA_VERSION => Ok(()),
            found => {
                return Err(JournalError::Schema {
                    path: path.display().to_string(),
                    found,
                });
            }
        };
        made.map_err(|error| store.error(error))?;
        if let Err(error) = store.let_shrink() {
            tracing::debug!(%error, "the journal's file cannot be shortened yet");
        }
        store.checked = newest_check(&store.database).map_err(|error| store.wrong(error))?;
        Ok(store)
    }

    /// What it takes of the disk, but for what is free within it.
    pub(super) fn size_bytes(&self) -> Result<u64, JournalError> {
        let size = |pages: &Pages| (pages.all - pages.free) * pages.bytes;
        self.pages()
            .map(|pages| size(&pages))
            .map_err(|error| self.wrong(error))
    }

    fn pages(&self) -> Result<Pages, rusqlite::Error> {
        let pragma = |name: &str| {
            let mut pragma = self.database.prepare_cached(&format!("PRAGMA {name}"))?;
            pragma.query_row([], |row| number(row, 0))
        };
        Ok(Pages {
            all: pragma("page_count")?,
            free: pragma("freelist_count")?,
            bytes: pragma("page_size")?,
        })
    }

    /// Gives some of what is free back to the disk; as much as can be where that `is_tight`.
    pub(super) fn shrink(&mut self, is_tight: bool) -> Result<(), JournalError> {
        let kept = if is_tight {
            JOURNAL_TIGHT_BYTES
        } else {
            JOURNAL_KEPT_BYTES
        };
        let shrink = |database: &Connection, pages: &Pages| -> Result<(), rusqlite::Error> {
            let more = pages.free.saturating_sub(kept / pages.bytes);
            let count = more.min(JOURNAL_SHRINK_BYTES / pages.bytes);
            if count > 0 {
                let mut vacuum =
                    database.prepare(&format!("PRAGMA incremental_vacuum({count})"))?;
                let mut steps = vacuum.query([])?;
                // Each step gives a page.
                while steps.next()?.is_some() {}
            }
            if is_tight {
                // The file gets shorter when the log comes to it.
                database.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
            }
            Ok(())
        };
        let shrunk = self
            .pages()
            .and_then(|pages| shrink(&self.database, &pages));
        shrunk.map_err(|error| self.wrong(error))
    }

    /// Lets a journal that an older Holm made be shortened; it is written anew for that, so only one with
    /// little in it.
    fn let_shrink(&self) -> Result<(), rusqlite::Error> {
        let incremental = 2;
        let mode = self
            .database
            .query_row("PRAGMA auto_vacuum", [], |row| number(row, 0))?;
        let pages = self.pages()?;
        // What is in use is copied; a file that has been large may have little of it.
        let used = pages.all.saturating_sub(pages.free) * pages.bytes;
        if mode != incremental && used <= JOURNAL_KEPT_BYTES {
            self.database
                .execute_batch("PRAGMA auto_vacuum = incremental; VACUUM;")?;
        }
        Ok(())
    }

    /// The epoch that was begun.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    fn wrong(&self, error: rusqlite::Error) -> JournalError {
        self.error(error.into())
    }

    fn error(&self, failure: Failure) -> JournalError {
        let path = self.path.display().to_string();
        match failure {
            Failure::Database(error) => JournalError::Database { path, error },
            Failure::Record(error) => error.into(),
            Failure::Altered(Altered {
                epoch,
                sequence,
                what,
            }) => JournalError::Altered {
                path,
                epoch,
                sequence,
                what,
            },
        }
    }

    /// Brings over what an earlier life had spilled and not committed, then removes the segments. If an epoch has begun,
    /// its own are left alone, and what is brought over gets its next sequences.
    pub(super) fn replay(&mut self, spill_dir: &Path) -> Result<(), JournalError> {
        let mut found = spill::leftovers(spill_dir)?;
        found.retain(|leftover| leftover.epoch != self.epoch);
        let mut entries: Vec<(u64, Entry)> = Vec::new();
        for leftover in &found {
            entries.extend(leftover.records.iter().map(|(counter, record)| {
                let entry = Entry {
                    lane: leftover.lane,
                    counter: *counter,
                    record: record.clone(),
                    _ticket: None,
                };
                (leftover.epoch, entry)
            }));
        }
        entries.sort_by_key(|(epoch, entry)| (*epoch, entry.lane, entry.counter));
        let replayed = self
            .insert_new(entries)
            .map_err(|error| self.wrong(error))?;
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
            .execute("DELETE FROM spilled WHERE epoch <> ?1", [self.epoch as i64])
            .map_err(|error| self.wrong(error))?;
        Ok(())
    }

    /// `fresh`, or the one after the last if that is later.
    pub(super) fn begin_epoch(&mut self, fresh: u64) -> Result<(), JournalError> {
        let begin = |database: &mut Connection| -> Result<u64, Failure> {
            let transaction = database.transaction()?;
            check_ends(&transaction)?;
            let last = newest_epoch(&transaction)?;
            // Old epochs are of use only while records of theirs are still here.
            transaction.execute(
                "DELETE FROM epochs WHERE epoch NOT IN (SELECT epoch FROM commits)",
                [],
            )?;
            let epoch = (last + 1).max(fresh);
            transaction.execute(
                "INSERT INTO epochs (epoch, next_sequence) VALUES (?1, 1)",
                [epoch as i64],
            )?;
            transaction.commit()?;
            Ok(epoch)
        };
        self.epoch = begin(&mut self.database).map_err(|error| self.error(error))?;
        Ok(())
    }

    /// One synced transaction for all of them. Fills in their epoch and sequences.
    pub(super) fn insert(&mut self, entries: &mut [Entry]) -> Result<(), JournalError> {
        let epoch = self.epoch;
        let before = self.checked;
        let mut insert = |database: &mut Connection| {
            let transaction = database.transaction()?;
            let checked = append(&transaction, epoch, epoch, entries, before)?;
            transaction.commit()?;
            Ok(checked)
        };
        self.checked = insert(&mut self.database).map_err(|error| self.wrong(error))?;
        Ok(())
    }

    /// Inserts those of the sorted entries of earlier epochs that are not in yet; how many those were.
    fn insert_new(&mut self, entries: Vec<(u64, Entry)>) -> Result<usize, rusqlite::Error> {
        let transaction = self.database.transaction()?;
        let last = newest_epoch(&transaction)?;
        let mut by_epoch: BTreeMap<u64, Vec<Entry>> = BTreeMap::new();
        for (epoch, entry) in entries {
            let upto: Option<i64> = transaction
                .prepare_cached("SELECT upto FROM spilled WHERE epoch = ?1 AND lane = ?2")?
                .query_row(params![epoch as i64, entry.lane], |row| row.get(0))
                .optional()?;
            if entry.counter > upto.unwrap_or(0) as u64 {
                by_epoch.entry(epoch).or_default().push(entry);
            }
        }
        let (mut replayed, mut checked) = (0, self.checked);
        for (spilled_in, mut entries) in by_epoch {
            // The chain goes on and never back, wherever an old segment may come from.
            let epoch = spilled_in.max(last);
            for entries in entries.chunks_mut(MAX_COMMIT_RECORDS) {
                checked = append(&transaction, spilled_in, epoch, entries, checked)?;
                replayed += entries.len();
            }
        }
        transaction.commit()?;
        self.checked = checked;
        Ok(replayed)
    }

    /// The batch that was sealed last, or a new one of at most `max` records, which is on disk when this returns.
    pub(super) fn take(&mut self, max: usize) -> Result<Option<Batch>, JournalError> {
        let take = |database: &mut Connection, node: &Name| -> Result<Option<Batch>, Failure> {
            let transaction = database.transaction()?;
            let head = head(&transaction)?;
            let sealed = sealed(&transaction)?;
            let most = sealed.map_or(max, |(place, _)| (place.last + 1 - place.first) as usize);
            let (records, leaves) = read(&transaction, &head, most)?;
            let (Some(first), Some(last)) = (records.first(), records.last()) else {
                check_ends(&transaction)?;
                return match sealed {
                    Some((place, _)) => Err(altered(place.boot_epoch, place.first, MISSING).into()),
                    None => Ok(None),
                };
            };
            let previous = match head.epoch == first.boot_epoch {
                true => head.hash,
                false => chain::genesis(node, first.boot_epoch, head.hash),
            };
            let place = Place {
                boot_epoch: first.boot_epoch,
                first: first.sequence,
                last: last.sequence,
                previous,
            };
            let hash = chain::batch_hash(node, &place, &leaves);
            match sealed {
                Some(sealed) if sealed == (place, hash) => {}
                Some((place, _)) => {
                    return Err(altered(place.boot_epoch, place.first, CHANGED).into());
                }
                None => seal(&transaction, &place, hash)?,
            }
            transaction.commit()?;
            Ok(Some(Batch {
                place,
                hash,
                records,
            }))
        };
        take(&mut self.database, &self.node).map_err(|error| self.error(error))
    }

    /// The ledger has the batch of this hash. One that is not the last sealed was so already.
    pub(super) fn stored(&mut self, hash: Digest) -> Result<(), JournalError> {
        let store = |database: &mut Connection| -> Result<(), rusqlite::Error> {
            let transaction = database.transaction()?;
            let sealed = sealed(&transaction)?;
            let Some((place, _)) = sealed.filter(|(_, sealed)| *sealed == hash) else {
                return Ok(());
            };
            let (epoch, last) = (place.boot_epoch as i64, place.last as i64);
            // By the first sequences, of which there is an index: a backlog may be long.
            let done =
                "FROM commits WHERE (epoch, first) <= (?1, ?2) AND (epoch < ?1 OR last <= ?2)";
            let checked: Option<[u8; 32]> = transaction
                .prepare_cached(&format!(
                    "SELECT \"check\" {done} ORDER BY epoch DESC, first DESC LIMIT 1"
                ))?
                .query_row([epoch, last], |row| row.get(0))
                .optional()?;
            transaction
                .prepare_cached(
                    "UPDATE head SET epoch = ?1, last = ?2, hash = ?3, checked = coalesce(?4, checked)",
                )?
                .execute(params![epoch, last, hash.0, checked])?;
            transaction
                .prepare_cached(&format!("DELETE {done}"))?
                .execute([epoch, last])?;
            transaction.execute("DELETE FROM batch", [])?;
            transaction.commit()
        };
        store(&mut self.database).map_err(|error| self.wrong(error))
    }
}

/// Appends one commit; returns its check. `spilled_in` is the epoch of the segments that the entries are in.
fn append(
    transaction: &Transaction<'_>,
    spilled_in: u64,
    epoch: u64,
    entries: &mut [Entry],
    before: Digest,
) -> Result<Digest, rusqlite::Error> {
    let count = entries.len() as i64;
    let first: i64 = transaction
        .prepare_cached(
            "INSERT INTO epochs (epoch, next_sequence) VALUES (?1, 1 + ?2)
             ON CONFLICT (epoch) DO UPDATE SET next_sequence = next_sequence + ?2
             RETURNING next_sequence - ?2",
        )?
        .query_row([epoch as i64, count], |row| row.get(0))?;
    let mut upto = BTreeMap::new();
    for (entry, sequence) in entries.iter_mut().zip(first as u64..) {
        entry.record.boot_epoch = epoch;
        entry.record.sequence = sequence;
        upto.insert(entry.lane, entry.counter);
    }
    let place = (epoch, first as u64, (first + count - 1) as u64);
    let check = keep(
        transaction,
        place,
        entries.iter().map(|entry| &entry.record),
        before,
    )?;
    used::add(transaction, entries.iter().map(|entry| &entry.record))?;
    for (lane, counter) in upto {
        transaction
            .prepare_cached(
                "INSERT INTO spilled (epoch, lane, upto) VALUES (?1, ?2, ?3)
                 ON CONFLICT (epoch, lane) DO UPDATE SET upto = excluded.upto",
            )?
            .execute(params![spilled_in as i64, lane, counter as i64])?;
    }
    Ok(check)
}

fn check(before: Digest, leaves: &[u8]) -> Digest {
    Digest::of(&[&before.0[..], leaves].concat())
}

/// The newest that the journal or the ledger has had.
fn newest_epoch(transaction: &Transaction<'_>) -> Result<u64, rusqlite::Error> {
    transaction.query_row(
        "SELECT max((SELECT coalesce(max(epoch), 0) FROM epochs), (SELECT epoch FROM head))",
        [],
        |row| number(row, 0),
    )
}

fn newest_check(database: &Connection) -> Result<Digest, rusqlite::Error> {
    database
        .query_row(
            "SELECT coalesce((SELECT \"check\" FROM commits ORDER BY id DESC LIMIT 1), checked) FROM head",
            [],
            |row| row.get(0),
        )
        .map(Digest)
}

fn head(transaction: &Transaction<'_>) -> Result<Head, rusqlite::Error> {
    transaction
        .prepare_cached("SELECT epoch, last, hash, checked FROM head")?
        .query_row([], |row| {
            Ok(Head {
                epoch: number(row, 0)?,
                last: number(row, 1)?,
                hash: Digest(row.get(2)?),
                checked: Digest(row.get(3)?),
            })
        })
}

fn sealed(transaction: &Transaction<'_>) -> Result<Option<(Place, Digest)>, rusqlite::Error> {
    transaction
        .prepare_cached("SELECT epoch, first, last, previous, hash FROM batch")?
        .query_row([], |row| {
            let place = Place {
                boot_epoch: number(row, 0)?,
                first: number(row, 1)?,
                last: number(row, 2)?,
                previous: Digest(row.get(3)?),
            };
            Ok((place, Digest(row.get(4)?)))
        })
        .optional()
}

fn seal(transaction: &Transaction<'_>, place: &Place, hash: Digest) -> Result<(), rusqlite::Error> {
    transaction
        .prepare_cached("INSERT INTO batch VALUES (1, ?1, ?2, ?3, ?4, ?5)")?
        .execute(params![
            place.boot_epoch as i64,
            place.first as i64,
            place.last as i64,
            place.previous.0,
            hash.0
        ])?;
    Ok(())
}

/// The records of one epoch behind the head, at most `max`, and their leaves. Every commit that is touched is
/// compared with its check.
fn read(
    transaction: &Transaction<'_>,
    head: &Head,
    max: usize,
) -> Result<(Vec<UsageRecord>, Vec<Digest>), Failure> {
    let (mut records, mut leaves) = (Vec::new(), Vec::new());
    let mut statement = transaction.prepare_cached(
        "SELECT epoch, first, last, records, leaves, \"check\" FROM commits ORDER BY id",
    )?;
    let mut rows = statement.query([])?;
    let mut before = head.checked;
    // The epoch, and its last sequence given.
    let mut given: Option<(u64, u64)> = None;
    // The first sequence that has not been read, in the commits' order; a journal's first commit may begin anywhere,
    // since the ledger may have what was before it from a time without a chain.
    let mut next = (head.epoch, head.last + 1);
    while let Some(row) = rows.next()? {
        let epoch = number(row, 0)?;
        if records.len() >= max || given.is_some_and(|(of, _)| of != epoch) {
            break;
        }
        let last_given = match given {
            Some((_, last)) => last,
            None => transaction
                .prepare_cached("SELECT next_sequence - 1 FROM epochs WHERE epoch = ?1")?
                .query_row([epoch as i64], |row| number(row, 0))
                .optional()?
                .unwrap_or(0),
        };
        given = Some((epoch, last_given));
        let commit = Commit {
            epoch,
            first: number(row, 1)?,
            last: number(row, 2)?,
            records: row.get(3)?,
            leaves: row.get(4)?,
            check: Digest(row.get(5)?),
        };
        if commit.last > last_given {
            return Err(commit.altered(commit.last, PUT_IN).into());
        }
        if commit.epoch != next.0 {
            let begins = if next.0 == 0 { commit.first } else { 1 };
            next = (commit.epoch, begins);
        }
        let found = commit.open(next.1)?;
        if check(before, &commit.leaves) != commit.check {
            return Err(commit.altered(commit.first, PUT_IN).into());
        }
        before = commit.check;
        let behind = found
            .into_iter()
            .skip_while(|(record, _)| record.sequence < next.1);
        for (record, leaf) in behind.take(max - records.len()) {
            records.push(record);
            leaves.push(leaf);
        }
        next.1 = commit.last + 1;
    }
    Ok((records, leaves))
}

/// Whether the last commit of each epoch is still there, as far as the ledger does not have it.
fn check_ends(transaction: &Transaction<'_>) -> Result<(), Failure> {
    let head = head(transaction)?;
    let mut epochs = transaction.prepare_cached(
        "SELECT epoch, next_sequence - 1, (SELECT last FROM commits WHERE commits.epoch = epochs.epoch
                                            ORDER BY first DESC LIMIT 1)
         FROM epochs ORDER BY epoch",
    )?;
    let mut rows = epochs.query([])?;
    while let Some(row) = rows.next()? {
        let (epoch, last) = (number(row, 0)?, number(row, 1)?);
        let there = row.get::<_, Option<i64>>(2)?.unwrap_or(0) as u64;
        // From before there was a chain, and all of it is in the ledger.
        if there == 0 && head.epoch == 0 {
            continue;
        }
        let in_ledger = match epoch.cmp(&head.epoch) {
            std::cmp::Ordering::Less => last,
            std::cmp::Ordering::Equal => head.last,
            std::cmp::Ordering::Greater => 0,
        };
        let until = there.max(in_ledger);
        if until < last {
            return Err(altered(epoch, until + 1, MISSING).into());
        }
    }
    Ok(())
}

impl Commit {
    fn altered(&self, sequence: u64, what: &'static str) -> Altered {
        altered(self.epoch, sequence, what)
    }

    /// Its records with their leaves. `next` is the sequence that is to be in it, and the first one unless a batch
    /// ended within it.
    fn open(&self, next: u64) -> Result<Vec<(UsageRecord, Digest)>, Altered> {
        if self.first > next {
            return Err(self.altered(next, MISSING));
        }
        if self.last < next {
            return Err(self.altered(self.first, AGAIN));
        }
        let mut found = Vec::new();
        let mut rest = &self.records[..];
        let mut leaves = self.leaves.chunks_exact(32);
        for sequence in self.first..=self.last {
            let (record, after) = match chain::decode(rest) {
                Some(read) => read,
                None if rest.is_empty() => return Err(self.altered(sequence, MISSING)),
                None => return Err(self.altered(sequence, CHANGED)),
            };
            let leaf = chain::leaf_of(&rest[..rest.len() - after.len()]);
            if (record.boot_epoch, record.sequence) != (self.epoch, sequence) {
                let what = match record.sequence > sequence {
                    true => MISSING,
                    false => AGAIN,
                };
                return Err(self.altered(sequence, what));
            }
            if leaves.next() != Some(&leaf.0[..]) {
                return Err(self.altered(sequence, CHANGED));
            }
            found.push((record, leaf));
            rest = after;
        }
        match rest.is_empty() && leaves.next().is_none() {
            true => Ok(found),
            false => Err(self.altered(self.last + 1, PUT_IN)),
        }
    }
}

fn altered(epoch: u64, sequence: u64, what: &'static str) -> Altered {
    Altered {
        epoch,
        sequence,
        what,
    }
}

/// Brings a journal without a chain up to date: what it has not uploaded becomes the beginning of one.
fn chain_rows(database: &mut Connection) -> Result<(), Failure> {
    let transaction = database.transaction()?;
    transaction.execute_batch(CHAIN)?;
    {
        let mut statement = transaction
            .prepare("SELECT epoch, sequence, record FROM records ORDER BY epoch, sequence")?;
        let mut rows = statement.query([])?;
        let (mut checked, mut commit) = (NOTHING_BEFORE, Vec::new());
        let mut row = rows.next()?;
        while let Some(found) = row {
            let record =
                codec::decode_stored(&found.get::<_, Vec<u8>>(2)?).map_err(Failure::Record)?;
            let epoch = record.boot_epoch;
            commit.push(record);
            row = rows.next()?;
            let more = match row {
                Some(next) => number(next, 0)? == epoch,
                None => false,
            };
            if !more || commit.len() == MAX_COMMIT_RECORDS {
                let done: Vec<UsageRecord> = std::mem::take(&mut commit);
                if let (Some(first), Some(last)) = (done.first(), done.last()) {
                    let place = (epoch, first.sequence, last.sequence);
                    checked = keep(&transaction, place, done.iter(), checked)?;
                }
            }
        }
    }
    transaction.execute_batch("DROP TABLE records")?;
    transaction.commit()?;
    Ok(())
}

/// Stores records that have their sequences, from `first` to `last`, as one commit; returns its check.
fn keep<'a>(
    transaction: &Transaction<'_>,
    (epoch, first, last): (u64, u64, u64),
    records: impl ExactSizeIterator<Item = &'a UsageRecord>,
    before: Digest,
) -> Result<Digest, rusqlite::Error> {
    let mut bytes = Vec::with_capacity(records.len() * 192);
    let mut leaves = Vec::with_capacity(records.len() * 32);
    for record in records {
        let begin = bytes.len();
        chain::encode(record, &mut bytes);
        leaves.extend(chain::leaf_of(&bytes[begin..]).0);
    }
    let check = check(before, &leaves);
    transaction
        .prepare_cached(
            "INSERT INTO commits (epoch, first, last, records, leaves, \"check\")
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .execute(params![
            epoch as i64,
            first as i64,
            last as i64,
            bytes,
            leaves,
            check.0
        ])?;
    Ok(check)
}

fn number(row: &Row<'_>, column: usize) -> Result<u64, rusqlite::Error> {
    row.get::<_, i64>(column).map(|number| number as u64)
}

/// An epoch that no other start of a node of this name has had, even one that had another state directory or an older
/// copy of this one: the ledger knows a record by node, epoch and sequence, and refuses another one under a known
/// key. The second says so, and random bits where the clock does not. Below 2^53, up to which JSON's readers agree
/// on integers, for 200 years.
pub(super) fn fresh_epoch() -> u64 {
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
