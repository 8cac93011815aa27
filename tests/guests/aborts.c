/* Aborts. `/exit/N` exits with status N instead, `/kill/N` kills itself with signal N. */
#include "guest.h"
#include <signal.h>

static void handle(const struct request *request) {
    if (strncmp(request->path, "/exit/", 6) == 0)
        exit((int)number_after(request, "/exit/", 0));
    if (strncmp(request->path, "/kill/", 6) == 0)
        raise((int)number_after(request, "/kill/", 0));
    fprintf(stderr, "an invariant is broken\n");
    abort();
}

int main(void) {
    serve(handle);
}
