/* The client of the HTTP API against a server that answers with given bytes, in given pieces. */
#include "testing/testing.h"

#include "node/http_client.h"
#include "tools/kvist/completion.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { LIMIT_MS = 10000 };

typedef struct {
    int listener;
    const char *answer;
    size_t piece_bytes;
    char request[4096];
} server_t;

/* Serves one request: waits for its blank line, answers piece by piece, closes. */
static void *serve(void *argument)
{
    server_t *server = argument;
    int fd = accept(server->listener, NULL, NULL);
    size_t count = 0;
    while (count + 1 < sizeof server->request && strstr(server->request, "\r\n\r\n") == NULL) {
        ssize_t got = read(fd, server->request + count, sizeof server->request - 1 - count);
        if (got <= 0) {
            break;
        }
        count += (size_t)got;
        server->request[count] = '\0';
    }
    for (size_t at = 0, bytes = strlen(server->answer); at < bytes;) {
        size_t piece = bytes - at < server->piece_bytes ? bytes - at : server->piece_bytes;
        if (send(fd, server->answer + at, piece, MSG_NOSIGNAL) < 0) {
            break;
        }
        at += piece;
        usleep(server->piece_bytes < 64 ? 20 : 0);
    }
    close(fd);
    return NULL;
}

/* Asks a server that answers so; the listener ends the request at the text "stop". */
static bool until_stop(void *context, const char *text)
{
    (void)context;
    return strcmp(text, "stop") != 0;
}

static kv_status_t ask(
    const char *bytes, size_t piece_bytes, kv_answer_t *answer_out, kv_error_t *error)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t address_bytes = sizeof address;
    server_t server = {.listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0),
        .answer = bytes,
        .piece_bytes = piece_bytes};
    pthread_t thread;
    char endpoint[64];
    assert_int_equal(bind(server.listener, (struct sockaddr *)&address, sizeof address), 0);
    assert_int_equal(listen(server.listener, 1), 0);
    getsockname(server.listener, (struct sockaddr *)&address, &address_bytes);
    assert_int_equal(pthread_create(&thread, NULL, serve, &server), 0);
    snprintf(endpoint, sizeof endpoint, "http://127.0.0.1:%u", ntohs(address.sin_port));
    const kv_endpoint_t asked = {.url = endpoint, .credentials.key = "a-key"};
    json_t *request = json_object();
    kv_status_t status = kv_complete(
        &asked, "/v1/chat/completions", request, LIMIT_MS, until_stop, NULL, answer_out, error);
    json_decref(request);
    pthread_join(thread, NULL);
    close(server.listener);
    assert_non_null(strstr(server.request, "\r\nAuthorization: Bearer a-key\r\n"));
    return status;
}

#define HEAD "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
#define DELTA(text) "data: {\"choices\":[{\"delta\":{\"content\":\"" text "\"}}]}\n\n"

static void test_whole_stream_in_any_pieces(void **state)
{
    (void)state;
    static const char bytes[] = HEAD
        ": a comment\n\ndata: {\"choices\":[{\"delta\":{\"role\":\"assistant\"}}]}\r\n\r\n" DELTA(
            "Hel") DELTA("lo") "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n"
                               "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":100,"
                               "\"completion_tokens\":2,\"prompt_tokens_details\":{"
                               "\"cached_tokens\":96},\"kvist\":{\"cached\":{\"device\":64,"
                               "\"host\":0,\"disk\":32,\"remote\":0},\"miss\":null,"
                               "\"loaded_bytes\":7,\"decode_kv_reused\":true}}}\n\n"
                               "data: [DONE]\n\n";
    static const size_t pieces[] = {1, 3, 17, 100000};
    for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++) {
        kv_answer_t answer;
        kv_error_t error = {0};
        char text[128];
        assert_int_equal(ask(bytes, pieces[i], &answer, &error), KV_OK);
        assert_string_equal(answer.text, "Hello");
        assert_int_equal(answer.arrival_count, 2);
        assert_string_equal(answer.finish, "stop");
        assert_true(answer.has_usage && answer.decode_kv_reused);
        assert_int_equal(answer.cached_tokens, 96);
        assert_int_equal(answer.loaded_bytes, 7);
        assert_true(answer.first_ns > 0 && answer.first_ns <= answer.total_ns);
        assert_string_equal(
            kv_describe_cache(&answer, text, sizeof text), "96 of 100 cached (device 64, disk 32)");
        kv_answer_clear(&answer);
    }
}

static void test_many_pieces_of_text(void **state)
{
    (void)state;
    enum { COUNT = 300 };
    static char bytes[sizeof HEAD + COUNT * sizeof DELTA("x") + 64];
    size_t used = (size_t)snprintf(bytes, sizeof bytes, "%s", HEAD);
    for (int i = 0; i < COUNT; i++) {
        used += (size_t)snprintf(bytes + used, sizeof bytes - used, "%s", DELTA("x"));
    }
    snprintf(bytes + used, sizeof bytes - used, "data: [DONE]\n\n");
    kv_answer_t answer;
    assert_int_equal(ask(bytes, 1000, &answer, NULL), KV_OK);
    assert_int_equal(answer.arrival_count, COUNT);
    assert_int_equal(answer.text_bytes, COUNT);
    kv_answer_clear(&answer);
}

static void test_refusals_and_breaks(void **state)
{
    (void)state;
    const struct {
        const char *bytes;
        kv_status_t status;
        const char *words;
    } cases[] = {
        {"HTTP/1.1 400 Bad\r\nConnection: close\r\n\r\n{\"error\": {\"message\": \"messages: "
         "missing\"}}\n",
            KV_INVALID, "messages: missing"},
        {"HTTP/1.1 429 Busy\r\nConnection: close\r\n\r\n{\"error\": {\"message\": \"full\"}}",
            KV_BUSY, "full"},
        {"HTTP/1.1 500 Oh\r\nConnection: close\r\n\r\nplain words", KV_FATAL, "plain words"},
        {HEAD DELTA("Hel"), KV_PEER_LOST, "broke off"},
        {HEAD DELTA("a") "data: {\"error\": {\"message\": \"decode node lost\"}}\n\n"
                         "data: [DONE]\n\n",
            KV_FATAL, "decode node lost"},
        {HEAD DELTA("a") DELTA("stop") DELTA("b") "data: [DONE]\n\n", KV_CANCELLED, "ended"},
        {"", KV_PEER_LOST, "no answer"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        kv_answer_t answer;
        kv_error_t error = {0};
        assert_int_equal(ask(cases[i].bytes, 11, &answer, &error), cases[i].status);
        assert_non_null(strstr(error.text, cases[i].words));
        kv_answer_clear(&answer);
    }
}

int main(void)
{
    kv_http_setup();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_whole_stream_in_any_pieces),
        cmocka_unit_test(test_many_pieces_of_text),
        cmocka_unit_test(test_refusals_and_breaks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
