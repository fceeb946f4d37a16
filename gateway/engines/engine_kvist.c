/* Decode nodes, by Kvist's wire: what a node is told and says are the messages themselves. */
#include "gateway/engines/engine.h"

#include "base/log.h"
#include "base/memory.h"
#include "cluster/discovery.h"
#include "transport/peers.h"

#include <stdlib.h>
#include <string.h>

typedef struct kvist_node kvist_node_t;

struct kvist_node {
    kv_node_t base;
    kvist_node_t *next;
};

typedef struct {
    kv_nodes_t base;
    kv_peers_t *peers;
    kv_discovery_t *discovery;
    kvist_node_t *nodes;
} kvist_engine_t;

/* ---- what peers say ---- */

static void on_peer_up(void *context, kv_peer_t *peer)
{
    kvist_engine_t *engine = context;
    const kv_nodes_callbacks_t *callbacks = &engine->base.callbacks;
    if (kv_peer_role(peer) == KVIST__WIRE__ROLE__ROLE_STORE) {
        callbacks->peer_up(callbacks->context, peer);
        return;
    }
    if (kv_peer_role(peer) != KVIST__WIRE__ROLE__ROLE_DECODE) {
        kv_log_warn("gateway", "peer %s at %s is no decode node: not used", kv_peer_name(peer),
            kv_peer_address(peer));
        return;
    }
    kvist_node_t *node = kv_allocate(sizeof *node);
    *node = (kvist_node_t){.base = {.nodes = &engine->base,
                               .name = kv_peer_name(peer),
                               .address = kv_peer_address(peer),
                               .id = kv_peer_id(peer),
                               .peer = peer},
        .next = engine->nodes};
    engine->nodes = node;
    kv_peer_set_context(peer, node);
    callbacks->peer_up(callbacks->context, peer);
    callbacks->up(callbacks->context, &node->base);
}

static void on_peer_down(void *context, kv_peer_t *peer, kv_status_t status, const char *reason)
{
    kvist_engine_t *engine = context;
    const kv_nodes_callbacks_t *callbacks = &engine->base.callbacks;
    kvist_node_t *node = kv_peer_context(peer), **at = &engine->nodes;
    callbacks->peer_down(callbacks->context, peer);
    if (node == NULL) {
        return;
    }
    while (*at != node) {
        at = &(*at)->next;
    }
    *at = node->next;
    callbacks->down(callbacks->context, &node->base, status, reason);
    free(node);
}

static void on_message(void *context, kv_peer_t *peer, const Kvist__Wire__Envelope *message)
{
    kvist_engine_t *engine = context;
    const kv_nodes_callbacks_t *callbacks = &engine->base.callbacks;
    kvist_node_t *node = kv_peer_context(peer);
    if (node != NULL && message->body_case == KVIST__WIRE__ENVELOPE__BODY_TOKENS) {
        callbacks->tokens(callbacks->context, &node->base, message->tokens);
    } else if (node != NULL && message->body_case == KVIST__WIRE__ENVELOPE__BODY_FINISHED) {
        callbacks->finished(callbacks->context, &node->base, message->finished);
    } else {
        callbacks->message(callbacks->context, peer, message);
    }
}

/* ---- the table ---- */

static kv_status_t generate(kv_node_t *node, const kv_node_work_t *work)
{
    Kvist__Wire__Envelope envelope = KVIST__WIRE__ENVELOPE__INIT;
    envelope.body_case = KVIST__WIRE__ENVELOPE__BODY_GENERATE;
    envelope.generate = (Kvist__Wire__Generate *)work->generate;
    return kv_peer_send(node->peer, &envelope);
}

static void cancel(kv_node_t *node, const char *request_id, bool wants_usage)
{
    (void)wants_usage; /* a decode node always says */
    Kvist__Wire__Cancel body = KVIST__WIRE__CANCEL__INIT;
    Kvist__Wire__Envelope envelope = KVIST__WIRE__ENVELOPE__INIT;
    body.request_id = (char *)request_id;
    envelope.body_case = KVIST__WIRE__ENVELOPE__BODY_CANCEL;
    envelope.cancel = &body;
    if (kv_peer_send(node->peer, &envelope) == KV_BUSY) {
        kv_peer_close(node->peer, KV_BUSY, "does not take messages");
    }
}

/* An answer that was begun goes on only where generated_count is known: a node of version 1 would
 * take what was generated for the prompt, and draw other tokens. */
static void look(const kv_node_t *node, kv_node_state_t *state_out)
{
    const kv_peer_t *peer = node->peer;
    *state_out = (kv_node_state_t){.queued_requests = kv_peer_queued_requests(peer),
        .running_requests = kv_peer_running_requests(peer),
        .draining = kv_peer_draining(peer),
        .continues = kv_peer_version(peer) >= 2,
        .tells_tops = kv_peer_version(peer) >= 3,
        .attached_to = kv_peer_attached_to(peer)};
}

static void set_load(kv_nodes_t *base, uint32_t running_requests)
{
    kv_peers_set_load(((kvist_engine_t *)base)->peers, 0, running_requests);
}

static const char *why_none(kv_nodes_t *base)
{
    (void)base; /* a peer that is refused is logged; it has no place here */
    return "";
}

static void close_engine(kv_nodes_t *base)
{
    kvist_engine_t *engine = (kvist_engine_t *)base;
    kv_discovery_close(engine->discovery);
    if (engine->peers != NULL) {
        kv_peers_destroy(engine->peers);
    }
    while (engine->nodes != NULL) {
        kvist_node_t *node = engine->nodes;
        engine->nodes = node->next;
        free(node);
    }
    free(engine);
}

static const kv_nodes_table_t TABLE = {.generate = generate,
    .cancel = cancel,
    .look = look,
    .set_load = set_load,
    .why_none = why_none,
    .close = close_engine};

kv_status_t kv_nodes_open_kvist(
    const kv_nodes_params_t *params, kv_nodes_t **nodes_out, kv_error_t *error)
{
    kvist_engine_t *engine = kv_allocate(sizeof *engine);
    const kv_options_t *options = params->options;
    char key[KV_CLUSTER_KEY_BYTES_MAX];
    *engine = (kvist_engine_t){.base = {.table = &TABLE, .callbacks = params->callbacks}};
    kv_peers_params_t peers = {.loop = kv_reactor_loop(params->reactor),
        .name = options->node.name,
        .role = KVIST__WIRE__ROLE__ROLE_GATEWAY,
        .useful_roles = kv_discovery_useful_roles(KVIST__WIRE__ROLE__ROLE_GATEWAY),
        .cluster_key = key,
        .callbacks = {engine, on_peer_up, on_peer_down, on_message}};
    kv_status_t status = kv_options_cluster_key(options, key, &peers.cluster_key_bytes, error);
    if (status == KV_OK) {
        status = kv_peers_create(&peers, &engine->peers, error);
    }
    explicit_bzero(key, sizeof key);
    if (status == KV_OK) {
        const kv_discovery_params_t discovery = {.loop = peers.loop,
            .peers = engine->peers,
            .options = options,
            .role = peers.role,
            .list = &options->gateway.decode_nodes};
        status = kv_discovery_open(&discovery, &engine->discovery, error);
    }
    if (status != KV_OK) {
        close_engine(&engine->base);
        return status;
    }
    *nodes_out = &engine->base;
    return KV_OK;
}
