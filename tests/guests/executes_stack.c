/* Executes a `ret` on the heap (`/heap`), in static data (`/data`) or on the stack (other paths). */
#include "guest.h"

static unsigned char data[16] = {0xC3};

static void handle(const struct request *request) {
    unsigned char stack[16] = {0xC3};
    unsigned char *code = stack;
    if (is_path(request, "/heap")) {
        code = malloc(16);
        code[0] = 0xC3;
    } else if (is_path(request, "/data")) {
        code = data;
    }
    __asm__ volatile("" : : "r"(code) : "memory");
    ((void (*)(void))(uintptr_t)code)();
    answer(request, "data was executed\n");
}

int main(void) {
    serve(handle);
}
