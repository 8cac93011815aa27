/*
 * Connections out of the guest. `/fetch/HOST/PORT` sends "ping" and answers all that comes; `/epoll/...`
 * the same without blocking; `/echo/HOST/PORT/N` sends N bytes to an echo and checks what comes back;
 * `/wait/HOST/PORT` reads from a peer that says nothing; `/two/HOST/PORT` holds a connection open;
 * `/threads/HOST/PORT` asks from several threads. Before it is ready it tries what is refused.
 */
#include "guest.h"
#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>

static char host[256], port[16];
static unsigned long count;
static int early;

static const char *lookup(struct addrinfo **found) {
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
    int error = getaddrinfo(host, port, &hints, found);
    return error == 0 ? NULL : error == EAI_NONAME ? "EAI_NONAME" : gai_strerror(error);
}

static int reach(int flags) {
    struct addrinfo *found;
    const char *error = lookup(&found);
    if (error != NULL) {
        tell("getaddrinfo: %s\n", error);
        return -1;
    }
    int fd = socket(found->ai_family, SOCK_STREAM | flags, 0);
    int result = connect(fd, found->ai_addr, found->ai_addrlen);
    freeaddrinfo(found);
    if (result != 0 && errno != EINPROGRESS) {
        tell("connect: %s\n", strerrorname(errno));
        close(fd);
        return -1;
    }
    if ((flags & SOCK_NONBLOCK) != 0 && result == 0)
        tell("connected at once\n");
    return fd;
}

static void read_all(int fd) {
    char bytes[4096];
    for (;;) {
        ssize_t more = read(fd, bytes, sizeof bytes);
        if (more < 0)
            tell("read: %s\n", strerrorname(errno));
        if (more <= 0)
            break;
        tell("%.*s", (int)more, bytes);
    }
}

static void fetch(void) {
    int fd = reach(0);
    if (fd < 0)
        return;
    struct sockaddr_storage peer;
    socklen_t bytes = sizeof peer;
    if (getpeername(fd, (struct sockaddr *)&peer, &bytes) != 0 || peer.ss_family != AF_INET)
        tell("getpeername\n");
    send_all(fd, "ping", 4);
    shutdown(fd, SHUT_WR);
    read_all(fd);
    close(fd);
}

static void by_epoll(void) {
    int epoll = epoll_create1(0), fd = reach(SOCK_NONBLOCK), error = -1;
    if (fd < 0)
        return;
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET};
    epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
    int stage = 0;
    for (;;) {
        if (epoll_wait(epoll, &event, 1, 5000) != 1) {
            tell("no event in stage %d\n", stage);
            return;
        }
        if (stage == 0) {
            socklen_t bytes = sizeof error;
            if (!(event.events & EPOLLOUT))
                continue;
            getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &bytes);
            if (error != 0) {
                tell("error: %s\n", strerrorname(error));
                return;
            }
            send_all(fd, "ping", 4);
            shutdown(fd, SHUT_WR);
            stage = 1;
        }
        char bytes[8];
        ssize_t more;
        while ((more = read(fd, bytes, sizeof bytes)) > 0)
            tell("%.*s", (int)more, bytes);
        if (more == 0)
            break;
        if (errno != EAGAIN) {
            tell("read: %s\n", strerrorname(errno));
            break;
        }
    }
    close(fd);
}

static void echo(void) {
    int fd = reach(SOCK_NONBLOCK);
    if (fd < 0)
        return;
    unsigned long sent = 0, got = 0, wrong = 0;
    static unsigned char bytes[100000];
    while (got < count) {
        struct pollfd one = {.fd = fd, .events = POLLIN | (sent < count ? POLLOUT : 0)};
        if (poll(&one, 1, 10000) != 1)
            break;
        if ((one.revents & POLLOUT) && sent < count) {
            size_t part = count - sent < sizeof bytes ? count - sent : sizeof bytes;
            for (size_t i = 0; i < part; i++)
                bytes[i] = (unsigned char)((sent + i) % 251);
            ssize_t more = send(fd, bytes, part, 0);
            if (more > 0)
                sent += (unsigned long)more;
        }
        if (one.revents & POLLIN) {
            ssize_t more = recv(fd, bytes, sizeof bytes, 0);
            if (more <= 0)
                break;
            for (ssize_t i = 0; i < more; i++)
                wrong += bytes[i] != (got + (unsigned long)i) % 251;
            got += (unsigned long)more;
        }
    }
    tell("sent %lu, got %lu, wrong %lu\n", sent, got, wrong);
    close(fd);
}

static void *fetch_one(void *answer) {
    int fd = reach(0);
    if (fd < 0)
        return NULL;
    send_all(fd, "ping", 4);
    shutdown(fd, SHUT_WR);
    recv(fd, answer, 63, MSG_WAITALL);
    close(fd);
    return NULL;
}

static void by_threads(void) {
    pthread_t threads[6];
    static char answers[6][64];
    for (int i = 0; i < 6; i++)
        pthread_create(&threads[i], NULL, fetch_one, answers[i]);
    for (int i = 0; i < 6; i++) {
        pthread_join(threads[i], NULL);
        tell("%s", answers[i]);
    }
}

/* More connections than there may be. */
static void many(void) {
    int open = 0;
    for (int i = 0; i < 40; i++)
        if (reach(SOCK_NONBLOCK) >= 0)
            open++;
    tell("open: %d\n", open);
}

/* One hostcall about connections with arguments that make no sense, around the library OS. */
static void hostile(void) {
    struct call_page {
        uint32_t number, flags;
        uint64_t args[4];
        int64_t result;
        uint64_t tsc;
    } volatile *page = (volatile struct call_page *)0x11000;
    static const unsigned char code[] = {0xCC, 0x31, 0xC0};
    static char buffer[64];
    uint64_t here = (uint64_t)(uintptr_t)buffer;
    uint64_t wild[][4] = {
        {0, 0, 0, 0},
        {~0ul, ~0ul, ~0ul, ~0ul},
        {here, ~0ul, here, ~0ul},
        {here, 64, 0x8000, 4096},
        {0x8000, 64, here, 64},
        {0x100, here, 1ul << 40, 0},
        {~0ul - 8, 64, ~0ul - 8, 64},
        {0, 0xFFFFC0000201ul, 1ul << 32, 0},
        {0, 0xFFFF7F000001ul, 80, 0},
        {0, 1, 443, 0},
    };
    const unsigned char *gate = (const unsigned char *)0x100000;
    while (memcmp(gate, code, sizeof code) != 0)
        gate++;
    /* RESOLVE to SOCKET_ERROR, one that is not there, and PARK. */
    uint32_t numbers[] = {10, 11, 12, 13, 14, 15, 99, 8};
    page->number = numbers[count % 8];
    page->flags = count % 8 == 7 ? 1 : (uint32_t)count;
    for (int i = 0; i < 4; i++)
        page->args[i] = wild[count / 8 % 10][i];
    if (count % 8 == 7)
        page->args[0] = 0;
    __asm__ volatile("call *%0" : : "r"(gate) : "rax", "rcx", "memory", "cc");
    tell("%ld\n", (long)page->result);
}

static void udp(void) {
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in there = {.sin_family = AF_INET, .sin_port = htons(53)};
    inet_pton(AF_INET, "192.0.2.1", &there.sin_addr);
    tell_result("sendto", sendto(fd, "x", 1, 0, (struct sockaddr *)&there, sizeof there));
    tell_result("connect", connect(fd, (struct sockaddr *)&there, sizeof there));
    tell_result("send", send(fd, "x", 1, 0));
}

/* Looks at a connection of which nothing comes, without a wait. */
static void looks(void) {
    int fd = reach(0), found = 0;
    struct pollfd one = {.fd = fd, .events = POLLIN};
    for (unsigned long i = 0; i < count; i++)
        found += poll(&one, 1, 0);
    tell("looked %lu times, found %d\n", count, found);
    close(fd);
}

static void handle(const struct request *request) {
    char way[32] = "";
    told[0] = '\0';
    sscanf(request->path, "/%31[^/]/%255[^/]/%15[^/]/%lu", way, host, port, &count);
    static const struct {
        const char *way;
        void (*run)(void);
    } all[] = {{"fetch", fetch},        {"epoll", by_epoll}, {"echo", echo},
               {"threads", by_threads}, {"many", many},      {"udp", udp},         {"hostile", hostile},
               {"looks", looks}};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (strcmp(way, all[i].way) == 0)
            all[i].run();
    if (strcmp(way, "early") == 0)
        tell("early: %s\n", strerrorname(early));
    answer(request, "%s", told);
}

int main(void) {
    struct sockaddr_in there = {.sin_family = AF_INET, .sin_port = htons(80)};
    inet_pton(AF_INET, "192.0.2.1", &there.sin_addr);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(fd, (struct sockaddr *)&there, sizeof there) != 0)
        early = errno;
    close(fd);
    serve(handle);
}
