//! Configurations and secrets, over the API and over real links, with nodes that run nothing.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::http::{Answer, Client};
use common::node::TestNode;
use common::{Coordinator, Publisher, public, until};
use ed25519_dalek::SigningKey;
use holm_coordinator::{Config, StartError, VaultError, export, renew_secrets_key};
use holm_model::api::{
    AuditPage, ConfigurationRequest, ConfigurationView, FunctionView, QueuedView, RolloutState,
    RolloutView, TokenAnswer,
};
use holm_model::configuration::{
    ConfigurationStatement, Release, Secret, Secrets, SignedConfiguration,
};
use holm_model::ids::VersionId;
use holm_model::limits::MAX_CONFIGURATION_BYTES;
use serde_json::json;

const PATH: &str = "/v1/functions/acme/hello/configurations";
/// A value that stands nowhere else.
const VALUE: &str = "correct-horse-battery-staple";

/// A statement of what a configuration is to have, with the secrets that are new in it.
struct Draft {
    statement: ConfigurationStatement,
    secrets: Secrets,
}

/// The first configuration, with nothing in it.
fn draft(number: u64) -> Draft {
    Draft {
        statement: ConfigurationStatement {
            function: "acme/hello".parse().unwrap(),
            number,
            env: BTreeMap::new(),
            secrets: BTreeMap::new(),
            message: String::new(),
            author: "someone".into(),
            created_ms: 1,
        },
        secrets: Secrets::new(),
    }
}

impl Draft {
    fn env(mut self, name: &str, value: &str) -> Self {
        self.statement.env.insert(name.into(), value.into());
        self
    }

    fn secret(mut self, name: &str, value: &str) -> Self {
        let secret = Secret::new([self.statement.number as u8; 32], value.into());
        self.statement
            .secrets
            .insert(name.into(), secret.commitment());
        self.secrets.insert(name.into(), secret);
        self
    }

    /// The next one, which has all of this and brings nothing yet.
    fn next(&self) -> Self {
        let mut statement = self.statement.clone();
        statement.number += 1;
        Draft {
            statement,
            secrets: Secrets::new(),
        }
    }

    async fn post(&self, client: &Client, key: &SigningKey) -> Answer {
        let signed = SignedConfiguration::sign(&self.statement, key);
        let request = ConfigurationRequest::from_signed(&signed, self.secrets.clone());
        client
            .post(PATH, &serde_json::to_value(request).unwrap())
            .await
    }
}

struct World {
    coordinator: Coordinator,
    nodes: Vec<TestNode>,
    publisher: Publisher,
    v1: VersionId,
}

/// Two nodes on version 1.
async fn world() -> World {
    world_on(Coordinator::start().await).await
}

async fn world_on(coordinator: Coordinator) -> World {
    let mut nodes = Vec::new();
    for index in 0..2 {
        nodes.push(TestNode::start(&coordinator, &format!("n{index}"), index).await);
    }
    let mut publisher = Publisher::register(&coordinator, "acme/hello", 1).await;
    let v1 = publisher.publish(&coordinator, "").await.version;
    let first = publisher.roll_out(&coordinator, v1, &[100], 0).await;
    let world = World {
        coordinator,
        nodes,
        publisher,
        v1,
    };
    world.ended(first.id, RolloutState::Completed).await;
    world
}

impl World {
    async fn make(&self, draft: &Draft) -> ConfigurationView {
        let answer = draft.post(&self.coordinator.client, &self.publisher.key);
        answer.await.expect(201)
    }

    async fn start(&self, body: serde_json::Value) -> Answer {
        let path = "/v1/functions/acme/hello/rollouts";
        self.coordinator.client.post(path, &body).await
    }

    /// Rolls out a configuration with the current version, to its end.
    async fn roll_out(&self, number: u64) -> RolloutView {
        let body = json!({ "configuration": number, "bake_ms": 0 });
        let view: RolloutView = self.start(body).await.expect(201);
        self.ended(view.id, RolloutState::Completed).await
    }

    async fn ended(&self, id: u64, state: RolloutState) -> RolloutView {
        let ended = |view: &RolloutView| view.ended_ms.is_some();
        let view = self.coordinator.rollout_when(id, ended).await;
        assert_eq!(view.state, state, "{}", view.reason);
        view
    }

    async fn function(&self) -> FunctionView {
        let client = &self.coordinator.client;
        client.get("/v1/functions/acme/hello").await.expect(200)
    }

    async fn all_have(&self, entries: &[(&str, &str)]) {
        let wanted: BTreeMap<String, String> = entries
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        let all = || async { self.nodes.iter().all(|node| node.entries() == wanted) };
        until("these entries on all nodes", all).await;
    }
}

/// Whether a file below `dir` has these bytes in it.
fn is_below(dir: &Path, needle: &str) -> Option<std::path::PathBuf> {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if let Some(found) = is_below(&path, needle) {
                return Some(found);
            }
        } else if let Ok(bytes) = std::fs::read(&path)
            && bytes
                .windows(needle.len())
                .any(|part| part == needle.as_bytes())
        {
            return Some(path);
        }
    }
    None
}

#[tokio::test]
async fn a_configuration_rolls_out_like_code_and_nodes_get_its_entries() {
    let world = world().await;
    world.all_have(&[]).await;
    let first = draft(1).env("GREETING", "hello").secret("PASSWORD", VALUE);
    let view = world.make(&first).await;
    assert_eq!((view.number, view.current), (1, false));
    assert_eq!(view.env, ["GREETING"]);
    assert_eq!(view.secrets, BTreeMap::from([("PASSWORD".to_owned(), 1)]));
    assert_eq!(
        world.function().await.configuration,
        None,
        "nothing moves by itself"
    );

    let body = json!({ "configuration": 1, "waves": ["nodes=1", "100%"], "bake_ms": 200 });
    let begun: RolloutView = world.start(body).await.expect(201);
    assert_eq!(
        (begun.label(), begun.previous_label()),
        ("v1+c1".into(), Some("v1".into()))
    );
    let ended = world.ended(begun.id, RolloutState::Completed).await;
    assert_eq!(ended.waves.len(), 2);
    world
        .all_have(&[("GREETING", "hello"), ("PASSWORD", VALUE)])
        .await;
    assert_eq!(world.function().await.configuration, Some(1));
    for node in world.coordinator.nodes().await {
        let routed = node.versions.iter().find(|seen| seen.routed).unwrap();
        assert_eq!((routed.version, routed.label.as_str()), (world.v1, "v1"));
        assert_eq!(routed.configuration, Some(1));
    }

    // What stays is carried over without anybody having to know it.
    let second = first.next().env("GREETING", "good day");
    let view = world.make(&second).await;
    assert_eq!(view.secrets, BTreeMap::from([("PASSWORD".to_owned(), 1)]));
    world.roll_out(2).await;
    world
        .all_have(&[("GREETING", "good day"), ("PASSWORD", VALUE)])
        .await;
}

#[tokio::test]
async fn a_configuration_that_fails_on_a_node_goes_back_and_a_rollback_goes_to_what_was_before() {
    let mut world = world().await;
    let first = draft(1).env("A", "1");
    world.make(&first).await;
    world.roll_out(1).await;
    let second = first.next().env("A", "2");
    let bad = world.make(&second).await;
    let release = Release {
        version: world.v1,
        configuration: Some(bad.configuration),
    };
    let fails = (release.id(), "it cannot start with A=2".to_owned());
    world.nodes[0]
        .behaviour
        .lock()
        .unwrap()
        .fails
        .extend([fails.clone()]);
    let body = json!({ "configuration": 2, "bake_ms": 0 });
    let begun: RolloutView = world.start(body).await.expect(201);
    let ended = world.ended(begun.id, RolloutState::RolledBack).await;
    assert!(ended.reason.contains(&fails.1), "{}", ended.reason);
    world.all_have(&[("A", "1")]).await;

    // A version that is deployed now comes with the configuration that the fleet is on, not with the newest.
    let v2 = world
        .publisher
        .publish(&world.coordinator, "")
        .await
        .version;
    let begun: RolloutView = world
        .start(json!({ "version": v2, "bake_ms": 0 }))
        .await
        .expect(201);
    assert_eq!(begun.label(), "v2+c1");
    world.ended(begun.id, RolloutState::Completed).await;
    let third = second.next().env("A", "3");
    world.make(&third).await;
    world.roll_out(3).await;
    world.all_have(&[("A", "3")]).await;
    for (to, entries) in [("v2+c1", "1"), ("v1+c1", "1"), ("v1", "")] {
        let path = "/v1/functions/acme/hello/rollback";
        let back = world.coordinator.client.post(path, &json!({})).await;
        let back: RolloutView = back.expect(201);
        assert_eq!(back.label(), to);
        world.ended(back.id, RolloutState::Completed).await;
        let entries = [("A", entries)];
        world
            .all_have(if entries[0].1.is_empty() {
                &[]
            } else {
                &entries
            })
            .await;
    }
    // Back to a version by its name: with the configuration that it had last.
    let path = "/v1/functions/acme/hello/rollback";
    let back = world
        .coordinator
        .client
        .post(path, &json!({ "version": v2 }))
        .await;
    assert_eq!(back.expect::<RolloutView>(201).label(), "v2+c1");
}

#[tokio::test]
async fn a_queued_configuration_goes_with_the_version_that_is_current_then() {
    let mut world = world().await;
    world.make(&draft(1).env("A", "1")).await;
    let v2 = world
        .publisher
        .publish(&world.coordinator, "")
        .await
        .version;
    let first: RolloutView = world
        .start(json!({ "version": v2, "bake_ms": 1000 }))
        .await
        .expect(201);
    let body = json!({ "configuration": 1, "bake_ms": 0 });
    assert_eq!(
        world.start(body).await.problem(409).kind,
        "/problems/rollout-running"
    );
    let body = json!({ "configuration": 1, "bake_ms": 0, "when_running": "queue" });
    let queued: QueuedView = world.start(body).await.expect(202);
    assert_eq!(
        (queued.label(), queued.behind),
        ("c1".into(), Some(first.id))
    );
    world.ended(first.id, RolloutState::Completed).await;
    let next = format!("/v1/rollouts/{}", first.id + 1);
    let begun = || async { world.coordinator.client.get(&next).await.status == 200 };
    until("the queued rollout to begin", begun).await;
    let second = world.ended(first.id + 1, RolloutState::Completed).await;
    assert_eq!(second.label(), "v2+c1");
}

#[tokio::test]
async fn what_is_wrong_with_a_configuration_is_said_and_nothing_is_made() {
    let world = world().await;
    let (client, key) = (&world.coordinator.client, &world.publisher.key);
    let kind = async |draft: Draft, status| draft.post(client, key).await.problem(status);

    let nothing = kind(draft(1), 409).await;
    assert_eq!(
        nothing.kind, "/problems/nothing-changed",
        "{}",
        nothing.detail
    );
    for (name, value) in [
        ("PORT", "1"),
        ("HOLM_X", "1"),
        ("A B", "1"),
        ("1A", ""),
        ("A", "\0"),
    ] {
        let bad = kind(draft(1).env(name, value), 422).await;
        assert_eq!(bad.kind, "/problems/bad-entry", "{name}: {}", bad.detail);
    }
    let large = "x".repeat(MAX_CONFIGURATION_BYTES);
    for draft in [draft(1).env("A", &large), draft(1).secret("A", &large)] {
        let bad = kind(draft, 422).await;
        assert_eq!(bad.kind, "/problems/too-large", "{}", bad.detail);
    }
    let many = (0..200).fold(draft(1), |draft, n| draft.env(&format!("A{n}"), ""));
    assert_eq!(kind(many, 422).await.kind, "/problems/too-many-entries");
    let out_of_turn = kind(draft(2).env("A", "1"), 409).await;
    assert_eq!(
        out_of_turn.kind, "/problems/out-of-turn",
        "{}",
        out_of_turn.detail
    );
    let mut missing = draft(1).secret("A", "1");
    missing.secrets.clear();
    assert_eq!(kind(missing, 422).await.kind, "/problems/secret-missing");
    let mut other = draft(1).secret("A", "1");
    other
        .secrets
        .insert("A".into(), Secret::new([9; 32], "2".into()));
    assert_eq!(kind(other, 422).await.kind, "/problems/other-secret");
    let mut foreign = draft(1).env("A", "1");
    foreign.statement.function = "acme/other".parse().unwrap();
    assert_eq!(kind(foreign, 422).await.kind, "/problems/other-function");
    let mut noisy = draft(1).env("A", "1");
    noisy.statement.message = "\u{1b}[31m".into();
    assert_eq!(kind(noisy, 422).await.kind, "/problems/bad-statement");

    let stranger = SigningKey::from_bytes(&[9; 32]);
    let refused = draft(1)
        .env("A", "1")
        .post(client, &stranger)
        .await
        .problem(422);
    assert_eq!(refused.kind, "/problems/unknown-key", "{}", refused.detail);
    let signed = SignedConfiguration::sign(&draft(1).env("A", "1").statement, key);
    let mut request = ConfigurationRequest::from_signed(&signed, Secrets::new());
    request.signature = ConfigurationRequest::from_signed(
        &SignedConfiguration::sign(&draft(1).env("A", "2").statement, key),
        Secrets::new(),
    )
    .signature;
    let refused = client
        .post(PATH, &serde_json::to_value(request).unwrap())
        .await;
    assert_eq!(refused.problem(422).kind, "/problems/bad-signature");

    let unknown = client
        .get("/v1/functions/acme/none/configurations")
        .await
        .problem(404);
    assert!(unknown.detail.contains("acme/none"), "{}", unknown.detail);
    assert!(
        client
            .get(&format!("{PATH}/7"))
            .await
            .problem(404)
            .detail
            .contains("c7")
    );
    assert!(
        client
            .get(&format!("{PATH}/x"))
            .await
            .problem(400)
            .detail
            .contains("number")
    );
    let no_such = world
        .start(json!({ "configuration": 7 }))
        .await
        .problem(404);
    assert!(no_such.detail.contains("c7"), "{}", no_such.detail);
    let views: Vec<ConfigurationView> = client.get(PATH).await.expect(200);
    assert!(views.is_empty());

    let first = draft(1).secret("A", VALUE);
    world.make(&first).await;
    // The same value under another salt is no change either.
    let mut again = first.next();
    let same = Secret::new([77; 32], VALUE.into());
    again
        .statement
        .secrets
        .insert("A".into(), same.commitment());
    again.secrets.insert("A".into(), same);
    let nothing = kind(again, 409).await;
    assert_eq!(nothing.kind, "/problems/nothing-changed");
    assert!(nothing.detail.contains("c1"), "{}", nothing.detail);
    let same = world.start(json!({ "configuration": 1 })).await;
    world
        .ended(same.expect::<RolloutView>(201).id, RolloutState::Completed)
        .await;
    let current = world
        .start(json!({ "configuration": 1 }))
        .await
        .problem(409);
    assert_eq!(current.kind, "/problems/already-current");
    assert!(current.detail.contains("v1+c1"), "{}", current.detail);
}

#[tokio::test]
async fn a_function_without_a_version_takes_the_newest_configuration_with_its_first() {
    let coordinator = Coordinator::start().await;
    let mut publisher = Publisher::register(&coordinator, "acme/hello", 1).await;
    let v1 = publisher.publish(&coordinator, "").await.version;
    let first = draft(1).env("A", "1");
    let answer = first.post(&coordinator.client, &publisher.key);
    answer.await.expect::<ConfigurationView>(201);
    let path = "/v1/functions/acme/hello/rollouts";
    let none = coordinator
        .client
        .post(path, &json!({ "configuration": 1 }))
        .await
        .problem(409);
    assert_eq!(none.kind, "/problems/no-version", "{}", none.detail);
    let first = publisher.roll_out(&coordinator, v1, &[100], 0).await;
    assert_eq!(first.label(), "v1+c1");
}

#[tokio::test]
async fn a_token_sets_and_shows_only_what_its_verbs_allow_and_no_answer_has_a_secret() {
    let world = world().await;
    let first = draft(1)
        .env("PLAIN", "in-the-open")
        .secret("PASSWORD", VALUE);
    world.make(&first).await;
    let of = async |verbs: &[&str]| {
        let request = json!({ "name": verbs.join("-"), "verbs": verbs, "tenants": ["acme"] });
        let answer = world.coordinator.client.post("/v1/tokens", &request).await;
        Client {
            address: world.coordinator.client.address,
            token: Some(answer.expect::<TokenAnswer>(201).token),
        }
    };
    let reader = of(&["read"]).await;
    let listed = reader.get(PATH).await;
    assert_eq!(listed.status, 200);
    assert!(listed.text().contains("PASSWORD") && listed.text().contains("PLAIN"));
    assert!(!listed.text().contains(VALUE) && !listed.text().contains("in-the-open"));
    assert_eq!(reader.get(&format!("{PATH}/1")).await.status, 403);
    let refused = first
        .next()
        .env("A", "1")
        .post(&reader, &world.publisher.key)
        .await;
    assert_eq!(refused.problem(403).kind, "/problems/forbidden");
    let deployer = of(&["read", "deploy"]).await;
    let shown = deployer.get(&format!("{PATH}/1")).await;
    let request: ConfigurationRequest = shown.expect(200);
    assert!(request.secrets.is_empty());
    let statement = request.to_signed().unwrap().statement;
    let statement = String::from_utf8(statement).unwrap();
    assert!(statement.contains("in-the-open") && !statement.contains(VALUE));
}

#[tokio::test]
async fn no_secret_is_in_the_clear_in_the_database_its_export_or_the_audit_log() {
    let mut world = world().await;
    let first = draft(1).secret("PASSWORD", VALUE);
    world.make(&first).await;
    world.roll_out(1).await;
    world.all_have(&[("PASSWORD", VALUE)]).await;
    // Even if somebody sends it in a way that is refused.
    let wrong = json!({ "statement": "", "key": "", "signature": "", "secrets": { "A": VALUE } });
    let refused = world
        .coordinator
        .client
        .post(PATH, &wrong)
        .await
        .problem(400);
    assert!(!refused.detail.contains(VALUE), "{}", refused.detail);
    let page = world.coordinator.client.get("/v1/audit").await;
    let told = page.text();
    assert!(told.contains("configuration.publish") && told.contains("sets the secret PASSWORD"));
    assert!(!told.contains(VALUE), "{told}");
    let entries = page.expect::<AuditPage>(200).entries;
    let set = entries
        .iter()
        .find(|entry| entry.detail.starts_with("c1: "));
    assert_eq!(set.unwrap().object, "acme/hello");

    world.coordinator.running.take().unwrap().shutdown().await;
    let state = world.coordinator.dir.path().join("state");
    assert_eq!(is_below(&state, VALUE), None);
    assert!(
        is_below(&state, "PASSWORD").is_some(),
        "names are not secret"
    );
    let any = "127.0.0.1:0".parse().unwrap();
    let mut exported = Vec::new();
    let config = Config::new(state, any, any);
    export(&config, false, &mut exported).await.unwrap();
    let exported = String::from_utf8(exported).unwrap();
    for form in [VALUE.to_owned(), hex::encode(VALUE)] {
        assert!(!exported.contains(&form));
    }
    assert!(exported.contains("[\"secrets\""));
}

#[tokio::test]
async fn a_coordinator_goes_on_with_its_secrets_and_not_without_the_key() {
    let mut world = world().await;
    world.make(&draft(1).secret("PASSWORD", VALUE)).await;
    world.roll_out(1).await;
    world.coordinator.restart().await;
    world
        .nodes
        .push(TestNode::start(&world.coordinator, "n2", 2).await);
    world.all_have(&[("PASSWORD", VALUE)]).await;

    world.coordinator.running.take().unwrap().shutdown().await;
    let state = world.coordinator.dir.path().join("state");
    let any = "127.0.0.1:0".parse().unwrap();
    let config = Config::new(state.clone(), any, any);
    let path = state.join("secrets.key");
    let old = std::fs::read(&path).unwrap();
    let (count, _) = renew_secrets_key(&config).await.unwrap();
    let new = std::fs::read(&path).unwrap();
    assert_eq!(count, 1);
    assert_ne!(old, new);
    for (found, wrong) in [(Some(&old), "is not the one"), (None, "is not there")] {
        match found {
            Some(old) => std::fs::write(&path, old).unwrap(),
            None => std::fs::remove_file(&path).unwrap(),
        }
        let error = holm_coordinator::start(config.clone()).await.err().unwrap();
        assert!(matches!(error, StartError::Vault(_)), "{error}");
        assert!(error.to_string().contains(wrong), "{error}");
    }
    std::fs::write(&path, new).unwrap();
    world.coordinator.restart().await;
    world
        .nodes
        .push(TestNode::start(&world.coordinator, "n3", 3).await);
    world.all_have(&[("PASSWORD", VALUE)]).await;
}

#[tokio::test]
async fn a_damaged_secret_stops_no_coordinator_and_can_be_set_again() {
    let mut world = world().await;
    world.make(&draft(1).secret("PASSWORD", VALUE)).await;
    world.roll_out(1).await;
    world.all_have(&[("PASSWORD", VALUE)]).await;
    let damage = "UPDATE secrets SET ciphertext = commitment";
    world.coordinator.execute(damage).await;
    world.coordinator.running.take().unwrap().shutdown().await;
    let any = "127.0.0.1:0".parse().unwrap();
    let config = Config::new(world.coordinator.dir.path().join("state"), any, any);
    renew_secrets_key(&config).await.unwrap();
    world.coordinator.restart().await;

    // Its nodes keep what they have; one that is new gets nothing, rather than a function without its secret.
    let n2 = TestNode::start(&world.coordinator, "n2", 2).await;
    let linked = || async { world.coordinator.connected().await == 3 };
    until("all nodes linked", linked).await;
    world.all_have(&[("PASSWORD", VALUE)]).await;
    assert_eq!(n2.routed(), None);
    world.nodes.push(n2);
    world.make(&draft(2).secret("PASSWORD", "as before")).await;
    world.roll_out(2).await;
    world.all_have(&[("PASSWORD", "as before")]).await;
}

#[tokio::test]
async fn secrets_reach_only_nodes_that_the_function_runs_on() {
    let coordinator = Coordinator::start().await;
    let here = TestNode::start(&coordinator, "here", 0).await;
    let there = TestNode::start(&coordinator, "there", 1).await;
    let labels = json!({ "labels": { "tier": "one" } });
    let labels = serde_json::to_vec(&labels).unwrap();
    let set = coordinator
        .client
        .put("/v1/nodes/here/labels", &labels)
        .await;
    assert_eq!(set.status, 200, "{}", set.text());
    let mut publisher = Publisher::register(&coordinator, "acme/hello", 1).await;
    let manifest = "[placement]\nlabels = [\"tier=one\"]";
    let v1 = publisher.publish(&coordinator, manifest).await.version;
    let first = draft(1).secret("PASSWORD", VALUE);
    let answer = first.post(&coordinator.client, &publisher.key);
    answer.await.expect::<ConfigurationView>(201);
    let rollout = publisher.roll_out(&coordinator, v1, &[100], 0).await;
    coordinator
        .rollout_when(rollout.id, |view| view.ended_ms.is_some())
        .await;
    let has = || async { here.entries().get("PASSWORD").map(String::as_str) == Some(VALUE) };
    until("the secret where it belongs", has).await;
    let behaviour = there.behaviour.lock().unwrap();
    assert!(behaviour.entries.is_empty() && behaviour.desired.functions.is_empty());
}

#[tokio::test]
async fn what_a_revoked_key_signed_stays_and_nothing_new_of_it_comes() {
    let world = world().await;
    let first = draft(1).secret("A", "1");
    world.make(&first).await;
    world.roll_out(1).await;
    let second = first.next().env("B", "2");
    world.make(&second).await;

    let other = SigningKey::from_bytes(&[5; 32]);
    let keys = json!({ "publisher_keys": [public(&other)] });
    let client = &world.coordinator.client;
    let added = client
        .put("/v1/tenants/acme", &serde_json::to_vec(&keys).unwrap())
        .await;
    assert_eq!(added.status, 200, "{}", added.text());
    let revoke = json!({ "key": public(&world.publisher.key) });
    let revoked = client.post("/v1/tenants/acme/keys/revoke", &revoke).await;
    assert_eq!(revoked.status, 200, "{}", revoked.text());

    let refused = second
        .next()
        .env("C", "3")
        .post(client, &world.publisher.key)
        .await;
    assert_eq!(refused.problem(422).kind, "/problems/key-revoked");
    let refused = world
        .start(json!({ "configuration": 2 }))
        .await
        .problem(409);
    assert_eq!(refused.kind, "/problems/key-revoked");
    assert!(refused.detail.contains("c2"), "{}", refused.detail);
    world.all_have(&[("A", "1")]).await;
    // What stays of it can be signed anew by a valid key although nothing else changes.
    let third = second.next();
    third
        .post(client, &other)
        .await
        .expect::<ConfigurationView>(201);
    world.roll_out(3).await;
    world.all_have(&[("A", "1"), ("B", "2")]).await;
}

#[tokio::test]
async fn a_coordinator_beside_another_one_needs_the_same_key_and_sends_the_same_secrets() {
    let first = Coordinator::start_on_postgres().await;
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("state")).unwrap();
    for file in ["state/ca.key", "state/ca.der"] {
        std::fs::copy(first.dir.path().join(file), dir.path().join(file)).unwrap();
    }
    let keyless = Coordinator::start_in(dir, first.database.clone()).await;
    let error = keyless.err().unwrap();
    assert!(
        matches!(error, StartError::Vault(VaultError::NoKey(_))),
        "{error}"
    );

    let second = first.start_beside().await;
    let world = world_on(first).await;
    let first = draft(1).secret("PASSWORD", VALUE);
    let answer = first.post(&second.client, &world.publisher.key);
    answer.await.expect::<ConfigurationView>(201);
    let path = "/v1/functions/acme/hello/rollouts";
    let body = json!({ "configuration": 1, "bake_ms": 0 });
    let begun: RolloutView = second.client.post(path, &body).await.expect(201);
    world.ended(begun.id, RolloutState::Completed).await;
    world.all_have(&[("PASSWORD", VALUE)]).await;
    let node = TestNode::start(&second, "n9", 9).await;
    let has = || async { node.entries().get("PASSWORD").map(String::as_str) == Some(VALUE) };
    until("the secret from the other coordinator", has).await;
}
