//! Instances that are kept between requests.

use std::time::Duration;

use holm_model::ids::RequestId;
use holm_test_support::require_kvm;

use crate::common::http::{Client, text};
use crate::common::program::{Version, desired};
use crate::common::{shutdown, until};
use crate::{routed, serving};

#[tokio::test(flavor = "multi_thread")]
async fn kvm_an_instance_keeps_its_state_if_the_manifest_says_so() {
    if !require_kvm() {
        return;
    }
    let (_coordinator, _dir, node) = serving(&Version::instance("v1", 1)).await;
    let mut client = Client::connect(node.addr()).await;
    for n in 1..=20 {
        assert_eq!(
            text(&client.get("/acme/hello/count").await.unwrap()),
            n.to_string()
        );
        // The instance gets to its next wait after the answer.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // What crashes it is answered, and the next request gets a fresh one.
    assert_eq!(client.get("/acme/hello/crash").await.unwrap().status(), 502);
    assert_eq!(text(&client.get("/acme/hello/count").await.unwrap()), "1");
    shutdown(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kvm_what_an_instance_says_at_its_end_is_told() {
    if !require_kvm() {
        return;
    }
    let (v1, v2) = (Version::instance("v1", 1), Version::instance("v2", 2));
    let (coordinator, _dir, node) = serving(&v1).await;
    // One connection, and so one thread with its instance.
    let mut client = Client::connect(node.addr()).await;
    let told = |version: &Version| {
        let state = coordinator.state();
        state.logs.iter().any(|entry| {
            let of = (entry.version, entry.request, entry.failed);
            entry.text == "bye after 1 requests"
                && of == (version.signed.id(), RequestId::NONE, false)
        })
    };
    assert_eq!(
        text(&client.get("/acme/hello/until-told").await.unwrap()),
        "ok"
    );
    coordinator.add_artifact(&v2);
    coordinator.want(desired(2, &v2, Some(&v1)));
    routed(&coordinator, &v2).await;
    until("the instance of the old version has said its last", || {
        told(&v1)
    })
    .await;
    // And when the node stops.
    assert_eq!(
        text(&client.get("/acme/hello/until-told").await.unwrap()),
        "ok"
    );
    shutdown(node).await;
    until("the last instance has said its last", || told(&v2)).await;
}
