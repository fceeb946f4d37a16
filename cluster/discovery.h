/* Discovery: which nodes a node connects to. Members come and go; whoever opens a discovery only
 * sees peers that come up and down.
 *
 * Two sources, which may be used together:
 *   static   lists of addresses in the options (cluster.nodes, and a role's own list): always there
 *   etcd     cluster.etcd: nodes register themselves, and follow who else does (etcd.h)
 *
 * An engine node connects to every other one and to stores, a store to engine nodes, a gateway to
 * decode nodes. A member that goes is not
 * connected to again; a connection that is up stays as long as it lasts. So etcd may be away, lose
 * its leases or all its content: nodes that talk go on talking.
 *
 * Owns: its sources.
 * Borrows: loop, peers and options, which must outlive it.
 * Threads: the loop's.
 * Errors: KV_INVALID names the option. */
#ifndef KV_CLUSTER_DISCOVERY_H
#define KV_CLUSTER_DISCOVERY_H

#include "base/status.h"
#include "node/options.h"
#include "transport/peers.h"

#include <stdbool.h>

typedef struct kv_discovery kv_discovery_t;

typedef struct {
    uv_loop_t *loop;
    kv_peers_t *peers;
    const kv_options_t *options;
    Kvist__Wire__Role role;       /* of this node */
    const kv_string_list_t *list; /* addresses of the role's own option, or NULL */
} kv_discovery_params_t;

/* For kv_peers_params_t: the roles that a node of this one connects to. */
uint32_t kv_discovery_useful_roles(Kvist__Wire__Role role);

/* Whether the options name any source beside the role's own list. */
bool kv_discovery_is_configured(const kv_options_t *options);

kv_status_t kv_discovery_open(
    const kv_discovery_params_t *params, kv_discovery_t **discovery_out, kv_error_t *error);

/* An orderly stop begins: others are told that this node goes, and what they do is followed
 * no more. Connections stay. NULL: nothing. */
void kv_discovery_leave(kv_discovery_t *discovery);

/* After a leave: whether that was heard, or waited for long enough (a second). NULL: true. */
bool kv_discovery_has_left(const kv_discovery_t *discovery);

/* Before kv_peers_destroy. Its handles end in later turns of the loop. NULL: nothing. */
void kv_discovery_close(kv_discovery_t *discovery);

#endif
