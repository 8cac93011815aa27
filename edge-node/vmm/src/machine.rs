//! A VM with one vCPU and one memory slot, as KVM has it.

use std::time::Duration;

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_msr_entry, kvm_regs, kvm_sregs,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, SyncReg, VcpuExit, VcpuFd, VmFd};

use crate::cpu::{self, CpuState};
use crate::memory::GuestMemory;
use crate::{Hypervisor, VmmError, timer};

/// Why the vCPU left the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// `out` to a port.
    Port(u16),
    /// The timer.
    Timer,
    /// The CPU could not go on: no way to deliver an exception.
    Shutdown,
    /// KVM could not go on, for example with an instruction that it cannot emulate.
    Internal,
    /// Anything else; no guest can bring it about by right.
    Other,
}

/// Dropped in this order: the vCPU, the VM, and only then the memory that both use.
#[derive(Debug)]
pub(crate) struct Machine {
    vcpu: VcpuFd,
    vm: VmFd,
    memory: Option<GuestMemory>,
    /// Whether the vCPU has run in this memory.
    has_run: bool,
    /// The guest's TSC less the host's.
    tsc_offset: u64,
    /// System registers of a vCPU that KVM just made.
    new_sregs: kvm_sregs,
    /// System registers at CPL 3 with the current memory's page tables.
    sregs: kvm_sregs,
}

impl Machine {
    /// A VM without memory.
    pub(crate) fn new(hypervisor: &Hypervisor) -> Result<Self, VmmError> {
        let inner = &hypervisor.inner;
        let (vm, mut vcpu, new_sregs) = make(&inner.kvm, &inner.cpuid, inner.xcr0)?;
        let sregs = cpu::system_registers(&new_sregs, 0);
        let tsc_offset = guest_tsc(&vcpu)?.wrapping_sub(host_tsc());
        vcpu.set_kvm_immediate_exit(0);
        Ok(Machine {
            vcpu,
            vm,
            memory: None,
            has_run: false,
            tsc_offset,
            new_sregs,
            sregs,
        })
    }

    /// Gives the VM another memory. Removing the old slot is what makes KVM forget every page table
    /// that it has derived from it, under shadow paging too.
    pub(crate) fn attach(&mut self, memory: GuestMemory, pml4: u64) -> Result<(), VmmError> {
        self.detach()?;
        self.set_slot(memory.host_addr(), memory.bytes())?;
        (self.memory, self.has_run) = (Some(memory), false);
        self.sregs = cpu::system_registers(&self.new_sregs, pml4);
        Ok(())
    }

    /// Whether it has a memory of that size in which nothing has run yet.
    pub(crate) fn has_room(&self, bytes: u64) -> bool {
        !self.has_run
            && self
                .memory
                .as_ref()
                .is_some_and(|memory| memory.bytes() == bytes)
    }

    /// Has the memory replaced in place, in the same memory slot.
    pub(crate) fn replace(
        &mut self,
        by: impl FnOnce(&mut GuestMemory) -> Result<(), VmmError>,
        pml4: u64,
    ) -> Result<(), VmmError> {
        let memory = self.memory.as_mut();
        by(memory.ok_or(VmmError::Misuse("the VM has no memory"))?)?;
        self.sregs = cpu::system_registers(&self.new_sregs, pml4);
        Ok(())
    }

    /// Takes the memory away.
    pub(crate) fn detach(&mut self) -> Result<(), VmmError> {
        if self.memory.is_some() {
            self.set_slot(0, 0)?;
            self.memory = None;
        }
        Ok(())
    }

    fn set_slot(&mut self, host_addr: u64, bytes: u64) -> Result<(), VmmError> {
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: bytes,
            userspace_addr: host_addr,
        };
        // SAFETY: the mapping is kept in `self.memory` until the slot is removed or the VM is gone,
        // and nothing of the host's own lies in it.
        unsafe { self.vm.set_user_memory_region(region) }
            .map_err(VmmError::kvm("set the memory slot of a VM"))
    }

    /// The memory.
    pub(crate) fn memory(&self) -> Result<&GuestMemory, VmmError> {
        self.memory
            .as_ref()
            .ok_or(VmmError::Misuse("the VM has no memory"))
    }

    /// The guest's TSC, about now.
    pub(crate) fn tsc_now(&self) -> u64 {
        host_tsc().wrapping_add(self.tsc_offset)
    }

    /// Sets everything that a guest at CPL 3 can change, but for the extended state; takes effect at the next
    /// run, without a call of its own into KVM.
    pub(crate) fn set_state(&mut self, state: &CpuState) {
        let mut sregs = self.sregs;
        sregs.fs.base = state.fs_base;
        sregs.gs.base = state.gs_base;
        let sync = self.vcpu.sync_regs_mut();
        sync.regs = state.regs;
        sync.sregs = sregs;
        self.vcpu.set_sync_dirty_reg(SyncReg::Register);
        self.vcpu.set_sync_dirty_reg(SyncReg::SystemRegister);
    }

    /// The general registers.
    pub(crate) fn regs(&self) -> Result<kvm_regs, VmmError> {
        self.vcpu
            .get_regs()
            .map_err(VmmError::kvm("read the registers of a vCPU"))
    }

    /// Sets the general registers.
    pub(crate) fn set_regs(&mut self, regs: &kvm_regs) -> Result<(), VmmError> {
        self.vcpu
            .set_regs(regs)
            .map_err(VmmError::kvm("set the registers of a vCPU"))
    }

    /// Whether a guest that was stopped by the timer can go on somewhere else: it is at CPL 3, and no
    /// exception is on its way to it.
    pub(crate) fn can_be_redirected(&self) -> Result<bool, VmmError> {
        let events = self
            .vcpu
            .get_vcpu_events()
            .map_err(VmmError::kvm("tell the events of a vCPU"))?;
        let at_cpl_3 = self.sregs()?.cs.selector & 3 == 3;
        Ok(at_cpl_3 && events.exception.injected == 0 && events.exception.pending == 0)
    }

    /// Forgets an exception that was on its way into the guest when it was stopped.
    pub(crate) fn forget_events(&self) -> Result<(), VmmError> {
        let mut events = self
            .vcpu
            .get_vcpu_events()
            .map_err(VmmError::kvm("tell the events of a vCPU"))?;
        (events.exception, events.interrupt) = Default::default();
        self.vcpu
            .set_vcpu_events(&events)
            .map_err(VmmError::kvm("set the events of a vCPU"))
    }

    /// The system registers.
    pub(crate) fn sregs(&self) -> Result<kvm_sregs, VmmError> {
        self.vcpu
            .get_sregs()
            .map_err(VmmError::kvm("read the system registers of a vCPU"))
    }

    /// The state of a guest that has left through the hostcall gate, as it will be at CPL 3 once it is
    /// back: what the stub's `iretq` would load is put into the registers.
    pub(crate) fn state_after(&self, frame: &cpu::InterruptFrame) -> Result<CpuState, VmmError> {
        let sregs = self.sregs()?;
        let regs = kvm_regs {
            rip: frame.rip,
            rsp: frame.rsp,
            rflags: cpu::clean_rflags(frame.rflags),
            ..self.regs()?
        };
        Ok(CpuState {
            regs,
            fs_base: sregs.fs.base,
            gs_base: sregs.gs.base,
        })
    }

    /// All that KVM tells of the vCPU, as it will be at the next run, in words that can be compared; not the
    /// extended state, which the guest loads.
    #[cfg(test)]
    pub(crate) fn everything(&mut self, msrs: &[u32]) -> Result<Vec<String>, VmmError> {
        // What is to be set at a run is set by one that ends before the guest's first instruction.
        self.vcpu.set_kvm_immediate_exit(1);
        let exit = self.run_once();
        self.vcpu.set_kvm_immediate_exit(0);
        assert_eq!(exit?, Exit::Timer, "it ran");
        let told = VmmError::kvm;
        let vcpu = &self.vcpu;
        let mut sregs = self.sregs()?;
        // PVM does not set these; the guest does, behind the hostcall gate.
        for segment in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs] {
            *segment = kvm_bindings::kvm_segment {
                base: segment.base,
                ..Default::default()
            };
        }
        let mut events = vcpu.get_vcpu_events().map_err(told("events"))?;
        // Which exception or interrupt was the last, where there is none.
        if events.exception.injected == 0 && events.exception.pending == 0 {
            events.exception = Default::default();
        }
        if events.interrupt.injected == 0 {
            (events.interrupt.nr, events.interrupt.soft) = (0, 0);
        }
        let mut found = vec![
            format!("{:?}", self.regs()?),
            format!("{sregs:?}"),
            format!("{:?}", vcpu.get_xcrs().map_err(told("xcrs"))?),
            format!("{:?}", vcpu.get_debug_regs().map_err(told("debug"))?),
            format!("{events:?}"),
            format!("{:?}", vcpu.get_mp_state().map_err(told("state"))?),
        ];
        for index in msrs {
            let entry = kvm_msr_entry {
                index: *index,
                ..Default::default()
            };
            let mut one = Msrs::from_entries(&[entry])
                .map_err(|_| VmmError::Misuse("one MSR does not fit a list of MSRs"))?;
            if matches!(vcpu.get_msrs(&mut one), Ok(1)) {
                found.push(format!("MSR {index:#x}: {:#x}", one.as_slice()[0].data));
            }
        }
        Ok(found)
    }

    /// Runs the vCPU until it leaves the guest, at most for `most`.
    pub(crate) fn run(&mut self, most: Duration) -> Result<Exit, VmmError> {
        let flag = &raw mut self.vcpu.get_kvm_run().immediate_exit;
        let armed = timer::arm(most, flag)?;
        let exit = self.run_once();
        drop(armed);
        self.vcpu.set_kvm_immediate_exit(0);
        exit
    }

    /// Runs the vCPU until it leaves the guest, however long that takes.
    pub(crate) fn run_once(&mut self) -> Result<Exit, VmmError> {
        self.has_run = true;
        Ok(match self.vcpu.run() {
            Ok(VcpuExit::IoOut(port, _)) => Exit::Port(port),
            Ok(VcpuExit::Shutdown | VcpuExit::SystemEvent(..)) => Exit::Shutdown,
            Ok(VcpuExit::InternalError) => Exit::Internal,
            Ok(VcpuExit::Intr) => Exit::Timer,
            Ok(_) => Exit::Other,
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => Exit::Timer,
            Err(error) => {
                return Err(VmmError::Kvm {
                    operation: "run a vCPU",
                    error,
                });
            }
        })
    }
}

/// A VM and its vCPU as every guest has it, and the system registers that KVM gave it at first.
fn make(kvm: &Kvm, cpuid: &CpuId, xcr0: u64) -> Result<(VmFd, VcpuFd, kvm_sregs), VmmError> {
    let vm = kvm.create_vm().map_err(VmmError::kvm("create a VM"))?;
    let vcpu = vm.create_vcpu(0).map_err(VmmError::kvm("create a vCPU"))?;
    vcpu.set_cpuid2(cpuid)
        .map_err(VmmError::kvm("set the CPUID of a vCPU"))?;
    let sregs = vcpu
        .get_sregs()
        .map_err(VmmError::kvm("read the system registers of a vCPU"))?;
    cpu::set_up(&vcpu, xcr0, &cpu::system_registers(&sregs, 0))?;
    Ok((vm, vcpu, sregs))
}

/// What a vCPU that is given `cpuid` answers to CPUID: some of it follows its system registers and XCR0, and on
/// PVM some the host's CPU.
pub(crate) fn cpuid_answers(kvm: &Kvm, cpuid: &CpuId, xcr0: u64) -> Result<CpuId, VmmError> {
    let (_vm, vcpu, _) = make(kvm, cpuid, xcr0)?;
    vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES)
        .map_err(VmmError::kvm("tell the CPUID of a vCPU"))
}

/// The guest's TSC as KVM tells it.
fn guest_tsc(vcpu: &VcpuFd) -> Result<u64, VmmError> {
    const TSC: u32 = 0x10;
    let entry = kvm_msr_entry {
        index: TSC,
        ..Default::default()
    };
    let mut msrs = Msrs::from_entries(&[entry])
        .map_err(|_| VmmError::Misuse("one MSR does not fit a list of MSRs"))?;
    vcpu.get_msrs(&mut msrs)
        .map_err(VmmError::kvm("read the TSC of a vCPU"))?;
    Ok(msrs.as_slice()[0].data)
}

/// The host's TSC.
fn host_tsc() -> u64 {
    // SAFETY: the instruction has no precondition on the CPUs that have KVM.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// The frequency of a vCPU's TSC in kHz.
pub(crate) fn tsc_khz(machine: &Machine) -> Result<u32, VmmError> {
    machine
        .vcpu
        .get_tsc_khz()
        .map_err(VmmError::kvm("tell the frequency of the TSC"))
}
