//! The audit: every batch's hash from the ledger's rows, every signature, every link, once more.
//!
//! It is given one node's batches and rows in their order, one at a time, so that it needs no more memory for a
//! large ledger, and names what is not as it was signed. It trusts the fleet's authority and nothing else in the
//! database. What it cannot see by itself is the end of a chain cut off, rows and batches together: for that, keep
//! the heads that an audit tells, and compare; a node that is still there says so with its next batch.
//!
//! Where records are no longer kept it begins with their [`Checkpoint`]s, and where they are about to go it ends with
//! them.

use std::collections::{BTreeMap, BTreeSet};

use holm_model::api::{AuditFault, AuditJournal, AuditNode, AuditProblem};
use holm_model::chain::{self, NOTHING_BEFORE, Place};
use holm_model::ids::{Digest, Name};
use holm_model::usage::{Outcome, UsageRecord};

use super::chain::{Break, Head, Link, follow, has_signed, is_of};
use super::checkpoint::{ChainBreak, Checkpoint};
use crate::limits::MAX_AUDIT_PROBLEMS;

/// A batch as the ledger has it.
pub(crate) struct StoredBatch {
    pub(crate) place: Place,
    pub(crate) hash: Digest,
    pub(crate) leaves: Vec<u8>,
    pub(crate) signature: Vec<u8>,
    pub(crate) signer: Digest,
    pub(crate) received_ms: u64,
}

/// A row as the ledger has it.
pub(crate) struct StoredRow {
    pub(crate) row: u64,
    pub(crate) boot_epoch: u64,
    pub(crate) sequence: u64,
    /// None if it is no record.
    pub(crate) record: Option<UsageRecord>,
}

/// What is wrong, as far as it is listed.
#[derive(Default)]
pub(crate) struct Findings {
    pub(crate) problems: Vec<AuditProblem>,
    pub(crate) left_out: u64,
    /// What is no fault, for people.
    pub(crate) notices: Vec<String>,
}

impl Findings {
    pub(crate) fn add(&mut self, problem: AuditProblem) {
        match self.problems.len() < MAX_AUDIT_PROBLEMS {
            true => self.problems.push(problem),
            false => self.left_out += 1,
        }
    }
}

/// What the ledger says of a node beside its batches and rows.
pub(crate) struct Chained {
    /// Rows up to this one may be outside of every batch, whether the node has a chain or not: as was written down when
    /// the last of them had come.
    pub(crate) unchained_upto: u64,
    /// Certificates by their fingerprints.
    pub(crate) certificates: BTreeMap<Digest, Vec<u8>>,
}

/// The audit of one node's chain.
pub(crate) struct NodeAudit<'a> {
    node: Name,
    chained: Chained,
    findings: &'a mut Findings,
    signed_before: BTreeSet<Digest>,
    head: Option<Head>,
    /// The batch whose rows come, and the next sequence in it.
    open: Option<(StoredBatch, u64)>,
    /// Each epoch as far as it was read.
    journals: BTreeMap<u64, Checkpoint>,
    /// Of those that began with a checkpoint: up to which sequence that went, and how many rows it had.
    resumed: BTreeMap<u64, (u64, u64)>,
    /// How many faults are no known gap.
    faults: u64,
}

impl<'a> NodeAudit<'a> {
    pub(crate) fn begin(
        node: Name,
        mut chained: Chained,
        authority: &[u8],
        findings: &'a mut Findings,
    ) -> Self {
        chained.certificates.retain(|fingerprint, certificate| {
            Digest::of(certificate) == *fingerprint && is_of(certificate, &node, authority)
        });
        NodeAudit {
            findings,
            signed_before: BTreeSet::new(),
            head: None,
            open: None,
            journals: BTreeMap::new(),
            resumed: BTreeMap::new(),
            faults: 0,
            chained,
            node,
        }
    }

    /// Goes on behind what is no longer kept. To be told of the epochs in their order, before anything else.
    pub(crate) fn resume(&mut self, checkpoint: Checkpoint) {
        let epoch = checkpoint.boot_epoch;
        for broken in &checkpoint.breaks {
            self.note_break(epoch, broken);
        }
        if let Some(begin) = checkpoint.begins {
            let before = self.head.map_or(NOTHING_BEFORE, |head| head.hash);
            let told = |broken: &ChainBreak| broken.first == begin.first;
            if begin.previous != chain::genesis(&self.node, epoch, before)
                && !checkpoint.breaks.iter().any(told)
            {
                self.fault(
                    AuditFault::Checkpoint,
                    (epoch, checkpoint.first, checkpoint.last),
                    "what the coordinator signed of it does not follow what it signed of the epoch before: one of \
                     the two was removed or is another one",
                );
            }
        }
        self.signed_before.extend(&checkpoint.signers);
        self.head = checkpoint.chain_head().or(self.head);
        self.resumed
            .insert(epoch, (checkpoint.last, checkpoint.rows));
        self.journals.insert(epoch, checkpoint);
    }

    /// The certificate of the fleet's authority does not vouch for a checkpoint.
    pub(crate) fn bad_checkpoint(&mut self, boot_epoch: u64) {
        self.fault(
            AuditFault::Checkpoint,
            (boot_epoch, 0, 0),
            "what is said of its records that are no longer kept is not as this fleet's coordinator signed it",
        );
    }

    /// The next batch; its rows follow.
    pub(crate) fn batch(&mut self, batch: StoredBatch) {
        self.end_batch();
        let Place {
            boot_epoch,
            first,
            last,
            ..
        } = batch.place;
        let range = (boot_epoch, first, last);
        let leaves: Vec<Digest> = batch
            .leaves
            .as_chunks::<32>()
            .0
            .iter()
            .map(|leaf| Digest(*leaf))
            .collect();
        let count = last.checked_sub(first).map(|less| less + 1);
        let node = self.node.clone();
        let whole = count == Some(leaves.len() as u64)
            && batch.leaves.len() == 32 * leaves.len()
            && chain::batch_hash(&node, &batch.place, &leaves) == batch.hash;
        if !whole {
            self.fault(
                AuditFault::Batch,
                range,
                "its leaves, place or hash were changed in the ledger",
            );
        }
        match self.chained.certificates.get(&batch.signer) {
            Some(certificate) if has_signed(certificate, batch.hash, &batch.signature) => {}
            Some(_) => self.fault(
                AuditFault::Signature,
                range,
                "its hash is not signed by the node's key: batch or signature were made or changed by somebody else",
            ),
            None => self.fault(
                AuditFault::Signature,
                range,
                "the key that signed it is not certified for the node by this fleet's authority",
            ),
        }
        let key_is_new = self.signed_before.insert(batch.signer);
        match follow(&node, self.head.as_ref(), &batch.place, key_is_new) {
            Ok(Link::Next) => {}
            Ok(Link::After(broken)) => {
                let anew = broken == Break::Anew;
                let broken = ChainBreak { first, last, anew };
                self.note_break(boot_epoch, &broken);
                self.journal(boot_epoch).breaks.push(broken);
            }
            Err(_) => self.fault(
                AuditFault::Gap,
                range,
                "it does not follow the batch before it: batches between them were removed, put in or changed",
            ),
        }
        self.head = Some(Head {
            boot_epoch,
            last,
            hash: batch.hash,
        });
        let (place, hash, signer) = (batch.place, batch.hash, batch.signer);
        self.journal(boot_epoch).add_batch(&place, hash, signer);
        self.open = Some((batch, first));
    }

    /// The next row. Rows of a batch come after it, in their order; others between batches.
    pub(crate) fn row(&mut self, row: &StoredRow) {
        self.journal(row.boot_epoch)
            .add_row(row.sequence, row.record.as_ref());
        let within = |batch: &StoredBatch| {
            batch.place.boot_epoch == row.boot_epoch
                && (batch.place.first..=batch.place.last).contains(&row.sequence)
        };
        let open = self.open.as_mut().filter(|(batch, _)| within(batch));
        let Some((batch, next)) = open else {
            return self.outside(row);
        };
        let (place, due) = (batch.place, *next);
        let index = (row.sequence - place.first) as usize;
        let leaf = row.record.as_ref().map(chain::leaf);
        let signed = batch.leaves.as_chunks::<32>().0.get(index);
        let same = leaf.is_some_and(|leaf| Some(&leaf.0) == signed);
        *next = row.sequence + 1;
        self.missing(place.boot_epoch, due, row.sequence);
        if !same {
            self.fault(
                AuditFault::Changed,
                (row.boot_epoch, row.sequence, row.sequence),
                "the row is not the record that the node signed",
            );
        }
    }

    /// What it found.
    pub(crate) fn end(mut self) -> (Vec<AuditJournal>, AuditNode) {
        self.end_batch();
        let mut sums = AuditNode {
            node: Some(self.node.clone()),
            ..AuditNode::default()
        };
        let mut journals = Vec::new();
        for (epoch, read) in &self.journals {
            let (checkpoint, dropped) = self.resumed.get(epoch).copied().unwrap_or_default();
            journals.push(AuditJournal {
                node: self.node.clone(),
                boot_epoch: *epoch,
                first: read.first,
                last: read.last,
                rows: read.rows - dropped,
                dropped,
                checkpoint,
                missing: read.missing(),
                unchained: read.unchained,
                batches: read.batches,
                head: read.head.map(|head| head.hash),
            });
            sums.admitted = sums.admitted.saturating_add(read.last);
            count(&mut sums, read);
        }
        let ended = [
            sums.answered,
            sums.function_errors,
            sums.crashes,
            sums.timeouts,
            sums.cancelled,
            sums.shed,
            sums.platform_faults,
        ];
        sums.balanced = ended.iter().sum::<u64>() == sums.admitted;
        if let Some(head) = self.head {
            sums.head = Some(head.hash);
            sums.head_boot_epoch = head.boot_epoch;
            sums.head_sequence = head.last;
        }
        (journals, sums)
    }

    /// What would be left of each epoch if all that was read went, to be told at the end of a batch; `None` if
    /// something is wrong with it.
    pub(crate) fn checkpoints(mut self) -> Option<Vec<Checkpoint>> {
        self.end_batch();
        (self.faults == 0).then(|| self.journals.into_values().collect())
    }

    fn journal(&mut self, boot_epoch: u64) -> &mut Checkpoint {
        let node = &self.node;
        self.journals
            .entry(boot_epoch)
            .or_insert_with(|| Checkpoint::nothing(node.clone(), boot_epoch))
    }

    /// A break that an operator has let pass.
    fn note_break(&mut self, boot_epoch: u64, broken: &ChainBreak) {
        let ChainBreak { first, last, anew } = *broken;
        let node = &self.node;
        match anew {
            true => self.findings.notices.push(format!(
                "the chain of node {node} begins anew at {boot_epoch}/{first}, after the node joined again: what its \
                 former journal had not uploaded is not here"
            )),
            false => self.name(
                AuditFault::Gap,
                (boot_epoch, first, last),
                "what comes before it was missing when the node joined again and went on",
            ),
        }
    }

    /// A row that is in no batch.
    fn outside(&mut self, row: &StoredRow) {
        // Before its chain began alone, and no number that the database does not give.
        if self.head.is_none() && (1..=self.chained.unchained_upto).contains(&row.row) {
            self.journal(row.boot_epoch).unchained += 1;
            return;
        }
        let what =
            "the row is in no batch that the node signed: it was put in, or the batch was removed";
        let range = (row.boot_epoch, row.sequence, row.sequence);
        self.fault(AuditFault::PutIn, range, what);
    }

    fn end_batch(&mut self) {
        if let Some((batch, next)) = self.open.take() {
            self.missing(
                batch.place.boot_epoch,
                next,
                batch.place.last.saturating_add(1),
            );
        }
    }

    /// Rows from `from` until before `until` are not there.
    fn missing(&mut self, boot_epoch: u64, from: u64, until: u64) {
        if from < until {
            self.fault(
                AuditFault::Removed,
                (boot_epoch, from, until - 1),
                "the node signed it, and its row is not there",
            );
        }
    }

    fn fault(&mut self, fault: AuditFault, range: (u64, u64, u64), why: &str) {
        self.faults += 1;
        self.name(fault, range, why);
    }

    fn name(&mut self, fault: AuditFault, (boot_epoch, first, last): (u64, u64, u64), why: &str) {
        self.findings.add(AuditProblem {
            fault,
            node: self.node.clone(),
            boot_epoch,
            first,
            last,
            why: why.to_owned(),
        });
    }
}

/// Adds what became of an epoch's requests.
fn count(sums: &mut AuditNode, read: &Checkpoint) {
    for (outcome, times) in &read.outcomes {
        let sum = match outcome {
            Outcome::Answered => &mut sums.answered,
            Outcome::FunctionError => &mut sums.function_errors,
            Outcome::Crash => &mut sums.crashes,
            Outcome::Timeout => &mut sums.timeouts,
            Outcome::Cancelled => &mut sums.cancelled,
            Outcome::Shed => &mut sums.shed,
            Outcome::PlatformFault => &mut sums.platform_faults,
        };
        *sum += times;
    }
    sums.probes += read.probes;
}
