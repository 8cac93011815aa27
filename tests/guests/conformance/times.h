/* Clocks and sleeps: whether they are there and go forward, never what they show. */
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/times.h>
#include <time.h>

static void times_start(void) {}

static void times_step(void) {
    struct pointer at = any_pointer();
    int64_t clock = PICK(0, 1, 2, 3, 4, 5, 6, 7, 11, 10, 16, 99, -1);
    struct timespec time = {PICK(0, 0, 0, -1), PICK(0, 1, 1000, 999999, 1000000000, -1)}, rest = {1, 1};
    say("%u ", step);
    switch (below(11)) {
    case 0:
    case 1:
        say("clock_gettime(%ld, %s)", (long)clock, at.name);
        recorded(CALL(SYS_clock_gettime, clock, at.at));
        break;
    case 2: {
        struct timespec first = {0, 0}, second = {0, 0};
        clock = PICK(0, 1, 2, 3, 4, 7);
        CALL(SYS_clock_gettime, clock, &first);
        for (volatile int i = 0; i < 20000; i++)
            ;
        CALL(SYS_clock_gettime, clock, &second);
        long ns = (second.tv_sec - first.tv_sec) * 1000000000 + second.tv_nsec - first.tv_nsec;
        say("clock %ld goes %s", (long)clock, ns > 0 ? "on" : ns == 0 ? "nowhere" : "back");
        break;
    }
    case 3:
        if (clock == 5 || clock == 6)
            clock = 1; /* The coarse ones: as fine as the others here. */
        say("clock_getres(%ld, %s)", (long)clock, at.name);
        if (recorded(CALL(SYS_clock_getres, clock, at.at)) == 0 && at.at == ground)
            say_hash(ground, 16);
        break;
    case 4:
        say("nanosleep(%ld.%ld)", time.tv_sec, time.tv_nsec);
        recorded(CALL(SYS_nanosleep, &time, &rest));
        break;
    case 5:
        say("nanosleep(%s)", at.name);
        memset(ground, 0, 16);
        if (at.reads >= 16 && at.at != ground)
            at.at = ground;
        recorded(CALL(SYS_nanosleep, at.at, NULL));
        break;
    case 6: {
        int flags = (int)PICK(0, TIMER_ABSTIME, 2);
        if (clock == 3 || clock == 2)
            clock = 1;
        say("clock_nanosleep(%ld, %d, %ld.%ld)", (long)clock, flags, time.tv_sec, time.tv_nsec);
        recorded(CALL(SYS_clock_nanosleep, clock, flags, &time, &rest));
        break;
    }
    case 7:
        say("gettimeofday(%s, NULL)", at.name);
        recorded(CALL(SYS_gettimeofday, at.at, NULL));
        break;
    case 8:
        say("time(%s)", at.name);
        tell_success(CALL(SYS_time, at.at));
        break;
    case 9: {
        int64_t who = PICK(0, 0, -1, 1, 2, -3);
        say("getrusage(%ld, %s)", (long)who, at.name);
        recorded(CALL(SYS_getrusage, who, at.at));
        break;
    }
    default:
        say("times(%s)", at.name);
        tell_success(CALL(SYS_times, at.at));
        break;
    }
    say("\n");
}
