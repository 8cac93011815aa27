//! Usage that is sent to a webhook: each record, in order, whatever becomes of coordinators and receivers.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::receiver::{Manner, Receiver};
use common::usage::{UsageNode, record, records};
use common::{Coordinator, Publisher, until};
use holm_model::api::{ExportView, TokenAnswer, UsageView};
use holm_test_support::Postgres;
use serde_json::{Value, json};

/// A coordinator that has tenant acme.
async fn coordinator() -> Coordinator {
    let coordinator = Coordinator::start().await;
    Publisher::register(&coordinator, "acme/hello", 1).await;
    coordinator
}

fn webhook(receiver: &Receiver) -> Value {
    json!({
        "kind": "webhook", "url": receiver.url(), "secret": receiver.secret, "ca": receiver.ca, "private": true,
    })
}

async fn add(coordinator: &Coordinator, new: &Value) -> ExportView {
    let path = "/v1/tenants/acme/exports";
    coordinator.client.post(path, new).await.expect(201)
}

async fn view(coordinator: &Coordinator) -> ExportView {
    let views: Vec<ExportView> = coordinator.client.get("/v1/exports").await.expect(200);
    assert_eq!(views.len(), 1);
    views.into_iter().next().unwrap()
}

/// Until so many records are out, as the coordinator says.
async fn until_sent(coordinator: &Coordinator, sent: u64) {
    until("records that are out", || async {
        view(coordinator).await.sent == sent
    })
    .await;
}

/// The ids of these sequences of the node, which has one epoch.
fn ids(sequences: std::ops::RangeInclusive<u64>) -> Vec<String> {
    sequences.map(|n| format!("edge-1/1/{n}")).collect()
}

#[tokio::test]
async fn every_record_of_the_tenant_comes_once_in_order_and_signed() {
    let coordinator = coordinator().await;
    let receiver = Receiver::start().await;
    let mut node = UsageNode::join(&coordinator).await;
    node.upload(&records(1..=10)).await;
    add(&coordinator, &webhook(&receiver)).await;
    // More than one batch, and another tenant's between.
    let mut more = records(11..=1300);
    more[5].function = "other/hello".parse().unwrap();
    more[6].probe = true;
    node.upload(&more).await;
    until_sent(&coordinator, 1289).await;
    let mut expected = ids(11..=1300);
    expected.remove(5);
    assert_eq!(
        receiver.ids(),
        expected,
        "and nothing from before it was added"
    );
    let told = receiver.records();
    assert_eq!((&told[0].record, told[0].billed.requests), (&record(11), 1));
    assert_eq!(told[5].billed.requests, 0, "a probe");
    let view = view(&coordinator).await;
    assert_eq!((view.behind, view.failures, view.lost), (0, 0, 0));
    // What was sent adds up to what the ledger says of the time after.
    let usage: Vec<UsageView> = coordinator
        .client
        .get("/v1/usage?by=tenant&tenant=acme")
        .await
        .expect(200);
    let billed: u64 = told.iter().map(|told| told.billed.memory_kib_ms).sum();
    assert_eq!(usage[0].executions, 10 + 1288);
    assert_eq!(usage[0].billed.memory_kib_ms, billed / 1288 * (10 + 1288));
}

#[tokio::test]
async fn a_receiver_that_fails_gets_the_same_again_until_it_takes_it() {
    let coordinator = coordinator().await;
    let receiver = Receiver::start().await;
    receiver.is_to(Manner::Refuse("503 No\r\nretry-after: 1\r\n"));
    let mut node = UsageNode::join(&coordinator).await;
    add(&coordinator, &webhook(&receiver)).await;
    node.upload(&records(1..=5)).await;
    until("a second try", || async { receiver.requests() >= 2 }).await;
    let waits = view(&coordinator).await;
    assert_eq!((waits.sent, waits.behind), (0, 5));
    assert_eq!(waits.oldest_ms, Some(1_700_000_000_000));
    assert!(waits.failures >= 1 && waits.failing_since_ms.is_some());
    assert!(waits.error.unwrap().contains("503"));
    // Its answer is lost: it has them twice, under the same ids.
    receiver.is_to(Manner::TakeInSilence);
    until("a batch that was taken", || async {
        receiver.ids().len() == 5
    })
    .await;
    receiver.is_to(Manner::Take);
    until_sent(&coordinator, 5).await;
    assert!(receiver.ids().len() >= 10, "{:?}", receiver.ids());
    assert_eq!(receiver.records().len(), 5);
    let done = view(&coordinator).await;
    assert_eq!(
        (done.failures, done.error, done.failing_since_ms),
        (0, None, None)
    );
    node.upload(&records(6..=7)).await;
    until_sent(&coordinator, 7).await;
    assert_eq!(receiver.records().len(), 7);
}

#[tokio::test]
async fn a_coordinator_that_is_killed_goes_on_where_it_was() {
    let mut coordinator = coordinator().await;
    let receiver = Receiver::start().await;
    let mut node = UsageNode::join(&coordinator).await;
    add(&coordinator, &webhook(&receiver)).await;
    let mut next = 1;
    for _ in 0..3 {
        node.upload(&records(next..=next + 1200)).await;
        next += 1201;
        coordinator.restart().await;
        node.dial(&coordinator).await;
    }
    until_sent(&coordinator, next - 1).await;
    let told = receiver.records();
    let order: Vec<_> = told.iter().map(|told| told.record.sequence).collect();
    assert_eq!(order, (1..next).collect::<Vec<_>>());
}

#[tokio::test]
async fn of_several_coordinators_one_sends_and_another_one_goes_on() {
    let mut first = Coordinator::start_on_postgres().await;
    let second = first.start_beside().await;
    Publisher::register(&first, "acme/hello", 1).await;
    let receiver = Receiver::start().await;
    let mut node = UsageNode::join(&first).await;
    // Said to the one that does not send.
    add(&second, &webhook(&receiver)).await;
    node.upload(&records(1..=600)).await;
    until_sent(&second, 600).await;
    assert_eq!(receiver.ids(), ids(1..=600), "nobody else sends them too");
    first.kill();
    node.dial(&second).await;
    node.upload(&records(601..=700)).await;
    until_sent(&second, 700).await;
    assert_eq!(receiver.ids(), ids(1..=700));
}

#[tokio::test]
async fn a_redirect_is_not_followed_and_who_is_not_trusted_gets_nothing() {
    let coordinator = coordinator().await;
    let (receiver, other) = (Receiver::start().await, Receiver::start().await);
    let there: &'static str =
        Box::leak(format!("307 There\r\nlocation: {}\r\n", other.url()).into_boxed_str());
    receiver.is_to(Manner::Refuse(there));
    let mut node = UsageNode::join(&coordinator).await;
    let export = add(&coordinator, &webhook(&receiver)).await;
    node.upload(&records(1..=5)).await;
    until("a failure", || async {
        view(&coordinator).await.failures > 0
    })
    .await;
    assert!(view(&coordinator).await.error.unwrap().contains("307"));
    assert_eq!(other.requests(), 0);
    let path = format!("/v1/tenants/acme/exports/{}", export.id);
    assert_eq!(
        coordinator.client.send("DELETE", &path, &[]).await.status,
        204
    );

    let mut untrusted = webhook(&other);
    untrusted["ca"] = json!(receiver.ca);
    untrusted["from_start"] = json!(true);
    add(&coordinator, &untrusted).await;
    until("a failure", || async {
        view(&coordinator).await.failures > 0
    })
    .await;
    let error = view(&coordinator).await.error.unwrap();
    assert!(error.contains("certificate"), "{error}");
    assert!(!error.contains("/hook"), "the URL is not repeated: {error}");
    assert_eq!(other.requests(), 0);
}

#[tokio::test]
async fn what_a_receiver_was_too_late_for_is_counted_and_the_rest_is_sent() {
    let database = Postgres::shared().database();
    for database in [None, Some(database)] {
        let coordinator = Coordinator::start_keeping(Duration::from_secs(2), database).await;
        Publisher::register(&coordinator, "acme/hello", 1).await;
        let receiver = Receiver::start().await;
        receiver.is_to(Manner::Refuse("500 No\r\n"));
        let mut node = UsageNode::join(&coordinator).await;
        add(&coordinator, &webhook(&receiver)).await;
        node.upload(&records(1..=20)).await;
        until("records that are lost to the export", || async {
            view(&coordinator).await.lost == 20
        })
        .await;
        assert!(view(&coordinator).await.lost_ms.is_some());
        receiver.is_to(Manner::Take);
        node.upload(&records(21..=25)).await;
        until("the rest", || async {
            let view = view(&coordinator).await;
            view.sent + view.lost == 25
        })
        .await;
        let usage: Vec<UsageView> = coordinator.client.get("/v1/usage").await.expect(200);
        assert_eq!(usage[0].executions, 25, "nothing waits for a receiver");
    }
}

#[tokio::test]
async fn what_cannot_be_an_export_is_refused_with_a_problem() {
    let coordinator = coordinator().await;
    let receiver = Receiver::start().await;
    let with = |field: &str, value: Value| {
        let mut new = webhook(&receiver);
        new[field] = value;
        new
    };
    for (new, status, kind, says) in [
        (
            with("url", json!("http://example.com/")),
            422,
            "bad-url",
            "https://",
        ),
        (
            with("url", json!("https://a:b@example.com/")),
            422,
            "bad-url",
            "password",
        ),
        (with("url", json!("nothing")), 422, "bad-url", "no URL"),
        (with("private", json!(false)), 422, "bad-url", "not public"),
        (with("secret", json!("hush")), 422, "bad-secret", "whsec_"),
        (
            with("secret", json!("whsec_aHVzaA==")),
            422,
            "bad-secret",
            "24 to 64",
        ),
        (with("ca", json!("nothing")), 422, "bad-authority", "PEM"),
        (
            with("ca", json!("x".repeat(100_000))),
            400,
            "bad-request",
            "longer",
        ),
        (with("kind", json!("letter")), 400, "bad-request", "letter"),
        (with("color", json!("red")), 400, "bad-request", "color"),
        (json!({"kind": "webhook"}), 400, "bad-request", "`url`"),
        (
            json!({"kind": "webhook", "url": "https://example.com/"}),
            400,
            "bad-request",
            "`secret`",
        ),
        (
            json!({"kind": "parquet", "url": "https://example.com/"}),
            400,
            "bad-request",
            "`url`",
        ),
    ] {
        let answer = coordinator
            .client
            .post("/v1/tenants/acme/exports", &new)
            .await;
        let problem = answer.problem(status);
        assert_eq!(
            problem.kind,
            format!("/problems/{kind}"),
            "{}",
            problem.detail
        );
        assert!(problem.detail.contains(says), "{}", problem.detail);
    }
    let new = webhook(&receiver);
    let nobody = coordinator
        .client
        .post("/v1/tenants/nobody/exports", &new)
        .await;
    assert!(nobody.problem(404).detail.contains("no tenant"));
    let none = coordinator
        .client
        .send("DELETE", "/v1/tenants/acme/exports/7", &[])
        .await;
    assert!(none.problem(404).detail.contains("no export 7"));
    for _ in 0..8 {
        add(&coordinator, &new).await;
    }
    let many = coordinator
        .client
        .post("/v1/tenants/acme/exports", &new)
        .await;
    assert_eq!(many.problem(409).kind, "/problems/too-many-exports");
}

#[tokio::test]
async fn a_tenants_tokens_reach_its_own_exports_and_no_private_address() {
    let coordinator = coordinator().await;
    Publisher::register(&coordinator, "other/hello", 2).await;
    let receiver = Receiver::start().await;
    add(&coordinator, &webhook(&receiver)).await;
    let client = async |verbs: Value, tenant: &str| {
        let name = format!("{tenant}{}", verbs[0].as_str().unwrap());
        let request = json!({ "name": name, "verbs": verbs, "tenants": [tenant] });
        let made: TokenAnswer = coordinator
            .client
            .post("/v1/tokens", &request)
            .await
            .expect(201);
        let mut client = coordinator.client.clone();
        client.token = Some(made.token);
        client
    };
    let reader = client(json!(["usage"]), "acme").await;
    let stranger = client(json!(["usage", "admin"]), "other").await;
    let admin = client(json!(["admin"]), "acme").await;
    let seen: Vec<ExportView> = reader.get("/v1/exports?tenant=acme").await.expect(200);
    assert_eq!(seen.len(), 1);
    let seen: Vec<ExportView> = stranger.get("/v1/exports").await.expect(200);
    assert!(seen.is_empty());
    assert_eq!(stranger.get("/v1/exports?tenant=acme").await.status, 403);
    let path = "/v1/tenants/acme/exports";
    let mut public = webhook(&receiver);
    public["url"] = json!("https://hooks.example.com/usage");
    public["private"] = json!(false);
    assert_eq!(reader.post(path, &public).await.status, 403);
    assert_eq!(stranger.post(path, &public).await.status, 403);
    let private = admin.post(path, &webhook(&receiver)).await;
    assert!(private.problem(403).detail.contains("all tenants"));
    let own: ExportView = admin.post(path, &public).await.expect(201);
    let path = format!("{path}/{}", own.id);
    assert_eq!(stranger.send("DELETE", &path, &[]).await.status, 403);
    assert_eq!(admin.send("DELETE", &path, &[]).await.status, 204);
}
