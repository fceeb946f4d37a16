/* Which node a choice goes to: what is known of each node put before the router (router.h), and the
 * decision kept (decisions.h). Beside each node stands what this gateway's choices there have still
 * to compute, from the moment when they were sent to their first token.
 *
 * Threads: the reactor's. Errors: none. */
#ifndef KV_GATEWAY_ROUTE_H
#define KV_GATEWAY_ROUTE_H

#include "gateway/generation.h"
#include "gateway/routing/router.h"

/* states: [gateway->node_count], of which unfit and tried are set; the rest is filled in here. The
 * node, or NULL. */
kv_decode_node_t *kv_route_choose(
    kv_generation_t *choice, kv_router_node_t states[KV_GATEWAY_NODES_MAX]);

/* It was sent there; its first token came; the node has it no longer (all counts are settled). */
void kv_route_sent(kv_generation_t *choice, kv_decode_node_t *node);
void kv_route_began(kv_generation_t *choice);
void kv_route_left(kv_generation_t *choice);

#endif
