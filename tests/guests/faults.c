/* Raises the exception that the path names; `/write/N` writes to an address. */
#include "guest.h"

static volatile int zero;

static void handle(const struct request *request) {
    if (is_path(request, "/divide"))
        zero = 7 / zero;
    else if (is_path(request, "/undefined"))
        __asm__ volatile("ud2");
    else if (is_path(request, "/breakpoint"))
        __asm__ volatile("int3");
    else if (is_path(request, "/int80"))
        __asm__ volatile("int $0x80" : : "a"(1));
    else if (is_path(request, "/double_fault_gate"))
        __asm__ volatile("int $8");
    else if (is_path(request, "/page_fault_gate"))
        __asm__ volatile("int $14");
    else if (is_path(request, "/noncanonical"))
        *(volatile char *)0x8000000000000000 = 1;
    else if (is_path(request, "/single_step"))
        __asm__ volatile("pushfq\n\torq $0x100, (%%rsp)\n\tpopfq\n\tnop" : : : "memory", "cc");
    else if (is_path(request, "/alignment")) {
        __asm__ volatile("pushfq\n\torq $0x40000, (%%rsp)\n\tpopfq" : : : "memory", "cc");
        static char bytes[16];
        *(volatile uint64_t *)(bytes + 1) = 1;
        __asm__ volatile("pushfq\n\tandq $~0x40000, (%%rsp)\n\tpopfq" : : : "memory", "cc");
    } else if (is_path(request, "/bad_stack"))
        __asm__ volatile("mov $0x10, %%rsp\n\tpush %%rax" : : : "memory");
    else if (is_path(request, "/supervisor_read"))
        (void)*(volatile char *)0x8000;
    else if (is_path(request, "/supervisor_write"))
        *(volatile char *)0x1000 = 1;
    else if (is_path(request, "/boot_page_write"))
        *(volatile char *)0x10000 = 1;
    else if (is_path(request, "/kernel_write"))
        *(volatile char *)0x100000 = 1;
    else if (is_path(request, "/beyond_memory"))
        *(volatile char *)0x7FFFFFFFF000 = 1;
    else if (number_after(request, "/write/", 0) != 0)
        *(volatile char *)number_after(request, "/write/", 0) = 1;
    else {
        answer(request, "no such fault: %s\n", request->path);
        return;
    }
    answer(request, "%s did not fault\n", request->path);
}

int main(void) {
    serve(handle);
}
