//! Usage over a real link: stored before it is acknowledged, and each execution once.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::usage::{UsageNode, record, records};
use common::{Coordinator, until};
use holm_model::api::{AuditView, UsageRecordsPage, UsageView};
use holm_model::control::BulkAnswer;
use holm_model::ids::RequestId;
use holm_test_support::Postgres;

#[tokio::test]
async fn a_batch_sent_twice_is_acknowledged_twice_and_entered_once() {
    let coordinator = Coordinator::start().await;
    let node = UsageNode::join(&coordinator).await;
    let batch = node.sign(&records(1..=4096));
    let first = node.send(&batch).await;
    assert_eq!(
        first,
        BulkAnswer::UsageStored {
            new: 4096,
            known: 0
        }
    );
    let again = node.send(&batch).await;
    assert_eq!(
        again,
        BulkAnswer::UsageStored {
            new: 0,
            known: 4096
        }
    );
    let audit: AuditView = coordinator.client.get("/v1/usage/audit").await.expect(200);
    assert_eq!((audit.rows, audit.resent, audit.whole), (4096, 4096, true));
    let by = "/v1/usage?tenant=acme&function=hello&by=node";
    let usage: Vec<UsageView> = coordinator.client.get(by).await.expect(200);
    assert_eq!(
        (usage[0].key.as_str(), usage[0].executions),
        ("edge-1", 4096)
    );
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_the_coordinator_was_killed() {
    let mut coordinator = Coordinator::start().await;
    let mut node = UsageNode::join(&coordinator).await;
    let stored = node.upload(&records(1..=100)).await;
    assert_eq!(stored, BulkAnswer::UsageStored { new: 100, known: 0 });
    coordinator.restart().await;
    let page: UsageRecordsPage = coordinator
        .client
        .get("/v1/usage/records?function=acme/hello&after=0&limit=60")
        .await
        .expect(200);
    assert_eq!(page.records.len(), 60);
    assert_eq!(page.records[0].record, record(1));
    let next = format!("/v1/usage/records?after={}", page.next.unwrap());
    let rest: UsageRecordsPage = coordinator.client.get(&next).await.expect(200);
    assert_eq!((rest.records.len(), rest.next), (40, None));
}

#[tokio::test]
async fn a_batch_that_cannot_be_is_refused_and_the_link_goes_on() {
    let coordinator = Coordinator::start().await;
    let mut node = UsageNode::join(&coordinator).await;
    node.upload(&records(1..=1)).await;
    let mut other = record(1);
    other.request = RequestId([0xff; 16]);
    let mut unsigned = node.sign(&records(2..=2));
    unsigned.signature[10] ^= 1;
    for (batch, says) in [
        (node.sign(&[record(0)]), "sequence number 0"),
        (node.sign(&[other]), "fork the node's chain"),
        (node.sign(&records(3..=3)), "do not follow"),
        (unsigned, "not signed by the key"),
        (node.sign(&records(2..=4098)), "more than the 4096 allowed"),
    ] {
        match node.send(&batch).await {
            BulkAnswer::Refused { reason } => assert!(reason.contains(says), "{reason}"),
            other => panic!("{other:?}"),
        }
    }
    let next = node.upload(&records(2..=2)).await;
    assert_eq!(next, BulkAnswer::UsageStored { new: 1, known: 0 });
}

async fn audit(coordinator: &Coordinator) -> AuditView {
    coordinator.client.get("/v1/usage/audit").await.expect(200)
}

#[tokio::test]
async fn a_request_that_is_no_longer_kept_is_told_to_be_so_and_is_still_in_the_sums() {
    let coordinator = Coordinator::start_keeping(Duration::from_secs(2), None).await;
    let mut node = UsageNode::join(&coordinator).await;
    node.upload(&records(1..=100)).await;
    let explain = format!("/v1/requests/{}", record(7).request);
    let kept = coordinator.client.get(&explain).await;
    assert_eq!(kept.status, 200, "{}", kept.text());
    until("records that go", || async {
        audit(&coordinator).await.dropped == 100
    })
    .await;
    let gone = coordinator.client.get(&explain).await.problem(404);
    assert!(gone.detail.contains("no longer kept"), "{}", gone.detail);
    assert!(gone.detail.contains("kept for 2 s"), "{}", gone.detail);
    let audit = audit(&coordinator).await;
    assert!(audit.whole && audit.rows == 0, "{audit:?}");
    let usage: Vec<UsageView> = coordinator.client.get("/v1/usage").await.expect(200);
    assert_eq!(usage[0].executions, 100);
    // The chain goes on.
    let next = node.upload(&records(101..=110)).await;
    assert_eq!(next, BulkAnswer::UsageStored { new: 10, known: 0 });
}

#[tokio::test]
async fn of_several_coordinators_one_removes_what_is_old_and_another_one_goes_on() {
    let database = Postgres::shared().database();
    let keep = Duration::from_secs(1);
    let mut first = Coordinator::start_keeping(keep, Some(database)).await;
    let second = first.start_beside().await;
    let mut node = UsageNode::join(&first).await;
    node.upload(&records(1..=50)).await;
    node.upload(&records(51..=60)).await;
    until("records that go", || async {
        audit(&second).await.dropped == 60
    })
    .await;
    first.kill();
    node.dial(&second).await;
    let more = node.upload(&records(61..=70)).await;
    assert_eq!(more, BulkAnswer::UsageStored { new: 10, known: 0 });
    until("records that go after the first is dead", || async {
        audit(&second).await.dropped == 70
    })
    .await;
    assert!(audit(&second).await.whole);
}
