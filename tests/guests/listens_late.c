/*
 * Is not ready at once, in the way that $WAY names: `metrics` waits on another port before it listens on $PORT; `rests`
 * listens on $PORT and sleeps before it waits there; `looks` asks again and again and sleeps in between; `elsewhere` only
 * ever listens on another port, with a timer. Answers
 * how far it was when it was ready.
 */
#include "guest.h"
#include <fcntl.h>
#include <pthread.h>
#include <time.h>

static int steps;

static int elsewhere(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(9090)};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) != 0 || listen(fd, 16) != 0)
        exit(91);
    return fd;
}

static void serves(int fd) {
    struct request request;
    if (fd >= 0 && read_request(fd, &request))
        answer(&request, "%d\n", steps);
}

static void *metrics(void *listening) {
    for (;;)
        serves(accept(*(int *)listening, NULL, NULL));
    return listening;
}

static void *ticks(void *argument) {
    for (;;)
        usleep(10000);
    return argument;
}

int main(void) {
    const char *way = getenv("WAY");
    pthread_t other;
    static int there;
    if (strcmp(way, "metrics") == 0) {
        there = elsewhere();
        pthread_create(&other, NULL, metrics, &there);
        usleep(500000);
        steps = 1;
        metrics(&(int){listener()});
    } else if (strcmp(way, "rests") == 0) {
        int fd = listener();
        usleep(500000);
        steps = 2;
        metrics(&fd);
    } else if (strcmp(way, "looks") == 0) {
        int fd = listener();
        fcntl(fd, F_SETFL, O_NONBLOCK);
        for (steps = 3;; usleep(10000))
            serves(accept(fd, NULL, NULL));
    } else {
        there = elsewhere();
        pthread_create(&other, NULL, ticks, NULL);
        steps = 4;
        metrics(&there);
    }
}
