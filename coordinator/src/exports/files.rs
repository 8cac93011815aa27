//! Records of usage in files of the artifact store: for each tenant and day (UTC) Parquet files, written when the day is
//! over and not changed after.
//!
//! ```text
//! usage/tenant=acme/date=2026-11-30/part-EXPORT-FIRST-LAST.parquet     FIRST and LAST are rows of the ledger
//! ```
//! What comes after that for the day, from a node that was cut off, is in a further part, written with the files of the
//! next day. Each record is in one file: which are out is a number of a row and a time ([`Out`]), and both only rise.
//! What a run is going to write is in the database before it begins, so whoever goes on after a coordinator that was
//! killed writes the same files under the same names.

use std::collections::BTreeMap;

use holm_model::api::{ExportFile, LedgerRow};
use holm_model::ids::{Digest, Name};
use tokio::task;

use super::Exports;
use super::parquet::{self, RecordsFileError};
use crate::clock::millis;
use crate::limits::{EXPORT_FILES_GRACE, EXPORT_PAGE_ROWS, EXPORT_PART_ROWS};
use crate::registry::ArtifactError;
use crate::store::{DAY_MS, ExportRow, Out, RecordsFilter, StoreError};

/// Files cannot be written.
#[derive(Debug, thiserror::Error)]
pub(super) enum FilesError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Objects(#[from] ArtifactError),
    #[error(transparent)]
    File(#[from] RecordsFileError),
    #[error("making a file broke: {0}")]
    Broken(task::JoinError),
}

/// Rows of one tenant until there are enough for a file.
#[derive(Default)]
struct Parts {
    days: BTreeMap<u64, Vec<LedgerRow>>,
    rows: usize,
}

impl Exports {
    /// Writes what is complete of one export; whether there was something to do.
    pub(super) async fn write_files(&self, export: &ExportRow) -> Result<bool, FilesError> {
        let now_ms = self.clock.now_ms();
        let to = match export.plan {
            Some(plan) => plan,
            None => {
                let settled = now_ms.saturating_sub(millis(EXPORT_FILES_GRACE));
                let before_ms = settled - settled % DAY_MS;
                if before_ms <= export.out.before_ms {
                    return Ok(false);
                }
                let to = Out {
                    row: self.store.last_usage_row().await?.max(export.out.row),
                    before_ms,
                };
                if !self.store.plan_export(export.id, export.out, to).await? {
                    // Another coordinator has another plan, or the export has gone.
                    return Ok(false);
                }
                to
            }
        };
        let (files, from_row) = self.write_parts(export, to).await?;
        let stored = self.store.exported(export, (to, from_row), &files, now_ms);
        if stored.await? && !files.is_empty() {
            let rows: u64 = files.iter().map(|file| file.rows).sum();
            tracing::info!(export = export.id, tenant = %export.tenant, files = files.len(), rows, "usage is written to files");
        }
        Ok(true)
    }

    /// Writes what is out when `to` is, and is not yet; returns the files, and below which row everything is out then.
    async fn write_parts(
        &self,
        export: &ExportRow,
        to: Out,
    ) -> Result<(Vec<ExportFile>, u64), FilesError> {
        let filter = RecordsFilter {
            tenant: Some(export.tenant.clone()),
            ..RecordsFilter::default()
        };
        let mut files = Vec::new();
        let mut parts = Parts::default();
        let mut from_row = to.row.saturating_add(1);
        let mut after = export.from_row.saturating_sub(1);
        loop {
            let page = self
                .store
                .usage_records(&filter, after, EXPORT_PAGE_ROWS)
                .await?;
            let more = page.next.is_some();
            for row in page.records {
                after = row.row;
                if row.row > to.row {
                    break;
                }
                if to.has(&row) {
                    if !export.out.has(&row) {
                        parts.add(row);
                    }
                } else {
                    from_row = from_row.min(row.row);
                }
            }
            while let Some((day, rows)) = parts.full() {
                files.push(self.write_part(export, day, rows).await?);
            }
            if !more || after > to.row {
                break;
            }
        }
        for (day, rows) in std::mem::take(&mut parts.days) {
            files.push(self.write_part(export, day, rows).await?);
        }
        Ok((files, from_row))
    }

    async fn write_part(
        &self,
        export: &ExportRow,
        day_ms: u64,
        rows: Vec<LedgerRow>,
    ) -> Result<ExportFile, FilesError> {
        let number = |row: Option<&LedgerRow>| row.map_or(0, |row| row.row);
        let name = format!(
            "{}/part-{}-{:020}-{:020}.parquet",
            directory(&export.tenant, day_ms),
            export.id,
            number(rows.first()),
            number(rows.last())
        );
        let count = rows.len() as u64;
        // It takes a core for a while.
        let made = task::spawn_blocking(move || {
            let bytes = parquet::file(&rows)?;
            Ok::<_, RecordsFileError>((Digest::of(&bytes), bytes))
        });
        let (digest, bytes) = made.await.map_err(FilesError::Broken)??;
        let file = ExportFile {
            name,
            day_ms,
            rows: count,
            bytes: bytes.len() as u64,
            digest,
            written_ms: self.clock.now_ms(),
        };
        self.objects.put_file(&file.name, bytes).await?;
        Ok(file)
    }
}

impl Out {
    fn has(&self, row: &LedgerRow) -> bool {
        row.row <= self.row && row.record.accepted_ms < self.before_ms
    }
}

impl Parts {
    fn add(&mut self, row: LedgerRow) {
        let accepted = row.record.accepted_ms;
        let day = accepted - accepted % DAY_MS;
        self.days.entry(day).or_default().push(row);
        self.rows += 1;
    }

    /// Rows of a day that are enough for a file, or the most of any day if all together are too many.
    fn full(&mut self) -> Option<(u64, Vec<LedgerRow>)> {
        let (day, most) = self
            .days
            .iter()
            .map(|(day, rows)| (*day, rows.len()))
            .max_by_key(|(_, rows)| *rows)?;
        if most < EXPORT_PART_ROWS && self.rows < 2 * EXPORT_PART_ROWS {
            return None;
        }
        let rows = self.days.remove(&day)?;
        self.rows -= rows.len();
        Some((day, rows))
    }
}

/// By the names that Hive gives to partitions, and many readers with it. A time that no calendar has is in the partition
/// that Hive has for what has no value.
fn directory(tenant: &Name, day_ms: u64) -> String {
    let day = i64::try_from(day_ms).ok();
    let day = day.and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    let date = day.map_or_else(
        || "__HIVE_DEFAULT_PARTITION__".to_owned(),
        |day| day.to_string().chars().take("2026-11-30".len()).collect(),
    );
    format!("usage/tenant={tenant}/date={date}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::testing::record;

    fn row(number: u64, day: u64) -> LedgerRow {
        let mut record = record(1, number);
        record.accepted_ms = day * DAY_MS + number % DAY_MS;
        LedgerRow {
            row: number,
            node: "n".parse().unwrap(),
            record,
        }
    }

    #[test]
    fn rows_are_parted_by_days_and_held_in_bounds() {
        let mut parts = Parts::default();
        let mut written = BTreeMap::<u64, usize>::new();
        let count = 5 * EXPORT_PART_ROWS as u64 + 7;
        for number in 0..count {
            parts.add(row(number, number % 9));
            while let Some((day, rows)) = parts.full() {
                assert!(rows.is_sorted_by_key(|row| row.row));
                *written.entry(day).or_default() += rows.len();
            }
            assert!(parts.rows < 2 * EXPORT_PART_ROWS);
        }
        for (day, rows) in parts.days {
            *written.entry(day).or_default() += rows.len();
        }
        assert_eq!(written.len(), 9);
        assert_eq!(written.values().sum::<usize>() as u64, count);
    }

    #[test]
    fn a_directory_is_named_as_hive_names_partitions() {
        let acme = "acme".parse().unwrap();
        assert_eq!(
            directory(&acme, 19_675 * DAY_MS),
            "usage/tenant=acme/date=2023-11-14"
        );
        let never = i64::MAX as u64 / DAY_MS * DAY_MS;
        assert!(directory(&acme, never).ends_with("date=__HIVE_DEFAULT_PARTITION__"));
    }
}
