/* Calls the stub's page gate as only the library OS should, with everything that it must refuse and much at
   random (`/SEED`), and looks through all page tables afterwards: nothing may lead to what is not the
   program's, and nothing be writable and executable. Answers "fine" with the numbers, or what was wrong. */
#include "guest.h"
#include "gates.h"

#include <sys/mman.h>

#define ALIAS (15UL << 30)
#define PAGE 4096UL
#define ADDRESS 0x000ffffffffff000UL
#define NX (1UL << 63)
enum { CLOSE, READ, WRITE, EXECUTE, SPARSE, UNMAP = 8, MAP, LINK_DIRECTORY, LINK_TABLE, OPERATIONS };

static const volatile struct {
    uint32_t abi, flags;
    uint64_t generation, seed[4], realtime, monotonic, tsc, tick, memory_bytes, brk, entry, stack, stack_start;
    uint32_t port, reserved;
    uint64_t program, tables, pointers, directories, sparse, sparse_count, files, files_bytes;
} *boot = (void *)0x10000;

static uintptr_t gate;

static long call(uint64_t slot, uint64_t second, uint64_t operation, uint64_t count) {
    long result;
    __asm__ volatile("call *%5"
                     : "=a"(result), "+D"(slot), "+S"(second), "+d"(operation), "+c"(count)
                     : "r"(gate)
                     : "memory", "cc");
    return result;
}

static uint64_t entry_at(uint64_t slot) {
    return *(const volatile uint64_t *)(ALIAS + (slot - boot->tables));
}

static uint64_t slot_of(uint64_t addr) {
    return boot->tables + addr / PAGE * 8;
}

/* The slot of the first address of the sparse space. */
#define FIRST_POINTER (boot->pointers + 16 * 8)
static uint64_t pointers[16];
static const char *problem;
static uint64_t accepted, refused, before[1 << 14];

static void expect(int good, const char *what, uint64_t where) {
    static char text[160];
    if (!good && problem == NULL) {
        snprintf(text, sizeof text, "%s at %#lx\n", what, (unsigned long)where);
        problem = text;
    }
}

static void must_refuse(const char *what, uint64_t slot, uint64_t second, uint64_t operation, uint64_t count) {
    expect(call(slot, second, operation, count) == -1, what, slot);
}

/* All that a page table may say after whatever was asked for. */
static void look_through(void) {
    uint64_t program_end = boot->program + boot->memory_bytes, sparse_end = boot->sparse + boot->sparse_count * PAGE;
    uint64_t pages = sparse_end / PAGE, kept = 0;
    for (uint64_t page = 0; page < pages; page++) {
        uint64_t entry = entry_at(boot->tables + page * 8), addr = page * PAGE;
        if (addr >= boot->program && addr < program_end) {
            expect((entry & ADDRESS) == addr, "a page of the program is another", addr);
            expect((entry & 7) != 7 || (entry & NX), "writable and executable", addr);
        } else if (kept < sizeof before / sizeof *before) {
            expect(before[kept] == 0 || before[kept] == entry + 1, "an entry of the host's has changed", addr);
            before[kept++] = entry + 1;
        }
    }
    for (uint64_t slot = boot->sparse; slot < sparse_end; slot += 8) {
        uint64_t entry = entry_at(slot), addr = entry & ADDRESS;
        if (entry == 0)
            continue;
        expect(addr >= boot->program && addr < program_end, "a sparse entry leads out of the program", slot);
        expect((entry & 7) != 7 || (entry & NX), "a sparse entry is writable and executable", slot);
    }
    for (uint64_t slot = boot->directories; slot < boot->sparse; slot += 8) {
        uint64_t entry = entry_at(slot), table = entry & ADDRESS;
        expect(entry == 0 || (table >= boot->sparse && table < sparse_end), "a directory leads elsewhere", slot);
    }
    /* The first ones are of the identity mapping, of the alias and of nothing. */
    for (uint64_t slot = boot->pointers; slot < boot->directories; slot += 8) {
        uint64_t entry = entry_at(slot), directory = entry & ADDRESS;
        if (slot < FIRST_POINTER)
            expect(entry == (pointers[(slot - boot->pointers) / 8]), "a pointer of the host's has changed", slot);
        else
            expect(entry == 0 || (directory >= boot->directories && directory < boot->sparse),
                   "a pointer leads elsewhere", slot);
    }
}

static void refusals(void) {
    uint64_t program = slot_of(boot->program), end = slot_of(boot->program + boot->memory_bytes);
    uint64_t sparse_end = boot->sparse + boot->sparse_count * PAGE, last = sparse_end - 8;
    const uint64_t forbidden[] = {0,          slot_of(0x1000),      slot_of(0x3000), slot_of(0x8000), slot_of(0x10000),
                                  slot_of(KERNEL), program - 8,     end,             slot_of(boot->tables),
                                  boot->pointers,  FIRST_POINTER - 8, sparse_end,    ALIAS,
                                  (uint64_t)-8,    1UL << 63};
    const uint64_t sources[] = {0, 0, 0, 0, 0, 0, 0, 0, 0, program, boot->directories, boot->sparse, program};
    for (size_t i = 0; i < sizeof forbidden / sizeof *forbidden; i++) {
        for (uint64_t operation = 0; operation <= OPERATIONS; operation++)
            must_refuse("a forbidden slot", forbidden[i], sources[operation], operation, 1);
        must_refuse("a forbidden source", last, forbidden[i], MAP, 1);
        must_refuse("a forbidden directory", FIRST_POINTER, forbidden[i], LINK_DIRECTORY, 1);
        must_refuse("a forbidden table", boot->directories, forbidden[i], LINK_TABLE, 1);
    }
    for (uint64_t operation = 0; operation <= OPERATIONS; operation++)
        for (int off = 1; off < 8; off++)
            must_refuse("an unaligned slot", last - 64 + (uint64_t)off, sources[operation], operation, 1);
    must_refuse("an unaligned source", last, program + 4, MAP, 1);
    must_refuse("an unaligned directory", FIRST_POINTER, boot->directories + 8, LINK_DIRECTORY, 1);
    must_refuse("an unaligned table", boot->directories, boot->sparse + 8, LINK_TABLE, 1);
    /* One level for another, and what is right behind the last of each. */
    must_refuse("a table for a directory", FIRST_POINTER, boot->sparse, LINK_DIRECTORY, 1);
    must_refuse("a directory for a table", boot->directories, boot->directories, LINK_TABLE, 1);
    must_refuse("a page for a table", boot->directories, boot->program, LINK_TABLE, 1);
    must_refuse("a pointer to a table", FIRST_POINTER, boot->sparse, LINK_TABLE, 1);
    must_refuse("a directory as pointers", boot->directories, boot->directories, LINK_DIRECTORY, 1);
    must_refuse("a table as a directory", boot->sparse, boot->sparse, LINK_TABLE, 1);
    for (uint64_t count = 0; count < 3; count++) {
        must_refuse("a directory behind the last", FIRST_POINTER, boot->sparse, LINK_DIRECTORY, count);
        must_refuse("a table behind the last", boot->directories, sparse_end, LINK_TABLE, count);
    }
    must_refuse("a mapping of pointers", FIRST_POINTER, program, MAP, 1);
    must_refuse("a mapping in a directory", boot->directories, program, MAP, 1);
    must_refuse("pointers of the host's taken away", FIRST_POINTER - 8, 0, UNMAP, 2);
    for (uint64_t operation = SPARSE; operation < UNMAP; operation++) {
        must_refuse("a directory's protection", boot->directories, 0, operation, 1);
        must_refuse("a program's slot for the sparse space", program, 0, operation, 1);
        must_refuse("a sparse slot for the program", last, 0, operation - SPARSE, 1);
    }
    const uint64_t counts[] = {2, 1UL << 32, 1UL << 60, 1UL << 61, (1UL << 61) + 1, ~0UL};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        must_refuse("a count beyond the end", end - 8, 0, WRITE, counts[i]);
        must_refuse("a count beyond the end", last, 0, SPARSE + WRITE, counts[i]);
        must_refuse("a count beyond the end", last, program, MAP, counts[i]);
        must_refuse("a count beyond the end", last, 0, UNMAP, counts[i]);
        must_refuse("a source's count beyond the end", boot->sparse, end - 8, MAP, counts[i]);
    }
    must_refuse("a program's slot for a map", program, program, MAP, 1);
    must_refuse("a program's slot for an unmap", program, 0, UNMAP, 1);
    must_refuse("a slot that leads nowhere", last, 0, SPARSE + WRITE, 1);
    for (uint64_t operation = OPERATIONS; operation != 0; operation <<= 1)
        must_refuse("an operation that is none", last, program, operation, 1);
    /* With a slot that each of them could change, and numbers that are one of them but for the upper half. */
    const uint64_t slots[] = {program, program, program, program, last,          last,
                              last,    last,    last,    last,    FIRST_POINTER, boot->directories};
    for (uint64_t high = 1UL << 32; high != 0; high <<= 1)
        for (uint64_t operation = 0; operation < OPERATIONS; operation++)
            must_refuse("an operation with more to it", slots[operation], sources[operation], high | operation, 1);
    /* A copy of code that is made writable is code no more. */
    expect(call(last, slot_of((uint64_t)&refusals), MAP, 1) == 0, "a copy", last);
    expect(call(last, 0, SPARSE + WRITE, 1) == 0 && (entry_at(last) & NX), "a copy of code made writable", last);
    expect(call(last, 0, SPARSE + EXECUTE, 1) == 0 && !(entry_at(last) & 2), "a copy made code", last);
    expect(call(last, 0, UNMAP, 1) == 0 && entry_at(last) == 0, "a copy taken away", last);
}

static uint64_t state;

static uint64_t any(uint64_t below) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state % below;
}

static void at_random(char *scratch) {
    uint64_t sparse_end = boot->sparse + boot->sparse_count * PAGE;
    for (int i = 0; i < 3000 && problem == NULL; i++) {
        /* Tables that nothing is linked to yet, pages that nobody uses, and anything at all beyond. */
        uint64_t slots[] = {sparse_end - 8 - any(4 * PAGE),    slot_of((uint64_t)scratch) + 8 * any(48),
                            boot->directories + 8 * any(4096), any(boot->tables),
                            sparse_end + any(1UL << 30),       any(~0UL) | 1UL << 62,
                            boot->sparse - 8 - any(4 * PAGE),  FIRST_POINTER + 8 * (4096 + any(4096))};
        uint64_t slot = slots[any(8)], second = slots[any(8)], operation = any(14), count = any(4) ? any(16) : any(~0UL);
        if (any(4))
            slot &= ~7UL;
        /* A count may reach from the unused pointers to tables in use: not that of these. */
        if (operation == UNMAP && slot < sparse_end - 5 * PAGE)
            count = any(4);
        if (operation == LINK_TABLE && any(2))
            second = (sparse_end - PAGE * (1 + any(4)));
        if (operation == LINK_DIRECTORY && any(2))
            second = (boot->sparse - PAGE * (1 + any(4)));
        if (operation == MAP && any(2))
            second = slot_of((uint64_t)scratch) + 8 * any(48);
        if (call(slot, second, operation, count) == 0)
            accepted++;
        else
            refused++;
    }
}

static void handle(const struct request *request) {
    gate = page_gate();
    char *scratch = mmap(NULL, 64 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    problem = NULL;
    accepted = refused = 0;
    state = strtoul(request->path + 1, NULL, 10) * 0x9E3779B97F4A7C15 | 1;
    for (size_t i = 0; i < sizeof pointers / sizeof *pointers; i++)
        pointers[i] = entry_at(boot->pointers + i * 8);
    if (problem == NULL) {
        look_through();
        refusals();
        at_random(scratch);
        look_through();
    }
    if (problem != NULL)
        answer(request, "%s", problem);
    else
        answer(request, "fine %lu %lu\n", (unsigned long)accepted, (unsigned long)refused);
}

int main(void) {
    serve(handle);
}
