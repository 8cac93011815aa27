//! Deploying: making what is here what the coordinator wants, one version at a time.
//!
//! [`core`] decides, this module does: fetches ([`fetch`], [`part`]), boots and probes ([`prepare`]), keeps files
//! ([`store`]) and publishes who serves what ([`routes`]). Signatures and digests are checked before
//! anything is used, and never on a request's path.

mod core;
mod fetch;
mod part;
pub(crate) mod prepare;
pub(crate) mod routes;
mod store;

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use holm_model::configuration::ReleaseId;
use holm_model::control::{Configured, Observed};
use holm_vmm::{Choice, Hypervisor, Snapshot};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::AbortHandle;

use self::core::{Action, Event, Fault, Reconciler, VerifiedRelease};
use self::routes::{Live, Table, Tenants};
use self::store::DeployStore;
use crate::files::{self, FileError};
use crate::logs::Logs;
use crate::meter::Meter;
use crate::outbound::{Allowed, Outside};
use crate::pool::core::Key;
use crate::session::Link;
use crate::tally::Tally;

/// Carries out what the reconciler decides.
pub(crate) struct Deployer {
    core: Reconciler,
    store: DeployStore,
    hypervisor: Hypervisor,
    /// Bytes that an instance may keep to itself for being faster.
    room: u64,
    link: Link,
    tally: Arc<Tally>,
    logs: Arc<Logs>,
    outside: Outside,
    meter: Arc<Mutex<Meter>>,
    /// One fetch at a time: two versions may share an artifact, and with it the file being written.
    fetches: Arc<Semaphore>,
    /// One boot at a time, so that requests keep most of the machine.
    boots: Arc<Semaphore>,
    verified: HashMap<ReleaseId, VerifiedRelease>,
    live: HashMap<ReleaseId, Arc<Live>>,
    under_way: HashMap<ReleaseId, AbortHandle>,
    next_key: u64,
    tenants: Tenants,
    routes: watch::Sender<Arc<Table>>,
    observed: watch::Sender<Observed>,
    restored: watch::Sender<bool>,
    done: mpsc::Sender<Done>,
    ended: mpsc::Receiver<Done>,
}

/// Where deployment publishes what it has done.
pub(crate) struct Published {
    pub(crate) routes: watch::Receiver<Arc<Table>>,
    pub(crate) observed: watch::Receiver<Observed>,
    /// Whether all that the disk says should be here has been brought up, or has failed.
    pub(crate) restored: watch::Receiver<bool>,
}

struct Done {
    release: ReleaseId,
    event: Event,
    /// Of a preparation that worked.
    snapshot: Option<Arc<Snapshot>>,
}

/// What a deployer is told and given.
pub(crate) struct Means {
    pub(crate) hypervisor: Hypervisor,
    /// Slots of the node.
    pub(crate) slots: usize,
    pub(crate) tally: Arc<Tally>,
    pub(crate) logs: Arc<Logs>,
    pub(crate) meter: Meter,
    pub(crate) outside: Outside,
}

/// A deployer that has not begun, because it has no link yet.
pub(crate) struct Opened {
    store: DeployStore,
    routes: watch::Sender<Arc<Table>>,
    observed: watch::Sender<Observed>,
    restored: watch::Sender<bool>,
}

/// Opens the deployment files under `dir`.
pub(crate) fn open(dir: &Path) -> Result<(Opened, Published), FileError> {
    let store = DeployStore::open(dir)?;
    let (routes, routes_receiver) = watch::channel(Arc::default());
    let (observed, observed_receiver) = watch::channel(Observed::default());
    let (restored, restored_receiver) = watch::channel(false);
    let published = Published {
        routes: routes_receiver,
        observed: observed_receiver,
        restored: restored_receiver,
    };
    Ok((
        Opened {
            store,
            routes,
            observed,
            restored,
        },
        published,
    ))
}

impl Opened {
    /// The deployer itself; [`Deployer::run`] makes it work.
    pub(crate) fn begin(self, means: Means, link: Link) -> Deployer {
        let Opened {
            store,
            routes,
            observed,
            restored,
        } = self;
        let Means {
            hypervisor,
            slots,
            tally,
            logs,
            meter,
            outside,
        } = means;
        let (done, ended) = mpsc::channel(64);
        Deployer {
            core: Reconciler::default(),
            store,
            hypervisor,
            room: Choice::room(slots),
            link,
            tally,
            logs,
            outside,
            meter: Arc::new(Mutex::new(meter)),
            fetches: Arc::new(Semaphore::new(1)),
            boots: Arc::new(Semaphore::new(1)),
            verified: HashMap::new(),
            live: HashMap::new(),
            under_way: HashMap::new(),
            next_key: 0,
            tenants: Tenants::default(),
            routes,
            observed,
            restored,
            done,
            ended,
        }
    }
}

impl Deployer {
    /// Brings up what the disk says, then follows `desired` as long as it is polled.
    pub(crate) async fn run(mut self, mut desired: watch::Receiver<Option<Configured>>) {
        match self.store.desired() {
            Ok(Some(last)) => {
                self.want(last, false);
                let held = |hex: &str| {
                    let mut id = [0; 32];
                    hex::decode_to_slice(hex, &mut id).is_ok()
                        && self.core.holds(holm_model::ids::Digest(id))
                };
                if let Err(error) = self.store.sweep(&self.core.artifacts(), held) {
                    tracing::warn!(%error, "files of versions long gone stay for now");
                }
            }
            Ok(None) => {}
            Err(error) => tracing::error!(%error, "the last desired state cannot be read"),
        }
        // What the disk says may be nothing.
        self.publish();
        loop {
            tokio::select! {
                changed = desired.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let Some(state) = desired.borrow_and_update().clone() else { continue };
                    self.want(state, true);
                }
                Some(done) = self.ended.recv() => self.done(done),
            }
        }
    }

    fn want(&mut self, desired: Configured, keep: bool) {
        let known = self.core.desired() == Some(&desired);
        let generation = desired.desired.generation;
        let Some(actions) = self.core.want(desired) else {
            tracing::warn!(
                generation,
                "a desired state that is older than the one at hand, or of no generation that can be, is ignored"
            );
            return;
        };
        if !known && let Some(desired) = self.core.desired() {
            tracing::info!(
                generation,
                functions = desired.desired.functions.len(),
                "new desired state"
            );
            // Not being able to keep it is no reason not to follow it.
            if keep && let Err(error) = self.store.keep_desired(desired) {
                tracing::error!(%error, "a restart without coordinator would serve an older state");
            }
        }
        self.follow(actions);
    }

    fn done(&mut self, done: Done) {
        let release = done.release;
        let verified = self.verified.get(&release);
        if let (Event::Failed { why, .. }, Some(verified)) = (&done.event, verified) {
            let function = &verified.version.statement.function;
            let label = verified.label();
            let reason = &why.reason;
            match why.is_ours {
                false => {
                    tracing::warn!(%function, label, reason, "the release does not work here")
                }
                true => {
                    tracing::error!(%function, label, reason, "the release cannot be prepared; trying on")
                }
            }
        }
        if let (Some(snapshot), Some(verified)) = (done.snapshot, verified) {
            self.next_key += 1;
            let statement = &verified.version.statement;
            let counts = self.tally.counts(&statement.function, release);
            let version = verified.version.id;
            self.logs.introduce(&snapshot, &statement.function, version);
            let outside = self.outside.of(&statement.function.tenant);
            let allowed = Allowed::new(&statement.manifest.network, &outside);
            let key = Key(self.next_key);
            let tenant = self.tenants.named(&statement.function.tenant);
            let live = Live::new(key, verified, snapshot, allowed, counts, tenant);
            self.live.insert(release, Arc::new(live));
        }

        let actions = self.core.on(done.event);
        self.follow(actions);
    }

    /// Publishes the new state first, so that nothing that is dropped below is still being chosen.
    fn follow(&mut self, actions: Vec<Action>) {
        self.publish();
        for action in actions {
            match action {
                Action::Obtain { attempt, release } => {
                    let id = release.id;
                    self.verified.insert(id, *release);
                    self.obtain(attempt, id);
                }
                Action::ObtainAgain { attempt, release } => self.obtain(attempt, release),
                Action::Wait {
                    attempt,
                    release,
                    after,
                } => self.wait(attempt, release, after),
                Action::Prepare { attempt, release } => self.prepare(attempt, release),
                Action::Probe { attempt, release } => self.probe(attempt, release),
                Action::Keep { release } => self.keep(release),
                Action::Drop { release, artifact } => {
                    if let Some(task) = self.under_way.remove(&release) {
                        task.abort();
                    }
                    if let Some(live) = self.live.remove(&release) {
                        live.dropped.store(true, Ordering::SeqCst);
                    }
                    self.verified.remove(&release);
                    if let Err(error) = self.store.remove(release, artifact) {
                        tracing::warn!(%error, "a file of a dropped version stays until the next start");
                    }
                }
            }
        }
    }

    fn publish(&self) {
        let routed = self.core.routed();
        if let Some(Configured { desired, .. }) = self.core.desired() {
            let functions = desired.functions.iter().map(|function| {
                let release = routed.get(&function.function);
                let live = release.and_then(|release| self.live.get(release)).cloned();
                (function.function.clone(), live)
            });
            let table = Arc::new(Table::new(functions, desired.draining.clone()));
            self.routes.send_replace(table);
        }
        let observed = self.core.observed();
        self.observed.send_if_modified(|last| {
            let changed = *last != observed;
            *last = observed;
            changed
        });
        let settled = self.core.is_settled();
        self.restored
            .send_if_modified(|restored| settled && !std::mem::replace(restored, true));
    }

    fn begin(&mut self, release: ReleaseId, task: impl Future<Output = Done> + Send + 'static) {
        let done = self.done.clone();
        let task = tokio::spawn(async move {
            // If the deployer has gone, nobody wants to know.
            let _ = done.send(task.await).await;
        });
        self.under_way.insert(release, task.abort_handle());
    }

    fn wait(&mut self, attempt: u64, release: ReleaseId, after: Duration) {
        self.begin(release, async move {
            tokio::time::sleep(after).await;
            Done {
                release,
                event: Event::Waited { attempt },
                snapshot: None,
            }
        });
    }

    fn obtain(&mut self, attempt: u64, release: ReleaseId) {
        let Some(verified) = self.verified.get(&release) else {
            return;
        };
        let statement = verified.version.statement.clone();
        let (store, link) = (self.store.clone(), self.link.clone());
        let fetches = self.fetches.clone();
        self.begin(release, async move {
            // The semaphore is never closed.
            let _turn = fetches.acquire().await.ok();
            let event = match fetch::obtain(&store, &statement, &link).await {
                Ok(()) => Event::Obtained { attempt },
                Err(error) => Event::Failed {
                    attempt,
                    why: Fault::ours(error),
                },
            };
            Done {
                release,
                event,
                snapshot: None,
            }
        });
    }

    fn prepare(&mut self, attempt: u64, release: ReleaseId) {
        let Some(verified) = self.verified.get(&release).cloned() else {
            return;
        };
        let (store, hypervisor) = (self.store.clone(), self.hypervisor.clone());
        let boots = self.boots.clone();
        self.begin(release, async move {
            let prepared = one_at_a_time(&boots, move || {
                prepare::snapshot(&hypervisor, &store, &verified)
            });
            let (event, snapshot) = match prepared.await {
                Ok(snapshot) => (Event::Prepared { attempt }, Some(snapshot)),
                Err(why) => (Event::Failed { attempt, why }, None),
            };
            Done {
                release,
                event,
                snapshot,
            }
        });
    }

    fn probe(&mut self, attempt: u64, release: ReleaseId) {
        let Some(live) = self.live.get(&release).cloned() else {
            return;
        };
        let (hypervisor, meter) = (self.hypervisor.clone(), self.meter.clone());
        let room = self.room;
        let boots = self.boots.clone();
        self.begin(release, async move {
            let probed = one_at_a_time(&boots, move || {
                let (record, probed) = prepare::probe(&hypervisor, &live);
                {
                    let mut meter = meter.lock().unwrap_or_else(PoisonError::into_inner);
                    meter.record(record, None).map_err(Fault::ours)?;
                }
                probed?;
                prepare::choose(&hypervisor, &live, room);
                Ok(())
            });
            let event = match probed.await {
                Ok(()) => Event::Probed { attempt },
                Err(why) => Event::Failed { attempt, why },
            };
            Done {
                release,
                event,
                snapshot: None,
            }
        });
    }

    /// Saves the snapshot in the background: serving does not wait for it.
    fn keep(&mut self, release: ReleaseId) {
        self.under_way.remove(&release);
        let Some(live) = self.live.get(&release).cloned() else {
            return;
        };
        let path = self.store.snapshot(release);
        if path.exists() && !live.snapshot.choice_is_new() {
            return;
        }
        tokio::task::spawn_blocking(move || {
            if let Err(error) = live.snapshot.save(&path) {
                tracing::warn!(function = %live.function, %error, "a restart will have to boot it again");
            }
            // If the version was dropped meanwhile, its file was looked for before it was there.
            if live.dropped.load(Ordering::SeqCst)
                && let Err(error) = files::remove_if_there(&path)
            {
                tracing::warn!(%error, "a file of a dropped version stays until the next start");
            }
        });
    }
}

/// Runs `work` on a thread that may block, after those before it.
async fn one_at_a_time<T: Send + 'static>(
    turns: &Semaphore,
    work: impl FnOnce() -> Result<T, Fault> + Send + 'static,
) -> Result<T, Fault> {
    // The semaphore is never closed; without a permit the work is merely not alone.
    let _turn = turns.acquire().await.ok();
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Fault::ours(format!(
            "the node failed in preparing it: {error}; the operator of the node must look into it"
        ))),
    }
}

#[cfg(test)]
pub(crate) mod testing;
