/* Signals that carry something. Each path tells what the calls gave; on the host the same program tells the
   same. */
#include "guest.h"
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>

static struct {
    int signal, code, value;
} caught[64];
static volatile int caught_count;

static void note(int signal, siginfo_t *info, void *context) {
    (void)context;
    if (caught_count < 64) {
        caught[caught_count].signal = signal == info->si_signo ? signal : -1;
        caught[caught_count].code = info->si_code;
        caught[caught_count].value = info->si_value.sival_int;
        caught_count++;
    }
}

static void tell_caught(const char *what) {
    tell("%s:", what);
    for (int at = 0; at < caught_count; at++)
        tell(" %s%d/%d/%d", caught[at].signal >= SIGRTMIN ? "rt" : "",
             caught[at].signal - (caught[at].signal >= SIGRTMIN ? SIGRTMIN : 0), caught[at].code,
             caught[at].code == SI_QUEUE ? caught[at].value : 0);
    tell("\n");
    caught_count = 0;
}

static void hold(int how) {
    sigset_t all;
    sigemptyset(&all);
    for (int signal = 0; signal < 3; signal++)
        sigaddset(&all, SIGRTMIN + signal);
    sigaddset(&all, SIGUSR1);
    sigaddset(&all, SIGUSR2);
    pthread_sigmask(how, &all, NULL);
}

static long carry(int signal, int value) {
    return sigqueue(getpid(), signal, (union sigval){.sival_int = value});
}

static long raw(int signal, int code, int to_thread) {
    siginfo_t info;
    memset(&info, 0, sizeof info);
    info.si_code = code;
    info.si_value.sival_int = 77;
    return to_thread ? syscall(SYS_rt_tgsigqueueinfo, getpid(), syscall(SYS_gettid), signal, &info)
                     : syscall(SYS_rt_sigqueueinfo, getpid(), signal, &info);
}

static volatile int is_there, may_go;

static void *is_sent_to(void *argument) {
    hold(SIG_BLOCK);
    *(int *)argument = (int)syscall(SYS_gettid);
    is_there = 1;
    while (!may_go)
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    sigset_t one;
    sigemptyset(&one);
    sigaddset(&one, SIGRTMIN);
    siginfo_t info;
    memset(&info, 0, sizeof info);
    tell("waited: %d", sigtimedwait(&one, &info, &(struct timespec){1, 0}) == SIGRTMIN);
    tell(" code %d value %d\n", info.si_code, info.si_value.sival_int);
    return NULL;
}

static void handle(const struct request *request) {
    struct sigaction action = {.sa_sigaction = note, .sa_flags = SA_SIGINFO};
    sigfillset(&action.sa_mask);
    for (int signal = 0; signal < 3; signal++)
        sigaction(SIGRTMIN + signal, &action, NULL);
    sigaction(SIGUSR1, &action, NULL);
    sigaction(SIGUSR2, &action, NULL);

    tell_result("at once", carry(SIGRTMIN, 5));
    tell_caught("at once");
    /* Real-time signals are queued, and the lowest comes first; the older ones are pending once. */
    hold(SIG_BLOCK);
    for (int value = 1; value < 4; value++) {
        carry(SIGRTMIN + 1, value);
        carry(SIGRTMIN, 10 + value);
        carry(SIGUSR1, 20 + value);
    }
    kill(getpid(), SIGRTMIN + 1);
    kill(getpid(), SIGRTMIN + 1);
    kill(getpid(), SIGUSR2);
    carry(SIGUSR2, 30);
    hold(SIG_UNBLOCK);
    tell_caught("queued");
    /* Taken one by one. */
    hold(SIG_BLOCK);
    carry(SIGRTMIN + 2, 41);
    carry(SIGRTMIN + 2, 42);
    sigset_t one;
    sigemptyset(&one);
    sigaddset(&one, SIGRTMIN + 2);
    for (int turn = 0; turn < 3; turn++) {
        siginfo_t info;
        memset(&info, 0, sizeof info);
        int got = sigtimedwait(&one, &info, &(struct timespec){0, 0});
        tell("taken: %d code %d value %d pid %d\n", got == SIGRTMIN + 2, info.si_code,
             info.si_value.sival_int, info.si_pid == (got > 0 ? getpid() : 0));
    }
    /* Ignored, and then not: nothing is left. */
    carry(SIGRTMIN, 51);
    signal(SIGRTMIN, SIG_IGN);
    sigaction(SIGRTMIN, &action, NULL);
    hold(SIG_UNBLOCK);
    tell_caught("forgotten");
    /* What one may say of oneself. */
    static const int codes[] = {SI_QUEUE, SI_USER, SI_TKILL, SI_TIMER, SI_KERNEL, -5, 3};
    for (size_t at = 0; at < sizeof codes / sizeof *codes; at++) {
        tell_result("raw", raw(SIGUSR1, codes[at], 0));
        tell_result("raw to the thread", raw(SIGUSR1, codes[at], 1));
    }
    tell_caught("raw");
    tell_result("none", raw(0, SI_QUEUE, 0));
    tell_result("too high", raw(65, SI_QUEUE, 0));
    tell_result("nobody", sigqueue(999999, SIGUSR1, (union sigval){.sival_int = 1}) < 0 && errno == ESRCH);
    tell_result("no pointer",
                syscall(SYS_rt_sigqueueinfo, getpid(), SIGUSR1, NULL) < 0 && errno == EFAULT);
    tell_result("no process", syscall(SYS_rt_tgsigqueueinfo, 0, 1, SIGUSR1, NULL) < 0);
    /* To another thread. */
    int id = 0;
    pthread_t thread;
    hold(SIG_BLOCK);
    pthread_create(&thread, NULL, is_sent_to, &id);
    while (!is_there)
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    siginfo_t info;
    memset(&info, 0, sizeof info);
    info.si_code = SI_QUEUE;
    info.si_value.sival_int = 99;
    tell_result("to a thread", syscall(SYS_rt_tgsigqueueinfo, getpid(), id, SIGRTMIN, &info));
    info.si_code = SI_USER;
    tell_result("as the kernel", syscall(SYS_rt_tgsigqueueinfo, getpid(), id, SIGRTMIN, &info) < 0 &&
                                     errno == EPERM);
    may_go = 1;
    pthread_join(thread, NULL);
    hold(SIG_UNBLOCK);
    tell_caught("not here");
    answer(request, "%s", told);
}

int main(int count, char **arguments) {
    serve_or_run(count, arguments, handle);
}
