/* Branches: where prompts part, and how much was added there, for the router.
 *
 * A branch point is the last block of what is held of a prompt. A conversation goes on from another
 * one with each turn; where many prompts go on from the same one (a system prompt, a document, the
 * trunk of a search) it is worth a copy elsewhere once what came after it is more than itself. What
 * begins there is counted several times: it will grow.
 *
 * Owns: a small table; points that meet in one place of it push each other out.
 * Threads: as its caller. Errors: none. */
#ifndef KV_GATEWAY_BRANCHES_H
#define KV_GATEWAY_BRANCHES_H

#include "kvstore/kvist.h"

#include <stdint.h>

typedef struct kv_branches kv_branches_t;

kv_branches_t *kv_branches_create(void);
void kv_branches_destroy(kv_branches_t *branches);

/* keys: of the prompt's whole blocks; held_blocks: of its longest run anywhere. What earlier
 * prompts added there; 0: it is none, or not known. */
uint64_t kv_branches_tokens(
    const kv_branches_t *branches, const kvist_key_t *keys, uint32_t held_blocks);

/* A prompt goes on from there with so many tokens, of whole blocks: one that comes again is no
 * branch. */
void kv_branches_add(
    kv_branches_t *branches, const kvist_key_t *keys, uint32_t held_blocks, uint32_t new_tokens);

#endif
