/*
 * `/echo` answers with the body, other paths with its length and 32-bit FNV-1a hash.
 */
#include "guest.h"

static void handle(const struct request *request) {
    if (is_path(request, "/echo")) {
        answer_bytes(request, request->body, request->body_bytes);
        return;
    }
    uint32_t hash = 2166136261u;
    for (size_t i = 0; i < request->body_bytes; i++)
        hash = (hash ^ request->body[i]) * 16777619u;
    answer(request, "%zu %08x\n", request->body_bytes, hash);
}

int main(void) {
    serve(handle);
}
