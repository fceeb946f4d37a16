/* What the admin socket asks about misses: of one of the node's latest requests, or of a prompt.
 *
 * Threads: the reactor's.
 * Errors: each refusal names what was asked for and what to do. */
#ifndef KV_HOLDER_WHY_ADMIN_H
#define KV_HOLDER_WHY_ADMIN_H

#include "node/admin.h"

/* context: a kv_holder_t. */
void kv_why_admin(void *context, const Kvist__Admin__Request *request, kv_admin_call_t *call);

#endif
