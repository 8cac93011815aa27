//! What /proc/self tells of the one process.

use core::fmt::{self, Write as _};

use super::Content;
use crate::files::{MAX_DESCRIPTORS, Object, artifact, directory};
use crate::memory::Protection;
use crate::{host, identity, process, state, time, user};

/// The text that a word of the first stack points to.
fn text_at(word: u64) -> Option<&'static [u8]> {
    const MOST: u64 = 16 << 10;
    let text = user::read::<u64>(word).ok().filter(|text| *text != 0)?;
    user::text(text, MOST).ok()
}

/// Where the arguments begin on the first stack, and where the environment and the auxiliary vector do.
fn first_stack() -> Option<(u64, u64, u64)> {
    const MOST_WORDS: u64 = 4096;
    let start = host::boot().stack_pointer;
    let count = user::read::<u64>(start).ok()?.min(MOST_WORDS);
    let arguments = start + 8;
    let environment = arguments + 8 * (count + 1);
    let words = (0..MOST_WORDS).find(|n| user::read::<u64>(environment + 8 * n) == Ok(0))?;
    Some((arguments, environment, environment + 8 * (words + 1)))
}

fn texts(to: &mut Content, from: u64) {
    let words = (0..).map(|n| from + 8 * n);
    for text in words.map_while(text_at) {
        // Where a program has written over the end of the list, all of its stack would follow.
        if to.used == to.bytes.len() {
            break;
        }
        to.push(text);
        to.push(&[0]);
    }
}

pub(super) fn arguments(to: &mut Content) -> fmt::Result {
    if let Some((arguments, ..)) = first_stack() {
        texts(to, arguments);
    }
    Ok(())
}

pub(super) fn environment(to: &mut Content) -> fmt::Result {
    if let Some((_, environment, _)) = first_stack() {
        texts(to, environment);
    }
    Ok(())
}

pub(super) fn auxiliary_vector(to: &mut Content) -> fmt::Result {
    const MOST: u64 = 64;
    if let Some((.., start)) = first_stack() {
        for pair in (0..MOST).map(|n| user::read::<[u64; 2]>(start + 16 * n)) {
            let Ok([kind, value]) = pair else {
                break;
            };
            to.push(&kind.to_le_bytes());
            to.push(&value.to_le_bytes());
            if kind == 0 {
                break;
            }
        }
    }
    Ok(())
}

/// The name of a thread, with a line end.
pub fn name(to: &mut Content, thread: usize) {
    to.push(process::name(thread));
    to.push(b"\n");
}

pub(super) fn first_name(to: &mut Content) -> fmt::Result {
    name(to, 0);
    Ok(())
}

/// The first thread's stack, and what else there is.
pub(super) fn maps(to: &mut Content) -> fmt::Result {
    let boot = host::boot();
    let end = boot.program_start + boot.memory_bytes;
    writeln!(
        to,
        "{:08x}-{:08x} r-xp 00000000 00:01 1 /function",
        boot.program_start, boot.brk_start
    )?;
    let (stack, mut has_stack) = (boot.stack_start, false);
    let mut result = Ok(());
    state::memory().for_each_mapping(|start, stop, protection| {
        // In the order of addresses, by which glibc finds how far the stack may grow.
        if start > stack && !core::mem::replace(&mut has_stack, true) {
            result = result.and(of_stack(to, stack, end));
        }
        let may = letters(protection);
        result = result.and(writeln!(
            to,
            "{start:08x}-{stop:08x} {may}p 00000000 00:00 0 "
        ));
    });
    match has_stack {
        true => result,
        false => result.and(of_stack(to, stack, end)),
    }
}

fn of_stack(to: &mut Content, start: u64, end: u64) -> fmt::Result {
    writeln!(to, "{start:08x}-{end:08x} rw-p 00000000 00:00 0 [stack]")
}

/// The same with how much of each is there: all of it is taken for used.
pub(super) fn detailed_maps(to: &mut Content) -> fmt::Result {
    let mut result = Ok(());
    state::memory().for_each_mapping(|start, stop, protection| {
        let (may, kib) = (letters(protection), (stop - start) / 1024);
        result = result.and(writeln!(
            to,
            "{start:08x}-{stop:08x} {may}p 00000000 00:00 0 \nSize: {kib:18} kB\nKernelPageSize:        4 kB\n\
             MMUPageSize:           4 kB\nRss: {kib:19} kB\nPss: {kib:19} kB\nShared_Clean:          0 kB\n\
             Shared_Dirty:          0 kB\nPrivate_Clean:         0 kB\nPrivate_Dirty: {kib:9} kB\n\
             Referenced: {kib:12} kB\nAnonymous: {kib:13} kB\nSwap:                  0 kB"
        ));
    });
    result
}

fn letters(protection: Protection) -> &'static str {
    ["---", "r--", "rw-", "r-x"][protection as usize]
}

fn used_pages() -> (u64, u64) {
    let memory = state::memory();
    let total = memory.total_bytes() / 4096;
    (total, total - memory.free_bytes() / 4096)
}

fn name_text() -> &'static str {
    core::str::from_utf8(process::name(0)).unwrap_or("?")
}

pub(super) fn stat(to: &mut Content) -> fmt::Result {
    let (total, used) = used_pages();
    let boot = host::boot();
    writeln!(
        to,
        "1 ({}) R 0 1 1 0 -1 4194304 0 0 0 0 {} 0 0 0 {} {} {} 0 0 {} {used} 18446744073709551615 {} {} {} 0 0 0 0 \
         0 0 0 0 0 17 0 0 0 0 0 0 0 0 0 0 0 0 0 0",
        name_text(),
        time::used_ns() / 10_000_000,
        20 + process::nice(),
        process::nice(),
        state::threads().count(),
        total * 4096,
        boot.program_start,
        boot.brk_start,
        boot.stack_pointer,
    )
}

pub(super) fn pages(to: &mut Content) -> fmt::Result {
    let (total, used) = used_pages();
    writeln!(to, "{total} {used} 0 0 0 {used} 0")
}

pub(super) fn status(to: &mut Content) -> fmt::Result {
    let (total, used) = used_pages();
    let (total, used) = (total * 4, used * 4);
    let user = identity::user();
    let group = identity::group();
    let signals = state::signals().masks();
    writeln!(
        to,
        "Name:\t{}\nUmask:\t{:04o}\nState:\tR (running)\nTgid:\t1\nNgid:\t0\nPid:\t1\nPPid:\t0\nTracerPid:\t0\n\
         Uid:\t{}\t{}\t{}\t{}\nGid:\t{}\t{}\t{}\t{}\nFDSize:\t{MAX_DESCRIPTORS}\nGroups:\t \nNStgid:\t1\nNSpid:\t1\n\
         NSpgid:\t1\nNSsid:\t1",
        name_text(),
        state::file_mask(),
        user.real,
        user.effective,
        user.effective,
        user.effective,
        group.real,
        group.effective,
        group.effective,
        group.effective,
    )?;
    writeln!(
        to,
        "VmPeak:\t{total:8} kB\nVmSize:\t{total:8} kB\nVmLck:\t       0 kB\nVmPin:\t       0 kB\nVmHWM:\t{used:8} kB\n\
         VmRSS:\t{used:8} kB\nRssAnon:\t{used:8} kB\nRssFile:\t       0 kB\nRssShmem:\t       0 kB\n\
         VmData:\t{used:8} kB\nVmStk:\t{:8} kB\nVmExe:\t{:8} kB\nVmLib:\t       0 kB\nVmPTE:\t       0 kB\n\
         VmSwap:\t       0 kB\nThreads:\t{}",
        host::boot().stack_bytes() / 1024,
        (host::boot().brk_start - host::boot().program_start) / 1024,
        state::threads().count(),
    )?;
    let [pending, shared, blocked, ignored, caught] = signals;
    writeln!(
        to,
        "SigQ:\t0/128\nSigPnd:\t{pending:016x}\nShdPnd:\t{shared:016x}\nSigBlk:\t{blocked:016x}\n\
         SigIgn:\t{ignored:016x}\nSigCgt:\t{caught:016x}\nCapInh:\t{0:016x}\nCapPrm:\t{0:016x}\nCapEff:\t{0:016x}\n\
         CapBnd:\t{0:016x}\nCapAmb:\t{0:016x}\nNoNewPrivs:\t{1}\nSeccomp:\t0\nSeccomp_filters:\t0\n\
         Cpus_allowed:\t1\nCpus_allowed_list:\t0\nMems_allowed:\t1\nMems_allowed_list:\t0\n\
         voluntary_ctxt_switches:\t0\nnonvoluntary_ctxt_switches:\t0",
        0,
        u8::from(process::has_no_new_privileges()),
    )
}

pub(super) fn limits(to: &mut Content) -> fmt::Result {
    const NAMES: [(&str, &str); 16] = [
        ("Max cpu time", "seconds"),
        ("Max file size", "bytes"),
        ("Max data size", "bytes"),
        ("Max stack size", "bytes"),
        ("Max core file size", "bytes"),
        ("Max resident set", "bytes"),
        ("Max processes", "processes"),
        ("Max open files", "files"),
        ("Max locked memory", "bytes"),
        ("Max address space", "bytes"),
        ("Max file locks", "locks"),
        ("Max pending signals", "signals"),
        ("Max msgqueue size", "bytes"),
        ("Max nice priority", ""),
        ("Max realtime priority", ""),
        ("Max realtime timeout", "us"),
    ];
    writeln!(
        to,
        "Limit                     Soft Limit           Hard Limit           Units     "
    )?;
    for (resource, (name, unit)) in NAMES.iter().enumerate() {
        write!(to, "{name:<26}")?;
        for value in process::limit(resource as u64).unwrap_or([u64::MAX; 2]) {
            match value {
                u64::MAX => write!(to, "{:<21}", "unlimited")?,
                value => write!(to, "{value:<21}")?,
            }
        }
        writeln!(to, "{unit:<10}")?;
    }
    Ok(())
}

/// What a descriptor stands for, as a link says it.
pub fn describe(to: &mut Content, descriptor: u64) {
    let Ok(open) = state::files().get(descriptor) else {
        return;
    };
    if let Some(number) = open.object.node() {
        let path = state::temporary().path_of(number);
        return to.push(path.unwrap_or(b"/tmp/ (deleted)"));
    }
    let made = match open.object {
        Object::Brought(number) => {
            if let Some(entry) = artifact::entry(number) {
                to.push(entry.path);
            }
            return;
        }
        Object::Directory(number) => {
            return to.push(directory::path_of(number).as_bytes());
        }
        Object::Made(number) => {
            return to.push(super::ENTRIES[usize::from(number)].0.as_bytes());
        }
        Object::Socket(number) => write!(to, "socket:[{}]", 10_000 + u32::from(number)),
        Object::Stream { from, to: into } => {
            write!(to, "pipe:[{}]", 20_000 + u32::from(from.min(into)))
        }
        Object::Log => to.write_str("pipe:[1]"),
        Object::Full => to.write_str("/dev/full"),
        Object::Stdin | Object::Null => to.write_str("/dev/null"),
        Object::Zero => to.write_str("/dev/zero"),
        Object::Random => to.write_str("/dev/urandom"),
        Object::Epoll(_) => to.write_str("anon_inode:[eventpoll]"),
        Object::Timer(_) => to.write_str("anon_inode:[timerfd]"),
        Object::Watcher(_) => to.write_str("anon_inode:inotify"),
        Object::Signals(_) => to.write_str("anon_inode:[signalfd]"),
        Object::Event(..) => to.write_str("anon_inode:[eventfd]"),
        Object::Info(_) => to.write_str("/proc/self/fdinfo"),
        Object::Name(_) => to.write_str("/proc/self/comm"),
        Object::File(_) | Object::Free => Ok(()),
    };
    // What does not fit is cut.
    let _ = made;
}

/// What /proc/self/fdinfo tells of a descriptor.
pub fn descriptor(to: &mut Content, descriptor: u64) {
    let Ok(open) = state::files().get(descriptor) else {
        return;
    };
    let flags = state::files().shown_flags(descriptor);
    // What does not fit is cut.
    let _ = writeln!(
        to,
        "pos:\t{}\nflags:\t0{flags:o}\nmnt_id:\t1\nino:\t1",
        open.position
    );
    if let Object::Event(count, semaphore) = open.object {
        let _ = writeln!(
            to,
            "eventfd-count: {count:16x}\neventfd-id: 1\neventfd-semaphore: {}",
            u8::from(semaphore)
        );
    }
}
