/* Tokens as an audited prompt: their text, and what the chat template's markers say of its parts.
 *
 * Threads: any; pure. Errors: a token outside of the vocabulary has no text.
 * Limits: parts are known for ChatML, the family of templates that engine/chat_template.h writes;
 * other prompts are texts without parts. */
#ifndef KV_AUDIT_TOKENS_H
#define KV_AUDIT_TOKENS_H

#include "audit/prompt.h"
#include "engine/tokenizer.h"

/* prompt_out: finished; kv_audit_prompt_clear by the caller. */
void kv_audit_prompt_of_tokens(const kv_tokenizer_t *tokenizer, const uint32_t *tokens,
    size_t token_count, kv_audit_prompt_t *prompt_out);

#endif
