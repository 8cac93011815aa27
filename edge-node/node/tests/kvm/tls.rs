//! TLS with callers.

use std::time::{Duration, Instant};

use holm_node::TlsFiles;
use holm_test_support::require_kvm;

use crate::common::http::text;
use crate::common::program::Version;
use crate::common::{shutdown, tls};
use crate::serving_with;

#[tokio::test(flavor = "multi_thread")]
async fn kvm_a_node_with_a_certificate_speaks_both_versions_of_http_over_tls_and_takes_new_files() {
    if !require_kvm() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let files = TlsFiles {
        cert: dir.path().join("cert.pem"),
        key: dir.path().join("key.pem"),
    };
    let first = tls::certificate(&files);
    let (_coordinator, _dir, node) = serving_with(&Version::new("v1", 1), |config| {
        config.tls = Some(files.clone());
    })
    .await;
    assert!(node.url().starts_with("https://"), "{}", node.url());

    let answer = tls::get(node.addr(), &first, b"http/1.1", "/acme/hello/").await;
    assert_eq!(text(&answer.unwrap()), "v1");
    let answer = tls::get(node.addr(), &first, b"h2", "/acme/hello/").await;
    assert_eq!(text(&answer.unwrap()), "v1");
    let second = tls::certificate(&files);
    let began = Instant::now();
    loop {
        let answer = tls::get(node.addr(), &second, b"h2", "/.holm/health").await;
        if answer.is_ok_and(|answer| answer.status() == 200) {
            break;
        }
        assert!(
            began.elapsed() < Duration::from_secs(30),
            "the new certificate is not used"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let old = tls::get(node.addr(), &first, b"h2", "/.holm/health").await;
    assert!(old.is_err(), "the old certificate is gone");
    shutdown(node).await;
}
