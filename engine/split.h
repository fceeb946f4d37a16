/* The split pattern: cuts a text into the words within which byte pairs are merged.
 *
 * Owns: the compiled pattern.
 * Threads: immutable after creation; any number may run it at once.
 * Errors: KV_INVALID for a pre-tokenizer that is not known here.
 * Limits: matching is bounded, so that no text makes it hang. The only file that sees PCRE2 is
 * split.c. */
#ifndef KV_ENGINE_SPLIT_H
#define KV_ENGINE_SPLIT_H

#include "base/status.h"

#include <stddef.h>

typedef struct kv_split kv_split_t;

/* name: the model's tokenizer.ggml.pre ("smollm", "gpt-2"), not terminated. */
kv_status_t kv_split_create(
    const char *name, size_t bytes, kv_split_t **split_out, kv_error_t *error);
void kv_split_destroy(kv_split_t *split);

/* Calls word for each word in order; together they are the whole text, which must be valid UTF-8.
 */
kv_status_t kv_split_run(const kv_split_t *split, const char *text, size_t bytes,
    void (*word)(void *context, const char *text, size_t bytes), void *context, kv_error_t *error);

#endif
