/* Makes system calls that are not supported, writes much, and is never ready: HOLM_END says how it ends. */
#include "guest.h"
#include <signal.h>
#include <sys/syscall.h>

int main(void) {
    const char *end = getenv("HOLM_END");
    if (fork() >= 0 || syscall(SYS_execve, "/none", NULL, NULL) == 0)
        return 4;
    syscall(461);
    for (int line = 0; line < 20000; line++)
        printf("line %d\n", line);
    printf("the last line\n");
    fflush(stdout);
    if (end == NULL || strcmp(end, "exit") == 0)
        return 3;
    if (strcmp(end, "crash") == 0)
        *(volatile char *)16 = 1;
    if (strcmp(end, "abort") == 0)
        abort();
    if (strcmp(end, "sleep") == 0)
        for (;;)
            sleep(1000);
    for (;;)
        __asm__ volatile("");
}
