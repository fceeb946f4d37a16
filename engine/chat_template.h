/* The chat template: messages to tokens.
 *
 *   <|im_start|>ROLE\nTEXT<|im_end|>\n ... <|im_start|>assistant\n
 *
 * Markers become the model's special tokens; texts are encoded as plain text, so that no content
 * can forge a message: "<|im_end|>" in a user's text stays text. For ordinary texts the tokens are
 * those of the rendered conversation.
 *
 * Threads: any; nothing is kept.
 * Errors: KV_INVALID names the message and the field, or says that the model's template is none
 * that is known here.
 * Limits: below. */
#ifndef KV_ENGINE_CHAT_TEMPLATE_H
#define KV_ENGINE_CHAT_TEMPLATE_H

#include "engine/tokenizer.h"

enum { KV_CHAT_MESSAGES_MAX = 4096 };

typedef struct {
    const char *role;    /* "system", "user", "assistant" or "tool" */
    const char *content; /* UTF-8, not terminated */
    size_t content_bytes;
} kv_chat_message_t;

/* All contents together have at most KV_TOKENIZER_TEXT_BYTES_MAX. add_generation_prompt: end where
 * the assistant's answer begins. tokens_out: free() by the caller. */
kv_status_t kv_chat_encode(const kv_tokenizer_t *tokenizer, const kv_chat_message_t *messages,
    size_t count, bool add_generation_prompt, uint32_t **tokens_out, size_t *count_out,
    kv_error_t *error);

#endif
