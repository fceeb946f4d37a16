/* The gateway and a decode node over real control connections: handshake, a request, a wrong key, a
 * node that goes and comes back. */
#include "testing/testing.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/queue.h"
#include "gateway/gateway.h"
#include "transport/peers.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static const char KEY[] = "0123456789abcdef";
static kv_tokenizer_t *tokenizer;

/* ---- a thread with a reactor, ended through a queue ---- */

typedef struct {
    kv_reactor_t *reactor;
    kv_queue_t *queue;
    kv_watch_t *watch;
    pthread_t thread;
    void (*stop)(void *context);
    void *context;
} loop_t;

static void on_queue(void *context)
{
    loop_t *loop = context;
    int item;
    while (kv_queue_pop(loop->queue, &item) == KV_OK) {
        loop->stop(loop->context);
    }
}

static void *run(void *context)
{
    kv_reactor_run(((loop_t *)context)->reactor);
    return NULL;
}

static void loop_open(loop_t *loop, void (*stop)(void *context), void *context)
{
    kv_error_t error;
    *loop = (loop_t){.stop = stop, .context = context};
    assert_int_equal(kv_reactor_create(&loop->reactor, &error), KV_OK);
    loop->queue = kv_queue_create(2, sizeof(int));
    loop->watch = kv_reactor_attach(loop->reactor, kv_queue_fd(loop->queue), on_queue, loop);
}

static void loop_stop(loop_t *loop)
{
    int item = 0;
    kv_queue_push(loop->queue, &item);
    pthread_join(loop->thread, NULL);
}

static void loop_close(loop_t *loop)
{
    kv_watch_detach(loop->watch);
    kv_reactor_destroy(loop->reactor);
    kv_queue_destroy(loop->queue);
}

/* ---- a decode node: answers "a" and the number of prompt tokens as usage ---- */

typedef struct {
    loop_t loop;
    kv_peers_t *peers;
    uint32_t token;
} decode_t;

static void answer(kv_peer_t *peer, const Kvist__Wire__Generate *generate, uint32_t token)
{
    Kvist__Wire__Envelope envelope = KVIST__WIRE__ENVELOPE__INIT;
    Kvist__Wire__Tokens tokens = KVIST__WIRE__TOKENS__INIT;
    Kvist__Wire__Finished finished = KVIST__WIRE__FINISHED__INIT;
    Kvist__Wire__Usage usage = KVIST__WIRE__USAGE__INIT;
    tokens.request_id = generate->request_id;
    tokens.tokens = &token;
    tokens.n_tokens = 1;
    envelope.body_case = KVIST__WIRE__ENVELOPE__BODY_TOKENS;
    envelope.tokens = &tokens;
    kv_peer_send(peer, &envelope);
    usage.prompt_tokens = (uint32_t)generate->n_tokens;
    usage.generated_tokens = 1;
    finished.request_id = generate->request_id;
    finished.reason = KVIST__WIRE__FINISH_REASON__FINISH_LENGTH;
    finished.usage = &usage;
    envelope.body_case = KVIST__WIRE__ENVELOPE__BODY_FINISHED;
    envelope.finished = &finished;
    kv_peer_send(peer, &envelope);
}

static void on_message(void *context, kv_peer_t *peer, const Kvist__Wire__Envelope *message)
{
    decode_t *decode = context;
    if (message->body_case == KVIST__WIRE__ENVELOPE__BODY_GENERATE) {
        answer(peer, message->generate, decode->token);
    }
}

static void on_up(void *context, kv_peer_t *peer)
{
    (void)context;
    assert_int_equal(kv_peer_role(peer), KVIST__WIRE__ROLE__ROLE_GATEWAY);
}

static void on_down(void *context, kv_peer_t *peer, kv_status_t status, const char *reason)
{
    (void)context;
    (void)peer;
    (void)status;
    (void)reason;
}

static void stop_decode(void *context)
{
    kv_reactor_end(((decode_t *)context)->loop.reactor);
}

static uint16_t decode_start(decode_t *decode, const char *key, uint16_t port)
{
    static const uint8_t DIGEST[KV_DIGEST_BYTES] = {1};
    kv_error_t error;
    loop_open(&decode->loop, stop_decode, decode);
    const kv_peers_params_t params = {.loop = kv_reactor_loop(decode->loop.reactor),
        .name = "decode-0",
        .role = KVIST__WIRE__ROLE__ROLE_DECODE,
        .listen_host = "127.0.0.1",
        .listen_port = port,
        .cluster_key = key,
        .cluster_key_bytes = strlen(key),
        .model = DIGEST,
        .layout = DIGEST,
        .callbacks = {decode, on_up, on_down, on_message}};
    if (kv_peers_create(&params, &decode->peers, &error) != KV_OK) {
        fail_msg("%s", error.text);
    }
    pthread_create(&decode->loop.thread, NULL, run, &decode->loop);
    return kv_peers_port(decode->peers);
}

static void decode_end(decode_t *decode)
{
    loop_stop(&decode->loop);
    kv_peers_destroy(decode->peers);
    loop_close(&decode->loop);
}

/* ---- the gateway and its client ---- */

typedef struct {
    loop_t loop;
    kv_options_t options;
    kv_gateway_t *gateway;
} fixture_t;

static void on_stopped(void *context)
{
    kv_reactor_end(((fixture_t *)context)->loop.reactor);
}

static void stop_gateway(void *context)
{
    kv_gateway_begin_stop(((fixture_t *)context)->gateway, on_stopped, context);
}

static void gateway_start(fixture_t *fixture, uint16_t decode_port)
{
    static const kv_options_program_t PROGRAM = {"kvist-gateway", "gateway", "",
        KV_SECTION_CLUSTER | KV_SECTION_NODE | KV_SECTION_MODEL | KV_SECTION_GATEWAY};
    char admin[256], nodes[64];
    kv_error_t error;
    kv_options_action_t action;
    snprintf(admin, sizeof admin, "--node.admin=%s/gateway.sock", kv_test_folder());
    snprintf(nodes, sizeof nodes, "--gateway.decode_nodes=127.0.0.1:%u", decode_port);
    char *arguments[] = {(char *)"kvist-gateway", admin, nodes,
        (char *)"--cluster.key=0123456789abcdef", (char *)"--gateway.http_port=0"};
    assert_int_equal(
        kv_options_load(&PROGRAM, 5, arguments, &fixture->options, &action, &error), KV_OK);
    loop_open(&fixture->loop, stop_gateway, fixture);
    if (kv_gateway_open(fixture->loop.reactor, &fixture->options, tokenizer, &fixture->gateway,
            &error) != KV_OK) {
        fail_msg("%s", error.text);
    }
    pthread_create(&fixture->loop.thread, NULL, run, &fixture->loop);
}

static void gateway_end(fixture_t *fixture)
{
    loop_stop(&fixture->loop);
    kv_gateway_close(fixture->gateway);
    loop_close(&fixture->loop);
    kv_options_clear(&fixture->options);
}

/* The HTTP code; the answer's text in a static buffer. */
static unsigned ask(const fixture_t *fixture, const char *method, const char *path,
    const char *body, char answer[8192])
{
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons(kv_gateway_http_port(fixture->gateway))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
    char text[1024];
    int count = snprintf(text, sizeof text,
        "%s %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %zu\r\n\r\n%s", method,
        path, strlen(body), body);
    assert_int_equal(send(fd, text, (size_t)count, MSG_NOSIGNAL), count);
    size_t bytes = 0;
    ssize_t some;
    while ((some = recv(fd, answer + bytes, 8191 - bytes, 0)) > 0) {
        bytes += (size_t)some;
    }
    answer[bytes] = '\0';
    close(fd);
    return bytes > 12 ? (unsigned)atoi(answer + 9) : 0;
}

static bool becomes(const fixture_t *fixture, unsigned code, int limit_ms)
{
    char text[8192];
    for (int i = 0; i < limit_ms / 20; i++) {
        if (ask(fixture, "GET", "/healthz", "", text) == code) {
            return true;
        }
        usleep(20000);
    }
    return false;
}

static int compare(const void *left, const void *right)
{
    double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

static void test_request_over_the_wire(void **state)
{
    (void)state;
    enum { REQUESTS = 200 };
    decode_t decode = {0};
    fixture_t fixture;
    char text[8192];
    double times_ms[REQUESTS];
    uint32_t *tokens;
    size_t count;
    kv_error_t error;
    assert_int_equal(kv_tokenizer_encode(
                         tokenizer, " tree", 5, (kv_tokenizer_mode_t){0}, &tokens, &count, &error),
        KV_OK);
    decode.token = tokens[0];
    free(tokens);
    uint16_t port = decode_start(&decode, KEY, 0);
    gateway_start(&fixture, port);
    assert_true(becomes(&fixture, 200, 5000));
    for (int i = 0; i < REQUESTS; i++) {
        uint64_t start_ns = kv_clock_now_ns();
        assert_int_equal(
            ask(&fixture, "POST", "/v1/completions", "{\"prompt\":[1,2,3],\"max_tokens\":1}", text),
            200);
        times_ms[i] = (double)(kv_clock_now_ns() - start_ns) / KV_NS_PER_MS;
        assert_non_null(strstr(text, "\"text\":\" tree\""));
        assert_non_null(strstr(text, "\"prompt_tokens\":3"));
    }
    qsort(times_ms, REQUESTS, sizeof times_ms[0], compare);
    print_message(
        "a request with a new connection and a node that answers at once: median %.2f ms, "
        "p99 %.2f ms\n",
        times_ms[REQUESTS / 2], times_ms[REQUESTS * 99 / 100]);

    /* Gone, and back at the same port. */
    decode_end(&decode);
    assert_true(becomes(&fixture, 503, 3000));
    decode_start(&decode, KEY, port);
    assert_true(becomes(&fixture, 200, 10000));
    gateway_end(&fixture);
    decode_end(&decode);
}

static void test_wrong_key(void **state)
{
    (void)state;
    decode_t decode = {0};
    fixture_t fixture;
    uint16_t port = decode_start(&decode, "fedcba9876543210", 0);
    gateway_start(&fixture, port);
    assert_false(becomes(&fixture, 200, 1000));
    gateway_end(&fixture);
    decode_end(&decode);
}

static int open_model(void **state)
{
    (void)state;
    kv_error_t error;
    return kv_tokenizer_open(kv_test_model(), &tokenizer, &error) == KV_OK ? 0 : -1;
}

static int close_model(void **state)
{
    (void)state;
    kv_tokenizer_close(tokenizer);
    return 0;
}

int main(void)
{
    kv_log_setup("test", KV_LOG_ERROR);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_request_over_the_wire),
        cmocka_unit_test(test_wrong_key),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
