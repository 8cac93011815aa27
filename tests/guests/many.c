/* Many of what a program has few of mostly: files in /tmp, mappings; and one file that takes most of the memory. */
#define _GNU_SOURCE
#include "guest.h"
#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>

enum { FILES = 3000, MAPPINGS = 2000, PAGE = 4096 };
static char directory[] = "/tmp/holm-many-XXXXXX";

static const char *path_of(int number) {
    static char path[128];
    snprintf(path, sizeof path, "%s/a file, the number of which is %d", directory, number);
    return path;
}

/* Up to three pages, or next to nothing. */
static size_t bytes_of(int number) {
    return number % 100 == 0 ? (size_t)number * 4 : (size_t)number % 50;
}

static int make(int number) {
    static char content[4 * FILES];
    int fd = open(path_of(number), O_CREAT | O_EXCL | O_RDWR, 0600);
    if (fd < 0)
        return -1;
    memset(content, 'a' + number % 26, bytes_of(number));
    ssize_t written = write(fd, content, bytes_of(number));
    return close(fd) == 0 && written == (ssize_t)bytes_of(number) ? 0 : -1;
}

static int is_right(int number) {
    static char content[4 * FILES + 1];
    int fd = open(path_of(number), O_RDONLY);
    ssize_t bytes = read(fd, content, sizeof content);
    int right = bytes == (ssize_t)bytes_of(number);
    for (ssize_t at = 0; right && at < bytes; at++)
        right = content[at] == 'a' + number % 26;
    return close(fd) == 0 && right;
}

static int listed(void) {
    int count = 0;
    DIR *open = opendir(directory);
    while (open && readdir(open))
        count++;
    closedir(open);
    return count;
}

static void files(void) {
    int made = 0, right = 0, removed = 0;
    tell("a directory: %d\n", mkdtemp(directory) != NULL);
    while (made < FILES && make(made) == 0)
        made++;
    for (int number = 0; number < made; number++)
        right += is_right(number);
    tell("%d made, %d right, %d listed\n", made, right, listed());
    for (int number = 0; number < made; number += 2)
        removed += unlink(path_of(number)) == 0;
    tell("%d removed, %d listed\n", removed, listed());
    for (made = 0; made < FILES && make(made) == 0; made += 2)
        ;
    for (int number = right = 0; number < FILES; number++)
        right += is_right(number);
    tell("made up to %d again, %d right\n", made, right);
    char other[sizeof directory + 1];
    snprintf(other, sizeof other, "%s2", directory);
    tell_result("moved", rename(directory, other));
    tell_result("where it was", rmdir(directory));
    tell_result("moved back", rename(other, directory));
    for (int number = right = removed = 0; number < FILES; number++) {
        right += is_right(number);
        removed += unlink(path_of(number)) == 0;
    }
    tell("%d right, %d removed\n", right, removed);
    tell_result("the directory", rmdir(directory));
}

/* More than half of all memory, by pieces, and shared with a mapping all the while. */
static void grows(void) {
    enum { PIECE = 100000, PIECES = 400 };
    static char piece[PIECE];
    char path[] = "/tmp/holm-grows-XXXXXX";
    int fd = mkstemp(path), written = 0, right = 0;
    unlink(path);
    memset(piece, 'x', sizeof piece);
    char *mapped = MAP_FAILED;
    for (; written < PIECES && write(fd, piece, PIECE) == PIECE; written++)
        if (written == 0)
            mapped = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    tell("%d pieces\n", written);
    mapped[1] = 'y';
    for (int at = 0; at < written; at++) {
        ssize_t read = pread(fd, piece, PIECE, (off_t)at * PIECE);
        right += read == PIECE && piece[0] == 'x' && piece[1] == (at ? 'x' : 'y') && piece[PIECE - 1] == 'x';
    }
    tell("%d right\n", right);
    tell_result("shorter", ftruncate(fd, 10));
    tell_result("longer", ftruncate(fd, 3 * PIECE));
    ssize_t read = pread(fd, piece, PIECE, 0);
    tell("%d %d %d %d\n", (int)read, piece[9], piece[10], piece[PIECE - 1]);
    close(fd);
}

static void mappings(void) {
    static char *all[MAPPINGS];
    int made = 0, right = 0, gone = 0;
    for (; made < MAPPINGS; made++) {
        all[made] = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (all[made] == MAP_FAILED)
            break;
        memset(all[made], made % 251, 2 * PAGE);
    }
    for (int i = 0; i < made; i++)
        right += all[i][0] == (char)(i % 251) && all[i][2 * PAGE - 1] == (char)(i % 251);
    tell("%d mappings, %d right\n", made, right);
    for (int i = 0; i < made; i += 20)
        gone += munmap(all[i], 2 * PAGE) == 0;
    for (int i = 1; i < made; i += 20)
        gone += mprotect(all[i], PAGE, PROT_READ) == 0;
    for (int i = right = 0; i < made; i++)
        right += i % 20 == 0 || (all[i][0] == (char)(i % 251) && all[i][2 * PAGE - 1] == (char)(i % 251));
    tell("%d gone or changed, %d right\n", gone, right);
    for (int i = 0; i < made; i++)
        right -= munmap(all[i], 2 * PAGE) == 0;
    tell("%d left\n", right);
}

/* Files that take less than a page, and are mapped. */
static void shared(void) {
    enum { SHARED = 300 };
    static char *all[SHARED];
    int right = 0;
    for (int i = 0; i < SHARED; i++) {
        char path[] = "/tmp/holm-shared-XXXXXX";
        int fd = mkstemp(path);
        unlink(path);
        if (write(fd, path, sizeof path) == sizeof path)
            all[i] = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        right += memcmp(all[i], path, sizeof path) == 0;
        all[i][0] = 'm';
        char first;
        right += pread(fd, &first, 1, 0) == 1 && first == 'm';
        close(fd);
    }
    tell("%d right\n", right);
    for (int i = 0; i < SHARED; i++)
        right -= all[i][0] == 'm' && all[i][100] == 0 && munmap(all[i], PAGE) == 0;
    tell("%d left\n", right);
}

/* A file without a name, which has it when it is whole. */
static void nameless(void) {
    char own[64], name[64], text[16] = "";
    int fd = open("/tmp", O_TMPFILE | O_RDWR, 0640);
    tell("there: %d\n", fd >= 0);
    tell_result("write", write(fd, "content", 7));
    struct stat status;
    tell_result("stat", fstat(fd, &status));
    tell("%o, %d names, %d bytes\n", status.st_mode, (int)status.st_nlink, (int)status.st_size);
    snprintf(own, sizeof own, "/proc/self/fd/%d", fd);
    snprintf(name, sizeof name, "/tmp/holm-nameless-%d", (int)getpid());
    tell_result("named", linkat(AT_FDCWD, own, AT_FDCWD, name, AT_SYMLINK_FOLLOW));
    int other = open(name, O_RDONLY);
    tell_result("read by its name", read(other, text, sizeof text));
    tell("%s\n", text);
    tell_result("unnamed", unlink(name));
    tell_result("named once more", linkat(AT_FDCWD, own, AT_FDCWD, name, AT_SYMLINK_FOLLOW));
    close(other);
    close(fd);
    tell_result("to be read alone", open("/tmp", O_TMPFILE | O_RDONLY, 0600));
    fd = open("/tmp", O_TMPFILE | O_WRONLY | O_EXCL, 0600);
    snprintf(own, sizeof own, "/proc/self/fd/%d", fd);
    tell_result("never to be named", linkat(AT_FDCWD, own, AT_FDCWD, name, AT_SYMLINK_FOLLOW));
    close(fd);
    tell_result("in none", open("/tmp/holm/none", O_TMPFILE | O_RDWR, 0600));
}

static void handle(const struct request *request) {
    told[0] = '\0';
    if (is_path(request, "/nameless"))
        nameless();
    if (is_path(request, "/files"))
        files();
    if (is_path(request, "/grows"))
        grows();
    if (is_path(request, "/mappings"))
        mappings();
    if (is_path(request, "/shared"))
        shared();
    answer(request, "%s", told);
}

int main(int count, char **arguments) {
    serve_or_run(count, arguments, handle);
}
