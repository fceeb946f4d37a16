#include "gateway/routing/route.h"

#include "base/clock.h"
#include "base/log.h"
#include "gateway/figures/seen.h"
#include "gateway/request.h"
#include "gateway/routing/branches.h"
#include "gateway/routing/decisions.h"
#include "gateway/routing/prefixes.h"

#include <stdio.h>
#include <string.h>

/* The moving average of an answer's tokens: a new one counts an eighth. */
enum { ANSWERS_OBSERVED = 8 };

/* The longest run that any node has of a prompt. */
typedef struct {
    int naming;
    uint32_t blocks, tokens;
} longest_t;

static const kv_prompt_keys_t *keys_of(const kv_generation_t *choice)
{
    const kv_request_t *request = choice->request;
    return &request->keys[choice->index / request->api.choice_count];
}

/* ---- what is known of the nodes ---- */

/* How the node names blocks, or how what was sent there is named here. */
static int naming_of(const kv_gateway_t *gateway, const kv_node_t *node)
{
    return node->peer != NULL ? kv_prefixes_naming_of(gateway->prefixes, node->peer)
                              : gateway->sent_naming;
}

static void look_at_node(const kv_generation_t *choice, const kv_decode_node_t *node,
    kv_router_node_t *state, longest_t *longest)
{
    const kv_gateway_t *gateway = choice->request->gateway;
    const kv_prompt_keys_t *keys = keys_of(choice);
    const kv_node_t *at = node->node;
    const kv_node_state_t told = kv_node_look(at);
    int naming = kv_api_reads(&choice->request->api) ? naming_of(gateway, at) : KV_NAMING_NONE;
    kv_holding_t run = kv_prefixes_run(gateway->prefixes, at->id, told.attached_to, keys, naming);
    state->name_hash = kv_router_hash(at->name, strlen(at->name));
    state->outstanding = node->outstanding;
    state->reported = told.queued_requests + told.running_requests;
    state->warm = node->warm;
    state->taken_tokens = (uint64_t)node->taken_tokens;
    state->waiting_tokens =
        node->waiting_tokens + (uint64_t)(kv_router_load(state) * gateway->answer_tokens / 2);
    for (int tier = 0; tier < KV_ROUTER_TIERS && run.block_count > 0; tier++) {
        state->run_tokens[tier] = run.tier_blocks[tier] * keys->of[naming].block_tokens;
    }
    if (run.block_count > 0 && run.block_count * keys->of[naming].block_tokens > longest->tokens) {
        *longest =
            (longest_t){naming, run.block_count, run.block_count * keys->of[naming].block_tokens};
    }
}

static size_t number_of(const kv_gateway_t *gateway, const kv_decode_node_t *node)
{
    size_t number = 0;
    while (gateway->nodes[number] != node) {
        number++;
    }
    return number;
}

/* What a choice in work at a node shares with this prompt will be there when it is needed, or be
 * computed once. */
static void look_at_work(const kv_generation_t *choice, const kv_generation_t *other,
    kv_router_node_t *states, longest_t *longest)
{
    const kv_gateway_t *gateway = choice->request->gateway;
    const kv_prompt_keys_t *keys = keys_of(choice);
    int naming = naming_of(gateway, other->node->node);
    uint32_t blocks = kv_prompt_keys_shared(keys, keys_of(other), naming);
    if (blocks == 0) {
        return;
    }
    kv_router_node_t *state = &states[number_of(gateway, other->node)];
    uint32_t tokens = blocks * keys->of[naming].block_tokens;
    state->coming_tokens = tokens > state->coming_tokens ? tokens : state->coming_tokens;
    if (tokens > longest->tokens) {
        *longest = (longest_t){naming, blocks, tokens};
    }
}

static longest_t look(const kv_generation_t *choice, kv_router_node_t *states)
{
    const kv_gateway_t *gateway = choice->request->gateway;
    longest_t longest = {.naming = KV_NAMING_NONE};
    for (size_t i = 0; i < gateway->node_count; i++) {
        look_at_node(choice, gateway->nodes[i], &states[i], &longest);
    }
    for (uint32_t i = 0;
         kv_api_reads(&choice->request->api) && i < gateway->options->gateway.queue_max; i++) {
        const kv_request_t *request = gateway->slots[i];
        for (size_t k = 0; request != NULL && request->choices != NULL && k < request->choice_count;
             k++) {
            if (request->choices[k].node != NULL && kv_api_writes(&request->api)) {
                look_at_work(choice, &request->choices[k], states, &longest);
            }
        }
    }
    return longest;
}

/* ---- the choice ---- */

/* A session's requests belong together, with or without a salt; else what is alike does. */
static uint64_t affinity_of(const kv_generation_t *choice)
{
    const kv_api_request_t *api = &choice->request->api;
    uint64_t salt = kv_router_hash(api->salt, api->salt_bytes);
    if (api->session[0] != '\0') {
        return salt ^ kv_router_hash(api->session, strlen(api->session));
    }
    return salt ^ kv_router_hash(choice->prompt->tokens,
                      choice->prompt->token_count * sizeof *choice->prompt->tokens);
}

static void keep_decision(const kv_generation_t *choice, const kv_router_request_t *asked,
    const kv_router_node_t *states, const kv_router_score_t *scores, kv_router_choice_t chosen)
{
    kv_gateway_t *gateway = choice->request->gateway;
    const char *names[KV_GATEWAY_NODES_MAX];
    for (size_t i = 0; i < gateway->node_count; i++) {
        names[i] = gateway->nodes[i]->node->name;
    }
    const kv_decision_params_t params = {.request_id = choice->request->id,
        .choice_index = choice->index,
        .attempt = choice->sent_count + 1,
        .unix_ns = kv_clock_real()->unix_ns(kv_clock_real()),
        .generated_tokens = choice->token_count,
        .request = asked,
        .nodes = states,
        .names = names,
        .scores = scores,
        .count = gateway->node_count,
        .choice = chosen};
    kv_decisions_add(gateway->decisions, &params);
    char labels[64];
    snprintf(labels, sizeof labels, "reason=\"%s\"", kv_choice_name(chosen.reason));
    kv_metric_add(kv_metric_counter("kvist_gateway_choices_total", labels,
                      "choices of a node for a request, by what decided (kvist explain)"),
        1);
}

static uint32_t run_of(const kv_router_node_t *state)
{
    uint32_t tokens = 0;
    for (int tier = 0; tier < KV_ROUTER_TIERS; tier++) {
        tokens += state->run_tokens[tier];
    }
    return tokens;
}

/* What was seen of the prompt, as far as the nodes have it or are at it. */
static void look_back(kv_generation_t *choice, const kv_router_node_t *states, int node)
{
    const kv_gateway_t *gateway = choice->request->gateway;
    kv_found_t found = {.naming = naming_of(gateway, gateway->nodes[node]->node),
        .at_node_tokens = run_of(&states[node])};
    for (size_t i = 0; i < gateway->node_count; i++) {
        uint32_t held_tokens = run_of(&states[i]), coming_tokens = states[i].coming_tokens;
        found.held_tokens = held_tokens > found.held_tokens ? held_tokens : found.held_tokens;
        found.coming_tokens =
            coming_tokens > found.coming_tokens ? coming_tokens : found.coming_tokens;
    }
    kv_seen_look(choice, &found);
}

kv_decode_node_t *kv_route_choose(
    kv_generation_t *choice, kv_router_node_t states[KV_GATEWAY_NODES_MAX])
{
    kv_gateway_t *gateway = choice->request->gateway;
    const kv_prompt_keys_t *keys = keys_of(choice);
    kv_router_score_t scores[KV_GATEWAY_NODES_MAX];
    longest_t longest = look(choice, states);
    kv_router_request_t asked = {.routing = (kv_routing_t)gateway->options->gateway.routing,
        .prompt_tokens = (uint32_t)choice->prompt->token_count + choice->token_count,
        .affinity = affinity_of(choice),
        .has_session = choice->request->api.session[0] != '\0',
        .turn = gateway->sequence};
    if (longest.blocks > 0) {
        asked.branched_tokens =
            kv_branches_tokens(gateway->branches, keys->of[longest.naming].keys, longest.blocks);
    }
    kv_router_choice_t chosen = kv_router_choose(&asked, states, gateway->node_count, scores);
    if (chosen.node < 0) {
        return NULL;
    }
    keep_decision(choice, &asked, states, scores, chosen);
    look_back(choice, states, chosen.node);
    choice->bring_tokens = scores[chosen.node].bring_tokens;
    choice->taken_tokens = asked.prompt_tokens - scores[chosen.node].run_tokens;
    choice->warm = chosen.reason == KV_CHOICE_PREFIX && scores[chosen.node].run_tokens > 0;
    if (longest.blocks > 0 && choice->sent_count == 0 && kv_api_writes(&choice->request->api)) {
        uint32_t new_blocks = keys->of[longest.naming].block_count - longest.blocks;
        kv_branches_add(gateway->branches, keys->of[longest.naming].keys, longest.blocks,
            new_blocks * keys->of[longest.naming].block_tokens);
    }
    return gateway->nodes[chosen.node];
}

/* ---- counts ---- */

void kv_route_sent(kv_generation_t *choice, kv_decode_node_t *node)
{
    choice->node = node;
    snprintf(choice->node_name, sizeof choice->node_name, "%s", node->node->name);
    choice->waiting_tokens = choice->bring_tokens;
    node->outstanding++;
    node->waiting_tokens += choice->waiting_tokens;
    node->warm += choice->warm;
    const kv_request_t *request = choice->request;
    for (size_t i = 0; kv_api_writes(&choice->request->api) && i < request->gateway->node_count;
         i++) {
        request->gateway->nodes[i]->taken_tokens *= KV_ROUTER_TAKEN_KEPT;
    }
    node->taken_tokens += kv_api_writes(&choice->request->api) ? choice->taken_tokens : 0;
    if (node->node->peer == NULL &&
        request->api.cache_mode != KVIST__WIRE__CACHE_MODE__CACHE_BYPASS) {
        kv_prefixes_sent(request->gateway->prefixes, node->node->id, keys_of(choice),
            request->gateway->sent_naming);
    }
}

void kv_route_began(kv_generation_t *choice)
{
    if (choice->node != NULL) {
        choice->node->waiting_tokens -= choice->waiting_tokens;
        choice->waiting_tokens = 0;
    }
}

void kv_route_left(kv_generation_t *choice)
{
    if (choice->node == NULL) {
        return;
    }
    kv_gateway_t *gateway = choice->request->gateway;
    kv_route_began(choice);
    choice->node->outstanding--;
    choice->node->warm -= choice->warm;
    choice->node = NULL;
    if (choice->token_count > 0) {
        gateway->answer_tokens +=
            ((double)choice->token_count - gateway->answer_tokens) / ANSWERS_OBSERVED;
    }
}
