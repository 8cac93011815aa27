/* /dev/full has zeroes to read and no room. On the host the same program tells the same. */
#include "guest.h"
#include <fcntl.h>
#include <sys/uio.h>

static void handle(const struct request *request) {
    told[0] = 0;
    char bytes[3] = "abc";
    int fd = open("/dev/full", O_RDWR);
    tell_result("read", read(fd, bytes, sizeof bytes));
    tell("%d %d %d\n", bytes[0], bytes[1], bytes[2]);
    tell_result("write", write(fd, bytes, sizeof bytes));
    tell_result("pwrite", pwrite(fd, bytes, sizeof bytes, 10));
    struct iovec part = {bytes, sizeof bytes};
    tell_result("writev", writev(fd, &part, 1));
    tell_result("lseek", lseek(fd, 100, SEEK_SET));
    FILE *file = fdopen(fd, "r+");
    fprintf(file, "text");
    tell_result("fflush", fflush(file));
    fclose(file);
    answer(request, "%s", told);
}

int main(int count, char **arguments) {
    serve_or_run(count, arguments, handle);
}
