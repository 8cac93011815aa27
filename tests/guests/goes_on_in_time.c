/* Answers how many seconds of the monotonic clock have passed since the program's start, and in a sleep of 50 ms. */
#include "guest.h"
#include <time.h>

static double start;

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static void handle(const struct request *request) {
    double before = now();
    usleep(50000);
    answer(request, "%f %f\n", before - start, now() - before);
}

int main(void) {
    start = now();
    serve(handle);
}
