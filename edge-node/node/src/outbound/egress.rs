//! How much a version's requests may send over connections of their own while they are under a hard budget.
//!
//! Each reserves so much that it is paid for. What all of them may send is counted together, since instances may serve
//! several: so all of them send no more than all have reserved.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use crate::limits::MAX_EGRESS_BYTES_BUDGETED;

/// Of one version on this node. Without a budget there is no bound.
#[derive(Debug, Default)]
pub(crate) struct Egress {
    bounded: AtomicBool,
    /// Rises whenever it is not bounded any more: what begins after that counts from nothing.
    time: AtomicU64,
    left: AtomicI64,
}

/// What one request under way may send. To be ended with what it did send.
#[derive(Debug)]
pub(crate) struct Share {
    egress: Arc<Egress>,
    time: u64,
}

impl Egress {
    /// A request begins that is under a hard budget.
    pub(crate) fn share(self: &Arc<Self>) -> Share {
        if !self.bounded.swap(true, Ordering::Relaxed) {
            self.left.store(0, Ordering::Relaxed);
        }
        self.left
            .fetch_add(MAX_EGRESS_BYTES_BUDGETED as i64, Ordering::Relaxed);
        Share {
            egress: self.clone(),
            time: self.time.load(Ordering::Relaxed),
        }
    }

    /// One begins that is not.
    pub(crate) fn open(&self) {
        if self.bounded.load(Ordering::Relaxed) && self.bounded.swap(false, Ordering::Relaxed) {
            self.time.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many of so many bytes may be sent; to be told how many were.
    pub(crate) fn take(&self, bytes: usize) -> usize {
        if !self.bounded.load(Ordering::Relaxed) {
            return bytes;
        }
        let bytes = bytes.min(MAX_EGRESS_BYTES_BUDGETED as usize) as i64;
        let left = self.left.fetch_sub(bytes, Ordering::Relaxed);
        let taken = left.clamp(0, bytes);
        self.give_back((bytes - taken) as usize);
        taken as usize
    }

    /// So many that were taken were not sent.
    pub(crate) fn give_back(&self, bytes: usize) {
        if bytes > 0 && self.bounded.load(Ordering::Relaxed) {
            self.left.fetch_add(bytes as i64, Ordering::Relaxed);
        }
    }
}

impl Share {
    /// The request is over, and has sent so much.
    pub(crate) fn end(self, sent: u64) {
        let unsent = MAX_EGRESS_BYTES_BUDGETED as i64 - i64::try_from(sent).unwrap_or(i64::MAX);
        if self.time == self.egress.time.load(Ordering::Relaxed) {
            self.egress.left.fetch_sub(unsent, Ordering::Relaxed);
        }
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
