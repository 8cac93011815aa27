//! The other coordinators on the same database.
//!
//! ```text
//!            beat, links, outcomes                        every tick, and when woken
//!   this ───────────────────────────▶ database ◀──────── the others
//!            beats, links, decisions
//!   this ◀───────────────────────────
//! ```
//! A tick tells the others what has changed here, takes in what they tell, and sees who lives.
//! Whose beat does not rise for [`COORDINATOR_SILENCE`] is taken for dead: its links are down, and
//! if it held the lease for executing rollouts, the first to notice has it. A coordinator that was
//! only slow finds itself buried, registers anew and has lost the lease; its token keeps the steps
//! that it may still be about to take out of the database.
//!
//! Ticks come often enough without being woken; LISTEN and NOTIFY only make them come sooner.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use crate::clock::Clock;
use crate::limits::{COORDINATOR_SILENCE, COORDINATOR_TICK};
use crate::nodes::{Fleet, overtake};
use crate::rollout::Rollouts;
use crate::store::{Store, StoreError};

/// This coordinator among the others.
pub(crate) struct Peers {
    pub(crate) store: Store,
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) rollouts: Arc<Rollouts>,
    pub(crate) clock: Clock,
    /// New at every start.
    pub(crate) id: String,
    /// Of its API, for people.
    pub(crate) address: String,
}

/// What was seen so far.
#[derive(Default)]
pub(crate) struct Seen {
    /// The newest change of a link.
    change: u64,
    /// The beat of each coordinator, and since when it is the same.
    beats: BTreeMap<String, (u64, Instant)>,
}

impl Peers {
    /// Makes itself known, and looks around once.
    pub(crate) async fn join(&self) -> Result<Seen, StoreError> {
        self.register().await?;
        let mut seen = Seen::default();
        self.tick(&mut seen).await?;
        Ok(seen)
    }

    /// Ticks until dropped.
    pub(crate) async fn run(&self, mut seen: Seen) {
        let woken = Notify::new();
        tokio::select! {
            () = self.store.listen(&woken) => {}
            () = self.tick_on(&woken, &mut seen) => {}
        }
    }

    async fn tick_on(&self, woken: &Notify, seen: &mut Seen) {
        let mut failing = false;
        loop {
            let wake = async {
                tokio::select! {
                    () = woken.notified() => {}
                    () = self.fleet.to_tell() => {}
                }
            };
            let _ = timeout(COORDINATOR_TICK, wake).await;
            let tick = self.tick(seen).await;
            if tick.is_err() {
                // While the database is away nobody's beat can be seen; that is no silence of theirs.
                seen.beats.clear();
            }
            match &tick {
                Ok(()) if failing => tracing::info!("the other coordinators can be seen again"),
                Err(error) if !failing => {
                    tracing::error!(%error, "the other coordinators cannot be seen");
                }
                // It has been said.
                Ok(()) | Err(_) => {}
            }
            failing = tick.is_err();
            // However much there is to tell, so often is often enough.
            sleep(COORDINATOR_TICK / 10).await;
        }
    }

    async fn register(&self) -> Result<(), StoreError> {
        let now_ms = self.clock.now_ms();
        self.store
            .register_coordinator(&self.id, &self.address, now_ms)
            .await
    }

    async fn tick(&self, seen: &mut Seen) -> Result<(), StoreError> {
        if !self.store.beat(&self.id).await? {
            tracing::warn!("the other coordinators took this one for dead; it begins again");
            self.rollouts.follow().await;
            self.register().await?;
            self.fleet.tell_all();
        }
        self.tell().await?;
        self.hear(seen).await?;
        self.lead_or_follow(seen).await?;
        self.pass_tallies().await?;
        self.rollouts.refresh().await
    }

    /// What has changed on links here.
    async fn tell(&self) -> Result<(), StoreError> {
        let changes = self.fleet.take_changes();
        if changes.is_empty() {
            return Ok(());
        }
        match self.store.save_links(&self.id, &changes).await {
            Ok(lost) => {
                for connection in lost.iter().filter_map(|node| self.fleet.connection(node)) {
                    overtake(&connection);
                }
                Ok(())
            }
            Err(error) => {
                self.fleet.give_back(&changes);
                Err(error)
            }
        }
    }

    /// What has changed on links of others.
    async fn hear(&self, seen: &mut Seen) -> Result<(), StoreError> {
        let rows = self.store.links_since(&self.id, seen.change).await?;
        let Some(newest) = rows.last().map(|row| row.change) else {
            return Ok(());
        };
        // They may be about nodes that have joined since.
        self.rollouts.refresh_nodes().await?;
        for connection in self.fleet.told(rows) {
            overtake(&connection);
        }
        seen.change = newest;
        Ok(())
    }

    /// Buries who lives no longer, and takes the lease if nobody has it.
    async fn lead_or_follow(&self, seen: &mut Seen) -> Result<(), StoreError> {
        let (coordinators, mut holder) = self.store.coordinators().await?;
        let now = Instant::now();
        seen.beats
            .retain(|id, _| coordinators.iter().any(|other| other.id == *id));
        for other in coordinators.iter().filter(|other| other.id != self.id) {
            let (beat, since) = seen
                .beats
                .entry(other.id.clone())
                .or_insert((other.beat, now));
            if *beat != other.beat {
                (*beat, *since) = (other.beat, now);
            }
            let silent = now.duration_since(*since) > COORDINATOR_SILENCE;
            if silent && self.store.bury(&other.id, other.beat).await? {
                tracing::warn!(
                    id = other.id,
                    address = other.address,
                    "a coordinator has gone"
                );
                holder = holder.filter(|holder| *holder != other.id);
            }
        }
        let led = match holder {
            // What it had before it was buried, or could not begin to use, it takes anew.
            Some(holder) if holder == self.id => self.rollouts.leads().await,
            Some(holder) => coordinators.iter().any(|other| other.id == holder),
            None => false,
        };
        if !led && let Some(token) = self.store.take_lease(&self.id).await? {
            tracing::info!(token, "this coordinator executes the rollouts now");
            self.rollouts.lead(token).await?;
        }
        Ok(())
    }

    /// Outcomes go to whoever executes the rollouts.
    async fn pass_tallies(&self) -> Result<(), StoreError> {
        if self.rollouts.leads().await {
            let left = self.store.take_tallies().await?;
            if !left.is_empty() {
                self.fleet.counted_elsewhere(left);
            }
            return Ok(());
        }
        let tallies = self.fleet.take_tallies();
        if tallies.is_empty() {
            return Ok(());
        }
        let left = self.store.leave_tallies(&tallies).await;
        if left.is_err() {
            self.fleet.counted_elsewhere(tallies);
        }
        left
    }

    /// Lets the others know at once that this coordinator ends.
    pub(crate) async fn leave(&self) {
        if let Err(error) = self.store.bury(&self.id, u64::MAX).await {
            tracing::warn!(%error, "the other coordinators have to notice by themselves");
        }
    }
}
