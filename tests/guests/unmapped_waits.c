/*
 * Threads whose memory another one unmaps while they wait in a call that uses it: what the call says then. `/read`
 * has the ways to read, `/write` the ways to write, `/wait` the other waits.
 */
#include "threads.h"
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <sys/un.h>

enum { PAGE = 4096, RESERVED = 64 << 20, FUTEX_WAIT_PRIVATE = 128, FUTEX_WAKE_PRIVATE = 129 };

/* What a call uses. */
static char *page;
static int ends[2], other;
static volatile pid_t waiting;
static char filler[PAGE], file[64];
static struct sockaddr_un name = {.sun_family = AF_UNIX};

static void *run(void *call) {
    waiting = (pid_t)syscall(SYS_gettid);
    ((void (*)(void))call)();
    return NULL;
}

/* Has another thread make a call, takes its page away by `take`, and lets it go on by `come`. */
static void try(const char *what, void (*call)(void), int (*take)(void), void (*come)(void)) {
    pthread_t thread;
    /* Part of a reservation, which nothing else comes to lie in at once. */
    page = mmap(NULL, RESERVED, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (page == MAP_FAILED || mprotect(page, PAGE, PROT_READ | PROT_WRITE) != 0)
        failed("mmap");
    memset(page, 0, PAGE);
    if (pthread_create(&thread, NULL, run, (void *)call) != 0)
        failed("a thread");
    pause_a_little();
    if (take() != 0)
        failed("taking the page away");
    come();
    pthread_join(thread, NULL);
    errno = error;
    tell_result(what, result);
    munmap(page, RESERVED);
}

static int unmap(void) { return munmap(page, PAGE); }
static int protect(void) { return mprotect(page, PAGE, PROT_NONE); }
static int make_read_only(void) { return mprotect(page, PAGE, PROT_READ); }

static void calls_read(void) { note(read(ends[0], page, 16)); }
static void calls_readv(void) {
    struct iovec parts[2] = {{page, 2}, {filler, 16}};
    note(readv(ends[0], parts, 2));
}
static void calls_recv(void) { note(recv(ends[0], page, 16, 0)); }
static void calls_recv_all(void) {
    struct iovec parts[2] = {{filler, 4}, {page, 16}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
    note(recvmsg(ends[0], &message, MSG_WAITALL));
}
static void calls_recvmsg(void) {
    struct iovec part = {page, 16};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    note(recvmsg(ends[0], &message, 0));
}
static void calls_recvfrom(void) {
    socklen_t bytes = sizeof(struct sockaddr_un);
    note(recvfrom(ends[0], filler, 16, 0, (struct sockaddr *)page, &bytes));
}
static void calls_vmsplice(void) {
    struct iovec part = {page, 16};
    note(vmsplice(ends[0], &part, 1, 0));
}

static void comes_4(void) {
    if (write(ends[1], "four", 4) != 4)
        failed("write");
}
static void comes_1(void) {
    uint64_t one = 1;
    if (write(ends[0], &one, sizeof one) != sizeof one)
        failed("write to an eventfd");
}
static void comes_signal(void) {
    if (kill(getpid(), SIGUSR1) != 0)
        failed("kill");
}
static void comes_by_itself(void) {}
static void comes_file(void) { close(open(file, O_CREAT | O_RDWR, 0600)); }

static void have_pipe(void) {
    if (pipe(ends) != 0)
        failed("pipe");
}
static void have_pair(int kind) {
    if (socketpair(AF_UNIX, kind, 0, ends) != 0)
        failed("socketpair");
}
static void have_tcp(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t bytes = sizeof address;
    int listening = socket(AF_INET, SOCK_STREAM, 0);
    ends[1] = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listening, (struct sockaddr *)&address, bytes) != 0 || listen(listening, 1) != 0 ||
        getsockname(listening, (struct sockaddr *)&address, &bytes) != 0 ||
        connect(ends[1], (struct sockaddr *)&address, bytes) != 0)
        failed("a connection");
    ends[0] = accept(listening, NULL, NULL);
    close(listening);
}
static void close_both(void) {
    close(ends[0]);
    if (ends[1] >= 0)
        close(ends[1]);
}

/* What is left of what came. */
static void tell_left(const char *what) {
    if (fcntl(ends[0], F_SETFL, O_NONBLOCK) != 0)
        failed("fcntl");
    tell_result(what, read(ends[0], filler, sizeof filler));
}

static void read_ways(void) {
    static int (*const takes[])(void) = {unmap, protect, make_read_only};
    for (size_t i = 0; i < 3; i++) {
        have_pipe();
        try("read of a pipe", calls_read, takes[i], comes_4);
        tell_left("it is there still");
        close_both();
    }
    have_pipe();
    try("readv of a pipe", calls_readv, unmap, comes_4);
    close_both();
    have_pipe();
    try("vmsplice", calls_vmsplice, unmap, comes_4);
    close_both();
    have_pair(SOCK_STREAM);
    try("read of a socket", calls_read, unmap, comes_4);
    close_both();
    have_pair(SOCK_STREAM);
    try("recv", calls_recv, make_read_only, comes_4);
    close_both();
    have_pair(SOCK_STREAM);
    try("recvmsg", calls_recvmsg, unmap, comes_4);
    close_both();
    have_pair(SOCK_DGRAM);
    try("recvmsg of a datagram", calls_recvmsg, unmap, comes_4);
    close_both();
    have_pair(SOCK_SEQPACKET);
    try("recv of a packet", calls_recv, unmap, comes_4);
    close_both();
    have_tcp();
    try("recv of TCP", calls_recv, unmap, comes_4);
    close_both();
    have_pair(SOCK_STREAM);
    if (write(ends[1], "four", 4) != 4)
        failed("write");
    try("the rest of a recvmsg", calls_recv_all, unmap, comes_4);
    close_both();
    have_pair(SOCK_DGRAM);
    if (bind(ends[1], (struct sockaddr *)&name, sizeof name) != 0)
        failed("bind");
    try("the sender's address", calls_recvfrom, unmap, comes_4);
    close_both();
    ends[1] = -1;
    ends[0] = eventfd(0, 0);
    try("read of an eventfd", calls_read, unmap, comes_1);
    close_both();
    ends[0] = timerfd_create(CLOCK_MONOTONIC, 0);
    struct itimerspec soon = {.it_value = {.tv_nsec = 60000000}};
    if (timerfd_settime(ends[0], 0, &soon, NULL) != 0)
        failed("timerfd_settime");
    try("read of a timer", calls_read, unmap, comes_by_itself);
    close_both();
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    ends[0] = signalfd(-1, &set, 0);
    try("read of signals, too short", calls_read, unmap, comes_signal);
    close_both();
    ends[0] = inotify_init1(0);
    if (inotify_add_watch(ends[0], "/tmp", IN_CREATE) < 0)
        failed("inotify_add_watch");
    try("read of events, too short", calls_read, unmap, comes_file);
    close_both();
    unlink(file);
}

static void calls_write(void) { note(write(ends[1], page, PAGE)); }
static void calls_sendmsg(void) {
    struct iovec parts[2] = {{page, 16}, {filler, 16}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
    note(sendmsg(ends[1], &message, 0));
}

static void fill(void) {
    int flags = fcntl(ends[1], F_GETFL);
    if (fcntl(ends[1], F_SETFL, flags | O_NONBLOCK) != 0)
        failed("fcntl");
    while (write(ends[1], filler, sizeof filler) > 0) {
    }
    fcntl(ends[1], F_SETFL, flags);
}
static void comes_room(void) {
    int flags = fcntl(ends[0], F_GETFL);
    fcntl(ends[0], F_SETFL, flags | O_NONBLOCK);
    while (read(ends[0], filler, sizeof filler) > 0) {
    }
}

static void write_ways(void) {
    have_pipe();
    fill();
    try("write to a pipe", calls_write, unmap, comes_room);
    tell_left("nothing came");
    close_both();
    have_pair(SOCK_STREAM);
    fill();
    try("write to a socket", calls_write, unmap, comes_room);
    tell_left("nothing came");
    close_both();
    have_pair(SOCK_STREAM);
    fill();
    try("sendmsg", calls_sendmsg, protect, comes_room);
    tell_left("nothing came");
    close_both();
}

static void calls_poll(void) {
    struct pollfd *poll_of = (struct pollfd *)page;
    *poll_of = (struct pollfd){ends[0], POLLIN, 0};
    note(poll(poll_of, 1, -1));
}
static void calls_select(void) {
    fd_set *set = (fd_set *)page;
    FD_SET(ends[0], set);
    note(select(ends[0] + 1, set, NULL, NULL, NULL));
}
static void calls_epoll_wait(void) { note(epoll_wait(other, (struct epoll_event *)page, 4, -1)); }
static void calls_accept(void) {
    static socklen_t bytes = 16;
    note(accept(other, (struct sockaddr *)page, &bytes));
}
static void calls_futex(void) { note(syscall(SYS_futex, page, FUTEX_WAIT_PRIVATE, 0, NULL)); }
static void comes_wake(void) {
    if (syscall(SYS_futex, page, FUTEX_WAKE_PRIVATE, 1) != 1)
        failed("waking");
}
static void calls_nanosleep(void) {
    struct timespec time = {.tv_sec = 5};
    note(nanosleep(&time, (struct timespec *)page));
}
static void comes_interruption(void) {
    if (syscall(SYS_tgkill, getpid(), waiting, SIGUSR2) != 0)
        failed("tgkill");
}
static void calls_sigtimedwait(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    note(sigtimedwait(&set, (siginfo_t *)page, NULL));
}
static void calls_splice(void) { note(splice(ends[0], NULL, other, (loff_t *)page, 4, 0)); }
static void comes_connection(void) {
    ends[0] = socket(AF_UNIX, SOCK_STREAM, 0);
    if (connect(ends[0], (struct sockaddr *)&name, sizeof name) != 0)
        failed("connect");
}

static void other_ways(void) {
    have_pipe();
    try("poll", calls_poll, unmap, comes_4);
    close_both();
    have_pipe();
    try("select", calls_select, unmap, comes_4);
    close_both();
    have_pipe();
    other = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN};
    if (epoll_ctl(other, EPOLL_CTL_ADD, ends[0], &event) != 0)
        failed("epoll_ctl");
    try("epoll_wait", calls_epoll_wait, unmap, comes_4);
    tell_result("it is told still", epoll_wait(other, &event, 1, 0));
    close(other);
    close_both();
    other = socket(AF_UNIX, SOCK_STREAM, 0);
    if (bind(other, (struct sockaddr *)&name, sizeof name) != 0 || listen(other, 4) != 0)
        failed("listen");
    try("accept", calls_accept, unmap, comes_connection);
    tell_result("the connection is over", read(ends[0], filler, 1));
    close(other);
    close(ends[0]);
    try("a futex", calls_futex, unmap, comes_wake);
    try("nanosleep", calls_nanosleep, unmap, comes_interruption);
    try("sigtimedwait", calls_sigtimedwait, unmap, comes_signal);
    have_pipe();
    other = open(file, O_CREAT | O_RDWR, 0600);
    try("a splice's place", calls_splice, unmap, comes_4);
    close_both();
    close(other);
    unlink(file);
}

static void nothing(int signal) { (void)signal; }

static void handle(const struct request *request) {
    sigset_t set;
    struct sigaction action = {.sa_handler = nothing};
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigaction(SIGUSR2, &action, NULL);
    if (pthread_sigmask(SIG_BLOCK, &set, NULL) != 0)
        exit(96);
    told[0] = '\0';
    /* On the host others may run the same program. */
    snprintf(file, sizeof file, "/tmp/unmapped_waits_%d", (int)getpid());
    snprintf(name.sun_path + 1, sizeof name.sun_path - 1, "%s", file);
    if (is_path(request, "/read"))
        read_ways();
    else if (is_path(request, "/write"))
        write_ways();
    else if (is_path(request, "/wait"))
        other_ways();
    answer(request, "%s", told);
}

int main(int count, char **arguments) {
    serve_or_run(count, arguments, handle);
}
