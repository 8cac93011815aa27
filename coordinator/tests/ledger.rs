//! Usage over a real link: stored before it is acknowledged, and each execution once.
#![allow(clippy::unwrap_used)]

mod common;

use common::Coordinator;
use common::node::{Control, bulk, connect, hello, join};
use holm_model::api::{AuditView, UsageRecordsPage, UsageView};
use holm_model::control::{BulkAnswer, BulkRequest};
use holm_model::ids::{Digest, RequestId};
use holm_model::usage::{Outcome, UsageRecord};

fn record(sequence: u64) -> UsageRecord {
    let mut request = [0; 16];
    request[..8].copy_from_slice(&sequence.to_le_bytes());
    UsageRecord {
        boot_epoch: 1,
        sequence,
        request: RequestId(request),
        function: "acme/hello".parse().unwrap(),
        version: Digest([7; 32]),
        accepted_ms: 1_700_000_000_000,
        outcome: Outcome::Answered,
        status: 200,
        queue_ns: 1,
        restore_ns: 2,
        run_ns: 3,
        cpu_ns: 4,
        memory_bytes: 64 << 20,
        request_bytes: 5,
        response_bytes: 6,
        egress_bytes: 7,
        ingress_bytes: 8,
        cold: false,
        exits: 3,
        probe: false,
    }
}

async fn node(coordinator: &Coordinator) -> Control {
    let token = coordinator.join_token().await;
    let identity = join(coordinator.quic, &token, "edge-1").await.unwrap();
    connect(coordinator.quic, &identity, hello(1)).await
}

async fn upload(control: &Control, records: Vec<UsageRecord>) -> BulkAnswer {
    bulk(&control.connection, &BulkRequest::Usage { records })
        .await
        .0
}

#[tokio::test]
async fn a_batch_sent_twice_is_acknowledged_twice_and_entered_once() {
    let coordinator = Coordinator::start().await;
    let control = node(&coordinator).await;
    let batch: Vec<_> = (1..=4096).map(record).collect();
    let first = upload(&control, batch.clone()).await;
    assert_eq!(
        first,
        BulkAnswer::UsageStored {
            new: 4096,
            known: 0
        }
    );
    let again = upload(&control, batch).await;
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
    let control = node(&coordinator).await;
    let stored = upload(&control, (1..=100).map(record).collect()).await;
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
    let control = node(&coordinator).await;
    upload(&control, vec![record(1)]).await;
    let mut other = record(1);
    other.request = RequestId([0xff; 16]);
    for (batch, says) in [
        (vec![record(0)], "sequence number 0"),
        (vec![other], "began its journal anew"),
        (
            (1..=4097).map(record).collect(),
            "more than the 4096 allowed",
        ),
    ] {
        match upload(&control, batch).await {
            BulkAnswer::Refused { reason } => assert!(reason.contains(says), "{reason}"),
            other => panic!("{other:?}"),
        }
    }
    let next = upload(&control, vec![record(2)]).await;
    assert_eq!(next, BulkAnswer::UsageStored { new: 1, known: 0 });
}
