/* Answers its arguments and its environment, one a line. */
#include "guest.h"

static char **arguments;
extern char **environ;

static void handle(const struct request *request) {
    static char text[32768];
    size_t used = 0;
    for (char **at = arguments; *at != NULL; at++)
        used += (size_t)snprintf(text + used, sizeof text - used, "arg %s\n", *at);
    for (char **at = environ; *at != NULL; at++)
        used += (size_t)snprintf(text + used, sizeof text - used, "env %s\n", *at);
    answer(request, "%s", text);
}

int main(int count, char **values) {
    (void)count;
    arguments = values;
    serve(handle);
}
