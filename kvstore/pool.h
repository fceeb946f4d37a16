/* A pool of fixed-size slots of one tier, and the order in which their objects were used.
 *
 *            take                 install
 *   free ----------> private ---------------> object (listed while nobody holds the object)
 *     ^                |    \                    |
 *     |                |     `--> loading -------+
 *     +----- give -----+---------- give ---------+
 *
 * free: in the free list. private: its holder (a lease, a copy under way) may write it. loading:
 * being filled for an object that names it already. object: holds an object's bytes, read-only.
 * The used list runs from the newest to the oldest; only slots of objects that nobody holds are in
 * it, so that its oldest end is what may be evicted next.
 *
 * Beside each slot stand the token ids of its block, to be compared when it is found.
 *
 * Owns: the bookkeeping and the token ids, not the slots' bytes.
 * Threads: the store's; a worker may write the token ids of a loading slot. */
#ifndef KV_KVSTORE_POOL_H
#define KV_KVSTORE_POOL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define KV_SLOT_NONE UINT32_MAX

typedef enum {
    KV_SLOT_FREE,
    KV_SLOT_PRIVATE,
    KV_SLOT_LOADING,
    KV_SLOT_OBJECT,
} kv_slot_state_t;

typedef struct {
    uint32_t object;       /* whose bytes these are: states loading and object */
    uint32_t newer, older; /* the used list; `older` also links the free list */
    uint8_t state;         /* kv_slot_state_t */
    bool listed;
    uint64_t checksum; /* of the slot's bytes, where the tier keeps one */
} kv_slot_t;

typedef struct {
    kv_slot_t *slots;
    uint32_t *tokens; /* [slot_count][block_tokens] */
    uint32_t slot_count, block_tokens;
    uint32_t free_count, free_head, object_count;
    uint32_t newest, oldest;
} kv_pool_t;

void kv_pool_init(kv_pool_t *pool, uint32_t slot_count, uint32_t block_tokens);
void kv_pool_destroy(kv_pool_t *pool);

/* A free slot, now private; KV_SLOT_NONE when there is none. */
uint32_t kv_pool_take(kv_pool_t *pool);
void kv_pool_give(kv_pool_t *pool, uint32_t slot);

void kv_pool_set_loading(kv_pool_t *pool, uint32_t slot, uint32_t object);
void kv_pool_set_object(kv_pool_t *pool, uint32_t slot, uint32_t object);

/* Into the used list at its newest end, or out of it. */
void kv_pool_list(kv_pool_t *pool, uint32_t slot);
void kv_pool_unlist(kv_pool_t *pool, uint32_t slot);

static inline uint32_t *kv_pool_tokens(const kv_pool_t *pool, uint32_t slot)
{
    return pool->tokens + (size_t)slot * pool->block_tokens;
}

/* Asks for the memory that looking at the slot will read. */
static inline void kv_pool_approach(const kv_pool_t *pool, uint32_t slot)
{
    __builtin_prefetch(&pool->slots[slot], 1);
    __builtin_prefetch(kv_pool_tokens(pool, slot));
}

#endif
