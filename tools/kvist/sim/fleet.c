#include "tools/kvist/sim/fleet.h"

#include "base/memory.h"
#include "cluster/holdings.h"
#include "gateway/routing/branches.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

_Static_assert((int)KVIST_TIER_DEVICE == KVIST__EVENTS__TIER__TIER_DEVICE &&
                   (int)KVIST_TIER_HOST == KVIST__EVENTS__TIER__TIER_HOST &&
                   (int)KVIST_TIER_DISK == KVIST__EVENTS__TIER__TIER_DISK,
    "tiers have the same numbers");

/* A request that a node has. */
typedef struct {
    double first_ms, end_ms; /* of its first and last token */
    bool warm;
} running_t;

typedef struct fleet fleet_t;

typedef struct {
    fleet_t *fleet;
    uint64_t holder;
    kv_replayer_t *replayer;
    uint64_t name_hash;
    double free_ms; /* all prompts that it has are computed */
    double taken_tokens;
    running_t *running;
    uint32_t running_count, running_capacity;
} node_t;

struct fleet {
    const kv_trace_t *trace;
    const kv_fleet_params_t *params;
    kv_holdings_t *holdings;
    kv_branches_t *branches;
    node_t nodes[KV_FLEET_NODES_MAX];
    kvist_key_t *keys;    /* [longest request] */
    double *first_ms;     /* [requests] */
    double answer_tokens; /* of an answer, so far */
};

/* ---- what is known ---- */

static void changed(void *context, const kvist_change_t *change)
{
    const node_t *node = context;
    if (change->group > 0) {
        return;
    }
    if (change->stored) {
        kv_holdings_stored(node->fleet->holdings, node->holder, change->keys->bytes,
            change->block_count, (Kvist__Events__Tier)change->tier);
    } else {
        kv_holdings_removed(node->fleet->holdings, node->holder, change->keys->bytes,
            change->block_count, (Kvist__Events__Tier)change->tier);
    }
}

static void forget_ended(node_t *node, double now_ms)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < node->running_count; i++) {
        if (node->running[i].end_ms > now_ms) {
            node->running[kept++] = node->running[i];
        }
    }
    node->running_count = kept;
}

static kv_router_node_t state_of(
    const fleet_t *fleet, const node_t *node, const kv_trace_request_t *request)
{
    double now_ms = (double)request->at_ms;
    kv_holding_t run = kv_holdings_run(
        fleet->holdings, &node->holder, 1, fleet->keys->bytes, request->block_count);
    kv_router_node_t state = {.name_hash = node->name_hash,
        .outstanding = node->running_count,
        .taken_tokens = (uint64_t)node->taken_tokens};
    for (int tier = 0; tier < KV_ROUTER_TIERS; tier++) {
        state.run_tokens[tier] = run.tier_blocks[tier] * fleet->trace->block_tokens;
    }
    for (uint32_t i = 0; i < node->running_count; i++) {
        state.warm += node->running[i].warm;
    }
    double waiting_ms = node->free_ms > now_ms ? node->free_ms - now_ms : 0;
    state.waiting_tokens = (uint64_t)(waiting_ms * fleet->params->prompt_tokens_per_s / 1000 +
                                      node->running_count * fleet->answer_tokens / 2);
    return state;
}

/* ---- one request ---- */

typedef struct {
    node_t *node;
    kv_router_choice_t choice;
    bool warm;
} placed_t;

static placed_t place(fleet_t *fleet, uint32_t number)
{
    const kv_trace_request_t *request = &fleet->trace->requests[number];
    uint32_t count = fleet->params->node_count, longest_blocks = 0;
    kv_router_node_t states[KV_FLEET_NODES_MAX];
    kv_router_score_t scores[KV_FLEET_NODES_MAX];
    for (uint32_t i = 0; i < count; i++) {
        forget_ended(&fleet->nodes[i], (double)request->at_ms);
        states[i] = state_of(fleet, &fleet->nodes[i], request);
        uint32_t tokens =
            states[i].run_tokens[0] + states[i].run_tokens[1] + states[i].run_tokens[2];
        uint32_t blocks = tokens / fleet->trace->block_tokens;
        longest_blocks = blocks > longest_blocks ? blocks : longest_blocks;
    }
    const kv_router_request_t asked = {.routing = fleet->params->routing,
        .prompt_tokens = request->input_tokens,
        .affinity = kv_router_hash(fleet->trace->blocks + request->first_block,
            request->block_count * sizeof *fleet->trace->blocks),
        .branched_tokens = kv_branches_tokens(fleet->branches, fleet->keys, longest_blocks),
        .turn = number};
    placed_t placed = {.choice = kv_router_choose(&asked, states, count, scores)};
    placed.node = &fleet->nodes[placed.choice.node];
    placed.warm =
        placed.choice.reason == KV_CHOICE_PREFIX && scores[placed.choice.node].run_tokens > 0;
    for (uint32_t i = 0; i < count; i++) {
        fleet->nodes[i].taken_tokens *= KV_ROUTER_TAKEN_KEPT;
    }
    placed.node->taken_tokens += request->input_tokens - scores[placed.choice.node].run_tokens;
    kv_branches_add(fleet->branches, fleet->keys, longest_blocks,
        (request->block_count - longest_blocks) * fleet->trace->block_tokens);
    return placed;
}

/* When its first and its last token come. */
static void take_time(fleet_t *fleet, const placed_t *placed, uint32_t number, uint32_t hit_blocks)
{
    const kv_trace_request_t *request = &fleet->trace->requests[number];
    node_t *node = placed->node;
    double now_ms = (double)request->at_ms;
    uint64_t found = (uint64_t)hit_blocks * fleet->trace->block_tokens;
    uint64_t computed = request->input_tokens > found ? request->input_tokens - found : 1;
    double begin_ms = node->free_ms > now_ms ? node->free_ms : now_ms;
    node->free_ms = begin_ms + 1000 * (double)computed / fleet->params->prompt_tokens_per_s;
    if (node->running_count == node->running_capacity) {
        node->running_capacity = 2 * node->running_capacity + 16;
        node->running = kv_reallocate(node->running, node->running_capacity, sizeof *node->running);
    }
    node->running[node->running_count++] = (running_t){.first_ms = node->free_ms,
        .end_ms =
            node->free_ms + 1000 * request->output_tokens / fleet->params->answer_tokens_per_s,
        .warm = placed->warm};
    fleet->first_ms[number] = node->free_ms - now_ms;
    fleet->answer_tokens += (request->output_tokens - fleet->answer_tokens) / (number + 1);
}

static kv_status_t serve(fleet_t *fleet, uint32_t number, uint32_t *hits_out,
    kv_fleet_totals_t *totals, kv_error_t *error)
{
    const kv_trace_request_t *request = &fleet->trace->requests[number];
    kvist_key_t name_space = kv_replayer_name_space(fleet->nodes[0].replayer);
    kvist_keys(&name_space, fleet->trace->blocks + request->first_block, NULL, request->block_count,
        1, fleet->keys);
    placed_t placed = place(fleet, number);
    kv_status_t status = kv_replayer_serve(placed.node->replayer, number, hits_out, error);
    if (status == KV_OK) {
        totals->node_requests[placed.choice.node]++;
        totals->reasons[placed.choice.reason]++;
        take_time(fleet, &placed, number, *hits_out);
    }
    return status;
}

/* ---- all of them ---- */

static int by_size(const void *left, const void *right)
{
    double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

static void summarise(fleet_t *fleet, kv_fleet_totals_t *totals)
{
    uint32_t count = fleet->trace->request_count;
    qsort(fleet->first_ms, count, sizeof *fleet->first_ms, by_size);
    totals->first_ms_median = fleet->first_ms[count / 2];
    totals->first_ms_p90 = fleet->first_ms[(uint64_t)count * 9 / 10];
}

static kv_status_t open_nodes(fleet_t *fleet, kv_error_t *error)
{
    kv_status_t status = KV_OK;
    for (uint32_t i = 0; status == KV_OK && i < fleet->params->node_count; i++) {
        node_t *node = &fleet->nodes[i];
        char name[32];
        snprintf(name, sizeof name, "decode-%u", i);
        *node = (node_t){
            .fleet = fleet, .holder = i + 1, .name_hash = kv_router_hash(name, strlen(name))};
        status = kv_replayer_open(fleet->trace, &fleet->params->node, &node->replayer, error);
        if (status == KV_OK) {
            kvist_store_listen(kv_replayer_store(node->replayer), changed, node);
        }
    }
    return status;
}

/* For every block of every node, in each tier: nothing is forgotten. */
static size_t map_entries(const kv_fleet_params_t *params)
{
    const kv_replay_t *node = &params->node;
    uint64_t blocks = (uint64_t)node->device_blocks + node->host_blocks + node->disk_blocks;
    uint64_t entries = (blocks + 1) * params->node_count;
    return entries < KV_HOLDINGS_CAPACITY_MAX ? (size_t)entries : KV_HOLDINGS_CAPACITY_MAX;
}

kv_status_t kv_fleet_run(const kv_trace_t *trace, const kv_fleet_params_t *params,
    uint32_t *hits_out, kv_fleet_totals_t *totals_out, kv_error_t *error)
{
    fleet_t *fleet = kv_allocate(sizeof *fleet);
    fleet->trace = trace;
    fleet->params = params;
    fleet->holdings = kv_holdings_create(map_entries(params));
    fleet->branches = kv_branches_create();
    fleet->keys = kv_allocate_array(trace->longest_blocks + 1, sizeof *fleet->keys);
    fleet->first_ms = kv_allocate_array(trace->request_count, sizeof *fleet->first_ms);
    *totals_out = (kv_fleet_totals_t){0};
    kv_status_t status = open_nodes(fleet, error);
    for (uint32_t i = 0; status == KV_OK && i < trace->request_count; i++) {
        status = serve(fleet, i, &hits_out[i], totals_out, error);
    }
    if (status == KV_OK) {
        summarise(fleet, totals_out);
    }
    for (uint32_t i = 0; i < params->node_count; i++) {
        kv_replayer_close(fleet->nodes[i].replayer);
        free(fleet->nodes[i].running);
    }
    kv_holdings_destroy(fleet->holdings);
    kv_branches_destroy(fleet->branches);
    free(fleet->keys);
    free(fleet->first_ms);
    free(fleet);
    return status;
}
