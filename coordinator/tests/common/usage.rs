//! A node that uploads usage, and nothing else.

use holm_model::chain::{self, NOTHING_BEFORE};
use holm_model::control::{BulkAnswer, BulkRequest};
use holm_model::ids::{Digest, RequestId};
use holm_model::usage::{Outcome, UsageRecord};
use holm_model::usage_batch::{PackedRecords, UsageBatch};
use rcgen::{KeyPair, SigningKey as _};

use super::Coordinator;
use super::node::{Control, Identity, bulk, connect, hello, join};

pub fn record(sequence: u64) -> UsageRecord {
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

pub fn records(sequences: std::ops::RangeInclusive<u64>) -> Vec<UsageRecord> {
    sequences.map(record).collect()
}

/// A node and its chain.
pub struct UsageNode {
    pub control: Control,
    pub identity: Identity,
    previous: Digest,
}

impl UsageNode {
    pub async fn join(coordinator: &Coordinator) -> Self {
        let token = coordinator.join_token().await;
        let identity = join(coordinator.quic, &token, "edge-1").await.unwrap();
        UsageNode {
            control: connect(coordinator.quic, &identity, hello(1)).await,
            previous: chain::genesis(&identity.name, 1, NOTHING_BEFORE),
            identity,
        }
    }

    /// Dials a coordinator, which may be another one.
    pub async fn dial(&mut self, coordinator: &Coordinator) {
        self.control = connect(coordinator.quic, &self.identity, hello(1)).await;
    }

    pub fn sign(&self, records: &[UsageRecord]) -> UsageBatch {
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

    pub async fn send(&self, batch: &UsageBatch) -> BulkAnswer {
        let request = BulkRequest::Usage(batch.clone());
        bulk(&self.control.connection, &request).await.0
    }

    pub async fn upload(&mut self, records: &[UsageRecord]) -> BulkAnswer {
        let batch = self.sign(records);
        let answer = self.send(&batch).await;
        if matches!(answer, BulkAnswer::UsageStored { .. }) {
            self.previous = batch.hash;
        }
        answer
    }
}
