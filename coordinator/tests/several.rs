//! Several coordinators on one PostgreSQL database.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use common::node::{TestNode, hello, join};
use common::{Coordinator, Publisher, until};
use holm_coordinator::{Config, DatabaseUrl, StartError, export};
use holm_model::api::{RolloutState, RolloutView};
use holm_model::ids::VersionId;
use holm_model::usage::Outcome;
use serde_json::json;
use sqlx::PgPool;

/// Two coordinators, of which the first executes rollouts, and nodes that dial either: the first is
/// linked to the first, the others to the second. All are on version 1.
struct World {
    first: Coordinator,
    second: Coordinator,
    nodes: Vec<TestNode>,
    publisher: Publisher,
    v1: VersionId,
    v2: VersionId,
}

async fn world() -> World {
    let first = Coordinator::start_on_postgres().await;
    let second = first.start_beside().await;
    let mut nodes = Vec::new();
    for index in 0..3_u32 {
        let token = second.join_token().await;
        let name = format!("n{index}");
        let identity = join(first.quic, &token, &name).await.unwrap();
        let dials = match index {
            0 => vec![first.quic, second.quic],
            _ => vec![second.quic, first.quic],
        };
        nodes.push(TestNode::run_with(dials, identity, hello(index)));
    }
    let mut publisher = Publisher::register(&first, "acme/hello", 1).await;
    let v1 = publisher.publish(&first, "").await.version;
    let v2 = publisher.publish(&first, "").await.version;
    let world = World {
        first,
        second,
        nodes,
        publisher,
        v1,
        v2,
    };
    for coordinator in [&world.first, &world.second] {
        let all = || async { coordinator.connected().await == 3 };
        until("every node at every coordinator", all).await;
    }
    let rollout = world.publisher.roll_out(&world.second, v1, &[100], 0).await;
    let view = ended(&world.first, rollout.id).await;
    assert_eq!(view.state, RolloutState::Completed, "{}", view.reason);
    world.all_on(v1).await;
    world
}

impl World {
    async fn all_on(&self, version: VersionId) {
        let all = || async { self.nodes.iter().all(|node| node.routed() == Some(version)) };
        until("one version on all nodes", all).await;
    }

    /// A rollout of version 2 in two waves, started at the second coordinator, whose first wave is
    /// being watched.
    async fn half_way(&self, bake_ms: u64) -> RolloutView {
        let rollout = self
            .publisher
            .roll_out(&self.second, self.v2, &[34, 100], bake_ms)
            .await;
        let baking = |view: &RolloutView| {
            view.waves
                .first()
                .is_some_and(|wave| wave.state == "baking")
        };
        self.second.rollout_when(rollout.id, baking).await
    }

    async fn database(&self) -> PgPool {
        PgPool::connect(self.first.database.as_ref().unwrap())
            .await
            .unwrap()
    }
}

async fn ended(coordinator: &Coordinator, id: u64) -> RolloutView {
    coordinator
        .rollout_when(id, |view| view.ended_ms.is_some())
        .await
}

#[tokio::test]
async fn a_rollout_whose_coordinator_is_killed_is_completed_by_another_within_seconds() {
    let mut world = world().await;
    let rollout = world.half_way(1500).await;
    assert_eq!(world.nodes[0].routed(), Some(world.v2));
    world.first.kill();
    let killed = Instant::now();
    let view = ended(&world.second, rollout.id).await;
    assert_eq!(view.state, RolloutState::Completed, "{}", view.reason);
    let took = killed.elapsed();
    println!("completed {took:?} after the coordinator was killed");
    assert!(took < Duration::from_secs(15), "{took:?}");
    world.all_on(world.v2).await;
    for node in &world.nodes {
        let generations = &node.behaviour.lock().unwrap().generations;
        assert!(generations.is_sorted(), "{generations:?}");
    }
}

#[tokio::test]
async fn a_coordinator_that_ends_in_order_hands_rollouts_over_at_once() {
    let mut world = world().await;
    let rollout = world.half_way(20_000).await;
    world.first.running.take().unwrap().shutdown().await;
    let database = world.database().await;
    let alive = "SELECT COUNT(*) FROM coordinators";
    let (alive,): (i64,) = sqlx::query_as(alive).fetch_one(&database).await.unwrap();
    assert_eq!(alive, 1, "nobody has to notice that it has gone");
    let led = || async {
        let held = "SELECT COUNT(*) FROM leases JOIN coordinators ON holder = id";
        let (held,): (i64,) = sqlx::query_as(held).fetch_one(&database).await.unwrap();
        held == 1
    };
    until("another holder of the lease", led).await;
    let path = format!("/v1/rollouts/{}/abort", rollout.id);
    let answer = world.second.client.post(&path, &json!({})).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let view = ended(&world.second, rollout.id).await;
    assert_eq!(view.state, RolloutState::RolledBack);
    world.all_on(world.v1).await;
}

#[tokio::test]
async fn any_coordinator_takes_what_people_decide_and_what_nodes_report() {
    let world = world().await;
    // A crash that a node tells the coordinator which executes nothing stops the rollout.
    let rollout = world
        .publisher
        .roll_out(&world.second, world.v2, &[100], 20_000)
        .await;
    // Reports from before that one knows what the other watches do not count.
    let told = || async {
        let function = &world.publisher.function;
        world.nodes[1].report(function, world.v2, &[(Outcome::Crash, 1)]);
        tokio::time::sleep(Duration::from_millis(100)).await;
        let any = |_: &RolloutView| true;
        let view = world.first.rollout_when(rollout.id, any).await;
        view.ended_ms.is_some()
    };
    until("an ended rollout", told).await;
    let view = ended(&world.first, rollout.id).await;
    assert_eq!(view.state, RolloutState::RolledBack, "{}", view.reason);
    assert!(view.reason.contains("crashed"), "{}", view.reason);
    world.all_on(world.v1).await;

    // Both know of the drained node, and it does too, though it was said to the other coordinator.
    let answer = world
        .second
        .client
        .post("/v1/nodes/n0/drain", &json!({}))
        .await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let told = || async {
        world.nodes[0]
            .behaviour
            .lock()
            .unwrap()
            .desired
            .draining
            .drained
    };
    until("a node that knows that it is drained", told).await;
    let known = || async { world.first.nodes().await.iter().any(|node| node.drained) };
    until("a coordinator that knows it", known).await;
}

#[tokio::test]
async fn a_node_that_dials_another_coordinator_is_let_go_by_the_first() {
    let world = world().await;
    let of = |nodes: Vec<holm_model::api::NodeView>| {
        let node = nodes.into_iter().find(|node| node.name.as_str() == "n0");
        node.unwrap().coordinator
    };
    assert_eq!(
        of(world.first.nodes().await),
        None,
        "linked to the one that was asked"
    );
    assert!(of(world.second.nodes().await).is_some());
    let identity = world.nodes[0].identity.clone();
    world.nodes[0].kill();
    let _moved = TestNode::run(world.second.quic, identity, hello(0));
    let moved = || async { of(world.second.nodes().await).is_none() };
    until("a node at the second coordinator", moved).await;
    let let_go = || async { of(world.first.nodes().await).is_some() };
    until("a first coordinator that knows", let_go).await;
}

#[tokio::test]
async fn a_coordinator_that_was_taken_for_dead_executes_nothing_until_it_is_its_turn() {
    let world = world().await;
    let rollout = world.half_way(2000).await;
    let database = world.database().await;
    let holder = "SELECT holder, token FROM leases";
    let (dead, before): (String, i64) = sqlx::query_as(holder).fetch_one(&database).await.unwrap();
    let bury = "DELETE FROM coordinators WHERE id = $1";
    sqlx::query(bury)
        .bind(&dead)
        .execute(&database)
        .await
        .unwrap();
    let view = ended(&world.first, rollout.id).await;
    assert_eq!(view.state, RolloutState::Completed, "{}", view.reason);
    world.all_on(world.v2).await;
    let (_, after): (String, i64) = sqlx::query_as(holder).fetch_one(&database).await.unwrap();
    assert_eq!(after, before + 1, "the lease has changed hands once");
    let back = || async {
        let alive = "SELECT COUNT(*) FROM coordinators";
        let (alive,): (i64,) = sqlx::query_as(alive).fetch_one(&database).await.unwrap();
        alive == 2
    };
    until("a coordinator that has begun again", back).await;
}

#[tokio::test]
async fn a_coordinator_without_the_fleets_authority_is_turned_away() {
    let first = Coordinator::start_on_postgres().await;
    let database = || first.database.clone();
    let empty = Coordinator::start_in(tempfile::tempdir().unwrap(), database()).await;
    let error = empty.err().unwrap();
    assert!(matches!(error, StartError::NoAuthority(_)), "{error}");
    let other = Coordinator::start().await;
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("state")).unwrap();
    for file in ["state/ca.key", "state/ca.der"] {
        std::fs::copy(other.dir.path().join(file), dir.path().join(file)).unwrap();
    }
    let foreign = Coordinator::start_in(dir, database()).await;
    let error = foreign.err().unwrap();
    assert!(matches!(error, StartError::OtherAuthority(_)), "{error}");
}

#[tokio::test]
async fn an_export_sees_coordinators_at_work_on_the_database() {
    let mut coordinator = Coordinator::start_on_postgres().await;
    let dir = tempfile::tempdir().unwrap();
    let any = "127.0.0.1:0".parse().unwrap();
    let mut config = Config::new(dir.path().join("state"), any, any);
    config.database = coordinator.database.clone().map(DatabaseUrl::from);
    let mut out = Vec::new();
    let refused = export(&config, false, &mut out).await.unwrap_err();
    let address = coordinator.client.address.to_string();
    assert!(refused.to_string().contains(&address), "{refused}");
    assert!(out.is_empty(), "nothing was written");
    let rows = export(&config, true, &mut out).await.unwrap();
    assert!(rows > 0 && !out.is_empty());
    coordinator.running.take().unwrap().shutdown().await;
    assert!(export(&config, false, &mut Vec::new()).await.unwrap() > rows);
}
