//! The ledger's rows.

use std::collections::BTreeSet;

use holm_model::api::{LedgerRow, UsageRecordsPage, UsageView};
use holm_model::ids::{Digest, FunctionName, Name, RequestId};
use holm_model::usage::{Outcome, UsageRecord};

use super::budgets;
use super::error::During as _;
use super::sql::{Row, Transaction, Value, query};
use super::sums::{self, UsageFilter, UsageGroup};
use super::{Store, StoreError, Turn, bytes32, text, uint};
use crate::ledger::Sealed;
use crate::ledger::chain::{Break, Head, Link, follow};
use crate::ledger::checkpoint::{Checkpoint, SignedCheckpoint};
use crate::limits::LEDGER_CHUNK_ROWS;

/// What became of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StoredUsage {
    /// All of it is in the ledger; `after` what, if it is not the next in the chain.
    Stored {
        new: u64,
        known: u64,
        after: Option<Break>,
    },
    /// It is not the next in the chain, which ends at `head`; nothing was stored.
    Broken { why: Break, head: Option<Head> },
    /// A record has the key of a different one; nothing of the batch was stored.
    Conflict { boot_epoch: u64, sequence: u64 },
}

/// Which rows of the ledger.
#[derive(Clone, Debug, Default)]
pub(crate) struct RecordsFilter {
    pub(crate) tenant: Option<Name>,
    pub(crate) function: Option<Name>,
    /// From when on they were accepted, milliseconds since 1970 UTC.
    pub(crate) from_ms: Option<u64>,
    /// Before when.
    pub(crate) to_ms: Option<u64>,
}

impl From<Option<&FunctionName>> for RecordsFilter {
    fn from(function: Option<&FunctionName>) -> Self {
        RecordsFilter {
            tenant: function.map(|name| name.tenant.clone()),
            function: function.map(|name| name.function.clone()),
            ..RecordsFilter::default()
        }
    }
}

/// A row but for its number, in the order of [`insert`].
pub(super) const COLUMNS: &str = "node, boot_epoch, sequence, request, tenant, function, version, accepted_ms, \
                       outcome, status, queue_ns, restore_ns, run_ns, cpu_ns, memory_bytes, \
                       request_bytes, response_bytes, egress_bytes, ingress_bytes, cold, exits, \
                       probe";

impl Store {
    /// Stores a batch of one node that follows in its chain: the link, rows, deduplication and the counter of resent
    /// records in one transaction. `authority` is the certificate that vouches for what is no longer kept.
    pub(crate) async fn add_usage(
        &self,
        node: &Name,
        batch: &Sealed<'_>,
        authority: &[u8],
    ) -> Result<StoredUsage, StoreError> {
        const DOING: &str = "store usage";
        let mut tx = self.write(Turn::Ledger).await?;
        let place = &batch.place;
        let count = batch.records.len() as u64;
        if let Some((last, hash)) = at_place(&mut tx, node, batch).await? {
            if (last, hash) != (place.last, batch.hash) {
                let head = head(&mut tx, node).await?;
                let why = Break::Fork;
                return Ok(StoredUsage::Broken { why, head });
            }
            return known(tx, count).await;
        }
        let newest = head(&mut tx, node).await?;
        let is_late = newest
            .is_none_or(|head| (place.boot_epoch, place.first) <= (head.boot_epoch, head.last));
        let dropped = match is_late {
            true => checkpoints(&mut tx, node, authority).await?,
            false => Vec::new(),
        };
        if dropped.iter().any(|checkpoint| {
            checkpoint.boot_epoch == place.boot_epoch && checkpoint.has(place, batch.hash)
        }) {
            return known(tx, count).await;
        }
        let head = newest.or_else(|| dropped.iter().rev().find_map(Checkpoint::chain_head));
        let signer = Digest::of(batch.certificate);
        let known_key = query("SELECT 1 FROM usage_signers WHERE node = ? AND fingerprint = ?")
            .bind(node)
            .bind(signer)
            .found(&mut tx)
            .await
            .during(DOING)?;
        let after = match follow(node, head.as_ref(), place, !known_key) {
            Ok(Link::Next) => None,
            Ok(Link::After(broken)) => Some(broken),
            Err(why) => return Ok(StoredUsage::Broken { why, head }),
        };
        if !known_key {
            let mut insert =
                query("INSERT INTO usage_signers (node, fingerprint, certificate) VALUES ");
            insert.push_row([node.into(), signer.into(), batch.certificate.into()]);
            insert.execute(&mut tx).await.during(DOING)?;
        }
        if head.is_none() {
            query(
                "INSERT INTO usage_chains (node, unchained_upto)
                 VALUES (?, (SELECT COALESCE(MAX(row), 0) FROM usage WHERE node = ?))
                 ON CONFLICT (node) DO NOTHING",
            )
            .bind(node)
            .bind(node)
            .execute(&mut tx)
            .await
            .during(DOING)?;
        }
        insert_batch(&mut tx, node, batch, signer).await?;
        let new = match any_is_there(&mut tx, node, place).await? {
            false => {
                let rows = batch.records.iter().map(|record| values(node, record));
                tx.enter("usage", COLUMNS, rows).await.during(DOING)?;
                None
            }
            // From before usage was chained.
            true => {
                let mut new = BTreeSet::new();
                for chunk in batch.records.chunks(LEDGER_CHUNK_ROWS) {
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
                    new.extend(added);
                }
                Some(new)
            }
        };
        let is_new = |record: &&UsageRecord| {
            let key = (record.boot_epoch, record.sequence);
            new.as_ref().is_none_or(|new| new.contains(&key))
        };
        sums::add(&mut tx, node, batch.records.iter().filter(is_new)).await?;
        let added = batch.records.iter().filter(is_new);
        budgets::count(&mut tx, node, added, batch.received_ms).await?;
        let new = new.map_or(count, |new| new.len() as u64);
        let known = count - new;
        resent(&mut tx, known).await?;
        tx.commit(DOING).await?;
        Ok(StoredUsage::Stored { new, known, after })
    }

    /// Enters rows without a chain, as they were before there were chains.
    #[cfg(test)]
    pub(crate) async fn enter_rows(
        &self,
        node: &Name,
        records: &[UsageRecord],
    ) -> Result<(), StoreError> {
        let mut tx = self.write(Turn::Ledger).await?;
        insert(&mut tx, node, records).await?;
        sums::add(&mut tx, node, records.iter()).await?;
        query(
            "INSERT INTO usage_unchained (node, upto) VALUES (?, (SELECT MAX(row) FROM usage WHERE node = ?))
             ON CONFLICT (node) DO UPDATE SET upto = excluded.upto",
        )
        .bind(node)
        .bind(node)
        .execute(&mut tx)
        .await
        .during("enter rows")?;
        tx.commit("enter rows").await
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

    /// Rows behind row `after` of these, at most `limit`.
    pub(crate) async fn usage_records(
        &self,
        filter: &RecordsFilter,
        after: u64,
        limit: usize,
    ) -> Result<UsageRecordsPage, StoreError> {
        const DOING: &str = "list usage";
        let mut page = query("SELECT row, ");
        page.push(COLUMNS)
            .push(" FROM usage WHERE row > ")
            .push_bind(after);
        if let Some(tenant) = &filter.tenant {
            page.push(" AND tenant = ").push_bind(tenant);
        }
        if let Some(function) = &filter.function {
            page.push(" AND function = ").push_bind(function);
        }
        if let Some(from_ms) = filter.from_ms {
            page.push(" AND accepted_ms >= ").push_bind(from_ms);
        }
        if let Some(to_ms) = filter.to_ms {
            page.push(" AND accepted_ms < ").push_bind(to_ms);
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
}

/// The last sequence and the hash of the batch that begins at the place of this one.
async fn at_place(
    tx: &mut Transaction,
    node: &Name,
    batch: &Sealed<'_>,
) -> Result<Option<(u64, Digest)>, StoreError> {
    let found: Option<(i64, Vec<u8>)> = query(
        "SELECT last, hash FROM usage_batches WHERE node = ? AND boot_epoch = ? AND first = ?",
    )
    .bind(node)
    .bind(batch.place.boot_epoch)
    .bind(batch.place.first)
    .optional(tx)
    .await
    .during("look up a batch of usage")?;
    found
        .map(|(last, hash)| Ok((uint(last), Digest(bytes32("a batch's hash", &hash)?))))
        .transpose()
}

/// Whether there is a row at any of a batch's places.
async fn any_is_there(
    tx: &mut Transaction,
    node: &Name,
    place: &holm_model::chain::Place,
) -> Result<bool, StoreError> {
    query("SELECT 1 FROM usage WHERE node = ? AND boot_epoch = ? AND sequence BETWEEN ? AND ?")
        .bind(node)
        .bind(place.boot_epoch)
        .bind(place.first)
        .bind(place.last)
        .found(tx)
        .await
        .during("look for usage that is there")
}

/// Counts a batch that is in the ledger already, or was.
async fn known(mut tx: Transaction, count: u64) -> Result<StoredUsage, StoreError> {
    resent(&mut tx, count).await?;
    tx.commit("store usage").await?;
    Ok(StoredUsage::Stored {
        new: 0,
        known: count,
        after: None,
    })
}

/// What is left of the node's epochs of which records are no longer kept, in their order.
async fn checkpoints(
    tx: &mut Transaction,
    node: &Name,
    authority: &[u8],
) -> Result<Vec<Checkpoint>, StoreError> {
    let stored = super::audit::checkpoints(tx, node).await?;
    let read = |(boot_epoch, signed): (u64, SignedCheckpoint)| {
        signed.read(authority, node, boot_epoch).ok_or_else(|| {
            let why = format!("that of node {node}, boot epoch {boot_epoch} is not signed by this fleet's authority");
            StoreError::corrupt("a checkpoint of usage", why)
        })
    };
    stored.into_iter().map(read).collect()
}

/// The newest batch of a node.
async fn head(tx: &mut Transaction, node: &Name) -> Result<Option<Head>, StoreError> {
    let found: Option<(i64, i64, Vec<u8>)> = query(
        "SELECT boot_epoch, last, hash FROM usage_batches WHERE node = ?
         ORDER BY boot_epoch DESC, first DESC LIMIT 1",
    )
    .bind(node)
    .optional(tx)
    .await
    .during("look up a chain of usage")?;
    let read = |(boot_epoch, last, hash): (i64, i64, Vec<u8>)| {
        Ok(Head {
            boot_epoch: uint(boot_epoch),
            last: uint(last),
            hash: Digest(bytes32("a batch's hash", &hash)?),
        })
    };
    found.map(read).transpose()
}

async fn insert_batch(
    tx: &mut Transaction,
    node: &Name,
    batch: &Sealed<'_>,
    signer: Digest,
) -> Result<(), StoreError> {
    let leaves: Vec<u8> = batch.leaves.iter().flat_map(|leaf| leaf.0).collect();
    let mut insert = query(
        "INSERT INTO usage_batches (node, boot_epoch, first, last, previous, hash, leaves, signature, signer,
                                    received_ms) VALUES ",
    );
    insert.push_row([
        node.into(),
        batch.place.boot_epoch.into(),
        batch.place.first.into(),
        batch.place.last.into(),
        batch.place.previous.into(),
        batch.hash.into(),
        Value::from(&leaves[..]),
        batch.signature.into(),
        signer.into(),
        batch.received_ms.into(),
    ]);
    insert.execute(tx).await.during("store a batch of usage")?;
    Ok(())
}

/// Counts records that were sent again.
async fn resent(tx: &mut Transaction, known: u64) -> Result<(), StoreError> {
    if known > 0 {
        query("UPDATE counters SET value = value + ? WHERE name = 'usage_resent'")
            .bind(known)
            .execute(tx)
            .await
            .during("count usage that was sent again")?;
    }
    Ok(())
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

pub(super) fn ledger_row(row: &Row) -> Result<LedgerRow, StoreError> {
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

/// The first of `records` whose key the ledger has for another record.
async fn conflict<'a>(
    tx: &mut Transaction,
    node: &Name,
    records: &'a [UsageRecord],
) -> Result<Option<&'a UsageRecord>, StoreError> {
    for record in records {
        let mut same = query("SELECT row, ");
        same.push(COLUMNS).push(" FROM usage WHERE node = ");
        same.push_bind(node).push(" AND boot_epoch = ");
        same.push_bind(record.boot_epoch).push(" AND sequence = ");
        same.push_bind(record.sequence);
        let found = same.rows(&mut *tx).await.during("compare usage")?;
        if let Some(row) = found.first()
            && ledger_row(row)?.record != *record
        {
            return Ok(Some(record));
        }
    }
    Ok(None)
}
