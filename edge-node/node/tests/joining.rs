//! A node joins a coordinator. Needs no KVM.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::os::unix::fs::PermissionsExt as _;

use common::coordinator::Coordinator;
use holm_model::ids::Digest;
use holm_node::{Identity, JoinConfig, JoinError, join};

fn config(dir: &std::path::Path, coordinator: &Coordinator) -> JoinConfig {
    JoinConfig {
        state_dir: dir.to_owned(),
        token: coordinator.token(),
        name: "n1".parse().unwrap(),
    }
}

#[tokio::test]
async fn joining_leaves_an_identity_whose_key_only_the_owner_can_read() {
    let coordinator = Coordinator::start().await;
    let dir = tempfile::tempdir().unwrap();
    join(config(dir.path(), &coordinator)).await.unwrap();
    let identity = Identity::load(dir.path()).unwrap();
    assert_eq!(identity.name.as_str(), "n1");
    assert_eq!(identity.coordinator, coordinator.address.to_string());
    let mode = dir
        .path()
        .join("node.key")
        .metadata()
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn a_token_that_was_used_is_refused_and_nothing_is_stored() {
    let coordinator = Coordinator::start().await;
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    join(config(first.path(), &coordinator)).await.unwrap();
    let error = join(config(second.path(), &coordinator)).await.unwrap_err();
    assert!(
        matches!(&error, JoinError::Refused(reason) if reason.contains("used")),
        "{error}"
    );
    assert!(!Identity::is_there(second.path()));
    assert_eq!(second.path().read_dir().unwrap().count(), 0);
}

#[tokio::test]
async fn a_coordinator_with_another_ca_is_not_trusted() {
    let coordinator = Coordinator::start().await;
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path(), &coordinator);
    config.token.ca = Digest::of(b"another");
    let error = join(config).await.unwrap_err();
    assert!(matches!(error, JoinError::Dial(_)), "{error}");
    assert!(
        !coordinator.state().token_used,
        "the secret must not be shown to a stranger"
    );
}

#[tokio::test]
async fn a_node_that_has_joined_is_not_joined_over() {
    let coordinator = Coordinator::start().await;
    let dir = tempfile::tempdir().unwrap();
    join(config(dir.path(), &coordinator)).await.unwrap();
    let error = join(config(dir.path(), &coordinator)).await.unwrap_err();
    assert!(matches!(error, JoinError::AlreadyJoined(_)), "{error}");
}
