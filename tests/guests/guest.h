/*
 * What the test guests share: a tiny HTTP/1.1 server on $PORT. Each guest is one behaviour. On
 * `/ok` every guest answers "ok\n" and behaves; what it does on other paths is its own matter, said
 * at the top of its file.
 */
#ifndef GUEST_H
#define GUEST_H

#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

/* Guests do on purpose what compilers warn of. */
#pragma GCC diagnostic ignored "-Wunused-function"

struct request {
    int connection;
    char method[16];
    char path[512];
    unsigned char *body;
    size_t body_bytes;
};

/* Whether all of it could be sent. */
static int sends_all(int connection, const void *bytes, size_t count) {
    const char *at = bytes;
    while (count > 0) {
        ssize_t sent = write(connection, at, count);
        if (sent <= 0)
            return 0;
        at += sent;
        count -= (size_t)sent;
    }
    return 1;
}

static void send_all(int connection, const void *bytes, size_t count) {
    if (!sends_all(connection, bytes, count)) {
        perror("guest: write");
        exit(90);
    }
}

static void answer_bytes(const struct request *request, const void *bytes, size_t count) {
    char head[128];
    int used = snprintf(head, sizeof head, "HTTP/1.1 200 OK\r\nContent-Length: %zu\r\n\r\n", count);
    send_all(request->connection, head, (size_t)used);
    send_all(request->connection, bytes, count);
}

__attribute__((format(printf, 2, 3))) static void answer(const struct request *request,
                                                         const char *format, ...) {
    static char text[65536];
    va_list arguments;
    va_start(arguments, format);
    int used = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    answer_bytes(request, text, (size_t)used < sizeof text ? (size_t)used : sizeof text - 1);
}

static int is_path(const struct request *request, const char *path) {
    return strcmp(request->path, path) == 0;
}

/* The number that follows `prefix` in the path, or `otherwise`. */
static unsigned long number_after(const struct request *request, const char *prefix,
                                  unsigned long otherwise) {
    size_t length = strlen(prefix);
    if (strncmp(request->path, prefix, length) != 0)
        return otherwise;
    return strtoul(request->path + length, NULL, 10);
}

static int listener(void) {
    const char *port = getenv("PORT");
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    int on = 1;
    struct sockaddr_in address = {
        .sin_family = AF_INET,
        .sin_port = htons((unsigned short)atoi(port != NULL ? port : "8080")),
        .sin_addr = {.s_addr = htonl(INADDR_ANY)},
    };
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) != 0 ||
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) != 0 ||
        bind(fd, (struct sockaddr *)&address, sizeof address) != 0 || listen(fd, 16) != 0) {
        perror("guest: listen");
        exit(91);
    }
    return fd;
}

/* Reads one request. 0 when the connection has ended. */
static int read_request(int connection, struct request *request) {
    static char head[65536];
    size_t held = 0;
    char *end = NULL;
    while (end == NULL) {
        ssize_t more = read(connection, head + held, sizeof head - 1 - held);
        if (more <= 0)
            return 0;
        held += (size_t)more;
        head[held] = '\0';
        end = strstr(head, "\r\n\r\n");
    }
    memset(request, 0, sizeof *request);
    request->connection = connection;
    if (sscanf(head, "%15s %511s", request->method, request->path) != 2) {
        fprintf(stderr, "guest: not a request: %s\n", head);
        exit(92);
    }
    size_t head_bytes = (size_t)(end + 4 - head);
    const char *length = strcasestr(head, "\r\ncontent-length:");
    if (length == NULL || length > end)
        return 1;
    request->body_bytes = strtoul(length + 17, NULL, 10);
    static unsigned char *body;
    static size_t capacity;
    if (request->body_bytes > capacity) {
        capacity = request->body_bytes;
        body = realloc(body, capacity);
        if (body == NULL) {
            fprintf(stderr, "guest: no memory for a body of %zu bytes\n", capacity);
            exit(93);
        }
    }
    request->body = body;
    size_t have = held - head_bytes;
    if (have > request->body_bytes)
        have = request->body_bytes;
    memcpy(body, head + head_bytes, have);
    while (have < request->body_bytes) {
        ssize_t more = read(connection, body + have, request->body_bytes - have);
        if (more <= 0)
            return 0;
        have += (size_t)more;
    }
    return 1;
}

/* Serves for ever, one connection after the other. */
static void serve(void (*handle)(const struct request *)) {
    int fd = listener();
    for (;;) {
        int connection = accept(fd, NULL, NULL);
        if (connection < 0) {
            perror("guest: accept");
            exit(94);
        }
        struct request request;
        while (read_request(connection, &request)) {
            if (is_path(&request, "/ok"))
                answer(&request, "ok\n");
            else
                handle(&request);
        }
        close(connection);
    }
}

/* The name of an error number, of those that the guests tell of; the same in every libc. */
static const char *strerrorname(int number) {
    static const struct {
        int number;
        const char *name;
    } names[] = {
        {EACCES, "EACCES"},           {EADDRINUSE, "EADDRINUSE"},   {EADDRNOTAVAIL, "EADDRNOTAVAIL"},
        {EAFNOSUPPORT, "EAFNOSUPPORT"}, {EAGAIN, "EAGAIN"},         {ECONNREFUSED, "ECONNREFUSED"},
        {ECONNRESET, "ECONNRESET"},   {EINPROGRESS, "EINPROGRESS"}, {EINTR, "EINTR"},
        {EINVAL, "EINVAL"},           {EISCONN, "EISCONN"},         {ENOENT, "ENOENT"},
        {ENOTCONN, "ENOTCONN"},       {ENOTSOCK, "ENOTSOCK"},       {EOPNOTSUPP, "EOPNOTSUPP"},
        {EPIPE, "EPIPE"},             {ETIMEDOUT, "ETIMEDOUT"},     {EBADF, "EBADF"},
        {ENOPROTOOPT, "ENOPROTOOPT"}, {ECANCELED, "ECANCELED"},     {ENOMEM, "ENOMEM"},
        {EFAULT, "EFAULT"},           {EEXIST, "EEXIST"},           {EXDEV, "EXDEV"},
        {ENODEV, "ENODEV"},           {ENXIO, "ENXIO"},              {ESOCKTNOSUPPORT, "ESOCKTNOSUPPORT"},
        {EOVERFLOW, "EOVERFLOW"},     {EBUSY, "EBUSY"},           {EMSGSIZE, "EMSGSIZE"},
        {ENOSPC, "ENOSPC"},           {EPERM, "EPERM"},
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (names[i].number == number)
            return names[i].name;
    return "another error";
}

/* Serves; or with a path as its argument, as on the host, answers that on standard output. */
static void serve_or_run(int count, char **arguments, void (*handle)(const struct request *)) {
    if (count < 2)
        serve(handle);
    struct request request = {.connection = STDOUT_FILENO, .method = "GET"};
    snprintf(request.path, sizeof request.path, "%s", arguments[1]);
    handle(&request);
}

/* Text that grows line by line until it is answered. */
static char told[32768];

__attribute__((format(printf, 1, 2))) static void tell(const char *format, ...) {
    size_t used = strlen(told);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(told + used, sizeof told - used, format, arguments);
    va_end(arguments);
}

/* The result of a call with its `errno`, if it failed. */
static void tell_result(const char *what, long result) {
    if (result >= 0)
        tell("%s: %ld\n", what, result);
    else
        tell("%s: %s\n", what, strerrorname(errno));
}

#endif
