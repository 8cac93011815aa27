//! Carrying rollouts out: the shell around the planner.
//!
//! For every step: look at the fleet, let the planner decide on a copy, store the copy together
//! with the new generation of desired state in one transaction, and only then make it visible. A
//! coordinator killed between any two of these goes on from the stored state.

use std::collections::BTreeMap;
use std::sync::Arc;

use holm_model::api::RolloutState;
use holm_model::artifact::PublisherKey;
use holm_model::ids::{FunctionName, Name, VersionId};
use holm_model::limits::{MAX_BAKE_MS, MAX_WAVES};
use tokio::sync::{Mutex, watch};

use super::plan::{Action, Moment, Rollout};
use super::target::{Move, Target, TargetFunction, Version};
use super::wave::{Policy, are_waves};
use crate::clock::Clock;
use crate::limits::{MAX_DESIRED_BYTES, ROLLOUT_TICK};
use crate::nodes::Fleet;
use crate::store::{Adoption, RolloutRow, Store, StoreError};

/// How long rollouts wait for nodes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timing {
    pub(crate) prepare_timeout_ms: u64,
    pub(crate) absent_grace_ms: u64,
}

/// Why a rollout cannot be started or stopped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RolloutError {
    #[error("there is no function `{0}`; publish a version of it first")]
    UnknownFunction(FunctionName),
    #[error("function `{function}` has no version {version}; publish it first")]
    UnknownVersion {
        function: FunctionName,
        version: VersionId,
    },
    #[error(
        "rollout {id} of `{function}` is still going on; wait for it, or abort it with \
         `holm rollout abort {id}`"
    )]
    Running { function: FunctionName, id: u64 },
    #[error("the fleet is on version {version} of `{function}` already")]
    Current {
        function: FunctionName,
        version: VersionId,
    },
    #[error("`{0}` has no version before the current one to go back to")]
    NothingBefore(FunctionName),
    #[error(
        "the waves {0:?} are not up to {MAX_WAVES} rising percentages from 1 that end with 100, such \
         as 10,50,100"
    )]
    BadWaves(Vec<u8>),
    #[error("a bake time of {0} ms is above the {MAX_BAKE_MS} ms allowed")]
    BadBake(u64),
    #[error(
        "with this version, the desired state of a node would have more than {MAX_DESIRED_BYTES} \
         bytes; remove functions or make manifests smaller"
    )]
    TooMuch,
    #[error("there is no rollout {0}")]
    UnknownRollout(u64),
    #[error("rollout {0} has ended already and cannot be aborted; `holm rollback` goes back")]
    Ended(u64),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The rollouts of the fleet, and its target.
pub(crate) struct Rollouts {
    store: Store,
    fleet: Arc<Fleet>,
    clock: Clock,
    timing: Timing,
    state: Mutex<State>,
    target: watch::Sender<Arc<Target>>,
}

struct State {
    generation: u64,
    functions: BTreeMap<FunctionName, Managed>,
}

/// A function that the fleet has, or is to get.
struct Managed {
    keys: Vec<PublisherKey>,
    current: Option<Arc<Version>>,
    fallback: Option<Arc<Version>>,
    open: Option<Open>,
}

/// A rollout that has not ended.
#[derive(Clone)]
struct Open {
    id: u64,
    version: Arc<Version>,
    rollout: Rollout,
    /// What was counted since it was last stored.
    dirty: bool,
}

impl Rollouts {
    /// Goes on from what is stored.
    pub(crate) async fn load(
        store: Store,
        fleet: Arc<Fleet>,
        clock: Clock,
        timing: Timing,
    ) -> Result<Self, StoreError> {
        let mut functions = BTreeMap::new();
        for row in store.functions().await? {
            let managed = Managed {
                keys: store
                    .tenant_keys(&row.name.tenant)
                    .await?
                    .unwrap_or_default(),
                current: load_version(&store, row.current).await?,
                fallback: load_version(&store, row.fallback).await?,
                open: None,
            };
            functions.insert(row.name, managed);
        }
        for RolloutRow {
            id,
            function,
            mut rollout,
            ..
        } in store.open_rollouts().await?
        {
            rollout.resume(clock.now_ms());
            let version = load_version(&store, Some(rollout.version)).await?;
            if let (Some(managed), Some(version)) = (functions.get_mut(&function), version) {
                tracing::info!(rollout = id, %function, state = ?rollout.state, "resuming a rollout");
                managed.open = Some(Open {
                    id,
                    version,
                    rollout,
                    dirty: true,
                });
            }
        }
        let state = State {
            generation: store.generation().await?,
            functions,
        };
        let (target, _) = watch::channel(Arc::new(state.target()));
        fleet.watch(target.borrow().watched());
        Ok(Rollouts {
            store,
            fleet,
            clock,
            timing,
            state: Mutex::new(state),
            target,
        })
    }

    /// The fleet's target, now and whenever it changes.
    pub(crate) fn target(&self) -> watch::Receiver<Arc<Target>> {
        self.target.subscribe()
    }

    /// Steps the open rollouts, until dropped.
    pub(crate) async fn run(&self) {
        loop {
            let open = self.step().await;
            match open {
                // Time alone may move a rollout on.
                true => {
                    let _ = tokio::time::timeout(ROLLOUT_TICK, self.fleet.changed()).await;
                    // However busy the nodes are, so often is often enough.
                    tokio::time::sleep(ROLLOUT_TICK / 4).await;
                }
                false => self.fleet.changed().await,
            }
        }
    }

    /// Starts a rollout of `version`.
    pub(crate) async fn start(
        &self,
        function: &FunctionName,
        version: VersionId,
        waves_percent: Option<Vec<u8>>,
        bake_ms: Option<u64>,
    ) -> Result<RolloutRow, RolloutError> {
        let mut state = self.state.lock().await;
        self.begin(&mut state, function, version, waves_percent, bake_ms, false)
            .await
    }

    /// Starts a rollout to the version before the current one: one wave, not watched, because
    /// going back is not the time for patience.
    pub(crate) async fn roll_back(
        &self,
        function: &FunctionName,
    ) -> Result<RolloutRow, RolloutError> {
        let mut state = self.state.lock().await;
        let row = self
            .store
            .function(function)
            .await?
            .ok_or_else(|| RolloutError::UnknownFunction(function.clone()))?;
        let nothing = || RolloutError::NothingBefore(function.clone());
        let current = row.current.ok_or_else(nothing)?;
        let before = self
            .store
            .version_before(function, current)
            .await?
            .ok_or_else(nothing)?;
        self.begin(&mut state, function, before, Some(vec![100]), Some(0), true)
            .await
    }

    async fn begin(
        &self,
        state: &mut State,
        function: &FunctionName,
        version: VersionId,
        waves_percent: Option<Vec<u8>>,
        bake_ms: Option<u64>,
        rollback: bool,
    ) -> Result<RolloutRow, RolloutError> {
        if self.store.function(function).await?.is_none() {
            return Err(RolloutError::UnknownFunction(function.clone()));
        }
        let unknown = || RolloutError::UnknownVersion {
            function: function.clone(),
            version,
        };
        let version = load_version(&self.store, Some(version))
            .await?
            .ok_or_else(unknown)?;
        if version.statement.function != *function {
            return Err(unknown());
        }
        let policy = self.policy(&version, waves_percent, bake_ms)?;
        let keys = self
            .store
            .tenant_keys(&function.tenant)
            .await?
            .unwrap_or_default();
        let managed = state
            .functions
            .entry(function.clone())
            .or_insert_with(|| Managed {
                keys,
                current: None,
                fallback: None,
                open: None,
            });
        if let Some(open) = &managed.open {
            return Err(RolloutError::Running {
                function: function.clone(),
                id: open.id,
            });
        }
        let current = managed.current.as_ref().map(|current| current.id);
        if current == Some(version.id) {
            let version = version.id;
            return Err(RolloutError::Current {
                function: function.clone(),
                version,
            });
        }
        if state.bytes_with(&version) > MAX_DESIRED_BYTES {
            return Err(RolloutError::TooMuch);
        }
        let rollout = Rollout::begin(version.id, current, policy, self.clock.now_ms());
        let id = self
            .store
            .begin_rollout(function, &rollout, rollback)
            .await?;
        tracing::info!(rollout = id, %function, version = %version.id, "a rollout begins");
        let row = RolloutRow {
            id,
            function: function.clone(),
            rollout,
        };
        let open = Open {
            id,
            version,
            rollout: row.rollout.clone(),
            dirty: false,
        };
        if let Some(managed) = state.functions.get_mut(function) {
            managed.open = Some(open);
        }
        self.fleet.wake();
        Ok(row)
    }

    fn policy(
        &self,
        version: &Version,
        waves_percent: Option<Vec<u8>>,
        bake_ms: Option<u64>,
    ) -> Result<Policy, RolloutError> {
        let wish = &version.statement.manifest.rollout;
        let waves_percent = waves_percent.unwrap_or_else(|| wish.waves_percent.clone());
        if !are_waves(&waves_percent) {
            return Err(RolloutError::BadWaves(waves_percent));
        }
        let bake_ms = bake_ms.unwrap_or(wish.bake_ms);
        if bake_ms > MAX_BAKE_MS {
            return Err(RolloutError::BadBake(bake_ms));
        }
        Ok(Policy {
            waves_percent,
            bake_ms,
            max_error_ppm: wish.max_error_ppm,
            prepare_timeout_ms: self.timing.prepare_timeout_ms,
            absent_grace_ms: self.timing.absent_grace_ms,
        })
    }

    /// Stops a rollout and sends its nodes back.
    pub(crate) async fn abort(&self, id: u64) -> Result<RolloutRow, RolloutError> {
        let mut state = self.state.lock().await;
        let row = self
            .store
            .rollout(id)
            .await?
            .ok_or(RolloutError::UnknownRollout(id))?;
        let managed = state.functions.get(&row.function);
        let open = managed
            .and_then(|managed| managed.open.as_ref())
            .filter(|open| open.id == id);
        let mut open = open.cloned().ok_or(RolloutError::Ended(id))?;
        let actions = open.rollout.abort(state.moment(&self.clock));
        let rollout = open.rollout.clone();
        self.commit(&mut state, &row.function, open, &actions)
            .await?;
        self.fleet.wake();
        Ok(RolloutRow { rollout, ..row })
    }

    /// A tenant's keys have changed: the nodes must know before a version signed with a new one
    /// reaches them.
    pub(crate) async fn keys_changed(
        &self,
        tenant: &Name,
        keys: &[PublisherKey],
    ) -> Result<(), StoreError> {
        let mut state = self.state.lock().await;
        let changed =
            |name: &FunctionName, managed: &Managed| name.tenant == *tenant && managed.keys != keys;
        if !state
            .functions
            .iter()
            .any(|(name, managed)| changed(name, managed))
        {
            return Ok(());
        }
        let generation = state.generation + 1;
        self.store.set_generation(generation).await?;
        state.generation = generation;
        for (name, managed) in &mut state.functions {
            if name.tenant == *tenant {
                managed.keys = keys.to_vec();
            }
        }
        self.show(&state);
        Ok(())
    }

    /// Says whether a node is to take requests; whether there is such a node.
    pub(crate) async fn drain(&self, node: &Name, drained: bool) -> Result<bool, StoreError> {
        let mut state = self.state.lock().await;
        let generation = state.generation + 1;
        if !self.store.set_drained(node, drained, generation).await? {
            return Ok(false);
        }
        state.generation = generation;
        let known = self.fleet.set_drained(node, drained);
        self.show(&state);
        Ok(known)
    }

    /// One look at every open rollout; whether any is still open.
    async fn step(&self) -> bool {
        let mut state = self.state.lock().await;
        let tallies = self.fleet.take_tallies();
        let names: Vec<FunctionName> = state
            .functions
            .iter()
            .filter(|(_, managed)| managed.open.is_some())
            .map(|(name, _)| name.clone())
            .collect();
        for function in names {
            let Some(managed) = state.functions.get_mut(&function) else {
                continue;
            };
            let Some(open) = &mut managed.open else {
                continue;
            };
            // Counted in memory first: what was taken from the fleet must not be lost should
            // storing it fail.
            if let Some(tally) = tallies.get(&(function.clone(), open.version.id)) {
                open.rollout.note(*tally);
                open.dirty = true;
            }
            let mut next = open.clone();
            let sights = self
                .fleet
                .sights(&function, |region| next.version.placed_in(region));
            let actions = next.rollout.tick(&sights, state.moment(&self.clock));
            let Some(before) = state.functions.get(&function).and_then(|m| m.open.as_ref()) else {
                continue;
            };
            if !next.dirty && actions.is_empty() && next.rollout == before.rollout {
                continue;
            }
            if let Err(error) = self.commit(&mut state, &function, next, &actions).await {
                // Nothing was acted on; the next look tries again.
                tracing::error!(%function, %error, "a rollout's step could not be stored");
            }
        }
        state
            .functions
            .values()
            .any(|managed| managed.open.is_some())
    }

    /// Stores a step and makes it visible, in this order.
    async fn commit(
        &self,
        state: &mut State,
        function: &FunctionName,
        mut next: Open,
        actions: &[Action],
    ) -> Result<(), StoreError> {
        let publish = actions.contains(&Action::Publish);
        let adopt = actions.contains(&Action::Adopt);
        let generation = state.generation + u64::from(publish);
        let rollout = &next.rollout;
        let adoption = adopt.then_some(Adoption {
            current: rollout.version,
            fallback: rollout.previous,
        });
        let new_generation = publish.then_some(generation);
        self.store
            .save_step(next.id, function, rollout, new_generation, adoption)
            .await?;

        next.dirty = false;
        state.generation = generation;
        if let Some(managed) = state.functions.get_mut(function) {
            log(next.id, function, managed.open.as_ref(), &next.rollout);
            if adopt {
                managed.fallback = managed.current.replace(next.version.clone());
            }
            managed.open = (!next.rollout.ended()).then_some(next);
        }
        if publish {
            self.show(state);
        }
        Ok(())
    }

    fn show(&self, state: &State) {
        let target = Arc::new(state.target());
        self.fleet.watch(target.watched());
        self.target.send_replace(target);
    }
}

impl State {
    fn moment(&self, clock: &Clock) -> Moment {
        Moment {
            now_ms: clock.now_ms(),
            next_generation: self.generation + 1,
        }
    }

    fn target(&self) -> Target {
        let function = |(name, managed): (&FunctionName, &Managed)| TargetFunction {
            name: name.clone(),
            keys: managed.keys.clone(),
            current: managed.current.clone(),
            fallback: managed.fallback.clone(),
            moving: managed
                .open
                .as_ref()
                .filter(|open| open.rollout.state == RolloutState::Running)
                .map(|open| Move {
                    version: open.version.clone(),
                    nodes: open.rollout.moved().into_iter().cloned().collect(),
                }),
        };
        Target {
            generation: self.generation,
            functions: self.functions.iter().map(function).collect(),
        }
    }

    /// Upper bound of a node's desired state if `version` comes to it.
    fn bytes_with(&self, version: &Version) -> usize {
        // Beside the statement: key, signature, lengths.
        let bytes = |version: &Version| version.signed.statement.len() + 128;
        let of = |managed: &Managed| {
            let versions = [
                managed.current.as_deref(),
                managed.fallback.as_deref(),
                managed.open.as_ref().map(|open| &*open.version),
            ];
            versions.into_iter().flatten().map(bytes).sum::<usize>() + 40 * managed.keys.len() + 256
        };
        self.functions.values().map(of).sum::<usize>() + bytes(version)
    }
}

async fn load_version(
    store: &Store,
    id: Option<VersionId>,
) -> Result<Option<Arc<Version>>, StoreError> {
    match id {
        Some(id) => Ok(store.version(id).await?.map(Arc::new)),
        None => Ok(None),
    }
}

/// Logs what people want to know of: a new state of the rollout or of a wave.
fn log(id: u64, function: &FunctionName, before: Option<&Open>, after: &Rollout) {
    let waves = |rollout: &Rollout| -> Vec<_> {
        rollout
            .waves
            .iter()
            .map(|wave| wave.state.as_str())
            .collect()
    };
    let old = before.map(|open| (open.rollout.state, waves(&open.rollout)));
    let new = (after.state, waves(after));
    if old.as_ref() != Some(&new) {
        let (state, waves) = new;
        tracing::info!(rollout = id, %function, ?state, ?waves, reason = %after.reason, "rollout");
    }
}
