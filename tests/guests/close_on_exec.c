/* Nothing is ever executed in a guest, but programs ask which descriptors would be closed then. */
#define _GNU_SOURCE
#include "guest.h"
#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>

static void say(const char *what, int fd) {
    tell("%s: %d\n", what, fcntl(fd, F_GETFD));
    close(fd);
}

static void handle(const struct request *request) {
    int two[2];
    told[0] = '\0';
    say("open", open("/dev/null", O_RDONLY));
    say("open with it", open("/dev/null", O_RDONLY | O_CLOEXEC));
    say("socket", socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    say("epoll", epoll_create1(EPOLL_CLOEXEC));
    say("event", eventfd(0, EFD_CLOEXEC));
    say("timer", timerfd_create(1, TFD_CLOEXEC));
    say("memory", (int)syscall(SYS_memfd_create, "name", 1));
    if (pipe2(two, O_CLOEXEC) == 0) {
        int copy = dup(two[0]);
        tell("copy: %d\n", fcntl(copy, F_GETFD));
        tell_result("set", fcntl(copy, F_SETFD, FD_CLOEXEC));
        say("then", copy);
        say("third copy", dup3(two[0], 50, O_CLOEXEC));
        say("control", fcntl(two[0], F_DUPFD_CLOEXEC, 60));
        tell_result("ioctl", ioctl(two[0], FIONCLEX));
        say("read", two[0]);
        say("write", two[1]);
    }
    int range = dup(2);
    tell_result("range", syscall(SYS_close_range, range, range, 4));
    say("in it", range);
    answer(request, "%s", told);
}

int main(int count, char **arguments) {
    serve_or_run(count, arguments, handle);
}
