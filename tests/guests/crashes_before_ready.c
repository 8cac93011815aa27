/* Dies of a null pointer before it listens. */
#include "guest.h"

static int *volatile configuration;

int main(void) {
    return *configuration;
}
