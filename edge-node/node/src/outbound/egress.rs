//! How much a version's requests may send over connections of their own while they are under a hard budget.
//!
//! Each reserves so much that it is paid for. What all of them may send is counted together, since instances may serve
//! several: so all of them send no more than all have reserved.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::limits::MAX_EGRESS_BYTES_BUDGETED;

/// Of one version on this node. Without a budget there is no bound.
#[derive(Debug, Default)]
pub(crate) struct Egress {
    /// Looked at first, so that without a budget nothing is locked.
    bounded: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Rises whenever it is not bounded any more: what begins after that counts from nothing.
    time: u64,
    /// Requests under way.
    shares: usize,
    left: i64,
}

/// What one request under way may send. To be ended with what it did send.
#[derive(Debug)]
pub(crate) struct Share {
    egress: Arc<Egress>,
    time: u64,
}

impl Egress {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is complete before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request begins that is under a hard budget.
    pub(crate) fn share(self: &Arc<Self>) -> Share {
        let mut state = self.lock();
        self.bounded.store(true, Ordering::Relaxed);
        state.shares += 1;
        state.left += MAX_EGRESS_BYTES_BUDGETED as i64;
        Share {
            egress: self.clone(),
            time: state.time,
        }
    }

    /// One begins that is not.
    pub(crate) fn open(&self) {
        if self.bounded.load(Ordering::Relaxed) {
            let mut state = self.lock();
            self.bounded.store(false, Ordering::Relaxed);
            *state = State {
                time: state.time + 1,
                ..State::default()
            };
        }
    }

    /// How many of so many bytes may be sent; to be told how many were.
    pub(crate) fn take(&self, bytes: usize) -> usize {
        if !self.bounded.load(Ordering::Relaxed) {
            return bytes;
        }
        let mut state = self.lock();
        let most = i64::try_from(bytes).unwrap_or(i64::MAX);
        let taken = state.left.clamp(0, most);
        state.left -= taken;
        usize::try_from(taken).unwrap_or(0)
    }

    /// So many that were taken were not sent.
    pub(crate) fn give_back(&self, bytes: usize) {
        if bytes > 0 && self.bounded.load(Ordering::Relaxed) {
            let mut state = self.lock();
            if state.shares > 0 {
                state.left += i64::try_from(bytes).unwrap_or(0);
            }
        }
    }
}

impl Share {
    /// The request is over, and has sent so much.
    pub(crate) fn end(self, sent: u64) {
        let unsent = MAX_EGRESS_BYTES_BUDGETED as i64 - i64::try_from(sent).unwrap_or(i64::MAX);
        let mut state = self.egress.lock();
        if self.time != state.time {
            return;
        }
        state.shares = state.shares.saturating_sub(1);
        // What was sent between requests is nobody's, and is not owed by those to come.
        state.left = match state.shares {
            0 => 0,
            _ => state.left - unsent,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: usize = MAX_EGRESS_BYTES_BUDGETED as usize;

    #[test]
    fn requests_under_a_budget_send_together_what_they_have_reserved() {
        let egress = Arc::new(Egress::default());
        assert_eq!(egress.take(10 * MOST), 10 * MOST, "without a budget");
        let (one, other) = (egress.share(), egress.share());
        assert_eq!(egress.take(MOST), MOST);
        assert_eq!(egress.take(MOST), MOST);
        assert_eq!(egress.take(1), 0);
        egress.give_back(5);
        assert_eq!(egress.take(9), 5);
        one.end(MOST as u64);
        other.end(MOST as u64);
        assert_eq!(egress.take(1), 0, "what is between requests is nobody's");
        let idle = egress.share();
        idle.end(0);
        assert_eq!(egress.take(1), 0);
        // One instance sends after its answer while another one serves: it is paid for once.
        for _ in 0..3 {
            let one = egress.share();
            assert_eq!(egress.take(MOST), MOST);
            one.end(0);
        }
        let next = egress.share();
        assert_eq!(egress.take(MOST), MOST, "and nothing of it stays");
        next.end(MOST as u64);
        let late = egress.share();
        egress.open();
        assert_eq!(egress.take(7), 7);
        let _next = egress.share();
        late.end(0);
        assert_eq!(
            egress.take(2 * MOST),
            MOST,
            "what began before counts no more"
        );
    }
}
