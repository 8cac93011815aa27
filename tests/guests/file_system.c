/* Files as on Linux: /tmp, directories, links, and the entries of /proc that runtimes read. `/run` does
   all of it and answers "fine", or says what was wrong; `/left` tells whether a file of an earlier request
   is there. */
#include "guest.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/uio.h>

#define CHECK(what)                                                                                \
    do {                                                                                           \
        if (!(what)) {                                                                             \
            static char text[256];                                                                 \
            snprintf(text, sizeof text, "line %d: %s (errno %d)\n", __LINE__, #what, errno);       \
            return text;                                                                           \
        }                                                                                          \
    } while (0)
#define FAILS(call, number) CHECK((call) == -1 && errno == (number))

static int in_holm;

static const char *contents(const char *path, const char *expected) {
    char text[8192];
    int fd = open(path, O_RDONLY);
    CHECK(fd >= 0);
    ssize_t got = read(fd, text, sizeof text - 1);
    CHECK(got >= 0 && close(fd) == 0);
    text[got] = 0;
    if (strstr(text, expected) == NULL) {
        static char message[16384];
        snprintf(message, sizeof message, "%s is: %s\n", path, text);
        return message;
    }
    return NULL;
}

static const char *plain(void) {
    char text[64] = {0};
    struct stat status;
    int fd = open("a", O_RDWR | O_CREAT | O_EXCL, 0640);
    CHECK(fd >= 0);
    FAILS(open("a", O_RDWR | O_CREAT | O_EXCL, 0600), EEXIST);
    CHECK(write(fd, "0123456789", 10) == 10 && lseek(fd, 2, SEEK_SET) == 2);
    CHECK(read(fd, text, 3) == 3 && memcmp(text, "234", 3) == 0);
    CHECK(pread(fd, text, 64, 8) == 2 && lseek(fd, 0, SEEK_CUR) == 5);
    CHECK(pwrite(fd, "xy", 2, 20) == 2 && fstat(fd, &status) == 0 && status.st_size == 22);
    CHECK(S_ISREG(status.st_mode) && (status.st_mode & 0777) == 0640 && status.st_nlink == 1);
    CHECK(pread(fd, text, 64, 10) == 12 && text[0] == 0 && text[9] == 0 && text[10] == 'x');
    CHECK(lseek(fd, -1, SEEK_END) == 21 && read(fd, text, 8) == 1 && read(fd, text, 8) == 0);
    FAILS(lseek(fd, -100, SEEK_CUR), EINVAL);
    CHECK(ftruncate(fd, 4) == 0 && ftruncate(fd, 8) == 0 && pread(fd, text, 64, 0) == 8);
    CHECK(memcmp(text, "0123\0\0\0\0", 8) == 0);
    struct iovec parts[2] = {{text, 2}, {text + 2, 3}};
    CHECK(preadv(fd, parts, 2, 1) == 5 && memcmp(text, "123\0\0", 5) == 0);
    CHECK(fsync(fd) == 0 && fdatasync(fd) == 0 && flock(fd, LOCK_EX) == 0);
    CHECK((fcntl(fd, F_GETFL) & O_ACCMODE) == O_RDWR);
    int again = dup(fd);
    CHECK(lseek(fd, 3, SEEK_SET) == 3 && lseek(again, 0, SEEK_CUR) == 3 && close(again) == 0);
    int other = open("a", O_RDONLY);
    CHECK(lseek(other, 0, SEEK_CUR) == 0);
    FAILS(write(other, "x", 1), EBADF);
    CHECK(close(other) == 0 && (other = open("a", O_WRONLY | O_APPEND)) >= 0);
    FAILS(read(other, text, 1), EBADF);
    CHECK(write(other, "end", 3) == 3 && fstat(fd, &status) == 0 && status.st_size == 11);
    CHECK(close(other) == 0 && unlink("a") == 0);
    FAILS(stat("a", &status), ENOENT);
    CHECK(pread(fd, text, 3, 8) == 3 && memcmp(text, "end", 3) == 0 && close(fd) == 0);
    FAILS(read(fd, text, 1), EBADF);
    return NULL;
}

static const char *large(void) {
    static char block[65536];
    int fd = open("large", O_RDWR | O_CREAT, 0600);
    for (int i = 0; i < 48; i++) {
        memset(block, i, sizeof block);
        CHECK(write(fd, block, sizeof block) == (ssize_t)sizeof block);
    }
    for (int i = 0; i < 48; i += 7) {
        CHECK(pread(fd, block, sizeof block, (off_t)i * 65536) == (ssize_t)sizeof block);
        CHECK(block[0] == i && block[65535] == i);
    }
    char *copy = mmap(NULL, 65536 * 3, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 65536);
    CHECK(copy != MAP_FAILED && copy[0] == 1 && copy[65536 * 2] == 3);
    copy[0] = 99;
    CHECK(pread(fd, block, 1, 65536) == 1 && block[0] == 1);
    CHECK(munmap(copy, 65536 * 3) == 0);
    copy = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
    CHECK(copy != MAP_FAILED && copy[17] == 0 && munmap(copy, 4096) == 0);
    int to = open("copy", O_RDWR | O_CREAT, 0600);
    off_t from = 65536 * 5;
    CHECK(sendfile(to, fd, &from, 100000) > 0 && from > 65536 * 5);
    CHECK(pread(to, block, 1, 0) == 1 && block[0] == 5);
    CHECK(close(to) == 0 && close(fd) == 0 && truncate("large", 0) == 0);
    CHECK(unlink("large") == 0 && unlink("copy") == 0);
    return NULL;
}

static const char *directories(void) {
    struct stat status;
    char path[512];
    CHECK(mkdir("d", 0700) == 0);
    FAILS(mkdir("d", 0700), EEXIST);
    FAILS(mkdir("no/d", 0700), ENOENT);
    CHECK(stat("d/", &status) == 0 && S_ISDIR(status.st_mode));
    for (int i = 0; i < 30; i++) {
        snprintf(path, sizeof path, "d/file%d", i);
        int fd = open(path, O_CREAT | O_WRONLY, 0600);
        CHECK(fd >= 0 && close(fd) == 0);
    }
    FAILS(open("d", O_WRONLY), EISDIR);
    FAILS(open("d/file1/x", O_RDONLY), ENOTDIR);
    FAILS(open("d/file1/", O_RDONLY), ENOTDIR);
    FAILS(open("d/file1", O_RDONLY | O_DIRECTORY), ENOTDIR);
    FAILS(rmdir("d"), ENOTEMPTY);
    FAILS(unlink("d"), errno == EPERM ? EPERM : EISDIR);
    FAILS(rmdir("d/file1"), ENOTDIR);
    int at = open("d", O_RDONLY | O_DIRECTORY);
    CHECK(at >= 0 && fstatat(at, "file3", &status, 0) == 0 && faccessat(at, "file3", R_OK, 0) == 0);
    DIR *directory = fdopendir(at);
    int names = 0, dots = 0;
    for (struct dirent *entry; (entry = readdir(directory)) != NULL;) {
        dots += entry->d_name[0] == '.';
        names += strncmp(entry->d_name, "file", 4) == 0;
    }
    CHECK(names == 30 && dots == 2);
    rewinddir(directory);
    CHECK(readdir(directory) != NULL && closedir(directory) == 0);
    CHECK(rename("d", "e") == 0 && stat("e/file7", &status) == 0);
    FAILS(stat("d/file7", &status), ENOENT);
    FAILS(rename("e", "e/inside"), EINVAL);
    CHECK(rename("e/file1", "e/file2") == 0);
    FAILS(stat("e/file1", &status), ENOENT);
    CHECK(getcwd(path, sizeof path) != NULL && chdir("e") == 0);
    CHECK(stat("file7", &status) == 0 && stat("../e/./file7", &status) == 0 && chdir("..") == 0);
    for (int i = 0; i < 30; i += 1 + (i == 0)) {
        snprintf(path, sizeof path, "e/file%d", i);
        CHECK(unlink(path) == 0);
    }
    CHECK(rmdir("e") == 0);
    FAILS(chdir("e"), ENOENT);
    return NULL;
}

static const char *links(void) {
    struct stat status;
    char text[64] = {0};
    CHECK(mkdir("real", 0700) == 0 && close(open("real/file", O_CREAT | O_WRONLY, 0600)) == 0);
    CHECK(symlink("real", "way") == 0 && symlink("way/file", "straight") == 0);
    CHECK(readlink("way", text, sizeof text) == 4 && memcmp(text, "real", 4) == 0);
    CHECK(lstat("way", &status) == 0 && S_ISLNK(status.st_mode) && status.st_size == 4);
    CHECK(stat("way/file", &status) == 0 && stat("straight", &status) == 0);
    FAILS(open("straight", O_RDONLY | O_NOFOLLOW), ELOOP);
    FAILS(readlink("real/file", text, sizeof text), EINVAL);
    CHECK(symlink("round", "round") == 0);
    FAILS(open("round", O_RDONLY), ELOOP);
    CHECK(symlink("nowhere", "dangling") == 0);
    FAILS(open("dangling", O_RDONLY), ENOENT);
    CHECK(unlink("straight") == 0 && unlink("way") == 0 && unlink("round") == 0);
    CHECK(unlink("dangling") == 0 && unlink("real/file") == 0 && rmdir("real") == 0);
    return NULL;
}

static const char *others(void) {
    char text[256];
    struct statfs system;
    const char *problem;
    CHECK(statfs(".", &system) == 0 && system.f_bsize > 0);
    if ((problem = contents("/proc/self/maps", "[stack]")) || (problem = contents("/proc/meminfo", "MemTotal:")) ||
        (problem = contents("/proc/cpuinfo", "processor")) || (problem = contents("/proc/self/status", "Threads:")) ||
        (problem = contents("/etc/hosts", "localhost")))
        return problem;
    CHECK(readlink("/proc/self/exe", text, sizeof text) > 1);
    int fd = open("/dev/null", O_RDWR);
    CHECK(fd >= 0 && write(fd, "x", 1) == 1 && read(fd, text, 1) == 0 && close(fd) == 0);
    fd = open("/dev/zero", O_RDONLY);
    CHECK(fd >= 0 && read(fd, text, 100) == 100 && text[99] == 0 && close(fd) == 0);
    FAILS(open("/no/such/file", O_RDONLY), ENOENT);
    FAILS(access("/no", F_OK), ENOENT);
    CHECK(access("/tmp", W_OK) == 0 && access("/proc/self/maps", R_OK) == 0);
    if (in_holm) {
        FAILS(open("/etc/new", O_CREAT | O_WRONLY, 0600), EROFS);
        FAILS(mkdir("/etc/new", 0700), EROFS);
        DIR *root = opendir("/");
        int seen = 0;
        for (struct dirent *entry; (entry = readdir(root)) != NULL;)
            seen += !strcmp(entry->d_name, "tmp") || !strcmp(entry->d_name, "proc");
        CHECK(seen == 2 && closedir(root) == 0);
    }
    return NULL;
}

/* Holm's paths are shorter than Linux's may be: a directory moves with all that is in it, or not at all. */
static const char *moves(void) {
    char name[201] = {0}, long_name[201] = {0};
    memset(name, 'n', 200);
    memset(long_name, 'l', 200);
    CHECK(mkdir("from", 0700) == 0 && mkdir("to", 0700) == 0 && chdir("from") == 0);
    close(open("first", O_CREAT | O_WRONLY, 0600));
    for (int depth = 0; depth < 4; depth++)
        CHECK(mkdir(name, 0700) == 0 && chdir(name) == 0);
    close(open("last", O_CREAT | O_WRONLY, 0600));
    CHECK(chdir("../../../../../to") == 0 && mkdir(long_name, 0700) == 0 && chdir("..") == 0);
    char to[256];
    snprintf(to, sizeof to, "to/%s", long_name);
    /* The target is empty, and would be replaced. */
    FAILS(rename("from", to), ENAMETOOLONG);
    CHECK(access("from/first", F_OK) == 0 && access(to, F_OK) == 0 && chdir("from") == 0);
    for (int depth = 0; depth < 4; depth++)
        CHECK(chdir(name) == 0);
    CHECK(unlink("last") == 0);
    for (int depth = 0; depth < 4; depth++)
        CHECK(chdir("..") == 0 && rmdir(name) == 0);
    CHECK(chdir("..") == 0 && rename("from", to) == 0 && chdir(to) == 0);
    CHECK(unlink("first") == 0 && chdir("../..") == 0 && rmdir(to) == 0 && rmdir("to") == 0);
    return NULL;
}

static const char *run(void) {
    const char *problem;
    char path[64];
    snprintf(path, sizeof path, "/tmp/files-%d", (int)getpid());
    CHECK(mkdir(path, 0700) == 0 && chdir(path) == 0);
    if ((problem = plain()) || (problem = large()) || (problem = directories()) || (problem = links()) ||
        (problem = others()) || (in_holm && (problem = moves())))
        return problem;
    CHECK(chdir("/") == 0 && rmdir(path) == 0);
    return "fine\n";
}

static void handle(const struct request *request) {
    in_holm = getenv("HOLM") != NULL;
    if (is_path(request, "/left")) {
        int there = access("/tmp/left", F_OK) == 0;
        close(open("/tmp/left", O_CREAT | O_WRONLY, 0600));
        answer(request, "%d\n", there);
    } else if (is_path(request, "/fill")) {
        /* Until there is no room. */
        static char block[1 << 20];
        memset(block, 7, sizeof block);
        int fd = open("/tmp/fill", O_CREAT | O_RDWR, 0600), blocks = 0;
        while (blocks < 4096 && write(fd, block, sizeof block) == (ssize_t)sizeof block)
            blocks++;
        int error = errno;
        unlink("/tmp/fill");
        close(fd);
        fd = open("/tmp/fill", O_CREAT | O_RDWR, 0600);
        answer(request, "%d %d\n", blocks > 8, error == ENOSPC && write(fd, block, 1 << 20) == 1 << 20);
    } else {
        answer(request, "%s", run());
    }
}

int main(void) {
    serve(handle);
}
