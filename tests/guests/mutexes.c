/* Locks that the kernel knows of: with an owner that inherits priority, and robust ones that outlive theirs;
   and threads by `clone3`. Each path tells what the calls gave; on the host the same program tells the same. */
#include "guest.h"
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>

enum { THREADS = 8, TURNS = 400 };

static pthread_mutex_t mutex;
static volatile int counted, inside, broken, arrived;

static void make(int inherits, int robust, int kind) {
    pthread_mutexattr_t how;
    pthread_mutexattr_init(&how);
    pthread_mutexattr_settype(&how, kind);
    if (inherits)
        tell_result("inherits", -pthread_mutexattr_setprotocol(&how, PTHREAD_PRIO_INHERIT));
    if (robust)
        tell_result("robust", -pthread_mutexattr_setrobust(&how, PTHREAD_MUTEX_ROBUST));
    memset(&mutex, 0, sizeof mutex);
    tell_result("init", -pthread_mutex_init(&mutex, &how));
    counted = inside = broken = arrived = 0;
}

static const char *name_of(int error) {
    return error == 0            ? "0"
           : error == EOWNERDEAD ? "EOWNERDEAD"
           : error == EBUSY      ? "EBUSY"
           : error == EDEADLK    ? "EDEADLK"
           : error == EPERM      ? "EPERM"
           : error == ENOTRECOVERABLE ? "ENOTRECOVERABLE"
                                 : strerrorname(error);
}

static void *contends(void *argument) {
    for (int turn = 0; turn < TURNS; turn++) {
        if (pthread_mutex_lock(&mutex) != 0 || inside++ != 0)
            broken = 1;
        int seen = counted;
        if (turn % 16 == 0)
            sched_yield();
        if (turn % 64 == 0)
            nanosleep(&(struct timespec){0, 1000}, NULL);
        counted = seen + 1;
        inside--;
        if (pthread_mutex_unlock(&mutex) != 0)
            broken = 1;
    }
    return argument;
}

static void *locks_and_goes(void *argument) {
    tell("locked: %s\n", name_of(pthread_mutex_lock(&mutex)));
    arrived++;
    /* Others come to wait. */
    nanosleep(&(struct timespec){0, 30000000}, NULL);
    return argument;
}

static void *waits_for_it(void *argument) {
    while (arrived == 0)
        sched_yield();
    int error = pthread_mutex_lock(&mutex);
    if (error == EOWNERDEAD) {
        counted++;
        if (pthread_mutex_consistent(&mutex) != 0)
            broken = 1;
        error = 0;
    }
    if (error != 0)
        broken = 1;
    inside++;
    if (pthread_mutex_unlock(&mutex) != 0)
        broken = 1;
    return argument;
}

static void run(void *(*first)(void *), void *(*others)(void *), int count) {
    pthread_t threads[THREADS];
    for (int at = 0; at < count; at++)
        pthread_create(&threads[at], NULL, at == 0 ? first : others, NULL);
    for (int at = 0; at < count; at++)
        pthread_join(threads[at], NULL);
}

static void contended(int inherits, int robust) {
    make(inherits, robust, PTHREAD_MUTEX_NORMAL);
    run(contends, contends, THREADS);
    tell("counted: %d, broken: %d\n", counted, broken);
}

static void owner_dies(int inherits) {
    make(inherits, 1, PTHREAD_MUTEX_NORMAL);
    run(locks_and_goes, waits_for_it, THREADS);
    tell("learned of it: %d, got it: %d, broken: %d\n", counted, inside, broken);
    /* Nobody waits, and nobody mends it. */
    make(inherits, 1, PTHREAD_MUTEX_NORMAL);
    run(locks_and_goes, NULL, 1);
    tell("try: %s\n", name_of(pthread_mutex_trylock(&mutex)));
    tell("unlock: %s\n", name_of(pthread_mutex_unlock(&mutex)));
    tell("lock: %s\n", name_of(pthread_mutex_lock(&mutex)));
}

static void errors(int inherits) {
    make(inherits, 0, PTHREAD_MUTEX_ERRORCHECK);
    tell("not locked: %s\n", name_of(pthread_mutex_unlock(&mutex)));
    tell("lock: %s\n", name_of(pthread_mutex_lock(&mutex)));
    tell("again: %s\n", name_of(pthread_mutex_lock(&mutex)));
    tell("try: %s\n", name_of(pthread_mutex_trylock(&mutex)));
    tell("unlock: %s\n", name_of(pthread_mutex_unlock(&mutex)));
}

static volatile int rung;
static void ring(int signal) { rung += signal == SIGALRM; }

static volatile int let_go;

/* Holds the lock until some signals have come, or it is to let go. */
static void *holds(void *argument) {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, NULL);
    pthread_mutex_lock(&mutex);
    arrived = 1;
    while (!let_go && rung < 3)
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    pthread_mutex_unlock(&mutex);
    return argument;
}

/* A signal whose handler does not restart calls leaves the lock waited for. */
static void interrupted(int inherits) {
    make(inherits, 0, PTHREAD_MUTEX_NORMAL);
    struct sigaction action = {.sa_handler = ring};
    sigaction(SIGALRM, &action, NULL);
    pthread_t thread;
    pthread_create(&thread, NULL, holds, NULL);
    while (arrived == 0)
        sched_yield();
    ualarm(10000, 10000);
    tell("lock: %s\n", name_of(pthread_mutex_lock(&mutex)));
    ualarm(0, 0);
    tell("rung: %d\n", rung > 0);
    tell("unlock: %s\n", name_of(pthread_mutex_unlock(&mutex)));
    pthread_join(thread, NULL);
    struct timespec until;
    arrived = rung = 0;
    pthread_create(&thread, NULL, holds, NULL);
    while (arrived == 0)
        sched_yield();
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += 5000000;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    tell("timed: %s\n", name_of(pthread_mutex_timedlock(&mutex, &until)));
    let_go = 1;
    pthread_join(thread, NULL);
    tell("lock: %s\n", name_of(pthread_mutex_lock(&mutex)));
}

/* The kernel's own: an owner that ends, and is in no list; and the order in which a lock is handed over. */
static uint32_t word;
static volatile int order[THREADS], ordered, unlocked[THREADS];

static void *takes_word(void *argument) {
    int place = (int)(intptr_t)argument;
    nanosleep(&(struct timespec){0, place * 20000000L}, NULL);
    long got = syscall(SYS_futex, &word, 6 /* LOCK_PI */, 0, NULL);
    if (place == 0) {
        /* All the others wait; it is gone without giving the lock up, in no list. */
        nanosleep(&(struct timespec){0, THREADS * 20000000L + 100000000L}, NULL);
        return argument;
    }
    order[ordered++] = got == 0 && (word & 0x3fffffff) == (uint32_t)syscall(SYS_gettid) ? place : -1;
    if (place == 1)
        tell("the first learns of it: %d\n", (word & 0x40000000) != 0);
    /* Nothing is told behind it: the next one has the lock then. */
    unlocked[place] = syscall(SYS_futex, &word, 7 /* UNLOCK_PI */, 0, NULL) == 0;
    return argument;
}

static void words(void) {
    pthread_t threads[THREADS];
    for (int at = 0; at < THREADS; at++)
        pthread_create(&threads[at], NULL, takes_word, (void *)(intptr_t)at);
    for (int at = 0; at < THREADS; at++)
        pthread_join(threads[at], NULL);
    for (int at = 0; at < ordered; at++)
        tell("%d/%d ", order[at], unlocked[order[at] & 7]);
    tell("\nleft: %#x\n", word);
}

/* A signal for any thread wakes all that sleep, and one of them takes it: the others go on sleeping, and none has
   waited long enough. */
static uint32_t slept_on;
static volatile int caught, lasted, otherwise;

static void catch(int signal) {
    (void)signal;
    __atomic_add_fetch(&caught, 1, __ATOMIC_SEQ_CST);
}

static void *sleeps(void *argument) {
    struct timespec minute = {.tv_sec = 60}, *limit = argument ? &minute : NULL;
    __atomic_add_fetch(&arrived, 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&slept_on, __ATOMIC_SEQ_CST) == 0)
        if (syscall(SYS_futex, &slept_on, 0 /* WAIT */, 0, limit) != 0 && errno != EINTR && errno != EAGAIN)
            __atomic_add_fetch(&otherwise, 1, __ATOMIC_SEQ_CST);
    __atomic_add_fetch(&lasted, 1, __ATOMIC_SEQ_CST);
    return argument;
}

static void sleepers(void) {
    struct sigaction action = {.sa_handler = catch, .sa_flags = SA_RESTART};
    pthread_t threads[THREADS];
    sigaction(SIGUSR1, &action, NULL);
    arrived = 0;
    for (int at = 0; at < THREADS; at++)
        pthread_create(&threads[at], NULL, sleeps, at % 2 ? threads : NULL);
    while (arrived < THREADS)
        sched_yield();
    nanosleep(&(struct timespec){0, 20000000}, NULL);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    for (int turn = 0; turn < 10; turn++) {
        kill(getpid(), SIGUSR1);
        /* One that is pending still would take the next one in. */
        for (int wait = 0; wait < 5000 && caught <= turn; wait++)
            nanosleep(&(struct timespec){0, 1000000}, NULL);
    }
    nanosleep(&(struct timespec){0, 5000000}, NULL);
    tell("caught: %d, lasted no longer: %d\n", caught, lasted);
    __atomic_store_n(&slept_on, 1, __ATOMIC_SEQ_CST);
    syscall(SYS_futex, &slept_on, 1 /* WAKE */, THREADS, NULL);
    for (int at = 0; at < THREADS; at++)
        pthread_join(threads[at], NULL);
    tell("woken: %d, otherwise: %d\n", lasted, otherwise);
}

struct arguments {
    uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid,
        set_tid_size, cgroup, unknown;
};

static volatile int started;
static uint32_t child_id;

__attribute__((used)) static void child(void) {
    started = 1;
    for (;;)
        __asm__ volatile("syscall" : : "a"(SYS_exit), "D"(0) : "rcx", "r11", "memory");
}

static long call_clone3(const struct arguments *arguments, size_t bytes) {
    long answer;
    __asm__ volatile("syscall\n\t"
                     "test %%rax, %%rax\n\t"
                     "jnz 1f\n\t"
                     "xor %%ebp, %%ebp\n\t"
                     "call child\n"
                     "1:"
                     : "=a"(answer)
                     : "a"(435), "D"(arguments), "S"(bytes)
                     : "rcx", "r11", "memory");
    errno = answer < 0 ? (int)-answer : 0;
    return answer < 0 ? -1 : answer > 0;
}

static void clone3(void) {
    const uint64_t flags = 0x3d0f00 & ~0x80000ull; /* as pthread_create does, but for the thread pointer */
    char *stack = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct arguments good = {.flags = flags, .stack = (uint64_t)stack, .stack_size = 65536,
                             .parent_tid = (uint64_t)&child_id, .child_tid = (uint64_t)&child_id};
    tell_result("a thread", call_clone3(&good, 64));
    /* The kernel clears the id at the end. */
    while (*(volatile uint32_t *)&child_id != 0)
        sched_yield();
    tell("started: %d\n", started);
    started = 0;
    tell_result("longer", call_clone3(&good, sizeof good));
    while (*(volatile uint32_t *)&child_id != 0)
        sched_yield();
    tell("started: %d\n", started);
    struct arguments bad = good;
    tell_result("too short", call_clone3(&good, 63));
    tell_result("no pointer", call_clone3(NULL, 64));
    bad.unknown = 1;
    tell_result("something newer", call_clone3(&bad, sizeof bad) < 0 && errno == E2BIG ? 0 : 1);
    tell_result("too long", call_clone3(&good, 4097) < 0 && errno == E2BIG ? 0 : 1);
    bad = good, bad.exit_signal = SIGCHLD;
    tell_result("a signal at its end", call_clone3(&bad, 64));
    bad = good, bad.stack_size = 0;
    tell_result("no size", call_clone3(&bad, 64));
    bad = good, bad.stack = 0;
    tell_result("no stack", call_clone3(&bad, 64));
    bad = good, bad.flags &= ~0x800ull;
    tell_result("other handlers", call_clone3(&bad, 64));
    bad = good, bad.flags &= ~0x100ull;
    tell_result("other memory", call_clone3(&bad, 64));
    bad = good, bad.flags |= 1ull << 40;
    tell_result("unknown", call_clone3(&bad, 64));
    bad = good, bad.flags |= 17;
    tell_result("the old place of a signal", call_clone3(&bad, 64));
    bad = good, bad.set_tid_size = 1;
    tell_result("an id of nowhere", call_clone3(&bad, 80));
}

static void handle(const struct request *request) {
    int inherits = strstr(request->path, "/inheriting") != NULL;
    if (strncmp(request->path, "/contended", 10) == 0)
        contended(inherits, strstr(request->path, "/robust") != NULL);
    else if (strncmp(request->path, "/dead", 5) == 0)
        owner_dies(inherits);
    else if (strncmp(request->path, "/errors", 7) == 0)
        errors(inherits);
    else if (strncmp(request->path, "/interrupted", 12) == 0)
        interrupted(inherits);
    else if (is_path(request, "/words"))
        words();
    else if (is_path(request, "/sleepers"))
        sleepers();
    else if (is_path(request, "/clone3"))
        clone3();
    answer(request, "%s", told);
}

int main(int count, char **arguments) {
    serve_or_run(count, arguments, handle);
}
