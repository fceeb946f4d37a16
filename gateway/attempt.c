/* Which node has a request, and how it gets there: the first time, again, or onwards.
 *
 * A request that goes on at another node takes with it what was generated; the node makes that
 * text's KV as the node before did, and draws with the same seed at the same positions: what the
 * client sees is one stream. */
#include "gateway/request_internal.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "gateway/router.h"

#include <inttypes.h>
#include <stdio.h>

static void format_wire_id(const kv_request_t *request, char id_out[KV_REQUEST_ID_BYTES])
{
    snprintf(id_out, KV_REQUEST_ID_BYTES, "%016" PRIx64 "-%" PRIx32 "-%" PRIx64,
        request->gateway->boot_id, request->slot, request->sequence);
}

kv_request_t *kv_request_find(
    const kv_gateway_t *gateway, const kv_peer_t *peer, const char *wire_id)
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

void kv_request_keep_token(kv_request_t *request, uint32_t token)
{
    kv_api_request_t *api = &request->api;
    if (request->token_count == request->token_capacity) {
        request->token_capacity = request->token_capacity == 0 ? 64 : 2 * request->token_capacity;
        api->tokens = kv_reallocate(
            api->tokens, api->token_count + request->token_capacity, sizeof *api->tokens);
    }
    api->tokens[api->token_count + request->token_count++] = token;
}

/* ---- leaving a node ---- */

void kv_request_leave_node(kv_request_t *request)
{
    if (request->node != NULL) {
        request->node->outstanding--;
        request->node = NULL;
    }
}

void kv_request_cancel_at_node(kv_request_t *request)
{
    if (request->node == NULL) {
        return;
    }
    char wire_id[KV_REQUEST_ID_BYTES];
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

/* ---- to a node ---- */

static kv_status_t send_generate(kv_request_t *request, kv_peer_t *peer)
{
    kv_gateway_t *gateway = request->gateway;
    const kv_api_request_t *api = &request->api;
    char wire_id[KV_REQUEST_ID_BYTES];
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
    generate.client_id = request->id;
    generate.tokens = api->tokens;
    generate.n_tokens = api->token_count + request->token_count;
    generate.generated_count = request->token_count;
    generate.max_tokens = api->max_tokens - request->token_count;
    generate.sampling = &sampling;
    generate.ignore_end = api->ignore_eos;
    generate.salt = (ProtobufCBinaryData){api->salt_bytes, (uint8_t *)api->salt};
    generate.cache_mode = (Kvist__Wire__CacheMode)api->cache_mode;
    envelope.body_case = KVIST__WIRE__ENVELOPE__BODY_GENERATE;
    envelope.generate = &generate;
    kv_log_debug("gateway", "request %s goes to %s as %s after %u tokens", request->id,
        kv_peer_name(peer), wire_id, request->token_count);
    return kv_peer_send(peer, &envelope);
}

static bool was_tried(const kv_request_t *request, uint64_t peer_id)
{
    for (unsigned i = 0; i < request->tried_count; i++) {
        if (request->tried[i] == peer_id) {
            return true;
        }
    }
    return false;
}

/* An answer that was begun goes on only where generated_count is known: a node of version 1 would
 * take what was generated for the prompt, and draw other tokens. */
static bool may_serve(const kv_request_t *request, const kv_peer_t *peer)
{
    return !kv_peer_draining(peer) && (request->token_count == 0 || kv_peer_version(peer) >= 2);
}

/* The node that it should have next, or NULL. */
static kv_decode_node_t *choose_node(const kv_request_t *request)
{
    const kv_gateway_t *gateway = request->gateway;
    kv_router_node_t states[KV_GATEWAY_NODES_MAX];
    for (size_t i = 0; i < gateway->node_count; i++) {
        const kv_peer_t *peer = gateway->nodes[i]->peer;
        states[i] = (kv_router_node_t){.outstanding = gateway->nodes[i]->outstanding,
            .reported = kv_peer_queued_requests(peer) + kv_peer_running_requests(peer),
            .unfit = !may_serve(request, peer),
            .tried = was_tried(request, kv_peer_id(peer))};
    }
    int choice = kv_router_choose(states, gateway->node_count);
    return choice < 0 ? NULL : gateway->nodes[choice];
}

static bool any_node_serves(const kv_request_t *request)
{
    const kv_gateway_t *gateway = request->gateway;
    for (size_t i = 0; i < gateway->node_count; i++) {
        if (may_serve(request, gateway->nodes[i]->peer)) {
            return true;
        }
    }
    return false;
}

static void count_sent(kv_request_t *request)
{
    kv_gateway_t *gateway = request->gateway;
    if (request->sent_count++ > 0) {
        kv_metric_add(gateway->retries_metric, 1);
    }
    if (request->token_count > 0) {
        request->continued = true;
        kv_metric_add(gateway->continued_metric, 1);
        kv_log_info("gateway", "request %s goes on at %s after %u tokens", request->id,
            kv_peer_name(request->node->peer), request->token_count);
    }
}

/* No node takes it now: it looks again at the next tick, or ends. */
static void wait_for_node(kv_request_t *request)
{
    kv_gateway_t *gateway = request->gateway;
    uint64_t now_ns = kv_clock_now_ns();
    bool serves = any_node_serves(request);
    if (serves) {
        request->seek_deadline_ns = 0;
    } else if (request->seek_deadline_ns == 0) {
        request->seek_deadline_ns = now_ns + gateway->options->gateway.node_wait_ns;
    }
    /* Where nodes are up but busy, what a node had taken waits for its time limit at most. */
    bool waits = serves ? request->displaced : now_ns < request->seek_deadline_ns;
    if (waits && !gateway->stopping) {
        request->tried_count = 0;
        return;
    }
    if (request->error.http_code == 0) {
        kv_api_fail(&request->error, 503, "", "no_decode_node",
            serves ? "no decode node takes the request" : "no decode node is up");
    }
    kv_request_fail(request, &request->error);
}

void kv_request_route(kv_request_t *request)
{
    kv_decode_node_t *node;
    request->state = REQUEST_SEEKING;
    while (
        request->tried_count < KV_REQUEST_ATTEMPTS_MAX && (node = choose_node(request)) != NULL) {
        request->tried[request->tried_count++] = kv_peer_id(node->peer);
        if (send_generate(request, node->peer) == KV_OK) {
            request->node = node;
            node->outstanding++;
            request->state = REQUEST_WAITING;
            count_sent(request);
            return;
        }
    }
    wait_for_node(request);
}

void kv_request_seek(kv_request_t *request)
{
    if (request->state == REQUEST_SEEKING) {
        kv_request_route(request);
    } else if ((request->state == REQUEST_WAITING || request->state == REQUEST_RUNNING) &&
               kv_peer_draining(request->node->peer) && any_node_serves(request)) {
        kv_log_info("gateway", "request %s leaves %s, which drains", request->id,
            kv_peer_name(request->node->peer));
        kv_request_cancel_at_node(request);
        kv_request_leave_node(request);
        request->displaced = true;
        request->tried_count = 0;
        kv_request_route(request);
    }
}
