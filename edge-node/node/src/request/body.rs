//! A request's body on its way in: bounded, in time, and counted against what the thread may hold. What can
//! be had soon is gathered before the function gets the request, so that a slow caller holds no slot. The
//! rest of a long body, and of one whose length and end are not in sight, follows while the function runs. A
//! caller that is slow then ([`Pace`]) keeps its slot as long as nobody else needs it.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use hyper::body::{Body as _, Bytes, Incoming};

use super::problem::Problem;
use crate::limits::{
    BODY_PATIENCE, BODY_TIMEOUT, BODY_WINDOW_BYTES, GATHER_TIME, GATHERED_BODY_BYTES,
    MAX_BODY_BYTES_PER_THREAD, MIN_BODY_BYTES_PER_SECOND,
};

/// Bytes of bodies that a thread holds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Budget(Rc<Cell<usize>>);

/// A body, as far as it was gathered, counted as long as it is here.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) bytes: Bytes,
    counted: usize,
    budget: Budget,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.budget
            .0
            .set(self.budget.0.get().saturating_sub(self.counted));
    }
}

impl Held {
    /// The bytes, for another thread; they are counted here as long as what is left is here.
    pub(crate) fn give(&mut self) -> Bytes {
        std::mem::take(&mut self.bytes)
    }
}

impl Budget {
    /// Whether so many bytes more can be held.
    pub(crate) fn has_room(&self, bytes: usize) -> bool {
        bytes == 0 || self.0.get().saturating_add(bytes) <= MAX_BODY_BYTES_PER_THREAD
    }

    /// Counts what another thread has let in.
    pub(crate) fn hold(&self, bytes: Bytes) -> Held {
        self.0.set(self.0.get() + bytes.len());
        Held {
            counted: bytes.len(),
            bytes,
            budget: self.clone(),
        }
    }

    fn take(&self, held: &mut Held, bytes: usize) -> bool {
        if !self.has_room(bytes) {
            return false;
        }
        self.0.set(self.0.get() + bytes);
        held.counted += bytes;
        true
    }
}

/// What is to come of a body.
#[derive(Debug)]
pub(crate) struct Rest {
    body: Incoming,
    /// Bytes of the whole body, if that is known.
    pub(crate) length: Option<u64>,
    /// Bytes that have come.
    pub(crate) come: u64,
    max_bytes: u64,
    pub(crate) pace: Pace,
}

/// Whether a caller keeps the function waiting: a bucket that empties while it does, and that what comes fills
/// again. So neither silence nor a byte now and then goes on for long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    patience: Duration,
    /// It was empty, and is not half full again.
    slow: bool,
}

impl Default for Pace {
    fn default() -> Self {
        Pace {
            patience: BODY_PATIENCE,
            slow: false,
        }
    }
}

impl Pace {
    /// So much has come.
    pub(crate) fn came(&mut self, bytes: usize) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let earned = Duration::from_secs(1) * bytes / MIN_BODY_BYTES_PER_SECOND;
        self.patience = (self.patience + earned).min(BODY_PATIENCE);
        self.slow &= self.patience < BODY_PATIENCE / 2;
    }

    /// The function waited so long, and nothing came.
    pub(crate) fn waited(&mut self, time: Duration) {
        self.patience = self.patience.saturating_sub(time);
        self.slow |= self.patience.is_zero();
    }

    /// How long it may go on so.
    pub(crate) fn patience(&self) -> Duration {
        self.patience
    }

    /// Its place is for others if they want it.
    pub(crate) fn is_slow(&self) -> bool {
        self.slow
    }
}

/// Gathers a body of at most `max_bytes`. `None` as the problem if the thread holds too much.
pub(crate) async fn gather(
    body: Incoming,
    max_bytes: u64,
    budget: &Budget,
) -> Result<(Held, Option<Rest>), Option<Problem>> {
    let mut held = Held {
        bytes: Bytes::new(),
        counted: 0,
        budget: budget.clone(),
    };
    if body.is_end_stream() {
        return Ok((held, None));
    }
    if body.size_hint().lower() > max_bytes {
        return Err(Some(Problem::BodyTooLarge(max_bytes)));
    }
    let mut rest = Rest {
        length: body.size_hint().exact(),
        body,
        come: 0,
        max_bytes,
        pace: Pace::default(),
    };
    let time = match rest.length {
        Some(_) => BODY_TIMEOUT,
        None => GATHER_TIME,
    };
    let until = Instant::now() + time;
    let mut gathered: Vec<u8> = Vec::new();
    while held.counted < GATHERED_BODY_BYTES {
        let next = tokio::time::timeout_at(until.into(), rest.next());
        let data = match next.await {
            Ok(next) => next.map_err(Some)?,
            Err(_) if rest.length.is_some() => return Err(Some(Problem::BodyTooSlow)),
            Err(_) => break,
        };
        let Some(data) = data else {
            let rest = None;
            return Ok((whole(held, gathered), rest));
        };
        if !budget.take(&mut held, data.len()) {
            return Err(None);
        }
        // Most bodies are one frame, which needs no copy.
        if held.bytes.is_empty() && gathered.is_empty() {
            held.bytes = data;
        } else {
            if gathered.is_empty() {
                gathered.extend_from_slice(&std::mem::take(&mut held.bytes));
            }
            gathered.extend_from_slice(&data);
        }
    }
    Ok((whole(held, gathered), Some(rest)))
}

fn whole(mut held: Held, gathered: Vec<u8>) -> Held {
    if !gathered.is_empty() {
        held.bytes = gathered.into();
    }
    held
}

impl Rest {
    /// The next of it; `None` at its end.
    async fn next(&mut self) -> Result<Option<Bytes>, Problem> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Problem>> {
        loop {
            let Some(frame) = ready!(Pin::new(&mut self.body).poll_frame(cx)) else {
                return Poll::Ready(Ok(None));
            };
            // Trailers are about the connection; functions do not see them.
            let Ok(data) = frame.map_err(|_| Problem::BadBody)?.into_data() else {
                continue;
            };
            self.come += data.len() as u64;
            if self.come > self.max_bytes {
                return Poll::Ready(Err(Problem::BodyTooLarge(self.max_bytes)));
            }
            return Poll::Ready(Ok(Some(data)));
        }
    }

    /// All that is there by now, up to a bound, and whether that was the last.
    pub(crate) fn poll_more(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(Vec<u8>, bool), Problem>> {
        let mut more = Vec::new();
        while more.len() < BODY_WINDOW_BYTES {
            match self.poll_next(cx) {
                Poll::Ready(Ok(Some(data))) => more.extend_from_slice(&data),
                Poll::Ready(Ok(None)) => return Poll::Ready(Ok((more, true))),
                Poll::Ready(Err(problem)) => return Poll::Ready(Err(problem)),
                Poll::Pending if more.is_empty() => return Poll::Pending,
                Poll::Pending => break,
            }
        }
        Poll::Ready(Ok((more, false)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_on_its_way_to_another_thread_is_counted_all_the_time() {
        const BYTES: usize = 1 << 20;
        let (here, there) = (Budget::default(), Budget::default());
        let mut held = here.hold(Bytes::from(vec![0; BYTES]));
        let bytes = held.give();
        assert_eq!((bytes.len(), here.0.get()), (BYTES, BYTES));
        let taken = there.hold(bytes);
        drop(held);
        assert_eq!((here.0.get(), there.0.get()), (0, BYTES));
        assert!(there.has_room(MAX_BODY_BYTES_PER_THREAD - BYTES));
        assert!(!there.has_room(MAX_BODY_BYTES_PER_THREAD - BYTES + 1));
        there.0.set(MAX_BODY_BYTES_PER_THREAD);
        assert!(there.has_room(0) && !there.has_room(1));
        there.0.set(BYTES);
        drop(taken);
        assert_eq!(there.0.get(), 0);
    }

    #[test]
    fn neither_silence_nor_a_byte_now_and_then_is_put_up_with_for_long() {
        let moment = Duration::from_millis(10);
        let waits = |bytes_each_time: usize| {
            let mut pace = Pace::default();
            let mut waited = Duration::ZERO;
            while !pace.is_slow() && waited < 10 * BODY_TIMEOUT {
                pace.waited(moment);
                waited += moment;
                pace.came(bytes_each_time);
            }
            waited
        };
        assert!(waits(0) <= BODY_PATIENCE + moment);
        assert!(waits(1) <= BODY_PATIENCE + 2 * moment);
        // One that is as fast as it has to be may go on.
        let enough = MIN_BODY_BYTES_PER_SECOND as usize / 100 + 1;
        assert!(waits(enough) >= 10 * BODY_TIMEOUT);
        // What came fast is no credit for a long silence.
        let mut pace = Pace::default();
        pace.came(usize::MAX);
        assert_eq!(pace.patience(), BODY_PATIENCE);
        pace.waited(BODY_PATIENCE);
        pace.came(1);
        assert!(pace.is_slow());
        pace.came(MIN_BODY_BYTES_PER_SECOND as usize);
        assert!(!pace.is_slow());
    }
}
