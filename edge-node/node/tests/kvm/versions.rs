//! Versions come, fail and go.

use std::time::Duration;

use holm_model::usage::Outcome;
use holm_test_support::{guest, require_kvm};

use crate::common::coordinator::Coordinator;
use crate::common::http::{Client, get, text};
use crate::common::program::{Broken, Version, desired};
use crate::common::{config, node, shutdown, snapshot_file, start, until};
use crate::{routed, serving};

#[tokio::test(flavor = "multi_thread")]
async fn kvm_a_new_version_takes_over_without_a_failed_request() {
    if !require_kvm() {
        return;
    }
    let (v1, v2) = (Version::new("v1", 1), Version::new("v2", 2));
    let (coordinator, _dir, node) = serving(&v1).await;
    let address = node.addr();
    let load = tokio::spawn(async move {
        let mut client = Client::connect(address).await;
        let mut seen = Vec::new();
        while seen.last().is_none_or(|last: &String| last != "v2") {
            let answer = client.get("/acme/hello/").await.unwrap();
            assert_eq!(answer.status(), 200);
            seen.push(text(&answer).to_owned());
        }
        seen
    });
    coordinator.add_artifact(&v2);
    coordinator.want(desired(2, &v2, Some(&v1)));
    routed(&coordinator, &v2).await;
    assert_eq!(text(&get(address, "/acme/hello/").await), "v2");
    let seen = tokio::time::timeout(Duration::from_secs(10), load)
        .await
        .unwrap()
        .unwrap();
    assert!(seen.len() > 1 && seen[..seen.len() - 1].iter().all(|label| label == "v1"));
    // And back, without preparing anything.
    coordinator.want(desired(3, &v1, Some(&v2)));
    routed(&coordinator, &v1).await;
    assert_eq!(text(&get(address, "/acme/hello/").await), "v1");
    shutdown(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kvm_a_version_that_does_not_work_never_takes_a_request() {
    if !require_kvm() {
        return;
    }
    let v1 = Version::new("v1", 1);
    let (coordinator, _dir, node) = serving(&v1).await;
    let of_artifact = |counter, artifact: Vec<u8>| {
        let mut version = Version::new("v1", counter);
        version.artifact = artifact;
        version.statement.artifact = holm_model::ids::Digest::of(&version.artifact);
        version.statement.artifact_bytes = version.artifact.len() as u64;
        let key = crate::common::program::key();
        version.signed = holm_model::artifact::SignedVersion::sign(&version.statement, &key);
        version
    };
    let broken = [
        (Version::broken("v2", 2, Broken::AtStart), "cannot start"),
        (
            Version::broken("v3", 3, Broken::AtFirstRequest),
            "at the probe GET /",
        ),
        (of_artifact(4, b"#!/bin/sh\n".to_vec()), "ELF"),
        (
            of_artifact(5, std::fs::read(guest("lacks_calls")).unwrap()),
            "the last line\n\nholm: system calls that it made and that are not supported: clone, \
             execve, number 461",
        ),
    ];
    for (n, (version, why)) in broken.iter().enumerate() {
        coordinator.add_artifact(version);
        coordinator.want(desired(n as u64 + 2, version, Some(&v1)));
        until("the version has failed", || {
            coordinator.failure(version).is_some()
        })
        .await;
        let reason = coordinator.failure(version).unwrap();
        assert!(reason.contains(why), "{reason}");
        assert_eq!(text(&get(node.addr(), "/acme/hello/").await), "v1");
    }
    let crashed = |row: &&holm_model::usage::UsageRecord| row.outcome == Outcome::Crash;
    until("the probe is on record", || {
        coordinator.state().ledger.iter().any(|r| crashed(&r))
    })
    .await;
    assert!(
        coordinator
            .state()
            .ledger
            .iter()
            .filter(crashed)
            .all(|row| row.probe)
    );
    shutdown(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kvm_a_broken_off_fetch_goes_on_where_it_stopped() {
    if !require_kvm() {
        return;
    }
    let coordinator = Coordinator::start().await;
    let dir = tempfile::tempdir().unwrap();
    let v1 = Version::new("v1", 1);
    coordinator.add_artifact(&v1);
    coordinator.state().break_off_after = Some(100_000);
    coordinator.want(desired(1, &v1, None));
    let node = node(&coordinator, dir.path()).await;
    routed(&coordinator, &v1).await;
    let fetches = coordinator.state().fetches.clone();
    let index = holm_model::chunks::Index::of(&v1.artifact);
    let came =
        |(at, chunk): &(u64, holm_model::chunks::Chunk)| at + u64::from(chunk.bytes) <= 100_000;
    let came = index.placed().take_while(came).count();
    assert!(came >= 2, "{came}");
    let [first, second] = &fetches[..] else {
        panic!("{fetches:?}");
    };
    assert_eq!(
        second[..],
        first[came..],
        "what came is not asked for again"
    );
    shutdown(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kvm_an_artifact_altered_on_the_way_is_never_run() {
    if !require_kvm() {
        return;
    }
    let coordinator = Coordinator::start().await;
    let dir = tempfile::tempdir().unwrap();
    let mut v1 = Version::new("v1", 1);
    *v1.artifact.last_mut().unwrap() ^= 1;
    coordinator.add_artifact(&v1);
    coordinator.want(desired(1, &v1, None));
    let node = node(&coordinator, dir.path()).await;
    until("the version has failed", || {
        coordinator.failure(&v1).is_some()
    })
    .await;
    let reason = coordinator.failure(&v1).unwrap();
    assert!(reason.contains("digest"), "{reason}");
    assert_eq!(get(node.addr(), "/acme/hello/").await.status(), 503);
    assert_eq!(dir.path().join("artifacts").read_dir().unwrap().count(), 0);
    shutdown(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kvm_a_damaged_snapshot_is_made_anew() {
    if !require_kvm() {
        return;
    }
    // Of one that is too slow it cannot be measured how it is best restored, so there is nothing else to write.
    for probe_path in ["/", "/doze"] {
        let v1 = Version::with("v1", 1, Broken::No, |statement| {
            statement.manifest.rollout.probe_path = probe_path.into();
        });
        let (coordinator, dir, node) = serving(&v1).await;
        let snapshot = snapshot_file(dir.path(), &v1);
        until("the snapshot is on disk", || snapshot.exists()).await;
        shutdown(node).await;
        let nonsense = b"nonsense".to_vec();
        std::fs::write(&snapshot, &nonsense).unwrap();
        coordinator.state().observed = Default::default();
        let node = start(config(dir.path())).await;
        routed(&coordinator, &v1).await;
        assert_eq!(text(&get(node.addr(), "/acme/hello/").await), "v1");
        let is_there = || std::fs::read(&snapshot).is_ok_and(|file| file != nonsense);
        until("there is another on disk", is_there).await;
        shutdown(node).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kvm_a_version_that_is_not_wanted_any_more_leaves_nothing_behind() {
    if !require_kvm() {
        return;
    }
    let v1 = Version::new("v1", 1);
    let (coordinator, dir, node) = serving(&v1).await;
    let files = || {
        let count = |name| dir.path().join(name).read_dir().unwrap().count();
        (count("artifacts"), count("snapshots"))
    };
    // The artifact and its index.
    until("the snapshot is on disk", || files() == (2, 1)).await;
    coordinator.want(holm_model::control::Desired {
        generation: 2,
        functions: vec![],
        draining: Default::default(),
    });
    until("the files are gone", || files() == (0, 0)).await;
    assert_eq!(get(node.addr(), "/acme/hello/").await.status(), 404);
    shutdown(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kvm_metrics_say_how_a_version_is_restored_and_a_restart_measures_nothing_anew() {
    if !require_kvm() {
        return;
    }
    let v1 = Version::new("v1", 1);
    let (coordinator, dir, node) = serving(&v1).await;
    let snapshot = snapshot_file(dir.path(), &v1);
    until("the snapshot is on disk", || snapshot.exists()).await;
    // What was measured, to the nanosecond.
    let measured = async |node: &holm_node::Node| {
        let answer = get(node.addr(), "/.holm/metrics").await;
        let of_version = |line: &&str| line.contains(&v1.signed.id().hex());
        let lines = text(&answer).lines().filter(of_version);
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let before = measured(&node).await;
    let of = |name: &str| before.iter().filter(|line| line.starts_with(name)).count();
    assert_eq!(of("holm_restore_strategy{"), 1, "{before:?}");
    assert!(before[0].contains("function=\"acme/hello\""), "{before:?}");
    // Emulated, a request takes so long that it is not worth it.
    if !holm_test_support::is_slow() {
        assert_eq!(of("holm_restore_first_seconds{"), 4, "{before:?}");
        assert_eq!(of("holm_restore_private_bytes{"), 4, "{before:?}");
    }
    shutdown(node).await;
    coordinator.state().observed = Default::default();
    let node = start(config(dir.path())).await;
    routed(&coordinator, &v1).await;
    assert_eq!(measured(&node).await, before);
    assert_eq!(text(&get(node.addr(), "/acme/hello/").await), "v1");
    shutdown(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kvm_what_the_nodes_disk_prevents_is_done_when_the_disk_is_well_again() {
    if !require_kvm() {
        return;
    }
    let coordinator = Coordinator::start().await;
    let dir = tempfile::tempdir().unwrap();
    let node = node(&coordinator, dir.path()).await;
    let artifacts = dir.path().join("artifacts");
    std::fs::remove_dir_all(&artifacts).unwrap();
    std::fs::write(&artifacts, "in the way").unwrap();
    let v1 = Version::new("v1", 1);
    coordinator.add_artifact(&v1);
    coordinator.want(desired(1, &v1, None));
    until("the coordinator is told", || {
        coordinator.failure(&v1).is_some()
    })
    .await;
    let reason = coordinator.failure(&v1).unwrap();
    assert!(
        reason.contains("check the disk") && reason.contains("tries again"),
        "{reason}"
    );
    std::fs::remove_file(&artifacts).unwrap();
    std::fs::create_dir(&artifacts).unwrap();
    // Nobody wants it anew.
    until("it takes requests", || coordinator.is_routed(&v1)).await;
    assert_eq!(text(&get(node.addr(), "/acme/hello/").await), "v1");
    shutdown(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kvm_an_index_that_is_not_the_artifacts_is_refused_until_there_is_a_good_one() {
    if !require_kvm() {
        return;
    }
    let coordinator = Coordinator::start().await;
    let dir = tempfile::tempdir().unwrap();
    let v1 = Version::new("v1", 1);
    coordinator.add_artifact(&v1);
    coordinator.state().false_index = Some(b"nonsense".to_vec());
    coordinator.want(desired(1, &v1, None));
    let node = node(&coordinator, dir.path()).await;
    until("the coordinator is told", || {
        coordinator.failure(&v1).is_some()
    })
    .await;
    let reason = coordinator.failure(&v1).unwrap();
    assert!(reason.contains("no index"), "{reason}");
    // One of another artifact, of the same length: each chunk is refused.
    let mut other = v1.artifact.clone();
    other.reverse();
    let other = holm_model::chunks::Index::of(&other).to_bytes();
    coordinator.state().false_index = Some(other);
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    coordinator.state().false_index = None;
    until("it takes requests", || coordinator.is_routed(&v1)).await;
    assert_eq!(text(&get(node.addr(), "/acme/hello/").await), "v1");
    shutdown(node).await;
}
