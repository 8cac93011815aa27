//! How instances are restored and reset on this machine, as was measured: of each version that a node has prepared
//! here, or of the built-in sample where there is none.

use std::path::{Path, PathBuf};

use holm_vmm::{Choice, Cost, Hypervisor, Snapshot, sample};
use serde::Serialize;

use super::Check;

const NAME: &str = "restore";

/// What was found of one version.
#[derive(Debug, Serialize)]
pub(super) struct Restore {
    /// `tenant/function`, or `sample`.
    function: String,
    version: Option<String>,
    strategy: &'static str,
    costs: Vec<Cost>,
}

/// Looks at a node's state directory, and measures if nothing is there.
pub(super) fn checks(
    state_dir: Option<&Path>,
    hypervisor: &Hypervisor,
) -> (Vec<Restore>, Vec<Check>) {
    let mut found = Vec::new();
    let mut checks = Vec::new();
    for path in state_dir.map(snapshots).unwrap_or_default() {
        let version = path
            .file_stem()
            .map(|name| name.to_string_lossy().into_owned());
        match Snapshot::told(&path) {
            Ok(told) => {
                if let Some(choice) = told.choice {
                    add(&mut found, &mut checks, told.name, version, &choice);
                }
            }
            Err(error) => checks.push(Check::warn(
                NAME,
                error.to_string(),
                "nothing; the node makes it again when it starts",
            )),
        }
    }
    if found.is_empty() {
        match measured(hypervisor) {
            Ok(choice) => add(&mut found, &mut checks, "sample".to_owned(), None, &choice),
            Err(error) => checks.push(Check::warn(
                NAME,
                format!("the built-in sample could not be measured: {error}"),
                "see the check `machine`",
            )),
        }
    }
    (found, checks)
}

fn add(
    found: &mut Vec<Restore>,
    checks: &mut Vec<Check>,
    function: String,
    version: Option<String>,
    choice: &Choice,
) {
    const SHORT: usize = 12;
    let strategy = choice.strategy.as_str();
    let of = match &version {
        Some(version) => format!("{function} {}", version.get(..SHORT).unwrap_or(version)),
        None => format!("the built-in {function}"),
    };
    checks.push(Check::ok(
        NAME,
        format!("{of}: {strategy} (first + again, own: {choice})"),
    ));
    found.push(Restore {
        function,
        version,
        strategy,
        costs: choice.costs.clone(),
    });
}

/// The snapshots of a node, in the order of their names. None if there is no such directory.
fn snapshots(state_dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(state_dir.join("snapshots"));
    let paths = entries
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    let mut paths: Vec<PathBuf> = paths
        .filter(|path| path.extension().is_some_and(|end| end == "snap"))
        .collect();
    paths.sort();
    paths
}

fn measured(hypervisor: &Hypervisor) -> Result<Choice, String> {
    let sample =
        sample::snapshot(hypervisor, sample::MEMORY_BYTES).map_err(|error| error.to_string())?;
    let choice = Choice::make(hypervisor, &sample, u64::MAX, sample::send);
    choice.cloned().map_err(|error| error.to_string())
}
