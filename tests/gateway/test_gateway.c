/* The gateway as clients see it: real HTTP, a real tokenizer, decode nodes that are played.
 *
 * This program defines transport/peers.h itself, so that nodes can be slow, busy, wrong or lost at
 * the moment that a test wants. The gateway runs on a thread of its own. */
#include "testing/testing.h"

#include "base/bytes.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/queue.h"
#include "gateway/gateway.h"
#include "node/admin_client.h"
#include "transport/peers.h"

#include <arpa/inet.h>
#include <math.h>
#include <netinet/in.h>
#include <openssl/evp.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* ---- decode nodes, played on the reactor's thread ---- */

typedef enum {
    PLAY_ANSWER,     /* tokens one by one, then Finished */
    PLAY_SILENT,     /* nothing, ever */
    PLAY_BUSY,       /* refuses */
    PLAY_LOST,       /* lost before the first token */
    PLAY_LOST_LATER, /* lost after two tokens */
    PLAY_WRONG_TOKEN,
    PLAY_INVALID,
    PLAY_FLOOD, /* as fast as it goes, then silence */
    PLAY_TOO_MANY,
    PLAY_SLOW,        /* as PLAY_ANSWER, two tokens and then one each 20 steps */
    PLAY_FAILS_LATER, /* an error of the engine after two tokens */
    PLAY_GIVES_UP,    /* stops after two tokens: Finished says so */
    PLAY_END_LOST,    /* lost between its last token and Finished */
} play_t;

enum { NODES = 2, JOBS_MAX = 256, TOKENS_MAX = 512 };

typedef struct {
    char id[80];
    uint32_t sent, max_tokens, prompt_tokens, steps, top_logprobs;
    play_t play;
    bool used, cancelled, first;
} job_t;

struct kv_peer {
    kv_peers_t *peers;
    const char *name;
    uint64_t id;
    bool up, wanted;
    void *context;
    atomic_int play;
    atomic_bool draining;
    atomic_uint version;
    job_t jobs[JOBS_MAX];
};

struct kv_peers {
    kv_peers_params_t params;
    uv_timer_t timer;
};

static struct kv_peer nodes[NODES] = {{.name = "decode-0"}, {.name = "decode-1"}};
static uint32_t story[TOKENS_MAX];
static uint32_t story_count;
static atomic_int generates, cancels, last_cache_mode, last_generated_count, last_priority;
static atomic_ullong last_quota_bytes;      /* of host memory, told for alpha */
static atomic_ullong seeds[JOBS_MAX];       /* of the Generates since the start */
static char last_tenant[64], last_salt[64]; /* of the Generate that was counted last */
static atomic_bool story_went_wrong;        /* a Generate's generated tokens were not the story's */
static atomic_bool wanted_up[NODES];
static atomic_bool returning; /* nodes that were lost come back by themselves */
static uint64_t next_peer_id;

static void say_tokens(struct kv_peer *peer, job_t *job, uint32_t *tokens, size_t count)
{
    Kvist__Wire__Tokens body = KVIST__WIRE__TOKENS__INIT;
    Kvist__Wire__Envelope envelope = KVIST__WIRE__ENVELOPE__INIT;
    body.request_id = job->id;
    body.tokens = tokens;
    body.n_tokens = count;
    Kvist__Wire__CachedTokens cached = KVIST__WIRE__CACHED_TOKENS__INIT;
    Kvist__Wire__Usage usage = KVIST__WIRE__USAGE__INIT;
    cached.disk = peer == &nodes[0] ? 1 : 2;
    usage.prompt_tokens = job->prompt_tokens;
    usage.cached = &cached;
    body.usage = job->first ? &usage : NULL;
    /* Of one token: its logprob and so many alternatives, the first of which it is; one is none. */
    float chosen = -0.5f, logprobs[4] = {-0.5f, -INFINITY, -1, -2};
    uint32_t alternatives[4] = {tokens[0], 17, 4000000000u, 18};
    Kvist__Wire__TopLogprobs tops = KVIST__WIRE__TOP_LOGPROBS__INIT, *all[] = {&tops};
    tops.tokens = alternatives;
    tops.logprobs = logprobs;
    tops.n_tokens = tops.n_logprobs = job->top_logprobs < 4 ? job->top_logprobs : 4;
    body.logprobs = &chosen;
    body.n_logprobs = count == 1;
    body.tops = all;
    body.n_tops = count == 1 && job->top_logprobs > 0;
    job->first = false;
    envelope.body_case = KVIST__WIRE__ENVELOPE__BODY_TOKENS;
    envelope.tokens = &body;
    peer->peers->params.callbacks.message(peer->peers->params.callbacks.context, peer, &envelope);
}

static void say_finished(
    struct kv_peer *peer, job_t *job, Kvist__Wire__FinishReason reason, kv_status_t status)
{
    Kvist__Wire__CachedTokens cached = KVIST__WIRE__CACHED_TOKENS__INIT;
    Kvist__Wire__Usage usage = KVIST__WIRE__USAGE__INIT;
    Kvist__Wire__Finished body = KVIST__WIRE__FINISHED__INIT;
    Kvist__Wire__Envelope envelope = KVIST__WIRE__ENVELOPE__INIT;
    cached.host = 16;
    usage.prompt_tokens = job->prompt_tokens;
    usage.cached = &cached;
    usage.miss = (char *)"short";
    usage.prefilled_by = (char *)"prefill-0";
    body.request_id = job->id;
    body.reason = reason;
    body.status = status;
    body.error = (char *)"as the test wants";
    body.usage = status == KV_OK ? &usage : NULL;
    envelope.body_case = KVIST__WIRE__ENVELOPE__BODY_FINISHED;
    envelope.finished = &body;
    job->used = false;
    peer->peers->params.callbacks.message(peer->peers->params.callbacks.context, peer, &envelope);
}

static void lose(struct kv_peer *peer)
{
    peer->up = false;
    peer->wanted = false;
    memset(peer->jobs, 0, sizeof peer->jobs);
    peer->peers->params.callbacks.down(
        peer->peers->params.callbacks.context, peer, KV_PEER_LOST, "played");
}

static void step_job(struct kv_peer *peer, job_t *job)
{
    if (job->cancelled) {
        say_finished(peer, job, KVIST__WIRE__FINISH_REASON__FINISH_CANCELLED, KV_OK);
    } else if (job->play == PLAY_BUSY || job->play == PLAY_INVALID) {
        say_finished(peer, job, KVIST__WIRE__FINISH_REASON__FINISH_ERROR,
            job->play == PLAY_BUSY ? KV_BUSY : KV_INVALID);
    } else if (job->play == PLAY_LOST || (job->play == PLAY_LOST_LATER && job->sent == 2) ||
               (job->play == PLAY_END_LOST && job->sent == job->max_tokens)) {
        lose(peer);
    } else if (job->sent == 2 && (job->play == PLAY_FAILS_LATER || job->play == PLAY_GIVES_UP)) {
        say_finished(peer, job, KVIST__WIRE__FINISH_REASON__FINISH_ERROR,
            job->play == PLAY_GIVES_UP ? KV_CANCELLED : KV_FATAL);
    } else if (job->play == PLAY_SLOW && job->sent >= 2 && ++job->steps % 20 != 0) {
        return;
    } else if (job->play == PLAY_WRONG_TOKEN) {
        say_tokens(peer, job, (uint32_t[]){4000000000u}, 1);
    } else if (job->play == PLAY_FLOOD) {
        for (int i = 0; i < 64 && job->used && job->sent < job->max_tokens; i++) {
            job->sent++;
            say_tokens(peer, job, story, 1);
        }
    } else if (job->play == PLAY_TOO_MANY) {
        say_tokens(peer, job, story, job->max_tokens + 1);
    } else if (job->play != PLAY_SILENT && job->sent == job->max_tokens) {
        say_finished(peer, job, KVIST__WIRE__FINISH_REASON__FINISH_LENGTH, KV_OK);
    } else if (job->play != PLAY_SILENT && job->sent == story_count) {
        say_finished(peer, job, KVIST__WIRE__FINISH_REASON__FINISH_STOP, KV_OK);
    } else if (job->play != PLAY_SILENT) {
        say_tokens(peer, job, &story[job->sent++], 1);
    }
}

static void on_step(uv_timer_t *timer)
{
    kv_peers_t *peers = timer->data;
    for (int i = 0; i < NODES; i++) {
        struct kv_peer *peer = &nodes[i];
        bool wanted = atomic_load(&wanted_up[i]);
        peer->wanted = peer->wanted || atomic_load(&returning);
        if (wanted && !peer->up && peer->wanted) {
            peer->up = true;
            peer->peers = peers;
            peer->context = NULL;
            peer->id = ++next_peer_id;
            peers->params.callbacks.up(peers->params.callbacks.context, peer);
        } else if (!wanted && peer->up) {
            lose(peer);
            peer->wanted = true;
        }
        for (int j = 0; peer->up && j < JOBS_MAX; j++) {
            if (peer->jobs[j].used) {
                step_job(peer, &peer->jobs[j]);
            }
        }
    }
}

kv_status_t kv_peers_create(
    const kv_peers_params_t *params, kv_peers_t **peers_out, kv_error_t *error)
{
    (void)error;
    kv_peers_t *peers = kv_allocate(sizeof *peers);
    peers->params = *params;
    uv_timer_init(params->loop, &peers->timer);
    peers->timer.data = peers;
    uv_timer_start(&peers->timer, on_step, 2, 2);
    *peers_out = peers;
    return KV_OK;
}

static void free_peers(uv_handle_t *handle)
{
    free(handle->data);
}

void kv_peers_destroy(kv_peers_t *peers)
{
    for (int i = 0; i < NODES; i++) {
        nodes[i].up = false;
        memset(nodes[i].jobs, 0, sizeof nodes[i].jobs);
    }
    uv_close((uv_handle_t *)&peers->timer, free_peers);
}

kv_status_t kv_peers_connect(kv_peers_t *peers, const char *address, kv_error_t *error)
{
    (void)error;
    nodes[atoi(strchr(address, ':') + 1) - 1].peers = peers;
    return KV_OK;
}

void kv_peers_disconnect(kv_peers_t *peers, const char *address)
{
    (void)peers;
    (void)address;
}

kv_peer_t *kv_peers_find(kv_peers_t *peers, const char *name)
{
    (void)peers;
    (void)name;
    return NULL;
}

uint16_t kv_peers_port(const kv_peers_t *peers)
{
    (void)peers;
    return 0;
}

kv_status_t kv_peer_send(kv_peer_t *peer, const Kvist__Wire__Envelope *message)
{
    if (!peer->up) {
        return KV_PEER_LOST;
    }
    if (message->body_case == KVIST__WIRE__ENVELOPE__BODY_CANCEL) {
        atomic_fetch_add(&cancels, 1);
        for (int i = 0; i < JOBS_MAX; i++) {
            if (peer->jobs[i].used && strcmp(peer->jobs[i].id, message->cancel->request_id) == 0) {
                peer->jobs[i].cancelled = true;
            }
        }
        return KV_OK;
    }
    if (message->body_case == KVIST__WIRE__ENVELOPE__BODY_SUBSCRIBE) {
        return KV_OK;
    }
    if (message->body_case == KVIST__WIRE__ENVELOPE__BODY_QUOTA) {
        bool alpha = strcmp(message->quota->tenant, "alpha") == 0;
        atomic_store(&last_quota_bytes, alpha ? message->quota->host_bytes : UINT64_MAX);
        return KV_OK;
    }
    for (int i = 0; i < JOBS_MAX; i++) {
        if (!peer->jobs[i].used) {
            const Kvist__Wire__Generate *generate = message->generate;
            uint32_t before = generate->generated_count;
            size_t prompt_tokens = generate->n_tokens - before;
            atomic_store(&last_generated_count, (int)before);
            if (before > 0 &&
                memcmp(generate->tokens + prompt_tokens, story, before * sizeof *story) != 0) {
                atomic_store(&story_went_wrong, true);
            }
            peer->jobs[i] = (job_t){.used = true,
                .first = true,
                .sent = before,
                .max_tokens = before + generate->max_tokens,
                .prompt_tokens = (uint32_t)prompt_tokens,
                .top_logprobs = generate->sampling->top_logprobs,
                .play = atomic_load(&peer->play)};
            snprintf(peer->jobs[i].id, sizeof peer->jobs[i].id, "%s", generate->request_id);
            atomic_store(&last_priority, (int)generate->priority);
            snprintf(last_tenant, sizeof last_tenant, "%s", generate->tenant);
            snprintf(last_salt, sizeof last_salt, "%.*s", (int)generate->salt.len,
                (const char *)generate->salt.data);
            int before_this = atomic_fetch_add(&generates, 1);
            atomic_store(&seeds[before_this % JOBS_MAX], generate->sampling->seed);
            atomic_store(&last_cache_mode, (int)generate->cache_mode);
            return KV_OK;
        }
    }
    return KV_BUSY;
}

void kv_peer_close(kv_peer_t *peer, kv_status_t status, const char *reason)
{
    (void)peer;
    (void)status;
    (void)reason;
}

const char *kv_peer_name(const kv_peer_t *peer)
{
    return peer->name;
}

Kvist__Wire__Role kv_peer_role(const kv_peer_t *peer)
{
    (void)peer;
    return KVIST__WIRE__ROLE__ROLE_DECODE;
}

const char *kv_peer_address(const kv_peer_t *peer)
{
    (void)peer;
    return "127.0.0.1:1";
}

uint64_t kv_peer_id(const kv_peer_t *peer)
{
    return peer->id;
}

uint32_t kv_peer_queued_requests(const kv_peer_t *peer)
{
    (void)peer;
    return 0;
}

uint32_t kv_peer_running_requests(const kv_peer_t *peer)
{
    (void)peer;
    return 0;
}

const char *kv_peer_attached_to(const kv_peer_t *peer)
{
    (void)peer;
    return "";
}

bool kv_peer_draining(const kv_peer_t *peer)
{
    return atomic_load(&peer->draining);
}

uint32_t kv_peer_version(const kv_peer_t *peer)
{
    return atomic_load(&peer->version);
}

void kv_peers_set_load(kv_peers_t *peers, uint32_t queued_requests, uint32_t running_requests)
{
    (void)peers;
    (void)queued_requests;
    (void)running_requests;
}

void kv_peer_set_context(kv_peer_t *peer, void *context)
{
    peer->context = context;
}

void *kv_peer_context(const kv_peer_t *peer)
{
    return peer->context;
}

/* ---- the gateway on a thread ---- */

typedef struct {
    kv_options_t options;
    kv_reactor_t *reactor;
    kv_gateway_t *gateway;
    kv_queue_t *stop_queue;
    kv_watch_t *watch;
    pthread_t thread;
    uint16_t port;
} fixture_t;

static kv_tokenizer_t *tokenizer;
static const char STORY[] = "The quick brown fox jumps over the lazy d\xc3\xb6g.";

/* What nodes answer, while no gateway runs. */
static void tell(const char *text)
{
    kv_error_t error;
    uint32_t *tokens;
    size_t count;
    kv_tokenizer_mode_t mode = {0};
    assert_int_equal(
        kv_tokenizer_encode(tokenizer, text, strlen(text), mode, &tokens, &count, &error), KV_OK);
    assert_true(count <= TOKENS_MAX);
    memcpy(story, tokens, count * sizeof *tokens);
    story_count = (uint32_t)count;
    free(tokens);
}

enum { STOP, DRAIN };

static void on_stopped(void *context)
{
    kv_reactor_end(((fixture_t *)context)->reactor);
}

static void on_stop(void *context)
{
    fixture_t *fixture = context;
    int item;
    while (kv_queue_pop(fixture->stop_queue, &item) == KV_OK) {
        if (item == DRAIN) {
            kv_gateway_begin_drain(fixture->gateway);
        } else {
            kv_gateway_begin_stop(fixture->gateway, on_stopped, fixture);
        }
    }
}

static void *run(void *context)
{
    kv_reactor_run(((fixture_t *)context)->reactor);
    return NULL;
}

static void play(int node, play_t how)
{
    atomic_store(&nodes[node].play, how);
}

static char *ask(const fixture_t *fixture, const char *method, const char *path, const char *body,
    unsigned *code_out);

static void wait_for_health(const fixture_t *fixture, const char *expected)
{
    for (int i = 0; i < 500; i++) {
        unsigned code;
        char *answer = ask(fixture, "GET", "/healthz", NULL, &code);
        bool there = strstr(answer, expected) != NULL;
        free(answer);
        if (there) {
            return;
        }
        usleep(5000);
    }
    fail_msg("never %s", expected);
}

static void wait_for_nodes(const fixture_t *fixture, int count)
{
    char expected[32];
    snprintf(expected, sizeof expected, "\"decode_nodes\":%d", count);
    wait_for_health(fixture, expected);
}

static void start_with(fixture_t *fixture, int node_count, const char *const *more)
{
    static const kv_options_program_t PROGRAM = {"kvist-gateway", "gateway", "",
        KV_SECTION_CLUSTER | KV_SECTION_NODE | KV_SECTION_MODEL | KV_SECTION_GATEWAY};
    char admin[256];
    kv_error_t error;
    kv_options_action_t action;
    snprintf(admin, sizeof admin, "--node.admin=%s/gateway.sock", kv_test_folder());
    char *arguments[20] = {(char *)"kvist-gateway", admin, (char *)"--cluster.key=0123456789abcdef",
        (char *)"--gateway.http_port=0", (char *)"--gateway.decode_nodes=127.0.0.1:1,127.0.0.1:2",
        (char *)"--gateway.model_name=tiny", (char *)"--gateway.body_bytes_max=1MiB",
        (char *)"--gateway.node_wait=300ms", (char *)"--gateway.queue_wait=300ms",
        (char *)"--node.log_level=error"};
    int count = 10;
    for (; more != NULL && *more != NULL; more++) {
        arguments[count++] = (char *)*more;
    }
    if (kv_options_load(&PROGRAM, count, arguments, &fixture->options, &action, &error) != KV_OK) {
        fail_msg("%s", error.text);
    }
    for (int i = 0; i < NODES; i++) {
        nodes[i].wanted = true;
        atomic_store(&wanted_up[i], i < node_count);
        play(i, PLAY_ANSWER);
        atomic_store(&nodes[i].draining, false);
        atomic_store(&nodes[i].version, 3);
    }
    atomic_store(&generates, 0);
    atomic_store(&cancels, 0);
    assert_int_equal(kv_reactor_create(&fixture->reactor, &error), KV_OK);
    fixture->stop_queue = kv_queue_create(2, sizeof(int));
    fixture->watch =
        kv_reactor_attach(fixture->reactor, kv_queue_fd(fixture->stop_queue), on_stop, fixture);
    if (kv_gateway_open(
            fixture->reactor, &fixture->options, tokenizer, &fixture->gateway, &error) != KV_OK) {
        fail_msg("%s", error.text);
    }
    fixture->port = kv_gateway_http_port(fixture->gateway);
    pthread_create(&fixture->thread, NULL, run, fixture);
    wait_for_nodes(fixture, node_count);
}

static void ask_to(fixture_t *fixture, int what)
{
    kv_queue_push(fixture->stop_queue, &what);
}

/* Waits until the loop has ended, which somebody asked for. */
static void finish(fixture_t *fixture)
{
    pthread_join(fixture->thread, NULL);
    kv_gateway_close(fixture->gateway);
    kv_watch_detach(fixture->watch);
    kv_reactor_destroy(fixture->reactor);
    kv_queue_destroy(fixture->stop_queue);
    kv_options_clear(&fixture->options);
}

static void stop(fixture_t *fixture)
{
    ask_to(fixture, STOP);
    finish(fixture);
}

/* ---- a client ---- */

static int connect_client(const fixture_t *fixture)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(fixture->port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
    struct timeval limit = {.tv_sec = 20};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    return fd;
}

static void send_request(
    int fd, const char *method, const char *path, const char *body, size_t bytes)
{
    char head[256];
    int count = snprintf(head, sizeof head,
        "%s %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %zu\r\n\r\n", method,
        path, bytes);
    assert_int_equal(send(fd, head, (size_t)count, MSG_NOSIGNAL), count);
    for (size_t sent = 0; sent < bytes;) {
        ssize_t some = send(fd, body + sent, bytes - sent, MSG_NOSIGNAL);
        if (some <= 0) {
            return;
        }
        sent += (size_t)some;
    }
}

/* Everything until the server closes; terminated. */
static char *receive_all(int fd, unsigned *code_out)
{
    size_t capacity = 1 << 16, count = 0;
    char *answer = malloc(capacity);
    ssize_t some;
    while ((some = recv(fd, answer + count, capacity - count - 1, 0)) > 0) {
        count += (size_t)some;
        if (count + 1 == capacity) {
            answer = realloc(answer, capacity *= 2);
        }
    }
    answer[count] = '\0';
    *code_out = count > 12 ? (unsigned)atoi(answer + 9) : 0;
    return answer;
}

static char *ask(const fixture_t *fixture, const char *method, const char *path, const char *body,
    unsigned *code_out)
{
    int fd = connect_client(fixture);
    send_request(fd, method, path, body, body != NULL ? strlen(body) : 0);
    char *answer = receive_all(fd, code_out);
    close(fd);
    return answer;
}

/* Asks and checks the code and that the answer holds each of the texts. */
static void expect(const fixture_t *fixture, const char *path, const char *body, unsigned code,
    const char *first, const char *second)
{
    unsigned got;
    char *answer = ask(fixture, body != NULL ? "POST" : "GET", path, body, &got);
    if (got != code || strstr(answer, first) == NULL ||
        (second != NULL && strstr(answer, second) == NULL)) {
        fail_msg("%s %s\n gave %s", path, body != NULL ? body : "", answer);
    }
    free(answer);
}

/* The same with headers, each ended by its line break. */
static char *ask_with(const fixture_t *fixture, const char *path, const char *headers,
    const char *body, unsigned *code_out)
{
    char head[1024];
    int fd = connect_client(fixture);
    int count = snprintf(head, sizeof head,
        "%s %s HTTP/1.1\r\nHost: x\r\n%sConnection: close\r\nContent-Length: %zu\r\n\r\n",
        body != NULL ? "POST" : "GET", path, headers, body != NULL ? strlen(body) : 0);
    assert_int_equal(send(fd, head, (size_t)count, MSG_NOSIGNAL), count);
    if (body != NULL) {
        assert_int_equal(send(fd, body, strlen(body), MSG_NOSIGNAL), strlen(body));
    }
    char *answer = receive_all(fd, code_out);
    close(fd);
    return answer;
}

static void expect_with(const fixture_t *fixture, const char *path, const char *headers,
    const char *body, unsigned code, const char *text)
{
    unsigned got;
    char *answer = ask_with(fixture, path, headers, body, &got);
    if (got != code || strstr(answer, text) == NULL) {
        fail_msg("%s with %s\n gave %s\n not %u and %s", path, headers, answer, code, text);
    }
    free(answer);
}

static void wait_for_cancel(int count)
{
    for (int i = 0; i < 400 && atomic_load(&cancels) < count; i++) {
        usleep(5000);
    }
    assert_int_equal(atomic_load(&cancels), count);
}

static const char CHAT[] = "/v1/chat/completions";
static const char PLAIN[] = "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]}";
static const char STREAM[] = "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],"
                             "\"stream\":true,\"stream_options\":{\"include_usage\":true}}";

/* ---- tenants ---- */

static char tenants_option[400];
static const char *tenants_path = tenants_option + sizeof "--gateway.tenants_file=" - 1;

/* Salts that are texts: "alphaalpha...", "betabeta...". */
#define SALT_ALPHA "616c706861616c706861616c706861616c706861616c706861616c706861616c"
#define SALT_BETA "6265746162657461626574616265746162657461626574616265746162657461"

static void hash_key(const char *key, char text_out[65])
{
    uint8_t hash[32];
    assert_int_equal(EVP_Digest(key, strlen(key), hash, NULL, EVP_sha256(), NULL), 1);
    kv_hex_encode(hash, sizeof hash, text_out);
}

/* alpha: what `fields` say; beta: no bounds. */
static void write_tenants(const char *fields)
{
    char alpha[65], beta[65];
    hash_key("key-alpha", alpha);
    hash_key("key-beta", beta);
    snprintf(tenants_option, sizeof tenants_option, "--gateway.tenants_file=%s/tenants.yaml",
        kv_test_folder());
    FILE *file = fopen(tenants_path, "w");
    assert_non_null(file);
    fprintf(file,
        "tenants:\n  - name: alpha\n    salt: %s\n    key_sha256: [%s]\n%s"
        "  - name: beta\n    salt: %s\n    key_sha256: [%s]\n",
        SALT_ALPHA, alpha, fields, SALT_BETA, beta);
    fclose(file);
    assert_int_equal(chmod(tenants_path, 0600), 0);
}

static void wait_for_generates(int count)
{
    for (int i = 0; i < 4000 && atomic_load(&generates) < count; i++) {
        usleep(5000);
    }
    assert_int_equal(atomic_load(&generates), count);
}

/* Until the page of metrics has the line. */
static void wait_for_line(const fixture_t *fixture, const char *line)
{
    for (int i = 0; i < 2000; i++) {
        unsigned code;
        char *page = ask(fixture, "GET", "/metrics", NULL, &code);
        bool there = strstr(page, line) != NULL;
        free(page);
        if (there) {
            return;
        }
        usleep(5000);
    }
    fail_msg("never %s", line);
}

static const char ALPHA[] = "Authorization: Bearer key-alpha\r\n";
static const char BETA[] = "x-api-key: key-beta\r\n";

/* ---- tests ---- */

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

static size_t count_of(const char *answer, const char *text)
{
    size_t count = 0;
    for (const char *at = answer; (at = strstr(at, text)) != NULL; at++) {
        count++;
    }
    return count;
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
    while (atomic_load(&generates) < 1) {
        usleep(1000);
    }
    play(0, PLAY_ANSWER);
    expect(&fixture, CHAT, PLAIN, 200, STORY, NULL);
    assert_int_equal(atomic_load(&generates), 2);
    close(fd);
    wait_for_cancel(1);
    stop(&fixture);
}

/* A node that is lost takes some choices with it: all of them come whole. */
static void test_choices_go_on_at_another_node(void **state)
{
    (void)state;
    fixture_t fixture;
    start_with(&fixture, 2, NULL);
    play(0, PLAY_LOST_LATER);
    unsigned code;
    char *answer = ask(&fixture, "POST", CHAT,
        "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],\"n\":5}", &code);
    assert_int_equal(code, 200);
    assert_int_equal(count_of(answer, STORY), 5);
    assert_false(atomic_load(&story_went_wrong));
    free(answer);
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

static void test_nodes_fail(void **state)
{
    (void)state;
    fixture_t fixture;
    start_with(&fixture, 0, NULL);
    expect(&fixture, "/healthz", NULL, 503, "no decode node", NULL);
    expect(&fixture, CHAT, PLAIN, 503, "Retry-After: 1", "no decode node is up");
    atomic_store(&wanted_up[0], true);
    atomic_store(&wanted_up[1], true);
    wait_for_nodes(&fixture, 2);

    play(0, PLAY_BUSY);
    expect(&fixture, CHAT, PLAIN, 200, STORY, NULL);
    play(1, PLAY_BUSY);
    expect(&fixture, CHAT, PLAIN, 429, "Retry-After: 1", "is busy");

    play(0, PLAY_LOST);
    play(1, PLAY_ANSWER);
    expect(&fixture, CHAT, STREAM, 200, " lazy", "[DONE]");
    wait_for_nodes(&fixture, 1);
    play(1, PLAY_LOST_LATER);
    expect(&fixture, CHAT, PLAIN, 502, "was lost", NULL);
    stop(&fixture);
}

/* Asks for a stream and puts its pieces together again; the answer is the raw one. */
static char *stream_text(const fixture_t *fixture, const char *body, char *text_out)
{
    static const char MARK[] = "\"delta\":{";
    unsigned code;
    char *answer = ask(fixture, "POST", CHAT, body, &code);
    assert_int_equal(code, 200);
    *text_out = '\0';
    for (const char *at = answer; (at = strstr(at, MARK)) != NULL; at++) {
        const char *from = strstr(at, "\"content\":\"");
        if (from != NULL && from < strchr(at, '}')) {
            from += strlen("\"content\":\"");
            strncat(text_out, from, (size_t)(strchr(from, '"') - from));
        }
    }
    return answer;
}

/* The stream of an undisturbed request, whatever became of its first node; two tokens were there.
 */
static void expect_continued(const fixture_t *fixture)
{
    char text[512];
    char *answer = stream_text(fixture, STREAM, text);
    assert_string_equal(text, STORY);
    assert_non_null(strstr(answer, "data: [DONE]\n\n"));
    char usage[64];
    snprintf(usage, sizeof usage, "\"completion_tokens\":%u", story_count);
    assert_non_null(strstr(answer, usage));
    assert_non_null(strstr(answer, "\"cached_tokens\":1}")); /* the first node's word */
    assert_int_equal(atomic_load(&last_generated_count), 2);
    assert_false(atomic_load(&story_went_wrong));
    free(answer);
}

static void test_text_goes_on_at_another_node(void **state)
{
    (void)state;
    static const play_t PLAYS[] = {PLAY_LOST_LATER, PLAY_FAILS_LATER, PLAY_GIVES_UP};
    for (size_t i = 0; i < sizeof PLAYS / sizeof PLAYS[0]; i++) {
        fixture_t fixture;
        start_with(&fixture, 2, NULL);
        play(0, PLAYS[i]);
        expect_continued(&fixture);
        assert_int_equal(atomic_load(&generates), 2);
        stop(&fixture);
    }
    fixture_t fixture;
    start_with(&fixture, 2, NULL);
    play(0, PLAY_LOST_LATER);
    expect(&fixture, CHAT, PLAIN, 200, STORY, "\"cached_tokens\":1}");
    stop(&fixture);
    /* A stop string that the two nodes made together. */
    start_with(&fixture, 2, NULL);
    play(0, PLAY_LOST_LATER);
    expect(&fixture, "/v1/completions", "{\"prompt\":\"once\",\"stop\":[\"quick brown\"]}", 200,
        "\"text\":\"The \"", "\"finish_reason\":\"stop\"");
    stop(&fixture);
}

/* A node of version 1 would take what was generated for the prompt: it gets whole requests only. */
static void test_begun_text_stays_from_an_older_node(void **state)
{
    (void)state;
    fixture_t fixture;
    start_with(&fixture, 2, NULL);
    atomic_store(&nodes[1].version, 1);
    play(0, PLAY_LOST_LATER);
    unsigned code;
    char *answer = ask(&fixture, "POST", CHAT, STREAM, &code);
    assert_int_equal(code, 200);
    assert_non_null(
        strstr(answer, "data: {\"error\":{\"message\":\"decode node decode-0 was lost"));
    assert_int_equal(atomic_load(&generates), 1);
    free(answer);
    expect(&fixture, CHAT, PLAIN, 200, STORY, NULL);
    stop(&fixture);
    /* A node that drains finishes what no other one could go on with. */
    start_with(&fixture, 2, NULL);
    atomic_store(&nodes[1].version, 1);
    play(0, PLAY_SLOW);
    int fd = connect_client(&fixture);
    send_request(fd, "POST", CHAT, STREAM, strlen(STREAM));
    while (atomic_load(&generates) < 1) {
        usleep(1000);
    }
    usleep(20000);
    atomic_store(&nodes[0].draining, true);
    answer = receive_all(fd, &code);
    assert_non_null(strstr(answer, "data: [DONE]\n\n"));
    assert_int_equal(atomic_load(&generates), 1);
    assert_int_equal(atomic_load(&cancels), 0);
    free(answer);
    close(fd);
    stop(&fixture);
}

/* All nodes gone for a moment, as in a restart. */
static void test_waits_for_a_node(void **state)
{
    (void)state;
    const char *const more[] = {"--gateway.node_wait=20s", NULL};
    fixture_t fixture;
    start_with(&fixture, 1, more);
    play(0, PLAY_LOST_LATER);
    int fd = connect_client(&fixture);
    send_request(fd, "POST", CHAT, STREAM, strlen(STREAM));
    wait_for_nodes(&fixture, 0);
    play(0, PLAY_ANSWER);
    atomic_store(&returning, true);
    unsigned code;
    char *answer = receive_all(fd, &code);
    atomic_store(&returning, false);
    assert_int_equal(code, 200);
    assert_non_null(strstr(answer, "data: [DONE]\n\n"));
    assert_int_equal(atomic_load(&last_generated_count), 2);
    free(answer);
    close(fd);
    stop(&fixture);
}

/* Nobody comes back in time: the stream ends with what happened and without [DONE]. */
static void test_no_node_comes_back(void **state)
{
    (void)state;
    fixture_t fixture;
    start_with(&fixture, 2, NULL);
    play(0, PLAY_LOST_LATER);
    play(1, PLAY_LOST);
    unsigned code;
    char *answer = ask(&fixture, "POST", CHAT, STREAM, &code);
    assert_int_equal(code, 200);
    assert_non_null(
        strstr(answer, "data: {\"error\":{\"message\":\"decode node decode-1 was lost"));
    assert_null(strstr(answer, "[DONE]"));
    free(answer);
    stop(&fixture);
}

/* The last token came, Finished did not: nothing is left to ask for. */
static void test_complete_without_finished(void **state)
{
    (void)state;
    fixture_t fixture;
    start_with(&fixture, 2, NULL);
    play(0, PLAY_END_LOST);
    expect(&fixture, "/v1/completions", "{\"prompt\":\"once\",\"max_tokens\":2}", 200,
        "\"text\":\"The quick\"", "\"finish_reason\":\"length\"");
    assert_int_equal(atomic_load(&generates), 1);
    stop(&fixture);
}

/* A request that breaks every node it comes to ends after a few. */
static void test_attempts_are_bounded(void **state)
{
    (void)state;
    fixture_t fixture;
    const char *const more[] = {"--gateway.node_wait=20s", NULL};
    start_with(&fixture, 2, more);
    play(0, PLAY_LOST_LATER);
    play(1, PLAY_LOST);
    atomic_store(&returning, true);
    unsigned code;
    char *answer = ask(&fixture, "POST", CHAT, STREAM, &code);
    assert_non_null(strstr(answer, "was lost"));
    assert_null(strstr(answer, "[DONE]"));
    assert_int_equal(atomic_load(&generates), 4);
    free(answer);
    atomic_store(&returning, false);
    stop(&fixture);
}

static void test_leaves_a_draining_node(void **state)
{
    (void)state;
    fixture_t fixture;
    start_with(&fixture, 2, NULL);
    play(0, PLAY_SLOW);
    play(1, PLAY_SLOW);
    int fd = connect_client(&fixture);
    send_request(fd, "POST", CHAT, STREAM, strlen(STREAM));
    while (atomic_load(&generates) < 1) {
        usleep(1000);
    }
    usleep(20000);
    atomic_store(&nodes[0].draining, true);
    wait_for_cancel(1);
    unsigned code;
    char *answer = receive_all(fd, &code);
    assert_non_null(strstr(answer, "data: [DONE]\n\n"));
    assert_int_equal(atomic_load(&generates), 2);
    assert_false(atomic_load(&story_went_wrong));
    free(answer);
    close(fd);
    /* New ones go to the other; with both draining they wait for one, then end. */
    expect(&fixture, CHAT, PLAIN, 200, STORY, "\"cached_tokens\":16");
    atomic_store(&nodes[1].draining, true);
    expect(&fixture, CHAT, PLAIN, 503, "Retry-After: 1", "no decode node is up");
    stop(&fixture);
}

/* The gateway itself drains: what runs is finished, what comes is sent elsewhere, then it ends. */
static void test_gateway_drains(void **state)
{
    (void)state;
    fixture_t fixture;
    start_with(&fixture, 1, NULL);
    play(0, PLAY_SLOW);
    int fd = connect_client(&fixture);
    send_request(fd, "POST", CHAT, STREAM, strlen(STREAM));
    while (atomic_load(&generates) < 1) {
        usleep(1000);
    }
    ask_to(&fixture, DRAIN);
    wait_for_health(&fixture, "\"status\":\"draining\"");
    expect(&fixture, "/healthz", NULL, 503, "draining", NULL);
    expect(&fixture, CHAT, PLAIN, 503, "Retry-After: 1", "draining");
    unsigned code;
    char *answer = receive_all(fd, &code);
    assert_int_equal(code, 200);
    assert_non_null(strstr(answer, "data: [DONE]\n\n"));
    free(answer);
    close(fd);
    finish(&fixture);
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
    while (atomic_load(&generates) < 2) {
        usleep(1000);
    }
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
    while (atomic_load(&generates) < 1) {
        usleep(1000);
    }
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
    for (int i = 0; i < 2000 && atomic_load(&cancels) == 0; i++) {
        usleep(5000);
    }
    assert_int_equal(atomic_load(&cancels), 1);
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

static int open_model(void **state)
{
    (void)state;
    kv_error_t error;
    const char *path = kv_test_model();
    if (kv_tokenizer_open(path, &tokenizer, &error) != KV_OK) {
        return -1;
    }
    tell(STORY);
    return 0;
}

static int close_model(void **state)
{
    (void)state;
    kv_tokenizer_close(tokenizer);
    return 0;
}

static void test_keys(void **state)
{
    (void)state;
    fixture_t fixture;
    write_tenants("");
    start_with(&fixture, 1, (const char *[]){tenants_option, NULL});
    static const char *const WRONG[] = {"", "Authorization: Bearer key-gamma\r\n",
        "Authorization: key-alpha\r\n", "Authorization: Bearer \r\n", "x-api-key:\r\n",
        "x-goog-api-key: KEY-ALPHA\r\n"};
    for (size_t i = 0; i < sizeof WRONG / sizeof WRONG[0]; i++) {
        expect_with(&fixture, CHAT, WRONG[i], PLAIN, 401, "\"code\":\"invalid_api_key\"");
        expect_with(&fixture, "/v1/models", WRONG[i], NULL, 401, "WWW-Authenticate: Bearer");
    }
    assert_int_equal(atomic_load(&generates), 0);
    expect_with(&fixture, "/v1/models?key=nobody", "", NULL, 401, "is wrong");
    expect_with(&fixture, "/v1/models?key=key-beta", "", NULL, 200, "tiny");
    expect_with(&fixture, "/v1/models", "x-goog-api-key: key-beta\r\n", NULL, 200, "tiny");
    expect_with(&fixture, CHAT, ALPHA, PLAIN, 200, STORY);
    assert_int_equal(atomic_load(&generates), 1);
    assert_string_equal(last_tenant, "alpha");
    assert_string_equal(last_salt, "alphaalphaalphaalphaalphaalphaal");
    expect_with(&fixture, CHAT, BETA, PLAIN, 200, STORY);
    assert_int_equal(atomic_load(&generates), 2);
    assert_string_equal(last_tenant, "beta");
    assert_string_equal(last_salt, "betabetabetabetabetabetabetabeta");
    expect_with(&fixture, CHAT, ALPHA,
        "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],\"kvist\":{\"salt\":\"x\"}}", 400,
        "kvist.salt");
    expect_with(&fixture, "/metrics", "", NULL, 200,
        "kvist_gateway_refused_total{why=\"key\",tenant=\"none\"}");
    expect_with(&fixture, "/metrics", "", NULL, 200,
        "kvist_gateway_tenant_answers_total{tenant=\"alpha\"} 1\n");
    stop(&fixture);
}

static void test_classes_and_modes(void **state)
{
    (void)state;
    fixture_t fixture;
    write_tenants("    priority: batch\n    cache_modes: [read, bypass]\n    host_bytes: 1GiB\n");
    atomic_store(&last_quota_bytes, 0);
    start_with(&fixture, 1, (const char *[]){tenants_option, NULL});
    assert_true(atomic_load(&last_quota_bytes) == (uint64_t)1 << 30);
    expect_with(&fixture, CHAT, ALPHA, PLAIN, 200, STORY);
    assert_int_equal(atomic_load(&last_priority), KVIST__WIRE__PRIORITY__PRIORITY_BATCH);
    assert_int_equal(atomic_load(&last_cache_mode), KVIST__WIRE__CACHE_MODE__CACHE_READ);
    char headers[128];
    snprintf(headers, sizeof headers, "%sx-kvist-priority: background\r\n", ALPHA);
    expect_with(&fixture, CHAT, headers, PLAIN, 200, STORY);
    assert_int_equal(atomic_load(&last_priority), KVIST__WIRE__PRIORITY__PRIORITY_BACKGROUND);
    assert_int_equal(atomic_load(&last_cache_mode), KVIST__WIRE__CACHE_MODE__CACHE_BYPASS);
    snprintf(headers, sizeof headers, "%sx-kvist-cache-mode: write\r\n", ALPHA);
    expect_with(&fixture, CHAT, headers, PLAIN, 403, "cache_mode");
    expect_with(&fixture, CHAT, BETA,
        "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],"
        "\"kvist\":{\"priority\":\"background\",\"cache_mode\":\"readwrite\"}}",
        200, STORY);
    assert_int_equal(atomic_load(&last_priority), KVIST__WIRE__PRIORITY__PRIORITY_BACKGROUND);
    assert_int_equal(atomic_load(&last_cache_mode), KVIST__WIRE__CACHE_MODE__CACHE_READWRITE);
    stop(&fixture);
}

static void test_rates(void **state)
{
    (void)state;
    fixture_t fixture;
    write_tenants("    requests_per_minute: 3\n    tokens_per_minute: 600\n");
    start_with(&fixture, 1, (const char *[]){tenants_option, NULL});
    static const char FEW[] = "{\"prompt\":[1,2,3],\"max_tokens\":10}";
    expect_with(&fixture, "/v1/completions", ALPHA, FEW, 200, "x-ratelimit-limit-requests: 3\r\n");
    expect_with(
        &fixture, "/v1/completions", ALPHA, FEW, 200, "x-ratelimit-remaining-requests: 1\r\n");
    expect_with(&fixture, "/v1/completions", ALPHA, "{\"prompt\":[1,2,3],\"max_tokens\":900}", 400,
        "max_tokens");
    expect_with(&fixture, "/v1/completions", ALPHA, FEW, 429, "requests a minute");
    unsigned code;
    char *answer = ask_with(&fixture, "/v1/completions", ALPHA, FEW, &code);
    const char *after = strstr(answer, "Retry-After: ");
    assert_non_null(after);
    int seconds = atoi(after + strlen("Retry-After: "));
    assert_true(seconds >= 1 && seconds <= 20);
    free(answer);
    expect_with(&fixture, "/v1/completions", BETA, FEW, 200, "The quick");
    stop(&fixture);
}

/* One place at the node: the second waits, and begins when the first is through; with nobody
 * through in time it is told to come later. */
static void test_the_queue(void **state)
{
    (void)state;
    fixture_t fixture;
    start_with(&fixture, 1,
        (const char *[]){"--gateway.node_requests=1", "--gateway.queue_wait=20s", NULL});
    play(0, PLAY_SILENT);
    int first = connect_client(&fixture);
    send_request(first, "POST", CHAT, PLAIN, strlen(PLAIN));
    wait_for_generates(1);
    int second = connect_client(&fixture);
    send_request(second, "POST", CHAT, PLAIN, strlen(PLAIN));
    wait_for_line(&fixture, "kvist_gateway_requests_waiting{priority=\"interactive\"} 1\n");
    assert_int_equal(atomic_load(&generates), 1);
    play(0, PLAY_ANSWER);
    close(first); /* the client goes away: its place is free */
    unsigned code;
    char *answer = receive_all(second, &code);
    assert_int_equal(code, 200);
    free(answer);
    close(second);
    wait_for_line(&fixture, "kvist_gateway_requests_waiting{priority=\"interactive\"} 0\n");
    stop(&fixture);
}

static void test_the_queue_has_an_end(void **state)
{
    (void)state;
    fixture_t fixture;
    start_with(
        &fixture, 1, (const char *[]){"--gateway.node_requests=1", "--gateway.queue_max=2", NULL});
    play(0, PLAY_SILENT);
    int first = connect_client(&fixture), second = connect_client(&fixture);
    send_request(first, "POST", CHAT, PLAIN, strlen(PLAIN));
    wait_for_generates(1);
    expect(&fixture, CHAT, PLAIN, 429, "Retry-After: ", "waited 300 ms");
    /* Full: a background request that waits makes room for an interactive one. */
    static const char BACKGROUND[] = "{\"prompt\":\"x\",\"kvist\":{\"priority\":\"background\"}}";
    send_request(second, "POST", "/v1/completions", BACKGROUND, strlen(BACKGROUND));
    wait_for_line(&fixture, "kvist_gateway_requests_waiting{priority=\"background\"} 1\n");
    expect(&fixture, CHAT, PLAIN, 429, "Retry-After: ", NULL);
    unsigned code;
    char *answer = receive_all(second, &code);
    assert_int_equal(code, 429);
    free(answer);
    close(first);
    close(second);
    stop(&fixture);
}

int main(void)
{
    kv_log_setup("test", KV_LOG_ERROR);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_answers),
        cmocka_unit_test(test_keys),
        cmocka_unit_test(test_classes_and_modes),
        cmocka_unit_test(test_rates),
        cmocka_unit_test(test_the_queue),
        cmocka_unit_test(test_the_queue_has_an_end),
        cmocka_unit_test(test_streams),
        cmocka_unit_test(test_stop_string),
        cmocka_unit_test(test_several_choices),
        cmocka_unit_test(test_choices_go_on_at_another_node),
        cmocka_unit_test(test_tool_calls),
        cmocka_unit_test(test_logprobs),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_broken_http),
        cmocka_unit_test(test_nodes_fail),
        cmocka_unit_test(test_text_goes_on_at_another_node),
        cmocka_unit_test(test_begun_text_stays_from_an_older_node),
        cmocka_unit_test(test_waits_for_a_node),
        cmocka_unit_test(test_no_node_comes_back),
        cmocka_unit_test(test_complete_without_finished),
        cmocka_unit_test(test_attempts_are_bounded),
        cmocka_unit_test(test_leaves_a_draining_node),
        cmocka_unit_test(test_gateway_drains),
        cmocka_unit_test(test_time_limit),
        cmocka_unit_test(test_too_many),
        cmocka_unit_test(test_client_leaves_a_stream),
        cmocka_unit_test(test_slow_reader),
        cmocka_unit_test(test_many_clients),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
