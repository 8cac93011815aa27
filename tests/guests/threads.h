/*
 * What guests share in which one thread waits in a call while another one does something about it.
 */
#ifndef THREADS_H
#define THREADS_H

#include "guest.h"
#include <pthread.h>
#include <time.h>

/* What the call gave. */
static long result;
static int error;

/* Lets the other thread begin to wait. */
static void pause_a_little(void) {
    struct timespec time = {.tv_nsec = 20000000};
    nanosleep(&time, NULL);
}

static void failed(const char *what) {
    perror(what);
    exit(95);
}

static void note(long value) {
    error = value < 0 ? errno : 0;
    result = value;
}

#endif
