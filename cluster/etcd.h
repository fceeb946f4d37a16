/* etcd as a source of members: this node registers itself under a lease, and follows who else does.
 *
 *   PREFIX/CLUSTER/nodes/NAME -> {"name":..., "role":..., "address":..., "version":...}
 *
 * Version 3 of etcd's API through its HTTP gateway (etcd 3.4 and later), on the node's loop. Of
 * several endpoints one is used at a time; a failure of any kind moves on to the next, after a
 * pause of up to 2 s. What etcd said last stays true while it is away: members stay, registration
 * comes again by itself when it returns, or when the lease was lost.
 *
 * Owns: its connections, copies of all parameters.
 * Borrows: the loop, which must outlive it.
 * Threads: the loop's; callbacks run from the loop, never before a call of this header returns.
 * Errors: KV_NO_SPACE at the start; all else is logged (once for each reason) and tried again.
 * Limits: KV_ETCD_LIST_MAX keys are read, KV_MEMBERS_MAX used; an answer has at most 4 MiB. */
#ifndef KV_CLUSTER_ETCD_H
#define KV_CLUSTER_ETCD_H

#include "base/status.h"
#include "cluster/members.h"

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

typedef struct kv_etcd kv_etcd_t;

typedef struct {
    uv_loop_t *loop;
    const char *const *endpoints; /* "http://host:port"; at least one */
    uint32_t endpoint_count;
    const char *ca_file;     /* for https; NULL: the system's certificates */
    const char *prefix;      /* "/kvist"; ends without '/' */
    const char *cluster;     /* its name */
    uint64_t ttl_ns;         /* of the lease; etcd knows whole seconds */
    const char *name;        /* of this node */
    const kv_member_t *self; /* what is registered; NULL: this node only reads */
    kv_members_callbacks_t callbacks;
} kv_etcd_params_t;

kv_status_t kv_etcd_open(const kv_etcd_params_t *params, kv_etcd_t **etcd_out, kv_error_t *error);

/* Takes the registration back, so that others need not wait for its lease to end, and does nothing
 * more. */
void kv_etcd_leave(kv_etcd_t *etcd);

/* After a leave: whether etcd has answered, or had its second. */
bool kv_etcd_has_left(const kv_etcd_t *etcd);

/* No callback any more. Its handles end in later turns of the loop. */
void kv_etcd_close(kv_etcd_t *etcd);

/* Whether members are followed now. */
bool kv_etcd_is_up(const kv_etcd_t *etcd);

#endif
