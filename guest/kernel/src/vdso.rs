//! The vDSO: a small shared object that every program finds by its auxiliary vector (AT_SYSINFO_EHDR) and
//! in which C libraries, Go and Zig look up how to read the clock without a system call.
//!
//! Only what a dynamic linker reads is here: headers, dynamic section, symbols with the version that Linux
//! gives them, and a hash table of one bucket. What the symbols lead to lies behind it, as some programs make
//! sure of, and goes on to the library OS's own functions, which runs at the program's privilege level anyhow: on
//! its stack, since it may take no fault on the program's. A turn of another thread's that was due meanwhile is
//! taken on the way back.

use core::arch::global_asm;

global_asm!(
    r#"
    .set ELF_HEADER_BYTES, 64
    .set PROGRAM_HEADER_BYTES, 56
    .set SYMBOL_BYTES, 24

    .macro function name, to
    .long \name - vdso_names
    .byte 0x12, 0                   # STB_GLOBAL, STT_FUNC; STV_DEFAULT
    .short 1                        # defined
    .quad \to - HOLM_VDSO
    .quad 16
    .endm

    .macro entry name, to
\name:
    mov [rip + vdso_caller_rsp], rsp
    mov rsp, [rip + HOLM_ENTRY_STACK]
    and rsp, -16
    call \to
    mov rsp, [rip + vdso_caller_rsp]
    cmp qword ptr [{fault} + {tick_missed}], 0
    jne vdso_yield
    ret
    .endm

    .section .bss.vdso, "aw", @nobits
    .balign 8
vdso_caller_rsp:
    .skip 8

    .section .text.vdso, "ax"
    .balign 4096
    .global HOLM_VDSO
HOLM_VDSO:
    .byte 0x7F, 'E', 'L', 'F', 2, 1, 1, 0
    .quad 0
    .short 3                        # ET_DYN
    .short 62                       # EM_X86_64
    .long 1
    .quad 0
    .quad ELF_HEADER_BYTES
    .quad 0
    .long 0
    .short ELF_HEADER_BYTES, PROGRAM_HEADER_BYTES, 2, 0, 0, 0

    .long 1, 5                      # PT_LOAD, readable and executable
    .quad 0, 0, 0, vdso_end - HOLM_VDSO, vdso_end - HOLM_VDSO, 4096
    .long 2, 4                      # PT_DYNAMIC, readable
    .quad vdso_dynamic - HOLM_VDSO, vdso_dynamic - HOLM_VDSO, vdso_dynamic - HOLM_VDSO
    .quad vdso_symbols - vdso_dynamic, vdso_symbols - vdso_dynamic, 8

    .balign 8
vdso_dynamic:
    .quad 14, vdso_soname - vdso_names
    .quad 4, vdso_hash - HOLM_VDSO
    .quad 5, vdso_names - HOLM_VDSO
    .quad 6, vdso_symbols - HOLM_VDSO
    .quad 10, vdso_hash - vdso_names
    .quad 11, SYMBOL_BYTES
    .quad 0x6ffffff0, vdso_versions - HOLM_VDSO
    .quad 0x6ffffffc, vdso_definitions - HOLM_VDSO
    .quad 0x6ffffffd, 2
    .quad 0, 0
vdso_symbols:
    .fill SYMBOL_BYTES, 1, 0
    function name_clock_gettime, vdso_clock_gettime
    function name_gettimeofday, vdso_gettimeofday
    function name_time, vdso_time
    function name_clock_getres, vdso_clock_getres
    function name_getcpu, vdso_getcpu
vdso_names:
    .byte 0
name_clock_gettime:
    .asciz "__vdso_clock_gettime"
name_gettimeofday:
    .asciz "__vdso_gettimeofday"
name_time:
    .asciz "__vdso_time"
name_clock_getres:
    .asciz "__vdso_clock_getres"
name_getcpu:
    .asciz "__vdso_getcpu"
vdso_soname:
    .asciz "linux-vdso.so.1"
vdso_linux:
    .asciz "LINUX_2.6"
    .balign 8
vdso_versions:                      # of each symbol
    .short 0, 2, 2, 2, 2, 2
    .balign 8
vdso_definitions:
    .short 1, 1, 1, 1               # VER_FLG_BASE: the object itself
    .long 0xdeebfa1, 20, 28
    .long vdso_soname - vdso_names, 0
    .short 1, 0, 2, 1
    .long 0x3ae75f6, 20, 0
    .long vdso_linux - vdso_names, 0
    .balign 8
vdso_hash:
    .long 1, 6                      # one bucket, six symbols
    .long 1
    .long 0, 2, 3, 4, 5, 0          # each leads to the next

    .balign 16
    entry vdso_clock_gettime, {clock_gettime}
    entry vdso_gettimeofday, {gettimeofday}
    entry vdso_time, {time}
    entry vdso_clock_getres, {clock_getres}
    entry vdso_getcpu, {getcpu}
vdso_yield:                         # a system call keeps rdx
    mov rdx, rax
    mov eax, {sched_yield}
    lea rcx, [rip + 1f]
    jmp call_entry
1:  mov rax, rdx
    ret

vdso_end:
    .text
    "#,
    clock_gettime = sym holm_kernel::time::vdso::clock_gettime,
    gettimeofday = sym holm_kernel::time::vdso::gettimeofday,
    time = sym holm_kernel::time::vdso::time,
    clock_getres = sym holm_kernel::time::vdso::clock_getres,
    getcpu = sym holm_kernel::time::vdso::getcpu,
    fault = const holm_hostcall::FAULT_ADDR,
    tick_missed = const core::mem::offset_of!(holm_hostcall::FaultPage, tick_missed),
    sched_yield = const 24,
);
