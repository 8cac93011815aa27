//! The ledger's rows.

use holm_model::api::{AuditJournal, AuditView, LedgerRow, UsageRecordsPage, UsageView};
use holm_model::ids::{Digest, FunctionName, Name, RequestId};
use holm_model::usage::{Outcome, UsageRecord};
use sqlx::{QueryBuilder, Row as _, Sqlite, Transaction};

use super::{During as _, Store, StoreError, bytes32, int, text, uint};
use crate::limits::LEDGER_CHUNK_ROWS;

/// What became of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StoredUsage {
    /// All of it is in the ledger.
    Stored { new: u64, known: u64 },
    /// A record has the key of a different one; nothing of the batch was stored.
    Conflict { boot_epoch: u64, sequence: u64 },
}

/// Which rows.
#[derive(Clone, Debug, Default)]
pub(crate) struct UsageFilter {
    pub(crate) tenant: Option<Name>,
    pub(crate) function: Option<Name>,
}

/// By what rows are summed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum UsageGroup {
    #[default]
    Function,
    Version,
    Node,
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
        let mut tx = self.write().await?;
        let mut new = 0;
        for chunk in records.chunks(LEDGER_CHUNK_ROWS) {
            let added = insert(&mut tx, node, chunk).await?;
            if added < chunk.len() as u64
                && let Some(record) = conflict(&mut tx, node, chunk).await?
            {
                // Dropped, the transaction is rolled back.
                return Ok(StoredUsage::Conflict {
                    boot_epoch: record.boot_epoch,
                    sequence: record.sequence,
                });
            }
            new += added;
        }
        let known = records.len() as u64 - new;
        if known > 0 {
            sqlx::query("UPDATE counters SET value = value + ? WHERE name = 'usage_resent'")
                .bind(int(known))
                .execute(&mut *tx)
                .await
                .during(DOING)?;
        }
        tx.commit().await.during(DOING)?;
        Ok(StoredUsage::Stored { new, known })
    }

    /// Sums of usage, probes excluded.
    pub(crate) async fn usage(
        &self,
        filter: &UsageFilter,
        group: UsageGroup,
    ) -> Result<Vec<UsageView>, StoreError> {
        const DOING: &str = "sum usage";
        let mut query = QueryBuilder::<Sqlite>::new("SELECT ");
        query.push(match group {
            UsageGroup::Function => "tenant || '/' || function",
            UsageGroup::Version => "'sha256:' || lower(hex(version))",
            UsageGroup::Node => "node",
        });
        query.push(" AS grouped, COUNT(*) AS executions, SUM(cold) AS cold");
        for outcome in Outcome::ALL {
            // The names are Holm's own words, not input.
            query.push(format!(", SUM(outcome = '{0}') AS {0}", outcome.as_str()));
        }
        for column in [
            "run_ns",
            "cpu_ns",
            "request_bytes",
            "response_bytes",
            "egress_bytes",
            "ingress_bytes",
        ] {
            push_sum(&mut query, column, column);
        }
        push_sum(
            &mut query,
            "memory_bytes * ((run_ns + 999999) / 1000000)",
            "memory_byte_ms",
        );
        query.push(" FROM usage WHERE probe = 0");
        if let Some(tenant) = &filter.tenant {
            query
                .push(" AND tenant = ")
                .push_bind(tenant.as_str().to_owned());
        }
        if let Some(function) = &filter.function {
            query
                .push(" AND function = ")
                .push_bind(function.as_str().to_owned());
        }
        query.push(" GROUP BY grouped ORDER BY grouped");
        let rows = query.build().fetch_all(&self.reader).await.during(DOING)?;
        let read = |row: &sqlx::sqlite::SqliteRow| -> Result<UsageView, sqlx::Error> {
            let count = |column: &str| row.try_get::<i64, _>(column).map(uint);
            Ok(UsageView {
                key: row.try_get("grouped")?,
                executions: count("executions")?,
                answered: count("answered")?,
                function_errors: count("function_error")?,
                crashes: count("crash")?,
                timeouts: count("timeout")?,
                cancelled: count("cancelled")?,
                shed: count("shed")?,
                platform_faults: count("platform_fault")?,
                cold: count("cold")?,
                run_ns: sum(row, "run_ns")?,
                cpu_ns: sum(row, "cpu_ns")?,
                memory_byte_ms: sum(row, "memory_byte_ms")?,
                request_bytes: sum(row, "request_bytes")?,
                response_bytes: sum(row, "response_bytes")?,
                egress_bytes: sum(row, "egress_bytes")?,
                ingress_bytes: sum(row, "ingress_bytes")?,
            })
        };
        rows.iter()
            .map(read)
            .collect::<Result<_, _>>()
            .during(DOING)
    }

    /// Rows behind row `after`, at most `limit`.
    pub(crate) async fn usage_records(
        &self,
        function: Option<&FunctionName>,
        after: u64,
        limit: usize,
    ) -> Result<UsageRecordsPage, StoreError> {
        const DOING: &str = "list usage";
        let mut query = QueryBuilder::<Sqlite>::new("SELECT row, ");
        query
            .push(COLUMNS)
            .push(" FROM usage WHERE row > ")
            .push_bind(int(after));
        if let Some(FunctionName { tenant, function }) = function {
            query
                .push(" AND tenant = ")
                .push_bind(tenant.as_str().to_owned());
            query
                .push(" AND function = ")
                .push_bind(function.as_str().to_owned());
        }
        // One more than asked for tells whether there is a next page.
        query
            .push(" ORDER BY row LIMIT ")
            .push_bind(int(limit as u64 + 1));
        let rows = query.build().fetch_all(&self.reader).await.during(DOING)?;
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
        let mut tx = self.reader.begin().await.during(DOING)?;
        let rows: Vec<(String, i64, i64, i64, i64)> = sqlx::query_as(
            "SELECT node, boot_epoch, MIN(sequence), MAX(sequence), COUNT(*) FROM usage
             GROUP BY node, boot_epoch ORDER BY node, boot_epoch",
        )
        .fetch_all(&mut *tx)
        .await
        .during(DOING)?;
        let (total, probes, requests): (i64, i64, i64) = sqlx::query_as(
            "SELECT COUNT(*), COALESCE(SUM(probe), 0), COUNT(DISTINCT request) FROM usage",
        )
        .fetch_one(&mut *tx)
        .await
        .during(DOING)?;
        let resent: i64 =
            sqlx::query_scalar("SELECT value FROM counters WHERE name = 'usage_resent'")
                .fetch_one(&mut *tx)
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

/// Inserts what is not there yet, and returns how many that were.
async fn insert(
    tx: &mut Transaction<'static, Sqlite>,
    node: &Name,
    records: &[UsageRecord],
) -> Result<u64, StoreError> {
    let mut query = QueryBuilder::<Sqlite>::new("INSERT INTO usage (");
    query.push(COLUMNS).push(") ");
    query.push_values(records, |mut row, record| {
        row.push_bind(node.as_str().to_owned())
            .push_bind(int(record.boot_epoch))
            .push_bind(int(record.sequence))
            .push_bind(record.request.0.to_vec())
            .push_bind(record.function.tenant.as_str().to_owned())
            .push_bind(record.function.function.as_str().to_owned())
            .push_bind(record.version.0.to_vec())
            .push_bind(int(record.accepted_ms))
            .push_bind(record.outcome.as_str())
            .push_bind(record.status)
            .push_bind(int(record.queue_ns))
            .push_bind(int(record.restore_ns))
            .push_bind(int(record.run_ns))
            .push_bind(int(record.cpu_ns))
            .push_bind(int(record.memory_bytes))
            .push_bind(int(record.request_bytes))
            .push_bind(int(record.response_bytes))
            .push_bind(int(record.egress_bytes))
            .push_bind(int(record.ingress_bytes))
            .push_bind(record.cold)
            .push_bind(record.exits)
            .push_bind(record.probe);
    });
    // Not `OR IGNORE`, which would pass over other broken constraints as well.
    query.push(" ON CONFLICT (node, boot_epoch, sequence) DO NOTHING");
    let result = query
        .build()
        .execute(&mut **tx)
        .await
        .during("store usage")?;
    Ok(result.rows_affected())
}

fn ledger_row(row: &sqlx::sqlite::SqliteRow) -> Result<LedgerRow, StoreError> {
    const WHAT: &str = "a row of the ledger";
    let number = |column: &str| row.try_get(column).map(uint).during("read usage");
    let flag = |column: &str| row.try_get::<bool, _>(column).during("read usage");
    let words = |column: &str| row.try_get::<String, _>(column).during("read usage");
    let bytes = |column: &str| row.try_get::<Vec<u8>, _>(column).during("read usage");
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
    tx: &mut Transaction<'static, Sqlite>,
    node: &Name,
    records: &'a [UsageRecord],
) -> Result<Option<&'a UsageRecord>, StoreError> {
    for record in records {
        let request: Option<Vec<u8>> = sqlx::query_scalar(
            "SELECT request FROM usage WHERE node = ? AND boot_epoch = ? AND sequence = ?",
        )
        .bind(node.as_str().to_owned())
        .bind(int(record.boot_epoch))
        .bind(int(record.sequence))
        .fetch_optional(&mut **tx)
        .await
        .during("compare usage")?;
        let RequestId(expected) = record.request;
        if request.is_some_and(|request| request != expected) {
            return Ok(Some(record));
        }
    }
    Ok(None)
}

/// Sums of billed numbers may leave SQLite's 63 bits, so each is summed in two halves.
fn push_sum(query: &mut QueryBuilder<Sqlite>, expression: &'static str, name: &'static str) {
    query.push(format!(
        ", SUM(({expression}) >> 20) AS {name}_high, SUM(({expression}) & 1048575) AS {name}_low"
    ));
}

fn sum(row: &sqlx::sqlite::SqliteRow, name: &str) -> Result<u64, sqlx::Error> {
    let half = |suffix| {
        row.try_get::<i64, _>(format!("{name}_{suffix}").as_str())
            .map(uint)
    };
    let whole = (u128::from(half("high")?) << 20) + u128::from(half("low")?);
    Ok(u64::try_from(whole).unwrap_or(u64::MAX))
}
