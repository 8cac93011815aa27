//! The vCPU's state: what every guest starts with, and what differs between snapshots.
//!
//! The vCPU starts at CPL 3, with paging and long mode on: no boot code runs in the guest. At CPL 3 a
//! guest can change its general registers, flags, segment registers with the bases of FS and GS, and
//! the extended state; all else is out of its reach. [`CpuState`] holds that but for the extended state, so a
//! restore cannot be anything but CPL 3. The extended state the library OS keeps in memory where it waits for a
//! request, and loads from there before anything else.

use holm_hostcall::{
    IDT_ADDR, KERNEL_ADDR, PAGE_BYTES, STUB_STACK_ADDR, TABLES_ADDR, TSS_OFFSET, selector,
};
use kvm_bindings::{Msrs, kvm_dtable, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs, kvm_xsave};
use kvm_ioctls::VcpuFd;

use crate::VmmError;
use crate::memory::GuestMemory;

const CR0_PE: u64 = 1;
const CR0_MP: u64 = 1 << 1;
const CR0_ET: u64 = 1 << 4;
const CR0_NE: u64 = 1 << 5;
const CR0_WP: u64 = 1 << 16;
/// Alignment checks for programs that ask for them, as on Linux; PVM has no other way.
const CR0_AM: u64 = 1 << 18;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const CR4_OSFXSR: u64 = 1 << 9;
const CR4_OSXMMEXCPT: u64 = 1 << 10;
const CR4_FSGSBASE: u64 = 1 << 16;
const CR4_OSXSAVE: u64 = 1 << 18;
const EFER_SCE: u64 = 1;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
const EFER_NXE: u64 = 1 << 11;

/// Flags that a program may have set when it waits: the arithmetic ones, DF and AC. Bit 1 is always
/// set, and IF, so that an injected interrupt is taken.
const RFLAGS_KEPT: u64 = 0x4_0CD5;
const RFLAGS_SET: u64 = 0x202;

/// What differs between vCPUs that wait for a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CpuState {
    pub(crate) regs: kvm_regs,
    pub(crate) fs_base: u64,
    pub(crate) gs_base: u64,
}

impl From<kvm_regs> for CpuState {
    /// With nothing at FS and GS.
    fn from(regs: kvm_regs) -> Self {
        CpuState {
            regs,
            fs_base: 0,
            gs_base: 0,
        }
    }
}

/// The frame that the CPU pushes for an interrupt from CPL 3.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InterruptFrame {
    pub(crate) rip: u64,
    pub(crate) rflags: u64,
    pub(crate) rsp: u64,
}

/// Bytes of an interrupt frame on the stub's stack.
pub(crate) const FRAME_BYTES: u64 = 40;
/// Where the frame of a hostcall is: the stub pushes nothing.
pub(crate) const GATE_FRAME_ADDR: u64 = STUB_STACK_ADDR + PAGE_BYTES - FRAME_BYTES;

impl InterruptFrame {
    /// The frame at `addr` on the stub's stack, which a guest at CPL 3 cannot write.
    pub(crate) fn read(memory: &GuestMemory, addr: u64) -> Result<Self, VmmError> {
        let mut bytes = [0; FRAME_BYTES as usize];
        memory.read(addr, &mut bytes)?;
        let words = bytes.as_chunks().0;
        let word = |at: usize| u64::from_le_bytes(words[at]);
        // The selectors in words 1 and 4 are not used: a guest only ever goes on at CPL 3.
        Ok(InterruptFrame {
            rip: word(0),
            rflags: word(2),
            rsp: word(3),
        })
    }
}

/// Flags as a program may have them.
pub(crate) fn clean_rflags(rflags: u64) -> u64 {
    rflags & RFLAGS_KEPT | RFLAGS_SET
}

/// Sets what is the same for every guest and stays for the vCPU's life.
pub(crate) fn set_up(vcpu: &VcpuFd, xcr0: u64, fixed: &kvm_sregs) -> Result<(), VmmError> {
    const STAR: u32 = 0xC000_0081;
    const LSTAR: u32 = 0xC000_0082;
    const CSTAR: u32 = 0xC000_0083;
    const SFMASK: u32 = 0xC000_0084;
    // `syscall` takes KERNEL_CODE and the selector after it; `sysret` is never used, but its base
    // gives USER_DATA and USER_CODE at +8 and +16, as on Linux.
    let star = u64::from(selector::KERNEL_CODE) << 32 | u64::from(selector::USER_DATA - 8) << 48;
    // TF, DF, IOPL, NT, AC are cleared at the entry.
    let entries = [
        (STAR, star),
        (LSTAR, KERNEL_ADDR),
        (CSTAR, 0),
        (SFMASK, 0x4_7500),
    ]
    .map(|(index, data)| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    });
    let msrs = Msrs::from_entries(&entries)
        .map_err(|_| VmmError::Misuse("four MSRs do not fit a list of MSRs"))?;
    let set = vcpu
        .set_msrs(&msrs)
        .map_err(VmmError::kvm("set the MSRs of a vCPU"))?;
    if set != entries.len() {
        return Err(VmmError::NoKvm {
            problem: "this machine's KVM refuses the MSRs of system calls".into(),
            remedy: "use another kernel, and tell Holm's developers which this one is".into(),
        });
    }
    vcpu.set_sregs(fixed)
        .map_err(VmmError::kvm("set the system registers of a vCPU"))?;
    let mut xcrs = vcpu
        .get_xcrs()
        .map_err(VmmError::kvm("read XCR0 of a vCPU"))?;
    xcrs.nr_xcrs = 1;
    xcrs.xcrs[0].xcr = 0;
    xcrs.xcrs[0].value = xcr0;
    vcpu.set_xcrs(&xcrs)
        .map_err(VmmError::kvm("set XCR0 of a vCPU"))?;
    // SAFETY: without dynamically enabled features KVM reads no more than the 4096 bytes of `kvm_xsave`; none is
    // ever enabled.
    unsafe { vcpu.set_xsave(&initial_xsave()) }
        .map_err(VmmError::kvm("set the extended state of a vCPU"))
}

/// Extended state as Linux gives it to a new program (Intel SDM volume 1, 13.4): x87 control word
/// 0x37F, MXCSR 0x1F80, every component in its initial configuration.
fn initial_xsave() -> Box<kvm_xsave> {
    let mut xsave = Box::<kvm_xsave>::default();
    xsave.region[0] = 0x37F;
    xsave.region[6] = 0x1F80;
    // XSTATE_BV: x87 and SSE are present.
    xsave.region[128] = 0b11;
    xsave
}

/// The system registers of a guest at CPL 3, on top of what KVM gives a new vCPU.
pub(crate) fn system_registers(new: &kvm_sregs, pml4: u64) -> kvm_sregs {
    let segment = |selector: u16, kind: u8, long: u8| kvm_segment {
        base: 0,
        limit: 0xFFFF_FFFF,
        selector,
        type_: kind,
        present: 1,
        dpl: 3,
        db: 1 - long,
        s: 1,
        l: long,
        g: 1,
        ..Default::default()
    };
    const CODE: u8 = 0xB;
    const DATA: u8 = 0x3;
    const BUSY_TSS: u8 = 0xB;
    // Null, as Linux has them. PVM does not set these; the guest does, behind the hostcall gate.
    let null = kvm_segment {
        unusable: 1,
        ..Default::default()
    };
    kvm_sregs {
        cs: segment(selector::USER_CODE, CODE, 1),
        ss: segment(selector::USER_DATA, DATA, 0),
        ds: null,
        es: null,
        fs: null,
        gs: null,
        tr: kvm_segment {
            base: TABLES_ADDR + TSS_OFFSET,
            limit: 103,
            selector: selector::TSS,
            type_: BUSY_TSS,
            present: 1,
            ..Default::default()
        },
        ldt: kvm_segment {
            unusable: 1,
            type_: 2,
            ..Default::default()
        },
        gdt: kvm_dtable {
            base: TABLES_ADDR,
            limit: 79,
            ..Default::default()
        },
        idt: kvm_dtable {
            base: IDT_ADDR,
            limit: 4095,
            ..Default::default()
        },
        cr0: CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_PG,
        cr2: 0,
        cr3: pml4,
        cr4: CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_FSGSBASE | CR4_OSXSAVE,
        efer: EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE,
        cr8: 0,
        apic_base: new.apic_base,
        interrupt_bitmap: [0; 4],
    }
}
