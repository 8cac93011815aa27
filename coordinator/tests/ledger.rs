//! Usage over a real link: stored before it is acknowledged, and each execution once.
#![allow(clippy::unwrap_used)]

mod common;

use common::Coordinator;
use common::node::{Control, Identity, bulk, connect, hello, join};
use holm_model::api::{AuditView, UsageRecordsPage, UsageView};
use holm_model::chain::{self, NOTHING_BEFORE};
use holm_model::control::{BulkAnswer, BulkRequest};
use holm_model::ids::{Digest, RequestId};
use holm_model::usage::{Outcome, UsageRecord};
use holm_model::usage_batch::{PackedRecords, UsageBatch};
use rcgen::{KeyPair, SigningKey as _};

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

/// A node and its chain.
struct Node {
    control: Control,
    identity: Identity,
    previous: Digest,
}

async fn node(coordinator: &Coordinator) -> Node {
    let token = coordinator.join_token().await;
    let identity = join(coordinator.quic, &token, "edge-1").await.unwrap();
    Node {
        control: connect(coordinator.quic, &identity, hello(1)).await,
        previous: chain::genesis(&identity.name, 1, NOTHING_BEFORE),
        identity,
    }
}

impl Node {
    fn sign(&self, records: &[UsageRecord]) -> UsageBatch {
        let mut batch = UsageBatch {
            boot_epoch: 1,
            first: records[0].sequence,
            previous: self.previous,
            hash: NOTHING_BEFORE,
            signature: Vec::new(),
            records: PackedRecords::pack(records),
        };
        let place = batch.place().unwrap();
        let leaves: Vec<_> = records.iter().map(chain::leaf).collect();
        batch.hash = chain::batch_hash(&self.identity.name, &place, &leaves);
        let key = KeyPair::try_from(&self.identity.key[..]).unwrap();
        batch.signature = key.sign(&chain::to_sign(batch.hash)).unwrap();
        batch
    }

    async fn send(&self, batch: &UsageBatch) -> BulkAnswer {
        let request = BulkRequest::Usage(batch.clone());
        bulk(&self.control.connection, &request).await.0
    }

    async fn upload(&mut self, records: &[UsageRecord]) -> BulkAnswer {
        let batch = self.sign(records);
        let answer = self.send(&batch).await;
        if matches!(answer, BulkAnswer::UsageStored { .. }) {
            self.previous = batch.hash;
        }
        answer
    }
}

fn records(sequences: std::ops::RangeInclusive<u64>) -> Vec<UsageRecord> {
    sequences.map(record).collect()
}

#[tokio::test]
async fn a_batch_sent_twice_is_acknowledged_twice_and_entered_once() {
    let coordinator = Coordinator::start().await;
    let node = node(&coordinator).await;
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
    let mut node = node(&coordinator).await;
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
    let mut node = node(&coordinator).await;
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
