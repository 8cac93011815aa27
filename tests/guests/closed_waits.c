/*
 * Threads whose descriptors another one closes while they wait in a call that uses them, and gives the number to
 * something else: the call goes on with what it began with. `/read` has the ways to read, `/write` the ways to write
 * and to connect, `/whole` what is read and written at once.
 */
#include "threads.h"
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/select.h>
#include <sys/uio.h>
#include <sys/un.h>

static int ends[2], other, listening;
static char filler[4096], got[64];
static struct sockaddr_un name = {.sun_family = AF_UNIX}, next_name = {.sun_family = AF_UNIX};
static char file[64];

static void *run(void *call) {
    ((void (*)(void))call)();
    return NULL;
}

/* Has another thread make a call, does something to what it waits with, and lets it go on by `come`. */
static void try(const char *what, void (*call)(void), void (*meanwhile)(void), void (*come)(void)) {
    pthread_t thread;
    memset(got, 0, sizeof got);
    if (pthread_create(&thread, NULL, run, (void *)call) != 0)
        failed("a thread");
    pause_a_little();
    meanwhile();
    come();
    pthread_join(thread, NULL);
    errno = error;
    tell_result(what, result);
}

/* Closes a descriptor, and has its number stand for one end of a new pipe, with something in it. */
static int replacement[2];
static void replace(int fd, int end) {
    int pair[2];
    if (pipe(pair) != 0 || write(pair[1], "wrong", 5) != 5 || dup2(pair[end], fd) != fd)
        failed("another pipe");
    replacement[0] = pair[0];
    replacement[1] = pair[1];
}
static void replace_first(void) { replace(ends[0], 0); }
static void replace_second(void) { replace(ends[1], 1); }
static void replace_other(void) { replace(other, 0); }
static void close_first(void) { close(ends[0]); }
static void end_replacement(void) {
    fcntl(replacement[0], F_SETFL, O_NONBLOCK);
    tell("of the other one: %zd", read(replacement[0], filler, sizeof filler));
    tell(" %s\n", filler[0] == 'w' ? "bytes of its own" : "other bytes");
    close(replacement[0]);
    close(replacement[1]);
}
static void close_both(void) {
    close(ends[0]);
    close(ends[1]);
}

static void have_pipe(void) {
    if (pipe(ends) != 0)
        failed("pipe");
}
static void have_pair(int kind) {
    if (socketpair(AF_UNIX, kind, 0, ends) != 0)
        failed("socketpair");
}
/* A socket that has taken over the name. */
static int have_named(int kind) {
    int fd = socket(AF_UNIX, kind, 0);
    if (bind(fd, (const struct sockaddr *)&next_name, sizeof next_name) != 0)
        failed("bind");
    if (kind == SOCK_STREAM && listen(fd, 0) != 0)
        failed("listen");
    if (rename(next_name.sun_path, name.sun_path) != 0)
        failed("rename");
    return fd;
}

static void calls_read(void) { note(read(ends[0], got, sizeof got)); }
static void calls_recv(void) { note(recv(ends[0], got, sizeof got, 0)); }
static void calls_epoll_wait(void) {
    struct epoll_event event = {0};
    note(epoll_wait(other, &event, 1, -1));
    snprintf(got, sizeof got, "event %d", (int)event.data.u32);
}
static void calls_accept(void) {
    note(accept(listening, NULL, NULL));
    if (result >= 0) {
        tell("accepted: %zd\n", read((int)result, got, sizeof got));
        close((int)result);
        result = 0;
    }
}
static void calls_splice(void) { note(splice(ends[0], NULL, other, NULL, sizeof got, 0)); }

static void comes_4(void) { tell_result("sent", send(ends[1], "four", 4, MSG_NOSIGNAL)); }
static void written_4(void) { tell_result("written", write(ends[1], "four", 4)); }
static void comes_1(void) {
    uint64_t one = 1;
    if (write(ends[1], &one, sizeof one) != sizeof one)
        failed("write to an eventfd");
}
static void comes_connection(void) {
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (connect(fd, (const struct sockaddr *)&name, sizeof name) != 0 || write(fd, "hello", 5) != 5)
        failed("connect");
    close(fd);
}

static void read_ways(void) {
    have_pipe();
    try("read of a pipe", calls_read, replace_first, written_4);
    tell("got %s\n", got);
    end_replacement();
    close_both();
    have_pipe();
    try("read of a pipe that is closed", calls_read, close_first, written_4);
    tell("got %s\n", got);
    tell_result("nobody reads", write(ends[1], "four", 4));
    close(ends[1]);
    static const int kinds[] = {SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET};
    for (size_t i = 0; i < 3; i++) {
        have_pair(kinds[i]);
        try("recv", calls_recv, replace_first, comes_4);
        tell("got %s\n", got);
        end_replacement();
        tell_result("the other end", send(ends[1], "x", 1, MSG_NOSIGNAL));
        close_both();
    }
    ends[0] = eventfd(0, 0);
    ends[1] = dup(ends[0]);
    try("read of an eventfd", calls_read, replace_first, comes_1);
    end_replacement();
    close_both();
    have_pipe();
    other = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = 77};
    if (epoll_ctl(other, EPOLL_CTL_ADD, ends[0], &event) != 0)
        failed("epoll_ctl");
    try("epoll_wait", calls_epoll_wait, replace_other, written_4);
    tell("got %s\n", got);
    end_replacement();
    close(other);
    close_both();
    other = listening = have_named(SOCK_STREAM);
    try("accept", calls_accept, replace_other, comes_connection);
    tell("got %s\n", got);
    end_replacement();
    close(listening);
    have_pipe();
    other = open(file, O_CREAT | O_RDWR, 0600);
    int same = dup(other);
    try("splice", calls_splice, replace_other, written_4);
    tell_result("in the file", pread(same, got, sizeof got, 0));
    end_replacement();
    close(other);
    close(same);
    close_both();
    unlink(file);
    unlink(name.sun_path);
}

static size_t filled;
static void fill(size_t bytes) {
    ssize_t some;
    int flags = fcntl(ends[1], F_GETFL);
    if (fcntl(ends[1], F_SETFL, flags | O_NONBLOCK) != 0)
        failed("fcntl");
    filled = 0;
    while ((some = write(ends[1], filler, bytes)) > 0)
        filled += (size_t)some;
    fcntl(ends[1], F_SETFL, flags);
}
static void fill_name(void) {
    const struct sockaddr *to = (const struct sockaddr *)&name;
    while (sendto(ends[1], filler, 4, MSG_DONTWAIT, to, sizeof name) > 0) {
    }
}
/* Takes what `fill` put there, and nothing of what comes behind it. */
static void drain(void) {
    while (filled > 0) {
        size_t most = filled < sizeof filler ? filled : sizeof filler;
        ssize_t some = read(ends[0], filler, most);
        if (some <= 0)
            failed("draining");
        filled -= (size_t)some;
    }
}
/* What is written after a wait is marked. */
static void calls_write(void) {
    static char marked[sizeof filler];
    memset(marked, 'm', sizeof marked);
    note(write(ends[1], marked, sizeof marked));
}
static void calls_send(void) { note(send(ends[1], "mark", 4, 0)); }
static void calls_sendto(void) {
    note(sendto(ends[1], "mark", 4, 0, (const struct sockaddr *)&name, sizeof name));
}
static void calls_connect(void) {
    note(connect(other, (const struct sockaddr *)&name, sizeof name));
}
static void shut(void) { shutdown(ends[1], SHUT_WR); }
static void nothing(void) {}

/* The receiver goes, and others come that may have its number. */
static int others[2];
static void other_receivers(void) {
    close(ends[0]);
    if (socketpair(AF_UNIX, SOCK_DGRAM, 0, others) != 0)
        failed("socketpair");
}
static void other_receiver_of_the_name(void) {
    int before = ends[0];
    ends[0] = have_named(SOCK_DGRAM);
    close(before);
}
static void other_listener_of_the_name(void) {
    int before = listening;
    listening = have_named(SOCK_STREAM);
    close(before);
}
static int is_marked(void) {
    ssize_t some;
    while ((some = recv(ends[0], filler, sizeof filler, MSG_DONTWAIT)) > 0)
        if (some == 4 && memcmp(filler, "mark", 4) == 0)
            return 1;
    return 0;
}

static void write_ways(void) {
    have_pipe();
    int same = dup(ends[1]);
    fill(sizeof filler);
    try("write to a pipe", calls_write, replace_second, drain);
    tell("marked: %d\n", read(ends[0], filler, sizeof filler) > 0 && filler[0] == 'm');
    end_replacement();
    close(same);
    close_both();
    have_pair(SOCK_STREAM);
    fill(sizeof filler);
    try("write to a socket", calls_write, replace_second, drain);
    tell("marked: %d\n", read(ends[0], filler, sizeof filler) > 0 && filler[0] == 'm');
    end_replacement();
    close_both();
    have_pair(SOCK_STREAM);
    fill(sizeof filler);
    try("write to a socket that is shut", calls_write, shut, nothing);
    close_both();
    have_pair(SOCK_DGRAM);
    fill(4);
    try("a message to who is gone", calls_send, other_receivers, nothing);
    fcntl(others[0], F_SETFL, O_NONBLOCK);
    tell_result("to others", read(others[0], filler, sizeof filler));
    close(others[0]);
    close(others[1]);
    close(ends[1]);
    ends[0] = have_named(SOCK_DGRAM);
    ends[1] = socket(AF_UNIX, SOCK_DGRAM, 0);
    fill_name();
    try("a message to a name", calls_sendto, other_receiver_of_the_name, nothing);
    tell("marked: %d\n", is_marked());
    close_both();
    /* The listener is full of connections that nobody accepts. */
    listening = have_named(SOCK_STREAM);
    int waiting[256], count = 0;
    while (count < 256) {
        waiting[count] = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
        if (connect(waiting[count++], (const struct sockaddr *)&name, sizeof name) != 0)
            break;
    }
    other = socket(AF_UNIX, SOCK_STREAM, 0);
    try("a connection to a name", calls_connect, other_listener_of_the_name, nothing);
    int accepted = accept(listening, NULL, NULL);
    tell_result("to the new one", send(accepted, "x", 1, 0));
    close(accepted);
    close(other);
    close(listening);
    while (count > 0)
        close(waiting[--count]);
    unlink(name.sun_path);
}

static void calls_readv(void) {
    struct iovec parts[2] = {{got, 4}, {got + 4, 4}};
    note(readv(ends[0], parts, 2));
}
static void calls_add(void) {
    uint64_t value = 2;
    note(write(ends[0], &value, sizeof value));
}
static void taken(void) {
    uint64_t value;
    if (read(ends[0], &value, sizeof value) != sizeof value)
        failed("read of an eventfd");
}
static void calls_select(void) {
    fd_set set;
    FD_ZERO(&set);
    FD_SET(ends[0], &set);
    note(select(ends[0] + 1, &set, NULL, NULL, NULL));
    tell("in the set still: %d\n", FD_ISSET(ends[0], &set) != 0);
}
static pthread_t main_thread;
static void interrupted(int signal) { (void)signal; }
static void interrupt_all(void) { kill(getpid(), SIGUSR2); }

static void whole_ways(void) {
    have_pipe();
    try("a full part, and nothing for the next", calls_readv, nothing, written_4);
    fill(sizeof filler);
    tell_result("take a bit", read(ends[0], got, 10));
    fcntl(ends[1], F_SETFL, O_NONBLOCK);
    tell_result("no room for a whole one", write(ends[1], filler, 4096));
    struct pollfd poll_of = {ends[1], POLLOUT, 0};
    tell_result("ready", poll(&poll_of, 1, 0));
    tell_result("take more", read(ends[0], filler, 4086));
    tell_result("ready", poll(&poll_of, 1, 0));
    tell_result("room", write(ends[1], filler, 4096));
    close_both();
    ends[0] = eventfd(0, 0);
    uint64_t most = UINT64_MAX - 2;
    if (write(ends[0], &most, sizeof most) != sizeof most)
        failed("write to an eventfd");
    try("adding to a full counter", calls_add, nothing, taken);
    uint64_t count = 0;
    tell_result("read", read(ends[0], &count, sizeof count));
    tell("it is %d\n", (int)count);
    close(ends[0]);
    have_pipe();
    struct sigaction action = {.sa_handler = interrupted};
    sigaction(SIGUSR2, &action, NULL);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    main_thread = pthread_self();
    pthread_t thread;
    pthread_create(&thread, NULL, run, (void *)calls_select);
    pause_a_little();
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    interrupt_all();
    pthread_join(thread, NULL);
    errno = error;
    tell_result("select", result);
    close_both();
}

static void handle(const struct request *request) {
    told[0] = '\0';
    signal(SIGPIPE, SIG_IGN);
    /* On the host others may run the same program. */
    snprintf(file, sizeof file, "/tmp/closed_waits_%d", (int)getpid());
    snprintf(name.sun_path, sizeof name.sun_path, "%s_name", file);
    snprintf(next_name.sun_path, sizeof next_name.sun_path, "%s_next", file);
    if (is_path(request, "/read"))
        read_ways();
    else if (is_path(request, "/write"))
        write_ways();
    else if (is_path(request, "/whole"))
        whole_ways();
    answer(request, "%s", told);
}

int main(int count, char **arguments) {
    serve_or_run(count, arguments, handle);
}
