/*
 * Threads that take away what another one is at work with while it waits. `/splice` reads from a pipe what is to be
 * spliced out of it, and every byte comes once, `/rights` closes a descriptor that is to travel, `/message` changes the parts of a message that
 * waits for room.
 */
#include "threads.h"
#include <fcntl.h>
#include <sys/uio.h>

static int ends[2], pipe_ends[2], travels;
static char bytes[4096], other_bytes[4096];
static struct iovec parts[2];

/* Fills the first of two connected sockets; gives how much it took. */
static size_t fill(void) {
    size_t filled = 0;
    ssize_t sent;
    while ((sent = send(ends[0], bytes, sizeof bytes, MSG_DONTWAIT)) > 0)
        filled += (size_t)sent;
    return filled;
}

static void drain(size_t count) {
    char taken[4096];
    while (count > 0) {
        ssize_t got = read(ends[1], taken, count < sizeof taken ? count : sizeof taken);
        if (got <= 0)
            exit(95);
        count -= (size_t)got;
    }
}

static void *splices(void *argument) {
    *(long *)argument = splice(pipe_ends[0], NULL, ends[0], NULL, sizeof bytes, 0);
    return NULL;
}

static void *sends_a_descriptor(void *argument) {
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct iovec part = {"m", 1};
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    control.head = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
    memcpy(CMSG_DATA(&control.head), &travels, sizeof travels);
    *(long *)argument = sendmsg(ends[0], &message, 0);
    return NULL;
}

static void *sends_parts(void *argument) {
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
    *(long *)argument = sendmsg(ends[0], &message, 0);
    return NULL;
}

static void splice_race(const struct request *request) {
    long spliced = 0;
    pthread_t thread;
    char taken[sizeof bytes];
    if (pipe(pipe_ends) != 0 || socketpair(AF_UNIX, SOCK_STREAM, 0, ends) != 0)
        exit(96);
    size_t filled = fill();
    long written = write(pipe_ends[1], bytes, sizeof bytes);
    pthread_create(&thread, NULL, splices, &spliced);
    pause_a_little();
    long read_first = read(pipe_ends[0], taken, sizeof taken);
    drain(filled);
    long more = write(pipe_ends[1], "more", 4);
    pthread_join(thread, NULL);
    long there = recv(ends[1], taken, sizeof taken, MSG_DONTWAIT);
    fcntl(pipe_ends[0], F_SETFL, O_NONBLOCK);
    long left = read(pipe_ends[0], taken, sizeof taken);
    answer(request, "%ld %ld, then %ld: spliced %ld, received %ld, left %ld\n", written, read_first, more, spliced, there,
           left);
}

static void rights_race(const struct request *request) {
    long sent = 0;
    pthread_t thread;
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(sizeof(int))];
    } control = {0};
    char text[16] = {0};
    struct iovec part = {text, sizeof text};
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends) != 0)
        exit(96);
    travels = open("/tmp/travels", O_CREAT | O_RDWR, 0600);
    if (write(travels, "this one", 8) != 8)
        exit(97);
    size_t filled = fill();
    pthread_create(&thread, NULL, sends_a_descriptor, &sent);
    pause_a_little();
    close(travels);
    int other = open("/tmp/stays", O_CREAT | O_RDWR, 0600);
    drain(filled);
    pthread_join(thread, NULL);
    long received = recvmsg(ends[1], &message, 0);
    int got = -1;
    memcpy(&got, CMSG_DATA(&control.head), sizeof got);
    memset(text, 0, sizeof text);
    long there = pread(got, text, sizeof text - 1, 0);
    int closed = close(got), closed_other = close(other);
    answer(request, "%ld %ld: %ld %s, closed %d %d\n", sent, received, there, text, closed, closed_other);
}

static void message_race(const struct request *request) {
    long sent = 0;
    pthread_t thread;
    char taken[sizeof bytes];
    if (socketpair(AF_UNIX, SOCK_DGRAM, 0, ends) != 0)
        exit(96);
    int count = 0;
    while (send(ends[0], bytes, sizeof bytes, MSG_DONTWAIT) > 0)
        count++;
    parts[0] = (struct iovec){bytes, sizeof bytes};
    parts[1] = (struct iovec){other_bytes, sizeof other_bytes};
    pthread_create(&thread, NULL, sends_parts, &sent);
    pause_a_little();
    parts[1].iov_base = (void *)8;
    for (int i = 0; i < count; i++)
        if (read(ends[1], taken, sizeof taken) != (ssize_t)sizeof taken)
            exit(98);
    pthread_join(thread, NULL);
    long more = send(ends[0], "more", 4, 0), got = recv(ends[1], taken, sizeof taken, MSG_DONTWAIT);
    answer(request, "%d, then %ld %ld\n", sent < 0, more, got);
}

static void handle(const struct request *request) {
    if (is_path(request, "/splice"))
        splice_race(request);
    else if (is_path(request, "/rights"))
        rights_race(request);
    else if (is_path(request, "/message"))
        message_race(request);
    else
        answer(request, "ok\n");
}

int main(void) {
    serve(handle);
}
