//! What the node's tests share: a coordinator that plays its part of the protocol, programs, a small
//! HTTP client.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "each test binary uses a part of it, and a test may panic"
)]

pub mod coordinator;
pub mod http;
pub mod program;
pub mod tls;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use holm_node::{JoinConfig, Node, NodeConfig};

/// Where a node keeps the snapshot of a version.
pub fn snapshot_file(dir: &Path, version: &program::Version) -> PathBuf {
    let name = format!("{}.snap", version.signed.id().hex());
    dir.join("snapshots").join(name)
}

/// Settings of a node for tests.
pub fn config(dir: &Path) -> NodeConfig {
    let listen: SocketAddr = ([127, 0, 0, 1], 0).into();
    let mut config = NodeConfig::new(dir, listen, "test", "52.5,13.4".parse().unwrap());
    config.threads = 2;
    config.slots = 8;
    config
}

/// A node that has joined `coordinator` with its state in `dir`, and runs.
pub async fn node(coordinator: &coordinator::Coordinator, dir: &Path) -> Node {
    join(coordinator, dir).await;
    start(config(dir)).await
}

pub async fn join(coordinator: &coordinator::Coordinator, dir: &Path) {
    let (state_dir, token) = (dir.to_owned(), coordinator.token());
    holm_node::join(JoinConfig {
        state_dir,
        token,
        name: "n1".parse().unwrap(),
    })
    .await
    .unwrap();
}

pub async fn start(config: NodeConfig) -> Node {
    tokio::task::spawn_blocking(|| holm_node::start(config))
        .await
        .unwrap()
        .unwrap()
}

pub async fn shutdown(node: Node) {
    tokio::task::spawn_blocking(|| node.shutdown())
        .await
        .unwrap();
}

/// Waits until `what` is so; fails after a generous while.
pub async fn until(what: &str, mut so: impl FnMut() -> bool) {
    let patience = holm_test_support::patience(Duration::from_secs(30));
    let began = Instant::now();
    while !so() {
        assert!(began.elapsed() < patience, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
