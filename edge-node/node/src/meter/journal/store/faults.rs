//! Seeded fault runs: a node is killed at any point, its disk is full, its clock jumps, answers get lost, and batches
//! come twice and out of order. In the end the ledger has every answered request once, and its chain is unbroken.
//!
//! `HOLM_METER_SEED` runs one seed, `HOLM_METER_SEEDS` so many new ones.

use std::collections::BTreeMap;
use std::sync::Arc;

use holm_model::ids::RequestId;
use holm_test_support::{random_below, seeds};

use super::*;
use crate::meter::journal::Progress;
use crate::meter::journal::tests::{node, record};
use crate::meter::spill::SpillWriter;

const LANES: u32 = 2;
const STEPS: u32 = 120;

/// A ledger that keeps to the rules of the real one, which has tests of its own.
#[derive(Default)]
struct Ledger {
    batches: Vec<Batch>,
}

impl Ledger {
    /// Whether the batch is in it now; panics where the chain breaks.
    fn receive(&mut self, batch: &Batch) -> bool {
        let leaves: Vec<_> = batch.records.iter().map(chain::leaf).collect();
        assert_eq!(
            chain::batch_hash(&node(), &batch.place, &leaves),
            batch.hash
        );
        let place = |batch: &Batch| (batch.place.boot_epoch, batch.place.first);
        if let Some(known) = self
            .batches
            .iter()
            .find(|known| place(known) == place(batch))
        {
            assert_eq!(known, batch, "another batch at the same place");
            return true;
        }
        let follows = match self.batches.last() {
            Some(last) if last.place.boot_epoch == batch.place.boot_epoch => {
                batch.place.first == last.place.last + 1 && batch.place.previous == last.hash
            }
            last => {
                let before = last.map_or(NOTHING_BEFORE, |last| last.hash);
                let genesis = chain::genesis(&node(), batch.place.boot_epoch, before);
                batch.place.first == 1 && batch.place.previous == genesis
            }
        };
        if follows {
            self.batches.push(batch.clone());
        }
        follows
    }
}

/// One life of the node.
struct Life {
    store: Store,
    spills: Vec<SpillWriter>,
    progress: Arc<Progress>,
    /// On the way from the request threads to the journal.
    queue: Vec<Entry>,
}

impl Life {
    fn begin(dir: &Path, clock: u64) -> Life {
        let spill_dir = dir.join("spill");
        files::make_dir(&spill_dir).unwrap();
        let mut store = Store::open(&dir.join("journal.sqlite"), &node()).unwrap();
        store.replay(&spill_dir).unwrap();
        store.begin_epoch(clock).unwrap();
        let progress = Arc::new(Progress::new(LANES));
        let spill =
            |lane| SpillWriter::create(&spill_dir, store.epoch, lane, progress.clone()).unwrap();
        Life {
            spills: (0..LANES).map(spill).collect(),
            store,
            progress,
            queue: Vec::new(),
        }
    }

    /// Meters a request: when this returns its answer may leave.
    fn answer(&mut self, lane: u32, request: RequestId, accepted_ms: u64) {
        let spill = &mut self.spills[lane as usize];
        let record = UsageRecord {
            boot_epoch: spill.epoch(),
            request,
            accepted_ms,
            ..record()
        };
        let counter = spill.append(&record).unwrap();
        self.queue.push(Entry {
            lane,
            counter,
            record,
            _ticket: None,
        });
    }

    fn commit(&mut self) -> bool {
        if self.queue.is_empty() || self.store.insert(&mut self.queue).is_err() {
            return false;
        }
        for entry in self.queue.drain(..) {
            self.progress.set_committed(entry.lane, entry.counter);
        }
        true
    }

    /// So that nothing can be added to the database, or that it can again.
    fn fill_disk(&mut self, full: bool) {
        let pages = if full { 1 } else { 1 << 30 };
        let database = &self.store.database;
        database
            .query_row(&format!("PRAGMA max_page_count = {pages}"), [], |_| Ok(()))
            .unwrap();
    }
}

#[test]
fn whatever_happens_the_ledger_has_every_answered_request_once_and_an_unbroken_chain() {
    for seed in seeds("HOLM_METER_SEED", 50) {
        run(seed);
    }
}

fn run(seed: u64) {
    println!("seed {seed}");
    let mut random = random_below(seed);
    // What a kill leaves is the same on a disk, which would take longer.
    let memory = Path::new("/dev/shm");
    let dir = match memory.is_dir() {
        true => tempfile::tempdir_in(memory).unwrap(),
        false => tempfile::tempdir().unwrap(),
    };
    let mut ledger = Ledger::default();
    let mut answered = BTreeMap::new();
    let mut sent: Vec<Batch> = Vec::new();
    let mut life = Life::begin(dir.path(), 1 + random(1000));
    let mut kills = 0;
    for step in 0..STEPS {
        match random(20) {
            0..8 => {
                for _ in 0..=random(6) {
                    let mut request = [0; 16];
                    request[..8].copy_from_slice(&(answered.len() as u64 + 1).to_le_bytes());
                    let request = RequestId(request);
                    life.answer(random(LANES.into()) as u32, request, random(u64::MAX >> 32));
                    answered.insert(request, 0);
                }
            }
            8..11 => drop(life.commit()),
            11..15 => {
                let taken = life.store.take(1 + random(12) as usize).unwrap();
                if let Some(batch) = taken {
                    // It may be cut off before it arrives, or its answer after that.
                    let arrives = random(4) > 0;
                    if arrives {
                        assert!(ledger.receive(&batch), "seed {seed}, step {step}: a gap");
                    }
                    if arrives && random(3) > 0 {
                        life.store.stored(batch.hash).unwrap();
                    }
                    sent.push(batch);
                }
            }
            15 if !sent.is_empty() => {
                // Once more, out of order.
                let again = &sent[random(sent.len() as u64) as usize];
                let before = ledger.batches.len();
                ledger.receive(again);
                assert!(ledger.batches.len() <= before + 1);
            }
            16 => {
                life.fill_disk(true);
                let waiting = life.queue.len();
                if !life.commit() {
                    assert_eq!(life.queue.len(), waiting, "what is not committed waits");
                }
                life.fill_disk(false);
            }
            17 | 18 => {
                // Killed, and started where the clock shows anything.
                drop(life);
                life = Life::begin(dir.path(), 1 + random(1000));
                kills += 1;
            }
            _ => {}
        }
    }
    drop(life);
    let mut life = Life::begin(dir.path(), 1 + random(1000));
    while let Some(batch) = life.store.take(1 + random(12) as usize).unwrap() {
        assert!(ledger.receive(&batch), "seed {seed}: a gap at the end");
        life.store.stored(batch.hash).unwrap();
    }
    for batch in &ledger.batches {
        for record in &batch.records {
            let count = answered.get_mut(&record.request);
            *count.unwrap_or_else(|| panic!("seed {seed}: nobody was answered")) += 1;
        }
    }
    let wrong: Vec<_> = answered.iter().filter(|(_, count)| **count != 1).collect();
    assert!(wrong.is_empty(), "seed {seed}, {kills} kills: {wrong:?}");
}
