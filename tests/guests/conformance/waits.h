/*
 * What a program waits with: pipes, eventfds, timerfds, socket pairs, poll, select and epoll. Nothing here waits:
 * every end is non-blocking and every timeout is zero.
 * Left out: how much a pipe holds (4 KiB here, 64 KiB there), so that no test fills one; the ends of
 * a socket pair, beyond that they are there (sockets.h has them); what splice means for edges; edges of an epoll instance in another; and writes of more
 * than 8 bytes to an eventfd, which newer kernels refuse.
 */
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/select.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <signal.h>
#include <time.h>

enum { ENDS = 12 };
static struct {
    int fd;
    char kind; /* r and w: ends of a pipe; e: an eventfd; p: an epoll instance; t: a timerfd */
    int queued;
} ends[ENDS];

static void waits_start(void) {
    for (int i = 0; i < ENDS; i++)
        ends[i].fd = -1;
    signal(SIGPIPE, SIG_IGN);
}

static void add_end(long fd, char kind) {
    int place = (int)below(ENDS);
    if (ends[place].fd >= 0)
        CALL(SYS_close, ends[place].fd);
    ends[place].fd = (int)fd;
    ends[place].kind = kind;
    ends[place].queued = 0;
}

static int any_end(void) {
    if (one_in(20))
        return (int)PICK(-1, 1000, 100000);
    for (int tries = 0; tries < 8; tries++) {
        int fd = ends[below(ENDS)].fd;
        if (fd >= 0)
            return fd;
    }
    return -1;
}

static int an_epoll(void) {
    for (int tries = 0; tries < 40 && !one_in(30); tries++) {
        int place = (int)below(ENDS);
        if (ends[place].kind == 'p' && ends[place].fd >= 0)
            return ends[place].fd;
    }
    return any_end();
}

static char kind_of(int fd) {
    for (int i = 0; i < ENDS; i++)
        if (fd >= 0 && ends[i].fd == fd)
            return ends[i].kind;
    return 0;
}

static int has_edges, has_spliced;

static int timer_or(int fd) {
    for (int tries = 0; tries < 40 && !one_in(20); tries++) {
        int place = (int)below(ENDS);
        if (ends[place].kind == 't' && ends[place].fd >= 0)
            return ends[place].fd;
    }
    return fd;
}

static int written_to[2048];

static int by_data(const void *a, const void *b) {
    uint64_t left = ((const struct epoll_event *)a)->data.u64;
    uint64_t right = ((const struct epoll_event *)b)->data.u64;
    return left < right ? -1 : left > right;
}

static void waits_step(void) {
    int fd = any_end();
    struct pointer at = any_pointer();
    /* How much is taken from a buffer that is partly good differs from one kind of file to another. */
    if (at.reads == 5)
        at = pointers[0];
    fill((char)step);
    say("%u ", step);
    switch (below(32)) {
    case 0:
    case 1: {
        int flags = O_NONBLOCK | (int)PICK(0, O_CLOEXEC, 1 << 20);
        int two[2] = {-1, -1};
        say("pipe2(%#o)", flags);
        if (recorded(CALL(SYS_pipe2, two, flags)) == 0) {
            say(" %d %d", two[0], two[1]);
            add_end(two[0], 'r');
            add_end(two[1], 'w');
        }
        break;
    }
    case 2: {
        int family = (int)PICK(AF_UNIX, AF_UNIX, AF_UNIX, AF_INET, 77);
        int kind = SOCK_STREAM | SOCK_NONBLOCK;
        int two[2] = {-1, -1};
        say("socketpair(%d, %#x)", family, kind);
        if (recorded(CALL(SYS_socketpair, family, kind, 0, two)) == 0) {
            say(" %d %d", two[0], two[1]);
            CALL(SYS_close, two[0]);
            CALL(SYS_close, two[1]);
        }
        break;
    }
    case 3: {
        int flags = (int)PICK(EFD_NONBLOCK, EFD_NONBLOCK | EFD_SEMAPHORE, EFD_NONBLOCK | 2);
        int64_t initial = PICK(0, 1, 3, 0xffffffff);
        say("eventfd2(%ld, %#x)", (long)initial, flags);
        long got = recorded(CALL(SYS_eventfd2, initial, flags));
        if (got >= 0)
            add_end(got, 'e');
        break;
    }
    case 4: {
        int64_t flags = PICK(0, EPOLL_CLOEXEC, 1);
        say("epoll_create1(%#lx)", (long)flags);
        long got = recorded(CALL(SYS_epoll_create1, flags));
        if (got >= 0)
            add_end(got, 'p');
        break;
    }
    case 5:
    case 6:
    case 7: {
        int64_t bytes = PICK(0, 1, 8, 8, 8, 100);
        if (at.at == ground && bytes == 8) {
            uint64_t value = (uint64_t)PICK(1, 1, 2, 0, -1, -2);
            memcpy(ground, &value, 8);
        }
        if (fd >= 0 && fd < 2048 && written_to[fd] + bytes > 3000)
            bytes = 0;
        if (kind_of(fd) == 'e' && bytes > 8)
            bytes = 8;
        say("write(%d, %s, %ld)", fd, at.name, (long)bytes);
        long got = recorded(CALL(SYS_write, fd, at.at, bytes));
        if (got > 0 && fd < 2048)
            written_to[fd] += (int)got;
        break;
    }
    case 8:
    case 9:
    case 10: {
        int64_t bytes = PICK(0, 1, 7, 8, 8, 100, 5000);
        /* Linux takes the count of an eventfd before it finds that there is nowhere to put it. */
        if (kind_of(fd) == 'e' && at.writes < 8)
            at = pointers[0];
        memset(ground, 0, BUFFER_BYTES);
        say("read(%d, %s, %ld)", fd, at.name, (long)bytes);
        recorded(CALL(SYS_read, fd, at.at, bytes));
        say_hash(ground, BUFFER_BYTES);
        break;
    }
    case 11:
        say("close(%d)", fd);
        if (recorded(CALL(SYS_close, fd)) == 0)
            for (int i = 0; i < ENDS; i++)
                if (ends[i].fd == fd)
                    ends[i].fd = -1;
        if (fd >= 0 && fd < 2048)
            written_to[fd] = 0;
        break;
    case 12: {
        say("dup(%d)", fd);
        for (int i = 0; i < ENDS; i++)
            if (ends[i].fd == fd && fd >= 0) {
                long got = recorded(CALL(SYS_dup, fd));
                if (got >= 0) {
                    written_to[got] = 3000;
                    add_end(got, ends[i].kind);
                }
                break;
            }
        break;
    }
    case 13: {
        struct pollfd asked[4];
        int count = (int)PICK(0, 1, 2, 4, 4);
        say("poll({");
        for (int i = 0; i < 4; i++) {
            asked[i] = (struct pollfd){any_end(), (short)PICK(POLLIN, POLLOUT, POLLIN | POLLOUT, POLLIN | 0x2000, 0, POLLPRI), -1};
            say("%d:%#x ", asked[i].fd, asked[i].events);
        }
        say("}, %d)", count);
        void *array = count > 0 && one_in(10) ? at.at : (char *)asked;
        if (array == at.at && at.at != ground)
            say(" at %s", at.name);
        else
            array = asked;
        recorded(CALL(SYS_poll, array, count, 0));
        for (int i = 0; i < count; i++)
            say(" %#x", (unsigned short)asked[i].revents);
        break;
    }
    case 14: {
        fd_set sets[3];
        struct timeval none = {0, PICK(0, 0, 0, -1, 1000000 - 1000000)};
        int highest = 0;
        say("select({");
        for (int set = 0; set < 3; set++) {
            FD_ZERO(&sets[set]);
            for (int i = 0; i < 2; i++) {
                int asked = any_end();
                if (asked >= 0 && asked < 64) {
                    FD_SET(asked, &sets[set]);
                    highest = asked > highest ? asked : highest;
                    say("%d ", asked);
                }
            }
            say("; ");
        }
        int64_t count = one_in(12) ? PICK(0, -1, 1) : highest + 1;
        say("}, %ld, %ld)", (long)count, none.tv_usec);
        recorded(CALL(SYS_select, count, &sets[0], &sets[1], &sets[2], &none));
        say_hash(sets, sizeof sets);
        break;
    }
    case 15:
    case 16:
    case 17: {
        int epoll = an_epoll();
        int operation = (int)PICK(EPOLL_CTL_ADD, EPOLL_CTL_ADD, EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLL_CTL_MOD, EPOLL_CTL_DEL, 9);
        uint32_t events = (uint32_t)PICK(EPOLLIN, EPOLLOUT, EPOLLIN | EPOLLOUT, 0, EPOLLIN | EPOLLRDHUP);
        events |= (uint32_t)PICK(0, 0, EPOLLET, EPOLLONESHOT, EPOLLET | EPOLLONESHOT);
        if (kind_of(fd) == 'p' || has_spliced)
            events &= ~(uint32_t)EPOLLET;
        has_edges |= (events & EPOLLET) != 0;
        struct epoll_event event = {events, {.u64 = (uint64_t)fd}};
        int bad = one_in(16);
        say("epoll_ctl(%d, %d, %d, %#x%s)", epoll, operation, fd, events, bad ? " nowhere" : "");
        recorded(CALL(SYS_epoll_ctl, epoll, operation, fd, bad ? NULL : &event));
        break;
    }
    case 20: {
        int64_t clock = PICK(0, 1, 7, 1, 2, 3, 4, 11, 99, -1);
        int flags = TFD_NONBLOCK | (int)PICK(0, TFD_CLOEXEC, 1);
        say("timerfd_create(%ld, %#x)", (long)clock, flags);
        long got = recorded(CALL(SYS_timerfd_create, clock, flags));
        if (got >= 0)
            add_end(got, 't');
        break;
    }
    case 21:
    case 22:
    case 23: {
        struct itimerspec spec = {{PICK(0, 1000), PICK(0, 0, 999999999, 1000000000)},
                                  {PICK(0, 1000, 1000, -1), PICK(0, 0, 1, -1, 1000000000)}}, was;
        int flags = (int)PICK(0, 0, 1, 2, 3, 8);
        fd = timer_or(fd);
        memset(&was, 0, sizeof was);
        /* Due long ago, and at once. */
        if (flags & 1)
            spec.it_value.tv_sec = 0, spec.it_value.tv_nsec = spec.it_value.tv_nsec == 1;
        else if (spec.it_value.tv_sec == 0 && spec.it_value.tv_nsec == 1)
            spec.it_value.tv_nsec = 0;
        spec.it_interval.tv_sec = flags & 1 ? 0 : spec.it_interval.tv_sec;
        if (flags & 1 && spec.it_interval.tv_nsec < 1000000000)
            spec.it_interval.tv_nsec = 0;
        struct pointer from = one_in(8) ? at : (struct pointer){(char *)&spec, "spec", 0, 0};
        if (from.at == ground)
            memset(ground, 0, 64);
        say("timerfd_settime(%d, %d, %s {%ld.%ld, %ld.%ld})", fd, flags, from.name, spec.it_interval.tv_sec,
            spec.it_interval.tv_nsec, spec.it_value.tv_sec, spec.it_value.tv_nsec);
        if (from.reads >= 5 && from.at != ground)
            from.at = (char *)&spec;
        recorded(CALL(SYS_timerfd_settime, fd, flags, from.at, &was));
        say(" was %ld.%ld %s", was.it_interval.tv_sec, was.it_interval.tv_nsec, was.it_value.tv_sec >= 999 ? "running" : "still");
        break;
    }
    case 24: {
        struct itimerspec now;
        memset(&now, 0, sizeof now);
        fd = timer_or(fd);
        say("timerfd_gettime(%d)", fd);
        recorded(CALL(SYS_timerfd_gettime, fd, one_in(10) ? NULL : &now));
        say(" %ld.%ld %s", now.it_interval.tv_sec, now.it_interval.tv_nsec, now.it_value.tv_sec >= 999 ? "running" : "still");
        break;
    }
    case 25: {
        struct pollfd asked[3];
        struct timespec time = {PICK(0, 0, 0, -1), PICK(0, 0, 1, 1000000000, -1)};
        uint64_t mask = 0;
        int64_t size = PICK(8, 8, 8, 4, 16);
        int count = (int)PICK(0, 1, 3, 3, 1025);
        say("ppoll({");
        for (int i = 0; i < 3; i++) {
            asked[i] = (struct pollfd){any_end(), (short)PICK(POLLIN, POLLOUT, POLLIN | POLLOUT), -1};
            say("%d:%#x ", asked[i].fd, asked[i].events);
        }
        say("}, %d, %ld.%ld, %ld)", count, time.tv_sec, time.tv_nsec, (long)size);
        recorded(CALL(SYS_ppoll, count > 3 ? NULL : asked, count, &time, one_in(2) ? &mask : NULL, size));
        for (int i = 0; i < 3 && i < count && count <= 3; i++)
            say(" %#x", (unsigned short)asked[i].revents);
        say(" left %ld.%ld", time.tv_sec, time.tv_nsec);
        break;
    }
    case 26: {
        fd_set reads, writes;
        uint64_t mask = 0;
        struct timespec time = {0, PICK(0, 0, 1, -1, 1000000000)};
        struct {
            uint64_t *mask;
            size_t bytes;
        } with = {&mask, (size_t)PICK(8, 8, 4)};
        FD_ZERO(&reads);
        FD_ZERO(&writes);
        int asked[2] = {any_end(), any_end()};
        for (int i = 0; i < 2; i++)
            if (asked[i] >= 0 && asked[i] < 64) {
                FD_SET(asked[i], i ? &writes : &reads);
                say("%d ", asked[i]);
            }
        int bad = one_in(12);
        say("pselect6(64, %ld, %zu%s)", time.tv_nsec, with.bytes, bad ? " nowhere" : "");
        recorded(CALL(SYS_pselect6, 64, &reads, bad ? pointers[4].at : (char *)&writes, NULL, &time, one_in(2) ? &with : NULL));
        say_hash(&reads, sizeof reads);
        say_hash(&writes, sizeof writes);
        break;
    }
    case 27: {
        int request = (int)PICK(FIONREAD, FIONBIO, FIOCLEX, FIONCLEX, 0x5401, 0x5413, 0x12345);
        int value = 1;
        /* Newer kernels have some of an epoll instance. */
        if (kind_of(fd) == 'p')
            fd = -1;
        say("ioctl(%d, %#x)", fd, request);
        if (request == FIONREAD && (kind_of(fd) == 'w' || kind_of(fd) == 0))
            request = 0x5401;
        recorded(CALL(SYS_ioctl, fd, request, &value));
        say(" %d", value);
        break;
    }
    case 28: {
        int command = (int)PICK(F_GETFD, F_GETFL, F_GETPIPE_SZ, F_SETPIPE_SZ, F_SETFD, F_GETOWN, F_GETSIG);
        say("fcntl(%d, %d)", fd, command);
        long got = CALL(SYS_fcntl, fd, command, command == F_SETPIPE_SZ ? PICK(65536, 70000) : 1);
        recorded(got);
        break;
    }
    case 29: {
        int64_t bytes = PICK(0, 1, 10, 100);
        int other = any_end(), which = (int)below(2);
        int64_t offset = 0, *place = one_in(8) ? &offset : NULL;
        int flags = (int)PICK(2, 2, 3, 0x100);
        /* Whether what is moved so is an edge for who writes is another matter. */
        if (has_edges)
            bytes = 0;
        has_spliced = 1;
        if (fd >= 0 && fd < 2048 && other >= 0 && other < 2048 && written_to[other] + bytes > 3000)
            bytes = 0;
        if (strchr("etp", kind_of(fd)) != NULL || strchr("etp", kind_of(other)) != NULL)
            fd = other = -1;
        say("%s(%d, %d, %ld, %#x%s)", which == 0 ? "splice" : "tee", fd, other, (long)bytes, flags,
            which == 0 && place ? " at" : "");
        long got = which == 0 ? CALL(SYS_splice, fd, place, other, NULL, bytes, flags)
                              : CALL(SYS_tee, fd, other, bytes, flags);
        recorded(got);
        if (got > 0 && other < 2048)
            written_to[other] += (int)got;
        break;
    }
    default: {
        int epoll = an_epoll();
        struct epoll_event events[32];
        memset(events, 0, sizeof events);
        int most = one_in(16) && kind_of(epoll) == 'p' ? (int)PICK(0, -1) : 32;
        int bad = one_in(20) && most > 0;
        say("epoll_wait(%d, %s, %d)", epoll, bad ? "nowhere" : "events", most);
        long got = recorded(CALL(SYS_epoll_pwait, epoll, bad ? NULL : events, most, 0, 0, 8));
        if (got > 0 && !bad) {
            /* The order is nobody's promise. */
            qsort(events, (size_t)got, sizeof *events, by_data);
            for (long i = 0; i < got; i++)
                say(" %d:%#x", (int)events[i].data.u64, events[i].events);
        }
        break;
    }
    }
    say("\n");
}
