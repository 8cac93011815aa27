/* System calls in the forms that the host makes jumps of, reached by their beginning, by a jump to the call
 * and by a jump behind it. Answers what each came to. */
#include "guest.h"
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>

/* In all of these the result and what the processor keeps of rcx, the red zone and rsp are as after any
 * `syscall`. */
__asm__(".text\n"
        /* A number right before the call; `at_call` is jumped to with another one. */
        "number_before: mov $39, %eax\n"
        "at_call: syscall\n"
        "  ret\n"
        /* A comparison right behind; `at_compare` is jumped to with a result of one's own. */
        "compare_behind: mov %rdi, %rax\n"
        "  mov %rsi, %rdi\n"
        "  syscall\n"
        "at_compare: cmp $0xfffffffffffff001, %rax\n"
        "  jae 1f\n"
        "  ret\n"
        "1: mov $-1000, %rax\n"
        "  ret\n"
        "compare_behind_3: mov %rdi, %rax\n"
        "  mov %rsi, %rdi\n"
        "  mov %rdx, %rsi\n"
        "  mov %rcx, %rdx\n"
        "  syscall\n"
        "  cmp $0xfffffffffffff000, %rax\n"
        "  ret\n"
        "jump_to_call: mov %rdi, %rax\n"
        "  jmp at_call\n"
        "jump_to_compare: mov %rdi, %rax\n"
        "  jmp at_compare\n"
        /* The red zone over a call. */
        "red_zone: mov %rdi, -8(%rsp)\n"
        "  mov %rdi, -128(%rsp)\n"
        "  mov $39, %eax\n"
        "  syscall\n"
        "  mov -8(%rsp), %rax\n"
        "  add -128(%rsp), %rax\n"
        "  ret\n"
        /* Arguments between the number and the call; `at_argument` is jumped to with another number. */
        "with_arguments: mov $3, %eax\n"
        "at_argument: mov %rsi, %rdi\n"
        "  xor %edx, %edx\n"
        "  mov $5, %r10d\n"
        "  syscall\n"
        "  ret\n"
        "jump_to_argument: mov %rdi, %rax\n"
        "  jmp at_argument\n"
        /* One of them on a stack that is yet to be backed. */
        "argument_on: mov %rsp, %rdx\n"
        "  mov %rdi, %rsp\n"
        "on_stack: mov $39, %eax\n"
        "  mov 16(%rsp), %rdi\n"
        "  syscall\n"
        "  mov %rdx, %rsp\n"
        "  add %rdi, %rax\n"
        "  ret\n"
        /* A number that is zero, read: its argument gives way as well. */
        "zero: mov %rdi, %r9\n"
        "  mov %rsi, %rdi\n"
        "  mov $1, %edx\n"
        "zero_site: xor %eax, %eax\n"
        "at_zero: mov %r9, %rsi\n"
        "  syscall\n"
        "  ret\n"
        "jump_to_zero: mov %rdi, %rax\n"
        "  mov $1234, %r9\n"
        "  call at_zero\n"
        "  lea (%rsi, %rax), %rax\n"
        "  ret\n"
        /* As musl has it, with what is a call there. */
        "result_moved: mov %rdi, %rax\n"
        "  mov %rsi, %rdi\n"
        "  mov %rdi, %rsi\n"
        "moved_site: syscall\n"
        "at_moved: mov %rax, %rdi\n"
        "  call 1f\n"
        "  ret\n"
        "1: mov %rdi, %rax\n"
        "  ret\n"
        "jump_to_moved: mov %rdi, %rax\n"
        "  jmp at_moved\n");
extern const unsigned char with_arguments_site[] __asm__("with_arguments"), on_stack[], zero_site[], moved_site[];
long with_arguments(long ignored, long argument), jump_to_argument(long number, long argument),
    argument_on(void *stack), zero(void *byte, long file), jump_to_zero(long number), result_moved(long number, long argument), jump_to_moved(long result);
long number_before(void), compare_behind(long number, long argument), jump_to_call(long number),
    compare_behind_3(long number, long a, void *b, long c), jump_to_compare(long result),
    red_zone(long value);

static volatile int alarms, full;

static void on_alarm(int signal) {
    (void)signal;
    alarms++;
    if (write(full, "x", 1) != 1)
        abort();
}

static void handle(const struct request *request) {
    long id = syscall(SYS_getpid);
    int right = 0;
    right |= (number_before() == id) << 0;
    right |= (jump_to_call(SYS_getppid) == syscall(SYS_getppid)) << 1;
    right |= (compare_behind(SYS_getpid, 0) == id) << 2;
    right |= (compare_behind(SYS_close, 999) == -1000) << 3;
    right |= (jump_to_compare(5) == 5) << 4;
    right |= (jump_to_compare(-5) == -1000) << 5;
    right |= (red_zone(21) == 42) << 6;
    /* A call that a signal interrupts is made again from where it is now; `signals` tests more of it. */
    int ends[2];
    struct sigaction action = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
    struct itimerval soon = {.it_value = {.tv_usec = 10000}};
    if (pipe(ends) == 0 && (full = ends[1]) >= 0 && sigaction(SIGALRM, &action, NULL) == 0 &&
        setitimer(ITIMER_REAL, &soon, NULL) == 0) {
        char byte = 0;
        long bytes = compare_behind_3(SYS_read, ends[0], &byte, 1);
        right |= (bytes == 1 && byte == 'x' && alarms == 1) << 7;
    }
    right |= (with_arguments(0, 999) == -EBADF) << 8;
    right |= (jump_to_argument(SYS_getppid, 0) == syscall(SYS_getppid)) << 9;
    /* So large that its pages are backed when they are touched. */
    char *stack = mmap(NULL, 64 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    right |= (stack != MAP_FAILED && argument_on(stack + (32 << 20)) == id) << 10;
    right |= (result_moved(SYS_close, 999) == -EBADF) << 11;
    right |= (jump_to_moved(77) == 77) << 12;
    right |= (with_arguments_site[0] == 0xe9 && on_stack[0] == 0xe9 && moved_site[0] == 0xe9) << 13;
    char byte = 0;
    right |= (pipe(ends) == 0 && write(ends[1], "z", 1) == 1 && zero(&byte, ends[0]) == 1 && byte == 'z') << 14;
    right |= (jump_to_zero(SYS_getpid) == id + 1234) << 15;
    right |= (zero_site[0] == 0xe9) << 16;
    answer(request, "%#x\n", right);
}

int main(void) {
    serve(handle);
}
