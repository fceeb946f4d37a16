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
 * The used lists, one for each priority, run from the newest to the oldest; only slots of objects
 * that nobody holds are in them. kv_pool_first and kv_pool_next go through them in the order in
 * which slots may be evicted: background first, then batch, then interactive, each from its oldest.
 *
 * Beside each slot stand the token ids of its block, to be compared when it is found, and where the
 * tier keeps them the checksums of its units.
 *
 * A pool begins without slots and is extended as its memory becomes ready.
 *
 * Owns: the bookkeeping. Borrows: token ids and checksums; it knows nothing of the slots' bytes.
 * Threads: the store's; a worker may write token ids and checksums of a slot that it fills. */
#ifndef KV_KVSTORE_OBJECTS_POOL_H
#define KV_KVSTORE_OBJECTS_POOL_H

#include "kvstore/kvist.h"

#define KV_SLOT_NONE UINT32_MAX

typedef enum {
    KV_SLOT_FREE,
    KV_SLOT_PRIVATE,
    KV_SLOT_LOADING,
    KV_SLOT_OBJECT,
} kv_slot_state_t;

typedef struct {
    uint32_t object;       /* whose bytes these are: states loading and object */
    uint32_t newer, older; /* its used list; `older` also links the free list */
    uint8_t state;         /* kv_slot_state_t */
    uint8_t list;          /* kvist_priority_t, while listed */
    bool listed;
} kv_slot_t;

typedef struct {
    uint32_t newest, oldest;
} kv_used_list_t;

typedef struct {
    kv_slot_t *slots;
    uint32_t *tokens;    /* [slot_count][block_tokens] */
    uint64_t *checksums; /* [slot_count][unit_count]; NULL: none are kept */
    uint32_t slot_count, block_tokens, unit_count;
    uint32_t ready_count; /* slots that are there; slot_count once all are */
    uint32_t free_count, free_head, object_count;
    kv_used_list_t used[KVIST_PRIORITY_COUNT];
} kv_pool_t;

/* Room for slot_count slots; there are none yet. unit_count 0, checksums NULL: none are kept. */
void kv_pool_init(kv_pool_t *pool, uint32_t slot_count, uint32_t block_tokens, uint32_t unit_count,
    uint32_t *tokens, uint64_t *checksums);
void kv_pool_destroy(kv_pool_t *pool);

/* The first ready_count slots are there: those that were not are free. */
void kv_pool_extend(kv_pool_t *pool, uint32_t ready_count);

/* A free slot, now private; KV_SLOT_NONE when there is none. */
uint32_t kv_pool_take(kv_pool_t *pool);
void kv_pool_give(kv_pool_t *pool, uint32_t slot);

void kv_pool_set_loading(kv_pool_t *pool, uint32_t slot, uint32_t object);
void kv_pool_set_object(kv_pool_t *pool, uint32_t slot, uint32_t object);

/* Into the priority's used list at its newest end, or out of the one it is in. */
void kv_pool_list(kv_pool_t *pool, uint32_t slot, kvist_priority_t priority);
void kv_pool_unlist(kv_pool_t *pool, uint32_t slot);

/* The slot to be evicted first, and the next one after a listed one; KV_SLOT_NONE: no more. */
uint32_t kv_pool_first(const kv_pool_t *pool);
uint32_t kv_pool_next(const kv_pool_t *pool, uint32_t slot);

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

static inline uint64_t *kv_pool_checksums(const kv_pool_t *pool, uint32_t slot)
{
    return pool->checksums + (size_t)slot * pool->unit_count;
}

#endif
