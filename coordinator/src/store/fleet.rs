//! Nodes and join tokens.

use std::collections::BTreeMap;

use holm_model::configuration::Release;
use holm_model::control::Hello;
use holm_model::ids::{Digest, FunctionName, Name};
use serde::de::DeserializeOwned;

use super::error::During as _;
use super::rollouts::{Basis, Unstored, save_generation};
use super::sql::{On, query};
use super::{Store, StoreError, Turn, text, uint};
use crate::limits::MAX_NODES;

/// A node that has joined.
#[derive(Debug)]
pub(crate) struct NodeRow {
    pub(crate) name: Name,
    /// None until it has been connected once.
    pub(crate) hello: Option<Hello>,
    pub(crate) last_seen_ms: u64,
    pub(crate) drained: bool,
    /// What it keeps, if it is cordoned.
    pub(crate) cordoned: Option<Pins>,
    pub(crate) labels: BTreeMap<String, String>,
    /// Its certificate is void.
    pub(crate) revoked: bool,
    /// When the last certificate that it was given ends; none of one that joined before that was noted.
    pub(crate) certificate_until_ms: Option<u64>,
}

/// Release and previous release of each function.
pub(crate) type Pins = BTreeMap<FunctionName, (Release, Option<Release>)>;

/// What an operator wants changed about a node.
#[derive(Clone, Debug)]
pub(crate) enum NodeChange {
    /// Whether it takes no requests.
    Drained(bool),
    /// What it keeps while nothing new comes to it, or that it is as others.
    Cordoned(Option<Pins>),
    /// All of its labels.
    Labels(BTreeMap<String, String>),
    /// Its certificate is void, until a machine joins under its name again.
    Revoked,
}

/// Prescribed name, expiry, when it was used and by whom.
type TokenColumns = (Option<String>, i64, Option<i64>, Option<String>);

/// A node's certificate, as it is kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NodeCertificate {
    /// SHA-256 of all of it.
    pub(crate) digest: Digest,
    /// SHA-256 of its public key.
    pub(crate) key: Digest,
    /// When it ends.
    pub(crate) until_ms: u64,
}

/// What became of an attempt to have a certificate renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RenewOutcome {
    Renewed,
    /// The one before is not old enough.
    TooSoon,
    /// What was shown is void.
    NotItsOwn,
}

/// What became of an attempt to join.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum JoinOutcome {
    Joined,
    UnknownToken,
    UsedToken { by: String },
    ExpiredToken,
    OtherName { prescribed: Name },
    NameTaken,
    FleetFull,
}

impl Store {
    /// Stores a join token by its digest.
    pub(crate) async fn add_join_token(
        &self,
        digest: Digest,
        node: Option<&Name>,
        now_ms: u64,
        expires_ms: u64,
    ) -> Result<(), StoreError> {
        query("INSERT INTO join_tokens (digest, node, created_ms, expires_ms) VALUES (?, ?, ?, ?)")
            .bind(digest)
            .bind(node)
            .bind(now_ms)
            .bind(expires_ms)
            .execute(self.writer())
            .await
            .during("store a join token")?;
        Ok(())
    }

    /// Uses the token up and makes `node` with its certificate, or tells why not; both or neither.
    ///
    /// A name that has been in use can be had again only with a token made for that name: so an
    /// operator says that the machine was replaced.
    pub(crate) async fn join(
        &self,
        token: Digest,
        node: &Name,
        certificate: NodeCertificate,
        now_ms: u64,
    ) -> Result<JoinOutcome, StoreError> {
        const DOING: &str = "use a join token";
        let mut tx = self.write(Turn::Fleet).await?;
        let row: Option<TokenColumns> =
            query("SELECT node, expires_ms, used_ms, used_by FROM join_tokens WHERE digest = ?")
                .bind(token)
                .optional(&mut tx)
                .await
                .during(DOING)?;
        let Some((prescribed, expires_ms, used_ms, used_by)) = row else {
            return Ok(JoinOutcome::UnknownToken);
        };
        if used_ms.is_some() {
            return Ok(JoinOutcome::UsedToken {
                by: used_by.unwrap_or_default(),
            });
        }
        if uint(expires_ms) <= now_ms {
            return Ok(JoinOutcome::ExpiredToken);
        }
        let prescribed: Option<Name> = prescribed
            .map(|name| text("a join token", &name))
            .transpose()?;
        if let Some(prescribed) = prescribed.as_ref().filter(|name| *name != node) {
            return Ok(JoinOutcome::OtherName {
                prescribed: prescribed.clone(),
            });
        }
        let known: Option<(Option<String>,)> = query("SELECT hello FROM nodes WHERE name = ?")
            .bind(node)
            .optional(&mut tx)
            .await
            .during(DOING)?;
        let lived = matches!(known, Some((Some(_),)));
        if lived && prescribed.is_none() {
            return Ok(JoinOutcome::NameTaken);
        }
        let (nodes,): (i64,) = query("SELECT COUNT(*) FROM nodes WHERE revoked_ms IS NULL")
            .one(&mut tx)
            .await
            .during(DOING)?;
        if known.is_none() && uint(nodes) >= MAX_NODES as u64 {
            return Ok(JoinOutcome::FleetFull);
        }
        query("UPDATE join_tokens SET used_ms = ?, used_by = ? WHERE digest = ?")
            .bind(now_ms)
            .bind(node)
            .bind(token)
            .execute(&mut tx)
            .await
            .during(DOING)?;
        query(
            "INSERT INTO nodes (name, certificate, node_key, certificate_until_ms, joined_ms, last_seen_ms)
             VALUES (?, ?, ?, ?, ?, ?)
             ON CONFLICT (name) DO UPDATE SET certificate = excluded.certificate,
                                              node_key = excluded.node_key,
                                              renewed_ms = NULL,
                                              certificate_until_ms = excluded.certificate_until_ms,
                                              joined_ms = excluded.joined_ms,
                                              revoked_ms = NULL",
        )
        .bind(node)
        .bind(certificate.digest)
        .bind(certificate.key)
        .bind(certificate.until_ms)
        .bind(now_ms)
        .bind(now_ms)
        .execute(&mut tx)
        .await
        .during(DOING)?;
        if known.is_some() {
            // What operators have said of it holds again: whoever has read before reads anew.
            query("UPDATE counters SET value = value + 1 WHERE name = 'revision'")
                .execute(&mut tx)
                .await
                .during(DOING)?;
        }
        tx.commit(DOING).await?;
        Ok(JoinOutcome::Joined)
    }

    /// Whether `certificate`, which the fleet's authority has signed for `node`, is of the machine that joined last
    /// under that name, and not void.
    pub(crate) async fn admits(
        &self,
        node: &Name,
        certificate: NodeCertificate,
    ) -> Result<bool, StoreError> {
        query(
            "SELECT 1 FROM nodes
             WHERE name = ? AND revoked_ms IS NULL AND (certificate = ? OR node_key = ?)",
        )
        .bind(node)
        .bind(certificate.digest)
        .bind(certificate.key)
        .found(self.reader())
        .await
        .during("look up a node")
    }

    /// A node that has shown `shown` is given another certificate for the same key, until `until_ms`; unless it had
    /// one after `before_ms`.
    pub(crate) async fn renew(
        &self,
        node: &Name,
        shown: NodeCertificate,
        until_ms: u64,
        now_ms: u64,
        before_ms: u64,
    ) -> Result<RenewOutcome, StoreError> {
        let renewed = query(
            "UPDATE nodes SET node_key = ?, renewed_ms = ?, certificate_until_ms = ?
             WHERE name = ? AND revoked_ms IS NULL AND (certificate = ? OR node_key = ?)
               AND (renewed_ms IS NULL OR renewed_ms <= ?)",
        )
        .bind(shown.key)
        .bind(now_ms)
        .bind(until_ms)
        .bind(node)
        .bind(shown.digest)
        .bind(shown.key)
        .bind(before_ms)
        .execute(self.writer())
        .await
        .during("renew a node's certificate")?;
        if renewed > 0 {
            return Ok(RenewOutcome::Renewed);
        }
        Ok(match self.admits(node, shown).await? {
            true => RenewOutcome::TooSoon,
            false => RenewOutcome::NotItsOwn,
        })
    }

    /// What a node said of itself when it connected.
    pub(crate) async fn save_hello(
        &self,
        node: &Name,
        hello: &Hello,
        now_ms: u64,
    ) -> Result<(), StoreError> {
        let json = serde_json::to_string(hello)
            .map_err(|error| StoreError::corrupt("a node's hello", error))?;
        query("UPDATE nodes SET hello = ?, last_seen_ms = ? WHERE name = ?")
            .bind(json)
            .bind(now_ms)
            .bind(node)
            .execute(self.writer())
            .await
            .during("store a node")?;
        Ok(())
    }

    /// When nodes were last heard.
    pub(crate) async fn save_last_seen(&self, seen: &[(Name, u64)]) -> Result<(), StoreError> {
        let mut tx = self.write(Turn::Fleet).await?;
        for (node, last_seen_ms) in seen {
            query("UPDATE nodes SET last_seen_ms = ? WHERE name = ?")
                .bind(*last_seen_ms)
                .bind(node)
                .execute(&mut tx)
                .await
                .during("store when nodes were last seen")?;
        }
        tx.commit("store when nodes were last seen").await
    }

    /// Changes something about a node, with the generation of desired state that says so; both or
    /// neither. Whether there is such a node.
    pub(crate) async fn change_node(
        &self,
        basis: Basis,
        node: &Name,
        change: &NodeChange,
        generation: u64,
        now_ms: u64,
    ) -> Result<bool, Unstored> {
        const DOING: &str = "store what an operator says of a node";
        let json = |error| StoreError::corrupt("what an operator says of a node", error);
        let mut update = query("UPDATE nodes SET ");
        match change {
            NodeChange::Drained(drained) => update.push("drained = ").push_bind(*drained),
            NodeChange::Cordoned(pins) => {
                let pins = pins.as_ref().map(serde_json::to_string).transpose();
                update.push("cordoned = ").push_bind(pins.map_err(json)?)
            }
            NodeChange::Labels(labels) => {
                let labels = serde_json::to_string(labels).map_err(json)?;
                update.push("labels = ").push_bind(labels)
            }
            // What it was to keep nobody needs any more.
            NodeChange::Revoked => update
                .push("cordoned = NULL, revoked_ms = ")
                .push_bind(now_ms),
        };
        update
            .push(" WHERE revoked_ms IS NULL AND name = ")
            .push_bind(node);
        let mut tx = self.decide(basis).await?;
        if update.execute(&mut tx).await.during(DOING)? == 0 {
            return Ok(false);
        }
        save_generation(&mut tx, generation).await?;
        tx.commit(DOING).await?;
        Ok(true)
    }

    /// Every node that has joined, those whose certificates are void too.
    pub(crate) async fn nodes(&self) -> Result<Vec<NodeRow>, StoreError> {
        nodes(self.reader()).await
    }
}

/// Every node that has joined, those whose certificates are void too.
pub(super) async fn nodes(on: impl Into<On<'_>>) -> Result<Vec<NodeRow>, StoreError> {
    type Columns = (
        String,
        Option<String>,
        i64,
        i64,
        Option<String>,
        String,
        Option<i64>,
        Option<i64>,
    );
    let rows: Vec<Columns> = query(
        "SELECT name, hello, last_seen_ms, drained, cordoned, labels, revoked_ms, certificate_until_ms
         FROM nodes ORDER BY name",
    )
    .all(on)
    .await
    .during("list nodes")?;
    let read =
        |(name, hello, last_seen_ms, drained, cordoned, labels, revoked_ms, until_ms): Columns| {
            Ok(NodeRow {
                name: text("a node's name", &name)?,
                hello: json("a node's hello", hello.as_deref())?,
                last_seen_ms: uint(last_seen_ms),
                drained: drained != 0,
                cordoned: json("what a cordoned node keeps", cordoned.as_deref())?,
                labels: json("a node's labels", Some(&labels))?.unwrap_or_default(),
                revoked: revoked_ms.is_some(),
                certificate_until_ms: until_ms.map(uint),
            })
        };
    rows.into_iter().map(read).collect()
}

fn json<T: DeserializeOwned>(
    what: &'static str,
    text: Option<&str>,
) -> Result<Option<T>, StoreError> {
    text.map(serde_json::from_str)
        .transpose()
        .map_err(|error| StoreError::corrupt(what, error))
}
