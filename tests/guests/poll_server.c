/* Serves by poll on a listener and one connection at a time. Answers the path. */
#include "guest.h"
#include <poll.h>

int main(void) {
    struct pollfd watched[2] = {{.fd = listener(), .events = POLLIN}, {.fd = -1, .events = POLLIN}};
    for (;;) {
        if (poll(watched, 2, -1) < 1) {
            perror("guest: poll");
            return 95;
        }
        if (watched[1].fd >= 0 && watched[1].revents != 0) {
            struct request request;
            if (read_request(watched[1].fd, &request)) {
                answer(&request, "%s\n", is_path(&request, "/ok") ? "ok" : request.path);
            } else {
                close(watched[1].fd);
                watched[1].fd = -1;
            }
        }
        if (watched[1].fd < 0 && watched[0].revents != 0)
            watched[1].fd = accept(watched[0].fd, NULL, NULL);
        /* One connection at a time: the next waits in the queue. */
        watched[0].events = watched[1].fd < 0 ? POLLIN : 0;
    }
}
