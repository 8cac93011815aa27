/* signalfd: what it tells of each signal, and who is woken by it. */
#include "guest.h"
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>

static sigset_t of(int first, int second) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, first);
    sigaddset(&set, second);
    return set;
}

static void take(const char *what, int fd) {
    struct signalfd_siginfo info[3];
    memset(info, 0, sizeof info);
    long got = read(fd, info, sizeof info);
    tell_result(what, got);
    for (int i = 0; got > 0 && i < (int)(got / (long)sizeof *info); i++)
        tell("  %u code %d from %s value %d\n", info[i].ssi_signo, info[i].ssi_code,
             (pid_t)info[i].ssi_pid == getpid() ? "itself" : "nobody", info[i].ssi_int);
}

static void *sends(void *unused) {
    (void)unused;
    usleep(20000);
    kill(getpid(), SIGUSR2);
    return NULL;
}

static void handle(const struct request *request) {
    sigset_t set = of(SIGUSR1, SIGUSR2), narrow = of(SIGUSR2, SIGUSR2);
    sigaddset(&set, SIGRTMIN);
    sigprocmask(SIG_BLOCK, &set, NULL);
    int fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
    told[0] = '\0';
    if (is_path(request, "/read")) {
        take("none", fd);
        kill(getpid(), SIGUSR1);
        kill(getpid(), SIGUSR1);
        sigqueue(getpid(), SIGRTMIN, (union sigval){.sival_int = 77});
        raise(SIGUSR2);
        take("three", fd);
        take("no more", fd);
        tell_result("too small", read(fd, told, 4));
        tell_result("narrower", signalfd(fd, &narrow, 0) == fd);
        kill(getpid(), SIGUSR1);
        take("not that one", fd);
        sigset_t pending;
        sigpending(&pending);
        tell("pending: %d\n", sigismember(&pending, SIGUSR1));
        sigwaitinfo(&set, NULL);
        tell_result("of a pipe", signalfd(0, &set, 0));
        tell_result("flags", signalfd(-1, &set, 1));
    } else if (is_path(request, "/poll")) {
        struct pollfd one = {.fd = fd, .events = POLLIN};
        int epoll = epoll_create1(0);
        struct epoll_event event = {.events = EPOLLIN | EPOLLET};
        epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
        tell_result("nothing", poll(&one, 1, 0));
        kill(getpid(), SIGUSR1);
        tell_result("something", poll(&one, 1, 1000));
        tell_result("in epoll", epoll_wait(epoll, &event, 1, 0));
        tell_result("once", epoll_wait(epoll, &event, 1, 0));
        take("take", fd);
        tell_result("nothing", poll(&one, 1, 0));
        close(epoll);
    } else {
        pthread_t thread;
        int waits = signalfd(-1, &narrow, 0);
        struct signalfd_siginfo info;
        pthread_create(&thread, NULL, sends, NULL);
        long got = read(waits, &info, sizeof info);
        pthread_join(thread, NULL);
        tell("from a thread: %d\n", got == sizeof info ? (int)info.ssi_signo : -1);
        close(waits);
    }
    close(fd);
    answer(request, "%s", told);
}

int main(int count, char **arguments) {
    serve_or_run(count, arguments, handle);
}
