//! /dev/kvm: opened, checked, and asked once for what every VM needs to know.

use std::io;
use std::sync::{Arc, OnceLock};

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Cap, Kvm};

use crate::{Cost, VmmError, cpuid, machine};

/// Which machinery is behind /dev/kvm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvmKind {
    /// Page-table virtual machine: no hardware virtualisation; CPL 0 code is emulated.
    Pvm,
    /// AMD SVM.
    Svm,
    /// Intel VT-x.
    Vmx,
    /// None of these can be told.
    Unknown,
}

impl KvmKind {
    /// Its name: `pvm`, `svm`, `vmx` or `unknown`.
    pub fn as_str(self) -> &'static str {
        match self {
            KvmKind::Pvm => "pvm",
            KvmKind::Svm => "svm",
            KvmKind::Vmx => "vmx",
            KvmKind::Unknown => "unknown",
        }
    }

    /// By the module that is loaded, else by the CPU's flags.
    fn detect() -> Self {
        let loaded = |module: &str| std::path::Path::new("/sys/module").join(module).exists();
        let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let flag = |name: &str| {
            let line = flags.lines().find(|line| line.starts_with("flags"));
            line.is_some_and(|line| line.split_ascii_whitespace().any(|flag| flag == name))
        };
        match () {
            _ if loaded("kvm_pvm") => KvmKind::Pvm,
            _ if loaded("kvm_amd") && flag("svm") => KvmKind::Svm,
            _ if loaded("kvm_intel") && flag("vmx") => KvmKind::Vmx,
            _ if flag("svm") => KvmKind::Svm,
            _ if flag("vmx") => KvmKind::Vmx,
            // KVM works without either flag: nothing but PVM does that.
            _ => KvmKind::Pvm,
        }
    }
}

/// /dev/kvm, opened and checked. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Hypervisor {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) kvm: Kvm,
    pub(crate) kind: KvmKind,
    /// What vCPUs are given for CPUID, and what they answer.
    pub(crate) cpuid: CpuId,
    pub(crate) answers: CpuId,
    /// The extended state that guests may use.
    pub(crate) xcr0: u64,
    /// SHA-256 over those answers and XCR0: a snapshot fits only where this is the same.
    pub(crate) cpu_digest: [u8; 32],
    /// What it costs to restore the built-in sample by one strategy and another, once that was measured.
    pub(crate) sample_costs: OnceLock<Vec<Cost>>,
}

/// x87, SSE, AVX and AVX-512: what guests may use of the extended state.
const XCR0_WANTED: u64 = 0b1110_0111;

impl Hypervisor {
    /// Opens /dev/kvm. The error tells what is wrong with this machine's KVM and what to do about it.
    pub fn open() -> Result<Self, VmmError> {
        let kvm = Kvm::new().map_err(|error| no_kvm(error.errno()))?;
        let version = kvm.get_api_version();
        if version != 12 {
            return Err(VmmError::NoKvm {
                problem: format!("/dev/kvm speaks API version {version}, Holm needs 12"),
                remedy: "update the kernel".into(),
            });
        }
        for (capability, name) in [
            (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
            (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
            (Cap::SyncRegs, "KVM_CAP_SYNC_REGS"),
            (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
            (Cap::Xsave, "KVM_CAP_XSAVE"),
            (Cap::Xcrs, "KVM_CAP_XCRS"),
        ] {
            if !kvm.check_extension(capability) {
                return Err(VmmError::NoKvm {
                    problem: format!("this machine's KVM lacks {name}"),
                    remedy: "use a kernel of 5.10 or newer".into(),
                });
            }
        }
        let mut cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(VmmError::kvm("tell its supported CPUID"))?;
        cpuid::make_own(&mut cpuid);
        let xcr0 = cpuid::supported_xcr0(&cpuid) & XCR0_WANTED;
        let answers = machine::cpuid_answers(&kvm, &cpuid, xcr0)?;
        let cpu_digest = cpuid::digest(&answers, xcr0);
        let kind = KvmKind::detect();
        Ok(Hypervisor {
            inner: Arc::new(Inner {
                kvm,
                kind,
                cpuid,
                answers,
                xcr0,
                cpu_digest,
                sample_costs: OnceLock::new(),
            }),
        })
    }

    /// Which machinery is behind /dev/kvm.
    pub fn kind(&self) -> KvmKind {
        self.inner.kind
    }
}

fn no_kvm(errno: i32) -> VmmError {
    let (problem, remedy) = match errno {
        libc::ENOENT => (
            "/dev/kvm does not exist",
            "load the module (modprobe kvm_amd, kvm_intel or kvm_pvm), switch virtualisation on in \
             the firmware, or choose a machine type with nested virtualisation",
        ),
        libc::EACCES | libc::EPERM => (
            "/dev/kvm may not be opened by this user",
            "add the user to the group that owns it (usermod -aG kvm USER) and log in again",
        ),
        libc::ENODEV | libc::ENXIO => (
            "/dev/kvm is there but no virtualisation behind it",
            "switch virtualisation on in the firmware",
        ),
        _ => {
            return VmmError::NoKvm {
                problem: format!(
                    "/dev/kvm cannot be opened: {}",
                    io::Error::from_raw_os_error(errno)
                ),
                remedy: "run `holm doctor`".into(),
            };
        }
    };
    VmmError::NoKvm {
        problem: problem.into(),
        remedy: remedy.into(),
    }
}
