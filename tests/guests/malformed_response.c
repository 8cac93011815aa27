/* Answers with what is not HTTP, in the way that the path names. */
#include "guest.h"

static void handle(const struct request *request) {
    static const struct {
        const char *path, *text;
    } answers[] = {
        {"/garbage", "this is not HTTP\r\n\r\n"},
        {"/zero_bytes", NULL},
        {"/bad_status", "HTTP/1.1 abc OK\r\nContent-Length: 0\r\n\r\n"},
        {"/status_99", "HTTP/1.1 099 Low\r\nContent-Length: 0\r\n\r\n"},
        {"/bad_version", "HTTP/9.9 200 OK\r\nContent-Length: 0\r\n\r\n"},
        {"/bad_header_name", "HTTP/1.1 200 OK\r\nbad name: x\r\nContent-Length: 0\r\n\r\n"},
        {"/no_colon", "HTTP/1.1 200 OK\r\nnothing here\r\nContent-Length: 0\r\n\r\n"},
        {"/control_in_value", "HTTP/1.1 200 OK\r\nX: a\x01z\r\nContent-Length: 0\r\n\r\n"},
        {"/negative_length", "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n"},
        {"/word_length", "HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n"},
        {"/huge_length", "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n"},
        {"/two_lengths", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"},
        {"/short_body", "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"},
        {"/half_a_head", "HTTP/1.1 200 OK\r\nContent-"},
        {"/bad_chunk",
         "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\nabc\r\n0\r\n\r\n"},
        {"/huge_chunk",
         "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nabc"},
        {"/cut_chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc"},
        {"/unknown_encoding", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nabc"},
    };
    for (size_t i = 0; i < sizeof answers / sizeof answers[0]; i++) {
        if (!is_path(request, answers[i].path))
            continue;
        if (answers[i].text != NULL)
            send_all(request->connection, answers[i].text, strlen(answers[i].text));
        else
            send_all(request->connection, "\0\0\0\0\r\n\r\n", 8);
        /* The reader has all it will get. */
        shutdown(request->connection, SHUT_RDWR);
        return;
    }
    answer(request, "no such response: %s\n", request->path);
}

int main(void) {
    serve(handle);
}
