/*
 * Serves several requests at a time, a thread for each connection. `/meet` waits for another `/meet` and
 * answers how many met; `/wait` waits for `/release`; `/peer` answers the caller's port and waits as `/wait`
 * does; `/until_gone` waits for the end of its connection, and `/gone` answers how many of those have come;
 * `/writes_until_gone` writes until that fails; `/loop` never answers, `/malformed` answers what is no
 * response, `/unanswered` closes its connection; `/parts` answers in three parts, before the last of which it
 * waits as `/wait` does; `/body` answers the bytes of its body, which may come in chunks, and their sum.
 */
#include "guest.h"
#include <pthread.h>
#include <signal.h>
#include <time.h>

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
static int meeting, met, released, gone;

/* A caller that has gone ends nobody else's request. */
static void send_to_caller(int connection, const void *bytes, size_t count) {
    (void)sends_all(connection, bytes, count);
}

static void respond(int connection, const char *format, long number) {
    char body[64], text[192];
    int bytes = snprintf(body, sizeof body, format, number);
    int used = snprintf(text, sizeof text, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", bytes, body);
    send_to_caller(connection, text, (size_t)used);
}

static void wait_for_release(void) {
    pthread_mutex_lock(&mutex);
    int before = released;
    while (released == before)
        pthread_cond_wait(&condition, &mutex);
    pthread_mutex_unlock(&mutex);
}

static void meet(int connection) {
    pthread_mutex_lock(&mutex);
    meeting++;
    if (meeting == 2) {
        met = meeting;
        pthread_cond_broadcast(&condition);
    }
    while (met < 2)
        pthread_cond_wait(&condition, &mutex);
    pthread_mutex_unlock(&mutex);
    respond(connection, "%ld met\n", met);
}

static void count_gone(void) {
    pthread_mutex_lock(&mutex);
    gone++;
    pthread_mutex_unlock(&mutex);
}

/* One byte; -1 at the end. */
static int next_byte(int connection) {
    unsigned char byte;
    return read(connection, &byte, 1) == 1 ? byte : -1;
}

static void body(int connection, const char *head) {
    const char *length = strcasestr(head, "\r\ncontent-length:");
    int in_chunks = strcasestr(head, "\r\ntransfer-encoding: chunked") != NULL;
    unsigned long left = length != NULL ? strtoul(length + 17, NULL, 10) : 0, bytes = 0, sum = 0;
    do {
        if (in_chunks) {
            char line[32] = "";
            for (size_t used = 0; used < sizeof line - 1 && strstr(line, "\r\n") == NULL; used++)
                line[used] = (char)next_byte(connection);
            left = strtoul(line, NULL, 16);
            in_chunks = left > 0;
        }
        for (; left > 0; left--, bytes++) {
            int byte = next_byte(connection);
            if (byte < 0) {
                count_gone();
                return;
            }
            sum += (unsigned long)byte;
        }
        if (in_chunks && (next_byte(connection) != '\r' || next_byte(connection) != '\n'))
            return;
    } while (in_chunks);
    respond(connection, "%ld bytes", (long)bytes);
    (void)sum;
}

static void *handle(void *argument) {
    int connection = (int)(intptr_t)argument;
    char head[4096];
    size_t held = 0;
    do {
        ssize_t more = read(connection, head + held, 1);
        if (more <= 0)
            goto out;
        held += (size_t)more;
        head[held] = '\0';
    } while (strstr(head, "\r\n\r\n") == NULL && held < sizeof head - 1);
    char path[64] = "";
    sscanf(head, "%*s %63s", path);
    if (strcmp(path, "/ok") == 0) {
        respond(connection, "ok\n", 0);
    } else if (strcmp(path, "/meet") == 0) {
        meet(connection);
    } else if (strcmp(path, "/wait") == 0) {
        wait_for_release();
        respond(connection, "released\n", 0);
    } else if (strcmp(path, "/release") == 0) {
        pthread_mutex_lock(&mutex);
        released++;
        pthread_cond_broadcast(&condition);
        pthread_mutex_unlock(&mutex);
        respond(connection, "done\n", 0);
    } else if (strcmp(path, "/peer") == 0) {
        struct sockaddr_in peer;
        socklen_t bytes = sizeof peer;
        getpeername(connection, (struct sockaddr *)&peer, &bytes);
        wait_for_release();
        respond(connection, "%ld\n", ntohs(peer.sin_port));
    } else if (strcmp(path, "/until_gone") == 0) {
        char byte;
        if (read(connection, &byte, 1) == 0)
            count_gone();
    } else if (strcmp(path, "/writes_until_gone") == 0) {
        const char start[] = "HTTP/1.1 200 OK\r\n\r\n";
        send_to_caller(connection, start, sizeof start - 1);
        while (write(connection, "tick\n", 5) == 5)
            nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
        if (errno == EPIPE)
            count_gone();
    } else if (strcmp(path, "/gone") == 0) {
        respond(connection, "%ld\n", gone);
    } else if (strcmp(path, "/loop") == 0) {
        for (volatile int turn = 0;; turn++)
            ;
    } else if (strcmp(path, "/malformed") == 0) {
        send_to_caller(connection, "nonsense\r\n\r\n", 12);
    } else if (strcmp(path, "/parts") == 0) {
        const char start[] = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\none \r\n";
        send_to_caller(connection, start, sizeof start - 1);
        /* Long enough not to be over before it begins, on a machine that is emulated. */
        nanosleep(&(struct timespec){.tv_nsec = 300000000}, NULL);
        send_to_caller(connection, "4\r\ntwo \r\n", 9);
        wait_for_release();
        send_to_caller(connection, "5\r\nthree\r\n0\r\n\r\n", 15);
    } else if (strcmp(path, "/body") == 0) {
        body(connection, head);
    }
out:
    close(connection);
    return NULL;
}

int main(void) {
    signal(SIGPIPE, SIG_IGN);
    int fd = listener();
    pthread_attr_t detached;
    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    for (;;) {
        int connection = accept(fd, NULL, NULL);
        pthread_t thread;
        if (connection < 0 || pthread_create(&thread, &detached, handle, (void *)(intptr_t)connection) != 0) {
            perror("guest: accept");
            return 94;
        }
    }
}
