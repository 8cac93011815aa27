//! The coordinator's database: the only place with SQL.
//!
//! SQLite with a write-ahead log, synced at every commit, so that what was acknowledged is on disk.
//! One connection writes; others read what is committed. Each submodule is one subject and gives
//! and takes Holm's own types; decisions that must be atomic are made inside its transactions.
//!
//! It refuses a database that a newer Holm has migrated, and one that another process writes to is
//! kept out by the lock on the state directory (see the crate's root).

mod catalogue;
mod fleet;
mod rollouts;
mod usage;

use std::path::Path;
use std::time::Duration;

use sqlx::SqlSafeStr as _;
use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{Sqlite, Transaction};

pub(crate) use catalogue::{FunctionRow, NewVersion, PublishOutcome};
pub(crate) use fleet::{JoinOutcome, NodeRow};
pub(crate) use rollouts::{Adoption, RolloutRow};
pub(crate) use usage::{StoredUsage, UsageFilter, UsageGroup};

/// The database failed, or holds what it should not. The operator's to look into.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite failed.
    #[error(
        "the coordinator's database failed to {operation}: {source}; look at the disk that holds \
         the state directory (full, read-only, broken?)"
    )]
    Database {
        /// What it was to do.
        operation: &'static str,
        /// SQLite's own words.
        source: sqlx::Error,
    },
    /// The schema cannot be brought up to date.
    #[error(
        "the coordinator's database cannot be migrated: {0}; if a newer Holm has written it, run \
         that one"
    )]
    Migration(#[from] MigrateError),
    /// A row cannot be read back.
    #[error("the coordinator's database holds {what} that cannot be read: {why}; restore a backup")]
    Corrupt {
        /// Which.
        what: &'static str,
        /// Why.
        why: String,
    },
}

impl StoreError {
    fn corrupt(what: &'static str, why: impl ToString) -> Self {
        StoreError::Corrupt {
            what,
            why: why.to_string(),
        }
    }
}

/// Names the operation of a failed statement.
trait During<T> {
    fn during(self, operation: &'static str) -> Result<T, StoreError>;
}

impl<T> During<T> for Result<T, sqlx::Error> {
    fn during(self, operation: &'static str) -> Result<T, StoreError> {
        self.map_err(|source| StoreError::Database { operation, source })
    }
}

/// The database. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    writer: SqlitePool,
    reader: SqlitePool,
}

impl Store {
    /// Opens the database at `path`, makes it if it is not there, and brings its schema up to date.
    pub(crate) async fn open(path: &Path) -> Result<Self, StoreError> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(Duration::from_secs(5));
        let writer = SqlitePoolOptions::new()
            .max_connections(1)
            .acquire_timeout(Duration::from_secs(30))
            .connect_with(options.clone())
            .await
            .during("open")?;
        migrator(&MIGRATIONS).run(&writer).await?;
        let reader = SqlitePoolOptions::new()
            .max_connections(4)
            .acquire_timeout(Duration::from_secs(30))
            .connect_with(options.create_if_missing(false).read_only(true))
            .await
            .during("open for reading")?;
        Ok(Store { writer, reader })
    }

    /// Closes every connection after what is under way.
    pub(crate) async fn close(&self) {
        self.reader.close().await;
        self.writer.close().await;
    }

    /// A transaction that holds the write lock from its beginning.
    async fn write(&self) -> Result<Transaction<'static, Sqlite>, StoreError> {
        self.writer
            .begin_with("BEGIN IMMEDIATE")
            .await
            .during("begin a transaction")
    }
}

/// In the order in which they are made. One that a coordinator may have made is never changed.
const MIGRATIONS: [(&str, &str); 3] = [
    ("first", include_str!("../../migrations/0001_first.sql")),
    (
        "outbound bytes",
        include_str!("../../migrations/0002_outbound_bytes.sql"),
    ),
    ("drained", include_str!("../../migrations/0003_drained.sql")),
];

fn migrator(migrations: &[(&'static str, &'static str)]) -> Migrator {
    let migration = |((name, sql), number): (&(&'static str, &'static str), i64)| {
        let kind = MigrationType::Simple;
        Migration::new(number, (*name).into(), kind, sql.into_sql_str(), false)
    };
    Migrator::with_migrations(migrations.iter().zip(1..).map(migration).collect())
}

/// A number for SQLite, whose integers are signed. What may come from outside is checked to fit
/// before it gets here.
fn int(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// A number from SQLite; what is stored is never negative.
fn uint(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

/// 32 bytes that were stored as such.
fn bytes32(what: &'static str, bytes: &[u8]) -> Result<[u8; 32], StoreError> {
    bytes
        .try_into()
        .map_err(|_| StoreError::corrupt(what, "it does not have 32 bytes"))
}

/// A name or the like that was stored as text.
fn text<T: std::str::FromStr>(what: &'static str, text: &str) -> Result<T, StoreError>
where
    T::Err: ToString,
{
    text.parse()
        .map_err(|error: T::Err| StoreError::corrupt(what, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_database_of_the_first_schema_is_brought_up_to_date_with_what_it_has() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("coordinator.db");
        let options = SqliteConnectOptions::new().filename(&path);
        let old = SqlitePoolOptions::new()
            .connect_with(options.create_if_missing(true))
            .await
            .unwrap();
        migrator(&MIGRATIONS[..1]).run(&old).await.unwrap();
        sqlx::query(
            "INSERT INTO usage VALUES (1, 'n1', 1, 1, x'11', 'acme', 'hello', x'22', 5, 'answered', 200,
                                       1, 2, 3, 4, 5, 6, 7, 0, 1, 0)",
        )
        .execute(&old)
        .await
        .unwrap();
        old.close().await;
        let store = Store::open(&path).await.unwrap();
        let usage = store.usage(&UsageFilter::default(), UsageGroup::Node).await;
        let usage = usage.unwrap();
        assert_eq!((usage[0].executions, usage[0].response_bytes), (1, 7));
        assert_eq!((usage[0].egress_bytes, usage[0].ingress_bytes), (0, 0));
    }
}
