//! The moment at which the program waits for its first request: the snapshot point.

use holm_hostcall::{Call, PAGE_BYTES};

use crate::memory::guest;
use crate::{host, state, user};

const PROT_NONE: u64 = 0;
const PROT_READ: u64 = 1;
const PROT_WRITE: u64 = 2;

/// Waits for a request at a place, by a [`Call::WAIT_REQUEST`] with these arguments, or for more of the bodies
/// of the requests at the places `wanted`. Before the first one, does what each request would otherwise have
/// to do for itself.
pub fn wait_for_request(place: u8, args: [u64; 4], wanted: u64) -> i64 {
    let ready = state::ready();
    if !*ready {
        *ready = true;
        state::memory().back_ahead(&mut guest());
    }
    let generation = host::generation();
    let result = host::leave(place, Call::WAIT_REQUEST, args, wanted);
    if host::generation() != generation {
        wipe();
    }
    result
}

/// What a child of a fork would find zeroed is so in this instance of the snapshot.
fn wipe() {
    let memory = state::memory;
    for (start, end) in memory().wiped() {
        for page in (start..end).step_by(PAGE_BYTES as usize) {
            if zero(page) {
                continue;
            }
            // Protected: it may hold something all the same.
            let readable = user::slice(page, PAGE_BYTES).is_ok();
            let before = if readable { PROT_READ } else { PROT_NONE };
            let opened = memory().protect(page, PAGE_BYTES, PROT_READ | PROT_WRITE, &mut guest());
            if opened.is_ok() && zero(page) {
                // As it was a moment ago.
                let _ = memory().protect(page, PAGE_BYTES, before, &mut guest());
            }
        }
    }
}

fn zero(page: u64) -> bool {
    user::slice_mut(page, PAGE_BYTES)
        .map(|bytes| bytes.fill(0))
        .is_ok()
}
