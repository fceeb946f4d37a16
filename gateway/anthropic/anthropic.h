/* Anthropic's API: /v1/messages, /v1/messages/count_tokens, and /v1/models for who sends the header
 * anthropic-version. Each documented field and what becomes of it: docs/api.md.
 *
 * Breakpoints (cache_control) become the neutral request's. What came of them is in usage:
 *
 *   input_tokens + cache_creation_input_tokens + cache_read_input_tokens = the prompt's tokens
 *
 * read: of what lies before the last breakpoint, what was not computed again. creation: what the
 * breakpoints that were granted stored anew. input: the rest; what lies behind the last breakpoint
 * also where it was not computed again.
 *
 * Pure functions behind the table.
 * Threads: any.
 * Errors: fields that are not known are ignored; known ones that are not supported are refused,
 * unless they ask for what happens anyway (thinking: disabled). */
#ifndef KV_GATEWAY_ANTHROPIC_H
#define KV_GATEWAY_ANTHROPIC_H

#include "gateway/dialect.h"

typedef enum { KV_ANTHROPIC_MESSAGES, KV_ANTHROPIC_COUNT_TOKENS } kv_anthropic_variant_t;

enum { KV_ANTHROPIC_SHORT_TTL_S = 300, KV_ANTHROPIC_LONG_TTL_S = 3600 };

extern const kv_dialect_t kv_anthropic; /* variant of its routes: kv_anthropic_variant_t */
extern const kv_route_table_t kv_anthropic_routes;

/* ---- what the table is made of ---- */

bool kv_anthropic_parse(const kv_call_t *call, const kv_api_limits_t *limits,
    kv_api_request_t *request_out, kv_api_error_t *error);

/* false: the header anthropic-version names none that is known here. */
bool kv_anthropic_check_version(const kv_call_t *call, kv_api_error_t *error);

/* max_tokens is 0: the prompt is stored, and what is generated nevertheless is not shown. */
bool kv_anthropic_is_warm_up(const kv_api_request_t *request);

char *kv_anthropic_whole(const kv_answer_t *answer, size_t *bytes_out);
char *kv_anthropic_begin(const kv_answer_t *answer, size_t *bytes_out);
char *kv_anthropic_event(const kv_answer_t *answer, const kv_choice_t *choice, size_t *bytes_out);
char *kv_anthropic_end(const kv_answer_t *answer, size_t *bytes_out);
char *kv_anthropic_error(
    const kv_api_error_t *error, const char *id, bool in_stream, size_t *bytes_out);

typedef struct {
    const char *name;
    uint64_t created_unix_s;
    uint32_t context_tokens_max;
} kv_anthropic_model_t;

/* on_page: the page that was asked for holds the only model that there is. */
char *kv_anthropic_models(const kv_anthropic_model_t *model, bool on_page, size_t *bytes_out);
char *kv_anthropic_model(const kv_anthropic_model_t *model, size_t *bytes_out);

#endif
