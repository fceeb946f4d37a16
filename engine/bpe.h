/* Byte pair encoding of one word: its bytes become tokens, and the pair of neighbours that the
 * model merged first is merged first, until none is left that it knows.
 *
 * Owns: the merge table.
 * Threads: immutable after creation; one scratch for each thread.
 * Errors: KV_INVALID names the merge that fits no token.
 * Limits: a byte for which the vocabulary has no token of its own (a few control characters)
 * vanishes, as in the models' own tools. */
#ifndef KV_ENGINE_BPE_H
#define KV_ENGINE_BPE_H

#include "base/status.h"
#include "engine/gguf.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct kv_bpe kv_bpe_t;

/* tokens, merges: as the model's file spells them, borrowed during the call. */
kv_status_t kv_bpe_create(const kv_gguf_string_t *tokens, size_t token_count,
    const kv_gguf_string_t *merges, size_t merge_count, kv_bpe_t **bpe_out, kv_error_t *error);
void kv_bpe_destroy(kv_bpe_t *bpe);

/* A growing list of tokens; all zero when empty, free(tokens) in the end. */
typedef struct {
    uint32_t *tokens;
    size_t count, capacity;
} kv_token_list_t;

void kv_token_list_append(kv_token_list_t *list, uint32_t token);

/* Working memory of an encoding; all zero at first, freed with kv_bpe_scratch_free. */
typedef struct {
    struct kv_bpe_symbol *symbols;
    size_t symbol_capacity;
    uint64_t *heap;
    size_t heap_count, heap_capacity;
} kv_bpe_scratch_t;

void kv_bpe_scratch_free(kv_bpe_scratch_t *scratch);

/* Appends the tokens of a word of less than 2^31 bytes. */
void kv_bpe_encode(const kv_bpe_t *bpe, kv_bpe_scratch_t *scratch, const char *word, size_t bytes,
    kv_token_list_t *list);

/* The bytes that a token's spelling stands for (every byte is spelled as one printable character);
 * false where the spelling has other characters. bytes_out holds as many as text. */
bool kv_bpe_unspell(const char *text, size_t bytes, char *bytes_out, size_t *count_out);

#endif
