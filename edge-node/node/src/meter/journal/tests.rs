//! The journal on real files.

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
    let journal = Journal::start(dir.path(), 3).unwrap();
    let threads: Vec<_> = (0..3)
        .map(|lane| {
            let mut meter = meter(&journal, lane);
            std::thread::spawn(move || {
                for n in 0..100 {
                    meter.record(numbered(u64::from(lane) * 1000 + n)).unwrap();
                }
            })
        })
        .collect();
    threads
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
    let taken = journal.reader().take(1000).await.unwrap();
    let sequences: Vec<u64> = taken.iter().map(|record| record.sequence).collect();
    assert_eq!(sequences, (1..=300).collect::<Vec<_>>());
    let epoch = journal.epoch;
    assert!(taken.iter().all(|record| record.boot_epoch == epoch));
    journal.stop();
}

#[tokio::test]
async fn what_the_ledger_has_is_deleted_and_the_rest_comes_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::start(dir.path(), 1).unwrap();
    let mut meter = meter(&journal, 0);
    (1..=5).for_each(|n| meter.record(numbered(n)).unwrap());
    let reader = journal.reader();
    let batch = reader.take(2).await.unwrap();
    assert_eq!(
        batch.iter().map(|r| r.accepted_ms).collect::<Vec<_>>(),
        [1, 2]
    );
    let first = journal.epoch;
    reader.stored(first, 2).await.unwrap();
    let rest = reader.take(10).await.unwrap();
    assert_eq!(
        rest.iter().map(|r| r.accepted_ms).collect::<Vec<_>>(),
        [3, 4, 5]
    );
    journal.stop();
    // The next life goes on with a higher epoch and still has them.
    let journal = Journal::start(dir.path(), 1).unwrap();
    assert!(journal.epoch > first);
    assert_eq!(journal.reader().take(10).await.unwrap(), rest);
    journal.stop();
}

#[tokio::test]
async fn a_kill_between_spill_and_commit_loses_nothing_and_doubles_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(&dir.path().join("journal.sqlite")).unwrap();
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
                .insert(&[Entry {
                    lane: 0,
                    counter,
                    record,
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
        let journal = Journal::start(dir.path(), 1).unwrap();
        assert!(journal.epoch > last);
        last = journal.epoch;
        let taken = journal.reader().take(10).await.unwrap();
        let keys: Vec<_> = taken
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
    drop(Store::open(&path).unwrap());
    Connection::open(&path)
        .unwrap()
        .pragma_update(None, "user_version", 9)
        .unwrap();
    let error = Journal::start(dir.path(), 1).unwrap_err().to_string();
    assert!(error.contains("schema 9"), "{error}");
}

#[test]
fn a_journal_that_begins_anew_has_another_epoch_and_one_that_goes_on_a_later_one() {
    let begin = |dir: &Path| {
        let journal = Journal::start(dir, 1).unwrap();
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
    let mut store = Store::open(&dirs[0].path().join("journal.sqlite")).unwrap();
    store.begin_epoch(1 << 52).unwrap();
    drop(store);
    assert_eq!(begin(dirs[0].path()), (1 << 52) + 1);
}
