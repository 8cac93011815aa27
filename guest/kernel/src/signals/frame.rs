//! What a signal's handler finds on its stack, as Linux lays it there on x86-64, and the way back from it.
//!
//! ```text
//! top     │ extended state: legacy part of the entry's fxsave, wide registers by xsave, 64-byte aligned
//!         │ siginfo
//!         │ ucontext: stack, registers, mask
//! rsp ──▶ │ address of the restorer, which makes rt_sigreturn
//! ```
//! The way back believes nothing of it: what could make the library OS itself fault, or the program be
//! anything but at CPL 3, is the program's end.

use core::arch::asm;

use holm_hostcall::{FaultPage, Registers, abort_reason, selector};

use super::handlers::set_stack;
use super::queue::Origin;
use super::{NON_CANONICAL_FROM, SIGSEGV, own};
use crate::errno::Errno;
use crate::{host, state, user};

/// Why a handler runs.
#[derive(Clone, Copy, Debug)]
pub struct Cause {
    /// The signal's number.
    pub signal: u32,
    /// How it came about.
    pub origin: Origin,
    /// The exception, if it was one.
    pub fault: Option<FaultPage>,
}

const LEGACY_BYTES: u64 = 512;
const HEADER_BYTES: u64 = 64;
/// Where in the legacy part Linux tells what follows it.
const SOFTWARE: u64 = 464;
const MAGIC_1: u32 = 0x4650_5853;
const MAGIC_2: u32 = 0x4650_5845;
const MXCSR_MASK: u32 = 0xFFFF;
/// x87 and SSE, which the entry saves; the rest is still in the registers.
const LEGACY_STATE: u64 = 0b11;
/// The arithmetic flags, DF and AC; and what is always set.
const FLAGS_KEPT: u64 = 0x4_0CD5;
const FLAGS_SET: u64 = 0x202;
const FLAGS_CLEARED: u64 = 0x1_0500;

/// `struct ucontext` with `struct sigcontext` in it.
#[repr(C)]
#[derive(Clone, Copy)]
struct Context {
    flags: u64,
    link: u64,
    stack: [u64; 3],
    r8: u64,
    r9: u64,
    r10: u64,
    r11: u64,
    r12: u64,
    r13: u64,
    r14: u64,
    r15: u64,
    rdi: u64,
    rsi: u64,
    rbp: u64,
    rbx: u64,
    rdx: u64,
    rax: u64,
    rcx: u64,
    rsp: u64,
    rip: u64,
    rflags: u64,
    /// cs, gs, fs, ss
    selectors: u64,
    error_code: u64,
    vector: u64,
    old_mask: u64,
    cr2: u64,
    extended: u64,
    reserved: [u64; 8],
    mask: u64,
}

/// `struct siginfo`
#[repr(C)]
#[derive(Clone, Copy)]
struct Info {
    signal: u32,
    errno: u32,
    code: i32,
    pad: u32,
    words: [u64; 4],
    rest: [u64; 10],
}

user::plain!(Context, Info);

const _: () = assert!(size_of::<Context>() == 304 && size_of::<Info>() == 128);

fn info(signal: u32, origin: &Origin) -> Info {
    Info {
        signal,
        errno: origin.errno,
        code: origin.code,
        pad: 0,
        words: origin.words,
        rest: [0; 10],
    }
}

/// Writes a `struct siginfo`.
pub(super) fn write_info(to: u64, signal: u32, origin: &Origin) -> Result<(), Errno> {
    user::write(to, info(signal, origin))
}

/// Bytes of the extended state, and which parts of it there are.
fn extended_state() -> (u64, u64) {
    let known = state::extended_state();
    if known.0 == 0 {
        let bytes = core::arch::x86_64::__cpuid_count(0xD, 0).ebx;
        // SAFETY: the host has set CR4.OSXSAVE.
        let enabled = unsafe {
            let (low, high): (u32, u32);
            asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack));
            u64::from(low) | u64::from(high) << 32
        };
        // XSAVE looks at the memory of every part that it is asked for, so only what lies within the
        // bytes is: a hypervisor may hide a part whose bit it leaves in XCR0.
        let fits = |part: u32| {
            let leaf = core::arch::x86_64::__cpuid_count(0xD, part);
            leaf.eax != 0 && leaf.eax.saturating_add(leaf.ebx) <= bytes
        };
        let wide = (2..63).filter(|part| enabled >> part & 1 != 0 && fits(*part));
        let parts = wide.fold(enabled & LEGACY_STATE, |parts, part| parts | 1 << part);
        *known = (u64::from(bytes), parts);
    }
    *known
}

/// Where the entry has saved x87 and SSE: below the registers, 64-byte aligned.
fn legacy(registers: &Registers) -> *mut u8 {
    let registers = core::ptr::from_ref(registers).addr() as u64;
    core::ptr::with_exposed_provenance_mut(((registers - LEGACY_BYTES) & !63) as usize)
}

/// Lays the frame below `top` and points the registers to it, but for rip.
pub(super) fn lay(
    registers: &mut Registers,
    cause: &Cause,
    top: u64,
    restorer: u64,
    mask: u64,
    stack: (u64, u32, u64),
) -> Result<(), Errno> {
    let (bytes, parts) = extended_state();
    let extended = top.wrapping_sub(bytes + 4) & !63;
    let info_addr = extended.wrapping_sub(size_of::<Info>() as u64) & !15;
    let context_addr = info_addr.wrapping_sub(size_of::<Context>() as u64);
    let rsp = context_addr.wrapping_sub(8);
    let area = user::slice_mut(extended, bytes + 4)?;
    // Everything below is written before it is read by anybody.
    area.fill(0);
    let fault = cause.fault.unwrap_or_default();
    // SAFETY: the area is the program's, writable, aligned, zeroed, and as large as CPUID says; the
    // entry's save area lies below the registers on this thread's kernel stack.
    unsafe {
        asm!("xsave64 [{area}]", area = in(reg) area.as_mut_ptr(), in("eax") parts as u32,
             in("edx") (parts >> 32) as u32, options(nostack));
        area.as_mut_ptr()
            .copy_from_nonoverlapping(legacy(registers), SOFTWARE as usize);
    }
    let put = |at: u64, bytes: &[u8]| -> Result<(), Errno> {
        user::slice_mut(extended + at, bytes.len() as u64)?.copy_from_slice(bytes);
        Ok(())
    };
    put(SOFTWARE, &MAGIC_1.to_le_bytes())?;
    put(SOFTWARE + 4, &(bytes as u32 + 4).to_le_bytes())?;
    put(SOFTWARE + 8, &parts.to_le_bytes())?;
    put(SOFTWARE + 16, &(bytes as u32).to_le_bytes())?;
    put(bytes, &MAGIC_2.to_le_bytes())?;
    let present = user::read::<u64>(extended + LEGACY_BYTES)? | LEGACY_STATE;
    put(LEGACY_BYTES, &present.to_le_bytes())?;
    user::write(info_addr, info(cause.signal, &cause.origin))?;
    user::write(
        context_addr,
        Context {
            // UC_FP_XSTATE, UC_SIGCONTEXT_SS, UC_STRICT_RESTORE_SS
            flags: 7,
            link: 0,
            stack: [stack.0, u64::from(stack.1), stack.2],
            r8: registers.r8,
            r9: registers.r9,
            r10: registers.r10,
            r11: registers.r11,
            r12: registers.r12,
            r13: registers.r13,
            r14: registers.r14,
            r15: registers.r15,
            rdi: registers.rdi,
            rsi: registers.rsi,
            rbp: registers.rbp,
            rbx: registers.rbx,
            rdx: registers.rdx,
            rax: registers.rax,
            rcx: registers.rcx,
            rsp: registers.rsp,
            rip: registers.rip,
            rflags: registers.rflags,
            selectors: u64::from(selector::USER_CODE) | u64::from(selector::USER_DATA) << 48,
            error_code: fault.error_code,
            vector: fault.vector,
            old_mask: mask,
            cr2: fault.cr2,
            extended,
            reserved: [0; 8],
            mask,
        },
    )?;
    user::write(rsp, restorer)?;
    registers.rsp = rsp;
    registers.rdi = u64::from(cause.signal);
    registers.rsi = info_addr;
    registers.rdx = context_addr;
    registers.rax = 0;
    registers.rflags &= !FLAGS_CLEARED;
    Ok(())
}

/// `rt_sigreturn`: the registers are again what the frame at the stack pointer says.
pub fn go_back(registers: &mut Registers) {
    if restore(registers).is_err() {
        host::abort_with(
            abort_reason::SIGNAL,
            u64::from(SIGSEGV),
            format_args!("the program returned from a signal handler to a frame that is none"),
        );
    }
}

fn restore(registers: &mut Registers) -> Result<(), Errno> {
    let context = user::read::<Context>(registers.rsp)?;
    if context.rip >= NON_CANONICAL_FROM || context.rsp >= NON_CANONICAL_FROM {
        return Err(Errno::EFAULT);
    }
    restore_extended(registers, context.extended)?;
    *registers = Registers {
        rdi: context.rdi,
        rsi: context.rsi,
        rdx: context.rdx,
        r10: context.r10,
        r8: context.r8,
        r9: context.r9,
        r15: context.r15,
        r14: context.r14,
        r13: context.r13,
        r12: context.r12,
        rbp: context.rbp,
        rbx: context.rbx,
        r11: context.r11,
        rcx: context.rcx,
        rax: context.rax,
        rip: context.rip,
        cs: u64::from(selector::USER_CODE),
        rflags: context.rflags & FLAGS_KEPT | FLAGS_SET,
        rsp: context.rsp,
        ss: u64::from(selector::USER_DATA),
    };
    own().blocked = context.mask & !super::ABSOLUTE;
    let [start, flags, bytes] = context.stack;
    // As on Linux: what is not a stack is left alone.
    let _ = set_stack(start, flags as u32, bytes);
    Ok(())
}

/// Loads the wide registers, and puts the legacy part where the way back to the program loads it from.
fn restore_extended(registers: &Registers, extended: u64) -> Result<(), Errno> {
    let (bytes, parts) = extended_state();
    // SAFETY: the entry's save area on this thread's kernel stack.
    let to = unsafe { core::slice::from_raw_parts_mut(legacy(registers), LEGACY_BYTES as usize) };
    if extended == 0 {
        const INITIAL_CONTROL: u16 = 0x37F;
        const INITIAL_MXCSR: u32 = 0x1F80;
        to.fill(0);
        to[..2].copy_from_slice(&INITIAL_CONTROL.to_le_bytes());
        to[24..28].copy_from_slice(&INITIAL_MXCSR.to_le_bytes());
        return Ok(());
    }
    if !extended.is_multiple_of(64) {
        return Err(Errno::EFAULT);
    }
    let legacy = user::slice(extended, LEGACY_BYTES)?;
    let word = |at: usize| {
        u32::from_le_bytes([legacy[at], legacy[at + 1], legacy[at + 2], legacy[at + 3]])
    };
    if word(24) & !MXCSR_MASK != 0 {
        return Err(Errno::EFAULT);
    }
    let wide = word(SOFTWARE as usize) == MAGIC_1;
    to.copy_from_slice(legacy);
    if !wide {
        return Ok(());
    }
    let area = user::slice(extended, bytes)?;
    let header = &area[LEGACY_BYTES as usize..(LEGACY_BYTES + HEADER_BYTES) as usize];
    let present = header
        .first_chunk::<8>()
        .map_or(u64::MAX, |bytes| u64::from_le_bytes(*bytes));
    if present & !parts != 0 || header[8..].iter().any(|byte| *byte != 0) {
        return Err(Errno::EFAULT);
    }
    let wide = parts & !LEGACY_STATE;
    // SAFETY: the area is readable, aligned, and its header is one that XRSTOR takes (Intel SDM volume 1,
    // 13.8.1); kernel code keeps nothing in these registers.
    unsafe {
        asm!("xrstor64 [{area}]", area = in(reg) area.as_ptr(), in("eax") wide as u32,
             in("edx") (wide >> 32) as u32, options(nostack));
    }
    Ok(())
}
