/* Counts its requests in static memory, on the heap and at the bottom of the stack; answers all three. */
#include "guest.h"

static unsigned in_data;
static unsigned *on_heap;
static unsigned *on_stack;

static void handle(const struct request *request) {
    answer(request, "%u %u %u\n", ++in_data, ++*on_heap, ++*on_stack);
}

int main(void) {
    unsigned count = 0;
    on_stack = &count;
    on_heap = calloc(1, sizeof *on_heap);
    serve(handle);
}
