/* What a Kvist gateway says became of prompt tokens: hit by tier, gap by reason, unseen by kind.
 * Every token is one of these, so they add up to the prompt (docs/operations.md).
 *
 * Read from its metrics before and after a phase; the phase's is the difference.
 *
 * Owns: nothing; the JSON is the caller's.
 * Threads: one.
 * Errors: KV_MISSING where the endpoint is no such gateway. */
#ifndef KV_TOOLS_SERVE_PARTS_H
#define KV_TOOLS_SERVE_PARTS_H

#include "tools/kvist/bench/serve/asked.h"

#include <jansson.h>

/* {"prompt": N, "hit": {"device": N, ...}, "gap": {...}, "unseen": {...}} */
kv_status_t kv_parts_parse(const char *metrics, json_t **parts_out, kv_error_t *error);

kv_status_t kv_parts_read(kv_asked_t *asked, json_t **parts_out, kv_error_t *error);

/* Reads it until `asked_tokens` more are counted than before, or a while has passed: the gateway
 * may count an answer just after its client has it. *parts_out: the difference, with "asked"
 * (asked_tokens), "adds_up", "hit_rate" and "ideal_hit_rate". */
kv_status_t kv_parts_since(kv_asked_t *asked, const json_t *before, uint64_t asked_tokens,
    json_t **parts_out, kv_error_t *error);

/* The same of two that were read. */
json_t *kv_parts_between(const json_t *before, const json_t *after, uint64_t asked_tokens);

/* The sum of an object's numbers. */
uint64_t kv_parts_sum(const json_t *parts);

#endif
