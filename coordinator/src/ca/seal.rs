//! Secrets that the database keeps and cannot show: sealed with a key that follows from the authority's, which is in
//! the state directories of the fleet's coordinators and nowhere else.

use aws_lc_rs::hmac;

use super::Authority;
use crate::sealed::SealingKey;

/// What the key is for.
const PURPOSE: &[u8] = b"holm sealed secrets 1\0";

impl Authority {
    /// Seals a secret for a purpose, which has to be said again to open it.
    pub(crate) fn seal(&self, purpose: &str, secret: &[u8]) -> Vec<u8> {
        self.sealing_key().seal(purpose.as_bytes(), secret.to_vec())
    }

    /// What was sealed; none if it was for another purpose, by another authority, or was changed.
    pub(crate) fn open(&self, purpose: &str, sealed: &[u8]) -> Option<Vec<u8>> {
        self.sealing_key().open(purpose.as_bytes(), sealed)
    }

    fn sealing_key(&self) -> SealingKey {
        let root = hmac::Key::new(hmac::HMAC_SHA256, self.issuer.key().serialized_der());
        let key = hmac::sign(&root, PURPOSE);
        SealingKey::new(
            key.as_ref()
                .try_into()
                .expect("an HMAC-SHA256 has 32 bytes"),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_opened_by_the_same_authority_for_the_same_purpose_alone() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::load_or_make(dir.path()).unwrap();
        let sealed = authority.seal("one", b"hush");
        assert_ne!(
            sealed,
            authority.seal("one", b"hush"),
            "nobody sees that two are the same"
        );
        assert!(!sealed.windows(4).any(|part| part == b"hush"));
        let again = Authority::load_or_make(dir.path()).unwrap();
        assert_eq!(again.open("one", &sealed).as_deref(), Some(&b"hush"[..]));
        assert_eq!(authority.open("other", &sealed), None);
        let elsewhere = tempfile::tempdir().unwrap();
        let stranger = Authority::load_or_make(elsewhere.path()).unwrap();
        assert_eq!(stranger.open("one", &sealed), None);
        for index in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[index] ^= 1;
            assert_eq!(authority.open("one", &changed), None, "byte {index}");
            assert_eq!(authority.open("one", &sealed[..index]), None);
        }
    }
}
