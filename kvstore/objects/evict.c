/* Eviction: device -> host -> disk, what was used longest ago first, leaves before their parents.
 *
 * The used lists are in that order by themselves: a lease holds a whole prefix and gives it back
 * leaf first, so that a parent is never older than its child. A copy that another tier has is
 * simply let go; the last copy is first brought down a tier, and where there is none below, the
 * object is dropped with whatever still descends from it, unless it is pinned. */
#include "kvstore/store_internal.h"

#include "base/check.h"
#include "base/memory.h"

#include <stdlib.h>
#include <string.h>

enum { LOOK_AT_MAX = 256 }; /* bounds the walk past what is busy */

typedef struct {
    kv_task_t task;
    uint32_t object, device_slot, host_slot;
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
    char *to = kv_group_host_bytes(group, move->host_slot);
    store->device->ops->copy_out(store->device, to, kv_store_device_bytes(store, move->device_slot),
        group->layout.object_bytes);
    kv_layout_unit_checksums(
        &group->layout, to, kv_pool_checksums(&group->host_pool, move->host_slot));
    kv_store_finish(task);
}

static void move_done(kv_task_t *task)
{
    move_t *move = (move_t *)task;
    kvist_store_t *store = task->store;
    kv_object_t *object = kv_table_at(store->table, move->object);
    kv_store_group_t *group = device_group(store);
    object->flags &= ~KV_OBJECT_MOVING;
    store->moves_out--;
    kv_pool_set_object(&group->host_pool, move->host_slot, move->object);
    object->host_slot = move->host_slot;
    if ((object->flags & KV_OBJECT_DEAD) != 0) {
        kv_object_settle(store, move->object);
        free(move);
        return;
    }
    store->stats.tiers[KVIST_TIER_HOST].written_bytes += group->layout.object_bytes;
    kv_changes_note(store, object, KVIST_TIER_HOST, true);
    if (object->reference_count == 0) {
        kv_object_list(store, move->object);
        if ((object->flags & KV_OBJECT_BUSY) == 0) {
            kv_object_leave_device(store, move->object);
            store->stats.tiers[KVIST_TIER_DEVICE].evicted_objects++;
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
    memcpy(kv_pool_tokens(&device_group(store)->host_pool, host_slot),
        kv_pool_tokens(&store->device_pool, object->device_slot),
        store->block_tokens * sizeof(uint32_t));
    object->flags |= KV_OBJECT_MOVING;
    store->moves_out++;
    kv_store_submit(store, &move->task);
}

/* The next slot to look at; a drop may have freed the one that was next. */
static uint32_t go_on(const kv_pool_t *pool, uint32_t next)
{
    return next == KV_SLOT_NONE || pool->slots[next].listed ? next : kv_pool_first(pool);
}

uint32_t kv_evict_host(kvist_store_t *store, uint32_t group, bool *coming_out)
{
    kv_pool_t *pool = &store->groups[group].host_pool;
    uint32_t slot = kv_pool_take(pool);
    uint32_t at = slot == KV_SLOT_NONE ? kv_pool_first(pool) : KV_SLOT_NONE;
    uint32_t now_s = kv_store_now_s(store);
    *coming_out = false;
    for (uint32_t looked = 0; at != KV_SLOT_NONE && looked < LOOK_AT_MAX; looked++) {
        uint32_t number = pool->slots[at].object;
        uint32_t next = kv_pool_next(pool, at);
        kv_object_t *object = kv_table_at(store->table, number);
        if ((object->flags & KV_OBJECT_BUSY) != 0) {
            *coming_out = true;
        } else if (kv_object_on_device(store, object) || kv_object_on_disk(object)) {
            kv_object_leave_host(store, number);
            store->stats.tiers[KVIST_TIER_HOST].evicted_objects++;
        } else if (kv_persist_usable(store) && kv_persist_queue(store, number)) {
            *coming_out = true;
        } else if (object->pin_until_s <= now_s) {
            kv_object_drop(store, number);
            store->stats.tiers[KVIST_TIER_HOST].evicted_objects++;
        } else {
            kv_object_list(store, number); /* a promise: out of the way of the next search */
        }
        slot = kv_pool_take(pool);
        at = slot == KV_SLOT_NONE ? go_on(pool, next) : KV_SLOT_NONE;
    }
    return slot;
}

typedef enum { FREED, COMING, STUCK, PINNED } outcome_t;

/* One step for the object in a device slot that nobody holds. */
static outcome_t evict_one(kvist_store_t *store, uint32_t number)
{
    kv_object_t *object = kv_table_at(store->table, number);
    if ((object->flags & KV_OBJECT_BUSY) != 0) {
        return COMING;
    }
    if (kv_object_on_host(object) || kv_object_on_disk(object)) {
        kv_object_leave_device(store, number);
        store->stats.tiers[KVIST_TIER_DEVICE].evicted_objects++;
        return FREED;
    }
    if (device_group(store)->host_pool.slot_count > 0) {
        bool coming;
        uint32_t host_slot = kv_evict_host(store, 0, &coming);
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
        if (coming) {
            return STUCK;
        }
    }
    if (kv_persist_usable(store) && kv_persist_queue(store, number)) {
        return COMING;
    }
    if (object->pin_until_s > kv_store_now_s(store)) {
        return PINNED;
    }
    kv_object_drop(store, number);
    store->stats.tiers[KVIST_TIER_DEVICE].evicted_objects++;
    return FREED;
}

bool kv_evict_device(kvist_store_t *store, uint32_t wanted)
{
    kv_pool_t *pool = &store->device_pool;
    uint32_t target = pool->free_count + wanted, coming = 0;
    uint32_t at = kv_pool_first(pool);
    while (at != KV_SLOT_NONE && pool->free_count + coming < target) {
        uint32_t number = pool->slots[at].object, next = kv_pool_next(pool, at);
        outcome_t outcome = evict_one(store, number);
        coming += outcome == COMING || outcome == STUCK;
        if (outcome == STUCK) {
            break;
        }
        at = go_on(pool, next);
    }
    return coming > 0;
}
