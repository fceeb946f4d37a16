/* The node of kvist-store: the service for its clients, and a holder without an engine.
 *
 *   service (client socket, a store for each domain)
 *      |  the first domain's store opens: at once where its layout is remembered, else with the
 *      |  first client
 *      v
 *   holder joins its peers (KV events, Fetch), serving out of bounce blocks
 *
 * Its peers see the first domain alone: a cluster is one trust domain. Blocks of a layout that is
 * not one group of K and V in all layers are served to clients only.
 *
 * Owns: service, holder, bounce blocks.
 * Borrows: the options.
 * Threads: the reactor's.
 * Errors: what failed to open, named; afterwards KV_OK at an orderly stop. */
#ifndef KV_STORE_NODE_H
#define KV_STORE_NODE_H

#include "base/status.h"
#include "node/options.h"

kv_status_t kv_store_node_run(const kv_options_t *options, kv_error_t *error);

#endif
