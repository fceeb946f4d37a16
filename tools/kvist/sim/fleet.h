/* A fleet: a trace through several stores (replay.h), each request to the one that the gateway's
 * router (gateway/routing/router.h) chooses for it, with what it would know: what each store tells
 * of its blocks as it changes, and what waits at each node.
 *
 * The time that requests take is a model: a node computes one prompt after the other, so many
 * tokens a second (those that were not found), and draws its answers beside that, each at its own
 * rate. What is asked for is stored at once; events come at once.
 *
 * Owns: nothing. Borrows: the trace.
 * Threads: one. Errors: KV_INVALID where a node's tier cannot hold the longest request. */
#ifndef KV_TOOLS_SIM_FLEET_H
#define KV_TOOLS_SIM_FLEET_H

#include "gateway/routing/router.h"
#include "tools/kvist/sim/replay.h"

enum { KV_FLEET_NODES_MAX = 64 };

typedef struct {
    uint32_t node_count;
    kv_routing_t routing;
    kv_replay_t node; /* tiers of each */
    double prompt_tokens_per_s, answer_tokens_per_s;
} kv_fleet_params_t;

typedef struct {
    uint32_t node_requests[KV_FLEET_NODES_MAX];
    uint32_t reasons[KV_CHOICE_RANDOM + 1]; /* of choices */
    double first_ms_median, first_ms_p90;   /* of the model: arrival to the first token */
} kv_fleet_totals_t;

/* hits_out: [trace->request_count] blocks of each request that were found. */
kv_status_t kv_fleet_run(const kv_trace_t *trace, const kv_fleet_params_t *params,
    uint32_t *hits_out, kv_fleet_totals_t *totals_out, kv_error_t *error);

#endif
