/* Which floating-point exception a handler is told of, for each of those that are not masked: by zero, invalid, overflow,
   underflow, inexact; of the SSE unit (`/sse`) and of the x87 unit (`/x87`). */
#include "guest.h"
#include <setjmp.h>
#include <signal.h>

static sigjmp_buf before;
static volatile int code;

static void takes(int number, siginfo_t *info, void *context) {
    (void)number, (void)context;
    code = info->si_code;
    siglongjmp(before, 1);
}

static const unsigned masks[] = {1 << 2, 1 << 0, 1 << 3, 1 << 4, 1 << 5};
static volatile double upper[] = {1, 0, 1e300, 1e-300, 1}, lower[] = {0, 0, 1e-300, 1e300, 3};
static volatile long double wide_upper[] = {1, 0, 1e4000L, 1e-4000L, 1}, wide_lower[] = {0, 0, 1e-4000L, 1e4000L, 3};

static void sse(int which) {
    unsigned state = 0x1f80 & ~(masks[which] << 7);
    __asm__ volatile("ldmxcsr %0" : : "m"(state));
    volatile double result = upper[which] / lower[which];
    (void)result;
}

static void x87(int which) {
    unsigned short control = (unsigned short)(0x37f & ~masks[which]);
    __asm__ volatile("fninit; fldcw %0" : : "m"(control));
    volatile long double result = wide_upper[which] / wide_lower[which];
    __asm__ volatile("fwait");
    (void)result;
}

static void handle(const struct request *request) {
    struct sigaction action = {.sa_sigaction = takes, .sa_flags = SA_SIGINFO};
    sigaction(SIGFPE, &action, NULL);
    for (int which = 0; which < 5; which++) {
        code = 0;
        if (sigsetjmp(before, 1) == 0) {
            if (is_path(request, "/x87"))
                x87(which);
            else
                sse(which);
        }
        unsigned usual = 0x1f80;
        __asm__ volatile("fninit; ldmxcsr %0" : : "m"(usual));
        tell("%d%s", code, which < 4 ? " " : "\n");
    }
    answer(request, "%s", told);
}

int main(int count, char **arguments) {
    serve_or_run(count, arguments, handle);
}
