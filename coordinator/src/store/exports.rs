//! Exports of usage: where a tenant's records go, and how far each has got.
//!
//! What is out of an export moves only from where it was read to be, so that of two coordinators that send for a moment
//! one alone counts.

use holm_model::api::{ExportFile, ExportKind, ExportView};
use holm_model::ids::{Digest, Name};

use super::error::During as _;
use super::sql::{Row, Transaction, Value, query};
use super::{ALWAYS_MS, Store, StoreError, Turn, bytes32, retention, text, uint};
use crate::limits::{
    MAX_COUNTED_BEHIND, MAX_EXPORT_FILES_PAGE, MAX_EXPORTS, MAX_EXPORTS_OF_TENANT,
};

/// A new export.
#[derive(Clone, Debug)]
pub(crate) struct NewExportRow {
    pub(crate) tenant: Name,
    pub(crate) kind: ExportKind,
    pub(crate) url: String,
    pub(crate) ca: String,
    pub(crate) private: bool,
    /// Sealed.
    pub(crate) secret: Option<Vec<u8>>,
    /// A webhook also gets what is in the ledger already, as files do in any case.
    pub(crate) from_start: bool,
}

/// An export as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ExportRow {
    pub(crate) id: u64,
    pub(crate) tenant: Name,
    pub(crate) kind: ExportKind,
    pub(crate) url: String,
    pub(crate) ca: String,
    pub(crate) private: bool,
    pub(crate) secret: Option<Vec<u8>>,
    pub(crate) created_ms: u64,
    pub(crate) out: Out,
    /// Rows below this one are all out.
    pub(crate) from_row: u64,
    /// Where that is to be, of what is being written.
    pub(crate) plan: Option<Out>,
    pub(crate) sent: u64,
    pub(crate) sent_ms: Option<u64>,
    pub(crate) failures: u64,
    pub(crate) failed_ms: Option<u64>,
    pub(crate) error: Option<String>,
    pub(crate) lost: u64,
    pub(crate) lost_ms: Option<u64>,
}

/// Which rows are out: those up to a number that were accepted before a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Out {
    pub(crate) row: u64,
    pub(crate) before_ms: u64,
}

/// An export is not made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unexported {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("there is no tenant `{0}`; make it with `holm tenants create`")]
    NoTenant(Name),
    #[error("tenant `{0}` has no export {1}; see `holm usage exports list`")]
    NoExport(Name, u64),
    #[error(
        "tenant `{0}` has {MAX_EXPORTS_OF_TENANT} exports, or the fleet {MAX_EXPORTS}, as many as are possible; remove \
         one first"
    )]
    TooMany(Name),
    #[error("tenant `{0}` has its usage written to files already, by export {1}")]
    FilesAlready(Name, u64),
}

const EXPORT_COLUMNS: &str = "id, tenant, kind, url, ca, private, secret, created_ms, row, day_ms, from_row, \
                              plan_row, plan_day_ms, sent, sent_ms, failures, failed_ms, error, lost, lost_ms";

impl Store {
    /// Makes an export; returns its number.
    pub(crate) async fn add_export(
        &self,
        new: &NewExportRow,
        now_ms: u64,
    ) -> Result<u64, Unexported> {
        const DOING: &str = "store an export";
        // Rows that come at the same time are before it or after.
        let mut tx = self.write(Turn::Ledger).await?;
        let tenant = &new.tenant;
        let known = query("SELECT 1 FROM tenants WHERE name = ?").bind(tenant);
        if !known.found(&mut tx).await.during(DOING)? {
            return Err(Unexported::NoTenant(tenant.clone()));
        }
        let others = exports(&mut tx, None).await?;
        let own = others.iter().filter(|other| other.tenant == *tenant);
        if others.len() >= MAX_EXPORTS || own.clone().count() >= MAX_EXPORTS_OF_TENANT {
            return Err(Unexported::TooMany(tenant.clone()));
        }
        let mut files = own.filter(|other| other.kind == ExportKind::Parquet);
        if let (ExportKind::Parquet, Some(other)) = (new.kind, files.next()) {
            return Err(Unexported::FilesAlready(tenant.clone(), other.id));
        }
        let (row, day_ms) = match new.kind {
            ExportKind::Webhook if new.from_start => (0, ALWAYS_MS),
            ExportKind::Webhook => (retention::last_row(&mut tx).await?, ALWAYS_MS),
            ExportKind::Parquet => (0, 0),
        };
        let mut insert = query(
            "INSERT INTO usage_exports (tenant, kind, url, ca, private, secret, created_ms, row, day_ms, from_row,
                                        sent, failures, lost) VALUES ",
        );
        insert.push_row([
            tenant.into(),
            new.kind.as_str().into(),
            new.url.as_str().into(),
            new.ca.as_str().into(),
            new.private.into(),
            Value::Bytes(new.secret.clone()),
            now_ms.into(),
            row.into(),
            day_ms.into(),
            0_u64.into(),
            0_u64.into(),
            0_u64.into(),
            0_u64.into(),
        ]);
        insert.push(" RETURNING id");
        let (id,): (i64,) = insert.one(&mut tx).await.during(DOING)?;
        tx.commit(DOING).await?;
        Ok(uint(id))
    }

    /// Exports, of one tenant or all, by their numbers.
    pub(crate) async fn exports(
        &self,
        tenant: Option<&Name>,
    ) -> Result<Vec<ExportRow>, StoreError> {
        let mut tx = self.read().await?;
        exports(&mut tx, tenant).await
    }

    /// Ends an export; what it has sent or written stays where it is.
    pub(crate) async fn remove_export(&self, tenant: &Name, id: u64) -> Result<(), Unexported> {
        const DOING: &str = "remove an export";
        let mut tx = self.write(Turn::Ledger).await?;
        let gone = query("DELETE FROM usage_exports WHERE tenant = ? AND id = ?")
            .bind(tenant)
            .bind(id)
            .execute(&mut tx)
            .await
            .during(DOING)?;
        if gone == 0 {
            return Err(Unexported::NoExport(tenant.clone(), id));
        }
        query("DELETE FROM usage_export_files WHERE export = ?")
            .bind(id)
            .execute(&mut tx)
            .await
            .during(DOING)?;
        Ok(tx.commit(DOING).await?)
    }

    /// Everything up to `to` is out, of which `rows` are new, if until now it was what was up to `from`; whether it
    /// was.
    pub(crate) async fn sent(
        &self,
        export: u64,
        (from, to): (u64, u64),
        rows: u64,
        now_ms: u64,
    ) -> Result<bool, StoreError> {
        let changed = query(
            "UPDATE usage_exports SET row = ?, sent = sent + ?, sent_ms = ?, failures = 0, failed_ms = NULL,
                                      error = NULL
             WHERE id = ? AND row = ?",
        )
        .bind(to)
        .bind(rows)
        .bind(now_ms)
        .bind(export)
        .bind(from)
        .execute(self.writer())
        .await
        .during("store how far an export is")?;
        Ok(changed == 1)
    }

    /// An export did not get further.
    pub(crate) async fn export_failed(
        &self,
        export: u64,
        why: &str,
        now_ms: u64,
    ) -> Result<(), StoreError> {
        query(
            "UPDATE usage_exports SET failures = failures + 1, failed_ms = COALESCE(failed_ms, ?), error = ?
             WHERE id = ?",
        )
        .bind(now_ms)
        .bind(why)
        .bind(export)
        .execute(self.writer())
        .await
        .during("store why an export fails")?;
        Ok(())
    }

    /// How far an export is, for people.
    pub(crate) async fn export_view(&self, row: ExportRow) -> Result<ExportView, StoreError> {
        const DOING: &str = "look how far an export is";
        let (behind, oldest): (i64, Option<i64>) = query(
            "SELECT COUNT(*), MIN(accepted_ms) FROM
                 (SELECT accepted_ms FROM usage WHERE tenant = ? AND row >= ? AND (row > ? OR accepted_ms >= ?)
                  ORDER BY row LIMIT ?) AS waiting",
        )
        .bind(&row.tenant)
        .bind(match row.kind {
            ExportKind::Webhook => row.out.row,
            ExportKind::Parquet => row.from_row,
        })
        .bind(row.out.row)
        .bind(row.out.before_ms)
        .bind(MAX_COUNTED_BEHIND)
        .one(self.reader())
        .await
        .during(DOING)?;
        Ok(ExportView {
            id: row.id,
            tenant: row.tenant,
            kind: row.kind,
            url: row.url,
            private: row.private,
            created_ms: row.created_ms,
            row: row.out.row,
            sent: row.sent,
            sent_ms: row.sent_ms,
            behind: uint(behind),
            behind_at_least: uint(behind) == MAX_COUNTED_BEHIND,
            oldest_ms: oldest.map(uint),
            failures: row.failures,
            failing_since_ms: row.failed_ms,
            error: row.error,
            lost: row.lost,
            lost_ms: row.lost_ms,
        })
    }

    /// The number of the newest row there ever was.
    pub(crate) async fn last_usage_row(&self) -> Result<u64, StoreError> {
        let mut tx = self.read().await?;
        retention::last_row(&mut tx).await
    }

    /// Notes what will be written, before it is: whoever goes on after a coordinator that was killed writes the same.
    pub(crate) async fn plan_export(
        &self,
        export: u64,
        from: Out,
        to: Out,
    ) -> Result<bool, StoreError> {
        let changed = query(
            "UPDATE usage_exports SET plan_row = ?, plan_day_ms = ?
             WHERE id = ? AND row = ? AND day_ms = ? AND plan_row IS NULL",
        )
        .bind(to.row)
        .bind(to.before_ms)
        .bind(export)
        .bind(from.row)
        .bind(from.before_ms)
        .execute(self.writer())
        .await
        .during("plan an export")?;
        Ok(changed == 1)
    }

    /// What was planned is written, in these files, and what is not lies at `from_row` or above; unless somebody else
    /// has said so.
    pub(crate) async fn exported(
        &self,
        export: &ExportRow,
        (to, from_row): (Out, u64),
        files: &[ExportFile],
        now_ms: u64,
    ) -> Result<bool, StoreError> {
        const DOING: &str = "store what an export has written";
        let mut tx = self.write(Turn::Ledger).await?;
        let rows: u64 = files.iter().map(|file| file.rows).sum();
        let changed = query(
            "UPDATE usage_exports SET row = plan_row, day_ms = plan_day_ms, from_row = ?, plan_row = NULL,
                                      plan_day_ms = NULL, sent = sent + ?, sent_ms = ?, failures = 0, failed_ms = NULL, error = NULL
             WHERE id = ? AND row = ? AND day_ms = ? AND plan_row = ? AND plan_day_ms = ?",
        )
        .bind(from_row)
        .bind(rows)
        .bind(now_ms)
        .bind(export.id)
        .bind(export.out.row)
        .bind(export.out.before_ms)
        .bind(to.row)
        .bind(to.before_ms)
        .execute(&mut tx)
        .await
        .during(DOING)?;
        if changed == 0 {
            return Ok(false);
        }
        for file in files {
            let mut insert = query(
                "INSERT INTO usage_export_files (export, name, day_ms, rows, bytes, digest, written_ms) VALUES ",
            );
            insert.push_row([
                export.id.into(),
                file.name.as_str().into(),
                file.day_ms.into(),
                file.rows.into(),
                file.bytes.into(),
                file.digest.into(),
                file.written_ms.into(),
            ]);
            insert.push(" ON CONFLICT (export, name) DO NOTHING");
            insert.execute(&mut tx).await.during(DOING)?;
        }
        tx.commit(DOING).await?;
        Ok(true)
    }

    /// Whether an export of the tenant's has written a file of this name.
    pub(crate) async fn has_export_file(
        &self,
        tenant: &Name,
        name: &str,
    ) -> Result<bool, StoreError> {
        query(
            "SELECT 1 FROM usage_export_files AS f JOIN usage_exports AS e ON e.id = f.export
             WHERE e.tenant = ? AND name = ?",
        )
        .bind(tenant)
        .bind(name)
        .found(self.reader())
        .await
        .during("look up a file of an export")
    }

    /// Files of a tenant's whose names come after this one, at most a page of them.
    pub(crate) async fn export_files(
        &self,
        tenant: &Name,
        after: &str,
    ) -> Result<Vec<ExportFile>, StoreError> {
        type Columns = (String, i64, i64, i64, Vec<u8>, i64);
        let rows: Vec<Columns> = query(
            "SELECT name, f.day_ms, rows, bytes, digest, written_ms FROM usage_export_files AS f
             JOIN usage_exports AS e ON e.id = f.export
             WHERE e.tenant = ? AND name > ? ORDER BY name LIMIT ?",
        )
        .bind(tenant)
        .bind(after)
        .bind(MAX_EXPORT_FILES_PAGE)
        .all(self.reader())
        .await
        .during("list files of an export")?;
        let file = |(name, day_ms, rows, bytes, digest, written_ms): Columns| {
            Ok(ExportFile {
                name,
                day_ms: uint(day_ms),
                rows: uint(rows),
                bytes: uint(bytes),
                digest: Digest(bytes32("a file's digest", &digest)?),
                written_ms: uint(written_ms),
            })
        };
        rows.into_iter().map(file).collect()
    }
}

/// Counts rows that are about to go and are not out, for each export that lacks some.
pub(super) async fn count_lost(
    tx: &mut Transaction,
    node: &Name,
    (epoch, last): (u64, u64),
    now_ms: u64,
) -> Result<(), StoreError> {
    const DOING: &str = "count what an export loses";
    let going: Vec<(String, i64, i64)> = query(
        "SELECT tenant, MAX(row), MAX(accepted_ms) FROM usage
         WHERE node = ? AND (boot_epoch, sequence) <= (?, ?) GROUP BY tenant",
    )
    .bind(node)
    .bind(epoch)
    .bind(last)
    .all(&mut *tx)
    .await
    .during(DOING)?;
    let lacks = |export: &ExportRow| {
        let mut going = going.iter();
        going.any(|(tenant, row, accepted_ms)| {
            *tenant == export.tenant.as_str()
                && (uint(*row) > export.out.row || uint(*accepted_ms) >= export.out.before_ms)
        })
    };
    for export in exports(&mut *tx, None).await?.into_iter().filter(lacks) {
        let (lost,): (i64,) = query(
            "SELECT COUNT(*) FROM usage WHERE node = ? AND (boot_epoch, sequence) <= (?, ?) AND tenant = ?
             AND (row > ? OR accepted_ms >= ?)",
        )
        .bind(node)
        .bind(epoch)
        .bind(last)
        .bind(&export.tenant)
        .bind(export.out.row)
        .bind(export.out.before_ms)
        .one(&mut *tx)
        .await
        .during(DOING)?;
        if lost == 0 {
            continue;
        }
        tracing::error!(
            export = export.id, tenant = %export.tenant, lost,
            "records of usage are no longer kept and were not exported: the export is too far behind"
        );
        query("UPDATE usage_exports SET lost = lost + ?, lost_ms = ? WHERE id = ?")
            .bind(lost)
            .bind(now_ms)
            .bind(export.id)
            .execute(&mut *tx)
            .await
            .during(DOING)?;
    }
    Ok(())
}

async fn exports(
    tx: &mut Transaction,
    tenant: Option<&Name>,
) -> Result<Vec<ExportRow>, StoreError> {
    let mut list = query(format!("SELECT {EXPORT_COLUMNS} FROM usage_exports"));
    if let Some(tenant) = tenant {
        list.push(" WHERE tenant = ").push_bind(tenant);
    }
    list.push(" ORDER BY id");
    let rows = list.rows(tx).await.during("list exports")?;
    rows.iter().map(export_row).collect()
}

fn export_row(row: &Row) -> Result<ExportRow, StoreError> {
    const DOING: &str = "read an export";
    let number = |column: &str| row.get(column).map(uint).during(DOING);
    let maybe = |column: &str| {
        let value: Option<i64> = row.get(column).during(DOING)?;
        Ok::<_, StoreError>(value.map(uint))
    };
    let words = |column: &str| row.get::<String>(column).during(DOING);
    let kind = words("kind")?;
    let plan = maybe("plan_row")?.zip(maybe("plan_day_ms")?);
    Ok(ExportRow {
        id: number("id")?,
        tenant: text("a tenant's name", &words("tenant")?)?,
        kind: ExportKind::from_name(&kind)
            .ok_or_else(|| StoreError::corrupt("an export", format!("`{kind}` is no kind")))?,
        url: words("url")?,
        ca: words("ca")?,
        private: number("private")? != 0,
        secret: row.get("secret").during(DOING)?,
        created_ms: number("created_ms")?,
        out: Out {
            row: number("row")?,
            before_ms: number("day_ms")?,
        },
        from_row: number("from_row")?,
        plan: plan.map(|(row, before_ms)| Out { row, before_ms }),
        sent: number("sent")?,
        sent_ms: maybe("sent_ms")?,
        failures: number("failures")?,
        failed_ms: maybe("failed_ms")?,
        error: row.get("error").during(DOING)?,
        lost: number("lost")?,
        lost_ms: maybe("lost_ms")?,
    })
}
