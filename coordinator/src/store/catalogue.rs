//! Tenants, functions and versions.

use std::collections::BTreeMap;

use holm_model::api::VersionView;
use holm_model::artifact::{PublisherKey, SignedVersion, Statement};
use holm_model::configuration::Release;
use holm_model::ids::{Digest, FunctionName, Name, VersionId};

use super::error::During as _;
use super::rollouts::{Basis, Unstored, save_generation};
use super::sql::{On, query};
use super::{Store, StoreError, Turn, artifacts, bytes32, configurations, int, text, uint};
use crate::limits::{
    LOOKUP_CHUNK_ROWS, MAX_KEYS_EVER, MAX_LISTED_VERSIONS, MAX_PUBLISHER_KEYS, MAX_TAGS,
};
use crate::rollout::Version;

/// A function and what the fleet is on.
#[derive(Clone, Debug)]
pub(crate) struct FunctionRow {
    pub(crate) name: FunctionName,
    pub(crate) current: Option<Release>,
    pub(crate) fallback: Option<Release>,
}

/// A version to be stored, already verified.
#[derive(Debug)]
pub(crate) struct NewVersion<'a> {
    pub(crate) id: VersionId,
    pub(crate) signed: &'a SignedVersion,
    pub(crate) statement: &'a Statement,
}

/// A publisher's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KeyRow {
    pub(crate) key: PublisherKey,
    /// From when on nothing new that it signs gets in; may be yet to come.
    pub(crate) revoked_ms: Option<u64>,
}

impl KeyRow {
    /// Whether what it signs gets in.
    pub(crate) fn holds(&self, now_ms: u64) -> bool {
        self.revoked_ms.is_none_or(|revoked_ms| now_ms < revoked_ms)
    }

    /// Whether it is `key`, and nothing new that it signs gets in.
    pub(crate) fn refuses(&self, key: &PublisherKey, now_ms: u64) -> bool {
        self.key == *key && !self.holds(now_ms)
    }
}

/// What is to become of a tenant's keys.
#[derive(Clone, Debug)]
pub(crate) enum KeyChange {
    /// The tenant is made if it is new.
    Add(Vec<PublisherKey>),
    /// An earlier time may follow on a later one, but not the other way round.
    Revoke { key: PublisherKey, from_ms: u64 },
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum KeysOutcome {
    Are {
        rows: Vec<KeyRow>,
        /// Those that were not there before.
        added: Vec<PublisherKey>,
        changed: bool,
    },
    TooMany,
    /// One that was revoked does not come back.
    Revoked(PublisherKey),
    /// The tenant has no such key, or there is no such tenant.
    Unknown,
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
    /// It was here, and was removed.
    Removed,
    /// The key that signed it was revoked meanwhile.
    KeyRevoked,
    /// Its artifact has gone since it was checked.
    ArtifactGone,
}

/// What became of a tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TagOutcome {
    Set,
    /// The function has no such version.
    UnknownVersion,
    TooMany,
}

/// Name, and version and configuration of current and fallback.
type FunctionColumns = (String, Option<Vec<u8>>, Vec<u8>, Option<Vec<u8>>, Vec<u8>);

const FUNCTION_COLUMNS: &str =
    "SELECT name, current, current_configuration, fallback, fallback_configuration FROM functions";

/// What [`select`] gives.
type VersionColumns = (
    Vec<u8>,
    String,
    String,
    i64,
    String,
    i64,
    Vec<u8>,
    String,
    Option<i64>,
);

/// Without its tags.
fn view(row: VersionColumns) -> Result<VersionView, StoreError> {
    let (id, function, label, counter, message, created_ms, content, author, removed_ms) = row;
    Ok(VersionView {
        version: Digest(bytes32("a version's id", &id)?),
        function: text("a function's name", &function)?,
        label,
        counter: uint(counter),
        message,
        author,
        tags: Vec::new(),
        removed: removed_ms.is_some(),
        created_ms: uint(created_ms),
        content: Digest(bytes32("a version's content", &content)?),
    })
}

impl Store {
    /// Changes a tenant's keys together with the generation of desired state by which nodes learn it.
    pub(crate) async fn change_keys(
        &self,
        basis: Basis,
        tenant: &Name,
        change: &KeyChange,
        generation: u64,
        now_ms: u64,
    ) -> Result<KeysOutcome, Unstored> {
        const DOING: &str = "store a tenant's keys";
        let mut tx = self.decide(basis).await?;
        // Nothing is published meanwhile.
        tx.take(Turn::Registry).await?;
        let (mut changed, mut added) = (0, Vec::new());
        match change {
            KeyChange::Add(keys) => {
                changed += query(
                    "INSERT INTO tenants (name, created_ms) VALUES (?, ?) ON CONFLICT DO NOTHING",
                )
                .bind(tenant)
                .bind(now_ms)
                .execute(&mut tx)
                .await
                .during(DOING)?;
                for key in keys {
                    let new = query(
                        "INSERT INTO publisher_keys (tenant, key, added_ms) VALUES (?, ?, ?)
                         ON CONFLICT DO NOTHING",
                    )
                    .bind(tenant)
                    .bind(&key.0[..])
                    .bind(now_ms)
                    .execute(&mut tx)
                    .await
                    .during(DOING)?;
                    if new > 0 {
                        added.push(*key);
                    }
                    changed += new;
                }
            }
            KeyChange::Revoke { key, from_ms } => {
                changed += query(
                    "UPDATE publisher_keys SET revoked_ms = ?
                     WHERE tenant = ? AND key = ? AND (revoked_ms IS NULL OR revoked_ms > ?)",
                )
                .bind(*from_ms)
                .bind(tenant)
                .bind(&key.0[..])
                .bind(*from_ms)
                .execute(&mut tx)
                .await
                .during(DOING)?;
            }
        }
        let rows = keys_of(&mut tx, tenant).await?;
        let find = |key: &PublisherKey| rows.iter().find(|row| row.key == *key);
        match change {
            KeyChange::Add(keys) => {
                let revoked =
                    |key: &&PublisherKey| find(key).is_some_and(|row| row.revoked_ms.is_some());
                if let Some(revoked) = keys.iter().find(revoked) {
                    return Ok(KeysOutcome::Revoked(*revoked));
                }
            }
            KeyChange::Revoke { key, .. } => {
                if find(key).is_none() {
                    return Ok(KeysOutcome::Unknown);
                }
            }
        }
        let valid = rows.iter().filter(|row| row.revoked_ms.is_none()).count();
        if valid > MAX_PUBLISHER_KEYS || rows.len() > MAX_KEYS_EVER {
            return Ok(KeysOutcome::TooMany);
        }
        if changed > 0 {
            save_generation(&mut tx, generation).await?;
            tx.commit(DOING).await?;
        }
        Ok(KeysOutcome::Are {
            rows,
            added,
            changed: changed > 0,
        })
    }

    /// The tenant's keys, revoked ones too, if there is such a tenant.
    pub(crate) async fn tenant_keys(
        &self,
        tenant: &Name,
    ) -> Result<Option<Vec<KeyRow>>, StoreError> {
        const DOING: &str = "look up a tenant";
        let known = query("SELECT 1 FROM tenants WHERE name = ?")
            .bind(tenant)
            .found(self.reader())
            .await
            .during(DOING)?;
        match known {
            true => keys_of(self.reader(), tenant).await.map(Some),
            false => Ok(None),
        }
    }

    /// Stores a version whose artifact is here, and its function if it is the first.
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
        let known: Option<(Option<i64>,)> = query("SELECT removed_ms FROM versions WHERE id = ?")
            .bind(id)
            .optional(&mut tx)
            .await
            .during(DOING)?;
        match known {
            Some((None,)) => return Ok(PublishOutcome::Known),
            Some((Some(_),)) => return Ok(PublishOutcome::Removed),
            None => {}
        }
        let keys = keys_of(&mut tx, &statement.function.tenant).await?;
        if !keys
            .iter()
            .any(|row| row.key == signed.key && row.holds(now_ms))
        {
            return Ok(PublishOutcome::KeyRevoked);
        }
        if !artifacts::is_complete(&mut tx, statement.artifact).await? {
            return Ok(PublishOutcome::ArtifactGone);
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
                                   created_ms, statement, key, signature, published_ms, author)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
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
        .bind(statement.author.as_str())
        .execute(&mut tx)
        .await
        .during(DOING)?;
        tx.commit(DOING).await?;
        Ok(PublishOutcome::Stored)
    }

    /// A version with its signed bytes, unless it was removed.
    pub(crate) async fn version(&self, id: VersionId) -> Result<Option<Version>, StoreError> {
        let row: Option<(Vec<u8>, Vec<u8>, Vec<u8>)> = query(
            "SELECT statement, key, signature FROM versions WHERE id = ? AND removed_ms IS NULL",
        )
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

    /// Versions for people, also such as were removed, as far as they are known.
    pub(crate) async fn version_views(
        &self,
        ids: &[VersionId],
    ) -> Result<BTreeMap<VersionId, VersionView>, StoreError> {
        const DOING: &str = "look up versions";
        let mut views = BTreeMap::new();
        for some in ids.chunks(LOOKUP_CHUNK_ROWS) {
            let mut versions = query(select("FROM versions WHERE id IN "));
            versions.push_row(some.iter().map(|id| (*id).into()));
            let versions: Vec<VersionColumns> = versions.all(self.reader()).await.during(DOING)?;
            for row in versions {
                let view = view(row)?;
                views.insert(view.version, view);
            }
            let mut tags = query("SELECT version, tag FROM tags WHERE version IN ");
            tags.push_row(some.iter().map(|id| (*id).into()));
            tags.push(" ORDER BY tag");
            let tags: Vec<(Vec<u8>, String)> = tags.all(self.reader()).await.during(DOING)?;
            for (id, tag) in tags {
                let id = Digest(bytes32("a version's id", &id)?);
                views.entry(id).and_modify(|view| view.tags.push(tag));
            }
        }
        Ok(views)
    }

    /// A version for people, also one that was removed.
    pub(crate) async fn version_view(
        &self,
        id: VersionId,
    ) -> Result<Option<VersionView>, StoreError> {
        Ok(self.version_views(&[id]).await?.remove(&id))
    }

    /// Adds the tags of versions of one function.
    async fn add_tags(&self, views: &mut [VersionView]) -> Result<(), StoreError> {
        let Some(first) = views.first() else {
            return Ok(());
        };
        let rows: Vec<(Vec<u8>, String)> =
            query("SELECT version, tag FROM tags WHERE function = ? ORDER BY tag")
                .bind(first.function.to_string())
                .all(self.reader())
                .await
                .during("list tags")?;
        for (id, tag) in rows {
            let named = views.iter_mut().filter(|view| view.version.0[..] == id[..]);
            for view in named {
                view.tags.push(tag.clone());
            }
        }
        Ok(())
    }

    /// Has `tag` name `version`, and no other version of the function.
    pub(crate) async fn set_tag(
        &self,
        function: &FunctionName,
        tag: &str,
        version: VersionId,
        now_ms: u64,
    ) -> Result<TagOutcome, StoreError> {
        const DOING: &str = "store a tag";
        // The turn of who removes versions.
        let mut tx = self.write(Turn::Rollouts).await?;
        let known =
            query("SELECT 1 FROM versions WHERE id = ? AND function = ? AND removed_ms IS NULL")
                .bind(version)
                .bind(function.to_string())
                .found(&mut tx)
                .await
                .during(DOING)?;
        if !known {
            return Ok(TagOutcome::UnknownVersion);
        }
        query(
            "INSERT INTO tags (function, tag, version, set_ms) VALUES (?, ?, ?, ?)
             ON CONFLICT (function, tag) DO UPDATE SET version = excluded.version,
                                                       set_ms = excluded.set_ms",
        )
        .bind(function.to_string())
        .bind(tag)
        .bind(version)
        .bind(now_ms)
        .execute(&mut tx)
        .await
        .during(DOING)?;
        let (tags,): (i64,) = query("SELECT COUNT(*) FROM tags WHERE function = ?")
            .bind(function.to_string())
            .one(&mut tx)
            .await
            .during(DOING)?;
        if uint(tags) > MAX_TAGS {
            return Ok(TagOutcome::TooMany);
        }
        tx.commit(DOING).await?;
        Ok(TagOutcome::Set)
    }

    /// Takes a tag off; whether there was one.
    pub(crate) async fn remove_tag(
        &self,
        function: &FunctionName,
        tag: &str,
    ) -> Result<bool, StoreError> {
        let removed = query("DELETE FROM tags WHERE function = ? AND tag = ?")
            .bind(function.to_string())
            .bind(tag)
            .execute(self.writer())
            .await
            .during("remove a tag")?;
        Ok(removed > 0)
    }

    /// The versions of a function, newest first.
    pub(crate) async fn versions_of(
        &self,
        function: &FunctionName,
    ) -> Result<Vec<VersionView>, StoreError> {
        let sql = select(
            "FROM versions WHERE function = ? AND removed_ms IS NULL
             ORDER BY counter DESC LIMIT ?",
        );
        let rows: Vec<VersionColumns> = query(sql)
            .bind(function.to_string())
            .bind(MAX_LISTED_VERSIONS)
            .all(self.reader())
            .await
            .during("list versions")?;
        let mut views: Vec<_> = rows.into_iter().map(view).collect::<Result<_, _>>()?;
        self.add_tags(&mut views).await?;
        Ok(views)
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
        let row: Option<FunctionColumns> = query(format!("{FUNCTION_COLUMNS} WHERE name = ?"))
            .bind(name.to_string())
            .optional(self.reader())
            .await
            .during("look up a function")?;
        row.map(function_row).transpose()
    }

    /// Whether a version names the artifact that is none of `those`.
    pub(crate) async fn names_artifact_beside(
        &self,
        artifact: Digest,
        those: &[VersionId],
    ) -> Result<bool, StoreError> {
        let named: Vec<(Vec<u8>,)> =
            query("SELECT id FROM versions WHERE artifact = ? AND removed_ms IS NULL")
                .bind(artifact)
                .all(self.reader())
                .await
                .during("look up an artifact")?;
        let one_of_those = |id: &[u8]| those.iter().any(|those| those.0[..] == *id);
        Ok(named.iter().any(|(id,)| !one_of_those(id)))
    }
}

/// Whether a version that was not removed names the artifact.
pub(super) async fn names_artifact(
    on: impl Into<On<'_>>,
    artifact: Digest,
) -> Result<bool, StoreError> {
    query("SELECT 1 FROM versions WHERE artifact = ? AND removed_ms IS NULL LIMIT 1")
        .bind(artifact)
        .found(on)
        .await
        .during("look up an artifact")
}

/// A tenant's keys, the oldest first.
pub(super) async fn keys_of(
    on: impl Into<On<'_>>,
    tenant: &Name,
) -> Result<Vec<KeyRow>, StoreError> {
    let rows: Vec<(Vec<u8>, Option<i64>)> =
        query("SELECT key, revoked_ms FROM publisher_keys WHERE tenant = ? ORDER BY added_ms, key")
            .bind(tenant)
            .all(on)
            .await
            .during("look up a tenant's keys")?;
    let read = |(bytes, revoked_ms): (Vec<u8>, Option<i64>)| {
        Ok(KeyRow {
            key: PublisherKey(bytes32("a publisher's key", &bytes)?),
            revoked_ms: revoked_ms.map(uint),
        })
    };
    rows.into_iter().map(read).collect()
}

/// Every function by name.
pub(super) async fn functions(on: impl Into<On<'_>>) -> Result<Vec<FunctionRow>, StoreError> {
    let rows: Vec<FunctionColumns> = query(format!("{FUNCTION_COLUMNS} ORDER BY name"))
        .all(on)
        .await
        .during("list functions")?;
    rows.into_iter().map(function_row).collect()
}

/// Every tenant's keys, without those that are revoked or are to be.
pub(super) async fn all_keys(
    on: impl Into<On<'_>>,
) -> Result<BTreeMap<Name, Vec<PublisherKey>>, StoreError> {
    let rows: Vec<(String, Vec<u8>)> =
        query("SELECT tenant, key FROM publisher_keys WHERE revoked_ms IS NULL ORDER BY tenant, added_ms, key")
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
    format!(
        "SELECT id, function, label, counter, message, created_ms, content, author, removed_ms
         {rest}"
    )
}

fn function_row(columns: FunctionColumns) -> Result<FunctionRow, StoreError> {
    let (name, current, current_configuration, fallback, fallback_configuration) = columns;
    let of = |version: Option<Vec<u8>>, configuration: &[u8]| {
        version
            .map(|version| configurations::release(&version, configuration))
            .transpose()
    };
    Ok(FunctionRow {
        name: text("a function's name", &name)?,
        current: of(current, &current_configuration)?,
        fallback: of(fallback, &fallback_configuration)?,
    })
}
