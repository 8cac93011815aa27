/*
 * Serves by epoll on non-blocking sockets, level-triggered or with HOLM_EDGE=1 edge-triggered; with HOLM_EDGE=2 it
 * takes a read that gives less than it asked for as the last one before an edge, as epoll(7) allows it to, and reads
 * into memory that was never touched; with HOLM_EDGE=3 it asks after a read how much more there is, reads just that and
 * waits for an edge, as nginx does, and with HOLM_EDGE=4 it reads somewhat more. Answers the method, the path and the length of the body.
 */
#include "guest.h"
#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

enum { CONNECTIONS = 64 };

static struct state {
    int fd;
    size_t held;
    char bytes[262144];
} states[CONNECTIONS];

static uint32_t mode;
static int short_is_last, counts, more_than_told;

static void watch(int epoll, int fd, void *data) {
    struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP | mode, .data = {.ptr = data}};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) != 0) {
        perror("guest: epoll_ctl");
        exit(95);
    }
}

/* Answers every whole request that is held. */
static void advance(struct state *state) {
    for (;;) {
        state->bytes[state->held] = '\0';
        char *end = strstr(state->bytes, "\r\n\r\n");
        if (end == NULL)
            return;
        const char *header = strcasestr(state->bytes, "\r\ncontent-length:");
        size_t length = header != NULL && header < end ? strtoul(header + 17, NULL, 10) : 0;
        size_t whole = (size_t)(end + 4 - state->bytes) + length;
        if (state->held < whole)
            return;
        struct request request = {.connection = state->fd};
        if (sscanf(state->bytes, "%15s %511s", request.method, request.path) != 2)
            exit(92);
        if (is_path(&request, "/ok"))
            answer(&request, "ok\n");
        else
            answer(&request, "%s %s %zu\n", request.method, request.path, length);
        memmove(state->bytes, state->bytes + whole, state->held - whole);
        state->held -= whole;
    }
}

static ssize_t read_into_new_memory(int fd, char *to, size_t room) {
    enum { BYTES = 8 << 20 };
    char *new = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ssize_t more = read(fd, new, room);
    int error = errno;
    if (more > 0)
        memcpy(to, new, (size_t)more);
    munmap(new, BYTES);
    errno = error;
    return more;
}

static void receive(struct state *state) {
    for (int turn = 0; !counts || turn < 2; turn++) {
        size_t room = sizeof state->bytes - 1 - state->held;
        if (counts) {
            int there = 1000;
            if (turn > 0)
                ioctl(state->fd, FIONREAD, &there);
            if (there == 0)
                return;
            /* Or somewhat more, which it takes for new. */
            there += turn > 0 ? more_than_told : 0;
            room = (size_t)there < room ? (size_t)there : room;
        }
        char *to = state->bytes + state->held;
        ssize_t more = short_is_last ? read_into_new_memory(state->fd, to, room) : read(state->fd, to, room);
        if (more < 0 && errno == EAGAIN)
            return;
        if (more <= 0) {
            close(state->fd);
            state->fd = -1;
            return;
        }
        state->held += (size_t)more;
        advance(state);
        if ((short_is_last || counts) && (size_t)more < room)
            return;
    }
}

static void welcome(int epoll, int fd) {
    for (;;) {
        int connection = accept4(fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (connection < 0)
            return;
        struct state *state = states;
        while (state < states + CONNECTIONS && state->fd >= 0)
            state++;
        if (state == states + CONNECTIONS) {
            close(connection);
            continue;
        }
        state->fd = connection;
        state->held = 0;
        watch(epoll, connection, state);
    }
}

int main(void) {
    const char *edge = getenv("HOLM_EDGE");
    mode = edge != NULL ? EPOLLET : 0;
    short_is_last = edge != NULL && atoi(edge) == 2;
    counts = edge != NULL && atoi(edge) >= 3;
    more_than_told = edge != NULL && atoi(edge) == 4 ? 500 : 0;
    for (size_t i = 0; i < CONNECTIONS; i++)
        states[i].fd = -1;
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    int fd = listener();
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    watch(epoll, fd, NULL);
    for (;;) {
        struct epoll_event events[16];
        int count = epoll_wait(epoll, events, 16, -1);
        for (int i = 0; i < count; i++) {
            if (events[i].data.ptr == NULL)
                welcome(epoll, fd);
            else
                receive(events[i].data.ptr);
        }
    }
}
