//! Rollouts and the generation of desired state.

use std::collections::BTreeMap;

use holm_model::api::RolloutRequest;
use holm_model::artifact::PublisherKey;
use holm_model::configuration::{ConfigurationId, Release};
use holm_model::ids::{FunctionName, Name, VersionId};

use super::error::During as _;
use super::sql::{On, Transaction, query};
use super::{
    FunctionRow, NodeRow, Store, StoreError, Turn, catalogue, configurations, fleet, text, uint,
};
use crate::rollout::Rollout;

/// A rollout as stored.
#[derive(Clone, Debug)]
pub(crate) struct RolloutRow {
    pub(crate) id: u64,
    pub(crate) function: FunctionName,
    pub(crate) rollout: Rollout,
}

/// What a decision rests on. It is stored only if this still holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Basis {
    /// Of what was decided about.
    pub(crate) revision: u64,
    /// The fencing token of the lease, if it is a step of executing rollouts.
    pub(crate) lease: Option<u64>,
}

/// Why a decision is not stored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unstored {
    /// Something else has been decided since; look again.
    #[error("another coordinator has decided something meanwhile")]
    Outdated,
    /// Another coordinator executes rollouts now.
    #[error("another coordinator has taken over the execution of rollouts")]
    LeaseLost,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Everything about rollouts and desired state.
#[derive(Debug)]
pub(crate) struct Decided {
    pub(crate) revision: u64,
    pub(crate) generation: u64,
    pub(crate) functions: Vec<FunctionRow>,
    pub(crate) keys: BTreeMap<Name, Vec<PublisherKey>>,
    /// The rollouts that have not ended.
    pub(crate) open: Vec<RolloutRow>,
    pub(crate) queued: Vec<Queued>,
    pub(crate) nodes: Vec<NodeRow>,
}

/// A rollout that begins when another one has ended.
#[derive(Clone, Debug)]
pub(crate) struct Queued {
    pub(crate) function: FunctionName,
    pub(crate) request: RolloutRequest,
    pub(crate) asked_ms: u64,
}

/// In whose place a rollout begins: that one as it ends, and the generation in which its nodes have what they had.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InPlaceOf<'a> {
    pub(crate) row: &'a RolloutRow,
    pub(crate) generation: u64,
}

/// A function's current version changes with the end of a rollout.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Adoption {
    pub(crate) current: Release,
    pub(crate) fallback: Option<Release>,
}

type Row = (i64, String, String);

fn row((id, function, plan): Row) -> Result<RolloutRow, StoreError> {
    Ok(RolloutRow {
        id: uint(id),
        function: text("a function's name", &function)?,
        rollout: serde_json::from_str(&plan)
            .map_err(|error| StoreError::corrupt("a rollout", error))?,
    })
}

/// The plan as JSON, and its state's name.
fn plan(rollout: &Rollout) -> Result<(String, String), StoreError> {
    let wrong = |error| StoreError::corrupt("a rollout", error);
    let plan = serde_json::to_string(rollout).map_err(wrong)?;
    let state = serde_json::to_string(&rollout.state).map_err(wrong)?;
    Ok((plan, state.trim_matches('"').to_owned()))
}

/// Within a decision.
pub(super) async fn save_generation(
    tx: &mut Transaction,
    generation: u64,
) -> Result<(), StoreError> {
    query("UPDATE counters SET value = ? WHERE name = 'generation'")
        .bind(generation)
        .execute(&mut *tx)
        .await
        .during("store the generation")?;
    // Others have nodes to tell.
    tx.notify().await
}

impl Store {
    /// Goes on with another generation.
    pub(crate) async fn raise_generation(
        &self,
        basis: Basis,
        generation: u64,
    ) -> Result<(), Unstored> {
        let mut tx = self.decide(basis).await?;
        save_generation(&mut tx, generation).await?;
        tx.commit("raise the generation").await?;
        Ok(())
    }
}

/// The rollouts that have not ended.
pub(super) async fn open_rollouts(tx: &mut Transaction) -> Result<Vec<RolloutRow>, StoreError> {
    let open: Vec<Row> =
        query("SELECT id, function, plan FROM rollouts WHERE ended_ms IS NULL ORDER BY id")
            .all(tx)
            .await
            .during("list open rollouts")?;
    open.into_iter().map(row).collect()
}

/// The rollouts that wait for their turn.
pub(super) async fn queued_rollouts(tx: &mut Transaction) -> Result<Vec<Queued>, StoreError> {
    let rows: Vec<(String, String, i64)> =
        query("SELECT function, request, asked_ms FROM queued_rollouts ORDER BY function")
            .all(tx)
            .await
            .during("list queued rollouts")?;
    let queued = |(function, request, asked_ms): (String, String, i64)| {
        Ok(Queued {
            function: text("a function's name", &function)?,
            request: serde_json::from_str(&request)
                .map_err(|error| StoreError::corrupt("a queued rollout", error))?,
            asked_ms: uint(asked_ms),
        })
    };
    rows.into_iter().map(queued).collect()
}

async fn save_plan(
    tx: &mut Transaction,
    RolloutRow { id, rollout, .. }: &RolloutRow,
) -> Result<(), StoreError> {
    let (plan, state) = plan(rollout)?;
    query("UPDATE rollouts SET state = ?, plan = ?, ended_ms = ? WHERE id = ?")
        .bind(state)
        .bind(plan)
        .bind(rollout.ended_ms)
        .bind(*id)
        .execute(tx)
        .await
        .during("store a rollout's step")?;
    Ok(())
}

async fn unqueue(tx: &mut Transaction, function: &FunctionName) -> Result<bool, StoreError> {
    let removed = query("DELETE FROM queued_rollouts WHERE function = ?")
        .bind(function.to_string())
        .execute(tx)
        .await
        .during("take a rollout from the queue")?;
    Ok(removed > 0)
}

/// The release that the fleet was on before it was first brought to `current`.
pub(super) async fn release_before(
    on: impl Into<On<'_>>,
    function: &FunctionName,
    current: Release,
) -> Result<Option<Release>, StoreError> {
    let found: Option<Row> = query(
        "SELECT id, function, plan FROM rollouts
         WHERE function = ? AND version = ? AND configuration = ? AND rollback = 0
           AND state = 'completed'
         ORDER BY id DESC LIMIT 1",
    )
    .bind(function.to_string())
    .bind(current.version)
    .bind(&configurations::column(current.configuration)[..])
    .optional(on)
    .await
    .during("look up the release before")?;
    let found = found.map(row).transpose()?;
    Ok(found.and_then(|found| found.rollout.previous))
}

impl Store {
    /// Everything about rollouts and desired state, as it is at one moment.
    pub(crate) async fn decided(&self) -> Result<Decided, StoreError> {
        const DOING: &str = "read what is decided";
        let mut tx = self.read().await?;
        let counters: Vec<(String, i64)> = query("SELECT name, value FROM counters")
            .all(&mut tx)
            .await
            .during(DOING)?;
        let counter = |name: &str| {
            let found = counters.iter().find(|(counter, _)| counter == name);
            found.map_or(0, |(_, value)| uint(*value))
        };
        let (revision, generation) = (counter("revision"), counter("generation"));
        let open = open_rollouts(&mut tx).await?;
        Ok(Decided {
            revision,
            generation,
            functions: catalogue::functions(&mut tx).await?,
            keys: catalogue::all_keys(&mut tx).await?,
            open,
            queued: queued_rollouts(&mut tx).await?,
            nodes: fleet::nodes(&mut tx).await?,
        })
    }

    /// How often something was decided about rollouts and desired state.
    pub(crate) async fn revision(&self) -> Result<u64, StoreError> {
        let (value,): (i64,) = query("SELECT value FROM counters WHERE name = 'revision'")
            .one(self.reader())
            .await
            .during("read the revision")?;
        Ok(uint(value))
    }

    /// A transaction in which `basis` holds, and which makes the next revision.
    pub(super) async fn decide(&self, basis: Basis) -> Result<Transaction, Unstored> {
        const DOING: &str = "compare the revision";
        let mut tx = self.write(Turn::Rollouts).await?;
        if let Some(token) = basis.lease {
            let (current,): (i64,) = query("SELECT token FROM leases WHERE name = 'rollouts'")
                .one(&mut tx)
                .await
                .during(DOING)?;
            if uint(current) != token {
                return Err(Unstored::LeaseLost);
            }
        }
        let changed =
            query("UPDATE counters SET value = value + 1 WHERE name = 'revision' AND value = ?")
                .bind(basis.revision)
                .execute(&mut tx)
                .await
                .during(DOING)?;
        match changed {
            0 => Err(Unstored::Outdated),
            _ => Ok(tx),
        }
    }

    /// Stores a rollout that begins, and returns its number. What was queued for the function has had its turn.
    pub(crate) async fn begin_rollout(
        &self,
        basis: Basis,
        function: &FunctionName,
        rollout: &Rollout,
        rollback: bool,
        in_place_of: Option<InPlaceOf<'_>>,
    ) -> Result<u64, Unstored> {
        const DOING: &str = "store a rollout";
        let (plan, state) = plan(rollout)?;
        let mut tx = self.decide(basis).await?;
        if let Some(InPlaceOf { row, generation }) = in_place_of {
            save_plan(&mut tx, row).await?;
            save_generation(&mut tx, generation).await?;
        }
        unqueue(&mut tx, function).await?;
        configurations::save_release(&mut tx, rollout.release).await?;
        let (id,): (i64,) = query(
            "INSERT INTO rollouts (function, version, configuration, rollback, state, plan)
             VALUES (?, ?, ?, ?, ?, ?) RETURNING id",
        )
        .bind(function.to_string())
        .bind(rollout.release.version)
        .bind(&configurations::column(rollout.release.configuration)[..])
        .bind(rollback)
        .bind(state)
        .bind(plan)
        .one(&mut tx)
        .await
        .during(DOING)?;
        // Whoever executes rollouts is to begin with it.
        tx.notify().await?;
        tx.commit(DOING).await?;
        Ok(uint(id))
    }

    /// Stores a step of a rollout together with all that follows from it.
    pub(crate) async fn save_step(
        &self,
        basis: Basis,
        row: &RolloutRow,
        generation: Option<u64>,
        adoption: Option<Adoption>,
    ) -> Result<(), Unstored> {
        const DOING: &str = "store a rollout's step";
        let mut tx = self.decide(basis).await?;
        save_plan(&mut tx, row).await?;
        if let Some(generation) = generation {
            save_generation(&mut tx, generation).await?;
        }
        if let Some(Adoption { current, fallback }) = adoption {
            let fallback_configuration = fallback.and_then(|fallback| fallback.configuration);
            query(
                "UPDATE functions SET current = ?, current_configuration = ?,
                                      fallback = ?, fallback_configuration = ?
                 WHERE name = ?",
            )
            .bind(current.version)
            .bind(&configurations::column(current.configuration)[..])
            .bind(fallback.map(|fallback| fallback.version))
            .bind(&configurations::column(fallback_configuration)[..])
            .bind(row.function.to_string())
            .execute(&mut tx)
            .await
            .during(DOING)?;
        }
        Ok(tx.commit(DOING).await?)
    }

    /// Stores a rollout that begins when another has ended, in place of one that may wait for that already.
    pub(crate) async fn queue_rollout(
        &self,
        basis: Basis,
        queued: &Queued,
    ) -> Result<(), Unstored> {
        const DOING: &str = "queue a rollout";
        let request = serde_json::to_string(&queued.request)
            .map_err(|error| StoreError::corrupt("a queued rollout", error))?;
        let mut tx = self.decide(basis).await?;
        unqueue(&mut tx, &queued.function).await?;
        query("INSERT INTO queued_rollouts (function, version, request, asked_ms) VALUES (?, ?, ?, ?)")
            .bind(queued.function.to_string())
            // What it says to begin with is in the request.
            .bind(&queued.request.version.map_or_else(Vec::new, |version| version.0.to_vec())[..])
            .bind(request)
            .bind(queued.asked_ms)
            .execute(&mut tx)
            .await
            .during(DOING)?;
        Ok(tx.commit(DOING).await?)
    }

    /// Takes what waits for its turn away; whether there was anything.
    pub(crate) async fn unqueue_rollout(
        &self,
        basis: Basis,
        function: &FunctionName,
    ) -> Result<bool, Unstored> {
        let mut tx = self.decide(basis).await?;
        let removed = unqueue(&mut tx, function).await?;
        tx.commit("take a rollout from the queue").await?;
        Ok(removed)
    }

    /// The newest rollouts of a function, the newest first.
    pub(crate) async fn rollouts(
        &self,
        function: &FunctionName,
        most: i64,
    ) -> Result<Vec<RolloutRow>, StoreError> {
        let found: Vec<Row> = query(
            "SELECT id, function, plan FROM rollouts WHERE function = ? ORDER BY id DESC LIMIT ?",
        )
        .bind(function.to_string())
        .bind(most)
        .all(self.reader())
        .await
        .during("list rollouts")?;
        found.into_iter().map(row).collect()
    }

    /// The last release of this version that the fleet was on, if it has been on any.
    pub(crate) async fn last_release_of(
        &self,
        function: &FunctionName,
        version: VersionId,
    ) -> Result<Option<Release>, StoreError> {
        let found: Option<Row> = query(
            "SELECT id, function, plan FROM rollouts
             WHERE function = ? AND version = ? AND state = 'completed' ORDER BY id DESC LIMIT 1",
        )
        .bind(function.to_string())
        .bind(version)
        .optional(self.reader())
        .await
        .during("look up where the fleet has been")?;
        let found = found.map(row).transpose()?;
        Ok(found.map(|found| found.rollout.release))
    }

    /// Whether the fleet has been on a release with this configuration.
    pub(crate) async fn has_had(
        &self,
        function: &FunctionName,
        configuration: ConfigurationId,
    ) -> Result<bool, StoreError> {
        query(
            "SELECT 1 FROM rollouts WHERE function = ? AND configuration = ? AND state = 'completed'
             LIMIT 1",
        )
        .bind(function.to_string())
        .bind(configuration)
        .found(self.reader())
        .await
        .during("look up where the fleet has been")
    }

    /// One rollout.
    pub(crate) async fn rollout(&self, id: u64) -> Result<Option<RolloutRow>, StoreError> {
        let found: Option<Row> = query("SELECT id, function, plan FROM rollouts WHERE id = ?")
            .bind(id)
            .optional(self.reader())
            .await
            .during("look up a rollout")?;
        found.map(row).transpose()
    }

    /// The newest rollout of a function.
    pub(crate) async fn latest_rollout(
        &self,
        function: &FunctionName,
    ) -> Result<Option<RolloutRow>, StoreError> {
        let found: Option<Row> = query(
            "SELECT id, function, plan FROM rollouts WHERE function = ?
             ORDER BY id DESC LIMIT 1",
        )
        .bind(function.to_string())
        .optional(self.reader())
        .await
        .during("look up a rollout")?;
        found.map(row).transpose()
    }

    /// The release that the fleet was on before it was first brought to `current`.
    pub(crate) async fn release_before(
        &self,
        function: &FunctionName,
        current: Release,
    ) -> Result<Option<Release>, StoreError> {
        release_before(self.reader(), function, current).await
    }
}
