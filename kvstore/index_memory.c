/* The index' twin in memory, for tests: entries that are durable, and the batches that followed the
 * last synced one. A list does: tests keep few objects. */
#include "kvstore/index.h"

#include "base/memory.h"

#include <stdlib.h>
#include <string.h>

typedef struct entry {
    struct entry *next;
    uint8_t *key, *value;
    size_t key_bytes, value_bytes;
} entry_t;

struct kv_index_kept {
    entry_t *first;
    kv_index_batch_t *unsynced;
    uint32_t unsynced_count;
    kv_index_watch_t watch;
};

typedef struct {
    kv_index_t index; /* first: the public object */
    kv_index_kept_t *kept;
} memory_index_t;

static entry_t **find(kv_index_kept_t *kept, const kv_index_change_t *change)
{
    entry_t **link = &kept->first;
    while (*link != NULL && ((*link)->key_bytes != change->key_bytes ||
                                memcmp((*link)->key, change->key, change->key_bytes) != 0)) {
        link = &(*link)->next;
    }
    return link;
}

static void remove_entry(entry_t **link)
{
    entry_t *entry = *link;
    *link = entry->next;
    free(entry->key);
    free(entry->value);
    free(entry);
}

static uint8_t *duplicate(const uint8_t *bytes, size_t count)
{
    uint8_t *copy = kv_allocate(count);
    memcpy(copy, bytes, count);
    return copy;
}

static void put_entry(kv_index_kept_t *kept, const uint8_t *key, size_t key_bytes,
    const uint8_t *value, size_t value_bytes)
{
    entry_t *entry = kv_allocate(sizeof *entry);
    *entry = (entry_t){
        .next = kept->first,
        .key = duplicate(key, key_bytes),
        .value = duplicate(value, value_bytes),
        .key_bytes = key_bytes,
        .value_bytes = value_bytes,
    };
    kept->first = entry;
}

static void apply(kv_index_kept_t *kept, const kv_index_batch_t *batch)
{
    kv_index_change_t change;
    for (size_t cursor = 0; kv_index_batch_next(batch, &cursor, &change);) {
        entry_t **link = find(kept, &change);
        if (*link != NULL) {
            remove_entry(link);
        }
        if (change.is_put) {
            put_entry(kept, change.key, change.key_bytes, change.value, change.value_bytes);
        }
    }
}

static void sync_batches(kv_index_kept_t *kept)
{
    for (uint32_t i = 0; i < kept->unsynced_count; i++) {
        apply(kept, &kept->unsynced[i]);
        kv_index_batch_release(&kept->unsynced[i]);
    }
    kept->unsynced_count = 0;
}

static kv_status_t memory_write(
    kv_index_t *index, const kv_index_batch_t *batch, bool sync, kv_error_t *error)
{
    kv_index_kept_t *kept = ((memory_index_t *)index)->kept;
    kv_status_t status =
        kept->watch.before != NULL ? kept->watch.before(kept->watch.context, sync) : KV_OK;
    if (status != KV_OK) {
        return kv_fail(error, status, "the index was made to fail");
    }
    kept->unsynced =
        kv_reallocate(kept->unsynced, kept->unsynced_count + 1, sizeof *kept->unsynced);
    kept->unsynced[kept->unsynced_count++] = (kv_index_batch_t){
        .bytes = duplicate(batch->bytes, batch->used),
        .used = batch->used,
        .capacity = batch->used,
        .count = batch->count,
    };
    if (sync) {
        sync_batches(kept);
    }
    return KV_OK;
}

static kv_index_kept_t *copy_durable(const kv_index_kept_t *kept)
{
    kv_index_kept_t *copy = kv_allocate(sizeof *copy);
    for (const entry_t *entry = kept->first; entry != NULL; entry = entry->next) {
        put_entry(copy, entry->key, entry->key_bytes, entry->value, entry->value_bytes);
    }
    return copy;
}

static kv_status_t memory_iterate(
    kv_index_t *index, kv_index_visit_t visit, void *context, kv_error_t *error)
{
    (void)error;
    const kv_index_kept_t *kept = ((memory_index_t *)index)->kept;
    kv_index_kept_t *all = copy_durable(kept);
    for (uint32_t i = 0; i < kept->unsynced_count; i++) {
        apply(all, &kept->unsynced[i]);
    }
    for (entry_t *entry = all->first; entry != NULL; entry = entry->next) {
        visit(context, entry->key, entry->key_bytes, entry->value, entry->value_bytes);
    }
    kv_index_memory_forget(&all);
    return KV_OK;
}

static void memory_close(kv_index_t *index)
{
    free(index);
}

static const kv_index_ops_t MEMORY_OPS = {memory_write, memory_iterate, memory_close};

kv_index_t *kv_index_memory_open(kv_index_kept_t **kept, bool *made_out)
{
    *made_out = *kept == NULL;
    if (*made_out) {
        *kept = kv_allocate(sizeof **kept);
    }
    memory_index_t *index = kv_allocate(sizeof *index);
    index->index.ops = &MEMORY_OPS;
    index->kept = *kept;
    return &index->index;
}

void kv_index_memory_watch(kv_index_kept_t *kept, kv_index_watch_t watch)
{
    kept->watch = watch;
}

uint32_t kv_index_memory_unsynced(const kv_index_kept_t *kept)
{
    return kept->unsynced_count;
}

kv_index_kept_t *kv_index_memory_after_loss(const kv_index_kept_t *kept, const bool *keep)
{
    kv_index_kept_t *left = copy_durable(kept);
    for (uint32_t i = 0; i < kept->unsynced_count; i++) {
        if (keep[i]) {
            apply(left, &kept->unsynced[i]);
        }
    }
    return left;
}

void kv_index_memory_forget(kv_index_kept_t **kept)
{
    if (*kept != NULL) {
        sync_batches(*kept);
        while ((*kept)->first != NULL) {
            remove_entry(&(*kept)->first);
        }
        free((*kept)->unsynced);
        free(*kept);
        *kept = NULL;
    }
}
