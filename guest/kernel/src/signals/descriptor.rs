//! signalfd: signals that are read like a file.

use super::queue::{Origin, SI_QUEUE};
use super::timers::SI_TIMER;
use super::{ABSOLUTE, MASK_BYTES, own};
use crate::buffers::Place;
use crate::errno::{Errno, SysResult};
use crate::files::{O_CLOEXEC, O_NONBLOCK, O_RDWR, Object};
use crate::{state, user};

/// Bytes of a `struct signalfd_siginfo`.
const INFO_BYTES: usize = 128;

/// `signalfd` and `signalfd4`
pub fn open(descriptor: u64, set: u64, mask_bytes: u64, flags: u64) -> SysResult {
    if flags as u32 as u64 & !(O_NONBLOCK | O_CLOEXEC) != 0 || mask_bytes != MASK_BYTES {
        return Err(Errno::EINVAL);
    }
    let object = Object::Signals(user::read::<u64>(set)? & !ABSOLUTE);
    if descriptor as u32 == u32::MAX {
        return state::files().open(object, O_RDWR | flags);
    }
    let open = state::files().get_mut(descriptor)?;
    if !matches!(open.object, Object::Signals(_)) {
        return Err(Errno::EINVAL);
    }
    open.object = object;
    // What is awaited may be there already.
    state::files().edge(|other| other == object);
    Ok(u64::from(descriptor as u32))
}

/// Whether the running thread would find one to read.
pub fn is_readable(set: u64) -> bool {
    (own().pending | state::signals().pending) & set != 0
}

/// Takes as many as fit; EAGAIN where there is none.
pub fn read(set: u64, to: Place<'_>) -> SysResult {
    if to.len() < INFO_BYTES as u64 {
        return Err(Errno::EINVAL);
    }
    if !is_readable(set) {
        return Err(Errno::EAGAIN);
    }
    let mut done = 0;
    for room in to.writable()?.chunks_exact_mut(INFO_BYTES) {
        let thread = state::threads().current();
        let signals = state::signals();
        let found = (signals.threads[thread].pending | signals.pending) & set;
        if found == 0 {
            break;
        }
        let (signal, origin) = super::take_of(found, thread);
        write_info(room, signal, &origin);
        done += INFO_BYTES as u64;
    }
    match done {
        0 => Err(Errno::EFAULT),
        done => Ok(done),
    }
}

/// A `struct signalfd_siginfo`, of which each kind of signal has some fields.
fn write_info(to: &mut [u8], signal: u32, origin: &Origin) {
    to.fill(0);
    let [first, second, ..] = origin.words;
    let (low, high) = (first as u32, (first >> 32) as u32);
    let mut put = |at: usize, word: u32| to[at..at + 4].copy_from_slice(&word.to_le_bytes());
    put(0, signal);
    put(4, origin.errno);
    put(8, origin.code as u32);
    if origin.code == SI_TIMER {
        put(24, low);
        put(32, high);
    } else {
        put(12, low);
        put(16, high);
    }
    if matches!(origin.code, SI_TIMER | SI_QUEUE) {
        put(44, second as u32);
        to[48..56].copy_from_slice(&second.to_le_bytes());
    }
}
