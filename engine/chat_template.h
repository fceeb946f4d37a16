/* The chat template: messages to tokens.
 *
 *   <|im_start|>ROLE\nTEXT<|im_end|>\n ... <|im_start|>assistant\n
 *
 * Tools come as the models of the ChatML family were taught them (the Hermes form): their
 * signatures end the system message, an assistant's calls stand in its text as
 * <tool_call>\n{"name": ..., "arguments": ...}\n</tool_call>, and what they answered comes as a
 * user's <tool_response>. Without tools and calls the role "tool" is a role like the others.
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

enum { KV_CHAT_MESSAGES_MAX = 4096, KV_CHAT_MARKS_MAX = 8 };

/* Texts are terminated. arguments: the JSON as the model wrote it, so that an answer that is given
 * back makes the tokens that it was. */
typedef struct {
    const char *name, *arguments;
} kv_chat_call_t;

typedef struct {
    const char *role;    /* "system", "user", "assistant" or "tool" */
    const char *content; /* UTF-8, not terminated */
    size_t content_bytes;
    const kv_chat_call_t *calls; /* of an assistant; they come after its content */
    size_t call_count;
} kv_chat_message_t;

/* A place in the conversation, to be found in its tokens. */
typedef struct {
    size_t message_count; /* after so many messages; 0: after the system message and the tools */
    size_t content_bytes; /* and so many bytes of the next one's content */
    size_t token_count;   /* filled in: so many whole tokens come before it */
} kv_chat_mark_t;

typedef struct {
    const kv_chat_message_t *messages;
    size_t message_count;
    const char *const *tools; /* each a signature: one line of JSON, terminated */
    size_t tool_count;
    bool add_generation_prompt; /* end where the assistant's answer begins */
    bool continue_last;         /* instead: inside the last message, an assistant's without calls */
    kv_chat_mark_t *marks;
    size_t mark_count;
} kv_chat_conversation_t;

/* All contents together have at most KV_TOKENIZER_TEXT_BYTES_MAX. tokens_out: free() by the caller.
 */
kv_status_t kv_chat_encode(const kv_tokenizer_t *tokenizer, const kv_chat_conversation_t *told,
    uint32_t **tokens_out, size_t *count_out, kv_error_t *error);

#endif
