/* Makes the bad hostcall that the path names, around the library OS. See proto/hostcall. */
#include "guest.h"
#include "gates.h"

struct call_page {
    uint32_t number, flags;
    uint64_t args[4];
    uint64_t request, wanted;
    int64_t result;
    uint64_t tsc;
};

enum { WAIT_REQUEST = 1, REQUEST_BODY, RESPOND, RESPONSE_BODY, LOG_FLUSH, EXIT, ABORT, PARK };

#define CALL ((volatile struct call_page *)0x11000)
#define LOG ((volatile uint64_t *)0x20000)
#define STUB 0x8000UL
#define TABLES 0x1000UL
#define BOOT 0x10000UL
#define WILD 0xFFFFFFFFFFFFF000UL

static int64_t call(uint32_t number, uint32_t flags, uint64_t a, uint64_t b, uint64_t c, uint64_t d) {
    uintptr_t gate = hostcall_gate();
    CALL->number = number;
    CALL->flags = flags;
    CALL->args[0] = a;
    CALL->args[1] = b;
    CALL->args[2] = c;
    CALL->args[3] = d;
    /* The place of the open request, or another one to wait for. */
    CALL->request = number == WAIT_REQUEST;
    CALL->wanted = 0;
    __asm__ volatile("call *%0" : : "r"(gate) : "memory", "cc");
    return CALL->result;
}

/* Asks the stub to change the protection of pages; -1 when it refuses. */
static int64_t protect(uint64_t address, uint64_t pages, uint64_t protection) {
    uintptr_t gate = page_gate();
    int64_t result;
    __asm__ volatile("call *%1"
                     : "=a"(result)
                     : "r"(gate), "D"(address), "S"(pages), "d"(protection)
                     : "memory", "cc");
    return result;
}

/* Fixed part of a response's head: its size, no headers, a status. */
static const unsigned char head[8] = {8, 0, 0, 0, 0, 0, 200, 0};

static void handle(const struct request *request) {
    static char buffer[4096];
    uint64_t good = (uint64_t)(uintptr_t)buffer, good_head = (uint64_t)(uintptr_t)head;
    int64_t result = 0;
    if (is_path(request, "/number_zero"))
        result = call(0, 0, 0, 0, 0, 0);
    else if (is_path(request, "/number_unknown"))
        result = call(9999, 0, 0, 0, 0, 0);
    else if (is_path(request, "/all_ones"))
        result = call(~0u, ~0u, ~0ul, ~0ul, ~0ul, ~0ul);
    else if (is_path(request, "/flags_unknown"))
        result = call(RESPOND, 0xFFFFFFFE, good_head, 8, 0, 0);
    else if (is_path(request, "/head_in_stub"))
        result = call(RESPOND, 1, STUB, 8, 0, 0);
    else if (is_path(request, "/head_wild"))
        result = call(RESPOND, 1, WILD, 8192, 0, 0);
    else if (is_path(request, "/head_empty"))
        result = call(RESPOND, 1, good_head, 0, 0, 0);
    else if (is_path(request, "/head_garbage")) {
        memset(buffer, 0xFF, sizeof buffer);
        result = call(RESPOND, 1, good, 64, 0, 0);
    } else if (is_path(request, "/head_huge"))
        result = call(RESPOND, 1, good_head, 1ul << 40, 0, 0);
    else if (is_path(request, "/body_huge"))
        result = call(RESPOND, 1, good_head, 8, good, ~0ul);
    else if (is_path(request, "/body_wraps"))
        result = call(RESPOND, 1, good_head, 8, ~0ul - 16, 64);
    else if (is_path(request, "/body_in_page_tables"))
        result = call(RESPOND, 1, good_head, 8, TABLES, 4096);
    else if (is_path(request, "/wait_into_stub"))
        result = call(WAIT_REQUEST, 0, STUB, 4096, 0, 0);
    else if (is_path(request, "/wait_into_boot_page"))
        result = call(WAIT_REQUEST, 0, BOOT, 4096, 0, 0);
    else if (is_path(request, "/wait_into_kernel"))
        result = call(WAIT_REQUEST, 0, KERNEL, 4096, 0, 0);
    else if (is_path(request, "/wait_wild"))
        result = call(WAIT_REQUEST, 0, WILD, ~0ul, 0, 0);
    else if (is_path(request, "/wait_tiny"))
        result = call(WAIT_REQUEST, 0, good, 1, 0, 0);
    else if (is_path(request, "/place_unknown")) {
        CALL->number = RESPOND;
        CALL->request = 64;
        __asm__ volatile("call *%0" : : "r"(hostcall_gate()) : "memory", "cc");
    }
    else if (is_path(request, "/request_body_into_stub"))
        result = call(REQUEST_BODY, 0, STUB, 4096, 0, 0);
    else if (is_path(request, "/request_body_wild"))
        result = call(REQUEST_BODY, 0, WILD, ~0ul, 0, 0);
    else if (is_path(request, "/body_before_head"))
        result = call(RESPONSE_BODY, 1, good, 16, 0, 0);
    else if (is_path(request, "/head_twice")) {
        call(RESPOND, 0, good_head, 8, 0, 0);
        result = call(RESPOND, 1, good_head, 8, 0, 0);
    } else if (is_path(request, "/wait_unanswered"))
        result = call(WAIT_REQUEST, 0, good, sizeof buffer, 0, 0);
    else if (is_path(request, "/log_huge")) {
        LOG[0] = ~0ul;
        result = call(LOG_FLUSH, 0, 0, 0, 0, 0);
    } else if (is_path(request, "/abort_text_wild"))
        result = call(ABORT, 0, ~0ul, WILD, ~0ul, ~0ul);
    else if (is_path(request, "/abort_text_in_stub"))
        result = call(ABORT, 0, 1, STUB, 4096, 0);
    else if (is_path(request, "/exit"))
        result = call(EXIT, 0, 7, 0, 0, 0);
    else if (is_path(request, "/park_for_ever"))
        result = call(PARK, 0, ~0ul, 0, 0, 0);
    else if (is_path(request, "/park_in_the_past"))
        result = call(PARK, 0, 0, 0, 0, 0);
    else if (is_path(request, "/protect_stub"))
        result = protect(STUB, 1, 2);
    else if (is_path(request, "/protect_kernel"))
        result = protect(KERNEL, 1, 2);
    else if (is_path(request, "/protect_wild"))
        result = protect(WILD, 1, 2);
    else if (is_path(request, "/protect_wraps"))
        result = protect(0x200000, ~0ul, 2);
    else if (is_path(request, "/protect_unaligned"))
        result = protect(0x200001, 1, 2);
    else if (is_path(request, "/protect_kind"))
        result = protect(0x200000, 1, 99);
    else if (is_path(request, "/for_ever"))
        for (;;)
            call(LOG_FLUSH, 0, 0, 0, 0, 0);
    else if (strcmp(request->path, "/ok") == 0) {
        answer(request, "ok\n");
        return;
    } else {
        answer(request, "no such hostcall: %s\n", request->path);
        return;
    }
    answer(request, "%s returned %ld\n", request->path, (long)result);
}

/* Of a request no more is read than its head, so that there is a body to ask for. */
int main(void) {
    static char head[4096];
    int from = listener();
    for (;;) {
        struct request request = {.connection = accept(from, NULL, NULL)};
        ssize_t bytes = read(request.connection, head, sizeof head - 1);
        head[bytes > 0 ? bytes : 0] = '\0';
        if (sscanf(head, "%15s %511s", request.method, request.path) == 2)
            handle(&request);
        close(request.connection);
    }
}
