//! The few files outside of /tmp and the artifact that programs and their runtimes look for: devices,
//! entries of /proc and /sys, and what name resolution reads. Contents are made when they are read.

use core::fmt::{self, Write as _};

use super::{Object, paths};
use crate::host::{self, Text};
use crate::{state, time};

/// Largest content that is made.
pub const MAX_CONTENT_BYTES: usize = 16 << 10;

/// What is at a path.
#[derive(Clone, Copy)]
pub enum Entry {
    /// A device or stream.
    Device(Object),
    /// A file whose content is made by this function.
    Made(fn(&mut Content) -> fmt::Result),
    /// A symbolic link.
    Link(&'static str),
    /// A directory with nothing in it.
    Empty,
}

/// Where content is written to.
pub type Content = Text<MAX_CONTENT_BYTES>;

use Entry::{Device, Empty, Link, Made};

/// Everything there is, with its path, in order.
pub const ENTRIES: &[(&str, Entry)] = &[
    ("/dev/fd", Link("/proc/self/fd")),
    ("/dev/full", Device(Object::Null)),
    ("/dev/null", Device(Object::Null)),
    ("/dev/random", Device(Object::Random)),
    ("/dev/shm", Empty),
    ("/dev/stderr", Device(Object::Log)),
    ("/dev/stdin", Device(Object::Stdin)),
    ("/dev/stdout", Device(Object::Log)),
    ("/dev/urandom", Device(Object::Random)),
    ("/dev/zero", Device(Object::Zero)),
    (
        "/etc/group",
        Made(|to| to.write_str("root:x:0:\nnogroup:x:65534:\n")),
    ),
    ("/etc/hostname", Made(|to| to.write_str("holm\n"))),
    (
        "/etc/hosts",
        Made(|to| to.write_str("127.0.0.1 localhost holm\n::1 localhost holm\n")),
    ),
    (
        "/etc/nsswitch.conf",
        Made(|to| to.write_str("hosts: files dns\n")),
    ),
    (
        "/etc/passwd",
        Made(|to| {
            to.write_str("root:x:0:0:root:/:/bin/false\nnobody:x:65534:65534:nobody:/:/bin/false\n")
        }),
    ),
    (
        "/etc/resolv.conf",
        Made(|to| to.write_str("nameserver 127.0.0.53\n")),
    ),
    (
        "/etc/services",
        Made(|to| to.write_str("domain 53/tcp\ndomain 53/udp\nhttp 80/tcp\nhttps 443/tcp\n")),
    ),
    ("/proc/cpuinfo", Made(cpuinfo)),
    (
        "/proc/loadavg",
        Made(|to| to.write_str("0.00 0.00 0.00 1/1 1\n")),
    ),
    ("/proc/meminfo", Made(meminfo)),
    ("/proc/mounts", Made(mounts)),
    ("/proc/self/cgroup", Made(|to| to.write_str("0::/\n"))),
    ("/proc/self/cmdline", Made(|to| to.write_str("holm\0"))),
    ("/proc/self/comm", Made(|to| to.write_str("holm\n"))),
    ("/proc/self/fd", Empty),
    ("/proc/self/limits", Made(limits)),
    ("/proc/self/maps", Made(maps)),
    (
        "/proc/self/mountinfo",
        Made(|to| to.write_str("1 0 0:1 / / ro - holm holm ro\n")),
    ),
    ("/proc/self/mounts", Made(mounts)),
    ("/proc/self/stat", Made(self_stat)),
    ("/proc/self/statm", Made(statm)),
    ("/proc/self/status", Made(status)),
    ("/proc/self/task", Empty),
    (
        "/proc/stat",
        Made(|to| to.write_str("cpu  0 0 0 0 0 0 0 0 0 0\ncpu0 0 0 0 0 0 0 0 0 0 0\n")),
    ),
    (
        "/proc/sys/kernel/hostname",
        Made(|to| to.write_str("holm\n")),
    ),
    (
        "/proc/sys/kernel/osrelease",
        Made(|to| writeln!(to, "{}", crate::syscall::RELEASE)),
    ),
    (
        "/proc/sys/kernel/ostype",
        Made(|to| to.write_str("Linux\n")),
    ),
    (
        "/proc/sys/kernel/pid_max",
        Made(|to| to.write_str("32768\n")),
    ),
    ("/proc/sys/kernel/random/boot_id", Made(boot_id)),
    (
        "/proc/sys/net/core/somaxconn",
        Made(|to| to.write_str("4096\n")),
    ),
    (
        "/proc/sys/vm/max_map_count",
        Made(|to| to.write_str("4096\n")),
    ),
    (
        "/proc/sys/vm/overcommit_memory",
        Made(|to| to.write_str("0\n")),
    ),
    ("/proc/uptime", Made(uptime)),
    (
        "/proc/version",
        Made(|to| writeln!(to, "Linux version {} (holm)", crate::syscall::RELEASE)),
    ),
    (
        "/sys/devices/system/cpu/online",
        Made(|to| to.write_str("0\n")),
    ),
    (
        "/sys/devices/system/cpu/possible",
        Made(|to| to.write_str("0\n")),
    ),
    (
        "/sys/devices/system/cpu/present",
        Made(|to| to.write_str("0\n")),
    ),
    (
        "/sys/fs/cgroup/cgroup.controllers",
        Made(|to| to.write_str("cpu memory\n")),
    ),
    (
        "/sys/fs/cgroup/cpu.max",
        Made(|to| to.write_str("100000 100000\n")),
    ),
    ("/sys/fs/cgroup/memory.current", Made(memory_current)),
    ("/sys/fs/cgroup/memory.max", Made(memory_max)),
    (
        "/sys/kernel/mm/transparent_hugepage/enabled",
        Made(|to| to.write_str("always madvise [never]\n")),
    ),
    (
        "/sys/kernel/mm/transparent_hugepage/hpage_pmd_size",
        Made(|to| to.write_str("2097152\n")),
    ),
];

/// The number of the entry at a path.
pub fn find(path: &[u8]) -> Option<usize> {
    ENTRIES.iter().position(|(at, _)| at.as_bytes() == path)
}

/// Whether the path is a directory.
pub fn is_directory(path: &[u8]) -> bool {
    path == b"/"
        || ENTRIES.iter().any(|(at, entry)| {
            let at = at.as_bytes();
            paths::below(at, path).is_some() || (at == path && matches!(entry, Empty))
        })
}

/// The names in a directory, one for each entry below it: the same name may come again, in a row.
pub fn names(directory: &[u8]) -> impl Iterator<Item = &'static [u8]> {
    ENTRIES.iter().filter_map(move |(at, _)| {
        let below = paths::below(at.as_bytes(), directory)?;
        below.split(|byte| *byte == b'/').next()
    })
}

fn cpuinfo(to: &mut Content) -> fmt::Result {
    let leaf = core::arch::x86_64::__cpuid(0);
    write!(to, "processor\t: 0\nvendor_id\t: ")?;
    for register in [leaf.ebx, leaf.edx, leaf.ecx] {
        for byte in register.to_le_bytes() {
            to.write_char(char::from(byte))?;
        }
    }
    let leaf = core::arch::x86_64::__cpuid(1);
    let (stepping, model, family) = (leaf.eax & 15, leaf.eax >> 4 & 15, leaf.eax >> 8 & 15);
    writeln!(
        to,
        "\ncpu family\t: {family}\nmodel\t\t: {model}\nstepping\t: {stepping}\nsiblings\t: 1\n\
         cpu cores\t: 1\nflags\t\t: fpu tsc cx8 cmov mmx fxsr sse sse2 syscall nx lm constant_tsc\n"
    )
}

fn meminfo(to: &mut Content) -> fmt::Result {
    let (total, free) = (
        state::memory().total_bytes() / 1024,
        state::memory().free_bytes() / 1024,
    );
    writeln!(
        to,
        "MemTotal:       {total:8} kB\nMemFree:        {free:8} kB\nMemAvailable:   {free:8} kB\n\
         Buffers:               0 kB\nCached:                0 kB\nSwapTotal:             0 kB\n\
         SwapFree:              0 kB\nHugePages_Total:       0\nHugePages_Free:        0\n\
         Hugepagesize:       2048 kB"
    )
}

fn mounts(to: &mut Content) -> fmt::Result {
    to.write_str("holm / holm ro 0 0\ntmpfs /tmp tmpfs rw 0 0\ntmpfs /dev/shm tmpfs rw 0 0\nproc /proc proc ro 0 0\n")
}

fn limits(to: &mut Content) -> fmt::Result {
    writeln!(
        to,
        "Limit                     Soft Limit           Hard Limit           Units     \n\
         Max open files            {files:<20} {files:<20} files     \n\
         Max address space         unlimited            unlimited            bytes     ",
        files = super::MAX_DESCRIPTORS
    )
}

/// The first thread's stack, and what else there is.
fn maps(to: &mut Content) -> fmt::Result {
    let boot = host::boot();
    let end = boot.program_start + boot.memory_bytes;
    writeln!(
        to,
        "{:08x}-{:08x} r-xp 00000000 00:01 1 /proc/self/exe",
        boot.program_start, boot.brk_start
    )?;
    let mut result = Ok(());
    state::memory().for_each_mapping(|start, stop, protection| {
        let may = ["---", "r--", "rw-"][protection as usize];
        result = result.and(writeln!(
            to,
            "{start:08x}-{stop:08x} {may}p 00000000 00:00 0 "
        ));
    });
    result?;
    writeln!(
        to,
        "{:08x}-{end:08x} rw-p 00000000 00:00 0 [stack]",
        boot.stack_start
    )
}

fn used_pages() -> (u64, u64) {
    let memory = state::memory();
    let total = memory.total_bytes() / 4096;
    (total, total - memory.free_bytes() / 4096)
}

fn self_stat(to: &mut Content) -> fmt::Result {
    let (total, used) = used_pages();
    let threads = state::threads().count();
    writeln!(
        to,
        "1 (holm) R 0 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 {threads} 0 0 {} {used} 18446744073709551615 0 0 0 0 \
         0 0 0 0 0 0 0 0 17 0 0 0 0 0 0 0 0 0 0 0 0 0 0",
        total * 4096
    )
}

fn statm(to: &mut Content) -> fmt::Result {
    let (total, used) = used_pages();
    writeln!(to, "{total} {used} 0 0 0 {used} 0")
}

fn status(to: &mut Content) -> fmt::Result {
    let (total, used) = used_pages();
    writeln!(
        to,
        "Name:\tholm\nState:\tR (running)\nTgid:\t1\nPid:\t1\nPPid:\t0\nUid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\n\
         VmPeak:\t{:8} kB\nVmSize:\t{:8} kB\nVmRSS:\t{:8} kB\nThreads:\t{}\nCpus_allowed:\t1\n\
         Cpus_allowed_list:\t0",
        total * 4,
        total * 4,
        used * 4,
        state::threads().count()
    )
}

/// New after every restore, as after every boot.
fn boot_id(to: &mut Content) -> fmt::Result {
    // Steele, Lea and Flood: Fast splittable pseudorandom number generators (2014), the finalizer.
    let mix = |mut word: u64| {
        word = (word ^ word >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ word >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        word ^ word >> 31
    };
    let (high, low) = (mix(host::generation()), mix(!host::generation()));
    writeln!(
        to,
        "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
        high as u32,
        (high >> 32) as u16,
        (high >> 48) as u16 & 0xfff,
        low as u16 & 0x3fff | 0x8000,
        low >> 16
    )
}

fn uptime(to: &mut Content) -> fmt::Result {
    let cs = time::monotonic_ns() / 10_000_000;
    writeln!(to, "{0}.{1:02} {0}.{1:02}", cs / 100, cs % 100)
}

fn memory_current(to: &mut Content) -> fmt::Result {
    let memory = state::memory();
    writeln!(to, "{}", memory.total_bytes() - memory.free_bytes())
}

fn memory_max(to: &mut Content) -> fmt::Result {
    writeln!(to, "{}", state::memory().total_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_entries_are_in_order_so_that_a_directory_is_listed_without_repeats() {
        assert!(ENTRIES.is_sorted_by_key(|(at, _)| *at));
        assert!(is_directory(b"/proc/self") && is_directory(b"/proc/self/fd"));
        assert!(!is_directory(b"/proc/self/maps") && !is_directory(b"/proc/sel"));
    }
}
