/* The index' twin in memory: a sorted array would do, a list does: tests keep few objects. */
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

static kv_status_t memory_write(
    kv_index_t *index, const kv_index_batch_t *batch, bool sync, kv_error_t *error)
{
    (void)sync;
    (void)error;
    kv_index_kept_t *kept = ((memory_index_t *)index)->kept;
    kv_index_change_t change;
    for (size_t cursor = 0; kv_index_batch_next(batch, &cursor, &change);) {
        entry_t **link = find(kept, &change);
        if (*link != NULL) {
            remove_entry(link);
        }
        if (change.is_put) {
            entry_t *entry = kv_allocate(sizeof *entry);
            *entry = (entry_t){
                .next = kept->first,
                .key = duplicate(change.key, change.key_bytes),
                .value = duplicate(change.value, change.value_bytes),
                .key_bytes = change.key_bytes,
                .value_bytes = change.value_bytes,
            };
            kept->first = entry;
        }
    }
    return KV_OK;
}

static kv_status_t memory_iterate(
    kv_index_t *index, kv_index_visit_t visit, void *context, kv_error_t *error)
{
    (void)error;
    for (entry_t *entry = ((memory_index_t *)index)->kept->first; entry != NULL;
         entry = entry->next) {
        visit(context, entry->key, entry->key_bytes, entry->value, entry->value_bytes);
    }
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

void kv_index_memory_forget(kv_index_kept_t **kept)
{
    if (*kept != NULL) {
        while ((*kept)->first != NULL) {
            remove_entry(&(*kept)->first);
        }
        free(*kept);
        *kept = NULL;
    }
}
