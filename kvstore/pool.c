#include "kvstore/pool.h"

#include "base/check.h"
#include "base/memory.h"

#include <stdlib.h>

void kv_pool_init(kv_pool_t *pool, uint32_t slot_count, uint32_t block_tokens)
{
    *pool = (kv_pool_t){
        .slots = kv_allocate_array(slot_count, sizeof(kv_slot_t)),
        .tokens = kv_allocate_array((size_t)slot_count * block_tokens, sizeof(uint32_t)),
        .slot_count = slot_count,
        .block_tokens = block_tokens,
        .free_count = slot_count,
        .free_head = KV_SLOT_NONE,
        .newest = KV_SLOT_NONE,
        .oldest = KV_SLOT_NONE,
    };
    for (uint32_t slot = slot_count; slot-- > 0;) {
        pool->slots[slot].older = pool->free_head;
        pool->free_head = slot;
    }
}

void kv_pool_destroy(kv_pool_t *pool)
{
    free(pool->slots);
    free(pool->tokens);
    *pool = (kv_pool_t){0};
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

void kv_pool_list(kv_pool_t *pool, uint32_t slot)
{
    kv_slot_t *entry = &pool->slots[slot];
    KV_CHECK(entry->state == KV_SLOT_OBJECT);
    kv_pool_unlist(pool, slot);
    entry->listed = true;
    entry->newer = KV_SLOT_NONE;
    entry->older = pool->newest;
    if (pool->newest != KV_SLOT_NONE) {
        pool->slots[pool->newest].newer = slot;
    } else {
        pool->oldest = slot;
    }
    pool->newest = slot;
}

void kv_pool_unlist(kv_pool_t *pool, uint32_t slot)
{
    kv_slot_t *entry = &pool->slots[slot];
    if (!entry->listed) {
        return;
    }
    entry->listed = false;
    if (entry->newer != KV_SLOT_NONE) {
        pool->slots[entry->newer].older = entry->older;
    } else {
        pool->newest = entry->older;
    }
    if (entry->older != KV_SLOT_NONE) {
        pool->slots[entry->older].newer = entry->newer;
    } else {
        pool->oldest = entry->newer;
    }
}
