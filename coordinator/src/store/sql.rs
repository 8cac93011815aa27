//! One way to say SQL to both databases.
//!
//! A [`Query`] is text with a `?` for each value, and the values. The text is what SQLite and
//! PostgreSQL both understand; so there is one of it, and three rules keep it so: every number and
//! flag is a 64-bit integer, sums are cast back to one, and text compares by its bytes (PostgreSQL's
//! columns are declared that way). PostgreSQL numbers its placeholders, which is seen to here.

use std::borrow::Cow;

use holm_model::ids::{Digest, Name};
use sqlx::postgres::{PgArguments, PgPool, PgRow};
use sqlx::sqlite::{SqliteArguments, SqlitePool, SqliteRow};
use sqlx::{Arguments, AssertSqlSafe, Decode, Encode, FromRow, Postgres, Row as _, Sqlite, Type};

use super::{During as _, StoreError, int};
use crate::limits::LEDGER_CHUNK_ROWS;

/// On which coordinators listen for what others have changed.
pub(super) const CHANNEL: &str = "holm";

/// A value in a statement.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Int(Option<i64>),
    Text(Option<String>),
    Bytes(Option<Vec<u8>>),
}

/// A statement and its values.
#[derive(Clone, Debug)]
pub(super) struct Query {
    text: Cow<'static, str>,
    values: Vec<Value>,
}

/// A transaction. Dropped, it is rolled back.
pub(super) enum Transaction {
    Sqlite(sqlx::Transaction<'static, Sqlite>),
    Postgres(sqlx::Transaction<'static, Postgres>),
}

/// Where a statement is run.
pub(super) enum On<'a> {
    Sqlite(&'a SqlitePool),
    Postgres(&'a PgPool),
    In(&'a mut Transaction),
}

/// What a statement gives: a row of either database.
#[derive(Debug)]
pub(super) enum Row {
    Sqlite(SqliteRow),
    Postgres(PgRow),
}

/// A type that both databases can give in a column.
pub(super) trait Column:
    for<'r> Decode<'r, Sqlite> + Type<Sqlite> + for<'r> Decode<'r, Postgres> + Type<Postgres>
{
}

impl<T> Column for T where
    T: for<'r> Decode<'r, Sqlite> + Type<Sqlite> + for<'r> Decode<'r, Postgres> + Type<Postgres>
{
}

/// A tuple of columns.
pub(super) trait Columns:
    for<'r> FromRow<'r, SqliteRow> + for<'r> FromRow<'r, PgRow>
{
}

impl<T> Columns for T where T: for<'r> FromRow<'r, SqliteRow> + for<'r> FromRow<'r, PgRow> {}

/// A statement. The text is a constant of this module's, never input.
pub(super) fn query(text: impl Into<Cow<'static, str>>) -> Query {
    Query {
        text: text.into(),
        values: Vec::new(),
    }
}

/// Runs a query by one of sqlx's methods, wherever it is to run.
macro_rules! run {
    ($query:expr, $on:expr, $method:ident) => {
        match $on {
            On::Sqlite(pool) => run!($query.for_sqlite(), pool, $method, Sqlite),
            On::In(Transaction::Sqlite(tx)) => {
                run!($query.for_sqlite(), &mut **tx, $method, Sqlite)
            }
            On::Postgres(pool) => run!($query.for_postgres(), pool, $method, Postgres),
            On::In(Transaction::Postgres(tx)) => {
                run!($query.for_postgres(), &mut **tx, $method, Postgres)
            }
        }
    };
    ($query:expr, $executor:expr, $method:ident, $database:ident) => {{
        let (text, arguments) = $query?;
        let result = sqlx::query_with(text, arguments).$method($executor).await;
        result.map(Either::$database)
    }};
}

/// A result of either database.
enum Either<S, P> {
    Sqlite(S),
    Postgres(P),
}

impl Query {
    /// The value of the next `?`.
    pub(super) fn bind(mut self, value: impl Into<Value>) -> Self {
        self.values.push(value.into());
        self
    }

    /// More text.
    pub(super) fn push(&mut self, text: &str) -> &mut Self {
        self.text.to_mut().push_str(text);
        self
    }

    /// A placeholder and its value.
    pub(super) fn push_bind(&mut self, value: impl Into<Value>) -> &mut Self {
        self.text.to_mut().push('?');
        self.values.push(value.into());
        self
    }

    /// A list of placeholders in parentheses, and its values.
    pub(super) fn push_row(&mut self, values: impl IntoIterator<Item = Value>) -> &mut Self {
        let before = self.values.len();
        self.values.extend(values);
        let text = self.text.to_mut();
        text.push('(');
        let new = before..self.values.len();
        text.extend(new.map(|index| if index > before { ", ?" } else { "?" }));
        text.push(')');
        self
    }

    /// Such lists, one after the other.
    pub(super) fn push_rows<V>(&mut self, rows: impl IntoIterator<Item = V>) -> &mut Self
    where
        V: IntoIterator<Item = Value>,
    {
        for (index, row) in rows.into_iter().enumerate() {
            self.push(if index > 0 { ", " } else { "" }).push_row(row);
        }
        self
    }

    /// Runs it, and returns how many rows it changed.
    pub(super) async fn execute<'a>(self, on: impl Into<On<'a>>) -> Result<u64, sqlx::Error> {
        self.execute_on(on.into()).await
    }

    /// Its rows.
    pub(super) async fn rows<'a>(self, on: impl Into<On<'a>>) -> Result<Vec<Row>, sqlx::Error> {
        self.rows_on(on.into()).await
    }

    /// Its rows as tuples.
    pub(super) async fn all<'a, T: Columns>(
        self,
        on: impl Into<On<'a>>,
    ) -> Result<Vec<T>, sqlx::Error> {
        let rows = self.rows_on(on.into()).await?;
        rows.iter().map(Row::columns).collect()
    }

    /// Its first row as a tuple, if it gives any.
    pub(super) async fn optional<'a, T: Columns>(
        self,
        on: impl Into<On<'a>>,
    ) -> Result<Option<T>, sqlx::Error> {
        let row = self.row_on(on.into()).await?;
        row.as_ref().map(Row::columns).transpose()
    }

    /// Whether it gives a row.
    pub(super) async fn found<'a>(self, on: impl Into<On<'a>>) -> Result<bool, sqlx::Error> {
        Ok(self.row_on(on.into()).await?.is_some())
    }

    /// The one row that it gives.
    pub(super) async fn one<'a, T: Columns>(self, on: impl Into<On<'a>>) -> Result<T, sqlx::Error> {
        self.optional(on).await?.ok_or(sqlx::Error::RowNotFound)
    }

    // What sqlx makes of a query is much code; here it is once for all types of rows.

    async fn execute_on(self, on: On<'_>) -> Result<u64, sqlx::Error> {
        Ok(match run!(self, on, execute)? {
            Either::Sqlite(done) => done.rows_affected(),
            Either::Postgres(done) => done.rows_affected(),
        })
    }

    async fn rows_on(self, on: On<'_>) -> Result<Vec<Row>, sqlx::Error> {
        Ok(match run!(self, on, fetch_all)? {
            Either::Sqlite(rows) => rows.into_iter().map(Row::Sqlite).collect(),
            Either::Postgres(rows) => rows.into_iter().map(Row::Postgres).collect(),
        })
    }

    async fn row_on(self, on: On<'_>) -> Result<Option<Row>, sqlx::Error> {
        Ok(match run!(self, on, fetch_optional)? {
            Either::Sqlite(row) => row.map(Row::Sqlite),
            Either::Postgres(row) => row.map(Row::Postgres),
        })
    }

    fn for_sqlite(
        self,
    ) -> Result<(AssertSqlSafe<Cow<'static, str>>, SqliteArguments), sqlx::Error> {
        Ok((AssertSqlSafe(self.text), arguments(self.values)?))
    }

    fn for_postgres(self) -> Result<(AssertSqlSafe<String>, PgArguments), sqlx::Error> {
        Ok((AssertSqlSafe(numbered(&self.text)), arguments(self.values)?))
    }
}

/// The values as a database takes them.
fn arguments<A: Arguments>(values: Vec<Value>) -> Result<A, sqlx::Error>
where
    for<'v> Option<i64>: Encode<'v, A::Database> + Type<A::Database>,
    for<'v> Option<String>: Encode<'v, A::Database> + Type<A::Database>,
    for<'v> Option<Vec<u8>>: Encode<'v, A::Database> + Type<A::Database>,
{
    let mut arguments = A::default();
    for value in values {
        match value {
            Value::Int(value) => arguments.add(value),
            Value::Text(value) => arguments.add(value),
            Value::Bytes(value) => arguments.add(value),
        }
        .map_err(sqlx::Error::Encode)?;
    }
    Ok(arguments)
}

/// Rows in the form of PostgreSQL's COPY, binary: a number of fields, then each with its length, big-endian (its manual,
/// on COPY, "Binary Format").
fn copied<const N: usize>(rows: impl Iterator<Item = [Value; N]>) -> Vec<u8> {
    let mut bytes = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0".to_vec();
    for row in rows {
        bytes.extend((N as i16).to_be_bytes());
        for value in &row {
            let int;
            let field: Option<&[u8]> = match value {
                Value::Int(value) => {
                    int = value.map(i64::to_be_bytes);
                    int.as_ref().map(|int| &int[..])
                }
                Value::Text(value) => value.as_ref().map(|text| text.as_bytes()),
                Value::Bytes(value) => value.as_deref(),
            };
            let length = field.map_or(-1, |field| field.len() as i32);
            bytes.extend(length.to_be_bytes());
            bytes.extend(field.unwrap_or_default());
        }
    }
    bytes.extend((-1_i16).to_be_bytes());
    bytes
}

/// The text with `$1`, `$2` and so on in place of `?`, which no text of ours has for anything else.
fn numbered(text: &str) -> String {
    let mut parts = text.split('?');
    let mut numbered = parts.next().unwrap_or_default().to_owned();
    for (number, part) in (1_usize..).zip(parts) {
        numbered.push('$');
        numbered.push_str(&number.to_string());
        numbered.push_str(part);
    }
    numbered
}

impl Row {
    /// A column by its name.
    pub(super) fn get<T: Column>(&self, column: &str) -> Result<T, sqlx::Error> {
        match self {
            Row::Sqlite(row) => row.try_get(column),
            Row::Postgres(row) => row.try_get(column),
        }
    }

    fn columns<T: Columns>(&self) -> Result<T, sqlx::Error> {
        match self {
            Row::Sqlite(row) => T::from_row(row),
            Row::Postgres(row) => T::from_row(row),
        }
    }
}

impl Transaction {
    /// Wakes the other coordinators when it commits; SQLite has none.
    pub(super) async fn notify(&mut self) -> Result<(), StoreError> {
        if let Transaction::Postgres(_) = self {
            query("SELECT pg_notify(?, '')")
                .bind(CHANNEL)
                .execute(self)
                .await
                .during("wake the other coordinators")?;
        }
        Ok(())
    }

    /// Inserts rows, of which none may be there, in the quickest way that the database has: PostgreSQL by COPY, SQLite
    /// by statements of many rows.
    pub(super) async fn enter<const N: usize>(
        &mut self,
        table: &str,
        columns: &str,
        rows: impl Iterator<Item = [Value; N]>,
    ) -> Result<(), sqlx::Error> {
        match self {
            Transaction::Postgres(tx) => {
                let sql = format!("COPY {table} ({columns}) FROM STDIN WITH (FORMAT binary)");
                let mut copy = (**tx).copy_in_raw(&sql).await?;
                copy.send(copied(rows)).await?;
                copy.finish().await.map(|_| ())
            }
            Transaction::Sqlite(_) => {
                let rows: Vec<_> = rows.collect();
                for chunk in rows.chunks(LEDGER_CHUNK_ROWS) {
                    let mut insert = query(format!("INSERT INTO {table} ({columns}) VALUES "));
                    insert.push_rows(chunk.iter().cloned());
                    insert.execute(&mut *self).await?;
                }
                Ok(())
            }
        }
    }

    /// What refers to what is compared when it commits.
    pub(super) async fn defer_constraints(&mut self) -> Result<(), StoreError> {
        let sql = match self {
            Transaction::Sqlite(_) => "PRAGMA defer_foreign_keys = ON",
            Transaction::Postgres(_) => "SET CONSTRAINTS ALL DEFERRED",
        };
        let done = query(sql).execute(self).await;
        done.during("defer constraints").map(|_| ())
    }

    /// Until its end, nobody else writes to these tables. SQLite has one writer anyway.
    pub(super) async fn lock_out(&mut self, tables: &[&str]) -> Result<(), StoreError> {
        if let Transaction::Postgres(_) = self {
            let sql = format!("LOCK TABLE {} IN EXCLUSIVE MODE", tables.join(", "));
            query(sql).execute(self).await.during("lock the tables")?;
        }
        Ok(())
    }

    /// The numbers that the database gives in this column go on after the largest that is there, as
    /// SQLite's do by themselves.
    pub(super) async fn go_on_after(
        &mut self,
        table: &str,
        column: &str,
    ) -> Result<(), StoreError> {
        if let Transaction::Postgres(_) = self {
            let sql = format!(
                "SELECT setval(pg_get_serial_sequence('{table}', '{column}'),
                               (SELECT COALESCE(MAX({column}), 0) + 1 FROM {table}), false)"
            );
            let done = query(sql).execute(self).await;
            done.during("go on with numbers")?;
        }
        Ok(())
    }

    /// The numbers that the database gives to rows of usage are higher than `row`, whatever rows there are.
    pub(super) async fn number_usage_after(&mut self, row: u64) -> Result<(), StoreError> {
        const DOING: &str = "go on with numbers";
        match self {
            Transaction::Postgres(_) => {
                query(
                    "SELECT setval(pg_get_serial_sequence('usage', 'row'),
                                   GREATEST(?, (SELECT COALESCE(MAX(row), 0) FROM usage)) + 1, false)",
                )
                .bind(row)
                .execute(self)
                .await
                .during(DOING)?;
            }
            Transaction::Sqlite(_) => {
                // There is a row of it only once the table has had one.
                query(
                    "INSERT INTO sqlite_sequence (name, seq)
                     SELECT 'usage', 0 WHERE NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = 'usage')",
                )
                .execute(&mut *self)
                .await
                .during(DOING)?;
                query("UPDATE sqlite_sequence SET seq = MAX(seq, ?) WHERE name = 'usage'")
                    .bind(row)
                    .execute(self)
                    .await
                    .during(DOING)?;
            }
        }
        Ok(())
    }

    /// Makes it last.
    pub(super) async fn commit(self, operation: &'static str) -> Result<(), StoreError> {
        match self {
            Transaction::Sqlite(tx) => tx.commit().await,
            Transaction::Postgres(tx) => tx.commit().await,
        }
        .during(operation)
    }
}

impl<'a> From<&'a mut Transaction> for On<'a> {
    fn from(tx: &'a mut Transaction) -> Self {
        On::In(tx)
    }
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Value::Int(Some(value))
    }
}

impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Value::Int(Some(int(value)))
    }
}

impl From<u32> for Value {
    fn from(value: u32) -> Self {
        Value::Int(Some(value.into()))
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Value::Int(Some(value.into()))
    }
}

impl From<Option<u64>> for Value {
    fn from(value: Option<u64>) -> Self {
        Value::Int(value.map(int))
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Value::Text(Some(value.to_owned()))
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Value::Text(Some(value))
    }
}

impl From<Option<String>> for Value {
    fn from(value: Option<String>) -> Self {
        Value::Text(value)
    }
}

impl From<&Name> for Value {
    fn from(value: &Name) -> Self {
        value.as_str().into()
    }
}

impl From<Option<&Name>> for Value {
    fn from(value: Option<&Name>) -> Self {
        Value::Text(value.map(|name| name.as_str().to_owned()))
    }
}

impl From<&[u8]> for Value {
    fn from(value: &[u8]) -> Self {
        Value::Bytes(Some(value.to_vec()))
    }
}

impl From<Digest> for Value {
    fn from(value: Digest) -> Self {
        Value::Bytes(Some(value.0.to_vec()))
    }
}

impl From<Option<Digest>> for Value {
    fn from(value: Option<Digest>) -> Self {
        Value::Bytes(value.map(|digest| digest.0.to_vec()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_numbered_for_postgresql_in_the_order_of_their_values() {
        assert_eq!(numbered("SELECT 1"), "SELECT 1");
        let text = "UPDATE t SET a = ?, b = ? WHERE c = ?";
        assert_eq!(numbered(text), "UPDATE t SET a = $1, b = $2 WHERE c = $3");
    }
}
