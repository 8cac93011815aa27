//! The chain of a node's usage: what is hashed, in which bytes, and what is signed.
//!
//! ```text
//! leaf      = SHA-256("holm usage record 1\0" | record)
//! genesis   = SHA-256("holm usage epoch 1\0"  | node | boot epoch | last hash of the epoch before)
//! hash      = SHA-256("holm usage batch 1\0"  | node | boot epoch | previous | first | last | leaf ...)
//! signature = by the key of the node's certificate, of "holm usage signature 1\0" | hash
//! ```
//! `previous` is the hash of the batch before; for the first of a boot epoch that is the epoch's genesis, which
//! in a journal's first epoch stands on [`NOTHING_BEFORE`]. So neither a record nor a batch nor a whole epoch can
//! be left out, changed or put in without a hash that differs from the one that was signed. A leaf of each record
//! rather than its bytes: who has the leaves of a batch can check one record and see none of the others.
//!
//! Integers are little-endian. A name is its length in one byte, then its bytes. A record is [`encode`]'s bytes,
//! which are those of the journal too. None of it depends on the control protocol's version.

use sha2::{Digest as _, Sha256};

use crate::ids::{Digest, FunctionName, Name, RequestId};
use crate::usage::{Outcome, UsageRecord};

/// What the first epoch of a journal stands on.
pub const NOTHING_BEFORE: Digest = Digest([0; 32]);
/// Bytes of a record beside its names.
const FIXED_BYTES: usize = 153;
/// Most bytes of a record.
pub const MAX_RECORD_BYTES: usize = FIXED_BYTES + 2 * (1 + crate::limits::MAX_NAME_BYTES);

/// Where a batch stands in its node's chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The boot epoch of all its records.
    pub boot_epoch: u64,
    /// The first record's sequence.
    pub first: u64,
    /// The last record's sequence.
    pub last: u64,
    /// The hash of the batch before, or the epoch's genesis.
    pub previous: Digest,
}

/// Appends the record's bytes to `to`.
pub fn encode(record: &UsageRecord, to: &mut Vec<u8>) {
    let outcome = Outcome::ALL.iter().position(|o| *o == record.outcome);
    to.extend(record.boot_epoch.to_le_bytes());
    to.extend(record.sequence.to_le_bytes());
    to.extend(record.request.0);
    to.extend(record.version.0);
    to.extend(record.accepted_ms.to_le_bytes());
    to.push(outcome.map_or(u8::MAX, |index| index as u8));
    to.extend(record.status.to_le_bytes());
    for number in [
        record.queue_ns,
        record.restore_ns,
        record.run_ns,
        record.cpu_ns,
        record.memory_bytes,
        record.request_bytes,
        record.response_bytes,
        record.egress_bytes,
        record.ingress_bytes,
    ] {
        to.extend(number.to_le_bytes());
    }
    to.extend(record.exits.to_le_bytes());
    to.push(u8::from(record.cold));
    to.push(u8::from(record.probe));
    push_name(&record.function.tenant, to);
    push_name(&record.function.function, to);
}

/// The record at the start of `bytes`, and what follows it; none if there is none.
pub fn decode(bytes: &[u8]) -> Option<(UsageRecord, &[u8])> {
    let mut from = Reader(bytes);
    let record = UsageRecord {
        boot_epoch: from.number()?,
        sequence: from.number()?,
        request: RequestId(from.bytes()?),
        version: Digest(from.bytes()?),
        accepted_ms: from.number()?,
        outcome: *Outcome::ALL.get(usize::from(from.byte()?))?,
        status: u16::from_le_bytes(from.bytes()?),
        queue_ns: from.number()?,
        restore_ns: from.number()?,
        run_ns: from.number()?,
        cpu_ns: from.number()?,
        memory_bytes: from.number()?,
        request_bytes: from.number()?,
        response_bytes: from.number()?,
        egress_bytes: from.number()?,
        ingress_bytes: from.number()?,
        exits: u32::from_le_bytes(from.bytes()?),
        cold: from.flag()?,
        probe: from.flag()?,
        function: FunctionName {
            tenant: from.name()?,
            function: from.name()?,
        },
    };
    Some((record, from.0))
}

/// The leaf of a record that [`encode`] has made bytes of.
pub fn leaf_of(encoded: &[u8]) -> Digest {
    let mut hash = Sha256::new_with_prefix(b"holm usage record 1\0");
    hash.update(encoded);
    Digest(hash.finalize().into())
}

/// A record's leaf.
pub fn leaf(record: &UsageRecord) -> Digest {
    let mut encoded = Vec::with_capacity(MAX_RECORD_BYTES);
    encode(record, &mut encoded);
    leaf_of(&encoded)
}

/// What the first batch of an epoch has before it. `before` is the last hash of the node's epoch before.
pub fn genesis(node: &Name, boot_epoch: u64, before: Digest) -> Digest {
    let mut hash = Sha256::new_with_prefix(b"holm usage epoch 1\0");
    update_name(&mut hash, node);
    hash.update(boot_epoch.to_le_bytes());
    hash.update(before.0);
    Digest(hash.finalize().into())
}

/// The hash of a batch of these leaves, in the order of their sequences.
pub fn batch_hash<'a>(
    node: &Name,
    place: &Place,
    leaves: impl IntoIterator<Item = &'a Digest>,
) -> Digest {
    let mut hash = Sha256::new_with_prefix(b"holm usage batch 1\0");
    update_name(&mut hash, node);
    hash.update(place.boot_epoch.to_le_bytes());
    hash.update(place.previous.0);
    hash.update(place.first.to_le_bytes());
    hash.update(place.last.to_le_bytes());
    for leaf in leaves {
        hash.update(leaf.0);
    }
    Digest(hash.finalize().into())
}

/// What a node signs of a batch.
pub fn to_sign(hash: Digest) -> Vec<u8> {
    [&b"holm usage signature 1\0"[..], &hash.0].concat()
}

fn push_name(name: &Name, to: &mut Vec<u8>) {
    // A name has at most 63 bytes.
    to.push(name.as_str().len() as u8);
    to.extend(name.as_str().as_bytes());
}

fn update_name(hash: &mut Sha256, name: &Name) {
    hash.update([name.as_str().len() as u8]);
    hash.update(name.as_str().as_bytes());
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn bytes<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (bytes, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*bytes)
    }

    fn number(&mut self) -> Option<u64> {
        self.bytes().map(u64::from_le_bytes)
    }

    fn byte(&mut self) -> Option<u8> {
        self.bytes::<1>().map(|[byte]| byte)
    }

    fn flag(&mut self) -> Option<bool> {
        match self.byte()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    fn name(&mut self) -> Option<Name> {
        let length = usize::from(self.byte()?);
        let (text, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        std::str::from_utf8(text).ok()?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(sequence: u64) -> UsageRecord {
        UsageRecord {
            boot_epoch: 3,
            sequence,
            request: RequestId([0x11; 16]),
            function: "acme/hello".parse().unwrap(),
            version: Digest([0x22; 32]),
            accepted_ms: 1_700_000_000_000,
            outcome: Outcome::Timeout,
            status: 504,
            queue_ns: 1,
            restore_ns: 2,
            run_ns: 3,
            cpu_ns: 4,
            memory_bytes: 5,
            request_bytes: 6,
            response_bytes: 7,
            egress_bytes: 8,
            ingress_bytes: 9,
            cold: true,
            exits: 10,
            probe: false,
        }
    }

    fn encoded(record: &UsageRecord) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode(record, &mut bytes);
        bytes
    }

    #[test]
    fn a_record_comes_back_from_its_bytes_and_from_none_of_their_beginnings() {
        let one = record(300);
        let mut bytes = encoded(&one);
        assert_eq!(bytes.len(), FIXED_BYTES + "acme".len() + "hello".len() + 2);
        for cut in 0..bytes.len() {
            assert_eq!(decode(&bytes[..cut]), None, "cut at {cut}");
        }
        bytes.push(9);
        assert_eq!(decode(&bytes), Some((one, &[9][..])));
    }

    #[test]
    fn every_bit_of_a_record_counts() {
        let bytes = encoded(&record(300));
        let leaf = leaf_of(&bytes);
        for index in 0..bytes.len() {
            for bit in 0..8 {
                let mut other = bytes.clone();
                other[index] ^= 1 << bit;
                assert_ne!(leaf_of(&other), leaf);
                // Bytes that are read are the only ones for what they say.
                if let Some((read, [])) = decode(&other) {
                    assert_eq!(encoded(&read), other);
                }
            }
        }
    }

    /// Ledgers hold hashes: if one of these changes, every chain there is breaks. Make another format beside this
    /// one instead.
    #[test]
    fn the_hashes_are_those_that_ledgers_hold() {
        let node: Name = "n1".parse().unwrap();
        let previous = genesis(&node, 3, NOTHING_BEFORE);
        let place = Place {
            boot_epoch: 3,
            first: 300,
            last: 301,
            previous,
        };
        let leaves = [leaf(&record(300)), leaf(&record(301))];
        let hash = batch_hash(&node, &place, &leaves);
        // As somebody else computes them by what USAGE.md says.
        let texts = [previous, leaves[0], hash].map(|digest| digest.hex());
        assert_eq!(
            texts,
            [
                "c69ad59ef7a1eb73c4a4910209896a96a7b2adc3444b0d26f72ab3b3c48526db",
                "1ec4925842230e876b750e51dfa9594d570af9e8790e2fb0a9d1d3317d4da9f4",
                "8dc00a88bfe79db9a7c101dc52d1355484b267e4b96e77feb555547ed958bc03",
            ]
        );
    }
}
