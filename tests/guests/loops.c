/* Never answers: `/syscalls` loops over a system call, other paths over nothing. */
#include "guest.h"
#include <sys/syscall.h>

static void handle(const struct request *request) {
    volatile unsigned long turns = 0;
    for (;;) {
        turns++;
        if (is_path(request, "/syscalls"))
            syscall(SYS_getppid);
    }
}

int main(void) {
    serve(handle);
}
