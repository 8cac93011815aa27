//! Signing batches of usage, with the key of the node's certificate.

use std::sync::Arc;

use holm_model::chain;
use holm_model::ids::Digest;
use rustls::SignatureScheme;
use rustls::sign::SigningKey;

use crate::identity::Identity;

/// What a coordinator verifies; the node's own key is of the first.
const SCHEMES: [SignatureScheme; 3] = [
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::ED25519,
];

/// Usage cannot be signed; the node's key is to blame.
#[derive(Debug, thiserror::Error)]
#[error("the node's key cannot sign its usage: {0}; join again")]
pub struct SignError(String);

/// Signs for one node.
#[derive(Clone, Debug)]
pub(crate) struct BatchSigner {
    key: Arc<dyn SigningKey>,
}

impl BatchSigner {
    pub(crate) fn new(identity: &Identity) -> Result<Self, SignError> {
        let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&identity.key)
            .map_err(|error| SignError(error.to_string()))?;
        Ok(BatchSigner { key })
    }

    /// The signature of a batch.
    pub(crate) fn sign(&self, hash: Digest) -> Result<Vec<u8>, SignError> {
        let signer = self
            .key
            .choose_scheme(&SCHEMES)
            .ok_or_else(|| SignError("it is of a kind that coordinators do not verify".into()))?;
        signer
            .sign(&chain::to_sign(hash))
            .map_err(|error| SignError(error.to_string()))
    }
}
