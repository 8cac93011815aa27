/*
 * Tries to have memory that is both writable and executable. `/mmap` and `/mprotect` answer the
 * `errno` with which they were refused, or 0; other paths write to code.
 */
#include "guest.h"
#include <sys/mman.h>

__attribute__((noinline, aligned(64))) static int constant(void) {
    __asm__ volatile("");
    return 7;
}

static void handle(const struct request *request) {
    int all = PROT_READ | PROT_WRITE | PROT_EXEC;
    if (is_path(request, "/mmap")) {
        void *memory = mmap(NULL, 4096, all, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        answer(request, "%d\n", memory == MAP_FAILED ? errno : 0);
        return;
    }
    if (is_path(request, "/mprotect")) {
        void *page = (void *)((uintptr_t)constant & ~4095UL);
        answer(request, "%d\n", mprotect(page, 4096, all) == 0 ? 0 : errno);
        return;
    }
    volatile unsigned char *code = (volatile unsigned char *)(uintptr_t)constant;
    code[0] = 0xC3;
    answer(request, "code was written: %d\n", constant());
}

int main(void) {
    serve(handle);
}
