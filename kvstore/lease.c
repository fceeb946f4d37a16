/* Leases: match, prepare, seal, release; and the queue of those that wait for device slots. */
#include "kvstore/store_internal.h"

#include "base/check.h"
#include "base/memory.h"

#include <stdlib.h>
#include <string.h>

typedef enum {
    MATCHED,
    WAITING, /* for device slots */
    LOADING,
    ANSWERED, /* the callback is to run in the next poll */
    READY,
    FAILED, /* the prepare ended without slots */
} lease_state_t;

struct kvist_lease {
    kvist_store_t *store;
    kvist_mode_t mode;
    lease_state_t state;
    bool released;    /* by its owner; goes when loads and callback are through */
    bool try_again;   /* a load found damage, and another copy is left */
    bool yielded;     /* it let its blocks go while it waited: they are to be found again */
    bool storing;     /* what is sealed becomes objects */
    uint32_t *tokens; /* [query_blocks][block_tokens] */
    kvist_key_t name_space, last_key; /* last_key: of the last sealed block */
    uint32_t *objects;                /* [block_max]: held; KV_OBJECT_NONE: not an object */
    uint8_t *tiers;                   /* [found at match]: the fastest that held it */
    uint32_t *slots;                  /* [slot_count] */
    uint32_t block_max, slot_count, found_count, sealed_count;
    uint32_t found_before; /* yielded: what it had */
    kvist_match_t match;
    uint32_t loads_out;
    uint64_t deadline_ns;
    kv_status_t status;
    kvist_prepared_t done;
    void *context;
    kvist_lease_t *next; /* waiting or answered */
};

/* ---- match ---- */

enum { BLOCKS_AT_FIRST = 4, BLOCKS_AT_ONCE = 32 };

/* Where the token ids are in memory they are compared: a key is believed, equality is checked. */
static bool tokens_agree(
    const kvist_store_t *store, const kv_object_t *object, const uint32_t *tokens)
{
    const uint32_t *stored = NULL;
    if (kv_object_on_device(store, object)) {
        stored = kv_pool_tokens(&store->device_pool, object->device_slot);
    } else if (kv_object_on_host(object)) {
        stored = kv_pool_tokens(&store->groups[0].host_pool, object->host_slot);
    }
    size_t bytes = store->block_tokens * sizeof *tokens;
    return stored == NULL || memcmp(stored, tokens, bytes) == 0;
}

/* Blocks are looked for some at a time: what the search waits for is memory, and it can wait for
 * many at once. */
typedef struct {
    kvist_key_t keys[BLOCKS_AT_ONCE];
    uint32_t numbers[BLOCKS_AT_ONCE];
    bool scattered; /* the last ones did not lie side by side */
} search_t;

/* Numbers of the first of these blocks that are stored, and how many those are. */
static uint32_t find_blocks(
    const kvist_store_t *store, search_t *search, uint32_t parent, uint32_t count)
{
    const kv_table_t *table = store->table;
    for (uint32_t i = 0; search->scattered && i < count; i++) {
        kv_table_approach(table, &search->keys[i]);
    }
    for (uint32_t i = 0; search->scattered && i < count; i++) {
        kv_table_approach_object(table, &search->keys[i]);
    }
    uint32_t found = 0, neighbours = 0;
    while (found < count) {
        uint32_t number = kv_table_find_child(table, parent, &search->keys[found]);
        if (number == KV_OBJECT_NONE) {
            break;
        }
        const kv_object_t *object = kv_table_at(table, number);
        if (object->device_slot != KV_SLOT_NONE) {
            kv_pool_approach(&store->device_pool, object->device_slot);
        } else if (kv_object_on_host(object)) {
            kv_pool_approach(&store->groups[0].host_pool, object->host_slot);
        }
        neighbours += number - parent < BLOCKS_AT_ONCE;
        search->numbers[found++] = parent = number;
    }
    search->scattered = neighbours < found / 2;
    return found;
}

/* Takes a block that was found into the lease. */
static bool take_block(kvist_store_t *store, kvist_lease_t *lease, const kvist_key_t *key,
    uint32_t number, const uint32_t *tokens)
{
    const kv_object_t *object = kv_table_at(store->table, number);
    if (!tokens_agree(store, object, tokens)) {
        /* Two contexts with one key, or bytes of ours gone wrong: nothing here may be used. */
        store->stats.damaged_objects++;
        kv_object_drop(store, number);
        return false;
    }
    uint32_t block = lease->found_count++;
    lease->last_key = *key;
    lease->objects[block] = number;
    lease->tiers[block] = (uint8_t)kv_object_tier(store, object);
    lease->match.tier_blocks[lease->tiers[block]]++;
    kv_object_hold(store, number);
    return true;
}

static void find_prefix(kvist_store_t *store, kvist_lease_t *lease, uint32_t block_count)
{
    uint32_t block_tokens = store->block_tokens, parent = KV_OBJECT_NONE;
    search_t search;
    search.scattered = true;
    lease->match.miss = KVIST_MISS_NONE;
    for (uint32_t block = 0; block < block_count; block = lease->found_count) {
        const uint32_t *tokens = lease->tokens + (size_t)block * block_tokens;
        uint32_t count = block_count - block,
                 at_once = block == 0 ? BLOCKS_AT_FIRST : BLOCKS_AT_ONCE;
        count = count < at_once ? count : at_once;
        kvist_keys(
            &lease->last_key, tokens, (size_t)count * block_tokens, block_tokens, search.keys);
        uint32_t found = find_blocks(store, &search, parent, count);
        for (uint32_t i = 0; i < found; i++) {
            if (!take_block(store, lease, &search.keys[i], search.numbers[i],
                    tokens + (size_t)i * block_tokens)) {
                lease->match.miss = KVIST_MISS_DAMAGED;
                return;
            }
        }
        if (found < count) {
            lease->match.miss = KVIST_MISS_NEW;
            return;
        }
        parent = search.numbers[found - 1];
    }
}

kv_status_t kvist_match(kvist_store_t *store, const kvist_query_t *query, kvist_lease_t **lease_out,
    kvist_match_t *match_out)
{
    uint32_t block_tokens = store->block_tokens;
    if (query->token_count / block_tokens > KVIST_CHAIN_BLOCKS_MAX) {
        return KV_INVALID;
    }
    if (store->lease_count >= KV_LEASES_MAX) {
        return KV_BUSY;
    }
    uint32_t block_count = (uint32_t)(query->token_count / block_tokens);
    bool reads = query->mode == KVIST_MODE_READWRITE || query->mode == KVIST_MODE_READ;
    kvist_lease_t *lease = kv_allocate(sizeof *lease);
    *lease = (kvist_lease_t){
        .store = store,
        .mode = query->mode,
        .storing = query->mode == KVIST_MODE_READWRITE || query->mode == KVIST_MODE_WRITE,
        .name_space = query->name_space,
        .last_key = query->name_space,
        .block_max = block_count,
        .objects = kv_allocate_array(block_count, sizeof(uint32_t)),
        .tiers = kv_allocate(block_count),
    };
    if (reads && block_count > 0) {
        size_t count = (size_t)block_count * block_tokens;
        lease->tokens = kv_allocate_array(count, sizeof *lease->tokens);
        memcpy(lease->tokens, query->tokens, count * sizeof *lease->tokens);
        find_prefix(store, lease, block_count);
    }
    if (!reads) {
        lease->match.miss = KVIST_MISS_BYPASSED;
    } else if (lease->match.miss == KVIST_MISS_NONE && query->token_count % block_tokens != 0) {
        lease->match.miss = KVIST_MISS_SHORT;
    }
    lease->match.block_count = lease->sealed_count = lease->found_count;
    store->stats.miss_count[lease->match.miss]++;
    store->lease_count++;
    *lease_out = lease;
    *match_out = lease->match;
    return KV_OK;
}

/* ---- what load.c sees ---- */

uint32_t kv_lease_found_count(const kvist_lease_t *lease)
{
    return lease->found_count;
}

uint32_t kv_lease_object(const kvist_lease_t *lease, uint32_t block)
{
    return lease->objects[block];
}

void kv_lease_load_started(kvist_lease_t *lease)
{
    lease->loads_out++;
}

/* ---- prepare ---- */

static void answer(kvist_lease_t *lease, kv_status_t status)
{
    kvist_store_t *store = lease->store;
    lease->state = ANSWERED;
    lease->status = status;
    lease->next = NULL;
    if (store->last_ready != NULL) {
        store->last_ready->next = lease;
    } else {
        store->first_ready = lease;
    }
    store->last_ready = lease;
    kv_store_kick(store);
}

static void enqueue(kvist_lease_t *lease, bool first)
{
    kvist_store_t *store = lease->store;
    kvist_lease_t **link = &store->first_waiting;
    while (!first && *link != NULL) {
        link = &(*link)->next;
    }
    lease->state = WAITING;
    lease->next = *link;
    *link = lease;
}

static void dequeue(kvist_lease_t *lease)
{
    kvist_store_t *store = lease->store;
    kvist_lease_t **link = &store->first_waiting;
    while (*link != lease) {
        KV_CHECK(*link != NULL);
        link = &(*link)->next;
    }
    *link = lease->next;
    lease->next = NULL;
}

/* Keeps the first `good` of the found blocks; the others are let go, and lose the device slots that
 * they would keep without their parents. */
static void shorten(kvist_lease_t *lease, uint32_t good, kvist_miss_t miss)
{
    kvist_store_t *store = lease->store;
    for (uint32_t block = lease->found_count; block-- > good;) {
        uint32_t number = lease->objects[block];
        kv_object_t *object = kv_table_at(store->table, number);
        lease->objects[block] = KV_OBJECT_NONE;
        lease->slots[block] = KV_SLOT_NONE;
        lease->match.tier_blocks[lease->tiers[block]]--;
        kv_object_release(store, number);
        bool elsewhere = kv_object_on_host(object) || kv_object_on_disk(object);
        if ((object->flags & KV_OBJECT_DEAD) == 0 && object->reference_count == 0 && elsewhere &&
            kv_object_on_device(store, object) && (object->flags & KV_OBJECT_BUSY) == 0) {
            kv_object_leave_device(store, number);
        }
    }
    lease->found_count = lease->sealed_count = lease->match.block_count = good;
    lease->match.miss = miss;
    store->stats.miss_count[miss]++;
}

static bool gone(const kvist_lease_t *lease, uint32_t block)
{
    const kv_object_t *object = kv_table_at(lease->store->table, lease->objects[block]);
    return (object->flags & KV_OBJECT_DEAD) != 0;
}

/* Blocks that were dropped as damaged since the match end it there. */
static void shorten_at_dead(kvist_lease_t *lease)
{
    for (uint32_t block = 0; block < lease->found_count; block++) {
        if (gone(lease, block)) {
            shorten(lease, block, KVIST_MISS_DAMAGED);
            return;
        }
    }
}

/* Free slots that the lease takes when its turn comes: for blocks to load and for private ones. */
static uint32_t slots_needed(const kvist_lease_t *lease)
{
    const kvist_store_t *store = lease->store;
    uint32_t count = 0;
    for (uint32_t block = 0; block < lease->slot_count; block++) {
        if (block < lease->found_count) {
            count += kv_table_at(store->table, lease->objects[block])->device_slot == KV_SLOT_NONE;
        } else {
            count += lease->slots[block] == KV_SLOT_NONE;
        }
    }
    return count;
}

static void take_private_slots(kvist_lease_t *lease)
{
    for (uint32_t block = lease->found_count; block < lease->slot_count; block++) {
        if (lease->slots[block] == KV_SLOT_NONE) {
            lease->slots[block] = kv_pool_take(&lease->store->device_pool);
            KV_CHECK(lease->slots[block] != KV_SLOT_NONE);
        }
    }
}

static void give_private_slots(kvist_lease_t *lease)
{
    kv_pool_t *pool = &lease->store->device_pool;
    for (uint32_t block = 0; block < lease->slot_count; block++) {
        uint32_t slot = lease->slots[block];
        bool object_slot =
            lease->objects[block] != KV_OBJECT_NONE &&
            kv_table_at(lease->store->table, lease->objects[block])->device_slot == slot;
        if (slot != KV_SLOT_NONE && !object_slot) {
            KV_CHECK(pool->slots[slot].state == KV_SLOT_PRIVATE);
            kv_pool_give(pool, slot);
        }
        lease->slots[block] = KV_SLOT_NONE;
    }
}

/* The first found block that cannot be used, after all loads ended. */
static uint32_t good_prefix(kvist_lease_t *lease, kvist_miss_t *miss_out)
{
    kvist_store_t *store = lease->store;
    uint32_t block_tokens = store->block_tokens;
    for (uint32_t block = 0; block < lease->found_count; block++) {
        const kv_object_t *object = kv_table_at(store->table, lease->objects[block]);
        if (gone(lease, block)) {
            *miss_out = KVIST_MISS_DAMAGED;
            return block;
        }
        if (!kv_object_on_device(store, object)) {
            *miss_out = KVIST_MISS_FAILED;
            return block;
        }
        if (!tokens_agree(store, object, lease->tokens + (size_t)block * block_tokens)) {
            store->stats.damaged_objects++;
            kv_object_drop(store, lease->objects[block]);
            *miss_out = KVIST_MISS_DAMAGED;
            return block;
        }
    }
    return lease->found_count;
}

static void count_hits(kvist_lease_t *lease)
{
    for (int tier = 0; tier < KVIST_TIER_COUNT; tier++) {
        lease->store->stats.tiers[tier].hit_blocks += lease->match.tier_blocks[tier];
    }
}

static void become_ready(kvist_lease_t *lease)
{
    take_private_slots(lease);
    lease->last_key = lease->name_space;
    for (uint32_t block = 0; block < lease->found_count; block++) {
        const kv_object_t *object = kv_table_at(lease->store->table, lease->objects[block]);
        lease->slots[block] = object->device_slot;
        lease->last_key = object->key;
    }
    count_hits(lease);
    answer(lease, KV_OK);
}

static void loads_ended(kvist_lease_t *lease)
{
    kvist_miss_t miss = KVIST_MISS_NONE;
    uint32_t good = good_prefix(lease, &miss);
    if (good < lease->found_count && lease->try_again) {
        lease->try_again = false;
        enqueue(lease, true);
        return;
    }
    if (good < lease->found_count) {
        shorten(lease, good, miss);
    }
    if (slots_needed(lease) > lease->store->device_pool.free_count) {
        enqueue(lease, true); /* slots of blocks that are ours no longer are still held by others */
    } else {
        become_ready(lease);
    }
}

/* Its turn, and there are enough free slots. */
static void grant(kvist_lease_t *lease)
{
    take_private_slots(lease);
    lease->state = LOADING;
    lease->loads_out++; /* none may end it before all are started */
    kv_load_start(lease->store, lease);
    kv_lease_load_ended(lease, false);
}

static void free_lease(kvist_lease_t *lease)
{
    lease->store->lease_count--;
    free(lease->tokens);
    free(lease->objects);
    free(lease->tiers);
    free(lease->slots);
    free(lease);
}

/* Leaf first, so that a parent is never older than its child in a used list. */
static void give_back(kvist_lease_t *lease)
{
    kvist_store_t *store = lease->store;
    if (lease->slots != NULL) {
        give_private_slots(lease);
    }
    for (uint32_t block = lease->sealed_count; block-- > 0;) {
        if (lease->objects[block] != KV_OBJECT_NONE) {
            kv_object_release(store, lease->objects[block]);
        }
    }
    lease->found_count = lease->sealed_count = 0;
    lease->slot_count = 0;
}

void kv_lease_load_ended(kvist_lease_t *lease, bool try_again)
{
    lease->try_again = lease->try_again || try_again;
    if (--lease->loads_out > 0) {
        return;
    }
    if (lease->released) {
        kvist_miss_t miss = KVIST_MISS_NONE;
        uint32_t good = good_prefix(lease, &miss);
        if (good < lease->found_count) {
            shorten(lease, good, miss); /* nothing may stay on the device without its parent */
        }
        give_back(lease);
        answer(lease, KV_CANCELLED);
    } else {
        loads_ended(lease);
    }
}

kv_status_t kvist_lease_prepare(kvist_lease_t *lease, uint32_t slot_count, uint64_t deadline_ns,
    kvist_prepared_t done, void *context)
{
    kvist_store_t *store = lease->store;
    KV_CHECK(lease->state == MATCHED && done != NULL);
    if (slot_count > store->device_pool.slot_count || slot_count < lease->found_count) {
        return KV_INVALID;
    }
    lease->slots = kv_allocate_array(slot_count, sizeof *lease->slots);
    memset(lease->slots, 0xff, slot_count * sizeof *lease->slots);
    if (slot_count > lease->block_max) {
        lease->objects = kv_reallocate(lease->objects, slot_count, sizeof *lease->objects);
        lease->block_max = slot_count;
    }
    for (uint32_t block = lease->found_count; block < lease->block_max; block++) {
        lease->objects[block] = KV_OBJECT_NONE;
    }
    lease->slot_count = slot_count;
    lease->deadline_ns = deadline_ns;
    lease->done = done;
    lease->context = context;
    enqueue(lease, false);
    kv_store_advance(store);
    return KV_OK;
}

static void expire(kvist_store_t *store, uint64_t now_ns)
{
    for (kvist_lease_t *lease = store->first_waiting; lease != NULL;) {
        kvist_lease_t *next = lease->next;
        if (lease->deadline_ns <= now_ns) {
            dequeue(lease);
            give_private_slots(lease);
            answer(lease, KV_BUSY);
        }
        lease = next;
    }
}

/* Those who wait hold what they matched, and all of them together may hold what the first in the
 * queue lacks. The last one then lets its blocks go, to look for them again when its turn comes.
 * false: nobody behind the first holds anything. */
static bool yield_one(kvist_store_t *store)
{
    kvist_lease_t *last = NULL;
    for (kvist_lease_t *lease = store->first_waiting->next; lease != NULL; lease = lease->next) {
        last = lease->found_count > 0 ? lease : last;
    }
    if (last == NULL) {
        return false;
    }
    for (uint32_t block = last->found_count; block-- > 0;) {
        kv_object_release(store, last->objects[block]);
        last->objects[block] = KV_OBJECT_NONE;
    }
    last->yielded = true;
    last->found_before = last->found_count;
    last->found_count = last->sealed_count = 0;
    return true;
}

/* As much of what it had as is still there. */
static void match_again(kvist_lease_t *lease)
{
    kvist_store_t *store = lease->store;
    kvist_miss_t miss = lease->match.miss;
    lease->yielded = false;
    lease->match = (kvist_match_t){0};
    lease->last_key = lease->name_space;
    find_prefix(store, lease, lease->found_before);
    lease->match.block_count = lease->sealed_count = lease->found_count;
    if (lease->found_count == lease->found_before) {
        lease->match.miss = miss;
    } else {
        store->stats.miss_count[lease->match.miss]++;
    }
}

/* Grants in order of arrival; the first that does not fit makes room and holds up the rest. */
void kv_lease_pump(kvist_store_t *store)
{
    while (store->first_waiting != NULL) {
        kvist_lease_t *lease = store->first_waiting;
        if (lease->yielded) {
            match_again(lease);
        }
        shorten_at_dead(lease);
        uint32_t needed = slots_needed(lease), available = store->device_pool.free_count;
        bool coming = needed > available && kv_evict_device(store, needed - available);
        if (needed > store->device_pool.free_count) {
            if (!coming && yield_one(store)) {
                continue;
            }
            break;
        }
        dequeue(lease);
        grant(lease);
    }
    if (store->first_waiting != NULL) {
        expire(store, store->clock->monotonic_ns(store->clock));
    }
}

uint64_t kv_lease_next_deadline(const kvist_store_t *store)
{
    uint64_t next = UINT64_MAX;
    for (const kvist_lease_t *lease = store->first_waiting; lease != NULL; lease = lease->next) {
        next = lease->deadline_ns < next ? lease->deadline_ns : next;
    }
    return next;
}

void kv_lease_run_callbacks(kvist_store_t *store)
{
    while (store->first_ready != NULL) {
        kvist_lease_t *lease = store->first_ready;
        store->first_ready = lease->next;
        if (store->first_ready == NULL) {
            store->last_ready = NULL;
        }
        if (lease->released) {
            lease->done(lease->context, lease, KV_CANCELLED, &lease->match);
            free_lease(lease);
            continue;
        }
        lease->state = lease->status == KV_OK ? READY : FAILED;
        kvist_match_t match = lease->match;
        lease->done(lease->context, lease, lease->status, &match);
    }
}

/* ---- the block table ---- */

const uint32_t *kvist_lease_slots(const kvist_lease_t *lease)
{
    return lease->slots;
}

uint32_t kvist_lease_sealed_count(const kvist_lease_t *lease)
{
    return lease->sealed_count;
}

const char *kvist_lease_arithmetic(const kvist_lease_t *lease, uint32_t block)
{
    const kvist_store_t *store = lease->store;
    KV_CHECK(block < lease->sealed_count);
    uint32_t number = lease->objects[block];
    if (number == KV_OBJECT_NONE) {
        return "";
    }
    const kv_family_t *family = kv_object_family(store, kv_table_at(store->table, number));
    return kv_names_at(&store->arithmetics, family->arithmetic);
}

/* ---- seal ---- */

/* The lease's private slot becomes the object's on the device. */
static void adopt_slot(kvist_store_t *store, uint32_t number, uint32_t slot, const uint32_t *tokens)
{
    kv_table_at(store->table, number)->device_slot = slot;
    kv_pool_set_object(&store->device_pool, slot, number);
    memcpy(kv_pool_tokens(&store->device_pool, slot), tokens, store->block_tokens * sizeof *tokens);
}

static uint32_t new_object(kvist_lease_t *lease, const kvist_key_t *key, uint32_t parent,
    uint32_t family, uint32_t slot, const uint32_t *tokens)
{
    kvist_store_t *store = lease->store;
    if (lease->sealed_count >= KVIST_CHAIN_BLOCKS_MAX) {
        return KV_OBJECT_NONE;
    }
    uint32_t number = kv_table_insert(store->table, key, parent);
    if (number == KV_OBJECT_NONE) {
        return KV_OBJECT_NONE;
    }
    kv_object_t *object = kv_table_at(store->table, number);
    object->position = lease->sealed_count;
    object->family = (uint16_t)family;
    object->used_s = kv_store_now_s(store);
    store->stats.unsaved_objects++;
    store->stats.tiers[KVIST_TIER_DEVICE].written_bytes += store->groups[0].layout.object_bytes;
    adopt_slot(store, number, slot, tokens);
    return number;
}

/* Another sequence stored the same block before. If it is on the device, this one's slot stays
 * private; else the slot becomes the object's, which keeps the device's chains whole. Bytes made by
 * other kernels replace the copies below. */
static void meet_object(
    kvist_store_t *store, uint32_t number, uint32_t family, uint32_t slot, const uint32_t *tokens)
{
    kv_object_t *object = kv_table_at(store->table, number);
    const kv_family_t *mine =
        (const kv_family_t *)(const void *)kv_names_at(&store->families, family);
    if (object->device_slot != KV_SLOT_NONE) {
        return;
    }
    bool same = kv_object_family(store, object)->arithmetic == mine->arithmetic;
    if (!same && (object->flags & KV_OBJECT_BUSY) != 0) {
        return;
    }
    adopt_slot(store, number, slot, tokens);
    if (!same) {
        if (kv_object_on_host(object)) {
            kv_object_leave_host(store, number);
        }
        if (kv_object_on_disk(object)) {
            kv_object_leave_disk(store, number);
        }
        object->family = (uint16_t)family;
    }
}

/* The family of what the lease stores, made by these kernels. */
static int family_of(const kvist_lease_t *lease, const char *arithmetic)
{
    kvist_store_t *store = lease->store;
    kv_record_t like = {.name_space = lease->name_space};
    strncpy(like.arithmetic, arithmetic != NULL ? arithmetic : "", sizeof like.arithmetic - 1);
    memcpy(like.origin, store->origin, sizeof like.origin);
    return kv_family_number(store, &like);
}

/* The object for the next block, held, or KV_OBJECT_NONE where it cannot be stored. */
static uint32_t seal_object(kvist_lease_t *lease, const uint32_t *tokens, const char *arithmetic)
{
    kvist_store_t *store = lease->store;
    uint32_t block = lease->sealed_count, slot = lease->slots[block];
    uint32_t parent = block > 0 ? lease->objects[block - 1] : KV_OBJECT_NONE;
    kvist_key_t key = kv_identity_block_key(&lease->last_key, tokens, store->block_tokens);
    lease->last_key = key;
    if (block > 0 && (parent == KV_OBJECT_NONE || gone(lease, block - 1))) {
        return KV_OBJECT_NONE; /* without its parent it could never be found */
    }
    int family = family_of(lease, arithmetic);
    if (family == KV_NAMES_FULL) {
        return KV_OBJECT_NONE;
    }
    uint32_t number = kv_table_find(store->table, &key);
    if (number != KV_OBJECT_NONE &&
        !tokens_agree(store, kv_table_at(store->table, number), tokens)) {
        return KV_OBJECT_NONE;
    }
    if (number == KV_OBJECT_NONE) {
        number = new_object(lease, &key, parent, (uint32_t)family, slot, tokens);
    } else {
        meet_object(store, number, (uint32_t)family, slot, tokens);
    }
    if (number != KV_OBJECT_NONE) {
        kv_object_hold(store, number);
    }
    return number;
}

kv_status_t kvist_lease_seal(kvist_lease_t *lease, const uint32_t *tokens, const char *arithmetic)
{
    kvist_store_t *store = lease->store;
    if (lease->state != READY || lease->sealed_count >= lease->slot_count) {
        return KV_INVALID;
    }
    if (arithmetic != NULL && strlen(arithmetic) >= KV_ARITHMETIC_BYTES) {
        return KV_INVALID;
    }
    uint32_t number = KV_OBJECT_NONE;
    if (lease->storing) {
        number = seal_object(lease, tokens, arithmetic);
    }
    lease->objects[lease->sealed_count++] = number;
    if (number != KV_OBJECT_NONE && store->persist == KVIST_PERSIST_EAGER &&
        kv_persist_usable(store)) {
        kv_persist_queue(store, number);
    }
    return KV_OK;
}

/* ---- release ---- */

void kvist_lease_release(kvist_lease_t *lease)
{
    kvist_store_t *store = lease->store;
    KV_CHECK(!lease->released);
    lease->released = true;
    switch (lease->state) {
    case WAITING:
        dequeue(lease);
        give_back(lease);
        answer(lease, KV_CANCELLED);
        break;
    case ANSWERED:
        give_back(lease); /* its callback, still to run, says cancelled */
        break;
    case LOADING:
        break; /* the end of its loads gives everything back */
    case MATCHED:
    case READY:
    case FAILED:
        give_back(lease);
        free_lease(lease);
        break;
    }
    kv_store_kick(store);
}
