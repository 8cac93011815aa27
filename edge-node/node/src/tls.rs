//! TLS towards the coordinator: TLS 1.3 only, and no trust but in the coordinator's own CA.

use std::sync::Arc;

use holm_model::ids::Digest;
use holm_model::protocol::Purpose;
use holm_tls::provider;
use quinn::crypto::rustls::QuicClientConfig;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::identity::Identity;
use crate::limits::{LINK_IDLE, LINK_KEEP_ALIVE};

/// The certificates at hand cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the node's certificates cannot be used: {0}; join again")]
pub struct TlsError(String);

pub(crate) fn wrong(error: impl std::fmt::Display) -> TlsError {
    TlsError(error.to_string())
}

/// For the control link: the coordinator is known by `identity.ca`, the node shows its certificate.
pub(crate) fn link(identity: &Identity, purpose: Purpose) -> Result<quinn::ClientConfig, TlsError> {
    let mut roots = RootCertStore::empty();
    roots.add(identity.ca.clone()).map_err(wrong)?;
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(wrong)?
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![identity.certificate.clone()], identity.key.clone_key())
        .map_err(wrong)?;
    quic(config, purpose)
}

/// For joining: the coordinator is known by the digest of its CA's certificate alone.
pub(crate) fn pinned(ca: Digest, purpose: Purpose) -> Result<quinn::ClientConfig, TlsError> {
    let provider = provider();
    let algorithms = provider.signature_verification_algorithms;
    let verifier = PinnedCa {
        ca,
        provider: provider.clone(),
        algorithms,
    };
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(wrong)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    quic(config, purpose)
}

/// Checks that `key` and `certificate` belong together, as the link will need.
pub(crate) fn check_pair(identity: &Identity) -> Result<(), TlsError> {
    link(identity, Purpose::Link).map(|_| ())
}

fn quic(mut config: ClientConfig, purpose: Purpose) -> Result<quinn::ClientConfig, TlsError> {
    config.alpn_protocols = purpose.names();
    let crypto = QuicClientConfig::try_from(config).map_err(wrong)?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    let mut transport = quinn::TransportConfig::default();
    transport.keep_alive_interval(Some(LINK_KEEP_ALIVE));
    transport.max_idle_timeout(Some(LINK_IDLE.try_into().map_err(wrong)?));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

/// Trusts a chain only if it ends in the CA certificate with this digest.
#[derive(Debug)]
struct PinnedCa {
    ca: Digest,
    provider: Arc<CryptoProvider>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for PinnedCa {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let (ca, between) = intermediates
            .split_last()
            .filter(|(last, _)| Digest::of(last) == self.ca)
            .ok_or(rustls::Error::InvalidCertificate(
                CertificateError::UnknownIssuer,
            ))?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?
            .verify_server_cert(end_entity, between, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        // QUIC has no TLS 1.2, and the configuration does not offer it.
        Err(rustls::Error::General("TLS 1.2 is not spoken here".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
