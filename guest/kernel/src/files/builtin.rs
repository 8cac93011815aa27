//! The few files outside of /tmp and the artifact that programs and their runtimes look for: devices,
//! entries of /proc and /sys, and what name resolution reads. Contents are made when they are read.

use core::fmt::{self, Write as _};

use super::{Object, paths};
use crate::sockets::interfaces;

mod machine;
pub mod own;

/// Most bytes of a content that are made at once.
pub const MAX_CONTENT_BYTES: usize = 16 << 10;

/// What is at a path.
#[derive(Clone, Copy)]
pub enum Entry {
    /// A device or stream.
    Device(Object),
    /// A file whose content is made by this function.
    Made(fn(&mut Content) -> fmt::Result),
    /// A file whose content is always this.
    Text(&'static str),
    /// A symbolic link.
    Link(&'static str),
    /// A directory with nothing in it.
    Empty,
}

/// Where content is written to: a part of it, as it may be of any length.
pub struct Content {
    /// The part.
    pub bytes: [u8; MAX_CONTENT_BYTES],
    /// Bytes of it so far.
    pub used: usize,
    /// Bytes that are still to come before it.
    before: u64,
}

impl Content {
    /// Nothing.
    pub const fn new() -> Self {
        Content {
            bytes: [0; MAX_CONTENT_BYTES],
            used: 0,
            before: 0,
        }
    }

    /// What is written from now on is the content from its start; what is before `from` is left out.
    pub fn begin(&mut self, from: u64) {
        (self.used, self.before) = (0, from);
    }

    /// Puts bytes of whatever kind at the end, as far as there is room.
    fn push(&mut self, bytes: &[u8]) {
        let passed = self.before.min(bytes.len() as u64);
        self.before -= passed;
        let bytes = &bytes[passed as usize..];
        let room = &mut self.bytes[self.used..];
        let fits = bytes.len().min(room.len());
        room[..fits].copy_from_slice(&bytes[..fits]);
        self.used += fits;
    }
}

impl Default for Content {
    fn default() -> Self {
        Content::new()
    }
}

impl fmt::Write for Content {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.push(text.as_bytes());
        Ok(())
    }
}

use Entry::{Device, Empty, Link, Made, Text};

/// Everything there is, with its path, in order.
pub const ENTRIES: &[(&str, Entry)] = &[
    ("/dev/fd", Link("/proc/self/fd")),
    ("/dev/full", Device(Object::Full)),
    ("/dev/null", Device(Object::Null)),
    ("/dev/random", Device(Object::Random)),
    ("/dev/stderr", Device(Object::Log)),
    ("/dev/stdin", Device(Object::Stdin)),
    ("/dev/stdout", Device(Object::Log)),
    ("/dev/urandom", Device(Object::Random)),
    ("/dev/zero", Device(Object::Zero)),
    ("/etc/group", Text("root:x:0:\nnogroup:x:65534:\n")),
    ("/etc/hostname", Text("holm\n")),
    (
        "/etc/hosts",
        Text("127.0.0.1 localhost holm\n::1 localhost holm\n"),
    ),
    ("/etc/nsswitch.conf", Text("hosts: files dns\n")),
    (
        "/etc/os-release",
        Text("NAME=\"Holm\"\nPRETTY_NAME=\"Holm\"\nID=holm\n"),
    ),
    (
        "/etc/passwd",
        Text("root:x:0:0:root:/:/bin/false\nnobody:x:65534:65534:nobody:/:/bin/false\n"),
    ),
    (
        "/etc/protocols",
        Text("ip 0 IP\nicmp 1 ICMP\ntcp 6 TCP\nudp 17 UDP\nipv6-icmp 58 IPv6-ICMP\n"),
    ),
    ("/etc/resolv.conf", Text("nameserver 127.0.0.53\n")),
    (
        "/etc/services",
        Text("domain 53/tcp\ndomain 53/udp\nhttp 80/tcp\nhttps 443/tcp\n"),
    ),
    ("/proc/1/auxv", Made(own::auxiliary_vector)),
    ("/proc/1/cgroup", Text("0::/\n")),
    ("/proc/1/cmdline", Made(own::arguments)),
    ("/proc/1/comm", Made(own::first_name)),
    ("/proc/1/environ", Made(own::environment)),
    ("/proc/1/fd", Empty),
    ("/proc/1/fdinfo", Empty),
    (
        "/proc/1/io",
        Text(
            "rchar: 0\nwchar: 0\nsyscr: 0\nsyscw: 0\nread_bytes: 0\nwrite_bytes: 0\n\
             cancelled_write_bytes: 0\n",
        ),
    ),
    ("/proc/1/limits", Made(own::limits)),
    ("/proc/1/maps", Made(own::maps)),
    ("/proc/1/mountinfo", Text(MOUNT_INFO)),
    ("/proc/1/mounts", Text(MOUNTS)),
    ("/proc/1/net/dev", Made(interfaces::counts)),
    ("/proc/1/oom_score", Text("0\n")),
    ("/proc/1/oom_score_adj", Text("0\n")),
    ("/proc/1/root", Link("/")),
    ("/proc/1/smaps", Made(own::detailed_maps)),
    ("/proc/1/stat", Made(own::stat)),
    ("/proc/1/statm", Made(own::pages)),
    ("/proc/1/status", Made(own::status)),
    ("/proc/1/task", Empty),
    (
        "/proc/cgroups",
        Text("#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t0\t1\t1\nmemory\t0\t1\t1\n"),
    ),
    ("/proc/cmdline", Text("\n")),
    ("/proc/cpuinfo", Made(machine::cpuinfo)),
    (
        "/proc/filesystems",
        Text("nodev\tproc\nnodev\tsysfs\nnodev\ttmpfs\nnodev\tcgroup2\n"),
    ),
    ("/proc/loadavg", Made(machine::load)),
    ("/proc/meminfo", Made(machine::meminfo)),
    ("/proc/mounts", Link("self/mounts")),
    ("/proc/net", Link("self/net")),
    // As on Linux it leads to the number of the process, by which some find it out.
    ("/proc/self", Link("1")),
    ("/proc/stat", Made(machine::stat)),
    (
        "/proc/swaps",
        Text("Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"),
    ),
    ("/proc/sys/fs/file-max", Text("1024\n")),
    ("/proc/sys/fs/nr_open", Text("1024\n")),
    ("/proc/sys/fs/pipe-max-size", Text("1048576\n")),
    ("/proc/sys/kernel/cap_last_cap", Text("40\n")),
    ("/proc/sys/kernel/hostname", Text("holm\n")),
    ("/proc/sys/kernel/ngroups_max", Text("65536\n")),
    (
        "/proc/sys/kernel/osrelease",
        Made(|to| writeln!(to, "{}", crate::process::RELEASE)),
    ),
    ("/proc/sys/kernel/ostype", Text("Linux\n")),
    ("/proc/sys/kernel/perf_event_paranoid", Text("4\n")),
    ("/proc/sys/kernel/pid_max", Text("32768\n")),
    ("/proc/sys/kernel/random/boot_id", Made(machine::boot_id)),
    ("/proc/sys/kernel/random/entropy_avail", Text("256\n")),
    ("/proc/sys/kernel/random/uuid", Made(machine::uuid)),
    ("/proc/sys/kernel/randomize_va_space", Text("0\n")),
    ("/proc/sys/kernel/seccomp/actions_avail", Text("\n")),
    ("/proc/sys/kernel/threads-max", Text("256\n")),
    ("/proc/sys/kernel/version", Text("#1 Holm\n")),
    ("/proc/sys/net/core/rmem_max", Text("212992\n")),
    ("/proc/sys/net/core/somaxconn", Text("4096\n")),
    ("/proc/sys/net/core/wmem_max", Text("212992\n")),
    (
        "/proc/sys/net/ipv4/ip_local_port_range",
        Text("32768\t60999\n"),
    ),
    ("/proc/sys/vm/max_map_count", Text("4096\n")),
    ("/proc/sys/vm/mmap_min_addr", Text("65536\n")),
    ("/proc/sys/vm/overcommit_memory", Text("0\n")),
    ("/proc/sys/vm/overcommit_ratio", Text("50\n")),
    ("/proc/thread-self", Link("1")),
    ("/proc/uptime", Made(machine::uptime)),
    (
        "/proc/version",
        Made(|to| writeln!(to, "Linux version {} (holm)", crate::process::RELEASE)),
    ),
    ("/sys/devices/system/cpu/cpu0/topology/core_id", Text("0\n")),
    (
        "/sys/devices/system/cpu/cpu0/topology/physical_package_id",
        Text("0\n"),
    ),
    (
        "/sys/devices/system/cpu/cpu0/topology/thread_siblings_list",
        Text("0\n"),
    ),
    ("/sys/devices/system/cpu/online", Text("0\n")),
    ("/sys/devices/system/cpu/possible", Text("0\n")),
    ("/sys/devices/system/cpu/present", Text("0\n")),
    ("/sys/devices/system/node/node0/cpulist", Text("0\n")),
    ("/sys/devices/system/node/online", Text("0\n")),
    ("/sys/devices/system/node/possible", Text("0\n")),
    ("/sys/fs/cgroup/cgroup.controllers", Text("cpu memory\n")),
    ("/sys/fs/cgroup/cpu.max", Text("100000 100000\n")),
    ("/sys/fs/cgroup/cpu.stat", Made(machine::cpu_stat)),
    ("/sys/fs/cgroup/cpu.weight", Text("100\n")),
    ("/sys/fs/cgroup/cpuset.cpus.effective", Text("0\n")),
    (
        "/sys/fs/cgroup/memory.current",
        Made(machine::memory_current),
    ),
    ("/sys/fs/cgroup/memory.high", Text("max\n")),
    ("/sys/fs/cgroup/memory.max", Made(machine::memory_max)),
    ("/sys/fs/cgroup/memory.peak", Made(machine::memory_current)),
    ("/sys/fs/cgroup/memory.stat", Made(machine::memory_stat)),
    ("/sys/fs/cgroup/memory.swap.current", Text("0\n")),
    ("/sys/fs/cgroup/memory.swap.max", Text("0\n")),
    ("/sys/fs/cgroup/pids.current", Text("1\n")),
    ("/sys/fs/cgroup/pids.max", Text("256\n")),
    (
        "/sys/kernel/mm/transparent_hugepage/defrag",
        Text("always defer defer+madvise madvise [never]\n"),
    ),
    (
        "/sys/kernel/mm/transparent_hugepage/enabled",
        Text("always madvise [never]\n"),
    ),
    (
        "/sys/kernel/mm/transparent_hugepage/hpage_pmd_size",
        Text("2097152\n"),
    ),
    (
        "/sys/kernel/mm/transparent_hugepage/shmem_enabled",
        Text("always within_size advise [never] deny force\n"),
    ),
];

const MOUNTS: &str = "holm / tmpfs rw 0 0\nproc /proc proc ro 0 0\nsysfs /sys sysfs ro 0 0\n\
                      cgroup2 /sys/fs/cgroup cgroup2 ro 0 0\ntmpfs /tmp tmpfs rw 0 0\n\
                      tmpfs /dev/shm tmpfs rw 0 0\n";
const MOUNT_INFO: &str = "1 0 0:1 / / rw - tmpfs holm rw\n2 1 0:2 / /proc ro - proc proc ro\n\
                          3 1 0:3 / /sys ro - sysfs sysfs ro\n4 3 0:4 / /sys/fs/cgroup ro - cgroup2 cgroup2 ro\n\
                          5 1 0:5 / /tmp rw - tmpfs tmpfs rw\n6 1 0:6 / /dev/shm rw - tmpfs tmpfs rw\n";

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_entries_are_in_order_so_that_a_directory_is_listed_without_repeats() {
        assert!(ENTRIES.is_sorted_by_key(|(at, _)| *at));
        assert!(is_directory(b"/proc/1") && is_directory(b"/proc/1/fd"));
        assert!(ENTRIES.len() < 256, "numbers of them are bytes");
        assert!(!is_directory(b"/proc/1/maps") && !is_directory(b"/proc/self"));
    }
}
