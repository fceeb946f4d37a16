/* Eviction: device -> host -> disk, in the order that the pools keep: leaves before their parents,
 * background before batch before interactive, each class as the policy ranks it.
 *
 * A copy that another tier has is simply let go; the last copy is first brought down a tier, and
 * where there is none below, the object is dropped with whatever still descends from it, unless it
 * is pinned. While a copy is brought down the walk goes on with what it goes on from: the leaves of
 * a chain leave together. */
#include "kvstore/store_internal.h"

#include "base/check.h"
#include "base/memory.h"
#include "kvstore/tenants.h"

#include <stdlib.h>
#include <string.h>

enum {
    LOOK_AT_MAX = 256,      /* bounds the walk past what is busy */
    OWN_SHARE_PER_MILLE = 8 /* of the tier, that a class may take from better ones */
};

typedef struct {
    kv_task_t task;
    uint32_t object, device_slot, host_slot;
    kv_status_t status;
} move_t;

/* Only group 0 has device slots. */
static kv_store_group_t *device_group(kvist_store_t *store)
{
    return &store->groups[0];
}

static void copy_to_host(kv_task_t *task)
{
    move_t *move = (move_t *)task;
    kvist_store_t *store = task->store;
    const kv_store_group_t *group = device_group(store);
    move->status =
        kv_device_slot_out(store, move->device_slot, kv_group_host_bytes(group, move->host_slot),
            kv_pool_checksums(&group->host_pool, move->host_slot));
    kv_store_finish(task);
}

/* What a device cannot give any more is lost, with what goes on from it. */
static void move_failed(kvist_store_t *store, const move_t *move)
{
    kv_object_t *object = kv_table_at(store->table, move->object);
    kv_pool_give(&device_group(store)->host_pool, move->host_slot);
    if ((object->flags & KV_OBJECT_DEAD) != 0) {
        kv_object_settle(store, move->object);
        return;
    }
    if (object->reference_count > 0) {
        return;
    }
    kv_object_list(store, move->object);
    if ((object->flags & KV_OBJECT_BUSY) == 0) {
        if (kv_object_on_disk(object)) {
            kv_object_leave_device(store, move->object);
        } else {
            kv_object_drop(store, move->object, KV_GONE_DAMAGED);
        }
    }
}

static void move_done(kv_task_t *task)
{
    move_t *move = (move_t *)task;
    kvist_store_t *store = task->store;
    kv_object_t *object = kv_table_at(store->table, move->object);
    object->flags &= ~KV_OBJECT_MOVING;
    store->moves_out--;
    if (move->status != KV_OK) {
        move_failed(store, move);
        free(move);
        return;
    }
    kv_object_enter_host(store, move->object, move->host_slot);
    if ((object->flags & KV_OBJECT_DEAD) != 0) {
        kv_object_settle(store, move->object);
        free(move);
        return;
    }
    store->stats.tiers[KVIST_TIER_HOST].written_bytes += device_group(store)->layout.object_bytes;
    kv_object_expect(store, move->object, store->device_pool.about[move->device_slot].expected_s);
    if (object->reference_count == 0) {
        kv_object_list(store, move->object);
        if ((object->flags & KV_OBJECT_BUSY) == 0) {
            kv_object_note_victim(store, move->object, KVIST_TIER_DEVICE);
            kv_object_leave_device(store, move->object);
        }
    }
    free(move);
}

static void start_move(kvist_store_t *store, uint32_t number, uint32_t host_slot)
{
    kv_object_t *object = kv_table_at(store->table, number);
    move_t *move = kv_allocate(sizeof *move);
    *move = (move_t){
        .task = {.work = copy_to_host, .done = move_done, .store = store},
        .object = number,
        .device_slot = object->device_slot,
        .host_slot = host_slot,
    };
    memcpy(kv_pool_words(&device_group(store)->host_pool, host_slot),
        kv_pool_words(&store->device_pool, object->device_slot),
        store->block_words * sizeof(uint32_t));
    object->flags |= KV_OBJECT_MOVING;
    store->moves_out++;
    kv_store_submit(store, &move->task);
}

typedef enum { FREED, COMING, STUCK, PINNED } outcome_t;

/* The object goes with all that goes on from it: nothing below takes its last copy. */
static outcome_t drop_victim(kvist_store_t *store, uint32_t number, kvist_tier_t tier)
{
    kv_object_note_victim(store, number, tier);
    kv_object_drop(
        store, number, tier == KVIST_TIER_DEVICE ? KV_GONE_FROM_DEVICE : KV_GONE_FROM_HOST);
    return FREED;
}

/* One step for a candidate of the host tier. */
static outcome_t evict_from_host(kvist_store_t *store, uint32_t number, uint32_t now_s)
{
    const kv_object_t *object = kv_table_at(store->table, number);
    if ((object->flags & KV_OBJECT_BUSY) != 0) {
        return COMING;
    }
    if (kv_object_on_device(store, object) || kv_object_on_disk(object)) {
        kv_object_note_victim(store, number, KVIST_TIER_HOST);
        kv_object_leave_host(store, number);
        return FREED;
    }
    if (kv_persist_usable(store) && kv_persist_queue(store, number)) {
        return COMING;
    }
    if (kv_populate_coming(kv_object_group(store, object))) {
        return STUCK; /* what would be lost for good waits for the next chunk's room */
    }
    return object->pin_until_s > now_s ? PINNED : drop_victim(store, number, KVIST_TIER_HOST);
}

/* The best class that may be evicted for an object of this one: its own. What is background work
 * to others must not push their contexts out, also not while its own blocks are on their way to
 * disk; but a few slots it always has, to pass through. */
static kvist_priority_t best_to_evict(
    const uint32_t *class_counts, uint64_t slot_count, uint8_t priority)
{
    uint64_t own = 0, share = slot_count * OWN_SHARE_PER_MILLE / 1000;
    for (int at = priority; at < KVIST_PRIORITY_COUNT; at++) {
        own += class_counts[at];
    }
    return own < (share > 0 ? share : 1) ? KVIST_PRIORITY_INTERACTIVE : (kvist_priority_t)priority;
}

/* The next candidate of the walk goes, or is on its way. false: there is none, or it must stay. */
static bool evict_next(kvist_store_t *store, kv_pool_walk_t *walk, bool *coming)
{
    uint32_t at = kv_pool_step(walk);
    if (at == KV_SLOT_NONE) {
        return false;
    }
    uint32_t number = walk->pool->slots[at].object;
    walk->also = kv_object_parent_slot(store, number, KVIST_TIER_HOST);
    outcome_t outcome = evict_from_host(store, number, kv_store_now_s(store));
    if (outcome == COMING) {
        kv_object_set_going(store, number, KVIST_TIER_HOST);
        *coming = true;
    } else if (outcome == PINNED) {
        kv_pool_promise(walk->pool, at, kv_table_at(store->table, number)->pin_until_s);
    }
    return outcome != STUCK;
}

/* A tenant at its quota gives up what is its own, until there is room in that for one more. */
static bool make_own_room(kvist_store_t *store, const kv_family_t *family, bool *coming)
{
    const kv_tenant_t *tenant = kv_tenants_at(store, family->tenant);
    const kv_store_group_t *group = &store->groups[family->group];
    kv_pool_t *pool = &store->groups[family->group].host_pool;
    uint64_t slot_count = tenant->host_quota_bytes / group->layout.object_bytes;
    kvist_priority_t best = family->tenant < pool->tenant_count
                                ? best_to_evict(pool->tenants[family->tenant].class_counts,
                                      slot_count, family->priority)
                                : KVIST_PRIORITY_INTERACTIVE;
    kv_pool_walk_t walk = kv_pool_walk(pool, family->tenant, best);
    uint32_t looked = 0;
    while (kv_tenants_host_full(store, family) && looked++ < LOOK_AT_MAX &&
           evict_next(store, &walk, coming)) {
    }
    return !kv_tenants_host_full(store, family);
}

bool kv_evict_own(kvist_store_t *store, uint32_t group, uint32_t tenant)
{
    const kv_tenant_t *account = kv_tenants_at(store, tenant);
    kv_pool_t *pool = &store->groups[group].host_pool;
    if (pool->slot_count == 0) {
        return false;
    }
    kv_pool_walk_t walk = kv_pool_walk(pool, tenant, KVIST_PRIORITY_INTERACTIVE);
    uint64_t quota = account->host_quota_bytes;
    uint32_t looked = 0;
    bool coming;
    while (kv_tenants_host_bytes(store, tenant) > quota && looked++ < LOOK_AT_MAX &&
           evict_next(store, &walk, &coming)) {
    }
    return kv_tenants_host_bytes(store, tenant) > quota;
}

uint32_t kv_evict_host(kvist_store_t *store, const kv_family_t *family, bool *coming_out)
{
    kv_pool_t *pool = &store->groups[family->group].host_pool;
    *coming_out = false;
    if (pool->slot_count == 0) {
        return KV_SLOT_NONE;
    }
    kv_pool_end_promises(pool, kv_store_now_s(store));
    if (kv_tenants_host_full(store, family) && !make_own_room(store, family, coming_out)) {
        return KV_SLOT_NONE;
    }
    if (pool->free_count == 0) {
        *coming_out = kv_populate_coming(&store->groups[family->group]);
        kvist_priority_t best =
            best_to_evict(pool->class_counts, pool->slot_count, family->priority);
        kv_pool_walk_t walk = kv_pool_walk(pool, KV_TENANT_ANY, best);
        uint32_t looked = 0;
        while (pool->free_count == 0 && looked++ < LOOK_AT_MAX &&
               evict_next(store, &walk, coming_out)) {
        }
    }
    uint32_t slot = kv_pool_take(pool);
    if (slot != KV_SLOT_NONE) {
        kv_pool_reserve(pool, slot, family->tenant);
    }
    return slot;
}

static outcome_t leave_device(kvist_store_t *store, uint32_t number)
{
    kv_object_note_victim(store, number, KVIST_TIER_DEVICE);
    kv_object_leave_device(store, number);
    return FREED;
}

/* One step for a candidate of the device tier. What a GPU has is copied to host memory though the
 * disk holds it: from there it comes back by layers and an order of magnitude sooner. */
static outcome_t evict_from_device(kvist_store_t *store, uint32_t number)
{
    kv_object_t *object = kv_table_at(store->table, number);
    if ((object->flags & KV_OBJECT_BUSY) != 0) {
        return COMING;
    }
    const bool on_disk = kv_object_on_disk(object);
    if (kv_object_on_host(object) || (on_disk && store->device->ops->host)) {
        return leave_device(store, number);
    }
    if (device_group(store)->host_pool.slot_count > 0) {
        bool coming;
        uint32_t host_slot = kv_evict_host(store, kv_object_family(store, object), &coming);
        /* Making room may have dropped this very object with its ancestors. */
        bool gone = (object->flags & (KV_OBJECT_USED | KV_OBJECT_DEAD)) != KV_OBJECT_USED;
        if (gone && host_slot != KV_SLOT_NONE) {
            kv_pool_give(&device_group(store)->host_pool, host_slot);
        }
        if (gone) {
            return FREED;
        }
        if (host_slot != KV_SLOT_NONE) {
            start_move(store, number, host_slot);
            return COMING;
        }
        if (coming && !on_disk) {
            return STUCK;
        }
    }
    if (on_disk) {
        return leave_device(store, number);
    }
    if (kv_persist_usable(store) && kv_persist_queue(store, number)) {
        return COMING;
    }
    bool pinned = object->pin_until_s > kv_store_now_s(store);
    return pinned ? PINNED : drop_victim(store, number, KVIST_TIER_DEVICE);
}

bool kv_evict_device(kvist_store_t *store, uint32_t wanted)
{
    kv_pool_t *pool = &store->device_pool;
    uint32_t target = pool->free_count + wanted, coming = 0, at;
    kv_pool_end_promises(pool, kv_store_now_s(store));
    kv_pool_walk_t walk = kv_pool_walk(pool, KV_TENANT_ANY, KVIST_PRIORITY_INTERACTIVE);
    while (pool->free_count + coming < target && (at = kv_pool_step(&walk)) != KV_SLOT_NONE) {
        uint32_t number = pool->slots[at].object;
        walk.also = kv_object_parent_slot(store, number, KVIST_TIER_DEVICE);
        outcome_t outcome = evict_from_device(store, number);
        if (outcome == COMING) {
            kv_object_set_going(store, number, KVIST_TIER_DEVICE);
        } else if (outcome == PINNED) {
            kv_pool_promise(pool, at, kv_table_at(store->table, number)->pin_until_s);
        }
        coming += outcome == COMING || outcome == STUCK;
        if (outcome == STUCK) {
            break;
        }
    }
    return coming > 0;
}
