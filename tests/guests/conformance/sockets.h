/*
 * Sockets that a program has for itself: TCP and UDP over loopback, and local ones by path and by name, of
 * bytes, of packets and of datagrams. Nothing waits: every socket is non-blocking.
 * Left out: packets without a byte, whose loss Linux tells of in some cases and in others not; how much a socket holds, so that no test fills one; ports that the kernel chooses; urgent data; what
 * a listener does with more than it has room for; and an address that a socket is connected from and to.
 */
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <sys/un.h>

enum { SOCKETS = 14, ADDRESSES = 18 };
static struct {
    int fd, sent;
} sockets[SOCKETS];
static volatile int pipe_signals;

union address {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
    struct sockaddr_un local;
    char bytes[128];
};
static struct {
    const char *name;
    union address address;
    socklen_t bytes;
} addresses[ADDRESSES];

static void note_pipe_signal(int signal) {
    (void)signal;
    pipe_signals++;
}

static void add_v4(int place, const char *name, uint32_t ip, int port) {
    addresses[place].name = name;
    addresses[place].address.v4 = (struct sockaddr_in){
        .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr = {htonl(ip)}};
    addresses[place].bytes = sizeof(struct sockaddr_in);
}

static void add_v6(int place, const char *name, struct in6_addr ip, int port) {
    addresses[place].name = name;
    addresses[place].address.v6 = (struct sockaddr_in6){
        .sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port), .sin6_addr = ip};
    addresses[place].bytes = sizeof(struct sockaddr_in6);
}

static void add_local(int place, const char *name, const char *path, size_t bytes) {
    addresses[place].name = name;
    addresses[place].address.local.sun_family = AF_UNIX;
    memcpy(addresses[place].address.local.sun_path, path, bytes);
    addresses[place].bytes = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + bytes);
}

static void sockets_start(void) {
    for (int i = 0; i < SOCKETS; i++)
        sockets[i].fd = -1;
    signal(SIGPIPE, note_pipe_signal);
    add_v4(0, "v4:2001", INADDR_LOOPBACK, 2001);
    add_v4(1, "v4:2002", INADDR_LOOPBACK, 2002);
    add_v4(2, "any4:2001", INADDR_ANY, 2001);
    add_v4(3, "v4:0", INADDR_LOOPBACK, 0);
    add_v4(4, "nobody4", INADDR_LOOPBACK, 2999);
    add_v6(5, "v6:2003", in6addr_loopback, 2003);
    add_v6(6, "any6:2004", in6addr_any, 2004);
    add_local(7, "/tmp/s1", "/tmp/s1", 8);
    add_local(8, "/tmp/s2", "/tmp/s2", 8);
    add_local(9, "/tmp/s3", "/tmp/s3", 7);
    add_local(10, "@one", "\0holm-one", 9);
    add_local(11, "@two", "\0holm-two", 9);
    add_local(12, "/tmp/gone/s", "/tmp/gone/s", 12);
    add_local(13, "unnamed", "", 0);
    add_v4(14, "short", INADDR_LOOPBACK, 2001);
    addresses[14].bytes = 7;
    add_v4(15, "foreign", 0xc0000201, 2001);
    addresses[16].name = "unspecified";
    addresses[16].bytes = 16;
    add_v4(17, "v4:2005", INADDR_LOOPBACK, 2005);
}

static void keep_socket(long fd, int sent) {
    if (fd < 0)
        return;
    int place = (int)below(SOCKETS);
    if (sockets[place].fd >= 0)
        CALL(SYS_close, sockets[place].fd);
    sockets[place].fd = (int)fd;
    sockets[place].sent = sent;
}

static int *sent_of(int fd) {
    static int nobody;
    for (int i = 0; i < SOCKETS; i++)
        if (sockets[i].fd == fd)
            return &sockets[i].sent;
    return &nobody;
}

static int any_socket(void) {
    if (one_in(40))
        return (int)PICK(-1, 0, 1000);
    for (int tries = 0; tries < 10; tries++) {
        int fd = sockets[below(SOCKETS)].fd;
        if (fd >= 0)
            return fd;
    }
    return -1;
}

static int option_of(int fd, int option) {
    int value = -1;
    socklen_t bytes = sizeof value;
    CALL(SYS_getsockopt, fd, SOL_SOCKET, option, &value, &bytes);
    return value;
}

/* Mostly one of its family. */
static int any_address(int fd) {
    int domain = option_of(fd, SO_DOMAIN);
    for (int tries = 0;; tries++) {
        int place = (int)below(ADDRESSES);
        if (addresses[place].address.any.sa_family == domain || (tries > 6 && one_in(30)))
            return place;
        if (tries > 200)
            return 0;
    }
}

static void say_address(const union address *address, socklen_t bytes) {
    int port = 0;
    if (bytes < 2) {
        say(" (%u bytes)", bytes);
        return;
    }
    switch (address->any.sa_family) {
    case AF_INET:
        port = ntohs(address->v4.sin_port);
        say(" v4 %#x", ntohl(address->v4.sin_addr.s_addr));
        break;
    case AF_INET6:
        port = ntohs(address->v6.sin6_port);
        say(" v6");
        say_hash(&address->v6.sin6_addr, 16);
        break;
    case AF_UNIX: {
        const char *path = address->local.sun_path;
        if (bytes == 8 && path[0] == '\0')
            say(" some name");
        else
            say(" local \"%.*s\"", (int)bytes - 2, path[0] != '\0' || bytes == 2 ? path : path + 1);
        break;
    }
    default:
        say(" family %d", address->any.sa_family);
    }
    if (address->any.sa_family != AF_UNIX)
        say(port > 0 && (port < 2000 || port > 3000) ? " some port" : " port %d", port);
    say(" (%u bytes)", bytes);
}

static int any_flags(void) {
    return MSG_DONTWAIT | (int)PICK(0, 0, 0, MSG_NOSIGNAL, MSG_NOSIGNAL, MSG_TRUNC, MSG_PEEK, MSG_PEEK,
                                    MSG_WAITALL, MSG_PEEK | MSG_TRUNC, MSG_CMSG_CLOEXEC);
}

static int any_parts(struct iovec parts[3]) {
    for (int i = 0; i < 3; i++)
        parts[i] = (struct iovec){ground + 2000 * i, (size_t)PICK(0, 1, 10, 100, 300)};
    /* How much goes where a later part is bad is not the same for all kinds. */
    if (one_in(30))
        parts[0] = (struct iovec){pointers[4].at, 10};
    int count = (int)PICK(1, 2, 3, 3);
    say(" {");
    for (int i = 0; i < count; i++)
        say("%zu ", parts[i].iov_len);
    say("}%s", parts[0].iov_base == pointers[4].at ? " closed" : "");
    return count;
}

static void say_message(const struct msghdr *message, const union address *from, long got) {
    if (got < 0)
        return;
    say(" flags %#x control %zu from", message->msg_flags, (size_t)message->msg_controllen);
    say_address(from, message->msg_namelen);
}

static void step_option(int fd) {
    static const struct {
        int level, option;
    } options[] = {
        {SOL_SOCKET, SO_TYPE},      {SOL_SOCKET, SO_DOMAIN},   {SOL_SOCKET, SO_PROTOCOL},
        {SOL_SOCKET, SO_ACCEPTCONN}, {SOL_SOCKET, SO_ERROR},   {SOL_SOCKET, SO_REUSEADDR},
        {SOL_SOCKET, SO_KEEPALIVE}, {SOL_SOCKET, SO_BROADCAST}, {SOL_SOCKET, SO_LINGER},
        {SOL_SOCKET, SO_RCVTIMEO},  {SOL_SOCKET, SO_SNDTIMEO}, {IPPROTO_TCP, TCP_NODELAY},
        {IPPROTO_TCP, TCP_KEEPIDLE}, {IPPROTO_TCP, TCP_KEEPCNT}, {SOL_SOCKET, 9999},
{SOL_SOCKET, SO_RCVLOWAT}, {SOL_SOCKET, SO_OOBINLINE},
        {SOL_SOCKET, SO_REUSEPORT}, {SOL_SOCKET, SO_PRIORITY}, {IPPROTO_TCP, TCP_QUICKACK},
        {IPPROTO_TCP, TCP_CORK},    {IPPROTO_IP, IP_TTL},      {IPPROTO_IP, IP_TOS},
        {IPPROTO_IPV6, IPV6_V6ONLY}, {SOL_SOCKET, SO_DONTROUTE}, {77, 1},
    };
    int which = (int)below(sizeof options / sizeof *options);
    int level = options[which].level, option = options[which].option;
    unsigned value[4] = {(unsigned)PICK(0, 1, 1, 2), 0, 0, 0};
    socklen_t bytes = (socklen_t)PICK(4, 4, 4, 16, 8, 0, 2, 3);
    int sets = (int)below(2);
    /* What was set changes what comes later. */
    if (option == SO_REUSEADDR || option == SO_RCVTIMEO || option == SO_SNDTIMEO ||
        option == SO_REUSEPORT || option == SO_PASSCRED || option == SO_RCVLOWAT || option == SO_LINGER ||
        option == TCP_QUICKACK || option == SO_DONTROUTE || option == IPV6_V6ONLY)
        sets = level == IPPROTO_IP && sets;
    if (option == TCP_KEEPIDLE || option == TCP_KEEPCNT || option == IP_TTL)
        value[0] += 3;
    if (sets) {
        int bad = one_in(16) && bytes >= 4;
        say("setsockopt(%d, %d, %d, %u, %u%s)", fd, level, option, value[0], bytes, bad ? " nowhere" : "");
        recorded(CALL(SYS_setsockopt, fd, level, option, bad ? NULL : (void *)value, bytes));
        bytes = 16;
    }
    memset(value, 0, sizeof value);
    say(" getsockopt(%d, %d, %d, %u)", fd, level, option, bytes);
    recorded(CALL(SYS_getsockopt, fd, level, option, value, &bytes));
    say(" %u:", bytes);
    for (int i = 0; i < 4; i++)
        say(" %u", value[i]);
}

static void sockets_step(void) {
    int fd = any_socket();
    int *sent = sent_of(fd);
    fill((char)step);
    union address from;
    memset(&from, 0, sizeof from);
    say("%u ", step);
    switch (below(26)) {
    case 0:
    case 1:
    case 2: {
        int domain = (int)PICK(AF_UNIX, AF_UNIX, AF_INET, AF_INET, AF_INET6, AF_UNIX, AF_INET, 77, 2000, -1);
        int kind = (int)PICK(SOCK_STREAM, SOCK_STREAM, SOCK_DGRAM, SOCK_DGRAM, SOCK_SEQPACKET, 9, 4, 11);
        if (domain != AF_UNIX && domain < 70 && kind == SOCK_SEQPACKET)
            kind = SOCK_STREAM;
        int protocol = (int)PICK(0, 0, 0, 0, 0, 0, IPPROTO_TCP, IPPROTO_UDP, 1);
        int flags = SOCK_NONBLOCK | (int)PICK(0, SOCK_CLOEXEC, 0, 1 << 12);
        say("socket(%d, %d | %#x, %d)", domain, kind, flags, protocol);
        long got = recorded(CALL(SYS_socket, domain, kind | flags, protocol));
        if (got >= 0) {
            int on = 1;
            if (kind == SOCK_STREAM && domain != AF_UNIX)
                CALL(SYS_setsockopt, got, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
            say(" flags %ld %#lx", CALL(SYS_fcntl, got, F_GETFD), CALL(SYS_fcntl, got, F_GETFL));
        }
        keep_socket(got, 0);
        break;
    }
    case 3:
    case 4: {
        int domain = (int)PICK(AF_UNIX, AF_UNIX, AF_UNIX, AF_UNIX, AF_INET, 77);
        int kind = (int)PICK(SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET, SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET, 77);
        int flags = SOCK_NONBLOCK | (int)PICK(0, SOCK_CLOEXEC);
        int two[2] = {-1, -1};
        say("socketpair(%d, %d | %#x)", domain, kind, flags);
        if (recorded(CALL(SYS_socketpair, domain, kind | flags, 0, two)) == 0) {
            say(" %d %d", two[0], two[1]);
            keep_socket(two[0], 0);
            keep_socket(two[1], 0);
        }
        break;
    }
    case 5:
    case 6: {
        int place = any_address(fd);
        /* Whether what was sent before comes from the new name then is nobody's promise. */
        if (*sent > 0)
            place = 14;
        say("bind(%d, %s)", fd, addresses[place].name);
        recorded(CALL(SYS_bind, fd, &addresses[place].address, addresses[place].bytes));
        break;
    }
    case 7: {
        int64_t most = PICK(4, 10, 128);
        say("listen(%d, %ld)", fd, (long)most);
        recorded(CALL(SYS_listen, fd, most));
        break;
    }
    case 8:
    case 9:
    case 10: {
        int place = any_address(fd);
        /* Where a stream that is bound comes from again and again, Linux waits for what was there before. */
        union address own;
        socklen_t bytes = sizeof own;
        int is_stream = option_of(fd, SO_TYPE) == SOCK_STREAM && option_of(fd, SO_DOMAIN) != AF_UNIX;
        if (is_stream && CALL(SYS_getsockname, fd, &own, &bytes) == 0 && own.v4.sin_port != 0)
            place = 14;
        /* What is not here is not the same elsewhere. */
        if (strcmp(addresses[place].name, "foreign") == 0)
            place = 0;
        if (place != 14 && option_of(fd, SO_DOMAIN) == AF_INET6 && addresses[place].address.any.sa_family == AF_INET)
            place = 5;
        say("connect(%d, %s)", fd, addresses[place].name);
        recorded(CALL(SYS_connect, fd, &addresses[place].address, addresses[place].bytes));
        break;
    }
    case 11:
    case 12: {
        int flags = SOCK_NONBLOCK | (int)PICK(0, SOCK_CLOEXEC, 0, 1);
        socklen_t bytes = (socklen_t)PICK(sizeof from, 4, 0);
        socklen_t room = bytes;
        say("accept4(%d, %#x, %u)", fd, flags, bytes);
        long got = recorded(CALL(SYS_accept4, fd, &from, &bytes, flags));
        if (got >= 0) {
            say_address(&from, room < bytes ? (socklen_t)0 : bytes);
            say(" flags %ld %#lx", CALL(SYS_fcntl, got, F_GETFD), CALL(SYS_fcntl, got, F_GETFL));
        }
        keep_socket(got, 0);
        break;
    }
    case 13:
    case 14: {
        int flags = any_flags() & ~(MSG_PEEK | MSG_TRUNC | MSG_CMSG_CLOEXEC);
        int64_t bytes = PICK(0, 1, 10, 100, 700);
        int place = one_in(2) ? any_address(fd) : -1;
        if (place >= 0 && strcmp(addresses[place].name, "foreign") == 0)
            place = -1;
        if (*sent > 2500)
            bytes = 0;
        if (bytes == 0 && option_of(fd, SO_TYPE) == SOCK_SEQPACKET)
            bytes = 1;
        say("sendto(%d, %ld, %#x, %s)", fd, (long)bytes, flags, place < 0 ? "none" : addresses[place].name);
        long got = recorded(CALL(SYS_sendto, fd, ground, bytes, flags,
                                 place < 0 ? NULL : &addresses[place].address,
                                 place < 0 ? 0 : addresses[place].bytes));
        *sent += got >= 0 ? (int)got + 1 : 0;
        break;
    }
    case 15:
    case 16: {
        int flags = any_flags() & ~MSG_CMSG_CLOEXEC;
        int64_t bytes = PICK(0, 1, 10, 100, 700, 5000);
        socklen_t room = (socklen_t)PICK(sizeof from, sizeof from, 5, 0), had = room;
        int asks = (int)below(2);
        memset(ground, 0, BUFFER_BYTES);
        say("recvfrom(%d, %ld, %#x, %s %u)", fd, (long)bytes, flags, asks ? "from" : "", room);
        long got = recorded(CALL(SYS_recvfrom, fd, ground, bytes, flags, asks ? &from : NULL, asks ? &room : NULL));
        say_hash(ground, BUFFER_BYTES);
        if (got >= 0 && asks)
            say_address(&from, had < room ? (socklen_t)0 : room);
        break;
    }
    case 17: {
        struct iovec parts[3];
        int flags = any_flags() & ~(MSG_PEEK | MSG_TRUNC | MSG_CMSG_CLOEXEC);
        int place = one_in(3) ? any_address(fd) : -1;
        if (place >= 0 && strcmp(addresses[place].name, "foreign") == 0)
            place = -1;
        say("sendmsg(%d, %#x, %s,", fd, flags, place < 0 ? "none" : addresses[place].name);
        struct msghdr message = {.msg_iov = parts, .msg_iovlen = (size_t)any_parts(parts)};
        if (place >= 0) {
            message.msg_name = &addresses[place].address;
            message.msg_namelen = addresses[place].bytes;
        }
        if (*sent > 2500)
            message.msg_iovlen = 0;
        if (option_of(fd, SO_TYPE) == SOCK_SEQPACKET && message.msg_iovlen > 0)
            parts[0].iov_len = 7;
        say(" %zu)", (size_t)message.msg_iovlen);
        long got = recorded(CALL(SYS_sendmsg, fd, &message, flags));
        *sent += got >= 0 ? (int)got + 1 : 0;
        break;
    }
    case 18:
    case 19: {
        struct iovec parts[3];
        int flags = any_flags();
        say("recvmsg(%d, %#x,", fd, flags);
        struct msghdr message = {.msg_iov = parts, .msg_iovlen = (size_t)any_parts(parts)};
        int asks = (int)below(2);
        if (asks)
            message.msg_name = &from;
        message.msg_namelen = sizeof from;
        say("%s)", asks ? " from" : "");
        memset(ground, 0, BUFFER_BYTES);
        long got = recorded(CALL(SYS_recvmsg, fd, &message, flags));
        say_hash(ground, BUFFER_BYTES);
        say_message(&message, &from, got);
        break;
    }
    case 20: {
        int how = (int)PICK(0, 1, 1, 2, 3, -1);
        say("shutdown(%d, %d)", fd, how);
        recorded(CALL(SYS_shutdown, fd, how));
        break;
    }
    case 21: {
        int peer = (int)below(2);
        socklen_t bytes = (socklen_t)PICK(sizeof from, sizeof from, sizeof from, 0, 3, -1), room = bytes;
        int bad = one_in(16);
        say("get%sname(%d, %d%s)", peer ? "peer" : "sock", fd, (int)bytes, bad ? " nowhere" : "");
        long got = recorded(CALL(peer ? SYS_getpeername : SYS_getsockname, fd, bad ? NULL : &from, &bytes));
        if (got == 0)
            say_address(&from, room < bytes ? (socklen_t)0 : bytes);
        break;
    }
    case 22:
        step_option(fd);
        break;
    case 23: {
        say("close(%d)", fd);
        for (int i = 0; i < SOCKETS; i++)
            if (sockets[i].fd == fd && fd >= 0) {
                recorded(CALL(SYS_close, fd));
                sockets[i].fd = -1;
            }
        if (one_in(2)) {
            int path = (int)PICK(7, 8);
            say(" unlink(%s)", addresses[path].name);
            recorded(CALL(SYS_unlink, addresses[path].name));
        }
        break;
    }
    case 24: {
        struct pollfd asked = {fd, (short)PICK(POLLIN, POLLOUT, POLLIN | POLLOUT | 0x2000), 0};
        int available = -1;
        say("poll(%d, %#x)", fd, asked.events);
        recorded(CALL(SYS_poll, &asked, 1, 0));
        say(" %#x", (unsigned short)asked.revents);
        say(" FIONREAD");
        recorded(CALL(SYS_ioctl, fd, FIONREAD, &available));
        say(" %d", available);
        break;
    }
    default: {
        struct iovec parts[3];
        int reads = (int)below(2);
        say("%sv(%d,", reads ? "read" : "write", fd);
        int count = any_parts(parts);
        if (*sent > 2500 && !reads)
            count = 0;
        if (reads)
            memset(ground, 0, BUFFER_BYTES);
        /* Which of a bad descriptor and a bad buffer is told of is nobody's promise. */
        long got = fd < 3 ? -EBADF : CALL(reads ? SYS_readv : SYS_writev, fd, parts, count);
        recorded(got);
        if (!reads)
            *sent += got >= 0 ? (int)got + 1 : 0;
        say_hash(ground, BUFFER_BYTES);
        break;
    }
    }
    if (pipe_signals > 0)
        say(" SIGPIPE %d", pipe_signals);
    pipe_signals = 0;
    say("\n");
}
