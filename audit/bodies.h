/* Bodies of requests, as logs keep them, as audited prompts: OpenAI's chat and text completions and
 * Responses, Anthropic's messages, Gemini's generateContent. Read with indulgence: a log was
 * answered already, and is not there to be refused.
 *
 * A body stands alone or in an object that names it: {"body" or "request": {...}, "session",
 * "template", "tenant", "id" or "custom_id", "timestamp"}; a body's own prompt_cache_key is a
 * session too.
 *
 * Owns: what it made of the body, until it is cleared.
 * Threads: any; pure.
 * Errors: KV_INVALID says what of the body is no prompt. */
#ifndef KV_AUDIT_BODIES_H
#define KV_AUDIT_BODIES_H

#include "audit/prompt.h"
#include "engine/chat_template.h"

#include <jansson.h>

typedef struct {
    const char *session, *template_name, *tenant, *id; /* "" for none; borrowed from the line */
    uint64_t unix_ms;                                  /* 0: not told */
    const char *text; /* of a completion; borrowed; NULL: it is a chat */
    kv_chat_message_t *messages;
    size_t message_count;
    const char **tools; /* each one line of JSON */
    size_t tool_count;
    void **kept; /* what those point to */
    size_t kept_count;
} kv_audit_body_t;

kv_status_t kv_audit_body_read(const json_t *line, kv_audit_body_t *body_out, kv_error_t *error);
void kv_audit_body_clear(kv_audit_body_t *body);

/* As text, without a tokenizer: tools, system messages, then turn by turn. */
void kv_audit_body_text(const kv_audit_body_t *body, kv_audit_prompt_t *prompt_out);

/* As the model's chat template and tokenizer write it. */
kv_status_t kv_audit_body_tokens(const kv_audit_body_t *body, const kv_tokenizer_t *tokenizer,
    kv_audit_prompt_t *prompt_out, kv_error_t *error);

#endif
