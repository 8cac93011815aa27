/* On /handled, /default, /slow, /ignored and /never: sets itself up to meet SIGTERM in that way, and answers. */
#include "guest.h"
#include <signal.h>
#include <time.h>

static volatile sig_atomic_t requests;

static void handled(int signal) {
    (void)signal;
    dprintf(2, "saw %d requests\n", (int)requests);
    _exit(7);
}

static void slow(int signal) {
    (void)signal;
    struct timespec while_ = {.tv_nsec = 30000000};
    nanosleep(&while_, NULL);
    dprintf(2, "slept\n");
    _exit(8);
}

static void never(int signal) {
    (void)signal;
    for (;;) {
    }
}

static void handle(const struct request *request) {
    requests++;
    if (!strcmp(request->path, "/handled"))
        signal(SIGTERM, handled);
    if (!strcmp(request->path, "/default"))
        signal(SIGTERM, SIG_DFL);
    if (!strcmp(request->path, "/slow"))
        signal(SIGTERM, slow);
    if (!strcmp(request->path, "/ignored"))
        signal(SIGTERM, SIG_IGN);
    if (!strcmp(request->path, "/never"))
        signal(SIGTERM, never);
    answer(request, "ok\n");
}

int main(void) {
    serve(handle);
}
