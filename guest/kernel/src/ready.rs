//! The moment at which the program waits for its first request: the snapshot point.

use holm_hostcall::Call;

use crate::memory::guest;
use crate::{host, state, user};

/// Waits for a request in a buffer of `capacity` bytes; gives the bytes of it, or a negative `errno`. Before
/// the first one, does what each request would otherwise have to do for itself.
pub fn wait_for_request(buffer: u64, capacity: u64) -> i64 {
    let ready = state::ready();
    if !*ready {
        *ready = true;
        state::memory().back_ahead(&mut guest());
    }
    let generation = host::generation();
    let result = host::call(Call::WAIT_REQUEST, 0, [buffer, capacity, 0, 0]);
    if host::generation() != generation {
        wipe();
    }
    result
}

/// What a child of a fork would find zeroed is so in this instance of the snapshot.
fn wipe() {
    for (start, end) in state::memory().wiped() {
        // What cannot be written holds nothing that the program could have put there.
        if let Ok(bytes) = user::slice_mut(start, end - start) {
            bytes.fill(0);
        }
    }
}
