/*
 * Signals to itself. No signal is sent that would end the program: every one that is used has a
 * handler, or is ignored, or is one that does nothing by default.
 * Left out: what a timer has left, and signals that come of one while others are looked at.
 */
#include <signal.h>
#include <sys/signalfd.h>
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

/* What comes with a signal, and how often. */
static void step_real_time(pid_t self, pid_t thread) {
    siginfo_t info;
    int signal = (int)PICK(SIGRTMIN, SIGRTMIN + 1, SIGUSR1, 64, 65, 0, -1);
    int code = (int)PICK(SI_QUEUE, SI_QUEUE, -77, SI_MESGQ, SI_USER, SI_TKILL);
    uint64_t only = 1ull << (SIGRTMIN - 1) | 1ull << SIGRTMIN | bit_of(SIGUSR1) | 1ull << 63, before = 0;
    memset(&info, 0, sizeof info);
    info.si_code = code;
    info.si_errno = (int)below(100);
    info.si_pid = 7;
    info.si_uid = 8;
    info.si_value.sival_int = (int)step;
    CALL(SYS_rt_sigprocmask, SIG_BLOCK, &only, &before, 8);
    int whom = one_in(6) ? 4000000 : self, times = (int)PICK(1, 1, 2, 3), to_thread = (int)below(2);
    say("sigqueue(%s, %d, code %d, %d times%s)", whom == self ? "self" : "nobody", signal, code, times,
        to_thread ? " to the thread" : "");
    for (int i = 0; i < times; i++)
        recorded(to_thread ? CALL(SYS_rt_tgsigqueueinfo, whom, thread, signal, &info)
                           : CALL(SYS_rt_sigqueueinfo, whom, signal, &info));
    struct timespec none = {0, 0};
    for (int i = 0; i < 5; i++) {
        memset(&info, 0, sizeof info);
        long got = CALL(SYS_rt_sigtimedwait, &only, &info, &none, 8);
        if (got <= 0)
            break;
        say(" <%ld code %d errno %d value %d>", got, info.si_code, info.si_errno, info.si_value.sival_int);
    }
    CALL(SYS_rt_sigprocmask, SIG_SETMASK, &before, NULL, 8);
}

static int signal_fd = -1;

static void step_descriptor(uint64_t set, struct pointer at) {
    struct signalfd_siginfo info[2];
    uint64_t before = 0, all = ~0ull;
    CALL(SYS_rt_sigprocmask, SIG_BLOCK, &all, &before, 8);
    int fd = one_in(3) ? signal_fd : -1, size = (int)PICK(8, 8, 8, 4);
    int flags = SFD_NONBLOCK | (int)PICK(0, SFD_CLOEXEC, 1);
    if (one_in(10))
        fd = (int)PICK(0, 1000);
    say("signalfd4(%d, %#lx, %d, %#x)", fd, (unsigned long)set, size, flags);
    long got = recorded(CALL(SYS_signalfd4, fd, &set, size, flags));
    if (got >= 0) {
        say(" flags %ld", CALL(SYS_fcntl, got, F_GETFD));
        if (signal_fd >= 0 && got != signal_fd)
            CALL(SYS_close, signal_fd);
        signal_fd = (int)got;
    }
    int bytes = (int)PICK(128, 256, 300, 127, 0);
    memset(info, 0, sizeof info);
    say(" read(%d)", bytes);
    got = recorded(CALL(SYS_read, signal_fd, at.at == ground ? (void *)ground : (void *)info, at.at == ground ? 0 : bytes));
    if (got > 0)
        say(" <%u code %d uid %u value %d>", info[0].ssi_signo, info[0].ssi_code, info[0].ssi_uid, info[0].ssi_int);
    CALL(SYS_rt_sigprocmask, SIG_SETMASK, &before, NULL, 8);
}

static int timers[4] = {-1, -1, -1, -1};

static void step_timer(void) {
    struct sigevent event;
    memset(&event, 0, sizeof event);
    event.sigev_notify = (int)PICK(SIGEV_SIGNAL, SIGEV_NONE, SIGEV_THREAD, 4, 9);
    event.sigev_signo = (int)PICK(SIGUSR1, SIGUSR2, 64, 0, 65, -1);
    int self = (int)CALL(SYS_gettid), other = one_in(4) ? 4000000 : self;
    memcpy((char *)&event + 16, &other, sizeof other);
    int place = (int)below(4), id = one_in(10) ? 4000000 : timers[place];
    int64_t clock = PICK(0, 1, 7, 11, 2, 3, 4, 5, 6, 10, 12, 99, -6, -2);
    struct itimerspec spec = {{PICK(0, 100), PICK(0, 0, 999999999)}, {PICK(0, 100, 100, -1), PICK(0, 5, 1000000000, -1)}}, got;
    memset(&got, 0, sizeof got);
    switch (below(5)) {
    case 0: {
        int made = -1, usual = (int)below(4) == 0;
        say("timer_create(%ld, %s%d, %d, %s)", (long)clock, usual ? "usual " : "", event.sigev_notify,
            event.sigev_signo, other == self ? "self" : "nobody");
        if (recorded(CALL(SYS_timer_create, clock, usual ? NULL : &event, &made)) == 0) {
            if (timers[place] >= 0)
                CALL(SYS_timer_delete, timers[place]);
            timers[place] = made;
        }
        break;
    }
    case 1:
    case 2:
        say("timer_settime(%s, {%ld.%ld, %ld.%ld})", id < 0 ? "none" : "one", spec.it_interval.tv_sec,
            spec.it_interval.tv_nsec, spec.it_value.tv_sec, spec.it_value.tv_nsec);
        /* One that rings at once is another one's matter. */
        if (spec.it_value.tv_sec == 0 && spec.it_value.tv_nsec == 5)
            spec.it_value.tv_nsec = 0;
        recorded(CALL(SYS_timer_settime, id, 0, one_in(10) ? NULL : &spec, &got));
        say(" was %ld %s", got.it_interval.tv_sec, got.it_value.tv_sec >= 99 ? "running" : "still");
        break;
    case 3:
        say("timer_gettime(%s)", id < 0 ? "none" : "one");
        recorded(CALL(SYS_timer_gettime, id, &got));
        say(" %ld.%ld %s", got.it_interval.tv_sec, got.it_interval.tv_nsec, got.it_value.tv_sec >= 99 ? "running" : "still");
        say(" missed");
        recorded(CALL(SYS_timer_getoverrun, id));
        break;
    default:
        say("timer_delete(%s)", id < 0 ? "none" : "one");
        recorded(CALL(SYS_timer_delete, id));
        if (id == timers[place])
            timers[place] = -1;
    }
}

static void signals_step(void) {
    int signal = any_signal();
    struct pointer at = any_pointer();
    uint64_t set = any_set(), old = 0;
    int bad_signal = (int)PICK(0, -1, 65, 64, SIGKILL, SIGSTOP, 100);
    int size = one_in(16) ? (int)PICK(0, 4, 16) : 8;
    pid_t self = (pid_t)CALL(SYS_getpid), thread = (pid_t)CALL(SYS_gettid);
    say("%u ", step);
    switch (below(24)) {
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
    case 14:
    case 15:
        step_real_time(self, thread);
        break;
    case 16:
    case 17:
    case 18:
        step_descriptor(set, at);
        break;
    case 19:
    case 20:
    case 21:
        step_timer();
        break;
    default: {
        struct itimerval timer = {{0, 0}, {100, PICK(0, 999999, 1000000, -1)}}, before;
        int which = (int)PICK(0, 0, 1, 2, 3, -1);
        memset(&before, 0, sizeof before);
        say("setitimer(%d, %ld)", which, (long)timer.it_value.tv_usec);
        recorded(CALL(SYS_setitimer, which, &timer, &before));
        say(" getitimer");
        recorded(CALL(SYS_getitimer, which, &before));
        say(" %s", before.it_value.tv_sec >= 99 ? "running" : "still");
        if (which == 1 || which == 2) {
            timer.it_value.tv_sec = timer.it_value.tv_usec = 0;
            CALL(SYS_setitimer, which, &timer, NULL);
        }
        long left = CALL(SYS_alarm, 0);
        say(" alarm %s", left >= 99 ? "left" : "none");
        break;
    }
    }
    say_caught();
    say("\n");
}
