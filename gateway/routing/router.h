/* The router: which node a request goes to. Pure functions over what is known of each node,
 * whatever engine is behind it: what it holds of the prompt, and what waits there.
 *
 * Everything is counted in tokens to compute. At node i the request would cost
 *
 *   cost(i)    = bring(i) + waiting(i)
 *   bring(i)   = sum over the prompt's tokens of what getting them there costs, in hundredths:
 *                in its run in device memory 0, in host memory 20, on disk 40; held by another node
 *                only 70; by nobody 100. A run is consecutive from the prompt's start.
 *   waiting(i) = tokens that requests there still have to compute before they begin to answer, and
 *                for each request there half of an average answer
 *
 * (llm-d scores the consecutive run by its tier's weight, 1.0 for the device and 0.8 for host
 * memory; Dynamo adds the work that waits, in the same unit. Disk and remote are ours.) So a run
 * attracts for as long as less waits there than it spares, and a prefix whose node has too much to
 * do is copied elsewhere.
 *
 *   1. Nodes that hold as much as the one that costs least, and cost about as little (within an
 *      eighth of the prompt), are equals.
 *   2. A *cold* prompt, of which no node spares 64 tokens, may go to any node but those that have
 *      requests in work which came for what they hold, where others are left (three nodes or more).
 *   3. A *branch*: it goes on from where earlier prompts parted, and so much was added there by now
 *      that a copy of what they share pays (branched_tokens >= the run). Of the equals those may
 *      have it that took in no more than 1.25 times the average of all lately; where none of them
 *      is so, any other node that is.
 *   4. Among those: consistent hashing with bounded load (rendezvous order of the affinity and the
 *      nodes' names; a node that would have more than ceil(1.25 (m + 1) / n) of the m requests in
 *      work at n nodes, and than 2, is passed over, so is one where more waits than 1.25 times the
 *      average and this prompt). So equal nodes share the load, a session keeps its node as long as
 *      that has room, and nodes that come and go move few.
 *
 * Owns: nothing. Threads: any. Errors: none. Limits: KV_ROUTER_NODES_MAX nodes. */
#ifndef KV_GATEWAY_ROUTER_H
#define KV_GATEWAY_ROUTER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    KV_ROUTER_NODES_MAX = 256,
    KV_ROUTER_TIERS = 3, /* device, host, disk */
    KV_ROUTER_BOUND_PERCENT = 125,
    KV_ROUTER_BOUND_LEAST = 2,
    KV_ROUTER_ENOUGH_NODES = 3,
};

/* Of what nodes took in, with each request: what was 512 requests ago counts for little. */
#define KV_ROUTER_TAKEN_KEPT (1 - 1.0 / 512)

typedef enum {
    KV_ROUTING_PREFIX,
    KV_ROUTING_ROUND_ROBIN,
    KV_ROUTING_RANDOM,
} kv_routing_t; /* gateway.routing */

/* One node, as it is known now. */
typedef struct {
    uint64_t name_hash;                   /* kv_router_hash of its name */
    uint32_t run_tokens[KV_ROUTER_TIERS]; /* of the prompt, by the fastest tier that has them */
    uint32_t coming_tokens;  /* as far as a request in work there goes along with the prompt */
    uint64_t waiting_tokens; /* see above */
    uint64_t taken_tokens;   /* that it had to take in lately: its memory's share of the load */
    uint32_t outstanding;    /* requests that this gateway has there */
    uint32_t reported;       /* queued and running, as it said last */
    uint32_t warm;           /* requests in work there that came for what it holds */
    bool unfit;              /* it takes nothing new, or not this request */
    bool tried;              /* it has refused or lost this request */
} kv_router_node_t;

typedef struct {
    kv_routing_t routing;
    uint32_t prompt_tokens;
    uint64_t affinity; /* of its session; else of its text: what is alike goes to one node */
    bool has_session;
    uint64_t branched_tokens; /* added where its longest run ends, by prompts that parted there */
    uint64_t turn;            /* of round robin, and the seed of random */
} kv_router_request_t;

typedef struct {
    bool fit;            /* what follows is set */
    bool full;           /* passed over by the bounds of 4. */
    uint32_t run_tokens; /* in whatever tier, or coming */
    uint64_t bring_tokens, cost_tokens;
} kv_router_score_t;

typedef enum {
    KV_CHOICE_NONE,       /* no node takes it */
    KV_CHOICE_ONLY,       /* one node does */
    KV_CHOICE_PREFIX,     /* it costs least where it is held */
    KV_CHOICE_OVERLOADED, /* who holds more has too much to do */
    KV_CHOICE_SESSION,    /* its session's place, of equals */
    KV_CHOICE_HASH,       /* its text's place, of equals */
    KV_CHOICE_BOUND,      /* the first place had its share; the next in order */
    KV_CHOICE_SPREAD,     /* a branch of what many share */
    KV_CHOICE_LEAST,      /* all have their share: the one where it costs least */
    KV_CHOICE_ROUND_ROBIN,
    KV_CHOICE_RANDOM,
} kv_choice_reason_t;

typedef struct {
    int node; /* -1: none */
    kv_choice_reason_t reason;
    int holder;           /* the node with the longest run, or -1 */
    uint32_t bound;       /* of requests at one node */
    uint32_t equal_count; /* nodes among which the order of 4. decided */
} kv_router_choice_t;

/* scores_out: [count]. */
kv_router_choice_t kv_router_choose(const kv_router_request_t *request,
    const kv_router_node_t *nodes, size_t count, kv_router_score_t *scores_out);

/* The same in every process. */
uint64_t kv_router_hash(const void *bytes, size_t count);

/* Requests at a node: its heartbeat is up to half a second old, what was sent meanwhile counts. */
uint32_t kv_router_load(const kv_router_node_t *node);

const char *kv_choice_name(kv_choice_reason_t reason); /* "prefix", "overloaded", ... */

#endif
