/* `/protected` reads memory without permission, `/unmapped` memory given back, and dies of it. */
#include "guest.h"
#include <sys/mman.h>

static void handle(const struct request *request) {
    unsigned char *area =
        mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    area[0] = 1;
    if (is_path(request, "/protected"))
        mprotect(area, 4096, PROT_NONE);
    else if (is_path(request, "/read_only"))
        mprotect(area, 4096, PROT_READ);
    else
        munmap(area, 8192);
    if (is_path(request, "/read_only"))
        *(volatile unsigned char *)area = 2;
    answer(request, "%d was still there\n", *(volatile unsigned char *)area);
}

int main(void) {
    serve(handle);
}
