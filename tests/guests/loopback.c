/* Connections of a program to itself, over IP. Each path tells what the calls gave; on the host the same
   program tells the same. */
#include "guest.h"
#include <arpa/inet.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/time.h>
#include <sys/uio.h>

static struct sockaddr_in v4(const char *ip, int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((unsigned short)port)};
    inet_pton(AF_INET, ip, &address.sin_addr);
    return address;
}

static struct sockaddr_in6 v6(const char *ip, int port) {
    struct sockaddr_in6 address = {.sin6_family = AF_INET6, .sin6_port = htons((unsigned short)port)};
    inet_pton(AF_INET6, ip, &address.sin6_addr);
    return address;
}

static int port_of(int fd) {
    struct sockaddr_storage address;
    socklen_t bytes = sizeof address;
    getsockname(fd, (struct sockaddr *)&address, &bytes);
    return ntohs(address.ss_family == AF_INET ? ((struct sockaddr_in *)&address)->sin_port
                                              : ((struct sockaddr_in6 *)&address)->sin6_port);
}

static void tell_address(const char *what, const struct sockaddr_storage *address, socklen_t bytes,
                         int known_port) {
    char text[64] = "?";
    int port = -1;
    if (address->ss_family == AF_INET) {
        const struct sockaddr_in *in = (const struct sockaddr_in *)address;
        inet_ntop(AF_INET, &in->sin_addr, text, sizeof text);
        port = ntohs(in->sin_port);
    } else if (address->ss_family == AF_INET6) {
        const struct sockaddr_in6 *in = (const struct sockaddr_in6 *)address;
        inet_ntop(AF_INET6, &in->sin6_addr, text, sizeof text);
        port = ntohs(in->sin6_port);
    }
    tell("%s: family %d, %d bytes, %s, port %s\n", what, address->ss_family, (int)bytes, text,
         port == known_port ? "as known" : port == 0 ? "none" : "another");
}

static void tell_names(const char *what, int fd, int own, int other) {
    struct sockaddr_storage address;
    socklen_t bytes = sizeof address;
    char text[64];
    snprintf(text, sizeof text, "%s itself", what);
    memset(&address, 0, sizeof address);
    if (getsockname(fd, (struct sockaddr *)&address, &bytes) == 0)
        tell_address(text, &address, bytes, own);
    bytes = sizeof address;
    snprintf(text, sizeof text, "%s peer", what);
    if (getpeername(fd, (struct sockaddr *)&address, &bytes) == 0)
        tell_address(text, &address, bytes, other);
    else
        tell("%s: %s\n", text, strerrorname(errno));
}

static int listens(int domain, const void *address, socklen_t bytes) {
    int fd = socket(domain, SOCK_STREAM, 0);
    if (bind(fd, address, bytes) != 0 || listen(fd, 4) != 0) {
        tell("listen: %s\n", strerrorname(errno));
        return -1;
    }
    return fd;
}

static int listens_v4(void) {
    struct sockaddr_in any = v4("127.0.0.1", 0);
    return listens(AF_INET, &any, sizeof any);
}

/* Both ends of a connection. */
static void both(int ends[2]) {
    int fd = listens_v4();
    struct sockaddr_in there = v4("127.0.0.1", port_of(fd));
    ends[0] = socket(AF_INET, SOCK_STREAM, 0);
    tell_result("connect", connect(ends[0], (struct sockaddr *)&there, sizeof there));
    ends[1] = accept(fd, NULL, NULL);
    close(fd);
}

static void tell_poll(const char *what, int fd) {
    struct pollfd one = {.fd = fd, .events = POLLIN | POLLOUT | POLLRDHUP};
    poll(&one, 1, 0);
    tell("%s:%s%s%s%s%s\n", what, one.revents & POLLIN ? " in" : "",
         one.revents & POLLOUT ? " out" : "", one.revents & POLLRDHUP ? " rdhup" : "",
         one.revents & POLLHUP ? " hup" : "", one.revents & POLLERR ? " err" : "");
}

static void names(void) {
    struct sockaddr_in to_v4 = v4("127.0.0.1", 0);
    int plain = socket(AF_INET, SOCK_STREAM, 0), six = socket(AF_INET6, SOCK_STREAM, 0);
    tell_names("a new one", plain, -1, -1);
    tell_names("a new one of v6", six, -1, -1);
    int fd = listens_v4(), port = port_of(fd);
    tell("a port was given: %d\n", port > 1023);
    tell_names("the listener", fd, port, -1);
    to_v4.sin_port = htons((unsigned short)port);
    tell_result("connect", connect(plain, (struct sockaddr *)&to_v4, sizeof to_v4));
    tell_names("the client", plain, port_of(plain), port);
    struct sockaddr_storage from;
    socklen_t bytes = sizeof from;
    memset(&from, 0, sizeof from);
    int accepted = accept4(fd, (struct sockaddr *)&from, &bytes, SOCK_NONBLOCK);
    tell_address("accepted from", &from, bytes, port_of(plain));
    tell_names("the accepted", accepted, port, port_of(plain));
    tell("non-blocking: %d\n", (fcntl(accepted, F_GETFL) & O_NONBLOCK) != 0);
    tell_result("connect again", connect(plain, (struct sockaddr *)&to_v4, sizeof to_v4));
    /* The unspecified address is the machine itself. */
    struct sockaddr_in any = v4("0.0.0.0", port);
    int other = socket(AF_INET, SOCK_STREAM, 0);
    tell_result("connect to any", connect(other, (struct sockaddr *)&any, sizeof any));
    tell_names("to any", other, port_of(other), port);
    /* Version 6: its own, and version 4 through it. */
    struct sockaddr_in6 any6 = v6("::", 0);
    int dual = listens(AF_INET6, &any6, sizeof any6), dual_port = port_of(dual);
    tell_names("dual", dual, dual_port, -1);
    struct sockaddr_in6 to_v6 = v6("::1", dual_port);
    tell_result("connect v6", connect(six, (struct sockaddr *)&to_v6, sizeof to_v6));
    tell_names("v6", six, port_of(six), dual_port);
    tell_names("v6 accepted", accept(dual, NULL, NULL), dual_port, port_of(six));
    int four = socket(AF_INET, SOCK_STREAM, 0);
    to_v4.sin_port = htons((unsigned short)dual_port);
    tell_result("connect v4 to dual", connect(four, (struct sockaddr *)&to_v4, sizeof to_v4));
    tell_names("v4 accepted by dual", accept(dual, NULL, NULL), dual_port, port_of(four));
    int mapped = socket(AF_INET6, SOCK_STREAM, 0);
    struct sockaddr_in6 to_mapped = v6("::ffff:127.0.0.1", port);
    tell_result("connect mapped", connect(mapped, (struct sockaddr *)&to_mapped, sizeof to_mapped));
    tell_names("mapped", mapped, port_of(mapped), port);
}

static void refused(void) {
    int fd = listens_v4(), port = port_of(fd);
    struct sockaddr_in there = v4("127.0.0.1", port), no_such = v4("127.0.0.9", port);
    int other = socket(AF_INET, SOCK_STREAM, 0);
    tell_result("bind where one is", bind(other, (struct sockaddr *)&there, sizeof there));
    tell_result("connect to an address where none is",
                connect(other, (struct sockaddr *)&no_such, sizeof no_such));
    close(fd);
    int late = socket(AF_INET, SOCK_STREAM, 0);
    tell_result("connect where none is any more",
                connect(late, (struct sockaddr *)&there, sizeof there));
    fcntl(late, F_SETFL, O_NONBLOCK);
    struct sockaddr_in far = v4("203.0.113.7", 80);
    tell_result("bind to what is not ours", bind(late, (struct sockaddr *)&far, sizeof far));
    char byte;
    int fresh = socket(AF_INET, SOCK_STREAM, 0);
    tell_result("receive from a new one", recv(fresh, &byte, 1, 0));
    tell_result("send to a new one", send(fresh, "x", 1, MSG_NOSIGNAL));
    tell_result("accept on a new one", accept(fresh, NULL, NULL));
    tell_result("shutdown of a new one", shutdown(fresh, SHUT_WR));
    int on = 1, first = socket(AF_INET, SOCK_STREAM, 0), second = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(first, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on);
    setsockopt(second, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on);
    struct sockaddr_in shared = v4("127.0.0.1", 0);
    bind(first, (struct sockaddr *)&shared, sizeof shared);
    shared.sin_port = htons((unsigned short)port_of(first));
    tell_result("listen", listen(first, 1));
    tell_result("share a port", bind(second, (struct sockaddr *)&shared, sizeof shared));
    tell_result("listen too", listen(second, 1));
}

static void halves(void) {
    int ends[2];
    char bytes[16];
    signal(SIGPIPE, SIG_IGN);
    both(ends);
    tell_poll("a new connection", ends[0]);
    tell_result("send", send(ends[1], "hello", 5, 0));
    tell_poll("with something to read", ends[0]);
    int waiting = 0;
    tell_result("FIONREAD", ioctl(ends[0], FIONREAD, &waiting));
    tell("waiting: %d\n", waiting);
    tell_result("shut the sending half", shutdown(ends[1], SHUT_WR));
    tell_poll("what comes to its end", ends[0]);
    tell_poll("the end that shut", ends[1]);
    tell_result("read", read(ends[0], bytes, sizeof bytes));
    tell_result("read at the end", read(ends[0], bytes, sizeof bytes));
    tell_result("write to the shut half", write(ends[1], "x", 1));
    tell_result("the other way", send(ends[0], "back", 4, 0));
    tell_result("arrives", read(ends[1], bytes, sizeof bytes));
    tell_result("shut the other half", shutdown(ends[0], SHUT_RDWR));
    tell_poll("both shut", ends[0]);
    tell_result("read after both", read(ends[1], bytes, sizeof bytes));
    close(ends[0]);
    close(ends[1]);
    both(ends);
    close(ends[1]);
    tell_poll("the other end closed", ends[0]);
    tell_result("read", read(ends[0], bytes, sizeof bytes));
    both(ends);
    tell_result("shut the receiving half", shutdown(ends[0], SHUT_RD));
    tell_poll("shut for reading", ends[0]);
    tell_result("read", read(ends[0], bytes, sizeof bytes));
    tell_result("write", write(ends[0], "still", 5));
    tell_result("arrives", read(ends[1], bytes, sizeof bytes));
}

static void flags(void) {
    int ends[2];
    char bytes[16] = {0};
    both(ends);
    tell_result("nothing there", recv(ends[0], bytes, sizeof bytes, MSG_DONTWAIT));
    send(ends[1], "abcdefgh", 8, 0);
    tell_result("peek", recv(ends[0], bytes, 4, MSG_PEEK));
    tell("%.4s\n", bytes);
    tell_result("take", recv(ends[0], bytes, 4, 0));
    tell("%.4s\n", bytes);
    tell_result("throw away", recv(ends[0], NULL, 2, MSG_TRUNC));
    tell_result("rest", recv(ends[0], bytes, sizeof bytes, 0));
    tell("%.2s\n", bytes);
    send(ends[1], "12", 2, 0);
    shutdown(ends[1], SHUT_WR);
    tell_result("all of it, or to the end", recv(ends[0], bytes, sizeof bytes, MSG_WAITALL));
    struct sockaddr_storage from;
    socklen_t from_bytes = sizeof from;
    send(ends[0], "x", 1, 0);
    tell_result("recvfrom", recvfrom(ends[1], bytes, 1, 0, (struct sockaddr *)&from, &from_bytes));
    tell("name: %d bytes\n", (int)from_bytes);
    struct mmsghdr messages[3];
    struct iovec parts[3] = {{"one", 3}, {"two", 3}, {"three", 5}};
    memset(messages, 0, sizeof messages);
    for (int i = 0; i < 3; i++)
        messages[i].msg_hdr = (struct msghdr){.msg_iov = &parts[i], .msg_iovlen = 1};
    tell_result("sendmmsg", sendmmsg(ends[0], messages, 3, 0));
    tell("lengths: %u %u %u\n", messages[0].msg_len, messages[1].msg_len, messages[2].msg_len);
    char rooms[2][4];
    struct iovec into[2] = {{rooms[0], 4}, {rooms[1], 4}};
    for (int i = 0; i < 2; i++)
        messages[i].msg_hdr = (struct msghdr){.msg_iov = &into[i], .msg_iovlen = 1};
    tell_result("recvmmsg", recvmmsg(ends[1], messages, 2, 0, NULL));
    tell("%.4s %.4s\n", rooms[0], rooms[1]);
    int on = 1;
    tell_result("FIONBIO", ioctl(ends[1], FIONBIO, &on));
    tell_result("the rest", read(ends[1], bytes, sizeof bytes));
    tell_result("no more", read(ends[1], bytes, sizeof bytes));
}

static void tell_option(const char *what, int fd, int level, int option) {
    int value[4] = {0};
    socklen_t bytes = sizeof value;
    int result = getsockopt(fd, level, option, value, &bytes);
    tell("%s: %d, %d bytes, %d %d %d\n", what, result, (int)bytes, value[0], value[1], value[2]);
}

static void set_option(int fd, int level, int option, int value) {
    setsockopt(fd, level, option, &value, sizeof value);
}

static void options(void) {
    int fd = socket(AF_INET, SOCK_STREAM, 0), six = socket(AF_INET6, SOCK_STREAM, 0);
    tell_option("domain", fd, SOL_SOCKET, SO_DOMAIN);
    tell_option("domain of v6", six, SOL_SOCKET, SO_DOMAIN);
    tell_option("type", fd, SOL_SOCKET, SO_TYPE);
    tell_option("protocol", fd, SOL_SOCKET, SO_PROTOCOL);
    tell_option("error", fd, SOL_SOCKET, SO_ERROR);
    tell_option("listens", fd, SOL_SOCKET, SO_ACCEPTCONN);
    tell_option("no delay", fd, IPPROTO_TCP, TCP_NODELAY);
    set_option(fd, IPPROTO_TCP, TCP_NODELAY, 7);
    tell_option("no delay", fd, IPPROTO_TCP, TCP_NODELAY);
    set_option(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
    tell_option("keep alive", fd, SOL_SOCKET, SO_KEEPALIVE);
    tell_option("keep idle", fd, IPPROTO_TCP, TCP_KEEPIDLE);
    set_option(fd, IPPROTO_TCP, TCP_KEEPIDLE, 30);
    tell_option("keep idle", fd, IPPROTO_TCP, TCP_KEEPIDLE);
    set_option(fd, SOL_SOCKET, SO_REUSEADDR, 1);
    tell_option("reuse", fd, SOL_SOCKET, SO_REUSEADDR);
    set_option(fd, SOL_SOCKET, SO_RCVBUF, 10000);
    tell_option("receive buffer", fd, SOL_SOCKET, SO_RCVBUF);
    struct timeval time = {.tv_sec = 3, .tv_usec = 500000};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time);
    struct timeval back = {0};
    socklen_t bytes = sizeof back;
    getsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &back, &bytes);
    tell("time: %ld s %ld us\n", (long)back.tv_sec, (long)back.tv_usec);
    struct linger linger = {.l_onoff = 1, .l_linger = 5};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
    tell_option("linger", fd, SOL_SOCKET, SO_LINGER);
    tell_option("v6 only", six, IPPROTO_IPV6, IPV6_V6ONLY);
    set_option(six, IPPROTO_IPV6, IPV6_V6ONLY, 1);
    tell_option("v6 only", six, IPPROTO_IPV6, IPV6_V6ONLY);
    int value = 1;
    tell_result("not a socket", setsockopt(STDOUT_FILENO, SOL_SOCKET, SO_KEEPALIVE, &value, 4));
    int only = listens(AF_INET6, &(struct sockaddr_in6){.sin6_family = AF_INET6}, 28);
    tell_option("listens", only, SOL_SOCKET, SO_ACCEPTCONN);
}

static void times(void) {
    int ends[2];
    char byte;
    both(ends);
    struct timeval time = {.tv_usec = 30000}, before, after;
    setsockopt(ends[0], SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time);
    setsockopt(ends[0], SOL_SOCKET, SO_SNDTIMEO, &time, sizeof time);
    gettimeofday(&before, NULL);
    tell_result("receive in vain", recv(ends[0], &byte, 1, 0));
    gettimeofday(&after, NULL);
    long took = (after.tv_sec - before.tv_sec) * 1000000 + after.tv_usec - before.tv_usec;
    tell("it took its time: %d\n", took >= 29000);
    static char much[1 << 20];
    long sent = 0;
    for (;;) {
        ssize_t more = send(ends[0], much, sizeof much, 0);
        if (more < 0)
            break;
        sent += more;
    }
    tell("sent something: %d, then %s\n", sent > 0, strerrorname(errno));
    long got = 0;
    fcntl(ends[1], F_SETFL, O_NONBLOCK);
    for (;;) {
        /* What is under way on the host arrives a moment later. */
        struct pollfd arrives = {.fd = ends[1], .events = POLLIN};
        if (got < sent)
            poll(&arrives, 1, 5000);
        ssize_t more = recv(ends[1], much, sizeof much, 0);
        if (more <= 0)
            break;
        got += more;
    }
    tell("all of it arrived: %d\n", got == sent);
    int fd = listens_v4();
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time);
    tell_result("accept in vain", accept(fd, NULL, NULL));
}

static void tell_events(const char *what, int epoll) {
    struct epoll_event events[8];
    int count = epoll_wait(epoll, events, 8, 0);
    tell("%s: %d", what, count);
    for (int i = 0; i < count; i++)
        tell(" %d:%s%s%s%s", events[i].data.fd, events[i].events & EPOLLIN ? "in " : "",
             events[i].events & EPOLLOUT ? "out " : "", events[i].events & EPOLLRDHUP ? "rdhup " : "",
             events[i].events & EPOLLHUP ? "hup " : "");
    tell("\n");
}

/* On a slow host it takes a moment until what was done at one end is seen at the other. */
static void tell_soon(const char *what, int epoll) {
    usleep(20000);
    tell_events(what, epoll);
}

static void edges(void) {
    int ends[2], fd = listens_v4(), epoll = epoll_create1(0);
    char bytes[16];
    struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.fd = 1};
    epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
    tell_soon("nobody connected", epoll);
    struct sockaddr_in there = v4("127.0.0.1", port_of(fd));
    ends[0] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    int result = connect(ends[0], (struct sockaddr *)&there, sizeof there);
    tell("connect: %d\n", result == 0 || errno == EINPROGRESS);
    tell_soon("one waits", epoll);
    tell_soon("said once", epoll);
    ends[1] = accept4(fd, NULL, NULL, SOCK_NONBLOCK);
    event = (struct epoll_event){.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.fd = 2};
    epoll_ctl(epoll, EPOLL_CTL_ADD, ends[1], &event);
    tell_soon("new", epoll);
    tell_soon("said once", epoll);
    write(ends[0], "abc", 3);
    tell_soon("something came", epoll);
    read(ends[1], bytes, 1);
    tell_soon("not all was read", epoll);
    write(ends[0], "d", 1);
    tell_soon("more came", epoll);
    shutdown(ends[0], SHUT_WR);
    tell_soon("its end came", epoll);
    tell_soon("said once", epoll);
    close(ends[0]);
    close(ends[1]);
    tell_soon("closed", epoll);
}

static void *serves_one(void *listener) {
    int fd = accept(*(int *)listener, NULL, NULL);
    static char bytes[70000];
    long total = 0;
    for (ssize_t more; (more = read(fd, bytes, sizeof bytes)) > 0; total += more)
        ;
    char text[32];
    int used = snprintf(text, sizeof text, "%ld", total);
    write(fd, text, (size_t)used);
    close(fd);
    return NULL;
}

/* Another thread is the other end, of more than any buffer holds. */
static void threads(void) {
    int fd = listens_v4();
    pthread_t thread;
    pthread_create(&thread, NULL, serves_one, &fd);
    struct sockaddr_in there = v4("127.0.0.1", port_of(fd));
    int client = socket(AF_INET, SOCK_STREAM, 0);
    tell_result("connect", connect(client, (struct sockaddr *)&there, sizeof there));
    static char much[5000000];
    long sent = 0;
    while (sent < (long)sizeof much) {
        ssize_t more = write(client, much + sent, sizeof much - (size_t)sent);
        if (more <= 0)
            break;
        sent += more;
    }
    tell("sent: %ld\n", sent);
    shutdown(client, SHUT_WR);
    char text[32] = {0};
    tell_result("answer", recv(client, text, sizeof text - 1, MSG_WAITALL));
    tell("%s\n", text);
    pthread_join(thread, NULL);
}

/* Closed with no time for what is under way. */
static void broken_off(void) {
    int fd = listens_v4();
    struct sockaddr_in there = v4("127.0.0.1", port_of(fd));
    int client = socket(AF_INET, SOCK_STREAM, 0);
    tell_result("connect", connect(client, (struct sockaddr *)&there, sizeof there));
    int server = accept(fd, NULL, NULL);
    struct linger at_once = {1, 0};
    setsockopt(client, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    close(client);
    usleep(5000);
    char text[8];
    tell_result("read", read(server, text, sizeof text));
    tell_result("write", send(server, "x", 1, MSG_NOSIGNAL));
    close(server);
    close(fd);
}

static void handle(const struct request *request) {
    static const struct {
        const char *path;
        void (*run)(void);
    } all[] = {
        {"/names", names},     {"/refused", refused}, {"/halves", halves},   {"/flags", flags},
        {"/options", options}, {"/times", times},     {"/edges", edges},     {"/threads", threads},
        {"/broken_off", broken_off},
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (is_path(request, all[i].path))
            all[i].run();
    answer(request, "%s", told);
}

int main(int count, char **arguments) {
    serve_or_run(count, arguments, handle);
}
