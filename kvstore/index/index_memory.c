/* The index' twin in memory, for tests: entries that are durable, and the batches that followed the
 * last synced one. A list does: tests keep few objects. */
#include "kvstore/index/index.h"

#include "base/check.h"
#include "base/memory.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

typedef struct entry {
    struct entry *next;
    uint8_t *key, *value;
    size_t key_bytes, value_bytes;
} entry_t;

struct kv_index_kept {
    pthread_mutex_t mutex; /* guards what follows: a get may come while another thread writes */
    entry_t *first;
    kv_index_batch_t *unsynced;
    uint32_t unsynced_count;
    kv_index_watch_t watch;
};

typedef struct {
    kv_index_t index; /* first: the public object */
    kv_index_kept_t *kept;
} memory_index_t;

static kv_index_kept_t *make_kept(void)
{
    kv_index_kept_t *kept = kv_allocate(sizeof *kept);
    pthread_mutex_init(&kept->mutex, NULL);
    return kept;
}

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

static kv_status_t ask(const kv_index_kept_t *kept, bool sync, kv_error_t *error)
{
    kv_status_t status =
        kept->watch.before != NULL ? kept->watch.before(kept->watch.context, sync) : KV_OK;
    return status == KV_OK ? KV_OK : kv_fail(error, status, "the index was made to fail");
}

static kv_status_t memory_write(
    kv_index_t *index, const kv_index_batch_t *batch, bool sync, kv_error_t *error)
{
    kv_index_kept_t *kept = ((memory_index_t *)index)->kept;
    kv_status_t status = ask(kept, false, error);
    if (status != KV_OK) {
        return status;
    }
    pthread_mutex_lock(&kept->mutex);
    kept->unsynced =
        kv_reallocate(kept->unsynced, kept->unsynced_count + 1, sizeof *kept->unsynced);
    kept->unsynced[kept->unsynced_count++] = (kv_index_batch_t){
        .bytes = duplicate(batch->bytes, batch->used),
        .used = batch->used,
        .capacity = batch->used,
        .count = batch->count,
    };
    pthread_mutex_unlock(&kept->mutex);
    status = sync ? ask(kept, true, error) : KV_OK;
    if (sync && status == KV_OK) {
        pthread_mutex_lock(&kept->mutex);
        sync_batches(kept);
        pthread_mutex_unlock(&kept->mutex);
    }
    return status;
}

static kv_index_kept_t *copy_durable(const kv_index_kept_t *kept)
{
    kv_index_kept_t *copy = make_kept();
    for (const entry_t *entry = kept->first; entry != NULL; entry = entry->next) {
        put_entry(copy, entry->key, entry->key_bytes, entry->value, entry->value_bytes);
    }
    return copy;
}

struct kv_index_cursor {
    kv_index_kept_t *view; /* a copy */
    entry_t *next;
    uint8_t first;
};

static bool comes_before(const entry_t *left, const entry_t *right)
{
    size_t bytes = left->key_bytes < right->key_bytes ? left->key_bytes : right->key_bytes;
    int order = memcmp(left->key, right->key, bytes);
    return order != 0 ? order < 0 : left->key_bytes < right->key_bytes;
}

/* By insertion: tests keep few objects. */
static void sort_entries(kv_index_kept_t *kept)
{
    entry_t *sorted = NULL;
    while (kept->first != NULL) {
        entry_t *entry = kept->first, **link = &sorted;
        kept->first = entry->next;
        while (*link != NULL && comes_before(*link, entry)) {
            link = &(*link)->next;
        }
        entry->next = *link;
        *link = entry;
    }
    kept->first = sorted;
}

static kv_index_cursor_t *memory_open_cursor(kv_index_t *index, uint8_t first)
{
    kv_index_kept_t *kept = ((memory_index_t *)index)->kept;
    kv_index_cursor_t *cursor = kv_allocate(sizeof *cursor);
    pthread_mutex_lock(&kept->mutex);
    *cursor = (kv_index_cursor_t){.view = copy_durable(kept), .first = first};
    for (uint32_t i = 0; i < kept->unsynced_count; i++) {
        apply(cursor->view, &kept->unsynced[i]);
    }
    pthread_mutex_unlock(&kept->mutex);
    sort_entries(cursor->view);
    cursor->next = cursor->view->first;
    return cursor;
}

static kv_status_t memory_read(kv_index_t *index, kv_index_cursor_t *cursor, size_t count_max,
    kv_index_visit_t visit, void *context, bool *ended_out, kv_error_t *error)
{
    (void)index;
    (void)error;
    for (size_t count = 0; cursor->next != NULL && count < count_max;
         cursor->next = cursor->next->next) {
        const entry_t *entry = cursor->next;
        if (entry->key[0] == cursor->first) {
            visit(context, entry->key, entry->key_bytes, entry->value, entry->value_bytes);
            count++;
        }
    }
    *ended_out = cursor->next == NULL;
    return KV_OK;
}

static void memory_close_cursor(kv_index_t *index, kv_index_cursor_t *cursor)
{
    (void)index;
    kv_index_memory_forget(&cursor->view);
    free(cursor);
}

/* The last batch that changed the key tells, then what is durable. */
static const kv_index_change_t *look_up(
    kv_index_kept_t *kept, kv_index_change_t *change, kv_index_change_t *found_out)
{
    const kv_index_change_t *found = NULL;
    entry_t *entry = *find(kept, change);
    if (entry != NULL) {
        *found_out = (kv_index_change_t){
            true, entry->key, entry->value, entry->key_bytes, entry->value_bytes};
        found = found_out;
    }
    for (uint32_t i = 0; i < kept->unsynced_count; i++) {
        kv_index_change_t later;
        for (size_t cursor = 0; kv_index_batch_next(&kept->unsynced[i], &cursor, &later);) {
            if (later.key_bytes == change->key_bytes &&
                memcmp(later.key, change->key, later.key_bytes) == 0) {
                *found_out = later;
                found = later.is_put ? found_out : NULL;
            }
        }
    }
    return found;
}

static kv_status_t memory_get(kv_index_t *index, const uint8_t *keys, size_t key_bytes,
    size_t count, kv_index_visit_t visit, void *context, kv_error_t *error)
{
    (void)error;
    kv_index_kept_t *kept = ((memory_index_t *)index)->kept;
    pthread_mutex_lock(&kept->mutex);
    for (size_t i = 0; i < count; i++) {
        kv_index_change_t wanted = {.key = keys + i * key_bytes, .key_bytes = key_bytes}, found;
        if (look_up(kept, &wanted, &found) != NULL) {
            visit(context, wanted.key, key_bytes, found.value, found.value_bytes);
        }
    }
    pthread_mutex_unlock(&kept->mutex);
    return KV_OK;
}

static uint64_t memory_estimate(kv_index_t *index)
{
    kv_index_kept_t *kept = ((memory_index_t *)index)->kept;
    uint64_t count = 0;
    pthread_mutex_lock(&kept->mutex);
    for (const entry_t *entry = kept->first; entry != NULL; entry = entry->next) {
        count++;
    }
    pthread_mutex_unlock(&kept->mutex);
    return count;
}

static void memory_close(kv_index_t *index)
{
    free(index);
}

static const kv_index_ops_t MEMORY_OPS = {
    .write = memory_write,
    .open_cursor = memory_open_cursor,
    .read = memory_read,
    .close_cursor = memory_close_cursor,
    .get = memory_get,
    .estimate = memory_estimate,
    .close = memory_close,
};

kv_index_t *kv_index_memory_open(kv_index_kept_t **kept, bool *made_out)
{
    *made_out = *kept == NULL;
    if (*made_out) {
        *kept = make_kept();
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

kv_index_kept_t *kv_index_memory_after_loss(const kv_index_kept_t *kept, uint32_t batch_count)
{
    KV_CHECK(batch_count <= kept->unsynced_count);
    kv_index_kept_t *left = copy_durable(kept);
    for (uint32_t i = 0; i < batch_count; i++) {
        apply(left, &kept->unsynced[i]);
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
        pthread_mutex_destroy(&(*kept)->mutex);
        free(*kept);
        *kept = NULL;
    }
}
