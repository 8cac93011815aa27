//! The whole database as a file, from one kind of database to the other.
//!
//! The file is lines of JSON: what it is, then each row as its table's name and its columns in the
//! order of [`TABLES`], and last how many rows each table has. Bytes are hexadecimal digits behind
//! `x`, text is behind `t`. Who is at work and linked to whom at the moment is left out.

use std::collections::BTreeMap;
use std::io::{self, BufRead, Write};

use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use super::error::During as _;
use super::sql::{Row, Transaction, Value, query};
use super::{Store, StoreError, Turn, retention};
use crate::limits::{LEDGER_CHUNK_ROWS, MAX_EXPORT_LINE_BYTES};

/// Raised when the meaning of the lines changes.
const FORMAT: u64 = 4;

/// A file cannot be written or taken in.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Reading or writing the file.
    #[error("the export cannot be {operation}: {source}")]
    File {
        /// `read` or `written`.
        operation: &'static str,
        /// The system's words.
        source: io::Error,
    },
    /// It is no export, or a damaged one.
    #[error(
        "line {line} of the export is not as it should be: {why}; nothing was imported, export again"
    )]
    Malformed {
        /// From 1.
        line: u64,
        /// Why.
        why: String,
    },
    /// It goes into an empty database only.
    #[error(
        "the database to import into has rows in `{0}` already; nothing was imported, give it an \
         empty database"
    )]
    NotEmpty(&'static str),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Int,
    Text,
    Bytes,
}

struct Table {
    name: &'static str,
    columns: &'static [(&'static str, Kind)],
    /// By which columns, a key that is never NULL, rows are in order: the same in both databases.
    order: &'static str,
}

use Kind::{Bytes, Int, Text};

/// Every table whose rows are moved; one that others refer to comes before them, but for the current
/// versions of functions, which are compared when all is in.
const TABLES: &[Table] = &[
    Table {
        name: "counters",
        columns: &[("name", Text), ("value", Int)],
        order: "name",
    },
    Table {
        name: "authority",
        columns: &[("fingerprint", Bytes)],
        order: "fingerprint",
    },
    Table {
        name: "api_tokens",
        columns: &[("digest", Bytes), ("label", Text), ("created_ms", Int)],
        order: "label",
    },
    Table {
        name: "tokens",
        columns: &[
            ("id", Bytes),
            ("name", Text),
            ("caveats", Text),
            ("created_ms", Int),
            ("created_by", Text),
            ("expires_ms", Int),
            ("revoked_ms", Int),
        ],
        order: "id",
    },
    Table {
        name: "audit_log",
        columns: &[
            ("row", Int),
            ("at_ms", Int),
            ("actor_kind", Text),
            ("actor", Text),
            ("actor_id", Text),
            ("action", Text),
            ("object", Text),
            ("outcome", Text),
            ("detail", Text),
            ("begun", Int),
            ("hash", Bytes),
        ],
        order: "row",
    },
    Table {
        name: "join_tokens",
        columns: &[
            ("digest", Bytes),
            ("node", Text),
            ("created_ms", Int),
            ("expires_ms", Int),
            ("used_ms", Int),
            ("used_by", Text),
        ],
        order: "digest",
    },
    Table {
        name: "nodes",
        columns: &[
            ("name", Text),
            ("certificate", Bytes),
            ("joined_ms", Int),
            ("hello", Text),
            ("last_seen_ms", Int),
            ("drained", Int),
            ("cordoned", Text),
            ("labels", Text),
            ("revoked_ms", Int),
            ("node_key", Bytes),
            ("renewed_ms", Int),
            ("certificate_until_ms", Int),
        ],
        order: "name",
    },
    Table {
        name: "tenants",
        columns: &[("name", Text), ("created_ms", Int)],
        order: "name",
    },
    Table {
        name: "publisher_keys",
        columns: &[
            ("tenant", Text),
            ("key", Bytes),
            ("added_ms", Int),
            ("revoked_ms", Int),
        ],
        order: "tenant, key",
    },
    Table {
        name: "functions",
        columns: &[
            ("name", Text),
            ("tenant", Text),
            ("current", Bytes),
            ("fallback", Bytes),
            ("current_configuration", Bytes),
            ("fallback_configuration", Bytes),
        ],
        order: "name",
    },
    Table {
        name: "versions",
        columns: &[
            ("id", Bytes),
            ("function", Text),
            ("counter", Int),
            ("artifact", Bytes),
            ("label", Text),
            ("message", Text),
            ("content", Bytes),
            ("created_ms", Int),
            ("statement", Bytes),
            ("key", Bytes),
            ("signature", Bytes),
            ("published_ms", Int),
            ("author", Text),
            ("removed_ms", Int),
        ],
        order: "function, counter",
    },
    Table {
        name: "configurations",
        columns: &[
            ("id", Bytes),
            ("function", Text),
            ("number", Int),
            ("statement", Bytes),
            ("key", Bytes),
            ("signature", Bytes),
            ("published_ms", Int),
        ],
        order: "function, number",
    },
    // Encrypted: the key is in a file, and is moved by other ways.
    Table {
        name: "secrets",
        columns: &[
            ("function", Text),
            ("commitment", Bytes),
            ("number", Int),
            ("ciphertext", Bytes),
        ],
        order: "function, commitment",
    },
    Table {
        name: "secrets_key",
        columns: &[("fingerprint", Bytes)],
        order: "fingerprint",
    },
    Table {
        name: "releases",
        columns: &[("id", Bytes), ("version", Bytes), ("configuration", Bytes)],
        order: "id",
    },
    Table {
        name: "tags",
        columns: &[
            ("function", Text),
            ("tag", Text),
            ("version", Bytes),
            ("set_ms", Int),
        ],
        order: "function, tag",
    },
    Table {
        name: "rollouts",
        columns: &[
            ("id", Int),
            ("function", Text),
            ("version", Bytes),
            ("rollback", Int),
            ("state", Text),
            ("plan", Text),
            ("ended_ms", Int),
            ("configuration", Bytes),
        ],
        order: "id",
    },
    Table {
        name: "usage",
        columns: &[
            ("row", Int),
            ("node", Text),
            ("boot_epoch", Int),
            ("sequence", Int),
            ("request", Bytes),
            ("tenant", Text),
            ("function", Text),
            ("version", Bytes),
            ("accepted_ms", Int),
            ("outcome", Text),
            ("status", Int),
            ("queue_ns", Int),
            ("restore_ns", Int),
            ("run_ns", Int),
            ("cpu_ns", Int),
            ("memory_bytes", Int),
            ("request_bytes", Int),
            ("response_bytes", Int),
            ("cold", Int),
            ("exits", Int),
            ("probe", Int),
            ("egress_bytes", Int),
            ("ingress_bytes", Int),
        ],
        order: "row",
    },
    Table {
        name: "usage_sums",
        columns: &[
            ("grain_ms", Int),
            ("start_ms", Int),
            ("tenant", Text),
            ("function", Text),
            ("version", Bytes),
            ("node", Text),
            ("answered", Int),
            ("function_error", Int),
            ("crash", Int),
            ("timeout", Int),
            ("cancelled", Int),
            ("shed", Int),
            ("platform_fault", Int),
            ("cold", Int),
            ("run_ns", Int),
            ("cpu_ns", Int),
            ("memory_kib_ms", Int),
            ("request_bytes", Int),
            ("response_bytes", Int),
            ("egress_bytes", Int),
            ("ingress_bytes", Int),
            ("billed_requests", Int),
            ("billed_memory_kib_ms", Int),
            ("billed_cpu_ns", Int),
            ("billed_egress_bytes", Int),
        ],
        order: "grain_ms, start_ms, tenant, function, version, node",
    },
    Table {
        name: "price_plans",
        columns: &[
            ("name", Text),
            ("version", Int),
            ("from_ms", Int),
            ("currency", Text),
            ("million_requests", Int),
            ("million_gib_ms", Int),
            ("million_cpu_ms", Int),
            ("gib_egress", Int),
            ("created_ms", Int),
        ],
        order: "name, version",
    },
    Table {
        name: "plan_assignments",
        columns: &[
            ("tenant", Text),
            ("from_ms", Int),
            ("plan", Text),
            ("created_ms", Int),
        ],
        order: "tenant, from_ms",
    },
    Table {
        name: "budgets",
        columns: &[
            ("tenant", Text),
            ("function", Text),
            ("amount", Int),
            ("currency", Text),
            ("cap", Text),
            ("alerts", Text),
            ("created_ms", Int),
            ("changed_ms", Int),
            ("revision", Int),
        ],
        order: "tenant, function",
    },
    Table {
        name: "budget_lines",
        columns: &[
            ("tenant", Text),
            ("function", Text),
            ("month_ms", Int),
            ("node", Text),
            ("granted", Int),
            ("reported", Int),
            ("ledger", Int),
            ("serial", Int),
            ("beyond", Int),
            ("need", Int),
            ("leases", Int),
            ("asked_ms", Int),
        ],
        order: "tenant, function, month_ms, node",
    },
    Table {
        name: "budget_months",
        columns: &[
            ("tenant", Text),
            ("function", Text),
            ("month_ms", Int),
            ("wanted_ms", Int),
            ("wanted_by", Text),
            ("exhausted_ms", Int),
        ],
        order: "tenant, function, month_ms",
    },
    Table {
        name: "budget_alerts",
        columns: &[
            ("row", Int),
            ("tenant", Text),
            ("function", Text),
            ("month_ms", Int),
            ("percent", Int),
            ("spent", Int),
            ("amount", Int),
            ("crossed_ms", Int),
            ("told_ms", Int),
        ],
        order: "row",
    },
    Table {
        name: "budget_nodes",
        columns: &[("node", Text), ("revision", Int), ("said_ms", Int)],
        order: "node",
    },
    Table {
        name: "usage_chains",
        columns: &[("node", Text), ("unchained_upto", Int)],
        order: "node",
    },
    Table {
        name: "usage_unchained",
        columns: &[("node", Text), ("upto", Int)],
        order: "node",
    },
    Table {
        name: "queued_rollouts",
        columns: &[
            ("function", Text),
            ("version", Bytes),
            ("request", Text),
            ("asked_ms", Int),
        ],
        order: "function",
    },
    Table {
        name: "usage_signers",
        columns: &[
            ("node", Text),
            ("fingerprint", Bytes),
            ("certificate", Bytes),
        ],
        order: "node, fingerprint",
    },
    Table {
        name: "usage_batches",
        columns: &[
            ("node", Text),
            ("boot_epoch", Int),
            ("first", Int),
            ("last", Int),
            ("previous", Bytes),
            ("hash", Bytes),
            ("leaves", Bytes),
            ("signature", Bytes),
            ("signer", Bytes),
            ("received_ms", Int),
        ],
        order: "node, boot_epoch, first",
    },
    Table {
        name: "usage_checkpoints",
        columns: &[
            ("node", Text),
            ("boot_epoch", Int),
            ("last", Int),
            ("checkpoint", Text),
            ("signature", Bytes),
        ],
        order: "node, boot_epoch",
    },
    Table {
        name: "usage_exports",
        columns: &[
            ("id", Int),
            ("tenant", Text),
            ("kind", Text),
            ("url", Text),
            ("ca", Text),
            ("private", Int),
            ("secret", Bytes),
            ("created_ms", Int),
            ("row", Int),
            ("day_ms", Int),
            ("from_row", Int),
            ("plan_row", Int),
            ("plan_day_ms", Int),
            ("sent", Int),
            ("sent_ms", Int),
            ("failures", Int),
            ("failed_ms", Int),
            ("error", Text),
            ("lost", Int),
            ("lost_ms", Int),
        ],
        order: "id",
    },
    Table {
        name: "usage_export_files",
        columns: &[
            ("export", Int),
            ("name", Text),
            ("day_ms", Int),
            ("rows", Int),
            ("bytes", Int),
            ("digest", Bytes),
            ("written_ms", Int),
        ],
        order: "export, name",
    },
    Table {
        name: "packs",
        columns: &[("name", Text), ("bytes", Int)],
        order: "name",
    },
    Table {
        name: "chunks",
        columns: &[
            ("digest", Bytes),
            ("bytes", Int),
            ("pack", Text),
            ("start", Int),
            ("used_ms", Int),
        ],
        order: "digest",
    },
    Table {
        name: "artifacts",
        columns: &[("digest", Bytes), ("bytes", Int), ("used_ms", Int)],
        order: "digest",
    },
    Table {
        name: "artifact_chunks",
        columns: &[("artifact", Bytes), ("place", Int), ("chunk", Bytes)],
        order: "artifact, place",
    },
];

/// Tables of the moment.
const LEFT_OUT: [&str; 5] = ["coordinators", "leases", "links", "tallies", "gate_counts"];

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    holm_coordinator_export: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tail {
    rows: BTreeMap<String, u64>,
}

impl Store {
    /// Writes every row to `out`, as they are at one moment. Returns how many.
    pub(crate) async fn export(&self, out: &mut (impl Write + Send)) -> Result<u64, TransferError> {
        let head = Head {
            holm_coordinator_export: FORMAT,
        };
        write_line(out, &json!(head))?;
        let mut tx = self.read().await?;
        let mut counts = BTreeMap::new();
        for table in TABLES {
            let rows = export_table(&mut tx, table, out).await?;
            counts.insert(table.name.to_owned(), rows);
        }
        let all = counts.values().sum();
        write_line(out, &json!(Tail { rows: counts }))?;
        out.flush().map_err(written)?;
        Ok(all)
    }

    /// Takes every row of an export in, all or none. Returns how many.
    pub(crate) async fn import(
        &self,
        input: &mut (impl BufRead + Send),
    ) -> Result<u64, TransferError> {
        const DOING: &str = "import rows";
        let mut lines = Lines { input, line: 0 };
        let head: Head = match lines.next()? {
            Some(head) => lines.parse(head)?,
            None => return Err(lines.malformed("it is empty")),
        };
        if head.holm_coordinator_export != FORMAT {
            return Err(lines.malformed("its format is that of another version of Holm"));
        }
        let mut tx = self.write(Turn::Ledger).await?;
        let tables: Vec<_> = TABLES.iter().map(|table| table.name).collect();
        // Not one turn alone: a coordinator that starts now has to wait as well.
        tx.lock_out(&[&tables[..], &LEFT_OUT].concat()).await?;
        tx.defer_constraints().await?;
        // The schema itself makes them.
        query("DELETE FROM counters")
            .execute(&mut tx)
            .await
            .during(DOING)?;
        let tables = TABLES.iter().map(|table| table.name);
        for table in tables.chain(["coordinators"]) {
            let count = query(format!("SELECT COUNT(*) FROM {table}"));
            let (rows,): (i64,) = count.one(&mut tx).await.during(DOING)?;
            if rows > 0 {
                return Err(TransferError::NotEmpty(table));
            }
        }
        let counts = import_rows(&mut tx, &mut lines).await?;
        // An export of a Holm of before lacks some.
        query(
            "INSERT INTO counters (name, value) VALUES ('budgets_revision', 0), ('usage_dropped', 0),
                                                       ('usage_dropped_row', 0), ('usage_dropped_ms', 0)
             ON CONFLICT DO NOTHING",
        )
        .execute(&mut tx)
        .await
        .during(DOING)?;
        for (table, column) in [
            ("rollouts", "id"),
            ("usage", "row"),
            ("budget_alerts", "row"),
            ("usage_exports", "id"),
        ] {
            tx.go_on_after(table, column).await?;
        }
        retention::go_on_after_dropped(&mut tx).await?;
        tx.commit(DOING).await?;
        Ok(counts.values().sum())
    }
}

impl Table {
    /// As SQL has them.
    fn column_names(&self) -> String {
        let names: Vec<_> = self.columns.iter().map(|(name, _)| *name).collect();
        names.join(", ")
    }

    /// A column of the key.
    fn column(&self, name: &str) -> (&'static str, Kind) {
        let mut columns = self.columns.iter().copied();
        let column = columns.find(|(column, _)| *column == name);
        column.expect("a table is ordered by its columns")
    }
}

async fn export_table(
    tx: &mut Transaction,
    table: &Table,
    out: &mut (impl Write + Send),
) -> Result<u64, TransferError> {
    const DOING: &str = "export rows";
    let select = format!("SELECT {} FROM {}", table.column_names(), table.name);
    // Tables may be larger than memory: they are read in pages, each behind the last row of the one before.
    let key: Vec<(&str, Kind)> = table
        .order
        .split(", ")
        .map(|name| table.column(name))
        .collect();
    let mut after: Option<Vec<Value>> = None;
    let mut count = 0;
    loop {
        let mut page = query(select.clone());
        if let Some(after) = after.take() {
            page.push(&format!(" WHERE ({}) > ", table.order));
            page.push_row(after);
        }
        page.push(&format!(
            " ORDER BY {} LIMIT {LEDGER_CHUNK_ROWS}",
            table.order
        ));
        let rows = page.rows(&mut *tx).await.during(DOING)?;
        for row in &rows {
            let mut line = vec![Json::from(table.name)];
            for (column, kind) in table.columns {
                line.push(column_json(row, column, *kind).during(DOING)?);
            }
            write_line(out, &Json::Array(line))?;
        }
        count += rows.len() as u64;
        let Some(last) = rows.last().filter(|_| rows.len() == LEDGER_CHUNK_ROWS) else {
            return Ok(count);
        };
        let values = key.iter().map(|(name, kind)| match kind {
            Int => last.get(name).map(Value::Int),
            Text => last.get(name).map(Value::Text),
            Bytes => last.get(name).map(Value::Bytes),
        });
        after = Some(values.collect::<Result<_, _>>().during(DOING)?);
    }
}

fn column_json(row: &Row, column: &str, kind: Kind) -> Result<Json, sqlx::Error> {
    Ok(match kind {
        Int => json!(row.get::<Option<i64>>(column)?),
        Text => json!(
            row.get::<Option<String>>(column)?
                .map(|text| format!("t{text}"))
        ),
        Bytes => {
            let bytes: Option<Vec<u8>> = row.get(column)?;
            json!(bytes.map(|bytes| format!("x{}", hex::encode(bytes))))
        }
    })
}

/// Takes rows in until the last line, which must agree with them.
async fn import_rows(
    tx: &mut Transaction,
    lines: &mut Lines<'_, impl BufRead>,
) -> Result<BTreeMap<String, u64>, TransferError> {
    let mut counts: BTreeMap<String, u64> = TABLES
        .iter()
        .map(|table| (table.name.to_owned(), 0))
        .collect();
    let mut pending: Vec<Vec<Value>> = Vec::new();
    let mut current: Option<&Table> = None;
    loop {
        let Some(line) = lines.next()? else {
            return Err(lines.malformed("the last line is missing: the file was cut off"));
        };
        let Json::Array(row) = line else {
            if let Some(table) = current {
                insert(tx, table, &mut pending).await?;
            }
            let Tail { mut rows } = lines.parse(line)?;
            // An export of before knew fewer tables.
            for table in TABLES {
                rows.entry(table.name.to_owned()).or_default();
            }
            return match rows == counts {
                true => Ok(counts),
                false => Err(lines.malformed("it counts other rows than there were")),
            };
        };
        let name = row.first().and_then(Json::as_str).unwrap_or_default();
        let Some(table) = TABLES.iter().find(|table| table.name == name) else {
            return Err(lines.malformed("it is of no table that is known here"));
        };
        if let Some(before) = current
            && (before.name != table.name || pending.len() >= LEDGER_CHUNK_ROWS)
        {
            insert(tx, before, &mut pending).await?;
        }
        current = Some(table);
        let values = values(table, &row[1..]).map_err(|why| lines.malformed(why))?;
        pending.push(values);
        *counts.entry(table.name.to_owned()).or_default() += 1;
    }
}

fn values(table: &Table, row: &[Json]) -> Result<Vec<Value>, &'static str> {
    if row.len() != table.columns.len() {
        return Err("it has another number of columns");
    }
    let value = |(value, (_, kind)): (&Json, &(&str, Kind))| match (kind, value) {
        (Int, Json::Null) => Ok(Value::Int(None)),
        (Text, Json::Null) => Ok(Value::Text(None)),
        (Bytes, Json::Null) => Ok(Value::Bytes(None)),
        (Int, Json::Number(number)) => {
            let number = number.as_i64().ok_or("a number is too large")?;
            Ok(Value::Int(Some(number)))
        }
        (Text, Json::String(text)) => {
            let text = text.strip_prefix('t').ok_or("a text is none")?;
            Ok(Value::Text(Some(text.to_owned())))
        }
        (Bytes, Json::String(text)) => {
            let digits = text.strip_prefix('x').ok_or("bytes are none")?;
            let bytes = hex::decode(digits).map_err(|_| "bytes are not hexadecimal")?;
            Ok(Value::Bytes(Some(bytes)))
        }
        _ => Err("a column is of another type"),
    };
    row.iter().zip(table.columns).map(value).collect()
}

async fn insert(
    tx: &mut Transaction,
    table: &Table,
    pending: &mut Vec<Vec<Value>>,
) -> Result<(), StoreError> {
    if pending.is_empty() {
        return Ok(());
    }
    let (name, columns) = (table.name, table.column_names());
    let mut insert = query(format!("INSERT INTO {name} ({columns}) VALUES "));
    insert.push_rows(pending.drain(..));
    insert.execute(tx).await.during("import rows")?;
    Ok(())
}

fn write_line(out: &mut impl Write, line: &Json) -> Result<(), TransferError> {
    writeln!(out, "{line}").map_err(written)
}

fn written(source: io::Error) -> TransferError {
    TransferError::File {
        operation: "written",
        source,
    }
}

/// The lines of an export, of which the last one read has the number `line`.
struct Lines<'a, R> {
    input: &'a mut R,
    line: u64,
}

impl<R: BufRead> Lines<'_, R> {
    fn next(&mut self) -> Result<Option<Json>, TransferError> {
        let mut text = String::new();
        let mut bounded = io::Read::take(&mut *self.input, MAX_EXPORT_LINE_BYTES);
        let read = bounded.read_line(&mut text);
        read.map_err(|source| TransferError::File {
            operation: "read",
            source,
        })?;
        if text.is_empty() {
            return Ok(None);
        }
        self.line += 1;
        match serde_json::from_str(&text) {
            Ok(json) => Ok(Some(json)),
            Err(error) => Err(self.malformed(&error.to_string())),
        }
    }

    fn parse<T: for<'de> Deserialize<'de>>(&self, line: Json) -> Result<T, TransferError> {
        serde_json::from_value(line).map_err(|error| self.malformed(&error.to_string()))
    }

    fn malformed(&self, why: &str) -> TransferError {
        TransferError::Malformed {
            line: self.line,
            why: why.to_owned(),
        }
    }
}

#[cfg(test)]
#[path = "transfer_tests.rs"]
mod tests;
