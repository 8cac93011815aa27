/* What calls and page faults cost a program: a line for each with nanoseconds, the least of several rounds. */
#include "guest.h"
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>

enum { ROUNDS = 5, CALLS = 500, PAGE = 4096 };
static const size_t RESERVED = 64UL << 20;

static uint64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

static uint64_t clock_calls(void) {
    struct timespec time;
    uint64_t start = now();
    for (int i = 0; i < CALLS; i++)
        clock_gettime(CLOCK_REALTIME, &time);
    return (now() - start) / CALLS;
}

static uint64_t library_calls(void) {
    uint64_t start = now();
    for (int i = 0; i < CALLS; i++)
        getppid();
    return (now() - start) / CALLS;
}

/* In a form that no compiler makes, so that it stays an instruction. */
static uint64_t instructions(void) {
    uint64_t start = now();
    for (int i = 0; i < CALLS; i++) {
        long number = SYS_getppid;
        __asm__ volatile("xchg %%rax, %%rax\n nop\n syscall\n nop"
                         : "+a"(number)
                         :
                         : "rcx", "r11", "memory");
    }
    return (now() - start) / CALLS;
}

/* Each page of a mapping once. */
static uint64_t touches(size_t bytes, size_t pages, size_t step) {
    volatile char *start = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (start == MAP_FAILED)
        return 0;
    uint64_t before = now();
    for (size_t page = 0; page < pages; page++)
        start[page * step % bytes] = 1;
    uint64_t each = (now() - before) / pages;
    munmap((void *)start, bytes);
    return each;
}

static uint64_t near_touches(void) {
    return touches(1 << 20, 256, PAGE);
}

static uint64_t far_touches(void) {
    return touches(RESERVED, 1024, PAGE);
}

static uint64_t scattered_touches(void) {
    return touches(RESERVED, 64, 1 << 20);
}

static uint64_t protections(void) {
    char *start = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED)
        return 0;
    uint64_t before = now();
    for (int i = 0; i < 50; i++) {
        mprotect(start, PAGE, PROT_READ);
        mprotect(start, PAGE, PROT_READ | PROT_WRITE);
    }
    uint64_t each = (now() - before) / 100;
    munmap(start, PAGE);
    return each;
}

static void handle(const struct request *request) {
    static const struct {
        const char *name;
        uint64_t (*measure)(void);
    } costs[] = {
        {"clock_gettime", clock_calls},
        {"system call by a C library", library_calls},
        {"system call by an instruction", instructions},
        {"first touch of a page of a small mapping", near_touches},
        {"first touch of a page of a large mapping, in order", far_touches},
        {"first touch of a page of a large mapping, a MiB apart", scattered_touches},
        {"mprotect of a page", protections},
    };
    char text[1024];
    int used = 0;
    for (size_t n = 0; n < sizeof costs / sizeof *costs; n++) {
        uint64_t least = UINT64_MAX;
        for (int round = 0; round < ROUNDS; round++) {
            uint64_t cost = costs[n].measure();
            least = cost < least ? cost : least;
        }
        used += snprintf(text + used, sizeof text - (size_t)used, "%s\t%llu\n", costs[n].name,
                         (unsigned long long)least);
    }
    answer(request, "%s", text);
}

int main(void) {
    serve(handle);
}
