/* Is never ready: computes for ever. */
#include "guest.h"

int main(void) {
    for (volatile unsigned long turns = 0;; turns++) {
    }
}
