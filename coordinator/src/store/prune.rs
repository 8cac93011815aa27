//! Which versions may go, and letting them go.
//!
//! A version stays while anything may need it: it is one of the newest, the fleet is on it or may go
//! back to it, a rollout that has not ended is about it, a tag names it, or a node has it. Of a version
//! that goes its row stays, for the history of rollouts and so that its counter is never used again;
//! its statement goes, and so does its artifact if no other version has the same.

use std::collections::{BTreeMap, BTreeSet};

use holm_model::configuration::Release;
use holm_model::ids::{Digest, FunctionName, Name, VersionId};

use super::error::During as _;
use super::fleet::nodes;
use super::rollouts::{Basis, Unstored, open_rollouts, queued_rollouts, release_before};
use super::sql::{Transaction, query};
use super::{Store, StoreError, bytes32, catalogue};

/// What is to be looked at.
#[derive(Clone, Debug)]
pub(crate) struct PruneWish {
    /// Of this function alone.
    pub(crate) function: Option<FunctionName>,
    /// As many of the newest of each function stay in any case; at least one.
    pub(crate) keep: u64,
    /// What nodes say that they have.
    pub(crate) held: BTreeMap<VersionId, BTreeSet<Name>>,
}

/// What becomes of one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fate {
    pub(crate) version: VersionId,
    pub(crate) artifact: Digest,
    /// Why it stays; it goes if there is nothing.
    pub(crate) why: Vec<String>,
}

impl Fate {
    pub(crate) fn goes(&self) -> bool {
        self.why.is_empty()
    }
}

impl Store {
    /// What would become of every version.
    pub(crate) async fn fates(&self, wish: &PruneWish) -> Result<Vec<Fate>, StoreError> {
        let mut tx = self.read().await?;
        fates(&mut tx, wish).await
    }

    /// Removes what nobody may need, as it is decided at this moment; returns what became of every
    /// version. The artifacts are the caller's to remove.
    pub(crate) async fn prune(
        &self,
        basis: Basis,
        wish: &PruneWish,
        now_ms: u64,
    ) -> Result<Vec<Fate>, Unstored> {
        const DOING: &str = "remove versions";
        let mut tx = self.decide(basis).await?;
        let fates = fates(&mut tx, wish).await?;
        for fate in fates.iter().filter(|fate| fate.goes()) {
            query("UPDATE versions SET removed_ms = ?, statement = ? WHERE id = ?")
                .bind(now_ms)
                .bind(&[][..])
                .bind(fate.version)
                .execute(&mut tx)
                .await
                .during(DOING)?;
        }
        tx.commit(DOING).await?;
        Ok(fates)
    }
}

async fn fates(tx: &mut Transaction, wish: &PruneWish) -> Result<Vec<Fate>, StoreError> {
    const DOING: &str = "look for versions that may go";
    let open = open_rollouts(tx).await?;
    let queued = queued_rollouts(tx).await?;
    let tags: Vec<(Vec<u8>, String)> = query("SELECT version, tag FROM tags ORDER BY tag")
        .all(&mut *tx)
        .await
        .during(DOING)?;
    let cordoned = nodes(&mut *tx).await?.into_iter();
    let cordoned: Vec<_> = cordoned
        .filter(|row| !row.revoked)
        .filter_map(|row| Some((row.name, row.cordoned?)))
        .collect();
    let mut all = Vec::new();
    for function in catalogue::functions(&mut *tx).await? {
        if wish
            .function
            .as_ref()
            .is_some_and(|own| *own != function.name)
        {
            continue;
        }
        let before = match function.current {
            Some(current) => release_before(&mut *tx, &function.name, current).await?,
            None => None,
        };
        let versions: Vec<(Vec<u8>, Vec<u8>)> = query(
            "SELECT id, artifact FROM versions WHERE function = ? AND removed_ms IS NULL
             ORDER BY counter DESC",
        )
        .bind(function.name.to_string())
        .all(&mut *tx)
        .await
        .during(DOING)?;
        for (place, (id, artifact)) in (1..).zip(versions) {
            let version = Digest(bytes32("a version's id", &id)?);
            let mut why = Vec::new();
            if place <= wish.keep.max(1) {
                why.push(format!("it is one of the newest {}", wish.keep.max(1)));
            }
            let is_of = |release: Option<Release>| release.is_some_and(|of| of.version == version);
            if is_of(function.current) {
                why.push("the fleet is on it".to_owned());
            }
            if is_of(function.fallback) || is_of(before) {
                why.push("a rollback goes to it".to_owned());
            }
            if queued
                .iter()
                .any(|queued| queued.request.version == Some(version))
            {
                why.push("a rollout to it is queued".to_owned());
            }
            for row in &open {
                let rollout = &row.rollout;
                if rollout.release.version == version || is_of(rollout.previous) {
                    why.push(format!("rollout {} has not ended", row.id));
                }
            }
            let own = tags.iter().filter(|(tagged, _)| *tagged == id);
            why.extend(own.map(|(_, tag)| format!("the tag {tag} names it")));
            let pinned = cordoned.iter().filter(|(_, pins)| {
                let pin = pins.get(&function.name);
                pin.is_some_and(|(kept, before)| is_of(Some(*kept)) || is_of(*before))
            });
            why.extend(pinned.map(|(node, _)| format!("the cordoned node {node} keeps it")));
            let nodes = wish.held.get(&version).into_iter().flatten();
            why.extend(nodes.map(|node| format!("node {node} has it")));
            all.push(Fate {
                version,
                artifact: Digest(bytes32("a version's artifact", &artifact)?),
                why,
            });
        }
    }
    Ok(all)
}
