/* Writes a file in /tmp and reads it again; answers what it read, or the call and `errno` that failed. */
#include "guest.h"
#include <fcntl.h>

static void handle(const struct request *request) {
    char text[64] = {0};
    int fd = open("/tmp/note", O_RDWR | O_CREAT | O_EXCL, 0600);
    if (fd < 0)
        answer(request, "open %d\n", errno);
    else if (write(fd, "remember\n", 9) != 9)
        answer(request, "write %d\n", errno);
    else if (lseek(fd, 0, SEEK_SET) != 0)
        answer(request, "lseek %d\n", errno);
    else if (read(fd, text, sizeof text - 1) != 9)
        answer(request, "read %d\n", errno);
    else
        answer(request, "%s", text);
    if (fd >= 0)
        close(fd);
}

int main(void) {
    serve(handle);
}
