/*
 * `GET /SEED` makes a mess by system calls, then writes over all pages that CPL 3 can write or some of them, the
 * library OS's and its own included, fills every register that it can reach, and answers with a hostcall of its
 * own from there. SEED says what, how much, and with what.
 */
#include "guest.h"
#include "gates.h"

#include <cpuid.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>

#define CALL 0x11000UL
/* Where the call page is free: room for the list, which has to outlive everything else. */
#define LIST (CALL + 0xA00)
#define MOST_RANGES 94
#define PAGE 4096UL
#define USER 0x10000UL
/* Where the page tables can be read. */
#define ALIAS (15UL << 30)
/* A leaf table's entry of a page that is present and writable at CPL 3. */
#define WRITABLE 7UL
/* Which word of the boot page tells where the page tables are. */
#define TABLES_WORD 17
/* And which of the call page says whether the library OS wants to be interrupted. */
#define WANTS_TICKS_WORD (0x800 / 8 + 5)
#define LOG 0x20000UL
enum { RESPOND = 3, END = 1 };

/* Fixed part of a response's head: its size, no headers, a status. Read only, so it stays. */
static const unsigned char head[8] = {8, 0, 0, 0, 0, 0, 200, 0};
static const unsigned char word[8] = "written\n";

static uint64_t state;

static uint64_t number(uint64_t below) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state % below;
}

static void nothing(int signal) {
    (void)signal;
}

static void *spins(void *unused) {
    for (;;)
        sched_yield();
    return unused;
}

static void *waits(void *unused) {
    for (;;)
        pause();
    return unused;
}

/* One thing that changes what the library OS knows of the program. */
static void mess(void) {
    static unsigned char page[4096] __attribute__((aligned(4096)));
    char path[32];
    pthread_t thread;
    switch (number(12)) {
    case 0: {
        char *at = mmap(NULL, 4096 * (1 + number(64)), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (at != MAP_FAILED)
            at[0] = 1;
        break;
    }
    case 1: {
        char *at = mmap(NULL, 8 << 20, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (at != MAP_FAILED && mprotect(at, 1 << 20, PROT_READ | PROT_WRITE) == 0)
            at[number(1 << 20)] = 1;
        break;
    }
    case 2:
        mprotect(page, sizeof page, number(2) ? PROT_READ : PROT_NONE);
        break;
    case 3: {
        snprintf(path, sizeof path, "/tmp/%lu", (unsigned long)number(100));
        int fd = open(path, O_CREAT | O_RDWR, 0600);
        if (fd >= 0 && write(fd, path, sizeof path) < 0)
            perror("write");
        break;
    }
    case 4:
        socket(AF_INET, SOCK_STREAM, 0);
        break;
    case 5: {
        struct itimerval soon = {.it_value = {.tv_usec = 1000 + (long)number(100000)}};
        signal(SIGALRM, nothing);
        setitimer(ITIMER_REAL, &soon, NULL);
        break;
    }
    case 6: {
        sigset_t set;
        sigfillset(&set);
        sigprocmask(SIG_BLOCK, &set, NULL);
        raise(SIGUSR1 + (int)number(2));
        break;
    }
    case 7:
        pthread_create(&thread, NULL, number(2) ? spins : waits, NULL);
        break;
    case 8: {
        int epoll = epoll_create1(0), event = eventfd(1, EFD_NONBLOCK);
        struct epoll_event wanted = {.events = EPOLLIN | EPOLLET};
        epoll_ctl(epoll, EPOLL_CTL_ADD, event, &wanted);
        break;
    }
    case 9: {
        struct itimerspec soon = {.it_value = {.tv_nsec = 1000000}, .it_interval = {.tv_nsec = 1000000}};
        timerfd_settime(timerfd_create(CLOCK_MONOTONIC, 0), 0, &soon, NULL);
        break;
    }
    case 10: {
        stack_t stack = {.ss_sp = malloc(65536), .ss_size = 65536};
        sigaltstack(&stack, NULL);
        prctl(PR_SET_NAME, "messy");
        break;
    }
    default:
        umask((mode_t)number(0777));
        if (chdir("/tmp") != 0 || malloc(number(1 << 20)) == NULL)
            perror("guest");
    }
}

/* All that CPL 3 can write, but for the call page, by what the page tables say; more than fits is left out. */
static void list_writable(void) {
    const volatile uint64_t *boot = (const volatile uint64_t *)0x10000, *leaves = (const volatile uint64_t *)ALIAS;
    uint64_t *list = (uint64_t *)LIST, end = 0;
    size_t ranges = 0;
    /* Behind the leaf tables' own beginning everything is for the supervisor. */
    for (uint64_t at = USER; at < boot[TABLES_WORD]; at += PAGE) {
        if ((leaves[at / PAGE] & WRITABLE) != WRITABLE || at == CALL)
            continue;
        if (at != end && ranges == MOST_RANGES)
            break;
        if (at != end)
            /* Of the log's head the host believes what it says. */
            list[2 * ranges++] = at == LOG ? at + 64 : at;
        end = at + PAGE;
        list[2 * ranges - 1] = end;
    }
    list[2 * ranges] = list[2 * ranges + 1] = 0;
}

/* Never returns to anything: from here on only registers, code and constants are there. `stride` pages of each
   `stride + skip` are written. */
__attribute__((noreturn)) static void overwrite(uint64_t pattern, uint64_t skip, int wide) {
    volatile uint32_t *numbers = (volatile uint32_t *)CALL;
    volatile uint64_t *words = (volatile uint64_t *)CALL;
    numbers[0] = RESPOND;
    numbers[1] = END;
    words[1] = (uint64_t)(uintptr_t)head;
    words[2] = sizeof head;
    words[3] = (uint64_t)(uintptr_t)word;
    words[4] = sizeof word;
    words[5] = 0;
    /* No turn for another thread: there is no library OS any more that could give it. */
    words[WANTS_TICKS_WORD] = 0;
    /* The way out, kept on the call page too. */
    words[(LIST - 16 - CALL) / 8] = hostcall_gate();
    __asm__ volatile(
        "mov %[list], %%rbx\n"
        "cld\n"
        "1: mov (%%rbx), %%rdi\n\t"
        "mov 8(%%rbx), %%rdx\n\t"
        "test %%rdx, %%rdx\n\t"
        "jz 3f\n"
        "2: cmp %%rdx, %%rdi\n\t"
        "jae 4f\n\t"
        "mov %%rdi, %%rcx\n\t"
        "or $0xfff, %%rcx\n\t"
        "inc %%rcx\n\t"
        "sub %%rdi, %%rcx\n\t"
        "shr $3, %%rcx\n\t"
        "imul %[odd], %%rax\n\t"
        "inc %%rax\n\t"
        "rep stosq\n\t"
        "add %[skip], %%rdi\n\t"
        "jmp 2b\n"
        "4: add $16, %%rbx\n\t"
        "jmp 1b\n"
        /* Registers, the widest first. */
        "3: test %[wide], %[wide]\n\t"
        "jz 5f\n\t"
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n\t"
        "vmovq %%rax, %%xmm\\n\n\t"
        "vinserti128 $1, %%xmm\\n, %%ymm\\n, %%ymm\\n\n\t"
        ".endr\n"
        "cmp $2, %[wide]\n\t"
        "jne 5f\n\t"
        ".irp n,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n\t"
        "vpternlogd $0xff, %%zmm\\n, %%zmm\\n, %%zmm\\n\n\t"
        ".endr\n\t"
        ".irp n,0,1,2,3,4,5,6,7\n\t"
        "kxnorw %%k\\n, %%k\\n, %%k\\n\n\t"
        ".endr\n"
        "5:\n\t"
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n\t"
        "pcmpeqd %%xmm\\n, %%xmm\\n\n\t"
        ".endr\n\t"
        "fldpi\n\tfldl2e\n\tfldz\n\tfld1\n\t"
        "fldcw %[control]\n\t"
        "ldmxcsr %[mxcsr]\n\t"
        "mov $0x2b, %%ecx\n\t"
        "mov %%ecx, %%ds\n\tmov %%ecx, %%es\n\tmov %%ecx, %%fs\n\tmov %%ecx, %%gs\n\t"
        "mov $0x123456789000, %%rcx\n\t"
        "wrfsbase %%rcx\n\twrgsbase %%rcx\n\t"
        /* ID, AC, DF and the arithmetic ones. */
        "mov %[top], %%rsp\n\t"
        "pushq $0x240cd5\n\tpopfq\n\t"
        "mov %%rax, %%rbx\n\tmov %%rax, %%rcx\n\tmov %%rax, %%rdx\n\tmov %%rax, %%rsi\n\tmov %%rax, %%rdi\n\t"
        "mov %%rax, %%rbp\n\tmov %%rax, %%r8\n\tmov %%rax, %%r9\n\tmov %%rax, %%r10\n\tmov %%rax, %%r11\n\t"
        "mov %%rax, %%r12\n\tmov %%rax, %%r13\n\tmov %%rax, %%r14\n\tmov %%rax, %%r15\n\t"
        /* A canonical address. With another one PVM emulates a program that it has interrupted, and its emulator
           answers `int3` with an invalid opcode. */
        "mov %%eax, %%esp\n\t"
        "jmp *%c[way]"
        :
        : [list] "i"(LIST), [odd] "r"(0x5851f42d4c957f2dUL), "a"(pattern), [skip] "r"(skip * 4096),
          [wide] "r"(wide), [control] "m"(*(const uint16_t *)"\x7f\x0f"),
          [mxcsr] "m"(*(const uint32_t *)"\x80\x7f\0\0"), [top] "i"(LIST - 16), [way] "i"(LIST - 16)
        : "rbx", "rcx", "rdx", "rdi", "memory", "cc");
    __builtin_unreachable();
}

static void handle(const struct request *request) {
    state = number_after(request, "/", 1) * 2 + 1;
    for (uint64_t left = number(40); left > 0; left--)
        mess();
    list_writable();
    unsigned a, b, c, d;
    int wide = __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & bit_AVX2) ? b & bit_AVX512F ? 2 : 1 : 0;
    static const uint64_t skips[] = {0, 0, 1, 7, 63, 500};
    overwrite(number(~0UL), skips[number(6)], wide);
}

int main(void) {
    serve(handle);
}
