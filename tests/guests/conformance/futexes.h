/* Futexes on one thread: what answers at once. */
#include <time.h>

static uint32_t words[3];

static void futexes_start(void) {}

static void futexes_step(void) {
    struct pointer at = any_pointer();
    uint32_t *word = &words[below(3)], *other = &words[below(3)];
    *word = (uint32_t)below(2);
    uint32_t value = (uint32_t)below(2);
    void *where = word;
    const char *name = "word";
    int private = (int)PICK(0, 128);
    if (one_in(5)) {
        /* A shared futex is looked for in the page tables, a private one is not. */
        private = 128;
        where = at.at;
        name = at.name;
        memset(ground, 0, 16);
    }
    struct timespec soon = {PICK(0, 0, 0, -1), PICK(0, 1000, 100000, 1000000000, -1)};
    say("%u ", step);
    switch (below(9)) {
    case 0:
    case 1: {
        say("wait(%s, %u of %u, %ld.%ld, %d)", name, value, *word, soon.tv_sec, soon.tv_nsec, private);
        recorded(CALL(SYS_futex, where, 0 | private, value, &soon));
        break;
    }
    case 2: {
        uint32_t bits = (uint32_t)PICK(0, 1, -1);
        int clock = (int)PICK(0, 256);
        say("wait_bitset(%s, %u of %u, %ld.%ld, %d, %#x)", name, value, *word, soon.tv_sec, soon.tv_nsec, private | clock, bits);
        recorded(CALL(SYS_futex, where, 9 | private | clock, value, &soon, 0, bits));
        break;
    }
    case 3:
        say("wake(%s)", name);
        recorded(CALL(SYS_futex, where, 1 | private, PICK(0, 1, 0x7fffffff)));
        break;
    case 4: {
        uint32_t bits = (uint32_t)PICK(0, 1, -1);
        say("wake_bitset(%s, %#x)", name, bits);
        recorded(CALL(SYS_futex, where, 10 | private, 1, NULL, 0, bits));
        break;
    }
    case 5: {
        int64_t wakes = PICK(0, 1, -1), moves = PICK(0, 1, -1);
        say("requeue(%s, %ld, %ld)", name, (long)wakes, (long)moves);
        recorded(CALL(SYS_futex, where, 3 | private, wakes, moves, other));
        break;
    }
    case 6: {
        say("cmp_requeue(%s, %u of %u)", name, value, *word);
        recorded(CALL(SYS_futex, where, 4 | private, PICK(0, 1), PICK(0, 1), other, value));
        break;
    }
    case 7: {
        /* FUTEX_WAKE_OP: set, add, or with the old value compared. */
        uint32_t operation = (uint32_t)(PICK(0, 1, 2, 3, 4, 5) << 28 | PICK(0, 1, 2, 3, 4, 5, 6) << 24 | PICK(0, 1, 5) << 12 | PICK(0, 1));
        *other = 1;
        say("wake_op(%s, %#x)", name, operation);
        recorded(CALL(SYS_futex, where, 5 | private, 1, 1, other, operation));
        say(" %u", *other);
        break;
    }
    default: {
        /* FUTEX_LOCK_PI, UNLOCK_PI, TRYLOCK_PI on one that is free or this thread's. */
        int operation = (int)PICK(6, 7, 8);
        static uint32_t lock;
        uint32_t self = (uint32_t)CALL(SYS_gettid);
        say("pi %d", operation);
        recorded(CALL(SYS_futex, one_in(8) ? NULL : &lock, operation | private, 0, NULL));
        say(" %s", lock == 0 ? "free" : (lock & 0x3fffffff) == self ? "own" : "other");
        break;
    }
    }
    say("\n");
}
