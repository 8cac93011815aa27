//! Whom a client trusts: the authorities that the system trusts, or those in a file and no others.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::TlsFileError;

/// Whom to trust; looked up when it is asked for first.
#[derive(Debug, Default)]
pub struct Trust {
    ca_file: Option<PathBuf>,
    config: OnceLock<Arc<ClientConfig>>,
}

impl Trust {
    /// The authorities in a file (PEM) and no others, or those of the system.
    pub fn new(ca_file: Option<PathBuf>) -> Self {
        Trust {
            ca_file,
            config: OnceLock::new(),
        }
    }

    /// For connections, of HTTP/1.1 unless it is changed.
    pub fn config(&self) -> Result<Arc<ClientConfig>, TlsFileError> {
        if let Some(config) = self.config.get() {
            return Ok(config.clone());
        }
        let roots = match &self.ca_file {
            Some(path) => of_file(path)?,
            None => of_system()?,
        };
        let config = config(roots);
        Ok(self.config.get_or_init(|| Arc::new(config)).clone())
    }

    /// For connections without TLS, whose client wants to know all the same: it trusts nobody.
    pub fn nobody() -> ClientConfig {
        config(RootCertStore::empty())
    }
}

fn config(roots: RootCertStore) -> ClientConfig {
    ClientConfig::builder_with_provider(crate::provider())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .expect("the provider has ciphers for both versions")
        .with_root_certificates(roots)
        .with_no_client_auth()
}

fn of_file(path: &Path) -> Result<RootCertStore, TlsFileError> {
    let bytes = crate::read(path, "--ca-file")?;
    let wrong = |error| TlsFileError::Pem {
        path: path.to_owned(),
        what: "certificate",
        error,
    };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&bytes) {
        let added = roots.add(certificate.map_err(wrong)?);
        added.map_err(|error| TlsFileError::Untrusted {
            path: path.to_owned(),
            error,
        })?;
    }
    match roots.is_empty() {
        true => Err(wrong(rustls_pki_types::pem::Error::NoItemsFound)),
        false => Ok(roots),
    }
}

fn of_system() -> Result<RootCertStore, TlsFileError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    // One that makes no sense says nothing about the others.
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added > 0 {
        return Ok(roots);
    }
    let why = found.errors.first();
    Err(TlsFileError::NoRoots {
        why: why.map(|error| format!(": {error}")).unwrap_or_default(),
    })
}

/// The handshake with the server of that name or address.
pub async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
    config: Arc<ClientConfig>,
    host: &str,
    stream: S,
) -> io::Result<TlsStream<S>> {
    let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned());
    let name = name.map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    TlsConnector::from(config).connect(name, stream).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::tests::{files, pair};

    #[tokio::test]
    async fn who_shows_a_certificate_of_the_file_is_trusted_and_nobody_else() {
        let (own, other) = (pair(), pair());
        let (dir, server_files) = files(&own);
        let (_certificates, current) = crate::server::Certificates::open(server_files).unwrap();
        let other_file = dir.path().join("other.pem");
        std::fs::write(&other_file, &other.cert).unwrap();
        for (file, host, good) in [
            (dir.path().join("cert.pem"), "localhost", true),
            (dir.path().join("cert.pem"), "elsewhere.example", false),
            (other_file, "localhost", false),
        ] {
            let (here, there) = tokio::io::duplex(16 << 10);
            let current = current.clone();
            let patience = std::time::Duration::from_secs(10);
            let served = tokio::spawn(async move {
                crate::server::accept(&current, there, patience)
                    .await
                    .is_ok()
            });
            let trust = Trust::new(Some(file));
            let connected = connect(trust.config().unwrap(), host, here).await;
            assert_eq!(connected.is_ok(), good, "{host}: {:?}", connected.err());
            assert_eq!(served.await.unwrap(), good);
        }
    }

    #[test]
    fn a_file_without_certificates_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("roots.pem");
        let error = |path: &Path| {
            let trust = Trust::new(Some(path.to_owned()));
            trust.config().unwrap_err().to_string()
        };
        assert!(error(&path).contains("roots.pem cannot be read"));
        for text in ["", "no PEM", &pair().key] {
            std::fs::write(&path, text).unwrap();
            let error = error(&path);
            assert!(error.contains("roots.pem has no certificate"), "{error}");
        }
        let nonsense = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        std::fs::write(&path, nonsense).unwrap();
        let error = error(&path);
        assert!(error.contains("roots.pem cannot be trusted"), "{error}");
    }
}
