//! The floor: what a bare round trip between a guest at CPL 3 and the host costs on this machine. No
//! invocation that enters a VM can be faster, so every figure is told as a ratio to it.

use std::time::{Duration, Instant};

use holm_hostcall::{HOSTCALL_PORT, PROGRAM_ADDR};
use kvm_bindings::kvm_regs;

use crate::image::Image;
use crate::layout::{Access, Layout, Range};
use crate::machine::{Exit, Machine};
use crate::memory::{GuestMemory, Sharing, anonymous_file};
use crate::{Hypervisor, VmmError};

/// A guest that does nothing but leave: a breakpoint at CPL 3, through the CPL 0 stub's `out`, to the
/// host, and back with `iretq`.
#[derive(Debug)]
pub struct Floor {
    machine: Machine,
}

impl Floor {
    /// Sets the guest up.
    pub fn new(hypervisor: &Hypervisor) -> Result<Self, VmmError> {
        const PROGRAM_BYTES: u64 = 1 << 20;
        // int3; jmp to it
        const CODE: [u8; 3] = [0xCC, 0xEB, 0xFD];
        let layout = Layout::new(PROGRAM_ADDR, PROGRAM_BYTES, 0);
        let file = anonymous_file(layout.total_bytes())?;
        let memory = GuestMemory::map(&file, 0, layout.total_bytes(), Sharing::CopyOnWrite)?;
        Image::get().load(&memory)?;
        memory.write(PROGRAM_ADDR, &CODE)?;
        let code = Range {
            start: PROGRAM_ADDR,
            end: PROGRAM_ADDR + 4096,
            access: Access::Execute,
        };
        layout.write_page_tables(&memory, &[], &[code])?;
        layout.write_cpu_tables(&memory)?;
        let mut machine = Machine::new(hypervisor)?;
        machine.attach(memory, layout.pml4())?;
        let regs = kvm_regs {
            rip: PROGRAM_ADDR,
            rsp: layout.program_end(),
            rflags: 0x202,
            ..Default::default()
        };
        machine.set_state(&regs.into());
        Ok(Floor { machine })
    }

    /// One round trip.
    pub fn round_trip(&mut self) -> Result<Duration, VmmError> {
        let start = Instant::now();
        match self.machine.run_once()? {
            Exit::Port(HOSTCALL_PORT) => Ok(start.elapsed()),
            _ => Err(VmmError::Misuse(
                "the guest of the floor left in an unexpected way",
            )),
        }
    }
}
