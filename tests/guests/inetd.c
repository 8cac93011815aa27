/* A program for inetd: it finds its caller at standard input and output, serves one request and ends. On
   `/ok` it answers "ok\n"; what it does on other paths says its first argument or the path. */
#include "guest.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/stat.h>
#include <time.h>

static volatile sig_atomic_t rang;

static void ring(int signal) {
    (void)signal;
    rang = 1;
}

static long now_ms(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000 + time.tv_nsec / 1000000;
}

static int is_way(int argc, char **argv, const char *way) {
    return argc > 1 && strcmp(argv[1], way) == 0;
}

int main(int argc, char **argv) {
    struct sockaddr_in own = {0}, peer = {0};
    socklen_t own_bytes = sizeof own, peer_bytes = sizeof peer;
    struct stat status;
    int named = getsockname(0, (struct sockaddr *)&own, &own_bytes) == 0 &&
                getpeername(1, (struct sockaddr *)&peer, &peer_bytes) == 0 &&
                own.sin_family == AF_INET && peer.sin_family == AF_INET && peer.sin_port != 0;
    int socket = fstat(0, &status) == 0 && S_ISSOCK(status.st_mode) && fstat(2, &status) == 0 &&
                 !S_ISSOCK(status.st_mode);
    long started = now_ms(), rest = 0;
    if (is_way(argc, argv, "ends"))
        return 3;
    if (is_way(argc, argv, "closes")) {
        close(0);
        close(1);
        pause();
    }
    if (is_way(argc, argv, "speaks-first")) {
        printf("HTTP/1.0 200 OK\r\n\r\nunasked\n");
        return 0;
    }
    if (is_way(argc, argv, "polls")) {
        struct pollfd polled = {.fd = 0, .events = POLLIN};
        if (poll(&polled, 1, 500) != 1 || polled.revents != POLLIN)
            return 4;
    }
    if (is_way(argc, argv, "sleeps")) {
        usleep(50000);
        fprintf(stderr, "slept\n");
    }
    if (is_way(argc, argv, "alarm")) {
        signal(SIGALRM, ring);
        alarm(2);
    }
    struct request request;
    if (!read_request(0, &request))
        return 5;
    request.connection = 1;
    if (is_path(&request, "/ok")) {
        answer(&request, "ok\n");
    } else if (is_path(&request, "/names")) {
        answer(&request, "%d %d\n", named, socket);
    } else if (is_path(&request, "/alarm")) {
        rest = alarm(0);
        answer(&request, "%d %ld %d\n", rang, rest, now_ms() - started >= 2500);
    } else if (is_path(&request, "/until_exit")) {
        fprintf(stderr, "serving\n");
        printf("HTTP/1.0 200 OK\r\nX-Way: here\r\n\r\nuntil the exit\n");
    } else if (is_path(&request, "/until_failure")) {
        printf("HTTP/1.0 200 OK\r\n\r\nall the same\n");
        fflush(stdout);
        return 1;
    } else if (is_path(&request, "/echo")) {
        answer_bytes(&request, request.body, request.body_bytes);
    } else if (is_path(&request, "/end")) {
        char more[16];
        answer(&request, "%s", "");
        /* After its answer the caller has nothing more to say. */
        return read(0, more, sizeof more) == 0 ? 0 : 6;
    } else if (is_path(&request, "/half")) {
        printf("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf");
    } else if (is_path(&request, "/silent")) {
        return 0;
    } else if (is_path(&request, "/exit")) {
        return 7;
    } else if (is_path(&request, "/fork")) {
        int child = fork();
        answer(&request, "%d %d\n", child, errno);
    }
    return 0;
}
