/* Starts a thread and answers what it left, or the error with which it was refused. */
#include "guest.h"
#include <pthread.h>

static int left;

static void *run(void *argument) {
    left = 42;
    return argument;
}

static void handle(const struct request *request) {
    pthread_t thread;
    int error = pthread_create(&thread, NULL, run, NULL);
    if (error == 0)
        error = pthread_join(thread, NULL);
    answer(request, "%d %d\n", error, left);
}

int main(void) {
    serve(handle);
}
