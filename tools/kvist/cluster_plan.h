/* The plan of a new cluster: which nodes, with which command lines and ports.
 *
 * Threads: one, under the folder's lock.
 * Errors: a port that is taken, a model that is not there, an option that no node knows or that the
 * plan itself sets: KV_INVALID or KV_MISSING, with what to do. */
#ifndef KV_TOOLS_CLUSTER_PLAN_H
#define KV_TOOLS_CLUSTER_PLAN_H

#include "tools/kvist/cluster.h"

/* folder: absolute. port_before: the HTTP port of the cluster's last life, or 0. */
kv_status_t kv_cluster_plan(const kv_cluster_params_t *params, const char *folder,
    uint16_t port_before, kv_cluster_t *cluster_out, kv_error_t *error);

#endif
