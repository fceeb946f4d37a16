/* A request's life, on the reactor's thread. The HTTP thread and the parse threads see a request
 * only while it is theirs (an exchange that comes in; a job that runs).
 *
 *                   job done         Generate sent          first Tokens
 *   (exchange) --> PARSING --> SEEKING ---------> WAITING -------------> RUNNING ----> (answered)
 *                     |         ^  |  ^              |                      |   Finished
 *                     | wrong   |  |  | node lost, busy, draining, failed:  |
 *                     v      tick  |  | on with what was generated          | stop string: Cancel
 *                 (answered)       |  +--------------+----------------------+     |
 *                                  v                                        v     v
 *                              (answered: no node in time)     (answered) <--- STOPPING
 *
 * Invariants:
 * 1. A request in WAITING, RUNNING or STOPPING has a node, and counts in its `outstanding`.
 * 2. Each Generate has a wire id of its own (slot and sequence); messages with another sequence are
 *    of an attempt that is over, and are dropped.
 * 3. Leaving those states before Finished sends Cancel, unless the node is gone.
 * 4. What came of the answer stays: the tokens, the text, what was sent to the client. */
#include "gateway/request_internal.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "gateway/render.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

enum {
    STOPPING_LIMIT_NS = 2 * KV_NS_PER_S, /* for a cancelled request's usage to arrive */
    TICK_MS = 100,
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

static void release_request(kv_request_t *request)
{
    kv_gateway_t *gateway = request->gateway;
    kv_request_leave_node(request);
    kv_exchange_release(request->exchange);
    kv_detokenizer_destroy(request->detokenizer);
    if (request->parsed) {
        kv_api_request_clear(&request->api);
    }
    if (request->usage != NULL) {
        kvist__wire__usage__free_unpacked(request->usage, NULL);
    }
    free(request->text);
    gateway->slots[request->slot] = NULL;
    gateway->active_count--;
    gateway->free_slots[gateway->options->gateway.queue_max - gateway->active_count - 1] =
        request->slot;
    free(request);
    kv_metric_set(gateway->running_metric, gateway->active_count);
    kv_peers_set_load(gateway->peers, 0, gateway->active_count);
    if (gateway->active_count > 0) {
        return;
    }
    if (gateway->stopping) {
        gateway->stopped(gateway->stopped_context);
    } else if (gateway->draining) {
        kv_reactor_begin_stop(gateway->reactor);
    }
}

void kv_request_fail(kv_request_t *request, const kv_api_error_t *error)
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
    kv_request_cancel_at_node(request);
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
    if (request->text == NULL || request->text_bytes + bytes > request->text_capacity) {
        request->text_capacity = 2 * (request->text_bytes + bytes) + 64;
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

/* What the answer cost: as its node says, or as the first node said it with the first token where
 * the answer went on at another, or where nobody says more. */
static Kvist__Wire__Usage settle_usage(
    const kv_request_t *request, const Kvist__Wire__Usage *finished)
{
    Kvist__Wire__Usage usage = KVIST__WIRE__USAGE__INIT;
    if (finished != NULL && !request->continued) {
        usage = *finished;
    } else if (request->usage != NULL) {
        usage = *request->usage;
    } else if (finished != NULL) {
        usage = *finished;
        if (usage.prompt_tokens > request->api.token_count) {
            usage.cached = NULL; /* an older node: it took what was generated for the prompt */
        }
    }
    usage.prompt_tokens = (uint32_t)request->api.token_count;
    return usage;
}

/* The answer is complete. finished: the node's usage, or NULL where it did not say in time. */
static void complete_request(
    kv_request_t *request, const char *finish_reason, const Kvist__Wire__Usage *finished)
{
    Kvist__Wire__Usage usage = settle_usage(request, finished);
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

/* The detokenizer of the whole answer; false: the request has ended. */
static bool start_text(kv_request_t *request)
{
    const char *stops[KV_API_STOPS_MAX];
    for (size_t i = 0; i < request->api.stop_count; i++) {
        stops[i] = request->api.stops[i];
    }
    kv_error_t cause;
    if (kv_detokenizer_create(request->gateway->tokenizer, stops, request->api.stop_count,
            &request->detokenizer, &cause) != KV_OK) {
        kv_api_error_t error;
        kv_api_fail(&error, 400, "stop", NULL, "%s", cause.text);
        kv_request_fail(request, &error);
        return false;
    }
    return true;
}

/* Why the answer is complete although its node never said so, or NULL. */
static const char *reason_without_finished(const kv_request_t *request)
{
    const kv_api_request_t *api = &request->api;
    uint32_t count = request->token_count;
    if (request->state == REQUEST_STOPPING ||
        (count > 0 && !api->ignore_eos &&
            api->tokens[api->token_count + count - 1] ==
                kv_tokenizer_end_token(request->gateway->tokenizer))) {
        return "stop";
    }
    return count > 0 && count == api->max_tokens ? "length" : NULL;
}

/* The answer ends here: what the detokenizer held back, and the rest. */
static void end_answer(
    kv_request_t *request, const char *finish_reason, const Kvist__Wire__Usage *usage)
{
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
    complete_request(request, finish_reason, usage);
}

/* The attempt ended without an answer; the request goes on elsewhere. failed: it counts as one of
 * the few that may go wrong, since the request itself may be what breaks nodes. */
static void retry_request(kv_request_t *request, const kv_api_error_t *error, bool failed)
{
    kv_request_leave_node(request);
    request->error = *error;
    request->failed_count += failed;
    const char *reason = reason_without_finished(request);
    if (reason != NULL) {
        end_answer(request, reason, NULL);
    } else if (request->failed_count == KV_REQUEST_ATTEMPTS_MAX || request->gateway->stopping) {
        kv_request_fail(request, error);
    } else {
        kv_request_route(request);
    }
}

/* ---- messages of a node ---- */

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
        kv_request_cancel_at_node(request);
        kv_request_fail(request, &error);
        return false;
    }
    kv_request_keep_token(request, token);
    append_text(request, text, bytes);
    return true;
}

/* A copy of the first usage that a node told, for an answer whose Finished never comes. */
static void keep_usage(kv_request_t *request, const Kvist__Wire__Usage *usage)
{
    if (usage == NULL || request->usage != NULL) {
        return;
    }
    size_t bytes = kvist__wire__usage__get_packed_size(usage);
    uint8_t *packed = kv_allocate(bytes);
    kvist__wire__usage__pack(usage, packed);
    request->usage = kvist__wire__usage__unpack(NULL, bytes, packed);
    free(packed);
}

static void on_tokens(kv_request_t *request, const Kvist__Wire__Tokens *tokens)
{
    if (request->state == REQUEST_STOPPING || tokens->n_tokens == 0) {
        return;
    }
    keep_usage(request, tokens->usage);
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
        kv_request_cancel_at_node(request);
        request->state = REQUEST_STOPPING;
        request->stopping_ns = request->last_token_ns;
    }
}

static void fail_from_node(kv_request_t *request, const Kvist__Wire__Finished *finished)
{
    kv_api_error_t error;
    const char *name = kv_peer_name(request->node->peer);
    bool again = true, failed = false;
    switch (finished->reason == KVIST__WIRE__FINISH_REASON__FINISH_CANCELLED ? KV_CANCELLED
                                                                             : finished->status) {
    case KV_INVALID:
    case KV_REFUSED:
        again = false;
        kv_api_fail(&error, 400, "", NULL, "%s", finished->error);
        break;
    case KV_BUSY:
    case KV_NO_SPACE:
        kv_api_fail(
            &error, 429, "", "overloaded", "decode node %s is busy: %s", name, finished->error);
        break;
    case KV_CANCELLED:
    case KV_PEER_LOST:
        request->displaced = true;
        kv_api_fail(&error, 503, "", "node_stopping", "decode node %s gave the request up: %s",
            name, finished->error);
        break;
    default:
        failed = true;
        kv_api_fail(&error, 500, "", NULL, "decode node %s: %s: %s", name,
            kv_status_name((kv_status_t)finished->status), finished->error);
    }
    if (again) {
        retry_request(request, &error, failed);
    } else {
        kv_request_fail(request, &error);
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
    } else {
        end_answer(request, reason, finished->usage);
    }
}

void kv_request_message(
    kv_gateway_t *gateway, kv_peer_t *peer, const Kvist__Wire__Envelope *message)
{
    kv_request_t *request;
    switch (message->body_case) {
    case KVIST__WIRE__ENVELOPE__BODY_TOKENS:
        request = kv_request_find(gateway, peer, message->tokens->request_id);
        if (request != NULL) {
            on_tokens(request, message->tokens);
        }
        break;
    case KVIST__WIRE__ENVELOPE__BODY_FINISHED:
        request = kv_request_find(gateway, peer, message->finished->request_id);
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
        request->displaced = true;
        retry_request(request, &error, true);
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
        kv_request_fail(request, &request->error);
    } else if (!request->parsed) {
        kv_request_fail(request, &request->error);
    } else if (start_text(request)) {
        if (!request->api.has_seed) {
            KV_CHECK(getrandom(&request->api.seed, sizeof request->api.seed, 0) ==
                     (ssize_t)sizeof request->api.seed);
        }
        kv_request_route(request);
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
        kv_request_cancel_at_node(request);
        kv_request_fail(request, &error);
    } else {
        kv_request_seek(request);
    }
}

void kv_request_stop_all(kv_gateway_t *gateway)
{
    kv_api_error_t error;
    kv_api_fail(&error, 503, "", "stopping", "the gateway is stopping");
    for (uint32_t i = 0; i < gateway->options->gateway.queue_max; i++) {
        kv_request_t *request = gateway->slots[i];
        if (request != NULL && request->state != REQUEST_PARSING) {
            kv_request_cancel_at_node(request);
            kv_request_fail(request, &error);
        }
    }
}
