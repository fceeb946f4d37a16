#include "kvstore/objects/pool.h"

#include "base/check.h"
#include "base/memory.h"

#include <stdlib.h>

void kv_pool_init(kv_pool_t *pool, uint32_t slot_count, uint32_t block_tokens, uint32_t unit_count,
    uint32_t *tokens, uint64_t *checksums)
{
    *pool = (kv_pool_t){
        .slots = kv_allocate_array(slot_count, sizeof(kv_slot_t)),
        .tokens = tokens,
        .checksums = checksums,
        .slot_count = slot_count,
        .block_tokens = block_tokens,
        .unit_count = unit_count,
        .free_head = KV_SLOT_NONE,
    };
    for (int i = 0; i < KVIST_PRIORITY_COUNT; i++) {
        pool->used[i] = (kv_used_list_t){KV_SLOT_NONE, KV_SLOT_NONE};
    }
}

void kv_pool_destroy(kv_pool_t *pool)
{
    free(pool->slots);
    *pool = (kv_pool_t){0};
}

void kv_pool_extend(kv_pool_t *pool, uint32_t ready_count)
{
    KV_CHECK(ready_count >= pool->ready_count && ready_count <= pool->slot_count);
    for (uint32_t slot = ready_count; slot-- > pool->ready_count;) {
        pool->slots[slot].older = pool->free_head;
        pool->free_head = slot;
    }
    pool->free_count += ready_count - pool->ready_count;
    pool->ready_count = ready_count;
}

uint32_t kv_pool_take(kv_pool_t *pool)
{
    uint32_t slot = pool->free_head;
    if (slot != KV_SLOT_NONE) {
        KV_CHECK(pool->slots[slot].state == KV_SLOT_FREE);
        pool->free_head = pool->slots[slot].older;
        pool->free_count--;
        pool->slots[slot].state = KV_SLOT_PRIVATE;
    }
    return slot;
}

void kv_pool_give(kv_pool_t *pool, uint32_t slot)
{
    kv_slot_t *entry = &pool->slots[slot];
    KV_CHECK(entry->state != KV_SLOT_FREE);
    kv_pool_unlist(pool, slot);
    if (entry->state == KV_SLOT_OBJECT) {
        pool->object_count--;
    }
    entry->state = KV_SLOT_FREE;
    entry->older = pool->free_head;
    pool->free_head = slot;
    pool->free_count++;
}

void kv_pool_set_loading(kv_pool_t *pool, uint32_t slot, uint32_t object)
{
    KV_CHECK(pool->slots[slot].state == KV_SLOT_PRIVATE);
    pool->slots[slot].state = KV_SLOT_LOADING;
    pool->slots[slot].object = object;
}

void kv_pool_set_object(kv_pool_t *pool, uint32_t slot, uint32_t object)
{
    kv_slot_t *entry = &pool->slots[slot];
    KV_CHECK(entry->state == KV_SLOT_PRIVATE || entry->state == KV_SLOT_LOADING);
    entry->state = KV_SLOT_OBJECT;
    entry->object = object;
    pool->object_count++;
}

void kv_pool_list(kv_pool_t *pool, uint32_t slot, kvist_priority_t priority)
{
    kv_slot_t *entry = &pool->slots[slot];
    kv_used_list_t *list = &pool->used[priority];
    KV_CHECK(entry->state == KV_SLOT_OBJECT);
    kv_pool_unlist(pool, slot);
    entry->listed = true;
    entry->list = (uint8_t)priority;
    entry->newer = KV_SLOT_NONE;
    entry->older = list->newest;
    if (list->newest != KV_SLOT_NONE) {
        pool->slots[list->newest].newer = slot;
    } else {
        list->oldest = slot;
    }
    list->newest = slot;
}

void kv_pool_unlist(kv_pool_t *pool, uint32_t slot)
{
    kv_slot_t *entry = &pool->slots[slot];
    kv_used_list_t *list = &pool->used[entry->list];
    if (!entry->listed) {
        return;
    }
    entry->listed = false;
    if (entry->newer != KV_SLOT_NONE) {
        pool->slots[entry->newer].older = entry->older;
    } else {
        list->newest = entry->older;
    }
    if (entry->older != KV_SLOT_NONE) {
        pool->slots[entry->older].newer = entry->newer;
    } else {
        list->oldest = entry->newer;
    }
}

/* The oldest of the lists up to `priority`. */
static uint32_t oldest_from(const kv_pool_t *pool, int priority)
{
    for (; priority >= 0; priority--) {
        if (pool->used[priority].oldest != KV_SLOT_NONE) {
            return pool->used[priority].oldest;
        }
    }
    return KV_SLOT_NONE;
}

uint32_t kv_pool_first(const kv_pool_t *pool)
{
    return oldest_from(pool, KVIST_PRIORITY_COUNT - 1);
}

uint32_t kv_pool_next(const kv_pool_t *pool, uint32_t slot)
{
    const kv_slot_t *entry = &pool->slots[slot];
    return entry->newer != KV_SLOT_NONE ? entry->newer : oldest_from(pool, entry->list - 1);
}
