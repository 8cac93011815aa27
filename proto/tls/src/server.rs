//! TLS towards callers: a certificate chain and its key from files, which may be replaced while they are in use.
//!
//! New files are used from the next connection on. Files that make no sense, or not yet because only one of the
//! two has been replaced, leave the server with what it has.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::{InconsistentKeys, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::TlsFileError;

/// What is spoken inside, the preferred one first.
const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// A certificate and its key, in PEM form. They are read again when they change.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The certificate, and those between it and a root that callers know.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// By which options they are given.
const OPTIONS: &str = "--tls-cert and --tls-key";
/// How often they are looked at.
const LOOK: Duration = Duration::from_secs(2);

/// The configuration for the next connection.
pub type Current = watch::Receiver<Arc<ServerConfig>>;

/// The files and what was last made of them.
#[derive(Debug)]
pub struct Certificates {
    files: TlsFiles,
    /// Their contents when they were last looked at.
    seen: Option<[Vec<u8>; 2]>,
    current: watch::Sender<Arc<ServerConfig>>,
}

impl Certificates {
    /// Reads them; the error says what is wrong with which.
    pub fn open(files: TlsFiles) -> Result<(Self, Current), TlsFileError> {
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
    pub async fn follow(mut self) {
        loop {
            tokio::time::sleep(LOOK).await;
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
    Ok([
        crate::read(&files.cert, OPTIONS)?,
        crate::read(&files.key, OPTIONS)?,
    ])
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
    let mut config = ServerConfig::builder_with_provider(crate::provider())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(unusable)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(unusable)?;
    config.alpn_protocols = ALPN.map(<[u8]>::to_vec).to_vec();
    Ok(config)
}

/// The handshake, which may not take longer than `patience`.
pub async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
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
pub(crate) mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;

    pub(crate) struct Pair {
        pub(crate) cert: String,
        pub(crate) key: String,
    }

    pub(crate) fn pair() -> Pair {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        Pair {
            cert: made.cert.pem(),
            key: made.signing_key.serialize_pem(),
        }
    }

    pub(crate) fn files(pair: &Pair) -> (TempDir, TlsFiles) {
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
