/* OpenAI's API: chat and text completions, models.
 *
 * Pure functions behind the table.
 * Threads: any.
 * Errors: fields that are not known are ignored; known ones that are not supported are refused,
 * unless they ask for what happens anyway (presence_penalty: 0). */
#ifndef KV_GATEWAY_OPENAI_H
#define KV_GATEWAY_OPENAI_H

#include "gateway/dialect.h"

extern const kv_dialect_t kv_openai; /* variant of its routes: kv_api_kind_t */
extern const kv_route_table_t kv_openai_routes;

/* ---- what the table is made of ---- */

bool kv_openai_parse(const kv_call_t *call, const kv_api_limits_t *limits,
    kv_api_request_t *request_out, kv_api_error_t *error);

char *kv_openai_whole(const kv_answer_t *answer, size_t *bytes_out);
char *kv_openai_event(const kv_answer_t *answer, const kv_choice_t *choice, size_t *bytes_out);
char *kv_openai_end(const kv_answer_t *answer, size_t *bytes_out);
char *kv_openai_error(
    const kv_api_error_t *error, const char *id, bool in_stream, size_t *bytes_out);
char *kv_openai_model(
    const char *model, uint64_t created_unix_s, uint32_t context_tokens_max, size_t *bytes_out);
char *kv_openai_models(
    const char *model, uint64_t created_unix_s, uint32_t context_tokens_max, size_t *bytes_out);

#endif
