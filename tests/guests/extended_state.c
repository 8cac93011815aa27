/*
 * Waits with a value in each register of the extended state (x87, SSE, and AVX and AVX-512 where there are) and
 * says whether they are still there when a request has come. It answers with other values in all of them.
 */
#include "guest.h"
#include <sys/syscall.h>

/* Bytes of the state in standard format up to the end of AVX-512 (Intel SDM volume 1, 13.4). */
enum { STATE_BYTES = 2688, HEADER = 512, BEHIND_HEADER = 576 };

static unsigned char loaded[4096] __attribute__((aligned(64)));
static unsigned char expected[4096] __attribute__((aligned(64)));
static unsigned char found[4096] __attribute__((aligned(64)));

static uint64_t enabled(void) {
    uint32_t low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

/* What `loaded` is to hold: other values for each seed, all exceptions masked. */
static void make_state(uint32_t seed) {
    memset(loaded, 0, sizeof loaded);
    for (int at = 32; at < STATE_BYTES; at++) {
        seed = seed * 1664525 + 1013904223;
        int is_register = (at < 416 && (at >= 160 || at % 16 < 10)) || at >= BEHIND_HEADER;
        if (is_register)
            loaded[at] = (unsigned char)(seed >> 24);
    }
    uint16_t x87_control = (uint16_t)(0x37F | (seed >> 8 & 3) << 10);
    uint32_t mxcsr = 0x1F80 | (seed >> 8 & 3) << 13;
    uint64_t parts = enabled();
    memcpy(loaded, &x87_control, 2);
    loaded[4] = 0xFF;
    memcpy(loaded + 24, &mxcsr, 4);
    memcpy(loaded + HEADER, &parts, 8);
}

/* A system call with `loaded` in the registers; `after` is what they hold right behind it. */
static long call_with_state(long number, long a, const void *b, long c, void *after) {
    register long which __asm__("r12") = number;
    register long third __asm__("r13") = c;
    register void *to __asm__("r14") = after;
    register void *from __asm__("r8") = loaded;
    long result;
    __asm__ volatile("mov $-1, %%eax\n\tmov $-1, %%edx\n\txrstor64 (%[loaded])\n\t"
                     "mov %[number], %%rax\n\tmov %[third], %%rdx\n\tsyscall\n\t"
                     "mov %%rax, %%r15\n\tmov $-1, %%eax\n\tmov $-1, %%edx\n\txsave64 (%[after])\n\t"
                     "mov %%r15, %%rax"
                     : "=a"(result)
                     : [loaded] "r"(from), [number] "r"(which), "D"(a), "S"(b), [third] "r"(third), [after] "r"(to)
                     : "rdx", "rcx", "r11", "r15", "memory");
    return result;
}

int main(void) {
    int fd = listener();
    static unsigned char unread[4096] __attribute__((aligned(64)));
    for (;;) {
        make_state(1);
        call_with_state(SYS_getpid, 0, NULL, 0, expected);
        long connection = call_with_state(SYS_accept, fd, NULL, 0, found);
        struct request request;
        if (connection < 0 || !read_request((int)connection, &request))
            return 94;
        int same = memcmp(found, expected, STATE_BYTES) == 0;
        int differs_at = 0;
        while (!same && found[differs_at] == expected[differs_at])
            differs_at++;
        char text[256], body[128];
        int bytes = is_path(&request, "/ok") ? snprintf(body, sizeof body, "ok\n")
                    : same ? snprintf(body, sizeof body, "as before the wait\n")
                           : snprintf(body, sizeof body, "another at byte %d\n", differs_at);
        int used = snprintf(text, sizeof text, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", bytes, body);
        make_state((uint32_t)number_after(&request, "/", 2) + 2);
        call_with_state(SYS_write, connection, text, used, unread);
        close((int)connection);
    }
}
