//! What stays of a node's records when they are no longer kept: how far they went in one boot epoch, where the chain
//! stood there, and what was in them.
//!
//! A checkpoint is an audit that stopped at the end of a batch: the next one goes on from it. So records go only after
//! they were audited once more, and what they came to stays provable by the fleet's authority, which signs it. The
//! chain goes on from the checkpoint's head as it would from the batch itself; who puts an older checkpoint, or none,
//! in its place breaks that link.

use std::collections::{BTreeMap, BTreeSet};

use holm_model::chain::Place;
use holm_model::ids::{Digest, Name};
use holm_model::usage::{Outcome, UsageRecord};
use serde::{Deserialize, Serialize};

use super::chain::{Head, has_said};
use crate::ca::{Authority, CaError};
use crate::store::{NamedQuantities, add_quantities};

/// Raised when the meaning of a field changes.
const FORMAT: u64 = 1;
/// What is signed is this and the text.
const CONTEXT: &[u8] = b"holm usage checkpoint 1\0";

/// The records of one boot epoch of a node up to a sequence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Checkpoint {
    holm_usage_checkpoint: u64,
    pub(crate) node: Name,
    pub(crate) boot_epoch: u64,
    /// Lowest sequence.
    pub(crate) first: u64,
    /// Highest sequence.
    pub(crate) last: u64,
    pub(crate) rows: u64,
    /// Rows in no batch, from before usage was chained.
    pub(crate) unchained: u64,
    pub(crate) batches: u64,
    /// The epoch's first batch.
    pub(crate) begins: Option<Begin>,
    /// Its newest one.
    pub(crate) head: Option<CheckpointHead>,
    /// Fingerprints of the certificates whose keys have signed batches of it.
    pub(crate) signers: BTreeSet<Digest>,
    /// Where it does not follow what was before it, since an operator let the node in anew.
    pub(crate) breaks: Vec<ChainBreak>,
    /// How many records ended in which way, probes included.
    pub(crate) outcomes: BTreeMap<Outcome, u64>,
    pub(crate) probes: u64,
    /// What they add up to, probes excluded, by the columns of `usage_sums`.
    pub(crate) sums: NamedQuantities,
}

/// An epoch's first batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Begin {
    pub(crate) first: u64,
    /// What it has before it: the epoch's genesis, if nothing is missing.
    pub(crate) previous: Digest,
}

/// The newest batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CheckpointHead {
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) hash: Digest,
}

/// A batch that does not follow the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ChainBreak {
    pub(crate) first: u64,
    pub(crate) last: u64,
    /// It begins a chain; otherwise something between is missing.
    pub(crate) anew: bool,
}

/// A checkpoint as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SignedCheckpoint {
    /// JSON.
    pub(crate) text: String,
    /// By the fleet's authority.
    pub(crate) signature: Vec<u8>,
}

impl Checkpoint {
    /// Of an epoch of which nothing was read yet.
    pub(super) fn nothing(node: Name, boot_epoch: u64) -> Self {
        Checkpoint {
            holm_usage_checkpoint: FORMAT,
            node,
            boot_epoch,
            first: 0,
            last: 0,
            rows: 0,
            unchained: 0,
            batches: 0,
            begins: None,
            head: None,
            signers: BTreeSet::new(),
            breaks: Vec::new(),
            outcomes: BTreeMap::new(),
            probes: 0,
            sums: NamedQuantities::new(),
        }
    }

    pub(super) fn add_batch(&mut self, place: &Place, hash: Digest, signer: Digest) {
        let (first, last) = (place.first, place.last);
        let previous = place.previous;
        self.begins.get_or_insert(Begin { first, previous });
        self.head = Some(CheckpointHead { first, last, hash });
        self.signers.insert(signer);
        self.batches += 1;
        self.last = self.last.max(last);
    }

    /// A row; `record` is none if it cannot be read.
    pub(super) fn add_row(&mut self, sequence: u64, record: Option<&UsageRecord>) {
        if self.rows == 0 {
            self.first = sequence;
        }
        self.rows += 1;
        self.last = self.last.max(sequence);
        let Some(record) = record else { return };
        *self.outcomes.entry(record.outcome).or_default() += 1;
        match record.probe {
            true => self.probes += 1,
            false => add_quantities(&mut self.sums, record),
        }
    }

    /// Sequences up to the highest of which there was no row.
    pub(super) fn missing(&self) -> u64 {
        self.last.saturating_sub(self.rows)
    }

    pub(crate) fn chain_head(&self) -> Option<Head> {
        self.head.map(|head| Head {
            boot_epoch: self.boot_epoch,
            last: head.last,
            hash: head.hash,
        })
    }

    /// What is signed.
    pub(crate) fn text(&self) -> String {
        serde_json::to_string(self).expect("a checkpoint is names and numbers")
    }

    pub(crate) fn sign(&self, authority: &Authority) -> Result<SignedCheckpoint, CaError> {
        let text = self.text();
        let signature = authority.sign(&[CONTEXT, text.as_bytes()].concat())?;
        Ok(SignedCheckpoint { text, signature })
    }

    /// Whether the records of a batch at this place are among those that it stands for. Of the newest batch the hash
    /// tells; of those before it that no sequence is missing, so that each was entered once.
    pub(crate) fn has(&self, place: &Place, hash: Digest) -> bool {
        match self.head {
            Some(head) if place.first == head.first => (place.last, hash) == (head.last, head.hash),
            Some(head) => place.last < head.first && self.missing() == 0,
            None => false,
        }
    }
}

impl SignedCheckpoint {
    /// What it says, if the authority of this certificate has signed it and it is of this epoch of the node.
    pub(crate) fn read(
        &self,
        authority: &[u8],
        node: &Name,
        boot_epoch: u64,
    ) -> Option<Checkpoint> {
        let signed = [CONTEXT, self.text.as_bytes()].concat();
        if !has_said(authority, &signed, &self.signature) {
            return None;
        }
        let read: Checkpoint = serde_json::from_str(&self.text).ok()?;
        let ours = read.holm_usage_checkpoint == FORMAT
            && read.node == *node
            && read.boot_epoch == boot_epoch;
        ours.then_some(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::testing::record;

    #[test]
    fn a_checkpoint_is_read_as_it_was_signed_and_not_otherwise() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::load_or_make(dir.path()).unwrap();
        let node: Name = "edge".parse().unwrap();
        let mut checkpoint = Checkpoint::nothing(node.clone(), 7);
        checkpoint.add_row(1, Some(&record(7, 1)));
        let place = Place {
            boot_epoch: 7,
            first: 1,
            last: 1,
            previous: Digest([1; 32]),
        };
        checkpoint.add_batch(&place, Digest([2; 32]), Digest([3; 32]));
        let signed = checkpoint.sign(&authority).unwrap();
        let certificate = authority.certificate();
        assert_eq!(signed.read(certificate, &node, 7), Some(checkpoint));
        assert_eq!(signed.read(certificate, &node, 8), None);
        let other: Name = "other".parse().unwrap();
        assert_eq!(signed.read(certificate, &other, 7), None);
        let mut changed = signed.clone();
        changed.text = changed.text.replace("\"rows\":1", "\"rows\":2");
        assert_ne!(changed, signed);
        assert_eq!(changed.read(certificate, &node, 7), None);
        let elsewhere = tempfile::tempdir().unwrap();
        let stranger = Authority::load_or_make(elsewhere.path()).unwrap();
        assert_eq!(signed.read(stranger.certificate(), &node, 7), None);
    }

    #[test]
    fn a_batch_is_known_by_its_place_unless_something_is_missing_there() {
        let mut checkpoint = Checkpoint::nothing("edge".parse().unwrap(), 7);
        let place = |first, last| Place {
            boot_epoch: 7,
            first,
            last,
            previous: Digest([1; 32]),
        };
        for sequence in 1..=20 {
            checkpoint.add_row(sequence, Some(&record(7, sequence)));
        }
        checkpoint.add_batch(&place(1, 10), Digest([2; 32]), Digest([3; 32]));
        checkpoint.add_batch(&place(11, 20), Digest([4; 32]), Digest([3; 32]));
        assert!(checkpoint.has(&place(1, 10), Digest([2; 32])));
        assert!(checkpoint.has(&place(11, 20), Digest([4; 32])));
        assert!(!checkpoint.has(&place(11, 20), Digest([5; 32])), "a fork");
        assert!(!checkpoint.has(&place(11, 19), Digest([4; 32])));
        assert!(!checkpoint.has(&place(6, 15), Digest([2; 32])));
        assert!(!checkpoint.has(&place(21, 30), Digest([2; 32])));
        checkpoint.rows -= 1;
        assert!(!checkpoint.has(&place(1, 10), Digest([2; 32])));
    }
}
