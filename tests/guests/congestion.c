/* The ways in which congestion is met, by their names, and what else has a name in a call. On the host the same program
   tells the same. */
#include "guest.h"

static int uuid(char *to) {
    FILE *file = fopen("/proc/sys/kernel/random/uuid", "r");
    int parts = file == NULL ? -1 : fscanf(file, "%36s", to);
    if (file != NULL)
        fclose(file);
    return parts;
}

static void handle(const struct request *request) {
    told[0] = 0;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    tell_result("cubic", setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "cubic", 5));
    tell_result("longer", setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "cubic\0none", 10));
    tell_result("unknown", setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "xyz", 3));
    tell_result("none", setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "", 0));
    char one[40] = "", other[40] = "";
    int parts = uuid(one) + uuid(other);
    tell("uuids: %d, the same: %d, ", parts, strcmp(one, other) == 0);
    tell("%d bytes, version %c\n", (int)strlen(one), one[14]);
    answer(request, "%s", told);
}

int main(int count, char **arguments) {
    serve_or_run(count, arguments, handle);
}
