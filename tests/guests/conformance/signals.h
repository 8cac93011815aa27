/*
 * Signals to itself. No signal is sent that would end the program: every one that is used has a
 * handler, or is ignored, or is one that does nothing by default.
 * Left out: real-time signals, which are delivered once here however often they were sent, and the
 * values that come with sigqueue.
 */
#include <signal.h>
#include <sys/time.h>
#include <time.h>
#include <ucontext.h>

struct kernel_action {
    void *handler;
    unsigned long flags;
    void *restorer;
    uint64_t mask;
};

static struct {
    int signal, code, on_stack;
} caught[256];
static volatile int caught_count;
static int quiet_pipe[2];
static char other_stack[32 << 10] __attribute__((aligned(16)));
static void *restorer;
static volatile int alarm_writes;

static void note_signal(int signal, siginfo_t *info, void *context) {
    (void)context;
    char here;
    if (caught_count < 256) {
        caught[caught_count].signal = signal;
        caught[caught_count].code = info != NULL ? info->si_code : 0;
        caught[caught_count].on_stack =
            &here >= other_stack && &here < other_stack + sizeof other_stack;
        caught_count++;
    }
    /* So that a read which is made again comes to an end. */
    if (signal == SIGALRM && alarm_writes)
        CALL(SYS_write, quiet_pipe[1], "x", 1);
}

/* SIGCHLD, SIGURG and SIGWINCH do nothing by default. */
static const int plain[] = {SIGUSR1, SIGUSR2, SIGHUP, SIGTERM, SIGCHLD, SIGURG, SIGWINCH};
enum { PLAIN = sizeof plain / sizeof *plain };
static int any_signal(void) { return plain[below(PLAIN)]; }

static void install(int signal, unsigned long flags, uint64_t mask) {
    struct kernel_action action = {(void *)note_signal, flags | SA_SIGINFO | 0x04000000, restorer, mask};
    CALL(SYS_rt_sigaction, signal, &action, NULL, 8);
}

static void signals_start(void) {
    struct sigaction set = {.sa_sigaction = note_signal, .sa_flags = SA_SIGINFO};
    struct kernel_action got;
    sigaction(SIGUSR1, &set, NULL);
    /* The libc's own return from a handler. */
    CALL(SYS_rt_sigaction, SIGUSR1, NULL, &got, 8);
    restorer = got.restorer;
    for (int i = 0; i < PLAIN; i++)
        install(plain[i], 0, 0);
    install(SIGALRM, 0, 0);
    if (pipe(quiet_pipe) != 0)
        exit(74);
}

static void say_caught(void) {
    for (int i = 0; i < caught_count; i++)
        say(" <%d code %d%s>", caught[i].signal, caught[i].code, caught[i].on_stack ? " there" : "");
    caught_count = 0;
}

static uint64_t bit_of(int signal) { return 1ull << (signal - 1); }

static uint64_t any_set(void) {
    uint64_t set = 0;
    for (int i = 0; i < PLAIN; i++)
        if (one_in(3))
            set |= bit_of(plain[i]);
    if (one_in(5))
        set |= bit_of(SIGKILL) | bit_of(SIGSTOP);
    return set;
}

static void set_mask(uint64_t mask) { CALL(SYS_rt_sigprocmask, SIG_SETMASK, &mask, NULL, 8); }

static void ring_in(long us) {
    /* Again and again, since the first may come before the call that it is to end. */
    struct itimerval timer = {{0, us}, {0, us}};
    CALL(SYS_setitimer, ITIMER_REAL, &timer, NULL);
}

static void signals_step(void) {
    int signal = any_signal();
    struct pointer at = any_pointer();
    uint64_t set = any_set(), old = 0;
    int bad_signal = (int)PICK(0, -1, 65, 64, SIGKILL, SIGSTOP, 100);
    int size = one_in(16) ? (int)PICK(0, 4, 16) : 8;
    pid_t self = (pid_t)CALL(SYS_getpid), thread = (pid_t)CALL(SYS_gettid);
    say("%u ", step);
    switch (below(15)) {
    case 0:
    case 1: {
        unsigned long flags = (unsigned long)PICK(0, SA_RESTART, SA_NODEFER, SA_ONSTACK, SA_RESTART | SA_ONSTACK);
        int harmless = signal == SIGCHLD || signal == SIGURG || signal == SIGWINCH;
        struct kernel_action action = {(void *)note_signal, flags | SA_SIGINFO | 0x04000000, restorer, set};
        struct kernel_action before = {0};
        if (harmless && one_in(3))
            action.flags |= SA_RESETHAND;
        if (harmless && one_in(4))
            action.handler = (void *)SIG_DFL;
        if (one_in(5))
            action.handler = (void *)SIG_IGN;
        say("sigaction(%d, flags %#lx, %s, %#lx, %d)", signal, action.flags,
            action.handler == (void *)note_signal ? "note" : action.handler ? "ignore" : "default",
            (unsigned long)set, size);
        recorded(CALL(SYS_rt_sigaction, signal, &action, &before, size));
        say(" before %s %#lx %#lx", before.handler == (void *)note_signal ? "note" : before.handler ? "ignore" : "default",
            before.flags, (unsigned long)before.mask);
        break;
    }
    case 2: {
        struct kernel_action action = {SIG_IGN, 0, NULL, 0};
        say("sigaction(%d)", bad_signal);
        recorded(CALL(SYS_rt_sigaction, bad_signal == 64 ? 65 : bad_signal, &action, NULL, size));
        say(" sigaction(%d, %s)", signal, at.name);
        recorded(CALL(SYS_rt_sigaction, signal, NULL, at.at == ground ? at.at : NULL, 8));
        break;
    }
    case 3:
    case 4:
    case 5: {
        int how = (int)PICK(SIG_BLOCK, SIG_UNBLOCK, SIG_SETMASK, SIG_UNBLOCK, 77, -1);
        say("sigprocmask(%d, %#lx, %d)", how, (unsigned long)set, size);
        recorded(CALL(SYS_rt_sigprocmask, how, &set, &old, size));
        say(" before %#lx", (unsigned long)old);
        break;
    }
    case 6:
        say("sigpending(%d)", size);
        recorded(CALL(SYS_rt_sigpending, &old, size));
        say(" %#lx", (unsigned long)old);
        break;
    case 7:
    case 8:
        say("kill(self, %d)", signal);
        recorded(CALL(SYS_kill, self, signal));
        break;
    case 9:
        say("tgkill(self, self, %d)", signal);
        recorded(CALL(SYS_tgkill, self, thread, signal));
        break;
    case 10: {
        int which = (int)below(5);
        say("bad kill %d", which);
        recorded(which == 0   ? CALL(SYS_kill, self, PICK(-1, 65, 100))
             : which == 1 ? CALL(SYS_kill, 4000000, signal)
             : which == 2 ? CALL(SYS_tgkill, self, 4000000, signal)
             : which == 3 ? CALL(SYS_tgkill, self, thread, PICK(65, -1, 0))
                          : CALL(SYS_tgkill, PICK(0, -1, 4000000), PICK(0, thread), signal));
        break;
    }
    case 11: {
        struct timespec none = {0, PICK(0, 0, 0, -1, 1000000000)};
        siginfo_t info;
        memset(&info, 0, sizeof info);
        say("sigtimedwait(%#lx, %ld, %d)", (unsigned long)set, none.tv_nsec, size);
        long got = recorded(CALL(SYS_rt_sigtimedwait, &set, &info, &none, size));
        if (got > 0)
            say(" signo %d code %d", info.si_signo, info.si_code);
        break;
    }
    case 12: {
        int which = (int)below(6);
        stack_t stack = {.ss_sp = other_stack, .ss_size = sizeof other_stack}, before;
        memset(&before, 0, sizeof before);
        if (which == 0)
            stack.ss_size = (size_t)PICK(0, 100, 2047);
        if (which == 1)
            stack.ss_flags = (int)PICK(SS_DISABLE, 4, SS_ONSTACK, SS_DISABLE | SS_ONSTACK);
        say("sigaltstack(%zu, %#x)", stack.ss_size, stack.ss_flags);
        recorded(CALL(SYS_sigaltstack, which == 5 ? NULL : &stack, &before));
        say(" before %s %zu %#x", before.ss_sp == other_stack ? "there" : before.ss_sp ? "elsewhere" : "none",
            before.ss_size, before.ss_flags);
        break;
    }
    case 13: {
        /* A call that waits is ended by SIGALRM, or made again. */
        int which = (int)below(6), again = (int)below(2);
        uint64_t all = any_set() & ~bit_of(SIGKILL), mask = 0;
        CALL(SYS_rt_sigprocmask, SIG_BLOCK, NULL, &mask, 8);
        set_mask(~0ull & ~bit_of(SIGALRM));
        install(SIGALRM, again ? SA_RESTART : 0, 0);
        struct timespec long_time = {5, 0}, rest = {7, 7};
        say("interrupted %d%s", which, again ? " again" : "");
        char byte;
        alarm_writes = again;
        ring_in(2000);
        if (which == 0) {
            recorded(CALL(SYS_read, quiet_pipe[0], &byte, 1));
        } else if (which == 1) {
            recorded(CALL(SYS_nanosleep, &long_time, &rest));
            say(" rest %s", rest.tv_sec == 4 ? "some" : "none");
        } else if (which == 2) {
            recorded(CALL(SYS_poll, NULL, 0, 5000));
        } else if (which == 3) {
            uint64_t only = ~bit_of(SIGALRM);
            recorded(CALL(SYS_rt_sigsuspend, &only, 8));
        } else if (which == 4) {
            uint32_t word = 0;
            recorded(CALL(SYS_futex, &word, 0, 0, &long_time));
        } else {
            uint64_t others = bit_of(SIGUSR1) & all;
            CALL(SYS_rt_sigtimedwait, &others, NULL, &long_time, 8);
        }
        ring_in(0);
        /* What the handler wrote goes away. */
        CALL(SYS_fcntl, quiet_pipe[0], F_SETFL, O_NONBLOCK);
        while (CALL(SYS_read, quiet_pipe[0], &byte, 1) == 1)
            ;
        CALL(SYS_fcntl, quiet_pipe[0], F_SETFL, 0);
        say(" %s", caught_count > 0 && caught[0].signal == SIGALRM && caught[0].code == SI_KERNEL
                       ? "rung"
                       : "quiet");
        caught_count = 0;
        set_mask(mask);
        break;
    }
    default: {
        struct itimerval timer = {{0, 0}, {100, PICK(0, 999999, 1000000, -1)}}, before;
        int which = (int)PICK(0, 0, 1, 2, 3, -1);
        memset(&before, 0, sizeof before);
        if (which == 1 || which == 2)
            which = 3;
        say("setitimer(%d, %ld)", which, (long)timer.it_value.tv_usec);
        recorded(CALL(SYS_setitimer, which, &timer, &before));
        say(" getitimer");
        recorded(CALL(SYS_getitimer, which, &before));
        say(" %s", before.it_value.tv_sec >= 99 ? "running" : "still");
        long left = CALL(SYS_alarm, 0);
        say(" alarm %s", left >= 99 ? "left" : "none");
        break;
    }
    }
    say_caught();
    say("\n");
}
