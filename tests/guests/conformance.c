/*
 * The same system calls on a host's Linux and in a guest: a random but repeatable sequence from a
 * seed, each call with its arguments and its result on a line of its own.
 *
 *   conformance AREA SEED STEPS     prints the transcript (as root, in a /tmp of its own)
 *   GET /AREA/SEED/STEPS            in a guest: answers with it
 *
 * What the areas are and what each leaves out is said at the top of conformance/AREA.h.
 */
#include "conformance/engine.h"
#include "conformance/memory.h"
#include "conformance/files.h"
#include "conformance/waits.h"
#include "conformance/signals.h"
#include "conformance/times.h"
#include "conformance/futexes.h"
#include "conformance/process.h"
#include "conformance/sockets.h"

#include <net/if.h>
#include <sched.h>
#include <sys/mount.h>

static const struct {
    const char *name;
    void (*start)(void);
    void (*one_step)(void);
} areas[] = {
    {"memory", memory_start, memory_step},    {"files", files_start, files_step},
    {"waits", waits_start, waits_step},       {"signals", signals_start, signals_step},
    {"times", times_start, times_step},       {"futexes", futexes_start, futexes_step},
    {"process", process_start, process_step}, {"sockets", sockets_start, sockets_step},
};

static int run_area(const char *name, unsigned long seed, unsigned long steps) {
    for (size_t i = 0; i < sizeof areas / sizeof *areas; i++) {
        if (strcmp(areas[i].name, name) != 0)
            continue;
        random_state = seed * 0x2545f4914f6cdd1d + i;
        lay_ground();
        areas[i].start();
        for (step = 1; step <= steps; step++)
            areas[i].one_step();
        return 1;
    }
    return 0;
}

static void handle(const struct request *request) {
    char area[32];
    unsigned long seed, steps;
    if (sscanf(request->path, "/%31[a-z]/%lu/%lu", area, &seed, &steps) != 3 ||
        !run_area(area, seed, steps)) {
        answer(request, "no such area\n");
        return;
    }
    answer_bytes(request, transcript, transcript_used);
}

/* A network of its own, where nothing but loopback is. */
static void have_own_loopback(void) {
    struct ifreq loopback = {.ifr_name = "lo"};
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    loopback.ifr_flags = IFF_UP | IFF_RUNNING;
    if (fd < 0 || ioctl(fd, SIOCSIFFLAGS, &loopback) != 0) {
        perror("conformance: loopback of its own");
        exit(85);
    }
    close(fd);
}

/* A /tmp of its own and the descriptors that a guest has, so that paths and numbers agree. */
static void become_like_a_guest(void) {
    if (unshare(CLONE_NEWNS | CLONE_NEWNET) != 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
        mount("tmpfs", "/tmp", "tmpfs", 0, "mode=1777") != 0) {
        perror("conformance: a /tmp of its own (this needs root)");
        exit(80);
    }
    have_own_loopback();
    struct rlimit limit = {1024, 1024};
    if (setrlimit(RLIMIT_NOFILE, &limit) != 0)
        exit(81);
    CALL(SYS_prctl, PR_SET_DUMPABLE, 1, 0, 0, 0);
    /* In place of the listener and the connection; what the parent left open goes. */
    for (int fd = 3; fd < 1024; fd++)
        close(fd);
    if (open("/dev/null", O_RDWR) != 3 || open("/dev/null", O_RDWR) != 4)
        exit(82);
}

int main(int count, char **arguments) {
    if (count == 4) {
        become_like_a_guest();
        if (!run_area(arguments[1], strtoul(arguments[2], NULL, 10), strtoul(arguments[3], NULL, 10)))
            return 83;
        for (size_t done = 0; done < transcript_used;) {
            ssize_t written = write(1, transcript + done, transcript_used - done);
            if (written <= 0)
                return 84;
            done += (size_t)written;
        }
        /* At once: exit handlers may meet what the calls left behind. */
        _exit(0);
    }
    serve(handle);
}
