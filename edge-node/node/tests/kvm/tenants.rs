//! Tenants on one node, one of whom is no good neighbour.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use holm_model::artifact::Statement;
use holm_model::control::Desired;
use holm_test_support::{guest, require_kvm};

use crate::common::coordinator::Coordinator;
use crate::common::http::{Client, get_http2, text};
use crate::common::program::{Broken, Version, desired, program};
use crate::common::{config, join, shutdown, start};
use crate::routed;

const ASKED: usize = 400;

/// The times that nine of ten requests took at most, and all but one in a hundred.
async fn times(to: SocketAddr) -> (Duration, Duration) {
    let mut client = Client::connect(to).await;
    let mut took = Vec::new();
    for _ in 0..ASKED {
        let began = Instant::now();
        let answer = client.get("/acme/hello/").await.unwrap();
        took.push(began.elapsed());
        assert_eq!(text(&answer), "v1");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    took.sort_unstable();
    (took[ASKED * 9 / 10], took[ASKED * 99 / 100])
}

#[tokio::test(flavor = "multi_thread")]
async fn kvm_what_one_tenant_does_to_a_node_another_hardly_feels() {
    if !require_kvm() {
        return;
    }
    let hello = Version::new("v1", 1);
    let of = |name: &'static str, artifact: Vec<u8>| {
        Version::of(artifact, move |statement: &mut Statement| {
            statement.function = format!("mallory/{name}").parse().unwrap();
            statement.manifest.rollout.probe_path = "/refused".into();
            statement.manifest.limits.cpu_ms = 300;
            statement.manifest.limits.deadline_ms = 1000;
        })
    };
    let bad = [
        hello.clone(),
        of("loops", program("loops", Broken::No)),
        of("crashes", program("crashes", Broken::No)),
        of("exhausts", std::fs::read(guest("exhausts_memory")).unwrap()),
    ];
    let coordinator = Coordinator::start().await;
    let dir = tempfile::tempdir().unwrap();
    join(&coordinator, dir.path()).await;
    let node = start(config(dir.path())).await;
    let functions = bad.iter().flat_map(|version| {
        coordinator.add_artifact(version);
        desired(1, version, None).functions
    });
    coordinator.want(Desired {
        generation: 1,
        functions: functions.collect(),
        draining: Default::default(),
    });
    for version in &bad {
        routed(&coordinator, version).await;
    }
    let to = node.addr();
    times(to).await;
    for path in [
        "/mallory/loops/loop",
        "/mallory/crashes/crash",
        "/mallory/exhausts/",
    ] {
        let (alone, alone_p99) = times(to).await;
        let over = Arc::new(AtomicBool::new(false));
        let mut callers = tokio::task::JoinSet::new();
        // Two connections, so that each thread is likely to have some of it.
        for _ in 0..4 {
            let over = over.clone();
            callers.spawn(async move {
                let mut count = 0;
                while !over.load(Ordering::Relaxed) {
                    count += get_http2(to, path, 24).await.len();
                }
                count
            });
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        let (beside, beside_p99) = times(to).await;
        over.store(true, Ordering::Relaxed);
        let count: usize = callers.join_all().await.iter().sum();
        println!(
            "beside {count} of {path}: p90 {beside:?}, alone {alone:?}; p99 {beside_p99:?}, alone {alone_p99:?}"
        );
        // On a machine that does other things as well, the last hundredth tells of those.
        let most = (alone * 3).max(Duration::from_millis(50));
        assert!(beside <= most, "{beside:?} beside {path}, {alone:?} alone");
    }
    shutdown(node).await;
}
