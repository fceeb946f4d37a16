/* The list of stored contexts. */
#include "kvstore/store_internal.h"

#include "base/memory.h"
#include "kvstore/embedded.h"

#include <stdlib.h>
#include <string.h>

/* A block of the spine that no other one goes on from. */
static bool is_leaf(const kvist_store_t *store, const kv_object_t *object)
{
    if ((object->flags & (KV_OBJECT_USED | KV_OBJECT_DEAD)) != KV_OBJECT_USED ||
        kv_object_family(store, object)->group > 0) {
        return false;
    }
    for (uint32_t at = object->first_child; at != KV_OBJECT_NONE;) {
        const kv_object_t *child = kv_table_at(store->table, at);
        if (kv_object_family(store, child)->group == 0) {
            return false;
        }
        at = child->next_sibling;
    }
    return true;
}

static uint64_t block_bytes(const kvist_store_t *store)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < store->group_count; i++) {
        bytes += store->groups[i].layout.object_bytes;
    }
    return bytes;
}

static void describe(const kvist_store_t *store, uint32_t leaf, kvist_context_t *entry)
{
    const kv_object_t *object = kv_table_at(store->table, leaf);
    kv_record_t record;
    kv_object_describe(store, object, &record);
    *entry = (kvist_context_t){
        .key = object->key,
        .name_space = record.name_space,
        .token_count = ((uint64_t)object->position + 1) * store->block_tokens,
        .bytes = ((uint64_t)object->position + 1) * block_bytes(store),
        .used_unix_ns = record.used_unix_ns,
        .expires_unix_ns = (uint64_t)object->expires_s * KV_NS_PER_S,
        .pin_until_unix_ns = (uint64_t)object->pin_until_s * KV_NS_PER_S,
        .priority = (kvist_priority_t)record.priority,
    };
    memcpy(entry->origin, record.origin, KV_ORIGIN_BYTES);
    memcpy(entry->tenant, record.tenant, KV_TENANT_BYTES);
    for (uint32_t at = leaf; at != KV_OBJECT_NONE; at = kv_table_at(store->table, at)->parent) {
        kvist_tier_t tier = kv_object_tier(store, kv_table_at(store->table, at));
        entry->tier = tier > entry->tier ? tier : entry->tier;
    }
}

typedef struct {
    uint32_t used_s, number;
} leaf_t;

static int newest_first(const void *left, const void *right)
{
    const leaf_t *a = left, *b = right;
    if (a->used_s != b->used_s) {
        return a->used_s > b->used_s ? -1 : 1;
    }
    return a->number > b->number ? -1 : 1;
}

void kv_embedded_store_list(const kvist_store_t *store, size_t count_max,
    void (*visit)(void *context, const kvist_context_t *entry), void *context)
{
    size_t count = 0;
    leaf_t *leaves = kv_allocate_array(kv_table_count(store->table), sizeof *leaves);
    for (uint32_t number = 0; number < kv_table_bound(store->table); number++) {
        const kv_object_t *object = kv_table_at(store->table, number);
        if (is_leaf(store, object)) {
            leaves[count++] = (leaf_t){object->used_s, number};
        }
    }
    qsort(leaves, count, sizeof *leaves, newest_first);
    for (size_t i = 0; i < count && i < count_max; i++) {
        kvist_context_t entry;
        describe(store, leaves[i].number, &entry);
        visit(context, &entry);
    }
    free(leaves);
}
