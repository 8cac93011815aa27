/* Answers "hello from the guest\n" in the way that the path names. */
#include "guest.h"
#include <netinet/tcp.h>
#include <sys/uio.h>

static void handle(const struct request *request) {
    int fd = request->connection;
    const char *head = "HTTP/1.1 200 OK\r\nX-Way: here\r\nContent-Length: 21\r\n\r\n";
    const char *body = "hello from the guest\n";
    struct iovec parts[2] = {{(void *)head, strlen(head)}, {(void *)body, strlen(body)}};
    if (is_path(request, "/writev")) {
        writev(fd, parts, 2);
    } else if (is_path(request, "/sendmsg")) {
        struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
        sendmsg(fd, &message, MSG_NOSIGNAL);
    } else if (is_path(request, "/send")) {
        send(fd, head, strlen(head), MSG_MORE);
        send(fd, body, strlen(body), MSG_NOSIGNAL);
    } else if (is_path(request, "/bytes")) {
        for (const char *at = head; *at != '\0'; at++)
            send_all(fd, at, 1);
        for (const char *at = body; *at != '\0'; at++)
            send_all(fd, at, 1);
    } else if (is_path(request, "/chunked")) {
        const char *text = "HTTP/1.1 200 OK\r\nX-Way: here\r\nTransfer-Encoding: chunked\r\n\r\n"
                           "6;name=value\r\nhello \r\n0F\r\nfrom the guest\n\r\n0\r\nTrailer: 1\r\n\r\n";
        send_all(fd, text, strlen(text));
    } else if (is_path(request, "/until_close")) {
        const char *text = "HTTP/1.1 200 OK\r\nX-Way: here\r\n\r\nhello from the guest\n";
        send_all(fd, text, strlen(text));
        shutdown(fd, SHUT_WR);
    } else if (is_path(request, "/http_1_0")) {
        const char *text = "HTTP/1.0 200 OK\r\nX-Way: here\r\n\r\nhello from the guest\n";
        send_all(fd, text, strlen(text));
        shutdown(fd, SHUT_RDWR);
    } else if (is_path(request, "/continue")) {
        const char *interim = "HTTP/1.1 100 Continue\r\n\r\n";
        send_all(fd, interim, strlen(interim));
        writev(fd, parts, 2);
    } else if (is_path(request, "/no_content")) {
        const char *text = "HTTP/1.1 204 No Content\r\nX-Way: here\r\n\r\n";
        send_all(fd, text, strlen(text));
    } else {
        answer(request, "no such way: %s\n", request->path);
    }
}

int main(void) {
    serve(handle);
}
