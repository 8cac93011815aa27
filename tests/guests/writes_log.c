/*
 * Writes to its log: at the start, "starting"; `/lines/N` writes N numbered lines; other paths write
 * the path to both streams.
 */
#include "guest.h"

static void handle(const struct request *request) {
    unsigned long count = number_after(request, "/lines/", 0);
    for (unsigned long i = 1; i <= count; i++)
        printf("line %lu of %lu, and some text to make it longer\n", i, count);
    if (count == 0) {
        printf("out %s\n", request->path);
        fflush(stdout);
        fprintf(stderr, "err %s\n", request->path);
    }
    fflush(stdout);
    answer(request, "logged\n");
}

int main(void) {
    printf("starting\n");
    fflush(stdout);
    serve(handle);
}
