/* What the admin socket asks of a node's store: list, flush, show, drop, pin, verify, quota.
 *
 * Threads: the reactor's.
 * Errors: each refusal names what was asked for and what to do. */
#ifndef KV_HOLDER_STORE_ADMIN_H
#define KV_HOLDER_STORE_ADMIN_H

#include "node/admin.h"

/* Handlers whose context is a kv_holder_t; status is left for the caller. */
kv_admin_handlers_t kv_store_admin_handlers(void);

#endif
