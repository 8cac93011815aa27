/* Descriptors that travel through local sockets, and what is left when there are none left. Each path tells
   what the calls gave; on the host the same program tells the same. */
#include "guest.h"
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/un.h>

enum { MOST = 8 };

/* Sends `count` descriptors with `bytes` bytes of text; `control_bytes` says how much of the control data. */
static long give(int to, const char *text, size_t bytes, const int *fds, size_t count) {
    char control[CMSG_SPACE(sizeof(int) * 300)];
    memset(control, 0, sizeof control);
    struct iovec part = {(void *)(uintptr_t)text, bytes};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control};
    message.msg_controllen = CMSG_SPACE(sizeof(int) * count);
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    head->cmsg_level = SOL_SOCKET;
    head->cmsg_type = SCM_RIGHTS;
    head->cmsg_len = CMSG_LEN(sizeof(int) * count);
    memcpy(CMSG_DATA(head), fds, sizeof(int) * count);
    return sendmsg(to, &message, MSG_NOSIGNAL);
}

/* Receives up to `bytes` bytes, with room for `room` descriptors; tells of it all, and gives how many came. */
static int take(const char *what, int from, size_t bytes, size_t room, int flags, int *fds) {
    char control[CMSG_SPACE(sizeof(int) * MOST)], text[64];
    memset(control, 0, sizeof control);
    struct iovec parts[2] = {{text, bytes / 2}, {text + bytes / 2, bytes - bytes / 2}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2, .msg_control = room ? control : NULL};
    message.msg_controllen = room ? CMSG_SPACE(sizeof(int) * room) : 0;
    /* One part, where bytes are only looked at. */
    if (flags & MSG_PEEK)
        parts[0].iov_len = bytes, message.msg_iovlen = 1;
    long got = recvmsg(from, &message, flags);
    tell_result(what, got);
    if (got < 0)
        return 0;
    int count = 0;
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    if (head != NULL && head->cmsg_type == SCM_RIGHTS) {
        count = (int)((head->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        memcpy(fds, CMSG_DATA(head), sizeof(int) * (size_t)count);
    }
    tell("  \"%.*s\", %d descriptors, %d of control, flags %#x\n", (int)got, text, count,
         (int)message.msg_controllen, message.msg_flags);
    return count;
}

static int lowest_free(void) {
    int fd = dup(0);
    close(fd);
    return fd;
}

static void rights(void) {
    int ends[2], ways[2], fds[MOST];
    socketpair(AF_UNIX, SOCK_STREAM, 0, ends);
    if (pipe(ways) != 0)
        return;
    /* What was sent can be used when the sender has closed it. */
    tell_result("send", give(ends[0], "pipe", 4, ways, 2));
    close(ways[0]);
    close(ways[1]);
    int before = lowest_free();
    int count = take("receive", ends[1], 16, 4, 0, fds);
    tell("from the lowest on: %d %d\n", count > 0 && fds[0] == before, count > 1 && fds[1] == before + 1);
    char text[8] = {0};
    tell_result("write", write(fds[1], "alive", 5));
    tell_result("read", read(fds[0], text, sizeof text));
    close(fds[1]);
    tell_result("end", read(fds[0], text, sizeof text));
    close(fds[0]);
    /* What came before is received along, what comes behind is not. */
    int one = open("/dev/null", O_RDWR);
    tell_result("before", write(ends[0], "ab", 2));
    tell_result("with", give(ends[0], "cd", 2, &one, 1));
    tell_result("behind", write(ends[0], "ef", 2));
    close(take("glued", ends[1], 16, 4, 0, fds) ? fds[0] : -1);
    take("rest", ends[1], 16, 4, 0, fds);
    /* A part of a message brings them; the other part does not. */
    tell_result("with", give(ends[0], "ghij", 4, &one, 1));
    tell_result("with", give(ends[0], "kl", 2, &one, 1));
    close(take("looked at", ends[1], 16, 4, MSG_PEEK, fds) ? fds[0] : -1);
    close(take("a part", ends[1], 2, 4, 0, fds) ? fds[0] : -1);
    close(take("the rest and the next", ends[1], 16, 4, 0, fds) ? fds[0] : -1);
    /* Too little room, or none. */
    int three[3] = {one, one, one};
    tell_result("three", give(ends[0], "mn", 2, three, 3));
    count = take("room for two", ends[1], 16, 2, 0, fds);
    while (count-- > 0)
        close(fds[count]);
    tell_result("three", give(ends[0], "op", 2, three, 3));
    take("no room", ends[1], 16, 0, 0, fds);
    tell_result("three", give(ends[0], "qr", 2, three, 3));
    tell_result("read", read(ends[1], text, sizeof text));
    tell("nothing left open: %d\n", lowest_free() == one + 1);
    /* What cannot be sent. */
    int bad[2] = {one, 999};
    tell_result("not open", give(ends[0], "st", 2, bad, 2));
    static int many[254];
    for (int i = 0; i < 254; i++)
        many[i] = one;
    tell_result("too many", give(ends[0], "uv", 2, many, 254));
    tell_result("very many", give(ends[0], "wx", 2, many, 200));
    tell_result("nothing to go with", give(ends[0], "", 0, &one, 1));
    take("of many", ends[1], 16, 1, 0, fds);
    close(fds[0]);
    close(ends[1]);
    tell_result("nobody there", give(ends[0], "yz", 2, &one, 1));
    close(ends[0]);
    close(one);
    tell("as before: %d\n", lowest_free() == before - 2);
}

/* Sends pipes to sockets that are closed, to themselves and to each other, more than there is room for. */
static void leaks(void) {
    int good = 1, before = lowest_free();
    for (int turn = 0; turn < 600; turn++) {
        int ends[2], others[2], ways[2];
        good &= socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0;
        good &= socketpair(AF_UNIX, SOCK_STREAM, 0, others) == 0;
        good &= pipe(ways) == 0;
        good &= give(ends[0], "x", 1, ways, 2) == 1;
        if (turn % 3 == 1)
            /* Through itself. */
            good &= give(ends[0], "x", 1, &ends[1], 1) == 1 && give(ends[0], "x", 1, &ends[0], 1) == 1;
        if (turn % 3 == 2)
            /* Each through the other. */
            good &= give(ends[0], "x", 1, &others[1], 1) == 1 && give(others[0], "x", 1, &ends[1], 1) == 1;
        close(ways[0]);
        for (int end = 0; end < 2; end++) {
            close(ends[end]);
            close(others[end]);
        }
        /* Its reader is gone with the socket that it travelled through; with one in a circle, Linux takes
           its time. */
        char byte = 0;
        signal(SIGPIPE, SIG_IGN);
        good &= turn % 3 != 0 || (write(ways[1], &byte, 1) == -1 && errno == EPIPE);
        close(ways[1]);
    }
    /* One that travels through a socket that travels is still there. */
    int ends[2], others[2], ways[2], fds[MOST];
    socketpair(AF_UNIX, SOCK_STREAM, 0, ends);
    socketpair(AF_UNIX, SOCK_STREAM, 0, others);
    good &= pipe(ways) == 0;
    give(others[0], "inner", 5, ways, 2);
    give(ends[0], "outer", 5, &others[1], 1);
    close(others[1]);
    close(others[0]);
    close(ways[0]);
    close(ways[1]);
    int inner = take("outer", ends[1], 8, 1, 0, fds) == 1 ? fds[0] : -1;
    if (take("inner", inner, 8, 2, 0, fds) == 2)
        tell_result("write", write(fds[1], "x", 1));
    close(fds[0]);
    close(fds[1]);
    close(inner);
    close(ends[0]);
    close(ends[1]);
    tell("good: %d, as before: %d\n", good, lowest_free() == before);
}

/* With one descriptor left there is no pipe and no pair, and nothing of them either. */
static void exhausted(void) {
    struct rlimit limit = {256, 256};
    setrlimit(RLIMIT_NOFILE, &limit);
    int held[1024], count = 0, two[2];
    while (count < 1024 && (held[count] = open("/dev/null", O_RDONLY)) >= 0)
        count++;
    tell_result("one more", open("/dev/null", O_RDONLY));
    for (int turn = 0; turn < 300; turn++) {
        int free_ones = turn % 2;
        if (free_ones)
            close(held[--count]);
        if (pipe(two) == 0 || socketpair(AF_UNIX, SOCK_STREAM, 0, two) == 0)
            tell("there was room\n");
        if (free_ones)
            held[count++] = open("/dev/null", O_RDONLY);
    }
    for (int i = 0; i < 100; i++)
        close(held[--count]);
    int good = 0;
    for (int i = 0; i < 20; i++)
        good += pipe(two) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, two) == 0;
    tell("pipes and pairs: %d\n", good);
}

static void directories(void) {
    DIR *open_ones[200];
    int count = 0, good = 1;
    char name[32];
    mkdir("/tmp/holm-many", 0755);
    while (count < 200) {
        snprintf(name, sizeof name, "/tmp/holm-many/%d", count);
        good &= mkdir(name, 0755) == 0;
        open_ones[count] = opendir(name);
        if (open_ones[count] == NULL)
            break;
        good &= rename(name, "/tmp/holm-many/moved") == 0;
        good &= faccessat(dirfd(open_ones[count]), "../moved", F_OK, 0) == 0;
        good &= rmdir("/tmp/holm-many/moved") == 0;
        count++;
    }
    tell("open at once: %d, good: %d\n", count, good);
    while (count > 0)
        closedir(open_ones[--count]);
    tell_result("remove", rmdir("/tmp/holm-many"));
}

static void handle(const struct request *request) {
    if (is_path(request, "/rights"))
        rights();
    else if (is_path(request, "/leaks"))
        leaks();
    else if (is_path(request, "/exhausted"))
        exhausted();
    else if (is_path(request, "/directories"))
        directories();
    answer(request, "%s", told);
}

int main(int count, char **arguments) {
    serve_or_run(count, arguments, handle);
}
