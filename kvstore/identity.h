/* Keys from tokens, one block at a time: what kvist_keys() does for an array.
 *
 * The encoding is in docs/formats.md; changing it makes every stored object unreachable.
 * Threads: any; free of state. */
#ifndef KV_KVSTORE_IDENTITY_H
#define KV_KVSTORE_IDENTITY_H

#include "kvstore/kvist.h"

/* The key of the block that follows the block `parent` (the namespace, for a context's first). */
kvist_key_t kv_identity_block_key(
    const kvist_key_t *parent, const uint32_t *tokens, uint32_t token_count);

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
