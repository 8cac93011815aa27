//! The kernel image: the CPL 0 stub, the entries into the library OS, and what a freestanding
//! program has to bring (memory functions, panic handler).
//!
//! ```text
//!          host starts the vCPU at CPL 3
//!                      │
//!   kernel_start ──▶ library OS ──▶ program
//!                      ▲  │           │ syscall        (lands in syscall_entry, at CPL 3 on PVM
//!                      └──┼───────────┘                 and at CPL 0 on hardware)
//!                 int3    │
//!   CPL 0 stub ◀──────────┘   one `out`, then iretq
//! ```
//! At CPL 0 runs only what is in this file's assembly. Under PVM each of its instructions is
//! emulated at about half a microsecond, and the emulator knows no SSE: keep it short and plain.
#![no_std]
#![no_main]

use core::arch::global_asm;

mod freestanding;
mod pvh;

// The stub. Entered through the IDT on the interrupt stack (IST1), so it never touches the
// program's stack or its red zone.
//
// Exceptions: leave the vector on the stack, below what the CPU pushed, and exit for good.
// Hostcall:   one exit. Vector 3 leads here; whether it was the library OS's gate, the host checks.
// Protect:    vector 6 at the library OS's gate. rdi = first page, rsi = number of pages, rdx = 0 none, 1 read, 2 read and write.
//             Answers 0 in rax, or -1 and changes nothing beyond the first bad page. It can only
//             reach the entries of program pages (the host wrote their number and place into the
//             scratch page), writes only identity mappings for user mode, and leaves code alone: a
//             page without NX is refused, and NX is always set.
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
    push vector
    out {exception_port}, al
1:  jmp 1b
    .endif
    .set vector, vector + 1
    .endr

    .org stub_start + {hostcall_offset}
    out {hostcall_port}, al
    iretq

invalid_opcode:
    cmp qword ptr [rsp], offset protect_gate
    je 1f
    push 6
    out {exception_port}, al
9:  jmp 9b
1:  add qword ptr [rsp], 2
    push rcx
    push rdi
    push rsi
    cmp rdx, 2
    ja 3f
    mov rcx, rdi
    sub rcx, [{scratch} + 16]
    jb 3f
    test ecx, 0xfff
    jnz 3f
    shr rcx, 12
    mov rax, [{scratch}]
    sub rax, rcx
    jb 3f
    cmp rax, rsi
    jb 3f
    shl rcx, 3
    add rcx, [{scratch} + 8]
2:  test rsi, rsi
    jz 4f
    bt qword ptr [rcx], 63
    jnc 3f
    mov rax, [stub_protections + rdx * 8]
    or rax, rdi
    mov [rcx], rax
    invlpg [rdi]
    add rdi, 4096
    add rcx, 8
    sub rsi, 1
    jmp 2b
3:  mov rax, -1
    jmp 5f
4:  mov eax, 0
5:  pop rsi
    pop rdi
    pop rcx
    iretq

    .balign 8
stub_protections:
    .quad 0x8000000000000000
    .quad 0x8000000000000025
    .quad 0x8000000000000067
    "#,
    exception_port = const holm_hostcall::EXCEPTION_PORT,
    hostcall_port = const holm_hostcall::HOSTCALL_PORT,
    hostcall_offset = const holm_hostcall::STUB_HOSTCALL_ADDR - holm_hostcall::STUB_ADDR,
    scratch = const holm_hostcall::STUB_SCRATCH_ADDR,
);

// `syscall` from the program. On PVM it arrives here still at CPL 3, on hardware at CPL 0; both
// with the program's stack, the return address in rcx and the flags in r11. The page is executable
// for user mode. At CPL 0 nothing is done but to go down to CPL 3; rsp is the only register used.
//
// The library OS is compiled with SSE, which a Linux program expects a system call to leave alone:
// fxsave keeps it. Instructions without VEX leave the upper halves of wider registers as they are.
// Each thread has a kernel stack of its own; HOLM_ENTRY_STACK is that of the running one.
// The way back needs no privilege.
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
    push qword ptr [rip + saved_rsp]
    push rax
    push rcx
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
    call {handler}
syscall_return:
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
    add rsp, 8
    push r11
    popfq
    mov rsp, [rsp]
    jmp rcx

thread_start:
    xor eax, eax
    jmp syscall_return

2:  mov esp, {stub_stack_top}
    push {user_data}
    push qword ptr [rip + HOLM_ENTRY_STACK]
    push 0x202
    push {user_code}
    push offset syscall_at_cpl3
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
    handler = sym holm_kernel::syscall::handle,
    start = sym holm_kernel::start,
    stub_stack_top = const holm_hostcall::STUB_STACK_ADDR + holm_hostcall::PAGE_BYTES,
    user_data = const holm_hostcall::selector::USER_DATA,
    user_code = const holm_hostcall::selector::USER_CODE,
);
