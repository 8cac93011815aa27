/* A thread for each connection. `/twice` asks this same server for `/inner` over its own port and
   answers what came; `/helper` asks a second listener. */
#include "guest.h"
#include <arpa/inet.h>
#include <pthread.h>

static void handle_one(const struct request *request);

static int ask(int port, const char *text, char *answer, size_t room) {
    struct sockaddr_in there = {.sin_family = AF_INET, .sin_port = htons((unsigned short)port)};
    there.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(fd, (struct sockaddr *)&there, sizeof there) != 0)
        return -1;
    send_all(fd, text, strlen(text));
    shutdown(fd, SHUT_WR);
    size_t used = 0;
    for (ssize_t more; (more = read(fd, answer + used, room - 1 - used)) > 0; used += (size_t)more)
        ;
    answer[used] = '\0';
    close(fd);
    return 0;
}

static int port(void) {
    return atoi(getenv("PORT"));
}

static void handle_one(const struct request *request) {
    char text[1024];
    if (is_path(request, "/ok")) {
        answer(request, "ok\n");
    } else if (is_path(request, "/inner")) {
        answer(request, "from within\n");
    } else if (is_path(request, "/twice")) {
        if (ask(port(), "GET /inner HTTP/1.1\r\n\r\n", text, sizeof text) != 0)
            answer(request, "connect: %s\n", strerrorname(errno));
        else
            answer(request, "%s", text);
    } else {
        if (ask(port() + 1, "hello", text, sizeof text) != 0)
            answer(request, "connect: %s\n", strerrorname(errno));
        else
            answer(request, "%s", text);
    }
}

static void *one(void *connection) {
    struct request request;
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    /* Reading a request uses memory of its own in guest.h: one at a time. */
    pthread_mutex_lock(&lock);
    int whole = read_request((int)(intptr_t)connection, &request);
    pthread_mutex_unlock(&lock);
    if (whole)
        handle_one(&request);
    close((int)(intptr_t)connection);
    return NULL;
}

static void *helper(void *listener) {
    for (;;) {
        int fd = accept((int)(intptr_t)listener, NULL, NULL);
        char text[16] = {0};
        ssize_t got = recv(fd, text, sizeof text - 1, MSG_WAITALL);
        dprintf(fd, "%s from the helper, %d\n", text, (int)got);
        close(fd);
    }
    return NULL;
}

int main(void) {
    pthread_t thread;
    int second = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((unsigned short)(port() + 1))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(second, (struct sockaddr *)&address, sizeof address) != 0 || listen(second, 4) != 0)
        exit(91);
    int fd = listener();
    pthread_create(&thread, NULL, helper, (void *)(intptr_t)second);
    for (;;) {
        int connection = accept(fd, NULL, NULL);
        if (connection < 0)
            exit(94);
        pthread_create(&thread, NULL, one, (void *)(intptr_t)connection);
        pthread_detach(thread);
    }
}
