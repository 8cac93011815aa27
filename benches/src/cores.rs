//! Which cores run what. Waking a thread on another core costs several times what a request does here, so a
//! latency is always measured with caller and server on one core, and a throughput on all of them.

use std::fs;

use anyhow::{Context as _, Result};
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The cores that this process was given.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cores {
    all: CpuSet,
    last: usize,
}

impl Cores {
    /// As they are now.
    pub(crate) fn given() -> Result<Self> {
        let all = sched_getaffinity(None).context("cannot read the cores this may run on")?;
        let last = (0..CpuSet::MAX_CPU)
            .rev()
            .find(|&core| all.is_set(core))
            .context("there is no core this may run on")?;
        Ok(Cores { all, last })
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.all.count() as usize
    }

    /// Keeps this thread, what it starts from now on, and these processes with their children on one core.
    pub(crate) fn use_one(&self, processes: &[u32]) -> Result<()> {
        let mut one = CpuSet::new();
        one.set(self.last);
        place(&one, processes)
    }

    /// Lets them use all again.
    pub(crate) fn use_all(&self, processes: &[u32]) -> Result<()> {
        place(&self.all, processes)
    }
}

fn place(set: &CpuSet, processes: &[u32]) -> Result<()> {
    sched_setaffinity(None, set).context("cannot choose the cores of this thread")?;
    for process in processes {
        for task in tasks(*process) {
            // One that has ended meanwhile needs no core.
            let _ = sched_setaffinity(Pid::from_raw(task), set);
        }
    }
    Ok(())
}

/// Every thread of a process and of its descendants.
fn tasks(process: u32) -> Vec<i32> {
    let (mut found, mut left) = (Vec::new(), vec![process]);
    while let Some(process) = left.pop() {
        let directory = format!("/proc/{process}/task");
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let children = fs::read_to_string(entry.path().join("children")).unwrap_or_default();
            left.extend(
                children
                    .split_whitespace()
                    .filter_map(|child| child.parse::<u32>().ok()),
            );
            found.extend(
                entry
                    .file_name()
                    .to_str()
                    .and_then(|name| name.parse::<i32>().ok()),
            );
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn a_server_and_its_children_are_found_with_all_their_threads() {
        let mut shell = Command::new("sh")
            .args(["-c", "sleep 30 & wait"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        let mut found = tasks(shell.id());
        while found.len() < 2 && std::time::Instant::now() < deadline {
            found = tasks(shell.id());
        }
        assert_eq!(found.len(), 2, "the shell and what it started");
        for task in found {
            let _ = Command::new("kill").arg(task.to_string()).status();
        }
        shell.wait().unwrap();
    }
}
