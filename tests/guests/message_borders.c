/* Messages that keep their borders: datagrams of UDP and of local sockets, and packets. Each path tells what the
   calls gave; on the host the same program tells the same. */
#include "guest.h"
#include <poll.h>
#include <stddef.h>
#include <sys/uio.h>
#include <sys/un.h>

static char long_text[1 << 20];

static void receive(const char *what, int fd, size_t room, int flags) {
    char text[64] = {0}, from[128] = {0};
    struct iovec parts[2] = {{text, room / 2}, {text + room / 2, room - room / 2}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2, .msg_name = from, .msg_namelen = sizeof from};
    tell_result(what, recvmsg(fd, &message, flags));
    tell("  \"%s\", flags %#x, %d bytes of name \"%s\"\n", text, message.msg_flags, (int)message.msg_namelen,
         message.msg_namelen > 3 && from[0] == AF_UNIX ? from + 2 + (from[2] == 0) : "");
}

static void pairs(void) {
    int kinds[2] = {SOCK_DGRAM, SOCK_SEQPACKET};
    for (int i = 0; i < 2; i++) {
        int ends[2];
        tell("%s\n", i ? "packets" : "datagrams");
        tell_result("pair", socketpair(AF_UNIX, kinds[i], 0, ends));
        tell_result("one", send(ends[0], "first", 5, 0));
        tell_result("two", send(ends[0], "the second", 10, 0));
        receive("looked at", ends[1], 20, MSG_PEEK);
        receive("cut", ends[1], 4, MSG_TRUNC);
        receive("next", ends[1], 20, 0);
        receive("none", ends[1], 20, MSG_DONTWAIT);
        long sent = send(ends[0], long_text, sizeof long_text, MSG_DONTWAIT);
        tell("too long: %ld %d\n", sent, errno == EMSGSIZE);
        close(ends[0]);
        receive("the other end closed", ends[1], 20, MSG_DONTWAIT);
        tell_result("to nobody", send(ends[1], "x", 1, 0));
        tell_result("again", send(ends[1], "x", 1, 0));
        close(ends[1]);
    }
}

static int bound(int kind, const char *name, size_t bytes) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    memcpy(address.sun_path, name, bytes);
    int fd = socket(AF_UNIX, kind, 0);
    socklen_t length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + bytes);
    tell_result("bind", bind(fd, (struct sockaddr *)&address, length));
    return fd;
}

static void names(void) {
    unlink("/tmp/borders");
    int server = bound(SOCK_DGRAM, "/tmp/borders", 13);
    int client = bound(SOCK_DGRAM, "\0borders-client", 15);
    struct sockaddr_un to = {.sun_family = AF_UNIX, .sun_path = "/tmp/borders"}, from;
    tell_result("ask", sendto(client, "ask", 3, 0, (struct sockaddr *)&to, sizeof to));
    char text[16] = {0};
    socklen_t bytes = sizeof from;
    tell_result("asked", recvfrom(server, text, sizeof text, 0, (struct sockaddr *)&from, &bytes));
    tell("%s\n", text);
    tell_result("answer", sendto(server, "answer", 6, 0, (struct sockaddr *)&from, bytes));
    receive("answered", client, 20, 0);
    int wrong = socket(AF_UNIX, SOCK_STREAM, 0);
    int refused = connect(wrong, (struct sockaddr *)&to, sizeof to);
    tell("a stream there: %d %d\n", refused, errno == EPROTOTYPE);
    int packets = bound(SOCK_SEQPACKET, "\0borders-packets", 16);
    tell_result("listen", listen(packets, 4));
    struct sockaddr_un there = {.sun_family = AF_UNIX};
    memcpy(there.sun_path, "\0borders-packets", 16);
    int caller = socket(AF_UNIX, SOCK_SEQPACKET, 0);
    tell_result("connect", connect(caller, (struct sockaddr *)&there, offsetof(struct sockaddr_un, sun_path) + 16));
    int accepted = accept(packets, NULL, NULL);
    tell_result("one", send(caller, "one", 3, 0));
    tell_result("two", send(caller, "two", 3, 0));
    receive("first", accepted, 20, 0);
    receive("second", accepted, 20, 0);
    int all[] = {server, client, wrong, packets, caller, accepted};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        close(all[i]);
    unlink("/tmp/borders");
}

static void udp(void) {
    int server = socket(AF_INET, SOCK_DGRAM, 0), client = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}}, from;
    socklen_t bytes = sizeof here;
    tell_result("bind", bind(server, (struct sockaddr *)&here, bytes));
    getsockname(server, (struct sockaddr *)&here, &bytes);
    tell_result("connect", connect(client, (struct sockaddr *)&here, bytes));
    tell_result("send", send(client, "hello", 5, 0));
    tell_result("send", send(client, "", 0, 0));
    struct pollfd one = {.fd = server, .events = POLLIN};
    tell_result("poll", poll(&one, 1, 1000));
    char text[16] = {0};
    bytes = sizeof from;
    tell_result("receive", recvfrom(server, text, sizeof text, 0, (struct sockaddr *)&from, &bytes));
    tell("%s\n", text);
    tell_result("empty", recv(server, text, sizeof text, 0));
    tell_result("back", sendto(server, "back", 4, 0, (struct sockaddr *)&from, bytes));
    tell_result("receive", recv(client, text, sizeof text, 0));
    long sent = send(client, long_text, 70000, 0);
    tell("too long: %ld %d\n", sent, errno == EMSGSIZE);
    close(server);
    tell_result("to nobody", send(client, "x", 1, 0));
    tell_result("told", recv(client, text, sizeof text, MSG_DONTWAIT));
    tell_result("once", recv(client, text, sizeof text, MSG_DONTWAIT));
    close(client);
}

static void handle(const struct request *request) {
    told[0] = '\0';
    if (is_path(request, "/pairs"))
        pairs();
    else if (is_path(request, "/names"))
        names();
    else if (is_path(request, "/udp"))
        udp();
    answer(request, "%s", told);
}

int main(int count, char **arguments) {
    serve_or_run(count, arguments, handle);
}
