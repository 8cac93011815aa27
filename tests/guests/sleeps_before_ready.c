/* Is never ready: sleeps for ever. */
#include "guest.h"

int main(void) {
    for (;;)
        sleep(1000);
}
