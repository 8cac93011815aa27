/* What an epoll instance watches is changed by another thread while one waits in it: what is ready then wakes the
   one that waits, as a library does that wakes its loop by asking anew for a descriptor which stays readable. */
#include "guest.h"
#include <pthread.h>
#include <semaphore.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>

static int epoll, readable;
static int operation;
static sem_t seen;

static void *changes(void *argument) {
    nanosleep(&(struct timespec){0, 20000000}, NULL);
    struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data = {.u32 = (uint32_t)operation}};
    if (epoll_ctl(epoll, operation, readable, &event) != 0)
        perror("guest: epoll_ctl");
    /* Its end would wake the other one too. */
    sem_wait(&seen);
    return argument;
}

static void waits_for(const char *what, int changed_by) {
    operation = changed_by;
    pthread_t other;
    pthread_create(&other, NULL, changes, NULL);
    struct epoll_event event = {0};
    int found = epoll_wait(epoll, &event, 1, -1);
    tell("%s: %d, of its own: %d\n", what, found, event.data.u32 == (uint32_t)changed_by);
    sem_post(&seen);
    pthread_join(other, NULL);
    tell_result("once", epoll_wait(epoll, &event, 1, 0));
}

/* More instances, and more that they watch, than there could be once. */
static void watches_many(void) {
    enum { INSTANCES = 12, EACH = 40, MANY = 200 };
    int all[INSTANCES], events[MANY], added = 0, found = 0;
    struct epoll_event event = {.events = EPOLLIN}, ready[MANY];
    for (int i = 0; i < MANY; i++)
        events[i] = eventfd(i % 2, 0);
    for (int i = 0; i < INSTANCES; i++) {
        all[i] = epoll_create1(0);
        int count = i == 0 ? MANY : EACH;
        for (int j = 0; j < count; j++)
            added += epoll_ctl(all[i], EPOLL_CTL_ADD, events[j], &event) == 0;
        found += epoll_wait(all[i], ready, MANY, 0);
    }
    tell("added: %d, found: %d\n", added, found);
    close(events[1]);
    close(all[1]);
    tell("then: %d %d\n", epoll_wait(all[0], ready, MANY, 0), epoll_wait(all[2], ready, MANY, 0));
    for (int i = 0; i < MANY; i++)
        if (i != 1)
            close(events[i]);
    tell("at last: %d\n", epoll_wait(all[0], ready, MANY, 0));
    for (int i = 0; i < INSTANCES; i++)
        if (i != 1)
            close(all[i]);
}

static void handle(const struct request *request) {
    if (is_path(request, "/many")) {
        watches_many();
        answer(request, "%s", told);
        return;
    }
    epoll = epoll_create1(0);
    readable = eventfd(1, 0);
    waits_for("added", EPOLL_CTL_ADD);
    waits_for("changed", EPOLL_CTL_MOD);
    waits_for("changed again", EPOLL_CTL_MOD);
    answer(request, "%s", told);
}

int main(int count, char **arguments) {
    serve_or_run(count, arguments, handle);
}
