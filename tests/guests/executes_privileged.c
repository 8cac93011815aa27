/* Executes the privileged instruction that the path names. */
#include "guest.h"

static void handle(const struct request *request) {
    uint64_t value = 0;
    if (is_path(request, "/cli"))
        __asm__ volatile("cli");
    else if (is_path(request, "/out_hostcall"))
        /* The port of a hostcall, around the gate. */
        __asm__ volatile("outl %%eax, %%dx" : : "a"(0), "d"(0xF0));
    else if (is_path(request, "/out_exception"))
        __asm__ volatile("outl %%eax, %%dx" : : "a"(0), "d"(0xF8));
    else if (is_path(request, "/in"))
        __asm__ volatile("inb $0x60, %%al" : "+a"(value));
    else if (is_path(request, "/read_cr3"))
        __asm__ volatile("mov %%cr3, %0" : "=r"(value));
    else if (is_path(request, "/write_cr3"))
        __asm__ volatile("mov %0, %%cr3" : : "r"(value));
    else if (is_path(request, "/write_dr7"))
        __asm__ volatile("mov %0, %%dr7" : : "r"(value));
    else if (is_path(request, "/wrmsr"))
        __asm__ volatile("wrmsr" : : "c"(0xC0000082), "a"(0), "d"(0));
    else if (is_path(request, "/rdmsr"))
        __asm__ volatile("rdmsr" : "+a"(value) : "c"(0xC0000082) : "rdx");
    else if (is_path(request, "/lgdt")) {
        struct __attribute__((packed)) {
            uint16_t limit;
            uint64_t base;
        } table = {0, 0};
        __asm__ volatile("lgdt %0" : : "m"(table));
    } else if (is_path(request, "/invlpg"))
        __asm__ volatile("invlpg (%0)" : : "r"(&value));
    else if (is_path(request, "/swapgs"))
        __asm__ volatile("swapgs");
    else if (is_path(request, "/iretq"))
        /* Back to itself with CPL 0 selectors. */
        __asm__ volatile("mov %%rsp, %%rax\n\tpushq $0x18\n\tpushq %%rax\n\tpushfq\n\tpushq $0x10\n\t"
                         "leaq 1f(%%rip), %%rax\n\tpushq %%rax\n\tiretq\n1:"
                         :
                         :
                         : "rax", "memory", "cc");
    else {
        answer(request, "no such instruction: %s\n", request->path);
        return;
    }
    answer(request, "%s was let through\n", request->path);
}

int main(void) {
    serve(handle);
}
