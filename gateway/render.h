/* OpenAI's answers: JSON bodies and server-sent events.
 *
 * Pure; every text is allocated, free() by the caller.
 * Threads: any. */
#ifndef KV_GATEWAY_RENDER_H
#define KV_GATEWAY_RENDER_H

#include "gateway/api.h"
#include "proto/wire.pb-c.h"

#include <stddef.h>
#include <stdint.h>

/* What every part of one answer repeats. */
typedef struct {
    kv_api_kind_t kind;
    const char *id, *model;
    uint64_t created_unix_s;
    bool include_usage; /* a stream whose last event holds the usage: the others say null */
} kv_answer_t;

char *kv_render_error(const kv_api_error_t *error, size_t *bytes_out);

/* The whole answer. usage: of the node; completion_tokens as counted here. */
char *kv_render_answer(const kv_answer_t *answer, const char *text, size_t text_bytes,
    const char *finish_reason, const Kvist__Wire__Usage *usage, uint32_t completion_tokens,
    size_t *bytes_out);

/* One event of a stream. first: of a chat, it names the role. finish_reason: NULL before the end.
 */
char *kv_render_event(const kv_answer_t *answer, bool first, const char *text, size_t text_bytes,
    const char *finish_reason, size_t *bytes_out);
char *kv_render_usage_event(const kv_answer_t *answer, const Kvist__Wire__Usage *usage,
    uint32_t completion_tokens, size_t *bytes_out);
char *kv_render_error_event(const kv_api_error_t *error, size_t *bytes_out);

char *kv_render_models(
    const char *model, uint64_t created_unix_s, uint32_t context_tokens_max, size_t *bytes_out);

/* Prompt tokens that were not recomputed, in all tiers. */
uint32_t kv_usage_cached_tokens(const Kvist__Wire__Usage *usage);

#endif
