//! Tenants, functions and versions.

use std::collections::BTreeMap;

use holm_model::api::VersionView;
use holm_model::artifact::{PublisherKey, SignedVersion, Statement};
use holm_model::ids::{Digest, FunctionName, Name, VersionId};

use super::error::During as _;
use super::sql::{On, query};
use super::{Store, StoreError, Turn, bytes32, int, text, uint};
use crate::limits::{LOOKUP_CHUNK_ROWS, MAX_LISTED_VERSIONS, MAX_PUBLISHER_KEYS};
use crate::rollout::Version;

/// A function and what the fleet is on.
#[derive(Clone, Debug)]
pub(crate) struct FunctionRow {
    pub(crate) name: FunctionName,
    pub(crate) current: Option<VersionId>,
    pub(crate) fallback: Option<VersionId>,
}

/// A version to be stored, already verified.
#[derive(Debug)]
pub(crate) struct NewVersion<'a> {
    pub(crate) id: VersionId,
    pub(crate) signed: &'a SignedVersion,
    pub(crate) statement: &'a Statement,
}

/// What became of a version that was to be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PublishOutcome {
    Stored,
    Known,
    /// Its counter is not above that of the newest version.
    CounterTooLow {
        highest: u64,
    },
}

/// Name, current and fallback.
type FunctionColumns = (String, Option<Vec<u8>>, Option<Vec<u8>>);

/// What [`select`] gives.
type VersionColumns = (Vec<u8>, String, String, i64, String, i64, Vec<u8>);

fn view(row: VersionColumns) -> Result<VersionView, StoreError> {
    let (id, function, label, counter, message, created_ms, content) = row;
    Ok(VersionView {
        version: Digest(bytes32("a version's id", &id)?),
        function: text("a function's name", &function)?,
        label,
        counter: uint(counter),
        message,
        created_ms: uint(created_ms),
        content: Digest(bytes32("a version's content", &content)?),
    })
}

impl Store {
    /// Makes the tenant if it is new, adds `keys` to it, and returns all of its keys; none if that
    /// would be more than [`MAX_PUBLISHER_KEYS`].
    pub(crate) async fn add_to_tenant(
        &self,
        tenant: &Name,
        keys: &[PublisherKey],
        now_ms: u64,
    ) -> Result<Option<Vec<PublisherKey>>, StoreError> {
        const DOING: &str = "store a tenant";
        let mut tx = self.write(Turn::Registry).await?;
        query("INSERT INTO tenants (name, created_ms) VALUES (?, ?) ON CONFLICT DO NOTHING")
            .bind(tenant)
            .bind(now_ms)
            .execute(&mut tx)
            .await
            .during(DOING)?;
        for key in keys {
            query(
                "INSERT INTO publisher_keys (tenant, key, added_ms) VALUES (?, ?, ?)
                 ON CONFLICT DO NOTHING",
            )
            .bind(tenant)
            .bind(&key.0[..])
            .bind(now_ms)
            .execute(&mut tx)
            .await
            .during(DOING)?;
        }
        let rows = keys_of(&mut tx, tenant).await.during(DOING)?;
        if rows.len() > MAX_PUBLISHER_KEYS {
            return Ok(None);
        }
        tx.commit(DOING).await?;
        read_keys(rows).map(Some)
    }

    /// The tenant's keys, if there is such a tenant.
    pub(crate) async fn tenant_keys(
        &self,
        tenant: &Name,
    ) -> Result<Option<Vec<PublisherKey>>, StoreError> {
        const DOING: &str = "look up a tenant";
        let known = query("SELECT 1 FROM tenants WHERE name = ?")
            .bind(tenant)
            .found(self.reader())
            .await
            .during(DOING)?;
        if !known {
            return Ok(None);
        }
        let rows = keys_of(self.reader(), tenant).await.during(DOING)?;
        read_keys(rows).map(Some)
    }

    /// Stores a version, and its function if it is the first.
    pub(crate) async fn publish(
        &self,
        version: NewVersion<'_>,
        now_ms: u64,
    ) -> Result<PublishOutcome, StoreError> {
        const DOING: &str = "store a version";
        let NewVersion {
            id,
            signed,
            statement,
        } = version;
        let function = statement.function.to_string();
        let mut tx = self.write(Turn::Registry).await?;
        let known = query("SELECT 1 FROM versions WHERE id = ?")
            .bind(id)
            .found(&mut tx)
            .await
            .during(DOING)?;
        if known {
            return Ok(PublishOutcome::Known);
        }
        let (highest,): (Option<i64>,) =
            query("SELECT MAX(counter) FROM versions WHERE function = ?")
                .bind(function.clone())
                .one(&mut tx)
                .await
                .during(DOING)?;
        if let Some(highest) = highest.filter(|highest| int(statement.counter) <= *highest) {
            return Ok(PublishOutcome::CounterTooLow {
                highest: uint(highest),
            });
        }
        query("INSERT INTO functions (name, tenant) VALUES (?, ?) ON CONFLICT DO NOTHING")
            .bind(function.clone())
            .bind(&statement.function.tenant)
            .execute(&mut tx)
            .await
            .during(DOING)?;
        query(
            "INSERT INTO versions (id, function, counter, artifact, label, message, content,
                                   created_ms, statement, key, signature, published_ms)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(id)
        .bind(function)
        .bind(statement.counter)
        .bind(statement.artifact)
        .bind(statement.label.as_str())
        .bind(statement.message.as_str())
        .bind(statement.content())
        .bind(statement.created_ms)
        .bind(&signed.statement[..])
        .bind(&signed.key.0[..])
        .bind(&signed.signature[..])
        .bind(now_ms)
        .execute(&mut tx)
        .await
        .during(DOING)?;
        tx.commit(DOING).await?;
        Ok(PublishOutcome::Stored)
    }

    /// A version with its signed bytes.
    pub(crate) async fn version(&self, id: VersionId) -> Result<Option<Version>, StoreError> {
        let row: Option<(Vec<u8>, Vec<u8>, Vec<u8>)> =
            query("SELECT statement, key, signature FROM versions WHERE id = ?")
                .bind(id)
                .optional(self.reader())
                .await
                .during("look up a version")?;
        let Some((statement, key, signature)) = row else {
            return Ok(None);
        };
        let key = PublisherKey(bytes32("a publisher's key", &key)?);
        let parsed = serde_json::from_slice(&statement)
            .map_err(|error| StoreError::corrupt("a version's statement", error))?;
        Ok(Some(Version {
            id,
            signed: SignedVersion {
                statement,
                key,
                signature,
            },
            statement: parsed,
        }))
    }

    /// A version for people.
    pub(crate) async fn version_view(
        &self,
        id: VersionId,
    ) -> Result<Option<VersionView>, StoreError> {
        let sql = select("FROM versions WHERE id = ?");
        let row: Option<VersionColumns> = query(sql)
            .bind(id)
            .optional(self.reader())
            .await
            .during("look up a version")?;
        row.map(view).transpose()
    }

    /// The versions of a function, newest first.
    pub(crate) async fn versions_of(
        &self,
        function: &FunctionName,
    ) -> Result<Vec<VersionView>, StoreError> {
        let sql = select("FROM versions WHERE function = ? ORDER BY counter DESC LIMIT ?");
        let rows: Vec<VersionColumns> = query(sql)
            .bind(function.to_string())
            .bind(MAX_LISTED_VERSIONS)
            .all(self.reader())
            .await
            .during("list versions")?;
        rows.into_iter().map(view).collect()
    }

    /// The labels of those of `ids` that are known.
    pub(crate) async fn labels(
        &self,
        ids: &[VersionId],
    ) -> Result<BTreeMap<VersionId, String>, StoreError> {
        const DOING: &str = "look up labels";
        let mut rows: Vec<(Vec<u8>, String)> = Vec::new();
        for some in ids.chunks(LOOKUP_CHUNK_ROWS) {
            let mut labels = query("SELECT id, label FROM versions WHERE id IN ");
            labels.push_row(some.iter().map(|id| (*id).into()));
            rows.extend(labels.all(self.reader()).await.during(DOING)?);
        }
        rows.into_iter()
            .map(|(id, label)| Ok((Digest(bytes32("a version's id", &id)?), label)))
            .collect()
    }

    /// Every function by name.
    pub(crate) async fn functions(&self) -> Result<Vec<FunctionRow>, StoreError> {
        functions(self.reader()).await
    }

    /// One function.
    pub(crate) async fn function(
        &self,
        name: &FunctionName,
    ) -> Result<Option<FunctionRow>, StoreError> {
        let row: Option<FunctionColumns> =
            query("SELECT name, current, fallback FROM functions WHERE name = ?")
                .bind(name.to_string())
                .optional(self.reader())
                .await
                .during("look up a function")?;
        row.map(function_row).transpose()
    }

    /// Whether a version names the artifact.
    pub(crate) async fn names_artifact(&self, artifact: Digest) -> Result<bool, StoreError> {
        query("SELECT 1 FROM versions WHERE artifact = ? LIMIT 1")
            .bind(artifact)
            .found(self.reader())
            .await
            .during("look up an artifact")
    }
}

/// A tenant's keys, the oldest first.
async fn keys_of(on: impl Into<On<'_>>, tenant: &Name) -> Result<Vec<(Vec<u8>,)>, sqlx::Error> {
    query("SELECT key FROM publisher_keys WHERE tenant = ? ORDER BY added_ms, key")
        .bind(tenant)
        .all(on)
        .await
}

/// Every function by name.
pub(super) async fn functions(on: impl Into<On<'_>>) -> Result<Vec<FunctionRow>, StoreError> {
    let rows: Vec<FunctionColumns> =
        query("SELECT name, current, fallback FROM functions ORDER BY name")
            .all(on)
            .await
            .during("list functions")?;
    rows.into_iter().map(function_row).collect()
}

/// Every tenant's keys.
pub(super) async fn all_keys(
    on: impl Into<On<'_>>,
) -> Result<BTreeMap<Name, Vec<PublisherKey>>, StoreError> {
    let rows: Vec<(String, Vec<u8>)> =
        query("SELECT tenant, key FROM publisher_keys ORDER BY tenant, added_ms, key")
            .all(on)
            .await
            .during("list publishers' keys")?;
    let mut keys = BTreeMap::<Name, Vec<PublisherKey>>::new();
    for (tenant, key) in rows {
        let key = PublisherKey(bytes32("a publisher's key", &key)?);
        keys.entry(text("a tenant's name", &tenant)?)
            .or_default()
            .push(key);
    }
    Ok(keys)
}

/// A query for [`VersionColumns`]; both parts are constants of this file.
fn select(rest: &'static str) -> String {
    format!("SELECT id, function, label, counter, message, created_ms, content {rest}")
}

fn read_keys(rows: Vec<(Vec<u8>,)>) -> Result<Vec<PublisherKey>, StoreError> {
    let read = |(bytes,): (Vec<u8>,)| bytes32("a publisher's key", &bytes).map(PublisherKey);
    rows.into_iter().map(read).collect()
}

fn function_row((name, current, fallback): FunctionColumns) -> Result<FunctionRow, StoreError> {
    let id = |bytes: Option<Vec<u8>>| {
        bytes
            .map(|bytes| bytes32("a version's id", &bytes).map(Digest))
            .transpose()
    };
    Ok(FunctionRow {
        name: text("a function's name", &name)?,
        current: id(current)?,
        fallback: id(fallback)?,
    })
}
