/*
 * Epoll instances that watch one another. `/row` makes a row as long as it may be, from its end and from its start,
 * and loops; `/ways` one with many ways through it, of which a look must not take every single one.
 */
#include "guest.h"
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

enum { IN_A_ROW = 6, LAYERS = 5, WAYS = 140 };

static int instances[IN_A_ROW];

static void have_instances(void) {
    for (int i = 0; i < IN_A_ROW; i++)
        if ((instances[i] = epoll_create1(0)) < 0)
            exit(95);
}

static void close_instances(void) {
    for (int i = 0; i < IN_A_ROW; i++)
        close(instances[i]);
}

static long watch(int by, int fd) {
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    return epoll_ctl(by, EPOLL_CTL_ADD, fd, &event);
}

static const char *outcome(long result) {
    return result == 0 ? "ok" : errno == ELOOP ? "ELOOP" : strerrorname(errno);
}

static void rows(const struct request *request) {
    told[0] = '\0';
    have_instances();
    for (int i = IN_A_ROW - 2; i >= 0; i--)
        tell("from the end: %s\n", outcome(watch(instances[i], instances[i + 1])));
    close_instances();
    have_instances();
    for (int i = 0; i < IN_A_ROW - 1; i++)
        tell("from the start: %s\n", outcome(watch(instances[i], instances[i + 1])));
    tell("a loop: %s\n", outcome(watch(instances[3], instances[1])));
    tell("itself: %s\n", outcome(watch(instances[3], instances[3])));
    int counter = eventfd(0, 0);
    struct pollfd poll_of = {instances[0], POLLIN, 0};
    struct epoll_event event;
    uint64_t one = 1;
    tell("watched at the end: %s\n", outcome(watch(instances[4], counter)));
    tell("before: %d\n", poll(&poll_of, 1, 0));
    if (write(counter, &one, sizeof one) != sizeof one)
        exit(96);
    tell("then: %d %d\n", poll(&poll_of, 1, 0), epoll_wait(instances[1], &event, 1, 0));
    close(counter);
    close_instances();
    answer(request, "%s", told);
}

static void ways(const struct request *request) {
    static int layers[LAYERS], copies[LAYERS][WAYS];
    struct epoll_event event;
    for (int layer = LAYERS - 1; layer >= 0; layer--) {
        layers[layer] = epoll_create1(0);
        for (int way = 0; layer + 1 < LAYERS && way < WAYS; way++) {
            copies[layer][way] = dup(layers[layer + 1]);
            if (watch(layers[layer], copies[layer][way]) != 0)
                exit(97);
        }
    }
    int counter = eventfd(0, 0);
    struct pollfd poll_of = {layers[0], POLLIN, 0};
    int before = poll(&poll_of, 1, 0), waited = epoll_wait(layers[0], &event, 1, 0);
    long watched = watch(layers[LAYERS - 1], counter);
    uint64_t one = 1;
    if (write(counter, &one, sizeof one) != sizeof one)
        exit(98);
    int then = poll(&poll_of, 1, 0);
    const char *loop = outcome(watch(layers[LAYERS - 1], layers[0]));
    answer(request, "%d %d, watched %ld, then %d, %s\n", before, waited, watched, then, loop);
}

static void handle(const struct request *request) {
    if (is_path(request, "/row"))
        rows(request);
    else if (is_path(request, "/ways"))
        ways(request);
    else
        answer(request, "no such way\n");
}

int main(int count, char **arguments) {
    serve_or_run(count, arguments, handle);
}
