/* Marks pages before it is ready as a user-space generator does, and answers what an instance finds. */
#include "guest.h"
#include <fcntl.h>
#include <sys/mman.h>

static char *wiped, *kept, *remapped, *reserved, *hidden;
static char boot_id[40];

static void read_boot_id(char *to) {
    int file = open("/proc/sys/kernel/random/boot_id", O_RDONLY);
    if (file < 0 || read(file, to, 36) != 36)
        exit(91);
    close(file);
}

static char *map(size_t bytes, int flags) {
    char *start = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
    if (start == MAP_FAILED)
        exit(92);
    start[0] = 1;
    return start;
}

static void handle(const struct request *request) {
    char now[40] = {0};
    read_boot_id(now);
    mprotect(hidden, 4096, PROT_READ);
    answer(request, "%d %d %d %d %d %d\n", wiped[0] == 0 && wiped[4096] == 0, kept[0] == 1 && kept[4096] == 1,
           remapped[0] == 1, reserved[0] == 0, strcmp(now, boot_id) != 0,
           hidden[0] == 0);
    /* For the next request, if the instance is kept. */
    memcpy(boot_id, now, sizeof now);
    wiped[0] = wiped[4096] = reserved[0] = 0;
}

int main(void) {
    wiped = map(8192, 0);
    kept = map(8192, 0);
    wiped[4096] = kept[4096] = 1;
    reserved = map(64 << 20, MAP_NORESERVE);
    remapped = map(4096, 0);
    if (madvise(wiped, 8192, MADV_WIPEONFORK) || madvise(reserved, 4096, MADV_WIPEONFORK) ||
        madvise(kept, 8192, MADV_WIPEONFORK) || madvise(kept, 8192, MADV_KEEPONFORK) ||
        madvise(remapped, 4096, MADV_WIPEONFORK))
        exit(93);
    if (mmap(remapped, 4096, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) !=
        remapped)
        exit(94);
    remapped[0] = 1;
    hidden = map(4096, 0);
    if (madvise(hidden, 4096, MADV_WIPEONFORK) || mprotect(hidden, 4096, PROT_NONE))
        exit(95);
    read_boot_id(boot_id);
    serve(handle);
}
