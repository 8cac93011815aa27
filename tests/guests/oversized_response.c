/*
 * `/body/N` answers with N bytes of body, `/chunked/N` the same in chunks without end, `/head/N` with
 * a header of N bytes, `/headers/N` with N headers.
 */
#include "guest.h"

static char block[65536];

static void send_block_times(int connection, unsigned long count) {
    while (count > 0) {
        unsigned long now = count < sizeof block ? count : sizeof block;
        send_all(connection, block, now);
        count -= now;
    }
}

static void handle(const struct request *request) {
    int fd = request->connection;
    unsigned long count;
    char text[128];
    memset(block, 'x', sizeof block);
    if ((count = number_after(request, "/body/", 0)) > 0) {
        snprintf(text, sizeof text, "HTTP/1.1 200 OK\r\nContent-Length: %lu\r\n\r\n", count);
        send_all(fd, text, strlen(text));
        send_block_times(fd, count);
    } else if ((count = number_after(request, "/chunked/", 0)) > 0) {
        const char *head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        send_all(fd, head, strlen(head));
        while (count > 0) {
            unsigned long now = count < sizeof block ? count : sizeof block;
            snprintf(text, sizeof text, "%lx\r\n", now);
            send_all(fd, text, strlen(text));
            send_all(fd, block, now);
            send_all(fd, "\r\n", 2);
            count -= now;
        }
        send_all(fd, "0\r\n\r\n", 5);
    } else if ((count = number_after(request, "/head/", 0)) > 0) {
        const char *head = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-Large: ";
        send_all(fd, head, strlen(head));
        send_block_times(fd, count);
        send_all(fd, "\r\n\r\n", 4);
    } else if ((count = number_after(request, "/headers/", 0)) > 0) {
        const char *head = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n";
        send_all(fd, head, strlen(head));
        for (unsigned long i = 0; i < count; i++) {
            snprintf(text, sizeof text, "X-%lu: %lu\r\n", i, i);
            send_all(fd, text, strlen(text));
        }
        send_all(fd, "\r\n", 2);
    } else {
        answer(request, "no such size: %s\n", request->path);
    }
}

int main(void) {
    serve(handle);
}
