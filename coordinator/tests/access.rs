//! Tokens that allow some things for some tenants, and the record of what was done with them.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::http::Client;
use common::node::TestNode;
use common::{Coordinator, Publisher, until};
use holm_coordinator::{Config, renew_admin_token};
use holm_model::api::{
    AuditCheck, AuditEntry, AuditPage, FunctionView, NodeView, OwnToken, TokenAnswer, TokenView,
    UsageView,
};
use holm_model::token::{ApiToken, Caveat, Verb};
use serde_json::{Value, json};

/// A client with another token.
fn with(coordinator: &Coordinator, token: impl ToString) -> Client {
    Client {
        address: coordinator.client.address,
        token: Some(token.to_string()),
    }
}

async fn create(coordinator: &Coordinator, request: Value) -> ApiToken {
    let answer = coordinator.client.post("/v1/tokens", &request).await;
    let answer: TokenAnswer = answer.expect(201);
    answer.token.parse().unwrap()
}

async fn audit_log(coordinator: &Coordinator) -> Vec<AuditEntry> {
    let page = coordinator.client.get("/v1/audit").await;
    page.expect::<AuditPage>(200).entries
}

#[tokio::test]
async fn a_token_does_what_it_is_for_and_a_refusal_says_what_it_lacks() {
    let coordinator = Coordinator::start().await;
    let mut acme = Publisher::register(&coordinator, "acme/hello", 1).await;
    let mut beta = Publisher::register(&coordinator, "beta/hello", 2).await;
    let version = acme.publish(&coordinator, "").await;
    beta.publish(&coordinator, "").await;
    let rollout = acme
        .roll_out(&coordinator, version.version, &[100], 0)
        .await;
    let request = json!({ "name": "ci", "verbs": ["read", "usage"], "tenants": ["acme"] });
    let ci = with(&coordinator, create(&coordinator, request).await);

    let functions: Vec<FunctionView> = ci.get("/v1/functions").await.expect(200);
    let names: Vec<_> = functions.iter().map(|f| f.name.to_string()).collect();
    assert_eq!(names, ["acme/hello"], "others' are not shown");
    for allowed in [
        "/v1/functions/acme/hello",
        "/v1/functions/acme/hello/rollouts/latest",
        &format!("/v1/rollouts/{}", rollout.id),
        "/v1/route/acme/hello",
        "/v1/usage?tenant=acme",
        "/v1/usage?function=acme/hello",
        "/v1/usage/records?function=acme/hello",
        "/v1/nodes",
        "/v1/token",
    ] {
        let answer = ci.get(allowed).await;
        assert_eq!(answer.status, 200, "{allowed}: {}", answer.text());
    }
    let abort = format!("/v1/rollouts/{}/abort", rollout.id);
    let digest = format!("/v1/artifacts/{}", common::node::nothing());
    for (method, path, lacks) in [
        ("GET", "/v1/functions/beta/hello", "tenant `beta`"),
        ("GET", "/v1/route/beta/hello", "tenant `beta`"),
        ("GET", "/v1/usage?tenant=beta", "tenant `beta`"),
        (
            "GET",
            "/v1/usage/records?function=beta/hello",
            "tenant `beta`",
        ),
        ("GET", "/v1/usage", "all tenants"),
        ("GET", "/v1/usage/records", "all tenants"),
        ("GET", "/v1/usage/audit", "all tenants"),
        ("GET", "/v1/functions/acme/hello/logs", "the verb `logs`"),
        (
            "POST",
            "/v1/functions/acme/hello/versions",
            "the verb `deploy`",
        ),
        ("PUT", &digest, "the verb `deploy`"),
        (
            "POST",
            "/v1/functions/acme/hello/rollouts",
            "the verb `rollout`",
        ),
        (
            "POST",
            "/v1/functions/acme/hello/rollback",
            "the verb `rollout`",
        ),
        ("POST", &abort, "the verb `rollout`"),
        ("PUT", "/v1/tenants/acme", "the verb `admin`"),
        ("POST", "/v1/join-tokens", "the verb `nodes`"),
        ("POST", "/v1/nodes/n1/drain", "the verb `nodes`"),
        ("GET", "/v1/tokens", "the verb `admin`"),
        ("POST", "/v1/tokens", "the verb `admin`"),
        ("GET", "/v1/audit", "the verb `admin`"),
    ] {
        let problem = ci.send(method, path, b"{}").await.problem(403);
        assert_eq!(problem.kind, "/problems/forbidden", "{method} {path}");
        let detail = &problem.detail;
        assert!(
            detail.contains(lacks) && detail.contains("`ci`"),
            "{method} {path}: {detail}"
        );
    }
    // Of another's rollout the number alone does not help.
    let theirs = beta.publish(&coordinator, "").await;
    let theirs = beta.roll_out(&coordinator, theirs.version, &[100], 0).await;
    let request = json!({ "name": "roller", "verbs": ["rollout", "read"], "tenants": ["acme"] });
    let roller = with(&coordinator, create(&coordinator, request).await);
    let path = format!("/v1/rollouts/{}", theirs.id);
    // Not even whether it is there is told.
    roller.get(&path).await.problem(404);
    let abort = roller.post(&format!("{path}/abort"), &json!({})).await;
    abort.problem(404);
    let own = roller
        .post(&format!("/v1/rollouts/{}/abort", rollout.id), &json!({}))
        .await;
    assert_eq!(own.status, 200, "{}", own.text());
}

#[tokio::test]
async fn a_token_for_one_tenant_sees_nodes_without_the_versions_of_others() {
    let coordinator = Coordinator::start().await;
    let _node = TestNode::start(&coordinator, "n1", 1).await;
    for (function, seed) in [("acme/hello", 1), ("beta/hello", 2)] {
        let mut publisher = Publisher::register(&coordinator, function, seed).await;
        let version = publisher.publish(&coordinator, "").await.version;
        let rollout = publisher.roll_out(&coordinator, version, &[100], 0).await;
        coordinator
            .rollout_when(rollout.id, |view| view.ended_ms.is_some())
            .await;
    }
    assert_eq!(coordinator.nodes().await[0].versions.len(), 2);
    let request = json!({ "name": "viewer", "verbs": ["read"], "tenants": ["beta"] });
    let viewer = with(&coordinator, create(&coordinator, request).await);
    let nodes: Vec<NodeView> = viewer.get("/v1/nodes").await.expect(200);
    let seen: Vec<_> = nodes[0]
        .versions
        .iter()
        .map(|v| v.function.to_string())
        .collect();
    assert_eq!(seen, ["beta/hello"]);
}

#[tokio::test]
async fn a_token_is_weakened_without_the_coordinator_and_revoked_with_all_that_was_made_from_it() {
    let mut coordinator = Coordinator::start().await;
    Publisher::register(&coordinator, "acme/hello", 1).await;
    Publisher::register(&coordinator, "beta/hello", 2).await;
    let root = create(
        &coordinator,
        json!({ "name": "ops", "verbs": ["read", "usage"] }),
    )
    .await;
    let acme = Caveat::Tenants(["acme".parse().unwrap()].into());
    let weak = root.clone().weaken(&acme).unwrap();
    let weaker = weak
        .clone()
        .weaken(&Caveat::Verbs([Verb::Usage].into()))
        .unwrap();
    let over = weak.clone().weaken(&Caveat::Before(1000)).unwrap();
    // It takes what it has from whoever made it; more it does not get.
    let more = root
        .clone()
        .weaken(&Caveat::Verbs([Verb::Admin].into()))
        .unwrap();

    let get = async |token: &ApiToken, path: &str| with(&coordinator, token).get(path).await;
    assert_eq!(
        get(&root, "/v1/usage").await.expect::<Vec<UsageView>>(200),
        []
    );
    let refused = get(&weak, "/v1/usage").await.problem(403);
    assert!(
        refused.detail.contains("read,usage for acme"),
        "{}",
        refused.detail
    );
    assert_eq!(get(&weak, "/v1/usage?tenant=acme").await.status, 200);
    let refused = get(&weaker, "/v1/functions").await.problem(403);
    assert!(
        refused.detail.contains("the verb `read`"),
        "{}",
        refused.detail
    );
    assert!(
        get(&over, "/v1/functions")
            .await
            .problem(401)
            .detail
            .contains("has expired")
    );
    assert_eq!(get(&more, "/v1/tokens").await.status, 403);
    let own: OwnToken = get(&weaker, "/v1/token").await.expect(200);
    assert_eq!((own.name.as_str(), own.verbs.unwrap().len()), ("ops", 1));
    let newer = format!("{weak}");
    let forged = newer.replace(&weak.id().to_string(), &"0".repeat(32));
    let forged = with(&coordinator, forged).get("/v1/functions").await;
    assert!(forged.problem(401).detail.contains("is not valid here"));

    // It outlives the coordinator that made it.
    coordinator.restart().await;
    assert_eq!(
        with(&coordinator, &weaker)
            .get("/v1/usage?tenant=acme")
            .await
            .status,
        200
    );
    let revoked = coordinator
        .client
        .post("/v1/tokens/ops/revoke", &json!({}))
        .await;
    assert!(revoked.expect::<TokenView>(200).revoked_ms.is_some());
    for token in [&root, &weak, &weaker] {
        let refused = with(&coordinator, token)
            .get("/v1/token")
            .await
            .problem(401);
        assert!(
            refused.detail.contains("`ops` was revoked"),
            "{}",
            refused.detail
        );
    }
    let again = coordinator
        .client
        .post("/v1/tokens/ops/revoke", &json!({}))
        .await;
    assert!(again.problem(404).detail.contains("`ops`"));
}

#[tokio::test]
async fn a_token_that_cannot_be_made_is_refused_with_the_reason() {
    let coordinator = Coordinator::start().await;
    let create = async |request: Value| coordinator.client.post("/v1/tokens", &request).await;
    create(json!({ "name": "ci", "verbs": ["read"] }))
        .await
        .expect::<TokenAnswer>(201);
    let taken = create(json!({ "name": "ci", "verbs": ["read"] }))
        .await
        .problem(409);
    assert!(
        taken.detail.contains("holm tokens revoke ci"),
        "{}",
        taken.detail
    );
    for bad in [
        json!({ "name": "x", "verbs": [] }),
        json!({ "name": "x", "verbs": ["read"], "tenants": [] }),
        json!({ "name": "x", "verbs": ["fly"] }),
        json!({ "name": "x", "verbs": ["read"], "ttl_seconds": 0 }),
        json!({ "name": "X", "verbs": ["read"] }),
    ] {
        create(bad).await.problem(400);
    }
    let long: Vec<_> = (0..100)
        .map(|n| format!("a-tenant-with-a-long-name-{n}"))
        .collect();
    let long = create(json!({ "name": "x", "verbs": ["read"], "tenants": long })).await;
    assert!(long.problem(400).detail.contains("caveats"));
    // One that is over leaves its name.
    create(json!({ "name": "short", "verbs": ["read"], "ttl_seconds": 1 }))
        .await
        .expect::<TokenAnswer>(201);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let next = create(json!({ "name": "short", "verbs": ["read"] })).await;
    assert_eq!(next.status, 201, "{}", next.text());
}

#[tokio::test]
async fn whatever_changes_something_is_in_the_audit_log_with_who_did_it_and_what_came_of_it() {
    let coordinator = Coordinator::start().await;
    let request = json!({ "name": "ci", "verbs": ["read", "deploy"], "tenants": ["acme"] });
    let ci = create(&coordinator, request).await;
    let client = with(&coordinator, &ci);
    let mut publisher = Publisher::register(&coordinator, "acme/hello", 1).await;
    let version = publisher.publish(&coordinator, "").await;
    client.get("/v1/functions").await;
    client
        .post("/v1/functions/acme/hello/rollouts", &json!({}))
        .await
        .problem(403);
    client
        .post("/v1/functions/acme/hello/versions", &json!({}))
        .await
        .problem(400);
    // Who shows no token gets nowhere near it.
    let nobody = Client {
        token: None,
        ..client.clone()
    };
    nobody
        .post("/v1/functions/acme/hello/versions", &json!({}))
        .await
        .problem(401);

    let entries = audit_log(&coordinator).await;
    let told: Vec<_> = entries
        .iter()
        .filter(|entry| entry.outcome != "begun")
        .map(|e| {
            (
                e.actor.as_str(),
                e.action.as_str(),
                e.object.as_str(),
                e.outcome.as_str(),
            )
        })
        .collect();
    let artifact = format!(
        "{}",
        publisher
            .statement(1, &common::program::elf(1), "")
            .artifact
    );
    assert_eq!(
        told,
        [
            ("admin", "token.create", "", "done"),
            ("admin", "tenant.change", "acme", "done"),
            ("admin", "artifact.put", artifact.as_str(), "done"),
            ("admin", "version.publish", "acme/hello", "done"),
            ("ci", "rollout.start", "acme/hello", "refused"),
            ("ci", "version.publish", "acme/hello", "refused"),
        ]
    );
    let of = |action: &str, outcome: &str| {
        let mut found = entries
            .iter()
            .filter(|e| e.action == action && e.outcome == outcome);
        found.next().unwrap()
    };
    let published = of("version.publish", "done");
    assert!(
        published.detail.contains(&version.version.to_string()),
        "{published:?}"
    );
    assert_eq!(published.begun, Some(of("version.publish", "begun").row));
    assert_eq!(of("rollout.start", "refused").actor_id, ci.id().to_string());
    assert!(
        of("rollout.start", "refused")
            .detail
            .contains("the verb `rollout`")
    );
    assert!(
        of("token.create", "done")
            .detail
            .contains("ci: read,deploy for acme")
    );
    let check: AuditCheck = coordinator.client.get("/v1/audit/check").await.expect(200);
    assert!(check.whole && check.entries == entries.len() as u64);
    let since = format!("/v1/audit?since={}", published.at_ms);
    let since: AuditPage = coordinator.client.get(&since).await.expect(200);
    assert!(since.entries.len() < entries.len());
}

#[tokio::test]
async fn an_admin_token_is_renewed_on_the_machine_and_the_one_before_is_void() {
    let mut coordinator = Coordinator::start().await;
    let old = coordinator.client.clone();
    let any = "127.0.0.1:0".parse().unwrap();
    let config = Config::new(coordinator.dir.path().join("state"), any, any);
    let busy = renew_admin_token(&config, false).await.unwrap_err();
    assert!(busy.to_string().contains("end it first"), "{busy}");
    coordinator.kill();
    until("the lock to be free", || async {
        renew_admin_token(&config, false).await.is_ok()
    })
    .await;
    coordinator.restart().await;
    let old = Client {
        address: coordinator.client.address,
        ..old
    };
    assert!(
        old.get("/v1/nodes")
            .await
            .problem(401)
            .detail
            .contains("is not valid here")
    );
    assert_eq!(coordinator.client.get("/v1/nodes").await.status, 200);
    let entries = audit_log(&coordinator).await;
    let renewed = entries.last().unwrap();
    assert_eq!(
        (renewed.action.as_str(), renewed.actor_kind.as_str()),
        ("token.renew", "operator")
    );

    // By the API too: the coordinator makes a new one when it starts.
    let void = coordinator
        .client
        .post("/v1/tokens/admin/revoke", &json!({}))
        .await;
    assert!(void.expect::<TokenView>(200).administrator);
    assert_eq!(coordinator.client.get("/v1/nodes").await.status, 401);
    coordinator.restart().await;
    assert_eq!(coordinator.client.get("/v1/nodes").await.status, 200);
}
