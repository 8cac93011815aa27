//! What operators say of nodes, and of the keys that may sign for a tenant.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::node::{TestNode, hello, join};
use common::{Coordinator, Publisher, post_version, program, public, put_artifact, until};
use ed25519_dalek::SigningKey;
use holm_model::api::{
    NodeView, PruneView, RolloutState, RolloutView, RouteView, TenantView, VersionView,
};
use holm_model::artifact::SignedVersion;
use holm_model::ids::VersionId;
use serde_json::{Value, json};

async fn post(coordinator: &Coordinator, path: &str) -> common::http::Answer {
    coordinator.client.post(path, &json!({})).await
}

async fn label(coordinator: &Coordinator, node: &str, labels: Value) -> common::http::Answer {
    let body = serde_json::to_vec(&json!({ "labels": labels })).unwrap();
    let path = format!("/v1/nodes/{node}/labels");
    coordinator.client.put(&path, &body).await
}

/// Rolls a version out and waits for the rollout's end.
async fn roll_out(
    coordinator: &Coordinator,
    publisher: &Publisher,
    version: &VersionView,
) -> RolloutView {
    let rollout = publisher
        .roll_out(coordinator, version.version, &[100], 0)
        .await;
    coordinator
        .rollout_when(rollout.id, |view| view.ended_ms.is_some())
        .await
}

/// The nodes of its waves.
fn moved(rollout: &RolloutView) -> Vec<&str> {
    let nodes = rollout.waves.iter().flat_map(|wave| &wave.nodes);
    nodes.map(|node| node.as_str()).collect()
}

async fn routes_to(node: &TestNode, version: VersionId) {
    until("the node to route to the version", || async {
        node.routed() == Some(version)
    })
    .await;
}

/// The versions that the node is to have of its one function.
fn wanted(node: &TestNode) -> Vec<VersionId> {
    let behaviour = node.behaviour.lock().unwrap();
    let functions = behaviour.desired.functions.iter();
    let of = |f: &holm_model::control::DesiredFunction| {
        let previous = f.previous.as_ref().map(SignedVersion::id);
        [Some(f.version.id()), previous]
    };
    functions.flat_map(of).flatten().collect()
}

async fn both_are_connected(coordinator: &Coordinator) {
    until("both nodes to be connected", || async {
        let nodes = coordinator.nodes().await;
        nodes.iter().filter(|node| node.connected).count() == 2
    })
    .await;
}

async fn knows_that_it_is_drained(node: &TestNode) {
    until("a node that knows that it is drained", || async {
        node.behaviour.lock().unwrap().desired.draining.drained
    })
    .await;
}

#[tokio::test]
async fn a_cordoned_node_keeps_what_it_has_and_gets_neither_versions_nor_callers() {
    let mut coordinator = Coordinator::start().await;
    let n1 = TestNode::start(&coordinator, "n1", 1).await;
    let n2 = TestNode::start(&coordinator, "n2", 2).await;
    let mut publisher = Publisher::register(&coordinator, "acme/hello", 1).await;
    let first = publisher.publish(&coordinator, "").await;
    let second = publisher.publish(&coordinator, "").await;
    roll_out(&coordinator, &publisher, &first).await;
    roll_out(&coordinator, &publisher, &second).await;

    let view: NodeView = post(&coordinator, "/v1/nodes/n1/cordon").await.expect(200);
    assert!(view.cordoned && !view.drained);
    let third = publisher.publish(&coordinator, "").await;
    let rollout = roll_out(&coordinator, &publisher, &third).await;
    assert_eq!(rollout.state, RolloutState::Completed);
    let nodes = moved(&rollout);
    assert_eq!(nodes, ["n2"], "it is in no wave");
    routes_to(&n2, third.version).await;
    assert_eq!(wanted(&n1), [second.version, first.version]);
    let mut other = Publisher::register(&coordinator, "beta/new", 2).await;
    let new = other.publish(&coordinator, "").await;
    roll_out(&coordinator, &other, &new).await;
    assert_eq!(wanted(&n1), [second.version, first.version]);
    // It still serves who comes, and is shown to nobody.
    assert!(!n1.behaviour.lock().unwrap().desired.draining.drained);
    let route: RouteView = coordinator
        .client
        .get("/v1/route/acme/hello")
        .await
        .expect(200);
    assert_eq!(route.candidates.len(), 1);
    assert!(
        route.excluded[0].why.contains("holm nodes uncordon"),
        "{route:?}"
    );
    // What it keeps, nothing removes.
    let prune = json!({ "function": "acme/hello", "keep": 1, "dry_run": true });
    let prune: PruneView = coordinator
        .client
        .post("/v1/prune", &prune)
        .await
        .expect(200);
    let first_kept = prune
        .kept
        .iter()
        .find(|kept| kept.version.version == first.version);
    let why = first_kept.unwrap().why.join("; ");
    assert!(why.contains("the cordoned node n1 keeps it"), "{why}");

    // Whoever starts anew, it stays so.
    coordinator.restart().await;
    both_are_connected(&coordinator).await;
    assert!(coordinator.nodes().await[0].cordoned);
    // Again: what it keeps is what it had first.
    post(&coordinator, "/v1/nodes/n1/cordon")
        .await
        .expect::<NodeView>(200);
    assert_eq!(wanted(&n1), [second.version, first.version]);
    let view: NodeView = post(&coordinator, "/v1/nodes/n1/uncordon")
        .await
        .expect(200);
    assert!(!view.cordoned);
    until("the node to be as others", || async {
        let wanted = wanted(&n1);
        wanted.contains(&third.version) && wanted.contains(&new.version)
    })
    .await;
}

#[tokio::test]
async fn a_cordoned_node_goes_back_with_the_fleet_to_what_it_has_as_well() {
    let coordinator = Coordinator::start().await;
    let n1 = TestNode::start(&coordinator, "n1", 1).await;
    let n2 = TestNode::start(&coordinator, "n2", 2).await;
    let mut publisher = Publisher::register(&coordinator, "acme/hello", 1).await;
    let first = publisher.publish(&coordinator, "").await;
    let second = publisher.publish(&coordinator, "").await;
    roll_out(&coordinator, &publisher, &first).await;
    let rollout = publisher
        .roll_out(&coordinator, second.version, &[50, 100], 60_000)
        .await;
    routes_to(&n1, second.version).await;
    post(&coordinator, "/v1/nodes/n1/cordon")
        .await
        .expect::<NodeView>(200);
    assert_eq!(wanted(&n1), [second.version, first.version], "it was moved");
    post(&coordinator, &format!("/v1/rollouts/{}/abort", rollout.id))
        .await
        .expect::<RolloutView>(200);
    routes_to(&n1, first.version).await;
    assert_eq!(n2.routed(), Some(first.version));
}

#[tokio::test]
async fn labels_place_functions_and_take_them_away_again() {
    let coordinator = Coordinator::start().await;
    let n1 = TestNode::start(&coordinator, "n1", 1).await;
    let n2 = TestNode::start(&coordinator, "n2", 2).await;
    let view = label(&coordinator, "n1", json!({ "disk": "ssd", "rack": "7" })).await;
    let view: NodeView = view.expect(200);
    assert_eq!(view.labels["disk"], "ssd");
    let mut publisher = Publisher::register(&coordinator, "acme/hello", 1).await;
    let placement = "[placement]\nlabels = [\"disk=ssd\"]";
    let version = publisher.publish(&coordinator, placement).await;
    let rollout = roll_out(&coordinator, &publisher, &version).await;
    let nodes = moved(&rollout);
    assert_eq!(nodes, ["n1"]);
    routes_to(&n1, version.version).await;
    assert!(wanted(&n2).is_empty());

    label(&coordinator, "n2", json!({ "disk": "ssd" }))
        .await
        .expect::<NodeView>(200);
    routes_to(&n2, version.version).await;
    let view = label(&coordinator, "n1", json!({ "disk": null })).await;
    let view: NodeView = view.expect(200);
    assert_eq!(view.labels.len(), 1, "the other label stays");
    until("the function to go", || async { wanted(&n1).is_empty() }).await;
    for bad in [
        json!({ "a b": "c" }),
        json!({ "": "c" }),
        json!({ "a": "b c" }),
    ] {
        label(&coordinator, "n1", bad).await.problem(400);
    }
    label(&coordinator, "absent", json!({ "a": "b" }))
        .await
        .problem(404);
}

#[tokio::test]
async fn a_node_that_has_joined_and_was_never_connected_can_be_drained_and_begins_so() {
    let coordinator = Coordinator::start().await;
    let token = coordinator.join_token().await;
    let identity = join(coordinator.quic, &token, "n1").await.unwrap();
    let view: NodeView = post(&coordinator, "/v1/nodes/n1/drain").await.expect(200);
    assert!(view.drained && view.never_connected && !view.connected);
    let n1 = TestNode::run(coordinator.quic, identity, hello(1));
    knows_that_it_is_drained(&n1).await;
    assert!(!coordinator.nodes().await[0].never_connected);
}

#[tokio::test]
async fn a_revoked_node_is_let_in_no_more_until_it_joins_again() {
    let coordinator = Coordinator::start().await;
    let n1 = TestNode::start(&coordinator, "n1", 1).await;
    let _n2 = TestNode::start(&coordinator, "n2", 2).await;
    let revoked = post(&coordinator, "/v1/nodes/n1/revoke").await;
    assert_eq!(revoked.status, 204, "{}", revoked.text());
    let names = async || -> Vec<String> {
        let nodes = coordinator.nodes().await;
        nodes.iter().map(|node| node.name.to_string()).collect()
    };
    assert_eq!(names().await, ["n2"]);
    // It dials again and again, in vain.
    let generations = n1.behaviour.lock().unwrap().generations.len();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(n1.behaviour.lock().unwrap().generations.len(), generations);
    assert_eq!(names().await, ["n2"]);
    let again = post(&coordinator, "/v1/nodes/n1/revoke").await;
    assert!(again.problem(404).detail.contains("`n1`"));
    post(&coordinator, "/v1/nodes/n1/drain").await.problem(404);

    let body = json!({ "node": "n1" });
    let answer = coordinator.client.post("/v1/join-tokens", &body).await;
    let token = answer.expect::<holm_model::api::JoinTokenAnswer>(201).token;
    let identity = join(coordinator.quic, &token, "n1").await.unwrap();
    let _n1 = TestNode::run(coordinator.quic, identity, hello(1));
    both_are_connected(&coordinator).await;
}

#[tokio::test]
async fn what_an_operator_says_of_a_node_holds_for_all_coordinators() {
    let first = Coordinator::start_on_postgres().await;
    let second = first.start_beside().await;
    let node = TestNode::start(&first, "n1", 1).await;
    // Asked of the one that the node is not linked to.
    let view: NodeView = post(&second, "/v1/nodes/n1/drain").await.expect(200);
    assert!(view.drained);
    knows_that_it_is_drained(&node).await;
    post(&second, "/v1/nodes/n1/cordon")
        .await
        .expect::<NodeView>(200);
    until("the other coordinator to know", || async {
        first.nodes().await[0].cordoned
    })
    .await;
    let revoked = post(&second, "/v1/nodes/n1/revoke").await;
    assert_eq!(revoked.status, 204, "{}", revoked.text());
    until("the node to be gone", || async {
        first.nodes().await.is_empty()
    })
    .await;
}

async fn put_key(coordinator: &Coordinator, key: &SigningKey) -> common::http::Answer {
    let body = json!({ "publisher_keys": [public(key)] });
    let body = serde_json::to_vec(&body).unwrap();
    coordinator.client.put("/v1/tenants/acme", &body).await
}

async fn revoke_key(coordinator: &Coordinator, key: &SigningKey, after: u64) -> TenantView {
    let body = json!({ "key": public(key), "after_seconds": after });
    let path = "/v1/tenants/acme/keys/revoke";
    coordinator.client.post(path, &body).await.expect(200)
}

#[tokio::test]
async fn of_a_revoked_key_nothing_new_gets_in_and_what_runs_keeps_running() {
    let mut coordinator = Coordinator::start().await;
    let node = TestNode::start(&coordinator, "n1", 1).await;
    let mut publisher = Publisher::register(&coordinator, "acme/hello", 1).await;
    let old = publisher.key.clone();
    let first = publisher.publish(&coordinator, "").await;
    let second = publisher.publish(&coordinator, "").await;
    let waiting = publisher.publish(&coordinator, "").await;
    roll_out(&coordinator, &publisher, &first).await;
    roll_out(&coordinator, &publisher, &second).await;

    let new = SigningKey::from_bytes(&[7; 32]);
    let tenant: TenantView = put_key(&coordinator, &new).await.expect(200);
    assert_eq!(tenant.publisher_keys, [public(&old), public(&new)]);
    let tenant = revoke_key(&coordinator, &old, 3600).await;
    assert_eq!(
        tenant.publisher_keys.len(),
        2,
        "it is still good for an hour"
    );
    let tenant = revoke_key(&coordinator, &old, 0).await;
    assert_eq!(tenant.publisher_keys, [public(&new)]);
    assert_eq!(tenant.revoked_keys[0].key, public(&old));

    // New code: neither published now nor before.
    let elf = program::elf(9);
    put_artifact(&coordinator.client, &elf).await;
    let stolen = SignedVersion::sign(&publisher.statement(9, &elf, ""), &old);
    let refused = post_version(&coordinator.client, &publisher.function, &stolen).await;
    let refused = refused.problem(422);
    assert_eq!(refused.kind, "/problems/key-revoked", "{}", refused.detail);
    let path = "/v1/functions/acme/hello/rollouts";
    let start = json!({ "version": waiting.version, "waves_percent": [100], "bake_ms": 0 });
    let refused = coordinator.client.post(path, &start).await.problem(409);
    assert_eq!(refused.kind, "/problems/key-revoked", "{}", refused.detail);
    assert!(
        put_key(&coordinator, &old)
            .await
            .problem(409)
            .detail
            .contains("does not come back")
    );

    // What runs keeps running, also on a node that comes anew and checks every signature.
    coordinator.restart().await;
    let other = TestNode::start(&coordinator, "n2", 2).await;
    routes_to(&other, second.version).await;
    assert_eq!(node.routed(), Some(second.version));
    let keys = other.behaviour.lock().unwrap().desired.functions[0]
        .publisher_keys
        .clone();
    assert_eq!(
        keys.len(),
        2,
        "the old key for what it has signed, and the new one"
    );
    // And the way back is open.
    let back = post(&coordinator, "/v1/functions/acme/hello/rollback").await;
    let back: RolloutView = back.expect(201);
    coordinator
        .rollout_when(back.id, |view| view.ended_ms.is_some())
        .await;
    routes_to(&node, first.version).await;
    // With the new key it goes on, and nothing of the old one is left.
    publisher.key = new.clone();
    for _ in 0..2 {
        let next = publisher.publish(&coordinator, "").await;
        roll_out(&coordinator, &publisher, &next).await;
        routes_to(&node, next.version).await;
    }
    let keys = node.behaviour.lock().unwrap().desired.functions[0]
        .publisher_keys
        .clone();
    assert_eq!(
        keys.iter().map(ToString::to_string).collect::<Vec<_>>(),
        [public(&new)]
    );
}

#[tokio::test]
async fn nodes_learn_of_new_keys_at_once_and_of_the_same_keys_not_again() {
    let coordinator = Coordinator::start().await;
    let node = TestNode::start(&coordinator, "n1", 1).await;
    let mut publisher = Publisher::register(&coordinator, "acme/hello", 1).await;
    let version = publisher.publish(&coordinator, "").await;
    roll_out(&coordinator, &publisher, &version).await;
    let new = SigningKey::from_bytes(&[7; 32]);
    put_key(&coordinator, &new).await.expect::<TenantView>(200);
    until("the node to know the key", || async {
        let behaviour = node.behaviour.lock().unwrap();
        behaviour.desired.functions[0].publisher_keys.len() == 2
    })
    .await;
    let generation = node.behaviour.lock().unwrap().desired.generation;
    put_key(&coordinator, &new).await.expect::<TenantView>(200);
    let other = SigningKey::from_bytes(&[8; 32]);
    put_key(&coordinator, &other)
        .await
        .expect::<TenantView>(200);
    until("the node to know the third key", || async {
        let behaviour = node.behaviour.lock().unwrap();
        behaviour.desired.functions[0].publisher_keys.len() == 3
    })
    .await;
    assert_eq!(
        node.behaviour.lock().unwrap().desired.generation,
        generation + 1
    );
}
