/* `/syscall/N` makes system call N twice and answers its `errno`, or 0. */
#include "guest.h"

static void handle(const struct request *request) {
    long number = (long)number_after(request, "/syscall/", 9999);
    errno = 0;
    syscall(number, 0, 0, 0, 0, 0, 0);
    syscall(number, 0, 0, 0, 0, 0, 0);
    answer(request, "%d\n", errno);
}

int main(void) {
    serve(handle);
}
