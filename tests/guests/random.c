/* Answers 16 random bytes of getrandom and the 16 of AT_RANDOM, in hexadecimal. */
#include "guest.h"
#include <sys/auxv.h>
#include <sys/random.h>

static void handle(const struct request *request) {
    unsigned char bytes[32];
    if (getrandom(bytes, 16, 0) != 16) {
        answer(request, "getrandom: %d\n", errno);
        return;
    }
    memcpy(bytes + 16, (const void *)getauxval(AT_RANDOM), 16);
    char text[65];
    for (size_t i = 0; i < 32; i++)
        snprintf(text + 2 * i, 3, "%02x", bytes[i]);
    answer(request, "%.32s %.32s\n", text, text + 32);
}

int main(void) {
    serve(handle);
}
