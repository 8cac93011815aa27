/* Addresses by the tebibyte, as sandboxes and collectors reserve them, of which little is ever used. Each path tells
   what the calls gave; on the host the same program tells the same. `/cost/N` tells what N GiB take. */
#include "guest.h"
#include <sys/mman.h>
#include <time.h>

#define TIB (1UL << 40)
#define GIB (1UL << 30)
enum { PAGE = 4096, BOTH = PROT_READ | PROT_WRITE, OWN = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE };

static char *reserve(void *hint, size_t bytes, int flags) {
    char *at = mmap(hint, bytes, PROT_NONE, OWN | flags, -1, 0);
    if (at == MAP_FAILED)
        tell("%zu GiB: %s\n", bytes / GIB, strerrorname(errno));
    return at;
}

static void one_piece(size_t bytes) {
    char *all = reserve(NULL, bytes, 0);
    if (all == MAP_FAILED)
        return;
    tell("reserved: %zu TiB\n", bytes / TIB);
    /* Opened in places far from each other, written to, and given up again. */
    int wrong = 0;
    for (size_t place = 0; place < 64; place++) {
        char *at = all + bytes / 64 * place + place * PAGE;
        wrong += mprotect(at, 2 * PAGE, BOTH) != 0;
        wrong += at[0] != 0;
        at[0] = (char)(place + 1), at[2 * PAGE - 1] = 7;
    }
    for (size_t place = 0; place < 64; place++) {
        char *at = all + bytes / 64 * place + place * PAGE;
        wrong += at[0] != (char)(place + 1) || at[2 * PAGE - 1] != 7;
        wrong += madvise(at, PAGE, MADV_DONTNEED) != 0;
        wrong += at[0] != 0 || at[2 * PAGE - 1] != 7;
        wrong += mprotect(at, 2 * PAGE, PROT_NONE) != 0;
    }
    tell("wrong: %d\n", wrong);
    /* Ends cut off, as for a larger alignment, and something else in its middle. */
    tell_result("head", munmap(all, 4 * GIB));
    tell_result("tail", munmap(all + bytes - GIB, GIB));
    char *middle = all + bytes / 2;
    tell("in the middle: %d\n", mmap(middle, GIB, BOTH, OWN | MAP_FIXED, -1, 0) == middle);
    middle[GIB - 1] = 5;
    tell("not over it: %s\n", mmap(middle - PAGE, 2 * PAGE, BOTH, OWN | MAP_FIXED_NOREPLACE, -1, 0) == MAP_FAILED
                                  ? strerrorname(errno)
                                  : "there");
    tell("at its head: %d\n", mmap(all, PAGE, BOTH, OWN | MAP_FIXED_NOREPLACE, -1, 0) == all);
    tell_result("all of it", munmap(all, bytes));
    tell("again: %d\n", mmap(middle, PAGE, BOTH, OWN | MAP_FIXED_NOREPLACE, -1, 0) == middle && middle[0] == 0);
    munmap(middle, PAGE);
}

static void wishes(void) {
    /* Where Go, sanitizers and collectors that colour pointers want to be. */
    const size_t hints[] = {0xc000000000, 0x10007fff8000, 4 * TIB, 8 * TIB, 0x700000000000, 100 * GIB};
    for (size_t i = 0; i < sizeof hints / sizeof *hints; i++) {
        char *hint = (char *)(hints[i] & ~0xfffUL), *at = reserve(hint, 32 * GIB, 0);
        tell("%#zx: %d\n", hints[i], at == hint);
        char *other = reserve(hint, GIB, 0);
        tell("taken: %d\n", other != hint && other != MAP_FAILED);
        mprotect(at + 31 * GIB, PAGE, BOTH);
        at[31 * GIB] = 1;
        munmap(at, 32 * GIB), munmap(other, GIB);
    }
    /* The same memory at three places, by which the colour of a pointer is one of them. */
    int fd = memfd_create("colours", 0), wrong = ftruncate(fd, 1 << 20);
    for (size_t colour = 1; colour <= 4; colour *= 2)
        wrong += mmap((void *)(colour * 4 * TIB), 1 << 20, BOTH, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED;
    *(long *)(4 * TIB + 5000) = 77;
    wrong += *(long *)(8 * TIB + 5000) != 77 || *(long *)(16 * TIB + 5000) != 77;
    tell("colours wrong: %d\n", wrong);
    for (size_t colour = 1; colour <= 4; colour *= 2)
        munmap((void *)(colour * 4 * TIB), 1 << 20);
    close(fd);
    const size_t beyond[] = {1UL << 62, (size_t)-PAGE};
    for (size_t i = 0; i < sizeof beyond / sizeof *beyond; i++)
        tell("behind the end: %d\n", mmap((void *)beyond[i], PAGE, BOTH, OWN | MAP_FIXED, -1, 0) != MAP_FAILED);
    tell("too large: %d\n", mmap(NULL, 1UL << 47, PROT_NONE, OWN, -1, 0) == MAP_FAILED);
}

static long now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000L + time.tv_nsec;
}

static void cost(size_t bytes) {
    long least = 1L << 60;
    for (int round = 0; round < 20; round++) {
        long before = now();
        char *all = reserve(NULL, bytes, 0);
        madvise(all, bytes, MADV_DONTNEED);
        munmap(all, bytes);
        long took = now() - before;
        least = took < least ? took : least;
    }
    tell("%ld\n", least);
}

static void handle(const struct request *request) {
    told[0] = 0;
    if (is_path(request, "/wishes"))
        wishes();
    else if (strncmp(request->path, "/cost/", 6) == 0)
        cost(number_after(request, "/cost/", 1) * GIB);
    else
        one_piece(number_after(request, "/", 1) * TIB);
    answer(request, "%s", told);
}

int main(int count, char **arguments) {
    serve_or_run(count, arguments, handle);
}
