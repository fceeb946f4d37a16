/* The durable index: small keys to small values, written in batches; read as a whole once, after
 * the start, and until that is done key by key.
 *
 * Two make it: RocksDB, and a table in memory for tests. A batch is applied whole or not at all; a
 * synced one is durable with all before it. Of those after the last synced one a power loss takes
 * the last: never one from before another that it leaves.
 *
 * Owns: its database.
 * Borrows: a batch during the call.
 * Threads: one at a time writes, one at a time uses a cursor; any may get meanwhile.
 * Errors: KV_CORRUPT from open: the database is damaged, remove and rebuild it; KV_IO otherwise. */
#ifndef KV_KVSTORE_INDEX_INDEX_H
#define KV_KVSTORE_INDEX_INDEX_H

#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Puts and deletes in order: {u8 is_put, u8 key_bytes, u16 value_bytes, key, value} each. */
typedef struct {
    uint8_t *bytes;
    size_t used, capacity;
    uint32_t count;
} kv_index_batch_t;

void kv_index_batch_put(kv_index_batch_t *batch, const void *key, size_t key_bytes,
    const void *value, size_t value_bytes);
void kv_index_batch_delete(kv_index_batch_t *batch, const void *key, size_t key_bytes);
void kv_index_batch_clear(kv_index_batch_t *batch);
void kv_index_batch_release(kv_index_batch_t *batch);

typedef struct {
    bool is_put;
    const uint8_t *key, *value;
    size_t key_bytes, value_bytes;
} kv_index_change_t;

/* The change at *cursor (0 at first), which moves on; false at the end. */
bool kv_index_batch_next(
    const kv_index_batch_t *batch, size_t *cursor, kv_index_change_t *change_out);

typedef void (*kv_index_visit_t)(
    void *context, const uint8_t *key, size_t key_bytes, const uint8_t *value, size_t value_bytes);

typedef struct kv_index kv_index_t;
typedef struct kv_index_cursor kv_index_cursor_t;
typedef struct {
    /* sync: durable through a power loss when it returns. */
    kv_status_t (*write)(
        kv_index_t *index, const kv_index_batch_t *batch, bool sync, kv_error_t *error);

    /* A view of the keys that begin with this byte, as they are now: later writes do not show. */
    kv_index_cursor_t *(*open_cursor)(kv_index_t *index, uint8_t first);
    /* The next entries in the order of their keys, count_max at most. After an error there are no
     * more. */
    kv_status_t (*read)(kv_index_t *index, kv_index_cursor_t *cursor, size_t count_max,
        kv_index_visit_t visit, void *context, bool *ended_out, kv_error_t *error);
    void (*close_cursor)(kv_index_t *index, kv_index_cursor_t *cursor);

    /* Those of `count` keys that are there. keys: [count][key_bytes]. */
    kv_status_t (*get)(kv_index_t *index, const uint8_t *keys, size_t key_bytes, size_t count,
        kv_index_visit_t visit, void *context, kv_error_t *error);

    uint64_t (*estimate)(kv_index_t *index); /* how many entries, about */
    void (*close)(kv_index_t *index);
} kv_index_ops_t;

struct kv_index {
    const kv_index_ops_t *ops;
};

/* All entries whose keys begin with this byte. */
kv_status_t kv_index_read_all(
    kv_index_t *index, uint8_t first, kv_index_visit_t visit, void *context, kv_error_t *error);

/* log_bytes: so much is written before the log changes (0: a default); its end is then durable.
 * *made_out: the database was absent and is new. */
kv_status_t kv_index_rocksdb_open(
    const char *path, size_t log_bytes, kv_index_t **index_out, bool *made_out, kv_error_t *error);

/* Puts a damaged database where the last one was put, or else removes it. */
void kv_index_rocksdb_set_aside(const char *path, const char *aside);

/* The twin. Its content outlives close: `kept` (NULL at first) holds it for the next open;
 * kv_index_memory_forget releases it. */
typedef struct kv_index_kept kv_index_kept_t;
kv_index_t *kv_index_memory_open(kv_index_kept_t **kept, bool *made_out);
void kv_index_memory_forget(kv_index_kept_t **kept);

/* Asked before each write (anything but KV_OK is its answer, and nothing is written), and of a
 * synced one again, with sync, when it is written and not yet durable. */
typedef struct {
    kv_status_t (*before)(void *context, bool sync);
    void *context;
} kv_index_watch_t;
void kv_index_memory_watch(kv_index_kept_t *kept, kv_index_watch_t watch);

/* What a power loss leaves: all that is durable, and the first batch_count of the unsynced batches.
 */
uint32_t kv_index_memory_unsynced(const kv_index_kept_t *kept);
kv_index_kept_t *kv_index_memory_after_loss(const kv_index_kept_t *kept, uint32_t batch_count);

#endif
