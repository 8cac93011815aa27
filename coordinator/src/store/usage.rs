//! The ledger's rows.

use std::collections::BTreeSet;

use holm_model::api::{AuditJournal, AuditView, LedgerRow, UsageRecordsPage, UsageView};
use holm_model::ids::{Digest, FunctionName, Name, RequestId};
use holm_model::usage::{Outcome, UsageRecord};

use super::error::During as _;
use super::sql::{Row, Transaction, Value, query};
use super::sums::{self, UsageFilter, UsageGroup};
use super::{Store, StoreError, Turn, bytes32, text, uint};
use crate::limits::LEDGER_CHUNK_ROWS;

/// What became of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StoredUsage {
    /// All of it is in the ledger.
    Stored { new: u64, known: u64 },
    /// A record has the key of a different one; nothing of the batch was stored.
    Conflict { boot_epoch: u64, sequence: u64 },
}

/// A row but for its number, in the order of [`insert`].
const COLUMNS: &str = "node, boot_epoch, sequence, request, tenant, function, version, accepted_ms, \
                       outcome, status, queue_ns, restore_ns, run_ns, cpu_ns, memory_bytes, \
                       request_bytes, response_bytes, egress_bytes, ingress_bytes, cold, exits, \
                       probe";

impl Store {
    /// Stores a batch of one node: rows, deduplication and the counter of resent records in one
    /// transaction.
    pub(crate) async fn add_usage(
        &self,
        node: &Name,
        records: &[UsageRecord],
    ) -> Result<StoredUsage, StoreError> {
        const DOING: &str = "store usage";
        let mut tx = self.write(Turn::Ledger).await?;
        let mut new = 0;
        for chunk in records.chunks(LEDGER_CHUNK_ROWS) {
            let added = insert(&mut tx, node, chunk).await?;
            if added.len() < chunk.len()
                && let Some(record) = conflict(&mut tx, node, chunk).await?
            {
                // Dropped, the transaction is rolled back.
                return Ok(StoredUsage::Conflict {
                    boot_epoch: record.boot_epoch,
                    sequence: record.sequence,
                });
            }
            new += added.len() as u64;
            let is_new =
                |record: &&UsageRecord| added.contains(&(record.boot_epoch, record.sequence));
            sums::add(&mut tx, node, chunk.iter().filter(is_new)).await?;
        }
        let known = records.len() as u64 - new;
        if known > 0 {
            query("UPDATE counters SET value = value + ? WHERE name = 'usage_resent'")
                .bind(known)
                .execute(&mut tx)
                .await
                .during(DOING)?;
        }
        tx.commit(DOING).await?;
        Ok(StoredUsage::Stored { new, known })
    }

    /// Sums of usage, probes excluded.
    pub(crate) async fn usage(
        &self,
        filter: &UsageFilter,
        group: UsageGroup,
    ) -> Result<Vec<UsageView>, StoreError> {
        sums::read(self.reader(), filter, group).await
    }

    /// The rows of one request: more than one if it was begun again, or entered twice.
    pub(crate) async fn request_records(
        &self,
        request: RequestId,
    ) -> Result<Vec<LedgerRow>, StoreError> {
        let mut rows = query("SELECT row, ");
        rows.push(COLUMNS).push(" FROM usage WHERE request = ");
        rows.push_bind(Value::from(&request.0[..]))
            .push(" ORDER BY row LIMIT 100");
        let rows = rows.rows(self.reader()).await.during("find a request")?;
        rows.iter().map(ledger_row).collect()
    }

    /// Rows behind row `after`, at most `limit`.
    pub(crate) async fn usage_records(
        &self,
        function: Option<&FunctionName>,
        after: u64,
        limit: usize,
    ) -> Result<UsageRecordsPage, StoreError> {
        const DOING: &str = "list usage";
        let mut page = query("SELECT row, ");
        page.push(COLUMNS)
            .push(" FROM usage WHERE row > ")
            .push_bind(after);
        if let Some(FunctionName { tenant, function }) = function {
            page.push(" AND tenant = ").push_bind(tenant);
            page.push(" AND function = ").push_bind(function);
        }
        // One more than asked for tells whether there is a next page.
        page.push(" ORDER BY row LIMIT ")
            .push_bind(limit as u64 + 1);
        let rows = page.rows(self.reader()).await.during(DOING)?;
        let records = rows
            .iter()
            .take(limit)
            .map(ledger_row)
            .collect::<Result<Vec<_>, _>>()?;
        let next = records
            .last()
            .filter(|_| rows.len() > limit)
            .map(|last| last.row);
        Ok(UsageRecordsPage { records, next })
    }

    /// Whether the ledger is whole, by its own keys.
    pub(crate) async fn audit(&self) -> Result<AuditView, StoreError> {
        const DOING: &str = "audit the ledger";
        // One transaction, so that the numbers belong together.
        let mut tx = self.read().await?;
        let rows: Vec<(String, i64, i64, i64, i64)> = query(
            "SELECT node, boot_epoch, MIN(sequence), MAX(sequence), COUNT(*) FROM usage
             GROUP BY node, boot_epoch ORDER BY node, boot_epoch",
        )
        .all(&mut tx)
        .await
        .during(DOING)?;
        let (total, probes, requests): (i64, i64, i64) = query(
            "SELECT COUNT(*), CAST(COALESCE(SUM(probe), 0) AS BIGINT), COUNT(DISTINCT request) FROM usage",
        )
        .one(&mut tx)
        .await
        .during(DOING)?;
        let (resent,): (i64,) = query("SELECT value FROM counters WHERE name = 'usage_resent'")
            .one(&mut tx)
            .await
            .during(DOING)?;
        let journal = |(node, boot_epoch, first, last, rows): (String, i64, i64, i64, i64)| {
            Ok(AuditJournal {
                node: text("a node's name", &node)?,
                boot_epoch: uint(boot_epoch),
                first: uint(first),
                last: uint(last),
                rows: uint(rows),
                // Sequence numbers begin with 1, so what is missing before the first counts too.
                missing: uint(last).saturating_sub(uint(rows)),
            })
        };
        let journals: Vec<_> = rows
            .into_iter()
            .map(journal)
            .collect::<Result<_, StoreError>>()?;
        let missing = journals
            .iter()
            .map(|journal| journal.missing)
            .fold(0, u64::saturating_add);
        let duplicates = uint(total - requests);
        Ok(AuditView {
            journals,
            rows: uint(total),
            probes: uint(probes),
            duplicates,
            missing,
            resent: uint(resent),
            whole: duplicates == 0 && missing == 0,
        })
    }
}

/// Inserts what is not there yet, and returns what that was: boot epochs and sequences.
async fn insert(
    tx: &mut Transaction,
    node: &Name,
    records: &[UsageRecord],
) -> Result<BTreeSet<(u64, u64)>, StoreError> {
    let mut insert = query("INSERT INTO usage (");
    insert.push(COLUMNS).push(") VALUES ");
    insert.push_rows(records.iter().map(|record| values(node, record)));
    // Not every conflict, so that a broken constraint of another kind is not passed over.
    insert.push(
        " ON CONFLICT (node, boot_epoch, sequence) DO NOTHING RETURNING boot_epoch, sequence",
    );
    let new: Vec<(i64, i64)> = insert.all(tx).await.during("store usage")?;
    let keys = new.into_iter();
    Ok(keys
        .map(|(epoch, sequence)| (uint(epoch), uint(sequence)))
        .collect())
}

/// A row in the order of [`COLUMNS`].
fn values(node: &Name, record: &UsageRecord) -> [Value; 22] {
    [
        node.into(),
        record.boot_epoch.into(),
        record.sequence.into(),
        Value::from(&record.request.0[..]),
        Value::from(&record.function.tenant),
        Value::from(&record.function.function),
        record.version.into(),
        record.accepted_ms.into(),
        record.outcome.as_str().into(),
        u32::from(record.status).into(),
        record.queue_ns.into(),
        record.restore_ns.into(),
        record.run_ns.into(),
        record.cpu_ns.into(),
        record.memory_bytes.into(),
        record.request_bytes.into(),
        record.response_bytes.into(),
        record.egress_bytes.into(),
        record.ingress_bytes.into(),
        record.cold.into(),
        record.exits.into(),
        record.probe.into(),
    ]
}

fn ledger_row(row: &Row) -> Result<LedgerRow, StoreError> {
    const WHAT: &str = "a row of the ledger";
    let number = |column: &str| row.get(column).map(uint).during("read usage");
    let flag = |column: &str| number(column).map(|flag| flag != 0);
    let words = |column: &str| row.get::<String>(column).during("read usage");
    let bytes = |column: &str| row.get::<Vec<u8>>(column).during("read usage");
    let wide = |_| StoreError::corrupt(WHAT, "a number is too large");
    let outcome = words("outcome")?;
    let record = UsageRecord {
        boot_epoch: number("boot_epoch")?,
        sequence: number("sequence")?,
        request: RequestId(
            bytes("request")?
                .try_into()
                .map_err(|_| StoreError::corrupt(WHAT, "a request id is not 16 bytes"))?,
        ),
        function: FunctionName {
            tenant: text(WHAT, &words("tenant")?)?,
            function: text(WHAT, &words("function")?)?,
        },
        version: Digest(bytes32(WHAT, &bytes("version")?)?),
        accepted_ms: number("accepted_ms")?,
        outcome: Outcome::from_name(&outcome)
            .ok_or_else(|| StoreError::corrupt(WHAT, format!("`{outcome}` is no outcome")))?,
        status: u16::try_from(number("status")?).map_err(wide)?,
        queue_ns: number("queue_ns")?,
        restore_ns: number("restore_ns")?,
        run_ns: number("run_ns")?,
        cpu_ns: number("cpu_ns")?,
        memory_bytes: number("memory_bytes")?,
        request_bytes: number("request_bytes")?,
        response_bytes: number("response_bytes")?,
        egress_bytes: number("egress_bytes")?,
        ingress_bytes: number("ingress_bytes")?,
        cold: flag("cold")?,
        exits: u32::try_from(number("exits")?).map_err(wide)?,
        probe: flag("probe")?,
    };
    Ok(LedgerRow {
        row: number("row")?,
        node: text(WHAT, &words("node")?)?,
        record,
    })
}

/// The first of `records` whose key the ledger has for another request.
async fn conflict<'a>(
    tx: &mut Transaction,
    node: &Name,
    records: &'a [UsageRecord],
) -> Result<Option<&'a UsageRecord>, StoreError> {
    for record in records {
        let found: Option<(Vec<u8>,)> =
            query("SELECT request FROM usage WHERE node = ? AND boot_epoch = ? AND sequence = ?")
                .bind(node)
                .bind(record.boot_epoch)
                .bind(record.sequence)
                .optional(&mut *tx)
                .await
                .during("compare usage")?;
        let RequestId(expected) = record.request;
        if found.is_some_and(|(request,)| request != expected) {
            return Ok(Some(record));
        }
    }
    Ok(None)
}
