//! What the node shows the coordinator on its link, and how that is renewed in time.
//!
//! The key stays the node's own as long as it is joined; what is renewed is the coordinator's word for it. The
//! coordinator knows the node by its key, and takes any certificate for it that has not ended, so neither a crash nor
//! a lost answer shuts the node out. One whose certificate has ended gets no link any more, and serves on.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use holm_model::control::{BulkAnswer, BulkRequest};
use holm_model::protocol::Purpose;
use quinn::Connection;
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::files::FileError;
use crate::identity::{self, Identity};
use crate::limits::{LINK_TIMEOUT, MAX_RENEWAL_PAUSE, MIN_RENEWAL_PAUSE};
use crate::session::{LinkError, ask};
use crate::tls::{self, TlsError};

/// The node's identity, as the link uses it.
#[derive(Debug)]
pub(crate) struct Credentials {
    dir: PathBuf,
    identity: Identity,
    validity: Validity,
    config: quinn::ClientConfig,
}

/// From when to when a certificate is good, since 1970 UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Validity {
    from: Duration,
    until: Duration,
}

/// The certificate was not renewed; the one before is still here.
#[derive(Debug, thiserror::Error)]
enum RenewalError {
    #[error("no signing request could be made: {0}")]
    Request(#[from] rcgen::Error),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("the coordinator refuses: {0}")]
    Refused(String),
    #[error("the coordinator's answer cannot be used: {0}; its operator must look into it")]
    BadAnswer(String),
    #[error(transparent)]
    File(#[from] FileError),
}

impl Credentials {
    /// Those of the node whose state is in `dir`.
    pub(crate) fn new(dir: &Path, identity: Identity) -> Result<Self, TlsError> {
        Ok(Credentials {
            dir: dir.to_owned(),
            validity: Validity::of(&identity.certificate)?,
            config: tls::link(&identity, Purpose::Link)?,
            identity,
        })
    }

    /// For dialling the coordinator.
    pub(crate) fn config(&self) -> &quinn::ClientConfig {
        &self.config
    }

    /// Whether the certificate has ended, by this machine's clock.
    pub(crate) fn have_ended(&self) -> bool {
        now() >= self.validity.until
    }

    /// Has the certificate renewed over the link whenever that is due, as long as it is polled. The link stays what
    /// it is; the next one is made with the new certificate.
    pub(crate) async fn keep(&mut self, connection: &Connection) -> Infallible {
        let mut again = MIN_RENEWAL_PAUSE;
        loop {
            let pause = self.validity.pause(now());
            if !pause.is_zero() {
                // Never for long: a machine that was suspended has slept without its clock.
                tokio::time::sleep(pause.min(MAX_RENEWAL_PAUSE)).await;
                continue;
            }
            match self.renew(connection).await {
                Ok(()) => {
                    tracing::info!("the node's certificate is renewed");
                    again = MIN_RENEWAL_PAUSE;
                }
                Err(error) => {
                    tracing::warn!(%error, again_in_s = again.as_secs(), "the node's certificate is not renewed");
                    tokio::time::sleep(again).await;
                    again = (again * 2).min(MAX_RENEWAL_PAUSE);
                }
            }
        }
    }

    async fn renew(&mut self, connection: &Connection) -> Result<(), RenewalError> {
        let key = rcgen::KeyPair::try_from(&self.identity.key)?;
        let csr_der = identity::signing_request(&self.identity.name, &key)?;
        let request = BulkRequest::Renew { csr_der };
        let answer = tokio::time::timeout(LINK_TIMEOUT, ask(connection, &request)).await;
        let (answer, _) = answer.map_err(|_| LinkError::Silent)??;
        match answer {
            BulkAnswer::Renewed { certificate_der } => self.take(certificate_der.into()),
            BulkAnswer::Refused { reason } => Err(RenewalError::Refused(reason)),
            BulkAnswer::Bytes { .. } | BulkAnswer::UsageStored { .. } | BulkAnswer::Leases(_) => {
                Err(LinkError::Protocol("it answers another question").into())
            }
        }
    }

    /// Takes the new certificate, unless it is worse than the one before.
    fn take(&mut self, certificate: CertificateDer<'static>) -> Result<(), RenewalError> {
        let bad = |why: TlsError| RenewalError::BadAnswer(why.to_string());
        let validity = Validity::of(&certificate).map_err(bad)?;
        if validity.until <= self.validity.until {
            let why = "the new certificate does not last longer than the one before";
            return Err(RenewalError::BadAnswer(why.into()));
        }
        let identity = self.identity.with(certificate);
        let config = tls::link(&identity, Purpose::Link).map_err(bad)?;
        // On disk before it is shown, so that a restart has no older one.
        identity.save_certificate(&self.dir)?;
        (self.identity, self.validity, self.config) = (identity, validity, config);
        Ok(())
    }
}

impl Validity {
    fn of(certificate: &CertificateDer<'_>) -> Result<Self, TlsError> {
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(tls::wrong)?;
        let validity = parsed.validity();
        let since_1970 =
            |seconds: i64| Duration::from_secs(u64::try_from(seconds).unwrap_or_default());
        Ok(Validity {
            from: since_1970(validity.not_before.timestamp()),
            until: since_1970(validity.not_after.timestamp()),
        })
    }

    /// How long it is from `now` until a third of it is left.
    fn pause(self, now: Duration) -> Duration {
        let third = self.until.saturating_sub(self.from) / 3;
        self.until.saturating_sub(third).saturating_sub(now)
    }
}

fn now() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_renewed_when_a_third_of_it_is_left() {
        let seconds = Duration::from_secs;
        let validity = Validity {
            from: seconds(1000),
            until: seconds(1300),
        };
        for (now, pause) in [(900, 300), (1000, 200), (1199, 1), (1200, 0), (1500, 0)] {
            assert_eq!(validity.pause(seconds(now)), seconds(pause), "{now}");
        }
    }

    #[test]
    fn one_that_is_worse_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let name: holm_model::ids::Name = "n1".parse().unwrap();
        let keys = [(); 2].map(|()| rcgen::KeyPair::generate().unwrap());
        let certificate = |key: &rcgen::KeyPair, year| {
            let mut params = rcgen::CertificateParams::new(vec!["n1".to_owned()]).unwrap();
            params.not_after = rcgen::date_time_ymd(year, 1, 1);
            params.self_signed(key).unwrap().der().clone()
        };
        let first = certificate(&keys[0], 2040);
        let pem = keys[0].serialize_pem();
        Identity::save(dir.path(), &name, "c:1", &pem, &first, &first).unwrap();
        let load = || Identity::load(dir.path()).unwrap();
        let mut credentials = Credentials::new(dir.path(), load()).unwrap();
        for (worse, why) in [
            (certificate(&keys[0], 2039), "does not last longer"),
            (certificate(&keys[1], 2041), "certificates"),
            (CertificateDer::from(vec![1, 2, 3]), "certificates"),
        ] {
            let error = credentials.take(worse).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
            assert_eq!(load().certificate, first);
        }
        let better = certificate(&keys[0], 2041);
        credentials.take(better.clone()).unwrap();
        assert_eq!(load().certificate, better);
        assert_eq!(load().ca, first);
    }
}
