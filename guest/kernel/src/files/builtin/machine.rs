//! What /proc and /sys tell of the machine.

use core::fmt::{self, Write as _};

use super::Content;
use crate::{host, state, time};

pub(super) fn cpuinfo(to: &mut Content) -> fmt::Result {
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

pub(super) fn meminfo(to: &mut Content) -> fmt::Result {
    let (total, free) = (
        state::memory().total_bytes() / 1024,
        state::memory().free_bytes() / 1024,
    );
    let used = total - free;
    writeln!(
        to,
        "MemTotal:       {total:8} kB\nMemFree:        {free:8} kB\nMemAvailable:   {free:8} kB\n\
         Buffers:               0 kB\nCached:                0 kB\nSwapCached:            0 kB\n\
         Active:         {used:8} kB\nInactive:              0 kB\nSwapTotal:             0 kB\n\
         SwapFree:              0 kB\nDirty:                 0 kB\nWriteback:             0 kB\n\
         AnonPages:      {used:8} kB\nMapped:                0 kB\nShmem:                 0 kB\n\
         Slab:                  0 kB\nCommitted_AS:   {used:8} kB\nVmallocTotal:          0 kB\n\
         VmallocUsed:           0 kB\nVmallocChunk:          0 kB\nHugePages_Total:       0\nHugePages_Free:        0\n\
         Hugepagesize:       2048 kB"
    )
}

/// New after every restore, as after every boot.
pub(super) fn boot_id(to: &mut Content) -> fmt::Result {
    // Steele, Lea and Flood: Fast splittable pseudorandom number generators (2014), the finalizer.
    let mix = |mut word: u64| {
        word = (word ^ word >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ word >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        word ^ word >> 31
    };
    let (high, low) = (mix(host::generation()), mix(!host::generation()));
    write_uuid(to, high, low)
}

/// One that is new at every read.
pub(super) fn uuid(to: &mut Content) -> fmt::Result {
    let mut bytes = [[0; 8]; 2];
    state::random().fill(bytes.as_flattened_mut());
    let [high, low] = bytes.map(u64::from_le_bytes);
    write_uuid(to, high, low)
}

fn write_uuid(to: &mut Content, high: u64, low: u64) -> fmt::Result {
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

pub(super) fn uptime(to: &mut Content) -> fmt::Result {
    let cs = time::monotonic_ns() / 10_000_000;
    writeln!(to, "{0}.{1:02} {0}.{1:02}", cs / 100, cs % 100)
}

pub(super) fn memory_current(to: &mut Content) -> fmt::Result {
    let memory = state::memory();
    writeln!(to, "{}", memory.total_bytes() - memory.free_bytes())
}

pub(super) fn memory_max(to: &mut Content) -> fmt::Result {
    writeln!(to, "{}", state::memory().total_bytes())
}

/// The time the CPU was used for, and the time it was not, in hundredths of a second.
pub(super) fn stat(to: &mut Content) -> fmt::Result {
    let (used, all) = (
        time::used_ns() / 10_000_000,
        time::monotonic_ns() / 10_000_000,
    );
    let idle = all.saturating_sub(used);
    let boot = time::realtime_ns().saturating_sub(time::monotonic_ns()) / 1_000_000_000;
    writeln!(
        to,
        "cpu  {used} 0 0 {idle} 0 0 0 0 0 0\ncpu0 {used} 0 0 {idle} 0 0 0 0 0 0\nintr 0\nctxt 0\nbtime {boot}\n\
         processes 1\nprocs_running 1\nprocs_blocked 0\nsoftirq 0 0 0 0 0 0 0 0 0 0 0"
    )
}

pub(super) fn load(to: &mut Content) -> fmt::Result {
    writeln!(to, "0.00 0.00 0.00 1/{} 1", state::threads().count())
}

/// As cgroups of version 2 say what the CPU was used for, in microseconds.
pub(super) fn cpu_stat(to: &mut Content) -> fmt::Result {
    let used = time::used_ns() / 1000;
    writeln!(
        to,
        "usage_usec {used}\nuser_usec {used}\nsystem_usec 0\nnr_periods 0\nnr_throttled 0\nthrottled_usec 0"
    )
}

/// What the memory is used for: all of it is the program's own.
pub(super) fn memory_stat(to: &mut Content) -> fmt::Result {
    let memory = state::memory();
    let used = memory.total_bytes() - memory.free_bytes();
    writeln!(
        to,
        "anon {used}\nfile 0\nkernel 0\nshmem 0\nfile_mapped 0\ninactive_anon 0\nactive_anon {used}\n\
         inactive_file 0\nactive_file 0\npgfault 0\npgmajfault 0"
    )
}
