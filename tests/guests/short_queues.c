/*
 * Sockets within the guest when there is no memory: how much one takes then, and after there is some again.
 */
#include "guest.h"
#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>

enum { PIECE = 64 << 10, PIECES = 4096 };

static int ends[2];
static char bytes[4096];

static size_t fill(void) {
    size_t filled = 0;
    ssize_t sent;
    while ((sent = send(ends[0], bytes, sizeof bytes, MSG_DONTWAIT)) > 0)
        filled += (size_t)sent;
    return filled;
}

static void drain(void) {
    while (recv(ends[1], bytes, sizeof bytes, MSG_DONTWAIT) > 0) {
    }
}

static void handle(const struct request *request) {
    static char *pieces[PIECES];
    int count = 0;
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends) != 0 || write(ends[0], "x", 1) != 1)
        exit(95);
    while (count < PIECES &&
           (pieces[count] = mmap(NULL, PIECE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)) != MAP_FAILED)
        count++;
    size_t without = fill();
    struct pollfd poll_of = {ends[0], POLLOUT, 0};
    int ready = poll(&poll_of, 1, 0);
    drain();
    int then = poll(&poll_of, 1, 0);
    size_t again = fill();
    drain();
    for (int i = 0; i < count; i++)
        munmap(pieces[i], PIECE);
    size_t with = fill();
    answer(request, "little %d, ready %d, drained %d, as much again %d, then all %d\n", without < 200000, ready, then,
           again >= without, with >= 200000);
}

int main(void) {
    serve(handle);
}
