/* A prompt's block keys, as each kind of node names them.
 *
 * A *naming* is what keys are made of but for the tenant's salt: nodes of one model and one layout
 * share it. Keys are SHA-256 over every token, so they are made where the prompt is parsed, not on
 * the reactor.
 *
 * Owns: a kv_prompt_keys_t owns its keys, until it is cleared.
 * Threads: any; nothing is kept between calls.
 * Errors: none. Limits: KV_NAMINGS_MAX kinds of nodes. */
#ifndef KV_GATEWAY_PROMPT_KEYS_H
#define KV_GATEWAY_PROMPT_KEYS_H

#include "kvstore/kvist.h"

#include <stddef.h>
#include <stdint.h>

enum { KV_NAMINGS_MAX = 4, KV_NAMING_NONE = -1 };

typedef struct {
    kvist_key_t model;
    kv_block_shape_t shape;
} kv_naming_t;

/* Those that are known; a number never changes its meaning. */
typedef struct {
    kv_naming_t items[KV_NAMINGS_MAX];
    uint32_t count;
} kv_namings_t;

/* Of the whole blocks of a prompt, in each naming that was known when it was parsed. Zeros: none.
 */
typedef struct {
    uint32_t naming_count, token_count;
    struct {
        uint32_t block_tokens, block_count;
        kvist_key_t *keys; /* [block_count] */
    } of[KV_NAMINGS_MAX];
} kv_prompt_keys_t;

kvist_key_t kv_naming_name_space(const kv_naming_t *naming, const void *salt, size_t salt_bytes);

void kv_prompt_keys_make(const kv_namings_t *namings, const void *salt, size_t salt_bytes,
    const uint32_t *tokens, size_t token_count, kv_prompt_keys_t *keys_out);
void kv_prompt_keys_clear(kv_prompt_keys_t *keys);

/* Leading blocks that two prompts share in a naming. A key covers all before it, so that this takes
 * but a few comparisons. */
uint32_t kv_prompt_keys_shared(
    const kv_prompt_keys_t *one, const kv_prompt_keys_t *other, int naming);

#endif
