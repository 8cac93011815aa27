/* Recurses without end. */
#include "guest.h"

#pragma GCC diagnostic ignored "-Winfinite-recursion"

__attribute__((noinline)) static int recurses_without_end(int depth) {
    volatile char frame[512];
    frame[depth % 512] = (char)depth;
    return recurses_without_end(depth + 1) + frame[(depth + 1) % 512];
}

static void handle(const struct request *request) {
    answer(request, "%d\n", recurses_without_end(0));
}

int main(void) {
    serve(handle);
}
