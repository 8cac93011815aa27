/* Reads the body of its request over a function of its own, and calls it. Code is never writable. */
#include "guest.h"

__attribute__((noinline, aligned(4096))) static int victim(void) {
    return 7;
}

static void handle(const struct request *request) {
    answer(request, "%d\n", victim());
}

int main(void) {
    int fd = listener();
    for (;;) {
        static char head[200000];
        struct request request = {.connection = accept(fd, NULL, NULL)};
        ssize_t held = read(request.connection, head, sizeof head - 1);
        head[held > 0 ? held : 0] = '\0';
        sscanf(head, "%15s %511s", request.method, request.path);
        if (is_path(&request, "/ok")) {
            answer(&request, "ok\n");
        } else {
            if (read(request.connection, (void *)(uintptr_t)victim, 65536) < 0)
                fprintf(stderr, "read: %s\n", strerror(errno));
            handle(&request);
        }
        close(request.connection);
    }
}
