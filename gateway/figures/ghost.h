/* The ghost: which blocks were ever seen, in prompts and answers, whoever holds them now. It says
 * what an ideal cache would have (gap.h).
 *
 * A block is its key, of which 48 bits are kept: keys hold the tenant's salt and all tokens before,
 * so what one tenant saw is nothing to another. Two keys that agree in those bits are taken for
 * one, which happens to one block in 10^8 and makes an ideal rate too good by that.
 *
 * Owns: its table. Threads: as its caller. Errors: none.
 * Limits: the bytes it is given, 22 for each block. Beyond them the blocks that were seen longest
 * ago leave, of a context its end first. */
#ifndef KV_GATEWAY_GHOST_H
#define KV_GATEWAY_GHOST_H

#include "kvstore/kvist.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct kv_ghost kv_ghost_t;

kv_ghost_t *kv_ghost_create(uint64_t bytes);
void kv_ghost_destroy(kv_ghost_t *ghost); /* NULL is fine */

/* These blocks of a context, in order; kept: whether the request that they came in was to be kept,
 * which stays true of a block that it was true of. */
void kv_ghost_note(kv_ghost_t *ghost, const kvist_key_t *keys, uint32_t count, bool kept);

/* Leading blocks that were seen before, and of those the leading ones that were to be kept. */
typedef struct {
    uint32_t block_count, kept_count;
} kv_ghost_run_t;

kv_ghost_run_t kv_ghost_look(const kv_ghost_t *ghost, const kvist_key_t *keys, uint32_t count);

/* Blocks that it knows, and can know. */
size_t kv_ghost_count(const kv_ghost_t *ghost);
size_t kv_ghost_capacity(const kv_ghost_t *ghost);

#endif
