//! Join tokens: how a new machine finds the coordinator and proves that it may join.
//!
//! Written `holm-join-1.` and base64url of JSON, so that one string can be pasted.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use crate::ids::Digest;

const PREFIX: &str = "holm-join-1.";

/// What a join token holds. The secret can be used once, until the coordinator's expiry.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinToken {
    /// Host and UDP port of the coordinator's QUIC endpoint.
    pub address: String,
    /// SHA-256 of the CA certificate's DER, by which the node knows the coordinator.
    pub ca: Digest,
    /// 32 random bytes; the coordinator keeps only their digest.
    pub secret: Vec<u8>,
}

/// Not a join token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is not a join token (it begins with `{PREFIX}`); get one with `holm nodes token`")]
pub struct JoinTokenError;

impl FromStr for JoinToken {
    type Err = JoinTokenError;
    fn from_str(text: &str) -> Result<Self, JoinTokenError> {
        let encoded = text.trim().strip_prefix(PREFIX).ok_or(JoinTokenError)?;
        let json = URL_SAFE_NO_PAD
            .decode(encoded)
            .map_err(|_| JoinTokenError)?;
        serde_json::from_slice(&json).map_err(|_| JoinTokenError)
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let json = serde_json::to_vec(self).map_err(|_| fmt::Error)?;
        write!(f, "{PREFIX}{}", URL_SAFE_NO_PAD.encode(json))
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({})", self.address)
    }
}
