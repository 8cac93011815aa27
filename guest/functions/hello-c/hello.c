/*
 * The sample function in C: an ordinary single-threaded HTTP/1.1 server that knows nothing of Holm.
 * Statically linked it is deployed as it is; started by hand it serves on $PORT.
 *
 *   /             a greeting with the version, from HELLO_VERSION
 *   /echo         the request's body
 *   /sleep?ms=N   the greeting, after N milliseconds, at most 60,000
 *   /state        how many requests this instance has seen, this one included
 *   /random       16 random bytes in hexadecimal
 *
 * With HELLO_CRASH=1 it writes through a null pointer on every request.
 *
 * It serves one connection after another, reads bodies by content-length only, and is no model of a
 * server for the open internet: a node stands in front of it.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    MAX_HEAD_BYTES = 64 * 1024,
    MAX_BODY_BYTES = 1024 * 1024,
    MAX_SLEEP_MS = 60000,
};

static char head[MAX_HEAD_BYTES + 1];
static char body[MAX_BODY_BYTES + 1];
static char greeting[256];
static int crash;
static unsigned long seen;

/* A request whose strings point into `head`. */
struct request {
    const char *method;
    const char *path;
    const char *query;
    size_t body_bytes;
    int close;
};

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

static int respond(int connection, const struct request *request, const char *status,
                   const char *bytes, size_t count) {
    static char out[512 + MAX_BODY_BYTES];
    int used = snprintf(out, 512,
                        "HTTP/1.1 %s\r\nContent-Type: text/plain; charset=utf-8\r\n"
                        "Content-Length: %zu\r\n%s\r\n",
                        status, count, request->close ? "Connection: close\r\n" : "");
    size_t total = (size_t)used;
    if (strcmp(request->method, "HEAD") != 0) {
        memcpy(out + total, bytes, count);
        total += count;
    }
    return write_all(connection, out, total);
}

static int respond_text(int connection, const struct request *request, const char *status,
                        const char *text) {
    return respond(connection, request, status, text, strlen(text));
}

static int answer(int connection, const struct request *request) {
    char text[64];
    seen++;
    if (crash) {
        fprintf(stderr, "hello-c: HELLO_CRASH=1, so this request ends in a write to address 0\n");
        *(volatile int *)0 = 1;
    }
    if (strcmp(request->path, "/") == 0)
        return respond_text(connection, request, "200 OK", greeting);
    if (strcmp(request->path, "/echo") == 0)
        return respond(connection, request, "200 OK", body, request->body_bytes);
    if (strcmp(request->path, "/sleep") == 0) {
        if (request->query == NULL || strncmp(request->query, "ms=", 3) != 0)
            return respond_text(connection, request, "400 Bad Request",
                                "say how long: /sleep?ms=100\n");
        unsigned long ms = strtoul(request->query + 3, NULL, 10);
        if (ms > MAX_SLEEP_MS)
            ms = MAX_SLEEP_MS;
        struct timespec time = {.tv_sec = (time_t)(ms / 1000), .tv_nsec = (long)(ms % 1000) * 1000000};
        while (nanosleep(&time, &time) != 0 && errno == EINTR) {
        }
        return respond_text(connection, request, "200 OK", greeting);
    }
    if (strcmp(request->path, "/state") == 0) {
        snprintf(text, sizeof text, "%lu\n", seen);
        return respond_text(connection, request, "200 OK", text);
    }
    if (strcmp(request->path, "/random") == 0) {
        unsigned char bytes[16];
        if (getrandom(bytes, sizeof bytes, 0) != (ssize_t)sizeof bytes)
            return respond_text(connection, request, "500 Internal Server Error", "no randomness\n");
        for (size_t i = 0; i < sizeof bytes; i++)
            snprintf(text + 2 * i, 3, "%02x", bytes[i]);
        strcat(text, "\n");
        return respond_text(connection, request, "200 OK", text);
    }
    return respond_text(connection, request, "404 Not Found", "no such path\n");
}

/* Parses the head, which is a string, in place. Returns the status to refuse it with, or NULL. */
static const char *parse(char *text, struct request *request) {
    char *end_of_line = strstr(text, "\r\n");
    if (end_of_line == NULL)
        return "400 Bad Request";
    *end_of_line = '\0';
    char *target = strchr(text, ' ');
    if (target == NULL)
        return "400 Bad Request";
    *target++ = '\0';
    char *version = strchr(target, ' ');
    if (version == NULL || strncmp(version + 1, "HTTP/1.", 7) != 0)
        return "400 Bad Request";
    *version++ = '\0';
    request->method = text;
    request->path = target;
    request->query = NULL;
    request->body_bytes = 0;
    request->close = strcmp(version, "HTTP/1.1") != 0;
    char *question_mark = strchr(target, '?');
    if (question_mark != NULL) {
        *question_mark = '\0';
        request->query = question_mark + 1;
    }
    char *line = end_of_line + 2;
    while ((end_of_line = strstr(line, "\r\n")) != NULL && end_of_line != line) {
        *end_of_line = '\0';
        char *value = strchr(line, ':');
        if (value == NULL)
            return "400 Bad Request";
        *value++ = '\0';
        value += strspn(value, " \t");
        if (strcasecmp(line, "content-length") == 0) {
            char *end;
            errno = 0;
            unsigned long bytes = strtoul(value, &end, 10);
            if (errno != 0 || end == value || value[0] == '-')
                return "400 Bad Request";
            if (bytes > MAX_BODY_BYTES)
                return "413 Content Too Large";
            request->body_bytes = bytes;
        } else if (strcasecmp(line, "connection") == 0 && strcasecmp(value, "close") == 0) {
            request->close = 1;
        } else if (strcasecmp(line, "transfer-encoding") == 0) {
            return "501 Not Implemented";
        }
        line = end_of_line + 2;
    }
    return NULL;
}

/* Serves one connection until it ends. */
static void serve(int connection) {
    /* Bytes read beyond the last request stay at the front of `head`. */
    size_t held = 0;
    for (;;) {
        char *end;
        head[held] = '\0';
        while ((end = strstr(head, "\r\n\r\n")) == NULL) {
            if (held == MAX_HEAD_BYTES)
                return;
            ssize_t more = read(connection, head + held, MAX_HEAD_BYTES - held);
            if (more < 0 && errno == EINTR)
                continue;
            if (more <= 0)
                return;
            held += (size_t)more;
            head[held] = '\0';
        }
        size_t head_bytes = (size_t)(end + 4 - head);
        struct request request = {.method = "GET", .path = "/", .close = 1};
        const char *refusal = parse(head, &request);
        if (refusal != NULL) {
            request.close = 1;
            respond_text(connection, &request, refusal, "");
            return;
        }
        size_t have = held - head_bytes;
        if (have > request.body_bytes)
            have = request.body_bytes;
        memcpy(body, head + head_bytes, have);
        size_t rest = held - head_bytes - have;
        size_t rest_from = head_bytes + have;
        while (have < request.body_bytes) {
            ssize_t more = read(connection, body + have, request.body_bytes - have);
            if (more < 0 && errno == EINTR)
                continue;
            if (more <= 0)
                return;
            have += (size_t)more;
        }
        if (answer(connection, &request) != 0 || request.close)
            return;
        memmove(head, head + rest_from, rest);
        held = rest;
    }
}

int main(void) {
    const char *version = getenv("HELLO_VERSION");
    const char *crash_text = getenv("HELLO_CRASH");
    const char *port_text = getenv("PORT");
    snprintf(greeting, sizeof greeting, "hello from %s\n", version != NULL ? version : "v1");
    crash = crash_text != NULL && strcmp(crash_text, "1") == 0;
    long port = port_text != NULL ? strtol(port_text, NULL, 10) : 8080;
    if (port < 0 || port > 65535) {
        fprintf(stderr, "hello-c: PORT is `%s`; it must be a number from 0 to 65535\n", port_text);
        return 2;
    }

    int listener = socket(AF_INET, SOCK_STREAM, 0);
    int on = 1;
    struct sockaddr_in address = {
        .sin_family = AF_INET,
        .sin_port = htons((unsigned short)port),
        .sin_addr = {.s_addr = htonl(INADDR_ANY)},
    };
    if (listener < 0 || setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) != 0 ||
        bind(listener, (struct sockaddr *)&address, sizeof address) != 0 ||
        listen(listener, 128) != 0) {
        fprintf(stderr, "hello-c: cannot listen on port %ld: %s\n", port, strerror(errno));
        return 1;
    }
    for (;;) {
        int connection = accept(listener, NULL, NULL);
        if (connection < 0) {
            if (errno == EINTR || errno == ECONNABORTED)
                continue;
            fprintf(stderr, "hello-c: cannot accept: %s\n", strerror(errno));
            return 1;
        }
        setsockopt(connection, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        serve(connection);
        close(connection);
    }
}
