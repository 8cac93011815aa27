//! The tables of README.md that are made of recorded results: what was measured stands there as it was.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::peers::Peers;
use crate::report::Report;

/// A table of README.md, between two comments with its name.
struct Table {
    name: &'static str,
    make: fn() -> Result<Option<String>>,
}

const TABLES: [Table; 2] = [
    Table {
        name: "bench",
        make: || Ok(recorded::<Report>("bench")?.map(|report| report.table())),
    },
    Table {
        name: "peers",
        make: || Ok(recorded::<Peers>("peers")?.map(|peers| peers.table())),
    },
];

/// The file of recorded results of that name.
fn record(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("results/{name}.json"))
}

/// Keeps results, to be committed.
pub(crate) fn keep(name: &str, results: &impl Serialize) -> Result<()> {
    let path = record(name);
    let text = serde_json::to_string_pretty(results)? + "\n";
    fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))
        .and_then(|()| fs::write(&path, text))
        .with_context(|| format!("cannot write {}", path.display()))
}

fn recorded<T: DeserializeOwned>(name: &str) -> Result<Option<T>> {
    let path = record(name);
    if !path.exists() {
        return Ok(None);
    }
    let text = fs::read_to_string(&path)?;
    let results = serde_json::from_str(&text)
        .with_context(|| format!("{} is not what a run records", path.display()))?;
    Ok(Some(results))
}

/// README.md with its tables as the recorded results have them.
fn renewed(text: &str) -> Result<String> {
    let mut text = text.to_owned();
    for Table { name, make } in &TABLES {
        let Some(table) = make()? else { continue };
        let (begin, end) = (
            format!("<!-- {name}: begin -->\n"),
            format!("<!-- {name}: end -->"),
        );
        let from = text.find(&begin).map(|at| at + begin.len());
        let from = from.with_context(|| format!("README.md has no place for the table {name}"))?;
        let to = text[from..].find(&end).map(|at| from + at);
        let to = to.with_context(|| format!("the table {name} of README.md has no end"))?;
        text.replace_range(from..to, &table);
    }
    Ok(text)
}

fn readme() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md")
}

/// Writes the tables into README.md.
pub(crate) fn renew() -> Result<()> {
    let text = fs::read_to_string(readme()).context("cannot read README.md")?;
    fs::write(readme(), renewed(&text)?).context("cannot write README.md")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_readme_tells_what_was_recorded() {
        let text = fs::read_to_string(readme()).unwrap();
        assert!(
            renewed(&text).unwrap() == text,
            "README.md differs from benches/results; run `cargo xtask bench --readme`"
        );
    }
}
