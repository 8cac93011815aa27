//! What holds when records are no longer kept, asked of SQLite and of PostgreSQL.

use holm_model::api::{AuditFault, AuditView};
use holm_model::chain::{NOTHING_BEFORE, genesis};
use holm_test_support::{random_below, seeds};

use super::testing::{TestFleet, TestNode, record, records};
use super::*;
use crate::limits::MAX_DROPPED_ROWS;
use crate::store::Dropped;
use crate::store::testing::{TestDatabase, on_both_databases};

on_both_databases! {
    what_went_is_in_every_sum_and_the_audit_goes_on_behind_it,
    the_oldest_go_first_and_only_so_many_at_once,
    what_was_dropped_is_known_when_it_comes_again_and_the_chain_goes_on,
    what_is_not_as_it_was_signed_stays,
    a_clock_that_jumps_ahead_removes_nothing_until_a_person_says_that_it_is_right,
    a_checkpoint_that_is_changed_exchanged_or_removed_is_found,
    what_an_operator_let_pass_is_still_told,
    rows_from_before_there_were_chains_go_with_the_batch_behind_them,
    a_bill_counts_up_to_a_row_that_is_no_longer_kept,
    whatever_goes_while_usage_comes_every_execution_is_billed_once,
}

/// Two epochs: batches of ten, ten and ten.
async fn filled(fleet: &TestFleet) -> (TestNode, Vec<holm_model::usage_batch::UsageBatch>) {
    let mut a = fleet.join("a");
    let mut batches = Vec::new();
    for records in [records(1, 1..=10), records(1, 11..=20), records(2, 1..=10)] {
        let batch = a.seal(&records);
        fleet.send(&a, &batch).await.unwrap();
        batches.push(batch);
    }
    (a, batches)
}

/// Makes the node's first batches old.
async fn age(database: &TestDatabase, which: &str) {
    database
        .execute(&format!(
            "UPDATE usage_batches SET received_ms = 5 WHERE {which}"
        ))
        .await;
}

async fn audit(fleet: &TestFleet) -> AuditView {
    fleet.ledger.audit().await.unwrap()
}

fn faults(audit: &AuditView) -> Vec<AuditFault> {
    audit.problems.iter().map(|problem| problem.fault).collect()
}

async fn sums(fleet: &TestFleet) -> Vec<Vec<holm_model::api::UsageView>> {
    let mut all = Vec::new();
    for group in [
        UsageGroup::Function,
        UsageGroup::Node,
        UsageGroup::Time(60_000),
    ] {
        let sums = fleet.ledger.usage(&UsageFilter::default(), group).await;
        all.push(sums.unwrap());
    }
    all
}

async fn what_went_is_in_every_sum_and_the_audit_goes_on_behind_it(database: TestDatabase) {
    let fleet = TestFleet::new(&database.store);
    let (a, _) = filled(&fleet).await;
    let (before, told) = (audit(&fleet).await, sums(&fleet).await);
    age(&database, "boot_epoch = 1").await;
    assert_eq!(
        fleet.drop_entered_before(&a.name, 5).await,
        Dropped::Nothing,
        "not older"
    );
    assert_eq!(
        fleet.drop_entered_before(&a.name, 6).await,
        Dropped::Rows(20)
    );
    assert_eq!(
        fleet.drop_entered_before(&a.name, 6).await,
        Dropped::Nothing
    );

    let after = audit(&fleet).await;
    assert!(after.whole, "{after:?}");
    assert_eq!((after.rows, after.dropped, after.missing), (10, 20, 0));
    assert_eq!(
        after.nodes, before.nodes,
        "the same requests and the same head"
    );
    let journal = &after.journals[0];
    assert_eq!(
        (
            journal.first,
            journal.last,
            journal.checkpoint,
            journal.rows
        ),
        (1, 20, 20, 0)
    );
    assert_eq!(journal.head, before.journals[0].head);
    assert_eq!(after.journals[1], before.journals[1]);
    assert_eq!(sums(&fleet).await, told);
    let page = fleet
        .ledger
        .records(&RecordsFilter::default(), 0, 100)
        .await
        .unwrap();
    assert_eq!(page.records.len(), 10);

    // All of it, and the audit still knows the head.
    assert_eq!(fleet.drop_records(&a.name).await, Dropped::Rows(10));
    let after = audit(&fleet).await;
    assert!(after.whole, "{after:?}");
    assert_eq!((after.rows, after.dropped), (0, 30));
    assert_eq!(after.nodes, before.nodes);
    assert_eq!(sums(&fleet).await, told);
    let so_far = database.store.dropped_so_far().await.unwrap();
    assert_eq!(so_far.rows, 30);
    assert!(so_far.upto_ms > 5);

    // Sums that are changed then are found by what the checkpoints say.
    database
        .execute("UPDATE usage_sums SET run_ns = run_ns - 1 WHERE grain_ms = 3600000")
        .await;
    assert_eq!(faults(&audit(&fleet).await), [AuditFault::Sums]);
}

async fn the_oldest_go_first_and_only_so_many_at_once(database: TestDatabase) {
    let fleet = TestFleet::new(&database.store);
    let mut a = fleet.join("a");
    let size = MAX_DROPPED_ROWS / 2 + 1;
    for batch in 0..3 {
        let batch = a.seal(&records(1, 1 + batch * size..=(batch + 1) * size));
        fleet.send(&a, &batch).await.unwrap();
    }
    // A batch in the middle that looks older does not go before the first.
    age(&database, &format!("first = {}", size + 1)).await;
    assert_eq!(
        fleet.drop_entered_before(&a.name, 6).await,
        Dropped::Nothing
    );
    for left in [2, 1, 0] {
        assert_eq!(fleet.drop_records(&a.name).await, Dropped::Rows(size));
        let audit = audit(&fleet).await;
        assert!(audit.whole && audit.rows == left * size, "{audit:?}");
    }
    assert_eq!(fleet.drop_records(&a.name).await, Dropped::Nothing);
}

async fn what_was_dropped_is_known_when_it_comes_again_and_the_chain_goes_on(
    database: TestDatabase,
) {
    let fleet = TestFleet::new(&database.store);
    let (mut a, batches) = filled(&fleet).await;
    let told = sums(&fleet).await;
    while fleet.drop_records(&a.name).await != Dropped::Nothing {}
    for batch in &batches {
        assert_eq!(fleet.send(&a, batch).await.unwrap(), (0, 10));
    }
    assert_eq!(sums(&fleet).await, told, "billed once");
    assert_eq!(audit(&fleet).await.resent, 30);

    // Other records in the place of the newest, across its end, or of an epoch that never was.
    let mut other = records(2, 1..=10);
    other[3].run_ns += 1;
    for batch in [
        a.sign(&other, batches[2].previous),
        a.sign(&records(2, 6..=15), batches[2].hash),
        a.sign(&records(2, 1..=9), batches[2].previous),
    ] {
        let fork = fleet.send(&a, &batch).await.unwrap_err();
        assert!(matches!(fork, LedgerError::Fork(..)), "{fork}");
    }
    let anew = a.sign(&records(3, 1..=5), genesis(&a.name, 3, NOTHING_BEFORE));
    let error = fleet.send(&a, &anew).await.unwrap_err();
    assert!(matches!(error, LedgerError::Anew(..)), "{error}");
    let next = a.seal(&records(2, 11..=15));
    let ahead = a.clone().seal(&records(2, 16..=20));
    let gap = fleet.send(&a, &ahead).await.unwrap_err();
    assert!(matches!(gap, LedgerError::Gap(..)), "{gap}");
    assert!(gap.to_string().contains("ends at 2/10"), "{gap}");
    assert_eq!(fleet.send(&a, &next).await.unwrap(), (5, 0));
    let epoch = a.seal(&records(3, 1..=5));
    assert_eq!(fleet.send(&a, &epoch).await.unwrap(), (5, 0));
    let after = audit(&fleet).await;
    assert!(after.whole && after.rows == 10, "{after:?}");
    // What is kept and what is not are one journal.
    assert_eq!(
        (after.journals[1].checkpoint, after.journals[1].last),
        (10, 15)
    );
    assert_eq!(fleet.drop_records(&a.name).await, Dropped::Rows(10));
    assert!(audit(&fleet).await.whole);
}

async fn what_is_not_as_it_was_signed_stays(database: TestDatabase) {
    let fleet = TestFleet::new(&database.store);
    let (a, _) = filled(&fleet).await;
    for (doing, undoing) in [
        (
            "UPDATE usage SET cpu_ns = cpu_ns + 1 WHERE boot_epoch = 1 AND sequence = 3",
            "UPDATE usage SET cpu_ns = cpu_ns - 1 WHERE boot_epoch = 1 AND sequence = 3",
        ),
        (
            "UPDATE usage SET sequence = 99 WHERE boot_epoch = 1 AND sequence = 20",
            "UPDATE usage SET sequence = 20 WHERE boot_epoch = 1 AND sequence = 99",
        ),
        (
            "UPDATE usage_batches SET signer = previous WHERE boot_epoch = 1 AND first = 11",
            "UPDATE usage_batches SET signer = (SELECT fingerprint FROM usage_signers)",
        ),
    ] {
        database.execute(doing).await;
        let named = audit(&fleet).await;
        let kept = fleet.drop_records(&a.name).await;
        assert!(matches!(kept, Dropped::Kept(_)), "{kept:?} after {doing}");
        assert_eq!(audit(&fleet).await, named, "nothing went after {doing}");
        database.execute(undoing).await;
    }
    // One execution under two keys, each of them signed.
    let mut b = fleet.join("b");
    let again = b.seal(&[record(1, 1)]);
    fleet.send(&b, &again).await.unwrap();
    for node in [&a.name, &b.name] {
        let kept = fleet.drop_records(node).await;
        assert!(matches!(kept, Dropped::Kept(_)), "{kept:?}");
    }
    assert_eq!(audit(&fleet).await.duplicates, 1);
}

async fn a_checkpoint_that_is_changed_exchanged_or_removed_is_found(database: TestDatabase) {
    let fleet = TestFleet::new(&database.store);
    let (mut a, batches) = filled(&fleet).await;
    age(&database, "boot_epoch = 1 AND first = 1").await;
    assert_eq!(
        fleet.drop_entered_before(&a.name, 6).await,
        Dropped::Rows(10)
    );
    let older = database.checkpoints().await;
    age(&database, "boot_epoch = 1").await;
    assert_eq!(
        fleet.drop_entered_before(&a.name, 6).await,
        Dropped::Rows(10)
    );
    let right = database.checkpoints().await;
    assert!(audit(&fleet).await.whole);
    for (sql, found) in [
        (
            "UPDATE usage_checkpoints SET checkpoint = replace(checkpoint, '\"rows\":20', '\"rows\":21')",
            AuditFault::Checkpoint,
        ),
        (
            "UPDATE usage_checkpoints SET boot_epoch = 0",
            AuditFault::Checkpoint,
        ),
    ] {
        database.execute(sql).await;
        let named = audit(&fleet).await;
        assert!(!named.whole && faults(&named).contains(&found), "{named:?}");
        let kept = fleet.drop_records(&a.name).await;
        assert!(matches!(kept, Dropped::Kept(_)), "{kept:?} after {sql}");
        // Neither known nor new can be said of what is old.
        let error = fleet.send(&a, &batches[0]).await.unwrap_err();
        assert!(error.to_string().contains("checkpoint"), "{error}");
        database.set_checkpoints(&right).await;
    }
    // One of before: what lies between it and the next batch is missing.
    database.set_checkpoints(&older).await;
    assert!(faults(&audit(&fleet).await).contains(&AuditFault::Gap));
    let kept = fleet.drop_records(&a.name).await;
    assert!(matches!(kept, Dropped::Kept(_)), "{kept:?}");
    database.set_checkpoints(&[]).await;
    assert!(faults(&audit(&fleet).await).contains(&AuditFault::Gap));
    database.set_checkpoints(&right).await;
    assert!(audit(&fleet).await.whole);
    // Between two epochs of which nothing is kept, too.
    let next = a.seal(&records(3, 1..=2));
    fleet.send(&a, &next).await.unwrap();
    while fleet.drop_records(&a.name).await != Dropped::Nothing {}
    assert!(audit(&fleet).await.whole);
    database
        .execute("DELETE FROM usage_checkpoints WHERE boot_epoch = 2")
        .await;
    assert!(faults(&audit(&fleet).await).contains(&AuditFault::Checkpoint));
}

async fn what_an_operator_let_pass_is_still_told(database: TestDatabase) {
    let fleet = TestFleet::new(&database.store);
    let mut old = fleet.join("a");
    let first = old.seal(&records(1, 1..=5));
    fleet.send(&old, &first).await.unwrap();
    // Another machine, and then one that has lost a batch.
    let mut new = fleet.join("a");
    let anew = new.seal(&records(2, 1..=3));
    fleet.send(&new, &anew).await.unwrap();
    let mut kept = fleet.join("a");
    kept.head = new.head;
    kept.seal(&records(2, 4..=6));
    let later = kept.seal(&records(2, 7..=9));
    fleet.send(&kept, &later).await.unwrap();
    let before = audit(&fleet).await;
    assert_eq!((before.missing, before.notices.len()), (3, 1));
    assert_eq!(faults(&before), [AuditFault::Gap]);
    while fleet.drop_records(&old.name).await != Dropped::Nothing {}
    let after = audit(&fleet).await;
    assert_eq!(after.rows, 0);
    assert_eq!(
        (after.missing, &after.notices, &after.problems),
        (3, &before.notices, &before.problems)
    );
    // What is missing does not count as known, should it come up.
    let lost = new.seal(&records(2, 4..=6));
    let error = fleet.send(&new, &lost).await.unwrap_err();
    assert!(matches!(error, LedgerError::Fork(..)), "{error}");
}

async fn a_clock_that_jumps_ahead_removes_nothing_until_a_person_says_that_it_is_right(
    database: TestDatabase,
) {
    const DAY: u64 = 86_400_000;
    let fleet = TestFleet::new(&database.store);
    filled(&fleet).await;
    let entered = 20_000 * DAY;
    database
        .execute(&format!("UPDATE usage_batches SET received_ms = {entered}"))
        .await;
    let look = async |now_ms, is_trusted| {
        let looked = database.store.look_at_clock(now_ms, 40 * DAY, is_trusted);
        looked.await.unwrap()
    };
    // Before it has ever looked, by what is in the ledger.
    assert_eq!(look(entered + 400 * DAY, false).await, Some(entered));
    let noted = audit(&fleet).await;
    assert!(
        noted.whole && noted.notices[0].contains("--trust-clock"),
        "{noted:?}"
    );
    // What is entered by such a clock does not make it right.
    let mut other = fleet.join("other");
    let mut late = records(3, 1..=2);
    late.iter_mut().for_each(|record| record.request.0[7] = 9);
    fleet
        .send(&other.clone(), &other.seal(&late))
        .await
        .unwrap();
    assert_eq!(look(entered + 400 * DAY, false).await, Some(entered));
    // One that is right again, and goes on, with pauses.
    for day in [1, 40, 80] {
        assert_eq!(look(entered + day * DAY, false).await, None);
        assert_eq!(audit(&fleet).await.notices, [""; 0]);
    }
    let last = entered + 80 * DAY;
    assert_eq!(look(last + 41 * DAY, false).await, Some(last));
    assert_eq!(look(last + 41 * DAY, true).await, None);
    assert_eq!(look(last + 42 * DAY, false).await, None);
}

async fn rows_from_before_there_were_chains_go_with_the_batch_behind_them(database: TestDatabase) {
    let fleet = TestFleet::new(&database.store);
    let mut a = fleet.join("a");
    let unchained = [record(1, 1), record(1, 2)];
    database
        .store
        .enter_rows(&a.name, &unchained)
        .await
        .unwrap();
    assert_eq!(fleet.drop_records(&a.name).await, Dropped::Nothing);
    let batch = a.seal(&records(1, 2..=5));
    assert_eq!(fleet.send(&a, &batch).await.unwrap(), (3, 1));
    assert_eq!(fleet.drop_records(&a.name).await, Dropped::Rows(5));
    let audit = audit(&fleet).await;
    assert!(audit.whole, "{audit:?}");
    assert_eq!((audit.rows, audit.dropped, audit.unchained), (0, 5, 1));
}

async fn a_bill_counts_up_to_a_row_that_is_no_longer_kept(database: TestDatabase) {
    let fleet = TestFleet::new(&database.store);
    let (a, _) = filled(&fleet).await;
    let acme = "acme".parse().unwrap();
    let bill = async || {
        database
            .store
            .bill_lines(&acme, 0, ALWAYS_MS)
            .await
            .unwrap()
    };
    let before = bill().await;
    while fleet.drop_records(&a.name).await != Dropped::Nothing {}
    assert_eq!(bill().await, before);
}

/// Nodes that send batches, send old ones again, and begin new epochs, while records go at any time.
async fn whatever_goes_while_usage_comes_every_execution_is_billed_once(database: TestDatabase) {
    let fleet = TestFleet::new(&database.store);
    let (mut executions, mut gone) = (0, 0);
    for seed in seeds("HOLM_RETENTION_SEED", 6) {
        println!("seed {seed}");
        let mut below = random_below(seed);
        let mut node = fleet.join(&format!("n{seed}"));
        let mut sent: Vec<holm_model::usage_batch::UsageBatch> = Vec::new();
        for _ in 0..40 {
            match below(5) {
                0 if !sent.is_empty() => {
                    let again = &sent[below(sent.len() as u64) as usize];
                    let (new, _) = fleet.send(&node, again).await.unwrap();
                    assert_eq!(new, 0, "seed {seed}");
                }
                1 if !sent.is_empty() => {
                    // Those up to one of them are old.
                    let old = &sent[below(sent.len() as u64) as usize];
                    database
                        .run(&format!(
                            "UPDATE usage_batches SET received_ms = 5
                             WHERE node = '{}' AND (boot_epoch, first) <= ({}, {})",
                            node.name, old.boot_epoch, old.first
                        ))
                        .await;
                    let dropped = fleet.drop_entered_before(&node.name, 6).await;
                    if let Dropped::Rows(rows) = dropped {
                        gone += rows;
                    }
                }
                step => {
                    let head = node.head.filter(|_| step != 2);
                    let epoch = node.head.map_or(1, |head| head.boot_epoch);
                    let (epoch, first) = match head {
                        Some(head) => (epoch, head.last + 1),
                        None => (epoch + u64::from(node.head.is_some()), 1),
                    };
                    let mut records = records(epoch, first..=first + below(20));
                    for record in &mut records {
                        record.request.0 =
                            Digest::of(format!("{seed} {epoch} {}", record.sequence).as_bytes()).0
                                [..16]
                                .try_into()
                                .unwrap();
                        record.probe = below(9) == 0;
                        executions += u64::from(!record.probe);
                    }
                    let batch = node.seal(&records);
                    fleet.send(&node, &batch).await.unwrap();
                    sent.push(batch);
                }
            }
        }
        let audit = audit(&fleet).await;
        assert!(audit.whole, "seed {seed}: {audit:?}");
        assert_eq!(audit.dropped, gone, "seed {seed}");
        let all = UsageFilter::default();
        let sums = fleet.ledger.usage(&all, UsageGroup::Tenant).await.unwrap();
        assert_eq!(sums[0].executions, executions, "seed {seed}");
    }
    assert!(gone > 0, "the runs drop something");
}
