//! The coordinator's certificate authority: the fleet's only root of trust.
//!
//! The CA's key is made at the first start and never leaves the state directory. A node's
//! certificate carries the node's name and nothing else that the node asked for; it is good for
//! being a client, for some weeks, and the node has it renewed over its link in time. The coordinator's own certificate is made afresh, with a
//! fresh key held in memory only, at every start: nodes know the CA, not the certificate.

mod files;
mod seal;
mod tokens;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use holm_model::control::COORDINATOR_TLS_NAME;
use holm_model::ids::{Digest, Name};
use holm_model::token::TokenKey;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData as _, SerialNumber, SigningKey as _,
};
use rustls_pki_types::{
    CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer,
};
use x509_parser::prelude::{FromDer as _, X509Certificate};

pub(crate) use files::{write_first_secret, write_secret};
pub use tokens::TokenError;
pub(crate) use tokens::{
    ApiTokenError, JoinError, Joins, TokenWish, Tokens, ensure_admin_token, new_admin_token,
    random, view,
};

use crate::limits::MAX_CSR_BYTES;
use crate::store::NodeCertificate;

/// How long the CA's certificate is good.
const CA_LIFE: Duration = Duration::from_secs(3650 * 86_400);
/// Clocks of nodes may be behind by this much, or by a certificate's whole life if that is shorter.
const SKEW: Duration = Duration::from_secs(3600);

/// The certificate authority cannot do its work.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A file cannot be read or written.
    #[error("{operation} {path} failed: {source}; look at the state directory's disk and owner")]
    File {
        /// What was to be done.
        operation: &'static str,
        /// With which file.
        path: PathBuf,
        /// The system's words.
        source: std::io::Error,
    },
    /// The CA's files do not belong together.
    #[error(
        "the CA's files in the state directory are unusable: {0}; restore both `ca.key` and \
         `ca.der` from a backup, or remove both and join every node again"
    )]
    Unusable(String),
    /// A certificate cannot be made.
    #[error("making {what} failed: {why}")]
    Making {
        /// Which certificate.
        what: &'static str,
        /// Why.
        why: String,
    },
    /// The node's signing request is bad.
    #[error(
        "the node's certificate signing request cannot be used: {0}; the node is to send PKCS#10 \
         in DER, signed with its own key"
    )]
    BadRequest(String),
}

/// The CA. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Authority {
    issuer: Arc<Issuer<'static, KeyPair>>,
    certificate: CertificateDer<'static>,
}

impl Authority {
    /// Whether a CA, or a part of one, is in `dir`.
    pub(crate) fn is_in(dir: &Path) -> bool {
        dir.join("ca.key").exists() || dir.join("ca.der").exists()
    }

    /// Loads the CA from `dir`, or makes it if there is none.
    pub(crate) fn load_or_make(dir: &Path) -> Result<Self, CaError> {
        let key_path = dir.join("ca.key");
        let certificate_path = dir.join("ca.der");
        let key = match files::read(&key_path)? {
            Some(pem) => read_key(&pem)?,
            None if files::read(&certificate_path)?.is_some() => {
                return Err(CaError::Unusable(
                    "there is a certificate but no key".into(),
                ));
            }
            None => {
                let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
                    .map_err(making("the CA's key"))?;
                write_secret(&key_path, key.serialize_pem().as_bytes())?;
                key
            }
        };
        let certificate = match files::read(&certificate_path)? {
            Some(der) => CertificateDer::from(der),
            // Also after a crash between the two files.
            None => {
                let certificate = ca_params()
                    .and_then(|params| params.self_signed(&key))
                    .map_err(making("the CA's certificate"))?;
                write_secret(&certificate_path, certificate.der())?;
                certificate.der().clone()
            }
        };
        check_pair(&certificate, &key)?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key)
            .map_err(|error| CaError::Unusable(error.to_string()))?;
        Ok(Authority {
            issuer: Arc::new(issuer),
            certificate,
        })
    }

    /// The CA's certificate.
    pub(crate) fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// From which the secrets of API tokens follow: whoever has the CA's key could let anybody in
    /// anyhow, and all coordinators of a fleet have it.
    pub(crate) fn token_key(&self) -> TokenKey {
        TokenKey::derive(self.issuer.key().serialized_der())
    }

    /// SHA-256 of the CA's certificate, by which nodes know the coordinator when they join.
    pub(crate) fn fingerprint(&self) -> Digest {
        Digest::of(&self.certificate)
    }

    /// Signs with the CA's key: ECDSA with SHA-256, in DER. What is signed begins with what it is for.
    pub(crate) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, CaError> {
        let signature = self.issuer.key().sign(message);
        signature.map_err(making("a signature"))
    }

    /// A certificate and key for the coordinator's QUIC endpoint.
    pub(crate) fn server_identity(
        &self,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), CaError> {
        const WHAT: &str = "the coordinator's certificate";
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(making(WHAT))?;
        let mut params =
            CertificateParams::new(vec![COORDINATOR_TLS_NAME.to_owned()]).map_err(making(WHAT))?;
        params.distinguished_name = common_name("Holm coordinator");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        number(&mut params);
        // As the authority itself, whatever the clock says: one that is made while it is ahead would keep every node
        // away when the clock is right again.
        let (_, authority) = X509Certificate::from_der(&self.certificate)
            .map_err(|_| CaError::Unusable("`ca.der` is not a certificate".into()))?;
        let validity = authority.validity();
        params.not_before = validity.not_before.to_datetime();
        params.not_after = validity.not_after.to_datetime();
        let certificate = params.signed_by(&key, &self.issuer).map_err(making(WHAT))?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        Ok((
            vec![certificate.der().clone(), self.certificate.clone()],
            key,
        ))
    }

    /// Signs a node's own key, for so long. Of the request, only the key is taken; what is certified is `node`.
    pub(crate) fn sign_node(
        &self,
        node: &Name,
        csr_der: &[u8],
        life: Duration,
    ) -> Result<CertificateDer<'static>, CaError> {
        const WHAT: &str = "a node's certificate";
        if csr_der.len() > MAX_CSR_BYTES {
            return Err(CaError::BadRequest(format!(
                "it has {} bytes, more than the {MAX_CSR_BYTES} allowed",
                csr_der.len()
            )));
        }
        // Checks the signature too: the node has the key that it asks a certificate for.
        let request =
            CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr_der))
                .map_err(|error| CaError::BadRequest(error.to_string()))?;
        let mut params = CertificateParams::new(vec![node.to_string()]).map_err(making(WHAT))?;
        params.distinguished_name = common_name(node.as_str());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        valid_for(&mut params, life);
        let certificate = params
            .signed_by(&request.public_key, &self.issuer)
            .map_err(making(WHAT))?;
        Ok(certificate.der().clone())
    }
}

/// The node's name in a certificate that TLS has already verified against the CA.
pub(crate) fn node_name(certificate: &CertificateDer<'_>) -> Option<Name> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    certificate
        .subject()
        .iter_common_name()
        .next()?
        .as_str()
        .ok()?
        .parse()
        .ok()
}

/// What is kept of a node's certificate; none if it is not one.
pub(crate) fn kept(der: &CertificateDer<'_>) -> Option<NodeCertificate> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let until = u64::try_from(certificate.validity().not_after.timestamp()).ok()?;
    Some(NodeCertificate {
        digest: Digest::of(der),
        key: Digest::of(certificate.public_key().raw),
        until_ms: until.checked_mul(1000)?,
    })
}

fn read_key(pem: &[u8]) -> Result<KeyPair, CaError> {
    let unusable = || CaError::Unusable("`ca.key` is not a PKCS#8 key in PEM".into());
    let pem = std::str::from_utf8(pem).map_err(|_| unusable())?;
    KeyPair::from_pem(pem).map_err(|_| unusable())
}

fn check_pair(certificate: &CertificateDer<'_>, key: &KeyPair) -> Result<(), CaError> {
    let (_, certificate) = X509Certificate::from_der(certificate)
        .map_err(|_| CaError::Unusable("`ca.der` is not a certificate".into()))?;
    match certificate.public_key().raw == key.subject_public_key_info() {
        true => Ok(()),
        false => Err(CaError::Unusable(
            "the certificate is not that of the key".into(),
        )),
    }
}

fn ca_params() -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = common_name("Holm fleet CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    valid_for(&mut params, CA_LIFE);
    Ok(params)
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn valid_for(params: &mut CertificateParams, life: Duration) {
    let now = SystemTime::now();
    number(params);
    params.not_before = (now - SKEW.min(life)).into();
    params.not_after = (now + life).into();
}

fn number(params: &mut CertificateParams) {
    let mut serial = random::<16>();
    // A serial number is positive.
    serial[0] &= 0x7f;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.use_authority_key_identifier_extension = true;
}

fn making(what: &'static str) -> impl Fn(rcgen::Error) -> CaError {
    move |error| CaError::Making {
        what,
        why: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn csr() -> Vec<u8> {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["whatever.example".to_owned()]).unwrap();
        params.serialize_request(&key).unwrap().der().to_vec()
    }

    #[test]
    fn a_restart_finds_the_same_ca() {
        let dir = tempfile::tempdir().unwrap();
        let first = Authority::load_or_make(dir.path()).unwrap();
        let second = Authority::load_or_make(dir.path()).unwrap();
        assert_eq!(first.fingerprint(), second.fingerprint());
    }

    #[test]
    fn the_coordinators_certificate_is_good_as_long_as_the_authoritys_whatever_the_clock_says() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::load_or_make(dir.path()).unwrap();
        let (chain, _) = authority.server_identity().unwrap();
        let [own, of_authority] = [0, 1].map(|place| {
            let (_, certificate) = X509Certificate::from_der(&chain[place]).unwrap();
            certificate.validity().clone()
        });
        assert_eq!(own, of_authority);
    }

    #[test]
    fn the_key_is_for_its_owner_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        Authority::load_or_make(dir.path()).unwrap();
        let mode = std::fs::metadata(dir.path().join("ca.key"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn files_that_do_not_belong_together_are_refused() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        Authority::load_or_make(one.path()).unwrap();
        Authority::load_or_make(other.path()).unwrap();
        std::fs::copy(one.path().join("ca.key"), other.path().join("ca.key")).unwrap();
        let mixed = Authority::load_or_make(other.path()).err().unwrap();
        assert!(mixed.to_string().contains("not that of the key"), "{mixed}");
        std::fs::remove_file(one.path().join("ca.key")).unwrap();
        let keyless = Authority::load_or_make(one.path()).err().unwrap();
        assert!(keyless.to_string().contains("no key"), "{keyless}");
    }

    #[test]
    fn a_node_gets_its_name_and_nothing_else_it_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::load_or_make(dir.path()).unwrap();
        let name: Name = "edge-1".parse().unwrap();
        let life = Duration::from_secs(30 * 86_400);
        let der = authority.sign_node(&name, &csr(), life).unwrap();
        assert_eq!(node_name(&der), Some(name));
        let (_, certificate) = X509Certificate::from_der(&der).unwrap();
        assert!(!String::from_utf8_lossy(&der).contains("whatever.example"));
        let usage = certificate.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.client_auth && !usage.server_auth && !usage.any);
        let days = certificate
            .validity()
            .time_to_expiration()
            .unwrap()
            .whole_days();
        assert!((29..=30).contains(&days), "{days}");
    }

    #[test]
    fn a_bad_signing_request_is_the_nodes_fault() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::load_or_make(dir.path()).unwrap();
        let name: Name = "edge-1".parse().unwrap();
        let mut altered = csr();
        let last = altered.len() - 1;
        altered[last] ^= 1;
        for bad in [
            &[][..],
            b"not a request",
            &altered,
            &vec![0; MAX_CSR_BYTES + 1],
        ] {
            let error = authority.sign_node(&name, bad, SKEW).unwrap_err();
            assert!(matches!(error, CaError::BadRequest(_)), "{error}");
        }
    }
}
