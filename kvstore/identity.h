/* Keys from tokens, one block at a time: what kvist_keys() does for an array; and a block's words.
 *
 * A block's *words* are its token ids and, after them, its extra key (zeros: none): what its key
 * covers beside its parent. Wherever the store keeps, compares or copies token ids it does so with
 * words, so that the two never part.
 *
 * The encoding is in docs/formats.md; changing it makes every stored object unreachable.
 * Threads: any; free of state. */
#ifndef KV_KVSTORE_IDENTITY_H
#define KV_KVSTORE_IDENTITY_H

#include "kvstore/kvist.h"

enum { KV_EXTRA_WORDS = KVIST_KEY_BYTES / 4 };

static inline uint32_t kv_identity_word_count(uint32_t block_tokens)
{
    return block_tokens + KV_EXTRA_WORDS;
}

/* The words of blocks, [block_count][kv_identity_word_count()]. extras: [block_count], or NULL. */
void kv_identity_words(const uint32_t *tokens, const kvist_key_t *extras, size_t block_count,
    uint32_t block_tokens, uint32_t *words_out);

/* A block's extra key. */
static inline kvist_key_t kv_identity_extra(const uint32_t *words, uint32_t block_tokens)
{
    kvist_key_t extra;
    __builtin_memcpy(extra.bytes, words + block_tokens, sizeof extra.bytes);
    return extra;
}

/* Whether it has one. */
static inline bool kv_identity_has_extra(const uint32_t *words, uint32_t block_tokens)
{
    uint32_t any = 0;
    for (uint32_t i = 0; i < KV_EXTRA_WORDS; i++) {
        any |= words[block_tokens + i];
    }
    return any != 0;
}

/* The key of the block that follows the block `parent` (the namespace, for a context's first). */
kvist_key_t kv_identity_block_key(
    const kvist_key_t *parent, const uint32_t *words, uint32_t block_tokens);

/* The keys of blocks that follow one another, the first of them the block `parent`. */
void kv_identity_keys(const kvist_key_t *parent, const uint32_t *words, size_t block_count,
    uint32_t block_tokens, kvist_key_t *keys_out);

/* The key of the block's object of a group: the block's key, the last byte xor the group. The
 * inverse of itself. */
static inline kvist_key_t kv_identity_group_key(const kvist_key_t *block, uint32_t group)
{
    kvist_key_t key = *block;
    key.bytes[KVIST_KEY_BYTES - 1] ^= (uint8_t)group;
    return key;
}

/* SHA-256 of count bytes. */
kvist_key_t kv_identity_digest(const void *bytes, size_t count);

static inline bool kv_key_equal(const kvist_key_t *left, const kvist_key_t *right)
{
    return __builtin_memcmp(left->bytes, right->bytes, KVIST_KEY_BYTES) == 0;
}

#endif
