//! A whole node with real machines, and a coordinator that plays its part. All of these need
//! /dev/kvm and a C compiler.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../common/mod.rs"]
mod common;

mod answers;
mod attacks;
mod ends;
mod faults;
mod kept;
mod limits;
mod link;
mod outbound;
mod several;
mod tenants;
mod tls;
mod versions;

use holm_model::usage::Outcome;
use holm_node::{Node, NodeConfig};
use tempfile::TempDir;

use common::coordinator::Coordinator;
use common::program::{Version, desired};
use common::{config, join, start, until};

/// A node that serves `version`.
async fn serving(version: &Version) -> (Coordinator, TempDir, Node) {
    serving_with(version, |_| {}).await
}

/// The same with other settings than usual.
async fn serving_with(
    version: &Version,
    change: impl FnOnce(&mut NodeConfig),
) -> (Coordinator, TempDir, Node) {
    serving_from(Coordinator::start().await, version, change).await
}

/// The same from this coordinator.
async fn serving_from(
    coordinator: Coordinator,
    version: &Version,
    change: impl FnOnce(&mut NodeConfig),
) -> (Coordinator, TempDir, Node) {
    let dir = tempfile::tempdir().unwrap();
    join(&coordinator, dir.path()).await;
    let mut config = config(dir.path());
    change(&mut config);
    let node = start(config).await;
    coordinator.add_artifact(version);
    coordinator.want(desired(1, version, None));
    routed(&coordinator, version).await;
    (coordinator, dir, node)
}

async fn routed(coordinator: &Coordinator, version: &Version) {
    let label = &version.statement.label;
    until(&format!("{label} takes requests"), || {
        if let Some(reason) = coordinator.failure(version) {
            panic!("{label} failed: {reason}");
        }
        coordinator.is_routed(version)
    })
    .await;
}

/// The outcomes in the ledger, probes left out, once there are `count`.
async fn outcomes(coordinator: &Coordinator, count: usize) -> Vec<Outcome> {
    let callers = || -> Vec<Outcome> {
        let state = coordinator.state();
        state
            .ledger
            .iter()
            .filter(|row| !row.probe)
            .map(|row| row.outcome)
            .collect()
    };
    until(&format!("{count} records are in the ledger"), || {
        callers().len() >= count
    })
    .await;
    callers()
}
