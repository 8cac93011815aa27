/*
 * Memory: three windows, one of which was made writable, one only reserved, and one shows a file. Every call
 * is followed by what each page can be used for and what is in it. Left out: PROT_EXEC
 * alone, which some machines let nobody read; hints, which decide nothing; whether memory that was given back can still be touched: in
 * program memory it can; files in program memory; MADV_FREE, of which nobody promises what is left; and MADV_POPULATE, whose
 * errors Linux has changed.
 */
enum { WINDOW_PAGES = 24, WINDOWS = 3, SHARED = 2 };
static char *windows[WINDOWS];
/* Which pages are mapped, by what the calls have said, and which of them show the file. */
enum { MAPPED = 1, FILE_PAGE = 2 };
static char is_mapped[WINDOWS][WINDOW_PAGES];
static int file;

static void note(int which, char *at, size_t bytes, char mapped) {
    long first = (at - windows[which]) / PAGE;
    for (size_t page = 0; page < (bytes + PAGE - 1) / PAGE; page++)
        if (first + (long)page < WINDOW_PAGES)
            is_mapped[which][first + (long)page] = mapped;
}

static void memory_start(void) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS;
    size_t bytes = (WINDOW_PAGES + 2) * PAGE;
    windows[0] = mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
    windows[1] = mmap(NULL, bytes, PROT_NONE, flags | MAP_NORESERVE, -1, 0);
    file = (int)CALL(SYS_memfd_create, "window", 0);
    windows[2] = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    for (int i = 0; i < WINDOWS; i++) {
        if (windows[i] == MAP_FAILED)
            exit(72);
        /* A page on each side that stays as it is, so that nothing grows into it. */
        windows[i] += PAGE;
        memset(is_mapped[i], i == SHARED ? FILE_PAGE : MAPPED, WINDOW_PAGES);
    }
}

static void say_window(int which) {
    char *window = windows[which];
    say(" [");
    uint64_t hash = 0;
    for (int page = 0; page < WINDOW_PAGES; page++) {
        char *at = window + page * PAGE;
        if (!is_mapped[which][page]) {
            say(".");
            continue;
        }
        int readable = can_read(at);
        say("%c", readable ? can_write(at + PAGE - 8) ? 'w' : 'r' : '-');
        if (readable)
            hash = hash * 31 + hash_of(at, PAGE);
    }
    say("] %08x\n", (unsigned)(hash ^ hash >> 32));
}

/* To a certain place, or so that the old one stays. A page at a time: what is one mapping is Linux's own matter. */
static void moves(int which, char *at) {
    int target = (int)below(WINDOWS), page = (int)below(WINDOW_PAGES - 3);
    char what = MAPPED;
    if (at >= windows[which] && at < windows[which] + WINDOW_PAGES * PAGE)
        what = is_mapped[which][(at - windows[which]) / PAGE];
    /* The window in program memory takes nothing of a file. */
    if ((which == SHARED || what == FILE_PAGE) && target == 0)
        target = 1;
    char *to = windows[target] + page * PAGE, far[32] = "";
    int is_there = at >= windows[which] && ((at - windows[which]) % PAGE != 0 || is_mapped[which][(at - windows[which]) / PAGE]);
    size_t before = one_in(8) ? 0 : PAGE, after = before;
    int flags = (int)PICK(1 | 2, 1 | 2, 1 | 2 | 4, 2, 4, 1 | 4 | 8);
    if (!(flags & 4) && one_in(2))
        after = (1 + below(3)) * PAGE;
    /* Linux has looked at these before and after it looked for a mapping. */
    if (!is_there)
        to = windows[which == 1 ? 2 : 1], target = which == 1 ? 2 : 1;
    else if (one_in(12))
        to += 1 + below(PAGE - 1);
    else if (one_in(12)) {
        to = (char *)PICK(1L << 62, -PAGE);
        sprintf(far, " %p", (void *)to);
    }
    say("mremap(%d:%ld, %zu, %zu, %d, %d:%ld%s)", which, (long)(at - windows[which]), before, after, flags, target,
        far[0] != 0 ? 0 : (long)(to - windows[target]), far);
    long got = CALL(SYS_mremap, at, before, after, flags, to);
    if (got == (long)to && got > 0) {
        say(" = there");
        if (!(flags & 4) && before > 0)
            note(which, at, before, 0);
        note(target, to, after, what);
    } else
        recorded(got);
    say_window(target);
    say("%u ...", step);
}

static void memory_step(void) {
    int which = (int)below(WINDOWS);
    char *window = windows[which];
    int first = (int)below(WINDOW_PAGES), pages = (int)below(6) + 1;
    if (first + pages > WINDOW_PAGES)
        pages = WINDOW_PAGES - first;
    char *at = window + first * PAGE;
    size_t bytes = (size_t)pages * PAGE;
    if (one_in(8))
        bytes -= below(PAGE);
    if (one_in(12))
        at += 1 + below(PAGE - 1);
    if (one_in(16))
        bytes = 0;
    int is_huge = one_in(24);
    int prot = (int)PICK(0, 1, 3, 3, 3, 2, 5, 7);
    say("%u ", step);
#define AT which, (long)(at - window), bytes
    switch (below(14)) {
    case 0:
    case 1: {
        int flags = MAP_FIXED | MAP_ANONYMOUS | (int)PICK(MAP_PRIVATE, MAP_PRIVATE, MAP_PRIVATE, 0);
        if (one_in(4))
            flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;
        if (is_huge) {
            flags = MAP_PRIVATE | MAP_ANONYMOUS;
            bytes = (size_t)PICK(-1, -4096, 1L << 62, 1L << 47);
        }
        int from = -1;
        long page = 0;
        if (which == SHARED && !is_huge && one_in(2)) {
            flags = (flags & ~(MAP_PRIVATE | MAP_ANONYMOUS)) | MAP_SHARED;
            from = file, page = (long)below(20);
        }
        say("mmap(%d:%#lx, %zu, %d, %#x, %ld)", AT, prot, flags, page);
        long got = CALL(SYS_mmap, at, bytes, prot, flags, from, page * PAGE);
        if (got > 0 && got == (long)at)
            say(" = there"), note(which, at, bytes, from >= 0 ? FILE_PAGE : MAPPED);
        else
            recorded(got);
        break;
    }
    case 2:
    case 3:
        say("munmap(%d:%#lx, %zu)", AT);
        if (recorded(CALL(SYS_munmap, at, bytes)) == 0)
            note(which, at, bytes, 0);
        break;
    case 4:
    case 5:
        say("mprotect(%d:%#lx, %zu, %d)", AT, prot);
        recorded(CALL(SYS_mprotect, at, bytes, prot));
        break;
    case 6: {
        int advice = (int)PICK(MADV_DONTNEED, MADV_DONTNEED, MADV_NORMAL, MADV_WILLNEED, MADV_RANDOM, 77, MADV_SEQUENTIAL,
                               MADV_DONTFORK, MADV_DOFORK, MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_DONTDUMP, MADV_DODUMP,
                               20 /* COLD */, 21 /* PAGEOUT */,
                               24 /* DONTNEED_LOCKED */, 5, 26, -1);
        say("madvise(%d:%#lx, %zu, %d)", AT, advice);
        recorded(CALL(SYS_madvise, at, bytes, advice));
        break;
    }
    case 7: {
        int flags = (int)PICK(MS_SYNC, MS_ASYNC, 0, MS_SYNC | MS_ASYNC, 64, MS_INVALIDATE);
        say("msync(%d:%#lx, %zu, %d)", AT, flags);
        recorded(CALL(SYS_msync, at, bytes, flags));
        break;
    }
    case 8: {
        /* One that is only partly good is noticed earlier or later. */
        struct pointer to = pointers[one_in(4) ? 6 : 0];
        say("mincore(%d:%#lx, %zu, %s)", AT, to.name);
        recorded(CALL(SYS_mincore, at, bytes, to.at));
        break;
    }
    case 9: {
        size_t after = below(8) * PAGE;
        int flags = (int)PICK(0, MREMAP_MAYMOVE, MREMAP_MAYMOVE, 8);
        /* Linux moves one mapping at a time, and what is one mapping is its own matter. */
        if (bytes == 0 || after > bytes)
            bytes = PAGE;
        say("mremap(%d:%#lx, %zu, %zu, %d)", AT, after, flags);
        long got = CALL(SYS_mremap, at, bytes, after, flags);
        if (got == (long)at) {
            say(" = there");
            size_t before = (bytes + PAGE - 1) / PAGE * PAGE;
            if (after < before)
                note(which, at + after, before - after, 0);
            else if (after > before)
                note(which, at + before, after - before, is_mapped[which][(at - window) / PAGE]);
        } else if (got < 0 && got > -4096) {
            recorded(got);
        } else {
            say(" = elsewhere");
            note(which, at, bytes, 0);
            if (can_read((void *)got))
                say_hash((void *)got, bytes < after ? bytes : after);
            CALL(SYS_munmap, got, after);
        }
        break;
    }
    case 11:
        moves(which, at);
        break;
    case 12: {
        long size = (long)below(WINDOW_PAGES) * PAGE;
        say("ftruncate(%ld)", size);
        recorded(CALL(SYS_ftruncate, file, size));
        break;
    }
    case 13: {
        /* Whole pages, so that nothing lies between the file's end and a page's. */
        long page = (long)below(WINDOW_PAGES);
        fill((char)draw());
        say("pwrite(%ld)", page);
        recorded(CALL(SYS_pwrite64, file, ground, 2 * PAGE, page * PAGE));
        break;
    }
    default: {
        say("fill(%d)", which);
        char mark = (char)draw();
        for (int page = 0; page < WINDOW_PAGES; page++)
            if (is_mapped[which][page] && can_write(window + page * PAGE))
                memset(window + page * PAGE, mark + page, PAGE);
        break;
    }
    }
#undef AT
    say_window(which);
}
