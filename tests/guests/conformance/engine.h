/*
 * What the areas share: the random numbers, the transcript, raw system calls, and the pointers that
 * are worth trying. Nothing in a transcript depends on where or when it was made.
 */
#ifndef ENGINE_H
#define ENGINE_H

#include "../guest.h"
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

enum { PAGE = 4096, BUFFER_BYTES = 3 * PAGE, TRANSCRIPT_BYTES = 900 << 10 };

static char transcript[TRANSCRIPT_BYTES];
static size_t transcript_used;
static unsigned step;

__attribute__((format(printf, 1, 2))) static void say(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    size_t room = TRANSCRIPT_BYTES - transcript_used;
    int used = vsnprintf(transcript + transcript_used, room, format, arguments);
    va_end(arguments);
    transcript_used += (size_t)used < room ? (size_t)used : room - 1;
}

/* splitmix64 */
static uint64_t random_state;
static uint64_t draw(void) {
    uint64_t z = (random_state += 0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
}
static uint64_t below(uint64_t limit) { return draw() % limit; }
static int one_in(uint64_t n) { return below(n) == 0; }
#define PICK(...)                                                                                  \
    ({                                                                                             \
        const int64_t picks[] = {__VA_ARGS__};                                                     \
        picks[below(sizeof picks / sizeof *picks)];                                                \
    })

/* The kernel's own answer: a value, or an error number below zero. */
static long raw(long number, long a, long b, long c, long d, long e, long f) {
    long answer;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    __asm__ volatile("syscall"
                     : "=a"(answer)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return answer;
}
#define RAW7(n, a, b, c, d, e, f, ...)                                                             \
    raw(n, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))
#define CALL(...) RAW7(__VA_ARGS__, 0, 0, 0, 0, 0, 0, 0)

static const char *error_name(long error) {
    static const struct {
        int number;
        const char *name;
    } names[] = {
#define E(name) {name, #name}
        E(EPERM), E(ENOENT), E(ESRCH), E(EINTR), E(EIO), E(ENXIO), E(E2BIG), E(EBADF), E(ECHILD),
        E(EAGAIN), E(ENOMEM), E(EACCES), E(EFAULT), E(EBUSY), E(EEXIST), E(EXDEV), E(ENODEV),
        E(ENOTDIR), E(EISDIR), E(EINVAL), E(ENFILE), E(EMFILE), E(ENOTTY), E(ETXTBSY), E(EFBIG),
        E(ENOSPC), E(ESPIPE), E(EROFS), E(EMLINK), E(EPIPE), E(EDOM), E(ERANGE), E(EDEADLK),
        E(ENAMETOOLONG), E(ENOSYS), E(ENOTEMPTY), E(ELOOP), E(EOVERFLOW), E(ENOTSOCK),
        E(EOPNOTSUPP), E(EAFNOSUPPORT), E(ENOTCONN), E(ETIMEDOUT), E(ENODATA), E(EDESTADDRREQ),
        E(EMSGSIZE), E(EPROTOTYPE), E(ENOPROTOOPT), E(EPROTONOSUPPORT), E(ESOCKTNOSUPPORT),
        E(EADDRINUSE), E(EADDRNOTAVAIL), E(ECONNRESET), E(EISCONN), E(ECONNREFUSED), E(EALREADY),
        E(EINPROGRESS),
#undef E
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (names[i].number == -error)
            return names[i].name;
    static char other[24];
    snprintf(other, sizeof other, "E%ld", -error);
    return other;
}

/* " = 5" or " = EBADF"; the end of a line is the caller's. */
static long recorded(long answer) {
    if (answer < 0 && answer > -4096)
        say(" = %s", error_name(answer));
    else
        say(" = %ld", answer);
    return answer;
}

/* The same where the value is nobody's business. */
static long tell_success(long answer) {
    if (answer < 0 && answer > -4096)
        say(" = %s", error_name(answer));
    else
        say(" = fine");
    return answer;
}

static uint64_t hash_of(const void *bytes, size_t count) {
    const unsigned char *at = bytes;
    uint64_t hash = 0xcbf29ce484222325;
    for (size_t i = 0; i < count; i++)
        hash = (hash ^ at[i]) * 0x100000001b3;
    return hash;
}

static void say_hash(const void *bytes, size_t count) {
    say(" #%08x", (unsigned)(hash_of(bytes, count) ^ hash_of(bytes, count) >> 32));
}

/* A pointer and what a transcript calls it. */
struct pointer {
    char *at;
    const char *name;
    /* How many bytes can be read and written there. */
    size_t reads, writes;
};

/*
 * The ground that pointers lie on:
 *   buffer (3 pages, read/write) | closed page | read-only page | closed page
 */
static char *ground;
static struct pointer pointers[7];

static void lay_ground(void) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS;
    ground = mmap(NULL, BUFFER_BYTES + 3 * PAGE, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (ground == MAP_FAILED)
        exit(70);
    char *end = ground + BUFFER_BYTES;
    memset(end + PAGE, 'r', PAGE);
    if (mprotect(end, PAGE, PROT_NONE) != 0 || mprotect(end + PAGE, PAGE, PROT_READ) != 0 ||
        mprotect(end + 2 * PAGE, PAGE, PROT_NONE) != 0)
        exit(71);
    pointers[0] = (struct pointer){ground, "buffer", BUFFER_BYTES, BUFFER_BYTES};
    pointers[1] = (struct pointer){ground + 1, "buffer+1", BUFFER_BYTES - 1, BUFFER_BYTES - 1};
    pointers[2] = (struct pointer){end - 5, "edge", 5, 5};
    pointers[3] = (struct pointer){end + PAGE, "readonly", PAGE, 0};
    pointers[4] = (struct pointer){end, "closed", 0, 0};
    pointers[5] = (struct pointer){NULL, "null", 0, 0};
    pointers[6] = (struct pointer){(char *)0xdead000000000000, "wild", 0, 0};
}

/* Mostly a good one. */
static struct pointer any_pointer(void) {
    return pointers[one_in(3) ? below(7) : 0];
}

static void fill(char seed) {
    for (int i = 0; i < BUFFER_BYTES; i++)
        ground[i] = (char)(seed + i * 7 + i / 256);
}

/* Asks the kernel, so that nothing faults: '-', 'r' or 'w'. What can be written loses 8 bytes. */
static int can_read(const void *at) {
    return CALL(SYS_rt_sigprocmask, 99, at, 0, 8) == -EINVAL;
}
static int can_write(void *at) {
    return CALL(SYS_rt_sigprocmask, 0, 0, at, 8) == 0;
}

#endif
