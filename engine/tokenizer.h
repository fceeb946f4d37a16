/* The tokenizer: text to token ids and back, as the model's file defines it (byte-level BPE).
 *
 * Owns: vocabulary, merges and the compiled split pattern.
 * Threads: immutable after open; encode and decode may run on any number of threads at once.
 * Errors: KV_INVALID names the field of the file, or the byte of a text that is no UTF-8;
 * KV_MISSING the file or field that is not there.
 * Limits: texts of at most KV_TOKENIZER_TEXT_BYTES_MAX; bytes that the vocabulary lacks (SmolLM2:
 * six control characters and planes above U+3FFFF) vanish, as in the models' own tools. */
#ifndef KV_ENGINE_TOKENIZER_H
#define KV_ENGINE_TOKENIZER_H

#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { KV_TOKENIZER_TEXT_BYTES_MAX = 16 << 20 };

typedef struct kv_tokenizer kv_tokenizer_t;

kv_status_t kv_tokenizer_open(
    const char *model_path, kv_tokenizer_t **tokenizer_out, kv_error_t *error);
void kv_tokenizer_close(kv_tokenizer_t *tokenizer);

typedef struct {
    bool add_special;   /* put the model's begin token first, where it has one */
    bool parse_special; /* read the text of special tokens ("<|im_start|>") as those tokens */
} kv_tokenizer_mode_t;

/* tokens_out: allocated by the callee, free() by the caller; NULL when there are none. */
kv_status_t kv_tokenizer_encode(const kv_tokenizer_t *tokenizer, const char *text, size_t bytes,
    kv_tokenizer_mode_t mode, uint32_t **tokens_out, size_t *count_out, kv_error_t *error);

/* The bytes of one token, not terminated, owned by the tokenizer; special tokens have none unless
 * asked for. KV_INVALID for an id outside the vocabulary. */
kv_status_t kv_tokenizer_piece(const kv_tokenizer_t *tokenizer, uint32_t token, bool with_special,
    const char **bytes_out, size_t *count_out);

/* The special token of this text ("<|im_end|>"), or KV_MISSING. */
kv_status_t kv_tokenizer_special(
    const kv_tokenizer_t *tokenizer, const char *text, uint32_t *token_out);

uint32_t kv_tokenizer_vocabulary_count(const kv_tokenizer_t *tokenizer);
uint32_t kv_tokenizer_end_token(const kv_tokenizer_t *tokenizer);
uint32_t kv_tokenizer_context_tokens_max(const kv_tokenizer_t *tokenizer);
const char *kv_tokenizer_model_name(const kv_tokenizer_t *tokenizer); /* general.name of the file */

/* The file's chat template (Jinja), terminated; NULL when it has none. */
const char *kv_tokenizer_chat_template(const kv_tokenizer_t *tokenizer);

#endif
