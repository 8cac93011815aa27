/* `/N` uses N MiB in every way there is to get them, all of which has to be zero before; answers how much it was. */
#include "guest.h"
#include <sys/mman.h>
#include <sys/syscall.h>

enum { PAGE = 4096, MIB = 1 << 20 };

static size_t dirty;

static size_t use(char *at, size_t bytes) {
    for (size_t place = 0; place < bytes; place += PAGE) {
        for (size_t word = 0; word < PAGE; word += 8)
            dirty += *(uint64_t *)(at + place + word) != 0;
        memset(at + place, 0xA5, PAGE);
    }
    return bytes;
}

static void handle(const struct request *request) {
    size_t bytes = number_after(request, "/", 1) * MIB, used = 0;
    int both = PROT_READ | PROT_WRITE, flags = MAP_PRIVATE | MAP_ANONYMOUS;
    char *large = mmap(NULL, bytes / 2, both, flags | MAP_NORESERVE, -1, 0);
    used += large == MAP_FAILED ? 0 : use(large, bytes / 2);
    for (int part = 0; part < 16; part++) {
        char *small = mmap(NULL, bytes / 64, both, flags, -1, 0);
        used += small == MAP_FAILED ? 0 : use(small, bytes / 64);
    }
    char *low = (char *)syscall(SYS_brk, 0);
    if ((char *)syscall(SYS_brk, low + bytes / 4) == low + bytes / 4)
        used += use(low, bytes / 4);
    answer(request, "%zu MiB, %zu words were not zero\n", used / MIB, dirty);
}

int main(void) {
    serve(handle);
}
