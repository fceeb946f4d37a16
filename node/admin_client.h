/* One question to a node's admin socket: connects, asks, waits for the answer.
 *
 * Threads: any; blocks for at most the time limit.
 * Errors: KV_MISSING when no node listens at the path; KV_PEER_LOST when it does not answer in time
 * or the connection breaks; otherwise what the node answered, with its text. */
#ifndef KV_NODE_ADMIN_CLIENT_H
#define KV_NODE_ADMIN_CLIENT_H

#include "base/status.h"
#include "proto/admin.pb-c.h"

#include <stdint.h>

/* reply_out: only with KV_OK; release with kvist__admin__reply__free_unpacked(reply, NULL). */
kv_status_t kv_admin_ask(const char *path, const Kvist__Admin__Request *request, uint64_t limit_ms,
    Kvist__Admin__Reply **reply_out, kv_error_t *error);

#endif
