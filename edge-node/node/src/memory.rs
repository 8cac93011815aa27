//! What memory there is for the node: the machine's, or what its control group leaves it of that.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use crate::limits::{
    BYTES_PER_SLOT, LOW_MEMORY_SHARE, MAX_DEFAULT_SLOTS_PER_THREAD, MEMORY_LOOK,
    MIN_DEFAULT_SLOTS_PER_THREAD,
};
use crate::tally::Tally;

/// Bytes of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Memory {
    pub(crate) all: u64,
    /// What could be had without swapping: what is free, and the page cache's.
    pub(crate) available: u64,
}

impl Memory {
    /// As the kernel says it now; nothing if it does not.
    pub(crate) fn now() -> Option<Self> {
        let mut memory = of_machine(&fs::read_to_string("/proc/meminfo").ok()?)?;
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let root = Path::new("/sys/fs/cgroup");
        // Each group above is a bound as well.
        for group in Path::new(own_group(&groups)).ancestors() {
            let read = |name: &str| fs::read_to_string(root.join(group).join(name)).ok();
            if let (Some(most), Some(used), Some(stat)) = (
                read("memory.max"),
                read("memory.current"),
                read("memory.stat"),
            ) {
                memory = memory.within(&most, &used, &stat);
            }
        }
        Some(memory)
    }

    /// The same in a control group of version 2, whose files these are.
    fn within(self, most: &str, used: &str, stat: &str) -> Self {
        // "max" is no bound.
        let (Ok(most), Ok(used)) = (most.trim().parse::<u64>(), used.trim().parse::<u64>()) else {
            return self;
        };
        let cached = ["inactive_file", "active_file", "slab_reclaimable"];
        let cached: u64 = cached.iter().filter_map(|name| value(stat, name)).sum();
        let available = most.saturating_sub(used.saturating_sub(cached));
        Memory {
            all: self.all.min(most),
            available: self.available.min(available),
        }
    }

    /// Whether so little is left that instances which nobody may need are better given back. Once it `was_short` it is
    /// until there is twice as much, or what was given back would be filled again at once.
    fn is_short(self, was_short: bool) -> bool {
        let least = self.all / LOW_MEMORY_SHARE;
        self.available < if was_short { 2 * least } else { least }
    }

    /// How many slots each of so many threads makes ahead, if the operator does not say.
    pub(crate) fn slots(self, threads: usize) -> usize {
        let all = usize::try_from(self.all / BYTES_PER_SLOT).unwrap_or(usize::MAX);
        (all / threads.max(1)).clamp(MIN_DEFAULT_SLOTS_PER_THREAD, MAX_DEFAULT_SLOTS_PER_THREAD)
    }
}

/// Tells the ingress threads, now and then, whether memory is short.
pub(crate) async fn follow(tally: Arc<Tally>) {
    let mut look = tokio::time::interval(MEMORY_LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut short = false;
    loop {
        look.tick().await;
        // Files of the kernel's, which are read from no disk.
        short = Memory::now().is_some_and(|memory| memory.is_short(short));
        if short != tally.set_memory_short(short) {
            match short {
                true => tracing::warn!(
                    "memory runs short: instances that nobody uses are given back, but for `[scale] min`"
                ),
                false => tracing::info!("there is memory again"),
            }
        }
    }
}

fn of_machine(meminfo: &str) -> Option<Memory> {
    let bytes = |name| Some(value(meminfo, name)? * 1024);
    Some(Memory {
        all: bytes("MemTotal:")?,
        available: bytes("MemAvailable:")?,
    })
}

/// The number behind a name.
fn value(text: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines();
    lines.find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some(name)).then(|| words.next()?.parse().ok())?
    })
}

/// The path of the process's group of version 2, below the root of all.
fn own_group(groups: &str) -> &str {
    let mut lines = groups.lines();
    let own = lines.find_map(|line| line.strip_prefix("0::/"));
    own.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &str =
        "MemTotal:        8388608 kB\nMemFree:  1 kB\nMemAvailable:    4194304 kB\n";
    const GIB: u64 = 1 << 30;

    #[test]
    fn a_control_group_bounds_what_the_machine_has() {
        let machine = of_machine(MEMINFO).unwrap();
        assert_eq!((machine.all, machine.available), (8 * GIB, 4 * GIB));
        assert_eq!(machine.within("max\n", "5\n", ""), machine);
        let (most, used) = (2 * GIB, 3 * GIB / 2);
        let half = GIB / 2;
        let stat = format!("anon 5\nfile 9\ninactive_file {half}\nactive_file {half}\n");
        let inside = machine.within(&format!("{most}\n"), &format!("{used}\n"), &stat);
        assert_eq!((inside.all, inside.available), (2 * GIB, 3 * GIB / 2));
        assert_eq!(
            own_group("1:name=x:/y\n0::/system.slice/holm.service\n"),
            "system.slice/holm.service"
        );
        assert_eq!(of_machine("nothing"), None);
        assert!(Memory::now().is_some_and(|memory| memory.available <= memory.all));
    }

    #[test]
    fn slots_are_as_many_as_memory_is_for_within_bounds() {
        let slots = |all, threads| {
            Memory {
                all,
                available: all,
            }
            .slots(threads)
        };
        assert_eq!(slots(1 << 20, 2), MIN_DEFAULT_SLOTS_PER_THREAD);
        assert_eq!(slots(12 * BYTES_PER_SLOT, 2), 6);
        assert_eq!(slots(1 << 50, 2), MAX_DEFAULT_SLOTS_PER_THREAD);
        assert!(slots(0, 0) > 0);
    }

    #[test]
    fn memory_is_short_when_a_share_of_it_is_left() {
        let short = |available, was_short| {
            let all = 16 * GIB;
            Memory { all, available }.is_short(was_short)
        };
        assert!(short(GIB / 2, false) && !short(3 * GIB / 2, false));
        assert!(short(3 * GIB / 2, true) && !short(4 * GIB, true));
    }
}
