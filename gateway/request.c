/* A request's life, on the reactor's thread. The HTTP thread and the parse threads see a request
 * only while it is theirs (an exchange that comes in; a job that runs).
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
#include "gateway/gateway_internal.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "engine/detokenizer.h"
#include "gateway/render.h"
#include "gateway/router.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

enum {
    ATTEMPTS_MAX = 4,
    STOPPING_LIMIT_NS = 2 * KV_NS_PER_S, /* for a cancelled request's usage to arrive */
    ID_BYTES = 64,
    TICK_MS = 100,
};

typedef enum {
    REQUEST_PARSING,
    REQUEST_WAITING,
    REQUEST_RUNNING,
    REQUEST_STOPPING,
} request_state_t;

struct kv_request {
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

    kv_decode_node_t *node;
    uint64_t tried[ATTEMPTS_MAX]; /* ids of peers */
    unsigned tried_count;
    kv_detokenizer_t *detokenizer;
    uint32_t token_count;
    bool began; /* a stream's head and first event were sent */
    char *text; /* of an answer that is sent whole */
    size_t text_bytes, text_capacity;
};

static kv_answer_t answer_of(const kv_request_t *request)
{
    return (kv_answer_t){.kind = request->kind,
        .id = request->id,
        .model = request->gateway->limits.model,
        .created_unix_s = request->created_unix_s,
        .include_usage = request->api.include_usage};
}

/* ---- the end of a request ---- */

static void format_wire_id(const kv_request_t *request, char id_out[ID_BYTES])
{
    snprintf(id_out, ID_BYTES, "%016" PRIx64 "-%" PRIx32 "-%" PRIx64, request->gateway->boot_id,
        request->slot, request->sequence);
}

static void leave_node(kv_request_t *request)
{
    if (request->node != NULL) {
        request->node->outstanding--;
        request->node = NULL;
    }
}

static void cancel_at_node(kv_request_t *request)
{
    if (request->node == NULL) {
        return;
    }
    char wire_id[ID_BYTES];
    format_wire_id(request, wire_id);
    Kvist__Wire__Cancel cancel = KVIST__WIRE__CANCEL__INIT;
    Kvist__Wire__Envelope envelope = KVIST__WIRE__ENVELOPE__INIT;
    cancel.request_id = wire_id;
    envelope.body_case = KVIST__WIRE__ENVELOPE__BODY_CANCEL;
    envelope.cancel = &cancel;
    if (kv_peer_send(request->node->peer, &envelope) == KV_BUSY) {
        kv_peer_close(request->node->peer, KV_BUSY, "does not take messages");
    }
}

static void release_request(kv_request_t *request)
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
static void fail_request(kv_request_t *request, const kv_api_error_t *error)
{
    kv_log_info(
        "gateway", "request %s failed code %u: %s", request->id, error->http_code, error->message);
    if (!request->began) {
        kv_gateway_reply_error(request->exchange, request->route, error);
    } else {
        size_t bytes;
        char *event = kv_render_error_event(error, &bytes);
        bool sent = kv_exchange_write(request->exchange, event, bytes) == KV_OK;
        free(event);
        kv_exchange_end(request->exchange, sent);
        kv_gateway_count_answer(request->route, error->http_code);
    }
    release_request(request);
}

/* The client is gone, or too slow: nobody to answer. */
static void abandon_request(kv_request_t *request, kv_metric_t *why)
{
    kv_log_info("gateway", "request %s cancelled: the client %s", request->id,
        why == request->gateway->slow_metric ? "reads too slowly" : "went away");
    kv_metric_add(why, 1);
    kv_gateway_count_answer(request->route, 499);
    cancel_at_node(request);
    if (request->began) {
        kv_exchange_end(request->exchange, false);
    }
    release_request(request);
}

/* ---- text to the client; false: the request has ended ---- */

static bool write_event(kv_request_t *request, char *event, size_t bytes)
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

static bool send_text(
    kv_request_t *request, const char *text, size_t bytes, const char *finish_reason)
{
    kv_answer_t answer = answer_of(request);
    size_t event_bytes;
    bool first = !request->began;
    if (first) {
        kv_http_head_t head = {.code = 200, .content_type = "text/event-stream"};
        kv_gateway_add_header(&head, "Cache-Control", "no-cache");
        kv_gateway_add_header(&head, "x-request-id", request->id);
        kv_exchange_begin(request->exchange, &head);
        request->began = true;
    }
    if (!first && bytes == 0 && finish_reason == NULL) {
        return true;
    }
    char *event = kv_render_event(&answer, first, text, bytes, finish_reason, &event_bytes);
    return write_event(request, event, event_bytes);
}

static void append_text(kv_request_t *request, const char *text, size_t bytes)
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

static void count_usage(kv_request_t *request, const Kvist__Wire__Usage *usage)
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
    kv_request_t *request, const char *finish_reason, const Kvist__Wire__Usage *usage)
{
    kv_answer_t answer = answer_of(request);
    kv_http_head_t head = {.code = 200, .content_type = "application/json"};
    char number[16];
    snprintf(number, sizeof number, "%u", kv_usage_cached_tokens(usage));
    kv_gateway_add_header(&head, "x-kvist-hit-tokens", number);
    kv_gateway_add_header(&head, "x-request-id", request->id);
    size_t bytes;
    char *body = kv_render_answer(&answer, request->text != NULL ? request->text : "",
        request->text_bytes, finish_reason, usage, request->token_count, &bytes);
    kv_exchange_reply(request->exchange, &head, body, bytes);
}

static bool end_stream(
    kv_request_t *request, const char *finish_reason, const Kvist__Wire__Usage *usage)
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
    kv_request_t *request, const char *finish_reason, const Kvist__Wire__Usage *said)
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
    kv_gateway_count_answer(request->route, 200);
    kv_log_info("gateway",
        "request %s done prompt_tokens %u cached_tokens %u tokens %u ttft_ms %.1f", request->id,
        usage.prompt_tokens, kv_usage_cached_tokens(&usage), request->token_count,
        request->first_token_ns == 0
            ? 0.0
            : (double)(request->first_token_ns - request->arrived_ns) / KV_NS_PER_MS);
    release_request(request);
}

/* ---- nodes ---- */

static bool was_tried(const kv_request_t *request, uint64_t peer_id)
{
    for (unsigned i = 0; i < request->tried_count; i++) {
        if (request->tried[i] == peer_id) {
            return true;
        }
    }
    return false;
}

static kv_status_t send_generate(kv_request_t *request, kv_peer_t *peer)
{
    kv_gateway_t *gateway = request->gateway;
    const kv_api_request_t *api = &request->api;
    char wire_id[ID_BYTES];
    request->sequence = ++gateway->sequence;
    format_wire_id(request, wire_id);
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
    generate.salt = (ProtobufCBinaryData){api->salt_bytes, (uint8_t *)api->salt};
    generate.cache_mode = (Kvist__Wire__CacheMode)api->cache_mode;
    envelope.body_case = KVIST__WIRE__ENVELOPE__BODY_GENERATE;
    envelope.generate = &generate;
    kv_log_debug(
        "gateway", "request %s goes to %s as %s", request->id, kv_peer_name(peer), wire_id);
    return kv_peer_send(peer, &envelope);
}

/* Everything of an attempt but the prompt begins anew. */
static bool start_text(kv_request_t *request)
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
static void route_request(kv_request_t *request)
{
    kv_gateway_t *gateway = request->gateway;
    kv_router_node_t states[KV_GATEWAY_NODES_MAX];
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
        kv_decode_node_t *node = gateway->nodes[choice];
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
static void retry_request(kv_request_t *request, const kv_api_error_t *error)
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
static kv_request_t *find_request(kv_gateway_t *gateway, const kv_peer_t *peer, const char *wire_id)
{
    uint64_t boot_id, sequence;
    uint32_t slot;
    char end;
    if (sscanf(wire_id, "%16" SCNx64 "-%8" SCNx32 "-%16" SCNx64 "%c", &boot_id, &slot, &sequence,
            &end) != 3 ||
        boot_id != gateway->boot_id || slot >= gateway->options->gateway.queue_max) {
        return NULL;
    }
    kv_request_t *request = gateway->slots[slot];
    bool same = request != NULL && request->node != NULL && request->sequence == sequence &&
                request->node->peer == peer;
    return same ? request : NULL;
}

/* One token's text; false: the request has ended. */
static bool take_token(kv_request_t *request, uint32_t token, bool *stopped_out)
{
    const char *text;
    size_t bytes;
    if (request->token_count == request->api.max_tokens ||
        kv_detokenizer_push(request->detokenizer, token, &text, &bytes, stopped_out) != KV_OK) {
        kv_api_error_t error;
        kv_api_fail(&error, 502, "", "bad_node",
            "decode node %s sent token %u, the %uth of %u: the vocabulary has %u",
            kv_peer_name(request->node->peer), token, request->token_count + 1,
            request->api.max_tokens, request->gateway->limits.vocabulary_count);
        cancel_at_node(request);
        fail_request(request, &error);
        return false;
    }
    request->token_count++;
    append_text(request, text, bytes);
    return true;
}

static void on_tokens(kv_request_t *request, const Kvist__Wire__Tokens *tokens)
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

static void fail_from_node(kv_request_t *request, const Kvist__Wire__Finished *finished)
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

static void on_finished(kv_request_t *request, const Kvist__Wire__Finished *finished)
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

void kv_request_message(
    kv_gateway_t *gateway, kv_peer_t *peer, const Kvist__Wire__Envelope *message)
{
    kv_request_t *request;
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

void kv_request_node_lost(kv_gateway_t *gateway, kv_decode_node_t *node)
{
    kv_api_error_t error;
    kv_api_fail(&error, 502, "", "node_lost",
        "decode node %s was lost while it worked on the request", kv_peer_name(node->peer));
    for (uint32_t i = 0; node->outstanding > 0 && i < gateway->options->gateway.queue_max; i++) {
        kv_request_t *request = gateway->slots[i];
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
}

/* ---- requests come in ---- */

/* On a parse thread; the request is its own until it is in the queue. */
static void parse_request(void *argument)
{
    kv_request_t *request = argument;
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

void kv_request_parsed(kv_request_t *request)
{
    if (request->gateway->stopping) {
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

void kv_request_start(
    kv_gateway_t *gateway, kv_exchange_t *exchange, const char *route, kv_api_kind_t kind)
{
    kv_api_error_t error;
    uint32_t queue_max = gateway->options->gateway.queue_max;
    if (gateway->active_count == queue_max) {
        kv_api_fail(
            &error, 429, "", "overloaded", "%u requests are in work, the most at once", queue_max);
        kv_gateway_reply_error(exchange, route, &error);
        kv_exchange_release(exchange);
        return;
    }
    kv_request_t *request = kv_allocate(sizeof *request);
    *request = (kv_request_t){.gateway = gateway,
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

/* ---- time ---- */

void kv_request_check(kv_request_t *request, uint64_t now_ns)
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

void kv_request_stop_all(kv_gateway_t *gateway)
{
    kv_api_error_t error;
    kv_api_fail(&error, 503, "", "stopping", "the gateway is stopping");
    for (uint32_t i = 0; i < gateway->options->gateway.queue_max; i++) {
        kv_request_t *request = gateway->slots[i];
        if (request != NULL && request->state != REQUEST_PARSING) {
            cancel_at_node(request);
            fail_request(request, &error);
        }
    }
}
