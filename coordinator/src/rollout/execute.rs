//! Carrying rollouts out: the shell around the planner.
//!
//! For every step: look at the fleet, let the planner decide on a copy, store the copy together
//! with the new generation of desired state in one transaction, and only then make it visible. A
//! coordinator killed between any two of these goes on from the stored state.
//!
//! Of several coordinators, the one with the lease takes the steps, and its token is compared in
//! each step's transaction. What people decide is taken by the coordinator that they ask. Whoever
//! stores something says on which revision it rests; if another has decided since, it reads what is
//! stored and decides again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use holm_model::api::{RollbackRequest, RolloutRequest, RolloutState, WhenRunning};
use holm_model::artifact::PublisherKey;
use holm_model::configuration::{ConfigurationId, Release};
use holm_model::ids::{FunctionName, Name, VersionId};
use holm_model::limits::{MAX_BAKE_MS, MAX_GATE_REQUESTS};
use holm_model::manifest::wave::{WaveError, check_waves};
use holm_model::manifest::{self, Amount, WaveRule};
use tokio::sync::{Mutex, watch};

use super::plan::{Action, Moment, Rollout};
use super::sight::Sight;
use super::target::{Configured, Deployable, Held, Move, Target, TargetFunction, Version};
use super::wave::{Policy, Tally, Waves, plan_waves};
use crate::clock::Clock;
use crate::limits::{
    GATE_COUNTS_EVERY, MAX_DESIRED_BYTES, MAX_GENERATION_JUMP, OVERTAKE_EVERY, OVERTAKE_TOLD_EVERY,
    ROLLOUT_TICK,
};
use crate::nodes::Fleet;
use crate::registry::Configurations;
use crate::store::{
    Adoption, Basis, Came, Decided, Deed, Fate, InPlaceOf, KeyChange, KeyRow, KeysOutcome,
    NodeChange, PruneWish, Queued, RolloutRow, Store, StoreError, Unstored,
};

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
        "`{function}` has no configuration c{number}; `holm config list {function}` shows those it has"
    )]
    UnknownConfiguration { function: FunctionName, number: u64 },
    #[error(
        "the key of tenant `{tenant}` that signed configuration c{number} was revoked; set it again, signed with one \
         that is valid"
    )]
    ConfigurationKeyRevoked { number: u64, tenant: Name },
    #[error(
        "the configuration of {label} of `{function}` is damaged in the coordinator's database ({why}); set the secret \
         again, or restore the database"
    )]
    Damaged {
        function: FunctionName,
        label: String,
        why: String,
    },
    #[error(
        "the fleet is on no version of `{0}` yet, so there is none to go on with; say which one it is to be"
    )]
    NoVersion(FunctionName),
    #[error(
        "rollout {id} of `{function}` is still going on; wait for it, abort it with `holm rollout abort {id}`, \
         take its place with `--supersede`, or wait for its end with `--queue`"
    )]
    Running { function: FunctionName, id: u64 },
    #[error(
        "the key of tenant `{tenant}` that signed version {version} was revoked; deploy it again, signed \
         with one that is valid"
    )]
    KeyRevoked { version: VersionId, tenant: Name },
    #[error("the fleet is on {label} ({release}) of `{function}` already")]
    Current {
        function: FunctionName,
        label: String,
        release: Box<Release>,
    },
    #[error("`{0}` has no version before the current one to go back to")]
    NothingBefore(FunctionName),
    #[error("the waves are not as they should be: {0}")]
    BadWaves(WaveError),
    #[error(
        "no node on which this version may run is in the wave `{0}`; give one of them the label with \
         `holm nodes label`, or start it with other waves"
    )]
    EmptyWave(WaveRule),
    #[error("a bake time of {0} ms is above the {MAX_BAKE_MS} ms allowed")]
    BadBake(u64),
    #[error(
        "with this version, the desired state of a node would have more than {MAX_DESIRED_BYTES} \
         bytes; remove functions or make manifests smaller"
    )]
    TooMuch,
    #[error("rollout {0} has ended already; `holm rollback` goes back")]
    Ended(u64),
    #[error(
        "rollout {0} is neither paused nor watching the wave that was to be promoted; look at it again with \
         `holm rollout status {0}`"
    )]
    NothingToPromote(u64),
    #[error("rollout {0} is on its way back already")]
    GoesBack(u64),
    #[error("no rollout of `{0}` waits for its turn")]
    NothingQueued(FunctionName),
    #[error("{0} invocations are more than the {MAX_GATE_REQUESTS} that a gate may wait for")]
    BadMinRequests(u64),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Unstored(#[from] Unstored),
}

/// How whoever starts a rollout wants it; what is left out the manifest says.
struct Wish {
    to: To,
    /// The number of the configuration that goes with it.
    configuration: Option<u64>,
    waves: Option<Vec<WaveRule>>,
    bake_ms: Option<u64>,
    min_requests: Option<u64>,
    skips_gates: bool,
    when_running: WhenRunning,
}

/// What became of a wish.
pub(crate) enum Begun {
    /// It has begun; the number is of the rollout whose place it took.
    Now(Box<RolloutRow>, Option<u64>),
    /// It begins when the rollout with this number has ended.
    Behind(Queued, u64),
}

/// A wish that can be granted.
struct Fitting {
    to: Arc<Deployable>,
    policy: Policy,
    /// The tenant's valid keys.
    keys: Vec<PublisherKey>,
    /// The function's current release.
    current: Option<Release>,
}

/// What would come of a wish.
pub(crate) struct Foreseen {
    pub(crate) release: Release,
    pub(crate) previous: Option<Release>,
    pub(crate) policy: Policy,
    pub(crate) waves: Waves,
    /// The nodes as they are seen now.
    pub(crate) sights: BTreeMap<Name, Sight>,
    pub(crate) running: Option<u64>,
}

impl From<RolloutRequest> for Wish {
    fn from(request: RolloutRequest) -> Self {
        Wish {
            to: To::Version(request.version),
            configuration: request.configuration,
            waves: request.waves,
            bake_ms: request.bake_ms,
            min_requests: request.min_requests,
            skips_gates: request.emergency,
            when_running: request.when_running,
        }
    }
}

impl Wish {
    /// To be granted later: what it leaves open is seen to then.
    fn request(&self) -> RolloutRequest {
        let (To::Version(version) | To::Back(version)) = self.to;
        RolloutRequest {
            version,
            configuration: self.configuration,
            waves: self.waves.clone(),
            bake_ms: self.bake_ms,
            min_requests: self.min_requests,
            emergency: self.skips_gates,
            when_running: WhenRunning::Refuse,
        }
    }

    fn quorum_of(&self, manifest: &manifest::Rollout) -> Option<Amount> {
        // Going back waits for nobody.
        manifest
            .quorum
            .filter(|_| matches!(self.to, To::Version(_)))
    }
}

/// What people may tell a rollout that goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Stop, and send the nodes back.
    Abort,
    /// Begin and pass no further wave.
    Pause,
    /// Go on after a pause.
    Resume,
    /// Take the watched wave for passed, which is to be the one with this index if it is given; or all.
    Promote { wave: Option<usize>, all: bool },
}

enum To {
    /// To this one, or to the current one with another configuration.
    Version(Option<VersionId>),
    /// Back to this one, or to the release before the current one.
    Back(Option<VersionId>),
}

/// The rollouts of the fleet, and its target.
pub(crate) struct Rollouts {
    store: Store,
    configurations: Configurations,
    fleet: Arc<Fleet>,
    clock: Clock,
    timing: Timing,
    state: Mutex<State>,
    target: watch::Sender<Arc<Target>>,
}

/// What is decided, as it was read last.
struct State {
    revision: u64,
    generation: u64,
    /// The token of the lease under which this coordinator takes steps.
    lease: Option<u64>,
    functions: BTreeMap<FunctionName, Managed>,
    /// What cordoned nodes keep.
    held: BTreeMap<Name, Held>,
    /// When its generation last went behind that of a node that knew a later one, and when the audit log was told.
    overtook: Option<Instant>,
    told_so: Option<Instant>,
}

/// A function that the fleet has, or is to get.
struct Managed {
    keys: Vec<PublisherKey>,
    current: Option<Arc<Deployable>>,
    fallback: Option<Arc<Deployable>>,
    open: Option<Open>,
    /// What begins when `open` has ended.
    queued: Option<Queued>,
}

/// A rollout that has not ended.
#[derive(Clone)]
struct Open {
    id: u64,
    to: Arc<Deployable>,
    rollout: Rollout,
    /// What has come to it since it was last stored, and is stored even if no step is taken.
    unstored: Additions,
    /// When it was stored last.
    stored_ms: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Additions {
    counted: BTreeMap<Name, Tally>,
    /// When this coordinator went on with it.
    resumed_ms: Option<u64>,
}

impl Rollouts {
    /// Reads what is stored. Steps are taken from [`Rollouts::lead`] on.
    pub(crate) async fn load(
        store: Store,
        configurations: Configurations,
        fleet: Arc<Fleet>,
        clock: Clock,
        timing: Timing,
    ) -> Result<Self, StoreError> {
        let mut state = State {
            revision: 0,
            generation: 0,
            lease: None,
            functions: BTreeMap::new(),
            held: BTreeMap::new(),
            overtook: None,
            told_so: None,
        };
        let decided = store.decided().await?;
        fleet.learn(&decided.nodes);
        state.read(&store, &configurations, decided).await?;
        let (target, _) = watch::channel(Arc::new(state.target()));
        fleet.watch(target.borrow().watched());
        Ok(Rollouts {
            store,
            configurations,
            fleet,
            clock,
            timing,
            state: Mutex::new(state),
            target,
        })
    }

    /// From now on this coordinator takes the steps, under the lease with this token.
    pub(crate) async fn lead(&self, token: u64) -> Result<(), StoreError> {
        let mut state = self.state.lock().await;
        self.reload(&mut state).await?;
        state.lease = Some(token);
        let now_ms = self.clock.now_ms();
        for (function, managed) in &mut state.functions {
            if let Some(open) = &mut managed.open {
                let (rollout, state) = (open.id, open.rollout.state);
                tracing::info!(rollout, %function, ?state, "resuming a rollout");
                open.rollout.resume(now_ms);
                open.unstored.resumed_ms = Some(now_ms);
            }
        }
        self.fleet.wake();
        Ok(())
    }

    /// Another coordinator takes the steps.
    pub(crate) async fn follow(&self) {
        self.state.lock().await.lease = None;
    }

    /// Whether this coordinator takes the steps.
    pub(crate) async fn leads(&self) -> bool {
        self.state.lock().await.lease.is_some()
    }

    /// Reads what others have decided, if they have.
    pub(crate) async fn refresh(&self) -> Result<(), StoreError> {
        let mut state = self.state.lock().await;
        self.catch_up(&mut state).await
    }

    /// Reads which nodes there are. Not beside a decision here that is about them.
    pub(crate) async fn refresh_nodes(&self) -> Result<(), StoreError> {
        let _state = self.state.lock().await;
        self.fleet.learn(&self.store.nodes().await?);
        Ok(())
    }

    async fn catch_up(&self, state: &mut State) -> Result<(), StoreError> {
        match self.store.revision().await? == state.revision {
            true => Ok(()),
            false => self.reload(state).await,
        }
    }

    async fn reload(&self, state: &mut State) -> Result<(), StoreError> {
        let decided = self.store.decided().await?;
        self.fleet.learn(&decided.nodes);
        let before = state.generation;
        state
            .read(&self.store, &self.configurations, decided)
            .await?;
        if state.generation != before {
            self.show(state);
        }
        // A rollout may have begun.
        self.fleet.wake();
        Ok(())
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

    /// Starts a rollout of a version, a configuration, or both.
    pub(crate) async fn start(
        &self,
        function: &FunctionName,
        request: RolloutRequest,
    ) -> Result<Begun, RolloutError> {
        self.begin(function, &Wish::from(request)).await
    }

    /// Starts a rollout back to a release that is kept, or to the one before the current one: one wave, not watched,
    /// because going back is not the time for patience.
    pub(crate) async fn roll_back(
        &self,
        function: &FunctionName,
        request: RollbackRequest,
    ) -> Result<Begun, RolloutError> {
        let wish = Wish {
            to: To::Back(request.version),
            configuration: request.configuration,
            when_running: match request.supersede {
                true => WhenRunning::Supersede,
                false => WhenRunning::Refuse,
            },
            waves: Some(vec![WaveRule::percent(100)]),
            bake_ms: Some(0),
            min_requests: Some(0),
            skips_gates: false,
        };
        self.begin(function, &wish).await
    }

    async fn begin(&self, function: &FunctionName, wish: &Wish) -> Result<Begun, RolloutError> {
        let mut state = self.state.lock().await;
        self.catch_up(&mut state).await?;
        loop {
            match self.try_begin(&mut state, function, wish).await {
                Err(RolloutError::Unstored(Unstored::Outdated)) => self.reload(&mut state).await?,
                result => return result,
            }
        }
    }

    async fn try_begin(
        &self,
        state: &mut State,
        function: &FunctionName,
        wish: &Wish,
    ) -> Result<Begun, RolloutError> {
        let Fitting {
            to,
            policy,
            keys,
            current,
        } = self.fit(function, wish).await?;
        let managed = state
            .functions
            .entry(function.clone())
            .or_insert_with(|| Managed {
                keys,
                current: None,
                fallback: None,
                open: None,
                queued: None,
            });
        let superseded = match (&managed.open, wish.when_running) {
            (None, _) => None,
            (Some(open), WhenRunning::Refuse) => {
                return Err(RolloutError::Running {
                    function: function.clone(),
                    id: open.id,
                });
            }
            (Some(open), WhenRunning::Queue) => {
                let behind = open.id;
                let queued = Queued {
                    function: function.clone(),
                    request: wish.request(),
                    asked_ms: self.clock.now_ms(),
                };
                self.store.queue_rollout(state.basis(), &queued).await?;
                state.revision += 1;
                if let Some(managed) = state.functions.get_mut(function) {
                    managed.queued = Some(queued.clone());
                }
                return Ok(Begun::Behind(queued, behind));
            }
            (Some(open), WhenRunning::Supersede) => {
                let mut row = RolloutRow {
                    id: open.id,
                    function: function.clone(),
                    rollout: open.rollout.clone(),
                };
                row.rollout.supersede(&to.label(), self.clock.now_ms());
                Some(row)
            }
        };
        let release = to.release();
        if current == Some(release) {
            return Err(RolloutError::Current {
                function: function.clone(),
                label: to.label(),
                release: Box::new(release),
            });
        }
        if state.bytes_with(&to) > MAX_DESIRED_BYTES {
            return Err(RolloutError::TooMuch);
        }
        let (_, waves) = self.waves(function, &to.version, &policy);
        // Without any node it waits for the first; with some, what was meant to be a test is not left out.
        if !waves.waves.is_empty()
            && !policy.skips_gates
            && let Some(rule) = waves.empty.into_iter().next()
        {
            return Err(RolloutError::EmptyWave(rule));
        }
        let rollout = Rollout::begin(release, current, policy, self.clock.now_ms());
        let in_place_of = superseded.as_ref().map(|row| InPlaceOf {
            row,
            generation: state.generation + 1,
        });
        let back = matches!(wish.to, To::Back(_));
        let begun = self
            .store
            .begin_rollout(state.basis(), function, &rollout, back, in_place_of);
        let id = begun.await?;
        state.revision += 1;
        state.generation += u64::from(superseded.is_some());
        tracing::info!(rollout = id, %function, %release, label = to.label(), "a rollout begins");
        let row = RolloutRow {
            id,
            function: function.clone(),
            rollout,
        };
        let open = Open {
            id,
            to,
            rollout: row.rollout.clone(),
            unstored: Additions::default(),
            stored_ms: self.clock.now_ms(),
        };
        if let Some(managed) = state.functions.get_mut(function) {
            managed.open = Some(open);
            managed.queued = None;
        }
        if superseded.is_some() {
            self.show(state);
        }
        self.fleet.wake();
        Ok(Begun::Now(Box::new(row), superseded.map(|row| row.id)))
    }

    /// What waits for its turn, and the rollout that it waits for.
    pub(crate) async fn queued(
        &self,
        function: &FunctionName,
    ) -> Result<Option<(Queued, Option<u64>)>, StoreError> {
        let mut state = self.state.lock().await;
        self.catch_up(&mut state).await?;
        let managed = state.functions.get(function);
        Ok(managed.and_then(|managed| {
            let behind = managed.open.as_ref().map(|open| open.id);
            Some((managed.queued.clone()?, behind))
        }))
    }

    /// Takes what waits for its turn away.
    pub(crate) async fn unqueue(&self, function: &FunctionName) -> Result<(), RolloutError> {
        let mut state = self.state.lock().await;
        self.catch_up(&mut state).await?;
        loop {
            match self.store.unqueue_rollout(state.basis(), function).await {
                Ok(removed) => {
                    state.revision += 1;
                    if let Some(managed) = state.functions.get_mut(function) {
                        managed.queued = None;
                    }
                    return match removed {
                        true => Ok(()),
                        false => Err(RolloutError::NothingQueued(function.clone())),
                    };
                }
                Err(Unstored::Outdated) => self.reload(&mut state).await?,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Begins what has waited for its turn. What cannot begin any more is given up, and the audit log says why.
    async fn begin_queued(&self, state: &mut State) -> Result<(), RolloutError> {
        let ready = |(_, managed): &(&FunctionName, &Managed)| managed.open.is_none();
        let queued: Vec<Queued> = state
            .functions
            .iter()
            .filter(ready)
            .filter_map(|(_, managed)| managed.queued.clone())
            .collect();
        for queued in queued {
            let function = &queued.function;
            let wish = Wish::from(queued.request.clone());
            let error = match self.try_begin(state, function, &wish).await {
                Ok(Begun::Now(row, _)) => {
                    let gates = match queued.request.emergency {
                        true => ", its gates skipped",
                        false => "",
                    };
                    let told = format!("rollout {}, which was queued, begins{gates}", row.id);
                    self.say("rollout.begun", function, told).await?;
                    continue;
                }
                Ok(Begun::Behind(..)) => continue,
                Err(error @ (RolloutError::Store(_) | RolloutError::Unstored(_))) => {
                    return Err(error);
                }
                Err(error) => error,
            };
            tracing::warn!(%function, %error, "a queued rollout cannot begin");
            self.store.unqueue_rollout(state.basis(), function).await?;
            state.revision += 1;
            if let Some(managed) = state.functions.get_mut(function) {
                managed.queued = None;
            }
            let told = format!("the queued rollout cannot begin: {error}");
            self.say("rollout.dropped", function, told).await?;
        }
        Ok(())
    }

    /// Puts into the audit log what nobody did at this moment.
    async fn say(
        &self,
        action: &str,
        object: impl std::fmt::Display,
        told: String,
    ) -> Result<(), StoreError> {
        let deed = Deed {
            actor_kind: "coordinator",
            actor: "rollouts".to_owned(),
            action: action.to_owned(),
            object: object.to_string(),
            ..Deed::default()
        };
        let came = Came::done(told);
        self.store.record(&deed, &came, self.clock.now_ms()).await?;
        Ok(())
    }

    /// Nodes that worked on a later generation than there is had it from a coordinator whose database was newer, or
    /// from another fleet, and would ignore all that this one has to say. So it goes on behind theirs.
    async fn overtake(&self, state: &mut State) -> Result<(), StoreError> {
        let now = Instant::now();
        let lately = |at: Option<Instant>, every| at.is_some_and(|at| now < at + every);
        // Whoever is further ahead had that from no coordinator.
        let at_most = state.generation.saturating_add(MAX_GENERATION_JUMP);
        let (node, said) = match self.fleet.latest_generation(at_most) {
            Some((node, said)) if said > state.generation => (node, said),
            _ => return Ok(()),
        };
        if lately(state.overtook, OVERTAKE_EVERY) {
            return Ok(());
        }
        state.overtook = Some(now);
        let basis = Basis {
            lease: state.lease,
            ..state.basis()
        };
        match self.store.raise_generation(basis, said + 1).await {
            Ok(()) => {}
            // Whatever was decided is read first.
            Err(Unstored::Outdated) => return self.reload(state).await,
            Err(Unstored::LeaseLost) => {
                state.lease = None;
                return Ok(());
            }
            Err(Unstored::Store(error)) => return Err(error),
        }
        let before = state.generation;
        state.revision += 1;
        state.generation = said + 1;
        tracing::warn!(%node, said, before, "a node knows a later desired state than this coordinator, whose database is older or another fleet's; its generations go on behind");
        self.show(state);
        if lately(state.told_so, OVERTAKE_TOLD_EVERY) {
            return Ok(());
        }
        state.told_so = Some(now);
        let told = format!(
            "generation {before} became {}: the node has worked on {said}, which is not in this database; was it restored from a copy? what was decided after that copy is lost",
            said + 1
        );
        self.say("fleet.overtaken", node, told).await
    }

    /// What would come of a wish as the fleet is now. Nothing is begun.
    pub(crate) async fn foresee(
        &self,
        function: &FunctionName,
        request: RolloutRequest,
    ) -> Result<Foreseen, RolloutError> {
        let mut state = self.state.lock().await;
        self.catch_up(&mut state).await?;
        let fitting = self.fit(function, &Wish::from(request)).await?;
        let managed = state.functions.get(function);
        let (sights, waves) = self.waves(function, &fitting.to.version, &fitting.policy);
        Ok(Foreseen {
            release: fitting.to.release(),
            previous: fitting.current,
            policy: fitting.policy,
            waves,
            sights,
            running: managed.and_then(|managed| Some(managed.open.as_ref()?.id)),
        })
    }

    fn waves(
        &self,
        function: &FunctionName,
        version: &Version,
        policy: &Policy,
    ) -> (BTreeMap<Name, Sight>, Waves) {
        let allowed = |region: &str, labels: &BTreeMap<_, _>| version.placed_on(region, labels);
        let sights = self.fleet.sights(function, allowed);
        let waves = plan_waves(&sights, policy, self.clock.now_ms());
        (sights, waves)
    }

    /// Whether what somebody wishes is possible as far as the version goes, and how it is to be done.
    async fn fit(&self, function: &FunctionName, wish: &Wish) -> Result<Fitting, RolloutError> {
        let row = self.store.function(function).await?;
        let row = row.ok_or_else(|| RolloutError::UnknownFunction(function.clone()))?;
        let release = self.wanted(function, row.current, wish).await?;
        let unknown = || RolloutError::UnknownVersion {
            function: function.clone(),
            version: release.version,
        };
        let mut known = Known::default();
        let to = known
            .deployable(&self.store, &self.configurations, Some(release))
            .await?
            .filter(|to| to.version.statement.function == *function)
            .ok_or_else(unknown)?;
        let version = &to.version;
        if let Some(why) = to.damaged() {
            return Err(RolloutError::Damaged {
                function: function.clone(),
                label: to.label(),
                why: why.to_owned(),
            });
        }
        let is_there = row
            .current
            .is_some_and(|current| current.version == version.id);
        let artifact_bytes = match is_there {
            true => 0,
            false => {
                let bytes = self.store.artifact_bytes(version.statement.artifact);
                bytes.await?
            }
        };
        let policy = self.policy(version, artifact_bytes, wish)?;
        let rows = self.store.tenant_keys(&function.tenant).await?;
        let rows = rows.unwrap_or_default();
        let now_ms = self.clock.now_ms();
        let revoked = |row: &KeyRow| row.refuses(&version.signed.key, now_ms);
        // Going back is to what ran here before.
        let ran = match wish.to {
            To::Version(_) => false,
            To::Back(_) => {
                let last = self.store.last_release_of(function, version.id).await?;
                last.is_some()
            }
        };
        // A configuration that stays is nothing new.
        let stays = row
            .current
            .is_some_and(|current| current.version == version.id);
        if !ran && !stays && rows.iter().any(revoked) {
            return Err(RolloutError::KeyRevoked {
                version: version.id,
                tenant: function.tenant.clone(),
            });
        }
        if let Some(configured) = &to.configuration {
            let revoked = |row: &KeyRow| row.refuses(&configured.signed.key, now_ms);
            let stays = row
                .current
                .is_some_and(|current| current.configuration == Some(configured.id));
            let had = match wish.to {
                To::Version(_) => false,
                To::Back(_) => self.store.has_had(function, configured.id).await?,
            };
            if !stays && !had && rows.iter().any(revoked) {
                return Err(RolloutError::ConfigurationKeyRevoked {
                    number: configured.statement.number,
                    tenant: function.tenant.clone(),
                });
            }
        }
        let valid = rows.iter().filter(|row| row.revoked_ms.is_none());
        Ok(Fitting {
            keys: valid.map(|row| row.key).collect(),
            current: row.current,
            to,
            policy,
        })
    }

    /// Which version and which configuration a wish means.
    async fn wanted(
        &self,
        function: &FunctionName,
        current: Option<Release>,
        wish: &Wish,
    ) -> Result<Release, RolloutError> {
        let nothing = || match wish.to {
            To::Version(_) => RolloutError::NoVersion(function.clone()),
            To::Back(_) => RolloutError::NothingBefore(function.clone()),
        };
        if let (To::Back(None), None) = (&wish.to, wish.configuration) {
            let before = self
                .store
                .release_before(function, current.ok_or_else(nothing)?);
            return before.await?.ok_or_else(nothing);
        }
        let (To::Version(version) | To::Back(version)) = wish.to;
        let version = match version {
            Some(version) => version,
            None => current.ok_or_else(nothing)?.version,
        };
        let configuration = match (wish.configuration, &wish.to, current) {
            (Some(number), ..) => {
                let found = self.store.numbered_configuration(function, number).await?;
                let unknown = || RolloutError::UnknownConfiguration {
                    function: function.clone(),
                    number,
                };
                Some(found.ok_or_else(unknown)?.id)
            }
            (None, To::Back(_), current) => {
                let last = self.store.last_release_of(function, version).await?;
                last.or(current).and_then(|release| release.configuration)
            }
            (None, To::Version(_), Some(current)) => current.configuration,
            (None, To::Version(_), None) => {
                let newest = self.store.newest_configuration(function).await?;
                newest.map(|newest| newest.id)
            }
        };
        Ok(Release {
            version,
            configuration,
        })
    }

    fn policy(
        &self,
        version: &Version,
        artifact_bytes: u64,
        wish: &Wish,
    ) -> Result<Policy, RolloutError> {
        let manifest = &version.statement.manifest.rollout;
        let waves = wish.waves.clone();
        let waves = waves.unwrap_or_else(|| manifest.waves.clone());
        check_waves(&waves).map_err(RolloutError::BadWaves)?;
        let bake_ms = wish.bake_ms.unwrap_or(manifest.bake_ms);
        if bake_ms > MAX_BAKE_MS {
            return Err(RolloutError::BadBake(bake_ms));
        }
        let min_requests = wish.min_requests.unwrap_or(manifest.min_requests);
        if min_requests > MAX_GATE_REQUESTS {
            return Err(RolloutError::BadMinRequests(min_requests));
        }
        Ok(Policy {
            waves,
            bake_ms,
            max_error_ppm: manifest.max_error_ppm,
            prepare_timeout_ms: self.timing.prepare_timeout_ms,
            artifact_bytes,
            absent_grace_ms: manifest
                .skip_after_ms
                .unwrap_or(self.timing.absent_grace_ms),
            quorum: wish.quorum_of(manifest),
            gates: manifest.gates.clone(),
            min_requests,
            skips_gates: wish.skips_gates,
            goes_back: matches!(wish.to, To::Back(_)),
        })
    }

    /// Tells a rollout that goes on what to do.
    pub(crate) async fn order(
        &self,
        row: RolloutRow,
        order: Order,
    ) -> Result<RolloutRow, RolloutError> {
        let id = row.id;
        let mut state = self.state.lock().await;
        self.catch_up(&mut state).await?;
        loop {
            let managed = state.functions.get(&row.function);
            let open = managed
                .and_then(|managed| managed.open.as_ref())
                .filter(|open| open.id == id);
            let mut open = open.cloned().ok_or(RolloutError::Ended(id))?;
            let moment = state.moment(&self.clock);
            let mut actions = Vec::new();
            match order {
                Order::Abort => actions = open.rollout.abort(moment),
                _ if open.rollout.state != RolloutState::Running => {
                    return Err(RolloutError::GoesBack(id));
                }
                Order::Pause => open.rollout.pause(),
                Order::Resume => open.rollout.unpause(moment.now_ms),
                Order::Promote { wave, all } => {
                    if !open.rollout.promote(wave, all) {
                        return Err(RolloutError::NothingToPromote(id));
                    }
                }
            }
            tracing::info!(rollout = id, function = %row.function, ?order, "told by the operator");
            let rollout = open.rollout.clone();
            let basis = state.basis();
            match self
                .commit(&mut state, basis, &row.function, open, &actions)
                .await
            {
                Ok(()) => {
                    self.fleet.wake();
                    return Ok(RolloutRow { rollout, ..row });
                }
                Err(Unstored::Outdated) => self.reload(&mut state).await?,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Changes a tenant's keys; the nodes know before a version signed with a new one reaches them.
    pub(crate) async fn change_keys(
        &self,
        tenant: &Name,
        change: &KeyChange,
    ) -> Result<KeysOutcome, Unstored> {
        let mut state = self.state.lock().await;
        self.catch_up(&mut state).await?;
        loop {
            let (basis, generation) = (state.basis(), state.generation + 1);
            let now_ms = self.clock.now_ms();
            let changed = self
                .store
                .change_keys(basis, tenant, change, generation, now_ms);
            match changed.await {
                Ok(outcome) => {
                    self.catch_up(&mut state).await?;
                    return Ok(outcome);
                }
                Err(Unstored::Outdated) => self.reload(&mut state).await?,
                Err(error) => return Err(error),
            }
        }
    }

    /// Removes versions that nobody may need; returns what became of each.
    pub(crate) async fn prune(&self, wish: &PruneWish) -> Result<Vec<Fate>, Unstored> {
        let mut state = self.state.lock().await;
        self.catch_up(&mut state).await?;
        loop {
            let now_ms = self.clock.now_ms();
            match self.store.prune(state.basis(), wish, now_ms).await {
                Ok(fates) => {
                    state.revision += 1;
                    return Ok(fates);
                }
                Err(Unstored::Outdated) => self.reload(&mut state).await?,
                Err(error) => return Err(error),
            }
        }
    }

    /// Has a node take no requests, or take them again; whether there is such a node.
    pub(crate) async fn drain(&self, node: &Name, drained: bool) -> Result<bool, Unstored> {
        self.change_node(node, |_| Some(NodeChange::Drained(drained)))
            .await
    }

    /// Has a node keep what it has and get nothing new, or be as others again; whether there is such a
    /// node.
    pub(crate) async fn cordon(&self, node: &Name, cordoned: bool) -> Result<bool, Unstored> {
        let change = |state: &State| {
            // What it keeps is what it had when it was cordoned first.
            if cordoned && self.fleet.is_cordoned(node) {
                return None;
            }
            let (region, labels) = self.fleet.place(node);
            let pins = cordoned.then(|| state.target().pins(node, &region, &labels));
            Some(NodeChange::Cordoned(pins))
        };
        self.change_node(node, change).await
    }

    /// Sets labels of a node, or takes those off that have no value here; whether there is such a node.
    pub(crate) async fn label(
        &self,
        node: &Name,
        changes: &BTreeMap<String, Option<String>>,
    ) -> Result<bool, Unstored> {
        let change = |_: &State| {
            let (_, mut labels) = self.fleet.place(node);
            for (key, value) in changes {
                match value {
                    Some(value) => labels.insert(key.clone(), value.clone()),
                    None => labels.remove(key),
                };
            }
            Some(NodeChange::Labels(labels))
        };
        self.change_node(node, change).await
    }

    /// Voids a node's certificate and ends its link; whether there is such a node.
    pub(crate) async fn revoke(&self, node: &Name) -> Result<bool, Unstored> {
        self.change_node(node, |_| Some(NodeChange::Revoked)).await
    }

    async fn change_node(
        &self,
        node: &Name,
        change: impl Fn(&State) -> Option<NodeChange>,
    ) -> Result<bool, Unstored> {
        let mut state = self.state.lock().await;
        self.catch_up(&mut state).await?;
        // It may have joined since without anything being decided.
        self.fleet.learn(&self.store.nodes().await?);
        loop {
            let Some(change) = change(&state) else {
                return Ok(true);
            };
            let (basis, generation) = (state.basis(), state.generation + 1);
            let now_ms = self.clock.now_ms();
            let changed = self
                .store
                .change_node(basis, node, &change, generation, now_ms);
            match changed.await {
                Ok(known) => {
                    self.catch_up(&mut state).await?;
                    return Ok(known);
                }
                Err(Unstored::Outdated) => self.reload(&mut state).await?,
                Err(error) => return Err(error),
            }
        }
    }

    /// One look at every open rollout; whether any is still open that is for this coordinator to
    /// carry out.
    async fn step(&self) -> bool {
        let mut state = self.state.lock().await;
        let Some(lease) = state.lease else {
            return false;
        };
        if let Err(error) = self.overtake(&mut state).await {
            tracing::error!(%error, "nodes are ahead of this coordinator, and it could not go on behind them");
        }
        if state.lease.is_none() {
            return false;
        }
        match self.begin_queued(&mut state).await {
            Ok(()) => {}
            Err(RolloutError::Unstored(Unstored::Outdated)) => {
                if let Err(error) = self.reload(&mut state).await {
                    tracing::error!(%error, "what others have decided could not be read");
                }
            }
            Err(error) => tracing::error!(%error, "a queued rollout could not be begun"),
        }
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
            let counted = tallies.get(&(function.clone(), open.to.release().id()));
            for (node, tally) in counted.into_iter().flatten() {
                open.rollout.note(node, tally);
                let unstored = open.unstored.counted.entry(node.clone());
                unstored.or_default().add(tally);
            }
            let mut next = open.clone();
            let sights = self.fleet.sights(&function, |region, labels| {
                next.to.version.placed_on(region, labels)
            });
            let actions = next.rollout.tick(&sights, state.moment(&self.clock));
            let Some(before) = state.functions.get(&function).and_then(|m| m.open.as_ref()) else {
                continue;
            };
            let same = next.rollout == before.rollout && actions.is_empty();
            let age_ms = self.clock.now_ms().saturating_sub(next.stored_ms);
            let fresh = u128::from(age_ms) < GATE_COUNTS_EVERY.as_millis();
            if same && (fresh || next.unstored == Additions::default()) {
                continue;
            }
            let basis = Basis {
                lease: Some(lease),
                ..state.basis()
            };
            // Where it is not stored, nothing was acted on.
            match self
                .commit(&mut state, basis, &function, next, &actions)
                .await
            {
                Ok(()) => {}
                Err(Unstored::Outdated) => {
                    if let Err(error) = self.reload(&mut state).await {
                        tracing::error!(%error, "what others have decided could not be read");
                    }
                }
                Err(Unstored::LeaseLost) => {
                    tracing::warn!("another coordinator executes the rollouts now");
                    state.lease = None;
                    return false;
                }
                Err(Unstored::Store(error)) => {
                    tracing::error!(%function, %error, "a rollout's step could not be stored");
                }
            }
        }
        state
            .functions
            .values()
            .any(|managed| managed.open.is_some() || managed.queued.is_some())
    }

    /// Stores a step and makes it visible, in this order.
    async fn commit(
        &self,
        state: &mut State,
        basis: Basis,
        function: &FunctionName,
        mut next: Open,
        actions: &[Action],
    ) -> Result<(), Unstored> {
        let publish = actions.contains(&Action::Publish);
        let adopt = actions.contains(&Action::Adopt);
        let generation = state.generation + u64::from(publish);
        let rollout = &next.rollout;
        let adoption = adopt.then_some(Adoption {
            current: rollout.release,
            fallback: rollout.previous,
        });
        let new_generation = publish.then_some(generation);
        let row = RolloutRow {
            id: next.id,
            function: function.clone(),
            rollout: rollout.clone(),
        };
        self.store
            .save_step(basis, &row, new_generation, adoption)
            .await?;

        next.unstored = Additions::default();
        next.stored_ms = self.clock.now_ms();
        state.revision += 1;
        state.generation = generation;
        let mut moved = None;
        if let Some(managed) = state.functions.get_mut(function) {
            let before = managed.open.as_ref().map(|open| open.rollout.state);
            log(next.id, function, managed.open.as_ref(), &next.rollout);
            moved = (before != Some(next.rollout.state)).then(|| next.clone());
            if adopt {
                managed.fallback = managed.current.replace(next.to.clone());
            }
            managed.open = (!next.rollout.ended()).then_some(next);
        }
        if publish {
            self.show(state);
        }
        // Last: whoever waits for this may go away.
        if let Some(moved) = moved {
            self.record(function, &moved).await;
        }
        Ok(())
    }

    /// A rollout is where it was not before, and it is stored: what is left is to say so if the audit log cannot.
    async fn record(&self, function: &FunctionName, open: &Open) {
        let action = match open.rollout.state {
            RolloutState::Running => return,
            RolloutState::Completed => "rollout.completed",
            RolloutState::RollingBack => "rollout.turned",
            RolloutState::RolledBack => "rollout.undone",
            // Whoever did that is in the audit log with it.
            RolloutState::Superseded => return,
        };
        let (id, label) = (open.id, open.to.label());
        let told = format!("rollout {id} to {label}: {}", open.rollout.reason);
        if let Err(error) = self.say(action, function, told).await {
            tracing::error!(rollout = id, %error, "where a rollout is is not in the audit log");
        }
    }

    fn show(&self, state: &State) {
        let target = Arc::new(state.target());
        self.fleet.watch(target.watched());
        self.target.send_replace(target);
    }
}

impl State {
    /// On what a decision of a person rests.
    fn basis(&self) -> Basis {
        Basis {
            revision: self.revision,
            lease: None,
        }
    }

    /// Becomes what is stored, with what has come to it here and is not stored.
    async fn read(
        &mut self,
        store: &Store,
        configurations: &Configurations,
        decided: Decided,
    ) -> Result<(), StoreError> {
        let mut known = Known::default();
        let mut unstored = BTreeMap::new();
        for managed in self.functions.values() {
            let open = managed.open.as_ref();
            let releases = [&managed.current, &managed.fallback].into_iter().flatten();
            for release in releases.chain(open.map(|open| &open.to)) {
                known.learn(release);
            }
            unstored.extend(open.map(|open| (open.id, open.unstored.clone())));
        }
        let mut functions = BTreeMap::new();
        for row in decided.functions {
            let keys = decided.keys.get(&row.name.tenant);
            let managed = Managed {
                keys: keys.cloned().unwrap_or_default(),
                current: known.deployable(store, configurations, row.current).await?,
                fallback: known
                    .deployable(store, configurations, row.fallback)
                    .await?,
                open: None,
                queued: None,
            };
            functions.insert(row.name, managed);
        }
        for queued in decided.queued {
            if let Some(managed) = functions.get_mut(&queued.function) {
                managed.queued = Some(queued);
            }
        }
        for row in decided.open {
            let to = Some(row.rollout.release);
            let to = known.deployable(store, configurations, to).await?;
            if let (Some(managed), Some(to)) = (functions.get_mut(&row.function), to) {
                let mut rollout = row.rollout;
                let unstored: Additions = unstored.remove(&row.id).unwrap_or_default();
                if let Some(resumed_ms) = unstored.resumed_ms {
                    rollout.resume(resumed_ms);
                }
                for (node, tally) in &unstored.counted {
                    rollout.note(node, tally);
                }
                managed.open = Some(Open {
                    id: row.id,
                    to,
                    rollout,
                    unstored,
                    // What is unstored is stored at the next look.
                    stored_ms: 0,
                });
            }
        }
        let mut held = BTreeMap::<Name, Held>::new();
        for row in decided.nodes {
            let Some(pins) = row.cordoned.filter(|_| !row.revoked) else {
                continue;
            };
            let of_node = held.entry(row.name).or_default();
            for (function, (kept, before)) in pins {
                let kept = known.deployable(store, configurations, Some(kept)).await?;
                let before = known.deployable(store, configurations, before).await?;
                of_node.extend(kept.map(|kept| (function, (kept, before))));
            }
        }
        self.functions = functions;
        self.held = held;
        self.revision = decided.revision;
        self.generation = decided.generation;
        Ok(())
    }

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
                    to: open.to.clone(),
                    nodes: open.rollout.moved().into_iter().cloned().collect(),
                }),
        };
        Target {
            generation: self.generation,
            functions: self.functions.iter().map(function).collect(),
            held: self.held.clone(),
        }
    }

    /// Upper bound of a node's desired state if `release` comes to it.
    fn bytes_with(&self, release: &Deployable) -> usize {
        let of = |managed: &Managed| {
            let releases = [
                managed.current.as_deref(),
                managed.fallback.as_deref(),
                managed.open.as_ref().map(|open| &*open.to),
            ];
            let releases = releases.into_iter().flatten().map(Deployable::bytes);
            releases.sum::<usize>() + 40 * managed.keys.len() + 512
        };
        self.functions.values().map(of).sum::<usize>() + release.bytes()
    }
}

/// Versions and configurations, which never change, as far as they have been read.
#[derive(Default)]
struct Known {
    versions: BTreeMap<VersionId, Arc<Version>>,
    configured: BTreeMap<ConfigurationId, Arc<Configured>>,
}

impl Known {
    fn learn(&mut self, release: &Deployable) {
        let version = &release.version;
        self.versions.insert(version.id, version.clone());
        if let Some(configured) = &release.configuration {
            self.configured.insert(configured.id, configured.clone());
        }
    }

    /// All that belongs to a release, from what is known or from the store; nothing if its version was removed.
    async fn deployable(
        &mut self,
        store: &Store,
        configurations: &Configurations,
        release: Option<Release>,
    ) -> Result<Option<Arc<Deployable>>, StoreError> {
        let Some(Release {
            version,
            configuration,
        }) = release
        else {
            return Ok(None);
        };
        let version = match self.versions.get(&version) {
            Some(version) => version.clone(),
            None => match store.version(version).await? {
                Some(version) => Arc::new(version),
                None => return Ok(None),
            },
        };
        let configuration = match configuration {
            None => None,
            Some(id) => match self.configured.get(&id) {
                Some(configured) => Some(configured.clone()),
                None => Some(Arc::new(configurations.whole(id).await?)),
            },
        };
        let deployable = Deployable {
            version,
            configuration,
        };
        self.learn(&deployable);
        Ok(Some(Arc::new(deployable)))
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
