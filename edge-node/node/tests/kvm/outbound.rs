//! A function that connects to elsewhere, through a whole node.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use holm_node::outbound::{Means, Outside};
use holm_test_support::require_kvm;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::common::http::{get, text};
use crate::common::program::{Broken, Version};
use crate::common::{shutdown, until};
use crate::{outcomes, serving_with};

/// Every address that may be dialled is one of this machine's loopback interface.
#[derive(Debug)]
struct Loopback;

impl Means for Loopback {
    fn resolve(&self, _: &str) -> std::io::Result<Vec<IpAddr>> {
        Ok(Vec::new())
    }

    fn dial(&self, to: SocketAddr) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, to.port()).into()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kvm_a_function_fetches_from_where_its_manifest_says_and_the_bytes_are_on_record() {
    if !require_kvm() {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = String::new();
            stream.read_to_string(&mut asked).await.unwrap();
            stream
                .write_all(format!("{asked} to you").as_bytes())
                .await
                .unwrap();
        }
    });
    let v1 = Version::with("v1", 1, Broken::No, |statement| {
        let allowed = ["198.51.100.1", "169.254.169.254"];
        statement.manifest.network.allow = allowed.map(|ip| format!("{ip}:{port}")).into();
    });
    let (coordinator, _dir, node) = serving_with(&v1, |config| {
        config.outside = Outside::with(Vec::new(), Arc::new(Loopback));
    })
    .await;

    for (ip, expected) in [
        ("198.51.100.1", "hello to you"),
        // Not in the manifest, and in it but the node's own.
        ("198.51.100.2", "connect: EACCES"),
        ("169.254.169.254", "connect: EACCES"),
    ] {
        let path = format!("/acme/hello/fetch?{ip}:{port}");
        assert_eq!(text(&get(node.addr(), &path).await), expected, "{ip}");
    }
    outcomes(&coordinator, 3).await;
    let mut rows = coordinator.state().ledger.clone();
    rows.retain(|row| !row.probe);
    let bytes: Vec<_> = rows
        .iter()
        .map(|row| (row.egress_bytes, row.ingress_bytes))
        .collect();
    assert_eq!(bytes, [(5, 12), (0, 0), (0, 0)]);
    until("the log says what to do", || {
        let state = coordinator.state();
        state
            .logs
            .iter()
            .any(|entry| entry.text.contains("[network] allow"))
    })
    .await;
    shutdown(node).await;
}
