/* Sockets with names in the file system, and without. Each path tells what the calls gave; on the host
   the same program tells the same. */
#include "guest.h"
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <sys/stat.h>
#include <sys/un.h>

static socklen_t named(struct sockaddr_un *address, const char *name, size_t bytes) {
    memset(address, 0, sizeof *address);
    address->sun_family = AF_UNIX;
    memcpy(address->sun_path, name, bytes);
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + bytes);
}

static void tell_names(const char *what, int fd) {
    for (int peer = 0; peer < 2; peer++) {
        struct sockaddr_un address;
        socklen_t bytes = sizeof address;
        memset(&address, 0, sizeof address);
        int result = (peer ? getpeername : getsockname)(fd, (struct sockaddr *)&address, &bytes);
        if (result != 0) {
            tell("%s %s: %s\n", what, peer ? "peer" : "itself", strerrorname(errno));
            continue;
        }
        tell("%s %s: family %d, %d bytes, \"%s\"\n", what, peer ? "peer" : "itself",
             address.sun_family, (int)bytes,
             address.sun_path[0] != '\0' || bytes <= 2 ? address.sun_path : address.sun_path + 1);
    }
}

static void tell_poll(const char *what, int fd) {
    struct pollfd one = {.fd = fd, .events = POLLIN | POLLOUT | POLLRDHUP};
    poll(&one, 1, 0);
    tell("%s:%s%s%s%s\n", what, one.revents & POLLIN ? " in" : "",
         one.revents & POLLOUT ? " out" : "", one.revents & POLLRDHUP ? " rdhup" : "",
         one.revents & POLLHUP ? " hup" : "");
}

static void use(int fd, const struct sockaddr_un *address, socklen_t bytes) {
    char text[16] = {0};
    int client = socket(AF_UNIX, SOCK_STREAM, 0);
    tell_result("connect", connect(client, (const struct sockaddr *)address, bytes));
    int accepted = accept(fd, NULL, NULL);
    tell_names("client", client);
    tell_names("accepted", accepted);
    tell_result("write", write(client, "to it", 5));
    tell_result("read", read(accepted, text, sizeof text));
    tell("%s\n", text);
    tell_poll("connected", client);
    close(accepted);
    tell_poll("the other end closed", client);
    tell_result("read", read(client, text, sizeof text));
    tell_result("write", send(client, "x", 1, MSG_NOSIGNAL));
    close(client);
}

static void path(void) {
    char name[64];
    snprintf(name, sizeof name, "/tmp/holm-test-%d", (int)getpid());
    unlink(name);
    /* The number is another in each run: it is not told. */
    struct sockaddr_un address;
    socklen_t bytes = named(&address, name, strlen(name) + 1);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0), client = socket(AF_UNIX, SOCK_STREAM, 0);
    tell_result("connect before", connect(client, (struct sockaddr *)&address, bytes));
    tell_result("listen before", listen(fd, 3));
    tell_result("bind", bind(fd, (struct sockaddr *)&address, bytes));
    tell_result("connect too early", connect(client, (struct sockaddr *)&address, bytes));
    tell_result("listen", listen(fd, 3));
    struct stat status;
    tell_result("stat", stat(name, &status));
    tell("a socket: %d\n", S_ISSOCK(status.st_mode));
    int second = socket(AF_UNIX, SOCK_STREAM, 0);
    tell_result("bind where one is", bind(second, (struct sockaddr *)&address, bytes));
    tell_result("connect", connect(client, (struct sockaddr *)&address, bytes));
    int accepted = accept(fd, NULL, NULL);
    char text[16];
    tell_result("write", write(client, "hello", 5));
    tell_result("read", read(accepted, text, sizeof text));
    tell_result("unlink", unlink(name));
    tell_result("connect after",
                connect(second, (struct sockaddr *)&address, bytes));
    /* What is connected stays so. */
    tell_result("write", write(accepted, "there", 5));
    tell_result("read", read(client, text, sizeof text));
    tell_result("bind a new one there", bind(second, (struct sockaddr *)&address, bytes));
    unlink(name);
}

static void abstract(void) {
    struct sockaddr_un address;
    socklen_t bytes = named(&address, "\0holm-test", 10);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0), second = socket(AF_UNIX, SOCK_STREAM, 0);
    tell_result("bind", bind(fd, (struct sockaddr *)&address, bytes));
    tell_result("bind where one is", bind(second, (struct sockaddr *)&address, bytes));
    tell_result("listen", listen(fd, 3));
    tell_names("listener", fd);
    use(fd, &address, bytes);
    close(fd);
    tell_result("connect where none is any more",
                connect(second, (struct sockaddr *)&address, bytes));
}

static void pair(void) {
    int ends[2];
    char text[16];
    tell_result("socketpair", socketpair(AF_UNIX, SOCK_STREAM, 0, ends));
    tell_names("one", ends[0]);
    int value = 0;
    socklen_t bytes = sizeof value;
    tell_result("domain", getsockopt(ends[0], SOL_SOCKET, SO_DOMAIN, &value, &bytes));
    tell("domain: %d\n", value);
    tell_result("shut its receiving half", shutdown(ends[0], SHUT_RD));
    tell_result("write", send(ends[1], "x", 1, MSG_NOSIGNAL));
    tell_poll("one", ends[0]);
    tell_poll("two", ends[1]);
    tell_result("the other way", write(ends[0], "yes", 3));
    tell_result("read", read(ends[1], text, sizeof text));
    tell_result("shut both", shutdown(ends[1], SHUT_RDWR));
    tell_poll("one", ends[0]);
    tell_poll("two", ends[1]);
    struct sockaddr_un none = {.sun_family = AF_UNIX};
    tell_result("send to an address",
                sendto(ends[0], "x", 1, MSG_NOSIGNAL, (struct sockaddr *)&none, sizeof none));
}

static void handle(const struct request *request) {
    if (is_path(request, "/path"))
        path();
    else if (is_path(request, "/abstract"))
        abstract();
    else if (is_path(request, "/pair"))
        pair();
    answer(request, "%s", told);
}

int main(int count, char **arguments) {
    serve_or_run(count, arguments, handle);
}
