//! TLS as Holm speaks it with people and callers: [`server`] has certificates from files, [`client`] whom one trusts.
//!
//! Links between nodes and coordinators are not of this kind: they trust the fleet's own authority alone.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::CryptoProvider;

pub mod client;
pub mod server;

/// The one provider of cryptography.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// Largest file of certificates or of a key.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// The files cannot be used; who gave them is to blame.
#[derive(Debug, thiserror::Error)]
pub enum TlsFileError {
    /// One of them is not there, not readable or not a file of this kind.
    #[error("the file {path} cannot be read: {error}; check {options}")]
    Read {
        /// Which.
        path: PathBuf,
        /// By which options it was given.
        options: &'static str,
        /// What the system says.
        error: std::io::Error,
    },
    /// Not what it should be.
    #[error("{path} has no {what} in PEM form: {error}")]
    Pem {
        /// Which.
        path: PathBuf,
        /// What it should have.
        what: &'static str,
        /// What is wrong.
        error: rustls_pki_types::pem::Error,
    },
    /// Each may be sound, but not together.
    #[error(
        "the key in {key} is not the one of the first certificate in {cert}; they come in pairs"
    )]
    Mismatch {
        /// The certificates.
        cert: PathBuf,
        /// The key.
        key: PathBuf,
    },
    /// Nothing that TLS can be spoken with.
    #[error("TLS cannot be spoken with the certificate in {cert} and the key in {key}: {error}")]
    Unusable {
        /// The certificates.
        cert: PathBuf,
        /// The key.
        key: PathBuf,
        /// What is wrong.
        error: rustls::Error,
    },
    /// Nothing that could be trusted.
    #[error("the certificates in {path} cannot be trusted: {error}")]
    Untrusted {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        error: rustls::Error,
    },
    /// The system brings none.
    #[error(
        "this system has no certificates of authorities to trust{why}; install its package of them (ca-certificates), \
         or give a file of them (--ca-file)"
    )]
    NoRoots {
        /// What was wrong with those that it has, if that is known; begins with a colon.
        why: String,
    },
}

/// A file that has no business being large.
fn read(path: &Path, options: &'static str) -> Result<Vec<u8>, TlsFileError> {
    use std::io::Read as _;
    let read = || {
        let mut bytes = Vec::new();
        std::fs::File::open(path)?
            .take(MAX_FILE_BYTES + 1)
            .read_to_end(&mut bytes)?;
        match bytes.len() as u64 > MAX_FILE_BYTES {
            true => Err(std::io::Error::other(
                "it is too large for what it should be",
            )),
            false => Ok(bytes),
        }
    };
    read().map_err(|error| TlsFileError::Read {
        path: path.to_owned(),
        options,
        error,
    })
}
