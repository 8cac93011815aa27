/* `/write` writes to address 0, `/call` calls it, other paths read from it. */
#include "guest.h"

static void *volatile null;

__attribute__((noinline)) static void reads_through_null(void) {
    (void)*(volatile int *)null;
}

static void handle(const struct request *request) {
    if (is_path(request, "/write"))
        *(volatile int *)null = 1;
    else if (is_path(request, "/call"))
        ((void (*)(void))null)();
    else
        reads_through_null();
    answer(request, "address 0 is mapped\n");
}

int main(void) {
    serve(handle);
}
