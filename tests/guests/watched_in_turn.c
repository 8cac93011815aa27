/* Descriptors that are always ready and an epoll_wait that has room for one: each has its turn. On the host the same
   program tells the same. */
#include "guest.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>

enum { MANY = 5 };

static void handle(const struct request *request) {
    told[0] = 0;
    int epoll = epoll_create1(0), events[MANY];
    for (uint32_t i = 0; i < MANY; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data = {.u32 = i}};
        events[i] = eventfd(i % 2, 0);
        epoll_ctl(epoll, EPOLL_CTL_ADD, events[i], &event);
    }
    for (uint64_t i = 0, one = 1; i < MANY; i += 2)
        if (write(events[i], &one, 8) != 8)
            exit(70);
    for (int room = 1; room <= 2; room++) {
        int reported[MANY] = {0};
        for (int turn = 0; turn < 10 * MANY / room; turn++) {
            struct epoll_event ready[2];
            int found = epoll_wait(epoll, ready, room, 0);
            for (int i = 0; i < found; i++)
                reported[ready[i].data.u32]++;
        }
        for (int i = 0; i < MANY; i++)
            tell("%d ", reported[i]);
        tell("\n");
    }
    answer(request, "%s", told);
}

int main(int count, char **arguments) {
    serve_or_run(count, arguments, handle);
}
