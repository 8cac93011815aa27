//! Connecting to PostgreSQL, and looking at whether it will do.

use std::fmt;
use std::str::FromStr as _;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use sqlx::{Connection as _, Executor as _};
use tokio::time::timeout;

use super::StoreError;
use crate::limits::{DATABASE_CONNECT, MAX_DATABASE_CONNECTIONS, MAX_DATABASE_WAIT};

/// The oldest PostgreSQL that still gets repairs.
const OLDEST: i64 = 14;

/// What every connection asks of the server. A coordinator that is stopped in the middle of a
/// transaction, or whose machine has gone, must not hold up the others; and nothing that was
/// acknowledged may be lost with the server's memory, whatever the server's own setting.
const SESSION: [(&str, &str); 5] = [
    ("idle_in_transaction_session_timeout", "5s"),
    ("statement_timeout", "30s"),
    ("tcp_keepalives_idle", "5"),
    ("tcp_keepalives_interval", "2"),
    ("tcp_keepalives_count", "3"),
];

/// Where a PostgreSQL database is, and what lets the coordinator in:
/// `postgres://USER@HOST:PORT/DATABASE`. It may hold a password, and is never shown.
#[derive(Clone)]
pub struct DatabaseUrl(String);

impl From<String> for DatabaseUrl {
    fn from(url: String) -> Self {
        DatabaseUrl(url)
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DatabaseUrl(…)")
    }
}

/// A pool of connections to the database at `url`, after one connection has shown that it is there
/// and fit.
pub(super) async fn connect(DatabaseUrl(url): &DatabaseUrl) -> Result<PgPool, StoreError> {
    let options = options(url)?;
    let server = server(&options);
    let failed = |source| StoreError::Connect {
        server: server.clone(),
        source,
    };
    // Not the pool's first connection: a pool goes on trying, and does not say what went wrong.
    let mut first = timeout(DATABASE_CONNECT, PgConnection::connect_with(&options))
        .await
        .unwrap_or_else(|_| Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())))
        .map_err(failed)?;
    check(&mut first, &server).await?;
    // It has done its work, whatever becomes of the farewell.
    let _ = first.close().await;
    Ok(PgPoolOptions::new()
        .max_connections(MAX_DATABASE_CONNECTIONS)
        .acquire_timeout(MAX_DATABASE_WAIT)
        .idle_timeout(Duration::from_secs(300))
        .after_connect(|connection, _| {
            Box::pin(async move {
                let durable = "SELECT set_config('synchronous_commit', 'on', false)
                               WHERE current_setting('synchronous_commit') = 'off'";
                connection.execute(durable).await.map(|_| ())
            })
        })
        .connect_lazy_with(options))
}

/// One more connection, whose statements may take as long as they need: a migration's time grows with the ledger, and
/// other coordinators wait for it.
pub(super) fn patient(pool: &PgPool) -> PgPool {
    let options = (*pool.connect_options()).clone();
    PgPoolOptions::new()
        .max_connections(1)
        .acquire_timeout(MAX_DATABASE_WAIT)
        .connect_lazy_with(options.options([("statement_timeout", "0")]))
}

fn options(url: &str) -> Result<PgConnectOptions, StoreError> {
    if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
        return Err(StoreError::Url("it does not begin with postgres://".into()));
    }
    let options =
        PgConnectOptions::from_str(url).map_err(|error| StoreError::Url(error.to_string()))?;
    let options = match options.get_application_name() {
        None => options.application_name("holm coordinator"),
        Some(_) => options,
    };
    Ok(options.options(SESSION))
}

/// The database for people.
fn server(options: &PgConnectOptions) -> String {
    let database = options.get_database().unwrap_or(options.get_username());
    let (host, port) = (options.get_host(), options.get_port());
    match options.get_socket() {
        Some(socket) => format!("{}:{port}/{database}", socket.display()),
        None => format!("{host}:{port}/{database}"),
    }
}

async fn check(connection: &mut PgConnection, server: &str) -> Result<(), StoreError> {
    let unfit = |why: String| StoreError::Unfit {
        server: server.to_owned(),
        why,
    };
    let sql = "SELECT current_setting('server_version_num')::bigint / 10000,
                      pg_encoding_to_char(encoding)::text, pg_is_in_recovery()
               FROM pg_database WHERE datname = current_database()";
    let found: Result<(i64, String, bool), _> = sqlx::query_as(sql).fetch_one(connection).await;
    let (version, encoding, standby) = found.map_err(|source| StoreError::Connect {
        server: server.to_owned(),
        source,
    })?;
    if version < OLDEST {
        return Err(unfit(format!(
            "it is PostgreSQL {version}; Holm needs {OLDEST} or newer"
        )));
    }
    if encoding != "UTF8" {
        return Err(unfit(format!(
            "its encoding is {encoding}, which has no room for every name; make one with \
             `createdb --encoding UTF8 --template template0`"
        )));
    }
    if standby {
        return Err(unfit(
            "it is a standby, which takes no writes; give the address of the primary".into(),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use holm_test_support::Postgres;

    use super::*;
    use crate::store::Store;

    #[test]
    fn what_is_no_url_of_postgresql_is_refused_without_repeating_it() {
        for bad in [
            "mysql://root:secret@localhost/holm",
            "postgres://root:secret@localhost:port/holm",
            "secret",
        ] {
            let error = options(bad).unwrap_err().to_string();
            assert!(error.contains("postgres://USER@HOST"), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn a_server_is_named_without_its_password() {
        let named = |url| server(&options(url).unwrap());
        assert_eq!(
            named("postgres://u:secret@db.example:5433/holm"),
            "db.example:5433/holm"
        );
        assert_eq!(
            named("postgres:///holm?host=/run/pg&user=u"),
            "/run/pg:5432/holm"
        );
    }

    async fn refused(url: String) -> String {
        let error = Store::open_postgres(&url.into()).await.err().unwrap();
        error.to_string()
    }

    #[tokio::test]
    async fn who_cannot_be_let_in_or_served_is_told_why_and_what_to_do() {
        let server = Postgres::shared();
        let wrong = refused(server.url("postgres", "guessed", "postgres")).await;
        assert!(wrong.contains("the password is wrong"), "{wrong}");
        assert!(!wrong.contains("guessed"), "{wrong}");

        let nowhere = refused(server.url("postgres", "correct horse", "nowhere")).await;
        assert!(nowhere.contains("createdb --encoding UTF8"), "{nowhere}");

        let latin = server.database_with("--encoding=SQL_ASCII");
        let latin = refused(latin).await;
        assert!(latin.contains("its encoding is SQL_ASCII"), "{latin}");

        let nobody = refused("postgres://u@127.0.0.1:9/holm".into()).await;
        assert!(
            nobody.contains("127.0.0.1:9/holm") && nobody.contains("is running there"),
            "{nobody}"
        );
    }

    #[tokio::test]
    async fn a_role_that_may_not_make_tables_is_told_so() {
        let server = Postgres::shared();
        let database = server.database();
        let owner = PgPool::connect(&database).await.unwrap();
        let role =
            "CREATE ROLE guest LOGIN PASSWORD 'guest'; REVOKE CREATE ON SCHEMA public FROM PUBLIC";
        owner.execute(role).await.unwrap();
        let (_, name) = database.rsplit_once("/test").unwrap();
        let (number, _) = name.split_once('?').unwrap();
        let refused = refused(server.url("guest", "guest", &format!("test{number}"))).await;
        assert!(refused.contains("let the role make tables"), "{refused}");
    }

    #[tokio::test]
    async fn a_connection_that_the_server_ends_is_replaced() {
        let database = Postgres::shared().database();
        let store = Store::open_postgres(&database.clone().into())
            .await
            .unwrap();
        let token = holm_model::ids::Digest([1; 32]);
        store.set_admin_token("t", token, 1).await.unwrap();
        let other = PgPool::connect(&database).await.unwrap();
        let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                   WHERE datname = current_database() AND pid <> pg_backend_pid()";
        other.execute(end).await.unwrap();
        assert!(store.admin_token(token).await.unwrap().is_some());
    }
}
