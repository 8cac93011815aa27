/* Ends without a word when its settings are not there. With LATER=1 it serves before. */
#include "guest.h"
#include <fcntl.h>

static void handle(const struct request *request) {
    (void)request;
    exit(open("/etc/later.toml", O_RDONLY) < 0 ? 4 : 0);
}

int main(void) {
    int settings = open("/etc/greeter/settings.toml", O_RDONLY);
    if (settings < 0 && getenv("LATER") == NULL)
        return 3;
    serve(handle);
}
