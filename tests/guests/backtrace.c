/* Crashes three calls deep: /null through a null pointer, /abort by abort(), /jump by a call to nowhere, and
 * /smashed with a stack that leads nowhere. */
#include "guest.h"

__attribute__((noinline)) static int innermost(const char *path, volatile int *nowhere) {
    if (!strcmp(path, "/null"))
        return *nowhere;
    if (!strcmp(path, "/abort"))
        abort();
    if (!strcmp(path, "/jump"))
        return ((int (*)(void))nowhere)() + 1;
    __asm__ volatile("mov %0, %%rsp\n mov %0, %%rbp\n ud2" : : "r"(0x10UL) : "memory");
    return 0;
}

__attribute__((noinline)) static int middle(const char *path) {
    return innermost(path, (volatile int *)NULL) + 1;
}

__attribute__((noinline)) static int outermost(const char *path) {
    return middle(path) + 2;
}

static void handle(const struct request *request) {
    if (!strcmp(request->path, "/ok")) {
        answer(request, "ok\n");
        return;
    }
    answer(request, "%d\n", outermost(request->path));
}

int main(void) {
    serve(handle);
}
