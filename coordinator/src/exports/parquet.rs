//! Records of usage as a Parquet file: one row for each, flat, nothing null, and the columns that bills are made of
//! beside those of the record.
//!
//! Not compressed: names and versions become a dictionary, and what is left is mostly numbers that do not repeat. So no
//! further library has to be built, and every reader can read it.

use std::io::Write;
use std::sync::Arc;

use holm_model::api::LedgerRow;
use holm_model::price::{Units, memory_kib_ms};
use parquet::data_type::{BoolType, ByteArray, ByteArrayType, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;

/// What a column is made of.
enum Values {
    Text(fn(&LedgerRow) -> String),
    Int(fn(&LedgerRow) -> u64),
    Flag(fn(&LedgerRow) -> bool),
    /// Milliseconds since 1970 UTC.
    Time(fn(&LedgerRow) -> u64),
}

use Values::{Flag, Int, Text, Time};

/// The columns, in their order. One is never renamed, removed or given another meaning.
const COLUMNS: &[(&str, Values)] = &[
    ("node", Text(|row| row.node.to_string())),
    ("boot_epoch", Int(|row| row.record.boot_epoch)),
    ("sequence", Int(|row| row.record.sequence)),
    ("request", Text(|row| row.record.request.to_string())),
    ("tenant", Text(|row| row.record.function.tenant.to_string())),
    (
        "function",
        Text(|row| row.record.function.function.to_string()),
    ),
    ("version", Text(|row| row.record.version.to_string())),
    ("accepted_ms", Time(|row| row.record.accepted_ms)),
    (
        "outcome",
        Text(|row| row.record.outcome.as_str().to_owned()),
    ),
    ("status", Int(|row| row.record.status.into())),
    ("queue_ns", Int(|row| row.record.queue_ns)),
    ("restore_ns", Int(|row| row.record.restore_ns)),
    ("run_ns", Int(|row| row.record.run_ns)),
    ("cpu_ns", Int(|row| row.record.cpu_ns)),
    ("memory_bytes", Int(|row| row.record.memory_bytes)),
    ("request_bytes", Int(|row| row.record.request_bytes)),
    ("response_bytes", Int(|row| row.record.response_bytes)),
    ("egress_bytes", Int(|row| row.record.egress_bytes)),
    ("ingress_bytes", Int(|row| row.record.ingress_bytes)),
    ("cold", Flag(|row| row.record.cold)),
    ("exits", Int(|row| row.record.exits.into())),
    ("probe", Flag(|row| row.record.probe)),
    ("memory_kib_ms", Int(|row| memory_kib_ms(&row.record))),
    ("billed_requests", Int(|row| billed(row).requests)),
    ("billed_memory_kib_ms", Int(|row| billed(row).memory_kib_ms)),
    ("billed_cpu_ns", Int(|row| billed(row).cpu_ns)),
    ("billed_egress_bytes", Int(|row| billed(row).egress_bytes)),
];

fn billed(row: &LedgerRow) -> Units {
    match row.record.probe {
        true => Units::default(),
        false => Units::of(&row.record),
    }
}

/// A file that is being written.
pub struct RecordsFile<W: Write + Send>(SerializedFileWriter<W>);

/// Writing failed: the file's errors, mostly.
#[derive(Debug, thiserror::Error)]
#[error("a Parquet file cannot be written: {0}")]
pub struct RecordsFileError(#[from] ParquetError);

impl<W: Write + Send> RecordsFile<W> {
    /// Begins a file.
    ///
    /// # Errors
    /// It cannot be written to.
    pub fn new(to: W) -> Result<Self, RecordsFileError> {
        let fields = COLUMNS.iter().map(|(name, values)| match values {
            Text(_) => format!("REQUIRED BYTE_ARRAY {name} (STRING);"),
            Int(_) => format!("REQUIRED INT64 {name};"),
            Flag(_) => format!("REQUIRED BOOLEAN {name};"),
            Time(_) => format!("REQUIRED INT64 {name} (TIMESTAMP(MILLIS,true));"),
        });
        let schema = format!("message usage {{ {} }}", fields.collect::<String>());
        let schema = Arc::new(parse_message_type(&schema)?);
        let software = concat!("holm ", env!("CARGO_PKG_VERSION")).to_owned();
        let properties = WriterProperties::builder().set_created_by(software).build();
        let writer = SerializedFileWriter::new(to, schema, Arc::new(properties))?;
        Ok(RecordsFile(writer))
    }

    /// Adds rows, which become a row group: some ten thousand at a time are right.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn add(&mut self, rows: &[LedgerRow]) -> Result<(), RecordsFileError> {
        let mut group = self.0.next_row_group()?;
        for (_, values) in COLUMNS {
            add_column(&mut group, values, rows)?;
        }
        group.close()?;
        Ok(())
    }

    /// Ends the file, which is none before.
    ///
    /// # Errors
    /// Its end cannot be written.
    pub fn finish(self) -> Result<W, RecordsFileError> {
        Ok(self.0.into_inner()?)
    }
}

/// A whole file of these rows.
pub(super) fn file(rows: &[LedgerRow]) -> Result<Vec<u8>, RecordsFileError> {
    let mut file = RecordsFile::new(Vec::new())?;
    file.add(rows)?;
    file.finish()
}

fn add_column<W: Write + Send>(
    group: &mut SerializedRowGroupWriter<'_, W>,
    values: &Values,
    rows: &[LedgerRow],
) -> Result<(), ParquetError> {
    let mut column = group.next_column()?.ok_or_else(|| {
        ParquetError::General("there are fewer columns than the schema has".to_owned())
    })?;
    match values {
        Text(of) => {
            let values: Vec<_> = rows
                .iter()
                .map(|row| ByteArray::from(of(row).into_bytes()))
                .collect();
            column
                .typed::<ByteArrayType>()
                .write_batch(&values, None, None)?;
        }
        Int(of) | Time(of) => {
            let int = |row| i64::try_from(of(row)).unwrap_or(i64::MAX);
            let values: Vec<_> = rows.iter().map(int).collect();
            column
                .typed::<Int64Type>()
                .write_batch(&values, None, None)?;
        }
        Flag(of) => {
            let values: Vec<_> = rows.iter().map(of).collect();
            column
                .typed::<BoolType>()
                .write_batch(&values, None, None)?;
        }
    }
    column.close()
}

#[cfg(test)]
mod tests {
    use parquet::file::reader::{FileReader as _, SerializedFileReader};
    use parquet::record::RowAccessor as _;

    use super::*;
    use crate::ledger::testing::records;

    #[test]
    fn what_is_written_is_read_back_in_its_order() {
        let rows: Vec<_> = records(7, 1..=300)
            .into_iter()
            .map(|record| LedgerRow {
                row: record.sequence + 5,
                node: "edge-1".parse().unwrap(),
                record,
            })
            .collect();
        let mut file = RecordsFile::new(Vec::new()).unwrap();
        file.add(&rows[..100]).unwrap();
        file.add(&rows[100..]).unwrap();
        let bytes = file.finish().unwrap();
        let reader = SerializedFileReader::new(bytes::Bytes::from(bytes)).unwrap();
        assert_eq!(reader.num_row_groups(), 2);
        let names: Vec<_> = reader
            .metadata()
            .file_metadata()
            .schema_descr()
            .columns()
            .iter()
            .map(|column| column.name().to_owned())
            .collect();
        let expected: Vec<_> = COLUMNS.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, expected);
        let read: Vec<_> = reader
            .get_row_iter(None)
            .unwrap()
            .map(Result::unwrap)
            .collect();
        assert_eq!(read.len(), 300);
        for (row, read) in rows.iter().zip(&read) {
            assert_eq!(read.get_string(0).unwrap(), "edge-1");
            assert_eq!(read.get_long(2).unwrap() as u64, row.record.sequence);
            assert_eq!(read.get_string(3).unwrap(), &row.record.request.to_string());
            assert_eq!(
                read.get_timestamp_millis(7).unwrap() as u64,
                row.record.accepted_ms
            );
            assert_eq!(read.get_bool(19).unwrap(), row.record.cold);
            assert_eq!(read.get_long(26).unwrap(), 13);
        }
    }
}
