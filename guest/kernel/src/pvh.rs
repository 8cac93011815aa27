//! The PVH entry, for looking at a guest under QEMU and gdb. Holm itself never uses it.
//!
//! PVH is the boot protocol of Xen that rust-hypervisor-firmware, cloud-hypervisor, QEMU and
//! Firecracker know: an ELF note names a 32-bit entry, which is called without paging and with EBX
//! pointing to `struct hvm_start_info`. Its first module has to be a whole guest's memory, as the VMM
//! lays it out; `cargo xtask qemu` makes one. The entry copies it to where it belongs and sets the CPU
//! up as the VMM would have: from there on the guest runs at CPL 3 as always. No host answers its
//! hostcalls, so it comes as far as the first.

use core::arch::global_asm;

global_asm!(
    r#"
    .section .note.pvh, "a", @note
    .balign 4
    .long 4
    .long 4
    .long 18                        # XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .long pvh_start

    .section .text.pvh, "ax"
    .code32
pvh_start:
    cld
    cmpl $0x336ec578, (%ebx)        # XEN_HVM_START_MAGIC_VALUE
    jne 9f
    cmpl $0, 12(%ebx)               # nr_modules
    je 9f
    movl 16(%ebx), %eax             # modlist_paddr
    movl (%eax), %esi
    movl 8(%eax), %ecx
    addl $3, %ecx
    shrl $2, %ecx
    xorl %edi, %edi
    rep movsl                       # this code too, by itself

    movb $0xFF, %al                 # no interrupts: nobody serves them here
    outb %al, $0x21
    outb %al, $0xA1
    movl ${cr4}, %eax
    movl %eax, %cr4
    movl {cr3}, %eax
    movl %eax, %cr3
    movl $0xC0000080, %ecx          # EFER: SCE, LME, NXE
    movl $0x901, %eax
    xorl %edx, %edx
    wrmsr
    movl $0xC0000081, %ecx          # STAR
    xorl %eax, %eax
    movl ${star_high}, %edx
    wrmsr
    movl $0xC0000082, %ecx          # LSTAR
    movl ${syscall_entry}, %eax
    xorl %edx, %edx
    wrmsr
    movl $0xC0000084, %ecx          # SFMASK
    movl $0x47500, %eax
    wrmsr
    movl ${cr0}, %eax
    movl %eax, %cr0
    lgdt pvh_gdt
    ljmp ${kernel_code}, $pvh_long
9:  hlt
    jmp 9b

    .code64
pvh_long:
    lidt pvh_idt
    movb $0x89, {tables} + {tss} + 5  # the VMM marks the TSS busy; ltr wants it available
    movw ${tss}, %ax
    ltr %ax
    movl $0xD, %eax
    xorl %ecx, %ecx
    cpuid
    andl $0xE7, %eax
    xorl %edx, %edx
    xorl %ecx, %ecx
    xsetbv
    movl ${stack_top}, %esp
    pushq ${user_data}
    pushq $0
    pushq $0x202
    pushq ${user_code}
    pushq $kernel_start
    iretq

    .balign 8
pvh_gdt:
    .word 79
    .long {tables}
    .long 0
    .balign 8
pvh_idt:
    .word 4095
    .quad {idt}
    .text
    "#,
    // PAE, OSFXSR, OSXMMEXCPT, FSGSBASE, OSXSAVE
    cr4 = const 0x5_0620,
    // PE, MP, ET, NE, WP, AM, PG
    cr0 = const 0x8005_0033u32,
    star_high = const ((holm_hostcall::selector::USER_DATA as u32 - 8) << 16)
        | holm_hostcall::selector::KERNEL_CODE as u32,
    syscall_entry = const holm_hostcall::KERNEL_ADDR,
    kernel_code = const holm_hostcall::selector::KERNEL_CODE,
    user_data = const holm_hostcall::selector::USER_DATA,
    user_code = const holm_hostcall::selector::USER_CODE,
    tss = const holm_hostcall::selector::TSS,
    tables = const holm_hostcall::TABLES_ADDR,
    idt = const holm_hostcall::IDT_ADDR,
    cr3 = const holm_hostcall::STUB_CR3_ADDR,
    stack_top = const holm_hostcall::STUB_STACK_ADDR + holm_hostcall::PAGE_BYTES,
    options(att_syntax)
);
