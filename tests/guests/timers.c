/* timerfd: once and again, relative and absolute, read and waited for. Each path tells what the calls
   gave; on the host the same program tells the same. */
#include "guest.h"
#include <poll.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <time.h>

static long ms_between(struct timespec from, struct timespec to) {
    return (to.tv_sec - from.tv_sec) * 1000 + (to.tv_nsec - from.tv_nsec) / 1000000;
}

static struct timespec now(clockid_t clock) {
    struct timespec time;
    clock_gettime(clock, &time);
    return time;
}

static struct itimerspec setting(long first_ms, long every_ms) {
    return (struct itimerspec){
        .it_value = {.tv_sec = first_ms / 1000, .tv_nsec = first_ms % 1000 * 1000000},
        .it_interval = {.tv_sec = every_ms / 1000, .tv_nsec = every_ms % 1000 * 1000000},
    };
}

static void tell_count(const char *what, int fd) {
    uint64_t count = 0;
    ssize_t result = read(fd, &count, sizeof count);
    if (result == 8)
        tell("%s: %lu\n", what, (unsigned long)count);
    else
        tell("%s: %s\n", what, strerrorname(errno));
}

static void once(void) {
    clockid_t clocks[] = {CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME};
    for (int i = 0; i < 3; i++) {
        int fd = timerfd_create(clocks[i], TFD_NONBLOCK);
        struct itimerspec set = setting(40, 0), left, old;
        tell_count("not set", fd);
        struct timespec before = now(CLOCK_MONOTONIC);
        tell_result("set", timerfd_settime(fd, 0, &set, NULL));
        tell_count("too early", fd);
        timerfd_gettime(fd, &left);
        tell("left: %d\n", left.it_value.tv_nsec > 0 && left.it_value.tv_nsec <= 40000000);
        struct pollfd one = {.fd = fd, .events = POLLIN | POLLOUT};
        tell_result("poll", poll(&one, 1, 5000));
        tell("in alone: %d\n", one.revents == POLLIN);
        tell("it took its time: %d\n", ms_between(before, now(CLOCK_MONOTONIC)) >= 39);
        tell_count("due", fd);
        tell_count("once", fd);
        /* Absolute, and blocking. */
        int blocking = timerfd_create(clocks[i], 0);
        struct timespec at = now(clocks[i]);
        at.tv_nsec += 30000000;
        if (at.tv_nsec >= 1000000000) {
            at.tv_nsec -= 1000000000;
            at.tv_sec++;
        }
        set = (struct itimerspec){.it_value = at};
        before = now(CLOCK_MONOTONIC);
        timerfd_settime(blocking, TFD_TIMER_ABSTIME, &set, NULL);
        tell_count("absolute", blocking);
        tell("it took its time: %d\n", ms_between(before, now(CLOCK_MONOTONIC)) >= 29);
        set = (struct itimerspec){.it_value = {.tv_sec = 1}};
        timerfd_settime(blocking, TFD_TIMER_ABSTIME, &set, NULL);
        tell_count("long ago", blocking);
        set = setting(3000000, 0);
        timerfd_settime(blocking, 0, &set, NULL);
        set = setting(0, 0);
        timerfd_settime(blocking, 0, &set, &old);
        tell("was set: %d\n", old.it_value.tv_sec >= 2999);
        timerfd_gettime(blocking, &left);
        tell("stopped: %d\n", left.it_value.tv_sec == 0 && left.it_value.tv_nsec == 0);
        close(fd);
        close(blocking);
    }
}

static void again(void) {
    int fd = timerfd_create(CLOCK_MONOTONIC, 0);
    struct itimerspec set = setting(10, 10);
    struct timespec before = now(CLOCK_MONOTONIC);
    timerfd_settime(fd, 0, &set, NULL);
    uint64_t total = 0;
    while (total < 5) {
        uint64_t count = 0;
        if (read(fd, &count, sizeof count) != 8)
            break;
        total += count;
    }
    tell("five took five: %d\n", total >= 5 && ms_between(before, now(CLOCK_MONOTONIC)) >= 49);
    struct timespec pause = {.tv_nsec = 45000000};
    nanosleep(&pause, NULL);
    uint64_t count = 0;
    tell_result("read", read(fd, &count, sizeof count));
    tell("what nobody read is counted: %d\n", count >= 3);
    struct itimerspec left;
    timerfd_gettime(fd, &left);
    tell("interval: %ld\n", left.it_interval.tv_nsec);
}

static void edges(void) {
    int epoll = epoll_create1(0), fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.u64 = 7};
    tell_result("watch", epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event));
    struct itimerspec set = setting(20, 100);
    timerfd_settime(fd, 0, &set, NULL);
    tell_result("too early", epoll_wait(epoll, &event, 1, 0));
    tell_result("due", epoll_wait(epoll, &event, 1, 5000));
    tell("data: %d\n", event.data.u64 == 7 && event.events == EPOLLIN);
    tell_result("said once", epoll_wait(epoll, &event, 1, 0));
    tell_result("not again before it is read", epoll_wait(epoll, &event, 1, 250));
    tell("counted: %d\n", read(fd, &event, sizeof(uint64_t)) == 8);
    tell_result("due again", epoll_wait(epoll, &event, 1, 5000));
    set = setting(0, 0);
    timerfd_settime(fd, 0, &set, NULL);
    tell_count("stopped", fd);
}

static void refused(void) {
    char byte;
    struct itimerspec set = setting(1, 1);
    tell_result("no such clock", timerfd_create(CLOCK_PROCESS_CPUTIME_ID, 0));
    tell_result("no such flag", timerfd_create(CLOCK_MONOTONIC, 1));
    tell_result("not a timer", timerfd_settime(STDERR_FILENO, 0, &set, NULL));
    int fd = timerfd_create(CLOCK_MONOTONIC, 0);
    tell_result("too small", read(fd, &byte, 1));
    set.it_value.tv_nsec = 1000000000;
    tell_result("not a time", timerfd_settime(fd, 0, &set, NULL));
    tell_result("write", write(fd, "12345678", 8));
}

static void handle(const struct request *request) {
    if (is_path(request, "/once"))
        once();
    else if (is_path(request, "/again"))
        again();
    else if (is_path(request, "/edges"))
        edges();
    else if (is_path(request, "/refused"))
        refused();
    answer(request, "%s", told);
}

int main(int count, char **arguments) {
    serve_or_run(count, arguments, handle);
}
