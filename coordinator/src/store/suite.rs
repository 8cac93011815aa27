//! What the store promises, asked of SQLite and of PostgreSQL. The ledger's promises are asked
//! beside `ledger.rs`, in the same way.

use std::collections::{BTreeMap, BTreeSet};

use ed25519_dalek::SigningKey;
use holm_model::api::{
    ExportFile, ExportKind, NewAssignment, NewPrices, RolloutRequest, RolloutState, VersionView,
    WhenRunning,
};
use holm_model::artifact::{PublisherKey, SignedVersion, Statement};
use holm_model::chunks::{Chunk, Index};
use holm_model::configuration::Release;
use holm_model::control::{Hello, Observed};
use holm_model::ids::{Digest, FunctionName, Name, VersionId};
use holm_model::manifest::{Manifest, WaveRule};
use holm_model::price::Prices;
use holm_model::token::TokenId;
use holm_model::usage::UsageRecord;

use super::catalogue::names_artifact;
use super::exports::{NewExportRow, Out};
use super::sql::query;
use super::testing::{TestDatabase, on_both_databases};
use super::{
    Adoption, ArtifactOutcome, Basis, Came, Deed, Dropped, JoinOutcome, KeyChange, KeyRow,
    KeysOutcome, LinkChange, NewVersion, NodeCertificate, NodeChange, Pins, PruneWish,
    PublishOutcome, Queued, RecordsFilter, RenewOutcome, RolloutRow, Store, TagOutcome,
    TokenOutcome, TokenRow, Unstored, UsageFilter, UsageGroup,
};
use crate::ledger::testing::{self, TestFleet};
use crate::limits::{LOOKUP_CHUNK_ROWS, MAX_PUBLISHER_KEYS, MAX_TAGS};
use crate::rollout::{Policy, Rollout, Tally};

on_both_databases! {
    a_tenant_keeps_each_key_once_and_only_so_many,
    a_revoked_key_signs_nothing_new_and_does_not_come_back,
    what_an_operator_says_of_a_node_is_stored_with_the_generation_that_says_so,
    a_revoked_node_is_let_in_again_only_when_it_joins_again,
    a_version_is_stored_once_and_only_above_the_newest,
    of_versions_published_at_once_with_one_counter_one_is_stored,
    a_version_whose_artifact_has_gone_since_is_not_stored,
    an_artifact_goes_only_while_no_version_of_it_can_come,
    a_tag_names_one_version_of_its_function,
    versions_go_only_if_nobody_may_need_them,
    any_number_of_labels_can_be_looked_up,
    names_are_in_the_order_of_their_bytes,
    of_machines_that_join_at_once_with_one_token_one_is_let_in,
    a_join_token_is_refused_with_its_reason,
    a_node_is_known_by_its_key_until_another_machine_has_its_name,
    a_node_that_joined_before_keys_were_noted_is_known_by_its_certificate_and_then_by_its_key,
    an_administrators_token_is_replaced_by_the_next_of_its_label_and_can_be_voided,
    a_token_has_its_name_alone_until_it_is_revoked_or_over,
    entries_of_the_audit_log_are_in_one_chain_whoever_adds_them,
    what_is_changed_in_the_audit_log_shows,
    what_a_node_said_and_when_is_kept,
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
        author: "someone".into(),
        created_ms: 1_700_000_000_000,
    }
}

/// An artifact of one chunk, in a pack of its own.
async fn put_artifact(store: &Store, digest: Digest) {
    let chunk = Chunk { digest, bytes: 1 };
    let pack = hex::encode(crate::ca::random::<16>());
    if store.use_artifact(digest, 5).await.unwrap() {
        return;
    }
    store.add_pack(&pack, 1, &[(chunk, 0)], 5).await.unwrap();
    let index = Index::from_chunks(vec![chunk]).unwrap();
    // Others may be doing the same.
    let put = store.add_artifact(digest, &index, 5).await.unwrap();
    assert_ne!(put, ArtifactOutcome::ChunksGone);
}

async fn publish(store: &Store, statement: &Statement) -> (VersionId, PublishOutcome) {
    put_artifact(store, statement.artifact).await;
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
pub(super) async fn with_versions<const N: usize>(
    store: &Store,
    counters: [u64; N],
) -> [VersionId; N] {
    add_key(store, &name("acme"), public(&key(1))).await;
    let mut ids = [Digest([0; 32]); N];
    for (id, counter) in ids.iter_mut().zip(counters) {
        let (published, outcome) = publish(store, &statement("acme/hello", counter, "v")).await;
        assert_eq!(outcome, PublishOutcome::Stored);
        *id = published;
    }
    ids
}

/// A tenant with this key, without a decision.
async fn add_key(store: &Store, tenant: &Name, key: PublisherKey) {
    for sql in [
        query("INSERT INTO tenants (name, created_ms) VALUES (?, 1) ON CONFLICT DO NOTHING").bind(tenant),
        query("INSERT INTO publisher_keys (tenant, key, added_ms) VALUES (?, ?, 1) ON CONFLICT DO NOTHING")
            .bind(tenant)
            .bind(&key.0[..]),
    ] {
        sql.execute(store.writer()).await.unwrap();
    }
}

fn keys(rows: &[KeyRow]) -> Vec<(PublisherKey, Option<u64>)> {
    rows.iter().map(|row| (row.key, row.revoked_ms)).collect()
}

async fn a_tenant_keeps_each_key_once_and_only_so_many(database: TestDatabase) {
    let store = &database.store;
    let acme = name("acme");
    assert_eq!(store.tenant_keys(&acme).await.unwrap(), None);
    let (one, other) = (public(&key(1)), public(&key(2)));
    let add = async |revision, generation, keys: &[PublisherKey]| {
        let add = KeyChange::Add(keys.to_vec());
        let now_ms = generation;
        store
            .change_keys(at(revision), &acme, &add, generation, now_ms)
            .await
            .unwrap()
    };
    add(0, 1, &[one]).await;
    let both = vec![
        KeyRow {
            key: one,
            revoked_ms: None,
        },
        KeyRow {
            key: other,
            revoked_ms: None,
        },
    ];
    let are = |rows: &Vec<KeyRow>, added: &[PublisherKey], changed| KeysOutcome::Are {
        rows: rows.clone(),
        added: added.to_vec(),
        changed,
    };
    assert_eq!(
        add(1, 2, &[other, one]).await,
        are(&both, &[other], true),
        "in the order in which they came"
    );
    // What changes nothing is nothing for nodes to learn.
    assert_eq!(add(2, 3, &[one]).await, are(&both, &[], false));
    let decided = store.decided().await.unwrap();
    assert_eq!((decided.revision, decided.generation), (2, 2));
    let many: Vec<_> = (0..MAX_PUBLISHER_KEYS as u8)
        .map(|n| public(&key(n)))
        .collect();
    assert!(matches!(
        add(2, 3, &many).await,
        KeysOutcome::Are { changed: true, .. }
    ));
    assert_eq!(add(3, 4, &[public(&key(200))]).await, KeysOutcome::TooMany);
    let kept = store.tenant_keys(&acme).await.unwrap().unwrap();
    assert_eq!(
        kept.len(),
        MAX_PUBLISHER_KEYS,
        "what is refused is not stored"
    );
    assert_eq!(store.decided().await.unwrap().generation, 3);
}

async fn a_revoked_key_signs_nothing_new_and_does_not_come_back(database: TestDatabase) {
    let store = &database.store;
    let acme = name("acme");
    let (old, new) = (public(&key(1)), public(&key(2)));
    add_key(store, &acme, old).await;
    add_key(store, &acme, new).await;
    let revoke = async |revision, key, from_ms| {
        let revoke = KeyChange::Revoke { key, from_ms };
        let generation = revision + 1;
        store
            .change_keys(at(revision), &acme, &revoke, generation, 1)
            .await
    };
    // `publish` is at 5.
    revoke(0, old, 100).await.unwrap();
    let (_, early) = publish(store, &statement("acme/hello", 1, "v")).await;
    assert_eq!(early, PublishOutcome::Stored, "it is not so far");
    let rows = revoke(1, old, 5).await.unwrap();
    let KeysOutcome::Are {
        rows,
        changed: true,
        ..
    } = rows
    else {
        panic!("{rows:?}")
    };
    assert_eq!(keys(&rows), [(new, None), (old, Some(5))]);
    assert!(rows[1].holds(4) && !rows[1].holds(5));
    let (_, late) = publish(store, &statement("acme/hello", 2, "v")).await;
    assert_eq!(late, PublishOutcome::KeyRevoked);
    // No later time is taken, and an old revision is none to decide on.
    let same = revoke(2, old, 50).await.unwrap();
    assert_eq!(
        same,
        KeysOutcome::Are {
            rows,
            added: Vec::new(),
            changed: false
        }
    );
    assert!(matches!(revoke(1, old, 1).await, Err(Unstored::Outdated)));
    let again = KeyChange::Add(vec![old]);
    let again = store.change_keys(at(2), &acme, &again, 9, 9).await.unwrap();
    assert_eq!(again, KeysOutcome::Revoked(old));
    assert_eq!(
        revoke(2, public(&key(9)), 1).await.unwrap(),
        KeysOutcome::Unknown
    );
    let decided = store.decided().await.unwrap();
    assert_eq!(decided.keys[&acme], [new]);
    assert_eq!((decided.revision, decided.generation), (2, 2));
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
    assert!(
        names_artifact(store.reader(), Digest([3; 32]))
            .await
            .unwrap()
    );
    assert!(
        !names_artifact(store.reader(), Digest([9; 32]))
            .await
            .unwrap()
    );
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

async fn a_version_whose_artifact_has_gone_since_is_not_stored(database: TestDatabase) {
    let store = &database.store;
    with_versions(store, []).await;
    let statement = statement("acme/hello", 1, "v");
    let signed = SignedVersion::sign(&statement, &key(1));
    let id = signed.id();
    let new = || NewVersion {
        id,
        signed: &signed,
        statement: &statement,
    };
    let gone = store.publish(new(), 5).await.unwrap();
    assert_eq!(gone, PublishOutcome::ArtifactGone);
    assert!(store.version_view(id).await.unwrap().is_none());
    put_artifact(store, statement.artifact).await;
    let here = store.publish(new(), 5).await.unwrap();
    assert_eq!(here, PublishOutcome::Stored);
}

/// The sweep looks for a version, finds none and removes the artifact; a publish finds the artifact and
/// stores a version. Whichever comes first, the other one sees it.
async fn an_artifact_goes_only_while_no_version_of_it_can_come(database: TestDatabase) {
    let store = &database.store;
    with_versions(store, []).await;
    for round in 1..=20_u64 {
        let statement = statement("acme/hello", round, "v");
        let artifact = statement.artifact;
        put_artifact(store, artifact).await;
        let sweeper = store.clone();
        let sweep = tokio::spawn(async move { sweeper.remove_artifact(artifact).await.unwrap() });
        if round % 2 == 0 {
            tokio::task::yield_now().await;
        }
        let signed = SignedVersion::sign(&statement, &key(1));
        let new = NewVersion {
            id: signed.id(),
            signed: &signed,
            statement: &statement,
        };
        let published = store.publish(new, 5).await.unwrap();
        let expected = match sweep.await.unwrap() {
            true => PublishOutcome::ArtifactGone,
            false => PublishOutcome::Stored,
        };
        assert_eq!(published, expected, "round {round}");
        let there = store.use_artifact(artifact, 5).await.unwrap();
        assert_eq!(there, published == PublishOutcome::Stored, "round {round}");
    }
}

async fn a_tag_names_one_version_of_its_function(database: TestDatabase) {
    let store = &database.store;
    let [one, two] = with_versions(store, [1, 2]).await;
    let (other, _) = publish(store, &statement("acme/other", 1, "v")).await;
    let hello = function("acme/hello");
    let set = async |tag: &str, version| store.set_tag(&hello, tag, version, 5).await.unwrap();
    assert_eq!(set("stable", one).await, TagOutcome::Set);
    assert_eq!(set("old", one).await, TagOutcome::Set);
    assert_eq!(set("stable", two).await, TagOutcome::Set);
    assert_eq!(set("x", other).await, TagOutcome::UnknownVersion);
    assert_eq!(set("x", Digest([9; 32])).await, TagOutcome::UnknownVersion);
    let tags = |views: Vec<VersionView>| -> Vec<_> {
        views
            .into_iter()
            .map(|view| (view.counter, view.tags))
            .collect()
    };
    let listed = tags(store.versions_of(&hello).await.unwrap());
    assert_eq!(
        listed,
        [(2, vec!["stable".to_owned()]), (1, vec!["old".to_owned()])]
    );
    assert!(store.remove_tag(&hello, "old").await.unwrap());
    assert!(!store.remove_tag(&hello, "old").await.unwrap());
    let view = store.version_view(one).await.unwrap().unwrap();
    assert_eq!((view.tags.len(), view.author.as_str()), (0, "someone"));
    for n in 1..MAX_TAGS {
        assert_eq!(set(&format!("t{n}"), one).await, TagOutcome::Set);
    }
    assert_eq!(set("more", one).await, TagOutcome::TooMany);
}

async fn versions_go_only_if_nobody_may_need_them(database: TestDatabase) {
    let store = &database.store;
    let ids = with_versions(store, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]).await;
    let hello = function("acme/hello");
    let rollout_of = async |to: usize, from: Option<usize>, revision, end: bool| {
        let mut row = RolloutRow {
            id: 0,
            function: hello.clone(),
            rollout: rollout(ids[to], from.map(|from| ids[from])),
        };
        row.id = store
            .begin_rollout(at(revision), &hello, &row.rollout, false, None)
            .await
            .unwrap();
        if end {
            row.rollout.state = RolloutState::Completed;
            row.rollout.ended_ms = Some(9);
            let adoption = Adoption {
                current: ids[to].into(),
                fallback: from.map(|from| ids[from].into()),
            };
            store
                .save_step(at(revision + 1), &row, None, Some(adoption))
                .await
                .unwrap();
        }
        row.id
    };
    rollout_of(1, Some(0), 0, true).await;
    rollout_of(3, Some(1), 2, true).await;
    let open = rollout_of(4, Some(3), 4, false).await;
    store.set_tag(&hello, "golden", ids[2], 5).await.unwrap();
    let mut wish = PruneWish {
        function: None,
        keep: 2,
        held: BTreeMap::from([(ids[5], BTreeSet::from([name("edge")]))]),
    };
    let fates = store.fates(&wish).await.unwrap();
    let why: BTreeMap<_, _> = fates
        .iter()
        .map(|fate| (fate.version, fate.why.join("; ")))
        .collect();
    let because = |place: usize| why[&ids[place]].as_str();
    assert_eq!(because(0), "");
    assert_eq!(because(1), "a rollback goes to it");
    assert_eq!(because(2), "the tag golden names it");
    assert_eq!(
        because(3),
        format!("the fleet is on it; rollout {open} has not ended")
    );
    assert_eq!(because(4), format!("rollout {open} has not ended"));
    assert_eq!(because(5), "node edge has it");
    assert_eq!((because(6), because(7)), ("", ""));
    assert_eq!(
        (because(8), because(9)),
        ("it is one of the newest 2", "it is one of the newest 2")
    );

    // On an old revision nothing goes: a rollout may have begun.
    let outdated = store.prune(at(4), &wish, 50).await.err().unwrap();
    assert!(matches!(outdated, Unstored::Outdated), "{outdated}");
    assert_eq!(store.versions_of(&hello).await.unwrap().len(), 10);
    assert_eq!(store.prune(at(5), &wish, 50).await.unwrap(), fates);
    let left: Vec<_> = store.versions_of(&hello).await.unwrap();
    let left: Vec<_> = left.iter().map(|view| view.counter).collect();
    assert_eq!(left, [10, 9, 6, 5, 4, 3, 2]);
    assert!(store.version(ids[0]).await.unwrap().is_none());
    let removed = store.version_view(ids[0]).await.unwrap().unwrap();
    assert!(
        removed.removed && removed.label == "v",
        "history knows it still"
    );
    assert!(
        !names_artifact(store.reader(), Digest([1; 32]))
            .await
            .unwrap()
    );
    let again = publish(store, &statement("acme/hello", 1, "v")).await;
    assert_eq!(again, (ids[0], PublishOutcome::Removed));
    let tag = store.set_tag(&hello, "late", ids[0], 60).await.unwrap();
    assert_eq!(tag, TagOutcome::UnknownVersion);
    wish.function = Some(function("acme/other"));
    assert_eq!(store.fates(&wish).await.unwrap(), []);
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
        tasks.spawn(async move { store.join(token, &node, certificate(2), 50).await.unwrap() });
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
        store
            .join(token, node, certificate(now as u8), now)
            .await
            .unwrap()
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
    assert!(store.admits(&edge, certificate(80)).await.unwrap());
    assert!(!store.admits(&edge, certificate(50)).await.unwrap());
    assert!(!store.admits(&other, certificate(80)).await.unwrap());
}

async fn a_node_is_known_by_its_key_until_another_machine_has_its_name(database: TestDatabase) {
    let store = &database.store;
    let edge = name("edge");
    let own = |digest, key| NodeCertificate {
        digest: Digest([digest; 32]),
        key: Digest([key; 32]),
        until_ms: 900,
    };
    let join = async |byte: u8, certificate, now| {
        let token = Digest([byte; 32]);
        store
            .add_join_token(token, Some(&edge), 1, 100)
            .await
            .unwrap();
        store.join(token, &edge, certificate, now).await.unwrap()
    };
    let admits = async |certificate| store.admits(&edge, certificate).await.unwrap();
    let renew = async |shown, now| {
        let renewed = store.renew(&edge, shown, 2000, now, now - 10);
        renewed.await.unwrap()
    };
    join(8, own(1, 1), 50).await;
    assert_eq!(renew(own(2, 2), 60).await, RenewOutcome::NotItsOwn);
    // The answer is lost, and the node asks once more; at first too soon.
    assert_eq!(renew(own(1, 1), 60).await, RenewOutcome::Renewed);
    assert_eq!(renew(own(1, 1), 65).await, RenewOutcome::TooSoon);
    assert_eq!(renew(own(1, 1), 70).await, RenewOutcome::Renewed);
    assert!(admits(own(1, 1)).await && admits(own(3, 1)).await && !admits(own(4, 2)).await);
    assert_eq!(renew(own(3, 1), 90).await, RenewOutcome::Renewed);
    let row = &store.nodes().await.unwrap()[0];
    assert_eq!(row.certificate_until_ms, Some(2000));
    join(9, own(5, 2), 95).await;
    assert!(admits(own(5, 2)).await && admits(own(6, 2)).await);
    assert!(!admits(own(1, 1)).await && !admits(own(3, 1)).await);
    // Who has joined again has made what was decided before outdated.
    let revoked = change_node(store, 1, &edge, NodeChange::Revoked, 1);
    assert!(revoked.await.unwrap());
    assert!(!admits(own(5, 2)).await);
    assert_eq!(renew(own(5, 2), 200).await, RenewOutcome::NotItsOwn);
}

async fn a_node_that_joined_before_keys_were_noted_is_known_by_its_certificate_and_then_by_its_key(
    database: TestDatabase,
) {
    let store = &database.store;
    let edge = name("edge");
    with_node(store, &edge).await;
    database.execute("UPDATE nodes SET node_key = NULL").await;
    let first = certificate(1);
    let second = NodeCertificate {
        digest: Digest([10; 32]),
        ..first
    };
    assert!(store.admits(&edge, first).await.unwrap());
    assert!(!store.admits(&edge, second).await.unwrap());
    store.renew(&edge, first, 2000, 60, 50).await.unwrap();
    assert!(store.admits(&edge, second).await.unwrap());
}

async fn an_administrators_token_is_replaced_by_the_next_of_its_label_and_can_be_voided(
    database: TestDatabase,
) {
    let store = &database.store;
    let (old, new) = (Digest([1; 32]), Digest([2; 32]));
    store.set_admin_token("admin", old, 1).await.unwrap();
    store
        .set_admin_token("ci", Digest([3; 32]), 1)
        .await
        .unwrap();
    assert!(store.admin_token(old).await.unwrap().is_some());
    store.set_admin_token("admin", new, 2).await.unwrap();
    assert_eq!(store.admin_token(old).await.unwrap(), None);
    assert!(store.admin_token(new).await.unwrap().is_some());
    let label = store.admin_token(Digest([3; 32])).await.unwrap();
    assert_eq!(label.as_deref(), Some("ci"));
    assert_eq!(store.void_admin_tokens(Some("ci")).await.unwrap(), 1);
    assert_eq!(store.void_admin_tokens(Some("ci")).await.unwrap(), 0);
    let left = store.admin_tokens().await.unwrap();
    assert_eq!(left, [(new, "admin".to_owned(), 2)]);
    assert_eq!(store.void_admin_tokens(None).await.unwrap(), 1);
    assert_eq!(store.admin_token(new).await.unwrap(), None);
}

fn token(id: u8, of: &str, created_ms: u64, expires_ms: Option<u64>) -> TokenRow {
    TokenRow {
        id: TokenId([id; 16]),
        name: of.to_owned(),
        caveats: "verbs=read\ntenants=acme".to_owned(),
        created_ms,
        created_by: "admin".to_owned(),
        expires_ms,
        revoked_ms: None,
    }
}

async fn a_token_has_its_name_alone_until_it_is_revoked_or_over(database: TestDatabase) {
    let store = &database.store;
    let first = token(1, "ci", 5, Some(100));
    let add = async |token: &TokenRow| store.add_token(token).await.unwrap();
    assert_eq!(add(&first).await, TokenOutcome::Stored);
    assert_eq!(store.token(first.id).await.unwrap(), Some(first.clone()));
    let second = token(2, "ci", 50, None);
    assert_eq!(add(&second).await, TokenOutcome::NameTaken);
    assert_eq!(store.token(second.id).await.unwrap(), None);
    // The first one is over.
    let second = token(2, "ci", 100, None);
    assert_eq!(add(&second).await, TokenOutcome::Stored);
    let over = store.token(first.id).await.unwrap().unwrap();
    assert_eq!(over.revoked_ms, Some(100));

    let revoked = store.revoke_token("ci", 120).await.unwrap().unwrap();
    assert_eq!((revoked.id, revoked.revoked_ms), (second.id, Some(120)));
    assert_eq!(store.revoke_token("ci", 130).await.unwrap(), None);
    assert_eq!(add(&token(3, "ci", 140, None)).await, TokenOutcome::Stored);
    let all = store.tokens().await.unwrap();
    let ids: Vec<_> = all.iter().map(|row| row.id.0[0]).collect();
    assert_eq!(ids, [1, 2, 3], "what was is kept");
    store
        .set_admin_token("root", Digest([4; 32]), 1)
        .await
        .unwrap();
    assert_eq!(
        add(&token(4, "root", 150, None)).await,
        TokenOutcome::NameTaken
    );
}

fn deed(action: &str) -> Deed {
    Deed {
        actor_kind: "token",
        actor: "ci".into(),
        actor_id: "01".into(),
        action: action.into(),
        object: "acme/hello".into(),
    }
}

async fn entries_of_the_audit_log_are_in_one_chain_whoever_adds_them(database: TestDatabase) {
    let store = &database.store;
    let none = store.check_audit_log(None).await.unwrap();
    assert_eq!((none.entries, none.head, none.whole), (0, None, true));
    let begun = store.record(&deed("a"), &Came::begun(), 5).await.unwrap();
    let mut came = Came::done("v1\0\n");
    came.begun = Some(begun);
    store.record(&deed("a"), &came, 6).await.unwrap();
    let mut writers = tokio::task::JoinSet::new();
    for n in 0..8 {
        let store = store.clone();
        writers.spawn(async move {
            let deed = deed(&format!("b{n}"));
            store.record(&deed, &Came::done(""), 7).await.unwrap()
        });
    }
    let mut rows = writers.join_all().await;
    rows.sort_unstable();
    assert_eq!(rows, (3..=10).collect::<Vec<u64>>());

    let page = store.audit_entries(0, 0, 2).await.unwrap();
    assert_eq!(page.next, Some(2));
    let done = &page.entries[1];
    assert_eq!((done.begun, done.outcome.as_str()), (Some(1), "done"));
    assert_eq!(done.detail, "v1\u{fffd}\n");
    let later = store.audit_entries(7, 0, 100).await.unwrap();
    assert_eq!((later.entries.len(), later.next), (8, None));
    let check = store.check_audit_log(Some(done.hash)).await.unwrap();
    assert_eq!(
        (check.entries, check.found, check.whole),
        (10, Some(2), true)
    );
    assert_eq!(check.head, Some(later.entries[7].hash));
}

async fn what_is_changed_in_the_audit_log_shows(database: TestDatabase) {
    let store = &database.store;
    for n in 0..5 {
        let came = Came::done(format!("detail {n}"));
        store.record(&deed("a"), &came, n).await.unwrap();
    }
    let head = store.check_audit_log(None).await.unwrap().head;
    // By mistake nothing is changed.
    for sql in ["UPDATE audit_log SET detail = 'x'", "DELETE FROM audit_log"] {
        let refused = query(sql).execute(store.writer()).await.unwrap_err();
        assert!(refused.to_string().contains("only added to"), "{refused}");
    }
    let unguarded = match database.url {
        None => vec![
            "DROP TRIGGER audit_log_is_not_changed",
            "DROP TRIGGER audit_log_is_not_deleted",
        ],
        Some(_) => vec!["DROP TRIGGER audit_log_is_not_changed ON audit_log"],
    };
    for sql in unguarded {
        query(sql).execute(store.writer()).await.unwrap();
    }
    let change = async |sql: &'static str| {
        assert_eq!(query(sql).execute(store.writer()).await.unwrap(), 1);
        store.check_audit_log(head).await.unwrap()
    };
    let edited = change("UPDATE audit_log SET actor = 'other' WHERE row = 3").await;
    assert_eq!((edited.broken_at, edited.whole), (Some(3), false));
    let mended = change("UPDATE audit_log SET actor = 'ci' WHERE row = 3").await;
    assert!(mended.whole);
    let cut = change("DELETE FROM audit_log WHERE row = 5").await;
    assert!(cut.whole, "the chain alone does not show it");
    assert_eq!(cut.found, None, "what was its head is gone");
    let gap = change("DELETE FROM audit_log WHERE row = 2").await;
    assert_eq!((gap.broken_at, gap.whole), (Some(2), false));
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

/// A certificate, with a key of its own.
fn certificate(byte: u8) -> NodeCertificate {
    NodeCertificate {
        digest: Digest([byte; 32]),
        key: Digest([byte; 32]),
        until_ms: 900,
    }
}

async fn with_node(store: &Store, node: &Name) {
    let token = Digest::of(node.as_str().as_bytes());
    store.add_join_token(token, None, 1, 100).await.unwrap();
    let joined = store.join(token, node, certificate(1), 2).await.unwrap();
    assert_eq!(joined, JoinOutcome::Joined);
}

async fn what_a_node_said_and_when_is_kept(database: TestDatabase) {
    let store = &database.store;
    let edge = name("edge");
    with_node(store, &edge).await;
    let joined = store.nodes().await.unwrap();
    assert_eq!(
        (joined.len(), &joined[0].hello),
        (1, &None),
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
        (&edge, &Some(hello()), 20)
    );
    assert!(!row.drained);
}

async fn change_node(
    store: &Store,
    revision: u64,
    node: &Name,
    change: NodeChange,
    generation: u64,
) -> Result<bool, Unstored> {
    store
        .change_node(at(revision), node, &change, generation, 7)
        .await
}

async fn what_an_operator_says_of_a_node_is_stored_with_the_generation_that_says_so(
    database: TestDatabase,
) {
    let store = &database.store;
    let edge = name("edge");
    let drain = || NodeChange::Drained(true);
    assert!(!change_node(store, 0, &edge, drain(), 5).await.unwrap());
    let nothing = store.decided().await.unwrap();
    assert_eq!((nothing.revision, nothing.generation), (0, 0));
    // It need not have been connected.
    with_node(store, &edge).await;
    assert!(change_node(store, 0, &edge, drain(), 6).await.unwrap());
    let pins = Pins::from([(function("acme/hello"), (Digest([1; 32]).into(), None))]);
    let cordon = NodeChange::Cordoned(Some(pins.clone()));
    assert!(change_node(store, 1, &edge, cordon, 7).await.unwrap());
    let labels = BTreeMap::from([("disk".to_owned(), "ssd".to_owned())]);
    let label = NodeChange::Labels(labels.clone());
    assert!(change_node(store, 2, &edge, label, 8).await.unwrap());
    let outdated = change_node(store, 2, &edge, NodeChange::Drained(false), 9).await;
    assert!(matches!(outdated, Err(Unstored::Outdated)));
    let decided = store.decided().await.unwrap();
    let node = &decided.nodes[0];
    assert!(node.drained && node.hello.is_none() && !node.revoked);
    assert_eq!((&node.cordoned, &node.labels), (&Some(pins), &labels));
    assert_eq!((decided.revision, decided.generation), (3, 8));
    assert!(
        change_node(store, 3, &edge, NodeChange::Cordoned(None), 9)
            .await
            .unwrap()
    );
    assert_eq!(store.nodes().await.unwrap()[0].cordoned, None);
}

async fn a_revoked_node_is_let_in_again_only_when_it_joins_again(database: TestDatabase) {
    let store = &database.store;
    let edge = name("edge");
    with_node(store, &edge).await;
    store.save_hello(&edge, &hello(), 10).await.unwrap();
    assert_eq!(
        store.nodes().await.unwrap()[0].certificate_until_ms,
        Some(900)
    );
    assert!(
        change_node(store, 0, &edge, NodeChange::Revoked, 1)
            .await
            .unwrap()
    );
    assert!(store.nodes().await.unwrap()[0].revoked);
    assert!(
        !change_node(store, 1, &edge, NodeChange::Drained(true), 2)
            .await
            .unwrap()
    );
    let token = Digest([8; 32]);
    store
        .add_join_token(token, Some(&edge), 1, 100)
        .await
        .unwrap();
    let joined = store.join(token, &edge, certificate(9), 50).await.unwrap();
    assert_eq!(joined, JoinOutcome::Joined);
    assert!(store.admits(&edge, certificate(9)).await.unwrap());
    assert!(!store.nodes().await.unwrap()[0].revoked);
}

/// What somebody rests on who takes no step.
pub(super) fn at(revision: u64) -> Basis {
    Basis {
        revision,
        lease: None,
    }
}

fn rollout(version: VersionId, previous: Option<VersionId>) -> Rollout {
    rollout_of(version.into(), previous.map(Release::from))
}

pub(super) fn rollout_of(release: Release, previous: Option<Release>) -> Rollout {
    let policy = Policy {
        waves: vec![WaveRule::percent(100)],
        quorum: None,
        gates: Default::default(),
        bake_ms: 0,
        max_error_ppm: 0,
        min_requests: 0,
        skips_gates: false,
        prepare_timeout_ms: 1,
        artifact_bytes: 0,
        absent_grace_ms: 1,
        goes_back: false,
    };
    Rollout::begin(release, previous, policy, 1)
}

async fn a_function_has_one_open_rollout(database: TestDatabase) {
    let store = &database.store;
    let hello = function("acme/hello");
    let [one, two] = with_versions(store, [1, 2]).await;
    let first = rollout(one, None);
    let id = store
        .begin_rollout(at(0), &hello, &first, false, None)
        .await;
    let id = id.unwrap();
    let second = rollout(two, None);
    let second = store
        .begin_rollout(at(1), &hello, &second, false, None)
        .await;
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
            .begin_rollout(at(revision), &hello, &begun, false, None)
            .await;
        let mut row = RolloutRow {
            id: id.unwrap(),
            function: hello.clone(),
            rollout: begun,
        };
        row.rollout.state = holm_model::api::RolloutState::Completed;
        row.rollout.ended_ms = Some(9);
        let adoption = Adoption {
            current: version.into(),
            fallback: last.map(Release::from),
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
    let (one, two) = (Release::from(one), Release::from(two));
    assert_eq!((row.current, row.fallback), (Some(two), Some(one)));
    let latest = store.latest_rollout(&hello).await.unwrap().unwrap();
    assert_eq!(latest.rollout.release, two);
    assert_eq!(store.release_before(&hello, two).await.unwrap(), Some(one));
    assert_eq!(store.release_before(&hello, one).await.unwrap(), None);
}

async fn what_rests_on_an_old_revision_is_not_stored(database: TestDatabase) {
    let store = &database.store;
    let edge = name("edge");
    with_node(store, &edge).await;
    let drain = || NodeChange::Drained(true);
    change_node(store, 0, &edge, drain(), 5).await.unwrap();
    for old in [0, 2] {
        let outdated = change_node(store, old, &edge, drain(), 6).await;
        assert!(matches!(outdated, Err(Unstored::Outdated)), "{outdated:?}");
    }
    let decided = store.decided().await.unwrap();
    assert_eq!((decided.generation, decided.revision), (5, 1));
    // Of several that decide at once on the same, one is stored.
    let mut tasks = tokio::task::JoinSet::new();
    for generation in 10..14 {
        let store = store.clone();
        let edge = edge.clone();
        tasks.spawn(async move {
            let drain = NodeChange::Drained(true);
            change_node(&store, 1, &edge, drain, generation)
                .await
                .is_ok()
        });
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
    let id = store
        .begin_rollout(at(0), &hello, &begun, false, None)
        .await;
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
        run_times: [(40, invocations)].into_iter().collect(),
    };
    let left = |tally| BTreeMap::from([(key.clone(), BTreeMap::from([(name("edge-1"), tally)]))]);
    store.leave_tallies(&left(tally(10, 1))).await.unwrap();
    store.leave_tallies(&left(tally(5, 2))).await.unwrap();
    let mut both = tally(10, 1);
    both.add(&tally(5, 2));
    assert_eq!(store.take_tallies().await.unwrap(), left(both));
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
        let page = store
            .usage_records(&RecordsFilter::default(), after, 25)
            .await
            .unwrap();
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
        .set_admin_token("admin", Digest([4; 32]), 5)
        .await
        .unwrap();
    store.add_token(&token(1, "ci", 5, Some(9))).await.unwrap();
    for n in 0..LOOKUP_CHUNK_ROWS as u64 + 2 {
        store.record(&deed("a"), &Came::done("x"), n).await.unwrap();
    }
    store.set_tag(&hello, "stable", one, 5).await.unwrap();
    store.authority(Some(Digest([6; 32]))).await.unwrap();
    let configured = super::configurations_tests::fill(store, one).await;
    let mut row = RolloutRow {
        id: 0,
        function: hello.clone(),
        rollout: rollout_of(configured, Some(two.into())),
    };
    row.id = store
        .begin_rollout(at(0), &hello, &row.rollout, false, None)
        .await
        .unwrap();
    let adoption = Some(Adoption {
        current: configured,
        fallback: Some(two.into()),
    });
    store
        .save_step(at(1), &row, Some(9), adoption)
        .await
        .unwrap();
    let queued = Queued {
        function: hello.clone(),
        request: RolloutRequest {
            version: Some(two),
            configuration: None,
            waves: None,
            bake_ms: None,
            min_requests: None,
            emergency: false,
            when_running: WhenRunning::Queue,
        },
        asked_ms: 8,
    };
    store.queue_rollout(at(2), &queued).await.unwrap();
    let fleet = TestFleet::new(store);
    let mut edge = fleet.join("edge");
    for first in [1, 701] {
        let records: Vec<_> = (first..first + 700).map(|n| record(1, n)).collect();
        let batch = edge.seal(&records);
        fleet.send(&edge, &batch).await.unwrap();
        fleet.send(&edge, &batch).await.unwrap();
    }
    for kind in [ExportKind::Webhook, ExportKind::Parquet] {
        let new = NewExportRow {
            tenant: name("acme"),
            kind,
            url: "https://example.com/".into(),
            ca: String::new(),
            private: false,
            secret: Some(vec![1, 2, 3]),
            from_start: true,
        };
        store.add_export(&new, 7).await.unwrap();
    }
    let files = store.exports(None).await.unwrap().pop().unwrap();
    let to = Out {
        row: 3,
        before_ms: 9,
    };
    assert!(store.plan_export(files.id, files.out, to).await.unwrap());
    let file = ExportFile {
        name: "usage/tenant=acme/date=2026-11-30/part-1.parquet".into(),
        day_ms: 5,
        rows: 2,
        bytes: 100,
        digest: Digest([8; 32]),
        written_ms: 6,
    };
    assert!(store.exported(&files, (to, 1), &[file], 7).await.unwrap());
    // Of the time before there were chains.
    store
        .enter_rows(&name("old"), &[record(7, 1)])
        .await
        .unwrap();
    let gone = name("gone");
    fleet
        .add(&gone, &[record(9, 1), record(9, 2)])
        .await
        .unwrap();
    assert_eq!(fleet.drop_records(&gone).await, Dropped::Rows(2));
    let prices = NewPrices {
        currency: "EUR".parse().unwrap(),
        prices: Prices::default(),
        from_ms: None,
    };
    store
        .add_prices(&name("large"), &prices, || 7)
        .await
        .unwrap();
    let plan = NewAssignment {
        plan: name("large"),
        from_ms: None,
    };
    store.assign_plan(&name("acme"), &plan, || 7).await.unwrap();
    super::budgets_tests::fill(store).await;
}

pub(super) async fn one_more_row(store: &Store) {
    let fleet = TestFleet::new(store);
    let stored = fleet.add(&name("other"), &[record(2, 1)]).await.unwrap();
    assert_eq!(stored, (1, 0));
}
