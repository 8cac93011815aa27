//! Rollouts over real links, with nodes that are told how versions behave on them.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::node::{TestNode, hello, join};
use common::{Coordinator, Publisher, until};
use holm_model::api::{
    FunctionView, QueuedView, RolloutPlanView, RolloutState, RolloutView, RolloutsView,
};
use holm_model::control::Record;
use holm_model::ids::VersionId;
use holm_model::run_times::RunTimes;
use holm_model::usage::Outcome;
use serde_json::json;

struct World {
    coordinator: Coordinator,
    nodes: Vec<TestNode>,
    publisher: Publisher,
    v1: VersionId,
    v2: VersionId,
}

/// Three nodes on version 1, and a version 2 that is published.
async fn world() -> World {
    let coordinator = Coordinator::start().await;
    let mut nodes = Vec::new();
    for index in 0..3 {
        nodes.push(TestNode::start(&coordinator, &format!("n{index}"), index).await);
    }
    let mut publisher = Publisher::register(&coordinator, "acme/hello", 1).await;
    let v1 = publisher.publish(&coordinator, "").await.version;
    let v2 = publisher.publish(&coordinator, "").await.version;
    let first = publisher.roll_out(&coordinator, v1, &[100], 0).await;
    let world = World {
        coordinator,
        nodes,
        publisher,
        v1,
        v2,
    };
    world.ended(first.id, RolloutState::Completed).await;
    world.all_on(Some(v1)).await;
    world
}

impl World {
    /// A further version that does the same.
    async fn publish(&mut self) -> VersionId {
        self.publisher.publish(&self.coordinator, "").await.version
    }

    async fn roll_out(&self, waves: &[u8], bake_ms: u64) -> RolloutView {
        self.publisher
            .roll_out(&self.coordinator, self.v2, waves, bake_ms)
            .await
    }

    /// The rollout once it has ended, which it must in this state.
    async fn ended(&self, id: u64, state: RolloutState) -> RolloutView {
        let view = self
            .coordinator
            .rollout_when(id, |view| view.ended_ms.is_some())
            .await;
        assert_eq!(view.state, state, "{}", view.reason);
        view
    }

    async fn all_on(&self, version: Option<VersionId>) {
        let all = || async { self.nodes.iter().all(|node| node.routed() == version) };
        until("one version on all nodes", all).await;
        let view: FunctionView = self
            .coordinator
            .client
            .get("/v1/functions/acme/hello")
            .await
            .expect(200);
        assert_eq!(view.current.map(|current| current.version), version);
    }

    fn states(view: &RolloutView) -> Vec<&str> {
        view.waves.iter().map(|wave| wave.state.as_str()).collect()
    }
}

#[tokio::test]
async fn a_rollout_reaches_every_node_wave_by_wave() {
    let world = world().await;
    let rollout = world.roll_out(&[34, 100], 300).await;
    assert_eq!(rollout.state, RolloutState::Running);
    assert_eq!(
        rollout.previous.as_ref().map(|view| view.version),
        Some(world.v1)
    );
    let baking = |view: &RolloutView| World::states(view) == ["baking", "waiting"];
    let view = world.coordinator.rollout_when(rollout.id, baking).await;
    let names = |index: usize| -> Vec<String> {
        view.waves[index]
            .nodes
            .iter()
            .map(ToString::to_string)
            .collect()
    };
    assert_eq!(
        (names(0), names(1)),
        (vec!["n0".into()], vec!["n1".into(), "n2".into()])
    );
    assert_eq!(
        world.nodes[1].routed(),
        Some(world.v1),
        "the second wave waits for the first"
    );

    let view = world.ended(rollout.id, RolloutState::Completed).await;
    assert_eq!(World::states(&view), ["passed", "passed"]);
    world.all_on(Some(world.v2)).await;
    for node in &world.nodes {
        let behaviour = node.behaviour.lock().unwrap();
        assert_eq!(behaviour.routed, [world.v1, world.v2]);
        assert!(
            behaviour.generations.is_sorted(),
            "{:?}",
            behaviour.generations
        );
        let fallback = behaviour.desired.functions[0].previous.as_ref();
        assert_eq!(
            fallback.map(|signed| signed.id()),
            Some(world.v1),
            "to go back at once"
        );
    }
}

#[tokio::test]
async fn a_version_that_fails_its_probe_is_stopped_and_no_node_ever_routes_to_it() {
    let world = world().await;
    world.nodes[0]
        .behaviour
        .lock()
        .unwrap()
        .fails
        .insert(world.v2, "it crashed: #PF".into());
    let rollout = world.roll_out(&[34, 100], 0).await;
    let view = world.ended(rollout.id, RolloutState::RolledBack).await;
    assert!(
        view.reason.contains("failed on node n0: it crashed: #PF"),
        "{}",
        view.reason
    );
    assert_eq!(World::states(&view), ["failed", "waiting"]);
    world.all_on(Some(world.v1)).await;
    for node in &world.nodes {
        assert_eq!(node.behaviour.lock().unwrap().routed, [world.v1]);
    }
    // The way is free for the next try, and an old failure is not held against it.
    world.nodes[0].behaviour.lock().unwrap().fails.clear();
    let again = world.roll_out(&[100], 0).await;
    world.ended(again.id, RolloutState::Completed).await;
}

#[tokio::test]
async fn errors_that_nodes_report_stop_the_rollout_at_its_gate() {
    let world = world().await;
    for node in &world.nodes {
        node.behaviour.lock().unwrap().record = Some(Record {
            outcomes: vec![(Outcome::Answered, 998), (Outcome::FunctionError, 2)],
            run_times: RunTimes::default(),
        });
    }
    let rollout = world.roll_out(&[34, 100], 20_000).await;
    let baking = |view: &RolloutView| World::states(view).first() == Some(&"baking");
    world.coordinator.rollout_when(rollout.id, baking).await;
    let function = &world.publisher.function;
    // Of another version, and of nobody's doing: no reason to stop.
    world.nodes[1].report(function, world.v1, &[(Outcome::Crash, 7)]);
    world.nodes[0].report(
        function,
        world.v2,
        &[(Outcome::Answered, 90), (Outcome::Shed, 50)],
    );
    let seen = |view: &RolloutView| view.waves[0].invocations == 90;
    let view = world.coordinator.rollout_when(rollout.id, seen).await;
    assert_eq!(
        (view.state, view.waves[0].errors),
        (RolloutState::Running, 0)
    );

    world.nodes[0].report(function, world.v2, &[(Outcome::FunctionError, 30)]);
    let view = world.ended(rollout.id, RolloutState::RolledBack).await;
    assert!(
        view.reason
            .contains("30 of 120 invocations of the new version failed, of the old one on the same nodes 2 of 1000"),
        "{}",
        view.reason
    );
    assert_eq!((view.waves[0].invocations, view.waves[0].errors), (120, 30));
    let gate = &view.gates[0];
    assert_eq!(
        (gate.subject.as_str(), gate.outcome.as_str()),
        ("errors", "fail")
    );
    assert_eq!(
        (gate.new_bad, gate.new, gate.old_bad, gate.old),
        (30, 120, 2, 1000)
    );
    world.all_on(Some(world.v1)).await;
}

#[tokio::test]
async fn a_crash_under_traffic_stops_the_rollout() {
    let world = world().await;
    let rollout = world.roll_out(&[34, 100], 20_000).await;
    let baking = |view: &RolloutView| World::states(view).first() == Some(&"baking");
    world.coordinator.rollout_when(rollout.id, baking).await;
    let outcomes = [(Outcome::Answered, 1_000_000), (Outcome::Crash, 1)];
    world.nodes[0].report(&world.publisher.function, world.v2, &outcomes);
    let view = world.ended(rollout.id, RolloutState::RolledBack).await;
    assert!(view.reason.contains("crashed 1 times"), "{}", view.reason);
    world.all_on(Some(world.v1)).await;
}

#[tokio::test]
async fn waves_are_rings_of_labelled_nodes_and_are_told_before_they_begin() {
    let world = world().await;
    let client = &world.coordinator.client;
    let path = "/v1/functions/acme/hello/rollouts";
    let waves = json!([
        "ring=canary,bake=100ms,quorum=100%",
        "region=eu,nodes=2",
        100
    ]);
    let body = json!({ "version": world.v2, "waves": waves, "bake_ms": 0 });
    let plan: RolloutPlanView = client
        .post(&format!("{path}/plan"), &body)
        .await
        .expect(200);
    assert_eq!(plan.empty, ["ring=canary,bake=100ms,quorum=100%"]);
    let problem = client.post(path, &body).await.problem(409);
    assert_eq!(problem.kind, "/problems/empty-wave");
    assert!(
        problem.detail.contains("`ring=canary"),
        "{}",
        problem.detail
    );

    let labels = json!({ "labels": { "ring": "canary" } }).to_string();
    let labelled = client.put("/v1/nodes/n2/labels", labels.as_bytes()).await;
    assert_eq!(labelled.status, 200, "{}", labelled.text());
    let plan: RolloutPlanView = client
        .post(&format!("{path}/plan"), &body)
        .await
        .expect(200);
    let nodes = |index: usize| -> Vec<&str> {
        plan.waves[index]
            .nodes
            .iter()
            .map(|name| name.as_str())
            .collect()
    };
    assert_eq!(
        (nodes(0), nodes(1), nodes(2)),
        (vec!["n2"], vec!["n0"], vec!["n1"])
    );
    assert_eq!(
        (plan.waves[0].bake_ms, plan.waves[0].quorum),
        (100, Some(1))
    );
    assert_eq!((plan.empty.len(), plan.running), (0, None));
    let rollout: RolloutView = client.post(path, &body).await.expect(201);
    let view = world.ended(rollout.id, RolloutState::Completed).await;
    let found: Vec<_> = view.waves.iter().map(|wave| &wave.nodes).collect();
    let planned: Vec<_> = plan.waves.iter().map(|wave| &wave.nodes).collect();
    assert_eq!(found, planned);

    for bad in [
        json!(["baek=1s", 100]),
        json!(["ring=canary"]),
        json!([0, 100]),
    ] {
        let body = json!({ "version": world.v1, "waves": bad });
        let problem = client.post(path, &body).await.problem(400);
        assert!(problem.detail.contains("not"), "{}", problem.detail);
    }
}

#[tokio::test]
async fn a_rollout_takes_the_place_of_another_in_one_step() {
    let mut world = world().await;
    let v3 = world.publish().await;
    let client = &world.coordinator.client;
    let first = world.roll_out(&[34, 100], 20_000).await;
    let baking = |view: &RolloutView| World::states(view).first() == Some(&"baking");
    world.coordinator.rollout_when(first.id, baking).await;
    let path = "/v1/functions/acme/hello/rollouts";
    let body = json!({ "version": v3, "waves": [100], "bake_ms": 0, "when_running": "supersede" });
    let second: RolloutView = client.post(path, &body).await.expect(201);
    let previous = second.previous.as_ref().map(|previous| previous.version);
    assert_eq!(
        previous,
        Some(world.v1),
        "what was moved half way is nothing to go back to"
    );
    let view = world.ended(first.id, RolloutState::Superseded).await;
    assert!(
        view.reason.contains("superseded by a rollout to"),
        "{}",
        view.reason
    );
    world.ended(second.id, RolloutState::Completed).await;
    world.all_on(Some(v3)).await;
}

#[tokio::test]
async fn a_queued_rollout_begins_when_the_other_has_ended_even_after_a_restart() {
    let mut world = world().await;
    let v3 = world.publish().await;
    let v4 = world.publish().await;
    let path = "/v1/functions/acme/hello/rollouts";
    let first = world.roll_out(&[34, 100], 20_000).await;
    let queue = |version| json!({ "version": version, "waves": [100], "bake_ms": 0, "when_running": "queue" });
    let client = &world.coordinator.client;
    let queued: QueuedView = client.post(path, &queue(v3)).await.expect(202);
    assert_eq!(
        (queued.version.unwrap().version, queued.behind),
        (v3, Some(first.id))
    );
    // The last word counts.
    let _: QueuedView = client.post(path, &queue(v4)).await.expect(202);
    world.coordinator.restart().await;
    let client = &world.coordinator.client;
    let list: RolloutsView = client.get(path).await.expect(200);
    assert_eq!(list.rollouts[0].id, first.id);
    assert_eq!(
        list.queued.map(|queued| queued.version.unwrap().version),
        Some(v4)
    );
    let abort = format!("/v1/rollouts/{}/abort", first.id);
    let view: RolloutView = client.post(&abort, &json!({})).await.expect(200);
    assert_eq!(
        view.queued.map(|queued| queued.version.unwrap().version),
        Some(v4)
    );
    let begun = || async {
        let list: RolloutsView = client.get(path).await.expect(200);
        list.queued.is_none() && list.rollouts[0].version.version == v4
    };
    until("what was queued to begin", begun).await;
    let list: RolloutsView = client.get(path).await.expect(200);
    world
        .ended(list.rollouts[0].id, RolloutState::Completed)
        .await;
    world.all_on(Some(v4)).await;

    // What waits can be given up.
    let next = json!({ "version": world.v2, "waves": [34, 100], "bake_ms": 20_000 });
    let _: RolloutView = client.post(path, &next).await.expect(201);
    let _: QueuedView = client.post(path, &queue(v3)).await.expect(202);
    let gone = client.send("DELETE", &format!("{path}/queued"), b"").await;
    assert_eq!(gone.status, 204, "{}", gone.text());
    let none = client.send("DELETE", &format!("{path}/queued"), b"").await;
    assert_eq!(none.problem(404).kind, "/problems/not-found");
}

#[tokio::test]
async fn a_queued_rollout_that_cannot_begin_any_more_is_given_up() {
    let world = world().await;
    let path = "/v1/functions/acme/hello/rollouts";
    let client = &world.coordinator.client;
    let first = world.roll_out(&[100], 500).await;
    let body = json!({ "version": world.v2, "when_running": "queue" });
    let _: QueuedView = client.post(path, &body).await.expect(202);
    world.ended(first.id, RolloutState::Completed).await;
    let given_up = || async {
        let list: RolloutsView = client.get(path).await.expect(200);
        list.queued.is_none() && list.rollouts[0].id == first.id
    };
    until("a queue without what the fleet is on already", given_up).await;
}

#[tokio::test]
async fn a_rollback_goes_to_any_version_that_is_kept_in_one_step() {
    let mut world = world().await;
    let v3 = world.publish().await;
    for version in [world.v2, v3] {
        let rollout = world
            .publisher
            .roll_out(&world.coordinator, version, &[100], 0)
            .await;
        world.ended(rollout.id, RolloutState::Completed).await;
    }
    let client = &world.coordinator.client;
    let path = "/v1/functions/acme/hello/rollback";
    let back: RolloutView = client
        .post(path, &json!({ "version": world.v1 }))
        .await
        .expect(201);
    world.ended(back.id, RolloutState::Completed).await;
    world.all_on(Some(world.v1)).await;
    let unknown = json!({ "version": common::node::nothing() });
    client.post(path, &unknown).await.problem(404);
    let again = client
        .post(path, &json!({ "version": world.v1 }))
        .await
        .problem(409);
    assert_eq!(again.kind, "/problems/already-current");

    // In the way is a rollout that goes on, unless it is to be superseded.
    let rollout = world.roll_out(&[34, 100], 20_000).await;
    let refused = client
        .post(path, &json!({ "version": v3 }))
        .await
        .problem(409);
    assert_eq!(refused.kind, "/problems/rollout-running");
    let instead = json!({ "version": v3, "supersede": true });
    let back: RolloutView = client.post(path, &instead).await.expect(201);
    world.ended(rollout.id, RolloutState::Superseded).await;
    world.ended(back.id, RolloutState::Completed).await;
    world.all_on(Some(v3)).await;
}

#[tokio::test]
async fn only_one_rollout_of_a_function_goes_on_at_a_time() {
    let world = world().await;
    let rollout = world.roll_out(&[34, 100], 20_000).await;
    let path = "/v1/functions/acme/hello/rollouts";
    for body in [
        json!({ "version": world.v1 }),
        json!({ "version": world.v2 }),
    ] {
        let problem = world
            .coordinator
            .client
            .post(path, &body)
            .await
            .problem(409);
        assert_eq!(problem.kind, "/problems/rollout-running");
        assert!(
            problem.detail.contains(&format!("rollout {}", rollout.id)),
            "{}",
            problem.detail
        );
    }
    let abort = format!("/v1/rollouts/{}/abort", rollout.id);
    let view: RolloutView = world
        .coordinator
        .client
        .post(&abort, &json!({}))
        .await
        .expect(200);
    assert_eq!(view.state, RolloutState::RollingBack);
    let view = world.ended(rollout.id, RolloutState::RolledBack).await;
    assert_eq!(view.reason, "aborted by the operator");
    let again = world
        .coordinator
        .client
        .post(&abort, &json!({}))
        .await
        .problem(409);
    assert_eq!(again.kind, "/problems/rollout-ended");
    world.all_on(Some(world.v1)).await;
    let current = json!({ "version": world.v1 });
    let problem = world
        .coordinator
        .client
        .post(path, &current)
        .await
        .problem(409);
    assert_eq!(problem.kind, "/problems/already-current");
    for bad in [json!([50]), json!([100, 50]), json!([])] {
        let body = json!({ "version": world.v2, "waves_percent": bad });
        world
            .coordinator
            .client
            .post(path, &body)
            .await
            .problem(400);
    }
    let unknown = json!({ "version": common::node::nothing() });
    world
        .coordinator
        .client
        .post(path, &unknown)
        .await
        .problem(404);
}

#[tokio::test]
async fn rollback_goes_to_the_version_before_and_no_further() {
    let world = world().await;
    let rollout = world.roll_out(&[100], 0).await;
    world.ended(rollout.id, RolloutState::Completed).await;
    let path = "/v1/functions/acme/hello/rollback";
    let back: RolloutView = world
        .coordinator
        .client
        .post(path, &json!({}))
        .await
        .expect(201);
    assert_eq!(back.version.version, world.v1);
    world.ended(back.id, RolloutState::Completed).await;
    world.all_on(Some(world.v1)).await;
    let problem = world
        .coordinator
        .client
        .post(path, &json!({}))
        .await
        .problem(409);
    assert_eq!(problem.kind, "/problems/nothing-before");
    let latest = world
        .coordinator
        .client
        .get("/v1/functions/acme/hello/rollouts/latest")
        .await;
    assert_eq!(latest.expect::<RolloutView>(200).id, back.id);
}

#[tokio::test]
async fn what_goes_back_is_not_turned_round_by_a_node_that_cannot() {
    let world = world().await;
    let rollout = world.roll_out(&[100], 0).await;
    world.ended(rollout.id, RolloutState::Completed).await;
    let full = "its disk is full".to_owned();
    let behaviour = &world.nodes[1].behaviour;
    behaviour.lock().unwrap().fails.insert(world.v1, full);
    let path = "/v1/functions/acme/hello/rollback";
    let client = &world.coordinator.client;
    let back: RolloutView = client.post(path, &json!({})).await.expect(201);
    let ended = world.ended(back.id, RolloutState::Completed).await;
    assert!(
        ended.reason.contains("the fleet is back"),
        "{}",
        ended.reason
    );
    assert!(ended.reason.contains("n1"), "{}", ended.reason);
    for index in [0, 2] {
        assert_eq!(world.nodes[index].routed(), Some(world.v1));
    }
}

#[tokio::test]
async fn a_coordinator_of_an_older_database_goes_on_behind_what_its_nodes_know() {
    let world = world().await;
    for node in &world.nodes {
        node.behaviour.lock().unwrap().ahead = 450;
    }
    // What nobody can have told it changes nothing.
    world.nodes[2].behaviour.lock().unwrap().ahead = 1 << 40;
    world.roll_out(&[100], 20_000).await;
    let moved = || async { (0..2).all(|index| world.nodes[index].routed() == Some(world.v2)) };
    until("version 2 on the nodes that can be overtaken", moved).await;
    for node in &world.nodes[..2] {
        let last = node.behaviour.lock().unwrap().generations.last().copied();
        assert!((451..1000).contains(&last.unwrap()), "{last:?}");
    }
}

#[tokio::test]
async fn a_first_version_that_fails_leaves_the_function_without_one() {
    let coordinator = Coordinator::start().await;
    let node = TestNode::start(&coordinator, "n0", 0).await;
    let mut publisher = Publisher::register(&coordinator, "acme/hello", 1).await;
    let v1 = publisher.publish(&coordinator, "").await.version;
    node.behaviour
        .lock()
        .unwrap()
        .fails
        .insert(v1, "it crashed".into());
    let rollout = publisher.roll_out(&coordinator, v1, &[100], 0).await;
    let ended = |view: &RolloutView| view.ended_ms.is_some();
    let view = coordinator.rollout_when(rollout.id, ended).await;
    assert_eq!(
        (view.state, view.previous),
        (RolloutState::RolledBack, None)
    );
    let function: FunctionView = coordinator
        .client
        .get("/v1/functions/acme/hello")
        .await
        .expect(200);
    assert_eq!(function.current, None);
    assert!(node.behaviour.lock().unwrap().desired.functions.is_empty());
}

#[tokio::test]
async fn a_rollout_without_nodes_waits_until_one_is_there() {
    let coordinator = Coordinator::start().await;
    let mut publisher = Publisher::register(&coordinator, "acme/hello", 1).await;
    let v1 = publisher.publish(&coordinator, "").await.version;
    let rollout = publisher.roll_out(&coordinator, v1, &[100], 0).await;
    let told = |view: &RolloutView| view.reason.contains("waiting for a node");
    let view = coordinator.rollout_when(rollout.id, told).await;
    assert_eq!(view.state, RolloutState::Running);
    let node = TestNode::start(&coordinator, "n0", 0).await;
    let ended = |view: &RolloutView| view.ended_ms.is_some();
    let view = coordinator.rollout_when(rollout.id, ended).await;
    assert_eq!(view.state, RolloutState::Completed);
    assert_eq!(node.routed(), Some(v1));
}

#[tokio::test]
async fn placement_keeps_a_function_out_of_other_regions() {
    let coordinator = Coordinator::start().await;
    let inside = TestNode::start(&coordinator, "inside", 1).await;
    let token = coordinator.join_token().await;
    let identity = join(coordinator.quic, &token, "outside").await.unwrap();
    let mut elsewhere = hello(2);
    elsewhere.region = "us".into();
    let outside = TestNode::run(coordinator.quic, identity, elsewhere);
    let both = || async {
        coordinator
            .nodes()
            .await
            .iter()
            .filter(|v| v.connected)
            .count()
            == 2
    };
    until("two nodes", both).await;
    let mut publisher = Publisher::register(&coordinator, "acme/hello", 1).await;
    let v1 = publisher
        .publish(&coordinator, "[placement]\nregions = [\"eu\"]")
        .await
        .version;
    let rollout = publisher.roll_out(&coordinator, v1, &[100], 0).await;
    let ended = |view: &RolloutView| view.ended_ms.is_some();
    let view = coordinator.rollout_when(rollout.id, ended).await;
    assert_eq!(view.state, RolloutState::Completed);
    assert_eq!(view.waves.len(), 1);
    assert_eq!(
        view.waves[0].nodes,
        std::slice::from_ref(&inside.identity.name)
    );
    assert_eq!((inside.routed(), outside.routed()), (Some(v1), None));
    assert!(
        outside
            .behaviour
            .lock()
            .unwrap()
            .desired
            .functions
            .is_empty()
    );
}

#[tokio::test]
async fn a_node_that_is_away_is_skipped_and_gets_the_version_when_it_is_back() {
    let mut world = world().await;
    let away = world.nodes.remove(2);
    away.kill();
    let gone = || async { !world.coordinator.nodes().await[2].connected };
    until("the end of a link", gone).await;
    let rollout = world.roll_out(&[50, 100], 0).await;
    let view = world.ended(rollout.id, RolloutState::Completed).await;
    assert_eq!(
        view.waves
            .iter()
            .map(|wave| wave.nodes.len())
            .sum::<usize>(),
        3
    );
    world.all_on(Some(world.v2)).await;
    let back = TestNode::run(world.coordinator.quic, away.identity.clone(), hello(2));
    until("the version on the node", || async {
        back.routed() == Some(world.v2)
    })
    .await;
}

#[tokio::test]
async fn a_coordinator_killed_in_mid_rollout_goes_on_where_it_was() {
    let mut world = world().await;
    // The second wave cannot get ready before the coordinator is killed.
    for node in &world.nodes[1..] {
        node.behaviour.lock().unwrap().stuck.insert(world.v2);
    }
    let rollout = world.roll_out(&[34, 100], 0).await;
    let second = |view: &RolloutView| World::states(view) == ["passed", "moving"];
    world.coordinator.rollout_when(rollout.id, second).await;
    let told = |node: &TestNode| {
        let behaviour = node.behaviour.lock().unwrap();
        let functions = &behaviour.desired.functions;
        functions.first().map(|function| function.version.id()) == Some(world.v2)
    };
    until("the second wave's orders", || async {
        world.nodes.iter().all(told)
    })
    .await;
    let generation = world.nodes[0]
        .behaviour
        .lock()
        .unwrap()
        .generations
        .last()
        .copied();

    world.coordinator.restart().await;
    let view = world.coordinator.rollout(rollout.id).await;
    assert_eq!(view.state, RolloutState::Running);
    assert_eq!(World::states(&view), ["passed", "moving"]);
    for node in &world.nodes {
        node.behaviour.lock().unwrap().stuck.clear();
        assert_eq!(
            node.behaviour.lock().unwrap().generations.last().copied(),
            generation
        );
    }
    // The nodes come back, are told the same again, and are ready now.
    world.ended(rollout.id, RolloutState::Completed).await;
    world.all_on(Some(world.v2)).await;
    for node in &world.nodes {
        let behaviour = node.behaviour.lock().unwrap();
        assert_eq!(
            behaviour.routed,
            [world.v1, world.v2],
            "no node went back and forth"
        );
        assert!(
            behaviour.generations.is_sorted(),
            "{:?}",
            behaviour.generations
        );
        assert!(
            behaviour.generations.last().copied() > generation,
            "it still rises"
        );
    }
}

#[tokio::test]
async fn a_coordinator_killed_while_rolling_back_still_brings_everybody_back() {
    let mut world = world().await;
    let rollout = world.roll_out(&[34, 100], 60_000).await;
    let baking = |view: &RolloutView| World::states(view).first() == Some(&"baking");
    world.coordinator.rollout_when(rollout.id, baking).await;
    let abort = format!("/v1/rollouts/{}/abort", rollout.id);
    let answer = world.coordinator.client.post(&abort, &json!({})).await;
    // Killed as soon as the intention is acknowledged.
    world.coordinator.kill();
    assert_eq!(
        answer.expect::<RolloutView>(200).state,
        RolloutState::RollingBack
    );
    world.coordinator.restart().await;
    world.ended(rollout.id, RolloutState::RolledBack).await;
    world.all_on(Some(world.v1)).await;
}

#[tokio::test]
async fn killed_again_and_again_a_rollout_still_ends_with_one_version_everywhere() {
    let mut world = world().await;
    let rollout = world.roll_out(&[34, 67, 100], 150).await;
    for round in 0..5 {
        tokio::time::sleep(Duration::from_millis(60 + 40 * round)).await;
        world.coordinator.restart().await;
    }
    world.ended(rollout.id, RolloutState::Completed).await;
    world.all_on(Some(world.v2)).await;
}
