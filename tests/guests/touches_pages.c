/* `/pages/N` writes to N pages of its own, as a function with a working set of that size does. */
#include "guest.h"

static volatile unsigned char pages[1024][4096];

static void handle(const struct request *request) {
    unsigned long count = number_after(request, "/pages/", 1);
    if (count > 1024)
        count = 1024;
    for (unsigned long i = 0; i < count; i++)
        pages[i][0]++;
    answer(request, "%lu\n", count);
}

int main(void) {
    serve(handle);
}
