//! The last that functions wrote and why they failed, in memory, for `holm logs`. Gone with the process: what
//! has to be kept is in the ledger.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use holm_model::api::{LogPage, LogView};
use holm_model::control::{LogBatch, LogEntry};
use holm_model::ids::{FunctionName, Name, RequestId};
use holm_model::limits::MAX_LOG_ENTRY_BYTES;

use crate::limits::{
    LOG_BATCH_ENTRY_BYTES, MAX_LOG_BYTES, MAX_LOG_BYTES_OF_FUNCTION, MAX_LOG_CLOCK_MS,
};

/// Bytes that an entry counts beside its text.
const ENTRY_BYTES: usize = 512;

/// Sequences to each millisecond of the clock, with which they begin; see [`Logs::new`].
const SEQUENCES_PER_MS: u64 = 1 << 10;

/// What is kept.
#[derive(Debug)]
pub(crate) struct Logs(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    functions: BTreeMap<FunctionName, Kept>,
    /// Each of `functions` by its bytes, so that the one with the most is found without looking at all.
    by_bytes: BTreeSet<(usize, FunctionName)>,
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

/// Bytes of a batch as nodes count them.
pub(crate) fn batch_bytes(batch: &LogBatch) -> usize {
    let each = |entry: &LogEntry| LOG_BATCH_ENTRY_BYTES + entry.text.len();
    batch.entries.iter().map(each).sum()
}

/// At most `bytes` bytes from the end of `text`, where the reason of a failure stands, with control characters
/// (but line ends and tabs) made visible.
fn shown(text: &str, bytes: usize) -> String {
    let mut left = bytes;
    let mut chars: Vec<char> = text
        .chars()
        .rev()
        .map(|c| match c {
            '\n' | '\t' => c,
            c if c.is_control() => '\u{fffd}',
            c => c,
        })
        .take_while(|c| {
            let rest = left.checked_sub(c.len_utf8());
            left = rest.unwrap_or(0);
            rest.is_some()
        })
        .collect();
    chars.reverse();
    chars.into_iter().collect()
}

impl Logs {
    /// Nothing yet. Sequences begin at the clock, so that they rise over a restart of the coordinator as well,
    /// and who follows a log goes on where he was; there are never so many entries that they overtake it. More
    /// of them to a millisecond would be above 2^53, where clients that read JSON numbers as doubles lose digits.
    pub(crate) fn new(now_ms: u64) -> Self {
        Logs(Mutex::new(Inner {
            last: now_ms.min(MAX_LOG_CLOCK_MS) * SEQUENCES_PER_MS,
            ..Inner::default()
        }))
    }

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
                text: shown(&entry.text, MAX_LOG_ENTRY_BYTES),
            };
            inner.keep(&entry.function, view);
            while inner
                .functions
                .get(&entry.function)
                .is_some_and(|kept| kept.bytes > MAX_LOG_BYTES_OF_FUNCTION)
            {
                inner.drop_oldest(&entry.function);
            }
            while inner.bytes > MAX_LOG_BYTES {
                let Some((_, most)) = inner.by_bytes.last().cloned() else {
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
        let none = VecDeque::new();
        let kept = inner.functions.get(function);
        let kept = kept.map_or(&none, |kept| &kept.entries);
        let wanted = |entry: &&LogView| request.is_none_or(|request| request == entry.request);
        // A sequence that was not given yet is of an earlier run, under a clock that went ahead of this one:
        // all that there is came later.
        let after = after.map(|after| if after > inner.last { 0 } else { after });
        let entries: Vec<LogView> = match after {
            Some(after) => {
                let first = kept.partition_point(|entry| entry.sequence <= after);
                let later = kept.range(first..).filter(wanted);
                later.take(limit).cloned().collect()
            }
            None => {
                let mut newest: Vec<&LogView> =
                    kept.iter().rev().filter(wanted).take(limit).collect();
                newest.reverse();
                newest.into_iter().cloned().collect()
            }
        };
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
    fn keep(&mut self, function: &FunctionName, entry: LogView) {
        let kept = self.functions.entry(function.clone()).or_default();
        self.by_bytes.remove(&(kept.bytes, function.clone()));
        self.bytes += size(&entry);
        kept.bytes += size(&entry);
        kept.entries.push_back(entry);
        self.by_bytes.insert((kept.bytes, function.clone()));
    }

    fn drop_oldest(&mut self, function: &FunctionName) {
        let Some(kept) = self.functions.get_mut(function) else {
            return;
        };
        self.by_bytes.remove(&(kept.bytes, function.clone()));
        if let Some(entry) = kept.entries.pop_front() {
            kept.bytes -= size(&entry);
            self.bytes -= size(&entry);
        }
        if kept.entries.is_empty() {
            self.functions.remove(function);
        } else {
            self.by_bytes.insert((kept.bytes, function.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
        let (logs, node) = (Logs::new(0), "n1".parse().unwrap());
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
        let (logs, node) = (Logs::new(0), "n1".parse().unwrap());
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
        let by_name = inner.functions.iter();
        let by_bytes: BTreeSet<_> = by_name
            .map(|(name, kept)| (kept.bytes, name.clone()))
            .collect();
        assert_eq!(by_bytes, inner.by_bytes);
        assert!(
            inner
                .functions
                .values()
                .all(|kept| kept.bytes <= MAX_LOG_BYTES_OF_FUNCTION)
        );
    }

    #[test]
    fn sequences_go_on_rising_over_a_restart_and_stay_exact_as_doubles() {
        let (node, function) = ("n1".parse().unwrap(), "a/f".parse().unwrap());
        let before = Logs::new(1_700_000_000_000);
        (0..1000).for_each(|_| before.add(&node, batch("a/f", 1, "before")));
        let seen = before.page(&function, None, None, 1).next;
        let restarted = Logs::new(1_700_000_000_001);
        restarted.add(&node, batch("a/f", 1, "after"));
        let page = restarted.page(&function, None, Some(seen), 9);
        assert_eq!(texts(&page), ["after"]);
        assert!(Logs::new(u64::MAX).lock().last < 1 << 53);
        // The clock was set back meanwhile.
        let page = Logs::new(0).page(&function, None, Some(seen), 9);
        assert_eq!(page.next, 0);
    }

    #[test]
    fn texts_keep_their_tabs_and_their_ends_and_are_cut_between_characters() {
        assert_eq!(shown("a\tb\n\u{1b}[2J", 99), "a\tb\n\u{fffd}[2J");
        assert_eq!(shown("abc", 3), "abc");
        assert_eq!(shown("abc", 2), "bc");
        assert_eq!(shown("a\u{e4}b", 2), "b");
        let grown = shown(&"\u{1}".repeat(MAX_LOG_ENTRY_BYTES), MAX_LOG_ENTRY_BYTES);
        assert!(grown.len() <= MAX_LOG_ENTRY_BYTES && grown.len() + 3 > MAX_LOG_ENTRY_BYTES);
    }

    #[test]
    fn batches_are_counted_as_nodes_count_them() {
        assert_eq!(batch_bytes(&batch("a/f", 1, "four")), 260);
    }
}
