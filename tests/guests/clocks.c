/* Answers the real-time clock in seconds, and whether the monotonic one went on without a step back. */
#include "guest.h"
#include <sys/time.h>
#include <time.h>

static void handle(const struct request *request) {
    struct timespec real, before, after;
    struct timeval of_day;
    clock_gettime(CLOCK_REALTIME, &real);
    gettimeofday(&of_day, NULL);
    clock_gettime(CLOCK_MONOTONIC, &before);
    int steps_back = 0;
    for (int i = 0; i < 1000; i++) {
        clock_gettime(CLOCK_MONOTONIC, &after);
        if (after.tv_sec < before.tv_sec ||
            (after.tv_sec == before.tv_sec && after.tv_nsec < before.tv_nsec))
            steps_back++;
        before = after;
    }
    answer(request, "%ld %ld %ld %d\n", (long)real.tv_sec, (long)of_day.tv_sec, (long)time(NULL),
           steps_back);
}

int main(void) {
    serve(handle);
}
