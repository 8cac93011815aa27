/* A process that does as little as a process can: the peer of a fresh machine. */
#include <unistd.h>

int main(void) {
    return write(1, "hello\n", 6) == 6 ? 0 : 1;
}
