//! Coordinators that share the database: who lives, who executes rollouts, which node is linked to
//! whom, and what nodes told.
//!
//! No clock is compared with another machine's: a coordinator lives as long as the others see its
//! `beat` rise.

use std::time::Duration;

use holm_model::control::Observed;
use holm_model::ids::{Digest, Name};

use sqlx::postgres::PgListener;
use tokio::sync::Notify;

use super::error::During as _;
use super::sql::{CHANNEL, Transaction, query};
use super::{Database, Store, StoreError, Turn, bytes32, text, uint};
use crate::limits::COORDINATOR_SILENCE;
use crate::nodes::Tallies;
use crate::rollout::Tally;

/// A coordinator at work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CoordinatorRow {
    pub(crate) id: String,
    /// Of its API.
    pub(crate) address: String,
    pub(crate) beat: u64,
}

/// What happened to a node's link on this coordinator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LinkChange {
    pub(crate) node: Name,
    pub(crate) session: u64,
    /// It is new here: whoever had the node before has it no longer.
    pub(crate) opened: bool,
    pub(crate) up: bool,
    pub(crate) stopping: bool,
    /// None until the node has told over this link.
    pub(crate) observed: Option<Observed>,
}

/// A node's link to another coordinator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LinkRow {
    pub(crate) node: Name,
    pub(crate) coordinator: String,
    pub(crate) up: bool,
    pub(crate) stopping: bool,
    pub(crate) observed: Option<Observed>,
    pub(crate) change: u64,
}

impl Store {
    /// Whether other coordinators may be at work on this database.
    pub(crate) fn is_shared(&self) -> bool {
        matches!(self.database, Database::Postgres(_))
    }

    /// Wakes `woken` whenever another coordinator has something to tell. Returns never.
    pub(crate) async fn listen(&self, woken: &Notify) {
        let Database::Postgres(pool) = &self.database else {
            return std::future::pending().await;
        };
        loop {
            if let Ok(mut listener) = PgListener::connect_with(pool).await
                && listener.listen(CHANNEL).await.is_ok()
            {
                // It connects again by itself; what was said meanwhile the next tick sees.
                while listener.recv().await.is_ok() {
                    woken.notify_one();
                }
            }
            // Ticks come without it.
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// The digest of the fleet's CA certificate; `own` if there was none until now.
    pub(crate) async fn authority(
        &self,
        own: Option<Digest>,
    ) -> Result<Option<Digest>, StoreError> {
        const DOING: &str = "look up the fleet's certificate authority";
        let mut tx = self.write(Turn::Fleet).await?;
        let found: Option<(Vec<u8>,)> = query("SELECT fingerprint FROM authority")
            .optional(&mut tx)
            .await
            .during(DOING)?;
        if let Some((bytes,)) = found {
            return bytes32("the authority's fingerprint", &bytes).map(|bytes| Some(Digest(bytes)));
        }
        if let Some(own) = own {
            query("INSERT INTO authority (fingerprint) VALUES (?)")
                .bind(own)
                .execute(&mut tx)
                .await
                .during(DOING)?;
            tx.commit(DOING).await?;
        }
        Ok(own)
    }

    /// A coordinator begins, or begins again after the others took it for dead.
    pub(crate) async fn register_coordinator(
        &self,
        id: &str,
        address: &str,
        now_ms: u64,
    ) -> Result<(), StoreError> {
        query("INSERT INTO coordinators (id, address, started_ms, beat) VALUES (?, ?, ?, 0)")
            .bind(id)
            .bind(address)
            .bind(now_ms)
            .execute(self.writer())
            .await
            .during("store a coordinator")?;
        Ok(())
    }

    /// The coordinator lives. Whether the others still think so.
    pub(crate) async fn beat(&self, id: &str) -> Result<bool, StoreError> {
        let changed = query("UPDATE coordinators SET beat = beat + 1 WHERE id = ?")
            .bind(id)
            .execute(self.writer())
            .await
            .during("store that this coordinator lives")?;
        Ok(changed == 1)
    }

    /// Who is at work, and who executes rollouts.
    pub(crate) async fn coordinators(
        &self,
    ) -> Result<(Vec<CoordinatorRow>, Option<String>), StoreError> {
        const DOING: &str = "list the coordinators";
        let rows: Vec<(String, String, i64)> =
            query("SELECT id, address, beat FROM coordinators ORDER BY started_ms, id")
                .all(self.reader())
                .await
                .during(DOING)?;
        let (holder,): (Option<String>,) =
            query("SELECT holder FROM leases WHERE name = 'rollouts'")
                .one(self.reader())
                .await
                .during(DOING)?;
        let row = |(id, address, beat)| CoordinatorRow {
            id,
            address,
            beat: uint(beat),
        };
        Ok((rows.into_iter().map(row).collect(), holder))
    }

    /// The addresses of the coordinators whose beats rise while this looks, which takes a while if there are any
    /// at all.
    pub(crate) async fn at_work(&self) -> Result<Vec<String>, StoreError> {
        let (before, _) = self.coordinators().await?;
        if before.is_empty() || !self.is_shared() {
            return Ok(Vec::new());
        }
        tokio::time::sleep(COORDINATOR_SILENCE).await;
        let (after, _) = self.coordinators().await?;
        let beat = |id: &str| before.iter().find(|row| row.id == id).map(|row| row.beat);
        let alive = after
            .into_iter()
            .filter(|row| beat(&row.id) != Some(row.beat));
        Ok(alive.map(|row| row.address).collect())
    }

    /// A coordinator that lives no longer, unless its beat has risen beyond `beat`: its links are
    /// down and its lease is free. Whether it was so.
    pub(crate) async fn bury(&self, id: &str, beat: u64) -> Result<bool, StoreError> {
        const DOING: &str = "remove a coordinator that has gone";
        let mut tx = self.write(Turn::Fleet).await?;
        let gone = query("DELETE FROM coordinators WHERE id = ? AND beat <= ?")
            .bind(id)
            .bind(beat)
            .execute(&mut tx)
            .await
            .during(DOING)?;
        if gone == 0 {
            return Ok(false);
        }
        let linked: Vec<(String,)> =
            query("SELECT node FROM links WHERE coordinator = ? AND up = 1")
                .bind(id)
                .all(&mut tx)
                .await
                .during(DOING)?;
        for (node,) in linked {
            let change = next_change(&mut tx).await?;
            query("UPDATE links SET up = 0, change = ? WHERE node = ?")
                .bind(change)
                .bind(node)
                .execute(&mut tx)
                .await
                .during(DOING)?;
        }
        tx.notify().await?;
        tx.commit(DOING).await?;
        Ok(true)
    }

    /// Takes the lease for executing rollouts if nobody else who is at work holds it. Returns its
    /// token, which no holder before had.
    pub(crate) async fn take_lease(&self, id: &str) -> Result<Option<u64>, StoreError> {
        const DOING: &str = "take the lease for rollouts";
        let mut tx = self.write(Turn::Rollouts).await?;
        let token: Option<(i64,)> = query(
            "UPDATE leases SET holder = ?, token = token + 1
             WHERE name = 'rollouts'
               AND (holder IS NULL OR holder = ? OR holder NOT IN (SELECT id FROM coordinators))
             RETURNING token",
        )
        .bind(id)
        .bind(id)
        .optional(&mut tx)
        .await
        .during(DOING)?;
        tx.commit(DOING).await?;
        Ok(token.map(|(token,)| uint(token)))
    }

    /// Stores what happened to links. Returns the nodes that another coordinator has got since.
    pub(crate) async fn save_links(
        &self,
        id: &str,
        changes: &[LinkChange],
    ) -> Result<Vec<Name>, StoreError> {
        const DOING: &str = "store nodes' links";
        let mut tx = self.write(Turn::Fleet).await?;
        let mut lost = Vec::new();
        for link in changes {
            let observed = link
                .observed
                .as_ref()
                .map(serde_json::to_string)
                .transpose();
            let observed =
                observed.map_err(|error| StoreError::corrupt("what a node has", error))?;
            let change = next_change(&mut tx).await?;
            let sql = match link.opened {
                true => {
                    "INSERT INTO links (up, stopping, observed, change, node, coordinator, session)
                     VALUES (?, ?, ?, ?, ?, ?, ?)
                     ON CONFLICT (node) DO UPDATE SET
                         up = excluded.up, stopping = excluded.stopping,
                         observed = excluded.observed, change = excluded.change,
                         coordinator = excluded.coordinator, session = excluded.session"
                }
                false => {
                    "UPDATE links SET up = ?, stopping = ?, observed = ?, change = ?
                     WHERE node = ? AND coordinator = ? AND session = ?"
                }
            };
            let stored = query(sql)
                .bind(link.up)
                .bind(link.stopping)
                .bind(observed)
                .bind(change)
                .bind(&link.node)
                .bind(id)
                .bind(link.session)
                .execute(&mut tx)
                .await
                .during(DOING)?;
            if stored == 0 {
                lost.push(link.node.clone());
            }
        }
        tx.notify().await?;
        tx.commit(DOING).await?;
        Ok(lost)
    }

    /// Links to other coordinators than `id` that have changed since change `after`, in order.
    pub(crate) async fn links_since(
        &self,
        id: &str,
        after: u64,
    ) -> Result<Vec<LinkRow>, StoreError> {
        type Columns = (String, String, i64, i64, Option<String>, i64);
        let rows: Vec<Columns> = query(
            "SELECT node, coordinator, up, stopping, observed, change FROM links
             WHERE change > ? AND coordinator <> ? ORDER BY change",
        )
        .bind(after)
        .bind(id)
        .all(self.reader())
        .await
        .during("list nodes' links")?;
        let row = |(node, coordinator, up, stopping, observed, change): Columns| {
            let observed = observed.as_deref().map(serde_json::from_str).transpose();
            Ok(LinkRow {
                node: text("a node's name", &node)?,
                coordinator,
                up: up != 0,
                stopping: stopping != 0,
                observed: observed
                    .map_err(|error| StoreError::corrupt("what a node has", error))?,
                change: uint(change),
            })
        };
        rows.into_iter().map(row).collect()
    }

    /// Leaves outcomes for the coordinator that executes rollouts.
    pub(crate) async fn leave_tallies(&self, tallies: &Tallies) -> Result<(), StoreError> {
        const DOING: &str = "store outcomes";
        let mut tx = self.write(Turn::Fleet).await?;
        for ((function, version), nodes) in tallies {
            for (node, tally) in nodes {
                let counted = serde_json::to_string(tally)
                    .map_err(|error| StoreError::corrupt("outcomes", error))?;
                query(
                    "INSERT INTO gate_counts (function, version, node, counted) VALUES (?, ?, ?, ?)",
                )
                .bind(function.to_string())
                .bind(*version)
                .bind(node)
                .bind(counted)
                .execute(&mut tx)
                .await
                .during(DOING)?;
            }
        }
        tx.notify().await?;
        tx.commit(DOING).await
    }

    /// Takes the outcomes that others have left.
    pub(crate) async fn take_tallies(&self) -> Result<Tallies, StoreError> {
        type Columns = (String, Vec<u8>, String, String);
        let rows: Vec<Columns> =
            query("DELETE FROM gate_counts RETURNING function, version, node, counted")
                .all(self.writer())
                .await
                .during("take outcomes")?;
        let mut tallies = Tallies::new();
        for (function, version, node, counted) in rows {
            let version = Digest(bytes32("a version's id", &version)?);
            let tally: Tally = serde_json::from_str(&counted)
                .map_err(|error| StoreError::corrupt("outcomes", error))?;
            let nodes = tallies.entry((text("a function's name", &function)?, version));
            let of_node = nodes.or_default().entry(text("a node's name", &node)?);
            of_node.or_default().add(&tally);
        }
        Ok(tallies)
    }
}

async fn next_change(tx: &mut Transaction) -> Result<u64, StoreError> {
    let (change,): (i64,) =
        query("UPDATE counters SET value = value + 1 WHERE name = 'link_change' RETURNING value")
            .one(tx)
            .await
            .during("number a change")?;
    Ok(uint(change))
}
