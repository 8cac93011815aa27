/* Uses memory in all the usual ways; answers "fine\n" or the first thing that was wrong. */
#include "guest.h"
#include <sys/mman.h>
#include <sys/syscall.h>

enum { PAGE = 4096 };

static int is_zero(const unsigned char *bytes, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (bytes[i] != 0)
            return 0;
    return 1;
}

static const char *check(void) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS, both = PROT_READ | PROT_WRITE;
    unsigned char *area = mmap(NULL, 16 * PAGE, both, flags, -1, 0);
    if (area == MAP_FAILED)
        return "mmap failed";
    if (!is_zero(area, 16 * PAGE))
        return "fresh memory is not zero";
    memset(area, 0xEE, 16 * PAGE);
    if (munmap(area + 4 * PAGE, 4 * PAGE) != 0)
        return "munmap of the middle failed";
    if (area[3 * PAGE] != 0xEE || area[8 * PAGE] != 0xEE)
        return "munmap of the middle lost what is around it";
    unsigned char *again = mmap(area + 4 * PAGE, 4 * PAGE, both, flags | MAP_FIXED, -1, 0);
    if (again != area + 4 * PAGE || !is_zero(again, 4 * PAGE))
        return "memory mapped again is not zero";
    if (mprotect(area, PAGE, PROT_READ) != 0 || area[0] != 0xEE)
        return "mprotect to read-only failed";
    if (mprotect(area, PAGE, both) != 0)
        return "mprotect back failed";
    area[0] = 1;
    if (madvise(area, 2 * PAGE, MADV_DONTNEED) != 0 || !is_zero(area, 2 * PAGE))
        return "madvise(MADV_DONTNEED) does not give zeroes";
    if (munmap(area, 16 * PAGE) != 0)
        return "munmap failed";
    unsigned char *reserved = mmap(NULL, 64 * PAGE, PROT_NONE, flags | MAP_NORESERVE, -1, 0);
    if (reserved == MAP_FAILED || mprotect(reserved + PAGE, PAGE, both) != 0)
        return "a reservation cannot be opened";
    reserved[PAGE] = 1;
    /* As allocators do that have arenas: far more than there is, of which little will be used. */
    unsigned char *arena = mmap(NULL, 1 << 30, both, flags | MAP_NORESERVE, -1, 0);
    if (arena == MAP_FAILED || (arena[0] = 1, mmap(NULL, 4 * PAGE, both, flags, -1, 0) == MAP_FAILED))
        return "a writable reservation leaves nothing to others";
    munmap(arena, 1 << 30);
    /* By system call: musl's sbrk only tells. */
    char *low = (char *)syscall(SYS_brk, 0);
    if ((char *)syscall(SYS_brk, low + 4 * PAGE) != low + 4 * PAGE)
        return "brk failed";
    memset(low, 1, 4 * PAGE);
    if ((char *)syscall(SYS_brk, low) != low)
        return "brk back failed";
    if ((char *)syscall(SYS_brk, low + PAGE) != low + PAGE || !is_zero((unsigned char *)low, PAGE))
        return "memory of brk is not zero again";
    if ((char *)syscall(SYS_brk, low) != low)
        return "brk back failed the second time";
    for (size_t size = 16; size <= 1 << 20; size *= 4) {
        char *bytes = malloc(size);
        if (bytes == NULL)
            return "malloc failed";
        memset(bytes, 0x77, size);
        bytes = realloc(bytes, 2 * size);
        if (bytes == NULL || bytes[size - 1] != 0x77)
            return "realloc lost bytes";
        free(bytes);
    }
    return "fine";
}

static void handle(const struct request *request) {
    answer(request, "%s\n", check());
}

int main(void) {
    serve(handle);
}
