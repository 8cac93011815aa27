//! The coordinator's clock: milliseconds since 1970 UTC that never go back while it runs.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Wall time at the start, moved on by the monotonic clock, so that a corrected system clock
/// neither ends nor prolongs a timeout.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    began: Instant,
    began_ms: u64,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Clock {
            began: Instant::now(),
            began_ms: system_ms(),
        }
    }

    pub(crate) fn now_ms(&self) -> u64 {
        self.began_ms.saturating_add(millis(self.began.elapsed()))
    }
}

/// By the system's clock, which others compare with and which may go back.
pub(crate) fn system_ms() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
    millis(since_1970.unwrap_or(Duration::ZERO))
}

/// A duration in whole milliseconds.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
