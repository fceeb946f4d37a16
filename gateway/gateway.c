/* A request's life, on the reactor's thread. The HTTP thread and the parse threads see a request only
 * while it is theirs (an exchange that comes in; a job that runs).
 *
 *                     job done        Generate sent        first Tokens
 *   (exchange) --> PARSING --> (route) ---------> WAITING ------------> RUNNING ----> (answered)
 *                     |           ^                  |                     |  Finished
 *                     | wrong     | node lost or busy, and nothing         |
 *                     v           | was sent to the client yet             | stop string: Cancel
 *                 (answered)      +------------------+---------------------+     |
 *                                                                          v     v
 *                                                             (answered) <--- STOPPING
 *
 * Invariants:
 * 1. A request in WAITING, RUNNING or STOPPING has a node, and counts in its `outstanding`.
 * 2. Each Generate has a wire id of its own (slot and sequence); messages with another sequence are
 *    of an attempt that is over, and are dropped.
 * 3. Leaving those states before Finished sends Cancel, unless the node is gone. */
#include "gateway/gateway.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/metrics.h"
#include "base/queue.h"
#include "base/worker.h"
#include "engine/detokenizer.h"
#include "gateway/api.h"
#include "gateway/http.h"
#include "gateway/render.h"
#include "gateway/router.h"
#include "node/admin.h"
#include "transport/peers.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

enum {
    ATTEMPTS_MAX = 4,
    NODES_MAX = 2 * KV_OPTION_LIST_MAX,
    PARSE_THREADS = 2,
    TICK_MS = 100,
    STOPPING_LIMIT_NS = 2 * KV_NS_PER_S, /* for a cancelled request's usage to arrive */
    ID_BYTES = 64,
};

typedef enum {
    REQUEST_PARSING,
    REQUEST_WAITING,
    REQUEST_RUNNING,
    REQUEST_STOPPING,
} request_state_t;

typedef struct {
    kv_peer_t *peer;
    uint32_t outstanding;
} node_t;

typedef struct {
    kv_gateway_t *gateway;
    kv_exchange_t *exchange;
    request_state_t state;
    uint32_t slot;
    uint64_t sequence; /* of the attempt in work */
    char id[ID_BYTES];
    const char *route;
    uint64_t created_unix_s, arrived_ns, first_token_ns, last_token_ns, stopping_ns;

    kv_api_kind_t kind;
    kv_api_request_t api;
    bool parsed; /* api is valid; otherwise error is */
    kv_api_error_t error;

    node_t *node;
    uint64_t tried[ATTEMPTS_MAX]; /* ids of peers */
    unsigned tried_count;
    kv_detokenizer_t *detokenizer;
    uint32_t token_count;
    bool began; /* a stream's head and first event were sent */
    char *text; /* of an answer that is sent whole */
    size_t text_bytes, text_capacity;
} request_t;

struct kv_gateway {
    kv_reactor_t *reactor;
    const kv_options_t *options;
    const kv_tokenizer_t *tokenizer;
    kv_api_limits_t limits;
    uint64_t boot_id, started_ns, started_unix_s, sequence;

    kv_queue_t *incoming, *parsed; /* of kv_exchange_t *; of request_t * */
    kv_watch_t *incoming_watch, *parsed_watch;
    kv_workers_t *workers;
    kv_http_t *http;
    kv_peers_t *peers;
    kv_admin_t *admin;
    kv_timer_t *timer;

    node_t *nodes[NODES_MAX];
    size_t node_count;
    request_t **slots;
    uint32_t *free_slots;
    uint32_t active_count;
    bool ticking, stopping;
    void (*stopped)(void *context);
    void *stopped_context;

    uint64_t prompt_tokens, cached_tokens, generated_tokens, request_count;
    kv_metric_t *running_metric, *nodes_metric, *hit_rate_metric, *ttft_metric, *tpot_metric;
    kv_metric_t *prompt_metric, *completion_metric, *cached_metrics[4], *retries_metric;
    kv_metric_t *gone_metric, *slow_metric;
};

/* ---- answers ---- */

static const char *const JSON_TYPE = "application/json";

static void add_header(kv_http_head_t *head, const char *name, const char *value)
{
    KV_CHECK(head->header_count < KV_HTTP_HEADERS_MAX);
    kv_http_header_t *header = &head->headers[head->header_count++];
    header->name = name;
    snprintf(header->value, sizeof header->value, "%s", value);
}

static void count_answer(const char *route, unsigned code)
{
    char labels[64];
    snprintf(labels, sizeof labels, "route=\"%s\",code=\"%u\"", route, code);
    kv_metric_add(kv_metric_counter("kvist_gateway_requests_total", labels,
                      "HTTP requests by route and status code; 499: the client went away"),
        1);
}

/* Answers an exchange that became no request, or whose request ends. */
static void reply_error(kv_exchange_t *exchange, const char *route, const kv_api_error_t *error)
{
    kv_http_head_t head = {.code = error->http_code, .content_type = JSON_TYPE};
    if (error->http_code == 429 || error->http_code == 503) {
        add_header(&head, "Retry-After", "1");
    } else if (error->http_code == 405) {
        bool post = strcmp(route, "chat") == 0 || strcmp(route, "completions") == 0;
        add_header(&head, "Allow", post ? "POST" : "GET, HEAD");
    }
    size_t bytes;
    char *body = kv_render_error(error, &bytes);
    kv_exchange_reply(exchange, &head, body, bytes);
    count_answer(route, error->http_code);
}

static void reply_text(kv_exchange_t *exchange, const char *route, unsigned code,
    const char *content_type, char *body, size_t bytes)
{
    kv_http_head_t head = {.code = code, .content_type = content_type};
    kv_exchange_reply(exchange, &head, body, bytes);
    count_answer(route, code);
}

static kv_answer_t answer_of(const request_t *request)
{
    return (kv_answer_t){.kind = request->kind,
        .id = request->id,
        .model = request->gateway->limits.model,
        .created_unix_s = request->created_unix_s,
        .include_usage = request->api.include_usage};
}

/* ---- the end of a request ---- */

static void leave_node(request_t *request)
{
    if (request->node != NULL) {
        request->node->outstanding--;
        request->node = NULL;
    }
}

static void cancel_at_node(request_t *request)
{
    if (request->node == NULL) {
        return;
    }
    char wire_id[ID_BYTES];
    snprintf(wire_id, sizeof wire_id, "%016" PRIx64 "-%" PRIx32 "-%" PRIx64,
        request->gateway->boot_id, request->slot, request->sequence);
    Kvist__Wire__Cancel cancel = KVIST__WIRE__CANCEL__INIT;
    Kvist__Wire__Envelope envelope = KVIST__WIRE__ENVELOPE__INIT;
    cancel.request_id = wire_id;
    envelope.body_case = KVIST__WIRE__ENVELOPE__BODY_CANCEL;
    envelope.cancel = &cancel;
    if (kv_peer_send(request->node->peer, &envelope) == KV_BUSY) {
        kv_peer_close(request->node->peer, KV_BUSY, "does not take messages");
    }
}

static void release_request(request_t *request)
{
    kv_gateway_t *gateway = request->gateway;
    leave_node(request);
    kv_exchange_release(request->exchange);
    kv_detokenizer_destroy(request->detokenizer);
    if (request->parsed) {
        kv_api_request_clear(&request->api);
    }
    free(request->text);
    gateway->slots[request->slot] = NULL;
    gateway->active_count--;
    gateway->free_slots[gateway->options->gateway.queue_max - gateway->active_count - 1] =
        request->slot;
    free(request);
    kv_metric_set(gateway->running_metric, gateway->active_count);
    kv_peers_set_load(gateway->peers, 0, gateway->active_count);
    if (gateway->stopping && gateway->active_count == 0) {
        gateway->stopped(gateway->stopped_context);
    }
}

/* Ends the request with this error: as an HTTP answer, or inside a stream that has begun. */
static void fail_request(request_t *request, const kv_api_error_t *error)
{
    kv_log_info(
        "gateway", "request %s failed code %u: %s", request->id, error->http_code, error->message);
    if (!request->began) {
        reply_error(request->exchange, request->route, error);
    } else {
        size_t bytes;
        char *event = kv_render_error_event(error, &bytes);
        bool sent = kv_exchange_write(request->exchange, event, bytes) == KV_OK;
        free(event);
        kv_exchange_end(request->exchange, sent);
        count_answer(request->route, error->http_code);
    }
    release_request(request);
}

/* The client is gone, or too slow: nobody to answer. */
static void abandon_request(request_t *request, kv_metric_t *why)
{
    kv_log_info("gateway", "request %s cancelled: the client %s", request->id,
        why == request->gateway->slow_metric ? "reads too slowly" : "went away");
    kv_metric_add(why, 1);
    count_answer(request->route, 499);
    cancel_at_node(request);
    if (request->began) {
        kv_exchange_end(request->exchange, false);
    }
    release_request(request);
}

/* ---- text to the client; false: the request has ended ---- */

static bool write_event(request_t *request, char *event, size_t bytes)
{
    kv_status_t status = kv_exchange_write(request->exchange, event, bytes);
    free(event);
    if (status != KV_OK) {
        abandon_request(request,
            status == KV_BUSY ? request->gateway->slow_metric : request->gateway->gone_metric);
        return false;
    }
    return true;
}

static bool send_text(request_t *request, const char *text, size_t bytes, const char *finish_reason)
{
    kv_answer_t answer = answer_of(request);
    size_t event_bytes;
    bool first = !request->began;
    if (first) {
        kv_http_head_t head = {.code = 200, .content_type = "text/event-stream"};
        add_header(&head, "Cache-Control", "no-cache");
        add_header(&head, "x-request-id", request->id);
        kv_exchange_begin(request->exchange, &head);
        request->began = true;
    }
    if (!first && bytes == 0 && finish_reason == NULL) {
        return true;
    }
    char *event = kv_render_event(&answer, first, text, bytes, finish_reason, &event_bytes);
    return write_event(request, event, event_bytes);
}

static void append_text(request_t *request, const char *text, size_t bytes)
{
    if (request->text_bytes + bytes > request->text_capacity) {
        request->text_capacity = 2 * (request->text_bytes + bytes);
        request->text = kv_reallocate(request->text, request->text_capacity, 1);
    }
    if (bytes > 0) {
        memcpy(request->text + request->text_bytes, text, bytes);
    }
    request->text_bytes += bytes;
}

static void count_usage(request_t *request, const Kvist__Wire__Usage *usage)
{
    kv_gateway_t *gateway = request->gateway;
    const Kvist__Wire__CachedTokens *cached = usage->cached;
    gateway->prompt_tokens += usage->prompt_tokens;
    gateway->cached_tokens += kv_usage_cached_tokens(usage);
    gateway->generated_tokens += request->token_count;
    kv_metric_add(gateway->prompt_metric, usage->prompt_tokens);
    kv_metric_add(gateway->completion_metric, request->token_count);
    if (cached != NULL) {
        const uint32_t counts[4] = {cached->device, cached->host, cached->disk, cached->remote};
        for (int i = 0; i < 4; i++) {
            kv_metric_add(gateway->cached_metrics[i], counts[i]);
        }
    }
    if (gateway->prompt_tokens > 0) {
        kv_metric_set(gateway->hit_rate_metric,
            (double)gateway->cached_tokens / (double)gateway->prompt_tokens);
    }
    if (request->token_count > 1) {
        kv_metric_observe(
            gateway->tpot_metric, (double)(request->last_token_ns - request->first_token_ns) /
                                      KV_NS_PER_S / (request->token_count - 1));
    }
}

static void reply_whole(
    request_t *request, const char *finish_reason, const Kvist__Wire__Usage *usage)
{
    kv_answer_t answer = answer_of(request);
    kv_http_head_t head = {.code = 200, .content_type = JSON_TYPE};
    char number[16];
    snprintf(number, sizeof number, "%u", kv_usage_cached_tokens(usage));
    add_header(&head, "x-kvist-hit-tokens", number);
    add_header(&head, "x-request-id", request->id);
    size_t bytes;
    char *body = kv_render_answer(&answer, request->text != NULL ? request->text : "",
        request->text_bytes, finish_reason, usage, request->token_count, &bytes);
    kv_exchange_reply(request->exchange, &head, body, bytes);
}

static bool end_stream(
    request_t *request, const char *finish_reason, const Kvist__Wire__Usage *usage)
{
    size_t bytes;
    kv_answer_t answer = answer_of(request);
    if (!send_text(request, "", 0, finish_reason)) {
        return false;
    }
    if (request->api.include_usage) {
        char *event = kv_render_usage_event(&answer, usage, request->token_count, &bytes);
        if (!write_event(request, event, bytes)) {
            return false;
        }
    }
    if (!write_event(request, kv_duplicate_string("data: [DONE]\n\n"), 14)) {
        return false;
    }
    kv_exchange_end(request->exchange, true);
    return true;
}

/* The answer is complete. usage: the node's, or NULL where it did not say in time. */
static void complete_request(
    request_t *request, const char *finish_reason, const Kvist__Wire__Usage *said)
{
    Kvist__Wire__Usage usage = KVIST__WIRE__USAGE__INIT;
    usage = said != NULL ? *said : usage;
    usage.prompt_tokens = (uint32_t)request->api.token_count;
    count_usage(request, &usage);
    if (request->api.stream) {
        if (!end_stream(request, finish_reason, &usage)) {
            return;
        }
    } else {
        reply_whole(request, finish_reason, &usage);
    }
    count_answer(request->route, 200);
    release_request(request);
}

/* ---- nodes ---- */

static bool was_tried(const request_t *request, uint64_t peer_id)
{
    for (unsigned i = 0; i < request->tried_count; i++) {
        if (request->tried[i] == peer_id) {
            return true;
        }
    }
    return false;
}

static kv_status_t send_generate(request_t *request, kv_peer_t *peer)
{
    kv_gateway_t *gateway = request->gateway;
    const kv_api_request_t *api = &request->api;
    char wire_id[ID_BYTES];
    request->sequence = ++gateway->sequence;
    snprintf(wire_id, sizeof wire_id, "%016" PRIx64 "-%" PRIx32 "-%" PRIx64, gateway->boot_id,
        request->slot, request->sequence);
    Kvist__Wire__Sampling sampling = KVIST__WIRE__SAMPLING__INIT;
    Kvist__Wire__Generate generate = KVIST__WIRE__GENERATE__INIT;
    Kvist__Wire__Envelope envelope = KVIST__WIRE__ENVELOPE__INIT;
    sampling.temperature = api->temperature;
    sampling.top_k = api->top_k;
    sampling.top_p = api->top_p;
    sampling.seed = api->seed;
    generate.request_id = wire_id;
    generate.tokens = api->tokens;
    generate.n_tokens = api->token_count;
    generate.max_tokens = api->max_tokens;
    generate.sampling = &sampling;
    generate.ignore_end = api->ignore_eos;
    generate.salt = (ProtobufCBinaryData){api->salt_bytes, (uint8_t *)(uintptr_t)api->salt};
    generate.cache_mode = (Kvist__Wire__CacheMode)api->cache_mode;
    envelope.body_case = KVIST__WIRE__ENVELOPE__BODY_GENERATE;
    envelope.generate = &generate;
    return kv_peer_send(peer, &envelope);
}

/* Everything of an attempt but the prompt begins anew. */
static bool start_text(request_t *request)
{
    const char *stops[KV_API_STOPS_MAX];
    for (size_t i = 0; i < request->api.stop_count; i++) {
        stops[i] = request->api.stops[i];
    }
    kv_detokenizer_destroy(request->detokenizer);
    request->detokenizer = NULL;
    request->text_bytes = 0;
    request->token_count = 0;
    kv_error_t cause;
    if (kv_detokenizer_create(request->gateway->tokenizer, stops, request->api.stop_count,
            &request->detokenizer, &cause) != KV_OK) {
        kv_api_error_t error;
        kv_api_fail(&error, 400, "stop", NULL, "%s", cause.text);
        fail_request(request, &error);
        return false;
    }
    return true;
}

/* Sends the request to the best node that has not had it; without one it ends. */
static void route_request(request_t *request)
{
    kv_gateway_t *gateway = request->gateway;
    kv_router_node_t states[NODES_MAX];
    while (request->tried_count < ATTEMPTS_MAX) {
        for (size_t i = 0; i < gateway->node_count; i++) {
            kv_peer_t *peer = gateway->nodes[i]->peer;
            states[i] = (kv_router_node_t){.outstanding = gateway->nodes[i]->outstanding,
                .reported = kv_peer_queued_requests(peer) + kv_peer_running_requests(peer),
                .tried = was_tried(request, kv_peer_id(peer))};
        }
        int choice = kv_router_choose(states, gateway->node_count);
        if (choice < 0) {
            break;
        }
        node_t *node = gateway->nodes[choice];
        request->tried[request->tried_count++] = kv_peer_id(node->peer);
        if (request->tried_count > 1) {
            kv_metric_add(gateway->retries_metric, 1);
        }
        if (send_generate(request, node->peer) == KV_OK) {
            request->node = node;
            node->outstanding++;
            request->state = REQUEST_WAITING;
            return;
        }
    }
    if (request->tried_count == 0) {
        kv_api_fail(&request->error, 503, "", "no_decode_node", "no decode node is up");
    } else if (request->error.http_code == 0) {
        kv_api_fail(&request->error, 503, "", "no_decode_node", "no decode node takes the request");
    }
    fail_request(request, &request->error);
}

/* The attempt ended without an answer. Another node gets the request as long as nothing of its
 * answer was sent on. */
static void retry_request(request_t *request, const kv_api_error_t *error)
{
    leave_node(request);
    request->error = *error;
    if (request->began || request->gateway->stopping) {
        fail_request(request, error);
    } else if (start_text(request)) {
        route_request(request);
    }
}

/* ---- messages of a node ---- */

/* The request that a message is about, if it is still of this attempt. */
static request_t *find_request(kv_gateway_t *gateway, const kv_peer_t *peer, const char *wire_id)
{
    uint64_t boot_id, sequence;
    uint32_t slot;
    char end;
    if (sscanf(wire_id, "%16" SCNx64 "-%8" SCNx32 "-%16" SCNx64 "%c", &boot_id, &slot, &sequence,
            &end) != 3 ||
        boot_id != gateway->boot_id || slot >= gateway->options->gateway.queue_max) {
        return NULL;
    }
    request_t *request = gateway->slots[slot];
    bool same = request != NULL && request->node != NULL && request->sequence == sequence &&
                request->node->peer == peer;
    return same ? request : NULL;
}

/* One token's text; false: the request has ended. */
static bool take_token(request_t *request, uint32_t token, bool *stopped_out)
{
    const char *text;
    size_t bytes;
    if (kv_detokenizer_push(request->detokenizer, token, &text, &bytes, stopped_out) != KV_OK) {
        kv_api_error_t error;
        kv_api_fail(&error, 502, "", "bad_node", "the decode node sent token %u, beyond %u", token,
            request->gateway->limits.vocabulary_count);
        cancel_at_node(request);
        fail_request(request, &error);
        return false;
    }
    request->token_count++;
    append_text(request, text, bytes);
    return true;
}

static void on_tokens(request_t *request, const Kvist__Wire__Tokens *tokens)
{
    if (request->state == REQUEST_STOPPING || tokens->n_tokens == 0) {
        return;
    }
    request->last_token_ns = kv_clock_now_ns();
    if (request->first_token_ns == 0) {
        request->first_token_ns = request->last_token_ns;
        kv_metric_observe(request->gateway->ttft_metric,
            (double)(request->first_token_ns - request->arrived_ns) / KV_NS_PER_S);
    }
    request->state = REQUEST_RUNNING;
    bool stopped = false;
    for (size_t i = 0; i < tokens->n_tokens && !stopped; i++) {
        if (!take_token(request, tokens->tokens[i], &stopped)) {
            return;
        }
    }
    if (request->api.stream) {
        if (!send_text(request, request->text, request->text_bytes, NULL)) {
            return;
        }
        request->text_bytes = 0;
    }
    if (stopped) {
        cancel_at_node(request);
        request->state = REQUEST_STOPPING;
        request->stopping_ns = request->last_token_ns;
    }
}

static void fail_from_node(request_t *request, const Kvist__Wire__Finished *finished)
{
    kv_api_error_t error;
    const char *name = kv_peer_name(request->node->peer);
    bool again = false;
    switch (finished->reason == KVIST__WIRE__FINISH_REASON__FINISH_CANCELLED ? KV_CANCELLED
                                                                             : finished->status) {
    case KV_INVALID:
        kv_api_fail(&error, 400, "", NULL, "%s", finished->error);
        break;
    case KV_BUSY:
    case KV_NO_SPACE:
        again = true;
        kv_api_fail(
            &error, 429, "", "overloaded", "decode node %s is busy: %s", name, finished->error);
        break;
    case KV_CANCELLED:
    case KV_PEER_LOST:
        again = true;
        kv_api_fail(&error, 503, "", "node_stopping", "decode node %s gave the request up: %s",
            name, finished->error);
        break;
    default:
        kv_api_fail(&error, 500, "", NULL, "decode node %s: %s: %s", name,
            kv_status_name((kv_status_t)finished->status), finished->error);
    }
    if (again) {
        retry_request(request, &error);
    } else {
        fail_request(request, &error);
    }
}

static void on_finished(request_t *request, const Kvist__Wire__Finished *finished)
{
    const char *reason = NULL;
    if (request->state == REQUEST_STOPPING ||
        finished->reason == KVIST__WIRE__FINISH_REASON__FINISH_STOP) {
        reason = "stop";
    } else if (finished->reason == KVIST__WIRE__FINISH_REASON__FINISH_LENGTH) {
        reason = "length";
    }
    if (reason == NULL) {
        fail_from_node(request, finished);
        return;
    }
    const char *text;
    size_t bytes;
    if (request->state != REQUEST_STOPPING) {
        kv_detokenizer_finish(request->detokenizer, &text, &bytes);
        append_text(request, text, bytes);
    }
    if (request->api.stream && request->text_bytes > 0 &&
        !send_text(request, request->text, request->text_bytes, NULL)) {
        return;
    }
    complete_request(request, reason, finished->usage);
}

static void on_message(void *context, kv_peer_t *peer, const Kvist__Wire__Envelope *message)
{
    kv_gateway_t *gateway = context;
    request_t *request;
    switch (message->body_case) {
    case KVIST__WIRE__ENVELOPE__BODY_TOKENS:
        request = find_request(gateway, peer, message->tokens->request_id);
        if (request != NULL) {
            on_tokens(request, message->tokens);
        }
        break;
    case KVIST__WIRE__ENVELOPE__BODY_FINISHED:
        request = find_request(gateway, peer, message->finished->request_id);
        if (request != NULL) {
            on_finished(request, message->finished);
        }
        break;
    default:
        kv_log_debug(
            "gateway", "message %d of %s ignored", (int)message->body_case, kv_peer_name(peer));
    }
}

static void on_peer_up(void *context, kv_peer_t *peer)
{
    kv_gateway_t *gateway = context;
    if (kv_peer_role(peer) != KVIST__WIRE__ROLE__ROLE_DECODE || gateway->node_count == NODES_MAX) {
        kv_log_warn("gateway", "peer %s at %s is no decode node: not used", kv_peer_name(peer),
            kv_peer_address(peer));
        return;
    }
    node_t *node = kv_allocate(sizeof *node);
    node->peer = peer;
    kv_peer_set_context(peer, node);
    gateway->nodes[gateway->node_count++] = node;
    kv_metric_set(gateway->nodes_metric, (double)gateway->node_count);
    kv_log_info(
        "gateway", "decode node %s up address %s", kv_peer_name(peer), kv_peer_address(peer));
}

static void on_peer_down(void *context, kv_peer_t *peer, kv_status_t status, const char *reason)
{
    kv_gateway_t *gateway = context;
    node_t *node = kv_peer_context(peer);
    if (node == NULL) {
        return;
    }
    kv_log_warn("gateway", "decode node %s down requests %u: %s: %s", kv_peer_name(peer),
        node->outstanding, kv_status_name(status), reason);
    for (size_t i = 0; i < gateway->node_count; i++) {
        if (gateway->nodes[i] == node) {
            gateway->nodes[i] = gateway->nodes[--gateway->node_count];
            break;
        }
    }
    kv_metric_set(gateway->nodes_metric, (double)gateway->node_count);
    kv_api_error_t error;
    kv_api_fail(&error, 502, "", "node_lost",
        "decode node %s was lost while it worked on the request", kv_peer_name(peer));
    for (uint32_t i = 0; node->outstanding > 0 && i < gateway->options->gateway.queue_max; i++) {
        request_t *request = gateway->slots[i];
        if (request == NULL || request->node != node) {
            continue;
        }
        if (request->state == REQUEST_STOPPING) {
            leave_node(request);
            complete_request(request, "stop", NULL);
        } else {
            retry_request(request, &error);
        }
    }
    KV_CHECK(node->outstanding == 0);
    free(node);
}

/* ---- requests come in ---- */

/* On a parse thread; the request is its own until it is in the queue. */
static void parse_request(void *argument)
{
    request_t *request = argument;
    kv_gateway_t *gateway = request->gateway;
    size_t bytes;
    const char *body = kv_exchange_body(request->exchange, &bytes);
    request->parsed =
        kv_api_parse(request->kind, body, bytes, &gateway->limits, &request->api, &request->error);
    if (request->parsed &&
        !kv_api_tokenize(&request->api, gateway->tokenizer, &gateway->limits, &request->error)) {
        kv_api_request_clear(&request->api);
        request->parsed = false;
    }
    KV_CHECK(kv_queue_push(gateway->parsed, &request) == KV_OK);
}

static void on_parsed(void *context)
{
    kv_gateway_t *gateway = context;
    request_t *request;
    while (kv_queue_pop(gateway->parsed, &request) == KV_OK) {
        if (gateway->stopping) {
            kv_api_fail(&request->error, 503, "", "stopping", "the gateway is stopping");
            fail_request(request, &request->error);
        } else if (!request->parsed) {
            fail_request(request, &request->error);
        } else if (start_text(request)) {
            if (!request->api.has_seed) {
                KV_CHECK(getrandom(&request->api.seed, sizeof request->api.seed, 0) ==
                         (ssize_t)sizeof request->api.seed);
            }
            route_request(request);
        }
    }
}

static void start_request(
    kv_gateway_t *gateway, kv_exchange_t *exchange, const char *route, kv_api_kind_t kind)
{
    kv_api_error_t error;
    uint32_t queue_max = gateway->options->gateway.queue_max;
    if (gateway->active_count == queue_max) {
        kv_api_fail(
            &error, 429, "", "overloaded", "%u requests are in work, the most at once", queue_max);
        reply_error(exchange, route, &error);
        kv_exchange_release(exchange);
        return;
    }
    request_t *request = kv_allocate(sizeof *request);
    *request = (request_t){.gateway = gateway,
        .exchange = exchange,
        .route = route,
        .kind = kind,
        .slot = gateway->free_slots[queue_max - gateway->active_count - 1],
        .arrived_ns = kv_clock_now_ns()};
    request->created_unix_s = kv_clock_real()->unix_ns(kv_clock_real()) / KV_NS_PER_S;
    gateway->slots[request->slot] = request;
    gateway->active_count++;
    gateway->request_count++;
    snprintf(request->id, sizeof request->id, "%s-%016" PRIx64 "%08" PRIx64,
        kind == KV_API_CHAT ? "chatcmpl" : "cmpl", gateway->boot_id, gateway->request_count);
    kv_metric_set(gateway->running_metric, gateway->active_count);
    kv_peers_set_load(gateway->peers, 0, gateway->active_count);
    if (!gateway->ticking) {
        gateway->ticking = true;
        kv_timer_start(gateway->timer, TICK_MS, TICK_MS);
    }
    KV_CHECK(kv_workers_submit(gateway->workers, (kv_job_t){parse_request, request}) == KV_OK);
}

static void serve_health(kv_gateway_t *gateway, kv_exchange_t *exchange)
{
    char *body;
    bool good = gateway->node_count > 0;
    int bytes = asprintf(&body, "{\"status\":\"%s\",\"decode_nodes\":%zu}",
        good ? "ok" : "no decode node is up", gateway->node_count);
    KV_CHECK(bytes > 0);
    reply_text(exchange, "healthz", good ? 200 : 503, JSON_TYPE, body, (size_t)bytes);
}

static void serve_metrics(kv_gateway_t *gateway, kv_exchange_t *exchange)
{
    (void)gateway;
    size_t bytes;
    char *body = kv_metrics_render(&bytes);
    reply_text(exchange, "metrics", 200, "text/plain; version=0.0.4; charset=utf-8", body, bytes);
}

static void serve_models(kv_gateway_t *gateway, kv_exchange_t *exchange)
{
    size_t bytes;
    char *body = kv_render_models(
        gateway->limits.model, gateway->started_unix_s, gateway->limits.context_tokens_max, &bytes);
    reply_text(exchange, "models", 200, JSON_TYPE, body, bytes);
}

static const struct {
    const char *path, *route;
    void (*serve)(kv_gateway_t *gateway, kv_exchange_t *exchange); /* NULL: a request of kind */
    kv_api_kind_t kind;
} ROUTES[] = {
    {"/v1/chat/completions", "chat", NULL, KV_API_CHAT},
    {"/v1/completions", "completions", NULL, KV_API_COMPLETION},
    {"/v1/models", "models", serve_models, 0},
    {"/healthz", "healthz", serve_health, 0},
    {"/metrics", "metrics", serve_metrics, 0},
};

/* What is wrong with the exchange before its body is looked at; false: nothing is. */
static bool check_exchange(
    const kv_gateway_t *gateway, kv_exchange_t *exchange, size_t route, kv_api_error_t *error)
{
    const char *method = kv_exchange_method(exchange);
    bool post = ROUTES[route].serve == NULL;
    if (kv_exchange_too_large(exchange)) {
        kv_api_fail(error, 413, "", "body_too_large", "the body is larger than %" PRIu64 " bytes",
            gateway->options->gateway.body_bytes_max);
    } else if (kv_exchange_crowded(exchange)) {
        kv_api_fail(error, 503, "", "overloaded", "too many large bodies at once");
    } else if (strcmp(method, "POST") != 0 && post) {
        kv_api_fail(error, 405, "", NULL, "%.32s: this path takes POST", method);
    } else if (strcmp(method, "GET") != 0 && strcmp(method, "HEAD") != 0 && !post) {
        kv_api_fail(error, 405, "", NULL, "%.32s: this path takes GET", method);
    } else if (gateway->stopping) {
        kv_api_fail(error, 503, "", "stopping", "the gateway is stopping");
    } else {
        return false;
    }
    return true;
}

static void serve_exchange(kv_gateway_t *gateway, kv_exchange_t *exchange)
{
    const char *path = kv_exchange_path(exchange), *route = "other";
    kv_api_error_t error;
    for (size_t i = 0; i < sizeof ROUTES / sizeof ROUTES[0]; i++) {
        if (strcmp(path, ROUTES[i].path) != 0) {
            continue;
        }
        route = ROUTES[i].route;
        if (check_exchange(gateway, exchange, i, &error)) {
            reply_error(exchange, route, &error);
        } else if (ROUTES[i].serve == NULL) {
            start_request(gateway, exchange, route, ROUTES[i].kind);
            return;
        } else {
            ROUTES[i].serve(gateway, exchange);
        }
        kv_exchange_release(exchange);
        return;
    }
    kv_api_fail(&error, 404, "", "not_found", "%.200s: no such path", path);
    reply_error(exchange, route, &error);
    kv_exchange_release(exchange);
}

static void on_incoming(void *context)
{
    kv_gateway_t *gateway = context;
    kv_exchange_t *exchange;
    while (kv_queue_pop(gateway->incoming, &exchange) == KV_OK) {
        serve_exchange(gateway, exchange);
    }
}

/* ---- time ---- */

static void check_request(request_t *request, uint64_t now_ns)
{
    kv_gateway_t *gateway = request->gateway;
    uint64_t age_ns = now_ns - request->arrived_ns;
    uint64_t first_ns = gateway->options->gateway.first_token_limit_ns;
    uint64_t whole_ns = gateway->options->gateway.request_limit_ns;
    if (request->state == REQUEST_PARSING) {
        return;
    }
    if (kv_exchange_gone(request->exchange)) {
        abandon_request(request, gateway->gone_metric);
    } else if (request->state == REQUEST_STOPPING) {
        if (now_ns - request->stopping_ns > STOPPING_LIMIT_NS) {
            complete_request(request, "stop", NULL);
        }
    } else if (age_ns > whole_ns || (request->first_token_ns == 0 && age_ns > first_ns)) {
        bool whole = age_ns > whole_ns;
        kv_api_error_t error;
        kv_api_fail(&error, 504, "", "timeout", "the request took longer than %" PRIu64 " ms%s",
            (whole ? whole_ns : first_ns) / KV_NS_PER_MS, whole ? "" : " to its first token");
        cancel_at_node(request);
        fail_request(request, &error);
    }
}

static void on_tick(void *context)
{
    kv_gateway_t *gateway = context;
    uint64_t now_ns = kv_clock_now_ns();
    for (uint32_t i = 0; i < gateway->options->gateway.queue_max; i++) {
        if (gateway->slots[i] != NULL) {
            check_request(gateway->slots[i], now_ns);
        }
    }
    if (gateway->active_count == 0) {
        gateway->ticking = false;
        kv_timer_stop(gateway->timer);
    }
}

/* ---- admin ---- */

static void on_status(void *context, kv_admin_call_t *call)
{
    kv_gateway_t *gateway = context;
    Kvist__Admin__Status status = KVIST__ADMIN__STATUS__INIT;
    Kvist__Admin__Peer peers[NODES_MAX], *pointers[NODES_MAX];
    char address[320];
    for (size_t i = 0; i < gateway->node_count; i++) {
        kv_peer_t *peer = gateway->nodes[i]->peer;
        kvist__admin__peer__init(&peers[i]);
        peers[i].name = (char *)(uintptr_t)kv_peer_name(peer);
        peers[i].role = (char *)"decode";
        peers[i].address = (char *)(uintptr_t)kv_peer_address(peer);
        peers[i].up = true;
        pointers[i] = &peers[i];
    }
    snprintf(address, sizeof address, "%s:%u", gateway->options->gateway.http_host,
        kv_http_port(gateway->http));
    status.name = gateway->options->node.name;
    status.role = (char *)"gateway";
    status.version = (char *)KVIST_VERSION;
    status.pid = (uint64_t)getpid();
    status.uptime_ns = kv_clock_now_ns() - gateway->started_ns;
    status.model = (char *)(uintptr_t)gateway->limits.model;
    status.peers = pointers;
    status.n_peers = gateway->node_count;
    status.prompt_tokens = gateway->prompt_tokens;
    status.cached_tokens = gateway->cached_tokens;
    status.generated_tokens = gateway->generated_tokens;
    status.requests = gateway->request_count;
    status.running_requests = gateway->active_count;
    status.http_address = address;
    kv_admin_reply_status(call, &status);
}

static const kv_admin_handlers_t ADMIN_HANDLERS = {.status = on_status};

/* ---- open and close ---- */

static void register_metrics(kv_gateway_t *gateway)
{
    static const char *const TIERS[4] = {
        "tier=\"device\"", "tier=\"host\"", "tier=\"disk\"", "tier=\"remote\""};
    for (int i = 0; i < 4; i++) {
        gateway->cached_metrics[i] = kv_metric_counter("kvist_gateway_cached_tokens_total",
            TIERS[i], "prompt tokens that were not recomputed, by the tier they came from");
    }
    gateway->prompt_metric =
        kv_metric_counter("kvist_gateway_prompt_tokens_total", "", "prompt tokens of answers");
    gateway->completion_metric = kv_metric_counter(
        "kvist_gateway_completion_tokens_total", "", "tokens that were generated for answers");
    gateway->hit_rate_metric = kv_metric_gauge("kvist_gateway_hit_rate", "",
        "prompt tokens not recomputed / prompt tokens, since the start");
    gateway->ttft_metric = kv_metric_histogram(
        "kvist_gateway_ttft_seconds", "", "arrival of a request to its first token");
    gateway->tpot_metric = kv_metric_histogram(
        "kvist_gateway_tpot_seconds", "", "time per token after the first, mean of each answer");
    gateway->running_metric =
        kv_metric_gauge("kvist_gateway_requests_running", "", "requests in work");
    gateway->nodes_metric = kv_metric_gauge("kvist_gateway_decode_nodes", "", "decode nodes up");
    gateway->retries_metric = kv_metric_counter("kvist_gateway_retries_total", "",
        "requests given to another node after one was lost or busy");
    gateway->gone_metric = kv_metric_counter("kvist_gateway_cancelled_total", "why=\"gone\"",
        "requests cancelled because the client went away or reads too slowly");
    gateway->slow_metric = kv_metric_counter("kvist_gateway_cancelled_total", "why=\"slow\"", "");
}

static kv_status_t open_peers(kv_gateway_t *gateway, kv_error_t *error)
{
    const kv_options_t *options = gateway->options;
    char key[KV_CLUSTER_KEY_BYTES_MAX];
    kv_peers_params_t params = {.loop = kv_reactor_loop(gateway->reactor),
        .name = options->node.name,
        .role = KVIST__WIRE__ROLE__ROLE_GATEWAY,
        .cluster_key = key,
        .callbacks = {gateway, on_peer_up, on_peer_down, on_message}};
    kv_status_t status = kv_options_cluster_key(options, key, &params.cluster_key_bytes, error);
    if (status == KV_OK) {
        status = kv_peers_create(&params, &gateway->peers, error);
    }
    explicit_bzero(key, sizeof key);
    for (uint32_t i = 0; status == KV_OK && i < options->gateway.decode_nodes.count; i++) {
        status = kv_peers_connect(gateway->peers, options->gateway.decode_nodes.items[i], error);
    }
    return status;
}

static kv_status_t open_http(kv_gateway_t *gateway, kv_error_t *error)
{
    const kv_options_t *options = gateway->options;
    const kv_http_params_t params = {.host = options->gateway.http_host,
        .port = (uint16_t)options->gateway.http_port,
        .body_bytes_max = options->gateway.body_bytes_max,
        .stream_buffer_bytes = options->gateway.stream_buffer_bytes,
        .connections_max = options->gateway.connections_max,
        .connection_limit_ns = options->gateway.connection_limit_ns,
        .queue = gateway->incoming};
    return kv_http_open(&params, &gateway->http, error);
}

static void set_up(kv_gateway_t *gateway)
{
    const kv_options_t *options = gateway->options;
    uint32_t queue_max = options->gateway.queue_max;
    const char *name = options->gateway.model_name;
    gateway->limits = (kv_api_limits_t){
        .model = name[0] != '\0' ? name : kv_tokenizer_model_name(gateway->tokenizer),
        .vocabulary_count = kv_tokenizer_vocabulary_count(gateway->tokenizer),
        .context_tokens_max = kv_tokenizer_context_tokens_max(gateway->tokenizer),
        .default_max_tokens = options->gateway.default_max_tokens};
    KV_CHECK(getrandom(&gateway->boot_id, sizeof gateway->boot_id, 0) ==
             (ssize_t)sizeof gateway->boot_id);
    gateway->started_ns = kv_clock_now_ns();
    gateway->started_unix_s = kv_clock_real()->unix_ns(kv_clock_real()) / KV_NS_PER_S;
    gateway->slots = kv_allocate_array(queue_max, sizeof(request_t *));
    gateway->free_slots = kv_allocate_array(queue_max, sizeof *gateway->free_slots);
    for (uint32_t i = 0; i < queue_max; i++) {
        gateway->free_slots[i] = i;
    }
    register_metrics(gateway);
    gateway->incoming =
        kv_queue_create(options->gateway.connections_max + 1, sizeof(kv_exchange_t *));
    gateway->parsed = kv_queue_create(queue_max, sizeof(request_t *));
    gateway->workers = kv_workers_create("parse", PARSE_THREADS, queue_max);
    gateway->incoming_watch =
        kv_reactor_attach(gateway->reactor, kv_queue_fd(gateway->incoming), on_incoming, gateway);
    gateway->parsed_watch =
        kv_reactor_attach(gateway->reactor, kv_queue_fd(gateway->parsed), on_parsed, gateway);
    gateway->timer = kv_timer_create(gateway->reactor, on_tick, gateway);
}

kv_status_t kv_gateway_open(kv_reactor_t *reactor, const kv_options_t *options,
    const kv_tokenizer_t *tokenizer, kv_gateway_t **gateway_out, kv_error_t *error)
{
    if (options->gateway.decode_nodes.count == 0) {
        return kv_fail(error, KV_INVALID, "gateway.decode_nodes: is empty: name at least one");
    }
    kv_gateway_t *gateway = kv_allocate(sizeof *gateway);
    *gateway = (kv_gateway_t){.reactor = reactor, .options = options, .tokenizer = tokenizer};
    set_up(gateway);
    kv_status_t status = kv_admin_open(
        reactor, options->node.admin, &ADMIN_HANDLERS, gateway, &gateway->admin, error);
    if (status == KV_OK) {
        status = open_peers(gateway, error);
    }
    if (status == KV_OK) {
        status = open_http(gateway, error);
    }
    if (status != KV_OK) {
        kv_gateway_close(gateway);
        return status;
    }
    kv_log_info("gateway", "listening http %s:%u model %s decode_nodes %u",
        options->gateway.http_host, kv_http_port(gateway->http), gateway->limits.model,
        options->gateway.decode_nodes.count);
    *gateway_out = gateway;
    return KV_OK;
}

void kv_gateway_begin_stop(kv_gateway_t *gateway, void (*stopped)(void *context), void *context)
{
    gateway->stopping = true;
    gateway->stopped = stopped;
    gateway->stopped_context = context;
    if (gateway->active_count == 0) {
        stopped(context);
        return;
    }
    kv_api_error_t error;
    kv_api_fail(&error, 503, "", "stopping", "the gateway is stopping");
    for (uint32_t i = 0; i < gateway->options->gateway.queue_max; i++) {
        request_t *request = gateway->slots[i];
        if (request != NULL && request->state != REQUEST_PARSING) {
            cancel_at_node(request);
            fail_request(request, &error);
        }
    }
}

void kv_gateway_close(kv_gateway_t *gateway)
{
    if (gateway == NULL) {
        return;
    }
    KV_CHECK(gateway->active_count == 0);
    kv_http_close(gateway->http);
    if (gateway->peers != NULL) {
        kv_peers_destroy(gateway->peers);
    }
    kv_admin_close(gateway->admin);
    kv_workers_destroy(gateway->workers);
    kv_watch_detach(gateway->incoming_watch);
    kv_watch_detach(gateway->parsed_watch);
    kv_timer_destroy(gateway->timer);
    kv_queue_destroy(gateway->incoming);
    kv_queue_destroy(gateway->parsed);
    for (size_t i = 0; i < gateway->node_count; i++) {
        free(gateway->nodes[i]);
    }
    free(gateway->slots);
    free(gateway->free_slots);
    free(gateway);
}

uint16_t kv_gateway_http_port(const kv_gateway_t *gateway)
{
    return kv_http_port(gateway->http);
}
