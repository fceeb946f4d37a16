/* The detokenizer: the text of one answer, as its tokens come.
 *
 * What it hands out is valid UTF-8, ends at a character's end and holds nothing of a stop string:
 * bytes of an unfinished character and text that may become a stop string wait for later tokens.
 * However the bytes are divided over tokens, the text is the same.
 *
 * Owns: copies of the stop strings and the waiting text.
 * Borrows: the tokenizer.
 * Threads: one at a time.
 * Errors: KV_INVALID names the stop string and its bound. */
#ifndef KV_ENGINE_DETOKENIZER_H
#define KV_ENGINE_DETOKENIZER_H

#include "engine/tokenizer.h"

enum { KV_STOPS_MAX = 16, KV_STOP_BYTES_MAX = 256 };

typedef struct kv_detokenizer kv_detokenizer_t;

/* stops: terminated, valid UTF-8, 1 to KV_STOP_BYTES_MAX bytes each. */
kv_status_t kv_detokenizer_create(const kv_tokenizer_t *tokenizer, const char *const *stops,
    size_t stop_count, kv_detokenizer_t **detokenizer_out, kv_error_t *error);
void kv_detokenizer_destroy(kv_detokenizer_t *detokenizer);

/* text_out: new text, perhaps none, not terminated, valid until the next call. stopped_out: a stop
 * string was completed; all text before it has been handed out and nothing more will be. Special
 * tokens have no text. KV_INVALID for a token outside the vocabulary: nothing changed. */
kv_status_t kv_detokenizer_push(kv_detokenizer_t *detokenizer, uint32_t token,
    const char **text_out, size_t *bytes_out, bool *stopped_out);

/* The stop string that was completed, as it was given, or NULL; valid until it is destroyed. */
const char *kv_detokenizer_stopped_by(const kv_detokenizer_t *detokenizer);

/* After the last token: what was waiting. An unfinished character becomes U+FFFD, as invalid bytes
 * do before. */
void kv_detokenizer_finish(kv_detokenizer_t *detokenizer, const char **text_out, size_t *bytes_out);

#endif
