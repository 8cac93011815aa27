/* A function within a function, which is called by its address: the compiler puts a few instructions on the stack
   for it, of the first thread (`/main`) or another one (`/thread`). Answers the sum that it makes. */
#include "guest.h"
#include <pthread.h>

static void for_each(int count, void (*each)(int)) {
    for (int i = 0; i < count; i++)
        each(i);
}

static void *sums(void *argument) {
    int *sum = argument;
    void add(int number) {
        *sum += number;
    }
    void (*volatile each)(int) = add;
    for_each(100, each);
    return NULL;
}

static void handle(const struct request *request) {
    int sum = 0;
    pthread_t other;
    if (is_path(request, "/thread") && pthread_create(&other, NULL, sums, &sum) == 0)
        pthread_join(other, NULL);
    else
        sums(&sum);
    answer(request, "%d\n", sum);
}

int main(void) {
    serve(handle);
}
