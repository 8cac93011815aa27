//! The coordinator's database: the only place with SQL.
//!
//! SQLite, embedded, for one coordinator, or PostgreSQL for several. Each submodule is one subject
//! and gives and takes Holm's own types; decisions that must be atomic are made inside its
//! transactions. What SQL both databases are told, [`sql`] says.
//!
//! SQLite has a write-ahead log, synced at every commit, so that what was acknowledged is on disk.
//! One connection writes; others read what is committed. PostgreSQL has many writers; who decides
//! from what is there takes its [`Turn`] first.
//!
//! It refuses a database that a newer Holm has migrated. An SQLite database that another process
//! writes to is kept out by the lock on the state directory (see the crate's root).

mod artifacts;
mod audit;
mod budgets;
#[cfg(test)]
mod budgets_tests;
mod catalogue;
mod configurations;
#[cfg(test)]
mod configurations_tests;
mod coordinators;
mod error;
mod exports;
mod fleet;
mod migrations;
mod postgres;
mod prices;
mod prune;
mod retention;
mod rollouts;
mod sql;
#[cfg(test)]
mod suite;
mod sums;
#[cfg(test)]
pub(crate) mod testing;
mod tokens;
mod trail;
mod transfer;
mod usage;

use std::path::Path;

use sqlx::postgres::PgPool;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};

pub(crate) use artifacts::{ArtifactOutcome, Located};
pub(crate) use budgets::Unbudgeted;
pub(crate) use catalogue::{
    FunctionRow, KeyChange, KeyRow, KeysOutcome, NewVersion, PublishOutcome, TagOutcome,
};
pub(crate) use configurations::{ConfigurationRow, ConfigureOutcome, NewConfiguration};
pub(crate) use coordinators::{LinkChange, LinkRow};
pub use error::StoreError;
pub(crate) use exports::{ExportRow, NewExportRow, Out, Unexported};
pub(crate) use fleet::{JoinOutcome, NodeCertificate, NodeChange, NodeRow, Pins, RenewOutcome};
pub use postgres::DatabaseUrl;
pub(crate) use prices::Unpriced;
pub(crate) use prune::{Fate, PruneWish};
pub(crate) use retention::{Dropped, RetentionError};
pub(crate) use rollouts::{Adoption, Basis, Decided, InPlaceOf, Queued, RolloutRow, Unstored};
pub(crate) use sums::{
    ALWAYS_MS, DAY_MS, HOUR_MS, MINUTE_MS, NamedQuantities, UsageFilter, UsageGroup, add_quantities,
};
pub(crate) use tokens::{TokenOutcome, TokenRow};
pub(crate) use trail::{Came, Deed};
pub use transfer::TransferError;
pub(crate) use usage::{RecordsFilter, StoredUsage};

use crate::limits::{
    DATABASE_BUSY, MAX_DATABASE_READERS, MAX_DATABASE_WAIT, SQLITE_CACHE_KIB, SQLITE_LOG_PAGES,
};
use error::During;
use migrations::migrator;
use sql::{On, Transaction, query};

/// The database. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    database: Database,
}

#[derive(Clone, Debug)]
enum Database {
    Sqlite {
        writer: SqlitePool,
        reader: SqlitePool,
    },
    Postgres(PgPool),
}

/// What a transaction decides about. On PostgreSQL one at a time decides about each: what it has
/// read stays true until it commits, and the ledger's rows become visible in their order. On SQLite
/// there is one writer anyway.
#[derive(Clone, Copy, Debug)]
enum Turn {
    Registry = 0,
    Fleet = 1,
    Rollouts = 2,
    Ledger = 3,
    Audit = 4,
    Budgets = 5,
}

impl Store {
    /// Opens the SQLite database at `path`, makes it if it is not there, and brings its schema up
    /// to date.
    pub(crate) async fn open_sqlite(path: &Path) -> Result<Self, StoreError> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(DATABASE_BUSY);
        let writer = SqlitePoolOptions::new()
            .max_connections(1)
            .acquire_timeout(MAX_DATABASE_WAIT)
            .connect_with(
                // The ledger's indexes are written all over; what does not fit is written out and read again within
                // one transaction. The log is moved over less often, with more of it each time.
                options
                    .clone()
                    .pragma("cache_size", format!("-{SQLITE_CACHE_KIB}"))
                    .pragma("wal_autocheckpoint", SQLITE_LOG_PAGES.to_string()),
            )
            .await
            .during("open")?;
        migrator(migrations::SQLITE).run(&writer).await?;
        let reader = SqlitePoolOptions::new()
            .max_connections(MAX_DATABASE_READERS)
            .acquire_timeout(MAX_DATABASE_WAIT)
            .connect_with(options.create_if_missing(false).read_only(true))
            .await
            .during("open for reading")?;
        let database = Database::Sqlite { writer, reader };
        Ok(Store { database })
    }

    /// Connects to the PostgreSQL database at `url` and brings its schema up to date.
    pub(crate) async fn open_postgres(url: &DatabaseUrl) -> Result<Self, StoreError> {
        let pool = postgres::connect(url).await?;
        let patient = postgres::patient(&pool);
        let migrated = migrator(migrations::POSTGRES).run(&patient).await;
        patient.close().await;
        migrated?;
        let database = Database::Postgres(pool);
        Ok(Store { database })
    }

    /// Closes every connection after what is under way.
    pub(crate) async fn close(&self) {
        match &self.database {
            Database::Sqlite { writer, reader } => {
                reader.close().await;
                writer.close().await;
            }
            Database::Postgres(pool) => pool.close().await,
        }
    }

    /// Where statements go that only read what is committed.
    fn reader(&self) -> On<'_> {
        match &self.database {
            Database::Sqlite { reader, .. } => On::Sqlite(reader),
            Database::Postgres(pool) => On::Postgres(pool),
        }
    }

    /// Where a single statement goes that writes.
    fn writer(&self) -> On<'_> {
        match &self.database {
            Database::Sqlite { writer, .. } => On::Sqlite(writer),
            Database::Postgres(pool) => On::Postgres(pool),
        }
    }

    /// A transaction that decides, from its beginning alone with what it decides about.
    async fn write(&self, turn: Turn) -> Result<Transaction, StoreError> {
        const DOING: &str = "begin a transaction";
        match &self.database {
            Database::Sqlite { writer, .. } => {
                let tx = writer.begin_with("BEGIN IMMEDIATE").await.during(DOING)?;
                Ok(Transaction::Sqlite(tx))
            }
            Database::Postgres(pool) => {
                // Each statement sees what was committed before it, so also what the turn waited for.
                let begin = "BEGIN ISOLATION LEVEL READ COMMITTED";
                let tx = pool.begin_with(begin).await.during(DOING)?;
                let mut tx = Transaction::Postgres(tx);
                tx.take(turn).await?;
                Ok(tx)
            }
        }
    }

    /// A transaction that reads the same state from its beginning to its end.
    async fn read(&self) -> Result<Transaction, StoreError> {
        const DOING: &str = "begin a transaction";
        match &self.database {
            Database::Sqlite { reader, .. } => {
                let tx = reader.begin().await.during(DOING)?;
                Ok(Transaction::Sqlite(tx))
            }
            Database::Postgres(pool) => {
                let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
                let tx = pool.begin_with(begin).await.during(DOING)?;
                Ok(Transaction::Postgres(tx))
            }
        }
    }
}

impl Transaction {
    /// Waits for a turn, until its own end. Who has several takes them in the order Rollouts, Registry, or Ledger,
    /// Budgets.
    async fn take(&mut self, turn: Turn) -> Result<(), StoreError> {
        if let Transaction::Postgres(_) = self {
            query("SELECT pg_advisory_xact_lock(?)")
                .bind(TURNS + turn as i64)
                .execute(self)
                .await
                .during("begin a transaction")?;
        }
        Ok(())
    }
}

/// The advisory lock of the first [`Turn`]: "holm" in ASCII, so that others in the same database
/// are unlikely to use it.
const TURNS: i64 = 0x686f_6c6d << 8;

/// A number for the database, whose integers are signed. What may come from outside is checked to fit
/// before it gets here.
fn int(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// A number from the database; what is stored is never negative.
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
