//! The HTTP API: tokens, problems, and what stays across a restart.
#![allow(clippy::unwrap_used)]

mod common;

use std::os::unix::fs::PermissionsExt as _;

use common::http::Client;
use common::node::TestNode;
use common::{Coordinator, Publisher, until};
use holm_model::api::{FunctionView, Health, LogPage, NodeView, RouteView, TenantView};
use holm_model::control::LogEntry;
use holm_model::ids::RequestId;
use serde_json::json;

#[tokio::test]
async fn health_needs_no_token_and_everything_else_does() {
    let coordinator = Coordinator::start().await;
    let address = coordinator.client.address;
    let nobody = Client {
        address,
        token: None,
    };
    let stranger = Client {
        address,
        token: Some("holm-admin-1.guess".into()),
    };
    assert!(nobody.get("/v1/health").await.expect::<Health>(200).now_ms > 1_600_000_000_000);
    for (method, path) in [
        ("GET", "/v1/nodes"),
        ("POST", "/v1/nodes/n1/drain"),
        ("POST", "/v1/join-tokens"),
        ("PUT", "/v1/tenants/acme"),
        ("PUT", "/v1/artifacts/x"),
        ("GET", "/v1/functions"),
        ("POST", "/v1/rollouts/1/abort"),
        ("GET", "/v1/functions/acme/hello/logs"),
        ("GET", "/v1/usage"),
        ("GET", "/v1/usage/audit"),
        ("GET", "/v1/usage/records"),
        ("GET", "/v1/route/acme/hello"),
    ] {
        let without = nobody.send(method, path, b"{}").await;
        assert!(
            without.problem(401).detail.contains("has no bearer token"),
            "{path}"
        );
        assert!(without.head.contains("www-authenticate: bearer"), "{path}");
        let wrong = stranger.send(method, path, b"{}").await.problem(401);
        assert!(wrong.detail.contains("is not valid here"), "{path}");
    }
}

#[tokio::test]
async fn whatever_is_wrong_with_a_request_comes_back_as_a_problem() {
    let coordinator = Coordinator::start().await;
    let client = &coordinator.client;
    let long = vec![b' '; 600 << 10];
    let nothing = common::node::nothing();
    for (method, path, body, status, kind) in [
        ("GET", "/", &b""[..], 404, "/problems/no-such-path"),
        ("GET", "/v2/nodes", b"", 404, "/problems/no-such-path"),
        ("DELETE", "/v1/nodes", b"", 405, "/problems/wrong-method"),
        ("POST", "/v1/health", b"", 405, "/problems/wrong-method"),
        (
            "POST",
            "/v1/join-tokens",
            b"{",
            400,
            "/problems/bad-request",
        ),
        (
            "POST",
            "/v1/join-tokens",
            b"{\"ttl\": 1}",
            400,
            "/problems/bad-request",
        ),
        ("POST", "/v1/join-tokens", &long, 413, "/problems/too-large"),
        (
            "PUT",
            "/v1/tenants/Not_A_Name",
            b"{}",
            400,
            "/problems/bad-request",
        ),
        (
            "PUT",
            "/v1/tenants/acme",
            b"{\"publisher_keys\":[\"AAAA\"]}",
            400,
            "/problems/bad-request",
        ),
        (
            "PUT",
            "/v1/artifacts/md5:00",
            b"",
            400,
            "/problems/bad-request",
        ),
        (
            "GET",
            "/v1/functions/acme/none",
            b"",
            404,
            "/problems/not-found",
        ),
        (
            "GET",
            "/v1/functions/acme/none/rollouts/latest",
            b"",
            404,
            "/problems/not-found",
        ),
        (
            "POST",
            "/v1/functions/acme/none/rollback",
            b"",
            404,
            "/problems/not-found",
        ),
        (
            "GET",
            "/v1/functions/acme/%ff",
            b"",
            400,
            "/problems/bad-request",
        ),
        ("GET", "/v1/rollouts/1", b"", 404, "/problems/not-found"),
        ("GET", "/v1/rollouts/-1", b"", 400, "/problems/bad-request"),
        (
            "POST",
            "/v1/rollouts/99/abort",
            b"",
            404,
            "/problems/not-found",
        ),
        (
            "GET",
            "/v1/route/acme/none",
            b"",
            404,
            "/problems/not-found",
        ),
        (
            "GET",
            "/v1/route/acme/none?from=91,0",
            b"",
            400,
            "/problems/bad-request",
        ),
        (
            "GET",
            "/v1/route/acme/none?probe=a:b",
            b"",
            400,
            "/problems/bad-request",
        ),
        (
            "GET",
            "/v1/usage?by=colour",
            b"",
            400,
            "/problems/bad-request",
        ),
        (
            "GET",
            "/v1/usage?tennant=acme",
            b"",
            400,
            "/problems/bad-request",
        ),
        (
            "GET",
            "/v1/usage/records?limit=0",
            b"",
            400,
            "/problems/bad-request",
        ),
        (
            "GET",
            "/v1/usage/records?after=x",
            b"",
            400,
            "/problems/bad-request",
        ),
    ] {
        let problem = client.send(method, path, body).await.problem(status);
        assert_eq!(problem.kind, kind, "{method} {path}: {}", problem.detail);
    }
    let head = client
        .send("HEAD", &format!("/v1/artifacts/{nothing}"), b"")
        .await;
    assert_eq!((head.status, head.body.len()), (404, 0));
    let wrong = client.send("DELETE", "/v1/nodes", b"").await;
    assert!(wrong.head.contains("allow: get"), "{}", wrong.head);
}

#[tokio::test]
async fn secrets_are_for_their_owner_alone_and_only_digests_are_stored() {
    let coordinator = Coordinator::start().await;
    let state = coordinator.dir.path().join("state");
    let mode = |path: &str| {
        std::fs::metadata(state.join(path))
            .unwrap()
            .permissions()
            .mode()
            & 0o777
    };
    assert_eq!(
        (mode(""), mode("admin-token"), mode("ca.key")),
        (0o700, 0o600, 0o600)
    );
    let admin = coordinator.client.token.clone().unwrap();
    let join = coordinator.join_token().await;
    let secret = join.parse::<holm_model::join::JoinToken>().unwrap().secret;
    for file in ["coordinator.db", "coordinator.db-wal"] {
        let bytes = std::fs::read(state.join(file)).unwrap();
        let holds = |needle: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
        assert!(!holds(admin.as_bytes()) && !holds(&secret), "{file}");
    }
}

#[tokio::test]
async fn a_lost_admin_token_is_replaced_and_the_old_one_is_void() {
    let mut coordinator = Coordinator::start().await;
    let old = coordinator.client.token.clone();
    coordinator.restart().await;
    assert_eq!(
        coordinator.client.token, old,
        "a restart alone changes nothing"
    );

    std::fs::remove_file(coordinator.dir.path().join("state/admin-token")).unwrap();
    coordinator.restart().await;
    assert_ne!(coordinator.client.token, old);
    assert_eq!(coordinator.client.get("/v1/nodes").await.status, 200);
    let with_old = Client {
        token: old,
        ..coordinator.client.clone()
    };
    with_old.get("/v1/nodes").await.problem(401);
}

#[tokio::test]
async fn a_second_coordinator_on_the_same_state_is_refused() {
    let coordinator = Coordinator::start().await;
    let anywhere = "127.0.0.1:0".parse().unwrap();
    let state = coordinator.dir.path().join("state");
    let config = holm_coordinator::Config::new(state, anywhere, anywhere);
    let error = holm_coordinator::start(config).await.err().unwrap();
    assert!(
        error.to_string().contains("another coordinator is running"),
        "{error}"
    );
}

#[tokio::test]
async fn a_tenants_keys_add_up_and_are_listed_once() {
    let coordinator = Coordinator::start().await;
    let key = |seed| common::public(&ed25519_dalek::SigningKey::from_bytes(&[seed; 32]));
    let put = |keys: Vec<String>| {
        let body = serde_json::to_vec(&json!({ "publisher_keys": keys })).unwrap();
        let client = coordinator.client.clone();
        async move { client.put("/v1/tenants/acme", &body).await }
    };
    put(vec![key(1)]).await.expect::<TenantView>(200);
    let tenant: TenantView = put(vec![key(2), key(1)]).await.expect(200);
    let listed: std::collections::BTreeSet<_> = tenant.publisher_keys.iter().cloned().collect();
    assert_eq!(listed, [key(1), key(2)].into());
    assert_eq!(tenant.publisher_keys.len(), 2);
    let many = (0..40).map(key).collect();
    assert_eq!(put(many).await.problem(422).kind, "/problems/too-many-keys");
}

#[tokio::test]
async fn the_nearest_node_is_told_with_its_url_and_why() {
    let coordinator = Coordinator::start().await;
    let _near = TestNode::start(&coordinator, "near", 1).await;
    let far = TestNode::start(&coordinator, "far", 5).await;
    let mut publisher = Publisher::register(&coordinator, "acme/hello", 1).await;
    let version = publisher.publish(&coordinator, "").await.version;
    let route = |query: &'static str| {
        let client = coordinator.client.clone();
        async move {
            client
                .get(&format!("/v1/route/acme/hello{query}"))
                .await
                .expect(200)
        }
    };
    let before: RouteView = route("").await;
    assert!(before.candidates.is_empty());
    assert_eq!(before.excluded.len(), 2);
    assert!(
        before.excluded[0]
            .why
            .contains("does not have the function")
    );

    let rollout = publisher.roll_out(&coordinator, version, &[100], 0).await;
    coordinator
        .rollout_when(rollout.id, |view| view.ended_ms.is_some())
        .await;
    let names = |view: &RouteView| -> Vec<String> {
        view.candidates
            .iter()
            .map(|candidate| candidate.node.to_string())
            .collect()
    };
    let view: RouteView = route("?from=9,9").await;
    assert_eq!(names(&view), ["near", "far"]);
    assert_eq!(view.candidates[0].url, "http://127.0.0.1:8001/acme/hello");
    assert!(view.candidates[0].why.contains("km away"));
    let view: RouteView = route("?from=9,9&probe=far:900,near:1000").await;
    assert_eq!(names(&view), ["far", "near"]);

    far.kill();
    until("the end of the link", || async {
        let view: RouteView = route("").await;
        names(&view) == ["near"]
            && view.excluded[0]
                .why
                .contains("link to the coordinator is down")
    })
    .await;
}

#[tokio::test]
async fn a_drained_node_is_no_way_to_a_function_until_it_is_undrained_whoever_restarts() {
    let mut coordinator = Coordinator::start().await;
    let n1 = TestNode::start(&coordinator, "n1", 1).await;
    let _n2 = TestNode::start(&coordinator, "n2", 2).await;
    let mut publisher = Publisher::register(&coordinator, "acme/hello", 1).await;
    let version = publisher.publish(&coordinator, "").await.version;
    let rollout = publisher.roll_out(&coordinator, version, &[100], 0).await;
    coordinator
        .rollout_when(rollout.id, |view| view.ended_ms.is_some())
        .await;
    let post =
        |client: Client, path: &'static str| async move { client.send("POST", path, b"").await };
    let view: NodeView = post(coordinator.client.clone(), "/v1/nodes/n1/drain")
        .await
        .expect(200);
    assert!(view.drained && view.name == n1.identity.name);
    let candidates = |view: &RouteView| -> Vec<String> {
        let nodes = view.candidates.iter();
        nodes.map(|one| one.node.to_string()).collect()
    };
    let view: RouteView = coordinator
        .client
        .get("/v1/route/acme/hello")
        .await
        .expect(200);
    assert_eq!(candidates(&view), ["n2"]);
    assert!(view.excluded[0].why.contains("holm nodes undrain"));

    coordinator.restart().await;
    until("both nodes are back", || async {
        let nodes = coordinator.nodes().await;
        nodes.iter().all(|node| node.connected)
    })
    .await;
    let drained: Vec<_> = coordinator
        .nodes()
        .await
        .iter()
        .map(|node| node.drained)
        .collect();
    assert_eq!(drained, [true, false]);
    let view: NodeView = post(coordinator.client.clone(), "/v1/nodes/n1/undrain")
        .await
        .expect(200);
    assert!(!view.drained);
    until("the way leads there again", || async {
        let route = coordinator.client.get("/v1/route/acme/hello").await;
        candidates(&route.expect(200)).len() == 2
    })
    .await;
    let unknown = post(coordinator.client.clone(), "/v1/nodes/absent/drain").await;
    assert!(unknown.problem(404).detail.contains("`absent`"));
}

#[tokio::test]
async fn a_restart_keeps_functions_versions_and_nodes() {
    let mut coordinator = Coordinator::start().await;
    let node = TestNode::start(&coordinator, "edge-1", 1).await;
    let mut publisher = Publisher::register(&coordinator, "acme/hello", 1).await;
    let version = publisher.publish(&coordinator, "").await;
    let rollout = publisher
        .roll_out(&coordinator, version.version, &[100], 0)
        .await;
    coordinator
        .rollout_when(rollout.id, |view| view.ended_ms.is_some())
        .await;
    let before: Vec<FunctionView> = coordinator.client.get("/v1/functions").await.expect(200);
    assert_eq!(before[0].current, Some(version.clone()));

    coordinator.restart().await;
    let after: Vec<FunctionView> = coordinator.client.get("/v1/functions").await.expect(200);
    assert_eq!(after, before);
    let view = coordinator.nodes().await.remove(0);
    assert_eq!(
        (view.name, view.region.as_str()),
        (node.identity.name.clone(), "eu")
    );
    // The node finds it again by itself, with the certificate it has.
    until("the node's return", || async {
        let view = coordinator.nodes().await.remove(0);
        view.connected
            && view.versions.len() == 1
            && view.versions[0].routed
            && view.versions[0].label == "v1"
    })
    .await;
}

#[tokio::test]
async fn a_shutdown_is_orderly_and_tells_the_nodes() {
    let mut coordinator = Coordinator::start().await;
    let token = coordinator.join_token().await;
    let identity = common::node::join(coordinator.quic, &token, "edge-1")
        .await
        .unwrap();
    let control = common::node::connect(coordinator.quic, &identity, common::node::hello(1)).await;
    let running = coordinator.running.take().unwrap();
    tokio::time::timeout(common::PATIENCE, running.shutdown())
        .await
        .unwrap();
    let closed = tokio::time::timeout(common::PATIENCE, control.connection.closed())
        .await
        .unwrap();
    assert!(
        closed.to_string().contains("the coordinator is ending"),
        "{closed}"
    );
    coordinator.restart().await;
    assert_eq!(coordinator.nodes().await.len(), 1);
}

#[tokio::test]
async fn what_functions_write_can_be_read_page_by_page_and_by_request() {
    let coordinator = Coordinator::start().await;
    let node = TestNode::start(&coordinator, "n1", 1).await;
    let mut publisher = Publisher::register(&coordinator, "acme/hello", 1).await;
    let mut other = Publisher::register(&coordinator, "acme/other", 1).await;
    other.publish(&coordinator, "").await;
    let version = publisher.publish(&coordinator, "").await.version;
    publisher.roll_out(&coordinator, version, &[100], 0).await;
    until("the node has the version", async || {
        node.routed() == Some(version)
    })
    .await;
    // Of a function that is not rolled out.
    node.log(LogEntry {
        function: "acme/other".parse().unwrap(),
        version,
        request: RequestId([9; 16]),
        at_ms: 1_700_000_000_000,
        failed: false,
        text: "not its own".into(),
    });
    for n in 1..=3 {
        node.log(LogEntry {
            function: "acme/hello".parse().unwrap(),
            version,
            request: RequestId([n; 16]),
            at_ms: 1_700_000_000_000,
            failed: n == 3,
            text: format!("line {n}\u{1b}[2J"),
        });
    }
    let path = "/v1/functions/acme/hello/logs";
    let client = &coordinator.client;
    until("all entries are there", async || {
        client.get(path).await.expect::<LogPage>(200).entries.len() == 3
    })
    .await;
    let last: LogPage = client.get(&format!("{path}?limit=1")).await.expect(200);
    assert_eq!(last.entries[0].text, "line 3\u{fffd}[2J");
    assert!(last.entries[0].failed && last.entries[0].node.as_str() == "n1");
    assert_eq!(last.dropped, 4);
    let first: LogPage = client
        .get(&format!("{path}?after=0&limit=2"))
        .await
        .expect(200);
    let rest: LogPage = client
        .get(&format!("{path}?after={}", first.next))
        .await
        .expect(200);
    assert_eq!((first.entries.len(), &rest.entries), (2, &last.entries));
    let other = client.get("/v1/functions/acme/other/logs").await;
    assert_eq!(other.expect::<LogPage>(200).entries, []);
    let request = RequestId([2; 16]);
    let one: LogPage = client
        .get(&format!("{path}?request={request}"))
        .await
        .expect(200);
    assert!(one.entries.len() == 1 && one.entries[0].request == request);
    for (query, status) in [("?limit=0", 400), ("?request=x", 400), ("?lines=1", 400)] {
        client.get(&format!("{path}{query}")).await.problem(status);
    }
    client
        .get("/v1/functions/acme/nothing/logs")
        .await
        .problem(404);
}
