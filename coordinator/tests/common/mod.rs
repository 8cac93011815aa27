//! What the tests share: a coordinator on loopback, a client of its API, a publisher, and a node
//! that speaks the real protocol but runs nothing.
// Each test binary uses a part of this, and nothing outside of it can.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

pub mod http;
pub mod node;
pub mod program;
pub mod receiver;
pub mod usage;

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use ed25519_dalek::SigningKey;
use holm_coordinator::{Config, DatabaseUrl, Running, S3Place, StartError, start};
use holm_model::api::{
    JoinTokenAnswer, NodeView, PublishRequest, RolloutView, TenantRequest, VersionView,
};
use holm_model::artifact::{PublisherKey, SignedVersion, Statement};
use holm_model::ids::{Digest, FunctionName};
use holm_model::manifest::Manifest;
use holm_test_support::Postgres;
use serde_json::json;

use http::Client;

/// Longest time that anything in these tests may take.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A coordinator of the test's own, in its own directory, on loopback.
pub struct Coordinator {
    pub dir: tempfile::TempDir,
    pub running: Option<Running>,
    pub client: Client,
    pub quic: SocketAddr,
    /// A PostgreSQL database's URL, if not SQLite.
    pub database: Option<String>,
    /// Where its artifacts are, if not in its directory.
    pub artifacts: Option<S3Place>,
    /// How long it keeps records of usage.
    pub keep_records: Option<Duration>,
}

fn config(dir: &Path, quic: SocketAddr, database: Option<&String>) -> Config {
    let mut config = Config::new(dir.join("state"), quic, loopback());
    config.database = database.cloned().map(DatabaseUrl::from);
    config.prepare_timeout = Duration::from_secs(20);
    config.absent_grace = Duration::from_secs(2);
    config
}

fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

impl Coordinator {
    pub async fn start() -> Self {
        Coordinator::start_in(tempfile::tempdir().unwrap(), None)
            .await
            .unwrap()
    }

    /// One on a PostgreSQL database, to which others may come.
    pub async fn start_on_postgres() -> Self {
        let database = Postgres::shared().database();
        Coordinator::start_in(tempfile::tempdir().unwrap(), Some(database))
            .await
            .unwrap()
    }

    /// Another one on the database of this one, with the same certificate authority.
    pub async fn start_beside(&self) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("state")).unwrap();
        for file in ["state/ca.key", "state/ca.der", "state/secrets.key"] {
            std::fs::copy(self.dir.path().join(file), dir.path().join(file)).unwrap();
        }
        // As if it were a file system that both mount.
        let artifacts = "state/artifacts";
        std::os::unix::fs::symlink(self.dir.path().join(artifacts), dir.path().join(artifacts))
            .unwrap();
        let mut config = config(dir.path(), loopback(), self.database.as_ref());
        config.keep_records = self.keep_records;
        Coordinator::start_as(dir, config, self.database.clone())
            .await
            .unwrap()
    }

    pub async fn start_in(
        dir: tempfile::TempDir,
        database: Option<String>,
    ) -> Result<Self, StartError> {
        let config = config(dir.path(), loopback(), database.as_ref());
        Coordinator::start_as(dir, config, database).await
    }

    /// One that keeps records of usage for so long.
    pub async fn start_keeping(records: Duration, database: Option<String>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path(), loopback(), database.as_ref());
        config.keep_records = Some(records);
        Coordinator::start_as(dir, config, database).await.unwrap()
    }

    pub async fn start_with_artifacts(
        dir: tempfile::TempDir,
        artifacts: Option<S3Place>,
    ) -> Result<Self, StartError> {
        let mut config = config(dir.path(), loopback(), None);
        config.artifacts = artifacts;
        Coordinator::start_as(dir, config, None).await
    }

    async fn start_as(
        dir: tempfile::TempDir,
        config: Config,
        database: Option<String>,
    ) -> Result<Self, StartError> {
        let artifacts = config.artifacts.clone();
        let keep_records = config.keep_records;
        // One that was killed may take a moment to let go of the lock.
        let deadline = Instant::now() + PATIENCE;
        let running = loop {
            match start(config.clone()).await {
                Err(StartError::Locked(_)) if Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                started => break started?,
            }
        };
        let client = client(&running);
        let quic = running.quic_addr;
        Ok(Coordinator {
            dir,
            running: Some(running),
            client,
            quic,
            database,
            artifacts,
            keep_records,
        })
    }

    /// Ends it without a word, as SIGKILL would.
    pub fn kill(&mut self) {
        drop(self.running.take());
    }

    /// Starts it again on the same state directory and the same QUIC port, so that nodes find it.
    pub async fn restart(&mut self) {
        self.kill();
        let deadline = Instant::now() + PATIENCE;
        let running = loop {
            let mut config = config(self.dir.path(), self.quic, self.database.as_ref());
            config.artifacts = self.artifacts.clone();
            config.keep_records = self.keep_records;
            match start(config).await {
                Ok(running) => break running,
                // Its tasks may take a moment to let go of the lock and the port.
                Err(StartError::Locked(_) | StartError::Nodes(_)) if Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(error) => panic!("{error}"),
            }
        };
        self.client = client(&running);
        self.running = Some(running);
    }

    /// Does something to its database, behind its back.
    pub async fn execute(&self, sql: &str) {
        let sql = sqlx::AssertSqlSafe(sql.to_owned());
        let changed = match &self.database {
            Some(url) => {
                let pool = sqlx::PgPool::connect(url).await.unwrap();
                sqlx::query(sql)
                    .execute(&pool)
                    .await
                    .unwrap()
                    .rows_affected()
            }
            None => {
                let path = self.dir.path().join("state/coordinator.db");
                let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
                let pool = sqlx::SqlitePool::connect_with(options).await.unwrap();
                sqlx::query(sql)
                    .execute(&pool)
                    .await
                    .unwrap()
                    .rows_affected()
            }
        };
        assert!(changed > 0);
    }

    pub async fn join_token(&self) -> String {
        let answer = self.client.post("/v1/join-tokens", &json!({})).await;
        answer.expect::<JoinTokenAnswer>(201).token
    }

    pub async fn nodes(&self) -> Vec<NodeView> {
        self.client.get("/v1/nodes").await.expect(200)
    }

    /// How many nodes have a link, to any coordinator.
    pub async fn connected(&self) -> usize {
        let nodes = self.nodes().await;
        nodes.iter().filter(|node| node.connected).count()
    }

    pub async fn rollout(&self, id: u64) -> RolloutView {
        self.client
            .get(&format!("/v1/rollouts/{id}"))
            .await
            .expect(200)
    }

    /// The rollout once `done` holds for it.
    pub async fn rollout_when(&self, id: u64, done: impl Fn(&RolloutView) -> bool) -> RolloutView {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let view = self.rollout(id).await;
            if done(&view) {
                return view;
            }
            assert!(Instant::now() < deadline, "still {view:#?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn client(running: &Running) -> Client {
    let token = std::fs::read_to_string(&running.admin_token_path).unwrap();
    Client {
        address: running.http_addr,
        token: Some(token.trim().to_owned()),
    }
}

/// Waits for a condition.
pub async fn until<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "{what} did not come about");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Someone who publishes versions of one function.
pub struct Publisher {
    pub key: SigningKey,
    pub function: FunctionName,
    pub counter: u64,
}

impl Publisher {
    /// With its tenant registered.
    pub async fn register(coordinator: &Coordinator, function: &str, seed: u8) -> Self {
        let key = SigningKey::from_bytes(&[seed; 32]);
        let function: FunctionName = function.parse().unwrap();
        let keys = TenantRequest {
            publisher_keys: vec![public(&key)],
        };
        let path = format!("/v1/tenants/{}", function.tenant);
        let answer = coordinator
            .client
            .put(&path, &serde_json::to_vec(&keys).unwrap())
            .await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        Publisher {
            key,
            function,
            counter: 0,
        }
    }

    pub fn statement(&self, counter: u64, program: &[u8], manifest: &str) -> Statement {
        let name = &self.function.function;
        let text = format!("schema = 1\n[function]\nname = \"{name}\"\n{manifest}");
        Statement {
            function: self.function.clone(),
            counter,
            artifact: Digest::of(program),
            artifact_bytes: program.len() as u64,
            manifest: Manifest::from_toml(&text).unwrap(),
            label: format!("v{counter}"),
            message: "a test".into(),
            author: "someone".into(),
            created_ms: 1_700_000_000_000,
        }
    }

    /// Puts a program and publishes it as the next version.
    pub async fn publish(&mut self, coordinator: &Coordinator, manifest: &str) -> VersionView {
        self.counter += 1;
        let program = program::elf(self.counter);
        put_artifact(&coordinator.client, &program).await;
        let statement = self.statement(self.counter, &program, manifest);
        let signed = SignedVersion::sign(&statement, &self.key);
        post_version(&coordinator.client, &self.function, &signed)
            .await
            .expect(201)
    }

    /// Starts a rollout.
    pub async fn roll_out(
        &self,
        coordinator: &Coordinator,
        version: Digest,
        waves: &[u8],
        bake_ms: u64,
    ) -> RolloutView {
        let path = format!("/v1/functions/{}/rollouts", self.function);
        let body = json!({ "version": version, "waves_percent": waves, "bake_ms": bake_ms });
        coordinator.client.post(&path, &body).await.expect(201)
    }
}

pub fn public(key: &SigningKey) -> String {
    PublisherKey(key.verifying_key().to_bytes()).to_string()
}

pub async fn put_artifact(client: &Client, bytes: &[u8]) {
    let answer = client
        .put(&format!("/v1/artifacts/{}", Digest::of(bytes)), bytes)
        .await;
    assert!([200, 201].contains(&answer.status), "{}", answer.text());
}

pub async fn post_version(
    client: &Client,
    function: &FunctionName,
    signed: &SignedVersion,
) -> http::Answer {
    let path = format!("/v1/functions/{function}/versions");
    let body = serde_json::to_value(PublishRequest::from_signed(signed)).unwrap();
    client.post(&path, &body).await
}
