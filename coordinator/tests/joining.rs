//! Joining the fleet: tokens, and what a refusal says.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::Coordinator;
use common::node::{join, join_with};
use holm_model::api::JoinTokenAnswer;
use serde_json::json;

#[tokio::test]
async fn a_token_lets_one_machine_in_and_no_second_one() {
    let coordinator = Coordinator::start().await;
    let token = coordinator.join_token().await;
    let identity = join(coordinator.quic, &token, "edge-1").await.unwrap();
    assert_eq!(identity.name.as_str(), "edge-1");
    let again = join(coordinator.quic, &token, "edge-2").await.unwrap_err();
    assert!(
        again.contains("was used already, by node `edge-1`"),
        "{again}"
    );
}

#[tokio::test]
async fn the_token_names_the_coordinators_ca_and_address() {
    let coordinator = Coordinator::start().await;
    let token: holm_model::join::JoinToken = coordinator.join_token().await.parse().unwrap();
    assert_eq!(token.address, coordinator.quic.to_string());
    let identity = join_with(coordinator.quic, token.secret, "edge-1")
        .await
        .unwrap();
    assert_eq!(holm_model::ids::Digest::of(&identity.ca), token.ca);
}

#[tokio::test]
async fn a_token_that_has_expired_is_refused_as_such() {
    let coordinator = Coordinator::start().await;
    let answer = coordinator
        .client
        .post("/v1/join-tokens", &json!({ "ttl_seconds": 1 }))
        .await;
    let token = answer.expect::<JoinTokenAnswer>(201).token;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let refused = join(coordinator.quic, &token, "edge-1").await.unwrap_err();
    assert!(refused.contains("has expired"), "{refused}");
}

#[tokio::test]
async fn a_token_for_one_name_is_refused_for_another_and_stays_good() {
    let coordinator = Coordinator::start().await;
    let body = json!({ "node": "edge-1" });
    let token = coordinator
        .client
        .post("/v1/join-tokens", &body)
        .await
        .expect::<JoinTokenAnswer>(201)
        .token;
    let refused = join(coordinator.quic, &token, "edge-2").await.unwrap_err();
    assert!(
        refused.contains("a node called `edge-1` only, not for `edge-2`"),
        "{refused}"
    );
    join(coordinator.quic, &token, "edge-1").await.unwrap();
}

#[tokio::test]
async fn a_token_that_nobody_made_is_refused_as_unknown() {
    let coordinator = Coordinator::start().await;
    let refused = join_with(coordinator.quic, vec![7; 32], "edge-1")
        .await
        .unwrap_err();
    assert!(refused.contains("not known here"), "{refused}");
}

#[tokio::test]
async fn the_name_of_a_living_node_goes_only_to_a_token_made_for_it() {
    let coordinator = Coordinator::start().await;
    let node = common::node::TestNode::start(&coordinator, "edge-1", 1).await;
    let token = coordinator.join_token().await;
    let refused = join(coordinator.quic, &token, "edge-1").await.unwrap_err();
    assert!(
        refused.contains("there is a node called `edge-1` already"),
        "{refused}"
    );

    // The operator says that the machine was replaced: the old certificate is void from then on.
    let body = json!({ "node": "edge-1" });
    let token = coordinator
        .client
        .post("/v1/join-tokens", &body)
        .await
        .expect::<JoinTokenAnswer>(201)
        .token;
    join(coordinator.quic, &token, "edge-1").await.unwrap();
    node.kill();
    let alpn = holm_model::control::ALPN;
    let connection = common::node::dial(coordinator.quic, alpn, Some(&node.identity)).await;
    let (mut send, _recv) = connection.open_bi().await.unwrap();
    let hello = holm_model::control::NodeMessage::Hello(common::node::hello(1));
    common::node::write(&mut send, &hello).await;
    let closed = tokio::time::timeout(common::PATIENCE, connection.closed())
        .await
        .unwrap();
    assert!(closed.to_string().contains("or was replaced"), "{closed}");
}

#[tokio::test]
async fn a_token_may_not_live_for_ever() {
    let coordinator = Coordinator::start().await;
    for ttl in [0, 1_000_000_000] {
        let body = json!({ "ttl_seconds": ttl });
        let problem = coordinator
            .client
            .post("/v1/join-tokens", &body)
            .await
            .problem(400);
        assert!(
            problem.detail.contains("may live 1 to"),
            "{}",
            problem.detail
        );
    }
}
