/* Writes to code. */
#include "guest.h"

__attribute__((noinline, aligned(64))) static int constant(void) {
    __asm__ volatile("");
    return 7;
}

static void handle(const struct request *request) {
    volatile unsigned char *code = (volatile unsigned char *)(uintptr_t)constant;
    code[0] = 0xC3;
    answer(request, "code was written: %d\n", constant());
}

int main(void) {
    serve(handle);
}
