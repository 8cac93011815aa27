//! The kernel image: the CPL 0 stub, the entries into the library OS, and what a freestanding
//! program has to bring (memory functions, panic handler).
//!
//! ```text
//!          host starts the vCPU at CPL 3
//!                      │                       syscall  (arrives in syscall_entry, at CPL 3 on PVM
//!   kernel_start ──▶ library OS ◀────────────── program   and at CPL 0 on hardware)
//!                     │  │    ▲ ──────iretq──────▶  │
//!        int3, ud2    │  └─┐  └──fault_entry────┐   │ any other exception
//!   CPL 0 stub ◀──────┘    └▶ one `out`        stub ◀┘
//! ```
//! At CPL 0 run only the stub, which is this file's first block of assembly, the first instructions of the
//! `syscall` entry on hardware, and the PVH entry, which Holm never uses. Under PVM each of the stub's
//! instructions is emulated at about half a microsecond, and the emulator knows no SSE: keep it short and plain.
#![no_std]
#![no_main]

use core::arch::global_asm;
use core::mem::offset_of;

use holm_hostcall::{FaultPage, OperationBounds, page_operation};

/// So far below its top a stack pointer is taken to be in a kernel stack.
const OWN_STACK_BYTES: u64 = 128 << 10;
const TRAP_FLAG: i32 = 0x100;

mod freestanding;
mod pvh;
mod vdso;

// The stub. Entered through the IDT on the interrupt stack (IST1), so it never touches the
// program's stack or its red zone. No stack of CPL 0 can be read or written at CPL 3.
//
// Hostcall:  vector 3. One exit; whether it was the library OS's gate, the host checks.
// Page gate: vector 6 at the library OS's gate: changes page tables, as `page_operation` says. Answers
//            0 in rax, or -1 and changes nothing beyond the first bad entry. It writes only to slots
//            within the `OperationBounds` that the host wrote for each operation, and what it writes never
//            leads to a page of the stub's: it changes the protection of an entry that leads somewhere, copies
//            entries of program memory, clears entries, or links directories and tables that hold none but
//            such, each kind where it belongs. No entry comes to be writable and executable: there is no such
//            protection. All of rdx counts: it is an index.
// Others:    the library OS is told, by way of the fault page, and goes on at `fault_entry` with the
//            program's stack and flags. An exception of the library OS's own, or of the stub's, is an exit
//            for good: one below the program, at CPL 0 or with a stack pointer into the kernel stack. On
//            another stack it is a program that has jumped there, or through a null pointer. A single step
//            stops there. What was moved to the stubs of the program's calls has its stack.
global_asm!(
    r#"
    .section .stub, "ax"
stub_start:
    .set vector, 0
    .rept 32
    .balign 16
    .if vector == 6
    jmp invalid_opcode
    .else
    .if (0x60227D00 >> vector) & 1
    .else
    push 0
    .endif
    push vector
    .if (0x40104 >> vector) & 1
    jmp for_good
    .else
    jmp forward
    .endif
    .endif
    .set vector, vector + 1
    .endr

    .org stub_start + {hostcall_offset}
    out {hostcall_port}, al
    iretq

    // On the stack: vector, error code, rip, cs, flags, rsp, ss.
forward:
    cmp qword ptr [rsp + 16], {kernel_end}
    jb 2f
1:  mov [{fault} + {fault_rax}], rax
    mov rax, cr2
    mov [{fault} + {fault_cr2}], rax
    pop qword ptr [{fault} + {fault_vector}]
    pop qword ptr [{fault} + {fault_error}]
    pop qword ptr [{fault} + {fault_rip}]
    push offset fault_entry
    iretq
2:  cmp dword ptr [rsp], 1
    je 3f
    test byte ptr [rsp + 24], 3
    jz for_good
    push rax
    mov rax, [HOLM_ENTRY_STACK]
    sub rax, [rsp + 48]
    cmp rax, {own_stack_bytes}
    pop rax
    ja 1b
for_good:
    out {exception_port}, al
    jmp for_good
3:  and dword ptr [rsp + 32], {no_trap_flag}
    add rsp, 16
    iretq

invalid_opcode:
    cmp qword ptr [rsp], offset page_gate
    je 1f
    push 0
    push 6
    jmp forward
1:  add qword ptr [rsp], 2
    cmp rdx, {operations}
    jae 8f
    shl edx, {bounds_shift}
    test edi, 7
    jnz 8f
    test [{bounds} + rdx + {source_mask}], rsi
    jnz 8f
    // Both ranges have something, and as many slots as are asked for.
    mov rax, [{bounds} + rdx + {slots} + 8]
    sub rax, rdi
    jbe 8f
    shr rax, 3
    cmp rax, rcx
    jb 8f
    cmp rdi, [{bounds} + rdx + {slots}]
    jb 8f
    mov rax, [{bounds} + rdx + {sources} + 8]
    sub rax, rsi
    jbe 8f
    shr rax, 3
    cmp rax, rcx
    jb 8f
    cmp rsi, [{bounds} + rdx + {sources}]
    jb 8f
    cld
    xor eax, eax
    cmp edx, {map} << {bounds_shift}
    ja 4f
    jb 2f
    // Nothing was there before, so the CPU has nothing to forget.
    rep movsq
    iretq
2:  cmp edx, {unmap} << {bounds_shift}
    jb 3f
    rep stosq
    jmp 7f
    // Protect.
3:  sub rcx, 1
    jb 7f
    mov rax, [rdi]
    and rax, [stub_address_mask]
    jz 8f
    or rax, [{bounds} + rdx + {bits}]
    mov [rdi], rax
    add rdi, 8
    jmp 3b
    // Link.
4:  or rsi, [{bounds} + rdx + {bits}]
    mov [rdi], rsi
    iretq
7:  mov rax, cr3
    mov cr3, rax
    xor eax, eax
    iretq
8:  mov rax, -1
    iretq

    .balign 8
stub_address_mask:
    .quad 0x000ffffffffff000
    "#,
    exception_port = const holm_hostcall::EXCEPTION_PORT,
    hostcall_port = const holm_hostcall::HOSTCALL_PORT,
    hostcall_offset = const holm_hostcall::STUB_HOSTCALL_ADDR - holm_hostcall::STUB_ADDR,
    kernel_end = const holm_hostcall::KERNEL_END,
    own_stack_bytes = const OWN_STACK_BYTES,
    no_trap_flag = const !TRAP_FLAG,
    bounds = const holm_hostcall::STUB_BOUNDS_ADDR,
    bounds_shift = const size_of::<OperationBounds>().ilog2(),
    slots = const offset_of!(OperationBounds, slots),
    sources = const offset_of!(OperationBounds, sources),
    source_mask = const offset_of!(OperationBounds, source_mask),
    bits = const offset_of!(OperationBounds, bits),
    operations = const page_operation::COUNT,
    map = const page_operation::MAP,
    unmap = const page_operation::UNMAP,
    fault = const holm_hostcall::FAULT_ADDR,
    fault_rax = const offset_of!(FaultPage, rax),
    fault_cr2 = const offset_of!(FaultPage, cr2),
    fault_vector = const offset_of!(FaultPage, vector),
    fault_error = const offset_of!(FaultPage, error_code),
    fault_rip = const offset_of!(FaultPage, rip),
);

// `syscall` from the program. On PVM it arrives here still at CPL 3, on hardware at CPL 0; both
// with the program's stack, the return address in rcx and the flags in r11. The page is executable
// for user mode. At CPL 0 nothing is done but to go down to CPL 3; rsp is the only register used.
//
// A system call that the host has made a jump (see the VMM's `rewrite`) arrives in call_entry, at CPL 3 on
// both, with the return address in rcx; a CPUID that was made one in cpuid_entry, with it in rdx.
//
// A fault arrives in fault_entry at CPL 3, with the program's stack and flags and all registers but
// rax, by way of the stub; a preemption by way of the host.
//
// The library OS is compiled with SSE, which a Linux program expects a system call to leave alone:
// fxsave keeps it. Instructions without VEX leave the upper halves of wider registers as they are.
// Each thread has a kernel stack of its own; HOLM_ENTRY_STACK is that of the running one.
// The way back needs no privilege: `iretq` may go from CPL 3 to CPL 3.
global_asm!(
    r#"
    .section .entry, "ax"
    .global syscall_entry
syscall_entry:
    mov [rip + saved_rsp], rsp
    mov esp, cs
    test esp, 3
    jz 2f
    mov rsp, [rip + HOLM_ENTRY_STACK]
syscall_at_cpl3:
    cld
    push {user_data}
    push qword ptr [rip + saved_rsp]
    push r11
    push {user_code}
    push rcx
    push rax
    lea rax, [rip + {syscall}]
    jmp 3f

2:  mov esp, {stub_stack_top}
    push {user_data}
    push qword ptr [rip + HOLM_ENTRY_STACK]
    push 0x202
    push {user_code}
    push offset syscall_at_cpl3
    iretq

    // From an instruction that is a jump now: the register that says where to go on, and who serves it.
    .macro jumped_entry next, handler
    mov [rip + saved_rsp], rsp
    mov rsp, [rip + HOLM_ENTRY_STACK]
    push {user_data}
    push qword ptr [rip + saved_rsp]
    pushfq
    push {user_code}
    push \next
    push rax
    push 0x202
    popfq
    lea rax, [rip + \handler]
    jmp 3f
    .endm

    .global call_entry
call_entry:
    jumped_entry rcx, {syscall}

    .global cpuid_entry
cpuid_entry:
    jumped_entry rdx, {cpuid}

    .global fault_entry
fault_entry:
    mov [rip + saved_rsp], rsp
    mov rsp, [rip + HOLM_ENTRY_STACK]
    push {user_data}
    push qword ptr [rip + saved_rsp]
    pushfq
    push {user_code}
    push qword ptr [{fault} + {fault_rip}]
    push qword ptr [{fault} + {fault_rax}]
    push 0x202
    popfq
    lea rax, [rip + {fault_handler}]

3:  push rcx
    push r11
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    push r9
    push r8
    push r10
    push rdx
    push rsi
    push rdi
    mov rdi, rsp
    mov rbx, rsp
    sub rsp, 512
    and rsp, -64
    fxsave64 [rsp]
    call rax
thread_start:
    fxrstor64 [rsp]
    mov rsp, rbx
    pop rdi
    pop rsi
    pop rdx
    pop r10
    pop r8
    pop r9
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    pop r11
    pop rcx
    pop rax
    iretq

    .text
    .global kernel_start
kernel_start:
    xor eax, eax
    mov ds, eax
    mov es, eax
    mov fs, eax
    mov gs, eax
    lea rsp, [rip + kernel_stack_top]
    lea rdi, [rip + kernel_stack_top]
    lea rsi, [rip + thread_start]
    call {start}
    ud2

    .section .bss.kernel_stack, "aw", @nobits
    .balign 4096
    .skip 65536
kernel_stack_top:
    .skip 4096
saved_rsp:
    .skip 8
    "#,
    syscall = sym holm_kernel::syscall::handle,
    cpuid = sym holm_kernel::cpuid::handle,
    fault_handler = sym holm_kernel::fault::handle,
    start = sym holm_kernel::start,
    stub_stack_top = const holm_hostcall::STUB_STACK_ADDR + holm_hostcall::PAGE_BYTES,
    user_data = const holm_hostcall::selector::USER_DATA,
    user_code = const holm_hostcall::selector::USER_CODE,
    fault = const holm_hostcall::FAULT_ADDR,
    fault_rax = const offset_of!(FaultPage, rax),
    fault_rip = const offset_of!(FaultPage, rip),
);
