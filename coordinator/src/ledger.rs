//! The ledger: what every execution used, each once.
//!
//! A record's key is (node, boot epoch, sequence). Nodes send until they are answered, so the same
//! record may come twice; the key, checked in the transaction that stores the row, makes that
//! harmless. A *different* record under a known key is refused loudly: it means that a node began
//! its journal anew under an old epoch, and dropping it would lose an execution.

use holm_model::api::{AuditView, UsageRecordsPage, UsageView};
use holm_model::ids::{FunctionName, Name};
use holm_model::limits::{MAX_MEMORY_BYTES, MAX_USAGE_BATCH};
use holm_model::usage::UsageRecord;

use crate::store::{ALWAYS_MS, Store, StoreError, StoredUsage, UsageFilter, UsageGroup};

/// Longest time that a record may claim: far above every limit, low enough that sums of products
/// stay exact.
const MAX_NS: u64 = 86_400_000_000_000;

/// Why a batch is not stored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LedgerError {
    #[error(
        "the batch has {0} usage records, more than the {MAX_USAGE_BATCH} allowed; the node is to \
         send smaller ones"
    )]
    TooMany(usize),
    #[error(
        "usage record {boot_epoch}/{sequence} of node {node} claims {what}, which cannot be; the \
         node's journal is damaged, or it runs another version of Holm"
    )]
    Impossible {
        node: Name,
        boot_epoch: u64,
        sequence: u64,
        what: &'static str,
    },
    #[error(
        "the ledger has another record as {boot_epoch}/{sequence} of node {node}: the node began \
         its journal anew under an old boot epoch (was its state directory restored or copied?); \
         give it a fresh state directory and a higher epoch"
    )]
    Conflict {
        node: Name,
        boot_epoch: u64,
        sequence: u64,
    },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The ledger.
#[derive(Clone, Debug)]
pub(crate) struct Ledger {
    store: Store,
}

impl Ledger {
    pub(crate) fn new(store: Store) -> Self {
        Ledger { store }
    }

    /// Stores a node's batch; returns how many records were new and how many known.
    pub(crate) async fn add(
        &self,
        node: &Name,
        records: &[UsageRecord],
    ) -> Result<(u64, u64), LedgerError> {
        if records.len() > MAX_USAGE_BATCH {
            return Err(LedgerError::TooMany(records.len()));
        }
        for record in records {
            if let Some(what) = impossible(record) {
                let (boot_epoch, sequence) = (record.boot_epoch, record.sequence);
                return Err(LedgerError::Impossible {
                    node: node.clone(),
                    boot_epoch,
                    sequence,
                    what,
                });
            }
        }
        match self.store.add_usage(node, records).await? {
            StoredUsage::Stored { new, known } => Ok((new, known)),
            StoredUsage::Conflict {
                boot_epoch,
                sequence,
            } => Err(LedgerError::Conflict {
                node: node.clone(),
                boot_epoch,
                sequence,
            }),
        }
    }

    /// Sums of usage.
    pub(crate) async fn usage(
        &self,
        filter: &UsageFilter,
        group: UsageGroup,
    ) -> Result<Vec<UsageView>, StoreError> {
        self.store.usage(filter, group).await
    }

    /// Rows in the order in which they were entered, from behind row `after` on.
    pub(crate) async fn records(
        &self,
        function: Option<&FunctionName>,
        after: u64,
        limit: usize,
    ) -> Result<UsageRecordsPage, StoreError> {
        self.store.usage_records(function, after, limit).await
    }

    /// Whether the ledger is whole.
    pub(crate) async fn audit(&self) -> Result<AuditView, StoreError> {
        self.store.audit().await
    }
}

/// What a record claims that cannot be.
fn impossible(record: &UsageRecord) -> Option<&'static str> {
    let signed = i64::MAX as u64;
    let bytes = record
        .request_bytes
        .max(record.response_bytes)
        .max(record.egress_bytes)
        .max(record.ingress_bytes);
    let ns = record
        .queue_ns
        .max(record.restore_ns)
        .max(record.run_ns)
        .max(record.cpu_ns);
    match record {
        _ if record.sequence == 0 => Some("sequence number 0"),
        _ if record.sequence > signed => Some("a sequence number above 2^63"),
        _ if record.boot_epoch > signed => Some("a boot epoch above 2^63"),
        _ if record.accepted_ms >= ALWAYS_MS => Some("a time after the end of time"),
        _ if record.memory_bytes > MAX_MEMORY_BYTES => Some("more memory than a function can have"),
        _ if ns > MAX_NS => Some("more than a day of run time"),
        _ if bytes > signed => Some("more than 2^63 bytes"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use holm_model::ids::{Digest, RequestId};
    use holm_model::usage::Outcome;

    use super::*;
    use crate::store::testing::{TestDatabase, on_both_databases};
    use crate::store::{DAY_MS, HOUR_MS, MINUTE_MS};

    on_both_databases! {
        the_same_batch_twice_is_billed_once_and_counted_as_resent,
        a_batch_that_overlaps_adds_only_what_is_new,
        another_record_under_a_known_key_is_refused_and_nothing_of_its_batch_stored,
        what_cannot_be_is_refused,
        the_audit_names_gaps_and_executions_entered_twice,
        sums_leave_probes_out_and_go_by_function_version_or_node,
        pages_of_rows_give_every_record_once_as_it_was_sent,
        sums_beyond_63_bits_stay_exact,
        usage_is_summed_by_time_from_any_minute_to_any_other,
    }

    fn node(name: &str) -> Name {
        name.parse().unwrap()
    }

    fn record(boot_epoch: u64, sequence: u64) -> UsageRecord {
        let mut request = [0; 16];
        request[..8].copy_from_slice(&boot_epoch.to_le_bytes());
        request[8..].copy_from_slice(&sequence.to_le_bytes());
        UsageRecord {
            boot_epoch,
            sequence,
            request: RequestId(request),
            function: "acme/hello".parse().unwrap(),
            version: Digest([7; 32]),
            accepted_ms: 1_700_000_000_000,
            outcome: Outcome::Answered,
            status: 200,
            queue_ns: 1,
            restore_ns: 2,
            run_ns: 1_000_001,
            cpu_ns: 4,
            memory_bytes: 64 << 20,
            request_bytes: 5,
            response_bytes: 6,
            egress_bytes: 7,
            ingress_bytes: 8,
            cold: sequence == 1,
            exits: 3,
            probe: false,
        }
    }

    async fn the_same_batch_twice_is_billed_once_and_counted_as_resent(database: TestDatabase) {
        let ledger = Ledger::new(database.store.clone());
        let batch: Vec<_> = (1..=1200).map(|sequence| record(1, sequence)).collect();
        assert_eq!(ledger.add(&node("a"), &batch).await.unwrap(), (1200, 0));
        assert_eq!(ledger.add(&node("a"), &batch).await.unwrap(), (0, 1200));
        let usage = ledger
            .usage(&UsageFilter::default(), UsageGroup::Function)
            .await
            .unwrap();
        assert_eq!(usage.len(), 1);
        assert_eq!(
            (usage[0].key.as_str(), usage[0].executions),
            ("acme/hello", 1200)
        );
        let audit = ledger.audit().await.unwrap();
        assert_eq!((audit.rows, audit.resent, audit.whole), (1200, 1200, true));
    }

    async fn a_batch_that_overlaps_adds_only_what_is_new(database: TestDatabase) {
        let ledger = Ledger::new(database.store.clone());
        let batch = |range: std::ops::RangeInclusive<u64>| -> Vec<_> {
            range.map(|sequence| record(1, sequence)).collect()
        };
        ledger.add(&node("a"), &batch(1..=10)).await.unwrap();
        assert_eq!(
            ledger.add(&node("a"), &batch(6..=15)).await.unwrap(),
            (5, 5)
        );
        // The same numbers of another node, and of another life, are other records.
        assert_eq!(
            ledger.add(&node("a"), &[record(2, 1)]).await.unwrap(),
            (1, 0)
        );
    }

    async fn another_record_under_a_known_key_is_refused_and_nothing_of_its_batch_stored(
        database: TestDatabase,
    ) {
        let ledger = Ledger::new(database.store.clone());
        ledger.add(&node("a"), &[record(1, 1)]).await.unwrap();
        let mut other = record(1, 1);
        other.request = RequestId([9; 16]);
        let error = ledger
            .add(&node("a"), &[record(1, 2), other])
            .await
            .unwrap_err();
        assert!(
            matches!(error, LedgerError::Conflict { sequence: 1, .. }),
            "{error}"
        );
        assert_eq!(ledger.audit().await.unwrap().rows, 1);
    }

    async fn what_cannot_be_is_refused(database: TestDatabase) {
        let ledger = Ledger::new(database.store.clone());
        let mut timeless = record(1, 1);
        timeless.run_ns = u64::MAX;
        let mut endless = record(1, 1);
        endless.sequence = u64::MAX;
        for bad in [timeless, endless, record(1, 0)] {
            let error = ledger.add(&node("a"), &[bad]).await.unwrap_err();
            assert!(matches!(error, LedgerError::Impossible { .. }), "{error}");
        }
        let many = vec![record(1, 1); MAX_USAGE_BATCH + 1];
        assert!(matches!(
            ledger.add(&node("a"), &many).await,
            Err(LedgerError::TooMany(_))
        ));
    }

    async fn the_audit_names_gaps_and_executions_entered_twice(database: TestDatabase) {
        let ledger = Ledger::new(database.store.clone());
        let journal: Vec<_> = [1, 2, 5].map(|sequence| record(1, sequence)).into();
        ledger.add(&node("a"), &journal).await.unwrap();
        ledger.add(&node("b"), &[record(1, 2)]).await.unwrap();
        let audit = ledger.audit().await.unwrap();
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
        let ledger = Ledger::new(database.store.clone());
        let mut probe = record(1, 3);
        probe.probe = true;
        let mut crash = record(1, 2);
        crash.outcome = Outcome::Crash;
        ledger
            .add(&node("a"), &[record(1, 1), crash, probe])
            .await
            .unwrap();
        ledger.add(&node("b"), &[record(9, 1)]).await.unwrap();

        let all = UsageFilter::default();
        let by_function = ledger.usage(&all, UsageGroup::Function).await.unwrap();
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
        let by_node = ledger.usage(&all, UsageGroup::Node).await.unwrap();
        assert_eq!(
            by_node.iter().map(|sum| sum.executions).collect::<Vec<_>>(),
            [2, 1]
        );
        let by_version = ledger.usage(&all, UsageGroup::Version).await.unwrap();
        assert_eq!(by_version[0].key, Digest([7; 32]).to_string());
        let tenant = Some("nobody".parse().unwrap());
        let none = UsageFilter {
            tenant,
            ..UsageFilter::default()
        };
        assert_eq!(ledger.usage(&none, UsageGroup::Function).await.unwrap(), []);
    }

    async fn pages_of_rows_give_every_record_once_as_it_was_sent(database: TestDatabase) {
        let ledger = Ledger::new(database.store.clone());
        let sent: Vec<_> = (1..=7).map(|sequence| record(1, sequence)).collect();
        ledger.add(&node("a"), &sent[..4]).await.unwrap();
        ledger.add(&node("a"), &sent).await.unwrap();
        let mut other = record(2, 1);
        other.function = "acme/other".parse().unwrap();
        ledger.add(&node("b"), &[other.clone()]).await.unwrap();

        let (mut got, mut after, mut pages) = (Vec::new(), 0, 0);
        let hello = "acme/hello".parse().unwrap();
        loop {
            let page = ledger.records(Some(&hello), after, 3).await.unwrap();
            assert!(page.records.len() <= 3);
            got.extend(page.records.into_iter().map(|row| row.record));
            pages += 1;
            match page.next {
                Some(next) => after = next,
                None => break,
            }
        }
        assert_eq!((got, pages), (sent, 3));
        let all = ledger.records(None, 0, 100).await.unwrap();
        assert_eq!(all.records.len(), 8);
        assert_eq!(
            (&all.records[7].record, &all.records[7].node),
            (&other, &node("b"))
        );
        assert!(all.records.is_sorted_by(|a, b| a.row < b.row));
        // A page that ends with the ledger has no next one.
        assert_eq!(ledger.records(None, 0, 8).await.unwrap().next, None);
    }

    async fn sums_beyond_63_bits_stay_exact(database: TestDatabase) {
        let ledger = Ledger::new(database.store.clone());
        let dear: Vec<_> = (1..=200)
            .map(|sequence| {
                let mut record = record(1, sequence);
                record.memory_bytes = MAX_MEMORY_BYTES;
                record.run_ns = MAX_NS;
                record.response_bytes = i64::MAX as u64;
                // A day apart, so that no sum of a day is more than a column holds.
                record.accepted_ms = sequence * DAY_MS;
                record
            })
            .collect();
        ledger.add(&node("a"), &dear[..1]).await.unwrap();
        ledger.add(&node("a"), &dear[1..2]).await.unwrap();
        let usage = ledger
            .usage(&UsageFilter::default(), UsageGroup::Function)
            .await
            .unwrap();
        assert_eq!(usage[0].response_bytes, 2 * (i64::MAX as u64));
        ledger.add(&node("a"), &dear).await.unwrap();
        let usage = ledger
            .usage(&UsageFilter::default(), UsageGroup::Function)
            .await
            .unwrap();
        assert_eq!(
            usage[0].response_bytes,
            u64::MAX,
            "what does not fit is held at the end"
        );
        // Within a day, too.
        let mut again = dear[0].clone();
        again.sequence = 1000;
        ledger
            .add(&node("b"), &[dear[0].clone(), again])
            .await
            .unwrap();
        let of_b = UsageFilter {
            to_ms: 2 * DAY_MS,
            ..UsageFilter::default()
        };
        let by_node = ledger.usage(&of_b, UsageGroup::Node).await.unwrap();
        assert_eq!(by_node[1].response_bytes, i64::MAX as u64);
    }

    async fn usage_is_summed_by_time_from_any_minute_to_any_other(database: TestDatabase) {
        let ledger = Ledger::new(database.store.clone());
        // One in each of 3,000 minutes from an odd one on: two days and a bit.
        let start = 1_700_000_040_000;
        let batch: Vec<_> = (0..3000)
            .map(|minute| UsageRecord {
                accepted_ms: start + minute * MINUTE_MS + minute % 60_000,
                ..record(1, minute + 1)
            })
            .collect();
        ledger.add(&node("a"), &batch).await.unwrap();
        // Sent again, it is in no sum twice.
        ledger.add(&node("a"), &batch[1000..2000]).await.unwrap();
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
                let sums = ledger.usage(&filter, group).await.unwrap();
                assert_eq!(
                    (sums.len(), sums[0].executions),
                    (1, expected),
                    "{from} to {to}"
                );
            }
            for grain in [MINUTE_MS, HOUR_MS, DAY_MS] {
                let sums = ledger
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
        let days = ledger
            .usage(&UsageFilter::default(), UsageGroup::Time(DAY_MS))
            .await
            .unwrap();
        assert_eq!(days[0].key, "2023-11-14T00:00:00Z");
    }
}
