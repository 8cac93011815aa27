/*
 * `/scribble` changes all that a program can change: memory of every kind and registers of every kind.
 * `/read` answers what they hold. A machine that was reset answers what a new one does.
 */
#include "guest.h"
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

static unsigned char large[4 << 20];
static unsigned char data[8192] = {1, 2, 3};

struct registers {
    uint64_t flags, gs_base, xmm[32];
    uint32_t mxcsr;
    uint16_t x87_control, x87_status;
    uint64_t x87_top[2], ds, es, fs, gs;
};

__attribute__((noinline)) static void read_registers(struct registers *to) {
    __asm__ volatile("pushfq\n\tpopq %0" : "=r"(to->flags));
    __asm__ volatile("stmxcsr %0" : "=m"(to->mxcsr));
    __asm__ volatile("fnstcw %0" : "=m"(to->x87_control));
    __asm__ volatile("fnstsw %0" : "=m"(to->x87_status));
    __asm__ volatile("movdqu %%xmm8, (%0)\n\tmovdqu %%xmm9, 16(%0)\n\tmovdqu %%xmm14, 32(%0)\n\t"
                     "movdqu %%xmm15, 48(%0)"
                     :
                     : "r"(to->xmm)
                     : "memory");
    __asm__ volatile("mov %%ds, %0" : "=r"(to->ds));
    __asm__ volatile("mov %%es, %0" : "=r"(to->es));
    __asm__ volatile("mov %%fs, %0" : "=r"(to->fs));
    __asm__ volatile("mov %%gs, %0" : "=r"(to->gs));
    __asm__ volatile("rdgsbase %0" : "=r"(to->gs_base));
    /* The condition flags are whatever the last comparison left. */
    to->flags &= ~0x8D5UL;
}

static void scribble(void) {
    memset(large, 0xAB, sizeof large);
    memset(data, 0xCD, sizeof data);
    unsigned char *heap = malloc(1 << 20);
    memset(heap, 0xEF, 1 << 20);
    unsigned char deep[65536];
    memset(deep, 0x12, sizeof deep);
    __asm__ volatile("" : : "r"(deep), "r"(heap) : "memory");
    mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mprotect(data, 4096, PROT_READ | PROT_WRITE);
    socket(AF_INET, SOCK_STREAM, 0);
    __asm__ volatile("mov %0, %%ds\n\tmov %0, %%es\n\tmov %0, %%gs" : : "r"(0x2BL));
    __asm__ volatile("wrgsbase %0" : : "r"(0x123456789000));
    uint32_t mxcsr = 0x7F80;
    uint16_t control = 0x0F7F;
    __asm__ volatile("ldmxcsr %0" : : "m"(mxcsr));
    __asm__ volatile("fldpi\n\tfldl2e\n\tfldcw %0" : : "m"(control));
    __asm__ volatile("pcmpeqd %%xmm8, %%xmm8\n\tpcmpeqd %%xmm9, %%xmm9\n\tpcmpeqd %%xmm14, %%xmm14\n\t"
                     "pcmpeqd %%xmm15, %%xmm15"
                     :
                     :
                     : "xmm8", "xmm9", "xmm14", "xmm15");
    /* ID, the one flag that nothing else changes. */
    __asm__ volatile("pushfq\n\torq $0x200000, (%%rsp)\n\tpopfq" : : : "memory", "cc");
}

static unsigned long sum(const unsigned char *bytes, size_t count) {
    unsigned long total = 0;
    for (size_t i = 0; i < count; i++)
        total += bytes[i];
    return total;
}

static void handle(const struct request *request) {
    if (is_path(request, "/scribble")) {
        scribble();
        answer(request, "scribbled\n");
        return;
    }
    struct registers now;
    memset(&now, 0, sizeof now);
    read_registers(&now);
    int next_fd = socket(AF_INET, SOCK_STREAM, 0);
    close(next_fd);
    answer(request,
           "large %lu\ndata %lu\nbrk %p\nnext_fd %d\nflags %lx\nmxcsr %x\nx87 %x %x\ngs_base %lx\n"
           "segments %lx %lx %lx %lx\nxmm %lx %lx %lx %lx %lx %lx %lx %lx\n",
           sum(large, sizeof large), sum(data, sizeof data), (void *)syscall(SYS_brk, 0), next_fd,
           (unsigned long)now.flags, now.mxcsr, now.x87_control, now.x87_status,
           (unsigned long)now.gs_base, (unsigned long)now.ds, (unsigned long)now.es,
           (unsigned long)now.fs, (unsigned long)now.gs, (unsigned long)now.xmm[0],
           (unsigned long)now.xmm[1], (unsigned long)now.xmm[2], (unsigned long)now.xmm[3],
           (unsigned long)now.xmm[4], (unsigned long)now.xmm[5], (unsigned long)now.xmm[6],
           (unsigned long)now.xmm[7]);
}

int main(void) {
    serve(handle);
}
