//! The last that functions wrote and why they failed, in memory, for `holm logs`. Gone with the process: what
//! has to be kept is in the ledger.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use holm_model::api::{LogPage, LogView};
use holm_model::control::LogBatch;
use holm_model::ids::{FunctionName, Name, RequestId};
use holm_model::limits::MAX_LOG_ENTRY_BYTES;

use crate::limits::{MAX_LOG_BYTES, MAX_LOG_BYTES_OF_FUNCTION, cut};

/// Bytes that an entry counts beside its text.
const ENTRY_BYTES: usize = 512;

/// What is kept.
#[derive(Debug, Default)]
pub(crate) struct Logs(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    functions: BTreeMap<FunctionName, Kept>,
    bytes: usize,
    last: u64,
    /// Entries that nodes had to drop.
    dropped: u64,
}

#[derive(Debug, Default)]
struct Kept {
    entries: VecDeque<LogView>,
    bytes: usize,
}

fn size(entry: &LogView) -> usize {
    ENTRY_BYTES + entry.text.len()
}

impl Logs {
    /// Takes in what a node sends. Where there is no room the oldest of the function with the most goes.
    pub(crate) fn add(&self, node: &Name, batch: LogBatch) {
        let mut inner = self.lock();
        inner.dropped = inner.dropped.saturating_add(batch.dropped);
        for entry in batch.entries {
            inner.last += 1;
            let view = LogView {
                sequence: inner.last,
                node: node.clone(),
                version: entry.version,
                request: entry.request,
                at_ms: entry.at_ms,
                failed: entry.failed,
                text: cut(&entry.text, MAX_LOG_ENTRY_BYTES),
            };
            inner.bytes += size(&view);
            let kept = inner.functions.entry(entry.function.clone()).or_default();
            kept.bytes += size(&view);
            kept.entries.push_back(view);
            while inner
                .functions
                .get(&entry.function)
                .is_some_and(|kept| kept.bytes > MAX_LOG_BYTES_OF_FUNCTION)
            {
                inner.drop_oldest(&entry.function);
            }
            while inner.bytes > MAX_LOG_BYTES {
                let most = inner.functions.iter().max_by_key(|(_, kept)| kept.bytes);
                let Some(most) = most.map(|(name, _)| name.clone()) else {
                    break;
                };
                inner.drop_oldest(&most);
            }
        }
    }

    /// At most `limit` entries of a function behind `after`, or without it the last, and of one request only if
    /// there is one.
    pub(crate) fn page(
        &self,
        function: &FunctionName,
        request: Option<RequestId>,
        after: Option<u64>,
        limit: usize,
    ) -> LogPage {
        let inner = self.lock();
        let kept = inner.functions.get(function);
        let entries = kept.map(|kept| kept.entries.iter()).into_iter().flatten();
        let wanted = |entry: &&LogView| {
            request.is_none_or(|request| request == entry.request)
                && after.is_none_or(|after| entry.sequence > after)
        };
        let mut entries: Vec<LogView> = entries.filter(wanted).cloned().collect();
        match after {
            Some(_) => entries.truncate(limit),
            None => drop(entries.drain(..entries.len().saturating_sub(limit))),
        }
        let next = entries.last().map(|entry| entry.sequence);
        LogPage {
            next: next.or(after).unwrap_or(inner.last),
            entries,
            dropped: inner.dropped,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change is whole before anything can panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn drop_oldest(&mut self, function: &FunctionName) {
        let Some(kept) = self.functions.get_mut(function) else {
            return;
        };
        if let Some(entry) = kept.entries.pop_front() {
            kept.bytes -= size(&entry);
            self.bytes -= size(&entry);
        }
        if kept.entries.is_empty() {
            self.functions.remove(function);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holm_model::control::LogEntry;
    use holm_model::ids::Digest;

    fn batch(function: &str, request: u8, text: &str) -> LogBatch {
        let entry = LogEntry {
            function: function.parse().unwrap(),
            version: Digest([1; 32]),
            request: RequestId([request; 16]),
            at_ms: 1,
            failed: false,
            text: text.into(),
        };
        LogBatch {
            entries: vec![entry],
            dropped: 0,
        }
    }

    fn texts(page: &LogPage) -> Vec<&str> {
        page.entries.iter().map(|entry| &entry.text[..]).collect()
    }

    #[test]
    fn pages_follow_each_other_and_can_be_of_one_request() {
        let (logs, node) = (Logs::default(), "n1".parse().unwrap());
        let function = "a/f".parse().unwrap();
        for n in 1..=5 {
            logs.add(&node, batch("a/f", n, &n.to_string()));
            logs.add(&node, batch("a/other", n, "x"));
        }
        let last = logs.page(&function, None, None, 2);
        assert_eq!(texts(&last), ["4", "5"]);
        let first = logs.page(&function, None, Some(0), 3);
        assert_eq!(texts(&first), ["1", "2", "3"]);
        let rest = logs.page(&function, None, Some(first.next), 3);
        assert_eq!(texts(&rest), ["4", "5"]);
        let none = logs.page(&function, None, Some(rest.next), 3);
        assert!(none.entries.is_empty() && none.next == rest.next);
        let one = logs.page(&function, Some(RequestId([3; 16])), None, 10);
        assert_eq!(texts(&one), ["3"]);
        assert_eq!(
            logs.page(&"b/f".parse().unwrap(), None, None, 9).entries,
            []
        );
    }

    #[test]
    fn no_function_and_not_all_together_take_more_than_their_room() {
        let (logs, node) = (Logs::default(), "n1".parse().unwrap());
        let text = "y".repeat(MAX_LOG_ENTRY_BYTES);
        let functions = 2 * MAX_LOG_BYTES / MAX_LOG_BYTES_OF_FUNCTION;
        let each = 2 * MAX_LOG_BYTES_OF_FUNCTION / MAX_LOG_ENTRY_BYTES;
        for n in 0..functions {
            for _ in 0..each {
                logs.add(&node, batch(&format!("a/f{n}"), 1, &text));
            }
        }
        let inner = logs.lock();
        assert!(inner.bytes <= MAX_LOG_BYTES);
        let sum: usize = inner.functions.values().map(|kept| kept.bytes).sum();
        assert_eq!(sum, inner.bytes);
        assert!(
            inner
                .functions
                .values()
                .all(|kept| kept.bytes <= MAX_LOG_BYTES_OF_FUNCTION)
        );
    }
}
