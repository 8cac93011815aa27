//! A coordinator that is away, forgets or talks nonsense.

use std::time::{Duration, Instant};

use holm_model::codec;
use holm_model::control::CoordinatorMessage;
use holm_model::protocol;
use holm_test_support::require_kvm;

use crate::common::coordinator::Coordinator;
use crate::common::http::{get, text};
use crate::common::program::{Version, desired};
use crate::common::{config, shutdown, snapshot_file, start, until};
use crate::{outcomes, routed, serving, serving_from};

#[tokio::test(flavor = "multi_thread")]
async fn kvm_a_node_without_coordinator_serves_what_it_has_and_catches_up_later() {
    if !require_kvm() {
        return;
    }
    let (v1, v2) = (Version::new("v1", 1), Version::new("v2", 2));
    let (mut coordinator, dir, node) = serving(&v1).await;
    let snapshot = snapshot_file(dir.path(), &v1);
    until("the snapshot is on disk", || snapshot.exists()).await;
    coordinator.stop().await;
    assert_eq!(text(&get(node.addr(), "/acme/hello/").await), "v1");
    shutdown(node).await;

    // Restarted alone: from its own disk.
    let node = start(config(dir.path())).await;
    let mut answer = get(node.addr(), "/acme/hello/").await;
    let began = Instant::now();
    while answer.status() == 503 && began.elapsed() < Duration::from_secs(20) {
        tokio::time::sleep(Duration::from_millis(20)).await;
        answer = get(node.addr(), "/acme/hello/").await;
    }
    assert_eq!(text(&answer), "v1");

    coordinator.add_artifact(&v2);
    coordinator.want(desired(2, &v2, Some(&v1)));
    coordinator.restart().await;
    routed(&coordinator, &v2).await;
    assert_eq!(text(&get(node.addr(), "/acme/hello/").await), "v2");
    // Both requests that were answered while the coordinator was away are in its ledger now.
    outcomes(&coordinator, 3).await;
    let epochs: Vec<u64> = coordinator
        .state()
        .ledger
        .iter()
        .map(|row| row.boot_epoch)
        .collect();
    let first = epochs.iter().filter(|epoch| **epoch == epochs[0]).count();
    assert!(epochs.is_sorted() && first < epochs.len(), "{epochs:?}");
    shutdown(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kvm_a_coordinator_that_talks_nonsense_is_left_and_dialled_again() {
    if !require_kvm() {
        return;
    }
    let v1 = Version::new("v1", 1);
    let (mut coordinator, _dir, node) = serving(&v1).await;
    let good = CoordinatorMessage::Desired(desired(2, &v1, None));
    let good = codec::encode(&good).unwrap();
    let mut another_version = good.clone();
    another_version[4] ^= 0xff;
    let cut_short = good[..good.len() - 1].to_vec();
    let oversized = u32::MAX.to_le_bytes().to_vec();
    let mut wrong_message = good.clone();
    wrong_message[6] = 3;
    for nonsense in [another_version, cut_short, oversized, wrong_message] {
        let sessions = coordinator.state().sessions;
        coordinator.state().nonsense = Some(nonsense);
        coordinator.stop().await;
        coordinator.restart().await;
        until("the node came, left and came again", || {
            coordinator.state().sessions >= sessions + 2
        })
        .await;
        assert_eq!(text(&get(node.addr(), "/acme/hello/").await), "v1");
    }
    outcomes(&coordinator, 4).await;
    shutdown(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kvm_a_node_gets_versions_from_and_sends_usage_to_a_coordinator_of_the_version_before() {
    if !require_kvm() {
        return;
    }
    let (v1, v2) = (Version::new("v1", 1), Version::new("v2", 2));
    let coordinator = Coordinator::start_as(protocol::Version::BEFORE).await;
    let (coordinator, _dir, node) = serving_from(coordinator, &v1, |_| {}).await;
    assert_eq!(text(&get(node.addr(), "/acme/hello/").await), "v1");
    coordinator.add_artifact(&v2);
    coordinator.want(desired(2, &v2, Some(&v1)));
    routed(&coordinator, &v2).await;
    assert_eq!(text(&get(node.addr(), "/acme/hello/").await), "v2");
    outcomes(&coordinator, 2).await;
    until("a report", || !coordinator.state().reports.is_empty()).await;
    assert_eq!(coordinator.state().sessions, 1);
    shutdown(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kvm_what_a_newer_coordinator_says_that_is_not_known_is_refused_and_the_link_goes_on() {
    if !require_kvm() {
        return;
    }
    let (v1, v2) = (Version::new("v1", 1), Version::new("v2", 2));
    let (coordinator, _dir, node) = serving(&v1).await;
    let mut unknown = codec::encode(&CoordinatorMessage::Desired(desired(2, &v1, None))).unwrap();
    unknown[6] = 99;
    coordinator.state().unknown = Some(unknown);
    coordinator.add_artifact(&v2);
    coordinator.want(desired(2, &v2, Some(&v1)));
    routed(&coordinator, &v2).await;
    until("the coordinator to be told", || {
        let state = coordinator.state();
        state
            .reports
            .iter()
            .map(|report| report.refused)
            .sum::<u64>()
            == 1
    })
    .await;
    let answer = get(node.addr(), "/.holm/metrics").await;
    let metrics = text(&answer);
    assert!(metrics.contains("\nholm_refused_messages 1\n"), "{metrics}");
    assert_eq!(coordinator.state().sessions, 1);
    shutdown(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kvm_a_lost_acknowledgement_does_not_double_a_record() {
    if !require_kvm() {
        return;
    }
    let (coordinator, _dir, node) = serving(&Version::new("v1", 1)).await;
    until("the probe is in the ledger", || {
        !coordinator.state().ledger.is_empty()
    })
    .await;
    coordinator.state().lose_acknowledgements = 2;
    for _ in 0..10 {
        assert_eq!(get(node.addr(), "/acme/hello/").await.status(), 200);
    }
    outcomes(&coordinator, 10).await;
    until("batches were sent twice", || {
        coordinator.state().duplicates > 0
    })
    .await;
    shutdown(node).await;
    let state = coordinator.state();
    let sequences: Vec<u64> = state.ledger.iter().map(|row| row.sequence).collect();
    assert_eq!(sequences, (1..=11).collect::<Vec<_>>());
}
