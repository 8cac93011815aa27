/* Ends with status 3 before it listens. */
#include "guest.h"

int main(void) {
    fprintf(stderr, "the database is not there\n");
    return 3;
}
