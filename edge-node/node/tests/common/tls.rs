//! Certificates, and a caller that knows one of them.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use holm_node::TlsFiles;
use hyper::Request;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::http::{Answer, Client, Http2};

/// Writes a new certificate for `localhost` and its key.
pub fn certificate(files: &TlsFiles) -> CertificateDer<'static> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(&files.cert, made.cert.pem()).unwrap();
    std::fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
    made.cert.der().clone()
}

/// One request, of the version of HTTP that is the only one offered.
pub async fn get(
    to: SocketAddr,
    trusted: &CertificateDer<'static>,
    alpn: &[u8],
    path: &str,
) -> io::Result<Answer> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    let stream = TcpStream::connect(to).await?;
    let name = ServerName::try_from("localhost").unwrap();
    let stream = TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await?;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(alpn));
    let request = |uri: String| {
        let request = Request::get(uri).header("host", "localhost");
        request.body(Default::default()).unwrap()
    };
    Ok(match alpn {
        b"h2" => {
            let mut client = Http2::over(stream).await;
            client
                .send(request(format!("https://localhost{path}")))
                .await
        }
        _ => {
            let mut client = Client::over(stream).await;
            client.send(request(path.to_owned())).await.unwrap()
        }
    })
}
