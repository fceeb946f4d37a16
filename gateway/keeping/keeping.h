/* What of a request is to be kept, between the request and the node that has it: which promises a
 * Generate asks for (breakpoints of the client, its session, what the prompt reads of earlier
 * promises), what the node granted, and what the client is told of that.
 *
 * Threads: the reactor's. Errors: none; what is not granted says why. */
#ifndef KV_GATEWAY_KEEPING_H
#define KV_GATEWAY_KEEPING_H

#include "gateway/generation.h"
#include "gateway/keeping/promises.h"

enum { KV_CONTEXT_VERSION = 3, KV_KEEPING_MAX = 16, KV_PROMISE_ENTRIES_MAX = 1 << 16 };

/* Room for the promises of one Generate. */
typedef struct {
    Kvist__Wire__Promise items[KV_KEEPING_MAX];
    Kvist__Wire__Promise *list[KV_KEEPING_MAX];
} kv_keeping_t;

/* Class, tenant and promises, into a message to that node (kv_peer_id). */
void kv_keeping_ask(
    kv_generation_t *choice, uint64_t node, kv_keeping_t *keeping, Kvist__Wire__Generate *generate);

/* The node may have said what it granted: noted once. */
void kv_keeping_note(kv_generation_t *choice);
void kv_keeping_clear(kv_generation_t *choice);

/* Brings the metrics of what is promised up to now. */
void kv_keeping_publish(const kv_gateway_t *gateway);

/* What became of the request's breakpoints, as its node told; told may be NULL. */
void kv_keeping_grants(
    const kv_request_t *request, const Kvist__Wire__Usage *told, kv_usage_t *usage);

/* Seconds that the least of the granted breakpoints is promised for, or allowed, from now on; 0:
 * one was not granted. */
uint64_t kv_keeping_least_ttl_s(const kv_usage_t *usage, size_t count, uint64_t now_unix_ms);

/* The slowest tier that anything was read from, "none" where nothing was. */
const char *kv_keeping_slowest_tier(const kv_usage_t *usage);

/* A commit has set a limit (kv_api_request_t.limit_unix_ms): every decode node is told, and through
 * them prefill nodes; nobody waits for what they answer. Those that are away, or of before it, keep
 * what they have to the end of the limit that it was stored with. */
void kv_keeping_limit(const kv_request_t *request);

/* Something about a context, to a node that speaks of them. Fills in id, salt and tokens. */
kv_status_t kv_keeping_send_context(kv_gateway_t *gateway, kv_peer_t *peer, const void *salt,
    size_t salt_bytes, const uint32_t *tokens, size_t token_count, Kvist__Wire__Context *context);

/* x-kvist-hit-tokens, x-kvist-tier, x-kvist-cache-ttl. */
void kv_keeping_headers(const kv_request_t *request, const kv_usage_t *usage, kv_http_head_t *head);

#endif
