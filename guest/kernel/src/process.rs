//! The one process, as calls about processes see it: its names, what it has used, and that it has no children. What
//! else there is to say of it is in the folder.

mod capabilities;
mod control;
mod limits;
mod schedule;
mod system;

use crate::errno::{Errno, SysResult};
use crate::identity::Identity;
use crate::threads::MAX_THREADS;
use crate::{state, time, user};
pub use capabilities::{capabilities, set_capabilities};
pub use control::control;
use limits::LIMITS;
pub use limits::{limit, limits};
pub use schedule::{
    IO_PRIORITY, affinity, check_io_priority, cpu, interval, memory_policy, priority,
    priority_range, scheduler, scheduling, scheduling_attributes, set_affinity, set_priority,
    set_scheduling,
};
pub use system::{RELEASE, names, system_information};

/// The one process, and its first thread.
pub const PROCESS_ID: u64 = 1;
/// A thread's name, with the zero at its end.
const NAME_BYTES: usize = 16;

/// What a program has set and can ask for again.
pub struct Process {
    /// Soft and hard limits that the program set, where it did.
    limits: [Option<[u64; 2]>; LIMITS],
    /// The name of each thread.
    names: [[u8; NAME_BYTES]; MAX_THREADS],
    nice: i32,
    keeps_capabilities: bool,
    dumpable: bool,
    /// Which expedited `membarrier` calls it has registered for.
    barriers: u64,
    no_new_privileges: bool,
    no_huge_pages: bool,
    is_reaper: bool,
    death_signal: u8,
    /// Nanoseconds; 0 for the usual.
    timer_slack: u64,
    /// Whose it is.
    pub user: Identity,
    /// Of which group.
    pub group: Identity,
}

impl Process {
    /// As at the start of a program.
    pub const fn new() -> Self {
        Process {
            limits: [None; LIMITS],
            names: [*b"function\0\0\0\0\0\0\0\0"; MAX_THREADS],
            nice: 0,
            keeps_capabilities: false,
            dumpable: true,
            barriers: 0,
            no_new_privileges: false,
            no_huge_pages: false,
            is_reaper: false,
            death_signal: 0,
            timer_slack: 0,
            user: Identity::root(),
            group: Identity::root(),
        }
    }
}

impl Default for Process {
    fn default() -> Self {
        Process::new()
    }
}

/// The name of a thread, by its place.
pub fn name(thread: usize) -> &'static [u8] {
    let name = &state::process().names[thread % MAX_THREADS];
    let end = name.iter().position(|byte| *byte == 0);
    &name[..end.unwrap_or(NAME_BYTES)]
}

/// Gives a thread another name, of which the first 15 bytes are kept.
pub fn set_name(thread: usize, name: &[u8]) {
    let mut kept = [0; NAME_BYTES];
    let end = name.iter().position(|byte| matches!(byte, 0 | b'\n'));
    let bytes = end.unwrap_or(name.len()).min(NAME_BYTES - 1);
    kept[..bytes].copy_from_slice(&name[..bytes]);
    state::process().names[thread % MAX_THREADS] = kept;
}

/// A thread begins with its parent's name.
pub fn inherit_name(parent: usize, child: usize) {
    let names = &mut state::process().names;
    names[child % MAX_THREADS] = names[parent % MAX_THREADS];
}

/// The niceness that was set.
pub fn nice() -> i32 {
    state::process().nice
}

/// PR_SET_NO_NEW_PRIVS
pub fn has_no_new_privileges() -> bool {
    state::process().no_new_privileges
}

/// Whether `id` means this process or one of its threads; 0 is the caller.
fn is_here(id: u64) -> Result<(), Errno> {
    let id = id as u32;
    match id == 0 || state::threads().index_of(id).is_some() {
        true => Ok(()),
        false => Err(Errno::ESRCH),
    }
}

/// `getpgid` and `getsid`: one group, one session.
pub fn group(id: u64) -> SysResult {
    is_here(id)?;
    Ok(PROCESS_ID)
}

/// `wait4`: there are no children, and there never will be.
pub fn wait(id: u64, options: u64) -> SysResult {
    // WNOHANG, WUNTRACED, WCONTINUED, __WNOTHREAD, __WALL, __WCLONE
    const KNOWN: u64 = 0xe000_000b;
    match (options as u32 as u64 & !KNOWN, id as u32 as i32) {
        (0, i32::MIN) => Err(Errno::ESRCH),
        (0, _) => Err(Errno::ECHILD),
        _ => Err(Errno::EINVAL),
    }
}

/// `waitid`: the same.
pub fn wait_for(kind: u64, id: u64, options: u64) -> SysResult {
    const PID: u64 = 1;
    const PIDFD: u64 = 3;
    // WEXITED, WSTOPPED and WCONTINUED, one of which is needed, and what may come with them.
    const WANTED: u64 = 0xe;
    const KNOWN: u64 = 0xe100_000f;
    let options = options as u32 as u64;
    let id = id as u32 as i32;
    match kind {
        _ if options & !KNOWN != 0 || options & WANTED == 0 => Err(Errno::EINVAL),
        PID if id <= 0 => Err(Errno::EINVAL),
        PIDFD => Err(Errno::EBADF),
        0..=2 => Err(Errno::ECHILD),
        _ => Err(Errno::EINVAL),
    }
}

/// `getrusage`: the time since the last restore as time of the program's; nothing else is counted.
pub fn usage(who: u64, to: u64) -> SysResult {
    const SELF: i32 = 0;
    const CHILDREN: i32 = -1;
    const THREAD: i32 = 1;
    let used = match who as u32 as i32 {
        SELF | THREAD => time::used_ns() / 1000,
        CHILDREN => 0,
        _ => return Err(Errno::EINVAL),
    };
    let room = user::slice_mut(to, 144)?;
    room.fill(0);
    room[..8].copy_from_slice(&(used / 1_000_000).to_le_bytes());
    room[8..16].copy_from_slice(&(used % 1_000_000).to_le_bytes());
    if who as u32 as i32 != CHILDREN {
        // Nobody keeps the most that there was.
        let memory = state::memory();
        let resident = (memory.total_bytes() - memory.free_bytes()) / 1024;
        room[32..40].copy_from_slice(&resident.to_le_bytes());
    }
    Ok(0)
}

/// `times`: in hundredths of a second.
pub fn times(to: u64) -> SysResult {
    const NS_PER_TICK: u64 = 10_000_000;
    if to != 0 {
        user::write(to, [time::used_ns() / NS_PER_TICK, 0])?;
        user::write(to.wrapping_add(16), [0u64, 0])?;
    }
    Ok(time::monotonic_ns() / NS_PER_TICK)
}

/// `unshare`: what the one process shares with nobody anyhow, and no namespaces.
pub fn unshare(flags: u64) -> SysResult {
    // CLONE_FS, CLONE_FILES, CLONE_SYSVSEM
    const OWN: u64 = 0x4_0600;
    // CLONE_VM, CLONE_SIGHAND, CLONE_THREAD, and all namespaces.
    const KNOWN: u64 = OWN | 0x1_0900 | 0x7e02_0080;
    match flags {
        flags if flags & !KNOWN != 0 => Err(Errno::EINVAL),
        flags if flags & !OWN == 0 => Ok(0),
        _ => Err(Errno::EPERM),
    }
}

/// `membarrier`: with one vCPU a system call is barrier enough for every thread.
pub fn barrier(command: u64, flags: u64) -> SysResult {
    const QUERY: u64 = 0;
    // GLOBAL, GLOBAL_EXPEDITED, PRIVATE_EXPEDITED, and the two to register for those.
    const KNOWN: u64 = 1 | 2 | 4 | 8 | 16;
    const PRIVATE_EXPEDITED: u64 = 8;
    const REGISTER_PRIVATE_EXPEDITED: u64 = 16;
    let barriers = &mut state::process().barriers;
    match command as u32 as u64 {
        _ if flags as u32 != 0 => Err(Errno::EINVAL),
        QUERY => Ok(KNOWN),
        PRIVATE_EXPEDITED if *barriers & REGISTER_PRIVATE_EXPEDITED == 0 => Err(Errno::EPERM),
        REGISTER_PRIVATE_EXPEDITED => {
            *barriers |= REGISTER_PRIVATE_EXPEDITED;
            Ok(0)
        }
        command if command.is_power_of_two() && command & KNOWN != 0 => Ok(0),
        _ => Err(Errno::EINVAL),
    }
}

/// `getrandom`
pub fn random(to: u64, bytes: u64, flags: u64) -> SysResult {
    const NONBLOCK: u64 = 1;
    const RANDOM: u64 = 2;
    const INSECURE: u64 = 4;
    if flags & !(NONBLOCK | RANDOM | INSECURE) != 0
        || flags & (RANDOM | INSECURE) == RANDOM | INSECURE
    {
        return Err(Errno::EINVAL);
    }
    user::range(to, bytes.min(i64::MAX as u64))?;
    let room = user::buffer_mut(to, bytes)?;
    state::random().fill(room);
    Ok(room.len() as u64)
}

/// `personality`: Linux's own, and no other.
pub fn personality(wanted: u64) -> SysResult {
    match wanted as u32 {
        0 | u32::MAX => Ok(0),
        _ => Err(Errno::EINVAL),
    }
}
