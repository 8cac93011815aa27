/*
 * {{name}}: an HTTP/1.1 server on $PORT, which is all that Holm asks of a function.
 *
 * Holm starts it once, keeps a snapshot of the moment it waits for its first connection, and gives
 * every request a pristine machine made from that. So what is done before accept() costs nothing per
 * request. Run by hand it is an ordinary server: `make && PORT=8080 ./main`.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MAX_REQUEST_BYTES = 1024 * 1024 };

static char request[MAX_REQUEST_BYTES + 1];

/* Your function: what to answer to a request for `path`. The text must end with a NUL. */
static const char *handle(const char *method, const char *path, const char *body, size_t body_bytes,
                          int *status) {
    static char text[512];
    const char *greeting = getenv("GREETING");
    if (strcmp(path, "/") == 0) {
        snprintf(text, sizeof text, "%s from {{name}}\n", greeting != NULL ? greeting : "hello");
        return text;
    }
    if (strcmp(path, "/count") == 0 && strcmp(method, "POST") == 0) {
        size_t lines = 0;
        for (size_t i = 0; i < body_bytes; i++)
            lines += body[i] == '\n';
        snprintf(text, sizeof text, "%zu lines, %zu bytes\n", lines, body_bytes);
        return text;
    }
    *status = 404;
    return "no such path\n";
}

static int write_all(int connection, const char *bytes, size_t count) {
    while (count > 0) {
        ssize_t written = write(connection, bytes, count);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            return -1;
        bytes += written;
        count -= (size_t)written;
    }
    return 0;
}

static void respond(int connection, int status, const char *text, int with_body) {
    char head[256];
    size_t length = strlen(text);
    int used = snprintf(head, sizeof head,
                        "HTTP/1.1 %d \r\nContent-Type: text/plain; charset=utf-8\r\n"
                        "Content-Length: %zu\r\nConnection: close\r\n\r\n",
                        status, length);
    if (write_all(connection, head, (size_t)used) == 0 && with_body)
        write_all(connection, text, length);
}

/* Reads what there is, behind the `have` bytes already read. Returns how much, or 0 at the end. */
static size_t read_more(int connection, size_t have) {
    for (;;) {
        ssize_t more = read(connection, request + have, MAX_REQUEST_BYTES - have);
        if (more < 0 && errno == EINTR)
            continue;
        return more > 0 ? (size_t)more : 0;
    }
}

/* The value of content-length in the head, or 0. */
static size_t content_length(const char *head) {
    for (const char *line = strstr(head, "\r\n"); line != NULL; line = strstr(line + 2, "\r\n"))
        if (strncasecmp(line + 2, "content-length:", 15) == 0)
            return strtoul(line + 17, NULL, 10);
    return 0;
}

/* Serves the one request of a connection. */
static void serve(int connection) {
    size_t have = 0;
    char *body;
    request[0] = '\0';
    while ((body = strstr(request, "\r\n\r\n")) == NULL) {
        size_t more = read_more(connection, have);
        if (more == 0)
            return;
        have += more;
        request[have] = '\0';
    }
    *body = '\0';
    body += 4;
    size_t length = content_length(request);
    if (length > MAX_REQUEST_BYTES - (size_t)(body - request)) {
        respond(connection, 413, "the body is too large\n", 1);
        return;
    }
    while (have < (size_t)(body - request) + length) {
        size_t more = read_more(connection, have);
        if (more == 0)
            return;
        have += more;
    }
    char *method = request;
    char *path = strchr(request, ' ');
    char *end = path != NULL ? strpbrk(path + 1, " ?") : NULL;
    if (end == NULL) {
        respond(connection, 400, "not HTTP\n", 1);
        return;
    }
    *path++ = '\0';
    *end = '\0';
    int status = 200;
    const char *text = handle(method, path, body, length, &status);
    respond(connection, status, text, strcmp(method, "HEAD") != 0);
}

int main(void) {
    const char *port = getenv("PORT");
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    int on = 1;
    struct sockaddr_in address = {
        .sin_family = AF_INET,
        .sin_port = htons((unsigned short)(port != NULL ? atoi(port) : 8080)),
        .sin_addr = {.s_addr = htonl(INADDR_ANY)},
    };
    if (listener < 0 || setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) != 0 ||
        bind(listener, (struct sockaddr *)&address, sizeof address) != 0 ||
        listen(listener, 128) != 0) {
        perror("{{name}}: cannot listen");
        return 1;
    }
    for (;;) {
        int connection = accept(listener, NULL, NULL);
        if (connection < 0) {
            if (errno == EINTR || errno == ECONNABORTED)
                continue;
            perror("{{name}}: cannot accept");
            return 1;
        }
        serve(connection);
        close(connection);
    }
}
