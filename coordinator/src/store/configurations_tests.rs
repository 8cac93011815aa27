//! What the store promises of configurations, asked of SQLite and of PostgreSQL.

use std::collections::BTreeMap;

use ed25519_dalek::SigningKey;
use holm_model::configuration::{ConfigurationStatement, Release, SignedConfiguration};
use holm_model::ids::{Digest, FunctionName, VersionId};

use super::testing::{TestDatabase, on_both_databases};
use super::{
    Adoption, ConfigureOutcome, KeyChange, NewConfiguration, RolloutRow, Store, StoreError, suite,
};

on_both_databases! {
    configurations_follow_each_other_and_share_the_secrets_of_their_function,
    of_configurations_made_at_once_with_one_number_one_is_stored,
    nothing_that_a_revoked_key_signed_is_stored,
    secrets_are_encrypted_with_one_key_at_a_time,
    a_function_is_on_a_version_with_a_configuration_and_goes_back_to_both,
}

/// The fingerprint of a key for secrets.
const KEY: Digest = Digest([0xee; 32]);

fn hello() -> FunctionName {
    "acme/hello".parse().unwrap()
}

fn statement(number: u64, secrets: &[u8]) -> ConfigurationStatement {
    let secret = |byte: &u8| (format!("SECRET_{byte}"), Digest([*byte; 32]));
    ConfigurationStatement {
        function: hello(),
        number,
        env: BTreeMap::from([("NUMBER".into(), number.to_string())]),
        secrets: secrets.iter().map(secret).collect(),
        message: String::new(),
        author: String::new(),
        created_ms: 1,
    }
}

fn signed(statement: &ConfigurationStatement) -> SignedConfiguration {
    SignedConfiguration::sign(statement, &SigningKey::from_bytes(&[1; 32]))
}

/// Stores a configuration with these secrets, of which it brings some.
async fn configure(
    store: &Store,
    number: u64,
    secrets: &[u8],
    brought: &[u8],
    key: Digest,
) -> ConfigureOutcome {
    let statement = statement(number, secrets);
    let signed = signed(&statement);
    let brought = brought
        .iter()
        .map(|byte| (Digest([*byte; 32]), vec![*byte; 3]));
    let new = NewConfiguration {
        signed: &signed,
        statement: &statement,
        secrets: brought.collect(),
    };
    store.configure(new, key, 5).await.unwrap()
}

async fn configurations_follow_each_other_and_share_the_secrets_of_their_function(
    database: TestDatabase,
) {
    let store = &database.store;
    suite::with_versions(store, [1]).await;
    assert!(
        store
            .newest_configuration(&hello())
            .await
            .unwrap()
            .is_none()
    );
    let stored = configure(store, 1, &[1], &[1], KEY).await;
    assert_eq!(stored, ConfigureOutcome::Stored);
    for number in [1, 3] {
        let outcome = configure(store, number, &[], &[], KEY).await;
        assert_eq!(outcome, ConfigureOutcome::OutOfTurn { newest: 1 });
    }
    let stored = configure(store, 2, &[1, 2], &[2], KEY).await;
    assert_eq!(stored, ConfigureOutcome::Stored);
    let rows = store.configurations(&hello()).await.unwrap();
    let numbers: Vec<u64> = rows.iter().map(|row| row.statement.number).collect();
    assert_eq!(numbers, [2, 1]);
    let newest = store.newest_configuration(&hello()).await.unwrap().unwrap();
    assert_eq!(newest.statement, statement(2, &[1, 2]));
    assert_eq!(newest.id, signed(&newest.statement).id());
    let found = store.configuration(newest.id).await.unwrap().unwrap();
    assert_eq!(found.signed, newest.signed);
    let all = || [1, 2].map(|number| Digest([number; 32])).into_iter();
    let numbers = store.secret_numbers(&hello()).await.unwrap();
    let mut secrets = store.secrets(&hello(), all()).await.unwrap();
    secrets.sort_by_key(|row| numbers[&row.commitment]);
    let secrets: Vec<_> = secrets
        .into_iter()
        .map(|row| (row.commitment, numbers[&row.commitment], row.ciphertext))
        .collect();
    assert_eq!(
        secrets,
        [
            (Digest([1; 32]), 1, vec![1; 3]),
            (Digest([2; 32]), 2, vec![2; 3])
        ]
    );
    let numbers = store
        .configuration_numbers(&[newest.id, KEY])
        .await
        .unwrap();
    assert_eq!(numbers, BTreeMap::from([(newest.id, 2)]));
    let other = "acme/other".parse().unwrap();
    let other = store.secrets(&other, all()).await.unwrap();
    assert!(other.is_empty());
}

async fn of_configurations_made_at_once_with_one_number_one_is_stored(database: TestDatabase) {
    let store = &database.store;
    suite::with_versions(store, [1]).await;
    let made = futures_of(store).await;
    let stored = made
        .iter()
        .filter(|outcome| **outcome == ConfigureOutcome::Stored);
    assert_eq!(stored.count(), 1, "{made:?}");
    let lost = ConfigureOutcome::OutOfTurn { newest: 1 };
    assert!(
        made.iter().filter(|outcome| **outcome == lost).count() == 3,
        "{made:?}"
    );
}

async fn futures_of(store: &Store) -> Vec<ConfigureOutcome> {
    let mut made = tokio::task::JoinSet::new();
    for byte in 1..=4 {
        let store = store.clone();
        made.spawn(async move { configure(&store, 1, &[byte], &[byte], KEY).await });
    }
    made.join_all().await
}

async fn nothing_that_a_revoked_key_signed_is_stored(database: TestDatabase) {
    let store = &database.store;
    suite::with_versions(store, [1]).await;
    let key = signed(&statement(1, &[])).key;
    let revoke = KeyChange::Revoke { key, from_ms: 5 };
    let acme = "acme".parse().unwrap();
    store
        .change_keys(suite::at(0), &acme, &revoke, 1, 5)
        .await
        .unwrap();
    let outcome = configure(store, 1, &[], &[], KEY).await;
    assert_eq!(outcome, ConfigureOutcome::KeyRevoked);
}

async fn secrets_are_encrypted_with_one_key_at_a_time(database: TestDatabase) {
    let store = &database.store;
    suite::with_versions(store, [1]).await;
    assert_eq!(store.secrets_key(None).await.unwrap(), None);
    configure(store, 1, &[], &[], KEY).await;
    assert_eq!(
        store.secrets_key(None).await.unwrap(),
        None,
        "there is no secret yet"
    );
    configure(store, 2, &[1], &[1], KEY).await;
    assert_eq!(store.secrets_key(None).await.unwrap(), Some(KEY));
    let next = Digest([0xdd; 32]);
    assert_eq!(store.secrets_key(Some(next)).await.unwrap(), Some(KEY));
    let outcome = configure(store, 3, &[2], &[2], next).await;
    assert_eq!(outcome, ConfigureOutcome::OtherSecretsKey);

    let failed = store.encrypt_again(next, |_, _| Err(StoreError::corrupt("a secret", "no")));
    assert!(failed.await.is_err());
    assert_eq!(
        store.secrets_key(None).await.unwrap(),
        Some(KEY),
        "all or none"
    );
    let count = store.encrypt_again(next, |function, row| {
        assert_eq!(
            (function, row.ciphertext.as_slice()),
            (&hello(), &[1; 3][..])
        );
        Ok::<_, StoreError>(vec![9])
    });
    assert_eq!(count.await.unwrap(), 1);
    assert_eq!(store.secrets_key(None).await.unwrap(), Some(next));
    let all = [1, 2].map(|number| Digest([number; 32])).into_iter();
    let secrets = store.secrets(&hello(), all).await.unwrap();
    assert!(secrets.iter().all(|row| row.ciphertext == [9]));
}

async fn a_function_is_on_a_version_with_a_configuration_and_goes_back_to_both(
    database: TestDatabase,
) {
    let store = &database.store;
    let [version] = suite::with_versions(store, [1]).await;
    let mut releases = vec![Release::from(version)];
    for number in [1, 2] {
        configure(store, number, &[], &[], KEY).await;
        releases.push(Release {
            version,
            configuration: Some(signed(&statement(number, &[])).id()),
        });
    }
    let mut last = None;
    for (revision, release) in (0..).step_by(2).zip(&releases) {
        roll_out(store, revision, *release, last).await;
        last = Some(*release);
    }
    let row = store.function(&hello()).await.unwrap().unwrap();
    assert_eq!(
        (row.current, row.fallback),
        (Some(releases[2]), Some(releases[1]))
    );
    for (release, before) in [(2, Some(1)), (1, Some(0)), (0, None)] {
        let found = store
            .release_before(&hello(), releases[release])
            .await
            .unwrap();
        assert_eq!(found, before.map(|before: usize| releases[before]));
    }
    let last = store.last_release_of(&hello(), version).await.unwrap();
    assert_eq!(last, Some(releases[2]));
    let ids: Vec<_> = releases.iter().map(Release::id).collect();
    let known = store.releases(&ids).await.unwrap();
    let known: Vec<_> = ids
        .iter()
        .map(|id| known.get(id).map(|row| (row.version, row.number)))
        .collect();
    assert_eq!(known, [None, Some((version, 1)), Some((version, 2))]);
    for release in &releases[1..] {
        let configuration = release.configuration.unwrap();
        assert!(store.has_had(&hello(), configuration).await.unwrap());
    }
    assert!(!store.has_had(&hello(), KEY).await.unwrap());
}

/// A rollout from its beginning to its end.
async fn roll_out(store: &Store, revision: u64, release: Release, previous: Option<Release>) {
    let mut row = RolloutRow {
        id: 0,
        function: hello(),
        rollout: suite::rollout_of(release, previous),
    };
    let basis = suite::at(revision);
    row.id = store
        .begin_rollout(basis, &hello(), &row.rollout, false, None)
        .await
        .unwrap();
    row.rollout.state = holm_model::api::RolloutState::Completed;
    row.rollout.ended_ms = Some(9);
    let adoption = Adoption {
        current: release,
        fallback: previous,
    };
    let basis = suite::at(revision + 1);
    let stored = store.save_step(basis, &row, None, Some(adoption));
    stored.await.unwrap();
}

/// A row in every table of configurations; gives a release to be rolled out.
pub(super) async fn fill(store: &Store, version: VersionId) -> Release {
    let stored = configure(store, 1, &[1], &[1], KEY).await;
    assert_eq!(stored, ConfigureOutcome::Stored);
    Release {
        version,
        configuration: Some(signed(&statement(1, &[1])).id()),
    }
}
