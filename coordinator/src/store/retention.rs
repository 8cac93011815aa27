//! Records of usage that are no longer kept: from a node's oldest batch on, some batches at a time.
//!
//! What goes is audited first, in a transaction that only reads, and goes in another one that takes the ledger's turn
//! and compares: so usage is entered meanwhile but for the moment of the removal. What the audit finds fault with
//! stays. A batch's age is counted from when it was entered, by the coordinator's clock: what a node that was cut off
//! uploads late is kept as long as anything else, and no node's clock has a say.

use std::collections::BTreeMap;

use holm_model::ids::Name;

use super::audit::{Rows, batches, begin, checkpoints};
use super::error::During as _;
use super::exports::count_lost;
use super::sql::{Transaction, query};
use super::{Store, StoreError, Turn, text, uint};
use crate::ca::{Authority, CaError};
use crate::ledger::audit::Findings;
use crate::ledger::checkpoint::{Checkpoint, SignedCheckpoint};
use crate::limits::MAX_DROPPED_ROWS;

/// Records cannot be removed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RetentionError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("a checkpoint of usage cannot be signed: {0}")]
    Signature(#[from] CaError),
}

/// What became of a node's oldest records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Dropped {
    /// None is old enough.
    Nothing,
    /// So many rows went, and there may be more.
    Rows(u64),
    /// They are old enough, and stay: an audit finds fault with them, first of all this.
    Kept(String),
    /// Somebody else has changed them meanwhile.
    Busy,
}

/// What is no longer kept, in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct DroppedSoFar {
    pub(crate) rows: u64,
    /// When the newest of them was entered, milliseconds since 1970 UTC.
    pub(crate) upto_ms: u64,
}

/// What is to go.
struct Going<'a> {
    node: &'a Name,
    /// The checkpoints as they are now, and those that are others then.
    before: Vec<(u64, SignedCheckpoint)>,
    after: Vec<(Checkpoint, SignedCheckpoint)>,
    /// The key of the last row that goes.
    upto: (u64, u64),
    rows: u64,
    last_row: u64,
    entered_ms: u64,
}

impl Store {
    /// Nodes that have batches.
    pub(crate) async fn nodes_with_batches(&self) -> Result<Vec<Name>, StoreError> {
        let rows: Vec<(String,)> = query("SELECT node FROM usage_chains ORDER BY node")
            .all(self.reader())
            .await
            .during("list nodes that have usage")?;
        let name = |(node,): (String,)| text("a node's name", &node);
        rows.into_iter().map(name).collect()
    }

    /// Removes some of the node's oldest batches that were entered before `before_ms`, and their rows, after an audit.
    pub(crate) async fn drop_records(
        &self,
        node: &Name,
        (before_ms, now_ms): (u64, u64),
        authority: &Authority,
    ) -> Result<Dropped, RetentionError> {
        let going = match self.what_goes(node, before_ms, authority).await? {
            Ok(going) => going,
            Err(outcome) => return Ok(outcome),
        };
        Ok(self.remove(&going, now_ms).await?)
    }

    /// Whether records may be removed by a clock that says `now_ms`: not if that is more than `most_ms` after when old
    /// ones were last looked for, or, if they never were, after the newest was entered. Then it is written down, for the
    /// audit, and when that was is returned. A clock that `is_trusted` is right.
    pub(crate) async fn look_at_clock(
        &self,
        now_ms: u64,
        most_ms: u64,
        is_trusted: bool,
    ) -> Result<Option<u64>, StoreError> {
        const DOING: &str = "compare the clock with the ledger";
        let mut tx = self.write(Turn::Ledger).await?;
        let (before_ms,): (i64,) = query(
            "SELECT COALESCE((SELECT value FROM counters WHERE name = 'usage_clock_ms'),
                             (SELECT MAX(received_ms) FROM usage_batches), ?)",
        )
        .bind(now_ms)
        .one(&mut tx)
        .await
        .during(DOING)?;
        let before_ms = uint(before_ms);
        let jumped = !is_trusted && now_ms > before_ms.saturating_add(most_ms);
        let values = match jumped {
            true => [
                ("usage_clock_ms", before_ms),
                ("usage_clock_refused_ms", now_ms),
            ],
            // One that is behind for a while does not make the right one look far ahead.
            false => {
                let seen_ms = match is_trusted {
                    true => now_ms,
                    false => now_ms.max(before_ms),
                };
                [("usage_clock_ms", seen_ms), ("usage_clock_refused_ms", 0)]
            }
        };
        for (counter, value) in values {
            query(
                "INSERT INTO counters (name, value) VALUES (?, ?)
                 ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            )
            .bind(counter)
            .bind(value)
            .execute(&mut tx)
            .await
            .during(DOING)?;
        }
        tx.commit(DOING).await?;
        Ok(jumped.then_some(before_ms))
    }

    /// What is no longer kept.
    pub(crate) async fn dropped_so_far(&self) -> Result<DroppedSoFar, StoreError> {
        let (rows, upto_ms): (i64, i64) = query(
            "SELECT (SELECT value FROM counters WHERE name = 'usage_dropped'),
                    (SELECT value FROM counters WHERE name = 'usage_dropped_ms')",
        )
        .one(self.reader())
        .await
        .during("look up what usage is kept")?;
        Ok(DroppedSoFar {
            rows: uint(rows),
            upto_ms: uint(upto_ms),
        })
    }

    async fn what_goes<'a>(
        &self,
        node: &'a Name,
        before_ms: u64,
        authority: &Authority,
    ) -> Result<Result<Going<'a>, Dropped>, RetentionError> {
        let mut tx = self.read().await?;
        let mut old = Vec::new();
        let mut rows = 0;
        for batch in batches(&mut tx, node, (0, 0)).await? {
            rows += 1 + batch.place.last.saturating_sub(batch.place.first);
            let fits = old.is_empty() || rows <= MAX_DROPPED_ROWS;
            if batch.received_ms >= before_ms || !fits {
                break;
            }
            old.push(batch);
        }
        let Some(newest) = old.last() else {
            return Ok(Err(Dropped::Nothing));
        };
        let upto = (newest.place.boot_epoch, newest.place.last);
        let entered_ms = old.iter().map(|batch| batch.received_ms).max();
        let mut findings = Findings::default();
        let before = checkpoints(&mut tx, node).await?;
        let certificate = authority.certificate();
        let mut audit = begin(
            &mut tx,
            node,
            certificate,
            before.clone(),
            &mut findings,
            &mut BTreeMap::new(),
        )
        .await?;
        let mut read = Rows::of(node);
        for batch in old {
            read.read_batch(&mut tx, batch, &mut audit).await?;
        }
        let (rows, last_row) = (read.told, read.last_row);
        let after = audit.checkpoints();
        let Some(after) = after else {
            let why = findings.problems.first().map(|problem| problem.why.clone());
            return Ok(Err(Dropped::Kept(why.unwrap_or_default())));
        };
        if let Some(why) = entered_twice(&mut tx, node, upto).await? {
            return Ok(Err(Dropped::Kept(why)));
        }
        // A node has an epoch for each of its starts, and most are as they were.
        let is_new = |checkpoint: &Checkpoint| {
            let (epoch, text) = (checkpoint.boot_epoch, checkpoint.text());
            !before
                .iter()
                .any(|(of, signed)| *of == epoch && signed.text == text)
        };
        let after: Vec<_> = after.into_iter().filter(is_new).collect();
        let sign = |checkpoint: Checkpoint| {
            let signed = checkpoint.sign(authority)?;
            Ok::<_, CaError>((checkpoint, signed))
        };
        Ok(Ok(Going {
            node,
            after: after.into_iter().map(sign).collect::<Result<_, _>>()?,
            before,
            upto,
            rows,
            last_row,
            entered_ms: entered_ms.unwrap_or_default(),
        }))
    }

    async fn remove(&self, going: &Going<'_>, now_ms: u64) -> Result<Dropped, StoreError> {
        const DOING: &str = "remove old usage";
        let mut tx = self.write(Turn::Ledger).await?;
        if checkpoints(&mut tx, going.node).await? != going.before {
            return Ok(Dropped::Busy);
        }
        let (epoch, last) = going.upto;
        for (checkpoint, signed) in &going.after {
            let mut upsert = query(
                "INSERT INTO usage_checkpoints (node, boot_epoch, last, checkpoint, signature) VALUES ",
            );
            upsert.push_row([
                going.node.into(),
                checkpoint.boot_epoch.into(),
                checkpoint.last.into(),
                signed.text.as_str().into(),
                signed.signature.as_slice().into(),
            ]);
            upsert.push(
                " ON CONFLICT (node, boot_epoch) DO UPDATE SET last = excluded.last,
                      checkpoint = excluded.checkpoint, signature = excluded.signature",
            );
            upsert.execute(&mut tx).await.during(DOING)?;
        }
        count_lost(&mut tx, going.node, going.upto, now_ms).await?;
        let gone = query("DELETE FROM usage WHERE node = ? AND (boot_epoch, sequence) <= (?, ?)")
            .bind(going.node)
            .bind(epoch)
            .bind(last)
            .execute(&mut tx)
            .await
            .during(DOING)?;
        if gone != going.rows {
            // Dropped, the transaction is rolled back.
            return Ok(Dropped::Busy);
        }
        query("DELETE FROM usage_batches WHERE node = ? AND (boot_epoch, first) <= (?, ?)")
            .bind(going.node)
            .bind(epoch)
            .bind(last)
            .execute(&mut tx)
            .await
            .during(DOING)?;
        query("UPDATE counters SET value = value + ? WHERE name = 'usage_dropped'")
            .bind(gone)
            .execute(&mut tx)
            .await
            .during(DOING)?;
        for (counter, value) in [
            ("usage_dropped_row", going.last_row),
            ("usage_dropped_ms", going.entered_ms),
        ] {
            query("UPDATE counters SET value = ? WHERE name = ? AND value < ?")
                .bind(value)
                .bind(counter)
                .bind(value)
                .execute(&mut tx)
                .await
                .during(DOING)?;
        }
        tx.commit(DOING).await?;
        Ok(Dropped::Rows(gone))
    }
}

/// Whether a row up to this key has the request of another one.
async fn entered_twice(
    tx: &mut Transaction,
    node: &Name,
    (epoch, last): (u64, u64),
) -> Result<Option<String>, StoreError> {
    let found: Option<(i64, i64)> = query(
        "SELECT boot_epoch, sequence FROM usage AS old
         WHERE node = ? AND (boot_epoch, sequence) <= (?, ?)
           AND EXISTS (SELECT 1 FROM usage AS other
                       WHERE other.request = old.request AND other.row <> old.row) LIMIT 1",
    )
    .bind(node)
    .bind(epoch)
    .bind(last)
    .optional(tx)
    .await
    .during("look for usage that was entered twice")?;
    Ok(found.map(|(epoch, sequence)| format!("the request of {epoch}/{sequence} has another row")))
}

/// The number of the newest row, also if it is no longer kept.
pub(super) async fn last_row(tx: &mut Transaction) -> Result<u64, StoreError> {
    let (newest, dropped): (i64, i64) = query(
        "SELECT (SELECT COALESCE(MAX(row), 0) FROM usage),
                (SELECT value FROM counters WHERE name = 'usage_dropped_row')",
    )
    .one(tx)
    .await
    .during("find the ledger's end")?;
    Ok(uint(newest.max(dropped)))
}

/// The numbers of rows go on behind those that are no longer kept.
pub(super) async fn go_on_after_dropped(tx: &mut Transaction) -> Result<(), StoreError> {
    let (dropped,): (i64,) = query("SELECT value FROM counters WHERE name = 'usage_dropped_row'")
        .one(&mut *tx)
        .await
        .during("go on with numbers")?;
    tx.number_usage_after(uint(dropped)).await
}
