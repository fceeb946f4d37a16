/* A pool of fixed-size slots of one tier, and the order in which their objects may be evicted.
 *
 *            take                 set_object
 *   free ----------> private ---------------> object (idle while nobody holds the object)
 *     ^                |    \                    |
 *     |                |     `--> loading -------+
 *     +----- give -----+---------- give ---------+
 *
 * free: in the free list. private: its holder (a lease, a copy under way) may write it. loading:
 * being filled for an object that names it already. object: holds an object's bytes, read-only.
 *
 * Candidates for eviction are the idle slots from whose objects no other object of the pool goes
 * on: so whatever a policy says, a chain goes leaf first. (What is on its way out counts as gone:
 * its parent need not wait for it.) A walk goes through the candidates in the order in which they
 * may go: background first, then batch, then interactive, in each class as the policy ranks them.
 * Slots whose objects are promised to stay are out of the way until the promise has passed.
 *
 * Beside each slot stand the words of its block, to be compared when it is found, and where the
 * tier keeps them the checksums of its units.
 *
 * A pool begins without slots and is extended as its memory becomes ready.
 *
 * Owns: the bookkeeping. Borrows: words and checksums; it knows nothing of the slots' bytes.
 * Threads: the store's; a worker may write words and checksums of a slot that it fills. */
#ifndef KV_KVSTORE_OBJECTS_POOL_H
#define KV_KVSTORE_OBJECTS_POOL_H

#include "kvstore/kvist.h"
#include "kvstore/policy/policy.h"
#include "kvstore/policy/ranking.h"

#define KV_SLOT_NONE UINT32_MAX
#define KV_TENANT_ANY UINT32_MAX

typedef enum {
    KV_SLOT_FREE,
    KV_SLOT_PRIVATE,
    KV_SLOT_LOADING,
    KV_SLOT_OBJECT,
} kv_slot_state_t;

/* kv_slot_t.flags, of state object but for the last */
enum {
    KV_SLOT_IDLE = 1,      /* nobody holds the object */
    KV_SLOT_LISTED = 2,    /* a candidate */
    KV_SLOT_PROMISED = 4,  /* with listed: but pinned, and nothing below would take it */
    KV_SLOT_GOING = 8,     /* on its way out: not counted as a child */
    KV_SLOT_RANKED = 16,   /* the policy has given it a place */
    KV_SLOT_VICTIM = 32,   /* it goes for want of room */
    KV_SLOT_RESERVED = 64, /* of state private: it counts as its tenant's already */
};

typedef struct {
    uint32_t object; /* whose bytes these are: states loading and object; else the next free slot */
    uint32_t children; /* objects of the pool that go on from it and are not on their way out */
    uint16_t tenant;
    uint8_t state;    /* kv_slot_state_t */
    uint8_t priority; /* kvist_priority_t */
    uint8_t list;     /* of the policy's */
    uint8_t uses;
    uint8_t flags;
} kv_slot_t;

/* Candidates of one class: the policy's lists. */
typedef struct {
    uint32_t roots[KV_POLICY_LISTS];
} kv_candidates_t;

typedef struct {
    uint32_t object_count; /* with slots that are reserved */
    uint32_t class_counts[KVIST_PRIORITY_COUNT];
    kv_candidates_t candidates[KVIST_PRIORITY_COUNT];
} kv_pool_tenant_t;

typedef struct {
    kv_slot_t *slots;
    uint32_t *words;     /* [slot_count][block_words] */
    uint64_t *checksums; /* [slot_count][unit_count]; NULL: none are kept */
    uint32_t slot_count, block_words, unit_count;
    uint32_t ready_count; /* slots that are there; slot_count once all are */
    uint32_t free_count, free_head, object_count;

    const kv_policy_ops_t *ops;
    kv_policy_t *policies[KVIST_PRIORITY_COUNT];
    kv_policy_costs_t *costs; /* set by the pool's owner, after kv_pool_init */
    kv_policy_about_t *about; /* [slot_count] */
    kv_rank_t *ranks;         /* [slot_count] and when each was used last */
    uint64_t use_count;
    uint32_t class_counts[KVIST_PRIORITY_COUNT];      /* objects */
    kv_ranking_node_t *of_all, *of_tenant;            /* [slot_count] */
    kv_candidates_t candidates[KVIST_PRIORITY_COUNT]; /* in of_all */
    uint32_t promised;                                /* root in of_all, by end of promise */
    kv_pool_tenant_t *tenants;                        /* [tenant_count] candidates in of_tenant */
    uint32_t tenant_count;
    const kv_clock_t *clock; /* borrowed, set after kv_pool_init; NULL: it is always second 0 */
} kv_pool_t;

/* What the pool is told of an object that comes. */
typedef struct {
    uint32_t key_hash, position;
    kvist_priority_t priority;
    uint16_t tenant;
} kv_slot_of_t;

/* Room for slot_count slots; there are none yet. unit_count 0, checksums NULL: none are kept. */
void kv_pool_init(kv_pool_t *pool, uint32_t slot_count, uint32_t block_words, uint32_t unit_count,
    uint32_t *words, uint64_t *checksums, const kv_policy_ops_t *policy);
void kv_pool_destroy(kv_pool_t *pool);

/* The first ready_count slots are there: those that were not are free. */
void kv_pool_extend(kv_pool_t *pool, uint32_t ready_count);

/* A free slot, now private; KV_SLOT_NONE when there is none. */
uint32_t kv_pool_take(kv_pool_t *pool);
void kv_pool_give(kv_pool_t *pool, uint32_t slot);

/* A private slot is for an object of this tenant. */
void kv_pool_reserve(kv_pool_t *pool, uint32_t slot, uint16_t tenant);

void kv_pool_set_loading(kv_pool_t *pool, uint32_t slot, uint32_t object);
void kv_pool_keep_private(
    kv_pool_t *pool, uint32_t slot); /* its load failed; whose it is uses it */
void kv_pool_set_object(
    kv_pool_t *pool, uint32_t slot, uint32_t object, const kv_slot_of_t *of); /* it is held */

/* Somebody holds the object of the slot; nobody does any more: a use has ended. */
void kv_pool_hold(kv_pool_t *pool, uint32_t slot);
void kv_pool_release(kv_pool_t *pool, uint32_t slot, kvist_priority_t priority);

/* An object that goes on from the slot's came, or went. */
void kv_pool_add_child(kv_pool_t *pool, uint32_t slot);
void kv_pool_remove_child(kv_pool_t *pool, uint32_t slot);

/* No candidate any more, whatever comes. */
void kv_pool_unlist(kv_pool_t *pool, uint32_t slot);

/* A candidate that must not go before that second: out of the way until then. */
void kv_pool_promise(kv_pool_t *pool, uint32_t slot, uint32_t until_s);
void kv_pool_end_promises(kv_pool_t *pool, uint32_t now_s);
void kv_pool_end_promise(kv_pool_t *pool, uint32_t slot); /* there may be none */

/* When its object is expected to be used next; 0 says nothing. Of several times that are not over
 * the earliest counts. */
void kv_pool_expect(kv_pool_t *pool, uint32_t slot, uint32_t expected_s, uint32_t now_s);

/* ---- walks ---- */

typedef struct {
    kv_pool_t *pool;
    uint32_t tenant; /* whose; KV_TENANT_ANY: everybody's */
    int priority;    /* the class that it is in */
    kvist_priority_t last;
    uint32_t lists_seen, list;
    struct {
        kv_rank_t rank; /* of what it came to last */
        uint32_t slot;
    } at[KV_POLICY_LISTS]; /* in each list */
    uint32_t also; /* set by who evicts: it has become a candidate, perhaps before that place */
} kv_pool_walk_t;

/* Through the candidates in the order in which they may go, up to those of class `last`. It goes on
 * behind what it came to last, whatever became of that; but first with `also`, where that lies
 * before. */
kv_pool_walk_t kv_pool_walk(kv_pool_t *pool, uint32_t tenant, kvist_priority_t last);

/* The next candidate; KV_SLOT_NONE: no more. */
uint32_t kv_pool_step(kv_pool_walk_t *walk);

/* Bytes of memory that the order takes. */
size_t kv_pool_order_bytes(const kv_pool_t *pool);

static inline uint32_t *kv_pool_words(const kv_pool_t *pool, uint32_t slot)
{
    return pool->words + (size_t)slot * pool->block_words;
}

/* Asks for the memory that looking at the slot will read. */
static inline void kv_pool_approach(const kv_pool_t *pool, uint32_t slot)
{
    __builtin_prefetch(&pool->slots[slot], 1);
    __builtin_prefetch(kv_pool_words(pool, slot));
}

static inline uint64_t *kv_pool_checksums(const kv_pool_t *pool, uint32_t slot)
{
    return pool->checksums + (size_t)slot * pool->unit_count;
}

#endif
