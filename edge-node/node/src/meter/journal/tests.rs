//! The journal on real files.

use std::collections::BTreeSet;

use holm_model::chain::{self, NOTHING_BEFORE};
use rusqlite::Connection;

use super::*;
use crate::meter::Meter;
use crate::meter::spill::SpillWriter;
use holm_model::ids::{Digest, RequestId};
use holm_model::usage::Outcome;

pub(crate) fn record() -> UsageRecord {
    UsageRecord {
        boot_epoch: 0,
        sequence: 0,
        request: RequestId([1; 16]),
        function: "acme/hello".parse().unwrap(),
        version: Digest::of(b"v"),
        accepted_ms: 1,
        outcome: Outcome::Answered,
        status: 200,
        queue_ns: 1,
        restore_ns: 2,
        run_ns: 3,
        cpu_ns: 4,
        memory_bytes: 5,
        request_bytes: 6,
        response_bytes: 7,
        egress_bytes: 8,
        ingress_bytes: 9,
        cold: false,
        exits: 2,
        probe: false,
    }
}

pub(crate) fn node() -> Name {
    "edge".parse().unwrap()
}

fn meter(journal: &Journal, lane: u32) -> Meter {
    let progress = journal.progress.clone();
    let spill = SpillWriter::create(&journal.spill_dir, journal.epoch, lane, progress.clone());
    Meter::new(spill.unwrap(), journal.sender.clone(), progress)
}

fn numbered(n: u64) -> UsageRecord {
    UsageRecord {
        accepted_ms: n,
        ..record()
    }
}

#[tokio::test]
async fn records_of_several_threads_get_one_sequence_without_gaps() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::start(dir.path(), &node(), 3, None).unwrap();
    let threads: Vec<_> = (0..3)
        .map(|lane| {
            let mut meter = meter(&journal, lane);
            std::thread::spawn(move || {
                for n in 0..100 {
                    meter
                        .record(numbered(u64::from(lane) * 1000 + n), None)
                        .unwrap();
                }
            })
        })
        .collect();
    threads
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
    let taken = journal.reader().take(1000).await.unwrap().unwrap().records;
    let sequences: Vec<u64> = taken.iter().map(|record| record.sequence).collect();
    assert_eq!(sequences, (1..=300).collect::<Vec<_>>());
    let epoch = journal.epoch;
    assert!(taken.iter().all(|record| record.boot_epoch == epoch));
    journal.stop();
}

#[tokio::test]
async fn what_the_ledger_has_is_deleted_and_the_rest_comes_in_a_chain() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::start(dir.path(), &node(), 1, None).unwrap();
    let mut meter = meter(&journal, 0);
    (1..=5).for_each(|n| meter.record(numbered(n), None).unwrap());
    let reader = journal.reader();
    let first = reader.take(2).await.unwrap().unwrap();
    let times = |batch: &Batch| {
        batch
            .records
            .iter()
            .map(|r| r.accepted_ms)
            .collect::<Vec<_>>()
    };
    assert_eq!(times(&first), [1, 2]);
    let epoch = journal.epoch;
    let genesis = chain::genesis(&node(), epoch, NOTHING_BEFORE);
    assert_eq!(first.place.previous, genesis);
    // Whatever has come since, and however much is asked for, it is the same batch until the ledger has it.
    assert_eq!(reader.take(1).await.unwrap().unwrap(), first);
    assert_eq!(reader.take(10).await.unwrap().unwrap(), first);
    reader.stored(NOTHING_BEFORE).await.unwrap();
    assert_eq!(reader.take(10).await.unwrap().unwrap(), first);
    reader.stored(first.hash).await.unwrap();
    let rest = reader.take(10).await.unwrap().unwrap();
    assert_eq!(times(&rest), [3, 4, 5]);
    assert_eq!(rest.place.previous, first.hash);
    journal.stop();
    // The next life goes on with a higher epoch and still has it.
    let journal = Journal::start(dir.path(), &node(), 1, None).unwrap();
    assert!(journal.epoch > epoch);
    assert_eq!(journal.reader().take(2).await.unwrap().unwrap(), rest);
    // And stands on it, also when the journal is empty in between.
    journal.reader().stored(rest.hash).await.unwrap();
    assert_eq!(journal.reader().take(2).await.unwrap(), None);
    journal.stop();
    let journal = Journal::start(dir.path(), &node(), 1, None).unwrap();
    self::meter(&journal, 0).record(numbered(6), None).unwrap();
    let next = journal.reader().take(2).await.unwrap().unwrap();
    assert_eq!(
        next.place.previous,
        chain::genesis(&node(), journal.epoch, rest.hash)
    );
    journal.stop();
}

#[tokio::test]
async fn a_kill_between_spill_and_commit_loses_nothing_and_doubles_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(&dir.path().join("journal.sqlite"), &node()).unwrap();
    store.begin_epoch(1).unwrap();
    let spill_dir = dir.path().join("spill");
    files::make_dir(&spill_dir).unwrap();
    let progress = Arc::new(Progress::new(1));
    let mut spill = SpillWriter::create(&spill_dir, 1, 0, progress).unwrap();
    for n in 1..=3 {
        let record = UsageRecord {
            boot_epoch: 1,
            ..numbered(n)
        };
        let counter = spill.append(&record).unwrap();
        // The first two were committed before the kill, the third was not.
        if n < 3 {
            store
                .insert(&mut [Entry {
                    lane: 0,
                    counter,
                    record,
                    _ticket: None,
                }])
                .unwrap();
        }
    }
    // Its last frame is torn: nobody was answered for it.
    let path = spill_dir.join("1-0-a.log");
    let before = std::fs::read(&path).unwrap();
    spill
        .append(&UsageRecord {
            boot_epoch: 1,
            ..numbered(4)
        })
        .unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    let differs = bytes
        .iter()
        .zip(&before)
        .rposition(|(now, then)| now != then);
    bytes[differs.unwrap()] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    drop((store, spill));

    let mut last = 1;
    for _ in 2..4 {
        let journal = Journal::start(dir.path(), &node(), 1, None).unwrap();
        assert!(journal.epoch > last);
        last = journal.epoch;
        let taken = journal.reader().take(10).await.unwrap().unwrap();
        let keys: Vec<_> = taken
            .records
            .iter()
            .map(|r| (r.boot_epoch, r.sequence, r.accepted_ms))
            .collect();
        assert_eq!(keys, [(1, 1, 1), (1, 2, 2), (1, 3, 3)]);
        journal.stop();
    }
}

#[test]
fn a_journal_of_another_schema_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal.sqlite");
    drop(Store::open(&path, &node()).unwrap());
    Connection::open(&path)
        .unwrap()
        .pragma_update(None, "user_version", 9)
        .unwrap();
    let error = Journal::start(dir.path(), &node(), 1, None)
        .unwrap_err()
        .to_string();
    assert!(error.contains("schema 9"), "{error}");
}

#[test]
fn a_journal_that_begins_anew_has_another_epoch_and_one_that_goes_on_a_later_one() {
    let begin = |dir: &Path| {
        let journal = Journal::start(dir, &node(), 1, None).unwrap();
        let epoch = journal.epoch;
        journal.stop();
        epoch
    };
    let dirs: Vec<_> = (0..5).map(|_| tempfile::tempdir().unwrap()).collect();
    let mut epochs: Vec<u64> = dirs.iter().map(|dir| begin(dir.path())).collect();
    // Within a second as well, but for one time in 100,000.
    epochs.sort_unstable();
    epochs.dedup();
    assert_eq!(epochs.len(), 5);
    let largest_in_json = 1 << 53;
    assert!(epochs.iter().all(|epoch| *epoch < largest_in_json));

    // Where the clock has been set back, the last epoch counts.
    let mut store = Store::open(&dirs[0].path().join("journal.sqlite"), &node()).unwrap();
    store.begin_epoch(1 << 52).unwrap();
    drop(store);
    assert_eq!(begin(dirs[0].path()), (1 << 52) + 1);
}

/// A journal with five commits of three records each, of which a batch of the first four records is in the ledger.
fn filled(path: &Path) -> Store {
    let mut store = Store::open(path, &node()).unwrap();
    store.begin_epoch(7).unwrap();
    for commit in 0..5 {
        let entry = |n: u64| Entry {
            lane: 0,
            counter: commit * 3 + n,
            record: numbered(commit * 3 + n),
            _ticket: None,
        };
        store.insert(&mut [1, 2, 3].map(entry)).unwrap();
    }
    let first = store.take(4).unwrap().unwrap();
    assert_eq!((first.place.first, first.place.last), (1, 4));
    store.stored(first.hash).unwrap();
    store
}

/// Does something to the records or the leaves of the third commit, which has records 7 to 9.
fn edit(journal: &Connection, column: &str, edit: impl FnOnce(&mut Vec<u8>)) {
    let of = format!("SELECT {column} FROM commits WHERE first = 7");
    let mut bytes: Vec<u8> = journal.query_row(&of, [], |row| row.get(0)).unwrap();
    edit(&mut bytes);
    let to = format!("UPDATE commits SET {column} = ?1 WHERE first = 7");
    assert_eq!(journal.execute(&to, [bytes]).unwrap(), 1);
}

/// What is changed, taken out, put in or there a second time is named, and nothing of it is sealed.
#[test]
fn what_is_altered_in_the_journal_is_named() {
    const BYTES: usize = 153 + 1 + "acme".len() + 1 + "hello".len();
    const SECOND: std::ops::Range<usize> = BYTES..2 * BYTES;
    const ROW: &str = "epoch, first, last, records, leaves, \"check\"";
    type Alter = fn(&Connection);
    let run = |journal: &Connection, sql: &str| {
        assert_eq!(journal.execute(sql, []).unwrap(), 1, "{sql}");
    };
    let alterations: [(Alter, u64, &str); 9] = [
        // A byte of its run time, of its name's length, of its leaf.
        (
            |j| edit(j, "records", |r| r[SECOND][95] ^= 1),
            8,
            "was changed",
        ),
        (
            |j| edit(j, "records", |r| r[SECOND][153] ^= 0x40),
            8,
            "was changed",
        ),
        (|j| edit(j, "leaves", |l| l[40] ^= 1), 8, "was changed"),
        (
            |j| edit(j, "records", |r| drop(r.drain(SECOND))),
            8,
            "is missing",
        ),
        (
            |j| edit(j, "records", |r| r.truncate(2 * BYTES)),
            9,
            "is missing",
        ),
        (
            |j| edit(j, "records", |r| r.copy_within(SECOND, 2 * BYTES)),
            9,
            "a second time",
        ),
        (
            |j| edit(j, "records", |r| r.extend_from_within(SECOND)),
            10,
            "put in later",
        ),
        // Whoever changes the leaf as well has the commit's check against him.
        (
            |j| {
                edit(j, "records", |r| r[SECOND][95] ^= 1);
                let of = "SELECT records FROM commits WHERE first = 7";
                let records: Vec<u8> = j.query_row(of, [], |row| row.get(0)).unwrap();
                let leaf = chain::leaf_of(&records[SECOND]);
                edit(j, "leaves", |l| l[32..64].copy_from_slice(&leaf.0));
            },
            7,
            "was changed",
        ),
        (
            |j| {
                edit(j, "records", |r| {
                    let of = "SELECT records FROM commits WHERE first = 10";
                    *r = j.query_row(of, [], |row| row.get(0)).unwrap();
                })
            },
            7,
            "is missing",
        ),
    ];
    let named = |alter: &dyn Fn(&Connection), sequence: u64, says: &str| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.sqlite");
        let mut store = filled(&path);
        alter(&Connection::open(&path).unwrap());
        let error = loop {
            match store.take(100) {
                Ok(Some(batch)) => store.stored(batch.hash).unwrap(),
                Ok(None) => panic!("nothing is found where {sequence} {says}"),
                Err(error) => break error,
            }
        };
        assert!(
            matches!(error, JournalError::Altered { epoch: 7, sequence: named, .. } if named == sequence),
            "{error}, not {sequence}"
        );
        assert!(error.to_string().contains(says), "{error}");
    };
    for (alter, sequence, says) in alterations {
        named(&alter, sequence, says);
    }
    named(
        &|j| run(j, "DELETE FROM commits WHERE first = 7"),
        7,
        "is missing",
    );
    named(
        &|j| run(j, "DELETE FROM commits WHERE first = 13"),
        13,
        "is missing",
    );
    let again = format!(
        "INSERT INTO commits ({ROW}) SELECT epoch, 16, 18, records, leaves, \"check\" FROM commits WHERE first = 7"
    );
    named(&|j| run(j, &again), 18, "put in later");
}

#[test]
fn a_sealed_batch_that_is_altered_is_not_sent_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal.sqlite");
    let mut store = filled(&path);
    let sealed = store.take(5).unwrap().unwrap();
    let other = Connection::open(&path).unwrap();
    other
        .execute("UPDATE batch SET last = last + 1", [])
        .unwrap();
    assert!(matches!(
        store.take(5),
        Err(JournalError::Altered { sequence: 5, .. })
    ));
    other
        .execute("UPDATE batch SET last = last - 1", [])
        .unwrap();
    assert_eq!(store.take(5).unwrap().unwrap(), sealed);
    other.execute("DELETE FROM commits", []).unwrap();
    assert!(matches!(store.take(5), Err(JournalError::Altered { .. })));
}

#[test]
fn a_journal_without_a_chain_is_brought_up_to_date_with_what_it_has() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal.sqlite");
    let old = Connection::open(&path).unwrap();
    old.execute_batch(
        "CREATE TABLE epochs (epoch INTEGER PRIMARY KEY, next_sequence INTEGER NOT NULL);
         CREATE TABLE spilled (
             epoch INTEGER NOT NULL, lane INTEGER NOT NULL, upto INTEGER NOT NULL,
             PRIMARY KEY (epoch, lane)
         ) WITHOUT ROWID;
         CREATE TABLE records (
             epoch INTEGER NOT NULL, sequence INTEGER NOT NULL, record BLOB NOT NULL,
             PRIMARY KEY (epoch, sequence)
         ) WITHOUT ROWID;
         INSERT INTO epochs VALUES (5, 7), (6, 3);
         PRAGMA user_version = 2;",
    )
    .unwrap();
    let mut sent = BTreeSet::new();
    // The first three of epoch 5 are in the ledger.
    for (epoch, sequence) in [(5, 4), (5, 5), (5, 6), (6, 1), (6, 2)] {
        let record = UsageRecord {
            boot_epoch: epoch,
            sequence,
            ..record()
        };
        let frame = holm_model::codec::encode_file(&record, 3).unwrap();
        old.execute(
            "INSERT INTO records VALUES (?1, ?2, ?3)",
            rusqlite::params![epoch as i64, sequence as i64, frame],
        )
        .unwrap();
        sent.insert((epoch, sequence));
    }
    drop(old);
    // One whose records are all in the ledger, or only those of its older life.
    for left in ["DELETE FROM records", "DELETE FROM records WHERE epoch = 5"] {
        let copy = dir.path().join("copy.sqlite");
        std::fs::copy(&path, &copy).unwrap();
        Connection::open(&copy)
            .unwrap()
            .execute_batch(left)
            .unwrap();
        let mut store = Store::open(&copy, &node()).unwrap();
        store.begin_epoch(1).unwrap();
        assert_eq!(store.epoch(), 7);
        drop(store);
        for entry in std::fs::read_dir(dir.path()).unwrap() {
            let entry = entry.unwrap();
            if entry.file_name().to_string_lossy().starts_with("copy") {
                std::fs::remove_file(entry.path()).unwrap();
            }
        }
    }
    let mut store = Store::open(&path, &node()).unwrap();
    store.begin_epoch(1).unwrap();
    assert_eq!(store.epoch(), 7);
    let mut got = BTreeSet::new();
    let mut before = NOTHING_BEFORE;
    while let Some(batch) = store.take(100).unwrap() {
        assert_eq!(
            batch.place.previous,
            chain::genesis(&node(), batch.place.boot_epoch, before)
        );
        before = batch.hash;
        got.extend(batch.records.iter().map(|r| (r.boot_epoch, r.sequence)));
        store.stored(batch.hash).unwrap();
    }
    assert_eq!(got, sent);
}

/// A billionth for a request.
fn gauge(scope: &str) -> Arc<Gauge> {
    use holm_model::price::{Amount, Prices};
    let prices = Prices {
        million_requests: Amount(1_000_000),
        ..Prices::default()
    };
    let span = holm_model::budget::PriceSpan { from_ms: 0, prices };
    let month = holm_model::budget::Month::of(1);
    Arc::new(Gauge::new(scope.parse().unwrap(), month, vec![span]))
}

fn commit(store: &mut Store, counter: u64, record: UsageRecord) {
    let mut entries = [Entry {
        lane: 0,
        counter,
        record,
        _ticket: None,
    }];
    store.insert(&mut entries).unwrap();
}

#[test]
fn what_was_spent_is_known_when_the_records_are_in_the_ledger_and_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal.sqlite");
    let spent = |store: &Store, scope: &str| {
        let gauge = gauge(scope);
        let counted = store.counted(&gauge).unwrap();
        (counted, counted - store.unsent(&gauge).unwrap())
    };
    let mut store = Store::open(&path, &node()).unwrap();
    store.begin_epoch(1).unwrap();
    let shed = UsageRecord {
        outcome: Outcome::Shed,
        ..record()
    };
    let other = UsageRecord {
        function: "acme/other".parse().unwrap(),
        ..record()
    };
    let later = UsageRecord {
        accepted_ms: 40 * 86_400_000,
        ..record()
    };
    for (counter, record) in (1..).zip([record(), record(), shed, other, later]) {
        commit(&mut store, counter, record);
    }
    assert_eq!(spent(&store, "acme/hello"), (2_000, 0));
    assert_eq!(spent(&store, "acme"), (3_000, 0));
    let batch = store.take(10).unwrap().unwrap();
    store.stored(batch.hash).unwrap();
    assert_eq!(spent(&store, "acme"), (3_000, 3_000));
    drop(store);
    let mut store = Store::open(&path, &node()).unwrap();
    store.begin_epoch(2).unwrap();
    commit(&mut store, 1, record());
    assert_eq!(spent(&store, "acme"), (4_000, 3_000));
    assert_eq!(spent(&store, "other"), (0, 0));

    // From before there was such a count: what is not uploaded is counted.
    drop(store);
    let old = Connection::open(&path).unwrap();
    old.execute_batch("DROP TABLE used; DROP TABLE counted; PRAGMA user_version = 3;")
        .unwrap();
    drop(old);
    let store = Store::open(&path, &node()).unwrap();
    assert_eq!(spent(&store, "acme"), (1_000, 0));
}

#[test]
fn months_are_forgotten_when_they_are_over_and_are_then_not_whole() {
    const DAY: u64 = 86_400_000;
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(&dir.path().join("journal.sqlite"), &node()).unwrap();
    store.begin_epoch(1).unwrap();
    assert_eq!(store.forget_used(5 * DAY).unwrap(), 5 * DAY);
    commit(&mut store, 1, record());
    let rows = |store: &Store| {
        let gauges = ByTenant::new(vec![gauge("acme")]);
        store.spent(&gauges).unwrap().values().sum::<u64>()
    };
    // Within the day after, for what is late.
    assert_eq!(store.forget_used(31 * DAY).unwrap(), 5 * DAY);
    assert_eq!(rows(&store), 1_000);
    assert_eq!(store.forget_used(33 * DAY).unwrap(), 31 * DAY);
    assert_eq!(rows(&store), 0);
    // A clock that was ahead: this month is not whole either, and stays so.
    assert_eq!(store.forget_used(70 * DAY).unwrap(), 59 * DAY);
    assert_eq!(store.forget_used(34 * DAY).unwrap(), 59 * DAY);
}

#[tokio::test]
async fn what_is_committed_moves_the_gauge_and_lets_go_of_what_was_reserved() {
    use crate::budget::gauge::Reserve;
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::start(dir.path(), &node(), 1, None).unwrap();
    let mut meter = meter(&journal, 0);
    let reader = journal.reader();
    meter.record(record(), None).unwrap();
    let gauge = gauge("acme");
    gauge.set_lease(10_000, 0);
    reader.gauge(vec![gauge.clone()]).await.unwrap();
    assert_eq!((gauge.spent(), gauge.room()), (1_000, 9_000));
    let reserve = Arc::new(Reserve::new(vec![(gauge.clone(), 4_000)], 1));
    let ticket = reserve.take(1).unwrap();
    assert_eq!(gauge.room(), 5_000);
    meter.record(record(), Some(ticket)).unwrap();
    // Asked behind it in the journal's queue.
    reader.take(10).await.unwrap();
    assert_eq!((gauge.spent(), gauge.room()), (2_000, 8_000));
    journal.stop();
}

#[tokio::test]
async fn what_is_in_the_ledger_of_a_budget_is_kept_as_batches_come_and_go() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::start(dir.path(), &node(), 1, None).unwrap();
    let mut meter = meter(&journal, 0);
    let reader = journal.reader();
    let gauge = gauge("acme");
    for n in 1..=5 {
        meter.record(numbered(n), None).unwrap();
    }
    assert_eq!(reader.uploaded(gauge.clone()).await.unwrap(), 0);
    // From here on nothing is to be read again to know it: what somebody does to the file is not seen.
    let batch = reader.take(3).await.unwrap().unwrap();
    let other = Connection::open(dir.path().join("journal.sqlite")).unwrap();
    let more = "INSERT INTO commits SELECT 99, epoch + 9, first, last, records, leaves, \"check\" FROM commits LIMIT 1";
    other.execute(more, []).unwrap();
    assert_eq!(reader.uploaded(gauge.clone()).await.unwrap(), 0);
    other
        .execute("DELETE FROM commits WHERE id = 99", [])
        .unwrap();
    reader.stored(batch.hash).await.unwrap();
    assert_eq!(reader.uploaded(gauge.clone()).await.unwrap(), 3_000);
    meter.record(numbered(6), None).unwrap();
    let rest = reader.take(10).await.unwrap().unwrap();
    assert_eq!(reader.uploaded(gauge.clone()).await.unwrap(), 3_000);
    reader.stored(rest.hash).await.unwrap();
    assert_eq!(reader.uploaded(gauge).await.unwrap(), 6_000);
    journal.stop();
}

/// Meters until the node would take no more requests; how many that were.
fn fill(meter: &mut Meter, next: &mut u64, most: u64) -> u64 {
    let mut count = 0;
    while count < most && meter.has_room() {
        // Where the spill finds no room, nobody is answered.
        if meter.record(numbered(*next), None).is_err() {
            break;
        }
        (*next, count) = (*next + 1, count + 1);
        if count % 512 == 0 {
            // The journal is to get on.
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
    count
}

/// Uploads what there is, into `ledger`; ends when there is nothing.
fn upload(journal: &Journal, ledger: &mut Vec<u64>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.unwrap().block_on(async {
        let reader = journal.reader();
        let patience = std::time::Duration::from_secs(20);
        let serve = async {
            while let Some(batch) = reader.take(4096).await.unwrap() {
                ledger.extend(batch.records.iter().map(|record| record.accepted_ms));
                reader.stored(batch.hash).await.unwrap();
            }
        };
        tokio::time::timeout(patience, serve)
            .await
            .expect("the journal serves its uploader");
    });
}

fn waits_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = std::time::Instant::now();
    while !is_so() {
        assert!(begun.elapsed().as_secs() < 20, "{what}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

#[test]
fn a_journal_at_its_limit_takes_nothing_more_until_some_of_it_is_uploaded_and_then_gets_shorter() {
    const LIMIT: u64 = 12 << 20;
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::start(dir.path(), &node(), 1, Some(LIMIT)).unwrap();
    let mut meter = meter(&journal, 0);
    let mut next = 1;
    fill(&mut meter, &mut next, 200_000);
    assert!(!meter.has_room() && next < 150_000, "{next}");
    let file = || {
        std::fs::metadata(dir.path().join("journal.sqlite"))
            .unwrap()
            .len()
    };
    waits_for("it is written", || {
        journal.progress.queued.load(Ordering::Relaxed) == 0
    });
    let mut ledger = Vec::new();
    upload(&journal, &mut ledger);
    assert_eq!(ledger, (1..next).collect::<Vec<_>>());
    assert!(meter.has_room(), "it is below its limit");
    // As one that stops does, whose log comes to the file.
    journal.stop();
    let kept = crate::limits::JOURNAL_KEPT_BYTES;
    assert!(file() < kept + (1 << 20), "{} bytes", file());
}

/// Runs the ignored test `name` where `HOLM_SMALL_DISK` is a disk of its own of 64 MiB.
fn on_a_small_disk(name: &str) {
    let dir = tempfile::tempdir().unwrap();
    let script = "mount -t tmpfs -o size=64m tmpfs \"$HOLM_SMALL_DISK\" && exec \"$0\" --exact --ignored --nocapture \"$1\"";
    let ran = std::process::Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", script])
        .arg(std::env::current_exe().unwrap())
        .arg(format!("meter::journal::tests::{name}"))
        .env("HOLM_SMALL_DISK", dir.path())
        .output()
        .expect("util-linux has unshare");
    let said = String::from_utf8_lossy(&ran.stdout) + String::from_utf8_lossy(&ran.stderr);
    if said.contains("unshare: ") {
        println!("not tried, since there can be no disk of its own here: {said}");
        return;
    }
    assert!(ran.status.success() && said.contains("1 passed"), "{said}");
}

/// Writes to a file until the disk has no room at all.
fn fill_disk(dir: &Path) {
    use std::io::Write as _;
    let mut file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(dir.join("of somebody else"))
        .unwrap();
    for size in [1 << 20, 4096] {
        while file.write_all(&vec![1; size]).is_ok() {}
    }
}

#[test]
fn a_full_disk_heals_by_uploading_and_nothing_is_lost() {
    on_a_small_disk("a_disk_that_the_journal_fills");
}

#[test]
#[ignore = "runs where the one above says"]
fn a_disk_that_the_journal_fills() {
    let Some(dir) = std::env::var_os("HOLM_SMALL_DISK").map(PathBuf::from) else {
        return;
    };
    let journal = Journal::start(&dir, &node(), 1, None).unwrap();
    let mut meter = meter(&journal, 0);
    let (mut next, mut ledger) = (1, Vec::new());
    fill(&mut meter, &mut next, 40_000);
    assert!(meter.has_room());
    fill_disk(&dir);
    fill(&mut meter, &mut next, 100_000);
    assert!(!meter.has_room(), "the disk is full");
    // The disk stays as full as it is by others, and what is uploaded makes room.
    upload(&journal, &mut ledger);
    waits_for("requests are taken again", || meter.has_room());
    fill(&mut meter, &mut next, 1_000);
    upload(&journal, &mut ledger);
    waits_for("everything is uploaded", || {
        upload(&journal, &mut ledger);
        ledger.len() as u64 == next - 1
    });
    assert_eq!(ledger, (1..next).collect::<Vec<_>>());
    journal.stop();
}

#[test]
fn a_node_stops_and_starts_on_a_full_disk() {
    on_a_small_disk("a_disk_that_is_full_at_stop_and_start");
}

#[test]
#[ignore = "runs where the one above says"]
fn a_disk_that_is_full_at_stop_and_start() {
    let Some(dir) = std::env::var_os("HOLM_SMALL_DISK").map(PathBuf::from) else {
        return;
    };
    let (mut next, mut ledger) = (1, Vec::new());
    let journal = Journal::start(&dir, &node(), 1, None).unwrap();
    let mut first = meter(&journal, 0);
    fill(&mut first, &mut next, 40_000);
    fill_disk(&dir);
    fill(&mut first, &mut next, 100_000);
    assert!(!first.has_room());
    let begun = std::time::Instant::now();
    journal.stop();
    assert!(begun.elapsed().as_secs() < 5, "it gives up");
    drop(first);
    fill_disk(&dir);
    let journal = Journal::start(&dir, &node(), 1, None).unwrap();
    let mut second = meter(&journal, 0);
    upload(&journal, &mut ledger);
    waits_for("requests are taken again", || second.has_room());
    fill(&mut second, &mut next, 1_000);
    waits_for("everything is uploaded", || {
        upload(&journal, &mut ledger);
        ledger.len() as u64 == next - 1
    });
    assert_eq!(ledger, (1..next).collect::<Vec<_>>());
    journal.stop();
}

/// What metering adds to a request, of the CPU and in all; for people:
/// `cargo test --workspace --lib --release -- --ignored --nocapture measures`
#[test]
#[ignore = "a measurement"]
fn measures_metering() {
    const RECORDS: u64 = 200_000;
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::start(dir.path(), &node(), 1, None).unwrap();
    let mut meter = meter(&journal, 0);
    let records: Vec<_> = (0..RECORDS)
        .map(|n| {
            let mut record = numbered(1_700_000_000_000 + n);
            record.request.0[..8].copy_from_slice(&n.to_le_bytes());
            record
        })
        .collect();
    let cpu = || rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let (began, cpu_before) = (std::time::Instant::now(), cpu());
    for record in records {
        meter.record(record, None).unwrap();
    }
    // Returns behind every commit.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(async { journal.reader().take(1).await.unwrap() });
    let (took, cpu_after) = (began.elapsed(), cpu());
    let ns = |time: rustix::time::Timespec| time.tv_sec * 1_000_000_000 + time.tv_nsec;
    let cpu_ns = (ns(cpu_after) - ns(cpu_before)) as u64 / RECORDS;
    let bytes: u64 = ["journal.sqlite", "journal.sqlite-wal"]
        .iter()
        .map(|file| std::fs::metadata(dir.path().join(file)).map_or(0, |file| file.len()))
        .sum();
    println!(
        "{:.0} records/s journaled, {cpu_ns} ns of CPU time for each, {} bytes in the journal for each",
        RECORDS as f64 / took.as_secs_f64(),
        bytes / RECORDS
    );
    journal.stop();
}
