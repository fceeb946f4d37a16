/* Prompts that part early from their predecessors (audit/): looked at where they are parsed,
 * counted once they are answered, told at /v1/audit.
 *
 * A predecessor is a complete answer's prompt of the same tenant and salt: kept in memory, within
 * gateway.audit_bytes, never logged, never written. A request's first prompt is looked at; one that
 * does not read or write the cache is not.
 *
 * Threads: the reactor's, but for kv_audits_look.
 * Errors: none. */
#ifndef KV_GATEWAY_AUDITS_H
#define KV_GATEWAY_AUDITS_H

#include "gateway/dialect.h"

typedef struct kv_request kv_request_t;

/* On the parse thread that made its tokens. */
void kv_audits_look(kv_request_t *request);

/* Tokens of its first prompt that would have been a hit had it not parted early; 0: it did not. */
uint32_t kv_audits_diverged_tokens(const kv_request_t *request);

/* Its answer is complete; its parts are settled. */
void kv_audits_keep(kv_request_t *request, const kv_usage_t *usage);

/* It ends, whatever became of it. */
void kv_audits_forget(kv_request_t *request);

extern const kv_route_table_t kv_audit_routes;

#endif
