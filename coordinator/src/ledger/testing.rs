//! A fleet for the ledger's tests: nodes that have joined, and chain and sign what they are given.

use std::collections::BTreeMap;
use std::sync::Mutex;

use holm_model::chain::{self, NOTHING_BEFORE};
use holm_model::ids::{Digest, Name, RequestId};
use holm_model::usage::{Outcome, UsageRecord};
use holm_model::usage_batch::{PackedRecords, UsageBatch};
use rcgen::{CertificateParams, KeyPair, SigningKey as _};
use rustls_pki_types::CertificateDer;

use super::chain::Head;
use super::{Ledger, LedgerError};
use crate::ca::Authority;
use crate::clock::Clock;
use crate::store::{Dropped, Store};

/// A ledger and the nodes that fill it.
pub(crate) struct TestFleet {
    pub(crate) ledger: Ledger,
    store: Store,
    authority: Authority,
    nodes: Mutex<BTreeMap<Name, TestNode>>,
}

/// A node's key, certificate and journal.
#[derive(Clone)]
pub(crate) struct TestNode {
    pub(crate) name: Name,
    key: std::sync::Arc<KeyPair>,
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) head: Option<Head>,
}

impl TestFleet {
    pub(crate) fn new(store: &Store) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::load_or_make(dir.path()).unwrap();
        let certificate = authority.certificate().clone();
        TestFleet {
            ledger: Ledger::new(store.clone(), certificate, Clock::start()),
            store: store.clone(),
            authority,
            nodes: Mutex::default(),
        }
    }

    /// A machine that joins under this name, with a new key and an empty journal.
    pub(crate) fn join(&self, name: &str) -> TestNode {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(Vec::new()).unwrap();
        let csr = params.serialize_request(&key).unwrap();
        let name: Name = name.parse().unwrap();
        let day = std::time::Duration::from_secs(86_400);
        TestNode {
            certificate: self.authority.sign_node(&name, csr.der(), day).unwrap(),
            name,
            key: std::sync::Arc::new(key),
            head: None,
        }
    }

    /// Sends a batch as `node` does.
    pub(crate) async fn send(
        &self,
        node: &TestNode,
        batch: &UsageBatch,
    ) -> Result<(u64, u64), LedgerError> {
        self.ledger.add(&node.name, &node.certificate, batch).await
    }

    /// Enters records as the next batch of the node of this name.
    pub(crate) async fn add(
        &self,
        name: &Name,
        records: &[UsageRecord],
    ) -> Result<(u64, u64), LedgerError> {
        let known = self.nodes.lock().unwrap().get(name).cloned();
        let mut node = known.unwrap_or_else(|| self.join(name.as_str()));
        let batch = node.seal(records);
        let stored = self.send(&node, &batch).await?;
        self.nodes.lock().unwrap().insert(name.clone(), node);
        Ok(stored)
    }

    /// Removes the node's oldest records, however new they are.
    pub(crate) async fn drop_records(&self, node: &Name) -> Dropped {
        self.drop_entered_before(node, u64::MAX).await
    }

    pub(crate) async fn drop_entered_before(&self, node: &Name, before_ms: u64) -> Dropped {
        let dropped = self
            .store
            .drop_records(node, (before_ms, 7), &self.authority);
        dropped.await.unwrap()
    }
}

impl TestNode {
    /// The next batch, of these records of one epoch.
    pub(crate) fn seal(&mut self, records: &[UsageRecord]) -> UsageBatch {
        let boot_epoch = records[0].boot_epoch;
        let previous = match self.head {
            Some(head) if head.boot_epoch == boot_epoch => head.hash,
            Some(head) => chain::genesis(&self.name, boot_epoch, head.hash),
            None => chain::genesis(&self.name, boot_epoch, NOTHING_BEFORE),
        };
        let batch = self.sign(records, previous);
        let last = batch.first + (records.len() as u64 - 1);
        let hash = batch.hash;
        self.head = Some(Head {
            boot_epoch,
            last,
            hash,
        });
        batch
    }

    /// A batch at any place.
    pub(crate) fn sign(&self, records: &[UsageRecord], previous: Digest) -> UsageBatch {
        let mut batch = UsageBatch {
            boot_epoch: records[0].boot_epoch,
            first: records[0].sequence,
            previous,
            hash: NOTHING_BEFORE,
            signature: Vec::new(),
            records: PackedRecords::pack(records),
        };
        let leaves: Vec<_> = records.iter().map(chain::leaf).collect();
        let place = batch.place().unwrap();
        batch.hash = chain::batch_hash(&self.name, &place, &leaves);
        batch.signature = self.key.sign(&chain::to_sign(batch.hash)).unwrap();
        batch
    }
}

/// A record of a request of its own.
pub(crate) fn record(boot_epoch: u64, sequence: u64) -> UsageRecord {
    let mut request = [0; 16];
    request[..8].copy_from_slice(&boot_epoch.to_le_bytes());
    request[8..].copy_from_slice(&sequence.to_le_bytes());
    UsageRecord {
        boot_epoch,
        sequence,
        request: RequestId(request),
        function: "acme/hello".parse().unwrap(),
        version: Digest([7; 32]),
        accepted_ms: 1_700_000_000_000,
        outcome: Outcome::Answered,
        status: 200,
        queue_ns: 1,
        restore_ns: 2,
        run_ns: 1_000_001,
        cpu_ns: 4,
        memory_bytes: 64 << 20,
        request_bytes: 5,
        response_bytes: 6,
        egress_bytes: 7,
        ingress_bytes: 8,
        cold: sequence == 1,
        exits: 3,
        probe: false,
    }
}

/// Consecutive records of an epoch.
pub(crate) fn records(
    boot_epoch: u64,
    sequences: std::ops::RangeInclusive<u64>,
) -> Vec<UsageRecord> {
    sequences
        .map(|sequence| record(boot_epoch, sequence))
        .collect()
}
