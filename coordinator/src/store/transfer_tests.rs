//! Exports go from one kind of database to the other and lose nothing.

use std::collections::BTreeSet;

use super::*;
use crate::store::RecordsFilter;
use crate::store::suite::fill;
use crate::store::testing::{TestDatabase, on_both_databases};

on_both_databases! {
    an_export_that_was_cut_off_or_altered_is_not_imported,
    a_database_with_rows_takes_no_import,
}

async fn export(database: &TestDatabase) -> Vec<u8> {
    let mut out = Vec::new();
    let rows = database.store.export(&mut out).await.unwrap();
    let lines = out.iter().filter(|byte| **byte == b'\n').count() as u64;
    assert_eq!(rows + 2, lines, "a line for each row, a first and a last");
    out
}

async fn import(database: &TestDatabase, export: &[u8]) -> Result<u64, TransferError> {
    database.store.import(&mut &export[..]).await
}

#[tokio::test]
async fn what_goes_to_postgresql_and_back_is_the_same_to_the_byte() {
    let embedded = TestDatabase::sqlite().await;
    fill(&embedded.store).await;
    let exported = export(&embedded).await;
    let text = String::from_utf8(exported.clone()).unwrap();
    for table in TABLES {
        let row = format!("[\"{}\",", table.name);
        assert!(text.contains(&row), "no row of {}", table.name);
    }
    let shared = TestDatabase::postgres().await;
    import(&shared, &exported).await.unwrap();
    assert!(export(&shared).await == exported);
    let back = TestDatabase::sqlite().await;
    import(&back, &exported).await.unwrap();
    assert!(export(&back).await == exported);
    // Numbers go on behind those that came.
    for database in [shared, back] {
        let newest = database
            .store
            .usage_records(&RecordsFilter::default(), 0, 10_000)
            .await
            .unwrap();
        let newest = newest.records.last().unwrap().row;
        let dropped = database.store.dropped_so_far().await.unwrap().rows;
        assert_eq!(dropped, 2);
        crate::store::suite::one_more_row(&database.store).await;
        let more = database
            .store
            .usage_records(&RecordsFilter::default(), newest, 10)
            .await
            .unwrap();
        assert_eq!(more.records.len(), 1);
        let numbered = more.records[0].row;
        assert!(numbered > newest + dropped, "no number comes twice");
    }
}

#[tokio::test]
async fn every_column_of_every_table_is_exported() {
    let database = TestDatabase::sqlite().await;
    let columns: Vec<(String, String)> = query(
        "SELECT t.name, c.name FROM sqlite_schema AS t JOIN pragma_table_info(t.name) AS c
         WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite%' AND t.name NOT LIKE '_sqlx%'",
    )
    .all(database.store.reader())
    .await
    .unwrap();
    let there: BTreeSet<_> = columns
        .iter()
        .map(|(table, column)| (table.as_str(), column.as_str()))
        .filter(|(table, _)| !LEFT_OUT.contains(table))
        .collect();
    let exported = TABLES.iter().flat_map(|table| {
        let columns = table.columns.iter();
        columns.map(|(column, _)| (table.name, *column))
    });
    assert_eq!(exported.collect::<BTreeSet<_>>(), there);
}

async fn an_export_that_was_cut_off_or_altered_is_not_imported(database: TestDatabase) {
    let source = TestDatabase::sqlite().await;
    fill(&source.store).await;
    let whole = String::from_utf8(export(&source).await).unwrap();
    let lines: Vec<_> = whole.lines().collect();
    let cut = lines[..lines.len() - 1].join("\n");
    let mut without_one = lines.clone();
    without_one.remove(lines.len() / 2);
    let without_one = without_one.join("\n");
    let altered = whole.replace("[\"usage\",1,", "[\"usage\",\"t1\",");
    let newer = whole.replacen(&format!(":{FORMAT}}}"), ":99}", 1);
    for bad in [cut, without_one, altered, newer, String::new()] {
        let error = import(&database, bad.as_bytes()).await.err().unwrap();
        assert!(matches!(error, TransferError::Malformed { .. }), "{error}");
        assert!(
            error.to_string().contains("nothing was imported"),
            "{error}"
        );
        assert!(database.store.functions().await.unwrap().is_empty());
        assert_eq!(database.store.audit(&[]).await.unwrap().rows, 0);
    }
    import(&database, whole.as_bytes()).await.unwrap();
}

async fn a_database_with_rows_takes_no_import(database: TestDatabase) {
    fill(&database.store).await;
    let exported = export(&database).await;
    let error = import(&database, &exported).await.err().unwrap();
    assert!(matches!(error, TransferError::NotEmpty(_)), "{error}");
    assert!(export(&database).await == exported);
}
