/* Crashes three calls deep: /null through a null pointer, /abort by abort(), /jump by a call to nowhere, /signal in
 * the handler of a fault, which has a stack of its own, and /smashed with a stack that leads nowhere. /deep never
 * comes to an end. */
#include "guest.h"
#include <signal.h>

__attribute__((noinline)) static void handler(int number) {
    if (number == SIGSEGV)
        abort();
}

static void handle_faults(void) {
    static char stack[65536];
    stack_t other = {.ss_sp = stack, .ss_size = sizeof stack};
    struct sigaction action = {.sa_handler = handler, .sa_flags = SA_ONSTACK};
    if (sigaltstack(&other, NULL) != 0 || sigaction(SIGSEGV, &action, NULL) != 0)
        exit(95);
}

__attribute__((noinline)) static int deeper(volatile int *before) {
    volatile int here = *before + 1;
    return here < 0 ? here : deeper(&here) + here;
}

__attribute__((noinline)) static int innermost(const char *path, volatile int *nowhere) {
    if (!strcmp(path, "/null"))
        return *nowhere;
    if (!strcmp(path, "/signal"))
        handle_faults();
    if (!strcmp(path, "/signal"))
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
    volatile int start = 0;
    if (!strcmp(request->path, "/deep"))
        answer(request, "%d\n", deeper(&start));
    answer(request, "%d\n", outermost(request->path));
}

int main(void) {
    serve(handle);
}
