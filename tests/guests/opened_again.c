/* What a descriptor stands for, opened and changed by its entry in /proc: a file with a name and one without (`/file`,
   `/nameless`), a directory (`/directory`), permissions (`/mode`); and what fallocate takes out of a file (`/holes`), or
   clears in it (`/zeroes`), which not every file system of Linux's does. */
#include "guest.h"
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>

static char place[64], entry[64];

static const char *entry_of(int fd) {
    snprintf(entry, sizeof entry, "/proc/self/fd/%d", fd);
    return entry;
}

static void told_of(int fd) {
    char text[32] = "";
    ssize_t bytes = read(fd, text, sizeof text - 1);
    tell("from its start: %zd \"%s\"\n", bytes, text);
}

static void file(int fd) {
    if (write(fd, "hello\n", 6) != 6)
        tell("nothing written\n");
    int again = open(entry_of(fd), O_RDONLY);
    tell_result("again", again >= 0 ? 0 : -1);
    told_of(again);
    tell_result("write", write(again, "x", 1));
    tell("place %ld of the first\n", (long)lseek(fd, 0, SEEK_CUR));
    close(again);
    again = open(entry_of(fd), O_WRONLY | O_TRUNC);
    struct stat status;
    tell_result("fstat", fstat(fd, &status));
    tell("%ld bytes\n", (long)status.st_size);
    tell_result("as a directory", open(entry_of(fd), O_RDONLY | O_DIRECTORY) >= 0 ? 0 : (errno = errno == ENOTDIR ? EINVAL : 0, -1));
    close(again);
}

static void directory(int fd) {
    int inside = openat(fd, "inside", O_CREAT | O_WRONLY, 0600);
    close(inside);
    int again = open(entry_of(fd), O_RDONLY | O_DIRECTORY), names = 0;
    DIR *listed = fdopendir(again);
    for (struct dirent *one; listed != NULL && (one = readdir(listed)) != NULL;)
        names += one->d_name[0] != '.';
    tell("names: %d\n", names);
    unlinkat(fd, "inside", 0);
}

static void holes(int fd, int clears) {
    struct stat status;
    char text[32] = "";
    if (write(fd, "abcdefghijkl", 12) != 12)
        tell("nothing written\n");
    tell_result("punched", fallocate(fd, 3, 2, 4));
    if (clears)
        tell_result("cleared", fallocate(fd, 0x10, 7, 3));
    ssize_t bytes = pread(fd, text, 12, 0);
    for (ssize_t i = 0; i < bytes; i++)
        tell("%c", text[i] == 0 ? '.' : text[i]);
    fstat(fd, &status);
    tell(", %ld bytes\n", (long)status.st_size);
    if (!clears)
        return;
    tell_result("cleared behind the end", fallocate(fd, 0x11, 10, 100));
    fstat(fd, &status);
    tell("%ld bytes\n", (long)status.st_size);
    tell_result("cleared and grown", fallocate(fd, 0x10, 10, 100));
    fstat(fd, &status);
    tell("%ld bytes\n", (long)status.st_size);
}

static void handle(const struct request *request) {
    strcpy(place, "/tmp/opened-again-XXXXXX");
    if (is_path(request, "/directory")) {
        int fd = mkdtemp(place) == NULL ? -1 : open(place, O_RDONLY | O_DIRECTORY);
        directory(fd);
        close(fd);
        rmdir(place);
    } else {
        int fd = mkstemp(place);
        if (is_path(request, "/mode")) {
            int name = open(place, 010000000 /* O_PATH */);
            tell_result("chmod", chmod(entry_of(name), 0640));
            tell_result("chmod", chmod(entry_of(name), 0600));
            struct stat status;
            fstat(fd, &status);
            tell("mode %o\n", status.st_mode & 0777);
            close(name);
        } else if (is_path(request, "/holes") || is_path(request, "/zeroes")) {
            holes(fd, is_path(request, "/zeroes"));
        } else {
            if (is_path(request, "/nameless"))
                unlink(place);
            file(fd);
        }
        close(fd);
        unlink(place);
    }
    answer(request, "%s", told);
}

int main(int count, char **arguments) {
    serve_or_run(count, arguments, handle);
}
