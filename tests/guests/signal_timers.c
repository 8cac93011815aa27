/* timer_create and setitimer: what is sent, to whom, and what is told of what was missed. */
#include "guest.h"
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>

static volatile int rang, value, code, missed, tid;

static void on_timer(int signal, siginfo_t *info, void *context) {
    (void)signal, (void)context;
    rang++;
    value = info->si_value.sival_int;
    code = info->si_code;
    missed = info->si_overrun > missed ? info->si_overrun : missed;
    tid = (int)syscall(SYS_gettid);
}

static timer_t created(clockid_t clock, int notify, int thread) {
    struct sigevent event = {.sigev_notify = notify, .sigev_signo = SIGUSR1};
    event.sigev_value.sival_int = 42;
    memcpy((char *)&event + 16, &thread, sizeof thread);
    timer_t timer = NULL;
    tell_result("create", timer_create(clock, &event, &timer));
    return timer;
}

static void set(timer_t timer, long first_ms, long every_ms) {
    struct itimerspec spec = {{every_ms / 1000, every_ms % 1000 * 1000000}, {first_ms / 1000, first_ms % 1000 * 1000000}};
    tell_result("settime", timer_settime(timer, 0, &spec, NULL));
}

static void wait_for(int times) {
    for (int i = 0; i < 4000 && rang < times; i++)
        usleep(1000);
}

/* By the time that it used: other programs may have the machine meanwhile. */
static void spin_ms(long ms) {
    struct timespec from, now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &from);
    do
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    while ((now.tv_sec - from.tv_sec) * 1000 + (now.tv_nsec - from.tv_nsec) / 1000000 < ms);
}

static void *waits(void *id) {
    *(volatile int *)id = (int)syscall(SYS_gettid);
    for (int i = 0; i < 4000 && rang < 1; i++)
        usleep(1000);
    return NULL;
}

static void refused(void) {
    struct itimerspec spec = {{0, 0}, {0, 1000000000}};
    timer_t timer = NULL;
    struct sigevent event = {.sigev_notify = 77, .sigev_signo = SIGUSR1};
    tell_result("notify", syscall(SYS_timer_create, CLOCK_MONOTONIC, &event, &timer));
    event = (struct sigevent){.sigev_notify = SIGEV_SIGNAL, .sigev_signo = 65};
    tell_result("signal", syscall(SYS_timer_create, CLOCK_MONOTONIC, &event, &timer));
    tell_result("clock", syscall(SYS_timer_create, 99, NULL, &timer));
    tell_result("raw clock", syscall(SYS_timer_create, CLOCK_MONOTONIC_RAW, NULL, &timer));
    tell_result("none", syscall(SYS_timer_gettime, 12345, &spec));
    timer = created(CLOCK_MONOTONIC, SIGEV_SIGNAL, 0);
    tell_result("settime", timer_settime(timer, 0, &spec, NULL));
    tell_result("delete", timer_delete(timer));
    tell_result("overrun", syscall(SYS_timer_getoverrun, 12345));
    tell_result("delete", syscall(SYS_timer_delete, 12345));
}

static void handle(const struct request *request) {
    struct sigaction action = {.sa_sigaction = on_timer, .sa_flags = SA_SIGINFO};
    sigaction(SIGUSR1, &action, NULL);
    sigaction(SIGPROF, &action, NULL);
    struct itimerspec left;
    rang = value = code = missed = tid = 0;
    told[0] = '\0';
    if (is_path(request, "/signal")) {
        timer_t timer = created(CLOCK_MONOTONIC, SIGEV_SIGNAL, 0);
        set(timer, 5, 0);
        wait_for(1);
        tell("rang %d value %d code %d\n", rang, value, code);
        timer_gettime(timer, &left);
        tell("over: %d\n", left.it_value.tv_sec == 0 && left.it_value.tv_nsec == 0);
        set(timer, 5, 5);
        wait_for(4);
        tell("again and again: %d\n", rang >= 4);
        timer_gettime(timer, &left);
        tell("every: %ld\n", left.it_interval.tv_nsec);
        tell_result("delete", timer_delete(timer));
        int before = rang;
        usleep(20000);
        tell("quiet: %d\n", rang == before);
        tell_result("gone", timer_gettime(timer, &left));
    } else if (is_path(request, "/missed")) {
        sigset_t usr1;
        sigemptyset(&usr1);
        sigaddset(&usr1, SIGUSR1);
        sigprocmask(SIG_BLOCK, &usr1, NULL);
        timer_t timer = created(CLOCK_REALTIME, SIGEV_SIGNAL, 0);
        set(timer, 2, 2);
        usleep(40000);
        sigprocmask(SIG_UNBLOCK, &usr1, NULL);
        set(timer, 0, 0);
        tell("rang: %d\n", rang >= 1);
        tell("missed some: %d\n", missed > 3);
        timer_delete(timer);
    } else if (is_path(request, "/thread")) {
        pthread_t thread;
        volatile int id = 0;
        pthread_create(&thread, NULL, waits, (void *)&id);
        while (id == 0)
            usleep(1000);
        timer_t timer = created(CLOCK_MONOTONIC, 4, id);
        set(timer, 5, 0);
        pthread_join(thread, NULL);
        tell("to the thread: %d\n", tid == id);
        timer_delete(timer);
    } else if (is_path(request, "/none")) {
        timer_t timer = created(CLOCK_MONOTONIC, SIGEV_NONE, 0);
        set(timer, 5000, 0);
        timer_gettime(timer, &left);
        tell("left: %d\n", left.it_value.tv_sec == 4);
        set(timer, 1, 0);
        usleep(10000);
        timer_gettime(timer, &left);
        tell("over: %d\n", left.it_value.tv_sec == 0 && left.it_value.tv_nsec == 0);
        tell("rang: %d\n", rang);
        timer_delete(timer);
    } else if (is_path(request, "/cpu")) {
        struct itimerval every = {{0, 10000}, {0, 10000}}, none = {{0, 0}, {0, 0}}, before;
        setitimer(ITIMER_PROF, &every, NULL);
        usleep(100000);
        int asleep = rang;
        spin_ms(200);
        getitimer(ITIMER_PROF, &before);
        setitimer(ITIMER_PROF, &none, NULL);
        tell("rang in its sleep: %d\n", asleep > 3);
        tell("rang while it ran: %d\n", rang - asleep >= 3);
        tell("every: %ld\n", (long)before.it_interval.tv_usec);
    } else {
        refused();
    }
    answer(request, "%s", told);
}

int main(int count, char **arguments) {
    serve_or_run(count, arguments, handle);
}
