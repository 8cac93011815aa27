/* Files mapped so that they are shared: what is written through a mapping is in the file and in its other
   mappings, and the other way round. Each path tells what it found; on the host the same program tells the
   same. The second word of a path says which file: in /tmp, without a name, of memory, or in /dev/shm. */
#include "guest.h"
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>

enum { PAGE = 4096, BOTH = PROT_READ | PROT_WRITE };

static char name[64];

static int open_file(const char *kind) {
    static int opened;
    int fd = -1;
    if (strcmp(kind, "memory") == 0)
        return (int)syscall(SYS_memfd_create, "shared", 1);
    if (strcmp(kind, "shm") == 0) {
        snprintf(name, sizeof name, "/holm-shared-%d-%d", getpid(), opened++);
        fd = shm_open(name, O_RDWR | O_CREAT | O_EXCL, 0600);
        shm_unlink(name);
        return fd;
    }
    snprintf(name, sizeof name, "/tmp/holm-shared-%d-%d", getpid(), opened++);
    fd = open(name, O_RDWR | O_CREAT | O_EXCL, 0600);
    if (strcmp(kind, "unnamed") == 0)
        unlink(name);
    return fd;
}

static char *map(int fd, size_t bytes, int prot, long at) {
    char *mapped = mmap(NULL, bytes, prot, MAP_SHARED, fd, at);
    if (mapped == MAP_FAILED)
        tell("mmap: %s\n", strerrorname(errno));
    return mapped;
}

static void tell_text(const char *what, const char *at, size_t bytes) {
    tell("%s: \"%.*s\"\n", what, (int)bytes, at);
}

static void both_ways(int fd) {
    char text[16] = {0};
    tell_result("grow", ftruncate(fd, 3 * PAGE));
    char *first = map(fd, 3 * PAGE, BOTH, 0), *second = map(fd, PAGE, PROT_READ, PAGE);
    tell("zero: %d\n", first[0] == 0 && first[3 * PAGE - 1] == 0 && second[5] == 0);
    memcpy(first + PAGE + 4, "stored", 7);
    tell_text("the other mapping", second + 4, 6);
    tell_result("pread", pread(fd, text, 6, PAGE + 4));
    tell_text("read", text, 6);
    tell_result("pwrite", pwrite(fd, "WRITTEN", 7, PAGE + 4));
    tell_text("a mapping", first + PAGE + 4, 7);
    tell_text("the other", second + 4, 7);
    tell_result("msync", msync(first, 3 * PAGE, MS_SYNC));
    tell_result("msync", msync(second, PAGE, MS_ASYNC));
    tell_result("fsync", fsync(fd));
    tell_result("not writable", mprotect(first, PAGE, PROT_READ));
    tell_result("into that", read(open("/dev/zero", O_RDONLY), first, 4));
    tell_result("writable", mprotect(first, PAGE, BOTH));
    first[0] = 'x';
    tell_result("a reader's", mprotect(second, PAGE, BOTH));
    second[0] = 'y';
    tell_text("both wrote", (char[]){first[0], first[PAGE], 0}, 2);
    /* What is given up is not lost: it is the file's. */
    tell_result("given up", madvise(first, 3 * PAGE, MADV_DONTNEED));
    tell_text("still", first + PAGE + 4, 7);
    tell_result("gone", munmap(first, 3 * PAGE));
    tell_text("the other still", second + 4, 7);
    close(fd);
    tell_text("without a descriptor", second + 4, 7);
    second[4] = 'w';
    tell_text("and writable", second + 4, 7);
    tell_result("gone too", munmap(second, PAGE));
    if (name[0] != 0 && (fd = open(name, O_RDWR)) >= 0) {
        tell_result("opened again", pread(fd, text, 7, PAGE + 4));
        tell_text("has", text, 7);
        close(fd);
        unlink(name);
    }
}

static sigjmp_buf back;
static volatile int caught, code;
static void *volatile where;

static void catches(int signal, siginfo_t *info, void *context) {
    (void)context;
    caught = signal, code = info->si_code, where = info->si_addr;
    siglongjmp(back, 1);
}

static const char *touch(volatile char *at, int write) {
    static char text[64];
    caught = 0;
    if (sigsetjmp(back, 1) == 0) {
        if (write)
            *at = 'T';
        else
            (void)*at;
        return "fine";
    }
    snprintf(text, sizeof text, "%s %d %s", caught == SIGBUS ? "SIGBUS" : "SIGSEGV", code,
             where == (void *)at ? "there" : "elsewhere");
    return text;
}

static void sizes(int fd) {
    struct sigaction action = {.sa_sigaction = catches, .sa_flags = SA_SIGINFO};
    sigaction(SIGBUS, &action, NULL);
    sigaction(SIGSEGV, &action, NULL);
    char *all = map(fd, 64 * PAGE, BOTH, 0), text[8] = {0};
    char *reader = map(fd, 4 * PAGE, PROT_READ, 0);
    tell("empty: %s\n", touch(all, 0));
    tell("by a call: %s\n", write(fd, all, 4) < 0 ? strerrorname(errno) : "fine");
    tell_result("one byte", pwrite(fd, "b", 1, PAGE + 3));
    tell("before: %s, in: %s, behind in its page: %s, behind: %s\n", touch(all, 1), touch(all + PAGE + 3, 0),
         touch(all + PAGE + 9, 1), touch(all + 2 * PAGE, 1));
    /* Grown by so much that it cannot stay where it was. */
    memcpy(all + PAGE, "kept", 4);
    for (int page = 2; page < 60; page++)
        if (pwrite(fd, &page, sizeof page, page * (long)PAGE) != sizeof page)
            tell("pwrite: %s\n", strerrorname(errno));
    tell_text("kept", all + PAGE, 4);
    tell_text("kept for the reader", reader + PAGE, 4);
    int wrong = 0;
    for (int page = 2; page < 60; page++)
        wrong += *(int *)(all + page * (long)PAGE) != page;
    tell("wrong pages: %d\n", wrong);
    memcpy(all + 59 * PAGE, "through", 7);
    tell_result("pread", pread(fd, text, 7, 59L * PAGE));
    tell_text("read", text, 7);
    /* A call that makes the file larger, with its own content for a buffer. */
    tell_result("itself", pwrite(fd, all + PAGE, 4 * PAGE, 62L * PAGE));
    tell_text("itself", all + 62 * PAGE, 4);
    tell_result("cut", ftruncate(fd, PAGE + 2));
    tell("in: %s, rest of its page: %d, behind: %s\n", touch(all + PAGE, 0), all[PAGE + 2], touch(all + 2 * PAGE, 0));
    tell_text("left", all + PAGE, 2);
    tell_result("longer again", ftruncate(fd, 4 * PAGE));
    tell("zero: %d\n", all[PAGE + 2] == 0 && all[2 * PAGE] == 0 && all[4 * PAGE - 1] == 0);
    tell("a reader writes: %s\n", touch(reader, 1));
    close(fd);
    tell("closed: %s\n", touch(all + 3 * PAGE, 1));
    tell_text("seen", reader + 3 * PAGE, 1);
    munmap(all, 64 * PAGE);
    munmap(reader, 4 * PAGE);
    if (name[0] != 0)
        unlink(name);
}

/* The same pages twice in a row, by which a ring needs no end. */
static void ring(int fd) {
    size_t bytes = 16 * PAGE;
    tell_result("grow", ftruncate(fd, (off_t)bytes));
    char *room = mmap(NULL, 3 * bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    char *low = mmap(room, bytes, BOTH, MAP_SHARED | MAP_FIXED, fd, 0);
    char *high = mmap(room + bytes, bytes, BOTH, MAP_SHARED | MAP_FIXED, fd, 0);
    tell("in place: %d %d\n", low == room, high == room + bytes);
    for (size_t at = 0; at < bytes; at += 64)
        memset(room + bytes - 32 + at, 'a' + (int)(at / 64 % 26), 64);
    int wrong = 0;
    for (size_t at = 0; at < bytes; at++)
        wrong += low[at] != high[at];
    tell("wrong: %d, %c %c\n", wrong, low[0], low[bytes - 1]);
    /* Half a page table of other memory, with a page of the file in it. */
    char *other = mmap(NULL, 64 * PAGE, BOTH, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    memset(other, 'o', 64 * PAGE);
    mmap(other + 5 * PAGE, 2 * PAGE, BOTH, MAP_SHARED | MAP_FIXED, fd, 3 * PAGE);
    tell("around: %c %c %c %c\n", other[5 * PAGE - 1], other[5 * PAGE], other[7 * PAGE - 1], other[7 * PAGE]);
    memset(other + 5 * PAGE, 'F', 2 * PAGE);
    tell_result("given up", madvise(other, 64 * PAGE, MADV_DONTNEED));
    tell("around: %d %c %c %d, in the file: %c\n", other[5 * PAGE - 1], other[5 * PAGE], other[7 * PAGE - 1],
         other[7 * PAGE], high[3 * PAGE]);
    char *moved = mremap(other + 5 * PAGE, 2 * PAGE, 8 * PAGE, MREMAP_MAYMOVE);
    moved[4 * PAGE] = 'M';
    tell("moved: %c %c, in the file: %c\n", moved[0], moved[2 * PAGE], low[7 * PAGE]);
    munmap(moved, 8 * PAGE);
    munmap(other, 64 * PAGE);
    munmap(room, 3 * bytes);
    close(fd);
    if (name[0] != 0)
        unlink(name);
}

static void *adds(void *counter) {
    for (int i = 0; i < 10000; i++)
        __atomic_fetch_add((long *)counter, 1, __ATOMIC_SEQ_CST);
    return NULL;
}

/* With a lock that is said to be between processes, as databases have them. */
static void threads(int fd) {
    struct {
        pthread_mutex_t lock;
        long count;
    } *shared;
    ftruncate(fd, PAGE);
    shared = (void *)map(fd, PAGE, BOTH, 0);
    pthread_mutexattr_t how;
    pthread_mutexattr_init(&how);
    tell_result("pshared", -pthread_mutexattr_setpshared(&how, PTHREAD_PROCESS_SHARED));
    tell_result("init", -pthread_mutex_init(&shared->lock, &how));
    tell_result("lock", -pthread_mutex_lock(&shared->lock));
    pthread_t other;
    pthread_create(&other, NULL, adds, &shared->count);
    adds(&shared->count);
    pthread_join(other, NULL);
    tell_result("unlock", -pthread_mutex_unlock(&shared->lock));
    tell("count: %ld\n", shared->count);
    munmap(shared, PAGE);
    close(fd);
    if (name[0] != 0)
        unlink(name);
}

static void errors(int fd) {
    char *mapped;
    ftruncate(fd, PAGE);
    int reader = open(name, O_RDONLY), writer = open(name, O_WRONLY), path = open(name, O_PATH);
#define TRY(what, ...)                                                                                                \
    mapped = mmap(__VA_ARGS__);                                                                                       \
    tell("%s: %s\n", what, mapped == MAP_FAILED ? strerrorname(errno) : "mapped");                                    \
    if (mapped != MAP_FAILED)                                                                                         \
    munmap(mapped, PAGE)
    TRY("to write, of a reader", NULL, PAGE, BOTH, MAP_SHARED, reader, 0);
    TRY("to read, of a reader", NULL, PAGE, PROT_READ, MAP_SHARED, reader, 0);
    TRY("its own, of a reader", NULL, PAGE, BOTH, MAP_PRIVATE, reader, 0);
    TRY("to read, of a writer", NULL, PAGE, PROT_READ, MAP_SHARED, writer, 0);
    TRY("its own, of a writer", NULL, PAGE, PROT_READ, MAP_PRIVATE, writer, 0);
    TRY("of a name", NULL, PAGE, PROT_READ, MAP_SHARED, path, 0);
    TRY("of nothing", NULL, PAGE, PROT_READ, MAP_SHARED, 999, 0);
    TRY("no bytes", NULL, 0, PROT_READ, MAP_SHARED, fd, 0);
    TRY("no type", NULL, PAGE, PROT_READ, 0, fd, 0);
    TRY("half a page on", NULL, PAGE, PROT_READ, MAP_SHARED, fd, 2048);
    TRY("too far on", NULL, PAGE, PROT_READ, MAP_SHARED, fd, (off_t)(-PAGE));
    TRY("behind the end", NULL, PAGE, BOTH, MAP_SHARED, fd, 40 * PAGE);
    TRY("checked", NULL, PAGE, BOTH, MAP_SHARED_VALIDATE, fd, 0);
    mapped = map(reader, PAGE, PROT_READ, 0);
    tell_result("a reader's, opened", mprotect(mapped, PAGE, BOTH));
    tell_result("a reader's, closed", mprotect(mapped, PAGE, PROT_NONE));
    munmap(mapped, PAGE);
    tell_result("a pipe's", pipe((int[2]){0}));
    close(reader), close(writer), close(path), close(fd);
    tell_result("unlink", unlink(name));
    tell_result("renamed over", rename("/dev/shm/holm-none", "/tmp/holm-none"));
    fd = open("/dev/shm/holm-moves", O_CREAT | O_RDWR, 0600);
    tell_result("to another place", rename("/dev/shm/holm-moves", "/tmp/holm-moves"));
    tell_result("another name elsewhere", link("/dev/shm/holm-moves", "/tmp/holm-moves"));
    tell_result("here", rename("/dev/shm/holm-moves", "/dev/shm/holm-moved"));
    tell_result("unlink", unlink("/dev/shm/holm-moved"));
    close(fd);
}

static void handle(const struct request *request) {
    const char *kind = strrchr(request->path, '/') + 1;
    if (is_path(request, "/dies")) {
        int fd = open_file("unnamed");
        return answer(request, "%d\n", *(volatile char *)map(fd, PAGE, PROT_READ, 0));
    }
    told[0] = name[0] = 0;
    int fd = open_file(kind);
    if (fd < 0)
        tell("open: %s\n", strerrorname(errno));
    else if (strncmp(request->path, "/both_ways", 10) == 0)
        both_ways(fd);
    else if (strncmp(request->path, "/sizes", 6) == 0)
        sizes(fd);
    else if (strncmp(request->path, "/ring", 5) == 0)
        ring(fd);
    else if (strncmp(request->path, "/threads", 8) == 0)
        threads(fd);
    else if (strncmp(request->path, "/errors", 7) == 0)
        errors(fd);
    answer(request, "%s", told);
}

int main(int count, char **arguments) {
    serve_or_run(count, arguments, handle);
}
