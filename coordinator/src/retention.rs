//! Keeps records of usage for a set time, and removes them then, behind everything else.
//!
//! One coordinator does it, the one that executes rollouts. That two do it for a moment, when that changes, harms
//! nothing: each removal compares what it rests on in its own transaction (`store/retention.rs`). Sums are kept for
//! ever, and bills are made of sums.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use holm_model::ids::Name;
use tokio::time::sleep;

use crate::ca::Authority;
use crate::clock::{Clock, millis};
use crate::limits::{
    LEAST_RETENTION_JUMP, MAX_RETENTION_BUSY, RETENTION_EVERY, RETENTION_JUMP_PART, RETENTION_PAUSE,
};
use crate::rollout::Rollouts;
use crate::store::{Dropped, RetentionError, Store, StoreError};

/// Removes what is no longer kept.
pub(crate) struct Retention {
    pub(crate) store: Store,
    pub(crate) authority: Authority,
    pub(crate) rollouts: Arc<Rollouts>,
    pub(crate) clock: Clock,
    /// How long records are kept after they were entered; for ever if none.
    pub(crate) keep: Option<Duration>,
    /// A person has said that the clock is right, however far it is ahead.
    pub(crate) trust_clock: bool,
}

impl Retention {
    /// Removes what is old enough, until dropped.
    pub(crate) async fn run(&self) {
        let Some(keep) = self.keep else {
            return std::future::pending().await;
        };
        let every = RETENTION_EVERY.min(keep / 4).max(RETENTION_PAUSE);
        let (mut failing, mut faulty) = (false, BTreeSet::new());
        let (mut trusted, mut refused) = (self.trust_clock, false);
        loop {
            sleep(every).await;
            if !self.rollouts.leads().await {
                continue;
            }
            let passed = match self.clock_is_right(keep, trusted, &mut refused).await {
                Ok(true) => {
                    // Said once: it is compared with itself from now on.
                    trusted = false;
                    self.pass(keep, &mut faulty).await
                }
                Ok(false) => continue,
                Err(error) => Err(error.into()),
            };
            match &passed {
                Ok(0) => {}
                Ok(rows) => tracing::info!(rows, "removed usage records that are no longer kept"),
                Err(error) if !failing => {
                    tracing::error!(%error, "old usage records cannot be removed");
                }
                // It has been said.
                Err(_) => {}
            }
            failing = passed.is_err();
        }
    }

    /// Records that are gone do not come back, so a clock that has jumped ahead removes none.
    async fn clock_is_right(
        &self,
        keep: Duration,
        trusted: bool,
        refused: &mut bool,
    ) -> Result<bool, StoreError> {
        let most = (keep / RETENTION_JUMP_PART).max(LEAST_RETENTION_JUMP);
        let now_ms = self.clock.now_ms();
        let jumped = self.store.look_at_clock(now_ms, millis(most), trusted);
        let jumped = jumped.await?;
        if let Some(before_ms) = jumped.filter(|_| !*refused) {
            tracing::error!(
                now_ms,
                before_ms,
                "old usage records are not removed: the clock is far ahead of when they were last looked for; set it \
                 right and start the coordinator again, or once with --trust-clock if it is right"
            );
        }
        *refused = jumped.is_some();
        Ok(!*refused)
    }

    /// Goes once through all nodes; returns how many rows went.
    async fn pass(
        &self,
        keep: Duration,
        faulty: &mut BTreeSet<Name>,
    ) -> Result<u64, RetentionError> {
        let mut gone = 0;
        for node in self.store.nodes_with_batches().await? {
            let mut busy = 0;
            loop {
                let now_ms = self.clock.now_ms();
                let before_ms = now_ms.saturating_sub(millis(keep));
                let began = Instant::now();
                let dropped = self
                    .store
                    .drop_records(&node, (before_ms, now_ms), &self.authority);
                let dropped = match dropped.await {
                    Ok(dropped) => dropped,
                    // Of one node it may fail, and for all others go on.
                    Err(error) => {
                        if faulty.insert(node.clone()) {
                            tracing::error!(%node, %error, "old usage records cannot be removed");
                        }
                        break;
                    }
                };
                match dropped {
                    Dropped::Nothing => break,
                    Dropped::Rows(rows) => {
                        (gone, busy) = (gone + rows, 0);
                        faulty.remove(&node);
                    }
                    Dropped::Busy if busy < MAX_RETENTION_BUSY => busy += 1,
                    Dropped::Busy => {
                        tracing::warn!(%node, "old usage records stay for now: the ledger has others than were looked at, again and again");
                        break;
                    }
                    Dropped::Kept(why) => {
                        if faulty.insert(node.clone()) {
                            tracing::error!(%node, why, "old usage records stay: they are not as the node signed them; see `holm usage audit`");
                        }
                        break;
                    }
                }
                // At most half of the time is taken from the ledger.
                sleep(began.elapsed().max(RETENTION_PAUSE)).await;
                if !self.rollouts.leads().await {
                    return Ok(gone);
                }
            }
        }
        Ok(gone)
    }
}
