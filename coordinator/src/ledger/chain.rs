//! Whether a batch follows on in its node's chain, and who signed it. Decides; stores nothing.

use holm_model::chain::{self, NOTHING_BEFORE, Place};
use holm_model::ids::{Digest, Name};
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::ca::node_name;

/// The newest batch of a node in the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) boot_epoch: u64,
    pub(crate) last: u64,
    pub(crate) hash: Digest,
}

/// Why a batch is no link of the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Break {
    /// What comes between the ledger's end and the batch is not there.
    Gap,
    /// The ledger has another batch at its place, or another one before it.
    Fork,
    /// It begins a chain, and the ledger has one of the node's.
    Anew,
}

/// How a batch stands to what the ledger has of its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Link {
    /// It is the next one.
    Next,
    /// It is not, but behind what is there; and its key is new, so that an operator has let the node in anew.
    After(Break),
}

/// Whether a batch at `place` follows `head`. `key_is_new` if no batch of the node's has been signed with its key.
pub(crate) fn follow(
    node: &Name,
    head: Option<&Head>,
    place: &Place,
    key_is_new: bool,
) -> Result<Link, Break> {
    let begins = place.previous == chain::genesis(node, place.boot_epoch, NOTHING_BEFORE);
    let Some(head) = head else {
        return match begins {
            true => Ok(Link::Next),
            // The ledger has lost what it had, or the node was in another fleet.
            false if key_is_new => Ok(Link::After(Break::Gap)),
            false => Err(Break::Gap),
        };
    };
    let broken = match place.boot_epoch.cmp(&head.boot_epoch) {
        std::cmp::Ordering::Less => return Err(Break::Fork),
        std::cmp::Ordering::Equal if place.first <= head.last => return Err(Break::Fork),
        std::cmp::Ordering::Equal if place.first > head.last + 1 => Break::Gap,
        std::cmp::Ordering::Equal if place.previous == head.hash => return Ok(Link::Next),
        std::cmp::Ordering::Equal => return Err(Break::Fork),
        std::cmp::Ordering::Greater => {
            let next = chain::genesis(node, place.boot_epoch, head.hash);
            match (place.first, place.previous == next) {
                (1, true) => return Ok(Link::Next),
                _ if begins => Break::Anew,
                _ => Break::Gap,
            }
        }
    };
    match key_is_new {
        true => Ok(Link::After(broken)),
        false => Err(broken),
    }
}

/// Whether the key of `certificate` has signed the batch of this hash.
pub(crate) fn has_signed(certificate: &[u8], hash: Digest, signature: &[u8]) -> bool {
    verifies(certificate, &chain::to_sign(hash), signature)
}

/// Whether the key of `certificate` has signed the message.
pub(super) fn has_said(certificate: &[u8], message: &[u8], signature: &[u8]) -> bool {
    verifies(certificate, message, signature)
}

/// Whether `certificate` says that its key is the node's, and `authority` has signed that. When is not asked: a batch
/// outlives the certificate.
pub(crate) fn is_of(certificate: &[u8], node: &Name, authority: &[u8]) -> bool {
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else {
        return false;
    };
    node_name(&CertificateDer::from(certificate)).as_ref() == Some(node)
        && verifies(
            authority,
            parsed.tbs_certificate.as_ref(),
            &parsed.signature_value.data,
        )
}

/// By the algorithm that belongs to the kind of the certificate's key.
fn verifies(certificate: &[u8], message: &[u8], signature: &[u8]) -> bool {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else {
        return false;
    };
    let key = certificate.public_key();
    let Some(kind) = kind_of(key.raw) else {
        return false;
    };
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let mut algorithms = provider.signature_verification_algorithms.all.iter();
    algorithms.any(|algorithm| {
        algorithm.public_key_alg_id().as_ref() == kind
            && algorithm
                .verify_signature(&key.subject_public_key.data, message, signature)
                .is_ok()
    })
}

/// The content of the AlgorithmIdentifier in a SubjectPublicKeyInfo (RFC 5280, section 4.1), both of which are short
/// for the keys that nodes have.
fn kind_of(spki: &[u8]) -> Option<&[u8]> {
    let [0x30, ..0x80, 0x30, length @ ..0x80, rest @ ..] = spki else {
        return None;
    };
    rest.get(..usize::from(*length))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(boot_epoch: u64, first: u64, previous: Digest) -> Place {
        Place {
            boot_epoch,
            first,
            last: first + 9,
            previous,
        }
    }

    #[test]
    fn a_chain_has_one_way_on() {
        let node: Name = "n".parse().unwrap();
        let hash = Digest([7; 32]);
        let head = Head {
            boot_epoch: 5,
            last: 10,
            hash,
        };
        let (zero, other) = (NOTHING_BEFORE, Digest([8; 32]));
        let genesis = |epoch, before| chain::genesis(&node, epoch, before);
        for (place, old_key, new_key) in [
            (place(5, 11, hash), Ok(Link::Next), Ok(Link::Next)),
            (
                place(6, 1, genesis(6, hash)),
                Ok(Link::Next),
                Ok(Link::Next),
            ),
            (place(5, 11, other), Err(Break::Fork), Err(Break::Fork)),
            (place(5, 10, hash), Err(Break::Fork), Err(Break::Fork)),
            (
                place(4, 1, genesis(4, zero)),
                Err(Break::Fork),
                Err(Break::Fork),
            ),
            (
                place(5, 12, hash),
                Err(Break::Gap),
                Ok(Link::After(Break::Gap)),
            ),
            (
                place(6, 2, genesis(6, hash)),
                Err(Break::Gap),
                Ok(Link::After(Break::Gap)),
            ),
            (
                place(6, 1, genesis(6, other)),
                Err(Break::Gap),
                Ok(Link::After(Break::Gap)),
            ),
            (
                place(6, 1, hash),
                Err(Break::Gap),
                Ok(Link::After(Break::Gap)),
            ),
            (
                place(6, 1, genesis(6, zero)),
                Err(Break::Anew),
                Ok(Link::After(Break::Anew)),
            ),
        ] {
            assert_eq!(
                follow(&node, Some(&head), &place, false),
                old_key,
                "{place:?}"
            );
            assert_eq!(
                follow(&node, Some(&head), &place, true),
                new_key,
                "{place:?}"
            );
        }
        // The first of all may begin within an epoch: what was before it came without a chain.
        let first = place(5, 11, genesis(5, zero));
        assert_eq!(follow(&node, None, &first, true), Ok(Link::Next));
        let later = place(5, 11, hash);
        assert_eq!(follow(&node, None, &later, false), Err(Break::Gap));
    }
}
