//! The journal's thread: gathers, commits, and serves the uploader, whatever state the disk is in.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::Instant;

use holm_model::budget::Month;
use tokio::sync::Notify;

use super::room::{Reserve, is_nearly_full};
use super::store::Store;
use super::unsent::Unsent;
use super::{Entry, JournalError, Message, Progress, now_ms};
use crate::budget::gauge::{ByTenant, Gauge};
use crate::limits::{COMMIT_GATHER, COMMIT_RETRY, MAX_COMMIT_RECORDS};

pub(super) struct Worker {
    pub(super) store: Store,
    pub(super) reserve: Reserve,
    pub(super) spill_dir: PathBuf,
    pub(super) limit_bytes: u64,
    pub(super) progress: Arc<Progress>,
    pub(super) changed: Arc<Notify>,
    pub(super) gauges: ByTenant,
    pub(super) unsent: Unsent,
    /// The last in which it was looked what is needed no more.
    pub(super) month: Month,
    /// Not committed yet. As many as were under way when the node was told to take no more, at most.
    pub(super) entries: Vec<Entry>,
    /// What an earlier life left in the spill is not in the journal yet, for which there was no room.
    pub(super) unreplayed: bool,
    /// When it is tried again to write what could not be.
    pub(super) retry_at: Option<Instant>,
    pub(super) over_limit: bool,
}

impl Worker {
    /// Looks whether there is room, before anybody asks.
    pub(super) fn prepare(&mut self) {
        if self.unreplayed || !self.reserve.make() {
            self.wait("there is no room on the disk");
        }
        self.look_at_size();
    }

    pub(super) fn work(mut self, receiver: &Receiver<Message>) {
        loop {
            let mut next = match self.next(receiver) {
                Ok(first) => Some(first),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let gather_until = Instant::now() + COMMIT_GATHER;
            let mut after = None;
            while let Some(message) = next.take() {
                match message {
                    Message::Record(entry) => self.entries.push(entry),
                    other => {
                        after = Some(other);
                        break;
                    }
                }
                if self.entries.len() < MAX_COMMIT_RECORDS {
                    next = gather(receiver, gather_until);
                }
            }
            let stops = matches!(after, Some(Message::Stop));
            if stops || self.retry_at.is_none_or(|at| Instant::now() >= at) {
                self.commit();
            }
            self.forget();
            match after {
                // The asker may have gone away in the meantime; then nobody wants the answer.
                Some(Message::Take(max, reply)) => {
                    let taken = self.with_reserve(|store| store.take(max));
                    if let Ok(Some(batch)) = &taken {
                        self.unsent.took(batch);
                    }
                    drop(reply.send(taken));
                }
                Some(Message::Stored(hash, reply)) => {
                    let stored = self.with_reserve(|store| store.stored(hash));
                    match &stored {
                        Ok(()) => self.unsent.stored(hash),
                        // It is not known how far that came.
                        Err(_) => self.unsent.forget(),
                    }
                    self.shrink();
                    drop(reply.send(stored));
                }
                Some(Message::Gauge(gauges, reply)) => drop(reply.send(self.gauge(gauges))),
                Some(Message::Uploaded(gauge, reply)) => {
                    drop(reply.send(self.uploaded(&gauge)));
                }
                Some(Message::Stop) => {
                    if !self.entries.is_empty() {
                        let waiting = self.entries.len();
                        tracing::warn!(
                            waiting,
                            "the journal cannot be written; usage records stay in the spill until the next start"
                        );
                    }
                    return;
                }
                Some(Message::Record(_)) | None => {}
            }
        }
    }

    /// The next message, or that it is time to try again.
    fn next(&self, receiver: &Receiver<Message>) -> Result<Message, RecvTimeoutError> {
        match self.retry_at {
            None => receiver.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(at) => receiver.recv_timeout(at.saturating_duration_since(Instant::now())),
        }
    }

    /// Does what makes the journal smaller in the end, with the reserve's room if it takes that.
    fn with_reserve<T>(
        &mut self,
        mut act: impl FnMut(&mut Store) -> Result<T, JournalError>,
    ) -> Result<T, JournalError> {
        match act(&mut self.store) {
            Err(error) if error.is_full() && self.reserve.give_up() => {
                self.wait("the disk is full");
                act(&mut self.store)
            }
            done => done,
        }
    }

    /// Gives back what was deleted.
    fn shrink(&mut self) {
        let is_tight =
            !self.reserve.is_there() || self.retry_at.is_some() || is_nearly_full(&self.spill_dir);
        // It is tried again after the next batch.
        if let Err(error) = self.store.shrink(is_tight) {
            tracing::debug!(%error, "the journal's file is not shortened");
        }
        self.look_at_size();
    }

    /// What was counted of a gauge's budget and is in the ledger, or a little less.
    fn uploaded(&mut self, gauge: &Arc<Gauge>) -> Result<u64, JournalError> {
        let counted = self.store.counted(gauge)?;
        let unsent = self.unsent.of(gauge, || self.store.unsent(gauge))?;
        Ok(counted.saturating_sub(unsent))
    }

    fn gauge(&mut self, gauges: Vec<Arc<Gauge>>) -> Result<(), JournalError> {
        let gauges = ByTenant::new(gauges);
        self.unsent.forget();
        self.set_counted(&gauges)?;
        self.gauges = gauges;
        Ok(())
    }

    fn set_counted(&self, gauges: &ByTenant) -> Result<(), JournalError> {
        let spent = self.store.spent(gauges)?;
        for gauge in gauges.all() {
            gauge.set_counted(spent.get(&Arc::as_ptr(gauge)).copied().unwrap_or(0));
        }
        Ok(())
    }

    /// With a month what was used in those before is needed no more.
    fn forget(&mut self) {
        let now_ms = now_ms();
        if self.month.has(now_ms) {
            return;
        }
        self.month = Month::of(now_ms);
        if let Err(error) = self.store.forget_used(now_ms) {
            tracing::error!(%error, "what was used in months before stays in the journal");
        }
    }

    /// Commits what waits, or sees to it that it is tried again.
    fn commit(&mut self) {
        if self.retry_at.is_some() && !self.reserve.make() {
            return self.wait("there is no room on the disk");
        }
        if self.unreplayed {
            let replayed = self.store.replay(&self.spill_dir);
            // What it brought in may be of the budgets that are counted here.
            if let Err(error) = replayed.and_then(|()| self.set_counted(&self.gauges)) {
                return self.wait(&error.to_string());
            }
            self.unsent.forget();
            self.unreplayed = false;
            self.changed.notify_one();
        }
        while !self.entries.is_empty() {
            let count = self.entries.len().min(MAX_COMMIT_RECORDS);
            if let Err(error) = self.store.insert(&mut self.entries[..count]) {
                return self.wait(&error.to_string());
            }
            for entry in &self.entries[..count] {
                self.progress.set_committed(entry.lane, entry.counter);
                self.gauges.count(&entry.record);
                self.unsent.committed(&entry.record);
            }
            self.progress.queued.fetch_sub(count, Ordering::Relaxed);
            // And with them what was reserved.
            self.entries.drain(..count);
            self.changed.notify_one();
        }
        if self.retry_at.take().is_some() {
            tracing::info!("the usage journal works again");
        }
        self.look_at_size();
    }

    /// Tries again later; until then no request is taken.
    fn wait(&mut self, why: &str) {
        if self.retry_at.is_none() {
            tracing::error!(
                why,
                "usage records cannot be added to the journal, and no request is taken; what is in it goes on being \
                 uploaded, which makes room; check the node's disk"
            );
        }
        self.retry_at = Some(Instant::now() + COMMIT_RETRY);
        self.open_or_close();
    }

    fn look_at_size(&mut self) {
        let over = match self.store.size_bytes() {
            Ok(bytes) => bytes > self.limit_bytes,
            // Whatever it is, the next commit has it too.
            Err(_) => self.over_limit,
        };
        match (self.over_limit, over) {
            (false, true) => tracing::error!(
                limit_bytes = self.limit_bytes,
                "the usage journal has reached its limit, and no request is taken until the coordinator has got some of \
                 its records; look at the link to the coordinator, or say a higher --journal-limit"
            ),
            (true, false) => tracing::info!("the usage journal is below its limit again"),
            _ => {}
        }
        self.over_limit = over;
        self.open_or_close();
    }

    fn open_or_close(&self) {
        let closed = self.over_limit || self.retry_at.is_some();
        self.progress.closed.store(closed, Ordering::Relaxed);
    }
}

fn gather(receiver: &Receiver<Message>, until: Instant) -> Option<Message> {
    match receiver.try_recv() {
        Ok(message) => return Some(message),
        Err(TryRecvError::Disconnected) => return None,
        Err(TryRecvError::Empty) => {}
    }
    // Sleeping through the gathering time spares the request path a wake-up for every record.
    std::thread::sleep(until.saturating_duration_since(Instant::now()));
    receiver.try_recv().ok()
}
