/* Waits that say afterwards what is left of their time, and the newest way to wait for epoll. Each path
   tells what the calls gave; on the host the same program tells the same. */
#include "guest.h"
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>

static int ends[2];

/* The C libraries keep the rest to themselves, so these are the calls as they are. */
static void rest(void) {
    for (int ready = 0; ready <= 1; ready++) {
        if (ready)
            send_all(ends[1], "x", 1);
        fd_set set;
        FD_ZERO(&set);
        FD_SET(ends[0], &set);
        struct timeval value = {ready ? 100 : 0, ready ? 0 : 3000};
        tell_result("select", syscall(SYS_select, ends[0] + 1, &set, NULL, NULL, &value));
        tell("left: %d, %d\n", (int)value.tv_sec, value.tv_usec > 0);
        FD_SET(ends[0], &set);
        struct timespec time = {ready ? 100 : 0, ready ? 0 : 3000000};
        tell_result("pselect", syscall(SYS_pselect6, ends[0] + 1, &set, NULL, NULL, &time, NULL));
        tell("left: %d, %d\n", (int)time.tv_sec, time.tv_nsec > 0);
        struct pollfd one = {.fd = ends[0], .events = POLLIN};
        time = (struct timespec){ready ? 100 : 0, ready ? 0 : 3000000};
        tell_result("ppoll", syscall(SYS_ppoll, &one, 1, &time, NULL, 8));
        tell("left: %d, %d\n", (int)time.tv_sec, time.tv_nsec > 0);
    }
    /* Where it cannot be written it is no mistake. */
    static const struct timespec fixed = {0, 1000000};
    tell_result("of a constant", syscall(SYS_ppoll, NULL, 0, &fixed, NULL, 8));
}

static void epoll(void) {
    int epoll = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = 7};
    epoll_ctl(epoll, EPOLL_CTL_ADD, ends[0], &event);
    struct timespec time = {0, 2000000}, wrong = {0, 1000000000};
    tell_result("in vain", syscall(SYS_epoll_pwait2, epoll, &event, 1, &time, NULL, 8));
    tell_result("wrong", syscall(SYS_epoll_pwait2, epoll, &event, 1, &wrong, NULL, 8));
    send_all(ends[1], "x", 1);
    tell_result("ready", syscall(SYS_epoll_pwait2, epoll, &event, 1, NULL, NULL, 8));
    tell("%d\n", (int)event.data.u32);
}

static void handle(const struct request *request) {
    told[0] = '\0';
    if (pipe(ends) != 0)
        tell("pipe\n");
    else if (is_path(request, "/rest"))
        rest();
    else
        epoll();
    answer(request, "%s", told);
}

int main(int count, char **arguments) {
    serve_or_run(count, arguments, handle);
}
