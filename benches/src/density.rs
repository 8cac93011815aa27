//! What an instance takes while it waits for its next request. In a process of its own, so that nothing else
//! is counted.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use holm_vmm::{Hypervisor, Slot, Snapshot};
use serde::{Deserialize, Serialize};

use crate::memory::{Own, kernel_bytes};
use crate::sample::rounded;
use crate::subjects;

/// Instances that are there at a time.
pub(crate) const INSTANCES: usize = 1000;

/// Kibibytes for each of [`INSTANCES`].
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Density {
    /// Of an instance that has served a request and was reset: pages of the process that are its own, without
    /// what the VM itself takes there.
    pub(crate) private_kib_per_instance: f64,
    /// The same with its share of what instances have in common.
    pub(crate) pss_kib_per_instance: f64,
    /// The kernel's, for it: page tables, those that KVM derives included.
    pub(crate) kernel_kib_per_instance: f64,
    /// Of the kernel, for a VM with a vCPU and no memory.
    pub(crate) kvm_kib_per_vm: f64,
    /// Of the process, for such a VM.
    pub(crate) private_kib_per_vm: f64,
}

/// Measures in a new process.
pub(crate) fn measure() -> Result<Density> {
    let own = std::env::current_exe().context("cannot tell where this program is")?;
    let output = Command::new(own)
        .args(["density", &INSTANCES.to_string()])
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start the process for the instances")?;
    ensure!(output.status.success(), "the instances could not be made");
    serde_json::from_slice(&output.stdout).context("no figures from the process of the instances")
}

/// What that process does.
pub(crate) fn alone(instances: usize) -> Result<Density> {
    let hypervisor = Hypervisor::open().context("this benchmark needs KVM")?;
    let snapshot = subjects::snapshot(&hypervisor, "hello")?;
    // From a file, as on a node that was started again.
    let directory = tempfile::tempdir().context("cannot make a directory")?;
    let path = directory.path().join("snapshot");
    snapshot.save(&path).context("cannot save the snapshot")?;
    let snapshot = Snapshot::load(&hypervisor, &path).context("cannot load from disk")?;
    subjects::choose(&hypervisor, &snapshot, instances)?;
    let own = || Own::of(std::process::id());

    // The first of a kind makes what all share.
    let mut slots = Vec::with_capacity(instances + 1);
    slots.push(Slot::new(&hypervisor).context("cannot make a slot")?);
    serve(&mut slots[0], &snapshot)?;

    let (before, kernel_before) = (own()?, kernel_bytes()?);
    for _ in 0..instances {
        slots.push(Slot::new(&hypervisor).context("cannot make a slot")?);
    }
    let (empty, kernel_empty) = (own()?, kernel_bytes()?);
    for slot in &mut slots[1..] {
        serve(slot, &snapshot)?;
    }
    let (full, kernel_full) = (own()?, kernel_bytes()?);
    let each = |more: u64, less: u64| {
        rounded((more as f64 - less as f64) / 1024.0 / instances.max(1) as f64)
    };
    Ok(Density {
        private_kib_per_instance: each(full.private, empty.private),
        pss_kib_per_instance: each(full.proportional, empty.proportional),
        kernel_kib_per_instance: each(kernel_full, kernel_empty),
        kvm_kib_per_vm: each(kernel_empty, kernel_before),
        private_kib_per_vm: each(empty.private, before.private),
    })
}

fn serve(slot: &mut Slot, snapshot: &std::sync::Arc<Snapshot>) -> Result<()> {
    slot.load(snapshot).context("cannot load the snapshot")?;
    subjects::invoke(slot)?;
    slot.reset().context("cannot reset")
}
