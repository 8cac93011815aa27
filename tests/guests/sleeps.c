/*
 * `/nanosleep/MS` and `/poll/MS` wait so long and answer how many milliseconds of the monotonic clock
 * that took; `/for_ever` never answers and uses no CPU.
 */
#include "guest.h"
#include <poll.h>
#include <time.h>

static unsigned long now_ms(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (unsigned long)time.tv_sec * 1000 + (unsigned long)time.tv_nsec / 1000000;
}

static void handle(const struct request *request) {
    unsigned long start = now_ms(), ms;
    if (is_path(request, "/for_ever")) {
        for (;;)
            sleep(1000);
    }
    if ((ms = number_after(request, "/nanosleep/", 0)) > 0) {
        struct timespec time = {.tv_sec = (time_t)(ms / 1000), .tv_nsec = (long)(ms % 1000) * 1000000};
        nanosleep(&time, NULL);
    } else if ((ms = number_after(request, "/poll/", 0)) > 0) {
        poll(NULL, 0, (int)ms);
    }
    answer(request, "%lu\n", now_ms() - start);
}

int main(void) {
    serve(handle);
}
