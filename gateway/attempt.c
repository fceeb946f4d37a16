/* Which node has a choice, and how it gets there: the first time, again, or onwards.
 *
 * A choice that goes on at another node takes with it what was generated; the node makes that
 * text's KV as the node before did, and draws with the same seed at the same positions: what the
 * client sees is one stream. */
#include "gateway/generation.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "gateway/keeping/keeping.h"
#include "gateway/request.h"
#include "gateway/routing/route.h"

#include <inttypes.h>
#include <stdio.h>

static void format_wire_id(const kv_generation_t *choice, char id_out[KV_REQUEST_ID_BYTES])
{
    const kv_request_t *request = choice->request;
    snprintf(id_out, KV_REQUEST_ID_BYTES, "%016" PRIx64 "-%" PRIx32 "-%" PRIx64,
        request->gateway->boot_id, request->slot, choice->sequence);
}

kv_generation_t *kv_generation_find(
    const kv_gateway_t *gateway, const kv_node_t *node, const char *wire_id)
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
            return choice->node->node == node ? choice : NULL;
        }
    }
    return NULL;
}

/* ---- leaving a node ---- */

void kv_generation_cancel_at_node(kv_generation_t *choice, bool wants_usage)
{
    if (choice->node == NULL) {
        return;
    }
    char wire_id[KV_REQUEST_ID_BYTES];
    format_wire_id(choice, wire_id);
    kv_node_cancel(choice->node->node, wire_id, wants_usage);
}

/* ---- to a node ---- */

static kv_status_t send_generate(kv_generation_t *choice, kv_node_t *node)
{
    kv_request_t *request = choice->request;
    const kv_api_request_t *api = &request->api;
    char wire_id[KV_REQUEST_ID_BYTES];
    choice->sequence = ++request->gateway->sequence;
    format_wire_id(choice, wire_id);
    Kvist__Wire__Sampling sampling = KVIST__WIRE__SAMPLING__INIT;
    Kvist__Wire__Generate generate = KVIST__WIRE__GENERATE__INIT;
    const char *stops[KV_API_STOPS_MAX];
    const kv_node_work_t work = {.generate = &generate,
        .stops = stops,
        .stop_count = api->stop_count,
        .wants_logprobs = api->has_logprobs};
    for (size_t i = 0; i < api->stop_count; i++) {
        stops[i] = api->stops[i];
    }
    sampling.temperature = api->temperature;
    sampling.top_k = api->top_k;
    sampling.top_p = api->top_p;
    sampling.seed = choice->seed;
    sampling.top_logprobs = api->top_logprobs;
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
    kv_keeping_t keeping;
    kv_keeping_ask(choice, node->id, &keeping, &generate);
    kv_log_debug("gateway", "request %s choice %u goes to %s as %s after %u tokens", request->id,
        choice->index, node->name, wire_id, choice->token_count);
    return kv_node_generate(node, &work);
}

static bool was_tried(const kv_generation_t *choice, uint64_t node_id)
{
    for (unsigned i = 0; i < choice->tried_count; i++) {
        if (choice->tried[i] == node_id) {
            return true;
        }
    }
    return false;
}

static bool may_serve(const kv_generation_t *choice, const kv_node_state_t *state)
{
    return !state->draining && (choice->token_count == 0 || state->continues) &&
           (choice->request->api.top_logprobs == 0 || state->tells_tops);
}

/* The node that it should have next, or NULL. */
static kv_decode_node_t *choose_node(kv_generation_t *choice)
{
    const kv_gateway_t *gateway = choice->request->gateway;
    kv_router_node_t states[KV_GATEWAY_NODES_MAX];
    for (size_t i = 0; i < gateway->node_count; i++) {
        const kv_node_t *node = gateway->nodes[i]->node;
        kv_node_state_t state = kv_node_look(node);
        states[i] = (kv_router_node_t){
            .unfit = !may_serve(choice, &state), .tried = was_tried(choice, node->id)};
    }
    return kv_route_choose(choice, states);
}

static bool any_node_serves(const kv_generation_t *choice)
{
    const kv_gateway_t *gateway = choice->request->gateway;
    for (size_t i = 0; i < gateway->node_count; i++) {
        kv_node_state_t state = kv_node_look(gateway->nodes[i]->node);
        if (may_serve(choice, &state)) {
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
            choice->node->node->name, choice->token_count);
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
    /* Where nodes are up but busy, what a node had taken waits for its time limit at most, and what
     * none has taken yet as long as for any place. */
    bool queues = now_ns - choice->request->arrived_ns < gateway->options->gateway.queue_wait_ns;
    bool waits = serves ? choice->displaced || queues : now_ns < choice->seek_deadline_ns;
    if (waits && !gateway->stopping) {
        choice->tried_count = 0;
        return;
    }
    if (choice->error.http_code == 0) {
        const char *why = serves ? "" : kv_nodes_why_none(gateway->engine);
        kv_api_fail(&choice->error, 503, "", "no_decode_node", "%s%s%s",
            serves ? "no decode node takes the request" : "no decode node is up",
            why[0] != '\0' ? ": " : "", why);
    }
    kv_request_fail(choice->request, &choice->error);
}

void kv_generation_route(kv_generation_t *choice)
{
    kv_decode_node_t *node;
    choice->state = GENERATION_SEEKING;
    while (choice->tried_count < KV_ATTEMPTS_MAX && (node = choose_node(choice)) != NULL) {
        choice->tried[choice->tried_count++] = node->node->id;
        if (send_generate(choice, node->node) == KV_OK) {
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
               kv_node_look(choice->node->node).draining && any_node_serves(choice)) {
        kv_log_info("gateway", "request %s leaves %s, which drains", choice->request->id,
            choice->node->node->name);
        kv_generation_cancel_at_node(choice, false);
        kv_route_left(choice);
        choice->displaced = true;
        choice->tried_count = 0;
        kv_generation_route(choice);
    }
}
