//! What the kernel says of memory.

use std::fs;

use anyhow::{Context as _, Result};

/// A process's own memory, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Own {
    /// Pages that no other process maps.
    pub(crate) private: u64,
    /// The same and its share of all others.
    pub(crate) proportional: u64,
}

impl Own {
    /// Of a process.
    pub(crate) fn of(process: u32) -> Result<Self> {
        let path = format!("/proc/{process}/smaps_rollup");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        Ok(Own {
            private: sum(&text, &["Private_Clean:", "Private_Dirty:"]),
            proportional: sum(&text, &["Pss:"]),
        })
    }
}

/// Bytes that the kernel itself uses: of this process's control group if it counts them, else of the machine,
/// as far as /proc/meminfo has them. What others do at the same time is in it.
pub(crate) fn kernel_bytes() -> Result<u64> {
    if let Some(bytes) = group_v1().or_else(group_v2) {
        return Ok(bytes);
    }
    let text = fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    let parts = [
        "SUnreclaim:",
        "KernelStack:",
        "PageTables:",
        "SecPageTables:",
        "VmallocUsed:",
        "Percpu:",
    ];
    Ok(sum(&text, &parts))
}

fn group_v1() -> Option<u64> {
    let path = group(|controllers| controllers.split(',').any(|one| one == "memory"))?;
    let file = format!("/sys/fs/cgroup/memory{path}/memory.kmem.usage_in_bytes");
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

fn group_v2() -> Option<u64> {
    let path = group(str::is_empty)?;
    let text = fs::read_to_string(format!("/sys/fs/cgroup{path}/memory.stat")).ok()?;
    let mut lines = text.lines();
    lines
        .find_map(|line| line.strip_prefix("kernel "))?
        .parse()
        .ok()
}

/// The path of this process's control group in the hierarchy of these controllers.
fn group(wanted: impl Fn(&str) -> bool) -> Option<String> {
    let text = fs::read_to_string("/proc/self/cgroup").ok()?;
    text.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        wanted(controllers).then(|| path.to_owned())
    })
}

/// Adds up the lines with these names, which are in kB.
fn sum(text: &str, names: &[&str]) -> u64 {
    let kibibytes = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let name = words.next()?;
        names.contains(&name).then_some(())?;
        words.next()?.parse::<u64>().ok()
    });
    kibibytes.sum::<u64>() * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn touched_memory_is_private_memory() {
        let own = || Own::of(std::process::id()).unwrap();
        let before = own();
        let touched = vec![1u8; 64 << 20];
        let after = own();
        assert!(touched.iter().all(|byte| *byte == 1));
        assert!(
            after.private >= before.private + (63 << 20),
            "{before:?} {after:?}"
        );
        assert!(kernel_bytes().unwrap() > 0);
    }

    #[test]
    fn only_lines_of_that_name_are_added_up() {
        let text = "Slab: 1 kB\nPrivate_Clean:   3 kB\nPrivate_Dirty:  4 kB\nPss_Dirty: 100 kB\n";
        assert_eq!(sum(text, &["Private_Clean:", "Private_Dirty:"]), 7 * 1024);
    }
}
