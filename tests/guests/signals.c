/* Signal handlers: what they are given, what they may change, and what a signal does to a blocked call.
   Each path answers "fine" or says what was wrong. */
#include "guest.h"

#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <ucontext.h>

#define CHECK(what)                                                                                \
    do {                                                                                           \
        if (!(what)) {                                                                             \
            static char text[256];                                                                 \
            snprintf(text, sizeof text, "line %d: %s (errno %d)\n", __LINE__, #what, errno);       \
            return text;                                                                           \
        }                                                                                          \
    } while (0)

static volatile int seen, seen_code;
static void *volatile seen_addr;
static volatile uintptr_t handler_stack;

static void note(int signal, siginfo_t *info, void *context) {
    int local;
    (void)context;
    seen = signal;
    seen_code = info->si_code;
    seen_addr = info->si_addr;
    handler_stack = (uintptr_t)&local;
}

static void on(int signal, void (*handler)(int, siginfo_t *, void *), int flags) {
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = flags | SA_SIGINFO};
    sigaction(signal, &action, NULL);
}

static const char *raised(void) {
    on(SIGUSR1, note, 0);
    seen = 0;
    CHECK(raise(SIGUSR1) == 0 && seen == SIGUSR1 && seen_code == SI_TKILL);
    seen = 0;
    CHECK(kill(getpid(), SIGUSR1) == 0 && seen == SIGUSR1 && seen_code == SI_USER);
    sigset_t set, old, pending;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    CHECK(sigprocmask(SIG_BLOCK, &set, &old) == 0);
    seen = 0;
    raise(SIGUSR1);
    CHECK(seen == 0 && sigpending(&pending) == 0 && sigismember(&pending, SIGUSR1));
    CHECK(sigprocmask(SIG_SETMASK, &old, NULL) == 0 && seen == SIGUSR1);
    struct sigaction ignore = {.sa_handler = SIG_IGN}, before;
    CHECK(sigaction(SIGUSR1, &ignore, &before) == 0 && before.sa_sigaction == note);
    seen = 0;
    CHECK(raise(SIGUSR1) == 0 && seen == 0);
    CHECK(kill(4711, 0) == -1 && errno == ESRCH);
    errno = 0;
    CHECK(sigaction(SIGKILL, &ignore, NULL) == -1 && errno == EINVAL);
    return "fine\n";
}

/* A store through a bad pointer whose handler steps over the instruction. */
static void step_over(int signal, siginfo_t *info, void *context) {
    note(signal, info, context);
    ucontext_t *registers = context;
    registers->uc_mcontext.gregs[REG_RIP] += 3; /* mov %rax, (%rcx) */
    registers->uc_mcontext.gregs[REG_RDX] = 77;
}

static const char *stepped_over(void) {
    static char stack[32768];
    stack_t alternate = {.ss_sp = stack, .ss_size = sizeof stack}, now;
    CHECK(sigaltstack(&alternate, NULL) == 0);
    on(SIGSEGV, step_over, SA_ONSTACK);
    char *page = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *nothing = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    void *targets[] = {NULL, page, nothing, (void *)0x123456789000};
    int codes[] = {SEGV_MAPERR, SEGV_ACCERR, SEGV_ACCERR, SEGV_MAPERR};
    for (int i = 0; i < 4; i++) {
        unsigned long rdx = 1, rbx = 42;
        seen = 0;
        __asm__ volatile("mov %%rax, (%%rcx)"
                         : "+d"(rdx), "+b"(rbx)
                         : "a"(5UL), "c"(targets[i])
                         : "memory");
        CHECK(seen == SIGSEGV && seen_addr == targets[i] && seen_code == codes[i]);
        CHECK(rdx == 77 && rbx == 42);
        CHECK(handler_stack - (uintptr_t)stack < sizeof stack);
    }
    CHECK(sigaltstack(NULL, &now) == 0 && now.ss_sp == stack && now.ss_flags == 0);
    return "fine\n";
}

static sigjmp_buf back;

static void jump(int signal, siginfo_t *info, void *context) {
    note(signal, info, context);
    siglongjmp(back, 1);
}

__attribute__((noinline)) static int deep(volatile char *above) {
    volatile char here[4096];
    here[0] = above[0];
    return here[0] == 1 ? 0 : deep(here) + here[0];
}

static const char *overflow(void) {
    static char stack[32768];
    stack_t alternate = {.ss_sp = stack, .ss_size = sizeof stack};
    CHECK(sigaltstack(&alternate, NULL) == 0);
    on(SIGSEGV, jump, SA_ONSTACK);
    for (int i = 0; i < 3; i++) {
        seen = 0;
        char start = 0;
        if (sigsetjmp(back, 1) == 0)
            return deep(&start) ? "deep\n" : "not deep\n";
        CHECK(seen == SIGSEGV && handler_stack - (uintptr_t)stack < sizeof stack);
    }
    on(SIGFPE, jump, 0);
    on(SIGILL, jump, 0);
    if (sigsetjmp(back, 1) == 0)
        __asm__ volatile("xor %%edx, %%edx\n mov $7, %%eax\n xor %%ecx, %%ecx\n div %%ecx" ::
                             : "eax", "ecx", "edx");
    CHECK(seen == SIGFPE && seen_code == FPE_INTDIV);
    if (sigsetjmp(back, 1) == 0)
        __asm__ volatile("ud2");
    CHECK(seen == SIGILL);
    return "fine\n";
}

static double since(struct timespec start) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)(now.tv_sec - start.tv_sec) + (double)(now.tv_nsec - start.tv_nsec) / 1e9;
}

static const char *interrupted(void) {
    struct timespec start, rest = {0}, second = {.tv_sec = 5};
    struct itimerval timer = {.it_value = {.tv_usec = 20000}};
    on(SIGALRM, note, SA_RESTART);
    clock_gettime(CLOCK_MONOTONIC, &start);
    seen = 0;
    setitimer(ITIMER_REAL, &timer, NULL);
    CHECK(nanosleep(&second, &rest) == -1 && errno == EINTR && seen == SIGALRM);
    CHECK(rest.tv_sec == 4 && since(start) < 3);
    int pipes[2];
    CHECK(pipe(pipes) == 0);
    struct pollfd entry = {.fd = pipes[0], .events = POLLIN};
    setitimer(ITIMER_REAL, &timer, NULL);
    CHECK(poll(&entry, 1, 5000) == -1 && errno == EINTR);
    on(SIGALRM, note, 0);
    char byte;
    setitimer(ITIMER_REAL, &timer, NULL);
    CHECK(read(pipes[0], &byte, 1) == -1 && errno == EINTR);
    /* A program that only computes is interrupted too. */
    seen = 0;
    setitimer(ITIMER_REAL, &timer, NULL);
    clock_gettime(CLOCK_MONOTONIC, &start);
    while (!seen && since(start) < 5)
        ;
    CHECK(seen == SIGALRM);
    seen = 0;
    setitimer(ITIMER_REAL, &timer, NULL);
    for (volatile unsigned long n = 0; !seen && n < 4000000000UL; n++)
        ;
    CHECK(seen == SIGALRM);
    CHECK(alarm(100) == 0 && alarm(0) == 100);
    return "fine\n";
}

static int pipe_ends[2];

static void *restarted(void *argument) {
    char byte = 0;
    ssize_t got = read(pipe_ends[0], &byte, 1);
    *(long *)argument = got == 1 && byte == 'x' ? 1 : -errno;
    return NULL;
}

static volatile int spinning;

static void *spin(void *argument) {
    spinning = 1;
    while (!seen)
        ;
    return argument;
}

static const char *threads(void) {
    pthread_t thread;
    long result = 0;
    CHECK(pipe(pipe_ends) == 0);
    on(SIGUSR1, note, SA_RESTART);
    seen = 0;
    CHECK(pthread_create(&thread, NULL, restarted, &result) == 0);
    struct timespec moment = {.tv_nsec = 5000000};
    nanosleep(&moment, NULL);
    CHECK(pthread_kill(thread, SIGUSR1) == 0);
    /* Where there are other CPUs it may come late. */
    for (int tries = 0; !seen && tries < 1000; tries++)
        nanosleep(&moment, NULL);
    CHECK(seen == SIGUSR1 && result == 0);
    CHECK(write(pipe_ends[1], "x", 1) == 1 && pthread_join(thread, NULL) == 0 && result == 1);
    /* One that never makes a call. */
    seen = 0;
    CHECK(pthread_create(&thread, NULL, spin, NULL) == 0);
    while (!spinning)
        sched_yield();
    CHECK(pthread_kill(thread, SIGUSR1) == 0 && pthread_join(thread, NULL) == 0);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    CHECK(pthread_sigmask(SIG_BLOCK, &set, NULL) == 0 && raise(SIGUSR2) == 0);
    int number = 0;
    CHECK(sigwait(&set, &number) == 0 && number == SIGUSR2);
    CHECK(sigtimedwait(&set, NULL, &moment) == -1 && errno == EAGAIN);
    return "fine\n";
}

static const char *broken_pipe(void) {
    on(SIGPIPE, note, 0);
    int ends[2];
    CHECK(pipe(ends) == 0 && close(ends[0]) == 0);
    seen = 0;
    CHECK(write(ends[1], "x", 1) == -1 && errno == EPIPE && seen == SIGPIPE);
    int pair[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0 && close(pair[1]) == 0);
    seen = 0;
    CHECK(send(pair[0], "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE && seen == 0);
    return "fine\n";
}

/* A handler that uses the wide registers leaves the program's alone. */
static void clobber(int signal, siginfo_t *info, void *context) {
    note(signal, info, context);
    __asm__ volatile("vpcmpeqd %%ymm5, %%ymm5, %%ymm5\n vpcmpeqd %%ymm0, %%ymm0, %%ymm0" ::: "xmm0", "xmm5");
}

static const char *wide(void) {
    if (!__builtin_cpu_supports("avx2"))
        return "fine\n";
    on(SIGUSR1, clobber, 0);
    unsigned long in[4] = {1, 2, 3, 4}, out[4] = {0};
    long self = getpid();
    unsigned long call = 62; /* kill */
    __asm__ volatile("vmovdqu (%3), %%ymm5\n"
                     "syscall\n"
                     "vmovdqu %%ymm5, (%4)\n"
                     "vzeroupper"
                     : "+a"(call)
                     : "D"(self), "S"((long)SIGUSR1), "r"(in), "r"(out)
                     : "rcx", "r11", "memory", "xmm5", "xmm0");
    CHECK(seen == SIGUSR1 && memcmp(in, out, sizeof in) == 0);
    return "fine\n";
}

static int forgery;

static void forge(int signal, siginfo_t *info, void *context) {
    ucontext_t *registers = context;
    char *extended = (char *)registers->uc_mcontext.fpregs;
    (void)signal;
    (void)info;
    switch (forgery) {
    case 1: registers->uc_mcontext.gregs[REG_RIP] = (long)0x8000000000000000; break;
    case 2: registers->uc_mcontext.gregs[REG_RSP] = (long)0xffff800000000000; break;
    case 3: registers->uc_mcontext.fpregs = (void *)0x8000; break;
    case 4: memset(extended + 24, 0xff, 4); break;
    case 5: memset(extended + 512, 0xff, 64); break;
    case 6: registers->uc_mcontext.fpregs = (void *)(extended + 8); break;
    case 7: registers->uc_mcontext.gregs[REG_RIP] = 0x8200; break;
    case 8: registers->uc_mcontext.gregs[REG_CSGSFS] = 0x10; return;
    }
}

static void handle(const struct request *request) {
    struct {
        const char *path;
        const char *(*run)(void);
    } all[] = {{"/raised", raised},   {"/stepped_over", stepped_over}, {"/overflow", overflow},
               {"/interrupted", interrupted}, {"/threads", threads},   {"/broken_pipe", broken_pipe},
               {"/wide", wide}};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (is_path(request, all[i].path)) {
            answer(request, "%s", all[i].run());
            return;
        }
    if (strncmp(request->path, "/forge/", 7) == 0) {
        on(SIGUSR1, forge, 0);
        forgery = atoi(request->path + 7);
        kill(getpid(), SIGUSR1);
        answer(request, "went on\n");
        return;
    }
    if (is_path(request, "/unhandled_alarm")) {
        struct itimerval timer = {.it_value = {.tv_usec = 1000}};
        setitimer(ITIMER_REAL, &timer, NULL);
        for (;;)
            pause();
    }
    answer(request, "ok\n");
}

int main(void) {
    serve(handle);
}
