//! Sealing: AES-256-GCM under a fresh random nonce, with what the secret belongs to authenticated with it. What is sealed
//! is nonce, ciphertext and tag.

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};

/// Bytes of a key.
pub(crate) const KEY_BYTES: usize = 32;

/// Seals and opens.
#[derive(Debug)]
pub(crate) struct SealingKey(RandomizedNonceKey);

impl SealingKey {
    pub(crate) fn new(key: &[u8; KEY_BYTES]) -> Self {
        SealingKey(RandomizedNonceKey::new(&AES_256_GCM, key).expect("a key has 32 bytes"))
    }

    /// Seals some KiB at most.
    pub(crate) fn seal(&self, belongs: &[u8], mut plain: Vec<u8>) -> Vec<u8> {
        let nonce = self
            .0
            .seal_in_place_append_tag(Aad::from(belongs), &mut plain);
        let nonce = nonce.expect("a secret is short, and the system has random numbers");
        [&nonce.as_ref()[..], &plain].concat()
    }

    /// What was sealed; none if it belongs to something else, was sealed with another key, or was changed.
    pub(crate) fn open(&self, belongs: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE_LEN>()?;
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let mut plain = sealed.to_vec();
        let opened = self.0.open_in_place(nonce, Aad::from(belongs), &mut plain);
        opened.ok().map(|opened| opened.to_vec())
    }
}
