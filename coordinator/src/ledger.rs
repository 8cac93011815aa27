//! The ledger: what every execution used, each once.
//!
//! Nodes send batches, each chained to the one before and signed (see [`holm_model::chain`]), until they are
//! answered. A batch that the ledger has already is known by its hash. One that is not the next in its node's chain,
//! or that its node's key has not signed, is refused, with the name of what is wrong: to enter it would hide that an
//! execution is missing, or that somebody says so in the node's name. A record's key is (node, boot epoch,
//! sequence), checked in the transaction that stores the row. Whoever doubts the ledger later can do it all again:
//! see [`audit`]. What is no longer kept of it, and how that stays provable: [`checkpoint`].

pub(crate) mod audit;
pub(crate) mod chain;
pub(crate) mod checkpoint;
#[cfg(test)]
mod retention_tests;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use holm_model::api::{AuditView, UsageRecordsPage, UsageView};
use holm_model::chain::{Place, batch_hash, leaf};
use holm_model::ids::{Digest, Name};
use holm_model::limits::{MAX_MEMORY_BYTES, MAX_RECORD_BYTES, MAX_RECORD_NS};
use holm_model::usage::UsageRecord;
use holm_model::usage_batch::{UnpackError, UsageBatch};
use rustls_pki_types::CertificateDer;

use crate::clock::Clock;
use crate::store::{
    ALWAYS_MS, RecordsFilter, Store, StoreError, StoredUsage, UsageFilter, UsageGroup,
};
use chain::Break;

/// Why a batch is not stored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LedgerError {
    #[error(
        "a batch of usage of node {node} cannot be read: {why}; the node's journal is damaged, or it runs another \
         version of Holm"
    )]
    Unreadable { node: Name, why: UnpackError },
    #[error(
        "usage record {boot_epoch}/{sequence} of node {node} claims {what}, which cannot be; the \
         node's journal is damaged, or it runs another version of Holm"
    )]
    Impossible {
        node: Name,
        boot_epoch: u64,
        sequence: u64,
        what: &'static str,
    },
    #[error(
        "the records {0} do not have the hash that the batch gives: a record was changed, removed or put in after the \
         node sealed it; the node sends it again, and if that does not help, look at the node's disk"
    )]
    WrongHash(Named),
    #[error(
        "the records {0} are not signed by the key of the certificate that was shown: somebody else has made them or \
         changed them on the way; look at who has the node's state directory, and have the node join again"
    )]
    WrongSignature(Named),
    #[error(
        "the records {0} do not follow what the ledger has of that node, which ends at {1}: what comes between is \
         missing. The ledger has lost rows (restored from a backup?), or the node's journal has; if they cannot be \
         brought back, have the node join again, with a token made for its name: the ledger then goes on, and the \
         audit names the gap"
    )]
    Gap(Named, String),
    #[error(
        "the records {0} fork the node's chain: the ledger has others in their place, up to {1}. Two nodes use one \
         identity, or the state directory was restored or copied; stop one, and give it a fresh state directory"
    )]
    Fork(Named, String),
    #[error(
        "the records {0} begin a chain, and the ledger has one of that node, up to {1}: the node's journal was \
         removed. Bring it back; if it is lost, have the node join again, with a token made for its name"
    )]
    Anew(Named, String),
    #[error(
        "the ledger has another record as {boot_epoch}/{sequence} of node {node}: the node began \
         its journal anew under an old boot epoch (was its state directory restored or copied?); \
         give it a fresh state directory and a higher epoch"
    )]
    Conflict {
        node: Name,
        boot_epoch: u64,
        sequence: u64,
    },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A batch, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    node: Name,
    place: Place,
}

impl std::fmt::Display for Named {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Place {
            boot_epoch,
            first,
            last,
            ..
        } = self.place;
        write!(f, "{boot_epoch}/{first} to {last} of node {}", self.node)
    }
}

/// A batch whose hash and signature are right.
pub(crate) struct Sealed<'a> {
    pub(crate) place: Place,
    pub(crate) hash: Digest,
    pub(crate) leaves: &'a [Digest],
    pub(crate) signature: &'a [u8],
    /// Of the key that signed.
    pub(crate) certificate: &'a [u8],
    pub(crate) received_ms: u64,
    pub(crate) records: &'a [UsageRecord],
}

/// The ledger.
#[derive(Clone, Debug)]
pub(crate) struct Ledger {
    store: Store,
    /// The certificate of the fleet's authority.
    authority: CertificateDer<'static>,
    clock: Clock,
}

impl Ledger {
    pub(crate) fn new(store: Store, authority: CertificateDer<'static>, clock: Clock) -> Self {
        Ledger {
            store,
            authority,
            clock,
        }
    }

    /// Stores a batch of the node that showed `certificate`; returns how many records were new and how many known.
    pub(crate) async fn add(
        &self,
        node: &Name,
        certificate: &[u8],
        batch: &UsageBatch,
    ) -> Result<(u64, u64), LedgerError> {
        let unreadable = |why| LedgerError::Unreadable {
            node: node.clone(),
            why,
        };
        let records = batch.unpack().map_err(unreadable)?;
        for record in &records {
            if let Some(what) = impossible(record) {
                let (boot_epoch, sequence) = (record.boot_epoch, record.sequence);
                return Err(LedgerError::Impossible {
                    node: node.clone(),
                    boot_epoch,
                    sequence,
                    what,
                });
            }
        }
        let place = batch.place();
        let place = place.ok_or_else(|| unreadable(UnpackError::Malformed))?;
        let leaves: Vec<Digest> = records.iter().map(leaf).collect();
        let named = Named {
            node: node.clone(),
            place,
        };
        if batch_hash(node, &place, &leaves) != batch.hash {
            return Err(LedgerError::WrongHash(named));
        }
        if !chain::has_signed(certificate, batch.hash, &batch.signature) {
            return Err(LedgerError::WrongSignature(named));
        }
        let sealed = Sealed {
            place,
            hash: batch.hash,
            leaves: &leaves,
            signature: &batch.signature,
            certificate,
            received_ms: self.clock.now_ms(),
            records: &records,
        };
        match self.store.add_usage(node, &sealed, &self.authority).await? {
            StoredUsage::Stored { new, known, after } => {
                if let Some(broken) = after {
                    tracing::error!(%node, batch = %named, ?broken, "a node that has joined anew does not go on where its usage ended; the audit names it");
                }
                Ok((new, known))
            }
            StoredUsage::Conflict {
                boot_epoch,
                sequence,
            } => Err(LedgerError::Conflict {
                node: node.clone(),
                boot_epoch,
                sequence,
            }),
            StoredUsage::Broken { why, head } => {
                let end = head.map_or_else(
                    || "nothing".to_owned(),
                    |head| format!("{}/{}", head.boot_epoch, head.last),
                );
                Err(match why {
                    Break::Gap => LedgerError::Gap(named, end),
                    Break::Fork => LedgerError::Fork(named, end),
                    Break::Anew => LedgerError::Anew(named, end),
                })
            }
        }
    }

    /// Sums of usage.
    pub(crate) async fn usage(
        &self,
        filter: &UsageFilter,
        group: UsageGroup,
    ) -> Result<Vec<UsageView>, StoreError> {
        self.store.usage(filter, group).await
    }

    /// Rows in the order in which they were entered, from behind row `after` on.
    pub(crate) async fn records(
        &self,
        filter: &RecordsFilter,
        after: u64,
        limit: usize,
    ) -> Result<UsageRecordsPage, StoreError> {
        self.store.usage_records(filter, after, limit).await
    }

    /// Whether the ledger is whole, by its rows, hashes and signatures.
    pub(crate) async fn audit(&self) -> Result<AuditView, StoreError> {
        self.store.audit(&self.authority).await
    }
}

/// What a record claims that cannot be.
fn impossible(record: &UsageRecord) -> Option<&'static str> {
    let signed = i64::MAX as u64;
    let bytes = record
        .request_bytes
        .max(record.response_bytes)
        .max(record.egress_bytes)
        .max(record.ingress_bytes);
    let ns = record
        .queue_ns
        .max(record.restore_ns)
        .max(record.run_ns)
        .max(record.cpu_ns);
    match record {
        _ if record.sequence == 0 => Some("sequence number 0"),
        _ if record.sequence > signed => Some("a sequence number above 2^63"),
        _ if record.boot_epoch > signed => Some("a boot epoch above 2^63"),
        _ if record.accepted_ms >= ALWAYS_MS => Some("a time after the end of time"),
        _ if record.memory_bytes > MAX_MEMORY_BYTES => Some("more memory than a function can have"),
        _ if ns > MAX_RECORD_NS => Some("more than a day of run time"),
        _ if bytes > MAX_RECORD_BYTES => Some("more than 1 PiB"),
        _ => None,
    }
}
