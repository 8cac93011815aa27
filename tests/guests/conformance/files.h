/*
 * Files below /tmp. Left out: times before 1970; holes, which a file of /tmp does not have; sizes and link counts of
 * directories, and blocks.
 */
#include <sys/stat.h>
#include <sys/sendfile.h>
#include <sys/uio.h>
#include <time.h>

static const char *const names[] = {
    "a", "b", "c", "d", "d/a", "d/b", "d/e", "d/e/f", "l", "l/a", "m", "a/", "d/", "a/x", "",
    ".", "..", "d/..", "d/.", "../w/a", "/tmp/w/b", "/tmp/w/d/", "gone/x", "./a", "d//a",
};
static char longest[258];
static int64_t descriptors[12];

static void files_start(void) {
    memset(longest, 'n', 256);
    mkdir("/tmp/w", 0755);
    if (chdir("/tmp/w") != 0)
        exit(73);
    for (int i = 0; i < 12; i++)
        descriptors[i] = -1;
    umask(022);
}

static const char *any_name(char *shown) {
    if (one_in(24)) {
        struct pointer at = pointers[4 + below(3)];
        strcpy(shown, at.name);
        return at.at;
    }
    if (one_in(40)) {
        longest[255] = (char)(one_in(2) ? 'n' : 0);
        strcpy(shown, longest[255] ? "longer" : "longest");
        return longest;
    }
    const char *name = names[one_in(3) ? below(sizeof names / sizeof *names) : below(11)];
    sprintf(shown, "\"%s\"", name);
    return name;
}

static int any_descriptor(void) {
    if (one_in(16))
        return (int)PICK(-1, 1023, 1024, 99999);
    for (int tries = 0; tries < 8; tries++) {
        int64_t fd = descriptors[below(12)];
        if (fd >= 0)
            return (int)fd;
    }
    return -1;
}

static void hold(long fd) {
    if (fd < 0)
        return;
    int place = (int)below(12);
    if (descriptors[place] >= 0)
        CALL(SYS_close, descriptors[place]);
    for (int i = 0; i < 12; i++)
        if (descriptors[i] == fd)
            descriptors[i] = -1;
    descriptors[place] = fd;
}

static void say_status(const struct stat *status) {
    /* A directory that was removed while it was open has lost what it had. */
    say(" mode=%o", status->st_mode & (S_ISDIR(status->st_mode) ? S_IFMT : ~0u));
    if (!S_ISDIR(status->st_mode))
        say(" size=%ld links=%ld", (long)status->st_size, (long)status->st_nlink);
    say(" ids=%d,%d block=%ld", status->st_uid, status->st_gid, (long)status->st_blksize);
}

/* Sorted, since the order is nobody's promise. */
static int by_text(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }
static void say_entries(int fd) {
    char *found[64];
    int count = 0;
    static char room[8192];
    size_t used = 0;
    for (;;) {
        long got = CALL(SYS_getdents64, fd, ground, PAGE);
        if (got <= 0) {
            recorded(got);
            break;
        }
        for (long at = 0; at < got && count < 64;) {
            unsigned short record = *(unsigned short *)(ground + at + 16);
            found[count] = room + used;
            used += (size_t)sprintf(room + used, "%s:%d", ground + at + 19, ground[at + 18]) + 1;
            count++;
            at += record;
        }
    }
    qsort(found, (size_t)count, sizeof *found, by_text);
    for (int i = 0; i < count; i++)
        say(" %s", found[i]);
}

static int wrote_nothing(size_t line) {
    const char *text = transcript + line;
    return strstr(text, "write") != NULL && strstr(text, "= EFAULT") != NULL;
}

static void files_step(void) {
    size_t line = transcript_used;
    char one[320], two[320];
    const char *a = any_name(one);
    const char *b = any_name(two);
    int which_call = (int)below(49);
    /* Which of two bad names is told of first is nobody's promise. */
    if (which_call == 21 || which_call == 22) {
        if (one[0] != '"')
            a = "a", strcpy(one, "\"a\"");
        if (two[0] != '"')
            b = "m", strcpy(two, "\"m\"");
    }
    int fd = any_descriptor(), other = any_descriptor();
    struct pointer at = any_pointer();
    int64_t bytes = PICK(0, 1, 3, 7, 100, 100, 1000, 4096, 5000);
    if (at.name[0] != 'b' && one_in(6))
        bytes = PICK(-1, 1L << 62, 1L << 31);
    if (at.name[0] == 'b' && (size_t)bytes > at.reads)
        bytes = 1;
    int64_t place = PICK(0, 0, 1, 50, 4095, 4096, 6000, -1);
    struct stat status, before;
    int is_file = CALL(SYS_fstat, fd, &before) == 0 && S_ISREG(before.st_mode);
    fill((char)step);
    say("%u ", step);
    switch (which_call) {
    case 0:
    case 1:
    case 2:
    case 3:
    case 4: {
        int flags = (int)PICK(O_RDONLY, O_RDWR, O_RDWR, O_WRONLY, 3);
        if (!one_in(3))
            flags |= O_CREAT;
        if (one_in(6))
            flags |= O_EXCL;
        if (one_in(6))
            flags |= O_TRUNC;
        if (one_in(6))
            flags |= O_APPEND;
        if (one_in(8))
            flags |= O_DIRECTORY;
        if (one_in(6))
            flags |= O_NOFOLLOW;
        if (one_in(8))
            flags |= O_CLOEXEC;
        if (one_in(8))
            flags |= O_NONBLOCK;
        if (one_in(10))
            flags |= O_PATH;
        int mode = (int)PICK(0644, 0600, 0777, 0, 04755);
        say("open(%s, %#o, %#o)", one, flags, mode);
        hold(recorded(CALL(SYS_open, a, flags, mode)));
        break;
    }
    case 5: {
        say("openat(%d, %s, %#o)", fd, one, O_RDONLY);
        hold(recorded(CALL(SYS_openat, fd, a, O_RDONLY, 0)));
        break;
    }
    case 6: {
        say("close(%d)", fd);
        if (recorded(CALL(SYS_close, fd)) == 0)
            for (int i = 0; i < 12; i++)
                if (descriptors[i] == fd)
                    descriptors[i] = -1;
        break;
    }
    case 7:
    case 8: {
        memset(ground, 0, BUFFER_BYTES);
        say("read(%d, %s, %ld)", fd, at.name, (long)bytes);
        recorded(CALL(SYS_read, fd, at.at, bytes));
        say_hash(ground, BUFFER_BYTES);
        break;
    }
    case 9:
    case 10:
    case 11:
        say("write(%d, %s, %ld)", fd, at.name, (long)bytes);
        recorded(CALL(SYS_write, fd, at.at, bytes));
        break;
    case 12:
        memset(ground, 0, BUFFER_BYTES);
        say("pread(%d, %s, %ld, %ld)", fd, at.name, (long)bytes, (long)place);
        recorded(CALL(SYS_pread64, fd, at.at, bytes, place));
        say_hash(ground, BUFFER_BYTES);
        break;
    case 13:
        say("pwrite(%d, %s, %ld, %ld)", fd, at.name, (long)bytes, (long)place);
        recorded(CALL(SYS_pwrite64, fd, at.at, bytes, place));
        break;
    case 14:
    case 15: {
        struct iovec parts[3];
        int count = (int)PICK(0, 1, 2, 3, 3, -1, 1025);
        int reads = (int)below(2), positioned = (int)below(2);
        say("%s%sv(%d, {", positioned ? "p" : "", reads ? "read" : "write", fd);
        for (int i = 0; i < 3; i++) {
            struct pointer part = any_pointer();
            parts[i] = (struct iovec){part.at, (size_t)PICK(0, 1, 10, 100)};
            if (part.name[0] == 'b')
                parts[i].iov_base = part.at + 1000 * i;
            if (one_in(20))
                parts[i].iov_len = (size_t)-1;
            say("%s:%ld ", part.name, (long)parts[i].iov_len);
        }
        say("}, %d, %ld)", count, (long)place);
        long number = positioned ? reads ? SYS_preadv : SYS_pwritev : reads ? SYS_readv : SYS_writev;
        if (reads)
            memset(ground, 0, BUFFER_BYTES);
        recorded(CALL(number, fd, parts, count, place, 0));
        say_hash(ground, BUFFER_BYTES);
        break;
    }
    case 16: {
        int whence = (int)PICK(0, 0, 1, 2, 5, -1);
        /* What a place in a directory means is the file system's matter. */
        if (!is_file)
            whence = 0, place = 0;
        say("lseek(%d, %ld, %d)", fd, (long)place, whence);
        recorded(CALL(SYS_lseek, fd, place, whence));
        break;
    }
    case 17: {
        int64_t far = PICK(-1, 1 << 20, 1L << 40);
        int whence = (int)PICK(SEEK_DATA, SEEK_HOLE);
        say("lseek(%d, %ld, %d)", fd, (long)far, whence);
        recorded(CALL(SYS_lseek, fd, far, whence));
        break;
    }
    case 18: {
        int64_t size = PICK(0, 10, 5000, -1, 4096);
        say("ftruncate(%d, %ld)", fd, (long)size);
        recorded(CALL(SYS_ftruncate, fd, size));
        break;
    }
    case 19: {
        int64_t size = PICK(0, 10, 5000, -1);
        say("truncate(%s, %ld)", one, (long)size);
        recorded(CALL(SYS_truncate, a, size));
        break;
    }
    case 20: {
        int mode = (int)PICK(0, 0, 1, 0x400);
        int64_t from = PICK(0, 10, -1), count = PICK(0, 100, 6000, -1);
        say("fallocate(%d, %d, %ld, %ld)", fd, mode, (long)from, (long)count);
        recorded(CALL(SYS_fallocate, fd, mode, from, count));
        break;
    }
    case 21:
    case 22: {
        int flags = (int)PICK(0, 0, 1, 8);
        say("renameat2(%s, %s, %d)", one, two, flags);
        recorded(CALL(SYS_renameat2, AT_FDCWD, a, AT_FDCWD, b, flags));
        break;
    }
    case 23: {
        static const char *const targets[] = {"a", "d", "l", "gone", "../w/b", "/tmp/w/d/e", "", "m"};
        const char *target = targets[below(8)];
        say("symlink(\"%s\", %s)", target, one);
        recorded(CALL(SYS_symlink, target, a));
        break;
    }
    case 24: {
        int64_t room = PICK(0, 1, 100, -1);
        memset(ground, 0, BUFFER_BYTES);
        say("readlink(%s, %s, %ld)", one, at.name, (long)room);
        recorded(CALL(SYS_readlink, a, at.at, room));
        say_hash(ground, BUFFER_BYTES);
        break;
    }
    case 25:
        say("unlink(%s)", one);
        recorded(CALL(SYS_unlink, a));
        break;
    case 26:
    case 27:
        say("mkdir(%s)", one);
        recorded(CALL(SYS_mkdir, a, PICK(0755, 0700, 01777)));
        break;
    case 28:
        say("rmdir(%s)", one);
        recorded(CALL(SYS_rmdir, a));
        break;
    case 29:
        say("getdents64(%d)", fd);
        say_entries(fd);
        break;
    case 30: {
        int which = (int)below(3);
        say("%s(%s)", which == 0 ? "stat" : which == 1 ? "lstat" : "fstat", one);
        if (which == 2)
            say("%d", fd);
        long number = which == 0 ? SYS_stat : which == 1 ? SYS_lstat : SYS_fstat;
        if (recorded(CALL(number, which == 2 ? fd : (long)a, &status)) == 0)
            say_status(&status);
        break;
    }
    case 31: {
        int flags = (int)PICK(0, AT_SYMLINK_NOFOLLOW, AT_EMPTY_PATH, 1);
        /* Newer kernels take no path for an empty one. */
        if (a == NULL)
            a = "a";
        say("newfstatat(%d, %s, %#x)", fd, one, flags);
        if (recorded(CALL(SYS_newfstatat, one_in(2) ? fd : AT_FDCWD, a, &status, flags)) == 0)
            say_status(&status);
        break;
    }
    case 32: {
        int mode = (int)PICK(0, 1, 2, 4, 7, 8);
        say("access(%s, %d)", one, mode);
        recorded(CALL(SYS_access, a, mode));
        break;
    }
    case 33: {
        int mode = (int)PICK(0644, 0, 0777, 07777);
        if (one_in(2)) {
            say("chmod(%s, %o)", one, mode);
            recorded(CALL(SYS_chmod, a, mode));
        } else {
            say("fchmod(%d, %o)", fd, mode);
            recorded(CALL(SYS_fchmod, fd, mode));
        }
        break;
    }
    case 34: {
        long times[4] = {PICK(0, 1, 1600000000), PICK(0, 5, 999999999, 1000000000, -1, 0x3ffffffe),
                         PICK(0, 1, 1600000000), PICK(0, 5, 999999999, 1000000000, 0x3ffffffe)};
        say("utimensat(%s, {%ld,%ld,%ld,%ld})", one, times[0], times[1], times[2], times[3]);
        /* /tmp itself has no time that could be set. */
        if (a != NULL && strcmp(one, "\"..\"") == 0)
            a = ".";
        long got = recorded(CALL(SYS_utimensat, AT_FDCWD, a, times, 0));
        if (got == 0 && CALL(SYS_stat, a, &status) == 0 && times[3] < 1000000000)
            say(" mtime=%ld.%ld", (long)status.st_mtim.tv_sec, status.st_mtim.tv_nsec);
        break;
    }
    case 35: {
        int which = (int)below(3), to = (int)PICK(20, 21, 1023, 1024, -1, fd);
        if (which == 0) {
            say("dup(%d)", fd);
            hold(recorded(CALL(SYS_dup, fd)));
        } else {
            int flags = which == 2 ? (int)PICK(0, O_CLOEXEC, 1) : 0;
            say("dup%d(%d, %d, %#x)", which + 1, fd, to, flags);
            long got = recorded(CALL(which == 1 ? SYS_dup2 : SYS_dup3, fd, to, flags));
            if (got >= 0 && got != fd)
                hold(got);
        }
        break;
    }
    case 36: {
        int command = (int)PICK(F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD, F_DUPFD_CLOEXEC, 77);
        int64_t argument = PICK(0, 1, O_APPEND, O_NONBLOCK, 30, -1, 1024);
        say("fcntl(%d, %d, %ld)", fd, command, (long)argument);
        if (command == F_SETFL && argument < 0)
            argument = 0;
        long got = CALL(SYS_fcntl, fd, command, argument);
        recorded(got);
        if (command == F_DUPFD || command == F_DUPFD_CLOEXEC)
            hold(got);
        break;
    }
    case 37: {
        int which = (int)below(2);
        int64_t from = PICK(0, 5, 5000, -1);
        /* Which error a place before the start is differs with the count. */
        if (which && from < 0)
            from = 0;
        int64_t *offset = one_in(2) ? &from : NULL;
        int64_t count = PICK(1, 100, 5000);
        /* From a file to itself is not a copy of anything in particular. */
        struct stat to;
        if (is_file && CALL(SYS_fstat, other, &to) == 0 && to.st_ino == before.st_ino)
            other = -1;
        say("%s(%d, %d, %ld%s, %ld)", which ? "copy_file_range" : "sendfile", fd, other,
            (long)from, offset ? "" : " unused", (long)count);
        recorded(which ? CALL(SYS_copy_file_range, fd, offset, other, 0, count, 0)
                   : CALL(SYS_sendfile, other, fd, offset, count));
        say(" at=%ld", (long)from);
        break;
    }
    case 38: {
        say("chdir(%s)", one);
        recorded(CALL(SYS_chdir, a));
        memset(ground, 0, BUFFER_BYTES);
        say(" getcwd(%s)", at.name);
        recorded(CALL(SYS_getcwd, at.at, PICK(0, 1, 4, 100)));
        if (at.at == ground)
            say(" \"%s\"", ground);
        CALL(SYS_chdir, "/tmp/w");
        break;
    }
    case 39:
    case 40: {
        int flags = (int)PICK(0, 0, 0, AT_SYMLINK_FOLLOW, AT_EMPTY_PATH, 1);
        int at_descriptor = flags == AT_EMPTY_PATH ? fd : AT_FDCWD;
        /* Whether a file that has lost its last name may have a new one is the file system's matter. */
        if (at_descriptor == fd && is_file && before.st_nlink == 0)
            at_descriptor = AT_FDCWD;
        say("linkat(%d, %s, %s, %#x)", at_descriptor, one, two, flags);
        if (recorded(CALL(SYS_linkat, at_descriptor, a, AT_FDCWD, b, flags)) == 0 &&
            CALL(SYS_newfstatat, AT_FDCWD, b, &status, AT_SYMLINK_NOFOLLOW) == 0)
            say_status(&status);
        break;
    }
    case 42: {
        int flags = (int)PICK(0, 0, AT_SYMLINK_NOFOLLOW, AT_EMPTY_PATH, 1);
        int user = (int)PICK(0, 7, 1000, -1), group = (int)PICK(0, 8, -1);
        if (one_in(3)) {
            say("fchown(%d, %d, %d)", fd, user, group);
            recorded(CALL(SYS_fchown, fd, user, group));
            if (CALL(SYS_fstat, fd, &status) == 0)
                say_status(&status);
            break;
        }
        /* /tmp itself has no owner that could be set. */
        if (a != NULL && strcmp(one, "\"..\"") == 0)
            a = ".";
        int at_descriptor = flags & AT_EMPTY_PATH ? fd : AT_FDCWD;
        say("fchownat(%d, %s, %d, %d, %#x)", at_descriptor, one, user, group, flags);
        if (recorded(CALL(SYS_fchownat, at_descriptor, a, user, group, flags)) == 0 &&
            CALL(SYS_newfstatat, at_descriptor, a, &status, flags) == 0)
            say_status(&status);
        break;
    }
    case 43: {
        /* As much of struct statx as is looked at; not every libc has it. */
        struct {
            uint32_t mask, block_bytes;
            uint64_t attributes;
            uint32_t links, user, group;
            uint16_t mode, rest[113];
        } more;
        unsigned flags = (unsigned)PICK(0, AT_SYMLINK_NOFOLLOW, AT_EMPTY_PATH, 0x2000, 0x6000, 1), mask = (unsigned)PICK(0x7ff, 0xfff, 0x80000000);
        if (a == NULL)
            a = "a";
        memset(&more, 0, sizeof more);
        say("statx(%s, %#x, %#x)", one, flags, mask);
        if (recorded(CALL(SYS_statx, one_in(2) ? fd : AT_FDCWD, a, flags, mask, &more)) == 0)
            say(" mode=%o ids=%u,%u block=%u mask %d", S_ISDIR(more.mode) ? S_IFDIR : more.mode, more.user,
                more.group, more.block_bytes, (more.mask & 0x7ff) == 0x7ff);
        break;
    }
    case 44: {
        int mode = (int)PICK(0644, 04755, 02755, 02644), flags = (int)PICK(0, 0, 1);
        say("fchmodat(%s, %o)", one, mode);
        recorded(CALL(SYS_fchmodat, AT_FDCWD, a, mode, flags));
        break;
    }
    case 45: {
        long pair[4] = {PICK(0, 5, 1600000000), PICK(0, 5, 999999, 1000000), PICK(0, 7), PICK(0, 5, 1000000)};
        int which = (int)below(3), none = one_in(6);
        say("%s(%s, {%ld, %ld, %ld, %ld}%s)", which == 0 ? "utime" : which == 1 ? "utimes" : "futimesat", one, pair[0],
            pair[1], pair[2], pair[3], none ? " now" : "");
        if (a != NULL && strcmp(one, "\"..\"") == 0)
            a = ".";
        long got = recorded(which == 0   ? CALL(SYS_utime, a, none ? NULL : pair)
                            : which == 1 ? CALL(SYS_utimes, a, none ? NULL : pair)
                                         : CALL(SYS_futimesat, AT_FDCWD, a, none ? NULL : pair));
        if (got == 0 && !none && CALL(SYS_stat, a, &status) == 0)
            say(" atime=%ld.%ld mtime=%ld.%ld", (long)status.st_atim.tv_sec, status.st_atim.tv_nsec,
                (long)status.st_mtim.tv_sec, status.st_mtim.tv_nsec);
        break;
    }
    case 46: {
        int kind = (int)PICK(0, S_IFREG, S_IFREG | 04000, 0150000, S_IFIFO, S_IFSOCK);
        say("mknod(%s, %#o)", one, kind | 0644);
        long made = recorded(CALL(SYS_mknod, a, kind | 0644, 0));
        /* Not for long: who opens one end of a FIFO waits. */
        if (made == 0 && (kind == S_IFIFO || kind == S_IFSOCK)) {
            if (recorded(CALL(SYS_stat, a, &status)) == 0)
                say_status(&status);
            recorded(CALL(SYS_open, a, O_WRONLY | O_NONBLOCK));
            long both = recorded(CALL(SYS_open, a, O_RDWR | (int)PICK(0, O_TRUNC, O_CREAT, O_APPEND)));
            if (both >= 0) {
                recorded(CALL(SYS_write, both, ground, 10));
                recorded(CALL(SYS_read, both, ground, 20));
                recorded(CALL(SYS_ftruncate, both, 0));
                recorded(CALL(SYS_close, both));
            }
            recorded(CALL(SYS_truncate, a, 0));
            recorded(CALL(SYS_unlink, a));
        }
        break;
    }
    case 47: {
        struct iovec parts[2] = {{ground, (size_t)PICK(0, 1, 100)}, {ground + 5000, (size_t)PICK(0, 10)}};
        int flags = (int)PICK(0, 0, 8, 2, 0x10, 0x1000), reads = (int)below(2);
        int64_t from = PICK(0, 10, -1, -2);
        /* What cannot wait for a write is another file system's matter, and so is a pipe's place. */
        if (!is_file || !reads)
            flags &= ~8;
        if (!is_file)
            fd = -1;
        if (reads)
            memset(ground, 0, BUFFER_BYTES);
        say("p%sv2(%d, %zu+%zu, %ld, %#x)", reads ? "read" : "write", fd, parts[0].iov_len, parts[1].iov_len, (long)from, flags);
        recorded(CALL(reads ? SYS_preadv2 : SYS_pwritev2, fd, parts, 2, from, 0, flags));
        say_hash(ground, BUFFER_BYTES);
        break;
    }
    case 48: {
        /* F_OFD_GETLK and F_OFD_SETLK, and F_GETLK: of the process's own locks nothing is kept. Newer kernels tell of
           an opening's own locks by F_UNLCK. */
        struct flock lock = {.l_type = (short)PICK(0, 1, 1, 2, 7), .l_whence = (short)PICK(0, 0, 1, 2, 3),
                             .l_start = PICK(0, 10, 20, -5), .l_len = PICK(0, 10, 25, -5), .l_pid = (pid_t)PICK(0, 0, 0, 5)};
        int command = (int)PICK(36, 37, 37, 37, 5);
        if (command == 36 && lock.l_type == 2)
            lock.l_type = 1;
        if (!is_file)
            fd = -1;
        say("fcntl(%d, %d, %d from %d %ld+%ld of %d)", fd, command, lock.l_type, lock.l_whence, (long)lock.l_start,
            (long)lock.l_len, lock.l_pid);
        long got = CALL(SYS_fcntl, fd, command, &lock);
        recorded(got);
        if (got == 0 && (command == 36 || command == 5))
            say(" %d from %d %ld+%ld of %d", lock.l_type, lock.l_whence, (long)lock.l_start, (long)lock.l_len, lock.l_pid);
        break;
    }
    default: {
        int which = (int)below(6);
        int64_t advice = PICK(0, 3, 4, 9);
        say("other %d(%d, %ld)", which, fd, (long)advice);
        long got = which == 0   ? CALL(SYS_umask, PICK(022, 0, 077))
                   : which == 1 ? CALL(SYS_fsync, fd)
                   : which == 2 ? CALL(SYS_fadvise64, fd, 0, 100, advice)
                   : which == 3 ? CALL(SYS_readahead, fd, 0, 100)
                   : which == 4 ? CALL(SYS_flock, fd, PICK(5, 6, 8, 6, 0, 77))
                                : CALL(SYS_fchdir, fd);
        if (which == 5 && got == 0)
            CALL(SYS_chdir, "/tmp/w");
        recorded(got);
        break;
    }
    }
    /* Where a write that copied nothing would have been, Linux's tmpfs may leave the file longer. */
    if (is_file && CALL(SYS_fstat, fd, &status) == 0 && wrote_nothing(line))
        CALL(SYS_ftruncate, fd, before.st_size);
    say("\n");
}
