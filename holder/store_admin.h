/* What the admin socket asks of a node's store: list, flush, show, drop, pin, verify, quota.
 *
 * Threads: the reactor's.
 * Errors: each refusal names what was asked for and what to do. */
#ifndef KV_HOLDER_STORE_ADMIN_H
#define KV_HOLDER_STORE_ADMIN_H

#include "kvstore/kvist.h"
#include "node/admin.h"

/* Handlers whose context is a kv_holder_t; status is left for the caller. */
kv_admin_handlers_t kv_store_admin_handlers(void);

/* The store that a request means; NULL: the call has been answered with why there is none. */
kvist_store_t *kv_store_admin_store(
    void *context, const Kvist__Admin__Request *request, kv_admin_call_t *call);

const char *kv_priority_name(kvist_priority_t priority);

#endif
