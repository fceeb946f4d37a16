/* cluster.json: what of a kv_cluster_t survives the command that started it.
 *
 * Written whole beside the old one and renamed over it. Read by kv_cluster_load.
 * Threads: one, under the folder's lock. */
#ifndef KV_TOOLS_CLUSTER_FILE_H
#define KV_TOOLS_CLUSTER_FILE_H

#include "tools/kvist/cluster.h"

kv_status_t kv_cluster_save(const kv_cluster_t *cluster, kv_error_t *error);

#endif
