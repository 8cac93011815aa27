/*
 * Uses threads. `/join` starts one and answers what it left, `/many/N` has N of them count under a
 * mutex, `/condition` passes a number to and fro under a condition variable, `/timed` waits for a
 * condition that never comes, `/thread_local` looks whether each has its own, `/wide` whether wide
 * registers survive a switch, `/detached` lets a detached one answer. With HOLM_POOL=1 a pool made at
 * the start answers everything.
 */
#include "guest.h"
#include <pthread.h>
#include <sched.h>
#include <time.h>

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
static int number;
static __thread int own;

static void *leaves_42(void *argument) {
    number = 42;
    return argument;
}

static void *counts(void *argument) {
    for (int turn = 0; turn < 100; turn++) {
        pthread_mutex_lock(&mutex);
        int seen = number;
        if (turn % 10 == 0)
            sched_yield();
        number = seen + 1;
        pthread_mutex_unlock(&mutex);
    }
    return argument;
}

static void *returns_the_ball(void *argument) {
    pthread_mutex_lock(&mutex);
    while (number < 100) {
        while (number % 2 == 0)
            pthread_cond_wait(&condition, &mutex);
        number++;
        pthread_cond_signal(&condition);
    }
    pthread_mutex_unlock(&mutex);
    return argument;
}

static void *has_its_own(void *argument) {
    int before = own;
    own = 7;
    sched_yield();
    return own == 7 && before == 0 ? argument : NULL;
}

/* Fills a wide register, lets others run, and looks again. */
static int wide_survives(unsigned char with) {
    unsigned char there[16], back[16];
    memset(there, with, sizeof there);
    __asm__ volatile("movdqu (%1), %%xmm12\n\t"
                     "mov $24, %%eax\n\tsyscall\n\t"
                     "movdqu %%xmm12, (%0)"
                     :
                     : "r"(back), "r"(there)
                     : "memory", "rax", "rcx", "r11", "xmm12");
    return memcmp(there, back, sizeof there) == 0;
}

static void *fills_wide(void *argument) {
    for (int turn = 0; turn < 50; turn++)
        if (!wide_survives((unsigned char)(uintptr_t)argument))
            return NULL;
    return argument;
}

static void *answers(void *argument) {
    struct request request = {.connection = (int)(intptr_t)argument};
    answer(&request, "from a thread\n");
    close(request.connection);
    return NULL;
}

static void *start_and_join(void *(*run)(void *), unsigned long count) {
    pthread_t threads[64];
    void *good = (void *)1;
    for (unsigned long at = 0; at < count; at++) {
        int error = pthread_create(&threads[at], NULL, run, (void *)(at + 1));
        if (error != 0) {
            fprintf(stderr, "pthread_create: %s\n", strerror(error));
            return NULL;
        }
    }
    for (unsigned long at = 0; at < count; at++) {
        void *result;
        pthread_join(threads[at], &result);
        if (result != (void *)(at + 1))
            good = NULL;
    }
    return good;
}

static void handle(const struct request *request) {
    number = 0;
    unsigned long many = number_after(request, "/many/", 0);
    if (is_path(request, "/join")) {
        void *good = start_and_join(leaves_42, 1);
        answer(request, "%d %d\n", good != NULL, number);
    } else if (many > 0 && many <= 64) {
        void *good = start_and_join(counts, many);
        answer(request, "%d %d\n", good != NULL, number);
    } else if (is_path(request, "/condition")) {
        pthread_t thread;
        pthread_create(&thread, NULL, returns_the_ball, NULL);
        pthread_mutex_lock(&mutex);
        while (number < 100) {
            while (number % 2 == 1)
                pthread_cond_wait(&condition, &mutex);
            if (number < 100)
                number++;
            pthread_cond_signal(&condition);
        }
        pthread_mutex_unlock(&mutex);
        answer(request, "%d\n", number);
    } else if (is_path(request, "/timed")) {
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += 50 * 1000 * 1000;
        if (until.tv_nsec >= 1000000000) {
            until.tv_nsec -= 1000000000;
            until.tv_sec++;
        }
        pthread_mutex_lock(&mutex);
        int error = pthread_cond_timedwait(&condition, &mutex, &until);
        pthread_mutex_unlock(&mutex);
        answer(request, "%s\n", error == ETIMEDOUT ? "timed out" : "woken");
    } else if (is_path(request, "/thread_local")) {
        own = 3;
        void *good = start_and_join(has_its_own, 8);
        answer(request, "%d %d\n", good != NULL, own);
    } else if (is_path(request, "/wide")) {
        void *good = start_and_join(fills_wide, 8);
        answer(request, "%d\n", good != NULL);
    } else if (is_path(request, "/detached")) {
        pthread_t thread;
        pthread_create(&thread, NULL, answers, (void *)(intptr_t)dup(request->connection));
        pthread_detach(thread);
    } else if (is_path(request, "/deadlock")) {
        pthread_mutex_lock(&mutex);
        pthread_mutex_lock(&mutex);
    } else {
        answer(request, "no such test: %s\n", request->path);
    }
}

static int shared_listener;

static void *pool(void *argument) {
    for (;;) {
        int connection = accept(shared_listener, NULL, NULL);
        struct request request;
        while (read_request(connection, &request))
            answer(&request, "from the pool\n");
        close(connection);
    }
    return argument;
}

int main(void) {
    if (getenv("HOLM_POOL") == NULL)
        serve(handle);
    shared_listener = listener();
    start_and_join(pool, 4);
}
