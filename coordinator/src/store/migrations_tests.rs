//! Schemas: both the same, old ones brought up to date, newer ones left alone.

use std::collections::BTreeSet;

use holm_model::api::{AuditFault, AuditProblem};
use holm_test_support::Postgres;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};

use super::*;
use crate::store::sql::query;
use crate::store::testing::{TestDatabase, on_both_databases};
use crate::store::{DatabaseUrl, RecordsFilter, Store, StoreError, UsageFilter, UsageGroup};

on_both_databases! {
    a_database_that_a_newer_holm_has_migrated_is_left_alone,
}

/// Table, column, type, and whether it may be null.
type Columns = BTreeSet<(String, String, String, bool)>;

#[tokio::test]
async fn both_databases_have_the_same_tables_and_columns() {
    let sqlite = TestDatabase::sqlite().await;
    let of_sqlite: Vec<(String, String, String, i64)> = query(
        "SELECT t.name, c.name, c.type, c.\"notnull\" = 0 AND c.pk = 0
         FROM sqlite_schema AS t JOIN pragma_table_info(t.name) AS c
         WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite%' AND t.name NOT LIKE '_sqlx%'",
    )
    .all(sqlite.store.reader())
    .await
    .unwrap();
    let postgres = TestDatabase::postgres().await;
    let of_postgres: Vec<(String, String, String, String, Option<String>)> = query(
        "SELECT table_name::text, column_name::text, data_type::text, is_nullable::text,
                collation_name::text
         FROM information_schema.columns
         WHERE table_schema = 'public' AND table_name NOT LIKE '\\_sqlx%'",
    )
    .all(postgres.store.reader())
    .await
    .unwrap();
    let of_sqlite: Columns = of_sqlite
        .into_iter()
        .map(|(table, column, kind, null)| {
            let kind = match kind.as_str() {
                "INTEGER" => "bigint",
                "TEXT" => "text",
                "BLOB" => "bytea",
                other => panic!("{table}.{column} is {other}"),
            };
            (table, column, kind.to_owned(), null != 0)
        })
        .collect();
    let of_postgres: Columns = of_postgres
        .into_iter()
        .map(|(table, column, kind, null, collation)| {
            let by_bytes = kind != "text" || collation.as_deref() == Some("C");
            assert!(by_bytes, "{table}.{column} does not compare by its bytes");
            (table, column, kind, null == "YES")
        })
        .collect();
    assert!(of_sqlite.len() > 60);
    let differences: Vec<_> = of_sqlite.symmetric_difference(&of_postgres).collect();
    assert!(differences.is_empty(), "{differences:#?}");
}

#[tokio::test]
async fn a_database_of_the_first_schema_is_brought_up_to_date_with_what_it_has() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("coordinator.db");
    let options = SqliteConnectOptions::new().filename(&path);
    let old = SqlitePoolOptions::new()
        .connect_with(options.create_if_missing(true))
        .await
        .unwrap();
    migrator(&SQLITE[..1]).run(&old).await.unwrap();
    let (request, version) = ("11".repeat(16), "22".repeat(32));
    for (sequence, outcome, run_ns, probe) in [
        (1, "answered", 3_000_001, 0),
        (2, "crash", 3_000_001, 0),
        (3, "shed", 3_000_001, 0),
        (4, "answered", 3_000_001, 1),
        // Of a caller that went away from the queue.
        (5, "cancelled", 0, 0),
    ] {
        let insert = format!(
            "INSERT INTO usage VALUES ({sequence}, 'n1', 1, {sequence}, x'{request}', 'acme', 'hello', x'{version}', 90000000,
                                       '{outcome}', 200, 1, 2, {run_ns}, 4, 5000, 6, 7, 0, 1, {probe})"
        );
        let insert = sqlx::query(sqlx::AssertSqlSafe(insert));
        insert.execute(&old).await.unwrap();
    }
    old.close().await;
    let store = Store::open_sqlite(&path).await.unwrap();
    let usage = store.usage(&UsageFilter::default(), UsageGroup::Node).await;
    let usage = usage.unwrap();
    assert_eq!((usage[0].executions, usage[0].response_bytes), (4, 28));
    assert_eq!((usage[0].egress_bytes, usage[0].ingress_bytes), (0, 0));
    // Its sums are what they would be had the rows come now.
    let rows = store
        .usage_records(&RecordsFilter::default(), 0, 10)
        .await
        .unwrap()
        .records;
    let records: Vec<_> = rows.into_iter().map(|row| row.record).collect();
    // They were there before chains; what somebody adds to them was not.
    let outside = async || {
        let audit = store.audit(b"").await.unwrap();
        let put_in = |problem: &&AuditProblem| problem.fault == AuditFault::PutIn;
        let outside = audit.problems.iter().filter(put_in).count();
        (audit.unchained, outside)
    };
    assert_eq!(outside().await, (5, 0));
    query("UPDATE usage SET row = 9 WHERE row = 5")
        .execute(store.writer())
        .await
        .unwrap();
    assert_eq!(outside().await, (4, 1));
    for database in [TestDatabase::sqlite().await, TestDatabase::postgres().await] {
        let node = "n1".parse().unwrap();
        database.store.enter_rows(&node, &records).await.unwrap();
        for group in [
            UsageGroup::Function,
            UsageGroup::Time(60_000),
            UsageGroup::Time(3_600_000),
            UsageGroup::Time(86_400_000),
        ] {
            let all = UsageFilter::default();
            let old = store.usage(&all, group).await.unwrap();
            assert_eq!(old, database.store.usage(&all, group).await.unwrap());
            assert_eq!(
                (old[0].billed.requests, old[0].billed.memory_kib_ms),
                (2, 2 * 4 * 5)
            );
        }
    }
}

#[tokio::test]
async fn coordinators_that_start_at_once_migrate_an_empty_database_once() {
    let url = DatabaseUrl::from(Postgres::shared().database());
    let mut starts = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let url = url.clone();
        starts.spawn(async move { Store::open_postgres(&url).await.map(|_| ()) });
    }
    for start in starts.join_all().await {
        start.unwrap();
    }
}

async fn a_database_that_a_newer_holm_has_migrated_is_left_alone(database: TestDatabase) {
    let store = &database.store;
    let sql = "UPDATE _sqlx_migrations SET version = 999 WHERE version = ?";
    let newest = match database.url {
        Some(_) => POSTGRES.len(),
        None => SQLITE.len(),
    };
    let done = query(sql).bind(newest as u64).execute(store.writer()).await;
    assert_eq!(done.unwrap(), 1);
    store.close().await;
    let again = database.open_again().await;
    let error = again.err().unwrap();
    assert!(matches!(error, StoreError::Newer(999)), "{error}");
    assert!(error.to_string().contains("newer Holm"), "{error}");
}
