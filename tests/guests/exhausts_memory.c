/*
 * Takes and touches memory until there is no more. `/refused` then answers how many MiB it got; on
 * other paths it goes on without looking, as careless programs do, and dies.
 */
#include "guest.h"

enum { MIB = 1 << 20 };

static void handle(const struct request *request) {
    unsigned long got = 0;
    for (;;) {
        char *memory = malloc(MIB);
        if (memory == NULL && is_path(request, "/refused")) {
            answer(request, "%lu\n", got);
            return;
        }
        memset(memory, 0x5A, MIB);
        /* So that neither the compiler nor the allocator finds the memory unused. */
        __asm__ volatile("" : : "r"(memory) : "memory");
        got++;
    }
}

int main(void) {
    serve(handle);
}
