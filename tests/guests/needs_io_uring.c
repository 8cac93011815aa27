/* Needs io_uring, of which not every kernel has it, and ends without. */
#include "guest.h"
#include <sys/syscall.h>

int main(void) {
    char parameters[120] = {0};
    if (syscall(SYS_io_uring_setup, 8, parameters) >= 0)
        return 0;
    for (int line = 0; line < 20000; line++)
        printf("no ring %d\n", line);
    return 3;
}
