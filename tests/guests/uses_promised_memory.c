/* Touches memory of a large mapping, more of it than there is. */
#include "guest.h"
#include <sys/mman.h>

__attribute__((noinline)) static void touch_all(char *memory, size_t bytes) {
    for (size_t at = 0; at < bytes; at += 4096)
        memory[at] = 1;
    __asm__ volatile("" : : "r"(memory) : "memory");
}

static void handle(const struct request *request) {
    size_t bytes = (size_t)256 << 20;
    char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory != MAP_FAILED)
        touch_all(memory, bytes);
    answer(request, "all of it\n");
}

int main(void) {
    serve(handle);
}
