//! New, empty databases of both kinds, and tests that run on each.

use holm_test_support::Postgres;

use super::sql::query;
use super::{DatabaseUrl, Store, StoreError};

/// A row of `usage_checkpoints`.
pub(crate) type CheckpointRow = (String, i64, i64, String, Vec<u8>);

/// A database of a test's own.
pub(crate) struct TestDatabase {
    pub(crate) store: Store,
    /// Of a PostgreSQL database.
    pub(crate) url: Option<DatabaseUrl>,
    /// What SQLite's is in.
    directory: Option<tempfile::TempDir>,
}

impl TestDatabase {
    pub(crate) async fn sqlite() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("coordinator.db");
        TestDatabase {
            store: Store::open_sqlite(&path).await.unwrap(),
            url: None,
            directory: Some(directory),
        }
    }

    pub(crate) async fn postgres() -> Self {
        let url = DatabaseUrl::from(Postgres::shared().database());
        TestDatabase {
            store: Store::open_postgres(&url).await.unwrap(),
            url: Some(url),
            directory: None,
        }
    }

    /// Does to it what somebody may do who has it.
    pub(crate) async fn execute(&self, sql: &str) {
        let done = query(sql.to_owned()).execute(self.store.writer()).await;
        assert!(done.unwrap() > 0, "{sql} changes nothing");
    }

    /// The same, where it may change nothing.
    pub(crate) async fn run(&self, sql: &str) {
        let done = query(sql.to_owned()).execute(self.store.writer()).await;
        done.unwrap();
    }

    /// What is left of usage that is no longer kept.
    pub(crate) async fn checkpoints(&self) -> Vec<CheckpointRow> {
        let rows =
            query("SELECT node, boot_epoch, last, checkpoint, signature FROM usage_checkpoints");
        rows.all(self.store.reader()).await.unwrap()
    }

    /// Puts that in place of what is there.
    pub(crate) async fn set_checkpoints(&self, rows: &[CheckpointRow]) {
        self.run("DELETE FROM usage_checkpoints").await;
        for (node, epoch, last, text, signature) in rows {
            let mut insert = query(
                "INSERT INTO usage_checkpoints (node, boot_epoch, last, checkpoint, signature) VALUES ",
            );
            insert.push_row([
                node.as_str().into(),
                (*epoch).into(),
                (*last).into(),
                text.as_str().into(),
                signature.as_slice().into(),
            ]);
            insert.execute(self.store.writer()).await.unwrap();
        }
    }

    /// What it takes on disk, indexes included.
    pub(crate) async fn bytes(&self) -> u64 {
        let sql = match self.url {
            Some(_) => "SELECT pg_database_size(current_database())",
            None => "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size",
        };
        let (bytes,): (i64,) = query(sql).one(self.store.reader()).await.unwrap();
        bytes as u64
    }

    /// Opens it once more, as a coordinator that starts again does.
    pub(crate) async fn open_again(&self) -> Result<Store, StoreError> {
        match (&self.url, &self.directory) {
            (Some(url), _) => Store::open_postgres(url).await,
            (None, directory) => {
                let directory = directory.as_ref().unwrap().path();
                Store::open_sqlite(&directory.join("coordinator.db")).await
            }
        }
    }
}

/// Makes a test of each function, once for each kind of database.
macro_rules! on_both_databases {
    ($($name:ident),* $(,)?) => {
        mod on_sqlite {
            $(
                #[tokio::test]
                async fn $name() {
                    super::$name($crate::store::testing::TestDatabase::sqlite().await).await;
                }
            )*
        }
        mod on_postgres {
            $(
                #[tokio::test]
                async fn $name() {
                    super::$name($crate::store::testing::TestDatabase::postgres().await).await;
                }
            )*
        }
    };
}
pub(crate) use on_both_databases;
