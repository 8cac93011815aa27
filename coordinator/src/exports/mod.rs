//! Exports of usage: each tenant's records, as they are entered, to where the tenant wants them.
//!
//! [`files`] writes them to the artifact store, a day at a time, as [`parquet`] files.
//!
//! [`webhook`] sends them as signed batches of CloudEvents ([`event`]). What was sent is what the receiver took: how far
//! that is moves in the database after its answer, so a coordinator that is killed, or another one in its place, goes
//! on there, and a receiver may get a batch twice, but never an event under two ids. One coordinator sends, the one
//! that executes rollouts. Nothing waits for a receiver: records are removed when their time is over, and an export
//! that lacks some of them says so (`store/exports.rs`).
//!
//! ```text
//!   rows behind the last one sent ──▶ batch ──▶ receiver ── 2xx ──▶ move on, next batch
//!                                                        └─ else ──▶ wait longer each time, the same again
//! ```

pub(crate) mod address;
mod event;
mod files;
pub(crate) mod parquet;
pub(crate) mod webhook;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use holm_model::api::ExportKind;
use holm_model::ids::Name;
use tokio::task::{self, JoinSet};
use tokio::time::timeout;

use crate::ca::Authority;
use crate::clock::{Clock, system_ms};
use crate::limits::{
    EXPORT_BATCH_EVENTS, EXPORT_FILES_LOOK, EXPORT_TURN, EXPORTS_TICK, MAX_SENDING,
    MAX_SENDING_OF_TENANT, MAX_WEBHOOK_PAUSE, MIN_WEBHOOK_PAUSE,
};
use crate::registry::Objects;
use crate::rollout::Rollouts;
use crate::store::{ExportRow, RecordsFilter, Store, StoreError};
use files::FilesError;
use webhook::{Undelivered, Webhook};

/// What sends exports.
pub(crate) struct Exports {
    pub(crate) store: Store,
    pub(crate) authority: Authority,
    pub(crate) rollouts: Arc<Rollouts>,
    pub(crate) objects: Objects,
    pub(crate) clock: Clock,
}

/// What became of a turn of an export.
enum Turn {
    /// All that there was is out, up to this row of the ledger.
    UpTo(u64),
    /// So is all that can be out before so long.
    Later(Duration),
    /// There may be more.
    More,
    /// The receiver did not take a batch; it is left alone for so long at least.
    Failed(Option<Duration>),
}

/// How an export stands, as long as this coordinator sends.
#[derive(Default)]
struct Standing {
    failures: u32,
    not_before: Option<Instant>,
    /// The newest row of the ledger when there was nothing more to send.
    upto: Option<u64>,
    /// When its last turn began. Who has waited longest is next.
    begun: Option<Instant>,
}

/// Binds a secret to its export, so that what is sealed for one is of no use in another.
pub(crate) fn secret_of(tenant: &Name, url: &str) -> String {
    format!("webhook\0{tenant}\0{url}")
}

impl Exports {
    /// Sends until dropped.
    pub(crate) async fn run(self: Arc<Self>) {
        let mut standing: BTreeMap<u64, Standing> = BTreeMap::new();
        let mut sending: JoinSet<Turn> = JoinSet::new();
        let mut under_way: HashMap<task::Id, (u64, Name)> = HashMap::new();
        let mut failing = false;
        loop {
            // Whoever is done may have more to do at once.
            if let Ok((task, turn)) = timeout(EXPORTS_TICK, next(&mut sending)).await
                && let Some((id, _)) = under_way.remove(&task)
            {
                standing.entry(id).or_default().took(turn);
            }
            if !self.rollouts.leads().await {
                standing.clear();
                continue;
            }
            let begun = self
                .begin(&mut standing, &mut under_way, &mut sending)
                .await;
            match &begun {
                Err(error) if !failing => tracing::error!(%error, "exports cannot be looked at"),
                Ok(()) if failing => tracing::info!("exports can be looked at again"),
                // It has been said.
                Ok(()) | Err(_) => {}
            }
            failing = begun.is_err();
        }
    }

    /// Begins the turns of those that have something to send.
    async fn begin(
        self: &Arc<Self>,
        standing: &mut BTreeMap<u64, Standing>,
        under_way: &mut HashMap<task::Id, (u64, Name)>,
        sending: &mut JoinSet<Turn>,
    ) -> Result<(), StoreError> {
        let mut rows = self.store.exports(None).await?;
        standing.retain(|id, _| rows.iter().any(|row| row.id == *id));
        let newest = self.store.last_usage_row().await?;
        let now = Instant::now();
        rows.sort_by_key(|row| standing.get(&row.id).and_then(|at| at.begun));
        for row in rows {
            let at = standing.entry(row.id).or_default();
            let due = at.not_before.is_none_or(|then| then <= now);
            let busy = under_way.values().any(|(id, _)| *id == row.id);
            let idle = at.upto == Some(newest);
            let own = under_way.values().filter(|(_, of)| *of == row.tenant);
            let full = under_way.len() >= MAX_SENDING || own.count() >= MAX_SENDING_OF_TENANT;
            if !due || busy || idle || full {
                continue;
            }
            at.begun = Some(now);
            let (id, tenant, exports) = (row.id, row.tenant.clone(), self.clone());
            let task = sending.spawn(async move { exports.turn(row, newest).await });
            under_way.insert(task.id(), (id, tenant));
        }
        Ok(())
    }

    /// Sends some batches of one export.
    async fn turn(&self, export: ExportRow, newest: u64) -> Turn {
        let id = export.id;
        let turn = match export.kind {
            ExportKind::Webhook => self.send(export, newest).await,
            ExportKind::Parquet => self.write(export).await,
        };
        turn.unwrap_or_else(|error| {
            tracing::error!(export = id, %error, "an export cannot go on");
            Turn::Failed(None)
        })
    }

    async fn send(&self, export: ExportRow, newest: u64) -> Result<Turn, StoreError> {
        let began = Instant::now();
        let mut webhook = None;
        let source = event::source(self.authority.fingerprint());
        let filter = RecordsFilter {
            tenant: Some(export.tenant.clone()),
            ..RecordsFilter::default()
        };
        let mut out = export.out.row;
        while began.elapsed() < EXPORT_TURN {
            let page = self
                .store
                .usage_records(&filter, out, EXPORT_BATCH_EVENTS)
                .await?;
            let (rows, more) = (page.records, page.next.is_some());
            let (Some(first), Some(last)) = (rows.first(), rows.last()) else {
                return Ok(Turn::UpTo(newest));
            };
            let webhook = match &webhook {
                Some(webhook) => webhook,
                None => match self.webhook(&export).await {
                    Ok(made) => webhook.insert(made),
                    Err(why) => return self.failed(&export, &why, None).await,
                },
            };
            // Two batches have the same id only if they have the same rows.
            let message = format!("{}-{}-{}-{}", export.id, first.row, last.row, rows.len());
            let (last, count) = (last.row, rows.len() as u64);
            let events: Vec<_> = rows.iter().map(|row| event::event(&source, row)).collect();
            let body = serde_json::to_vec(&events).expect("events are text and numbers");
            if let Err(error) = webhook.send(&message, system_ms(), body).await {
                let after = match &error {
                    Undelivered::Status { after, .. } => *after,
                    Undelivered::Broken(_) => None,
                };
                return self.failed(&export, &error.to_string(), after).await;
            }
            let now_ms = self.clock.now_ms();
            if !self
                .store
                .sent(export.id, (out, last), count, now_ms)
                .await?
            {
                // Another coordinator sends, or the export is no longer there.
                return Ok(Turn::More);
            }
            out = last;
            if !more {
                return Ok(Turn::UpTo(newest));
            }
        }
        Ok(Turn::More)
    }

    async fn write(&self, export: ExportRow) -> Result<Turn, StoreError> {
        match self.write_files(&export).await {
            Ok(true) => Ok(Turn::More),
            Ok(false) => Ok(Turn::Later(EXPORT_FILES_LOOK)),
            Err(FilesError::Store(error)) => Err(error),
            Err(error) => self.failed(&export, &error.to_string(), None).await,
        }
    }

    async fn webhook(&self, export: &ExportRow) -> Result<Webhook, String> {
        let sealed = export.secret.as_deref().unwrap_or_default();
        let secret = self
            .authority
            .open(&secret_of(&export.tenant, &export.url), sealed)
            .ok_or("its secret was not sealed by this fleet; remove the export and add it again")?;
        let (url, ca, private) = (export.url.clone(), export.ca.clone(), export.private);
        // It reads the system's certificates.
        let made = task::spawn_blocking(move || Webhook::new(&url, &ca, &secret, private));
        match made.await {
            Ok(made) => made.map_err(|error| error.to_string()),
            Err(broken) => Err(broken.to_string()),
        }
    }

    async fn failed(
        &self,
        export: &ExportRow,
        why: &str,
        after: Option<Duration>,
    ) -> Result<Turn, StoreError> {
        let (id, tenant) = (export.id, &export.tenant);
        if export.failures == 0 {
            tracing::warn!(export = id, %tenant, why, "an export fails; it is tried again");
        }
        let why = crate::limits::cut(why, crate::limits::MAX_REASON_CHARS);
        self.store
            .export_failed(id, &why, self.clock.now_ms())
            .await?;
        Ok(Turn::Failed(after))
    }
}

impl Standing {
    fn rest(&mut self, upto: Option<u64>, pause: Duration) {
        *self = Standing {
            failures: 0,
            not_before: Some(Instant::now() + pause),
            upto,
            begun: self.begun,
        };
    }

    fn took(&mut self, turn: Turn) {
        match turn {
            // Rows of others come all the time.
            Turn::UpTo(row) => self.rest(Some(row), EXPORTS_TICK),
            Turn::Later(pause) => self.rest(None, pause),
            Turn::More => self.rest(None, Duration::ZERO),
            Turn::Failed(after) => {
                let pause = pause(self.failures, u64::from_le_bytes(crate::ca::random()));
                self.failures = self.failures.saturating_add(1);
                self.not_before = Some(Instant::now() + pause.max(after.unwrap_or_default()));
            }
        }
    }
}

/// How long to wait after the so manyth failure in a row: twice as long each time, up to a bound, and at random between
/// half of it and all of it, so that exports that failed together do not come back together.
fn pause(failures: u32, random: u64) -> Duration {
    let doubled = MIN_WEBHOOK_PAUSE.saturating_mul(1 << failures.min(20));
    let most = doubled.min(MAX_WEBHOOK_PAUSE);
    let half = most / 2;
    half + Duration::from_millis(random % (half.as_millis() as u64 + 1))
}

/// The next turn that is over; never if none is under way.
async fn next(sending: &mut JoinSet<Turn>) -> (task::Id, Turn) {
    match sending.join_next_with_id().await {
        Some(Ok(over)) => over,
        Some(Err(broken)) => {
            tracing::error!(%broken, "the turn of an export broke");
            (broken.id(), Turn::Failed(None))
        }
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_are_never_the_same_for_all() {
        for random in [0, 1, u64::MAX, 0x1234_5678_9abc] {
            let pauses: Vec<_> = (0..40).map(|failures| pause(failures, random)).collect();
            assert!(pauses[0] >= MIN_WEBHOOK_PAUSE / 2 && pauses[0] <= MIN_WEBHOOK_PAUSE);
            assert!(pauses[39] >= MAX_WEBHOOK_PAUSE / 2 && pauses[39] <= MAX_WEBHOOK_PAUSE);
        }
        assert_ne!(pause(5, 1), pause(5, 1000));
    }
}
