//! Who the node is: the files that joining leaves in the state directory.
//!
//! ```text
//! node.key   its private key, PEM, mode 0600; made here, never leaves the machine
//! node.crt   its certificate, PEM; renewed over the link
//! ca.crt     the certificate of the coordinator's CA, PEM
//! node.json  its name and the coordinator's address; written last, so its presence means joined
//! ```

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use holm_model::ids::Name;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};

use crate::files::{self, FileError};

const MAX_IDENTITY_FILE_BYTES: u64 = 64 << 10;

/// A node's identity, as read from its state directory.
#[derive(Debug)]
pub struct Identity {
    /// What the certificate calls it.
    pub name: Name,
    /// Host and UDP port of the coordinator.
    pub coordinator: String,
    pub(crate) key: PrivateKeyDer<'static>,
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) ca: CertificateDer<'static>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct NodeFile {
    name: Name,
    coordinator: String,
}

/// The state directory does not hold an identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Nothing there.
    #[error(
        "this node has not joined a coordinator ({0} has no node.json); get a token with `holm nodes token` and run `holm node join`"
    )]
    NotJoined(String),
    /// A file that cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file whose content is no good.
    #[error(
        "{file} in the state directory cannot be used: {why}; restore it, or remove `node.json`, and nothing else, and join again"
    )]
    Damaged {
        /// Its name.
        file: &'static str,
        /// What is wrong with it.
        why: String,
    },
}

impl Identity {
    /// Whether `dir` belongs to a node that has joined.
    pub fn is_there(dir: &Path) -> bool {
        dir.join("node.json").exists()
    }

    /// Reads the identity that joining left in `dir`.
    pub fn load(dir: &Path) -> Result<Self, IdentityError> {
        let read = |file: &'static str| {
            files::read_if_there(&dir.join(file), MAX_IDENTITY_FILE_BYTES)?.ok_or(
                IdentityError::Damaged {
                    file,
                    why: "it is not there".into(),
                },
            )
        };
        if !Self::is_there(dir) {
            return Err(IdentityError::NotJoined(dir.display().to_string()));
        }
        let node: NodeFile = serde_json::from_slice(&read("node.json")?).map_err(|error| {
            IdentityError::Damaged {
                file: "node.json",
                why: error.to_string(),
            }
        })?;
        let certificate = |file| {
            CertificateDer::from_pem_slice(&read(file)?).map_err(|error| IdentityError::Damaged {
                file,
                why: error.to_string(),
            })
        };
        let key = PrivateKeyDer::from_pem_slice(&read("node.key")?).map_err(|error| {
            IdentityError::Damaged {
                file: "node.key",
                why: error.to_string(),
            }
        })?;
        Ok(Identity {
            name: node.name,
            coordinator: node.coordinator,
            key,
            certificate: certificate("node.crt")?,
            ca: certificate("ca.crt")?,
        })
    }

    /// The same with another certificate.
    pub(crate) fn with(&self, certificate: CertificateDer<'static>) -> Self {
        Identity {
            name: self.name.clone(),
            coordinator: self.coordinator.clone(),
            key: self.key.clone_key(),
            certificate,
            ca: self.ca.clone(),
        }
    }

    /// Writes its certificate to `dir`, where the rest of it is.
    pub(crate) fn save_certificate(&self, dir: &Path) -> Result<(), FileError> {
        save_certificate(dir, &self.certificate)
    }

    /// Writes the identity to `dir`, the file that makes it valid last.
    pub(crate) fn save(
        dir: &Path,
        name: &Name,
        coordinator: &str,
        key_pem: &str,
        certificate: &[u8],
        ca: &[u8],
    ) -> Result<(), FileError> {
        files::make_dir(dir)?;
        files::write_atomically(&dir.join("node.key"), key_pem.as_bytes(), 0o600)?;
        save_certificate(dir, certificate)?;
        files::write_atomically(&dir.join("ca.crt"), pem(ca).as_bytes(), 0o644)?;
        let node = NodeFile {
            name: name.clone(),
            coordinator: coordinator.to_owned(),
        };
        let json = serde_json::to_vec_pretty(&node).expect("two texts can be written as JSON");
        files::write_atomically(&dir.join("node.json"), &json, 0o644)
    }
}

/// Asks for a certificate for `key` (PKCS#10, DER).
pub(crate) fn signing_request(name: &Name, key: &rcgen::KeyPair) -> Result<Vec<u8>, rcgen::Error> {
    let mut params = rcgen::CertificateParams::new(vec![name.to_string()])?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, name.as_str());
    Ok(params.serialize_request(key)?.der().to_vec())
}

fn save_certificate(dir: &Path, certificate: &[u8]) -> Result<(), FileError> {
    files::write_atomically(&dir.join("node.crt"), pem(certificate).as_bytes(), 0o644)
}

/// A certificate as RFC 7468 text.
fn pem(der: &[u8]) -> String {
    let encoded = STANDARD.encode(der);
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    let mut rest = encoded.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = after;
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_comes_back_as_it_was_saved() {
        let dir = tempfile::tempdir().unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["n1".to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let name: Name = "n1".parse().unwrap();
        let der = certificate.der();
        Identity::save(dir.path(), &name, "c:1", &key.serialize_pem(), der, der).unwrap();
        let loaded = Identity::load(dir.path()).unwrap();
        assert_eq!(
            (loaded.name.as_str(), loaded.coordinator.as_str()),
            ("n1", "c:1")
        );
        assert_eq!((&loaded.certificate, &loaded.ca), (der, der));
        assert_eq!(loaded.key.secret_der(), key.serialized_der());
    }

    #[test]
    fn a_directory_without_identity_says_how_to_join() {
        let dir = tempfile::tempdir().unwrap();
        let error = Identity::load(dir.path()).unwrap_err().to_string();
        assert!(error.contains("holm node join"), "{error}");
    }

    #[test]
    fn a_damaged_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(
            dir.path().join("node.json"),
            r#"{"name":"a","coordinator":"c:1"}"#,
        )
        .unwrap();
        std::fs::write(dir.path().join("node.key"), "nonsense").unwrap();
        let error = Identity::load(dir.path()).unwrap_err().to_string();
        assert!(error.contains("node.key"), "{error}");
    }
}
