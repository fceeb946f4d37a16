/* Which node has a choice, and how it gets there: the first time, again, or onwards.
 *
 * A choice that goes on at another node takes with it what was generated; the node makes that
 * text's KV as the node before did, and draws with the same seed at the same positions: what the
 * client sees is one stream. */
#include "gateway/generation.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "gateway/request.h"
#include "gateway/route.h"

#include <inttypes.h>
#include <stdio.h>

static void format_wire_id(const kv_generation_t *choice, char id_out[KV_REQUEST_ID_BYTES])
{
    const kv_request_t *request = choice->request;
    snprintf(id_out, KV_REQUEST_ID_BYTES, "%016" PRIx64 "-%" PRIx32 "-%" PRIx64,
        request->gateway->boot_id, request->slot, choice->sequence);
}

kv_generation_t *kv_generation_find(
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
    for (size_t i = 0; request != NULL && i < request->choice_count; i++) {
        kv_generation_t *choice = &request->choices[i];
        if (choice->node != NULL && choice->sequence == sequence) {
            return choice->node->peer == peer ? choice : NULL;
        }
    }
    return NULL;
}

/* ---- leaving a node ---- */

void kv_generation_cancel_at_node(kv_generation_t *choice)
{
    if (choice->node == NULL) {
        return;
    }
    char wire_id[KV_REQUEST_ID_BYTES];
    format_wire_id(choice, wire_id);
    Kvist__Wire__Cancel cancel = KVIST__WIRE__CANCEL__INIT;
    Kvist__Wire__Envelope envelope = KVIST__WIRE__ENVELOPE__INIT;
    cancel.request_id = wire_id;
    envelope.body_case = KVIST__WIRE__ENVELOPE__BODY_CANCEL;
    envelope.cancel = &cancel;
    if (kv_peer_send(choice->node->peer, &envelope) == KV_BUSY) {
        kv_peer_close(choice->node->peer, KV_BUSY, "does not take messages");
    }
}

/* ---- to a node ---- */

static kv_status_t send_generate(kv_generation_t *choice, kv_peer_t *peer)
{
    kv_request_t *request = choice->request;
    const kv_api_request_t *api = &request->api;
    char wire_id[KV_REQUEST_ID_BYTES];
    choice->sequence = ++request->gateway->sequence;
    format_wire_id(choice, wire_id);
    Kvist__Wire__Sampling sampling = KVIST__WIRE__SAMPLING__INIT;
    Kvist__Wire__Generate generate = KVIST__WIRE__GENERATE__INIT;
    Kvist__Wire__Envelope envelope = KVIST__WIRE__ENVELOPE__INIT;
    sampling.temperature = api->temperature;
    sampling.top_k = api->top_k;
    sampling.top_p = api->top_p;
    sampling.seed = choice->seed;
    generate.request_id = wire_id;
    generate.client_id = request->id;
    generate.tokens = choice->token_count > 0 ? choice->tokens : choice->prompt->tokens;
    generate.n_tokens = choice->prompt->token_count + choice->token_count;
    generate.generated_count = choice->token_count;
    generate.max_tokens = api->max_tokens - choice->token_count;
    generate.sampling = &sampling;
    generate.ignore_end = api->ignore_eos;
    generate.salt = (ProtobufCBinaryData){api->salt_bytes, (uint8_t *)api->salt};
    generate.cache_mode = (Kvist__Wire__CacheMode)api->cache_mode;
    envelope.body_case = KVIST__WIRE__ENVELOPE__BODY_GENERATE;
    envelope.generate = &generate;
    kv_log_debug("gateway", "request %s choice %u goes to %s as %s after %u tokens", request->id,
        choice->index, kv_peer_name(peer), wire_id, choice->token_count);
    return kv_peer_send(peer, &envelope);
}

static bool was_tried(const kv_generation_t *choice, uint64_t peer_id)
{
    for (unsigned i = 0; i < choice->tried_count; i++) {
        if (choice->tried[i] == peer_id) {
            return true;
        }
    }
    return false;
}

/* An answer that was begun goes on only where generated_count is known: a node of version 1 would
 * take what was generated for the prompt, and draw other tokens. */
static bool may_serve(const kv_generation_t *choice, const kv_peer_t *peer)
{
    return !kv_peer_draining(peer) && (choice->token_count == 0 || kv_peer_version(peer) >= 2);
}

/* The node that it should have next, or NULL. */
static kv_decode_node_t *choose_node(kv_generation_t *choice)
{
    const kv_gateway_t *gateway = choice->request->gateway;
    kv_router_node_t states[KV_GATEWAY_NODES_MAX];
    for (size_t i = 0; i < gateway->node_count; i++) {
        const kv_peer_t *peer = gateway->nodes[i]->peer;
        states[i] = (kv_router_node_t){
            .unfit = !may_serve(choice, peer), .tried = was_tried(choice, kv_peer_id(peer))};
    }
    return kv_route_choose(choice, states);
}

static bool any_node_serves(const kv_generation_t *choice)
{
    const kv_gateway_t *gateway = choice->request->gateway;
    for (size_t i = 0; i < gateway->node_count; i++) {
        if (may_serve(choice, gateway->nodes[i]->peer)) {
            return true;
        }
    }
    return false;
}

static void count_sent(kv_generation_t *choice)
{
    kv_gateway_t *gateway = choice->request->gateway;
    if (choice->sent_count++ > 0) {
        kv_metric_add(gateway->retries_metric, 1);
    }
    if (choice->token_count > 0) {
        choice->continued = true;
        kv_metric_add(gateway->continued_metric, 1);
        kv_log_info("gateway", "request %s goes on at %s after %u tokens", choice->request->id,
            kv_peer_name(choice->node->peer), choice->token_count);
    }
}

/* No node takes it now: it looks again at the next tick, or ends. */
static void wait_for_node(kv_generation_t *choice)
{
    kv_gateway_t *gateway = choice->request->gateway;
    uint64_t now_ns = kv_clock_now_ns();
    bool serves = any_node_serves(choice);
    if (serves) {
        choice->seek_deadline_ns = 0;
    } else if (choice->seek_deadline_ns == 0) {
        choice->seek_deadline_ns = now_ns + gateway->options->gateway.node_wait_ns;
    }
    /* Where nodes are up but busy, what a node had taken waits for its time limit at most. */
    bool waits = serves ? choice->displaced : now_ns < choice->seek_deadline_ns;
    if (waits && !gateway->stopping) {
        choice->tried_count = 0;
        return;
    }
    if (choice->error.http_code == 0) {
        kv_api_fail(&choice->error, 503, "", "no_decode_node",
            serves ? "no decode node takes the request" : "no decode node is up");
    }
    kv_request_fail(choice->request, &choice->error);
}

void kv_generation_route(kv_generation_t *choice)
{
    kv_decode_node_t *node;
    choice->state = GENERATION_SEEKING;
    while (choice->tried_count < KV_ATTEMPTS_MAX && (node = choose_node(choice)) != NULL) {
        choice->tried[choice->tried_count++] = kv_peer_id(node->peer);
        if (send_generate(choice, node->peer) == KV_OK) {
            kv_route_sent(choice, node);
            choice->state = GENERATION_WAITING;
            count_sent(choice);
            return;
        }
    }
    wait_for_node(choice);
}

void kv_generation_seek(kv_generation_t *choice)
{
    if (choice->state == GENERATION_SEEKING) {
        kv_generation_route(choice);
    } else if ((choice->state == GENERATION_WAITING || choice->state == GENERATION_RUNNING) &&
               kv_peer_draining(choice->node->peer) && any_node_serves(choice)) {
        kv_log_info("gateway", "request %s leaves %s, which drains", choice->request->id,
            kv_peer_name(choice->node->peer));
        kv_generation_cancel_at_node(choice);
        kv_route_left(choice);
        choice->displaced = true;
        choice->tried_count = 0;
        kv_generation_route(choice);
    }
}
