//! What programs write and why they fail, on its way to the coordinator, for `holm logs`.
//!
//! Not a record of anything: entries wait in a bounded queue, and where more come than fit the oldest are
//! dropped and counted. No request waits for it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use holm_model::control::{LogBatch, LogEntry};
use holm_model::ids::{FunctionName, RequestId, VersionId};
use holm_model::limits::{MAX_LOG_BATCH_BYTES, MAX_LOG_ENTRY_BYTES};
use holm_vmm::Snapshot;

use crate::deploy::routes::Live;
use crate::limits::MAX_LOG_QUEUE_BYTES;

/// Bytes that an entry counts beside its text.
const ENTRY_BYTES: usize = 256;

/// Pause between two looks whether all has been taken.
const TAKEN_LOOK: Duration = Duration::from_millis(10);

/// The queue.
#[derive(Debug, Default)]
pub(crate) struct Logs(Mutex<Queue>);

#[derive(Debug, Default)]
struct Queue {
    /// Whose snapshots are, for instances that say something when there is no request to tell.
    owners: Vec<(Weak<Snapshot>, FunctionName, VersionId)>,
    entries: VecDeque<LogEntry>,
    bytes: usize,
    dropped: u64,
}

impl Logs {
    /// Says whose instances of the snapshot are.
    pub(crate) fn introduce(
        &self,
        snapshot: &Arc<Snapshot>,
        function: &FunctionName,
        version: VersionId,
    ) {
        let owners = &mut self.lock().owners;
        owners.retain(|(snapshot, ..)| snapshot.strong_count() > 0);
        owners.push((Arc::downgrade(snapshot), function.clone(), version));
    }

    /// Whose instances of the snapshot are.
    pub(crate) fn owner(&self, snapshot: &Arc<Snapshot>) -> Option<(FunctionName, VersionId)> {
        let queue = self.lock();
        let same = |of: &&(Weak<Snapshot>, _, _)| of.0.as_ptr() == Arc::as_ptr(snapshot);
        let (_, function, version) = queue.owners.iter().find(same)?;
        Some((function.clone(), *version))
    }

    /// Adds an entry; a text that is too long keeps its end, where the reason of a failure stands.
    pub(crate) fn add(&self, live: &Live, request: RequestId, failed: bool, text: &str) {
        self.add_of(&live.function, live.version, request, failed, text);
    }

    /// The same for a version by its name.
    pub(crate) fn add_of(
        &self,
        function: &FunctionName,
        version: VersionId,
        request: RequestId,
        failed: bool,
        text: &str,
    ) {
        let text = end_of(text.trim_end(), MAX_LOG_ENTRY_BYTES);
        if text.is_empty() {
            return;
        }
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        self.push(LogEntry {
            function: function.clone(),
            version,
            request,
            at_ms: since.map_or(0, |since| since.as_millis() as u64),
            failed,
            text: text.to_owned(),
        });
    }

    fn push(&self, entry: LogEntry) {
        let mut queue = self.lock();
        queue.bytes += ENTRY_BYTES + entry.text.len();
        queue.entries.push_back(entry);
        while queue.bytes > MAX_LOG_QUEUE_BYTES {
            queue.take_first();
            queue.dropped += 1;
        }
    }

    /// What there is to send, as much as one message holds; `None` if there is nothing.
    pub(crate) fn take(&self) -> Option<LogBatch> {
        let mut queue = self.lock();
        let mut entries = Vec::new();
        let mut bytes = 0;
        while let Some(next) = queue.entries.front() {
            bytes += ENTRY_BYTES + next.text.len();
            if bytes > MAX_LOG_BATCH_BYTES && !entries.is_empty() {
                break;
            }
            entries.extend(queue.take_first());
        }
        let dropped = std::mem::take(&mut queue.dropped);
        (!entries.is_empty()).then_some(LogBatch { entries, dropped })
    }

    /// Waits until everything has been taken.
    pub(crate) async fn taken(&self) {
        while !self.lock().entries.is_empty() {
            tokio::time::sleep(TAKEN_LOOK).await;
        }
        // What was taken is on its way to the socket, by another task.
        tokio::time::sleep(TAKEN_LOOK).await;
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Every change is whole before anything can panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn take_first(&mut self) -> Option<LogEntry> {
        let entry = self.entries.pop_front()?;
        self.bytes -= ENTRY_BYTES + entry.text.len();
        Some(entry)
    }
}

/// At most `bytes` bytes from the end of a text.
fn end_of(text: &str, bytes: usize) -> &str {
    let start = (text.len().saturating_sub(bytes)..=text.len())
        .find(|start| text.is_char_boundary(*start))
        .unwrap_or(text.len());
    &text[start..]
}

#[cfg(test)]
mod tests {
    use super::*;
    use holm_model::ids::Digest;

    fn entry(text: String) -> LogEntry {
        LogEntry {
            function: "acme/hello".parse().unwrap(),
            version: Digest([1; 32]),
            request: RequestId([2; 16]),
            at_ms: 1,
            failed: false,
            text,
        }
    }

    #[test]
    fn the_oldest_give_way_and_are_counted() {
        let logs = Logs::default();
        let text = "x".repeat(MAX_LOG_ENTRY_BYTES);
        let many = 2 * MAX_LOG_QUEUE_BYTES / MAX_LOG_ENTRY_BYTES;
        for n in 0..many {
            logs.push(entry(format!("{n} {text}")));
        }
        let (mut got, mut dropped, mut last) = (0, 0, String::new());
        while let Some(batch) = logs.take() {
            let bytes: usize = batch.entries.iter().map(|entry| entry.text.len()).sum();
            assert!(bytes <= MAX_LOG_BATCH_BYTES);
            (got, dropped) = (got + batch.entries.len() as u64, dropped + batch.dropped);
            last = batch.entries.last().unwrap().text.clone();
        }
        assert!(got > 0 && got + dropped == many as u64);
        assert!(last.starts_with(&format!("{} ", many - 1)));
        assert_eq!(logs.lock().bytes, 0);
    }

    #[test]
    fn a_long_text_keeps_its_end() {
        assert_eq!(end_of("abc", 5), "abc");
        assert_eq!(end_of("abc", 2), "bc");
        assert_eq!(end_of("aäb", 2), "b");
        assert_eq!(end_of("", 2), "");
    }
}
