//! What goes wrong with the database, and who is to look into it.

use sqlx::migrate::MigrateError;
use sqlx::postgres::PgDatabaseError;

/// The database failed, or holds what it should not. The operator's to look into.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database failed.
    #[error(
        "the coordinator's database failed to {operation}: {source}; {}",
        advice(source)
    )]
    Database {
        /// What it was to do.
        operation: &'static str,
        /// The database's own words.
        source: sqlx::Error,
    },
    /// PostgreSQL is not to be had.
    #[error(
        "the coordinator cannot connect to PostgreSQL at {server}: {source}; {}",
        advice(source)
    )]
    Connect {
        /// Host and port or socket, and database; never the password.
        server: String,
        /// The driver's words, or the server's.
        source: sqlx::Error,
    },
    /// PostgreSQL is there and will not do.
    #[error("the PostgreSQL database at {server} cannot be used: {why}")]
    Unfit {
        /// As in [`StoreError::Connect`].
        server: String,
        /// Why, and what to do.
        why: String,
    },
    /// That is no PostgreSQL database's URL. The URL is not repeated, for the password in it.
    #[error(
        "the database's URL cannot be used: {0}; it is to be \
         postgres://USER@HOST:PORT/DATABASE, with the password in PGPASSWORD, ~/.pgpass or the URL"
    )]
    Url(String),
    /// A newer Holm has been here.
    #[error(
        "the coordinator's database was migrated by a newer Holm: its migration {0} is not known \
         here; run that one"
    )]
    Newer(i64),
    /// The schema cannot be brought up to date.
    #[error(
        "the coordinator's database cannot be migrated: {source}; {}",
        migration_advice(source)
    )]
    Migration {
        /// Which step, and why.
        source: MigrateError,
    },
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
    /// Whether PostgreSQL does not answer at all.
    pub fn is_unreachable(&self) -> bool {
        matches!(
            self,
            StoreError::Connect {
                source: sqlx::Error::Io(_),
                ..
            }
        )
    }

    pub(crate) fn corrupt(what: &'static str, why: impl ToString) -> Self {
        StoreError::Corrupt {
            what,
            why: why.to_string(),
        }
    }
}

impl From<MigrateError> for StoreError {
    fn from(source: MigrateError) -> Self {
        match source {
            MigrateError::VersionMissing(number) => StoreError::Newer(number),
            source => StoreError::Migration { source },
        }
    }
}

/// Names the operation of a failed statement.
pub(super) trait During<T> {
    fn during(self, operation: &'static str) -> Result<T, StoreError>;
}

impl<T> During<T> for Result<T, sqlx::Error> {
    fn during(self, operation: &'static str) -> Result<T, StoreError> {
        self.map_err(|source| StoreError::Database { operation, source })
    }
}

/// What the operator is to do.
fn advice(error: &sqlx::Error) -> &'static str {
    match error {
        sqlx::Error::Io(_) => {
            "see whether PostgreSQL is running there and can be reached from this machine"
        }
        sqlx::Error::Tls(_) => {
            "see to its certificate, and to sslmode and sslrootcert in the database's URL"
        }
        sqlx::Error::PoolTimedOut => {
            "the database does not keep up or has gone; look at its log and its load"
        }
        sqlx::Error::Configuration(_) => "correct the database's URL",
        sqlx::Error::Database(said) => match said.try_downcast_ref::<PgDatabaseError>() {
            Some(said) => postgres_advice(said.code()),
            None => SQLITE_ADVICE,
        },
        _ => "look at the database's log; if it says nothing, this is a fault of Holm's",
    }
}

const SQLITE_ADVICE: &str =
    "look at the disk that holds the state directory (full, read-only, broken?)";

/// By SQLSTATE: PostgreSQL's manual, appendix A.
fn postgres_advice(code: &str) -> &'static str {
    match code {
        "28P01" => "the password is wrong: correct it in PGPASSWORD, ~/.pgpass or the URL",
        "28000" => "let this role in, by pg_hba.conf, or give another one in the URL",
        "3D000" => {
            "make the database, with `createdb --encoding UTF8`, or correct its name in the URL"
        }
        "42501" | "3F000" => {
            "let the role make tables there: have it own the database, or GRANT CREATE ON SCHEMA"
        }
        "25006" => "this server is a standby; give the address of the primary",
        "53300" => "raise the server's max_connections",
        "53100" | "58030" => "look at the disk of the database server",
        "57P01" | "57P02" | "57P03" => "the server is starting or ending; try again when it is up",
        "40001" | "40P01" | "55P03" | "57014" => {
            "others held what was needed for too long; the work is tried again by who asked for it"
        }
        _ => "look at the log of the database server",
    }
}

fn migration_advice(error: &MigrateError) -> &'static str {
    match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => advice(error),
        MigrateError::VersionMismatch(_) => {
            "it was made by another build of Holm than released ones; restore a backup"
        }
        _ => "restore a backup",
    }
}
