/*
 * Jumps to where the library OS is, and has handlers for what comes of it. `/handled` goes to places that
 * hold no code, by jump and by call, and tells how many were its own SIGSEGV at the right address; `/steps`
 * makes system calls under single steps; `/at/ADDRESS` goes to any place, with random registers: what that
 * does is the program's own loss. `/handler` has a handler at an address that is none.
 */
#include "guest.h"
#include <setjmp.h>
#include <signal.h>
#include <sys/syscall.h>
#include <ucontext.h>

static sigjmp_buf out;
static volatile uint64_t seen_addr, seen_rip;
static volatile int traps;

static void leave(int signal, siginfo_t *info, void *context) {
    seen_addr = (uint64_t)info->si_addr;
    seen_rip = (uint64_t)((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
    siglongjmp(out, signal);
}

static void step(int signal) { traps += signal == SIGTRAP; }

static int go(uint64_t target, int how) {
    int signal = sigsetjmp(out, 1);
    if (signal != 0)
        return signal;
    if (how == 0)
        __asm__ volatile("jmp *%0" : : "r"(target) : "memory");
    else
        ((void (*)(void))target)();
    return 0;
}

static long parent_id(void) {
    long answer;
    __asm__ volatile("mov $110, %%eax\n\tsyscall" : "=a"(answer) : : "rcx", "r11", "memory");
    return answer;
}

static void handle(const struct request *request) {
    static char stack[65536];
    stack_t other = {.ss_sp = stack, .ss_size = sizeof stack};
    sigaltstack(&other, NULL);
    struct sigaction action = {.sa_sigaction = leave, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
    for (int signal = SIGILL; signal <= SIGSEGV; signal++)
        if (signal != SIGABRT && signal != SIGKILL)
            sigaction(signal, &action, NULL);
    unsigned long target = 0;
    if (strncmp(request->path, "/at/", 4) == 0)
        target = strtoul(request->path + 4, NULL, 16);
    if (is_path(request, "/handled")) {
        static const uint64_t targets[] = {0x8,     0x1000,  0x2000,  0x3010,  0x8000,   0x8040,
                                           0x10000, 0x11000, 0x20000, 0x4f800, 0x60010, 0x1ff008};
        int right = 0, all = 0;
        for (int turn = 0; turn < 3; turn++)
            for (size_t i = 0; i < sizeof targets / sizeof *targets; i++) {
                int signal = go(targets[i], turn % 2);
                int good = signal == SIGSEGV && seen_addr == targets[i] && seen_rip == targets[i];
                if (!good)
                    fprintf(stderr, "%#lx: signal %d at %#lx, rip %#lx\n", targets[i], signal,
                            seen_addr, seen_rip);
                right += good;
                all++;
            }
        answer(request, "%d of %d\n", right, all);
    } else if (is_path(request, "/steps")) {
        signal(SIGTRAP, step);
        int right = 0;
        for (int turn = 0; turn < 20; turn++) {
            /* Every second time the call is the first instruction that is stepped. */
            if (turn % 2)
                __asm__ volatile("pushfq\n\torq $0x100, (%%rsp)\n\tpopfq\n\tnop" : : : "memory", "cc");
            else
                __asm__ volatile("pushfq\n\torq $0x100, (%%rsp)\n\tpopfq" : : : "memory", "cc");
            right += parent_id() == getppid() && syscall(SYS_gettid) > 0;
            __asm__ volatile("pushfq\n\tandq $~0x100, (%%rsp)\n\tpopfq" : : : "memory", "cc");
        }
        answer(request, "%d right, stepped: %d\n", right, traps > 0);
    } else if (target != 0) {
        int signal = go(target, 1);
        answer(request, "signal %d\n", signal);
    } else if (is_path(request, "/handler")) {
        struct sigaction nowhere = {.sa_handler = (void (*)(int))0x8000000000000000};
        sigaction(SIGUSR1, &nowhere, NULL);
        raise(SIGUSR1);
    }
}

int main(void) {
    serve(handle);
}
