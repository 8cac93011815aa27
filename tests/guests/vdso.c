/* Finds the vDSO as a C library does, where each function has to lie within it, and answers whether each of its functions says the same as the system
 * call of that name, and how many nanoseconds a call takes by either way. On /deep it reads the clock all the
 * way down a thread's stack, and on /turns in a loop that ends when another thread has had its turn. */
#include "guest.h"
#include <elf.h>
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>

static void *find(const char *name) {
    const char *base = (const char *)getauxval(AT_SYSINFO_EHDR);
    if (!base)
        return NULL;
    const Elf64_Ehdr *header = (const void *)base;
    const Elf64_Phdr *segment = (const void *)(base + header->e_phoff);
    const Elf64_Dyn *dynamic = NULL;
    const char *load = NULL, *end = NULL;
    for (int i = 0; i < header->e_phnum; i++) {
        if (segment[i].p_type == PT_LOAD) {
            load = base + segment[i].p_offset - segment[i].p_vaddr;
            end = base + segment[i].p_offset + segment[i].p_memsz;
        }
        if (segment[i].p_type == PT_DYNAMIC)
            dynamic = (const void *)(base + segment[i].p_offset);
    }
    const char *names = NULL;
    const Elf64_Sym *symbols = NULL;
    const uint32_t *hash = NULL;
    for (; dynamic && dynamic->d_tag; dynamic++) {
        const char *at = load + dynamic->d_un.d_ptr;
        if (dynamic->d_tag == DT_STRTAB)
            names = at;
        if (dynamic->d_tag == DT_SYMTAB)
            symbols = (const void *)at;
        if (dynamic->d_tag == DT_HASH)
            hash = (const void *)at;
    }
    if (!names || !symbols || !hash)
        return NULL;
    /* By the chain, as a dynamic linker goes; it has to lead to every symbol. */
    for (uint32_t i = hash[2]; i; i = hash[2 + hash[0] + i]) {
        uint64_t at = symbols[i].st_value;
        if (!strcmp(names + symbols[i].st_name, name))
            return at < (uint64_t)(end - load) ? (void *)(load + at) : NULL;
    }
    return NULL;
}

static int64_t ns(const struct timespec *time) {
    return time->tv_sec * 1000000000LL + time->tv_nsec;
}

static int close_by(int64_t a, int64_t b) {
    return a <= b && b - a < 1000000000LL;
}

static volatile int turned;

__attribute__((noinline)) static long deeper(int depth) {
    volatile char frame[200];
    struct timespec time;
    frame[depth % 200] = 1;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return depth == 0 ? frame[0] : deeper(depth - 1) + (time.tv_sec > 0) + frame[depth % 200];
}

static void *dive(void *argument) {
    *(long *)argument = deeper(350);
    return NULL;
}

static void *turn(void *argument) {
    turned = 1;
    return argument;
}

static void with_thread(const struct request *request, void *(*start)(void *), int loops) {
    pthread_t thread;
    long result = 0;
    turned = 0;
    if (pthread_create(&thread, NULL, start, &result))
        exit(93);
    struct timespec time;
    while (loops && !turned)
        clock_gettime(CLOCK_MONOTONIC, &time);
    pthread_join(thread, NULL);
    answer(request, "%s\n", loops || result > 0 ? "done" : "not done");
}

static void handle(const struct request *request) {
    if (!strcmp(request->path, "/deep")) {
        with_thread(request, dive, 0);
        return;
    }
    if (!strcmp(request->path, "/turns")) {
        with_thread(request, turn, 1);
        return;
    }
    int (*gettime)(clockid_t, struct timespec *) = find("__vdso_clock_gettime");
    int (*getres)(clockid_t, struct timespec *) = find("__vdso_clock_getres");
    int (*of_day)(struct timeval *, void *) = find("__vdso_gettimeofday");
    time_t (*seconds)(time_t *) = find("__vdso_time");
    int (*cpu)(unsigned *, unsigned *) = find("__vdso_getcpu");
    if (!gettime || !getres || !of_day || !seconds || !cpu) {
        answer(request, "a function is missing\n");
        return;
    }
    struct timespec a, b;
    for (clockid_t clock = 0; clock < 8; clock++) {
        if (gettime(clock, &a) || syscall(SYS_clock_gettime, clock, &b) ||
            !close_by(ns(&a), ns(&b))) {
            answer(request, "clock %d differs\n", clock);
            return;
        }
    }
    struct timeval day;
    time_t now = 0, then = seconds(&now);
    unsigned which = 7, node = 7;
    int right = getres(CLOCK_MONOTONIC, &a) == 0 && a.tv_sec == 0 && a.tv_nsec >= 1 &&
                gettime(-77, &a) == -EINVAL && gettime(CLOCK_REALTIME, (void *)16) == -EFAULT &&
                of_day(&day, NULL) == 0 && day.tv_sec - then <= 1 && now == then &&
                cpu(&which, &node) == 0 && which == 0 && node == 0;
    enum { CALLS = 2000 };
    struct timespec start, middle, end;
    gettime(CLOCK_MONOTONIC, &start);
    for (int i = 0; i < CALLS; i++)
        clock_gettime(CLOCK_MONOTONIC, &a);
    gettime(CLOCK_MONOTONIC, &middle);
    for (int i = 0; i < CALLS; i++)
        syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &a);
    gettime(CLOCK_MONOTONIC, &end);
    answer(request, "%s %lld %lld\n", right ? "right" : "wrong",
           (long long)(ns(&middle) - ns(&start)) / CALLS,
           (long long)(ns(&end) - ns(&middle)) / CALLS);
}

int main(void) {
    serve(handle);
}
