//! Answers that callers have not taken yet: counted against what a thread may hold, and known by
//! age, so that a caller who asks and does not read ties up neither memory nor a connection for good.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Instant;

use hyper::body::{Body, Bytes, Frame, SizeHint};

use super::parts::{Cut, Outgoing};
use crate::limits::{
    ANSWER_TIMEOUT, MAX_ANSWER_BYTES_PER_THREAD, MAX_STREAMS_PER_CONNECTION, PRESSED_ANSWER_TIMEOUT,
};

/// Bytes of answers that a thread holds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answers(Arc<AtomicUsize>);

impl Answers {
    /// Whether a request may run, whose answer will come on top.
    pub(crate) fn has_room(&self) -> bool {
        self.bytes() < MAX_ANSWER_BYTES_PER_THREAD
    }

    pub(super) fn bytes(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn take(&self, bytes: usize) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn give_back(&self, bytes: usize) {
        self.0.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// What is on its way, and when that began: the oldest first.
#[derive(Debug, Default)]
struct Since {
    queue: VecDeque<(Instant, Weak<Counted>)>,
    /// How many were here after the last look at all of them.
    stayed: usize,
}

impl Since {
    fn push(&mut self, one: (Instant, Weak<Counted>)) {
        // Those behind one that stays would gather. Twice as many as there were: each is looked at twice or so.
        if self.queue.len() >= 2 * self.stayed.max(MAX_STREAMS_PER_CONNECTION as usize) {
            self.queue.retain(|(_, counted)| counted.strong_count() > 0);
            self.stayed = self.queue.len();
        }
        self.queue.push_back(one);
    }
}

/// The answers of one connection.
#[derive(Debug)]
pub(crate) struct Untaken {
    answers: Answers,
    /// Those in front that were taken are removed. Every body that is here has it too.
    since: Rc<RefCell<Since>>,
}

impl Untaken {
    pub(crate) fn new(answers: &Answers) -> Self {
        Untaken {
            answers: answers.clone(),
            since: Rc::default(),
        }
    }

    /// Counts the body until its last byte has been handed to the system: from now on if it is whole, each
    /// part of another as it comes.
    pub(crate) fn count(&self, body: Outgoing) -> CountedBody {
        let counted = match &body {
            Outgoing::Whole(_) => Some(self.counted(body.whole_bytes() as usize)),
            Outgoing::Parts(_) | Outgoing::Distant(_) => None,
        };
        let untaken = Untaken {
            answers: self.answers.clone(),
            since: self.since.clone(),
        };
        CountedBody {
            body,
            counted,
            untaken,
        }
    }

    fn counted(&self, bytes: usize) -> Arc<Counted> {
        self.answers.take(bytes);
        let counted = Arc::new(Counted {
            bytes,
            answers: self.answers.clone(),
        });
        let mut since = self.since.borrow_mut();
        since.push((Instant::now(), Arc::downgrade(&counted)));
        counted
    }

    /// Whether no answer is on its way, nor has begun.
    pub(crate) fn is_idle(&self) -> bool {
        Rc::strong_count(&self.since) == 1 && self.oldest().is_none()
    }

    /// Whether the caller has left an answer lying for too long.
    pub(crate) fn is_overdue(&self, now: Instant) -> bool {
        let patience = match self.answers.has_room() {
            true => ANSWER_TIMEOUT,
            false => PRESSED_ANSWER_TIMEOUT,
        };
        self.oldest()
            .is_some_and(|since| now.saturating_duration_since(since) > patience)
    }

    /// Since when the oldest answer waits that has not been taken.
    fn oldest(&self) -> Option<Instant> {
        let since = &mut self.since.borrow_mut().queue;
        while since.front()?.1.strong_count() == 0 {
            since.pop_front();
        }
        since.front().map(|(at, _)| *at)
    }
}

#[derive(Debug)]
struct Counted {
    bytes: usize,
    answers: Answers,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.answers.give_back(self.bytes);
    }
}

/// A body that is counted as long as it or what was read from it is here.
#[derive(Debug)]
pub(crate) struct CountedBody {
    body: Outgoing,
    counted: Option<Arc<Counted>>,
    untaken: Untaken,
}

/// What was read from it: the connection keeps this until it is written.
struct CountedBytes {
    bytes: Bytes,
    _counted: Arc<Counted>,
}

impl AsRef<[u8]> for CountedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Body for CountedBody {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        frame.map_ok(|frame| {
            frame.map_data(|bytes| {
                let counted = match &self.counted {
                    Some(counted) => counted.clone(),
                    None => self.untaken.counted(bytes.len()),
                };
                Bytes::from_owner(CountedBytes {
                    bytes,
                    _counted: counted,
                })
            })
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt as _;

    fn whole(text: &'static str) -> Outgoing {
        Bytes::from(text).into()
    }

    #[tokio::test]
    async fn an_answer_counts_until_the_last_of_it_is_gone() {
        let answers = Answers::default();
        let connection = Untaken::new(&answers);
        let held = || answers.0.load(Ordering::Relaxed);
        assert!(connection.is_idle());
        let mut body = connection.count(whole("hello"));
        assert!(!connection.is_idle());
        assert_eq!(body.size_hint().exact(), Some(5));
        let began = connection.oldest().unwrap();
        let other = connection.count(whole("other"));
        assert_eq!(held(), 10);
        let read = body.frame().await.unwrap().unwrap().into_data().unwrap();
        drop(body);
        assert_eq!((&read[..], held()), (&b"hello"[..], 10));
        assert_eq!(connection.oldest(), Some(began));
        drop(read);
        assert_eq!(held(), 5);
        assert!(connection.oldest().unwrap() > began);
        drop(other);
        assert_eq!((held(), connection.oldest()), (0, None));
        assert!(connection.is_idle());
    }

    #[test]
    fn one_answer_that_stays_does_not_keep_the_memory_of_those_behind_it() {
        let answers = Answers::default();
        let connection = Untaken::new(&answers);
        let stays = connection.count(whole("x"));
        for _ in 0..10 * MAX_STREAMS_PER_CONNECTION {
            drop(connection.count(whole("y")));
        }
        assert!(connection.since.borrow().queue.len() <= 2 * MAX_STREAMS_PER_CONNECTION as usize);
        assert!(connection.oldest().is_some());
        drop(stays);
        assert_eq!(connection.oldest(), None);
    }

    #[test]
    fn too_much_that_nobody_takes_leaves_no_room() {
        let answers = Answers::default();
        let connection = Untaken::new(&answers);
        assert!(answers.has_room());
        let large = Bytes::from(vec![0; MAX_ANSWER_BYTES_PER_THREAD]);
        let body = connection.count(large.into());
        assert!(!answers.has_room());
        drop(body);
        assert!(answers.has_room());
    }

    #[test]
    fn who_does_not_take_an_answer_is_overdue_sooner_when_others_are_turned_away_for_it() {
        let answers = Answers::default();
        let (slow, other) = (Untaken::new(&answers), Untaken::new(&answers));
        let small = slow.count(whole("x"));
        let now = Instant::now();
        assert!(!slow.is_overdue(now + PRESSED_ANSWER_TIMEOUT * 2));
        assert!(slow.is_overdue(now + ANSWER_TIMEOUT * 2));
        let large = Bytes::from(vec![0; MAX_ANSWER_BYTES_PER_THREAD]);
        let _large = other.count(large.into());
        assert!(!slow.is_overdue(now));
        assert!(slow.is_overdue(now + PRESSED_ANSWER_TIMEOUT * 2));
        drop(small);
        assert!(!slow.is_overdue(now + ANSWER_TIMEOUT * 2));
    }
}
