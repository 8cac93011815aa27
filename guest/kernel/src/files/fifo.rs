//! FIFOs: pipes that are found by a path of /tmp. Who opens one end waits until somebody has the other.
//!
//! A FIFO has a queue while an end of it is open, and what was not read by then is lost. The file stays for as
//! long as an end is open, whatever becomes of its name.

use super::{O_ACCESS, O_NONBLOCK, O_RDWR, O_WRONLY, Object, watch};
use crate::errno::{Errno, SysResult};
use crate::{pipes, state, threads};

/// `open` of a FIFO. An end that may not wait is there at once if it reads, and ENXIO if it writes and nobody reads.
pub(super) fn open(file: u16, flags: u64) -> SysResult {
    let (reads, writes) = match flags & O_ACCESS {
        0 => (true, false),
        O_WRONLY => (false, true),
        O_RDWR => (true, true),
        _ => return Err(Errno::EINVAL),
    };
    let nonblocking = flags & O_NONBLOCK != 0;
    let readers = || queue_of(file).map_or(0, |queue| queue.readers().0);
    if !reads && nonblocking && readers() == 0 {
        return Err(Errno::ENXIO);
    }
    let number = pipes::join(file, reads, writes)?;
    state::temporary().opened(file);
    let (from, to) = (
        if reads { number } else { pipes::NONE },
        if writes { number } else { pipes::NONE },
    );
    // The other side: how many there are of it, and ever were.
    let partners = || match (queue_of(file), reads) {
        (Some(queue), true) => queue.writers(),
        (Some(queue), false) => queue.readers(),
        (None, _) => (0, 0),
    };
    let (there, before) = partners();
    let waits = there == 0 && !nonblocking;
    let met = threads::blocking(false, || match waits && partners().1 == before {
        true => Err(Errno::EAGAIN),
        false => Ok(0),
    });
    let opened = met.and_then(|_| state::files().open(Object::Stream { from, to }, flags));
    match opened {
        Err(_) => leave(from, to, file),
        // Poll is to tell an end only when a writer has come and gone.
        Ok(descriptor) if there == 0 && nonblocking => {
            state::files().get_mut(descriptor)?.position = before.into();
        }
        Ok(_) => {}
    }
    if opened.is_ok() {
        watch::tell_node(file, watch::OPEN);
    }
    opened
}

fn queue_of(file: u16) -> Option<&'static mut pipes::Queue> {
    pipes::of_fifo(file).and_then(pipes::queue)
}

/// The last descriptor of an end was closed: of a FIFO, or of a pipe that has no name.
pub(super) fn close(from: u8, to: u8) {
    match pipes::file_of(from, to) {
        None => pipes::close(from, to),
        Some(file) => {
            watch::tell_closed(file, to != pipes::NONE);
            leave(from, to, file);
        }
    }
}

fn leave(from: u8, to: u8, file: u16) {
    pipes::close(from, to);
    state::temporary().closed(file);
}
