/* Closes the connection without an answer. */
#include "guest.h"

static void handle(const struct request *request) {
    shutdown(request->connection, SHUT_RDWR);
}

int main(void) {
    serve(handle);
}
