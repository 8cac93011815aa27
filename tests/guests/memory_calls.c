/* Calls about memory beyond getting it: moved, advised, asked about, locked. Each path tells what the calls gave; on the
   host the same program tells the same. */
#include "guest.h"
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#define MIB (1UL << 20)
enum { PAGE = 4096, BOTH = PROT_READ | PROT_WRITE, OWN = MAP_PRIVATE | MAP_ANONYMOUS };

static char *map(size_t bytes, int prot, int flags) {
    char *at = mmap(NULL, bytes, prot, OWN | flags, -1, 0);
    if (at == MAP_FAILED)
        tell("mmap: %s\n", strerrorname(errno));
    return at;
}

/* A mark in every step-th page, and how many are not there any more. */
static void mark(char *at, size_t bytes, size_t step, long salt) {
    for (size_t place = 0; place < bytes; place += step * PAGE)
        *(long *)(at + place) = (long)place + salt;
}

static int lost(const char *at, size_t bytes, size_t step, long salt) {
    int wrong = 0;
    for (size_t place = 0; place < bytes; place += step * PAGE)
        wrong += *(const long *)(at + place) != (long)place + salt;
    return wrong;
}

static void moved(size_t bytes, size_t step, int flags) {
    char *at = map(bytes, BOTH, flags);
    mark(at, bytes, step, 1);
    /* Something behind it, so that it has to move; a hint, which both heed as long as nothing is there. */
    char *wall = mmap(at + bytes, PAGE, BOTH, OWN | MAP_FIXED_NOREPLACE, -1, 0);
    char *other = mremap(at, bytes, 2 * bytes, MREMAP_MAYMOVE);
    tell("larger: %s, lost: %d, new: %d\n", other == MAP_FAILED ? strerrorname(errno) : "fine",
         lost(other, bytes, step, 1), other[bytes] != 0 || other[2 * bytes - 1] != 0);
    mark(other + bytes, bytes, step, 2);
    /* To a place that is not in the same row with it. */
    char *room = map(3 * bytes + 64 * PAGE, PROT_NONE, MAP_NORESERVE);
    char *third = mremap(other, 2 * bytes, 2 * bytes, MREMAP_MAYMOVE | MREMAP_FIXED, room + 3 * PAGE);
    tell("there: %d, lost: %d\n", third == room + 3 * PAGE, lost(third, bytes, step, 1) + lost(third + bytes, bytes, step, 2));
    /* A part out of its middle, which leaves the rest. */
    char *middle = mremap(third + 5 * PAGE, 7 * PAGE, 7 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, room + 3 * bytes);
    tell("middle: %d\n", middle == room + 3 * bytes);
    int wrong = 0;
    for (size_t page = 0; page < 12; page++) {
        const char *place = page < 5 ? third + page * PAGE : middle + (page - 5) * PAGE;
        wrong += page % step == 0 && *(const long *)place != (long)(page * PAGE) + 1;
    }
    wrong += lost(third + 12 * step * PAGE, bytes - 12 * step * PAGE, step, (long)(12 * step * PAGE) + 1);
    tell("wrong around it: %d\n", wrong);
    tell_result("smaller", mremap(third + 12 * PAGE, bytes - 12 * PAGE, PAGE, 0) == third + 12 * PAGE ? 0 : -1);
    munmap(room, 3 * bytes + 64 * PAGE);
    if (wall != MAP_FAILED)
        munmap(wall, PAGE);
}

static void stays(size_t bytes, int flags) {
    char *at = map(bytes, BOTH, flags);
    mark(at, bytes, 1, 9);
    char *other = mremap(at, bytes, bytes, MREMAP_MAYMOVE | 4 /* DONTUNMAP */, NULL);
    tell("lost: %d, empty: %d %d\n", other == MAP_FAILED ? -1 : lost(other, bytes, 1, 9), at[0] == 0, at[bytes - 8] == 0);
    mark(at, bytes, 1, 10);
    tell("apart: %d\n", lost(other, bytes, 1, 9) + lost(at, bytes, 1, 10));
    munmap(at, bytes), munmap(other, bytes);
}

static void twice(void) {
    int fd = memfd_create("twice", 0);
    ftruncate(fd, 4 * PAGE);
    char *at = mmap(NULL, 4 * PAGE, BOTH, MAP_SHARED, fd, 0), text[4] = {0};
    char *again = mremap(at, 0, 2 * PAGE, MREMAP_MAYMOVE);
    tell("again: %s\n", again == MAP_FAILED ? strerrorname(errno) : "fine");
    strcpy(at + PAGE, "one"), strcpy(again, "two");
    tell("%s %s\n", again + PAGE, at);
    tell_result("from nowhere", mremap((void *)-PAGE, 0, PAGE, MREMAP_MAYMOVE) == MAP_FAILED ? -1 : 0);
    tell_result("its own", mremap(map(PAGE, BOTH, 0), 0, PAGE, MREMAP_MAYMOVE) == MAP_FAILED ? -1 : 0);
    char *larger = mremap(at + 2 * PAGE, 2 * PAGE, 40 * PAGE, MREMAP_MAYMOVE);
    strcpy(larger, "xyz");
    tell_result("pread", pread(fd, text, 3, 2 * PAGE));
    tell("%s\n", text);
    tell_result("free", madvise(at, PAGE, 8 /* FREE */));
    tell_result("remove", madvise(at, 2 * PAGE, MADV_REMOVE));
    tell("removed: %d %d, size: %ld\n", again[0], again[PAGE], (long)lseek(fd, 0, SEEK_END));
    tell_result("remove what is no file's", madvise(map(PAGE, BOTH, 0), PAGE, MADV_REMOVE));
    char *reader = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, 0);
    tell_result("populate to read", madvise(reader, PAGE, 22));
    tell_result("to write", madvise(reader, PAGE, 23));
    tell_result("behind the end", madvise(larger, 40 * PAGE, 23));
    tell_result("wiped at forks", madvise(reader, PAGE, MADV_WIPEONFORK));
    close(fd);
}

static void resident(const char *what, char *at, size_t pages) {
    unsigned char here[64] = {0};
    if (mincore(at, pages * PAGE, here) != 0)
        tell("%s: %s\n", what, strerrorname(errno));
    int count = 0;
    for (size_t page = 0; page < pages; page++)
        count += here[page] & 1;
    tell("%s: %d\n", what, count);
}

static void advised(void) {
    size_t bytes = 32 * MIB;
    char *at = map(bytes, BOTH, MAP_NORESERVE);
    at[0] = 1, at[16 * MIB] = 2;
    resident("touched", at, 1);
    resident("not touched", at + 8 * MIB, 32);
    tell_result("populate", madvise(at + 8 * MIB, 32 * PAGE, 23));
    resident("populated", at + 8 * MIB, 32);
    tell_result("to read", madvise(at + 24 * MIB, 2 * PAGE, 22));
    tell("zero: %d\n", at[24 * MIB]);
    tell_result("given up", madvise(at, bytes, MADV_DONTNEED));
    resident("given up", at, 16);
    tell("zero: %d %d\n", at[0], at[16 * MIB]);
    at[MIB] = 3;
    tell_result("large pages", madvise(at, bytes, MADV_HUGEPAGE));
    tell_result("small ones", madvise(at, bytes, MADV_NOHUGEPAGE));
    tell_result("free", madvise(at, bytes, 8));
    tell_result("wiped at forks", madvise(at, PAGE, MADV_WIPEONFORK));
    tell_result("kept at forks", madvise(at, PAGE, MADV_KEEPONFORK));
    tell_result("unknown", madvise(at, PAGE, 6));
    tell_result("half a page", madvise(at + 5, PAGE, MADV_DONTNEED));
    tell_result("nothing", madvise(at, 0, MADV_DONTNEED));
    tell_result("too much", madvise(at, (size_t)-PAGE, MADV_DONTNEED));
    munmap(at + PAGE, PAGE);
    tell_result("a hole", madvise(at, 3 * PAGE, MADV_DONTNEED));
    tell_result("populate a hole", madvise(at, 3 * PAGE, 23));
    mprotect(at, PAGE, PROT_NONE);
    tell_result("populate what is closed", madvise(at, PAGE, 22));
    munmap(at, bytes);
    at = map(8 * MIB, BOTH, MAP_POPULATE | MAP_NORESERVE);
    resident("populated", at + 4 * MIB, 64);
    munmap(at, 8 * MIB);
}

static void locked(void) {
    char *at = map(16 * MIB, BOTH, MAP_NORESERVE), *small = map(4 * PAGE, BOTH, 0);
    tell_result("mlock", mlock(at + 5, 2 * PAGE));
    resident("locked", at, 3);
    tell_result("munlock", munlock(at, 3 * PAGE));
    tell_result("mlock2", syscall(SYS_mlock2, small, PAGE, 1));
    tell_result("mlock2 with more", syscall(SYS_mlock2, small, PAGE, 2));
    tell_result("munlock", munlock(small, PAGE));
    tell_result("nothing", mlock(at, 0));
    tell_result("too much", mlock(at, (size_t)-PAGE));
    munmap(at + PAGE, PAGE);
    tell_result("a hole", mlock(at, 3 * PAGE));
    tell_result("a hole", munlock(at, 3 * PAGE));
    tell_result("mlockall", mlockall(8));
    tell_result("mlockall", mlockall(0));
    tell_result("mlockall", mlockall(4));
    tell_result("mlockall", mlockall(MCL_FUTURE));
    tell_result("munlockall", munlockall());
    tell("large pages set aside: %d\n", mmap(NULL, 2 * MIB, BOTH, OWN | MAP_HUGETLB, -1, 0) != MAP_FAILED);
    char *low = mmap(NULL, 16 * PAGE, BOTH, OWN | MAP_32BIT, -1, 0);
    tell("low: %d\n", low != MAP_FAILED && (size_t)low < 1UL << 31);
    low = mmap(NULL, 16 * PAGE, PROT_NONE, OWN | MAP_32BIT, -1, 0);
    tell("low: %d\n", low != MAP_FAILED && (size_t)low < 1UL << 31);
    tell_result("no way to share", mmap(NULL, PAGE, BOTH, MAP_ANONYMOUS | MAP_SHARED_VALIDATE, -1, 0) == MAP_FAILED ? -1 : 0);
    munmap(at, 16 * MIB), munmap(small, 4 * PAGE);
}

static sigjmp_buf back;
static volatile int code;
static void *volatile where;

static void catches(int signal, siginfo_t *info, void *context) {
    (void)signal, (void)context;
    code = info->si_code, where = info->si_addr;
    siglongjmp(back, 1);
}

static void *touches_its_guard(void *argument) {
    pthread_attr_t attributes;
    void *stack;
    size_t bytes;
    pthread_getattr_np(pthread_self(), &attributes);
    pthread_attr_getstack(&attributes, &stack, &bytes);
    volatile char *lowest = stack;
    lowest[0] = 1;
    code = 0;
    if (sigsetjmp(back, 1) == 0)
        lowest[-1] = 1;
    tell("guard: %d, there: %d\n", code, where == (void *)(lowest - 1));
    return argument;
}

static void guarded(void) {
    struct sigaction action = {.sa_sigaction = catches, .sa_flags = SA_SIGINFO};
    sigaction(SIGSEGV, &action, NULL);
    const size_t sizes[] = {256 << 10, 1 * MIB, 8 * MIB};
    for (int i = 0; i < 3; i++) {
        pthread_t thread;
        pthread_attr_t attributes;
        pthread_attr_init(&attributes);
        pthread_attr_setstacksize(&attributes, sizes[i]);
        pthread_create(&thread, &attributes, touches_its_guard, NULL);
        pthread_join(thread, NULL);
    }
}

static void executable(void) {
    const int prots[] = {BOTH | PROT_EXEC, PROT_READ | PROT_EXEC, PROT_EXEC};
    char *at = map(PAGE, BOTH, 0);
    for (int i = 0; i < 3; i++) {
        tell_result("mmap", mmap(NULL, PAGE, prots[i], OWN, -1, 0) == MAP_FAILED ? -1 : 0);
        tell_result("mprotect", mprotect(at, PAGE, prots[i]));
    }
}

static void handle(const struct request *request) {
    told[0] = 0;
    if (is_path(request, "/moved/small"))
        moved(16 * PAGE, 1, 0), moved(100 * PAGE, 1, 0);
    else if (is_path(request, "/moved/large"))
        moved(5 * MIB, 1, 0), moved(7 * MIB + 3 * PAGE, 5, 0);
    else if (is_path(request, "/moved/reserved"))
        moved(64 * MIB, 60, MAP_NORESERVE), moved(64 * PAGE, 1, MAP_NORESERVE);
    else if (is_path(request, "/stays"))
        stays(4 * PAGE, 0), stays(4 * MIB, 0), stays(MIB, MAP_NORESERVE);
    else if (is_path(request, "/twice"))
        twice();
    else if (is_path(request, "/advised"))
        advised();
    else if (is_path(request, "/locked"))
        locked();
    else if (is_path(request, "/guarded"))
        guarded();
    else if (is_path(request, "/executable"))
        executable();
    answer(request, "%s", told);
}

int main(int count, char **arguments) {
    serve_or_run(count, arguments, handle);
}
