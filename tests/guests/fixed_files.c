/* Files mapped in place of memory that is there already, as programs do that lay things out themselves. Each path
   tells what it found; on the host the same program tells the same, but for `/shared`: a file is not shown in place of
   memory that a guest has already. */
#include "guest.h"
#include <fcntl.h>
#include <sys/mman.h>

enum { PAGE = 4096, BOTH = PROT_READ | PROT_WRITE };

static char name[64];

static int file(void) {
    static int made;
    static char text[3 * PAGE];
    snprintf(name, sizeof name, "/tmp/holm-fixed-%d-%d", getpid(), made++);
    int fd = open(name, O_RDWR | O_CREAT | O_EXCL, 0600);
    for (int i = 0; i < 3; i++)
        memset(text + i * PAGE, 'a' + i, PAGE);
    if (fd < 0 || write(fd, text, sizeof text) != sizeof text)
        exit(70);
    return fd;
}

static char *ground(int prot) {
    char *at = mmap(NULL, 16 * PAGE, prot, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED)
        exit(71);
    if (prot == BOTH)
        memset(at, 'g', 16 * PAGE);
    return at;
}

static int over(char *at, int prot, int flags, int fd) {
    char *mapped = mmap(at + 4 * PAGE, 3 * PAGE, prot, flags | MAP_FIXED, fd, 0);
    if (mapped == MAP_FAILED) {
        tell("mmap: %s\n", strerrorname(errno));
        return 0;
    }
    tell("there: %d, %c%c%c\n", mapped == at + 4 * PAGE, mapped[0], mapped[PAGE], mapped[3 * PAGE - 1]);
    if (prot == BOTH) {
        char text[2] = {0};
        mapped[5] = 'W';
        tell_result("pread", pread(fd, text, 1, 5));
        tell("in the file: %s\n", text);
    }
    if (flags == MAP_SHARED) {
        tell_result("pwrite", pwrite(fd, "F", 1, 6));
        tell("in the mapping: %c\n", mapped[6]);
    }
    return 1;
}

static void in_place(int ground_prot, int flags) {
    int fd = file();
    char *at = ground(ground_prot);
    if (!over(at, BOTH, flags, fd))
        return;
    over(at, PROT_READ, flags, fd);
    over(at, BOTH, flags, fd);
    if (ground_prot == BOTH)
        tell("around: %c%c\n", at[4 * PAGE - 1], at[7 * PAGE]);
    tell_result("unmap a part", munmap(at + 5 * PAGE, PAGE));
    tell("left: %c%c\n", at[4 * PAGE + 7], at[6 * PAGE]);
    char *again = mmap(at + 4 * PAGE, 3 * PAGE, BOTH, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    tell("memory again: %d, %d %d\n", again == at + 4 * PAGE, again[0], again[3 * PAGE - 1]);
    again[0] = again[3 * PAGE - 1] = 'n';
    char text[2] = {0};
    tell_result("pread", pread(fd, text, 1, 0));
    tell("the file: %s\n", text);
    tell_result("unmap", munmap(at, 16 * PAGE));
    close(fd);
    unlink(name);
}

/* The two halves of a range show the same. */
static void ring(int ground_prot) {
    int fd = file();
    char *at = ground(ground_prot);
    for (int half = 0; half < 2; half++)
        if (mmap(at + half * 2 * PAGE, 2 * PAGE, BOTH, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED)
            tell("mmap: %s\n", strerrorname(errno));
    memcpy(at + 2 * PAGE - 3, "around", 6);
    tell("%.3s %.3s\n", at, at + 4 * PAGE - 3);
    munmap(at, 16 * PAGE);
    close(fd);
    unlink(name);
}

static void handle(const struct request *request) {
    told[0] = 0;
    if (is_path(request, "/private"))
        in_place(BOTH, MAP_PRIVATE);
    else if (is_path(request, "/private/reserved"))
        in_place(PROT_NONE, MAP_PRIVATE);
    else if (is_path(request, "/shared"))
        in_place(BOTH, MAP_SHARED);
    else if (is_path(request, "/shared/reserved"))
        in_place(PROT_NONE, MAP_SHARED);
    else
        ring(PROT_NONE);
    answer(request, "%s", told);
}

int main(int count, char **arguments) {
    serve_or_run(count, arguments, handle);
}
