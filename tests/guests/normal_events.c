/* What poll and epoll tell of each kind of descriptor, asked for by every name of an event. On the host the same
   program tells the same. */
#include "guest.h"
#include <fcntl.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/timerfd.h>

enum { ALL = 0x3ff | POLLRDHUP };

static void polls(const char *what, int fd) {
    struct pollfd asked = {.fd = fd, .events = ALL};
    int found = poll(&asked, 1, 0);
    tell("%s: %d %#x", what, found, asked.revents);
    asked.events = POLLRDNORM;
    found = poll(&asked, 1, 0);
    tell(", to read: %d %#x", found, asked.revents);
    asked.events = POLLWRNORM;
    found = poll(&asked, 1, 0);
    tell(", to write: %d %#x", found, asked.revents);
    int epoll = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLRDNORM | EPOLLWRBAND};
    int added = epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
    tell(", watched: %s", added == 0 ? "yes" : strerrorname(errno));
    event.events = 0;
    found = epoll_wait(epoll, &event, 1, 0);
    tell(" %d %#x\n", found, event.events);
    close(epoll);
}

static void pairs(const char *what, int ends[2]) {
    char name[64];
    snprintf(name, sizeof name, "%s, empty", what);
    polls(name, ends[0]);
    send(ends[1], "x", 1, 0);
    snprintf(name, sizeof name, "%s, with something", what);
    polls(name, ends[0]);
    close(ends[1]);
    snprintf(name, sizeof name, "%s, ended", what);
    polls(name, ends[0]);
    close(ends[0]);
}

static void tcp(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t bytes = sizeof address;
    int listening = socket(AF_INET, SOCK_STREAM, 0), ends[2];
    bind(listening, (struct sockaddr *)&address, sizeof address);
    listen(listening, 4);
    getsockname(listening, (struct sockaddr *)&address, &bytes);
    polls("a listener", listening);
    ends[0] = socket(AF_INET, SOCK_STREAM, 0);
    connect(ends[0], (struct sockaddr *)&address, bytes);
    polls("one that is called", listening);
    ends[1] = accept(listening, NULL, NULL);
    close(listening);
    pairs("TCP", ends);
}

static void handle(const struct request *request) {
    told[0] = 0;
    int ends[2];
    if (is_path(request, "/sockets")) {
        tcp();
        socketpair(AF_UNIX, SOCK_STREAM, 0, ends);
        pairs("a local stream", ends);
        socketpair(AF_UNIX, SOCK_DGRAM, 0, ends);
        pairs("local datagrams", ends);
        ends[0] = socket(AF_INET, SOCK_DGRAM, 0);
        polls("UDP", ends[0]);
    } else {
        if (pipe(ends) != 0)
            exit(70);
        polls("an empty pipe", ends[0]);
        polls("its other end", ends[1]);
        if (write(ends[1], "x", 1) != 1)
            exit(71);
        polls("a pipe", ends[0]);
        polls("an event", eventfd(1, 0));
        int timer = timerfd_create(CLOCK_MONOTONIC, 0);
        struct itimerspec soon = {.it_value = {0, 1}};
        timerfd_settime(timer, 0, &soon, NULL);
        usleep(1000);
        polls("a timer", timer);
        int epoll = epoll_create1(0);
        struct epoll_event event = {.events = EPOLLIN};
        epoll_ctl(epoll, EPOLL_CTL_ADD, ends[0], &event);
        polls("an instance", epoll);
        polls("no device", open("/dev/null", O_RDWR));
        polls("zeroes", open("/dev/zero", O_RDWR));
        polls("a file", open("/tmp", O_RDWR | O_TMPFILE, 0600));
    }
    answer(request, "%s", told);
}

int main(int count, char **arguments) {
    serve_or_run(count, arguments, handle);
}
