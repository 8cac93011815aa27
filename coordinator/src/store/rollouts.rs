//! Rollouts and the generation of desired state.

use holm_model::ids::{FunctionName, VersionId};

use super::error::During as _;
use super::sql::query;
use super::{Store, StoreError, Turn, text, uint};
use crate::rollout::Rollout;

/// A rollout as stored.
#[derive(Clone, Debug)]
pub(crate) struct RolloutRow {
    pub(crate) id: u64,
    pub(crate) function: FunctionName,
    pub(crate) rollout: Rollout,
}

/// A function's current version changes with the end of a rollout.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Adoption {
    pub(crate) current: VersionId,
    pub(crate) fallback: Option<VersionId>,
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

impl Store {
    /// The newest generation of desired state.
    pub(crate) async fn generation(&self) -> Result<u64, StoreError> {
        let (value,): (i64,) = query("SELECT value FROM counters WHERE name = 'generation'")
            .one(self.reader())
            .await
            .during("read the generation")?;
        Ok(uint(value))
    }

    /// Stores a new generation of desired state.
    pub(crate) async fn set_generation(&self, generation: u64) -> Result<(), StoreError> {
        query("UPDATE counters SET value = ? WHERE name = 'generation'")
            .bind(generation)
            .execute(self.writer())
            .await
            .during("store the generation")?;
        Ok(())
    }

    /// Stores a rollout that begins, and returns its number.
    pub(crate) async fn begin_rollout(
        &self,
        function: &FunctionName,
        rollout: &Rollout,
        rollback: bool,
    ) -> Result<u64, StoreError> {
        let (plan, state) = plan(rollout)?;
        let (id,): (i64,) = query(
            "INSERT INTO rollouts (function, version, rollback, state, plan)
             VALUES (?, ?, ?, ?, ?) RETURNING id",
        )
        .bind(function.to_string())
        .bind(rollout.version)
        .bind(rollback)
        .bind(state)
        .bind(plan)
        .one(self.writer())
        .await
        .during("store a rollout")?;
        Ok(uint(id))
    }

    /// Stores a step of a rollout together with all that follows from it.
    pub(crate) async fn save_step(
        &self,
        id: u64,
        function: &FunctionName,
        rollout: &Rollout,
        generation: Option<u64>,
        adoption: Option<Adoption>,
    ) -> Result<(), StoreError> {
        const DOING: &str = "store a rollout's step";
        let (plan, state) = plan(rollout)?;
        let mut tx = self.write(Turn::Rollouts).await?;
        query("UPDATE rollouts SET state = ?, plan = ?, ended_ms = ? WHERE id = ?")
            .bind(state)
            .bind(plan)
            .bind(rollout.ended_ms)
            .bind(id)
            .execute(&mut tx)
            .await
            .during(DOING)?;
        if let Some(generation) = generation {
            query("UPDATE counters SET value = ? WHERE name = 'generation'")
                .bind(generation)
                .execute(&mut tx)
                .await
                .during(DOING)?;
        }
        if let Some(Adoption { current, fallback }) = adoption {
            query("UPDATE functions SET current = ?, fallback = ? WHERE name = ?")
                .bind(current)
                .bind(fallback)
                .bind(function.to_string())
                .execute(&mut tx)
                .await
                .during(DOING)?;
        }
        tx.commit(DOING).await
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

    /// The rollouts that have not ended.
    pub(crate) async fn open_rollouts(&self) -> Result<Vec<RolloutRow>, StoreError> {
        let rows: Vec<Row> =
            query("SELECT id, function, plan FROM rollouts WHERE ended_ms IS NULL ORDER BY id")
                .all(self.reader())
                .await
                .during("list rollouts")?;
        rows.into_iter().map(row).collect()
    }

    /// The version that the fleet was on before it was first brought to `current`.
    pub(crate) async fn version_before(
        &self,
        function: &FunctionName,
        current: VersionId,
    ) -> Result<Option<VersionId>, StoreError> {
        let found: Option<Row> = query(
            "SELECT id, function, plan FROM rollouts
             WHERE function = ? AND version = ? AND rollback = 0 AND state = 'completed'
             ORDER BY id DESC LIMIT 1",
        )
        .bind(function.to_string())
        .bind(current)
        .optional(self.reader())
        .await
        .during("look up the version before")?;
        let found = found.map(row).transpose()?;
        Ok(found.and_then(|found| found.rollout.previous))
    }
}
