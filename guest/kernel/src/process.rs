//! The one process, as calls about processes see it: how it is scheduled, how much
//! of everything it may have, and that it has no children.

use crate::errno::{Errno, SysResult};
use crate::identity::Identity;
use crate::threads::MAX_THREADS;
use crate::{files, host, state, time, user};

/// The one process, and its first thread.
pub const PROCESS_ID: u64 = 1;
/// Most limits that there are numbers for (`RLIM_NLIMITS`).
const LIMITS: usize = 16;
const UNLIMITED: u64 = u64::MAX;
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

/// The same where a negative number is a mistake instead of nobody.
fn is_scheduled(id: u64) -> Result<(), Errno> {
    match (id as i32) < 0 {
        true => Err(Errno::EINVAL),
        false => is_here(id),
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

/// `getrlimit`: what the program set, or what holds.
pub fn limit(resource: u64) -> Result<[u64; 2], Errno> {
    const STACK: u64 = 3;
    const OPEN_FILES: u64 = 7;
    const ADDRESS_SPACE: u64 = 9;
    let place = resource as u32 as usize;
    let set = state::process().limits.get(place).ok_or(Errno::EINVAL)?;
    let holds = match u64::from(resource as u32) {
        STACK => thread_stack_bytes(),
        OPEN_FILES => files::MAX_DESCRIPTORS as u64,
        ADDRESS_SPACE => state::memory().total_bytes(),
        _ => UNLIMITED,
    };
    Ok(set.unwrap_or([holds, holds]))
}

/// `prlimit64`, `getrlimit` and `setrlimit`. What is set is remembered; what holds is the function's
/// configuration, and no call raises that.
pub fn limits(id: u64, resource: u64, new: u64, old: u64) -> SysResult {
    const OPEN_FILES: u64 = 7;
    let place = resource as u32 as usize;
    if place >= LIMITS {
        return Err(Errno::EINVAL);
    }
    let set = match new {
        0 => None,
        new => Some(user::read::<[u64; 2]>(new)?),
    };
    is_here(id)?;
    let before = limit(resource)?;
    if let Some([soft, hard]) = set {
        if soft > hard {
            return Err(Errno::EINVAL);
        }
        if u64::from(resource as u32) == OPEN_FILES && hard > files::MAX_DESCRIPTORS as u64 {
            return Err(Errno::EPERM);
        }
        state::process().limits[place] = Some([soft, hard]);
    }
    if old != 0 {
        user::write(old, before)?;
    }
    Ok(0)
}

/// The limit that libcs take as the size of a thread's stack: that of the first one, which is 8 MiB as on Linux where
/// there is memory for it. What a thread does not touch of its stack costs nothing.
fn thread_stack_bytes() -> u64 {
    host::boot().stack_bytes()
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

/// `prctl`: what a process says about itself and asks of a kernel that has nothing else to do.
pub fn control(operation: u64, argument: u64, rest: [u64; 3]) -> SysResult {
    const SET_PDEATHSIG: u64 = 1;
    const GET_PDEATHSIG: u64 = 2;
    const GET_DUMPABLE: u64 = 3;
    const SET_DUMPABLE: u64 = 4;
    const GET_KEEPCAPS: u64 = 7;
    const SET_KEEPCAPS: u64 = 8;
    const GET_TIMING: u64 = 13;
    const SET_TIMING: u64 = 14;
    const SET_NAME: u64 = 15;
    const GET_NAME: u64 = 16;
    const CAPBSET_READ: u64 = 23;
    const GET_TSC: u64 = 25;
    const SET_TSC: u64 = 26;
    const GET_SECUREBITS: u64 = 27;
    const SET_TIMERSLACK: u64 = 29;
    const GET_TIMERSLACK: u64 = 30;
    const MCE_KILL_GET: u64 = 34;
    const SET_CHILD_SUBREAPER: u64 = 36;
    const GET_CHILD_SUBREAPER: u64 = 37;
    const SET_NO_NEW_PRIVS: u64 = 38;
    const GET_NO_NEW_PRIVS: u64 = 39;
    const SET_THP_DISABLE: u64 = 41;
    const GET_THP_DISABLE: u64 = 42;
    const CAP_AMBIENT: u64 = 47;
    const TIMER_SLACK_NS: u64 = 50_000;
    const LAST_CAPABILITY: u64 = 40;
    const TSC_ENABLE: u64 = 1;
    let process = state::process();
    match operation as u32 as u64 {
        SET_PDEATHSIG if argument <= 64 => {
            // The parent never dies.
            process.death_signal = argument as u8;
            Ok(0)
        }
        GET_PDEATHSIG => {
            user::write(argument, u32::from(process.death_signal))?;
            Ok(0)
        }
        GET_DUMPABLE => Ok(u64::from(process.dumpable)),
        SET_DUMPABLE if argument <= 1 => {
            process.dumpable = argument == 1;
            Ok(0)
        }
        GET_KEEPCAPS => Ok(u64::from(process.keeps_capabilities)),
        SET_KEEPCAPS if argument <= 1 => {
            process.keeps_capabilities = argument == 1;
            Ok(0)
        }
        GET_TIMING => Ok(0),
        GET_SECUREBITS => Ok(u64::from(process.keeps_capabilities) << 4),
        SET_TIMING if argument == 0 => Ok(0),
        SET_NAME => {
            let given = user::text(argument, NAME_BYTES as u64 - 1)?;
            set_name(state::threads().current(), given);
            Ok(0)
        }
        GET_NAME => {
            user::write(argument, process.names[state::threads().current()])?;
            Ok(0)
        }
        CAPBSET_READ if argument <= LAST_CAPABILITY => Ok(0),
        GET_TSC => {
            user::write(argument, TSC_ENABLE as u32)?;
            Ok(0)
        }
        SET_TSC if argument == TSC_ENABLE => Ok(0),
        // As long as the usual one: nothing here is ever late for it.
        SET_TIMERSLACK => {
            process.timer_slack = match argument {
                0 | 0x8000_0000_0000_0000.. => TIMER_SLACK_NS,
                ns => ns,
            };
            Ok(0)
        }
        GET_TIMERSLACK => Ok(match process.timer_slack {
            0 => TIMER_SLACK_NS,
            ns => ns,
        }),
        MCE_KILL_GET if argument == 0 && rest == [0; 3] => Ok(2),
        SET_CHILD_SUBREAPER => {
            process.is_reaper = argument != 0;
            Ok(0)
        }
        GET_CHILD_SUBREAPER => {
            user::write(argument, u32::from(process.is_reaper))?;
            Ok(0)
        }
        SET_NO_NEW_PRIVS if argument == 1 && rest == [0; 3] => {
            process.no_new_privileges = true;
            Ok(0)
        }
        GET_NO_NEW_PRIVS if argument == 0 && rest == [0; 3] => {
            Ok(u64::from(process.no_new_privileges))
        }
        SET_THP_DISABLE if rest == [0; 3] => {
            process.no_huge_pages = argument != 0;
            Ok(0)
        }
        GET_THP_DISABLE if argument == 0 && rest == [0; 3] => Ok(u64::from(process.no_huge_pages)),
        // None is ever set.
        CAP_AMBIENT if argument == 1 && rest[0] <= LAST_CAPABILITY && rest[1..] == [0; 2] => Ok(0),
        CAP_AMBIENT if argument == 4 && rest == [0; 3] => Ok(0),
        // Names of mappings among others, which nothing here shows: as from a kernel without them.
        _ => Err(Errno::EINVAL),
    }
}

/// `getpriority`: 20 less the niceness.
pub fn priority(which: u64, who: u64) -> SysResult {
    is_one_to_nice(which, who)?;
    Ok((20 - state::process().nice) as u64)
}

/// `setpriority`: remembered. There is nobody to be nice to.
pub fn set_priority(which: u64, who: u64, nice: u64) -> SysResult {
    is_one_to_nice(which, who)?;
    state::process().nice = (nice as u32 as i32).clamp(-20, 19);
    Ok(0)
}

fn is_one_to_nice(which: u64, who: u64) -> Result<(), Errno> {
    const PROCESS: u64 = 0;
    const GROUP: u64 = 1;
    const USER: u64 = 2;
    match which {
        PROCESS => is_here(who),
        GROUP if who <= PROCESS_ID => Ok(()),
        USER if who == 0 => Ok(()),
        GROUP | USER => Err(Errno::ESRCH),
        _ => Err(Errno::EINVAL),
    }
}

/// `sched_get_priority_max` and, if not `most`, `sched_get_priority_min`.
pub fn priority_range(policy: u64, most: bool) -> SysResult {
    match (policy as u32, most) {
        // SCHED_FIFO, SCHED_RR
        (1 | 2, true) => Ok(99),
        (1 | 2, false) => Ok(1),
        // SCHED_OTHER, BATCH, IDLE, DEADLINE
        (0 | 3 | 5 | 6, _) => Ok(0),
        _ => Err(Errno::EINVAL),
    }
}

/// `sched_getscheduler`: SCHED_OTHER.
pub fn scheduler(id: u64) -> SysResult {
    is_scheduled(id)?;
    Ok(0)
}

/// `sched_getparam`: no priority.
pub fn scheduling(id: u64, to: u64) -> SysResult {
    if to == 0 {
        return Err(Errno::EINVAL);
    }
    is_scheduled(id)?;
    user::write(to, 0u32)?;
    Ok(0)
}

/// `sched_setscheduler` and, without a policy, `sched_setparam`: the usual one is taken.
pub fn set_scheduling(id: u64, policy: u64, from: u64) -> SysResult {
    // SCHED_OTHER, BATCH and IDLE have no priorities.
    if from == 0 || !matches!(policy as u32, 0 | 3 | 5) {
        return Err(if from == 0 {
            Errno::EINVAL
        } else {
            Errno::EPERM
        });
    }
    is_scheduled(id)?;
    match user::read::<u32>(from)? {
        0 => Ok(0),
        _ => Err(Errno::EINVAL),
    }
}

/// `sched_getaffinity`: one CPU.
pub fn affinity(id: u64, bytes: u64, to: u64) -> SysResult {
    let bytes = u64::from(bytes as u32);
    if bytes < 8 || !bytes.is_multiple_of(8) {
        return Err(Errno::EINVAL);
    }
    is_here(id)?;
    user::write(to, 1u64)?;
    Ok(8)
}

/// `sched_setaffinity`: the one CPU has to be among them.
pub fn set_affinity(id: u64, bytes: u64, from: u64) -> SysResult {
    let mask = match bytes as u32 {
        0 => 0,
        _ => u64::from(user::read::<u8>(from)?),
    };
    is_here(id)?;
    match mask & 1 {
        0 => Err(Errno::EINVAL),
        _ => Ok(0),
    }
}

/// The thread that the header of a call about capabilities names, and the bytes of the sets that go with its version;
/// no bytes for a version that there is not, for which the header is told the newest.
fn capability_header(header: u64) -> Result<(u32, Option<u64>), Errno> {
    const VERSION_1: u32 = 0x1998_0330;
    const VERSION_2: u32 = 0x2007_1026;
    const VERSION_3: u32 = 0x2008_0522;
    let [version, id] = user::read::<[u32; 2]>(header)?;
    let words = match version {
        VERSION_1 => 3,
        VERSION_2 | VERSION_3 => 6,
        _ => {
            user::write(header, VERSION_3)?;
            return Ok((id, None));
        }
    };
    Ok((id, Some(words * 4)))
}

/// `capget`: none. The newest version is told to those who ask for one that there is not.
pub fn capabilities(header: u64, to: u64) -> SysResult {
    let (id, bytes) = capability_header(header)?;
    let Some(bytes) = bytes else {
        return if to == 0 { Ok(0) } else { Err(Errno::EINVAL) };
    };
    if (id as i32) < 0 {
        return Err(Errno::EINVAL);
    }
    is_here(u64::from(id))?;
    if to != 0 {
        user::slice_mut(to, bytes)?.fill(0);
    }
    Ok(0)
}

/// `capset`: there is none that could be had; to have none is granted.
pub fn set_capabilities(header: u64, from: u64) -> SysResult {
    let (id, bytes) = capability_header(header)?;
    let bytes = bytes.ok_or(Errno::EINVAL)?;
    if id != 0 && state::threads().id() != id {
        return Err(Errno::EPERM);
    }
    match user::slice(from, bytes)?.iter().all(|byte| *byte == 0) {
        true => Ok(0),
        false => Err(Errno::EPERM),
    }
}

/// `sched_rr_get_interval`: the turn of a thread.
pub fn interval(id: u64, to: u64) -> SysResult {
    const TURN_NS: u64 = 5_000_000;
    is_scheduled(id)?;
    user::write(to, [0, TURN_NS])?;
    Ok(0)
}

/// `sched_getattr`: the usual policy, and the niceness.
pub fn scheduling_attributes(id: u64, to: u64, bytes: u64, flags: u64) -> SysResult {
    const KNOWN_BYTES: u64 = 48;
    let bytes = u64::from(bytes as u32);
    if to == 0 || flags as u32 != 0 || !(KNOWN_BYTES..=4096).contains(&bytes) {
        return Err(Errno::EINVAL);
    }
    is_scheduled(id)?;
    let room = user::slice_mut(to, bytes)?;
    room.fill(0);
    room[..4].copy_from_slice(&(KNOWN_BYTES as u32).to_le_bytes());
    room[16..20].copy_from_slice(&state::process().nice.to_le_bytes());
    Ok(0)
}

/// What `ioprio_get` says: none was set.
pub const IO_PRIORITY: u64 = 4;

/// `ioprio_get` and `ioprio_set`, of which nothing comes.
pub fn check_io_priority(which: u64, who: u64) -> Result<(), Errno> {
    const PROCESS: u64 = 1;
    match which {
        PROCESS => is_here(who),
        2 | 3 => Ok(()),
        _ => Err(Errno::EINVAL),
    }
}

/// `get_mempolicy`: the usual one, on the one node.
pub fn memory_policy(mode_to: u64, mask_to: u64, most: u64) -> SysResult {
    if mode_to != 0 {
        user::write(mode_to, 0u32)?;
    }
    if mask_to != 0 {
        if most < 1 {
            return Err(Errno::EINVAL);
        }
        user::slice_mut(mask_to, most.div_ceil(64).min(64) * 8)?.fill(0);
    }
    Ok(0)
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

/// `getcpu`: the first of the first node.
pub fn cpu(cpu: u64, node: u64) -> SysResult {
    for to in [cpu, node].into_iter().filter(|to| *to != 0) {
        user::write(to, 0u32)?;
    }
    Ok(0)
}

/// `personality`: Linux's own, and no other.
pub fn personality(wanted: u64) -> SysResult {
    match wanted as u32 {
        0 | u32::MAX => Ok(0),
        _ => Err(Errno::EINVAL),
    }
}
