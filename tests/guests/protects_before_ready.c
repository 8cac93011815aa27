/*
 * Has pages with all kinds of protection before it is ready, with RESERVES in its environment some of what it has
 * only reserved among them, and answers what can be done with each: `w` written, `r` only read, `-` nothing.
 */
#include "guest.h"

#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>

#define PAGES 192
#define PAGE 4096

static sigjmp_buf back;
static unsigned char *areas[2];

static void faulted(int signal) {
    (void)signal;
    siglongjmp(back, 1);
}

static char what_can_be_done(volatile unsigned char *page) {
    volatile char found = '-';
    if (sigsetjmp(back, 1) == 0) {
        found = *page == 7 ? 'r' : '?';
        *page = 7;
        found = found == 'r' ? 'w' : '?';
    }
    return found;
}

static void handle(const struct request *request) {
    static char text[2 * PAGES + 2];
    char *to = text;
    for (int area = 0; area < 2; area++)
        for (int page = 0; page < PAGES; page++)
            *to++ = what_can_be_done(areas[area] + page * PAGE);
    *to++ = '\n';
    answer_bytes(request, text, (size_t)(to - text));
}

int main(void) {
    const int kinds[] = {PROT_NONE, PROT_READ, PROT_READ | PROT_WRITE};
    struct sigaction action = {.sa_handler = faulted};
    sigaction(SIGSEGV, &action, NULL);
    areas[0] = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    size_t second = getenv("RESERVES") != NULL ? 16 << 20 : PAGES * PAGE;
    areas[1] = mmap(NULL, second, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (int area = 0; area < 2; area++)
        for (int page = 0; page < PAGES; page++) {
            areas[area][page * PAGE] = 7;
            mprotect(areas[area] + page * PAGE, PAGE, kinds[page * 7 % 3]);
        }
    serve(handle);
}
