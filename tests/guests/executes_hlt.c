/* Executes `hlt`, which is not for programs. */
#include "guest.h"

static void handle(const struct request *request) {
    __asm__ volatile("hlt");
    answer(request, "hlt was let through\n");
}

int main(void) {
    serve(handle);
}
