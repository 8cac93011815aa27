/* The files that an artifact brings. `/report` tells everything about the tree in /tree that a program can
   find out; started as `brought_files --report DIRECTORY` the program prints the same of a directory, so
   that the two can be compared. `/writes` tries to change the tree, `/file?PATH` answers with a file by
   sendfile, `/size?PATH` with its size. */
#include "guest.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <utime.h>

static char report[1 << 16];
static size_t reported;

__attribute__((format(printf, 1, 2))) static void report_line(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    int more = vsnprintf(report + reported, sizeof report - reported, format, arguments);
    va_end(arguments);
    if (more > 0)
        reported += (size_t)more;
    if (reported >= sizeof report)
        reported = sizeof report - 1;
}

/* What a call gave, or its error. */
static long outcome(long result) { return result < 0 ? -errno : result; }

/* FNV-1a */
static unsigned long hash(const unsigned char *bytes, size_t count) {
    unsigned long value = 0xcbf29ce484222325ul;
    for (size_t at = 0; at < count; at++)
        value = (value ^ bytes[at]) * 0x100000001b3ul;
    return value;
}

static void report_content(const char *path) {
    static unsigned char bytes[1 << 16];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t got, total = 0;
    while ((got = read(fd, bytes + total, 1000)) > 0)
        total += got;
    report_line(" %ld bytes %016lx", (long)total, hash(bytes, (size_t)total));
    close(fd);
}

static int by_name(const void *one, const void *other) {
    return strcmp(*(char *const *)one, *(char *const *)other);
}

static void walk(const char *directory, int depth) {
    static char names[4][128][256];
    char *sorted[128];
    size_t count = 0;
    DIR *listing = opendir(directory);
    struct dirent *entry;
    while (listing != NULL && (entry = readdir(listing)) != NULL && count < 128) {
        struct stat status;
        snprintf(names[depth][count], 256, "%s", entry->d_name);
        sorted[count] = names[depth][count];
        count++;
        char path[600];
        snprintf(path, sizeof path, "%s/%s", directory, entry->d_name);
        if (lstat(path, &status) != 0 || (entry->d_type != DT_UNKNOWN &&
                                          entry->d_type != (status.st_mode & S_IFMT) >> 12))
            report_line("%s is listed as another kind\n", path);
    }
    if (listing == NULL || closedir(listing) != 0)
        report_line("%s cannot be listed\n", directory);
    qsort(sorted, count, sizeof *sorted, by_name);
    for (size_t at = 0; at < count; at++) {
        if (strcmp(sorted[at], ".") == 0 || strcmp(sorted[at], "..") == 0)
            continue;
        char path[600], text[600];
        struct stat status;
        snprintf(path, sizeof path, "%s/%s", directory, sorted[at]);
        lstat(path, &status);
        report_line("%s %o", path, (unsigned)(status.st_mode & (S_IFMT | 0555)));
        if (S_ISLNK(status.st_mode)) {
            ssize_t got = readlink(path, text, sizeof text - 1);
            text[got < 0 ? 0 : got] = 0;
            report_line(" -> %s (%ld)", text, (long)status.st_size);
        } else if (S_ISREG(status.st_mode)) {
            report_line(" %ld at %ld", (long)status.st_size, (long)status.st_mtime);
            report_content(path);
        }
        report_line("\n");
        if (S_ISDIR(status.st_mode) && depth < 3)
            walk(path, depth + 1);
    }
}

static void tell_paths(void) {
    static const char *const paths[] = {
        ".",           "./",          "",           "missing",       "missing/x",   "index.html",
        "index.html/", "index.html/x", "index.html/x/y", "sub",      "sub/",        "sub/../index.html",
        "sub//deep.txt", "link",      "link/",      "to-sub",        "to-sub/",     "to-sub/deep.txt",
        "dangling",    "loop",        "loop/x",     "through/deep.txt", "run",      "sub/empty",
    };
    for (size_t at = 0; at < sizeof paths / sizeof *paths; at++) {
        const char *path = paths[at];
        struct stat status = {0}, own = {0};
        uint16_t extended[128] = {0}; /* struct statx: its mode is the 15th of these */
        long found = outcome(stat(path, &status));
        report_line("%s: stat %ld %o lstat %ld", path, found, status.st_mode & S_IFMT,
             outcome(lstat(path, &own)));
        report_line(" %o statx %ld", own.st_mode & S_IFMT,
             outcome(syscall(SYS_statx, AT_FDCWD, path, AT_SYMLINK_NOFOLLOW, 0x7ff, extended)));
        report_line(" %o access %ld %ld", extended[14] & S_IFMT, outcome(access(path, R_OK)),
             outcome(access(path, X_OK)));
        static const int ways[] = {O_RDONLY, O_RDONLY | O_NOFOLLOW, O_RDONLY | O_DIRECTORY,
                                   O_RDONLY | O_CREAT | O_EXCL};
        for (size_t way = 0; way < 4; way++) {
            /* A new file could be made in a directory that is not read only. */
            int fd = way == 3 && found < 0 ? -1 : open(path, ways[way], 0600);
            struct stat opened = {0};
            if (fd >= 0 && (fstat(fd, &opened) != 0 || opened.st_ino != status.st_ino))
                report_line(" (another file)");
            report_line(" open %ld", fd >= 0 ? 0 : outcome(way == 3 && found < 0 ? 0 : fd));
            if (fd >= 0)
                close(fd);
        }
        report_line("\n");
    }
}

static void tell_calls(void) {
    unsigned char bytes[64] = {0}, other[64] = {0};
    struct stat status;
    int fd = open("sub/deep.txt", O_RDONLY);
    report_line("seek %ld", outcome(lseek(fd, -4, SEEK_END)));
    report_line(" %ld", outcome(lseek(fd, 100, SEEK_SET)));
    report_line(" read %ld", outcome(read(fd, bytes, 64)));
    report_line(" pread %ld", outcome(pread(fd, bytes, 64, 5)));
    report_line(" %ld", outcome(pread(fd, bytes, 64, 1000)));
    report_line(" %ld", outcome(pread(fd, bytes, 64, -1)));
    report_line(" data %ld", outcome(lseek(fd, 3, SEEK_DATA) >= 0));
    report_line(" hole %ld", outcome(lseek(fd, 3, SEEK_HOLE)));
    report_line(" %ld", outcome(lseek(fd, 5000, SEEK_DATA)));
    lseek(fd, 2, SEEK_SET);
    struct iovec parts[2] = {{bytes, 3}, {other, 64}};
    report_line(" readv %ld %.3s %.5s", outcome(readv(fd, parts, 2)), bytes, other);
    report_line(" preadv %ld", outcome(preadv(fd, parts, 2, 6)));
    report_line(" getdents %ld", outcome(syscall(SYS_getdents64, fd, bytes, 64)));
    report_line(" readlink %ld", outcome(readlink("sub/deep.txt", (char *)bytes, 64)));
    report_line(" write %ld", outcome(write(fd, "x", 1)));
    report_line(" sync %ld", outcome(fsync(fd)));
    report_line(" advice %ld\n", (long)posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL));

    int sub = open("sub", O_RDONLY | O_DIRECTORY);
    int within = openat(sub, "deep.txt", O_RDONLY);
    report_line("openat %ld", outcome(read(within, bytes, 4)));
    report_line(" %ld", outcome(openat(fd, "x", O_RDONLY)));
    report_line(" read %ld", outcome(read(sub, bytes, 4)));
    report_line(" fstatat %ld", outcome(fstatat(sub, "", &status, AT_EMPTY_PATH)));
    report_line(" %ld", outcome(fstatat(sub, "../link", &status, AT_SYMLINK_NOFOLLOW)));
    report_line(" readlinkat %ld", outcome(readlinkat(sub, "../link", (char *)bytes, 5)));
    report_line(" faccessat %ld", outcome(faccessat(sub, "deep.txt", R_OK, 0)));
    int base = open(".", O_RDONLY);
    char directory[512];
    report_line(" chdir %ld", outcome(chdir("sub/empty")));
    report_line(" %s", strrchr(getcwd(directory, sizeof directory), '/'));
    report_line(" %ld", outcome(chdir("../deep.txt")));
    report_line(" fchdir %ld", outcome(fchdir(sub)));
    report_line(" %s", strrchr(getcwd(directory, sizeof directory), '/'));
    report_line(" open %ld", open("deep.txt", O_RDONLY) >= 0 ? 0 : -1l);
    report_line(" fchdir %ld\n", outcome(fchdir(base)));

    int large = open("large.bin", O_RDONLY);
    fstat(large, &status);
    unsigned char *mapped =
        mmap(NULL, (size_t)status.st_size, PROT_READ | PROT_WRITE, MAP_PRIVATE, large, 0);
    report_line("mmap %016lx", mapped == MAP_FAILED ? 0 : hash(mapped, (size_t)status.st_size));
    mapped[4096] ^= 1;
    pread(large, bytes, 1, 4096);
    report_line(" private %d", mapped[4096] != bytes[0]);
    munmap(mapped, (size_t)status.st_size);
    mapped = mmap(NULL, 8192, PROT_READ, MAP_SHARED, large, 4096);
    report_line(" shared %016lx", mapped == MAP_FAILED ? 0 : hash(mapped, 8192));
    munmap(mapped, 8192);
    report_line(" %ld", outcome((long)mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, large, 100) == -1 ? -1 : 0));
    int ends[2];
    off_t at = 4090;
    if (pipe(ends) != 0)
        report_line(" no pipe");
    report_line(" sendfile %ld", outcome(sendfile(ends[1], large, &at, 20)));
    report_line(" %ld %ld", (long)at, outcome(read(ends[0], bytes, 64)));
    report_line(" %016lx", hash(bytes, 20));
    lseek(large, status.st_size - 7, SEEK_SET);
    report_line(" sendfile %ld", outcome(sendfile(ends[1], large, NULL, 100)));
    report_line(" %ld", outcome(sendfile(ends[1], large, NULL, 100)));
    report_line(" %ld", outcome(lseek(large, 0, SEEK_CUR) - status.st_size));
    char name[] = "/tmp/copy-XXXXXX";
    int copy = mkstemp(name);
    loff_t from = 10;
    report_line(" copied %ld", outcome(syscall(SYS_copy_file_range, large, &from, copy, NULL, 5000, 0)));
    report_line(" %ld %ld\n", (long)from, outcome(lseek(copy, 0, SEEK_END)));
    unlink(name);

    DIR *listing = opendir("many");
    long count = 0, middle = 0;
    struct dirent *entry;
    char seventh[256] = "";
    while ((entry = readdir(listing)) != NULL) {
        if (++count == 7)
            middle = telldir(listing);
        if (count == 8)
            strcpy(seventh, entry->d_name);
    }
    report_line("listed %ld", count);
    seekdir(listing, middle);
    entry = readdir(listing);
    report_line(" again %d", entry != NULL && strcmp(entry->d_name, seventh) == 0);
    rewinddir(listing);
    while (readdir(listing) != NULL)
        count++;
    report_line(" %ld", count);
    int many = open("many", O_RDONLY);
    long calls = 0, got;
    static char small[100];
    while ((got = syscall(SYS_getdents64, many, small, sizeof small)) > 0)
        calls++;
    report_line(" %d", calls > 20);
    lseek(many, 0, SEEK_SET);
    report_line(" %ld\n", outcome(syscall(SYS_getdents64, many, small, 8)));
}

static void tell_all(const char *directory) {
    reported = 0;
    if (chdir(directory) != 0) {
        report_line("%s: %s\n", directory, strerror(errno));
        return;
    }
    walk(".", 0);
    tell_paths();
    tell_calls();
}

#define FAILS(call, number)                                                                        \
    do {                                                                                           \
        errno = 0;                                                                                 \
        if ((call) != -1 || errno != (number))                                                     \
            report_line("line %d: %s: errno %d\n", __LINE__, #call, errno);                               \
    } while (0)

/* As on a file system that is mounted read only. */
static void try_writes(void) {
    struct statfs system;
    reported = 0;
    if (chdir("/tree") != 0)
        report_line("no /tree\n");
    FAILS(open("index.html", O_WRONLY), EROFS);
    FAILS(open("index.html", O_RDWR), EROFS);
    FAILS(open("index.html", O_RDONLY | O_TRUNC), EROFS);
    FAILS(open("new", O_WRONLY | O_CREAT, 0600), EROFS);
    FAILS(open("missing/new", O_WRONLY | O_CREAT, 0600), ENOENT);
    FAILS(open("index.html/new", O_WRONLY | O_CREAT, 0600), ENOTDIR);
    FAILS(open("sub", O_WRONLY), EISDIR);
    FAILS(mkdir("new", 0700), EROFS);
    FAILS(mkdir("sub", 0700), EEXIST);
    FAILS(rmdir("sub"), EROFS);
    FAILS(unlink("index.html"), EROFS);
    FAILS(unlink("link"), EROFS);
    FAILS(rename("index.html", "other"), EROFS);
    FAILS(rename("index.html", "/tmp/other"), EXDEV);
    FAILS(symlink("index.html", "new"), EROFS);
    FAILS(truncate("index.html", 0), EROFS);
    FAILS(chmod("index.html", 0600), EROFS);
    FAILS(utime("index.html", NULL), EROFS);
    FAILS(access("index.html", W_OK), EROFS);
    FAILS(access("sub", W_OK), EROFS);
    int fd = open("index.html", O_RDONLY);
    FAILS(fchmod(fd, 0600), EROFS);
    FAILS(ftruncate(fd, 0), EINVAL);
    FAILS(write(fd, "x", 1), EBADF);
    if (statfs("index.html", &system) != 0 || system.f_bfree != 0 || !(system.f_flags & 1))
        report_line("the file system is not read only\n");
    if (statfs("/tmp", &system) != 0 || system.f_bfree == 0 || (system.f_flags & 1))
        report_line("/tmp is read only\n");
    if (open("/tmp/new", O_WRONLY | O_CREAT, 0600) < 0)
        report_line("nothing can be written in /tmp\n");
    close(fd);
    if (reported == 0)
        report_line("fine\n");
}

static const char *query(const struct request *request) {
    const char *mark = strchr(request->path, '?');
    return mark == NULL ? "" : mark + 1;
}

static void handle(const struct request *request) {
    struct stat status;
    if (is_path(request, "/report")) {
        tell_all("/tree");
        answer_bytes(request, report, reported);
    } else if (is_path(request, "/writes")) {
        try_writes();
        answer_bytes(request, report, reported);
    } else if (strncmp(request->path, "/size?", 6) == 0) {
        answer(request, "%ld\n", stat(query(request), &status) == 0 ? (long)status.st_size : -1l);
    } else if (strncmp(request->path, "/list?", 6) == 0) {
        DIR *listing = opendir(query(request));
        struct dirent *entry;
        reported = 0;
        while (listing != NULL && (entry = readdir(listing)) != NULL)
            report_line("%s\n", entry->d_name);
        answer_bytes(request, report, reported);
    } else if (strncmp(request->path, "/file?", 6) == 0) {
        int fd = open(query(request), O_RDONLY);
        char head[128];
        if (fd < 0 || fstat(fd, &status) != 0) {
            answer(request, "%s\n", strerror(errno));
            return;
        }
        int used = snprintf(head, sizeof head, "HTTP/1.1 200 OK\r\nContent-Length: %ld\r\n\r\n",
                            (long)status.st_size);
        send_all(request->connection, head, (size_t)used);
        for (off_t at = 0; at < status.st_size;) {
            if (sendfile(request->connection, fd, &at, (size_t)(status.st_size - at)) <= 0)
                exit(95);
        }
        close(fd);
    }
}

int main(int argc, char **argv) {
    if (argc == 3 && strcmp(argv[1], "--report") == 0) {
        tell_all(argv[2]);
        return write(1, report, reported) == (ssize_t)reported ? 0 : 1;
    }
    serve(handle);
}
