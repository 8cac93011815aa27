//! The audit log: rows are added and never changed, and each has a hash over the one before.
//!
//! The chain shows an edit of what is there. That its end was cut off shows only against a hash that
//! somebody has kept elsewhere.

use holm_model::api::{AuditCheck, AuditEntry, AuditPage};
use holm_model::ids::Digest;

use super::error::During as _;
use super::sql::query;
use super::{Store, StoreError, Turn, bytes32, uint};
use crate::limits::{LOOKUP_CHUNK_ROWS, MAX_AUDIT_TEXT_CHARS, cut};

/// Something that was done, or is about to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Deed {
    /// `token`, `node`, `coordinator` or `operator`.
    pub(crate) actor_kind: &'static str,
    pub(crate) actor: String,
    pub(crate) actor_id: String,
    pub(crate) action: String,
    pub(crate) object: String,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Came {
    /// `begun`, `done`, `refused` or `failed`.
    pub(crate) outcome: &'static str,
    pub(crate) detail: String,
    /// The row with which it began.
    pub(crate) begun: Option<u64>,
}

impl Came {
    /// It is about to be done.
    pub(crate) fn begun() -> Self {
        Came {
            outcome: "begun",
            detail: String::new(),
            begun: None,
        }
    }

    /// It is done.
    pub(crate) fn done(detail: impl Into<String>) -> Self {
        Came {
            outcome: "done",
            detail: detail.into(),
            begun: None,
        }
    }
}

type Columns = (
    i64,
    i64,
    String,
    String,
    String,
    String,
    String,
    String,
    String,
    Option<i64>,
    Vec<u8>,
);

const COLUMNS: &str =
    "row, at_ms, actor_kind, actor, actor_id, action, object, outcome, detail, begun, hash";

fn entry(columns: Columns) -> Result<AuditEntry, StoreError> {
    let (row, at_ms, actor_kind, actor, actor_id, action, object, outcome, detail, begun, hash) =
        columns;
    Ok(AuditEntry {
        row: uint(row),
        at_ms: uint(at_ms),
        actor_kind,
        actor,
        actor_id,
        action,
        object,
        outcome,
        detail,
        begun: begun.map(uint),
        hash: Digest(bytes32("an audit entry's hash", &hash)?),
    })
}

/// The hash of an entry behind one with the hash `before`: SHA-256 over that hash and the entry's
/// fields but its own hash, as a JSON array in the order of the columns.
fn chained(before: Digest, entry: &AuditEntry) -> Digest {
    let fields = serde_json::json!([
        entry.row,
        entry.at_ms,
        entry.actor_kind,
        entry.actor,
        entry.actor_id,
        entry.action,
        entry.object,
        entry.outcome,
        entry.detail,
        entry.begun,
    ]);
    let mut bytes = before.0.to_vec();
    bytes.extend(fields.to_string().into_bytes());
    Digest::of(&bytes)
}

/// Before the first entry.
const NOTHING: Digest = Digest([0; 32]);

impl Store {
    /// Adds an entry; returns its row.
    pub(crate) async fn record(
        &self,
        deed: &Deed,
        came: &Came,
        now_ms: u64,
    ) -> Result<u64, StoreError> {
        const DOING: &str = "add to the audit log";
        let mut tx = self.write(Turn::Audit).await?;
        let last: Option<(i64, Vec<u8>)> =
            query("SELECT row, hash FROM audit_log ORDER BY row DESC LIMIT 1")
                .optional(&mut tx)
                .await
                .during(DOING)?;
        let (row, before) = match last {
            Some((row, hash)) => (uint(row), Digest(bytes32("an audit entry's hash", &hash)?)),
            None => (0, NOTHING),
        };
        let text = |text: &str| cut(text, MAX_AUDIT_TEXT_CHARS);
        let mut entry = AuditEntry {
            row: row + 1,
            at_ms: now_ms,
            actor_kind: deed.actor_kind.to_owned(),
            actor: text(&deed.actor),
            actor_id: text(&deed.actor_id),
            action: text(&deed.action),
            object: text(&deed.object),
            outcome: came.outcome.to_owned(),
            detail: text(&came.detail),
            begun: came.begun,
            hash: NOTHING,
        };
        entry.hash = chained(before, &entry);
        query(format!(
            "INSERT INTO audit_log ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        ))
        .bind(entry.row)
        .bind(entry.at_ms)
        .bind(entry.actor_kind)
        .bind(entry.actor)
        .bind(entry.actor_id)
        .bind(entry.action)
        .bind(entry.object)
        .bind(entry.outcome)
        .bind(entry.detail)
        .bind(entry.begun)
        .bind(entry.hash)
        .execute(&mut tx)
        .await
        .during(DOING)?;
        tx.commit(DOING).await?;
        Ok(entry.row)
    }

    /// Entries behind row `after` that are not older than `since_ms`, at most `limit`.
    pub(crate) async fn audit_entries(
        &self,
        since_ms: u64,
        after: u64,
        limit: usize,
    ) -> Result<AuditPage, StoreError> {
        let rows: Vec<Columns> = query(format!(
            "SELECT {COLUMNS} FROM audit_log WHERE row > ? AND at_ms >= ? ORDER BY row LIMIT ?"
        ))
        .bind(after)
        .bind(since_ms)
        .bind(limit as u64)
        .all(self.reader())
        .await
        .during("read the audit log")?;
        let entries: Vec<AuditEntry> = rows.into_iter().map(entry).collect::<Result<_, _>>()?;
        let full = entries.len() == limit;
        Ok(AuditPage {
            next: entries.last().filter(|_| full).map(|last| last.row),
            entries,
        })
    }

    /// Reads all of it and computes every hash anew; looks for an entry with the hash `head`.
    pub(crate) async fn check_audit_log(
        &self,
        head: Option<Digest>,
    ) -> Result<AuditCheck, StoreError> {
        let mut check = AuditCheck {
            entries: 0,
            head: None,
            broken_at: None,
            found: None,
            whole: true,
        };
        let mut before = NOTHING;
        let mut after: i64 = 0;
        loop {
            let rows: Vec<Columns> = query(format!(
                "SELECT {COLUMNS} FROM audit_log WHERE row > ? ORDER BY row LIMIT ?"
            ))
            .bind(after)
            .bind(LOOKUP_CHUNK_ROWS as u64)
            .all(self.reader())
            .await
            .during("check the audit log")?;
            let Some((last, ..)) = rows.last() else {
                check.whole = check.broken_at.is_none();
                return Ok(check);
            };
            after = *last;
            for columns in rows {
                let entry = entry(columns)?;
                let next = entry.row == check.entries + 1;
                if (!next || chained(before, &entry) != entry.hash) && check.broken_at.is_none() {
                    check.broken_at = Some(entry.row.min(check.entries + 1));
                }
                if Some(entry.hash) == head {
                    check.found = Some(entry.row);
                }
                before = entry.hash;
                check.entries += 1;
                check.head = Some(entry.hash);
            }
        }
    }
}
