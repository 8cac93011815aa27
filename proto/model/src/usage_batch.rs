//! A batch of usage on the wire: its place in the node's chain, its signature, and its records without what they
//! share.
//!
//! Most of a record's bytes say again what the record before said: the epoch, the next sequence, the function and
//! its version, the memory limit, about the same time. Those are said once, which brings a batch to less than a third without a
//! compressor, and nothing can unpack to more than [`MAX_USAGE_BATCH`] records.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::chain::Place;
use crate::ids::{Digest, FunctionName, RequestId, VersionId};
use crate::limits::MAX_USAGE_BATCH;
use crate::usage::{Outcome, UsageRecord};

/// Consecutive records of one boot epoch, chained and signed; see [`crate::chain`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageBatch {
    /// The epoch of all its records.
    pub boot_epoch: u64,
    /// Sequence of the first of them.
    pub first: u64,
    /// Hash of the batch before, or the epoch's genesis.
    pub previous: Digest,
    /// Its own hash.
    pub hash: Digest,
    /// Of the hash, by the key of the certificate that the node shows on this link.
    pub signature: Vec<u8>,
    /// Its records.
    pub records: PackedRecords,
}

/// Records without what they share.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackedRecords {
    versions: Vec<Version>,
    base_ms: u64,
    records: Vec<PackedRecord>,
}

/// A batch's records cannot be unpacked; the node is to blame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnpackError {
    /// Of an empty batch nothing can be chained.
    #[error("it has no records")]
    Empty,
    /// More than [`MAX_USAGE_BATCH`].
    #[error("it has {0} usage records, more than the {MAX_USAGE_BATCH} allowed")]
    TooMany(usize),
    /// It names a version that it does not list, or a number leaves its range.
    #[error("a record in it refers to what is not there")]
    Malformed,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct Version {
    function: FunctionName,
    version: VersionId,
    memory_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct PackedRecord {
    /// Its place among the versions.
    version: u16,
    request: [u8; 16],
    /// After the batch's base; the clock of a node may be set back.
    after_ms: i64,
    outcome: Outcome,
    status: u16,
    queue_ns: u64,
    restore_ns: u64,
    run_ns: u64,
    cpu_ns: u64,
    request_bytes: u64,
    response_bytes: u64,
    egress_bytes: u64,
    ingress_bytes: u64,
    exits: u32,
    /// 1 if cold, 2 if a probe, or both.
    flags: u8,
}

impl UsageBatch {
    /// Its place in the chain.
    pub fn place(&self) -> Option<Place> {
        let more = self.records.records.len().checked_sub(1)?;
        let last = self.first.checked_add(more as u64)?;
        Some(Place {
            boot_epoch: self.boot_epoch,
            first: self.first,
            last,
            previous: self.previous,
        })
    }

    /// Its records as they were packed.
    pub fn unpack(&self) -> Result<Vec<UsageRecord>, UnpackError> {
        let PackedRecords {
            versions,
            base_ms,
            records,
        } = &self.records;
        match records.len() {
            0 => return Err(UnpackError::Empty),
            many if many > MAX_USAGE_BATCH => return Err(UnpackError::TooMany(many)),
            _ => {}
        }
        let unpack = |(index, packed): (u64, &PackedRecord)| {
            let version = versions.get(usize::from(packed.version))?;
            Some(UsageRecord {
                boot_epoch: self.boot_epoch,
                sequence: self.first.checked_add(index)?,
                request: RequestId(packed.request),
                function: version.function.clone(),
                version: version.version,
                accepted_ms: base_ms.wrapping_add_signed(packed.after_ms),
                outcome: packed.outcome,
                status: packed.status,
                queue_ns: packed.queue_ns,
                restore_ns: packed.restore_ns,
                run_ns: packed.run_ns,
                cpu_ns: packed.cpu_ns,
                memory_bytes: version.memory_bytes,
                request_bytes: packed.request_bytes,
                response_bytes: packed.response_bytes,
                egress_bytes: packed.egress_bytes,
                ingress_bytes: packed.ingress_bytes,
                cold: packed.flags & 1 != 0,
                exits: packed.exits,
                probe: packed.flags & 2 != 0,
            })
        };
        let records = (0..).zip(records).map(unpack).collect::<Option<Vec<_>>>();
        records.ok_or(UnpackError::Malformed)
    }
}

impl PackedRecords {
    /// Packs at most [`MAX_USAGE_BATCH`] consecutive records of one epoch.
    pub fn pack(records: &[UsageRecord]) -> Self {
        let base_ms = records.first().map_or(0, |record| record.accepted_ms);
        let mut versions = Vec::new();
        let mut known = HashMap::new();
        let packed = records.iter().map(|record| {
            let key = (&record.function, record.version, record.memory_bytes);
            // MAX_USAGE_BATCH records have no more versions than that.
            let version = *known.entry(key).or_insert_with(|| {
                versions.push(Version {
                    function: record.function.clone(),
                    version: record.version,
                    memory_bytes: record.memory_bytes,
                });
                (versions.len() - 1) as u16
            });
            PackedRecord {
                version,
                request: record.request.0,
                after_ms: record.accepted_ms.wrapping_sub(base_ms) as i64,
                outcome: record.outcome,
                status: record.status,
                queue_ns: record.queue_ns,
                restore_ns: record.restore_ns,
                run_ns: record.run_ns,
                cpu_ns: record.cpu_ns,
                request_bytes: record.request_bytes,
                response_bytes: record.response_bytes,
                egress_bytes: record.egress_bytes,
                ingress_bytes: record.ingress_bytes,
                exits: record.exits,
                flags: u8::from(record.cold) | u8::from(record.probe) << 1,
            }
        });
        let records = packed.collect();
        PackedRecords {
            versions,
            base_ms,
            records,
        }
    }
}

const _: () = assert!(MAX_USAGE_BATCH <= u16::MAX as usize);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;

    fn record(sequence: u64) -> UsageRecord {
        let mut request = [0; 16];
        request[..8].copy_from_slice(&sequence.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes());
        UsageRecord {
            boot_epoch: 1_700_000_000 << 20,
            sequence,
            request: RequestId(request),
            function: ["acme/hello", "acme/other"][(sequence % 2) as usize]
                .parse()
                .unwrap(),
            version: Digest([(sequence % 2) as u8; 32]),
            // A clock that jumps.
            accepted_ms: [1_700_000_000_000, 5, u64::MAX][(sequence % 3) as usize],
            outcome: Outcome::ALL[(sequence % 7) as usize],
            status: 200,
            queue_ns: 10_000 + sequence,
            restore_ns: 130_000,
            run_ns: 700_000 + sequence,
            cpu_ns: 60_000,
            memory_bytes: 64 << 20,
            request_bytes: 0,
            response_bytes: 1234,
            egress_bytes: 0,
            ingress_bytes: 0,
            cold: sequence.is_multiple_of(5),
            exits: 3,
            probe: sequence.is_multiple_of(11),
        }
    }

    fn batch(records: &[UsageRecord]) -> UsageBatch {
        UsageBatch {
            boot_epoch: records.first().map_or(0, |record| record.boot_epoch),
            first: records.first().map_or(0, |record| record.sequence),
            previous: Digest([1; 32]),
            hash: Digest([2; 32]),
            signature: vec![3; 70],
            records: PackedRecords::pack(records),
        }
    }

    #[test]
    fn records_come_back_as_they_were_packed_and_take_less_than_half_the_bytes() {
        let records: Vec<_> = (100..100 + MAX_USAGE_BATCH as u64).map(record).collect();
        let packed = batch(&records);
        assert_eq!(packed.unpack().unwrap(), records);
        let bytes = [
            codec::encode_file(&records, 1).unwrap().len(),
            codec::encode_file(&packed, 1).unwrap().len(),
        ];
        println!(
            "bytes per record: {} plain, {} packed",
            bytes[0] / 4096,
            bytes[1] / 4096
        );
        assert!(2 * bytes[1] < bytes[0], "{bytes:?}");
    }

    #[test]
    fn what_does_not_add_up_is_malformed() {
        let many: Vec<_> = (1..=MAX_USAGE_BATCH as u64 + 1).map(record).collect();
        let error = batch(&many).unpack().unwrap_err();
        assert_eq!(error, UnpackError::TooMany(MAX_USAGE_BATCH + 1));
        assert_eq!(batch(&[]).unpack(), Err(UnpackError::Empty));
        let mut dangling = batch(&[record(1)]);
        dangling.records.versions.clear();
        assert_eq!(dangling.unpack(), Err(UnpackError::Malformed));
        let mut endless = batch(&[record(1), record(2)]);
        endless.first = u64::MAX;
        assert_eq!(endless.unpack(), Err(UnpackError::Malformed));
        assert_eq!(endless.place(), None);
    }
}
