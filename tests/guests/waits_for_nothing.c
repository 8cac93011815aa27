/* Waits before it listens for what nobody will ever write. */
#include "guest.h"

__attribute__((noinline)) static int wait_for_settings(int from) {
    char setting;
    return read(from, &setting, 1) == 1 ? setting : 0;
}

int main(void) {
    int ends[2];
    if (pipe(ends) != 0)
        return 95;
    return wait_for_settings(ends[0]);
}
