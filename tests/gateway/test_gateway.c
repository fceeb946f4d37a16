/* The gateway as clients see it: answers, streams, what is refused, clients that are slow or leave;
 * over real HTTP, in front of nodes that are played. */
#include "played.h"

#include "base/log.h"
#include "node/admin_client.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void test_answers(void **state)
{
    (void)state;
    fixture_t fixture;
    start_with(&fixture, 1, NULL);
    expect(&fixture, CHAT, PLAIN, 200, STORY, "\"cached_tokens\":16");
    expect(&fixture, CHAT, PLAIN, 200, "x-kvist-hit-tokens: 16", "\"finish_reason\":\"stop\"");
    expect(&fixture, "/v1/completions", "{\"prompt\":\"once\",\"max_tokens\":2}", 200,
        "\"text\":\"The quick\"", "\"finish_reason\":\"length\"");
    expect(&fixture, "/v1/completions", "{\"prompt\":[1,2,3],\"kvist\":{\"cache_mode\":\"read\"}}",
        200, "\"prompt_tokens\":3", "\"prefilled_by\":\"prefill-0\"");
    assert_int_equal(atomic_load(&last_cache_mode), KVIST__WIRE__CACHE_MODE__CACHE_READ);
    expect(&fixture, "/v1/models", NULL, 200, "\"id\":\"tiny\"", NULL);
    expect(&fixture, "/v1/models/tiny", NULL, 200, "\"id\":\"tiny\"", "\"object\":\"model\"");
    expect(&fixture, "/v1/models/huge", NULL, 404, "\"huge\\\" is not served", "model_not_found");
    expect(&fixture, "/healthz", NULL, 200, "\"ok\"", NULL);
    expect(&fixture, "/metrics", NULL, 200,
        "kvist_gateway_requests_total{route=\"chat\",code=\"200\"}",
        "kvist_gateway_cached_tokens_total{tier=\"host\"}");
    stop(&fixture);
}

static void test_streams(void **state)
{
    (void)state;
    fixture_t fixture;
    start_with(&fixture, 1, NULL);
    unsigned code;
    char *answer = ask(&fixture, "POST", CHAT, STREAM, &code);
    assert_int_equal(code, 200);
    assert_non_null(strstr(answer, "text/event-stream"));
    assert_non_null(strstr(answer, "\"delta\":{\"role\":\"assistant\""));
    assert_non_null(strstr(answer, "\"content\":\" quick\""));
    assert_non_null(strstr(answer, "\"choices\":[],\"usage\":{"));
    assert_non_null(strstr(answer, "data: [DONE]\n\n"));
    assert_string_equal(answer + strlen(answer) - 5, "0\r\n\r\n");
    free(answer);
    /* One whose beginning is no bytes. */
    expect(&fixture, "/v1beta/models/tiny:streamGenerateContent?alt=sse",
        "{\"contents\":[{\"parts\":[{\"text\":\"hi\"}]}]}", 200, "data: {\"candidates\":[",
        "\"finishReason\":\"STOP\"");
    stop(&fixture);
}

static void test_stop_string(void **state)
{
    (void)state;
    fixture_t fixture;
    start_with(&fixture, 1, NULL);
    expect(&fixture, "/v1/completions", "{\"prompt\":\"once\",\"stop\":[\"fox\"]}", 200,
        "\"text\":\"The quick brown \"", "\"finish_reason\":\"stop\"");
    wait_for_cancel(1);
    expect(&fixture, "/v1/completions", "{\"prompt\":\"once\",\"stop\":\"fox\",\"stream\":true}",
        200, "brown", "[DONE]");
    wait_for_cancel(2);
    /* The first token's text waits: it may become the stop string, or is it. */
    expect(&fixture, "/v1/completions",
        "{\"prompt\":\"once\",\"stop\":\"The slow\",\"stream\":true}", 200,
        "\"text\":\"The quick\"", "[DONE]");
    expect(&fixture, "/v1/completions", "{\"prompt\":\"once\",\"stop\":\"The\",\"stream\":true}",
        200, "\"finish_reason\":\"stop\"", "[DONE]");
    wait_for_cancel(3);
    stop(&fixture);
}

/* Several answers: one goes first, the others begin with its first token, with seeds of their own.
 */
static void test_several_choices(void **state)
{
    (void)state;
    fixture_t fixture;
    start_with(&fixture, 1, NULL);
    unsigned code;
    char *answer = ask(&fixture, "POST", CHAT,
        "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],\"n\":3,\"seed\":7}", &code);
    assert_int_equal(code, 200);
    assert_int_equal(count_of(answer, STORY), 3);
    assert_non_null(strstr(answer, "\"index\":2"));
    char usage[64];
    snprintf(usage, sizeof usage, "\"completion_tokens\":%u", 3 * story_count);
    assert_non_null(strstr(answer, usage));
    assert_non_null(strstr(answer, "\"cached_tokens\":16")); /* the prompt counts once */
    free(answer);
    assert_int_equal(atomic_load(&generates), 3);
    assert_int_equal(atomic_load(&seeds[0]), 7); /* as it would be alone */
    assert_true(seeds[1] != seeds[0] && seeds[2] != seeds[0] && seeds[1] != seeds[2]);

    answer = ask(&fixture, "POST", "/v1/completions",
        "{\"prompt\":[[1,2],[3,4,5]],\"n\":2,\"stream\":true,\"stream_options\":{\"include_usage\":"
        "true}}",
        &code);
    assert_int_equal(code, 200);
    assert_int_equal(count_of(answer, "\"finish_reason\":\"stop\""), 4);
    assert_non_null(strstr(answer, "\"index\":3"));
    assert_non_null(strstr(answer, "\"prompt_tokens\":5"));
    assert_int_equal(count_of(answer, "data: [DONE]"), 1);
    free(answer);

    /* While the first has no token, the others are not asked for. */
    atomic_store(&generates, 0);
    play(0, PLAY_SILENT);
    int fd = connect_client(&fixture);
    static const char THREE[] = "{\"prompt\":\"hi\",\"n\":3}";
    send_request(fd, "POST", "/v1/completions", THREE, strlen(THREE));
    wait_for_generates(1);
    play(0, PLAY_ANSWER);
    expect(&fixture, CHAT, PLAIN, 200, STORY, NULL);
    assert_int_equal(atomic_load(&generates), 2);
    close(fd);
    wait_for_cancel(1);
    stop(&fixture);
}

static void test_tool_calls(void **state)
{
    (void)state;
    static const char CALL[] =
        "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"x\": 1}}\n</tool_call>";
    static const char BODY[] =
        "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],\"tools\":[{\"type\":\"function\","
        "\"function\":{\"name\":\"add\",\"parameters\":{\"type\":\"object\"}}}]%s}";
    char text[512], body[512];
    snprintf(text, sizeof text, "Let me see.\n%s\n%s", CALL, CALL);
    tell(text);
    fixture_t fixture;
    start_with(&fixture, 1, NULL);
    snprintf(body, sizeof body, BODY, "");
    expect(&fixture, CHAT, body, 200,
        "\"content\":\"Let me see.\",\"refusal\":null,\"tool_calls\":[{",
        "\"finish_reason\":\"tool_calls\"");
    expect(&fixture, CHAT, body, 200,
        "0001\",\"type\":\"function\",\"function\":{\"name\":\"add\","
        "\"arguments\":\"{\\\"x\\\": 1}\"}}]",
        "\"id\":\"call_");
    snprintf(body, sizeof body, BODY, ",\"stream\":true");
    unsigned code;
    char *answer = ask(&fixture, "POST", CHAT, body, &code);
    assert_int_equal(count_of(answer, "\"arguments\":\"{\\\"x\\\": 1}\"}"), 2);
    assert_int_equal(count_of(answer, "\"finish_reason\":\"tool_calls\""), 1);
    assert_null(strstr(answer, "tool_call>"));
    free(answer);
    /* One call at most: the answer ends with it. */
    snprintf(body, sizeof body, BODY, ",\"stream\":true,\"parallel_tool_calls\":false");
    answer = ask(&fixture, "POST", CHAT, body, &code);
    assert_int_equal(count_of(answer, "\"arguments\":\"{\\\"x\\\": 1}\"}"), 1);
    assert_int_equal(count_of(answer, "\"finish_reason\":\"tool_calls\""), 1);
    free(answer);
    wait_for_cancel(1);
    /* Who gave no tools gets the text as it is. */
    expect(&fixture, CHAT, PLAIN, 200, "</tool_call>", "\"finish_reason\":\"stop\"");
    stop(&fixture);
    tell(STORY);
}

static void test_logprobs(void **state)
{
    (void)state;
    tell(" tree \xf0\x9f\x8c\xb1");
    fixture_t fixture;
    start_with(&fixture, 1, NULL);
    atomic_store(&nodes[0].version, 3);
    static const char ASK[] = "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],"
                              "\"logprobs\":true%s}";
    char body[256];
    snprintf(body, sizeof body, ASK, ",\"top_logprobs\":4");
    expect(&fixture, CHAT, body, 200,
        "\"logprobs\":{\"content\":[{\"token\":\" "
        "tree\",\"logprob\":-0.5,\"bytes\":[32,116,114,101,"
        "101],\"top_logprobs\":[{\"token\":\" tree\",\"logprob\":-0.5,",
        "\"logprob\":-9999");
    expect(&fixture, CHAT, body, 200, "\"token\":\"\\\\x", "\"refusal\":null}");
    snprintf(body, sizeof body, ASK, "");
    expect(&fixture, CHAT, body, 200, "\"top_logprobs\":[]}", NULL);
    snprintf(body, sizeof body, ASK, ",\"stream\":true,\"top_logprobs\":1");
    unsigned code;
    char *answer = ask(&fixture, "POST", CHAT, body, &code);
    assert_int_equal(count_of(answer, "\"top_logprobs\":[{\"token\""), story_count);
    assert_int_equal(count_of(answer, "\"logprobs\":null,\"finish_reason\":\"stop\""), 1);
    free(answer);
    expect(&fixture, "/v1/completions", "{\"prompt\":\"x\",\"logprobs\":1,\"max_tokens\":2}", 200,
        "\"logprobs\":{\"tokens\":[\" tree\",", "\"top_logprobs\":[{\" tree\":-0.5},");
    expect(&fixture, "/v1/completions", "{\"prompt\":\"x\",\"logprobs\":0,\"max_tokens\":1}", 200,
        "\"token_logprobs\":[-0.5],\"top_logprobs\":null,\"text_offset\":[0]}", NULL);
    expect(&fixture, "/v1/completions", "{\"prompt\":\"x\",\"logprobs\":1}", 200, "\"bytes:\\\\x",
        "\"text_offset\":[0,5,");
    /* Alternatives are told since version 3 of the wire. */
    atomic_store(&nodes[0].version, 2);
    snprintf(body, sizeof body, ASK, ",\"top_logprobs\":4");
    expect(&fixture, CHAT, body, 503, "no decode node is up", NULL);
    stop(&fixture);
    tell(STORY);
}

/* All token_ids of an answer, one list after the other. */
static size_t collect_ids(const char *answer, uint32_t *ids_out)
{
    static const char NAME[] = "\"token_ids\":[";
    size_t count = 0;
    while ((answer = strstr(answer, NAME)) != NULL) {
        answer += strlen(NAME);
        while (*answer != ']') {
            char *end;
            assert_true(count < TOKENS_MAX);
            ids_out[count++] = (uint32_t)strtoul(answer, &end, 10);
            assert_true(end > answer);
            answer = *end == ',' ? end + 1 : end;
        }
    }
    return count;
}

/* Whole and in pieces: also where a character takes several tokens. */
static void test_token_ids(void **state)
{
    (void)state;
    static const char *const MORE[] = {"", ",\"stream\":true"};
    tell(" tree \xf0\x9f\x8c\xb1");
    fixture_t fixture;
    start_with(&fixture, 1, NULL);
    for (int i = 0; i < 4; i++) {
        char body[256];
        uint32_t ids[TOKENS_MAX];
        unsigned code;
        bool chat = i / 2 == 1;
        snprintf(body, sizeof body, "{%s,\"return_token_ids\":true%s}",
            chat ? "\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]" : "\"prompt\":\"x\"",
            MORE[i % 2]);
        char *answer = ask(&fixture, "POST", chat ? CHAT : "/v1/completions", body, &code);
        assert_int_equal(code, 200);
        assert_int_equal(collect_ids(answer, ids), story_count);
        assert_memory_equal(ids, story, story_count * sizeof *ids);
        free(answer);
    }
    expect(&fixture, "/v1/completions", "{\"prompt\":\"x\",\"return_token_ids\":1}", 400,
        "return_token_ids", "true or false");
    stop(&fixture);
    tell(STORY);
}

static void test_refusals(void **state)
{
    (void)state;
    fixture_t fixture;
    start_with(&fixture, 1, NULL);
    expect(&fixture, CHAT, "{", 400, "invalid_json", "line 1");
    expect(&fixture, CHAT, "{\"messages\":\"\xff\"}", 400, "invalid_utf8", "byte 13");
    expect(&fixture, CHAT, "{\"messages\":5}", 400, "\"param\":\"messages\"", NULL);
    expect(&fixture, "/v1/completions", "{\"prompt\":[999999]}", 400, "must be 0 to 49151", NULL);
    expect(&fixture, "/v2/completions", "{}", 404, "no such path", NULL);
    expect(&fixture, CHAT, NULL, 405, "Allow: POST", NULL);
    expect(&fixture, "/v1/models", "{}", 405, "Allow: GET", NULL);
    expect(&fixture, CHAT,
        "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],\"model\":\"x\"}", 404,
        "model_not_found", NULL);
    play(0, PLAY_INVALID);
    expect(&fixture, CHAT, PLAIN, 400, "as the test wants", NULL);
    play(0, PLAY_WRONG_TOKEN);
    expect(&fixture, CHAT, PLAIN, 502, "sent token 4000000000", NULL);
    play(0, PLAY_TOO_MANY);
    expect(&fixture, "/v1/completions", "{\"prompt\":[1],\"max_tokens\":3}", 502, "the 4th of 3",
        NULL);

    size_t bytes = 10 << 20;
    char *large = malloc(bytes + 1);
    memset(large, ' ', bytes);
    large[bytes] = '\0';
    expect(&fixture, CHAT, large, 413, "larger than 1048576 bytes", "invalid_request_error");
    /* Longer than the context, within the body's bound. */
    large[1000000] = '\0';
    memcpy(large, "{\"prompt\":\"", 11);
    for (size_t i = 11; i < 999998; i++) {
        large[i] = i % 5 == 0 ? ' ' : (char)('a' + i % 23);
    }
    memcpy(large + 999998, "\"}", 2);
    expect(&fixture, "/v1/completions", large, 400, "context_length_exceeded", "holds 8192");
    free(large);
    play(0, PLAY_ANSWER);
    expect(&fixture, CHAT, PLAIN, 200, STORY, NULL);
    stop(&fixture);
}

/* Bytes that are no HTTP, and requests that never end. */
static void test_broken_http(void **state)
{
    (void)state;
    static const char *const STREAMS[] = {"\x16\x03\x01\x02", "GET\r\n\r\n",
        "POST /v1/completions HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        "POST /v1/completions HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{\"pro"};
    fixture_t fixture;
    start_with(&fixture, 1, NULL);
    for (size_t i = 0; i < sizeof STREAMS / sizeof STREAMS[0]; i++) {
        int fd = connect_client(&fixture);
        (void)!send(fd, STREAMS[i], strlen(STREAMS[i]), MSG_NOSIGNAL);
        usleep(2000);
        close(fd);
    }
    expect(&fixture, CHAT, PLAIN, 200, STORY, NULL);
    stop(&fixture);
}

/* A request whose body has so many bytes, or will have: only what is sent now of it. */
static int send_body(const fixture_t *fixture, size_t length, const char *bytes, size_t count)
{
    char head[128];
    int fd = connect_client(fixture);
    int head_bytes = snprintf(head, sizeof head,
        "POST %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %zu\r\n\r\n", CHAT,
        length);
    assert_int_equal(send(fd, head, (size_t)head_bytes, MSG_NOSIGNAL), head_bytes);
    assert_int_equal(send(fd, bytes, count, MSG_NOSIGNAL), count);
    return fd;
}

enum {
    LARGEST_BYTES = (1 << 20) - 1,
    LARGE_BYTES = 128 << 10,
    HELD_MAX = 800,
    EACH = 16,
    ASKS = 10
};

/* Bodies that never end, until one of that size finds no room; where small ones always have room,
 * so many. How many clients are held then. */
static int hold_room(
    const fixture_t *fixture, const char *bytes, size_t size, int *clients, int count)
{
    unsigned code = 0;
    for (int i = 0; code != 503 && count < HELD_MAX && (size >= LARGE_BYTES || i < EACH); i++) {
        clients[count++] = send_body(fixture, LARGEST_BYTES, bytes, size);
        if (size >= LARGE_BYTES) {
            free(receive_all(send_body(fixture, size, bytes, size), &code));
        }
    }
    return count;
}

/* Bodies that never end take all the room there is, to the last bytes: small ones have theirs. */
static void test_bodies_that_never_end(void **state)
{
    (void)state;
    static char body[LARGEST_BYTES];
    static int clients[HELD_MAX];
    int count = 0;
    fixture_t fixture;
    start_with(&fixture, 1, NULL);
    memset(body, ' ', sizeof body);
    for (size_t size = sizeof body - 1; size > 4; size /= 2) {
        count = hold_room(&fixture, body, size, clients, count);
        assert_true(count < HELD_MAX);
    }
    for (int i = 0; i < ASKS; i++) {
        expect(&fixture, CHAT, PLAIN, 200, STORY, NULL);
    }
    while (count > 0) {
        close(clients[--count]);
    }
    stop(&fixture);
}

/* A body with two lengths: refused, and what may be its rest is no request of its own. */
static void test_two_lengths(void **state)
{
    (void)state;
    static const char *const HEADS[] = {"Content-Length: 3\r\nContent-Length: 5",
        "Content-Length: 3\r\nTransfer-Encoding: chunked"};
    fixture_t fixture;
    start_with(&fixture, 1, NULL);
    for (int i = 0; i < 2; i++) {
        char text[256];
        unsigned code;
        int fd = connect_client(&fixture);
        int bytes = snprintf(text, sizeof text,
            "POST %s HTTP/1.1\r\nHost: x\r\n%s\r\n\r\n0\r\n\r\nGET /healthz HTTP/1.1\r\n"
            "Host: x\r\n\r\n",
            CHAT, HEADS[i]);
        assert_int_equal(send(fd, text, (size_t)bytes, MSG_NOSIGNAL), bytes);
        char *answer = receive_all(fd, &code); /* until the gateway closes */
        assert_int_equal(code, 400);
        assert_non_null(strstr(answer, "more than one Content-Length"));
        assert_int_equal(count_of(answer, "HTTP/1.1 "), 1);
        free(answer);
    }
    stop(&fixture);
}

static void test_time_limit(void **state)
{
    (void)state;
    fixture_t fixture;
    const char *const more[] = {"--gateway.first_token_limit=300ms", NULL};
    start_with(&fixture, 1, more);
    play(0, PLAY_SILENT);
    expect(&fixture, CHAT, PLAIN, 504, "longer than 300 ms to its first token", NULL);
    wait_for_cancel(1);
    stop(&fixture);
}

static void test_too_many(void **state)
{
    (void)state;
    fixture_t fixture;
    const char *const more[] = {"--gateway.queue_max=2", NULL};
    start_with(&fixture, 1, more);
    play(0, PLAY_SILENT);
    int fds[2];
    for (int i = 0; i < 2; i++) {
        fds[i] = connect_client(&fixture);
        send_request(fds[i], "POST", CHAT, PLAIN, strlen(PLAIN));
    }
    wait_for_generates(2);
    expect(&fixture, CHAT, PLAIN, 429, "Retry-After: 1", "2 requests are in work");
    /* A client that goes away gives its place back. */
    close(fds[0]);
    wait_for_cancel(1);
    play(0, PLAY_ANSWER);
    expect(&fixture, CHAT, PLAIN, 200, STORY, NULL);
    /* An orderly stop answers who is left. */
    ask_to(&fixture, STOP);
    unsigned code;
    char *answer = receive_all(fds[1], &code);
    assert_int_equal(code, 503);
    free(answer);
    close(fds[1]);
    finish(&fixture);
}

static void test_client_leaves_a_stream(void **state)
{
    (void)state;
    fixture_t fixture;
    start_with(&fixture, 1, NULL);
    play(0, PLAY_SILENT);
    int fd = connect_client(&fixture);
    send_request(fd, "POST", CHAT, STREAM, strlen(STREAM));
    wait_for_generates(1);
    close(fd);
    wait_for_cancel(1);
    stop(&fixture);
}

static void test_slow_reader(void **state)
{
    (void)state;
    fixture_t fixture;
    start_with(&fixture, 1, NULL);
    play(0, PLAY_FLOOD);
    int fd = connect_client(&fixture);
    int small = 4096;
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    static const char LONG[] = "{\"prompt\":[1],\"stream\":true,\"max_tokens\":8000}";
    send_request(fd, "POST", "/v1/completions", LONG, strlen(LONG));
    wait_for_cancel(1);
    close(fd);
    play(0, PLAY_ANSWER);
    expect(&fixture, CHAT, PLAIN, 200, STORY, NULL);
    stop(&fixture);
}

typedef struct {
    const fixture_t *fixture;
    int failures;
} client_t;

static void *run_client(void *context)
{
    client_t *client = context;
    for (int i = 0; i < 4; i++) {
        unsigned code;
        char *answer = ask(client->fixture, "POST", CHAT, i % 2 == 0 ? STREAM : PLAIN, &code);
        client->failures += code != 200 || strstr(answer, i % 2 == 0 ? "[DONE]" : STORY) == NULL;
        free(answer);
    }
    return NULL;
}

static void test_many_clients(void **state)
{
    (void)state;
    enum { CLIENTS = 50 };
    fixture_t fixture;
    start_with(&fixture, 2, NULL);
    pthread_t threads[CLIENTS];
    client_t clients[CLIENTS];
    for (int i = 0; i < CLIENTS; i++) {
        clients[i] = (client_t){.fixture = &fixture};
        pthread_create(&threads[i], NULL, run_client, &clients[i]);
    }
    for (int i = 0; i < CLIENTS; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(clients[i].failures, 0);
    }
    Kvist__Admin__StatusRequest status = KVIST__ADMIN__STATUS_REQUEST__INIT;
    Kvist__Admin__Request request = KVIST__ADMIN__REQUEST__INIT;
    Kvist__Admin__Reply *reply;
    kv_error_t error;
    request.body_case = KVIST__ADMIN__REQUEST__BODY_STATUS;
    request.status = &status;
    assert_int_equal(
        kv_admin_ask(fixture.options.node.admin, &request, 2000, &reply, &error), KV_OK);
    assert_int_equal(reply->status->requests, 4 * CLIENTS);
    assert_int_equal(reply->status->running_requests, 0);
    assert_int_equal(reply->status->n_peers, 2);
    kvist__admin__reply__free_unpacked(reply, NULL);
    stop(&fixture);
}

int main(void)
{
    kv_log_setup("test", KV_LOG_ERROR);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_answers),
        cmocka_unit_test(test_streams),
        cmocka_unit_test(test_stop_string),
        cmocka_unit_test(test_several_choices),
        cmocka_unit_test(test_tool_calls),
        cmocka_unit_test(test_logprobs),
        cmocka_unit_test(test_token_ids),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_broken_http),
        cmocka_unit_test(test_two_lengths),
        cmocka_unit_test(test_bodies_that_never_end),
        cmocka_unit_test(test_time_limit),
        cmocka_unit_test(test_too_many),
        cmocka_unit_test(test_client_leaves_a_stream),
        cmocka_unit_test(test_slow_reader),
        cmocka_unit_test(test_many_clients),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
