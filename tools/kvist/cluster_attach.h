/* The nodes of this machine that kvist did not start: those of systemd units or containers.
 *
 * Threads: any. */
#ifndef KV_TOOLS_CLUSTER_ATTACH_H
#define KV_TOOLS_CLUSTER_ATTACH_H

#include "tools/kvist/cluster.h"

/* As kv_cluster_load; where no cluster was started in the folder, the nodes whose admin sockets are
 * in it: FOLDER/NAME.sock and FOLDER/NAME/admin.sock. Members have no command: they cannot be
 * started from here. KV_MISSING: there is neither. */
kv_status_t kv_cluster_find(const char *folder, kv_cluster_t *cluster_out, kv_error_t *error);

/* The same for a command about one node: KV_EXIT_DONE, or the exit code once the error was said (no
 * cluster, no such node, name is NULL). cluster_out is the caller's only with KV_EXIT_DONE. */
int kv_cluster_find_member(const char *command, const char *folder, const char *name,
    kv_cluster_t *cluster_out, const kv_member_t **member_out);

#endif
