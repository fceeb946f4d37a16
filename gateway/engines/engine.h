/* The seam of the engine behind a node: what the gateway asks of a node, whatever runs there.
 *
 *   engine_kvist.c   decode nodes, by Kvist's wire
 *   engine_vllm.c    vLLM servers, by their HTTP door
 *
 * A gateway has one engine; its nodes come up and go down by themselves. The seam's language is
 * that of Kvist's wire: a generation is a Generate, what comes back are Tokens and a Finished with
 * the Usage. An engine that speaks otherwise translates, and says KV_REFUSED in a Finished where it
 * cannot do what a Generate asks: it never does something like it.
 *
 * Owns: the nodes and their connections.
 * Borrows: loop and options, which must outlive the engine; a work's texts during the call.
 * Threads: the reactor's. Callbacks run from the loop, never before a call of this header returns.
 * A callback may call generate and cancel.
 * Errors: generate answers KV_BUSY or KV_PEER_LOST where the node takes nothing now; everything
 * else comes as a Finished, or as lost. */
#ifndef KV_GATEWAY_ENGINE_H
#define KV_GATEWAY_ENGINE_H

#include "engine/tokenizer.h"
#include "node/options.h"
#include "node/reactor.h"
#include "proto/wire.pb-c.h"
#include "transport/peers.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct kv_nodes kv_nodes_t;
typedef struct kv_node kv_node_t;

/* A generation, and what of it the wire does not carry. */
typedef struct {
    const Kvist__Wire__Generate *generate;
    const char *const *stops; /* the gateway ends the answer there; a node may end it earlier than
                               * it is told to, which saves it work */
    size_t stop_count;
    bool wants_logprobs; /* tokens are to come with their logprobs; alternatives: the Sampling's */
} kv_node_work_t;

/* What a node says of itself, as it was last heard. */
typedef struct {
    uint32_t queued_requests, running_requests;
    bool draining;           /* it takes nothing new */
    bool continues;          /* it takes an answer that another node has begun */
    bool tells_tops;         /* alternatives of tokens come with them where they are asked for */
    const char *attached_to; /* the kvist-store that has its host and disk tiers; "": none */
} kv_node_state_t;

typedef struct {
    void *context;
    void (*up)(void *context, kv_node_t *node);
    /* Exactly once for each up(): what it had is lost. The node may be looked at inside, and not
     * after. */
    void (*down)(void *context, kv_node_t *node, kv_status_t status, const char *reason);
    void (*tokens)(void *context, kv_node_t *node, const Kvist__Wire__Tokens *tokens);
    void (*finished)(void *context, kv_node_t *node, const Kvist__Wire__Finished *finished);
    /* One generation is lost; the node may be well. */
    void (*lost)(void *context, kv_node_t *node, const char *request_id, const char *reason);
    /* Kvist's nodes, and the stores that they are attached to, tell what they hold: before up() of
     * a node and before its down(), and what they say that is no answer. */
    void (*peer_up)(void *context, kv_peer_t *peer);
    void (*peer_down)(void *context, kv_peer_t *peer);
    void (*message)(void *context, kv_peer_t *peer, const Kvist__Wire__Envelope *message);
} kv_nodes_callbacks_t;

typedef struct {
    kv_status_t (*generate)(kv_node_t *node, const kv_node_work_t *work);
    void (*cancel)(kv_node_t *node, const char *request_id, bool wants_usage);
    void (*look)(const kv_node_t *node, kv_node_state_t *state_out);
    void (*set_load)(kv_nodes_t *nodes, uint32_t running_requests);
    const char *(*why_none)(kv_nodes_t *nodes);
    void (*close)(kv_nodes_t *nodes);
} kv_nodes_table_t;

/* The head of every engine's own structure. */
struct kv_nodes {
    const kv_nodes_table_t *table;
    kv_nodes_callbacks_t callbacks;
    uint32_t block_tokens; /* nodes that do not tell what they hold keep prefixes in steps of so
                            * many; 0: they tell */
};

struct kv_node {
    kv_nodes_t *nodes;
    const char *name, *address;
    kv_peer_t *peer; /* NULL: none of Kvist's */
    uint64_t id;     /* never reused in this process: a node that returns has another */
    void *context;   /* a place for the gateway's own pointer */
};

/* ---- opening: after a failure, too, the loop has to turn once more ---- */

typedef struct {
    kv_reactor_t *reactor;
    const kv_options_t *options;
    const kv_tokenizer_t *tokenizer;
    const char *model; /* the name under which the gateway serves it */
    kv_nodes_callbacks_t callbacks;
} kv_nodes_params_t;

/* KV_INVALID where the options name no nodes, or nodes of two engines. */
kv_status_t kv_nodes_open(
    const kv_nodes_params_t *params, kv_nodes_t **nodes_out, kv_error_t *error);

kv_status_t kv_nodes_open_kvist(
    const kv_nodes_params_t *params, kv_nodes_t **nodes_out, kv_error_t *error);
kv_status_t kv_nodes_open_vllm(
    const kv_nodes_params_t *params, kv_nodes_t **nodes_out, kv_error_t *error);

/* ---- use ---- */

/* The id of a Generate is of its own: nothing is told of an earlier one of the same request. */
static inline kv_status_t kv_node_generate(kv_node_t *node, const kv_node_work_t *work)
{
    return node->nodes->table->generate(node, work);
}

/* wants_usage: a Finished is waited for, soon. An id that the node does not have is nothing. */
static inline void kv_node_cancel(kv_node_t *node, const char *request_id, bool wants_usage)
{
    node->nodes->table->cancel(node, request_id, wants_usage);
}

static inline kv_node_state_t kv_node_look(const kv_node_t *node)
{
    kv_node_state_t state;
    node->nodes->table->look(node, &state);
    return state;
}

/* What nodes are told of this gateway, where they ask. */
static inline void kv_nodes_set_load(kv_nodes_t *nodes, uint32_t running_requests)
{
    nodes->table->set_load(nodes, running_requests);
}

/* Why a configured node is not used although it can be reached, in words; "": nothing is known. */
static inline const char *kv_nodes_why_none(kv_nodes_t *nodes)
{
    return nodes->table->why_none(nodes);
}

/* Without callbacks. NULL: nothing. */
static inline void kv_nodes_close(kv_nodes_t *nodes)
{
    if (nodes != NULL) {
        nodes->table->close(nodes);
    }
}

#endif
