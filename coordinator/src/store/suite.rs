//! What the store promises, asked of SQLite and of PostgreSQL. The ledger's promises are asked
//! beside `ledger.rs`, in the same way.

use std::collections::{BTreeMap, BTreeSet};

use ed25519_dalek::SigningKey;
use holm_model::api::{NewAssignment, NewPrices};
use holm_model::artifact::{PublisherKey, SignedVersion, Statement};
use holm_model::control::{Hello, Observed};
use holm_model::ids::{Digest, FunctionName, Name, VersionId};
use holm_model::manifest::Manifest;
use holm_model::price::Prices;
use holm_model::usage::UsageRecord;

use super::testing::{TestDatabase, on_both_databases};
use super::{
    Adoption, Basis, JoinOutcome, LinkChange, NewVersion, PublishOutcome, RolloutRow, Store,
    Unstored, UsageFilter, UsageGroup,
};
use crate::ledger::testing::{self, TestFleet};
use crate::limits::{LOOKUP_CHUNK_ROWS, MAX_PUBLISHER_KEYS};
use crate::rollout::{Policy, Rollout, Tally};

on_both_databases! {
    a_tenant_keeps_each_key_once_and_only_so_many,
    a_version_is_stored_once_and_only_above_the_newest,
    of_versions_published_at_once_with_one_counter_one_is_stored,
    any_number_of_labels_can_be_looked_up,
    names_are_in_the_order_of_their_bytes,
    of_machines_that_join_at_once_with_one_token_one_is_let_in,
    a_join_token_is_refused_with_its_reason,
    an_api_token_is_replaced_by_the_next_of_its_label,
    what_a_node_said_and_when_is_kept,
    a_drained_node_is_stored_with_the_generation_that_says_so,
    a_function_has_one_open_rollout,
    a_step_is_stored_with_all_that_follows_from_it,
    what_rests_on_an_old_revision_is_not_stored,
    a_step_of_a_holder_that_has_lost_the_lease_is_not_stored,
    a_node_is_linked_to_the_coordinator_that_it_dialled_last,
    outcomes_that_are_left_are_taken_once,
    a_fleet_has_one_certificate_authority,
    a_reader_of_pages_misses_no_row_that_is_entered_meanwhile,
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn function(text: &str) -> FunctionName {
    text.parse().unwrap()
}

fn key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

fn public(key: &SigningKey) -> PublisherKey {
    PublisherKey(key.verifying_key().to_bytes())
}

fn statement(of: &str, counter: u64, label: &str) -> Statement {
    let function = function(of);
    let manifest = format!("schema = 1\n[function]\nname = \"{}\"", function.function);
    Statement {
        function,
        counter,
        artifact: Digest([counter as u8; 32]),
        artifact_bytes: 1,
        manifest: Manifest::from_toml(&manifest).unwrap(),
        label: label.to_owned(),
        message: "ünïcödé".to_owned(),
        created_ms: 1_700_000_000_000,
    }
}

async fn publish(store: &Store, statement: &Statement) -> (VersionId, PublishOutcome) {
    let signed = SignedVersion::sign(statement, &key(1));
    let id = signed.id();
    let new = NewVersion {
        id,
        signed: &signed,
        statement,
    };
    (id, store.publish(new, 5).await.unwrap())
}

/// A tenant with a function that has versions of these counters.
async fn with_versions<const N: usize>(store: &Store, counters: [u64; N]) -> [VersionId; N] {
    let keys = [public(&key(1))];
    store.add_to_tenant(&name("acme"), &keys, 1).await.unwrap();
    let mut ids = [Digest([0; 32]); N];
    for (id, counter) in ids.iter_mut().zip(counters) {
        let (published, outcome) = publish(store, &statement("acme/hello", counter, "v")).await;
        assert_eq!(outcome, PublishOutcome::Stored);
        *id = published;
    }
    ids
}

async fn a_tenant_keeps_each_key_once_and_only_so_many(database: TestDatabase) {
    let store = &database.store;
    let acme = name("acme");
    assert_eq!(store.tenant_keys(&acme).await.unwrap(), None);
    let (one, other) = (public(&key(1)), public(&key(2)));
    store.add_to_tenant(&acme, &[one], 1).await.unwrap();
    let keys = store.add_to_tenant(&acme, &[other, one], 2).await.unwrap();
    assert_eq!(
        keys,
        Some(vec![one, other]),
        "in the order in which they came"
    );
    let many: Vec<_> = (0..MAX_PUBLISHER_KEYS as u8)
        .map(|n| public(&key(n)))
        .collect();
    assert!(
        store
            .add_to_tenant(&acme, &many, 3)
            .await
            .unwrap()
            .is_some()
    );
    let one_more = [public(&key(200))];
    assert_eq!(
        store.add_to_tenant(&acme, &one_more, 4).await.unwrap(),
        None
    );
    let kept = store.tenant_keys(&acme).await.unwrap().unwrap();
    assert_eq!(
        kept.len(),
        MAX_PUBLISHER_KEYS,
        "what is refused is not stored"
    );
}

async fn a_version_is_stored_once_and_only_above_the_newest(database: TestDatabase) {
    let store = &database.store;
    let [first] = with_versions(store, [3]).await;
    let again = publish(store, &statement("acme/hello", 3, "v")).await;
    assert_eq!(again, (first, PublishOutcome::Known));
    let (_, lower) = publish(store, &statement("acme/hello", 3, "other")).await;
    assert_eq!(lower, PublishOutcome::CounterTooLow { highest: 3 });
    let (second, _) = publish(store, &statement("acme/hello", 4, "v4")).await;

    let listed = store.versions_of(&function("acme/hello")).await.unwrap();
    let listed: Vec<_> = listed
        .iter()
        .map(|view| (view.version, view.counter))
        .collect();
    assert_eq!(listed, [(second, 4), (first, 3)]);
    let read = store.version(first).await.unwrap().unwrap();
    assert_eq!(read.statement, statement("acme/hello", 3, "v"));
    assert_eq!(
        read.signed.id(),
        first,
        "the signed bytes are kept as they are"
    );
    let view = store.version_view(second).await.unwrap().unwrap();
    assert_eq!(
        (view.label.as_str(), view.message.as_str()),
        ("v4", "ünïcödé")
    );
    assert!(store.names_artifact(Digest([3; 32])).await.unwrap());
    assert!(!store.names_artifact(Digest([9; 32])).await.unwrap());
    assert!(store.version(Digest([9; 32])).await.unwrap().is_none());
}

async fn of_versions_published_at_once_with_one_counter_one_is_stored(database: TestDatabase) {
    let store = &database.store;
    with_versions(store, [1]).await;
    let labels = ["a", "b", "c", "d"];
    let mut tasks = tokio::task::JoinSet::new();
    for label in labels {
        let store = store.clone();
        tasks.spawn(async move { publish(&store, &statement("acme/hello", 2, label)).await.1 });
    }
    let outcomes = tasks.join_all().await;
    let stored = |outcome: &&PublishOutcome| **outcome == PublishOutcome::Stored;
    assert_eq!(outcomes.iter().filter(stored).count(), 1, "{outcomes:?}");
    let low = PublishOutcome::CounterTooLow { highest: 2 };
    assert_eq!(
        outcomes.iter().filter(|outcome| **outcome == low).count(),
        3
    );
}

async fn any_number_of_labels_can_be_looked_up(database: TestDatabase) {
    let store = &database.store;
    let [one, other] = with_versions(store, [1, 2]).await;
    let unknown = (0..2 * LOOKUP_CHUNK_ROWS as u32).map(|n| Digest::of(&n.to_le_bytes()));
    let ids: Vec<_> = [one].into_iter().chain(unknown).chain([other]).collect();
    let labels = store.labels(&ids).await.unwrap();
    assert_eq!(
        labels,
        BTreeMap::from([(one, "v".into()), (other, "v".into())])
    );
    assert_eq!(store.labels(&[]).await.unwrap(), BTreeMap::new());
}

async fn names_are_in_the_order_of_their_bytes(database: TestDatabase) {
    let store = &database.store;
    with_versions(store, []).await;
    // In the languages that a database may be set up for, the hyphen does not count.
    for of in ["acme/ab", "acme/a-c", "acme/a", "acme/a1"] {
        publish(store, &statement(of, 1, "v")).await;
    }
    let functions = store.functions().await.unwrap();
    let names: Vec<_> = functions.iter().map(|row| row.name.to_string()).collect();
    assert_eq!(names, ["acme/a", "acme/a-c", "acme/a1", "acme/ab"]);
}

async fn of_machines_that_join_at_once_with_one_token_one_is_let_in(database: TestDatabase) {
    let store = &database.store;
    let token = Digest([1; 32]);
    store.add_join_token(token, None, 1, 100).await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..4 {
        let store = store.clone();
        let node = name(&format!("n{number}"));
        tasks.spawn(async move { store.join(token, &node, Digest([2; 32]), 50).await.unwrap() });
    }
    let outcomes = tasks.join_all().await;
    let joined = |outcome: &&JoinOutcome| **outcome == JoinOutcome::Joined;
    assert_eq!(outcomes.iter().filter(joined).count(), 1, "{outcomes:?}");
    let used = |outcome: &&JoinOutcome| matches!(outcome, JoinOutcome::UsedToken { .. });
    assert_eq!(outcomes.iter().filter(used).count(), 3, "{outcomes:?}");
}

async fn a_join_token_is_refused_with_its_reason(database: TestDatabase) {
    let store = &database.store;
    let (plain, named) = (Digest([1; 32]), Digest([2; 32]));
    let (edge, other) = (name("edge"), name("other"));
    store.add_join_token(plain, None, 1, 100).await.unwrap();
    store
        .add_join_token(named, Some(&edge), 1, 100)
        .await
        .unwrap();
    let join = async |token, node: &Name, now| {
        let certificate = Digest([now as u8; 32]);
        store.join(token, node, certificate, now).await.unwrap()
    };
    assert_eq!(
        join(Digest([9; 32]), &edge, 50).await,
        JoinOutcome::UnknownToken
    );
    assert_eq!(join(plain, &edge, 100).await, JoinOutcome::ExpiredToken);
    let prescribed = edge.clone();
    assert_eq!(
        join(named, &other, 50).await,
        JoinOutcome::OtherName { prescribed }
    );
    assert_eq!(join(plain, &edge, 50).await, JoinOutcome::Joined);
    store.save_hello(&edge, &hello(), 60).await.unwrap();
    // It has lived: only who was given the name may have it again.
    let second = Digest([3; 32]);
    store.add_join_token(second, None, 1, 100).await.unwrap();
    assert_eq!(join(second, &edge, 70).await, JoinOutcome::NameTaken);
    assert_eq!(join(named, &edge, 80).await, JoinOutcome::Joined);
    let certificate = store.certificate_of(&edge).await.unwrap();
    assert_eq!(certificate, Some(Digest([80; 32])));
    assert_eq!(store.certificate_of(&other).await.unwrap(), None);
}

async fn an_api_token_is_replaced_by_the_next_of_its_label(database: TestDatabase) {
    let store = &database.store;
    let (old, new) = (Digest([1; 32]), Digest([2; 32]));
    store.set_api_token("admin", old, 1).await.unwrap();
    store.set_api_token("ci", Digest([3; 32]), 1).await.unwrap();
    assert!(store.knows_api_token(old).await.unwrap());
    store.set_api_token("admin", new, 2).await.unwrap();
    assert!(!store.knows_api_token(old).await.unwrap());
    assert!(store.knows_api_token(new).await.unwrap());
    assert!(store.knows_api_token(Digest([3; 32])).await.unwrap());
}

fn hello() -> Hello {
    Hello {
        coordinates: "50.11,8.68".parse().unwrap(),
        region: "eu".into(),
        ingress_url: "http://127.0.0.1:8080".into(),
        boot_epoch: 7,
        kvm: "pvm".into(),
        software: "0.1.0".into(),
    }
}

async fn with_node(store: &Store, node: &Name) {
    let token = Digest::of(node.as_str().as_bytes());
    store.add_join_token(token, None, 1, 100).await.unwrap();
    let joined = store.join(token, node, Digest([1; 32]), 2).await.unwrap();
    assert_eq!(joined, JoinOutcome::Joined);
}

async fn what_a_node_said_and_when_is_kept(database: TestDatabase) {
    let store = &database.store;
    let edge = name("edge");
    with_node(store, &edge).await;
    assert!(
        store.nodes().await.unwrap().is_empty(),
        "it was never there"
    );
    store.save_hello(&edge, &hello(), 10).await.unwrap();
    store
        .save_last_seen(&[(edge.clone(), 20), (name("nobody"), 30)])
        .await
        .unwrap();
    let nodes = store.nodes().await.unwrap();
    assert_eq!(nodes.len(), 1);
    let row = &nodes[0];
    assert_eq!(
        (&row.name, &row.hello, row.last_seen_ms),
        (&edge, &hello(), 20)
    );
    assert!(!row.drained);
}

async fn a_drained_node_is_stored_with_the_generation_that_says_so(database: TestDatabase) {
    let store = &database.store;
    let edge = name("edge");
    with_node(store, &edge).await;
    let unknown = store.set_drained(at(0), &edge, true, 5).await.unwrap();
    assert!(!unknown, "it was never there");
    let nothing = store.decided().await.unwrap();
    assert_eq!((nothing.revision, nothing.generation), (0, 0));
    store.save_hello(&edge, &hello(), 10).await.unwrap();
    assert!(store.set_drained(at(0), &edge, true, 6).await.unwrap());
    let decided = store.decided().await.unwrap();
    assert!(decided.nodes[0].drained);
    assert_eq!((decided.revision, decided.generation), (1, 6));
}

/// What somebody rests on who takes no step.
fn at(revision: u64) -> Basis {
    Basis {
        revision,
        lease: None,
    }
}

fn rollout(version: VersionId, previous: Option<VersionId>) -> Rollout {
    let policy = Policy {
        waves_percent: vec![100],
        bake_ms: 0,
        max_error_ppm: 0,
        min_requests: 0,
        skips_gates: false,
        prepare_timeout_ms: 1,
        absent_grace_ms: 1,
    };
    Rollout::begin(version, previous, policy, 1)
}

async fn a_function_has_one_open_rollout(database: TestDatabase) {
    let store = &database.store;
    let hello = function("acme/hello");
    let [one, two] = with_versions(store, [1, 2]).await;
    let first = rollout(one, None);
    let id = store.begin_rollout(at(0), &hello, &first, false).await;
    let id = id.unwrap();
    let second = rollout(two, None);
    let second = store.begin_rollout(at(1), &hello, &second, false).await;
    assert!(matches!(second, Err(Unstored::Store(_))), "{second:?}");
    let decided = store.decided().await.unwrap();
    assert_eq!(decided.revision, 1, "what fails counts for nothing");
    let open = &decided.open;
    assert_eq!(open.len(), 1);
    assert_eq!(
        (open[0].id, &open[0].function, &open[0].rollout),
        (id, &hello, &first)
    );
    let keys = BTreeMap::from([(name("acme"), vec![public(&key(1))])]);
    assert_eq!(decided.keys, keys);
}

async fn a_step_is_stored_with_all_that_follows_from_it(database: TestDatabase) {
    let store = &database.store;
    let hello = function("acme/hello");
    let [one, two] = with_versions(store, [1, 2]).await;
    let (mut last, mut revision) = (None, 0);
    for (version, generation) in [(one, 7), (two, 8)] {
        let begun = rollout(version, last);
        let id = store
            .begin_rollout(at(revision), &hello, &begun, false)
            .await;
        let mut row = RolloutRow {
            id: id.unwrap(),
            function: hello.clone(),
            rollout: begun,
        };
        row.rollout.state = holm_model::api::RolloutState::Completed;
        row.rollout.ended_ms = Some(9);
        let adoption = Adoption {
            current: version,
            fallback: last,
        };
        store
            .save_step(at(revision + 1), &row, Some(generation), Some(adoption))
            .await
            .unwrap();
        let stored = store.rollout(row.id).await.unwrap().unwrap();
        assert_eq!(stored.rollout, row.rollout);
        (last, revision) = (Some(version), revision + 2);
    }
    let decided = store.decided().await.unwrap();
    assert!(decided.open.is_empty());
    assert_eq!((decided.generation, decided.revision), (8, revision));
    let row = store.function(&hello).await.unwrap().unwrap();
    assert_eq!((row.current, row.fallback), (Some(two), Some(one)));
    let latest = store.latest_rollout(&hello).await.unwrap().unwrap();
    assert_eq!(latest.rollout.version, two);
    assert_eq!(store.version_before(&hello, two).await.unwrap(), Some(one));
    assert_eq!(store.version_before(&hello, one).await.unwrap(), None);
}

async fn what_rests_on_an_old_revision_is_not_stored(database: TestDatabase) {
    let store = &database.store;
    store.set_generation(at(0), 5).await.unwrap();
    for old in [0, 2] {
        let outdated = store.set_generation(at(old), 6).await;
        assert!(matches!(outdated, Err(Unstored::Outdated)), "{outdated:?}");
    }
    let decided = store.decided().await.unwrap();
    assert_eq!((decided.generation, decided.revision), (5, 1));
    // Of several that decide at once on the same, one is stored.
    let mut tasks = tokio::task::JoinSet::new();
    for generation in 10..14 {
        let store = store.clone();
        tasks.spawn(async move { store.set_generation(at(1), generation).await.is_ok() });
    }
    let stored = tasks.join_all().await;
    assert_eq!(stored.iter().filter(|stored| **stored).count(), 1);
}

async fn a_step_of_a_holder_that_has_lost_the_lease_is_not_stored(database: TestDatabase) {
    let store = &database.store;
    let hello = function("acme/hello");
    let [one] = with_versions(store, [1]).await;
    store
        .register_coordinator("a", "http://a", 1)
        .await
        .unwrap();
    store
        .register_coordinator("b", "http://b", 2)
        .await
        .unwrap();
    let first = store.take_lease("a").await.unwrap().unwrap();
    assert_eq!(
        store.take_lease("b").await.unwrap(),
        None,
        "its holder lives"
    );
    let begun = rollout(one, None);
    let id = store.begin_rollout(at(0), &hello, &begun, false).await;
    let row = RolloutRow {
        id: id.unwrap(),
        function: hello.clone(),
        rollout: begun,
    };
    let step = async |revision, lease| {
        let basis = Basis {
            revision,
            lease: Some(lease),
        };
        store.save_step(basis, &row, None, None).await
    };
    step(1, first).await.unwrap();

    assert!(store.beat("a").await.unwrap());
    assert!(!store.bury("a", 0).await.unwrap(), "it has lived since");
    assert!(store.bury("a", 1).await.unwrap());
    assert!(!store.beat("a").await.unwrap(), "it is to know");
    let second = store.take_lease("b").await.unwrap().unwrap();
    assert!(second > first);
    let late = step(2, first).await;
    assert!(matches!(late, Err(Unstored::LeaseLost)), "{late:?}");
    step(2, second).await.unwrap();
    let (alive, holder) = store.coordinators().await.unwrap();
    let alive: Vec<_> = alive.iter().map(|row| row.id.as_str()).collect();
    assert_eq!((alive, holder.as_deref()), (vec!["b"], Some("b")));
}

fn link(node: &str, session: u64, opened: bool, up: bool) -> LinkChange {
    LinkChange {
        node: name(node),
        session,
        opened,
        up,
        stopping: false,
        observed: up.then(Observed::default),
    }
}

async fn a_node_is_linked_to_the_coordinator_that_it_dialled_last(database: TestDatabase) {
    let store = &database.store;
    let save = async |id, change| store.save_links(id, &[change]).await.unwrap();
    assert!(save("a", link("n", 1, true, true)).await.is_empty());
    assert!(save("b", link("n", 7, true, true)).await.is_empty());
    let lost = save("a", link("n", 1, false, false)).await;
    assert_eq!(
        lost,
        [name("n")],
        "the end of the old link says nothing of the new one"
    );
    let seen = store.links_since("a", 0).await.unwrap();
    assert_eq!(seen.len(), 1);
    assert_eq!((seen[0].coordinator.as_str(), seen[0].up), ("b", true));
    assert_eq!(seen[0].observed, Some(Observed::default()));
    let newest = seen[0].change;
    assert!(store.links_since("a", newest).await.unwrap().is_empty());
    assert!(
        store.links_since("b", 0).await.unwrap().is_empty(),
        "its own"
    );

    // With its coordinator the link goes down, and everybody hears of it.
    store
        .register_coordinator("b", "http://b", 1)
        .await
        .unwrap();
    assert!(store.bury("b", 0).await.unwrap());
    let seen = store.links_since("a", newest).await.unwrap();
    assert_eq!((seen.len(), seen[0].up), (1, false));
}

async fn outcomes_that_are_left_are_taken_once(database: TestDatabase) {
    let store = &database.store;
    let key = (function("acme/hello"), Digest([7; 32]));
    let tally = |invocations, errors| Tally {
        invocations,
        errors,
        crashes: 1,
    };
    let left = |tally| BTreeMap::from([(key.clone(), tally)]);
    store.leave_tallies(&left(tally(10, 1))).await.unwrap();
    store.leave_tallies(&left(tally(5, 2))).await.unwrap();
    let mut both = tally(10, 1);
    both.add(tally(5, 2));
    assert_eq!(store.take_tallies().await.unwrap(), [(key.clone(), both)]);
    assert!(store.take_tallies().await.unwrap().is_empty());
}

async fn a_fleet_has_one_certificate_authority(database: TestDatabase) {
    let store = &database.store;
    let (first, other) = (Digest([1; 32]), Digest([2; 32]));
    assert_eq!(store.authority(None).await.unwrap(), None);
    assert_eq!(store.authority(Some(first)).await.unwrap(), Some(first));
    assert_eq!(store.authority(Some(other)).await.unwrap(), Some(first));
    assert_eq!(store.authority(None).await.unwrap(), Some(first));
}

fn record(node: u64, sequence: u64) -> UsageRecord {
    let mut record = testing::record(1, sequence);
    record.request.0[..8].copy_from_slice(&node.to_le_bytes());
    record
}

/// Whoever bills reads the ledger page by page and never looks back.
async fn a_reader_of_pages_misses_no_row_that_is_entered_meanwhile(database: TestDatabase) {
    const NODES: u64 = 6;
    const BATCHES: u64 = 20;
    let store = &database.store;
    let fleet = std::sync::Arc::new(TestFleet::new(store));
    let mut writers = tokio::task::JoinSet::new();
    for node in 0..NODES {
        let fleet = fleet.clone();
        writers.spawn(async move {
            let name = name(&format!("n{node}"));
            for batch in 0..BATCHES {
                // Batches of different lengths, so that they overtake each other.
                let length = 1 + node * 7;
                let first = 1 + batch * length;
                let records: Vec<_> = (first..first + length).map(|n| record(node, n)).collect();
                let stored = fleet.add(&name, &records).await.unwrap();
                assert_eq!(stored, (length, 0));
            }
        });
    }
    let (mut seen, mut after, mut over) = (BTreeSet::new(), 0, false);
    loop {
        let page = store.usage_records(None, after, 25).await.unwrap();
        for row in &page.records {
            assert!(row.row > after && seen.insert((row.node.clone(), row.record.sequence)));
            after = row.row;
        }
        if page.records.is_empty() && over {
            break;
        }
        over = writers.is_empty();
        while let Some(ended) = writers.try_join_next() {
            ended.unwrap();
        }
        tokio::task::yield_now().await;
    }
    let sums = store
        .usage(&UsageFilter::default(), UsageGroup::Node)
        .await
        .unwrap();
    let entered: u64 = sums.iter().map(|sum| sum.executions).sum();
    assert_eq!(
        entered,
        (0..NODES).map(|node| BATCHES * (1 + node * 7)).sum::<u64>()
    );
    assert_eq!(seen.len() as u64, entered);
}

/// At least one row in every table.
pub(super) async fn fill(store: &Store) {
    let hello = function("acme/hello");
    let [one, two] = with_versions(store, [1, 2]).await;
    with_node(store, &name("edge")).await;
    store
        .save_hello(&name("edge"), &self::hello(), 3)
        .await
        .unwrap();
    store
        .set_api_token("admin", Digest([4; 32]), 5)
        .await
        .unwrap();
    store.authority(Some(Digest([6; 32]))).await.unwrap();
    let mut row = RolloutRow {
        id: 0,
        function: hello.clone(),
        rollout: rollout(one, Some(two)),
    };
    row.id = store
        .begin_rollout(at(0), &hello, &row.rollout, false)
        .await
        .unwrap();
    let adoption = Some(Adoption {
        current: one,
        fallback: Some(two),
    });
    store
        .save_step(at(1), &row, Some(9), adoption)
        .await
        .unwrap();
    let fleet = TestFleet::new(store);
    let mut edge = fleet.join("edge");
    for first in [1, 701] {
        let records: Vec<_> = (first..first + 700).map(|n| record(1, n)).collect();
        let batch = edge.seal(&records);
        fleet.send(&edge, &batch).await.unwrap();
        fleet.send(&edge, &batch).await.unwrap();
    }
    let prices = NewPrices {
        currency: "EUR".parse().unwrap(),
        prices: Prices::default(),
        from_ms: None,
    };
    store.add_prices(&name("large"), &prices, 7).await.unwrap();
    let plan = NewAssignment {
        plan: name("large"),
        from_ms: None,
    };
    store.assign_plan(&name("acme"), &plan, 7).await.unwrap();
}

pub(super) async fn one_more_row(store: &Store) {
    let fleet = TestFleet::new(store);
    let stored = fleet.add(&name("other"), &[record(2, 1)]).await.unwrap();
    assert_eq!(stored, (1, 0));
}
