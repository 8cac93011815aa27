/* Seals of memory files: what may not be done to one any more. Each path tells what it found; on the host the same
   program tells the same. */
#include "guest.h"
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>

enum { PAGE = 4096, ALLOW = 2, NOEXEC = 8, SEAL = 1, SHRINK = 2, GROW = 4, WRITE = 8, FUTURE = 16, EXEC = 32 };
enum { ADD = 1033, GET = 1034 };

static const char *error_name(void) { return errno == EPERM ? "EPERM" : strerrorname(errno); }

static void told_of(const char *what, long result) {
    if (result >= 0)
        tell("%s: %ld\n", what, result);
    else
        tell("%s: %s\n", what, error_name());
}

static int file(unsigned flags) {
    int fd = (int)syscall(SYS_memfd_create, "sealed", flags);
    if (fd < 0 || ftruncate(fd, 100) != 0)
        tell("memfd_create: %s\n", error_name());
    return fd;
}

static void *map(int fd, int prot, int flags) {
    void *mapped = mmap(NULL, PAGE, prot, flags, fd, 0);
    told_of("mmap", mapped == MAP_FAILED ? -1 : 0);
    return mapped;
}

static void adding(void) {
    int fd = file(0), plain = open("/tmp", O_RDONLY), two[2];
    told_of("seals of one that takes none", fcntl(fd, GET));
    told_of("add", fcntl(fd, ADD, WRITE));
    told_of("of a directory", fcntl(plain, GET));
    told_of("pipe", pipe(two));
    told_of("of a pipe", fcntl(two[0], ADD, 0));
    close(two[0]), close(two[1]), close(plain), close(fd);

    char name[64];
    snprintf(name, sizeof name, "/dev/shm/holm-seals-%d", getpid());
    plain = open(name, O_RDWR | O_CREAT, 0600);
    told_of("of a file", fcntl(plain, GET));
    told_of("add", fcntl(plain, ADD, GROW));
    close(plain);
    unlink(name);

    fd = file(ALLOW);
    told_of("seals", fcntl(fd, GET));
    told_of("unknown", fcntl(fd, ADD, 0x80));
    told_of("add", fcntl(fd, ADD, SHRINK));
    told_of("add", fcntl(fd, ADD, GROW));
    told_of("add none", fcntl(fd, ADD, 0));
    told_of("seals", fcntl(fd, GET));
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    told_of("the last", fcntl(fd, ADD, SEAL));
    told_of("and no more", fcntl(fd, ADD, WRITE));
    told_of("seals", fcntl(fd, GET));
    close(fd);
}

/* What Linux knows since 6.3. */
static void executable(void) {
    int fd = file(NOEXEC);
    struct stat status;
    told_of("fstat", fstat(fd, &status));
    tell("mode %o\n", status.st_mode & 0777);
    told_of("seals", fcntl(fd, GET));
    told_of("chmod", fchmod(fd, 0755));
    told_of("chmod", fchmod(fd, 0644));
    told_of("both", syscall(SYS_memfd_create, "sealed", 0x18));
    close(fd);

    fd = file(ALLOW);
    told_of("executable", fcntl(fd, ADD, EXEC));
    told_of("seals", fcntl(fd, GET));
    close(fd);
}

static void sizes(void) {
    static char text[3 * PAGE];
    int fd = file(ALLOW);
    told_of("size", ftruncate(fd, PAGE + 100));
    told_of("add", fcntl(fd, ADD, SHRINK));
    told_of("shorter", ftruncate(fd, PAGE));
    told_of("longer", ftruncate(fd, PAGE + 200));
    told_of("the same", ftruncate(fd, PAGE + 200));
    told_of("add", fcntl(fd, ADD, GROW));
    told_of("longer", ftruncate(fd, PAGE + 201));
    told_of("allocate", posix_fallocate(fd, 0, 2 * PAGE) == 0 ? 0 : 1);
    told_of("within", pwrite(fd, text, 100, PAGE + 100));
    told_of("over the end", pwrite(fd, text, 100, PAGE + 101));
    told_of("from a page before", pwrite(fd, text, 2 * PAGE, 10));
    told_of("behind the end", pwrite(fd, text, 1, PAGE + 200));
    told_of("size", lseek(fd, 0, SEEK_END));
    close(fd);
}

static void writing(void) {
    char text[8] = {0};
    int fd = file(ALLOW);
    char *mapped = map(fd, PROT_READ | PROT_WRITE, MAP_SHARED);
    told_of("while one is mapped", fcntl(fd, ADD, WRITE));
    told_of("of the future", fcntl(fd, ADD, FUTURE));
    told_of("write", write(fd, "x", 1));
    map(fd, PROT_READ | PROT_WRITE, MAP_SHARED);
    mapped[3] = 'm';
    told_of("pread", pread(fd, text, 1, 3));
    tell("through the mapping: %s\n", text);
    munmap(mapped, PAGE);
    told_of("when it is gone", fcntl(fd, ADD, WRITE));
    told_of("write", write(fd, "x", 1));
    map(fd, PROT_READ | PROT_WRITE, MAP_SHARED);
    mapped = map(fd, PROT_READ | PROT_WRITE, MAP_PRIVATE);
    mapped[3] = 'p';
    told_of("pread", pread(fd, text, 1, 3));
    tell("not through a private one: %s\n", text);
    mapped = map(fd, PROT_READ, MAP_SHARED);
    told_of("protect", mprotect(mapped, PAGE, PROT_READ | PROT_WRITE));
    tell("read: %c\n", mapped[3]);
    told_of("size may change", ftruncate(fd, 50));
    close(fd);
}

static void handle(const struct request *request) {
    told[0] = 0;
    if (is_path(request, "/adding"))
        adding();
    else if (is_path(request, "/sizes"))
        sizes();
    else if (is_path(request, "/executable"))
        executable();
    else
        writing();
    answer(request, "%s", told);
}

int main(int count, char **arguments) {
    serve_or_run(count, arguments, handle);
}
