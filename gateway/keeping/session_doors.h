/* Sessions over HTTP, and what nodes are told for them:
 *
 *   POST   /v1/sessions              open
 *   GET    /v1/sessions/ID           how it is
 *   POST   /v1/sessions/ID/fork      another one that goes on from here
 *   POST   /v1/sessions/ID/suspend   its KV leaves memory for the disk now, to be back by a time
 *   POST   /v1/sessions/ID/resume    its KV comes back into device memory now
 *   DELETE /v1/sessions/ID           close: what only it was promised ends, its KV leaves memory
 *
 * A suspension and a return are begun when they are answered; GET says when they are done.
 *
 * Threads: the reactor's.
 * Errors: in OpenAI's shape; 404 where there is no such session, 409 where its node cannot do it,
 * 503 where it is gone. */
#ifndef KV_GATEWAY_SESSION_DOORS_H
#define KV_GATEWAY_SESSION_DOORS_H

#include "gateway/gateway_internal.h"

/* A named tenant may have one part of each. */
enum { KV_SESSIONS_MAX = 4096, KV_SESSION_TOKENS_MAX = 64 << 20, KV_SESSION_TENANT_PART = 4 };

extern const kv_route_table_t kv_session_routes;

/* The session that a request names, or NULL. */
kv_session_t *kv_session_of_request(const kv_request_t *request);

/* A request's first answer is complete. */
void kv_session_served(const kv_generation_t *choice);

/* A node's answer. */
void kv_session_done(kv_gateway_t *gateway, const Kvist__Wire__ContextDone *done);

/* Times: what is due comes back, what was idle for too long is closed. */
void kv_session_tick(kv_gateway_t *gateway);

#endif
