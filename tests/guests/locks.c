/* Locks of files, which belong to one opening each: two openings of one process meet, copies of a descriptor do not.
   On the host the same program tells the same. */
#include "threads.h"
#include <fcntl.h>
#include <sys/file.h>

static char name[64];
static int one, same, other;

static void open_all(void) {
    snprintf(name, sizeof name, "/tmp/locks-%d", (int)getpid());
    one = open(name, O_RDWR | O_CREAT, 0600);
    same = dup(one);
    other = open(name, O_RDWR);
    if (one < 0 || same < 0 || other < 0)
        failed("open");
}

static void close_all(void) {
    close(one);
    close(same);
    close(other);
    unlink(name);
}

static void whole(void) {
    tell_result("shared", flock(one, LOCK_SH));
    tell_result("the other, shared", flock(other, LOCK_SH | LOCK_NB));
    tell_result("exclusive", flock(one, LOCK_EX | LOCK_NB));
    tell_result("the other goes", flock(other, LOCK_UN));
    tell_result("exclusive", flock(same, LOCK_EX | LOCK_NB));
    tell_result("the other, exclusive", flock(other, LOCK_EX | LOCK_NB));
    tell_result("the other, shared", flock(other, LOCK_SH | LOCK_NB));
    tell_result("again", flock(one, LOCK_EX | LOCK_NB));
    close(one);
    tell_result("a copy has it still", flock(other, LOCK_SH | LOCK_NB));
    close(same);
    tell_result("all are closed", flock(other, LOCK_EX | LOCK_NB));
    one = open(name, O_RDONLY);
    tell_result("a third, shared", flock(one, LOCK_SH | LOCK_NB));
    tell_result("what is no lock", flock(one, 16));
    int mere = open(name, O_PATH);
    tell_result("a mere name", flock(mere, LOCK_SH));
    close(mere);
    same = dup(one);
}

static long lock(int fd, int command, short kind, off_t start, off_t bytes) {
    struct flock range = {.l_type = kind, .l_whence = SEEK_SET, .l_start = start, .l_len = bytes};
    return fcntl(fd, command, &range);
}

static void in_the_way(const char *what, int fd, int command, short kind, off_t start, off_t bytes) {
    struct flock range = {.l_type = kind, .l_whence = SEEK_SET, .l_start = start, .l_len = bytes};
    if (fcntl(fd, command, &range) != 0)
        tell("%s: %s\n", what, strerrorname(errno));
    else if (range.l_type == F_UNLCK)
        tell("%s: none\n", what);
    else
        tell("%s: %s %ld %ld %d\n", what, range.l_type == F_WRLCK ? "write" : "read", (long)range.l_start,
             (long)range.l_len, (int)range.l_pid);
}

static void ranges(void) {
    tell_result("write", lock(one, F_OFD_SETLK, F_WRLCK, 10, 10));
    tell_result("the same opening", lock(same, F_OFD_SETLK, F_RDLCK, 15, 10));
    in_the_way("in the way", other, F_OFD_GETLK, F_RDLCK, 0, 0);
    in_the_way("in the way behind", other, F_OFD_GETLK, F_WRLCK, 15, 0);
    in_the_way("in the way of reading behind", other, F_OFD_GETLK, F_RDLCK, 15, 0);
    tell_result("write there", lock(other, F_OFD_SETLK, F_WRLCK, 14, 1));
    tell_result("read behind", lock(other, F_OFD_SETLK, F_RDLCK, 15, 0));
    tell_result("write before", lock(other, F_OFD_SETLK, F_WRLCK, 0, 10));
    tell_result("divided", lock(one, F_OFD_SETLK, F_UNLCK, 12, 1));
    in_the_way("in the way", other, F_OFD_GETLK, F_WRLCK, 0, 0);
    in_the_way("in the hole", other, F_OFD_GETLK, F_WRLCK, 12, 1);
    in_the_way("behind the hole", other, F_OFD_GETLK, F_WRLCK, 12, 3);
    in_the_way("of the other", one, F_OFD_GETLK, F_WRLCK, 30, 5);
    /* The file's size is a place to count from too. */
    tell_result("truncate", ftruncate(one, 100));
    struct flock range = {.l_type = F_WRLCK, .l_whence = SEEK_END, .l_start = -2, .l_len = -3};
    tell_result("before its end", fcntl(one, F_OFD_SETLK, &range));
    tell_result("the other goes", lock(other, F_OFD_SETLK, F_UNLCK, 0, 0));
    tell_result("before its end", fcntl(one, F_OFD_SETLK, &range));
    in_the_way("that is", other, F_OFD_GETLK, F_RDLCK, 50, 0);
    range.l_pid = 1;
    tell_result("of a process", fcntl(one, F_OFD_SETLK, &range));
    tell_result("before the start", lock(one, F_OFD_SETLK, F_RDLCK, 2, -5));
    tell_result("no kind", lock(one, F_OFD_SETLK, 9, 0, 0));
    int reads = open(name, O_RDONLY);
    tell_result("to write what it reads", lock(reads, F_OFD_SETLK, F_WRLCK, 1000, 1));
    tell_result("to read it", lock(reads, F_OFD_SETLK, F_RDLCK, 1000, 1));
    close(reads);
    tell_result("closed", lock(one, F_OFD_SETLK, F_WRLCK, 1000, 1));
    tell_result("beside the others", flock(other, LOCK_EX | LOCK_NB));
}

static void *waits_for_whole(void *argument) {
    note(flock(other, LOCK_EX));
    return argument;
}

static void *waits_for_range(void *argument) {
    note(lock(other, F_OFD_SETLKW, F_WRLCK, 0, 1));
    return argument;
}

static void waits(void) {
    pthread_t thread;
    result = -7;
    tell_result("exclusive", flock(one, LOCK_EX));
    pthread_create(&thread, NULL, waits_for_whole, NULL);
    pause_a_little();
    tell("waits: %d\n", result == -7);
    tell_result("unlock", flock(one, LOCK_UN));
    pthread_join(thread, NULL);
    tell("has it: %d\n", result == 0);
    result = -7;
    tell_result("a range", lock(one, F_OFD_SETLK, F_RDLCK, 0, 0));
    pthread_create(&thread, NULL, waits_for_range, NULL);
    pause_a_little();
    tell("waits: %d\n", result == -7);
    close(one);
    close(same);
    pthread_join(thread, NULL);
    tell("has it: %d\n", result == 0);
    one = open(name, O_RDWR), same = dup(one);
}

/* The process's own meet each other nowhere, but those of openings. */
static void process(void) {
    tell_result("write", lock(one, F_SETLK, F_WRLCK, 0, 10));
    tell_result("by the other", lock(other, F_SETLK, F_WRLCK, 5, 10));
    in_the_way("in the way of its own", other, F_GETLK, F_WRLCK, 0, 0);
    tell_result("unlock", lock(one, F_SETLK, F_UNLCK, 0, 0));
    tell_result("of an opening", lock(one, F_OFD_SETLK, F_WRLCK, 0, 10));
    in_the_way("in the way of the process", other, F_GETLK, F_WRLCK, 0, 0);
    tell_result("the process", lock(other, F_SETLK, F_RDLCK, 9, 1));
    tell_result("the process behind it", lock(other, F_SETLK, F_RDLCK, 10, 1));
    tell_result("asked for none", lock(other, F_GETLK, F_UNLCK, 0, 0));
    tell_result("too far", lock(one, F_SETLK, F_RDLCK, 1, 0x7fffffffffffffff));
    tell_result("and farther", lock(one, F_SETLK, F_RDLCK, 2, 0x7fffffffffffffff));
    tell_result("nowhere", fcntl(one, F_SETLK, NULL));
}

static void handle(const struct request *request) {
    told[0] = '\0';
    open_all();
    if (is_path(request, "/whole"))
        whole();
    if (is_path(request, "/ranges"))
        ranges();
    if (is_path(request, "/waits"))
        waits();
    if (is_path(request, "/process"))
        process();
    close_all();
    answer(request, "%s", told);
}

int main(int count, char **arguments) {
    serve_or_run(count, arguments, handle);
}
