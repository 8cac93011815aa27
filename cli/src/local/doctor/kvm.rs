//! The checks of KVM: from the device file to a real machine that answers a request.

use std::fs::{self, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::time::Instant;

use holm_vmm::{Failure, Hypervisor, KvmKind, Slot, sample};

use super::{Check, kernel_file};

const DEVICE: &str = "/dev/kvm";

/// Runs them in order; the first failure ends them, as the rest would only repeat it.
pub(super) fn checks() -> (Option<Hypervisor>, Vec<Check>) {
    let mut checks = Vec::new();
    if let Err(check) = device(&mut checks) {
        checks.push(check);
        return (None, checks);
    }
    let hypervisor = match Hypervisor::open() {
        Ok(hypervisor) => hypervisor,
        Err(error) => {
            let remedy = "use a newer kernel, or a machine whose KVM offers what is missing";
            checks.push(Check::fail("KVM", error.to_string(), remedy));
            return (None, checks);
        }
    };
    checks.push(Check::ok("KVM", describe(hypervisor.kind())));
    checks.push(real_machine(&hypervisor));
    (Some(hypervisor), checks)
}

fn describe(kind: KvmKind) -> &'static str {
    match kind {
        KvmKind::Pvm => "pvm: page-table virtual machines, without hardware behind them",
        KvmKind::Svm => "svm: AMD-V",
        KvmKind::Vmx => "vmx: Intel VT-x",
        KvmKind::Unknown => "of a kind that Holm does not know by name",
    }
}

/// Whether the device file is there and may be opened.
fn device(checks: &mut Vec<Check>) -> Result<(), Check> {
    match OpenOptions::new().read(true).write(true).open(DEVICE) {
        Ok(_) => {
            checks.push(Check::ok("device", format!("{DEVICE} can be opened")));
            Ok(())
        }
        Err(error) => Err(match error.kind() {
            ErrorKind::NotFound => missing(&kernel_file("/proc/cpuinfo").unwrap_or_default()),
            ErrorKind::PermissionDenied => forbidden(),
            _ => Check::fail(
                "device",
                format!("{DEVICE} cannot be opened: {error}"),
                "see `dmesg | grep -i kvm` for the kernel's reason; in a container, start it with \
                 --device /dev/kvm",
            ),
        }),
    }
}

/// There is no device file: what would make one depends on the CPU.
fn missing(cpuinfo: &str) -> Check {
    let has = |flag: &str| {
        cpuinfo
            .lines()
            .filter(|line| line.starts_with("flags"))
            .any(|line| line.split_whitespace().any(|word| word == flag))
    };
    let remedy = if has("vmx") {
        "load the module: `sudo modprobe kvm_intel`; in a container, start it with --device /dev/kvm"
    } else if has("svm") {
        "load the module: `sudo modprobe kvm_amd`; in a container, start it with --device /dev/kvm"
    } else {
        "turn virtualisation (VT-x, AMD-V) on in the firmware; in a cloud VM choose a type with \
         nested virtualisation or a kernel with kvm_pvm; in a container, start it with \
         --device /dev/kvm"
    };
    Check::fail("device", format!("{DEVICE} is not there"), remedy)
}

/// The device file belongs to a group that this user is not in.
fn forbidden() -> Check {
    let gid = fs::metadata(DEVICE).map(|metadata| metadata.gid()).ok();
    let groups = fs::read_to_string("/etc/group").unwrap_or_default();
    let group = gid
        .and_then(|gid| group_name(&groups, gid))
        .unwrap_or_else(|| "kvm".to_owned());
    Check::fail(
        "device",
        format!("{DEVICE} may not be opened by this user; it is for group `{group}`"),
        format!("join the group and log in again: `sudo usermod -aG {group} $USER`"),
    )
}

fn group_name(groups: &str, gid: u32) -> Option<String> {
    let entry = groups.lines().find(|line| {
        line.split(':')
            .nth(2)
            .and_then(|field| field.parse::<u32>().ok())
            == Some(gid)
    })?;
    entry.split(':').next().map(str::to_owned)
}

/// Boots the smallest function there is and sends it a request.
fn real_machine(hypervisor: &Hypervisor) -> Check {
    let name = "machine";
    let begun = Instant::now();
    match answer_once(hypervisor) {
        Ok(()) => Check::ok(
            name,
            format!("started and answered in {} ms", begun.elapsed().as_millis()),
        ),
        Err(error) => Check::fail(
            name,
            format!("a machine could not be run: {error}"),
            "see `dmesg | tail` for KVM's reason, and report it with `uname -a` if it is not clear",
        ),
    }
}

fn answer_once(hypervisor: &Hypervisor) -> Result<(), Failure> {
    let snapshot = sample::snapshot(hypervisor, sample::MEMORY_BYTES)?;
    let mut slot = Slot::new(hypervisor)?;
    slot.load(&snapshot)?;
    sample::send(&mut slot)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_device_is_explained_by_what_the_cpu_can_do() {
        let text = |flags: &str| missing(&format!("model : x\nflags\t\t: fpu {flags} sse\n"));
        assert!(text("vmx").remedy.unwrap().contains("kvm_intel"));
        assert!(text("svm").remedy.unwrap().contains("kvm_amd"));
        assert!(text("svmx").remedy.unwrap().contains("firmware"));
    }

    #[test]
    fn the_group_of_the_device_is_found_by_its_number() {
        let groups = "root:x:0:\nkvm:x:104:someone\n";
        assert_eq!(group_name(groups, 104).as_deref(), Some("kvm"));
        assert_eq!(group_name(groups, 10), None);
    }
}
