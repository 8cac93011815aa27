//! Programs for the tests, compiled once each, and signed versions of them.

use std::collections::HashMap;
use std::process::Command;
use std::sync::{LazyLock, Mutex};

use ed25519_dalek::SigningKey;
use holm_model::artifact::{PublisherKey, SignedVersion, Statement};
use holm_model::control::{Desired, DesiredFunction};
use holm_model::ids::{Digest, FunctionName};
use holm_model::manifest::{Isolation, Manifest};

/// What is wrong with a program on purpose.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub enum Broken {
    No = 0,
    AtStart = 1,
    AtFirstRequest = 2,
}

/// The bytes of the static program, which answers `GET /` with `label`.
pub fn program(label: &str, broken: Broken) -> Vec<u8> {
    type Built = HashMap<(String, Broken), Vec<u8>>;
    static BUILT: LazyLock<Mutex<Built>> = LazyLock::new(Mutex::default);
    let mut built = BUILT.lock().unwrap();
    built
        .entry((label.to_owned(), broken))
        .or_insert_with(|| compile(label, broken))
        .clone()
}

fn compile(label: &str, broken: Broken) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("program");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/program.c");
    let status = Command::new("cc")
        .args(["-static", "-O1", "-D_GNU_SOURCE", "-w"])
        .arg(format!("-DLABEL=\"{label}\""))
        .arg(format!("-DBROKEN={}", broken as u32))
        .arg("-o")
        .arg(&output)
        .arg(source)
        .status()
        .expect("these tests need a C compiler called cc");
    assert!(status.success());
    std::fs::read(output).unwrap()
}

pub fn key() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

pub fn publisher() -> PublisherKey {
    PublisherKey(key().verifying_key().to_bytes())
}

pub fn hello() -> FunctionName {
    "acme/hello".parse().unwrap()
}

/// A version of `acme/hello` with its program.
#[derive(Clone)]
pub struct Version {
    pub signed: SignedVersion,
    pub statement: Statement,
    pub artifact: Vec<u8>,
}

impl Version {
    pub fn new(label: &str, counter: u64) -> Self {
        Self::with(label, counter, Broken::No, |_| {})
    }

    pub fn broken(label: &str, counter: u64, broken: Broken) -> Self {
        Self::with(label, counter, broken, |_| {})
    }

    pub fn with(
        label: &str,
        counter: u64,
        broken: Broken,
        change: impl FnOnce(&mut Statement),
    ) -> Self {
        Self::labelled(program(label, broken), label, counter, change)
    }

    /// Of another program.
    pub fn of(artifact: Vec<u8>, change: impl FnOnce(&mut Statement)) -> Self {
        Self::labelled(artifact, "v1", 1, change)
    }

    fn labelled(
        artifact: Vec<u8>,
        label: &str,
        counter: u64,
        change: impl FnOnce(&mut Statement),
    ) -> Self {
        let mut statement = Statement {
            function: hello(),
            counter,
            artifact: Digest::of(&artifact),
            artifact_bytes: artifact.len() as u64,
            manifest: manifest(),
            label: label.into(),
            message: String::new(),
            author: "someone".into(),
            created_ms: 1,
        };
        change(&mut statement);
        let signed = SignedVersion::sign(&statement, &key());
        Version {
            signed,
            statement,
            artifact,
        }
    }

    pub fn instance(label: &str, counter: u64) -> Self {
        Self::with(label, counter, Broken::No, |statement| {
            statement.manifest.scale.isolation = Isolation::Instance;
        })
    }
}

/// A desired state with one function.
pub fn desired(generation: u64, version: &Version, previous: Option<&Version>) -> Desired {
    let function = DesiredFunction {
        function: version.statement.function.clone(),
        publisher_keys: vec![publisher()],
        version: version.signed.clone(),
        previous: previous.map(|previous| previous.signed.clone()),
    };
    Desired {
        generation,
        functions: vec![function],
        draining: Default::default(),
    }
}

fn manifest() -> Manifest {
    serde_json::from_value(serde_json::json!({
        "schema": 1,
        "function": {"tenant": "acme", "name": "hello"},
        "limits": {
            "memory_bytes": 16 << 20, "deadline_ms": 2000, "cpu_ms": 1000,
            "request_body_bytes": 1 << 20, "response_body_bytes": 1 << 20, "concurrency": 64
        },
        "scale": {},
        "rollout": {
            "waves_percent": [100], "bake_ms": 0, "probe_path": "/", "max_error_ppm": 0
        }
    }))
    .unwrap()
}
