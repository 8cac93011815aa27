//! Signed versions for tests.

use std::collections::BTreeMap;

use ed25519_dalek::SigningKey;
use holm_model::artifact::{SignedVersion, Statement};
use holm_model::configuration::{
    Configuration, ConfigurationStatement, Secret, SignedConfiguration,
};
use holm_model::ids::Digest;
use holm_model::manifest::Manifest;

pub(crate) fn key() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

pub(crate) fn program(label: &str) -> Vec<u8> {
    format!("the program of {label}").into_bytes()
}

pub(crate) fn statement(label: &str, counter: u64) -> Statement {
    let program = program(label);
    Statement {
        function: "acme/hello".parse().unwrap(),
        counter,
        artifact: Digest::of(&program),
        artifact_bytes: program.len() as u64,
        manifest: manifest(),
        label: label.into(),
        message: String::new(),
        author: "someone".into(),
        created_ms: 1,
    }
}

pub(crate) fn signed(label: &str, counter: u64) -> SignedVersion {
    SignedVersion::sign(&statement(label, counter), &key())
}

/// A configuration with a secret of this value, and a plain entry.
pub(crate) fn configuration(number: u64, value: &str) -> Configuration {
    let secret = Secret::new([9; 32], value.into());
    let statement = ConfigurationStatement {
        function: "acme/hello".parse().unwrap(),
        number,
        env: BTreeMap::from([("GREETING".into(), format!("hello {number}"))]),
        secrets: BTreeMap::from([("PASSWORD".into(), secret.commitment())]),
        message: String::new(),
        author: String::new(),
        created_ms: 1,
    };
    Configuration {
        signed: SignedConfiguration::sign(&statement, &key()),
        secrets: BTreeMap::from([("PASSWORD".into(), secret)]),
    }
}

fn manifest() -> Manifest {
    serde_json::from_value(serde_json::json!({
        "schema": 1,
        "function": {"tenant": "acme", "name": "hello"},
        "limits": {
            "memory_bytes": 16 << 20, "deadline_ms": 1000, "cpu_ms": 1000,
            "request_body_bytes": 1 << 20, "response_body_bytes": 1 << 20, "concurrency": 4
        },
        "scale": {},
        "rollout": {
            "waves_percent": [100], "bake_ms": 0, "probe_path": "/", "max_error_ppm": 0
        }
    }))
    .unwrap()
}
