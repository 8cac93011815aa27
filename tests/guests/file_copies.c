/* Private mappings of files, of which a program gives up what it has written: the file's content comes back. On the host
   the same program tells the same. */
#include "guest.h"
#include <fcntl.h>
#include <sys/mman.h>

enum { PAGE = 4096, BOTH = PROT_READ | PROT_WRITE };

static char *shows(const char *at) {
    static char text[8];
    for (int i = 0; i < 4; i++)
        text[i] = at[i * PAGE] == 0 ? '.' : at[i * PAGE];
    return text;
}

static void handle(const struct request *request) {
    told[0] = 0;
    char name[64], *text = malloc(3 * PAGE + 10);
    snprintf(name, sizeof name, "/tmp/holm-copies-%d", getpid());
    int fd = open(name, O_RDWR | O_CREAT | O_EXCL, 0600);
    for (int i = 0; i < 4; i++)
        memset(text + i * PAGE, 'a' + i, i < 3 ? PAGE : 10);
    if (write(fd, text, 3 * PAGE + 10) != 3 * PAGE + 10)
        exit(70);
    char *at = mmap(NULL, 4 * PAGE, BOTH, MAP_PRIVATE, fd, 0);
    char *read_only = mmap(NULL, 2 * PAGE, PROT_READ, MAP_PRIVATE, fd, PAGE);
    tell("as mapped: %s\n", shows(at));
    tell_result("read only", madvise(read_only, 2 * PAGE, MADV_DONTNEED));
    tell("its own: %c%c\n", read_only[0], read_only[2 * PAGE - 1]);
    for (int i = 0; i < 4; i++)
        at[i * PAGE] = 'W';
    at[3 * PAGE + 20] = 'W';
    tell_result("one", madvise(at + PAGE, PAGE, MADV_DONTNEED));
    tell("one anew: %s\n", shows(at));
    tell_result("closed", close(fd));
    tell_result("nameless", unlink(name));
    tell_result("protect", mprotect(at + 3 * PAGE, PAGE, PROT_READ));
    tell_result("all", madvise(at, 4 * PAGE, MADV_DONTNEED));
    tell("all anew: %s, behind the end: %d\n", shows(at), at[3 * PAGE + 20]);
    char *other = mmap(at + PAGE, PAGE, BOTH, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    other[0] = at[0] = 'W';
    tell_result("in parts", madvise(at, 4 * PAGE, MADV_DONTNEED));
    tell("memory is zero: %s\n", shows(at));
    at = mremap(at + 2 * PAGE, PAGE, 8 * PAGE, MREMAP_MAYMOVE);
    at[0] = 'W';
    tell_result("moved", madvise(at, PAGE, MADV_DONTNEED));
    tell("it moved along: %c\n", at[0]);
    answer(request, "%s", told);
}

int main(int count, char **arguments) {
    serve_or_run(count, arguments, handle);
}
