//! New threads: `clone` and `clone3`.

use holm_hostcall::{PAGE_BYTES, Registers};

use super::{Doing, FREE, STACK_BYTES, Thread, WIDE_BYTES, want_ticks};
use crate::errno::{Errno, SysResult};
use crate::memory::guest;
use crate::{host, process, state, user};

const CLONE_VM: u64 = 0x100;
const CLONE_SIGHAND: u64 = 0x800;
const CLONE_PIDFD: u64 = 0x1000;
const CLONE_PARENT: u64 = 0x8000;
const CLONE_THREAD: u64 = 0x1_0000;
const CLONE_SETTLS: u64 = 0x8_0000;
const CLONE_PARENT_SETTID: u64 = 0x10_0000;
const CLONE_CHILD_CLEARTID: u64 = 0x20_0000;
const CLONE_DETACHED: u64 = 0x40_0000;
const CLONE_CHILD_SETTID: u64 = 0x100_0000;
const CLONE_CLEAR_SIGHAND: u64 = 1 << 32;
const CLONE_INTO_CGROUP: u64 = 1 << 33;
/// Where `clone` has the signal that a child's end is told by.
const CSIGNAL: u64 = 0xff;

/// What is asked of a new thread.
#[derive(Clone, Copy)]
struct Wanted {
    flags: u64,
    /// Where its stack begins, from above.
    stack: u64,
    parent_id_to: u64,
    child_id_to: u64,
    thread_pointer: u64,
}

/// `clone`, for a thread of this process: ENOSYS for what would be another one.
pub fn clone(
    parent: &Registers,
    flags: u64,
    stack: u64,
    parent_id_to: u64,
    child_id_to: u64,
    thread_pointer: u64,
) -> SysResult {
    let wanted = Wanted {
        flags: u64::from(flags as u32) & !CSIGNAL,
        stack,
        parent_id_to,
        child_id_to,
        thread_pointer,
    };
    start(parent, wanted)
}

/// The kernel's `struct clone_args`, without `pidfd`, which threads cannot have.
struct Arguments {
    flags: u64,
    child_id_to: u64,
    parent_id_to: u64,
    exit_signal: u64,
    stack: u64,
    stack_bytes: u64,
    thread_pointer: u64,
    set_ids: u64,
    set_id_count: u64,
    cgroup: u64,
}

/// `clone3`, for a thread of this process: ENOSYS for what would be another one.
pub fn clone_with(parent: &Registers, arguments: u64, bytes: u64) -> SysResult {
    let arguments = read(arguments, bytes)?;
    check(&arguments, bytes)?;
    if arguments.set_id_count > 0 {
        return Err(Errno::ENOSYS);
    }
    let wanted = Wanted {
        flags: arguments.flags,
        stack: arguments.stack.wrapping_add(arguments.stack_bytes),
        parent_id_to: arguments.parent_id_to,
        child_id_to: arguments.child_id_to,
        thread_pointer: arguments.thread_pointer,
    };
    start(parent, wanted)
}

/// The arguments, of which older programs have fewer; what newer ones have more has to be zero.
fn read(addr: u64, bytes: u64) -> Result<Arguments, Errno> {
    const FIRST_VERSION_BYTES: u64 = 64;
    const WORDS: usize = 11;
    const KNOWN_BYTES: u64 = WORDS as u64 * 8;
    match bytes {
        ..FIRST_VERSION_BYTES => return Err(Errno::EINVAL),
        FIRST_VERSION_BYTES..=PAGE_BYTES => {}
        _ => return Err(Errno::E2BIG),
    }
    let given = user::slice(addr, bytes)?;
    let (known, unknown) = given.split_at(bytes.min(KNOWN_BYTES) as usize);
    if unknown.iter().any(|byte| *byte != 0) {
        return Err(Errno::E2BIG);
    }
    let mut words = [0; WORDS];
    for (word, bytes) in words.iter_mut().zip(known.chunks(8)) {
        let mut whole = [0; 8];
        whole[..bytes.len()].copy_from_slice(bytes);
        *word = u64::from_le_bytes(whole);
    }
    Ok(Arguments {
        flags: words[0],
        child_id_to: words[2],
        parent_id_to: words[3],
        exit_signal: words[4],
        stack: words[5],
        stack_bytes: words[6],
        thread_pointer: words[7],
        set_ids: words[8],
        set_id_count: words[9],
        cgroup: words[10],
    })
}

/// What Linux refuses whoever asks.
fn check(arguments: &Arguments, bytes: u64) -> Result<(), Errno> {
    const MAX_IDS: u64 = 32;
    const SIGNALS: u64 = 64;
    const WITH_CGROUP_BYTES: u64 = 88;
    const KNOWN: u64 = 0xffff_ffff | CLONE_CLEAR_SIGHAND | CLONE_INTO_CGROUP;
    const CLONE_NEWTIME: u64 = 0x80;
    let flags = arguments.flags;
    let has = |all: u64| flags & all == all;
    let wrong = arguments.set_id_count > MAX_IDS
        || (arguments.set_ids == 0) != (arguments.set_id_count == 0)
        || arguments.exit_signal > SIGNALS
        || has(CLONE_INTO_CGROUP)
            && (arguments.cgroup > i32::MAX as u64 || bytes < WITH_CGROUP_BYTES)
        || flags & !KNOWN != 0
        || flags & (CLONE_DETACHED | CSIGNAL & !CLONE_NEWTIME) != 0
        || has(CLONE_SIGHAND | CLONE_CLEAR_SIGHAND)
        || flags & (CLONE_THREAD | CLONE_PARENT) != 0 && arguments.exit_signal != 0
        || (arguments.stack == 0) != (arguments.stack_bytes == 0)
        || user::range(arguments.stack, arguments.stack_bytes).is_err();
    match wrong {
        true => Err(Errno::EINVAL),
        false => Ok(()),
    }
}

fn start(parent: &Registers, wanted: Wanted) -> SysResult {
    let Wanted { flags, stack, .. } = wanted;
    let has = |flag: u64| flags & flag != 0;
    // As on Linux: threads share their handlers, and who shares those shares the memory.
    let misses = |flag: u64, needed: u64| has(flag) && !has(needed);
    if misses(CLONE_THREAD, CLONE_SIGHAND)
        || misses(CLONE_SIGHAND, CLONE_VM)
        || has(CLONE_THREAD) && has(CLONE_PIDFD)
    {
        return Err(Errno::EINVAL);
    }
    if !has(CLONE_THREAD) {
        return Err(Errno::ENOSYS);
    }
    if stack == 0 {
        return Err(Errno::EINVAL);
    }
    let threads = state::threads();
    threads.bury();
    let free = threads
        .all
        .iter()
        .position(|thread| thread.doing == Doing::Free);
    let at = free.ok_or(Errno::EAGAIN)?;
    let fs_base = match has(CLONE_SETTLS) {
        true => wanted.thread_pointer,
        false => host::fs_base(),
    };
    if fs_base >= 1 << 47 {
        return Err(Errno::EPERM);
    }
    let mapping = state::memory().take(STACK_BYTES + WIDE_BYTES, &mut guest())?;
    let stack_top = mapping + STACK_BYTES;
    let id = threads.new_id();
    // As on Linux: where the ids are to be and cannot, the thread is there all the same.
    if has(CLONE_PARENT_SETTID) {
        let _ = user::write(wanted.parent_id_to, id);
    }
    if has(CLONE_CHILD_SETTID) {
        let _ = user::write(wanted.child_id_to, id);
    }
    threads.all[at] = Thread {
        doing: Doing::Ready,
        id,
        stack_pointer: lay_out(stack_top, parent, stack, threads.start_address),
        stack_top,
        mapping,
        fs_base,
        gs_base: host::gs_base(),
        clear_at_end: match has(CLONE_CHILD_CLEARTID) {
            true => wanted.child_id_to,
            false => 0,
        },
        ..FREE
    };
    threads.end = threads.end.max(at + 1);
    threads.count += 1;
    state::signals().inherit(threads.current, at);
    process::inherit_name(threads.current, at);
    want_ticks();
    Ok(u64::from(id))
}

/// Lays a new thread's kernel stack out as `switch_stacks` and the entry would have left it:
///
/// ```text
/// top   │ frame of the parent's system call, with the new stack
///             │ x87 and SSE registers, 64-byte aligned
///       │ return address: where new threads start
/// here  │ rbp, rbx = address of the frame, r12 to r15
/// ```
fn lay_out(stack_top: u64, parent: &Registers, program_stack: u64, start_address: u64) -> u64 {
    const FX_BYTES: u64 = 512;
    let frame_addr = stack_top - size_of::<Registers>() as u64;
    let fx = (frame_addr - FX_BYTES) & !63;
    let parent_frame = core::ptr::from_ref(parent);
    let parent_fx = ((parent_frame.addr() as u64 - FX_BYTES) & !63) as usize;
    // SAFETY: all of it lies in the new thread's stack, which is mapped and nobody else's; the parent's
    // registers lie below its frame, where the entry put them.
    unsafe {
        let frame = core::ptr::with_exposed_provenance_mut::<Registers>(frame_addr as usize);
        frame.write(Registers {
            rsp: program_stack,
            rax: 0,
            ..*parent
        });
        core::ptr::with_exposed_provenance::<u8>(parent_fx).copy_to_nonoverlapping(
            core::ptr::with_exposed_provenance_mut(fx as usize),
            FX_BYTES as usize,
        );
        let words = [0, 0, 0, 0, frame_addr, 0, start_address];
        let start = fx - size_of_val(&words) as u64;
        core::ptr::with_exposed_provenance_mut::<[u64; 7]>(start as usize).write(words);
        start
    }
}
