//! TLS towards callers: a certificate chain and its key from files, which may be replaced while the node runs.
//!
//! New files are used from the next connection on. Files that make no sense, or not yet because only one of the
//! two has been replaced, leave the node with what it has.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::{InconsistentKeys, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::config::TlsFiles;
use crate::limits::{MAX_TLS_FILE_BYTES, TLS_LOOK};

/// What is spoken inside, the preferred one first.
const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// The files cannot be used; the operator is to blame.
#[derive(Debug, thiserror::Error)]
pub enum TlsFileError {
    /// One of them is not there, not readable or not a file of this kind.
    #[error("the file {path} cannot be read: {error}; check --tls-cert and --tls-key")]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
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
}

/// The configuration for the next connection.
pub(crate) type Current = watch::Receiver<Arc<ServerConfig>>;

/// The files and what was last made of them.
pub(crate) struct Certificates {
    files: TlsFiles,
    /// Their contents when they were last looked at.
    seen: Option<[Vec<u8>; 2]>,
    current: watch::Sender<Arc<ServerConfig>>,
}

impl Certificates {
    pub(crate) fn open(files: TlsFiles) -> Result<(Self, Current), TlsFileError> {
        let contents = read(&files)?;
        let config = parse(&files, &contents)?;
        let (current, receiver) = watch::channel(Arc::new(config));
        let certificates = Certificates {
            files,
            seen: Some(contents),
            current,
        };
        Ok((certificates, receiver))
    }

    /// Looks for new files from time to time, as long as it is polled.
    pub(crate) async fn follow(mut self) {
        loop {
            tokio::time::sleep(TLS_LOOK).await;
            match self.look() {
                Ok(false) => {}
                Ok(true) => {
                    tracing::info!(cert = %self.files.cert.display(), "the new certificate is in use");
                }
                Err(error) => {
                    tracing::error!(%error, "the new certificate is not used; the old one stays");
                }
            }
        }
    }

    /// Whether there was something new, and it is in use. The same fault is told once.
    fn look(&mut self) -> Result<bool, TlsFileError> {
        let contents = match read(&self.files) {
            Ok(contents) if self.seen.as_ref() == Some(&contents) => return Ok(false),
            Ok(contents) => contents,
            Err(_) if self.seen.is_none() => return Ok(false),
            Err(error) => {
                self.seen = None;
                return Err(error);
            }
        };
        let config = parse(&self.files, &contents);
        self.seen = Some(contents);
        self.current.send_replace(Arc::new(config?));
        Ok(true)
    }
}

/// Certificates and key.
fn read(files: &TlsFiles) -> Result<[Vec<u8>; 2], TlsFileError> {
    Ok([read_one(&files.cert)?, read_one(&files.key)?])
}

fn read_one(path: &Path) -> Result<Vec<u8>, TlsFileError> {
    let read = || {
        let mut bytes = Vec::new();
        File::open(path)?
            .take(MAX_TLS_FILE_BYTES + 1)
            .read_to_end(&mut bytes)?;
        match bytes.len() as u64 > MAX_TLS_FILE_BYTES {
            true => Err(io::Error::other("it is too large for what it should be")),
            false => Ok(bytes),
        }
    };
    read().map_err(|error| TlsFileError::Read {
        path: path.to_owned(),
        error,
    })
}

fn parse(files: &TlsFiles, [cert, key]: &[Vec<u8>; 2]) -> Result<ServerConfig, TlsFileError> {
    let no_certificate = |error| TlsFileError::Pem {
        path: files.cert.clone(),
        what: "certificate",
        error,
    };
    let chain = CertificateDer::pem_slice_iter(cert).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(no_certificate)?;
    if chain.is_empty() {
        return Err(no_certificate(rustls_pki_types::pem::Error::NoItemsFound));
    }
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| TlsFileError::Pem {
        path: files.key.clone(),
        what: "private key",
        error,
    })?;
    let unusable = |error| match error {
        rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => TlsFileError::Mismatch {
            cert: files.cert.clone(),
            key: files.key.clone(),
        },
        error => TlsFileError::Unusable {
            cert: files.cert.clone(),
            key: files.key.clone(),
            error,
        },
    };
    let mut config = ServerConfig::builder_with_provider(crate::tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(unusable)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(unusable)?;
    config.alpn_protocols = ALPN.map(<[u8]>::to_vec).to_vec();
    Ok(config)
}

/// The handshake, which may not take longer than `patience`.
pub(super) async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
    current: &Current,
    stream: S,
    patience: Duration,
) -> io::Result<TlsStream<S>> {
    let config = current.borrow().clone();
    let handshake = TlsAcceptor::from(config).accept(stream);
    match tokio::time::timeout(patience, handshake).await {
        Ok(shaken) => shaken,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;

    struct Pair {
        cert: String,
        key: String,
    }

    fn pair() -> Pair {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        Pair {
            cert: made.cert.pem(),
            key: made.signing_key.serialize_pem(),
        }
    }

    fn files(pair: &Pair) -> (TempDir, TlsFiles) {
        let dir = tempfile::tempdir().unwrap();
        let files = TlsFiles {
            cert: dir.path().join("cert.pem"),
            key: dir.path().join("key.pem"),
        };
        fs::write(&files.cert, &pair.cert).unwrap();
        fs::write(&files.key, &pair.key).unwrap();
        (dir, files)
    }

    fn error_of(cert: &str, key: &str) -> String {
        let (cert, key) = (cert.to_owned(), key.to_owned());
        let (_dir, files) = files(&Pair { cert, key });
        match Certificates::open(files) {
            Ok(_) => panic!("it is taken"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn files_that_make_no_sense_are_refused_by_name_and_fault() {
        let (one, other) = (pair(), pair());
        let error = error_of(&one.cert, &other.key);
        assert!(error.contains("key.pem is not the one of"), "{error}");
        let error = error_of(&one.key, &one.key);
        assert!(error.contains("cert.pem has no certificate"), "{error}");
        for key in ["", &one.cert, "-----BEGIN PRIVATE KEY-----\n!\n"] {
            let error = error_of(&one.cert, key);
            assert!(error.contains("key.pem has no private key"), "{error}");
        }
        let nonsense = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let error = error_of(nonsense, &one.key);
        assert!(error.contains("cannot be spoken with"), "{error}");
        let (_dir, mut gone) = files(&one);
        gone.key = gone.key.with_file_name("gone.pem");
        let error = Certificates::open(gone).err().unwrap().to_string();
        assert!(error.contains("gone.pem cannot be read"), "{error}");
        let endless = TlsFiles {
            cert: "/dev/zero".into(),
            key: "/dev/zero".into(),
        };
        let error = Certificates::open(endless).err().unwrap().to_string();
        assert!(error.contains("too large"), "{error}");
    }

    #[test]
    fn new_files_are_used_when_they_are_whole_and_bad_ones_leave_the_old() {
        let (first, second) = (pair(), pair());
        let (_dir, files) = files(&first);
        let (mut certificates, mut current) = Certificates::open(files.clone()).unwrap();
        assert!(!certificates.look().unwrap());
        // Half of it: told once.
        fs::write(&files.cert, &second.cert).unwrap();
        assert!(certificates.look().is_err());
        assert!(!certificates.look().unwrap());
        fs::remove_file(&files.key).unwrap();
        assert!(certificates.look().is_err());
        assert!(!certificates.look().unwrap());
        assert!(!current.has_changed().unwrap());
        fs::write(&files.key, &second.key).unwrap();
        assert!(certificates.look().unwrap());
        assert!(current.has_changed().unwrap());
        current.mark_unchanged();
        assert!(!certificates.look().unwrap());
        assert!(!current.has_changed().unwrap());
    }

    #[tokio::test]
    async fn who_does_not_finish_the_handshake_is_not_waited_for() {
        let (_dir, files) = files(&pair());
        let (_certificates, current) = Certificates::open(files).unwrap();
        let (_caller, stream) = tokio::io::duplex(100);
        let error = accept(&current, stream, Duration::from_millis(20)).await;
        assert_eq!(error.err().unwrap().kind(), io::ErrorKind::TimedOut);
    }
}
