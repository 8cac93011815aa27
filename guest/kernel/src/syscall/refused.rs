//! The calls that are not served: with what answer, and what the function's log says of them.

use crate::errno::{Errno, SysResult};
use crate::{host, log};

/// What a sandboxed Linux refuses too, and programs ask for to do without: to trace, mount, set clocks and names,
/// load modules and filters.
pub(super) const REFUSED: [u64; 31] = [
    101, 103, 153, 155, 161, 163, 164, 165, 166, 167, 168, 169, 170, 171, 172, 173, 175, 176, 179,
    227, 246, 298, 304, 308, 310, 311, 312, 313, 320, 321, 323,
];
/// What a kernel may be built without, and programs that know it do without: asynchronous I/O, fanotify,
/// queues and keys of the system's, filters, descriptors of processes, and what is newer than this.
pub(super) const MISSING: [u64; 43] = [
    206, 207, 208, 209, 210, 240, 241, 242, 243, 244, 245, 248, 249, 250, 300, 301, 317, 333, 424,
    425, 426, 427, 434, 438, 440, 444, 445, 446, 447, 448, 449, 450, 451, 453, 454, 455, 456, 457,
    458, 459, 460, 329, 330,
];

/// A call of which a part is served: what is not, is named.
pub(super) fn served(number: u64, result: SysResult) -> SysResult {
    match result {
        Err(Errno::ENOSYS) => refuse(number),
        result => result,
    }
}

/// A call that some kernels refuse too. The host names it if the program is never ready.
pub(super) fn refuse_silently(number: u64, error: Errno) -> SysResult {
    host::lacks(number, true);
    Err(error)
}

/// ENOSYS, named once.
pub(super) fn refuse(number: u64) -> SysResult {
    if host::lacks(number, false) {
        match name(number) {
            Some((name, why)) => log::note(format_args!("system call {name}: ENOSYS ({why})")),
            None => log::note(format_args!(
                "system call number {number}: ENOSYS (not supported)"
            )),
        }
    }
    Err(Errno::ENOSYS)
}

/// Calls that programs are known to try, and why they are not there.
fn name(number: u64) -> Option<(&'static str, &'static str)> {
    const ONE_PROCESS: &str = "a function is one process; it cannot start others";
    const NO_FORK: &str = "a function is one process; a server that forks for each connection can be \
                           run as under inetd, with `inetd = true` in [function]";
    const ONE_HAS: &str = "a function is one process; shm_open and mmap share memory, and sem_init and pthreads \
                           make semaphores and queues";
    Some(match number {
        56 => ("clone", NO_FORK),
        435 => ("clone3", NO_FORK),
        57 => ("fork", NO_FORK),
        58 => ("vfork", NO_FORK),
        59 => ("execve", ONE_PROCESS),
        322 => ("execveat", ONE_PROCESS),
        29 => ("shmget", ONE_HAS),
        64 => ("semget", ONE_HAS),
        68 => ("msgget", ONE_HAS),
        _ => return None,
    })
}
