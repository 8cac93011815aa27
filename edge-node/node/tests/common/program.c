/* A function for the node's tests: one behaviour per path. LABEL is given by the compiler. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static char in[2 << 20];
static char out[64 << 10];
static int count;

static void send_all(int to, const char *bytes, size_t n) {
    while (n > 0) {
        ssize_t sent = write(to, bytes, n);
        if (sent <= 0)
            exit(9);
        bytes += sent;
        n -= (size_t)sent;
    }
}

static void answer(int to, const char *status, const char *body, size_t n, int head_only) {
    char head[256];
    int used = snprintf(head, sizeof head, "HTTP/1.1 %s\r\nContent-Length: %zu\r\nX-Label: %s\r\n\r\n",
                        status, n, LABEL);
    send_all(to, head, (size_t)used);
    if (!head_only)
        send_all(to, body, n);
}

static void bye(int signal) {
    dprintf(2, "bye after %d requests\n", count);
    _exit(0);
}

/* Sends a word to IP:PORT and puts what comes back into `out`, or what went wrong. */
static int fetch(const char *place) {
    char ip[64];
    int port, used = 0;
    if (sscanf(place, "%63[^:]:%d", ip, &port) != 2)
        return snprintf(out, sizeof out, "no place");
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port)};
    inet_pton(AF_INET, ip, &at.sin_addr);
    int peer = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(peer, (struct sockaddr *)&at, sizeof at))
        return snprintf(out, sizeof out, "connect: %s", errno == EACCES ? "EACCES" : strerror(errno));
    send_all(peer, "hello", 5);
    shutdown(peer, SHUT_WR);
    for (ssize_t got; (got = read(peer, out + used, sizeof out - used)) > 0;)
        used += (int)got;
    close(peer);
    return used;
}

static void serve(int to) {
    size_t used = 0;
    char *end = NULL;
    while (!end) {
        ssize_t got = read(to, in + used, sizeof in - 1 - used);
        if (got <= 0)
            return;
        used += (size_t)got;
        in[used] = 0;
        end = strstr(in, "\r\n\r\n");
    }
    end += 4;
    size_t head_bytes = (size_t)(end - in), body_bytes = 0;
    char *length = strcasestr(in, "\ncontent-length:");
    if (length && length < end)
        body_bytes = strtoul(length + 16, NULL, 10);
    while (used < head_bytes + body_bytes) {
        ssize_t got = read(to, in + used, sizeof in - 1 - used);
        if (got <= 0)
            return;
        used += (size_t)got;
    }
    char *path = strchr(in, ' ') + 1;
    int head_only = strncmp(in, "HEAD", 4) == 0;
#define AT(p) (strncmp(path, p, sizeof p - 1) == 0 && strchr(" ?", path[sizeof p - 1]))
    if (AT("/")) {
        answer(to, "200 OK", LABEL, sizeof LABEL - 1, head_only);
    } else if (AT("/count")) {
        int n = snprintf(out, sizeof out, "%d", ++count);
        answer(to, "200 OK", out, (size_t)n, 0);
    } else if (AT("/map")) {
        /* More than program memory is asked for: it has to be promised. */
        char *at = mmap(NULL, 64 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        int ok = at != MAP_FAILED;
        for (int n = 0; ok && n < 8; n++)
            at[n * (8 << 20)] = 1;
        int n = snprintf(out, sizeof out, "mapped %d", ok ? ++count : 0);
        answer(to, "200 OK", out, (size_t)n, 0);
    } else if (AT("/until-told")) {
        count++;
        signal(SIGTERM, bye);
        answer(to, "200 OK", "ok", 2, 0);
    } else if (AT("/fetch")) {
        answer(to, "200 OK", out, fetch(path + 7), 0);
    } else if (AT("/echo")) {
        answer(to, "200 OK", in + head_bytes, body_bytes, 0);
    } else if (AT("/head")) {
        memcpy(out, in, head_bytes);
        answer(to, "200 OK", out, head_bytes, 0);
    } else if (AT("/error")) {
        answer(to, "500 Oh No", "no", 2, 0);
    } else if (AT("/loop")) {
        for (volatile unsigned long n = 0;; n++)
            ;
    } else if (AT("/compute")) {
        struct timespec start, now;
        clock_gettime(CLOCK_MONOTONIC, &start);
        do {
            for (volatile int n = 0; n < 10000; n++)
                ;
            clock_gettime(CLOCK_MONOTONIC, &now);
        } while ((now.tv_sec - start.tv_sec) * 1000000000L + now.tv_nsec - start.tv_nsec < 20000000L);
        answer(to, "200 OK", "computed", 8, 0);
    } else if (AT("/sleep")) {
        struct timespec pause = {0, 30000000};
        nanosleep(&pause, NULL);
        answer(to, "200 OK", "slept", 5, 0);
    } else if (AT("/doze")) {
        struct timespec pause = {0, 300000000};
        signal(SIGPIPE, SIG_IGN);
        nanosleep(&pause, NULL);
        /* Whoever has gone is no reason to end. */
        dprintf(to, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\ndozed");
    } else if (AT("/crash")) {
        fprintf(stderr, "about to crash\n");
        *(volatile int *)0 = 1;
    } else if (AT("/exit")) {
        exit(3);
    } else if (AT("/garbage")) {
        send_all(to, "this is not HTTP\r\n\r\n", 20);
    } else if (AT("/large")) {
        memset(out, 'x', sizeof out);
        char head[] = "HTTP/1.1 200 OK\r\nContent-Length: 4194304\r\n\r\n";
        send_all(to, head, sizeof head - 1);
        for (int n = 0; n < 64; n++)
            send_all(to, out, sizeof out);
    } else {
        answer(to, "404 Not Found", "?", 1, 0);
    }
}

int main(void) {
    const char *port = getenv("PORT");
    if (BROKEN == 1) {
        fprintf(stderr, "cannot start\n");
        *(volatile int *)0 = 1;
    }
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(atoi(port ? port : "8080"))};
    if (bind(listener, (struct sockaddr *)&at, sizeof at) || listen(listener, 16))
        return 1;
    for (;;) {
        int to = accept(listener, NULL, NULL);
        if (to < 0)
            return 1;
        if (BROKEN == 2)
            *(volatile int *)0 = 1;
        serve(to);
        close(to);
    }
}
