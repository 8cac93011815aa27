/*
 * Makes code and runs it: in memory that is made executable after it was written (`/protected`), in memory that is
 * to be both, mapped alone, in a large mapping and with the heap (`/both`, `/heap`), over code of the program's own
 * (`/patched`), in a file that is mapped twice (`/file`), in memory that was given back in between (`/given_back`), and
 * from several threads, one of which writes (`/threads`). Answers "fine" or what was not. On `/own_page` code writes
 * to the page that it is in.
 */
#include "guest.h"
#include <pthread.h>
#include <sys/mman.h>
#include <sys/syscall.h>

enum { PAGE = 4096, ALL = PROT_READ | PROT_WRITE | PROT_EXEC };
typedef int (*function)(void);

static const char *problem;

static void expect(int good, const char *what) {
    if (!good && problem == NULL)
        problem = what;
}

/* mov eax, NUMBER; ret */
static void write_code(void *to, int number) {
    unsigned char code[] = {0xB8, 0, 0, 0, 0, 0xC3};
    memcpy(code + 1, &number, sizeof number);
    memcpy(to, code, sizeof code);
}

static int run(const void *code) {
    return ((function)(uintptr_t)code)();
}

static void *map(size_t bytes, int prot, int flags) {
    void *memory = mmap(NULL, bytes, prot, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
    expect(memory != MAP_FAILED, "mmap");
    return memory;
}

static void protected(size_t bytes) {
    char *code = map(bytes, PROT_READ | PROT_WRITE, 0);
    for (int turn = 1; turn < 4; turn++) {
        write_code(code, turn);
        write_code(code + bytes - 16, turn * 100);
        expect(mprotect(code, bytes, PROT_READ | PROT_EXEC) == 0, "made executable");
        expect(run(code) == turn && run(code + bytes - 16) == turn * 100, "made executable, it ran");
        expect(mprotect(code, bytes, PROT_READ | PROT_WRITE) == 0, "made writable");
    }
    munmap(code, bytes);
}

static void both(char *code, size_t bytes) {
    for (int turn = 1; turn < 4; turn++) {
        write_code(code, turn);
        write_code(code + bytes - 16, turn * 100);
        expect(run(code) == turn && run(code + bytes - 16) == turn * 100, "what was to be both ran");
        /* The library OS writes there too. */
        int ends[2];
        unsigned char again[6];
        write_code(again, turn * 7);
        expect(pipe(ends) == 0 && write(ends[1], again, 6) == 6 && read(ends[0], code, 6) == 6, "read into code");
        expect(run(code) == turn * 7, "what was read ran");
        close(ends[0]);
        close(ends[1]);
    }
}

__attribute__((noinline, aligned(PAGE))) static int patched(void) {
    __asm__ volatile("");
    return 7;
}

/* Lies in a page of its own. */
__attribute__((noinline, aligned(PAGE))) static int after_it(void) {
    return 8;
}

static void patch(void) {
    void *page = (void *)(uintptr_t)patched;
    volatile function call = patched;
    expect(call() == 7 && after_it() == 8, "before it is patched");
    expect(mprotect(page, PAGE, ALL) == 0, "code made writable");
    write_code(page, 9);
    expect(call() == 9, "the patch");
    expect(mprotect(page, PAGE, PROT_READ | PROT_EXEC) == 0, "and executable again");
    expect(call() == 9, "the patch stays");
}

static void file(void) {
    int memory = (int)syscall(SYS_memfd_create, "code", 0);
    expect(ftruncate(memory, PAGE) == 0, "ftruncate");
    char *writable = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
    char *code = mmap(NULL, PAGE, PROT_READ | PROT_EXEC, MAP_SHARED, memory, 0);
    expect(writable != MAP_FAILED && code != MAP_FAILED && writable != code, "mmap of a file");
    for (int turn = 1; turn < 4 && problem == NULL; turn++) {
        write_code(writable, turn);
        expect(run(code) == turn, "what was written elsewhere ran");
    }
    munmap(writable, PAGE);
    munmap(code, PAGE);
    close(memory);
}

/* Musl's own functions for it do nothing. */
static int set_heap_end(char *to) {
    return (char *)syscall(SYS_brk, to) == to;
}

static void given_back(void) {
    for (int turn = 1; turn < 4 && problem == NULL; turn++) {
        for (size_t bytes = PAGE; bytes <= 8UL << 20; bytes <<= 11) {
            char *code = map(bytes, ALL, 0);
            write_code(code, turn);
            expect(run(code) == turn, "it ran");
            if (turn == 1)
                expect(madvise(code, bytes, MADV_DONTNEED) == 0 && code[0] == 0, "advised away");
            char *moved = mremap(code, bytes, bytes * 2, MREMAP_MAYMOVE);
            expect(moved != MAP_FAILED, "mremap");
            write_code(moved + bytes, turn);
            expect(run(moved + bytes) == turn, "it ran where it was moved");
            munmap(moved, bytes * 2);
            char *data = map(bytes, PROT_READ | PROT_WRITE, 0);
            for (size_t i = 0; i < bytes; i++)
                if (data[i] != 0)
                    problem = "new memory is not zero";
            memset(data, 1, bytes);
            munmap(data, bytes);
        }
        /* The heap shrinks over what could not be written to. */
        char *heap = (char *)syscall(SYS_brk, 0L), *page = (char *)(((uintptr_t)heap + PAGE - 1) / PAGE * PAGE);
        expect(set_heap_end(page + 2 * PAGE), "brk");
        expect(mprotect(page, PAGE, turn == 1 ? ALL : turn == 2 ? PROT_READ : PROT_NONE) == 0, "the heap protected");
        if (turn == 1)
            write_code(page, 5), expect(run(page) == 5, "it ran on the heap");
        expect(set_heap_end(page) && set_heap_end(page + 2 * PAGE) && page[0] == 0, "the heap shrinks and grows");
        memset(page, 1, 2 * PAGE);
        expect(set_heap_end(heap), "brk");
    }
}

static char *shared;
static volatile int stop;

static void *runs(void *argument) {
    while (!stop)
        if (run(shared + PAGE) != 77)
            problem = "another thread's code";
    return argument;
}

static void threads(void) {
    pthread_t others[3];
    shared = map(2 * PAGE, ALL, 0);
    write_code(shared + PAGE, 77);
    stop = 0;
    for (int i = 0; i < 3; i++)
        expect(pthread_create(&others[i], NULL, runs, NULL) == 0, "pthread_create");
    for (int turn = 0; turn < 200 && problem == NULL; turn++) {
        write_code(shared, turn);
        expect(run(shared) == turn, "one thread's code");
        /* In the page that the others are in. */
        write_code(shared + PAGE + 64, turn);
        expect(run(shared + PAGE + 64) == turn, "code beside the others'");
    }
    stop = 1;
    for (int i = 0; i < 3; i++)
        pthread_join(others[i], NULL);
    munmap(shared, 2 * PAGE);
}

static void handle(const struct request *request) {
    problem = NULL;
    if (is_path(request, "/protected")) {
        protected(PAGE);
        protected(8UL << 20);
    } else if (is_path(request, "/both")) {
        both(map(PAGE, ALL, 0), PAGE);
        both(map(8UL << 20, ALL, 0), 8UL << 20);
        both(map(8UL << 20, ALL, MAP_NORESERVE), 8UL << 20);
    } else if (is_path(request, "/heap")) {
        char *code = aligned_alloc(PAGE, 2 * PAGE);
        expect(mprotect(code, 2 * PAGE, ALL) == 0, "the heap made executable");
        both(code, 2 * PAGE);
        expect(mprotect(code, 2 * PAGE, PROT_READ | PROT_WRITE) == 0, "the heap made as before");
        free(code);
    } else if (is_path(request, "/patched")) {
        patch();
    } else if (is_path(request, "/file")) {
        file();
    } else if (is_path(request, "/given_back")) {
        given_back();
    } else if (is_path(request, "/threads")) {
        threads();
    } else {
        /* mov byte [rip], 0; ret */
        unsigned char code[] = {0xC6, 0x05, 0, 0, 0, 0, 0, 0xC3};
        void *memory = map(PAGE, ALL, 0);
        memcpy(memory, code, sizeof code);
        run(memory);
    }
    answer(request, "%s\n", problem == NULL ? "fine" : problem);
}

int main(void) {
    serve(handle);
}
