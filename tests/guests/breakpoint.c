/* `int3` is SIGTRAP, and the program goes on behind it; so is a step. */
#include "guest.h"
#include <signal.h>
#include <ucontext.h>

static volatile long caught, code, behind;
extern const char after_breakpoint[];

static void on_trap(int signal, siginfo_t *info, void *context) {
    const ucontext_t *where = context;
    caught = signal;
    code = info->si_code;
    behind = where->uc_mcontext.gregs[REG_RIP] == (long)(uintptr_t)after_breakpoint;
}

static void handle(const struct request *request) {
    struct sigaction action = {.sa_sigaction = on_trap, .sa_flags = SA_SIGINFO};
    sigaction(SIGTRAP, &action, NULL);
    told[0] = '\0';
    for (int i = 0; i < 3; i++) {
        long kept = 0x1234 + i;
        caught = 0;
        __asm__ volatile("mov %1, %%rbx\n int3\n .globl after_breakpoint\nafter_breakpoint:\n mov %%rbx, %0"
                         : "=r"(kept)
                         : "r"(kept)
                         : "rbx", "memory");
        tell("handled: %ld code %ld behind it: %ld registers: %d\n", caught, code, behind, kept == 0x1234 + i);
    }
    answer(request, "%s", told);
}

int main(int count, char **arguments) {
    serve_or_run(count, arguments, handle);
}
