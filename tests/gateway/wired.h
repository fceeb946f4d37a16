/* What the tests of the gateway over real connections share: a gateway and a decode node that is
 * played, each on a thread of its own, with the real wire between them; and one HTTP client.
 *
 * Each test program includes it once; all of it is static. */
#ifndef KV_TESTS_GATEWAY_WIRED_H
#define KV_TESTS_GATEWAY_WIRED_H

#include "testing/testing.h"

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

/* ---- a decode node that is played ---- */

enum { JOBS_MAX = 2048 };

typedef struct {
    kv_peer_t *peer; /* NULL: free */
    char id[80];
    uint32_t prompt_tokens, sent, max_tokens;
    bool cancelled;
} job_t;

typedef struct {
    loop_t loop;
    kv_peers_t *peers;
    uv_timer_t timer;
    job_t jobs[JOBS_MAX];
    uint32_t token;       /* each answer is this one, max_tokens times */
    atomic_uint wait_for; /* says nothing before it has so many requests */
    atomic_uint job_count, cancel_count;
    atomic_uint host_tokens;  /* what it says of each prompt: so many were in host memory, */
    const char *_Atomic miss; /* and why no more; NULL: nothing */
    /* NULL, or told of every message, on the node's thread. */
    void (*heard)(kv_peer_t *peer, const Kvist__Wire__Envelope *message);
} decode_t;

static job_t *find_job(decode_t *decode, const char *id)
{
    for (size_t i = 0; i < JOBS_MAX; i++) {
        if (decode->jobs[i].peer != NULL && strcmp(decode->jobs[i].id, id) == 0) {
            return &decode->jobs[i];
        }
    }
    return NULL;
}

static void finish_job(decode_t *decode, job_t *job)
{
    Kvist__Wire__Envelope envelope = KVIST__WIRE__ENVELOPE__INIT;
    Kvist__Wire__Finished finished = KVIST__WIRE__FINISHED__INIT;
    Kvist__Wire__Usage usage = KVIST__WIRE__USAGE__INIT;
    Kvist__Wire__CachedTokens cached = KVIST__WIRE__CACHED_TOKENS__INIT;
    cached.host = atomic_load(&decode->host_tokens);
    usage.cached = &cached;
    usage.miss = (char *)(atomic_load(&decode->miss) != NULL ? atomic_load(&decode->miss) : "");
    usage.prompt_tokens = job->prompt_tokens;
    usage.generated_tokens = job->sent;
    finished.request_id = job->id;
    finished.reason = job->cancelled ? KVIST__WIRE__FINISH_REASON__FINISH_CANCELLED
                                     : KVIST__WIRE__FINISH_REASON__FINISH_LENGTH;
    finished.usage = &usage;
    envelope.body_case = KVIST__WIRE__ENVELOPE__BODY_FINISHED;
    envelope.finished = &finished;
    kv_peer_send(job->peer, &envelope);
    job->peer = NULL;
    atomic_fetch_sub(&decode->job_count, 1);
}

/* A token of each answer; the end of those that have all. */
static void step_jobs(decode_t *decode)
{
    if (atomic_load(&decode->job_count) < atomic_load(&decode->wait_for)) {
        return;
    }
    atomic_store(&decode->wait_for, 0);
    for (job_t *job = decode->jobs; job < decode->jobs + JOBS_MAX; job++) {
        if (job->peer == NULL) {
            continue;
        }
        if (job->cancelled || job->sent == job->max_tokens) {
            finish_job(decode, job);
            continue;
        }
        Kvist__Wire__Envelope envelope = KVIST__WIRE__ENVELOPE__INIT;
        Kvist__Wire__Tokens tokens = KVIST__WIRE__TOKENS__INIT;
        tokens.request_id = job->id;
        tokens.tokens = &decode->token;
        tokens.n_tokens = 1;
        envelope.body_case = KVIST__WIRE__ENVELOPE__BODY_TOKENS;
        envelope.tokens = &tokens;
        job->sent += kv_peer_send(job->peer, &envelope) == KV_OK;
    }
}

static void on_step(uv_timer_t *timer)
{
    step_jobs(timer->data);
}

static void take_job(decode_t *decode, kv_peer_t *peer, const Kvist__Wire__Generate *generate)
{
    for (size_t i = 0; i < JOBS_MAX; i++) {
        job_t *job = &decode->jobs[i];
        if (job->peer == NULL) {
            *job = (job_t){.peer = peer,
                .prompt_tokens = (uint32_t)generate->n_tokens,
                .max_tokens = generate->max_tokens};
            snprintf(job->id, sizeof job->id, "%s", generate->request_id);
            atomic_fetch_add(&decode->job_count, 1);
            return;
        }
    }
    fail_msg("more than %d requests at one node", JOBS_MAX);
}

static void on_message(void *context, kv_peer_t *peer, const Kvist__Wire__Envelope *message)
{
    decode_t *decode = context;
    if (decode->heard != NULL) {
        decode->heard(peer, message);
    }
    if (message->body_case == KVIST__WIRE__ENVELOPE__BODY_GENERATE) {
        take_job(decode, peer, message->generate);
    } else if (message->body_case == KVIST__WIRE__ENVELOPE__BODY_CANCEL) {
        job_t *job = find_job(decode, message->cancel->request_id);
        atomic_fetch_add(&decode->cancel_count, 1);
        if (job != NULL) {
            job->cancelled = true;
        }
    }
}

static void on_up(void *context, kv_peer_t *peer)
{
    (void)context;
    assert_int_equal(kv_peer_role(peer), KVIST__WIRE__ROLE__ROLE_GATEWAY);
}

static void on_down(void *context, kv_peer_t *peer, kv_status_t status, const char *reason)
{
    (void)status;
    (void)reason;
    decode_t *decode = context;
    for (size_t i = 0; i < JOBS_MAX; i++) {
        if (decode->jobs[i].peer == peer) {
            decode->jobs[i].peer = NULL;
            atomic_fetch_sub(&decode->job_count, 1);
        }
    }
}

static void stop_decode(void *context)
{
    decode_t *decode = context;
    uv_close((uv_handle_t *)&decode->timer, NULL);
    kv_reactor_end(decode->loop.reactor);
}

static uint16_t decode_start(decode_t *decode, const char *key, uint16_t port)
{
    static const uint8_t DIGEST[KV_DIGEST_BYTES] = {1};
    kv_error_t error;
    loop_open(&decode->loop, stop_decode, decode);
    memset(decode->jobs, 0, sizeof decode->jobs);
    atomic_store(&decode->job_count, 0);
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
    uv_timer_init(kv_reactor_loop(decode->loop.reactor), &decode->timer);
    decode->timer.data = decode;
    uv_timer_start(&decode->timer, on_step, 1, 1);
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
        (char *)"--cluster.key=0123456789abcdef", (char *)"--gateway.http_port=0",
        (char *)"--gateway.queue_max=1024", (char *)"--gateway.node_requests=1024",
        (char *)"--gateway.body_bytes_max=1MiB"};
    assert_int_equal(kv_options_load(&PROGRAM, sizeof arguments / sizeof *arguments, arguments,
                         &fixture->options, &action, &error),
        KV_OK);
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

/* The HTTP code; the answer is cut at its buffer's end. */
static unsigned ask_all(const fixture_t *fixture, const char *method, const char *path,
    const char *body, char *answer, size_t answer_bytes_max)
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
    while ((some = recv(fd, answer + bytes, answer_bytes_max - 1 - bytes, 0)) > 0) {
        bytes += (size_t)some;
    }
    answer[bytes] = '\0';
    close(fd);
    return bytes > 12 ? (unsigned)atoi(answer + 9) : 0;
}

static unsigned ask(const fixture_t *fixture, const char *method, const char *path,
    const char *body, char answer[8192])
{
    return ask_all(fixture, method, path, body, answer, 8192);
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

/* The one token that the text is. */
static uint32_t token_of(const char *text)
{
    uint32_t *tokens;
    size_t count;
    kv_error_t error;
    assert_int_equal(kv_tokenizer_encode(tokenizer, text, strlen(text), (kv_tokenizer_mode_t){0},
                         &tokens, &count, &error),
        KV_OK);
    assert_int_equal(count, 1);
    uint32_t token = tokens[0];
    free(tokens);
    return token;
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

#endif
