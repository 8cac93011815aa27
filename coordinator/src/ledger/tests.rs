//! What the ledger promises, asked of SQLite and of PostgreSQL.

use holm_model::api::AuditFault;
use holm_model::chain::{NOTHING_BEFORE, genesis};
use holm_model::ids::Digest;
use holm_model::limits::MAX_USAGE_BATCH;
use holm_model::usage::Outcome;
use holm_model::usage_batch::PackedRecords;

use super::testing::{TestFleet, TestNode, record, records};
use super::*;
use crate::store::testing::{TestDatabase, on_both_databases};
use crate::store::{DAY_MS, HOUR_MS, MINUTE_MS};

on_both_databases! {
    the_same_batch_twice_is_billed_once_and_counted_as_resent,
    a_batch_that_does_not_follow_is_refused_with_its_reason,
    an_epoch_that_is_left_out_is_missed,
    a_machine_that_joins_in_place_of_another_begins_anew_and_the_audit_says_so,
    what_is_changed_removed_put_in_or_replayed_on_the_wire_is_refused,
    what_is_changed_removed_put_in_or_replayed_in_the_ledger_is_named,
    who_changes_batches_too_is_found_by_the_signature,
    a_node_that_has_gone_cannot_be_made_one_without_a_chain,
    another_record_under_a_known_key_is_refused_and_nothing_of_its_batch_stored,
    what_cannot_be_is_refused,
    the_audit_names_gaps_and_executions_entered_twice,
    sums_leave_probes_out_and_go_by_function_version_or_node,
    pages_of_rows_give_every_record_once_as_it_was_sent,
    sums_of_the_largest_records_are_exact,
    usage_is_summed_by_time_from_any_minute_to_any_other,
}

fn node(name: &str) -> Name {
    name.parse().unwrap()
}

async fn the_same_batch_twice_is_billed_once_and_counted_as_resent(database: TestDatabase) {
    let fleet = TestFleet::new(&database.store);
    let mut a = fleet.join("a");
    let batch = a.seal(&records(1, 1..=1200));
    assert_eq!(fleet.send(&a, &batch).await.unwrap(), (1200, 0));
    assert_eq!(fleet.send(&a, &batch).await.unwrap(), (0, 1200));
    // Also when others have come since, and when it is signed anew.
    let next = a.seal(&records(1, 1201..=1210));
    assert_eq!(fleet.send(&a, &next).await.unwrap(), (10, 0));
    let again = a.sign(&records(1, 1..=1200), batch.previous);
    assert_eq!(again.hash, batch.hash);
    assert_eq!(fleet.send(&a, &again).await.unwrap(), (0, 1200));
    let usage = fleet
        .ledger
        .usage(&UsageFilter::default(), UsageGroup::Function)
        .await
        .unwrap();
    assert_eq!(usage.len(), 1);
    assert_eq!(
        (usage[0].key.as_str(), usage[0].executions),
        ("acme/hello", 1210)
    );
    let audit = fleet.ledger.audit().await.unwrap();
    assert_eq!((audit.rows, audit.resent, audit.batches), (1210, 2400, 2));
    assert!(audit.whole, "{audit:?}");
}

/// The place of the next batch decides, and the key only where an operator has let the node in anew.
async fn a_batch_that_does_not_follow_is_refused_with_its_reason(database: TestDatabase) {
    let fleet = TestFleet::new(&database.store);
    let mut a = fleet.join("a");
    let (first, second) = (a.seal(&records(1, 1..=10)), a.seal(&records(1, 11..=20)));
    fleet.send(&a, &first).await.unwrap();
    let third = a.seal(&records(1, 21..=30));
    let gap = fleet.send(&a, &third).await.unwrap_err();
    assert!(matches!(gap, LedgerError::Gap(..)), "{gap}");
    assert!(gap.to_string().contains("1/21 to 30 of node a"), "{gap}");
    assert!(gap.to_string().contains("ends at 1/10"), "{gap}");

    let mut other = record(1, 10);
    other.status = 201;
    for batch in [
        a.sign(&[other], first.hash),
        a.sign(&records(1, 6..=15), first.hash),
        a.sign(&records(1, 1..=9), first.previous),
        a.sign(&records(1, 11..=20), NOTHING_BEFORE),
    ] {
        let fork = fleet.send(&a, &batch).await.unwrap_err();
        assert!(matches!(fork, LedgerError::Fork(..)), "{fork}");
    }
    let anew = a.sign(&records(2, 1..=5), genesis(&a.name, 2, NOTHING_BEFORE));
    let error = fleet.send(&a, &anew).await.unwrap_err();
    assert!(matches!(error, LedgerError::Anew(..)), "{error}");
    assert_eq!(
        fleet.ledger.audit().await.unwrap().rows,
        10,
        "nothing of them"
    );
    fleet.send(&a, &second).await.unwrap();
    fleet.send(&a, &third).await.unwrap();
    assert!(fleet.ledger.audit().await.unwrap().whole);
}

async fn an_epoch_that_is_left_out_is_missed(database: TestDatabase) {
    let fleet = TestFleet::new(&database.store);
    let mut a = fleet.join("a");
    let epochs = [1, 2, 3].map(|epoch| a.seal(&records(epoch, 1..=5)));
    fleet.send(&a, &epochs[0]).await.unwrap();
    let error = fleet.send(&a, &epochs[2]).await.unwrap_err();
    assert!(matches!(error, LedgerError::Gap(..)), "{error}");
    fleet.send(&a, &epochs[1]).await.unwrap();
    fleet.send(&a, &epochs[2]).await.unwrap();
    let audit = fleet.ledger.audit().await.unwrap();
    assert!(audit.whole, "{audit:?}");
    let head = a.head.unwrap();
    let told = &audit.nodes[0];
    assert_eq!(
        (told.head, told.head_boot_epoch, told.head_sequence),
        (Some(head.hash), 3, 5)
    );
    assert_eq!(
        (told.admitted, told.answered, told.balanced),
        (15, 15, true)
    );
}

async fn a_machine_that_joins_in_place_of_another_begins_anew_and_the_audit_says_so(
    database: TestDatabase,
) {
    let fleet = TestFleet::new(&database.store);
    let mut old = fleet.join("a");
    fleet
        .send(&old, &old.clone().seal(&records(1, 1..=5)))
        .await
        .unwrap();
    old.seal(&records(1, 1..=5));
    let mut new = fleet.join("a");
    let first = new.seal(&records(2, 1..=3));
    fleet.send(&new, &first).await.unwrap();
    let audit = fleet.ledger.audit().await.unwrap();
    assert!(audit.whole, "{audit:?}");
    assert!(audit.notices[0].contains("begins anew at 2/1"), "{audit:?}");
    // With its old key the former machine is out.
    let late = old.seal(&records(1, 6..=8));
    let fork = fleet.send(&old, &late).await.unwrap_err();
    assert!(matches!(fork, LedgerError::Fork(..)), "{fork}");

    // A journal that is kept goes on under a new key; where the ledger has lost rows, the audit keeps saying so.
    let mut kept = fleet.join("a");
    kept.head = new.head;
    kept.seal(&records(2, 4..=6));
    let later = kept.seal(&records(2, 7..=9));
    fleet.send(&kept, &later).await.unwrap();
    let audit = fleet.ledger.audit().await.unwrap();
    assert!(!audit.whole && audit.missing == 3, "{audit:?}");
    assert_eq!(
        (audit.problems.len(), audit.problems[0].fault),
        (1, AuditFault::Gap)
    );
    assert_eq!(
        (audit.problems[0].boot_epoch, audit.problems[0].first),
        (2, 7)
    );
}

async fn a_node_that_has_gone_cannot_be_made_one_without_a_chain(database: TestDatabase) {
    let fleet = TestFleet::new(&database.store);
    for (name, mark) in [("gone", 1), ("here", 2)] {
        let mut records = records(1, 1..=3);
        // Requests of its own.
        records
            .iter_mut()
            .for_each(|record| record.request.0[7] = mark);
        fleet.add(&node(name), &records).await.unwrap();
    }
    assert!(fleet.ledger.audit().await.unwrap().whole);
    for table in ["usage_batches", "usage_chains", "usage_signers"] {
        let sql = format!("DELETE FROM {table} WHERE node = 'gone'");
        database.execute(&sql).await;
    }
    for sql in [
        "UPDATE usage SET request_bytes = request_bytes + 1 WHERE node = 'gone' AND sequence = 2",
        "UPDATE usage_sums SET request_bytes = request_bytes + 1 WHERE node = 'gone'",
    ] {
        database.execute(sql).await;
    }
    let audit = fleet.ledger.audit().await.unwrap();
    let named: Vec<_> = audit
        .problems
        .iter()
        .map(|problem| (problem.fault, problem.node.as_str(), problem.first))
        .collect();
    let put_in = |sequence| (AuditFault::PutIn, "gone", sequence);
    assert_eq!(named, [1, 2, 3].map(put_in));
    assert!(!audit.whole && audit.unchained == 0);
}

async fn another_record_under_a_known_key_is_refused_and_nothing_of_its_batch_stored(
    database: TestDatabase,
) {
    let fleet = TestFleet::new(&database.store);
    let mut a = fleet.join("a");
    // From before usage was chained: the same records again are known, others are not.
    enter_unchained(&database, "a", &[record(1, 1), record(1, 2)]).await;
    let mut other = record(1, 2);
    other.run_ns += 1;
    let forged = a.clone().seal(&[other, record(1, 3)]);
    let error = fleet.send(&a, &forged).await.unwrap_err();
    assert!(
        matches!(error, LedgerError::Conflict { sequence: 2, .. }),
        "{error}"
    );
    let audit = fleet.ledger.audit().await.unwrap();
    assert_eq!((audit.rows, audit.batches), (2, 0));
    let batch = a.seal(&records(1, 2..=5));
    assert_eq!(fleet.send(&a, &batch).await.unwrap(), (3, 1));
    let audit = fleet.ledger.audit().await.unwrap();
    assert!(audit.whole, "{audit:?}");
    assert_eq!((audit.rows, audit.unchained, audit.batches), (5, 1, 1));
}

async fn enter_unchained(database: &TestDatabase, node: &str, records: &[UsageRecord]) {
    database
        .store
        .enter_rows(&node.parse().unwrap(), records)
        .await
        .unwrap();
}

async fn what_is_changed_removed_put_in_or_replayed_on_the_wire_is_refused(database: TestDatabase) {
    let fleet = TestFleet::new(&database.store);
    let mut a = fleet.join("a");
    let sent = records(1, 1..=10);
    let (first, batch) = (a.seal(&sent), a.seal(&records(1, 11..=20)));
    fleet.send(&a, &first).await.unwrap();
    let altered = |alter: &dyn Fn(&mut Vec<UsageRecord>)| {
        let mut records = records(1, 11..=20);
        alter(&mut records);
        let mut altered = batch.clone();
        altered.records = PackedRecords::pack(&records);
        altered
    };
    let mut moved = batch.clone();
    moved.first += 1;
    let mut relinked = batch.clone();
    relinked.previous = NOTHING_BEFORE;
    for altered in [
        altered(&|records| records[3].egress_bytes += 1),
        altered(&|records| records[3].probe = true),
        altered(&|records| drop(records.remove(3))),
        altered(&|records| drop(records.pop())),
        altered(&|records| records.insert(3, record(1, 99))),
        altered(&|records| records.push(records[3].clone())),
        altered(&|records| records.swap(3, 4)),
        moved,
        relinked,
    ] {
        let error = fleet.send(&a, &altered).await.unwrap_err();
        assert!(matches!(error, LedgerError::WrongHash(_)), "{error}");
    }
    // Who makes the hash fit has not the node's key; and another node's batch is not this one's.
    let stranger = fleet.join("a");
    let mut changed = records(1, 11..=20);
    changed[3].egress_bytes += 1;
    let forged = stranger.sign(&changed, first.hash);
    let error = fleet.send(&a, &forged).await.unwrap_err();
    assert!(matches!(error, LedgerError::WrongSignature(_)), "{error}");
    assert!(
        error.to_string().contains("1/11 to 20 of node a"),
        "{error}"
    );
    let b = fleet.join("b");
    let error = fleet.send(&b, &first).await.unwrap_err();
    assert!(matches!(error, LedgerError::WrongHash(_)), "{error}");
    // Replayed as it is, a batch is known.
    assert_eq!(fleet.send(&a, &first).await.unwrap(), (0, 10));
    fleet.send(&a, &batch).await.unwrap();
    let audit = fleet.ledger.audit().await.unwrap();
    assert!(audit.whole && audit.rows == 20, "{audit:?}");
}

/// Two epochs of a node's, with two batches of ten in the first.
async fn filled(fleet: &TestFleet) -> TestNode {
    let mut a = fleet.join("a");
    for records in [records(1, 1..=10), records(1, 11..=20), records(2, 1..=10)] {
        let batch = a.seal(&records);
        fleet.send(&a, &batch).await.unwrap();
    }
    a
}

const COPY: &str = "INSERT INTO usage (node, boot_epoch, sequence, request, tenant, function, version, accepted_ms,
    outcome, status, queue_ns, restore_ns, run_ns, cpu_ns, memory_bytes, request_bytes, response_bytes, egress_bytes,
    ingress_bytes, cold, exits, probe)
    SELECT node, boot_epoch, PLACE, REQUEST, tenant, function, version, accepted_ms, outcome, status, queue_ns,
    restore_ns, run_ns, cpu_ns, memory_bytes, request_bytes, response_bytes, egress_bytes, ingress_bytes, cold, exits,
    probe FROM usage WHERE boot_epoch = 1 AND sequence = 3";

async fn what_is_changed_removed_put_in_or_replayed_in_the_ledger_is_named(database: TestDatabase) {
    let fleet = TestFleet::new(&database.store);
    filled(&fleet).await;
    assert!(fleet.ledger.audit().await.unwrap().whole);
    let copy =
        |place: &str, request: &str| COPY.replace("PLACE", place).replace("REQUEST", request);
    let of_a_row = "boot_epoch = 1 AND sequence = 13";
    // In turn, each beside what was done before.
    // From the first on, the sums are not those of the rows.
    let mut found: Vec<(AuditFault, u64, u64, u64)> = vec![(AuditFault::Sums, 0, 0, 0)];
    for (sql, faults) in [
        (
            format!("UPDATE usage SET response_bytes = response_bytes - 1 WHERE {of_a_row}"),
            vec![(AuditFault::Changed, 1, 13, 13)],
        ),
        (
            "UPDATE usage SET outcome = 'platform_fault' WHERE boot_epoch = 2 AND sequence = 1"
                .into(),
            vec![(AuditFault::Changed, 2, 1, 1)],
        ),
        (
            "UPDATE usage SET outcome = 'free' WHERE boot_epoch = 2 AND sequence = 2".into(),
            vec![(AuditFault::Changed, 2, 2, 2)],
        ),
        (
            "DELETE FROM usage WHERE boot_epoch = 1 AND sequence BETWEEN 16 AND 17".into(),
            vec![(AuditFault::Removed, 1, 16, 17)],
        ),
        (
            copy("21", "substr(version, 1, 16)"),
            vec![(AuditFault::PutIn, 1, 21, 21)],
        ),
        (
            copy("22", "request"),
            vec![
                (AuditFault::PutIn, 1, 22, 22),
                (AuditFault::Replayed, 1, 22, 22),
            ],
        ),
        (
            "DELETE FROM usage_batches WHERE boot_epoch = 1 AND first = 1".into(),
            (1..=10)
                .map(|sequence| (AuditFault::PutIn, 1, sequence, sequence))
                .chain([(AuditFault::Gap, 1, 11, 20)])
                .collect(),
        ),
        (
            "UPDATE usage_batches SET hash = previous WHERE boot_epoch = 2".into(),
            vec![
                (AuditFault::Batch, 2, 1, 10),
                (AuditFault::Signature, 2, 1, 10),
            ],
        ),
    ] {
        database.execute(&sql).await;
        found.extend(faults);
        found.sort_unstable();
        let audit = fleet.ledger.audit().await.unwrap();
        assert!(!audit.whole);
        let mut named: Vec<_> = audit
            .problems
            .iter()
            .map(|problem| {
                (
                    problem.fault,
                    problem.boot_epoch,
                    problem.first,
                    problem.last,
                )
            })
            .collect();
        named.sort_unstable();
        assert_eq!(named, found, "after {sql}");
        assert!(
            audit
                .problems
                .iter()
                .all(|problem| problem.node == node("a"))
        );
    }
}

async fn who_changes_batches_too_is_found_by_the_signature(database: TestDatabase) {
    let fleet = TestFleet::new(&database.store);
    let a = filled(&fleet).await;
    let head = a.head;
    // The newest batch again, of one record less, signed by a key that another authority has certified.
    for table in ["usage", "usage_batches"] {
        database
            .execute(&format!("DELETE FROM {table} WHERE boot_epoch = 2"))
            .await;
    }
    let cut = fleet.ledger.audit().await.unwrap();
    let faults: Vec<_> = cut.problems.iter().map(|problem| problem.fault).collect();
    assert_eq!(
        faults,
        [AuditFault::Sums],
        "but for its sums, which nobody signed, a ledger that was cut off looks whole"
    );
    assert_ne!(
        cut.nodes[0].head,
        head.map(|head| head.hash),
        "but its head is another"
    );
    let error = fleet
        .send(&a, &a.clone().seal(&records(2, 11..=12)))
        .await
        .unwrap_err();
    assert!(
        matches!(error, LedgerError::Gap(..)),
        "and the node says so: {error}"
    );

    let forgers = TestFleet::new(&database.store);
    let mut forger = forgers.join("a");
    forger.head = Some(chain::Head {
        boot_epoch: 1,
        last: 20,
        hash: cut.nodes[0].head.unwrap(),
    });
    let forged = forger.seal(&records(2, 1..=9));
    forgers.send(&forger, &forged).await.unwrap();
    let audit = fleet.ledger.audit().await.unwrap();
    let problem = &audit.problems[0];
    assert_eq!(
        (problem.fault, problem.boot_epoch, problem.last),
        (AuditFault::Signature, 2, 9)
    );
}

async fn what_cannot_be_is_refused(database: TestDatabase) {
    let fleet = TestFleet::new(&database.store);
    let mut timeless = record(1, 1);
    timeless.run_ns = u64::MAX;
    let mut endless = record(1, 1);
    endless.sequence = u64::MAX;
    for bad in [timeless, endless, record(1, 0)] {
        let error = fleet.add(&node("a"), &[bad]).await.unwrap_err();
        assert!(matches!(error, LedgerError::Impossible { .. }), "{error}");
    }
    let many = vec![record(1, 1); MAX_USAGE_BATCH + 1];
    assert!(matches!(
        fleet.add(&node("a"), &many).await,
        Err(LedgerError::Unreadable {
            why: UnpackError::TooMany(_),
            ..
        })
    ));
}

async fn the_audit_names_gaps_and_executions_entered_twice(database: TestDatabase) {
    let fleet = TestFleet::new(&database.store);
    let journal: Vec<_> = [1, 2, 5].map(|sequence| record(1, sequence)).into();
    enter_unchained(&database, "a", &journal).await;
    enter_unchained(&database, "b", &[record(1, 2)]).await;
    let audit = fleet.ledger.audit().await.unwrap();
    assert_eq!(audit.journals.len(), 2);
    assert_eq!((audit.journals[0].first, audit.journals[0].last), (1, 5));
    assert_eq!(audit.journals[0].missing, 2);
    assert_eq!(
        audit.journals[1].missing, 1,
        "what is missing before the first counts"
    );
    assert_eq!(
        (audit.missing, audit.duplicates, audit.whole),
        (3, 1, false)
    );
}

async fn sums_leave_probes_out_and_go_by_function_version_or_node(database: TestDatabase) {
    let fleet = TestFleet::new(&database.store);
    let mut probe = record(1, 3);
    probe.probe = true;
    let mut crash = record(1, 2);
    crash.outcome = Outcome::Crash;
    fleet
        .add(&node("a"), &[record(1, 1), crash, probe])
        .await
        .unwrap();
    fleet.add(&node("b"), &[record(9, 1)]).await.unwrap();

    let all = UsageFilter::default();
    let by_function = fleet
        .ledger
        .usage(&all, UsageGroup::Function)
        .await
        .unwrap();
    let sum = &by_function[0];
    assert_eq!(
        (sum.executions, sum.answered, sum.crashes, sum.cold),
        (3, 2, 1, 2)
    );
    assert_eq!(sum.run_ns, 3 * 1_000_001);
    let bytes = [sum.request_bytes, sum.response_bytes];
    assert_eq!(bytes, [3 * 5, 3 * 6]);
    assert_eq!([sum.egress_bytes, sum.ingress_bytes], [3 * 7, 3 * 8]);
    assert_eq!(
        sum.memory_kib_ms,
        3 * 2 * (64 << 10),
        "a begun millisecond is a whole one"
    );
    let by_node = fleet.ledger.usage(&all, UsageGroup::Node).await.unwrap();
    assert_eq!(
        by_node.iter().map(|sum| sum.executions).collect::<Vec<_>>(),
        [2, 1]
    );
    let by_version = fleet.ledger.usage(&all, UsageGroup::Version).await.unwrap();
    assert_eq!(by_version[0].key, Digest([7; 32]).to_string());
    let tenant = Some("nobody".parse().unwrap());
    let none = UsageFilter {
        tenant,
        ..UsageFilter::default()
    };
    assert_eq!(
        fleet
            .ledger
            .usage(&none, UsageGroup::Function)
            .await
            .unwrap(),
        []
    );
}

async fn pages_of_rows_give_every_record_once_as_it_was_sent(database: TestDatabase) {
    let fleet = TestFleet::new(&database.store);
    let sent: Vec<_> = (1..=7).map(|sequence| record(1, sequence)).collect();
    fleet.add(&node("a"), &sent[..4]).await.unwrap();
    fleet.add(&node("a"), &sent[4..]).await.unwrap();
    let mut other = record(2, 1);
    other.function = "acme/other".parse().unwrap();
    fleet.add(&node("b"), &[other.clone()]).await.unwrap();

    let (mut got, mut after, mut pages) = (Vec::new(), 0, 0);
    let hello = RecordsFilter::from(Some(&"acme/hello".parse().unwrap()));
    loop {
        let page = fleet.ledger.records(&hello, after, 3).await.unwrap();
        assert!(page.records.len() <= 3);
        got.extend(page.records.into_iter().map(|row| row.record));
        pages += 1;
        match page.next {
            Some(next) => after = next,
            None => break,
        }
    }
    assert_eq!((got, pages), (sent, 3));
    let all = fleet
        .ledger
        .records(&RecordsFilter::default(), 0, 100)
        .await
        .unwrap();
    assert_eq!(all.records.len(), 8);
    assert_eq!(
        (&all.records[7].record, &all.records[7].node),
        (&other, &node("b"))
    );
    assert!(all.records.is_sorted_by(|a, b| a.row < b.row));
    // A page that ends with the ledger has no next one.
    assert_eq!(
        fleet
            .ledger
            .records(&RecordsFilter::default(), 0, 8)
            .await
            .unwrap()
            .next,
        None
    );
}

async fn sums_of_the_largest_records_are_exact(database: TestDatabase) {
    let fleet = TestFleet::new(&database.store);
    let dear: Vec<_> = (1..=200)
        .map(|sequence| UsageRecord {
            memory_bytes: MAX_MEMORY_BYTES,
            run_ns: MAX_RECORD_NS,
            response_bytes: MAX_RECORD_BYTES,
            egress_bytes: MAX_RECORD_BYTES,
            ..record(1, sequence)
        })
        .collect();
    fleet.add(&node("a"), &dear).await.unwrap();
    let all = UsageFilter::default();
    let usage = fleet
        .ledger
        .usage(&all, UsageGroup::Function)
        .await
        .unwrap();
    let memory_kib_ms = 200 * (MAX_MEMORY_BYTES >> 10) * (MAX_RECORD_NS / 1_000_000);
    assert_eq!(usage[0].response_bytes, 200 * MAX_RECORD_BYTES);
    assert_eq!(usage[0].billed.egress_bytes, 400 * MAX_RECORD_BYTES);
    assert_eq!(usage[0].memory_kib_ms, memory_kib_ms);
    let audit = fleet.ledger.audit().await.unwrap();
    assert!(audit.whole, "{audit:?}");
}

/// CPU time of this process, which is the database's too where that is SQLite (proc(5); a tick is 10 ms).
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let ticks = fields.split(' ').skip(11).take(2);
    ticks
        .map(|ticks| ticks.parse::<f64>().unwrap())
        .sum::<f64>()
        / 100.0
}

/// Full batches of a node, with requests like random ones.
fn full_batches(node: &mut TestNode, count: u64) -> Vec<holm_model::usage_batch::UsageBatch> {
    let size = MAX_USAGE_BATCH as u64;
    let batch = |batch| {
        let mut records = records(1, 1 + batch * size..=(batch + 1) * size);
        for record in &mut records {
            let random = Digest::of(format!("{} {}", node.name, record.sequence).as_bytes());
            record.request.0 = random.0[..16].try_into().unwrap();
        }
        node.seal(&records)
    };
    (0..count).map(batch).collect()
}

/// How many records a second the disk would take, if each batch were so many bytes written in one piece and synced.
fn synced_a_second(bytes_of_a_record: u64) -> f64 {
    use std::io::Write as _;
    let mut file = tempfile::tempfile().unwrap();
    let batch = vec![7; MAX_USAGE_BATCH * bytes_of_a_record as usize];
    let began = std::time::Instant::now();
    for _ in 0..50 {
        file.write_all(&batch).unwrap();
        file.sync_data().unwrap();
    }
    (50 * MAX_USAGE_BATCH) as f64 / began.elapsed().as_secs_f64()
}

/// What entering usage takes, from one node after the other and from four at a time; for people:
/// `cargo test --workspace --lib --release -- --ignored --nocapture measures`
#[ignore = "a measurement"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn measures_entering() {
    const BATCHES: u64 = 60;
    for nodes in [1, 4] {
        for (name, database) in [
            ("SQLite", TestDatabase::sqlite().await),
            ("PostgreSQL", TestDatabase::postgres().await),
        ] {
            let fleet = std::sync::Arc::new(TestFleet::new(&database.store));
            let sent: Vec<_> = (0..nodes)
                .map(|number| {
                    let mut node = fleet.join(&format!("n{number}"));
                    let batches = full_batches(&mut node, BATCHES / nodes);
                    (node, batches)
                })
                .collect();
            let (began, cpu_before) = (std::time::Instant::now(), cpu_seconds());
            let mut sending = tokio::task::JoinSet::new();
            for (node, batches) in sent {
                let fleet = fleet.clone();
                sending.spawn(async move {
                    for batch in &batches {
                        fleet.send(&node, batch).await.unwrap();
                    }
                });
            }
            sending.join_all().await;
            let (took, cpu) = (began.elapsed(), cpu_seconds() - cpu_before);
            let began = std::time::Instant::now();
            let audit = fleet.ledger.audit().await.unwrap();
            assert!(audit.whole);
            let rows = audit.rows as f64;
            let bytes = database.bytes().await / audit.rows;
            let entered = rows / took.as_secs_f64();
            println!(
                "{name}, {nodes} nodes: {entered:.0} records/s entered, {:.0} for each second of the coordinator's \
                 CPU time, {:.0} % of what the disk syncs; {:.0} records/s audited; {bytes} bytes for each",
                rows / cpu,
                100.0 * entered / synced_a_second(bytes),
                rows / began.elapsed().as_secs_f64(),
            );
            let began = std::time::Instant::now();
            let mut gone = 0;
            for number in 0..nodes {
                let node = node(&format!("n{number}"));
                while let crate::store::Dropped::Rows(rows) = fleet.drop_records(&node).await {
                    gone += rows;
                }
            }
            assert_eq!(gone, audit.rows);
            println!(
                "{name}, {nodes} nodes: {:.0} records/s audited once more and removed",
                rows / began.elapsed().as_secs_f64()
            );
        }
    }
}

/// How long sums take over a month of 100 million records of 1000 functions on 10 nodes: of such records the sums by
/// hour and day are made here, 7.5 million rows, and none of the records; for people, as above.
#[ignore = "a measurement"]
#[tokio::test]
async fn measures_sums_of_a_hundred_million_records() {
    const START: u64 = 1_700_006_400_000;
    for (name, database) in [
        ("SQLite", TestDatabase::sqlite().await),
        ("PostgreSQL", TestDatabase::postgres().await),
    ] {
        // Whose digest stands for a version's.
        database
            .store
            .authority(Some(Digest([7; 32])))
            .await
            .unwrap();
        for (grain, times, each) in [(HOUR_MS, 720, 14), (DAY_MS, 30, 14 * 24)] {
            // By days, so that no statement takes too long.
            for day in 0..30 {
                let (first, last) = (day * times / 30, (day + 1) * times / 30 - 1);
                database
                    .run(&rollups(START, grain, (first, last), each))
                    .await;
            }
        }
        let ledger = TestFleet::new(&database.store).ledger;
        let month = UsageFilter {
            from_ms: START,
            to_ms: START + 30 * DAY_MS,
            ..UsageFilter::default()
        };
        let of_tenant = UsageFilter {
            tenant: Some("t7".parse().unwrap()),
            ..month.clone()
        };
        // From some hour on, so that not all is in days.
        let odd = UsageFilter {
            from_ms: START + 5 * HOUR_MS,
            to_ms: START + 700 * HOUR_MS,
            ..month.clone()
        };
        for (what, filter, group) in [
            ("by function, a month", &month, UsageGroup::Function),
            ("by function, 695 hours", &odd, UsageGroup::Function),
            (
                "a tenant's by function, a month",
                &of_tenant,
                UsageGroup::Function,
            ),
            ("by day, a month", &month, UsageGroup::Time(DAY_MS)),
            (
                "a tenant's by hour, a month",
                &of_tenant,
                UsageGroup::Time(HOUR_MS),
            ),
            ("by hour, a month", &month, UsageGroup::Time(HOUR_MS)),
        ] {
            let began = std::time::Instant::now();
            let sums = ledger.usage(filter, group).await.unwrap();
            let executions: u64 = sums.iter().map(|sum| sum.executions).sum();
            let ms = began.elapsed().as_millis();
            println!(
                "{name}: {what}: {ms} ms, {executions} executions in {} sums",
                sums.len()
            );
        }
        println!("{name}: {} MB", database.bytes().await >> 20);
    }
}

/// Sums of one grain over some times of it, for 10 tenants with 100 functions each, on 10 nodes.
fn rollups(start: u64, grain: u64, (first, last): (u64, u64), executions: u64) -> String {
    let others = ", 0".repeat(6) + &", 5000000".repeat(12);
    format!(
        "WITH RECURSIVE times(n) AS (SELECT {first} UNION ALL SELECT n + 1 FROM times WHERE n < {last}),
                        keys(k) AS (SELECT 0 UNION ALL SELECT k + 1 FROM keys WHERE k < 9999)
         INSERT INTO usage_sums
         SELECT {grain}, {start} + n * CAST({grain} AS BIGINT), 't' || CAST(k / 1000 AS TEXT),
                'f' || CAST(k / 10 % 100 AS TEXT), fingerprint, 'n' || CAST(k % 10 AS TEXT), {executions}{others}
         FROM times, keys, (SELECT fingerprint FROM authority) AS version"
    )
}

async fn usage_is_summed_by_time_from_any_minute_to_any_other(database: TestDatabase) {
    let fleet = TestFleet::new(&database.store);
    // One in each of 3,000 minutes from an odd one on: two days and a bit.
    let start = 1_700_000_040_000;
    let batch: Vec<_> = (0..3000)
        .map(|minute| UsageRecord {
            accepted_ms: start + minute * MINUTE_MS + minute % 60_000,
            ..record(1, minute + 1)
        })
        .collect();
    let mut a = fleet.join("a");
    let sent = a.seal(&batch);
    fleet.send(&a, &sent).await.unwrap();
    // Sent again, it is in no sum twice.
    fleet.send(&a, &sent).await.unwrap();
    for (from, to) in [
        (0, 3000),
        (0, 1),
        (7, 8),
        (30, 1470),
        (59, 61),
        (1, 2999),
        (2990, 4000),
    ] {
        let filter = UsageFilter {
            from_ms: start + from * MINUTE_MS,
            to_ms: start + to * MINUTE_MS,
            ..UsageFilter::default()
        };
        let expected = to.min(3000) - from;
        for group in [UsageGroup::Tenant, UsageGroup::Node] {
            let sums = fleet.ledger.usage(&filter, group).await.unwrap();
            assert_eq!(
                (sums.len(), sums[0].executions),
                (1, expected),
                "{from} to {to}"
            );
        }
        for grain in [MINUTE_MS, HOUR_MS, DAY_MS] {
            let sums = fleet
                .ledger
                .usage(&filter, UsageGroup::Time(grain))
                .await
                .unwrap();
            let last = filter.to_ms.min(start + 3000 * MINUTE_MS) - 1;
            let parts = last / grain - filter.from_ms / grain + 1;
            assert_eq!(sums.len() as u64, parts, "{from} to {to} by {grain}");
            let all: u64 = sums.iter().map(|sum| sum.executions).sum();
            assert_eq!(all, expected, "{from} to {to} by {grain}");
        }
    }
    let days = fleet
        .ledger
        .usage(&UsageFilter::default(), UsageGroup::Time(DAY_MS))
        .await
        .unwrap();
    assert_eq!(days[0].key, "2023-11-14T00:00:00Z");
}
