//! A reader of Parquet files that is not Holm's own: DuckDB, from PyPI.
//!
//! `python3 -m venv target/duckdb && target/duckdb/bin/pip install 'duckdb==1.*'` puts it where it is found; `.ci/run`
//! does so. Where it is not, tests that need it say that they were skipped.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::skipped;

/// A Python that has it, if not in `target/duckdb`. Tests that need it fail if it is not there.
pub const DUCKDB_VARIABLE: &str = "HOLM_TEST_DUCKDB";

const SCRIPT: &str = "
import duckdb, json, sys
print(json.dumps(duckdb.sql(sys.argv[1]).fetchall(), default=str))
";

/// The rows that a query gives, as JSON. None, which is said, if there is no DuckDB here.
pub fn duckdb(sql: &str) -> Option<String> {
    let Some(python) = program() else {
        skipped("it needs DuckDB: see tests/support/src/duckdb.rs");
        return None;
    };
    let ran = Command::new(python).args(["-c", SCRIPT, sql]).output();
    let ran = ran.unwrap_or_else(|error| panic!("cannot start Python: {error}"));
    let told = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{sql}: {told}");
    Some(String::from_utf8_lossy(&ran.stdout).trim().to_owned())
}

fn program() -> Option<PathBuf> {
    if let Some(given) = std::env::var_os(DUCKDB_VARIABLE) {
        let given = PathBuf::from(given);
        assert!(
            given.is_file(),
            "{DUCKDB_VARIABLE}: there is no {}",
            given.display()
        );
        return Some(given);
    }
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let usual = workspace.join("target/duckdb/bin/python3");
    usual.is_file().then_some(usual)
}
